//! Parts of a node that end in mid-fault.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{
    bench::{Bench, document, ended_in_time},
    tests,
};
use crate::{
    lab::{
        clock, nanos,
        samples::{Sign, first_and_last},
        sleep_until,
    },
    out::note,
    step,
};

tests![a_fault_ends_at_its_deadline_without_its_agent];

/// Long enough for everything that is done to the node meanwhile.
const LASTS: Duration = Duration::from_secs(12);

/// How long the kubelet may take to start the agent anew.
const AGENT_RETURNS: Duration = Duration::from_secs(90);

/// The node's kubelet, frozen: nothing starts the agent anew. Thawed on drop.
struct Frozen<'a> {
    bench: &'a Bench<'a>,
    node: String,
}

impl<'a> Frozen<'a> {
    fn new(bench: &'a Bench<'a>, node: &str) -> Result<Self> {
        on_node(bench, node, "pkill -STOP -x kubelet")?;
        Ok(Self {
            bench,
            node: node.to_owned(),
        })
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        // The test has failed already if this does.
        let _thawed = on_node(self.bench, &self.node, "pkill -CONT -x kubelet");
    }
}

fn on_node(bench: &Bench<'_>, node: &str, command: &str) -> Result<String> {
    let mut ssh = bench.lab.cluster().ssh(node, &[command.to_owned()])?;
    step::output(&mut ssh)
}

fn a_fault_ends_at_its_deadline_without_its_agent(bench: &Bench<'_>) -> Result<()> {
    let node = bench.lab.pod("a")?.node.clone();
    let rest = format!("  action: partition\n  duration: {}s\n", LASTS.as_secs());
    let applied = bench.lab.apply(&document("orphaned", "a", "b", &rest))?;
    bench.injected(&applied.name)?;
    let frozen = Frozen::new(bench, &node)?;
    on_node(bench, &node, "pkill -KILL -x chaos-agent")?;
    let killed = clock::now();
    let deadline = bench.lab.deadline(&applied.name, LASTS)?;
    ensure!(
        killed + nanos(Duration::from_secs(2)) < deadline,
        "the machine is too slow"
    );
    let until = deadline + nanos(Duration::from_secs(2));
    sleep_until(until);
    let alive = on_node(bench, &node, "pgrep -c -x chaos-agent || true")?;
    ensure!(alive.trim() == "0", "an agent runs: {alive}");
    let paths = bench.lab.settled_paths(applied.asked, until)?;
    let a_to_b = || {
        paths
            .iter()
            .filter(|path| path.from == "a" && path.to == "b")
    };
    let hits = first_and_last(a_to_b(), &(applied.asked..until), Sign::Refused);
    let (first, last) = hits.unwrap_or_default();
    let lasted = Duration::from_nanos(last - first);
    note!(
        "killed {:.1} s into the fault; it lasted {:.2} s",
        Duration::from_nanos(killed.saturating_sub(first)).as_secs_f64(),
        lasted.as_secs_f64()
    );
    ensure!(last > killed, "it ended with its agent");
    ended_in_time(last, deadline)?;
    let span = first..last;
    for path in a_to_b() {
        let missed = path
            .within(&span)
            .filter(|sample| !Sign::Refused.is_on(sample));
        ensure!(
            missed.count() == 0,
            "there is a gap after the agent's death"
        );
    }

    drop(frozen);
    let started = Instant::now();
    let status = bench
        .lab
        .wait_for_phase(&applied.name, "Finished", AGENT_RETURNS)?;
    // Until its container runs again, nobody can be asked.
    while let Err(error) = bench.lab.verdict(&applied.name, &status) {
        if started.elapsed() > AGENT_RETURNS {
            return Err(error);
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    note!(
        "a new agent found all clean after {:.1} s",
        started.elapsed().as_secs_f64()
    );
    bench.lab.delete(&applied.name).map(drop)
}

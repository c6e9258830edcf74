//! Parts of a node that end in mid-fault.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{
    bench::{Bench, EDGE, GRAIN, deadline_is_asked, document},
    tests,
};
use crate::{
    lab::{
        clock, nanos,
        samples::{Path, Sign},
        sleep_until,
    },
    out::note,
    step,
};

tests![a_fault_ends_at_its_deadline_without_its_agent];

/// Long enough for everything that is done to the node meanwhile.
const LASTS: Duration = Duration::from_secs(16);

/// How long the kubelet may take to start the agent anew.
const AGENT_RETURNS: Duration = Duration::from_secs(180);

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
    let armed = bench.lab.armed()?;
    let asked = bench.lab.deadline(&applied.name, LASTS)?;
    for rule in &armed {
        deadline_is_asked(rule.deadline, asked)?;
    }
    // One rule at the sender and one at the receiver, on the same node: they end together.
    let deadlines = || armed.iter().map(|rule| rule.deadline);
    let first = deadlines().min().context("no rule is armed")?;
    let last = deadlines().max().context("no rule is armed")?;
    let frozen = Frozen::new(bench, &node)?;
    on_node(bench, &node, "pkill -KILL -x chaos-agent")?;
    let killed = clock::now();
    ensure!(
        killed + nanos(Duration::from_secs(3)) < first,
        "the machine is too slow to kill the agent in mid-fault"
    );
    let until = last + nanos(Duration::from_secs(2));
    sleep_until(until);
    let alive = on_node(bench, &node, "pgrep -c -x chaos-agent || true")?;
    ensure!(alive.trim() == "0", "an agent runs: {alive}");
    let paths = bench.lab.settled_paths(applied.asked, until)?;
    let a_to_b = |path: &&Path| path.from == "a" && path.to == "b";
    // No gap at the agent's death, and the end is the rules', to the datagram.
    let orphaned = killed..first - nanos(EDGE);
    let ended = last + nanos(GRAIN)..until;
    for path in paths.iter().filter(a_to_b) {
        let refused = |span| {
            path.within(span)
                .filter(|one| Sign::Refused.is_on(one))
                .count()
        };
        let (sent, sent_after) = (path.within(&orphaned).count(), path.within(&ended).count());
        note!(
            "without its agent for {:.1} s: {} of {sent} refused, then {} of {sent_after}",
            Duration::from_nanos(first - killed).as_secs_f64(),
            refused(&orphaned),
            refused(&ended)
        );
        ensure!(
            refused(&orphaned) == sent && sent > 10,
            "it ended with its agent, or has a gap"
        );
        ensure!(
            refused(&ended) == 0 && sent_after > 10,
            "it goes on after its deadline"
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
    let done = bench.lab.done(&armed)?;
    ensure!(
        done.iter().all(|rule| rule
            .acted
            .is_none_or(|(_, last)| last <= rule.deadline + nanos(GRAIN))),
        "a packet was hit after the deadline: {done:?}"
    );
    bench.lab.delete(&applied.name).map(drop)
}

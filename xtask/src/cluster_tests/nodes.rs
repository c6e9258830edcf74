//! More than one node, and a node with many pods.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use chaos_api::v1alpha1::RecordPhase;
use vm_tests::figures::statistics::median;

use super::{
    Test,
    bench::{Bench, EDGE, NAMESPACE, NODE, document},
};
use crate::{
    lab::{
        Wanted,
        chaos::{PATIENCE, all_are, condition},
        clock, nanos,
        samples::Sign,
    },
    out::note,
    step,
};

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "a_fault_between_two_nodes_is_done_on_both",
        run: a_fault_between_two_nodes_is_done_on_both,
        nodes: 2,
    },
    Test {
        name: "every_one_of_many_pods_of_a_node_is_injected",
        run: every_one_of_many_pods_of_a_node_is_injected,
        nodes: 1,
    },
];

/// How many pods a node of the reference figures has.
const MANY: usize = 24;

/// How often all of them are injected.
const ROUNDS: usize = 3;

/// For how long nobody asks how far it is.
const UNASKED: Duration = Duration::from_secs(3);

/// How many of them start together.
const AT_A_TIME: usize = 3;

fn a_fault_between_two_nodes_is_done_on_both(bench: &Bench<'_>) -> Result<()> {
    const LASTS: Duration = Duration::from_secs(10);
    let far = &bench.lab.pod("d")?.node;
    ensure!(far != NODE, "d is on {far}, where the others are");
    let rest = "  action: delay\n  delay: {latency: 100ms}\n  direction: both\n  duration: 10s\n";
    let seen = bench.watch(&document("apart", "a", "d", rest), "apart", LASTS)?;
    // One rule at each end, and each of them has worked: what goes there waits, and what comes back.
    ensure!(
        seen.rules.len() == 2 && seen.rules.iter().all(|rule| rule.hits > 10),
        "{:?}",
        seen.rules
    );
    let asked = Duration::from_millis(200);
    let asked_ms = asked.as_secs_f64() * 1000.0;
    let during = seen.inner(asked);
    let before = 0..seen.first() - nanos(EDGE);
    let after = seen.ends().1 + nanos(EDGE)..seen.until;
    for (from, to) in [("a", "d"), ("d", "a")] {
        seen.all_hit(from, to, &during, Sign::SlowerThan(190_000))?;
        seen.is_untouched(from, to)?;
        // One round trip may take as long by itself: two emulated machines share two CPUs. Half of them
        // do not, and that no packet was hit later the kernels have said.
        for span in [&before, &after] {
            let medians = seen.medians(from, to, span)?;
            ensure!(
                medians.iter().all(|median| *median < asked_ms / 2.0),
                "{from} → {to} is slow without the fault: {medians:.1?} ms"
            );
        }
    }
    for (from, to) in [("a", "b"), ("b", "a"), ("b", "d"), ("d", "b"), ("c", "d")] {
        seen.is_untouched(from, to)?;
        seen.is_well(from, to, &after)?;
    }
    ensure!(
        condition(&seen.after, "AllRecovered") == Some(true)
            && all_are(&seen.after, RecordPhase::NotInjected),
        "{:?}",
        seen.after
    );
    Ok(())
}

fn every_one_of_many_pods_of_a_node_is_injected(bench: &Bench<'_>) -> Result<()> {
    let names: Vec<String> = (0..MANY).map(|n| format!("crowd-{n}")).collect();
    let labels = [("app", "crowd")];
    let pods = names
        .iter()
        .map(|name| Wanted::new(name, &labels).on(NODE))
        .collect::<Vec<_>>();
    // Few at a time: an emulated node that starts all at once has no time left for anything else, the
    // operator's probes included.
    for some in pods.chunks(AT_A_TIME) {
        bench.lab.create(some)?;
        let crowd = ["--selector=app=crowd"];
        let ready = ["wait", "pods", "--for=condition=Ready", "--timeout=300s"];
        step::output(&mut bench.lab.kubectl(ready.into_iter().chain(crowd)))?;
    }

    // What is measured is a node with many pods, not one that starts them.
    bench.lab.comes_to_rest(NODE)?;
    let words = [
        "rollout",
        "status",
        "deployment/chaos-operator",
        "--timeout=180s",
    ];
    step::output(bench.lab.cluster().in_namespace().args(words))?;
    let times: Result<Vec<_>> = (0..ROUNDS).map(|_| inject_crowd(bench)).collect();
    let (first, last): (Vec<f64>, Vec<f64>) = times?.into_iter().unzip();
    note!(
        "{MANY} pods: the first armed {:.0} ms after `kubectl apply` returned, the last {:.0} ms ({last:.0?})",
        median(&first),
        median(&last)
    );
    Ok(())
}

/// Delays what they send, and ends that. When the first and the last of them was armed, in milliseconds from
/// `kubectl apply` returning.
fn inject_crowd(bench: &Bench<'_>) -> Result<(f64, f64)> {
    let document = format!(
        "apiVersion: chaos-mesh.org/v1alpha1\nkind: NetworkChaos\nmetadata:\n  name: crowd\nspec:\n  \
         mode: all\n  selector:\n    namespaces: [{NAMESPACE}]\n    labelSelectors: {{app: crowd}}\n  \
         action: delay\n  delay: {{latency: 100ms}}\n"
    );
    let applied = bench.lab.apply(&document)?;
    // Whoever asks takes a CPU that the emulated node would have.
    std::thread::sleep(UNASKED);
    let is_done = |status: &_| condition(status, "AllInjected") == Some(true);
    let status = bench
        .lab
        .wait_for(&applied.name, "AllInjected", PATIENCE * 3, is_done)?;
    let held = bench.lab.held()?;
    let asked = clock::now();
    let ours: Vec<_> = held.iter().filter(|one| one.name == "crowd").collect();
    ensure!(
        ours.len() == MANY && ours.iter().all(|one| one.phase == "Injected"),
        "{held:?}"
    );
    ensure!(
        bench.lab.armed()?.len() == MANY,
        "not one rule for each pod"
    );
    ensure!(
        status.experiment.container_records.len() == MANY,
        "{status:?}"
    );
    // What was asked came a moment before, so this is late rather than early.
    let late = |ago: u64| {
        let armed = asked - nanos(Duration::from_millis(ago));
        (armed.cast_signed() - applied.returned.cast_signed()) as f64 / 1e6
    };
    let agos = || ours.iter().map(|one| one.armed_ms_ago);
    bench.lab.delete(&applied.name)?;
    let left = bench.lab.held()?;
    ensure!(left.is_empty(), "{left:?}");
    let (Some(first), Some(last)) = (agos().max(), agos().min()) else {
        bail!("nothing was armed");
    };
    Ok((late(first), late(last)))
}

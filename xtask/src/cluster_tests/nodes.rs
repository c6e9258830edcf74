//! More than one node, and a node with many pods.

use std::time::Duration;

use anyhow::{Result, ensure};
use chaos_api::v1alpha1::RecordPhase;

use super::{
    Test,
    bench::{Bench, EDGE, NODE, document},
};
use crate::{
    lab::{
        chaos::{all_are, condition},
        crowd::{InForce, MANY},
        nanos,
        samples::Sign,
    },
    out::note,
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

/// How often all of them are injected.
const ROUNDS: usize = 3;

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
    bench.lab.start_crowd(NODE)?;
    for _ in 0..ROUNDS {
        // What that is worth is for `cargo xtask bench --only cluster` to say: these binaries are quick to compile.
        let InForce { first, last } = bench.lab.inject_crowd(MANY)?;
        note!(
            "{MANY} pods: the first armed {first:.0} ms after `kubectl apply` returned, the last {last:.0} ms"
        );
    }
    Ok(())
}

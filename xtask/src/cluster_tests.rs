//! The stage of `cargo xtask test` that runs in a cluster: operator, agent and API together, asked
//! with `kubectl` and judged by what pods see of each other.
//!
//! A test is a function in one of the files below, its name a sentence, and a line in its file's
//! `TESTS`. They run one after the other in one laboratory; each removes what it has made. Not here:
//! what the mechanisms do on each kernel (`tests/vm`).

mod bench;
mod clocks;
mod lifecycle;
mod network;
mod node;
mod nodes;
mod refused;

use std::{path::Path, time::Instant};

use anyhow::{Context as _, Result};
use vm_tests::report::Outcome;

use self::bench::Bench;
use crate::{
    cluster::{self, Cluster},
    image::{self, Profile},
    lab::Lab,
    out::note,
    setup::{kernels, rootfs},
    step,
    test::{Context, failed, matrix::no_time, result},
    vmtest::TestResult,
};

/// A test, and its name without the stage.
struct Test {
    name: &'static str,
    run: fn(&Bench<'_>) -> Result<()>,
    /// How many it needs.
    nodes: usize,
}

/// Makes a [`Test`] of each function: its name is that of the function.
macro_rules! tests {
    ($($function:ident),* $(,)?) => {
        pub(super) const TESTS: &[$crate::cluster_tests::Test] = &[$(
            $crate::cluster_tests::Test { name: stringify!($function), run: $function, nodes: 1 },
        )*];
    };
}
use tests;

/// In this order: the last ones stop parts of the node.
const ALL: [&[Test]; 6] = [
    refused::TESTS,
    network::TESTS,
    nodes::TESTS,
    clocks::TESTS,
    lifecycle::TESTS,
    node::TESTS,
];

/// How many times a cluster is made anew because QEMU broke a node of it.
const NEW_CLUSTERS: u32 = 2;

/// How many tests of a cluster that failed are run once more: an emulated node stalls for seconds now and then, and
/// who waits for an answer takes it for lost. Many failures are not that.
const SECOND_TRIES: usize = 2;

/// Makes what a new cluster is made of, so that [`run`] need not.
///
/// # Errors
/// If the images do not build, or the root file system of a node cannot be made.
pub(crate) fn prepare(root: &Path) -> Result<()> {
    image::build(root, Profile::Image, &image::ALL)?;
    rootfs::ensure(&kernels::ensure(rootfs::KERNEL)?)?;
    Ok(())
}

/// Runs those whose name contains what was asked for, in the cluster that runs or in a new one that
/// is ended afterwards.
///
/// # Errors
/// If there is no cluster to be had.
pub(crate) fn run(context: &Context<'_>) -> Result<Vec<TestResult>> {
    let chosen: Vec<&Test> = ALL
        .into_iter()
        .flatten()
        .filter(|test| full_name(test).contains(context.only))
        .collect();
    let mut results = Vec::new();
    let mut clusters = 0;
    // One that takes the place of a broken one has as many nodes.
    let mut options = cluster::Options::default();
    while results.len() < chosen.len() {
        let (cluster, is_ours) = cluster::with_faultline(context.root, &options, |cluster| {
            Lab::order(cluster, bench::NAMESPACE, bench::pods(cluster))
        })?;
        options = cluster.options().clone();
        clusters += 1;
        let ran = run_all(context, &cluster, &chosen, &mut results);
        let again = clusters <= NEW_CLUSTERS && cluster.has_node_that_qemu_broke();
        if is_ours || again {
            cluster::down(context.root)?;
        }
        match ran {
            Err(error) if again => note!("a new cluster, for QEMU broke a node: {error:#}"),
            Err(error) => {
                let ended = "cluster::it_lives_until_the_end";
                results.push(failed(ended, &error, Instant::now()));
                break;
            }
            Ok(()) => {}
        }
    }
    Ok(results)
}

/// Runs those that have no result yet.
///
/// # Errors
/// If the cluster does not live until the end.
fn run_all(
    context: &Context<'_>,
    cluster: &Cluster,
    chosen: &[&Test],
    results: &mut Vec<TestResult>,
) -> Result<()> {
    let lab = Lab::start(cluster, bench::NAMESPACE, bench::pods(cluster), true)?;
    let bench = Bench::new(&lab, context.root);
    step::step("devices of the pods", |_| bench.prepare_devices())?;
    let mut second_tries = SECOND_TRIES;
    for test in chosen.iter().skip(results.len()) {
        let started = Instant::now();
        if context.time.is_some_and(|time| started > time.cluster) {
            results.push(result(&full_name(test), no_time(), started));
            continue;
        }
        if cluster.nodes().len() < test.nodes {
            let why = format!(
                "the cluster has too few nodes; two emulated ones are more than two cores run in time. To run it: \
                 `cargo xtask up --nodes {}`, then `cargo xtask test --only cluster`",
                test.nodes
            );
            results.push(result(&full_name(test), Outcome::Skipped(why), started));
            continue;
        }
        let outcome = loop {
            let done = step::step(test.name, |_| (test.run)(&bench));
            let Err(error) = done.and_then(|()| bench.sweep()) else {
                break Outcome::Passed;
            };
            let ended = || format!("{}: {error:#}", test.name);
            cluster.check().with_context(ended)?;
            bench.sweep().with_context(ended)?;
            if second_tries == 0 {
                break Outcome::Failed(format!("{error:#}"));
            }
            second_tries -= 1;
            note!("{}: once more, after: {error:#}", test.name);
        };
        results.push(result(&full_name(test), outcome, started));
    }
    let started = Instant::now();
    let left = match bench.nothing_is_left() {
        Ok(()) => Outcome::Passed,
        Err(error) => Outcome::Failed(format!("{error:#}")),
    };
    results.push(result(
        "cluster::the_tests_have_left_nothing",
        left,
        started,
    ));
    bench.tell_first_hits();
    lab.end()
}

fn full_name(test: &Test) -> String {
    format!("cluster::{}", test.name)
}

//! The stage of `cargo xtask test` that runs in a cluster: operator, agent and API together, asked
//! with `kubectl` and judged by what pods see of each other.
//!
//! A test is a function in one of the files below, its name a sentence, and a line in its file's
//! `TESTS`. They run one after the other in one laboratory; each removes what it has made. Not here:
//! what the mechanisms do on each kernel (`tests/vm`).

mod bench;
mod lifecycle;
mod network;
mod node;
mod refused;

use std::time::Instant;

use anyhow::Result;
use vm_tests::report::Outcome;

use self::bench::Bench;
use crate::{
    cluster::{self, Cluster},
    image,
    lab::Lab,
    out::note,
    step,
    test::{Context, result},
    vmtest::TestResult,
};

/// A test, and its name without the stage.
struct Test {
    name: &'static str,
    run: fn(&Bench<'_>) -> Result<()>,
}

/// Makes a [`Test`] of each function: its name is that of the function.
macro_rules! tests {
    ($($function:ident),* $(,)?) => {
        pub(super) const TESTS: &[$crate::cluster_tests::Test] = &[$(
            $crate::cluster_tests::Test { name: stringify!($function), run: $function },
        )*];
    };
}
use tests;

/// In this order: the last ones stop parts of the node.
const ALL: [&[Test]; 4] = [
    refused::TESTS,
    network::TESTS,
    lifecycle::TESTS,
    node::TESTS,
];

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
    if chosen.is_empty() {
        return Ok(Vec::new());
    }
    let (cluster, is_ours) = match cluster::open(context.root) {
        Ok(cluster) => {
            note!("a cluster runs already: it is used, with the images of this tree");
            cluster::deploy(context.root)?;
            (cluster, false)
        }
        Err(_) => {
            let cluster = cluster::up(context.root, &cluster::Options::default(), &image::ALL)?;
            cluster.install(context.root)?;
            (cluster, true)
        }
    };
    let results = run_all(&cluster, &chosen);
    if is_ours {
        cluster::down(context.root)?;
    }
    results
}

fn run_all(cluster: &Cluster, chosen: &[&Test]) -> Result<Vec<TestResult>> {
    let lab = Lab::start(cluster, bench::NAMESPACE, &bench::PODS, true)?;
    let bench = Bench::new(&lab);
    let mut results = Vec::new();
    for test in chosen {
        let started = Instant::now();
        let done = step::step(test.name, |_| (test.run)(&bench));
        let mut outcome = match done {
            Ok(()) => Outcome::Passed,
            Err(error) => Outcome::Failed(format!("{error:#}")),
        };
        let swept = bench.sweep();
        if let (Outcome::Passed, Err(left)) = (&outcome, swept) {
            outcome = Outcome::Failed(format!("{left:#}"));
        }
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
    lab.end()?;
    Ok(results)
}

fn full_name(test: &Test) -> String {
    format!("cluster::{}", test.name)
}

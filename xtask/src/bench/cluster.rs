//! How quick faults are in a cluster, from `kubectl apply` to the kernel, with binaries as they are for use.

use std::path::Path;

use anyhow::{Result, ensure};
use vm_tests::figures::{Aim, Figure};

use crate::{
    cluster,
    lab::{
        Lab, Wanted,
        crowd::{InForce, MANY},
    },
    out::note,
    step,
};

const NAMESPACE: &str = "bench";
const NODE: &str = "node1";

/// The clock of its node is compared; it takes no part.
const PODS: [Wanted<'_>; 1] = [Wanted::new("idle", &[("app", "idle")]).on(NODE)];

/// All that must be in force within this time, in milliseconds.
const IN_TIME: f64 = 1000.0;

/// The figures, and the kernel of the node.
///
/// # Errors
/// If no cluster can be had, or a fault does not come or go.
pub(super) fn measure(root: &Path, rounds: usize) -> Result<(String, Vec<Figure>)> {
    let other = cluster::open(root).is_ok_and(|cluster| !cluster.options().release);
    ensure!(
        !other,
        "the cluster that runs has binaries that are for tests; end it first with `cargo xtask down`"
    );
    let options = cluster::Options {
        release: true,
        ..cluster::Options::default()
    };
    let (cluster, is_ours) = cluster::with_faultline(root, &options, |cluster| {
        Lab::order(cluster, NAMESPACE, &PODS)
    })?;
    let measured = (|| {
        let lab = Lab::start(&cluster, NAMESPACE, &PODS, false)?;
        step::step(&format!("{MANY} pods"), |_| lab.start_crowd(NODE))?;
        let mut figures = Vec::new();
        for count in [1, MANY] {
            figures.extend(in_force(&lab, count, rounds)?);
        }
        lab.end()?;
        let words = ["uname -r".to_owned()];
        let kernel = step::output(&mut cluster.ssh(NODE, &words)?)?;
        Ok((kernel.trim().to_owned(), figures))
    })();
    if is_ours {
        cluster::down(root)?;
    }
    measured
}

fn in_force(lab: &Lab<'_>, count: usize, rounds: usize) -> Result<Vec<Figure>> {
    let mut all: Vec<InForce> = Vec::new();
    for round in 1..=rounds {
        let one = lab.inject_crowd(count)?;
        note!(
            "{count} pods, {round} of {rounds}: the first {:.0} ms after `kubectl apply` returned, the last {:.0} ms",
            one.first,
            one.last
        );
        all.push(one);
    }
    let figure = |what: &str, value: fn(&InForce) -> f64| {
        let values: Vec<f64> = all.iter().map(value).collect();
        Figure::of(
            format!("delay, {count} pods of a node: {what}"),
            "ms after kubectl apply returned",
            &values,
        )
    };
    let last = figure("all in force", |one| one.last).aim(Aim::AtMost(IN_TIME));
    Ok(if count == 1 {
        vec![last]
    } else {
        vec![figure("the first in force", |one| one.first), last]
    })
}

//! Leases, crashes and successors: no fault outlives its agent for longer than it was told to.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chaos_agent::node::{Node, Options, Owner};
use chaos_planner::fault::{Fault, Lifetime, NetworkEffect, TargetRef};
use chaos_planner::observed::Phase;
use nix::errno::Errno;

use crate::cgroup::Cgroup;
use crate::netns::Pair;
use crate::node::{Host, delayed, egress, fault, lasting, resident};
use crate::process::Place;
use crate::udp::{self, Echo, Probing};
use crate::vm_test;

fn drop_egress() -> NetworkEffect {
    NetworkEffect {
        drop: true,
        ..egress()
    }
}

vm_test!(
    a_fault_without_a_duration_is_leased_and_renewed,
    limit = 90,
    once
);
fn a_fault_without_a_duration_is_leased_and_renewed() -> Result<()> {
    let target = Cgroup::new()?;
    let mut host = Host::open()?;
    let mut leased = fault("p", &target, drop_egress());
    leased.lifetime = Lifetime::Leased {
        orphan_timeout: None,
    };
    host.arm(leased)?;
    let left = host.observe("p").context("gone")?.expires_in;
    ensure!((20..=30).contains(&left.as_secs()), "{left:?}");
    host.run_for(Duration::from_secs(12));
    let left = host.observe("p").context("gone")?.expires_in;
    ensure!(left.as_secs() >= 20, "not renewed: {left:?}");
    Ok(())
}

vm_test!(an_expired_fault_says_so_and_is_not_armed_again, limit = 60);
fn an_expired_fault_says_so_and_is_not_armed_again() -> Result<()> {
    let target = Cgroup::new()?;
    let mut host = Host::open()?;
    let brief: Fault = lasting(
        fault("p", &target, drop_egress()),
        Duration::from_millis(300),
    );
    // A slow machine may see it end before it has seen it begin.
    host.want(brief.clone());
    host.wait("p", |seen| seen.phase == Phase::Expired)?;
    // Told again, as after a reconnect: the deadline is the first one.
    host.change(brief);
    host.run_for(Duration::from_millis(300));
    ensure!(
        host.observe("p").context("gone")?.phase == Phase::Expired,
        "armed again"
    );
    Ok(())
}

vm_test!(a_successor_adopts_what_its_predecessor_armed, limit = 90);
fn a_successor_adopts_what_its_predecessor_armed() -> Result<()> {
    let pair = Pair::new()?;
    let target = Cgroup::new()?;
    let _echo = Echo::start(Place::host().in_namespace(&pair.b))?;
    let _resident = resident(&pair.a, &target)?;
    let owner = || Owner("test".into());
    let delay = delayed(Duration::from_millis(100));
    let faults = || {
        vec![
            fault("d", &target, delay.clone()),
            fault(
                "p",
                &target,
                NetworkEffect {
                    peers: Some(vec![Pair::B6.into()]),
                    ..drop_egress()
                },
            ),
        ]
    };
    let mut first = Node::open(Options::default())?;
    first.set_desired(owner(), faults());
    first.reconcile();
    let probe = |to| {
        let from = Place::host().in_namespace(&pair.a).in_cgroup(&target);
        udp::probe(from, &Probing::of(to).per_second(50), 20)
    };
    ensure!(
        probe(Pair::B4)?.there().median()?.as_millis() >= 99,
        "not delayed"
    );
    // As after SIGKILL: nothing is undone. (The lock goes with the process.)
    drop(first);
    let between = probe(Pair::B4)?;
    ensure!(
        between.there().median()?.as_millis() >= 99,
        "not delayed without an agent"
    );
    let mut second = Node::open(Options::default())?;
    let seen = second.observed(None);
    ensure!(
        seen.len() == 2 && seen.iter().all(|s| s.phase == Phase::Injected),
        "{seen:?}"
    );
    let delayed = |node: &mut Node| {
        node.observed(None)
            .iter()
            .find(|s| s.id == "d")
            .map(|s| s.counts.injected)
    };
    ensure!(
        delayed(&mut second).is_some_and(|hits| hits >= 40),
        "{seen:?}"
    );
    second.set_desired(owner(), faults());
    second.reconcile();
    ensure!(
        probe(Pair::B4)?.there().median()?.as_millis() >= 99,
        "not delayed any more"
    );
    ensure!(
        probe(Pair::B6)?.refused(Errno::EPERM) == 20,
        "not partitioned any more"
    );
    second.set_desired(owner(), Vec::new());
    second.reconcile();
    ensure!(
        probe(Pair::B4)?.there().median()?.as_millis() < 50,
        "still delayed"
    );
    second.purge()?;
    crate::node::nothing_is_pinned()
}

vm_test!(
    a_target_that_goes_away_takes_only_its_own_fault_along,
    limit = 60
);
fn a_target_that_goes_away_takes_only_its_own_fault_along() -> Result<()> {
    let pair = Pair::new()?;
    let (stays, goes) = (Cgroup::new()?, Cgroup::new()?);
    let _echo = Echo::start(Place::host().in_namespace(&pair.b))?;
    let mut host = Host::open()?;
    host.arm(fault("stays", &stays, drop_egress()))?;
    host.arm(fault("goes", &goes, drop_egress()))?;
    goes.remove()?;
    host.wait("goes", |seen| seen.phase == Phase::TargetGone)?;
    let from = Place::host().in_namespace(&pair.a).in_cgroup(&stays);
    let probes = udp::probe(from, &Probing::of(Pair::B4).per_second(100), 10)?;
    ensure!(probes.refused(Errno::EPERM) == 10, "{probes:?}");
    host.recover("goes")?;
    host.recover("stays")?;
    Ok(())
}

vm_test!(
    one_that_cannot_be_armed_changes_nothing_for_the_others,
    limit = 60
);
fn one_that_cannot_be_armed_changes_nothing_for_the_others() -> Result<()> {
    let target = Cgroup::new()?;
    let mut host = Host::open()?;
    let mut lost = fault("lost", &target, drop_egress());
    lost.target = TargetRef::Cgroup("/sys/fs/cgroup/there/is/none".into());
    host.want(lost);
    // 16 rules fit on a target, the 17th does not.
    for n in 0..16 {
        host.arm(fault(&n.to_string(), &target, drop_egress()))?;
    }
    host.want(fault("16", &target, drop_egress()));
    let seen = host.wait("16", |seen| seen.phase == Phase::Failed)?;
    ensure!(seen.reason.contains("faults on one target"), "{seen:?}");
    ensure!(
        host.observe("lost").context("gone")?.phase == Phase::TargetGone,
        "found what is not there"
    );
    for n in 0..16 {
        ensure!(
            host.observe(&n.to_string()).context("gone")?.phase == Phase::Injected,
            "{n}"
        );
    }
    Ok(())
}

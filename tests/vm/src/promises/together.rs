//! Effects together: all of one fault, those of several, and more than may wait.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chaos_abi::network::waiting_units;
use chaos_abi::sample::{self, Stream};
use chaos_agent::node::Options;
use chaos_planner::fault::{Chance, Delay, NetworkEffect};

use crate::cgroup::Cgroup;
use crate::netns::Pair;
use crate::node::{Host, egress, fault, nothing_waits, resident, seeded};
use crate::process::Place;
use crate::udp::{self, Echo, Probing};
use crate::vm_test;

const SEED: u64 = 20_260_106;

fn to_peer() -> NetworkEffect {
    NetworkEffect {
        peers: Some(vec![Pair::B4.into()]),
        ..egress()
    }
}

/// How many arrive of the n-th packet. Copies are not corrupted.
fn model(seed: u64, n: u64) -> usize {
    let hits = |stream, ppm| sample::Chance::of_ppm(ppm, 0).hits(seed, stream, n);
    if hits(Stream::Loss, 200_000) {
        return 0;
    }
    usize::from(hits(Stream::Duplicate, 300_000)) + usize::from(!hits(Stream::Corrupt, 300_000))
}

vm_test!(all_effects_of_a_fault_act_together, limit = 60);
fn all_effects_of_a_fault_act_together() -> Result<()> {
    const PACKETS: u64 = 200;
    let pair = Pair::new()?;
    let target = Cgroup::new()?;
    let echo = Echo::start(Place::host().in_namespace(&pair.b))?;
    let _resident = resident(&pair.a, &target)?;
    let mut host = Host::open()?;
    let effect = NetworkEffect {
        loss: Some(Chance::of(200_000)),
        duplicate: Some(Chance::of(300_000)),
        corrupt: Some(Chance::of(300_000)),
        delay: Some(Delay::of(Duration::from_millis(100))),
        rate: Some(10_000_000),
        ..to_peer()
    };
    host.arm(seeded(fault("all", &target, effect), SEED))?;
    let from = Place::host().in_namespace(&pair.a).in_cgroup(&target);
    let probes = udp::probe(from, &Probing::of(Pair::B4).per_second(200), PACKETS)?;
    for (n, seen) in (0..).zip(echo.times_seen(PACKETS)) {
        let expected = model(SEED, n);
        ensure!(seen == expected, "{n} came {seen} times, not {expected}");
    }
    let there = probes.there().median()?;
    ensure!((99..140).contains(&there.as_millis()), "{there:?}");
    let counts = host.counts("all")?;
    ensure!(
        (counts.matched, counts.injected, counts.failed) == (PACKETS, PACKETS, 0),
        "{counts:?}"
    );
    host.recover("all")?;
    Ok(())
}

vm_test!(effects_of_two_faults_act_together, limit = 60);
fn effects_of_two_faults_act_together() -> Result<()> {
    const PACKETS: u64 = 100;
    let pair = Pair::new()?;
    let target = Cgroup::new()?;
    let echo = Echo::start(Place::host().in_namespace(&pair.b))?;
    let _resident = resident(&pair.a, &target)?;
    let mut host = Host::open()?;
    let lossy = NetworkEffect {
        loss: Some(Chance::of(300_000)),
        ..to_peer()
    };
    let doubling = NetworkEffect {
        duplicate: Some(Chance::of(500_000)),
        ..to_peer()
    };
    host.arm(seeded(fault("1", &target, lossy), SEED))?;
    host.arm(seeded(fault("2", &target, doubling), SEED + 1))?;
    let from = Place::host().in_namespace(&pair.a).in_cgroup(&target);
    udp::probe(from, &Probing::of(Pair::B4).per_second(200), PACKETS)?;
    let hits = |stream, ppm, seed, n| sample::Chance::of_ppm(ppm, 0).hits(seed, stream, n);
    // The second fault never sees, and never numbers, what the first one loses.
    let mut numbered = 0;
    for (n, seen) in (0..).zip(echo.times_seen(PACKETS)) {
        let expected = if hits(Stream::Loss, 300_000, SEED, n) {
            0
        } else {
            numbered += 1;
            1 + usize::from(hits(Stream::Duplicate, 500_000, SEED + 1, numbered - 1))
        };
        ensure!(seen == expected, "{n} came {seen} times, not {expected}");
    }
    ensure!(host.counts("1")?.matched == PACKETS);
    ensure!(host.counts("2")?.matched == numbered);
    Ok(())
}

vm_test!(more_than_may_wait_is_dropped_and_told, limit = 60);
fn more_than_may_wait_is_dropped_and_told() -> Result<()> {
    const PACKETS: u64 = 600;
    const PAYLOAD: usize = 1_000;
    let pair = Pair::new()?;
    let target = Cgroup::new()?;
    let echo = Echo::start(Place::host().in_namespace(&pair.b))?;
    let _resident = resident(&pair.a, &target)?;
    let mut host = Host::open_with(Options {
        delay_budget: 1 << 20,
        ..Options::default()
    })?;
    let effect = NetworkEffect {
        delay: Some(Delay::of(Duration::from_secs(5))),
        ..to_peer()
    };
    host.arm(fault("d", &target, effect))?;
    let from = Place::host().in_namespace(&pair.a).in_cgroup(&target);
    let probing = Probing::of(Pair::B4)
        .per_second(400)
        .size(PAYLOAD)
        .linger(Duration::from_secs(6));
    udp::probe(from, &probing, PACKETS)?;
    let fit = 1024 / u64::from(waiting_units(PAYLOAD as u32 + 42));
    let seen = host.observe("d").context("the fault is not there")?;
    ensure!(
        (seen.counts.injected, seen.counts.over_budget) == (PACKETS, PACKETS - fit),
        "{fit} fit: {:?}",
        seen.counts
    );
    ensure!(
        seen.degraded && seen.reason.contains("--delay-budget"),
        "{seen:?}"
    );
    let came = echo.arrivals().len() as u64;
    ensure!(came == fit, "{came} came, {fit} fit");
    nothing_waits()
}

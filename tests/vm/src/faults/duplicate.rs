//! Duplication: some packets arrive twice, and a seed says which.

use std::time::Duration;

use anyhow::{Result, ensure};
use chaos_abi::sample::{self, Stream};
use chaos_planner::fault::{Chance, Delay, Mode, NetworkEffect};

use crate::cgroup::Cgroup;
use crate::netns::Pair;
use crate::node::{Host, egress, fault, resident, seeded};
use crate::process::Place;
use crate::udp::{self, Echo, Probing};
use crate::vm_test;

const SEED: u64 = 20_260_104;

fn duplicate(ppm: u32) -> NetworkEffect {
    NetworkEffect {
        peers: Some(vec![Pair::B4.into(), Pair::B6.into()]),
        duplicate: Some(Chance::of(ppm)),
        ..egress()
    }
}

vm_test!(copies_arrive_of_the_packets_that_the_model_says, limit = 60);
fn copies_arrive_of_the_packets_that_the_model_says() -> Result<()> {
    const PACKETS: u64 = 100;
    for (to, delay) in [
        (Pair::B4, None),
        (Pair::B6, Some(Duration::from_millis(100))),
    ] {
        let pair = Pair::new()?;
        let (target, bystander) = (Cgroup::new()?, Cgroup::new()?);
        let echo = Echo::start(Place::host().in_namespace(&pair.b))?;
        let _resident = resident(&pair.a, &target)?;
        let mut host = Host::open()?;
        let effect = NetworkEffect {
            delay: delay.map(Delay::of),
            ..duplicate(300_000)
        };
        host.arm(seeded(fault("d", &target, effect), SEED))?;
        let from = |cgroup| Place::host().in_namespace(&pair.a).in_cgroup(cgroup);
        let probes = udp::probe(from(&target), &Probing::of(to).per_second(200), PACKETS)?;
        let share = sample::Chance::of_ppm(300_000, 0);
        for (n, seen) in (0..).zip(echo.times_seen(PACKETS)) {
            let expected = 1 + usize::from(share.hits(SEED, Stream::Duplicate, n));
            ensure!(
                seen == expected,
                "{to}: {n} came {seen} times, not {expected}"
            );
        }
        let hits = (0..PACKETS).filter(|&n| share.hits(SEED, Stream::Duplicate, n));
        let hits = if delay.is_some() {
            PACKETS
        } else {
            hits.count() as u64
        };
        let counts = host.counts("d")?;
        ensure!(
            (counts.matched, counts.injected, counts.failed) == (PACKETS, hits, 0),
            "{counts:?}, the model {hits}"
        );
        if let Some(delay) = delay {
            let first = echo.arrivals().iter().map(|a| (a.seq, a.at)).min();
            let sent = probes.0.first().map(|probe| (0, probe.sent + delay));
            ensure!(first >= sent, "a copy did not wait: {first:?} {sent:?}");
        }
        let before = echo.arrivals().len();
        udp::probe(from(&bystander), &Probing::of(to).per_second(200), 30)?;
        ensure!(echo.arrivals().len() == before + 30, "a bystander was hit");
        host.recover("d")?;
        udp::probe(from(&target), &Probing::of(to).per_second(200), 30)?;
        ensure!(echo.arrivals().len() == before + 60, "after recovery");
    }
    Ok(())
}

vm_test!(
    two_faults_make_two_copies_and_observing_makes_none,
    limit = 60
);
fn two_faults_make_two_copies_and_observing_makes_none() -> Result<()> {
    let pair = Pair::new()?;
    let target = Cgroup::new()?;
    let echo = Echo::start(Place::host().in_namespace(&pair.b))?;
    let _resident = resident(&pair.a, &target)?;
    let mut host = Host::open()?;
    for id in ["1", "2"] {
        host.arm(fault(id, &target, duplicate(1_000_000)))?;
    }
    let mut observed = fault("3", &target, duplicate(1_000_000));
    observed.mode = Mode::Observe;
    host.arm(observed)?;
    let from = Place::host().in_namespace(&pair.a).in_cgroup(&target);
    udp::probe(from, &Probing::of(Pair::B4).per_second(100), 20)?;
    let seen = echo.times_seen(20);
    ensure!(seen.iter().all(|&times| times == 3), "{seen:?}");
    ensure!(host.counts("1")?.injected == 20, "{:?}", host.counts("1")?);
    let observed = host.counts("3")?;
    ensure!(
        (observed.injected, observed.would_inject) == (0, 20),
        "{observed:?}"
    );
    Ok(())
}

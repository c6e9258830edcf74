//! Reordering: some packets do not wait, and so overtake those that do.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chaos_abi::sample::{self, Stream};
use chaos_planner::fault::{Chance, Delay, NetworkEffect, Reorder};

use crate::cgroup::Cgroup;
use crate::netns::Pair;
use crate::node::{Host, egress, fault, resident, seeded};
use crate::process::Place;
use crate::udp::{self, Echo, Probing};
use crate::vm_test;

const SEED: u64 = 20_260_103;
const LATENCY: Duration = Duration::from_millis(400);

/// Numbers of those that overtake, as netem chooses them.
fn model(packets: u64, share: sample::Chance, gap: u64) -> Vec<u64> {
    let mut in_order = 0;
    let overtakes = |n: &u64| {
        let is_candidate = in_order + 1 >= gap;
        if is_candidate && share.hits(SEED, Stream::Reorder, *n) {
            in_order = 0;
            true
        } else {
            in_order += 1;
            false
        }
    };
    (0..packets).filter(overtakes).collect()
}

vm_test!(packets_overtake_as_the_model_says, limit = 60);
fn packets_overtake_as_the_model_says() -> Result<()> {
    const PACKETS: u64 = 60;
    let pair = Pair::new()?;
    let target = Cgroup::new()?;
    let _echo = Echo::start(Place::host().in_namespace(&pair.b))?;
    let _resident = resident(&pair.a, &target)?;
    let mut host = Host::open()?;
    for (to, correlation_ppm, gap) in [(Pair::B4, 0, 1), (Pair::B6, 500_000, 4)] {
        let chance = Chance {
            ppm: 400_000,
            correlation_ppm,
        };
        let effect = NetworkEffect {
            peers: Some(vec![to.into()]),
            delay: Some(Delay {
                reorder: Some(Reorder { chance, gap }),
                ..Delay::of(LATENCY)
            }),
            ..egress()
        };
        host.arm(seeded(fault("r", &target, effect), SEED))?;
        let from = Place::host().in_namespace(&pair.a).in_cgroup(&target);
        let probes = udp::probe(from, &Probing::of(to).per_second(50), PACKETS)?;
        ensure!(probes.lost() == 0, "{to}: lost {:?}", probes.lost_seqs());
        let mut overtook = Vec::new();
        for probe in &probes.0 {
            let there = probe.received.context("not received")?.since(probe.sent);
            if there < LATENCY * 3 / 4 {
                overtook.push(probe.seq);
            } else {
                ensure!(there >= LATENCY - Duration::from_millis(1), "{there:?}");
            }
        }
        let share = sample::Chance::of_ppm(400_000, correlation_ppm);
        let model = model(PACKETS, share, gap);
        ensure!(
            !model.is_empty() && overtook == model,
            "{overtook:?} {model:?}"
        );
        let counts = host.recover("r")?;
        ensure!(
            (counts.matched, counts.injected) == (PACKETS, PACKETS),
            "{counts:?}"
        );
    }
    Ok(())
}

//! Loss: the sender is not told, and a seed says beforehand which packets go.

use anyhow::{Result, ensure};
use chaos_abi::sample::{self, Stream, hit, threshold_ppm};
use chaos_planner::fault::{Chance, NetworkEffect, Sample};

use crate::cgroup::Cgroup;
use crate::netns::Pair;
use crate::node::{Host, egress, fault, resident, seeded};
use crate::process::Place;
use crate::udp::{self, Echo, Probing};
use crate::vm_test;

const SEED: u64 = 20_260_101;

fn loss(ppm: u32) -> NetworkEffect {
    NetworkEffect {
        loss: Some(Chance::of(ppm)),
        ..egress()
    }
}

vm_test!(
    a_seeded_loss_takes_the_packets_that_the_model_says,
    limit = 60
);
fn a_seeded_loss_takes_the_packets_that_the_model_says() -> Result<()> {
    for to in [Pair::B4, Pair::B6] {
        let pair = Pair::new()?;
        let (target, bystander) = (Cgroup::new()?, Cgroup::new()?);
        let echo = Echo::start(Place::host().in_namespace(&pair.b))?;
        let _resident = resident(&pair.a, &target)?;
        let mut host = Host::open()?;
        let effect = NetworkEffect {
            peers: Some(vec![to.into()]),
            ..loss(300_000)
        };
        host.arm(seeded(fault("l", &target, effect), SEED))?;
        let from = |cgroup| Place::host().in_namespace(&pair.a).in_cgroup(cgroup);
        let probes = udp::probe(from(&target), &Probing::of(to).per_second(200), 200)?;
        let counts = host.counts("l")?;
        let model: Vec<u64> = (0..200)
            .filter(|&n| hit(SEED, Stream::Loss, n, threshold_ppm(300_000)))
            .collect();
        ensure!(
            probes.refused(nix::errno::Errno::EPERM) == 0,
            "the sender was told"
        );
        ensure!(counts.matched == 200, "{counts:?}");
        ensure!(
            counts.injected == model.len() as u64,
            "kernel {counts:?}, model {}",
            model.len()
        );
        ensure!(
            probes.lost_seqs() == model,
            "peer {:?}, model {model:?}",
            probes.lost_seqs()
        );
        ensure!(
            echo.arrivals().len() == 200 - model.len(),
            "{}",
            echo.arrivals().len()
        );
        let probes = udp::probe(from(&bystander), &Probing::of(to).per_second(200), 50)?;
        ensure!(
            probes.lost() == 0,
            "a bystander lost {:?}",
            probes.lost_seqs()
        );
        host.recover("l")?;
        let probes = udp::probe(from(&target), &Probing::of(to).per_second(200), 50)?;
        ensure!(
            probes.lost() == 0,
            "lost after recovery: {:?}",
            probes.lost_seqs()
        );
        drop(host);
        ensure!(
            pair.a.qdiscs()? == pair.b.qdiscs()?,
            "{:?}",
            pair.a.qdiscs()?
        );
    }
    Ok(())
}

vm_test!(a_sample_names_the_packets_that_are_lost, limit = 60);
fn a_sample_names_the_packets_that_are_lost() -> Result<()> {
    let sample = |first, every, ppm| Sample {
        ppm,
        first,
        every,
        seed: Some(SEED),
    };
    let drawn = |n: &u64| hit(SEED, Stream::Sample, *n, threshold_ppm(500_000));
    let table: [(Sample, Vec<u64>); 4] = [
        (sample(3, 0, None), vec![0, 1, 2]),
        (sample(0, 10, None), vec![0, 10, 20, 30]),
        (sample(15, 10, None), vec![0, 10]),
        (sample(0, 0, Some(500_000)), (0..40).filter(drawn).collect()),
    ];
    let pair = Pair::new()?;
    let target = Cgroup::new()?;
    let _echo = Echo::start(Place::host().in_namespace(&pair.b))?;
    let _resident = resident(&pair.a, &target)?;
    let mut host = Host::open()?;
    for (index, (sample, expected)) in table.into_iter().enumerate() {
        let mut fault = fault(&index.to_string(), &target, loss(1_000_000));
        fault.sample = sample;
        fault.effect = chaos_planner::fault::Effect::Network(NetworkEffect {
            peers: Some(vec![Pair::B4.into()]),
            ..loss(1_000_000)
        });
        host.arm(fault)?;
        let from = Place::host().in_namespace(&pair.a).in_cgroup(&target);
        let probes = udp::probe(from, &Probing::of(Pair::B4).per_second(200), 40)?;
        ensure!(
            probes.lost_seqs() == expected,
            "{sample:?}: {:?}",
            probes.lost_seqs()
        );
        let counts = host.recover(&index.to_string())?;
        ensure!(counts.matched == 40, "{counts:?}");
    }
    Ok(())
}

vm_test!(a_correlated_loss_comes_in_runs, limit = 60);
fn a_correlated_loss_comes_in_runs() -> Result<()> {
    let pair = Pair::new()?;
    let target = Cgroup::new()?;
    let _echo = Echo::start(Place::host().in_namespace(&pair.b))?;
    let _resident = resident(&pair.a, &target)?;
    let mut host = Host::open()?;
    let effect = NetworkEffect {
        peers: Some(vec![Pair::B4.into()]),
        loss: Some(Chance {
            ppm: 300_000,
            correlation_ppm: 900_000,
        }),
        ..egress()
    };
    host.arm(seeded(fault("l", &target, effect), SEED))?;
    let from = Place::host().in_namespace(&pair.a).in_cgroup(&target);
    let probes = udp::probe(from, &Probing::of(Pair::B4).per_second(200), 200)?;
    let chance = sample::Chance::of_ppm(300_000, 900_000);
    let model: Vec<u64> = (0..200)
        .filter(|&n| chance.hits(SEED, Stream::Loss, n))
        .collect();
    let changes = model
        .windows(2)
        .filter(|pair| pair[1] != pair[0] + 1)
        .count();
    ensure!(
        changes < model.len() / 3,
        "the model has no runs: {model:?}"
    );
    ensure!(
        probes.lost_seqs() == model,
        "peer {:?}, model {model:?}",
        probes.lost_seqs()
    );
    ensure!(host.counts("l")?.injected == model.len() as u64);
    Ok(())
}

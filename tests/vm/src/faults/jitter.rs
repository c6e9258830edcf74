//! Jitter: each packet waits its own time, which a seed says beforehand.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chaos_abi::network::jittered;
use chaos_abi::sample::{Stream, correlated, threshold_ppm};
use chaos_planner::fault::{Delay, NetworkEffect};

use crate::cgroup::Cgroup;
use crate::netns::Pair;
use crate::node::{Host, egress, fault, resident, seeded};
use crate::process::Place;
use crate::stats::Samples;
use crate::udp::{self, Echo, Probing};
use crate::vm_test;

const SEED: u64 = 20_260_102;
const LATENCY: Duration = Duration::from_millis(300);
const JITTER: Duration = Duration::from_millis(290);

vm_test!(each_packet_waits_the_time_that_the_model_says, limit = 60);
fn each_packet_waits_the_time_that_the_model_says() -> Result<()> {
    let pair = Pair::new()?;
    let target = Cgroup::new()?;
    let _echo = Echo::start(Place::host().in_namespace(&pair.b))?;
    let _resident = resident(&pair.a, &target)?;
    let before = pair.a.devices()?;
    let mut host = Host::open()?;
    for (to, correlation_ppm) in [(Pair::B4, 0), (Pair::B6, 800_000)] {
        let effect = NetworkEffect {
            peers: Some(vec![to.into()]),
            delay: Some(Delay {
                jitter: JITTER,
                correlation_ppm,
                ..Delay::of(LATENCY)
            }),
            ..egress()
        };
        host.arm(seeded(fault("j", &target, effect), SEED))?;
        let from = Place::host().in_namespace(&pair.a).in_cgroup(&target);
        let probes = udp::probe(from, &Probing::of(to).per_second(50), 80)?;
        ensure!(probes.lost() == 0, "{to}: lost {:?}", probes.lost_seqs());
        let model = |n| {
            let draw = correlated(SEED, Stream::Jitter, n, threshold_ppm(correlation_ppm));
            let [latency, jitter] = [LATENCY, JITTER].map(|time| time.as_nanos() as u64);
            Duration::from_nanos(jittered(latency, jitter, draw))
        };
        let mut late = Vec::new();
        for probe in &probes.0 {
            let there = probe.received.context("not received")?.since(probe.sent);
            let wait = model(probe.seq);
            // A clock of microseconds in between.
            let room = Duration::from_millis(1);
            ensure!(
                there + room >= wait,
                "{to}: {} took {there:?}, the model says {wait:?}",
                probe.seq
            );
            late.push(there.saturating_sub(wait));
        }
        let late = Samples::from_iter(late).median()?;
        ensure!(late.as_millis() < 30, "{to}: {late:?}");
        let counts = host.recover("j")?;
        ensure!(
            (counts.matched, counts.injected, counts.failed) == (80, 80, 0),
            "{counts:?}"
        );
        ensure!(before == pair.a.devices()?, "{:?}", pair.a.devices()?);
    }
    Ok(())
}

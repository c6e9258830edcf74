//! Bandwidth: a bucket of bytes passes at once, then so many a second; a full queue drops.

use std::time::Duration;

use anyhow::{Result, ensure};
use chaos_planner::fault::{Bandwidth, NetworkEffect, Peak};

use crate::cgroup::Cgroup;
use crate::netns::Pair;
use crate::node::{Host, egress, fault, resident};
use crate::process::Place;
use crate::udp::{self, Echo, Probing};
use crate::vm_test;

/// Bytes of a packet on the device: payload, UDP, IPv4 and Ethernet.
const BYTES: u64 = 1_000;
const PAYLOAD: usize = BYTES as usize - 8 - 20 - 14;
const RATE: u64 = 100_000;
const BUFFER: u64 = 20_000;
const LIMIT: u64 = 30_000;

vm_test!(
    a_bucket_passes_then_the_rate_and_the_rest_is_lost,
    limit = 60
);
fn a_bucket_passes_then_the_rate_and_the_rest_is_lost() -> Result<()> {
    const PACKETS: u64 = 300;
    let peaks = [
        None,
        Some(Peak {
            rate: 2 * RATE,
            burst: 2 * BYTES,
        }),
    ];
    for peak in peaks {
        let pair = Pair::new()?;
        let target = Cgroup::new()?;
        let echo = Echo::start(Place::host().in_namespace(&pair.b))?;
        let _resident = resident(&pair.a, &target)?;
        let before = pair.a.devices()?;
        let mut host = Host::open()?;
        let effect = NetworkEffect {
            peers: Some(vec![Pair::B4.into()]),
            bandwidth: Some(Bandwidth {
                rate: RATE,
                limit: LIMIT,
                buffer: BUFFER,
                peak,
            }),
            ..egress()
        };
        host.arm(fault("b", &target, effect))?;
        let from = Place::host().in_namespace(&pair.a).in_cgroup(&target);
        let probing = Probing::of(Pair::B4).per_second(600).size(PAYLOAD);
        let probes = udp::probe(from, &probing, PACKETS)?;
        let start = probes.0[0].sent;
        let arrivals = echo.arrivals();
        for (n, arrival) in (1..).zip(&arrivals) {
            // A clock of microseconds in between.
            let took = arrival.at.since(start) + Duration::from_millis(1);
            let passed = |rate: u64, burst: u64| burst + (took.as_secs_f64() * rate as f64) as u64;
            ensure!(n * BYTES <= passed(RATE, BUFFER), "{n} after {took:?}");
            if let Some(peak) = peak {
                ensure!(
                    n * BYTES <= passed(peak.rate, peak.burst),
                    "above the peak: {n} after {took:?}"
                );
            }
        }
        let counts = host.counts("b")?;
        let came = arrivals.len() as u64;
        ensure!(
            counts.overflowed + came == PACKETS && counts.matched == PACKETS,
            "{came} came, {counts:?}"
        );
        // Bucket and queue are 50 packets, and half a second of sending lets 50 more through.
        ensure!((60..200).contains(&came), "{came} came");
        ensure!(counts.over_budget == 0, "{counts:?}");
        let seen = host.observe("b").is_some_and(|seen| !seen.degraded);
        ensure!(seen, "a full queue is what was asked for");
        host.recover("b")?;
        ensure!(before == pair.a.devices()?, "{:?}", pair.a.devices()?);
    }
    Ok(())
}

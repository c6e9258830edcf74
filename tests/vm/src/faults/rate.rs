//! Rate: packets leave one after the other, as through a slow line.

use std::time::Duration;

use anyhow::{Result, ensure};
use chaos_planner::fault::{Delay, NetworkEffect};

use crate::cgroup::Cgroup;
use crate::netns::Pair;
use crate::node::{Host, egress, fault, lasting, nothing_waits, resident};
use crate::process::Place;
use crate::stats::Samples;
use crate::udp::{self, Echo, Probing};
use crate::{clock::Stamp, vm_test};

/// Bytes of a packet on the device: payload, UDP, IPv4 and Ethernet.
const BYTES: usize = 1_000;
const PAYLOAD: usize = BYTES - 8 - 20 - 14;

fn rate(bytes_per_second: u64) -> NetworkEffect {
    NetworkEffect {
        peers: Some(vec![Pair::B4.into()]),
        rate: Some(bytes_per_second),
        ..egress()
    }
}

vm_test!(packets_leave_no_faster_than_the_rate, limit = 60);
fn packets_leave_no_faster_than_the_rate() -> Result<()> {
    const PACKETS: u64 = 150;
    let pair = Pair::new()?;
    let (target, bystander) = (Cgroup::new()?, Cgroup::new()?);
    let echo = Echo::start(Place::host().in_namespace(&pair.b))?;
    let _resident = resident(&pair.a, &target)?;
    let mut host = Host::open()?;
    let delay = Duration::from_millis(100);
    let effect = NetworkEffect {
        delay: Some(Delay::of(delay)),
        ..rate(100_000)
    };
    host.arm(fault("r", &target, effect))?;
    let from = |cgroup| Place::host().in_namespace(&pair.a).in_cgroup(cgroup);
    let probing = Probing::of(Pair::B4)
        .per_second(1_000)
        .size(PAYLOAD)
        .linger(Duration::from_millis(2_500));
    let probes = udp::probe(from(&target), &probing, PACKETS)?;
    ensure!(probes.lost() == 0, "lost {:?}", probes.lost_seqs());
    let start = probes.0[0].sent;
    let mut late = Vec::new();
    for (n, arrival) in (1..).zip(echo.arrivals()) {
        // 10 ms a packet, behind the delay, in the order they were sent
        let model = delay + Duration::from_millis(10) * n;
        let took = arrival.at.since(start);
        ensure!(u64::from(n) == arrival.seq + 1, "{arrival:?} as number {n}");
        ensure!(
            took + Duration::from_millis(1) >= model,
            "{n} came after {took:?}, not {model:?}"
        );
        late.push(took.saturating_sub(model));
    }
    let late = Samples::from_iter(late).median()?;
    ensure!(late.as_millis() < 100, "{late:?}");
    let counts = host.counts("r")?;
    ensure!(
        (counts.matched, counts.injected, counts.overflowed) == (PACKETS, PACKETS, 0),
        "{counts:?}"
    );
    let probes = udp::probe(from(&bystander), &Probing::of(Pair::B4).per_second(100), 30)?;
    ensure!(
        probes.there().median()?.as_millis() < 30,
        "a bystander waits"
    );
    nothing_waits()
}

vm_test!(nothing_waits_for_a_line_past_the_deadline, limit = 60);
fn nothing_waits_for_a_line_past_the_deadline() -> Result<()> {
    let pair = Pair::new()?;
    let target = Cgroup::new()?;
    let _echo = Echo::start(Place::host().in_namespace(&pair.b))?;
    let _resident = resident(&pair.a, &target)?;
    let mut host = Host::open()?;
    let time = Duration::from_secs(4);
    // 100 packets would take 100 s. The deadline counts from here, and not from when it is armed.
    let asked = Stamp::now();
    host.arm(lasting(fault("r", &target, rate(1_000)), time))?;
    let armed = Stamp::now();
    let from = Place::host().in_namespace(&pair.a).in_cgroup(&target);
    let probing = Probing::of(Pair::B4)
        .per_second(100)
        .size(PAYLOAD)
        .linger(Duration::from_secs(5));
    let probes = udp::probe(from, &probing, 100)?;
    ensure!(probes.lost() == 0, "lost {:?}", probes.lost_seqs());
    let last = probes.0.iter().filter_map(|probe| probe.received).max();
    let room = Duration::from_millis(500);
    ensure!(
        last <= Some(armed + time + room),
        "{last:?}, armed {armed:?}"
    );
    let early = probes
        .0
        .iter()
        .filter(|probe| probe.received.is_some_and(|at| at + room < asked + time));
    ensure!(early.count() < 10, "not held back");
    Ok(())
}

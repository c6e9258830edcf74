//! What is done to packets that the target receives: everything but partition, as to those that it
//! sends. The target is the server here, so that its arrivals can be compared with the model. Times are
//! the least of many: what is delayed is never early by more than they allow for, and what is not is on time at least once.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, ensure};
use chaos_abi::network::jittered;
use chaos_abi::sample::{self, Stream};
use chaos_planner::capabilities::Mechanism;
use chaos_planner::fault::{Bandwidth, Chance, Delay, Fault, Mode, NetworkEffect, Peer, Reorder};
use chaos_planner::plan::nanos;
use ipnet::IpNet;

use crate::cgroup::Cgroup;
use crate::clock::Stamp;
use crate::netns::Pair;
use crate::node::{Host, fault, lasting, nothing_waits, of_pod, resident, seeded};
use crate::process::Place;
use crate::stats::Samples;
use crate::udp::{self, Echo, PORT, Prober, Probing};
use crate::{tcp, vm_test};

const SEED: u64 = 20_260_107;

/// A server in `b`, and what sends to it from `a`.
struct Stage {
    pair: Pair,
    target: Cgroup,
    echo: Echo,
    host: Host,
}

impl Stage {
    fn new(target: Cgroup) -> Result<Stage> {
        let pair = Pair::new()?;
        let echo = Echo::start(Place::host().in_namespace(&pair.b).in_cgroup(&target))?;
        Ok(Stage {
            pair,
            target,
            echo,
            host: Host::open()?,
        })
    }

    /// A fault on what the server receives.
    fn fault(&self, id: &str, effect: NetworkEffect) -> Fault {
        seeded(fault(id, &self.target, effect), SEED)
    }

    fn probe(&self, probing: &Probing, count: u64) -> Result<udp::Probes> {
        udp::probe(Place::host().in_namespace(&self.pair.a), probing, count)
    }
}

fn ingress() -> NetworkEffect {
    NetworkEffect {
        ingress: true,
        ..NetworkEffect::default()
    }
}

fn delay(ms: u64) -> NetworkEffect {
    NetworkEffect {
        delay: Some(Delay::of(Duration::from_millis(ms))),
        ..ingress()
    }
}

fn ms(time: Duration) -> u128 {
    time.as_millis()
}

vm_test!(
    a_received_packet_is_late_and_another_peer_s_is_not,
    limit = 90
);
fn a_received_packet_is_late_and_another_peer_s_is_not() -> Result<()> {
    let mut stage = Stage::new(Cgroup::new()?)?;
    let before = (stage.pair.b.devices()?, stage.pair.b.qdiscs()?);
    for (to, from) in [(Pair::B4, Pair::A4), (Pair::B6, Pair::A6)] {
        stage.host.arm(stage.fault(
            "d",
            NetworkEffect {
                peers: Some(vec![from.into()]),
                ..delay(100)
            },
        ))?;
        let probes = stage.probe(&Probing::of(to).per_second(50), 60)?;
        ensure!(probes.lost() == 0, "{to}: lost {:?}", probes.lost_seqs());
        let (there, back) = (probes.there().min()?, probes.back().min()?);
        ensure!((99..190).contains(&ms(there)), "{to}: there {there:?}");
        ensure!(ms(back) < 80, "{to}: back {back:?}");
        let seen = stage.host.observe("d").expect("it is armed");
        let counts = seen.counts;
        // The peer's neighbour discovery is IPv6, too.
        let most = if from.is_ipv4() { 60 } else { 64 };
        ensure!(
            (60..=most).contains(&counts.matched)
                && (counts.injected, counts.failed) == (counts.matched, 0),
            "{counts:?}"
        );
        ensure!(seen.mechanisms == [Mechanism::TcIngress], "{seen:?}");
        // What comes from the other address of the same peer.
        let other = if to == Pair::B4 { Pair::B6 } else { Pair::B4 };
        let probes = stage.probe(&Probing::of(other).per_second(50), 30)?;
        let there = probes.there().min()?;
        ensure!(
            ms(there) < 80 && probes.lost() == 0,
            "{to}: from another peer: {there:?}"
        );
        ensure!(
            stage.host.counts("d")?.matched <= most,
            "another peer is counted"
        );
        stage.host.recover("d")?;
        let probes = stage.probe(&Probing::of(to).per_second(50), 30)?;
        ensure!(
            ms(probes.there().min()?) < 80,
            "{to}: delayed after recovery"
        );
        ensure!(
            before.0 == stage.pair.b.devices()?,
            "{:?}",
            stage.pair.b.devices()?
        );
    }
    nothing_waits()?;
    drop(stage.host);
    let after = (stage.pair.b.devices()?, stage.pair.b.qdiscs()?);
    ensure!(before == after, "not as before: {before:?} {after:?}");
    Ok(())
}

vm_test!(what_a_pod_receives_is_told_by_its_source, limit = 90);
fn what_a_pod_receives_is_told_by_its_source() -> Result<()> {
    const UID: &str = "0c6c2ee9-c4d4-4cf3-9a0a-6ca8a6c9ab4d";
    let mut stage = Stage::new(Cgroup::of_pod(UID)?)?;
    let from = |peers: Vec<Peer>| {
        let effect = NetworkEffect {
            peers: Some(peers),
            ..delay(100)
        };
        of_pod(stage.fault("d", effect), UID, false)
    };
    let others: IpNet = "10.9.1.0/24".parse()?;
    let (spared, hit) = (
        from(vec![Peer::new(others, None)]),
        from(vec![Pair::A4.into()]),
    );
    let probing = Probing::of(Pair::B4).per_second(50);
    stage.host.arm(spared)?;
    let there = stage.probe(&probing, 40)?.there().min()?;
    ensure!(ms(there) < 80, "from others: {there:?}");
    ensure!(stage.host.counts("d")?.matched == 0, "others are counted");
    stage.host.change(hit);
    let there = stage.probe(&probing, 40)?.there().min()?;
    ensure!((99..190).contains(&ms(there)), "{there:?}");
    let counts = stage.host.counts("d")?;
    ensure!((counts.matched, counts.injected) == (40, 40), "{counts:?}");
    stage.host.recover("d")?;
    Ok(())
}

vm_test!(a_port_of_a_peer_is_the_one_that_it_sends_from, limit = 60);
fn a_port_of_a_peer_is_the_one_that_it_sends_from() -> Result<()> {
    let pair = Pair::new()?;
    let target = Cgroup::new()?;
    let _echo = Echo::start(Place::host().in_namespace(&pair.b))?;
    let _resident = resident(&pair.a, &target)?;
    let mut host = Host::open()?;
    for (peer, expected) in [
        (Pair::B4, PORT),
        (Pair::B4, PORT + 1),
        (Pair::B6, PORT),
        (Pair::B6, PORT + 1),
    ]
    .map(|(ip, port)| (Peer::new(ip.into(), Some(port)), port == PORT))
    {
        let to = peer.address().expect("an address");
        let effect = NetworkEffect {
            peers: Some(vec![peer]),
            ..delay(100)
        };
        host.arm(fault("d", &target, effect))?;
        let place = Place::host().in_namespace(&pair.a).in_cgroup(&target);
        let probes = udp::probe(place, &Probing::of(to).per_second(50), 40)?;
        let (there, back) = (probes.there().min()?, probes.back().min()?);
        ensure!(ms(there) < 80, "{peer}: there {there:?}");
        ensure!((ms(back) >= 99) == expected, "{peer}: back {back:?}");
        let hits = host.counts("d")?.injected;
        ensure!(hits == if expected { 40 } else { 0 }, "{peer}: {hits} hits");
        host.recover("d")?;
    }
    Ok(())
}

/// How many arrive of the n-th packet. Copies are not corrupted.
fn model(n: u64) -> usize {
    let hits = |stream, ppm| sample::Chance::of_ppm(ppm, 0).hits(SEED, stream, n);
    if hits(Stream::Loss, 200_000) {
        return 0;
    }
    usize::from(hits(Stream::Duplicate, 300_000)) + usize::from(!hits(Stream::Corrupt, 300_000))
}

vm_test!(
    all_effects_on_received_packets_are_those_of_the_model,
    limit = 90
);
fn all_effects_on_received_packets_are_those_of_the_model() -> Result<()> {
    const PACKETS: u64 = 200;
    let mut stage = Stage::new(Cgroup::new()?)?;
    let effect = NetworkEffect {
        peers: Some(vec![Pair::A4.into()]),
        loss: Some(Chance::of(200_000)),
        duplicate: Some(Chance::of(300_000)),
        corrupt: Some(Chance::of(300_000)),
        rate: Some(10_000_000),
        ..delay(100)
    };
    stage.host.arm(stage.fault("all", effect))?;
    let probes = stage.probe(&Probing::of(Pair::B4).per_second(200), PACKETS)?;
    for (n, seen) in (0..).zip(stage.echo.times_seen(PACKETS)) {
        let expected = model(n);
        ensure!(seen == expected, "{n} came {seen} times, not {expected}");
    }
    let there = probes.there().min()?;
    ensure!((99..190).contains(&ms(there)), "{there:?}");
    let counts = stage.host.counts("all")?;
    ensure!(
        (counts.matched, counts.injected, counts.failed) == (PACKETS, PACKETS, 0),
        "{counts:?}"
    );
    stage.host.recover("all")?;
    nothing_waits()
}

vm_test!(
    jitter_reorders_what_is_received_as_the_model_says,
    limit = 60
);
fn jitter_reorders_what_is_received_as_the_model_says() -> Result<()> {
    const PACKETS: u64 = 100;
    let mut stage = Stage::new(Cgroup::new()?)?;
    let (latency, jitter) = (Duration::from_millis(120), Duration::from_millis(60));
    let share = Chance::of(250_000);
    let effect = NetworkEffect {
        peers: Some(vec![Pair::A4.into()]),
        delay: Some(Delay {
            jitter,
            reorder: Some(Reorder {
                chance: share,
                gap: 1,
            }),
            ..Delay::of(latency)
        }),
        ..ingress()
    };
    stage.host.arm(stage.fault("j", effect))?;
    let probes = stage.probe(&Probing::of(Pair::B4).per_second(100), PACKETS)?;
    ensure!(probes.lost() == 0, "lost {:?}", probes.lost_seqs());
    let mut late = Vec::new();
    for (n, probe) in (0..).zip(&probes.0) {
        let took = probe.received.expect("none is lost").since(probe.sent);
        let overtakes = sample::Chance::of_ppm(share.ppm, 0).hits(SEED, Stream::Reorder, n);
        let wait = if overtakes {
            0
        } else {
            let draw = sample::number(sample::key(SEED, Stream::Jitter), n);
            jittered(nanos(latency), nanos(jitter), draw)
        };
        let wait = Duration::from_nanos(wait);
        ensure!(
            took + Duration::from_millis(1) >= wait,
            "{n}: {took:?}, not {wait:?}"
        );
        late.push(took.saturating_sub(wait));
    }
    let late = Samples::from_iter(late).min()?;
    ensure!(ms(late) < 80, "{late:?}");
    stage.host.recover("j")?;
    Ok(())
}

vm_test!(
    a_bucket_passes_then_the_rate_of_what_is_received,
    limit = 60
);
fn a_bucket_passes_then_the_rate_of_what_is_received() -> Result<()> {
    const PACKETS: u64 = 60;
    /// Of a packet on the device: payload, UDP, IPv4 and Ethernet.
    const BYTES: usize = 1_000;
    let mut stage = Stage::new(Cgroup::new()?)?;
    let bandwidth = Bandwidth {
        rate: 50_000,
        limit: 20 * BYTES as u64,
        buffer: 10 * BYTES as u64,
        peak: None,
    };
    let effect = NetworkEffect {
        peers: Some(vec![Pair::A4.into()]),
        bandwidth: Some(bandwidth),
        ..ingress()
    };
    stage.host.arm(stage.fault("b", effect))?;
    let probing = Probing::of(Pair::B4)
        .per_second(0)
        .size(BYTES - 42)
        .linger(Duration::from_secs(2));
    let probes = stage.probe(&probing, PACKETS)?;
    let start = probes.0[0].sent;
    let arrivals = stage.echo.arrivals();
    for (n, arrival) in (0_u32..).zip(&arrivals) {
        // Ten pass at once, then one in 20 ms.
        let model = Duration::from_millis(20) * n.saturating_sub(9);
        let took = arrival.at.since(start);
        ensure!(
            took + Duration::from_millis(1) >= model,
            "{n} came after {took:?}, not {model:?}"
        );
    }
    let counts = stage.host.counts("b")?;
    ensure!(
        counts.matched == PACKETS && counts.overflowed > 0,
        "{counts:?}"
    );
    ensure!(
        arrivals.len() as u64 == PACKETS - counts.overflowed,
        "{} came, {counts:?}",
        arrivals.len()
    );
    Ok(())
}

vm_test!(both_ways_of_a_device_are_treated_each_by_itself, limit = 60);
fn both_ways_of_a_device_are_treated_each_by_itself() -> Result<()> {
    let mut stage = Stage::new(Cgroup::new()?)?;
    let before = stage.pair.b.devices()?;
    let both = |ms| NetworkEffect {
        egress: true,
        peers: Some(vec![Pair::A4.into()]),
        ..delay(ms)
    };
    let observed = Fault {
        mode: Mode::Observe,
        ..stage.fault("o", both(500))
    };
    stage.host.arm(stage.fault("d", both(80)))?;
    stage.host.arm(observed)?;
    let probes = stage.probe(&Probing::of(Pair::B4).per_second(50), 50)?;
    ensure!(probes.lost() == 0, "lost {:?}", probes.lost_seqs());
    for time in [probes.there().min()?, probes.back().min()?] {
        ensure!((79..150).contains(&ms(time)), "{time:?}");
    }
    let seen = stage.host.observe("d").expect("it is armed");
    ensure!(
        seen.mechanisms == [Mechanism::TcEgress, Mechanism::TcIngress],
        "{seen:?}"
    );
    ensure!(
        (seen.counts.matched, seen.counts.injected) == (100, 100),
        "{seen:?}"
    );
    let observed = stage.host.counts("o")?;
    ensure!(
        (observed.would_inject, observed.injected) == (100, 0),
        "{observed:?}"
    );
    stage.host.recover("o")?;
    stage.host.recover("d")?;
    ensure!(
        before == stage.pair.b.devices()?,
        "{:?}",
        stage.pair.b.devices()?
    );
    Ok(())
}

vm_test!(
    received_packets_wait_no_longer_than_the_deadline_and_none_is_lost,
    limit = 60
);
fn received_packets_wait_no_longer_than_the_deadline_and_none_is_lost() -> Result<()> {
    let mut stage = Stage::new(Cgroup::new()?)?;
    let place = Place::host().in_namespace(&stage.pair.a);
    let client = Prober::start(place, &Probing::of(Pair::B4).per_second(100))?;
    let time = Duration::from_secs(4);
    stage
        .host
        .arm(lasting(stage.fault("d", delay(700)), time))?;
    let armed = Stamp::now();
    let deadline = armed + time;
    // Nobody looks after it from here on.
    sleep(Duration::from_secs(5));
    stage.host.recover("d")?;
    // And some wait while this one is taken off.
    stage.host.arm(stage.fault("e", delay(300)))?;
    sleep(Duration::from_millis(600));
    stage.host.recover("e")?;
    sleep(Duration::from_millis(500));
    let probes = client.stop()?.after(armed);
    ensure!(probes.lost() == 0, "lost {:?}", probes.lost_seqs());
    let room = Duration::from_millis(150);
    for probe in probes.between(armed, deadline).0 {
        let arrived = probe.received.expect("none is lost");
        ensure!(
            arrived < deadline + room,
            "held for {:?} past the deadline",
            arrived.since(deadline)
        );
    }
    Ok(())
}

vm_test!(a_tcp_flow_is_received_through_a_delay, limit = 90);
fn a_tcp_flow_is_received_through_a_delay() -> Result<()> {
    let pair = Pair::new()?;
    let target = Cgroup::new()?;
    let _server = tcp::Server::start(Place::host().in_namespace(&pair.b).in_cgroup(&target))?;
    let mut host = Host::open()?;
    host.arm(fault("d", &target, delay(50)))?;
    for to in [Pair::B4, Pair::B6] {
        let from = Place::host().in_namespace(&pair.a);
        let sent = tcp::transfer(from, to, Duration::from_secs(3))?;
        // Held back by TCP small queues it would be less than 1 Mbit/s. How much more it is says only how
        // busy this emulated machine is.
        ensure!(sent.megabits_per_second() > 2.0, "{to}: {sent:?}");
    }
    let counts = host.counts("d")?;
    ensure!(counts.injected > 100 && counts.failed == 0, "{counts:?}");
    Ok(())
}

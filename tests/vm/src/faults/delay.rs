//! Delay: packets arrive late, all of them, and on time again afterwards.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, ensure};
use chaos_planner::fault::{Chance, NetworkEffect};

use crate::cgroup::Cgroup;
use crate::clock::Stamp;
use crate::netns::Pair;
use crate::node::{Host, delayed, fault, lasting, resident};
use crate::process::Place;
use crate::registry::note;
use crate::tcp;
use crate::udp::{self, Echo, Prober, Probing};
use crate::vm_test;

vm_test!(
    a_delayed_packet_arrives_late_and_a_bystander_s_does_not,
    limit = 90
);
fn a_delayed_packet_arrives_late_and_a_bystander_s_does_not() -> Result<()> {
    let pair = Pair::new()?;
    let (target, bystander) = (Cgroup::new()?, Cgroup::new()?);
    let _echo = Echo::start(Place::host().in_namespace(&pair.b))?;
    let _resident = resident(&pair.a, &target)?;
    let mut host = Host::open()?;
    let before = (pair.a.devices()?, pair.a.qdiscs()?);
    for to in [Pair::B4, Pair::B6] {
        let from = |cgroup| Place::host().in_namespace(&pair.a).in_cgroup(cgroup);
        host.arm(fault(
            "d",
            &target,
            NetworkEffect {
                peers: Some(vec![to.into()]),
                ..delayed(Duration::from_millis(100))
            },
        ))?;
        let probes = udp::probe(from(&target), &Probing::of(to).per_second(50), 60)?;
        ensure!(probes.lost() == 0, "{to}: lost {:?}", probes.lost_seqs());
        let (there, back) = (probes.there().median()?, probes.back().median()?);
        ensure!(
            (99..130).contains(&there.as_millis()),
            "{to}: there {there:?}"
        );
        ensure!(back.as_millis() < 30, "{to}: back {back:?}");
        let counts = host.counts("d")?;
        ensure!(
            (counts.matched, counts.injected, counts.failed) == (60, 60, 0),
            "{counts:?}"
        );
        let probes = udp::probe(from(&bystander), &Probing::of(to).per_second(50), 30)?;
        ensure!(
            probes.there().median()?.as_millis() < 30,
            "{to}: a bystander was delayed"
        );
        host.recover("d")?;
        let probes = udp::probe(from(&target), &Probing::of(to).per_second(50), 30)?;
        ensure!(
            probes.there().median()?.as_millis() < 30,
            "{to}: delayed after recovery"
        );
        // Without tcx, an empty clsact stays: removing it would lose packets of the target.
        ensure!(before.0 == pair.a.devices()?, "{:?}", pair.a.devices()?);
    }
    drop(host);
    let after = (pair.a.devices()?, pair.a.qdiscs()?);
    ensure!(before == after, "not as before: {before:?} {after:?}");
    Ok(())
}

vm_test!(no_packet_is_lost_by_recovering, limit = 60);
fn no_packet_is_lost_by_recovering() -> Result<()> {
    let pair = Pair::new()?;
    let target = Cgroup::new()?;
    let _echo = Echo::start(Place::host().in_namespace(&pair.b))?;
    let _resident = resident(&pair.a, &target)?;
    let mut host = Host::open()?;
    let from = Place::host().in_namespace(&pair.a).in_cgroup(&target);
    let prober = Prober::start(from, &Probing::of(Pair::B4).per_second(200))?;
    host.arm(fault("d", &target, delayed(Duration::from_millis(300))))?;
    // Without tcx, the first clsact of a device takes its queue away for a moment (`dev_deactivate` in
    // net/sched/sch_api.c), so a packet may be lost by arming. With it: `promises::beside`.
    let armed = Stamp::now();
    sleep(Duration::from_secs(1));
    // Some 60 packets wait at this moment.
    let recovering = Stamp::now();
    host.recover("d")?;
    sleep(Duration::from_millis(500));
    let probes = prober.stop()?.after(armed);
    ensure!(probes.lost() == 0, "lost {:?}", probes.lost_seqs());
    let during = probes.between(armed, recovering).there().median()?;
    ensure!(during.as_millis() >= 299, "{during:?}");
    let late = probes
        .after(recovering + Duration::from_millis(50))
        .there()
        .median()?;
    // Twice as many packets as usual arrive meanwhile, and an emulated machine may be late with them.
    ensure!(late.as_millis() < 150, "{late:?}");
    Ok(())
}

vm_test!(no_packet_is_delayed_past_the_deadline, limit = 60);
fn no_packet_is_delayed_past_the_deadline() -> Result<()> {
    let pair = Pair::new()?;
    let target = Cgroup::new()?;
    let _echo = Echo::start(Place::host().in_namespace(&pair.b))?;
    let _resident = resident(&pair.a, &target)?;
    let mut host = Host::open()?;
    let from = Place::host().in_namespace(&pair.a).in_cgroup(&target);
    let prober = Prober::start(from, &Probing::of(Pair::B4).per_second(100))?;
    let time = Duration::from_secs(5);
    host.arm(lasting(
        fault("d", &target, delayed(Duration::from_millis(800))),
        time,
    ))?;
    let armed = Stamp::now();
    let deadline = armed + time;
    // Nobody looks after it from here on.
    sleep(Duration::from_secs(6));
    let probes = prober.stop()?.after(armed);
    ensure!(probes.lost() == 0, "lost {:?}", probes.lost_seqs());
    // All that still wait go at once then: an emulated machine takes its time for them.
    let room = Duration::from_millis(400);
    for probe in probes.between(Stamp(0), deadline).0 {
        let arrived = probe.received.expect("none is lost");
        ensure!(
            arrived < deadline + room,
            "held for {:?} past the deadline",
            arrived.since(deadline)
        );
    }
    let after = probes.after(deadline + room);
    ensure!(
        after.there().median()?.as_millis() < 50,
        "{:?}",
        after.there().median()?
    );
    Ok(())
}

vm_test!(delays_of_two_faults_add_up_and_end_one_by_one, limit = 60);
fn delays_of_two_faults_add_up_and_end_one_by_one() -> Result<()> {
    let pair = Pair::new()?;
    let target = Cgroup::new()?;
    let _echo = Echo::start(Place::host().in_namespace(&pair.b))?;
    let _resident = resident(&pair.a, &target)?;
    let mut host = Host::open()?;
    let there = || -> Result<u128> {
        let from = Place::host().in_namespace(&pair.a).in_cgroup(&target);
        let probes = udp::probe(from, &Probing::of(Pair::B4).per_second(50), 30)?;
        ensure!(probes.lost() == 0, "lost {:?}", probes.lost_seqs());
        Ok(probes.there().median()?.as_millis())
    };
    host.arm(fault("d1", &target, delayed(Duration::from_millis(60))))?;
    host.arm(fault("d2", &target, delayed(Duration::from_millis(120))))?;
    let both = there()?;
    ensure!((179..230).contains(&both), "both: {both} ms");
    host.recover("d2")?;
    let one = there()?;
    ensure!((59..100).contains(&one), "one: {one} ms");
    host.recover("d1")?;
    let none = there()?;
    ensure!(none < 30, "none: {none} ms");
    Ok(())
}

vm_test!(a_delay_and_a_loss_act_together, limit = 60);
fn a_delay_and_a_loss_act_together() -> Result<()> {
    let pair = Pair::new()?;
    let target = Cgroup::new()?;
    let _echo = Echo::start(Place::host().in_namespace(&pair.b))?;
    let _resident = resident(&pair.a, &target)?;
    let mut host = Host::open()?;
    host.arm(fault(
        "dl",
        &target,
        NetworkEffect {
            loss: Some(Chance::of(500_000)),
            ..delayed(Duration::from_millis(100))
        },
    ))?;
    let from = Place::host().in_namespace(&pair.a).in_cgroup(&target);
    let probes = udp::probe(from, &Probing::of(Pair::B4).per_second(100), 100)?;
    ensure!((20..80).contains(&probes.lost()), "lost {}", probes.lost());
    ensure!(
        probes.there().median()?.as_millis() >= 99,
        "{:?}",
        probes.there().median()?
    );
    Ok(())
}

vm_test!(a_tcp_flow_goes_on_through_a_delay, limit = 90);
fn a_tcp_flow_goes_on_through_a_delay() -> Result<()> {
    let pair = Pair::new()?;
    let target = Cgroup::new()?;
    let _server = tcp::Server::start(Place::host().in_namespace(&pair.b))?;
    let _resident = resident(&pair.a, &target)?;
    let mut host = Host::open()?;
    host.arm(fault("d", &target, delayed(Duration::from_millis(50))))?;
    for to in [Pair::B4, Pair::B6] {
        let from = Place::host().in_namespace(&pair.a).in_cgroup(&target);
        let sent = tcp::transfer(from, to, Duration::from_secs(3))?;
        note(format!("{to}: {:.0} Mbit/s", sent.megabits_per_second()));
        // Held back by TCP small queues it would be less than 1 Mbit/s.
        ensure!(sent.megabits_per_second() > 10.0, "{to}: {sent:?}");
    }
    Ok(())
}

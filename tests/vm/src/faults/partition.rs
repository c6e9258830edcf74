//! Partition: the sender is told, the receiver hears nothing, nobody else notices.

use std::time::Duration;

use anyhow::{Result, ensure};
use chaos_planner::fault::{Mode, NetworkEffect};
use nix::errno::Errno;

use crate::cgroup::Cgroup;
use crate::clock::Stamp;
use crate::netns::Pair;
use crate::node::{Host, egress, fault, lasting, nothing_is_pinned};
use crate::process::Place;
use crate::tcp::{self, Sent};
use crate::udp::{self, Echo, Prober, Probing};
use crate::vm_test;

fn drop_egress() -> NetworkEffect {
    NetworkEffect {
        drop: true,
        ..egress()
    }
}

vm_test!(
    a_partitioned_sender_gets_eperm_and_a_bystander_does_not,
    limit = 60
);
fn a_partitioned_sender_gets_eperm_and_a_bystander_does_not() -> Result<()> {
    let pair = Pair::new()?;
    let (target, bystander) = (Cgroup::new()?, Cgroup::new()?);
    let echo = Echo::start(Place::host().in_namespace(&pair.b))?;
    let mut host = Host::open()?;
    host.arm(fault("p", &target, drop_egress()))?;
    for (count, to) in (1..).zip([Pair::B4, Pair::B6]) {
        let from = |cgroup| Place::host().in_namespace(&pair.a).in_cgroup(cgroup);
        let probes = udp::probe(from(&target), &Probing::of(to).per_second(100), 20)?;
        ensure!(probes.refused(Errno::EPERM) == 20, "{to}: {probes:?}");
        let probes = udp::probe(from(&bystander), &Probing::of(to).per_second(100), 20)?;
        ensure!(
            probes.answered() == 20,
            "{to}: a bystander was hit: {probes:?}"
        );
        ensure!(
            host.counts("p")?.injected == 20 * count,
            "{:?}",
            host.counts("p")?
        );
    }
    ensure!(
        echo.arrivals().len() == 40,
        "{} arrived",
        echo.arrivals().len()
    );
    host.recover("p")?;
    let from = Place::host().in_namespace(&pair.a).in_cgroup(&target);
    let probes = udp::probe(from, &Probing::of(Pair::B4).per_second(100), 20)?;
    ensure!(probes.answered() == 20, "after recovery: {probes:?}");
    drop(host);
    nothing_is_pinned()
}

vm_test!(a_child_cgroup_belongs_to_the_target, limit = 60);
fn a_child_cgroup_belongs_to_the_target() -> Result<()> {
    let pair = Pair::new()?;
    let target = Cgroup::new()?;
    let child = target.child()?;
    let _echo = Echo::start(Place::host().in_namespace(&pair.b))?;
    let mut host = Host::open()?;
    host.arm(fault("p", &target, drop_egress()))?;
    let from = Place::host().in_namespace(&pair.a).in_cgroup(&child);
    let probes = udp::probe(from, &Probing::of(Pair::B4).per_second(100), 10)?;
    ensure!(probes.refused(Errno::EPERM) == 10, "{probes:?}");
    Ok(())
}

vm_test!(
    a_partition_goes_on_while_others_at_other_depths_come_and_go,
    limit = 90
);
fn a_partition_goes_on_while_others_at_other_depths_come_and_go() -> Result<()> {
    let pair = Pair::new()?;
    let outer = Cgroup::new()?;
    let target = outer.child()?;
    let below = target.child()?;
    let other = Cgroup::new()?;
    let _echo = Echo::start(Place::host().in_namespace(&pair.b))?;
    let mut host = Host::open()?;
    host.arm(fault("first", &below, drop_egress()))?;
    host.arm(fault("p", &target, drop_egress()))?;
    let place = Place::host().in_namespace(&pair.a).in_cgroup(&target);
    let prober = Prober::start(place, &Probing::of(Pair::B4).per_second(200))?;
    let armed = Stamp::now();
    for _ in 0..20 {
        // A lower depth, then a place before its own that gets free.
        host.arm(fault("o", &other, drop_egress()))?;
        host.recover("o")?;
    }
    host.recover("first")?;
    std::thread::sleep(Duration::from_millis(500));
    let ending = Stamp::now();
    let probes = prober.stop()?.between(armed, ending);
    ensure!(
        probes.len() > 20 && probes.refused(Errno::EPERM) == probes.len(),
        "{probes:?}"
    );
    host.recover("p")?;
    Ok(())
}

vm_test!(a_tcp_connect_out_of_a_partition_times_out, limit = 60);
fn a_tcp_connect_out_of_a_partition_times_out() -> Result<()> {
    let pair = Pair::new()?;
    let target = Cgroup::new()?;
    let _server = tcp::Server::start(Place::host().in_namespace(&pair.b))?;
    let mut host = Host::open()?;
    host.arm(fault("p", &target, drop_egress()))?;
    let from = || Place::host().in_namespace(&pair.a).in_cgroup(&target);
    let sent = tcp::connect(from(), Pair::B4, Duration::from_secs(2))?;
    ensure!(matches!(sent, Sent::TimedOut { .. }), "{sent:?}");
    host.recover("p")?;
    let sent = tcp::connect(from(), Pair::B4, Duration::from_secs(10))?;
    ensure!(matches!(sent, Sent::Done { .. }), "{sent:?}");
    Ok(())
}

vm_test!(an_ingress_partition_is_silent, limit = 60);
fn an_ingress_partition_is_silent() -> Result<()> {
    let pair = Pair::new()?;
    let target = Cgroup::new()?;
    let echo = Echo::start(Place::host().in_namespace(&pair.b).in_cgroup(&target))?;
    let mut host = Host::open()?;
    let effect = NetworkEffect {
        ingress: true,
        drop: true,
        ..NetworkEffect::default()
    };
    host.arm(fault("p", &target, effect))?;
    for to in [Pair::B4, Pair::B6] {
        let from = Place::host().in_namespace(&pair.a);
        let probes = udp::probe(from, &Probing::of(to).per_second(100), 20)?;
        ensure!(
            probes.lost() == 20,
            "{to}: the sender was told, or answered: {probes:?}"
        );
    }
    ensure!(echo.arrivals().is_empty(), "the target heard something");
    ensure!(host.counts("p")?.injected == 40, "{:?}", host.counts("p")?);
    Ok(())
}

vm_test!(only_the_named_peers_are_cut_off, limit = 60);
fn only_the_named_peers_are_cut_off() -> Result<()> {
    let pair = Pair::new()?;
    let target = Cgroup::new()?;
    let _echo = Echo::start(Place::host().in_namespace(&pair.b))?;
    let mut host = Host::open()?;
    let effect = NetworkEffect {
        peers: Some(vec![Pair::B4.into()]),
        ..drop_egress()
    };
    host.arm(fault("p", &target, effect.clone()))?;
    let probe = |to| {
        let from = Place::host().in_namespace(&pair.a).in_cgroup(&target);
        udp::probe(from, &Probing::of(to).per_second(100), 10)
    };
    ensure!(
        probe(Pair::B4)?.refused(Errno::EPERM) == 10,
        "the peer is not cut off"
    );
    ensure!(
        probe(Pair::B6)?.answered() == 10,
        "another address is cut off"
    );
    // The peer gets another address: changed in place, the counters go on.
    host.change(fault(
        "p",
        &target,
        NetworkEffect {
            peers: Some(vec![Pair::B6.into()]),
            ..effect
        },
    ));
    ensure!(
        probe(Pair::B6)?.refused(Errno::EPERM) == 10,
        "the new peer is not cut off"
    );
    ensure!(
        probe(Pair::B4)?.answered() == 10,
        "the old peer is still cut off"
    );
    ensure!(host.counts("p")?.injected == 20, "{:?}", host.counts("p")?);
    Ok(())
}

vm_test!(observing_counts_and_does_nothing, limit = 60);
fn observing_counts_and_does_nothing() -> Result<()> {
    let pair = Pair::new()?;
    let target = Cgroup::new()?;
    let _echo = Echo::start(Place::host().in_namespace(&pair.b))?;
    let mut host = Host::open()?;
    let mut observe = fault("p", &target, drop_egress());
    observe.mode = Mode::Observe;
    host.arm(observe)?;
    let from = Place::host().in_namespace(&pair.a).in_cgroup(&target);
    let probes = udp::probe(from, &Probing::of(Pair::B4).per_second(100), 10)?;
    ensure!(probes.answered() == 10, "{probes:?}");
    let counts = host.counts("p")?;
    ensure!(
        (counts.matched, counts.would_inject, counts.injected) == (10, 10, 0),
        "{counts:?}"
    );
    Ok(())
}

vm_test!(a_partition_ends_at_its_deadline_by_itself, limit = 60);
fn a_partition_ends_at_its_deadline_by_itself() -> Result<()> {
    let pair = Pair::new()?;
    let target = Cgroup::new()?;
    let _echo = Echo::start(Place::host().in_namespace(&pair.b))?;
    let mut host = Host::open()?;
    let from = Place::host().in_namespace(&pair.a).in_cgroup(&target);
    let prober = Prober::start(from, &Probing::of(Pair::B4).per_second(200))?;
    let time = Duration::from_secs(6);
    let asked = Stamp::now();
    host.arm(lasting(fault("p", &target, drop_egress()), time))?;
    let armed = Stamp::now();
    // Nobody looks after it from here on.
    std::thread::sleep(Duration::from_secs(7));
    let probes = prober.stop()?;
    let during = probes.between(armed, asked + time);
    ensure!(
        during.len() > 50 && during.refused(Errno::EPERM) == during.len(),
        "{during:?}"
    );
    let after = probes.after(armed + time);
    ensure!(
        after.len() > 50 && after.answered() == after.len(),
        "{after:?}"
    );
    Ok(())
}

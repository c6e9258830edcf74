//! Faults on what processes receive by a device that others use too: the host's, for pods with
//! hostNetwork and services, or that of a namespace with several containers. Nobody else's packets are
//! late or lost: a neighbour's, what is forwarded, and what the target itself sends. Times are the
//! least of many, as in `ingress.rs`.

use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use chaos_agent::node::{Node, Options};
use chaos_planner::capabilities::Mechanism;
use chaos_planner::fault::{Chance, Delay, NetworkEffect};
use chaos_planner::observed::Phase;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::cgroup::Cgroup;
use crate::netns::{DEVICE, Forwarding, Namespace, Pair, Uplink};
use crate::node::{Host, arrivals_by_model, fault, nothing_waits, of_pod, resident, seeded};
use crate::process::{Place, Process, on_a_thread, role};
use crate::tcp::{self, Sent};
use crate::udp::{self, Echo, Probes, Probing};
use crate::vm_test;

const SEED: u64 = 20_260_122;
const UID: &str = "8a7c3c52-0b0e-4f0f-9a35-6d1f8f2f1b6e";

/// How late packets are made, and what is surely less and more.
const LATE: Duration = Duration::from_millis(100);
const ON_TIME: u128 = 80;
const TOO_LATE: u128 = 190;

fn received() -> NetworkEffect {
    NetworkEffect {
        ingress: true,
        ..NetworkEffect::default()
    }
}

fn late() -> NetworkEffect {
    NetworkEffect {
        delay: Some(Delay::of(LATE)),
        ..received()
    }
}

fn lossy() -> NetworkEffect {
    NetworkEffect {
        loss: Some(Chance::of(400_000)),
        ..received()
    }
}

/// Milliseconds that a way may take.
fn span(late: bool) -> Range<u128> {
    if late {
        LATE.as_millis() - 1..TOO_LATE
    } else {
        0..ON_TIME
    }
}

/// Fails unless none is lost and both ways took what they should.
fn took(what: &str, probes: &Probes, [there_late, back_late]: [bool; 2]) -> Result<()> {
    ensure!(probes.lost() == 0, "{what}: lost {:?}", probes.lost_seqs());
    let ways = [
        ("there", probes.there().min()?, there_late),
        ("back", probes.back().min()?, back_late),
    ];
    for (way, time, late) in ways {
        ensure!(
            span(late).contains(&time.as_millis()),
            "{what}: {way} {time:?}"
        );
    }
    Ok(())
}

/// Fails unless connecting took as long as it should, the shorter time of two.
fn connects<'a>(what: &str, place: impl Fn() -> Place<'a>, to: IpAddr, late: bool) -> Result<()> {
    let mut times = Vec::new();
    for _ in 0..2 {
        match tcp::connect(place(), to, Duration::from_secs(5))? {
            Sent::Done { connect, .. } => times.push(connect.as_millis()),
            sent => bail!("{what}: {to}: {sent:?}"),
        }
    }
    ensure!(
        times
            .iter()
            .min()
            .is_some_and(|least| span(late).contains(least)),
        "{what}: {to}: {times:?} ms"
    );
    Ok(())
}

vm_test!(
    what_one_process_receives_is_lost_as_the_model_says,
    limit = 60
);
fn what_one_process_receives_is_lost_as_the_model_says() -> Result<()> {
    const EACH: u64 = 60;
    let root = Namespace::host()?;
    let (near, far) = (Uplink::new("near0", 31)?, Uplink::new("far0", 32)?);
    let (target, bystander) = (Cgroup::of_pod(UID)?, Cgroup::new()?);
    let before = (root.devices()?, root.qdiscs()?);
    let mut host = Host::open()?;
    let _resident = resident(&root, &target)?;
    let made = seeded(fault("l", &target, lossy()), SEED);
    host.arm(of_pod(made, UID, true))?;
    let mut arrived = Vec::new();
    // Devices and families of one fault draw together.
    for (uplink, to) in [
        (&near, near.host_v4()),
        (&near, near.host_v6()),
        (&far, far.host_v4()),
    ] {
        let from = || Place::host().in_namespace(&uplink.other);
        let probing = Probing::of(to).per_second(200);
        let neighbour = Echo::start(Place::host().in_cgroup(&bystander))?;
        let probes = udp::probe(from(), &probing, EACH)?;
        took("a neighbour", &probes, [false, false])?;
        drop(neighbour);
        let echo = Echo::start(Place::host().in_cgroup(&target))?;
        udp::probe(from(), &probing, EACH)?;
        arrived.extend(echo.times_seen(EACH));
    }
    let model = arrivals_by_model(SEED, 400_000, 3 * EACH);
    ensure!(arrived == model, "{arrived:?}\nmodel {model:?}");
    let lost = model.iter().filter(|seen| **seen == 0).count() as u64;
    let seen = host.observe("l").expect("it is armed");
    ensure!(
        (seen.counts.matched, seen.counts.injected) == (3 * EACH, lost),
        "{seen:?}, {lost} lost"
    );
    ensure!(seen.mechanisms == [Mechanism::TcIngress], "{seen:?}");
    host.recover("l")?;
    drop(host);
    let after = (root.devices()?, root.qdiscs()?);
    ensure!(before == after, "not as before: {before:?} {after:?}");
    Ok(())
}

vm_test!(
    what_one_process_receives_is_late_and_nothing_else,
    limit = 90
);
fn what_one_process_receives_is_late_and_nothing_else() -> Result<()> {
    const EACH: u64 = 20;
    let root = Namespace::host()?;
    let (near, far) = (Uplink::new("near0", 31)?, Uplink::new("far0", 32)?);
    let _forwarding = Forwarding::on()?;
    let (target, bystander) = (Cgroup::new()?, Cgroup::new()?);
    let before = root.devices()?;
    let mut host = Host::open()?;
    let echo = Echo::start(Place::host().in_cgroup(&target))?;
    let far_echo = Echo::start(Place::host().in_namespace(&near.other))?;
    host.arm(fault("d", &target, late()))?;
    let mut expected = 0;
    for (there, here) in [(near.v4(), near.host_v4()), (near.v6(), near.host_v6())] {
        // A server, and a client with a socket that is not connected.
        let probing = Probing::of(here).per_second(50);
        let from = Place::host().in_namespace(&near.other);
        took(
            "to a server",
            &udp::probe(from, &probing, EACH)?,
            [true, false],
        )?;
        let probing = Probing::of(there).per_second(50);
        let client = udp::probe(Place::host().in_cgroup(&target), &probing, EACH)?;
        took("to a client", &client, [false, true])?;
        let client = udp::probe(Place::host().in_cgroup(&bystander), &probing, EACH)?;
        took("to a neighbour", &client, [false, false])?;
        expected += 2 * EACH;
    }
    // The target listens at all addresses, which forwarded packets have none of.
    let probing = Probing::of(near.v4()).per_second(50);
    let forwarded = udp::probe(Place::host().in_namespace(&far.other), &probing, EACH)?;
    took("forwarded", &forwarded, [false, false])?;
    let counts = host.counts("d")?;
    ensure!(
        (counts.matched, counts.injected, counts.failed) == (expected, expected, 0),
        "{counts:?}, not {expected}"
    );
    host.recover("d")?;
    nothing_waits()?;
    ensure!(before == root.devices()?, "{:?}", root.devices()?);
    drop((echo, far_echo));
    Ok(())
}

vm_test!(
    a_connection_receives_late_from_its_first_packet_on,
    limit = 90
);
fn a_connection_receives_late_from_its_first_packet_on() -> Result<()> {
    let root = Namespace::host()?;
    let near = Uplink::new("near0", 31)?;
    let (target, bystander) = (Cgroup::new()?, Cgroup::new()?);
    let _resident = resident(&root, &target)?;
    let other = || Place::host().in_namespace(&near.other);
    let ours = |cgroup| move || Place::host().in_cgroup(cgroup);
    let mut host = Host::open()?;
    host.arm(fault("d", &target, late()))?;
    let server = tcp::Server::start(other())?;
    let ends = [(near.v4(), near.host_v4()), (near.v6(), near.host_v6())];
    for (there, here) in ends {
        connects("a neighbour", ours(&bystander), there, false)?;
        connects("the target", ours(&target), there, true)?;
        let neighbour = tcp::Server::start(ours(&bystander)())?;
        connects("to a neighbour", other, here, false)?;
        drop(neighbour);
        let server = tcp::Server::start(ours(&target)())?;
        connects("to the target", other, here, true)?;
        let before = host.counts("d")?;
        let sent = tcp::transfer(other(), here, Duration::from_secs(1))?;
        // Of a flow that nothing holds back; see `a_tcp_flow_is_received_through_a_delay`.
        ensure!(sent.megabits_per_second() > 1.0, "{here}: {sent:?}");
        let counts = host.counts("d")?;
        ensure!(
            counts.injected > before.injected + 20 && counts.failed == 0,
            "{here}: {before:?}, then {counts:?}"
        );
        drop(server);
    }
    drop(server);
    host.recover("d")?;
    Ok(())
}

vm_test!(
    a_received_packet_that_passes_two_devices_is_drawn_for_once,
    limit = 60
);
fn a_received_packet_that_passes_two_devices_is_drawn_for_once() -> Result<()> {
    const PACKETS: u64 = 60;
    let uplink = Uplink::new("near0", 31)?;
    uplink.add_vlan(7, 37)?;
    let target = Cgroup::new()?;
    let echo = Echo::start(Place::host().in_cgroup(&target))?;
    let mut host = Host::open()?;
    host.arm(seeded(fault("l", &target, lossy()), SEED))?;
    let probing = Probing::of([10, 9, 37, 1].into()).per_second(200);
    udp::probe(Place::host().in_namespace(&uplink.other), &probing, PACKETS)?;
    let (seen, model) = (
        echo.times_seen(PACKETS),
        arrivals_by_model(SEED, 400_000, PACKETS),
    );
    ensure!(seen == model, "{seen:?}\nmodel {model:?}");
    let counts = host.counts("l")?;
    ensure!(counts.matched == PACKETS, "{counts:?}");
    Ok(())
}

vm_test!(where_sockets_cannot_be_read_it_is_said, limit = 60);
fn where_sockets_cannot_be_read_it_is_said() -> Result<()> {
    const TYPES: &str = "/sys/kernel/btf";
    let pair = Pair::new()?;
    let (target, pod) = (Cgroup::new()?, Cgroup::of_pod(UID)?);
    let _residents = [resident(&pair.b, &target)?, resident(&pair.b, &pod)?];
    // As on a kernel that gives out no types. For a thread, and nobody else.
    let without_types = || {
        let none: Option<&str> = None;
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        mount(none, TYPES, Some("tmpfs"), MsFlags::empty(), none)?;
        let mut host = Host::of(Node::open(Options::default())?);
        let seen = host.settle(fault("d", &target, late()))?;
        ensure!(
            seen.phase == Phase::NotSupported
                && seen.reason.contains("cannot tell which process")
                && seen.reason.contains(TYPES),
            "{seen:?}"
        );
        // A pod's own device needs nothing of it.
        host.arm(of_pod(fault("p", &pod, late()), UID, false))
    };
    on_a_thread(without_types)
}

const TUNNEL: &str = "tunnel-of-the-target";
crate::vm_role!(TUNNEL, tunnel);

fn tunnel(args: &str) -> Result<()> {
    let (remote, address) = serde_json::from_str(args)?;
    Namespace::host()?.add_tunnel("near0", remote, address)?;
    role::ready()?;
    role::wait_for_end();
    Ok(())
}

vm_test!(a_tunnel_is_not_what_its_maker_receives, limit = 60);
fn a_tunnel_is_not_what_its_maker_receives() -> Result<()> {
    const EACH: u64 = 30;
    const ENDS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 9, 38, 1), Ipv4Addr::new(10, 9, 38, 2)];
    let near = Uplink::new("near0", 31)?;
    let (IpAddr::V4(here), IpAddr::V4(there)) = (near.host_v4(), near.v4()) else {
        bail!("not IPv4");
    };
    let (target, bystander) = (Cgroup::new()?, Cgroup::new()?);
    let place = Place::host().in_cgroup(&target);
    let _maker: Process<()> = place.spawn(TUNNEL, &(there, ENDS[0]))?;
    near.other.add_tunnel(DEVICE, here, ENDS[1])?;
    let mut host = Host::open()?;
    host.arm(fault("d", &target, late()))?;
    let probing = Probing::of(ENDS[0].into()).per_second(50);
    for (who, cgroup, late) in [
        ("a neighbour", &bystander, false),
        ("the target", &target, true),
    ] {
        let _echo = Echo::start(Place::host().in_cgroup(cgroup))?;
        let from = Place::host().in_namespace(&near.other);
        took(who, &udp::probe(from, &probing, EACH)?, [late, false])?;
    }
    let counts = host.counts("d")?;
    ensure!(
        (counts.matched, counts.injected) == (EACH, EACH),
        "{counts:?}"
    );
    Ok(())
}

vm_test!(
    containers_of_one_namespace_receive_each_their_own,
    limit = 60
);
fn containers_of_one_namespace_receive_each_their_own() -> Result<()> {
    const PACKETS: u64 = 40;
    let pair = Pair::new()?;
    // A container of the target's, with a cgroup of its own.
    let (target, bystander) = (Cgroup::new()?, Cgroup::new()?);
    let below = target.child()?;
    let _echo = Echo::start(Place::host().in_namespace(&pair.b).in_cgroup(&below))?;
    let far_echo = Echo::start(Place::host().in_namespace(&pair.a))?;
    let mut host = Host::open()?;
    host.arm(fault("d", &target, late()))?;
    for (a, b) in [(Pair::A4, Pair::B4), (Pair::A6, Pair::B6)] {
        let probing = Probing::of(b).per_second(50);
        let from = Place::host().in_namespace(&pair.a);
        took(
            "to the target",
            &udp::probe(from, &probing, PACKETS)?,
            [true, false],
        )?;
        let probing = Probing::of(a).per_second(50);
        let from = Place::host().in_namespace(&pair.b).in_cgroup(&bystander);
        took(
            "to a neighbour",
            &udp::probe(from, &probing, PACKETS)?,
            [false, false],
        )?;
    }
    let counts = host.counts("d")?;
    ensure!(
        (counts.matched, counts.injected) == (2 * PACKETS, 2 * PACKETS),
        "{counts:?}"
    );
    drop(far_echo);
    Ok(())
}

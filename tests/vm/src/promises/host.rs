//! Faults on what processes send that have the network namespace of the host: pods with hostNetwork,
//! and services. The devices are not theirs alone: their neighbours, and what is forwarded, pass. Times
//! are the least of many, as in `ingress.rs`.

use std::time::Duration;

use anyhow::{Result, ensure};
use chaos_abi::sample::{self, Stream};
use chaos_planner::fault::{Chance, NetworkEffect};

use crate::cgroup::Cgroup;
use crate::netns::{Forwarding, Namespace, Uplink};
use crate::node::{Host, arrivals_by_model, delayed, egress, fault, of_pod, resident, seeded};
use crate::process::Place;
use crate::udp::{self, Echo, Probing};
use crate::vm_test;

const SEED: u64 = 20_260_108;
const UID: &str = "5d1f4b53-7c2c-4c8c-8a53-3d3f0b5d7f10";

/// What of the qdiscs is not clsact.
fn roots(host: &Namespace) -> Result<Vec<String>> {
    let mut all = host.qdiscs()?;
    all.retain(|line| !line.contains(" clsact ") && !line.starts_with("faultline"));
    Ok(all)
}

vm_test!(
    what_one_process_of_the_host_sends_is_late_and_nothing_else,
    limit = 120
);
fn what_one_process_of_the_host_sends_is_late_and_nothing_else() -> Result<()> {
    let root = Namespace::host()?;
    let (near, far) = (Uplink::new("near0", 31)?, Uplink::new("far0", 32)?);
    let _forwarding = Forwarding::on()?;
    let _echoes = [
        Echo::start(Place::host().in_namespace(&near.other))?,
        Echo::start(Place::host().in_namespace(&far.other))?,
    ];
    for pod in [false, true] {
        let target = if pod {
            Cgroup::of_pod(UID)?
        } else {
            Cgroup::new()?
        };
        let bystander = Cgroup::new()?;
        let _resident = resident(&root, &target)?;
        let before = (root.devices()?, root.qdiscs()?, roots(&root)?);
        let mut host = Host::open()?;
        let made = fault("d", &target, delayed(Duration::from_millis(100)));
        host.arm(if pod { of_pod(made, UID, true) } else { made })?;
        ensure!(
            roots(&root)? == before.2,
            "{:?}, before {:?}",
            roots(&root)?,
            before.2
        );
        let mut sent = 0;
        for to in [near.v4(), near.v6(), far.v4()] {
            let probing = Probing::of(to).per_second(50);
            let probes = udp::probe(Place::host().in_cgroup(&target), &probing, 40)?;
            sent += 40;
            ensure!(probes.lost() == 0, "{to}: lost {:?}", probes.lost_seqs());
            let (there, back) = (probes.there().min()?, probes.back().min()?);
            ensure!(
                (99..190).contains(&there.as_millis()),
                "{to}: there {there:?}"
            );
            ensure!(back.as_millis() < 80, "{to}: back {back:?}");
            let counts = host.counts("d")?;
            ensure!(
                (counts.matched, counts.injected, counts.failed) == (sent, sent, 0),
                "{to}: {counts:?}"
            );
            // A neighbour, and a pod whose packets the host forwards by the same device.
            let others = [
                ("neighbour", Place::host().in_cgroup(&bystander)),
                ("forwarded", Place::host().in_namespace(&far.other)),
            ];
            for (who, place) in others {
                if who == "forwarded" && to != near.v4() {
                    continue;
                }
                let probes = udp::probe(place, &probing, 30)?;
                let there = probes.there().min()?;
                ensure!(
                    there.as_millis() < 80 && probes.lost() == 0,
                    "{to}: {who}: {there:?}, lost {:?}",
                    probes.lost_seqs()
                );
            }
            ensure!(
                host.counts("d")?.matched == sent,
                "somebody else is counted"
            );
        }
        host.recover("d")?;
        ensure!(before.0 == root.devices()?, "{:?}", root.devices()?);
        drop(host);
        let after = root.qdiscs()?;
        ensure!(before.1 == after, "not as before: {:?} {after:?}", before.1);
    }
    Ok(())
}

vm_test!(
    devices_of_a_fault_draw_together_and_a_named_one_is_the_only_one,
    limit = 90
);
fn devices_of_a_fault_draw_together_and_a_named_one_is_the_only_one() -> Result<()> {
    const EACH: u64 = 60;
    let root = Namespace::host()?;
    let (near, far) = (Uplink::new("near0", 31)?, Uplink::new("far0", 32)?);
    let target = Cgroup::new()?;
    let _resident = resident(&root, &target)?;
    let mut host = Host::open()?;
    let lossy = |id| {
        let effect = NetworkEffect {
            loss: Some(Chance::of(400_000)),
            ..egress()
        };
        seeded(fault(id, &target, effect), SEED)
    };
    host.arm(lossy("l"))?;
    let mut arrived = Vec::new();
    for uplink in [&near, &far] {
        let echo = Echo::start(Place::host().in_namespace(&uplink.other))?;
        let probing = Probing::of(uplink.v4()).per_second(200);
        udp::probe(Place::host().in_cgroup(&target), &probing, EACH)?;
        arrived.extend(echo.times_seen(EACH));
    }
    let model = arrivals_by_model(SEED, 400_000, 2 * EACH);
    ensure!(arrived == model, "{arrived:?}\nmodel {model:?}");
    let counts = host.counts("l")?;
    let lost = model.iter().filter(|seen| **seen == 0).count() as u64;
    ensure!(
        (counts.matched, counts.injected) == (2 * EACH, lost),
        "{counts:?}, {lost} lost"
    );
    host.recover("l")?;

    let named = NetworkEffect {
        device: Some("far0".into()),
        ..delayed(Duration::from_millis(100))
    };
    host.arm(fault("n", &target, named))?;
    for (uplink, late) in [(&near, false), (&far, true)] {
        let _echo = Echo::start(Place::host().in_namespace(&uplink.other))?;
        let probing = Probing::of(uplink.v4()).per_second(50);
        let probes = udp::probe(Place::host().in_cgroup(&target), &probing, 40)?;
        let there = probes.there().min()?;
        ensure!((there.as_millis() >= 99) == late, "late: {late}: {there:?}");
    }
    Ok(())
}

vm_test!(
    a_packet_that_passes_two_devices_is_drawn_for_once,
    limit = 60
);
fn a_packet_that_passes_two_devices_is_drawn_for_once() -> Result<()> {
    const PACKETS: u64 = 100;
    let root = Namespace::host()?;
    let uplink = Uplink::new("near0", 31)?;
    let to = uplink.add_vlan(7, 37)?;
    let echo = Echo::start(Place::host().in_namespace(&uplink.other))?;
    let target = Cgroup::new()?;
    let _resident = resident(&root, &target)?;
    let mut host = Host::open()?;
    let effect = NetworkEffect {
        loss: Some(Chance::of(400_000)),
        duplicate: Some(Chance::of(300_000)),
        ..egress()
    };
    host.arm(seeded(fault("l", &target, effect), SEED))?;
    let probing = Probing::of(to).per_second(200);
    udp::probe(Place::host().in_cgroup(&target), &probing, PACKETS)?;
    let hits = |stream, ppm, n| usize::from(sample::Chance::of_ppm(ppm, 0).hits(SEED, stream, n));
    for (n, seen) in (0..).zip(echo.times_seen(PACKETS)) {
        let expected = if hits(Stream::Loss, 400_000, n) == 1 {
            0
        } else {
            1 + hits(Stream::Duplicate, 300_000, n)
        };
        ensure!(seen == expected, "{n} came {seen} times, not {expected}");
    }
    let counts = host.counts("l")?;
    ensure!(counts.matched == PACKETS, "{counts:?}");
    Ok(())
}

//! Corruption: a bit of some packets is flipped, and the receiver's checksum finds out.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chaos_abi::sample::{self, Stream};
use chaos_planner::fault::{Chance, NetworkEffect};

use crate::cgroup::Cgroup;
use crate::netns::{Namespace, Pair};
use crate::node::{Host, egress, fault, nothing_waits, resident, seeded};
use crate::process::Place;
use crate::udp::{self, Echo, Probing};
use crate::{tcp, vm_test};

const SEED: u64 = 20_260_105;

fn corrupt(ppm: u32) -> NetworkEffect {
    NetworkEffect {
        peers: Some(vec![Pair::B4.into(), Pair::B6.into()]),
        corrupt: Some(Chance::of(ppm)),
        ..egress()
    }
}

/// A count of /proc/net/snmp (`Udp`) or snmp6 (`Udp6`) of a namespace.
fn snmp(namespace: &Namespace, protocol: &str, name: &str) -> Result<u64> {
    namespace.within(|| {
        let found = if protocol.ends_with('6') {
            let text = std::fs::read_to_string("/proc/thread-self/net/snmp6")?;
            let wanted = format!("{protocol}{name}");
            text.lines()
                .filter_map(|line| line.split_once(char::is_whitespace))
                .find(|(key, _)| *key == wanted)
                .map(|(_, value)| value.trim().to_owned())
        } else {
            let text = std::fs::read_to_string("/proc/thread-self/net/snmp")?;
            let prefix = format!("{protocol}:");
            let mut lines = text.lines().filter(|line| line.starts_with(&prefix));
            let (names, values) = lines.next().zip(lines.next()).context("no such line")?;
            names
                .split_whitespace()
                .zip(values.split_whitespace())
                .find(|(key, _)| *key == name)
                .map(|(_, value)| value.to_owned())
        };
        Ok(found
            .with_context(|| format!("no {protocol} {name}"))?
            .parse()?)
    })
}

vm_test!(
    a_corrupted_packet_fails_its_checksum_at_the_receiver,
    limit = 60
);
fn a_corrupted_packet_fails_its_checksum_at_the_receiver() -> Result<()> {
    const PACKETS: u64 = 100;
    for (to, protocol) in [(Pair::B4, "Udp"), (Pair::B6, "Udp6")] {
        let pair = Pair::new()?;
        let (target, bystander) = (Cgroup::new()?, Cgroup::new()?);
        let _echo = Echo::start(Place::host().in_namespace(&pair.b))?;
        let _resident = resident(&pair.a, &target)?;
        let before = pair.a.devices()?;
        let mut host = Host::open()?;
        host.arm(seeded(fault("c", &target, corrupt(500_000)), SEED))?;
        let from = |cgroup| Place::host().in_namespace(&pair.a).in_cgroup(cgroup);
        let probes = udp::probe(from(&target), &Probing::of(to).per_second(200), PACKETS)?;
        let share = sample::Chance::of_ppm(500_000, 0);
        let model: Vec<u64> = (0..PACKETS)
            .filter(|&n| share.hits(SEED, Stream::Corrupt, n))
            .collect();
        ensure!(
            probes.lost_seqs() == model,
            "{to}: peer {:?}, model {model:?}",
            probes.lost_seqs()
        );
        let hits = model.len() as u64;
        let counts = host.counts("c")?;
        ensure!(
            (counts.matched, counts.injected, counts.failed) == (PACKETS, hits, 0),
            "{counts:?}"
        );
        // A flipped length can be found out before the checksum is looked at.
        let errors = snmp(&pair.b, protocol, "InErrors")?;
        let checksums = snmp(&pair.b, protocol, "InCsumErrors")?;
        ensure!(errors == hits, "{to}: {errors} of {hits}");
        ensure!(checksums > hits / 2, "{to}: {checksums} of {hits}");
        udp::probe(from(&bystander), &Probing::of(to).per_second(200), 30)?;
        host.recover("c")?;
        let probes = udp::probe(from(&target), &Probing::of(to).per_second(200), 30)?;
        ensure!(
            probes.lost() == 0,
            "after recovery: {:?}",
            probes.lost_seqs()
        );
        let after = snmp(&pair.b, protocol, "InErrors")?;
        ensure!(after == hits, "{to}: without the fault {after} of {hits}");
        ensure!(before == pair.a.devices()?, "{:?}", pair.a.devices()?);
    }
    Ok(())
}

vm_test!(a_tcp_flow_goes_on_through_corruption, limit = 60);
fn a_tcp_flow_goes_on_through_corruption() -> Result<()> {
    let pair = Pair::new()?;
    let target = Cgroup::new()?;
    let _server = tcp::Server::start(Place::host().in_namespace(&pair.b))?;
    let _resident = resident(&pair.a, &target)?;
    let mut host = Host::open()?;
    host.arm(fault("c", &target, corrupt(10_000)))?;
    let from = Place::host().in_namespace(&pair.a).in_cgroup(&target);
    let sent = tcp::transfer(from, Pair::B4, Duration::from_secs(2))?;
    ensure!(sent.megabits_per_second() > 1.0, "{sent:?}");
    ensure!(host.counts("c")?.injected > 0, "{:?}", host.counts("c")?);
    let found = snmp(&pair.b, "Tcp", "InCsumErrors")?;
    ensure!(found > 0, "TCP found no error");
    // Each segment told on its way out what it had been counted for.
    nothing_waits()
}

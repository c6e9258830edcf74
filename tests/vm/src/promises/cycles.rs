//! Faults come and go, and the node is as it was: nothing piles up in the kernel or in the agent.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aya::maps::loaded_maps;
use aya::programs::{loaded_links, loaded_programs};
use chaos_abi::control;
use chaos_abi::network::MAX_TARGETS;
use chaos_agent::kernel::maps::{Pinned, TargetKind};
use chaos_agent::kernel::netlink::{Hook, Netlink};
use chaos_planner::fault::{Chance, Delay, NetworkEffect, Peer};

use crate::cgroup::Cgroup;
use crate::machine::BPFFS;
use crate::netns::{Namespace, Pair};
use crate::node::{Host, egress, fault, pinned, resident};
use crate::process::Place;
use crate::registry::{note, times};
use crate::udp::{Echo, Prober, Probing};
use crate::vm_test;
use crate::wait::eventually;

const PATIENCE: Duration = Duration::from_secs(10);

/// All that faults change, and what the agent itself holds.
#[derive(Debug, PartialEq, Eq)]
struct Snapshot {
    pins: BTreeSet<String>,
    /// Without counters and draws: those of a rule that has gone stay until it is given away.
    maps: Vec<String>,
    network: Vec<String>,
    /// BPF programs, links and maps of the machine.
    loaded: [usize; 3],
    descriptors: usize,
}

impl Snapshot {
    fn take(namespaces: &[&Namespace]) -> Result<Self> {
        let mut pins = BTreeSet::new();
        list(Path::new(BPFFS), &mut pins)?;
        let mut network = Vec::new();
        for namespace in namespaces {
            network.extend(namespace.qdiscs()?);
            network.extend(namespace.within(filters)?);
        }
        Ok(Self {
            pins,
            maps: contents(&pinned()?)?,
            network,
            loaded: [
                loaded_programs().count(),
                loaded_links().count(),
                loaded_maps().count(),
            ],
            descriptors: fs::read_dir("/proc/self/fd")?.count(),
        })
    }
}

fn list(directory: &Path, all: &mut BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        all.insert(path.display().to_string());
        if path.is_dir() {
            list(&path, all)?;
        }
    }
    Ok(())
}

fn contents(maps: &Pinned) -> Result<Vec<String>> {
    let mut said = vec![
        format!("{:?}", maps.rules()?),
        format!("{:?}", maps.targets(TargetKind::Cgroup)?),
        format!("{:?}", maps.targets(TargetKind::Device)?),
        format!("{:?}", maps.peers()?),
        format!("{:?}", maps.nets()?),
        format!("{:?}", maps.depths()?),
    ];
    for word in 0..control::WORDS {
        said.push(format!("control {word}: {}", maps.control(word)?));
    }
    for slot in 0..MAX_TARGETS as u16 {
        let units = maps.waiting(slot)?;
        if units != 0 {
            said.push(format!("{units} wait in slot {slot}"));
        }
    }
    Ok(said)
}

/// The devices of this namespace, with their filters.
fn filters() -> Result<Vec<String>> {
    let mut netlink = Netlink::open()?;
    let mut said = Vec::new();
    for link in netlink.links()? {
        let egress = netlink.filters(link.index, Hook::Egress)?;
        let ingress = netlink.filters(link.index, Hook::Ingress)?;
        said.push(format!("{link:?} {egress:?} {ingress:?}"));
    }
    Ok(said)
}

/// One of each way to be carried out: at the socket, on the device, with a detour, with checksums.
fn effects() -> Result<[NetworkEffect; 4]> {
    let peers = Some(vec![
        Pair::B4.into(),
        Peer::new("10.10.0.0/16".parse()?, Some(80)),
    ]);
    let to_peers = NetworkEffect { peers, ..egress() };
    Ok([
        NetworkEffect {
            drop: true,
            ..to_peers.clone()
        },
        NetworkEffect {
            loss: Some(Chance::of(500_000)),
            ..to_peers.clone()
        },
        NetworkEffect {
            delay: Some(Delay::of(Duration::from_millis(5))),
            rate: Some(1_000_000),
            ..to_peers.clone()
        },
        NetworkEffect {
            corrupt: Some(Chance::of(500_000)),
            duplicate: Some(Chance::of(500_000)),
            ..to_peers
        },
    ])
}

vm_test!(faults_leave_the_node_as_it_was, limit = 900);
fn faults_leave_the_node_as_it_was() -> Result<()> {
    let cycles = times(1_000);
    let pair = Pair::new()?;
    let target = Cgroup::new()?;
    let _echo = Echo::start(Place::host().in_namespace(&pair.b))?;
    let _resident = resident(&pair.a, &target)?;
    let from = Place::host().in_namespace(&pair.a).in_cgroup(&target);
    let prober = Prober::start(from, &Probing::of(Pair::B4).per_second(50))?;
    let mut host = Host::open()?;
    // As a running agent does while nobody waits.
    while host.node().load_ahead() {}
    let untouched = Snapshot::take(&[&pair.a, &pair.b])?;
    let effects = effects()?;
    let mut cycle = |n: usize| -> Result<u64> {
        let effect = effects.get(n % effects.len()).context("no effect")?;
        host.arm(fault("f", &target, effect.clone()))?;
        Ok(host.recover("f")?.matched)
    };
    for n in 0..effects.len() {
        cycle(n)?;
    }
    let before = Snapshot::take(&[&pair.a, &pair.b])?;
    let start = Instant::now();
    let mut matched = 0;
    for n in 0..cycles {
        matched += cycle(n).with_context(|| format!("cycle {n}"))?;
    }
    note(format!(
        "{cycles} cycles took {:?}, {matched} packets",
        start.elapsed()
    ));
    ensure!(matched > 0, "no packet met a fault");
    eventually("the node is as it was", PATIENCE, || {
        let after = Snapshot::take(&[&pair.a, &pair.b])?;
        ensure!(after == before, "{after:#?}\nbefore: {before:#?}");
        Ok(())
    })?;
    // The first one has left its clsact, where there is no tcx, and nothing else.
    let new: Vec<_> = before
        .network
        .iter()
        .filter(|line| !untouched.network.contains(line))
        .collect();
    let left: &[&str] = if host.has_tcx() {
        &[]
    } else {
        &["eth0 clsact ffff:"]
    };
    ensure!(new == left, "{new:?}");
    ensure!(
        (&before.pins, &before.maps, before.loaded)
            == (&untouched.pins, &untouched.maps, untouched.loaded),
        "{before:#?}\nbefore: {untouched:#?}"
    );
    drop(prober);
    Ok(())
}

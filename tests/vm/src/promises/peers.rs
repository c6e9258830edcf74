//! Who is meant: addresses, networks and ports as they are written, however many there are.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chaos_planner::fault::{NetworkEffect, Peer};
use nix::errno::Errno;

use crate::cgroup::Cgroup;
use crate::netns::Pair;
use crate::node::{Host, egress, fault, pinned};
use crate::process::Place;
use crate::udp::{self, Echo, PORT, Probing};
use crate::vm_test;

fn peer(net: &str, port: Option<u16>) -> Result<Peer> {
    let net = net.parse().with_context(|| format!("no network: {net}"))?;
    Ok(Peer::new(net, port))
}

vm_test!(networks_and_ports_are_meant_as_they_are_written, limit = 90);
fn networks_and_ports_are_meant_as_they_are_written() -> Result<()> {
    let pair = Pair::new()?;
    let target = Cgroup::new()?;
    let _echo = Echo::start(Place::host().in_namespace(&pair.b))?;
    let mut host = Host::open()?;
    // What of an IPv4 probe to the echo's port, to another port, and of an IPv6 probe is refused.
    let table: [(&[Peer], [bool; 3]); 7] = [
        (&[peer("10.9.0.0/24", None)?], [true, true, false]),
        (&[peer("10.9.0.0/24", Some(PORT))?], [true, false, false]),
        (
            &[peer("10.9.0.2/32", Some(PORT + 1))?],
            [false, true, false],
        ),
        (
            &[peer("10.0.0.0/8", None)?, peer("10.9.0.0/16", Some(1))?],
            [true, true, false],
        ),
        (
            &[
                peer("10.0.0.0/8", Some(PORT))?,
                peer("10.9.0.2/32", Some(1))?,
            ],
            [true, false, false],
        ),
        (&[peer("::/0", None)?], [false, false, true]),
        (
            &[
                peer("0.0.0.0/0", Some(PORT + 1))?,
                peer("fd09::/64", Some(PORT))?,
            ],
            [false, true, true],
        ),
    ];
    for (round, (peers, expected)) in table.into_iter().enumerate() {
        let effect = NetworkEffect {
            drop: true,
            peers: Some(peers.to_vec()),
            ..egress()
        };
        // The first is armed; the others change its peers in place.
        if round == 0 {
            host.arm(fault("p", &target, effect))?;
        } else {
            host.change(fault("p", &target, effect));
        }
        let refused = |to: IpAddr, port: u16| -> Result<bool> {
            let from = Place::host().in_namespace(&pair.a).in_cgroup(&target);
            let probing = Probing::of(to)
                .port(port)
                .per_second(200)
                .linger(Duration::from_millis(200));
            let probes = udp::probe(from, &probing, 4)?;
            let refused = probes.refused(Errno::EPERM);
            ensure!(refused == 0 || refused == 4, "{to} {port}: {probes:?}");
            Ok(refused == 4)
        };
        let seen = [
            refused(Pair::B4, PORT)?,
            refused(Pair::B4, PORT + 1)?,
            refused(Pair::B6, PORT)?,
        ];
        ensure!(seen == expected, "{peers:?}: {seen:?}, not {expected:?}");
    }
    host.recover("p")?;
    nothing_is_left()
}

vm_test!(ten_thousand_peers_and_a_thousand_networks_fit, limit = 120);
fn ten_thousand_peers_and_a_thousand_networks_fit() -> Result<()> {
    const ADDRESSES: u32 = 10_000;
    const NETWORKS: u32 = 1_000;
    let pair = Pair::new()?;
    let target = Cgroup::new()?;
    let _echo = Echo::start(Place::host().in_namespace(&pair.b))?;
    let mut host = Host::open()?;
    let address = |n: u32| IpAddr::V4(Ipv4Addr::from(0x0b00_0000 + n));
    let network = |n: u32| peer(&format!("12.{}.{}.0/24", n >> 8, n & 0xff), None);
    let mut peers: BTreeSet<Peer> = (0..ADDRESSES).map(|n| address(n).into()).collect();
    for n in 0..NETWORKS {
        peers.insert(network(n)?);
    }
    let effect = |peers: &BTreeSet<Peer>| NetworkEffect {
        drop: true,
        peers: Some(peers.iter().copied().collect()),
        ..egress()
    };
    host.arm(fault("p", &target, effect(&peers)))?;
    let refused = |to: IpAddr| -> Result<u64> {
        let from = Place::host().in_namespace(&pair.a).in_cgroup(&target);
        let probes = udp::probe(from, &Probing::of(to).per_second(200), 4)?;
        Ok(probes.refused(Errno::EPERM) as u64)
    };
    ensure!(refused(Pair::B4)? == 0, "a bystander is cut off");
    // One more network, and it is the peer's.
    peers.insert(peer("10.9.0.0/30", None)?);
    host.change(fault("p", &target, effect(&peers)));
    ensure!(refused(Pair::B4)? == 4, "the new network is not cut off");
    let maps = pinned()?;
    let held = (maps.peers()?.len(), maps.nets()?.len());
    ensure!(
        held == (ADDRESSES as usize, NETWORKS as usize + 1),
        "{held:?}"
    );
    host.recover("p")?;
    nothing_is_left()
}

fn nothing_is_left() -> Result<()> {
    let maps = pinned()?;
    let left = (maps.peers()?, maps.nets()?);
    ensure!(left.0.is_empty() && left.1.is_empty(), "left: {left:?}");
    Ok(())
}

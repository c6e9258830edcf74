//! The devices that packets wait in: one on a pod's own device, a pair where that cannot be. Whatever they are, packets come out
//! as they went in.

use std::net::{IpAddr, Ipv4Addr};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, ensure};
use chaos_abi::control;
use chaos_planner::fault::NetworkEffect;

use crate::cgroup::Cgroup;
use crate::machine::Without;
use crate::netns::{DEVICE, Pair};
use crate::node::{Host, delayed, fault, pinned, resident, waited};
use crate::process::{Place, Process};
use crate::udp::{self, Echo, Prober, Probing};
use crate::vm_test;

const LONG: Duration = Duration::from_millis(400);

/// Of [`LONG`].
fn on_the_device() -> NetworkEffect {
    NetworkEffect {
        device: Some(DEVICE.to_owned()),
        ..delayed(LONG)
    }
}

/// A target, and at the other end of its device somebody who answers.
struct Stage {
    pair: Pair,
    target: Cgroup,
    _echo: Echo,
    _resident: Process<()>,
}

impl Stage {
    fn new() -> Result<Stage> {
        let (pair, target) = (Pair::new()?, Cgroup::new()?);
        Ok(Stage {
            _echo: Echo::start(Place::host().in_namespace(&pair.b))?,
            _resident: resident(&pair.a, &target)?,
            pair,
            target,
        })
    }

    fn sender(&self) -> Place<'_> {
        Place::host()
            .in_namespace(&self.pair.a)
            .in_cgroup(&self.target)
    }

    /// Takes the fault off, and sees that these are its devices again.
    fn is_left_as(&self, before: &[String], host: &mut Host) -> Result<()> {
        host.recover("d")?;
        host.run_for(Duration::from_secs(1));
        let after = self.pair.a.devices()?;
        ensure!(after == before, "{after:?}");
        Ok(())
    }
}

vm_test!(a_packet_with_a_tag_of_its_own_keeps_it);
fn a_packet_with_a_tag_of_its_own_keeps_it() -> Result<()> {
    const NAME: &str = "vlan7";
    let stage = Stage::new()?;
    let end = |end| IpAddr::V4(Ipv4Addr::new(10, 9, 37, end));
    for (namespace, address) in [(&stage.pair.a, end(1)), (&stage.pair.b, end(2))] {
        namespace.add_vlan(NAME, DEVICE, 7)?;
        namespace.add_address(NAME, address, 24)?;
        namespace.up(NAME)?;
    }
    let mut host = Host::open()?;
    let before = stage.pair.a.devices()?;
    host.arm(fault("d", &stage.target, on_the_device()))?;
    let new: Vec<_> = stage
        .pair
        .a
        .devices()?
        .into_iter()
        .filter(|name| !before.contains(name))
        .collect();
    ensure!(new == ["faultline1a"], "not one device more, but {new:?}");
    for to in [end(2), Pair::B4, Pair::B6] {
        let probes = udp::probe(stage.sender(), &Probing::of(to).per_second(50), 30)?;
        // Without its tag it would be nobody's there, and with ours it would be, too.
        ensure!(probes.lost() == 0, "{to}: lost {:?}", probes.lost_seqs());
        let there = probes.there().median()?;
        ensure!(waited(there, LONG), "{to}: there {there:?}");
    }
    stage.is_left_as(&before, &mut host)
}

vm_test!(what_waits_goes_on_after_a_panic);
fn what_waits_goes_on_after_a_panic() -> Result<()> {
    let stage = Stage::new()?;
    let mut host = Host::open()?;
    let long = LONG * 5;
    host.arm(fault("d", &stage.target, delayed(long)))?;
    let probing = Probing::of(Pair::B4).per_second(50).count(30);
    let prober = Prober::start(stage.sender(), &probing.linger(long * 2))?;
    // All are on their way then, and none has arrived.
    sleep(Duration::from_secs(1));
    // What `chaos-agent panic` does before it asks anybody; no agent acts here meanwhile.
    let mut maps = pinned()?;
    maps.set_control(control::HALTED, 1)?;
    let probes = prober.join()?;
    maps.set_control(control::HALTED, 0)?;
    ensure!(probes.lost() == 0, "lost {:?}", probes.lost_seqs());
    let there = probes.there().median()?;
    ensure!(waited(there, long), "there {there:?}");
    host.recover("d").map(drop)
}

vm_test!(without_vlans_a_detour_is_a_pair);
fn without_vlans_a_detour_is_a_pair() -> Result<()> {
    let stage = Stage::new()?;
    let _without = Without::module("8021q")?;
    let mut host = Host::open()?;
    let before = stage.pair.a.devices()?;
    host.arm(fault("d", &stage.target, on_the_device()))?;
    let during = stage.pair.a.devices()?;
    let has = |name: &str| during.iter().any(|device| device == name);
    ensure!(has("faultline1a") && has("faultline1b"), "{during:?}");
    let probes = udp::probe(stage.sender(), &Probing::of(Pair::B4).per_second(50), 30)?;
    let there = probes.there().median()?;
    ensure!(
        probes.lost() == 0 && waited(there, LONG),
        "lost {}, there {there:?}",
        probes.lost()
    );
    stage.is_left_as(&before, &mut host)
}

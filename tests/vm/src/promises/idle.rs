//! A node without faults pays nothing for them: what stands in the way of all goes when nobody has needed
//! it for half a minute, and comes back with the next fault.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chaos_planner::fault::NetworkEffect;
use nix::errno::Errno;

use crate::cgroup::Cgroup;
use crate::netns::Pair;
use crate::node::{Host, clock_fault, egress, fault, links, moved, nothing_is_pinned};
use crate::process::Place;
use crate::udp::{self, Echo, Probing};
use crate::vm_test;

/// Who probes reads it.
const BOOTTIME: u32 = 7;

/// Names of everything that is attached.
fn attached() -> BTreeSet<String> {
    let pins = links("");
    let names = pins.iter().filter_map(|pin| pin.file_name()?.to_str());
    names.map(str::to_owned).collect()
}

vm_test!(
    an_idle_node_has_nothing_of_ours_in_its_way,
    limit = 90,
    once
);
fn an_idle_node_has_nothing_of_ours_in_its_way() -> Result<()> {
    let pair = Pair::new()?;
    let target = Cgroup::new()?;
    let _echo = Echo::start(Place::host().in_namespace(&pair.b))?;
    let mut host = Host::open()?;
    let drop_all = NetworkEffect {
        drop: true,
        ..egress()
    };
    for again in [false, true] {
        host.arm(fault("p", &target, drop_all.clone()))?;
        host.arm(clock_fault("c", &target, moved(3_600, &[BOOTTIME])))?;
        let all = attached();
        ensure!(all.len() > 6, "again: {again}: {all:?}");
        let from = Place::host().in_namespace(&pair.a).in_cgroup(&target);
        let probes = udp::probe(from, &Probing::of(Pair::B4).per_second(100), 10)?;
        ensure!(
            probes.refused(Errno::EPERM) == 10,
            "again: {again}: {probes:?}"
        );
        let counts = host.counts("c")?;
        ensure!(counts.injected > 0, "again: {again}: {counts:?}");
        if again {
            break;
        }
        host.recover("p")?;
        host.recover("c")?;
        // The next fault may follow, and who waits has something to finish.
        ensure!(attached() == all, "gone at once: {:?}", attached());
        host.run_for(Duration::from_secs(32));
        // Where few ever pass: who sleeps until a time, is started, or sets a timer.
        let left = ["exec", "itimer", "itimer_read", "nanosleep"];
        let left = left.map(|place| format!("clock_shift_{place}"));
        ensure!(attached() == BTreeSet::from(left), "{:?}", attached());
    }
    drop(host);
    nothing_is_pinned().context("afterwards")
}

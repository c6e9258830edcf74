//! What waits in a detour has a budget: a node under full load loses packets beyond it and says so,
//! but no memory.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, Map, MapData};
use chaos_agent::kernel::maps;
use chaos_agent::node::Options;

use crate::cgroup::Cgroup;
use crate::machine::BPFFS;
use crate::netns::Pair;
use crate::node::{Host, delayed, fault, nothing_waits, resident};
use crate::process::Place;
use crate::registry::note;
use crate::udp::{self, Echo, Prober, Probing};
use crate::{tcp, vm_test};

/// Kilobytes that programs could still have.
fn available() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find(|line| line.starts_with("MemAvailable:"));
    let value = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(value.context("no MemAvailable")?.parse()?)
}

vm_test!(
    a_second_of_delay_under_full_load_is_degraded_and_not_out_of_memory,
    limit = 120
);
fn a_second_of_delay_under_full_load_is_degraded_and_not_out_of_memory() -> Result<()> {
    const BUDGET: u64 = 4 << 20;
    let pair = Pair::new()?;
    let target = Cgroup::new()?;
    let echo = Echo::start(Place::host().in_namespace(&pair.b))?;
    let _server = tcp::Server::start(Place::host().in_namespace(&pair.b))?;
    let _resident = resident(&pair.a, &target)?;
    let mut host = Host::open_with(Options {
        delay_budget: BUDGET,
        ..Options::default()
    })?;
    host.arm(fault("d", &target, delayed(Duration::from_secs(1))))?;
    let from = || Place::host().in_namespace(&pair.a).in_cgroup(&target);
    let before = available()?;
    // As fast as they can, both, to a port where nobody listens; and a stream beside them.
    let probing = Probing::of(Pair::B4)
        .per_second(0)
        .size(1_400)
        .port(9)
        .linger(Duration::ZERO);
    let floods = [
        Prober::start(from(), &probing)?,
        Prober::start(from(), &probing)?,
    ];
    let mut lowest = before;
    for _ in 0..40 {
        host.run_for(Duration::from_millis(100));
        lowest = lowest.min(available()?);
    }
    let seen = host.observe("d").context("the fault is not there")?;
    let mut sent = 0;
    for flood in floods {
        sent += flood.stop()?.len();
    }
    note(format!(
        "{sent} sent, {:?}, {} KB less memory at most",
        seen.counts,
        before - lowest
    ));
    ensure!(seen.counts.over_budget > 0, "{seen:?}");
    ensure!(
        seen.degraded && seen.reason.contains("too many waited on the device"),
        "{seen:?}"
    );
    // The probers remember each datagram; what waits is bounded by itself.
    let most = (BUDGET >> 10) * 4 + 100_000;
    ensure!(before - lowest < most, "{} KB less", before - lowest);
    // When there is room again, all is well again; and what waits at the end arrives.
    host.run_for(Duration::from_millis(1_500));
    let last = Prober::start(from(), &Probing::of(Pair::B4).per_second(100))?;
    host.run_for(Duration::from_secs(1));
    host.recover("d")?;
    let probes = last.stop()?;
    ensure!(probes.lost() == 0, "lost {:?}", probes.lost_seqs());
    ensure!(
        echo.arrivals().len() == probes.len(),
        "{} of {} came",
        echo.arrivals().len(),
        probes.len()
    );
    nothing_waits()
}

vm_test!(what_was_never_counted_out_is_put_right, limit = 60, once);
fn what_was_never_counted_out_is_put_right() -> Result<()> {
    const SLOT: u32 = 1;
    let pair = Pair::new()?;
    let target = Cgroup::new()?;
    let _echo = Echo::start(Place::host().in_namespace(&pair.b))?;
    let _resident = resident(&pair.a, &target)?;
    let mut host = Host::open()?;
    host.arm(fault("d", &target, delayed(Duration::from_millis(100))))?;
    let from = || Place::host().in_namespace(&pair.a).in_cgroup(&target);
    // As if the kernel had lost packets on their way out, a whole budget of them.
    let pin = maps::directory(Path::new(BPFFS)).join("WAITING");
    let mut waiting: Array<_, u64> = Map::Array(MapData::from_pin(pin)?).try_into()?;
    waiting.set(SLOT, Options::default().delay_budget / 1024, 0)?;
    let probes = udp::probe(from(), &Probing::of(Pair::B4).per_second(100), 20)?;
    ensure!(probes.lost() == 20, "lost {}", probes.lost());
    ensure!(
        host.counts("d")?.over_budget == 20,
        "{:?}",
        host.counts("d")?
    );
    // The node looks at its targets, and at this, every 2 s.
    host.run_for(Duration::from_secs(3));
    let probes = udp::probe(from(), &Probing::of(Pair::B4).per_second(100), 20)?;
    ensure!(probes.lost() == 0, "lost {:?}", probes.lost_seqs());
    let there = probes.there().min()?;
    ensure!(there.as_millis() >= 99, "{there:?}");
    ensure!(
        host.counts("d")?.over_budget == 20,
        "{:?}",
        host.counts("d")?
    );
    nothing_waits()
}

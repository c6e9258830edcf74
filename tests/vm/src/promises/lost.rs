//! What faults are armed on goes away, or everything does: the node forgets it and goes on.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chaos_agent::kernel::maps::TargetKind;
use chaos_agent::node::{Node, Options, Owner};
use chaos_planner::fault::Fault;
use chaos_planner::observed::Phase;

use crate::cgroup::Cgroup;
use crate::foreign::{Side, there};
use crate::netns::{DEVICE, Pair};
use crate::node::{Host, delayed, fault, links, nothing_is_pinned, pinned, resident, waited};
use crate::process::Place;
use crate::registry::skip;
use crate::udp::{self, Echo, Probing};
use crate::vm_test;

const DELAY: Duration = Duration::from_millis(100);

fn slow(target: &Cgroup) -> Fault {
    fault("slow", target, delayed(DELAY))
}

fn is_delayed(pair: &Pair, target: &Cgroup) -> Result<bool> {
    let from = Place::host().in_namespace(&pair.a).in_cgroup(target);
    let probes = udp::probe(from, &Probing::of(Pair::B4).per_second(50), 10)?;
    Ok(waited(probes.there().median()?, DELAY))
}

fn no_device_is_known() -> Result<()> {
    let devices = pinned()?.targets(TargetKind::Device)?;
    ensure!(devices.is_empty(), "{devices:?}");
    let links = on_devices();
    ensure!(links.is_empty(), "{links:?}");
    Ok(())
}

/// Pinned links to devices, which outlive these.
fn on_devices() -> Vec<PathBuf> {
    links("tc_")
}

vm_test!(a_link_that_no_journal_knows_is_removed, limit = 60);
fn a_link_that_no_journal_knows_is_removed() -> Result<()> {
    let options = Options::default();
    let target = Cgroup::new()?;
    let pair = Pair::new()?;
    let _alone = resident(&pair.a, &target)?;
    let mut before = Node::open(options.clone())?;
    before.set_desired(Owner("test".into()), vec![slow(&target)]);
    before.reconcile();
    drop(before);
    if on_devices().is_empty() {
        return skip("no tcx before 6.6: a filter has no pin");
    }
    fs::remove_file(options.run_dir.join("journal.json"))?;
    let mut after = Node::open(options)?;
    ensure!(
        after.observed(None).is_empty(),
        "{:?}",
        after.observed(None)
    );
    ensure!(on_devices().is_empty(), "{:?}", on_devices());
    let there = there(&pair.a, DEVICE, Side::Egress)?;
    ensure!(there.is_empty(), "{there:?}");
    after.purge()?;
    nothing_is_pinned()
}

vm_test!(a_fault_recovers_whose_network_namespace_is_gone, limit = 60);
fn a_fault_recovers_whose_network_namespace_is_gone() -> Result<()> {
    let target = Cgroup::new()?;
    let mut host = Host::open()?;
    for _ in 0..2 {
        let pair = Pair::new()?;
        let _echo = Echo::start(Place::host().in_namespace(&pair.b))?;
        let alone = resident(&pair.a, &target)?;
        host.arm(slow(&target))?;
        ensure!(is_delayed(&pair, &target)?, "not delayed");
        // With its last process and the guard, the namespace goes, and the device and the detour.
        drop((alone, pair));
        host.recover("slow")?;
        no_device_is_known()?;
    }
    Ok(())
}

vm_test!(
    a_successor_recovers_what_was_in_a_namespace_that_is_gone,
    limit = 60
);
fn a_successor_recovers_what_was_in_a_namespace_that_is_gone() -> Result<()> {
    let target = Cgroup::new()?;
    let pair = Pair::new()?;
    let alone = resident(&pair.a, &target)?;
    let mut first = Node::open(Options::default())?;
    first.set_desired(Owner("test".into()), vec![slow(&target)]);
    first.reconcile();
    let seen = first.observed(None);
    ensure!(seen.iter().all(|s| s.phase == Phase::Injected), "{seen:?}");
    drop((first, alone, pair));
    let mut host = Host::open()?;
    host.recover("slow")?;
    no_device_is_known()
}

vm_test!(after_a_reboot_nothing_is_taken_for_armed, limit = 60);
fn after_a_reboot_nothing_is_taken_for_armed() -> Result<()> {
    let options = Options::default();
    let target = Cgroup::new()?;
    let pair = Pair::new()?;
    let _echo = Echo::start(Place::host().in_namespace(&pair.b))?;
    let alone = resident(&pair.a, &target)?;
    let mut before = Node::open(options.clone())?;
    before.set_desired(Owner("test".into()), vec![slow(&target)]);
    before.reconcile();
    drop((before, alone, pair, _echo));

    // A reboot leaves files, if anything: no pin and no namespace.
    fs::remove_dir_all(options.bpffs.join("faultline"))?;
    let journal = options.run_dir.join("journal.json");
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let written = fs::read_to_string(&journal)?;
    let other = written.replace(boot_id.trim(), "11111111-2222-3333-4444-555555555555");
    ensure!(other != written, "no boot id in {written}");
    fs::write(&journal, other)?;

    let pair = Pair::new()?;
    let _echo = Echo::start(Place::host().in_namespace(&pair.b))?;
    let _alone = resident(&pair.a, &target)?;
    let mut after = Node::open(options)?;
    ensure!(
        after.observed(None).is_empty(),
        "{:?}",
        after.observed(None)
    );
    no_device_is_known()?;
    after.set_desired(Owner("test".into()), vec![slow(&target)]);
    after.reconcile();
    ensure!(is_delayed(&pair, &target)?, "not armed anew");
    let seen = after.observed(None);
    let first = seen.first().context("not there")?;
    ensure!(first.counts.injected >= 10, "{first:?}");
    after.purge()?;
    nothing_is_pinned()
}

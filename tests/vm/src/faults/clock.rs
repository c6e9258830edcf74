//! Clocks: what programs see of a skewed one, and what they and others see of the true one.

mod drift;
mod held;
mod locked;
mod reader;
mod running;
mod runtimes;
mod servers;
mod waiter;
mod waits;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chaos_agent::kernel::maps;
use chaos_agent::mechanism::clock_shift::Dispatchers;
use chaos_planner::fault::{Fault, Mode};

use self::reader::{Reading, off_by, read, reader};
use crate::cgroup::Cgroup;
use crate::clock::Stamp;
use crate::machine::BPFFS;
use crate::node::{Host, clock_fault, lasting, moved, nothing_is_pinned};
use crate::process::Place;
use crate::vm_test;

const HOUR: i64 = 3_600;
const REALTIME: u32 = 0;
const MONOTONIC: u32 = 1;
const MONOTONIC_COARSE: u32 = 6;

/// The programs that are attached now.
fn dispatchers() -> Dispatchers {
    Dispatchers::of_links(&maps::directory(Path::new(BPFFS)))
}

fn ahead(cgroup: &Cgroup) -> Fault {
    clock_fault("c", cgroup, moved(HOUR, &[REALTIME]))
}

vm_test!(
    a_program_that_is_started_sees_another_time_from_its_first_call,
    limit = 90
);
fn a_program_that_is_started_sees_another_time_from_its_first_call() -> Result<()> {
    let (target, bystander) = (Cgroup::new()?, Cgroup::new()?);
    let mut host = Host::open()?;
    let inside = || Place::host().in_cgroup(&target);
    for offset in [HOUR, -HOUR * 24 * 365 * 10] {
        host.arm(clock_fault("c", &target, moved(offset, &[REALTIME])))?;
        let readings = read(inside(), 20)?;
        off_by(&readings, REALTIME, offset)?;
        // Other clocks, and those outside, are as they are.
        off_by(&readings, MONOTONIC, 0)?;
        let counts = host.counts("c")?;
        ensure!(
            counts.injected == 20 * Reading::OF_REALTIME && counts.failed == 0,
            "{counts:?}"
        );
        off_by(&read(Place::host().in_cgroup(&bystander), 5)?, REALTIME, 0)?;
        ensure!(host.counts("c")? == counts, "a bystander was counted");
        host.recover("c")?;
        off_by(&read(inside(), 5)?, REALTIME, 0)?;
    }
    drop(host);
    nothing_is_pinned()
}

vm_test!(a_child_cgroup_has_the_clock_of_its_target, limit = 60);
fn a_child_cgroup_has_the_clock_of_its_target() -> Result<()> {
    let target = Cgroup::new()?;
    let child = target.child()?;
    let mut host = Host::open()?;
    host.arm(ahead(&target))?;
    off_by(&read(Place::host().in_cgroup(&child), 5)?, REALTIME, HOUR)
}

vm_test!(only_the_clocks_that_are_named_are_off, limit = 60);
fn only_the_clocks_that_are_named_are_off() -> Result<()> {
    let target = Cgroup::new()?;
    let mut host = Host::open()?;
    let named = [MONOTONIC, MONOTONIC_COARSE];
    host.arm(clock_fault("c", &target, moved(HOUR, &named)))?;
    let readings = read(Place::host().in_cgroup(&target), 5)?;
    for clock in Reading::CLOCKS {
        let expected = if named.contains(&clock) { HOUR } else { 0 };
        off_by(&readings, clock, expected)?;
    }
    Ok(())
}

vm_test!(several_faults_on_one_clock_add_up, limit = 60);
fn several_faults_on_one_clock_add_up() -> Result<()> {
    let target = Cgroup::new()?;
    let mut host = Host::open()?;
    let inside = || Place::host().in_cgroup(&target);
    host.arm(clock_fault("a", &target, moved(HOUR, &[REALTIME])))?;
    host.arm(clock_fault(
        "b",
        &target,
        moved(-600, &[REALTIME, MONOTONIC]),
    ))?;
    let both = read(inside(), 5)?;
    off_by(&both, REALTIME, HOUR - 600)?;
    off_by(&both, MONOTONIC, -600)?;
    host.recover("a")?;
    let one = read(inside(), 5)?;
    off_by(&one, REALTIME, -600)?;
    off_by(&one, MONOTONIC, -600)
}

vm_test!(observing_counts_clock_reads_and_shifts_none, limit = 60);
fn observing_counts_clock_reads_and_shifts_none() -> Result<()> {
    let target = Cgroup::new()?;
    let mut host = Host::open()?;
    let mut observe = ahead(&target);
    observe.mode = Mode::Observe;
    host.arm(observe)?;
    off_by(&read(Place::host().in_cgroup(&target), 10)?, REALTIME, 0)?;
    let counts = host.counts("c")?;
    ensure!(
        (counts.would_inject, counts.injected) == (10 * Reading::OF_REALTIME, 0),
        "{counts:?}"
    );
    Ok(())
}

vm_test!(a_skew_ends_at_its_deadline_by_itself, limit = 60);
fn a_skew_ends_at_its_deadline_by_itself() -> Result<()> {
    let target = Cgroup::new()?;
    let mut host = Host::open()?;
    let time = Duration::from_secs(5);
    let asked = Stamp::now();
    host.arm(lasting(ahead(&target), time))?;
    let armed = Stamp::now();
    let reader = reader(Place::host().in_cgroup(&target))?;
    // Nobody looks after it from here on.
    std::thread::sleep(Duration::from_secs(6));
    let readings = reader.finish(Duration::from_secs(10))?;
    let split = |from: Stamp, to: Stamp| -> Vec<Reading> {
        let within = |reading: &&Reading| reading.before >= from && reading.after <= to;
        readings.iter().filter(within).cloned().collect()
    };
    off_by(&split(asked, asked + time), REALTIME, HOUR).context("before the deadline")?;
    let after = split(armed + time, Stamp::now());
    off_by(&after, REALTIME, 0).context("after the deadline")
}

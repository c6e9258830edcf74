//! Clocks that run fast or slow, and clocks that jump while a fault lasts.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chaos_planner::clock::{ClockEffect, Jump};

use super::reader::{Reading, off_by, read, reader};
use super::waiter::{Task, Waited};
use super::{HOUR, MONOTONIC, REALTIME, dispatchers};
use crate::cgroup::Cgroup;
use crate::clock::Stamp;
use crate::node::{Host, clock_fault, moved, nothing_is_pinned};
use crate::process::{Place, Process};
use crate::vm_test;

const MONOTONIC_RAW: u32 = 4;

const MILLION: i64 = 1_000_000;

/// Nanoseconds that two readings of two clocks may be apart beside what was measured.
const SLACK: i64 = 5_000_000;

/// These clocks run faster by so many parts per million.
fn faster(drift_ppm: i32, clocks: &[u32]) -> ClockEffect {
    ClockEffect {
        drift_ppm,
        ..moved(0, clocks)
    }
}

/// What has to be, when the fault has begun between the two moments.
struct Drift {
    ppm: i64,
    from: Stamp,
    to: Stamp,
}

impl Drift {
    /// Whether a clock is as far ahead as it has to be by then.
    fn has(&self, reading: &Reading, clock: u32) -> Result<()> {
        let gained = |from: Stamp, at: Stamp| (at.0 as i64 - from.0 as i64) * self.ppm / MILLION;
        let ends = [
            gained(self.to, reading.before),
            gained(self.from, reading.after),
            gained(self.from, reading.before),
            gained(self.to, reading.after),
        ];
        let took = reading.after.since(reading.before).as_nanos() as i64 + SLACK;
        let low = ends.iter().min().unwrap_or(&0) - took;
        let high = ends.iter().max().unwrap_or(&0) + took;
        let ahead = reading.ahead(clock);
        ensure!(
            (low..=high).contains(&ahead),
            "clock {clock} is {ahead} ns ahead, not {low} to {high}: {reading:?}"
        );
        Ok(())
    }
}

vm_test!(a_clock_runs_fast_or_slow_and_never_back, limit = 120);
fn a_clock_runs_fast_or_slow_and_never_back() -> Result<()> {
    let target = Cgroup::new()?;
    let inside = || Place::host().in_cgroup(&target);
    let mut host = Host::open()?;
    for ppm in [MILLION as i32, -990_000] {
        let running = reader(inside())?;
        let from = Stamp::now();
        host.arm(clock_fault(
            "c",
            &target,
            faster(ppm, &[REALTIME, MONOTONIC]),
        ))?;
        let to = Stamp::now();
        let skipped = dispatchers().skipped();
        let drift = Drift {
            ppm: i64::from(ppm),
            from,
            to,
        };
        std::thread::sleep(Duration::from_secs(2));
        // What is started later goes by the same clock.
        let mut readings = read(inside(), 20)?;
        let before = readings.len();
        readings.extend(running.finish(Duration::from_secs(10))?);
        let skipped = dispatchers().skipped() - skipped;
        readings.retain(|reading| reading.before >= to);
        ensure!(readings.len() > before, "only {}", readings.len());
        let mut wrong = Vec::new();
        for reading in &readings {
            for clock in [REALTIME, MONOTONIC] {
                wrong.extend(drift.has(reading, clock).err());
            }
            let true_clock = Drift { ppm: 0, from, to };
            true_clock.has(reading, MONOTONIC_RAW)?;
        }
        let first = wrong.first().map(ToString::to_string).unwrap_or_default();
        ensure!(
            wrong.len() as u64 <= skipped && wrong.len() < readings.len(),
            "{ppm} ppm: {} of {}, {skipped} skipped: {first}",
            wrong.len(),
            readings.len()
        );
        for clock in [REALTIME, MONOTONIC] {
            for program in [&readings[..before], &readings[before..]] {
                let shown = program.windows(2);
                let back = shown.filter(|two| two[1].shown(clock) < two[0].shown(clock));
                let back = back.count() as u64;
                ensure!(back <= 2 * skipped, "clock {clock} went back {back} times");
            }
        }
        host.recover("c")?;
        off_by(&read(inside(), 5)?, MONOTONIC, 0).context("afterwards")?;
    }
    drop(host);
    nothing_is_pinned()
}

vm_test!(a_clock_jumps_when_it_is_told_to, limit = 90);
fn a_clock_jumps_when_it_is_told_to() -> Result<()> {
    let second = 1_000_000_000;
    let target = Cgroup::new()?;
    let mut host = Host::open()?;
    let running = reader(Place::host().in_cgroup(&target))?;
    let jump = |after: u64, by: i64| Jump {
        after_ns: after * second as u64,
        by_ns: by * second,
    };
    let effect = ClockEffect {
        // In the order in which somebody wrote them.
        jumps: vec![jump(5, -3 * HOUR), jump(3, HOUR)],
        ..moved(0, &[REALTIME])
    };
    let from = Stamp::now();
    host.arm(clock_fault("c", &target, effect))?;
    let to = Stamp::now();
    std::thread::sleep(Duration::from_secs(7));
    let end = Stamp::now();
    let readings = running.finish(Duration::from_secs(10))?;
    let at = |base: Stamp, seconds: u64| base + Duration::from_secs(seconds);
    for (after, before, expected) in [
        (to, at(from, 3), 0),
        (at(to, 3), at(from, 5), HOUR),
        (at(to, 5), end, -2 * HOUR),
    ] {
        let within = |reading: &&Reading| reading.before >= after && reading.after <= before;
        let some: Vec<_> = readings.iter().filter(within).cloned().collect();
        off_by(&some, REALTIME, expected).with_context(|| format!("from {after} to {before}"))?;
    }
    host.recover("c")?;
    Ok(())
}

vm_test!(a_wait_goes_by_the_speed_of_the_clock, limit = 90);
fn a_wait_goes_by_the_speed_of_the_clock() -> Result<()> {
    let target = Cgroup::new()?;
    let mut host = Host::open()?;
    // By the right clock: four seconds, and one.
    for (ppm, milliseconds) in [(MILLION as i32, 4_000), (-500_000, 1_000)] {
        host.arm(clock_fault("c", &target, faster(ppm, &[MONOTONIC])))?;
        let start = |way| {
            let task = Task {
                ways: vec![way],
                milliseconds,
                ..Task::on(MONOTONIC)
            };
            task.start(Place::host().in_cgroup(&target))
        };
        let all: Vec<Process<Waited>> = Task::WAYS.into_iter().map(start).collect::<Result<_>>()?;
        for process in all {
            for wait in process.join(Duration::from_secs(30))? {
                // A busy machine is late, and nobody is early.
                let took = 1_990..3_900;
                ensure!(
                    took.contains(&wait.took) && (0..4_000).contains(&wait.late) && wait.unchanged,
                    "{ppm} ppm: {wait:?}"
                );
            }
        }
        let counts = host.counts("c")?;
        ensure!(counts.failed == 0, "{counts:?}");
        host.recover("c")?;
    }
    Ok(())
}

//! What language runtimes see of a skewed clock: programs that run already, and programs that are
//! started meanwhile. Each has its own way to the clocks: some ask the vDSO through a library, some by
//! themselves.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::reader::library;
use super::{HOUR, MONOTONIC, REALTIME, dispatchers};
use crate::cgroup::Cgroup;
use crate::node::{Host, clock_fault, moved, nothing_is_pinned};
use crate::process::{Place, Process};
use crate::runtimes::command;
use crate::vm_test;

/// The monotonic clock is ahead by so many seconds. Not many: timers that are set meanwhile are late by
/// as much afterwards.
const AHEAD: i64 = 7;

/// They are ready by then: a virtual machine starts them up to twenty times slower than a real one.
const START_LIMIT: Duration = Duration::from_secs(60);

/// A running one answers by then.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// Readings that are taken at a time.
const READINGS: u64 = 5;

/// Nanoseconds that a clock of milliseconds may be beside.
const RESOLUTION: i64 = 20_000_000;

/// A program of `tests/vm/runtimes`.
pub(super) struct Runtime {
    program: &'static str,
    args: &'static [&'static str],
    /// Its monotonic clock counts from its start.
    from_start: bool,
}

impl Runtime {
    pub(super) const fn new(program: &'static str, args: &'static [&'static str]) -> Runtime {
        Runtime {
            program,
            args,
            from_start: false,
        }
    }
}

/// A running one.
pub(super) struct Clock {
    program: Process<[i64; 2]>,
    /// What its monotonic clock shows when the kernel's shows 0, as the quickest of a few readings has
    /// it; 0 if it is the kernel's.
    origin: i64,
}

impl Clock {
    pub(super) fn start(runtime: &Runtime, place: Place<'_>) -> Result<Clock> {
        let mut command = command(runtime.program)?;
        command.args(runtime.args);
        let mut clock = Clock {
            program: place.start(runtime.program, command, START_LIMIT)?,
            origin: 0,
        };
        if runtime.from_start {
            let mut origins = Vec::new();
            for _ in 0..READINGS {
                let before = library(MONOTONIC);
                origins.push(clock.read()?[1] - before);
            }
            clock.origin = origins.into_iter().min().unwrap_or(0);
        }
        Ok(clock)
    }

    /// Nanoseconds of the wall clock and of the monotonic one.
    fn read(&mut self) -> Result<[i64; 2]> {
        self.program.ask(ANSWER_LIMIT)
    }

    /// Whether its clocks are ahead by so many seconds, whenever they are read; but for as many times
    /// as the kernel has kept a call from the programs.
    pub(super) fn is_ahead(&mut self, wall: i64, monotonic: i64) -> Result<()> {
        let (mut wrong, skipped) = (Vec::new(), dispatchers().skipped());
        for _ in 0..READINGS {
            let before = (library(REALTIME), library(MONOTONIC));
            let [shown_wall, shown_monotonic] = self.read()?;
            let after = (library(REALTIME), library(MONOTONIC));
            let within = |shown: i64, by: i64, before: i64, after: i64| {
                let right = shown - by * 1_000_000_000;
                right >= before - RESOLUTION && right <= after + RESOLUTION
            };
            let shown_monotonic = shown_monotonic - self.origin;
            if !within(shown_wall, wall, before.0, after.0)
                || !within(shown_monotonic, monotonic, before.1, after.1)
            {
                let off = |shown: i64, before: i64| (shown - before) as f64 / 1e9;
                let (wall, monotonic) = (off(shown_wall, before.0), off(shown_monotonic, before.1));
                wrong.push(format!("{wall:.3} s and {monotonic:.3} s"));
            }
        }
        let skipped = dispatchers().skipped() - skipped;
        ensure!(
            wrong.len() as u64 <= skipped.min(READINGS - 1),
            "ahead by {wrong:?} instead of {wall} s and {monotonic} s; {skipped} calls were skipped"
        );
        Ok(())
    }
}

fn sees_another_time(runtime: &Runtime) -> Result<()> {
    let target = Cgroup::new()?;
    let inside = || Place::host().in_cgroup(&target);
    let mut running = Clock::start(runtime, inside())?;
    running.is_ahead(0, 0).context("before")?;
    let mut host = Host::open()?;
    host.arm(clock_fault("wall", &target, moved(HOUR, &[REALTIME])))?;
    host.arm(clock_fault("other", &target, moved(AHEAD, &[MONOTONIC])))?;
    running
        .is_ahead(HOUR, AHEAD)
        .context("one that ran before")?;
    let mut started = Clock::start(runtime, inside())?;
    // What counts from a start that was ahead as well is right, until the start is in the future.
    let own = if runtime.from_start { AHEAD } else { 0 };
    started
        .is_ahead(HOUR, AHEAD - own)
        .context("one that was started meanwhile")?;
    host.recover("wall")?;
    running.is_ahead(0, AHEAD).context("one of two is left")?;
    host.recover("other")?;
    running.is_ahead(0, 0).context("after")?;
    started
        .is_ahead(0, -own)
        .context("after, in the other one")?;
    drop((running, started, host));
    nothing_is_pinned()
}

vm_test!(a_c_program_sees_another_time, limit = 90);
fn a_c_program_sees_another_time() -> Result<()> {
    sees_another_time(&Runtime::new("/programs/clock-glibc", &[]))
}

vm_test!(a_static_c_program_sees_another_time, limit = 90);
fn a_static_c_program_sees_another_time() -> Result<()> {
    sees_another_time(&Runtime::new("/programs/clock-glibc-static", &[]))
}

vm_test!(a_go_program_sees_another_time, limit = 90);
fn a_go_program_sees_another_time() -> Result<()> {
    sees_another_time(&Runtime {
        from_start: true,
        ..Runtime::new("/programs/clock-go", &[])
    })
}

vm_test!(a_python_program_sees_another_time, limit = 120);
fn a_python_program_sees_another_time() -> Result<()> {
    sees_another_time(&Runtime::new("/usr/bin/python3", &["/programs/clock.py"]))
}

vm_test!(a_node_program_sees_another_time, limit = 180);
fn a_node_program_sees_another_time() -> Result<()> {
    sees_another_time(&Runtime::new("/usr/bin/node", &["/programs/clock.js"]))
}

vm_test!(a_java_program_sees_another_time, limit = 180);
fn a_java_program_sees_another_time() -> Result<()> {
    sees_another_time(&Runtime::new(
        "/usr/lib/jvm/java-17-openjdk-amd64/bin/java",
        &[
            "-Xmx64m",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-cp",
            "/programs",
            "Clock",
        ],
    ))
}

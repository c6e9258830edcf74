//! A program that reads its clocks and tells what they show. It is linked against musl, which asks
//! the vDSO if there is one.

use std::time::Duration;

use anyhow::{Result, ensure};
use nix::libc;
use serde::{Deserialize, Serialize};

use crate::clock::Stamp;
use crate::process::{Place, Process, role};

const READER: &str = "clock-reader";
crate::vm_role!(READER, run);

/// What the clocks showed, all within a moment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Reading {
    /// The moment before.
    pub(super) before: Stamp,
    /// Nanoseconds of each of [`Reading::CLOCKS`].
    clocks: Vec<i64>,
    /// Seconds by gettimeofday of the library, by its system call, and by time of the library.
    others: [i64; 3],
    /// The moment after.
    pub(super) after: Stamp,
}

impl Reading {
    /// Clocks by their ids: all but CLOCK_BOOTTIME, which times the readings, and those of CPU time.
    pub(super) const CLOCKS: [u32; 5] = [0, 1, 4, 5, 6];

    /// How many of the reads are of CLOCK_REALTIME.
    pub(super) const OF_REALTIME: u64 = 4;

    fn take() -> Reading {
        let before = Stamp::now();
        let clocks = Reading::CLOCKS.map(library).to_vec();
        let mut time = libc::timeval {
            tv_sec: 0,
            tv_usec: 0,
        };
        // SAFETY: a timeval to write to, and no time zone.
        unsafe { libc::gettimeofday(&raw mut time, std::ptr::null_mut()) };
        let by_library = time.tv_sec;
        let none = std::ptr::null::<u8>();
        // SAFETY: as above, without the library between.
        unsafe { libc::syscall(libc::SYS_gettimeofday, &raw mut time, none) };
        // SAFETY: null asks for no copy of the result.
        let seconds = unsafe { libc::time(std::ptr::null_mut()) };
        Reading {
            before,
            clocks,
            others: [by_library, time.tv_sec, seconds],
            after: Stamp::now(),
        }
    }

    /// Nanoseconds that `clock` showed; 0 if it was not read.
    pub(super) fn shown(&self, clock: u32) -> i64 {
        let index = Reading::CLOCKS.iter().position(|&id| id == clock);
        let shown = index.and_then(|index| self.clocks.get(index));
        shown.copied().unwrap_or_default()
    }

    /// Nanoseconds by which `clock` was ahead, if it was read at the beginning.
    pub(super) fn ahead(&self, clock: u32) -> i64 {
        self.shown(clock) - (origin(clock) + self.before.0 as i64)
    }
}

/// What a clock shows at the moment 0 of CLOCK_BOOTTIME. The test's own clocks are right.
fn origin(clock: u32) -> i64 {
    // The machine may do something else between the two.
    let tries = (0..5).map(|_| library(clock) - Stamp::now().0 as i64);
    tries.max().unwrap_or(0)
}

pub(super) fn library(clock: u32) -> i64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: a timespec to write to.
    unsafe { libc::clock_gettime(clock as i32, &raw mut time) };
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

/// Reads `count` times, or until it is told to end for 0.
fn run(args: &str) -> Result<()> {
    let count: usize = serde_json::from_str(args)?;
    role::ready()?;
    let mut taken = 0;
    while if count == 0 {
        !role::ended()
    } else {
        taken < count
    } {
        role::tell(&Reading::take())?;
        taken += 1;
        std::thread::sleep(Duration::from_millis(if count == 0 { 10 } else { 0 }));
    }
    Ok(())
}

/// What a program started here reads.
pub(super) fn read(place: Place<'_>, count: usize) -> Result<Vec<Reading>> {
    let readings = place
        .spawn::<Reading>(READER, &count)?
        .join(Duration::from_secs(30))?;
    ensure!(readings.len() == count, "{} readings", readings.len());
    Ok(readings)
}

/// One that goes on until it is told to end.
pub(super) fn reader(place: Place<'_>) -> Result<Process<Reading>> {
    place.spawn(READER, &0)
}

/// Whether a clock was so many seconds ahead in each of these, to within 2 s: machines here are
/// slow. For CLOCK_REALTIME also whether all other calls that read it say the same.
pub(super) fn off_by(readings: &[Reading], clock: u32, expected: i64) -> Result<()> {
    off_by_but(readings, clock, expected, 0)
}

/// The same, for all but so many of the readings.
pub(super) fn off_by_but(readings: &[Reading], clock: u32, expected: i64, but: u64) -> Result<()> {
    ensure!(!readings.is_empty(), "there are no readings");
    let origin = origin(clock);
    let wrong = |(index, reading): (usize, &Reading)| {
        let right = origin + reading.before.0 as i64;
        let shown = reading.shown(clock);
        let off = |shown: i64| (shown - right) as f64 / 1e9 - expected as f64;
        let close = |off: f64| off.abs() < 2.0;
        let others = || {
            let all = reading.others.iter();
            clock != 0 || all.copied().all(|s| close(off(s * 1_000_000_000)))
        };
        (!close(off(shown)) || !others()).then(|| {
            format!(
                "clock {clock} is {:.3} s beside {expected} s, or not all calls say so, in reading {index} of {}: \
                 {reading:?}",
                off(shown),
                readings.len()
            )
        })
    };
    let wrong: Vec<String> = readings.iter().enumerate().filter_map(wrong).collect();
    let first = wrong.first().cloned().unwrap_or_default();
    ensure!(
        wrong.len() as u64 <= but && (wrong.is_empty() || wrong.len() < readings.len()),
        "{} of at most {but} readings: {first}",
        wrong.len()
    );
    Ok(())
}

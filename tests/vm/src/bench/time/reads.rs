//! A program that reads a clock when it is asked to, many times in a row, and tells how long one call
//! took and what the calls showed. It is linked against musl, which asks the vDSO if there is one.

use std::time::Duration;

use anyhow::{Result, ensure};
use nix::libc;
use serde::{Deserialize, Serialize};

use super::AHEAD_S;
use crate::clock::Stamp;
use crate::process::{Place, Process, role};

const READER: &str = "bench-clock";
crate::vm_role!(READER, serve);

/// Rows of calls of one measurement. The quickest counts: whatever else the machine does only adds, such as
/// the test that looks for the answer now and then.
const ROWS: u32 = 100;

/// They have been made by then, on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// How a clock is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Way {
    /// By the C library: from the vDSO, or what is in its place.
    Library,
    /// By syscall(2), as a program does that knows of no vDSO.
    SystemCall,
}

/// What the calls have to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    /// The right time.
    Right,
    /// Another one.
    Ahead,
}

#[derive(Serialize, Deserialize)]
struct Order {
    clock: u32,
    way: Way,
    calls: u32,
    /// Seconds of that clock between the right time and the other one.
    between: i64,
}

#[derive(Clone, Serialize, Deserialize)]
struct Answer {
    /// Nanoseconds of a call.
    ns: f64,
    /// Calls that showed a time after `between`.
    ahead: u32,
}

/// A running one.
pub(super) struct Reader(Process<Answer>);

impl Reader {
    pub(super) fn start(place: Place<'_>) -> Result<Reader> {
        Ok(Reader(place.spawn(READER, &())?))
    }

    pub(super) fn pid(&self) -> u32 {
        self.0.pid()
    }

    /// Nanoseconds of a call, by the quickest of [`ROWS`] rows of so many calls.
    ///
    /// # Errors
    /// If it is gone, or did not see what it should: what does nothing may well be quick.
    pub(super) fn time(&mut self, clock: u32, way: Way, calls: u32, shown: Shown) -> Result<f64> {
        let order = Order {
            clock,
            way,
            calls,
            // This process is in no target.
            between: seconds(clock, Way::Library) + AHEAD_S / 2,
        };
        let Answer { ns, ahead } = self.0.ask_for(&order, PATIENCE)?;
        let all = calls * ROWS;
        let seen = match shown {
            Shown::Ahead => ahead,
            Shown::Right => all - ahead,
        };
        // A kernel that interrupts its own work keeps single calls from the programs, and counts them.
        ensure!(
            seen <= all && seen >= all - all / 100,
            "only {seen} of {all} calls of clock {clock} by {way:?} were as they should be: {shown:?}"
        );
        Ok(ns)
    }
}

/// Seconds that the clock shows.
fn seconds(clock: u32, way: Way) -> i64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    match way {
        // SAFETY: a timespec to write to.
        Way::Library => unsafe {
            libc::clock_gettime(clock.cast_signed(), &raw mut time);
        },
        // SAFETY: the same, without the library between.
        Way::SystemCall => unsafe {
            libc::syscall(libc::SYS_clock_gettime, clock, &raw mut time);
        },
    }
    time.tv_sec
}

fn serve(_: &str) -> Result<()> {
    role::ready()?;
    for line in std::io::stdin().lines() {
        let order: Order = serde_json::from_str(&line?)?;
        let mut answer = Answer {
            ns: f64::INFINITY,
            ahead: 0,
        };
        for _ in 0..ROWS {
            // No fault of a benchmark is about this clock.
            let start = Stamp::now();
            for _ in 0..order.calls {
                answer.ahead += u32::from(seconds(order.clock, order.way) > order.between);
            }
            let took = start.elapsed().as_nanos() as f64;
            answer.ns = answer.ns.min(took / f64::from(order.calls));
        }
        role::tell(&answer)?;
    }
    Ok(())
}

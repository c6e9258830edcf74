//! What the clocks show here: for tests of clocks that are off.

use std::{io::Write, thread::sleep, time::Duration};

use anyhow::{Context, Result};
use nix::time::{ClockId, clock_gettime};

/// Prints a line `[wall,monotonic]`, in nanoseconds; once, or again and again with a pause.
///
/// # Errors
/// If nobody listens any more.
pub(crate) fn run(every: Option<Duration>) -> Result<()> {
    loop {
        let wall = nanos(ClockId::CLOCK_REALTIME)?;
        let monotonic = nanos(ClockId::CLOCK_MONOTONIC)?;
        let mut out = std::io::stdout().lock();
        writeln!(out, "[{wall},{monotonic}]")
            .and_then(|()| out.flush())
            .context("nobody listens")?;
        drop(out);
        match every {
            Some(pause) => sleep(pause),
            None => return Ok(()),
        }
    }
}

fn nanos(clock: ClockId) -> Result<i64> {
    let time = clock_gettime(clock).context("failed to read a clock")?;
    Ok(time.tv_sec() * 1_000_000_000 + time.tv_nsec())
}

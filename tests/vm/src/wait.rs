//! Waiting for something to become true.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Tries `check` every 10 ms until it succeeds.
///
/// # Errors
/// It still failed when `limit` had passed: its last error, and `what` was waited for.
pub fn eventually<T>(
    what: &str,
    limit: Duration,
    mut check: impl FnMut() -> Result<T>,
) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        match check() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= end => {
                return Err(error).with_context(|| format!("not within {limit:?}: {what}"));
            }
            Err(_) => sleep(Duration::from_millis(10)),
        }
    }
}

//! One clock for all processes of a test and for the kernel's deadlines.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// A moment: nanoseconds since boot on CLOCK_BOOTTIME, which BPF reads as well
/// (`bpf_ktime_get_boot_ns`). The same in every process of the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Stamp(pub u64);

impl Stamp {
    /// This moment.
    pub fn now() -> Stamp {
        // The call fails only for a clock that the kernel does not have.
        let nanos = clock_gettime(ClockId::CLOCK_BOOTTIME)
            .map(|t| Duration::from(t).as_nanos() as u64)
            .unwrap_or_default();
        Stamp(nanos)
    }

    /// Time since `earlier`; zero if that is later.
    pub fn since(self, earlier: Stamp) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// Since this moment.
    pub fn elapsed(self) -> Duration {
        Stamp::now().since(self)
    }
}

impl Add<Duration> for Stamp {
    type Output = Stamp;
    fn add(self, time: Duration) -> Stamp {
        Stamp(self.0.saturating_add(time.as_nanos() as u64))
    }
}

impl Sub<Duration> for Stamp {
    type Output = Stamp;
    fn sub(self, time: Duration) -> Stamp {
        Stamp(self.0.saturating_sub(time.as_nanos() as u64))
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.6} s", self.0 as f64 / 1e9)
    }
}

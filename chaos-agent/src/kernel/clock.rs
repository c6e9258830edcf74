//! The clock of deadlines: CLOCK_MONOTONIC, as `bpf_ktime_get_ns` and fq read it; and what others show.

use chaos_abi::clock::BASES;
use nix::time::{ClockId, clock_gettime};

/// Nanoseconds of CLOCK_MONOTONIC.
pub fn now_ns() -> u64 {
    u64::try_from(read(ClockId::CLOCK_MONOTONIC)).unwrap_or(0)
}

/// What each of [`BASES`] shows, in nanoseconds.
pub fn bases_ns() -> [i64; 4] {
    BASES.map(|clock| read(ClockId::from_raw(clock.cast_signed())))
}

fn read(clock: ClockId) -> i64 {
    // These clocks exist on every Linux, and the call cannot fail with a valid pointer.
    clock_gettime(clock).map_or(0, |time| time.tv_sec() * 1_000_000_000 + time.tv_nsec())
}

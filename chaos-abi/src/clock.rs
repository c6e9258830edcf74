//! The clock family: `CLOCK_TARGETS` and `CLOCK_RULES` of `clock_shift`, and what a shifted clock
//! shows.

use bytemuck::{Pod, Zeroable};

/// Bits of [`ClockRule::flags`].
pub mod flag {
    /// Count what would be shifted, shift nothing (`spec.faultline.mode: Observe`).
    pub const OBSERVE: u32 = 1 << 0;
}

/// `CLOCK_REALTIME` of `clock_gettime(2)`; gettimeofday and time read it, too.
pub const REALTIME: u32 = 0;

/// One fault on the clocks of one target. Ids are those of the network family's rules, too, so that
/// `COUNTERS` serves both.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct ClockRule {
    /// CLOCK_MONOTONIC nanoseconds (the true ones) after which the rule does nothing.
    pub deadline_ns: u64,
    /// Not zero and different for each life of this slot; 0 is a free slot.
    pub generation: u32,
    /// Bits of [`flag`].
    pub flags: u32,
    /// Nanoseconds that the clocks are ahead, or behind if negative.
    pub offset_ns: i64,
    /// Bit n: clock id n of `clock_gettime(2)`.
    pub clocks: u32,
    /// Always 0.
    pub reserved: u32,
}

impl ClockRule {
    /// Whether it is about this clock. Ids of processes' and descriptors' clocks are negative, so
    /// larger than all here.
    #[inline(always)]
    pub const fn shifts(&self, clock: u32) -> bool {
        clock < u32::BITS && self.clocks & (1 << clock) != 0
    }
}

/// A time of seconds and `per_second`-ths of one, as `timespec` and `timeval` have it, moved by
/// nanoseconds. What is less than a part is rounded towards the past.
///
/// Written without signed division, which BPF has not before its fourth version.
#[inline(always)]
pub const fn shifted(seconds: i64, parts: i64, per_second: u64, by_ns: i64) -> (i64, i64) {
    const SECOND: u64 = 1_000_000_000;
    let magnitude = by_ns.unsigned_abs();
    let nanos_of_part = SECOND / per_second;
    if by_ns >= 0 {
        let seconds = seconds.wrapping_add((magnitude / SECOND) as i64);
        let parts = parts + ((magnitude % SECOND) / nanos_of_part) as i64;
        if parts >= per_second as i64 {
            return (seconds.wrapping_add(1), parts - per_second as i64);
        }
        (seconds, parts)
    } else {
        let seconds = seconds.wrapping_sub((magnitude / SECOND) as i64);
        let parts = parts - (magnitude % SECOND).div_ceil(nanos_of_part) as i64;
        if parts < 0 {
            return (seconds.wrapping_sub(1), parts + per_second as i64);
        }
        (seconds, parts)
    }
}

const _: () = assert!(size_of::<ClockRule>() == 32);

#[cfg(test)]
mod tests {
    use super::*;

    const NANOS: u64 = 1_000_000_000;
    const MICROS: u64 = 1_000_000;

    #[test]
    fn a_time_is_moved_over_seconds_both_ways() {
        for (time, per_second, by_ns, expected) in [
            ((10, 5), NANOS, 0, (10, 5)),
            ((10, 5), NANOS, 3_600_000_000_001, (3_610, 6)),
            ((10, 999_999_999), NANOS, 1, (11, 0)),
            ((10, 0), NANOS, -1, (9, 999_999_999)),
            ((10, 5), NANOS, -20_000_000_006, (-11, 999_999_999)),
            ((10, 999_999), MICROS, 1_999, (11, 0)),
            ((10, 7), MICROS, -1, (10, 6)),
            ((10, 7), MICROS, -1_000, (10, 6)),
            ((0, 0), NANOS, i64::MIN, (-9_223_372_037, 145_224_192)),
            ((0, 0), NANOS, i64::MAX, (9_223_372_036, 854_775_807)),
        ] {
            let (seconds, parts) = time;
            let moved = shifted(seconds, parts, per_second, by_ns);
            assert_eq!(moved, expected, "{time:?} by {by_ns}");
        }
    }

    #[test]
    fn a_rule_is_about_its_clocks_only() {
        let rule = ClockRule {
            clocks: 1 << REALTIME | 1 << 7,
            ..ClockRule::default()
        };
        for (clock, expected) in [(0, true), (1, false), (7, true), (32, false)] {
            assert_eq!(rule.shifts(clock), expected, "{clock}");
        }
        // The CPU clock of process 1, as clock_getcpuclockid gives it.
        assert!(!rule.shifts(-14_i32 as u32));
    }
}

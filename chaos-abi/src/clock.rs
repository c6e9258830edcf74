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

/// The most jumps of one rule.
pub const MAX_JUMPS: usize = 8;

/// The slowest and the quickest that a clock can run, in parts per million beyond its own speed: a
/// hundredth, and a hundred times.
pub const DRIFTS_PPM: core::ops::RangeInclusive<i32> = -990_000..=99_000_000;

/// Ids in `clock_gettime(2)` of the clocks that all others that show a time are made of, in the order
/// of [`ClockRule::began_ns`]: REALTIME, MONOTONIC, MONOTONIC_RAW, BOOTTIME.
pub const BASES: [u32; 4] = [REALTIME, 1, 4, 7];

/// A step of a clock at a moment.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Jump {
    /// CLOCK_MONOTONIC nanoseconds (the true ones); 0 is no jump.
    pub at_ns: u64,
    /// Nanoseconds that the clocks are ahead from then on, beside all else, or behind if negative.
    pub by_ns: i64,
}

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
    /// Parts per million by which they are faster since [`Self::began_ns`], or slower if negative; one of
    /// [`DRIFTS_PPM`].
    pub drift_ppm: i32,
    /// What each of [`BASES`] showed, in nanoseconds, when the rule began.
    pub began_ns: [i64; 4],
    /// Steps, in any order.
    pub jumps: [Jump; MAX_JUMPS],
}

impl ClockRule {
    /// Whether it is about this clock. Ids of processes' and descriptors' clocks are negative, so
    /// larger than all here.
    #[inline(always)]
    pub const fn shifts(&self, clock: u32) -> bool {
        clock < u32::BITS && self.clocks & (1 << clock) != 0
    }

    /// Nanoseconds by which this clock is moved where it would show `shown_ns`, at `now` of
    /// CLOCK_MONOTONIC.
    ///
    /// By what it would show, and not by the moment in which somebody looks: two readings in a row keep
    /// their order, and until when to wait can be told by the time that is asked for.
    #[inline(always)]
    pub const fn shift_ns(&self, clock: u32, shown_ns: i64, now: u64) -> i64 {
        let mut shift = self.offset_ns;
        let mut i = 0;
        while i < MAX_JUMPS {
            let Jump { at_ns, by_ns } = self.jumps[i];
            if at_ns != 0 && now >= at_ns {
                shift = shift.saturating_add(by_ns);
            }
            i += 1;
        }
        if self.drift_ppm == 0 {
            return shift;
        }
        let began_ns = match clock {
            0 | 5 | 8 => self.began_ns[0],
            1 | 6 => self.began_ns[1],
            4 => self.began_ns[2],
            7 | 9 => self.began_ns[3],
            // A clock that counts the CPU's time begins with its process.
            _ => return shift,
        };
        shift.saturating_add(drifted(shown_ns.saturating_sub(began_ns), self.drift_ppm))
    }
}

/// What a clock that is faster by `ppm` gains in so many nanoseconds, towards zero. After two years it
/// gains no more.
#[inline(always)]
const fn drifted(elapsed_ns: i64, ppm: i32) -> i64 {
    const MAX_NS: u64 = 2 * 365 * 86_400 * SECOND;
    let mut elapsed = elapsed_ns.unsigned_abs();
    if elapsed > MAX_NS {
        elapsed = MAX_NS;
    }
    let rate = ppm.unsigned_abs() as u64;
    let gained = (elapsed / SECOND) * rate * 1_000 + (elapsed % SECOND) * rate / MILLION;
    if (elapsed_ns < 0) == (ppm < 0) {
        gained as i64
    } else {
        -(gained as i64)
    }
}

/// Nanoseconds by which a time of a moved clock is later than the same moment of the true one, where
/// the clock is moved by `shift_ns` when *it would show* that time, and runs faster by `drift_ppm`.
///
/// With `s(t)` for what the clock shows at `t`, and `s` straight: `s(t) = f` where
/// `t = f - (s(f) - f) / (1 + drift)`.
#[inline(always)]
pub const fn lead_ns(shift_ns: i64, drift_ppm: i64) -> i64 {
    /// Of several that slow a clock down together no more is taken than of one.
    const SLOWEST: i64 = 1_000_000 + *DRIFTS_PPM.start() as i64;
    if drift_ppm == 0 {
        return shift_ns;
    }
    let mut scale = (MILLION as i64).saturating_add(drift_ppm);
    if scale < SLOWEST {
        scale = SLOWEST;
    }
    let scale = scale as u64;
    let magnitude = shift_ns.unsigned_abs();
    let (whole, rest) = (magnitude / scale, magnitude % scale);
    if whole >= i64::MAX as u64 / MILLION {
        return if shift_ns < 0 { i64::MIN } else { i64::MAX };
    }
    let lead = (whole * MILLION + rest * MILLION / scale) as i64;
    if shift_ns < 0 { -lead } else { lead }
}

const SECOND: u64 = 1_000_000_000;
const MILLION: u64 = 1_000_000;

/// A time of seconds and `per_second`-ths of one in nanoseconds; the nearest, if it is more than 64
/// bits hold.
#[inline(always)]
pub const fn nanos_of(seconds: i64, parts: i64, per_second: u64) -> i64 {
    const MAX: i64 = i64::MAX / SECOND as i64 - 1;
    if seconds > MAX {
        return i64::MAX;
    }
    if seconds < -MAX {
        return i64::MIN;
    }
    (seconds * SECOND as i64).saturating_add(parts.wrapping_mul((SECOND / per_second) as i64))
}

/// A time of seconds and `per_second`-ths of one, as `timespec` and `timeval` have it, moved by
/// nanoseconds. What is less than a part is rounded towards the past.
///
/// Written without signed division, which BPF has not before its fourth version.
#[inline(always)]
pub const fn shifted(seconds: i64, parts: i64, per_second: u64, by_ns: i64) -> (i64, i64) {
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

const _: () = assert!(size_of::<ClockRule>() == 32 + 32 + 16 * MAX_JUMPS);

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

    const NOW: u64 = 1_000 * NANOS;

    /// Began a moment ago, at 500 s of each clock.
    fn rule(offset_ns: i64, drift_ppm: i32) -> ClockRule {
        ClockRule {
            offset_ns,
            drift_ppm,
            began_ns: [500 * NANOS as i64; 4],
            clocks: u32::MAX,
            ..ClockRule::default()
        }
    }

    #[test]
    fn a_clock_that_drifts_is_off_by_the_time_since_it_began() {
        let second = NANOS as i64;
        for (drift_ppm, shown, expected) in [
            (100_000, 510 * second, second),
            (100_000, 500 * second, 0),
            (-500_000, 510 * second, -5 * second),
            (50, 501 * second, 50_000),
            (99_000_000, 501 * second, 99 * second),
            // Before it began it was as far behind as it is ahead now.
            (100_000, 490 * second, -second),
            (1, 500 * second + 999_999, 0),
            (-1, 500 * second + 1_000_001, -1),
        ] {
            for clock in BASES {
                let shift = rule(7, drift_ppm).shift_ns(clock, shown, NOW);
                assert_eq!(shift, 7 + expected, "{drift_ppm} ppm at {shown} of {clock}");
            }
            assert_eq!(rule(7, drift_ppm).shift_ns(2, shown, NOW), 7, "CPU time");
        }
        let far = rule(0, 99_000_000).shift_ns(REALTIME, i64::MAX, NOW);
        assert!(far > i64::MAX / 2, "{far}");
    }

    #[test]
    fn a_jump_counts_from_its_moment_on() {
        let mut jumps = [Jump::default(); MAX_JUMPS];
        jumps[0] = Jump {
            at_ns: NOW,
            by_ns: 60,
        };
        jumps[5] = Jump {
            at_ns: NOW + 5,
            by_ns: -100,
        };
        let rule = ClockRule {
            jumps,
            ..rule(1, 0)
        };
        for (now, expected) in [
            (0, 1),
            (NOW - 1, 1),
            (NOW, 61),
            (NOW + 4, 61),
            (NOW + 5, -39),
        ] {
            assert_eq!(rule.shift_ns(REALTIME, 0, now), expected, "{now}");
        }
    }

    #[test]
    fn a_clock_never_goes_back_because_it_is_slow() {
        let slow = rule(0, *DRIFTS_PPM.start());
        let shows = |time: i64| time + slow.shift_ns(1, time, NOW);
        let start = 512 * NANOS as i64 + 123;
        for time in start..start + 1_000 {
            assert!(shows(time + 1) >= shows(time), "at {time}");
        }
    }

    #[test]
    fn a_moment_of_a_moved_clock_is_found_on_the_true_one() {
        let second = NANOS as i64;
        for drift_ppm in [
            -990_000, -500_000, -1, 0, 50, 100_000, 1_000_000, 99_000_000,
        ] {
            for offset in [0, 3_600 * second, -3_600 * second, 123_456_789] {
                let rule = rule(offset, drift_ppm);
                for asked in [500 * second, 505 * second + 17, 9_000 * second] {
                    let shift = rule.shift_ns(1, asked, NOW);
                    let moment = asked - lead_ns(shift, i64::from(drift_ppm));
                    let shown = moment + rule.shift_ns(1, moment, NOW);
                    // A nanosecond of the true clock is up to a hundred of the moved one.
                    let off = (shown - asked).abs();
                    assert!(off <= 101, "{drift_ppm} ppm, {offset}: {asked} is {shown}");
                }
            }
        }
        assert_eq!(lead_ns(i64::MAX, -990_000), i64::MAX);
        assert_eq!(lead_ns(i64::MIN, -990_000), i64::MIN);
        // Two that would stop it together.
        assert_eq!(lead_ns(10, -2_000_000), 1_000);
    }

    #[test]
    fn nanoseconds_of_a_time_end_where_64_bits_end() {
        for (seconds, parts, per_second, expected) in [
            (1, 5, NANOS, 1_000_000_005),
            (1, 5, MICROS, 1_000_005_000),
            (-1, 0, NANOS, -1_000_000_000),
            (i64::MAX, 0, NANOS, i64::MAX),
            (i64::MIN, 0, NANOS, i64::MIN),
        ] {
            assert_eq!(nanos_of(seconds, parts, per_second), expected);
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

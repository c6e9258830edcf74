//! Waits until a time: what a program whose clocks are moved asks of the kernel, whose clocks are not.

use bytemuck::{Pod, Zeroable};

use crate::clock::shifted;

/// For how long the programs have something to finish when the last rule is gone: from its
/// interruption until a thread is back in the kernel, from lending until the memory is as it was.
pub const UNFINISHED_NS: u64 = 10_000_000_000;

/// A wait of a thread that was moved, or was not, although there are rules for its clock: asked for
/// again after an interruption, it is moved as it was before, whatever the rules are by then.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Wait {
    /// Where the deadline is in the program's memory.
    pub at: u64,
    /// The deadline as the program has it: seconds and nanoseconds.
    pub deadline: [i64; 2],
    /// Nanoseconds that its clock is ahead.
    pub by_ns: i64,
    /// Which clock, an id of `clock_gettime(2)`.
    pub clock: u32,
    /// 1 from an interruption until it is asked for again.
    pub interrupted: u32,
}

impl Wait {
    /// Whether this is the same wait, and it was interrupted.
    #[inline(always)]
    pub const fn continues(&self, at: u64, deadline: [i64; 2], clock: u32) -> bool {
        self.interrupted != 0
            && self.at == at
            && self.clock == clock
            && self.deadline[0] == deadline[0]
            && self.deadline[1] == deadline[1]
    }
}

/// Where a program has a deadline.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Place {
    /// Its process (tgid).
    pub process: u64,
    /// Address in its memory.
    pub at: u64,
}

/// A deadline in a program's memory while it is another: from before the kernel reads it until after.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Lent {
    /// What the program has there: seconds and nanoseconds.
    pub original: [i64; 2],
    /// What the kernel is to read.
    pub moved: [i64; 2],
    /// CLOCK_MONOTONIC nanoseconds when the first of them came.
    pub since_ns: u64,
    /// How many threads are in the midst of it; the last one puts back what was there. None: it is
    /// being filled, or put back, by one thread.
    pub holders: u64,
}

const SECOND: i64 = 1_000_000_000;

/// What a deadline, seconds and nanoseconds, of a clock that is `by_ns` ahead is on the kernel's
/// clock. One that is over before the kernel's clock began becomes its first nanosecond. `None` for
/// what stays as it is: 0, which disarms a timer; what the kernel refuses; and what is too far away to
/// be written, which is for ever on either clock.
#[inline(always)]
pub const fn true_deadline(deadline: [i64; 2], by_ns: i64) -> Option<[i64; 2]> {
    let [seconds, nanos] = deadline;
    if nanos < 0 || nanos >= SECOND || (seconds == 0 && nanos == 0) {
        return None;
    }
    let back = by_ns.saturating_neg();
    let (moved, nanos) = shifted(seconds, nanos, SECOND as u64, back);
    if back >= 0 && moved < seconds {
        return None;
    }
    // The other way round a wrap is one to the far future.
    if moved < 0 || (moved == 0 && nanos == 0) || (back < 0 && moved > seconds) {
        return Some([0, 1]);
    }
    Some([moved, nanos])
}

const _: () =
    assert!(size_of::<Wait>() == 40 && size_of::<Lent>() == 48 && size_of::<Place>() == 16);

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_NS: i64 = 3_600 * SECOND;

    #[test]
    fn a_deadline_goes_back_by_what_the_clock_is_ahead() {
        for (deadline, by_ns, expected) in [
            ([3_601, 5], HOUR_NS, Some([1, 5])),
            ([1, 5], -HOUR_NS, Some([3_601, 5])),
            ([10, 0], 1, Some([9, 999_999_999])),
            ([10, 999_999_999], -1, Some([11, 0])),
            // Over before the clock began, also on a clock that shows less than zero.
            ([3_600, 0], HOUR_NS, Some([0, 1])),
            ([5, 0], HOUR_NS, Some([0, 1])),
            ([-5, 0], -SECOND, Some([0, 1])),
            ([-5, 0], -10 * SECOND, Some([5, 0])),
            // For ever.
            ([i64::MAX, 0], -HOUR_NS, None),
            ([i64::MAX, 0], HOUR_NS, Some([i64::MAX - 3_600, 0])),
            ([i64::MIN, 0], HOUR_NS, Some([0, 1])),
            ([0, 0], -HOUR_NS, None),
            // Refused by the kernel.
            ([5, SECOND], HOUR_NS, None),
            ([5, -1], HOUR_NS, None),
        ] {
            let moved = true_deadline(deadline, by_ns);
            assert_eq!(moved, expected, "{deadline:?} by {by_ns}");
        }
    }

    #[test]
    fn only_the_same_wait_goes_on_after_an_interruption() {
        let wait = Wait {
            at: 8,
            deadline: [5, 6],
            by_ns: 7,
            clock: 1,
            interrupted: 1,
        };
        assert!(wait.continues(8, [5, 6], 1));
        assert!(!wait.continues(9, [5, 6], 1));
        assert!(!wait.continues(8, [5, 7], 1));
        assert!(!wait.continues(8, [6, 6], 1));
        assert!(!wait.continues(8, [5, 6], 0));
        let undisturbed = Wait {
            interrupted: 0,
            ..wait
        };
        assert!(!undisturbed.continues(8, [5, 6], 1));
    }
}

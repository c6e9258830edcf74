//! `COUNTERS`: what the kernel did, per rule and per CPU.

use bytemuck::{Pod, Zeroable};

/// One CPU's part of a rule's counters. All of them only ever grow while the rule lives; the
/// agent zeroes them before it hands out a rule id again.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Counters {
    /// Packets (calls, for other families) that the rule applies to, before sampling.
    pub matched: u64,
    /// Those that the fault was done to.
    pub injected: u64,
    /// Those that it would have been done to, in mode Observe.
    pub would_inject: u64,
    /// Those of `injected` that were dropped because the queue of a shaper was full.
    pub overflowed: u64,
    /// Those of `injected` that were dropped because too much was waiting on the device already.
    pub over_budget: u64,
    /// Those where a BPF helper failed; the packet went its way without the fault.
    pub failed: u64,
    /// CLOCK_MONOTONIC nanoseconds of the first injection on this CPU; 0 before it.
    pub first_ns: u64,
    /// CLOCK_MONOTONIC nanoseconds of the last injection on this CPU; 0 before it.
    pub last_ns: u64,
}

impl Counters {
    /// Adds another CPU's part.
    pub fn merge(&mut self, other: &Self) {
        self.matched += other.matched;
        self.injected += other.injected;
        self.would_inject += other.would_inject;
        self.overflowed += other.overflowed;
        self.over_budget += other.over_budget;
        self.failed += other.failed;
        self.last_ns = self.last_ns.max(other.last_ns);
        self.first_ns = match (self.first_ns, other.first_ns) {
            (0, first) | (first, 0) => first,
            (a, b) => a.min(b),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merge_sums_counts_and_keeps_the_earliest_first_and_the_latest_last() {
        let idle = Counters::default();
        let a = Counters {
            matched: 5,
            injected: 2,
            overflowed: 1,
            over_budget: 1,
            first_ns: 70,
            last_ns: 90,
            ..idle
        };
        let b = Counters {
            matched: 1,
            injected: 1,
            first_ns: 60,
            last_ns: 60,
            ..idle
        };
        let mut sum = idle;
        for part in [&a, &idle, &b] {
            sum.merge(part);
        }
        assert_eq!(
            sum,
            Counters {
                matched: 6,
                injected: 3,
                overflowed: 1,
                over_budget: 1,
                first_ns: 60,
                last_ns: 90,
                ..idle
            }
        );
    }
}

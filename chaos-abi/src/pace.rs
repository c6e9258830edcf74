//! Shaping to a rate: when a packet may leave, as arithmetic on one word.
//!
//! The word is a clock that runs ahead of time by what is still to be sent (the virtual scheduling
//! algorithm of ITU-T I.371, annex A): all CPUs can move it with one compare-exchange. All times are
//! CLOCK_MONOTONIC nanoseconds.

use bytemuck::{Pod, Zeroable};

const NS_PER_SECOND: u64 = 1_000_000_000;

/// A bucket that fills with tokens at a rate, and a queue of packets that wait for tokens.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Bucket {
    /// Rate; 0 is no bucket: everything passes.
    pub bytes_per_second: u64,
    /// What the bucket holds, as the time that it takes to fill.
    pub burst_ns: u64,
    /// What the queue holds, as the time that it takes to leave.
    pub limit_ns: u64,
}

impl Bucket {
    /// From bytes a second and bytes. `longest_ns` bounds what waits in the queue, however slow it
    /// is.
    pub const fn new(rate: u64, burst: u64, limit: u64, longest_ns: u64) -> Self {
        let limit_ns = time_of(limit, rate);
        Self {
            bytes_per_second: rate,
            burst_ns: time_of(burst, rate),
            limit_ns: if limit_ns < longest_ns {
                limit_ns
            } else {
                longest_ns
            },
        }
    }

    /// How long a packet takes. No product of 128 bits, which BPF has not: for up to 16 GiB.
    #[inline(always)]
    pub const fn cost_ns(&self, bytes: u64) -> u64 {
        match bytes
            .wrapping_mul(NS_PER_SECOND)
            .checked_div(self.bytes_per_second)
        {
            Some(time) => time,
            None => 0,
        }
    }

    /// The new clock after a packet of `cost_ns` ([`Self::cost_ns`]) that comes at `at`; it leaves
    /// at that time, or at once if that has passed. `None`: others wait and the queue is full.
    #[inline(always)]
    pub const fn take(&self, clock: u64, at: u64, cost_ns: u64) -> Option<u64> {
        let oldest = at.saturating_sub(self.burst_ns);
        let from = if clock > oldest { clock } else { oldest };
        let next = from.saturating_add(cost_ns);
        if clock > at && next.saturating_sub(at) > self.limit_ns {
            return None;
        }
        Some(next)
    }
}

const fn time_of(bytes: u64, rate: u64) -> u64 {
    match (bytes as u128 * NS_PER_SECOND as u128).checked_div(rate as u128) {
        Some(time) if time < u64::MAX as u128 => time as u64,
        Some(_) => u64::MAX,
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// Packets of 1000 bytes at these milliseconds: when each leaves.
    fn leave(bucket: &Bucket, at: &[u64]) -> [Option<u64>; 8] {
        let mut clock = 0;
        let mut left = [None; 8];
        for (place, at) in left.iter_mut().zip(at) {
            let at = 1_000_000 * MS + at * MS;
            if let Some(next) = bucket.take(clock, at, bucket.cost_ns(1000)) {
                clock = next;
                *place = Some((next.max(at) - 1_000_000 * MS) / MS);
            }
        }
        left
    }

    #[test]
    fn a_line_sends_one_packet_after_the_other() {
        // 100 packets a second
        let line = Bucket::new(100_000, 0, 1_000_000, u64::MAX);
        let left = leave(&line, &[0, 0, 0, 100, 105]);
        assert_eq!(left[..5], [10, 20, 30, 110, 120].map(Some));
    }

    #[test]
    fn a_bucket_lets_its_bytes_pass_at_once() {
        let bucket = Bucket::new(100_000, 3_000, 1_000_000, u64::MAX);
        let left = leave(&bucket, &[0, 0, 0, 0, 0, 25, 500, 500]);
        assert_eq!(left, [0, 0, 0, 10, 20, 30, 500, 500].map(Some));
    }

    #[test]
    fn what_does_not_fit_into_the_queue_is_dropped_but_never_the_only_packet() {
        let line = Bucket::new(100_000, 0, 2_500, u64::MAX);
        let left = leave(&line, &[0, 0, 0, 0, 11]);
        assert_eq!(left[..5], [Some(10), Some(20), None, None, Some(30)]);
        let tiny = Bucket::new(100_000, 0, 1, u64::MAX);
        assert_eq!(leave(&tiny, &[0, 0, 10])[..3], [Some(10), None, Some(20)]);
    }

    #[test]
    fn no_queue_is_longer_than_the_longest_wait() {
        assert_eq!(Bucket::new(1, 0, u64::MAX, 5 * MS).limit_ns, 5 * MS);
        assert_eq!(Bucket::default().cost_ns(1_500), 0);
    }
}

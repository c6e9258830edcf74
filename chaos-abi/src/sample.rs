//! Which of the matching packets are hit: pure arithmetic on a seed and a sequence number.
//!
//! The n-th packet of a rule gets the same answer in the kernel, in a test and on the next run:
//! a count that the kernel reports can be computed beforehand.

use bytemuck::{Pod, Zeroable};

/// A probability as the kernel compares it: an event with probability `p` happens when
/// `draw < p * 2^32`. [`ALWAYS`] is more than any draw.
pub type Threshold = u64;

/// The threshold of probability 1.
pub const ALWAYS: Threshold = 1 << 32;

/// Streams keep the draws of a rule's effects independent of each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Stream {
    /// `spec.faultline.sample.percent`.
    Sample = 1,
    /// `loss`.
    Loss = 2,
    /// How far a packet's delay is from the latency.
    Jitter = 3,
    /// `delay.reorder`.
    Reorder = 4,
    /// `duplicate`.
    Duplicate = 5,
    /// `corrupt`.
    Corrupt = 6,
    /// Which bit of a corrupted packet is flipped.
    CorruptedBit = 7,
}

/// Beside its own stream of draws, each effect has one that says which packets repeat the draw of
/// the packet before them; see [`source`].
const REPEATS: u64 = 64;

/// What a stream's draws are made from, see [`number`].
#[inline(always)]
pub const fn key(seed: u64, stream: Stream) -> u64 {
    key_of(seed, stream as u64)
}

/// What [`source`] draws from.
#[inline(always)]
pub const fn repeat_key(seed: u64, stream: Stream) -> u64 {
    key_of(seed, stream as u64 + REPEATS)
}

#[inline(always)]
const fn key_of(seed: u64, stream: u64) -> u64 {
    seed ^ stream.wrapping_mul(0xd1b5_4a32_d192_ed03)
}

/// The `n`-th uniform 32-bit number of a key (the finalizer of splitmix64, Steele, Lea and Flood,
/// OOPSLA 2014).
#[inline(always)]
pub const fn number(key: u64, n: u64) -> u32 {
    let mut z = key.wrapping_add(n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 32) as u32
}

/// A uniform 32-bit number for the `n`-th packet of a rule with `seed`.
#[inline(always)]
pub const fn draw(seed: u64, stream: Stream, n: u64) -> u32 {
    number(key(seed, stream), n)
}

/// Whether the `n`-th packet is hit by an event of probability `threshold`.
#[inline(always)]
pub const fn hit(seed: u64, stream: Stream, n: u64, threshold: Threshold) -> bool {
    (draw(seed, stream, n) as u64) < threshold
}

/// The most packets that [`source`] looks back: bounds a loop in the kernel. At a correlation of
/// 99 % one packet in 20 000 has more before it that repeat.
pub const MAX_RUN: u64 = 1_000;

/// The packet whose draw the `n`-th packet has: with probability `correlation` a packet repeats the
/// draw of the one before it, else its draw is its own. So each draw is uniform, as without
/// correlation, and neighbours correlate by exactly `correlation`.
#[inline(always)]
pub const fn source(repeat_key: u64, n: u64, correlation: Threshold) -> u64 {
    if correlation >= ALWAYS {
        return 0;
    }
    let mut back = 0;
    while back < MAX_RUN {
        let m = n.wrapping_sub(back);
        if m == 0 || number(repeat_key, m) as u64 >= correlation {
            return m;
        }
        back += 1;
    }
    n.wrapping_sub(MAX_RUN)
}

/// [`draw`] where neighbours correlate, see [`source`].
pub const fn correlated(seed: u64, stream: Stream, n: u64, correlation: Threshold) -> u32 {
    draw(
        seed,
        stream,
        source(repeat_key(seed, stream), n, correlation),
    )
}

/// How often something is done to a packet, and how much that depends on the packet before.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Chance {
    /// Its probability; 0 is never.
    pub threshold: Threshold,
    /// Its correlation, see [`source`].
    pub correlation: Threshold,
}

impl Chance {
    /// Both in parts per million.
    pub const fn of_ppm(probability: u32, correlation: u32) -> Self {
        Self {
            threshold: threshold_ppm(probability),
            correlation: threshold_ppm(correlation),
        }
    }

    /// Whether it happens to some and not to others.
    #[inline(always)]
    pub const fn is_drawn(&self) -> bool {
        self.threshold != 0 && self.threshold < ALWAYS
    }

    /// Whether it happens to the `n`-th packet of a rule with `seed`.
    pub const fn hits(&self, seed: u64, stream: Stream, n: u64) -> bool {
        (correlated(seed, stream, n, self.correlation) as u64) < self.threshold
    }
}

/// The threshold of a probability in parts per million (0 to 1 000 000; more counts as 1).
pub const fn threshold_ppm(ppm: u32) -> Threshold {
    if ppm >= 1_000_000 {
        ALWAYS
    } else {
        ppm as u64 * ALWAYS / 1_000_000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_cover_never_to_always() {
        assert_eq!(threshold_ppm(0), 0);
        assert_eq!(threshold_ppm(500_000), 1 << 31);
        assert_eq!(threshold_ppm(1_000_000), ALWAYS);
        assert!((0..1000).all(|n| hit(7, Stream::Loss, n, ALWAYS)));
        assert!(!(0..1000).any(|n| hit(7, Stream::Loss, n, 0)));
    }

    #[test]
    fn a_share_of_the_draws_is_hit_whatever_the_seed() {
        for seed in [0, 1, 42, u64::MAX] {
            let hits = (0..100_000)
                .filter(|&n| hit(seed, Stream::Loss, n, threshold_ppm(300_000)))
                .count();
            // 10 standard deviations of a binomial draw
            assert!(hits.abs_diff(30_000) < 1_450, "seed {seed}: {hits}");
        }
    }

    #[test]
    fn streams_of_one_seed_differ() {
        let same = (0..10_000)
            .filter(|&n| draw(1, Stream::Sample, n) == draw(1, Stream::Loss, n))
            .count();
        assert_eq!(same, 0);
    }

    #[test]
    fn a_correlation_changes_neighbours_and_not_the_share() {
        const N: u64 = 200_000;
        for (ppm, correlation) in [(300_000, 0), (300_000, 250_000), (50_000, 900_000)] {
            let chance = Chance::of_ppm(ppm, correlation);
            let hit = |n| f64::from(u8::from(chance.hits(11, Stream::Loss, n)));
            let share = (0..N).map(hit).sum::<f64>() / N as f64;
            let deviation = |n| hit(n) - share;
            let together = (1..N).map(|n| deviation(n) * deviation(n - 1)).sum::<f64>();
            let correlated = together / N as f64 / (share * (1.0 - share));
            // Some 5 standard deviations; with long runs there are fewer draws.
            assert!(
                (share - f64::from(ppm) / 1e6).abs() < 0.015,
                "{ppm}: {share}"
            );
            let wanted = f64::from(correlation) / 1e6;
            assert!((correlated - wanted).abs() < 0.02, "{wanted}: {correlated}");
        }
    }

    #[test]
    fn the_ends_of_a_correlation_are_one_draw_for_all_and_one_for_each() {
        for n in [0, 1, 999, 5_000, u64::MAX] {
            let all = correlated(3, Stream::Jitter, n, ALWAYS);
            assert_eq!(all, draw(3, Stream::Jitter, 0));
            assert_eq!(
                correlated(3, Stream::Jitter, n, 0),
                draw(3, Stream::Jitter, n)
            );
        }
        // The bound of the loop.
        let far = source(repeat_key(3, Stream::Jitter), 50_000, ALWAYS - 1);
        assert_eq!(far, 49_000);
    }
}

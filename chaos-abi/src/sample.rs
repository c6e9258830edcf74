//! Which of the matching packets are hit: pure arithmetic on a seed and a sequence number.
//!
//! The n-th packet of a rule gets the same answer in the kernel, in a test and on the next run:
//! a count that the kernel reports can be computed beforehand.

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
}

/// A uniform 32-bit number for the `n`-th packet of a rule with `seed` (the finalizer of
/// splitmix64, Steele, Lea and Flood, OOPSLA 2014).
#[inline(always)]
pub const fn draw(seed: u64, stream: Stream, n: u64) -> u32 {
    let mut z = seed ^ (stream as u64).wrapping_mul(0xd1b5_4a32_d192_ed03);
    z = z.wrapping_add(n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 32) as u32
}

/// Whether the `n`-th packet is hit by an event of probability `threshold`.
#[inline(always)]
pub const fn hit(seed: u64, stream: Stream, n: u64, threshold: Threshold) -> bool {
    (draw(seed, stream, n) as u64) < threshold
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
}

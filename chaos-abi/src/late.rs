//! How late a detour is at least, as arithmetic on one word.
//!
//! A packet leaves fq at its time and then still has a way to go: the other device and our programs. That
//! takes nearly the same for all of them, so packets are let go earlier by what all but the quickest took
//! lately, one in seventeen: what was asked for is when they go on. The quickest are early by what they are quicker,
//! at most by [`MOST_NS`]. All times are nanoseconds.

/// No more is made up for: on a machine that is busy for a while all packets are late. For that way an emulated machine
/// takes 0.2 to 0.7 ms, a real one some microseconds.
pub const MOST_NS: u64 = 500_000;

/// After so many packets the least of them is what is known; from then on each moves it a little.
const FIRST: u64 = 32;

/// What a packet that took longer than is known adds to it, and what one takes away that took less. Small, so
/// that packets behind each other wait alike.
const LONGER: u64 = 128;
const LESS: u64 = 16 * LONGER;

/// Of a word the lowest so many count packets, the others are what is known.
const COUNTED: u32 = 16;

/// The word after a packet that came out `late_ns` after its time.
#[inline(always)]
pub const fn seen(word: u64, late_ns: u64) -> u64 {
    let (known, counted) = parts(word);
    let late = lesser(late_ns, 2 * MOST_NS);
    if counted == 0 {
        late << COUNTED | 1
    } else if counted < FIRST {
        lesser(late, known) << COUNTED | (counted + 1)
    } else if late < known {
        known.saturating_sub(LESS) << COUNTED | counted
    } else {
        lesser(known + LONGER, late) << COUNTED | counted
    }
}

/// How much earlier a packet is to be let go; 0 for a word that has seen too few.
#[inline(always)]
pub const fn known_ns(word: u64) -> u64 {
    let (known, counted) = parts(word);
    if counted < FIRST {
        0
    } else {
        lesser(known, MOST_NS)
    }
}

/// What is known, and how many packets were counted.
#[inline(always)]
const fn parts(word: u64) -> (u64, u64) {
    (word >> COUNTED, word & ((1 << COUNTED) - 1))
}

#[inline(always)]
const fn lesser(a: u64, b: u64) -> u64 {
    if a < b { a } else { b }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(word: u64, late: impl IntoIterator<Item = u64>) -> u64 {
        late.into_iter().fold(word, seen)
    }

    #[test]
    fn the_least_of_the_first_packets_is_known_when_there_are_enough() {
        let word = after(0, (0..FIRST - 1).map(|n| 90_000 - n));
        assert_eq!(known_ns(word), 0, "too few");
        let word = after(word, [100_000]);
        assert_eq!(known_ns(word), 90_000 - (FIRST - 2));
    }

    #[test]
    fn what_is_known_moves_little_by_little_to_what_one_in_seventeen_takes_less_than() {
        let word = after(0, (0..FIRST).map(|_| 10_000));
        // Even between 100 and 200 microseconds, in an order without a pattern.
        let spread = (0..100_000).map(|n: u64| 100_000 + n * 61_803 % 100_000);
        let known = known_ns(after(word, spread));
        assert!((104_000..108_000).contains(&known), "{known}");
        let at_once = known_ns(seen(after(word, [20_000]), 20_000)) - known_ns(word);
        assert!(at_once <= 2 * LONGER, "{at_once}");
    }

    #[test]
    fn what_is_made_up_for_is_bounded() {
        let word = after(0, (0..2 * FIRST).map(|_| u64::MAX));
        assert_eq!(known_ns(word), MOST_NS);
        assert_eq!(known_ns(after(word, (0..1_000).map(|_| 0))), 0);
    }
}

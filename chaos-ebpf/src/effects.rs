//! What a rule of `tc_egress` does to a packet that it applies to, in the order of netem: loss,
//! duplication, corruption, reordering, delay, and then the shapers.
//!
//! Not here: carrying it out, which is the program's. Functions with a name that is exported land in
//! every object; without a call nothing of them is loaded.

use chaos_abi::network::{BUCKETS, Rule, jittered, release_at};
use chaos_abi::sample::{Chance, Stream, key, number, repeat_key, source};
use chaos_abi::verdict::Verdict;

use crate::network::rule;
use crate::{Draw, compare_exchange, fetch_add, state};

/// What a rule says of a packet.
pub enum Said {
    /// Nothing is done to it.
    Nothing,
    /// All of this, with what earlier rules said.
    Done(Verdict),
    /// It is dropped: a shaper's queue is full.
    Overflow,
}

/// How many times the clock of a shaper is tried to be moved while other CPUs move it, too. After
/// that the packet goes at its time and is not counted against the rate.
const TRIES: u32 = 8;

/// What the rule says, beside what earlier rules `said`. `bytes` is the length of the packet.
#[inline(always)]
pub fn consider(id: u32, rule: &Rule, draw: &Draw, said: Verdict, now: u64, bytes: u32) -> Said {
    if hits(draw, Stream::Loss, &rule.loss) {
        return Said::Done(said.dropped());
    }
    let mut verdict = said;
    let mut packets = 1;
    if hits(draw, Stream::Duplicate, &rule.duplicate) {
        verdict = verdict.duplicated();
        packets = 2;
    }
    if hits(draw, Stream::Corrupt, &rule.corrupt) {
        verdict = verdict.corrupted(number(key(draw.seed, Stream::CorruptedBit), draw.n));
    }
    let arrived = now.saturating_add(said.wait_ns());
    let mut leaves = arrived;
    let mut overtakes = false;
    if rule.delay_ns != 0 {
        overtakes = overtakes_others(id, rule, draw);
        if !overtakes {
            leaves = release_at(arrived, delay(rule, draw), rule.deadline_ns);
        }
    }
    if rule.buckets[0].bytes_per_second != 0 || rule.buckets[1].bytes_per_second != 0 {
        // Copies take their share of the rate.
        leaves = shape(id, leaves, u64::from(bytes) * packets);
        if leaves == OVERFLOW {
            return Said::Overflow;
        }
    }
    // Nothing waits past the deadline of the rule that makes it wait.
    let wait = release_at(leaves, 0, rule.deadline_ns).saturating_sub(arrived);
    if wait != 0 {
        verdict = verdict.waiting(said.wait_ns() + wait);
    }
    if verdict == said && !overtakes {
        return Said::Nothing;
    }
    Said::Done(verdict)
}

#[inline(always)]
fn hits(draw: &Draw, stream: Stream, chance: &Chance) -> bool {
    chance.threshold != 0 && u64::from(drawn(draw, stream, chance.correlation)) < chance.threshold
}

/// [`chaos_abi::sample::correlated`], where the loop is a function of its own.
#[inline(always)]
fn drawn(draw: &Draw, stream: Stream, correlation: u64) -> u32 {
    let mut n = draw.n;
    if correlation != 0 {
        n = repeated(repeat_key(draw.seed, stream), n, correlation);
    }
    number(key(draw.seed, stream), n)
}

/// [`source`] for the verifier: a global function is verified once, on its own, and this has a loop.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn repeated(repeat_key: u64, n: u64, correlation: u64) -> u64 {
    source(repeat_key, n, correlation)
}

#[inline(always)]
fn delay(rule: &Rule, draw: &Draw) -> u64 {
    if rule.jitter_ns == 0 {
        return rule.delay_ns;
    }
    let draw = drawn(draw, Stream::Jitter, rule.jitter_correlation);
    jittered(rule.delay_ns, rule.jitter_ns, draw)
}

/// Whether it is sent at once, before others that are delayed.
#[inline(always)]
fn overtakes_others(id: u32, rule: &Rule, draw: &Draw) -> bool {
    if rule.reorder.threshold == 0 {
        return false;
    }
    if rule.reorder_gap <= 1 {
        return hits(draw, Stream::Reorder, &rule.reorder);
    }
    let Some(state) = state(id) else {
        return false;
    };
    // SAFETY: a place inside of the element that `state` gives.
    let in_order = unsafe { &raw mut (*state).in_order };
    // SAFETY: aligned, and changed as `state` says.
    let before = unsafe { fetch_add(in_order, 1) };
    if before < rule.reorder_gap - 1 || !hits(draw, Stream::Reorder, &rule.reorder) {
        return false;
    }
    // What other CPUs have counted meanwhile begins the next gap late.
    // SAFETY: as above.
    unsafe { in_order.write_volatile(0) };
    true
}

const OVERFLOW: u64 = u64::MAX;

/// When a packet that comes to the shapers at `at` leaves the last of them; [`OVERFLOW`] if a queue
/// is full.
#[inline(always)]
fn shape(id: u32, at: u64, bytes: u64) -> u64 {
    let mut at = at;
    for index in 0..BUCKETS as u32 {
        at = pass_bucket(id, index, at, bytes);
        if at == OVERFLOW {
            break;
        }
    }
    at
}

/// The same of one shaper. A global function, for the verifier.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn pass_bucket(id: u32, index: u32, at: u64, bytes: u64) -> u64 {
    let index = index as usize;
    let (Some(rule), Some(state)) = (rule(id), state(id)) else {
        return at;
    };
    let Some(bucket) = rule.buckets.get(index) else {
        return at;
    };
    if bucket.bytes_per_second == 0 {
        return at;
    }
    let cost = bucket.cost_ns(bytes);
    // SAFETY: a place inside of the element that `state` gives.
    let clocks = unsafe { &raw mut (*state).clocks };
    // SAFETY: `index` is below BUCKETS, as there is such a bucket.
    let word = unsafe { clocks.cast::<u64>().add(index) };
    // SAFETY: aligned; a torn read is impossible and a stale one is found by the exchange.
    let mut clock = unsafe { word.read_volatile() };
    let mut leaves = at;
    for _ in 0..TRIES {
        let Some(next) = bucket.take(clock, at, cost) else {
            return OVERFLOW;
        };
        leaves = next.max(at);
        // SAFETY: aligned, and changed as `state` says.
        let found = unsafe { compare_exchange(word, clock, next) };
        if found == clock {
            break;
        }
        clock = found;
    }
    leaves
}

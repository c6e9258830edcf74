//! What all kernel programs share: is anything armed, which rules apply, which packets are hit,
//! what is counted. The programs themselves are in `src/bin/`, one object each; what is done to
//! packets that are not just dropped is in `effects.rs` and `detour.rs`.
//!
//! Maps that are defined here land in every object; all of them are pinned by name, so that the
//! objects of a node share them.
#![cfg_attr(target_arch = "bpf", no_std)]
// The BPF target of rustc says that it has no read-modify-write atomics, though BPF has them
// (since Linux 5.12, `BPF_ATOMIC | BPF_FETCH`); the intrinsic is the only way to them.
#![cfg_attr(target_arch = "bpf", feature(core_intrinsics, asm_experimental_arch))]
#![cfg_attr(target_arch = "bpf", expect(internal_features, reason = "see above"))]

pub mod detour;
pub mod effects;
pub mod generation;
pub mod hook;
pub mod kernel;
pub mod network;
pub mod peers;
pub mod receiver;
pub mod tag;

use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, PerCpuArray};
use chaos_abi::counters::Counters;
use chaos_abi::network::{Rule, State, flag};
use chaos_abi::sample::{self, Stream};
use chaos_abi::{MAX_RULES, control};

/// Words of the node, see [`chaos_abi::control`].
#[map]
static CONTROL: Array<u32> = Array::pinned(control::WORDS, 0);

/// What every rule did, per CPU.
#[map]
static COUNTERS: PerCpuArray<Counters> = PerCpuArray::pinned(MAX_RULES, 0);

/// What the packets of a rule change, over all CPUs; only rules that draw or shape use it.
#[map]
static STATE: Array<State> = Array::pinned(MAX_RULES, 0);

/// Whether the node has any network rule. Not a map that is asked by key, but a global, which the loader
/// puts into the pinned `ARMED`: every packet of the node reads it, and this is a single load.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".bss.armed")]
static mut ARMED: u64 = 0;

/// Whether any network rule of the node may act, but for [`halted`], which who goes on asks.
#[inline(always)]
pub fn armed() -> bool {
    let armed = &raw const ARMED;
    // SAFETY: an aligned word that only user space writes, at any time.
    unsafe { armed.read_volatile() != 0 }
}

/// Whether any rule that this word of `CONTROL` counts may act.
#[inline(always)]
pub fn is_on(rules: u32) -> bool {
    control(rules).is_some_and(|count| count != 0) && !halted()
}

/// Whether no rule of the node may act, after `chaos-agent panic`.
#[inline(always)]
pub fn halted() -> bool {
    control(control::HALTED).is_some_and(|halted| halted != 0)
}

#[inline(always)]
pub(crate) fn control(word: u32) -> Option<u32> {
    CONTROL.get(word).copied()
}

/// CLOCK_MONOTONIC in nanoseconds, the clock of deadlines and of fq.
#[inline(always)]
pub fn now_ns() -> u64 {
    // SAFETY: the helper takes no arguments and only reads the clock.
    unsafe { bpf_ktime_get_ns() }
}

/// What happened to a packet that a rule applies to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It matched and was not drawn.
    Passed,
    /// The fault was done to it.
    Injected,
    /// The fault was done to it: it was dropped because a queue was full.
    Overflowed,
    /// It would have been done to it.
    WouldInject,
    /// A helper failed and the fault was not done.
    Failed,
}

/// Counts one packet of rule `id`.
#[inline(always)]
pub fn count(id: u32, outcome: Outcome, now: u64) {
    let Some(counters) = COUNTERS.get_ptr_mut(id) else {
        return;
    };
    // SAFETY: a pointer to this CPU's value, which the verifier has seen checked against null;
    // programs do not migrate while they run, and softirq nesting can at most lose a count.
    let counters = unsafe { &mut *counters };
    counters.matched += 1;
    match outcome {
        Outcome::Passed => {}
        Outcome::Injected | Outcome::Overflowed => {
            counters.injected += 1;
            counters.overflowed += u64::from(outcome == Outcome::Overflowed);
            if counters.first_ns == 0 {
                counters.first_ns = now;
            }
            counters.last_ns = now;
        }
        Outcome::WouldInject => counters.would_inject += 1,
        Outcome::Failed => counters.failed += 1,
    }
}

/// Corrects the count of a packet that [`Outcome::Injected`] was counted for: the helper that
/// should have done it failed.
#[inline(always)]
pub fn count_failed(id: u32) {
    let Some(counters) = COUNTERS.get_ptr_mut(id) else {
        return;
    };
    // SAFETY: as in `count`.
    let counters = unsafe { &mut *counters };
    counters.injected = counters.injected.saturating_sub(1);
    counters.failed += 1;
}

/// Tells of a packet that [`Outcome::Injected`] was counted for that it was dropped, because too
/// much was waiting already.
#[inline(always)]
pub fn count_over_budget(id: u32) {
    if let Some(counters) = COUNTERS.get_ptr_mut(id) {
        // SAFETY: as in `count`.
        unsafe { (*counters).over_budget += 1 };
    }
}

/// The state of rule `id`: a checked pointer into an array map. Its words are only changed
/// atomically here; user space writes while no rule refers to it.
#[inline(always)]
pub fn state(id: u32) -> Option<*mut State> {
    STATE.get_ptr_mut(id)
}

/// The draws for one matching packet.
pub struct Draw {
    /// Seed of the rule.
    pub seed: u64,
    /// Number of the packet.
    pub n: u64,
}

impl Draw {
    /// Takes the next number of rule `id`, if the rule draws at all: an atomic add on a word that
    /// all CPUs share is spared otherwise.
    #[inline(always)]
    pub fn next(id: u32, rule: &Rule) -> Self {
        let mut n = 0;
        if rule.flags & flag::DRAWS != 0
            && let Some(state) = state(id)
        {
            // SAFETY: a place inside of the element that `state` gives.
            let sequence = unsafe { &raw mut (*state).sequence };
            // SAFETY: aligned, and changed as `state` says.
            n = unsafe { fetch_add(sequence, 1) };
        }
        Self { seed: rule.seed, n }
    }

    /// Whether `spec.faultline.sample` lets the fault be done to this packet.
    #[inline(always)]
    pub fn sampled(&self, rule: &Rule) -> bool {
        (rule.sample_first == 0 || self.n < rule.sample_first)
            && (rule.sample_every <= 1 || self.n.is_multiple_of(rule.sample_every))
            && sample::hit(self.seed, Stream::Sample, self.n, rule.sample_threshold)
    }
}

/// Adds and returns what was there before.
///
/// # Safety
/// `word` is valid, aligned and only changed atomically by others.
#[inline(always)]
pub unsafe fn fetch_add(word: *mut u64, value: u64) -> u64 {
    // LLVM 22 selects an add without result for a relaxed one, even where the result is used.
    #[cfg(target_arch = "bpf")]
    // SAFETY: as the caller says.
    return unsafe {
        core::intrinsics::atomic_xadd::<u64, u64, { core::intrinsics::AtomicOrdering::SeqCst }>(
            word, value,
        )
    };
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: as the caller says.
    return unsafe { core::sync::atomic::AtomicU64::from_ptr(word) }
        .fetch_add(value, core::sync::atomic::Ordering::Relaxed);
}

/// Writes `new` if `old` is still there, and returns what was there.
///
/// # Safety
/// As for [`fetch_add`].
#[inline(always)]
pub unsafe fn compare_exchange(word: *mut u64, old: u64, new: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        use core::intrinsics::AtomicOrdering::SeqCst;
        // SAFETY: as the caller says.
        unsafe { core::intrinsics::atomic_cxchg::<u64, { SeqCst }, { SeqCst }>(word, old, new).0 }
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
        // SAFETY: as the caller says.
        unsafe { AtomicU64::from_ptr(word) }
            .compare_exchange(old, new, Relaxed, Relaxed)
            .unwrap_or_else(|found| found)
    }
}

/// Injected, or only counted in mode Observe.
#[inline(always)]
pub fn done(rule: &Rule) -> Outcome {
    if rule.flags & flag::OBSERVE != 0 {
        Outcome::WouldInject
    } else {
        Outcome::Injected
    }
}

/// Helpers that this program uses are GPL-only.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses a program that can come here.
    loop {}
}

//! Waits until a time. A program whose clock is ahead asks the kernel to wake it at a time of *its*
//! clock; the kernel has the right one. So the deadline in the program's memory is another while the
//! kernel reads it (`get_timespec64`), and what it was right after: no program sleeps with memory
//! that is not as it left it.
//!
//! Not here: clocks that are read, which are moved the other way.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::macros::{fentry, fexit, map};
use aya_ebpf::maps::{Array, HashMap, LruHashMap, ProgramArray};
use aya_ebpf::programs::{FEntryContext, FExitContext};
use chaos_abi::clock::{REALTIME, lead_ns, nanos_of};
use chaos_abi::control;
use chaos_abi::control::GENERATIONS;
use chaos_abi::wait::{Lent, Place, UNFINISHED_NS, Wait, true_deadline};
use chaos_ebpf::generation::go_on;
use chaos_ebpf::{compare_exchange, fetch_add, halted, is_on, now_ns};

use super::{
    ARG0, ARG1, Ask, ask_all, constant, could_not, kernel_field, read_user, task_and_registers,
    write_user,
};

/// Offset in `pt_regs` of the number of the system call, and of its other arguments; then the numbers
/// of system calls.
#[unsafe(no_mangle)]
pub(super) static CALL: u32 = 0;
#[unsafe(no_mangle)]
pub(super) static ARG2: u32 = 0;
#[unsafe(no_mangle)]
static ARG3: u32 = 0;
#[unsafe(no_mangle)]
static ARG4: u32 = 0;
#[unsafe(no_mangle)]
static ARG5: u32 = 0;
#[unsafe(no_mangle)]
static CLOCK_NANOSLEEP: u32 = 0;
#[unsafe(no_mangle)]
static FUTEX: u32 = 0;
#[unsafe(no_mangle)]
static FUTEX_WAIT: u32 = 0;
#[unsafe(no_mangle)]
static FUTEX_WAITV: u32 = 0;
#[unsafe(no_mangle)]
static MQ_TIMEDSEND: u32 = 0;
#[unsafe(no_mangle)]
static MQ_TIMEDRECEIVE: u32 = 0;

/// How many threads may wait at a time and be remembered for the case that they are interrupted.
const MAX_WAITS: u32 = 8_192;

/// How many threads may be in the midst of a call whose deadline is another at the moment.
const MAX_LENT: u32 = 4_096;

/// Thread -> its last wait that was moved.
#[map]
static CLOCK_WAITS: LruHashMap<u64, Wait> = LruHashMap::pinned(MAX_WAITS, 0);

/// Thread -> where a deadline of its memory is another for its sake.
#[map]
static CLOCK_HOLDERS: HashMap<u64, u64> = HashMap::pinned(MAX_LENT, 0);

/// What is not as it was in programs' memory. By place, as threads may wait by one `timespec`.
#[map]
static CLOCK_LENT: HashMap<Place, Lent> = HashMap::pinned(MAX_LENT, 0);

/// CLOCK_MONOTONIC nanoseconds until which these programs have something to finish, although there
/// may be no rule any more.
#[map]
static CLOCK_UNFINISHED: Array<u64> = Array::pinned(1, 0);

/// Bodies of [`clock_shift_timespec`].
#[map]
static CLOCK_SHIFT_TIMESPEC_BODY: ProgramArray = ProgramArray::pinned(GENERATIONS, 0);

/// Bodies of [`clock_shift_timespec_read`].
#[map]
static CLOCK_SHIFT_TIMESPEC_READ_BODY: ProgramArray = ProgramArray::pinned(GENERATIONS, 0);

/// Bodies of [`clock_shift_nanosleep`].
#[map]
static CLOCK_SHIFT_NANOSLEEP_BODY: ProgramArray = ProgramArray::pinned(GENERATIONS, 0);

/// The kernel is about to read a `timespec` from the program's memory.
#[fentry]
pub fn clock_shift_timespec(ctx: FEntryContext) -> i32 {
    if is_on(control::CLOCKS) || (unfinished() && !halted()) {
        go_on(&ctx, &CLOCK_SHIFT_TIMESPEC_BODY);
    }
    0
}

#[fentry]
pub fn clock_shift_timespec_body(_ctx: FEntryContext) -> i32 {
    if let Some((clock, at)) = asked() {
        lend(clock, at);
    }
    0
}

/// It has read it.
#[fexit]
pub fn clock_shift_timespec_read(ctx: FExitContext) -> i32 {
    if is_on(control::CLOCKS) || unfinished() {
        go_on(&ctx, &CLOCK_SHIFT_TIMESPEC_READ_BODY);
    }
    0
}

#[fexit]
pub fn clock_shift_timespec_read_body(ctx: FExitContext) -> i32 {
    give_back(ctx.arg(1));
    0
}

/// The kernel's `ERESTARTNOHAND`, include/linux/errno.h: the call is made again, or ends with EINTR
/// if the program has a handler for what interrupted it.
const RESTARTED: i64 = -514;

/// clock_nanosleep(2) has returned.
#[fexit]
pub fn clock_shift_nanosleep(ctx: FExitContext) -> i32 {
    if ctx.arg::<i64>(1) == RESTARTED && is_on(control::CLOCKS) {
        go_on(&ctx, &CLOCK_SHIFT_NANOSLEEP_BODY);
    }
    0
}

#[fexit]
pub fn clock_shift_nanosleep_body(_ctx: FExitContext) -> i32 {
    if let Some((clock, at)) = asked() {
        interrupted(clock, at);
    }
    0
}

/// The clock and the place of the deadline, if this system call waits until a time.
#[inline(always)]
fn asked() -> Option<(u32, u64)> {
    let (_, regs) = task_and_registers();
    let argument = |offset: *const u32| kernel_field::<u64>(regs, offset);
    let call = argument(&raw const CALL)? as u32;
    if call == constant(&raw const CLOCK_NANOSLEEP) {
        let absolute = argument(&raw const ARG1)? & TIMER_ABSTIME != 0;
        let clock = argument(&raw const ARG0)? as u32;
        return absolute.then_some((clock, argument(&raw const ARG2)?));
    }
    if call == constant(&raw const FUTEX) {
        let clock = futex_clock(argument(&raw const ARG1)? as u32)?;
        return Some((clock, argument(&raw const ARG3)?));
    }
    if call == constant(&raw const FUTEX_WAITV) {
        return Some((
            argument(&raw const ARG4)? as u32,
            argument(&raw const ARG3)?,
        ));
    }
    if call == constant(&raw const FUTEX_WAIT) {
        return Some((
            argument(&raw const ARG5)? as u32,
            argument(&raw const ARG4)?,
        ));
    }
    if call == constant(&raw const MQ_TIMEDSEND) || call == constant(&raw const MQ_TIMEDRECEIVE) {
        return Some((REALTIME, argument(&raw const ARG4)?));
    }
    None
}

/// `TIMER_ABSTIME`, include/uapi/linux/time.h.
pub(super) const TIMER_ABSTIME: u64 = 1;

/// Which clock a futex(2) waits by until a time; `None` if it waits for a duration, or not at all.
/// Numbers: include/uapi/linux/futex.h.
#[inline(always)]
fn futex_clock(operation: u32) -> Option<u32> {
    const PRIVATE: u32 = 128;
    const CLOCK_REALTIME: u32 = 256;
    const LOCK_PI: u32 = 6;
    const WAIT_BITSET: u32 = 9;
    const WAIT_REQUEUE_PI: u32 = 11;
    const LOCK_PI2: u32 = 13;
    match operation & !(PRIVATE | CLOCK_REALTIME) {
        LOCK_PI => Some(REALTIME),
        WAIT_BITSET | WAIT_REQUEUE_PI | LOCK_PI2 if operation & CLOCK_REALTIME != 0 => {
            Some(REALTIME)
        }
        WAIT_BITSET | WAIT_REQUEUE_PI | LOCK_PI2 => Some(MONOTONIC),
        _ => None,
    }
}

const MONOTONIC: u32 = 1;

/// Puts the time of the kernel's clock in the place of the program's, for the moment.
#[inline(always)]
pub(super) fn lend(clock: u32, at: u64) {
    let now = now_ns();
    let thread = bpf_get_current_pid_tgid();
    // What was not given back, because the kernel kept the end of a call from us (recursion_misses).
    restore(thread);
    let ruled = is_on(control::CLOCKS) && ask_all(Ask::Applies, clock, now, 0) != 0;
    // SAFETY: only this thread writes its element; an evicted one may be another's, which then is
    // not about this deadline.
    let known = unsafe { CLOCK_WAITS.get(thread) };
    if !ruled && known.is_none() {
        return;
    }
    // No `Option` beyond this point: Linux 6.1 lets nobody copy what is not in it.
    let before = known.copied().unwrap_or_default();
    let place = Place {
        process: thread >> 32,
        at,
    };
    let by_ns = |deadline: [i64; 2]| {
        let by_rules = if ruled { lead(clock, deadline, now) } else { 0 };
        if before.continues(at, deadline, clock) {
            before.by_ns
        } else {
            by_rules
        }
    };
    let Some((lent, by_ns)) = take(&place, now, by_ns) else {
        could_not(clock, now);
        return;
    };
    let wait = Wait {
        at,
        deadline: lent.original,
        by_ns,
        clock,
        interrupted: 0,
    };
    // Without it, a wait that is interrupted goes on by the rules of that moment.
    let _ = CLOCK_WAITS.insert(thread, wait, 0);
    if lent.holders == 0 {
        return;
    }
    remember(now);
    let held = CLOCK_HOLDERS.insert(thread, at, 0).is_ok();
    if !held || !write_user(at, &lent.moved) {
        let _ = CLOCK_HOLDERS.remove(thread);
        let_go(&place);
        ask_all(Ask::Failed, clock, now, 0);
    }
}

/// Nanoseconds by which a deadline on a clock of the program is later than on the kernel's.
#[inline(always)]
fn lead(clock: u32, deadline: [i64; 2], now: u64) -> i64 {
    let asked_ns = nanos_of(deadline[0], deadline[1], SECOND);
    let shift_ns = ask_all(Ask::Shift, clock, now, asked_ns) as i64;
    let drift_ppm = ask_all(Ask::Drift, clock, now, 0) as i64;
    lead_ns(shift_ns, drift_ppm)
}

const SECOND: u64 = 1_000_000_000;

/// How many times a place is looked at that belongs to another thread for the moment.
const TRIES: u32 = 8;

/// Becomes a holder of the deadline at this place, which is to be moved by what `by_ns` says of it, or
/// as those have moved it who are in the midst of it: there is one value in this place. No holder, if
/// it stays as it is. `None` if it cannot be read, no place is left to remember it in, or the thread
/// that the place belongs to does not get on.
///
/// An element without holders belongs to one thread: to the first holder, which has not filled it
/// yet, or to the last, which is putting the original back. Only the first looks at the memory to
/// learn what the program has there, and not before the element is its own: a value that was read
/// earlier may be the one that another thread had just lent.
#[inline(always)]
fn take(place: &Place, now: u64, by_ns: impl Fn([i64; 2]) -> i64) -> Option<(Lent, i64)> {
    for _ in 0..TRIES {
        let Some(lent) = CLOCK_LENT.get_ptr_mut(place) else {
            if CLOCK_LENT.insert(place, Lent::default(), NOEXIST).is_ok() {
                return fill(place, now, by_ns);
            }
            continue;
        };
        // SAFETY: a place inside of the element.
        let holders = unsafe { &raw mut (*lent).holders };
        // SAFETY: an aligned word of the map's value.
        let count = unsafe { holders.read_volatile() };
        if count == 0 {
            continue;
        }
        // SAFETY: an element of the map; but for the number of holders it is not changed while it
        // has some.
        let known = unsafe { lent.read_volatile() };
        if now > known.since_ns.saturating_add(UNFINISHED_NS) {
            // Left behind: the end of the call was kept from us, and the thread is gone.
            let _ = CLOCK_LENT.remove(place);
            continue;
        }
        // SAFETY: aligned, and only changed atomically.
        if unsafe { compare_exchange(holders, count, count + 1) } == count {
            let lent = Lent {
                holders: count + 1,
                ..known
            };
            return Some((lent, by_ns(lent.original)));
        }
    }
    None
}

/// Fills the element of a place that is ours and that nobody holds: its first holder, if the deadline
/// is to be moved.
#[inline(always)]
fn fill(place: &Place, now: u64, by_ns: impl Fn([i64; 2]) -> i64) -> Option<(Lent, i64)> {
    let element = CLOCK_LENT.get_ptr_mut(place)?;
    // The kernel may have to fetch it from a file first, which no program may wait for.
    let Some(original) = read_user::<[i64; 2]>(place.at) else {
        let _ = CLOCK_LENT.remove(place);
        return None;
    };
    let by_ns = by_ns(original);
    let moved = true_deadline(original, by_ns).unwrap_or(original);
    let mut lent = Lent {
        original,
        moved,
        since_ns: now,
        holders: 0,
    };
    if moved == original {
        let _ = CLOCK_LENT.remove(place);
        return Some((lent, by_ns));
    }
    // SAFETY: an element of the map that is ours: others wait for its first holder.
    unsafe { element.write_volatile(lent) };
    // SAFETY: a place inside of the element.
    let holders = unsafe { &raw mut (*element).holders };
    // SAFETY: aligned, and only changed atomically; whoever sees it sees what was written before.
    unsafe { fetch_add(holders, 1) };
    lent.holders = 1;
    Some((lent, by_ns))
}

/// `BPF_NOEXIST`, include/uapi/linux/bpf.h: only if there is none.
const NOEXIST: u64 = 1;

/// The kernel has read the `timespec` at `at`.
#[inline(always)]
pub(super) fn give_back(at: u64) {
    let thread = bpf_get_current_pid_tgid();
    // SAFETY: only this thread writes and removes its element.
    let held = unsafe { CLOCK_HOLDERS.get(thread) };
    if held.is_some_and(|held| *held == at) {
        restore(thread);
    }
}

/// Puts back what the program had, unless it has something else there by now, or other threads are in
/// the midst of it.
#[inline(always)]
fn restore(thread: u64) {
    // SAFETY: only this thread writes and removes its element.
    let Some(at) = (unsafe { CLOCK_HOLDERS.get(thread) }).copied() else {
        return;
    };
    let _ = CLOCK_HOLDERS.remove(thread);
    let_go(&Place {
        process: thread >> 32,
        at,
    });
}

/// One holder less.
#[inline(always)]
fn let_go(place: &Place) {
    let Some(lent) = CLOCK_LENT.get_ptr_mut(place) else {
        return;
    };
    // SAFETY: an element of the map; but for the number of holders it is never changed.
    let Lent {
        original, moved, ..
    } = unsafe { *lent };
    // SAFETY: a place inside of the element.
    let holders = unsafe { &raw mut (*lent).holders };
    // SAFETY: aligned, and only changed atomically.
    if unsafe { fetch_add(holders, u64::MAX) } != 1 {
        return;
    }
    if read_user::<[i64; 2]>(place.at) == Some(moved) {
        write_user(place.at, &original);
    }
    let _ = CLOCK_LENT.remove(place);
}

/// A wait is interrupted and will be asked for again: its deadline is of the time when it began.
#[inline(always)]
fn interrupted(clock: u32, at: u64) {
    let now = now_ns();
    let thread = bpf_get_current_pid_tgid();
    let Some(deadline) = read_user::<[i64; 2]>(at) else {
        return;
    };
    // SAFETY: as in `lend`.
    let before = unsafe { CLOCK_WAITS.get(thread) }.copied();
    let began = Wait {
        interrupted: 1,
        ..before.unwrap_or_default()
    };
    let wait = if began.continues(at, deadline, clock) {
        began
    } else if ask_all(Ask::Applies, clock, now, 0) != 0 {
        // It began before there was a rule.
        Wait {
            at,
            deadline,
            by_ns: 0,
            clock,
            interrupted: 1,
        }
    } else {
        return;
    };
    if CLOCK_WAITS.insert(thread, wait, 0).is_ok() {
        remember(now);
    }
}

#[inline(always)]
fn remember(now: u64) {
    if let Some(until) = CLOCK_UNFINISHED.get_ptr_mut(0) {
        // SAFETY: an aligned word of the map's value; whoever writes last wrote a later time, or one
        // that is earlier by what two calls are apart.
        unsafe { until.write_volatile(now + UNFINISHED_NS) };
    }
}

#[inline(always)]
pub(super) fn unfinished() -> bool {
    let until = CLOCK_UNFINISHED.get(0).copied().unwrap_or(0);
    until != 0 && now_ns() < until
}

//! Waits until a time. A program whose clock is ahead asks the kernel to wake it at a time of *its*
//! clock; the kernel has the right one. So the deadline in the program's memory is another while the
//! kernel reads it (`get_timespec64`), and what it was right after: no program sleeps with memory
//! that is not as it left it.
//!
//! Not here: clocks that are read, which are moved the other way.

use core::mem::offset_of;

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::macros::{fentry, fexit, map};
use aya_ebpf::maps::{Array, HashMap, LruHashMap, ProgramArray};
use aya_ebpf::programs::{FEntryContext, FExitContext};
use chaos_abi::clock::{REALTIME, lead_ns, nanos_of};
use chaos_abi::control;
use chaos_abi::control::GENERATIONS;
use chaos_abi::wait::{Lent, Place, UNFINISHED_NS, Wait, true_deadline};
use chaos_ebpf::generation::go_on;
use chaos_ebpf::kernel::{constant, kernel_field};
use chaos_ebpf::{compare_exchange, fetch_add, halted, is_on, now_ns};

use super::{ARG0, ARG1, Ask, ask_all, could_not, read_user, task_and_registers, write_user};

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
    let argument = |offset: &u32| kernel_field::<u64>(regs, offset);
    let call = argument(&CALL)? as u32;
    if call == constant(&CLOCK_NANOSLEEP) {
        let absolute = argument(&ARG1)? & TIMER_ABSTIME != 0;
        let clock = argument(&ARG0)? as u32;
        return absolute.then_some((clock, argument(&ARG2)?));
    }
    if call == constant(&FUTEX) {
        let clock = futex_clock(argument(&ARG1)? as u32)?;
        return Some((clock, argument(&ARG3)?));
    }
    if call == constant(&FUTEX_WAITV) {
        return Some((argument(&ARG4)? as u32, argument(&ARG3)?));
    }
    if call == constant(&FUTEX_WAIT) {
        return Some((argument(&ARG5)? as u32, argument(&ARG4)?));
    }
    if call == constant(&MQ_TIMEDSEND) || call == constant(&MQ_TIMEDRECEIVE) {
        return Some((REALTIME, argument(&ARG4)?));
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

// What follows is in global functions, which the verifier goes through once each, whatever they are called
// with. In one piece it would be each way through one part times each way through the next.

/// Puts the time of the kernel's clock in the place of the program's, for the moment.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn lend(clock: u32, at: u64) -> u64 {
    let now = now_ns();
    let thread = bpf_get_current_pid_tgid();
    // What was not given back, because the kernel kept the end of a call from us (recursion_misses).
    restore(thread);
    let ruled = is_on(control::CLOCKS) && ask_all(Ask::Applies, clock, now, 0) != 0;
    // SAFETY: only this thread writes its element; an evicted one may be another's, which then is
    // not about this deadline.
    let known = unsafe { CLOCK_WAITS.get(thread) };
    if !ruled && known.is_none() {
        return 0;
    }
    // No `Option` beyond this point: Linux 6.1 lets nobody copy what is not in it.
    let before = known.copied().unwrap_or_default();
    let claimed = claim_in_time(at, now);
    let Some(element) = CLOCK_LENT.get_ptr_mut(here(at)) else {
        could_not(clock, now);
        return 0;
    };
    if claimed == BUSY {
        could_not(clock, now);
        return 0;
    }
    // SAFETY: what an element of the map has here is not changed while it has holders, and ours until
    // it has some.
    let original =
        unsafe { field::<[i64; 2]>(element, offset_of!(Lent, original)).read_volatile() };
    let mut by_ns = match ruled {
        true => lead(clock, original[0], original[1], now) as i64,
        false => 0,
    };
    if before.continues(at, original, clock) {
        by_ns = before.by_ns;
    }
    let wait = Wait {
        at,
        deadline: original,
        by_ns,
        clock,
        interrupted: 0,
    };
    // Without it, a wait that is interrupted goes on by the rules of that moment.
    let _ = CLOCK_WAITS.insert(thread, wait, 0);
    if claimed == OURS && fill(at, by_ns, now) == 0 {
        return 0;
    }
    remember(now);
    // SAFETY: as above.
    let moved = unsafe { field::<[i64; 2]>(element, offset_of!(Lent, moved)).read_volatile() };
    let held = CLOCK_HOLDERS.insert(thread, at, 0).is_ok();
    if !held || !write_user(at, &moved) {
        let _ = CLOCK_HOLDERS.remove(thread);
        let_go(at);
        ask_all(Ask::Failed, clock, now, 0);
    }
    0
}

/// Nanoseconds by which a deadline on a clock of the program is later than on the kernel's.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lead(clock: u32, seconds: i64, nanos: i64, now: u64) -> u64 {
    let asked_ns = nanos_of(seconds, nanos, SECOND);
    let shift_ns = ask_all(Ask::Shift, clock, now, asked_ns) as i64;
    let drift_ppm = ask_all(Ask::Drift, clock, now, 0) as i64;
    lead_ns(shift_ns, drift_ppm) as u64
}

const SECOND: u64 = 1_000_000_000;

/// A place in the memory of this process.
#[inline(always)]
fn here(at: u64) -> Place {
    Place {
        process: bpf_get_current_pid_tgid() >> 32,
        at,
    }
}

/// Where a field of an element is.
#[inline(always)]
fn field<T>(element: *mut Lent, offset: usize) -> *mut T {
    element.wrapping_byte_add(offset).cast()
}

/// How many times a place is looked at that belongs to another thread for the moment.
const TRIES: u32 = 8;

// What [`claim`] says.
const BUSY: u64 = 0;
const JOINED: u64 = 1;
const OURS: u64 = 2;

/// [`claim`], again while it is [`BUSY`].
#[inline(always)]
fn claim_in_time(at: u64, now: u64) -> u64 {
    let mut claimed = BUSY;
    for _ in 0..TRIES {
        claimed = claim(at, now);
        if claimed != BUSY {
            break;
        }
    }
    claimed
}

/// Becomes a holder of the deadline at this place, which is to be what those have made of it who are in
/// the midst of it: there is one value in this place. Or there is nobody, and the element is [`OURS`]
/// and knows the original. [`BUSY`] if it cannot be read, no place is left to remember it in, or it
/// belongs to another thread.
///
/// An element without holders belongs to one thread: to the first holder, which has not filled it
/// yet, or to the last, which is putting the original back. Only the first looks at the memory to
/// learn what the program has there, and not before the element is its own: a value that was read
/// earlier may be the one that another thread had just lent.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn claim(at: u64, now: u64) -> u64 {
    let place = here(at);
    let Some(lent) = CLOCK_LENT.get_ptr_mut(place) else {
        return claim_first(&place);
    };
    let holders = field::<u64>(lent, offset_of!(Lent, holders));
    // SAFETY: an aligned word of the map's value.
    let count = unsafe { holders.read_volatile() };
    if count == 0 {
        return BUSY;
    }
    // SAFETY: a place inside of the element, which is not changed while there are holders.
    let since_ns = unsafe { field::<u64>(lent, offset_of!(Lent, since_ns)).read_volatile() };
    if now > since_ns.saturating_add(UNFINISHED_NS) {
        // Left behind: the end of the call was kept from us, and the thread is gone.
        let _ = CLOCK_LENT.remove(place);
        return BUSY;
    }
    // SAFETY: aligned, and only changed atomically.
    if unsafe { compare_exchange(holders, count, count + 1) } == count {
        JOINED
    } else {
        BUSY
    }
}

#[inline(always)]
fn claim_first(place: &Place) -> u64 {
    if CLOCK_LENT.insert(place, Lent::default(), NOEXIST).is_err() {
        return BUSY;
    }
    let Some(element) = CLOCK_LENT.get_ptr_mut(place) else {
        return BUSY;
    };
    // The kernel may have to fetch it from a file first, which no program may wait for.
    let Some(original) = read_user::<[i64; 2]>(place.at) else {
        let _ = CLOCK_LENT.remove(place);
        return BUSY;
    };
    // SAFETY: an element of the map that is ours.
    unsafe { field::<[i64; 2]>(element, offset_of!(Lent, original)).write_volatile(original) };
    OURS
}

/// Fills the element of a place that is ours: its first holder, if the deadline is to be moved by what its
/// clock is ahead. The number of holders.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fill(at: u64, by_ns: i64, now: u64) -> u64 {
    let place = here(at);
    let Some(element) = CLOCK_LENT.get_ptr_mut(place) else {
        return 0;
    };
    // SAFETY: an element of the map that is ours: others wait for its first holder.
    let original =
        unsafe { field::<[i64; 2]>(element, offset_of!(Lent, original)).read_volatile() };
    let Some(moved) = true_deadline(original, by_ns).filter(|moved| *moved != original) else {
        let _ = CLOCK_LENT.remove(place);
        return 0;
    };
    let lent = Lent {
        original,
        moved,
        since_ns: now,
        holders: 0,
    };
    // SAFETY: as above.
    unsafe { element.write_volatile(lent) };
    let holders = field::<u64>(element, offset_of!(Lent, holders));
    // SAFETY: aligned, and only changed atomically; whoever sees it sees what was written before.
    unsafe { fetch_add(holders, 1) };
    1
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
    let_go(at);
}

/// One holder less.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn let_go(at: u64) -> u64 {
    let place = here(at);
    let Some(lent) = CLOCK_LENT.get_ptr_mut(place) else {
        return 0;
    };
    // SAFETY: an element of the map; but for the number of holders it is never changed.
    let Lent {
        original, moved, ..
    } = unsafe { *lent };
    let holders = field::<u64>(lent, offset_of!(Lent, holders));
    // SAFETY: aligned, and only changed atomically.
    if unsafe { fetch_add(holders, u64::MAX) } != 1 {
        return 0;
    }
    if read_user::<[i64; 2]>(at) == Some(moved) {
        write_user(at, &original);
    }
    let _ = CLOCK_LENT.remove(place);
    0
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

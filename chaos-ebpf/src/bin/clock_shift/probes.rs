//! Programs that run already and whose vDSO nobody may change: what `clock_gettime` of their C library
//! has put into their memory is moved when it returns. Attached to single processes, by the agent.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::macros::{map, uprobe, uretprobe};
use aya_ebpf::maps::{LruHashMap, ProgramArray};
use aya_ebpf::programs::{ProbeContext, RetProbeContext};
use chaos_abi::control::{self, GENERATIONS};
use chaos_ebpf::generation::go_on;
use chaos_ebpf::is_on;

/// A clock and where its time goes to.
#[derive(Clone, Copy)]
struct Call {
    clock: u64,
    at: u64,
}

/// How many threads are in the midst of a call, at most: of more than these, those that have been there
/// the longest get the right time.
const CALLS: u32 = 1024;

/// Thread -> the call that it is in the midst of.
#[map]
static CLOCK_CALLS: LruHashMap<u64, Call> = LruHashMap::pinned(CALLS, 0);

/// Bodies of [`clock_shift_called`].
#[map]
static CLOCK_SHIFT_CALLED_BODY: ProgramArray = ProgramArray::pinned(GENERATIONS, 0);

/// Bodies of [`clock_shift_returned`].
#[map]
static CLOCK_SHIFT_RETURNED_BODY: ProgramArray = ProgramArray::pinned(GENERATIONS, 0);

/// The library's `clock_gettime` has been called.
#[uprobe]
pub fn clock_shift_called(ctx: ProbeContext) -> u32 {
    if is_on(control::CLOCKS) {
        go_on(&ctx, &CLOCK_SHIFT_CALLED_BODY);
    }
    0
}

#[uprobe]
pub fn clock_shift_called_body(ctx: ProbeContext) -> u32 {
    if let (Some(clock), Some(at)) = (ctx.arg(0), ctx.arg(1)) {
        // It fails where there is no memory left: the call shows the right time.
        let _ = CLOCK_CALLS.insert(bpf_get_current_pid_tgid(), Call { clock, at }, 0);
    }
    0
}

/// It returns.
#[uretprobe]
pub fn clock_shift_returned(ctx: RetProbeContext) -> u32 {
    if is_on(control::CLOCKS) {
        go_on(&ctx, &CLOCK_SHIFT_RETURNED_BODY);
    }
    0
}

#[uretprobe]
pub fn clock_shift_returned_body(ctx: RetProbeContext) -> u32 {
    let thread = bpf_get_current_pid_tgid();
    // SAFETY: nobody but this thread writes its element.
    let Some(&call) = (unsafe { CLOCK_CALLS.get(thread) }) else {
        return 0;
    };
    let _ = CLOCK_CALLS.remove(thread);
    // The function returns an int: the upper half is whatever was there.
    if ctx.ret::<u64>() as u32 == 0 {
        super::shift(call.clock as u32, call.at, 1_000_000_000);
    }
    0
}

/// The library has asked the kernel instead of the vDSO, and has got a time that is moved.
#[inline(always)]
pub(super) fn is_moved() {
    let thread = bpf_get_current_pid_tgid();
    // SAFETY: nothing is read of it.
    if unsafe { CLOCK_CALLS.get(thread) }.is_some() {
        let _ = CLOCK_CALLS.remove(thread);
    }
}

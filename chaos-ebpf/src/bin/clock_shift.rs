//! Clocks that are ahead or behind: the time that a system call has just written into the caller's
//! memory is moved, keyed by cgroup id. A program that is started meanwhile gets no vDSO, so that
//! all its clock reads are system calls.
//!
//! Not here: the vDSO of programs that run already, which the agent replaces by system calls, those
//! where it may not (`probes`), and waits and timers until a time (`waits`, `timers`).
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![expect(
    missing_docs,
    unreachable_pub,
    reason = "aya's attributes write each entry point anew, public and without its comment"
)]

#[path = "clock_shift/probes.rs"]
mod probes;
#[path = "clock_shift/timers.rs"]
mod timers;
#[path = "clock_shift/waits.rs"]
mod waits;

use aya_ebpf::helpers::generated::{
    bpf_get_current_ancestor_cgroup_id, bpf_get_current_task_btf, bpf_task_pt_regs,
};
use aya_ebpf::helpers::{bpf_probe_read_user, bpf_probe_write_user};
use aya_ebpf::macros::{btf_tracepoint, fexit, map};
use aya_ebpf::maps::{Array, HashMap, ProgramArray};
use aya_ebpf::programs::{BtfTracePointContext, FExitContext};
use chaos_abi::clock::{ClockRule, REALTIME, flag, nanos_of, shifted};
use chaos_abi::control::GENERATIONS;
use chaos_abi::network::{MAX_DEPTHS, MAX_TARGETS, RuleRef, Target};
use chaos_abi::{MAX_RULES, control};
use chaos_ebpf::generation::go_on;
use chaos_ebpf::kernel::kernel_field;
use chaos_ebpf::{Outcome, count, count_failed, is_on, now_ns};

/// All rules of the node's clock faults.
#[map]
static CLOCK_RULES: Array<ClockRule> = Array::pinned(MAX_RULES, 0);

/// Cgroup id -> its rules.
#[map]
static CLOCK_TARGETS: HashMap<u64, Target> = HashMap::pinned(MAX_TARGETS, 0);

/// Depths below the root at which the cgroups of `CLOCK_TARGETS` sit, each once; 0 is a free place.
/// None ever changes its place: a time that is moved twice, or not at all, would be a wrong one.
#[map]
static CLOCK_DEPTHS: Array<u32> = Array::pinned(MAX_DEPTHS, 0);

/// Offset in `pt_regs` of the first argument of a system call, and of the second. This and what
/// follows is filled in by the loader, from the BTF of the kernel that runs.
#[unsafe(no_mangle)]
static ARG0: u32 = 0;
#[unsafe(no_mangle)]
static ARG1: u32 = 0;
/// Offsets in `linux_binprm`: stack pointer of the new program, how many arguments and
/// environment variables it has.
#[unsafe(no_mangle)]
static BPRM_P: u32 = 0;
#[unsafe(no_mangle)]
static BPRM_ARGC: u32 = 0;
#[unsafe(no_mangle)]
static BPRM_ENVC: u32 = 0;

/// What is asked of a rule.
#[derive(Clone, Copy)]
enum Ask {
    /// Nanoseconds that it moves this clock by where that would show the time; counted.
    Shift,
    /// The time that it was counted for could not be written.
    Failed,
    /// 1 if there is any; nothing is counted.
    Applies,
    /// Parts per million that it makes this clock faster; nothing is counted.
    Drift,
}

/// Bodies of [`clock_shift_gettime`].
#[map]
static CLOCK_SHIFT_GETTIME_BODY: ProgramArray = ProgramArray::pinned(GENERATIONS, 0);

/// Bodies of [`clock_shift_timeofday`].
#[map]
static CLOCK_SHIFT_TIMEOFDAY_BODY: ProgramArray = ProgramArray::pinned(GENERATIONS, 0);

/// Bodies of [`clock_shift_time`].
#[map]
static CLOCK_SHIFT_TIME_BODY: ProgramArray = ProgramArray::pinned(GENERATIONS, 0);

/// Bodies of [`clock_shift_exec`].
#[map]
static CLOCK_SHIFT_EXEC_BODY: ProgramArray = ProgramArray::pinned(GENERATIONS, 0);

/// clock_gettime(2) has returned.
#[fexit]
pub fn clock_shift_gettime(ctx: FExitContext) -> i32 {
    if is_on(control::CLOCKS) && ctx.arg::<i64>(1) == 0 {
        go_on(&ctx, &CLOCK_SHIFT_GETTIME_BODY);
    }
    0
}

#[fexit]
pub fn clock_shift_gettime_body(ctx: FExitContext) -> i32 {
    probes::is_moved();
    let regs: *const u8 = ctx.arg(0);
    if let (Some(clock), Some(time)) = (kernel_field::<u64>(regs, &ARG0), kernel_field(regs, &ARG1))
    {
        shift(clock as u32, time, 1_000_000_000);
    }
    0
}

/// gettimeofday(2) has returned.
#[fexit]
pub fn clock_shift_timeofday(ctx: FExitContext) -> i32 {
    if is_on(control::CLOCKS) && ctx.arg::<i64>(1) == 0 {
        go_on(&ctx, &CLOCK_SHIFT_TIMEOFDAY_BODY);
    }
    0
}

#[fexit]
pub fn clock_shift_timeofday_body(ctx: FExitContext) -> i32 {
    let regs: *const u8 = ctx.arg(0);
    if let Some(time) = kernel_field(regs, &ARG0) {
        shift(REALTIME, time, 1_000_000);
    }
    0
}

/// time(2) has returned: in a register, which nobody can change here. Counted, so that somebody
/// can be told.
#[fexit]
pub fn clock_shift_time(ctx: FExitContext) -> i32 {
    if is_on(control::CLOCKS) {
        go_on(&ctx, &CLOCK_SHIFT_TIME_BODY);
    }
    0
}

#[fexit]
pub fn clock_shift_time_body(_ctx: FExitContext) -> i32 {
    could_not(REALTIME, now_ns());
    0
}

/// A program is about to begin: its stack is filled and it has not run yet.
#[btf_tracepoint(function = "sched_process_exec")]
pub fn clock_shift_exec(ctx: BtfTracePointContext) -> i32 {
    if is_on(control::CLOCKS) {
        go_on(&ctx, &CLOCK_SHIFT_EXEC_BODY);
    }
    0
}

#[btf_tracepoint(function = "sched_process_exec")]
pub fn clock_shift_exec_body(ctx: BtfTracePointContext) -> i32 {
    if ask_all(Ask::Applies, ANY, now_ns(), 0) != 0 {
        remove_vdso(ctx.arg(2));
    }
    0
}

/// In place of a clock: whatever the rule is about.
const ANY: u32 = u32::MAX;

/// Entry of the auxiliary vector that ends it, that means nothing, and that says where the vDSO is.
const AT_NULL: u64 = 0;
const AT_IGNORE: u64 = 1;
const AT_SYSINFO_EHDR: u64 = 33;

/// How many entries of it are looked at: the kernel writes 20 to 30 (`create_elf_tables`), the one
/// that is looked for among the first.
const AUXV_ENTRIES: u64 = 32;

/// Makes the new program believe that there is no vDSO. One of 32 bits keeps it: its stack does
/// not begin with 8 bytes of `argc`.
#[inline(always)]
fn remove_vdso(bprm: *const u8) {
    let (Some(stack), Some(argc), Some(envc)) = (
        kernel_field::<u64>(bprm, &BPRM_P),
        kernel_field::<u32>(bprm, &BPRM_ARGC),
        kernel_field::<u32>(bprm, &BPRM_ENVC),
    ) else {
        return;
    };
    let (argc, envc) = (u64::from(argc), u64::from(envc));
    if read_user::<u64>(stack) != Some(argc) {
        could_not(ANY, now_ns());
        return;
    }
    // argc, the arguments, the environment, and a null behind each of the two.
    let auxv = stack + 8 * (argc + envc + 3);
    for i in 0..AUXV_ENTRIES {
        let entry = auxv + 16 * i;
        match read_user::<u64>(entry) {
            Some(AT_SYSINFO_EHDR) => {
                write_user(entry, &AT_IGNORE);
                return;
            }
            Some(AT_NULL) | None => return,
            Some(_) => {}
        }
    }
}

/// The current task, and what its user space has in its registers.
#[inline(always)]
fn task_and_registers() -> (*const u8, *const u8) {
    // SAFETY: takes no arguments; the current task is always there.
    let task = unsafe { bpf_get_current_task_btf() };
    // SAFETY: the task is the one that the kernel has just given.
    let regs = unsafe { bpf_task_pt_regs(task) } as *const u8;
    (task.cast::<u8>().cast_const(), regs)
}

/// Moves the time at `at`, a `timespec` or a `timeval`, that the caller asked of `clock`.
#[inline(always)]
fn shift(clock: u32, at: u64, per_second: u64) {
    let now = now_ns();
    let time = read_user::<[i64; 2]>(at);
    let readable = time.is_some();
    let [seconds, parts] = time.unwrap_or_default();
    let shown_ns = nanos_of(seconds, parts, per_second);
    let by_ns = ask_all(Ask::Shift, clock, now, shown_ns) as i64;
    if by_ns == 0 || at == 0 {
        return;
    }
    let (seconds, parts) = shifted(seconds, parts, per_second, by_ns);
    if !readable || !write_user(at, &[seconds, parts]) {
        ask_all(Ask::Failed, clock, now, 0);
    }
}

/// Counts what should have been moved, and cannot be.
#[inline(always)]
fn could_not(clock: u32, now: u64) {
    ask_all(Ask::Shift, clock, now, 0);
    ask_all(Ask::Failed, clock, now, 0);
}

/// The sum of what all rules of the current process's cgroups answer about a clock that would show
/// `shown_ns`. No loop over the depths: the verifier of Linux 6.1 takes none that begins right behind a
/// call (`visit_func_call_insn`).
#[inline(always)]
fn ask_all(ask: Ask, clock: u32, now: u64, shown_ns: i64) -> u64 {
    const _: () = assert!(MAX_DEPTHS == 4);
    let question = (ask as u64) << 32 | u64::from(clock);
    ask_at(0, question, now, shown_ns)
        .wrapping_add(ask_at(1, question, now, shown_ns))
        .wrapping_add(ask_at(2, question, now, shown_ns))
        .wrapping_add(ask_at(3, question, now, shown_ns))
}

/// The same of the cgroup at one of the depths. A global function, as [`ask_rule`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn ask_at(place: u32, question: u64, now: u64, shown_ns: i64) -> u64 {
    let depth = CLOCK_DEPTHS.get(place).copied().unwrap_or(0);
    if depth == 0 {
        return 0;
    }
    // SAFETY: the helper takes a number and reads the current task's cgroup.
    let cgroup = unsafe { bpf_get_current_ancestor_cgroup_id(depth as i32) };
    // SAFETY: elements are only ever replaced whole; a stale rule is told by its generation.
    let Some(target) = (unsafe { CLOCK_TARGETS.get(cgroup) }) else {
        return 0;
    };
    let mut sum = 0_u64;
    for reference in &target.rules {
        if reference.generation == 0 {
            break;
        }
        sum = sum.wrapping_add(ask_rule(reference.to_bits(), question, now, shown_ns));
    }
    sum
}

/// For the verifier: a global function is verified once, on its own. `question` is an [`Ask`] and a
/// clock.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn ask_rule(reference: u64, question: u64, now: u64, shown_ns: i64) -> u64 {
    let RuleRef { id, generation } = RuleRef::from_bits(reference);
    let clock = question as u32;
    let Some(rule) = CLOCK_RULES.get(id) else {
        return 0;
    };
    // SAFETY: a load of an aligned word of the map's value, which user space may be writing.
    let deadline = unsafe { core::ptr::read_volatile(&raw const rule.deadline_ns) };
    if rule.generation != generation || now >= deadline || !(clock == ANY || rule.shifts(clock)) {
        return 0;
    }
    let observes = rule.flags & flag::OBSERVE != 0;
    match question >> 32 {
        ask if ask == Ask::Applies as u64 => 1,
        ask if ask == Ask::Failed as u64 => {
            if !observes {
                count_failed(id);
            }
            0
        }
        ask if ask == Ask::Drift as u64 => {
            if observes {
                0
            } else {
                i64::from(rule.drift_ppm) as u64
            }
        }
        _ if observes => {
            count(id, Outcome::WouldInject, now);
            0
        }
        _ => {
            count(id, Outcome::Injected, now);
            rule.shift_ns(clock, shown_ns, now) as u64
        }
    }
}

#[inline(always)]
fn read_user<T>(at: u64) -> Option<T> {
    // SAFETY: the helper checks the address itself.
    unsafe { bpf_probe_read_user(at as *const T) }.ok()
}

#[inline(always)]
fn write_user<T>(at: u64, value: &T) -> bool {
    // SAFETY: the helper checks the address itself.
    unsafe { bpf_probe_write_user(at as *mut T, value) }.is_ok()
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}

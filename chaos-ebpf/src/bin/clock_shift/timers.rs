//! Timers that go off at a time: timerfd_settime(2) and timer_settime(2). As with waits (`waits`), the
//! time in the program's memory is another while the kernel reads it (`get_itimerspec64`). By which
//! clock a timer goes is not said there; the kernel's own objects say it.

use aya_ebpf::macros::{fentry, fexit, map};
use aya_ebpf::maps::ProgramArray;
use aya_ebpf::programs::{FEntryContext, FExitContext};
use chaos_abi::control;
use chaos_abi::control::GENERATIONS;
use chaos_ebpf::generation::go_on;
use chaos_ebpf::kernel::{constant, kernel_field, read_kernel};
use chaos_ebpf::{halted, is_on, now_ns};

use super::waits::{ARG2, CALL, TIMER_ABSTIME, give_back, lend, unfinished};
use super::{ANY, ARG0, ARG1, could_not, task_and_registers};

/// Numbers of the system calls.
#[unsafe(no_mangle)]
static TIMERFD_SETTIME: u32 = 0;
#[unsafe(no_mangle)]
static TIMER_SETTIME: u32 = 0;
/// From a task to the clock of one of its timerfds: offsets in `task_struct`, `files_struct`,
/// `fdtable` (two), `file`, `timerfd_ctx`.
#[unsafe(no_mangle)]
static TASK_FILES: u32 = 0;
#[unsafe(no_mangle)]
static FILES_TABLE: u32 = 0;
#[unsafe(no_mangle)]
static TABLE_LENGTH: u32 = 0;
#[unsafe(no_mangle)]
static TABLE_FILES: u32 = 0;
#[unsafe(no_mangle)]
static FILE_DATA: u32 = 0;
#[unsafe(no_mangle)]
static TIMERFD_CLOCK: u32 = 0;
/// The same to one of its timers: in `task_struct`, `signal_struct`, `k_itimer` (three).
#[unsafe(no_mangle)]
static TASK_SIGNAL: u32 = 0;
#[unsafe(no_mangle)]
static SIGNAL_TIMERS: u32 = 0;
#[unsafe(no_mangle)]
static TIMER_LIST: u32 = 0;
#[unsafe(no_mangle)]
static TIMER_ID: u32 = 0;
#[unsafe(no_mangle)]
static TIMER_CLOCK: u32 = 0;

/// How many of a program's timers are looked at, the youngest first.
const MAX_TIMERS: u32 = 128;

/// Where `it_value` is in an `itimerspec`: behind the interval, which is a duration.
const VALUE: u64 = 16;

/// Bodies of [`clock_shift_itimer`].
#[map]
static CLOCK_SHIFT_ITIMER_BODY: ProgramArray = ProgramArray::pinned(GENERATIONS, 0);

/// Bodies of [`clock_shift_itimer_read`].
#[map]
static CLOCK_SHIFT_ITIMER_READ_BODY: ProgramArray = ProgramArray::pinned(GENERATIONS, 0);

/// The kernel is about to read an `itimerspec` from the program's memory.
#[fentry]
pub fn clock_shift_itimer(ctx: FEntryContext) -> i32 {
    if is_on(control::CLOCKS) || (unfinished() && !halted()) {
        go_on(&ctx, &CLOCK_SHIFT_ITIMER_BODY);
    }
    0
}

#[fentry]
pub fn clock_shift_itimer_body(_ctx: FEntryContext) -> i32 {
    set();
    0
}

/// It has read it.
#[fexit]
pub fn clock_shift_itimer_read(ctx: FExitContext) -> i32 {
    if is_on(control::CLOCKS) || unfinished() {
        go_on(&ctx, &CLOCK_SHIFT_ITIMER_READ_BODY);
    }
    0
}

#[fexit]
pub fn clock_shift_itimer_read_body(ctx: FExitContext) -> i32 {
    give_back(ctx.arg::<u64>(1) + VALUE);
    0
}

/// Moves the time that a timer is being set to.
#[inline(always)]
fn set() -> Option<()> {
    let (task, regs) = task_and_registers();
    let call = kernel_field::<u64>(regs, &CALL)? as u32;
    let descriptor = call == constant(&TIMERFD_SETTIME);
    if !descriptor && call != constant(&TIMER_SETTIME) {
        return None;
    }
    if kernel_field::<u64>(regs, &ARG1)? & TIMER_ABSTIME == 0 {
        return None;
    }
    let which = kernel_field::<u64>(regs, &ARG0)? as u32;
    let clock = if descriptor {
        clock_of_descriptor(task, which)
    } else {
        clock_of_timer(task, which)
    };
    let Some(clock) = clock else {
        // There is none, or it is behind too many others.
        could_not(ANY, now_ns());
        return None;
    };
    lend(clock, kernel_field::<u64>(regs, &ARG2)? + VALUE);
    Some(())
}

/// If this is no timerfd, the number is nonsense, and the kernel refuses the call.
#[inline(always)]
fn clock_of_descriptor(task: *const u8, descriptor: u32) -> Option<u32> {
    let files: *const u8 = kernel_field(task, &TASK_FILES)?;
    let table: *const u8 = kernel_field(files, &FILES_TABLE)?;
    if descriptor >= kernel_field::<u32>(table, &TABLE_LENGTH)? {
        return None;
    }
    let open: *const u8 = kernel_field(table, &TABLE_FILES)?;
    let place = open.wrapping_add(descriptor as usize * size_of::<u64>());
    let file: *const u8 = read_kernel(place)?;
    let timer: *const u8 = kernel_field(file, &FILE_DATA)?;
    kernel_field(timer, &TIMERFD_CLOCK)
}

/// The list is a ring up to Linux 6.12 and ends with null since; the first word of its head and of
/// each link is the next one in both.
#[inline(always)]
fn clock_of_timer(task: *const u8, id: u32) -> Option<u32> {
    let signal: *const u8 = kernel_field(task, &TASK_SIGNAL)?;
    let head = signal.wrapping_add(constant(&SIGNAL_TIMERS) as usize);
    let mut link: *const u8 = read_kernel(head)?;
    for _ in 0..MAX_TIMERS {
        if link.is_null() || link == head {
            return None;
        }
        let timer = link.wrapping_sub(constant(&TIMER_LIST) as usize);
        if kernel_field::<u32>(timer, &TIMER_ID)? == id {
            return kernel_field(timer, &TIMER_CLOCK);
        }
        link = read_kernel(link)?;
    }
    None
}

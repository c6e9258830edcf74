//! Programs that ran before the fault began: their vDSO is changed, and put back.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chaos_agent::node::{Node, Options, Owner};
use chaos_planner::observed::Phase;
use nix::libc;

use super::reader::{Reading, off_by, off_by_but, reader};
use super::{HOUR, MONOTONIC, REALTIME, ahead, dispatchers};
use crate::cgroup::Cgroup;
use crate::clock::Stamp;
use crate::node::{Host, lasting, nothing_is_pinned};
use crate::process::{Place, Process, role};
use crate::program::Scratch;
use crate::registry::note;
use crate::vm_test;
use crate::wait::eventually;

const SPINNER: &str = "clock-spinner";
crate::vm_role!(SPINNER, spin);

/// Three threads that do nothing but read the clock, so that one is always in the midst of it. Ends
/// with an error if a thread sees the time go back by less than the skew of these tests.
fn spin(_: &str) -> Result<()> {
    role::ready()?;
    let thread = || {
        let mut last = 0;
        loop {
            let now = super::reader::library(MONOTONIC);
            assert!(now >= last, "{now} after {last}");
            last = now;
        }
    };
    for _ in 0..3 {
        std::thread::spawn(thread);
    }
    role::wait_for_end();
    Ok(())
}

const CALLER: &str = "time-caller";
crate::vm_role!(CALLER, call_time);

/// Calls time(2) by its number, as a program does that is linked statically against glibc.
fn call_time(_: &str) -> Result<()> {
    role::ready()?;
    // SAFETY: null asks for no copy of the result.
    let seconds = unsafe { libc::syscall(libc::SYS_time, std::ptr::null::<u8>()) };
    role::tell(&seconds)
}

/// The bytes of a program's vDSO.
fn vdso(process: &str) -> Result<Vec<u8>> {
    let directory = Path::new("/proc").join(process);
    let maps = fs::read_to_string(directory.join("maps"))?;
    let line = maps.lines().find(|line| line.ends_with("[vdso]"));
    let (start, rest) = line
        .and_then(|line| line.split_once('-'))
        .context("no vDSO")?;
    let (end, _) = rest.split_once(' ').context("no range")?;
    let start = u64::from_str_radix(start, 16)?;
    let mut bytes = vec![0; (u64::from_str_radix(end, 16)? - start) as usize];
    File::open(directory.join("mem"))?.read_exact_at(&mut bytes, start)?;
    Ok(bytes)
}

pub(super) fn is_original<E>(process: &Process<E>) -> Result<bool>
where
    E: serde::de::DeserializeOwned + Send + 'static,
{
    Ok(vdso(&process.pid().to_string())? == vdso("self")?)
}

/// Readings that were taken wholly within this time.
pub(super) fn within(readings: &[Reading], from: Stamp, to: Stamp) -> Vec<Reading> {
    let within = |reading: &&Reading| reading.before >= from && reading.after <= to;
    readings.iter().filter(within).cloned().collect()
}

vm_test!(
    a_running_program_sees_another_time_and_then_the_right_one_again,
    limit = 90
);
fn a_running_program_sees_another_time_and_then_the_right_one_again() -> Result<()> {
    let (target, bystander) = (Cgroup::new()?, Cgroup::new()?);
    let inside = || Place::host().in_cgroup(&target);
    let (runs, outside) = (
        reader(inside())?,
        reader(Place::host().in_cgroup(&bystander))?,
    );
    let spinner: Process<()> = inside().spawn(SPINNER, &())?;
    let mut host = Host::open()?;
    std::thread::sleep(Duration::from_millis(500));
    let asked = Stamp::now();
    host.arm(ahead(&target))?;
    let armed = Stamp::now();
    note(format!("changed in {:?}", armed.since(asked)));
    ensure!(!is_original(&runs)?, "its vDSO has not been changed");
    ensure!(
        is_original(&outside)?,
        "a bystander's vDSO has been changed"
    );
    std::thread::sleep(Duration::from_secs(1));
    let recovering = Stamp::now();
    // Since they were loaded: they came with this fault.
    let skipped = dispatchers().skipped();
    note(format!("{skipped} calls were not shown to the programs"));
    let seen = host.observe("c").context("gone")?;
    ensure!(skipped == 0 || seen.degraded, "{seen:?}");
    let counts = host.recover("c")?;
    let recovered = Stamp::now();
    note(format!("restored in {:?}", recovered.since(recovering)));
    ensure!(is_original(&runs)?, "its vDSO is still changed");
    ensure!(
        is_original(&spinner)?,
        "the vDSO of a busy program is still changed"
    );
    std::thread::sleep(Duration::from_secs(1));
    spinner.finish(Duration::from_secs(10))?;
    let readings = runs.finish(Duration::from_secs(10))?;
    off_by(&within(&readings, Stamp(0), asked), REALTIME, 0).context("before")?;
    let during = within(&readings, armed, recovering);
    off_by_but(&during, REALTIME, HOUR, skipped).context("during")?;
    off_by(&during, MONOTONIC, 0)?;
    off_by(&within(&readings, recovered, Stamp::now()), REALTIME, 0).context("after")?;
    let least = during.len() as u64 * Reading::OF_REALTIME;
    ensure!(
        counts.injected + skipped >= least,
        "{counts:?} and {skipped} of {least}"
    );
    off_by(&outside.finish(Duration::from_secs(10))?, REALTIME, 0).context("a bystander")?;
    drop(host);
    nothing_is_pinned()
}

vm_test!(
    without_an_agent_a_skew_ends_at_its_deadline_and_the_next_one_puts_the_bytes_back,
    limit = 90
);
fn without_an_agent_a_skew_ends_at_its_deadline_and_the_next_one_puts_the_bytes_back() -> Result<()>
{
    let target = Cgroup::new()?;
    let runs = reader(Place::host().in_cgroup(&target))?;
    let time = Duration::from_secs(5);
    let mut first = Node::open(Options::default())?;
    let asked = Stamp::now();
    first.set_desired(Owner("test".into()), vec![lasting(ahead(&target), time)]);
    first.reconcile();
    let armed = Stamp::now();
    // As after SIGKILL: nothing is undone. (The lock goes with the process.)
    drop(first);
    std::thread::sleep(time + Duration::from_secs(1));
    ensure!(!is_original(&runs)?, "there is nothing to put back");
    let mut second = Node::open(Options::default())?;
    eventually("the original vDSO", Duration::from_secs(10), || {
        second.reconcile();
        ensure!(is_original(&runs)?, "it is still changed");
        Ok(())
    })?;
    second.purge()?;
    let readings = runs.finish(Duration::from_secs(10))?;
    off_by(&within(&readings, armed, asked + time), REALTIME, HOUR).context("before")?;
    let after = within(&readings, armed + time, Stamp::now());
    off_by(&after, REALTIME, 0).context("after the deadline")?;
    nothing_is_pinned()
}

vm_test!(what_cannot_be_skewed_says_so, limit = 60);
fn what_cannot_be_skewed_says_so() -> Result<()> {
    let target = Cgroup::new()?;
    let mut host = Host::open()?;
    host.arm(ahead(&target))?;
    let caller: Process<i64> = Place::host().in_cgroup(&target).spawn(CALLER, &())?;
    caller.join(Duration::from_secs(10))?;
    let seen = host.observe("c").context("gone")?;
    ensure!(
        seen.degraded && seen.counts.failed == 1 && seen.reason.contains("time(2)"),
        "{seen:?}"
    );
    host.recover("c")?;

    let files = Scratch::new()?;
    let program = files.file("pause32", "")?;
    fs::write(&program, pause_of_32_bits())?;
    fs::set_permissions(&program, Permissions::from_mode(0o755))?;
    let mut command = Command::new(&program);
    Place::host().in_cgroup(&target).apply(&mut command)?;
    let mut child = command.spawn().context("no 32-bit programs here")?;
    // It is in the cgroup before it has become that program.
    let exe = format!("/proc/{}/exe", child.id());
    eventually("the program", Duration::from_secs(10), || {
        ensure!(fs::read_link(&exe)? == program, "not yet");
        Ok(())
    })?;
    let seen = host.settle(ahead(&target))?;
    ensure!(
        seen.phase == Phase::NotSupported && seen.reason.contains("32-bit program"),
        "{seen:?}"
    );
    child.kill()?;
    child.wait()?;
    Ok(())
}

/// The smallest program for i386: it calls pause(2) for ever.
fn pause_of_32_bits() -> Vec<u8> {
    const BASE: u32 = 0x0804_8000;
    const HEADERS: u32 = 52 + 32;
    // mov eax, 29; int 0x80; jmp to the first
    let code = [0xb8, 29, 0, 0, 0, 0xcd, 0x80, 0xeb, 0xf7];
    let size = HEADERS + code.len() as u32;
    let mut elf = b"\x7fELF\x01\x01\x01".to_vec();
    elf.resize(16, 0);
    // ET_EXEC, EM_386
    elf.extend([2, 0, 3, 0]);
    // e_version, e_entry, e_phoff, e_shoff, e_flags
    for word in [1, BASE + HEADERS, 52, 0, 0] {
        elf.extend(word.to_le_bytes());
    }
    // e_ehsize, e_phentsize, e_phnum, and no sections
    for half in [52_u16, 32, 1, 0, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    // PT_LOAD of the whole file, readable and executable
    for word in [1, 0, BASE, BASE, size, size, 5, 0x1000] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(code);
    elf
}

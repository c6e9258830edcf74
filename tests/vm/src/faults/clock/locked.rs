//! Programs that ran before the fault began and that nobody may stop, as with Yama's `ptrace_scope` 3 or
//! a seccomp profile without ptrace(2): probes in their C library are what is left.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chaos_agent::node::{Node, Options, Owner};
use chaos_planner::observed::Phase;
use nix::errno::Errno;
use nix::libc;

use super::reader::{Reading, off_by, reader};
use super::running::{is_original, within};
use super::runtimes::{Clock, Runtime};
use super::{HOUR, MONOTONIC, REALTIME, ahead};
use crate::cgroup::Cgroup;
use crate::clock::Stamp;
use crate::node::{Host, lasting, links, nothing_is_pinned};
use crate::process::{Place, on_a_thread};
use crate::vm_test;
use crate::wait::eventually;

/// Does this in a thread that may stop nobody, nor may those that it starts.
fn without_ptrace(act: impl FnOnce() -> Result<()> + Send) -> Result<()> {
    on_a_thread(|| {
        forbid_ptrace().context("failed to install a seccomp filter")?;
        act()
    })
}

/// For the calling thread, and for ever.
fn forbid_ptrace() -> nix::Result<()> {
    /// Of `seccomp_data` (include/uapi/linux/seccomp.h): the number of the call.
    const NUMBER: u32 = 0;
    let step = |code: u32, k: u32, jf: u8| libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf,
        k,
    };
    let mut filter = [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, NUMBER, 0),
        step(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            libc::SYS_ptrace as u32,
            1,
        ),
        step(
            libc::BPF_RET | libc::BPF_K,
            libc::SECCOMP_RET_ERRNO | libc::EPERM as u32,
            0,
        ),
        step(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0),
    ];
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the program is as long as it says, and the kernel copies it.
    let done = unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
        )
    };
    Errno::result(done).map(drop)
}

/// How many probes there are.
fn probes() -> usize {
    links("clock_probe_").len()
}

vm_test!(a_program_that_nobody_may_stop_is_probed, limit = 90);
fn a_program_that_nobody_may_stop_is_probed() -> Result<()> {
    let (target, bystander) = (Cgroup::new()?, Cgroup::new()?);
    let runs = reader(Place::host().in_cgroup(&target))?;
    let outside = reader(Place::host().in_cgroup(&bystander))?;
    std::thread::sleep(Duration::from_millis(500));
    let (mut asked, mut armed, mut recovering) = (Stamp(0), Stamp(0), Stamp(0));
    let mut recovered = Stamp(0);
    let mut counts = None;
    without_ptrace(|| {
        let mut host = Host::open()?;
        asked = Stamp::now();
        host.arm(ahead(&target))?;
        armed = Stamp::now();
        ensure!(probes() == 2, "{} probes for one function", probes());
        std::thread::sleep(Duration::from_secs(1));
        let seen = host.observe("c").context("gone")?;
        let expected = "only clock_gettime of";
        ensure!(seen.degraded && seen.reason.contains(expected), "{seen:?}");
        recovering = Stamp::now();
        counts = Some(host.recover("c")?);
        recovered = Stamp::now();
        ensure!(probes() == 0, "{} probes are left", probes());
        drop(host);
        nothing_is_pinned()
    })?;
    ensure!(is_original(&runs)?, "its vDSO has been changed");
    std::thread::sleep(Duration::from_millis(500));
    let readings = runs.finish(Duration::from_secs(10))?;
    off_by(&within(&readings, Stamp(0), asked), REALTIME, 0).context("before")?;
    let during = within(&readings, armed, recovering);
    off_by(&during, REALTIME, HOUR).context("during")?;
    off_by(&during, MONOTONIC, 0)?;
    off_by(&within(&readings, recovered, Stamp::now()), REALTIME, 0).context("after")?;
    // Each call once, whether the library asked the vDSO or the kernel; the two at the edges are cut.
    let counts = counts.context("not recovered")?;
    let all = within(&readings, asked, recovered).len() as u64 + 2;
    let expected = during.len() as u64 * Reading::OF_REALTIME..=all * Reading::OF_REALTIME;
    ensure!(
        expected.contains(&counts.injected),
        "{counts:?}, {expected:?}"
    );
    // It is the same program, in the same file.
    off_by(&outside.finish(Duration::from_secs(10))?, REALTIME, 0).context("a bystander")
}

vm_test!(
    probes_end_with_their_deadline_and_go_with_the_next_agent,
    limit = 90
);
fn probes_end_with_their_deadline_and_go_with_the_next_agent() -> Result<()> {
    let target = Cgroup::new()?;
    let runs = reader(Place::host().in_cgroup(&target))?;
    let time = Duration::from_secs(4);
    let (mut asked, mut armed) = (Stamp(0), Stamp(0));
    without_ptrace(|| {
        let mut first = Node::open(Options::default())?;
        asked = Stamp::now();
        first.set_desired(Owner("test".into()), vec![lasting(ahead(&target), time)]);
        first.reconcile();
        armed = Stamp::now();
        // As after SIGKILL: nothing is undone. (The lock goes with the process.)
        drop(first);
        std::thread::sleep(time + Duration::from_secs(1));
        ensure!(probes() == 2, "{} probes are left by the dead", probes());
        let mut second = Node::open(Options::default())?;
        eventually("no probes", Duration::from_secs(10), || {
            second.reconcile();
            ensure!(probes() == 0, "{} are left", probes());
            Ok(())
        })?;
        second.purge()?;
        Ok(())
    })?;
    let readings = runs.finish(Duration::from_secs(10))?;
    off_by(&within(&readings, armed, asked + time), REALTIME, HOUR).context("before")?;
    let after = within(&readings, armed + time, Stamp::now());
    off_by(&after, REALTIME, 0).context("after the deadline")?;
    nothing_is_pinned()
}

vm_test!(a_shared_library_is_probed_in_the_target_only, limit = 90);
fn a_shared_library_is_probed_in_the_target_only() -> Result<()> {
    let (target, bystander) = (Cgroup::new()?, Cgroup::new()?);
    without_ptrace(|| {
        let start = |program, cgroup| {
            Clock::start(&Runtime::new(program, &[]), Place::host().in_cgroup(cgroup))
        };
        let mut runs = start("/programs/clock-glibc", &target)?;
        let mut outside = start("/programs/clock-glibc", &bystander)?;
        let mut host = Host::open()?;
        host.arm(ahead(&target))?;
        runs.is_ahead(HOUR, 0).context("during")?;
        outside.is_ahead(0, 0).context("a bystander")?;
        let seen = host.observe("c").context("gone")?;
        ensure!(seen.reason.contains("of libc.so.6"), "{seen:?}");
        host.recover("c")?;
        runs.is_ahead(0, 0).context("after")?;
        drop(runs);
        // One in Go reads the vDSO by itself.
        let _go = start("/programs/clock-go", &target)?;
        let seen = host.settle(ahead(&target))?;
        let expected = "has no C library with a function clock_gettime";
        ensure!(
            seen.phase == Phase::NotSupported && seen.reason.contains(expected),
            "{seen:?}"
        );
        Ok(())
    })
}

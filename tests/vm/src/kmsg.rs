//! The kernel log: a test that makes the kernel complain has failed, whatever else it saw.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{Context, Result};

/// What a kernel in trouble says. Taken from lib/bug.c, kernel/panic.c, arch/x86/kernel/dumpstack.c,
/// kernel/hung_task.c, kernel/rcu/tree_stall.h and net/core/dev.c.
const SPLATS: [&str; 17] = [
    "BUG: ",
    "BUG at ",
    "WARNING: ",
    "Oops",
    "general protection fault",
    "kernel panic",
    "Kernel panic",
    "Call Trace:",
    "double fault",
    "divide error",
    "refcount_t: ",
    "list_add corruption",
    "list_del corruption",
    "blocked for more than",
    "detected stall",
    "unregister_netdevice: waiting for",
    "UBSAN: ",
];

/// Lines of context that a report has at most.
const LINES_OF_REPORT: usize = 30;

/// Reads the kernel log from where it left off.
#[derive(Debug)]
pub struct KernelLog {
    file: File,
}

impl KernelLog {
    /// Opens it at the first message since boot.
    ///
    /// # Errors
    /// /dev/kmsg cannot be opened.
    pub fn open() -> Result<KernelLog> {
        let flags = nix::fcntl::OFlag::O_NONBLOCK.bits();
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(flags)
            .open("/dev/kmsg");
        Ok(KernelLog {
            file: file.context("failed to open /dev/kmsg")?,
        })
    }

    /// The kernel's messages since the last call.
    ///
    /// # Errors
    /// /dev/kmsg cannot be read.
    pub fn read(&mut self) -> Result<Vec<String>> {
        let mut messages = Vec::new();
        let mut record = [0; 8192];
        loop {
            match self.file.read(&mut record) {
                Ok(length) => {
                    let text = String::from_utf8_lossy(record.get(..length).unwrap_or_default());
                    messages.extend(message(&text).map(str::to_owned));
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(messages),
                // The ring was overwritten; reading goes on at what is left.
                Err(e) if e.raw_os_error() == Some(nix::libc::EPIPE) => {}
                Err(e) => return Err(e).context("failed to read /dev/kmsg"),
            }
        }
    }
}

/// The text of a record of /dev/kmsg (`level,sequence,time,flags;text\n key=value…`), if the kernel
/// wrote it: user space has facilities above 0.
fn message(record: &str) -> Option<&str> {
    let (head, text) = record.split_once(';')?;
    let priority: u32 = head.split(',').next()?.parse().ok()?;
    (priority >> 3 == 0).then(|| text.lines().next().unwrap_or_default())
}

/// The first trouble in `messages` and what follows it; `None` if all is well.
pub fn splat<S: AsRef<str>>(messages: &[S]) -> Option<String> {
    let is_splat = |m: &S| SPLATS.iter().any(|s| m.as_ref().contains(s));
    let first = messages.iter().position(is_splat)?;
    let report = messages.iter().skip(first).take(LINES_OF_REPORT);
    Some(report.map(AsRef::as_ref).collect::<Vec<_>>().join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_kernel_trouble_is_a_splat() {
        for line in [
            "WARNING: CPU: 1 PID: 312 at net/sched/sch_fq.c:471 fq_enqueue+0x1f/0x2a0 [sch_fq]",
            "WARNING: net/core/skbuff.c:1198 at skb_release_head_state+0x5f/0x70, CPU#0: ping/91",
            "WARNING: possible recursive locking detected",
            "BUG: unable to handle page fault for address: ffffa0b2c0123000",
            "BUG: kernel NULL pointer dereference, address: 0000000000000018",
            "BUG: scheduling while atomic: kworker/0:1/9/0x00000002",
            "kernel BUG at mm/slub.c:547!",
            "Oops: 0002 [#1] PREEMPT SMP PTI",
            "Oops: general protection fault, probably for non-canonical address 0xdead0000: 0000 [#1]",
            "watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [swapper/1:0]",
            "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
            "INFO: task runner:77 blocked for more than 120 seconds.",
            "unregister_netdevice: waiting for eth0 to become free. Usage count = 2",
            "refcount_t: underflow; use-after-free.",
            "Kernel panic - not syncing: Attempted to kill init!",
        ] {
            assert!(splat(&[line]).is_some(), "{line}");
        }
    }

    #[test]
    fn what_a_healthy_kernel_says_is_not_a_splat() {
        let healthy = [
            "Linux version 6.12.107+deb13-cloud-amd64 (debian-kernel@lists.debian.org)",
            "IPv6: ADDRCONF(NETDEV_CHANGE): eth0: link becomes ready",
            "clocksource: tsc: mask: 0xffffffffffffffff max_cycles: 0x1cd42e4dffb, max_idle_ns: 1 ns",
            "eth0: renamed from other-end",
            "x86/cpu: SMAP/SMEP support missing; DEBUG_PAGEALLOC off",
            "Spectre V2 : Mitigation: Retpolines",
            "ACPI: Interpreter enabled",
        ];
        assert_eq!(splat(&healthy), None);
    }

    #[test]
    fn a_report_starts_at_the_trouble() {
        let report = splat(&["ok", "BUG: bad", "Call Trace:", "f+0x1"]).unwrap();
        assert_eq!(report, "BUG: bad\nCall Trace:\nf+0x1");
    }

    #[test]
    fn only_the_kernels_own_messages_count() {
        assert_eq!(
            message("4,812,5140900,-;BUG: x\n SUBSYSTEM=net\n"),
            Some("BUG: x")
        );
        assert_eq!(message("12,813,5140900,-;BUG: from user space\n"), None);
        assert_eq!(message("garbage"), None);
    }
}

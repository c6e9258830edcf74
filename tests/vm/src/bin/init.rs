//! PID 1 of a test VM: mounts, loads modules, runs the runner, powers off. There is no shell.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::wait::wait;
use vm_tests::{foreign, runtimes};

/// (kind, where); parents first.
const MOUNTS: [(&str, &str); 9] = [
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("tmpfs", "/tmp"),
    ("tmpfs", "/run"),
    ("cgroup2", vm_tests::cgroup::ROOT),
    ("bpf", vm_tests::machine::BPFFS),
    ("securityfs", "/sys/kernel/security"),
    ("tracefs", "/sys/kernel/tracing"),
];

#[expect(clippy::print_stderr, reason = "the console is all that PID 1 has")]
fn main() {
    if let Err(error) = run() {
        eprintln!("vm-init: {error:#}");
    }
    // PID 1 must not return; if this fails the kernel panics, which ends the machine as well.
    let _ = reboot(RebootMode::RB_POWER_OFF);
}

fn run() -> Result<()> {
    for (kind, path) in MOUNTS {
        // The initramfs has none of them; sysfs brings its own.
        let _ = fs::create_dir_all(path);
        let done = mount(Some(kind), path, Some(kind), MsFlags::empty(), None::<&str>);
        done.with_context(|| format!("failed to mount {kind} on {path}"))?;
    }
    vm_tests::machine::load_modules()?;
    runtimes::mount_disk()?;
    let _kept = foreign::keep_hooks().context("failed to keep the hooks of packets in use")?;
    let args: Vec<String> = std::env::args().skip(1).collect();
    let mut command = Command::new("/bin/vm-runner");
    command
        .arg("run")
        .args(args)
        .env(vm_tests::runner::IN_VM, "1")
        .env("PATH", "/bin");
    let runner = command.spawn().context("failed to start the runner")?;
    // Everything that loses its parent becomes a child of PID 1.
    loop {
        let ended = wait().context("failed to wait")?;
        if ended
            .pid()
            .is_some_and(|pid| pid.as_raw().cast_unsigned() == runner.id())
        {
            return Ok(());
        }
    }
}

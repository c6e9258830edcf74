//! Tests that must fail, each in another way: they show that the harness notices. They run only
//! when asked for by name; `cargo xtask test` does, and fails if one of them passes.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cgroup::Cgroup;
use crate::vm_test;

/// Part of the names of these tests.
pub(crate) const NAME: &str = "sabotage::";

vm_test!(hangs, limit = 1);
fn hangs() -> Result<()> {
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

vm_test!(leaves_a_cgroup_behind);
fn leaves_a_cgroup_behind() -> Result<()> {
    std::mem::forget(Cgroup::new()?);
    Ok(())
}

vm_test!(makes_the_kernel_complain);
fn makes_the_kernel_complain() -> Result<()> {
    // The backtraces of all CPUs: as near to a warning as can be had on demand.
    fs::write("/proc/sysrq-trigger", "l").context("failed to ask for backtraces")
}

vm_test!(panics);
fn panics() -> Result<()> {
    panic!("on purpose")
}

// The last one by name: nothing runs after it.
vm_test!(takes_the_machine_down);
fn takes_the_machine_down() -> Result<()> {
    fs::write("/proc/sysrq-trigger", "c").context("failed to crash the kernel")?;
    std::thread::sleep(Duration::from_secs(30));
    Ok(())
}

//! The machine's second disk: language runtimes and servers of Debian, which tests run in a chroot.
//!
//! Not here: what is on it and how it is made (`xtask/src/setup/runtimes.rs`), and the small programs
//! (`tests/vm/runtimes`).

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::unistd::{chdir, chroot};

use crate::registry::skip;

const DISK: &str = "/dev/vda";
const ROOT: &str = "/srv";

/// Mounts the disk, if the machine has it.
///
/// # Errors
/// The kernel refuses.
pub fn mount_disk() -> Result<()> {
    if !Path::new(DISK).exists() {
        return Ok(());
    }
    let on = |kind: &str, from: &str, path: &Path, flags: MsFlags| {
        std::fs::create_dir_all(path).context("failed to make a directory")?;
        mount(Some(from), path, Some(kind), flags, None::<&str>)
            .with_context(|| format!("failed to mount {kind} on {}", path.display()))
    };
    let root = Path::new(ROOT);
    on("ext4", DISK, root, MsFlags::MS_RDONLY)?;
    on("proc", "proc", &root.join("proc"), MsFlags::empty())?;
    on("devtmpfs", "dev", &root.join("dev"), MsFlags::empty())?;
    on("tmpfs", "tmp", &root.join("tmp"), MsFlags::empty())
}

/// A command whose program and paths are those of the disk.
///
/// # Errors
/// The machine has no such disk: the test is skipped.
pub fn command(program: &str) -> Result<Command> {
    if !Path::new(ROOT).join("programs").exists() {
        return skip("this machine has no disk with runtimes");
    }
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("PATH", "/usr/bin")
        .env("HOME", "/tmp");
    let enter = || {
        chroot(ROOT)?;
        chdir("/")?;
        Ok(())
    };
    // SAFETY: two system calls on constants, between fork and exec.
    unsafe { command.pre_exec(enter) };
    Ok(command)
}

/// Where a path of the disk is for the test itself.
pub fn outside(path: &str) -> PathBuf {
    Path::new(ROOT).join(path.trim_start_matches('/'))
}

//! The BPF toolchain for cargo builds, and `cargo xtask ebpf`: the kernel programs alone, as
//! objects to look at with `llvm-objdump` or `bpftool`.
//!
//! The objects that ship are built by `chaos-agent/build.rs`, which needs [`cargo_env`].

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::{out::say, setup, step};

const TARGET: &str = "bpfel-unknown-none";

/// The environment that a cargo build of `chaos-agent` needs: where the BPF linker is. Builds the
/// linker if it is not there yet.
///
/// # Errors
/// If rust-src or the linker cannot be had.
pub(crate) fn cargo_env() -> Result<Vec<(&'static str, OsString)>> {
    setup::rust::ensure()?;
    let linker = setup::bpf_linker::ensure()?;
    Ok(vec![(
        "CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER",
        linker.into_os_string(),
    )])
}

/// `cargo xtask ebpf`: builds every program of `chaos-ebpf` and lists the objects.
///
/// # Errors
/// If the build fails.
pub(crate) fn run(root: &Path) -> Result<()> {
    for object in objects(root)? {
        let size = fs::metadata(&object)
            .map(|metadata| metadata.len())
            .unwrap_or_default();
        say!("{:8} bytes  {}", size, object.display());
    }
    Ok(())
}

/// Builds the objects, one for each file of `chaos-ebpf/src/bin`, and returns their paths.
///
/// # Errors
/// If the build fails.
pub(crate) fn objects(root: &Path) -> Result<Vec<PathBuf>> {
    let env = cargo_env()?;
    // The directory and the flags of `chaos-agent/build.rs`, so that neither undoes the other's work.
    let target = root.join("target/ebpf");
    step::step("BPF objects", |step| {
        step.run(
            setup::rust::cargo()
                .current_dir(root)
                .args(["build", "--package", "chaos-ebpf", "--bins", "--release"])
                .args(["--target", TARGET, "-Z", "build-std=core", "--target-dir"])
                .arg(&target)
                .envs(env)
                // Stable rustc: only `-Z build-std` needs this.
                .env("RUSTC_BOOTSTRAP", "1")
                // Without debug information there is nothing to make BTF from.
                .env(
                    "CARGO_ENCODED_RUSTFLAGS",
                    "-Cdebuginfo=2\x1f-Clink-arg=--btf\x1f-Ctarget-cpu=v3",
                ),
        )
    })?;
    let mut objects = Vec::new();
    let programs = root.join("chaos-ebpf/src/bin");
    for entry in
        fs::read_dir(&programs).with_context(|| format!("failed to list {}", programs.display()))?
    {
        let source = entry.context("failed to list the programs")?.path();
        if let Some(stem) = source.file_stem() {
            objects.push(target.join(TARGET).join("release").join(stem));
        }
    }
    objects.sort();
    Ok(objects)
}

//! The initramfs of a test VM: init, the runner, the agent and the modules. No shell.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use vm_tests::kernels::Kernels;

use super::modules;
use crate::{
    ebpf,
    initramfs::Initramfs,
    setup::{apt, kernels::Kernel, rust},
    step::step,
};

/// The static binaries that go into the VM.
#[derive(Clone, Debug)]
pub(crate) struct Binaries {
    directory: PathBuf,
}

/// Builds them.
///
/// # Errors
/// If they do not compile.
pub(crate) fn build(root: &Path) -> Result<Binaries> {
    apt::ensure()?;
    let env = ebpf::cargo_env()?;
    step("test binaries", |step| {
        step.run(
            rust::cargo()
                .current_dir(root)
                .args([
                    "build",
                    "--profile",
                    "image",
                    "--target",
                    rust::STATIC_TARGET,
                ])
                .args(["--package", "vm-tests", "--package", "chaos-agent"])
                .envs(env),
        )
    })?;
    Ok(built(root))
}

/// Where they are once they are built.
pub(crate) fn built(root: &Path) -> Binaries {
    let directory = root.join("target").join(rust::STATIC_TARGET).join("image");
    Binaries { directory }
}

/// The archive for this kernel.
///
/// # Errors
/// If a binary or a module is missing.
pub(crate) fn pack(kernel: &Kernel, binaries: &Binaries) -> Result<Vec<u8>> {
    let mut archive = Initramfs::new();
    archive
        .directory("bin")
        .directory("etc")
        .directory("lib")
        .directory("lib/modules");
    for (path, binary) in [
        ("init", "vm-init"),
        ("bin/vm-runner", "vm-runner"),
        ("bin/chaos-agent", "chaos-agent"),
    ] {
        archive.copy(path, &binaries.directory.join(binary))?;
    }
    let dep = kernel.modules.join("modules.dep");
    let dep = fs::read_to_string(&dep).with_context(|| format!("failed to read {dep:?}"))?;
    // Newer packages have this list elsewhere; then every module has to be a file.
    let builtin = fs::read_to_string(kernel.modules.join("modules.builtin")).unwrap_or_default();
    let wanted = Kernels::read().context("tests/vm/kernels.toml")?.modules;
    let mut list = String::new();
    for file in modules::in_load_order(&dep, &builtin, &wanted)? {
        let name = file.rsplit('/').next().unwrap_or(file);
        archive.copy(&format!("lib/modules/{name}"), &kernel.modules.join(file))?;
        list.push_str(&format!("/lib/modules/{name}\n"));
    }
    archive.file("etc/modules", 0o644, list.as_bytes());
    Ok(archive.finish())
}

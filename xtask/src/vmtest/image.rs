//! The initramfs of a test VM: init, the runner, the agent and the modules. No shell.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use vm_tests::kernels::Kernels;

use crate::{
    image::{self, Profile},
    initramfs::Initramfs,
    setup::{apt, disk, kernels::Kernel},
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
pub(crate) fn build(root: &Path, profile: Profile) -> Result<Binaries> {
    apt::ensure()?;
    let directory = image::for_a_machine(root, profile)?;
    Ok(Binaries { directory })
}

/// Where they are once they are built.
pub(crate) fn built(root: &Path, profile: Profile) -> Binaries {
    let directory = profile.directory(root);
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
    let wanted = Kernels::read().context("tests/vm/kernels.toml")?;
    let modules: Vec<&str> = wanted.modules.iter().map(String::as_str).collect();
    let mut list = String::new();
    let files = kernel.module_files(&modules);
    let mut files = files.context("the modules of tests/vm/kernels.toml")?;
    for module in disk::MODULES {
        // What is missing is built in; Debian's newest kernel has no list of that. If it is not, the
        // second disk cannot be mounted, and init says so.
        files.extend(kernel.module_files(&[module]).unwrap_or_default());
    }
    for file in files {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        archive.copy(&format!("lib/modules/{name}"), &file)?;
        list.push_str(&format!("/lib/modules/{name}\n"));
    }
    archive.file("etc/modules", 0o644, list.as_bytes());
    Ok(archive.finish())
}

//! Builds `bpf-linker`, which turns the LLVM bitcode of `chaos-ebpf` into BPF objects. It is linked
//! against the LLVM that comes with our rustc, so it belongs to exactly that rustc.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{
    cache,
    step::{self, Step},
};

/// 0.13 is the first that takes LLVM 22, the one in Rust 1.95.
const VERSION: &str = "0.13";
const RECIPE: &str = "2";

/// Where `chaos-agent/build.rs` finds the linker when it was not started by xtask.
const LINK: &str = "bin/bpf-linker";

/// Returns the path of the linker; builds it first if it is not in the cache.
///
/// # Errors
/// If rustc has no LLVM library beside it, or the build fails.
pub(crate) fn ensure() -> Result<PathBuf> {
    let rustc = step::output(Command::new("rustc").arg("-vV"))?;
    let inputs = [RECIPE, VERSION, rustc.as_str()];
    let entry = cache::ensure("bpf-linker", "bpf-linker", &inputs, build)?;
    cache::link(LINK, &entry.join("bin/bpf-linker"))
}

fn build(step: &Step, entry: &Path) -> Result<()> {
    let sysroot = step::output(Command::new("rustc").args(["--print", "sysroot"]))?;
    let libraries = Path::new(sysroot.trim()).join("lib");
    let llvm = llvm_library(&libraries)?;
    // bpf-linker looks for `lib/libLLVM.so` under LLVM_PREFIX.
    let prefix = entry.join("llvm");
    fs::create_dir_all(prefix.join("lib"))
        .and_then(|()| std::os::unix::fs::symlink(llvm, prefix.join("lib/libLLVM.so")))
        .context("failed to link rustc's LLVM")?;
    step.run(
        Command::new("cargo")
            .args([
                "install",
                "bpf-linker",
                "--locked",
                "--version",
                &format!("^{VERSION}"),
            ])
            .args(["--no-default-features", "--features", "llvm-22", "--root"])
            .arg(entry)
            .env("LLVM_PREFIX", &prefix)
            // The work is LLVM's, which is compiled already: optimising the rest takes longer to build than
            // it saves in a hundred links.
            .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0")
            .env("CARGO_PROFILE_RELEASE_LTO", "off")
            // It runs outside of rustup's proxies too, which would set LD_LIBRARY_PATH.
            .env(
                "RUSTFLAGS",
                format!("-Clink-arg=-Wl,-rpath,{}", libraries.display()),
            )
            .env_remove("CARGO_TARGET_DIR"),
    )
}

fn llvm_library(libraries: &Path) -> Result<PathBuf> {
    fs::read_dir(libraries)
        .with_context(|| format!("failed to list {}", libraries.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("libLLVM.so."))
        })
        .with_context(|| format!("rustc has no libLLVM.so in {}", libraries.display()))
}

//! The machine under test: which kernel it has, where its bpffs is, and its modules. There is nobody in
//! it who would load a module when the kernel asks for it.

use std::ffi::CString;
use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::kmod::{DeleteModuleFlags, ModuleInitFlags, delete_module, finit_module};

use crate::wait::eventually;

/// Where init mounts bpffs.
pub const BPFFS: &str = "/sys/fs/bpf";

/// Where an agent pins its own in there.
pub(crate) const PINS: &str = "/sys/fs/bpf/faultline";

/// The paths of the modules, in the order to load them; written by `cargo xtask vm`.
const MODULES: &str = "/etc/modules";

/// `MODULE_INIT_COMPRESSED_FILE`, include/uapi/linux/module.h: the kernel unpacks the module.
const COMPRESSED: ModuleInitFlags = ModuleInitFlags::from_bits_retain(4);

/// What the kernel calls itself, such as `6.12.107`.
pub(crate) fn release() -> Result<String> {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease").context("no release")?;
    Ok(text.trim().to_owned())
}

/// Kernels that tests run on.
pub(crate) const KERNELS: usize = 3;

/// Which of them this is: a number below [`KERNELS`].
///
/// # Errors
/// If the kernel does not say.
pub(crate) fn kernel() -> Result<usize> {
    let release = release()?;
    let older = ["6.1.", "6.12."];
    let number = older.iter().position(|older| release.starts_with(older));
    Ok(number.unwrap_or(older.len()))
}

/// Loads all modules of the machine that are not loaded: at boot all, after a test those that it has
/// unloaded and was killed before it loaded them again.
///
/// # Errors
/// Which module, and what the kernel said.
pub fn load_modules() -> Result<()> {
    for path in modules()? {
        if !Path::new("/sys/module").join(name(&path)).exists() {
            load(&path)?;
        }
    }
    Ok(())
}

/// A module that is unloaded as long as this lives.
pub(crate) struct Without {
    path: String,
}

impl Without {
    /// Unloads a module, by its name in /proc/modules.
    pub(crate) fn module(wanted: &str) -> Result<Without> {
        let found = modules()?.into_iter().find(|path| name(path) == wanted);
        let path = found.with_context(|| format!("no {wanted} in {MODULES}"))?;
        let module = CString::new(wanted)?;
        // A qdisc of an earlier test may be on its way out.
        eventually("unloading a module", Duration::from_secs(10), || {
            delete_module(&module, DeleteModuleFlags::O_NONBLOCK)
                .with_context(|| format!("failed to unload {wanted}"))
        })?;
        Ok(Without { path })
    }
}

impl Drop for Without {
    fn drop(&mut self) {
        if let Err(error) = load(&self.path)
            && !std::thread::panicking()
        {
            panic!("{error:#}");
        }
    }
}

fn modules() -> Result<Vec<String>> {
    let text = fs::read_to_string(MODULES).with_context(|| format!("no {MODULES}"))?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// What the kernel calls the module of a file: it writes _ where the file's name may have -.
fn name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or_default();
    let stem = file.split('.').next().unwrap_or_default();
    stem.replace('-', "_")
}

fn load(path: &str) -> Result<()> {
    let file = File::open(path).with_context(|| format!("failed to open {path}"))?;
    let flags = if path.ends_with(".ko") {
        ModuleInitFlags::empty()
    } else {
        COMPRESSED
    };
    finit_module(&file, c"", flags).with_context(|| format!("failed to load {path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_has_the_name_that_the_kernel_gives_it() {
        for (path, expected) in [
            ("/lib/modules/sch_fq.ko", "sch_fq"),
            (
                "/lib/modules/6.12.0/kernel/net/sched/cls_bpf.ko.xz",
                "cls_bpf",
            ),
            ("nf-conntrack.ko.zst", "nf_conntrack"),
        ] {
            assert_eq!(name(path), expected, "{path}");
        }
    }
}

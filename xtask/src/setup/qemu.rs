//! QEMU of Debian 13, unpacked in the cache and run with its own libraries; nothing of it is installed.
//!
//! Debian 12's own, 7.2, emulates a good deal slower, and code that patches itself wrongly: a CPU that
//! meets the breakpoint of a patch which another CPU is done with goes on with the breakpoint.
//! Not here: what machines are made of (`qemu.rs`).

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use super::debs::Release;
use crate::{cache, step::Step};

const RECIPE: &str = "1";
const SUITE: &str = "trixie";

/// The emulator, and `qemu-img` for overlays.
const PACKAGES: [&str; 2] = ["qemu-system-x86", "qemu-utils"];

/// QEMU in the cache.
#[derive(Clone, Debug)]
pub(crate) struct Qemu {
    root: PathBuf,
}

/// Returns QEMU; downloads and unpacks it first if it is not in the cache.
///
/// # Errors
/// If Debian's packages cannot be fetched.
pub(crate) fn ensure() -> Result<Qemu> {
    let packages = PACKAGES.join(" ");
    let entry = cache::ensure("QEMU", "qemu", &[RECIPE, SUITE, &packages], unpack)?;
    Ok(Qemu {
        root: entry.join("root"),
    })
}

fn unpack(step: &Step, entry: &Path) -> Result<()> {
    let apt = entry.join("apt");
    let release = Release::open(step, SUITE, &apt)?;
    release.unpack(step, &release.closure(&PACKAGES)?, &entry.join("root"))?;
    cache::remove(&apt)
}

impl Qemu {
    /// The emulator.
    pub(crate) fn system(&self) -> Command {
        let mut command = self.program("qemu-system-x86_64");
        // It looks for them beside its program, which is the loader for it.
        for firmware in ["seabios", "qemu"] {
            command
                .arg("-L")
                .arg(self.root.join("usr/share").join(firmware));
        }
        command
    }

    /// What makes disk images.
    pub(crate) fn img(&self) -> Command {
        self.program("qemu-img")
    }

    /// One of its programs, with the libraries of its own release.
    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.root.join("usr/lib64/ld-linux-x86-64.so.2"));
        command
            .arg("--library-path")
            .arg(self.root.join("usr/lib/x86_64-linux-gnu"))
            .arg(self.root.join("usr/bin").join(name));
        command
    }
}

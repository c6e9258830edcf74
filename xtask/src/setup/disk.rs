//! Disks of the machines that are booted here: how they are made, and what a kernel needs to see one.

use std::{path::Path, process::Command};

use anyhow::Result;

use crate::step::Step;

/// The modules for an ext4 file system on a virtio disk. A kernel may have some of them built in.
pub(crate) const MODULES: [&str; 3] = ["virtio_pci", "virtio_blk", "ext4"];

/// Makes `image`, an ext4 file system of `size` (`2G`, `256M`) with what is in the directory `root`. The
/// file is sparse: only what is used takes room.
///
/// # Errors
/// If mke2fs fails, for example because `root` does not fit.
pub(crate) fn ext4(step: &Step, root: &Path, image: &Path, size: &str) -> Result<()> {
    step.run(
        Command::new("/sbin/mke2fs")
            .args(["-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-d"])
            .arg(root)
            .arg(image)
            .arg(size),
    )
}

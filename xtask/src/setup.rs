//! `cargo xtask setup`: everything that a build, a test or a cluster needs, from the Debian packages
//! to the root file system of a node. Each part is a function `ensure` that does nothing if it has
//! nothing to do, so commands call just the parts that they need.

pub(crate) mod apt;
pub(crate) mod bpf_linker;
pub(crate) mod debs;
pub(crate) mod disk;
pub(crate) mod kernels;
pub(crate) mod kube;
mod modules;
pub(crate) mod qemu;
pub(crate) mod rootfs;
pub(crate) mod runtimes;
pub(crate) mod rust;

use std::path::Path;

use anyhow::Result;

/// `cargo xtask setup`.
///
/// # Errors
/// The first part that failed. What was made before stays; run it again to go on.
pub(crate) fn run(root: &Path) -> Result<()> {
    apt::ensure()?;
    rootfs::check_root()?;
    // The longest part: it compiles while the others download.
    let kube = kube::start(root)?;
    rust::ensure()?;
    bpf_linker::ensure()?;
    qemu::ensure()?;
    for series in kernels::Series::ALL {
        kernels::ensure(series)?;
    }
    runtimes::ensure()?;
    rootfs::ensure(&kernels::ensure(rootfs::KERNEL)?)?;
    kube.wait()?;
    Ok(())
}

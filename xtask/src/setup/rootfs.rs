//! The disk of a cluster's node: Debian 13 with containerd, crun and the CNI plugins, and the modules
//! of the kernel it boots. What differs from node to node comes on a second disk at boot
//! (`cluster/node.rs`), so one image serves all.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use super::{
    debs, disk,
    kernels::{Kernel, Series},
};
use crate::{cache, initramfs::Initramfs, step::Step};

const RECIPE: &str = "1";
const SUITE: &str = "trixie";

/// What nodes run: Debian 13's own.
pub(crate) const KERNEL: Series = Series::V6_12;

/// Beside the essential packages.
const PACKAGES: [&str; 13] = [
    "busybox-static",
    "conntrack",
    "containerd",
    "containernetworking-plugins",
    "crun",
    "dropbear-bin",
    "iproute2",
    "iputils-ping",
    "kmod",
    "mount",
    "nftables",
    "procps",
    "runc",
];

/// Large, and read by nobody on a node.
const LEFT_OUT: [&str; 4] = [
    "/usr/share/doc/*",
    "/usr/share/man/*",
    "/usr/share/locale/*",
    "/usr/share/info/*",
];

/// Runs in the initramfs: mounts the disk and hands over to the node's own `init`.
const STAGE_ONE: &str = include_str!("rootfs/stage-one.sh");

/// What a node boots.
#[derive(Clone, Debug)]
pub(crate) struct NodeImage {
    /// An ext4 image. Boot an overlay of it: it is shared.
    pub(crate) disk: PathBuf,
    /// Mounts `/dev/vda`, unpacks the tar archive on `/dev/vdb` to `/run/node`, and runs
    /// `/run/node/init` as PID 1.
    pub(crate) initrd: PathBuf,
}

/// Fails early where [`ensure`] would fail late.
///
/// # Errors
/// If the packages are not in the cache yet and this is not run as root.
pub(crate) fn check_root() -> Result<()> {
    let packages = PACKAGES.join(",");
    let cached = cache::path("debian", &[RECIPE, SUITE, &packages])?.is_dir();
    ensure!(
        cached || nix::unistd::geteuid().is_root(),
        "only root can make the nodes' root file system: run this as root"
    );
    Ok(())
}

/// Returns the image for nodes that run `kernel`; makes it first if it is not in the cache.
///
/// # Errors
/// If Debian's packages cannot be fetched, or this is not run as root.
pub(crate) fn ensure(kernel: &Kernel) -> Result<NodeImage> {
    check_root()?;
    let packages = PACKAGES.join(",");
    let inputs = [RECIPE, SUITE, &packages];
    let debian = cache::ensure("node packages", "debian", &inputs, install)?;
    let inputs = [RECIPE, SUITE, &packages, &kernel.release, STAGE_ONE];
    let what = format!("node-{}", kernel.series.name());
    let entry = cache::ensure("node image", &what, &inputs, |step, entry| {
        assemble(step, &debian.join("root.tar"), kernel, entry)
    })?;
    Ok(NodeImage {
        disk: entry.join("disk.ext4"),
        initrd: entry.join("initrd"),
    })
}

fn install(step: &Step, entry: &Path) -> Result<()> {
    let mut command = Command::new("mmdebstrap");
    command.args([
        "--variant=essential",
        "--architectures=amd64",
        "--aptopt=Acquire::Languages \"none\"",
    ]);
    for pattern in LEFT_OUT {
        command.arg(format!("--dpkgopt=path-exclude={pattern}"));
    }
    command
        .arg(format!("--include={}", PACKAGES.join(",")))
        .arg(SUITE)
        .arg(entry.join("root.tar"))
        .arg(debs::mirror()?)
        .env("DEBIAN_FRONTEND", "noninteractive");
    step.run(&mut command)
}

fn assemble(step: &Step, archive: &Path, kernel: &Kernel, entry: &Path) -> Result<()> {
    let root = entry.join("root");
    fs::create_dir_all(&root).context("failed to make a directory")?;
    step.progress("unpacking the packages");
    step.run(
        Command::new("tar")
            .arg("-xf")
            .arg(archive)
            .arg("-C")
            .arg(&root),
    )?;
    let modules = root.join("usr/lib/modules");
    fs::create_dir_all(&modules).context("failed to make a directory")?;
    step.progress("copying the kernel's modules");
    step.run(
        Command::new("cp")
            .arg("-a")
            .arg(&kernel.modules)
            .arg(modules.join(&kernel.release)),
    )?;
    fs::write(entry.join("initrd"), stage_one(&root, kernel)?)
        .context("failed to write the initrd")?;
    step.progress("making the disk");
    disk::ext4(step, &root, &entry.join("disk.ext4"), "8G")?;
    cache::remove(&root)
}

fn stage_one(root: &Path, kernel: &Kernel) -> Result<Vec<u8>> {
    let mut archive = Initramfs::new();
    for directory in ["bin", "proc", "sys", "modules", "root"] {
        archive.directory(directory);
    }
    archive.copy("bin/busybox", &root.join("usr/bin/busybox"))?;
    archive.symlink("bin/sh", "busybox");
    archive.file("init", 0o755, STAGE_ONE.as_bytes());
    for (number, path) in kernel.module_files(&disk::MODULES)?.iter().enumerate() {
        let content = if path.extension().is_some_and(|extension| extension == "xz") {
            let output = Command::new("xz")
                .arg("-dc")
                .arg(path)
                .output()
                .context("failed to start xz")?;
            ensure!(
                output.status.success(),
                "failed to unpack {}",
                path.display()
            );
            output.stdout
        } else {
            fs::read(path).with_context(|| format!("failed to read {}", path.display()))?
        };
        // The shell sorts what it expands: the number is the order.
        archive.file(&format!("modules/{number:02}.ko"), 0o644, &content);
    }
    Ok(archive.finish())
}

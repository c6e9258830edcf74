//! The stock Debian kernels that everything is tested on, unpacked in the cache: no package of
//! them is installed on this machine.
//!
//! Mirrors drop superseded packages, so a series is pinned, not a version; tests report the exact
//! release they ran on. An entry of the cache is kept; `FAULTLINE_REFRESH_KERNELS=1` looks for newer
//! ones.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use super::{debs::Release, modules};
use crate::{cache, step::Step};

/// Changes when the same packages are unpacked differently.
const RECIPE: &str = "3";

/// The package that depends on a Debian release's newest kernel for virtual machines.
const META_PACKAGE: &str = "linux-image-cloud-amd64";

/// Which kernel; in the order of their age.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum)]
pub(crate) enum Series {
    /// Debian 12: the oldest that is supported.
    #[value(name = "6.1")]
    V6_1,
    /// Debian 13: what cluster nodes run.
    #[value(name = "6.12")]
    V6_12,
    /// The newest 7.x of Debian sid.
    #[value(name = "7")]
    V7,
}

/// A kernel in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kernel {
    /// Which one was asked for.
    pub(crate) series: Series,
    /// What `uname -r` prints, for example `6.12.107+deb13-cloud-amd64`.
    pub(crate) release: String,
    /// The bzImage for [`crate::qemu::Machine::kernel`].
    pub(crate) vmlinuz: PathBuf,
    /// What belongs at `/lib/modules/<release>` of the guest, `modules.dep` included. Modules are
    /// `.ko` in 6.1 and `.ko.xz` in the others.
    pub(crate) modules: PathBuf,
}

impl Series {
    /// All, oldest first.
    pub(crate) const ALL: [Self; 3] = [Self::V6_1, Self::V6_12, Self::V7];

    /// As users write it: `6.1`, `6.12`, `7`. The kernel's release starts with it and a dot.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
            Self::V7 => "7",
        }
    }

    fn suite(self) -> &'static str {
        match self {
            Self::V6_1 => "bookworm",
            Self::V6_12 => "trixie",
            Self::V7 => "sid",
        }
    }
}

impl Kernel {
    /// The files of these modules and of all that they depend on, in the order to load them; those that
    /// are built into the kernel have none.
    ///
    /// # Errors
    /// If the kernel has no such module.
    pub(crate) fn module_files(&self, wanted: &[&str]) -> Result<Vec<PathBuf>> {
        let dep = self.modules.join("modules.dep");
        let dep = fs::read_to_string(&dep)
            .with_context(|| format!("failed to read {}", dep.display()))?;
        // Newer packages have this list elsewhere; then every module has to be a file.
        let builtin = fs::read_to_string(self.modules.join("modules.builtin")).unwrap_or_default();
        let files = modules::in_load_order(&dep, &builtin, wanted)
            .with_context(|| format!("Linux {}", self.release))?;
        Ok(files.iter().map(|file| self.modules.join(file)).collect())
    }
}

/// Returns the kernel; downloads and unpacks it first if it is not in the cache.
///
/// # Errors
/// If the mirror has no kernel of this series, or cannot be reached.
pub(crate) fn ensure(series: Series) -> Result<Kernel> {
    let what = format!("kernel-{}", series.name());
    let inputs = [RECIPE, series.suite()];
    if std::env::var_os("FAULTLINE_REFRESH_KERNELS").is_some() {
        cache::remove(&cache::path(&what, &inputs)?)?;
    }
    let step_name = format!("kernel {}", series.name());
    let entry = cache::ensure(&step_name, &what, &inputs, |step, entry| {
        fetch(step, series, entry)
    })?;
    let release = only_directory(&entry.join("lib/modules"))?;
    let modules = entry.join("lib/modules").join(&release);
    Ok(Kernel {
        series,
        release,
        vmlinuz: entry.join("vmlinuz"),
        modules,
    })
}

fn fetch(step: &Step, series: Series, entry: &Path) -> Result<()> {
    let apt = entry.join("apt");
    let release = Release::open(step, series.suite(), &apt)?;
    let packages = kernel_packages(&release, META_PACKAGE.to_owned())?;
    let root = entry.join("root");
    release.unpack(step, &packages, &root)?;
    cache::remove(&apt)?;

    let merged = root.join("usr/lib/modules");
    let modules = if merged.is_dir() {
        merged
    } else {
        root.join("lib/modules")
    };
    let uname = only_directory(&modules)?;
    ensure!(
        uname.starts_with(&format!("{}.", series.name())),
        "{META_PACKAGE} of {} is Linux {uname}, not {}: Debian has moved on, adapt this file",
        series.suite(),
        series.name()
    );
    let image = [
        modules.join(&uname).join("vmlinuz"),
        root.join(format!("boot/vmlinuz-{uname}")),
    ]
    .into_iter()
    .find(|path| path.is_file())
    .with_context(|| format!("no vmlinuz in {packages:?}"))?;
    let target = entry.join("lib/modules");
    fs::create_dir_all(&target)
        .and_then(|()| fs::rename(image, entry.join("vmlinuz")))
        .and_then(|()| fs::rename(modules.join(&uname), target.join(&uname)))
        .context("failed to move the kernel's files")?;
    cache::remove(&root)?;
    // The packages leave this to their install script, which does not run here.
    step.run(
        Command::new("/sbin/depmod")
            .arg("-b")
            .arg(entry)
            .arg(&uname),
    )
}

/// The packages with the kernel's files. `linux-image-cloud-amd64` depends on
/// `linux-image-6.1.0-50-cloud-amd64`, which has them, or, in newer releases, depends in turn on a
/// `linux-binary-` and a `linux-modules-` package.
fn kernel_packages(release: &Release, package: String) -> Result<Vec<String>> {
    let depends = release.depends(&package)?;
    let starting = |prefix: &str| {
        depends
            .iter()
            .filter(|name| name.starts_with(prefix))
            .cloned()
            .collect::<Vec<_>>()
    };
    if let Some(image) = starting("linux-image-").pop() {
        return kernel_packages(release, image);
    }
    let parts = [starting("linux-binary-"), starting("linux-modules-")].concat();
    Ok(if parts.is_empty() {
        vec![package]
    } else {
        parts
    })
}

fn only_directory(path: &Path) -> Result<String> {
    let mut entries =
        fs::read_dir(path).with_context(|| format!("failed to list {}", path.display()))?;
    let entry = entries
        .next()
        .with_context(|| format!("{} is empty", path.display()))??;
    Ok(entry.file_name().to_string_lossy().into_owned())
}

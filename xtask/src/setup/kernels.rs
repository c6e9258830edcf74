//! The stock Debian kernels that everything is tested on, unpacked in the cache: no package of
//! them is installed on this machine. Which ones is said by `tests/vm/kernels.toml`.
//!
//! An entry is kept until its lines in that file change; `FAULTLINE_REFRESH_KERNELS=1` looks for
//! newer ones.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::debs::Release;
use crate::{cache, step::Step};

/// Changes when the same packages are unpacked differently.
const RECIPE: &str = "2";

/// A kernel of `tests/vm/kernels.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Pin {
    /// As users name it: `6.1`. The kernel's own release starts with it.
    pub(crate) name: String,
    /// Debian's release that has it: `bookworm`.
    pub(crate) suite: String,
    /// Its packages. A `*` stands for anything: the newest that matches is taken. A package that
    /// only depends on the one with the kernel is followed there.
    pub(crate) packages: Vec<String>,
}

/// A kernel in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kernel {
    /// [`Pin::name`].
    pub(crate) name: String,
    /// What `uname -r` prints, for example `6.12.107+deb13-cloud-amd64`.
    pub(crate) release: String,
    /// The bzImage for [`crate::qemu::Machine::kernel`].
    pub(crate) vmlinuz: PathBuf,
    /// What belongs at `/lib/modules/<release>` of the guest, `modules.dep` included. Modules are
    /// `.ko` in 6.1 and `.ko.xz` in the others.
    pub(crate) modules: PathBuf,
}

/// Reads the kernels of `tests/vm/kernels.toml`, in its order: oldest first.
///
/// # Errors
/// If the file cannot be read or understood.
pub(crate) fn pins(root: &Path) -> Result<Vec<Pin>> {
    #[derive(Deserialize)]
    struct File {
        kernel: Vec<Pin>,
    }
    let path = root.join("tests/vm/kernels.toml");
    let text =
        fs::read_to_string(&path).with_context(|| format!("failed to read {}", path.display()))?;
    let file: File = toml::from_str(&text)
        .with_context(|| format!("failed to understand {}", path.display()))?;
    Ok(file.kernel)
}

/// The pin with this name.
///
/// # Errors
/// If there is none: then with those that there are.
pub(crate) fn pin(root: &Path, name: &str) -> Result<Pin> {
    let pins = pins(root)?;
    let names = pins
        .iter()
        .map(|pin| pin.name.as_str())
        .collect::<Vec<_>>()
        .join(", ");
    pins.into_iter()
        .find(|pin| pin.name == name)
        .with_context(|| format!("there is no kernel {name:?}; there are {names}"))
}

/// Returns the kernel; downloads and unpacks it first if it is not in the cache.
///
/// # Errors
/// If the mirror has no such packages, or cannot be reached.
pub(crate) fn ensure(pin: &Pin) -> Result<Kernel> {
    let what = format!("kernel-{}", pin.name);
    let packages = pin.packages.join(" ");
    let inputs = [RECIPE, &pin.suite, &packages];
    if std::env::var_os("FAULTLINE_REFRESH_KERNELS").is_some() {
        cache::remove(&cache::path(&what, &inputs)?)?;
    }
    let step_name = format!("kernel {}", pin.name);
    let entry = cache::ensure(&step_name, &what, &inputs, |step, entry| {
        fetch(step, pin, entry)
    })?;
    let release = only_directory(&entry.join("lib/modules"))?;
    let modules = entry.join("lib/modules").join(&release);
    Ok(Kernel {
        name: pin.name.clone(),
        release,
        vmlinuz: entry.join("vmlinuz"),
        modules,
    })
}

fn fetch(step: &Step, pin: &Pin, entry: &Path) -> Result<()> {
    let apt = entry.join("apt");
    let release = Release::open(step, &pin.suite, &apt)?;
    let packages = resolve(&release, &pin.packages)?;
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
        uname.starts_with(&format!("{}.", pin.name)),
        "{} of {} have Linux {uname}, not {}: Debian has moved on, adapt tests/vm/kernels.toml",
        pin.packages.join(", "),
        pin.suite,
        pin.name
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

/// The packages to download: patterns replaced by the newest match, meta packages by what has the
/// kernel's files.
fn resolve(release: &Release, packages: &[String]) -> Result<Vec<String>> {
    let mut resolved = Vec::new();
    for package in packages {
        let name = if package.contains('*') {
            release.newest(package)?
        } else {
            package.clone()
        };
        resolved.extend(follow(release, name)?);
    }
    Ok(resolved)
}

/// `linux-image-cloud-amd64` depends on `linux-image-6.1.0-50-cloud-amd64`, which has the files, or,
/// in newer releases, depends in turn on a `linux-binary-` and a `linux-modules-` package.
fn follow(release: &Release, package: String) -> Result<Vec<String>> {
    if !package.starts_with("linux-image-") {
        return Ok(vec![package]);
    }
    let depends = release.depends(&package)?;
    let starting = |prefix: &str| {
        depends
            .iter()
            .filter(|name| name.starts_with(prefix))
            .cloned()
            .collect::<Vec<_>>()
    };
    if let Some(image) = starting("linux-image-").pop() {
        return follow(release, image);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pins_of_the_repository_can_be_read() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let pins = pins(&root).unwrap();
        assert!(
            pins.iter().any(|pin| pin.name == "6.12"),
            "nodes run this one: {pins:?}"
        );
        let error = pin(&root, "5.4").unwrap_err().to_string();
        assert!(error.contains("6.12"), "{error}");
    }
}

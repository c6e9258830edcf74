//! Compiles the Kubernetes binary of `xtask/kube`: etcd, the control plane, kubelet, kube-proxy and
//! kubectl in one file. That takes minutes on two cores, so it can be started early and waited for
//! late; an interrupted build goes on where it was, by Go's own cache.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread::JoinHandle,
};

use anyhow::{Context, Result, anyhow, ensure};

use super::disk;
use crate::{
    cache,
    step::{self, Step},
};

const RECIPE: &str = "2";

/// The names that the binary answers to.
const PARTS: [&str; 8] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-egress",
    "kube-proxy",
    "kube-scheduler",
    "kubectl",
    "kubelet",
];

/// Kubernetes in the cache.
#[derive(Clone, Debug)]
pub(crate) struct Kube {
    /// Has a link for each part: `bin/kubectl`, `bin/etcd`, …
    pub(crate) bin: PathBuf,
    /// The same directory as an ext4 image, for a node to mount.
    pub(crate) image: PathBuf,
}

/// A build that goes on in a thread.
#[derive(Debug)]
pub(crate) struct Building {
    thread: JoinHandle<Result<Kube>>,
}

/// Fails early where a build would fail late.
///
/// # Errors
/// If there is something to build and no Go that could.
pub(crate) fn check(root: &Path) -> Result<()> {
    if is_built(root)? { Ok(()) } else { check_go() }
}

/// Starts the build, at low priority, and returns at once.
///
/// # Errors
/// As [`check`].
pub(crate) fn start(root: &Path) -> Result<Building> {
    check(root)?;
    let root = root.to_owned();
    Ok(Building {
        thread: std::thread::spawn(move || ensure(&root)),
    })
}

/// Whether there is nothing to build.
///
/// # Errors
/// If its sources or the cache cannot be found.
pub(crate) fn is_built(root: &Path) -> Result<bool> {
    Ok(cache::path("kube", &as_strs(&inputs(root)?))?.is_dir())
}

impl Building {
    /// Waits until it is built.
    ///
    /// # Errors
    /// As [`ensure`].
    pub(crate) fn wait(self) -> Result<Kube> {
        self.thread
            .join()
            .map_err(|_| anyhow!("the thread that builds Kubernetes panicked"))?
    }
}

/// Returns Kubernetes; builds it first if it is not in the cache.
///
/// # Errors
/// If Go is missing, a module cannot be fetched, or the build fails.
pub(crate) fn ensure(root: &Path) -> Result<Kube> {
    let source = root.join("xtask/kube");
    let inputs = inputs(root)?;
    let entry = cache::ensure("Kubernetes", "kube", &as_strs(&inputs), |step, entry| {
        build(step, &source, entry)
    })?;
    Ok(Kube {
        bin: entry.join("bin"),
        image: entry.join("kube.ext4"),
    })
}

fn inputs(root: &Path) -> Result<Vec<String>> {
    let mut inputs = vec![RECIPE.to_owned()];
    for file in ["go.mod", "go.sum", "main.go"] {
        let path = root.join("xtask/kube").join(file);
        let text = fs::read_to_string(&path)
            .with_context(|| format!("failed to read {}", path.display()))?;
        inputs.push(text);
    }
    Ok(inputs)
}

fn as_strs(inputs: &[String]) -> Vec<&str> {
    inputs.iter().map(String::as_str).collect()
}

/// Any Go that can fetch the one that go.mod asks for.
fn check_go() -> Result<()> {
    let wanted = "install Go 1.21 or newer and put its `bin` into PATH (Debian 12's own package \
                  `golang-go` is older; the one of bookworm-backports will do)";
    let version = step::output(Command::new("go").arg("version")).context(wanted)?;
    ensure!(
        can_fetch_toolchains(&version),
        "{} is too old: {wanted}",
        version.trim()
    );
    Ok(())
}

/// `go version go1.26.8 linux/amd64`; what cannot be read (a development version) is new.
fn can_fetch_toolchains(version: &str) -> bool {
    version
        .split_whitespace()
        .find_map(|word| word.strip_prefix("go1."))
        .and_then(|rest| {
            rest.split(|c: char| !c.is_ascii_digit())
                .next()?
                .parse::<u32>()
                .ok()
        })
        .is_none_or(|minor| minor >= 21)
}

fn build(step: &Step, source: &Path, entry: &Path) -> Result<()> {
    let downloading = |line: &str| {
        let what = line.strip_prefix("go: downloading ")?;
        Some(format!("fetching {what}"))
    };
    // An older Go fetches the release that go.mod asks for, here and once.
    step.progress("fetching Go");
    step.run_watched(go(source).arg("version"), downloading)?;
    step.progress("fetching modules");
    let version =
        step::output(go(source).args(["list", "-m", "-f", "{{.Version}}", "k8s.io/kubernetes"]))?;
    let version = version.trim();
    let mut packages = 0;
    step.run_watched(go(source).args(["list", "-deps", "."]), |line| {
        let fetched = downloading(line);
        packages += u32::from(fetched.is_none());
        fetched
    })?;

    let bin = entry.join("bin");
    fs::create_dir_all(&bin).context("failed to make a directory")?;
    let mut compiled = 0;
    step.run_watched(
        go(source)
            // Debug information is not linked (`-s -w`), so making it would be a fifth of the work for nothing.
            .args([
                "build",
                "-v",
                "-trimpath",
                "-gcflags=all=-dwarf=false",
                "-ldflags",
            ])
            .arg(format!(
                "-s -w -X k8s.io/component-base/version.gitVersion={version}"
            ))
            .arg("-o")
            .arg(bin.join("kube"))
            .arg("."),
        |package| {
            // Packages that are in Go's cache already are not named.
            compiled += 1;
            Some(format!(
                "{compiled} of at most {packages} packages: {package}"
            ))
        },
    )?;
    for part in PARTS {
        std::os::unix::fs::symlink("kube", bin.join(part)).context("failed to link a part")?;
    }
    step.progress("making the image for nodes");
    disk::ext4(step, &bin, &entry.join("kube.ext4"), "256M")
}

fn go(source: &Path) -> Command {
    let mut command = Command::new("nice");
    command
        .args(["-n", "19", "go"])
        .current_dir(source)
        // Static: the same file runs on this machine and on a node.
        .env("CGO_ENABLED", "0")
        .env("GOTOOLCHAIN", "auto")
        // The compilers live for seconds: collecting their garbage is a sixth of the work.
        .env("GOGC", "off")
        .env("GOMEMLIMIT", "4GiB")
        .env_remove("GOFLAGS");
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_go_that_fetches_others_will_do() {
        assert!(!can_fetch_toolchains("go version go1.19.8 linux/amd64"));
        assert!(can_fetch_toolchains("go version go1.21 linux/amd64"));
        assert!(can_fetch_toolchains("go version go1.26.8 linux/amd64"));
        assert!(can_fetch_toolchains("go version devel linux/amd64"));
    }
}

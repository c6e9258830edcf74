//! Cgroups that go when the test does.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::wait::eventually;

/// Where init mounts cgroup2.
pub const ROOT: &str = "/sys/fs/cgroup";

/// Opens the names of all cgroups that tests make, so that the runner can find what is left.
pub const PREFIX: &str = "vm-";

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A cgroup. Its processes are killed and it is removed on drop.
///
/// A socket belongs to the cgroup that its process was in when the socket was *opened*. So put
/// processes into it by [`Place`](crate::process::Place), which moves them in before they run.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// A new one right below the root (depth 1).
    ///
    /// # Errors
    /// The kernel did not make it.
    pub fn new() -> Result<Cgroup> {
        Cgroup::below(Path::new(ROOT))
    }

    /// A new one with the name that a kubelet would give to that of the pod `uid`.
    ///
    /// # Errors
    /// The kernel did not make it.
    pub fn of_pod(uid: &str) -> Result<Cgroup> {
        let end = format!("-pod{}.slice", uid.replace('-', "_"));
        Cgroup::named(Path::new(ROOT), &end)
    }

    /// A new one inside this one. Drop it before its parent.
    ///
    /// # Errors
    /// The kernel did not make it.
    pub fn child(&self) -> Result<Cgroup> {
        Cgroup::below(&self.path)
    }

    fn below(parent: &Path) -> Result<Cgroup> {
        Cgroup::named(parent, "")
    }

    fn named(parent: &Path, end: &str) -> Result<Cgroup> {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("{PREFIX}{}-{count}{end}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("failed to make {}", path.display()))?;
        Ok(Cgroup { path })
    }

    /// Absolute path, for `chaos-agent apply --cgroup`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What BPF calls its id: the inode number.
    ///
    /// # Errors
    /// It is gone.
    pub fn id(&self) -> Result<u64> {
        id(&self.path)
    }

    /// Processes that are in it now.
    ///
    /// # Errors
    /// It is gone.
    pub fn pids(&self) -> Result<Vec<u32>> {
        let file = self.path.join("cgroup.procs");
        let text = fs::read_to_string(&file)
            .with_context(|| format!("failed to read {}", file.display()))?;
        Ok(text.lines().filter_map(|pid| pid.parse().ok()).collect())
    }

    /// Kills everything in it and removes it, with an error where drop would be silent.
    ///
    /// # Errors
    /// Something in it would not go within 5 s.
    pub fn remove(self) -> Result<()> {
        remove(&self.path)
    }
}

/// What BPF calls the id of the cgroup at `path`.
pub(crate) fn id(path: &Path) -> Result<u64> {
    let meta =
        fs::metadata(path).with_context(|| format!("failed to look at {}", path.display()))?;
    Ok(meta.ino())
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Nobody can be told here; the runner finds what stays and fails the test.
        let _ = remove(&self.path);
    }
}

/// Kills all in the cgroup at `path` and below, and removes it.
fn remove(path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    fs::write(path.join("cgroup.kill"), "1")
        .with_context(|| format!("failed to kill what is in {}", path.display()))?;
    for entry in fs::read_dir(path)?.flatten() {
        if entry.path().is_dir() {
            remove(&entry.path())?;
        }
    }
    eventually("the cgroup is empty", Duration::from_secs(5), || {
        fs::remove_dir(path).with_context(|| format!("failed to remove {}", path.display()))
    })
}

/// Removes what tests have left below the root.
///
/// # Errors
/// Something was left; it names it, removed or not.
pub fn sweep() -> Result<()> {
    let mut left = Vec::new();
    for entry in fs::read_dir(ROOT)
        .context("failed to list cgroups")?
        .flatten()
    {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(PREFIX) && entry.path().is_dir() {
            let _ = remove(&entry.path());
            left.push(name);
        }
    }
    ensure!(left.is_empty(), "left cgroups behind: {}", left.join(", "));
    Ok(())
}

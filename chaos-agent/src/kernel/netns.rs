//! Network namespaces: to name one, to find it again, to do something inside it.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns, unshare};

/// Inode of a namespace file such as `/proc/1/ns/net`: its name as long as it lives.
///
/// # Errors
/// When the file cannot be read: the process has ended, or CAP_SYS_PTRACE is missing.
pub fn inode(path: &Path) -> io::Result<u64> {
    Ok(fs::metadata(path)?.ino())
}

/// A namespace file of the namespace with this inode: `likely` if that is still right, else that
/// of any process in it, else one that a container runtime keeps in `/run/netns` of the host.
/// `None` when there is none: devices in it are gone, or go with it.
pub fn find(proc_root: &Path, inode_wanted: u64, likely: &Path) -> Option<PathBuf> {
    let is = |path: &Path| inode(path).is_ok_and(|found| found == inode_wanted);
    if is(likely) {
        return Some(likely.to_owned());
    }
    let entries = |directory: PathBuf| fs::read_dir(directory).into_iter().flatten().flatten();
    let is_pid = |name: &OsStr| name.as_encoded_bytes().iter().all(u8::is_ascii_digit);
    let processes = entries(proc_root.to_owned())
        .filter(|entry| is_pid(&entry.file_name()))
        .map(|entry| entry.path().join("ns/net"));
    // The agent's own /run is not the host's.
    let kept = entries(proc_root.join("1/root/run/netns")).map(|entry| entry.path());
    processes.chain(kept).find(|path| is(path))
}

/// Runs `act` with this thread inside the namespace, and comes back. A thread of its own would be no
/// safer and take longer than most of what is done inside.
///
/// # Errors
/// When the namespace cannot be opened or entered, or what `act` fails with.
///
/// # Panics
/// When this thread cannot come back: it must do nothing more.
pub fn within<T, E: From<io::Error>>(
    namespace: &Path,
    act: impl FnOnce() -> Result<T, E>,
) -> Result<T, E> {
    within_open(&File::open(namespace)?, act)
}

/// The same in a namespace whose file is open.
///
/// # Errors
/// As [`within`].
///
/// # Panics
/// As [`within`].
pub fn within_open<T, E: From<io::Error>>(
    namespace: &File,
    act: impl FnOnce() -> Result<T, E>,
) -> Result<T, E> {
    away(|| setns(namespace, CloneFlags::CLONE_NEWNET), act)
}

/// The namespace that this thread is in, which lives as long as the file is open.
///
/// # Errors
/// When /proc cannot be read.
pub fn of_this_thread() -> io::Result<File> {
    File::open("/proc/thread-self/ns/net")
}

/// The namespace that a thread comes back to, whatever happens in the other.
struct Home(File);

impl Drop for Home {
    fn drop(&mut self) {
        let back = setns(&self.0, CloneFlags::CLONE_NEWNET);
        assert!(
            back.is_ok(),
            "failed to come back from a network namespace: {back:?}"
        );
    }
}

/// Runs `act` in a new namespace that is gone afterwards.
///
/// # Errors
/// When no namespace can be made, or what `act` fails with.
///
/// # Panics
/// As [`within`].
pub fn scratch<T, E: From<io::Error>>(act: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    away(|| unshare(CloneFlags::CLONE_NEWNET), act)
}

/// Leaves this thread's namespace by `leave`, runs `act`, and comes back.
fn away<T, E: From<io::Error>>(
    leave: impl FnOnce() -> nix::Result<()>,
    act: impl FnOnce() -> Result<T, E>,
) -> Result<T, E> {
    let _home = Home(of_this_thread()?);
    leave().map_err(io::Error::from)?;
    act()
}

//! The cache of what `setup` makes: outside `target/`, so that it outlives `cargo clean` and serves
//! every clone. An entry is a directory `<what>-<hash of its inputs>`; it is made under a temporary
//! name and renamed when it is complete, so an interrupted step is simply done again. Its time of change
//! is the time of its last use; one that others have replaced goes when it was not used for long.
//!
//! Not here: how an entry is made (`setup/*.rs`).

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::{
    out::note,
    step::{self, Step},
};

/// An entry for other inputs is removed when nobody has used it for this time: other branches and
/// clones come back to theirs.
const UNUSED: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// Hexadecimal digits of a key.
const KEY_LENGTH: usize = 12;

/// `$FAULTLINE_CACHE`, or `~/.cache/faultline`.
///
/// # Errors
/// If neither that variable nor `HOME` is set.
pub(crate) fn root() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("FAULTLINE_CACHE").filter(|path| !path.is_empty()) {
        return std::path::absolute(&path).context("FAULTLINE_CACHE is not a path");
    }
    let home = std::env::var_os("HOME")
        .context("neither FAULTLINE_CACHE nor HOME is set: there is no place for the cache")?;
    Ok(Path::new(&home).join(".cache/faultline"))
}

/// Where the entry for these inputs is, or will be. Anything that changes the result belongs into
/// `inputs`: versions, recipes, the text of configuration files.
///
/// # Errors
/// As [`root`].
pub(crate) fn path(what: &str, inputs: &[&str]) -> Result<PathBuf> {
    Ok(root()?.join(format!("{what}-{}", key(inputs))))
}

/// Returns the entry for these inputs; makes it first, as the step `name`, if it is not there yet.
/// `make` gets an empty directory. Two commands at the same time make it once.
///
/// # Errors
/// If `make` fails, or the cache cannot be written.
pub(crate) fn ensure(
    name: &str,
    what: &str,
    inputs: &[&str],
    make: impl FnOnce(&Step, &Path) -> Result<()>,
) -> Result<PathBuf> {
    let entry = path(what, inputs)?;
    let root = root()?;
    if entry.is_dir() {
        step::skipped(name, "cached");
        used(&entry);
        prune(&root, what, &entry);
        return Ok(entry);
    }
    fs::create_dir_all(&root).with_context(|| format!("failed to make {}", root.display()))?;
    let lock = File::create(root.join(format!("{what}.lock"))).context("failed to make a lock")?;
    step::step(name, |step| {
        step.progress("waiting for another command that makes the same");
        lock.lock().context("failed to take a lock of the cache")?;
        step.progress("");
        if entry.is_dir() {
            return Ok(entry);
        }
        let temporary = root.join(format!(".{what}.partial"));
        remove(&temporary)?;
        fs::create_dir_all(&temporary)
            .with_context(|| format!("failed to make {}", temporary.display()))?;
        make(step, &temporary)?;
        fs::rename(&temporary, &entry)
            .with_context(|| format!("failed to rename to {}", entry.display()))?;
        used(&entry);
        prune(&root, what, &entry);
        Ok(entry)
    })
}

/// Notes that an entry is in use. Where that cannot be written the cache is somebody else's, who looks
/// after it.
fn used(entry: &Path) {
    let now = SystemTime::now();
    let _is_theirs = File::open(entry).and_then(|directory| directory.set_modified(now));
}

/// Removes what `what` was before, with other inputs, unless it was used of late. What cannot be
/// removed is told, and disturbs nobody.
fn prune(root: &Path, what: &str, entry: &Path) {
    let now = SystemTime::now();
    let removed = fs::read_dir(root)
        .context("failed to list the cache")
        .and_then(|found| {
            found
                .filter_map(|found| Some(found.ok()?.path()))
                .filter(|path| is_earlier(path, what, entry) && is_unused(path, now))
                .filter(|path| !is_linked(root, path))
                .try_for_each(|path| {
                    note!("{}: not used for 14 days, removed", path.display());
                    // A part of an entry must not pass for one, if this is interrupted.
                    let going = root.join(format!(".{what}.old"));
                    remove(&going)?;
                    fs::rename(&path, &going)
                        .with_context(|| format!("failed to rename {}", path.display()))?;
                    remove(&going)
                })
        });
    if let Err(error) = removed {
        note!("the cache keeps what it does not need: {error:#}");
    }
}

/// Whether this is an entry of `what`, but another one.
fn is_earlier(path: &Path, what: &str, entry: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let key = name
        .strip_prefix(what)
        .and_then(|key| key.strip_prefix('-'));
    let is_key =
        |key: &str| key.len() == KEY_LENGTH && key.bytes().all(|byte| byte.is_ascii_hexdigit());
    key.is_some_and(is_key) && path != entry
}

fn is_unused(path: &Path, now: SystemTime) -> bool {
    let used = fs::metadata(path).and_then(|metadata| metadata.modified());
    used.is_ok_and(|used| now.duration_since(used).is_ok_and(|age| age > UNUSED))
}

/// Whether a link of [`link`] leads into this entry: who follows it leaves no trace.
fn is_linked(root: &Path, entry: &Path) -> bool {
    let links = fs::read_dir(root.join("bin")).into_iter().flatten();
    links
        .filter_map(|link| fs::read_link(link.ok()?.path()).ok())
        .any(|target| target.starts_with(entry))
}

/// Makes `link` in the cache point to `target`, atomically.
///
/// # Errors
/// If the cache cannot be written.
pub(crate) fn link(link: &str, target: &Path) -> Result<PathBuf> {
    let link = root()?.join(link);
    let new = link.with_extension("new");
    if let Some(parent) = link.parent() {
        fs::create_dir_all(parent)
            .with_context(|| format!("failed to make {}", parent.display()))?;
    }
    remove(&new)?;
    std::os::unix::fs::symlink(target, &new)
        .and_then(|()| fs::rename(&new, &link))
        .with_context(|| format!("failed to link {} to {}", link.display(), target.display()))?;
    Ok(link)
}

/// Removes a file or a whole directory; no error if there is nothing.
///
/// # Errors
/// If something is left.
pub(crate) fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("failed to remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// The inputs as hexadecimal digits. Lengths go in too: `["ab"]` is not `["a", "b"]`.
fn key(inputs: &[&str]) -> String {
    let mut hash = Sha256::new();
    for input in inputs {
        hash.update((input.len() as u64).to_le_bytes());
        hash.update(input);
    }
    hash.finalize()
        .iter()
        .take(KEY_LENGTH / 2)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_tell_inputs_apart_and_are_stable() {
        assert_ne!(key(&["ab"]), key(&["a", "b"]));
        assert_eq!(key(&["a", "b"]), key(&["a", "b"]));
        assert_eq!(key(&[]).len(), KEY_LENGTH);
    }

    #[test]
    fn only_what_was_replaced_and_is_neither_used_nor_linked_goes() {
        let root = std::env::temp_dir().join(format!("faultline-cache-{}", std::process::id()));
        let _earlier_run = fs::remove_dir_all(&root);
        let days = |days: u64| SystemTime::now() - Duration::from_secs(days * 24 * 60 * 60);
        let make = |name: &str, used: SystemTime| {
            let path = root.join(name);
            fs::create_dir_all(path.join("bin")).unwrap();
            File::open(&path).unwrap().set_modified(used).unwrap();
            path
        };
        let gone = make("kernel-6.1-0123456789ab", days(15));
        let linked = make("kernel-6.1-00000000000c", days(15));
        let kept = [
            make("kernel-6.1-aaaaaaaaaaaa", days(15)),
            make("kernel-6.1-bbbbbbbbbbbb", days(13)),
            make("kernel-6.12-0123456789ab", days(15)),
            make("kernel-6.1-notes", days(15)),
        ];
        fs::create_dir_all(root.join("bin")).unwrap();
        std::os::unix::fs::symlink(linked.join("bin"), root.join("bin/linker")).unwrap();
        prune(&root, "kernel-6.1", &kept[0]);
        assert!(!gone.exists() && linked.exists());
        assert!(kept.iter().all(|path| path.exists()), "{kept:?}");
        fs::remove_dir_all(&root).unwrap();
    }
}

//! The cache of what `setup` makes: outside `target/`, so that it outlives `cargo clean` and serves
//! every clone. An entry is a directory `<what>-<hash of its inputs>`; it is made under a temporary
//! name and renamed when it is complete, so an interrupted step is simply done again.
//!
//! Not here: how an entry is made (`setup/*.rs`).

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::step::{self, Step};

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
    if entry.is_dir() {
        step::skipped(name, "cached");
        return Ok(entry);
    }
    let root = root()?;
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
        Ok(entry)
    })
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

/// The inputs as 12 hexadecimal digits. Lengths go in too: `["ab"]` is not `["a", "b"]`.
fn key(inputs: &[&str]) -> String {
    let mut hash = Sha256::new();
    for input in inputs {
        hash.update((input.len() as u64).to_le_bytes());
        hash.update(input);
    }
    hash.finalize()
        .iter()
        .take(6)
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
        assert_eq!(key(&[]).len(), 12);
    }
}

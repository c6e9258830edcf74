//! Where links are pinned. Attaching and detaching is a mechanism's.

use std::fs;
use std::path::{Path, PathBuf};

/// The directory of links below the pins of a layout.
pub fn directory(pins: &Path) -> PathBuf {
    pins.join("links")
}

/// Where the link of this name is pinned.
pub fn path(pins: &Path, name: &str) -> PathBuf {
    directory(pins).join(name)
}

/// The links in it whose names begin so: those of one mechanism, or all.
pub fn pinned(pins: &Path, prefix: &str) -> Vec<PathBuf> {
    let listed = fs::read_dir(directory(pins));
    let entries = listed.into_iter().flatten().flatten();
    entries
        .filter(|entry| {
            let name = entry.file_name();
            name.as_encoded_bytes().starts_with(prefix.as_bytes())
        })
        .map(|entry| entry.path())
        .collect()
}

//! Where links are pinned. Attaching and detaching is a mechanism's.

use std::fs;
use std::path::{Path, PathBuf};

/// The directory of links below the pins of a layout.
pub fn directory(pins: &Path) -> PathBuf {
    pins.join("links")
}

/// The links in it.
pub fn pinned(pins: &Path) -> Vec<PathBuf> {
    let listed = fs::read_dir(directory(pins));
    let entries = listed.into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

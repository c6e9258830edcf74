//! The files of the repository as text.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use anyhow::{Context, Result};

use crate::step;

/// Files that git knows or would add, by path from the root. Binary files are left out.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tree {
    files: BTreeMap<String, String>,
}

impl Tree {
    /// Reads the tree at `root`.
    ///
    /// # Errors
    /// If it is no git repository.
    pub(crate) fn read(root: &Path) -> Result<Tree> {
        let list = step::output(Command::new("git").current_dir(root).args([
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ]))
        .context("failed to list the files of the repository")?;
        let mut files = BTreeMap::new();
        for path in list.split('\0').filter(|path| !path.is_empty()) {
            // Deleted and not yet committed, or not text.
            if let Ok(text) = fs::read_to_string(root.join(path)) {
                files.insert(path.to_owned(), text);
            }
        }
        Ok(Tree { files })
    }

    /// All, as (path, text), by path.
    pub(crate) fn files(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files
            .iter()
            .map(|(path, text)| (path.as_str(), text.as_str()))
    }

    /// Rust sources that people write.
    pub(crate) fn rust(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files()
            .filter(|(path, _)| path.ends_with(".rs") && !path.contains("/generated/"))
    }

    /// The text of a file.
    pub(crate) fn get(&self, path: &str) -> Option<&str> {
        self.files.get(path).map(String::as_str)
    }

    /// True for a file, and for a directory with files in it.
    pub(crate) fn exists(&self, path: &str) -> bool {
        let path = path.trim_end_matches('/');
        let inside = format!("{path}/");
        path.is_empty()
            || self.files.contains_key(path)
            || self.files.keys().any(|file| file.starts_with(&inside))
    }

    /// Names without `.<extension>` of the files right in `directory`.
    pub(crate) fn stems<'a>(
        &'a self,
        directory: &str,
        extension: &str,
    ) -> impl Iterator<Item = &'a str> {
        let (start, end) = (format!("{directory}/"), format!(".{extension}"));
        self.files.keys().filter_map(move |path| {
            let stem = path.strip_prefix(&start)?.strip_suffix(&end)?;
            (!stem.contains('/')).then_some(stem)
        })
    }
}

#[cfg(test)]
impl<const N: usize> From<[(&str, &str); N]> for Tree {
    fn from(files: [(&str, &str); N]) -> Tree {
        let owned = files.map(|(path, text)| (path.to_owned(), text.to_owned()));
        Tree {
            files: owned.into_iter().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_exist_and_stems_are_of_one_level() {
        let tree = Tree::from([("a/b.rs", ""), ("a/c/d.rs", ""), ("a/e.md", "")]);
        assert!(
            tree.exists("a/c") && tree.exists("a/c/") && tree.exists("") && !tree.exists("a/d")
        );
        assert_eq!(tree.stems("a", "rs").collect::<Vec<_>>(), ["b"]);
    }
}

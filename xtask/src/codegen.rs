//! `cargo xtask codegen [--check]`: what is generated, from the types of the API and from `.proto` files, and
//! whether what is committed is that. It is made by other packages, into a directory of its own, so that this
//! program, which everybody waits for, need not be built with Kubernetes' types and a protobuf compiler.

use std::{collections::BTreeMap, ffi::OsStr, fs, path::Path};

use anyhow::{Context, Result, bail};

use crate::{cache, setup::rust, step::step};

/// What to run, in words of cargo; the argument is a directory that stands for the root of the repository.
const GENERATORS: [&[&str]; 2] = [
    &["--package", "chaos-crd"],
    &["--package", "chaos-proto", "--features", "generate"],
];

/// Directories, and the ending of the files in them that are generated, all of them.
const GENERATED: [(&str, &str); 3] = [
    ("chaos-api/src/documents", "json"),
    ("chaos-proto/generated", "rs"),
    ("crds", "yaml"),
];

/// Writes the generated files, or with `check` compares them.
///
/// # Errors
/// If a file cannot be made, read or written; with `check`, if any file is missing, differs, or is not generated
/// any more: then by name.
pub(crate) fn run(root: &Path, check: bool) -> Result<()> {
    let fresh = root.join("target/codegen");
    cache::remove(&fresh)?;
    step("generated files", |step| {
        for generator in GENERATORS {
            let mut command = rust::cargo();
            command
                .current_dir(root)
                .args(["run", "--quiet"])
                .args(generator)
                .arg("--")
                .arg(&fresh);
            step.run(&mut command)?;
        }
        Ok(())
    })?;
    let mut drifted = Vec::new();
    for (directory, ending) in GENERATED {
        let made = files(&fresh.join(directory), ending)?;
        let mut kept = files(&root.join(directory), ending)?;
        for (name, text) in made {
            if kept.remove(&name).as_ref() == Some(&text) {
                continue;
            }
            let path = format!("{directory}/{name}");
            if check {
                drifted.push(path);
            } else {
                fs::write(root.join(&path), text)
                    .with_context(|| format!("failed to write {path}"))?;
            }
        }
        for stale in kept.into_keys() {
            let path = format!("{directory}/{stale}");
            if check {
                drifted.push(format!("{path} (not generated any more)"));
            } else {
                fs::remove_file(root.join(&path))
                    .with_context(|| format!("failed to remove {path}"))?;
            }
        }
    }
    if !drifted.is_empty() {
        bail!(
            "out of date: {}; run `cargo xtask codegen` and commit the result",
            drifted.join(", ")
        );
    }
    Ok(())
}

/// Those with this ending, by their names.
fn files(directory: &Path, ending: &str) -> Result<BTreeMap<String, Vec<u8>>> {
    let listing = || format!("failed to read {}", directory.display());
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(directory).with_context(listing)? {
        let path = entry.with_context(listing)?.path();
        if path.extension() == Some(OsStr::new(ending))
            && let Some(name) = path.file_name()
        {
            let text = fs::read(&path).with_context(listing)?;
            files.insert(name.to_string_lossy().into_owned(), text);
        }
    }
    Ok(files)
}

//! `cargo xtask codegen [--check]`: what is generated, from the types of the API and from `.proto` files. The
//! work is done by other packages, so that this program, which everybody waits for, need not be built with
//! Kubernetes' types and a protobuf compiler.

use std::path::Path;

use anyhow::Result;

use crate::{setup::rust, step::step};

/// What to run, in words of cargo.
const GENERATORS: [&[&str]; 2] = [
    &["--package", "chaos-crd"],
    &["--package", "chaos-proto", "--features", "generate"],
];

/// Writes the generated files, or with `check` compares them.
///
/// # Errors
/// With `check`, if any file is missing, differs, or is not generated any more: then by name.
pub(crate) fn run(root: &Path, check: bool) -> Result<()> {
    step("generated files", |step| {
        for generator in GENERATORS {
            let mut command = rust::cargo();
            command
                .current_dir(root)
                .args(["run", "--quiet"])
                .args(generator)
                .arg("--")
                .args(check.then_some("--check"));
            step.run(&mut command)?;
        }
        Ok(())
    })
}

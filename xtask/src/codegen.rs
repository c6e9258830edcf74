//! `cargo xtask codegen [--check]`: what is generated from the types of the API. The work is done by
//! `chaos-crd`, so that this program, which everybody waits for, need not be built with Kubernetes' types.

use std::path::Path;

use anyhow::Result;

use crate::{setup::rust, step::step};

/// Writes the generated files, or with `check` compares them.
///
/// # Errors
/// With `check`, if any file is missing, differs, or is not generated any more: then by name.
pub(crate) fn run(root: &Path, check: bool) -> Result<()> {
    step("generated files", |step| {
        let mut command = rust::cargo();
        command
            .current_dir(root)
            .args(["run", "--quiet", "--package", "chaos-crd", "--"])
            .args(check.then_some("--check"));
        step.run(&mut command)
    })
}

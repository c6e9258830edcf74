//! Writes what is generated from the types of the API: `cargo xtask codegen` runs it.

mod generate;

use std::path::PathBuf;

use anyhow::Context;

fn main() -> anyhow::Result<()> {
    let root = std::env::args_os().nth(1).map(PathBuf::from);
    generate::write(&root.context("usage: chaos-crd DIRECTORY, which stands for the repository")?)
}

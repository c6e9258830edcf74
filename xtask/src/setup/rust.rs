//! The parts of the Rust toolchain that `rust-toolchain.toml` cannot ask for by itself where
//! rustup's automatic installation is off.

use std::process::Command;

use anyhow::{Context, Result};

use crate::step;

const COMPONENTS: [&str; 3] = ["rust-src", "rustfmt", "clippy"];

/// Agent, operator and probe are static binaries.
pub(crate) const STATIC_TARGET: &str = "x86_64-unknown-linux-musl";

/// What `cargo run` tells this program about itself. Build scripts read variables of these names
/// (that of ring does), so left in place they would make cargo build the same crates anew whenever
/// it is started once by `cargo xtask` and once by hand.
const ABOUT_XTASK: [&str; 2] = ["CARGO_MANIFEST_", "CARGO_PKG_"];

/// `cargo`, with the environment that a person's shell would give it.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new("cargo");
    for (name, _) in std::env::vars_os() {
        let is_about_xtask = |text: &str| ABOUT_XTASK.iter().any(|start| text.starts_with(start));
        if name.to_str().is_some_and(is_about_xtask) {
            command.env_remove(name);
        }
    }
    command
}

/// Adds what is missing to the active toolchain.
///
/// # Errors
/// If rustup is missing or cannot fetch a component.
pub(crate) fn ensure() -> Result<()> {
    let installed =
        step::output(Command::new("rustup").args(["component", "list", "--installed"]))
            .context("install Rust with rustup (https://rustup.rs): a distribution's own has no musl target and no rust-src")?;
    let missing = missing(&installed);
    if missing.is_empty() {
        return Ok(());
    }
    step::step("Rust components", |step| {
        for part in missing {
            if part == STATIC_TARGET {
                step.run(Command::new("rustup").args(["target", "add", part]))?;
            } else {
                step.run(Command::new("rustup").args(["component", "add", part]))?;
            }
        }
        Ok(())
    })
}

/// rustup lists components with the host's name after them, and targets as `rust-std-<target>`.
fn missing(installed: &str) -> Vec<&'static str> {
    let has = |prefix: &str| {
        installed
            .lines()
            .any(|line| line.trim().starts_with(prefix))
    };
    let mut missing: Vec<_> = COMPONENTS
        .into_iter()
        .filter(|component| !has(component))
        .collect();
    if !has(&format!("rust-std-{STATIC_TARGET}")) {
        missing.push(STATIC_TARGET);
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_missing_parts_are_added() {
        let all = "clippy-x86_64-unknown-linux-gnu\nrust-src\nrust-std-x86_64-unknown-linux-musl\nrustfmt-x86_64-unknown-linux-gnu\n";
        assert!(missing(all).is_empty());
        assert_eq!(
            missing("rust-src\nclippy-x86_64\n"),
            ["rustfmt", STATIC_TARGET]
        );
    }
}

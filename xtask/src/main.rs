//! `cargo xtask`: everything a developer runs, from setting up the machine to the tests.
//!
//! One module per command; this file only says which commands there are.

mod cache;
mod ebpf;
mod initramfs;
mod out;
mod qemu;
mod setup;
mod step;
mod vmtest;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Faultline's developer commands", version)]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install and build what everything else needs: packages, toolchain, kernels, node image
    Setup,
    /// Build the kernel programs alone, as objects to look at
    Ebpf,
    /// Run the tests of tests/vm in a bare virtual machine with one kernel
    Vm {
        /// Which kernel
        #[arg(long, default_value = "6.12")]
        kernel: setup::kernels::Series,
        #[command(flatten)]
        options: vmtest::Options,
    },
}

fn main() -> ExitCode {
    out::start();
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            out::write_note(format_args!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<ExitCode> {
    let root = workspace_root()?;
    match task {
        Task::Setup => setup::run(&root)?,
        Task::Ebpf => ebpf::run(&root)?,
        Task::Vm { kernel, options } => return vmtest::run(&root, kernel, &options),
    }
    Ok(ExitCode::SUCCESS)
}

/// The root of the repository, wherever in it the command was started.
fn workspace_root() -> Result<PathBuf> {
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    Ok(manifest
        .parent()
        .context("xtask lies in the root of the workspace")?
        .to_owned())
}

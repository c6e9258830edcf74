//! `cargo xtask`: everything a developer runs, from setting up the machine to the tests.
//!
//! One module per command; this file only says which commands there are.

mod bench;
mod cache;
mod cluster;
mod cluster_tests;
mod codegen;
mod demo;
mod ebpf;
mod fuzz;
mod image;
mod initramfs;
mod lab;
mod out;
mod qemu;
mod setup;
mod step;
mod test;
mod tidy;
mod vmtest;

use std::{
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::{ExitCode, ExitStatus},
};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

use crate::image::Profile;

#[derive(Parser)]
#[command(about = "Faultline's developer commands", version)]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// See a fault come, bite and go: on a bare machine, then in a cluster
    Demo(demo::Options),
    /// Install and build what everything else needs: packages, toolchain, kernels, node image
    Setup,
    /// Start a cluster and leave it running
    Up(cluster::Options),
    /// End the cluster and remove all that it left
    Down,
    /// Run a command on a node, or a shell; keeps the exit code
    Ssh {
        /// Which node
        #[arg(default_value = "node1")]
        node: String,
        /// The command, as the node's shell reads it
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Print the path of the cluster's kubeconfig
    Kubeconfig,
    /// Build the container images
    Image {
        /// Which, by their packages; all without any
        #[arg(value_name = "PACKAGE")]
        packages: Vec<String>,
        /// For use: fully optimised, which takes longer to compile
        #[arg(long)]
        release: bool,
        /// Import them into the nodes of the running cluster
        #[arg(long)]
        load: bool,
    },
    /// Build operator and agent and install them into the running cluster
    Deploy,
    /// Build the kernel programs alone, as objects to look at
    Ebpf,
    /// Write the files that are generated from the types of the API
    Codegen {
        /// Write nothing; fail if a file is not what it would become
        #[arg(long)]
        check: bool,
    },
    /// Run the tests of tests/vm in a bare virtual machine with one kernel
    Vm {
        /// Which kernel
        #[arg(long, default_value = "6.12")]
        kernel: setup::kernels::Series,
        #[command(flatten)]
        options: vmtest::Options,
    },
    /// Try random packets: the packet program's verdicts against those of a model, on this machine
    Fuzz(fuzz::Options),
    /// Measure what faults cost and how exact they are, beside netem
    Bench(bench::Options),
    /// Run all tests: format, house rules, lints, unit tests, machines with each kernel
    Test(test::Options),
    /// Check the house rules alone
    Tidy,
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
        Task::Demo(options) => demo::run(&root, &options)?,
        Task::Setup => setup::run(&root)?,
        Task::Up(options) => {
            let cluster = cluster::up(&root, &options, &[image::PROBE], |_| Ok(()))?;
            cluster::describe(&cluster);
        }
        Task::Down => cluster::down(&root)?,
        Task::Ssh { node, command } => {
            let status = cluster::open(&root)?
                .ssh(&node, &command)?
                .status()
                .context("failed to start ssh: run `cargo xtask setup`")?;
            return Ok(exit_code(status));
        }
        Task::Kubeconfig => out::say!("{}", cluster::open(&root)?.kubeconfig().display()),
        Task::Image {
            packages,
            release,
            load,
        } => {
            let archives = image::run(&root, Profile::of(release), &packages)?;
            if load {
                cluster::open(&root)?.load_images(&archives)?;
            }
        }
        Task::Deploy => cluster::deploy(&root)?,
        Task::Ebpf => ebpf::run(&root)?,
        Task::Codegen { check } => codegen::run(&root, check)?,
        Task::Vm { kernel, options } => return vmtest::run(&root, kernel, &options),
        Task::Fuzz(options) => fuzz::run(&root, &options)?,
        Task::Bench(options) => return bench::run(&root, &options),
        Task::Test(options) => return test::run(&root, &options),
        Task::Tidy => return tidy::run(&root),
    }
    Ok(ExitCode::SUCCESS)
}

/// The exit code of a command that was run for the user, or that of a shell if a signal ended it.
fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal))
        .unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
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

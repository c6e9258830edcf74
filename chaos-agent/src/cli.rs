//! The commands. Each has a file; what they share is here: the runtime, output, errors.
//!
//! The kernel is the truth: commands that only look read the pinned maps and work whether a
//! daemon lives or not. Commands that change something ask the daemon when there is one, because
//! it would undo what is done behind its back.

mod apply;
mod daemon;
mod doctor;
mod faults;
mod maps;
mod offline;
mod output;
mod panic;
mod recover;
mod run;
mod table;

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::prelude::*;

use crate::args::{Args, Command};
use crate::node::Options;
use output::Output;

/// What each command gets.
struct Context {
    options: Options,
    out: Output,
}

/// Runs the command; what goes wrong is printed to standard error.
pub fn main(args: Args) -> ExitCode {
    let daemon = matches!(args.command, Command::Run(_));
    log_to_stderr(if daemon { "info" } else { "error" }, daemon && args.json);
    let context = Context {
        options: args.host.options(),
        out: Output::new(args.json),
    };
    match dispatch(context, args.command) {
        Ok(code) => code,
        // Whoever read our output has had enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::error(&error);
            ExitCode::FAILURE
        }
    }
}

fn dispatch(context: Context, command: Command) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        match command {
            Command::Run(args) => run::run(context, args).await,
            Command::Doctor => doctor::run(context).await,
            Command::Faults => faults::run(context).await,
            Command::Maps { command } => maps::run(context, command).await,
            Command::Apply(args) => apply::run(context, args).await,
            Command::Recover(args) => recover::run(context, args).await,
            Command::Panic { resume } => panic::run(context, resume).await,
        }
    })
}

fn log_to_stderr(default: &str, json: bool) {
    let asked = std::env::var("FAULTLINE_LOG").ok();
    let filter: Targets = asked
        .and_then(|words| words.parse().ok())
        .or_else(|| default.parse().ok())
        .unwrap_or_default();
    let logs = tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_max_level(LevelFilter::TRACE);
    if json {
        logs.json().finish().with(filter).init();
    } else {
        let ansi = io::stderr().is_terminal();
        let logs = logs.with_target(false).with_ansi(ansi);
        logs.finish().with(filter).init();
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

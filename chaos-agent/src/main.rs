//! The agent's process: reads the command line and runs the command. Exit codes: 0 done, 1 failed
//! (the reason is on standard error), 2 not understood.

use std::process::ExitCode;

use clap::Parser;

use chaos_agent::args::Args;
use chaos_agent::cli;

fn main() -> ExitCode {
    cli::main(Args::parse())
}

//! `chaos-operator`: parses arguments, sets up the log, runs.
#![forbid(unsafe_code)]

use chaos_operator::run::{RunArgs, begin_anew, run};
use clap::{Parser, Subcommand, ValueEnum};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::prelude::*;

/// The operator of faultline: selects pods, tells agents what is desired, writes status.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// What to log, such as info or chaos_operator=debug.
    #[arg(long, global = true, env = "FAULTLINE_LOG", default_value = "info")]
    log: Targets,
    /// How to log it.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Subcommand)]
enum Command {
    /// Run in a cluster until told to stop.
    Run(RunArgs),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let log = tracing_subscriber::fmt()
        .with_max_level(LevelFilter::TRACE)
        .with_writer(std::io::stderr);
    match args.log_format {
        LogFormat::Text => log.with_ansi(false).finish().with(args.log).init(),
        LogFormat::Json => log.json().finish().with(args.log).init(),
    }
    match args.command {
        Command::Run(args) => {
            let ended = run(args).await;
            ended.map_err(|error| match error.downcast_ref() {
                Some(lost) => begin_anew(lost),
                None => error,
            })
        }
    }
}

//! `probe`: what runs in the pods of a test cluster. `probe peer` measures the path to other probes
//! with 20 datagrams a second and tells the results by HTTP; `probe get` makes one HTTP request;
//! `probe clock` tells what time it is; `probe pause` is the container that holds a pod's namespaces.
//!
//! Not here: what is done with the results (`xtask/src/demo.rs`, the cluster tests).

mod clock;
mod get;
mod http;
mod packet;
mod pause;
mod peer;
mod results;

use std::{net::SocketAddr, process::ExitCode, time::Duration};

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about, version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Answer the probes of others and probe them; results at GET /results.json?since=UNIX_MS
    Peer {
        /// Address of the UDP echo
        #[arg(long, default_value = "[::]:7777")]
        listen: SocketAddr,
        /// Address of the results: GET /results.json, POST /peers, GET /healthz
        #[arg(long, default_value = "[::]:8080")]
        http: SocketAddr,
        /// Datagrams a second to each peer
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
        rate: u32,
        /// Without an answer after this many milliseconds, a datagram counts as lost
        #[arg(long, default_value_t = 2000)]
        timeout_ms: u64,
        /// A first peer, as NAME=IP or NAME=IP:PORT; POST /peers replaces them
        #[arg(long = "peer")]
        peers: Vec<peer::Peer>,
    },
    /// Make one HTTP request and print the body of the answer
    Get {
        /// http://ADDRESS:PORT/PATH
        url: String,
        /// Give up after this many milliseconds
        #[arg(long, default_value_t = 5000)]
        timeout_ms: u64,
    },
    /// Print what the clocks show as [WALL,MONOTONIC], in nanoseconds
    Clock {
        /// Again after so many milliseconds, until it is ended
        #[arg(long)]
        every_ms: Option<u64>,
    },
    /// Reap orphans and wait to be ended
    Pause,
}

fn main() -> ExitCode {
    // Called as the entry point of the pause image, it needs no arguments.
    let pause = std::env::args()
        .next()
        .is_some_and(|name| name.ends_with("/pause"));
    let done = if pause {
        pause::run()
    } else {
        run(Arguments::parse().command)
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say_error(&format!("probe: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Peer {
            listen,
            http,
            rate,
            timeout_ms,
            peers,
        } => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(async {
                let timeout = Duration::from_millis(timeout_ms);
                let prober = peer::Prober::start(listen, rate, timeout, peers).await?;
                http::serve(http, prober).await
            }),
        Command::Get { url, timeout_ms } => get::run(&url, Duration::from_millis(timeout_ms)),
        Command::Clock { every_ms } => clock::run(every_ms.map(Duration::from_millis)),
        Command::Pause => pause::run(),
    }
}

/// Writes a line to stderr, the log of the container.
fn say_error(line: &str) {
    use std::io::Write;
    let _closed = writeln!(std::io::stderr().lock(), "{line}");
}

//! Writes what is generated from the types of the API: `cargo xtask codegen`.

mod generate;

use std::process::ExitCode;

use clap::Parser;

/// Writes crds/ and the schemas that files are checked by.
#[derive(Parser)]
struct Arguments {
    /// Write nothing; fail if a file is not what it would become
    #[arg(long)]
    check: bool,
}

#[expect(clippy::print_stderr, reason = "it is what a person reads")]
fn main() -> ExitCode {
    match generate::run(Arguments::parse().check) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

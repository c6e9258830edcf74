//! Runs the tests inside the VM; see `vm_tests::runner`.

use std::process::ExitCode;

#[expect(
    clippy::print_stderr,
    reason = "the runner prints what is wrong with a role or itself"
)]
fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match vm_tests::runner::main(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vm-runner: {error:#}");
            ExitCode::FAILURE
        }
    }
}

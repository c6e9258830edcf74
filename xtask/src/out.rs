//! The one place that writes to the terminal: results go to stdout, everything about the way there
//! (steps, progress, warnings) to stderr, so that `$(cargo xtask kubeconfig)` works.
//!
//! Not here: what the lines say; `step.rs` decides how a step looks.

use std::{
    fmt,
    io::{IsTerminal, Write},
    sync::OnceLock,
    time::Instant,
};

/// Writes a line of the command's result to stdout. A closed pipe (`| head`) ends nothing.
pub(crate) fn write_result(line: fmt::Arguments<'_>) {
    let _closed_pipe = writeln!(std::io::stdout().lock(), "{line}");
}

/// Writes a line about the progress of the command to stderr, with the seconds since its start.
pub(crate) fn write_note(line: fmt::Arguments<'_>) {
    let seconds = start().elapsed().as_secs_f64();
    let _closed_pipe = writeln!(std::io::stderr().lock(), "[{seconds:6.1}s] {line}");
}

/// When this command started. `main` calls it first, so that the clock starts there.
pub(crate) fn start() -> Instant {
    static START: OnceLock<Instant> = OnceLock::new();
    *START.get_or_init(Instant::now)
}

/// True if a person looks at stderr: progress may come more often then.
pub(crate) fn has_reader() -> bool {
    std::io::stderr().is_terminal()
}

/// Writes a line of the command's result to stdout, formatted as `println!` does.
macro_rules! say {
    ($($arg:tt)*) => { $crate::out::write_result(format_args!($($arg)*)) };
}

/// Writes a line about the progress to stderr, formatted as `eprintln!` does.
macro_rules! note {
    ($($arg:tt)*) => { $crate::out::write_note(format_args!($($arg)*)) };
}

pub(crate) use {note, say};

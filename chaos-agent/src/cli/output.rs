//! Standard output and standard error: tables or JSON, one way for all commands.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use super::table::Table;

/// Where results go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Output {
    json: bool,
}

impl Output {
    pub(super) fn new(json: bool) -> Self {
        Self { json }
    }

    pub(super) fn is_json(self) -> bool {
        self.json
    }

    /// The result of a command: the value with `--json`, else the table.
    pub(super) fn result(
        self,
        value: &impl Serialize,
        table: impl FnOnce() -> Table,
    ) -> io::Result<()> {
        if self.json {
            let mut out = io::stdout().lock();
            serde_json::to_writer_pretty(&mut out, value)?;
            return writeln!(out);
        }
        write!(io::stdout().lock(), "{}", table())
    }

    /// A step of a command that goes on: one line of JSON, or one of text.
    pub(super) fn event(self, value: &impl Serialize, text: impl Display) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if self.json {
            serde_json::to_writer(&mut out, value)?;
            writeln!(out)?;
        } else {
            writeln!(out, "{text}")?;
        }
        out.flush()
    }

    /// Text for people only.
    pub(super) fn say(self, text: impl Display) -> io::Result<()> {
        if self.json {
            Ok(())
        } else {
            writeln!(io::stdout().lock(), "{text}")
        }
    }

    /// A page that the next one overwrites; one below the other where that cannot be done.
    pub(super) fn screen(self, text: impl Display) -> io::Result<()> {
        let mut out = io::stdout().lock();
        // Home, and clear what is below: a screen that is cleared first flickers.
        let home = if out.is_terminal() {
            "\x1b[H\x1b[J"
        } else {
            ""
        };
        writeln!(out, "{home}{text}")?;
        out.flush()
    }

    /// A line that the next one overwrites; nothing where that cannot be done.
    pub(super) fn progress(self, text: impl Display) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if self.json || !out.is_terminal() {
            return Ok(());
        }
        write!(out, "\r\x1b[2K{text}")?;
        out.flush()
    }
}

/// Prints something that does not end the command, but that people must see.
pub(super) fn warn(text: impl Display) {
    let _ = writeln!(io::stderr().lock(), "warning: {text}");
}

/// Prints what ended the command, with its causes.
pub(super) fn error(error: &anyhow::Error) {
    let _ = writeln!(io::stderr().lock(), "error: {error:#}");
}

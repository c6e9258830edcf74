//! What the runner tells the host: one JSON object a line on the console, behind a marker. Both
//! sides use these types, so that they cannot drift.

use serde::{Deserialize, Serialize};

pub mod exhibit;

/// Opens each line that is meant for the host; all else on the console is for people.
pub const MARKER: &str = "@@vm-tests ";

/// How many times as long as otherwise a machine and its tests may run that try everything.
pub const THOROUGH: u32 = 8;

/// One step of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The runner has started.
    Booted {
        /// `uname -r`
        release: String,
        /// How many tests will run.
        tests: usize,
    },
    /// A test begins; if nothing follows, it took the machine down.
    Started {
        /// Full name, `faults::partition::the_sender_gets_eperm`.
        test: String,
        /// After this time the runner ends it; if it does not, the machine hangs.
        limit_seconds: f64,
    },
    /// A test has ended.
    Finished {
        /// See [`Event::Started`].
        test: String,
        /// How.
        outcome: Outcome,
        /// How long it took.
        seconds: f64,
    },
    /// All tests have ended; the machine powers off.
    Ended {
        /// Since boot.
        seconds: f64,
    },
}

/// How a test ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It did what its name says.
    Passed,
    /// It did not, and why.
    Failed(String),
    /// This kernel cannot run it, and why.
    Skipped(String),
}

impl Event {
    /// The line to print.
    pub fn line(&self) -> String {
        let json = serde_json::to_string(self).unwrap_or_else(|e| format!("\"{e}\""));
        format!("{MARKER}{json}")
    }

    /// The event in a line of the console, if there is one. A kernel message may stand before it.
    pub fn parse(line: &str) -> Option<Event> {
        let (_, json) = line.split_once(MARKER)?;
        serde_json::from_str(json.trim_end()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_survives_the_console() {
        for outcome in [
            Outcome::Passed,
            Outcome::Failed("a\n\"b\"".into()),
            Outcome::Skipped("no tcx".into()),
        ] {
            let event = Event::Finished {
                test: "faults::loss::x".into(),
                outcome,
                seconds: 1.5,
            };
            let line = format!("[    1.0] noise {}\r\n", event.line());
            assert_eq!(Event::parse(&line), Some(event));
        }
    }

    #[test]
    fn what_is_not_an_event_is_ignored() {
        for line in [
            "",
            "ok faults::loss",
            "@@vm-tests {",
            "@@vm-tests {\"event\":\"other\"}",
        ] {
            assert_eq!(Event::parse(line), None, "{line}");
        }
    }
}

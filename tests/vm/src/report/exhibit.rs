//! What the demonstration on a bare machine tells the host: the raw record. Medians, losses and
//! texts are the host's business, so that both acts of `cargo xtask demo` count the same way.

use serde::{Deserialize, Serialize};

/// Opens the line on the second console; no [`Event`](super::Event) begins like this.
const MARKER: &str = "@@vm-demo ";

/// A fault on one of two processes that talk to the same third one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Exhibit {
    /// `uname -r`
    pub release: String,
    /// The file that was applied.
    pub document: String,
    /// The command as a person would type it.
    pub command: String,
    /// What it printed, one JSON object a line.
    pub output: Vec<String>,
    /// When the command was started: nanoseconds since boot, as all times here.
    pub started_ns: u64,
    /// When it had ended.
    pub ended_ns: u64,
    /// Datagrams of the process that is the target, there and back.
    pub target: Vec<Datagram>,
    /// The same of its neighbour: another cgroup in the same network namespace.
    pub bystander: Vec<Datagram>,
}

/// What became of one datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Datagram {
    /// When it was sent.
    pub sent_ns: u64,
    /// When the answer came; `None`: never.
    pub answered_ns: Option<u64>,
}

impl Exhibit {
    /// The line to tell.
    pub fn line(&self) -> String {
        let json = serde_json::to_string(self).unwrap_or_else(|e| format!("\"{e}\""));
        format!("{MARKER}{json}")
    }

    /// The exhibit in a line, if there is one.
    pub fn parse(line: &str) -> Option<Exhibit> {
        let (_, json) = line.split_once(MARKER)?;
        serde_json::from_str(json.trim_end()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Event;

    #[test]
    fn an_exhibit_survives_the_console_and_is_no_event() {
        let exhibit = Exhibit {
            release: "6.12.1".into(),
            document: "kind: NetworkChaos\n".into(),
            command: "chaos-agent apply".into(),
            output: vec!["{}".into()],
            started_ns: 1,
            ended_ns: 2,
            target: vec![Datagram {
                sent_ns: 1,
                answered_ns: None,
            }],
            bystander: Vec::new(),
        };
        let line = format!("{}\r\n", exhibit.line());
        assert_eq!(Event::parse(&line), None);
        assert_eq!(Exhibit::parse(&line), Some(exhibit));
    }
}

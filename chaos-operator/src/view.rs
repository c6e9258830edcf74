//! What the agents have reported, as far as one experiment is concerned: a plain value that the
//! pure parts read. `agents.rs` makes it.

use std::collections::BTreeMap;

use chaos_proto::agent::{Counters, ObservedFault};
use jiff::Timestamp;

/// What agents have reported.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Nodes whose agent has been heard of.
    pub nodes: BTreeMap<String, NodeView>,
    /// Faults of this experiment, by node and fault id.
    pub faults: BTreeMap<(String, String), Seen>,
    /// The last words on faults that have gone since.
    pub ended: BTreeMap<(String, String), ObservedFault>,
    /// When this operator began to listen.
    pub started: Timestamp,
    /// The experiment is older than that: an operator before this one may have sent faults of it
    /// to any node.
    pub inherited: bool,
}

/// One agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeView {
    /// Its stream is up.
    pub connected: bool,
    /// Since when that is so.
    pub since: Timestamp,
    /// The last generation of this operator that it has carried out; 0: none.
    pub generation: u64,
    /// This operator has sent it a set with a fault of this experiment, or may have.
    pub sent: bool,
}

/// What an agent said of a fault, and when.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// What it said.
    pub fault: ObservedFault,
    /// When we heard it.
    pub at: Timestamp,
}

impl View {
    /// An agent, also one that has never been heard of.
    #[must_use]
    pub fn node(&self, name: &str) -> NodeView {
        self.nodes.get(name).copied().unwrap_or(NodeView {
            connected: false,
            since: self.started,
            generation: 0,
            sent: false,
        })
    }

    /// The last word on a fault.
    #[must_use]
    pub fn fault(&self, node: &str, id: &str) -> Option<&Seen> {
        self.faults.get(&(node.to_owned(), id.to_owned()))
    }

    /// The last that a kernel counted for a fault, also after it has gone.
    #[must_use]
    pub fn counters(&self, node: &str, id: &str) -> Option<&Counters> {
        let key = (node.to_owned(), id.to_owned());
        let live = self.faults.get(&key).map(|seen| &seen.fault);
        live.or_else(|| self.ended.get(&key))?.counters.as_ref()
    }

    /// Whether any reachable agent still has something of this experiment, and which.
    #[must_use]
    pub fn holder(&self) -> Option<&str> {
        let mut nodes = self.faults.keys().map(|(node, _)| node.as_str());
        nodes.find(|node| self.node(node).connected)
    }
}

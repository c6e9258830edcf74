//! What a node can do, as data.

use serde::{Deserialize, Serialize};

/// Hook and effect that carry a fault out. The same stem names the kernel program, the agent's
/// module and the label of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mechanism {
    /// `cgroup_skb` on the root cgroup, keyed by cgroup id: the sender gets EPERM.
    CgroupDrop,
    /// tc on what leaves by the target's device: loss, and delay by our own detour device with fq.
    TcEgress,
    /// The same on what comes in by it.
    TcIngress,
    /// The time that a system call returns is moved; no vDSO for programs of the target.
    ClockShift,
}

impl Mechanism {
    /// All of them, in the order of `doctor`.
    pub const ALL: [Self; 4] = [
        Self::CgroupDrop,
        Self::TcEgress,
        Self::TcIngress,
        Self::ClockShift,
    ];

    /// The stem: file name, label of metrics, word in status.
    pub const fn name(self) -> &'static str {
        match self {
            Self::CgroupDrop => "cgroup_drop",
            Self::TcEgress => "tc_egress",
            Self::ClockShift => "clock_shift",
            Self::TcIngress => "tc_ingress",
        }
    }
}

/// Whether a node has a mechanism.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Capability {
    /// Which one.
    pub mechanism: Mechanism,
    /// Tried on this node: it works.
    pub supported: bool,
    /// It works for loss alone: packets cannot be held back, copied or changed.
    pub only_loss: bool,
    /// Why not, what is limited, or in which of several ways it works; may be empty when it does.
    pub reason: String,
}

/// Of all mechanisms.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Capabilities {
    /// `uname -r`
    pub kernel: String,
    /// One for each of [`Mechanism::ALL`].
    pub mechanisms: Vec<Capability>,
}

impl Capabilities {
    /// Why this mechanism cannot be had, with all that it can do if it has to be `whole`; `None`
    /// when it can.
    pub fn lacks(&self, mechanism: Mechanism, whole: bool) -> Option<&str> {
        match self.mechanisms.iter().find(|c| c.mechanism == mechanism) {
            Some(found) if found.supported && !(whole && found.only_loss) => None,
            Some(found) => Some(&found.reason),
            None => Some("not probed on this node"),
        }
    }
}

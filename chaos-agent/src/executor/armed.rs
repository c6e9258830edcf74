//! What is remembered of a fault that the kernel holds, as the journal writes it; and why one could
//! not be armed.

use std::path::PathBuf;

use aya::maps::MapError;
use chaos_planner::capabilities::Mechanism;
use chaos_planner::choose::Unsupported;
use chaos_planner::fault::Fault;
use serde::{Deserialize, Serialize};

use crate::kernel::maps::TargetKind;
use crate::mechanism::MechanismError;
use crate::target::TargetError;

/// A fault that the kernel holds, with all that is needed to remove it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Armed {
    /// What was asked.
    pub fault: Fault,
    /// What its rules say, CLOCK_MONOTONIC nanoseconds.
    pub deadline_ns: u64,
    /// When it was armed, CLOCK_MONOTONIC nanoseconds.
    pub armed_ns: u64,
    /// Its rules, one per mechanism; listed once for each of its devices.
    pub rules: Vec<ArmedRule>,
    /// Its set in `PEERS`; 0 without one.
    pub peer_set: u32,
    /// Where its target was found.
    pub place: Place,
    /// Seed of its draws.
    pub seed: u64,
}

impl Armed {
    /// Each of its rules once, however many devices it is listed for.
    pub fn each_rule(&self) -> impl Iterator<Item = &ArmedRule> {
        let same = self.rules.chunk_by(|a, b| a.id == b.id);
        same.map(|rules| &rules[0])
    }
}

/// Where a target was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Cgroup id.
    pub cgroup_id: u64,
    /// Levels below the root of the hierarchy.
    pub depth: u32,
    /// Namespace file of one of its processes; may be stale.
    pub netns: Option<PathBuf>,
    /// Inode of its network namespace; 0 without one.
    pub netns_inode: u64,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArmedRule {
    /// What carries it out; its stem in the journal.
    pub mechanism: Mechanism,
    /// Key of its target.
    pub key: u64,
    /// Index into `RULES`.
    pub id: u32,
    /// Which life of that slot.
    pub generation: u32,
    /// What the kernel was told, without deadline.
    pub ifindex: u32,
}

impl From<Mechanism> for TargetKind {
    fn from(mechanism: Mechanism) -> Self {
        match mechanism {
            Mechanism::CgroupDrop => Self::Cgroup,
            Mechanism::TcEgress | Mechanism::TcIngress => Self::Device,
            Mechanism::ClockShift => Self::Clock,
        }
    }
}

/// Failed to arm a fault; nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum ArmError {
    /// Will never work here.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    /// The target was not found.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The kernel or a file refused.
    #[error(transparent)]
    Mechanism(#[from] MechanismError),
    /// Between two containers, or before the first, a target has no process for a while.
    #[error("{0} has no live process, so its network namespace cannot be found; will try again")]
    NoProcess(String),
    /// A limit of this node.
    #[error("{what}: this node holds at most {limit}; remove another fault first")]
    Full {
        /// Of what.
        what: &'static str,
        /// How many.
        limit: usize,
    },
    /// A BPF map refused.
    #[error("failed to write a BPF map: {0}")]
    Map(#[from] MapError),
}

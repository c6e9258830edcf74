//! What somebody asked of this node, in the node's own words.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Unique and stable for one record of one experiment's round.
pub type FaultId = String;

/// One fault on one target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// See [`FaultId`].
    pub id: FaultId,
    /// Kind of the object that asks for it, `NetworkChaos`.
    pub kind: String,
    /// Namespace of that object; empty on a host without Kubernetes.
    pub namespace: String,
    /// Name of that object.
    pub name: String,
    /// Id of the record, `<namespace>/<pod>` for a pod.
    pub record: String,
    /// Whom it is done to.
    pub target: TargetRef,
    /// Until when.
    pub lifetime: Lifetime,
    /// Do it, or only count.
    pub mode: Mode,
    /// Which of the matching packets or calls.
    pub sample: Sample,
    /// What is done.
    pub effect: Effect,
}

/// Whom a fault is done to, as the user named it; `target.rs` of the agent looks it up.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum TargetRef {
    /// A pod of this node.
    Pod {
        /// `metadata.uid`
        uid: String,
        /// Ids of its containers without the runtime's scheme.
        container_ids: Vec<String>,
        /// It shares the node's network namespace.
        host_network: bool,
    },
    /// A cgroup of this host: absolute path below the cgroup2 mount.
    Cgroup(PathBuf),
    /// The cgroup that this process is in.
    Pid(u32),
}

/// How long a fault lasts. Counted from when the desired set was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Lifetime {
    /// It ends by itself after this time.
    For(Duration),
    /// It ends when it is no longer desired; the kernel holds a lease that is renewed.
    Leased {
        /// How long it goes on after the client that asked for it has gone; `None`: for ever.
        orphan_timeout: Option<Duration>,
    },
}

/// `spec.faultline.mode`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// Do it.
    #[default]
    Inject,
    /// Count what would be hit, do nothing.
    Observe,
}

/// `spec.faultline.sample`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// Parts per million of the matching packets; `None` is all.
    pub ppm: Option<u32>,
    /// Only the first so many; 0 is no limit.
    pub first: u64,
    /// Only each so many-th; 0 and 1 are all.
    pub every: u64,
    /// Seed of all draws; `None`: the agent draws one.
    pub seed: Option<u64>,
}

/// What is done, by family.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Effect {
    /// To packets.
    Network(NetworkEffect),
}

/// What is done to packets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkEffect {
    /// To those that the target sends.
    pub egress: bool,
    /// To those that it receives; with `drop` only.
    pub ingress: bool,
    /// Device inside the target's network namespace; `None` is the default of the target.
    pub device: Option<String>,
    /// Only those to or from these addresses; `None` is every packet.
    pub peers: Option<Vec<IpAddr>>,
    /// Partition: the sender is told.
    pub drop: bool,
    /// Parts per million lost; the sender is not told.
    pub loss_ppm: Option<u32>,
    /// Wait before sending.
    pub delay: Option<Duration>,
}

//! NetworkChaos: delay, loss, partition and their kin, between pods.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::v1alpha1::lifecycle::Lifecycle;
use crate::v1alpha1::selector::PodSelector;
use crate::v1alpha1::status::ChaosStatus;

/// What happens to which packets of which pods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NetworkChaosSpec {
    /// What is done: delay, loss, duplicate, corrupt, bandwidth or netem (all blocks that are set
    /// act together, whichever of these it is), or partition (no packet passes).
    pub action: NetworkAction,
    /// The sources: `selector`, `mode`, `value`.
    #[serde(flatten)]
    pub source: PodSelector,
    /// Network device inside the pod. What follows an @ is cut off. Default: eth0; of a pod with
    /// hostNetwork all that carry routes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Network device inside the target pods. Default: eth0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_device: Option<String>,
    /// Which way, seen from the sources: to (what they send to the other side), from (what that sends
    /// to them), or both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Direction", extend("default" = "to"))]
    pub direction: Option<Direction>,
    /// The other side: only packets between sources and these pods. Absent: all packets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<PodSelector>,
    /// Other sides outside the cluster: IP, CIDR or host name, each optionally with :port.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub external_targets: Vec<String>,
    /// Packets wait before they are sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<Delay>,
    /// Packets get lost; the sender is not told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<Loss>,
    /// Packets arrive twice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duplicate: Option<Duplicate>,
    /// A bit of a packet is flipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub corrupt: Option<Corrupt>,
    /// Packets are sent no faster than this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// Bandwidth limit by a token bucket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bandwidth>,
    /// Duration, legacy scheduler, remote cluster, `faultline`.
    #[serde(flatten)]
    pub lifecycle: Lifecycle,
}

/// What is done to the packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum NetworkAction {
    /// All parameter blocks that are set, together.
    Netem,
    /// Wait before sending.
    Delay,
    /// Lose.
    Loss,
    /// Send twice.
    Duplicate,
    /// Flip a bit.
    Corrupt,
    /// Let nothing pass.
    Partition,
    /// Limit the bandwidth.
    Bandwidth,
}

impl NetworkAction {
    /// The word in the document.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Netem => "netem",
            Self::Delay => "delay",
            Self::Loss => "loss",
            Self::Duplicate => "duplicate",
            Self::Corrupt => "corrupt",
            Self::Partition => "partition",
            Self::Bandwidth => "bandwidth",
        }
    }
}

/// Which way, seen from the sources.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// What the sources send to the target.
    #[default]
    To,
    /// What the target sends to the sources.
    From,
    /// Both.
    Both,
}

impl Direction {
    /// The word in the document.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::To => "to",
            Self::From => "from",
            Self::Both => "both",
        }
    }
}

/// Packets wait before they are sent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Delay {
    /// How long, one number with one unit (ns, us, ms, s, m, h), such as 100ms.
    #[schemars(regex(pattern = r"^[0-9]+(\.[0-9]+)?(ns|us|ms|s|m|h)$"))]
    pub latency: String,
    /// How much the time varies to either side, such as 10ms. Default: 0ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9]+(\.[0-9]+)?(ns|us|ms|s|m|h)$"))]
    pub jitter: Option<String>,
    /// How much a packet's time depends on the one before, in percent, as a string. Default: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation: Option<String>,
    /// Some packets are sent at once and so overtake the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reorder: Option<Reorder>,
}

/// Some packets are sent at once and so overtake the others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Reorder {
    /// The share of packets, in percent, as a string.
    pub reorder: String,
    /// How much the choice depends on the packet before, in percent, as a string. Default: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation: Option<String>,
    /// So many packets less one wait before the next that may overtake. 0 and 1: any packet may.
    #[schemars(extend("format" = "int64"))]
    pub gap: i64,
}

/// Packets get lost; the sender is not told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Loss {
    /// The share of packets, in percent from 0 to 100, as a string, such as "30" or "0.5".
    pub loss: String,
    /// How much the choice depends on the packet before, in percent, as a string. Default: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation: Option<String>,
}

/// Packets arrive twice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Duplicate {
    /// The share of packets, in percent from 0 to 100, as a string.
    pub duplicate: String,
    /// How much the choice depends on the packet before, in percent, as a string. Default: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation: Option<String>,
}

/// A bit of a packet is flipped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Corrupt {
    /// The share of packets, in percent from 0 to 100, as a string.
    pub corrupt: String,
    /// How much the choice depends on the packet before, in percent, as a string. Default: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation: Option<String>,
}

/// Packets are sent no faster than this.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Rate {
    /// A whole number and a unit: bit, kbit, mbit, gbit, tbit (by thousands), or bytes per second
    /// as bps, kbps, mbps, gbps, tbps (by 1024).
    pub rate: String,
}

/// Bandwidth limit by a token bucket.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Bandwidth {
    /// A whole number and a unit: bit, kbit, mbit, gbit, tbit (by thousands), or bytes per second
    /// as bps, kbps, mbps, gbps, tbps (by 1024).
    pub rate: String,
    /// Bytes that may wait for tokens; packets beyond are lost.
    #[schemars(range(min = 1), extend("format" = "int32"))]
    pub limit: u32,
    /// Bytes that tokens can be available for at once.
    #[schemars(range(min = 1), extend("format" = "int32"))]
    pub buffer: u32,
    /// Highest rate, in bytes per second, at which the bucket may be emptied. Only with minburst.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0), extend("format" = "int64"))]
    pub peakrate: Option<u64>,
    /// Size in bytes of the bucket of peakrate. Only with peakrate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0), extend("format" = "int32"))]
    pub minburst: Option<u32>,
}

/// Where the experiment is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkChaosStatus {
    /// What all kinds have.
    #[serde(flatten)]
    pub chaos: ChaosStatus,
    /// Written by Chaos Mesh only: generation of the PodNetworkChaos by record.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub instances: BTreeMap<String, i64>,
}

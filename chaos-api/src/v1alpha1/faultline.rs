//! `spec.faultline`: what is added to upstream's API. Every field is optional.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What faultline adds to the API of Chaos Mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FaultlineSpec {
    /// Inject (default) does it. Observe walks the same path in the kernel and counts what would
    /// have been hit, but does nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "InjectionMode")]
    pub mode: Option<InjectionMode>,
    /// Only some of the matching packets or calls. Absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample: Option<Sample>,
    /// How long an experiment without a duration goes on while the operator is away, such as 5m.
    /// Absent: until it is deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub orphan_timeout: Option<String>,
    /// True (default): with mode all, pods that come to match later join; a restarted container,
    /// or a pod that comes back under the same name, is injected again. False: the pods that were
    /// drawn first, once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub follow: Option<bool>,
    /// Limits that keep an experiment from taking too much.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guards: Option<Guards>,
    /// True: the kubelet's probes pass unharmed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exempt_probes: Option<bool>,
    /// TimeChaos: how fast the clocks run from the beginning on, as a factor: "1.1" gains six seconds a
    /// minute, "0.5" runs at half the speed. From "0.01" to "100", with up to six decimals.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<String>,
    /// TimeChaos: steps of the clocks while it lasts. At most 8.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub jumps: Vec<ClockJump>,
}

/// A step of a clock.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ClockJump {
    /// How long after the clocks of a container have been taken hold of, such as 30s.
    pub after: String,
    /// By how much the clocks go ahead, or back if negative, beside all else: 5m, -90s.
    pub by: String,
}

/// Do it, or only count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum InjectionMode {
    /// Do it.
    #[default]
    Inject,
    /// Count what would be hit, do nothing.
    Observe,
}

/// Which of the matching packets or calls are hit. What is set must all agree.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Sample {
    /// This share of them, drawn at random: a percentage above 0, up to 100, as a string, such as
    /// "12.5" or "0.001".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<String>,
    /// Only the first so many, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1), extend("format" = "int64"))]
    pub first: Option<u64>,
    /// Only each so many-th, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1), extend("format" = "int64"))]
    pub every: Option<u64>,
    /// Seed of every draw: the same seed hits the same packets or calls again. Absent: a random
    /// one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0), extend("format" = "int64"))]
    pub seed: Option<u64>,
}

/// Limits that keep an experiment from taking too much.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Guards {
    /// At most this percentage of the healthy replicas of any one workload, 1 to 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100), extend("format" = "int32"))]
    pub max_replicas_percent: Option<u32>,
    /// At most this percentage of the pods of any one namespace, 1 to 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100), extend("format" = "int32"))]
    pub max_namespace_percent: Option<u32>,
    /// A PromQL expression; the experiment is recovered as soon as it holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abort_when: Option<String>,
}

//! Status that all kinds share: upstream's contract, and `status.faultline` beside it.
//!
//! How it is computed lives in the operator (`phase.rs`).

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::v1alpha1::time::Time;

/// Status of an experiment, as far as all kinds have it. Flattened into each kind's status.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ChaosStatus {
    /// Selected, AllInjected, AllRecovered and Paused as in Chaos Mesh; NoEffect and Degraded when
    /// they apply.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// What should be, and what was selected.
    pub experiment: ExperimentStatus,
    /// What faultline adds to the status of Chaos Mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub faultline: Option<FaultlineStatus>,
}

/// One condition.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Its name, such as AllInjected.
    pub r#type: String,
    /// True or False.
    pub status: String,
    /// One word why. Empty for the four conditions of Chaos Mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// A sentence why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// When status last changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_transition_time: Option<Time>,
}

/// What should be, and what was selected.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExperimentStatus {
    /// Run, or Stop: paused, over, or being deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "DesiredPhase")]
    pub desired_phase: Option<DesiredPhase>,
    /// One per selected pod (or container), sources and targets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub container_records: Vec<Record>,
}

/// What should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum DesiredPhase {
    /// Injected.
    Run,
    /// Recovered.
    Stop,
}

/// One selected pod or container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// `<namespace>/<pod>`, or `<namespace>/<pod>/<container>`.
    pub id: String,
    /// `.` for what the experiment's own selector chose, `.Target` for what target chose.
    pub selector_key: String,
    /// Injected, or Not Injected; followed by /Wait while on the way to the other.
    pub phase: RecordPhase,
    /// How often it was injected.
    #[schemars(extend("format" = "int64"))]
    pub injected_count: i64,
    /// How often it was recovered.
    #[schemars(extend("format" = "int64"))]
    pub recovered_count: i64,
    /// The last attempts, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<RecordEvent>,
}

/// Where a record is. A word that is not known reads as `NotInjected`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum RecordPhase {
    /// `Not Injected`
    #[default]
    NotInjected,
    /// `Not Injected/Wait`: asked for, not proven yet.
    NotInjectedWait,
    /// `Injected`
    Injected,
    /// `Injected/Wait`: to be recovered, absence not proven yet.
    InjectedWait,
}

impl RecordPhase {
    /// The word in the document.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotInjected => "Not Injected",
            Self::NotInjectedWait => "Not Injected/Wait",
            Self::Injected => "Injected",
            Self::InjectedWait => "Injected/Wait",
        }
    }
}

impl From<String> for RecordPhase {
    fn from(word: String) -> Self {
        [Self::NotInjectedWait, Self::Injected, Self::InjectedWait]
            .into_iter()
            .find(|phase| phase.as_str() == word)
            .unwrap_or(Self::NotInjected)
    }
}

impl From<RecordPhase> for String {
    fn from(phase: RecordPhase) -> Self {
        phase.as_str().to_owned()
    }
}

impl JsonSchema for RecordPhase {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "RecordPhase".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string" })
    }
}

/// One attempt to inject or recover a record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RecordEvent {
    /// Succeeded or Failed.
    #[schemars(with = "String")]
    pub r#type: RecordEventType,
    /// Apply or Recover.
    #[schemars(with = "String")]
    pub operation: RecordOperation,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// When it ended.
    pub timestamp: Time,
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RecordEventType {
    /// It did what it should.
    Succeeded,
    /// It did not.
    Failed,
}

/// What was attempted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RecordOperation {
    /// To inject.
    Apply,
    /// To recover.
    Recover,
}

/// What faultline adds to the status: a summary, and what each record's node reports.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FaultlineStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "int64"))]
    pub observed_generation: Option<i64>,
    /// One word: Pending, Waiting, Injecting, Running, NoEffect, Degraded, Paused, Recovering,
    /// Finished, Deleting, Failed or NotSupported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// Injected records of all records, such as 3/3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub injected: Option<String>,
    /// Packets or calls that the fault was done to, over all records; with mode Observe, those
    /// that it would have been done to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0), extend("format" = "int64"))]
    pub hits: Option<u64>,
    /// Packets or calls that the fault applies to, before sampling.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0), extend("format" = "int64"))]
    pub matched: Option<u64>,
    /// Time until the experiment (or its round) ends, as of the last write, such as 25s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_left: Option<String>,
    /// Why phase is what it is; empty when all is well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What carries the fault out, such as tc_egress, if it is the same for all records.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mechanisms: Vec<String>,
    /// Seed of the draws of the last selection, so that it can be repeated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0), extend("format" = "int64"))]
    pub seed: Option<u64>,
    /// With a scheduler: number of the current or last round, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0), extend("format" = "int64"))]
    pub round: Option<u64>,
    /// With a scheduler: when the current or last round started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round_started: Option<Time>,
    /// With a scheduler: when the next round starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_start: Option<Time>,
    /// When the current round, or the experiment, ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_recover: Option<Time>,
    /// What each record's node reports. With very many records, only those that differ from the
    /// summary.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub records: Vec<RecordDetail>,
}

/// What a node reports of one record.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RecordDetail {
    /// Same as the id in containerRecords.
    pub id: String,
    /// Same as the selectorKey in containerRecords.
    pub selector_key: String,
    /// The node of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// What carries the fault out on that node, such as tc_egress.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mechanisms: Vec<String>,
    /// Packets or calls that the fault was done to; with mode Observe, those that it would have
    /// been done to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0), extend("format" = "int64"))]
    pub hits: Option<u64>,
    /// Packets or calls that the fault applies to, before sampling.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0), extend("format" = "int64"))]
    pub matched: Option<u64>,
    /// Why it is not injected, expired, or works only partly; empty when all is well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When the kernel ends the fault by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expiry: Option<Time>,
}

/// The word in `status.faultline.phase`. The field itself is a string, so that an older operator
/// can read what a newer one wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SummaryPhase {
    /// Not looked at yet, or nothing selected.
    Pending,
    /// Between two rounds of a scheduler.
    Waiting,
    /// Some records are not injected yet.
    Injecting,
    /// All records are injected.
    Running,
    /// All are injected, nothing is hit.
    NoEffect,
    /// Injected, but not fully as asked.
    Degraded,
    /// Paused and recovered.
    Paused,
    /// Some records are not recovered yet.
    Recovering,
    /// Its time is over and all is recovered.
    Finished,
    /// It is being deleted.
    Deleting,
    /// Refused, or no record could be injected.
    Failed,
    /// No record's node or target can have it.
    NotSupported,
}

impl SummaryPhase {
    /// The word in the document.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Waiting => "Waiting",
            Self::Injecting => "Injecting",
            Self::Running => "Running",
            Self::NoEffect => "NoEffect",
            Self::Degraded => "Degraded",
            Self::Paused => "Paused",
            Self::Recovering => "Recovering",
            Self::Finished => "Finished",
            Self::Deleting => "Deleting",
            Self::Failed => "Failed",
            Self::NotSupported => "NotSupported",
        }
    }
}

impl fmt::Display for SummaryPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

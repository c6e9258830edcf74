//! When an experiment runs and where: the fields that every kind carries beside its own.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::v1alpha1::faultline::FaultlineSpec;

/// When an experiment runs, and where. Flattened into the spec of every kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Lifecycle {
    /// How long the experiment lasts, counted from its creation, such as 30s or 1h30m. Absent:
    /// until it is deleted. With a scheduler: how long each round lasts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<String>,
    /// Form of Chaos Mesh 1.x: the experiment starts anew on each tick, with targets drawn anew,
    /// and lasts for its duration each time. Needs duration. A Schedule is the newer form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduler: Option<Scheduler>,
    /// Name of the RemoteCluster in which the experiment is to run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote_cluster: Option<String>,
    /// What faultline adds to the API of Chaos Mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub faultline: Option<FaultlineSpec>,
}

/// Form of Chaos Mesh 1.x: when the rounds of an experiment start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Scheduler {
    /// Five cron fields (minute, hour, day of month, month, day of week), or @every and a
    /// duration of whole seconds, or @hourly, @daily, @midnight, @weekly, @monthly, @yearly,
    /// @annually. @every starts the first round at once.
    pub cron: String,
}

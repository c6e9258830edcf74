//! TimeChaos: containers whose clocks are ahead or behind.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::v1alpha1::lifecycle::Lifecycle;
use crate::v1alpha1::selector::PodSelector;
use crate::v1alpha1::status::ChaosStatus;

/// Which clocks of which containers are how far off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TimeChaosSpec {
    /// How far the clocks are ahead, or behind if negative: 5m, -1h30m, 250us. At most 292 years.
    pub time_offset: String,
    /// Which clocks, by their names in clock_gettime(2). Default: CLOCK_REALTIME, which gettimeofday
    /// and time read, too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clock_ids: Vec<String>,
    /// The pods: `selector`, `mode`, `value`.
    #[serde(flatten)]
    pub source: PodSelector,
    /// Containers of these pods, by name. Default: the first of each pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub container_names: Vec<String>,
    /// When and where.
    #[serde(flatten)]
    pub lifecycle: Lifecycle,
}

/// Where the experiment is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TimeChaosStatus {
    /// What all kinds have.
    #[serde(flatten)]
    pub chaos: ChaosStatus,
}

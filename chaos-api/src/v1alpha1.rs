//! Version `v1alpha1` of the group `chaos-mesh.org`.
//!
//! One module per kind with what only that kind has; what all kinds share is in `selector`,
//! `lifecycle`, `faultline`, `status` and `names`. Field names and JSON forms are upstream's; what
//! is ours sits under `faultline`. Strings that upstream parses (durations, percentages, cron)
//! stay strings here: an object with a bad one must still be readable, so that it can be refused
//! by name. `validate` parses them.

use kube::Resource;

pub use faultline::{ClockJump, FaultlineSpec, Guards, InjectionMode, Sample};
pub use lifecycle::{Lifecycle, Scheduler};
pub use networkchaos::{
    Bandwidth, Corrupt, Delay, Direction, Duplicate, Loss, NetworkAction, NetworkChaos,
    NetworkChaosSpec, NetworkChaosStatus, Rate, Reorder,
};
pub use selector::{Mode, PodSelector, PodSelectorSpec, SelectorRequirement};
pub use status::{
    ChaosStatus, Condition, DesiredPhase, ExperimentStatus, FaultlineStatus, Record, RecordDetail,
    RecordEvent, RecordEventType, RecordOperation, RecordPhase, SummaryPhase,
};
pub use timechaos::{TimeChaos, TimeChaosSpec, TimeChaosStatus};

pub mod faultline;
pub mod lifecycle;
pub mod names;
pub mod networkchaos;
pub mod selector;
pub mod status;
pub mod timechaos;

/// What the operator needs to know of an experiment whatever its kind.
pub trait Experiment: Resource<DynamicType = ()> {
    /// Duration, legacy scheduler, remote cluster and the `faultline` block.
    fn lifecycle(&self) -> &Lifecycle;

    /// Its pod selectors with the `selectorKey` that their records carry: `.` for the sources,
    /// `.Target` for the other side.
    fn selectors(&self) -> Vec<(&'static str, &PodSelector)>;

    /// For kinds whose records are containers: which ones of each pod, by name; none means the first.
    /// `None` for kinds whose records are pods.
    fn container_names(&self) -> Option<&[String]> {
        None
    }

    /// The shared part of its status; `None` before the first write.
    fn chaos_status(&self) -> Option<&ChaosStatus>;

    /// True for actions that happen once and cannot be undone: neither pause nor duration apply.
    fn is_one_shot(&self) -> bool;
}

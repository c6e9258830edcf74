//! Version `v1alpha1` of the group `chaos-mesh.org`.
//!
//! One module per kind with what only that kind has; what all kinds share is in `selector`,
//! `lifecycle`, `faultline`, `status` and `names`. Field names and JSON forms are upstream's; what
//! is ours sits under `faultline`. Strings that upstream parses (durations, percentages, cron)
//! stay strings here: an object with a bad one must still be readable, so that it can be refused
//! by name. `validate` parses them.

pub use faultline::{ClockJump, FaultlineSpec, Guards, InjectionMode, Sample};
pub use lifecycle::{Lifecycle, Scheduler};
pub use networkchaos::{
    Bandwidth, Corrupt, Delay, Direction, Duplicate, Loss, NetworkAction, NetworkChaosSpec,
    NetworkChaosStatus, Rate, Reorder,
};
pub use selector::{Mode, PodSelector, PodSelectorSpec, SelectorRequirement};
pub use status::{
    ChaosStatus, Condition, DesiredPhase, ExperimentStatus, FaultlineStatus, Record, RecordDetail,
    RecordEvent, RecordEventType, RecordOperation, RecordPhase, SummaryPhase,
};
pub use time::Time;
pub use timechaos::{TimeChaosSpec, TimeChaosStatus};

pub mod faultline;
pub mod lifecycle;
pub mod names;
pub mod networkchaos;
pub mod selector;
pub mod status;
pub mod time;
pub mod timechaos;

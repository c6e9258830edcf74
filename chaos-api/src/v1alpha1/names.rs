//! Names that upstream's users and tools know: annotations, labels, finalizers, conditions, events.

/// API group of every kind here.
pub const GROUP: &str = "chaos-mesh.org";
/// API version of every kind here.
pub const VERSION: &str = "v1alpha1";

/// Finalizer of every experiment that has records.
pub const FINALIZER: &str = "chaos-mesh/records";

/// Annotation: the value [`PAUSED`] pauses an experiment; any other value is running.
pub const ANNOTATION_PAUSE: &str = "experiment.chaos-mesh.org/pause";
/// The only value of [`ANNOTATION_PAUSE`] that pauses.
pub const PAUSED: &str = "true";
/// Annotation: the value [`CLEAN_FORCED`] lets a deleted object go without proof of recovery.
pub const ANNOTATION_CLEAN_FINALIZER: &str = "chaos-mesh.chaos-mesh.org/cleanFinalizer";
/// The only value of [`ANNOTATION_CLEAN_FINALIZER`] that has an effect.
pub const CLEAN_FORCED: &str = "forced";
/// Annotation of a namespace: with the namespace filter on, only those with the value
/// [`INJECT_ENABLED`] are eligible.
pub const ANNOTATION_INJECT: &str = "chaos-mesh.org/inject";
/// The only value of [`ANNOTATION_INJECT`] that makes a namespace eligible.
pub const INJECT_ENABLED: &str = "enabled";

/// Label of what a Schedule spawned: the name of the Schedule.
pub const LABEL_MANAGED_BY: &str = "managed-by";
/// Label of what a workflow node made: the name of that node.
pub const LABEL_CONTROLLED_BY: &str = "chaos-mesh.org/controlled-by";
/// Label of what a workflow made: the name of the workflow.
pub const LABEL_WORKFLOW: &str = "chaos-mesh.org/workflow";

/// Field manager of everything the operator applies.
pub const FIELD_MANAGER: &str = "faultline-operator";

/// `selectorKey` of a record of the experiment's own selector.
pub const SELECTOR_KEY_SOURCE: &str = ".";
/// `selectorKey` of a record of `spec.target`.
pub const SELECTOR_KEY_TARGET: &str = ".Target";

/// Condition: records exist.
pub const CONDITION_SELECTED: &str = "Selected";
/// Condition: records exist and every one is `Injected`.
pub const CONDITION_ALL_INJECTED: &str = "AllInjected";
/// Condition: records exist and every one is `Not Injected`.
pub const CONDITION_ALL_RECOVERED: &str = "AllRecovered";
/// Condition: the pause annotation is set.
pub const CONDITION_PAUSED: &str = "Paused";
/// Condition (ours): injected, and no packet or call was hit for 10 s; the first hit clears it.
pub const CONDITION_NO_EFFECT: &str = "NoEffect";
/// Condition (ours): injected, but not fully as asked; its message says how.
pub const CONDITION_DEGRADED: &str = "Degraded";

/// Event: the finalizer was added or taken away.
pub const EVENT_FINALIZER_INITED: &str = "FinalizerInited";
/// Event: the experiment (again) should run.
pub const EVENT_STARTED: &str = "Started";
/// Event: the experiment was paused.
pub const EVENT_PAUSED: &str = "Paused";
/// Event: its duration is over.
pub const EVENT_TIME_UP: &str = "TimeUp";
/// Event: it is being deleted.
pub const EVENT_DELETED: &str = "Deleted";
/// Event: a record was injected.
pub const EVENT_APPLIED: &str = "Applied";
/// Event: a record was recovered.
pub const EVENT_RECOVERED: &str = "Recovered";
/// Event: desired phase or records were written.
pub const EVENT_UPDATED: &str = "Updated";
/// Event (warning): something failed; the message says what, where and why.
pub const EVENT_FAILED: &str = "Failed";
/// Event (warning): this node or this target cannot have the fault.
pub const EVENT_NOT_SUPPORTED: &str = "NotSupported";

/// Annotation of an Event: kebab-case name of what happened.
pub const EVENT_ANNOTATION_TYPE: &str = "chaos-mesh.org/type";

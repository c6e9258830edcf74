//! What a node reports of a fault: read back from its kernel, not remembered.

use std::ops::AddAssign;
use std::time::Duration;

use serde::Serialize;

use crate::capabilities::Mechanism;
use crate::fault::FaultId;

/// Where a fault is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Phase {
    /// Not armed yet.
    Pending,
    /// Armed, and read back from the kernel.
    Injected,
    /// Its own deadline or its lease has passed: it does nothing any more.
    Expired,
    /// Not desired any more; its traces are being removed.
    Recovering,
    /// Tried and failed; will be tried again.
    Failed,
    /// This node or this target cannot have it; will not be tried again.
    NotSupported,
    /// The target is gone: nothing to do and nothing left.
    TargetGone,
}

/// What the kernel counted, summed over CPUs and mechanisms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Packets (calls) that the fault applies to, before sampling.
    pub matched: u64,
    /// Those that it was done to.
    pub injected: u64,
    /// Those that it would have been done to, in mode Observe.
    pub would_inject: u64,
    /// Those where a kernel helper failed: they went their way.
    pub failed: u64,
    /// Those of `injected` that were dropped because the queue of a shaper was full.
    pub overflowed: u64,
    /// Those of `injected` that were dropped because too much was waiting on the device already:
    /// the fault is degraded.
    pub over_budget: u64,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.matched += other.matched;
        self.injected += other.injected;
        self.would_inject += other.would_inject;
        self.failed += other.failed;
        self.overflowed += other.overflowed;
        self.over_budget += other.over_budget;
    }
}

/// One fault of the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Observed {
    /// Same as [`crate::fault::Fault::id`].
    pub id: FaultId,
    /// Kind, namespace, name and record of what asked for it.
    pub kind: String,
    /// See `kind`.
    pub namespace: String,
    /// See `kind`.
    pub name: String,
    /// See `kind`.
    pub record: String,
    /// Where it is on its way.
    pub phase: Phase,
    /// Those that carry it out.
    pub mechanisms: Vec<Mechanism>,
    /// Why it failed, is not supported or is degraded; empty when all is well.
    pub reason: String,
    /// Works, but not fully as asked; `reason` says how.
    pub degraded: bool,
    /// What the kernel counted.
    pub counts: Counts,
    /// Until the kernel stops by itself; zero when it has.
    pub expires_in: Duration,
    /// Since it was armed; zero before.
    pub armed_ago: Duration,
    /// Since its first hit.
    pub first_hit_ago: Option<Duration>,
}

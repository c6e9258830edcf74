//! From what agents observed to the phase of each record. Pure.
//!
//! A record is `Injected` when its node has read the fault back from its kernel, and `Not Injected`
//! again when a node that has carried out a set without it does not report it any more. What can
//! never be read back (a pod or node that is gone, an agent that stays away for longer than any
//! fault goes on without it) is clean by definition, and the event says why. What was never sent
//! to a node is not there.

use std::time::Duration;

use chaos_api::v1alpha1::{RecordEvent, RecordEventType, RecordOperation, RecordPhase, Time};
use chaos_proto::agent::{Fault, ObservedFault, Phase};
use jiff::{SignedDuration, Timestamp};

use crate::assign::Share;
use crate::cluster::{Cluster, is_completed};
use crate::kept::{Counts, End, Hold, KeptRecord};
use crate::notice::Notice;
use crate::view::{Seen, View};

pub mod summary;

/// How long a fault without a deadline of its own may go on in a kernel whose agent is dead: the
/// lease that an agent leaves to its successor. One that was seen to be longer counts instead.
pub const LONGEST_LEASE: Duration = Duration::from_secs(120);

/// How long an agent that was away when a fault's own deadline passed may take to come back and
/// say so, before the deadline is taken at its word.
pub const DEADLINE_GRACE: Duration = Duration::from_secs(10);

/// A kernel may end a fault this long before we think it is time.
const CLOCK_SLACK: SignedDuration = SignedDuration::from_secs(2);

/// Events kept per record, as upstream (`MAX_EVENTS`).
const MAX_EVENTS: usize = 100;

/// What the phases follow from.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings<'a> {
    /// Pods and nodes.
    pub cluster: &'a Cluster,
    /// What agents have said.
    pub view: &'a View,
    /// The time.
    pub now: Timestamp,
    /// When the experiment, or its round, ends by itself.
    pub ends_at: Option<Timestamp>,
    /// So many records that successes are not written down one by one.
    pub terse: bool,
}

/// Moves a record toward what it should have; `None`: nothing.
pub fn advance(
    record: &mut KeptRecord,
    share: Option<&Share>,
    around: &Surroundings<'_>,
    notices: &mut Vec<Notice>,
) {
    count(record, around);
    match share {
        Some(Share::Fault { node, fault }) => ask(record, node, fault, around, notices),
        Some(Share::Nothing) => bare(record, "", around, notices),
        Some(Share::NoEffect(reason)) => bare(record, reason, around, notices),
        Some(Share::Waiting(reason)) => {
            withdraw(record, around, notices);
            (*reason).clone_into(&mut record.report.reason);
        }
        Some(Share::Gone) => {
            let reason = "the pod is gone; it is injected again if it comes back under this name";
            recovered(record, Some("the pod is gone"), around, notices);
            reason.clone_into(&mut record.report.reason);
        }
        None => withdraw(record, around, notices),
    }
}

/// Counters are taken from whoever speaks of this record, whatever is desired.
fn count(record: &mut KeptRecord, around: &Surroundings<'_>) {
    let (Hold::Asked { node, since, .. } | Hold::Withdrawn { node, since, .. }) = &record.hold
    else {
        return;
    };
    if let Some(counters) = around.view.counters(node, &record.fault_id) {
        let now = Counts {
            hits: counters.injected.saturating_add(counters.would_inject),
            matched: counters.matched,
        };
        let seen = around.view.fault(node, &record.fault_id);
        let armed_at = seen.map(|seen| before(seen.at, seen.fault.armed_ms_ago));
        let anew = armed_at.is_some_and(|armed_at| armed_at > *since);
        record.report.count(now, anew);
    }
}

fn ask(
    record: &mut KeptRecord,
    node: &str,
    fault: &Fault,
    around: &Surroundings<'_>,
    notices: &mut Vec<Notice>,
) {
    let pod = around.cluster.pod_of_record(&record.id);
    let uid = pod.and_then(|pod| pod.metadata.uid.clone());
    let is_new_pod = record.pod_uid.is_some() && record.pod_uid != uid;
    if is_new_pod {
        recovered(record, Some("the pod was replaced"), around, notices);
    }
    record.pod_uid = uid;
    record.report.node = Some(node.to_owned());
    let asked_there = matches!(&record.hold, Hold::Asked { node: on, .. } if on == node);
    if !asked_there {
        if record.phase == RecordPhase::Injected && record.hold == Hold::Bare {
            // It had nothing to do before, and has now.
            record.phase = RecordPhase::NotInjected;
        }
        record.hold = Hold::Asked {
            node: node.to_owned(),
            since: around.now,
            generation: None,
            ends_at: around.ends_at,
        };
        record.report.unsupported = false;
        record.report.failed = false;
        record.report.reason.clear();
    }
    match record.phase {
        RecordPhase::NotInjected if !record.report.unsupported => {
            record.phase = RecordPhase::NotInjectedWait;
        }
        RecordPhase::InjectedWait => {
            // Wanted again before its absence was proven.
            record.recovered_count += 1;
            record.phase = RecordPhase::NotInjectedWait;
        }
        _ => {}
    }
    record.fault_id.clone_from(&fault.id);
    let seen = around.view.fault(node, &fault.id);
    if is_news(record, node, seen, around) {
        observe(
            record,
            seen.map(|seen| (&seen.fault, seen.at)),
            around,
            notices,
        );
    }
}

/// Whether what an agent says can be an answer to what it was asked, and not to an earlier set.
fn is_news(
    record: &KeptRecord,
    node: &str,
    seen: Option<&Seen>,
    around: &Surroundings<'_>,
) -> bool {
    let Hold::Asked {
        since, generation, ..
    } = &record.hold
    else {
        return false;
    };
    let heard = around.view.node(node).generation;
    if generation.is_some_and(|asked| heard >= asked) {
        return true;
    }
    // An agent that is still busy with another fault has not carried the set out yet, but one that
    // it armed after we asked is ours.
    seen.is_some_and(|seen| {
        seen.fault.phase() == Phase::Injected && before(seen.at, seen.fault.armed_ms_ago) > *since
    })
}

fn observe(
    record: &mut KeptRecord,
    seen: Option<(&ObservedFault, Timestamp)>,
    around: &Surroundings<'_>,
    notices: &mut Vec<Notice>,
) {
    let Some((fault, at)) = seen else {
        if record.phase == RecordPhase::Injected {
            lost(
                record,
                "the node does not have it any more",
                around,
                notices,
            );
        }
        return;
    };
    match fault.phase() {
        Phase::Pending | Phase::Recovering => {}
        Phase::Injected => {
            record.report.mechanisms.clone_from(&fault.mechanisms);
            record.report.degraded = fault.degraded;
            record.report.reason.clone_from(&fault.reason);
            record.report.unsupported = false;
            record.report.failed = false;
            let armed_at = before(at, fault.armed_ms_ago);
            // Reports take their time to come: the same moment need not be told anew.
            let is_same = |known: Timestamp| armed_at.duration_since(known).abs() < CLOCK_SLACK;
            if !record.report.armed_at.is_some_and(is_same) {
                record.report.armed_at = Some(armed_at);
            }
            record.report.expiry = after(at, fault.expires_in_ms);
            let lease = Duration::from_millis(fault.expires_in_ms);
            record.report.lease = record.report.lease.max(lease);
            injected(record, around, notices);
        }
        Phase::Expired => {
            let is_its_own_end = around
                .ends_at
                .is_some_and(|end| around.now + CLOCK_SLACK >= end);
            if !is_its_own_end {
                lost(
                    record,
                    "its lease has lapsed; it is armed again",
                    around,
                    notices,
                );
            }
        }
        Phase::Failed => {
            record.report.failed = true;
            lost(record, &fault.reason, around, notices);
        }
        Phase::NotSupported => {
            record.report.unsupported = true;
            record.phase = RecordPhase::NotInjected;
            record.report.reason.clone_from(&fault.reason);
            if record.told.as_deref() != Some(&fault.reason) {
                attempt(record, RecordOperation::Apply, Err(&fault.reason), around);
                notices.push(Notice::not_supported(&record.id, &fault.reason));
                record.told = Some(fault.reason.clone());
            }
        }
        Phase::TargetGone => lost(record, "the pod has no live process", around, notices),
    }
}

/// The record counts as injected without a fault.
fn bare(
    record: &mut KeptRecord,
    reason: &str,
    around: &Surroundings<'_>,
    notices: &mut Vec<Notice>,
) {
    if record.holds() {
        withdraw(record, around, notices);
        if record.holds() {
            return;
        }
    }
    record.hold = Hold::Bare;
    record.report.node = None;
    record.report.mechanisms.clear();
    reason.clone_into(&mut record.report.reason);
    injected(record, around, notices);
}

fn injected(record: &mut KeptRecord, around: &Surroundings<'_>, notices: &mut Vec<Notice>) {
    record.told = None;
    if record.phase == RecordPhase::Injected {
        return;
    }
    record.phase = RecordPhase::Injected;
    record.injected_count += 1;
    attempt(record, RecordOperation::Apply, Ok(()), around);
    notices.push(Notice::applied(&record.id));
}

/// It is desired, and not there: it will be tried again.
fn lost(
    record: &mut KeptRecord,
    reason: &str,
    around: &Surroundings<'_>,
    notices: &mut Vec<Notice>,
) {
    if record.phase == RecordPhase::Injected {
        record.recovered_count += 1;
    }
    record.phase = RecordPhase::NotInjectedWait;
    record.report.armed_at = None;
    record.report.expiry = None;
    reason.clone_into(&mut record.report.reason);
    if record.told.as_deref() != Some(reason) {
        attempt(record, RecordOperation::Apply, Err(reason), around);
        let message = format!("{}: {reason}", record.id);
        notices.push(Notice::failed("apply chaos", &message));
        record.told = Some(reason.to_owned());
    }
}

/// Nothing is desired of the record.
fn withdraw(record: &mut KeptRecord, around: &Surroundings<'_>, notices: &mut Vec<Notice>) {
    if record.report.unsupported {
        record.hold = Hold::Nothing;
    }
    if let Hold::Asked { node, ends_at, .. } = &record.hold {
        // Between two rounds there is no end any more, but what was asked for had one.
        let ends_at = ends_at.or(around.ends_at);
        record.hold = Hold::Withdrawn {
            node: node.clone(),
            since: around.now,
            generation: None,
            end: match ends_at {
                Some(at) => End::At(at),
                None => End::Lease(record.report.lease.max(LONGEST_LEASE)),
            },
        };
    }
    let Hold::Withdrawn { .. } = &record.hold else {
        return recovered(record, None, around, notices);
    };
    if record.phase == RecordPhase::Injected {
        record.phase = RecordPhase::InjectedWait;
    }
    match absence(record, around) {
        Absence::Unknown(reason) => record.report.reason = reason.unwrap_or_default(),
        Absence::Proven => recovered(record, None, around, notices),
        Absence::ByDefinition(reason) => recovered(record, Some(&reason), around, notices),
    }
}

/// Whether nothing of a withdrawn fault is left.
enum Absence {
    /// The agent has not said so yet; why, if that is not a matter of moments.
    Unknown(Option<String>),
    /// Read back.
    Proven,
    /// Nobody can say, and it cannot be there: the reason.
    ByDefinition(String),
}

fn absence(record: &KeptRecord, around: &Surroundings<'_>) -> Absence {
    let Hold::Withdrawn {
        node,
        generation,
        end,
        ..
    } = &record.hold
    else {
        return Absence::Proven;
    };
    let seen = around.view.fault(node, &record.fault_id);
    let agent = around.view.node(node);
    if generation.is_some() && was_never_sent(around.view, node) {
        return Absence::Proven;
    }
    let target_is_gone = seen.is_some_and(|seen| seen.fault.phase() == Phase::TargetGone);
    let is_reported = seen.is_some() && !target_is_gone;
    if generation.is_some_and(|asked| agent.generation >= asked) && !is_reported {
        return Absence::Proven;
    }
    let pod = around
        .cluster
        .pod_of_record(&record.id)
        .filter(|pod| !is_completed(pod));
    let is_same =
        pod.is_some_and(|pod| record.pod_uid.is_none() || record.pod_uid == pod.metadata.uid);
    if !is_same {
        return Absence::ByDefinition("the pod is gone".to_owned());
    }
    if around.cluster.node(node).is_none() {
        return Absence::ByDefinition(format!("node {node} is gone"));
    }
    if agent.connected {
        let reason = seen.map(|seen| seen.fault.reason.clone());
        return Absence::Unknown(reason.filter(|reason| !reason.is_empty()));
    }
    let since = agent.since;
    let settled_at = settled_at(*end, since);
    if around.now >= settled_at {
        let why = match end {
            End::At(at) => format!("its deadline in the kernel was {at:.0}"),
            End::Lease(lease) => format!(
                "an agent that is gone leaves a lease of at most {} s; one that is only cut off \
                 takes it away when it is back",
                lease.as_secs()
            ),
        };
        return Absence::ByDefinition(format!(
            "the agent of node {node} has been away since {since:.0}; {why}"
        ));
    }
    Absence::Unknown(Some(format!(
        "the agent of node {node} has been away since {since:.0}; the fault ends by itself at \
         {settled_at:.0} at the latest"
    )))
}

/// Nobody has ever told this node of a fault of this experiment. Once a set without it has taken
/// the place of the one that was not sent (its generation is known), that is so for good.
#[must_use]
pub fn was_never_sent(view: &View, node: &str) -> bool {
    !view.inherited && !view.node(node).sent
}

/// When a fault on a node whose agent is away counts as ended.
#[must_use]
pub fn settled_at(end: End, away_since: Timestamp) -> Timestamp {
    let (start, span) = match end {
        End::At(at) => (at.max(away_since), DEADLINE_GRACE),
        End::Lease(lease) => (away_since, lease),
    };
    start.checked_add(span).unwrap_or(Timestamp::MAX)
}

/// Nothing of it is left; `reason`: how that is known without the kernel's word.
fn recovered(
    record: &mut KeptRecord,
    reason: Option<&str>,
    around: &Surroundings<'_>,
    notices: &mut Vec<Notice>,
) {
    if matches!(
        record.phase,
        RecordPhase::Injected | RecordPhase::InjectedWait
    ) {
        record.recovered_count += 1;
        attempt(record, RecordOperation::Recover, Ok(()), around);
        notices.push(Notice::recovered(&record.id, reason));
    }
    record.phase = RecordPhase::NotInjected;
    record.hold = Hold::Nothing;
    record.told = None;
    let report = &mut record.report;
    report.reason.clear();
    report.armed_at = None;
    report.expiry = None;
    report.degraded = false;
    report.unsupported = false;
    report.failed = false;
}

fn attempt(
    record: &mut KeptRecord,
    operation: RecordOperation,
    result: Result<(), &str>,
    around: &Surroundings<'_>,
) {
    if around.terse && result.is_ok() {
        return;
    }
    if record.events.len() >= MAX_EVENTS {
        record.events.remove(0);
    }
    record.events.push(RecordEvent {
        r#type: match result {
            Ok(()) => RecordEventType::Succeeded,
            Err(_) => RecordEventType::Failed,
        },
        operation,
        message: result.err().map(str::to_owned),
        timestamp: Time(around.now),
    });
}

fn before(at: Timestamp, ms: u64) -> Timestamp {
    at.checked_sub(Duration::from_millis(ms))
        .unwrap_or(Timestamp::MIN)
}

fn after(at: Timestamp, ms: u64) -> Option<Timestamp> {
    at.checked_add(Duration::from_millis(ms)).ok()
}

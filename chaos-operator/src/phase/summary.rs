//! From records to the status that users read: conditions, counts, one word and why. Pure.

use std::collections::BTreeSet;
use std::time::Duration;

use chaos_api::duration;
use chaos_api::v1alpha1::names::{
    CONDITION_ALL_INJECTED, CONDITION_ALL_RECOVERED, CONDITION_DEGRADED, CONDITION_NO_EFFECT,
    CONDITION_PAUSED, CONDITION_SELECTED,
};
use chaos_api::v1alpha1::{
    ChaosStatus, Condition, DesiredPhase, ExperimentStatus, FaultlineStatus, Record, RecordDetail,
    RecordPhase, SummaryPhase, Time,
};
use jiff::{SignedDuration, Timestamp};

use crate::kept::{Hold, Kept, KeptRecord};
use crate::view::View;
use crate::window::{Halt, Window};

/// Without a hit for this long after arming, an experiment has no effect.
pub const NO_EFFECT_AFTER: Duration = Duration::from_secs(10);

/// An agent that has been away for this long is worth a word.
pub const AWAY_AFTER: Duration = Duration::from_secs(10);

/// Above so many records the status says only what differs from the summary.
pub const MANY_RECORDS: usize = 1000;

/// What a status follows from, beside what is kept.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Where it is in time.
    pub window: &'a Window,
    /// The pause annotation is set.
    pub paused: bool,
    /// What is wrong with the document; then nothing runs.
    pub problems: &'a [String],
    /// Why nothing is selected, if nothing is.
    pub selection: Option<&'a str>,
    /// What agents have said.
    pub view: &'a View,
    /// `metadata.generation`
    pub generation: Option<i64>,
    /// The time.
    pub now: Timestamp,
}

/// The status to write. Leaves the conditions in `kept`, for their times.
pub fn status(kept: &mut Kept, facts: &Facts<'_>) -> ChaosStatus {
    let conditions = conditions(kept, facts);
    kept.conditions.clone_from(&conditions);
    let total = kept.total();
    let (phase, reason) = word(kept, facts);
    let has_records = !kept.records.is_empty();
    let running = facts.window.halt.is_none() && facts.problems.is_empty();
    let is_over = facts.window.halt == Some(Halt::TimeUp);
    let ends_at = facts.window.ends_at.filter(|_| facts.problems.is_empty());
    ChaosStatus {
        conditions,
        experiment: ExperimentStatus {
            desired_phase: Some(desired(facts)),
            container_records: kept.records.iter().map(record).collect(),
        },
        faultline: Some(FaultlineStatus {
            observed_generation: facts.generation,
            phase: Some(phase.as_str().to_owned()),
            injected: has_records.then(|| injected(kept)),
            hits: has_records.then_some(total.hits),
            matched: has_records.then_some(total.matched),
            time_left: ends_at
                .filter(|_| running || facts.window.halt == Some(Halt::Paused))
                .map(|end| time_left(end, facts.now)),
            reason: Some(reason).filter(|reason| !reason.is_empty()),
            mechanisms: common_mechanisms(kept),
            seed: kept.seed,
            round: kept.round.map(|round| round.number),
            round_started: kept.round.map(|round| Time(round.started)),
            next_start: facts.window.next_start.map(Time),
            next_recover: ends_at.filter(|_| !is_over).map(Time),
            records: details(kept),
        }),
    }
}

/// What should be.
#[must_use]
pub fn desired(facts: &Facts<'_>) -> DesiredPhase {
    if facts.window.halt.is_none() && facts.problems.is_empty() {
        DesiredPhase::Run
    } else {
        DesiredPhase::Stop
    }
}

/// When the status changes by itself, if nothing else happens.
#[must_use]
pub fn changes_at(kept: &Kept, view: &View, now: Timestamp) -> Option<Timestamp> {
    let no_effect = kept
        .records
        .iter()
        .filter_map(|record| record.report.armed_at)
        .max()
        .map(|armed| armed + NO_EFFECT_AFTER);
    let away = kept
        .records
        .iter()
        .filter_map(node_held)
        .map(|node| view.node(node))
        .filter(|node| !node.connected)
        .map(|node| node.since + AWAY_AFTER);
    no_effect
        .into_iter()
        .chain(away)
        .filter(|at| *at > now)
        .min()
}

fn conditions(kept: &Kept, facts: &Facts<'_>) -> Vec<Condition> {
    let all =
        |phase| !kept.records.is_empty() && kept.records.iter().all(|record| record.phase == phase);
    let all_injected = all(RecordPhase::Injected);
    let no_effect = no_effect(kept, facts);
    let degraded = kept.records.iter().find(|record| record.report.degraded);
    let mut conditions = vec![
        condition(
            CONDITION_SELECTED,
            !kept.records.is_empty(),
            facts
                .selection
                .map(|why| ("NothingSelected", why.to_owned())),
        ),
        condition(CONDITION_ALL_INJECTED, all_injected, None),
        condition(CONDITION_ALL_RECOVERED, all(RecordPhase::NotInjected), None),
        condition(CONDITION_PAUSED, facts.paused, None),
    ];
    let ours = [
        (
            CONDITION_NO_EFFECT,
            no_effect.is_some(),
            no_effect.map(|why| ("NothingHit", why)),
        ),
        (
            CONDITION_DEGRADED,
            degraded.is_some(),
            degraded.map(|record| {
                (
                    "Limited",
                    format!("{}: {}", record.id, record.report.reason),
                )
            }),
        ),
    ];
    for (name, holds, why) in ours {
        // Once it has been there, its end is worth reading.
        if holds || kept.conditions.iter().any(|one| one.r#type == name) {
            conditions.push(condition(name, holds, why));
        }
    }
    for new in &mut conditions {
        let old = kept.conditions.iter().find(|one| one.r#type == new.r#type);
        new.last_transition_time = match old {
            Some(old) if old.status == new.status => old.last_transition_time,
            _ => Some(Time(facts.now)),
        };
    }
    conditions
}

fn condition(name: &str, holds: bool, why: Option<(&str, String)>) -> Condition {
    let (reason, message) = why.map_or((None, None), |(reason, message)| {
        (Some(reason.to_owned()), Some(message))
    });
    Condition {
        r#type: name.to_owned(),
        status: if holds { "True" } else { "False" }.to_owned(),
        reason,
        message,
        last_transition_time: None,
    }
}

/// Why nothing is hit, if that is so: all is injected, and no packet came by for a while, or none
/// ever can.
fn no_effect(kept: &Kept, facts: &Facts<'_>) -> Option<String> {
    let is_injected = |record: &KeptRecord| record.phase == RecordPhase::Injected;
    if kept.records.is_empty() || !kept.records.iter().all(is_injected) {
        return None;
    }
    let mut armed = kept
        .records
        .iter()
        .filter(|record| record.holds())
        .peekable();
    if armed.peek().is_none() {
        let why = kept.records.iter().find(|r| !r.report.reason.is_empty());
        return Some(why.map_or_else(
            || "no record has anything to do".to_owned(),
            |record| format!("{}: {}", record.id, record.report.reason),
        ));
    }
    let mut last_armed = Timestamp::MIN;
    for record in armed {
        if record.report.current.hits > 0 {
            return None;
        }
        last_armed = last_armed.max(record.report.armed_at.unwrap_or(facts.now));
    }
    let quiet = facts.now.duration_since(last_armed);
    (quiet >= SignedDuration::try_from(NO_EFFECT_AFTER).unwrap_or_default()).then(|| {
        let matched: u64 = kept.records.iter().map(|r| r.report.current.matched).sum();
        if matched == 0 {
            format!("injected since {last_armed:.0}, and no packet has matched since")
        } else {
            format!("injected since {last_armed:.0}; {matched} packets matched, and the sample took none of them")
        }
    })
}

/// One word, and why if it is not self-evident.
fn word(kept: &Kept, facts: &Facts<'_>) -> (SummaryPhase, String) {
    use SummaryPhase as P;
    let is_recovered = kept
        .records
        .iter()
        .all(|record| record.phase == RecordPhase::NotInjected && !record.holds());
    let unfinished = || {
        let mut reasons = kept.records.iter().filter(|record| record.holds());
        reasons
            .find(|record| !record.report.reason.is_empty())
            .map(|record| format!("{}: {}", record.id, record.report.reason))
            .or_else(|| unheard(kept))
            .unwrap_or_default()
    };
    if facts.window.halt == Some(Halt::Deleted) {
        return (P::Deleting, unfinished());
    }
    if let Some(problem) = facts.problems.first() {
        return (P::Failed, problem.clone());
    }
    let halted = match facts.window.halt {
        Some(Halt::TimeUp) => Some(P::Finished),
        Some(Halt::Paused) => Some(P::Paused),
        Some(Halt::Between) => Some(P::Waiting),
        Some(Halt::Deleted) | None => None,
    };
    if let Some(word) = halted {
        return if is_recovered {
            (word, String::new())
        } else {
            (P::Recovering, unfinished())
        };
    }
    if kept.records.is_empty() {
        return (P::Pending, facts.selection.unwrap_or_default().to_owned());
    }
    let explained = |record: &&KeptRecord| !record.report.reason.is_empty();
    let why = |record: &KeptRecord| format!("{}: {}", record.id, record.report.reason);
    let away = away(kept, facts);
    if kept
        .records
        .iter()
        .all(|r| r.phase == RecordPhase::Injected)
    {
        if let Some(degraded) = kept.records.iter().find(|r| r.report.degraded) {
            return (P::Degraded, why(degraded));
        }
        if let Some(reason) = no_effect(kept, facts) {
            return (P::NoEffect, reason);
        }
        return (P::Running, away.unwrap_or_default());
    }
    let mut pending = kept
        .records
        .iter()
        .filter(|r| r.phase != RecordPhase::Injected);
    let stuck = |r: &KeptRecord| r.report.unsupported || r.report.failed;
    if let Some(first) = kept.records.iter().find(|r| stuck(r))
        && pending.clone().all(stuck)
    {
        let works_elsewhere = kept
            .records
            .iter()
            .any(|r| r.phase == RecordPhase::Injected && r.hold != Hold::Bare);
        let word = if works_elsewhere {
            P::Degraded
        } else if pending.clone().all(|r| r.report.unsupported) {
            P::NotSupported
        } else {
            P::Failed
        };
        return (word, why(first));
    }
    let reason = away.or_else(|| pending.find(explained).map(why));
    (P::Injecting, reason.unwrap_or_default())
}

/// Which agent has to say first that an earlier operator has left nothing there.
fn unheard(kept: &Kept) -> Option<String> {
    let (node, settled) = kept.unheard.first_key_value()?;
    Some(format!(
        "waiting for the agent of node {node} to carry out its first set of this operator, until \
         {settled:.0} if it stays away: an operator before this one may have told it otherwise"
    ))
}

/// Which agent has been away for a while.
fn away(kept: &Kept, facts: &Facts<'_>) -> Option<String> {
    let nodes: BTreeSet<&str> = kept.records.iter().filter_map(node_held).collect();
    nodes.into_iter().find_map(|name| {
        let node = facts.view.node(name);
        let is_away = !node.connected && facts.now >= node.since + AWAY_AFTER;
        is_away.then(|| {
            format!(
                "the agent of node {name} has been away since {:.0}; what it was told before goes on there",
                node.since
            )
        })
    })
}

fn node_held(record: &KeptRecord) -> Option<&str> {
    match &record.hold {
        Hold::Asked { node, .. } | Hold::Withdrawn { node, .. } => Some(node),
        Hold::Nothing | Hold::Bare => None,
    }
}

fn injected(kept: &Kept) -> String {
    let count = kept
        .records
        .iter()
        .filter(|record| {
            matches!(
                record.phase,
                RecordPhase::Injected | RecordPhase::InjectedWait
            )
        })
        .count();
    format!("{count}/{}", kept.records.len())
}

fn time_left(end: Timestamp, now: Timestamp) -> String {
    let left = end.duration_since(now).max(SignedDuration::ZERO);
    // Rounded up: 1 ms before the end is not "0s left".
    let seconds = left.as_secs() + i64::from(left.subsec_nanos() > 0);
    duration::format(SignedDuration::from_secs(seconds))
}

fn common_mechanisms(kept: &Kept) -> Vec<String> {
    let mut distinct: Vec<&Vec<String>> = kept
        .records
        .iter()
        .map(|record| &record.report.mechanisms)
        .filter(|mechanisms| !mechanisms.is_empty())
        .collect();
    distinct.dedup();
    match distinct.as_slice() {
        [only] => (*only).clone(),
        _ => Vec::new(),
    }
}

fn record(kept: &KeptRecord) -> Record {
    Record {
        id: kept.id.clone(),
        selector_key: kept.selector_key.clone(),
        phase: kept.phase,
        injected_count: kept.injected_count,
        recovered_count: kept.recovered_count,
        events: kept.events.clone(),
    }
}

fn details(kept: &Kept) -> Vec<RecordDetail> {
    let common = common_mechanisms(kept);
    let terse = kept.records.len() > MANY_RECORDS;
    kept.records
        .iter()
        .filter(|one| !terse || !one.report.reason.is_empty() || one.report.mechanisms != common)
        .map(|one| {
            let total = one.report.total();
            let has_counts = one.injected_count > 0 && one.hold != Hold::Bare;
            RecordDetail {
                id: one.id.clone(),
                selector_key: one.selector_key.clone(),
                node: one.report.node.clone(),
                mechanisms: one.report.mechanisms.clone(),
                hits: has_counts.then_some(total.hits),
                matched: has_counts.then_some(total.matched),
                reason: Some(one.report.reason.clone()).filter(|reason| !reason.is_empty()),
                expiry: one.report.expiry.map(Time),
            }
        })
        .collect()
}

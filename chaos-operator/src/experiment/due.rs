//! When to look at an experiment again, and when its status is worth writing. Pure.

use std::time::Duration;

use chaos_api::v1alpha1::{ChaosStatus, RecordPhase};
use jiff::{SignedDuration, Timestamp};

use crate::experiment::Surrounding;
use crate::kept::{Hold, Kept};
use crate::phase::{settled_at, summary, was_never_sent};
use crate::window::Window;

/// How often counters and times in a status are refreshed, if nothing else changes.
pub const REFRESH_EVERY: Duration = Duration::from_secs(10);

/// When the next look is due, if nothing happens before.
pub(super) fn look_again_at(
    kept: &Kept,
    window: &Window,
    around: &Surrounding<'_>,
) -> Option<Timestamp> {
    let refresh = kept
        .records
        .iter()
        .any(|record| record.phase == RecordPhase::Injected)
        .then(|| around.now + REFRESH_EVERY);
    // An agent that is away cannot wake us when its faults have ended by themselves.
    let held = kept.records.iter().chain(&kept.leaving);
    let settled = held.filter_map(|record| {
        let Hold::Withdrawn {
            node,
            end,
            generation,
            ..
        } = &record.hold
        else {
            return None;
        };
        if generation.is_none() && was_never_sent(around.view, node) {
            // As soon as the set without it is in its place.
            return Some(around.now);
        }
        let node = around.view.node(node);
        (!node.connected).then(|| settled_at(*end, node.since))
    });
    let unheard = kept.unheard.values().copied();
    let unheard = unheard.filter(|at| *at > around.now);
    let summary = summary::changes_at(kept, around.view, around.now);
    window
        .changes_at
        .into_iter()
        .chain(refresh)
        .chain(settled)
        .chain(unheard)
        .chain(summary)
        .min()
}

/// Whether `new` is worth a write: at once if it says something new, every [`REFRESH_EVERY`] if
/// only counters and times have moved. The first hit is news.
#[must_use]
pub fn must_write(
    written: Option<&(ChaosStatus, Timestamp)>,
    new: &ChaosStatus,
    now: Timestamp,
) -> bool {
    let Some((old, at)) = written else {
        return true;
    };
    if essence(old) != essence(new) || hits(old) == 0 && hits(new) > 0 {
        return true;
    }
    let age = now.duration_since(*at);
    old != new && age >= SignedDuration::try_from(REFRESH_EVERY).unwrap_or_default()
}

fn hits(status: &ChaosStatus) -> u64 {
    let ours = status.faultline.as_ref();
    ours.and_then(|ours| ours.hits).unwrap_or(0)
}

/// A status without what moves all the time.
fn essence(status: &ChaosStatus) -> ChaosStatus {
    let mut status = status.clone();
    for condition in &mut status.conditions {
        // It may tell how long something has lasted.
        condition.message = None;
        condition.last_transition_time = None;
    }
    if let Some(ours) = &mut status.faultline {
        ours.hits = None;
        ours.matched = None;
        ours.time_left = None;
        for record in &mut ours.records {
            record.hits = None;
            record.matched = None;
            record.expiry = None;
        }
    }
    status
}

#[cfg(test)]
mod tests {
    use chaos_api::v1alpha1::FaultlineStatus;

    use super::*;

    fn status(phase: &str, hits: u64) -> ChaosStatus {
        ChaosStatus {
            faultline: Some(FaultlineStatus {
                phase: Some(phase.into()),
                hits: Some(hits),
                time_left: Some(format!("{hits}s")),
                ..FaultlineStatus::default()
            }),
            ..ChaosStatus::default()
        }
    }

    #[test]
    fn news_is_written_at_once_and_counters_every_ten_seconds() {
        let at: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let second = |n| at + SignedDuration::from_secs(n);
        let running = (status("Running", 5), at);
        assert!(must_write(None, &status("Running", 5), at));
        assert!(!must_write(
            Some(&running),
            &status("Running", 5),
            second(60)
        ));
        assert!(!must_write(
            Some(&running),
            &status("Running", 6),
            second(9)
        ));
        assert!(must_write(
            Some(&running),
            &status("Running", 6),
            second(10)
        ));
        assert!(must_write(Some(&running), &status("Paused", 5), second(1)));
        let unhit = (status("Running", 0), at);
        assert!(
            must_write(Some(&unhit), &status("Running", 1), second(1)),
            "the first hit"
        );
    }
}

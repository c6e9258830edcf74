//! Whether an experiment should run now, and until when. Pure.
//!
//! In the order of upstream: being deleted, over, paused, running. The rounds of a legacy
//! `scheduler` come from chaos-api; pausing never moves an end or a grid.

use chaos_api::cron::Cron;
use chaos_api::duration;
use chaos_api::rounds::{Position, Round, Rounds};
use chaos_api::v1alpha1::Lifecycle;
use jiff::Timestamp;
use jiff::tz::TimeZone;

/// Why an experiment should not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Halt {
    /// It is being deleted.
    Deleted,
    /// Its duration is over.
    TimeUp,
    /// The annotation says so.
    Paused,
    /// Between two rounds of a scheduler, or before the first.
    Between,
}

/// Where an experiment is in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// `None`: it should run.
    pub halt: Option<Halt>,
    /// With a scheduler: the current round, or the last one.
    pub round: Option<Round>,
    /// With a scheduler: when the next round starts.
    pub next_start: Option<Timestamp>,
    /// When the experiment, or its current round, ends by itself.
    pub ends_at: Option<Timestamp>,
    /// When this answer changes by itself.
    pub changes_at: Option<Timestamp>,
}

impl Window {
    /// Number of the round that draws and fault ids carry; 0 without a scheduler.
    #[must_use]
    pub fn round_number(&self) -> u64 {
        self.round.map_or(0, |round| round.number)
    }
}

/// What the answer follows from.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The fields of the spec.
    pub lifecycle: &'a Lifecycle,
    /// `metadata.creationTimestamp`
    pub created: Timestamp,
    /// `metadata.deletionTimestamp` is set.
    pub deleted: bool,
    /// The pause annotation is set.
    pub paused: bool,
    /// What is done once: never paused, never over.
    pub one_shot: bool,
    /// The last round that an earlier answer held.
    pub known_round: Option<Round>,
}

/// Where the experiment is at `now`. Durations that cannot be read count as none: validation has
/// refused them before.
#[must_use]
pub fn at(facts: &Facts<'_>, now: Timestamp, zone: &TimeZone) -> Window {
    // The API server's clock may be ahead of ours: what it has created exists.
    let now = now.max(facts.created);
    let mut window = timetable(facts, now, zone);
    if facts.paused && !facts.one_shot && window.halt != Some(Halt::TimeUp) {
        window.halt = Some(Halt::Paused);
    }
    if facts.deleted {
        window.halt = Some(Halt::Deleted);
        window.changes_at = None;
        window.next_start = None;
    }
    window
}

fn timetable(facts: &Facts<'_>, now: Timestamp, zone: &TimeZone) -> Window {
    let always = Window {
        halt: None,
        round: None,
        next_start: None,
        ends_at: None,
        changes_at: None,
    };
    let duration = facts.lifecycle.duration.as_deref();
    let Some(duration) = duration
        .filter(|_| !facts.one_shot)
        .and_then(|text| duration::parse(text).ok())
        .and_then(|duration| std::time::Duration::try_from(duration).ok())
    else {
        return always;
    };
    let scheduler = facts.lifecycle.scheduler.as_ref();
    if let Some(cron) = scheduler.and_then(|scheduler| Cron::parse(&scheduler.cron).ok()) {
        let rounds = Rounds {
            cron,
            window: duration,
            created: facts.created,
            zone: zone.clone(),
        };
        let position = rounds.at(now, facts.known_round);
        let (halt, ends_at, next_start) = match position {
            Position::Waiting { next_start, .. } => (Some(Halt::Between), None, next_start),
            Position::Running { round, next_start } => (None, Some(round.ends), next_start),
        };
        return Window {
            halt,
            round: position.round(),
            next_start,
            ends_at,
            changes_at: position.changes_at(),
        };
    }
    let ends_at = facts
        .created
        .checked_add(duration)
        .unwrap_or(Timestamp::MAX);
    if now >= ends_at {
        return Window {
            halt: Some(Halt::TimeUp),
            ends_at: Some(ends_at),
            ..always
        };
    }
    Window {
        ends_at: Some(ends_at),
        changes_at: Some(ends_at),
        ..always
    }
}

#[cfg(test)]
mod tests {
    use chaos_api::v1alpha1::Scheduler;

    use super::*;

    const CREATED: &str = "2026-01-01T00:00:00Z";

    fn time(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn lifecycle(duration: Option<&str>, cron: Option<&str>) -> Lifecycle {
        Lifecycle {
            duration: duration.map(str::to_owned),
            scheduler: cron.map(|cron| Scheduler { cron: cron.into() }),
            ..Lifecycle::default()
        }
    }

    /// `(paused, deleted, one_shot)` and seconds since the creation to the halt and the change.
    #[track_caller]
    fn check(
        lifecycle: &Lifecycle,
        (paused, deleted, one_shot): (bool, bool, bool),
        elapsed: i64,
        halt: Option<Halt>,
        changes_in: Option<i64>,
    ) {
        let created = time(CREATED);
        let facts = Facts {
            lifecycle,
            created,
            deleted,
            paused,
            one_shot,
            known_round: None,
        };
        let now = created + jiff::SignedDuration::from_secs(elapsed);
        let window = at(&facts, now, &TimeZone::UTC);
        assert_eq!(window.halt, halt, "after {elapsed} s");
        let change = window
            .changes_at
            .map(|at| at.duration_since(created).as_secs());
        assert_eq!(change, changes_in, "after {elapsed} s");
    }

    const PLAIN: (bool, bool, bool) = (false, false, false);
    const PAUSED: (bool, bool, bool) = (true, false, false);
    const DELETED: (bool, bool, bool) = (true, true, false);
    const ONE_SHOT: (bool, bool, bool) = (true, false, true);

    #[test]
    fn without_a_duration_it_runs_until_paused_or_deleted() {
        let lifecycle = lifecycle(None, None);
        check(&lifecycle, PLAIN, 1_000_000, None, None);
        check(&lifecycle, PAUSED, 5, Some(Halt::Paused), None);
        check(&lifecycle, DELETED, 5, Some(Halt::Deleted), None);
    }

    #[test]
    fn a_duration_counts_from_the_creation_and_pauses_do_not_extend_it() {
        let lifecycle = lifecycle(Some("30s"), None);
        check(&lifecycle, PLAIN, 0, None, Some(30));
        check(&lifecycle, PLAIN, 29, None, Some(30));
        check(&lifecycle, PLAIN, 30, Some(Halt::TimeUp), None);
        check(&lifecycle, PAUSED, 10, Some(Halt::Paused), Some(30));
        check(&lifecycle, PAUSED, 31, Some(Halt::TimeUp), None);
        check(&lifecycle, DELETED, 31, Some(Halt::Deleted), None);
    }

    #[test]
    fn what_happens_once_is_never_over_and_never_paused() {
        check(&lifecycle(Some("30s"), None), ONE_SHOT, 100, None, None);
    }

    #[test]
    fn a_clock_behind_the_api_server_does_not_keep_it_from_starting() {
        check(
            &lifecycle(Some("10s"), Some("@every 15s")),
            PLAIN,
            -3,
            None,
            Some(10),
        );
    }

    #[test]
    fn rounds_run_wait_and_keep_their_grid_while_paused() {
        let lifecycle = lifecycle(Some("10s"), Some("@every 15s"));
        check(&lifecycle, PLAIN, 0, None, Some(10));
        check(&lifecycle, PLAIN, 10, Some(Halt::Between), Some(15));
        check(&lifecycle, PLAIN, 16, None, Some(25));
        check(&lifecycle, PAUSED, 16, Some(Halt::Paused), Some(25));
        check(&lifecycle, PAUSED, 26, Some(Halt::Paused), Some(30));
        check(&lifecycle, PLAIN, 31, None, Some(40));
        check(&lifecycle, DELETED, 31, Some(Halt::Deleted), None);
    }
}

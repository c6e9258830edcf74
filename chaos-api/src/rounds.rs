//! The rounds of a legacy `scheduler`: a window of `duration` at each tick.
//!
//! A pure function of the object and the time. What a round *does* (draw targets, inject, recover)
//! is the operator's business; pausing changes nothing here, which is what keeps the grid.

use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use crate::cron::Cron;
use crate::duration;
use crate::v1alpha1::{FaultlineStatus, Lifecycle};

/// How many ticks of a calendar are walked, at most, to find the current round. Only a window
/// longer than the time between any two ticks needs the walk to be exact; past this, the last tick
/// starts a round.
const MOST_STEPS: u64 = 20_000;

/// What the rounds follow from.
#[derive(Clone, Debug)]
pub struct Rounds {
    /// `spec.scheduler.cron`
    pub cron: Cron,
    /// `spec.duration`: how long each round lasts. Above zero.
    pub window: Duration,
    /// `metadata.creationTimestamp`: `@every` starts its first round then.
    pub created: Timestamp,
    /// In which a calendar has its ticks: the operator's.
    pub zone: TimeZone,
}

/// One window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Round {
    /// From 1, growing with each round, by one unless very many passed unseen. Skipped ticks do not
    /// count.
    pub number: u64,
    /// The tick.
    pub started: Timestamp,
    /// `started` + the window. The round no longer runs at this moment.
    pub ends: Timestamp,
}

/// Where the rounds are at some moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// Between two rounds, or before the first.
    Waiting {
        /// The last round, now over.
        last: Option<Round>,
        /// `None`: there will be no other.
        next_start: Option<Timestamp>,
    },
    /// In a round.
    Running {
        /// Which.
        round: Round,
        /// The first tick at or after its end.
        next_start: Option<Timestamp>,
    },
}

impl Position {
    /// The current round, or the last one; to be kept as `known` for the next time.
    #[must_use]
    pub const fn round(&self) -> Option<Round> {
        match self {
            Self::Waiting { last, .. } => *last,
            Self::Running { round, .. } => Some(*round),
        }
    }

    /// When this answer changes: the next start, or the end of the current round.
    #[must_use]
    pub const fn changes_at(&self) -> Option<Timestamp> {
        match self {
            Self::Waiting { next_start, .. } => *next_start,
            Self::Running { round, .. } => Some(round.ends),
        }
    }
}

impl Rounds {
    /// Those of an experiment; `None` if it has no scheduler, or one that `validate` refuses.
    #[must_use]
    pub fn of(lifecycle: &Lifecycle, created: Timestamp, zone: TimeZone) -> Option<Self> {
        Some(Self {
            cron: Cron::parse(&lifecycle.scheduler.as_ref()?.cron).ok()?,
            window: duration::parse_positive(lifecycle.duration.as_ref()?).ok()?,
            created,
            zone,
        })
    }

    /// The round that a status was written in, or after: `round` and `roundStarted`.
    #[must_use]
    pub fn known(&self, status: &FaultlineStatus) -> Option<Round> {
        Some(self.round(status.round?, status.round_started.as_ref()?.0))
    }

    /// Where the rounds are at `now`.
    ///
    /// `known` is the last round that an earlier call returned, if there is one (see
    /// [`Rounds::known`]). Without it the answer is found from the creation on, and is the same but
    /// for the number of a calendar's round after very many. Rounds that passed unseen are counted. The first round is the one at creation (`@every`), the one that
    /// a tick before the creation opened and that is still open then, or the one at the first tick
    /// after. A tick inside a running window is skipped.
    #[must_use]
    pub fn at(&self, now: Timestamp, known: Option<Round>) -> Position {
        let known = known.filter(|round| round.started <= now && self.is_possible(*round));
        let mut round = match known.or_else(|| self.first()) {
            Some(round) if round.started <= now => round,
            first => {
                return Position::Waiting {
                    last: None,
                    next_start: first.map(|round| round.started),
                };
            }
        };
        if let Cron::Every(period) = &self.cron {
            round = self.skip_to(now, round, *period);
        }
        for _ in 0..MOST_STEPS {
            let next_start = self.start_at_or_after(round.ends);
            if now < round.ends {
                return Position::Running { round, next_start };
            }
            match next_start {
                Some(start) if start <= now => round = self.round(round.number + 1, start),
                _ => {
                    return Position::Waiting {
                        last: Some(round),
                        next_start,
                    };
                }
            }
        }
        self.after_last_tick(now, round)
    }

    /// The round that a tick at `start` opens.
    fn round(&self, number: u64, start: Timestamp) -> Round {
        let ends = start.checked_add(self.window).unwrap_or(Timestamp::MAX);
        Round {
            number,
            started: start,
            ends,
        }
    }

    /// False for what cannot have come from here: a known round is the user's to edit.
    fn is_possible(&self, round: Round) -> bool {
        round.number > 0
            && round.ends == self.round(round.number, round.started).ends
            && round.ends > self.created
    }

    fn first(&self) -> Option<Round> {
        let open = self
            .cron
            .last_until(self.created, self.created, &self.zone)
            .filter(|tick| self.round(1, *tick).ends > self.created);
        let start = open.or_else(|| self.start_at_or_after(self.created));
        start.map(|start| self.round(1, start))
    }

    fn start_at_or_after(&self, at: Timestamp) -> Option<Timestamp> {
        let just_before = at.checked_sub(SignedDuration::from_nanos(1)).ok()?;
        self.cron.next_after(just_before, self.created, &self.zone)
    }

    /// With a fixed period the rounds are evenly spaced too: no need to walk.
    fn skip_to(&self, now: Timestamp, round: Round, period: SignedDuration) -> Round {
        let spacing = self
            .start_at_or_after(round.ends)
            .map_or(0, |next| next.duration_since(round.started).as_secs());
        if spacing < period.as_secs() {
            return round;
        }
        let rounds = now.duration_since(round.started).as_secs() / spacing;
        match round
            .started
            .checked_add(SignedDuration::from_secs(rounds * spacing))
        {
            Ok(start) => self.round(round.number + rounds.unsigned_abs(), start),
            Err(_) => round,
        }
    }

    fn after_last_tick(&self, now: Timestamp, passed: Round) -> Position {
        let Some(tick) = self.cron.last_until(now, self.created, &self.zone) else {
            return Position::Waiting {
                last: Some(passed),
                next_start: None,
            };
        };
        // Numbers stay unique: a calendar has at most one tick in a minute.
        let minutes = tick.duration_since(passed.started).as_mins().unsigned_abs();
        let round = self.round(passed.number + minutes.max(1), tick);
        let next_start = self.start_at_or_after(round.ends);
        if now < round.ends {
            Position::Running { round, next_start }
        } else {
            Position::Waiting {
                last: Some(round),
                next_start,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn rounds(cron: &str, window: u64, created: &str) -> Rounds {
        Rounds {
            cron: Cron::parse(cron).unwrap(),
            window: Duration::from_secs(window),
            created: at(created),
            zone: TimeZone::UTC,
        }
    }

    /// `Running 2 00:00:15-00:00:25, next 00:00:30`
    fn shown(position: Position) -> String {
        let time = |at: Option<Timestamp>| {
            at.map_or("never".into(), |at| at.strftime("%H:%M:%S").to_string())
        };
        match position {
            Position::Running {
                round:
                    Round {
                        number,
                        started,
                        ends,
                    },
                next_start,
            } => format!(
                "Running {number} {}-{}, next {}",
                time(Some(started)),
                time(Some(ends)),
                time(next_start)
            ),
            Position::Waiting { last, next_start } => {
                let last = last.map_or(0, |round| round.number);
                format!("Waiting after {last}, next {}", time(next_start))
            }
        }
    }

    #[test]
    fn every_starts_at_once_and_keeps_its_grid() {
        let rounds = rounds("@every 15s", 10, "2026-01-01T00:00:00Z");
        for (now, expected) in [
            ("2025-12-31T23:59:58Z", "Waiting after 0, next 00:00:00"),
            (
                "2026-01-01T00:00:00Z",
                "Running 1 00:00:00-00:00:10, next 00:00:15",
            ),
            (
                "2026-01-01T00:00:09.999Z",
                "Running 1 00:00:00-00:00:10, next 00:00:15",
            ),
            ("2026-01-01T00:00:10Z", "Waiting after 1, next 00:00:15"),
            ("2026-01-01T00:00:14.999Z", "Waiting after 1, next 00:00:15"),
            (
                "2026-01-01T00:00:15Z",
                "Running 2 00:00:15-00:00:25, next 00:00:30",
            ),
            ("2026-01-01T00:00:40Z", "Waiting after 3, next 00:00:45"),
            (
                "2026-01-01T01:00:01Z",
                "Running 241 01:00:00-01:00:10, next 01:00:15",
            ),
            (
                "2026-01-31T00:00:14Z",
                "Waiting after 172801, next 00:00:15",
            ),
        ] {
            assert_eq!(shown(rounds.at(at(now), None)), expected, "{now}");
        }
    }

    #[test]
    fn ticks_inside_a_running_window_are_skipped() {
        let rounds = rounds("@every 15s", 20, "2026-01-01T00:00:00Z");
        for (now, expected) in [
            (
                "2026-01-01T00:00:16Z",
                "Running 1 00:00:00-00:00:20, next 00:00:30",
            ),
            ("2026-01-01T00:00:25Z", "Waiting after 1, next 00:00:30"),
            (
                "2026-01-01T00:00:30Z",
                "Running 2 00:00:30-00:00:50, next 00:01:00",
            ),
        ] {
            assert_eq!(shown(rounds.at(at(now), None)), expected, "{now}");
        }
    }

    #[test]
    fn a_tick_at_the_end_of_a_window_starts_the_next_round() {
        let rounds = rounds("@every 15s", 15, "2026-01-01T00:00:00Z");
        let position = rounds.at(at("2026-01-01T00:00:15Z"), None);
        assert_eq!(
            shown(position),
            "Running 2 00:00:15-00:00:30, next 00:00:30"
        );
    }

    #[test]
    fn a_calendar_waits_unless_the_last_tick_is_still_open() {
        for (created, now, expected) in [
            (
                "2026-01-01T00:20:00Z",
                "2026-01-01T00:20:00Z",
                "Waiting after 0, next 01:00:00",
            ),
            (
                "2026-01-01T00:04:00Z",
                "2026-01-01T00:04:00Z",
                "Running 1 00:00:00-00:10:00, next 01:00:00",
            ),
            (
                "2026-01-01T00:20:00Z",
                "2026-01-01T01:09:59Z",
                "Running 1 01:00:00-01:10:00, next 02:00:00",
            ),
            (
                "2026-01-01T00:04:00Z",
                "2026-01-01T05:30:00Z",
                "Waiting after 6, next 06:00:00",
            ),
        ] {
            let rounds = rounds("0 * * * *", 600, created);
            assert_eq!(shown(rounds.at(at(now), None)), expected, "{created} {now}");
        }
    }

    #[test]
    fn a_calendar_skips_ticks_inside_a_window_from_its_first_round_on() {
        let rounds = rounds("* * * * *", 90, "2026-01-01T00:00:30Z");
        for (now, expected) in [
            (
                "2026-01-01T00:00:30Z",
                "Running 1 00:00:00-00:01:30, next 00:02:00",
            ),
            ("2026-01-01T00:01:45Z", "Waiting after 1, next 00:02:00"),
            (
                "2026-01-01T00:03:00Z",
                "Running 2 00:02:00-00:03:30, next 00:04:00",
            ),
        ] {
            assert_eq!(shown(rounds.at(at(now), None)), expected, "{now}");
        }
    }

    #[test]
    fn years_of_ticks_inside_windows_still_give_an_answer() {
        let rounds = rounds("* * * * *", 90, "2016-01-01T00:00:00Z");
        let position = rounds.at(at("2026-01-01T00:00:10Z"), None);
        assert!(matches!(position, Position::Running { .. }), "{position:?}");
    }

    #[test]
    fn rounds_after_very_many_have_numbers_of_their_own() {
        let rounds = rounds("*/5 * * * *", 60, "2016-01-01T00:00:00Z");
        let at = |text| rounds.at(at(text), None).round().unwrap();
        let first = at("2026-01-01T00:00:10Z");
        let second = at("2026-01-01T00:05:10Z");
        assert!(first.number < second.number, "{first:?} {second:?}");
        let known = rounds.at(second.started, Some(first)).round().unwrap();
        assert_eq!(
            (known.number, known.started),
            (first.number + 1, second.started)
        );
    }

    #[test]
    fn the_rounds_of_a_document_are_found_again_from_its_status() {
        let spec = "{action: partition, mode: all, selector: {}, duration: 10s, scheduler: {cron: '@every 15s'}}";
        let lifecycle = crate::fixtures::network_chaos(spec).lifecycle;
        let rounds = Rounds::of(&lifecycle, at("2026-01-01T00:00:00Z"), TimeZone::UTC).unwrap();
        let round = rounds.at(at("2026-01-01T00:00:41Z"), None).round().unwrap();
        let status = FaultlineStatus {
            round: Some(round.number),
            round_started: Some(crate::v1alpha1::Time(round.started)),
            ..FaultlineStatus::default()
        };
        assert_eq!(rounds.known(&status), Some(round));
        assert_eq!(rounds.known(&FaultlineStatus::default()), None);
        assert!(Rounds::of(&Lifecycle::default(), rounds.created, TimeZone::UTC).is_none());
    }

    #[test]
    fn a_known_round_that_cannot_be_is_not_believed() {
        let rounds = rounds("@every 15s", 10, "2026-01-01T00:00:00Z");
        let now = at("2026-01-01T00:00:31Z");
        let expected = rounds.at(now, None);
        let genuine = expected.round().unwrap();
        for foreign in [
            Round {
                number: 0,
                ..genuine
            },
            Round {
                ends: now,
                ..genuine
            },
            Round {
                number: 9,
                ..rounds.round(9, at("2025-01-01T00:00:00Z"))
            },
            Round {
                number: 9,
                ..rounds.round(9, at("2026-01-02T00:00:00Z"))
            },
        ] {
            assert_eq!(rounds.at(now, Some(foreign)), expected, "{foreign:?}");
        }
    }

    proptest! {
        #[test]
        fn knowing_an_earlier_round_changes_nothing(
            cron in prop::sample::select(vec!["@every 15s", "@every 1h", "*/7 * * * *", "0 3,4 * * 1", "@monthly"]),
            window in 1_u64..20_000,
            earlier in 0_i64..2_000_000,
            later in 0_i64..2_000_000,
        ) {
            let rounds = rounds(cron, window, "2026-01-01T00:00:20Z");
            let first = rounds.created + SignedDuration::from_secs(earlier);
            let second = first + SignedDuration::from_secs(later);
            let known = rounds.at(first, None).round();
            prop_assert_eq!(rounds.at(second, known), rounds.at(second, None));
        }

        #[test]
        fn the_position_holds_until_it_says_it_changes(
            window in 1_u64..4_000,
            elapsed in 0_i64..2_000_000,
        ) {
            let rounds = rounds("*/9 * * * *", window, "2026-01-01T00:00:20Z");
            let now = rounds.created + SignedDuration::from_secs(elapsed);
            let position = rounds.at(now, None);
            let change = position.changes_at().unwrap();
            prop_assert!(change > now);
            prop_assert_eq!(rounds.at(change - SignedDuration::from_nanos(1), None), position);
            prop_assert_ne!(rounds.at(change, None), position);
        }
    }
}

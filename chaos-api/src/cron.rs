//! Cron expressions as Chaos Mesh 1.x and Schedule take them.
//!
//! Five fields, the `@` names, and `@every <duration>`. The fields and the calendar are croner's
//! business; here is what it takes more, or less, than the standard parser of Chaos Mesh.

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use croner::parser::{CronParser, Seconds, Year};

use crate::duration;

/// Names of months and days that a field may hold.
const NAMES: [&str; 19] = [
    "JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC", "SUN",
    "MON", "TUE", "WED", "THU", "FRI", "SAT",
];

/// The fields in their order, and what each may hold.
const FIELDS: [&str; 5] = [
    "minute (0-59)",
    "hour (0-23)",
    "day of the month (1-31)",
    "month (1-12 or JAN-DEC)",
    "day of the week (0-7 or SUN-SAT)",
];

/// When something happens again and again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cron {
    /// `@every`: whole seconds, at least one.
    Every(SignedDuration),
    /// On the calendar of the zone that [`Cron::next_after`] is given.
    Calendar(Box<croner::Cron>),
}

/// Why a text is no cron expression.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CronError {
    /// Not five fields and no `@` name.
    #[error("a cron expression has five fields or is @every and a duration, this has {0} fields")]
    FieldCount(usize),
    /// An `@` name that does not exist.
    #[error(
        "{0:?} is not one of @every <duration>, @hourly, @daily, @midnight, @weekly, @monthly, @yearly, @annually"
    )]
    UnknownName(String),
    /// The duration behind `@every` is none, or not of whole seconds from one up.
    #[error("@every takes a duration of whole seconds, at least 1s: {0}")]
    Every(String),
    /// A field holds what cron does not know.
    #[error("{0}")]
    Field(String),
    /// Such as the 30th of February.
    #[error("no such day comes in the next years")]
    Never,
}

impl Cron {
    /// Reads an expression.
    ///
    /// # Errors
    /// See [`CronError`].
    pub fn parse(text: &str) -> Result<Self, CronError> {
        let text = text.trim();
        if let Some(name) = text.strip_prefix('@') {
            return Self::parse_name(text, name);
        }
        let fields = text.split_whitespace().count();
        if fields != 5 {
            return Err(CronError::FieldCount(fields));
        }
        Self::parse_fields(text)
    }

    fn parse_name(text: &str, name: &str) -> Result<Self, CronError> {
        if let Some(period) = name.strip_prefix("every ") {
            let refuse = |why: &str| CronError::Every(why.to_owned());
            let period =
                duration::parse(period.trim()).map_err(|error| refuse(&error.to_string()))?;
            if period < SignedDuration::from_secs(1) {
                return Err(refuse("it is below 1s"));
            }
            if period.subsec_nanos() != 0 {
                return Err(refuse("it has a fraction of a second"));
            }
            return Ok(Self::Every(period));
        }
        Self::parse_fields(match name {
            "yearly" | "annually" => "0 0 1 1 *",
            "monthly" => "0 0 1 * *",
            "weekly" => "0 0 * * 0",
            "daily" | "midnight" => "0 0 * * *",
            "hourly" => "0 * * * *",
            _ => return Err(CronError::UnknownName(text.to_owned())),
        })
    }

    fn parse_fields(text: &str) -> Result<Self, CronError> {
        // croner has additions of its own (L, W, #, +) that Chaos Mesh would have refused.
        if let Some(foreign) = text.chars().find(|c| {
            !(c.is_ascii_alphanumeric() || c.is_ascii_whitespace() || "*/,-?".contains(*c))
        }) {
            return Err(CronError::Field(format!(
                "{foreign:?} has no meaning in a cron field"
            )));
        }
        let words = text
            .split(|c: char| !c.is_ascii_alphabetic())
            .filter(|word| !word.is_empty());
        for word in words {
            if !NAMES.contains(&word.to_ascii_uppercase().as_str()) {
                return Err(CronError::Field(format!(
                    "{word:?} is no month (JAN) and no day (MON)"
                )));
            }
        }
        let cron = parser()
            .parse(text)
            .map_err(|error| blame(text, &error.to_string()))?;
        let cron = Self::Calendar(Box::new(cron));
        // Leap days are at most eight years apart.
        let epoch = Timestamp::UNIX_EPOCH;
        cron.next_after(epoch, epoch, &TimeZone::UTC)
            .ok_or(CronError::Never)?;
        Ok(cron)
    }

    /// The first tick after `after`; `None` if there is none before the end of time.
    ///
    /// `origin` is where `@every` counts from: its ticks are `origin`, `origin` + period, and so
    /// on. A calendar has its ticks in `zone`, whatever the origin.
    #[must_use]
    pub fn next_after(
        &self,
        after: Timestamp,
        origin: Timestamp,
        zone: &TimeZone,
    ) -> Option<Timestamp> {
        match self {
            Self::Every(period) => {
                if after < origin {
                    return Some(origin);
                }
                let ticks = after.duration_since(origin).as_secs() / period.as_secs() + 1;
                let offset = SignedDuration::from_secs(period.as_secs().checked_mul(ticks)?);
                origin.checked_add(offset).ok()
            }
            Self::Calendar(cron) => cron
                .find_next_occurrence(&after.to_zoned(zone.clone()), false)
                .ok()
                .map(|tick| tick.timestamp()),
        }
    }

    /// The last tick at or before `at`; `None` if there is none since the beginning of time, or,
    /// for `@every`, since `origin`.
    #[must_use]
    pub fn last_until(
        &self,
        at: Timestamp,
        origin: Timestamp,
        zone: &TimeZone,
    ) -> Option<Timestamp> {
        match self {
            Self::Every(period) => {
                if at < origin {
                    return None;
                }
                let ticks = at.duration_since(origin).as_secs() / period.as_secs();
                origin
                    .checked_add(SignedDuration::from_secs(period.as_secs() * ticks))
                    .ok()
            }
            Self::Calendar(cron) => {
                // croner looks at whole seconds: from the start of this one, backwards.
                let second = Timestamp::from_second(
                    at.as_nanosecond()
                        .div_euclid(1_000_000_000)
                        .try_into()
                        .ok()?,
                )
                .ok()?;
                cron.find_previous_occurrence(&second.to_zoned(zone.clone()), true)
                    .ok()
                    .map(|tick| tick.timestamp())
            }
        }
    }
}

fn parser() -> CronParser {
    CronParser::builder()
        .seconds(Seconds::Disallowed)
        .year(Year::Disallowed)
        // `5/10` is "from 5 on, each 10th", as in Chaos Mesh.
        .sloppy_ranges(true)
        .build()
}

/// Which of the five fields is wrong: the one that also fails alone. `otherwise` if none does.
fn blame(text: &str, otherwise: &str) -> CronError {
    for (index, field) in text.split_whitespace().enumerate() {
        let mut alone = ["*"; FIELDS.len()];
        if let Some(place) = alone.get_mut(index) {
            *place = field;
        }
        if parser().parse(&alone.join(" ")).is_err() {
            return CronError::Field(format!("{field:?} is no {}", FIELDS[index]));
        }
    }
    CronError::Field(otherwise.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn calendars_tick_where_they_should() {
        for (text, after, expected) in [
            (
                "*/15 * * * *",
                "2026-01-01T00:00:00Z",
                "2026-01-01T00:15:00Z",
            ),
            (
                "*/15 * * * *",
                "2026-01-01T00:14:59.5Z",
                "2026-01-01T00:15:00Z",
            ),
            (
                "0 3 * * 1-5",
                "2026-01-02T03:00:00Z",
                "2026-01-05T03:00:00Z",
            ),
            (
                "30 4 1 JAN *",
                "2026-01-01T04:30:00Z",
                "2027-01-01T04:30:00Z",
            ),
            // Day of month or day of week, if both are given.
            (
                "0 0 13 * FRI",
                "2026-01-01T00:00:00Z",
                "2026-01-02T00:00:00Z",
            ),
            (
                "5/20 * * * *",
                "2026-01-01T00:05:00Z",
                "2026-01-01T00:25:00Z",
            ),
            (
                "0 0 ? * sun",
                "2026-01-01T00:00:00Z",
                "2026-01-04T00:00:00Z",
            ),
            ("0 0 29 2 *", "2026-01-01T00:00:00Z", "2028-02-29T00:00:00Z"),
            ("@hourly", "2026-01-01T00:00:00Z", "2026-01-01T01:00:00Z"),
            ("@midnight", "2026-01-01T00:00:01Z", "2026-01-02T00:00:00Z"),
            ("@weekly", "2026-01-01T00:00:00Z", "2026-01-04T00:00:00Z"),
            ("@yearly", "2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z"),
        ] {
            let cron = Cron::parse(text).unwrap();
            let next = cron.next_after(at(after), Timestamp::UNIX_EPOCH, &TimeZone::UTC);
            assert_eq!(next, Some(at(expected)), "{text} after {after}");
            let last = cron.last_until(at(expected), Timestamp::UNIX_EPOCH, &TimeZone::UTC);
            assert_eq!(last, Some(at(expected)), "{text} until {expected}");
        }
    }

    #[test]
    fn the_zone_moves_a_calendar_but_not_every() {
        let zone = TimeZone::fixed(jiff::tz::offset(2));
        let (created, now) = (at("2026-01-01T00:00:00Z"), at("2026-01-01T00:00:07Z"));
        let daily = Cron::parse("@daily").unwrap();
        assert_eq!(
            daily.next_after(now, created, &zone),
            Some(at("2026-01-01T22:00:00Z"))
        );
        let every = Cron::parse("@every 1m30s").unwrap();
        assert_eq!(
            every.next_after(now, created, &zone),
            Some(at("2026-01-01T00:01:30Z"))
        );
    }

    #[test]
    fn every_ticks_at_its_origin_and_then_each_period() {
        let every = Cron::parse("@every 15s").unwrap();
        let (origin, zone) = (at("2026-01-01T00:00:05Z"), TimeZone::UTC);
        for (after, expected) in [
            ("2026-01-01T00:00:00Z", "2026-01-01T00:00:05Z"),
            ("2026-01-01T00:00:05Z", "2026-01-01T00:00:20Z"),
            ("2026-01-01T00:00:19.999Z", "2026-01-01T00:00:20Z"),
            ("2026-01-01T00:00:20Z", "2026-01-01T00:00:35Z"),
        ] {
            assert_eq!(
                every.next_after(at(after), origin, &zone),
                Some(at(expected)),
                "{after}"
            );
        }
        assert_eq!(
            every.last_until(at("2026-01-01T00:00:04Z"), origin, &zone),
            None
        );
        let tick = at("2026-01-01T00:00:20Z");
        assert_eq!(
            every.last_until(at("2026-01-01T00:00:34.9Z"), origin, &zone),
            Some(tick)
        );
    }

    #[test]
    fn what_is_no_cron_expression_is_refused_with_the_reason() {
        for (text, expected) in [
            (
                "",
                "five fields or is @every and a duration, this has 0 fields",
            ),
            ("* * * *", "this has 4 fields"),
            ("0 * * * * *", "this has 6 fields"),
            ("@reboot", "\"@reboot\" is not one of @every"),
            ("@every", "\"@every\" is not one of @every"),
            ("@every 15", "at least 1s: a unit"),
            ("@every 500ms", "it is below 1s"),
            ("@every 1.5s", "a fraction of a second"),
            ("@every -5s", "it is below 1s"),
            ("61 * * * *", "\"61\" is no minute (0-59)"),
            ("* 24 * * *", "\"24\" is no hour (0-23)"),
            ("* * 0 * *", "\"0\" is no day of the month"),
            ("* * * 13 *", "is no month (1-12"),
            ("* * * * 8", "is no day of the week"),
            ("5-1 * * * *", "\"5-1\" is no minute"),
            ("*/0 * * * *", "\"*/0\" is no minute"),
            ("a * * * *", "\"a\" is no month"),
            ("* * L * *", "\"L\" is no month"),
            ("* * * * 5#2", "'#' has no meaning"),
            ("0 0 30 2 *", "no such day"),
            ("0 0 31 4,6,9,11 *", "no such day"),
        ] {
            let error = Cron::parse(text).expect_err(text).to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,40}") {
            let _ = Cron::parse(&text);
        }

        #[test]
        fn last_and_next_enclose_every_moment(second in 0_i64..4_000_000_000, period in 1_i64..100_000) {
            let zone = TimeZone::UTC;
            let (origin, now) = (Timestamp::UNIX_EPOCH, Timestamp::from_second(second).unwrap());
            for text in [format!("@every {period}s"), "*/7 3,5 * * *".to_owned()] {
                let cron = Cron::parse(&text).unwrap();
                let last = cron.last_until(now, origin, &zone).unwrap();
                let next = cron.next_after(now, origin, &zone).unwrap();
                prop_assert!(last <= now && now < next);
                prop_assert_eq!(cron.next_after(last, origin, &zone), Some(next));
            }
        }
    }
}

//! What became of datagrams, and what follows from it: spans, medians, losses, first and last hit.
//! Pure. All moments are nanoseconds since 1970 by the clock of this machine (act one: since boot of
//! the VM); a caller that has them from another clock converts them first.

use std::ops::Range;

use serde::Serialize;

/// Nanoseconds in a millisecond.
pub(crate) const MS: u64 = 1_000_000;

/// How far around a datagram its like are looked for; longer than an emulated machine stands still.
const AROUND: u64 = 500 * MS;

/// A span of time.
pub(crate) type Span = Range<u64>;

/// One datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sample {
    /// When it was sent.
    pub(crate) sent: u64,
    /// What became of it.
    pub(crate) fate: Fate,
}

/// What became of a datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// An answer came after this many microseconds.
    Answered(u64),
    /// None came in time.
    Lost,
    /// None has come yet, and it is too early to call it lost.
    Waiting,
    /// The sender's own kernel refused it: the name of the errno.
    Refused(String),
}

/// Who probed whom, and how that went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Path {
    /// The prober.
    pub(crate) from: String,
    /// Whom it probed.
    pub(crate) to: String,
    /// Over IPv6.
    pub(crate) ipv6: bool,
    /// In the order they were sent.
    pub(crate) samples: Vec<Sample>,
}

impl Path {
    /// The datagrams that were sent in `span`.
    pub(crate) fn within<'a>(&'a self, span: &'a Span) -> impl Iterator<Item = &'a Sample> {
        self.samples
            .iter()
            .filter(|sample| span.contains(&sample.sent))
    }
}

/// What shows that a datagram was hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sign {
    /// Its answer took at least this many microseconds.
    SlowerThan(u64),
    /// No answer came.
    Lost,
    /// The sender's kernel refused it.
    Refused,
}

impl Sign {
    /// Whether this datagram was hit.
    pub(crate) fn is_on(self, sample: &Sample) -> bool {
        match (self, &sample.fate) {
            (Self::SlowerThan(least), Fate::Answered(us)) => *us >= least,
            (Self::Lost, Fate::Lost) | (Self::Refused, Fate::Refused(_)) => true,
            _ => false,
        }
    }
}

/// When the first and the last datagram were sent that show the sign; `None`: there is none.
///
/// An emulated machine stands still now and then, which makes datagrams slow that nothing was done
/// to. So a slow one counts only if many around it are slow as well: at either end of a fault half
/// of them are.
pub(crate) fn first_and_last<'a>(
    paths: impl IntoIterator<Item = &'a Path>,
    span: &Span,
    sign: Sign,
) -> Option<(u64, u64)> {
    let mut seen: Vec<(u64, bool)> = paths
        .into_iter()
        .flat_map(|path| path.within(span))
        .map(|sample| (sample.sent, sign.is_on(sample)))
        .collect();
    seen.sort_unstable();
    let counts = |&&(at, is_hit): &&(u64, bool)| {
        is_hit && (!matches!(sign, Sign::SlowerThan(_)) || is_among_hits(&seen, at))
    };
    let mut hits = seen.iter().filter(counts).map(|(at, _)| *at);
    let first = hits.next()?;
    Some((first, hits.next_back().unwrap_or(first)))
}

/// Around this moment, 40 % or more are hits.
fn is_among_hits(seen: &[(u64, bool)], at: u64) -> bool {
    let from = seen.partition_point(|(sent, _)| *sent < at.saturating_sub(AROUND));
    let to = seen.partition_point(|(sent, _)| *sent <= at.saturating_add(AROUND));
    let around = seen.get(from..to).unwrap_or_default();
    let hits = around.iter().filter(|(_, is_hit)| *is_hit).count();
    hits * 5 >= around.len() * 2
}

/// Whether nothing that was sent in `span` lacks its answer: it came, or the sender was refused.
pub(crate) fn all_answered<'a>(paths: impl IntoIterator<Item = &'a Path>, span: &Span) -> bool {
    let mut sent = paths.into_iter().flat_map(|path| path.within(span));
    sent.all(|sample| !matches!(sample.fate, Fate::Lost | Fate::Waiting))
}

/// Figures of some datagrams.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Stats {
    /// Datagrams tried, but for those that may still be answered.
    pub(crate) sent: usize,
    /// Answered ones.
    pub(crate) answered: usize,
    /// Those that vanished.
    pub(crate) lost: usize,
    /// Those that the sender's own kernel refused.
    pub(crate) refused: usize,
    /// Median of the round trips, in milliseconds.
    pub(crate) median_ms: Option<f64>,
    /// 99th percentile of the round trips, in milliseconds.
    pub(crate) p99_ms: Option<f64>,
}

impl Stats {
    /// The figures of these.
    pub(crate) fn of<'a>(samples: impl IntoIterator<Item = &'a Sample>) -> Self {
        let mut stats = Self::default();
        let mut times = Vec::new();
        for sample in samples {
            match &sample.fate {
                Fate::Answered(us) => times.push(*us),
                Fate::Lost => stats.lost += 1,
                Fate::Refused(_) => stats.refused += 1,
                Fate::Waiting => continue,
            }
            stats.sent += 1;
        }
        times.sort_unstable();
        stats.answered = times.len();
        stats.median_ms = percentile(&times, 50);
        stats.p99_ms = percentile(&times, 99);
        stats
    }

    /// The figures of what these paths sent in `span`.
    pub(crate) fn over<'a>(paths: impl IntoIterator<Item = &'a Path>, span: &Span) -> Self {
        Self::of(paths.into_iter().flat_map(|path| path.within(span)))
    }

    /// Share of the datagrams that got no answer, 0 to 1; 0 without any.
    pub(crate) fn loss(&self) -> f64 {
        match self.sent {
            0 => 0.0,
            sent => (self.lost + self.refused) as f64 / sent as f64,
        }
    }
}

/// By the nearest-rank method, of sorted microseconds, in milliseconds.
fn percentile(sorted: &[u64], percent: usize) -> Option<f64> {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted
        .get(rank.saturating_sub(1))
        .map(|us| *us as f64 / 1000.0)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A path whose datagrams were sent at 0, 50, 100 … ms.
    pub(crate) fn path(from: &str, to: &str, fates: impl IntoIterator<Item = Fate>) -> Path {
        let samples = fates.into_iter().zip(0_u64..).map(|(fate, index)| Sample {
            sent: index * 50 * MS,
            fate,
        });
        Path {
            from: from.to_owned(),
            to: to.to_owned(),
            ipv6: false,
            samples: samples.collect(),
        }
    }

    #[test]
    fn each_fate_counts_once_and_what_is_on_its_way_does_not() {
        let refused = Fate::Refused("EPERM".to_owned());
        let fates = [
            Fate::Answered(400),
            Fate::Lost,
            Fate::Answered(600),
            refused,
            Fate::Waiting,
            Fate::Answered(100_500),
        ];
        let stats = Stats::over(&[path("a", "b", fates)], &(0..u64::MAX));
        let expected = Stats {
            sent: 5,
            answered: 3,
            lost: 1,
            refused: 1,
            median_ms: Some(0.6),
            p99_ms: Some(100.5),
        };
        assert_eq!(stats, expected);
        assert_eq!(stats.loss(), 0.4);
    }

    #[test]
    fn nothing_sent_is_no_loss_and_has_no_median() {
        let stats = Stats::over(&[path("a", "b", [Fate::Lost])], &(MS..2 * MS));
        assert_eq!(stats, Stats::default());
        assert_eq!(stats.loss(), 0.0);
    }

    #[test]
    fn a_machine_that_stands_still_for_a_moment_is_no_fault() {
        let fates = |slow: Range<usize>, stall: Range<usize>| {
            (0..200).map(move |index| {
                let is_slow = slow.contains(&index) || stall.contains(&index);
                Fate::Answered(if is_slow { 100_000 } else { 500 })
            })
        };
        let sign = Sign::SlowerThan(50_000);
        let all = 0..u64::MAX;
        let paths = [
            path("a", "b", fates(40..140, 160..163)),
            path("b", "a", fates(41..139, 160..163)),
        ];
        let expected = Some((40 * 50 * MS, 139 * 50 * MS));
        assert_eq!(first_and_last(&paths, &all, sign), expected);
        assert_eq!(
            first_and_last([&path("a", "b", fates(0..0, 10..13))], &all, sign),
            None
        );
    }

    #[test]
    fn the_first_and_the_last_hit_are_found_over_all_paths_within_the_span() {
        let (lost, quick) = (Fate::Lost, Fate::Answered(500));
        let one = path(
            "a",
            "b",
            [lost.clone(), quick.clone(), lost.clone(), quick.clone()],
        );
        let other = path("b", "a", [quick.clone(), lost, quick.clone(), quick]);
        let sign = Sign::Lost;
        let span = 50 * MS..u64::MAX;
        assert_eq!(
            first_and_last([&one, &other], &span, sign),
            Some((50 * MS, 100 * MS))
        );
        assert_eq!(first_and_last([&other], &(100 * MS..u64::MAX), sign), None);
    }

    #[test]
    fn what_is_lost_or_on_its_way_lacks_its_answer_and_what_was_refused_does_not() {
        let fates = [
            Fate::Lost,
            Fate::Refused("EPERM".to_owned()),
            Fate::Answered(1),
            Fate::Waiting,
        ];
        let path = path("a", "b", fates);
        let lacks = |from: u64, to: u64| !all_answered([&path], &(from * 50 * MS..to * 50 * MS));
        assert!(lacks(0, 3) && !lacks(1, 3) && lacks(1, 4));
    }

    #[test]
    fn a_sign_fits_its_own_kind_of_fate_only() {
        let sample = |fate| Sample { sent: 0, fate };
        let refused = sample(Fate::Refused("EPERM".to_owned()));
        assert!(Sign::Refused.is_on(&refused) && !Sign::Lost.is_on(&refused));
        assert!(Sign::Lost.is_on(&sample(Fate::Lost)) && !Sign::Refused.is_on(&sample(Fate::Lost)));
        assert!(Sign::SlowerThan(10).is_on(&sample(Fate::Answered(10))));
        assert!(!Sign::SlowerThan(10).is_on(&sample(Fate::Answered(9))));
        assert!(!Sign::SlowerThan(10).is_on(&sample(Fate::Waiting)));
    }
}

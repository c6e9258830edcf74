//! What became of each datagram, and the summary of a span of time. Pure: the caller brings times.

use std::collections::{BTreeMap, VecDeque};

use serde::Serialize;

/// Datagrams that are remembered for each peer: ten minutes at 20 a second.
const REMEMBERED: usize = 12_000;

/// The datagrams to one peer, oldest first.
#[derive(Debug, Default)]
pub(crate) struct History {
    sent: VecDeque<Sent>,
    next: u64,
}

#[derive(Debug)]
struct Sent {
    sequence: u64,
    /// Nanoseconds since 1970, CLOCK_REALTIME.
    at: u64,
    fate: Fate,
}

#[derive(Clone, Debug)]
enum Fate {
    Waiting,
    Answered { rtt_us: u64 },
    Refused { error: String },
}

/// The answer to GET /results.json for one peer.
#[derive(Debug, Serialize)]
pub(crate) struct Summary {
    /// Datagrams tried in the span asked for, refused ones included.
    pub(crate) sent: usize,
    /// Of these, answered.
    pub(crate) received: usize,
    /// Of these, without an answer for longer than the time-out.
    pub(crate) lost: usize,
    /// Of these, without an answer yet.
    pub(crate) waiting: usize,
    /// Of these, refused by the kernel on sending, by the name of the errno.
    pub(crate) send_errors: BTreeMap<String, usize>,
    /// Median round trip in microseconds; `None` without any.
    pub(crate) rtt_p50_us: Option<u64>,
    /// 99th percentile of the round trips in microseconds.
    pub(crate) rtt_p99_us: Option<u64>,
    /// Each datagram, oldest first.
    pub(crate) samples: Vec<Sample>,
}

/// One datagram. Exactly one of `rtt_us`, `lost`, `waiting` and `error` is there.
#[derive(Debug, Serialize)]
pub(crate) struct Sample {
    /// When it was sent: nanoseconds since 1970, CLOCK_REALTIME.
    pub(crate) sent_ns: u64,
    /// Round trip in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) rtt_us: Option<u64>,
    /// No answer within the time-out.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) lost: bool,
    /// No answer yet.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) waiting: bool,
    /// Name of the errno that sending gave.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
}

impl History {
    /// The number for the next datagram.
    pub(crate) fn next_sequence(&self) -> u64 {
        self.next
    }

    /// A datagram was handed to the kernel at `at`; `refused` is the errno if it said no.
    pub(crate) fn sent(&mut self, at: u64, refused: Option<String>) {
        let fate = refused.map_or(Fate::Waiting, |error| Fate::Refused { error });
        self.sent.push_back(Sent {
            sequence: self.next,
            at,
            fate,
        });
        self.next += 1;
        if self.sent.len() > REMEMBERED {
            self.sent.pop_front();
        }
    }

    /// The answer to datagram `sequence` came. One that came twice counts once; one that came after
    /// the time-out is an answer all the same.
    pub(crate) fn answered(&mut self, sequence: u64, rtt_us: u64) {
        let Some(first) = self.sent.front().map(|sent| sent.sequence) else {
            return;
        };
        let index = sequence
            .checked_sub(first)
            .and_then(|index| usize::try_from(index).ok());
        if let Some(sent) = index.and_then(|index| self.sent.get_mut(index))
            && matches!(sent.fate, Fate::Waiting)
        {
            sent.fate = Fate::Answered { rtt_us };
        }
    }

    /// What became of the datagrams sent from `since` on and before `until`, as seen at `now`. All
    /// times and the `timeout` are nanoseconds.
    pub(crate) fn summary(&self, since: u64, until: u64, now: u64, timeout: u64) -> Summary {
        let mut summary = Summary {
            sent: 0,
            received: 0,
            lost: 0,
            waiting: 0,
            send_errors: BTreeMap::new(),
            rtt_p50_us: None,
            rtt_p99_us: None,
            samples: Vec::new(),
        };
        let mut rtts = Vec::new();
        for sent in self
            .sent
            .iter()
            .filter(|sent| sent.at >= since && sent.at < until)
        {
            summary.sent += 1;
            let mut sample = Sample {
                sent_ns: sent.at,
                rtt_us: None,
                lost: false,
                waiting: false,
                error: None,
            };
            match &sent.fate {
                Fate::Answered { rtt_us } => {
                    summary.received += 1;
                    rtts.push(*rtt_us);
                    sample.rtt_us = Some(*rtt_us);
                }
                Fate::Refused { error } => {
                    *summary.send_errors.entry(error.clone()).or_default() += 1;
                    sample.error = Some(error.clone());
                }
                Fate::Waiting if now.saturating_sub(sent.at) > timeout => {
                    summary.lost += 1;
                    sample.lost = true;
                }
                Fate::Waiting => {
                    summary.waiting += 1;
                    sample.waiting = true;
                }
            }
            summary.samples.push(sample);
        }
        rtts.sort_unstable();
        summary.rtt_p50_us = percentile(&rtts, 50);
        summary.rtt_p99_us = percentile(&rtts, 99);
        summary
    }
}

/// By the nearest-rank method, of sorted values.
fn percentile(sorted: &[u64], percent: usize) -> Option<u64> {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_datagram_counts_once_under_what_became_of_it() {
        let mut history = History::default();
        history.sent(100, None); // 0: answered
        history.sent(200, None); // 1: lost
        history.sent(300, Some("EPERM".into())); // 2
        history.sent(900, None); // 3: waiting
        history.answered(0, 42);
        history.answered(0, 50);
        history.answered(2, 1);
        history.answered(99, 1);
        let summary = history.summary(0, u64::MAX, 1000, 500);
        assert_eq!(
            (
                summary.sent,
                summary.received,
                summary.lost,
                summary.waiting
            ),
            (4, 1, 1, 1)
        );
        assert_eq!(summary.send_errors.get("EPERM"), Some(&1));
        assert_eq!(summary.rtt_p50_us, Some(42));
        let json = serde_json::to_value(&summary.samples).unwrap();
        assert_eq!(
            json,
            serde_json::json!([
                {"sent_ns": 100, "rtt_us": 42},
                {"sent_ns": 200, "lost": true},
                {"sent_ns": 300, "error": "EPERM"},
                {"sent_ns": 900, "waiting": true},
            ])
        );
    }

    #[test]
    fn a_summary_covers_only_the_span_asked_for() {
        let mut history = History::default();
        for at in 0..10 {
            history.sent(at, None);
            history.answered(at, at);
        }
        let summary = history.summary(3, 6, 10, 1);
        assert_eq!(
            summary
                .samples
                .iter()
                .map(|s| s.sent_ns)
                .collect::<Vec<_>>(),
            [3, 4, 5]
        );
        assert_eq!((summary.rtt_p50_us, summary.rtt_p99_us), (Some(4), Some(5)));
    }

    #[test]
    fn old_datagrams_are_forgotten_and_answers_still_find_theirs() {
        let mut history = History::default();
        for at in 0..REMEMBERED as u64 + 5 {
            history.sent(at, None);
        }
        history.answered(2, 1);
        history.answered(5, 1);
        let summary = history.summary(0, u64::MAX, 0, 1);
        assert_eq!((summary.sent, summary.received), (REMEMBERED, 1));
    }

    #[test]
    fn percentiles_are_values_that_occurred() {
        let values: Vec<u64> = (1..=100).collect();
        assert_eq!(
            (percentile(&values, 50), percentile(&values, 99)),
            (Some(50), Some(99))
        );
        assert_eq!(percentile(&[], 50), None);
        assert_eq!(percentile(&[7], 99), Some(7));
    }
}

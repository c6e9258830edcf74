//! What became of datagrams: from what the prober told, as it happened.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::Stamp;
use crate::stats::Samples;

/// What a prober tells its test.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) enum Told {
    Sent {
        seq: u64,
        at: Stamp,
        errno: Option<i32>,
    },
    Answer {
        seq: u64,
        received: Stamp,
        answered: Stamp,
    },
}

/// What became of one datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// 0, 1, 2, …
    pub seq: u64,
    /// When it was sent, or when the kernel refused it.
    pub sent: Stamp,
    /// Why the kernel refused it: the errno of `sendto`.
    pub errno: Option<i32>,
    /// When it came in at the peer. Known only from the peer's answer.
    pub received: Option<Stamp>,
    /// When the answer came back.
    pub answered: Option<Stamp>,
    /// Answers; more than one if it or the answer was duplicated.
    pub answers: u32,
}

/// What became of many datagrams, in the order they were sent.
#[derive(Clone, Debug, Default)]
pub struct Probes(pub Vec<Probe>);

impl Probes {
    /// How many were sent or refused.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// None was sent.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Those sent in `from..to`.
    pub fn between(&self, from: Stamp, to: Stamp) -> Probes {
        self.filter(|p| (from..to).contains(&p.sent))
    }

    /// Those sent in `from` or later.
    pub fn after(&self, from: Stamp) -> Probes {
        self.filter(|p| p.sent >= from)
    }

    /// Those sent longer than `time` ago: what has no answer by now will not get one.
    pub fn settled(&self, time: Duration) -> Probes {
        self.between(Stamp(0), Stamp::now() - time)
    }

    /// Those that the kernel took and nobody answered.
    pub fn lost(&self) -> usize {
        self.count(|p| p.errno.is_none() && p.answered.is_none())
    }

    /// Those that were answered.
    pub fn answered(&self) -> usize {
        self.count(|p| p.answered.is_some())
    }

    /// Those that `sendto` refused with `errno`.
    pub fn refused(&self, errno: nix::errno::Errno) -> usize {
        self.count(|p| p.errno == Some(errno as i32))
    }

    /// Part of the accepted ones that was lost, 0 to 1.
    pub fn loss(&self) -> f64 {
        let taken = self.count(|p| p.errno.is_none());
        if taken == 0 {
            0.0
        } else {
            self.lost() as f64 / taken as f64
        }
    }

    /// Round-trip times of those that were answered.
    pub fn round_trips(&self) -> Samples {
        self.0
            .iter()
            .filter_map(|p| Some(p.answered?.since(p.sent)))
            .collect()
    }

    /// Times from here to the peer, of those that were answered.
    pub fn there(&self) -> Samples {
        self.0
            .iter()
            .filter_map(|p| Some(p.received?.since(p.sent)))
            .collect()
    }

    /// Times from the peer back to here, of those that were answered.
    pub fn back(&self) -> Samples {
        self.0
            .iter()
            .filter_map(|p| Some(p.answered?.since(p.received?)))
            .collect()
    }

    /// Numbers of those that were lost, for comparing with a model.
    pub fn lost_seqs(&self) -> Vec<u64> {
        let lost = |p: &&Probe| p.errno.is_none() && p.answered.is_none();
        self.0.iter().filter(lost).map(|p| p.seq).collect()
    }

    fn count(&self, keep: impl Fn(&Probe) -> bool) -> usize {
        self.0.iter().filter(|p| keep(p)).count()
    }

    fn filter(&self, keep: impl Fn(&Probe) -> bool) -> Probes {
        Probes(self.0.iter().copied().filter(keep).collect())
    }
}

/// Puts together what was told.
pub(super) fn fold(told: &[Told]) -> Probes {
    let mut probes = Vec::<Probe>::new();
    for event in told {
        if let Told::Sent { seq, at, errno } = *event {
            probes.push(Probe {
                seq,
                sent: at,
                errno,
                received: None,
                answered: None,
                answers: 0,
            });
        }
    }
    // An answer may be told before its own datagram: two threads write.
    for event in told {
        if let Told::Answer {
            seq,
            received,
            answered,
        } = *event
            && let Some(probe) = probes.get_mut(seq as usize)
        {
            probe.answers += 1;
            probe.received.get_or_insert(received);
            probe.answered.get_or_insert(answered);
        }
    }
    Probes(probes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_matched_even_if_they_are_told_first() {
        let probes = fold(&[
            Told::Answer {
                seq: 0,
                received: Stamp(2),
                answered: Stamp(3),
            },
            Told::Sent {
                seq: 0,
                at: Stamp(1),
                errno: None,
            },
            Told::Sent {
                seq: 1,
                at: Stamp(5),
                errno: Some(1),
            },
            Told::Sent {
                seq: 2,
                at: Stamp(9),
                errno: None,
            },
            Told::Answer {
                seq: 0,
                received: Stamp(6),
                answered: Stamp(7),
            },
        ]);
        assert_eq!((probes.len(), probes.answered(), probes.lost()), (3, 1, 1));
        assert_eq!(probes.refused(nix::errno::Errno::EPERM), 1);
        assert_eq!(probes.lost_seqs(), [2]);
        assert_eq!(probes.loss(), 0.5);
        assert_eq!(probes.0[0].answers, 2);
        assert_eq!(probes.there().max().unwrap(), Duration::from_nanos(1));
        assert_eq!(probes.between(Stamp(5), Stamp(9)).len(), 1);
    }
}

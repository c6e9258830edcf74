//! What the operator remembers of an experiment between two looks at it.
//!
//! The status in the API server is a projection of this; it is read back only once, when an
//! operator meets an experiment that another one has begun.

use std::collections::BTreeMap;
use std::time::Duration;

use chaos_api::rounds::Round;
use chaos_api::v1alpha1::names::CONDITION_PAUSED;
use chaos_api::v1alpha1::{
    ChaosStatus, Condition, DesiredPhase, Lifecycle, RecordEvent, RecordPhase, SummaryPhase,
};
use jiff::Timestamp;

use crate::assign::fault_id;
use crate::cluster::{Cluster, pod_node};
use crate::window::Halt;

/// What is remembered of an experiment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Kept {
    /// With a scheduler: the last round that was begun. One that passed in a pause was not.
    pub round: Option<Round>,
    /// The round that the records were drawn for; `None`: nothing has been drawn.
    pub drawn: Option<u64>,
    /// Seed of that draw.
    pub seed: Option<u64>,
    /// Sources and targets.
    pub records: Vec<KeptRecord>,
    /// Records of rounds before whose absence is not proven yet: rounds may lie back to back.
    pub leaving: Vec<KeptRecord>,
    /// Counted by records that are no longer there.
    pub past: Counts,
    /// What was desired last; `None`: never looked at.
    pub desired: Option<DesiredPhase>,
    /// Why it was stopped last.
    pub halt: Option<Halt>,
    /// What the user has been told is wrong with the document or its selectors.
    pub told: Vec<String>,
    /// What the user has been told of names that cannot be resolved.
    pub told_names: Vec<String>,
    /// As they were written last: they remember when they changed.
    pub conditions: Vec<Condition>,
    /// Nodes where an earlier operator may have left something that no status tells of, and until
    /// when; asked for only when the object is being deleted.
    pub unheard: BTreeMap<String, Timestamp>,
    /// The status that the API server has, and when its counters were refreshed.
    pub written: Option<(ChaosStatus, Timestamp)>,
    /// Records that Chaos Mesh says it has injected: not ours.
    pub foreign: Vec<String>,
}

/// One record, with what the status has no room for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KeptRecord {
    /// `.` or `.Target`.
    pub selector_key: String,
    /// `<namespace>/<pod>`
    pub id: String,
    /// Id of its fault on the wire.
    pub fault_id: String,
    /// Where it is.
    pub phase: RecordPhase,
    /// How often it was injected.
    pub injected_count: i64,
    /// How often it was recovered.
    pub recovered_count: i64,
    /// Its last attempts.
    pub events: Vec<RecordEvent>,
    /// The pod that was asked about last: another uid under the same name is another pod.
    pub pod_uid: Option<String>,
    /// What is, or may be, in a kernel.
    pub hold: Hold,
    /// The failure that the user has been told of.
    pub told: Option<String>,
    /// What its node reports.
    pub report: Report,
}

/// What is, or may be, in a kernel because of a record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Hold {
    /// Nothing.
    #[default]
    Nothing,
    /// Nothing, and the record counts as injected.
    Bare,
    /// It is in the desired set of a node.
    Asked {
        /// Which.
        node: String,
        /// Since when.
        since: Timestamp,
        /// The first generation that it is in, once that is known.
        generation: Option<u64>,
        /// Its own deadline.
        ends_at: Option<Timestamp>,
    },
    /// It is not desired any more; its absence is not proven yet.
    Withdrawn {
        /// Which node had it.
        node: String,
        /// Since when.
        since: Timestamp,
        /// The first generation without it, once that is known.
        generation: Option<u64>,
        /// When the kernel ends it by itself.
        end: End,
    },
}

/// When a kernel ends a fault by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// At its own deadline.
    At(Timestamp),
    /// When its agent has been dead for this long.
    Lease(Duration),
}

/// What the node of a record reports.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// The node.
    pub node: Option<String>,
    /// What carries the fault out.
    pub mechanisms: Vec<String>,
    /// Why it is not injected, or only partly; empty when all is well.
    pub reason: String,
    /// It works, but not fully as asked.
    pub degraded: bool,
    /// It cannot be had there.
    pub unsupported: bool,
    /// The last attempt failed.
    pub failed: bool,
    /// Counted before it was last armed.
    pub counts: Counts,
    /// Counted since it was last armed: what the kernel says.
    pub current: Counts,
    /// As much of `current` as is in `counts`, or in [`Kept::past`], already.
    pub overlap: Counts,
    /// What was counted by the time of the status that this was read from, until the kernel says
    /// how much of that it still has.
    pub restored: Option<Restored>,
    /// Since when it is armed.
    pub armed_at: Option<Timestamp>,
    /// When the kernel ends it by itself.
    pub expiry: Option<Timestamp>,
    /// The longest lease that was seen on it; a fault that delays for long has a long one.
    pub lease: Duration,
}

/// What kernels counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Packets that the fault was done to, or would have been done to.
    pub hits: u64,
    /// Packets that it applies to, before sampling.
    pub matched: u64,
}

impl Counts {
    /// Adds.
    pub fn add(&mut self, other: Self) {
        self.hits = self.hits.saturating_add(other.hits);
        self.matched = self.matched.saturating_add(other.matched);
    }

    /// The smaller of each.
    #[must_use]
    pub fn least(self, other: Self) -> Self {
        Self {
            hits: self.hits.min(other.hits),
            matched: self.matched.min(other.matched),
        }
    }

    /// Less `other`, down to nothing.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self {
            hits: self.hits.saturating_sub(other.hits),
            matched: self.matched.saturating_sub(other.matched),
        }
    }
}

/// Where the counts of a status are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restored {
    /// This record's own, in [`Report::counts`].
    Own,
    /// Those of all records together, in [`Kept::past`]: very many are not written one by one.
    Together,
}

impl Report {
    /// Takes in what the kernel says now. A count that has shrunk began anew.
    ///
    /// A status has totals, and a kernel that has gone on counting is in them: of its first word
    /// to another operator only what exceeds them is new, unless it was armed `anew` since then.
    /// So nothing is counted twice. (Packets between the last status and that word are missed if
    /// the fault had been armed more than once before.)
    pub fn count(&mut self, now: Counts, anew: bool) {
        match self.restored.take() {
            Some(_) if anew => {}
            Some(Restored::Own) => self.overlap = self.counts.least(now),
            Some(Restored::Together) => self.overlap = now,
            None if now.matched < self.current.matched || now.hits < self.current.hits => {
                self.counts = self.total();
                self.overlap = Counts::default();
            }
            None => {}
        }
        self.current = now;
    }

    /// All that was counted for this record.
    #[must_use]
    pub fn total(&self) -> Counts {
        let mut total = self.counts;
        total.add(self.current);
        total.without(self.overlap)
    }
}

impl KeptRecord {
    /// A record that has just been selected.
    #[must_use]
    pub fn new(uid: &str, round: u64, selector_key: &str, id: &str) -> Self {
        Self {
            selector_key: selector_key.to_owned(),
            id: id.to_owned(),
            fault_id: fault_id(uid, round, selector_key, id),
            ..Self::default()
        }
    }

    /// It has something in a kernel, or may have.
    #[must_use]
    pub const fn holds(&self) -> bool {
        matches!(self.hold, Hold::Asked { .. } | Hold::Withdrawn { .. })
    }
}

impl Kept {
    /// What was counted in all.
    #[must_use]
    pub fn total(&self) -> Counts {
        let mut total = self.past;
        for record in self.records.iter().chain(&self.leaving) {
            total.add(record.report.total());
        }
        total
    }

    /// Makes room for the records of another round.
    pub fn let_go(&mut self) {
        self.leaving.append(&mut self.records);
    }

    /// Notes which generation of each node's set first says what was asked.
    pub fn note(&mut self, generations: &BTreeMap<String, u64>) {
        for record in self.records.iter_mut().chain(&mut self.leaving) {
            if let Hold::Asked {
                node, generation, ..
            }
            | Hold::Withdrawn {
                node, generation, ..
            } = &mut record.hold
                && generation.is_none()
            {
                *generation = generations.get(node).copied();
            }
        }
    }

    /// Nodes that are waited for.
    #[must_use]
    pub fn nodes(&self) -> Vec<String> {
        let node = |record: &KeptRecord| match &record.hold {
            Hold::Asked { node, .. } | Hold::Withdrawn { node, .. } => Some(node.clone()),
            Hold::Nothing | Hold::Bare => None,
        };
        let held = self.records.iter().chain(&self.leaving).filter_map(node);
        held.chain(self.unheard.keys().cloned()).collect()
    }

    /// Takes over an experiment from its status.
    ///
    /// A status without the part `faultline` was written by Chaos Mesh: the choice of pods stands,
    /// but what it says is injected is in the pods by other means, and not ours to take away.
    #[must_use]
    pub fn load(
        uid: &str,
        status: Option<&ChaosStatus>,
        lifecycle: &Lifecycle,
        cluster: &Cluster,
        now: Timestamp,
    ) -> Self {
        let Some(status) = status else {
            return Self::default();
        };
        let Some(ours) = &status.faultline else {
            return Self::load_foreign(uid, status);
        };
        let round = ours.round.unwrap_or(0);
        let mut kept = Self {
            round: known_round(status, lifecycle),
            drawn: (!status.experiment.container_records.is_empty()).then_some(round),
            seed: ours.seed,
            desired: status.experiment.desired_phase,
            halt: halt_of(status),
            conditions: status.conditions.clone(),
            written: Some((status.clone(), Timestamp::UNIX_EPOCH)),
            ..Self::default()
        };
        for record in &status.experiment.container_records {
            let detail = ours
                .records
                .iter()
                .find(|one| one.id == record.id && one.selector_key == record.selector_key);
            let pod = cluster.pod_of_record(&record.id);
            let node = detail
                .and_then(|detail| detail.node.clone())
                .or_else(|| pod.and_then(|pod| pod_node(pod)).map(str::to_owned));
            // A node is only written down once an agent was asked: this one had nothing to do.
            let is_bare = record.phase == RecordPhase::Injected
                && detail.is_some_and(|detail| detail.node.is_none());
            let hold = match (record.phase, &node) {
                _ if is_bare => Hold::Bare,
                (RecordPhase::NotInjected, _) | (_, None) => Hold::Nothing,
                (_, Some(node)) => Hold::Asked {
                    node: node.clone(),
                    since: now,
                    generation: None,
                    ends_at: None,
                },
            };
            let counts = Counts {
                hits: detail.and_then(|detail| detail.hits).unwrap_or(0),
                matched: detail.and_then(|detail| detail.matched).unwrap_or(0),
            };
            kept.records.push(KeptRecord {
                phase: record.phase,
                injected_count: record.injected_count,
                recovered_count: record.recovered_count,
                events: record.events.clone(),
                pod_uid: pod.and_then(|pod| pod.metadata.uid.clone()),
                hold,
                report: Report {
                    node,
                    mechanisms: detail.map(|d| d.mechanisms.clone()).unwrap_or_default(),
                    counts,
                    restored: Some(if detail.is_some() {
                        Restored::Own
                    } else {
                        Restored::Together
                    }),
                    ..Report::default()
                },
                ..KeptRecord::new(uid, round, &record.selector_key, &record.id)
            });
        }
        let counted = kept.total();
        let total = Counts {
            hits: ours.hits.unwrap_or(0),
            matched: ours.matched.unwrap_or(0),
        };
        kept.past = total.without(counted);
        kept
    }

    fn load_foreign(uid: &str, status: &ChaosStatus) -> Self {
        let records = &status.experiment.container_records;
        Self {
            drawn: (!records.is_empty()).then_some(0),
            records: records
                .iter()
                .map(|record| KeptRecord::new(uid, 0, &record.selector_key, &record.id))
                .collect(),
            foreign: records
                .iter()
                .filter(|record| record.phase != RecordPhase::NotInjected)
                .map(|record| record.id.clone())
                .collect(),
            ..Self::default()
        }
    }
}

/// The round of a status: its number and start are there, its end follows from the window.
fn known_round(status: &ChaosStatus, lifecycle: &Lifecycle) -> Option<Round> {
    let ours = status.faultline.as_ref()?;
    let started = ours.round_started.as_ref()?.0;
    let window = chaos_api::duration::parse(lifecycle.duration.as_deref()?).ok()?;
    Some(Round {
        number: ours.round?,
        started,
        ends: started.checked_add(window).ok()?,
    })
}

fn halt_of(status: &ChaosStatus) -> Option<Halt> {
    if status.experiment.desired_phase != Some(DesiredPhase::Stop) {
        return None;
    }
    let word = status.faultline.as_ref()?.phase.as_deref()?;
    let paused = status
        .conditions
        .iter()
        .any(|one| one.r#type == CONDITION_PAUSED && one.status == "True");
    Some(if word == SummaryPhase::Deleting.as_str() {
        Halt::Deleted
    } else if word == SummaryPhase::Finished.as_str() {
        Halt::TimeUp
    } else if paused {
        Halt::Paused
    } else if word == SummaryPhase::Waiting.as_str() {
        Halt::Between
    } else {
        Halt::TimeUp
    })
}

//! What Prometheus is shown: the kernel's own counters, added up over the life of the agent.
//!
//! Labels are the experiment's, never a pod's or a packet's. Series of experiments that have ended
//! are kept, so that a counter never goes back, up to a bound; beyond it the oldest are folded
//! into one series per kind, mechanism and outcome, so that sums stay right.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use chaos_planner::observed::{Counts, Observed, Phase};
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use crate::node_thread::Report;

/// The most experiments that have ended and keep series of their own.
const MAX_ENDED: usize = 1_000;

/// Name and namespace of the series that stand for all older experiments.
const FOLDED: &str = "_older";

/// What a series of hits is about, but for its outcome.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Series {
    /// Kind of the experiment.
    pub kind: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What carried it out; joined by `+` when there were several.
    pub mechanism: String,
}

/// Counts by series.
pub type Hits = BTreeMap<Series, Counts>;

/// Adds up what faults counted while they lived.
#[derive(Debug, Default)]
pub struct Tally {
    /// Of faults that are there now, by id: what was seen last.
    live: BTreeMap<String, (Series, Counts)>,
    /// Of faults that have ended, and of earlier lives of those that are there.
    settled: Hits,
    /// Keys of `settled`, oldest first.
    order: VecDeque<Series>,
}

impl Tally {
    /// Takes in what the kernel holds now.
    pub fn update(&mut self, observed: &[Observed]) {
        let mut live = BTreeMap::new();
        for fault in observed {
            // Before it is armed nothing can have been hit, and the mechanism is not known.
            if fault.mechanisms.is_empty() {
                continue;
            }
            let now = (series(fault), fault.counts);
            if let Some(before) = self.live.remove(&fault.id)
                && (before.0 != now.0 || restarted(&before.1, &now.1))
            {
                self.settle(before);
            }
            live.insert(fault.id.clone(), now);
        }
        for ended in std::mem::replace(&mut self.live, live).into_values() {
            self.settle(ended);
        }
    }

    /// Everything counted so far.
    pub fn hits(&self) -> Hits {
        let mut sum = self.settled.clone();
        for (series, counts) in self.live.values() {
            *sum.entry(series.clone()).or_default() += *counts;
        }
        sum
    }

    fn settle(&mut self, (series, counts): (Series, Counts)) {
        if !self.settled.contains_key(&series) {
            self.order.push_back(series.clone());
        }
        *self.settled.entry(series).or_default() += counts;
        while self.order.len() > MAX_ENDED {
            let Some(oldest) = self.order.pop_front() else {
                break;
            };
            let Some(counts) = self.settled.remove(&oldest) else {
                continue;
            };
            let folded = Series {
                namespace: FOLDED.to_owned(),
                name: FOLDED.to_owned(),
                ..oldest
            };
            *self.settled.entry(folded).or_default() += counts;
        }
    }
}

fn series(fault: &Observed) -> Series {
    let mut mechanisms: Vec<&str> = fault.mechanisms.iter().map(|m| m.name()).collect();
    mechanisms.dedup();
    Series {
        kind: fault.kind.clone(),
        namespace: fault.namespace.clone(),
        name: fault.name.clone(),
        mechanism: mechanisms.join("+"),
    }
}

/// A rule that was freed and armed again counts from zero.
fn restarted(before: &Counts, now: &Counts) -> bool {
    now.matched < before.matched
        || now.injected < before.injected
        || now.would_inject < before.would_inject
        || now.failed < before.failed
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HitLabels {
    kind: String,
    namespace: String,
    name: String,
    mechanism: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FaultLabels {
    kind: String,
    namespace: String,
    name: String,
    mechanism: String,
}

/// The text of `/metrics`, OpenMetrics 1.0.
///
/// # Errors
/// When a label cannot be written; none can fail in memory.
pub fn encode(node: &str, report: &Report) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("faultline");
    let hits = Family::<HitLabels, Counter>::default();
    for (series, counts) in &report.hits {
        for (outcome, count) in [
            ("matched", counts.matched),
            ("injected", counts.injected),
            ("would_inject", counts.would_inject),
            ("failed", counts.failed),
            ("overflowed", counts.overflowed),
            ("over_budget", counts.over_budget),
        ] {
            let labels = HitLabels {
                kind: series.kind.clone(),
                namespace: series.namespace.clone(),
                name: series.name.clone(),
                mechanism: series.mechanism.clone(),
                outcome,
            };
            hits.get_or_create(&labels).inc_by(count);
        }
    }
    registry.register(
        "hits",
        "Packets and calls that faults applied to, counted in the kernel: matched (before \
         sampling), injected, would_inject (mode Observe), failed (went their way unharmed); of \
         those injected, dropped because a shaper's queue was full (overflowed) or because too \
         much was waiting on the device (over_budget)",
        hits,
    );
    let active = Family::<FaultLabels, Gauge>::default();
    // The last end among the targets of an experiment.
    let expiry = Family::<FaultLabels, Gauge<f64, std::sync::atomic::AtomicU64>>::default();
    for fault in report
        .faults
        .iter()
        .filter(|fault| fault.phase == Phase::Injected)
    {
        let Series {
            kind,
            namespace,
            name,
            mechanism,
        } = series(fault);
        let labels = FaultLabels {
            kind,
            namespace,
            name,
            mechanism,
        };
        active.get_or_create(&labels).inc();
        let expiry = expiry.get_or_create(&labels);
        expiry.set(expiry.get().max(fault.expires_in.as_secs_f64()));
    }
    registry.register("faults_active", "Targets on which a fault acts now", active);
    registry.register(
        "fault_expiry_seconds",
        "Until the kernel ends the fault by itself; one without a duration is renewed before that",
        expiry,
    );
    let halted = Gauge::<i64>::default();
    halted.set(i64::from(report.halted));
    registry.register("halted", "1 while `chaos-agent panic` is in force", halted);
    registry.register(
        "agent_build",
        "The agent",
        Info::new(vec![
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("node", node.to_owned()),
        ]),
    );
    let mut body = String::new();
    text::encode(&mut body, &registry)?;
    Ok(body)
}

#[cfg(test)]
mod tests;

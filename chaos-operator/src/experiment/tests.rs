//! An experiment from its first look to its last, with an agent that is a few lines of this file.

use chaos_crd::{Experiment, NetworkChaos};
use chaos_proto::agent::{Counters, ObservedFault, Phase};
use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::*;
use crate::fixtures::{CREATED, PodBuilder, cluster, network_chaos, pod};
use crate::view::{NodeView, Seen};

mod follow;
mod life;
mod nodes;
mod takeover;

/// An experiment with all that is around it.
pub(super) struct Bench {
    pub(super) chaos: NetworkChaos,
    pub(super) cluster: Cluster,
    pub(super) view: View,
    pub(super) kept: Kept,
    pub(super) now: Timestamp,
    pub(super) names: Names,
    pub(super) step: Option<Step>,
    generation: u64,
    armed: BTreeMap<String, Timestamp>,
}

pub(super) fn web(n: u32) -> PodBuilder {
    pod(&format!("shop/web-{n}"))
        .label("app", "web")
        .ips(&[&format!("10.0.0.{n}")])
}

/// One pod, drawn.
pub(super) const ONE: &str =
    "{action: partition, mode: one, selector: {labelSelectors: {app: web}}}";

/// Ten seconds of each fifteen.
pub(super) const ROUNDS: &str = "{action: partition, mode: one,
    selector: {labelSelectors: {app: web}}, duration: 10s, scheduler: {cron: '@every 15s'}}";

/// With a duration.
pub(super) fn lasting(duration: &str) -> String {
    PARTITION.replace("mode: all", &format!("mode: all, duration: {duration}"))
}

pub(super) const PARTITION: &str =
    "{action: partition, mode: all, selector: {labelSelectors: {app: web}}}";

impl Bench {
    /// `web-1` and `web-2` on `n1`, whose agent is there.
    pub(super) fn new(spec: &str) -> Self {
        Self::with(spec, [web(1), web(2)])
    }

    pub(super) fn with(spec: &str, pods: impl IntoIterator<Item = PodBuilder>) -> Self {
        let now: Timestamp = CREATED.parse().unwrap();
        let view = View {
            nodes: BTreeMap::from([(
                "n1".to_owned(),
                NodeView {
                    connected: true,
                    since: now,
                    generation: 0,
                    sent: false,
                },
            )]),
            started: now,
            ..View::default()
        };
        Self {
            chaos: network_chaos(spec),
            cluster: cluster(pods),
            view,
            kept: Kept::default(),
            now,
            step: None,
            generation: 0,
            armed: BTreeMap::new(),
            names: Names::default(),
        }
    }

    pub(super) fn look(&mut self) -> &Step {
        let around = Surrounding {
            names: &self.names,
            cluster: &self.cluster,
            view: &self.view,
            now: self.now,
            zone: &TimeZone::UTC,
        };
        let step = look(&self.chaos, &mut self.kept, &around);
        // What `reconcile` does with it.
        let faults = |step: Option<&Step>| step.map(|step| step.faults.clone()).unwrap_or_default();
        if faults(self.step.as_ref()) != step.faults {
            self.generation += 1;
        }
        for name in step.faults.keys() {
            if let Some(node) = self.view.nodes.get_mut(name) {
                node.sent |= node.connected;
            }
        }
        let nodes = self.kept.nodes();
        let generations = nodes.into_iter().map(|node| (node, self.generation));
        self.kept.note(&generations.collect());
        if step.finalizer == FinalizerAction::Add {
            self.chaos.finalizers_mut().push(FINALIZER.to_owned());
        }
        self.step.insert(step)
    }

    /// The agents carry out the newest sets; every fault is then in this phase.
    pub(super) fn agents_report(&mut self, phase: Phase, reason: &str, hits: u64) {
        let sets = self.step.as_ref().map(|step| step.faults.clone());
        self.view.faults.clear();
        let mut armed = BTreeMap::new();
        for (node, faults) in sets.unwrap_or_default() {
            if !self.view.node(&node).connected {
                continue;
            }
            for fault in faults {
                let since = self.armed.get(&fault.id).copied().unwrap_or(self.now);
                armed.insert(fault.id.clone(), since);
                let ago = self.now.duration_since(since).as_millis();
                let observed = ObservedFault {
                    id: fault.id.clone(),
                    phase: phase.into(),
                    mechanisms: vec!["fake".to_owned()],
                    reason: reason.to_owned(),
                    counters: Some(Counters {
                        matched: hits,
                        injected: hits,
                        ..Counters::default()
                    }),
                    armed_ms_ago: ago.unsigned_abs().try_into().unwrap(),
                    expires_in_ms: 30_000,
                    ..ObservedFault::default()
                };
                let seen = Seen {
                    fault: observed,
                    at: self.now,
                };
                self.view.faults.insert((node.clone(), fault.id), seen);
            }
        }
        self.armed = armed;
        for node in self.view.nodes.values_mut().filter(|node| node.connected) {
            node.generation = self.generation;
        }
    }

    /// Looks, lets the agents inject, looks again.
    pub(super) fn settle(&mut self) -> &Step {
        self.look();
        self.agents_report(Phase::Injected, "", 0);
        self.look()
    }

    pub(super) fn pass(&mut self, seconds: i64) {
        self.now += SignedDuration::from_secs(seconds);
    }

    pub(super) fn annotate(&mut self, key: &str, value: &str) {
        let annotations = self.chaos.annotations_mut();
        annotations.insert(key.to_owned(), value.to_owned());
    }

    pub(super) fn ask_to_delete(&mut self) {
        self.chaos.metadata.deletion_timestamp = Some(Time(self.now));
    }

    pub(super) fn agent_leaves(&mut self) {
        let gone = NodeView {
            connected: false,
            since: self.now,
            ..self.view.node("n1")
        };
        self.view.nodes.insert("n1".to_owned(), gone);
    }

    /// `Running 2/2 hits 7 | Selected AllInjected | .web-1=Injected .web-2=Injected`
    pub(super) fn shown(&self) -> String {
        let status = &self.step.as_ref().expect("it has been looked at").status;
        let ours = status.faultline.clone().unwrap_or_default();
        let mut text = ours.phase.unwrap_or_default();
        if let Some(word) = ours.injected {
            text = format!("{text} {word}");
        }
        if let Some(hits) = ours.hits.filter(|hits| *hits > 0) {
            text = format!("{text} hits {hits}");
        }
        let conditions = status.conditions.iter().filter(|one| one.status == "True");
        let names: Vec<&str> = conditions.map(|one| one.r#type.as_str()).collect();
        let records = status.experiment.container_records.iter();
        let records: Vec<String> = records
            .map(|one| {
                let name = one.id.trim_start_matches("shop/");
                format!("{}{name}={}", one.selector_key, one.phase.as_str())
            })
            .collect();
        format!("{text} | {} | {}", names.join(" "), records.join(" "))
    }

    #[track_caller]
    pub(super) fn starts(&self, expected: &str) {
        let shown = self.shown();
        assert!(shown.starts_with(expected), "{shown}");
    }

    pub(super) fn ours(&self) -> chaos_api::v1alpha1::FaultlineStatus {
        let status = &self.step.as_ref().expect("it has been looked at").status;
        status.faultline.clone().unwrap_or_default()
    }

    /// `.web-1 .Targetweb-2`
    pub(super) fn ids(&self) -> String {
        let id = |record: &crate::kept::KeptRecord| {
            format!("{}{}", record.selector_key, record.id.replace("shop/", ""))
        };
        self.kept
            .records
            .iter()
            .map(id)
            .collect::<Vec<_>>()
            .join(" ")
    }

    pub(super) fn reason(&self) -> String {
        let status = &self.step.as_ref().expect("it has been looked at").status;
        let ours = status.faultline.clone().unwrap_or_default();
        ours.reason.unwrap_or_default()
    }

    /// Reasons of the Events of the last look.
    pub(super) fn events(&self) -> String {
        let notices = &self.step.as_ref().expect("it has been looked at").notices;
        let reasons: Vec<&str> = notices.iter().map(|notice| notice.reason).collect();
        reasons.join(" ")
    }

    pub(super) fn messages(&self) -> Vec<String> {
        let notices = &self.step.as_ref().expect("it has been looked at").notices;
        notices
            .iter()
            .map(|notice| notice.message.clone())
            .collect()
    }

    pub(super) fn fault_count(&self) -> usize {
        let step = self.step.as_ref().expect("it has been looked at");
        step.faults.values().map(Vec::len).sum()
    }
}

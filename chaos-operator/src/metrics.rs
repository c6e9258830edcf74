//! What `/metrics` says. Names with `chaos_controller_manager_` are those of Chaos Mesh, which
//! people's dashboards know; ours begin with `faultline_operator_`.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// All metrics of the operator.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    experiments: Family<ExperimentLabels, Gauge>,
    events: Family<EventLabels, Counter>,
    events_lost: Counter,
    looks: Family<KindLabels, Histogram, fn() -> Histogram>,
    failures: Family<KindLabels, Counter>,
    agents: Family<AgentLabels, Gauge>,
    /// What each experiment counts as now, by uid.
    known: Mutex<HashMap<String, ExperimentLabels>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ExperimentLabels {
    namespace: String,
    kind: &'static str,
    phase: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EventLabels {
    r#type: &'static str,
    reason: &'static str,
    namespace: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AgentLabels {
    state: &'static str,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let experiments = Family::default();
        let events = Family::default();
        let events_lost = Counter::default();
        // 100 us to 26 s.
        let histogram = || Histogram::new(exponential_buckets(0.0001, 4.0, 10));
        let looks = Family::new_with_constructor(histogram as fn() -> Histogram);
        let failures = Family::default();
        let agents = Family::default();
        let upstream = registry.sub_registry_with_prefix("chaos_controller_manager");
        upstream.register(
            "chaos_experiments",
            "Experiments by phase",
            experiments.clone(),
        );
        upstream.register("emitted_event", "Events by type and reason", events.clone());
        let ours = registry.sub_registry_with_prefix("faultline_operator");
        ours.register(
            "events_lost",
            "Events that were not posted because the queue was full",
            events_lost.clone(),
        );
        ours.register(
            "reconcile_seconds",
            "Time from seeing a change to having told the agents",
            looks.clone(),
        );
        ours.register(
            "reconcile_errors",
            "Writes of an experiment's object that failed and are repeated",
            failures.clone(),
        );
        ours.register("agents", "Agents by connection state", agents.clone());
        Self {
            registry,
            experiments,
            events,
            events_lost,
            looks,
            failures,
            agents,
            known: Mutex::default(),
        }
    }
}

impl Metrics {
    /// An experiment is in this phase (in the words of Chaos Mesh) now.
    pub fn experiment(&self, uid: &str, namespace: &str, kind: &'static str, phase: &'static str) {
        let labels = ExperimentLabels {
            namespace: namespace.to_owned(),
            kind,
            phase,
        };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let old = known.insert(uid.to_owned(), labels.clone());
        if old.as_ref() != Some(&labels) {
            self.experiments.get_or_create(&labels).inc();
            if let Some(old) = old {
                self.experiments.get_or_create(&old).dec();
            }
        }
    }

    /// An experiment is gone.
    pub fn experiment_gone(&self, uid: &str) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = known.remove(uid) {
            self.experiments.get_or_create(&old).dec();
        }
    }

    /// An Event is being published.
    pub fn event(&self, r#type: &'static str, reason: &'static str, namespace: &str) {
        let labels = EventLabels {
            r#type,
            reason,
            namespace: namespace.to_owned(),
        };
        self.events.get_or_create(&labels).inc();
    }

    /// An Event did not fit into the queue.
    pub fn event_lost(&self) {
        self.events_lost.inc();
    }

    /// A look at an experiment has taken this long.
    pub fn looked(&self, kind: &'static str, took: Duration) {
        let labels = KindLabels { kind };
        self.looks
            .get_or_create(&labels)
            .observe(took.as_secs_f64());
    }

    /// A write of an experiment's object has failed.
    pub fn failed(&self, kind: &'static str) {
        self.failures.get_or_create(&KindLabels { kind }).inc();
    }

    /// All metrics as text, with the state of the connections as it is now.
    #[must_use]
    pub fn text(&self, (connected, away): (usize, usize)) -> String {
        for (state, count) in [("connected", connected), ("away", away)] {
            let gauge = self.agents.get_or_create(&AgentLabels { state }).clone();
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        let mut text = String::new();
        // Writing into a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_experiment_counts_once_and_under_the_names_of_chaos_mesh() {
        let metrics = Metrics::default();
        metrics.experiment("u1", "shop", "NetworkChaos", "injecting");
        metrics.experiment("u1", "shop", "NetworkChaos", "running");
        metrics.experiment("u2", "shop", "NetworkChaos", "running");
        metrics.experiment("u2", "shop", "NetworkChaos", "running");
        metrics.event("Normal", "Applied", "shop");
        let text = metrics.text((2, 1));
        for line in [
            r#"chaos_controller_manager_chaos_experiments{namespace="shop",kind="NetworkChaos",phase="running"} 2"#,
            r#"chaos_controller_manager_chaos_experiments{namespace="shop",kind="NetworkChaos",phase="injecting"} 0"#,
            r#"chaos_controller_manager_emitted_event_total{type="Normal",reason="Applied",namespace="shop"} 1"#,
            r#"faultline_operator_agents{state="away"} 1"#,
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
        metrics.experiment_gone("u1");
        let text = metrics.text((0, 0));
        assert!(text.contains(r#"phase="running"} 1"#), "{text}");
    }
}

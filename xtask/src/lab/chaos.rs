//! Experiments: applied, watched and deleted with `kubectl`, as a user does it, and read back with
//! the types of the API.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use chaos_abi::sample::{Stream, hit, threshold_ppm};
use chaos_api::documents;
use chaos_api::v1alpha1::{ChaosStatus, FaultlineStatus, NetworkChaosStatus, RecordPhase, Time};
use serde::Deserialize;

use super::{Lab, clock, must, nanos};
use crate::step::{self, eventually};

/// How long a change of a status may take on an emulated node whose host has other work to do.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// What is looked at of an experiment.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Experiment {
    metadata: Metadata,
    status: Option<NetworkChaosStatus>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    creation_timestamp: Option<Time>,
}

/// An experiment that was accepted.
#[derive(Clone, Debug)]
pub(crate) struct Applied {
    pub(crate) name: String,
    /// When `kubectl apply` was started, by this machine's clock.
    pub(crate) asked: u64,
    /// When it had returned.
    pub(crate) returned: u64,
}

/// An Event of the API, as far as it is read here.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Event {
    pub(crate) reason: String,
    pub(crate) message: String,
}

/// A fault as `chaos-agent faults --json` lists it, as far as it is read here.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct HeldFault {
    /// `<uid of the experiment>/<round>/<selector key>/<record>`
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) record: String,
    pub(crate) phase: String,
    /// Milliseconds since it was armed, as of the agent's answer.
    armed_ms_ago: u64,
    /// When it was armed, by this machine's clock: late by what it took to end the command after the answer.
    #[serde(skip)]
    pub(crate) armed: u64,
}

/// What the kernels of all nodes have counted for the experiments of a name, also those that ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counted {
    /// Packets that the faults applied to.
    pub(crate) matched: u64,
    /// Packets that they were done to.
    pub(crate) hits: u64,
}

impl Counted {
    /// What has come since `earlier`.
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            matched: self.matched.saturating_sub(earlier.matched),
            hits: self.hits.saturating_sub(earlier.hits),
        }
    }

    /// Adds what an agent's /metrics says of the experiments `namespace/name`.
    fn add(&mut self, metrics: &str, namespace: &str, name: &str) {
        let whose = format!("namespace=\"{namespace}\",name=\"{name}\",");
        for line in metrics.lines() {
            let Some((labels, value)) = line.rsplit_once(' ') else {
                continue;
            };
            if !labels.starts_with("faultline_hits_total{") || !labels.contains(&whose) {
                continue;
            }
            let value = value.parse().unwrap_or(0);
            if labels.contains("outcome=\"matched\"") {
                self.matched += value;
            } else if labels.contains("outcome=\"injected\"") {
                self.hits += value;
            }
        }
    }
}

impl Lab<'_> {
    /// `kubectl apply` of an experiment.
    ///
    /// # Errors
    /// What kubectl said, if it was refused.
    pub(crate) fn apply(&self, document: &str) -> Result<Applied> {
        let asked = clock::now();
        let output = self.feed(["apply", "--filename", "-"], document)?;
        let returned = clock::now();
        let said = must(output)?;
        let name = said
            .split_once("networkchaos.chaos-mesh.org/")
            .and_then(|(_, rest)| rest.split_whitespace().next())
            .with_context(|| format!("kubectl apply said {said:?}"))?;
        Ok(Applied {
            name: name.to_owned(),
            asked,
            returned,
        })
    }

    /// `kubectl apply` of a document that must be refused; what kubectl said.
    ///
    /// # Errors
    /// If it was accepted.
    pub(crate) fn refused(&self, document: &str) -> Result<String> {
        let output = self.feed(["apply", "--filename", "-"], document)?;
        ensure!(
            !output.status.success(),
            "it was accepted: {}",
            String::from_utf8_lossy(&output.stdout).trim()
        );
        Ok(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }

    /// The experiment as it is; `None`: there is none.
    ///
    /// # Errors
    /// If the API server does not answer, or with an object that the types do not know.
    pub(crate) fn experiment(&self, name: &str) -> Result<Option<Experiment>> {
        let words = [
            "get",
            "networkchaos",
            name,
            "--output=json",
            "--ignore-not-found",
        ];
        let text = step::output(&mut self.kubectl(words))?;
        if text.trim().is_empty() {
            return Ok(None);
        }
        serde_json::from_str(&text)
            .map(Some)
            .with_context(|| format!("failed to understand networkchaos {name}: {text}"))
    }

    /// When an experiment that goes on for `lasts` has its deadline, by this machine's clock: it counts
    /// from the object's creation, as upstream, which the API server notes in whole seconds.
    ///
    /// # Errors
    /// If it is gone.
    pub(crate) fn deadline(&self, name: &str, lasts: Duration) -> Result<u64> {
        let created = self
            .experiment(name)?
            .and_then(|chaos| chaos.metadata.creation_timestamp)
            .with_context(|| format!("{name} is gone"))?;
        let created = u64::try_from(created.0.as_nanosecond()).unwrap_or_default();
        Ok(created + nanos(lasts))
    }

    /// Its status, once `done` is satisfied with it.
    ///
    /// # Errors
    /// If it is gone, or `done` was not satisfied in time: then with the last status.
    pub(crate) fn wait_for(
        &self,
        name: &str,
        what: &str,
        patience: Duration,
        done: impl Fn(&ChaosStatus) -> bool,
    ) -> Result<ChaosStatus> {
        let deadline = Instant::now() + patience;
        loop {
            let chaos = self.experiment(name)?;
            let chaos = chaos.with_context(|| format!("{name} is gone; waited for {what}"))?;
            let status = chaos.status.map(|status| status.chaos).unwrap_or_default();
            if done(&status) {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!(
                    "{name}: waited {patience:?} for {what}; its status is {}",
                    serde_json::to_string(&status).unwrap_or_default()
                );
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Its status, once `status.faultline.phase` is this word.
    ///
    /// # Errors
    /// As [`Lab::wait_for`].
    pub(crate) fn wait_for_phase(
        &self,
        name: &str,
        word: &str,
        patience: Duration,
    ) -> Result<ChaosStatus> {
        self.wait_for(name, &format!("phase {word}"), patience, |status| {
            ours(status).phase.as_deref() == Some(word)
        })
    }

    /// `kubectl delete`; how long it took until it was gone.
    ///
    /// # Errors
    /// If it is not gone within two minutes.
    pub(crate) fn delete(&self, name: &str) -> Result<Duration> {
        let started = Instant::now();
        let words = [
            "delete",
            "networkchaos",
            name,
            "--timeout=120s",
            "--ignore-not-found",
        ];
        step::output(&mut self.kubectl(words))?;
        Ok(started.elapsed())
    }

    /// The first event about an experiment with this reason, once there is one: the operator writes them
    /// after the status that they are about.
    ///
    /// # Errors
    /// If the API server does not answer, or there is none in time: then with those that there are.
    pub(crate) fn wait_for_event(
        &self,
        name: &str,
        reason: &str,
        patience: Duration,
    ) -> Result<Event> {
        eventually(&format!("an event of {name}"), patience, || {
            let events = self.events(name)?;
            let event = events.iter().find(|event| event.reason == reason);
            let event = event.with_context(|| format!("no {reason}, only {events:?}"))?;
            Ok(event.clone())
        })
    }

    /// Events about an experiment, oldest first.
    fn events(&self, name: &str) -> Result<Vec<Event>> {
        #[derive(Deserialize)]
        struct List {
            items: Vec<Event>,
        }
        let selector = format!("--field-selector=involvedObject.name={name}");
        let words = [
            "get",
            "events",
            "--output=json",
            "--sort-by=.lastTimestamp",
            &selector,
        ];
        let text = step::output(&mut self.kubectl(words))?;
        let list: List = serde_json::from_str(&text).context("failed to understand events")?;
        Ok(list.items)
    }

    /// What the agents of all nodes have counted for the experiments of this name: each says it in
    /// its /metrics, and the kernel's last word on a fault stays there.
    ///
    /// # Errors
    /// If an agent cannot be asked.
    pub(crate) fn counted(&self, name: &str) -> Result<Counted> {
        let mut counted = Counted::default();
        for agent in self.agents()? {
            let pod = agent.trim_start_matches("pod/");
            let path = format!("/api/v1/namespaces/faultline/pods/{pod}:31766/proxy/metrics");
            let metrics = step::output(&mut self.kubectl(["get", "--raw", &path]))?;
            counted.add(&metrics, self.namespace(), name);
        }
        Ok(counted)
    }

    /// The pods of the agents, as `pod/<name>`.
    fn agents(&self) -> Result<Vec<String>> {
        let words = [
            "get",
            "pods",
            "--selector=app.kubernetes.io/name=chaos-agent",
            "--output=name",
        ];
        let pods = step::output(self.cluster().in_namespace().args(words))?;
        Ok(pods.lines().map(str::to_owned).collect())
    }

    /// What the agents of all nodes hold of the pods here.
    ///
    /// # Errors
    /// If an agent cannot be asked.
    pub(crate) fn held(&self) -> Result<Vec<HeldFault>> {
        let mut faults = Vec::new();
        for node in self.cluster().nodes() {
            let (text, ended) = self.ask_agent(&node, "faults --json")?;
            let held: Vec<HeldFault> = serde_json::from_str(&text)
                .with_context(|| format!("failed to understand what {node} holds: {text}"))?;
            faults.extend(held.into_iter().map(|fault| HeldFault {
                armed: ended - nanos(Duration::from_millis(fault.armed_ms_ago)),
                ..fault
            }));
        }
        let here = format!("{}/", self.namespace());
        faults.retain(|fault| fault.record.starts_with(&here));
        Ok(faults)
    }

    /// Says how an experiment (or its last round) ended: the operator's word, and what the agents read
    /// back from their kernels.
    ///
    /// # Errors
    /// If an agent cannot be asked, or if something is left.
    pub(crate) fn verdict(&self, name: &str, status: &ChaosStatus) -> Result<String> {
        // The next round may have begun by the time that the agents are asked.
        let round = ours(status).round.map(|round| format!("/{round}/"));
        ensure!(
            condition(status, "AllRecovered") == Some(true),
            "{name}: AllRecovered is not True"
        );
        let left: Vec<String> = self
            .held()?
            .into_iter()
            .filter(|fault| fault.name == name)
            .filter(|fault| round.as_ref().is_none_or(|round| fault.id.contains(round)))
            .map(|fault| format!("{} {}", fault.record, fault.phase))
            .collect();
        ensure!(left.is_empty(), "{name}: still held: {}", left.join(", "));
        Ok("recovered, kernel verified clean".to_owned())
    }
}

/// The part of a status that Chaos Mesh does not have.
pub(crate) fn ours(status: &ChaosStatus) -> FaultlineStatus {
    status.faultline.clone().unwrap_or_default()
}

/// A condition, if it is there.
pub(crate) fn condition(status: &ChaosStatus, name: &str) -> Option<bool> {
    let condition = status.conditions.iter().find(|one| one.r#type == name)?;
    Some(condition.status == "True")
}

/// Ids of the records with this selector key, `.` or `.Target`, without their namespace.
pub(crate) fn drawn(status: &ChaosStatus, key: &str) -> Vec<String> {
    let records = status.experiment.container_records.iter();
    records
        .filter(|record| record.selector_key == key)
        .map(|record| record.id.rsplit('/').next().unwrap_or_default().to_owned())
        .collect()
}

/// True if every record that there is has this phase, and there is one.
pub(crate) fn all_are(status: &ChaosStatus, phase: RecordPhase) -> bool {
    let records = &status.experiment.container_records;
    !records.is_empty() && records.iter().all(|record| record.phase == phase)
}

/// How many of the first `matched` packets of a rule are lost, by the arithmetic that kernel and
/// model share.
pub(crate) fn lost_by_model(seed: u64, percent: u32, matched: u64) -> u64 {
    let threshold = threshold_ppm(percent * 10_000);
    let lost = (0..matched).filter(|&n| hit(seed, Stream::Loss, n, threshold));
    lost.count() as u64
}

/// The seed that a document gives its draws.
pub(crate) fn seed_of(document: &str) -> Option<u64> {
    let documents = documents::parse(document).ok()?;
    let lifecycle = documents.first()?.lifecycle();
    lifecycle.faultline.as_ref()?.sample.as_ref()?.seed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_loses_about_the_share_that_is_asked_and_always_the_same() {
        let lost = lost_by_model(7, 30, 10_000);
        assert!((2_850..3_150).contains(&lost), "{lost}");
        assert_eq!(lost, lost_by_model(7, 30, 10_000));
        assert_eq!(lost_by_model(7, 100, 50), 50);
    }

    #[test]
    fn the_counts_of_one_experiment_are_found_among_the_metrics() {
        let labels = "kind=\"NetworkChaos\",namespace=\"ns\",name=\"loss\",mechanism=\"tc_egress\"";
        let metrics = format!(
            "# TYPE faultline_hits counter
faultline_hits_total{{{labels},outcome=\"matched\"}} 728
faultline_hits_total{{{labels},outcome=\"injected\"}} 212
faultline_hits_total{{{labels},outcome=\"failed\"}} 1
faultline_hits_total{{{},outcome=\"injected\"}} 9
faultline_faults_active{{{labels}}} 3
",
            labels.replace("\"loss\"", "\"other\"")
        );
        let mut counted = Counted::default();
        counted.add(&metrics, "ns", "loss");
        let (matched, hits) = (728, 212);
        assert_eq!(counted, Counted { matched, hits });
        let earlier = Counted {
            matched: 8,
            hits: 2,
        };
        let (matched, hits) = (720, 210);
        assert_eq!(counted.since(earlier), Counted { matched, hits });
    }

    #[test]
    fn records_are_found_by_their_selector_key() {
        let status: ChaosStatus = serde_json::from_value(serde_json::json!({
            "conditions": [{"type": "AllInjected", "status": "True"}],
            "experiment": {"containerRecords": [
                {"id": "ns/a", "selectorKey": ".", "phase": "Injected", "injectedCount": 1, "recoveredCount": 0},
                {"id": "ns/b", "selectorKey": ".Target", "phase": "Injected", "injectedCount": 1, "recoveredCount": 0},
            ]},
        }))
        .unwrap();
        assert_eq!(
            (drawn(&status, "."), drawn(&status, ".Target")),
            (vec!["a".to_owned()], vec!["b".to_owned()])
        );
        assert_eq!(condition(&status, "AllInjected"), Some(true));
        assert_eq!(condition(&status, "Paused"), None);
        assert!(all_are(&status, RecordPhase::Injected));
        assert!(!all_are(&ChaosStatus::default(), RecordPhase::Injected));
    }
}

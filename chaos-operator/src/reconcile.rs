//! Carries out what a look at an experiment decides: the only place that changes an experiment's
//! object.
//!
//! Each experiment has a task of its own that remembers what it has done, so that it needs neither
//! locks nor a fresh read from the API server to go on. It looks whenever it is woken (the object,
//! one of its pods, or what an agent says has changed) or a time has come, at once and without
//! waiting for more. On the way from an applied document to the agents lies one round trip to the
//! API server, that of the finalizer; the status and the Events come after the agents were told.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use chaos_api::v1alpha1::names::{FIELD_MANAGER, FINALIZER, GROUP, VERSION};
use chaos_api::v1alpha1::{ChaosStatus, DesiredPhase, RecordPhase, SummaryPhase};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::{Patch, PatchParams};
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use tokio::sync::Notify;

use crate::agents::Agents;
use crate::cluster::Cluster;
use crate::events::Publisher;
use crate::experiment::{self, FinalizerAction, Step, Surrounding, must_write};
use crate::kept::Kept;
use crate::kind::Kind;
use crate::metrics::Metrics;
use crate::notice::Notice;

mod unreadable;

const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LAST_BACKOFF: Duration = Duration::from_secs(30);
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// What all experiments share.
#[derive(Clone)]
pub struct Context {
    /// Of the API server.
    pub client: Client,
    /// Pods and nodes, kept up to date by `watch.rs`.
    pub cluster: Arc<RwLock<Cluster>>,
    /// What nodes should have and have.
    pub agents: Agents,
    /// Where Events go.
    pub events: Publisher,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// In which calendars have their ticks.
    pub zone: TimeZone,
}

/// One experiment that is looked after.
pub(crate) struct Experiment<K: Kind> {
    pub(crate) context: Context,
    pub(crate) store: Store<DeserializeGuard<K>>,
    pub(crate) key: ObjectRef<DeserializeGuard<K>>,
    pub(crate) uid: String,
    pub(crate) wake: Arc<Notify>,
}

/// What a task remembers beside [`Kept`].
#[derive(Default)]
struct Memory {
    kept: Option<Kept>,
    /// The finalizer has been taken away; the object we see may not show it yet.
    released: bool,
    /// What an unreadable object was refused for.
    refused: Option<String>,
}

impl<K: Kind> Experiment<K> {
    /// Looks after the experiment until it is gone.
    pub(crate) async fn run(self) {
        let mut memory = Memory::default();
        let mut backoff = FIRST_BACKOFF;
        loop {
            let object = self.store.get(&self.key);
            let Some(object) = object.filter(|object| object.uid().as_ref() == Some(&self.uid))
            else {
                self.context.agents.forget(&self.uid, Timestamp::now());
                self.context.metrics.experiment_gone(&self.uid);
                tracing::debug!(object = %self.key, "gone");
                return;
            };
            let began = Instant::now();
            let result = match &object.0 {
                Ok(object) => self.turn(object, &mut memory).await,
                Err(invalid) => self.turn_unreadable(invalid, &mut memory).await,
            };
            self.context
                .metrics
                .looked(K::NAME, began.elapsed(), result.is_err());
            let wait = match result {
                Ok(at) => {
                    backoff = FIRST_BACKOFF;
                    at.map(until)
                }
                Err(error) => {
                    tracing::warn!(object = %self.key, %error, retry_in = ?backoff, "failed to reconcile");
                    let wait = backoff;
                    backoff = (backoff * 2).min(LAST_BACKOFF);
                    Some(wait)
                }
            };
            match wait {
                Some(wait) => {
                    let _ = tokio::time::timeout(wait, self.wake.notified()).await;
                }
                None => self.wake.notified().await,
            }
        }
    }

    async fn turn(
        &self,
        object: &K,
        memory: &mut Memory,
    ) -> Result<Option<Timestamp>, kube::Error> {
        let now = Timestamp::now();
        let (step, kept) = self.look(object, &mut memory.kept, now);
        let mut notices = Vec::new();
        if step.finalizer == FinalizerAction::Add {
            // A new experiment must not keep the others from being sent.
            self.context.agents.has_nothing(&self.uid);
            match self
                .patch_finalizers(object.meta(), |all| all.push(FINALIZER.to_owned()))
                .await
            {
                Ok(()) => {
                    kept.has_finalizer = true;
                    notices.push(Notice::finalizer_inited());
                }
                Err(error) => {
                    self.publish(object.meta(), step.notices);
                    return match error {
                        kube::Error::Api(status) if status.code == 404 => Ok(None),
                        error => Err(error),
                    };
                }
            }
        }
        let Step {
            faults,
            ends_at,
            finalizer,
            notices: said,
            status,
            look_again_at,
        } = step;
        let nodes = kept.nodes();
        let generations =
            self.context
                .agents
                .publish(&self.uid, faults, ends_at, &nodes, Timestamp::now());
        kept.note(&generations);
        notices.extend(said);
        self.count(object, &status);

        let result = if let FinalizerAction::Remove(reason) = finalizer {
            // Nobody reads the status of what is gone the next moment.
            self.release(object, memory, reason, &mut notices).await
        } else if must_write(kept.written.as_ref(), &status, now) {
            let result = self.write_status(object, &status).await;
            if result.is_ok() {
                kept.written = Some((status, now));
            }
            result
        } else {
            Ok(())
        };
        self.publish(object.meta(), notices);
        result.map(|()| look_again_at)
    }

    fn look<'m>(
        &self,
        object: &K,
        kept: &'m mut Option<Kept>,
        now: Timestamp,
    ) -> (Step, &'m mut Kept) {
        let view = self.context.agents.view(&self.uid);
        let cluster = self
            .context
            .cluster
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let kept = kept.get_or_insert_with(|| {
            let status = object.chaos_status();
            Kept::load(&self.uid, status, object.lifecycle(), &cluster, now)
        });
        let around = Surrounding {
            cluster: &cluster,
            view: &view,
            now,
            zone: &self.context.zone,
        };
        (experiment::look(object, kept, &around), kept)
    }

    /// Takes the finalizer away.
    async fn release(
        &self,
        object: &K,
        memory: &mut Memory,
        reason: Option<String>,
        notices: &mut Vec<Notice>,
    ) -> Result<(), kube::Error> {
        if memory.released {
            return Ok(());
        }
        self.patch_finalizers(object.meta(), |all| all.retain(|one| one != FINALIZER))
            .await?;
        memory.released = true;
        notices.push(Notice::finalizer_removed(reason.as_deref()));
        Ok(())
    }

    /// Changes the finalizers by a merge patch that fails if the object has changed meanwhile.
    /// (By server-side apply ours could not be taken away once a re-applied document owns it too.)
    async fn patch_finalizers(
        &self,
        meta: &kube::core::ObjectMeta,
        change: impl FnOnce(&mut Vec<String>),
    ) -> Result<(), kube::Error> {
        let mut finalizers = meta.finalizers.clone().unwrap_or_default();
        change(&mut finalizers);
        let patch = json!({
            "metadata": { "finalizers": finalizers, "resourceVersion": meta.resource_version },
        });
        let params = PatchParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let (api, patch) = (self.api(meta), Patch::Merge(patch));
        let result = in_time(api.patch_metadata(&self.key.name, &params, &patch)).await;
        match result {
            Ok(PartialObjectMeta { .. }) => Ok(()),
            // It went away by itself; there is nothing to hold on to, and nothing to let go of.
            Err(kube::Error::Api(status))
                if status.code == 404 && meta.deletion_timestamp.is_some() =>
            {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Server-side apply of the whole status: what is left out goes away.
    async fn write_status(&self, object: &K, status: &ChaosStatus) -> Result<(), kube::Error> {
        let meta = object.meta();
        let patch = json!({
            "apiVersion": format!("{GROUP}/{VERSION}"),
            "kind": K::NAME,
            "metadata": { "name": meta.name, "namespace": meta.namespace, "uid": self.uid },
            "status": status,
        });
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let (api, patch) = (self.api(meta), Patch::Apply(patch));
        let result = in_time(api.patch_status(&self.key.name, &params, &patch)).await;
        match result {
            Ok(_) => Ok(()),
            // Gone, or another one of the same name: its task will see.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
                tracing::debug!(object = %self.key, %status, "status not written");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn api(&self, meta: &kube::core::ObjectMeta) -> Api<K> {
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        Api::namespaced(self.context.client.clone(), namespace)
    }

    fn publish(&self, meta: &kube::core::ObjectMeta, notices: Vec<Notice>) {
        let reference = ObjectReference {
            api_version: Some(format!("{GROUP}/{VERSION}")),
            kind: Some(K::NAME.to_owned()),
            name: meta.name.clone(),
            namespace: meta.namespace.clone(),
            uid: meta.uid.clone(),
            resource_version: meta.resource_version.clone(),
            field_path: None,
        };
        for notice in notices {
            self.context.events.publish(&reference, notice);
        }
    }

    fn count(&self, object: &K, status: &ChaosStatus) {
        let namespace = object.namespace().unwrap_or_default();
        let phase = upstream_phase(status);
        self.context
            .metrics
            .experiment(&self.uid, &namespace, K::NAME, phase);
    }
}

/// A call that hangs must not keep an experiment from being recovered.
async fn in_time<T>(call: impl Future<Output = Result<T, kube::Error>>) -> Result<T, kube::Error> {
    match tokio::time::timeout(CALL_TIMEOUT, call).await {
        Ok(result) => result,
        Err(elapsed) => Err(kube::Error::Service(elapsed.into())),
    }
}

/// The phase in the words of Chaos Mesh's metric.
fn upstream_phase(status: &ChaosStatus) -> &'static str {
    let word = status
        .faultline
        .as_ref()
        .and_then(|ours| ours.phase.as_deref());
    let is = |phase: SummaryPhase| word == Some(phase.as_str());
    let records = &status.experiment.container_records;
    let is_paused = status
        .conditions
        .iter()
        .any(|one| one.r#type == "Paused" && one.status == "True");
    if is(SummaryPhase::Deleting) {
        "deleting"
    } else if is_paused {
        "paused"
    } else if is(SummaryPhase::Finished) {
        "finished"
    } else if status.experiment.desired_phase == Some(DesiredPhase::Run)
        && !records.is_empty()
        && records
            .iter()
            .all(|record| record.phase == RecordPhase::Injected)
    {
        "running"
    } else {
        "injecting"
    }
}

/// From now to then; at least a moment, so that a clock that jumps back does not make a loop spin.
fn until(at: Timestamp) -> Duration {
    let wait = at.duration_since(Timestamp::now());
    Duration::try_from(wait)
        .unwrap_or_default()
        .max(Duration::from_millis(1))
}

/// Faults by node, none.
fn nothing() -> BTreeMap<String, Vec<chaos_proto::agent::Fault>> {
    BTreeMap::new()
}

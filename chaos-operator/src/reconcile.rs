//! Carries out what a look at an experiment decides: the only place that changes an experiment's
//! object.
//!
//! Each experiment has a task of its own that remembers what it has done, so that it needs neither
//! locks nor a fresh read from the API server to go on. It looks whenever it is woken (the object,
//! one of its pods, or what an agent says has changed) or a time has come, at once and without
//! waiting for more, and puts what follows into the agents' table in the same breath: between an
//! applied document and the agents lies no round trip to the API server. The object is written
//! behind that, one write at a time (`write.rs`), and looking goes on meanwhile. What has become of
//! an object that cannot be read is in `unreadable.rs`.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use chaos_api::v1alpha1::names::{GROUP, VERSION};
use chaos_api::v1alpha1::{ChaosStatus, DesiredPhase, RecordPhase, SummaryPhase};
use futures::FutureExt;
use futures::future::{Fuse, FusedFuture};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::core::{DeserializeGuard, ObjectMeta};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Client, Resource, ResourceExt};
use tokio::sync::Notify;

use crate::agents::Agents;
use crate::cluster::Cluster;
use crate::events::Publisher;
use crate::experiment::{self, FinalizerAction, Step, Surrounding, must_write};
use crate::kept::Kept;
use crate::kind::Kind;
use crate::metrics::Metrics;
use crate::names::Names;
use crate::notice::Notice;
use crate::resolver::Resolver;
use write::{Done, Pace, Write, is_gone};

mod unreadable;
mod write;

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
    /// Who finds the addresses of host names.
    pub resolver: Resolver,
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
    /// `resourceVersion` of the object whose finalizers were changed last: what that one shows of
    /// them is out of date. The change was made on condition that it was the newest, so every
    /// other that is seen from then on is newer, and shows them as they are.
    finalized: Option<String>,
    /// What an unreadable object was refused for.
    refused: Option<String>,
}

impl Memory {
    /// Whether the finalizers of this object are as it shows them.
    fn shows_finalizers(&self, meta: &ObjectMeta) -> bool {
        self.finalized.is_none() || self.finalized != meta.resource_version
    }
}

/// What is left to do when the agents' table has been brought up to date.
#[derive(Debug)]
struct Turn {
    /// What to change about the object.
    write: Option<Write>,
    /// When to look again, if nothing happens before.
    look_again_at: Option<Timestamp>,
}

impl<K: Kind> Experiment<K> {
    /// Looks after the experiment until it is gone.
    pub(crate) async fn run(self) {
        let mut memory = Memory::default();
        let mut pace = Pace::default();
        let mut writing = Fuse::terminated();
        loop {
            let object = self.store.get(&self.key);
            let Some(object) = object.filter(|object| object.uid().as_ref() == Some(&self.uid))
            else {
                self.context.agents.forget(&self.uid, Timestamp::now());
                self.context.resolver.forget(&self.uid);
                self.context.metrics.experiment_gone(&self.uid);
                if !writing.is_terminated() {
                    // The watch is faster than the answer to what has let the object go.
                    self.written(writing.await, &mut memory, &mut pace);
                }
                tracing::debug!(object = %self.key, "gone");
                return;
            };
            let began = Instant::now();
            let turn = match &object.0 {
                Ok(object) => self.turn(object, &mut memory),
                Err(invalid) => self.turn_unreadable(invalid, &mut memory),
            };
            self.context.metrics.looked(K::NAME, began.elapsed());
            // The agents first: what sends them their sets may have been woken on this very thread, and
            // would wait until the write below has been made ready.
            tokio::task::yield_now().await;
            let mut wait = turn.look_again_at.map(until);
            if let Some(write) = turn.write
                && writing.is_terminated()
            {
                let pause = pace.pause(object.meta());
                if pause.is_zero() {
                    writing = self.carry_out(object.meta().clone(), write).boxed().fuse();
                } else {
                    wait = Some(wait.map_or(pause, |wait| wait.min(pause)));
                }
            }
            let time = async {
                match wait {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                done = &mut writing, if !writing.is_terminated() => {
                    self.written(done, &mut memory, &mut pace);
                }
                () = self.wake.notified() => {}
                () = time => {}
            }
        }
    }

    /// Looks, and tells the agents.
    fn turn(&self, object: &K, memory: &mut Memory) -> Turn {
        let now = Timestamp::now();
        let shows_finalizers = memory.shows_finalizers(object.meta());
        let wanted = object.host_names();
        let names = self.context.resolver.want(&self.uid, &wanted, &self.wake);
        if names.0.len() < wanted.len() && object.meta().deletion_timestamp.is_none() {
            // An answer, or the lack of it, is moments away. A set without the addresses would
            // take from the nodes what an operator before this one has sent them.
            return Turn {
                write: None,
                look_again_at: None,
            };
        }
        let (step, kept) = self.look(object, &mut memory.kept, &names, now);
        // Nothing stands between the look and the agents, not even the finalizer. Before that is
        // set, a deletion takes the object away at once: then this task sees it gone, and the next
        // set withdraws the faults. If this process dies before, the first set of the next operator
        // does: it knows the objects that exist, and no others.
        let generations = self.context.agents.publish(
            &self.uid,
            step.faults,
            step.ends_at,
            &kept.nodes(),
            Timestamp::now(),
        );
        kept.note(&generations);
        self.count(object, &step.status);
        self.publish(object.meta(), step.notices);
        let write = match step.finalizer {
            FinalizerAction::Add if shows_finalizers => Some(Write::AddFinalizer),
            FinalizerAction::Remove(reason) if shows_finalizers => {
                Some(Write::RemoveFinalizer(reason))
            }
            // Nobody reads the status of what is gone the next moment.
            FinalizerAction::Remove(_) => None,
            FinalizerAction::Add | FinalizerAction::Keep => {
                must_write(kept.written.as_ref(), &step.status, now)
                    .then(|| Write::Status(Box::new(step.status), now))
            }
        };
        Turn {
            write,
            look_again_at: step.look_again_at,
        }
    }

    /// Takes in what has become of a write.
    fn written(&self, done: Done, memory: &mut Memory, pace: &mut Pace) {
        let Done {
            meta,
            write,
            result,
        } = done;
        if let Err(error) = result {
            self.context.metrics.failed(K::NAME);
            let retry_in = pace.failed(&meta);
            if is_gone(&error) {
                tracing::debug!(object = %self.key, %error, ?retry_in, "the object is gone");
            } else {
                tracing::warn!(object = %self.key, %error, ?retry_in, "failed to reconcile");
            }
            return;
        }
        *pace = Pace::default();
        match write {
            Write::AddFinalizer => {
                memory.finalized.clone_from(&meta.resource_version);
                self.publish(&meta, vec![Notice::finalizer_inited()]);
            }
            Write::RemoveFinalizer(reason) => {
                memory.finalized.clone_from(&meta.resource_version);
                self.publish(&meta, vec![Notice::finalizer_removed(reason.as_deref())]);
            }
            Write::Status(status, at) => {
                if let Some(kept) = &mut memory.kept {
                    kept.written = Some((*status, at));
                }
            }
        }
    }

    fn look<'m>(
        &self,
        object: &K,
        kept: &'m mut Option<Kept>,
        names: &Names,
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
            names,
            now,
            zone: &self.context.zone,
        };
        (experiment::look(object, kept, &around), kept)
    }

    fn publish(&self, meta: &ObjectMeta, notices: Vec<Notice>) {
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

#[cfg(test)]
mod tests;

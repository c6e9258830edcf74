//! The writes of an experiment's object: its finalizers and its status, each one call.
//!
//! What is written is decided by a look; that a write has been made, or has to wait because the
//! last one failed, is remembered by the task in `reconcile.rs`.

use std::time::Duration;

use chaos_api::v1alpha1::ChaosStatus;
use chaos_api::v1alpha1::names::{FIELD_MANAGER, FINALIZER, GROUP, VERSION};
use jiff::Timestamp;
use kube::Api;
use kube::api::{Patch, PatchParams};
use kube::core::{ObjectMeta, PartialObjectMeta};
use serde_json::json;
use tokio::time::Instant;

use crate::kind::Kind;
use crate::reconcile::Experiment;

const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LAST_BACKOFF: Duration = Duration::from_secs(30);
/// A call that hangs must not keep the next one from being made.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// A change of an object in the API server.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Write {
    /// Ours is added.
    AddFinalizer,
    /// Ours is taken away; why, if not because all is recovered.
    RemoveFinalizer(Option<String>),
    /// The status of a look, and when that was.
    Status(Box<ChaosStatus>, Timestamp),
}

/// A write that has come to an end.
#[derive(Debug)]
pub(super) struct Done {
    /// Of the object that was seen when it was decided.
    pub(super) meta: ObjectMeta,
    pub(super) write: Write,
    pub(super) result: Result<(), kube::Error>,
}

/// How long the next write waits after failed ones.
#[derive(Debug, Default)]
pub(super) struct Pace {
    failures: u32,
    /// Until when, and the version of the object with which the last one failed.
    retry: Option<(Instant, Option<String>)>,
}

impl Pace {
    /// Notes a failure; returns how long to wait.
    pub(super) fn failed(&mut self, meta: &ObjectMeta) -> Duration {
        let wait = FIRST_BACKOFF.saturating_mul(1 << self.failures.min(16));
        let wait = wait.min(LAST_BACKOFF);
        self.failures += 1;
        self.retry = Some((Instant::now() + wait, meta.resource_version.clone()));
        wait
    }

    /// How long the next write has to wait. A newer object settles a conflict: not at all.
    pub(super) fn pause(&self, meta: &ObjectMeta) -> Duration {
        match &self.retry {
            Some((until, version)) if *version == meta.resource_version => {
                until.saturating_duration_since(Instant::now())
            }
            _ => Duration::ZERO,
        }
    }
}

impl<K: Kind> Experiment<K> {
    pub(super) async fn carry_out(&self, meta: ObjectMeta, write: Write) -> Done {
        let call = async {
            match &write {
                Write::AddFinalizer => {
                    let add = |all: &mut Vec<String>| all.push(FINALIZER.to_owned());
                    self.patch_finalizers(&meta, add).await
                }
                Write::RemoveFinalizer(_) => {
                    let remove = |all: &mut Vec<String>| all.retain(|one| one != FINALIZER);
                    match self.patch_finalizers(&meta, remove).await {
                        // There is nothing left to let go of.
                        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
                        result => result,
                    }
                }
                Write::Status(status, _) => self.write_status(&meta, status).await,
            }
        };
        let result = match tokio::time::timeout(CALL_TIMEOUT, call).await {
            Ok(result) => result,
            Err(elapsed) => Err(kube::Error::Service(elapsed.into())),
        };
        Done {
            meta,
            write,
            result,
        }
    }

    /// Changes the finalizers by a merge patch that fails if the object has changed meanwhile.
    /// (By server-side apply ours could not be taken away once a re-applied document owns it too.)
    async fn patch_finalizers(
        &self,
        meta: &ObjectMeta,
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
        let PartialObjectMeta { .. } = api.patch_metadata(&self.key.name, &params, &patch).await?;
        Ok(())
    }

    /// Server-side apply of the whole status: what is left out goes away.
    async fn write_status(
        &self,
        meta: &ObjectMeta,
        status: &ChaosStatus,
    ) -> Result<(), kube::Error> {
        let patch = json!({
            "apiVersion": format!("{GROUP}/{VERSION}"),
            "kind": K::NAME,
            "metadata": { "name": meta.name, "namespace": meta.namespace, "uid": self.uid },
            "status": status,
        });
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let (api, patch) = (self.api(meta), Patch::Apply(patch));
        api.patch_status(&self.key.name, &params, &patch).await?;
        Ok(())
    }

    fn api(&self, meta: &ObjectMeta) -> Api<K> {
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        Api::namespaced(self.context.client.clone(), namespace)
    }
}

/// The object is gone, or another one has its name: the watch is about to say so. Until then the
/// write has not been made, and is tried again like any other.
pub(super) fn is_gone(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) if status.code == 404 => true,
        // `ValidateUpdate` and `Preconditions.Check` of the API server's storage.
        kube::Error::Api(status) => {
            status.code == 409 && status.message.contains("UID in precondition")
        }
        _ => false,
    }
}

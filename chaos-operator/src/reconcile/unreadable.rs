//! An object that cannot be read: stored before the schema knew better, or by another version.
//!
//! It is refused like one that breaks a rule, and must not keep the others from being read. If it
//! was injected when it could still be read, that is taken away by its uid.

use std::sync::PoisonError;

use chaos_api::v1alpha1::names::{ANNOTATION_CLEAN_FINALIZER, CLEAN_FORCED, FINALIZER};
use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use kube::core::error_boundary::InvalidObject;

use crate::kept::End;
use crate::kind::Kind;
use crate::notice::Notice;
use crate::phase::{LONGEST_LEASE, settled_at, was_never_sent};
use crate::reconcile::write::Write;
use crate::reconcile::{Experiment, Memory, Turn, nothing};
use crate::view::View;

/// How soon to ask again whether all agents have carried out the empty set: reports of a node on
/// which this object never had anything do not wake its task.
const ASK_AGAIN: SignedDuration = SignedDuration::from_millis(200);

impl<K: Kind> Experiment<K> {
    pub(super) fn turn_unreadable(&self, invalid: &InvalidObject, memory: &mut Memory) -> Turn {
        let now = Timestamp::now();
        let agents = &self.context.agents;
        memory.kept = None;
        let view = agents.view(&self.uid);
        let nodes = self.nodes_of_unreadable(&view);
        let generations = agents.publish(&self.uid, nothing(), None, &nodes, now);
        let meta = &invalid.metadata;
        let mut turn = Turn {
            write: None,
            look_again_at: None,
        };
        if meta.deletion_timestamp.is_none() {
            if memory.refused.as_ref() != Some(&invalid.error) {
                let error = &invalid.error;
                let problem = format!(
                    "{}: cannot be read: {error}; correct the document and apply it again",
                    K::NAME
                );
                self.publish(meta, vec![Notice::refused(&problem)]);
                memory.refused = Some(invalid.error.clone());
            }
            return turn;
        }
        let finalizers = meta.finalizers.as_deref().unwrap_or_default();
        if !memory.shows_finalizers(meta) || !finalizers.iter().any(|one| one == FINALIZER) {
            return turn;
        }
        let annotations = meta.annotations.as_ref();
        let is_forced = annotations
            .and_then(|all| all.get(ANNOTATION_CLEAN_FINALIZER))
            .is_some_and(|value| value == CLEAN_FORCED);
        let is_clean = view.holder().is_none()
            && nodes.iter().all(|name| {
                let node = view.node(name);
                let settled = settled_at(End::Lease(LONGEST_LEASE), node.since);
                let asked = generations.get(name);
                let is_told = asked.is_some_and(|asked| node.generation >= *asked);
                is_told || was_never_sent(&view, name) || !node.connected && now >= settled
            });
        if is_clean || is_forced {
            turn.write = Some(Write::RemoveFinalizer(None));
        } else {
            turn.look_again_at = Some(now + ASK_AGAIN);
        }
        turn
    }

    /// Where something of it may be. What it selected cannot be read, so an operator before this
    /// one may have sent it to any node.
    fn nodes_of_unreadable(&self, view: &View) -> Vec<String> {
        let cluster = self.context.cluster.read();
        let cluster = cluster.unwrap_or_else(PoisonError::into_inner);
        if view.inherited {
            return cluster.nodes().map(|node| node.name_any()).collect();
        }
        let mut known = self.context.agents.nodes();
        known.retain(|name| cluster.node(name).is_some());
        known
    }
}

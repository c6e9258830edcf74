//! An object that cannot be read: stored before the schema knew better, or by another version.
//!
//! It is refused like one that breaks a rule, and must not keep the others from being read. If it
//! was injected when it could still be read, that is taken away by its uid.

use chaos_api::v1alpha1::names::{ANNOTATION_CLEAN_FINALIZER, CLEAN_FORCED, FINALIZER};
use jiff::{SignedDuration, Timestamp};
use kube::core::error_boundary::InvalidObject;

use crate::kind::Kind;
use crate::notice::Notice;
use crate::reconcile::write::Write;
use crate::reconcile::{Experiment, Memory, Turn, nothing};

/// How soon to ask again whether all agents have carried out the empty set: reports of a node on
/// which this object never had anything do not wake its task.
const ASK_AGAIN: SignedDuration = SignedDuration::from_millis(200);

impl<K: Kind> Experiment<K> {
    pub(super) fn turn_unreadable(&self, invalid: &InvalidObject, memory: &mut Memory) -> Turn {
        let now = Timestamp::now();
        let agents = &self.context.agents;
        memory.kept = None;
        let generations = agents.publish(&self.uid, nothing(), None, &agents.nodes(), now);
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
        let view = agents.view(&self.uid);
        let is_clean = view.holder().is_none()
            && generations.iter().all(|(node, asked)| {
                let node = view.node(node);
                !node.connected || node.generation >= *asked
            });
        if is_clean || is_forced {
            turn.write = Some(Write::RemoveFinalizer(None));
        } else {
            turn.look_again_at = Some(now + ASK_AGAIN);
        }
        turn
    }
}

//! What is told to the user as Kubernetes Events: reasons, words and annotations of Chaos Mesh,
//! which dashboards read. Data only; `events.rs` publishes it.

use chaos_api::v1alpha1::names;

/// Longest message of an Event that the API server takes, in bytes.
const MAX_MESSAGE: usize = 1024;

/// One thing that happened to an experiment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Reason of the Event.
    pub reason: &'static str,
    /// Kebab-case name in the annotation `chaos-mesh.org/type`.
    pub kind: &'static str,
    /// Type `Warning` instead of `Normal`.
    pub warning: bool,
    /// At most 1024 bytes.
    pub message: String,
    /// Further annotations, `chaos-mesh.org/<name>`.
    pub fields: Vec<(&'static str, String)>,
}

impl Notice {
    fn normal(reason: &'static str, kind: &'static str, message: impl Into<String>) -> Self {
        Self {
            reason,
            kind,
            warning: false,
            message: cut(message.into()),
            fields: Vec::new(),
        }
    }

    fn with(mut self, name: &'static str, value: &str) -> Self {
        self.fields.push((name, value.to_owned()));
        self
    }

    /// The finalizer is there.
    #[must_use]
    pub fn finalizer_inited() -> Self {
        Self::normal(
            names::EVENT_FINALIZER_INITED,
            "finalizer-inited",
            "Finalizer has been inited",
        )
    }

    /// The finalizer has been taken away: everything is recovered.
    #[must_use]
    pub fn finalizer_removed(reason: Option<&str>) -> Self {
        let message = reason.map_or_else(
            || "Finalizer has been removed".to_owned(),
            |reason| format!("Finalizer has been removed: {reason}"),
        );
        Self::normal(names::EVENT_FINALIZER_INITED, "finalizer-inited", message)
    }

    /// It should run.
    #[must_use]
    pub fn started() -> Self {
        Self::normal(names::EVENT_STARTED, "started", "Experiment has started")
    }

    /// It should not, because it is paused.
    #[must_use]
    pub fn paused() -> Self {
        Self::normal(names::EVENT_PAUSED, "paused", "Experiment has been paused")
    }

    /// It should not, because its duration is over.
    #[must_use]
    pub fn time_up() -> Self {
        Self::normal(
            names::EVENT_TIME_UP,
            "time-up",
            "Time up according to the duration",
        )
    }

    /// It should not, because it is being deleted.
    #[must_use]
    pub fn deleted() -> Self {
        Self::normal(
            names::EVENT_DELETED,
            "deleted",
            "Experiment has been deleted",
        )
    }

    /// A part of the status has changed.
    #[must_use]
    pub fn updated(field: &str) -> Self {
        let message = format!("Successfully update {field} of resource");
        Self::normal(names::EVENT_UPDATED, "updated", message).with("field", field)
    }

    /// A record is injected, read back from the kernel.
    #[must_use]
    pub fn applied(id: &str) -> Self {
        let message = format!("Successfully apply chaos for {id}");
        Self::normal(names::EVENT_APPLIED, "applied", message).with("id", id)
    }

    /// A record is recovered; `reason` says why that is known without the kernel's word.
    #[must_use]
    pub fn recovered(id: &str, reason: Option<&str>) -> Self {
        let message = reason.map_or_else(
            || format!("Successfully recover chaos for {id}"),
            |reason| format!("Successfully recover chaos for {id}: {reason}"),
        );
        Self::normal(names::EVENT_RECOVERED, "recovered", message).with("id", id)
    }

    /// Something failed.
    #[must_use]
    pub fn failed(activity: &str, error: &str) -> Self {
        Self {
            warning: true,
            ..Self::normal(
                names::EVENT_FAILED,
                "failed",
                format!("Failed to {activity}: {error}"),
            )
        }
        .with("activity", activity)
        .with("err", error)
    }

    /// The document breaks a rule, or asks for what is not built.
    #[must_use]
    pub fn refused(problem: &str) -> Self {
        Self {
            warning: true,
            ..Self::normal(names::EVENT_FAILED, "failed", problem)
        }
        .with("activity", "validate")
        .with("err", problem)
    }

    /// This node or this pod cannot have it.
    #[must_use]
    pub fn not_supported(id: &str, reason: &str) -> Self {
        Self {
            warning: true,
            ..Self::normal(
                names::EVENT_NOT_SUPPORTED,
                "not-supported",
                format!("{id}: {reason}"),
            )
        }
        .with("activity", "apply chaos")
        .with("id", id)
    }
}

fn cut(mut message: String) -> String {
    if message.len() > MAX_MESSAGE {
        let mut end = MAX_MESSAGE - "…".len();
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        message.truncate(end);
        message.push('…');
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let notice = Notice::refused(&"ä".repeat(1000));
        assert!(notice.message.len() <= MAX_MESSAGE);
        assert!(notice.message.ends_with('…'));
    }

    #[test]
    fn a_refusal_is_the_rule_word_for_word() {
        let notice = Notice::refused("spec.value: 0: mode fixed needs more; set it");
        assert_eq!(
            notice.message,
            "spec.value: 0: mode fixed needs more; set it"
        );
        assert!(notice.warning);
    }
}

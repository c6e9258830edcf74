//! What is in the API but not built yet, by name.
//!
//! One table serves both ends: the schema refuses a document by the CEL expression, and what comes
//! past the schema (a file, an object that was stored before) is refused by the Rust function.
//! Building a feature means taking its row away.

use crate::v1alpha1::NetworkChaosSpec;
use crate::validate::Errors;

/// Something of the API that is not built yet.
pub struct Gap {
    /// Path of the field below the spec.
    pub field: &'static str,
    /// What is there, if it asks for what is missing.
    pub asked: fn(&NetworkChaosSpec) -> Option<String>,
    /// The same as a CEL expression over `self`, the spec: true if it asks for what is missing.
    pub cel: &'static str,
    /// CEL expression for what is there, as text.
    pub cel_value: &'static str,
    /// The rule that refuses it.
    pub rule: &'static str,
    /// What the user can do.
    pub advice: &'static str,
}

/// All of NetworkChaos.
pub const NETWORK_GAPS: &[Gap] = &[
    Gap {
        field: "remoteCluster",
        asked: |spec| not_empty(spec.lifecycle.remote_cluster.as_ref()),
        cel: "has(self.remoteCluster) && self.remoteCluster != ''",
        cel_value: "self.remoteCluster",
        rule: "experiments in another cluster are not built yet",
        advice: "remove it, and apply the experiment in that cluster",
    },
    Gap {
        field: "faultline.guards",
        asked: |spec| {
            spec.lifecycle
                .faultline
                .as_ref()?
                .guards
                .as_ref()
                .map(|_| "set".to_owned())
        },
        cel: "has(self.faultline) && has(self.faultline.guards)",
        cel_value: "'set'",
        rule: "guards are not built yet",
        advice: "remove the block, and bound the experiment by mode, value and duration",
    },
    Gap {
        field: "faultline.exemptProbes",
        asked: |spec| {
            let asked = spec.lifecycle.faultline.as_ref()?.exempt_probes?;
            asked.then(|| "true".to_owned())
        },
        cel: "has(self.faultline) && has(self.faultline.exemptProbes) && self.faultline.exemptProbes",
        cel_value: "'true'",
        rule: "exempting the kubelet's probes is not built yet",
        advice: "remove it, and select a target so that probes pass",
    },
];

pub(super) fn check(spec: &NetworkChaosSpec, at: &str, errors: &mut Errors) {
    for gap in NETWORK_GAPS {
        if let Some(value) = (gap.asked)(spec) {
            errors.add(format!("{at}.{}", gap.field), value, gap.rule, gap.advice);
        }
    }
}

fn not_empty(field: Option<&String>) -> Option<String> {
    field.filter(|value| !value.is_empty()).cloned()
}

//! What is in the API but not built yet, by name.
//!
//! One table serves both ends: the schema refuses a document by the CEL expression, and what comes
//! past the schema (a file, an object that was stored before) is refused by the Rust function.
//! Building a feature means taking its row away.

use crate::v1alpha1::Lifecycle;
use crate::validate::Errors;

/// Something of the API that is not built yet.
pub struct Gap {
    /// Path of the field below the spec.
    pub field: &'static str,
    /// What is there, if it asks for what is missing.
    pub asked: fn(&Lifecycle) -> Option<String>,
    /// The same as a CEL expression over `self`, the spec: true if it asks for what is missing.
    pub cel: &'static str,
    /// CEL expression for what is there, as text.
    pub cel_value: &'static str,
    /// The rule that refuses it.
    pub rule: &'static str,
    /// What the user can do.
    pub advice: &'static str,
}

/// Of every kind.
pub const GAPS: &[Gap] = &[
    Gap {
        field: "remoteCluster",
        asked: |lifecycle| not_empty(lifecycle.remote_cluster.as_ref()),
        cel: "has(self.remoteCluster) && self.remoteCluster != ''",
        cel_value: "self.remoteCluster",
        rule: "experiments in another cluster are not built yet",
        advice: "remove it, and apply the experiment in that cluster",
    },
    Gap {
        field: "faultline.guards",
        asked: |lifecycle| {
            lifecycle
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
        asked: |lifecycle| {
            let asked = lifecycle.faultline.as_ref()?.exempt_probes?;
            asked.then(|| "true".to_owned())
        },
        cel: "has(self.faultline) && has(self.faultline.exemptProbes) && self.faultline.exemptProbes",
        cel_value: "'true'",
        rule: "exempting the kubelet's probes is not built yet",
        advice: "remove it, and select a target so that probes pass",
    },
];

/// Of NetworkChaos, beside [`GAPS`]: what only clocks have.
pub const NETWORK_GAPS: &[Gap] = &[
    Gap {
        field: "faultline.rate",
        asked: |lifecycle| lifecycle.faultline.as_ref()?.rate.clone(),
        cel: "has(self.faultline) && has(self.faultline.rate)",
        cel_value: "self.faultline.rate",
        rule: "this is how fast a clock runs, and packets have none",
        advice: "remove it; the rate of packets is spec.rate.rate",
    },
    Gap {
        field: "faultline.jumps",
        asked: |lifecycle| {
            let jumps = &lifecycle.faultline.as_ref()?.jumps;
            (!jumps.is_empty()).then(|| "set".to_owned())
        },
        cel: "has(self.faultline) && has(self.faultline.jumps) && size(self.faultline.jumps) > 0",
        cel_value: "'set'",
        rule: "these are steps of a clock, and packets have none",
        advice: "remove them, or use kind TimeChaos",
    },
];

/// Of TimeChaos, beside [`GAPS`].
pub const TIME_GAPS: &[Gap] = &[Gap {
    field: "faultline.sample",
    asked: |lifecycle| {
        let sample = lifecycle.faultline.as_ref()?.sample.as_ref();
        sample.map(|_| "set".to_owned())
    },
    cel: "has(self.faultline) && has(self.faultline.sample)",
    cel_value: "'set'",
    rule: "a clock that is right in some calls and wrong in others is not built yet",
    advice: "remove the block",
}];

pub(super) fn check(gaps: &[Gap], lifecycle: &Lifecycle, at: &str, errors: &mut Errors) {
    for gap in gaps {
        if let Some(value) = (gap.asked)(lifecycle) {
            errors.add(format!("{at}.{}", gap.field), value, gap.rule, gap.advice);
        }
    }
}

fn not_empty(field: Option<&String>) -> Option<String> {
    field.filter(|value| !value.is_empty()).cloned()
}

//! What is in the API but not built yet, by name.
//!
//! One table serves both ends: the schema refuses a document by the CEL expression, and what comes
//! past the schema (a file, an object that was stored before) is refused by the Rust function.
//! Building a feature means taking its row away.

use crate::v1alpha1::{NetworkAction, NetworkChaosSpec};
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
        field: "action",
        asked: |spec| action(spec, NetworkAction::Duplicate),
        cel: "self.action == 'duplicate'",
        cel_value: "self.action",
        rule: "action duplicate is not built yet",
        advice: USE_BUILT,
    },
    Gap {
        field: "action",
        asked: |spec| action(spec, NetworkAction::Corrupt),
        cel: "self.action == 'corrupt'",
        cel_value: "self.action",
        rule: "action corrupt is not built yet",
        advice: USE_BUILT,
    },
    Gap {
        field: "action",
        asked: |spec| action(spec, NetworkAction::Bandwidth),
        cel: "self.action == 'bandwidth'",
        cel_value: "self.action",
        rule: "action bandwidth is not built yet",
        advice: USE_BUILT,
    },
    Gap {
        field: "duplicate",
        asked: |spec| spec.duplicate.as_ref().map(|block| block.duplicate.clone()),
        cel: "has(self.duplicate)",
        cel_value: "self.duplicate.duplicate",
        rule: "duplicate is not built yet",
        advice: "remove the block; delay, loss and partition are built",
    },
    Gap {
        field: "corrupt",
        asked: |spec| spec.corrupt.as_ref().map(|block| block.corrupt.clone()),
        cel: "has(self.corrupt)",
        cel_value: "self.corrupt.corrupt",
        rule: "corrupt is not built yet",
        advice: "remove the block; delay, loss and partition are built",
    },
    Gap {
        field: "rate",
        asked: |spec| spec.rate.as_ref().map(|block| block.rate.clone()),
        cel: "has(self.rate)",
        cel_value: "self.rate.rate",
        rule: "rate is not built yet",
        advice: "remove the block; delay, loss and partition are built",
    },
    Gap {
        field: "bandwidth",
        asked: |spec| spec.bandwidth.as_ref().map(|block| block.rate.clone()),
        cel: "has(self.bandwidth)",
        cel_value: "self.bandwidth.rate",
        rule: "bandwidth is not built yet",
        advice: "remove the block; delay, loss and partition are built",
    },
    Gap {
        field: "delay.jitter",
        asked: |spec| above_zero(spec.delay.as_ref()?.jitter.as_ref()),
        cel: "has(self.delay) && has(self.delay.jitter) && self.delay.jitter.matches('[1-9]')",
        cel_value: "self.delay.jitter",
        rule: "jitter is not built yet",
        advice: "remove it; latency without jitter is built",
    },
    Gap {
        field: "delay.correlation",
        asked: |spec| above_zero(spec.delay.as_ref()?.correlation.as_ref()),
        cel: "has(self.delay) && has(self.delay.correlation) && self.delay.correlation.matches('^[^eE]*[1-9]')",
        cel_value: "self.delay.correlation",
        rule: "correlation is not built yet",
        advice: "remove it",
    },
    Gap {
        field: "delay.reorder",
        asked: |spec| Some(spec.delay.as_ref()?.reorder.as_ref()?.reorder.clone()),
        cel: "has(self.delay) && has(self.delay.reorder)",
        cel_value: "self.delay.reorder.reorder",
        rule: "reorder is not built yet",
        advice: "remove the block; latency is built",
    },
    Gap {
        field: "loss.correlation",
        asked: |spec| above_zero(spec.loss.as_ref()?.correlation.as_ref()),
        cel: "has(self.loss) && has(self.loss.correlation) && self.loss.correlation.matches('^[^eE]*[1-9]')",
        cel_value: "self.loss.correlation",
        rule: "correlation is not built yet",
        advice: "remove it; loss without correlation is built",
    },
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

const USE_BUILT: &str = "use delay, loss, partition, or netem with the blocks delay and loss";

pub(super) fn check(spec: &NetworkChaosSpec, at: &str, errors: &mut Errors) {
    for gap in NETWORK_GAPS {
        if let Some(value) = (gap.asked)(spec) {
            errors.add(format!("{at}.{}", gap.field), value, gap.rule, gap.advice);
        }
    }
}

fn action(spec: &NetworkChaosSpec, action: NetworkAction) -> Option<String> {
    (spec.action == action).then(|| action.as_str().to_owned())
}

fn not_empty(field: Option<&String>) -> Option<String> {
    field.filter(|value| !value.is_empty()).cloned()
}

/// A number that is not zero has another digit than zero in front of its exponent.
fn above_zero(field: Option<&String>) -> Option<String> {
    let is_zero = |text: &str| {
        let mantissa = text.split(['e', 'E']).next().unwrap_or_default();
        !mantissa.contains(|c: char| ('1'..='9').contains(&c))
    };
    field.filter(|value| !is_zero(value)).cloned()
}

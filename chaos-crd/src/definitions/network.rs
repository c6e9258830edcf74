//! Bounds and rules of NetworkChaos.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::JSONSchemaProps;

use crate::definitions::shared::{self, NOT_ZERO};
use crate::definitions::{at, message, rule};
use chaos_api::rate::RateError;

/// Blocks that act together, whatever the action is called; but not in a partition.
const BLOCKS: [&str; 6] = ["delay", "loss", "duplicate", "corrupt", "rate", "bandwidth"];

/// A whole number of at most 18 digits and a unit, as [`chaos_api::rate::parse`] reads it.
const RATE: &str = r"(?i)^\\s*[0-9]{1,18}\\s*[kmgt]?(bit|bps)\\s*$";

/// One of those that is less than a byte a second.
const NO_RATE: &str = r"(?i)^\\s*(0+\\s*[kmgt]?(bit|bps)|0*[0-7]\\s*bit)\\s*$";

/// One number with one unit.
const LATENCY: &str = "^[0-9]+([.][0-9]+)?(ns|us|ms|s|m|h)$";

pub(super) fn add_rules(spec: &mut JSONSchemaProps) {
    at(spec, "target", shared::pod_selector);
    at(spec, "externalTargets", |list| list.max_items = Some(256));
    at(spec, "externalTargets.[]", |target| {
        target.max_length = Some(320)
    });
    for field in ["device", "targetDevice"] {
        at(spec, field, device);
    }
    for field in ["rate.rate", "bandwidth.rate"] {
        at(spec, field, rate);
    }
    blocks(spec);
    delay(spec);
    latency_of(spec);
    shares(spec);
}

/// The block that the action is named after must be there.
fn blocks(spec: &mut JSONSchemaProps) {
    for action in ["delay", "loss", "duplicate", "corrupt", "bandwidth"] {
        rule(
            spec,
            action,
            format!("self.action != '{action}' || has(self.{action})"),
            message(
                "'not set'",
                &format!("action {action} needs this block"),
                &format!("set spec.{action}, or use action netem for the blocks that are set"),
            ),
        );
    }
    let any = BLOCKS
        .map(|block| format!("has(self.{block})"))
        .join(" || ");
    rule(
        spec,
        "action",
        format!("self.action != 'netem' || {any}"),
        message(
            "self.action",
            "none of its blocks is set, so it would do nothing",
            "set spec.delay, spec.loss or another block",
        ),
    );
    for block in BLOCKS {
        rule(
            spec,
            block,
            format!("self.action != 'partition' || !has(self.{block})"),
            message(
                "'set'",
                "action partition lets nothing pass, so nothing could apply this block",
                "remove the block, or use action netem",
            ),
        );
    }
}

fn delay(spec: &mut JSONSchemaProps) {
    for field in ["delay.latency", "delay.jitter"] {
        at(spec, field, |field| {
            field.max_length = Some(16);
            // The pattern, which is upstream's, says the same less clearly.
            rule(
                field,
                "",
                format!("self.matches('{LATENCY}')"),
                message(
                    "(self == '' ? 'empty' : self)",
                    "must be one number with one unit (ns, us, ms, s, m, h)",
                    "write it like 100ms or 0.5s",
                ),
            );
        });
    }
    at(spec, "delay.latency", |latency| {
        rule(
            latency,
            "",
            format!("!self.matches('{LATENCY}') || duration(self) <= duration('1h')"),
            message(
                "self",
                "must be at most 1h",
                "write a shorter time, or use action partition",
            ),
        );
    });
    let other = ["loss", "duplicate", "corrupt"]
        .map(|block| format!("(has(self.{block}) && self.{block}.{block}.matches('{NOT_ZERO}'))"))
        .join(" || ");
    rule(
        spec,
        "delay.latency",
        format!(
            "!has(self.delay) || self.delay.latency.matches('[1-9]') || (self.action != 'delay' && \
             (has(self.rate) || has(self.bandwidth) || {other}))"
        ),
        message(
            "self.delay.latency",
            "a latency of 0 delays nothing",
            "write it like 100ms",
        ),
    );
}

/// What needs a latency, and how much it may be.
fn latency_of(spec: &mut JSONSchemaProps) {
    let latency = "self.delay.latency.matches('[1-9]')";
    let needs = "needs a latency above 0: it changes how long packets wait";
    rule(
        spec,
        "delay.jitter",
        format!(
            "!has(self.delay) || !has(self.delay.jitter) || !self.delay.jitter.matches('[1-9]') || {latency}"
        ),
        message(
            "self.delay.jitter",
            needs,
            "set spec.delay.latency, or remove it",
        ),
    );
    rule(
        spec,
        "delay.reorder.reorder",
        format!("!has(self.delay) || !has(self.delay.reorder) || {latency}"),
        message(
            "self.delay.reorder.reorder",
            needs,
            "set spec.delay.latency, or remove it",
        ),
    );
    let both =
        ["latency", "jitter"].map(|field| format!("self.delay.{field}.matches('{LATENCY}')"));
    rule(
        spec,
        "delay.jitter",
        format!(
            "!has(self.delay) || !has(self.delay.jitter) || !({}) || \
             duration(self.delay.latency) > duration('1h') || \
             duration(self.delay.latency) + duration(self.delay.jitter) <= duration('1h') || \
             !self.delay.jitter.matches('[1-9]')",
            both.join(" && ")
        ),
        message(
            "self.delay.jitter",
            "must be at most 1h together with the latency",
            "write a shorter time",
        ),
    );
    at(spec, "delay.reorder.gap", |gap| {
        rule(
            gap,
            "",
            "self >= 0",
            // The text of a number costs more than the API server lets a schema cost.
            message(
                "'a negative number'",
                "must not be negative",
                "write 1 to let any packet overtake, or a larger number",
            ),
        );
    });
}

fn rate(field: &mut JSONSchemaProps) {
    field.max_length = Some(64);
    rule(
        field,
        "",
        format!("self.matches('{RATE}')"),
        message(
            "(self == '' ? 'empty' : self)",
            &RateError::Form.to_string(),
            "write it like 1mbit or 100kbps",
        ),
    );
    rule(
        field,
        "",
        format!("!self.matches('{NO_RATE}')"),
        message(
            "self",
            &RateError::Nothing.to_string(),
            "write it like 1mbit or 100kbps",
        ),
    );
}

fn shares(spec: &mut JSONSchemaProps) {
    let blocks = ["loss", "duplicate", "corrupt"];
    for block in blocks {
        at(spec, &format!("{block}.{block}"), shared::share);
        let others = BLOCKS
            .iter()
            .filter(|other| **other != block)
            .map(|other| format!("has(self.{other})"))
            .collect::<Vec<_>>()
            .join(" || ");
        rule(
            spec,
            &format!("{block}.{block}"),
            format!(
                "!has(self.{block}) || self.{block}.{block}.matches('{NOT_ZERO}') || (self.action != \
                 '{block}' && ({others}))"
            ),
            message(
                &format!("self.{block}.{block}"),
                shared::NO_SHARE,
                shared::SHARE_ADVICE,
            ),
        );
    }
    for block in ["delay", "delay.reorder", "loss", "duplicate", "corrupt"] {
        at(spec, &format!("{block}.correlation"), shared::correlation);
    }
    at(spec, "delay.reorder.reorder", shared::share_above_zero);
}

fn device(field: &mut JSONSchemaProps) {
    field.max_length = Some(64);
    rule(
        field,
        "",
        r"self.matches('^[^/:@\\s]{0,15}(@.*)?$')",
        message(
            "self",
            "a network device has a name of at most 15 bytes without / : or spaces",
            "write it as ip link shows it in the pod, or remove it for eth0",
        ),
    );
}

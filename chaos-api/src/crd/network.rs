//! Bounds and rules of NetworkChaos.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::JSONSchemaProps;

use crate::crd::shared::{self, NOT_ZERO};
use crate::crd::{at, message, quoted, rule};
use crate::validate::NETWORK_GAPS;

/// Blocks that actions of the netem family read.
const NETEM_BLOCKS: [&str; 5] = ["delay", "loss", "duplicate", "corrupt", "rate"];

/// One number with one unit.
const LATENCY: &str = "^[0-9]+([.][0-9]+)?(ns|us|ms|s|m|h)$";

pub(super) fn add_rules(spec: &mut JSONSchemaProps) {
    shared::immutable(spec);
    shared::pod_selector(spec);
    at(spec, "target", shared::pod_selector);
    shared::lifecycle(spec);
    at(spec, "externalTargets", |list| list.max_items = Some(256));
    at(spec, "externalTargets.[]", |target| {
        target.max_length = Some(320)
    });
    for field in ["device", "targetDevice"] {
        at(spec, field, device);
    }
    for field in ["rate.rate", "bandwidth.rate"] {
        at(spec, field, |rate| rate.max_length = Some(64));
    }
    blocks(spec);
    direction(spec);
    delay(spec);
    shares(spec);
    for gap in NETWORK_GAPS {
        let refused = format!("!({})", gap.cel);
        rule(
            spec,
            gap.field,
            refused,
            message(gap.cel_value, gap.rule, gap.advice),
        );
    }
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
    let any = NETEM_BLOCKS
        .map(|block| format!("has(self.{block})"))
        .join(" || ");
    rule(
        spec,
        "action",
        format!("self.action != 'netem' || {any}"),
        message(
            "self.action",
            "none of its blocks is set, so it would do nothing",
            "set spec.delay or spec.loss",
        ),
    );
    for block in NETEM_BLOCKS {
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

fn direction(spec: &mut JSONSchemaProps) {
    // The API server has filled in `to` before it looks.
    let exempt = "self.action == 'partition' || !has(self.direction) || self.direction == 'to'";
    let action = |rest: &str| {
        format!(
            "self.direction + ': action ' + self.action + {}",
            quoted(rest)
        )
    };
    rule(
        spec,
        "direction",
        format!("{exempt} || has(self.target)"),
        action(
            " in this direction happens on the target pods, and there is no target; set spec.target, or \
             direction to",
        ),
    );
    rule(
        spec,
        "direction",
        format!("{exempt} || !has(self.externalTargets) || size(self.externalTargets) == 0"),
        action(
            " cannot happen on externalTargets, which are outside the cluster; set direction to, or remove \
             spec.externalTargets",
        ),
    );
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
             (has(self.rate) || {other}))"
        ),
        message(
            "self.delay.latency",
            "a latency of 0 delays nothing",
            "write it like 100ms",
        ),
    );
}

fn shares(spec: &mut JSONSchemaProps) {
    let blocks = ["loss", "duplicate", "corrupt"];
    for block in blocks {
        at(spec, &format!("{block}.{block}"), shared::share);
        let others = NETEM_BLOCKS
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
                "0 percent hits nothing",
                "write a number above 0, up to 100, in quotes",
            ),
        );
    }
    for block in ["delay", "delay.reorder", "loss", "duplicate", "corrupt"] {
        at(spec, &format!("{block}.correlation"), shared::correlation);
    }
    at(spec, "delay.reorder.reorder", shared::share);
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

//! What all kinds share: columns, and bounds and rules of selectors, modes, durations, `faultline`.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceColumnDefinition, JSONSchemaProps, ValidationRule,
};

use crate::definitions::{at, message, rule};
use chaos_api::duration::DurationError;
use chaos_api::validate::Gap;

/// A Go duration: signs, fractions and several parts, as `duration::parse` takes it.
pub(super) const DURATION: &str = r"^[-+]?(([0-9]+([.][0-9]*)?|[.][0-9]+)(ns|us|µs|μs|ms|s|m|h))+$";

/// A number as `percent::parse_ppm` takes it. Two digits of exponent keep it finite.
const NUMBER: &str = r"^[-+]?([0-9]+([.][0-9]*)?|[.][0-9]+)([eE][-+]?[0-9]{1,2})?$";

/// A digit other than zero in front of the exponent: the number is not zero.
pub(super) const NOT_ZERO: &str = "^[^eE]*[1-9]";

/// What a share of zero breaks, as `validate` says it, too.
pub(super) const NO_SHARE: &str = "0 percent hits nothing";
pub(super) const SHARE_ADVICE: &str = "write a number above 0, up to 100, in quotes";

/// Bounds, so that the API server can tell what a rule costs. They are far above real use.
const MAX_ITEMS: i64 = 256;
const MAX_PODS: i64 = 1024;
const MAX_NAME: i64 = 253;
const MAX_TEXT: i64 = 4096;
const MAX_NUMBER: i64 = 64;

/// Of clocks; [`chaos_api::clock::MAX_JUMPS`].
const MAX_JUMPS: i64 = chaos_api::clock::MAX_JUMPS as i64;

/// A column of `kubectl get`.
pub(super) fn column(
    name: &str,
    type_: &str,
    path: &str,
    text: &str,
) -> CustomResourceColumnDefinition {
    CustomResourceColumnDefinition {
        name: name.to_owned(),
        type_: type_.to_owned(),
        json_path: path.to_owned(),
        description: Some(text.to_owned()),
        ..CustomResourceColumnDefinition::default()
    }
}

/// Those behind the kind's own; `hits` says what is counted.
pub(super) fn columns(hits: &str) -> [CustomResourceColumnDefinition; 5] {
    [
        column(
            "phase",
            "string",
            ".status.faultline.phase",
            "Where the experiment is.",
        ),
        column(
            "injected",
            "string",
            ".status.faultline.injected",
            "Injected records of all records.",
        ),
        column("hits", "integer", ".status.faultline.hits", hits),
        column(
            "time left",
            "string",
            ".status.faultline.timeLeft",
            "Until it ends, as of the last write of the status.",
        ),
        CustomResourceColumnDefinition {
            // With -o wide only.
            priority: Some(1),
            ..column("duration", "string", ".spec.duration", "How long it lasts.")
        },
    ]
}

/// What the spec of each kind has: sources, a lifecycle, and that it never changes.
pub(super) fn every_kind(spec: &mut JSONSchemaProps) {
    immutable(spec);
    pod_selector(spec);
    lifecycle(spec);
}

/// The spec of an experiment never changes.
fn immutable(spec: &mut JSONSchemaProps) {
    spec.x_kubernetes_validations.get_or_insert_default().push(ValidationRule {
        rule: "self == oldSelf".to_owned(),
        message: Some(
            "Cannot update chaos spec: an experiment stays what it was; delete it and apply the new one"
                .to_owned(),
        ),
        ..ValidationRule::default()
    });
}

/// Where `selector`, `mode` and `value` are.
pub(super) fn pod_selector(schema: &mut JSONSchemaProps) {
    let value = "(has(self.value) ? self.value : 'not set')";
    let needs = |what: &str| {
        let advice = format!("; set value to {what}, in quotes");
        format!("{value} + ': mode ' + self.mode + ' needs {what}{advice}'")
    };
    rule(
        schema,
        "value",
        "self.mode != 'fixed' || (has(self.value) && self.value.matches('^[+]?0*[1-9][0-9]{0,17}$'))",
        needs("a whole number above 0"),
    );
    rule(
        schema,
        "value",
        "!(self.mode in ['fixed-percent', 'random-max-percent']) || (has(self.value) && \
         self.value.matches('^[+]?0*([1-9][0-9]?|100)$'))",
        needs("a whole number from 1 to 100"),
    );
    at(schema, "value", |value| value.max_length = Some(MAX_NUMBER));
    at(schema, "selector", selector);
}

fn selector(schema: &mut JSONSchemaProps) {
    for list in [
        "namespaces",
        "nodes",
        "podPhaseSelectors",
        "expressionSelectors",
    ] {
        at(schema, list, |list| list.max_items = Some(MAX_ITEMS));
    }
    for names in ["namespaces.[]", "nodes.[]", "pods.{}.[]"] {
        at(schema, names, |name| name.max_length = Some(MAX_NAME));
    }
    for map in [
        "labelSelectors",
        "fieldSelectors",
        "annotationSelectors",
        "nodeSelectors",
        "pods",
    ] {
        at(schema, map, |map| map.max_properties = Some(MAX_ITEMS));
    }
    for map in ["labelSelectors", "fieldSelectors", "nodeSelectors"] {
        at(schema, &format!("{map}.{{}}"), |value| {
            value.max_length = Some(MAX_NAME)
        });
    }
    at(schema, "annotationSelectors.{}", |value| {
        value.max_length = Some(MAX_TEXT)
    });
    at(schema, "pods.{}", |names| names.max_items = Some(MAX_PODS));
    at(schema, "pods", |pods| {
        rule(
            pods,
            "",
            "size(self) == 0 || self.exists(each, size(self[each]) > 0)",
            message(
                "'no pod'",
                "a list of pods replaces every other part of the selector, and this one is empty",
                "name a pod, or remove the field",
            ),
        );
    });
    at(schema, "podPhaseSelectors.[]", |phase| {
        phase.max_length = Some(MAX_NUMBER);
        rule(
            phase,
            "",
            "self.matches('^!?(Pending|Running|Succeeded|Failed|Unknown)$')",
            message(
                "self",
                "pods have no such phase",
                "use one of Pending, Running, Succeeded, Failed, Unknown, with ! in front to exclude it",
            ),
        );
    });
    at(schema, "expressionSelectors.[]", requirement);
}

fn requirement(schema: &mut JSONSchemaProps) {
    at(schema, "key", |key| key.max_length = Some(MAX_NAME + 64));
    at(schema, "operator", |operator| {
        operator.max_length = Some(MAX_NUMBER);
        rule(
            operator,
            "",
            "self in ['In', 'NotIn', 'Exists', 'DoesNotExist']",
            message(
                "self",
                "this operator does not exist",
                "use In, NotIn, Exists or DoesNotExist",
            ),
        );
    });
    at(schema, "values", |values| {
        values.max_items = Some(MAX_ITEMS)
    });
    at(schema, "values.[]", |value| {
        value.max_length = Some(MAX_NAME)
    });
    rule(
        schema,
        "values",
        "!(self.operator in ['In', 'NotIn']) || (has(self.values) && size(self.values) > 0)",
        "'not set: operator ' + self.operator + ' needs values to compare with; list at least one value'"
            .to_owned(),
    );
    rule(
        schema,
        "values",
        "!(self.operator in ['Exists', 'DoesNotExist']) || !has(self.values) || size(self.values) == 0",
        "'set: operator ' + self.operator + ' takes no values; remove them, or use In or NotIn'"
            .to_owned(),
    );
}

/// Duration, scheduler, `faultline`: flattened into the spec.
fn lifecycle(spec: &mut JSONSchemaProps) {
    at(spec, "duration", |field| {
        duration(field, "remove the field to run until deleted")
    });
    at(spec, "remoteCluster", |name| {
        name.max_length = Some(MAX_NAME)
    });
    rule(
        spec,
        "duration",
        "!has(self.scheduler) || has(self.duration)",
        message(
            "'not set'",
            "with a scheduler, each round needs an end",
            "set spec.duration, or remove spec.scheduler",
        ),
    );
    at(spec, "scheduler.cron", |cron| {
        cron.max_length = Some(MAX_NAME);
        rule(
            cron,
            "",
            r"self.matches('^\\s*(@(yearly|annually|monthly|weekly|daily|midnight|hourly)|@every +[0-9a-z]+|[^@\\s]+(\\s+[^@\\s]+){4})\\s*$')",
            message(
                "self",
                "a cron expression has five fields, or is @every and a duration of whole seconds, or @hourly, \
                 @daily, @midnight, @weekly, @monthly, @yearly, @annually",
                "write it like */5 * * * *, or @every 30s",
            ),
        );
    });
    at(spec, "faultline", faultline);
    rule(
        spec,
        "faultline.orphanTimeout",
        "!has(self.faultline) || !has(self.faultline.orphanTimeout) || !has(self.duration)",
        message(
            "self.faultline.orphanTimeout",
            "an experiment with a duration ends by itself, whether the operator is there or not",
            "remove it, or remove the duration",
        ),
    );
}

fn faultline(schema: &mut JSONSchemaProps) {
    at(schema, "orphanTimeout", |field| {
        duration(field, "remove the field to go on until deleted")
    });
    at(schema, "guards.abortWhen", |text| {
        text.max_length = Some(MAX_TEXT)
    });
    at(schema, "rate", |rate| rate.max_length = Some(MAX_NUMBER));
    at(schema, "jumps", |list| list.max_items = Some(MAX_JUMPS));
    for field in ["jumps.[].after", "jumps.[].by"] {
        at(schema, field, |text| text.max_length = Some(MAX_NUMBER));
    }
    at(schema, "sample.percent", share_above_zero);
}

/// What is not built yet, of all kinds or of one.
pub(super) fn gaps(spec: &mut JSONSchemaProps, gaps: &[Gap]) {
    for gap in gaps {
        let refused = format!("!({})", gap.cel);
        rule(
            spec,
            gap.field,
            refused,
            message(gap.cel_value, gap.rule, gap.advice),
        );
    }
}

/// A duration of either sign, as a string; further rules of the field may rely on its form.
pub(super) fn is_duration(field: &mut JSONSchemaProps, advice: &str) {
    field.max_length = Some(MAX_NUMBER);
    rule(
        field,
        "",
        format!("self.matches('{DURATION}')"),
        message(
            "(self == '' ? 'empty' : self)",
            &DurationError::Empty.to_string(),
            advice,
        ),
    );
}

/// A duration above zero, as a string.
pub(super) fn duration(field: &mut JSONSchemaProps, otherwise: &str) {
    let advice = format!("write it like 30s or 1h30m, or {otherwise}");
    is_duration(field, &advice);
    rule(
        field,
        "",
        format!("!self.matches('{DURATION}') || (!self.startsWith('-') && self.matches('[1-9]'))"),
        message("self", "must be above 0", &advice),
    );
}

/// A percentage from 0 to 100, as a string.
pub(super) fn share(field: &mut JSONSchemaProps) {
    field.max_length = Some(MAX_NUMBER);
    rule(
        field,
        "",
        format!("self.matches('{NUMBER}') && double(self) >= 0.0 && double(self) <= 100.0"),
        message(
            "(self == '' ? 'empty' : self)",
            "must be a number from 0 to 100",
            "write it in quotes, such as \"30\"",
        ),
    );
}

/// A percentage above 0, as a string.
pub(super) fn share_above_zero(field: &mut JSONSchemaProps) {
    share(field);
    rule(
        field,
        "",
        format!("self.matches('{NOT_ZERO}')"),
        message("self", NO_SHARE, SHARE_ADVICE),
    );
}

/// A correlation: a percentage, or empty for the default.
pub(super) fn correlation(field: &mut JSONSchemaProps) {
    field.max_length = Some(MAX_NUMBER);
    rule(
        field,
        "",
        format!(
            "self == '' || (self.matches('{NUMBER}') && double(self) >= 0.0 && double(self) <= 100.0)"
        ),
        message(
            "self",
            "must be a number from 0 to 100",
            "write it in quotes, or remove it",
        ),
    );
}

//! Selectors and modes.

use crate::v1alpha1::{Mode, PodSelector, PodSelectorSpec, SelectorRequirement};
use crate::validate::{Errors, NOT_SET};

/// Fields of a pod that `fieldSelectors` may name: those that the API server can select by.
const POD_FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.schedulerName",
    "spec.serviceAccountName",
    "status.phase",
    "status.podIP",
    "status.nominatedNodeName",
];

/// Phases of a pod.
const POD_PHASES: [&str; 5] = ["Pending", "Running", "Succeeded", "Failed", "Unknown"];

pub(super) fn check(selector: &PodSelector, at: &str, errors: &mut Errors) {
    check_value(selector, at, errors);
    check_spec(&selector.selector, &format!("{at}.selector"), errors);
}

fn check_value(selector: &PodSelector, at: &str, errors: &mut Errors) {
    let (rule, accepted): (_, fn(i64) -> bool) = match selector.mode {
        Mode::One | Mode::All => return,
        Mode::Fixed => ("a whole number above 0", |value| value > 0),
        Mode::FixedPercent | Mode::RandomMaxPercent => ("a whole number from 1 to 100", |value| {
            (1..=100).contains(&value)
        }),
    };
    let given = selector.value.as_deref();
    if !given
        .and_then(|value| value.parse().ok())
        .is_some_and(accepted)
    {
        let mode = selector.mode.as_str();
        errors.add(
            format!("{at}.value"),
            given.unwrap_or(NOT_SET),
            format!("mode {mode} needs {rule}"),
            format!("set {at}.value to {rule}, in quotes"),
        );
    }
}

fn check_spec(spec: &PodSelectorSpec, at: &str, errors: &mut Errors) {
    for (index, namespace) in spec.namespaces.iter().enumerate() {
        if !is_dns_label(namespace) {
            errors.add(
                format!("{at}.namespaces[{index}]"),
                namespace,
                "no namespace can have this name",
                "write its name as kubectl get namespaces shows it",
            );
        }
    }
    for field in spec.field_selectors.keys() {
        if !POD_FIELDS.contains(&field.as_str()) {
            errors.add(
                format!("{at}.fieldSelectors"),
                field,
                "pods cannot be selected by this field",
                format!("use one of {}", POD_FIELDS.join(", ")),
            );
        }
    }
    check_labels(
        &spec.label_selectors,
        &format!("{at}.labelSelectors"),
        errors,
    );
    check_labels(&spec.node_selectors, &format!("{at}.nodeSelectors"), errors);
    for key in spec
        .annotation_selectors
        .keys()
        .filter(|key| !is_qualified_name(key))
    {
        errors.add(
            format!("{at}.annotationSelectors"),
            key,
            "no annotation can have this key",
            KEY_ADVICE,
        );
    }
    for (index, requirement) in spec.expression_selectors.iter().enumerate() {
        check_requirement(
            requirement,
            &format!("{at}.expressionSelectors[{index}]"),
            errors,
        );
    }
    for (index, node) in spec.nodes.iter().enumerate() {
        if !is_dns_subdomain(node) {
            errors.add(
                format!("{at}.nodes[{index}]"),
                node,
                "no node can have this name",
                "write its name as kubectl get nodes shows it",
            );
        }
    }
    check_pods(spec, at, errors);
    for (index, phase) in spec.pod_phase_selectors.iter().enumerate() {
        let name = phase.strip_prefix('!').unwrap_or(phase);
        if !POD_PHASES.contains(&name) {
            errors.add(
                format!("{at}.podPhaseSelectors[{index}]"),
                phase,
                "pods have no such phase",
                format!(
                    "use one of {}, with ! in front to exclude it",
                    POD_PHASES.join(", ")
                ),
            );
        }
    }
}

fn check_pods(spec: &PodSelectorSpec, at: &str, errors: &mut Errors) {
    for (namespace, names) in &spec.pods {
        let field = format!("{at}.pods.{namespace}");
        if !is_dns_label(namespace) {
            errors.add(
                &field,
                namespace,
                "no namespace can have this name",
                "write its name as kubectl get namespaces shows it",
            );
        }
        for name in names.iter().filter(|name| !is_dns_subdomain(name)) {
            errors.add(
                &field,
                name,
                "no pod can have this name",
                "write its name as kubectl get pods shows it",
            );
        }
    }
    if !spec.pods.is_empty() && spec.pods.values().all(Vec::is_empty) {
        errors.add(
            format!("{at}.pods"),
            "no pod",
            "a list of pods replaces every other part of the selector, and this one is empty",
            "name a pod, or remove the field",
        );
    }
}

fn check_requirement(requirement: &SelectorRequirement, at: &str, errors: &mut Errors) {
    let SelectorRequirement {
        key,
        operator,
        values,
    } = requirement;
    if !is_qualified_name(key) {
        errors.add(
            format!("{at}.key"),
            key,
            "no label can have this key",
            KEY_ADVICE,
        );
    }
    match (operator.as_str(), values.is_empty()) {
        ("In" | "NotIn", true) => errors.add(
            format!("{at}.values"),
            NOT_SET,
            format!("operator {operator} needs values to compare with"),
            "list at least one value",
        ),
        ("Exists" | "DoesNotExist", false) => errors.add(
            format!("{at}.values"),
            values.join(", "),
            format!("operator {operator} takes no values"),
            "remove them, or use In or NotIn",
        ),
        ("In" | "NotIn" | "Exists" | "DoesNotExist", _) => {}
        _ => errors.add(
            format!("{at}.operator"),
            operator,
            "this operator does not exist",
            "use In, NotIn, Exists or DoesNotExist",
        ),
    }
    for value in values.iter().filter(|value| !is_label_value(value)) {
        errors.add(
            format!("{at}.values"),
            value,
            "no label can have this value",
            VALUE_ADVICE,
        );
    }
}

fn check_labels(
    labels: &std::collections::BTreeMap<String, String>,
    field: &str,
    errors: &mut Errors,
) {
    for (key, value) in labels {
        if !is_qualified_name(key) {
            errors.add(field, key, "no label can have this key", KEY_ADVICE);
        }
        if !is_label_value(value) {
            errors.add(
                format!("{field}.{key}"),
                value,
                "no label can have this value",
                VALUE_ADVICE,
            );
        }
    }
}

const KEY_ADVICE: &str = "use letters, digits, -, _ and ., at most 63, begun and ended by a letter or \
                          digit, and if need be a DNS name and / in front";
const VALUE_ADVICE: &str =
    "use letters, digits, -, _ and ., at most 63, begun and ended by a letter or digit";

fn is_qualified_name(key: &str) -> bool {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    prefix.is_none_or(is_dns_subdomain) && !name.is_empty() && is_label_value(name)
}

fn is_label_value(value: &str) -> bool {
    value.len() <= 63
        && is_enclosed(value, |byte| byte.is_ascii_alphanumeric())
        && value
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

fn is_dns_subdomain(name: &str) -> bool {
    // Unlike a label of a Service, each part may be longer than 63, as in Kubernetes.
    name.len() <= 253 && name.split('.').all(is_dns_part)
}

fn is_dns_label(name: &str) -> bool {
    name.len() <= 63 && is_dns_part(name)
}

fn is_dns_part(part: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    !part.is_empty()
        && is_enclosed(part, inner)
        && part.bytes().all(|byte| inner(byte) || byte == b'-')
}

/// First and last byte are of this kind; nothing at all is too.
fn is_enclosed(text: &str, kind: impl Fn(u8) -> bool) -> bool {
    let bytes = text.as_bytes();
    [bytes.first(), bytes.last()]
        .into_iter()
        .flatten()
        .all(|byte| kind(*byte))
}

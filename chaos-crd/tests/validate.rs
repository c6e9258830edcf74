//! The same documents against the Rust rules and against the CEL rules of the schema: what is
//! refused here must be refused there, as far as the schema can see it.

use std::collections::BTreeMap;

use chaos_api::validate::FieldError;
use chaos_api::{default, validate};
use chaos_crd::definitions;
use serde_json::{Value, json};

#[derive(serde::Deserialize)]
struct Table {
    base: BTreeMap<String, Value>,
    cases: Vec<Case>,
}

#[derive(serde::Deserialize)]
struct Case {
    name: String,
    spec: BTreeMap<String, Value>,
    #[serde(default)]
    errors: Vec<String>,
    #[serde(default = "seen")]
    schema: bool,
}

fn seen() -> bool {
    true
}

/// Tables of each kind: a kind's directory in `data/`.
const KINDS: [(&str, &str); 2] = [("NetworkChaos", "network"), ("TimeChaos", "time")];

/// The cases of a file of all kinds, with their whole objects.
fn cases(file: &str) -> Vec<(Case, Value)> {
    let of = |(kind, directory)| cases_of(kind, &format!("{directory}/{file}"));
    KINDS.into_iter().flat_map(of).collect()
}

fn cases_of(kind: &str, file: &str) -> Vec<(Case, Value)> {
    let path = format!("{}/tests/data/{file}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).expect("the table can be read");
    let table: Table = serde_norway::from_str(&text).expect("the table has this form");
    let base = table.base;
    let object = |case: Case| {
        let mut spec = base.clone();
        spec.extend(case.spec.clone());
        let object = json!({
            "apiVersion": "chaos-mesh.org/v1alpha1",
            "kind": kind,
            "metadata": { "name": "web", "namespace": "chaos-testing" },
            "spec": spec,
        });
        (case, object)
    };
    table.cases.into_iter().map(object).collect()
}

fn refusals(object: &Value) -> Vec<String> {
    if object["kind"] == "TimeChaos" {
        return verdict(object, default::time_chaos, validate::time_chaos);
    }
    verdict(object, default::network_chaos, validate::network_chaos)
}

fn verdict<S: Clone + serde::de::DeserializeOwned>(
    object: &Value,
    fill_in: fn(&mut S, &str),
    check: fn(&S) -> Vec<FieldError>,
) -> Vec<String> {
    let spec: S = serde_json::from_value(object["spec"].clone()).expect("the case is of its kind");
    let mut defaulted = spec.clone();
    fill_in(&mut defaulted, "chaos-testing");
    let errors = |spec: &S| {
        let errors = check(spec);
        errors.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(
        errors(&spec),
        errors(&defaulted),
        "defaults change no verdict"
    );
    errors(&spec)
}

fn cel_refusals(object: &Value, old: Option<&Value>) -> Vec<String> {
    let crd = definitions::crds()
        .into_iter()
        .find(|crd| object["kind"] == crd.spec.names.kind);
    let crd = crd.expect("there is a CRD of this kind");
    let schema = definitions::schema(&crd).expect("one version with a schema");
    let schema = serde_json::to_value(schema).expect("a schema is JSON");
    match kube_core::cel::Validator::new().validate(&schema, object, old) {
        Ok(()) => Vec::new(),
        Err(errors) => vec![errors.to_string()],
    }
}

#[test]
fn sound_documents_are_accepted_by_the_rules_and_by_the_schema() {
    for (case, object) in cases("accepted.yaml") {
        assert_eq!(refusals(&object), [""; 0], "{}", case.name);
        assert_eq!(cel_refusals(&object, None), [""; 0], "{}", case.name);
    }
}

#[test]
fn bad_documents_are_refused_with_field_value_rule_and_advice() {
    for (case, object) in cases("refused.yaml") {
        assert_eq!(refusals(&object), case.errors, "{}", case.name);
    }
}

#[test]
fn the_schema_refuses_what_it_can_see() {
    for (case, object) in cases("refused.yaml") {
        let refused = cel_refusals(&object, None);
        // Bounds of numbers are the schema's own, not CEL's.
        assert_eq!(
            !refused.is_empty(),
            case.schema,
            "{}: {refused:?}",
            case.name
        );
    }
}

#[test]
fn a_spec_that_changes_is_refused_and_one_that_stays_is_not() {
    let (_, old) = cases("accepted.yaml").remove(1);
    let mut new = old.clone();
    new["metadata"]["annotations"] = json!({ "experiment.chaos-mesh.org/pause": "true" });
    assert_eq!(cel_refusals(&new, Some(&old)), [""; 0]);
    new["spec"]["duration"] = json!("11s");
    let refused = cel_refusals(&new, Some(&old)).join("\n");
    assert!(refused.contains("Cannot update chaos spec"), "{refused}");
}

#[test]
fn values_beyond_an_events_length_are_cut() {
    let spec = json!({ "action": "partition", "mode": "fixed", "value": "é".repeat(2000), "selector": {} });
    let object = json!({ "apiVersion": "", "kind": "NetworkChaos", "metadata": {}, "spec": spec });
    let [refusal] = refusals(&object).try_into().unwrap();
    assert!(
        refusal.starts_with("spec.value: é") && refusal.chars().count() < 300,
        "{refusal}"
    );
}

//! The generated CRDs against the schemas of Chaos Mesh: every field of theirs is in ours, with the
//! same type, enum, pattern, bounds and default, so that a document that was valid there is read the
//! same here.

use std::collections::BTreeMap;

use chaos_crd::definitions;
use serde_json::Value;

/// Keywords of a schema that must be the same where upstream has them.
const SAME: [&str; 7] = [
    "type", "format", "enum", "pattern", "minimum", "maximum", "default",
];

/// Differences of `path: keyword`, walking upstream's schema.
fn missing(upstream: &Value, ours: &Value, path: &str, differences: &mut Vec<String>) {
    for keyword in SAME {
        if let Some(expected) = upstream.get(keyword) {
            let found = ours.get(keyword);
            let same = match (found.and_then(Value::as_f64), expected.as_f64()) {
                (Some(found), Some(expected)) => (found - expected).abs() < f64::EPSILON,
                _ => found == Some(expected),
            };
            if !same {
                differences.push(format!("{path}: {keyword} is {found:?}, not {expected}"));
            }
        }
    }
    let fields = upstream
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flatten();
    for (name, schema) in fields {
        // The root's `metadata` and its like are not in ours; the API server adds them.
        if path.is_empty() && ["apiVersion", "kind", "metadata"].contains(&name.as_str()) {
            continue;
        }
        let path = format!("{path}.{name}");
        match ours.get("properties").and_then(|fields| fields.get(name)) {
            Some(ours) => missing(schema, ours, &path, differences),
            None => differences.push(format!("{path}: missing")),
        }
    }
    for inner in ["items", "additionalProperties"] {
        if let Some(schema) = upstream.get(inner) {
            let ours = ours.get(inner).unwrap_or(&Value::Null);
            missing(schema, ours, &format!("{path}[]"), differences);
        }
    }
    let required = |schema: &Value| {
        let mut names: Vec<String> = schema
            .get("required")
            .and_then(|names| serde_json::from_value(names.clone()).ok())
            .unwrap_or_default();
        names.sort();
        names
    };
    if required(upstream) != required(ours) {
        differences.push(format!(
            "{path}: required is {:?}, not {:?}",
            required(ours),
            required(upstream)
        ));
    }
}

#[test]
fn every_field_of_upstream_is_there_with_the_same_type() {
    for crd in definitions::crds() {
        let path = format!(
            "{}/tests/data/upstream-{}.yaml",
            env!("CARGO_MANIFEST_DIR"),
            crd.spec.names.plural
        );
        let upstream: Value =
            serde_norway::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let ours = serde_json::to_value(&crd).unwrap();
        for names in ["group", "scope", "names"] {
            for (key, expected) in upstream["spec"][names].as_object().into_iter().flatten() {
                if key != "listKind" {
                    assert_eq!(&ours["spec"][names][key], expected, "{names}.{key}");
                }
            }
        }
        assert_eq!(ours["metadata"]["name"], upstream["metadata"]["name"]);
        let schema = |crd: &Value| crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone();
        let mut differences = Vec::new();
        missing(&schema(&upstream), &schema(&ours), "", &mut differences);
        assert_eq!(differences, [""; 0], "{}", crd.spec.names.kind);
    }
}

#[test]
fn the_schema_has_no_nulls_and_a_text_for_every_field_that_a_user_sets() {
    fn walk(schema: &Value, path: &str) {
        assert_eq!(schema.get("nullable"), None, "{path}");
        for (name, field) in schema
            .get("properties")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
        {
            let path = format!("{path}.{name}");
            let text = field
                .get("description")
                .and_then(Value::as_str)
                .unwrap_or_default();
            assert!(
                text.len() > 5 && !text.contains('`'),
                "{path} has the text {text:?}"
            );
            walk(field, &path);
        }
        for inner in ["items", "additionalProperties"] {
            if let Some(schema) = schema.get(inner) {
                walk(schema, &format!("{path}[]"));
            }
        }
    }
    for crd in definitions::crds() {
        walk(
            &serde_json::to_value(definitions::schema(&crd).unwrap()).unwrap(),
            "",
        );
    }
}

#[test]
fn kubectl_get_shows_what_is_done_where_it_is_and_how_much_is_hit() {
    let own = BTreeMap::from([
        ("NetworkChaos", ("action", ".spec.action", 0)),
        ("TimeChaos", ("offset", ".spec.timeOffset", 0)),
    ]);
    for crd in definitions::crds() {
        let kind = crd.spec.names.kind.as_str();
        let columns = crd.spec.versions[0]
            .additional_printer_columns
            .iter()
            .flatten();
        let columns: Vec<_> = columns
            .map(|column| {
                (
                    column.name.as_str(),
                    column.json_path.as_str(),
                    column.priority.unwrap_or(0),
                )
            })
            .collect();
        assert_eq!(
            columns,
            [
                own[kind],
                ("phase", ".status.faultline.phase", 0),
                ("injected", ".status.faultline.injected", 0),
                ("hits", ".status.faultline.hits", 0),
                ("time left", ".status.faultline.timeLeft", 0),
                ("duration", ".spec.duration", 1),
            ],
            "{kind}"
        );
    }
}

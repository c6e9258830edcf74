//! A tree against a structural schema, as the API server and a strict kubectl check it.
//!
//! Structure, types, enums and the bounds of numbers; what CEL and the patterns say is said better
//! by `validate`.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::documents::tree::{Kind, Node};
use crate::validate::{FieldError, NOT_SET};

/// Of each kind by its name, what is looked at here of the schema that an API server is given. Made by
/// `cargo xtask codegen`.
const SCHEMAS: &str = include_str!("schemas.json");

/// What is looked at of a JSON schema in the form of OpenAPI 3.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct Schema {
    r#type: String,
    format: Option<String>,
    properties: BTreeMap<String, Schema>,
    /// Of a list.
    items: Option<Box<Schema>>,
    /// Of a map with any keys.
    additional_properties: Option<Box<Schema>>,
    required: Vec<String>,
    r#enum: Vec<Value>,
    minimum: Option<f64>,
    maximum: Option<f64>,
}

/// The schemas of all kinds by their names.
///
/// # Errors
/// None: the generated file parses, which a test of this module sees.
pub(super) fn all() -> serde_json::Result<BTreeMap<String, Schema>> {
    serde_json::from_str(SCHEMAS)
}

/// Fields of `metadata`, which the schema of a CRD does not hold.
const METADATA: [&str; 15] = [
    "annotations",
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generateName",
    "generation",
    "labels",
    "managedFields",
    "name",
    "namespace",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
];

/// Checks a whole object. Its status is not looked at: whoever applies a file means the spec.
pub(super) fn check_object(root: &Node, schema: &Schema, errors: &mut Vec<FieldError>) {
    let Kind::Map(entries) = &root.kind else {
        return;
    };
    for entry in entries {
        let spec = property(schema, &entry.key);
        match (entry.key.as_str(), spec) {
            ("apiVersion" | "kind" | "status", _) => {}
            ("metadata", _) => check_metadata(&entry.value, errors),
            (key, Some(spec)) => {
                let unknown = Unknown {
                    schema: spec,
                    root: key,
                };
                check(&entry.value, spec, key, &unknown, errors);
            }
            (key, None) => {
                let known = ["apiVersion", "kind", "metadata", "spec"];
                let guess = nearest(key, known.into_iter())
                    .map(str::to_owned)
                    .or_else(|| {
                        let spec = property(schema, "spec")?;
                        find(spec, key, "spec")
                    });
                errors.push(unknown_field(key, &entry.value, guess));
            }
        }
    }
    for required in ["metadata", "spec"] {
        if root.get(required).is_none_or(Node::is_null) {
            errors.push(missing_field(required));
        }
    }
}

fn check_metadata(metadata: &Node, errors: &mut Vec<FieldError>) {
    let Kind::Map(entries) = &metadata.kind else {
        if !metadata.is_null() {
            errors.push(wrong_type(
                "metadata",
                metadata,
                "an object",
                "write its fields below it",
            ));
        }
        return;
    };
    for entry in entries {
        let path = join("metadata", &entry.key);
        match entry.key.as_str() {
            "name" | "namespace" => check_type(&entry.value, "string", &path, errors),
            "labels" | "annotations" => {
                if let Kind::Map(pairs) = &entry.value.kind {
                    for pair in pairs {
                        check_type(&pair.value, "string", &join(&path, &pair.key), errors);
                    }
                }
            }
            key if METADATA.contains(&key) => {}
            key => {
                let guess = nearest(key, METADATA.into_iter()).map(|name| join("metadata", name));
                errors.push(unknown_field(&path, &entry.value, guess));
            }
        }
    }
    if metadata
        .get("name")
        .is_none_or(|name| name.is_null() || name.shown().is_empty())
    {
        errors.push(missing_field("metadata.name"));
    }
}

/// Where to look for a field that is not where it was written.
struct Unknown<'a> {
    schema: &'a Schema,
    root: &'a str,
}

fn check(
    node: &Node,
    schema: &Schema,
    path: &str,
    unknown: &Unknown<'_>,
    errors: &mut Vec<FieldError>,
) {
    if node.is_null() {
        return;
    }
    match (schema.r#type.as_str(), &node.kind) {
        ("object", Kind::Map(_)) => check_fields(node, schema, path, unknown, errors),
        ("object", _) => {
            errors.push(wrong_type(
                path,
                node,
                "an object",
                "write its fields below it",
            ));
        }
        ("array", Kind::List(items)) => {
            let Some(schema) = &schema.items else {
                return;
            };
            for (index, item) in items.iter().enumerate() {
                check(item, schema, &format!("{path}[{index}]"), unknown, errors);
            }
        }
        ("array", _) => {
            errors.push(wrong_type(
                path,
                node,
                "a list",
                "write it in [ ], or with - in front",
            ));
        }
        (kind, _) => {
            let before = errors.len();
            check_type(node, kind, path, errors);
            if errors.len() == before {
                check_value(node, schema, path, errors);
            }
        }
    }
}

fn check_fields(
    node: &Node,
    schema: &Schema,
    path: &str,
    unknown: &Unknown<'_>,
    errors: &mut Vec<FieldError>,
) {
    let Kind::Map(entries) = &node.kind else {
        return;
    };
    for entry in entries {
        let field = join(path, &entry.key);
        let values = schema.additional_properties.as_deref();
        if let Some(inner) = property(schema, &entry.key).or(values) {
            check(&entry.value, inner, &field, unknown, errors);
            continue;
        }
        let siblings = schema.properties.keys().map(String::as_str);
        let guess = nearest(&entry.key, siblings)
            .map(|name| join(path, name))
            .or_else(|| find(unknown.schema, &entry.key, unknown.root));
        errors.push(unknown_field(&field, &entry.value, guess));
    }
    for required in &schema.required {
        if node.get(required).is_none_or(Node::is_null) {
            errors.push(missing_field(&join(path, required)));
        }
    }
}

fn check_type(node: &Node, kind: &str, path: &str, errors: &mut Vec<FieldError>) {
    let (right, article, advice) = match (kind, &node.kind) {
        (_, Kind::Scalar(Value::Null)) => return,
        ("string", Kind::Scalar(value)) => (value.is_string(), "a string", "put it in quotes"),
        ("string", _) => (false, "a string", "write a single value"),
        ("boolean", Kind::Scalar(value)) => (
            value.is_boolean(),
            "true or false",
            "write it without quotes",
        ),
        ("boolean", _) => (false, "true or false", "write a single value"),
        ("integer", Kind::Scalar(value)) => (
            value.is_i64() || value.is_u64(),
            "a whole number",
            "write it without quotes",
        ),
        ("integer", _) => (false, "a whole number", "write a single value"),
        _ => return,
    };
    if !right {
        errors.push(wrong_type(path, node, article, advice));
    }
}

fn check_value(node: &Node, schema: &Schema, path: &str, errors: &mut Vec<FieldError>) {
    let Kind::Scalar(value) = &node.kind else {
        return;
    };
    let mut refuse = |rule: String, advice: String| {
        errors.push(FieldError {
            field: path.to_owned(),
            value: node.shown(),
            rule,
            advice,
        });
    };
    if !schema.r#enum.is_empty() && !schema.r#enum.contains(value) {
        let words: Vec<_> = schema.r#enum.iter().filter_map(Value::as_str).collect();
        let advice = match nearest(&node.shown(), words.iter().copied()) {
            Some(word) => format!("did you mean {word}?"),
            None => "use one of these".to_owned(),
        };
        refuse(format!("must be one of {}", words.join(", ")), advice);
    }
    let Some(number) = value.as_f64() else { return };
    if let Some(minimum) = schema.minimum.filter(|minimum| number < *minimum) {
        refuse(
            format!("must be at least {minimum}"),
            "write a larger number".to_owned(),
        );
    }
    if let Some(maximum) = schema.maximum.filter(|maximum| number > *maximum) {
        refuse(
            format!("must be at most {maximum}"),
            "write a smaller number".to_owned(),
        );
    }
    let largest = match schema.format.as_deref() {
        Some("int32") => i64::from(i32::MAX),
        _ => i64::MAX,
    };
    if value.as_i64().is_none_or(|number| number > largest) {
        refuse(
            format!("must be at most {largest}"),
            "write a smaller number".to_owned(),
        );
    }
}

/// The path of a field.
pub(super) fn join(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

fn property<'a>(schema: &'a Schema, name: &str) -> Option<&'a Schema> {
    schema.properties.get(name)
}

/// The known name that this one is most likely meant to be: at most a third of its letters differ.
fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let lower = name.to_lowercase();
    known
        .map(|known| {
            (
                known,
                strsim::damerau_levenshtein(&lower, &known.to_lowercase()),
            )
        })
        .filter(|(known, distance)| *distance <= (known.len() / 3).max(1))
        .min_by_key(|(_, distance)| *distance)
        .map(|(known, _)| known)
}

/// The path of the shallowest field of exactly this name, below a schema.
fn find(schema: &Schema, name: &str, path: &str) -> Option<String> {
    let mut level = vec![(schema, path.to_owned())];
    while !level.is_empty() {
        let mut next = Vec::new();
        for (schema, path) in level {
            for (field, inner) in &schema.properties {
                if field == name {
                    return Some(join(&path, field));
                }
                next.push((inner, join(&path, field)));
            }
        }
        level = next;
    }
    None
}

fn unknown_field(path: &str, value: &Node, guess: Option<String>) -> FieldError {
    FieldError {
        field: path.to_owned(),
        value: value.shown(),
        rule: "there is no such field".to_owned(),
        advice: match guess {
            Some(guess) => format!("did you mean {guess}?"),
            None => "remove it".to_owned(),
        },
    }
}

fn missing_field(path: &str) -> FieldError {
    FieldError {
        field: path.to_owned(),
        value: NOT_SET.to_owned(),
        rule: "this field is required".to_owned(),
        advice: format!("set {path}"),
    }
}

fn wrong_type(path: &str, node: &Node, article: &str, advice: &str) -> FieldError {
    FieldError {
        field: path.to_owned(),
        value: node.shown(),
        rule: format!("must be {article}"),
        advice: advice.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::documents::Document;

    #[test]
    fn there_is_a_schema_of_each_kind() {
        let schemas = all().unwrap();
        assert!(schemas.keys().eq(&Document::KINDS), "{:?}", schemas.keys());
        for schema in schemas.values() {
            assert!(find(schema, "duration", "").is_some());
        }
    }
}

//! `crds/` and the schemas that `chaos_api::documents` checks files by, from the types. Not here: whether
//! what is committed is that (`xtask/src/codegen.rs`).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::Context;
use chaos_crd::definitions;
use serde_json::{Map, Number, Value};

/// First lines of every generated file that has comments.
const HEAD: &str =
    "# Generated from chaos-api by `cargo xtask codegen`: change the types, then run it.\n";

/// What checks files without an API server.
const SCHEMAS: &str = "chaos-api/src/documents/schemas.json";

/// What it looks at, of a schema that has no more schemas in it.
const KEYWORDS: [&str; 6] = ["type", "format", "required", "enum", "minimum", "maximum"];

/// Writes the generated files below a directory that stands for the root of the repository.
///
/// # Errors
/// If one cannot be written.
pub(crate) fn write(root: &Path) -> anyhow::Result<()> {
    for (file, text) in files()? {
        let path = root.join(file);
        let directory = path.parent().unwrap_or(root);
        fs::create_dir_all(directory)
            .and_then(|()| fs::write(&path, text))
            .with_context(|| format!("failed to write {}", path.display()))?;
    }
    Ok(())
}

/// Each file, by its path from the root of the repository, with its text.
fn files() -> anyhow::Result<BTreeMap<String, String>> {
    let mut files = BTreeMap::new();
    let mut schemas = Map::new();
    for crd in definitions::crds() {
        let names = &crd.spec.names;
        let schema = definitions::schema(&crd).context("a CRD has one version with a schema")?;
        let mut schema = checked_by(&serde_json::to_value(schema)?);
        whole_numbers(&mut schema);
        // A file says what is wanted.
        if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
            properties.retain(|name, _| name == "spec");
        }
        schemas.insert(names.kind.clone(), schema);
        let file = format!("crds/{}_{}.yaml", crd.spec.group, names.plural);
        files.insert(file, render(serde_json::to_value(&crd)?)?);
    }
    let schemas = serde_json::to_string_pretty(&schemas)?;
    files.insert(SCHEMAS.to_owned(), format!("{schemas}\n"));
    Ok(files)
}

/// What of a schema is looked at where there is no API server.
fn checked_by(schema: &Value) -> Value {
    let mut kept = Map::new();
    for keyword in KEYWORDS {
        if let Some(value) = schema.get(keyword) {
            kept.insert(keyword.to_owned(), value.clone());
        }
    }
    for inner in ["items", "additionalProperties"] {
        if let Some(schema) = schema.get(inner).filter(|schema| schema.is_object()) {
            kept.insert(inner.to_owned(), checked_by(schema));
        }
    }
    if let Some(fields) = schema.get("properties").and_then(Value::as_object) {
        let fields = fields
            .iter()
            .map(|(name, schema)| (name.clone(), checked_by(schema)));
        kept.insert("properties".to_owned(), Value::Object(fields.collect()));
    }
    Value::Object(kept)
}

/// YAML as a person would write it: whole numbers without a point.
fn render(mut crd: Value) -> anyhow::Result<String> {
    whole_numbers(&mut crd);
    Ok(format!("{HEAD}{}", serde_norway::to_string(&crd)?))
}

/// The schema's bounds are floating point in the Rust types.
fn whole_numbers(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(whole_numbers),
        Value::Object(fields) => fields.values_mut().for_each(whole_numbers),
        Value::Number(number) => {
            #[expect(
                clippy::cast_possible_truncation,
                reason = "only where nothing is cut off"
            )]
            if let Some(float) = number
                .as_f64()
                .filter(|float| number.is_f64() && float.fract() == 0.0)
            {
                *number = Number::from(float as i64);
            }
        }
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_files_are_what_the_types_say() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let files = files().unwrap();
        for (file, text) in &files {
            let committed = fs::read_to_string(root.join(file)).unwrap();
            assert!(committed == *text, "{file}: run `cargo xtask codegen`");
        }
        for entry in fs::read_dir(root.join("crds")).unwrap() {
            let file = format!("crds/{}", entry.unwrap().file_name().display());
            let is_generated = file.ends_with(".yaml");
            assert!(
                !is_generated || files.contains_key(&file),
                "{file} is no kind's"
            );
        }
    }

    #[test]
    fn bounds_are_written_without_a_point() {
        let text = render(serde_json::json!({ "minimum": 1.0, "maximum": 0.5 })).unwrap();
        assert!(text.ends_with("maximum: 0.5\nminimum: 1\n"), "{text}");
    }
}

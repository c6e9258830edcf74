//! `cargo xtask codegen [--check]`: writes `crds/` from the Rust types of chaos-api.
//!
//! With `--check` nothing is written: each file that is not what it would become is named, and the
//! command fails. Both ways run the same code, so that they cannot disagree.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde_json::{Number, Value};

/// First lines of every generated file.
const HEAD: &str =
    "# Generated from chaos-api by `cargo xtask codegen`: change the types, then run it.\n";

/// Writes the generated files, or with `check` compares them.
///
/// # Errors
/// If a file cannot be read or written; with `check`, if any file is missing, differs, or is not
/// generated any more.
pub(crate) fn run(check: bool) -> anyhow::Result<()> {
    let directory = repository().join("crds");
    let mut drifted = Vec::new();
    let mut expected = Vec::new();
    for crd in chaos_api::crd::crds() {
        let file = format!("{}_{}.yaml", crd.spec.group, crd.spec.names.plural);
        let text = render(serde_json::to_value(&crd)?)?;
        let path = directory.join(&file);
        if fs::read_to_string(&path).ok().as_deref() != Some(&text) {
            if check {
                drifted.push(format!("crds/{file}"));
            } else {
                fs::create_dir_all(&directory)?;
                fs::write(&path, text)
                    .with_context(|| format!("failed to write {}", path.display()))?;
            }
        }
        expected.push(file);
    }
    for stale in stale_files(&directory, &expected)? {
        if check {
            drifted.push(format!("crds/{stale} (not generated any more)"));
        } else {
            let path = directory.join(stale);
            fs::remove_file(&path)
                .with_context(|| format!("failed to remove {}", path.display()))?;
        }
    }
    if !drifted.is_empty() {
        bail!(
            "out of date: {}; run `cargo xtask codegen` and commit the result",
            drifted.join(", ")
        );
    }
    Ok(())
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

fn stale_files(directory: &Path, expected: &[String]) -> anyhow::Result<Vec<String>> {
    let mut stale = Vec::new();
    for entry in fs::read_dir(directory)
        .with_context(|| format!("failed to list {}", directory.display()))?
    {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".yaml") && !expected.contains(&name) {
            stale.push(name);
        }
    }
    Ok(stale)
}

fn repository() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_crds_are_what_the_types_say() {
        run(true).unwrap();
    }

    #[test]
    fn bounds_are_written_without_a_point() {
        let text = render(serde_json::json!({ "minimum": 1.0, "maximum": 0.5 })).unwrap();
        assert!(text.ends_with("maximum: 0.5\nminimum: 1\n"), "{text}");
    }
}

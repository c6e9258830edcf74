//! The CustomResourceDefinitions, made from the Rust types.
//!
//! The derive gives structure and texts; here the schema gets the form that upstream's has (no
//! nulls, no defaults but upstream's), bounds, and the rules of `validate` as far as the API
//! server can see them, in CEL. What it cannot see (the calendar, names of labels) the controller
//! refuses.

use chaos_api::v1alpha1::names::{GROUP, VERSION};
use chaos_api::validate::{GAPS, Gap, NETWORK_GAPS, TIME_GAPS};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceColumnDefinition, CustomResourceDefinition, CustomResourceDefinitionNames,
    CustomResourceDefinitionSpec, CustomResourceDefinitionVersion, CustomResourceSubresourceStatus,
    CustomResourceSubresources, CustomResourceValidation, JSONSchemaProps, JSONSchemaPropsOrArray,
    JSONSchemaPropsOrBool, ValidationRule,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube_core::Resource;
use kube_core::schema::{OptionalEnum, OptionalIntOrString, StructuralSchemaRewriter};
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use schemars::transform::AddNullable;
use serde_json::{Value, json};

use crate::kinds::{NetworkChaos, TimeChaos};

mod network;
mod shared;
mod time;

/// Every CRD of this project, in a stable order.
///
/// They carry texts for `kubectl explain` and so are best applied with `--server-side`.
#[must_use]
pub fn crds() -> Vec<CustomResourceDefinition> {
    vec![
        definition::<NetworkChaos>(
            shared::column("action", "string", ".spec.action", "What is done."),
            "Packets hit so far.",
            NETWORK_GAPS,
            network::add_rules,
        ),
        definition::<TimeChaos>(
            shared::column(
                "offset",
                "string",
                ".spec.timeOffset",
                "How far the clocks are ahead, or behind if negative.",
            ),
            "Clock reads shifted so far.",
            TIME_GAPS,
            time::add_rules,
        ),
    ]
}

/// The schema of the only version of a CRD that [`crds`] returned.
#[must_use]
pub fn schema(crd: &CustomResourceDefinition) -> Option<&JSONSchemaProps> {
    let [version] = crd.spec.versions.as_slice() else {
        return None;
    };
    version.schema.as_ref()?.open_api_v3_schema.as_ref()
}

/// The CRD of a kind: its own column and what its hits are, what of it is not built yet, and its bounds
/// and rules.
fn definition<K: Resource<DynamicType = ()> + JsonSchema>(
    column: CustomResourceColumnDefinition,
    hits: &str,
    gaps: &[Gap],
    add_rules: fn(&mut JSONSchemaProps),
) -> CustomResourceDefinition {
    let mut schema = derived::<K>();
    tidy(&mut schema);
    if let Some(spec) = property(&mut schema, "spec") {
        shared::every_kind(spec);
        add_rules(spec);
        shared::gaps(spec, GAPS);
        shared::gaps(spec, gaps);
    }
    let columns = std::iter::once(column).chain(shared::columns(hits));
    let plural = K::plural(&());
    CustomResourceDefinition {
        metadata: ObjectMeta {
            name: Some(format!("{plural}.{GROUP}")),
            ..ObjectMeta::default()
        },
        spec: CustomResourceDefinitionSpec {
            group: GROUP.to_owned(),
            names: CustomResourceDefinitionNames {
                kind: K::kind(&()).into_owned(),
                singular: Some(plural.clone().into_owned()),
                plural: plural.into_owned(),
                ..CustomResourceDefinitionNames::default()
            },
            scope: "Namespaced".to_owned(),
            versions: vec![CustomResourceDefinitionVersion {
                additional_printer_columns: Some(columns.collect()),
                name: VERSION.to_owned(),
                schema: Some(CustomResourceValidation {
                    open_api_v3_schema: Some(schema),
                }),
                served: true,
                storage: true,
                subresources: Some(CustomResourceSubresources {
                    status: Some(CustomResourceSubresourceStatus(json!({}))),
                    ..CustomResourceSubresources::default()
                }),
                ..CustomResourceDefinitionVersion::default()
            }],
            ..CustomResourceDefinitionSpec::default()
        },
        ..CustomResourceDefinition::default()
    }
}

/// What the types say, in the structural form that a CRD must have: nothing is referred to, and what
/// several variants share stands above them.
///
/// # Panics
/// If that is no schema: the types are part of this project, and a test makes the schema of each.
fn derived<K: JsonSchema>() -> JSONSchemaProps {
    let settings = SchemaSettings::openapi3().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let generator = settings
        .with_transform(AddNullable::default())
        .with_transform(StructuralSchemaRewriter)
        .with_transform(OptionalEnum)
        .with_transform(OptionalIntOrString)
        .into_generator();
    let schema = Value::from(generator.into_root_schema_for::<K>());
    serde_json::from_value(schema).expect("a structural schema is what a CRD holds")
}

/// Takes out what the derive adds and upstream's schema has not: a null is an error, not a value,
/// and the API server fills in nothing but what upstream's does.
fn tidy(schema: &mut JSONSchemaProps) {
    schema.nullable = None;
    // Defaults of Rust collections; `direction`, a string, is upstream's.
    schema.default = schema
        .default
        .take()
        .filter(|default| default.0.is_string());
    schema.description = schema.description.take().map(|text| flow(&text));
    for property in schema
        .properties
        .iter_mut()
        .flat_map(|properties| properties.values_mut())
    {
        tidy(property);
    }
    if let Some(items) = items(schema) {
        tidy(items);
    }
    if let Some(values) = values(schema) {
        tidy(values);
    }
}

/// Joins the lines of a paragraph, as where they break in the source says nothing, and drops the
/// marks of Rust's documentation, which `kubectl explain` does not read.
fn flow(text: &str) -> String {
    let text = text.replace('`', "");
    let paragraphs = text
        .split("\n\n")
        .map(|paragraph| paragraph.replace('\n', " "));
    paragraphs.collect::<Vec<_>>().join("\n\n")
}

fn property<'a>(schema: &'a mut JSONSchemaProps, name: &str) -> Option<&'a mut JSONSchemaProps> {
    schema.properties.as_mut()?.get_mut(name)
}

fn items(schema: &mut JSONSchemaProps) -> Option<&mut JSONSchemaProps> {
    match schema.items.as_mut()? {
        JSONSchemaPropsOrArray::Schema(items) => Some(items),
        JSONSchemaPropsOrArray::Schemas(_) => None,
    }
}

fn values(schema: &mut JSONSchemaProps) -> Option<&mut JSONSchemaProps> {
    match schema.additional_properties.as_mut()? {
        JSONSchemaPropsOrBool::Schema(values) => Some(values),
        JSONSchemaPropsOrBool::Bool(_) => None,
    }
}

/// Does something to the schema at a dotted path, where `[]` stands for the items of a list and
/// `{}` for the values of a map.
///
/// # Panics
/// If there is no such schema: the path is part of this crate, and a test walks all of them.
fn at(schema: &mut JSONSchemaProps, path: &str, change: impl FnOnce(&mut JSONSchemaProps)) {
    let found = path
        .split('.')
        .filter(|step| !step.is_empty())
        .try_fold(schema, |schema, step| match step {
            "[]" => items(schema),
            "{}" => values(schema),
            name => property(schema, name),
        });
    match found {
        Some(schema) => change(schema),
        None => panic!("no schema at {path:?}"),
    }
}

/// Adds a CEL rule. The message is an expression, so that it can show the value; `field` is the
/// path of the field to blame, below the schema that holds the rule (empty: that schema itself).
fn rule(schema: &mut JSONSchemaProps, field: &str, rule: impl Into<String>, message: String) {
    schema
        .x_kubernetes_validations
        .get_or_insert_default()
        .push(ValidationRule {
            rule: rule.into(),
            field_path: (!field.is_empty()).then(|| format!(".{field}")),
            message_expression: Some(message),
            ..ValidationRule::default()
        });
}

/// The CEL expression of a message: the value (itself an expression), the rule, what to do.
fn message(value: &str, rule: &str, advice: &str) -> String {
    format!("{value} + {}", quoted(&format!(": {rule}; {advice}")))
}

/// A CEL string literal.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

//! Experiments from files: several YAML documents, or JSON, read strictly.
//!
//! The API server checks a document against the schema and kubectl refuses unknown fields; where
//! there is no API server (the agent's command line) this does the same, from the same schema and
//! the same rules, and says the line. All errors of a file are found at once.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::Error as _;
use serde_json::Value;

use crate::v1alpha1::{Lifecycle, NetworkChaosSpec, PodSelector, TimeChaosSpec};
use crate::validate::{self, FieldError, NOT_SET};
use schema::Schema;
use tree::{Kind, Node};

mod schema;
mod tree;

/// The largest text that is read, in bytes: what the API server takes as one request, too.
pub const MAX_BYTES: usize = 3 * 1024 * 1024;

/// What all kinds here have as `apiVersion`.
const API_VERSION: &str = "chaos-mesh.org/v1alpha1";

/// Kinds of Chaos Mesh that are not built yet.
const OTHER_KINDS: [&str; 14] = [
    "AWSChaos",
    "AzureChaos",
    "BlockChaos",
    "DNSChaos",
    "GCPChaos",
    "HTTPChaos",
    "IOChaos",
    "JVMChaos",
    "KernelChaos",
    "PhysicalMachineChaos",
    "PodChaos",
    "Schedule",
    "StressChaos",
    "Workflow",
];

/// An experiment that was read.
#[derive(Clone, Debug, PartialEq)]
pub enum Document {
    /// `kind: NetworkChaos`
    Network(Box<Object<NetworkChaosSpec>>),
    /// `kind: TimeChaos`
    Time(Box<Object<TimeChaosSpec>>),
}

/// An object of some kind, as far as a file means anything by it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Object<S> {
    /// Whose it is.
    pub metadata: Metadata,
    /// What is asked for.
    pub spec: S,
}

/// What is read of `metadata`; the rest means something to an API server only.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Metadata {
    /// Its name; a document without one is refused.
    pub name: Option<String>,
    /// Its namespace, if it says one.
    pub namespace: Option<String>,
}

impl Document {
    /// Kinds that can be read.
    pub const KINDS: [&'static str; 2] = ["NetworkChaos", "TimeChaos"];

    fn from_value(kind: &str, value: Value) -> serde_json::Result<Self> {
        match kind {
            "NetworkChaos" => {
                serde_json::from_value(value).map(|chaos| Self::Network(Box::new(chaos)))
            }
            "TimeChaos" => serde_json::from_value(value).map(|chaos| Self::Time(Box::new(chaos))),
            other => Err(serde_json::Error::unknown_variant(other, &Self::KINDS)),
        }
    }

    fn problems(&self) -> Vec<FieldError> {
        match self {
            Self::Network(chaos) => validate::network_chaos(&chaos.spec),
            Self::Time(chaos) => validate::time_chaos(&chaos.spec),
        }
    }

    /// Its `kind`.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Network(_) => Self::KINDS[0],
            Self::Time(_) => Self::KINDS[1],
        }
    }

    /// Its metadata.
    #[must_use]
    pub fn metadata(&self) -> &Metadata {
        match self {
            Self::Network(chaos) => &chaos.metadata,
            Self::Time(chaos) => &chaos.metadata,
        }
    }

    /// Whom it selects.
    #[must_use]
    pub fn source(&self) -> &PodSelector {
        match self {
            Self::Network(chaos) => &chaos.spec.source,
            Self::Time(chaos) => &chaos.spec.source,
        }
    }

    /// When it runs.
    #[must_use]
    pub fn lifecycle(&self) -> &Lifecycle {
        match self {
            Self::Network(chaos) => &chaos.spec.lifecycle,
            Self::Time(chaos) => &chaos.spec.lifecycle,
        }
    }
}

/// One thing that is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DocumentError {
    /// Where, counted from 1.
    pub line: usize,
    /// What.
    pub problem: Problem,
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// It is no YAML and no JSON.
    Syntax(String),
    /// A field is not as it must be.
    Field(FieldError),
}

/// Displays without the file: `<line>: <field>: <value>: <rule>; <what to do>`.
impl fmt::Display for DocumentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.problem {
            Problem::Syntax(what) => {
                write!(f, "{}: {what}; write YAML or JSON", self.line)
            }
            Problem::Field(error) => write!(f, "{}: {error}", self.line),
        }
    }
}

impl std::error::Error for DocumentError {}

/// Everything that is wrong with a file, in the order of lines; at least one.
///
/// Displays one error per line, each without the file's name: the caller knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DocumentErrors(pub Vec<DocumentError>);

impl DocumentErrors {
    /// The lines to show to the user: `<file>:<line>: <field>: <value>: <rule>; <what to do>`.
    pub fn lines<'a>(&'a self, file: &'a str) -> impl Iterator<Item = String> + 'a {
        self.0.iter().map(move |error| format!("{file}:{error}"))
    }
}

impl fmt::Display for DocumentErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            let newline = if index == 0 { "" } else { "\n" };
            write!(f, "{newline}{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for DocumentErrors {}

/// Reads every document of a text, checks them, and refuses what is not built yet.
///
/// Nothing is filled in (see `default`), and `status` is not read. Documents with nothing in them
/// are skipped.
///
/// # Errors
/// Everything that is wrong; a text without any document is, too.
pub fn parse(text: &str) -> Result<Vec<Document>, DocumentErrors> {
    parse_with(text, |_| {}, &|_| Vec::new())
}

/// The same for a host without pods, where somebody says by other means to whom it is done:
/// `selector` and `mode` may be left out, and what is there means nothing. `check` adds the rules
/// of such a host; what it refuses gets the line of its field.
///
/// # Errors
/// As [`parse`].
pub fn parse_for_host(
    text: &str,
    check: &dyn Fn(&Document) -> Vec<FieldError>,
) -> Result<Vec<Document>, DocumentErrors> {
    parse_with(text, fill_selector, check)
}

fn parse_with(
    text: &str,
    prepare: fn(&mut Node),
    check: &dyn Fn(&Document) -> Vec<FieldError>,
) -> Result<Vec<Document>, DocumentErrors> {
    let syntax = |line, what| {
        DocumentErrors(vec![DocumentError {
            line,
            problem: Problem::Syntax(what),
        }])
    };
    if text.len() > MAX_BYTES {
        return Err(syntax(
            1,
            format!(
                "a file is at most {MAX_BYTES} bytes, this has {}",
                text.len()
            ),
        ));
    }
    let roots = tree::parse(text).map_err(|error| syntax(error.line, error.what))?;
    let roots = roots
        .into_iter()
        .filter(|root| !matches!(root.kind, Kind::Scalar(Value::Null)));
    let schemas = schema::all().map_err(|error| syntax(1, error.to_string()))?;
    let mut objects = Vec::new();
    let mut errors = Vec::new();
    for mut root in roots {
        prepare(&mut root);
        match read(&root, &schemas, check) {
            Ok(object) => objects.push(object),
            Err(found) => errors.extend(found),
        }
    }
    if objects.is_empty() && errors.is_empty() {
        return Err(syntax(1, "there is no document in it".to_owned()));
    }
    if errors.is_empty() {
        Ok(objects)
    } else {
        Err(DocumentErrors(errors))
    }
}

/// All pods: the widest that a document can say.
fn fill_selector(root: &mut Node) {
    let Kind::Map(fields) = &mut root.kind else {
        return;
    };
    let spec = fields.iter_mut().find(|entry| entry.key == "spec");
    let Some(line) = spec.as_ref().map(|entry| entry.line) else {
        return;
    };
    let Some(Kind::Map(fields)) = spec.map(|entry| &mut entry.value.kind) else {
        return;
    };
    let all = Kind::Scalar(Value::String("all".to_owned()));
    for (key, kind) in [("selector", Kind::Map(Vec::new())), ("mode", all)] {
        if !fields.iter().any(|entry| entry.key == key) {
            let value = Node { line, kind };
            let key = key.to_owned();
            fields.push(tree::Entry { key, line, value });
        }
    }
}

fn read(
    root: &Node,
    schemas: &BTreeMap<String, Schema>,
    check: &dyn Fn(&Document) -> Vec<FieldError>,
) -> Result<Document, Vec<DocumentError>> {
    let mut lines = Lines::default();
    lines.collect(root, "");
    let located = |errors: Vec<FieldError>| {
        let mut errors: Vec<_> = errors
            .into_iter()
            .map(|error| DocumentError {
                line: lines.of(&error.field).unwrap_or(root.line),
                problem: Problem::Field(error),
            })
            .collect();
        errors.sort_by_key(|error| error.line);
        errors
    };
    let kind = check_kind(root).map_err(|error| located(vec![error]))?;
    let mut errors = Vec::new();
    if let Some(schema) = schemas.get(kind) {
        schema::check_object(root, schema, &mut errors);
    }
    if !errors.is_empty() {
        return Err(located(errors));
    }
    let chaos = Document::from_value(kind, root.without_status()).map_err(|error| {
        // The schema lets nothing past that the type cannot hold, so this is not expected.
        let problem = Problem::Syntax(error.to_string());
        vec![DocumentError {
            line: root.line,
            problem,
        }]
    })?;
    let mut errors = chaos.problems();
    errors.extend(check(&chaos));
    if errors.is_empty() {
        Ok(chaos)
    } else {
        Err(located(errors))
    }
}

/// Before anything else: is this an object of ours?
fn check_kind(root: &Node) -> Result<&'static str, FieldError> {
    let error = |field: &str, value: String, rule: String, advice: String| FieldError {
        field: field.to_owned(),
        value,
        rule,
        advice,
    };
    let shown = |field| {
        root.get(field)
            .map_or_else(|| NOT_SET.to_owned(), Node::shown)
    };
    let kind = shown("kind");
    let Some(known) = Document::KINDS.into_iter().find(|known| *known == kind) else {
        let rule = if OTHER_KINDS.contains(&kind.as_str()) {
            format!("kind {kind} is not built yet")
        } else {
            "this is no kind of Chaos Mesh that can be applied here".to_owned()
        };
        return Err(error(
            "kind",
            kind,
            rule,
            format!("set kind to {}", Document::KINDS.join(" or ")),
        ));
    };
    let version = shown("apiVersion");
    if version != API_VERSION {
        let rule = format!("{known} is of {API_VERSION}");
        let advice = format!("set apiVersion to {API_VERSION}");
        return Err(error("apiVersion", version, rule, advice));
    }
    Ok(known)
}

/// The line of every field, by its path.
#[derive(Default)]
struct Lines(BTreeMap<String, usize>);

impl Lines {
    fn collect(&mut self, node: &Node, path: &str) {
        match &node.kind {
            Kind::Scalar(_) => {}
            Kind::List(items) => {
                for (index, item) in items.iter().enumerate() {
                    let path = format!("{path}[{index}]");
                    self.0.insert(path.clone(), item.line);
                    self.collect(item, &path);
                }
            }
            Kind::Map(entries) => {
                for entry in entries {
                    let path = schema::join(path, &entry.key);
                    self.0.insert(path.clone(), entry.line);
                    self.collect(&entry.value, &path);
                }
            }
        }
    }

    /// That of the field, or of the nearest one around it that is there.
    fn of(&self, field: &str) -> Option<usize> {
        let mut path = field;
        loop {
            if let Some(line) = self.0.get(path) {
                return Some(*line);
            }
            path = &path[..path.rfind(['.', '['])?];
        }
    }
}

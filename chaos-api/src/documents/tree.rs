//! YAML as a tree that knows its lines.
//!
//! JSON is read as the YAML that it is. Depth and size are bounded, so that a hostile file costs
//! no more than its bytes.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Tag};
use serde_json::{Map, Number, Value};

/// Deepest nesting; the schema needs ten.
const MAX_DEPTH: usize = 64;

/// Most nodes that aliases may add.
const MAX_ALIASED: usize = 10_000;

/// A value and the line it starts on.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) line: usize,
    pub(super) kind: Kind,
}

/// A value.
#[derive(Clone, Debug)]
pub(super) enum Kind {
    /// Null, a boolean, a number or a string.
    Scalar(Value),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A field of a map.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) line: usize,
    pub(super) value: Node,
}

/// Why a text is no YAML.
#[derive(Debug)]
pub(super) struct SyntaxError {
    pub(super) line: usize,
    pub(super) what: String,
}

impl Node {
    /// A field of a map.
    pub(super) fn get(&self, key: &str) -> Option<&Self> {
        let Kind::Map(entries) = &self.kind else {
            return None;
        };
        entries
            .iter()
            .find(|entry| entry.key == key)
            .map(|entry| &entry.value)
    }

    /// For messages: the text of a scalar, or what it is instead.
    pub(super) fn shown(&self) -> String {
        match &self.kind {
            Kind::Scalar(Value::String(text)) => text.clone(),
            Kind::Scalar(value) => value.to_string(),
            Kind::List(_) => "a list".to_owned(),
            Kind::Map(_) => "an object".to_owned(),
        }
    }

    pub(super) fn is_null(&self) -> bool {
        matches!(self.kind, Kind::Scalar(Value::Null))
    }

    /// The whole object, but for its status.
    pub(super) fn without_status(&self) -> Value {
        let mut object = self.to_json();
        if let Some(fields) = object.as_object_mut() {
            fields.remove("status");
        }
        object
    }

    /// A field with a null is a field that is not set, as for the API server.
    fn to_json(&self) -> Value {
        match &self.kind {
            Kind::Scalar(value) => value.clone(),
            Kind::List(items) => Value::Array(items.iter().map(Self::to_json).collect()),
            Kind::Map(entries) => {
                let set = entries.iter().filter(|entry| !entry.value.is_null());
                let fields = set.map(|entry| (entry.key.clone(), entry.value.to_json()));
                Value::Object(fields.collect::<Map<_, _>>())
            }
        }
    }

    fn count(&self) -> usize {
        1 + match &self.kind {
            Kind::Scalar(_) => 0,
            Kind::List(items) => items.iter().map(Self::count).sum(),
            Kind::Map(entries) => entries.iter().map(|entry| entry.value.count()).sum(),
        }
    }
}

/// The roots of all documents.
pub(super) fn parse(text: &str) -> Result<Vec<Node>, SyntaxError> {
    let mut builder = Builder::default();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error: ScanError| SyntaxError {
            line: error.marker().line(),
            what: error.info().to_owned(),
        })?;
        let line = span.start.line();
        builder
            .take(event, line)
            .map_err(|what| SyntaxError { line, what })?;
    }
    Ok(builder.roots)
}

#[derive(Default)]
struct Builder {
    roots: Vec<Node>,
    open: Vec<Open>,
    /// Nodes that have a name, by the parser's number.
    anchors: HashMap<usize, Node>,
    aliased: usize,
}

/// A list or map whose end has not come yet.
struct Open {
    node: Node,
    anchor: usize,
    /// In a map: the key whose value comes next.
    key: Option<(String, usize)>,
}

impl Builder {
    fn take(&mut self, event: Event<'_>, line: usize) -> Result<(), String> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let kind = Kind::Scalar(resolve(&text, style, tag.as_deref()));
                if self.expects_key() {
                    // As written: `on` and `1` are names here.
                    return self.set_key(text.into_owned(), line);
                }
                self.close(Node { line, kind }, anchor)
            }
            Event::SequenceStart(anchor, _) => self.open(Kind::List(Vec::new()), anchor, line),
            Event::MappingStart(anchor, _) => self.open(Kind::Map(Vec::new()), anchor, line),
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(open) => self.close(open.node, open.anchor),
                None => Err("something ends that did not begin".to_owned()),
            },
            Event::Alias(anchor) => {
                let node = self.anchors.get(&anchor).cloned();
                let node = node.ok_or("this alias names nothing that came before")?;
                self.aliased += node.count();
                if self.aliased > MAX_ALIASED {
                    return Err(format!("aliases may add {MAX_ALIASED} values, not more"));
                }
                self.close(node, 0)
            }
            Event::DocumentStart(_)
            | Event::DocumentEnd
            | Event::StreamStart
            | Event::StreamEnd
            | Event::Nothing => Ok(()),
        }
    }

    fn expects_key(&self) -> bool {
        let top = self.open.last();
        top.is_some_and(|open| open.key.is_none() && matches!(open.node.kind, Kind::Map(_)))
    }

    fn set_key(&mut self, key: String, line: usize) -> Result<(), String> {
        let Some(open) = self.open.last_mut() else {
            return Ok(());
        };
        if open.node.get(&key).is_some() {
            return Err(format!("{key:?} is there twice"));
        }
        open.key = Some((key, line));
        Ok(())
    }

    fn open(&mut self, kind: Kind, anchor: usize, line: usize) -> Result<(), String> {
        if self.open.len() >= MAX_DEPTH {
            return Err(format!("nothing is nested deeper than {MAX_DEPTH}"));
        }
        if self.expects_key() {
            return Err("a list or an object cannot be the name of a field".to_owned());
        }
        self.open.push(Open {
            node: Node { line, kind },
            anchor,
            key: None,
        });
        Ok(())
    }

    /// Puts a finished value where it belongs.
    fn close(&mut self, node: Node, anchor: usize) -> Result<(), String> {
        // The parser numbers anchors from 1.
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        let Some(open) = self.open.last_mut() else {
            self.roots.push(node);
            return Ok(());
        };
        match (&mut open.node.kind, open.key.take()) {
            (Kind::List(items), _) => items.push(node),
            (Kind::Map(entries), Some((key, line))) => {
                entries.push(Entry {
                    key,
                    line,
                    value: node,
                });
            }
            (Kind::Map(_) | Kind::Scalar(_), _) => {
                return Err("a list or an object cannot be the name of a field".to_owned());
            }
        }
        Ok(())
    }
}

/// The value of a scalar by the core schema of YAML 1.2.
fn resolve(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Value {
    let string = || Value::String(text.to_owned());
    if style != ScalarStyle::Plain || tag.is_some_and(|tag| tag.suffix == "str") {
        return string();
    }
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    if let Ok(number) = text.parse::<i64>() {
        return number.into();
    }
    if let Ok(number) = text.parse::<u64>() {
        return number.into();
    }
    // Rust also reads `inf` and `nan`, which are words here.
    let numeric = text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c))
        && text.ends_with(|c: char| c.is_ascii_digit() || c == '.');
    match text
        .parse()
        .ok()
        .filter(|_| numeric)
        .and_then(Number::from_f64)
    {
        Some(number) => number.into(),
        None => string(),
    }
}

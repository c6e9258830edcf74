//! What a document must fulfil beyond its schema, as pure functions.
//!
//! The webhook, the reconciler and the agent's CLI call the same ones. They look at what the user
//! wrote; defaults may have been applied before, or not. Every error names the field, the value
//! found there, the rule it breaks, and what to do; all errors of a document are found at once.

use std::fmt;

use serde::Serialize;

use crate::v1alpha1::{NetworkChaosSpec, TimeChaosSpec};

mod lifecycle;
mod network;
mod selector;
mod time;
mod unsupported;

pub use network::MAX_LATENCY;
pub use time::{
    CONTAINER_ADVICE, JUMP_ADVICE, NO_CLOCK, NO_CONTAINER, NO_OFFSET, NO_RATE, NO_SPEED,
    OFFSET_ADVICE, RATE_ADVICE, SPEED_ADVICE, clock_advice,
};
pub use unsupported::{GAPS, Gap, NETWORK_GAPS, TIME_GAPS};

/// The value shown for a field that is not set.
pub const NOT_SET: &str = "not set";

/// Longer values are cut in messages: an Event holds 1024 bytes.
const SHOWN_CHARS: usize = 80;

/// One broken rule. Displays as `<field>: <value>: <rule>; <what to do>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FieldError {
    /// Path of the field, such as `spec.target.selector.expressionSelectors[0].operator`.
    pub field: String,
    /// What is there, or [`NOT_SET`].
    pub value: String,
    /// The rule it breaks.
    pub rule: String,
    /// What the user can do.
    pub advice: String,
}

impl FieldError {
    /// A field whose text cannot be read, for whoever reads it after the checks.
    #[must_use]
    pub fn unreadable(field: &str, value: &str, rule: &dyn fmt::Display) -> Self {
        Self {
            field: field.to_owned(),
            value: value.to_owned(),
            rule: rule.to_string(),
            advice: "correct it".to_owned(),
        }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            field,
            value,
            rule,
            advice,
        } = self;
        let value = if value.is_empty() { "empty" } else { value };
        match value.char_indices().nth(SHOWN_CHARS) {
            Some((cut, _)) => write!(f, "{field}: {}…: {rule}; {advice}", &value[..cut]),
            None => write!(f, "{field}: {value}: {rule}; {advice}"),
        }
    }
}

impl std::error::Error for FieldError {}

/// Rules that a NetworkChaos breaks, and what it asks for that this version does not have; empty if
/// there is neither.
///
/// What is missing must be refused: leaving it out silently would be another experiment than the one
/// asked for.
#[must_use]
pub fn network_chaos(spec: &NetworkChaosSpec) -> Vec<FieldError> {
    let mut errors = Errors::default();
    network::check(spec, "spec", &mut errors);
    for gaps in [GAPS, NETWORK_GAPS] {
        unsupported::check(gaps, &spec.lifecycle, "spec", &mut errors);
    }
    errors.0
}

/// The same of a TimeChaos.
#[must_use]
pub fn time_chaos(spec: &TimeChaosSpec) -> Vec<FieldError> {
    let mut errors = Errors::default();
    time::check(spec, "spec", &mut errors);
    for gaps in [GAPS, TIME_GAPS] {
        unsupported::check(gaps, &spec.lifecycle, "spec", &mut errors);
    }
    errors.0
}

/// Collects the errors of a document.
#[derive(Default)]
struct Errors(Vec<FieldError>);

impl Errors {
    fn add(
        &mut self,
        field: impl Into<String>,
        value: impl Into<String>,
        rule: impl Into<String>,
        advice: impl Into<String>,
    ) {
        self.0.push(FieldError {
            field: field.into(),
            value: value.into(),
            rule: rule.into(),
            advice: advice.into(),
        });
    }
}

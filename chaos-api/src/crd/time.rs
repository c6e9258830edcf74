//! Bounds and rules of TimeChaos.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::JSONSchemaProps;

use crate::clock::CLOCKS;
use crate::crd::shared::{self, DURATION};
use crate::crd::{at, message, quoted, rule};
use crate::validate::{
    CONTAINER_ADVICE, NO_CLOCK, NO_CONTAINER, NO_OFFSET, OFFSET_ADVICE, clock_advice,
};

pub(super) fn add_rules(spec: &mut JSONSchemaProps) {
    at(spec, "timeOffset", offset);
    at(spec, "clockIds", |list| list.max_items = Some(32));
    at(spec, "clockIds.[]", |name| {
        name.max_length = Some(64);
        let names = CLOCKS.map(|(name, _)| quoted(name)).join(", ");
        rule(
            name,
            "",
            format!("self in [{names}]"),
            message("(self == '' ? 'empty' : self)", NO_CLOCK, &clock_advice()),
        );
    });
    at(spec, "containerNames", |list| list.max_items = Some(256));
    at(spec, "containerNames.[]", |name| {
        name.max_length = Some(63);
        let refusal = message("'empty'", NO_CONTAINER, CONTAINER_ADVICE);
        rule(name, "", "self != ''", refusal);
    });
}

/// A duration of either sign.
fn offset(field: &mut JSONSchemaProps) {
    shared::is_duration(field, OFFSET_ADVICE);
    rule(
        field,
        "",
        format!("!self.matches('{DURATION}') || self.matches('[1-9]')"),
        message("self", NO_OFFSET, OFFSET_ADVICE),
    );
}

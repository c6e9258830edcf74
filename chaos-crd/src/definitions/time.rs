//! Bounds and rules of TimeChaos.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::JSONSchemaProps;

use crate::definitions::shared::{self, DURATION};
use crate::definitions::{at, message, quoted, rule};
use chaos_api::clock::{CLOCKS, ClockRateError, OF_CPU_TIME};
use chaos_api::validate::{
    CONTAINER_ADVICE, JUMP_ADVICE, NO_CLOCK, NO_CONTAINER, NO_OFFSET, NO_RATE, NO_SPEED,
    OFFSET_ADVICE, RATE_ADVICE, SPEED_ADVICE, clock_advice,
};

pub(super) fn add_rules(spec: &mut JSONSchemaProps) {
    at(spec, "timeOffset", |field| {
        shared::is_duration(field, OFFSET_ADVICE)
    });
    rule(
        spec,
        "timeOffset",
        format!(
            "!self.timeOffset.matches('{DURATION}') || self.timeOffset.matches('[1-9]') || \
             (has(self.faultline) && (has(self.faultline.rate) || (has(self.faultline.jumps) && \
             size(self.faultline.jumps) > 0)))"
        ),
        message("self.timeOffset", NO_OFFSET, OFFSET_ADVICE),
    );
    at(spec, "faultline.rate", rate);
    let cpu_time = OF_CPU_TIME.map(quoted).join(", ");
    rule(
        spec,
        "faultline.rate",
        format!(
            "!has(self.faultline) || !has(self.faultline.rate) || !has(self.clockIds) || \
             !self.clockIds.exists(name, name in [{cpu_time}])"
        ),
        message("self.faultline.rate", NO_SPEED, SPEED_ADVICE),
    );
    at(spec, "faultline.jumps.[].after", |field| {
        shared::duration(field, JUMP_ADVICE)
    });
    at(spec, "faultline.jumps.[].by", offset);
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

/// A factor.
fn rate(field: &mut JSONSchemaProps) {
    rule(
        field,
        "",
        r"self.matches('^[0-9]{1,9}([.][0-9]{1,6})?$') && double(self) >= 0.01 && double(self) <= 100.0",
        message(
            "(self == '' ? 'empty' : self)",
            &ClockRateError::Form.to_string(),
            RATE_ADVICE,
        ),
    );
    rule(
        field,
        "",
        r"!self.matches('^0*1([.]0*)?$')",
        message("self", NO_RATE, RATE_ADVICE),
    );
}

/// A duration of either sign that is not zero.
fn offset(field: &mut JSONSchemaProps) {
    shared::is_duration(field, OFFSET_ADVICE);
    rule(
        field,
        "",
        format!("!self.matches('{DURATION}') || self.matches('[1-9]')"),
        message("self", NO_OFFSET, OFFSET_ADVICE),
    );
}

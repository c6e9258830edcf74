//! TimeChaos.

use crate::clock::{self, CLOCKS};
use crate::duration;
use crate::v1alpha1::TimeChaosSpec;
use crate::validate::{Errors, lifecycle, selector};

/// The rule of a `timeOffset` that changes nothing.
pub(crate) const NO_OFFSET: &str = "an offset of 0 changes no clock";

/// What to write as `timeOffset`.
pub(crate) const OFFSET_ADVICE: &str = "write it like 5m, -1h30m or 250us";

/// The rule of a clock that is none.
pub(crate) const NO_CLOCK: &str = "there is no such clock";

/// What to write as an element of `clockIds`.
pub(crate) fn clock_advice() -> String {
    format!("use one of {}", CLOCKS.map(|(name, _)| name).join(", "))
}

/// The rule of a `containerNames` with an empty name.
pub(crate) const NO_CONTAINER: &str = "no container has an empty name";

/// What to write as an element of `containerNames`.
pub(crate) const CONTAINER_ADVICE: &str =
    "write its name in the pod, or remove the field for the first container";

pub(super) fn check(spec: &TimeChaosSpec, at: &str, errors: &mut Errors) {
    let offset = &spec.time_offset;
    let rule = match duration::parse(offset) {
        Err(error) => Some(error.to_string()),
        Ok(zero) if zero.is_zero() => Some(NO_OFFSET.to_owned()),
        Ok(_) => None,
    };
    if let Some(rule) = rule {
        errors.add(format!("{at}.timeOffset"), offset, rule, OFFSET_ADVICE);
    }
    for (index, name) in spec.clock_ids.iter().enumerate() {
        if clock::id(name).is_none() {
            let field = format!("{at}.clockIds[{index}]");
            errors.add(field, name, NO_CLOCK, clock_advice());
        }
    }
    for (index, name) in spec.container_names.iter().enumerate() {
        if name.is_empty() {
            let field = format!("{at}.containerNames[{index}]");
            errors.add(field, name, NO_CONTAINER, CONTAINER_ADVICE);
        }
    }
    selector::check(&spec.source, at, errors);
    lifecycle::check(&spec.lifecycle, at, errors);
}

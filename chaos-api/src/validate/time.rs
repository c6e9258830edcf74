//! TimeChaos.

use crate::clock::{self, CLOCKS, MAX_JUMPS, OF_CPU_TIME};
use crate::duration;
use crate::v1alpha1::{ClockJump, TimeChaosSpec};
use crate::validate::{Errors, lifecycle, selector};

/// The rule of a `timeOffset` that changes nothing.
pub const NO_OFFSET: &str = "an offset of 0 changes no clock";

/// What to write as `timeOffset`.
pub const OFFSET_ADVICE: &str = "write it like 5m, -1h30m or 250us";

/// The rule of a rate that changes nothing.
pub const NO_RATE: &str = "a clock that runs at its own speed is not changed";

/// What to write as `faultline.rate`.
pub const RATE_ADVICE: &str =
    "write it in quotes, such as \"1.1\" for a clock that is ten percent fast";

/// The rule of a rate of a clock that has none.
pub const NO_SPEED: &str = "a clock of CPU time has no speed of its own";

/// What to do about it.
pub const SPEED_ADVICE: &str = "remove the rate, or name other clocks";

/// What to do instead of a jump at once.
pub const JUMP_ADVICE: &str = "use timeOffset for what is to be off at once";

/// The rule of a clock that is none.
pub const NO_CLOCK: &str = "there is no such clock";

/// What to write as an element of `clockIds`.
pub fn clock_advice() -> String {
    format!("use one of {}", CLOCKS.map(|(name, _)| name).join(", "))
}

/// The rule of a `containerNames` with an empty name.
pub const NO_CONTAINER: &str = "no container has an empty name";

/// What to write as an element of `containerNames`.
pub const CONTAINER_ADVICE: &str =
    "write its name in the pod, or remove the field for the first container";

pub(super) fn check(spec: &TimeChaosSpec, at: &str, errors: &mut Errors) {
    let faultline = spec.lifecycle.faultline.as_ref();
    let rate = faultline.and_then(|faultline| faultline.rate.as_ref());
    let jumps = faultline.map_or(&[][..], |faultline| &faultline.jumps);
    let changes = rate.is_some() || !jumps.is_empty();
    let offset = &spec.time_offset;
    let rule = match duration::parse(offset) {
        Err(error) => Some(error.to_string()),
        Ok(zero) if zero.is_zero() && !changes => Some(NO_OFFSET.to_owned()),
        Ok(_) => None,
    };
    if let Some(rule) = rule {
        errors.add(format!("{at}.timeOffset"), offset, rule, OFFSET_ADVICE);
    }
    if let Some(rate) = rate {
        check_rate(rate, spec, at, errors);
    }
    if jumps.len() > MAX_JUMPS {
        errors.add(
            format!("{at}.faultline.jumps"),
            format!("{} jumps", jumps.len()),
            format!("at most {MAX_JUMPS} in one experiment"),
            "apply several, which add up",
        );
    }
    for (index, jump) in jumps.iter().enumerate() {
        check_jump(
            jump,
            spec,
            &format!("{at}.faultline.jumps[{index}]"),
            errors,
        );
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

fn check_rate(rate: &str, spec: &TimeChaosSpec, at: &str, errors: &mut Errors) {
    let field = format!("{at}.faultline.rate");
    let rule = match clock::parse_rate(rate) {
        Err(error) => Some(error.to_string()),
        Ok(0) => Some(NO_RATE.to_owned()),
        Ok(_) => None,
    };
    if let Some(rule) = rule {
        errors.add(&field, rate, rule, RATE_ADVICE);
    }
    let named = |name: &String| OF_CPU_TIME.contains(&name.as_str());
    if spec.clock_ids.iter().any(named) {
        errors.add(field, rate, NO_SPEED, SPEED_ADVICE);
    }
}

fn check_jump(jump: &ClockJump, spec: &TimeChaosSpec, at: &str, errors: &mut Errors) {
    let ends = spec.lifecycle.duration.as_ref();
    let ends = ends.and_then(|duration| duration::parse_positive(duration).ok());
    let rule = match (duration::parse_positive(&jump.after), ends) {
        (Err(rule), _) => Some(rule),
        (Ok(after), Some(ends)) if after >= ends => {
            Some("the experiment has ended by then".to_owned())
        }
        (Ok(_), _) => None,
    };
    if let Some(rule) = rule {
        let advice = format!("write it like 30s or 1h30m, or {JUMP_ADVICE}");
        errors.add(format!("{at}.after"), &jump.after, rule, advice);
    }
    let rule = match duration::parse(&jump.by) {
        Err(error) => Some(error.to_string()),
        Ok(zero) if zero.is_zero() => Some(NO_OFFSET.to_owned()),
        Ok(_) => None,
    };
    if let Some(rule) = rule {
        errors.add(format!("{at}.by"), &jump.by, rule, OFFSET_ADVICE);
    }
}

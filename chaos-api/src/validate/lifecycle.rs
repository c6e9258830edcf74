//! Duration, legacy scheduler and the `faultline` block.

use crate::cron::Cron;
use crate::v1alpha1::{FaultlineSpec, Lifecycle, Sample};
use crate::validate::{Errors, NOT_SET};
use crate::{duration, percent};

/// For actions that last: duration and scheduler belong together.
pub(super) fn check(lifecycle: &Lifecycle, at: &str, errors: &mut Errors) {
    let field = format!("{at}.duration");
    if let Some(given) = &lifecycle.duration {
        check_duration(
            given,
            &field,
            "remove the field to run until deleted",
            errors,
        );
    }
    if let Some(scheduler) = &lifecycle.scheduler {
        if lifecycle.duration.is_none() {
            errors.add(
                &field,
                NOT_SET,
                "with a scheduler, each round needs an end",
                format!("set {field}, or remove {at}.scheduler"),
            );
        }
        if let Err(error) = Cron::parse(&scheduler.cron) {
            errors.add(
                format!("{at}.scheduler.cron"),
                &scheduler.cron,
                error.to_string(),
                "write five fields such as */5 * * * *, or @every 30s",
            );
        }
    }
    if let Some(faultline) = &lifecycle.faultline {
        check_faultline(faultline, lifecycle, &format!("{at}.faultline"), errors);
    }
}

fn check_faultline(
    faultline: &FaultlineSpec,
    lifecycle: &Lifecycle,
    at: &str,
    errors: &mut Errors,
) {
    if let Some(timeout) = &faultline.orphan_timeout {
        let field = format!("{at}.orphanTimeout");
        check_duration(
            timeout,
            &field,
            "remove the field to go on until deleted",
            errors,
        );
        if lifecycle.duration.is_some() {
            errors.add(
                field,
                timeout,
                "an experiment with a duration ends by itself, whether the operator is there or not",
                "remove it, or remove the duration",
            );
        }
    }
    if let Some(sample) = &faultline.sample {
        check_sample(sample, &format!("{at}.sample"), errors);
    }
}

fn check_sample(sample: &Sample, at: &str, errors: &mut Errors) {
    if let Some(given) = &sample.percent {
        let rule = match percent::parse_ppm(given) {
            Err(error) => Some(error.to_string()),
            Ok(0) => Some("0 percent hits nothing".to_owned()),
            Ok(_) => None,
        };
        if let Some(rule) = rule {
            errors.add(
                format!("{at}.percent"),
                given,
                rule,
                "write a number above 0, up to 100, in quotes, such as \"12.5\"",
            );
        }
    }
    for (name, given) in [("first", sample.first), ("every", sample.every)] {
        if given == Some(0) {
            errors.add(
                format!("{at}.{name}"),
                "0",
                "must be at least 1",
                "write a larger number, or remove the field for no such limit",
            );
        }
    }
    if let Some(seed) = sample.seed.filter(|seed| i64::try_from(*seed).is_err()) {
        errors.add(
            format!("{at}.seed"),
            seed.to_string(),
            "must fit 63 bits",
            "write a number up to 9223372036854775807",
        );
    }
}

fn check_duration(given: &str, field: &str, otherwise: &str, errors: &mut Errors) {
    if let Err(rule) = duration::parse_positive(given) {
        let advice = format!("write it like 30s or 1h30m, or {otherwise}");
        errors.add(field, given, rule, advice);
    }
}

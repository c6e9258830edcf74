//! NetworkChaos.

use std::time::Duration;

use crate::external::External;
use crate::v1alpha1::{NetworkAction, NetworkChaosSpec};
use crate::validate::{Errors, NOT_SET, lifecycle, selector};
use crate::{duration, percent, rate};

/// The longest latency: packets that wait longer than any peer's patience only fill memory.
pub const MAX_LATENCY: Duration = Duration::from_secs(3600);

/// Longest name of a network device in Linux.
const MAX_DEVICE_LEN: usize = 15;

pub(super) fn check(spec: &NetworkChaosSpec, at: &str, errors: &mut Errors) {
    selector::check(&spec.source, at, errors);
    if let Some(target) = &spec.target {
        selector::check(target, &format!("{at}.target"), errors);
    }
    check_device(spec.device.as_deref(), &format!("{at}.device"), errors);
    check_device(
        spec.target_device.as_deref(),
        &format!("{at}.targetDevice"),
        errors,
    );
    check_external_targets(spec, at, errors);
    check_action(spec, at, errors);
    check_delay(spec, at, errors);
    check_shares(spec, at, errors);
    check_rates(spec, at, errors);
    lifecycle::check(&spec.lifecycle, at, errors);
}

/// The block that the action is named after must be there, and do something.
fn check_action(spec: &NetworkChaosSpec, at: &str, errors: &mut Errors) {
    let action = spec.action.as_str();
    let blocks = [
        ("delay", spec.delay.is_some()),
        ("loss", spec.loss.is_some()),
        ("duplicate", spec.duplicate.is_some()),
        ("corrupt", spec.corrupt.is_some()),
        ("rate", spec.rate.is_some()),
        ("bandwidth", spec.bandwidth.is_some()),
    ];
    let block_is_there = match spec.action {
        NetworkAction::Netem => {
            if blocks.iter().all(|(_, set)| !set) {
                errors.add(
                    format!("{at}.action"),
                    action,
                    "none of its blocks is set, so it would do nothing",
                    format!("set {at}.delay, {at}.loss or another block"),
                );
            }
            true
        }
        NetworkAction::Partition => {
            for (name, _) in blocks.iter().filter(|(_, set)| *set) {
                errors.add(
                    format!("{at}.{name}"),
                    "set",
                    "action partition lets nothing pass, so nothing could apply this block",
                    "remove the block, or use action netem",
                );
            }
            true
        }
        NetworkAction::Delay => spec.delay.is_some(),
        NetworkAction::Loss => spec.loss.is_some(),
        NetworkAction::Duplicate => spec.duplicate.is_some(),
        NetworkAction::Corrupt => spec.corrupt.is_some(),
        NetworkAction::Bandwidth => spec.bandwidth.is_some(),
    };
    if !block_is_there {
        errors.add(
            format!("{at}.{action}"),
            NOT_SET,
            format!("action {action} needs this block"),
            format!("set {at}.{action}, or use action netem for the blocks that are set"),
        );
    }
}

fn check_external_targets(spec: &NetworkChaosSpec, at: &str, errors: &mut Errors) {
    for (index, text) in spec.external_targets.iter().enumerate() {
        if let Err(rule) = External::parse(text) {
            errors.add(
                format!("{at}.externalTargets[{index}]"),
                text,
                rule.to_string(),
                "write it like 10.0.0.1, 10.0.0.0/8, fd00::1 or example.com, and a port like \
                 10.0.0.1:80 or [fd00::1]:80",
            );
        }
    }
}

fn check_delay(spec: &NetworkChaosSpec, at: &str, errors: &mut Errors) {
    let Some(delay) = &spec.delay else { return };
    let field = format!("{at}.delay.latency");
    let mut latency = None;
    match parse_latency(&delay.latency) {
        Err(rule) => errors.add(&field, &delay.latency, rule, "write it like 100ms or 0.5s"),
        Ok(latency) if latency > MAX_LATENCY => errors.add(
            &field,
            &delay.latency,
            "must be at most 1h",
            "write a shorter time, or use action partition",
        ),
        Ok(latency) if latency.is_zero() && has_no_other_effect(spec) => errors.add(
            &field,
            &delay.latency,
            "a latency of 0 delays nothing",
            "write it like 100ms",
        ),
        Ok(found) => latency = Some(found),
    }
    let needs = |what: &str, value: &str, errors: &mut Errors| {
        if latency.is_some_and(|latency| latency.is_zero()) {
            errors.add(
                format!("{at}.delay.{what}"),
                value,
                "needs a latency above 0: it changes how long packets wait",
                format!("set {at}.delay.latency, or remove it"),
            );
        }
    };
    if let Some(jitter) = &delay.jitter {
        let field = format!("{at}.delay.jitter");
        match parse_latency(jitter) {
            Err(rule) => errors.add(field, jitter, rule, "write it like 10ms, or remove it"),
            Ok(time) if time.is_zero() => {}
            Ok(time) => {
                needs("jitter", jitter, errors);
                if latency.is_some_and(|latency| latency + time > MAX_LATENCY) {
                    errors.add(
                        field,
                        jitter,
                        "must be at most 1h together with the latency",
                        "write a shorter time",
                    );
                }
            }
        }
    }
    if let Some(reorder) = &delay.reorder {
        needs("reorder.reorder", &reorder.reorder, errors);
        let at = format!("{at}.delay.reorder");
        check_share(&reorder.reorder, &format!("{at}.reorder"), true, errors);
        check_correlation(reorder.correlation.as_deref(), &at, errors);
        if reorder.gap < 0 {
            errors.add(
                format!("{at}.gap"),
                reorder.gap.to_string(),
                "must not be negative",
                "write 1 to let any packet overtake, or a larger number",
            );
        }
    }
}

/// What a shaper lets pass.
fn check_rates(spec: &NetworkChaosSpec, at: &str, errors: &mut Errors) {
    let rate = spec.rate.as_ref().map(|block| &block.rate);
    let bandwidth = spec.bandwidth.as_ref().map(|block| &block.rate);
    for (name, given) in [("rate", rate), ("bandwidth", bandwidth)] {
        if let Some(given) = given
            && let Err(rule) = rate::parse(given)
        {
            errors.add(
                format!("{at}.{name}.rate"),
                given,
                rule.to_string(),
                "write it like 1mbit or 100kbps",
            );
        }
    }
    let Some(bandwidth) = &spec.bandwidth else {
        return;
    };
    for (name, given) in [("limit", bandwidth.limit), ("buffer", bandwidth.buffer)] {
        if given == 0 {
            errors.add(
                format!("{at}.bandwidth.{name}"),
                "0",
                "must be at least 1 byte",
                "write the bytes of some packets, such as 10000",
            );
        }
    }
}

/// A latency of zero is nothing by itself, but harmless where another block does something.
fn has_no_other_effect(spec: &NetworkChaosSpec) -> bool {
    let loss = spec.loss.as_ref().map(|loss| loss.loss.as_str());
    let duplicate = spec
        .duplicate
        .as_ref()
        .map(|duplicate| duplicate.duplicate.as_str());
    let corrupt = spec
        .corrupt
        .as_ref()
        .map(|corrupt| corrupt.corrupt.as_str());
    let nothing = |share: &str| percent::parse_ppm(share) == Ok(0);
    spec.action == NetworkAction::Delay
        || (spec.rate.is_none()
            && spec.bandwidth.is_none()
            && [loss, duplicate, corrupt]
                .into_iter()
                .flatten()
                .all(nothing))
}

fn check_shares(spec: &NetworkChaosSpec, at: &str, errors: &mut Errors) {
    let blocks = [
        (
            NetworkAction::Loss,
            spec.loss
                .as_ref()
                .map(|loss| (&loss.loss, &loss.correlation)),
        ),
        (
            NetworkAction::Duplicate,
            spec.duplicate
                .as_ref()
                .map(|block| (&block.duplicate, &block.correlation)),
        ),
        (
            NetworkAction::Corrupt,
            spec.corrupt
                .as_ref()
                .map(|block| (&block.corrupt, &block.correlation)),
        ),
    ];
    let set = blocks.iter().filter(|(_, block)| block.is_some()).count();
    for (action, block) in blocks {
        let Some((share, correlation)) = block else {
            continue;
        };
        let name = action.as_str();
        // The only block, or the one the action is named after, must do something.
        let others = spec.delay.is_some() || spec.rate.is_some() || spec.bandwidth.is_some();
        let alone = !others && set == 1;
        let at = format!("{at}.{name}");
        check_share(
            share,
            &format!("{at}.{name}"),
            alone || spec.action == action,
            errors,
        );
        check_correlation(correlation.as_deref(), &at, errors);
    }
    if let Some(correlation) = spec
        .delay
        .as_ref()
        .and_then(|delay| delay.correlation.as_deref())
    {
        check_correlation(Some(correlation), &format!("{at}.delay"), errors);
    }
}

fn check_share(given: &str, field: &str, needed: bool, errors: &mut Errors) {
    let rule = match percent::parse_ppm(given) {
        Err(error) => error.to_string(),
        Ok(0) if needed => "0 percent hits nothing".to_owned(),
        Ok(_) => return,
    };
    errors.add(
        field,
        given,
        rule,
        "write a number from 0 to 100 in quotes, such as \"30\"",
    );
}

fn check_correlation(given: Option<&str>, at: &str, errors: &mut Errors) {
    // Defaulted to "0" when empty.
    let Some(given) = given.filter(|given| !given.is_empty()) else {
        return;
    };
    if let Err(error) = percent::parse_ppm(given) {
        errors.add(
            format!("{at}.correlation"),
            given,
            error.to_string(),
            "write a number from 0 to 100 in quotes, or remove it",
        );
    }
}

fn check_device(given: Option<&str>, field: &str, errors: &mut Errors) {
    let Some(given) = given else { return };
    let name = given.split('@').next().unwrap_or_default();
    let forbidden = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
    if name.len() > MAX_DEVICE_LEN || name == "." || name == ".." || name.contains(forbidden) {
        errors.add(
            field,
            given,
            format!(
                "a network device has a name of at most {MAX_DEVICE_LEN} bytes without / : or spaces"
            ),
            "write it as ip link shows it in the pod, or remove it for eth0",
        );
    }
}

/// Of one number and one unit, as the schema says, and not negative.
fn parse_latency(given: &str) -> Result<Duration, String> {
    let parsed = duration::parse(given).map_err(|error| error.to_string())?;
    let units = given.chars().collect::<Vec<_>>();
    let parts = units
        .windows(2)
        .filter(|pair| pair[0].is_ascii_alphabetic() && pair[1].is_ascii_digit());
    if parts.count() > 0 || !given.starts_with(|c: char| c.is_ascii_digit()) {
        return Err("must be one number with one unit (ns, us, ms, s, m, h)".to_owned());
    }
    Duration::try_from(parsed).map_err(|_| "must not be negative".to_owned())
}

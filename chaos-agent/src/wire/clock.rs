//! Effects on clocks, between their message and the planner's type.

use chaos_planner::clock::{ClockEffect, Jump};
use chaos_proto::agent as proto;

/// The message for an effect.
pub(super) fn message(effect: &ClockEffect) -> proto::ClockEffect {
    let jump = |jump: &Jump| proto::ClockJump {
        after_ns: jump.after_ns,
        by_ns: jump.by_ns,
    };
    proto::ClockEffect {
        offset_ns: effect.offset_ns,
        clocks: effect.clocks,
        drift_ppm: effect.drift_ppm,
        jumps: effect.jumps.iter().map(jump).collect(),
    }
}

/// The effect of a message.
pub(super) fn effect(message: proto::ClockEffect) -> Result<ClockEffect, String> {
    let jump = |jump: proto::ClockJump| Jump {
        after_ns: jump.after_ns,
        by_ns: jump.by_ns,
    };
    let effect = ClockEffect {
        offset_ns: message.offset_ns,
        clocks: message.clocks,
        drift_ppm: message.drift_ppm,
        jumps: message.jumps.into_iter().map(jump).collect(),
    };
    match effect.refusal() {
        None => Ok(effect),
        Some(why) => Err(format!("clock: {why}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_effect_arrives_as_it_was_sent_or_is_refused() {
        let sent = ClockEffect {
            offset_ns: -5,
            clocks: 0b11,
            drift_ppm: -990_000,
            jumps: vec![Jump {
                after_ns: 7,
                by_ns: -9,
            }],
        };
        assert_eq!(effect(message(&sent)), Ok(sent.clone()));
        let many = ClockEffect {
            jumps: vec![sent.jumps[0]; 9],
            ..sent
        };
        let refused = effect(message(&many)).unwrap_err();
        assert!(refused.starts_with("clock: a clock jumps"), "{refused}");
    }
}

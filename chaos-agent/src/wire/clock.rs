//! Effects on clocks, between their message and the planner's type.

use chaos_planner::clock::ClockEffect;
use chaos_proto::agent as proto;

/// The message for an effect.
pub(super) fn message(effect: &ClockEffect) -> proto::ClockEffect {
    proto::ClockEffect {
        offset_ns: effect.offset_ns,
        clocks: effect.clocks,
    }
}

/// The effect of a message.
pub(super) fn effect(message: proto::ClockEffect) -> Result<ClockEffect, String> {
    let effect = ClockEffect {
        offset_ns: message.offset_ns,
        clocks: message.clocks,
    };
    match effect.refusal() {
        None => Ok(effect),
        Some(why) => Err(format!("clock: {why}")),
    }
}

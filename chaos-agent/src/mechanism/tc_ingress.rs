//! All but partition on what comes in: what differs from `tc_egress.rs`, which attaches both. A device
//! that packets are treated on both ways has two records, each with a slot and a detour of its own.
//!
//! Whom a packet is for is not known yet where it comes in by a device. So the target is its whole
//! network namespace here, whatever its cgroup, and cannot be the host's.

use chaos_abi::network::{Rule, flag};
use chaos_planner::fault::NetworkEffect;

use super::tc_egress::TcEgress;

/// The part of a rule that this mechanism reads. A peer's port is the one that it sends from.
pub fn rule(effect: &NetworkEffect) -> Rule {
    let rule = TcEgress::rule(effect);
    Rule {
        flags: rule.flags & !flag::EGRESS | flag::INGRESS | flag::SOURCE_PORT,
        ..rule
    }
}

//! All but partition on what comes in: what differs from `tc_egress`, which attaches both. A device
//! that packets are treated on both ways has two records, each with a slot and a detour of its own.
//!
//! Whom a packet is for is not known yet where it comes in by a device. So the target is its whole
//! network namespace here, whatever its cgroup, and cannot be the host's.

use chaos_abi::network::{Rule, flag};
use chaos_planner::capabilities::Mechanism;
use chaos_planner::fault::NetworkEffect;
use serde::{Deserialize, Serialize};

use super::tc_egress::TcEgress;
use crate::kernel::netlink::Hook;

/// Which packets of a device are treated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// Those that leave by it.
    #[default]
    Egress,
    /// Those that come in by it.
    Ingress,
}

impl Way {
    /// Where the filter sits.
    pub const fn hook(self) -> Hook {
        match self {
            Self::Egress => Hook::Egress,
            Self::Ingress => Hook::Ingress,
        }
    }

    /// What does it.
    pub const fn mechanism(self) -> Mechanism {
        match self {
            Self::Egress => Mechanism::TcEgress,
            Self::Ingress => Mechanism::TcIngress,
        }
    }

    /// The programs: on the device, on the way into the detour, and on the way out of it.
    pub const fn programs(self) -> [&'static str; 3] {
        match self {
            Self::Egress => ["tc_egress", "tc_egress_stamp", "tc_egress_return"],
            Self::Ingress => ["tc_ingress", "tc_ingress_stamp", "tc_ingress_return"],
        }
    }
}

/// The part of a rule that this mechanism reads. A peer's port is the one that it sends from.
pub fn rule(effect: &NetworkEffect) -> Rule {
    let rule = TcEgress::rule(effect);
    Rule {
        flags: rule.flags & !flag::EGRESS | flag::INGRESS | flag::SOURCE_PORT,
        ..rule
    }
}

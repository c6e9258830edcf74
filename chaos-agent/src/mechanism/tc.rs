//! The two ways of packets on a device, and what each is called. What is done on them: `tc_egress.rs`
//! and `tc_ingress.rs`.

use chaos_planner::capabilities::Mechanism;
use serde::{Deserialize, Serialize};

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

    /// Which way a mechanism treats packets of a device; `None` if it needs no device.
    pub const fn of(mechanism: Mechanism) -> Option<Self> {
        match mechanism {
            Mechanism::CgroupDrop | Mechanism::ClockShift => None,
            Mechanism::TcEgress => Some(Self::Egress),
            Mechanism::TcIngress => Some(Self::Ingress),
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

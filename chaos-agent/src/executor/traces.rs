//! What of a fault the kernel still holds, read back. Nothing is changed here.

use std::fmt;

use aya::maps::MapError;
use chaos_abi::network::RuleRef;

use super::{Armed, Executor};
use crate::mechanism::tc::Way;

/// What a fault has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trace {
    /// A rule.
    Rule,
    /// An entry in its target's list.
    Target,
    /// Packets in a detour.
    Packets,
    /// Bytes of the vDSO of a program.
    ClockBytes,
    /// One whom it was limited to.
    Peer,
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rule => "a rule",
            Self::Target => "an entry of its target",
            Self::Packets => "packets on the way",
            Self::ClockBytes => "changed bytes in the vDSO of a program",
            Self::Peer => "a peer",
        })
    }
}

impl Executor {
    /// Whether this fault has left anything in the kernel, its device included.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn traces(&self, armed: &Armed) -> Result<Option<Trace>, MapError> {
        for rule in &armed.rules {
            if self.maps.generation(rule.mechanism.into(), rule.id)? == rule.generation {
                return Ok(Some(Trace::Rule));
            }
            let target = self
                .maps
                .target(rule.mechanism.into(), rule.key)?
                .unwrap_or_default();
            if target.rules.contains(&RuleRef {
                id: rule.id,
                generation: rule.generation,
            }) {
                return Ok(Some(Trace::Target));
            }
            if Way::of(rule.mechanism).is_some() && self.devices.is_draining(rule.key) {
                return Ok(Some(Trace::Packets));
            }
            if self.clocks_remain(rule)? {
                return Ok(Some(Trace::ClockBytes));
            }
        }
        if armed.peer_set != 0 {
            let peers = self.maps.peers()?;
            let nets = self.maps.nets()?;
            let mut sets = peers
                .iter()
                .map(|key| key.set)
                .chain(nets.iter().map(|(_, key, _)| key.set));
            if sets.any(|set| set == armed.peer_set) {
                return Ok(Some(Trace::Peer));
            }
        }
        Ok(None)
    }
}

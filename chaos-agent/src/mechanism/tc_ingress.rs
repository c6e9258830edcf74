//! All but partition on what comes in: what differs from `tc_egress.rs`, which attaches both. A device
//! that packets are treated on both ways has two records, each with a slot and a detour of its own.
//!
//! Whom a packet is for is not known yet where it comes in by a device. On one that is the target's
//! alone all are for it. On one that others use too the program looks for the socket that will receive
//! it and reads that one's cgroup, which takes the places of a few fields of the kernel's.

use std::sync::OnceLock;

use aya::Ebpf;
use chaos_abi::network::{Rule, flag};
use chaos_planner::fault::NetworkEffect;

use super::MechanismError;
use super::tc::Way;
use super::tc_egress::{TcEgress, load_with};
use crate::kernel::btf::{Field, Types};
use crate::kernel::objects::Loader;

/// Constants of the program, and the fields whose offsets together they are.
const PLACES: [(&str, &[Field]); 7] = [
    (
        "SOCK_CGROUP",
        &[("sock", "sk_cgrp_data"), ("sock_cgroup_data", "cgroup")],
    ),
    ("SOCK_SOCKET", &[("sock", "sk_socket")]),
    ("SOCKET_FILE", &[("socket", "file")]),
    ("CGROUP_LEVEL", &[("cgroup", "level")]),
    ("CGROUP_ANCESTORS", &[("cgroup", "ancestors")]),
    ("CGROUP_KN", &[("cgroup", "kn")]),
    ("KN_ID", &[("kernfs_node", "id")]),
];

/// What the program has where they are not known: then it reads none of them.
static UNKNOWN: [(&str, u32); PLACES.len()] = {
    let mut unknown = [("", 0); PLACES.len()];
    let mut n = 0;
    while n < PLACES.len() {
        unknown[n].0 = PLACES[n].0;
        n += 1;
    }
    unknown
};

/// Loads the programs. Beside them why they cannot tell which socket receives a packet, if so.
pub(super) fn load(
    loader: &mut Loader,
    types: &Result<Types, String>,
) -> Result<(Ebpf, Option<String>), MechanismError> {
    let why = match places(types) {
        Ok(places) => match load_with(loader, Way::Ingress, places) {
            Ok(ebpf) => return Ok((ebpf, None)),
            // As where the kernel is locked down, and lets nobody read its memory.
            Err(error) => error.to_string(),
        },
        Err(why) => why,
    };
    Ok((load_with(loader, Way::Ingress, &UNKNOWN)?, Some(why)))
}

/// What those are told whose fault needs it.
pub(super) fn refusal(why: &str) -> String {
    format!(
        "direction: this node cannot tell which process receives a packet on a device that others use \
         too ({why}); set it to `to`, or use action partition, which acts at sockets"
    )
}

/// The constants of the kernel that runs: where its fields are.
///
/// # Errors
/// Which one is not known.
pub fn places(types: &Result<Types, String>) -> Result<&'static [(&'static str, u32)], String> {
    /// They do not change while it does.
    static PLACES_HERE: OnceLock<Result<Vec<(&str, u32)>, String>> = OnceLock::new();
    let places = PLACES_HERE.get_or_init(|| {
        let types = types.as_ref().map_err(Clone::clone)?;
        let fields: Vec<_> = PLACES
            .iter()
            .flat_map(|(_, fields)| *fields)
            .copied()
            .collect();
        sums(&types.layout.offsets(&fields))
    });
    places.as_deref().map_err(Clone::clone)
}

/// Each constant, from the offsets of all fields in their order.
fn sums(offsets: &[Option<u32>]) -> Result<Vec<(&'static str, u32)>, String> {
    let mut offsets = offsets.iter();
    let sum = |(name, fields): &(&'static str, &[Field])| {
        let mut sum = 0;
        for (structure, field) in *fields {
            let offset = offsets.next().copied().flatten();
            sum += offset.ok_or_else(|| {
                format!("the kernel's BTF does not say where `{field}` is in `struct {structure}`")
            })?;
        }
        Ok((*name, sum))
    };
    PLACES.iter().map(sum).collect()
}

/// The part of a rule that this mechanism reads. A peer's port is the one that it sends from.
pub fn rule(effect: &NetworkEffect) -> Rule {
    let rule = TcEgress::rule(effect);
    Rule {
        flags: rule.flags & !flag::EGRESS | flag::INGRESS | flag::SOURCE_PORT,
        ..rule
    }
}

#[cfg(test)]
mod tests {
    use super::sums;

    #[test]
    fn a_constant_is_the_sum_of_its_fields_and_one_that_is_unknown_is_named() {
        let offsets: Vec<_> = (1..=8).map(|n| Some(1 << n)).collect();
        let found = sums(&offsets).expect("all are known");
        assert_eq!(
            found[..3],
            [("SOCK_CGROUP", 6), ("SOCK_SOCKET", 8), ("SOCKET_FILE", 16)]
        );
        assert_eq!(found[6], ("KN_ID", 256));
        let mut lacking = offsets;
        lacking[5] = None;
        let why = sums(&lacking).expect_err("one is not known");
        assert!(why.contains("`ancestors` is in `struct cgroup`"), "{why}");
    }
}

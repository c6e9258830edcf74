//! Which devices of a target's namespace are meant: the one that is named, the pod's own, or those
//! that packets of a process can leave by. Nothing is changed here.

use std::collections::BTreeSet;

use super::{MechanismError, detour, io_error};
use crate::kernel::netlink::{Link, Netlink};

/// The most devices of one fault: each has a filter, a detour and a budget of its own.
const MAX_LINKS: usize = 64;

/// What container runtimes call the device of a pod.
const OF_POD: &str = "eth0";

/// Indexes and names of the devices of a target: `name`, else eth0 of a pod with a namespace of its own,
/// else all that carry routes. Without any route: the only one that is up.
///
/// # Errors
/// [`MechanismError::Target`] that names what is there.
pub fn of_target(
    netlink: &mut Netlink,
    name: Option<&str>,
    pod: bool,
) -> Result<Vec<(u32, String)>, MechanismError> {
    if name.is_none()
        && pod
        && let Some(index) = of_pod(netlink)
    {
        return Ok(vec![(index, OF_POD.to_owned())]);
    }
    if let Some(name) = name.or(pod.then_some(OF_POD)) {
        let found = link(netlink, name)?;
        if found.loopback {
            return Err(MechanismError::Target(format!(
                "device: {}: only partition works on the loopback device; name another, or use partition",
                found.name
            )));
        }
        return Ok(vec![(found.index, found.name)]);
    }
    let there = links(netlink)?;
    let routed = netlink
        .route_devices()
        .map_err(io_error("list the routes of the target"))?;
    let chosen = choose(&there, &routed).map_err(MechanismError::Target)?;
    Ok(chosen
        .into_iter()
        .map(|link| (link.index, link.name))
        .collect())
}

/// Index of the device that a pod with a namespace of its own nearly always has; asked for without waiting
/// for others.
pub fn of_pod(netlink: &Netlink) -> Option<u32> {
    netlink.index(OF_POD).ok()
}

/// Whether a device of a namespace that is not the host's is called as that of a pod.
pub fn is_of_pod(name: &str) -> bool {
    name == OF_POD
}

/// The device of this name in the target's namespace.
///
/// # Errors
/// [`MechanismError::Target`] that names what is there.
pub fn link(netlink: &mut Netlink, name: &str) -> Result<Link, MechanismError> {
    let link = netlink
        .link(name)
        .map_err(io_error("look for the device of the target"))?;
    match link {
        Some(link) => Ok(link),
        None => {
            let there = names(&links(netlink)?);
            Err(MechanismError::Target(format!(
                "device: {name}: the target has no such device; name one of: {there}"
            )))
        }
    }
}

fn links(netlink: &mut Netlink) -> Result<Vec<Link>, MechanismError> {
    netlink
        .links()
        .map_err(io_error("list the devices of the target"))
}

fn names(links: &[Link]) -> String {
    let names: Vec<_> = links.iter().map(|link| link.name.as_str()).collect();
    names.join(", ")
}

/// Of those that are `there`, those that carry routes.
fn choose(there: &[Link], routed: &BTreeSet<u32>) -> Result<Vec<Link>, String> {
    let real: Vec<_> = there
        .iter()
        .filter(|link| link.up && !link.loopback && !detour::is_named(&link.name))
        .cloned()
        .collect();
    let carrying: Vec<_> = real
        .iter()
        .filter(|link| routed.contains(&link.index))
        .cloned()
        .collect();
    if carrying.len() > MAX_LINKS {
        return Err(format!(
            "device: not set: {} devices of the target carry routes, and a fault can be on at most \
             {MAX_LINKS}; set spec.device to one of: {}",
            carrying.len(),
            names(&carrying)
        ));
    }
    match (carrying.is_empty(), real.len()) {
        (false, _) => Ok(carrying),
        (true, 1) => Ok(real),
        (true, _) => Err(format!(
            "device: not set: no device of the target carries a route, and not exactly one is up; \
             set spec.device to one of: {}",
            names(there)
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str) -> Link {
        Link {
            index,
            name: name.into(),
            up: true,
            loopback: name == "lo",
        }
    }

    #[test]
    fn those_that_carry_routes_are_meant_and_never_our_own() {
        let there = [
            link(1, "lo"),
            link(2, "eth0"),
            Link {
                up: false,
                ..link(3, "eth1")
            },
            link(4, "cni0"),
            link(5, "faultline1a"),
            link(6, "veth7"),
        ];
        let chosen = |there: &[Link], routed: &[u32]| {
            choose(there, &routed.iter().copied().collect()).map(|links| names(&links))
        };
        assert_eq!(
            chosen(&there, &[1, 2, 3, 4, 5]).as_deref(),
            Ok("eth0, cni0")
        );
        assert_eq!(chosen(&there[..2], &[]).as_deref(), Ok("eth0"));
        let error = chosen(&there, &[1]).unwrap_err();
        assert!(error.ends_with("eth1, cni0, faultline1a, veth7"), "{error}");
        let many: Vec<_> = (1..100).map(|n| link(n, &format!("v{n}"))).collect();
        let all: Vec<_> = (1..100).collect();
        let error = chosen(&many, &all).unwrap_err();
        assert!(error.contains("99 devices"), "{error}");
    }
}

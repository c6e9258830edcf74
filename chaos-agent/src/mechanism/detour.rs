//! The devices of a detour, whose fq holds what waits: one VLAN device on a pod's own device, which what comes out of it is
//! sent by, or a pair of veth devices. What is attached to them is the business of `tc_egress.rs`, and the way
//! of a packet through them is told in `chaos-ebpf/src/detour.rs`.

use std::io;

use chaos_abi::network::DETOUR_VLAN;

use super::tc_egress::Device;
use super::{MechanismError, io_error};
use crate::kernel::netlink::{Batch, Netlink};

/// At most 15 bytes, and unlike any name that others give: the ends of a slot's detour, of which the second is
/// missing where it is a VLAN device.
pub(super) fn names(slot: u16) -> [String; 2] {
    [format!("faultline{slot}a"), format!("faultline{slot}b")]
}

/// Whether a device of this name is of a detour.
pub(super) fn is_named(name: &str) -> bool {
    name.strip_prefix("faultline")
        .is_some_and(|rest| rest.trim_end_matches(['a', 'b']).parse::<u16>().is_ok())
}

/// Forgets a detour that is not there any more: the kernel is believed, not the record, for the number of a namespace is
/// given out again.
///
/// # Errors
/// What the kernel answers.
pub(super) fn look_for(netlink: &mut Netlink, device: &mut Device) -> Result<(), MechanismError> {
    if let Some((inward, _)) = device.detour {
        let [going_in, _] = names(device.slot);
        let there = netlink
            .link(&going_in)
            .map_err(io_error("look for the detour"))?;
        if there.is_none_or(|link| link.index != inward) {
            device.detour = None;
        }
    }
    Ok(())
}

/// Makes the devices, as yet without anything on them.
///
/// # Errors
/// What the kernel answers.
pub(super) fn build(
    netlink: &mut Netlink,
    device: &mut Device,
    by_vlan: bool,
) -> Result<(), MechanismError> {
    let [going_in, coming_out] = names(device.slot);
    let on = device.ifindex;
    let mut made = Err(io::ErrorKind::Unsupported.into());
    if by_vlan && device.own {
        let one = |netlink: &mut Netlink| netlink.add_vlan(&going_in, on, DETOUR_VLAN);
        made = anew(netlink, device, one).map(|index| (index, 0));
    }
    // A device of some kinds carries no VLAN, as one of ipvlan.
    if made.is_err() {
        let two = |netlink: &mut Netlink| netlink.add_veth(&going_in, &coming_out);
        made = anew(netlink, device, two).map(|[inward, outward]| (inward, outward));
    }
    let detour = made.map_err(io_error(format!("create the detour {going_in}")))?;
    device.detour = Some(detour);
    device.checksums = false;
    Ok(())
}

/// Again where something is left of one whose removal was cut short.
fn anew<T>(
    netlink: &mut Netlink,
    device: &mut Device,
    make: impl Fn(&mut Netlink) -> io::Result<T>,
) -> io::Result<T> {
    match make(netlink) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            remove_devices(netlink, device)?;
            make(netlink)
        }
        made => made,
    }
}

/// Lets it take packets.
pub(super) fn start(batch: &mut Batch, (inward, outward): (u32, u32)) {
    if outward != 0 {
        // The far end first: then the near one has a carrier when it starts, and can send at once. A VLAN device has no
        // IPv6 that could give it an address.
        for ifindex in [outward, inward] {
            batch.silence(ifindex);
        }
        batch.start(outward);
    }
    batch.start(inward);
}

/// Removes the devices; none there is success.
///
/// # Errors
/// What the kernel answers.
pub(super) fn remove(netlink: &mut Netlink, device: &mut Device) -> Result<(), MechanismError> {
    let [going_in, _] = names(device.slot);
    remove_devices(netlink, device).map_err(io_error(format!("remove {going_in}")))
}

fn remove_devices(netlink: &mut Netlink, device: &mut Device) -> io::Result<()> {
    // By name, not by index: an index may be another device's by now.
    let [going_in, _] = names(device.slot);
    if let Some(link) = netlink.link(&going_in)? {
        netlink.delete_link(link.index)?;
    }
    device.detour = None;
    Ok(())
}

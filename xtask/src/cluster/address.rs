//! Every address and port of a cluster, in one place.
//!
//! Each node has two networks: `eth0` is QEMU's user networking, where this machine is 10.0.2.2 and
//! every node believes to be 10.0.2.15; the node network, a bridge on node 1 with a cable to each
//! other node, is where nodes meet. Pods and services have IPv4 and IPv6.

use std::{
    collections::BTreeSet,
    net::{TcpListener, UdpSocket},
};

use anyhow::{Context, Result};

/// This machine, as nodes and pods see it.
pub(crate) const HOST: &str = "10.0.2.2";
/// All pods.
pub(crate) const PODS: &str = "10.244.0.0/16,fd00:10:244::/48";
/// All services.
pub(crate) const SERVICES: &str = "10.96.0.0/16,fd00:10:96::/112";
/// The API server, as a service.
pub(crate) const API_SERVICE: &str = "10.96.0.1";
/// Where dropbear listens on a node.
pub(crate) const SSH_PORT: u16 = 22;
/// Where node 1 takes CONNECT requests from the API server.
pub(crate) const EGRESS_PORT: u16 = 8131;

/// The name of node `number`; they count from 1.
pub(crate) fn node_name(number: u32) -> String {
    format!("node{number}")
}

/// Its IPv4 address on the node network.
pub(crate) fn node_v4(number: u32) -> String {
    format!("192.168.99.{number}")
}

/// Its IPv6 address on the node network.
pub(crate) fn node_v6(number: u32) -> String {
    format!("fd99::{number:x}")
}

/// Its pods' IPv4 network.
pub(crate) fn pods_v4(number: u32) -> String {
    format!("10.244.{number}.0/24")
}

/// Its pods' IPv6 network.
pub(crate) fn pods_v6(number: u32) -> String {
    format!("fd00:10:244:{number:x}::/64")
}

/// The hardware address of the device at `number`'s end of a cable to `other`.
pub(crate) fn mac(number: u32, other: u32) -> String {
    format!("52:54:00:99:{number:02x}:{other:02x}")
}

/// Returns `count` ports on loopback that are free for TCP and UDP now. They lie below the range
/// from which the kernel takes ports for outgoing connections, so they stay free.
///
/// # Errors
/// If there are not so many.
pub(crate) fn free_ports(count: usize) -> Result<Vec<u16>> {
    // Two clusters that start at the same time look at different ports first.
    let first = 20_001 + (std::process::id() % 400) as u16 * 24;
    let mut ports = BTreeSet::new();
    for port in (first..32_000).chain(20_001..first) {
        if ports.len() == count {
            break;
        }
        if TcpListener::bind(("127.0.0.1", port)).is_ok()
            && UdpSocket::bind(("127.0.0.1", port)).is_ok()
        {
            ports.insert(port);
        }
    }
    (ports.len() == count)
        .then(|| ports.into_iter().collect())
        .context("there are not enough free ports on loopback")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_ports_are_distinct_and_can_be_listened_on() {
        let ports = free_ports(5).unwrap();
        assert_eq!(ports.iter().collect::<BTreeSet<_>>().len(), 5);
        for port in ports {
            assert!(TcpListener::bind(("127.0.0.1", port)).is_ok());
        }
    }
}

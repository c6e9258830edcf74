//! Devices of the host itself, as a node has them.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};
use rtnetlink::RouteMessageBuilder;

use super::{DEVICE, Namespace, cable, link_index};

/// A device of the host, and the namespace at the other end of its cable, whose default route leads
/// back. The device goes on drop.
#[derive(Debug)]
pub struct Uplink {
    /// Has [`DEVICE`], with [`Uplink::v4`] and [`Uplink::v6`].
    pub other: Namespace,
    host: Namespace,
    device: String,
    net: u8,
}

impl Uplink {
    /// Makes both, with addresses in 10.9.`net`.0/24 and fd09:`net`::/64, ready to use.
    ///
    /// # Errors
    /// The kernel did not make them.
    pub fn new(device: &str, net: u8) -> Result<Uplink> {
        let (host, other) = (Namespace::host()?, Namespace::new()?);
        cable(&host, device, &other)?;
        let uplink = Uplink {
            other,
            host,
            device: device.to_owned(),
            net,
        };
        uplink.address(device, DEVICE, net)?;
        uplink.other.netlink(async |handle| {
            let gateway = Ipv4Addr::new(10, 9, net, 1);
            let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway);
            let done = handle.route().add(route.build()).execute().await;
            done.context("failed to add a default route")
        })?;
        Ok(uplink)
    }

    /// A VLAN of this id over the cable, with addresses in 10.9.`net`.0/24: that of the other end.
    ///
    /// # Errors
    /// The kernel did not make it.
    pub fn add_vlan(&self, id: u16, net: u8) -> Result<IpAddr> {
        for (namespace, below, name) in [
            (&self.host, self.device.as_str(), "vlan-near"),
            (&self.other, DEVICE, "vlan-far"),
        ] {
            namespace.add_vlan(name, below, id)?;
        }
        self.address("vlan-near", "vlan-far", net)?;
        Ok(v4(net, 2))
    }

    /// IPv4 address of the other end.
    pub fn v4(&self) -> IpAddr {
        v4(self.net, 2)
    }

    /// IPv6 address of the other end.
    pub fn v6(&self) -> IpAddr {
        v6(self.net, 2)
    }

    /// IPv4 address of the host.
    pub fn host_v4(&self) -> IpAddr {
        v4(self.net, 1)
    }

    /// IPv6 address of the host.
    pub fn host_v6(&self) -> IpAddr {
        v6(self.net, 1)
    }

    fn address(&self, here: &str, there: &str, net: u8) -> Result<()> {
        for (namespace, device, end) in [(&self.host, here, 1), (&self.other, there, 2)] {
            namespace.add_address(device, v4(net, end), 24)?;
            namespace.add_address(device, v6(net, end), 64)?;
            namespace.up(device)?;
        }
        Ok(())
    }
}

impl Drop for Uplink {
    fn drop(&mut self) {
        // Nobody can be told here; the next test that makes it finds it there.
        let _ = self.host.netlink(async |handle| {
            let index = link_index(&handle, &self.device).await?;
            Ok(handle.link().del(index).execute().await?)
        });
    }
}

/// The host passes IPv4 packets on from one device to another as long as this lives.
#[derive(Debug)]
pub struct Forwarding(());

const FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

impl Forwarding {
    /// Switches it on.
    ///
    /// # Errors
    /// The kernel does not let it be changed.
    pub fn on() -> Result<Forwarding> {
        fs::write(FORWARD, "1").context("failed to switch forwarding on")?;
        Ok(Forwarding(()))
    }
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        // Nobody can be told here.
        let _ = fs::write(FORWARD, "0");
    }
}

fn v4(net: u8, end: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 9, net, end))
}

fn v6(net: u8, end: u8) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0xfd09, net.into(), 0, 0, 0, 0, 0, end.into()))
}

//! Network namespaces and the cables between them, by netlink alone.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use anyhow::{Context, Result, anyhow};
use chaos_agent::kernel::netns::of_this_thread;
use futures::TryStreamExt;
use nix::sched::{CloneFlags, setns, unshare};
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags};
use rtnetlink::{Handle, LinkIfb, LinkUnspec, LinkVeth, LinkVlan, LinkVxlan};

mod uplink;

pub use uplink::{Forwarding, Uplink};

/// The device on either side of a [`Pair`], as a pod has it.
pub const DEVICE: &str = "eth0";

/// A network namespace. The kernel removes it, and what is in it, when the last process in it and
/// this guard are gone.
#[derive(Debug)]
pub struct Namespace {
    file: File,
}

impl Namespace {
    /// A new one, with loopback up and nothing else in it.
    ///
    /// # Errors
    /// The kernel did not make it.
    pub fn new() -> Result<Namespace> {
        // Namespaces belong to threads: a thread that makes one and ends leaves the caller's alone.
        let file = on_a_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).context("failed to make a network namespace")?;
            of_this_thread().context("failed to open a network namespace")
        })?;
        let namespace = Namespace { file };
        namespace.netlink(async |handle| link_up(&handle, "lo").await)?;
        Ok(namespace)
    }

    /// That of the machine itself.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn host() -> Result<Namespace> {
        let file = File::open("/proc/1/ns/net").context("failed to open the host's namespace")?;
        Ok(Namespace { file })
    }

    /// Runs `work` inside of it, on a thread of its own. Sockets that it makes stay inside.
    ///
    /// # Errors
    /// That of `work`, or the namespace could not be entered.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        on_a_thread(|| {
            setns(&self.file, CloneFlags::CLONE_NEWNET)
                .context("failed to enter a network namespace")?;
            work()
        })
    }

    /// Gives `device` one more address. It can be used at once: no duplicate address detection.
    ///
    /// # Errors
    /// There is no such device, or it has that address already.
    pub fn add_address(&self, device: &str, address: IpAddr, prefix: u8) -> Result<()> {
        self.netlink(async |handle| {
            let index = link_index(&handle, device).await?;
            let mut request = handle.address().add(index, address, prefix);
            if address.is_ipv6() {
                let message = request.message_mut();
                message.header.flags |= AddressHeaderFlags::Nodad;
                message
                    .attributes
                    .push(AddressAttribute::Flags(AddressFlags::Nodad));
            }
            let done = request.execute().await;
            done.with_context(|| format!("failed to add {address}/{prefix} to {device}"))
        })
    }

    /// Sets `device` up.
    ///
    /// # Errors
    /// There is no such device.
    pub fn up(&self, device: &str) -> Result<()> {
        self.netlink(async |handle| link_up(&handle, device).await)
    }

    /// Makes a device of the VLAN with this id on `below`; it is down and has no address.
    ///
    /// # Errors
    /// There is no such device, or the kernel has no VLANs.
    pub fn add_vlan(&self, name: &str, below: &str, id: u16) -> Result<()> {
        self.netlink(async |handle| {
            let below = link_index(&handle, below).await?;
            let vlan = LinkVlan::new(name, below, id).build();
            let done = handle.link().add(vlan).execute().await;
            done.context("failed to make a VLAN device (is the module 8021q there?)")
        })
    }

    /// Makes one end of a tunnel (VXLAN, over UDP) to `remote` by `device`, sets it up and gives it an address
    /// in a /24. The kernel's socket gets the cgroup of the process that does it.
    ///
    /// # Errors
    /// There is no such device, or the kernel has no VXLAN.
    pub fn add_tunnel(&self, device: &str, remote: Ipv4Addr, address: Ipv4Addr) -> Result<()> {
        const NAME: &str = "tunnel";
        self.netlink(async |handle| {
            let below = link_index(&handle, device).await?;
            let tunnel = LinkVxlan::new(NAME, 9).dev(below).remote(remote).port(4789);
            let done = handle.link().add(tunnel.build()).execute().await;
            done.context("failed to make a VXLAN device (is the module vxlan there?)")
        })?;
        self.add_address(NAME, address.into(), 24)?;
        self.up(NAME)
    }

    /// Makes a device that takes every packet and lets none out, however many come: ifb drops what was
    /// not redirected to it by an action of a filter (`ifb_xmit`, drivers/net/ifb.c). Its index.
    ///
    /// # Errors
    /// The kernel has no ifb.
    pub fn add_sink(&self) -> Result<u32> {
        const NAME: &str = "sink";
        self.netlink(async |handle| {
            let made = handle.link().add(LinkIfb::new(NAME).up().build());
            made.execute()
                .await
                .context("failed to make an ifb device (is the module ifb there?)")?;
            link_index(&handle, NAME).await
        })
    }

    /// The names of the devices in it, sorted: to see that a fault has taken its own away again.
    ///
    /// # Errors
    /// Netlink failed.
    pub fn devices(&self) -> Result<Vec<String>> {
        use rtnetlink::packet_route::link::LinkAttribute;
        self.netlink(async |handle| {
            let links: Vec<_> = handle.link().get().execute().try_collect().await?;
            let attributes = links.into_iter().flat_map(|link| link.attributes);
            let mut names: Vec<_> = attributes
                .filter_map(|a| {
                    if let LinkAttribute::IfName(n) = a {
                        Some(n)
                    } else {
                        None
                    }
                })
                .collect();
            names.sort();
            Ok(names)
        })
    }

    /// The qdiscs and filters' blocks of all devices in it as `<device> <kind> <handle>`, sorted: to
    /// see that a fault has left them as they were.
    ///
    /// # Errors
    /// Netlink failed.
    pub fn qdiscs(&self) -> Result<Vec<String>> {
        use rtnetlink::packet_route::link::LinkAttribute;
        use rtnetlink::packet_route::tc::TcAttribute;
        self.netlink(async |handle| {
            let links: Vec<_> = handle.link().get().execute().try_collect().await?;
            let name = |index: i32| {
                let link = links
                    .iter()
                    .find(|l| l.header.index == index.cast_unsigned());
                let mut names = link.into_iter().flat_map(|l| &l.attributes);
                names
                    .find_map(|a| {
                        if let LinkAttribute::IfName(n) = a {
                            Some(n.clone())
                        } else {
                            None
                        }
                    })
                    .unwrap_or_else(|| format!("#{index}"))
            };
            let qdiscs: Vec<_> = handle.qdisc().get().execute().try_collect().await?;
            let mut lines: Vec<_> = qdiscs
                .iter()
                .map(|qdisc| {
                    let kind = qdisc.attributes.iter().find_map(|a| {
                        if let TcAttribute::Kind(kind) = a {
                            Some(kind.as_str())
                        } else {
                            None
                        }
                    });
                    let device = name(qdisc.header.index);
                    let major = qdisc.header.handle.major;
                    format!("{device} {} {major:x}:", kind.unwrap_or("?"))
                })
                .collect();
            lines.sort();
            Ok(lines)
        })
    }

    /// Talks to the kernel's netlink inside of the namespace.
    pub(crate) fn netlink<T: Send>(
        &self,
        work: impl AsyncFnOnce(Handle) -> Result<T> + Send,
    ) -> Result<T> {
        self.within(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_io()
                .build()?;
            runtime.block_on(async {
                let (connection, handle, _) =
                    rtnetlink::new_connection().context("failed to open netlink")?;
                let connection = tokio::spawn(connection);
                let result = work(handle).await;
                connection.abort();
                result
            })
        })
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Two namespaces, each with `eth0`, joined by a cable.
#[derive(Debug)]
pub struct Pair {
    /// Has [`Pair::A4`] and [`Pair::A6`].
    pub a: Namespace,
    /// Has [`Pair::B4`] and [`Pair::B6`].
    pub b: Namespace,
}

impl Pair {
    /// IPv4 address of `a`, in a /24.
    pub const A4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 9, 0, 1));
    /// IPv4 address of `b`, in a /24.
    pub const B4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 9, 0, 2));
    /// IPv6 address of `a`, in a /64.
    pub const A6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 1));
    /// IPv6 address of `b`, in a /64.
    pub const B6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 2));

    /// Makes both, with addresses, ready to use.
    ///
    /// # Errors
    /// The kernel did not make them.
    pub fn new() -> Result<Pair> {
        let (a, b) = (Namespace::new()?, Namespace::new()?);
        cable(&a, DEVICE, &b)?;
        for (namespace, v4, v6) in [(&a, Pair::A4, Pair::A6), (&b, Pair::B4, Pair::B6)] {
            namespace.add_address(DEVICE, v4, 24)?;
            namespace.add_address(DEVICE, v6, 64)?;
            namespace.up(DEVICE)?;
        }
        Ok(Pair { a, b })
    }
}

/// A cable from a new device of `a` to a new `eth0` of `b`; both are down.
pub(crate) fn cable(a: &Namespace, device: &str, b: &Namespace) -> Result<()> {
    let other_end = "other-end";
    a.netlink(async |handle| {
        let cable = LinkVeth::new(device, other_end).build();
        handle
            .link()
            .add(cable)
            .execute()
            .await
            .context("failed to make a veth pair")?;
        let index = link_index(&handle, other_end).await?;
        let message = LinkUnspec::new_with_index(index)
            .setns_by_fd(b.file.as_raw_fd())
            .build();
        handle
            .link()
            .set(message)
            .execute()
            .await
            .context("failed to move a veth device")
    })?;
    b.netlink(async |handle| {
        let index = link_index(&handle, other_end).await?;
        let message = LinkUnspec::new_with_index(index).name(DEVICE).build();
        handle
            .link()
            .set(message)
            .execute()
            .await
            .context("failed to rename a veth device")
    })
}

/// Sets loopback up in the namespace of the calling thread.
///
/// # Errors
/// Netlink failed.
pub fn loopback_up() -> Result<()> {
    let file = of_this_thread().context("failed to open our namespace")?;
    Namespace { file }.netlink(async |handle| link_up(&handle, "lo").await)
}

pub(crate) async fn link_index(handle: &Handle, name: &str) -> Result<u32> {
    let found = handle
        .link()
        .get()
        .match_name(name.to_owned())
        .execute()
        .try_next()
        .await;
    let link = found.with_context(|| format!("no device {name}"))?;
    Ok(link
        .ok_or_else(|| anyhow!("no device {name}"))?
        .header
        .index)
}

async fn link_up(handle: &Handle, name: &str) -> Result<()> {
    let index = link_index(handle, name).await?;
    let message = LinkUnspec::new_with_index(index).up().build();
    let done = handle.link().set(message).execute().await;
    done.with_context(|| format!("failed to set {name} up"))
}

fn on_a_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(work);
        thread
            .join()
            .unwrap_or_else(|_| Err(anyhow!("a thread of the harness panicked")))
    })
}

//! rtnetlink requests that injecting needs: devices here, qdiscs and filters in `tc.rs`. Blocking,
//! one request at a time. A connection stays in the namespace that it was opened in, whichever
//! thread uses it, and keeps that namespace alive.

mod ethtool;
mod tc;

use std::io;
use std::path::Path;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute,
    LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;

pub use self::tc::{Filter, HANDLE, Hook, PRIORITY};

use super::netns;

/// A device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its index in this namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Administratively up.
    pub up: bool,
    /// The loopback device.
    pub loopback: bool,
}

/// A connection to rtnetlink.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens one in the namespace of this thread.
    ///
    /// # Errors
    /// When the kernel refuses the socket.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Opens one in this namespace.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or as [`Self::open`].
    pub fn open_in(namespace: &Path) -> io::Result<Self> {
        netns::within(namespace, Self::open)
    }

    /// All devices.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn links(&mut self) -> io::Result<Vec<Link>> {
        let mut message = LinkMessage::default();
        message.attributes.push(without_statistics());
        let answers = self.request(Message::GetLink(message), NLM_F_DUMP)?;
        Ok(answers.into_iter().filter_map(link).collect())
    }

    /// The device of this name; `None` if there is none.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn link(&mut self, name: &str) -> io::Result<Option<Link>> {
        let mut message = LinkMessage::default();
        message
            .attributes
            .extend([LinkAttribute::IfName(name.to_owned()), without_statistics()]);
        match self.request(Message::GetLink(message), NLM_F_ACK) {
            Ok(answers) => Ok(answers.into_iter().find_map(link)),
            Err(error) if absent(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Index of the device of the default route, IPv4 before IPv6; `None` without one.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn default_route_device(&mut self) -> io::Result<Option<u32>> {
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            for answer in self.request(Message::GetRoute(message), NLM_F_DUMP)? {
                let Message::NewRoute(route) = answer else {
                    continue;
                };
                let main = route.header.table == RouteHeader::RT_TABLE_MAIN;
                if !main || route.header.destination_prefix_length != 0 {
                    continue;
                }
                let device = route.attributes.iter().find_map(|a| match a {
                    RouteAttribute::Oif(index) => Some(*index),
                    _ => None,
                });
                if device.is_some() {
                    return Ok(device);
                }
            }
        }
        Ok(None)
    }

    /// Makes a pair of veth devices that take frames of any size, have no addresses and are up.
    /// Returns their indexes.
    ///
    /// # Errors
    /// `AlreadyExists`, or what the kernel answers.
    pub fn add_veth(&mut self, name: &str, peer: &str) -> io::Result<[u32; 2]> {
        const MTU: u32 = 65_535;
        let named = |name: &str| {
            let mut message = LinkMessage::default();
            message
                .attributes
                .push(LinkAttribute::IfName(name.to_owned()));
            message.attributes.push(LinkAttribute::Mtu(MTU));
            message
        };
        let mut message = named(name);
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(named(peer)))),
        ]));
        self.act(Message::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)?;
        Ok([self.start(name)?, self.start(peer)?])
    }

    /// Lets a new device take packets; its index.
    fn start(&mut self, name: &str) -> io::Result<u32> {
        let index = self
            .link(name)?
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no device {name}")))?
            .index;
        let mut message = LinkMessage::default();
        message.header.index = index;
        message
            .attributes
            .push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(
                vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)],
            )]));
        // Else the kernel gives each a link-local address that the target would see. It is
        // refused where the namespace has no IPv6: then there is none to be seen.
        drop(self.act(Message::SetLink(message), 0));
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up | LinkFlags::Noarp;
        message.header.change_mask = LinkFlags::Up | LinkFlags::Noarp;
        self.act(Message::SetLink(message), 0)?;
        Ok(index)
    }

    /// Removes a device (and its peer). No device of that index is success.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn delete_link(&mut self, index: u32) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        absent_is_fine(self.act(Message::DelLink(message), 0))
    }

    fn act(&mut self, message: Message, flags: u16) -> io::Result<()> {
        self.request(message, flags | NLM_F_ACK).map(drop)
    }

    fn request(&mut self, message: Message, flags: u16) -> io::Result<Vec<Message>> {
        self.sequence += 1;
        let mut packet = NetlinkMessage::from(message);
        packet.header.flags = NLM_F_REQUEST | flags;
        packet.header.sequence_number = self.sequence;
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut answers = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            let mut rest = datagram.as_slice();
            while !rest.is_empty() {
                let answer = NetlinkMessage::<Message>::deserialize(rest)
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
                let length = (answer.header.length as usize).next_multiple_of(4);
                rest = rest.get(length..).unwrap_or_default();
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::InnerMessage(message) => answers.push(message),
                    NetlinkPayload::Error(error) => {
                        return match error.code {
                            None => Ok(answers),
                            Some(code) => Err(io::Error::from_raw_os_error(-code.get())),
                        };
                    }
                    NetlinkPayload::Done(_) => return Ok(answers),
                    _ => {}
                }
            }
        }
    }
}

fn link(answer: Message) -> Option<Link> {
    let Message::NewLink(link) = answer else {
        return None;
    };
    let name = link
        .attributes
        .into_iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name),
            _ => None,
        });
    Some(Link {
        index: link.header.index,
        up: link.header.flags.contains(LinkFlags::Up),
        loopback: link.header.flags.contains(LinkFlags::Loopback),
        name: name.unwrap_or_default(),
    })
}

/// Counting what all CPUs have counted is most of the work of describing a device.
fn without_statistics() -> LinkAttribute {
    LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])
}

fn absent(error: &io::Error) -> bool {
    let codes = [Errno::ENOENT, Errno::ENODEV, Errno::EINVAL, Errno::ESRCH];
    error
        .raw_os_error()
        .is_some_and(|code| codes.contains(&Errno::from_raw(code)))
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|error| if absent(&error) { Ok(()) } else { Err(error) })
}

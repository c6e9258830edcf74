//! rtnetlink requests that injecting needs: devices here, qdiscs and filters in `tc.rs`. Blocking,
//! one request at a time, or several as a batch (`batch.rs`). A connection stays in the namespace that it was opened in, whichever
//! thread uses it, and keeps that namespace alive.

mod batch;
mod ioctl;
mod tc;

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::Path;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, InfoVlan,
    LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage, VlanFlags,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;

pub use self::batch::{Batch, Refused};
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
    /// Where it was opened, if that was not for the thread that uses it.
    namespace: Option<File>,
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
            namespace: None,
            sequence: 0,
        })
    }

    /// Opens one in this namespace.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or as [`Self::open`].
    pub fn open_in(namespace: &Path) -> io::Result<Self> {
        let file = File::open(namespace)?;
        let inside = netns::within_open(&file, Self::open)?;
        Ok(Self {
            namespace: Some(file),
            ..inside
        })
    }

    /// Runs `act` in its namespace; with one of [`Self::open`], in that of this thread.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or what `act` fails with.
    pub fn within<T, E: From<io::Error>>(
        &self,
        act: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        match &self.namespace {
            Some(file) => netns::within_open(file, act),
            None => act(),
        }
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

    /// Devices that packets are sent by: those of the routes of all tables, without what each
    /// device has by itself (local addresses, link-local and multicast networks).
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn route_devices(&mut self) -> io::Result<BTreeSet<u32>> {
        let mut devices = BTreeSet::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            for answer in self.request(Message::GetRoute(message), NLM_F_DUMP)? {
                if let Message::NewRoute(route) = answer {
                    devices.extend(sends_by(&route));
                }
            }
        }
        Ok(devices)
    }

    /// Makes a pair of veth devices that take frames of any size and are down. Returns their indexes.
    ///
    /// # Errors
    /// `AlreadyExists`, or what the kernel answers.
    pub fn add_veth(&mut self, name: &str, peer: &str) -> io::Result<[u32; 2]> {
        const MTU: u32 = 65_535;
        let named = |name: &str| {
            let mut message = LinkMessage::default();
            message.attributes.extend([
                LinkAttribute::IfName(name.to_owned()),
                LinkAttribute::Mtu(MTU),
                // Else there is one for each CPU, all but one of them idle.
                LinkAttribute::NumTxQueues(1),
                LinkAttribute::NumRxQueues(1),
            ]);
            message
        };
        let mut message = named(name);
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(named(peer)))),
        ]));
        let flags = NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK;
        self.request(Message::NewLink(message), flags)?;
        Ok([self.index(name)?, self.index(peer)?])
    }

    /// Makes a VLAN device on the one with this index: it is down, stays up when that one goes down, and has no IPv6, for
    /// its frames may not be larger than that needs. Packets that are redirected to it may. Returns its index.
    ///
    /// # Errors
    /// `AlreadyExists`, also if that tag is taken there; `EOPNOTSUPP` where the kernel has no such devices or that one
    /// cannot carry them; or what else the kernel answers.
    pub fn add_vlan(&mut self, name: &str, on: u32, tag: (u16, u16)) -> io::Result<u32> {
        /// ETH_MIN_MTU
        const MTU: u32 = 68;
        let (protocol, id) = tag;
        let mut message = LinkMessage::default();
        message.attributes.extend([
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Link(on),
            LinkAttribute::Mtu(MTU),
            LinkAttribute::NumTxQueues(1),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Vlan),
                LinkInfo::Data(InfoData::Vlan(vec![
                    InfoVlan::Id(id),
                    InfoVlan::Protocol(protocol.into()),
                    InfoVlan::Flags((VlanFlags::LooseBinding, VlanFlags::LooseBinding)),
                ])),
            ]),
        ]);
        let flags = NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK;
        self.request(Message::NewLink(message), flags)?;
        self.index(name)
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

    /// One that is a dump, or asks for an acknowledgement.
    fn request(&mut self, message: Message, flags: u16) -> io::Result<Vec<Message>> {
        let mut answers = self.exchange(vec![(message, flags)])?;
        answers.pop().unwrap_or_else(|| Ok(Vec::new()))
    }

    /// Sends messages with their flags as one datagram, and returns the answer to each.
    fn exchange(&mut self, messages: Vec<(Message, u16)>) -> io::Result<Vec<Answer>> {
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        let mut answers: Vec<Vec<Message>> = Vec::new();
        let mut ended: Vec<Option<io::Result<()>>> = Vec::new();
        for (message, flags) in messages {
            self.sequence = self.sequence.wrapping_add(1);
            let mut packet = NetlinkMessage::from(message);
            packet.header.flags = NLM_F_REQUEST | flags;
            packet.header.sequence_number = self.sequence;
            packet.finalize();
            let start = bytes.len();
            bytes.resize(start + packet.buffer_len().next_multiple_of(4), 0);
            packet.serialize(&mut bytes[start..]);
            answers.push(Vec::new());
            ended.push(None);
        }
        self.socket.send(&bytes, 0)?;
        while ended.iter().any(Option::is_none) {
            let (datagram, _) = self.socket.recv_from_full()?;
            let mut rest = datagram.as_slice();
            while !rest.is_empty() {
                let answer = NetlinkMessage::<Message>::deserialize(rest)
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
                let length = (answer.header.length as usize).next_multiple_of(4);
                rest = rest.get(length..).unwrap_or_default();
                // Those of requests that were given up come before the first of these.
                let place = answer.header.sequence_number.wrapping_sub(first) as usize;
                let (Some(answers), Some(ended)) = (answers.get_mut(place), ended.get_mut(place))
                else {
                    continue;
                };
                match answer.payload {
                    NetlinkPayload::InnerMessage(message) => answers.push(message),
                    NetlinkPayload::Error(error) => {
                        *ended = Some(match error.code {
                            None => Ok(()),
                            Some(code) => Err(io::Error::from_raw_os_error(-code.get())),
                        });
                    }
                    NetlinkPayload::Done(_) => *ended = Some(Ok(())),
                    _ => {}
                }
            }
        }
        let whole = answers.into_iter().zip(ended);
        Ok(whole
            .map(|(answers, ended)| ended.unwrap_or(Ok(())).map(|()| answers))
            .collect())
    }
}

/// What the kernel says to one request.
type Answer = io::Result<Vec<Message>>;

impl Batch {
    /// Keeps a device from getting an address of its own when it starts.
    pub fn silence(&mut self, index: u32) {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message
            .attributes
            .push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(
                vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)],
            )]));
        // Else the kernel gives each a link-local address that the target would see. It is
        // refused where the namespace has no IPv6: then there is none to be seen.
        let silent = Message::SetLink(message);
        self.may("keep addresses off the detour", silent, 0, |_| true);
    }

    /// Lets a device that is down take packets.
    pub fn start(&mut self, index: u32) {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up | LinkFlags::Noarp;
        message.header.change_mask = LinkFlags::Up | LinkFlags::Noarp;
        self.must("start the detour", Message::SetLink(message), 0);
    }
}

/// The devices of a route to somewhere else.
fn sends_by(route: &RouteMessage) -> Vec<u32> {
    // linux/rtnetlink.h, RT_TABLE_LOCAL
    const LOCAL: u8 = 255;
    let own = route.attributes.iter().any(|attribute| {
        matches!(attribute, RouteAttribute::Destination(RouteAddress::Inet6(to))
            if to.is_unicast_link_local())
    });
    let header = &route.header;
    if own || header.kind != RouteType::Unicast || header.table == LOCAL {
        return Vec::new();
    }
    let devices = route
        .attributes
        .iter()
        .flat_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => vec![*index],
            RouteAttribute::MultiPath(hops) => hops.iter().map(|hop| hop.interface_index).collect(),
            _ => Vec::new(),
        });
    devices.collect()
}

fn link(answer: Message) -> Option<Link> {
    let Message::NewLink(link) = answer else {
        return None;
    };
    let name = link
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.clone()),
            _ => None,
        });
    Some(Link {
        index: link.header.index,
        name: name.unwrap_or_default(),
        up: link.header.flags.contains(LinkFlags::Up),
        loopback: link.header.flags.contains(LinkFlags::Loopback),
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

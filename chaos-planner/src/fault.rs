//! What somebody asked of this node, in the node's own words.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::clock::ClockEffect;

/// Unique and stable for one record of one experiment's round.
pub type FaultId = String;

/// One fault on one target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// See [`FaultId`].
    pub id: FaultId,
    /// Kind of the object that asks for it, `NetworkChaos`.
    pub kind: String,
    /// Namespace of that object; empty on a host without Kubernetes.
    pub namespace: String,
    /// Name of that object.
    pub name: String,
    /// Id of the record, `<namespace>/<pod>` for a pod.
    pub record: String,
    /// Whom it is done to.
    pub target: TargetRef,
    /// Until when.
    pub lifetime: Lifetime,
    /// Do it, or only count.
    pub mode: Mode,
    /// Which of the matching packets or calls.
    pub sample: Sample,
    /// What is done.
    pub effect: Effect,
}

/// Whom a fault is done to, as the user named it; `target.rs` of the agent looks it up.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum TargetRef {
    /// A pod of this node.
    Pod {
        /// `metadata.uid`
        uid: String,
        /// Ids of its containers without the runtime's scheme.
        container_ids: Vec<String>,
        /// It shares the node's network namespace.
        host_network: bool,
    },
    /// One container of a pod of this node.
    Container {
        /// `metadata.uid` of the pod.
        pod_uid: String,
        /// Its id without the runtime's scheme.
        id: String,
    },
    /// A cgroup of this host: absolute path below the cgroup2 mount.
    Cgroup(PathBuf),
    /// The cgroup that this process is in.
    Pid(u32),
}

/// How long a fault lasts. Counted from when the desired set was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Lifetime {
    /// It ends by itself after this time.
    For(Duration),
    /// It ends when it is no longer desired; the kernel holds a lease that is renewed.
    Leased {
        /// How long it goes on after the client that asked for it has gone; `None`: for ever.
        orphan_timeout: Option<Duration>,
    },
}

/// `spec.faultline.mode`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// Do it.
    #[default]
    Inject,
    /// Count what would be hit, do nothing.
    Observe,
}

/// `spec.faultline.sample`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// Parts per million of the matching packets; `None` is all.
    pub ppm: Option<u32>,
    /// Only the first so many; 0 is no limit.
    pub first: u64,
    /// Only each so many-th; 0 and 1 are all.
    pub every: u64,
    /// Seed of all draws; `None`: the agent draws one.
    pub seed: Option<u64>,
}

/// What is done, by family.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Effect {
    /// To packets.
    Network(NetworkEffect),
    /// To clocks.
    Clock(ClockEffect),
}

/// What is done to packets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkEffect {
    /// To those that the target sends.
    pub egress: bool,
    /// To those that it receives.
    pub ingress: bool,
    /// Device inside the target's network namespace; `None` is the default of the target.
    pub device: Option<String>,
    /// Only those to or from these; `None` is every packet.
    pub peers: Option<Vec<Peer>>,
    /// Partition: the sender is told.
    pub drop: bool,
    /// Lost; the sender is not told.
    pub loss: Option<Chance>,
    /// Duplicated.
    pub duplicate: Option<Chance>,
    /// With a flipped bit.
    pub corrupt: Option<Chance>,
    /// Wait on the way.
    pub delay: Option<Delay>,
    /// Bytes a second that a line behind the delay takes; packets that do not fit into its queue
    /// ([`LINE_LIMIT`]) are lost.
    pub rate: Option<u64>,
    /// A token bucket behind that line.
    pub bandwidth: Option<Bandwidth>,
}

/// Bytes that wait before a line of [`NetworkEffect::rate`]: 1000 packets of 1514 bytes, as netem
/// has it where nothing else is said.
pub const LINE_LIMIT: u64 = 1_000 * 1_514;

/// How often something is done to a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chance {
    /// Parts per million of the packets.
    pub ppm: u32,
    /// Parts per million of the packets that fare as the packet before them.
    pub correlation_ppm: u32,
}

impl Chance {
    /// Each packet by itself.
    pub const fn of(ppm: u32) -> Self {
        Self {
            ppm,
            correlation_ppm: 0,
        }
    }
}

/// Wait before sending.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delay {
    /// How long.
    pub latency: Duration,
    /// How much longer or shorter, at most.
    pub jitter: Duration,
    /// Parts per million of the packets that wait as long as the packet before them.
    pub correlation_ppm: u32,
    /// Some do not wait.
    pub reorder: Option<Reorder>,
}

impl Delay {
    /// Always the same.
    pub const fn of(latency: Duration) -> Self {
        Self {
            latency,
            jitter: Duration::ZERO,
            correlation_ppm: 0,
            reorder: None,
        }
    }

    /// The longest wait.
    pub const fn longest(&self) -> Duration {
        self.latency.saturating_add(self.jitter)
    }
}

/// Some packets do not wait, and so overtake others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reorder {
    /// How often.
    pub chance: Chance,
    /// At least so many packets less one wait before the next that does not; 0 and 1: none has to.
    pub gap: u64,
}

/// A token bucket, as tbf has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bandwidth {
    /// Bytes a second.
    pub rate: u64,
    /// Bytes that wait for tokens; more are lost.
    pub limit: u64,
    /// Bytes of tokens that the bucket holds.
    pub buffer: u64,
    /// How fast those leave.
    pub peak: Option<Peak>,
}

/// The second bucket of a [`Bandwidth`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peak {
    /// Bytes a second.
    pub rate: u64,
    /// Bytes of tokens that it holds.
    pub burst: u64,
}

/// How long so many bytes take.
fn time_of(bytes: u64, rate: u64) -> Duration {
    let nanos = (u128::from(bytes) * 1_000_000_000)
        .checked_div(u128::from(rate))
        .unwrap_or(0);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

impl NetworkEffect {
    /// Whether something is done that only a device can do, not a socket.
    pub const fn shapes(&self) -> bool {
        self.loss.is_some() || self.detours()
    }

    /// Whether packets have to be held back, copied or changed.
    pub const fn detours(&self) -> bool {
        self.duplicate.is_some()
            || self.corrupt.is_some()
            || self.delay.is_some()
            || self.rate.is_some()
            || self.bandwidth.is_some()
    }

    /// The longest that a packet can wait, at most `most` in each queue.
    pub fn longest_wait(&self, most: Duration) -> Duration {
        let line = self.rate.map(|rate| time_of(LINE_LIMIT, rate));
        let bucket = self.bandwidth.map(|b| {
            let peak = b
                .peak
                .map_or(Duration::ZERO, |peak| time_of(b.limit, peak.rate));
            time_of(b.limit, b.rate).saturating_add(peak)
        });
        [self.delay.map(|delay| delay.longest()), line, bucket]
            .into_iter()
            .flatten()
            .fold(Duration::ZERO, |sum, wait| {
                sum.saturating_add(wait.min(most))
            })
    }
}

/// Whom the target talks to: an address, which is a network of one, or a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Peer {
    /// Without bits behind its prefix, and IPv4 where it is IPv4-mapped IPv6.
    net: IpNet,
    /// Only packets with this destination port; of those that the target receives and that are not
    /// dropped: with this source port.
    port: Option<u16>,
}

impl Peer {
    /// Brings the network into its one form.
    #[must_use]
    pub fn new(net: IpNet, port: Option<u16>) -> Self {
        let net = match net {
            IpNet::V6(v6) if v6.prefix_len() >= 96 => match v6.addr().to_ipv4_mapped() {
                Some(v4) => IpNet::new(IpAddr::V4(v4), v6.prefix_len() - 96).unwrap_or(net),
                None => net,
            },
            _ => net,
        };
        Self {
            net: net.trunc(),
            port,
        }
    }

    /// Its network.
    #[must_use]
    pub const fn net(&self) -> IpNet {
        self.net
    }

    /// Its port.
    #[must_use]
    pub const fn port(&self) -> Option<u16> {
        self.port
    }

    /// The address if it is a single one.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        (self.net.prefix_len() == self.net.max_prefix_len()).then(|| self.net.addr())
    }

    /// Address and prefix length in the space of IPv6, where IPv4 is IPv4-mapped (RFC 4291,
    /// section 2.5.5.2).
    #[must_use]
    pub fn mapped(&self) -> (Ipv6Addr, u8) {
        match self.net {
            IpNet::V4(v4) => (v4.addr().to_ipv6_mapped(), 96 + v4.prefix_len()),
            IpNet::V6(v6) => (v6.addr(), v6.prefix_len()),
        }
    }
}

/// As `externalTargets` are written.
impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.address(), self.port) {
            (Some(IpAddr::V6(v6)), Some(_)) => write!(f, "[{v6}]")?,
            (Some(address), _) => write!(f, "{address}")?,
            (None, _) => write!(f, "{}", self.net)?,
        }
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

impl From<IpAddr> for Peer {
    fn from(address: IpAddr) -> Self {
        Self::new(address.into(), None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_has_one_form() {
        let peer = |net: &str| Peer::new(net.parse().expect("a network"), None);
        assert_eq!(peer("10.1.2.3/8"), peer("10.0.0.0/8"));
        assert_eq!(peer("::ffff:10.0.0.0/104"), peer("10.0.0.0/8"));
        assert_eq!(peer("10.0.0.1/32").address(), "10.0.0.1".parse().ok());
        assert_eq!(peer("10.0.0.0/8").address(), None);
        assert_eq!(peer("10.0.0.0/8").mapped().1, 104);
        assert_eq!(peer("::/0").mapped(), (Ipv6Addr::UNSPECIFIED, 0));
    }
}

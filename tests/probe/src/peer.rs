//! The UDP side: answers the probes of others, sends probes at a steady rate, and remembers what
//! became of them.

use std::{
    collections::BTreeMap,
    io::ErrorKind,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use tokio::{
    net::UdpSocket,
    time::{MissedTickBehavior, interval},
};

use crate::{
    packet::{LENGTH, Packet},
    results::{History, Summary},
    say_error,
};

const PORT: u16 = 7777;

/// Whom to probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Peer {
    /// How results name it.
    pub(crate) name: String,
    /// IPv4 or IPv6.
    pub(crate) ip: IpAddr,
    /// UDP port of its echo.
    #[serde(default = "default_port")]
    pub(crate) port: u16,
}

impl FromStr for Peer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("{text:?} is not NAME=IP or NAME=IP:PORT");
        let (name, address) = text.split_once('=').ok_or_else(expected)?;
        let (ip, port) = match address.parse::<IpAddr>() {
            Ok(ip) => (ip, PORT),
            Err(_) => {
                let address: SocketAddr = address.parse().map_err(|_| expected())?;
                (address.ip(), address.port())
            }
        };
        Ok(Self {
            name: name.to_owned(),
            ip,
            port,
        })
    }
}

/// Sends, receives and remembers; shared with the HTTP side.
#[derive(Clone, Debug)]
pub(crate) struct Prober {
    shared: Arc<Mutex<Shared>>,
    timeout: Duration,
    epoch: Instant,
}

#[derive(Debug, Default)]
struct Shared {
    probed: BTreeMap<u32, Probed>,
    next_number: u32,
    /// Probes of others that were answered, by their address.
    echoed: BTreeMap<IpAddr, u64>,
}

#[derive(Debug)]
struct Probed {
    peer: Peer,
    history: History,
}

/// The answer to GET /results.json.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    /// When this was written: nanoseconds since 1970, CLOCK_REALTIME.
    now_ns: u64,
    /// Probes of others that were answered since the start, by their address.
    echoed: BTreeMap<IpAddr, u64>,
    /// Each peer, in the order they were given.
    peers: Vec<PeerResults>,
}

#[derive(Debug, Serialize)]
struct PeerResults {
    #[serde(flatten)]
    peer: Peer,
    #[serde(flatten)]
    summary: Summary,
}

impl Prober {
    /// Opens the sockets and starts to answer and to probe.
    ///
    /// # Errors
    /// If a socket cannot be opened.
    pub(crate) async fn start(
        listen: SocketAddr,
        rate: u32,
        timeout: Duration,
        peers: Vec<Peer>,
    ) -> Result<Self> {
        let prober = Self {
            shared: Arc::default(),
            timeout,
            epoch: Instant::now(),
        };
        prober.set_peers(peers);
        let echo = UdpSocket::bind(listen)
            .await
            .with_context(|| format!("failed to listen on UDP {listen}"))?;
        // A socket of its own: a fault on a pod's egress then hits probes and answers separately.
        let out = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))
            .await
            .context("failed to open the UDP socket of the prober")?;
        let out = Arc::new(out);
        tokio::spawn(prober.clone().answer(echo));
        tokio::spawn(prober.clone().receive(Arc::clone(&out)));
        tokio::spawn(prober.clone().send(out, Duration::from_secs(1) / rate));
        Ok(prober)
    }

    /// Probes these from now on. One that was there before, unchanged, keeps its history.
    pub(crate) fn set_peers(&self, peers: Vec<Peer>) {
        let mut shared = self.lock();
        let mut old = std::mem::take(&mut shared.probed);
        for peer in peers {
            let known = old
                .iter()
                .find(|(_, probed)| probed.peer == peer)
                .map(|(number, _)| *number);
            let (number, probed) = match known.and_then(|number| old.remove_entry(&number)) {
                Some(entry) => entry,
                None => {
                    shared.next_number += 1;
                    (
                        shared.next_number,
                        Probed {
                            peer,
                            history: History::default(),
                        },
                    )
                }
            };
            shared.probed.insert(number, probed);
        }
    }

    /// What became of the probes sent in this span: milliseconds since 1970.
    pub(crate) fn results(&self, since_ms: u64, until_ms: Option<u64>) -> Results {
        let shared = self.lock();
        let now = realtime();
        let timeout = nanoseconds(self.timeout);
        let since = since_ms.saturating_mul(1_000_000);
        let until = until_ms.map_or(u64::MAX, |until| until.saturating_mul(1_000_000));
        let peers = shared.probed.values().map(|probed| PeerResults {
            peer: probed.peer.clone(),
            summary: probed.history.summary(since, until, now, timeout),
        });
        Results {
            now_ns: now,
            echoed: shared.echoed.clone(),
            peers: peers.collect(),
        }
    }

    async fn answer(self, socket: UdpSocket) {
        let mut buffer = [0; LENGTH + 1];
        loop {
            let (length, from) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                // An ICMP error of an answer before; the socket is as good as ever.
                Err(_) => continue,
            };
            let Some(probe) = buffer.get(..length).and_then(Packet::decode) else {
                continue;
            };
            if probe.answer {
                continue;
            }
            *self
                .lock()
                .echoed
                .entry(from.ip().to_canonical())
                .or_default() += 1;
            let answer = Packet {
                answer: true,
                ..probe
            }
            .encode();
            // A refused answer (a partition of this pod's egress) is a loss to the prober.
            let _lost = socket.send_to(&answer, from).await;
        }
    }

    async fn receive(self, socket: Arc<UdpSocket>) {
        let mut buffer = [0; LENGTH + 1];
        loop {
            let length = match socket.recv_from(&mut buffer).await {
                Ok((length, _)) => length,
                Err(_) => continue,
            };
            let now = self.monotonic();
            let Some(answer) = buffer.get(..length).and_then(Packet::decode) else {
                continue;
            };
            if !answer.answer {
                continue;
            }
            let rtt_us = now.saturating_sub(answer.sent) / 1000;
            if let Some(probed) = self.lock().probed.get_mut(&answer.peer) {
                probed.history.answered(answer.sequence, rtt_us);
            }
        }
    }

    async fn send(self, socket: Arc<UdpSocket>, every: Duration) {
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        loop {
            ticks.tick().await;
            let numbers: Vec<u32> = self.lock().probed.keys().copied().collect();
            for number in numbers {
                self.send_one(&socket, number);
            }
        }
    }

    fn send_one(&self, socket: &UdpSocket, number: u32) {
        // Held while sending, so that no answer comes before its probe is written down.
        let mut shared = self.lock();
        let Some(probed) = shared.probed.get_mut(&number) else {
            return;
        };
        let address = SocketAddr::new(mapped(probed.peer.ip), probed.peer.port);
        let packet = Packet {
            answer: false,
            peer: number,
            sequence: probed.history.next_sequence(),
            sent: self.monotonic(),
        };
        let at = realtime();
        // `try_send_to` rather than waiting: a full socket buffer is a result, too.
        let refused = match socket.try_send_to(&packet.encode(), address) {
            Ok(_) => None,
            Err(error) => Some(errno_name(&error)),
        };
        probed.history.sent(at, refused);
    }

    fn monotonic(&self) -> u64 {
        nanoseconds(self.epoch.elapsed())
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn default_port() -> u16 {
    PORT
}

/// The sending socket is IPv6: IPv4 peers go through their mapped address.
fn mapped(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => IpAddr::V6(ip.to_ipv6_mapped()),
        ip => ip,
    }
}

fn errno_name(error: &std::io::Error) -> String {
    match error.raw_os_error() {
        Some(raw) => format!("{:?}", Errno::from_raw(raw)),
        None if error.kind() == ErrorKind::WouldBlock => "EAGAIN".to_owned(),
        None => {
            say_error(&format!("probe: failed to send: {error}"));
            "EOTHER".to_owned()
        }
    }
}

fn realtime() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map(nanoseconds)
        .unwrap_or_default()
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_named_addresses_with_an_optional_port() {
        let peer: Peer = "a=10.0.0.1".parse().unwrap();
        assert_eq!((peer.name.as_str(), peer.port), ("a", 7777));
        let peer: Peer = "b=[fd00::1]:9".parse().unwrap();
        assert_eq!((peer.ip.to_string().as_str(), peer.port), ("fd00::1", 9));
        assert!("c".parse::<Peer>().is_err());
        assert!("c=host".parse::<Peer>().is_err());
    }

    #[tokio::test]
    async fn two_peers_measure_each_other_on_loopback() {
        let free = || {
            std::net::UdpSocket::bind("[::]:0")
                .unwrap()
                .local_addr()
                .unwrap()
                .port()
        };
        let (port, closed) = (free(), free());
        let listen = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
        let peers = [
            ("v4", "127.0.0.1", port),
            ("v6", "::1", port),
            ("nobody", "::1", closed),
        ]
        .map(|(name, ip, port)| Peer {
            name: name.into(),
            ip: ip.parse().unwrap(),
            port,
        });
        let timeout = Duration::from_millis(100);
        let prober = Prober::start(listen, 100, timeout, peers.to_vec())
            .await
            .unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
        let results = prober.results(0, None);
        for peer in &results.peers {
            let summary = &peer.summary;
            assert!(summary.sent >= 10, "{peer:?}");
            let answered = peer.peer.name != "nobody";
            assert_eq!(summary.received > 0, answered, "{peer:?}");
            assert_eq!(summary.rtt_p50_us.is_some(), answered, "{peer:?}");
        }
        assert_eq!(results.echoed.len(), 2);
    }

    #[test]
    fn peers_that_stay_keep_their_history() {
        let prober = Prober {
            shared: Arc::default(),
            timeout: Duration::ZERO,
            epoch: Instant::now(),
        };
        let peers = || vec!["a=10.0.0.1".parse().unwrap(), "b=10.0.0.2".parse().unwrap()];
        prober.set_peers(peers());
        for probed in prober.lock().probed.values_mut() {
            probed.history.sent(1, None);
        }
        prober.set_peers([peers(), vec!["c=10.0.0.3".parse().unwrap()]].concat());
        let sent: Vec<usize> = prober
            .results(0, None)
            .peers
            .iter()
            .map(|peer| peer.summary.sent)
            .collect();
        assert_eq!(sent, [1, 1, 0]);
    }
}

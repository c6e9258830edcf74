//! UDP peers: an echo server, and a prober that sends at a steady rate and tells of each datagram
//! what became of it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::clock::Stamp;
use crate::process::{Place, Process, role};

mod probes;

pub use probes::{Probe, Probes};
use probes::{Told, fold};

/// Sequence number, time of sending, time of reception by the peer (0 on the way there).
const HEADER: usize = 24;

/// Where echo servers listen unless told otherwise.
pub const PORT: u16 = 7000;

const ECHO: &str = "udp-echo";
const PROBER: &str = "udp-prober";

crate::vm_role!(ECHO, echo);
crate::vm_role!(PROBER, prober);

/// A server that sends each datagram back and remembers it. Ends on drop.
#[derive(Debug)]
pub struct Echo {
    process: Process<Arrival>,
}

/// A datagram that came in at an [`Echo`].
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Arrival {
    /// Who sent it.
    pub from: SocketAddr,
    /// Number that its prober gave it.
    pub seq: u64,
    /// When.
    pub at: Stamp,
}

impl Echo {
    /// Starts one at port [`PORT`] of all addresses of `place`, IPv4 and IPv6.
    ///
    /// # Errors
    /// The role could not be started or the port is taken.
    pub fn start(place: Place<'_>) -> Result<Echo> {
        let any = [
            IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        ];
        Ok(Echo {
            process: place.spawn(ECHO, &any.map(|ip| SocketAddr::new(ip, PORT)))?,
        })
    }

    /// Pid, for `chaos-agent apply --pid`.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// All that has come in so far.
    pub fn arrivals(&self) -> Vec<Arrival> {
        self.process.with_events(<[Arrival]>::to_vec)
    }

    /// How often each of the first `count` datagrams of a prober has come in so far.
    pub fn times_seen(&self, count: u64) -> Vec<usize> {
        let mut seen = vec![0; count as usize];
        for arrival in self.arrivals() {
            if let Some(times) = seen.get_mut(arrival.seq as usize) {
                *times += 1;
            }
        }
        seen
    }
}

fn echo(args: &str) -> Result<()> {
    let addresses: Vec<SocketAddr> = serde_json::from_str(args)?;
    let mut sockets = Vec::new();
    for address in addresses {
        sockets.push(bind(address)?);
    }
    role::ready()?;
    for socket in sockets {
        std::thread::spawn(move || -> Result<()> {
            let mut buffer = [0; 65536];
            loop {
                let (length, from) = socket.recv_from(&mut buffer)?;
                let at = Stamp::now();
                let Some(datagram) = buffer.get_mut(..length) else {
                    continue;
                };
                let Some(seq) = read_u64(datagram, 0) else {
                    continue;
                };
                write_u64(datagram, 16, at.0);
                // A refused answer is what some tests are about; the arrival counts all the same.
                let _ = socket.send_to(datagram, from);
                role::tell(&Arrival { from, seq, at })?;
            }
        });
    }
    role::wait_for_end();
    Ok(())
}

/// What a [`Prober`] does.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Probing {
    /// Whom it sends to.
    pub to: SocketAddr,
    /// Datagrams a second; 0 is as fast as it can.
    pub per_second: u32,
    /// It ends by itself after so many; `None` goes on until [`Prober::stop`].
    pub count: Option<u64>,
    /// Bytes of UDP payload, at least 24.
    pub size: usize,
    /// How long it listens for answers after the last datagram.
    pub linger: Duration,
}

impl Probing {
    /// 20 datagrams a second of 64 bytes to port [`PORT`] of `to`, until stopped; 1 s for the last
    /// answer.
    pub fn of(to: IpAddr) -> Probing {
        Probing {
            to: SocketAddr::new(to, PORT),
            per_second: 20,
            count: None,
            size: 64,
            linger: Duration::from_secs(1),
        }
    }

    /// See [`Probing::per_second`].
    pub fn per_second(mut self, rate: u32) -> Probing {
        self.per_second = rate;
        self
    }

    /// See [`Probing::count`].
    pub fn count(mut self, count: u64) -> Probing {
        self.count = Some(count);
        self
    }

    /// See [`Probing::size`].
    pub fn size(mut self, bytes: usize) -> Probing {
        self.size = bytes;
        self
    }

    /// See [`Probing::linger`].
    pub fn linger(mut self, time: Duration) -> Probing {
        self.linger = time;
        self
    }

    /// To this port.
    pub fn port(mut self, port: u16) -> Probing {
        self.to.set_port(port);
        self
    }
}

/// A process that sends datagrams to an [`Echo`]. Ends on drop.
#[derive(Debug)]
pub struct Prober {
    process: Process<Told>,
    limit: Duration,
}

impl Prober {
    /// Starts one.
    ///
    /// # Errors
    /// The role could not be started.
    pub fn start(place: Place<'_>, probing: &Probing) -> Result<Prober> {
        ensure!(
            probing.size >= HEADER,
            "size: {}: at least {HEADER} bytes",
            probing.size
        );
        let sending = match (probing.count, probing.per_second) {
            (Some(count), rate @ 1..) => Duration::from_secs(count / u64::from(rate)),
            _ => Duration::ZERO,
        };
        let limit = sending * 2 + probing.linger + Duration::from_secs(20);
        Ok(Prober {
            process: place.spawn(PROBER, probing)?,
            limit,
        })
    }

    /// Pid, for `chaos-agent apply --pid`.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// All it has sent so far. The last ones may still be on their way: see [`Probes::settled`].
    pub fn probes(&self) -> Probes {
        self.process.with_events(fold)
    }

    /// Stops sending, waits for the last answers, and returns everything.
    ///
    /// # Errors
    /// It failed or hangs.
    pub fn stop(self) -> Result<Probes> {
        self.process.finish(self.limit).map(|told| fold(&told))
    }

    /// Waits until it has sent its [`Probing::count`], and returns everything.
    ///
    /// # Errors
    /// It failed or hangs; one without a count always does.
    pub fn join(self) -> Result<Probes> {
        self.process.join(self.limit).map(|told| fold(&told))
    }
}

/// Sends `count` datagrams, waits for the answers, and returns what became of them.
///
/// # Errors
/// The prober could not be started.
pub fn probe(place: Place<'_>, probing: &Probing, count: u64) -> Result<Probes> {
    Prober::start(place, &probing.clone().count(count))?.join()
}

fn prober(args: &str) -> Result<()> {
    let probing: Probing = serde_json::from_str(args)?;
    let any = match probing.to {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    // Not connected: ICMP errors of earlier datagrams must not show up as errors of later ones.
    let socket = bind(SocketAddr::new(any, 0))?;
    let answers = socket.try_clone().context("failed to copy a socket")?;
    role::ready()?;
    std::thread::spawn(move || -> Result<()> {
        let mut buffer = [0; 65536];
        loop {
            let (length, _) = answers.recv_from(&mut buffer)?;
            let answered = Stamp::now();
            let datagram = buffer.get(..length).unwrap_or_default();
            if let (Some(seq), Some(received)) = (read_u64(datagram, 0), read_u64(datagram, 16)) {
                role::tell(&Told::Answer {
                    seq,
                    received: Stamp(received),
                    answered,
                })?;
            }
        }
    });
    let start = Stamp::now();
    let mut datagram = vec![0; probing.size];
    for seq in 0..probing.count.unwrap_or(u64::MAX) {
        if probing.per_second > 0 {
            // Against a schedule, so that slow sends do not lower the rate.
            let due =
                start + Duration::from_secs(1).mul_f64(seq as f64 / f64::from(probing.per_second));
            std::thread::sleep(due.since(Stamp::now()));
        }
        if role::ended() {
            break;
        }
        let at = Stamp::now();
        write_u64(&mut datagram, 0, seq);
        write_u64(&mut datagram, 8, at.0);
        let errno = socket
            .send_to(&datagram, probing.to)
            .err()
            .and_then(|e| e.raw_os_error());
        role::tell(&Told::Sent { seq, at, errno })?;
    }
    std::thread::sleep(probing.linger);
    Ok(())
}

/// A socket with room for what comes in bursts.
pub(crate) fn bind(address: SocketAddr) -> Result<UdpSocket> {
    use nix::sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt,
    };
    use std::os::fd::AsRawFd;
    let family = if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let open = || -> nix::Result<_> {
        let socket = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        if address.is_ipv6() {
            // IPv4 has a socket of its own on the same port.
            setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
        }
        // What the kernel drops for want of space would look like the fault.
        setsockopt(&socket, sockopt::RcvBufForce, &(8 << 20))?;
        bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
        Ok(socket)
    };
    open()
        .map(UdpSocket::from)
        .with_context(|| format!("failed to bind {address}"))
}

fn read_u64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

fn write_u64(bytes: &mut [u8], at: usize, value: u64) {
    if let Some(place) = bytes.get_mut(at..at + 8) {
        place.copy_from_slice(&value.to_le_bytes());
    }
}

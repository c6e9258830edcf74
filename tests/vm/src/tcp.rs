//! TCP peers: a server that counts what it gets, and a client that connects and sends.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::clock::Stamp;
use crate::process::{Place, Process, role};

/// Where servers listen.
pub const PORT: u16 = 7001;

const SERVER: &str = "tcp-server";
const CLIENT: &str = "tcp-client";

crate::vm_role!(SERVER, server);
crate::vm_role!(CLIENT, client);

/// A server that reads all that a client sends and then answers with how much it was. Ends on drop.
#[derive(Debug)]
pub struct Server {
    process: Process<()>,
}

impl Server {
    /// Starts one at port [`PORT`] of all addresses of `place`, IPv4 and IPv6.
    ///
    /// # Errors
    /// The role could not be started or the port is taken.
    pub fn start(place: Place<'_>) -> Result<Server> {
        Ok(Server {
            process: place.spawn(SERVER, &())?,
        })
    }

    /// Pid, for `chaos-agent apply --pid`.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }
}

fn server(_: &str) -> Result<()> {
    // The IPv6 socket takes IPv4 as well.
    let address = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), PORT);
    let listener = TcpListener::bind(address)
        .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)))
        .context("failed to listen")?;
    role::ready()?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || count(stream));
        }
    });
    role::wait_for_end();
    Ok(())
}

fn count(mut stream: TcpStream) -> std::io::Result<()> {
    let mut buffer = vec![0; 256 << 10];
    let mut bytes = 0_u64;
    loop {
        match stream.read(&mut buffer)? {
            0 => return stream.write_all(&bytes.to_le_bytes()),
            read => bytes += read as u64,
        }
    }
}

/// What a client does.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sending {
    /// Whom it connects to.
    pub to: SocketAddr,
    /// For how long it tries to connect.
    pub connect_within: Duration,
    /// For how long it sends; zero only connects.
    pub send_for: Duration,
}

/// How it went for a client.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Sent {
    /// `connect` failed.
    Refused {
        /// Why: its errno.
        errno: i32,
        /// After this time.
        after: Duration,
    },
    /// `connect` got no answer in time.
    TimedOut {
        /// [`Sending::connect_within`], about.
        after: Duration,
    },
    /// It connected, and the server has confirmed all that was sent.
    Done {
        /// How long `connect` took.
        connect: Duration,
        /// Payload that the server got.
        bytes: u64,
        /// From the first byte to the server's confirmation.
        took: Duration,
    },
    /// It connected, and the connection broke.
    Broken {
        /// Its errno; 0 if the server closed it.
        errno: i32,
    },
}

impl Sent {
    /// Payload in Mbit/s; zero if it did not get that far.
    pub fn megabits_per_second(&self) -> f64 {
        match self {
            Sent::Done { bytes, took, .. } if !took.is_zero() => {
                *bytes as f64 * 8.0 / took.as_secs_f64() / 1e6
            }
            _ => 0.0,
        }
    }
}

/// Connects from `place` to port [`PORT`] of `to` and closes again.
///
/// # Errors
/// The client could not be started. A refused connection is a result.
pub fn connect(place: Place<'_>, to: IpAddr, within: Duration) -> Result<Sent> {
    let to = SocketAddr::new(to, PORT);
    run(
        place,
        &Sending {
            to,
            connect_within: within,
            send_for: Duration::ZERO,
        },
    )
}

/// Connects from `place` to port [`PORT`] of `to` and sends as much as it can for `time`.
///
/// # Errors
/// The client could not be started. A refused connection is a result.
pub fn transfer(place: Place<'_>, to: IpAddr, time: Duration) -> Result<Sent> {
    let to = SocketAddr::new(to, PORT);
    run(
        place,
        &Sending {
            to,
            connect_within: Duration::from_secs(5),
            send_for: time,
        },
    )
}

/// Runs a client.
///
/// # Errors
/// The client could not be started. A refused connection is a result.
pub fn run(place: Place<'_>, sending: &Sending) -> Result<Sent> {
    let process: Process<Sent> = place.spawn(CLIENT, sending)?;
    let limit = sending.connect_within + sending.send_for + Duration::from_secs(30);
    process
        .join(limit)?
        .pop()
        .context("the client told nothing")
}

fn client(args: &str) -> Result<()> {
    let sending: Sending = serde_json::from_str(args)?;
    role::ready()?;
    let start = Stamp::now();
    let sent = match TcpStream::connect_timeout(&sending.to, sending.connect_within) {
        Ok(stream) => {
            send(stream, start.elapsed(), sending.send_for).unwrap_or_else(|error| Sent::Broken {
                errno: error.raw_os_error().unwrap_or_default(),
            })
        }
        Err(error) => match error.raw_os_error() {
            Some(errno) if error.kind() != ErrorKind::TimedOut => Sent::Refused {
                errno,
                after: start.elapsed(),
            },
            _ => Sent::TimedOut {
                after: start.elapsed(),
            },
        },
    };
    role::tell(&sent)
}

fn send(mut stream: TcpStream, connect: Duration, time: Duration) -> std::io::Result<Sent> {
    let chunk = vec![0; 64 << 10];
    let start = Stamp::now();
    while start.elapsed() < time {
        stream.write_all(&chunk)?;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut bytes = [0; 8];
    stream.read_exact(&mut bytes)?;
    Ok(Sent::Done {
        connect,
        bytes: u64::from_le_bytes(bytes),
        took: start.elapsed(),
    })
}

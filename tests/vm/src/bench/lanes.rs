//! Datagrams on several ways at once, packet by packet in turns: what happens to the machine happens to
//! all of them. When each left and came in is kept in memory; the kernel says when it came in.

use std::fs::File;
use std::io::IoSliceMut;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use chaos_abi::sample::{Stream as Draws, draw};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::cgroup::Cgroup;
use crate::netns::{Namespace, Pair};
use crate::process::{Place, Process, role};
use crate::udp;

const SENDER: &str = "bench-sender";
const SINK: &str = "bench-sink";

crate::vm_role!(SENDER, sender);
crate::vm_role!(SINK, sink);

const PORT: u16 = 7100;

/// Number, and when it was sent.
const HEADER: usize = 16;

/// What is sent on each way.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Load {
    /// Datagrams on each way.
    pub(super) count: u64,
    /// Datagrams a second, on all ways together.
    pub(super) per_second: u32,
    /// Bytes of UDP payload, at least 16.
    pub(super) size: usize,
}

/// A datagram that came in.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Came {
    /// Its number on its way, from 0.
    pub(super) seq: u64,
    /// CLOCK_REALTIME nanoseconds.
    pub(super) sent: u64,
    /// The same clock.
    pub(super) received: u64,
}

impl Came {
    /// Milliseconds that it took.
    pub(super) fn ms(&self) -> f64 {
        self.received.saturating_sub(self.sent) as f64 / 1e6
    }
}

#[derive(Serialize, Deserialize)]
struct Order {
    load: Load,
    /// Files of namespaces, one a way.
    ways: Vec<String>,
}

/// What sends and what receives, while it does.
pub(super) struct Stream {
    sender: Process<()>,
    sink: Process<Vec<Vec<Came>>>,
}

impl Stream {
    /// From the first to the second namespace of each pair; who sends is in `cgroup`.
    pub(super) fn start(pairs: &[&Pair], cgroup: &Cgroup, load: Load) -> Result<Self> {
        let files = |side: fn(&Pair) -> &Namespace| -> Vec<String> {
            let us = std::process::id();
            let file = |pair: &&Pair| format!("/proc/{us}/fd/{}", side(pair).as_fd().as_raw_fd());
            pairs.iter().map(file).collect()
        };
        let (from, to) = (files(|pair| &pair.a), files(|pair| &pair.b));
        let sink = Place::host().spawn(SINK, &to)?;
        let order = Order { load, ways: from };
        // It is a process of the target, so it has to be where the others are.
        let first = pairs.first().context("no way to send on")?;
        let place = Place::host().in_namespace(&first.a).in_cgroup(cgroup);
        let sender = place.spawn(SENDER, &order)?;
        Ok(Self { sender, sink })
    }
}

/// Sends all of it, and waits so long for what comes late. What came in, by way.
pub(super) fn run(
    pairs: &[&Pair],
    cgroup: &Cgroup,
    load: Load,
    late: Duration,
) -> Result<Vec<Vec<Came>>> {
    let Stream { sender, sink } = Stream::start(pairs, cgroup, load)?;
    let all = load.count * pairs.len() as u64;
    let time = Duration::from_secs(all / u64::from(load.per_second.max(1)));
    sender.join(time * 5 + Duration::from_secs(60))?;
    std::thread::sleep(late);
    let told = sink.finish(Duration::from_secs(120))?;
    told.into_iter().next().context("the sink told nothing")
}

/// Each way in turn, in another order each time, so that none always comes first or after the same one.
pub(super) fn turns(ways: usize) -> impl Iterator<Item = usize> + Clone {
    (0_u64..).flat_map(move |round| {
        let mut order: Vec<usize> = (0..ways).collect();
        // Keys of one draw each: as good as a shuffle for a handful.
        order.sort_by_key(|&way| draw(round, Draws::Sample, way as u64));
        order
    })
}

/// When datagram `n` is due: somewhere in the first half of its share of the time. With an even beat and a
/// delay of some beats one would leave just when another one is sent, and be late.
fn due(n: u64, every: Duration) -> Duration {
    let beats = n as f64 + f64::from(draw(n, Draws::Jitter, 0)) / 2_f64.powi(33);
    every.mul_f64(beats)
}

fn sender(args: &str) -> Result<()> {
    let Order { load, ways } = serde_json::from_str(args)?;
    let any = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
    let sockets = open(&ways, any)?;
    let to = SocketAddr::new(Pair::B4, PORT);
    role::ready()?;
    let mut datagram = vec![0; load.size.max(HEADER)];
    let mut seqs = vec![0_u64; sockets.len()];
    let every = Duration::from_secs(1) / load.per_second.max(1);
    let start = std::time::Instant::now();
    let all = load.count * ways.len() as u64;
    for (n, way) in (0..all).zip(turns(ways.len())) {
        if let Some(early) = due(n, every).checked_sub(start.elapsed()) {
            std::thread::sleep(early);
        }
        let (Some(socket), Some(seq)) = (sockets.get(way), seqs.get_mut(way)) else {
            continue;
        };
        let now = nanos(clock_gettime(ClockId::CLOCK_REALTIME)?);
        let head = [seq.to_le_bytes(), now.to_le_bytes()].concat();
        if let Some(place) = datagram.get_mut(..HEADER) {
            place.copy_from_slice(&head);
        }
        *seq += 1;
        // One that is refused has not come in: nobody has to be told twice.
        let _ = socket.send_to(&datagram, to);
    }
    Ok(())
}

fn sink(args: &str) -> Result<()> {
    let ways: Vec<String> = serde_json::from_str(args)?;
    let any = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), PORT);
    let sockets = open(&ways, any)?;
    let all: Vec<Arc<Mutex<Vec<Came>>>> = sockets.iter().map(|_| Arc::default()).collect();
    for (socket, came) in sockets.into_iter().zip(&all) {
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
        let came = Arc::clone(came);
        std::thread::spawn(move || -> Result<()> {
            loop {
                if let Some(one) = receive(&socket)? {
                    came.lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(one);
                }
            }
        });
    }
    role::ready()?;
    role::wait_for_end();
    let all: Vec<Vec<Came>> = all
        .iter()
        .map(|came| came.lock().unwrap_or_else(PoisonError::into_inner).clone())
        .collect();
    role::tell(&all)
}

fn receive(socket: &UdpSocket) -> Result<Option<Came>> {
    let mut head = [0; HEADER];
    let mut buffers = [IoSliceMut::new(&mut head)];
    let mut control = nix::cmsg_space!(TimeSpec);
    let message = recvmsg::<()>(
        socket.as_raw_fd(),
        &mut buffers,
        Some(&mut control),
        MsgFlags::empty(),
    )?;
    let received = message.cmsgs()?.find_map(|message| match message {
        ControlMessageOwned::ScmTimestampns(time) => Some(nanos(time)),
        _ => None,
    });
    let [seq, sent] = [0, 8].map(|at| {
        let bytes = head.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
        bytes.map(u64::from_le_bytes).unwrap_or_default()
    });
    Ok(received.map(|received| Came {
        seq,
        sent,
        received,
    }))
}

fn nanos(time: TimeSpec) -> u64 {
    Duration::from(time).as_nanos() as u64
}

/// A socket in each of these namespaces.
fn open(namespaces: &[String], address: SocketAddr) -> Result<Vec<UdpSocket>> {
    let open = |namespace: &String| {
        let file = File::open(namespace).with_context(|| format!("failed to open {namespace}"))?;
        // Namespaces belong to threads.
        let thread = std::thread::spawn(move || {
            setns(file, CloneFlags::CLONE_NEWNET)?;
            udp::bind(address)
        });
        thread
            .join()
            .unwrap_or_else(|_| anyhow::bail!("a thread of the benchmark panicked"))
    };
    namespaces.iter().map(open).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_way_comes_first_more_often_than_another() {
        const ROUNDS: usize = 6_000;
        let turns: Vec<usize> = turns(3).take(3 * ROUNDS).collect();
        let mut firsts = [0; 3];
        for round in turns.chunks(3) {
            let mut sorted = round.to_vec();
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 1, 2], "each once");
            firsts[round[0]] += 1;
        }
        assert!(
            firsts.iter().all(|count| (1_900..2_100).contains(count)),
            "{firsts:?}"
        );
    }

    #[test]
    fn datagrams_are_due_in_order_and_not_in_a_beat() {
        let due: Vec<_> = (0..100)
            .map(|n| due(n, Duration::from_millis(10)))
            .collect();
        assert!(due.is_sorted());
        let gaps: Vec<_> = due.windows(2).map(|two| two[1] - two[0]).collect();
        assert!(gaps.iter().all(|gap| *gap >= Duration::from_millis(5)));
        let short = gaps.iter().filter(|gap| gap.as_millis() < 8).count();
        assert!((5..40).contains(&short), "{short}");
    }
}

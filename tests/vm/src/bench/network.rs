//! How exact faults are, beside netem on the same machine at the same time. Each way is a pair of
//! namespaces of its own: one with our fault, two with netem (one is the other's control), one with
//! nothing. What the target sends is measured, and of one TCP flow what it receives.
//!
//! Emulated machines have no nanoseconds: see `docs/performance.md` for what these figures are worth.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use chaos_planner::fault::{Bandwidth, Delay, Effect, NetworkEffect};

use super::lanes::{self, Came, Load};
use super::netem::Netem;
use super::{asked_pairs, compare, ratio, tell};
use crate::cgroup::Cgroup;
use crate::figures::statistics::{deviation, median, percentile};
use crate::figures::{Aim, FEWEST_PAIRS, Figure};
use crate::netns::Pair;
use crate::node::{Host, egress, fault, lasting, resident, seeded};
use crate::process::{Place, Process};
use crate::tcp;
use crate::vm_test;

/// Part of the names of what is here.
pub(crate) const NAME: &str = "bench::network::";

/// Longer than any of these runs.
const LONG: Duration = Duration::from_secs(7200);

/// For what is still on its way when the last has been sent.
const LAST: Duration = Duration::from_secs(2);

/// Bytes of headers in front of a UDP payload: Ethernet, IPv4, UDP.
const HEADERS: usize = 14 + 20 + 8;

/// Four ways side by side.
struct Ways {
    ours: Pair,
    netem: Pair,
    twin: Pair,
    bare: Pair,
    cgroup: Cgroup,
    _resident: Process<()>,
    host: Host,
}

impl Ways {
    fn new() -> Result<Self> {
        // An emulated CPU comes too late for its input queue now and then: a loss that is nobody's fault.
        fs::write("/proc/sys/net/core/netdev_max_backlog", "100000")
            .context("failed to lengthen the input queues")?;
        let ours = Pair::new()?;
        let cgroup = Cgroup::new()?;
        let _resident = resident(&ours.a, &cgroup)?;
        Ok(Self {
            ours,
            netem: Pair::new()?,
            twin: Pair::new()?,
            bare: Pair::new()?,
            cgroup,
            _resident,
            host: Host::open()?,
        })
    }

    /// The fault, and what netem calls the same.
    fn fault(&mut self, effect: NetworkEffect, netem: Netem) -> Result<()> {
        let fault = seeded(fault("bench", &self.cgroup, effect), 20_261_121);
        // Netem delays nothing that comes in. Where the other end sends it, it has one device less to pass
        // than by way of an ifb, as is usual.
        let received = matches!(&fault.effect, Effect::Network(effect) if effect.ingress);
        self.host.arm(lasting(fault, LONG))?;
        for pair in [&self.netem, &self.twin] {
            netem.put(if received { &pair.b } else { &pair.a })?;
        }
        Ok(())
    }

    fn all(&self) -> [&Pair; 4] {
        [&self.ours, &self.netem, &self.twin, &self.bare]
    }

    /// Where a process of the target is that sends on this way.
    fn from<'a>(&'a self, pair: &'a Pair) -> Place<'a> {
        Place::host().in_namespace(&pair.a).in_cgroup(&self.cgroup)
    }

    /// Datagrams on these ways.
    fn send(&self, ways: &[&Pair], load: Load) -> Result<Vec<Vec<Came>>> {
        lanes::run(ways, &self.cgroup, load, LAST)
    }
}

fn delayed(ms: u64, jitter_ms: u64) -> NetworkEffect {
    NetworkEffect {
        delay: Some(Delay {
            jitter: Duration::from_millis(jitter_ms),
            ..Delay::of(Duration::from_millis(ms))
        }),
        ..egress()
    }
}

vm_test!(tcp_through_a_delay, limit = 3000);
fn tcp_through_a_delay() -> Result<()> {
    let pairs = asked_pairs()?;
    let mut ways = Ways::new()?;
    ways.fault(delayed(50, 0), Netem::delay(50))?;
    let mut servers = Vec::new();
    for pair in ways.all() {
        servers.push(tcp::Server::start(Place::host().in_namespace(&pair.b))?);
    }
    let sent = |pair: &Pair, time| tcp::transfer(ways.from(pair), Pair::B4, time);
    compare_flows("one TCP flow through 50 ms, egress", pairs, &ways, sent)
}

vm_test!(tcp_that_is_received_through_a_delay, limit = 3000);
fn tcp_that_is_received_through_a_delay() -> Result<()> {
    let pairs = asked_pairs()?;
    let mut ways = Ways::new()?;
    let received = NetworkEffect {
        egress: false,
        ingress: true,
        ..delayed(50, 0)
    };
    ways.fault(received, Netem::delay(50))?;
    let mut servers = Vec::new();
    for pair in ways.all() {
        servers.push(tcp::Server::start(ways.from(pair))?);
    }
    let sent = |pair: &Pair, time| {
        let from = Place::host().in_namespace(&pair.b);
        tcp::transfer(from, Pair::A4, time)
    };
    compare_flows("one TCP flow through 50 ms, ingress", pairs, &ways, sent)
}

/// What `sent` says of one flow that lasts so long: ours beside netem's.
fn compare_flows(
    name: &str,
    pairs: usize,
    ways: &Ways,
    sent: impl Fn(&Pair, Duration) -> Result<tcp::Sent>,
) -> Result<()> {
    let time = Duration::from_secs(if pairs < FEWEST_PAIRS { 1 } else { 3 });
    let sent = &sent;
    let goodput = |pair| move || Ok(sent(pair, time)?.megabits_per_second());
    let sides = (
        goodput(&ways.ours),
        goodput(&ways.netem),
        goodput(&ways.twin),
    );
    let figure = compare(name, "goodput / netem, Mbit/s", pairs, sides)?;
    tell(&figure.aim(Aim::AtLeast(0.95)))
}

vm_test!(no_loss_is_hidden_in_a_delay, limit = 1200);
fn no_loss_is_hidden_in_a_delay() -> Result<()> {
    const RUNS: usize = 5;
    let runs = RUNS.min(asked_pairs()?);
    let mut ways = Ways::new()?;
    ways.fault(delayed(250, 0), Netem::delay(250))?;
    let own_limit = Netem {
        limit: 1_000,
        ..Netem::delay(250)
    };
    own_limit.put(&ways.twin.a)?;
    let load = Load {
        count: 20_000,
        per_second: 10_000,
        size: 64,
    };
    for (name, way, aim) in [
        ("ours", &ways.ours, Some(Aim::AtLeast(0.999))),
        ("netem, limit 100 000", &ways.netem, None),
        ("netem, its own limit of 1 000", &ways.twin, None),
    ] {
        let (mut delivered, mut offered) = (Vec::new(), Vec::new());
        for _ in 0..runs {
            let came = ways.send(&[way], load)?;
            let came = came.first().context("no way")?;
            delivered.push(came.len() as f64 / load.count as f64);
            offered.push(rate_of_sending(came));
        }
        let figure = Figure::of(
            format!("UDP, 10 000 a second through 250 ms: {name}"),
            "delivered / offered",
            &delivered,
        )
        .detail("sent a second", median(&offered));
        tell(&match aim {
            Some(aim) => figure.aim(aim),
            None => figure,
        })?;
    }
    Ok(())
}

/// Datagrams a second between the first and the last that came in.
fn rate_of_sending(came: &[Came]) -> f64 {
    let ends = came
        .iter()
        .min_by_key(|c| c.seq)
        .zip(came.iter().max_by_key(|c| c.seq));
    ends.map_or(f64::NAN, |(first, last)| {
        (last.seq - first.seq) as f64 * 1e9 / last.sent.saturating_sub(first.sent) as f64
    })
}

/// Datagrams of one way in one pair of measurements: `earnest`, or 50 where the benchmark is only tried.
fn chunk_size(pairs: usize, earnest: u64) -> u64 {
    if pairs < FEWEST_PAIRS { 50 } else { earnest }
}

/// Milliseconds that datagrams took, in as many groups as there are pairs.
fn chunks(came: &[Came], pairs: usize, size: u64) -> Result<Vec<Vec<f64>>> {
    let mut chunks = vec![Vec::new(); pairs];
    for one in came {
        if let Some(chunk) = chunks.get_mut((one.seq / size) as usize) {
            chunk.push(one.ms());
        }
    }
    anyhow::ensure!(
        chunks
            .iter()
            .all(|chunk| chunk.len() as u64 * 10 >= size * 9),
        "more than a tenth was lost: {:?} of {size}",
        chunks.iter().map(Vec::len).collect::<Vec<_>>()
    );
    Ok(chunks)
}

vm_test!(a_delay_of_1_ms_is_as_long_as_asked, limit = 3000);
fn a_delay_of_1_ms_is_as_long_as_asked() -> Result<()> {
    a_delay_is_as_long_as_asked(1, 300)
}

vm_test!(a_delay_of_10_ms_is_as_long_as_asked, limit = 3000);
fn a_delay_of_10_ms_is_as_long_as_asked() -> Result<()> {
    a_delay_is_as_long_as_asked(10, 350)
}

vm_test!(a_delay_of_100_ms_is_as_long_as_asked, limit = 3000);
fn a_delay_of_100_ms_is_as_long_as_asked() -> Result<()> {
    a_delay_is_as_long_as_asked(100, 305)
}

/// With so many datagrams a second that a delay ends in the middle between two sends (see `lanes::due`): else it would
/// be measured how long an emulated machine takes for the packet that is being sent then. More of them would measure
/// that, too.
fn a_delay_is_as_long_as_asked(ms: u64, per_second: u32) -> Result<()> {
    let pairs = asked_pairs()?;
    // The latest one in a hundred has to be known: of 400 datagrams it would be the fourth from the end.
    let size = chunk_size(pairs, 1_600);
    let mut ways = Ways::new()?;
    ways.fault(delayed(ms, 0), Netem::delay(ms))?;
    let load = Load {
        count: size * pairs as u64,
        per_second,
        size: 64,
    };
    let came = ways.send(&ways.all(), load)?;
    let chunked: Result<Vec<_>> = came.iter().map(|one| chunks(one, pairs, size)).collect();
    let chunked = chunked?;
    let [ours, netem, twin, bare] = chunked.as_slice() else {
        anyhow::bail!("not four ways");
    };
    let asked = ms as f64;
    let errors = |way: &[Vec<f64>]| -> Vec<f64> {
        let error =
            |(way, bare): (&Vec<f64>, &Vec<f64>)| (median(way) - median(bare) - asked).abs();
        way.iter().zip(bare).map(error).collect()
    };
    let spreads = |way: &[Vec<f64>]| -> Vec<f64> {
        let spread = |way: &Vec<f64>| percentile(way, 99.0) - median(way);
        way.iter().map(spread).collect()
    };
    let ratios =
        |a: &[f64], b: &[f64]| -> Vec<f64> { a.iter().zip(b).map(|(a, b)| a / b).collect() };
    let beside_netem = |what: &str, unit: &str, of: &dyn Fn(&[Vec<f64>]) -> Vec<f64>| {
        let a = of(ours);
        let (b, c) = in_turns(of(netem), of(twin));
        let name = format!("delay of {ms} ms: {what}");
        ratio(&name, unit, &ratios(&a, &b), &ratios(&b, &c), 1)
            .detail("ours", median(&a))
            .detail("reference", median(&b))
    };
    let figure = beside_netem("how far the median is off", "error / netem's, ms", &errors);
    tell(&figure.aim(Aim::AtMost(1.0)))?;
    let figure = beside_netem("p99 - p50", "spread / netem's, ms", &spreads)
        .detail("no delay", median(&spreads(bare)));
    tell(&figure.aim(Aim::AtMost(1.1)))
}

/// Two of one kind, each of which is the reference in every other pair and else its control: devices that were
/// made alike still differ by some hundredths.
fn in_turns(mut reference: Vec<f64>, mut control: Vec<f64>) -> (Vec<f64>, Vec<f64>) {
    for (one, other) in reference.iter_mut().zip(&mut control).step_by(2) {
        std::mem::swap(one, other);
    }
    (reference, control)
}

vm_test!(a_jitter_is_as_wide_as_asked, limit = 1200);
fn a_jitter_is_as_wide_as_asked() -> Result<()> {
    const LATENCY: u64 = 200;
    const JITTER: u64 = 100;
    let pairs = asked_pairs()?;
    let size = chunk_size(pairs, 400);
    let mut ways = Ways::new()?;
    let netem = Netem {
        jitter_ns: JITTER as i64 * 1_000_000,
        ..Netem::delay(LATENCY)
    };
    ways.fault(delayed(LATENCY, JITTER), netem)?;
    let load = Load {
        count: size * pairs as u64,
        per_second: 300,
        size: 64,
    };
    let came = ways.send(&[&ways.ours, &ways.netem], load)?;
    // Even from -JITTER to JITTER.
    let asked = JITTER as f64 / 3.0_f64.sqrt();
    for (name, came) in ["ours", "netem"].iter().zip(&came) {
        let chunks = chunks(came, pairs, size)?;
        let shares: Vec<f64> = chunks
            .iter()
            .map(|chunk| deviation(chunk) / asked)
            .collect();
        let name = format!("jitter of {JITTER} ms on {LATENCY} ms: {name}");
        let figure = Figure::of(name, "standard deviation / asked", &shares);
        tell(&figure.aim(Aim::Between(0.95, 1.05)))?;
    }
    Ok(())
}

vm_test!(a_rate_is_what_was_asked_for, limit = 1200);
fn a_rate_is_what_was_asked_for() -> Result<()> {
    /// 10 Mbit/s
    const RATE: u64 = 1_250_000;
    const SIZE: usize = 1_000;
    const MOST: u64 = 100_000;
    let pairs = asked_pairs()?;
    let mut ways = Ways::new()?;
    let netem = Netem {
        rate: RATE as u32,
        ..Netem::delay(0)
    };
    let line = NetworkEffect {
        rate: Some(RATE),
        ..egress()
    };
    let bucket = NetworkEffect {
        bandwidth: Some(Bandwidth {
            rate: RATE,
            limit: MOST,
            buffer: 10_000,
            peak: None,
        }),
        ..egress()
    };
    for (effect, names) in [
        (
            line,
            ["rate of 10 Mbit/s: ours", "rate of 10 Mbit/s: netem"].as_slice(),
        ),
        (bucket, ["bandwidth of 10 Mbit/s: ours"].as_slice()),
    ] {
        ways.fault(effect, netem)?;
        let ways_used = [&ways.ours, &ways.netem];
        let load = Load {
            // Half as much again as passes.
            count: RATE * 3 / 2 / (SIZE + HEADERS) as u64 * 5,
            per_second: (RATE * 3 / 2 / (SIZE + HEADERS) as u64) as u32 * names.len() as u32,
            size: SIZE,
        };
        let came = ways.send(&ways_used[..names.len()], load)?;
        for (name, came) in names.iter().zip(&came) {
            let rates = rates(came, (SIZE + HEADERS) as f64, pairs);
            let shares: Vec<f64> = rates.iter().map(|rate| rate / RATE as f64).collect();
            let figure = Figure::of(*name, "passed / asked", &shares);
            tell(&figure.aim(Aim::Between(0.97, 1.03)))?;
        }
        ways.host.recover("bench")?;
    }
    Ok(())
}

/// Bytes a second of so many groups of datagrams, without the first half of all: a bucket passes what it
/// holds first.
fn rates(came: &[Came], bytes: f64, groups: usize) -> Vec<f64> {
    let mut times: Vec<u64> = came.iter().map(|came| came.received).collect();
    times.sort_unstable();
    let times = times.split_off(times.len() / 2);
    let size = (times.len() / groups).max(2);
    let rate = |times: &[u64]| {
        let (first, last) = (times.first()?, times.last()?);
        let seconds = (last - first) as f64 / 1e9;
        Some((times.len() - 1) as f64 * bytes / seconds)
    };
    times.chunks_exact(size).filter_map(rate).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn came(seq: u64, sent_ms: u64, took_ms: u64) -> Came {
        Came {
            seq,
            sent: sent_ms * 1_000_000,
            received: (sent_ms + took_ms) * 1_000_000,
        }
    }

    #[test]
    fn datagrams_are_grouped_by_their_numbers() {
        let all: Vec<Came> = (0..40).rev().map(|n| came(n, n, n / 20)).collect();
        let groups = chunks(&all, 2, 20).unwrap();
        assert_eq!(groups, [vec![0.0; 20], vec![1.0; 20]]);
        assert!(chunks(&all, 3, 20).is_err(), "a group is missing");
    }

    #[test]
    fn a_rate_is_that_of_the_second_half() {
        // 1000 bytes each millisecond, after as many at once.
        let burst = (0..50).map(|n| came(n, 0, 0));
        let all: Vec<Came> = burst.chain((50..100).map(|n| came(n, n, 0))).collect();
        for rate in rates(&all, 1_000.0, 5) {
            assert!((rate - 1e6).abs() < 1.0, "{rate}");
        }
        assert_eq!(rate_of_sending(&all[50..]), 1_000.0);
    }
}

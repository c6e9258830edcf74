//! What Chaos Mesh's own end-to-end tests ask of NetworkChaos: among four pods, exactly the expected
//! directed pairs are blocked or slow. Who gets which fault is the operator's part, and is the same here.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chaos_planner::fault::{Chance, NetworkEffect};
use nix::errno::Errno;

use crate::cgroup::Cgroup;
use crate::netns::{Forwarding, Uplink};
use crate::node::{Host, delayed, fault, of_pod, seeded};
use crate::process::Place;
use crate::udp::{Echo, Prober, Probes, Probing};
use crate::vm_test;

type Pairs = BTreeSet<(usize, usize)>;

struct Pod {
    _echo: Echo,
    cgroup: Cgroup,
    uplink: Uplink,
    uid: String,
}

/// Four pods that the host passes packets between.
struct Pods {
    all: Vec<Pod>,
    host: Host,
    _forwarding: Forwarding,
}

impl Pods {
    fn new() -> Result<Pods> {
        let pod = |n: u8| {
            let uid = format!("5d1f4b53-7c2c-4c8c-8a53-00000000000{n}");
            let uplink = Uplink::new(&format!("pod{n}"), 40 + n)?;
            let cgroup = Cgroup::of_pod(&uid)?;
            let place = Place::host().in_namespace(&uplink.other).in_cgroup(&cgroup);
            let _echo = Echo::start(place)?;
            Ok(Pod {
                _echo,
                cgroup,
                uplink,
                uid,
            })
        };
        Ok(Pods {
            all: (0..4).map(pod).collect::<Result<_>>()?,
            host: Host::open()?,
            _forwarding: Forwarding::on()?,
        })
    }

    fn address(&self, pod: usize) -> IpAddr {
        self.all[pod].uplink.v4()
    }

    /// Those with an effect on what `pod` sends to `to`, or receives from them. `None` is everybody.
    fn arm(
        &mut self,
        id: &str,
        pod: usize,
        to: Option<&[usize]>,
        effect: NetworkEffect,
    ) -> Result<()> {
        let peers = to.map(|to| to.iter().map(|n| self.address(*n).into()).collect());
        let made = fault(
            &format!("{id}/{pod}"),
            &self.all[pod].cgroup,
            NetworkEffect { peers, ..effect },
        );
        let made = of_pod(made, &self.all[pod].uid, false);
        self.host.arm(seeded(made, 20_260_109))
    }

    fn recover(&mut self, id: &str, pods: &[usize]) -> Result<()> {
        for pod in pods {
            self.host.recover(&format!("{id}/{pod}"))?;
        }
        Ok(())
    }

    /// Sends between all pairs at a time; those where it is so.
    fn pairs(&self, so: impl Fn(&Probes) -> Result<bool>) -> Result<Pairs> {
        let mut probers = Vec::new();
        for (from, pod) in self.all.iter().enumerate() {
            for to in (0..self.all.len()).filter(|to| *to != from) {
                let place = Place::host()
                    .in_namespace(&pod.uplink.other)
                    .in_cgroup(&pod.cgroup);
                let probing = Probing::of(self.address(to)).per_second(20).count(16);
                probers.push(((from, to), Prober::start(place, &probing)?));
            }
        }
        let mut pairs = Pairs::new();
        for (pair, prober) in probers {
            let probes = prober.join()?;
            if so(&probes).with_context(|| format!("{pair:?}"))? {
                pairs.insert(pair);
            }
        }
        Ok(pairs)
    }

    /// As upstream tells that a pair is blocked: sending fails.
    fn blocked(&self) -> Result<Pairs> {
        self.pairs(|probes| Ok(probes.refused(Errno::EPERM) == probes.len()))
    }

    /// As upstream tells that a pair is slow: by 100 ms, of 200.
    fn slow(&self) -> Result<Pairs> {
        self.pairs(|probes| Ok(probes.there().min()?.as_millis() >= 100))
    }
}

fn expect(what: &str, seen: Pairs, expected: &[(usize, usize)]) -> Result<()> {
    let expected: Pairs = expected.iter().copied().collect();
    ensure!(seen == expected, "{what}: {seen:?}, not {expected:?}");
    Ok(())
}

fn cut(egress: bool, ingress: bool) -> NetworkEffect {
    NetworkEffect {
        egress,
        ingress,
        drop: true,
        ..NetworkEffect::default()
    }
}

fn slower() -> NetworkEffect {
    delayed(Duration::from_millis(200))
}

vm_test!(
    partitions_cut_exactly_the_pairs_that_are_named,
    limit = 150,
    once
);
fn partitions_cut_exactly_the_pairs_that_are_named() -> Result<()> {
    let mut pods = Pods::new()?;
    expect("before", pods.blocked()?, &[])?;
    // (direction, whether it is sent and received at the source, the pairs)
    let both = [(0, 1), (1, 0)];
    for (direction, sent, received, pairs) in [
        ("to", true, false, &both[..1]),
        ("from", false, true, &both[1..]),
        ("both", true, true, &both),
    ] {
        pods.arm("p", 0, Some(&[1]), cut(sent, received))?;
        pods.arm("p", 1, Some(&[0]), cut(received, sent))?;
        expect(direction, pods.blocked()?, pairs)?;
        pods.recover("p", &[0, 1])?;
    }
    pods.arm("many", 0, Some(&[1, 2]), cut(true, false))?;
    pods.arm("other", 2, Some(&[3]), cut(true, false))?;
    expect("two at a time", pods.blocked()?, &[(0, 1), (0, 2), (2, 3)])?;
    pods.recover("many", &[0])?;
    expect("one of two", pods.blocked()?, &[(2, 3)])?;
    pods.recover("other", &[2])?;

    pods.arm("all", 0, None, cut(true, false))?;
    expect("to everybody", pods.blocked()?, &[(0, 1), (0, 2), (0, 3)])?;
    pods.recover("all", &[0])?;
    pods.arm("all", 0, None, cut(false, true))?;
    expect("from everybody", pods.blocked()?, &[])?;
    pods.recover("all", &[0])?;
    let lost = pods.pairs(|probes| Ok(probes.lost() > 0))?;
    expect("after", lost, &[])
}

vm_test!(
    delays_slow_exactly_the_pairs_that_are_named,
    limit = 150,
    once
);
fn delays_slow_exactly_the_pairs_that_are_named() -> Result<()> {
    let mut pods = Pods::new()?;
    expect("before", pods.slow()?, &[])?;
    pods.arm("all", 0, None, slower())?;
    expect("to all", pods.slow()?, &[(0, 1), (0, 2), (0, 3)])?;
    pods.arm("set", 0, Some(&[1, 3]), slower())?;
    pods.recover("all", &[0])?;
    expect("one of two that overlap", pods.slow()?, &[(0, 1), (0, 3)])?;
    pods.recover("set", &[0])?;
    expect("after", pods.slow()?, &[])?;

    let quarter = Some(Chance::of(250_000));
    let everything = NetworkEffect {
        loss: quarter,
        duplicate: quarter,
        corrupt: quarter,
        ..slower()
    };
    pods.arm("netem", 0, Some(&[1]), everything)?;
    expect("with loss, copies and corruption", pods.slow()?, &[(0, 1)])?;
    pods.recover("netem", &[0])?;

    let (sources, targets) = ([0, 2], [1, 3]);
    for source in sources {
        pods.arm("both", source, Some(&targets), slower())?;
    }
    for target in targets {
        pods.arm("both", target, Some(&sources), slower())?;
    }
    let cross: Vec<_> = sources
        .iter()
        .flat_map(|s| targets.iter().flat_map(|t| [(*s, *t), (*t, *s)]))
        .collect();
    expect("both ways", pods.slow()?, &cross)?;
    pods.recover("both", &[0, 1, 2, 3])?;
    expect("after", pods.slow()?, &[])
}

//! Others have programs on the target's device, too, as Cilium has: theirs stay and have their say, ours
//! act all the same, and a device does not notice that ours come and go.

use std::time::Duration;

use anyhow::{Result, ensure};
use chaos_abi::sample::{self, Stream};
use chaos_planner::fault::{Chance, Mode, NetworkEffect};
use nix::net::if_::if_nametoindex;

use crate::cgroup::Cgroup;
use crate::clock::Stamp;
use crate::foreign::{Foreign, Says, Side, there};
use crate::netns::{DEVICE, Namespace, Pair, cable};
use crate::node::{Host, delayed, egress, fault, resident, seeded, waited};
use crate::process::Place;
use crate::registry::{note, skip};
use crate::udp::{self, Echo, Prober, Probing};
use crate::vm_test;

const SEED: u64 = 20_261_122;
const PACKETS: u64 = 60;
const DELAY: Duration = Duration::from_millis(100);
const NO_TCX: &str = "no tcx before 6.6";

vm_test!(
    a_program_that_lets_everything_pass_hides_no_fault,
    limit = 120
);
fn a_program_that_lets_everything_pass_hides_no_fault() -> Result<()> {
    for side in [Side::Egress, Side::Ingress] {
        let pair = Pair::new()?;
        let attach = |says| Foreign::attach(&pair.a, DEVICE, side, false, says);
        let (Some(before), Some(last)) = (attach(Says::Next)?, attach(Says::Pass)?) else {
            return skip(NO_TCX);
        };
        let theirs = vec![before.id()?, last.id()?];
        let untouched = (pair.a.devices()?, pair.a.qdiscs()?);
        let target = Cgroup::new()?;
        let echo = Echo::start(Place::host().in_namespace(&pair.b))?;
        let _resident = resident(&pair.a, &target)?;
        let from = || Place::host().in_namespace(&pair.a).in_cgroup(&target);
        let probing = Probing::of(Pair::B4).per_second(100);
        let sided = |effect: NetworkEffect| NetworkEffect {
            egress: side == Side::Egress,
            ingress: side == Side::Ingress,
            // Neighbours look for each other, too.
            peers: Some(vec![Pair::B4.into()]),
            ..effect
        };
        let mut host = Host::open()?;

        let share = Chance::of(400_000);
        let lossy = sided(NetworkEffect {
            loss: Some(share),
            ..egress()
        });
        host.arm(seeded(fault("l", &target, lossy), SEED))?;
        let now = there(&pair.a, DEVICE, side)?;
        ensure!(
            now.len() == 3 && now.ends_with(&theirs),
            "{side:?}: {now:?}, theirs {theirs:?}"
        );
        let probes = udp::probe(from(), &probing, PACKETS)?;
        let drawn = sample::Chance::of_ppm(share.ppm, 0);
        let model: Vec<_> = (0..PACKETS)
            .filter(|n| drawn.hits(SEED, Stream::Loss, *n))
            .collect();
        // What is sent and lost, the peer has not seen; what is received and lost, the sender has not.
        let lost: Vec<_> = if side == Side::Egress {
            let seen = (0..).zip(echo.times_seen(PACKETS));
            seen.filter(|(_, times)| *times == 0)
                .map(|(n, _)| n)
                .collect()
        } else {
            (probes.0.iter())
                .filter(|probe| probe.answered.is_none())
                .map(|probe| probe.seq)
                .collect()
        };
        ensure!(lost == model, "{side:?}: {lost:?}, model {model:?}");
        let counts = host.counts("l")?;
        ensure!(
            (counts.matched, counts.injected) == (PACKETS, model.len() as u64),
            "{side:?}: {counts:?}"
        );
        // Not what was lost: that was before theirs.
        let left = PACKETS - model.len() as u64;
        ensure!(
            (before.seen()?, last.seen()?) == (left, left),
            "{side:?}: saw {} and {} of {left}",
            before.seen()?,
            last.seen()?
        );
        host.recover("l")?;

        host.arm(fault("d", &target, sided(delayed(DELAY))))?;
        let probes = udp::probe(from(), &probing, PACKETS)?;
        ensure!(probes.lost() == 0, "{side:?}: {:?}", probes.lost_seqs());
        let times = match side {
            Side::Egress => probes.there(),
            Side::Ingress => probes.back(),
        };
        ensure!(waited(times.min()?, DELAY), "{side:?}: {:?}", times.min()?);
        let counts = host.counts("d")?;
        ensure!(
            (counts.matched, counts.injected, counts.failed) == (PACKETS, PACKETS, 0),
            "{side:?}: {counts:?}"
        );
        // Once: after they have waited.
        let seen = left + PACKETS;
        ensure!(
            (before.seen()?, last.seen()?) == (seen, seen),
            "{side:?}: saw {} and {} of {seen}",
            before.seen()?,
            last.seen()?
        );
        host.recover("d")?;
        let now = there(&pair.a, DEVICE, side)?;
        ensure!(now == theirs, "{side:?}: {now:?}, before {theirs:?}");
        let after = (pair.a.devices()?, pair.a.qdiscs()?);
        ensure!(after == untouched, "{side:?}: {after:?}");
        let probes = udp::probe(from(), &probing, PACKETS)?;
        ensure!(
            probes.lost() == 0 && times_are_short(&probes)?,
            "{side:?}: acts after recovery"
        );
    }
    Ok(())
}

fn times_are_short(probes: &udp::Probes) -> Result<bool> {
    Ok(probes.there().min()? < DELAY && probes.back().min()? < DELAY)
}

/// By the fault `d` on what is sent.
fn each_was_late_once(host: &mut Host, probes: &udp::Probes) -> Result<()> {
    let earliest = probes.there().min()?;
    ensure!(waited(earliest, DELAY), "one took {earliest:?} only");
    let counts = host.counts("d")?;
    ensure!(
        (counts.matched, counts.injected) == (PACKETS, PACKETS),
        "{counts:?}"
    );
    Ok(())
}

vm_test!(a_program_in_front_sees_what_is_late_twice, limit = 60);
fn a_program_in_front_sees_what_is_late_twice() -> Result<()> {
    let pair = Pair::new()?;
    let target = Cgroup::new()?;
    let _echo = Echo::start(Place::host().in_namespace(&pair.b))?;
    let _resident = resident(&pair.a, &target)?;
    let mut host = Host::open()?;
    host.arm(fault("d", &target, delayed(DELAY)))?;
    let front = Foreign::attach(&pair.a, DEVICE, Side::Egress, true, Says::Next)?;
    let Some(front) = front else {
        return skip(NO_TCX);
    };
    let from = Place::host().in_namespace(&pair.a).in_cgroup(&target);
    let probes = udp::probe(from, &Probing::of(Pair::B4).per_second(100), PACKETS)?;
    ensure!(probes.lost() == 0, "lost {:?}", probes.lost_seqs());
    each_was_late_once(&mut host, &probes)?;
    ensure!(front.seen()? == 2 * PACKETS, "saw {}", front.seen()?);
    // A fault more changes nothing of the order, and takes nothing away when it goes.
    host.arm(fault("e", &target, delayed(DELAY)))?;
    host.recover("e")?;
    let now = there(&pair.a, DEVICE, Side::Egress)?;
    ensure!(now.len() == 2 && now[0] == front.id()?, "{now:?}");
    host.recover("d")?;
    let now = there(&pair.a, DEVICE, Side::Egress)?;
    ensure!(now == [front.id()?], "{now:?}");
    Ok(())
}

vm_test!(
    a_program_that_sends_elsewhere_does_it_with_what_is_late,
    limit = 60
);
fn a_program_that_sends_elsewhere_does_it_with_what_is_late() -> Result<()> {
    const OTHER: &str = "other0";
    let pair = Pair::new()?;
    // Has the address of `b`, behind another device of `a`.
    let other = Namespace::new()?;
    cable(&pair.a, OTHER, &other)?;
    let near = "10.9.0.3".parse()?;
    for (namespace, device, address) in [(&pair.a, OTHER, near), (&other, DEVICE, Pair::B4)] {
        namespace.add_address(device, address, 24)?;
        namespace.up(device)?;
    }
    let out = pair.a.within(|| Ok(if_nametoindex(OTHER)?))?;
    let foreign = Foreign::attach(&pair.a, DEVICE, Side::Egress, false, Says::Away(out))?;
    let Some(foreign) = foreign else {
        return skip(NO_TCX);
    };
    let target = Cgroup::new()?;
    let echo = Echo::start(Place::host().in_namespace(&other))?;
    let _resident = resident(&pair.a, &target)?;
    let mut host = Host::open()?;
    let named = NetworkEffect {
        device: Some(DEVICE.into()),
        ..delayed(DELAY)
    };
    host.arm(fault("d", &target, named))?;
    let from = Place::host().in_namespace(&pair.a).in_cgroup(&target);
    let probes = udp::probe(from, &Probing::of(Pair::B4).per_second(100), PACKETS)?;
    ensure!(
        echo.times_seen(PACKETS).iter().all(|times| *times == 1),
        "{:?}",
        echo.times_seen(PACKETS)
    );
    each_was_late_once(&mut host, &probes)?;
    ensure!(foreign.seen()? == PACKETS, "saw {}", foreign.seen()?);
    Ok(())
}

vm_test!(the_first_fault_on_a_device_loses_no_packet, limit = 240);
fn the_first_fault_on_a_device_loses_no_packet() -> Result<()> {
    const DEVICES: usize = 20;
    let mut host = Host::open()?;
    let target = Cgroup::new()?;
    let mut meanwhile = 0;
    for n in 0..DEVICES {
        let pair = Pair::new()?;
        if Foreign::attach(&pair.a, DEVICE, Side::Egress, true, Says::Next)?.is_none() {
            return skip("no tcx before 6.6: a first clsact stops the device for a moment");
        }
        let before = (pair.a.devices()?, pair.a.qdiscs()?);
        let _echo = Echo::start(Place::host().in_namespace(&pair.b))?;
        let _resident = resident(&pair.a, &target)?;
        let from = Place::host().in_namespace(&pair.a).in_cgroup(&target);
        let prober = Prober::start(from, &Probing::of(Pair::B4).per_second(1_000))?;
        host.run_for(Duration::from_millis(50));
        let mut fault = fault("f", &target, delayed(Duration::from_millis(10)));
        if n % 2 == 0 {
            fault.mode = Mode::Observe;
        }
        let arming = Stamp::now();
        host.arm(fault)?;
        let armed = Stamp::now();
        host.run_for(Duration::from_millis(50));
        let counts = host.recover("f")?;
        ensure!(counts.injected + counts.would_inject > 0, "{counts:?}");
        let after = (pair.a.devices()?, pair.a.qdiscs()?);
        ensure!(after == before, "device {n}: {after:?}");
        let probes = prober.stop()?;
        ensure!(
            probes.lost() == 0,
            "device {n}: lost {:?} of {}",
            probes.lost_seqs(),
            probes.len()
        );
        meanwhile += probes.between(arming, armed).len();
    }
    note(format!(
        "{meanwhile} packets while {DEVICES} devices got their first fault"
    ));
    ensure!(meanwhile > DEVICES, "only {meanwhile} packets");
    Ok(())
}

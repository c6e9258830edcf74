//! The peers that other tests measure with are right when there is no fault.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::libc;

use crate::clock::Stamp;
use crate::netns::Pair;
use crate::process::Place;
use crate::tcp::{self, Sent};
use crate::udp::{self, Echo, Prober, Probing};
use crate::vm_test;
use crate::wait::eventually;

vm_test!(udp_crosses_a_pair_without_loss_or_delay);
fn udp_crosses_a_pair_without_loss_or_delay() -> Result<()> {
    let pair = Pair::new()?;
    let echo = Echo::start(Place::host().in_namespace(&pair.b))?;
    for to in [Pair::B4, Pair::B6] {
        let from = Place::host().in_namespace(&pair.a);
        let probes = udp::probe(from, &Probing::of(to).per_second(100), 100)?;
        ensure!(probes.len() == 100, "{to}: {} sent", probes.len());
        ensure!(probes.lost() == 0, "{to}: lost {:?}", probes.lost_seqs());
        let median = probes.round_trips().median()?;
        ensure!(median < Duration::from_millis(20), "{to}: {median:?}");
        ensure!(
            probes.there().median()? + probes.back().median()? < median * 2,
            "{to}: clocks differ"
        );
    }
    ensure!(
        echo.arrivals().len() == 200,
        "{} arrived",
        echo.arrivals().len()
    );
    Ok(())
}

vm_test!(a_prober_tells_of_each_datagram_while_it_runs);
fn a_prober_tells_of_each_datagram_while_it_runs() -> Result<()> {
    let pair = Pair::new()?;
    let from = Place::host().in_namespace(&pair.a);
    // Nobody listens at first: lost, and no errno of an ICMP answer.
    let prober = Prober::start(from, &Probing::of(Pair::B4).per_second(100))?;
    eventually("datagrams are lost", Duration::from_secs(5), || {
        let probes = prober.probes().settled(Duration::from_millis(200));
        ensure!(
            probes.lost() >= 10 && probes.answered() == 0,
            "{} lost",
            probes.lost()
        );
        Ok(())
    })?;
    let echo = Echo::start(Place::host().in_namespace(&pair.b))?;
    let start = Stamp::now();
    std::thread::sleep(Duration::from_millis(300));
    let probes = prober.stop()?.after(start);
    ensure!(probes.answered() >= 10, "{} answered", probes.answered());
    ensure!(probes.lost() == 0, "lost {:?}", probes.lost_seqs());
    ensure!(!echo.arrivals().is_empty(), "the server has not seen them");
    Ok(())
}

vm_test!(a_refused_send_shows_its_errno);
fn a_refused_send_shows_its_errno() -> Result<()> {
    let pair = Pair::new()?;
    let nowhere: IpAddr = "192.0.2.1".parse()?;
    let from = Place::host().in_namespace(&pair.a);
    let probes = udp::probe(from, &Probing::of(nowhere).per_second(0), 3)?;
    ensure!(
        probes.refused(nix::errno::Errno::ENETUNREACH) == 3,
        "{probes:?}"
    );
    ensure!(probes.lost() == 0, "a refused datagram is not a lost one");
    Ok(())
}

vm_test!(tcp_connects_transfers_and_says_why_not);
fn tcp_connects_transfers_and_says_why_not() -> Result<()> {
    let pair = Pair::new()?;
    let from = Place::host().in_namespace(&pair.a);
    let refused = tcp::connect(from, Pair::B4, Duration::from_secs(2))?;
    let Sent::Refused { errno, .. } = refused else {
        anyhow::bail!("{refused:?}")
    };
    ensure!(errno == libc::ECONNREFUSED, "{refused:?}");

    let server = tcp::Server::start(Place::host().in_namespace(&pair.b))?;
    for to in [Pair::B4, Pair::B6] {
        let sent = tcp::transfer(from, to, Duration::from_millis(500))?;
        ensure!(sent.megabits_per_second() > 1.0, "{to}: {sent:?}");
    }
    drop(server);

    // An address of the cable's network that nobody has: no answer to ARP.
    let to = SocketAddr::new("10.9.0.77".parse().context("an address")?, tcp::PORT);
    let within = Duration::from_millis(300);
    let sending = tcp::Sending {
        to,
        connect_within: within,
        send_for: Duration::ZERO,
    };
    let sent = tcp::run(from, &sending)?;
    ensure!(matches!(sent, Sent::TimedOut { .. }), "{sent:?}");
    Ok(())
}

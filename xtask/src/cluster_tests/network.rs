//! What faults do to what pods send each other: as much as asked, in the direction asked, to nobody
//! else, for as long as asked.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use chaos_api::v1alpha1::{DesiredPhase, RecordPhase};

use super::{
    bench::{Bench, EDGE, Seen, document},
    tests,
};
use crate::{
    lab::{
        chaos::{Counted, all_are, condition, lost_by_model, ours},
        nanos,
        samples::{Sign, Span, Stats},
    },
    out::note,
};

tests![
    a_delay_adds_what_is_asked_and_a_bystander_feels_nothing,
    a_seeded_loss_takes_what_the_model_says_and_the_peers_miss_just_that,
    a_partition_to_refuses_the_sender_in_the_asked_direction_only,
    a_partition_from_refuses_the_other_side,
    a_partition_both_refuses_both_sides,
];

/// How long each fault lasts: long enough to be looked at while it acts.
const LASTS: Duration = Duration::from_secs(10);

/// What the delay asks for.
const DELAY: Duration = Duration::from_millis(100);

/// So long after the last packet to a neighbour it may still be solicited: `delay_first_probe_time`
/// (Documentation/networking/ip-sysctl.rst), and one second more.
const LAST_SOLICITED: Duration = Duration::from_secs(6);

/// How much longer than asked the median of what is delayed may take, against that of a bystander in
/// the same seconds: a busy machine serves timers late.
const DELAY_LATE_MS: f64 = 150.0;

/// Packets by which IPv6 keeps its neighbours: the kernel counts them, and no probe has sent them.
const NEIGHBOURS: u64 = 10;

/// The paths that no fault here is about.
const BYSTANDERS: [(&str, &str); 4] = [("a", "c"), ("c", "a"), ("c", "b"), ("b", "c")];

fn least(medians: impl IntoIterator<Item = f64>) -> f64 {
    medians.into_iter().fold(f64::INFINITY, f64::min)
}

fn a_delay_adds_what_is_asked_and_a_bystander_feels_nothing(bench: &Bench<'_>) -> Result<()> {
    let delay = "  action: delay\n  delay: {latency: 100ms}\n  duration: 10s\n";
    let seen = bench.watch(&document("delay", "a", "b", delay), "delay", LASTS)?;
    // What is sent later waits until the deadline only.
    let during = seen.inner(DELAY);
    let after = seen.ends().1 + nanos(EDGE)..seen.until;
    let bystanders = |span: &Span| -> Result<Vec<f64>> {
        let medians = BYSTANDERS.map(|(from, to)| seen.medians(from, to, span));
        Ok(medians.into_iter().collect::<Result<Vec<_>>>()?.concat())
    };
    let (spared, spared_after) = (bystanders(&during)?, bystanders(&after)?);
    let asked_ms = DELAY.as_secs_f64() * 1000.0;
    for (from, to) in [("a", "b"), ("b", "a")] {
        // Round trips are cut to microseconds, and there is nothing between 95 ms and 100 ms.
        seen.all_hit(from, to, &during, Sign::SlowerThan(95_000))?;
        seen.is_untouched(from, to)?;
        let (slowed, slowed_after) = (
            seen.medians(from, to, &during)?,
            seen.medians(from, to, &after)?,
        );
        note!("{from} → {to}: medians {slowed:.1?} ms, then {slowed_after:.1?} ms");
        for median in &slowed {
            ensure!(
                *median < least(spared.clone()) + asked_ms + DELAY_LATE_MS,
                "{from} → {to}: {median:.1} ms, bystanders {spared:.1?} ms"
            );
            ensure!(
                spared
                    .iter()
                    .all(|spared| *spared + asked_ms / 2.0 < *median),
                "bystanders are slow, too: {spared:.1?} ms, {from} → {to} {median:.1} ms"
            );
        }
        ensure!(
            slowed_after
                .iter()
                .all(|median| *median < least(spared_after.clone()) + asked_ms / 2.0),
            "{from} → {to} is slow afterwards: {slowed_after:.1?} ms, bystanders {spared_after:.1?} ms"
        );
    }
    note!("bystanders: {spared:.1?} ms, then {spared_after:.1?} ms");
    for (from, to) in BYSTANDERS {
        seen.is_untouched(from, to)?;
    }
    // Probes of `a` and its answers, no packet less, and nothing else but what IPv6 needs.
    let sent = |span: Span| Stats::over(seen.both_ways("a", "b"), &span).sent as u64;
    let least = sent(seen.inner(Duration::ZERO));
    let most = sent(seen.in_force() - nanos(EDGE)..seen.ends().1);
    let Counted { matched, hits } = seen.counted;
    ensure!(
        matched == hits && (least..=most + NEIGHBOURS).contains(&hits),
        "{hits} of {matched} packets hit; {least} to {most} datagrams were on their way"
    );
    is_over(&seen)
}

/// What the status says of an experiment whose time is up.
fn is_over(seen: &Seen) -> Result<()> {
    let (during, after) = (&seen.during, &seen.after);
    ensure!(
        condition(during, "AllRecovered") == Some(false),
        "{during:?}"
    );
    ensure!(condition(after, "AllRecovered") == Some(true), "{after:?}");
    ensure!(condition(after, "AllInjected") == Some(false), "{after:?}");
    ensure!(all_are(after, RecordPhase::NotInjected), "{after:?}");
    ensure!(
        after.experiment.desired_phase == Some(DesiredPhase::Stop),
        "{after:?}"
    );
    ensure!(ours(after).hits.is_some_and(|hits| hits > 0), "{after:?}");
    Ok(())
}

fn a_seeded_loss_takes_what_the_model_says_and_the_peers_miss_just_that(
    bench: &Bench<'_>,
) -> Result<()> {
    // IPv6 has neighbours to solicit, which the kernel counts and no peer misses.
    bench.lab.introduce_all(false)?;
    std::thread::sleep(LAST_SOLICITED);
    let loss = "  action: loss\n  loss: {loss: \"30\"}\n  duration: 10s\n  faultline: {sample: {seed: 42}}\n";
    let seen = bench.watch(&document("loss", "a", "b", loss), "loss", LASTS);
    bench.lab.introduce_all(true)?;
    let seen = seen?;
    let [rule] = &seen.rules[..] else {
        bail!("only a sends what is asked for: {:?}", seen.rules);
    };
    let Counted { matched, hits } = seen.counted;
    let lost = |from, to, span: Span| Stats::over(seen.between(from, to), &span);
    let missed = [("a", "b"), ("b", "a")].map(|(from, to)| lost(from, to, 0..seen.until).lost);
    let (first, last) = rule.acted.context("nothing was lost")?;
    let in_force = first..last + 1;
    let (there, back) = (lost("a", "b", in_force.clone()), lost("b", "a", in_force));
    note!(
        "matched {matched}, hit {hits}, model {}, missed by the peers {missed:?}; {:.0} % and {:.0} %",
        lost_by_model(42, 30, matched),
        there.loss() * 100.0,
        back.loss() * 100.0
    );
    ensure!(hits == lost_by_model(42, 30, matched), "not the model's");
    ensure!(
        hits == missed.iter().sum::<usize>() as u64,
        "not what the peers miss"
    );
    let status = ours(&seen.after);
    ensure!(
        (status.matched, status.hits) == (Some(matched), Some(hits)),
        "the status does not end with the kernel's last word: {status:?}"
    );
    for stats in [&there, &back] {
        ensure!(stats.refused == 0, "a sender was told: {stats:?}");
        ensure!((0.15..0.45).contains(&stats.loss()), "{stats:?}");
    }
    seen.none_hit_outside("a", "b", &seen.may_be_hit(), Sign::Lost)?;
    for (from, to) in BYSTANDERS {
        seen.is_untouched(from, to)?;
    }
    is_over(&seen)
}

/// Runs a partition between `a` and `b`, and checks who is refused and that others are not.
fn partition(bench: &Bench<'_>, direction: &str, refused: &[(&str, &str)]) -> Result<Seen> {
    let rest = format!("  action: partition\n  direction: {direction}\n  duration: 10s\n");
    let document = document(direction, "a", "b", &rest);
    let seen = bench.watch(&document, direction, LASTS)?;
    for (from, to) in refused {
        seen.all_hit(from, to, &seen.inner(Duration::ZERO), Sign::Refused)?;
        seen.none_hit_outside(from, to, &seen.may_be_hit(), Sign::Refused)?;
    }
    // A probe that was refused, or the answer to one.
    let whole = Stats::over(seen.both_ways("a", "b"), &(0..seen.until));
    let Counted { matched, hits } = seen.counted;
    ensure!(
        matched == hits && hits == (whole.refused + whole.lost) as u64,
        "{hits} of {matched} packets hit; the peers: {whole:?}"
    );
    for (from, to) in [("a", "b"), ("b", "a")] {
        // As before, from the first datagram on.
        let after = seen.may_be_hit().end..seen.until;
        seen.is_well(from, to, &after)?;
        if !refused.contains(&(from, to)) {
            let stats = Stats::over(seen.between(from, to), &(0..seen.until));
            ensure!(stats.refused == 0, "{from} → {to}: {stats:?}");
        }
    }
    for (from, to) in BYSTANDERS {
        seen.is_untouched(from, to)?;
    }
    is_over(&seen)?;
    Ok(seen)
}

fn a_partition_to_refuses_the_sender_in_the_asked_direction_only(bench: &Bench<'_>) -> Result<()> {
    let before = bench.lab.arrived("a", "b")?;
    let seen = partition(bench, "to", &[("a", "b")])?;
    let arrived = bench.lab.arrived("a", "b")? - before;
    let sent = Stats::over(seen.between("b", "a"), &(seen.applied.asked..seen.until));
    // Not one of them was refused or dropped on its way; only their answers were.
    ensure!(sent.lost > 0, "{sent:?}");
    ensure!(
        arrived as usize >= sent.sent,
        "{arrived} of more than {} datagrams from b arrived at a",
        sent.sent
    );
    Ok(())
}

fn a_partition_from_refuses_the_other_side(bench: &Bench<'_>) -> Result<()> {
    partition(bench, "from", &[("b", "a")]).map(drop)
}

fn a_partition_both_refuses_both_sides(bench: &Bench<'_>) -> Result<()> {
    partition(bench, "both", &[("a", "b"), ("b", "a")]).map(drop)
}

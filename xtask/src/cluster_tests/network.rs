//! What faults do to what pods send each other: as much as asked, in the direction asked, to nobody
//! else, for as long as asked.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chaos_api::v1alpha1::{DesiredPhase, RecordPhase};

use super::{
    bench::{Bench, Seen, document},
    tests,
};
use crate::{
    lab::{
        chaos::{Counted, all_are, condition, lost_by_model, ours},
        nanos,
        samples::{Sign, Stats},
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

/// How long each fault lasts.
const LASTS: Duration = Duration::from_secs(5);

/// The first and last moments of a fault are left out where every datagram must be hit: one may be on
/// its way when it comes.
const EDGE: Duration = Duration::from_millis(100);

fn inner((first, last): (u64, u64)) -> std::ops::Range<u64> {
    first + nanos(EDGE)..last - nanos(EDGE)
}

fn a_delay_adds_what_is_asked_and_a_bystander_feels_nothing(bench: &Bench<'_>) -> Result<()> {
    let delay = "  action: delay\n  delay: {latency: 100ms}\n  duration: 5s\n";
    let seen = bench.watch(&document("delay", "a", "b", delay), LASTS)?;
    let slow = Sign::SlowerThan(95_000);
    let hits = seen.hits("a", "b", slow)?;
    bench.first_hit(&seen.applied, hits.0);
    seen.ended_in_time(hits.1)?;
    for (from, to) in [("a", "b"), ("b", "a")] {
        seen.all_hit(from, to, &inner(hits), slow)?;
        for path in seen.between(from, to) {
            let before = Stats::over([path], &(0..seen.applied.asked));
            let during = Stats::over([path], &inner(hits));
            let after = Stats::over([path], &(hits.1 + nanos(EDGE)..seen.until));
            let added = during.median_ms.context("nothing came through")?
                - before.median_ms.context("nothing came through before")?;
            note!("{from} → {to} (IPv6: {}): {added:+.1} ms", path.ipv6);
            ensure!(
                (98.0..150.0).contains(&added),
                "{from} → {to}: {added:+.1} ms"
            );
            ensure!(
                before.loss() + during.loss() + after.loss() == 0.0,
                "{from} → {to}: {before:?} {during:?} {after:?}"
            );
            ensure!(after.median_ms.is_some_and(|ms| ms < 50.0), "{after:?}");
        }
    }
    for (from, to) in [("a", "c"), ("c", "a"), ("c", "b"), ("b", "c")] {
        seen.is_untouched(from, to)?;
    }
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
    let before = bench.lab.counted("loss")?;
    let loss = "  action: loss\n  loss: {loss: \"30\"}\n  duration: 6s\n  faultline: {sample: {seed: 42}}\n";
    let seen = bench.watch(&document("loss", "a", "b", loss), Duration::from_secs(6));
    bench.lab.introduce_all(true)?;
    let seen = seen?;
    let hits = seen.hits("a", "b", Sign::Lost)?;
    let of = |from, to| {
        let span = hits.0..hits.1 + 1;
        Stats::over(seen.between(from, to), &span)
    };
    let (there, back) = (of("a", "b"), of("b", "a"));
    let whole = seen.applied.asked..seen.until;
    let missed = ["a", "b"].map(|from| {
        let to = if from == "a" { "b" } else { "a" };
        Stats::over(seen.between(from, to), &whole).lost as u64
    });
    let Counted { matched, hits: hit } = bench.lab.counted("loss")?.since(before);
    note!(
        "matched {matched}, hit {hit}, model {}, missed by the peers {missed:?}; {:.0} % and {:.0} %",
        lost_by_model(42, 30, matched),
        there.loss() * 100.0,
        back.loss() * 100.0
    );
    ensure!(hit == lost_by_model(42, 30, matched), "not the model's");
    ensure!(hit == missed.iter().sum::<u64>(), "not what the peers miss");
    let status = ours(&seen.after);
    ensure!(
        (status.matched, status.hits) == (Some(matched), Some(hit)),
        "the status does not end with the kernel's last word: {status:?}"
    );
    ensure!(there.refused == 0, "the sender was told: {there:?}");
    ensure!((0.15..0.45).contains(&there.loss()), "{there:?}");
    for (from, to) in [("a", "c"), ("c", "b")] {
        seen.is_untouched(from, to)?;
    }
    is_over(&seen)
}

/// Runs a partition between `a` and `b`, and checks who is refused and that others are not.
fn partition(bench: &Bench<'_>, direction: &str, refused: &[(&str, &str)]) -> Result<Seen> {
    let rest = format!("  action: partition\n  direction: {direction}\n  duration: 5s\n");
    let seen = bench.watch(&document(direction, "a", "b", &rest), LASTS)?;
    let mut first = u64::MAX;
    for (from, to) in refused {
        let hits = seen.hits(from, to, Sign::Refused)?;
        first = first.min(hits.0);
        seen.ended_in_time(hits.1)?;
        seen.all_hit(from, to, &inner(hits), Sign::Refused)?;
        // As before, from the first datagram on.
        seen.is_well(from, to, &(hits.1 + nanos(EDGE)..seen.until))?;
    }
    bench.first_hit(&seen.applied, first);
    for (from, to) in [("a", "c"), ("c", "a"), ("b", "c"), ("c", "b")] {
        seen.is_untouched(from, to)?;
    }
    is_over(&seen)?;
    Ok(seen)
}

fn a_partition_to_refuses_the_sender_in_the_asked_direction_only(bench: &Bench<'_>) -> Result<()> {
    let before = bench.lab.arrived("a", "b")?;
    let seen = partition(bench, "to", &[("a", "b")])?;
    let arrived = bench.lab.arrived("a", "b")? - before;
    let sent: usize = seen
        .between("b", "a")
        .iter()
        .map(|path| path.within(&(seen.applied.asked..seen.until)).count())
        .sum();
    // Not one of them was refused or dropped on its way; only their answers were.
    let back = Stats::over(seen.between("b", "a"), &(0..seen.until));
    ensure!(back.refused == 0 && back.lost > 0, "{back:?}");
    ensure!(
        arrived as usize >= sent,
        "{arrived} of more than {sent} datagrams from b arrived at a"
    );
    Ok(())
}

fn a_partition_from_refuses_the_other_side(bench: &Bench<'_>) -> Result<()> {
    let seen = partition(bench, "from", &[("b", "a")])?;
    let there = Stats::over(seen.between("a", "b"), &(0..seen.until));
    ensure!(there.refused == 0, "{there:?}");
    Ok(())
}

fn a_partition_both_refuses_both_sides(bench: &Bench<'_>) -> Result<()> {
    partition(bench, "both", &[("a", "b"), ("b", "a")]).map(drop)
}

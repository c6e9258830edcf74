//! What the tests work with: pods, short experiments, and how what the pods saw is judged.

use std::{cell::RefCell, time::Duration};

use anyhow::{Context, Result, ensure};
use chaos_api::v1alpha1::ChaosStatus;

use crate::{
    lab::{
        Lab,
        chaos::{Applied, PATIENCE},
        clock, nanos,
        samples::{Path, Sign, Span, Stats, first_and_last},
        sleep_until,
    },
    out::note,
    step,
};

pub(super) const NAMESPACE: &str = "cluster-tests";

/// `a` and `b` are what experiments are about; nothing is ever asked of `c`.
pub(super) const PODS: [(&str, &[(&str, &str)]); 3] = [
    ("a", &[("app", "peer")]),
    ("b", &[("app", "peer")]),
    ("c", &[("app", "bystander")]),
];

/// Before and after a fault.
pub(super) const SPAN: Duration = Duration::from_secs(2);

/// Half of any delay that is injected here. On an emulated node that has other work to do, the median
/// of what nothing is done to comes near it.
const USUAL_MS: f64 = 50.0;

/// How much later than its deadline a fault may still hit: the promise of 100 ms.
const LATE: Duration = Duration::from_millis(100);

/// How much earlier than its deadline the last datagram may be hit: there is one each 50 ms, if the
/// emulated machine does not stand still.
const EARLY: Duration = Duration::from_millis(400);

/// The laboratory, and what is remembered from test to test.
pub(super) struct Bench<'a> {
    pub(super) lab: &'a Lab<'a>,
    /// From `kubectl apply` returning to the first packet hit, in milliseconds.
    first_hits: RefCell<Vec<f64>>,
}

/// What was seen of an experiment that has run to its end.
pub(super) struct Seen {
    pub(super) applied: Applied,
    /// Once all was injected.
    pub(super) during: ChaosStatus,
    /// Once it was over.
    pub(super) after: ChaosStatus,
    /// From [`SPAN`] before to [`SPAN`] after it.
    pub(super) paths: Vec<Path>,
    /// When the last datagram was sent that is in `paths`.
    pub(super) until: u64,
    /// When the last one might be hit.
    pub(super) deadline: u64,
}

impl<'a> Bench<'a> {
    pub(super) fn new(lab: &'a Lab<'a>) -> Self {
        Self {
            lab,
            first_hits: RefCell::default(),
        }
    }

    /// Applies an experiment of this duration, and waits until it is over.
    pub(super) fn watch(&self, document: &str, lasts: Duration) -> Result<Seen> {
        std::thread::sleep(SPAN);
        let applied = self.lab.apply(document)?;
        let during = self.injected(&applied.name)?;
        let deadline = self.lab.deadline(&applied.name, lasts)?;
        let after = self
            .lab
            .wait_for_phase(&applied.name, "Finished", PATIENCE)?;
        let until = clock::now() + nanos(SPAN);
        sleep_until(until);
        let since = applied.asked - nanos(SPAN);
        let paths = self.lab.settled_paths(since, until)?;
        Ok(Seen {
            applied,
            during,
            after,
            paths,
            until,
            deadline,
        })
    }

    /// The status of an experiment once all its records are injected.
    pub(super) fn injected(&self, name: &str) -> Result<ChaosStatus> {
        self.lab.wait_for(name, "AllInjected", PATIENCE, |status| {
            crate::lab::chaos::condition(status, "AllInjected") == Some(true)
        })
    }

    /// Deletes whatever a test has left.
    pub(super) fn sweep(&self) -> Result<()> {
        let words = ["delete", "networkchaos", "--all", "--timeout=30s"];
        step::output(&mut self.lab.kubectl(words)).map(drop)
    }

    /// Fails if an agent still has something of the experiments here.
    pub(super) fn nothing_is_left(&self) -> Result<()> {
        let held = self.lab.held()?;
        ensure!(held.is_empty(), "agents still hold {held:?}");
        Ok(())
    }

    /// Notes how long the first hit took.
    pub(super) fn first_hit(&self, applied: &Applied, first: u64) -> f64 {
        let late = (first.cast_signed() - applied.returned.cast_signed()) as f64 / 1e6;
        self.first_hits.borrow_mut().push(late);
        late
    }

    /// For the record.
    pub(super) fn tell_first_hits(&self) {
        let mut times = self.first_hits.borrow().clone();
        times.sort_by(f64::total_cmp);
        if let (Some(least), Some(middle), Some(most)) =
            (times.first(), times.get(times.len() / 2), times.last())
        {
            note!(
                "from `kubectl apply` returning to the first packet hit: p50 {middle:.0} ms ({least:.0} to \
                 {most:.0} ms, {} faults, clocks ± {:.1} ms)",
                times.len(),
                self.lab.clock_uncertainty().as_secs_f64() * 1000.0
            );
        }
    }
}

impl Seen {
    /// Paths from one pod to another, over each address.
    pub(super) fn between(&self, from: &str, to: &str) -> Vec<&Path> {
        self.paths
            .iter()
            .filter(|path| path.from == from && path.to == to)
            .collect()
    }

    /// First and last datagram from one pod to another that show the sign: on every address family
    /// of the path alike.
    pub(super) fn hits(&self, from: &str, to: &str, sign: Sign) -> Result<(u64, u64)> {
        let paths = self.between(from, to);
        ensure!(!paths.is_empty(), "{from} does not probe {to}");
        let span = self.applied.asked..self.until;
        for path in &paths {
            let family = if path.ipv6 { "IPv6" } else { "IPv4" };
            first_and_last([*path], &span, sign)
                .with_context(|| format!("{from} → {to} over {family}: no datagram was hit"))?;
        }
        first_and_last(paths, &span, sign).context("no datagram was hit")
    }

    /// Fails unless every datagram on the path in the span shows the sign.
    pub(super) fn all_hit(&self, from: &str, to: &str, span: &Span, sign: Sign) -> Result<()> {
        for path in self.between(from, to) {
            let missed: Vec<_> = path.within(span).filter(|one| !sign.is_on(one)).collect();
            ensure!(
                missed.is_empty(),
                "{from} → {to} (IPv6: {}): not hit: {missed:?}",
                path.ipv6
            );
        }
        Ok(())
    }

    /// Fails if anything was lost, refused or slow on the path, from before the fault until after.
    pub(super) fn is_untouched(&self, from: &str, to: &str) -> Result<()> {
        self.is_well(from, to, &(0..self.until))
    }

    /// The same for a span.
    pub(super) fn is_well(&self, from: &str, to: &str, span: &Span) -> Result<()> {
        for path in self.between(from, to) {
            let stats = Stats::over([path], span);
            let median = stats.median_ms.unwrap_or_default();
            ensure!(
                stats.loss() == 0.0 && median < USUAL_MS && stats.answered > 0,
                "{from} → {to} (IPv6: {}): {stats:?}",
                path.ipv6
            );
        }
        Ok(())
    }

    /// Fails if the last datagram was hit later or much earlier than the deadline.
    pub(super) fn ended_in_time(&self, last: u64) -> Result<()> {
        ended_in_time(last, self.deadline)
    }
}

/// Fails if the last datagram was hit later or much earlier than the deadline.
pub(super) fn ended_in_time(last: u64, deadline: u64) -> Result<()> {
    let late = (last.cast_signed() - deadline.cast_signed()) as f64 / 1e6;
    note!("the last packet was hit {late:+.0} ms from the deadline");
    ensure!(
        last <= deadline + nanos(LATE) && last + nanos(EARLY) >= deadline,
        "the last packet was hit {late:+.0} ms from the deadline"
    );
    Ok(())
}

/// A NetworkChaos from `from` to `to`, each a pod by its name; `rest` is the rest of its spec, in
/// YAML, indented by two.
pub(super) fn document(name: &str, from: &str, to: &str, rest: &str) -> String {
    format!(
        "apiVersion: chaos-mesh.org/v1alpha1
kind: NetworkChaos
metadata:
  name: {name}
spec:
  mode: all
  selector:
    pods: {{{NAMESPACE}: [{from}]}}
  target:
    mode: all
    selector:
      pods: {{{NAMESPACE}: [{to}]}}
{rest}"
    )
}

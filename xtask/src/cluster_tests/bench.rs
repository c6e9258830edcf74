//! What the tests work with: pods, short experiments, and how what the pods saw is judged.
//!
//! The machine may be busy with anything. So what is not itself about time is judged by counters and
//! by which datagrams were sent while a rule was in force: the kernel says from when until when, by the
//! clock that the probes on that node read, too. A wrong result cannot be had by being slow then.

use std::{cell::RefCell, time::Duration};

use anyhow::{Context, Result, ensure};
use chaos_api::v1alpha1::ChaosStatus;

use crate::{
    cluster::Cluster,
    lab::{
        Lab, Wanted,
        chaos::{Applied, Counted, PATIENCE},
        clock,
        kernel::Done,
        nanos,
        samples::{Path, Sign, Span, Stats},
    },
    out::note,
    step,
};

pub(super) const NAMESPACE: &str = "cluster-tests";

/// `a` and `b` are what experiments are about; nothing is ever asked of `c`. `d` is on the other node, if
/// there is one.
const PODS: [Wanted<'_>; 4] = [
    Wanted::new("a", &[("app", PEER)]).on(NODE),
    Wanted::new("b", &[("app", PEER)]).on(NODE),
    Wanted::new("c", &[("app", BYSTANDER)]).on(NODE),
    Wanted::new("d", &[("app", FAR)]).on("node2"),
];

/// Their labels `app`.
const PEER: &str = "peer";
const BYSTANDER: &str = "bystander";
const FAR: &str = "far";

/// Where all but one pod are: rules of one node, and probes on it, are compared by one clock.
pub(super) const NODE: &str = "node1";

/// Those that a cluster can have.
pub(super) fn pods(cluster: &Cluster) -> &'static [Wanted<'static>] {
    let near = &PODS[..PODS.len() - 1];
    if cluster.nodes().len() > 1 {
        &PODS
    } else {
        near
    }
}

/// Before and after a fault.
pub(super) const SPAN: Duration = Duration::from_secs(2);

/// Between the moment that a probe writes down and the kernel's look at the datagram; an emulated
/// machine can stand still in between.
pub(super) const EDGE: Duration = Duration::from_millis(300);

/// By how much moments of one node may be off against each other.
pub(super) const GRAIN: Duration = Duration::from_millis(1);

/// A deadline in the kernel may be so much before and after the object's: the clocks of the API server
/// and of the node differ by milliseconds, and a busy machine brings messages late.
const EARLY: Duration = Duration::from_millis(500);
const LATE: Duration = Duration::from_millis(1500);

/// The laboratory, and what is remembered from test to test.
pub(super) struct Bench<'a> {
    pub(super) lab: &'a Lab<'a>,
    /// Of the repository.
    pub(super) root: &'a std::path::Path,
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
    /// When its time is over by the object; the operator may end it then, before the kernel does.
    due: u64,
    /// What its rules did in the kernel.
    pub(super) rules: Vec<Done>,
    /// The same in all, by the agents' metrics.
    pub(super) counted: Counted,
}

impl<'a> Bench<'a> {
    pub(super) fn new(lab: &'a Lab<'a>, root: &'a std::path::Path) -> Self {
        Self {
            lab,
            root,
            first_hits: RefCell::default(),
        }
    }

    /// Gives the devices of the pods their clsact, where the kernel has no tcx. Adding it stops a device for
    /// a moment, and what the pod sends in that moment is lost: a known fault (ARCHITECTURE.md), which would
    /// be taken for one of the experiments here. An experiment that only counts adds it, too; it stays.
    ///
    /// # Errors
    /// If the experiment cannot be run.
    pub(super) fn prepare_devices(&self) -> Result<()> {
        let counts = "  action: loss\n  loss: {loss: \"1\"}\n  faultline: {mode: Observe}\n  direction: both\n";
        self.lab.apply(&document("devices", "a", "b", counts))?;
        self.injected("devices")?;
        self.sweep()
    }

    /// Applies an experiment of this duration, and waits until it is over.
    pub(super) fn watch(&self, document: &str, name: &str, lasts: Duration) -> Result<Seen> {
        let before = self.lab.counted(name)?;
        std::thread::sleep(SPAN);
        let applied = self.lab.apply(document)?;
        let during = self.injected(name)?;
        let armed = self.lab.armed()?;
        ensure!(!armed.is_empty(), "injected, and no rule is armed");
        let due = self.lab.deadline(name, lasts)?;
        for rule in &armed {
            deadline_is_asked(rule.deadline, due)?;
        }
        let after = self.lab.wait_for_phase(name, "Finished", PATIENCE)?;
        let until = clock::now() + nanos(SPAN);
        let rules = self.lab.done(&armed)?;
        let counted = self.lab.counted(name)?.since(before);
        let since = applied.asked - nanos(SPAN);
        let seen = Seen {
            paths: self.lab.settled_paths(since, until)?,
            applied,
            during,
            after,
            until,
            due,
            rules,
            counted,
        };
        seen.kernel_is_consistent()?;
        self.first_hit(&seen);
        Ok(seen)
    }

    /// The status of an experiment once all its records are injected.
    pub(super) fn injected(&self, name: &str) -> Result<ChaosStatus> {
        self.lab.wait_for(name, "AllInjected", PATIENCE, |status| {
            crate::lab::chaos::condition(status, "AllInjected") == Some(true)
        })
    }

    /// Deletes whatever a test has left, and waits until it is gone: experiments, and pods that are not
    /// those of all tests. The next test has the node for itself.
    pub(super) fn sweep(&self) -> Result<()> {
        let words = ["delete", "networkchaos,timechaos", "--all", "--timeout=60s"];
        step::output(&mut self.lab.kubectl(words))?;
        let others = format!("--selector=app notin ({PEER},{BYSTANDER},{FAR})");
        let words = ["delete", "pods", &others, "--timeout=120s"];
        step::output(&mut self.lab.kubectl(words)).map(drop)
    }

    /// Fails if an agent still has something of the experiments here.
    pub(super) fn nothing_is_left(&self) -> Result<()> {
        let held = self.lab.held()?;
        ensure!(held.is_empty(), "agents still hold {held:?}");
        Ok(())
    }

    fn first_hit(&self, seen: &Seen) {
        let late = seen.first().cast_signed() - seen.applied.returned.cast_signed();
        self.first_hits.borrow_mut().push(late as f64 / 1e6);
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

    fn acted(&self) -> impl Iterator<Item = (u64, u64)> {
        self.rules.iter().filter_map(|rule| rule.acted)
    }

    /// When the first packet was hit.
    pub(super) fn first(&self) -> u64 {
        self.acted().map(|(first, _)| first).min().unwrap_or(0)
    }

    /// When each of its rules that ever acts had done so once.
    pub(super) fn in_force(&self) -> u64 {
        self.acted().map(|(first, _)| first).max().unwrap_or(0)
    }

    /// The first and the last moment at which it may end.
    pub(super) fn ends(&self) -> (u64, u64) {
        let all = || self.rules.iter().map(|rule| rule.deadline);
        let last = all().max().unwrap_or(self.due);
        (all().min().unwrap_or(last).min(self.due), last)
    }

    /// While a datagram that is sent must be hit; `short` is what is left of the end beside the edge.
    pub(super) fn inner(&self, short: Duration) -> Span {
        self.in_force()..self.ends().0 - nanos(short + EDGE)
    }

    /// While datagrams may be hit.
    pub(super) fn may_be_hit(&self) -> Span {
        self.first() - nanos(EDGE)..self.ends().1 + nanos(GRAIN)
    }

    /// What was sent in both directions between two pods.
    pub(super) fn both_ways(&self, one: &str, other: &str) -> Vec<&Path> {
        [self.between(one, other), self.between(other, one)].concat()
    }

    /// No rule has done anything after its deadline, and the metrics say what the maps say.
    fn kernel_is_consistent(&self) -> Result<()> {
        for rule in &self.rules {
            let Some((first, last)) = rule.acted else {
                note!("nothing was left to a rule");
                continue;
            };
            let left = (rule.deadline.cast_signed() - last.cast_signed()) as f64 / 1e6;
            note!(
                "{} of {} packets hit in {:.2} s, the last one {left:.1} ms before the deadline",
                rule.hits,
                rule.matched,
                Duration::from_nanos(last - first).as_secs_f64()
            );
            ensure!(
                last <= rule.deadline + nanos(GRAIN),
                "a packet was hit after the deadline: {rule:?}"
            );
        }
        ensure!(self.first() > 0, "no packet was hit");
        let sum = Counted {
            matched: self.rules.iter().map(|rule| rule.matched).sum(),
            hits: self.rules.iter().map(|rule| rule.hits).sum(),
        };
        ensure!(
            sum == self.counted,
            "the maps say {sum:?}, the metrics {:?}",
            self.counted
        );
        Ok(())
    }

    /// Fails unless there are datagrams on the path in the span, over each address family, and every
    /// one shows the sign.
    pub(super) fn all_hit(&self, from: &str, to: &str, span: &Span, sign: Sign) -> Result<()> {
        let paths = self.between(from, to);
        ensure!(!paths.is_empty(), "{from} does not probe {to}");
        for path in paths {
            let (hit, missed): (Vec<_>, Vec<_>) =
                path.within(span).partition(|one| sign.is_on(one));
            ensure!(
                missed.is_empty() && hit.len() > 10,
                "{from} → {to} (IPv6: {}): {} hit, not hit: {missed:?}",
                path.ipv6,
                hit.len()
            );
        }
        Ok(())
    }

    /// Fails if any datagram on the path outside of the span shows the sign.
    pub(super) fn none_hit_outside(
        &self,
        from: &str,
        to: &str,
        span: &Span,
        sign: Sign,
    ) -> Result<()> {
        let samples = self.between(from, to).into_iter();
        let outside = samples
            .flat_map(|path| &path.samples)
            .filter(|sample| !span.contains(&sample.sent));
        let hit: Vec<_> = outside.filter(|sample| sign.is_on(sample)).collect();
        ensure!(
            hit.is_empty(),
            "{from} → {to}: hit outside {span:?}: {hit:?}"
        );
        Ok(())
    }

    /// Fails if anything was lost or refused on the path, from before the fault until after.
    pub(super) fn is_untouched(&self, from: &str, to: &str) -> Result<()> {
        self.is_well(from, to, &(0..self.until))
    }

    /// The same for a span.
    pub(super) fn is_well(&self, from: &str, to: &str, span: &Span) -> Result<()> {
        for path in self.between(from, to) {
            let stats = Stats::over([path], span);
            ensure!(
                stats.answered == stats.sent && stats.sent > 10,
                "{from} → {to} (IPv6: {}): {stats:?}",
                path.ipv6
            );
        }
        Ok(())
    }

    /// The medians of all paths from one pod to another in a span, in milliseconds.
    pub(super) fn medians(&self, from: &str, to: &str, span: &Span) -> Result<Vec<f64>> {
        let median = |path: &Path| {
            Stats::over([path], span)
                .median_ms
                .with_context(|| format!("{from} → {to}: nothing was answered"))
        };
        self.between(from, to).into_iter().map(median).collect()
    }
}

/// Fails if a deadline in the kernel is not the one that the object asks for.
pub(super) fn deadline_is_asked(deadline: u64, asked: u64) -> Result<()> {
    let late = (deadline.cast_signed() - asked.cast_signed()) as f64 / 1e6;
    note!("the kernel's deadline is {late:+.0} ms from the object's");
    ensure!(
        deadline + nanos(EARLY) >= asked && deadline <= asked + nanos(LATE),
        "the kernel's deadline is {late:+.0} ms from the object's"
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

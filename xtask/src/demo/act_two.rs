//! Act two: faults in a cluster, asked for with `kubectl`.

mod legacy;

use std::{
    collections::BTreeMap,
    path::Path as FilePath,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use chaos_api::v1alpha1::ChaosStatus;

use super::{
    report::{Fault, Figures, Hint, Kernel, Report, Spans, Typo},
    timed,
};
use crate::{
    cluster::{self, Cluster},
    lab::{
        Lab, Wanted,
        chaos::{self, Applied, Counted, PATIENCE},
        clock, nanos,
        samples::{Path, Sign, first_and_last},
        sleep_until,
    },
    out::{note, say},
    step,
};

const NAMESPACE: &str = "chaos-testing";

const TIKV: (&str, &str) = ("app.kubernetes.io/component", "tikv");
const CLIENT: (&str, &str) = ("app.kubernetes.io/component", "client");

/// Three that the experiments select, and one that they do not.
const PODS: [Wanted<'_>; 4] = [
    Wanted::new("tikv-0", &[TIKV]),
    Wanted::new("tikv-1", &[TIKV]),
    Wanted::new("tikv-2", &[TIKV]),
    Wanted::new("client", &[CLIENT]),
];

const DELAY: &str = include_str!("documents/delay.yaml");
const LOSS: &str = include_str!("documents/loss.yaml");
const TYPO: &str = include_str!("documents/typo.yaml");

/// What `loss.yaml` asks for.
const LOSS_PERCENT: u32 = 30;

/// Each of the spans before and after a fault.
const SPAN: Duration = Duration::from_secs(2);

/// Round trips of this many microseconds are those that the delay was done to.
const SLOW_US: u64 = 95_000;

/// Some of the paths.
type Choice = fn(&Path) -> bool;

/// A fault to watch.
struct Case {
    title: &'static str,
    asked: &'static str,
    document: &'static str,
    sign: Sign,
    /// The paths that must be hit.
    is_asked: Choice,
    /// Rows of the table.
    groups: &'static [(&'static str, Choice)],
}

const CASES: [Case; 2] = [
    Case {
        title: "100 ms of delay on what three pods send",
        asked: "action delay, latency 100ms, mode all, duration 6s",
        document: DELAY,
        sign: Sign::SlowerThan(SLOW_US),
        is_asked: |path| is_tikv(&path.from) || is_tikv(&path.to),
        groups: &[
            ("tikv → tikv (delayed there and back)", |path| {
                is_tikv(&path.from) && is_tikv(&path.to)
            }),
            ("tikv → client (delayed there)", |path| {
                path.to == "client"
            }),
            ("client → tikv (delayed back)", |path| {
                path.from == "client"
            }),
        ],
    },
    Case {
        title: "30 % loss on what tikv-0 sends to the others of its kind",
        asked: "action loss, loss 30, direction to, target all tikv, seed 20261121, duration 6s",
        document: LOSS,
        sign: Sign::Lost,
        is_asked: |path| of_tikv_0(path) && path.to != "client" && path.from != "client",
        groups: &[
            ("tikv-0 → tikv (lost there)", |path| {
                path.from == "tikv-0" && is_tikv(&path.to)
            }),
            ("tikv → tikv-0 (lost back)", |path| {
                path.to == "tikv-0" && is_tikv(&path.from)
            }),
            ("all other paths", |path| {
                !of_tikv_0(path) || path.to == "client" || path.from == "client"
            }),
        ],
    },
];

fn is_tikv(name: &str) -> bool {
    name.starts_with("tikv")
}

fn of_tikv_0(path: &Path) -> bool {
    path.from == "tikv-0" || path.to == "tikv-0"
}

/// A cluster with operator and agents, and pods that are about to run.
pub(super) struct Prepared {
    pub(super) cluster: Cluster,
    /// What that took.
    pub(super) seconds: f64,
}

/// Starts what is missing of it.
///
/// # Errors
/// If a binary does not build, or the cluster does not start.
pub(super) fn prepare(root: &FilePath) -> Result<Prepared> {
    let started = Instant::now();
    let (cluster, _) = cluster::with_faultline(root, &cluster::Options::default(), |cluster| {
        Lab::order(cluster, NAMESPACE, &PODS)
    })?;
    Ok(Prepared {
        cluster,
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// Shows the faults one after the other.
///
/// # Errors
/// If a pod does not start, or a fault does not come, bite and go.
pub(super) fn run(root: &FilePath, cluster: &Cluster, report: &mut Report) -> Result<()> {
    let lab = timed(report, "  pods", |_| {
        Lab::start(cluster, NAMESPACE, &PODS, false)
    })?;
    note!(
        "the clocks of node and host differ by a known time, ± {:.1} ms",
        lab.clock_uncertainty().as_secs_f64() * 1000.0
    );
    // Of an earlier run that was interrupted.
    let words = ["delete", "networkchaos", "--all", "--timeout=30s"];
    step::output(&mut lab.kubectl(words))?;

    let mut quiet_since = clock::now();
    for case in &CASES {
        let (fault, over) = timed(report, &format!("  {}", name_of(case.document)), |_| {
            step::step(case.title, |step| watch(&lab, case, quiet_since, step))
        })?;
        // After the one is before the next.
        quiet_since = over;
        say!("{}", fault.render());
        report.cluster.push(fault);
    }
    let rounds = timed(report, "  legacy, three rounds", |_| {
        step::step(
            "a document for Chaos Mesh 1.x, three rounds of it",
            |step| legacy::watch(&lab, step),
        )
    })?;
    for fault in &rounds {
        say!("{}", fault.render());
    }
    report.cluster.extend(rounds);

    let typo = Typo {
        document: TYPO.to_owned(),
        answer: lab.refused(TYPO)?,
    };
    report.by_hand = hints(root, cluster);
    say!("\n── go on by hand\n");
    for hint in &report.by_hand {
        say!("   # {}\n   {}", hint.what, hint.command);
    }
    say!(
        "\n   The document with a typo gets this answer:\n   {}\n",
        typo.answer
    );
    report.typo = Some(typo);
    Ok(())
}

/// Removes its pods.
///
/// # Errors
/// If the API server refuses.
pub(super) fn clear(cluster: &Cluster) -> Result<()> {
    let words = ["delete", "namespace", NAMESPACE, "--timeout=120s"];
    step::output(cluster.kubectl().args(words)).map(drop)
}

/// Applies the document of a case and follows it to its end; also says when it was over.
fn watch(lab: &Lab<'_>, case: &Case, quiet_since: u64, step: &step::Step) -> Result<(Fault, u64)> {
    step.progress("before");
    sleep_until(quiet_since + nanos(SPAN));
    let before = lab.counted(name_of(case.document))?;
    let applied = lab.apply(case.document)?;
    let name = &applied.name;
    step.progress("during: kubectl wait --for=condition=AllInjected");
    let kind = format!("networkchaos/{name}");
    let words = [
        "wait",
        "--for=condition=AllInjected",
        "--timeout=30s",
        &kind,
    ];
    step::output(&mut lab.kubectl(words))?;
    let during = lab.wait_for(name, "a hit", PATIENCE, |status| {
        chaos::ours(status).hits.unwrap_or_default() > 0
            || chaos::condition(status, "AllInjected") == Some(false)
    })?;
    // Of the rules in the kernel: the clocks of the API server, which dates objects, and of a node differ.
    let deadlines = lab.armed()?.into_iter().map(|rule| rule.deadline);
    let deadline = deadlines.max().context("no rule is armed")?;
    let listed = step::output(&mut lab.kubectl(["get", "networkchaos", name]))?;
    step.progress("until its duration is over");
    let after = lab.wait_for_phase(name, "Finished", PATIENCE)?;
    let over = clock::now();
    let until = over + nanos(SPAN);
    let verdict = lab.verdict(name, &after)?;
    let counted = lab.counted(name)?.since(before);
    step.progress("after");
    let paths = lab.settled_paths(quiet_since, until)?;
    lab.delete(name)?;

    let is_asked = |path: &&Path| (case.is_asked)(path);
    let asked = applied.asked..until;
    let hits = first_and_last(paths.iter().filter(is_asked), &asked, case.sign)
        .with_context(|| format!("{name}: no peer has seen it"))?;
    let spans = Spans::around(quiet_since, applied.asked, hits, until);
    let groups = case.groups.iter().map(|(who, is_in)| {
        let rows = paths.iter().filter(move |path| is_in(path));
        Figures::of(who, rows, &spans)
    });
    let mut fault = Fault {
        title: case.title.to_owned(),
        asked: case.asked.to_owned(),
        document: case.document.to_owned(),
        paths: groups.collect(),
        kernel: kernel(counted),
        mechanisms: mechanisms(&during),
        conditions: [conditions(&during), conditions(&after)],
        remarks: listed.lines().map(|line| format!("$ {line}")).collect(),
        verdict,
        ..Fault::default()
    };
    when(&mut fault, &applied, hits);
    fault.after_deadline_ms = Some((hits.1.cast_signed() - deadline.cast_signed()) as f64 / 1e6);
    match case.sign {
        Sign::SlowerThan(_) => fault.remarks.insert(0, added(&fault.paths)),
        Sign::Lost => {
            // Only tikv-0 sends what is asked for: one rule, which draws from the seed's start.
            let seed = chaos::seed_of(case.document).unwrap_or_default();
            let model = chaos::lost_by_model(seed, LOSS_PERCENT, counted.matched);
            fault.kernel.hits_by_model = Some(model);
            let lost = paths
                .iter()
                .filter(is_asked)
                .flat_map(|path| path.within(&asked));
            let lost = lost.filter(|sample| case.sign.is_on(sample)).count();
            fault.kernel.hits_by_peers = Some(lost as u64);
        }
        Sign::Refused => {}
    }
    Ok((fault, over))
}

fn when(fault: &mut Fault, applied: &Applied, (first, last): (u64, u64)) {
    let from_return = first.cast_signed() - applied.returned.cast_signed();
    fault.first_hit_ms = Some(from_return as f64 / 1e6);
    fault.lasted_s = Some((last - first) as f64 / 1e9);
}

/// By how much the medians rose.
fn added(rows: &[Figures]) -> String {
    let differences = rows.iter().filter_map(|row| {
        let added = row.during.median_ms? - row.before.median_ms?;
        Some(format!("{added:+.1} ms"))
    });
    format!(
        "medians rose by {}",
        differences.collect::<Vec<_>>().join(", ")
    )
}

fn kernel(Counted { matched, hits }: Counted) -> Kernel {
    Kernel {
        matched,
        hits,
        ..Kernel::default()
    }
}

fn mechanisms(status: &ChaosStatus) -> Vec<String> {
    let ours = chaos::ours(status);
    let by_record = ours.records.iter().flat_map(|record| &record.mechanisms);
    let mut names: Vec<String> = ours.mechanisms.iter().chain(by_record).cloned().collect();
    names.sort();
    names.dedup();
    names
}

fn conditions(status: &ChaosStatus) -> BTreeMap<String, bool> {
    let conditions = status.conditions.iter();
    conditions
        .map(|one| (one.r#type.clone(), one.status == "True"))
        .collect()
}

fn name_of(document: &str) -> &str {
    document
        .lines()
        .find_map(|line| line.trim().strip_prefix("name: "))
        .unwrap_or_default()
}

/// What to type next.
fn hints(root: &FilePath, cluster: &Cluster) -> Vec<Hint> {
    let documents = "xtask/src/demo/documents";
    let hint = |what: &str, command: String| Hint {
        what: what.to_owned(),
        command,
    };
    vec![
        hint(
            "this cluster, and its kubectl",
            format!(
                "cd {}; export KUBECONFIG={} PATH={}:$PATH",
                root.display(),
                cluster.kubeconfig().display(),
                cluster.bin().display()
            ),
        ),
        hint(
            "100 ms of delay for two minutes",
            format!("kubectl apply -f {documents}/by-hand.yaml"),
        ),
        hint(
            "until it is proven to be in the kernel",
            "kubectl -n chaos-testing wait --for=condition=AllInjected networkchaos/by-hand".into(),
        ),
        hint(
            "action, phase, injected records, hits, time left",
            "kubectl -n chaos-testing get networkchaos".into(),
        ),
        hint(
            "what became of it, event by event",
            "kubectl -n chaos-testing describe networkchaos by-hand".into(),
        ),
        hint(
            "a document with a typo",
            format!("kubectl apply -f {documents}/typo.yaml"),
        ),
        hint(
            "off, now",
            "kubectl -n chaos-testing delete networkchaos by-hand".into(),
        ),
        hint("end the cluster", "cargo xtask down".into()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::samples::{Fate, tests::path};

    #[test]
    fn every_path_of_the_loss_is_in_one_row_of_its_table() {
        let [_, loss] = &CASES;
        for from in PODS.map(|pod| pod.name) {
            for to in PODS
                .map(|pod| pod.name)
                .into_iter()
                .filter(|to| *to != from)
            {
                let path = path(from, to, [Fate::Lost]);
                let rows = loss.groups.iter().filter(|(_, is_in)| is_in(&path)).count();
                assert_eq!(rows, 1, "{from} → {to}");
            }
        }
    }

    #[test]
    fn the_documents_ask_for_what_is_told() {
        assert_eq!(chaos::seed_of(LOSS), Some(20_261_121));
        assert!(LOSS.contains(&format!("loss: \"{LOSS_PERCENT}\"")));
        assert_eq!((name_of(DELAY), name_of(LOSS)), ("delay", "loss"));
        assert!(TYPO.contains("latenzy"));
    }
}

//! Act one: a machine without Kubernetes. The fault and its two processes are in
//! `tests/vm/src/demo.rs`; here the machine is booted, and its record becomes figures.

use std::path::Path as FilePath;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use vm_tests::report::exhibit::{Datagram, Exhibit};

use super::report::{Fault, Figures, Kernel, Spans};
use crate::{
    lab::samples::{Fate, MS, Path, Sample, Sign, first_and_last},
    setup::kernels::Series,
    vmtest::{self, Binaries},
};

/// What the machine runs.
pub(super) const KERNEL: Series = Series::V6_12;

/// Half of what is asked: no round trip takes that long by itself, and each that is hit does.
const SLOW_US: u64 = 50_000;

/// A line of `chaos-agent apply --json`, as far as it is read here.
#[derive(Debug, Deserialize)]
#[serde(tag = "event", rename_all = "camelCase")]
enum Line {
    Armed {
        faults: Vec<Row>,
    },
    Recovered {
        why: String,
        verified: bool,
        left: Vec<String>,
        faults: Vec<Row>,
    },
    #[serde(other)]
    Other,
}

#[derive(Debug, Deserialize)]
struct Row {
    mechanisms: Vec<String>,
    matched: u64,
    injected: u64,
}

/// Boots the machine and returns what became of its fault.
///
/// # Errors
/// If the machine does not boot, or the fault did not come and go.
pub(super) fn run(root: &FilePath, binaries: &Binaries) -> Result<Fault> {
    let options = vmtest::Options {
        only: Some("demo::".to_owned()),
        no_runtimes: true,
        ..vmtest::Options::default()
    };
    let run = vmtest::boot(root, KERNEL, binaries, &options)?;
    if let Some(failed) = run.results.iter().find(|result| !result.is_good()) {
        bail!("{}", failed.line());
    }
    let mut lines = run.told.iter().map(String::as_str);
    let exhibit = lines
        .find_map(Exhibit::parse)
        .with_context(|| format!("the machine told nothing: see {}", run.directory.display()))?;
    conclude(&exhibit)
}

fn conclude(exhibit: &Exhibit) -> Result<Fault> {
    let target = path("slowed", &exhibit.target);
    let bystander = path("spared", &exhibit.bystander);
    let all = 0..u64::MAX;
    let (first, last) = first_and_last([&target], &all, Sign::SlowerThan(SLOW_US))
        .context("no datagram of the target was delayed")?;
    let spans = Spans::around(0, exhibit.started_ns, (first, last), u64::MAX);
    let output = exhibit.output.join("\n");
    let lines: Vec<Line> = exhibit
        .output
        .iter()
        .map(|line| serde_json::from_str(line))
        .collect::<Result<_, _>>()
        .with_context(|| format!("failed to understand what apply printed:\n{output}"))?;
    let mut fault = Fault {
        title: format!(
            "a bare machine with Linux {}, no Kubernetes",
            exhibit.release
        ),
        asked: format!("`{}`: 100 ms for 5 s", exhibit.command),
        document: exhibit.document.clone(),
        paths: vec![
            Figures::of("the process in that cgroup", [&target].into_iter(), &spans),
            Figures::of(
                "its neighbour, same network",
                [&bystander].into_iter(),
                &spans,
            ),
        ],
        lasted_s: Some((last - first) as f64 / 1e9),
        ..Fault::default()
    };
    for line in lines {
        match line {
            Line::Armed { faults } => {
                fault.mechanisms = faults.into_iter().flat_map(|row| row.mechanisms).collect();
            }
            Line::Recovered {
                why,
                verified,
                left,
                faults,
            } => {
                fault.kernel = Kernel {
                    matched: faults.iter().map(|row| row.matched).sum(),
                    hits: faults.iter().map(|row| row.injected).sum(),
                    ..Kernel::default()
                };
                fault.verdict = if verified {
                    format!("{why}; recovered, kernel verified clean")
                } else {
                    format!("{why}; STILL IN THE KERNEL: {}", left.join(", "))
                };
            }
            Line::Other => {}
        }
    }
    Ok(fault)
}

fn path(name: &str, datagrams: &[Datagram]) -> Path {
    let samples = datagrams.iter().map(|datagram| Sample {
        sent: datagram.sent_ns,
        fate: datagram.answered_ns.map_or(Fate::Lost, |answered| {
            Fate::Answered(answered.saturating_sub(datagram.sent_ns) / (MS / 1000))
        }),
    });
    Path {
        from: name.to_owned(),
        to: "echo".to_owned(),
        ipv6: false,
        samples: samples.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn datagrams(slow: std::ops::Range<u64>) -> Vec<Datagram> {
        (0..200)
            .map(|index| {
                let sent_ns = index * 50 * MS;
                let rtt = if slow.contains(&index) { 101 } else { 1 };
                Datagram {
                    sent_ns,
                    answered_ns: Some(sent_ns + rtt * MS),
                }
            })
            .collect()
    }

    #[test]
    fn the_record_of_the_machine_becomes_figures() {
        let exhibit = Exhibit {
            release: "6.12.1".into(),
            document: "kind: NetworkChaos".into(),
            command: "chaos-agent apply -f delay.yaml --cgroup /x".into(),
            output: vec![
                r#"{"event":"armed","faults":[{"mechanisms":["tc_egress"],"matched":0,"injected":0}]}"#.into(),
                r#"{"event":"progress","faults":[]}"#.into(),
                r#"{"event":"recovered","why":"ended at its deadline","verified":true,"left":[],
                    "faults":[{"mechanisms":["tc_egress"],"matched":100,"injected":100}]}"#.into(),
            ],
            started_ns: 40 * 50 * MS,
            ended_ns: 145 * 50 * MS,
            target: datagrams(42..142),
            bystander: datagrams(0..0),
        };
        let fault = conclude(&exhibit).unwrap();
        assert_eq!(fault.mechanisms, ["tc_egress"]);
        assert_eq!((fault.kernel.matched, fault.kernel.hits), (100, 100));
        assert_eq!(fault.lasted_s, Some(4.95));
        let medians = fault.paths.iter().map(|row| row.during.median_ms);
        assert_eq!(medians.collect::<Vec<_>>(), [Some(101.0), Some(1.0)]);
        assert!(fault.verdict.ends_with("recovered, kernel verified clean"));
    }

    #[test]
    fn a_machine_in_which_nothing_was_delayed_is_an_error() {
        let exhibit = Exhibit {
            release: String::new(),
            document: String::new(),
            command: String::new(),
            output: Vec::new(),
            started_ns: 1,
            ended_ns: 2,
            target: datagrams(0..0),
            bystander: datagrams(0..0),
        };
        assert!(conclude(&exhibit).is_err());
    }
}

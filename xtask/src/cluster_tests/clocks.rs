//! Clocks of containers that are off: what a program that runs already sees, and what `kubectl exec` does.

use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::{
    bench::{Bench, NAMESPACE, NODE},
    tests,
};
use crate::{
    lab::{Wanted, chaos::PATIENCE, clock, must},
    out::note,
    step::{self, eventually},
};

tests![a_container_sees_another_time_in_all_its_programs];

/// Seconds by which the clock is ahead.
const HOUR: i64 = 3_600;

/// Seconds that a question may take, and by which the node's clock may be off.
const SLACK: i64 = 60;

/// The pod whose clock it is.
const POD: &str = "clock";

fn a_container_sees_another_time_in_all_its_programs(bench: &Bench<'_>) -> Result<()> {
    let labels = [("app", POD)];
    let tells = ["clock", "--every-ms", "200"];
    bench
        .lab
        .create(&[Wanted::new(POD, &labels).on(NODE).doing(&tells)])?;
    kubectl(
        bench,
        &[
            "wait",
            "--for=condition=Ready",
            "--timeout=180s",
            "pod/clock",
        ],
    )?;
    all_are_ahead(bench, 0).context("before")?;

    let document = format!(
        "apiVersion: chaos-mesh.org/v1alpha1\nkind: TimeChaos\nmetadata: {{name: early}}\nspec:\n  \
         mode: all\n  selector:\n    namespaces: [{NAMESPACE}]\n    labelSelectors: {{app: {POD}}}\n  \
         containerNames: [probe]\n  timeOffset: 1h\n"
    );
    must(bench.lab.feed(["apply", "--filename", "-"], &document)?)?;
    let started = Instant::now();
    let injected = [
        "wait",
        "--for=condition=AllInjected",
        "--timeout=60s",
        "timechaos/early",
    ];
    kubectl(bench, &injected)?;
    all_are_ahead(bench, HOUR).context("during")?;
    note!("seen after {:.1} s", started.elapsed().as_secs_f64());
    let other = ahead(&kubectl(bench, &["exec", "b", "--", "/probe", "clock"])?)?;
    ensure!(other.abs() < SLACK, "another pod is {other} s ahead");
    eventually("hits in the status", PATIENCE, || {
        let hits = [
            "get",
            "timechaos",
            "early",
            "--output=jsonpath={.status.faultline.hits}",
        ];
        let hits = kubectl(bench, &hits)?;
        ensure!(hits.parse::<u64>().unwrap_or(0) > 0, "{hits:?}");
        Ok(())
    })?;

    kubectl(bench, &["delete", "timechaos", "early", "--timeout=60s"])?;
    all_are_ahead(bench, 0).context("afterwards")
}

/// Whether the program of the pod, which runs since its start, and one that is started now see a clock
/// that is so many seconds ahead.
fn all_are_ahead(bench: &Bench<'_>, expected: i64) -> Result<()> {
    let started = ahead(&kubectl(bench, &["exec", POD, "--", "/probe", "clock"])?)?;
    let close = |seconds: i64| (seconds - expected).abs() < SLACK;
    ensure!(
        close(started),
        "a program that is started is {started} s ahead"
    );
    // What the pod has printed takes its time.
    eventually("the program that runs", PATIENCE, || {
        let running = ahead(&kubectl(bench, &["logs", "--tail=1", POD])?)?;
        ensure!(close(running), "it is {running} s ahead");
        Ok(())
    })
}

/// Seconds by which the wall clock of a line of `probe clock` is ahead.
fn ahead(line: &str) -> Result<i64> {
    let [wall, _]: [i64; 2] =
        serde_json::from_str(line.trim()).with_context(|| format!("no time: {line:?}"))?;
    Ok((wall - clock::now().cast_signed()) / 1_000_000_000)
}

fn kubectl(bench: &Bench<'_>, words: &[&str]) -> Result<String> {
    step::output(&mut bench.lab.kubectl(words.iter().copied()))
}

//! What a run of a VM amounts to. Pure: from its events to results.

use std::{collections::HashSet, path::PathBuf, time::Duration};

use anyhow::{Result, bail};
use serde::Serialize;
use vm_tests::report::{Event, Outcome};

/// Lines of the console that a failure repeats.
const LINES_OF_CONSOLE: usize = 30;

/// The result of a run that ended before all tests had run.
pub(super) const CUT_SHORT: &str = "run::all_tests_run_to_the_end";

/// What the kernel says when QEMU has broken it.
const BROKEN_BY_QEMU: &str = "Oops: int3";

/// Opens what is said of a machine that was ended because it hung.
pub(super) const HANGS: &str = "the machine hangs";

/// A machine whose runner says nothing for so long after the limit of a test hangs: the runner should
/// have ended the test, and the clocks of a machine under load are late by seconds only.
const SILENCE: Duration = Duration::from_secs(30);

/// One boot of one kernel.
#[derive(Clone, Debug)]
pub(crate) struct KernelRun {
    /// `uname -r`
    pub(crate) release: String,
    /// From power-on to power-off.
    pub(crate) seconds: f64,
    /// In the order they ran.
    pub(crate) results: Vec<TestResult>,
    /// The test that the machine broke down in, by QEMU's fault as far as is known: neither that nor
    /// those after it have a result that counts.
    pub(crate) broken_in: Option<String>,
    /// What tests told the host beside their events, line by line; nothing of `broken_in`.
    pub(crate) told: Vec<String>,
    /// Where its console and its events are kept.
    pub(crate) directory: PathBuf,
}

/// How one test went.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct TestResult {
    /// Full name, or that of a stage of `cargo xtask test`.
    pub(crate) test: String,
    /// Name of the kernel; none for what runs on the host.
    pub(crate) kernel: Option<String>,
    /// How it ended.
    pub(crate) outcome: Outcome,
    /// How long it took.
    pub(crate) seconds: f64,
}

impl TestResult {
    /// True unless it failed.
    pub(crate) fn is_good(&self) -> bool {
        !matches!(self.outcome, Outcome::Failed(_))
    }

    /// For people.
    pub(crate) fn line(&self) -> String {
        let kernel = self
            .kernel
            .as_deref()
            .map(|k| format!(" on {k}"))
            .unwrap_or_default();
        let (word, why) = match &self.outcome {
            Outcome::Passed => ("ok     ", String::new()),
            Outcome::Failed(why) => ("FAILED ", format!(": {why}")),
            Outcome::Skipped(why) => ("skipped", format!(": {why}")),
        };
        format!("{word} {}{kernel} ({:.1} s){why}", self.test, self.seconds)
    }
}

/// How long the runner may be silent after these events; none while the machine boots and while it
/// powers off, which its time limit is for.
pub(super) fn patience(events: &[Event]) -> Option<Duration> {
    match events.last()? {
        Event::Started { limit_seconds, .. } => {
            Some(Duration::from_secs_f64(*limit_seconds) + SILENCE)
        }
        Event::Booted { .. } | Event::Finished { .. } | Event::Ended { .. } => None,
    }
}

/// The events up to the first test that may not be taken, which is the end of a run.
pub(super) fn until_taken(
    events: impl Iterator<Item = Event>,
    take: impl Fn(&str) -> bool,
) -> Vec<Event> {
    let mut ours = Vec::new();
    for event in events {
        if let Event::Started { test, .. } = &event
            && !take(test)
        {
            ours.push(Event::Ended { seconds: 0.0 });
            break;
        }
        ours.push(event);
    }
    ours
}

/// Makes results of events. A test that began and did not end took the machine down; a run that
/// did not end says so once more, since tests are missing.
///
/// # Errors
/// The runner did not start: nothing was tested.
pub(crate) fn conclude(
    kernel: &str,
    events: &[Event],
    error: Option<&str>,
    console: &str,
    seconds: f64,
    directory: PathBuf,
) -> Result<KernelRun> {
    let mut release = None;
    let mut asked = 0;
    let mut ended = false;
    let mut begun = Vec::new();
    let mut results = Vec::new();
    for event in events {
        match event {
            Event::Booted { release: r, tests } => {
                release = Some(r.clone());
                asked = *tests;
            }
            Event::Started { test, .. } => begun.push(test.clone()),
            Event::Finished {
                test,
                outcome,
                seconds,
            } => results.push(TestResult {
                test: test.clone(),
                kernel: Some(kernel.to_owned()),
                outcome: outcome.clone(),
                seconds: *seconds,
            }),
            Event::Ended { .. } => ended = true,
        }
    }
    let why = match error {
        // It has the end of the console already.
        Some(error) => error.to_owned(),
        None => format!("the machine went down; {}", tail(console)),
    };
    let Some(release) = release else {
        bail!("kernel {kernel}: no test has started: {why}");
    };
    let failed = |test: &str, why: String| TestResult {
        test: test.to_owned(),
        kernel: Some(kernel.to_owned()),
        outcome: Outcome::Failed(why),
        seconds: 0.0,
    };
    // The kernel patches its own code while another CPU runs it; under emulation that one may find
    // the breakpoint of the patch when nobody knows of it any more.
    let is_said = |words: &str| console.contains(words) || why.contains(words);
    let is_broken = !ended && (is_said(BROKEN_BY_QEMU) || is_said(HANGS));
    let finished: HashSet<_> = results.iter().map(|r| r.test.clone()).collect();
    let lost = begun.iter().filter(|t| !finished.contains(*t));
    let broken_in = lost.clone().next().filter(|_| is_broken).cloned();
    results.extend(lost.map(|test| failed(test, why.clone())));
    if !ended {
        let missing = asked.saturating_sub(begun.len());
        let why = format!("the machine ended before all tests had run: {missing} are missing");
        results.push(failed(CUT_SHORT, why));
    }
    Ok(KernelRun {
        release,
        seconds,
        results,
        broken_in,
        told: Vec::new(),
        directory,
    })
}

/// The lines of a report that are no events: of a machine that broke down, up to the start of the test
/// that it broke down in, which runs again.
pub(super) fn told(report: &str, broken_in: Option<&str>) -> Vec<String> {
    let mut told = Vec::new();
    for line in report.lines() {
        match Event::parse(line) {
            Some(Event::Started { test, .. }) if Some(test.as_str()) == broken_in => break,
            Some(_) => {}
            None => told.push(line.to_owned()),
        }
    }
    told
}

fn tail(console: &str) -> String {
    let lines: Vec<&str> = console.lines().collect();
    let end = lines
        .split_at(lines.len().saturating_sub(LINES_OF_CONSOLE))
        .1;
    format!("the end of its console:\n  {}", end.join("\n  "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn booted() -> Event {
        Event::Booted {
            release: "6.12.1".into(),
            tests: 2,
        }
    }

    fn started(test: &str) -> Event {
        Event::Started {
            test: test.into(),
            limit_seconds: 20.0,
        }
    }

    fn passed(test: &str) -> Event {
        Event::Finished {
            test: test.into(),
            outcome: Outcome::Passed,
            seconds: 1.0,
        }
    }

    fn judge(events: &[Event]) -> Result<KernelRun> {
        conclude("6.12", events, None, "Kernel panic\n", 3.0, PathBuf::new())
    }

    #[test]
    fn a_complete_run_has_the_results_of_its_tests() {
        let ended = Event::Ended { seconds: 3.0 };
        let run = judge(&[
            booted(),
            started("a"),
            passed("a"),
            started("b"),
            passed("b"),
            ended,
        ])
        .unwrap();
        assert_eq!(run.release, "6.12.1");
        assert!(run.results.len() == 2 && run.results.iter().all(TestResult::is_good));
    }

    #[test]
    fn a_test_that_qemu_broke_the_machine_in_is_known() {
        let conclude = |console: &str| {
            let events = [booted(), started("a"), passed("a"), started("b")];
            let run = conclude("6.12", &events, None, console, 3.0, PathBuf::new()).unwrap();
            run.broken_in
        };
        assert_eq!(conclude("Oops: int3: 0000 [#1]\n").as_deref(), Some("b"));
        assert_eq!(conclude("Kernel panic\n"), None);
    }

    #[test]
    fn what_a_test_told_counts_unless_the_machine_broke_down_in_it() {
        let lines = [
            booted().line(),
            started("a").line(),
            "of a".to_owned(),
            passed("a").line(),
            started("b").line(),
            "of b".to_owned(),
        ];
        let report = lines.join("\n");
        assert_eq!(told(&report, None), ["of a", "of b"]);
        assert_eq!(told(&report, Some("b")), ["of a"]);
    }

    #[test]
    fn a_machine_hangs_that_is_silent_long_after_the_limit_of_its_test() {
        assert_eq!(patience(&[]), None);
        assert_eq!(patience(&[booted()]), None);
        let at_a_test = [booted(), started("a")];
        assert_eq!(
            patience(&at_a_test),
            Some(Duration::from_secs(20) + SILENCE)
        );
        assert_eq!(patience(&[booted(), started("a"), passed("a")]), None);
        let why = format!("{HANGS}: not a word for 80 s");
        let run = conclude("6.1", &at_a_test, Some(&why), "", 90.0, PathBuf::new()).unwrap();
        assert_eq!(run.broken_in.as_deref(), Some("a"));
    }

    #[test]
    fn a_half_ends_where_it_meets_the_other() {
        let events = || [booted(), started("a"), passed("a"), started("b")].into_iter();
        let run = judge(&until_taken(events(), |test| test != "b")).unwrap();
        let ran: Vec<_> = run.results.iter().map(|result| &result.test).collect();
        assert_eq!(ran, ["a"]);
        // One that goes down by itself is not done.
        let alone = judge(&until_taken(events(), |_| true)).unwrap();
        assert_eq!(alone.results.len(), 3);
    }

    #[test]
    fn a_test_that_takes_the_machine_down_has_failed_and_so_has_the_run() {
        let run = judge(&[booted(), started("a")]).unwrap();
        let lines: Vec<_> = run.results.iter().map(TestResult::line).collect();
        assert_eq!(lines.len(), 2);
        assert!(
            lines[0].contains("FAILED  a") && lines[0].contains("Kernel panic"),
            "{lines:?}"
        );
        assert!(lines[1].contains("1 are missing"), "{lines:?}");
    }

    #[test]
    fn a_machine_that_runs_no_test_is_an_error() {
        assert!(judge(&[]).is_err());
    }
}

//! What the demo found out: the same for people (`render`) and as data (`--json`). Pure.

use std::{collections::BTreeMap, fmt::Write};

use serde::Serialize;

use crate::lab::samples::{Path, Span, Stats};

/// Everything.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Report {
    /// What was done to a bare machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) bare_machine: Option<Fault>,
    /// What was done in the cluster, in this order.
    pub(crate) cluster: Vec<Fault>,
    /// A document with a mistake, and the answer to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) typo: Option<Typo>,
    /// Commands to go on with.
    pub(crate) by_hand: Vec<Hint>,
    /// How long each part took, in seconds.
    pub(crate) seconds: Vec<(String, f64)>,
}

/// One fault, from asking for it to its end.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Fault {
    /// A line.
    pub(crate) title: String,
    /// What was asked, in words.
    pub(crate) asked: String,
    /// What was asked, word for word.
    pub(crate) document: String,
    /// What the peers saw.
    pub(crate) paths: Vec<Figures>,
    /// From the return of the command that asked to the sending of the first datagram that was hit,
    /// in milliseconds; below 0: the command had not returned yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) first_hit_ms: Option<f64>,
    /// From the first datagram that was hit to the last one, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) lasted_s: Option<f64>,
    /// From its deadline in the kernel to the sending of the last datagram that was hit, in
    /// milliseconds; below 0: it was sent before the deadline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) after_deadline_ms: Option<f64>,
    /// What the kernel counted.
    pub(crate) kernel: Kernel,
    /// What carried it out.
    pub(crate) mechanisms: Vec<String>,
    /// Conditions while it acted, and after it.
    pub(crate) conditions: [BTreeMap<String, bool>; 2],
    /// What is worth a line.
    pub(crate) remarks: Vec<String>,
    /// How it ended.
    pub(crate) verdict: String,
}

/// What the peers of some paths saw.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Figures {
    /// Which paths.
    pub(crate) who: String,
    /// Of datagrams sent before the fault was asked for.
    pub(crate) before: Stats,
    /// Of those sent from the first hit to the last.
    pub(crate) during: Stats,
    /// Of those sent after the last hit.
    pub(crate) after: Stats,
}

/// Counters of the kernel programs.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Kernel {
    /// Packets that the fault applied to.
    pub(crate) matched: u64,
    /// Packets that it was done to.
    pub(crate) hits: u64,
    /// How many it had to be, by the seed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hits_by_model: Option<u64>,
    /// How many the peers saw.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hits_by_peers: Option<u64>,
}

/// A document that is refused.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Typo {
    pub(crate) document: String,
    pub(crate) answer: String,
}

/// A command to type, and what for.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Hint {
    pub(crate) what: String,
    pub(crate) command: String,
}

/// The three spans that figures are taken over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Spans {
    pub(crate) before: Span,
    pub(crate) during: Span,
    pub(crate) after: Span,
}

impl Spans {
    /// Around the first and the last datagram that was hit.
    pub(crate) fn around(from: u64, asked: u64, (first, last): (u64, u64), until: u64) -> Self {
        Self {
            before: from..asked,
            during: first..last + 1,
            after: last + 1..until,
        }
    }
}

impl Figures {
    /// The figures of these paths.
    pub(crate) fn of<'a>(
        who: &str,
        paths: impl Iterator<Item = &'a Path> + Clone,
        spans: &Spans,
    ) -> Self {
        Self {
            who: who.to_owned(),
            before: Stats::over(paths.clone(), &spans.before),
            during: Stats::over(paths.clone(), &spans.during),
            after: Stats::over(paths, &spans.after),
        }
    }
}

impl Fault {
    /// For people.
    pub(crate) fn render(&self) -> String {
        let mut text = format!("\n── {}\n", self.title);
        let mut line = |label: &str, value: &str| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "   {label:<11} {value}");
        };
        line("asked", &self.asked);
        for (index, row) in table(&self.paths).iter().enumerate() {
            line(if index == 0 { "peers saw" } else { "" }, row);
        }
        for remark in &self.remarks {
            line("", remark);
        }
        line("kernel", &self.kernel_text());
        line("mechanism", &self.mechanisms.join(", "));
        if let Some(ms) = self.first_hit_ms {
            line("first hit", &first_hit(ms));
        }
        if let Some(seconds) = self.lasted_s {
            let end = self.after_deadline_ms.map(last_hit).unwrap_or_default();
            line(
                "lasted",
                &format!("{seconds:.2} s, from the first packet hit to the last{end}"),
            );
        }
        let [during, after] = &self.conditions;
        if !during.is_empty() {
            line("conditions", &format!("during: {}", conditions(during)));
            line("", &format!("after:  {}", conditions(after)));
        }
        line("end", &self.verdict);
        text
    }

    fn kernel_text(&self) -> String {
        let Kernel {
            matched,
            hits,
            hits_by_model,
            hits_by_peers,
        } = &self.kernel;
        let mut text = format!("{matched} packets matched, {hits} hit");
        for (who, count) in [
            ("by the seed", hits_by_model),
            ("the peers miss", hits_by_peers),
        ] {
            if let Some(count) = count {
                let word = if count == hits {
                    "the same"
                } else {
                    "NOT THE SAME"
                };
                text.push_str(&format!("; {who}: {count} ({word})"));
            }
        }
        text
    }
}

fn first_hit(ms: f64) -> String {
    if ms < 0.0 {
        format!("{:.0} ms before the command returned", -ms)
    } else {
        format!("{ms:.0} ms after the command returned")
    }
}

fn last_hit(ms: f64) -> String {
    let word = if ms > 0.0 { "AFTER" } else { "before" };
    format!(", {:.0} ms {word} the deadline", ms.abs())
}

fn conditions(conditions: &BTreeMap<String, bool>) -> String {
    let words = conditions
        .iter()
        .map(|(name, holds)| format!("{name}={}", if *holds { "True" } else { "False" }));
    words.collect::<Vec<_>>().join(" ")
}

/// Median, 99th percentile and loss: before, during, after.
fn table(rows: &[Figures]) -> Vec<String> {
    let width = rows.iter().map(|row| row.who.chars().count()).max();
    let width = width.unwrap_or_default();
    let heads = ["before", "during", "after"].map(|head| format!("{head:^26}"));
    let columns = format!("{:>8} {:>8} {:>8}", "median", "p99", "loss");
    let mut lines = vec![
        format!("{:width$}  {}", "", heads.join("   "))
            .trim_end()
            .to_owned(),
        format!("{:width$}  {columns}   {columns}   {columns}", ""),
    ];
    for row in rows {
        let cells = [&row.before, &row.during, &row.after].map(cell);
        lines.push(format!("{:<width$}  {}", row.who, cells.join("   ")));
    }
    lines
}

fn cell(stats: &Stats) -> String {
    let time = |ms: Option<f64>| ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1} ms"));
    let loss = if stats.sent == 0 {
        "-".to_owned()
    } else {
        format!("{:.1} %", stats.loss() * 100.0)
    };
    format!(
        "{:>8} {:>8} {loss:>8}",
        time(stats.median_ms),
        time(stats.p99_ms)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::samples::{Fate, MS, Sign, first_and_last, tests::path};

    fn fault() -> Fault {
        let quick = || std::iter::repeat_n(Fate::Answered(500), 20);
        let slow = std::iter::repeat_n(Fate::Answered(100_700), 20);
        let paths = [path("a", "b", quick().chain(slow).chain(quick()))];
        let all = 0..u64::MAX;
        let hits = first_and_last(&paths, &all, Sign::SlowerThan(50_000)).unwrap();
        let spans = Spans::around(0, 900 * MS, hits, u64::MAX);
        Fault {
            title: "delay".to_owned(),
            asked: "100 ms for 1 s".to_owned(),
            paths: vec![Figures::of("a → b", paths.iter(), &spans)],
            first_hit_ms: Some(42.4),
            lasted_s: Some(0.95),
            after_deadline_ms: Some(-31.0),
            kernel: Kernel {
                matched: 20,
                hits: 20,
                hits_by_model: Some(20),
                hits_by_peers: Some(19),
            },
            mechanisms: vec!["tc_egress".to_owned()],
            conditions: [
                BTreeMap::from([("AllInjected".to_owned(), true)]),
                BTreeMap::from([("AllInjected".to_owned(), false)]),
            ],
            remarks: vec!["none was lost".to_owned()],
            verdict: "recovered, kernel verified clean".to_owned(),
            ..Fault::default()
        }
    }

    #[test]
    fn a_fault_is_told_in_lines_that_a_person_reads() {
        let text = fault().render();
        let expected = "
── delay
   asked       100 ms for 1 s
   peers saw                    before                       during                       after
                        median      p99     loss     median      p99     loss     median      p99     loss
               a → b    0.5 ms   0.5 ms    0.0 %   100.7 ms 100.7 ms    0.0 %     0.5 ms   0.5 ms    0.0 %
               none was lost
   kernel      20 packets matched, 20 hit; by the seed: 20 (the same); the peers miss: 19 (NOT THE SAME)
   mechanism   tc_egress
   first hit   42 ms after the command returned
   lasted      0.95 s, from the first packet hit to the last, 31 ms before the deadline
   conditions  during: AllInjected=True
               after:  AllInjected=False
   end         recovered, kernel verified clean
";
        assert_eq!(text, expected, "{text}");
    }

    #[test]
    fn the_same_is_there_as_data() {
        let report = Report {
            cluster: vec![fault()],
            seconds: vec![("faults".to_owned(), 1.5)],
            ..Report::default()
        };
        let json = serde_json::to_value(report).unwrap();
        let fault = &json["cluster"][0];
        assert_eq!(fault["kernel"]["hits_by_peers"], 19);
        assert_eq!(fault["paths"][0]["during"]["median_ms"], 100.7);
        assert_eq!(fault["conditions"][0]["AllInjected"], true);
        assert_eq!(json["seconds"][0][1], 1.5);
    }

    #[test]
    fn a_hit_before_the_command_returned_is_said_so() {
        assert_eq!(first_hit(-12.0), "12 ms before the command returned");
    }
}

//! A part's figures with all that is needed to judge them: as JSON for programs, and as a table.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use vm_tests::figures::{Figure, Interval, Judgement};

/// What the figures were measured on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Origin {
    /// This machine's own kernel.
    Native,
    /// A machine that QEMU emulates: ratios between things that cost alike, and times of timers.
    Tcg,
}

/// What was measured in one go.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Report {
    part: String,
    origin: Origin,
    /// RFC 3339, UTC.
    date: String,
    /// `uname -r` of the kernel that was measured.
    kernel: String,
    machine: Machine,
    /// Too few pairs: this tried the benchmark, and says nothing.
    short: bool,
    seconds: f64,
    figures: Vec<Judged>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Judged {
    #[serde(flatten)]
    figure: Figure,
    judgement: Judgement,
}

/// The host.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Machine {
    cpu: String,
    cpus: usize,
    /// Load average of the last minute, at the end.
    load: f64,
}

impl Machine {
    fn this() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpu = read("/proc/cpuinfo");
        let model = cpu.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key.trim() == "model name").then(|| value.trim().to_owned())
        });
        let load = read("/proc/loadavg");
        let load = load.split(' ').next().and_then(|load| load.parse().ok());
        Self {
            cpu: model.unwrap_or_else(|| "unknown".to_owned()),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            load: load.unwrap_or(f64::NAN),
        }
    }
}

impl Report {
    pub(super) fn new(
        part: &str,
        origin: Origin,
        kernel: String,
        short: bool,
        took: Duration,
        figures: Vec<Figure>,
    ) -> Self {
        let judged = |figure: Figure| Judged {
            judgement: figure.judgement(),
            figure,
        };
        Self {
            part: part.to_owned(),
            origin,
            date: jiff::Timestamp::now().strftime("%FT%TZ").to_string(),
            kernel,
            machine: Machine::this(),
            short,
            seconds: took.as_secs_f64(),
            figures: figures.into_iter().map(judged).collect(),
        }
    }

    /// Whether no control failed.
    pub(super) fn is_valid(&self) -> bool {
        self.figures.iter().all(|f| f.judgement != Judgement::Void)
    }

    /// Writes `<part>.json` there, and returns its path.
    pub(super) fn write(&self, directory: &Path) -> Result<PathBuf> {
        let file = directory.join(format!("{}.json", self.part));
        fs::create_dir_all(directory)
            .and_then(|()| fs::write(&file, serde_json::to_vec_pretty(self)?))
            .with_context(|| format!("failed to write {}", file.display()))?;
        Ok(file)
    }

    /// For people.
    pub(super) fn lines(&self) -> Vec<String> {
        let origin = match self.origin {
            Origin::Native => "native",
            Origin::Tcg => "emulated (TCG)",
        };
        let mut lines = vec![format!(
            "── {}: {origin}, Linux {}, {} on {} CPUs, load {:.1}, {}, {:.0} s{}",
            self.part,
            self.kernel,
            self.machine.cpu,
            self.machine.cpus,
            self.machine.load,
            self.date,
            self.seconds,
            if self.short {
                ": TOO FEW PAIRS, says nothing"
            } else {
                ""
            }
        )];
        let width = self.figures.iter().map(|f| f.figure.name.chars().count());
        let width = width.max().unwrap_or(0);
        for Judged { figure, judgement } in &self.figures {
            let aim = figure.aim.map(|aim| aim.to_string()).unwrap_or_default();
            let control = figure
                .control
                .map(|control| format!("control {}", interval(&control)))
                .unwrap_or_default();
            let details = figure
                .details
                .iter()
                .map(|(k, v)| format!("{k} {}", short(*v)));
            let details: Vec<String> = details.collect();
            lines.push(
                format!(
                    "   {:width$}  {:>8} {:>19}  {:>12} {judgement:6}  {control:27}  {}: {}",
                    figure.name,
                    short(figure.value),
                    interval(&figure.interval),
                    aim,
                    figure.unit,
                    details.join(", "),
                )
                .trim_end_matches([' ', ':'])
                .to_owned(),
            );
        }
        lines
    }
}

fn interval(interval: &Interval) -> String {
    format!("[{}, {}]", short(interval.low), short(interval.high))
}

/// Four digits, about.
fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use vm_tests::figures::Aim;

    use super::*;

    fn report(control: Interval) -> Report {
        let mut compared = Figure::of("tc: idle", "ns/packet / empty", &[1.05; 15])
            .aim(Aim::AtMost(1.08))
            .detail("ours", 8.5);
        compared.control = Some(control);
        let figures = vec![compared, Figure::of("resident memory", "MiB", &[18.4])];
        Report::new(
            "native",
            Origin::Native,
            "6.18".into(),
            false,
            Duration::from_secs(3),
            figures,
        )
    }

    #[test]
    fn the_file_says_all_that_the_table_says_and_can_be_read_back() {
        let directory = tempfile::tempdir().unwrap();
        let good = report(Interval {
            low: 0.99,
            high: 1.01,
        });
        assert!(good.is_valid());
        let file = good.write(directory.path()).unwrap();
        let read: Report = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        assert_eq!(read.figures, good.figures);
        assert_eq!(read.figures[0].judgement, Judgement::Met);
        assert!(read.machine.cpus > 0 && read.date.ends_with('Z'));
        let lines = good.lines();
        assert_eq!(lines.len(), 3);
        for part in ["tc: idle", "1.050", "<= 1.08", "met", "ours 8.500"] {
            assert!(lines[1].contains(part), "{part}: {}", lines[1]);
        }
    }

    #[test]
    fn one_failed_control_makes_the_report_void() {
        let bad = report(Interval {
            low: 1.01,
            high: 1.02,
        });
        assert!(!bad.is_valid());
        assert!(bad.lines()[1].contains("VOID"), "{:?}", bad.lines());
    }
}

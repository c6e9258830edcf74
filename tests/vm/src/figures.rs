//! What a benchmark found out: one figure a line, from who measures to `cargo xtask bench`. Both sides
//! use these types.
//!
//! A comparison is a ratio of pairs that were measured in turns in one run, A B B A, so that what
//! changes slowly on the machine hits both; beside it runs a control, A against another A, whose
//! interval has to hold 1: else something else than what is compared made a difference.

pub mod statistics;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

pub use statistics::Interval;
use statistics::median_with_interval;

/// On the kernel's command line of a machine that measures: how many pairs. The kernel takes a word with a
/// dot for a module's and leaves it alone.
pub const PAIRS: &str = "faultline.pairs=";

/// The fewest pairs that say anything.
pub const FEWEST_PAIRS: usize = 15;

/// Opens the line; no [`Event`](crate::report::Event) begins like this.
const MARKER: &str = "@@vm-bench ";

/// What a value has to be to be good.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Aim {
    /// So much or less.
    AtMost(f64),
    /// So much or more.
    AtLeast(f64),
    /// From here to there.
    Between(f64, f64),
}

impl Aim {
    fn ends(self) -> (f64, f64) {
        match self {
            Self::AtMost(high) => (f64::NEG_INFINITY, high),
            Self::AtLeast(low) => (low, f64::INFINITY),
            Self::Between(low, high) => (low, high),
        }
    }
}

impl fmt::Display for Aim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(high) => write!(f, "<= {high}"),
            Self::AtLeast(low) => write!(f, ">= {low}"),
            Self::Between(low, high) => write!(f, "{low} to {high}"),
        }
    }
}

/// What a figure amounts to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Judgement {
    /// The control failed: it says nothing.
    Void,
    /// All of the interval is as aimed.
    Met,
    /// None of the interval is as aimed.
    Missed,
    /// The end of the aim is inside of the interval: more pairs, or a quieter machine, would tell.
    Open,
    /// There is no aim.
    Published,
}

impl fmt::Display for Judgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Void => "VOID",
            Self::Met => "met",
            Self::Missed => "MISSED",
            Self::Open => "open",
            Self::Published => "",
        })
    }
}

/// One measured figure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// What it is about: `tc_egress: nothing armed`.
    pub name: String,
    /// `ns/packet / empty program`, `ms`, `MiB`.
    pub unit: String,
    /// The median.
    pub value: f64,
    /// Where the true one lies.
    pub interval: Interval,
    /// Pairs, or values, that it was made of.
    pub samples: usize,
    /// The interval of the control.
    pub control: Option<Interval>,
    /// How often it was measured; all but the last time the control failed.
    pub tries: u32,
    /// What it should be.
    pub aim: Option<Aim>,
    /// What stands behind it, such as the medians of both sides of a ratio.
    pub details: BTreeMap<String, f64>,
}

impl Figure {
    /// The median of these values, without a control.
    pub fn of(name: impl Into<String>, unit: &str, values: &[f64]) -> Self {
        let (value, interval) = median_with_interval(values);
        Self {
            name: name.into(),
            unit: unit.to_owned(),
            value,
            interval,
            samples: values.len(),
            control: None,
            tries: 1,
            aim: None,
            details: BTreeMap::new(),
        }
    }

    /// With an aim.
    #[must_use]
    pub fn aim(mut self, aim: Aim) -> Self {
        self.aim = Some(aim);
        self
    }

    /// With what stands behind it.
    #[must_use]
    pub fn detail(mut self, name: &str, value: f64) -> Self {
        self.details.insert(name.to_owned(), value);
        self
    }

    /// What it amounts to.
    pub fn judgement(&self) -> Judgement {
        if self.value.is_nan() || self.control.is_some_and(|control| !control.contains(1.0)) {
            return Judgement::Void;
        }
        let Some(aim) = self.aim else {
            return Judgement::Published;
        };
        let (low, high) = aim.ends();
        let Interval {
            low: from,
            high: to,
        } = self.interval;
        if low <= from && to <= high {
            Judgement::Met
        } else if to < low || high < from {
            Judgement::Missed
        } else {
            Judgement::Open
        }
    }

    /// The line to tell.
    pub fn line(&self) -> String {
        let json = serde_json::to_string(self).unwrap_or_else(|e| format!("\"{e}\""));
        format!("{MARKER}{json}")
    }

    /// The figure in a line, if there is one.
    pub fn parse(line: &str) -> Option<Self> {
        let (_, json) = line.split_once(MARKER)?;
        serde_json::from_str(json.trim_end()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_survives_the_console() {
        let figure = Figure::of("a: b", "ms", &[1.0, 2.0, 4.0])
            .aim(Aim::Between(0.5, 4.5))
            .detail("ours, ns", 12.5);
        let line = format!("noise {}\r\n", figure.line());
        assert_eq!(Figure::parse(&line), Some(figure));
        assert_eq!(Figure::parse("@@vm-bench {"), None);
    }

    #[test]
    fn an_aim_is_met_or_missed_only_with_the_whole_interval() {
        let judge = |aim: Aim, low: f64, high: f64| {
            let figure = Figure {
                interval: Interval { low, high },
                ..Figure::of("x", "", &[(low + high) / 2.0])
            };
            figure.aim(aim).judgement()
        };
        let most = Aim::AtMost(1.1);
        assert_eq!(judge(most, 1.0, 1.1), Judgement::Met);
        assert_eq!(judge(most, 1.0, 1.2), Judgement::Open);
        assert_eq!(judge(most, 1.15, 1.2), Judgement::Missed);
        assert_eq!(judge(Aim::AtLeast(0.95), 0.96, 2.0), Judgement::Met);
        assert_eq!(judge(Aim::AtLeast(0.95), 0.90, 0.94), Judgement::Missed);
        assert_eq!(judge(Aim::Between(0.9, 1.1), 0.95, 1.0), Judgement::Met);
        assert_eq!(judge(Aim::Between(0.9, 1.1), 0.8, 1.2), Judgement::Open);
    }

    #[test]
    fn a_figure_whose_control_differs_from_itself_is_void_whatever_it_says() {
        let mut figure = Figure::of("x", "", &[1.0; 5]).aim(Aim::AtMost(2.0));
        assert_eq!(figure.judgement(), Judgement::Met);
        figure.control = Some(Interval {
            low: 1.01,
            high: 1.2,
        });
        assert_eq!(figure.judgement(), Judgement::Void);
        figure.control = Some(Interval {
            low: 0.99,
            high: 1.2,
        });
        assert_eq!(figure.judgement(), Judgement::Met);
        assert_eq!(Figure::of("x", "", &[]).judgement(), Judgement::Void);
    }
}

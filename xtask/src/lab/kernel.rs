//! What the kernels of the nodes hold and have counted, element by element: the maps that the agent's
//! own command dumps. All moments are by this machine's clock; two moments of one node compare to
//! microseconds, for the kernel and the probes on it read clocks of the same machine.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytemuck::Pod;
use chaos_abi::{counters::Counters, network::Rule};
use serde::Deserialize;

use super::{Lab, clock::Offset};
use crate::step;

/// A rule that is armed.
#[derive(Clone, Debug)]
pub(crate) struct Armed {
    node: String,
    id: u32,
    /// From this moment on it does nothing.
    pub(crate) deadline: u64,
}

/// What a rule has done to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Done {
    /// When it would have ended by itself.
    pub(crate) deadline: u64,
    /// Packets that it applied to.
    pub(crate) matched: u64,
    /// Packets that it was done to.
    pub(crate) hits: u64,
    /// When the first and the last of these passed the kernel's program; `None`: there were none, as with
    /// a rule at a receiver that the sender's rule leaves nothing to do.
    pub(crate) acted: Option<(u64, u64)>,
}

/// An element of a map, as `maps dump --raw` prints it: bytes in hexadecimal.
#[derive(Debug, Deserialize)]
struct Element {
    key: String,
    value: String,
}

impl Lab<'_> {
    /// The rules that are armed on all nodes, whoever asked for them.
    ///
    /// # Errors
    /// If an agent cannot be asked.
    pub(crate) fn armed(&self) -> Result<Vec<Armed>> {
        let mut armed = Vec::new();
        for node in self.cluster().nodes() {
            let offset = self.clock_of(&node)?;
            for element in self.dump(&node, "RULES")? {
                let [rule] = values::<Rule>(&element.value)?[..] else {
                    anyhow::bail!("{element:?} is not one rule");
                };
                armed.push(Armed {
                    node: node.clone(),
                    id: id(&element.key)?,
                    deadline: offset.convert_monotonic(rule.deadline_ns),
                });
            }
        }
        Ok(armed)
    }

    /// What these rules have done: their counters stay until another rule is armed in their place.
    ///
    /// # Errors
    /// If an agent cannot be asked, or a rule has failed.
    pub(crate) fn done(&self, rules: &[Armed]) -> Result<Vec<Done>> {
        let mut done = Vec::new();
        for node in self.cluster().nodes() {
            let offset = self.clock_of(&node)?;
            let dumped = self.dump(&node, "COUNTERS")?;
            for rule in rules.iter().filter(|rule| rule.node == node) {
                done.push(rule.done(&dumped, offset)?);
            }
        }
        Ok(done)
    }

    /// Waits until a node is as calm as it gets, at most a minute: an emulated one has work long after its pods
    /// have started.
    ///
    /// # Errors
    /// If the node cannot be asked.
    pub(crate) fn comes_to_rest(&self, node: &str) -> Result<()> {
        /// Percent; less is nothing.
        const CALM: f64 = 5.0;
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut before = f64::INFINITY;
        loop {
            let pressure = self.cpu_pressure(node)?;
            if pressure < CALM || pressure > before * 0.9 || Instant::now() > deadline {
                return Ok(());
            }
            before = pressure;
            std::thread::sleep(Duration::from_secs(5));
        }
    }

    /// In which part of the last ten seconds some program of a node has waited for a CPU, in percent
    /// (Documentation/accounting/psi.rst).
    fn cpu_pressure(&self, node: &str) -> Result<f64> {
        let file = "/proc/pressure/cpu";
        let text = step::output(&mut self.cluster().ssh(node, &[format!("cat {file}")])?)?;
        let share = text.split_whitespace().find_map(|word| {
            let percent = word.strip_prefix("avg10=")?;
            percent.parse().ok()
        });
        share.with_context(|| format!("{file} of {node} says {text:?}"))
    }

    /// What the agent's command prints on a node, started from the agent's own root directory; and when it ended,
    /// by this machine's clock.
    ///
    /// # Errors
    /// If no agent runs there, or its command fails.
    pub(super) fn ask_agent(&self, node: &str, words: &str) -> Result<(String, u64)> {
        let command = format!(
            "pid=$(pgrep -o -x chaos-agent) || {{ echo no chaos-agent runs >&2; exit 1; }}; \
             \"/proc/$pid/root/chaos-agent\" {words} && echo && date +%s%N"
        );
        let text = step::output(&mut self.cluster().ssh(node, &[command])?)
            .with_context(|| format!("failed to ask the agent on {node}"))?;
        let (said, ended) = text
            .trim_end()
            .rsplit_once('\n')
            .and_then(|(said, ended)| Some((said.to_owned(), ended.parse().ok()?)))
            .with_context(|| format!("{node} did not say when its agent had answered: {text}"))?;
        Ok((said, self.clock_of(node)?.convert(ended)))
    }

    fn dump(&self, node: &str, map: &str) -> Result<Vec<Element>> {
        let (text, _) = self.ask_agent(node, &format!("--json maps dump {map} --raw"))?;
        serde_json::from_str(&text)
            .with_context(|| format!("failed to understand {map} of {node}: {text}"))
    }

    fn clock_of(&self, node: &str) -> Result<Offset> {
        let offset = self.clocks.get(node).copied();
        offset.with_context(|| format!("the clock of {node} was not compared: it has no pod here"))
    }
}

impl Armed {
    fn done(&self, counters: &[Element], offset: Offset) -> Result<Done> {
        let mut sum = Counters::default();
        for element in counters {
            if id(&element.key)? == self.id {
                let cpus = values::<Counters>(&element.value)?;
                cpus.iter().for_each(|cpu| sum.merge(cpu));
            }
        }
        ensure!(sum.failed == 0, "rule {} has failed: {sum:?}", self.id);
        Ok(Done {
            deadline: self.deadline,
            matched: sum.matched,
            hits: sum.injected,
            acted: (sum.injected > 0).then(|| {
                let moment = |at| offset.convert_monotonic(at);
                (moment(sum.first_ns), moment(sum.last_ns))
            }),
        })
    }
}

fn id(key: &str) -> Result<u32> {
    match values(key)?[..] {
        [id] => Ok(id),
        _ => anyhow::bail!("{key} is not the index of an array"),
    }
}

/// Values behind each other, of both machines' byte order: little-endian.
fn values<T: Pod>(hex: &str) -> Result<Vec<T>> {
    let bytes: Vec<u8> = (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok())
        .collect::<Option<_>>()
        .with_context(|| format!("{hex} is not hexadecimal"))?;
    let size = size_of::<T>();
    ensure!(
        !bytes.is_empty() && bytes.len().is_multiple_of(size),
        "{hex} is not made of values of {size} bytes"
    );
    Ok(bytes
        .chunks_exact(size)
        .map(bytemuck::pod_read_unaligned)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex<T: Pod>(values: &[T]) -> String {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn element(id: u32, cpus: &[Counters]) -> Element {
        Element {
            key: hex(&[id]),
            value: hex(cpus),
        }
    }

    #[test]
    fn what_the_cpus_have_counted_is_added_up_for_the_rule_that_is_asked_about() {
        let cpu = |injected, first_ns, last_ns| Counters {
            matched: injected + 1,
            injected,
            first_ns,
            last_ns,
            ..Counters::default()
        };
        let dumped = [
            element(3, &[cpu(9, 1, 2)]),
            element(7, &[cpu(2, 70, 90), cpu(1, 60, 60), cpu(0, 0, 0)]),
        ];
        let rule = Armed {
            node: "node1".to_owned(),
            id: 7,
            deadline: 100,
        };
        let done = rule.done(&dumped, Offset::default()).unwrap();
        let expected = Done {
            deadline: 100,
            matched: 6,
            hits: 3,
            acted: Some((60, 90)),
        };
        assert_eq!(done, expected);
        let idle = Armed { id: 8, ..rule };
        let done = idle.done(&dumped, Offset::default()).unwrap();
        assert_eq!((done.hits, done.acted), (0, None));
        let failed = Counters {
            failed: 1,
            ..Counters::default()
        };
        let dumped = [element(8, &[failed])];
        assert!(idle.done(&dumped, Offset::default()).is_err());
    }

    #[test]
    fn what_is_not_made_of_whole_values_is_refused() {
        assert_eq!(values::<u32>("0700000001000000").unwrap(), [7, 1]);
        for wrong in ["", "070000", "0700000", "zz000000"] {
            assert!(values::<u32>(wrong).is_err(), "{wrong}");
        }
        let rule = Rule {
            deadline_ns: 12,
            ..Rule::default()
        };
        assert_eq!(values::<Rule>(&hex(&[rule])).unwrap(), [rule]);
    }
}

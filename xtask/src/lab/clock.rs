//! The clock of a node against the clock of this machine: emulated machines start their clock from
//! one that has whole seconds only, and samples carry the node's time.

use std::{
    io::{BufRead, BufReader, Write},
    process::Stdio,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};

use crate::cluster::Cluster;

/// Questions asked; the answer that came back quickest counts.
const QUESTIONS: usize = 15;

/// What to add to a node's time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Offset {
    nanos: i64,
    /// It may be wrong by so much either way: half of the way there and back.
    pub(crate) uncertainty: u64,
}

impl Offset {
    /// The moment by this machine's clock.
    pub(crate) fn convert(self, at: u64) -> u64 {
        at.saturating_add_signed(self.nanos)
    }

    /// From questions: when it was sent, what the node's clock said, when that was heard.
    fn of(questions: &[(u64, u64, u64)]) -> Option<Self> {
        let (sent, there, heard) = questions
            .iter()
            .min_by_key(|(sent, _, heard)| heard - sent)?;
        let uncertainty = (heard - sent) / 2;
        let middle = sent + uncertainty;
        Some(Self {
            nanos: middle.cast_signed() - there.cast_signed(),
            uncertainty,
        })
    }
}

/// This machine's clock: nanoseconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map(|time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
        .unwrap_or_default()
}

/// Compares the clocks.
///
/// # Errors
/// If the node cannot be reached or does not answer with times.
pub(crate) fn compare(cluster: &Cluster, node: &str) -> Result<Offset> {
    // Microseconds, by the shell itself: a process for each answer would take longer than that.
    let script = "bash -c 'while read -r _; do echo ${EPOCHREALTIME/./}; done'".to_owned();
    let mut ssh = cluster
        .ssh(node, &[script])?
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("failed to start ssh: run `cargo xtask setup`")?;
    let mut to = ssh.stdin.take().context("ssh has no standard input")?;
    let mut from = BufReader::new(ssh.stdout.take().context("ssh has no standard output")?);
    let mut questions = Vec::new();
    let mut line = String::new();
    for _ in 0..QUESTIONS {
        let sent = now();
        to.write_all(b"\n").context("failed to ask for the time")?;
        line.clear();
        from.read_line(&mut line)
            .context("failed to hear the time")?;
        let heard = now();
        let there: u64 = line
            .trim()
            .parse()
            .with_context(|| format!("{node} said {line:?} instead of its time"))?;
        questions.push((sent, there.saturating_mul(1000), heard));
    }
    drop(to);
    ssh.wait().context("failed to wait for ssh")?;
    Offset::of(&questions).context("no question was asked")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quickest_answer_counts_and_its_middle_is_when_the_clock_was_read() {
        let offset = Offset::of(&[(1000, 5000, 3000), (4000, 6010, 4020), (8000, 1, 9000)]);
        let offset = offset.unwrap();
        assert_eq!((offset.nanos, offset.uncertainty), (-2000, 10));
        assert_eq!(offset.convert(6010), 4010);
        assert_eq!(Offset::of(&[]), None);
    }
}

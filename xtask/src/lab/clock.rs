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

/// Answers each line with three numbers in nanoseconds: CLOCK_REALTIME, CLOCK_MONOTONIC, and by how
/// much the two may have been read apart. Perl is an essential package of Debian; 228 is clock_gettime
/// on x86-64.
const SERVER: &str = r#"perl -e 'use strict; use integer; $| = 1;
sub now { my $t = "\0" x 16; syscall(228, $_[0] + 0, $t); my ($s, $n) = unpack("qq", $t); $s * 1000000000 + $n }
while (<STDIN>) { my ($b, $r, $a) = (now(1), now(0), now(1)); print $r, " ", ($b + $a) / 2, " ", $a - $b, "\n" }'"#;

/// What to add to a node's times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Offset {
    nanos: i64,
    /// It may be wrong by so much either way: half of the way there and back.
    pub(crate) uncertainty: u64,
    /// From the node's CLOCK_MONOTONIC to its CLOCK_REALTIME: nothing sets either while a cluster runs.
    since_boot: i64,
}

/// What a node's clocks said.
#[derive(Clone, Copy, Debug)]
struct Reading {
    realtime: u64,
    monotonic: u64,
    /// They were read within this time.
    apart: u64,
}

/// A question to a node: when it was sent, the answer, when that was heard.
type Question = (u64, Reading, u64);

impl Offset {
    /// The moment of the node's CLOCK_REALTIME by this machine's clock.
    pub(crate) fn convert(self, at: u64) -> u64 {
        at.saturating_add_signed(self.nanos)
    }

    /// The moment of the node's CLOCK_MONOTONIC by this machine's clock. Compared with other moments of
    /// the same node it is off by microseconds, however far the two machines are apart.
    pub(crate) fn convert_monotonic(self, at: u64) -> u64 {
        self.convert(at.saturating_add_signed(self.since_boot))
    }

    fn of(questions: &[Question]) -> Option<Self> {
        let (sent, there, heard) = questions
            .iter()
            .min_by_key(|(sent, _, heard)| heard - sent)?;
        let (_, close, _) = questions.iter().min_by_key(|(_, there, _)| there.apart)?;
        let uncertainty = (heard - sent) / 2;
        let middle = sent + uncertainty;
        Some(Self {
            nanos: middle.cast_signed() - there.realtime.cast_signed(),
            uncertainty,
            since_boot: close.realtime.cast_signed() - close.monotonic.cast_signed(),
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
    let mut ssh = cluster
        .ssh(node, &[SERVER.to_owned()])?
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
        let there =
            reading(&line).with_context(|| format!("{node} said {line:?} instead of its times"))?;
        questions.push((sent, there, heard));
    }
    drop(to);
    ssh.wait().context("failed to wait for ssh")?;
    Offset::of(&questions).context("no question was asked")
}

fn reading(line: &str) -> Option<Reading> {
    let mut numbers = line.split_whitespace().map(str::parse);
    let mut next = || numbers.next()?.ok();
    Some(Reading {
        realtime: next()?,
        monotonic: next()?,
        apart: next()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quickest_answer_counts_and_its_middle_is_when_the_clock_was_read() {
        let at = |realtime| reading(&format!("{realtime} {} 3\n", realtime - 1)).unwrap();
        let offset = Offset::of(&[
            (1000, at(5000), 3000),
            (4000, at(6010), 4020),
            (8000, at(1), 9000),
        ]);
        let offset = offset.unwrap();
        assert_eq!((offset.nanos, offset.uncertainty), (-2000, 10));
        assert_eq!(offset.convert(6010), 4010);
        assert_eq!(Offset::of(&[]), None);
    }

    #[test]
    fn the_two_clocks_of_a_node_are_compared_where_they_were_read_closest() {
        let question = |line| (0, reading(line).unwrap(), 0);
        let offset = Offset::of(&[question("5000 900 80"), question("6000 2000 4")]).unwrap();
        assert_eq!(offset.since_boot, 4000);
        assert_eq!(
            offset.convert_monotonic(2000),
            offset.convert(6000),
            "the same moment by either clock"
        );
    }

    #[test]
    fn an_answer_that_is_not_three_numbers_is_none() {
        assert!(reading("1 2\n").is_none() && reading("no perl\n").is_none());
    }
}

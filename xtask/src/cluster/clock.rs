//! Sets a node's clock to this machine's, to a few milliseconds. A guest reads whole seconds from its
//! RTC at boot, so it is up to a second off; times of packets there and of `kubectl` here would not
//! compare.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};

/// Questions asked; the one with the fastest answer counts.
const QUESTIONS: usize = 20;

/// Answers each line with the time in nanoseconds; `by N` moves the clock by N nanoseconds. Perl is
/// an essential package of Debian. 227 and 228 are clock_settime and clock_gettime on x86-64.
const SERVER: &str = r#"perl -e 'use strict; use integer; $| = 1;
sub now { my $t = "\0" x 16; syscall(228, 0, $t); my ($s, $n) = unpack("qq", $t); $s * 1000000000 + $n }
while (<STDIN>) {
    if (/^by (-?\d+)/) {
        my $new = now() + $1;
        my $t = pack("qq", $new / 1000000000, $new % 1000000000);
        syscall(227, 0, $t) == 0 or die "clock_settime: $!";
    }
    print now(), "\n";
}'"#;

/// Sets the clock of the node that `ssh` leads to (with a command to come) and returns by how many
/// nanoseconds it was behind.
///
/// # Errors
/// If the node cannot be reached, or does not let its clock be set.
pub(crate) fn synchronize(mut ssh: Command) -> Result<i64> {
    let mut child = ssh
        .arg(SERVER)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("failed to start ssh")?;
    let mut questions = child.stdin.take().context("ssh has no stdin")?;
    let mut answers = BufReader::new(child.stdout.take().context("ssh has no stdout")?);
    let mut ask = |question: &str| -> Result<Exchange> {
        let asked = now()?;
        questions
            .write_all(format!("{question}\n").as_bytes())
            .context("the node does not listen")?;
        let mut line = String::new();
        answers
            .read_line(&mut line)
            .context("the node does not answer")?;
        let answer = line
            .trim()
            .parse()
            .context("the node did not tell a time")?;
        Ok(Exchange {
            asked,
            answer,
            answered: now()?,
        })
    };
    let mut exchanges = Vec::new();
    for _ in 0..QUESTIONS {
        exchanges.push(ask("?")?);
    }
    let behind = Exchange::behind(&exchanges);
    ask(&format!("by {behind}"))?;
    drop(questions);
    let status = child.wait().context("failed to wait for ssh")?;
    ensure!(status.success(), "setting the clock ended with {status}");
    Ok(behind)
}

/// Nanoseconds since 1970: when this machine asked, what the node said, when that came.
#[derive(Clone, Copy, Debug)]
struct Exchange {
    asked: i64,
    answer: i64,
    answered: i64,
}

impl Exchange {
    /// By how much the other clock is behind this one: the fastest exchange has the least room for
    /// an error, and the answer was made in its middle, as far as one can know.
    fn behind(exchanges: &[Self]) -> i64 {
        exchanges
            .iter()
            .min_by_key(|exchange| exchange.answered - exchange.asked)
            .map_or(0, |best| best.asked.midpoint(best.answered) - best.answer)
    }
}

fn now() -> Result<i64> {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .context("this machine's clock is before 1970")?;
    i64::try_from(since.as_nanos()).context("this machine's clock is far off")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fastest_exchange_tells_the_difference() {
        let exchange = |asked, answer, answered| Exchange {
            asked,
            answer,
            answered,
        };
        let exchanges = [
            exchange(0, 1000, 900),
            exchange(1000, 5050, 1100),
            exchange(2000, 9000, 2900),
        ];
        assert_eq!(Exchange::behind(&exchanges), -4000);
        assert_eq!(Exchange::behind(&[]), 0);
    }
}

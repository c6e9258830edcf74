//! What a skewed clock does to servers that people run: keys that expire, and leases that are watched.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};

use super::{HOUR, MONOTONIC, REALTIME};
use crate::cgroup::Cgroup;
use crate::node::{Host, clock_fault, moved};
use crate::process::Place;
use crate::program::{Program, Running};
use crate::runtimes::{command, outside};
use crate::vm_test;
use crate::wait::eventually;

/// A server starts within this time.
const START: Duration = Duration::from_secs(60);

/// A server sees within this time that something has expired: both look ten times a second or less.
const NOTICE: Duration = Duration::from_secs(20);

/// A connection to Redis.
struct Redis(BufReader<UnixStream>);

impl Redis {
    fn connect(socket: &PathBuf) -> Result<Redis> {
        let stream = UnixStream::connect(socket).context("no connection to Redis")?;
        stream.set_read_timeout(Some(NOTICE))?;
        Ok(Redis(BufReader::new(stream)))
    }

    /// What it answers to a command in one line: the first line, or that of a bulk string or of the
    /// first element of an array.
    fn ask(&mut self, question: &str) -> Result<String> {
        self.0
            .get_mut()
            .write_all(format!("{question}\r\n").as_bytes())?;
        let first = self.line()?;
        let (kind, rest) = first.split_at_checked(1).context("an empty answer")?;
        match (kind, rest.parse::<i64>()) {
            ("$", Ok(-1)) => Ok("nil".to_owned()),
            ("$", Ok(_)) => self.line(),
            ("*", Ok(count)) => {
                let lines = (0..2 * count).map(|_| self.line());
                let lines = lines.collect::<Result<Vec<_>>>()?;
                lines.into_iter().nth(1).context("an empty array")
            }
            ("-", _) => bail!("{question}: {rest}"),
            _ => Ok(rest.to_owned()),
        }
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.0.read_line(&mut line).context("Redis is silent")?;
        Ok(line.trim_end().to_owned())
    }

    /// Seconds by which its clock is ahead.
    fn ahead(&mut self) -> Result<i64> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        Ok(self.ask("TIME")?.parse::<i64>()? - now as i64)
    }

    fn number(&mut self, question: &str) -> Result<i64> {
        Ok(self.ask(question)?.parse()?)
    }
}

vm_test!(keys_of_redis_expire_by_the_skewed_clock, limit = 150);
fn keys_of_redis_expire_by_the_skewed_clock() -> Result<()> {
    const KEEP: i64 = 600;
    let close = |seconds: i64, expected: i64| (seconds - expected).abs() <= 30;
    let target = Cgroup::new()?;
    let mut redis = command("/usr/bin/redis-server")?;
    redis.args(["--port", "0", "--unixsocket", "/tmp/redis.sock"]);
    redis.args(["--save", "", "--appendonly", "no"]);
    let _server = Program::of(redis).start(Place::host().in_cgroup(&target))?;
    let socket = outside("/tmp/redis.sock");
    let mut redis = eventually("Redis", START, || Redis::connect(&socket))?;
    redis.ask(&format!("SET before x EX {KEEP}"))?;
    ensure!(close(redis.ahead()?, 0) && close(redis.number("TTL before")?, KEEP));

    let mut host = Host::open()?;
    host.arm(clock_fault("c", &target, moved(HOUR, &[REALTIME])))?;
    eventually("the key expires", NOTICE, || {
        let value = redis.ask("GET before")?;
        ensure!(value == "nil", "it is {value}");
        Ok(())
    })?;
    ensure!(close(redis.ahead()?, HOUR), "{}", redis.ahead()?);
    redis.ask(&format!("SET during x EX {KEEP}"))?;
    let left = redis.number("TTL during")?;
    ensure!(close(left, KEEP), "a new key lives for {left} s");

    host.recover("c")?;
    eventually("its clock is right", NOTICE, || {
        let ahead = redis.ahead()?;
        ensure!(close(ahead, 0), "{ahead} s ahead");
        Ok(())
    })?;
    // It was told a moment that is now an hour and ten minutes away.
    let left = redis.number("TTL during")?;
    ensure!(close(left, KEEP + HOUR), "it lives for {left} s");
    redis.ask(&format!("SET after x EX {KEEP}"))?;
    let left = redis.number("TTL after")?;
    ensure!(close(left, KEEP), "a key of today lives for {left} s");
    Ok(())
}

fn client(args: &[&str]) -> Result<Program> {
    let mut command = command("/usr/bin/etcdctl")?;
    command.env("ETCDCTL_API", "3").args(args);
    Ok(Program::of(command))
}

/// What `etcdctl` prints.
fn etcdctl(args: &[&str]) -> Result<String> {
    Ok(client(args)?.succeed()?.stdout)
}

/// A lease of so many seconds with a key of this name; its id.
fn lease(seconds: i64, key: &str) -> Result<String> {
    let granted = etcdctl(&["lease", "grant", &seconds.to_string()])?;
    let id = granted.split(' ').nth(1).context("no id")?.to_owned();
    etcdctl(&["put", key, "x", &format!("--lease={id}")])?;
    Ok(id)
}

/// Seconds that are left of a lease.
fn left(id: &str) -> Result<i64> {
    let text = etcdctl(&["lease", "timetolive", id])?;
    let left = text
        .rsplit_once("remaining(")
        .and_then(|(_, rest)| rest.split_once("s)"));
    Ok(left.with_context(|| text.clone())?.0.parse()?)
}

/// A running `etcdctl watch`, which sees what happens to keys that start with `prefix`.
fn watch(prefix: &str) -> Result<Running> {
    let watch = client(&["watch", "--prefix", prefix])?.start(Place::host())?;
    eventually("a watch", START, || {
        etcdctl(&["put", &format!("{prefix}watched"), "x"])?;
        ensure!(!watch.stdout().is_empty(), "it sees nothing");
        Ok(())
    })?;
    Ok(watch)
}

vm_test!(
    leases_of_etcd_outlast_a_skewed_wall_clock_and_expire_with_all_clocks,
    limit = 240,
    once
);
fn leases_of_etcd_outlast_a_skewed_wall_clock_and_expire_with_all_clocks() -> Result<()> {
    const SHORT: i64 = 30;
    let target = Cgroup::new()?;
    let mut etcd = command("/usr/bin/etcd")?;
    etcd.args(["--data-dir", "/tmp/etcd", "--logger", "zap"])
        .args(["--log-level", "error"]);
    // Its defaults are names, which nobody resolves here.
    for option in ["--listen-client-urls", "--advertise-client-urls"] {
        etcd.args([option, "http://127.0.0.1:2379"]);
    }
    for option in ["--listen-peer-urls", "--initial-advertise-peer-urls"] {
        etcd.args([option, "http://127.0.0.1:2380"]);
    }
    etcd.args(["--initial-cluster", "default=http://127.0.0.1:2380"]);
    let _server = Program::of(etcd).start(Place::host().in_cgroup(&target))?;
    eventually("etcd", START, || etcdctl(&["put", "x", "x"]))?;
    let long = lease(600, "lease/long")?;
    let watch = watch("lease/")?;
    let gone = |keys: usize| {
        let seen = watch.stdout();
        let deleted = seen.lines().filter(|line| *line == "DELETE").count();
        ensure!(
            deleted == keys,
            "{deleted} of {keys} keys are gone:\n{seen}"
        );
        Ok(())
    };

    let mut host = Host::open()?;
    host.arm(clock_fault("wall", &target, moved(HOUR, &[REALTIME])))?;
    std::thread::sleep(Duration::from_secs(3));
    gone(0).context("a lease has followed the wall clock")?;
    ensure!(left(&long)? > 500, "a lease is shorter by the wall clock");
    host.recover("wall")?;

    lease(SHORT, "lease/short")?;
    // etcd 3.4 looks at the wall clock to learn which lease may have expired, and at the monotonic one
    // to see whether it has.
    let both = moved(SHORT, &[REALTIME, MONOTONIC]);
    host.arm(clock_fault("all", &target, both))?;
    eventually("the lease expires", NOTICE, || gone(1))?;
    ensure!(left(&long)? > 400, "the other one has as well");
    host.recover("all")?;
    // Timers that it has set meanwhile are late by as much: no longer, and not for ever.
    let id = lease(SHORT, "lease/again")?;
    let limit = NOTICE + Duration::from_secs(2 * SHORT as u64);
    let what = format!("lease {id} of after the fault expires");
    eventually(&what, limit, || gone(2))
}

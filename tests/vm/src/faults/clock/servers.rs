//! What a skewed clock does to servers that people run: keys that expire, and leases that are watched.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};

use super::{HOUR, MONOTONIC, REALTIME, seconds};
use crate::cgroup::Cgroup;
use crate::node::{Host, clock_fault};
use crate::process::Place;
use crate::runtimes::{command, outside};
use crate::vm_test;
use crate::wait::eventually;

/// A server starts within this time.
const START: Duration = Duration::from_secs(60);

/// A server sees within this time that something has expired: both look ten times a second or less.
const NOTICE: Duration = Duration::from_secs(20);

/// A server of the disk. Killed on drop.
struct Server(Child);

impl Server {
    fn start(place: Place<'_>, mut command: Command) -> Result<Server> {
        command.stdin(Stdio::null()).stdout(Stdio::null());
        place.apply(&mut command)?;
        let child = command.spawn();
        Ok(Server(
            child.with_context(|| format!("failed to start {command:?}"))?,
        ))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already; nobody could be told here anyway.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

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
    let _server = Server::start(Place::host().in_cgroup(&target), redis)?;
    let socket = outside("/tmp/redis.sock");
    let mut redis = eventually("Redis", START, || Redis::connect(&socket))?;
    redis.ask(&format!("SET before x EX {KEEP}"))?;
    ensure!(close(redis.ahead()?, 0) && close(redis.number("TTL before")?, KEEP));

    let mut host = Host::open()?;
    host.arm(clock_fault("c", &target, seconds(HOUR, &[REALTIME])))?;
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

/// What `etcdctl` prints.
fn etcdctl(args: &[&str]) -> Result<String> {
    let output = client(args)?.output().context("failed to start etcdctl")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "etcdctl {args:?}: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(text)
}

fn client(args: &[&str]) -> Result<Command> {
    let mut command = command("/usr/bin/etcdctl")?;
    command.env("ETCDCTL_API", "3").args(args);
    Ok(command)
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

/// The lines of `etcdctl watch`, from now on.
fn watch(prefix: &str) -> Result<(Server, Receiver<String>)> {
    let mut child = client(&["watch", "--prefix", prefix])?
        .stdout(Stdio::piped())
        .spawn()
        .context("failed to start etcdctl")?;
    let stdout = child.stdout.take().context("no standard output")?;
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    let watcher = Server(child);
    eventually("a watch", START, || {
        etcdctl(&["put", &format!("{prefix}watched"), "x"])?;
        ensure!(lines.try_recv().is_ok(), "it sees nothing");
        Ok(())
    })?;
    Ok((watcher, lines))
}

vm_test!(
    leases_of_etcd_outlast_a_skewed_wall_clock_and_expire_with_all_clocks,
    limit = 240
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
    let _server = Server::start(Place::host().in_cgroup(&target), etcd)?;
    eventually("etcd", START, || etcdctl(&["put", "x", "x"]))?;
    let long = lease(600, "lease/long")?;
    let (_watcher, lines) = watch("lease/")?;
    let gone = |limit: Duration| -> Result<bool> {
        loop {
            match lines.recv_timeout(limit) {
                Ok(line) if line == "DELETE" => return Ok(true),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => return Ok(false),
                Err(RecvTimeoutError::Disconnected) => bail!("the watch has ended"),
            }
        }
    };

    let mut host = Host::open()?;
    host.arm(clock_fault("wall", &target, seconds(HOUR, &[REALTIME])))?;
    ensure!(
        !gone(Duration::from_secs(3))? && left(&long)? > 500,
        "a lease has followed the wall clock"
    );
    host.recover("wall")?;

    lease(SHORT, "lease/short")?;
    // etcd 3.4 looks at the wall clock to learn which lease may have expired, and at the monotonic one
    // to see whether it has.
    let both = seconds(SHORT, &[REALTIME, MONOTONIC]);
    host.arm(clock_fault("all", &target, both))?;
    ensure!(gone(NOTICE)?, "the lease has not expired");
    ensure!(left(&long)? > 400, "the other one has as well");
    host.recover("all")?;
    // Timers that it has set meanwhile are late by as much: no longer, and not for ever.
    let id = lease(SHORT, "lease/again")?;
    let limit = NOTICE + Duration::from_secs(2 * SHORT as u64);
    ensure!(
        gone(limit)?,
        "lease {id} of after the fault does not expire"
    );
    Ok(())
}

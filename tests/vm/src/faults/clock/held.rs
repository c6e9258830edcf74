//! Programs that somebody else holds, as a debugger does, when the fault on their clocks ends.

use std::fs;
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use chaos_agent::node::{Node, Options, Owner};
use chaos_planner::fault::Fault;
use chaos_planner::observed::Phase;
use nix::sys::ptrace;
use nix::unistd::Pid;

use super::ahead;
use super::running::is_original;
use crate::cgroup::Cgroup;
use crate::node::{lasting, nothing_is_pinned};
use crate::process::{Place, Process, role};
use crate::vm_test;
use crate::wait::eventually;

const WAITER: &str = "two-threads";
crate::vm_role!(WAITER, wait);

/// Does nothing, in two threads.
fn wait(_: &str) -> Result<()> {
    std::thread::spawn(|| {
        loop {
            std::thread::park();
        }
    });
    role::ready()?;
    role::wait_for_end();
    Ok(())
}

/// Has a thread of a program as strace has it, until it is let go.
struct Tracer {
    end: Sender<()>,
    thread: JoinHandle<()>,
}

impl Tracer {
    fn of(thread: Pid) -> Result<Tracer> {
        let (end, ended) = channel();
        let (tell, told) = channel();
        let thread = std::thread::spawn(move || {
            let seized = ptrace::seize(thread, ptrace::Options::empty());
            let _ = tell.send(seized);
            // The kernel lets go what a thread holds when that ends.
            let _ = ended.recv();
        });
        told.recv()?.context("failed to trace the target")?;
        Ok(Tracer { end, thread })
    }

    fn let_go(self) -> Result<()> {
        drop(self.end);
        let ended = self.thread.join();
        ended.map_err(|_| anyhow::anyhow!("the tracer panicked"))
    }
}

/// A thread of it that is not its first.
fn second_thread(process: &Process<()>) -> Result<Pid> {
    let first = process.pid().to_string();
    let threads = fs::read_dir(Path::new("/proc").join(&first).join("task"))?;
    let names = threads.flatten().map(|thread| thread.file_name());
    let mut others = names.filter(|name| *name != *first);
    let other = others.next().context("it has one thread")?;
    let number = other.to_str().and_then(|name| name.parse().ok());
    Ok(Pid::from_raw(number.context("no number")?))
}

fn want(node: &mut Node, faults: Vec<Fault>) {
    node.set_desired(Owner("test".into()), faults);
    node.reconcile();
}

/// As the agent's thread does.
fn run_for(node: &mut Node, time: Duration) {
    let end = Instant::now() + time;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        sleep(node.reconcile().min(left).min(Duration::from_millis(100)));
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The fault reaches its deadline.
    Deadline,
    /// The same, and another agent comes.
    Successor,
    /// The fault is wanted no more.
    Recovery,
}

vm_test!(
    bytes_that_a_tracer_keeps_from_us_are_put_back_when_it_has_gone,
    limit = 150,
    once
);
fn bytes_that_a_tracer_keeps_from_us_are_put_back_when_it_has_gone() -> Result<()> {
    for end in [End::Deadline, End::Successor, End::Recovery] {
        kept(end).with_context(|| format!("{end:?}"))?;
    }
    Ok(())
}

fn kept(end: End) -> Result<()> {
    let second = Duration::from_secs(1);
    let target = Cgroup::new()?;
    let waiter: Process<()> = Place::host().in_cgroup(&target).spawn(WAITER, &())?;
    let mut node = Node::open(Options::default())?;
    let time = match end {
        End::Recovery => 60 * second,
        End::Deadline | End::Successor => 2 * second,
    };
    want(&mut node, vec![lasting(ahead(&target), time)]);
    ensure!(!is_original(&waiter)?, "its vDSO has not been changed");
    let tracer = Tracer::of(second_thread(&waiter)?)?;
    let phases = |node: &mut Node| -> Vec<(Phase, String)> {
        let seen = node.observed(None).into_iter();
        seen.map(|seen| (seen.phase, seen.reason)).collect()
    };
    if end != End::Recovery {
        run_for(&mut node, time + second);
        let seen = phases(&mut node);
        ensure!(seen == [(Phase::Expired, String::new())], "{seen:?}");
    }
    want(&mut node, Vec::new());
    run_for(&mut node, 3 * second);
    let seen = phases(&mut node);
    if end == End::Recovery {
        let waits = |(phase, reason): &(Phase, String)| {
            *phase == Phase::Recovering && reason.contains("vDSO")
        };
        ensure!(seen.len() == 1 && waits(&seen[0]), "{seen:?}");
    } else {
        // Nobody asks for it any more, and it acts no more: what is left is the agent's own.
        ensure!(seen.is_empty(), "{seen:?}");
    }
    if end == End::Successor {
        drop(node);
        node = Node::open(Options::default())?;
    }
    run_for(&mut node, second);
    ensure!(!is_original(&waiter)?, "there is nothing to put back");
    tracer.let_go()?;
    eventually("the original vDSO", 10 * second, || {
        node.reconcile();
        ensure!(is_original(&waiter)?, "it is still changed");
        Ok(())
    })?;
    eventually("the end of the fault", 10 * second, || {
        node.reconcile();
        let seen = phases(&mut node);
        ensure!(seen.is_empty(), "{seen:?}");
        Ok(())
    })?;
    node.purge()?;
    nothing_is_pinned()
}

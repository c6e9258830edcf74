//! A node that is short of CPU: faults begin and end in time all the same.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::process::Place;
use crate::program::Program;
use crate::vm_test;

const PATIENCE: Duration = Duration::from_secs(20);

/// `SCHED_RR`, include/uapi/linux/sched.h
const ROUND_ROBIN: u32 = 2;

vm_test!(a_daemon_is_ahead_of_ordinary_programs, limit = 60, once);
fn a_daemon_is_ahead_of_ordinary_programs() -> Result<()> {
    let mut daemon = Program::agent(["run", "--node-name", "vm"]).start(Place::host())?;
    daemon.wait_for("ready", PATIENCE)?;
    let mut threads = 0;
    for thread in fs::read_dir(format!("/proc/{}/task", daemon.pid()))? {
        let stat = fs::read_to_string(thread?.path().join("stat"))?;
        ensure!(policy(&stat)? == ROUND_ROBIN, "{stat}");
        threads += 1;
    }
    ensure!(threads > 2, "{threads} threads: where is the node's?");
    Ok(())
}

/// Field 41, of which the first two are a number and a name that may have spaces (proc_pid_stat(5)).
fn policy(stat: &str) -> Result<u32> {
    let (_, rest) = stat.rsplit_once(')').context("no name in stat")?;
    let field = rest.split_whitespace().nth(41 - 3);
    Ok(field.context("stat is short")?.parse()?)
}

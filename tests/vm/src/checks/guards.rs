//! Guards take with them all that they made, and processes are where they were put.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::cgroup::Cgroup;
use crate::netns::{DEVICE, Pair};
use crate::process::Place;
use crate::udp::Echo;
use crate::vm_test;
use crate::wait::eventually;

vm_test!(a_process_is_in_its_cgroup_before_it_opens_a_socket);
fn a_process_is_in_its_cgroup_before_it_opens_a_socket() -> Result<()> {
    let cgroup = Cgroup::new()?;
    let echo = Echo::start(Place::host().in_cgroup(&cgroup))?;
    ensure!(
        cgroup.pids()? == [echo.pid()],
        "{:?} and not {}",
        cgroup.pids()?,
        echo.pid()
    );
    Ok(())
}

vm_test!(a_dropped_cgroup_takes_its_processes_and_children_with_it);
fn a_dropped_cgroup_takes_its_processes_and_children_with_it() -> Result<()> {
    let cgroup = Cgroup::new()?;
    let path = cgroup.path().to_owned();
    let child = cgroup.child()?;
    ensure!(child.id()? != cgroup.id()?, "two cgroups, one id");
    let echo = Echo::start(Place::host().in_cgroup(&child))?;
    cgroup.remove()?;
    ensure!(!path.exists(), "{} is still there", path.display());
    // Killed; the guard of the process has not collected it yet. It leaves its cgroup before it is a zombie.
    eventually("its process has exited", Duration::from_secs(5), || {
        let state = fs::read_to_string(format!("/proc/{}/stat", echo.pid()))?;
        ensure!(state.contains(") Z "), "{state:?}");
        Ok(())
    })
}

vm_test!(a_pair_has_one_device_on_each_side_and_nothing_in_the_host);
fn a_pair_has_one_device_on_each_side_and_nothing_in_the_host() -> Result<()> {
    let before = fs::read_dir("/sys/class/net")?.count();
    let pair = Pair::new()?;
    for side in [&pair.a, &pair.b] {
        ensure!(side.devices()? == [DEVICE, "lo"], "{:?}", side.devices()?);
        let qdiscs = side.qdiscs()?;
        ensure!(
            qdiscs.iter().all(|q| q.ends_with("noqueue 0:")),
            "{qdiscs:?}"
        );
    }
    ensure!(
        fs::read_dir("/sys/class/net")?.count() == before,
        "a device was left in the host"
    );
    Ok(())
}

vm_test!(a_dropped_process_is_gone);
fn a_dropped_process_is_gone() -> Result<()> {
    let echo = Echo::start(Place::host())?;
    let process = format!("/proc/{}", echo.pid());
    ensure!(fs::exists(&process)?, "{process} is not there");
    drop(echo);
    ensure!(!fs::exists(&process)?, "{process} is still there");
    Ok(())
}

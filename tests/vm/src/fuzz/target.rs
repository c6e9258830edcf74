//! The target: this process. The socket of BPF_PROG_TEST_RUN is made for the process that asks, and has its
//! cgroup; what comes in is for the sockets that it has opened.

use std::fs;
use std::net::{Ipv6Addr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::packets::PORT;
use crate::cgroup;

/// Two cgroups, one in the other, in which this process is while this lives, and what it listens on.
pub(super) struct Inside {
    root: PathBuf,
    before: PathBuf,
    /// Path, depth and id of each.
    cgroups: [(PathBuf, u32, u64); 2],
    _sockets: (UdpSocket, TcpListener),
}

impl Inside {
    /// In the network namespace that this thread is in.
    pub(super) fn new() -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts").context("failed to list mounts")?;
        let root = mounts.lines().find_map(|line| {
            let mut words = line.split(' ');
            let (_, at, kind) = (words.next()?, words.next()?, words.next()?);
            (kind == "cgroup2").then(|| PathBuf::from(at))
        });
        let root = root.context("cgroup2 is not mounted anywhere")?;
        let own = fs::read_to_string("/proc/self/cgroup").context("failed to read its cgroup")?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::/"));
        let before = root.join(own.context("this process is in no cgroup2")?);
        let outer = root.join(format!("{}fuzz-{}", cgroup::PREFIX, std::process::id()));
        let inner = outer.join("inner");
        fs::create_dir_all(&inner)
            .with_context(|| format!("failed to make {}", inner.display()))?;
        let (outer_id, inner_id) = (cgroup::id(&outer)?, cgroup::id(&inner)?);
        move_to(&inner)?;
        // Also for IPv4: sockets belong to the cgroup that they are opened in.
        let any = (Ipv6Addr::UNSPECIFIED, PORT);
        Ok(Self {
            root,
            before,
            cgroups: [(outer, 1, outer_id), (inner, 2, inner_id)],
            _sockets: (UdpSocket::bind(any)?, TcpListener::bind(any)?),
        })
    }

    /// Id and depth of each.
    pub(super) fn cgroups(&self) -> [(u64, u32); 2] {
        self.cgroups.each_ref().map(|(_, depth, id)| (*id, *depth))
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        // Where that fails the cgroups stay, which a machine that runs tests finds.
        if move_to(&self.before)
            .or_else(|_| move_to(&self.root))
            .is_ok()
        {
            for (path, ..) in self.cgroups.iter().rev() {
                drop(fs::remove_dir(path));
            }
        }
    }
}

fn move_to(cgroup: &Path) -> Result<()> {
    fs::write(cgroup.join("cgroup.procs"), "0")
        .with_context(|| format!("failed to move this process into {}", cgroup.display()))
}

//! `packet-fuzz PACKETS SEED`: the packet program against its model on this machine's kernel. Needs
//! root; works in a mount namespace of its own.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use vm_tests::fuzz;
use vm_tests::registry::note;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut number = |name: &str| -> Result<u64> {
        let text = arguments
            .next()
            .with_context(|| format!("{name} is missing"))?;
        text.parse()
            .with_context(|| format!("{name}: {text}: must be a number"))
    };
    let (packets, seed) = (number("PACKETS")?, number("SEED")?);
    let bpffs = Path::new("/sys/fs/bpf");
    unshare(CloneFlags::CLONE_NEWNS)
        .context("failed to leave the mount namespace: are you root?")?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .context("failed to make mounts private")?;
    mount(Some("bpf"), bpffs, Some("bpf"), MsFlags::empty(), none)
        .context("failed to mount a bpffs: does this kernel have BPF?")?;
    let start = Instant::now();
    let mut told = 0;
    let tried = fuzz::run(bpffs, packets, seed, |tried| {
        if tried.packets / 100_000 > told {
            told = tried.packets / 100_000;
            note(format!("{} packets, {} lost", tried.packets, tried.lost));
        }
    })?;
    note(format!(
        "seed {seed}: {} packets got the verdict of the model ({} lost, {} passed), and {} sets of \
         rules counted as it did; {} were no packets to this kernel; {:.1} s",
        tried.packets,
        tried.lost,
        tried.packets - tried.lost,
        tried.rounds,
        tried.refused,
        start.elapsed().as_secs_f64()
    ));
    Ok(())
}

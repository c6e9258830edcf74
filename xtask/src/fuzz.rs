//! `cargo xtask fuzz`: random packets through the packet program on this machine's kernel, against
//! the model in `tests/vm/src/fuzz/`. A VM test runs a small part of it on each kernel.

use std::{
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};

use crate::{ebpf, setup::rust, step};

#[derive(clap::Args, Debug)]
pub(crate) struct Options {
    /// How many packets
    #[arg(long, default_value_t = 1_000_000)]
    packets: u64,
    /// Where the random numbers begin; the time without one
    #[arg(long)]
    seed: Option<u64>,
}

/// Builds the fuzzer and runs it as root of this machine.
///
/// # Errors
/// If this is not root or the kernel has no BPF, and with the first packet that got another verdict
/// than the model's.
pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    rust::ensure()?;
    let env = ebpf::cargo_env()?;
    step::step("packet-fuzz", |step| {
        let mut build = rust::cargo();
        build.current_dir(root);
        build.args(["build", "--package", "vm-tests", "--bin", "packet-fuzz"]);
        step.run(build.envs(env))
    })?;
    let seed = options.seed.unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        now.map_or(1, |time| time.as_secs())
    });
    let status = std::process::Command::new(root.join("target/debug/packet-fuzz"))
        .args([options.packets.to_string(), seed.to_string()])
        .status()
        .context("failed to start packet-fuzz")?;
    ensure!(
        status.success(),
        "packet-fuzz failed; see it again by `cargo xtask fuzz --packets {} --seed {seed}`. It needs \
         root and a kernel with BPF; without these, `cargo xtask vm --only packets` runs it in a \
         virtual machine",
        options.packets
    );
    Ok(())
}

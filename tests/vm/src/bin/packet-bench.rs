//! `packet-bench PAIRS`: what packets pay in the packet programs, on this machine's kernel. Needs root;
//! works in a mount namespace of its own. Figures go to stdout, for `cargo xtask bench`.

use std::io::Write;

use anyhow::{Context, Result};
use vm_tests::bench::packets::{Effort, measure};
use vm_tests::bench::pin_to_this_cpu;
use vm_tests::figures::FEWEST_PAIRS;
use vm_tests::programs::private_bpffs;

fn main() -> Result<()> {
    let pairs = std::env::args().nth(1).context("PAIRS is missing")?;
    let pairs: usize = pairs
        .parse()
        .with_context(|| format!("PAIRS: {pairs}: must be a number"))?;
    let effort = if pairs < FEWEST_PAIRS {
        Effort {
            pairs,
            packets: 10_000,
            losses: 20,
        }
    } else {
        Effort {
            pairs,
            packets: 200_000,
            losses: 200,
        }
    };
    let bpffs = private_bpffs()?;
    pin_to_this_cpu()?;
    measure(bpffs, effort, |figure| {
        writeln!(std::io::stdout().lock(), "{}", figure.line()).context("nobody listens")
    })
}

//! `packet-fuzz PACKETS SEED`: the packet program against its model on this machine's kernel. Needs
//! root; works in a mount namespace of its own.

use std::time::Instant;

use anyhow::{Context, Result};
use vm_tests::fuzz;
use vm_tests::programs::private_bpffs;
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
    let bpffs = private_bpffs()?;
    let start = Instant::now();
    let mut told = 0;
    fuzz::lies_are_noticed(bpffs, seed)?;
    note("a wrong model is noticed");
    let tried = fuzz::run(bpffs, packets, seed, None, |tried| {
        if tried.packets / 100_000 > told {
            told = tried.packets / 100_000;
            note(format!("{tried:?}"));
        }
    })?;
    note(format!(
        "seed {seed}: {} packets fared as in the model ({} lost, {} denied, {} by the detour, {} passed; {} were for a cgroup's socket), and {} \
         sets of rules counted as it did (shapers dropped {}, the budget {}, {} failed); {} were no \
         packets to this kernel; {:.1} s",
        tried.packets,
        tried.lost,
        tried.denied,
        tried.detoured,
        tried.packets - tried.lost - tried.denied - tried.detoured,
        tried.received,
        tried.rounds,
        tried.overflowed,
        tried.over_budget,
        tried.failed,
        tried.refused,
        start.elapsed().as_secs_f64()
    ));
    Ok(())
}

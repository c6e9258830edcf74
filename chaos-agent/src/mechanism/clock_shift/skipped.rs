//! Calls that the kernel kept from our programs. A kernel that interrupts its own work
//! (CONFIG_PREEMPT, CONFIG_PREEMPT_LAZY) can take the CPU from a call while our program looks at it,
//! and calls that others make on that CPU meanwhile are not shown to the same program
//! (`__bpf_prog_enter_recur`, kernel/bpf/trampoline.c). They see the right time; all that is known of
//! them is how many there were.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::{ProgramFd, loaded_programs};

use crate::kernel::links;

/// The programs that are attached: the kernel counts at them, and not at the bodies that they call.
#[derive(Default)]
pub struct Dispatchers(Vec<ProgramFd>);

impl Dispatchers {
    /// Those of the links that are pinned below `pins`, a predecessor's too. None where the
    /// kernel does not let us ask: without CAP_SYS_ADMIN.
    pub fn of_links(pins: &Path) -> Self {
        let ids: BTreeSet<u32> = pinned(pins)
            .into_iter()
            .filter_map(|pin| {
                let link = FdLink::from(PinnedLink::from_pin(pin).ok()?);
                Some(link.info().ok()?.program_id())
            })
            .collect();
        let attached = loaded_programs()
            .flatten()
            .filter(|program| ids.contains(&program.id()));
        Self(attached.filter_map(|program| program.fd().ok()).collect())
    }

    /// How many calls they were not shown, since they were loaded; 0 where the kernel does not say
    /// (before Linux 5.12).
    pub fn skipped(&self) -> u64 {
        let of_one = |program: &ProgramFd| {
            let info = format!("/proc/self/fdinfo/{}", program.as_fd().as_raw_fd());
            count(&fs::read_to_string(info).ok()?)
        };
        self.0.iter().filter_map(of_one).sum()
    }
}

/// The links of dispatchers that are attached where clocks are read.
pub fn pinned(pins: &Path) -> Vec<PathBuf> {
    links::pinned(pins, "clock_shift_")
}

/// From what the kernel says of a program's descriptor (`bpf_prog_show_fdinfo`, kernel/bpf/syscall.c).
fn count(fdinfo: &str) -> Option<u64> {
    let line = |line: &str| line.strip_prefix("recursion_misses:")?.trim().parse().ok();
    fdinfo.lines().find_map(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_found_among_the_rest() {
        let text = "prog_id:\t7\nrun_cnt:\t3\nrecursion_misses:\t12\nverified_insns:\t9\n";
        assert_eq!(count(text), Some(12));
        assert_eq!(count("prog_id:\t7\n"), None);
    }
}

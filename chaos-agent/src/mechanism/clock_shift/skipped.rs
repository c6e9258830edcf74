//! Calls that the kernel kept from our programs. A kernel that interrupts its own work
//! (CONFIG_PREEMPT, CONFIG_PREEMPT_LAZY) can take the CPU from a call while our program looks at it,
//! and calls that others make on that CPU meanwhile are not shown to the same program
//! (`__bpf_prog_enter_recur`, kernel/bpf/trampoline.c). They see the right time; all that is known of
//! them is how many there were.

use std::fs;
use std::os::fd::{AsFd, AsRawFd};

use aya::programs::loaded_programs;

/// What the names of our programs begin with; the kernel keeps 15 bytes of them.
const NAME: &[u8] = b"clock_shift_";

/// How many on this node, since the programs were loaded; 0 where the kernel does not say (before
/// Linux 5.12).
pub fn skipped() -> u64 {
    let ours = loaded_programs()
        .flatten()
        .filter(|program| program.name().starts_with(NAME));
    ours.filter_map(|program| {
        let fd = program.fd().ok()?;
        let info = format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd());
        count(&fs::read_to_string(info).ok()?)
    })
    .sum()
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

//! `CONTROL`: words of a node that each program reads before anything else, but for the one that it reads
//! before these, `ARMED`: not zero while there is any rule in `RULES`. That is a map of one element, so that
//! an idle node pays a single load per packet.
//!
//! A word never changes its index: an agent reads [`HALTED`] of other layouts.

/// Index into `CONTROL`: not zero after `chaos-agent panic`. No rule acts, whatever `RULES` says,
/// until `chaos-agent panic --resume`.
pub const HALTED: u32 = 1;

/// Index into `CONTROL`: which generation of the programs acts, a count of agents that have taken the
/// node over. Written once for each of them: that store is the upgrade. The programs of epoch n are
/// in element n % [`GENERATIONS`] of the program arrays.
pub const EPOCH: u32 = 2;

/// Length of a program array: the generation that acts, and one that comes or goes.
pub const GENERATIONS: u32 = 2;

/// Index into `CONTROL`: number of rules in `CLOCK_RULES`; what `ARMED` is to packets, this is to
/// system calls that read a clock.
pub const CLOCKS: u32 = 3;

/// Length of `CONTROL`.
pub const WORDS: u32 = 8;

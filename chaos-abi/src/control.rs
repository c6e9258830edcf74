//! `CONTROL`: words of a node that each program reads before anything else.

/// Index into `CONTROL`: number of rules in `RULES`. Zero ends every program at once, so that an
/// idle node pays one array look-up per packet.
pub const ARMED: u32 = 0;

/// Index into `CONTROL`: not zero after `chaos-agent panic`. No rule acts, whatever `RULES` says,
/// until `chaos-agent panic --resume`.
pub const HALTED: u32 = 1;

/// Length of `CONTROL`.
pub const WORDS: u32 = 8;

//! Types that the BPF programs and the agent share, and the arithmetic that both must agree on.
//!
//! Everything here is `repr(C)`, made of integers, without padding (`bytemuck::Pod` refuses the
//! rest at compile time) and read by two compilers. A change of any layout or meaning raises
//! [`ABI`]: the number is part of the path that maps are pinned under, so that an agent never
//! reads the maps of another layout. What programs hand each other with a packet (`skb->cb`) counts
//! as layout, too: a packet that waits in a detour over an upgrade comes out to the next generation.
#![no_std]
#![forbid(unsafe_code)]

pub mod clock;
pub mod control;
pub mod counters;
pub mod late;
pub mod network;
pub mod pace;
pub mod sample;
pub mod verdict;
pub mod wait;

/// Version of every layout in this crate; part of the pin path.
pub const ABI: u32 = 9;

/// Length of `RULES`: the most rules that one mechanism family holds on a node.
pub const MAX_RULES: u32 = 16_384;

/// The rule that an agent tries new programs with before they act; no fault's.
pub const CANARY_RULE: u32 = MAX_RULES - 1;

/// The most rules that one target can have at a time; the kernel's loop is bounded by it.
pub const RULES_PER_TARGET: usize = 16;

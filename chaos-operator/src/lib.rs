//! The operator: selects pods, tells agents what is desired, writes status.
//!
//! Decisions are pure and apart from what acts: `selector`, `draw`, `window`, `assign` and `phase`
//! read plain values; `experiment` puts them together into one step; `reconcile` alone carries a
//! step out, and `agents` alone talks to nodes.
#![forbid(unsafe_code)]

pub mod assign;
pub mod cluster;
pub mod draw;
#[cfg(test)]
mod fixtures;
pub mod kind;
pub mod selector;
pub mod window;

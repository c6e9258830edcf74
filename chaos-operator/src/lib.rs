//! The operator: selects pods, tells agents what is desired, writes status.
//!
//! Decisions are pure and apart from what acts: `selector`, `draw`, `records`, `window`, `assign`
//! and `phase` read plain values; `experiment` puts them together into one look; `reconcile` alone
//! carries out what a look decides, and `agents` alone talks to nodes.
#![forbid(unsafe_code)]

pub mod agents;
pub mod assign;
pub mod certificates;
pub mod cluster;
pub mod draw;
pub mod events;
pub mod experiment;
#[cfg(test)]
mod fixtures;
pub mod health;
pub mod kept;
pub mod kind;
pub mod leader;
pub mod metrics;
pub mod names;
pub mod notice;
pub mod phase;
pub mod reconcile;
pub mod records;
pub mod resolver;
pub mod run;
pub mod selector;
pub mod view;
pub mod watch;
pub mod window;

//! The agent of a node: daemon and command line. The library is what both are made of; it is one
//! only so that tests can reach it.

pub mod args;
pub mod cli;
pub mod executor;
pub mod health;
pub mod identity;
pub mod journal;
pub mod kernel;
pub mod local;
pub mod mechanism;
pub mod metrics;
pub mod node;
pub mod node_thread;
pub mod priority;
pub mod server;
pub mod target;
pub mod wire;

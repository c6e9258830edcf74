//! The Chaos Mesh API as objects of a cluster: each kind as a Kubernetes resource ([`kinds`]), and the
//! CustomResourceDefinitions that tell an API server of them ([`definitions`]). Pure.
//!
//! Specs, statuses and their rules are in `chaos-api`, which the agent has as well; it needs nothing
//! of Kubernetes. The binary of this crate writes what is generated from both.
#![forbid(unsafe_code)]

pub mod definitions;
pub mod kinds;

pub use kinds::{Experiment, NetworkChaos, TimeChaos};

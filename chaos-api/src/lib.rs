//! The Chaos Mesh API (`chaos-mesh.org/v1alpha1`): types, defaults, validation, files. Pure.
//!
//! Nothing in here reads a clock, a file or the network; whoever calls passes the time and the text.
//! Nor does it know Kubernetes: kinds as objects of a cluster are in `chaos-crd`. What is *done* with an
//! experiment lives in the operator and the agent.
#![forbid(unsafe_code)]

pub mod clock;
pub mod cron;
pub mod default;
pub mod documents;
pub mod duration;
pub mod external;
#[cfg(test)]
mod fixtures;
pub mod percent;
pub mod rate;
pub mod rounds;
pub mod shaping;
pub mod v1alpha1;
pub mod validate;

//! `agent.proto` and the code generated from it. No logic.
#![forbid(unsafe_code)]

/// Messages and services of `proto/agent.proto`, which has the documentation.
#[expect(
    missing_docs,
    unused_qualifications,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
pub mod agent {
    tonic::include_proto!("faultline.agent.v1");
}

//! `proto/*.proto` and the code generated from them, by `cargo xtask codegen`. No logic.
#![forbid(unsafe_code)]

/// Messages and services of `proto/agent.proto`, which has the documentation.
pub use faultline::agent::v1 as agent;
/// Messages and services of `proto/local.proto`, which has the documentation.
pub use faultline::local::v1 as local;

/// One module per part of a package's name: generated code refers to other packages by `super`.
#[expect(
    missing_docs,
    unused_qualifications,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
mod faultline {
    pub(crate) mod agent {
        pub mod v1 {
            include!("../generated/faultline.agent.v1.rs");
        }
    }
    pub(crate) mod local {
        pub mod v1 {
            include!("../generated/faultline.local.v1.rs");
        }
    }
}

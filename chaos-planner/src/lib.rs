//! Pure decisions of a node: which mechanism carries out a fault, and which steps lead from what
//! the kernel holds to what is desired. No I/O, no clocks, no aya, tokio, kube or tonic.
#![forbid(unsafe_code)]

pub mod capabilities;
pub mod choose;
pub mod clock;
pub mod fault;
pub mod observed;
pub mod plan;

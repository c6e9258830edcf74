//! One file of tests per fault, named as the fault's page in `docs/faults/`. `node.rs` opens the
//! node as the agent does.

mod deadline;
mod delay;
mod loss;
mod node;
mod partition;

//! One file of tests per fault, named as the fault's page in `docs/faults/`.

mod bandwidth;
mod clock;
mod corrupt;
mod delay;
mod duplicate;
mod jitter;
mod loss;
mod partition;
mod rate;
mod reorder;

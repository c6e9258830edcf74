//! One file of tests per fault, named as the fault's page in `docs/faults/`.

mod delay;
mod loss;
mod partition;

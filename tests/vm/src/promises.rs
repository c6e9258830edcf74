//! What holds for every fault, whatever it does: one file of tests per promise.

mod beside;
mod budget;
mod busy;
mod cycles;
mod deadline;
mod detour;
mod figures;
mod host;
mod idle;
mod ingress;
mod kernel;
mod lost;
mod packets;
mod peers;
mod receivers;
mod together;
mod upgrade;
mod upstream;

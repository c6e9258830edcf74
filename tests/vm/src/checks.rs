//! Tests of what every other test stands on.

mod guards;
mod kernel;
mod peers;

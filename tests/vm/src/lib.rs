//! Tests of the mechanisms on bare kernels, and the harness that they run in.
//!
//! A virtual machine boots with nothing but [`runner`], `chaos-agent` and a few kernel modules. The
//! runner starts every registered test as a process of its own, with a time limit, and afterwards
//! kills what it left, reads the kernel log, and tells the host the outcome. A line in the log that
//! looks like a bug or a warning of the kernel fails the test. `cargo xtask vm --kernel 6.12
//! --only loss` runs those whose names contain `loss`; `cargo xtask test` runs all on all kernels.
//!
//! # Writing a test
//!
//! Tests of a fault live in `src/faults/<fault>.rs`, those of a promise that holds for all faults in
//! `src/promises/<promise>.rs`. A test is a function whose name is a sentence;
//! [`vm_test!`] registers it, there is no list. It passes by returning `Ok`, fails by any error or
//! panic, and is skipped by returning [`registry::skip`] with the reason why this kernel cannot.
//! What it measured goes to the console by [`registry::note`].
//!
//! ```no_run
//! use anyhow::{Result, ensure};
//! use vm_tests::{cgroup::Cgroup, clock::Stamp, netns::Pair, process::Place};
//! use vm_tests::{program::{Program, Scratch}, udp::{Echo, Prober, Probing}, vm_test};
//!
//! vm_test!(a_delayed_packet_arrives_late, limit = 30);
//! fn a_delayed_packet_arrives_late() -> Result<()> {
//!     let pair = Pair::new()?;                     // namespaces a and b, eth0 in each, IPv4 and IPv6
//!     let cgroup = Cgroup::new()?;                 // the target
//!     let echo = Echo::start(Place::host().in_namespace(&pair.b))?;
//!     let target = Place::host().in_namespace(&pair.a).in_cgroup(&cgroup);
//!     let prober = Prober::start(target, &Probing::of(Pair::B4).per_second(100))?;
//!
//!     let files = Scratch::new()?;
//!     let document = files.file("delay.yaml", "kind: NetworkChaos …")?;
//!     let path = cgroup.path().display().to_string();
//!     Program::agent(["apply", "-f", &document.display().to_string(), "--cgroup", &path]).succeed()?;
//!     let armed = Stamp::now();
//!     std::thread::sleep(std::time::Duration::from_secs(1));
//!
//!     let during = prober.stop()?.after(armed);
//!     ensure!(during.lost() == 0, "lost {:?}", during.lost_seqs());
//!     let median = during.there().median()?;       // one way: all processes share one clock
//!     ensure!(median.as_millis() >= 50, "only {median:?}");
//!     Ok(())
//! }
//! ```
//!
//! - **Guards.** [`netns::Pair`], [`cgroup::Cgroup`], [`process::Process`], [`program::Running`] and
//!   [`program::Scratch`] undo themselves on drop. After a panic or a hang the runner does it: between
//!   tests it kills everybody, removes cgroups, pins below /sys/fs/bpf/faultline and /run/faultline,
//!   and loads modules that were unloaded. A cgroup that a passed test has left makes it fail.
//! - **Places.** A socket belongs to the cgroup that its process was in when it was opened, so a
//!   child is moved by [`process::Place`] before it runs.
//! - **Times** are [`clock::Stamp`]s of CLOCK_BOOTTIME, the clock of the deadlines in the kernel.
//! - **Waiting** is [`wait::eventually`]; sleep only to let a measured time pass.
//! - **Emulation** is slow and jerky: assert medians and counts, and upper bounds with room.
//! - **A role of your own** is a function registered with [`vm_role!`] and started by
//!   [`process::Place::spawn`]; `udp.rs` has two.
//!
//! Not here: booting, packing and judging runs (`xtask/src/vmtest.rs`). [`report`], [`figures`] and
//! [`kernels`] are for both sides; everything else needs the feature `guest`.

pub mod figures;
pub mod kernels;
pub mod report;

#[cfg(feature = "guest")]
pub mod bench;
#[cfg(feature = "guest")]
pub mod cgroup;
#[cfg(feature = "guest")]
mod checks;
#[cfg(feature = "guest")]
pub mod clock;
#[cfg(feature = "guest")]
mod command_line;
#[cfg(feature = "guest")]
mod demo;
#[cfg(feature = "guest")]
mod faults;
#[cfg(feature = "guest")]
pub mod foreign;
#[cfg(feature = "guest")]
pub mod fuzz;
#[cfg(feature = "guest")]
pub mod kmsg;
#[cfg(feature = "guest")]
pub mod machine;
#[cfg(feature = "guest")]
pub mod netns;
#[cfg(feature = "guest")]
mod node;
#[cfg(feature = "guest")]
pub mod process;
#[cfg(feature = "guest")]
pub mod program;
#[cfg(feature = "guest")]
pub mod programs;
#[cfg(feature = "guest")]
mod promises;
#[cfg(feature = "guest")]
pub mod registry;
#[cfg(feature = "guest")]
pub mod runner;
#[cfg(feature = "guest")]
pub mod runtimes;
#[cfg(feature = "guest")]
mod sabotage;
#[cfg(feature = "guest")]
pub mod stats;
#[cfg(feature = "guest")]
pub mod tcp;
#[cfg(feature = "guest")]
mod traced;
#[cfg(feature = "guest")]
pub mod udp;
#[cfg(feature = "guest")]
pub mod wait;

#[cfg(feature = "guest")]
#[doc(hidden)]
pub use inventory;

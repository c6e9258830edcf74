//! Everything that talks to the kernel: BPF objects and their pinned maps, network namespaces,
//! netlink, clocks. No decisions: these are in chaos-planner, and when to act is in `node.rs`.

pub mod btf;
pub mod clock;
pub mod generation;
pub mod links;
pub mod lockdown;
pub mod maps;
pub mod netlink;
pub mod netns;
pub mod objects;

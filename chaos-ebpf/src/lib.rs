//! What all kernel programs share.
#![cfg_attr(target_arch = "bpf", no_std)]

//! Writes the code of `proto/*.proto`: `cargo xtask codegen` runs it. protox is a protobuf compiler in Rust: no
//! `protoc` has to be installed.
#![forbid(unsafe_code)]

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let root = std::env::args_os().nth(1).map(PathBuf::from);
    let root = root.ok_or("usage: generate DIRECTORY, which stands for the repository")?;
    let proto = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto");
    let sources = ["agent.proto", "local.proto"].map(|file| proto.join(file));
    let descriptors = protox::compile(sources, [proto])?;
    let generated = root.join("chaos-proto/generated");
    fs::create_dir_all(&generated)?;
    tonic_prost_build::configure()
        .out_dir(generated)
        .compile_fds(descriptors)?;
    Ok(())
}

//! Generates the messages and services of `proto/*.proto`. protox is a protobuf compiler in
//! Rust: no `protoc` has to be installed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let descriptors = protox::compile(["proto/agent.proto", "proto/local.proto"], ["proto"])?;
    println!("cargo::rerun-if-changed=proto");
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}

//! Writes `generated/` from `proto/*.proto`: `cargo xtask codegen`. protox is a protobuf compiler in Rust: no
//! `protoc` has to be installed.
#![forbid(unsafe_code)]

use std::error::Error;
use std::fs;
use std::path::Path;

/// With `--check` nothing is written, and a file that is not what it would become is an error.
fn main() -> Result<(), Box<dyn Error>> {
    let check = std::env::args().any(|argument| argument == "--check");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let proto = root.join("proto");
    let sources = ["agent.proto", "local.proto"].map(|file| proto.join(file));
    let descriptors = protox::compile(sources, [proto])?;
    let fresh = std::env::temp_dir().join(format!("chaos-proto-{}", std::process::id()));
    fs::create_dir_all(&fresh)?;
    let written = tonic_prost_build::configure()
        .out_dir(&fresh)
        .compile_fds(descriptors);
    let done = written
        .map_err(Box::from)
        .and_then(|()| compare_or_copy(&fresh, &root.join("generated"), check));
    fs::remove_dir_all(&fresh)?;
    done
}

fn compare_or_copy(fresh: &Path, kept: &Path, check: bool) -> Result<(), Box<dyn Error>> {
    for entry in fs::read_dir(fresh)? {
        let path = entry?.path();
        let text = fs::read(&path)?;
        let kept = kept.join(path.file_name().unwrap_or_default());
        if fs::read(&kept).ok().as_ref() == Some(&text) {
            continue;
        }
        if check {
            let kept = kept.display();
            let advice = "run `cargo xtask codegen` and commit the result";
            return Err(format!("out of date: {kept}; {advice}").into());
        }
        fs::write(kept, text)?;
    }
    Ok(())
}

//! Builds the BPF objects of `chaos-ebpf` and hands them to `src/kernel/objects.rs`.
//!
//! bpf-linker is named by `CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER`; `cargo xtask` sets it. Without
//! it the objects are empty, so that check, clippy and unit tests work in a fresh clone with
//! nothing installed; an agent that was built so says it when it opens the node.

use std::env;
use std::error::Error;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use object::build::elf::{Builder, SectionData};
use object::elf::SHT_STRTAB;

const TARGET: &str = "bpfel-unknown-none";
const LINKER: &str = "CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-env-changed={LINKER}");
    for input in [
        "../chaos-ebpf/src",
        "../chaos-ebpf/Cargo.toml",
        "../chaos-abi/src",
    ] {
        println!("cargo::rerun-if-changed={input}");
    }
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let mechanisms = mechanisms(Path::new("../chaos-ebpf/src/bin"))?;
    let objects = match env::var_os(LINKER) {
        Some(linker) => Some(build(&linker)?),
        None => None,
    };
    for mechanism in mechanisms {
        let to = out.join(format!("{mechanism}.o"));
        match &objects {
            Some(built) => {
                let object = fs::read(built.join(&mechanism))?;
                fs::write(to, stripped(&object, NO_TYPES.contains(&&*mechanism))?)?;
            }
            None => fs::write(to, [])?,
        }
    }
    Ok(())
}

/// One object for each file in `src/bin`.
fn mechanisms(bins: &Path) -> Result<Vec<String>, Box<dyn Error>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(bins)? {
        let path = entry?.path();
        if path.extension() == Some(OsStr::new("rs")) {
            names.extend(path.file_stem().and_then(OsStr::to_str).map(str::to_owned));
        }
    }
    Ok(names)
}

/// Objects whose programs need no BTF, which is for global functions and for arguments by their types. The
/// kernel checks all of it anew whenever an object is loaded.
const NO_TYPES: [&str; 1] = ["tcx"];

/// The object without what is for debuggers: BTF is all that the kernel wants, if that, and the agent reads
/// an object while a fault waits to begin. bpf-linker leaves both or neither.
fn stripped(object: &[u8], types_too: bool) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut unwanted = vec![b".debug_".as_slice(), b".rel.debug_"];
    if types_too {
        unwanted.extend([b".BTF".as_slice(), b".rel.BTF"]);
    }
    let mut object = Builder::read(object)?;
    for section in &mut object.sections {
        let name = section.name.as_slice();
        section.delete = unwanted.iter().any(|prefix| name.starts_with(prefix));
    }
    object.delete_orphans();
    // LLVM has the names of sections and those of symbols in one table; this writer has two.
    let names = object.sections.add();
    names.name = b".shstrtab".as_slice().into();
    names.sh_type = SHT_STRTAB;
    names.sh_addralign = 1;
    names.data = SectionData::SectionString;
    let mut bytes = Vec::new();
    object.write(&mut bytes)?;
    Ok(bytes)
}

/// Runs cargo with a target directory of its own: this build holds the lock of the other one.
fn build(linker: &OsStr) -> Result<PathBuf, Box<dyn Error>> {
    let target_dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/ebpf");
    let sysroot = Command::new(env::var_os("RUSTC").unwrap_or("rustc".into()))
        .args(["--print", "sysroot"])
        .output()?;
    let library = PathBuf::from(String::from_utf8(sysroot.stdout)?.trim()).join("lib");
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo
        .args([
            "build",
            "--package",
            "chaos-ebpf",
            "--bins",
            "--release",
            "--target",
            TARGET,
        ])
        .args(["-Z", "build-std=core", "--target-dir"])
        .arg(&target_dir)
        .env("RUSTC_BOOTSTRAP", "1") // for -Z build-std and the atomics intrinsic only
        // bpf-linker is linked with the LLVM of this very rustc.
        .env("LD_LIBRARY_PATH", library)
        .env(LINKER, linker)
        // BTF needs debug info; v3 has atomics that return a value (Linux 5.12).
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            "-Cdebuginfo=2\x1f-Clink-arg=--btf\x1f-Ctarget-cpu=v3",
        );
    // What the outer cargo says of the agent's build does not hold for the kernel's.
    for inherited in [
        "RUSTFLAGS",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTC_WRAPPER",
        "CARGO_BUILD_TARGET",
    ] {
        cargo.env_remove(inherited);
    }
    let status = cargo.status()?;
    if !status.success() {
        return Err(format!("failed to build the BPF objects: {cargo:?}: {status}").into());
    }
    Ok(target_dir.join(TARGET).join("release"))
}

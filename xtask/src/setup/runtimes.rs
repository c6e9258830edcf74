//! The second disk of a test VM: language runtimes and servers of Debian 12, and the small programs of
//! `tests/vm/runtimes` for them. Tests run what is on it in a chroot.
//!
//! No package is installed and none of their scripts runs: nobody needs to be root for this.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use super::{debs::Release, disk};
use crate::{cache, step::Step};

const RECIPE: &str = "2";
const SUITE: &str = "bookworm";

/// What runs in the tests, and javac, for the program of one.
const PACKAGES: [&str; 6] = [
    "etcd-client",
    "etcd-server",
    "nodejs",
    "openjdk-17-jdk-headless",
    "python3-minimal",
    "redis-server",
];

/// Where Debian has its Java.
const JAVA: &str = "usr/lib/jvm/java-17-openjdk-amd64";

/// Large, and used by no test.
const LEFT_OUT: [&str; 4] = [
    "usr/lib/jvm/java-17-openjdk-amd64/jmods",
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
];

/// The programs, by the names of their sources.
const PROGRAMS: [(&str, &str); 5] = [
    (
        "clock.c",
        include_str!("../../../tests/vm/runtimes/clock.c"),
    ),
    (
        "clock.go",
        include_str!("../../../tests/vm/runtimes/clock.go"),
    ),
    (
        "clock.js",
        include_str!("../../../tests/vm/runtimes/clock.js"),
    ),
    (
        "clock.py",
        include_str!("../../../tests/vm/runtimes/clock.py"),
    ),
    (
        "Clock.java",
        include_str!("../../../tests/vm/runtimes/Clock.java"),
    ),
];

/// Returns the disk, an ext4 image to be mounted read-only; makes it first if it is not in the cache.
///
/// # Errors
/// If Debian's packages cannot be fetched, or a program does not compile.
pub(crate) fn ensure() -> Result<PathBuf> {
    let packages = PACKAGES.join(" ");
    let inputs = [RECIPE, SUITE, &packages];
    let packages = cache::ensure("runtimes of the tests", "runtimes", &inputs, unpack)?;
    let mut inputs = inputs.to_vec();
    inputs.extend(PROGRAMS.map(|(_, source)| source));
    let entry = cache::ensure(
        "disk of the runtimes",
        "runtimes-disk",
        &inputs,
        |step, entry| assemble(step, &packages.join("root"), entry),
    )?;
    Ok(entry.join("disk.ext4"))
}

fn unpack(step: &Step, entry: &Path) -> Result<()> {
    let apt = entry.join("apt");
    let release = Release::open(step, SUITE, &apt)?;
    let root = entry.join("root");
    release.unpack(step, &release.closure(&PACKAGES)?, &root)?;
    cache::remove(&apt)?;
    for path in LEFT_OUT {
        cache::remove(&root.join(path))?;
    }
    // Java's settings are links to /etc, which is not there for the javac that runs here.
    relative(&root, &root.join(JAVA))
}

/// Makes links below `directory` that start at the root of the tree `root` relative.
fn relative(root: &Path, directory: &Path) -> Result<()> {
    let list = fs::read_dir(directory);
    for entry in list.with_context(|| format!("failed to list {}", directory.display()))? {
        let path = entry.context("failed to list a directory")?.path();
        if path.is_symlink() {
            let target = fs::read_link(&path).context("failed to read a link")?;
            if let Ok(inside) = target.strip_prefix("/") {
                let up = directory.strip_prefix(root)?.components().map(|_| "..");
                let target = up.collect::<PathBuf>().join(inside);
                fs::remove_file(&path)
                    .and_then(|()| symlink(target, &path))
                    .with_context(|| format!("failed to change {}", path.display()))?;
            }
        } else if path.is_dir() {
            relative(root, &path)?;
        }
    }
    Ok(())
}

fn assemble(step: &Step, packages: &Path, entry: &Path) -> Result<()> {
    let root = entry.join("root");
    step.progress("copying the packages");
    // Links: the files are read only.
    step.run(Command::new("cp").args(["-al"]).arg(packages).arg(&root))?;
    let programs = root.join("programs");
    for directory in ["dev", "proc", "tmp", "programs"] {
        fs::create_dir_all(root.join(directory)).context("failed to make a directory")?;
    }
    for (name, source) in PROGRAMS {
        fs::write(programs.join(name), source)
            .with_context(|| format!("failed to write {name}"))?;
    }
    step.progress("compiling the programs");
    let java = root.join(JAVA);
    build(step, &java.join("bin/javac"), &programs)?;
    // The package's script would do this. Without it Java starts at half the speed.
    let archive = java.join("lib/server/classes.jsa");
    step.run(
        Command::new(java.join("bin/java"))
            .arg("-Xshare:dump")
            .arg(format!("-XX:SharedArchiveFile={}", archive.display())),
    )?;
    step.progress("making the disk");
    disk::ext4(step, &root, &entry.join("disk.ext4"), "2G")?;
    cache::remove(&root)
}

fn build(step: &Step, javac: &Path, programs: &Path) -> Result<()> {
    let cc = |options: &[&str]| {
        let mut cc = Command::new("cc");
        cc.args(["-O2", "-Wall", "-Werror", "clock.c"])
            .args(options);
        cc
    };
    let mut go = Command::new("go");
    go.args(["build", "-o", "clock-go", "clock.go"])
        .env("CGO_ENABLED", "0");
    let mut java = Command::new(javac);
    java.arg("Clock.java");
    for mut command in [
        cc(&["-o", "clock-glibc"]),
        cc(&["-static", "-o", "clock-glibc-static"]),
        go,
        java,
    ] {
        step.run(command.current_dir(programs))?;
    }
    Ok(())
}

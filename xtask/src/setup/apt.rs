//! Debian packages that the tools of this repository need on this machine.

use std::{path::Path, process::Command};

use anyhow::{Context, Result, bail};

use crate::step;

/// What is needed, and what for.
const PACKAGES: [(&str, &str); 11] = [
    ("build-essential", "linking Rust programs"),
    ("ca-certificates", "downloads by rustup, cargo and Go"),
    (
        "debian-archive-keyring",
        "verifying the packages of other Debian releases",
    ),
    ("e2fsprogs", "mke2fs: disk images"),
    ("git", "the hash of what is built"),
    (
        "iproute2",
        "ip: the operator's tests have a network of their own",
    ),
    ("kmod", "depmod: the modules of the test kernels"),
    ("mmdebstrap", "the root file system of the cluster's nodes"),
    ("musl-tools", "static binaries"),
    ("openssh-client", "cargo xtask ssh"),
    ("xz-utils", "kernel modules are compressed"),
];

/// Installs what is missing.
///
/// # Errors
/// If something is missing and cannot be installed from here: the error says what to do.
pub(crate) fn ensure() -> Result<()> {
    let os = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    if !Path::new("/usr/bin/apt-get").exists() || !os_is_debian(&os) {
        bail!(
            "this needs Debian 12 or newer on x86-64 (this system is {:?}); on a Debian machine, or in \
             a container of one, run as root:\n  {}",
            os_name(&os),
            install_line(&names())
        );
    }
    let missing = missing_packages()?;
    if missing.is_empty() {
        return Ok(());
    }
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "Debian packages are missing and only root can install them; run:\n  {}",
            install_line(&missing)
        );
    }
    step::step("Debian packages", |step| {
        // A source of somebody else's that cannot be reached is no reason to give up.
        let updated = step.run(Command::new("apt-get").args(["-q", "update"]));
        let installed = step.run(
            Command::new("apt-get")
                .args(["-q", "-y", "--no-install-recommends", "install"])
                .args(&missing)
                .env("DEBIAN_FRONTEND", "noninteractive"),
        );
        installed.or_else(|error| updated.and(Err(error)))
    })
    .with_context(|| format!("install them by hand:\n  {}", install_line(&missing)))
}

fn names() -> Vec<&'static str> {
    PACKAGES.iter().map(|(name, _)| *name).collect()
}

fn missing_packages() -> Result<Vec<&'static str>> {
    // dpkg-query exits with 1 if one of them is unknown, and still prints the others.
    let output = Command::new("dpkg-query")
        .args(["--show", "--showformat", "${Package} ${db:Status-Status}\n"])
        .args(names())
        .output()
        .context("failed to start dpkg-query")?;
    Ok(missing(&String::from_utf8_lossy(&output.stdout)))
}

fn missing(listed: &str) -> Vec<&'static str> {
    names()
        .into_iter()
        .filter(|name| {
            !listed
                .lines()
                .any(|line| line == format!("{name} installed"))
        })
        .collect()
}

fn install_line(packages: &[&str]) -> String {
    format!(
        "apt-get update && apt-get install --no-install-recommends {}",
        packages.join(" ")
    )
}

fn os_is_debian(os_release: &str) -> bool {
    os_release.lines().any(|line| {
        line == "ID=debian"
            || line
                .strip_prefix("ID_LIKE=")
                .is_some_and(|like| like.contains("debian"))
    })
}

fn os_name(os_release: &str) -> String {
    os_release
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))
        .map_or_else(
            || "unknown".to_owned(),
            |name| name.trim_matches('"').to_owned(),
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removed_package_counts_as_missing() {
        let listed: String = names()
            .into_iter()
            .map(|name| {
                format!(
                    "{name} {}\n",
                    if name == "git" {
                        "config-files"
                    } else {
                        "installed"
                    }
                )
            })
            .collect();
        assert_eq!(missing(&listed), ["git"]);
        assert_eq!(missing("").len(), PACKAGES.len());
    }

    #[test]
    fn debian_and_its_children_are_told_from_others() {
        assert!(os_is_debian("ID=debian\n"));
        assert!(os_is_debian("ID=ubuntu\nID_LIKE=debian\n"));
        assert!(!os_is_debian("ID=fedora\n"));
        assert_eq!(os_name("PRETTY_NAME=\"Fedora 42\"\n"), "Fedora 42");
    }
}

//! Downloads Debian packages of any release without touching this system's package management: an
//! apt of our own, with its lists and caches in our directory. Signatures are checked as always.
//!
//! The mirror is the one that this machine uses. Not here: what is installed on this machine
//! (`setup/apt.rs`).

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::step::{self, Step};

/// An apt that knows one release and nothing of this machine.
#[derive(Debug)]
pub(crate) struct Release {
    config: PathBuf,
    directory: PathBuf,
}

impl Release {
    /// Fetches the package lists of `release` (`bookworm`, `trixie`, `sid`) into `directory`.
    ///
    /// # Errors
    /// If this machine has no Debian mirror, or the lists cannot be fetched or verified.
    pub(crate) fn open(step: &Step, release: &str, directory: &Path) -> Result<Self> {
        for part in [
            "etc/preferences.d",
            "etc/apt.conf.d",
            "state/lists/partial",
            "cache/archives/partial",
        ] {
            fs::create_dir_all(directory.join(part)).context("failed to make apt's directories")?;
        }
        let dir = std::path::absolute(directory).context("no current directory")?;
        // A mirror that is frozen at some day (a snapshot, a cache) has expired Release files for
        // sid; they are signed all the same, and nothing here is exposed to a network.
        let source = format!(
            "deb [check-valid-until=no signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {} {release} main\n",
            mirror()?
        );
        let settings = format!(
            "Dir::Etc \"{dir}/etc\";\nDir::Etc::sourcelist \"{dir}/etc/sources.list\";\n\
             Dir::Etc::sourceparts \"/dev/null\";\nDir::Etc::preferences \"/dev/null\";\n\
             Dir::State \"{dir}/state\";\nDir::State::status \"{dir}/state/status\";\n\
             Dir::Cache \"{dir}/cache\";\nAPT::Architecture \"amd64\";\nAPT::Architectures {{ \"amd64\"; }};\n\
             APT::Sandbox::User \"\";\nAcquire::Languages \"none\";\nAcquire::Retries \"3\";\n",
            dir = dir.display()
        );
        let config = dir.join("apt.conf");
        fs::write(dir.join("etc/sources.list"), source)
            .and_then(|()| fs::write(dir.join("state/status"), ""))
            .and_then(|()| fs::write(&config, settings))
            .context("failed to write apt's configuration")?;
        let release = Self {
            config,
            directory: dir,
        };
        step.run(release.tool("apt-get").args(["-q", "update"]))?;
        Ok(release)
    }

    /// The packages that `package` depends on, without alternatives.
    ///
    /// # Errors
    /// If apt does not know the package.
    pub(crate) fn depends(&self, package: &str) -> Result<Vec<String>> {
        let text = step::output(
            self.tool("apt-cache")
                .args(["depends", "--important", package]),
        )?;
        Ok(parse_depends(&text))
    }

    /// `packages` and all that they depend on, recommendations left out.
    ///
    /// # Errors
    /// If apt does not know one of them, or they cannot be installed together.
    pub(crate) fn closure(&self, packages: &[&str]) -> Result<Vec<String>> {
        let text = step::output(
            self.tool("apt-get")
                .args(["-q", "--simulate", "--no-install-recommends", "install"])
                .args(packages),
        )?;
        Ok(parse_installed(&text))
    }

    /// Downloads `packages` and unpacks them into `root`, running none of their scripts.
    ///
    /// # Errors
    /// If a package does not exist, cannot be fetched or verified, or cannot be unpacked.
    pub(crate) fn unpack(&self, step: &Step, packages: &[String], root: &Path) -> Result<()> {
        let archives = self.directory.join("debs");
        fs::create_dir_all(&archives).context("failed to make a directory for packages")?;
        step.progress(format!("downloading {}", packages.join(" ")));
        step.run(
            self.tool("apt-get")
                .args(["-q", "download"])
                .args(packages)
                .current_dir(&archives),
        )?;
        let mut unpacked = 0;
        for entry in fs::read_dir(&archives).context("failed to list the packages")? {
            let archive = entry.context("failed to list the packages")?.path();
            step.progress(format!("unpacking {}", archive.display()));
            step.run(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(root))?;
            fs::remove_file(&archive).context("failed to remove an unpacked package")?;
            unpacked += 1;
        }
        ensure!(
            unpacked == packages.len(),
            "asked for {packages:?}, got {unpacked} packages"
        );
        Ok(())
    }

    fn tool(&self, name: &str) -> Command {
        let mut command = Command::new(name);
        command.env("APT_CONFIG", &self.config);
        command
    }
}

/// The Debian mirror of this machine, as its apt sources name it.
///
/// # Errors
/// If its sources name none.
pub(crate) fn mirror() -> Result<String> {
    let text = step::output(Command::new("apt-get").args([
        "indextargets",
        "--no-release-info",
        "--format",
        "$(CREATED_BY) $(COMPONENT) $(REPO_URI) $(RELEASE)",
    ]))?;
    parse_mirror(&text).context(
        "no Debian mirror in this machine's apt sources: add Debian's bookworm main to /etc/apt/sources.list",
    )
}

/// The first repository with a component `main` that is not the security archive (which has no
/// other releases) nor somebody else's.
fn parse_mirror(targets: &str) -> Option<String> {
    targets.lines().find_map(|line| {
        let [created_by, component, uri, release] = line
            .split_whitespace()
            .collect::<Vec<_>>()
            .try_into()
            .ok()?;
        let debian = [
            "bookworm",
            "trixie",
            "stable",
            "oldstable",
            "sid",
            "testing",
        ]
        .contains(&release);
        (created_by == "Packages" && component == "main" && debian)
            .then(|| uri.trim_end_matches('/').to_owned())
    })
}

fn parse_depends(text: &str) -> Vec<String> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .map(|package| package.trim().to_owned())
        .filter(|package| !package.starts_with('<'))
        .collect()
}

/// What apt says that it would install, one `Inst package (version …)` each.
fn parse_installed(text: &str) -> Vec<String> {
    text.lines()
        .filter_map(|line| line.strip_prefix("Inst ")?.split(' ').next())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_debians_own_archive() {
        let targets = "Packages main http://mirror.example/debian-security/ bookworm-security\n\
                       Packages main http://other.example/repo/ cloud-sdk-bookworm\n\
                       Translations main http://mirror.example/debian/ bookworm\n\
                       Packages main http://mirror.example/debian/ bookworm\n";
        assert_eq!(
            parse_mirror(targets).as_deref(),
            Some("http://mirror.example/debian")
        );
        assert_eq!(parse_mirror(""), None);
    }

    #[test]
    fn depends_leaves_out_alternatives_virtual_packages_and_other_relations() {
        let text = "linux-image-7\n  PreDepends: linux-base\n |Depends: dracut\n  Depends: <tool>\n    dracut\n  Depends: linux-binary-7\n  Breaks: x\n";
        assert_eq!(parse_depends(text), ["linux-binary-7"]);
    }

    #[test]
    fn what_would_be_installed_is_known() {
        let text = "The following NEW packages will be installed:\n  a b\n\
                    Inst a (1.0-1 Debian:12/stable [amd64])\nInst b (2)\nConf a (1.0-1)\n";
        assert_eq!(parse_installed(text), ["a", "b"]);
    }
}

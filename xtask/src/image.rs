//! Container images without a container engine: OCI archives with one layer, made from static
//! binaries. Nodes have no registry; they import these files.
//!
//! Not here: how an image gets to a node (`cluster/node.rs`) and what runs it (`deploy/`).

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{
    ebpf,
    out::say,
    setup::rust::{self, STATIC_TARGET},
    step,
};

/// An image that this repository makes, as it is named in a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Image {
    /// `faultline/chaos-agent:dev`
    pub(crate) name: &'static str,
    /// The package, and its binary.
    package: &'static str,
    /// Where the binary is in the image; it is the entry point.
    path: &'static str,
    /// Numeric user and group of its process.
    user: &'static str,
}

/// The agent. Its pod decides on capabilities; it is root within them.
pub(crate) const AGENT: Image = Image {
    name: "faultline/chaos-agent:dev",
    package: "chaos-agent",
    path: "chaos-agent",
    user: "0:0",
};
/// The operator.
pub(crate) const OPERATOR: Image = Image {
    name: "faultline/chaos-operator:dev",
    package: "chaos-operator",
    path: "chaos-operator",
    user: "65532:65532",
};
/// The UDP peer for test pods.
pub(crate) const PROBE: Image = Image {
    name: "faultline/probe:dev",
    package: "probe",
    path: "probe",
    user: "0:0",
};
/// What holds the namespaces of every pod: the probe under another name.
pub(crate) const PAUSE: Image = Image {
    name: "faultline/pause:dev",
    package: "probe",
    path: "pause",
    user: "65535:65535",
};

/// All of them.
pub(crate) const ALL: [Image; 4] = [AGENT, OPERATOR, PROBE, PAUSE];

/// What is built together, for images and for test VMs alike. cargo builds a dependency once for each set
/// of features that the packages of one command ask for: with a set of its own for each purpose, most
/// of them would be built twice, and the agent's binary be replaced in turns.
const TOGETHER: [&str; 4] = ["chaos-agent", "chaos-operator", "probe", "vm-tests"];

/// What a bare machine runs. Built with the features of [`TOGETHER`], but without waiting for the others.
const ON_A_MACHINE: [&str; 3] = ["chaos-agent", "vm-init", "vm-runner"];

/// How binaries are compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Profile {
    /// Quick to compile: what tests and the demo run.
    Image,
    /// As it is for use, and for figures.
    Release,
}

impl Profile {
    /// That of `--release`.
    pub(crate) fn of(release: bool) -> Self {
        if release { Self::Release } else { Self::Image }
    }

    /// In the workspace's manifest, and of cargo's directory.
    fn name(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Release => "release",
        }
    }

    /// Where its static binaries are once they are built.
    pub(crate) fn directory(self, root: &Path) -> PathBuf {
        let target = root.join("target").join(STATIC_TARGET);
        target.join(self.name())
    }
}

/// Builds the binaries and the archives, and returns the archives in the order of `images`.
///
/// # Errors
/// If a binary does not build, or `target/` cannot be written.
pub(crate) fn build(root: &Path, profile: Profile, images: &[Image]) -> Result<Vec<PathBuf>> {
    let mut packages: Vec<&str> = images.iter().map(|image| image.package).collect();
    packages.sort_unstable();
    packages.dedup();
    // Who asks for one of them waits for that one only.
    let binaries = match packages[..] {
        [one] => compile(root, profile, &[one], &[])?,
        // Of the others nothing but features is wanted.
        _ => compile(root, profile, &TOGETHER, &packages)?,
    };
    let directory = root.join("target/images");
    fs::create_dir_all(&directory).context("failed to make target/images")?;
    let mut archives = Vec::new();
    for image in images {
        let binary = binaries.join(image.package);
        let content =
            fs::read(&binary).with_context(|| format!("failed to read {}", binary.display()))?;
        let archive = directory.join(format!("{}.tar", image.path));
        let temporary = archive.with_extension("tar.new");
        fs::write(&temporary, image.archive(&content)?)
            .and_then(|()| fs::rename(&temporary, &archive))
            .with_context(|| format!("failed to write {}", archive.display()))?;
        archives.push(archive);
    }
    Ok(archives)
}

/// Builds the static binaries that a bare machine runs, and returns the directory they are in.
///
/// # Errors
/// If one does not build.
pub(crate) fn for_a_machine(root: &Path, profile: Profile) -> Result<PathBuf> {
    compile(root, profile, &TOGETHER, &ON_A_MACHINE)
}

/// Builds these binaries of these packages, or all of them.
fn compile(root: &Path, profile: Profile, packages: &[&str], binaries: &[&str]) -> Result<PathBuf> {
    rust::ensure()?;
    // Only the agent has kernel programs in it; nobody else waits for their linker.
    let env = if packages.contains(&AGENT.package) {
        ebpf::cargo_env()?
    } else {
        Vec::new()
    };
    let named = if binaries.is_empty() {
        packages
    } else {
        binaries
    };
    step::step(&format!("static binaries: {}", named.join(", ")), |step| {
        let mut command = rust::cargo();
        command.current_dir(root);
        command.args(["build", "--profile", profile.name()]);
        command.args(["--target", STATIC_TARGET]);
        for package in packages {
            command.args(["--package", package]);
        }
        for binary in binaries {
            command.args(["--bin", binary]);
        }
        step.run(command.envs(env))
    })?;
    Ok(profile.directory(root))
}

/// `cargo xtask image`: builds the images of `packages`, or all, and says where they are.
///
/// # Errors
/// As [`build`], or if a package has no image.
pub(crate) fn run(root: &Path, profile: Profile, packages: &[String]) -> Result<Vec<PathBuf>> {
    for package in packages {
        ensure!(
            ALL.iter().any(|image| image.package == package),
            "{package:?} has no image; these have: {}",
            ALL.map(|image| image.package).join(", ")
        );
    }
    let chosen: Vec<Image> = ALL
        .into_iter()
        .filter(|image| packages.is_empty() || packages.iter().any(|name| name == image.package))
        .collect();
    let archives = build(root, profile, &chosen)?;
    for (image, archive) in chosen.iter().zip(&archives) {
        let size = fs::metadata(archive).map_or(0, |metadata| metadata.len());
        say!(
            "{:30} {:6.1} MB  {}",
            image.name,
            size as f64 / 1e6,
            archive.display()
        );
    }
    Ok(archives)
}

impl Image {
    /// The archive in the OCI image layout, for `ctr images import`. The same binary gives the same
    /// bytes.
    fn archive(&self, binary: &[u8]) -> Result<Vec<u8>> {
        let layer = tar([(self.path, 0o755, binary)])?;
        let config = serde_json::to_vec(&json!({
            "architecture": "amd64",
            "os": "linux",
            "config": {"Entrypoint": [format!("/{}", self.path)], "User": self.user},
            "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
        }))?;
        let descriptor = |media_type: &str, blob: &[u8]| {
            json!({
                "mediaType": format!("application/vnd.oci.image.{media_type}"),
                "digest": digest(blob),
                "size": blob.len(),
            })
        };
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("config.v1+json", &config),
            "layers": [descriptor("layer.v1.tar", &layer)],
        }))?;
        let mut entry = descriptor("manifest.v1+json", &manifest);
        if let Some(entry) = entry.as_object_mut() {
            // The name that the runtime looks for when a pod names no registry.
            let full = format!("docker.io/{}", self.name);
            entry.insert(
                "annotations".to_owned(),
                json!({"io.containerd.image.name": full}),
            );
        }
        let index = serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": [entry]}))?;
        let blobs: BTreeMap<String, &[u8]> = [&config, &manifest, &layer]
            .map(|blob| {
                (
                    format!("blobs/sha256/{}", digest(blob).replace("sha256:", "")),
                    blob.as_slice(),
                )
            })
            .into();
        let layout: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
        let head = [
            ("oci-layout", 0o644, layout),
            ("index.json", 0o644, index.as_slice()),
        ];
        tar(head.into_iter().chain(
            blobs
                .iter()
                .map(|(path, blob)| (path.as_str(), 0o644, *blob)),
        ))
    }
}

/// The digest by which a node knows the image of an archive that [`build`] made.
///
/// # Errors
/// If the archive cannot be read.
pub(crate) fn manifest_digest(archive: &Path) -> Result<String> {
    let context = || format!("failed to read {}", archive.display());
    let file = File::open(archive).with_context(context)?;
    for entry in tar::Archive::new(file).entries().with_context(context)? {
        let entry = entry.with_context(context)?;
        if entry.path().with_context(context)? == Path::new("index.json") {
            let index: Value = serde_json::from_reader(entry).with_context(context)?;
            let digest = index.pointer("/manifests/0/digest").and_then(Value::as_str);
            return digest.map(str::to_owned).with_context(context);
        }
    }
    bail!(
        "{} has no index.json: it is not an image",
        archive.display()
    )
}

/// A tar archive of files, owned by root, without times.
///
/// # Errors
/// If a path is too long.
pub(crate) fn tar<'a>(
    files: impl IntoIterator<Item = (&'a str, u32, &'a [u8])>,
) -> Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    for (path, mode, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(mode);
        header.set_mtime(0);
        archive
            .append_data(&mut header, path, content)
            .with_context(|| format!("failed to put {path} into an archive"))?;
    }
    archive.into_inner().context("failed to finish an archive")
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{hex}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_reproducible_and_every_digest_in_it_names_a_blob() {
        let archive = PROBE.archive(b"binary").unwrap();
        assert_eq!(archive, PROBE.archive(b"binary").unwrap());
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(archive.as_slice()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            let mut content = Vec::new();
            std::io::copy(&mut entry, &mut content).unwrap();
            files.insert(path, content);
        }
        let blob = |descriptor: &Value| {
            let digest = descriptor["digest"]
                .as_str()
                .unwrap()
                .replace("sha256:", "");
            let blob = &files[&format!("blobs/sha256/{digest}")];
            assert_eq!(descriptor["size"], blob.len());
            blob.clone()
        };
        let json = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
        let index = json(&files["index.json"]);
        let manifest = json(&blob(&index["manifests"][0]));
        let config = json(&blob(&manifest["config"]));
        assert_eq!(config["config"]["Entrypoint"], json!(["/probe"]));
        assert_eq!(
            config["rootfs"]["diff_ids"][0],
            digest(&blob(&manifest["layers"][0]))
        );
    }
}

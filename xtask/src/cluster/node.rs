//! A node: a VM that boots the shared disk image with a second disk that says which node it is, and
//! a third with the Kubernetes binary.
//!
//! What happens inside is in `node/init.sh`; the image is made by `setup/rootfs.rs`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};
use serde_json::json;

use super::{address, daemon::Daemon, kubeconfig, pki::Authority, pki::Identity};
use crate::{
    image::tar,
    qemu::{self, Drive, DriveFormat, Machine, Nic},
    setup::{kernels::Kernel, kube::Kube, rootfs::NodeImage},
};

const INIT: &str = include_str!("node/init.sh");
const CONTAINERD: &str = include_str!("node/containerd.toml");
const KUBELET: &str = include_str!("node/kubelet.yaml");
const KUBE_PROXY: &str = include_str!("node/kube-proxy.yaml");

/// Where the second disk is unpacked on a node.
const ON_NODE: &str = "/run/node";

/// What is the same for all nodes of a cluster.
pub(crate) struct Nodes<'a> {
    pub(crate) kube: &'a Kube,
    pub(crate) kernel: &'a Kernel,
    pub(crate) image: &'a NodeImage,
    pub(crate) authority: &'a Authority,
    pub(crate) state: &'a Path,
    /// How many there are.
    pub(crate) count: u32,
    /// Memory of each, in MiB.
    pub(crate) memory_mib: u32,
    /// Virtual CPUs of each.
    pub(crate) cpus: u32,
    /// The API server's port on this machine.
    pub(crate) api_port: u16,
    /// Container images that are there when the node is.
    pub(crate) images: &'a [PathBuf],
    /// The public key that may log in.
    pub(crate) ssh_key: &'a str,
    /// UDP ports: two for each cable, of node 1's end and of the other.
    pub(crate) cable_ports: &'a [u16],
    /// A node ends after this time in any case.
    pub(crate) time_limit: Duration,
}

impl Nodes<'_> {
    /// Starts node `number`; `forwards` are (port of this machine, port of the node).
    ///
    /// # Errors
    /// If its files cannot be made or QEMU cannot be started.
    pub(crate) fn start(&self, number: u32, forwards: Vec<(u16, u16)>) -> Result<Daemon> {
        let name = address::node_name(number);
        let directory = self.state.join(&name);
        fs::create_dir_all(&directory)
            .with_context(|| format!("failed to make {}", directory.display()))?;
        let identity_disk = directory.join("identity.tar");
        fs::write(&identity_disk, self.identity(number)?)
            .with_context(|| format!("failed to write {}", identity_disk.display()))?;

        let console = self.state.join(format!("{name}.console"));
        let mut machine = Machine::new(
            &name,
            &self.kernel.vmlinuz,
            &self.image.initrd,
            &console,
            self.time_limit,
        );
        // Nothing is worth the price of these under TCG.
        machine.append = "mitigations=off transparent_hugepage=never".to_owned();
        machine.cpus = self.cpus;
        machine.memory_mib = self.memory_mib;
        let read_only = |path: &Path| Drive {
            path: path.to_owned(),
            format: DriveFormat::Raw,
            read_only: true,
        };
        machine.drives = vec![
            qemu::overlay(&self.image.disk, &directory.join("disk.qcow2"))?,
            read_only(&identity_disk),
            read_only(&self.kube.image),
        ];
        machine.nics = vec![Nic::User { forwards }];
        machine.nics.extend(self.cables(number));
        let log = self.state.join(format!("{name}.qemu.log"));
        Daemon::start(&name, &mut machine.command()?, &log)
    }

    /// Node 1 has a cable to each other node; the others have one, to node 1.
    fn cables(&self, number: u32) -> Vec<Nic> {
        let others = if number == 1 { 2..=self.count } else { 1..=1 };
        let cable = |other: u32| {
            let index = (number.max(other) as usize - 2) * 2;
            let near = self.cable_ports.get(index).copied()?;
            let far = self.cable_ports.get(index + 1).copied()?;
            let (local, remote) = if number == 1 {
                (near, far)
            } else {
                (far, near)
            };
            Some(Nic::Cable {
                local,
                remote,
                mac: address::mac(number, other),
            })
        };
        others.filter_map(cable).collect()
    }

    /// The second disk, a tar archive: everything that makes this node this node.
    fn identity(&self, number: u32) -> Result<Vec<u8>> {
        let name = address::node_name(number);
        let server = format!("https://{}:{}", address::HOST, self.api_port);
        let (v4, v6) = (address::node_v4(number), address::node_v6(number));
        let kubelet = self.authority.issue(
            &format!("{name}-kubelet"),
            &format!("system:node:{name}"),
            Some("system:nodes"),
            &[&name, &v4, &v6],
        )?;
        let egress = self.authority.issue(
            &format!("{name}-egress"),
            "kube-egress",
            None,
            &["127.0.0.1"],
        )?;
        let proxy = self.authority.issue(
            &format!("{name}-kube-proxy"),
            "system:kube-proxy",
            None,
            &[],
        )?;
        let on_node = |file: &str| Identity {
            certificate: Path::new(ON_NODE).join(format!("{file}.crt")),
            key: Path::new(ON_NODE).join(format!("{file}.key")),
        };
        let ca = Path::new(ON_NODE).join("ca.crt");
        let text = |path: &Path| {
            fs::read_to_string(path).with_context(|| format!("failed to read {}", path.display()))
        };
        let files = [
            (
                "env",
                format!("NODE={number}\nNAME={name}\nNODES={}\n", self.count),
            ),
            ("authorized_keys", self.ssh_key.to_owned()),
            ("ca.crt", text(&self.authority.certificate())?),
            ("kubelet.crt", text(&kubelet.certificate)?),
            ("kubelet.key", text(&kubelet.key)?),
            ("egress.crt", text(&egress.certificate)?),
            ("egress.key", text(&egress.key)?),
            (
                "kubeconfig",
                kubeconfig::text(&server, &ca, &on_node("kubelet")),
            ),
            ("kube-proxy.crt", text(&proxy.certificate)?),
            ("kube-proxy.key", text(&proxy.key)?),
            (
                "kube-proxy.kubeconfig",
                kubeconfig::text(&server, &ca, &on_node("kube-proxy")),
            ),
            ("kubelet.yaml", KUBELET.to_owned()),
            (
                "kube-proxy.yaml",
                KUBE_PROXY
                    .replace("@PODS@", address::PODS)
                    .replace("@NAME@", &name),
            ),
            ("containerd.toml", CONTAINERD.to_owned()),
            ("cni.conflist", cni(number)),
        ];
        let mut images = Vec::new();
        for path in self.images {
            let content =
                fs::read(path).with_context(|| format!("failed to read {}", path.display()))?;
            let file = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            images.push((format!("images/{file}"), content));
        }
        tar([("init", 0o755, INIT.as_bytes())]
            .into_iter()
            .chain(
                files
                    .iter()
                    .map(|(path, text)| (*path, 0o600, text.as_bytes())),
            )
            .chain(
                images
                    .iter()
                    .map(|(path, content)| (path.as_str(), 0o600, content.as_slice())),
            ))
    }
}

/// Pods hang on a bridge, with an address of each family.
fn cni(number: u32) -> String {
    json!({
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [{
            "type": "bridge",
            "bridge": "cni0",
            "isDefaultGateway": true,
            "ipMasq": false,
            "hairpinMode": true,
            "ipam": {"type": "host-local", "ranges": [
                [{"subnet": address::pods_v4(number)}],
                [{"subnet": address::pods_v6(number)}],
            ]},
        }],
    })
    .to_string()
}

/// The command that runs `words` on a node, or a shell without them. Its exit code is that of the
/// command on the node.
pub(crate) fn ssh(key: &Path, port: u16, words: &[String]) -> Command {
    let mut command = Command::new("ssh");
    command
        .arg("-i")
        .arg(key)
        .args(["-p", &port.to_string()])
        // The node is new and on loopback: there is no key to know it by.
        .args([
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
        ])
        .args([
            "-o",
            "LogLevel=ERROR",
            "-o",
            "IdentitiesOnly=yes",
            "-o",
            "ConnectTimeout=10",
        ])
        .arg("root@127.0.0.1")
        .args(words);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scripts_of_a_node_are_plain_shell() {
        for script in ["src/cluster/node/init.sh", "src/setup/rootfs/stage-one.sh"] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(script);
            let status = Command::new("sh").arg("-n").arg(path).status().unwrap();
            assert!(status.success(), "{script}");
        }
    }
}

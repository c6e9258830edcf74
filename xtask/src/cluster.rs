//! A Kubernetes cluster on this machine: the control plane as processes, nodes as VMs. It goes on
//! when the command that started it ends; what there is, is remembered in `target/cluster/`.
//!
//! Not here: what runs in it (`deploy/`, the demo, the tests).

mod address;
mod clock;
mod control_plane;
mod daemon;
mod install;
mod kubeconfig;
mod node;
mod pki;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

pub(crate) use self::install::{deploy, with_faultline};

use self::{control_plane::ControlPlane, daemon::Daemon, node::Nodes, pki::Authority};
use crate::{
    cache,
    image::{self, Image, Profile},
    out::{note, say},
    setup,
    step::{self, Step},
};

/// A node network has one switch, on node 1, and QEMU has slots for so many devices.
const MAX_NODES: u32 = 9;

/// What to start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, clap::Args)]
pub(crate) struct Options {
    /// Nodes, each a VM
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_NODES)))]
    pub(crate) nodes: u32,
    /// Only the control plane: for work on the API
    #[arg(long, conflicts_with = "nodes")]
    pub(crate) no_node: bool,
    /// Memory of each node, in MiB
    #[arg(long, default_value_t = 3072, value_parser = clap::value_parser!(u32).range(1024..))]
    pub(crate) memory: u32,
    /// Virtual CPUs of each node
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=8))]
    pub(crate) cpus: u32,
    /// Binaries as they are for use and for figures: fully optimised, which takes longer to compile
    #[arg(long)]
    #[serde(default)]
    pub(crate) release: bool,
    /// Everything ends after so many minutes, whoever forgets it
    #[arg(long, default_value_t = 240, value_parser = clap::value_parser!(u64).range(1..=1440))]
    pub(crate) minutes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            nodes: 1,
            no_node: false,
            memory: 3072,
            cpus: 2,
            release: false,
            minutes: 240,
        }
    }
}

impl Options {
    fn node_count(&self) -> u32 {
        if self.no_node { 0 } else { self.nodes }
    }

    fn profile(&self) -> Profile {
        Profile::of(self.release)
    }
}

/// A cluster that was started.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Cluster {
    options: Options,
    state: PathBuf,
    /// Has kubectl.
    bin: PathBuf,
    daemons: Vec<Daemon>,
    /// Port of this machine that leads to each node's port 22, node 1 first.
    ssh_ports: Vec<u16>,
    /// Everything has been started, and was ready once.
    complete: bool,
}

/// `cargo xtask up`: starts a cluster, or says that it runs. A new cluster has `images` on its nodes
/// from the start, beside what every pod needs; importing them later takes longer. `meanwhile` is done with
/// a new one as soon as its API server answers, while the nodes start.
///
/// # Errors
/// If a part of setup fails, or the cluster does not become ready: its logs are kept then.
pub(crate) fn up(
    root: &Path,
    options: &Options,
    images: &[Image],
    meanwhile: impl FnOnce(&Cluster) -> Result<()>,
) -> Result<Cluster> {
    let state = state_directory(root);
    let _lock = lock(root)?;
    if let Some(cluster) = Cluster::read(&state)? {
        match cluster.check() {
            Ok(()) if &cluster.options == options => {
                note!("the cluster runs already: nothing to do");
                return Ok(cluster);
            }
            Ok(()) => {
                bail!("a cluster with other options runs: end it first with `cargo xtask down`")
            }
            Err(error) => note!("the cluster is broken and starts anew: {error:#}"),
        }
        cluster.stop();
    }
    cache::remove(&state)?;

    setup::apt::ensure()?;
    if !options.no_node {
        setup::rootfs::check_root()?;
    }
    // The longest part by far: everything else is done while it compiles.
    let kube = setup::kube::start(root)?;
    let machine = if options.no_node {
        None
    } else {
        let kernel = setup::kernels::ensure(setup::rootfs::KERNEL)?;
        let image = setup::rootfs::ensure(&kernel)?;
        Some((kernel, image))
    };
    let images = match machine {
        Some(_) => {
            let images = [&[image::PAUSE], images].concat();
            image::build(root, options.profile(), &images)?
        }
        None => Vec::new(),
    };
    let kube = kube.wait()?;
    fs::create_dir_all(state.join("pki"))
        .with_context(|| format!("failed to make {}", state.display()))?;

    let count = options.node_count();
    let ports = address::free_ports(6 + 3 * count as usize)?;
    let (fixed, ports) = ports.split_at(6);
    let (ssh_ports, cable_ports) = ports.split_at(count as usize);
    let &[etcd, etcd_peer, api, controllers, scheduler, egress] = fixed else {
        bail!("six ports were asked for");
    };
    let mut cluster = Cluster {
        options: options.clone(),
        state: state.clone(),
        bin: kube.bin.clone(),
        daemons: Vec::new(),
        ssh_ports: ssh_ports.to_vec(),
        complete: false,
    };
    let authority = Authority::new(&state.join("pki"))?;
    let time_limit = Duration::from_secs(options.minutes * 60);
    let started = (|| {
        if let Some((kernel, image)) = &machine {
            let nodes = Nodes {
                kube: &kube,
                kernel,
                image,
                authority: &authority,
                state: &state,
                count,
                memory_mib: options.memory,
                cpus: options.cpus,
                api_port: api,
                images: &images,
                ssh_key: &ssh_key(&state)?,
                cable_ports,
                time_limit,
            };
            for (number, &ssh_port) in (1..=count).zip(ssh_ports) {
                let mut forwards = vec![(ssh_port, address::SSH_PORT)];
                if number == 1 {
                    forwards.push((egress, address::EGRESS_PORT));
                }
                cluster.remember(nodes.start(number, forwards)?)?;
            }
        }
        let control_plane = ControlPlane {
            kube: &kube,
            authority: &authority,
            state: &state,
            ports: control_plane::Ports {
                etcd,
                etcd_peer,
                api,
                controllers,
                scheduler,
                egress: machine.as_ref().map(|_| egress),
            },
            time_limit,
        };
        control_plane.start_api(|daemon| cluster.remember(daemon))?;
        step::step("control plane ready", |step| {
            control_plane.wait(step, &cluster.daemons)
        })?;
        control_plane.start_controllers(|daemon| cluster.remember(daemon))?;
        cluster.bind_kube_proxy()?;
        meanwhile(&cluster)?;
        for number in 1..=count {
            let name = address::node_name(number);
            step::step(&format!("{name} ready"), |step| {
                cluster.wait_for_node(step, &name)
            })?;
            let behind = clock::synchronize(cluster.ssh(&name, &[])?)?;
            note!(
                "{name}: its clock was {} ms behind and is set",
                behind / 1_000_000
            );
        }
        cluster.complete = true;
        cluster.write()
    })();
    if let Err(error) = started {
        // What a person needs to find the cause stays in the state directory.
        cluster.stop();
        return Err(error.context(format!(
            "the cluster did not start; its logs are in {}",
            state.display()
        )));
    }
    Ok(cluster)
}

/// `cargo xtask down`: ends the cluster and removes all that it left. No error if there is none.
///
/// # Errors
/// If files cannot be removed.
pub(crate) fn down(root: &Path) -> Result<()> {
    let state = state_directory(root);
    let _lock = lock(root)?;
    match Cluster::read(&state)? {
        None if !state.exists() => note!("no cluster runs: nothing to do"),
        None => {}
        Some(cluster) => step::step("down", |step| {
            step.progress("ending processes");
            cluster.stop();
            Ok(())
        })?,
    }
    cache::remove(&state)
}

/// The cluster that runs.
///
/// # Errors
/// If there is none, or a part of it has ended.
pub(crate) fn open(root: &Path) -> Result<Cluster> {
    let cluster = Cluster::read(&state_directory(root))?
        .filter(|cluster| cluster.complete)
        .context("no cluster runs: start one with `cargo xtask up`")?;
    cluster.check()?;
    Ok(cluster)
}

impl Cluster {
    /// What it was asked to be.
    pub(crate) fn options(&self) -> &Options {
        &self.options
    }

    /// Its kubeconfig, with all rights.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.state.join("kubeconfig")
    }

    /// A `kubectl` that talks to it.
    pub(crate) fn kubectl(&self) -> Command {
        let mut command = Command::new(self.bin.join("kubectl"));
        command.env("KUBECONFIG", self.kubeconfig());
        // Its own cache of API resources would outlive the cluster.
        command.arg(format!(
            "--cache-dir={}",
            self.state.join("kubectl-cache").display()
        ));
        command
    }

    /// The directory that has `kubectl`, for a person's PATH.
    pub(crate) fn bin(&self) -> &Path {
        &self.bin
    }

    /// Names of its nodes.
    pub(crate) fn nodes(&self) -> Vec<String> {
        (1..=self.options.node_count())
            .map(address::node_name)
            .collect()
    }

    /// The command that runs `words` on a node (as its shell reads them), or a shell without any.
    ///
    /// # Errors
    /// If there is no such node.
    pub(crate) fn ssh(&self, node: &str, words: &[String]) -> Result<Command> {
        let nodes = self.nodes();
        let port = nodes
            .iter()
            .position(|name| name == node)
            .and_then(|index| self.ssh_ports.get(index))
            .with_context(|| format!("there is no node {node:?}; there are {nodes:?}"))?;
        Ok(node::ssh(&self.state.join("ssh-key"), *port, words))
    }

    /// Imports container images into every node that does not have them yet.
    ///
    /// # Errors
    /// If a node cannot be reached or refuses an image.
    pub(crate) fn load_images(&self, archives: &[PathBuf]) -> Result<()> {
        for node in self.nodes() {
            step::step(&format!("images to {node}"), |step| {
                let list = "ctr -n k8s.io images ls".to_owned();
                let known = step::output(&mut self.ssh(&node, &[list])?)?;
                for archive in archives {
                    if known.contains(&image::manifest_digest(archive)?) {
                        continue;
                    }
                    step.progress(archive.display().to_string());
                    let file = File::open(archive)
                        .with_context(|| format!("failed to open {}", archive.display()))?;
                    let import = "ctr -n k8s.io images import -".to_owned();
                    step::output_of(self.ssh(&node, &[import])?.stdin(file))?;
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Fails if a part of it has ended.
    ///
    /// # Errors
    /// With the end of that part's log.
    pub(crate) fn check(&self) -> Result<()> {
        ensure!(self.complete, "its start was interrupted");
        self.daemons.iter().try_for_each(Daemon::check)
    }

    /// Whether a node died of its emulation, and not of what runs on it: QEMU lets a CPU run into a
    /// breakpoint that another one has set for a moment to rewrite code (`BOOTS` in `vmtest.rs`).
    pub(crate) fn has_node_that_qemu_broke(&self) -> bool {
        self.nodes().iter().any(|name| {
            let console = fs::read(self.console(name)).unwrap_or_default();
            String::from_utf8_lossy(&console).contains("Oops: int3")
        })
    }

    fn console(&self, node: &str) -> PathBuf {
        self.state.join(format!("{node}.console"))
    }

    fn remember(&mut self, daemon: Daemon) -> Result<()> {
        self.daemons.push(daemon);
        self.write()
    }

    fn stop(&self) {
        // The API server waits for its clients to go: the others first.
        for daemon in &self.daemons {
            daemon.terminate();
        }
        for daemon in &self.daemons {
            daemon.wait(Duration::from_secs(1));
        }
    }

    /// kube-proxy reads services and nodes; the API server makes the role, an installer binds it.
    fn bind_kube_proxy(&self) -> Result<()> {
        step::output(self.kubectl().args([
            "create",
            "clusterrolebinding",
            "kube-proxy",
            "--clusterrole=system:node-proxier",
            "--user=system:kube-proxy",
        ]))
        .map(drop)
    }

    fn wait_for_node(&self, step: &Step, name: &str) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(300);
        let console = self.console(name);
        loop {
            self.daemons.iter().try_for_each(Daemon::check)?;
            let ready = Command::output(
                self.kubectl()
                    .args(["get", "node", name, "-o"])
                    .arg("jsonpath={.status.conditions[?(@.type==\"Ready\")].status}"),
            )
            .context("failed to start kubectl")?;
            if ready.stdout == b"True" {
                return Ok(());
            }
            let text = fs::read(&console).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            ensure!(
                Instant::now() < deadline,
                "{name} is not ready after 5 minutes; the end of its console:\n{}",
                text.lines()
                    .rev()
                    .take(20)
                    .collect::<Vec<_>>()
                    .into_iter()
                    .rev()
                    .collect::<Vec<_>>()
                    .join("\n")
            );
            step.progress(text.lines().last().unwrap_or_default());
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    fn read(state: &Path) -> Result<Option<Self>> {
        let path = state.join("cluster.json");
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .with_context(|| format!("failed to understand {}", path.display()))
                .map(Some),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("failed to read {}", path.display())),
        }
    }

    fn write(&self) -> Result<()> {
        let path = self.state.join("cluster.json");
        let new = self.state.join("cluster.json.new");
        fs::write(&new, serde_json::to_vec_pretty(self)?)
            .and_then(|()| fs::rename(&new, &path))
            .with_context(|| format!("failed to write {}", path.display()))
    }
}

/// Prints how to go on by hand.
pub(crate) fn describe(cluster: &Cluster) {
    say!("export KUBECONFIG={}", cluster.kubeconfig().display());
    say!("export PATH={}:$PATH", cluster.bin().display());
}

fn state_directory(root: &Path) -> PathBuf {
    root.join("target/cluster")
}

/// Two commands do not start or end a cluster at the same time.
fn lock(root: &Path) -> Result<File> {
    let target = root.join("target");
    fs::create_dir_all(&target).context("failed to make target/")?;
    let lock = File::create(target.join("cluster.lock")).context("failed to make a lock")?;
    lock.lock().context("failed to take the cluster's lock")?;
    Ok(lock)
}

/// Makes the key that opens the nodes and returns its public half.
fn ssh_key(state: &Path) -> Result<String> {
    let key = state.join("ssh-key");
    step::output(
        Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-C", "faultline", "-f"])
            .arg(&key),
    )?;
    fs::read_to_string(key.with_extension("pub")).context("failed to read the public key")
}

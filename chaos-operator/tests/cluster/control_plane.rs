//! A real etcd and a real API server in a network namespace of our own, and nothing else: no
//! kubelet, no scheduler. Pods are objects whose status the test writes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};

/// On `lo` of the namespace: an EndpointSlice may not name a loopback address.
pub(crate) const ADDRESS: &str = "10.255.0.1";
const API_PORT: u16 = 36443;
const ETCD_PORT: u16 = 36379;
const TOKEN: &str = "cluster-test-token";

/// The multi-call binary: `$FAULTLINE_KUBE`, or what `cargo xtask setup` has built.
pub(crate) fn kube_binary() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("FAULTLINE_KUBE") {
        return Some(path.into());
    }
    let cache = std::env::var_os("FAULTLINE_CACHE").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache/faultline"),
        PathBuf::from,
    );
    let entries = fs::read_dir(cache).ok()?;
    let mut found: Vec<(std::time::SystemTime, PathBuf)> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let binary = entry.path().join("bin/kube");
            let is_kube = entry.file_name().to_string_lossy().starts_with("kube-");
            (is_kube && binary.is_file())
                .then_some((entry.metadata().ok()?.modified().ok()?, binary))
        })
        .collect();
    found.sort();
    found.pop().map(|(_, binary)| binary)
}

/// Moves this thread, and all threads and processes that it starts, into a network namespace with
/// nothing but `lo`.
pub(crate) fn enter_network_namespace() -> Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
        .context("a network namespace needs root")?;
    for arguments in [
        ["link", "set", "lo", "up"].as_slice(),
        &["address", "add", &format!("{ADDRESS}/32"), "dev", "lo"],
    ] {
        let status = Command::new("ip")
            .args(arguments)
            .status()
            .context("ip (iproute2)")?;
        ensure!(status.success(), "ip {arguments:?} failed");
    }
    Ok(())
}

/// etcd and the API server; ended when dropped.
pub(crate) struct ControlPlane {
    directory: tempfile::TempDir,
    processes: Vec<Child>,
}

impl ControlPlane {
    /// Starts both and waits until the API server is ready, with our CRD in it.
    pub(crate) fn start(binary: &Path) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let mut this = Self {
            directory,
            processes: Vec::new(),
        };
        for name in ["etcd", "kube-apiserver", "kubectl"] {
            std::os::unix::fs::symlink(binary, this.path(name))?;
        }
        this.write_credentials()?;
        this.start_etcd()?;
        this.start_api_server()?;
        this.wait()?;
        this.install_crd()?;
        Ok(this)
    }

    /// As it is in the repository.
    pub(crate) fn install_crd(&self) -> Result<()> {
        let crds = concat!(env!("CARGO_MANIFEST_DIR"), "/../crds");
        self.kubectl(&["apply", "--server-side", "--force-conflicts", "-k", crds])?;
        let wait = "--for=condition=Established";
        self.kubectl(&["wait", wait, "crd", "--all", "--timeout=20s"])?;
        Ok(())
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.path("kubeconfig")
    }

    pub(crate) async fn client(&self) -> Result<Client> {
        let kubeconfig = Kubeconfig::read_from(self.kubeconfig())?;
        let options = KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await?;
        Ok(Client::try_from(config)?)
    }

    /// Runs kubectl and returns what it prints.
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new(self.path("kubectl"))
            .arg("--kubeconfig")
            .arg(self.kubeconfig())
            .args(arguments)
            .output()?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "kubectl {arguments:?}: {error}");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write_credentials(&self) -> Result<()> {
        fs::write(
            self.path("tokens.csv"),
            format!("{TOKEN},test,1,system:masters\n"),
        )?;
        // A key pair for service account tokens, which nobody uses here.
        let key = rcgen::KeyPair::generate()?;
        let certificate =
            rcgen::CertificateParams::new(vec!["sa".to_owned()])?.self_signed(&key)?;
        fs::write(self.path("sa.key"), key.serialize_pem())?;
        fs::write(self.path("sa.crt"), certificate.pem())?;
        let kubeconfig = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{ "name": "test", "cluster": {
                "server": format!("https://127.0.0.1:{API_PORT}"),
                // The server makes its own certificate; nobody else is in this namespace.
                "insecure-skip-tls-verify": true,
            }}],
            "users": [{ "name": "test", "user": { "token": TOKEN } }],
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" } }],
        });
        fs::write(self.kubeconfig(), kubeconfig.to_string())?;
        Ok(())
    }

    fn start_etcd(&mut self) -> Result<()> {
        let client = format!("http://127.0.0.1:{ETCD_PORT}");
        let peer = format!("http://127.0.0.1:{}", ETCD_PORT + 1);
        self.spawn(
            "etcd",
            &[
                format!("--data-dir={}", self.path("etcd-data").display()),
                format!("--listen-client-urls={client}"),
                format!("--advertise-client-urls={client}"),
                format!("--listen-peer-urls={peer}"),
                format!("--initial-advertise-peer-urls={peer}"),
                format!("--initial-cluster=default={peer}"),
                "--unsafe-no-fsync".to_owned(),
                "--log-level=warn".to_owned(),
            ],
        )
    }

    fn start_api_server(&mut self) -> Result<()> {
        self.spawn(
            "kube-apiserver",
            &[
                format!("--etcd-servers=http://127.0.0.1:{ETCD_PORT}"),
                "--bind-address=127.0.0.1".to_owned(),
                "--advertise-address=10.255.0.1".to_owned(),
                format!("--secure-port={API_PORT}"),
                format!("--cert-dir={}", self.path("certs").display()),
                format!("--token-auth-file={}", self.path("tokens.csv").display()),
                "--authorization-mode=RBAC".to_owned(),
                "--service-account-issuer=https://test".to_owned(),
                format!(
                    "--service-account-key-file={}",
                    self.path("sa.crt").display()
                ),
                format!(
                    "--service-account-signing-key-file={}",
                    self.path("sa.key").display()
                ),
                "--service-cluster-ip-range=10.254.0.0/24".to_owned(),
                "--disable-admission-plugins=ServiceAccount".to_owned(),
            ],
        )
    }

    fn spawn(&mut self, name: &str, arguments: &[String]) -> Result<()> {
        let log = fs::File::create(self.path(&format!("{name}.log")))?;
        let child = Command::new(self.path(name))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("failed to start {name}"))?;
        self.processes.push(child);
        Ok(())
    }

    fn wait(&mut self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(90);
        loop {
            let Err(error) = self.kubectl(&["get", "--raw", "/readyz"]) else {
                return Ok(());
            };
            for process in &mut self.processes {
                if let Some(status) = process.try_wait()? {
                    let log = fs::read_to_string(self.path("kube-apiserver.log"))?;
                    bail!("a part of the control plane has ended: {status}\n{log}");
                }
            }
            ensure!(
                Instant::now() < deadline,
                "the API server is not ready: {error:#}"
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        for process in self.processes.iter_mut().rev() {
            // Killed, not asked: what it stores goes with the directory.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

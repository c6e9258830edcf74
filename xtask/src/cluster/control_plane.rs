//! etcd, the API server, the controller manager and the scheduler, as processes of this machine:
//! native speed, and nothing of the node's kernel work disturbs them. All listen on loopback only.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::{
    address,
    daemon::Daemon,
    kubeconfig,
    pki::{Authority, Identity},
};
use crate::{setup::kube::Kube, step::Step};

/// Loopback ports of the control plane.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ports {
    pub(crate) etcd: u16,
    pub(crate) etcd_peer: u16,
    pub(crate) api: u16,
    pub(crate) controllers: u16,
    pub(crate) scheduler: u16,
    /// Forwarded to the CONNECT proxy of node 1; `None` without nodes: the API server then dials
    /// webhooks directly.
    pub(crate) egress: Option<u16>,
}

/// What is the same for all parts.
pub(crate) struct ControlPlane<'a> {
    pub(crate) kube: &'a Kube,
    pub(crate) authority: &'a Authority,
    pub(crate) state: &'a Path,
    pub(crate) ports: Ports,
    pub(crate) time_limit: Duration,
}

impl ControlPlane<'_> {
    /// Starts etcd and the API server and hands each to `started`. Does not wait until they are
    /// ready.
    ///
    /// # Errors
    /// If a part cannot be started.
    pub(crate) fn start_api(&self, mut started: impl FnMut(Daemon) -> Result<()>) -> Result<()> {
        let admin = self
            .authority
            .issue("admin", "admin", Some("system:masters"), &[])?;
        self.kubeconfig("kubeconfig", &admin)?;
        started(self.etcd()?)?;
        started(self.api_server()?)
    }

    /// Starts the controller manager and the scheduler. The API server must be ready: they give up
    /// when it does not know their rights yet.
    ///
    /// # Errors
    /// If a part cannot be started.
    pub(crate) fn start_controllers(
        &self,
        mut started: impl FnMut(Daemon) -> Result<()>,
    ) -> Result<()> {
        for (part, port, options) in [
            (
                "kube-controller-manager",
                self.ports.controllers,
                self.controller_options()?,
            ),
            ("kube-scheduler", self.ports.scheduler, Vec::new()),
        ] {
            let identity = self
                .authority
                .issue(part, &format!("system:{part}"), None, &[])?;
            let config = self.kubeconfig(&format!("{part}.kubeconfig"), &identity)?;
            let mut options = options;
            options.extend([
                format!("--kubeconfig={}", config.display()),
                format!("--authentication-kubeconfig={}", config.display()),
                format!("--authorization-kubeconfig={}", config.display()),
                "--bind-address=127.0.0.1".to_owned(),
                format!("--secure-port={port}"),
                // There is one of each: nothing to elect, and it saves seconds at the start.
                "--leader-elect=false".to_owned(),
            ]);
            started(self.part(part, options)?)?;
        }
        Ok(())
    }

    /// Waits until the API server is ready.
    ///
    /// # Errors
    /// If one of `daemons` ends, or it takes longer than two minutes.
    pub(crate) fn wait(&self, step: &Step, daemons: &[Daemon]) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(120);
        loop {
            for daemon in daemons {
                daemon.check()?;
            }
            let output = Command::new(self.kube.bin.join("kubectl"))
                .arg(format!(
                    "--kubeconfig={}",
                    self.state.join("kubeconfig").display()
                ))
                .args(["get", "--raw", "/readyz"])
                .output()
                .context("failed to start kubectl")?;
            if output.status.success() {
                return Ok(());
            }
            let answer = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            if Instant::now() > deadline {
                bail!("the API server is not ready after two minutes: {answer}");
            }
            step.progress(answer);
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn kubeconfig(&self, file: &str, identity: &Identity) -> Result<PathBuf> {
        let path = self.state.join(file);
        let server = format!("https://127.0.0.1:{}", self.ports.api);
        kubeconfig::write(&path, &server, &self.authority.certificate(), identity)?;
        Ok(path)
    }

    fn etcd(&self) -> Result<Daemon> {
        let Identity { certificate, key } =
            self.authority.issue("etcd", "etcd", None, &["127.0.0.1"])?;
        let (certificate, key) = (certificate.display(), key.display());
        let ca = self.authority.certificate();
        let ca = ca.display();
        let client = format!("https://127.0.0.1:{}", self.ports.etcd);
        let peer = format!("https://127.0.0.1:{}", self.ports.etcd_peer);
        let options = vec![
            "--name=default".to_owned(),
            format!("--data-dir={}", self.state.join("etcd").display()),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster=default={peer}"),
            "--client-cert-auth".to_owned(),
            format!("--trusted-ca-file={ca}"),
            format!("--cert-file={certificate}"),
            format!("--key-file={key}"),
            "--peer-client-cert-auth".to_owned(),
            format!("--peer-trusted-ca-file={ca}"),
            format!("--peer-cert-file={certificate}"),
            format!("--peer-key-file={key}"),
            // Nothing in here is worth a disk write: it lives as long as the cluster.
            "--unsafe-no-fsync".to_owned(),
            "--log-level=warn".to_owned(),
        ];
        self.part("etcd", options)
    }

    fn api_server(&self) -> Result<Daemon> {
        let serving = self.authority.issue(
            "kube-apiserver",
            "kube-apiserver",
            None,
            &[
                "127.0.0.1",
                address::HOST,
                address::API_SERVICE,
                "localhost",
                "kubernetes",
                "kubernetes.default",
                "kubernetes.default.svc",
                "kubernetes.default.svc.cluster.local",
            ],
        )?;
        let client = self.authority.issue(
            "kubelet-client",
            "kube-apiserver",
            Some("system:masters"),
            &[],
        )?;
        // Only its key is used; the certificate is a public key in a form that the server reads.
        let tokens = self
            .authority
            .issue("service-accounts", "service-accounts", None, &[])?;
        let ca = self.authority.certificate();
        let mut options = vec![
            format!("--etcd-servers=https://127.0.0.1:{}", self.ports.etcd),
            format!("--etcd-cafile={}", ca.display()),
            format!("--etcd-certfile={}", client.certificate.display()),
            format!("--etcd-keyfile={}", client.key.display()),
            "--bind-address=127.0.0.1".to_owned(),
            format!("--secure-port={}", self.ports.api),
            // What pods find behind the service `kubernetes`.
            format!("--advertise-address={}", address::HOST),
            format!("--service-cluster-ip-range={}", address::SERVICES),
            format!("--client-ca-file={}", ca.display()),
            format!("--tls-cert-file={}", serving.certificate.display()),
            format!("--tls-private-key-file={}", serving.key.display()),
            format!("--kubelet-certificate-authority={}", ca.display()),
            format!(
                "--kubelet-client-certificate={}",
                client.certificate.display()
            ),
            format!("--kubelet-client-key={}", client.key.display()),
            "--kubelet-preferred-address-types=InternalIP".to_owned(),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!(
                "--service-account-key-file={}",
                tokens.certificate.display()
            ),
            format!(
                "--service-account-signing-key-file={}",
                tokens.key.display()
            ),
            "--authorization-mode=Node,RBAC".to_owned(),
            "--enable-admission-plugins=NodeRestriction".to_owned(),
            "--allow-privileged=true".to_owned(),
            "--profiling=false".to_owned(),
        ];
        if let Some(port) = self.ports.egress {
            options.push(format!(
                "--egress-selector-config-file={}",
                self.egress_selector(port, &client)?.display()
            ));
        }
        self.part("kube-apiserver", options)
    }

    /// Kubelets, pods and services are reached through node 1.
    fn egress_selector(&self, port: u16, client: &Identity) -> Result<PathBuf> {
        let path = self.state.join("egress.json");
        let config = json!({
            "apiVersion": "apiserver.k8s.io/v1beta1",
            "kind": "EgressSelectorConfiguration",
            "egressSelections": [{"name": "cluster", "connection": {
                "proxyProtocol": "HTTPConnect",
                "transport": {"tcp": {
                    "url": format!("https://127.0.0.1:{port}"),
                    "tlsConfig": {
                        "caBundle": self.authority.certificate(),
                        "clientCert": client.certificate,
                        "clientKey": client.key,
                    },
                }},
            }}],
        });
        let text = format!("{config:#}\n");
        fs::write(&path, text).with_context(|| format!("failed to write {}", path.display()))?;
        Ok(path)
    }

    fn controller_options(&self) -> Result<Vec<String>> {
        let tokens = self.state.join("pki/service-accounts.key");
        Ok(vec![
            format!("--service-account-private-key-file={}", tokens.display()),
            format!("--root-ca-file={}", self.authority.certificate().display()),
            "--use-service-account-credentials=true".to_owned(),
            // Nodes get their pod networks from their number (address.rs).
            "--allocate-node-cidrs=false".to_owned(),
        ])
    }

    fn part(&self, name: &str, options: Vec<String>) -> Result<Daemon> {
        let mut command = Command::new("timeout");
        command
            .args(["--foreground", "--kill-after=5"])
            .arg(self.time_limit.as_secs().to_string())
            .arg(self.kube.bin.join(name))
            .args(options)
            .current_dir(self.state);
        Daemon::start(name, &mut command, &self.state.join(format!("{name}.log")))
    }
}

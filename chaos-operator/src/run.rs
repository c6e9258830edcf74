//! Wires the parts together: waits for the lead, fills the stores, runs until told to stop.

use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use anyhow::Context as _;
use chaos_crd::{NetworkChaos, TimeChaos};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};

use crate::agents::{Agents, discovery};
use crate::certificates;
use crate::cluster::Cluster;
use crate::events::Publisher;
use crate::health::{self, Health};
use crate::kind::Kind;
use crate::leader::{Election, Lost, Standing};
use crate::metrics::Metrics;
use crate::reconcile::Context;
use crate::resolver::Resolver;
use crate::watch::{self as watching, Concerned, Everybody, Experiments};

/// How often to say that kinds are not listed yet; listing takes a second or so.
const TELL_OF_MISSING_EVERY: Duration = Duration::from_secs(10);

/// What `chaos-operator run` takes.
#[derive(Clone, Debug, clap::Args)]
pub struct RunArgs {
    /// Namespace of the operator: its lease, the certificates, and the Service of the agents.
    #[arg(long, env = "NAMESPACE", default_value = "faultline")]
    pub namespace: String,
    /// Path of a kubeconfig. Default: the pod's service account, else $KUBECONFIG.
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    /// Address of /healthz, /readyz and /metrics.
    #[arg(long, default_value = "0.0.0.0:10080")]
    pub metrics: SocketAddr,
    /// Port of the agents.
    #[arg(long, default_value_t = 31767)]
    pub agent_port: u16,
    /// Name that this operator has in the election, unique among all. Default: the host's name.
    #[arg(long, env = "POD_NAME")]
    pub identity: Option<String>,
    /// Lead even while Chaos Mesh does: the experiments in this cluster are then ours.
    #[arg(long)]
    pub takeover: bool,
    /// Only pods of namespaces annotated `chaos-mesh.org/inject: enabled` can be selected.
    #[arg(long, env = "ENABLE_FILTER_NAMESPACE")]
    pub filter_namespaces: bool,
}

/// Runs the operator until it is told to stop or loses the lead.
///
/// # Errors
/// What keeps it from running: no API server, no certificates; or [`Lost`], see [`begin_anew`].
pub async fn run(args: RunArgs) -> anyhow::Result<()> {
    // An error only says that one has been chosen already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = connect(args.kubeconfig.as_deref()).await?;
    let identity = match &args.identity {
        Some(identity) => identity.clone(),
        None => hostname()?,
    };
    let metrics = Arc::new(Metrics::default());
    let agents = Agents::new(&[NetworkChaos::NAME, TimeChaos::NAME], Timestamp::now());
    let (standing, _) = watch::channel(Standing::Starting);
    let (synced, _) = watch::channel(false);
    let listener = TcpListener::bind(args.metrics)
        .await
        .with_context(|| format!("failed to listen on {} (--metrics)", args.metrics))?;
    tracing::info!(address = %listener.local_addr()?, "serving health and metrics");
    let health = Health {
        standing: standing.subscribe(),
        synced: synced.subscribe(),
        metrics: Arc::clone(&metrics),
        agents: agents.clone(),
    };
    tokio::spawn(async move {
        if let Err(error) = health::serve(listener, health).await {
            tracing::error!(%error, "health and metrics are no longer served");
        }
    });
    let election = Election {
        client: client.clone(),
        namespace: args.namespace.clone(),
        identity,
        takeover: args.takeover,
    };
    tokio::select! {
        () = election.win(&standing) => {}
        result = told_to_stop() => return result,
    }
    let result = tokio::select! {
        lost = election.hold() => {
            if matches!(lost, Lost::Foreign(_)) {
                // Still ours: the next one that may lead need not wait for it.
                election.release().await;
            }
            return Err(lost).context("no longer leading; start again to follow");
        }
        result = lead(&args, client, metrics, agents, synced) => result,
        result = told_to_stop() => result,
    };
    // Agents go on without us; the next operator takes over at once.
    election.release().await;
    result
}

/// Puts this program, as it was started, in the place of a process that has lost the lead, to follow: nothing
/// that it has begun goes on, and it need not be started by a kubelet, which waits longer each time, just
/// when a node is short of CPU. Returns why, if that fails.
pub fn begin_anew(lost: &Lost) -> anyhow::Error {
    tracing::warn!(reason = %lost, "no longer leading; beginning anew, to follow");
    let mut words = std::env::args_os();
    let mut program = Command::new("/proc/self/exe");
    if let Some(name) = words.next() {
        program.arg0(name);
    }
    anyhow::Error::new(program.args(words).exec())
        .context("no longer leading, and failed to begin anew; start again to follow")
}

/// What the leader does.
async fn lead(
    args: &RunArgs,
    client: Client,
    metrics: Arc<Metrics>,
    agents: Agents,
    synced: watch::Sender<bool>,
) -> anyhow::Result<()> {
    let tls = certificates::keep(client.clone(), &args.namespace)
        .await
        .context("failed to keep the certificates of operator and agents")?;
    let discovery = discovery::run(
        client.clone(),
        &args.namespace,
        args.agent_port,
        agents.clone(),
        tls,
    );
    let cluster = Arc::new(RwLock::new(Cluster::default()));
    let (networks, network_writer) = Experiments::<NetworkChaos>::new();
    let (times, time_writer) = Experiments::<TimeChaos>::new();
    let everybody: Everybody = Arc::new([
        Arc::<Experiments<NetworkChaos>>::clone(&networks) as Arc<dyn Concerned>,
        Arc::<Experiments<TimeChaos>>::clone(&times) as Arc<dyn Concerned>,
    ]);
    let context = Context {
        client: client.clone(),
        cluster: Arc::clone(&cluster),
        agents,
        events: Publisher::start(client.clone(), Arc::clone(&metrics)),
        metrics,
        resolver: Resolver::default(),
        zone: TimeZone::system(),
    };
    let stores = async {
        let (pods, pods_ready) = oneshot::channel();
        let (nodes, nodes_ready) = oneshot::channel();
        let (namespaces, namespaces_ready) = oneshot::channel();
        let (a, b) = (client.clone(), client.clone());
        let (x, y) = (Arc::clone(&cluster), Arc::clone(&cluster));
        tokio::spawn(watching::pods(a, x, Arc::clone(&everybody), pods));
        tokio::spawn(watching::nodes(b, y, Arc::clone(&everybody), nodes));
        if args.filter_namespaces {
            let task = watching::namespaces(client, cluster, Arc::clone(&everybody), namespaces);
            tokio::spawn(task);
        } else {
            let _ = namespaces.send(());
        }
        // A sender is only dropped with its watch, which never ends.
        let _ = tokio::join!(pods_ready, nodes_ready, namespaces_ready);
        synced.send_replace(true);
        tracing::info!("pods and nodes are listed");
        tokio::spawn(tell_of_missing_kinds(context.agents.clone()));
        // Without one of them its experiments would never end: whichever ends, ends all.
        tokio::select! {
            () = networks.run(context.clone(), network_writer) => NetworkChaos::NAME,
            () = times.run(context, time_writer) => TimeChaos::NAME,
        }
    };
    tokio::select! {
        () = discovery => anyhow::bail!("the watch of the agents' EndpointSlices has ended"),
        kind = stores => anyhow::bail!("the watch of {kind} has ended"),
    }
}

/// Says again and again what the agents wait for. A kind that cannot be listed is not taken for one
/// without experiments: those that exist would lose their faults.
async fn tell_of_missing_kinds(agents: Agents) {
    loop {
        tokio::time::sleep(TELL_OF_MISSING_EVERY).await;
        let kinds = agents.missing_kinds();
        if kinds.is_empty() {
            return;
        }
        tracing::warn!(
            kinds = kinds.join(", "),
            "no agent is told anything before all kinds are listed; if they cannot be, their CRDs or \
             the operator's rights are older than the operator: \
             kubectl apply --server-side -k deploy/"
        );
    }
}

async fn connect(kubeconfig: Option<&std::path::Path>) -> anyhow::Result<Client> {
    let config = match kubeconfig {
        Some(path) => {
            let kubeconfig = Kubeconfig::read_from(path)
                .with_context(|| format!("failed to read {} (--kubeconfig)", path.display()))?;
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?
        }
        None => Config::infer().await.context(
            "failed to find the API server: run in a pod with a service account, or give --kubeconfig",
        )?,
    };
    let address = config.cluster_url.clone();
    Client::try_from(config).with_context(|| format!("failed to set up a client of {address}"))
}

fn hostname() -> anyhow::Result<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .context("failed to read the host's name; give --identity")?;
    Ok(format!("{}-{}", name.trim(), std::process::id()))
}

async fn told_to_stop() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("told to stop; agents go on, and the next operator takes over");
    Ok(())
}

//! Real sockets and real TLS before a node without a kernel.

use std::net::SocketAddr;
use std::sync::Mutex;

use chaos_planner::capabilities::Mechanism;
use chaos_proto::agent::agent_client::AgentClient;
use chaos_proto::agent::{
    CapabilitiesRequest, DesiredSet, Fault, NetworkEffect, ObservedSet, Phase, PodTarget, Target,
    fault, target,
};
use chaos_proto::local::local_client::LocalClient;
use chaos_proto::local::recover_request::Which;
use chaos_proto::local::{FaultsRequest, PanicRequest, RecoverRequest, ResumeRequest};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use tokio_stream::StreamExt;
use tonic::transport::{
    Certificate, Channel, ClientTlsConfig, Endpoint, Identity as ClientIdentity,
};
use tonic::{Code, Streaming};

use super::*;
use crate::health;
use crate::node_thread::fake::{FakeNode, World};
use crate::node_thread::spawn;

const UID: &str = "0c6c2ee9-c4d4-4cf3-9a0a-6ca8a6c9ab4d";

struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Ca {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    fn issue(&self, name: &str, usage: ExtendedKeyUsagePurpose) -> (String, String) {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().unwrap();
        (
            params.signed_by(&key, &self.issuer).unwrap().pem(),
            key.serialize_pem(),
        )
    }

    /// The agent's Secret.
    fn write(&self, directory: &Path) {
        let (cert, key) = self.issue("chaos-agent.faultline", ExtendedKeyUsagePurpose::ServerAuth);
        for (name, content) in [("ca.crt", &self.pem), ("tls.crt", &cert), ("tls.key", &key)] {
            std::fs::write(directory.join(name), content).unwrap();
        }
    }

    fn client_tls(&self) -> ClientTlsConfig {
        let (cert, key) = self.issue("chaos-operator", ExtendedKeyUsagePurpose::ClientAuth);
        ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&self.pem))
            .domain_name("chaos-agent.faultline")
            .identity(ClientIdentity::from_pem(cert, key))
    }
}

struct Agent {
    address: SocketAddr,
    directory: tempfile::TempDir,
    identity: Arc<Identity>,
    world: Arc<Mutex<World>>,
    node: NodeHandle,
    ready: Ready,
}

/// An agent on loopback and on a unix socket.
async fn agent() -> Agent {
    let directory = tempfile::tempdir().unwrap();
    let fake = FakeNode::new();
    let world = Arc::clone(&fake.world);
    let node = spawn("node-1", move || Ok(fake)).unwrap();
    let identity = Arc::new(Identity::new(directory.path()));
    let ready = Ready::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let unix = bind_unix(&directory.path().join("agent.sock")).unwrap();
    tokio::spawn(serve_tls(
        listener,
        Arc::clone(&identity),
        node.clone(),
        ready.clone(),
    ));
    tokio::spawn(serve_unix(unix, node.clone()));
    Agent {
        address,
        directory,
        identity,
        world,
        node,
        ready,
    }
}

impl Agent {
    async fn dial(&self, tls: ClientTlsConfig) -> Result<Channel, tonic::transport::Error> {
        let uri = format!("https://{}", self.address);
        Endpoint::from_shared(uri)?.tls_config(tls)?.connect().await
    }

    async fn unix(&self) -> Channel {
        let path = self.directory.path().join("agent.sock");
        Endpoint::from_shared(format!("unix://{}", path.display()))
            .unwrap()
            .connect()
            .await
            .unwrap()
    }

    async fn until_ready(&self) {
        for _ in 0..200 {
            if self.ready.get() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the agent is not ready");
    }
}

fn partition(id: &str, target: target::Target) -> Fault {
    Fault {
        id: id.to_owned(),
        kind: "NetworkChaos".to_owned(),
        namespace: "chaos-testing".to_owned(),
        name: "network".to_owned(),
        record: "chaos-testing/tikv-0".to_owned(),
        target: Some(Target {
            target: Some(target),
        }),
        effect: Some(fault::Effect::Network(NetworkEffect {
            egress: true,
            all_peers: true,
            drop: true,
            ..Default::default()
        })),
        ..Default::default()
    }
}

fn pod() -> target::Target {
    target::Target::Pod(PodTarget {
        uid: UID.to_owned(),
        ..Default::default()
    })
}

/// An open stream.
struct Sync {
    sets: mpsc::Sender<DesiredSet>,
    answers: Streaming<ObservedSet>,
}

impl Sync {
    async fn open(channel: Channel) -> Self {
        let (sets, receiver) = mpsc::channel(4);
        let answers = AgentClient::new(channel)
            .sync(ReceiverStream::new(receiver))
            .await
            .unwrap();
        Self {
            sets,
            answers: answers.into_inner(),
        }
    }

    async fn desire(&mut self, generation: u64, faults: Vec<Fault>) -> ObservedSet {
        self.sets
            .send(DesiredSet { generation, faults })
            .await
            .unwrap();
        self.until(|set| set.generation == generation).await
    }

    async fn until(&mut self, what: impl Fn(&ObservedSet) -> bool) -> ObservedSet {
        let found = async {
            loop {
                let set = self
                    .answers
                    .next()
                    .await
                    .expect("the stream goes on")
                    .unwrap();
                if what(&set) {
                    return set;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(5), found)
            .await
            .expect("an answer within 5 s")
    }
}

#[tokio::test]
async fn the_operator_sends_its_set_over_mutual_tls_and_hears_what_the_kernel_holds() {
    let (ca, agent) = (Ca::new(), agent().await);
    ca.write(agent.directory.path());
    agent.until_ready().await;
    let channel = agent.dial(ca.client_tls()).await.unwrap();
    let reply = AgentClient::new(channel.clone())
        .capabilities(CapabilitiesRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (reply.node.as_str(), reply.mechanisms.len()),
        ("node-1", Mechanism::ALL.len())
    );

    let mut sync = Sync::open(channel).await;
    let set = sync
        .desire(
            1,
            vec![
                partition("good", pod()),
                partition("bad", target::Target::Pid(1)),
            ],
        )
        .await;
    let phases: Vec<_> = set
        .faults
        .iter()
        .map(|f| (f.id.as_str(), f.phase()))
        .collect();
    assert_eq!(
        phases,
        [("good", Phase::Injected), ("bad", Phase::NotSupported)]
    );
    assert!(
        set.faults[1]
            .reason
            .starts_with("target.pid: 1: is only accepted on"),
        "{set:?}"
    );

    let set = sync.desire(2, vec![]).await;
    assert_eq!(set.faults, vec![]);
}

#[tokio::test]
async fn a_stranger_is_turned_away() {
    let (ca, agent) = (Ca::new(), agent().await);
    ca.write(agent.directory.path());
    agent.until_ready().await;
    let call = async |tls: ClientTlsConfig| {
        let channel = agent.dial(tls).await.map_err(|error| error.to_string())?;
        let mut client = AgentClient::new(channel);
        client
            .capabilities(CapabilitiesRequest {})
            .await
            .map_err(|status| status.to_string())
    };
    assert!(call(ca.client_tls()).await.is_ok());

    let nobody = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(&ca.pem))
        .domain_name("chaos-agent.faultline");
    assert!(call(nobody.clone()).await.is_err(), "no certificate");

    let (cert, key) = Ca::new().issue("chaos-operator", ExtendedKeyUsagePurpose::ClientAuth);
    let stranger = nobody.clone().identity(ClientIdentity::from_pem(cert, key));
    assert!(call(stranger).await.is_err(), "a certificate of another CA");

    let (cert, key) = ca.issue("chaos-agent.faultline", ExtendedKeyUsagePurpose::ServerAuth);
    let other_agent = nobody.identity(ClientIdentity::from_pem(cert, key));
    assert!(
        call(other_agent).await.is_err(),
        "another agent's certificate"
    );
}

#[tokio::test]
async fn a_certificate_that_comes_late_or_changes_is_taken_up() {
    let (old, new, agent) = (Ca::new(), Ca::new(), agent().await);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!agent.ready.get());
    assert!(agent.dial(old.client_tls()).await.is_err());
    old.write(agent.directory.path());
    agent.until_ready().await;
    let channel = agent.dial(old.client_tls()).await.unwrap();
    let mut before = Sync::open(channel).await;
    before.desire(1, vec![]).await;

    new.write(agent.directory.path());
    assert!(agent.identity.refresh().unwrap());
    assert!(!agent.identity.refresh().unwrap(), "nothing new");
    let mut after = Sync::open(agent.dial(new.client_tls()).await.unwrap()).await;
    after.desire(1, vec![]).await;
    let refused = async {
        let channel = agent.dial(old.client_tls()).await.ok()?;
        AgentClient::new(channel)
            .capabilities(CapabilitiesRequest {})
            .await
            .ok()
    };
    assert!(
        refused.await.is_none(),
        "the old CA is not trusted any more"
    );

    // Half of a Secret is not used, and what was there stays.
    std::fs::write(agent.directory.path().join("tls.key"), "nonsense").unwrap();
    let error = agent.identity.refresh().unwrap_err().to_string();
    assert!(
        error.contains("tls.key") && error.contains("must be PEM"),
        "{error}"
    );
    agent.dial(new.client_tls()).await.unwrap();
}

#[tokio::test]
async fn a_newer_stream_of_the_operator_replaces_the_older() {
    let (ca, agent) = (Ca::new(), agent().await);
    ca.write(agent.directory.path());
    agent.until_ready().await;
    let mut old = Sync::open(agent.dial(ca.client_tls()).await.unwrap()).await;
    old.desire(9, vec![partition("a", pod())]).await;
    let mut new = Sync::open(agent.dial(ca.client_tls()).await.unwrap()).await;
    new.desire(1, vec![partition("a", pod())]).await;
    let last = loop {
        match old.answers.next().await {
            Some(Ok(_)) => {}
            other => break other,
        }
    };
    assert_eq!(last.unwrap().unwrap_err().code(), Code::Aborted);
    assert!(agent.world.lock().unwrap().orphans.is_empty());

    drop(new);
    for _ in 0..100 {
        if !agent.world.lock().unwrap().orphans.is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the faults of a client that has gone are orphans");
}

#[tokio::test]
async fn the_nodes_own_socket_is_for_root_alone_and_sees_everybodys_faults() {
    let (ca, agent) = (Ca::new(), agent().await);
    let path = agent.directory.path().join("agent.sock");
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    ca.write(agent.directory.path());
    agent.until_ready().await;
    let mut operator = Sync::open(agent.dial(ca.client_tls()).await.unwrap()).await;
    operator.desire(1, vec![partition("a", pod())]).await;
    let mut local = Sync::open(agent.unix().await).await;
    let set = local
        .desire(1, vec![partition("b", target::Target::Pid(1))])
        .await;
    assert_eq!(set.faults.len(), 1, "its own only");
    assert_eq!(set.faults[0].phase(), Phase::Injected);

    let mut client = LocalClient::new(agent.unix().await);
    let reply = client.faults(FaultsRequest {}).await.unwrap().into_inner();
    let ids: Vec<_> = reply
        .faults
        .iter()
        .map(|f| f.observed.clone().unwrap().id)
        .collect();
    assert_eq!(ids, ["a", "b"]);
    assert_eq!(reply.faults[0].namespace, "chaos-testing");

    let named = |name: &str| RecoverRequest {
        which: Some(Which::Name(name.to_owned())),
    };
    let reply = client.recover(named("a")).await.unwrap().into_inner();
    assert_eq!((reply.ids, reply.left.len()), (vec!["a".to_owned()], 0));
    let status = client.recover(named("nothing")).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(
        client
            .recover(RecoverRequest { which: None })
            .await
            .is_err()
    );

    client.panic(PanicRequest {}).await.unwrap();
    assert!(
        client
            .faults(FaultsRequest {})
            .await
            .unwrap()
            .into_inner()
            .halted
    );
    client.resume(ResumeRequest {}).await.unwrap();
    operator
        .until(|set| set.faults.iter().any(|f| f.phase() == Phase::Injected))
        .await;
}

#[tokio::test]
async fn a_socket_that_a_predecessor_left_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("agent.sock");
    drop(bind_unix(&path).unwrap());
    assert!(path.exists());
    bind_unix(&path).unwrap();
}

#[tokio::test]
async fn health_follows_the_node_and_the_certificate() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let agent = agent().await;
    let listener = health::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(health::serve(
        listener,
        agent.node.clone(),
        agent.ready.clone(),
    ));
    let get = async |path: &str| {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    assert!(get("/healthz").await.starts_with("HTTP/1.1 200"));
    assert!(get("/readyz").await.starts_with("HTTP/1.1 503"));
    assert!(
        get("/metrics")
            .await
            .contains("faultline_agent_build_info{")
    );
    Ca::new().write(agent.directory.path());
    agent.until_ready().await;
    assert!(get("/readyz").await.starts_with("HTTP/1.1 200"));
    agent.node.hand_over().await;
    assert!(get("/metrics").await.starts_with("HTTP/1.1 503"));
}

//! A laboratory in a cluster: pods that probe each other by UDP 20 times a second, experiments that
//! are applied to them with the real `kubectl`, and what the peers saw. The demo and the cluster
//! tests work in one.
//!
//! Not here: which experiments, and what is expected of them (`demo.rs`, `cluster_tests.rs`).

pub(crate) mod chaos;
pub(crate) mod clock;
pub(crate) mod crowd;
pub(crate) mod kernel;
mod results;
pub(crate) mod samples;

use std::{
    collections::BTreeMap,
    io::Write,
    net::IpAddr,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use self::{clock::Offset, results::Results, samples::Path};
use crate::{
    cluster::Cluster,
    image,
    step::{self, Step, eventually},
};

/// A probe counts a datagram as lost after this time. Longer than any delay that is injected here,
/// there and back, on a slow machine.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_millis(1500);

/// How long a pod may take to start on an emulated node.
const START_LIMIT: Duration = Duration::from_secs(180);

/// How long answers that are overdue are waited for, where the machine has other work to do.
const OVERDUE_LIMIT: Duration = Duration::from_secs(8);

/// Pods in a namespace of their own.
#[derive(Debug)]
pub(crate) struct Lab<'a> {
    cluster: &'a Cluster,
    namespace: String,
    pods: Vec<Pod>,
    /// By node.
    clocks: BTreeMap<String, Offset>,
}

/// A pod that is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) name: &'a str,
    labels: &'a [(&'a str, &'a str)],
    node: Option<&'a str>,
    /// Of `probe`; without them it probes.
    args: &'a [&'a str],
}

impl<'a> Wanted<'a> {
    /// One that runs on any node.
    pub(crate) const fn new(name: &'a str, labels: &'a [(&'a str, &'a str)]) -> Self {
        Self {
            name,
            labels,
            node: None,
            args: &[],
        }
    }

    /// On this one.
    pub(crate) const fn on(self, node: &'a str) -> Self {
        Self {
            node: Some(node),
            ..self
        }
    }

    /// One whose `probe` does something else.
    pub(crate) const fn doing(self, args: &'a [&'a str]) -> Self {
        Self { args, ..self }
    }
}

/// One of them, as it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pod {
    pub(crate) name: String,
    pub(crate) node: String,
    /// IPv4 first where there are both.
    pub(crate) ips: Vec<IpAddr>,
}

impl<'a> Lab<'a> {
    /// Asks for pods, and waits for nothing: [`Lab::start`] finds them.
    ///
    /// # Errors
    /// If the API server refuses.
    pub(crate) fn order(cluster: &'a Cluster, namespace: &str, pods: &[Wanted<'_>]) -> Result<()> {
        Self::empty(cluster, namespace).create(pods)
    }

    fn empty(cluster: &'a Cluster, namespace: &str) -> Self {
        Self {
            cluster,
            namespace: namespace.to_owned(),
            pods: Vec::new(),
            clocks: BTreeMap::new(),
        }
    }

    /// Starts these pods, or finds them, and lets each probe all others: by their
    /// first address, or with `all_addresses` by each.
    ///
    /// # Errors
    /// If a pod does not start, or cannot be talked to.
    pub(crate) fn start(
        cluster: &'a Cluster,
        namespace: &str,
        pods: &[Wanted<'_>],
        all_addresses: bool,
    ) -> Result<Self> {
        step::step(&format!("pods in {namespace}"), |step| {
            let mut lab = Self::empty(cluster, namespace);
            lab.create(pods)?;
            let names: Vec<&str> = pods.iter().map(|pod| pod.name).collect();
            lab.pods = lab.wait(step, &names)?;
            step.progress("comparing clocks");
            for pod in &lab.pods {
                if !lab.clocks.contains_key(&pod.node) {
                    let offset = clock::compare(cluster, &pod.node)?;
                    lab.clocks.insert(pod.node.clone(), offset);
                }
            }
            step.progress("introducing them to each other");
            lab.introduce_all(all_addresses)?;
            Ok(lab)
        })
    }

    /// Lets each probe all others: by their first address, or by each.
    ///
    /// # Errors
    /// If a pod cannot be talked to.
    pub(crate) fn introduce_all(&self, all_addresses: bool) -> Result<()> {
        self.pods
            .iter()
            .try_for_each(|pod| self.introduce(pod, all_addresses))
    }

    /// A `kubectl` that works in this namespace.
    pub(crate) fn kubectl<'w>(&self, words: impl IntoIterator<Item = &'w str>) -> Command {
        let mut command = self.cluster.kubectl();
        command.args(["--namespace", &self.namespace]).args(words);
        command
    }

    /// Runs `kubectl` with a document on its standard input, to whatever end.
    ///
    /// # Errors
    /// If it cannot be started.
    pub(crate) fn feed<'w>(
        &self,
        words: impl IntoIterator<Item = &'w str>,
        document: &str,
    ) -> Result<Output> {
        feed(self.kubectl(words), document)
    }

    /// Its name.
    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The cluster it is in.
    pub(crate) fn cluster(&self) -> &Cluster {
        self.cluster
    }

    /// A pod by its name.
    ///
    /// # Errors
    /// If there is none.
    pub(crate) fn pod(&self, name: &str) -> Result<&Pod> {
        self.pods
            .iter()
            .find(|pod| pod.name == name)
            .with_context(|| format!("there is no pod {name}"))
    }

    /// The worst that a moment in a sample may be wrong by.
    pub(crate) fn clock_uncertainty(&self) -> Duration {
        let worst = self.clocks.values().map(|offset| offset.uncertainty).max();
        Duration::from_nanos(worst.unwrap_or_default())
    }

    /// What all pods have seen of what they sent since `since` (this machine's clock).
    ///
    /// # Errors
    /// If a pod cannot be asked.
    pub(crate) fn paths(&self, since: u64) -> Result<Vec<Path>> {
        let mut paths = Vec::new();
        for (pod, results) in self.ask_all(since)? {
            paths.extend(results.paths(&pod.name, self.offset(pod)));
        }
        paths.iter_mut().for_each(|path| {
            // The question had whole milliseconds, and the node's clock.
            path.samples.retain(|sample| sample.sent >= since);
        });
        Ok(paths)
    }

    /// As [`Lab::paths`], when all that was sent until `until` has been answered or is lost. Answers
    /// that a busy machine brings late are waited for as long as the last second before `until` lacks
    /// some, which a fault that is over takes none from.
    ///
    /// # Errors
    /// As [`Lab::paths`].
    pub(crate) fn settled_paths(&self, since: u64, until: u64) -> Result<Vec<Path>> {
        let end = until.saturating_sub(nanos(Duration::from_secs(1)))..until;
        let limit = until + nanos(ANSWER_TIMEOUT) + nanos(OVERDUE_LIMIT);
        sleep_until(until);
        loop {
            let asked = clock::now();
            let paths = self.paths(since)?;
            if samples::all_answered(&paths, &end) || asked > limit {
                return Ok(paths);
            }
            std::thread::sleep(Duration::from_millis(300));
        }
    }

    /// How many datagrams of `from` have arrived at `at` and were answered, since it started.
    ///
    /// # Errors
    /// If the pod cannot be asked.
    pub(crate) fn arrived(&self, at: &str, from: &str) -> Result<u64> {
        let sender = self.pod(from)?;
        let results = self.ask(self.pod(at)?, u64::MAX / 2)?;
        Ok(sender
            .ips
            .iter()
            .filter_map(|ip| results.echoed.get(ip))
            .sum())
    }

    /// Ends it. Returns before everything is gone.
    ///
    /// # Errors
    /// If the API server refuses.
    pub(crate) fn end(&self) -> Result<()> {
        let words = ["delete", "namespace", &self.namespace, "--wait=false"];
        step::output(self.cluster.kubectl().args(words)).map(drop)
    }

    /// Makes the namespace and pods in it, if they are not there. They take no part in the probing.
    ///
    /// # Errors
    /// If the API server refuses.
    pub(crate) fn create(&self, pods: &[Wanted<'_>]) -> Result<()> {
        let namespace = json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace},
        });
        let items: Vec<Value> = std::iter::once(namespace)
            .chain(pods.iter().map(pod_document))
            .collect();
        // In a new cluster the controllers may not have made the namespace's service account yet.
        let words = ["apply", "--filename", "-"];
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string();
        eventually("the pods to be taken", Duration::from_secs(30), || {
            must(self.feed(words, &list)?).map(drop)
        })
    }

    fn wait(&self, step: &Step, names: &[&str]) -> Result<Vec<Pod>> {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            let listed = step::output(self.kubectl(["get", "pods", "--output=json"]).args(names))?;
            let listed: Value = serde_json::from_str(&listed).context("kubectl printed no JSON")?;
            // One name gives the object itself.
            let items = match listed["items"].as_array() {
                Some(items) => items.clone(),
                None => vec![listed],
            };
            let pods: Vec<Pod> = items.iter().filter_map(running).collect();
            if pods.len() == names.len() {
                return Ok(pods);
            }
            step.progress(format!("{} of {} run", pods.len(), names.len()));
            if Instant::now() > deadline {
                let events = step::output(&mut self.kubectl(["get", "pods,events"]));
                bail!(
                    "pods do not start: only {} of {} run after {START_LIMIT:?}\n{}",
                    pods.len(),
                    names.len(),
                    events.unwrap_or_default()
                );
            }
            std::thread::sleep(Duration::from_millis(300));
        }
    }

    /// Tells a pod whom to probe.
    fn introduce(&self, pod: &Pod, all_addresses: bool) -> Result<()> {
        let others = self.pods.iter().filter(|other| other.name != pod.name);
        let peers: Vec<Value> = others
            .flat_map(|other| {
                let count = if all_addresses { other.ips.len() } else { 1 };
                let ips = other.ips.iter().take(count);
                ips.map(|ip| json!({"name": other.name, "ip": ip}))
            })
            .collect();
        let path = self.proxied(pod, "peers");
        let body = Value::from(peers).to_string();
        let what = format!("{} to take its peers", pod.name);
        eventually(&what, Duration::from_secs(20), || {
            must(self.feed(["create", "--raw", &path, "--filename", "-"], &body)?).map(drop)
        })
    }

    fn ask_all(&self, since: u64) -> Result<Vec<(&Pod, Results)>> {
        // Each question is a process: at the same time they take as long as one.
        std::thread::scope(|scope| {
            let asked: Vec<_> = self
                .pods
                .iter()
                .map(|pod| (pod, scope.spawn(move || self.ask(pod, since))))
                .collect();
            asked
                .into_iter()
                .map(|(pod, thread)| match thread.join() {
                    Ok(results) => Ok((pod, results?)),
                    Err(_) => bail!("a thread that asked {} panicked", pod.name),
                })
                .collect()
        })
    }

    fn ask(&self, pod: &Pod, since: u64) -> Result<Results> {
        // Earlier than asked by more than the node's clock can be off: `paths` cuts precisely.
        let since_ms = (since / samples::MS).saturating_sub(5000);
        let path = self.proxied(pod, &format!("results.json?since={since_ms}"));
        let answer = step::output(&mut self.kubectl(["get", "--raw", &path]))
            .with_context(|| format!("failed to ask {} for its results", pod.name))?;
        serde_json::from_str(&answer)
            .with_context(|| format!("failed to understand the results of {}", pod.name))
    }

    /// The path of the API server that leads to a pod's HTTP port.
    fn proxied(&self, pod: &Pod, rest: &str) -> String {
        format!(
            "/api/v1/namespaces/{}/pods/{}:8080/proxy/{rest}",
            self.namespace, pod.name
        )
    }

    fn offset(&self, pod: &Pod) -> Offset {
        self.clocks.get(&pod.node).copied().unwrap_or_default()
    }
}

/// Runs a command with a text on its standard input.
///
/// # Errors
/// If it cannot be started.
pub(crate) fn feed(mut command: Command, text: &str) -> Result<Output> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("failed to start `{}`", step::show(&command)))?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that ends without reading says why on stderr.
        let _closed = stdin.write_all(text.as_bytes());
    }
    child
        .wait_with_output()
        .with_context(|| format!("failed to wait for `{}`", step::show(&command)))
}

/// The output of a command that must succeed.
///
/// # Errors
/// With what it printed, if it did not.
pub(crate) fn must(output: Output) -> Result<String> {
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Sleeps until a moment of this machine's clock.
pub(crate) fn sleep_until(moment: u64) {
    std::thread::sleep(Duration::from_nanos(moment.saturating_sub(clock::now())));
}

/// As a number that moments can be moved by.
pub(crate) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn pod_document(pod: &Wanted<'_>) -> Value {
    let labels: BTreeMap<_, _> = pod.labels.iter().copied().collect();
    let timeout = ANSWER_TIMEOUT.as_millis().to_string();
    let probing = ["peer", "--timeout-ms", &timeout];
    let args = if pod.args.is_empty() {
        &probing
    } else {
        pod.args
    };
    let mut document = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": pod.name, "labels": labels},
        "spec": {
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "probe",
                "image": image::PROBE.name,
                "imagePullPolicy": "Never",
                "args": args,
                "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}},
            }],
        },
    });
    // No null: to apply that again would take from the pod the node that it has been given.
    if let Some(node) = pod.node {
        document["spec"]["nodeName"] = node.into();
    }
    document
}

/// The pod of a document, if it runs and has addresses.
fn running(document: &Value) -> Option<Pod> {
    let status = &document["status"];
    let ready = status["containerStatuses"][0]["ready"].as_bool()?;
    let is_ending = !document["metadata"]["deletionTimestamp"].is_null();
    let mut ips: Vec<IpAddr> = status["podIPs"]
        .as_array()?
        .iter()
        .filter_map(|ip| ip["ip"].as_str()?.parse().ok())
        .collect();
    ips.sort_by_key(IpAddr::is_ipv6);
    (ready && !is_ending && !ips.is_empty()).then(|| Pod {
        name: document["metadata"]["name"]
            .as_str()
            .unwrap_or_default()
            .to_owned(),
        node: document["spec"]["nodeName"]
            .as_str()
            .unwrap_or_default()
            .to_owned(),
        ips,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_that_may_run_anywhere_says_nothing_of_a_node() {
        let pod = Wanted::new("a", &[]);
        let spec = &pod_document(&pod)["spec"];
        assert_eq!(spec.get("nodeName"), None);
        let spec = &pod_document(&pod.on("node1"))["spec"];
        assert_eq!(spec["nodeName"], "node1");
    }

    #[test]
    fn a_pod_runs_when_it_is_ready_has_addresses_and_is_not_on_its_way_out() {
        let document = |ready: bool, deleted: Value| {
            json!({
                "metadata": {"name": "a", "deletionTimestamp": deleted},
                "spec": {"nodeName": "node1"},
                "status": {
                    "podIPs": [{"ip": "fd00::2"}, {"ip": "10.244.1.2"}],
                    "containerStatuses": [{"ready": ready}],
                },
            })
        };
        let pod = running(&document(true, Value::Null)).unwrap();
        assert_eq!((pod.name.as_str(), pod.node.as_str()), ("a", "node1"));
        assert!(pod.ips[0].is_ipv4() && pod.ips.len() == 2);
        assert_eq!(running(&document(false, Value::Null)), None);
        assert_eq!(
            running(&document(true, json!("2026-01-01T00:00:00Z"))),
            None
        );
        assert_eq!(running(&json!({"metadata": {"name": "b"}})), None);
    }
}

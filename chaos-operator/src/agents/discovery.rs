//! Finds agents: the EndpointSlices of their Service name each agent's node and address.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher::Config;
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::agents::connection::{self, Endpoint};
use crate::agents::{Agents, Tls};

/// Name of the agents' Service.
pub const SERVICE: &str = "chaos-agent";

/// Keeps a stream to every agent that the EndpointSlices in `namespace` name, on `port`. Returns
/// only if the watch ends, which it does not.
pub async fn run(client: Client, namespace: &str, port: u16, agents: Agents, tls: Tls) {
    let api: Api<EndpointSlice> = Api::namespaced(client, namespace);
    let config = Config::default().labels(&format!("kubernetes.io/service-name={SERVICE}"));
    let (slices, writer) = reflector::store();
    let mut events = watcher(api, config)
        .default_backoff()
        .reflect(writer)
        .boxed();
    let mut streams: BTreeMap<String, (watch::Sender<Endpoint>, JoinHandle<()>)> = BTreeMap::new();
    loop {
        match events.try_next().await {
            Ok(Some(event)) => {
                // Half a list would take streams away that are only not listed yet.
                if matches!(event, watcher::Event::Init | watcher::Event::InitApply(_)) {
                    continue;
                }
            }
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(%error, "failed to watch the EndpointSlices of the agents");
                continue;
            }
        }
        let found = endpoints(slices.state().iter().map(AsRef::as_ref), port);
        streams.retain(|node, (_, task)| {
            let is_there = found.contains_key(node);
            if !is_there {
                tracing::info!(node, "the agent has no endpoint any more");
                task.abort();
                agents.lost(node, jiff::Timestamp::now());
            }
            is_there
        });
        for (node, endpoint) in found {
            if let Some((current, _)) = streams.get(&node) {
                current.send_if_modified(|old| std::mem::replace(old, endpoint) != endpoint);
                continue;
            }
            let (sender, receiver) = watch::channel(endpoint);
            let task = connection::run(agents.clone(), node.clone(), receiver, tls.clone());
            streams.insert(node, (sender, tokio::spawn(task)));
        }
    }
}

/// One endpoint per node: one that serves, else any. An agent that is alive but not ready can still
/// take faults away.
fn endpoints<'a>(
    slices: impl Iterator<Item = &'a EndpointSlice>,
    port: u16,
) -> BTreeMap<String, Endpoint> {
    let mut found: BTreeMap<String, Endpoint> = BTreeMap::new();
    for endpoint in slices.flat_map(|slice| slice.endpoints.iter().flatten()) {
        let Some(node) = &endpoint.node_name else {
            continue;
        };
        let conditions = endpoint.conditions.as_ref();
        // `ready` is always true where the Service publishes addresses that are not.
        let serves = conditions
            .and_then(|conditions| conditions.serving.or(conditions.ready))
            .unwrap_or(true);
        let addresses = endpoint.addresses.iter();
        for ip in addresses.filter_map(|address| address.parse::<IpAddr>().ok()) {
            let candidate = Endpoint {
                address: SocketAddr::new(ip, port),
                serves,
            };
            let best = found.entry(node.clone()).or_insert(candidate);
            if serves && !best.serves {
                *best = candidate;
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_node_has_one_endpoint_and_those_that_serve_are_preferred() {
        let slice = |text: &str| -> EndpointSlice { serde_norway::from_str(text).unwrap() };
        let slices = [
            slice(
                "{metadata: {name: a}, addressType: IPv4, endpoints: [
                    {addresses: [10.0.0.1], nodeName: n1, conditions: {ready: false}},
                    {addresses: [10.0.0.2], nodeName: n2, conditions: {ready: true, serving: false}},
                    {addresses: [10.0.0.9], conditions: {ready: true}}]}",
            ),
            slice(
                "{metadata: {name: b}, addressType: IPv4, endpoints: [
                    {addresses: [10.0.0.3], nodeName: n1, conditions: {ready: true}},
                    {addresses: [host.example], nodeName: n3}]}",
            ),
        ];
        let found = endpoints(slices.iter(), 31767);
        let shown = |(node, endpoint): (&String, &Endpoint)| {
            format!("{node}={} {}", endpoint.address, endpoint.serves)
        };
        let shown: Vec<String> = found.iter().map(shown).collect();
        assert_eq!(shown, ["n1=10.0.0.3:31767 true", "n2=10.0.0.2:31767 false"]);
    }
}

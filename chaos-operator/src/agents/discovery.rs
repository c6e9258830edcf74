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

use crate::agents::{Agents, Tls, connection};

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
    let mut streams: BTreeMap<String, (watch::Sender<SocketAddr>, JoinHandle<()>)> =
        BTreeMap::new();
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
        let found = addresses(slices.state().iter().map(AsRef::as_ref), port);
        streams.retain(|node, (_, task)| {
            let is_there = found.contains_key(node);
            if !is_there {
                tracing::info!(node, "the agent has no endpoint any more");
                task.abort();
                agents.lost(node, jiff::Timestamp::now());
            }
            is_there
        });
        for (node, address) in found {
            if let Some((current, _)) = streams.get(&node) {
                current.send_if_modified(|old| std::mem::replace(old, address) != address);
                continue;
            }
            let (sender, receiver) = watch::channel(address);
            let task = connection::run(agents.clone(), node.clone(), receiver, tls.clone());
            streams.insert(node, (sender, tokio::spawn(task)));
        }
    }
}

/// One address per node: of an endpoint that is ready, else of any. An agent that is alive but not
/// ready can still take faults away.
fn addresses<'a>(
    slices: impl Iterator<Item = &'a EndpointSlice>,
    port: u16,
) -> BTreeMap<String, SocketAddr> {
    let mut found: BTreeMap<String, (bool, SocketAddr)> = BTreeMap::new();
    for endpoint in slices.flat_map(|slice| slice.endpoints.iter().flatten()) {
        let Some(node) = &endpoint.node_name else {
            continue;
        };
        let conditions = endpoint.conditions.as_ref();
        let is_ready = conditions
            .and_then(|conditions| conditions.ready)
            .unwrap_or(true);
        let addresses = endpoint.addresses.iter();
        for ip in addresses.filter_map(|address| address.parse::<IpAddr>().ok()) {
            let candidate = (is_ready, SocketAddr::new(ip, port));
            let best = found.entry(node.clone()).or_insert(candidate);
            if candidate.0 && !best.0 {
                *best = candidate;
            }
        }
    }
    found
        .into_iter()
        .map(|(node, (_, address))| (node, address))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_node_has_one_address_and_ready_ones_are_preferred() {
        let slice = |text: &str| -> EndpointSlice { serde_norway::from_str(text).unwrap() };
        let slices = [
            slice(
                "{metadata: {name: a}, addressType: IPv4, endpoints: [
                    {addresses: [10.0.0.1], nodeName: n1, conditions: {ready: false}},
                    {addresses: [10.0.0.2], nodeName: n2, conditions: {ready: false}},
                    {addresses: [10.0.0.9], conditions: {ready: true}}]}",
            ),
            slice(
                "{metadata: {name: b}, addressType: IPv4, endpoints: [
                    {addresses: [10.0.0.3], nodeName: n1, conditions: {ready: true}},
                    {addresses: [host.example], nodeName: n3}]}",
            ),
        ];
        let found = addresses(slices.iter(), 31767);
        let shown: Vec<String> = found.iter().map(|(n, a)| format!("{n}={a}")).collect();
        assert_eq!(shown, ["n1=10.0.0.3:31767", "n2=10.0.0.2:31767"]);
    }
}

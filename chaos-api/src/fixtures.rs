//! Objects for the unit tests of this crate.

use crate::v1alpha1::NetworkChaos;

/// `chaos-testing/web` with this spec, as YAML.
pub(crate) fn network_chaos(spec: &str) -> NetworkChaos {
    let spec: serde_norway::Value = serde_norway::from_str(spec).expect("the test's spec is YAML");
    let object = serde_json::json!({
        "apiVersion": "chaos-mesh.org/v1alpha1",
        "kind": "NetworkChaos",
        "metadata": { "name": "web", "namespace": "chaos-testing" },
        "spec": spec,
    });
    serde_json::from_value(object).expect("the test's spec is a NetworkChaosSpec")
}

//! Specs for the unit tests of this crate.

use crate::v1alpha1::NetworkChaosSpec;

/// From YAML.
pub(crate) fn network_chaos(spec: &str) -> NetworkChaosSpec {
    serde_norway::from_str(spec).expect("the test's spec is a NetworkChaosSpec")
}

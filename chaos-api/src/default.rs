//! What the mutating webhook fills in, as pure functions. Applying them twice changes nothing.
//!
//! The reconciler applies them to its copy too, so an object that came past no webhook means the
//! same. A default that depends on the target (the device: `eth0` in a pod, any on a host) is left
//! to the agent.

use crate::clock::DEFAULT_CLOCK;
use crate::v1alpha1::{Direction, NetworkChaosSpec, PodSelector, TimeChaosSpec};

/// Fills in what a NetworkChaos leaves out: the namespaces of its selectors, the direction,
/// jitter and correlations; cuts what follows an `@` off the device. `namespace` is that of the
/// object around it.
pub fn network_chaos(spec: &mut NetworkChaosSpec, namespace: &str) {
    pod_selector(&mut spec.source, namespace);
    if let Some(target) = &mut spec.target {
        pod_selector(target, namespace);
    }
    spec.direction.get_or_insert(Direction::To);
    spec.device = spec.device.take().and_then(|device| trim_device(&device));
    spec.target_device = spec
        .target_device
        .take()
        .filter(|device| !device.is_empty());
    if let Some(delay) = &mut spec.delay {
        fill(&mut delay.jitter, "0ms");
        fill(&mut delay.correlation, "0");
        if let Some(reorder) = &mut delay.reorder {
            fill(&mut reorder.correlation, "0");
        }
    }
    if let Some(loss) = &mut spec.loss {
        fill(&mut loss.correlation, "0");
    }
    if let Some(duplicate) = &mut spec.duplicate {
        fill(&mut duplicate.correlation, "0");
    }
    if let Some(corrupt) = &mut spec.corrupt {
        fill(&mut corrupt.correlation, "0");
    }
}

/// Fills in what a TimeChaos leaves out: the namespaces of its selector, the clock. `namespace` is that
/// of the object around it.
pub fn time_chaos(spec: &mut TimeChaosSpec, namespace: &str) {
    pod_selector(&mut spec.source, namespace);
    if spec.clock_ids.is_empty() {
        spec.clock_ids.push(DEFAULT_CLOCK.to_owned());
    }
}

/// An empty list of namespaces means the namespace of the experiment.
pub fn pod_selector(selector: &mut PodSelector, namespace: &str) {
    let namespaces = &mut selector.selector.namespaces;
    if namespaces.is_empty() && !namespace.is_empty() {
        namespaces.push(namespace.to_owned());
    }
}

/// `eth0@if12`, as `ip link` prints it, names the device `eth0`. Empty is not set.
fn trim_device(device: &str) -> Option<String> {
    let name = device.split('@').next().unwrap_or_default();
    (!name.is_empty()).then(|| name.to_owned())
}

fn fill(field: &mut Option<String>, value: &str) {
    if field.as_deref().is_none_or(str::is_empty) {
        *field = Some(value.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::network_chaos as parse;

    fn defaulted(spec: &str) -> NetworkChaosSpec {
        let mut spec = parse(spec);
        network_chaos(&mut spec, "chaos-testing");
        let once = spec.clone();
        network_chaos(&mut spec, "chaos-testing");
        assert_eq!(once, spec, "defaults are idempotent");
        spec
    }

    #[test]
    fn an_empty_selector_means_the_namespace_of_the_object_also_for_the_target() {
        let spec = defaulted(
            "{action: partition, mode: all, selector: {}, target: {mode: all, selector: {}}}",
        );
        assert_eq!(spec.source.selector.namespaces, ["chaos-testing"]);
        assert_eq!(spec.target.unwrap().selector.namespaces, ["chaos-testing"]);
    }

    #[test]
    fn given_namespaces_stay() {
        let spec = defaulted("{action: partition, mode: all, selector: {namespaces: [a, b]}}");
        assert_eq!(spec.source.selector.namespaces, ["a", "b"]);
    }

    #[test]
    fn direction_jitter_and_correlations_are_filled_in() {
        let spec = defaulted(
            "{action: netem, mode: all, selector: {}, delay: {latency: 1ms, reorder: {reorder: '1', gap: 1}},
              loss: {loss: '1'}, duplicate: {duplicate: '1'}, corrupt: {corrupt: '1', correlation: '5'}}",
        );
        assert_eq!(spec.direction, Some(Direction::To));
        let delay = spec.delay.unwrap();
        assert_eq!(delay.jitter.as_deref(), Some("0ms"));
        assert_eq!(delay.correlation.as_deref(), Some("0"));
        assert_eq!(delay.reorder.unwrap().correlation.as_deref(), Some("0"));
        assert_eq!(spec.loss.unwrap().correlation.as_deref(), Some("0"));
        assert_eq!(spec.duplicate.unwrap().correlation.as_deref(), Some("0"));
        assert_eq!(spec.corrupt.unwrap().correlation.as_deref(), Some("5"));
    }

    #[test]
    fn what_follows_an_at_is_cut_off_the_device() {
        for (given, expected) in [
            ("eth0@if12", Some("eth0")),
            ("eth1", Some("eth1")),
            ("''", None),
        ] {
            let spec = defaulted(&format!(
                "{{action: partition, mode: all, selector: {{}}, device: {given}}}"
            ));
            assert_eq!(spec.device.as_deref(), expected);
        }
    }
}

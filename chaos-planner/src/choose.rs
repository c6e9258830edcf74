//! Fault x capabilities -> mechanisms, or why not. The ladders of the design, one row per fault.

use crate::capabilities::{Capabilities, Mechanism};
use crate::fault::{Effect, NetworkEffect, TargetRef};

/// The longest delay. fq's horizon, in microseconds, has 32 bits: 71 minutes.
pub const MAX_DELAY: std::time::Duration = std::time::Duration::from_secs(3600);

/// This node or target cannot have this fault; asking again does not help.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsupported {
    /// The node lacks the mechanism, and there is no other for this fault.
    #[error("this node cannot do {fault}: {mechanism} is not available: {reason}; see `chaos-agent doctor`", mechanism = .mechanism.name())]
    Lacks {
        /// What was asked.
        fault: &'static str,
        /// What would carry it out.
        mechanism: Mechanism,
        /// Why it is not to be had.
        reason: String,
    },
    /// The effect makes no sense as it stands.
    #[error("{0}")]
    Effect(&'static str),
}

/// Mechanisms that together carry the effect out, in the order in which a packet meets them.
///
/// # Errors
/// [`Unsupported`]
pub fn choose(
    effect: &Effect,
    target: &TargetRef,
    capabilities: &Capabilities,
) -> Result<Vec<Mechanism>, Unsupported> {
    let Effect::Network(network) = effect;
    let wanted = network_mechanisms(network, target)?;
    for &(fault, mechanism) in &wanted {
        if let Some(reason) = capabilities.lacks(mechanism) {
            return Err(Unsupported::Lacks {
                fault,
                mechanism,
                reason: reason.to_owned(),
            });
        }
    }
    let mut mechanisms: Vec<_> = wanted.into_iter().map(|(_, mechanism)| mechanism).collect();
    mechanisms.dedup();
    Ok(mechanisms)
}

fn network_mechanisms(
    effect: &NetworkEffect,
    target: &TargetRef,
) -> Result<Vec<(&'static str, Mechanism)>, Unsupported> {
    let shapes = effect.loss_ppm.is_some() || effect.delay.is_some();
    let refuse = |why| Err(Unsupported::Effect(why));
    if !effect.egress && !effect.ingress {
        return refuse("neither egress nor ingress: nothing to do; set a direction");
    }
    if !effect.drop && !shapes {
        return refuse("no effect: set drop, loss or delay");
    }
    if shapes && !effect.egress {
        return refuse("loss and delay act on what the target sends; set egress");
    }
    if shapes
        && matches!(
            target,
            TargetRef::Pod {
                host_network: true,
                ..
            }
        )
    {
        return refuse(
            "loss and delay for pods with hostNetwork are not built yet; use action partition, which works by cgroup",
        );
    }
    if effect.delay.is_some_and(|delay| delay > MAX_DELAY) {
        return refuse("delays above 1h are not possible (fq's horizon); use partition instead");
    }
    let mut wanted = Vec::new();
    if effect.drop {
        wanted.push(("partition", Mechanism::CgroupDrop));
    }
    if effect.loss_ppm.is_some() {
        wanted.push(("loss", Mechanism::TcEgress));
    }
    if effect.delay.is_some() {
        wanted.push(("delay", Mechanism::TcEgress));
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::capabilities::Capability;

    fn node(lacking: &[Mechanism]) -> Capabilities {
        let mechanisms = Mechanism::ALL
            .into_iter()
            .map(|mechanism| Capability {
                mechanism,
                supported: !lacking.contains(&mechanism),
                reason: "no such thing here".into(),
            })
            .collect();
        Capabilities {
            kernel: "6.12".into(),
            mechanisms,
        }
    }

    fn pod(host_network: bool) -> TargetRef {
        TargetRef::Pod {
            uid: "u".into(),
            container_ids: vec![],
            host_network,
        }
    }

    fn egress() -> NetworkEffect {
        NetworkEffect {
            egress: true,
            ..NetworkEffect::default()
        }
    }

    #[test]
    fn each_effect_has_its_mechanism() {
        use Mechanism::{CgroupDrop, TcEgress};
        let delay = Some(Duration::from_millis(100));
        let table = [
            (
                NetworkEffect {
                    drop: true,
                    ..egress()
                },
                vec![CgroupDrop],
            ),
            (
                NetworkEffect {
                    loss_ppm: Some(1),
                    ..egress()
                },
                vec![TcEgress],
            ),
            (NetworkEffect { delay, ..egress() }, vec![TcEgress]),
            (
                NetworkEffect {
                    delay,
                    loss_ppm: Some(1),
                    ..egress()
                },
                vec![TcEgress],
            ),
            (
                NetworkEffect {
                    drop: true,
                    delay,
                    ..egress()
                },
                vec![CgroupDrop, TcEgress],
            ),
            (
                NetworkEffect {
                    drop: true,
                    ingress: true,
                    ..Default::default()
                },
                vec![CgroupDrop],
            ),
        ];
        for (effect, expected) in table {
            let chosen = choose(&Effect::Network(effect.clone()), &pod(false), &node(&[]));
            assert_eq!(chosen.as_deref(), Ok(&*expected), "{effect:?}");
        }
    }

    #[test]
    fn what_cannot_be_done_says_why() {
        let delay = Some(Duration::from_millis(100));
        let table = [
            (
                NetworkEffect::default(),
                pod(false),
                "neither egress nor ingress",
            ),
            (egress(), pod(false), "no effect"),
            (
                NetworkEffect {
                    ingress: true,
                    delay,
                    ..Default::default()
                },
                pod(false),
                "set egress",
            ),
            (
                NetworkEffect { delay, ..egress() },
                pod(true),
                "hostNetwork",
            ),
            (
                NetworkEffect {
                    delay: Some(MAX_DELAY * 2),
                    ..egress()
                },
                pod(false),
                "above 1h",
            ),
            (
                NetworkEffect { delay, ..egress() },
                pod(false),
                "tc_egress is not available: no such",
            ),
        ];
        for (effect, target, expected) in table {
            let refusal = choose(
                &Effect::Network(effect),
                &target,
                &node(&[Mechanism::TcEgress]),
            );
            let text = refusal.expect_err("must be refused").to_string();
            assert!(text.contains(expected), "{text}");
        }
    }

    #[test]
    fn a_partition_needs_no_tc() {
        let effect = Effect::Network(NetworkEffect {
            drop: true,
            ..egress()
        });
        let chosen = choose(&effect, &pod(true), &node(&[Mechanism::TcEgress]));
        assert_eq!(chosen, Ok(vec![Mechanism::CgroupDrop]));
    }
}

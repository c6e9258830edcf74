//! Fault x capabilities -> mechanisms, or why not. The ladders of the design, one row per fault.

use crate::capabilities::{Capabilities, Mechanism};
use crate::fault::{Effect, NetworkEffect};

/// The longest delay, jitter included, and the longest wait in the queue of a shaper. fq's horizon,
/// in microseconds, has 32 bits: 71 minutes.
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

/// A part of an effect, and what carries it out.
struct Part {
    /// As users name it.
    fault: &'static str,
    mechanism: Mechanism,
    /// It takes all that the mechanism can do, and not what it can do everywhere.
    whole: bool,
}

/// Mechanisms that together carry the effect out, in the order in which a packet meets them.
///
/// # Errors
/// [`Unsupported`]
pub fn choose(effect: &Effect, capabilities: &Capabilities) -> Result<Vec<Mechanism>, Unsupported> {
    let wanted = match effect {
        Effect::Network(network) => network_mechanisms(network)?,
        Effect::Clock(clock) => match clock.refusal() {
            Some(why) => return Err(Unsupported::Effect(why)),
            None => vec![Part {
                fault: "clock skew",
                mechanism: Mechanism::ClockShift,
                whole: false,
            }],
        },
    };
    for &Part {
        fault,
        mechanism,
        whole,
    } in &wanted
    {
        if let Some(reason) = capabilities.lacks(mechanism, whole) {
            return Err(Unsupported::Lacks {
                fault,
                mechanism,
                reason: reason.to_owned(),
            });
        }
    }
    let mut mechanisms: Vec<_> = wanted.into_iter().map(|part| part.mechanism).collect();
    mechanisms.sort_unstable();
    mechanisms.dedup();
    Ok(mechanisms)
}

fn network_mechanisms(effect: &NetworkEffect) -> Result<Vec<Part>, Unsupported> {
    let shapes = effect.shapes();
    let refuse = |why| Err(Unsupported::Effect(why));
    if !effect.egress && !effect.ingress {
        return refuse("neither egress nor ingress: nothing to do; set a direction");
    }
    if !effect.drop && !shapes {
        return refuse("no effect: set drop, loss, duplicate, corrupt, delay, rate or bandwidth");
    }
    if effect
        .delay
        .is_some_and(|delay| delay.longest() > MAX_DELAY)
    {
        return refuse(
            "delays above 1h, jitter included, are not possible (fq's horizon); use partition instead",
        );
    }
    let peak = effect.bandwidth.and_then(|bandwidth| bandwidth.peak);
    let rates = [
        effect.rate,
        effect.bandwidth.map(|bandwidth| bandwidth.rate),
        peak.map(|peak| peak.rate),
    ];
    if rates.contains(&Some(0)) {
        return refuse("a rate of 0 lets nothing pass; use partition instead");
    }
    let mut wanted = Vec::new();
    if effect.drop {
        wanted.push(Part {
            fault: "partition",
            mechanism: Mechanism::CgroupDrop,
            whole: false,
        });
    }
    // Loss alone needs no detour.
    let on_a_device = [
        ("loss", effect.loss.is_some(), false),
        ("duplicate", effect.duplicate.is_some(), true),
        ("corrupt", effect.corrupt.is_some(), true),
        ("delay", effect.delay.is_some(), true),
        ("rate", effect.rate.is_some(), true),
        ("bandwidth", effect.bandwidth.is_some(), true),
    ];
    let asked = on_a_device.into_iter().filter(|(_, asked, _)| *asked);
    let ways = [
        (effect.egress, Mechanism::TcEgress),
        (effect.ingress, Mechanism::TcIngress),
    ];
    for (fault, _, whole) in asked {
        let asked = ways.into_iter().filter(|(asked, _)| *asked);
        wanted.extend(asked.map(|(_, mechanism)| Part {
            fault,
            mechanism,
            whole,
        }));
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::capabilities::Capability;
    use crate::clock::{ClockEffect, Jump};
    use crate::fault::{Bandwidth, Chance, Delay};

    fn node(lacking: &[Mechanism]) -> Capabilities {
        let mechanisms = Mechanism::ALL
            .into_iter()
            .map(|mechanism| Capability {
                mechanism,
                supported: !lacking.contains(&mechanism),
                only_loss: false,
                reason: "no such thing here".into(),
            })
            .collect();
        Capabilities {
            kernel: "6.12".into(),
            mechanisms,
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
        use Mechanism::{CgroupDrop, TcEgress, TcIngress};
        let delay = Some(Delay::of(Duration::from_millis(100)));
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
                    loss: Some(Chance::of(1)),
                    ..egress()
                },
                vec![TcEgress],
            ),
            (NetworkEffect { delay, ..egress() }, vec![TcEgress]),
            (
                NetworkEffect {
                    corrupt: Some(Chance::of(1)),
                    ..egress()
                },
                vec![TcEgress],
            ),
            (
                NetworkEffect {
                    duplicate: Some(Chance::of(1)),
                    rate: Some(1),
                    bandwidth: Some(Bandwidth {
                        rate: 1,
                        ..Bandwidth::default()
                    }),
                    ..egress()
                },
                vec![TcEgress],
            ),
            (
                NetworkEffect {
                    delay,
                    loss: Some(Chance::of(1)),
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
            (
                NetworkEffect {
                    ingress: true,
                    delay,
                    ..Default::default()
                },
                vec![TcIngress],
            ),
            (
                NetworkEffect {
                    ingress: true,
                    delay,
                    loss: Some(Chance::of(1)),
                    ..egress()
                },
                vec![TcEgress, TcIngress],
            ),
        ];
        for (effect, expected) in table {
            let chosen = choose(&Effect::Network(effect.clone()), &node(&[]));
            assert_eq!(chosen.as_deref(), Ok(&*expected), "{effect:?}");
        }
    }

    #[test]
    fn what_cannot_be_done_says_why() {
        let delay = Some(Delay::of(Duration::from_millis(100)));
        let table = [
            (NetworkEffect::default(), "neither egress nor ingress"),
            (egress(), "no effect"),
            (
                NetworkEffect {
                    delay: Some(Delay {
                        jitter: Duration::from_secs(1),
                        ..Delay::of(MAX_DELAY)
                    }),
                    ..egress()
                },
                "above 1h",
            ),
            (
                NetworkEffect {
                    bandwidth: Some(Bandwidth::default()),
                    ..egress()
                },
                "a rate of 0",
            ),
            (
                NetworkEffect { delay, ..egress() },
                "tc_egress is not available: no such",
            ),
        ];
        for (effect, expected) in table {
            let refusal = choose(&Effect::Network(effect), &node(&[Mechanism::TcEgress]));
            let text = refusal.expect_err("must be refused").to_string();
            assert!(text.contains(expected), "{text}");
        }
    }

    #[test]
    fn a_clock_is_shifted_or_the_reason_told() {
        let hour = ClockEffect {
            offset_ns: 3_600_000_000_000,
            clocks: 1,
            ..ClockEffect::default()
        };
        let jump = Jump {
            after_ns: 1,
            by_ns: 1,
        };
        let with = |offset_ns, drift_ppm, jumps| ClockEffect {
            offset_ns,
            clocks: 1,
            drift_ppm,
            jumps: vec![jump; jumps],
        };
        let of = |clock, lacking: &[_]| choose(&Effect::Clock(clock), &node(lacking));
        for clock in [hour.clone(), with(0, -990_000, 0), with(0, 0, 8)] {
            assert_eq!(of(clock, &[]), Ok(vec![Mechanism::ClockShift]));
        }
        for (clock, lacking, expected) in [
            (
                hour.clone(),
                &[Mechanism::ClockShift][..],
                "cannot do clock skew",
            ),
            (
                ClockEffect {
                    clocks: 0,
                    ..hour.clone()
                },
                &[],
                "no clock is named",
            ),
            (with(0, 0, 0), &[], "an offset of 0"),
            (with(0, -990_001, 0), &[], "a hundredth"),
            (with(0, 99_000_001, 0), &[], "a hundredth"),
            (with(1, 0, 9), &[], "at most 8 times"),
        ] {
            let text = of(clock, lacking).expect_err("must be refused").to_string();
            assert!(text.contains(expected), "{text}");
        }
    }

    #[test]
    fn a_node_without_fq_can_still_lose_packets() {
        let mut node = node(&[]);
        for capability in &mut node.mechanisms {
            capability.only_loss = capability.mechanism != Mechanism::CgroupDrop;
            capability.reason = "no fq".into();
        }
        let loss = NetworkEffect {
            loss: Some(Chance::of(1)),
            ..egress()
        };
        let and_delay = NetworkEffect {
            delay: Some(Delay::of(Duration::from_millis(1))),
            ..loss.clone()
        };
        let chosen = |effect| choose(&Effect::Network(effect), &node);
        assert_eq!(chosen(loss), Ok(vec![Mechanism::TcEgress]));
        let refusal = chosen(and_delay).expect_err("must be refused").to_string();
        assert!(
            refusal.contains("cannot do delay: tc_egress is not available: no fq"),
            "{refusal}"
        );
    }

    #[test]
    fn a_partition_needs_no_tc() {
        let effect = Effect::Network(NetworkEffect {
            drop: true,
            ..egress()
        });
        let chosen = choose(&effect, &node(&[Mechanism::TcEgress]));
        assert_eq!(chosen, Ok(vec![Mechanism::CgroupDrop]));
    }
}

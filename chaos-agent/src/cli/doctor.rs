//! `doctor`: what this node can do, tried, and what is in the way.

mod host;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use chaos_planner::capabilities::{Capabilities, Capability, Mechanism};
use chaos_planner::choose::{Unsupported, choose};
use chaos_planner::clock::ClockEffect;
use chaos_planner::fault::{Bandwidth, Chance, Delay, Effect, NetworkEffect};
use chaos_proto::agent::CapabilitiesRequest;
use serde::Serialize;

use super::table::Table;
use super::{Context, daemon, offline};
use crate::node::{Node, Options};
use host::Check;

#[derive(Debug, Serialize)]
struct Diagnosis {
    kernel: String,
    /// "daemon" when it was asked, "tried" when it was tried here and now.
    source: &'static str,
    checks: Vec<Check>,
    mechanisms: Vec<Capability>,
    ladder: Vec<Rung>,
}

/// A fault, and what would carry it out here.
#[derive(Debug, Serialize)]
struct Rung {
    fault: &'static str,
    supported: bool,
    mechanisms: Vec<&'static str>,
    reason: String,
}

pub(super) async fn run(context: Context) -> anyhow::Result<ExitCode> {
    let options = &context.options;
    let mut checks = host::checks(options);
    let (source, capabilities) = match daemon::Daemon::find(options).await? {
        Some(daemon) => ("daemon", ask(&daemon).await?),
        None => match try_all(options) {
            Ok(capabilities) => ("tried", capabilities),
            Err(error) => {
                let reason = format!("{error:#}");
                // Mostly a row above has said it already.
                if checks.iter().all(|check| check.detail != reason) {
                    checks.push(Check::failed("agent", reason));
                }
                (
                    "tried",
                    nothing("not tried: the agent cannot start here, see above"),
                )
            }
        },
    };
    let diagnosis = Diagnosis {
        ladder: ladder(&capabilities),
        kernel: capabilities.kernel,
        source,
        checks,
        mechanisms: capabilities.mechanisms,
    };
    let works = diagnosis
        .mechanisms
        .iter()
        .any(|capability| capability.supported);
    context.out.result(&diagnosis, || table(&diagnosis))?;
    Ok(if works {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

async fn ask(daemon: &daemon::Daemon) -> anyhow::Result<Capabilities> {
    let reply = daemon
        .agent()
        .capabilities(CapabilitiesRequest {})
        .await
        .map_err(daemon::refused)?
        .into_inner();
    let mechanisms = Mechanism::ALL
        .into_iter()
        .filter_map(|mechanism| {
            let found = reply
                .mechanisms
                .iter()
                .find(|c| c.mechanism == mechanism.name())?;
            let reason = found.reason.clone();
            Some(Capability {
                mechanism,
                supported: found.supported,
                only_loss: found.only_loss,
                reason,
            })
        })
        .collect();
    Ok(Capabilities {
        kernel: reply.kernel,
        mechanisms,
    })
}

/// Opens the node, which tries each mechanism, and leaves it as it was.
fn try_all(options: &Options) -> anyhow::Result<Capabilities> {
    let ours = offline::maps(options)?.is_none();
    let node = Node::open(options.clone())?;
    let capabilities = node.capabilities().clone();
    if ours {
        node.purge()
            .context("failed to remove what was loaded to try it")?;
    }
    Ok(capabilities)
}

fn nothing(reason: &str) -> Capabilities {
    Capabilities {
        kernel: host::kernel(),
        mechanisms: Mechanism::ALL
            .into_iter()
            .map(|mechanism| Capability {
                mechanism,
                supported: false,
                only_loss: false,
                reason: reason.to_owned(),
            })
            .collect(),
    }
}

/// Each fault that is built, as the planner would carry it out.
fn ladder(capabilities: &Capabilities) -> Vec<Rung> {
    let egress = NetworkEffect {
        egress: true,
        ..NetworkEffect::default()
    };
    let share = Some(Chance::of(1));
    [
        (
            "NetworkChaos partition",
            NetworkEffect {
                drop: true,
                ingress: true,
                ..egress.clone()
            },
        ),
        (
            "NetworkChaos loss",
            NetworkEffect {
                loss: share,
                ..egress.clone()
            },
        ),
        (
            "NetworkChaos duplicate",
            NetworkEffect {
                duplicate: share,
                ..egress.clone()
            },
        ),
        (
            "NetworkChaos corrupt",
            NetworkEffect {
                corrupt: share,
                ..egress.clone()
            },
        ),
        (
            "NetworkChaos delay",
            NetworkEffect {
                delay: Some(Delay::of(Duration::from_millis(1))),
                ..egress.clone()
            },
        ),
        (
            "NetworkChaos rate",
            NetworkEffect {
                rate: Some(1),
                ..egress.clone()
            },
        ),
        (
            "NetworkChaos bandwidth",
            NetworkEffect {
                bandwidth: Some(Bandwidth {
                    rate: 1,
                    limit: 1,
                    buffer: 1,
                    peak: None,
                }),
                ..egress
            },
        ),
    ]
    .into_iter()
    .map(|(fault, effect)| (fault, Effect::Network(effect)))
    .chain([(
        "TimeChaos",
        Effect::Clock(ClockEffect {
            offset_ns: 1,
            clocks: 1,
            ..ClockEffect::default()
        }),
    )])
    .map(|(fault, effect)| match choose(&effect, capabilities) {
        Ok(mechanisms) => Rung {
            fault,
            supported: true,
            mechanisms: mechanisms.into_iter().map(Mechanism::name).collect(),
            reason: String::new(),
        },
        Err(error) => {
            let reason = match error {
                Unsupported::Lacks {
                    mechanism, reason, ..
                } if capabilities.lacks(mechanism, false).is_none() => reason,
                Unsupported::Lacks { mechanism, .. } => format!("needs {}", mechanism.name()),
                Unsupported::Effect(why) => why.to_owned(),
            };
            Rung {
                fault,
                supported: false,
                mechanisms: Vec::new(),
                reason,
            }
        }
    })
    .collect()
}

fn table(diagnosis: &Diagnosis) -> Table {
    let mut table = Table::new(["WHAT", "OK", "DETAIL"]);
    for check in &diagnosis.checks {
        table.row([check.what, check.verdict(), &check.detail]);
    }
    for capability in &diagnosis.mechanisms {
        let detail = match (capability.only_loss, capability.reason.as_str()) {
            (true, reason) => format!("only loss: {reason}"),
            (false, "") => "tried: works".to_owned(),
            (false, how) if capability.supported => format!("tried: works {how}"),
            (false, reason) => reason.to_owned(),
        };
        let what = format!("mechanism {}", capability.mechanism.name());
        table.row([what.as_str(), yes(capability.supported), &detail]);
    }
    for rung in &diagnosis.ladder {
        let by = rung.mechanisms.join(", ");
        let detail = if rung.supported {
            by
        } else {
            rung.reason.clone()
        };
        table.row([rung.fault, yes(rung.supported), &detail]);
    }
    table
}

fn yes(ok: bool) -> &'static str {
    if ok { "yes" } else { "no" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ladder_names_the_mechanism_or_the_reason() {
        let mut capabilities = nothing("no bpffs");
        capabilities.mechanisms[0].supported = true;
        let rungs = ladder(&capabilities);
        let short: Vec<_> = rungs
            .iter()
            .map(|r| (r.supported, r.mechanisms.join("+")))
            .collect();
        let mut expected = vec![(false, String::new()); rungs.len()];
        expected[0] = (true, "cgroup_drop".to_owned());
        assert_eq!(short, expected);
        assert_eq!(rungs[1].reason, "needs tc_egress");
    }
}

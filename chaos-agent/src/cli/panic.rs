//! `panic`: one store switches every program off; tidying up comes after it.

use std::process::ExitCode;
use std::time::Instant;

use chaos_abi::control;
use chaos_planner::observed::{Observed, Phase};
use chaos_proto::local::{PanicRequest, ResumeRequest};
use serde::Serialize;

use super::recover::settle;
use super::{Context, daemon, offline, output};
use crate::node::Node;
use crate::node_thread::RECOVER_TIMEOUT;

/// What became of it.
#[derive(Debug, Serialize)]
struct Outcome {
    halted: bool,
    /// Ids of faults whose rules are still in the kernel; they do nothing.
    left: Vec<String>,
}

pub(super) async fn run(context: Context, resume: bool) -> anyhow::Result<ExitCode> {
    let maps = offline::maps(&context.options)?;
    let Some(mut maps) = maps else {
        let text = "nothing is pinned: no agent has run on this node since it booted, so there \
                    is nothing to switch off or on";
        context.out.event(
            &Outcome {
                halted: false,
                left: Vec::new(),
            },
            text,
        )?;
        return Ok(ExitCode::SUCCESS);
    };
    // By ourselves, before a daemon is asked that may hang.
    maps.set_control(control::HALTED, u32::from(!resume))?;
    let daemon = daemon::Daemon::find(&context.options).await;
    if resume {
        if let Some(daemon) = daemon? {
            daemon
                .local()
                .resume(ResumeRequest {})
                .await
                .map_err(daemon::refused)?;
        }
        let text = "resumed: faults act again, those that clients still desire are armed anew";
        context.out.event(
            &Outcome {
                halted: false,
                left: Vec::new(),
            },
            text,
        )?;
        return Ok(ExitCode::SUCCESS);
    }
    context.out.say("every fault on this node is off")?;
    let left = match tidy_up(&context, daemon).await {
        Ok(left) => left,
        Err(error) => {
            output::warn(format!(
                "the rules are still there and do nothing; the agent did not answer: {error:#}"
            ));
            Vec::new()
        }
    };
    let outcome = Outcome {
        halted: true,
        left: left.iter().map(|fault| fault.id.clone()).collect(),
    };
    let text = match left.len() {
        0 => "nothing is armed until `chaos-agent panic --resume`".to_owned(),
        n => format!(
            "{n} rules are still there and do nothing; nothing is armed until `chaos-agent panic \
             --resume`"
        ),
    };
    context.out.event(&outcome, text)?;
    Ok(ExitCode::SUCCESS)
}

/// Has the rules removed, which do nothing any more.
async fn tidy_up(
    context: &Context,
    daemon: anyhow::Result<Option<daemon::Daemon>>,
) -> anyhow::Result<Vec<Observed>> {
    if let Some(daemon) = daemon? {
        let reply = daemon
            .local()
            .panic(PanicRequest {})
            .await
            .map_err(daemon::refused)?;
        return Ok(daemon::observed(reply.into_inner().left));
    }
    let mut node = Node::open(context.options.clone())?;
    Ok(settle(
        &mut node,
        Instant::now() + RECOVER_TIMEOUT,
        is_in_kernel,
    ))
}

fn is_in_kernel(fault: &Observed) -> bool {
    matches!(fault.phase, Phase::Injected | Phase::Recovering)
}

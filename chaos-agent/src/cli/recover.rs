//! `recover`: faults off, and the kernel asked whether they are gone.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use chaos_planner::fault::{Fault, Lifetime};
use chaos_planner::observed::{Observed, Phase};
use chaos_proto::local::RecoverRequest;
use chaos_proto::local::recover_request::Which as WireWhich;
use serde::Serialize;

use super::{Context, daemon, offline};
use crate::args::RecoverArgs;
use crate::journal::Journal;
use crate::node::{Node, Owner};
use crate::node_thread::{RECOVER_TIMEOUT, Which};

/// What became of it.
#[derive(Debug, Serialize)]
struct Outcome {
    /// Ids of the faults that it was about.
    recovered: Vec<String>,
    /// Those of them that are still in the kernel.
    left: Vec<String>,
    /// Programs and maps are gone, too.
    purged: bool,
}

pub(super) async fn run(context: Context, args: RecoverArgs) -> anyhow::Result<ExitCode> {
    let which = match &args.name {
        Some(name) => Which::Named(name.clone()),
        None => Which::All,
    };
    if let Some(daemon) = daemon::Daemon::find(&context.options).await? {
        let which = match which {
            Which::Named(name) => WireWhich::Name(name),
            Which::All => WireWhich::All(true),
        };
        let request = RecoverRequest { which: Some(which) };
        let reply = daemon
            .local()
            .recover(request)
            .await
            .map_err(daemon::refused)?
            .into_inner();
        let left = daemon::observed(reply.left);
        let outcome = outcome(reply.ids, &left, false);
        report(&context, &outcome, &left)?;
        if args.purge {
            bail!(
                "every fault is off, but the agent that runs on this node keeps its programs and \
                 maps; stop it first, then run this again"
            );
        }
        return Ok(code(&outcome));
    }
    if offline::maps(&context.options)?.is_none() && !args.purge {
        if let Which::Named(name) = which {
            bail!("{name}: nothing is pinned: no agent has run on this node since it booted");
        }
        context.out.event(
            &outcome(Vec::new(), &[], false),
            "nothing is pinned: this node is clean",
        )?;
        return Ok(ExitCode::SUCCESS);
    }
    let (outcome, left) = alone(&context, &which, args.purge)?;
    report(&context, &outcome, &left)?;
    Ok(code(&outcome))
}

/// Without a daemon: opens the node for as long as it takes.
fn alone(
    context: &Context,
    which: &Which,
    purge: bool,
) -> anyhow::Result<(Outcome, Vec<Observed>)> {
    let options = &context.options;
    // Whose faults there are, before the node adopts them.
    let journal = Journal::new(&options.run_dir, &options.proc_root)
        .context("failed to read the boot id")?
        .read();
    let mut node = Node::open(options.clone())?;
    let held = node.observed(None);
    let ids: Vec<String> = held
        .iter()
        .filter(|fault| which.means(fault))
        .map(|fault| fault.id.clone())
        .collect();
    if let (Which::Named(name), true) = (which, ids.is_empty()) {
        bail!("{name}: no fault of this node has this id or name; see `chaos-agent faults`");
    }
    let mut wanted: BTreeMap<Owner, Vec<Fault>> = BTreeMap::new();
    for entry in journal.armed {
        let faults = wanted.entry(Owner(entry.owner)).or_default();
        if !ids.contains(&entry.armed.fault.id) {
            // Its deadline stays, that of a lease too: nobody is here to renew it, and one that
            // has lapsed must not come back.
            let mut fault = entry.armed.fault;
            let seen = held.iter().find(|seen| seen.id == fault.id);
            fault.lifetime = Lifetime::For(seen.map_or(Duration::ZERO, |seen| seen.expires_in));
            faults.push(fault);
        }
    }
    for (owner, faults) in wanted {
        node.set_desired(owner, faults);
    }
    let until = Instant::now() + RECOVER_TIMEOUT;
    let left = settle(&mut node, until, |fault| ids.contains(&fault.id));
    if purge {
        node.purge().context("failed to remove everything")?;
    }
    Ok((outcome(ids, &left, purge), left))
}

/// Reconciles until no fault that matters is left in the kernel, or it has taken too long.
pub(super) fn settle(
    node: &mut Node,
    until: Instant,
    matters: impl Fn(&Observed) -> bool,
) -> Vec<Observed> {
    loop {
        let again = node.reconcile();
        let mut left = node.observed(None);
        left.retain(&matters);
        if left.is_empty() || Instant::now() >= until {
            return left;
        }
        std::thread::sleep(again.clamp(Duration::from_millis(1), Duration::from_millis(100)));
    }
}

fn outcome(mut ids: Vec<String>, left: &[Observed], purged: bool) -> Outcome {
    ids.retain(|id| !left.iter().any(|fault| fault.id == *id));
    Outcome {
        recovered: ids,
        left: left.iter().map(|fault| fault.id.clone()).collect(),
        purged,
    }
}

fn report(context: &Context, outcome: &Outcome, left: &[Observed]) -> anyhow::Result<()> {
    let mut text = match outcome.recovered.len() {
        0 => "no fault was there".to_owned(),
        1 => "1 fault recovered, kernel verified clean".to_owned(),
        n => format!("{n} faults recovered, kernel verified clean"),
    };
    if outcome.purged {
        text.push_str("; programs and maps are gone");
    }
    for fault in left {
        let why = if fault.phase == Phase::Recovering && fault.reason.is_empty() {
            "packets on the way"
        } else {
            &fault.reason
        };
        text.push_str(&format!(
            "\nstill in the kernel: {} ({why}); run this again",
            fault.id
        ));
    }
    Ok(context.out.event(outcome, text)?)
}

fn code(outcome: &Outcome) -> ExitCode {
    if outcome.left.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

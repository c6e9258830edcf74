//! `faults`: what acts on this node now.

use std::process::ExitCode;
use std::time::Duration;

use chaos_planner::observed::{Observed, Phase};
use chaos_proto::local::FaultsRequest;
use serde::Serialize;

use super::table::Table;
use super::{Context, daemon, offline, output};

/// A fault as `--json` prints it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct FaultRow {
    id: String,
    kind: String,
    namespace: String,
    name: String,
    record: String,
    phase: Phase,
    mechanisms: Vec<&'static str>,
    reason: String,
    degraded: bool,
    matched: u64,
    injected: u64,
    would_inject: u64,
    failed: u64,
    /// Until the kernel ends it by itself.
    expires_in_ms: u128,
    armed_ms_ago: u128,
    first_hit_ms_ago: Option<u128>,
}

impl From<&Observed> for FaultRow {
    fn from(fault: &Observed) -> Self {
        let mut mechanisms: Vec<_> = fault.mechanisms.iter().map(|m| m.name()).collect();
        mechanisms.dedup();
        Self {
            id: fault.id.clone(),
            kind: fault.kind.clone(),
            namespace: fault.namespace.clone(),
            name: fault.name.clone(),
            record: fault.record.clone(),
            phase: fault.phase,
            mechanisms,
            reason: fault.reason.clone(),
            degraded: fault.degraded,
            matched: fault.counts.matched,
            injected: fault.counts.injected,
            would_inject: fault.counts.would_inject,
            failed: fault.counts.failed,
            expires_in_ms: fault.expires_in.as_millis(),
            armed_ms_ago: fault.armed_ago.as_millis(),
            first_hit_ms_ago: fault.first_hit_ago.map(|ago| ago.as_millis()),
        }
    }
}

pub(super) async fn run(context: Context) -> anyhow::Result<ExitCode> {
    let (faults, halted) = match ask(&context).await {
        Ok(Some(answer)) => answer,
        Ok(None) => {
            let held = read(&context)?;
            if !held.0.is_empty() {
                output::warn("no agent runs on this node; each of these ends by itself");
            }
            held
        }
        Err(error) => {
            output::warn(format!("{error:#}; what follows is read from the kernel"));
            read(&context)?
        }
    };
    let rows: Vec<FaultRow> = faults.iter().map(FaultRow::from).collect();
    context.out.result(&rows, || table(&faults, halted))?;
    Ok(ExitCode::SUCCESS)
}

type Answer = (Vec<Observed>, bool);

/// What the daemon says; `None` when there is none.
async fn ask(context: &Context) -> anyhow::Result<Option<Answer>> {
    let Some(daemon) = daemon::Daemon::find(&context.options).await? else {
        return Ok(None);
    };
    let reply = daemon
        .local()
        .faults(FaultsRequest {})
        .await
        .map_err(daemon::refused)?;
    let reply = reply.into_inner();
    Ok(Some((daemon::observed(reply.faults), reply.halted)))
}

/// What the pinned maps say.
fn read(context: &Context) -> anyhow::Result<Answer> {
    match offline::maps(&context.options)? {
        Some(maps) => Ok((offline::faults(&context.options, &maps)?, maps.halted()?)),
        None => Ok((Vec::new(), false)),
    }
}

/// The same for people.
pub(super) fn table(faults: &[Observed], halted: bool) -> Table {
    let mut table = Table::new([
        "EXPERIMENT",
        "RECORD",
        "PHASE",
        "MECHANISM",
        "MATCHED",
        "HITS",
        "ENDS IN",
        "REASON",
    ])
    .or_say("no faults on this node");
    for fault in faults {
        let row = FaultRow::from(fault);
        let name = match row.namespace.as_str() {
            "" => row.name.clone(),
            namespace => format!("{namespace}/{}", row.name),
        };
        let hits = match (row.would_inject, row.failed) {
            (0, 0) => row.injected.to_string(),
            (0, failed) => format!("{} ({failed} failed)", row.injected),
            (would, _) => format!("{would} would"),
        };
        table.row([
            name,
            row.record.clone(),
            format!("{:?}", row.phase),
            row.mechanisms.join("+"),
            row.matched.to_string(),
            hits,
            time_left(fault.expires_in),
            row.reason.clone(),
        ]);
    }
    if halted {
        table.note("`chaos-agent panic` is in force: nothing acts until `panic --resume`");
    }
    table
}

/// `1h2m`, `3m4s`, `5.6s`; `-` for what has ended.
pub(super) fn time_left(left: Duration) -> String {
    let (seconds, tenths) = (left.as_secs(), left.subsec_millis() / 100);
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0) if tenths == 0 => "-".to_owned(),
        (0, 0, seconds) => format!("{seconds}.{tenths}s"),
        (0, minutes, seconds) => format!("{minutes}m{seconds}s"),
        (hours, minutes, _) => format!("{hours}h{minutes}m"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_left_is_short() {
        for (ms, text) in [
            (0, "-"),
            (99, "-"),
            (5_650, "5.6s"),
            (59_999, "59.9s"),
            (184_000, "3m4s"),
            (3_720_000, "1h2m"),
        ] {
            assert_eq!(time_left(Duration::from_millis(ms)), text);
        }
    }
}

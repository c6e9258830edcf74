//! `maps`: what the kernel holds, read by nobody but us: it works when no daemon does.

mod decode;
mod raw;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use aya::maps::MapInfo;
use serde_json::{Map, Value, json};

use super::table::Table;
use super::{Context, offline};
use crate::args::MapsCommand;
use crate::kernel::clock;
use crate::kernel::maps::{self, Pinned};
use decode::Row;

/// What each map is for, in the order of [`maps::NAMES`].
const MEANING: [(&str, &str); 15] = [
    ("ARMED", "1 while there is any rule about packets"),
    (
        "CONTROL",
        "words that every program reads first: halted, epoch, clocks",
    ),
    (
        "RULES",
        "one fault on one target: until when, what, how often",
    ),
    (
        "COUNTERS",
        "per rule and CPU: matched, injected, would_inject, dropped of these, failed",
    ),
    (
        "STATE",
        "per rule: number of the next packet to draw for, clocks of shapers",
    ),
    ("PEERS", "addresses, and ports, that rules are limited to"),
    ("NETS", "networks that rules are limited to"),
    (
        "DEPTHS",
        "levels below the root at which target cgroups sit",
    ),
    ("CGROUP_TARGETS", "cgroup id -> rules of cgroup_drop"),
    (
        "DEVICE_TARGETS",
        "slot of a device's way -> rules of tc_egress or tc_ingress",
    ),
    (
        "WAITING",
        "slot of a device -> kilobytes that wait in its detour",
    ),
    (
        "LATENESS",
        "slot of a device -> how much earlier packets are sent through its detour",
    ),
    (
        "CLOCK_RULES",
        "one fault on the clocks of one target: until when, how far, which clocks",
    ),
    ("CLOCK_TARGETS", "cgroup id -> rules of clock_shift"),
    (
        "CLOCK_DEPTHS",
        "levels below the root at which cgroups with clock rules sit",
    ),
];

pub(super) async fn run(context: Context, command: MapsCommand) -> anyhow::Result<ExitCode> {
    let Some(pinned) = offline::maps(&context.options)? else {
        bail!(
            "no maps are pinned under {}: no agent has run on this node since it booted; start \
             one with `chaos-agent run` or `chaos-agent apply`",
            maps::directory(&context.options.bpffs).display()
        );
    };
    match command {
        MapsCommand::List => list(&context)?,
        MapsCommand::Dump { name, raw } => {
            let Some(name) = maps::NAMES
                .into_iter()
                .find(|n| n.eq_ignore_ascii_case(&name))
            else {
                bail!(
                    "{name}: there is no such map; there are {}",
                    maps::NAMES.join(", ")
                );
            };
            let rows = if raw {
                raw::dump(&maps::directory(&context.options.bpffs), name)?
            } else {
                decode::dump(&pinned, name, clock::now_ns())?
            };
            show(&context, rows)?;
        }
        MapsCommand::Watch { interval } => watch(&context, &pinned, interval).await?,
    }
    Ok(ExitCode::SUCCESS)
}

fn list(context: &Context) -> anyhow::Result<()> {
    let directory = maps::directory(&context.options.bpffs);
    let mut rows = Vec::new();
    for name in maps::NAMES {
        let info = MapInfo::from_pin(directory.join(name))?;
        let used = raw::dump(&directory, name)?.len();
        let meaning = MEANING
            .iter()
            .find(|(n, _)| *n == name)
            .map_or("", |(_, text)| text);
        let kind = info
            .map_type()
            .map_or_else(|_| "?".to_owned(), |kind| format!("{kind:?}"));
        rows.push(vec![
            ("name", json!(name)),
            ("type", json!(kind)),
            ("key", json!(info.key_size())),
            ("value", json!(info.value_size())),
            ("max", json!(info.max_entries())),
            ("used", json!(used)),
            ("id", json!(info.id())),
            ("meaning", json!(meaning)),
        ]);
    }
    show(context, rows)
}

async fn watch(context: &Context, pinned: &Pinned, interval: f64) -> anyhow::Result<()> {
    let Ok(interval) = Duration::try_from_secs_f64(interval.max(0.05)) else {
        bail!("--interval {interval}: must be seconds, such as 0.5; give a smaller number");
    };
    loop {
        let now = clock::now_ns();
        let network = decode::rules_with_counters(pinned, now)?;
        let clocks = decode::clock_rules_with_counters(pinned, now)?;
        if context.out.is_json() {
            let rows = network.into_iter().chain(clocks).collect();
            context.out.event(&objects(rows), "")?;
        } else {
            context.out.screen(page(&network, &clocks))?;
        }
        tokio::select! {
            () = tokio::time::sleep(interval) => {}
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
    }
}

fn show(context: &Context, rows: Vec<Row>) -> anyhow::Result<()> {
    let shown = table(&rows);
    Ok(context.out.result(&objects(rows), || shown)?)
}

fn objects(rows: Vec<Row>) -> Vec<Map<String, Value>> {
    rows.into_iter()
        .map(|row| {
            row.into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect()
        })
        .collect()
}

/// Network rules and clock rules have different fields: two tables. One without rows is left out
/// where the other has some.
fn page(network: &[Row], clocks: &[Row]) -> String {
    match (network, clocks) {
        (network, []) => table(network).to_string(),
        ([], clocks) => table(clocks).to_string(),
        (network, clocks) => format!("{}\n{}", table(network), table(clocks)),
    }
}

/// All rows have the same fields.
fn table(rows: &[Row]) -> Table {
    let head = rows.first().into_iter().flatten().map(|(name, _)| *name);
    let mut table = Table::new(head).or_say("no element is in use");
    for row in rows {
        table.whole_row(row.iter().map(|(_, value)| match value {
            Value::String(text) => text.clone(),
            Value::Null => "-".to_owned(),
            other => other.to_string(),
        }));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_map_has_a_meaning() {
        assert_eq!(MEANING.map(|(name, _)| name), maps::NAMES);
    }

    #[test]
    fn rules_of_both_families_are_watched() {
        let network: Vec<Row> = vec![vec![("rule", json!(1)), ("loss", json!("30%"))]];
        let clocks: Vec<Row> = vec![vec![("rule", json!(2)), ("offset", json!("-1h0m0s"))]];
        let (of_network, of_clocks) = ("RULE  LOSS\n1     30%\n", "RULE  OFFSET\n2     -1h0m0s\n");
        assert_eq!(page(&[], &[]), "no element is in use\n");
        assert_eq!(page(&network, &[]), of_network);
        assert_eq!(page(&[], &clocks), of_clocks);
        assert_eq!(
            page(&network, &clocks),
            format!("{of_network}\n{of_clocks}")
        );
    }
}

//! Elements of the maps in words. Numbers that people compare stay numbers.

use std::net::Ipv6Addr;

use anyhow::bail;
use aya::maps::MapError;
use chaos_abi::clock::{self, ClockRule};
use chaos_abi::counters::Counters;
use chaos_abi::network::{Rule, State, Target, flag, ports};
use chaos_abi::sample::{ALWAYS, Chance, Threshold};
use chaos_abi::{RULES_PER_TARGET, control, late};
use chaos_api::clock::{CLOCKS, format_rate};
use chaos_api::duration;
use serde_json::{Value, json};

use crate::kernel::maps::{Pinned, TargetKind};

/// Fields of one element, in the order of the table's columns.
pub(super) type Row = Vec<(&'static str, Value)>;

/// The elements of a map that are in use.
pub(super) fn dump(maps: &Pinned, name: &str, now: u64) -> anyhow::Result<Vec<Row>> {
    Ok(match name {
        "ARMED" => vec![vec![("armed", json!(maps.armed()?))]],
        "CONTROL" => [
            ("halted", control::HALTED),
            ("epoch", control::EPOCH),
            ("clocks", control::CLOCKS),
        ]
        .into_iter()
        .map(|(word, index)| {
            Ok(vec![
                ("word", json!(word)),
                ("value", json!(maps.control(index)?)),
            ])
        })
        .collect::<anyhow::Result<_>>()?,
        "RULES" => maps
            .rules()?
            .into_iter()
            .map(|(id, held)| rule(id, &held, now))
            .collect(),
        "COUNTERS" => {
            let mut rows = Vec::new();
            let network = maps.rules()?.into_iter().map(|(id, _)| id);
            let clock = maps.clock_rules()?.into_iter().map(|(id, _)| id);
            for id in network.chain(clock) {
                let mut row = vec![("rule", json!(id))];
                row.extend(counters(&maps.counters(id)?, now));
                rows.push(row);
            }
            rows
        }
        "STATE" => {
            let mut rows = Vec::new();
            for (id, rule) in maps.rules()? {
                rows.push(state(id, &rule, &maps.state(id)?, now));
            }
            rows
        }
        "WAITING" => detours(maps, |slot, target| {
            Ok(vec![
                ("slot", json!(slot)),
                ("kilobytes", json!(maps.waiting(slot)?)),
                ("at_most", json!(target.budget)),
            ])
        })?,
        "LATENESS" => detours(maps, |slot, _| {
            let earlier = late::known_ns(maps.lateness(slot)?);
            Ok(vec![("slot", json!(slot)), ("nanoseconds", json!(earlier))])
        })?,
        "PEERS" => maps
            .peers()?
            .into_iter()
            .map(|key| {
                vec![
                    ("set", json!(key.set)),
                    ("peer", json!(prefix(key.addr, key.prefix))),
                    ("port", json!((key.port != 0).then_some(key.port))),
                ]
            })
            .collect(),
        "NETS" => maps
            .nets()?
            .into_iter()
            .map(|(bits, key, net)| {
                let bits = u16::try_from(bits).unwrap_or(u16::MAX);
                let ports = if net.ports == u16::from(ports::ALL) {
                    "all"
                } else {
                    "see PEERS"
                };
                vec![
                    ("set", json!(key.set)),
                    ("net", json!(prefix(key.addr, bits))),
                    ("ports", json!(ports)),
                ]
            })
            .collect(),
        "DEPTHS" => depths(maps.depths()?),
        "CLOCK_DEPTHS" => depths(maps.clock_depths()?),
        "CLOCK_TARGETS" => targets(maps, TargetKind::Clock, "cgroup")?,
        "CLOCK_RULES" => maps
            .clock_rules()?
            .into_iter()
            .map(|(id, held)| clock_rule(id, &held, now))
            .collect(),
        "CGROUP_TARGETS" => targets(maps, TargetKind::Cgroup, "cgroup")?,
        "DEVICE_TARGETS" => targets(maps, TargetKind::Device, "slot")?,
        other => bail!("{other}: this version does not know the layout; use --raw"),
    })
}

/// A row for each device that has a detour.
fn detours(
    maps: &Pinned,
    row: impl Fn(u16, &Target) -> Result<Row, MapError>,
) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (slot, target) in maps.targets(TargetKind::Device)? {
        if let Ok(slot) = u16::try_from(slot)
            && target.detour_in != 0
        {
            rows.push(row(slot, &target)?);
        }
    }
    Ok(rows)
}

fn depths(depths: Vec<u32>) -> Vec<Row> {
    depths
        .into_iter()
        .filter(|&depth| depth != 0)
        .map(|depth| vec![("depth", json!(depth))])
        .collect()
}

fn clock_rule(id: u32, rule: &ClockRule, now: u64) -> Row {
    let names = CLOCKS.iter().filter(|(_, id)| rule.shifts(*id));
    let names: Vec<_> = names.map(|(name, _)| *name).collect();
    vec![
        ("rule", json!(id)),
        ("generation", json!(rule.generation)),
        ("ends_in_ms", json!(milliseconds_to(rule.deadline_ns, now))),
        ("offset", json!(duration::format_nanos(rule.offset_ns))),
        ("rate", json!(format_rate(rule.drift_ppm))),
        ("jumps", json!(jumps(rule, now))),
        ("clocks", json!(names.join(" "))),
        ("observe", json!(rule.flags & clock::flag::OBSERVE != 0)),
    ]
}

/// "+1h0m0s in 4.5s", as many as there are.
fn jumps(rule: &ClockRule, now: u64) -> String {
    let jumps = rule.jumps.iter().filter(|jump| jump.at_ns != 0);
    let text = jumps.map(|jump| {
        let by = duration::format_move(jump.by_ns);
        let left = milliseconds_to(jump.at_ns, now);
        if left < 0 {
            format!("{by} done")
        } else {
            format!("{by} in {left} ms")
        }
    });
    text.collect::<Vec<_>>().join(", ")
}

/// An address, or a network, as people write it.
fn prefix(addr: [u8; 16], bits: u16) -> String {
    let addr = Ipv6Addr::from(addr);
    match (addr.to_ipv4_mapped(), bits) {
        (_, 128) => addr.to_canonical().to_string(),
        (Some(v4), 96..) => format!("{v4}/{}", bits - 96),
        _ => format!("{addr}/{bits}"),
    }
}

/// `RULES` beside `COUNTERS`.
pub(super) fn rules_with_counters(maps: &Pinned, now: u64) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (id, held) in maps.rules()? {
        let mut row = rule(id, &held, now);
        row.extend(counters(&maps.counters(id)?, now));
        rows.push(row);
    }
    Ok(rows)
}

/// `CLOCK_RULES` beside `COUNTERS`.
pub(super) fn clock_rules_with_counters(maps: &Pinned, now: u64) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (id, held) in maps.clock_rules()? {
        let mut row = clock_rule(id, &held, now);
        row.extend(counters(&maps.counters(id)?, now));
        rows.push(row);
    }
    Ok(rows)
}

fn rule(id: u32, rule: &Rule, now: u64) -> Row {
    let sample = match (rule.sample_threshold, rule.sample_first, rule.sample_every) {
        (ALWAYS, 0, 0 | 1) => "all".to_owned(),
        (threshold, first, every) => {
            let mut parts = Vec::new();
            if threshold < ALWAYS {
                parts.push(percent(threshold));
            }
            if first > 0 {
                parts.push(format!("first {first}"));
            }
            if every > 1 {
                parts.push(format!("every {every}"));
            }
            parts.join(" ")
        }
    };
    vec![
        ("rule", json!(id)),
        ("generation", json!(rule.generation)),
        ("ends_in_ms", json!(milliseconds_to(rule.deadline_ns, now))),
        ("flags", json!(flags(rule.flags))),
        ("sample", json!(sample)),
        ("loss", json!(chance(&rule.loss))),
        ("duplicate", json!(chance(&rule.duplicate))),
        ("corrupt", json!(chance(&rule.corrupt))),
        ("reorder", json!(reorder(rule))),
        ("delay_ms", json!(delay(rule))),
        ("shapers", json!(shapers(rule))),
        (
            "ifindex",
            json!((rule.ifindex != 0).then_some(rule.ifindex)),
        ),
        (
            "peer_set",
            json!((rule.flags & flag::PEERS != 0).then_some(rule.peer_set)),
        ),
        (
            "cgroup",
            json!((rule.cgroup_id != 0).then_some(rule.cgroup_id)),
        ),
    ]
}

/// `30%`, `30% (25% as before)`.
fn chance(chance: &Chance) -> Option<String> {
    (chance.threshold != 0).then(|| percent(chance.threshold) + &as_before(chance.correlation))
}

fn as_before(correlation: Threshold) -> String {
    match correlation {
        0 => String::new(),
        some => format!(" ({} as before)", percent(some)),
    }
}

fn reorder(rule: &Rule) -> Option<String> {
    let text = chance(&rule.reorder)?;
    Some(match rule.reorder_gap {
        0 | 1 => text,
        gap => format!("{text} gap {gap}"),
    })
}

/// `100`, `100 ± 10`.
fn delay(rule: &Rule) -> Option<String> {
    let ms = |ns: u64| ns as f64 / 1e6;
    let jitter = match rule.jitter_ns {
        0 => String::new(),
        ns => format!(" ± {}{}", ms(ns), as_before(rule.jitter_correlation)),
    };
    (rule.delay_ns != 0).then(|| format!("{}{jitter}", ms(rule.delay_ns)))
}

/// Bytes a second of each that there is.
fn shapers(rule: &Rule) -> Option<String> {
    let named = ["rate", "bandwidth", "peak"].into_iter().zip(&rule.buckets);
    let there: Vec<_> = named
        .filter(|(_, bucket)| bucket.bytes_per_second != 0)
        .map(|(name, bucket)| format!("{name} {} B/s", bucket.bytes_per_second))
        .collect();
    (!there.is_empty()).then(|| there.join(" "))
}

/// How far the clocks of shapers are ahead is what waits for them.
fn state(id: u32, rule: &Rule, state: &State, now: u64) -> Row {
    let ahead = |index: usize| {
        let shapes = rule.buckets[index].bytes_per_second != 0;
        shapes.then(|| state.clocks[index].saturating_sub(now) / 1_000_000)
    };
    vec![
        ("rule", json!(id)),
        ("next", json!(state.sequence)),
        ("in_order", json!(state.in_order)),
        ("rate_ms", json!(ahead(0))),
        ("bandwidth_ms", json!(ahead(1))),
        ("peak_ms", json!(ahead(2))),
    ]
}

fn counters(counters: &Counters, now: u64) -> Row {
    let ago = |at: u64| (at != 0).then(|| now.saturating_sub(at) / 1_000_000);
    vec![
        ("matched", json!(counters.matched)),
        ("injected", json!(counters.injected)),
        ("would_inject", json!(counters.would_inject)),
        ("failed", json!(counters.failed)),
        ("overflowed", json!(counters.overflowed)),
        ("over_budget", json!(counters.over_budget)),
        ("first_ms_ago", json!(ago(counters.first_ns))),
        ("last_ms_ago", json!(ago(counters.last_ns))),
    ]
}

fn targets(maps: &Pinned, kind: TargetKind, key: &'static str) -> anyhow::Result<Vec<Row>> {
    let device = |index: u32| (index != 0).then_some(index);
    let row = |(id, target): (u64, Target)| {
        let mut row = vec![(key, json!(id)), ("rules", json!(rule_ids(&target)))];
        if kind == TargetKind::Device {
            row.push(("device", json!(device(target.device))));
            row.push(("detour_in", json!(device(target.detour_in))));
            row.push(("detour_out", json!(device(target.detour_out))));
        }
        row
    };
    Ok(maps.targets(kind)?.into_iter().map(row).collect())
}

/// `3.1 7.1`: rule and generation.
fn rule_ids(target: &Target) -> String {
    let mut ids = Vec::with_capacity(RULES_PER_TARGET);
    for rule in target.rules.iter().take_while(|rule| rule.generation != 0) {
        ids.push(format!("{}.{}", rule.id, rule.generation));
    }
    ids.join(" ")
}

fn flags(bits: u32) -> String {
    let names = [
        (flag::EGRESS, "egress"),
        (flag::INGRESS, "ingress"),
        (flag::PEERS, "peers"),
        (flag::NETS, "nets"),
        (flag::OBSERVE, "observe"),
        (flag::DROP, "drop"),
        (flag::DRAWS, "draws"),
        (flag::SOURCE_PORT, "source-port"),
    ];
    let known = names.iter().fold(0, |all, (bit, _)| all | bit);
    let mut words: Vec<String> = names
        .iter()
        .filter(|(bit, _)| bits & bit != 0)
        .map(|(_, name)| (*name).to_owned())
        .collect();
    if bits & !known != 0 {
        words.push(format!("{:#x}", bits & !known));
    }
    words.join(" ")
}

fn percent(threshold: Threshold) -> String {
    // To the parts per million that it was made from.
    let ppm = (threshold as f64 * 1e6 / ALWAYS as f64).round();
    format!("{}%", ppm / 10_000.0)
}

/// Negative when it has passed.
fn milliseconds_to(at_ns: u64, now_ns: u64) -> i64 {
    let (at, now) = (at_ns / 1_000_000, now_ns / 1_000_000);
    i64::try_from(at)
        .unwrap_or(i64::MAX)
        .saturating_sub(i64::try_from(now).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use chaos_abi::network::RuleRef;
    use chaos_abi::pace::Bucket;
    use chaos_abi::sample::threshold_ppm;

    use super::*;

    fn cell(row: &Row, name: &str) -> Value {
        row.iter().find(|(n, _)| *n == name).unwrap().1.clone()
    }

    #[test]
    fn a_rule_is_shown_as_it_was_asked_for() {
        let delay = Rule {
            deadline_ns: 12_500_000_000,
            generation: 3,
            flags: flag::EGRESS | flag::PEERS | 1 << 9,
            peer_set: 4,
            sample_threshold: threshold_ppm(5_000),
            sample_first: 10,
            sample_every: 2,
            loss: Chance::of_ppm(300_000, 0),
            duplicate: Chance::of_ppm(10_000, 250_000),
            reorder: Chance::of_ppm(500_000, 0),
            reorder_gap: 5,
            delay_ns: 1_500_000,
            jitter_ns: 500_000,
            buckets: [
                Bucket::new(125_000, 0, 1_000, u64::MAX),
                Bucket::default(),
                Bucket::default(),
            ],
            ..Rule::default()
        };
        let row = rule(7, &delay, 10_000_000_000);
        for (name, expected) in [
            ("rule", json!(7)),
            ("ends_in_ms", json!(2500)),
            ("flags", json!("egress peers 0x200")),
            ("sample", json!("0.5% first 10 every 2")),
            ("loss", json!("30%")),
            ("duplicate", json!("1% (25% as before)")),
            ("corrupt", Value::Null),
            ("reorder", json!("50% gap 5")),
            ("delay_ms", json!("1.5 ± 0.5")),
            ("shapers", json!("rate 125000 B/s")),
            ("ifindex", Value::Null),
            ("peer_set", json!(4)),
        ] {
            assert_eq!(cell(&row, name), expected, "{name}");
        }
        let all = Rule {
            sample_threshold: ALWAYS,
            deadline_ns: 9_000_000_000,
            ..delay
        };
        let all = Rule {
            sample_first: 0,
            sample_every: 0,
            ..all
        };
        let row = rule(7, &all, 10_000_000_000);
        assert_eq!(cell(&row, "sample"), json!("all"));
        assert_eq!(cell(&row, "ends_in_ms"), json!(-1000));
    }

    #[test]
    fn a_clock_rule_is_shown_as_it_was_asked_for() {
        let hour = ClockRule {
            deadline_ns: 12_500_000_000,
            generation: 3,
            offset_ns: -3_600_000_000_000,
            clocks: 0b11,
            drift_ppm: 100_000,
            ..ClockRule::default()
        };
        let row = clock_rule(7, &hour, 10_000_000_000);
        for (name, expected) in [
            ("ends_in_ms", json!(2500)),
            ("offset", json!("-1h0m0s")),
            ("clocks", json!("CLOCK_REALTIME CLOCK_MONOTONIC")),
            ("observe", json!(false)),
            ("rate", json!("1.1")),
            ("jumps", json!("")),
        ] {
            assert_eq!(cell(&row, name), expected, "{name}");
        }
        let mut later = hour;
        for (jump, seconds) in later.jumps.iter_mut().zip([9, 11]) {
            jump.at_ns = seconds * 1_000_000_000;
            jump.by_ns = 10_000_000_000 - i64::try_from(jump.at_ns).unwrap();
        }
        let row = clock_rule(7, &later, 10_000_000_000);
        assert_eq!(cell(&row, "jumps"), json!("+1s done, -1s in 1000 ms"));
    }

    #[test]
    fn the_list_of_a_target_ends_at_the_first_void_reference() {
        let mut target = Target::default();
        target.rules[0] = RuleRef {
            id: 3,
            generation: 1,
        };
        target.rules[1] = RuleRef {
            id: 7,
            generation: 9,
        };
        target.rules[3] = RuleRef {
            id: 8,
            generation: 1,
        };
        assert_eq!(rule_ids(&target), "3.1 7.9");
    }
}

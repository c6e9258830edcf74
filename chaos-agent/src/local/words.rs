//! A fault in words.

use std::time::Duration;

use chaos_api::clock::{self, CLOCKS};
use chaos_api::duration;
use chaos_planner::clock::ClockEffect;
use chaos_planner::fault::{Effect, Fault, Mode, NetworkEffect, Peer};

/// In words, for the user: "loss 30% and delay 100ms on packets sent".
pub fn describe(fault: &Fault) -> String {
    let what = match &fault.effect {
        Effect::Network(effect) => network(effect),
        Effect::Clock(effect) => clock(effect),
    };
    let observe = if fault.mode == Mode::Observe {
        " (only counted)"
    } else {
        ""
    };
    format!("{what}{observe}")
}

/// "CLOCK_REALTIME 1h30m0s ahead, at 1.1 times its speed, -5m0s after 10s".
fn clock(effect: &ClockEffect) -> String {
    let names: Vec<_> = CLOCKS
        .iter()
        .filter(|(_, id)| effect.clocks & 1 << id != 0)
        .map(|(name, _)| *name)
        .collect();
    let mut parts = Vec::new();
    let offset = duration::format_nanos(effect.offset_ns);
    match offset.strip_prefix('-') {
        Some(off) => parts.push(format!("{off} behind")),
        None if effect.offset_ns != 0 => parts.push(format!("{offset} ahead")),
        None => {}
    }
    if effect.drift_ppm != 0 {
        let rate = clock::format_rate(effect.drift_ppm);
        parts.push(format!("at {rate} times its speed"));
    }
    for jump in &effect.jumps {
        let by = duration::format_move(jump.by_ns);
        let after = Duration::from_nanos(jump.after_ns);
        parts.push(format!("{by} after {after:?}"));
    }
    format!("{} {}", names.join(" and "), parts.join(", "))
}

fn network(network: &NetworkEffect) -> String {
    let mut parts = Vec::new();
    if network.drop {
        parts.push("partition".to_owned());
    }
    let shares = [
        ("loss", network.loss),
        ("duplicate", network.duplicate),
        ("corrupt", network.corrupt),
    ];
    for (name, chance) in shares {
        if let Some(chance) = chance {
            parts.push(format!("{name} {}%", f64::from(chance.ppm) / 10_000.0));
        }
    }
    if let Some(delay) = network.delay {
        let mut text = format!("delay {:?}", delay.latency);
        if !delay.jitter.is_zero() {
            text.push_str(&format!("\u{b1}{:?}", delay.jitter));
        }
        if let Some(reorder) = delay.reorder {
            let share = f64::from(reorder.chance.ppm) / 10_000.0;
            text.push_str(&format!(" but for {share}%"));
        }
        parts.push(text);
    }
    if let Some(rate) = network.rate {
        parts.push(format!("rate {rate} B/s"));
    }
    if let Some(bandwidth) = network.bandwidth {
        parts.push(format!("bandwidth {} B/s", bandwidth.rate));
    }
    let direction = match (network.egress, network.ingress) {
        (true, true) => "sent and received",
        (false, true) => "received",
        (_, false) => "sent",
    };
    let peers = match &network.peers {
        None => String::new(),
        Some(peers) => format!(" to or from {}", some_of(peers)),
    };
    let what = parts.join(" and ");
    format!("{what} on packets {direction}{peers}")
}

/// The first few, and how many more.
fn some_of(peers: &[Peer]) -> String {
    const SHOWN: usize = 3;
    let mut words: Vec<String> = peers.iter().take(SHOWN).map(ToString::to_string).collect();
    if peers.len() > SHOWN {
        words.push(format!("{} more", peers.len() - SHOWN));
    }
    words.join(", ")
}

//! Effects on packets, between their message and the planner's type.

use std::net::IpAddr;
use std::time::Duration;

use chaos_planner::fault::{Bandwidth, Chance, Delay, NetworkEffect, Peak, Peer, Reorder};
use chaos_planner::plan::nanos;
use chaos_proto::agent as proto;
use ipnet::IpNet;

use super::{MAX_PEERS, shown};

/// The message for an effect.
pub(super) fn message(effect: &NetworkEffect) -> proto::NetworkEffect {
    let chance = |chance: Chance| proto::Chance {
        ppm: chance.ppm,
        correlation_ppm: chance.correlation_ppm,
    };
    let peers = effect.peers.iter().flatten();
    proto::NetworkEffect {
        egress: effect.egress,
        ingress: effect.ingress,
        device: effect.device.clone().unwrap_or_default(),
        peers: peers.map(peer_message).collect(),
        all_peers: effect.peers.is_none(),
        drop: effect.drop,
        loss: effect.loss.map(chance),
        duplicate: effect.duplicate.map(chance),
        corrupt: effect.corrupt.map(chance),
        delay: effect.delay.map(|delay| proto::Delay {
            latency_ns: nanos(delay.latency),
            jitter_ns: nanos(delay.jitter),
            correlation_ppm: delay.correlation_ppm,
            reorder: delay.reorder.map(|reorder| proto::Reorder {
                chance: Some(chance(reorder.chance)),
                gap: reorder.gap,
            }),
        }),
        rate: effect.rate,
        bandwidth: effect.bandwidth.map(|bandwidth| {
            let peak = bandwidth.peak.unwrap_or_default();
            proto::Bandwidth {
                rate: bandwidth.rate,
                limit: bandwidth.limit,
                buffer: bandwidth.buffer,
                peak_rate: peak.rate,
                peak_burst: peak.burst,
            }
        }),
    }
}

/// The effect of a message.
pub(super) fn effect(message: proto::NetworkEffect) -> Result<NetworkEffect, String> {
    // No peer at all is not every peer: such a fault hits nothing and says so by its counters.
    let peers = if message.all_peers {
        None
    } else {
        if message.peers.len() > MAX_PEERS {
            return Err(format!(
                "network.peers: {} peers: must be at most {MAX_PEERS}; select fewer pods",
                message.peers.len()
            ));
        }
        let mut peers = message
            .peers
            .iter()
            .map(peer)
            .collect::<Result<Vec<_>, _>>()?;
        peers.sort_unstable();
        peers.dedup();
        Some(peers)
    };
    if message.all_peers && !message.peers.is_empty() {
        return Err("network.all_peers: true: excludes peers; send one of them".to_owned());
    }
    if !message.device.is_empty() && !is_device(&message.device) {
        return Err(format!(
            "network.device: {}: must be the name of a network device, 1 to 15 characters; see \
             `ip link` in the target",
            shown(&message.device)
        ));
    }
    let effect = NetworkEffect {
        egress: message.egress,
        ingress: message.ingress,
        device: (!message.device.is_empty()).then_some(message.device),
        peers,
        drop: message.drop,
        loss: chance("loss", message.loss)?,
        duplicate: chance("duplicate", message.duplicate)?,
        corrupt: chance("corrupt", message.corrupt)?,
        delay: message.delay.map(delay).transpose()?,
        rate: message
            .rate
            .map(|rate| at_least_1("rate", rate))
            .transpose()?,
        bandwidth: message.bandwidth.map(bandwidth).transpose()?,
    };
    if !effect.egress && !effect.ingress {
        return Err("network: no direction: must have one; set egress or ingress".to_owned());
    }
    if !effect.drop && !effect.shapes() {
        return Err(
            "network: no effect: must have one; set drop, loss, duplicate, corrupt, delay, rate \
             or bandwidth"
                .to_owned(),
        );
    }
    Ok(effect)
}

fn chance(field: &str, message: Option<proto::Chance>) -> Result<Option<Chance>, String> {
    let Some(proto::Chance {
        ppm: share,
        correlation_ppm,
    }) = message
    else {
        return Ok(None);
    };
    ppm(&format!("network.{field}.ppm"), Some(share))?;
    ppm(
        &format!("network.{field}.correlation_ppm"),
        Some(correlation_ppm),
    )?;
    Ok(Some(Chance {
        ppm: share,
        correlation_ppm,
    }))
}

fn delay(message: proto::Delay) -> Result<Delay, String> {
    ppm(
        "network.delay.correlation_ppm",
        Some(message.correlation_ppm),
    )?;
    let reorder = match message.reorder {
        None => None,
        Some(reorder) => Some(Reorder {
            chance: chance("delay.reorder.chance", reorder.chance)?.unwrap_or_default(),
            gap: reorder.gap,
        }),
    };
    Ok(Delay {
        latency: Duration::from_nanos(message.latency_ns),
        jitter: Duration::from_nanos(message.jitter_ns),
        correlation_ppm: message.correlation_ppm,
        reorder,
    })
}

fn bandwidth(message: proto::Bandwidth) -> Result<Bandwidth, String> {
    let peak = (message.peak_rate != 0).then_some(Peak {
        rate: message.peak_rate,
        burst: message.peak_burst,
    });
    Ok(Bandwidth {
        rate: at_least_1("bandwidth.rate", message.rate)?,
        limit: message.limit,
        buffer: message.buffer,
        peak,
    })
}

fn at_least_1(field: &str, rate: u64) -> Result<u64, String> {
    match rate {
        0 => Err(format!(
            "network.{field}: 0: must be at least 1 byte a second; use drop to let nothing pass"
        )),
        rate => Ok(rate),
    }
}

fn peer(message: &proto::Peer) -> Result<Peer, String> {
    let text = &message.net;
    let net = text
        .parse::<IpAddr>()
        .map(IpNet::from)
        .or_else(|_| text.parse::<IpNet>())
        .map_err(|_| {
            format!(
                "network.peers: {}: must be an IPv4 or IPv6 address or network; send no names",
                shown(text)
            )
        })?;
    let port = match message.port {
        0 => None,
        port => Some(u16::try_from(port).map_err(|_| {
            format!(
                "network.peers: {}: port {port}: must be at most 65535",
                shown(text)
            )
        })?),
    };
    Ok(Peer::new(net, port))
}

fn peer_message(peer: &Peer) -> proto::Peer {
    proto::Peer {
        net: match peer.address() {
            Some(address) => address.to_string(),
            None => peer.net().to_string(),
        },
        port: peer.port().map_or(0, u32::from),
    }
}

/// What the kernel takes as a device's name (`dev_valid_name`).
fn is_device(name: &str) -> bool {
    name.len() <= 15
        && name != "."
        && name != ".."
        && name
            .bytes()
            .all(|b| b.is_ascii_graphic() && b != b'/' && b != b':')
}

pub(super) fn ppm(field: &str, value: Option<u32>) -> Result<(), String> {
    match value {
        Some(value) if value > 1_000_000 => Err(format!(
            "{field}: {value}: must be at most 1000000; it is in parts per million"
        )),
        _ => Ok(()),
    }
}

//! What a probe answers to GET /results.json (`tests/probe/src/peer.rs`), as far as it is read here.

use std::{collections::BTreeMap, net::IpAddr};

use serde::Deserialize;

use super::{
    clock::Offset,
    samples::{Fate, Path, Sample},
};

/// The answer.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Results {
    /// Probes of others that were answered since the start, by their address.
    pub(super) echoed: BTreeMap<IpAddr, u64>,
    peers: Vec<Peer>,
}

#[derive(Clone, Debug, Deserialize)]
struct Peer {
    name: String,
    ip: IpAddr,
    samples: Vec<RawSample>,
}

#[derive(Clone, Debug, Deserialize)]
struct RawSample {
    sent_ns: u64,
    rtt_us: Option<u64>,
    #[serde(default)]
    lost: bool,
    error: Option<String>,
}

impl Results {
    /// The paths of the probe `from`, by this machine's clock.
    pub(super) fn paths(self, from: &str, offset: Offset) -> impl Iterator<Item = Path> {
        self.peers.into_iter().map(move |peer| Path {
            from: from.to_owned(),
            to: peer.name,
            ipv6: peer.ip.is_ipv6(),
            samples: peer
                .samples
                .into_iter()
                .map(|raw| raw.sample(offset))
                .collect(),
        })
    }
}

impl RawSample {
    fn sample(self, offset: Offset) -> Sample {
        let fate = match (self.rtt_us, self.error) {
            (Some(us), _) => Fate::Answered(us),
            (None, Some(errno)) => Fate::Refused(errno),
            (None, None) if self.lost => Fate::Lost,
            (None, None) => Fate::Waiting,
        };
        Sample {
            sent: offset.convert(self.sent_ns),
            fate,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_of_a_probe_is_understood() {
        let answer = r#"{"now_ns": 9, "echoed": {"10.244.1.3": 7}, "peers": [{
            "name": "tikv-1", "ip": "fd00::1", "port": 7777, "sent": 4, "received": 1, "lost": 1,
            "waiting": 1, "send_errors": {"EPERM": 1}, "rtt_p50_us": 42, "rtt_p99_us": 42,
            "samples": [{"sent_ns": 1, "rtt_us": 42}, {"sent_ns": 2, "lost": true},
                {"sent_ns": 3, "error": "EPERM"}, {"sent_ns": 4, "waiting": true}]}]}"#;
        let results: Results = serde_json::from_str(answer).unwrap();
        assert_eq!(results.echoed.values().sum::<u64>(), 7);
        let paths: Vec<Path> = results.paths("tikv-0", Offset::default()).collect();
        assert_eq!((paths[0].from.as_str(), paths[0].ipv6), ("tikv-0", true));
        let fates: Vec<_> = paths[0].samples.iter().map(|s| s.fate.clone()).collect();
        let refused = Fate::Refused("EPERM".to_owned());
        assert_eq!(
            fates,
            [Fate::Answered(42), Fate::Lost, refused, Fate::Waiting]
        );
    }
}

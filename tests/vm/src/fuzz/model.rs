//! What the packet program has to say, written a second time: plainly, from the documents, with
//! whole values instead of maps. Only the draws are the program's own.
//!
//! Whom a packet goes to or comes from is in `other_end.rs`; what becomes of it in the detour in `detour.rs`.

use chaos_abi::network::{BUCKETS, Rule, State, flag};
use chaos_abi::sample::{ALWAYS, Chance, Stream, correlated, draw, hit};
use chaos_agent::mechanism::tc::Way;
use chaos_planner::fault::Peer;

use super::Lie;
use super::other_end::{OtherEnd, is_for_port, other_end};
use super::packets::PORT;

/// The longest that packets wait, in nanoseconds: 70 minutes.
const LONGEST: u64 = 4_200_000_000_000;

/// Id of no cgroup.
pub(super) const NOBODY: u64 = u64::MAX;

/// A rule, and what it has counted.
#[derive(Clone, Debug)]
pub(super) struct ModelRule {
    pub(super) id: u32,
    /// As the kernel is told, but for the flags.
    pub(super) rule: Rule,
    /// The target refers to another life of it.
    pub(super) is_void: bool,
    pub(super) observe: bool,
    /// `None` is everybody.
    pub(super) peers: Option<Vec<Peer>>,
    pub(super) state: State,
    pub(super) counted: Counted,
}

/// What a rule has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counted {
    pub(super) matched: u64,
    pub(super) injected: u64,
    pub(super) would_inject: u64,
    pub(super) overflowed: u64,
    pub(super) over_budget: u64,
    pub(super) failed: u64,
}

/// What is to be done to a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Fate {
    pub(super) dropped: bool,
    pub(super) wait_ns: u64,
    pub(super) copies: u64,
    /// Where a bit is flipped; 0 is nowhere.
    pub(super) spot: u16,
}

impl Fate {
    fn needs_a_detour(&self) -> bool {
        self.wait_ns > 0 || self.copies > 0 || self.spot > 0
    }
}

enum Outcome {
    Passed,
    Done,
    Overflowed,
    Failed,
}

/// All rules of one target.
#[derive(Clone, Debug)]
pub(super) struct Model {
    /// Which packets of the device are treated.
    pub(super) way: Way,
    pub(super) rules: Vec<ModelRule>,
    /// Packets can be held back, copied and changed.
    pub(super) can_detour: bool,
    /// Others use the device, too: what comes in is the target's if its socket gets it.
    pub(super) is_shared: bool,
    /// A rule of a cgroup has looked at the last packet, which says so to other devices.
    pub(super) looked_at: bool,
    /// What it gets wrong on purpose.
    pub(super) lie: Option<Lie>,
}

impl Model {
    /// Whether any rule looks at the packet: it is one of IP, whole enough.
    pub(super) fn sees(&self, frame: &[u8]) -> bool {
        other_end(frame, self.way).is_some()
    }

    /// What happens to the next packet, an Ethernet frame that the target sends or gets at CLOCK_MONOTONIC
    /// nanoseconds `now`; and the id of the last rule that added to it.
    pub(super) fn decide(&mut self, frame: &[u8], now: u64) -> (Fate, u32) {
        let mut fate = Fate::default();
        let mut last = 0;
        let is_own = match self.way {
            // This process has made the socket of what BPF_PROG_TEST_RUN sends.
            Way::Egress => true,
            Way::Ingress => self.is_shared && is_for_port(frame, PORT),
        };
        let Some(to) = other_end(frame, self.way) else {
            return (fate, last);
        };
        for rule in &mut self.rules {
            let is_its = match rule.rule.cgroup_id {
                0 => true,
                NOBODY => false,
                _ => is_own,
            };
            if !is_its || !rule.is_about(&to, now) {
                continue;
            }
            self.looked_at |= rule.rule.cgroup_id != 0;
            let then = rule.decide(frame.len() as u64, now, fate, self.can_detour);
            if then != fate {
                (fate, last) = (then, rule.id);
            }
            if fate.dropped {
                break;
            }
        }
        match self.lie {
            Some(Lie::Loss) if !fate.needs_a_detour() => fate.dropped = !fate.dropped,
            Some(Lie::Wait) if fate.wait_ns > 0 => fate.wait_ns += 1,
            Some(Lie::Copies) if fate.copies > 0 => fate.copies -= 1,
            Some(Lie::Spot) if fate.spot > 1 => fate.spot -= 1,
            Some(Lie::Count) => self.rules.iter_mut().for_each(|r| r.counted.matched += 1),
            _ => {}
        }
        (fate, last)
    }

    /// The rule of this id.
    pub(super) fn rule(&mut self, id: u32) -> Option<&mut ModelRule> {
        self.rules.iter_mut().find(|rule| rule.id == id)
    }
}

impl ModelRule {
    fn decide(&mut self, bytes: u64, now: u64, before: Fate, can_detour: bool) -> Fate {
        let n = self.number();
        if !self.is_sampled(n) {
            return before;
        }
        let (then, outcome) = match self.consider(n, bytes, now, before) {
            // Without a detour only losing is possible.
            (then, Outcome::Done) if !can_detour && !then.dropped && then.needs_a_detour() => {
                (before, Outcome::Failed)
            }
            other => other,
        };
        let counted = &mut self.counted;
        match outcome {
            Outcome::Passed => {}
            Outcome::Failed => counted.failed += 1,
            Outcome::Done | Outcome::Overflowed if self.observe => counted.would_inject += 1,
            Outcome::Done => counted.injected += 1,
            Outcome::Overflowed => {
                counted.injected += 1;
                counted.overflowed += 1;
            }
        }
        if self.observe { before } else { then }
    }

    /// Whether the rule is about packets from or to there at `now`.
    pub(super) fn is_about(&self, to: &OtherEnd, now: u64) -> bool {
        let is_meant = self
            .peers
            .as_ref()
            .is_none_or(|all| all.iter().any(|peer| to.is(peer)));
        now < self.rule.deadline_ns && !self.is_void && is_meant
    }

    /// Counts a packet that it is about, and numbers it.
    pub(super) fn number(&mut self) -> u64 {
        self.counted.matched += 1;
        let n = self.state.sequence;
        self.state.sequence += u64::from(self.draws());
        n
    }

    /// Rules that leave nothing to chance or order do not number their packets.
    pub(super) fn draws(&self) -> bool {
        let rule = &self.rule;
        let is_chance = |chance: &Chance| (1..ALWAYS).contains(&chance.threshold);
        rule.sample_threshold < ALWAYS
            || rule.sample_first != 0
            || rule.sample_every > 1
            || rule.jitter_ns != 0
            || rule.corrupt.threshold != 0
            || [rule.loss, rule.duplicate, rule.reorder]
                .iter()
                .any(is_chance)
    }

    /// Whether anything is done to packet `n`.
    pub(super) fn is_sampled(&self, n: u64) -> bool {
        let rule = &self.rule;
        (rule.sample_first == 0 || n < rule.sample_first)
            && (rule.sample_every <= 1 || n.is_multiple_of(rule.sample_every))
            && hit(rule.seed, Stream::Sample, n, rule.sample_threshold)
    }

    fn hits(&self, stream: Stream, chance: &Chance, n: u64) -> bool {
        let drawn = correlated(self.rule.seed, stream, n, chance.correlation);
        u64::from(drawn) < chance.threshold
    }

    /// In the order of netem.
    fn consider(&mut self, n: u64, bytes: u64, now: u64, before: Fate) -> (Fate, Outcome) {
        let rule = self.rule;
        let mut then = before;
        if self.hits(Stream::Loss, &rule.loss, n) {
            then.dropped = true;
            return (then, Outcome::Done);
        }
        let mut packets = 1;
        if self.hits(Stream::Duplicate, &rule.duplicate, n) {
            then.copies += 1;
            packets = 2;
        }
        if self.hits(Stream::Corrupt, &rule.corrupt, n) {
            let drawn = draw(rule.seed, Stream::CorruptedBit, n);
            then.spot = ((drawn >> 16) as u16).max(1);
        }
        let arrives = now.saturating_add(before.wait_ns);
        let mut leaves = arrives;
        let mut overtakes = false;
        if rule.delay_ns > 0 {
            overtakes = self.overtakes(n);
            if !overtakes {
                let at = u128::from(arrives) + self.delay(n);
                leaves = at.min(rule.deadline_ns.into()) as u64;
            }
        }
        if rule.buckets[0].bytes_per_second > 0 || rule.buckets[1].bytes_per_second > 0 {
            for index in 0..BUCKETS {
                match self.pour(index, leaves, bytes * packets) {
                    Some(at) => leaves = at,
                    None => {
                        return (
                            Fate {
                                dropped: true,
                                ..before
                            },
                            Outcome::Overflowed,
                        );
                    }
                }
            }
        }
        let wait = leaves.min(rule.deadline_ns).saturating_sub(arrives);
        if wait > 0 {
            then.wait_ns = (before.wait_ns + wait).min(LONGEST);
        }
        if then == before && !overtakes {
            (before, Outcome::Passed)
        } else {
            (then, Outcome::Done)
        }
    }

    /// Even between latency - jitter and latency + jitter, but not before now.
    fn delay(&self, n: u64) -> u128 {
        let Rule {
            seed,
            delay_ns,
            jitter_ns,
            jitter_correlation,
            ..
        } = self.rule;
        let (delay, jitter) = (u128::from(delay_ns), u128::from(jitter_ns));
        if jitter == 0 {
            return delay;
        }
        let drawn = correlated(seed, Stream::Jitter, n, jitter_correlation);
        let of_span = (2 * jitter * u128::from(drawn)) >> 32;
        (delay + of_span).saturating_sub(jitter)
    }

    fn overtakes(&mut self, n: u64) -> bool {
        let rule = self.rule;
        if rule.reorder.threshold == 0 {
            return false;
        }
        if rule.reorder_gap > 1 {
            // Those that wait between two that overtake.
            self.state.in_order += 1;
            if self.state.in_order < rule.reorder_gap {
                return false;
            }
        }
        let hits = self.hits(Stream::Reorder, &rule.reorder, n);
        if hits && rule.reorder_gap > 1 {
            self.state.in_order = 0;
        }
        hits
    }

    /// When so many bytes that come to a bucket at `at` leave it; `None` if its queue is full.
    fn pour(&mut self, index: usize, at: u64, bytes: u64) -> Option<u64> {
        let bucket = self.rule.buckets[index];
        if bucket.bytes_per_second == 0 {
            return Some(at);
        }
        let cost = u128::from(bytes) * 1_000_000_000 / u128::from(bucket.bytes_per_second);
        let clock = self.state.clocks[index];
        let full_since = at.saturating_sub(bucket.burst_ns);
        let next = clock.max(full_since) + cost as u64;
        let others_wait = clock > at;
        if others_wait && next - at > bucket.limit_ns {
            return None;
        }
        self.state.clocks[index] = next;
        Some(next.max(at))
    }

    /// What the kernel is told.
    pub(super) fn kernel_rule(&self, way: Way) -> Rule {
        let flags = [
            (flag::EGRESS, way == Way::Egress),
            (flag::INGRESS | flag::SOURCE_PORT, way == Way::Ingress),
            (flag::OBSERVE, self.observe),
            (flag::PEERS | flag::NETS, self.peers.is_some()),
            (flag::DRAWS, self.draws()),
        ];
        Rule {
            flags: those_set(&flags),
            peer_set: self.id,
            ..self.rule
        }
    }
}

/// All flags that are set, in one word.
pub(super) fn those_set(flags: &[(u32, bool)]) -> u32 {
    let set = flags.iter().filter(|(_, is_set)| *is_set);
    set.fold(0, |all, (flag, _)| all | flag)
}

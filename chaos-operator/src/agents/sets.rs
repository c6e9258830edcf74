//! The sets of one stream: the newest one whenever it changes, and the same one again soon after
//! while deadlines travel in it.
//!
//! A deadline travels as time left, so it is late at the agent by as long as the message was under
//! way: on a busy host once by 281 ms. An agent keeps the earliest that it was told, so the
//! quickest of several messages counts. Only the newest set matters: one that was replaced while
//! the stream was busy is never sent.

use std::time::Duration;

use chaos_proto::agent::DesiredSet;
use futures::Stream;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::agents::Agents;

/// When a set with deadlines is told again: after what slowed the first message down (faults being
/// armed, a burst of other work) has had time to pass.
const AGAIN_AFTER: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(1)];

struct Sets {
    agents: Agents,
    node: String,
    generations: watch::Receiver<u64>,
    /// When the same set is due again, the next one first.
    again: Vec<Instant>,
}

/// The sets for a new stream to the agent of `node`.
pub(super) fn sets(agents: Agents, node: &str) -> impl Stream<Item = DesiredSet> + Send + 'static {
    let sets = Sets {
        generations: agents.begin_stream(node, Timestamp::now()),
        agents,
        node: node.to_owned(),
        again: Vec::new(),
    };
    futures::stream::unfold(sets, |mut sets| async move {
        let set = sets.next().await?;
        Some((set, sets))
    })
}

impl Sets {
    async fn next(&mut self) -> Option<DesiredSet> {
        let is_new = match self.again.first() {
            None => {
                self.generations.changed().await.ok()?;
                true
            }
            Some(at) => tokio::select! {
                changed = self.generations.changed() => {
                    changed.ok()?;
                    true
                }
                () = sleep_until(*at) => false,
            },
        };
        let set = self.agents.desired(&self.node, Timestamp::now());
        let now = Instant::now();
        if set.faults.iter().all(|fault| fault.remaining_ms.is_none()) {
            self.again.clear();
        } else if is_new {
            self.again = AGAIN_AFTER.map(|after| now + after).to_vec();
        } else {
            // All that were missed while the stream was busy are this one.
            self.again.retain(|at| *at > now);
        }
        tracing::debug!(
            node = self.node,
            generation = set.generation,
            faults = set.faults.len(),
            "send"
        );
        Some(set)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::pin::pin;

    use chaos_proto::agent::Fault;
    use futures::StreamExt;
    use jiff::SignedDuration;

    use super::*;

    fn want(agents: &Agents, id: &str, lasts: Option<i64>) {
        let fault = Fault {
            id: id.to_owned(),
            ..Fault::default()
        };
        let faults = BTreeMap::from([("n1".to_owned(), vec![fault])]);
        let now = Timestamp::now();
        let end = lasts.map(|seconds| now + SignedDuration::from_secs(seconds));
        agents.publish(id, faults, end, &[], now);
    }

    /// When each set of the next ten seconds is sent, in ms, and how many faults are in it.
    async fn sent(
        stream: &mut (impl Stream<Item = DesiredSet> + Unpin),
    ) -> Vec<(u128, u64, usize)> {
        let began = Instant::now();
        let mut all = Vec::new();
        let deadline = began + Duration::from_secs(10);
        while let Ok(set) = tokio::time::timeout_at(deadline, stream.next()).await {
            let set = set.unwrap();
            all.push((
                began.elapsed().as_millis(),
                set.generation,
                set.faults.len(),
            ));
        }
        all
    }

    fn times(all: &[(u128, u64, usize)]) -> Vec<(u128, usize)> {
        all.iter().map(|(at, _, faults)| (*at, *faults)).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_set_with_deadlines_is_told_again_on_each_stream() {
        let agents = Agents::new(&[], Timestamp::now());
        want(&agents, "a", Some(600));
        for _ in 0..2 {
            let mut stream = pin!(sets(agents.clone(), "n1"));
            let all = sent(&mut stream).await;
            assert_eq!(times(&all), [(0, 1), (250, 1), (1000, 1)]);
            assert!(all.iter().all(|(_, generation, _)| *generation == all[0].1));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_set_without_deadlines_is_told_once() {
        let agents = Agents::new(&[], Timestamp::now());
        want(&agents, "a", None);
        let mut stream = pin!(sets(agents.clone(), "n1"));
        assert_eq!(times(&sent(&mut stream).await), [(0, 1)]);
        want(&agents, "b", Some(600));
        assert_eq!(
            times(&sent(&mut stream).await),
            [(0, 2), (250, 2), (1000, 2)]
        );
        want(&agents, "b", Some(600));
        stream.next().await;
        agents.forget("b", Timestamp::now());
        assert_eq!(times(&sent(&mut stream).await), [(0, 1)], "it was replaced");
    }

    #[tokio::test(start_paused = true)]
    async fn a_newer_set_begins_anew_and_a_busy_stream_catches_up_once() {
        let agents = Agents::new(&[], Timestamp::now());
        want(&agents, "a", Some(600));
        let mut stream = pin!(sets(agents.clone(), "n1"));
        stream.next().await;
        tokio::time::advance(Duration::from_millis(200)).await;
        want(&agents, "b", Some(600));
        let all = sent(&mut stream).await;
        assert_eq!(times(&all), [(0, 2), (250, 2), (1000, 2)]);
        want(&agents, "c", Some(600));
        stream.next().await;
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(times(&sent(&mut stream).await), [(0, 3)]);
    }
}

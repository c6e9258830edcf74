//! Asks for the addresses (A and AAAA) of host names, again and again as long as an experiment
//! names them, and wakes whom a change concerns.
//!
//! It asks as the operator's pod does: the cluster's DNS first, search domains included.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use crate::names::{Found, Names};

/// How often a name is asked for.
pub const EVERY: Duration = Duration::from_secs(30);

/// How soon again if there was no answer yet.
const RETRY: Duration = Duration::from_secs(2);

/// How long a question may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Finds the addresses of a name.
pub type Lookup = Arc<dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> + Send + Sync>;

/// All names that are asked for. Clones are the same one.
#[derive(Clone)]
pub struct Resolver {
    table: Arc<Mutex<BTreeMap<String, Entry>>>,
    lookup: Lookup,
}

/// One name.
struct Entry {
    /// `None` before the first answer, or failure.
    found: Option<Found>,
    /// Who wants it, by uid, and how to wake them.
    wanted_by: BTreeMap<String, Arc<Notify>>,
    task: AbortHandle,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Default for Resolver {
    /// One that asks as the C library of this host does.
    fn default() -> Self {
        Self::new(Arc::new(|name| {
            async move {
                let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
                Ok(found.map(|address| address.ip()).collect())
            }
            .boxed()
        }))
    }
}

impl Resolver {
    /// One that asks in this way.
    #[must_use]
    pub fn new(lookup: Lookup) -> Self {
        Self {
            table: Arc::default(),
            lookup,
        }
    }

    /// The experiment wants these names, and no others any more; what is known of them. It is woken
    /// when more is.
    #[must_use]
    pub fn want(&self, uid: &str, names: &BTreeSet<String>, wake: &Arc<Notify>) -> Names {
        let mut table = self.lock();
        table.retain(|name, entry| {
            if !names.contains(name) {
                entry.wanted_by.remove(uid);
            }
            !entry.wanted_by.is_empty()
        });
        let mut known = Names::default();
        for name in names {
            let entry = table.entry(name.clone()).or_insert_with(|| Entry {
                found: None,
                wanted_by: BTreeMap::new(),
                task: tokio::spawn(self.clone().keep(name.clone())).abort_handle(),
            });
            entry.wanted_by.insert(uid.to_owned(), Arc::clone(wake));
            if let Some(found) = &entry.found {
                known.0.insert(name.clone(), found.clone());
            }
        }
        known
    }

    /// The experiment wants no names any more.
    pub fn forget(&self, uid: &str) {
        self.lock().retain(|_, entry| {
            entry.wanted_by.remove(uid);
            !entry.wanted_by.is_empty()
        });
    }

    async fn keep(self, name: String) {
        loop {
            let asked = tokio::time::timeout(PATIENCE, (self.lookup)(name.clone())).await;
            let answer = match asked {
                Ok(Ok(addresses)) if addresses.is_empty() => Err("it has no address".to_owned()),
                Ok(Ok(addresses)) => Ok(addresses),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
            };
            let is_known = self.take(&name, answer);
            tokio::time::sleep(if is_known { EVERY } else { RETRY }).await;
        }
    }

    /// Whether there are addresses, from this or an earlier answer.
    fn take(&self, name: &str, answer: Result<Vec<IpAddr>, String>) -> bool {
        let mut table = self.lock();
        let Some(entry) = table.get_mut(name) else {
            return false;
        };
        let found = match answer {
            Ok(addresses) => Found {
                addresses: addresses.into_iter().map(|ip| ip.to_canonical()).collect(),
                error: None,
            },
            Err(error) => {
                tracing::warn!(name, error, "failed to resolve an external target");
                Found {
                    error: Some(error),
                    ..entry.found.clone().unwrap_or_default()
                }
            }
        };
        let is_known = !found.addresses.is_empty();
        if entry.found.as_ref() != Some(&found) {
            entry.found = Some(found);
            entry.wanted_by.values().for_each(|wake| wake.notify_one());
        }
        is_known
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        // A panic elsewhere leaves the table as consistent as any other moment does.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Answers question after question; the last answer stays.
    fn resolver(answers: Vec<Result<&'static str, &'static str>>) -> (Resolver, Arc<AtomicUsize>) {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let lookup: Lookup = Arc::new(move |_| {
            let n = count.fetch_add(1, Ordering::Relaxed).min(answers.len() - 1);
            let answer = answers[n]
                .map(|text| text.split(' ').map(|ip| ip.parse().unwrap()).collect())
                .map_err(io::Error::other);
            async move { answer }.boxed()
        });
        (Resolver::new(lookup), asked)
    }

    fn names(name: &str) -> BTreeSet<String> {
        BTreeSet::from([name.to_owned()])
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_is_asked_for_again_and_changes_wake() {
        let (resolver, asked) =
            resolver(vec![Ok("10.0.0.1"), Ok("10.0.0.1"), Ok("10.0.0.2 fd00::2")]);
        let wake = Arc::new(Notify::new());
        let db = names("db");
        assert_eq!(resolver.want("u", &db, &wake), Names::default());
        wake.notified().await;
        let known = resolver.want("u", &db, &wake);
        assert_eq!(known.addresses("db").unwrap().len(), 1);
        let before = tokio::time::Instant::now();
        wake.notified().await;
        assert_eq!(
            before.elapsed(),
            2 * EVERY,
            "an answer that says the same wakes nobody"
        );
        let known = resolver.want("u", &db, &wake);
        assert_eq!(known.addresses("db").unwrap().len(), 2);
        assert_eq!(asked.load(Ordering::Relaxed), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_keeps_the_old_addresses_and_is_told() {
        let (resolver, _) = resolver(vec![Err("no such name"), Ok("10.0.0.1"), Err("no server")]);
        let wake = Arc::new(Notify::new());
        let db = names("db");
        let _ = resolver.want("u", &db, &wake);
        wake.notified().await;
        let known = resolver.want("u", &db, &wake);
        assert_eq!(known.addresses("db"), None);
        assert!(
            known.problems()[0].contains("no such name; it is left out"),
            "{known:?}"
        );
        wake.notified().await;
        assert_eq!(
            resolver.want("u", &db, &wake).problems(),
            Vec::<String>::new()
        );
        wake.notified().await;
        let known = resolver.want("u", &db, &wake);
        assert_eq!(known.addresses("db").unwrap().len(), 1);
        assert!(
            known.problems()[0].contains("no server; the 1 addresses of before"),
            "{known:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_wants_is_not_asked_for() {
        let (resolver, asked) = resolver(vec![Ok("10.0.0.1")]);
        let wake = Arc::new(Notify::new());
        let _ = resolver.want("u", &names("db"), &wake);
        let _ = resolver.want("v", &names("db"), &wake);
        wake.notified().await;
        resolver.forget("u");
        tokio::time::sleep(EVERY * 2 + RETRY).await;
        let so_far = asked.load(Ordering::Relaxed);
        assert_eq!(so_far, 3);
        let _ = resolver.want("v", &BTreeSet::new(), &wake);
        tokio::time::sleep(EVERY * 3).await;
        assert_eq!(asked.load(Ordering::Relaxed), so_far);
    }
}

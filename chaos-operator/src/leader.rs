//! One operator leads: whoever holds the Lease `faultline-operator`.
//!
//! Small code of our own: the crates for it (`kube-leader-election`, `kubert`) keep their own idea
//! of `kube`'s version, and none knows that another *kind* of controller may hold the same objects.
//! While a Lease `chaos-mesh` is being renewed, Chaos Mesh runs these experiments, and two that
//! each recover what the other injects are worse than either: then we neither begin to lead nor go
//! on.
//!
//! A Lease is judged as `client-go` does it: it has run out when it has not been renewed for its
//! duration *as seen from here*, so clocks need not agree.

use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::{ListParams, PostParams};
use kube::{Api, Client, ResourceExt};
use tokio::sync::watch;

/// Name of our Lease.
pub const LEASE: &str = "faultline-operator";
/// Name of the Lease of Chaos Mesh's controller.
pub const FOREIGN_LEASE: &str = "chaos-mesh";

const DURATION: Duration = Duration::from_secs(15);
const RENEW_EVERY: Duration = Duration::from_secs(3);
/// Not renewed for so long: somebody else may lead soon, so we must not.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// How often to give a Lease back that another request of ours changes meanwhile.
const RELEASE_TRIES: usize = 3;
/// How often a leader looks whether Chaos Mesh leads as well.
const FOREIGN_EVERY: Duration = Duration::from_secs(5);
const RETRY_EVERY: Duration = Duration::from_secs(2);
/// Clocks may be this far apart before a foreign Lease that is still renewed looks dead.
const CLOCK_SLACK: SignedDuration = SignedDuration::from_secs(30);

/// Who we are, and what we respect.
#[derive(Clone)]
pub struct Election {
    /// Of the API server.
    pub client: Client,
    /// Of the Lease.
    pub namespace: String,
    /// Unique among all operators: the pod's name.
    pub identity: String,
    /// Lead even while Chaos Mesh does.
    pub takeover: bool,
}

/// Where the election is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Not asked yet.
    Starting,
    /// Somebody else leads; we wait.
    Follower(String),
    /// Chaos Mesh leads: who, and what to do about it.
    Refusing(String),
    /// We lead.
    Leader,
}

/// Why we lead no longer.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// Somebody else took it.
    #[error("lease {LEASE} is held by {0} now")]
    Taken(String),
    /// We could not renew it.
    #[error("failed to renew lease {LEASE} in time: {0}")]
    NotRenewed(#[source] Box<kube::Error>),
    /// Chaos Mesh has begun to lead: who, and what to do about it.
    #[error("{0}; until then, what agents were told goes on")]
    Foreign(String),
}

impl Election {
    /// Waits until we lead.
    pub async fn win(&self, standing: &watch::Sender<Standing>) {
        let mut seen: Option<Seen> = None;
        loop {
            let next = match self.attempt(&mut seen).await {
                Ok(standing) => standing,
                Err(error) => {
                    tracing::warn!(%error, "failed to acquire lease {LEASE}");
                    Standing::Follower(format!("unknown: {error}"))
                }
            };
            let changed = standing.send_if_modified(|old| {
                let changed = *old != next;
                old.clone_from(&next);
                changed
            });
            match &next {
                Standing::Leader => return tracing::info!(identity = self.identity, "leading"),
                Standing::Refusing(why) if changed => tracing::error!("not leading: {why}"),
                Standing::Follower(holder) if changed => tracing::info!(holder, "following"),
                _ => {}
            }
            tokio::time::sleep(RETRY_EVERY).await;
        }
    }

    /// Goes on leading; returns when that is over.
    pub async fn hold(&self) -> Lost {
        tokio::select! {
            lost = self.keep_renewing() => lost,
            why = self.until_foreign() => Lost::Foreign(why),
        }
    }

    /// Returns when Chaos Mesh leads, and that is to be respected.
    async fn until_foreign(&self) -> String {
        if self.takeover {
            return std::future::pending().await;
        }
        loop {
            tokio::time::sleep(FOREIGN_EVERY).await;
            match self.foreign_leader().await {
                Ok(Some(why)) => return why,
                Ok(None) => {}
                // Not to be able to ask is no reason to stop: the renewal fails as well then.
                Err(error) => tracing::warn!(%error, "failed to look for lease {FOREIGN_LEASE}"),
            }
        }
    }

    async fn keep_renewing(&self) -> Lost {
        let mut renewed = Instant::now();
        loop {
            tokio::time::sleep(RENEW_EVERY).await;
            // The Lease runs from when the request is made, and a hanging one must not outlive it.
            let asked = Instant::now();
            let left = RENEW_DEADLINE.saturating_sub(renewed.elapsed());
            let left = left.max(Duration::from_secs(1));
            match tokio::time::timeout(left, self.renew()).await {
                Ok(Ok(None)) => renewed = asked,
                Ok(Ok(Some(holder))) => return Lost::Taken(holder),
                Ok(Err(error)) if renewed.elapsed() >= RENEW_DEADLINE => {
                    return Lost::NotRenewed(Box::new(error));
                }
                Ok(Err(error)) => tracing::warn!(%error, "failed to renew lease {LEASE}"),
                Err(_) => {
                    let error = std::io::Error::from(std::io::ErrorKind::TimedOut);
                    return Lost::NotRenewed(Box::new(kube::Error::Service(error.into())));
                }
            }
        }
    }

    /// Gives the Lease back, so that the next one need not wait.
    pub async fn release(&self) {
        for _ in 0..RELEASE_TRIES {
            match self.give_back().await {
                Ok(()) => return,
                // A renewal was under way when we stopped, and came first.
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => return tracing::warn!(%error, "failed to release lease {LEASE}"),
            }
        }
        tracing::warn!("failed to release lease {LEASE}: it keeps changing");
    }

    async fn give_back(&self) -> Result<(), kube::Error> {
        let Some(mut lease) = self.api().get_opt(LEASE).await? else {
            return Ok(());
        };
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() == Some(&self.identity) {
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
            let params = PostParams::default();
            self.api().replace(LEASE, &params, &lease).await?;
        }
        Ok(())
    }

    async fn attempt(&self, seen: &mut Option<Seen>) -> Result<Standing, kube::Error> {
        if !self.takeover
            && let Some(why) = self.foreign_leader().await?
        {
            return Ok(Standing::Refusing(why));
        }
        let Some(mut lease) = self.api().get_opt(LEASE).await? else {
            let lease = self.lease();
            return match self.api().create(&PostParams::default(), &lease).await {
                Ok(_) => Ok(Standing::Leader),
                Err(error) => self.lost_race(error),
            };
        };
        let spec = lease.spec.get_or_insert_default();
        if !is_free(spec, &self.identity, seen, Instant::now()) {
            return Ok(Standing::Follower(
                spec.holder_identity.clone().unwrap_or_default(),
            ));
        }
        let transitions = spec.lease_transitions.unwrap_or(0);
        let is_ours = spec.holder_identity.as_deref() == Some(&self.identity);
        let mut new = self.spec();
        new.lease_transitions = Some(transitions + i32::from(!is_ours));
        *spec = new;
        match self
            .api()
            .replace(LEASE, &PostParams::default(), &lease)
            .await
        {
            Ok(_) => Ok(Standing::Leader),
            Err(error) => self.lost_race(error),
        }
    }

    /// A conflict: another one was faster.
    fn lost_race(&self, error: kube::Error) -> Result<Standing, kube::Error> {
        match error {
            kube::Error::Api(status) if status.code == 409 => {
                Ok(Standing::Follower("another one, just now".to_owned()))
            }
            error => Err(error),
        }
    }

    /// `Some`: somebody else holds it.
    async fn renew(&self) -> Result<Option<String>, kube::Error> {
        let mut lease = self.api().get(LEASE).await?;
        let spec = lease.spec.get_or_insert_default();
        let holder = spec.holder_identity.clone().unwrap_or_default();
        if holder != self.identity {
            return Ok(Some(holder));
        }
        spec.renew_time = Some(MicroTime(Timestamp::now()));
        self.api()
            .replace(LEASE, &PostParams::default(), &lease)
            .await?;
        Ok(None)
    }

    /// Who leads Chaos Mesh, if anybody, and what to do.
    async fn foreign_leader(&self) -> Result<Option<String>, kube::Error> {
        let params = ListParams::default().fields(&format!("metadata.name={FOREIGN_LEASE}"));
        let everywhere: Api<Lease> = Api::all(self.client.clone());
        let leases = match everywhere.list(&params).await {
            Ok(list) => list.items,
            // Not allowed to look everywhere: look where it usually is.
            Err(kube::Error::Api(status)) if status.code == 403 => {
                let usual: Api<Lease> = Api::namespaced(self.client.clone(), FOREIGN_LEASE);
                match usual.get_opt(FOREIGN_LEASE).await {
                    Ok(lease) => lease.into_iter().collect(),
                    Err(kube::Error::Api(status)) if status.code == 403 => Vec::new(),
                    Err(error) => return Err(error),
                }
            }
            Err(error) => return Err(error),
        };
        let now = Timestamp::now();
        let alive = leases.iter().find(|lease| is_renewed(lease, now));
        Ok(alive.map(|lease| {
            let holder = lease
                .spec
                .as_ref()
                .and_then(|spec| spec.holder_identity.as_deref());
            format!(
                "Chaos Mesh runs the experiments of this cluster: its lease {}/{FOREIGN_LEASE} is \
                 held by {}; scale its controller down, or start this operator with --takeover",
                lease.namespace().unwrap_or_default(),
                holder.unwrap_or_default()
            )
        }))
    }

    fn api(&self) -> Api<Lease> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    fn lease(&self) -> Lease {
        Lease {
            metadata: ObjectMeta {
                name: Some(LEASE.to_owned()),
                namespace: Some(self.namespace.clone()),
                ..ObjectMeta::default()
            },
            spec: Some(self.spec()),
        }
    }

    fn spec(&self) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            lease_transitions: Some(0),
            ..LeaseSpec::default()
        }
    }
}

/// A Lease as it was when it last changed, as seen from here.
#[derive(Clone, Debug)]
struct Seen {
    spec: LeaseSpec,
    at: Instant,
}

/// Whether we may take the Lease: nobody holds it, we do, or whoever does has let it run out.
fn is_free(spec: &LeaseSpec, identity: &str, seen: &mut Option<Seen>, now: Instant) -> bool {
    let holder = spec.holder_identity.as_deref().unwrap_or_default();
    if holder.is_empty() || holder == identity {
        return true;
    }
    let duration = spec.lease_duration_seconds.unwrap_or(0);
    let duration = Duration::from_secs(u64::try_from(duration).unwrap_or(0));
    match seen {
        Some(seen) if seen.spec == *spec => now.duration_since(seen.at) > duration,
        _ => {
            *seen = Some(Seen {
                spec: spec.clone(),
                at: now,
            });
            false
        }
    }
}

fn is_renewed(lease: &Lease, now: Timestamp) -> bool {
    let Some(spec) = &lease.spec else {
        return false;
    };
    let is_held = spec
        .holder_identity
        .as_ref()
        .is_some_and(|holder| !holder.is_empty());
    let duration = SignedDuration::from_secs(spec.lease_duration_seconds.unwrap_or(0).into());
    is_held
        && spec
            .renew_time
            .as_ref()
            .is_some_and(|renewed| now.duration_since(renewed.0) < duration + CLOCK_SLACK)
}

#[cfg(test)]
mod tests;

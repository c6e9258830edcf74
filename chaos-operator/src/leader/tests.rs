use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::http::{Method, Request, Response};
use kube::client::Body;
use serde_json::json;

use super::*;

fn spec(holder: &str, renewed: &str) -> LeaseSpec {
    LeaseSpec {
        holder_identity: Some(holder.into()),
        lease_duration_seconds: Some(15),
        renew_time: Some(MicroTime(renewed.parse().unwrap())),
        ..LeaseSpec::default()
    }
}

#[test]
fn a_lease_is_free_when_it_was_not_renewed_for_its_duration_as_seen_from_here() {
    let start = Instant::now();
    let after = |seconds| start + Duration::from_secs(seconds);
    let (old, new) = (
        spec("b", "2020-01-01T00:00:00Z"),
        spec("b", "2020-01-01T00:00:10Z"),
    );
    let mut seen = None;
    assert!(
        !is_free(&old, "a", &mut seen, start),
        "its clock may be slow"
    );
    assert!(!is_free(&old, "a", &mut seen, after(15)));
    assert!(!is_free(&new, "a", &mut seen, after(16)), "it was renewed");
    assert!(!is_free(&new, "a", &mut seen, after(31)));
    assert!(is_free(&new, "a", &mut seen, after(32)));
    assert!(
        is_free(&spec("", "2020-01-01T00:00:00Z"), "a", &mut None, start),
        "given back"
    );
    assert!(
        is_free(&spec("a", "2020-01-01T00:00:00Z"), "a", &mut None, start),
        "our own"
    );
}

#[test]
fn chaos_mesh_leads_while_its_lease_is_renewed() {
    let lease = |holder: &str| Lease {
        spec: Some(spec(holder, "2026-01-01T00:00:00Z")),
        ..Lease::default()
    };
    let at = |text: &str| text.parse::<Timestamp>().unwrap();
    assert!(is_renewed(&lease("cm-0"), at("2026-01-01T00:00:10Z")));
    assert!(
        is_renewed(&lease("cm-0"), at("2025-12-31T23:59:00Z")),
        "its clock is ahead"
    );
    assert!(
        !is_renewed(&lease("cm-0"), at("2026-01-01T00:01:00Z")),
        "it was removed"
    );
    assert!(
        !is_renewed(&lease(""), at("2026-01-01T00:00:10Z")),
        "it was given back"
    );
    assert!(!is_renewed(&Lease::default(), at("2026-01-01T00:00:10Z")));
}

/// An API server on which we hold our Lease, and that answers so when it is asked for others.
fn election(takeover: bool, others: (u16, serde_json::Value)) -> Election {
    let service = tower::service_fn(move |request: Request<Body>| {
        let is_own = request.uri().path().ends_with(LEASE);
        let (code, body) = if is_own || request.method() == Method::PUT {
            let spec = json!({ "holderIdentity": "me", "leaseDurationSeconds": 15 });
            (200, json!({ "metadata": { "name": LEASE }, "spec": spec }))
        } else {
            others.clone()
        };
        std::future::ready(answer(code, &body))
    });
    Election {
        client: Client::new(service, "faultline"),
        namespace: "faultline".to_owned(),
        identity: "me".to_owned(),
        takeover,
    }
}

#[tokio::test]
async fn a_lease_that_a_last_renewal_has_changed_is_given_back_all_the_same() {
    let puts = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&puts);
    let service = tower::service_fn(move |request: Request<Body>| {
        let is_put = request.method() == Method::PUT;
        let is_first = is_put && count.fetch_add(1, Ordering::Relaxed) == 0;
        let spec = json!({ "holderIdentity": "me", "leaseDurationSeconds": 15 });
        let (code, body) = if is_first {
            (
                409,
                json!({ "status": "Failure", "code": 409, "message": "", "reason": "Conflict" }),
            )
        } else {
            (200, json!({ "metadata": { "name": LEASE }, "spec": spec }))
        };
        std::future::ready(answer(code, &body))
    });
    let election = Election {
        client: Client::new(service, "faultline"),
        ..election(false, chaos_mesh(0))
    };
    election.release().await;
    assert_eq!(puts.load(Ordering::Relaxed), 2);
}

fn answer(code: u16, body: &serde_json::Value) -> Result<Response<Body>, kube::Error> {
    let body = Body::from(serde_json::to_vec(body).unwrap());
    Ok(Response::builder().status(code).body(body).unwrap())
}

/// A list with a Lease of Chaos Mesh that was renewed so many seconds ago.
fn chaos_mesh(renewed_ago: i64) -> (u16, serde_json::Value) {
    let at = Timestamp::now() - SignedDuration::from_secs(renewed_ago);
    let spec = json!({
        "holderIdentity": "cm-0", "leaseDurationSeconds": 15,
        "renewTime": at.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string(),
    });
    let lease =
        json!({ "metadata": { "name": FOREIGN_LEASE, "namespace": "chaos" }, "spec": spec });
    (200, json!({ "metadata": {}, "items": [lease] }))
}

async fn lost_within_a_minute(election: Election) -> Option<Lost> {
    let minute = Duration::from_secs(60);
    tokio::time::timeout(minute, election.hold()).await.ok()
}

#[tokio::test(start_paused = true)]
async fn a_leader_steps_down_when_chaos_mesh_begins_to_lead() {
    let lost = lost_within_a_minute(election(false, chaos_mesh(0))).await;
    let Some(Lost::Foreign(why)) = lost else {
        panic!("{lost:?}");
    };
    assert!(why.contains("chaos/chaos-mesh is held by cm-0"), "{why}");
}

#[tokio::test(start_paused = true)]
async fn a_leader_goes_on_when_chaos_mesh_is_dead_or_to_be_taken_over_or_cannot_be_asked_about() {
    let error = json!({ "status": "Failure", "code": 500, "message": "no", "reason": "no" });
    for election in [
        election(false, chaos_mesh(600)),
        election(true, chaos_mesh(0)),
        election(false, (500, error)),
    ] {
        let lost = lost_within_a_minute(election).await;
        assert!(lost.is_none(), "{lost:?}");
    }
}

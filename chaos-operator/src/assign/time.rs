//! TimeChaos: which containers show another time.

use chaos_api::clock::{self, Skew};
use chaos_crd::TimeChaos;
use chaos_proto::agent::fault::Effect;
use chaos_proto::agent::{ClockEffect, ClockJump};

use crate::assign::{Assigned, Request, Share, fault, live_container, live_pod};
use crate::kind::Kind;

/// What each record of a TimeChaos has to have. The spec has been defaulted and validated.
#[must_use]
pub fn assign(chaos: &TimeChaos, request: &Request<'_>) -> Vec<Assigned> {
    request.each(|selector_key, id| share(chaos, request, selector_key, id))
}

fn share(
    chaos: &TimeChaos,
    request: &Request<'_>,
    selector_key: &str,
    id: &str,
) -> Result<Share, Share> {
    let (pod, node) = live_pod(id, request.cluster)?;
    let container = live_container(id, pod)?;
    // It has been validated: nothing in it cannot be read.
    let skew = Skew::of(&chaos.spec).map_err(|_| Share::Nothing)?;
    let lifecycle = &chaos.spec.lifecycle;
    let mut fault = fault(
        TimeChaos::NAME,
        lifecycle,
        request,
        selector_key,
        id,
        container,
    );
    fault.effect = Some(Effect::Clock(ClockEffect {
        offset_ns: skew.offset_ns,
        clocks: skew.clocks,
        drift_ppm: skew.drift_ppm,
        jumps: skew.jumps.into_iter().map(jump).collect(),
    }));
    Ok(Share::Fault {
        node: node.to_owned(),
        fault: Box::new(fault),
    })
}

const fn jump(jump: clock::Jump) -> ClockJump {
    ClockJump {
        after_ns: jump.after_ns,
        by_ns: jump.by_ns,
    }
}

#[cfg(test)]
mod tests {
    use chaos_crd::Experiment;
    use chaos_proto::agent::target::Target as TargetKind;

    use super::*;
    use crate::cluster::Cluster;
    use crate::fixtures::{cluster, experiment, pod};
    use crate::names::Names;
    use crate::records::Choice;

    /// The records that are drawn, each with its share.
    fn assigned(chaos: &TimeChaos, cluster: &Cluster) -> Result<Vec<Assigned>, String> {
        let choice = Choice {
            uid: "u",
            selectors: &chaos.selectors(),
            containers: chaos.container_names(),
            seed: 1,
            round: 0,
            cluster,
        };
        let records: Vec<_> = choice
            .draw()?
            .into_iter()
            .map(|record| (record.selector_key, record.id))
            .collect();
        Ok(chaos.assign(&Request {
            uid: "u",
            namespace: "shop",
            name: "late",
            round: 0,
            records: &records,
            cluster,
            names: &Names::default(),
        }))
    }

    #[test]
    fn each_container_that_is_named_is_a_record_with_its_own_target() {
        let cluster = cluster([
            pod("shop/a").container("db", "db-a"),
            pod("shop/b").container("db", ""),
            pod("shop/c"),
        ]);
        let chaos = experiment::<TimeChaos>(
            "{timeOffset: -5m, mode: all, selector: {}, containerNames: [db]}",
        );
        let assigned = assigned(&chaos, &cluster).unwrap();
        let [a, b] = assigned.as_slice() else {
            panic!("{assigned:?}");
        };
        assert_eq!((a.id.as_str(), b.id.as_str()), ("shop/a/db", "shop/b/db"));
        let Share::Fault { node, fault } = &a.share else {
            panic!("{a:?}");
        };
        assert_eq!((node.as_str(), fault.kind.as_str()), ("n1", "TimeChaos"));
        let target = fault.target.as_ref().and_then(|t| t.target.as_ref());
        let Some(TargetKind::Container(target)) = target else {
            panic!("{target:?}");
        };
        assert_eq!(
            (target.pod_uid.as_str(), target.container_id.as_str()),
            ("uid-a", "db-a")
        );
        assert_eq!(
            fault.effect,
            Some(Effect::Clock(ClockEffect {
                offset_ns: -300_000_000_000,
                clocks: 1,
                drift_ppm: 0,
                jumps: Vec::new(),
            }))
        );
        assert_eq!(
            b.share,
            Share::Waiting("the container has not been started yet")
        );
    }

    #[test]
    fn without_a_name_it_is_the_first_container_and_an_unknown_name_is_nobody() {
        let cluster = cluster([pod("shop/a").container("db", "db-a")]);
        let chaos = experiment("{timeOffset: 1h, mode: one, selector: {}}");
        let assigned_ids = |chaos: &TimeChaos| {
            let ids = |all: Vec<Assigned>| all.into_iter().map(|one| one.id).collect::<Vec<_>>();
            assigned(chaos, &cluster).map(ids)
        };
        assert_eq!(assigned_ids(&chaos), Ok(vec!["shop/a/app".to_owned()]));
        let nobody = experiment("{timeOffset: 1h, mode: all, selector: {}, containerNames: [web]}");
        assert_eq!(
            assigned_ids(&nobody),
            Err(
                "spec.selector: no pod matches (namespaces: shop; containers: web); waiting for one"
                    .to_owned()
            )
        );
    }

    #[test]
    fn a_container_that_its_pod_came_back_without_is_gone() {
        let chaos = experiment::<TimeChaos>(
            "{timeOffset: 1h, mode: one, selector: {}, containerNames: [db]}",
        );
        let share = |cluster: &Cluster| {
            let assigned = chaos.assign(&Request {
                uid: "u",
                namespace: "shop",
                name: "late",
                round: 0,
                records: &[(".".to_owned(), "shop/a/db".to_owned())],
                cluster,
                names: &Names::default(),
            });
            assigned.into_iter().map(|one| one.share).next()
        };
        let other = cluster([pod("shop/a").uid("new").container("cache", "cache-a")]);
        assert_eq!(share(&other), Some(Share::Gone));
        let same = cluster([pod("shop/a").uid("new").container("db", "db-a")]);
        assert!(matches!(share(&same), Some(Share::Fault { .. })));
    }
}

//! Which records an experiment has: the draw, and who joins and leaves later. Pure.

use std::collections::BTreeSet;

use chaos_api::v1alpha1::names::SELECTOR_KEY_SOURCE;
use chaos_api::v1alpha1::{Mode, PodSelector};
use k8s_openapi::api::core::v1::Pod;

use crate::cluster::{Cluster, containers, is_completed, pod_id};
use crate::draw::Draw;
use crate::kept::{Kept, KeptRecord};
use crate::selector::select;

/// What a selection follows from.
#[derive(Clone, Copy, Debug)]
pub struct Choice<'a> {
    /// `metadata.uid` of the object.
    pub uid: &'a str,
    /// Its selectors, sources first.
    pub selectors: &'a [(&'static str, &'a PodSelector)],
    /// See [`chaos_crd::Experiment::container_names`].
    pub containers: Option<&'a [String]>,
    /// Seed of the draws.
    pub seed: u64,
    /// Round of a legacy scheduler; 0 without one.
    pub round: u64,
    /// Pods as they are now.
    pub cluster: &'a Cluster,
}

impl Choice<'_> {
    /// Draws the records of all sides.
    ///
    /// # Errors
    /// Why there are none: one side has nobody. An experiment between two sides, one of which is
    /// empty, is no experiment.
    pub fn draw(&self) -> Result<Vec<KeptRecord>, String> {
        let mut records: Vec<KeptRecord> = Vec::new();
        for (key, selector) in self.selectors {
            let field = field(key);
            let mut pods =
                select(&selector.selector, field, self.cluster).map_err(|e| e.to_string())?;
            // Without containers each pod is a record.
            if self.containers.is_some() {
                pods.retain(|pod| !self.records_of(pod).is_empty());
            }
            let eligible: Vec<String> = pods.iter().map(|pod| pod_id(pod)).collect();
            // The chosen sources, and pods on their way out: only if there is nobody else.
            let mut avoid: BTreeSet<String> =
                records.iter().map(|record| record.id.clone()).collect();
            avoid.extend(
                pods.iter()
                    .filter(|pod| pod.metadata.deletion_timestamp.is_some())
                    .map(|pod| pod_id(pod)),
            );
            let draw = Draw {
                seed: self.seed,
                round: self.round,
                selector_key: key,
            };
            let taken = draw.take(selector, &eligible, &avoid);
            if taken.is_empty() {
                return Err(self.nobody(field, selector, eligible.len()));
            }
            let taken = taken
                .iter()
                .filter_map(|id| self.cluster.pod_of_record(id))
                .flat_map(|pod| self.records_of(pod));
            records.extend(taken.map(|id| KeptRecord::new(self.uid, self.round, key, &id)));
        }
        Ok(records)
    }

    /// With `mode: all`: pods that match by now join, and their containers that are meant; those that
    /// are gone leave and are returned.
    pub fn follow(&self, kept: &mut Kept) -> Vec<KeptRecord> {
        let mut left = Vec::new();
        for (key, selector) in self.selectors {
            if selector.mode != Mode::All {
                continue;
            }
            let is_gone = |record: &mut KeptRecord| {
                let pod = self.cluster.pod_of_record(&record.id);
                // A pod may be back under its name with other containers.
                let has_left =
                    |pod: &Pod| is_completed(pod) || !self.records_of(pod).contains(&record.id);
                record.selector_key == *key && pod.is_none_or(|pod| has_left(pod))
            };
            for record in kept.records.extract_if(.., is_gone) {
                kept.past.add(record.report.total());
                left.push(record);
            }
            // An unknown node is no reason to let go of those that were found before.
            let Ok(pods) = select(&selector.selector, field(key), self.cluster) else {
                continue;
            };
            let known: BTreeSet<String> = kept
                .records
                .iter()
                .filter(|record| record.selector_key == *key)
                .map(|record| record.id.clone())
                .collect();
            let joining = pods.iter().flat_map(|pod| self.records_of(pod));
            kept.records.extend(
                joining
                    .filter(|id| !known.contains(id))
                    .map(|id| KeptRecord::new(self.uid, self.round, key, &id)),
            );
        }
        kept.records
            .sort_by(|a, b| (&a.selector_key, &a.id).cmp(&(&b.selector_key, &b.id)));
        left
    }

    /// Ids of the records of a pod: its own, or those of its containers that are meant.
    fn records_of(&self, pod: &Pod) -> Vec<String> {
        let id = pod_id(pod);
        match self.containers {
            None => vec![id],
            Some(names) => containers(pod, names)
                .into_iter()
                .map(|container| format!("{id}/{container}"))
                .collect(),
        }
    }

    fn nobody(&self, field: &str, selector: &PodSelector, eligible: usize) -> String {
        if eligible > 0 {
            let mode = selector.mode.as_str();
            return format!("{field}: mode {mode} took none of the {eligible} pods that match");
        }
        let namespaces = selector.selector.namespaces.join(", ");
        let containers = match self.containers {
            Some(names) if !names.is_empty() => format!("; containers: {}", names.join(", ")),
            _ => String::new(),
        };
        format!("{field}: no pod matches (namespaces: {namespaces}{containers}); waiting for one")
    }
}

fn field(key: &str) -> &'static str {
    if key == SELECTOR_KEY_SOURCE {
        "spec.selector"
    } else {
        "spec.target.selector"
    }
}

#[cfg(test)]
mod tests {
    use chaos_crd::{Experiment, TimeChaos};

    use super::*;
    use crate::fixtures::{PodBuilder, cluster, experiment, pod};

    #[test]
    fn a_pod_that_is_back_with_other_containers_has_other_records() {
        let chaos = experiment::<TimeChaos>(
            "{timeOffset: 1h, mode: all, selector: {}, containerNames: [app, db, cache]}",
        );
        let selectors = chaos.selectors();
        let choice = |cluster| Choice {
            uid: "u",
            selectors: &selectors,
            containers: chaos.container_names(),
            seed: 1,
            round: 0,
            cluster,
        };
        let ids = |records: &[KeptRecord]| {
            let ids = records.iter().map(|record| record.id.clone());
            ids.collect::<Vec<_>>()
        };
        let of = |web: PodBuilder| cluster([web, pod("shop/web-1")]);
        let before = of(pod("shop/web-0").container("db", "1"));
        let mut kept = Kept {
            records: choice(&before).draw().unwrap(),
            ..Kept::default()
        };
        let first = ["shop/web-0/app", "shop/web-0/db", "shop/web-1/app"];
        assert_eq!(ids(&kept.records), first);
        assert_eq!(ids(&choice(&before).follow(&mut kept)), [""; 0]);
        assert_eq!(ids(&kept.records), first);
        let after = of(pod("shop/web-0").uid("new").container("cache", "2"));
        assert_eq!(ids(&choice(&after).follow(&mut kept)), ["shop/web-0/db"]);
        let second = ["shop/web-0/app", "shop/web-0/cache", "shop/web-1/app"];
        assert_eq!(ids(&kept.records), second);
    }
}

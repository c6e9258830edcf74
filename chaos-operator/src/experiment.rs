//! One look at an experiment: from the object, the pods and what agents say to what is to be done.
//! Pure: all that must be remembered is in [`Kept`], all that must be done in [`Step`].

use std::collections::BTreeMap;

use chaos_api::v1alpha1::names::{
    ANNOTATION_CLEAN_FINALIZER, ANNOTATION_PAUSE, CLEAN_FORCED, FINALIZER, PAUSED,
};
use chaos_api::v1alpha1::{ChaosStatus, DesiredPhase, RecordPhase};
use chaos_proto::agent::Fault;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use kube::ResourceExt;

use crate::assign::{Assigned, Request, Share};
use crate::cluster::Cluster;
use crate::draw::seed_of;
use crate::kept::{Hold, Kept};
use crate::kind::Kind;
use crate::names::Names;
use crate::notice::Notice;
use crate::phase::summary::{self, Facts, MANY_RECORDS};
use crate::phase::{self, Surroundings};
use crate::records::Choice;
use crate::view::View;
use crate::window::{self, Halt, Window};

mod due;
mod inherited;

pub use due::{REFRESH_EVERY, must_write};

/// With very many records, one Applied or Recovered event stands for so many.
const EVENT_PER: usize = 100;

/// What a look sees beside the object.
#[derive(Clone, Copy, Debug)]
pub struct Surrounding<'a> {
    /// Pods and nodes.
    pub cluster: &'a Cluster,
    /// What agents have said.
    pub view: &'a View,
    /// Addresses of the host names that it wants.
    pub names: &'a Names,
    /// The time.
    pub now: Timestamp,
    /// In which a calendar has its ticks.
    pub zone: &'a TimeZone,
}

/// What is to be done about an experiment.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// All that each node should have of it.
    pub faults: BTreeMap<String, Vec<Fault>>,
    /// When these faults end by themselves.
    pub ends_at: Option<Timestamp>,
    /// What the object's finalizers, as it shows them, are in want of.
    pub finalizer: FinalizerAction,
    /// To be published.
    pub notices: Vec<Notice>,
    /// The status as it should be.
    pub status: ChaosStatus,
    /// When to look again, if nothing happens before.
    pub look_again_at: Option<Timestamp>,
}

/// What to do about the finalizer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FinalizerAction {
    /// Nothing.
    Keep,
    /// Set it.
    Add,
    /// Take it away; why, if not because all is recovered.
    Remove(Option<String>),
}

/// Looks at an experiment. `raw` is the object as it is in the API server.
pub fn look<K: Kind>(raw: &K, kept: &mut Kept, around: &Surrounding<'_>) -> Step {
    let mut object = raw.clone();
    object.apply_defaults();
    let mut notices = Vec::new();
    let problems: Vec<String> = object.problems().iter().map(ToString::to_string).collect();
    let window = window_of(&object, kept, around);
    announce(&window, &problems, kept, &mut notices);

    let should_run = window.halt.is_none() && problems.is_empty();
    if should_run {
        kept.round = window.round;
        tell_of_names(around.names, kept, &mut notices);
    }
    let selection = should_run
        .then(|| choose(&object, kept, &window, around, &mut notices))
        .and_then(Result::err);
    let shares = if should_run {
        shares(&object, kept, &window, around)
    } else {
        Vec::new()
    };
    let faults = advance_all(kept, &shares, &window, around, &mut notices);
    kept.unheard = if window.halt == Some(Halt::Deleted) {
        inherited::unheard(&object, kept, &window, around)
    } else {
        BTreeMap::new()
    };
    let finalizer = finalizer(&object, kept, !faults.is_empty(), &window, around);

    let is_paused = is_paused(&object);
    let facts = Facts {
        window: &window,
        paused: is_paused,
        problems: &problems,
        selection: selection.as_deref(),
        view: around.view,
        generation: object.meta().generation,
        now: around.now,
    };
    let status = summary::status(kept, &facts);
    Step {
        faults,
        ends_at: window.ends_at,
        finalizer,
        notices,
        look_again_at: due::look_again_at(kept, &window, around),
        status,
    }
}

fn is_paused<K: Kind>(object: &K) -> bool {
    object
        .annotations()
        .get(ANNOTATION_PAUSE)
        .map(String::as_str)
        == Some(PAUSED)
}

fn window_of<K: Kind>(object: &K, kept: &Kept, around: &Surrounding<'_>) -> Window {
    let created = object.meta().creation_timestamp.as_ref();
    let facts = window::Facts {
        lifecycle: object.lifecycle(),
        created: created.map_or(around.now, |time| time.0),
        deleted: object.meta().deletion_timestamp.is_some(),
        paused: is_paused(object),
        one_shot: object.is_one_shot(),
        known_round: kept.round,
    };
    window::at(&facts, around.now, around.zone)
}

/// Tells the user what has changed about what should be, once.
fn announce(window: &Window, problems: &[String], kept: &mut Kept, notices: &mut Vec<Notice>) {
    for id in std::mem::take(&mut kept.foreign) {
        notices.push(Notice::failed(
            "adopt record",
            &format!(
                "{id}: Chaos Mesh says it has injected it; what it left in the pod is not ours to \
                 take away: restart the pod to be rid of it"
            ),
        ));
    }
    let is_deleted = window.halt == Some(Halt::Deleted);
    if !problems.is_empty() && !is_deleted {
        if kept.told != problems {
            notices.extend(problems.iter().map(|problem| Notice::refused(problem)));
            kept.told = problems.to_vec();
        }
        kept.desired = Some(DesiredPhase::Stop);
        return;
    }
    let desired = match window.halt {
        None => DesiredPhase::Run,
        Some(_) => DesiredPhase::Stop,
    };
    if kept.desired == Some(desired) && kept.halt == window.halt {
        return;
    }
    match window.halt {
        None => notices.push(Notice::started()),
        Some(Halt::Paused) => notices.push(Notice::paused()),
        Some(Halt::TimeUp) => notices.push(Notice::time_up()),
        Some(Halt::Deleted) => notices.push(Notice::deleted()),
        Some(Halt::Between) => {}
    }
    if kept.desired != Some(desired) {
        notices.push(Notice::updated("desiredPhase"));
    }
    kept.desired = Some(desired);
    kept.halt = window.halt;
}

/// Tells the user of names that cannot be resolved, once for each reason.
fn tell_of_names(names: &Names, kept: &mut Kept, notices: &mut Vec<Notice>) {
    let problems = names.problems();
    for problem in problems
        .iter()
        .filter(|one| !kept.told_names.contains(*one))
    {
        notices.push(Notice::failed("resolve external targets", problem));
    }
    kept.told_names = problems;
}

/// Sees to it that there are records, and the right ones.
fn choose<K: Kind>(
    object: &K,
    kept: &mut Kept,
    window: &Window,
    around: &Surrounding<'_>,
    notices: &mut Vec<Notice>,
) -> Result<(), String> {
    let uid = object.uid().unwrap_or_default();
    let faultline = object.lifecycle().faultline.as_ref();
    let follow = faultline.and_then(|block| block.follow).unwrap_or(true);
    let seed = faultline
        .and_then(|block| block.sample.as_ref()?.seed)
        .unwrap_or_else(|| seed_of(&uid));
    let selectors = object.selectors();
    let choice = Choice {
        uid: &uid,
        selectors: &selectors,
        containers: object.container_names(),
        seed,
        round: window.round_number(),
        cluster: around.cluster,
    };
    if kept.drawn == Some(choice.round) && !kept.records.is_empty() {
        if follow && !object.is_one_shot() {
            let before: Vec<String> = ids(kept);
            for record in choice.follow(kept) {
                if record.injected_count > record.recovered_count {
                    notices.push(Notice::recovered(&record.id, Some("the pod is gone")));
                }
            }
            if before != ids(kept) {
                notices.push(Notice::updated("records"));
            }
        }
        if !kept.records.is_empty() {
            return Ok(());
        }
    }
    kept.seed = Some(seed);
    match choice.draw() {
        Ok(records) => {
            kept.let_go();
            kept.records = records;
            kept.drawn = Some(choice.round);
            kept.told.clear();
            notices.push(Notice::updated("records"));
            Ok(())
        }
        Err(reason) => {
            // Those of the last round stay in sight until there are others.
            if kept.drawn != Some(choice.round) {
                kept.let_go();
            }
            kept.drawn = Some(choice.round);
            if kept.told != [reason.clone()] {
                notices.push(Notice::failed("select targets", &reason));
                kept.told = vec![reason.clone()];
            }
            Err(reason)
        }
    }
}

fn ids(kept: &Kept) -> Vec<String> {
    let id = |record: &crate::kept::KeptRecord| format!("{} {}", record.selector_key, record.id);
    kept.records.iter().map(id).collect()
}

fn shares<K: Kind>(
    object: &K,
    kept: &Kept,
    window: &Window,
    around: &Surrounding<'_>,
) -> Vec<Assigned> {
    let records: Vec<(String, String)> = kept
        .records
        .iter()
        .map(|record| (record.selector_key.clone(), record.id.clone()))
        .collect();
    let (uid, namespace) = (
        object.uid().unwrap_or_default(),
        object.namespace().unwrap_or_default(),
    );
    let name = object.name_any();
    let mut shares = object.assign(&Request {
        uid: &uid,
        namespace: &namespace,
        name: &name,
        round: window.round_number(),
        records: &records,
        cluster: around.cluster,
        names: around.names,
    });
    let faultline = object.lifecycle().faultline.as_ref();
    if faultline.and_then(|block| block.follow) == Some(false) {
        for (one, record) in shares.iter_mut().zip(&kept.records) {
            let pod = around.cluster.pod_of_record(&record.id);
            let uid = pod.and_then(|pod| pod.metadata.uid.as_ref());
            if record.pod_uid.is_some() && record.pod_uid.as_ref() != uid {
                one.share = Share::Gone;
            }
        }
    }
    shares
}

/// Moves every record, and collects what each node should have.
fn advance_all(
    kept: &mut Kept,
    shares: &[Assigned],
    window: &Window,
    around: &Surrounding<'_>,
    notices: &mut Vec<Notice>,
) -> BTreeMap<String, Vec<Fault>> {
    let surroundings = Surroundings {
        cluster: around.cluster,
        view: around.view,
        now: around.now,
        ends_at: window.ends_at,
        terse: kept.records.len() > MANY_RECORDS,
    };
    let mut faults: BTreeMap<String, Vec<Fault>> = BTreeMap::new();
    let mut said = Vec::new();
    for (index, record) in kept.records.iter_mut().enumerate() {
        let share = shares.get(index).map(|assigned| &assigned.share);
        phase::advance(record, share, &surroundings, &mut said);
        if let (Some(Share::Fault { node, fault }), Hold::Asked { .. }) = (share, &record.hold) {
            faults
                .entry(node.clone())
                .or_default()
                .push((**fault).clone());
        }
    }
    if surroundings.terse {
        let mut normal = 0_usize;
        said.retain(|notice| {
            normal += usize::from(!notice.warning);
            notice.warning || normal % EVENT_PER == 1
        });
    }
    let leaving = std::mem::take(&mut kept.leaving);
    for mut record in leaving {
        phase::advance(&mut record, None, &surroundings, &mut said);
        if record.holds() {
            kept.leaving.push(record);
        } else {
            kept.past.add(record.report.total());
        }
    }
    notices.append(&mut said);
    faults
}

fn finalizer<K: Kind>(
    object: &K,
    kept: &Kept,
    has_faults: bool,
    window: &Window,
    around: &Surrounding<'_>,
) -> FinalizerAction {
    let is_there = object.finalizers().iter().any(|one| one == FINALIZER);
    if window.halt != Some(Halt::Deleted) {
        return if is_there || !has_faults {
            FinalizerAction::Keep
        } else {
            FinalizerAction::Add
        };
    }
    if !is_there {
        return FinalizerAction::Keep;
    }
    let clean = object.annotations().get(ANNOTATION_CLEAN_FINALIZER);
    if clean.map(String::as_str) == Some(CLEAN_FORCED) {
        return FinalizerAction::Remove(Some(
            "forced by annotation; the agents were told, and recovery was not awaited".to_owned(),
        ));
    }
    let mut all = kept.records.iter().chain(&kept.leaving);
    let is_recovered =
        all.all(|record| record.phase == RecordPhase::NotInjected && !record.holds());
    // Also what an earlier operator left on a node.
    if is_recovered && kept.unheard.is_empty() && around.view.holder().is_none() {
        FinalizerAction::Remove(None)
    } else {
        FinalizerAction::Keep
    }
}

#[cfg(test)]
mod tests;

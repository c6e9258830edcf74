use std::sync::Mutex;

use chaos_planner::fault::{Effect, Lifetime, Mode, NetworkEffect, Sample, TargetRef};
use chaos_planner::observed::Phase;
use chaos_proto::agent::Phase as WirePhase;

use super::fake::{FakeNode, World};
use super::*;

pub(crate) fn partition(id: &str, name: &str, lifetime: Lifetime) -> Fault {
    Fault {
        id: id.to_owned(),
        kind: "NetworkChaos".to_owned(),
        namespace: "ns".to_owned(),
        name: name.to_owned(),
        record: "ns/pod".to_owned(),
        target: TargetRef::Pid(1),
        lifetime,
        mode: Mode::Inject,
        sample: Sample::default(),
        effect: Effect::Network(NetworkEffect {
            egress: true,
            drop: true,
            ..Default::default()
        }),
    }
}

const FOREVER: Lifetime = Lifetime::Leased {
    orphan_timeout: None,
};

struct Client {
    node: NodeHandle,
    owner: Owner,
    session: u64,
    answers: watch::Sender<Option<ObservedSet>>,
    received: watch::Receiver<Option<ObservedSet>>,
}

impl Client {
    fn new(node: &NodeHandle, owner: &str) -> Self {
        let (answers, received) = watch::channel(None);
        let session = node.next_session();
        Self {
            node: node.clone(),
            owner: Owner(owner.to_owned()),
            session,
            answers,
            received,
        }
    }

    fn desire(&self, generation: u64, faults: Vec<Fault>) {
        self.node
            .desire(Desired {
                owner: self.owner.clone(),
                session: self.session,
                generation,
                faults,
                refused: Vec::new(),
                answers: self.answers.clone(),
            })
            .unwrap();
    }

    async fn until(&mut self, what: impl Fn(&ObservedSet) -> bool) -> ObservedSet {
        let wait = self
            .received
            .wait_for(|set| set.as_ref().is_some_and(&what));
        let found = tokio::time::timeout(Duration::from_secs(5), wait).await;
        found
            .expect("the agent says it within 5 s")
            .unwrap()
            .clone()
            .unwrap()
    }
}

fn start() -> (NodeHandle, Arc<Mutex<World>>) {
    let fake = FakeNode::new();
    let world = Arc::clone(&fake.world);
    (spawn("node-1", move || Ok(fake)).unwrap(), world)
}

fn phases(set: &ObservedSet) -> Vec<WirePhase> {
    set.faults.iter().map(|fault| fault.phase()).collect()
}

#[tokio::test]
async fn a_client_hears_that_its_set_was_carried_out_and_nothing_of_other_clients() {
    let (node, _) = start();
    let mut operator = Client::new(&node, "operator");
    let mut local = Client::new(&node, "local:1");
    operator.desire(7, vec![partition("a", "one", FOREVER)]);
    local.desire(1, vec![partition("b", "two", FOREVER)]);
    let set = operator.until(|set| set.generation == 7).await;
    assert_eq!((set.node.as_str(), set.faults.len()), ("node-1", 1));
    assert_eq!(
        (set.faults[0].id.as_str(), set.faults[0].phase()),
        ("a", WirePhase::Injected)
    );
    local
        .until(|set| set.generation == 1 && set.faults[0].id == "b")
        .await;

    operator.desire(8, vec![]);
    operator
        .until(|set| set.generation == 8 && set.faults.is_empty())
        .await;
    assert_eq!(node.report().await.unwrap().faults.len(), 1);
}

#[tokio::test]
async fn the_same_generation_again_is_carried_out_with_the_time_that_is_left_by_then() {
    let (node, world) = start();
    let mut operator = Client::new(&node, "operator");
    for left in [60, 50] {
        let lifetime = Lifetime::For(Duration::from_secs(left));
        operator.desire(7, vec![partition("a", "one", lifetime)]);
        operator
            .until(|set| set.generation == 7 && phases(set) == [WirePhase::Injected])
            .await;
        let reported = node.report().await.unwrap().faults.len();
        assert_eq!(reported, 1);
        let world = world.lock().unwrap();
        let Lifetime::For(told) = world.faults["a"].fault.lifetime else {
            panic!("it has a deadline");
        };
        assert!(told <= Duration::from_secs(left), "{told:?}");
    }
}

#[tokio::test]
async fn work_that_is_done_ahead_keeps_nobody_waiting() {
    let (node, world) = start();
    // More than can ever be done.
    world.lock().unwrap().unloaded = u64::MAX;
    let mut operator = Client::new(&node, "operator");
    operator.desire(1, vec![]);
    operator.until(|set| set.generation == 1).await;
    let start = Instant::now();
    while world.lock().unwrap().loaded == 0 {
        assert!(start.elapsed() < Duration::from_secs(5), "nothing is done");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    operator.desire(2, vec![partition("a", "one", FOREVER)]);
    operator
        .until(|set| set.generation == 2 && phases(set) == [WirePhase::Injected])
        .await;
    assert!(node.report().await.is_ok());
}

#[tokio::test]
async fn an_empty_first_set_is_answered_at_once() {
    let (node, _) = start();
    let mut operator = Client::new(&node, "operator");
    operator.desire(1, vec![]);
    operator
        .until(|set| set.generation == 1 && set.faults.is_empty())
        .await;
}

#[tokio::test]
async fn the_first_hit_is_told_and_later_counts_wait() {
    let (node, world) = start();
    let mut operator = Client::new(&node, "operator");
    operator.desire(1, vec![partition("a", "one", FOREVER)]);
    operator
        .until(|set| phases(set) == [WirePhase::Injected])
        .await;
    world
        .lock()
        .unwrap()
        .faults
        .get_mut("a")
        .unwrap()
        .counts
        .injected = 3;
    let set = operator
        .until(|set| set.faults[0].first_hit_ms_ago.is_some())
        .await;
    assert_eq!(set.faults[0].counters.unwrap().injected, 3);
    world
        .lock()
        .unwrap()
        .faults
        .get_mut("a")
        .unwrap()
        .counts
        .injected = 9;
    operator.received.mark_unchanged();
    let quiet = tokio::time::timeout(Duration::from_millis(300), operator.received.changed()).await;
    assert!(quiet.is_err(), "a count alone is not news");
    assert_eq!(node.report().await.unwrap().faults[0].counts.injected, 9);
}

#[tokio::test]
async fn a_client_that_goes_away_orphans_its_faults_unless_a_newer_stream_has_taken_over() {
    let (node, world) = start();
    let old = Client::new(&node, "operator");
    let mut new = Client::new(&node, "operator");
    old.desire(5, vec![partition("a", "one", FOREVER)]);
    new.desire(1, vec![partition("a", "one", FOREVER)]);
    new.until(|set| set.generation == 1).await;
    // Both late words of the old stream are void.
    old.desire(6, vec![]);
    node.gone(old.owner.clone(), old.session);
    assert_eq!(node.report().await.unwrap().faults.len(), 1);
    assert!(world.lock().unwrap().orphans.is_empty());

    node.gone(new.owner.clone(), new.session);
    assert_eq!(node.report().await.unwrap().faults.len(), 1, "it goes on");
    assert_eq!(
        world.lock().unwrap().orphans,
        [Owner("operator".to_owned())]
    );
}

#[tokio::test]
async fn what_is_recovered_by_hand_stays_off_while_its_client_desires_it() {
    let (node, world) = start();
    let mut operator = Client::new(&node, "operator");
    let both = || {
        vec![
            partition("a", "one", FOREVER),
            partition("b", "two", FOREVER),
        ]
    };
    operator.desire(1, both());
    operator.until(|set| set.generation == 1).await;

    let done = node
        .recover(Which::Named("ns/one".to_owned()))
        .await
        .unwrap();
    assert_eq!((done.ids, done.left.len()), (vec!["a".to_owned()], 0));
    let held = operator
        .until(|set| phases(set).contains(&WirePhase::Failed))
        .await;
    let a = held.faults.iter().find(|fault| fault.id == "a").unwrap();
    assert!(a.reason.contains("by hand"), "{}", a.reason);

    // The operator sends its set again: still off. Then it gives up the fault: the hold is over.
    operator.desire(2, both());
    operator
        .until(|set| set.generation == 2 && phases(set).contains(&WirePhase::Failed))
        .await;
    assert!(!world.lock().unwrap().faults.contains_key("a"));
    operator.desire(3, vec![partition("b", "two", FOREVER)]);
    operator.until(|set| set.generation == 3).await;
    operator.desire(4, both());
    operator
        .until(|set| set.generation == 4 && phases(set) == [WirePhase::Injected; 2])
        .await;

    let unknown = node
        .recover(Which::Named("three".to_owned()))
        .await
        .unwrap_err();
    assert!(
        unknown.starts_with("three: no fault of this node"),
        "{unknown}"
    );
}

#[tokio::test]
async fn panic_takes_everything_off_and_resume_brings_back_what_is_desired() {
    let (node, world) = start();
    let mut operator = Client::new(&node, "operator");
    operator.desire(1, vec![partition("a", "one", FOREVER)]);
    operator
        .until(|set| phases(set) == [WirePhase::Injected])
        .await;
    let done = node.panic().await.unwrap();
    assert_eq!(done.left.len(), 0);
    {
        let world = world.lock().unwrap();
        assert!(world.halted && world.faults["a"].phase == Phase::Failed);
    }
    operator
        .until(|set| phases(set) == [WirePhase::Failed])
        .await;

    operator.desire(2, vec![partition("c", "new", FOREVER)]);
    operator.until(|set| set.generation == 2).await;
    let armed = |fault: &fake::Armed| fault.phase == Phase::Injected;
    assert!(
        !world.lock().unwrap().faults.values().any(armed),
        "nothing new is armed either"
    );

    node.resume().await.unwrap();
    operator
        .until(|set| phases(set) == [WirePhase::Injected])
        .await;
    assert!(!node.report().await.unwrap().halted);
}

#[tokio::test]
async fn a_halt_word_that_somebody_else_wrote_counts_as_well() {
    let (node, world) = start();
    let mut operator = Client::new(&node, "operator");
    operator.desire(1, vec![partition("a", "one", FOREVER)]);
    operator
        .until(|set| phases(set) == [WirePhase::Injected])
        .await;
    world.lock().unwrap().halted = true;
    operator
        .until(|set| phases(set) == [WirePhase::Failed])
        .await;
    world.lock().unwrap().halted = false;
    operator
        .until(|set| phases(set) == [WirePhase::Injected])
        .await;
}

#[tokio::test]
async fn a_duration_goes_on_from_when_it_was_received_whatever_is_sent_again_within() {
    let (node, world) = start();
    let mut operator = Client::new(&node, "operator");
    let lifetime = Lifetime::For(Duration::from_secs(60));
    operator.desire(1, vec![partition("a", "one", lifetime)]);
    operator
        .until(|set| phases(set) == [WirePhase::Injected])
        .await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    node.recover(Which::All).await.unwrap();
    node.resume().await.unwrap();
    operator
        .until(|set| phases(set) == [WirePhase::Injected])
        .await;
    let again = world.lock().unwrap().faults["a"].fault.lifetime;
    assert!(matches!(again, Lifetime::For(left) if left < Duration::from_millis(59_951)));
}

#[tokio::test]
async fn handing_over_leaves_the_faults_and_ends_the_thread() {
    let (node, world) = start();
    let mut operator = Client::new(&node, "operator");
    operator.desire(1, vec![partition("a", "one", FOREVER)]);
    operator
        .until(|set| phases(set) == [WirePhase::Injected])
        .await;
    node.hand_over().await;
    {
        let world = world.lock().unwrap();
        assert!(world.handed_over);
        assert_eq!(world.faults["a"].phase, Phase::Injected);
    }
    assert_eq!(node.report().await.unwrap_err(), Stopped);
}

#[test]
fn a_node_that_cannot_be_opened_says_why() {
    let error = spawn::<FakeNode>("node-1", || anyhow::bail!("no bpffs")).unwrap_err();
    assert_eq!(error.to_string(), "no bpffs");
}

#[tokio::test]
async fn what_a_predecessor_left_has_owners_again_and_is_forgotten_when_it_is_over() {
    let mut left = FakeNode::new();
    let short = Lifetime::For(Duration::from_millis(200));
    for (owner, id, lifetime) in [
        ("operator", "a", FOREVER),
        ("local:9.1", "b", short),
        ("local:9.2", "c", FOREVER),
    ] {
        left.set_desired(Owner(owner.to_owned()), vec![partition(id, id, lifetime)]);
    }
    left.reconcile();
    let node = spawn("node-1", move || Ok(left)).unwrap();
    assert_eq!(node.report().await.unwrap().faults.len(), 3);
    // By name, though nobody is connected.
    let done = node.recover(Which::Named("c".to_owned())).await.unwrap();
    assert_eq!((done.ids, done.left.len()), (vec!["c".to_owned()], 0));
    for _ in 0..100 {
        let faults = node.report().await.unwrap().faults;
        if faults.iter().map(|fault| fault.id.as_str()).eq(["a"]) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the fault of a command line that is over is forgotten");
}

use chaos_proto::agent::Phase;
use jiff::SignedDuration;

use super::*;

const KIND: &str = "NetworkChaos";

fn time(seconds: i64) -> Timestamp {
    Timestamp::UNIX_EPOCH + SignedDuration::from_secs(1_000_000 + seconds)
}

fn fault(id: &str) -> Fault {
    Fault {
        id: id.to_owned(),
        ..Fault::default()
    }
}

fn on(node: &str, ids: &[&str]) -> BTreeMap<String, Vec<Fault>> {
    BTreeMap::from([(node.to_owned(), ids.iter().map(|id| fault(id)).collect())])
}

fn report(generation: u64, ids: &[&str]) -> ObservedSet {
    let observed = |id: &&str| ObservedFault {
        id: (*id).to_owned(),
        phase: Phase::Injected.into(),
        ..ObservedFault::default()
    };
    ObservedSet {
        generation,
        faults: ids.iter().map(observed).collect(),
        ..ObservedSet::default()
    }
}

/// Open, and nobody is in it.
fn agents() -> Agents {
    let agents = Agents::new(&[KIND], time(0));
    agents.expect(KIND, []);
    agents
}

fn sent(agents: &Agents, node: &str) -> Vec<String> {
    let set = agents.desired(node, time(0));
    set.faults.into_iter().map(|fault| fault.id).collect()
}

async fn is_woken(waker: &Notify) -> bool {
    tokio::time::timeout(std::time::Duration::ZERO, waker.notified())
        .await
        .is_ok()
}

#[tokio::test]
async fn nothing_is_sent_before_every_experiment_has_put_in_its_share() {
    let agents = Agents::new(&[KIND], time(0));
    let is_open = || *agents.open.borrow();
    assert!(!is_open(), "they are not listed yet");
    agents.publish("a", on("n1", &["a/0/./x"]), None, &[], time(0));
    agents.expect(KIND, ["b".to_owned(), "c".to_owned(), "d".to_owned()]);
    assert!(!is_open());
    agents.publish("b", BTreeMap::new(), None, &[], time(0));
    agents.forget("c", time(0));
    assert!(!is_open());
    agents.publish("d", BTreeMap::new(), None, &[], time(0));
    assert!(is_open());
    agents.expect(KIND, ["e".to_owned()]);
    assert!(is_open(), "a later list closes nothing");
    agents.opened().await;
}

#[test]
fn a_kind_that_is_not_listed_is_named_and_keeps_all_waiting() {
    let agents = Agents::new(&["NetworkChaos", "TimeChaos"], time(0));
    assert_eq!(agents.missing_kinds(), ["NetworkChaos", "TimeChaos"]);
    agents.expect("NetworkChaos", []);
    assert_eq!(agents.missing_kinds(), ["TimeChaos"]);
    assert!(!*agents.open.borrow());
    agents.expect("TimeChaos", []);
    assert_eq!(agents.missing_kinds(), [""; 0]);
    assert!(*agents.open.borrow());
}

#[test]
fn a_set_is_all_that_a_node_should_have() {
    let agents = agents();
    agents.publish("a", on("n1", &["a/0/./x", "a/0/./y"]), None, &[], time(0));
    agents.publish("b", on("n1", &["b/0/./x"]), None, &[], time(0));
    agents.publish("c", on("n2", &["c/0/./x"]), None, &[], time(0));
    assert_eq!(sent(&agents, "n1"), ["a/0/./x", "a/0/./y", "b/0/./x"]);
    agents.publish("a", on("n2", &["a/0/./x"]), None, &[], time(0));
    assert_eq!(sent(&agents, "n1"), ["b/0/./x"]);
    assert_eq!(sent(&agents, "n2"), ["a/0/./x", "c/0/./x"]);
    agents.forget("c", time(0));
    assert_eq!(sent(&agents, "n2"), ["a/0/./x"]);
    assert!(sent(&agents, "n9").is_empty());
}

#[test]
fn a_generation_grows_with_each_change_and_only_then() {
    let agents = agents();
    let publish = |ids: &[&str]| agents.publish("a", on("n1", ids), None, &[], time(0))["n1"];
    let first = publish(&["a/0/./x"]);
    assert!(first > 1_000_000_000, "an earlier operator's were lower");
    assert_eq!(publish(&["a/0/./x"]), first);
    let second = publish(&["a/0/./y"]);
    assert!(second > first);
    let without = agents.publish("a", BTreeMap::new(), None, &[], time(0));
    assert!(
        without["n1"] > second,
        "of every node that it ever had something on"
    );
    let other = agents.publish("b", BTreeMap::new(), None, &["n7".to_owned()], time(0));
    assert!(
        other["n7"] > without["n1"],
        "also of one that is asked about"
    );
}

#[test]
fn a_table_knows_what_it_has_sent_and_what_it_has_inherited() {
    let agents = Agents::new(&[KIND], time(0));
    agents.expect(KIND, ["old".to_owned()]);
    let is_sent = |uid: &str| agents.view(uid).node("n1").sent;
    for uid in ["old", "new"] {
        agents.publish(uid, on("n1", &["x"]), Some(time(30)), &[], time(0));
        assert!(!is_sent(uid));
        assert_eq!(agents.view(uid).inherited, uid == "old");
    }
    agents.desired("n1", time(31));
    assert!(!is_sent("new"), "what is over is not sent");
    agents.desired("n1", time(1));
    assert!(is_sent("new"));
    agents.publish("new", BTreeMap::new(), None, &[], time(2));
    agents.desired("n1", time(3));
    assert!(is_sent("new"), "it was there once");
    agents.forget("old", time(4));
    assert!(!is_sent("old") && !agents.view("old").inherited);
}

#[test]
fn the_time_left_is_that_at_the_time_of_sending() {
    let agents = agents();
    agents.publish("a", on("n1", &["a/0/./x"]), Some(time(30)), &[], time(0));
    let left = |at| {
        let set = agents.desired("n1", time(at));
        set.faults.first().map(|fault| fault.remaining_ms)
    };
    assert_eq!(left(0), Some(Some(30_000)));
    assert_eq!(left(29), Some(Some(1_000)));
    assert_eq!(left(30), None, "what is over is not sent");
}

#[tokio::test]
async fn a_new_stream_begins_with_the_newest_set() {
    let agents = agents();
    let before = agents.publish("a", on("n1", &["a/0/./x"]), None, &[], time(0))["n1"];
    let mut stream = agents.begin_stream("n1", time(0));
    stream.changed().await.unwrap();
    let set = agents.desired("n1", time(0));
    assert!(set.generation > before);
    assert_eq!(set.faults.len(), 1);
    let changed = tokio::time::timeout(std::time::Duration::ZERO, stream.changed()).await;
    assert!(changed.is_err(), "once");
    agents.publish("a", on("n1", &["a/0/./y"]), None, &[], time(0));
    agents.publish("a", on("n1", &["a/0/./z"]), None, &[], time(0));
    stream.changed().await.unwrap();
    assert_eq!(
        sent(&agents, "n1"),
        ["a/0/./z"],
        "only the newest is ever sent"
    );
}

#[tokio::test]
async fn a_report_wakes_whom_it_concerns() {
    let agents = agents();
    let (a, b) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    agents.register("a", Arc::clone(&a));
    agents.register("b", Arc::clone(&b));
    let generation = agents.publish("a", on("n1", &["a/0/./x"]), None, &[], time(0))["n1"];
    agents.publish("b", on("n2", &["b/0/./x"]), None, &[], time(0));
    agents.observe("n1", report(generation, &["a/0/./x"]), time(1));
    assert!(is_woken(&a).await && !is_woken(&b).await);
    let mut counted = report(generation, &["a/0/./x"]);
    counted.faults[0].armed_ms_ago = 5;
    agents.observe("n1", counted, time(2));
    assert!(!is_woken(&a).await, "clocks and counters are no news");
    agents.observe("n1", report(generation, &[]), time(3));
    assert!(is_woken(&a).await, "it is gone");
    agents.observe("n1", report(generation + 1, &[]), time(4));
    assert!(is_woken(&a).await, "a newer set has been carried out");
    agents.lost("n1", time(5));
    assert!(is_woken(&a).await && !is_woken(&b).await);
}

#[test]
fn a_view_has_the_nodes_and_the_faults_of_one_experiment() {
    let agents = agents();
    agents.publish("a", on("n1", &["a/0/./x"]), None, &[], time(0));
    agents.observe("n1", report(7, &["a/0/./x", "ab/0/./x"]), time(1));
    let view = agents.view("a");
    assert_eq!(view.faults.len(), 1);
    let node = view.node("n1");
    assert!(node.connected && node.generation == 7 && node.since == time(1));
    assert_eq!(view.holder(), Some("n1"));
    agents.lost("n1", time(9));
    let view = agents.view("a");
    assert!(!view.node("n1").connected && view.node("n1").since == time(9));
    assert_eq!(view.holder(), None, "nobody can be asked");
    assert_eq!(agents.connections(), (0, 1));
}

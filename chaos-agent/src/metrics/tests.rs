use std::time::Duration;

use chaos_planner::capabilities::Mechanism;

use super::*;

fn fault(id: &str, name: &str, injected: u64) -> Observed {
    Observed {
        id: id.to_owned(),
        kind: "NetworkChaos".to_owned(),
        namespace: "ns".to_owned(),
        name: name.to_owned(),
        record: "ns/pod".to_owned(),
        phase: Phase::Injected,
        mechanisms: vec![Mechanism::TcEgress],
        reason: String::new(),
        degraded: false,
        counts: Counts {
            matched: injected * 2,
            injected,
            would_inject: 0,
            failed: 0,
            ..Counts::default()
        },
        expires_in: Duration::from_millis(1500),
        armed_ago: Duration::from_secs(1),
        first_hit_ago: None,
    }
}

fn injected(tally: &Tally, name: &str) -> u64 {
    tally
        .hits()
        .iter()
        .filter(|(s, _)| s.name == name)
        .map(|(_, c)| c.injected)
        .sum()
}

#[test]
fn hits_never_go_back_when_rules_end_or_start_again() {
    let mut tally = Tally::default();
    for (observed, expected) in [
        (vec![fault("a", "one", 3), fault("b", "one", 4)], 7),
        (vec![fault("a", "one", 5)], 9),
        (vec![], 9),
        // The same record is injected again: its slot counts from zero.
        (vec![fault("a", "one", 1)], 10),
        (vec![fault("a", "one", 0)], 10),
        (vec![fault("a", "one", 2)], 12),
    ] {
        tally.update(&observed);
        assert_eq!(injected(&tally, "one"), expected);
    }
}

#[test]
fn series_of_old_experiments_are_folded_and_the_sum_stays() {
    let mut tally = Tally::default();
    for n in 0..MAX_ENDED + 50 {
        tally.update(&[fault("id", &format!("chaos-{n}"), 2)]);
    }
    tally.update(&[]);
    let hits = tally.hits();
    assert_eq!(hits.len(), MAX_ENDED + 1);
    assert_eq!(
        hits.values().map(|c| c.injected).sum::<u64>(),
        2 * (MAX_ENDED as u64 + 50)
    );
    assert_eq!(injected(&tally, FOLDED), 100);
}

#[test]
fn the_text_has_one_line_for_each_outcome_and_quotes_labels() {
    let mut tally = Tally::default();
    let faults = vec![fault("a", "one", 3), fault("b", "one", 4)];
    tally.update(&faults);
    let report = Report {
        faults,
        hits: tally.hits(),
        halted: false,
    };
    let text = encode("no\"de", &report).unwrap();
    let labels = r#"kind="NetworkChaos",namespace="ns",name="one",mechanism="tc_egress""#;
    for line in [
        format!("faultline_hits_total{{{labels},outcome=\"injected\"}} 7"),
        format!("faultline_hits_total{{{labels},outcome=\"matched\"}} 14"),
        format!("faultline_faults_active{{{labels}}} 2"),
        format!("faultline_fault_expiry_seconds{{{labels}}} 1.5"),
        "faultline_halted 0".to_owned(),
        format!(
            "faultline_agent_build_info{{version=\"{}\",node=\"no\\\"de\"}} 1",
            env!("CARGO_PKG_VERSION")
        ),
        "# EOF".to_owned(),
    ] {
        assert!(text.lines().any(|l| l == line), "{line}\nis not in\n{text}");
    }
}

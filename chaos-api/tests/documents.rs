//! Files as people write them, and what they are told.

use chaos_api::documents::{self, Document, DocumentErrors, Object};
use chaos_api::v1alpha1::{NetworkChaosSpec, PodSelector};
use chaos_api::validate::FieldError;
use proptest::prelude::*;

const DELAY: &str = "\
apiVersion: chaos-mesh.org/v1alpha1
kind: NetworkChaos
metadata:
  name: slow
spec:
  action: delay
  mode: all
  selector:
    namespaces: [default]
  delay:
    latency: 100ms
  duration: 30s
";

/// A file with nothing but NetworkChaos.
fn parse(text: &str) -> Result<Vec<Object<NetworkChaosSpec>>, DocumentErrors> {
    Ok(networks(documents::parse(text)?))
}

fn networks(documents: Vec<Document>) -> Vec<Object<NetworkChaosSpec>> {
    let network = |document| match document {
        Document::Network(chaos) => *chaos,
        Document::Time(chaos) => panic!("a TimeChaos: {chaos:?}"),
    };
    documents.into_iter().map(network).collect()
}

/// What a file named `delay.yaml` with this text would be told.
fn told(text: &str) -> Vec<String> {
    parse(text)
        .err()
        .map(|errors| errors.lines("delay.yaml").collect())
        .unwrap_or_default()
}

#[test]
fn several_documents_are_read_and_empty_ones_skipped() {
    let text = format!("# comment\n---\n{DELAY}---\n---\n{DELAY}...\n");
    let found = parse(&text).unwrap();
    assert_eq!(found.len(), 2);
    assert_eq!(found[0].metadata.name.as_deref(), Some("slow"));
    assert_eq!(found[0].spec.lifecycle.duration.as_deref(), Some("30s"));
    assert_eq!(found[0].spec.source.selector.namespaces, ["default"]);
}

#[test]
fn json_is_read_as_well() {
    let yaml = parse(DELAY).unwrap();
    let object: serde_json::Value = serde_norway::from_str(DELAY).unwrap();
    let json = serde_json::to_string(&object).unwrap();
    assert_eq!(parse(&json).unwrap(), yaml);
    let pretty = serde_json::to_string_pretty(&object).unwrap();
    assert_eq!(parse(&pretty).unwrap(), yaml);
    assert_eq!(parse(&pretty.replace("  ", "\t")).unwrap(), yaml);
}

#[test]
fn what_kubectl_get_shows_can_be_given_back() {
    let text = format!(
        "{DELAY}status:\n  conditions: [{{type: Selected, status: 'True'}}]\n  experiment: {{}}\n  future: 1\n"
    )
    .replace(
        "  name: slow\n",
        "  name: slow\n  namespace: default\n  uid: 1-2\n  generation: 1\n  resourceVersion: '5'\n  \
         creationTimestamp: '2026-01-01T00:00:00Z'\n  finalizers: [chaos-mesh/records]\n  annotations: {a: b}\n",
    );
    let found = parse(&text).unwrap();
    assert_eq!(found[0].metadata.namespace.as_deref(), Some("default"));
}

#[test]
fn the_same_document_may_be_written_with_an_anchor() {
    let text = DELAY
        .replace(
            "duration: 30s",
            "target: {mode: all, selector: &s {labelSelectors: {a: b}}}\n  duration: 30s",
        )
        .replace(
            "selector:\n    namespaces: [default]",
            "selector: {labelSelectors: &l {a: b}}",
        )
        .replace("&s {labelSelectors: {a: b}}", "{labelSelectors: *l}");
    let found = parse(&text).unwrap();
    let target = found[0].spec.target.as_ref().unwrap();
    assert_eq!(target.selector, found[0].spec.source.selector);
}

#[test]
fn nulls_are_fields_that_are_not_set() {
    let found = parse(&DELAY.replace("  duration: 30s", "  duration:\n  target: null")).unwrap();
    assert_eq!(found[0].spec.lifecycle.duration, None);
    assert_eq!(found[0].spec.target, None);
}

#[test]
fn every_error_names_its_line_its_field_and_what_to_do() {
    for (from, to, expected) in [
        (
            "  duration: 30s",
            "  durtion: 30s",
            &[
                "delay.yaml:12: spec.durtion: 30s: there is no such field; did you mean spec.duration?",
            ] as &[_],
        ),
        (
            "    latency: 100ms",
            "    latency: 100ms\n    loss: '3'",
            &["delay.yaml:12: spec.delay.loss: 3: there is no such field; did you mean spec.loss?"],
        ),
        (
            "  delay:\n    latency",
            "  latency",
            &[
                "delay.yaml:10: spec.latency: 100ms: there is no such field; did you mean spec.delay.latency?",
            ],
        ),
        (
            "spec:\n  action",
            "Spec:\n  action",
            &[
                "delay.yaml:5: Spec: an object: there is no such field; did you mean spec?",
                "delay.yaml:1: spec: not set: this field is required; set spec",
            ],
        ),
        (
            "  mode: all\n",
            "",
            &["delay.yaml:5: spec.mode: not set: this field is required; set spec.mode"],
        ),
        (
            "mode: all",
            "mode: al",
            &[
                "delay.yaml:7: spec.mode: al: must be one of one, all, fixed, fixed-percent, random-max-percent; did you mean all?",
            ],
        ),
        (
            "mode: all",
            "mode: fixed\n  value: 2",
            &["delay.yaml:8: spec.value: 2: must be a string; put it in quotes"],
        ),
        (
            "namespaces: [default]",
            "namespaces: default",
            &[
                "delay.yaml:9: spec.selector.namespaces: default: must be a list; write it in [ ], or with - in front",
            ],
        ),
        (
            "namespaces: [default]",
            "namespaces:\n      - default\n      - Default",
            &[
                "delay.yaml:11: spec.selector.namespaces[1]: Default: no namespace can have this name; write its name as kubectl get namespaces shows it",
            ],
        ),
        (
            "latency: 100ms",
            "latency: 0ms",
            &[
                "delay.yaml:11: spec.delay.latency: 0ms: a latency of 0 delays nothing; write it like 100ms",
            ],
        ),
        (
            "latency: 100ms",
            "latency: 100ms\n    jitter: 1h",
            &[
                "delay.yaml:12: spec.delay.jitter: 1h: must be at most 1h together with the latency; write a shorter time",
            ],
        ),
        (
            "  duration: 30s",
            "  duration: 30\n  faultline: {follow: 'yes', sample: {first: 0, every: 1.5}}",
            &[
                "delay.yaml:12: spec.duration: 30: must be a string; put it in quotes",
                "delay.yaml:13: spec.faultline.follow: yes: must be true or false; write it without quotes",
                "delay.yaml:13: spec.faultline.sample.first: 0: must be at least 1; write a larger number",
                "delay.yaml:13: spec.faultline.sample.every: 1.5: must be a whole number; write it without quotes",
            ],
        ),
        (
            "  name: slow",
            "  nmae: slow",
            &[
                "delay.yaml:3: metadata.name: not set: this field is required; set metadata.name",
                "delay.yaml:4: metadata.nmae: slow: there is no such field; did you mean metadata.name?",
            ],
        ),
        (
            "kind: NetworkChaos",
            "kind: IOChaos",
            &[
                "delay.yaml:2: kind: IOChaos: kind IOChaos is not built yet; set kind to NetworkChaos or TimeChaos",
            ],
        ),
        (
            "chaos-mesh.org/v1alpha1",
            "chaos-mesh.org/v1",
            &[
                "delay.yaml:1: apiVersion: chaos-mesh.org/v1: NetworkChaos is of chaos-mesh.org/v1alpha1; set apiVersion to chaos-mesh.org/v1alpha1",
            ],
        ),
        (
            "  mode: all",
            "  mode: all\n  mode: one",
            &["delay.yaml:8: \"mode\" is there twice; write YAML or JSON"],
        ),
        (
            "  mode: all",
            "  mode: [all",
            &["delay.yaml:8: illegal placement of ':' indicator; write YAML or JSON"],
        ),
    ] {
        let text = DELAY.replacen(from, to, 1);
        assert_ne!(text, DELAY, "{from}");
        let mut expected: Vec<_> = expected.to_vec();
        let mut told = told(&text);
        expected.sort_unstable();
        told.sort_unstable();
        assert_eq!(told, expected, "{to}");
    }
}

#[test]
fn errors_of_later_documents_have_their_own_lines() {
    let text = format!(
        "{DELAY}---\n{}",
        DELAY.replace("action: delay", "action: delai")
    );
    assert_eq!(
        told(&text),
        [
            "delay.yaml:19: spec.action: delai: must be one of netem, delay, loss, duplicate, corrupt, \
          partition, bandwidth; did you mean delay?"
        ]
    );
}

#[test]
fn a_text_without_a_document_is_told_so() {
    for text in ["", "# nothing\n", "---\n---\n"] {
        assert_eq!(
            told(text),
            ["delay.yaml:1: there is no document in it; write YAML or JSON"]
        );
    }
    assert_eq!(told("just words").len(), 1);
    assert_eq!(told("- a\n- b").len(), 1);
}

#[test]
fn hostile_texts_cost_no_more_than_their_bytes() {
    assert!(told(&"[".repeat(1_000_000))[0].contains("recursion limit"));
    assert!(told(&"[".repeat(100))[0].contains("nested deeper than 64"));
    assert!(told(&"a: {".repeat(1000))[0].contains("delay.yaml:1: "));
    assert!(told(&"- ".repeat(200_000))[0].contains("delay.yaml:1: "));
    let bomb = (1..12).fold("a0: &a0 [x, x, x]\n".to_owned(), |text, n| {
        let last = format!("*a{}", n - 1);
        format!("{text}a{n}: &a{n} [{last}, {last}, {last}, {last}]\n")
    });
    assert!(told(&bomb)[0].contains("aliases"), "{:?}", told(&bomb));
    assert!(told(&"x".repeat(documents::MAX_BYTES + 1))[0].contains("at most"));
}

proptest! {
    #[test]
    fn no_text_panics(text in "\\PC{0,200}") {
        let _ = parse(&text);
    }

    #[test]
    fn no_change_of_a_good_document_panics(at in 0..DELAY.len(), with in "[ -~\\n]{0,6}", cut in 0_usize..8) {
        let end = (at + cut).min(DELAY.len());
        let _ = parse(&format!("{}{with}{}", &DELAY[..at], &DELAY[end..]));
    }
}

#[test]
fn a_host_needs_no_selector_and_has_rules_of_its_own() {
    let text = "apiVersion: chaos-mesh.org/v1alpha1\nkind: NetworkChaos\nmetadata: {name: x}\n\
                spec:\n  action: partition\n  device: eth7\n";
    assert!(parse(text).is_err(), "a cluster needs them");
    let parsed = networks(documents::parse_for_host(text, &|_| Vec::new()).unwrap());
    assert_eq!(parsed[0].spec.source, PodSelector::default());
    let refuse = |document: &Document| {
        vec![FieldError {
            field: "spec.device".to_owned(),
            value: match document {
                Document::Network(chaos) => chaos.spec.device.clone().unwrap_or_default(),
                Document::Time(_) => String::new(),
            },
            rule: "no such device".to_owned(),
            advice: "name another".to_owned(),
        }]
    };
    let errors = documents::parse_for_host(text, &refuse).unwrap_err();
    assert_eq!(
        errors.lines("x.yaml").collect::<Vec<_>>(),
        ["x.yaml:6: spec.device: eth7: no such device; name another"]
    );
    let typo = text.replace("device", "devise");
    assert!(
        documents::parse_for_host(&typo, &|_| Vec::new()).is_err(),
        "just as strict"
    );
}

#[test]
fn each_kind_is_read_by_its_own_schema() {
    let time = "apiVersion: chaos-mesh.org/v1alpha1\nkind: TimeChaos\nmetadata: {name: late}\n\
                spec:\n  mode: all\n  selector: {}\n  timeOffset: -5m\n";
    let found = documents::parse(&format!("{time}---\n{DELAY}")).unwrap();
    let kinds: Vec<_> = found.iter().map(Document::kind).collect();
    assert_eq!(kinds, ["TimeChaos", "NetworkChaos"]);
    assert_eq!(
        told(&time.replace("timeOffset: -5m", "timeOffset: 0s\n  action: delay")),
        ["delay.yaml:8: spec.action: delay: there is no such field; remove it"]
    );
    assert_eq!(
        told(&time.replace("-5m", "0s")),
        [
            "delay.yaml:7: spec.timeOffset: 0s: an offset of 0 changes no clock; write it like 5m, -1h30m or 250us"
        ]
    );
}

//! Which pods: selectors and modes. Matching them against real pods is the operator's business.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A selector with how many of the matching pods are taken.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PodSelector {
    /// Which pods are eligible. All parts must agree; empty means every pod of the experiment's
    /// own namespace.
    pub selector: PodSelectorSpec,
    /// How many of the eligible pods are taken: one, all, fixed (a number), fixed-percent, or
    /// random-max-percent (a random share up to a percentage).
    pub mode: Mode,
    /// The number for mode fixed (above 0), or the percentage for fixed-percent and
    /// random-max-percent (1 to 100), as a string. Not read for one and all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

/// How many of the eligible pods are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// One, drawn at random.
    One,
    /// All.
    #[default]
    All,
    /// As many as `value` says, drawn at random; all if there are fewer.
    Fixed,
    /// `value` percent, rounded up, drawn at random.
    FixedPercent,
    /// Between 0 and `value` percent, rounded up, drawn at random.
    RandomMaxPercent,
}

impl Mode {
    /// The word in the document.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::One => "one",
            Self::All => "all",
            Self::Fixed => "fixed",
            Self::FixedPercent => "fixed-percent",
            Self::RandomMaxPercent => "random-max-percent",
        }
    }
}

/// Which pods are eligible.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodSelectorSpec {
    /// Namespaces to look in. Default: the namespace of the experiment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<String>,
    /// Pods with all of these field values, such as `status.phase: Running`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub field_selectors: BTreeMap<String, String>,
    /// Pods with all of these labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub label_selectors: BTreeMap<String, String>,
    /// Pods whose labels meet all of these requirements.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expression_selectors: Vec<SelectorRequirement>,
    /// Pods with all of these annotations, compared exactly.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotation_selectors: BTreeMap<String, String>,
    /// Pods on these nodes, and on those that nodeSelectors names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<String>,
    /// Exactly these pods: namespace to names. All other parts of the selector are then not read;
    /// a pod that does not exist is skipped.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub pods: BTreeMap<String, Vec<String>>,
    /// Pods on nodes with all of these labels, and on those that nodes names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selectors: BTreeMap<String, String>,
    /// Pods in any of these phases: Pending, Running, Succeeded, Failed, Unknown; with a ! in
    /// front: pods that are not in it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pod_phase_selectors: Vec<String>,
}

/// One requirement on labels, as in `matchExpressions` of Kubernetes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SelectorRequirement {
    /// The label's key.
    pub key: String,
    /// In, NotIn, Exists or DoesNotExist.
    pub operator: String,
    /// What the label's value is compared with: at least one for In and NotIn, none for Exists and
    /// DoesNotExist.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub values: Vec<String>,
}

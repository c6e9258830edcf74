//! Addresses of host names, as they were resolved last. A plain value that the pure parts read;
//! `resolver.rs` fills it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// What is known of the names that an experiment has among its `externalTargets`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names(pub BTreeMap<String, Found>);

/// What is known of a name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// From the last answer there was.
    pub addresses: BTreeSet<IpAddr>,
    /// Why the last question had no answer; then `addresses` are older.
    pub error: Option<String>,
}

impl Names {
    /// Addresses of a name; `None` as long as it has never been resolved.
    #[must_use]
    pub fn addresses(&self, name: &str) -> Option<&BTreeSet<IpAddr>> {
        let found = &self.0.get(name)?.addresses;
        (!found.is_empty()).then_some(found)
    }

    /// What went wrong, one line per name, for the author of the experiment.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let problem = |(name, found): (&String, &Found)| {
            let error = found.error.as_ref()?;
            let stand_in = match found.addresses.len() {
                0 => "it is left out until it can be resolved".to_owned(),
                n => format!("the {n} addresses of before are kept"),
            };
            Some(format!(
                "spec.externalTargets: {name}: the operator cannot resolve it: {error}; {stand_in}; \
                 correct the name, or write addresses"
            ))
        };
        self.0.iter().filter_map(problem).collect()
    }
}

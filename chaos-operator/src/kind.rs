//! What the operator needs of each kind of experiment. A kind is one `impl` here and one file
//! beside `assign.rs` for its way to the wire; all else is the same for all.

use std::collections::BTreeSet;
use std::fmt::Debug;

use chaos_api::validate::{self, FieldError};
use chaos_crd::{Experiment, NetworkChaos, TimeChaos};
use kube::core::NamespaceResourceScope;
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;

use crate::assign::{self, Assigned, Request};

/// A kind of experiment that the operator runs.
pub trait Kind:
    Experiment
    + Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + Debug
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
    /// Its name, as in `kind:`.
    const NAME: &'static str;

    /// Fills in what the user left out.
    fn apply_defaults(&mut self);

    /// What keeps it from being run as it is asked for: broken rules, and what is not built.
    fn problems(&self) -> Vec<FieldError>;

    /// Host names whose addresses [`Self::assign`] needs.
    fn host_names(&self) -> BTreeSet<String>;

    /// What each record has to have, in terms of the wire.
    fn assign(&self, request: &Request<'_>) -> Vec<Assigned>;
}

impl Kind for NetworkChaos {
    const NAME: &'static str = "NetworkChaos";

    fn apply_defaults(&mut self) {
        let namespace = self.namespace().unwrap_or_default();
        chaos_api::default::network_chaos(&mut self.spec, &namespace);
    }

    fn problems(&self) -> Vec<FieldError> {
        validate::network_chaos(&self.spec)
    }

    fn host_names(&self) -> BTreeSet<String> {
        assign::network::host_names(self)
    }

    fn assign(&self, request: &Request<'_>) -> Vec<Assigned> {
        assign::network::assign(self, request)
    }
}

impl Kind for TimeChaos {
    const NAME: &'static str = "TimeChaos";

    fn apply_defaults(&mut self) {
        let namespace = self.namespace().unwrap_or_default();
        chaos_api::default::time_chaos(&mut self.spec, &namespace);
    }

    fn problems(&self) -> Vec<FieldError> {
        validate::time_chaos(&self.spec)
    }

    fn host_names(&self) -> BTreeSet<String> {
        BTreeSet::new()
    }

    fn assign(&self, request: &Request<'_>) -> Vec<Assigned> {
        assign::time::assign(self, request)
    }
}

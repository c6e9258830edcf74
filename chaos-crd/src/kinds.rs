//! The kinds: a spec and a status of `chaos-api` with metadata around them.

use std::borrow::Cow;

use chaos_api::v1alpha1::names::{GROUP, SELECTOR_KEY_SOURCE, SELECTOR_KEY_TARGET, VERSION};
use chaos_api::v1alpha1::{
    ChaosStatus, Lifecycle, NetworkChaosSpec, NetworkChaosStatus, PodSelector, TimeChaosSpec,
    TimeChaosStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube_core::{NamespaceResourceScope, Resource};
use schemars::JsonSchema;
use serde::ser::SerializeStruct as _;
use serde::{Deserialize, Serialize, Serializer};

/// What the operator needs to know of an experiment whatever its kind.
pub trait Experiment: Resource<DynamicType = ()> {
    /// Duration, legacy scheduler, remote cluster and the `faultline` block.
    fn lifecycle(&self) -> &Lifecycle;

    /// Its pod selectors with the `selectorKey` that their records carry: `.` for the sources,
    /// `.Target` for the other side.
    fn selectors(&self) -> Vec<(&'static str, &PodSelector)>;

    /// For kinds whose records are containers: which ones of each pod, by name; none means the first.
    /// `None` for kinds whose records are pods.
    fn container_names(&self) -> Option<&[String]> {
        None
    }

    /// The shared part of its status; `None` before the first write.
    fn chaos_status(&self) -> Option<&ChaosStatus>;

    /// True for actions that happen once and cannot be undone: neither pause nor duration apply.
    fn is_one_shot(&self) -> bool;
}

/// Makes a kind: `apiVersion`, `kind`, metadata, spec and status, in a namespace, of this plural (which
/// is the singular as well, as upstream has it).
macro_rules! kind {
    ($(#[$doc:meta])* $kind:ident, $spec:ty, $status:ty, $plural:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
        #[expect(missing_docs, reason = "`kubectl explain` shows what the types of the fields say")]
        pub struct $kind {
            #[schemars(skip)]
            pub metadata: ObjectMeta,
            pub spec: $spec,
            pub status: Option<$status>,
        }

        impl Resource for $kind {
            type DynamicType = ();
            type Scope = NamespaceResourceScope;

            fn kind((): &()) -> Cow<'_, str> {
                stringify!($kind).into()
            }

            fn group((): &()) -> Cow<'_, str> {
                GROUP.into()
            }

            fn version((): &()) -> Cow<'_, str> {
                VERSION.into()
            }

            fn plural((): &()) -> Cow<'_, str> {
                $plural.into()
            }

            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }

            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }

        /// With `apiVersion` and `kind`, as an API server wants it.
        impl Serialize for $kind {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let mut object = serializer.serialize_struct(stringify!($kind), 5)?;
                object.serialize_field("apiVersion", &Self::api_version(&()))?;
                object.serialize_field("kind", &Self::kind(&()))?;
                object.serialize_field("metadata", &self.metadata)?;
                object.serialize_field("spec", &self.spec)?;
                match &self.status {
                    Some(status) => object.serialize_field("status", status)?,
                    None => object.skip_field("status")?,
                }
                object.end()
            }
        }
    };
}

kind! {
    /// Delays, loses, duplicates, corrupts, slows down or drops packets that pods send or receive.
    NetworkChaos, NetworkChaosSpec, NetworkChaosStatus, "networkchaos"
}

kind! {
    /// Shows containers another time than it is.
    TimeChaos, TimeChaosSpec, TimeChaosStatus, "timechaos"
}

impl Experiment for NetworkChaos {
    fn lifecycle(&self) -> &Lifecycle {
        &self.spec.lifecycle
    }

    fn selectors(&self) -> Vec<(&'static str, &PodSelector)> {
        let target = self
            .spec
            .target
            .iter()
            .map(|target| (SELECTOR_KEY_TARGET, target));
        std::iter::once((SELECTOR_KEY_SOURCE, &self.spec.source))
            .chain(target)
            .collect()
    }

    fn chaos_status(&self) -> Option<&ChaosStatus> {
        self.status.as_ref().map(|status| &status.chaos)
    }

    fn is_one_shot(&self) -> bool {
        false
    }
}

impl Experiment for TimeChaos {
    fn lifecycle(&self) -> &Lifecycle {
        &self.spec.lifecycle
    }

    fn selectors(&self) -> Vec<(&'static str, &PodSelector)> {
        vec![(SELECTOR_KEY_SOURCE, &self.spec.source)]
    }

    fn container_names(&self) -> Option<&[String]> {
        Some(&self.spec.container_names)
    }

    fn chaos_status(&self) -> Option<&ChaosStatus> {
        self.status.as_ref().map(|status| &status.chaos)
    }

    fn is_one_shot(&self) -> bool {
        false
    }
}

//! The Chaos Mesh API (`chaos-mesh.org/v1alpha1`): types, defaults, validation. Pure.
#![forbid(unsafe_code)]

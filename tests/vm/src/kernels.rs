//! `kernels.toml`: what the tests need of every kernel.

use serde::Deserialize;

/// The file as it was when this was compiled.
const FILE: &str = include_str!("../kernels.toml");

/// All of `kernels.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kernels {
    /// Modules that are loaded before the tests. Their dependencies are found when they are packed.
    pub modules: Vec<String>,
}

impl Kernels {
    /// What `kernels.toml` says.
    ///
    /// # Errors
    /// It does not parse; the unit test of this module finds that first.
    pub fn read() -> Result<Kernels, toml::de::Error> {
        toml::from_str(FILE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_toml_parses_and_names_the_modules_of_the_delay() {
        let modules = Kernels::read().unwrap().modules;
        for needed in ["veth", "sch_fq", "sch_ingress", "cls_bpf"] {
            assert!(modules.iter().any(|m| m == needed), "{needed}");
        }
    }
}

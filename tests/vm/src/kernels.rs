//! `kernels.toml`: which kernels the tests run on, and what they need of each.

use serde::Deserialize;

/// The file as it was when this was compiled.
const FILE: &str = include_str!("../kernels.toml");

/// All of `kernels.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kernels {
    /// Modules that are loaded before the tests. Their dependencies are found when they are packed.
    pub modules: Vec<String>,
    /// Oldest first.
    #[serde(rename = "kernel")]
    pub kernels: Vec<Kernel>,
}

/// Where one kernel comes from; `xtask/src/setup/kernels.rs` fetches it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kernel {
    /// Name in reports and for `--kernel`; the release starts with it.
    pub name: String,
    /// Debian suite.
    pub suite: String,
    /// Packages that hold the image and the modules, or meta packages over them; `*` allowed.
    pub packages: Vec<String>,
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
        let Kernels { modules, kernels } = Kernels::read().unwrap();
        assert_eq!(kernels.iter().map(|k| k.name.as_str()).collect::<Vec<_>>(), ["6.1", "6.12", "7.2"]);
        for needed in ["veth", "sch_fq", "sch_ingress", "cls_bpf"] {
            assert!(modules.iter().any(|m| m == needed), "{needed}");
        }
    }
}

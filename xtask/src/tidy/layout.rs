//! Rules about which files there are.

use super::{Rule, Tree};

/// The rules.
pub(crate) const RULES: &[Rule] = &[
    Rule {
        name: "every_kernel_program_has_its_mechanism",
        why: "one stem names a mechanism everywhere: in the kernel, in the agent, in metrics",
        check: programs_have_mechanisms,
    },
    Rule {
        name: "every_crate_is_on_the_map",
        why: "ARCHITECTURE.md is where people find out what is where",
        check: crates_are_on_the_map,
    },
    Rule {
        name: "every_fault_is_tested_and_has_its_page",
        why: "a fault that nobody explains cannot be used; a file that no `mod` names is no test",
        check: faults_have_pages,
    },
    Rule {
        name: "names_say_what_is_inside",
        why: "what is called utils grows without end; name it for what it does",
        check: names_say_what_is_inside,
    },
    Rule {
        name: "a_module_lies_beside_its_directory",
        why: "one form only, foo.rs beside foo/: ten tabs called mod.rs help nobody",
        check: no_mod_rs,
    },
];

const VAGUE: [&str; 9] = [
    "util", "utils", "common", "type", "types", "manager", "helper", "helpers", "misc",
];

fn programs_have_mechanisms(tree: &Tree) -> Vec<String> {
    tree.stems("chaos-ebpf/src/bin", "rs")
        .map(|stem| (stem, format!("chaos-agent/src/mechanism/{stem}.rs")))
        .filter(|(_, mechanism)| !tree.exists(mechanism))
        .map(|(stem, mechanism)| format!("chaos-ebpf/src/bin/{stem}.rs: there is no {mechanism}"))
        .collect()
}

fn crates_are_on_the_map(tree: &Tree) -> Vec<String> {
    let Some(map) = tree.get("ARCHITECTURE.md") else {
        return vec!["ARCHITECTURE.md: there is none".to_owned()];
    };
    tree.files()
        .filter_map(|(path, _)| path.strip_suffix("/Cargo.toml"))
        .filter(|krate| !map.lines().any(|line| line.contains(krate)))
        .map(|krate| format!("ARCHITECTURE.md: no line about {krate}"))
        .collect()
}

fn faults_have_pages(tree: &Tree) -> Vec<String> {
    let list = tree.get("tests/vm/src/faults.rs").unwrap_or_default();
    let mut broken = Vec::new();
    for fault in tree.stems("tests/vm/src/faults", "rs") {
        let page = format!("docs/faults/{fault}.md");
        if !tree.exists(&page) {
            broken.push(format!(
                "tests/vm/src/faults/{fault}.rs: there is no {page}"
            ));
        }
        if !list
            .lines()
            .any(|line| line.trim() == format!("mod {fault};"))
        {
            broken.push(format!("tests/vm/src/faults.rs: `mod {fault};` is missing"));
        }
    }
    for page in tree.stems("docs/faults", "md") {
        if !tree.exists(&format!("tests/vm/src/faults/{page}.rs")) {
            broken.push(format!(
                "docs/faults/{page}.md: no tests in tests/vm/src/faults/{page}.rs"
            ));
        }
    }
    broken
}

fn names_say_what_is_inside(tree: &Tree) -> Vec<String> {
    let vague = |path: &str| {
        path.split('/')
            .any(|part| VAGUE.contains(&part.split('.').next().unwrap_or(part)))
    };
    tree.files()
        .filter(|(path, _)| vague(path))
        .map(|(path, _)| format!("{path}: its name says nothing"))
        .collect()
}

fn no_mod_rs(tree: &Tree) -> Vec<String> {
    tree.rust()
        .filter_map(|(path, _)| path.strip_suffix("/mod.rs"))
        .map(|module| format!("{module}/mod.rs: call it {module}.rs"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_without_a_mechanism_is_found() {
        let tree = Tree::from([
            ("chaos-ebpf/src/bin/a.rs", ""),
            ("chaos-ebpf/src/bin/b.rs", ""),
            ("chaos-agent/src/mechanism/a.rs", ""),
        ]);
        let broken = programs_have_mechanisms(&tree);
        assert_eq!(broken.len(), 1);
        assert!(broken[0].contains("mechanism/b.rs"), "{broken:?}");
    }

    #[test]
    fn a_crate_off_the_map_is_found_and_so_is_a_missing_map() {
        let map = "- `chaos-abi` what kernel and agent share\n";
        let crates = [
            ("chaos-abi/Cargo.toml", ""),
            ("tests/vm/Cargo.toml", ""),
            ("Cargo.toml", ""),
        ];
        let [a, b, c] = crates;
        let tree = Tree::from([a, b, c, ("ARCHITECTURE.md", map)]);
        assert_eq!(
            crates_are_on_the_map(&tree),
            ["ARCHITECTURE.md: no line about tests/vm"]
        );
        assert_eq!(crates_are_on_the_map(&Tree::from(crates)).len(), 1);
    }

    #[test]
    fn a_fault_needs_its_tests_its_module_and_its_page() {
        let (list, page) = ("tests/vm/src/faults.rs", "docs/faults/delay.md");
        let tests = "tests/vm/src/faults/delay.rs";
        let whole = Tree::from([(list, "mod delay;\n"), (tests, ""), (page, "")]);
        assert!(faults_have_pages(&whole).is_empty());
        for (tree, expected) in [
            (Tree::from([(list, "mod delay;\n"), (tests, "")]), page),
            (
                Tree::from([(list, "mod delays;\n"), (tests, ""), (page, "")]),
                "`mod delay;`",
            ),
            (Tree::from([(list, "mod delay;\n"), (page, "")]), "no tests"),
        ] {
            let broken = faults_have_pages(&tree);
            assert_eq!(broken.len(), 1, "{broken:?}");
            assert!(broken[0].contains(expected), "{broken:?}");
        }
    }

    #[test]
    fn vague_names_are_found_anywhere_in_a_path() {
        let tree = Tree::from([
            ("a/utils.rs", ""),
            ("a/types/x.rs", ""),
            ("a/common.rs", ""),
            ("a/typed.rs", ""),
            ("a/commonly.rs", ""),
        ]);
        assert_eq!(names_say_what_is_inside(&tree).len(), 3);
    }

    #[test]
    fn mod_rs_is_found() {
        let tree = Tree::from([("a/mod.rs", ""), ("a/amod.rs", "")]);
        assert_eq!(no_mod_rs(&tree), ["a/mod.rs: call it a.rs"]);
    }
}

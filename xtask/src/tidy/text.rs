//! Rules about what is in the files.

use super::{Rule, Tree};

/// The rules.
pub(crate) const RULES: &[Rule] = &[
    Rule {
        name: "no_source_is_longer_than_500_lines",
        why: "a file is read as a whole or not at all; split it by what changes together",
        check: sources_are_short,
    },
    Rule {
        name: "every_module_says_what_lives_in_it",
        why: "the head is read by whoever looks for the place of a change",
        check: modules_have_heads,
    },
    Rule {
        name: "lints_are_expected_and_not_allowed",
        why: "an expectation says so when it has become needless; an allowance rots",
        check: nothing_is_allowed,
    },
    Rule {
        name: "no_registry_is_named",
        why: "packages come through their clients, from the mirror that the machine is set up for",
        check: no_registry_is_named,
    },
    Rule {
        name: "the_map_has_at_most_200_lines",
        why: "a map that is longer than that is not read",
        check: the_map_is_short,
    },
];

const LONGEST_SOURCE: usize = 500;
const LONGEST_MAP: usize = 200;

/// Sources that may be longer, each with the reason.
const LONG: &[(&str, &str)] = &[];

/// Split, so that this file does not break its own rules.
const ALLOW: [&str; 2] = [concat!("#[", "allow("), concat!("#![", "allow(")];

/// See [`ALLOW`].
const REGISTRIES: [&str; 9] = [
    concat!("crates", ".io"),
    concat!("deb.", "debian.org"),
    concat!("ftp.", "debian.org"),
    concat!("snapshot.", "debian.org"),
    concat!("proxy.", "golang.org"),
    concat!("sum.", "golang.org"),
    concat!("registry.", "npmjs"),
    concat!("pypi", ".org"),
    concat!("pythonhosted", ".org"),
];

fn sources_are_short(tree: &Tree) -> Vec<String> {
    short_except(tree, LONG)
}

fn short_except(tree: &Tree, long: &[(&str, &str)]) -> Vec<String> {
    let is_long = |text: &str| text.lines().count() > LONGEST_SOURCE;
    let excused = |path: &str| long.iter().any(|(excused, _)| *excused == path);
    let mut broken: Vec<_> = tree
        .rust()
        .filter(|(path, text)| is_long(text) && !excused(path))
        .map(|(path, text)| format!("{path}: {} lines", text.lines().count()))
        .collect();
    let stale = long
        .iter()
        .filter(|(path, _)| !tree.get(path).is_some_and(is_long));
    broken.extend(stale.map(|(path, _)| format!("{path}: not long, but listed in tidy/text.rs")));
    broken
}

fn modules_have_heads(tree: &Tree) -> Vec<String> {
    // The tests of a module are part of it.
    tree.rust()
        .filter(|(path, text)| !text.starts_with("//!") && !path.ends_with("/tests.rs"))
        .map(|(path, _)| format!("{path}: does not start with //!"))
        .collect()
}

fn nothing_is_allowed(tree: &Tree) -> Vec<String> {
    find(tree.rust(), &ALLOW, "use expect, with a reason")
}

fn no_registry_is_named(tree: &Tree) -> Vec<String> {
    // Cargo writes its index into the lock file.
    let files = tree
        .files()
        .filter(|(path, _)| !path.ends_with("Cargo.lock"));
    find(files, &REGISTRIES, "names a registry")
}

fn the_map_is_short(tree: &Tree) -> Vec<String> {
    let lines = tree
        .get("ARCHITECTURE.md")
        .unwrap_or_default()
        .lines()
        .count();
    let broken = (lines > LONGEST_MAP).then(|| format!("ARCHITECTURE.md: {lines} lines"));
    broken.into_iter().collect()
}

fn find<'a>(
    files: impl Iterator<Item = (&'a str, &'a str)>,
    needles: &[&str],
    what: &str,
) -> Vec<String> {
    let mut found = Vec::new();
    for (path, text) in files {
        for (number, line) in text.lines().enumerate() {
            if needles.iter().any(|needle| line.contains(needle)) {
                found.push(format!("{path}:{}: {what}", number + 1));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_sources_are_found_and_so_are_needless_excuses() {
        let long = "x\n".repeat(501);
        let tree = Tree::from([
            ("a.rs", long.as_str()),
            ("b.rs", "x"),
            ("c.md", long.as_str()),
        ]);
        assert_eq!(short_except(&tree, &[]), ["a.rs: 501 lines"]);
        assert!(short_except(&tree, &[("a.rs", "a table")]).is_empty());
        assert_eq!(short_except(&tree, &[("a.rs", ""), ("b.rs", "")]).len(), 1);
    }

    #[test]
    fn a_module_without_a_head_is_found() {
        let tree = Tree::from([
            ("a.rs", "//! head\n"),
            ("b.rs", "use x;\n"),
            ("c.rs", "// no\n"),
        ]);
        assert_eq!(modules_have_heads(&tree).len(), 2);
    }

    #[test]
    fn allowed_lints_and_registries_are_found_with_their_line() {
        let allowed = format!("//! head\n{}dead_code)]\n", ALLOW[0]);
        let registry = format!("get https://index.{}/x\n", REGISTRIES[0]);
        let tree = Tree::from([
            ("a.rs", allowed.as_str()),
            ("b.md", registry.as_str()),
            ("Cargo.lock", registry.as_str()),
        ]);
        assert_eq!(
            nothing_is_allowed(&tree),
            ["a.rs:2: use expect, with a reason"]
        );
        assert_eq!(no_registry_is_named(&tree), ["b.md:1: names a registry"]);
    }

    #[test]
    fn a_map_that_grows_is_found() {
        let map = "x\n".repeat(201);
        assert_eq!(
            the_map_is_short(&Tree::from([("ARCHITECTURE.md", map.as_str())])).len(),
            1
        );
        assert!(the_map_is_short(&Tree::default()).is_empty());
    }
}

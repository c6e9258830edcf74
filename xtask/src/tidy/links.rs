//! Links from one document to another file of the repository.

use pulldown_cmark::{Event, Parser, Tag};

use super::{Rule, Tree};

/// The rules.
pub(crate) const RULES: &[Rule] = &[Rule {
    name: "links_between_documents_lead_somewhere",
    why: "a document that points to nothing is worse than none",
    check: links_lead_somewhere,
}];

fn links_lead_somewhere(tree: &Tree) -> Vec<String> {
    let mut broken = Vec::new();
    for (path, text) in tree.files().filter(|(path, _)| path.ends_with(".md")) {
        for event in Parser::new(text) {
            let (Event::Start(Tag::Link { dest_url, .. })
            | Event::Start(Tag::Image { dest_url, .. })) = event
            else {
                continue;
            };
            if let Some(target) = file_of(path, &dest_url)
                && !tree.exists(&target)
            {
                broken.push(format!("{path}: leads to {target}, which is not there"));
            }
        }
    }
    broken
}

/// The path from the root that a link in `document` means; `None` if it is not to a file.
fn file_of(document: &str, link: &str) -> Option<String> {
    let link = link.split(['#', '?']).next().unwrap_or_default();
    if link.is_empty() || link.contains("://") || link.starts_with("mailto:") {
        return None;
    }
    let mut parts: Vec<&str> = match link.strip_prefix('/') {
        Some(_) => Vec::new(),
        None => document
            .split('/')
            .rev()
            .skip(1)
            .collect::<Vec<_>>()
            .into_iter()
            .rev()
            .collect(),
    };
    for part in link.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            name => parts.push(name),
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_relative_to_their_document() {
        for (document, link, expected) in [
            ("README.md", "docs/a.md", Some("docs/a.md")),
            ("docs/faults/a.md", "../b.md#part", Some("docs/b.md")),
            ("docs/a.md", "./b.md", Some("docs/b.md")),
            ("docs/a.md", "/crds/", Some("crds")),
            ("docs/a.md", "#part", None),
            ("docs/a.md", "https://example.org/x", None),
        ] {
            assert_eq!(
                file_of(document, link).as_deref(),
                expected,
                "{document} {link}"
            );
        }
    }

    #[test]
    fn a_dead_link_is_found_but_not_in_code() {
        let text = "[a](a.md) [b](gone.md)\n\n```\n[c](code.md)\n```\n`[d](d.md)`\n";
        let tree = Tree::from([("docs/x.md", text), ("docs/a.md", "")]);
        assert_eq!(
            links_lead_somewhere(&tree),
            ["docs/x.md: leads to docs/gone.md, which is not there"]
        );
    }
}

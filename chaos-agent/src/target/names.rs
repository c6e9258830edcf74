//! How kubelet and the runtimes name cgroup directories. Pure: no file is looked at here.
//!
//! Two cgroup drivers (`cgroupfs` and `systemd`), three QoS classes, and one scope per container
//! that each runtime prefixes in its own way.

use std::path::PathBuf;

/// Longest id that is looked at: a container id has 64 characters, a pod's uid 36.
const MAX_ID: usize = 128;

/// Where the pod's cgroup is when kubelet runs directly on the host and has the default root, most
/// frequent class first. Relative to the root of the hierarchy.
pub(super) fn pod_candidates(uid: &str) -> Vec<PathBuf> {
    let unit = uid.replace('-', "_");
    let mut paths = Vec::with_capacity(6);
    for class in ["burstable", "besteffort"] {
        paths.push(format!(
            "kubepods.slice/kubepods-{class}.slice/kubepods-{class}-pod{unit}.slice"
        ));
    }
    paths.push(format!("kubepods.slice/kubepods-pod{unit}.slice"));
    for class in ["burstable/", "besteffort/", ""] {
        paths.push(format!("kubepods/{class}pod{uid}"));
    }
    paths.into_iter().map(PathBuf::from).collect()
}

/// Whether a directory of this name is the cgroup of the pod, whatever stands above it.
pub(super) fn is_pod(name: &str, uid: &str) -> bool {
    if name.strip_prefix("pod") == Some(uid) {
        return true;
    }
    // systemd: `<parent units joined by ->-pod<uid>.slice`, and `-` in the uid becomes `_`.
    name.strip_suffix(".slice")
        .and_then(|unit| unit.strip_suffix(&uid.replace('-', "_")))
        .and_then(|unit| unit.strip_suffix("pod"))
        .is_some_and(|parents| parents.is_empty() || parents.ends_with('-'))
}

/// Whether a directory of this name is the cgroup of the container:
/// `<id>`, `<runtime>-<id>` or `<runtime>-<id>.scope`.
pub(super) fn is_container(name: &str, id: &str) -> bool {
    let unit = name.strip_suffix(".scope").unwrap_or(name);
    !is_monitor(name)
        && unit
            .strip_suffix(id)
            .is_some_and(|runtime| runtime.is_empty() || runtime.ends_with('-'))
}

/// Same, for an id that the user shortened as `docker ps` does.
pub(super) fn is_container_short(name: &str, start: &str) -> bool {
    let unit = name.strip_suffix(".scope").unwrap_or(name);
    let id = unit.rsplit('-').next().unwrap_or(unit);
    !is_monitor(name)
        && id.len() == 64
        && id.bytes().all(|b| b.is_ascii_hexdigit())
        && id.starts_with(start)
}

/// Whether the processes of a directory of this name watch a container instead of being in it:
/// `conmon` sits in the pod's cgroup and in the *node's* network namespace.
pub(super) fn is_monitor(name: &str) -> bool {
    name.contains("conmon")
}

/// Whether the text can be an id at all: what comes from a peer is never a path.
pub fn is_id(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= MAX_ID
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0c6c2ee9-c4d4-4cf3-9a0a-6ca8a6c9ab4d";

    #[test]
    fn a_pod_is_known_by_its_uid_in_both_drivers_and_below_any_parent() {
        let unit = UID.replace('-', "_");
        for (name, expected) in [
            (format!("pod{UID}"), true),
            (format!("kubepods-pod{unit}.slice"), true),
            (format!("kubepods-burstable-pod{unit}.slice"), true),
            (format!("kubelet-kubepods-besteffort-pod{unit}.slice"), true),
            (format!("pod{unit}.slice"), true),
            (format!("kubepods-xpod{unit}.slice"), false),
            (format!("kubepods-pod{UID}"), false),
            (format!("pod{UID}0"), false),
            (UID.to_owned(), false),
            ("kubepods-burstable.slice".to_owned(), false),
        ] {
            assert_eq!(is_pod(&name, UID), expected, "{name}");
        }
    }

    #[test]
    fn a_container_is_known_by_its_id_behind_any_runtime() {
        let id = "5f".repeat(32);
        for (name, expected) in [
            (id.clone(), true),
            (format!("cri-containerd-{id}.scope"), true),
            (format!("crio-{id}.scope"), true),
            (format!("crio-{id}"), true),
            (format!("docker-{id}.scope"), true),
            (format!("libpod-{id}.scope"), true),
            (format!("crio-conmon-{id}.scope"), false),
            (format!("crio-conmon-{id}"), false),
            (format!("x{id}"), false),
            (format!("{id}.slice"), false),
        ] {
            assert_eq!(is_container(&name, &id), expected, "{name}");
            assert_eq!(
                is_container_short(&name, &id[..12]),
                expected && name.contains(&id),
                "{name}"
            );
        }
        assert!(!is_container_short("session-c1.scope", "c1"));
    }

    #[test]
    fn an_id_is_never_a_path() {
        for bad in ["", "..", "a/b", "a b", "a\0b", "é", &"a".repeat(129)] {
            assert!(!is_id(bad), "{bad:?}");
        }
        assert!(is_id(UID));
    }
}

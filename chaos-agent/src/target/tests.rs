//! Trees as the runtimes make them, in a temporary directory.

use super::*;

const UID: &str = "0c6c2ee9-c4d4-4cf3-9a0a-6ca8a6c9ab4d";
const UNIT: &str = "0c6c2ee9_c4d4_4cf3_9a0a_6ca8a6c9ab4d";

fn id(digit: char) -> String {
    digit.to_string().repeat(64)
}

/// A cgroup2 mount and a procfs with nothing in them.
struct Host {
    dir: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        let host = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        fs::create_dir_all(host.cgroups()).unwrap();
        fs::create_dir_all(host.procs()).unwrap();
        fs::write(host.cgroups().join("cgroup.controllers"), "memory\n").unwrap();
        host
    }

    fn cgroups(&self) -> PathBuf {
        self.dir.path().join("cgroup")
    }

    fn procs(&self) -> PathBuf {
        self.dir.path().join("proc")
    }

    fn finder(&self) -> Finder {
        Finder::new(self.cgroups(), self.procs())
    }

    /// A cgroup with these processes.
    fn cgroup(&self, path: &str, pids: &[u32]) -> PathBuf {
        let directory = self.cgroups().join(path);
        fs::create_dir_all(&directory).unwrap();
        // The kernel gives each directory the file.
        let mut at = directory.as_path();
        while at != self.cgroups() {
            if !at.join("cgroup.procs").exists() {
                fs::write(at.join("cgroup.procs"), "").unwrap();
            }
            at = at.parent().unwrap();
        }
        let text: String = pids.iter().map(|pid| format!("{pid}\n")).collect();
        fs::write(directory.join("cgroup.procs"), text).unwrap();
        directory
    }

    /// A live process: one that has a network namespace.
    fn process(&self, pid: u32, cgroup: &str) {
        let directory = self.procs().join(pid.to_string());
        fs::create_dir_all(directory.join("ns")).unwrap();
        fs::write(directory.join("ns/net"), "").unwrap();
        fs::write(directory.join("cgroup"), format!("0::{cgroup}\n")).unwrap();
    }

    fn netns(&self, pid: u32) -> PathBuf {
        self.procs().join(pid.to_string()).join("ns/net")
    }
}

#[test]
fn a_pod_is_found_for_every_runtime_driver_class_and_kubelet_root() {
    let a = id('a');
    let slice = |class: &str| match class {
        "" => format!("kubepods.slice/kubepods-pod{UNIT}.slice"),
        _ => format!("kubepods.slice/kubepods-{class}.slice/kubepods-{class}-pod{UNIT}.slice"),
    };
    let table = [
        // containerd, both drivers, three classes
        (slice(""), format!("cri-containerd-{a}.scope")),
        (slice("burstable"), format!("cri-containerd-{a}.scope")),
        (slice("besteffort"), format!("cri-containerd-{a}.scope")),
        (format!("kubepods/pod{UID}"), a.clone()),
        (format!("kubepods/burstable/pod{UID}"), a.clone()),
        (format!("kubepods/besteffort/pod{UID}"), a.clone()),
        // CRI-O; with crun the processes are one level further down
        (slice("burstable"), format!("crio-{a}.scope")),
        (slice(""), format!("crio-{a}.scope/container")),
        (format!("kubepods/besteffort/pod{UID}"), format!("crio-{a}")),
        // Docker by cri-dockerd
        (slice("besteffort"), format!("docker-{a}.scope")),
        (format!("kubepods/burstable/pod{UID}"), a.clone()),
        // kubelet under a slice (--cgroup-root), in a container (kind, k3d), in a container in one
        (
            format!(
                "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/\
                 kubelet-kubepods-burstable-pod{UNIT}.slice"
            ),
            format!("cri-containerd-{a}.scope"),
        ),
        (
            format!(
                "system.slice/docker-{}.scope/kubelet.slice/kubelet-kubepods.slice/\
                 kubelet-kubepods-pod{UNIT}.slice",
                id('f')
            ),
            format!("cri-containerd-{a}.scope"),
        ),
        (
            format!("docker/{}/kubelet/kubepods/burstable/pod{UID}", id('f')),
            a.clone(),
        ),
        (
            format!("docker/{}/docker/{}/kubepods/pod{UID}", id('f'), id('e')),
            a.clone(),
        ),
    ];
    for (pod, container) in table {
        let host = Host::new();
        host.cgroup(&format!("{pod}/{container}"), &[42]);
        host.process(42, "/");
        let found = host
            .finder()
            .find_pod(UID, std::slice::from_ref(&a))
            .unwrap();
        let path = host.cgroups().join(&pod);
        assert_eq!(found.pod_cgroup, path);
        assert_eq!(
            found.pod_cgroup_id,
            fs::metadata(&path).unwrap().ino(),
            "{pod}"
        );
        assert_eq!(found.depth as usize, pod.split('/').count(), "{pod}");
        let scope = container.split('/').next().unwrap();
        assert_eq!(
            found.containers,
            [Container {
                id: a.clone(),
                cgroup: path.join(scope),
                pids: vec![42]
            }],
            "{pod}"
        );
        assert_eq!(found.netns, Some(host.netns(42)), "{pod}");
        assert_eq!(
            found.netns_inode,
            fs::metadata(host.netns(42)).unwrap().ino(),
            "{pod}"
        );
    }
}

#[test]
fn the_network_namespace_is_that_of_a_container_then_of_the_sandbox() {
    let host = Host::new();
    let pod = format!("kubepods/pod{UID}");
    host.cgroup(&format!("{pod}/{}", id('0')), &[10]);
    host.cgroup(&format!("{pod}/{}", id('b')), &[20]);
    host.process(10, "/");
    host.process(20, "/");
    let containers = [id('a'), id('b')];
    let found = host.finder().find_pod(UID, &containers).unwrap();
    assert_eq!(found.netns, Some(host.netns(20)));
    assert_eq!(
        found.containers.len(),
        1,
        "the one that is down is left out"
    );

    // The container's process has just died: no namespace any more.
    fs::remove_dir_all(host.procs().join("20")).unwrap();
    let found = host.finder().find_pod(UID, &containers).unwrap();
    assert_eq!(found.netns, Some(host.netns(10)));
}

#[test]
fn a_monitor_of_a_container_is_not_asked_for_its_network_namespace() {
    let host = Host::new();
    let pod = format!("kubepods/pod{UID}");
    host.cgroup(&format!("{pod}/crio-conmon-{}", id('a')), &[5]);
    host.cgroup(&format!("{pod}/crio-{}", id('a')), &[]);
    host.process(5, "/");
    let found = host.finder().find_pod(UID, &[id('a')]).unwrap();
    assert_eq!(found.netns, None);
    assert_eq!(found.netns_inode, 0);
    assert_eq!(found.containers[0].pids, Vec::<u32>::new());
}

#[test]
fn a_static_pod_is_found_by_its_container() {
    let host = Host::new();
    let hash = "7be5a2c4e8d94a3b9b6f4d5c0a1b2c3d";
    host.cgroup(&format!("kubepods/burstable/pod{hash}/{}", id('a')), &[7]);
    host.process(7, "/");
    let found = host.finder().find_pod(UID, &[id('a')]).unwrap();
    assert_eq!(
        found.pod_cgroup,
        host.cgroups().join(format!("kubepods/burstable/pod{hash}"))
    );
}

#[test]
fn what_is_not_there_is_gone_and_what_cannot_be_an_id_is_refused() {
    let host = Host::new();
    host.cgroup("kubepods/burstable", &[]);
    let finder = host.finder();
    assert!(matches!(
        finder.find_pod(UID, &[id('a')]),
        Err(TargetError::Gone { .. })
    ));
    assert!(matches!(
        finder.find_container(&id('a')),
        Err(TargetError::Gone { .. })
    ));
    assert!(matches!(
        finder.find_cgroup(Path::new("/nope")),
        Err(TargetError::Gone { .. })
    ));
    assert!(matches!(
        finder.find_pid(1),
        Err(TargetError::NoProcess { .. })
    ));
    for uid in ["", "..", "../../etc", "a/b", "x\0"] {
        assert!(
            matches!(finder.find_pod(uid, &[]), Err(TargetError::BadPath { .. })),
            "{uid:?}"
        );
    }
    let bad = finder
        .find_pod(UID, &["containerd://abc".to_owned()])
        .unwrap_err();
    assert_eq!(
        bad.to_string(),
        "container id \"containerd://abc\": must be letters, digits and `-`, at most 128; give it \
         as `kubectl get -o yaml` prints it, without the runtime's scheme"
    );
}

#[test]
fn a_host_without_cgroup2_is_told_what_it_has() {
    for (directory, found) in [
        (
            "unified",
            "hybrid: controllers are in version 1, cgroup2 is mounted at its `unified`",
        ),
        ("memory", "version 1 of cgroups"),
        (".", "no cgroup file system is mounted there"),
    ] {
        let host = Host::new();
        fs::remove_file(host.cgroups().join("cgroup.controllers")).unwrap();
        fs::create_dir_all(host.cgroups().join(directory)).unwrap();
        if directory == "unified" {
            fs::write(host.cgroups().join("unified/cgroup.controllers"), "").unwrap();
        }
        let error = host.finder().find_pod(UID, &[]).unwrap_err();
        assert!(error.to_string().contains(found), "{error}");
    }
}

#[test]
fn a_cgroup_is_found_with_and_without_the_mount_point_in_front() {
    let host = Host::new();
    let directory = host.cgroup("system.slice/app.service", &[3, 0]);
    host.cgroup("system.slice/app.service/worker", &[4]);
    host.process(3, "/system.slice/app.service");
    let finder = host.finder();
    let plain = finder
        .find_cgroup(Path::new("/system.slice/app.service"))
        .unwrap();
    assert_eq!(plain, finder.find_cgroup(&directory).unwrap());
    assert_eq!(plain, finder.find_pid(3).unwrap());
    assert_eq!(plain.depth, 2);
    assert_eq!(plain.containers[0].pids, [3, 4]);
    for bad in [
        "relative",
        "/",
        "/system.slice/../..",
        host.cgroups().to_str().unwrap(),
    ] {
        let error = finder.find_cgroup(Path::new(bad)).unwrap_err();
        assert!(
            matches!(error, TargetError::BadPath { .. }),
            "{bad}: {error}"
        );
    }
}

#[test]
fn a_process_is_found_from_a_cgroup_namespace_of_its_own_and_refused_in_the_root() {
    let host = Host::new();
    host.cgroup("a/b", &[8]);
    host.process(8, "/../../b");
    host.process(9, "/");
    host.process(11, "/../gone");
    let found = host.finder().find_pid(8).unwrap();
    assert_eq!(found.pod_cgroup, host.cgroups().join("a/b"));
    for pid in [9, 11] {
        let error = host.finder().find_pid(pid).unwrap_err();
        assert!(
            matches!(error, TargetError::BadPath { .. }),
            "{pid}: {error}"
        );
    }
}

#[test]
fn a_container_is_found_by_the_short_id_that_docker_prints() {
    let host = Host::new();
    let id = format!("3fa9c1d27b60{}", "0".repeat(52));
    host.cgroup(&format!("system.slice/docker-{id}.scope"), &[]);
    let finder = host.finder();
    let full = finder.find_container(&id).unwrap();
    assert_eq!(full.depth, 2);
    assert_eq!(full, finder.find_container(&id[..12]).unwrap());
    assert_eq!(
        full,
        finder.find_container(&format!("docker://{id}")).unwrap()
    );
    assert!(matches!(
        finder.find_container(&id[..6]),
        Err(TargetError::BadPath { .. })
    ));
}

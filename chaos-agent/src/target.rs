//! From the name of a target to its cgroup, processes and network namespace, by looking at
//! `/sys/fs/cgroup` and `/proc` only: no socket of a container runtime, no privilege but reading.
//!
//! What is found is a snapshot; a process may be gone when it is used. Nothing is changed here.

mod names;

pub use names::is_id;

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::iter;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

/// How deep the hierarchy is searched for a pod: a kubelet in a container in a container has
/// its pods about 9 levels down.
const MAX_DEPTH: usize = 16;

/// How many directories one look-up visits: a container that may make cgroups of its own must
/// not be able to keep the agent busy.
const MAX_DIRECTORIES: usize = 100_000;

/// What was found for a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// Absolute path of the target's cgroup: the pod's for a pod, the one named for others.
    pub pod_cgroup: PathBuf,
    /// Its cgroup id: the inode, which is what BPF helpers return.
    pub pod_cgroup_id: u64,
    /// Levels below the root of the hierarchy (1 is a child of the root).
    pub depth: u32,
    /// Those of the asked containers whose cgroup exists, in the order asked. For a target that is
    /// a cgroup or process: that cgroup, alone.
    pub containers: Vec<Container>,
    /// `<proc>/PID/ns/net` of a live process of the target; `None` when it has none.
    pub netns: Option<PathBuf>,
    /// Inode of that network namespace; 0 without one.
    pub netns_inode: u64,
}

/// One container of a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// As it was asked for.
    pub id: String,
    /// Absolute path of its cgroup.
    pub cgroup: PathBuf,
    /// Processes of that cgroup and of those below it, as this pid namespace numbers them.
    pub pids: Vec<u32>,
}

/// Why a target was not found.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// Nothing to do any more.
    #[error("{what} has no cgroup below {root}: it is gone, or runs on another node")]
    Gone {
        /// Which target.
        what: String,
        /// The hierarchy that was searched.
        root: PathBuf,
    },
    /// There is nobody in it whose network namespace could be used.
    #[error("{what} has no live process: start it first")]
    NoProcess {
        /// Which target.
        what: String,
    },
    /// The host is set up for version 1 of cgroups, or for both.
    #[error(
        "{root} is not a cgroup2 hierarchy ({found}): faults are keyed by cgroup2 ids; boot with \
         systemd.unified_cgroup_hierarchy=1, or name the cgroup2 mount by --cgroup-root"
    )]
    NotCgroup2 {
        /// What should have been one.
        root: PathBuf,
        /// What it looks like.
        found: &'static str,
    },
    /// The name cannot be one of a target.
    #[error("{what} {value:?}: {rule}")]
    BadPath {
        /// "cgroup", "pod uid", "container id" or "process".
        what: &'static str,
        /// What was given.
        value: String,
        /// What is expected, and what to do.
        rule: &'static str,
    },
    /// The kernel's answer makes no sense of it.
    #[error("failed to read {path}")]
    Io {
        /// What was read.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// Finds targets below one cgroup2 mount.
#[derive(Clone, Debug)]
pub struct Finder {
    cgroup_root: PathBuf,
    proc_root: PathBuf,
}

impl Finder {
    /// Of this cgroup2 mount (`/sys/fs/cgroup`) and this procfs (`/proc`).
    pub fn new(cgroup_root: impl Into<PathBuf>, proc_root: impl Into<PathBuf>) -> Self {
        Self {
            cgroup_root: cgroup_root.into(),
            proc_root: proc_root.into(),
        }
    }

    /// Says whether faults can be keyed by cgroup on this host at all.
    ///
    /// # Errors
    /// [`TargetError::NotCgroup2`], saying what is there instead.
    pub fn check(&self) -> Result<(), TargetError> {
        // Only cgroup2 has this file, and each of its directories has it.
        if self.cgroup_root.join("cgroup.controllers").exists() {
            return Ok(());
        }
        let found = if self.cgroup_root.join("unified/cgroup.controllers").exists() {
            "hybrid: controllers are in version 1, cgroup2 is mounted at its `unified`"
        } else if self.cgroup_root.join("memory").is_dir() || self.cgroup_root.join("cpu").is_dir()
        {
            "version 1 of cgroups"
        } else {
            "no cgroup file system is mounted there"
        };
        Err(TargetError::NotCgroup2 {
            root: self.cgroup_root.clone(),
            found,
        })
    }

    /// The pod with this uid. `containers` (ids without the runtime's scheme) say whose process is
    /// asked for its network namespace first; then any process of the pod will do, which is the
    /// sandbox (pause) when all containers are down.
    ///
    /// A static pod's cgroup has another uid than its object in the API: it is found by its
    /// containers then.
    ///
    /// # Errors
    /// [`TargetError::Gone`] when neither the pod nor any of its containers has a cgroup;
    /// [`TargetError::BadPath`] for what cannot be an id; [`TargetError::NotCgroup2`].
    pub fn find_pod(&self, uid: &str, containers: &[String]) -> Result<Resolved, TargetError> {
        let (pod_cgroup, containers) = self.search_pod(uid, containers)?;
        self.resolve(pod_cgroup, containers)
    }

    /// The cgroup of a pod, and those of the asked containers that it has.
    fn search_pod(
        &self,
        uid: &str,
        containers: &[String],
    ) -> Result<(PathBuf, Vec<Container>), TargetError> {
        self.check()?;
        check_id("pod uid", uid)?;
        for id in containers {
            check_id("container id", id)?;
        }
        let pod_cgroup = names::pod_candidates(uid)
            .into_iter()
            .map(|path| self.cgroup_root.join(path))
            .find(|path| path.is_dir())
            .or_else(|| self.search(|name| names::is_pod(name, uid)))
            .or_else(|| {
                containers.iter().find_map(|id| {
                    let found = self.search(|name| names::is_container(name, id))?;
                    found.parent().map(Path::to_owned)
                })
            })
            .filter(|path| *path != self.cgroup_root)
            .ok_or_else(|| TargetError::Gone {
                what: format!("pod {uid}"),
                root: self.cgroup_root.clone(),
            })?;
        let children = directories(&pod_cgroup);
        let containers = containers
            .iter()
            .filter_map(|id| {
                let cgroup = children
                    .iter()
                    .find(|path| names::is_container(file_name(path), id))?
                    .clone();
                Some(Container {
                    id: id.clone(),
                    pids: processes(&cgroup),
                    cgroup,
                })
            })
            .collect();
        Ok((pod_cgroup, containers))
    }

    /// One container of the pod with this uid, alone: its cgroup is what is found.
    ///
    /// # Errors
    /// [`TargetError::Gone`] also when only the container has no cgroup; else as [`Self::find_pod`].
    pub fn find_pod_container(&self, uid: &str, id: &str) -> Result<Resolved, TargetError> {
        let (_, containers) = self.search_pod(uid, &[id.to_owned()])?;
        let container = containers
            .into_iter()
            .next()
            .ok_or_else(|| TargetError::Gone {
                what: format!("container {id} of pod {uid}"),
                root: self.cgroup_root.clone(),
            })?;
        self.resolve(container.cgroup.clone(), vec![container])
    }

    /// This cgroup: an absolute path below the cgroup2 mount (`/system.slice/app.service`), with or
    /// without the mount point in front.
    ///
    /// # Errors
    /// [`TargetError::BadPath`] for the root, a relative path or one with `..`;
    /// [`TargetError::Gone`] when there is none.
    pub fn find_cgroup(&self, path: &Path) -> Result<Resolved, TargetError> {
        self.check()?;
        let bad = |rule| TargetError::BadPath {
            what: "cgroup",
            value: path.to_string_lossy().into_owned(),
            rule,
        };
        if !path.is_absolute() {
            return Err(bad(
                "must be absolute; give it as in /proc/PID/cgroup, after `0::`",
            ));
        }
        if path.components().any(|part| part == Component::ParentDir) {
            return Err(bad("must not contain `..`; give the path that it leads to"));
        }
        let below = path
            .strip_prefix(&self.cgroup_root)
            .or_else(|_| path.strip_prefix("/"))
            .unwrap_or(path);
        if below.as_os_str().is_empty() {
            return Err(bad(
                "is the root, so every process would be hit; name a cgroup below it",
            ));
        }
        let cgroup = self.cgroup_root.join(below);
        if !cgroup.join("cgroup.procs").exists() {
            return Err(TargetError::Gone {
                what: format!("cgroup /{}", below.display()),
                root: self.cgroup_root.clone(),
            });
        }
        let container = Container {
            id: format!("/{}", below.display()),
            pids: processes(&cgroup),
            cgroup: cgroup.clone(),
        };
        self.resolve(cgroup, vec![container])
    }

    /// The cgroup that this process is in, with everybody else who is in it.
    ///
    /// # Errors
    /// [`TargetError::NoProcess`] when there is no such process; [`TargetError::BadPath`] when it
    /// sits in the root cgroup; [`TargetError::NotCgroup2`].
    pub fn find_pid(&self, pid: u32) -> Result<Resolved, TargetError> {
        self.check()?;
        let path = self.proc_root.join(pid.to_string()).join("cgroup");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if is_gone(&error) => {
                return Err(TargetError::NoProcess {
                    what: format!("process {pid}"),
                });
            }
            Err(source) => return Err(TargetError::Io { path, source }),
        };
        let bad = |rule| TargetError::BadPath {
            what: "process",
            value: pid.to_string(),
            rule,
        };
        let cgroup = unified(&text).ok_or_else(|| bad("is in no cgroup2 cgroup"))?;
        if cgroup == Path::new("/") {
            return Err(bad(
                "is in the root cgroup, where every process would be hit; give it one of its own, \
                 as `systemd-run --scope` does",
            ));
        }
        // Seen from another cgroup namespace the path starts with `..` and says nothing.
        if cgroup.components().any(|part| part == Component::ParentDir) {
            let found = self
                .search_directory(|path| own_processes(path).contains(&pid))
                .ok_or_else(|| bad("is in a cgroup that cannot be seen from here"))?;
            return self.find_cgroup(&found);
        }
        self.find_cgroup(&cgroup)
    }

    /// The container with this id, or the only one whose id starts with these (12 or more)
    /// characters; of any runtime, in a pod or not.
    ///
    /// # Errors
    /// [`TargetError::Gone`] when there is none; [`TargetError::BadPath`] for what cannot be an id.
    pub fn find_container(&self, id: &str) -> Result<Resolved, TargetError> {
        self.check()?;
        let id = id.rsplit("://").next().unwrap_or(id);
        check_id("container id", id)?;
        if id.len() < 12 {
            return Err(TargetError::BadPath {
                what: "container id",
                value: id.to_owned(),
                rule: "must have 12 characters or more, as `docker ps` and `crictl ps` print it",
            });
        }
        let found = self
            .search(|name| names::is_container(name, id))
            .or_else(|| self.search(|name| names::is_container_short(name, id)))
            .ok_or_else(|| TargetError::Gone {
                what: format!("container {id}"),
                root: self.cgroup_root.clone(),
            })?;
        self.find_cgroup(&found)
    }

    fn resolve(
        &self,
        cgroup: PathBuf,
        containers: Vec<Container>,
    ) -> Result<Resolved, TargetError> {
        let inode = match fs::metadata(&cgroup) {
            Ok(metadata) => metadata.ino(),
            Err(error) if is_gone(&error) => {
                return Err(TargetError::Gone {
                    what: format!("cgroup {}", cgroup.display()),
                    root: self.cgroup_root.clone(),
                });
            }
            Err(source) => {
                return Err(TargetError::Io {
                    path: cgroup,
                    source,
                });
            }
        };
        let below = cgroup.strip_prefix(&self.cgroup_root).unwrap_or(&cgroup);
        let depth = u32::try_from(below.components().count()).unwrap_or(u32::MAX);
        let netns = containers
            .iter()
            .flat_map(|container| container.pids.iter().copied())
            .chain(iter::once_with(|| processes(&cgroup)).flatten())
            .find_map(|pid| self.netns_of(pid));
        let (netns, netns_inode) = match netns {
            Some((path, inode)) => (Some(path), inode),
            None => (None, 0),
        };
        Ok(Resolved {
            pod_cgroup_id: inode,
            depth,
            containers,
            netns,
            netns_inode,
            pod_cgroup: cgroup,
        })
    }

    /// A dying process has no namespaces any more: then the next one is asked.
    fn netns_of(&self, pid: u32) -> Option<(PathBuf, u64)> {
        let path = self.proc_root.join(pid.to_string()).join("ns/net");
        let inode = fs::metadata(&path).ok()?.ino();
        Some((path, inode))
    }

    fn search(&self, matches: impl Fn(&str) -> bool) -> Option<PathBuf> {
        self.search_directory(|path| matches(file_name(path)))
    }

    /// Breadth first: pods are nearer to the root than what runs inside of them.
    fn search_directory(&self, matches: impl Fn(&Path) -> bool) -> Option<PathBuf> {
        let mut queue = VecDeque::from([(self.cgroup_root.clone(), 0)]);
        let mut visited = 0;
        while let Some((directory, depth)) = queue.pop_front() {
            for child in directories(&directory) {
                if matches(&child) {
                    return Some(child);
                }
                visited += 1;
                if depth + 1 < MAX_DEPTH && visited < MAX_DIRECTORIES {
                    queue.push_back((child, depth + 1));
                }
            }
        }
        None
    }
}

fn check_id(what: &'static str, value: &str) -> Result<(), TargetError> {
    if is_id(value) {
        return Ok(());
    }
    Err(TargetError::BadPath {
        what,
        value: value.chars().take(64).collect(),
        rule: "must be letters, digits and `-`, at most 128; give it as `kubectl get -o yaml` \
               prints it, without the runtime's scheme",
    })
}

/// The path on the `0::` line of `/proc/PID/cgroup`.
fn unified(text: &str) -> Option<PathBuf> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    // A cgroup that was removed while the process lingers.
    let path = path.strip_suffix(" (deleted)").unwrap_or(path);
    path.starts_with('/').then(|| PathBuf::from(path))
}

/// Processes of a cgroup and of those below it; those that watch a container are left out, and
/// those of a pid namespace that cannot be seen from here (the kernel lists them as 0).
fn processes(cgroup: &Path) -> Vec<u32> {
    let mut pids = Vec::new();
    let mut stack = vec![cgroup.to_owned()];
    let mut visited = 0;
    while let Some(directory) = stack.pop() {
        visited += 1;
        if visited > MAX_DIRECTORIES {
            break;
        }
        pids.extend(
            own_processes(&directory)
                .into_iter()
                .filter(|&pid| pid != 0),
        );
        let children = directories(&directory);
        stack.extend(
            children
                .into_iter()
                .rev()
                .filter(|path| !names::is_monitor(file_name(path))),
        );
    }
    pids
}

/// Empty as well for a cgroup that is gone, and for one of threads, whose processes are listed by
/// the domain above it.
fn own_processes(cgroup: &Path) -> Vec<u32> {
    fs::read_to_string(cgroup.join("cgroup.procs"))
        .map(|text| {
            text.lines()
                .filter_map(|line| line.trim().parse().ok())
                .collect()
        })
        .unwrap_or_default()
}

/// Sorted, so that a search gives the same answer each time. Empty for a directory that is gone.
fn directories(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(path) else {
        return Vec::new();
    };
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found
}

fn file_name(path: &Path) -> &str {
    path.file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default()
}

fn is_gone(error: &io::Error) -> bool {
    // ESRCH: the process ended between open and read. ENODEV: the cgroup did.
    error.kind() == io::ErrorKind::NotFound || matches!(error.raw_os_error(), Some(3 | 19))
}

#[cfg(test)]
mod tests;

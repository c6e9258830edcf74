//! What of a host matters to the mechanisms, looked at without changing anything. A mechanism's
//! own try is the proof; these rows say where to look when it fails.

use std::fs;
use std::path::Path;

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use serde::Serialize;

use crate::kernel::btf::VMLINUX;
use crate::kernel::lockdown;
use crate::node::Options;
use crate::target::Finder;

/// One row.
#[derive(Debug, Serialize)]
pub(super) struct Check {
    pub(super) what: &'static str,
    /// `None`: it could not be found out, or there is no better and worse.
    pub(super) ok: Option<bool>,
    pub(super) detail: String,
}

impl Check {
    pub(super) fn failed(what: &'static str, detail: String) -> Self {
        Self {
            what,
            ok: Some(false),
            detail,
        }
    }

    pub(super) fn verdict(&self) -> &'static str {
        match self.ok {
            Some(true) => "yes",
            Some(false) => "no",
            None => "-",
        }
    }
}

/// Modules that the mechanisms use.
const MODULES: [(&str, &str, &str); 4] = [
    ("module sch_fq", "sch_fq", "delay"),
    ("module veth", "veth", "delay"),
    (
        "module cls_bpf",
        "cls_bpf",
        "delay, and before Linux 6.6 no loss,",
    ),
    (
        "module sch_ingress",
        "sch_ingress",
        "delay, and before Linux 6.6 no loss,",
    ),
];

/// Bits of CapEff that the agent cannot do without (capability.h).
const CAPABILITIES: [(u32, &str); 5] = [
    (12, "NET_ADMIN"),
    (19, "SYS_PTRACE"),
    (21, "SYS_ADMIN"),
    (38, "PERFMON"),
    (39, "BPF"),
];

/// The same for what it can do without.
const SYS_NICE: (u32, &str) = (23, "SYS_NICE");

/// `uname -r`
pub(super) fn kernel() -> String {
    nix::sys::utsname::uname()
        .map(|names| names.release().to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// All rows.
pub(super) fn checks(options: &Options) -> Vec<Check> {
    let status = options.proc_root.join("self/status");
    let status = fs::read_to_string(status).unwrap_or_default();
    let mut checks = vec![
        Check {
            what: "kernel",
            ok: None,
            detail: kernel(),
        },
        privileges(&status),
        priority(&status),
        cgroups(options),
        bpffs(&options.bpffs),
        locked_down(Path::new(lockdown::PATH)),
        btf(Path::new(VMLINUX)),
    ];
    let release = kernel();
    let directory = Path::new("/lib/modules").join(&release);
    let builtin = fs::read_to_string(directory.join("modules.builtin")).ok();
    let available = fs::read_to_string(directory.join("modules.dep")).ok();
    for (what, module, fault) in MODULES {
        let loaded = Path::new("/sys/module").join(module).exists();
        let (ok, found) = module_state(module, loaded, builtin.as_deref(), available.as_deref());
        let detail = match ok {
            Some(false) => format!("{found}; no {fault} without it"),
            _ => found.to_owned(),
        };
        checks.push(Check { what, ok, detail });
    }
    checks
}

fn privileges(status: &str) -> Check {
    let what = "privileges";
    match missing_capabilities(status, &CAPABILITIES) {
        Some(missing) if missing.is_empty() => Check {
            what,
            ok: Some(true),
            detail: "all capabilities that are used".to_owned(),
        },
        Some(missing) => Check::failed(what, format!("lacks {}; run as root", missing.join(", "))),
        None => Check {
            what,
            ok: None,
            detail: "CapEff cannot be read".to_owned(),
        },
    }
}

fn priority(status: &str) -> Check {
    let what = "priority";
    match missing_capabilities(status, &[SYS_NICE]) {
        Some(missing) if missing.is_empty() => Check {
            what,
            ok: Some(true),
            detail: "a daemon runs ahead of ordinary programs".to_owned(),
        },
        // It works without, and CapEff has a row of its own.
        _ => Check {
            what,
            ok: None,
            detail: "lacks SYS_NICE: faults begin late while all CPUs are busy".to_owned(),
        },
    }
}

fn cgroups(options: &Options) -> Check {
    let what = "cgroup2";
    match Finder::new(&options.cgroup_root, &options.proc_root).check() {
        Ok(()) => Check {
            what,
            ok: Some(true),
            detail: options.cgroup_root.display().to_string(),
        },
        Err(error) => Check::failed(what, error.to_string()),
    }
}

fn bpffs(path: &Path) -> Check {
    let what = "bpffs";
    if statfs(path).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC) {
        return Check {
            what,
            ok: Some(true),
            detail: path.display().to_string(),
        };
    }
    let path = path.display();
    Check::failed(
        what,
        format!("{path} is no bpffs; mount one: `mount -t bpf bpf {path}`"),
    )
}

fn btf(path: &Path) -> Check {
    let what = "BTF";
    if path.exists() {
        return Check {
            what,
            ok: Some(true),
            detail: path.display().to_string(),
        };
    }
    let detail = "not in this kernel (CONFIG_DEBUG_INFO_BTF); no skewed clocks without it";
    Check::failed(what, detail.to_owned())
}

fn locked_down(path: &Path) -> Check {
    let what = "lockdown";
    let Some(mode) = lockdown::mode(path) else {
        return Check {
            what,
            ok: Some(true),
            detail: "not in this kernel".to_owned(),
        };
    };
    match mode.as_str() {
        "confidentiality" => Check::failed(
            what,
            "confidentiality: BPF may read nothing of the kernel".to_owned(),
        ),
        "integrity" => Check {
            what,
            ok: Some(true),
            detail: "integrity: faults that write to a program's memory will not work; those on \
                     the network do"
                .to_owned(),
        },
        mode => Check {
            what,
            ok: Some(true),
            detail: mode.to_owned(),
        },
    }
}

/// `None` when the status has no CapEff line.
fn missing_capabilities(status: &str, of: &[(u32, &'static str)]) -> Option<Vec<&'static str>> {
    let hex = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    let effective = u64::from_str_radix(hex.trim(), 16).ok()?;
    let missing = of.iter().filter(|(bit, _)| effective & (1 << bit) == 0);
    Some(missing.map(|&(_, name)| name).collect())
}

fn module_state(
    module: &str,
    loaded: bool,
    builtin: Option<&str>,
    available: Option<&str>,
) -> (Option<bool>, &'static str) {
    let listed = |list: &str| {
        list.lines().any(|line| {
            let path = line.split(':').next().unwrap_or(line);
            let file = path.rsplit('/').next().unwrap_or(path);
            file.split('.')
                .next()
                .is_some_and(|name| name.replace('-', "_") == module)
        })
    };
    if loaded {
        return (Some(true), "loaded");
    }
    match (builtin.map(listed), available.map(listed)) {
        (Some(true), _) => (Some(true), "built in"),
        (_, Some(true)) => (Some(true), "there, loaded when it is needed"),
        (_, Some(false)) => (Some(false), "not in this kernel's modules"),
        (_, None) => (None, "not loaded; /lib/modules cannot be seen from here"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_is_loaded_built_in_available_missing_or_unknown() {
        let builtin = "kernel/net/sched/sch_fq.ko\n";
        let dep = "kernel/drivers/net/veth.ko.xz: kernel/a.ko\nkernel/net/sched/cls-bpf.ko:\n";
        for (module, loaded, builtin, dep, ok) in [
            ("veth", true, None, None, Some(true)),
            ("sch_fq", false, Some(builtin), Some(dep), Some(true)),
            ("veth", false, Some(builtin), Some(dep), Some(true)),
            ("cls_bpf", false, Some(builtin), Some(dep), Some(true)),
            ("sch_ingress", false, Some(builtin), Some(dep), Some(false)),
            ("veth", false, None, None, None),
        ] {
            assert_eq!(module_state(module, loaded, builtin, dep).0, ok, "{module}");
        }
    }

    #[test]
    fn missing_capabilities_are_named() {
        let all = "Name:\tx\nCapEff:\t000001ffffffffff\n";
        let missing = |status| missing_capabilities(status, &CAPABILITIES);
        assert_eq!(missing(all), Some(vec![]));
        let no_bpf = "CapEff:\t0000007fffffffff\n";
        assert_eq!(missing(no_bpf), Some(vec!["BPF"]));
        assert_eq!(missing("Name: x"), None);
        assert_eq!(priority(all).ok, Some(true));
        assert_eq!(priority("CapEff:\t0000000000000000\n").ok, None);
    }

    #[test]
    fn the_lockdown_that_is_in_force_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lockdown");
        for (text, ok) in [
            ("[none] integrity confidentiality\n", Some(true)),
            ("none [integrity] confidentiality\n", Some(true)),
            ("none integrity [confidentiality]\n", Some(false)),
        ] {
            fs::write(&path, text).unwrap();
            assert_eq!(locked_down(&path).ok, ok, "{text}");
        }
        assert_eq!(locked_down(Path::new("/nonexistent")).ok, Some(true));
    }

    #[test]
    fn a_kernel_without_btf_is_told_so() {
        assert_eq!(btf(Path::new("/")).ok, Some(true));
        assert_eq!(btf(Path::new("/nonexistent")).ok, Some(false));
    }
}

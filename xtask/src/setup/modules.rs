//! Which modules of a kernel go into an initramfs, in the order to load them. Pure.

use anyhow::{Context, Result, bail};

/// The files of `wanted` and of all that they depend on, each after its own dependencies, relative
/// to the directory of `modules.dep`.
///
/// # Errors
/// If a module is neither in `dep` (the text of `modules.dep`) nor in `builtin`.
pub(super) fn in_load_order<'a>(
    dep: &'a str,
    builtin: &str,
    wanted: &[&str],
) -> Result<Vec<&'a str>> {
    let mut order: Vec<&str> = Vec::new();
    for module in wanted {
        let line = dep.lines().find(|line| {
            line.split_once(':')
                .is_some_and(|(file, _)| name(file) == canonical(module))
        });
        let Some(line) = line else {
            if builtin.lines().any(|file| name(file) == canonical(module)) {
                continue;
            }
            bail!("module {module}: this kernel has none; ask for another one");
        };
        let (file, needs) = line
            .split_once(':')
            .context("a line of modules.dep has a colon")?;
        // modules.dep has all dependencies, the deepest last.
        for file in needs.split_whitespace().rev().chain([file]) {
            if !order.contains(&file) {
                order.push(file);
            }
        }
    }
    Ok(order)
}

/// `kernel/net/sched/sch_fq.ko.xz` is `sch_fq`.
fn name(file: &str) -> String {
    let file = file.rsplit('/').next().unwrap_or(file);
    canonical(file.split_once(".ko").map_or(file, |(stem, _)| stem))
}

/// The kernel takes a dash for an underscore.
fn canonical(module: &str) -> String {
    module.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "kernel/net/sched/sch_fq.ko.xz:\n\
        kernel/net/x-a.ko.xz: kernel/net/b.ko.xz kernel/net/c.ko.xz\n\
        kernel/net/b.ko.xz: kernel/net/c.ko.xz\n\
        kernel/net/c.ko.xz:\n";

    fn order(wanted: &[&str]) -> Result<Vec<&'static str>> {
        in_load_order(DEP, "kernel/fs/fuse/fuse.ko\n", wanted)
    }

    #[test]
    fn dependencies_come_first_and_once() {
        assert_eq!(
            order(&["x_a", "b", "sch_fq"]).unwrap(),
            [
                "kernel/net/c.ko.xz",
                "kernel/net/b.ko.xz",
                "kernel/net/x-a.ko.xz",
                "kernel/net/sched/sch_fq.ko.xz"
            ]
        );
    }

    #[test]
    fn a_builtin_needs_no_file_and_an_unknown_module_is_an_error() {
        assert!(order(&["fuse"]).unwrap().is_empty());
        let error = order(&["nope"]).unwrap_err().to_string();
        assert!(error.contains("module nope"), "{error}");
    }
}

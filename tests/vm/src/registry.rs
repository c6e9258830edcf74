//! Tests and roles register themselves: there is no list to forget.

use std::time::Duration;

use anyhow::Result;

use crate::bench::{agent, network, time};
use crate::{demo, sabotage};

/// One test. Made by [`vm_test!`](crate::vm_test).
pub struct Test {
    /// `module_path!()` of where it is.
    pub module: &'static str,
    /// Name of the function: a sentence.
    pub name: &'static str,
    /// It is killed, and has failed, after this time.
    pub limit: Duration,
    /// It tests nothing that depends on the kernel: a run of all tests on all kernels has it on one.
    pub once: bool,
    /// The test.
    pub run: fn() -> Result<()>,
}

inventory::collect!(Test);

impl Test {
    /// `faults::partition::the_sender_gets_eperm`
    pub fn full_name(&self) -> String {
        let module = self
            .module
            .split_once("::")
            .map_or(self.module, |(_, rest)| rest);
        format!("{module}::{}", self.name)
    }

    /// Whether it is run when all tests are run on all kernels, by the one of this number among so many.
    pub fn is_on(&self, kernel: usize, kernels: usize) -> bool {
        !self.once || self.is_at_home(kernel, kernels)
    }

    /// Whether this is the kernel that it is run on if it is run on one.
    pub fn is_at_home(&self, kernel: usize, kernels: usize) -> bool {
        let number: usize = self.full_name().bytes().map(usize::from).sum();
        number % kernels == kernel
    }

    /// Those whose name contains `only`, by name. Those that must fail, the demonstration and
    /// benchmarks have to be asked for.
    pub fn all(only: &str) -> Vec<&'static Test> {
        let apart = [
            sabotage::NAME,
            demo::NAME,
            network::NAME,
            agent::NAME,
            time::NAME,
        ];
        let mut tests: Vec<_> = inventory::iter::<Test>()
            .filter(|t| t.full_name().contains(only))
            .filter(|t| {
                let is_apart = |name: &&str| t.full_name().starts_with(*name);
                apart
                    .iter()
                    .find(|name| is_apart(name))
                    .is_none_or(|name| only.starts_with(name))
            })
            .collect();
        tests.sort_by_key(|t| t.full_name());
        tests
    }
}

/// Set by the runner for a test that is to try everything.
pub(crate) const IS_THOROUGH: &str = "FAULTLINE_TEST_THOROUGH";

/// Whether a test that tries a sample of what it could is to try everything.
pub(crate) fn is_thorough() -> bool {
    std::env::var_os(IS_THOROUGH).is_some()
}

/// Set by the runner for a test that was asked for by name.
pub(crate) const IS_ASKED_FOR: &str = "FAULTLINE_TEST_ASKED_FOR";
/// Set by the runner on the kernel that [`Test::is_at_home`].
pub(crate) const IS_AT_HOME: &str = "FAULTLINE_TEST_AT_HOME";

/// How often a test repeats what it does: so often if it is asked for by name. When all tests are run on all
/// kernels, a quarter of that on one of them and a tenth on the others: together they take half an hour as it is.
pub(crate) fn times(in_full: usize) -> usize {
    let is_set = |name: &str| std::env::var_os(name).is_some();
    if is_set(IS_ASKED_FOR) {
        in_full
    } else if is_set(IS_AT_HOME) {
        in_full / 4
    } else {
        in_full / 10
    }
}

/// One thing that a child process of a test can be. Made by [`vm_role!`](crate::vm_role).
pub struct Role {
    /// Unique.
    pub name: &'static str,
    /// Runs in the child with its arguments as JSON.
    pub run: fn(&str) -> Result<()>,
}

inventory::collect!(Role);

impl Role {
    /// The role of this name.
    pub fn find(name: &str) -> Option<&'static Role> {
        inventory::iter::<Role>().find(|r| r.name == name)
    }
}

/// Registers a function `fn() -> anyhow::Result<()>` as a test. It may run for 60 s, or for
/// `limit` seconds; on each kernel, or `once`. A function that is not registered is dead code, and the
/// compiler says so.
#[macro_export]
macro_rules! vm_test {
    ($function:ident) => {
        $crate::vm_test!($function, limit = 60);
    };
    ($function:ident, limit = $seconds:expr) => {
        $crate::vm_test!(@ $function, $seconds, false);
    };
    ($function:ident, limit = $seconds:expr, once) => {
        $crate::vm_test!(@ $function, $seconds, true);
    };
    (@ $function:ident, $seconds:expr, $once:expr) => {
        $crate::inventory::submit! {
            $crate::registry::Test {
                module: module_path!(),
                name: stringify!($function),
                limit: std::time::Duration::from_secs($seconds),
                once: $once,
                run: $function,
            }
        }
    };
}

/// Registers a function `fn(&str) -> anyhow::Result<()>` as a role for
/// [`Place::spawn`](crate::process::Place::spawn).
#[macro_export]
macro_rules! vm_role {
    ($name:expr, $function:ident) => {
        $crate::inventory::submit! {
            $crate::registry::Role { name: $name, run: $function }
        }
    };
}

/// Prints a line for people: what a test saw, for the record. It stands above the test's outcome on
/// the console, and in a failure's report.
pub fn note(line: impl std::fmt::Display) {
    use std::io::Write;
    // The console is all there is.
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// The error of a test that cannot run here. It is a result of its own, counted and listed.
#[derive(Debug)]
pub struct Skip(pub String);

impl std::fmt::Display for Skip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "skipped: {}", self.0)
    }
}

impl std::error::Error for Skip {}

/// Leaves the test: `return skip("no tcx before 6.6");`
///
/// # Errors
/// Always: that is how the runner is told.
pub fn skip<T>(reason: impl Into<String>) -> Result<T> {
    Err(Skip(reason.into()).into())
}

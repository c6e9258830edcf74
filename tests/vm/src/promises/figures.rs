//! The benchmark works, on each kernel. How good its figures are is not a test's business: machines
//! that run tests are busy.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Result, ensure};

use crate::bench::packets::{Effort, measure};
use crate::figures::Figure;
use crate::machine::BPFFS;
use crate::vm_test;

vm_test!(the_benchmark_measures_each_of_its_figures, limit = 180);
fn the_benchmark_measures_each_of_its_figures() -> Result<()> {
    let effort = Effort {
        pairs: 2,
        packets: 100,
        losses: 3,
    };
    let mut names = BTreeSet::new();
    measure(Path::new(BPFFS), effort, |figure| {
        let line = figure.line();
        // Numbers are read back to within their last digit.
        let same = |read: &Figure| {
            read.name == figure.name
                && (read.value - figure.value).abs() <= figure.value.abs() * 1e-9
        };
        ensure!(
            Figure::parse(&line).as_ref().is_some_and(same),
            "lost on the way: {line}"
        );
        ensure!(
            figure.value > 0.0 || figure.control.is_none(),
            "no time passed: {figure:?}"
        );
        ensure!(names.insert(figure.name.clone()), "twice: {}", figure.name);
        Ok(())
    })?;
    ensure!(names.len() == 12, "{names:#?}");
    Ok(())
}

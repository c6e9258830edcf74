//! The benchmarks work, on each kernel. How good their figures are is not a test's business: machines
//! that run tests are busy.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Result, ensure};

use crate::bench::{packets, time};
use crate::figures::Figure;
use crate::machine::BPFFS;
use crate::vm_test;

/// The figures that a benchmark has told.
#[derive(Default)]
struct Told(BTreeSet<String>);

impl Told {
    fn take(&mut self, figure: &Figure) -> Result<()> {
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
        ensure!(self.0.insert(figure.name.clone()), "twice: {}", figure.name);
        Ok(())
    }

    fn are(&self, count: usize) -> Result<()> {
        ensure!(self.0.len() == count, "{:#?}", self.0);
        Ok(())
    }
}

vm_test!(
    the_benchmark_measures_each_of_its_figures,
    limit = 180,
    once
);
fn the_benchmark_measures_each_of_its_figures() -> Result<()> {
    let effort = packets::Effort {
        pairs: 2,
        packets: 100,
        losses: 3,
    };
    let mut told = Told::default();
    packets::measure(Path::new(BPFFS), effort, |figure| told.take(&figure))?;
    told.are(12)
}

vm_test!(
    the_benchmark_of_clocks_measures_each_of_its_figures,
    limit = 300,
    once
);
fn the_benchmark_of_clocks_measures_each_of_its_figures() -> Result<()> {
    let effort = time::Effort {
        pairs: 1,
        calls: 20,
    };
    let mut told = Told::default();
    time::measure(effort, &mut |figure| told.take(&figure))?;
    told.are(16)
}

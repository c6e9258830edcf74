//! What the kernel under test has to offer.

use std::path::Path;

use anyhow::{Result, ensure};

use crate::kernels::Kernels;
use crate::kmsg::KernelLog;
use crate::vm_test;

vm_test!(the_modules_that_the_tests_need_are_loaded);
fn the_modules_that_the_tests_need_are_loaded() -> Result<()> {
    for module in Kernels::read()?.modules {
        ensure!(
            Path::new("/sys/module").join(&module).is_dir(),
            "{module} is not loaded"
        );
    }
    Ok(())
}

vm_test!(the_kernel_describes_its_types_to_bpf);
fn the_kernel_describes_its_types_to_bpf() -> Result<()> {
    ensure!(Path::new("/sys/kernel/btf/vmlinux").is_file(), "no BTF");
    Ok(())
}

vm_test!(the_kernel_log_can_be_read);
fn the_kernel_log_can_be_read() -> Result<()> {
    let messages = KernelLog::open()?.read()?;
    ensure!(
        messages.iter().any(|m| m.starts_with("Linux version ")),
        "{messages:?}"
    );
    Ok(())
}

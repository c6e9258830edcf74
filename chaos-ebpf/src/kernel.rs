//! What the kernel has in its own structures, at offsets that the loader fills in from its BTF.

use aya_ebpf::helpers::bpf_probe_read_kernel;

/// A number that the loader may have filled in.
#[inline(always)]
pub fn constant(number: &u32) -> u32 {
    // SAFETY: a load of read-only data; volatile, as the compiler does not know that it is replaced.
    unsafe { core::ptr::read_volatile(number) }
}

/// A field of one of the kernel's objects, whose offset the loader has filled in; `None` where nothing can
/// be read.
#[inline(always)]
pub fn kernel_field<T>(object: *const u8, offset: &u32) -> Option<T> {
    read_kernel(object.wrapping_add(constant(offset) as usize))
}

/// What is there; `None` where nothing can be read.
#[inline(always)]
pub fn read_kernel<T>(at: *const u8) -> Option<T> {
    // SAFETY: the helper checks the address itself.
    unsafe { bpf_probe_read_kernel(at.cast::<T>()) }.ok()
}

//! All that differs between processor architectures. Another one is another module here with the
//! same names.

#[cfg(target_arch = "x86_64")]
pub(super) use x86_64::{ARGUMENTS, EXITS, STUBS, instruction_pointer};

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use nix::libc::user_regs_struct;

    use crate::kernel::btf::Field;

    /// Programs that run when a function of the kernel returns: names and functions.
    pub(crate) const EXITS: [(&str, &str); 4] = [
        ("clock_shift_gettime", "__x64_sys_clock_gettime"),
        ("clock_shift_timeofday", "__x64_sys_gettimeofday"),
        ("clock_shift_time", "__x64_sys_time"),
        ("clock_shift_nanosleep", "__x64_sys_clock_nanosleep"),
    ];

    /// Where the kernel keeps the number of a system call and its arguments.
    pub(crate) const ARGUMENTS: [(&str, Field); 7] = [
        ("CALL", ("pt_regs", "orig_ax")),
        ("ARG0", ("pt_regs", "di")),
        ("ARG1", ("pt_regs", "si")),
        ("ARG2", ("pt_regs", "dx")),
        ("ARG3", ("pt_regs", "r10")),
        ("ARG4", ("pt_regs", "r8")),
        ("ARG5", ("pt_regs", "r9")),
    ];

    /// Functions of the vDSO, and what is put in place of their first bytes: the system call.
    pub(crate) const STUBS: [(&str, &[u8]); 3] = [
        // mov eax, 228 (clock_gettime); syscall; ret
        (
            "__vdso_clock_gettime",
            &[0xb8, 228, 0, 0, 0, 0x0f, 0x05, 0xc3],
        ),
        // mov eax, 96 (gettimeofday); syscall; ret
        (
            "__vdso_gettimeofday",
            &[0xb8, 96, 0, 0, 0, 0x0f, 0x05, 0xc3],
        ),
        // time(2) returns in a register, where no program behind it can change the time, so it is
        // made of clock_gettime(CLOCK_REALTIME). A system call keeps r8.
        (
            "__vdso_time",
            &[
                0x48, 0x83, 0xec, 0x18, // sub rsp, 24
                0x49, 0x89, 0xf8, // mov r8, rdi
                0x31, 0xff, // xor edi, edi
                0x48, 0x89, 0xe6, // mov rsi, rsp
                0xb8, 228, 0, 0, 0, // mov eax, 228
                0x0f, 0x05, // syscall
                0x48, 0x8b, 0x04, 0x24, // mov rax, [rsp]
                0x48, 0x83, 0xc4, 0x18, // add rsp, 24
                0x4d, 0x85, 0xc0, // test r8, r8
                0x74, 0x03, // je over the next
                0x49, 0x89, 0x00, // mov [r8], rax
                0xc3, // ret
            ],
        ),
    ];

    /// Where a thread goes on.
    pub(crate) const fn instruction_pointer(registers: &user_regs_struct) -> u64 {
        registers.rip
    }
}

//! From the program at a hook to that of the generation that acts.
//!
//! What is attached is a *dispatcher*: it asks whether anything is armed, reads `EPOCH` once, and
//! goes on in the *body* of that epoch, which an agent has put into the program array of this hook.
//! So a packet meets exactly one generation at each hook, whenever `EPOCH` is written meanwhile. Two
//! programs side by side that each read the word cannot have that: one that runs before the store
//! and one that runs after it both act, or, the other way round, neither does.
//!
//! By name: the hook `x` has the body `x_body` and the program array `X_BODY`, in the file of its
//! mechanism. The agent finds them by that.

use core::ffi::c_void;

use aya_ebpf::EbpfContext;
use aya_ebpf::maps::ProgramArray;
use chaos_abi::control::{EPOCH, GENERATIONS};

use crate::{armed, halted};

/// Goes on in the body of the generation that acts, and does not come back; it does come back where
/// there is none, as on a node that has been purged.
#[inline(always)]
pub fn go_on<C: EbpfContext>(ctx: &C, bodies: &ProgramArray) {
    // Again, because an agent may write `EPOCH` and clear the element of its predecessor between our
    // reads of the two. Then the word is the new one by now.
    for _ in 0..2 {
        let epoch = crate::control(anew::<EPOCH>()).unwrap_or(anew::<0>());
        // SAFETY: nothing is held that has to be dropped.
        unsafe { bodies.tail_call(ctx, epoch % GENERATIONS) };
    }
}

/// [`go_on`], for a hook that every packet of the node passes: nothing more is asked where nothing is armed.
#[inline(always)]
pub fn go_on_if_armed<C: EbpfContext>(ctx: &C, bodies: &ProgramArray) {
    if armed() {
        let ctx = Kept::new(ctx);
        if !halted() {
            go_on(&ctx, bodies);
        }
    }
}

/// A context that is kept in memory over calls. In a register that calls leave alone it would be in one
/// that the program has to save for its caller, and it does so for all packets, also where nothing is
/// armed.
pub(crate) struct Kept(*mut c_void);

impl Kept {
    #[inline(always)]
    pub(crate) fn new(ctx: &impl EbpfContext) -> Self {
        Self(ctx.as_ptr())
    }
}

impl EbpfContext for Kept {
    #[inline(always)]
    fn as_ptr(&self) -> *mut c_void {
        // SAFETY: a load of a local variable; volatile, so that it stays where it is.
        unsafe { (&raw const self.0).read_volatile() }
    }
}

/// The number, loaded here: the compiler would load it once and keep it, in such a register.
#[inline(always)]
fn anew<const NUMBER: u32>() -> u32 {
    #[cfg(target_arch = "bpf")]
    {
        let number: u64;
        // SAFETY: an instruction that loads a number.
        unsafe {
            core::arch::asm!("{} = {}", out(reg) number, const NUMBER, options(nomem, nostack));
        }
        number as u32
    }
    #[cfg(not(target_arch = "bpf"))]
    NUMBER
}

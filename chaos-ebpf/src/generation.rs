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

use aya_ebpf::EbpfContext;
use aya_ebpf::maps::ProgramArray;
use chaos_abi::control::{EPOCH, GENERATIONS};

/// Goes on in the body of the generation that acts, and does not come back; it does come back where
/// there is none, as on a node that has been purged.
#[inline(always)]
pub fn go_on<C: EbpfContext>(ctx: &C, bodies: &ProgramArray) {
    // Again, because an agent may write `EPOCH` and clear the element of its predecessor between our
    // reads of the two. Then the word is the new one by now.
    for _ in 0..2 {
        // SAFETY: nothing is held that has to be dropped.
        unsafe { bodies.tail_call(ctx, crate::control(EPOCH) % GENERATIONS) };
    }
}

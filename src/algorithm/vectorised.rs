//! Loops with the vector instructions that the processor has, found at run time: without them the compiler may only use
//! those that every processor of its kind has. Elementwise arithmetic gives the same bits whatever the width, as nothing is
//! reordered or fused.

/// What `f` makes. Functions that it calls must be inlined into it.
#[inline]
pub fn vectorised<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}

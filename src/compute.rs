//! Running rows on all cores and loops in vector registers. Nothing here knows what is computed; every folder may use it.

use std::sync::Mutex;

use rayon::prelude::*;

/// Fewer elementary operations than this run on the caller's core: waking the others costs more than a small case takes.
const WORTH_WAKING: usize = 200_000;

/// Applies `f` to every item, keeping the order. `operations` is about how many multiplications that takes in all.
pub fn map<T: Send, R: Send>(items: Vec<T>, operations: usize, f: impl Fn(T) -> R + Sync + Send) -> Vec<R> {
    if operations < WORTH_WAKING {
        return items.into_iter().map(f).collect();
    }
    let slots: Vec<_> = items.into_iter().map(|item| Mutex::new((Some(item), None))).collect();
    for_each_index(slots.len(), &|index| {
        if let Ok(mut slot) = slots[index].lock() {
            slot.1 = slot.0.take().map(&f);
        }
    });
    slots.into_iter().filter_map(|slot| slot.into_inner().ok()?.1).collect()
}

/// Calls `f` with 0..`count`, on all cores. Not generic, so that scheduling is compiled once rather than for every caller.
fn for_each_index(count: usize, f: &(dyn Fn(usize) + Sync)) {
    (0..count).into_par_iter().for_each(f);
}

/// Runs `f` with the vector instructions that the processor is found to have at run time (feature `engine`); without that,
/// the compiler may only use those that every processor of its kind has. Elementwise arithmetic gives the same bits whatever the width, as
/// nothing is reordered or fused. Functions that `f` calls must be inlined into it.
#[inline]
pub fn vectorised<R>(f: impl FnOnce() -> R) -> R {
    #[cfg(feature = "engine")]
    return pulp::Arch::new().dispatch(f);
    #[cfg(not(feature = "engine"))]
    f()
}

//! Work on all cores, where there is enough of it: waking them costs more than a small case takes.

use rayon::prelude::*;

/// Fewer elementary operations than this run on the caller's core.
const WORTH_WAKING: usize = 200_000;

/// What `f` makes of each item, in order. `operations` is about how many multiplications all of it takes.
pub fn map<T: Send, R: Send>(items: Vec<T>, operations: usize, f: impl Fn(T) -> R + Sync + Send) -> Vec<R> {
    if operations < WORTH_WAKING {
        items.into_iter().map(f).collect()
    } else {
        items.into_par_iter().map(f).collect()
    }
}

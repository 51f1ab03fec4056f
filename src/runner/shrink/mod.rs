//! Makes a failing sequence small enough for a person: fewest calls, batch entries, heads, queries, keys, channels and
//! bits, the plainest settings, then values of 0, ±1 and small fractions. Works on the tensors themselves, so that it can
//! start from anything that fails. Every step keeps what failed failing, and none makes a sequence larger.

pub(in crate::runner) mod changes;
pub mod edge;
pub(in crate::runner) mod reductions;
mod search;
pub mod sessions;
pub mod stages;
mod values;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use self::reductions::{
    PLAINER, with_channels, with_length, without_batch, without_calls, without_group_members, without_keys,
    without_keys_and_heavy, without_kv_heads, without_positions, without_queries, without_queries_of_all,
    without_value_dims,
};
use self::search::{Search, Without};
use crate::algorithm::{HeavySize, LabelBits};
use crate::cases::{Capabilities, Sequence};

/// When to stop.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Wall-clock time; default 8 seconds.
    pub time: Duration,
    /// How often the failure may be tried; default 20,000.
    pub tries: usize,
    /// Ends the search once this is true; default `None`.
    pub interrupted: Option<&'static AtomicBool>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { time: Duration::from_secs(8), tries: 20_000, interrupted: None }
    }
}

impl Limits {
    /// When a search that begins now is over; `None` where that is too far away to tell.
    pub(in crate::runner) fn deadline(&self) -> Option<Instant> {
        Instant::now().checked_add(self.time)
    }

    /// Whether a search that began then has reached a limit.
    pub(in crate::runner) fn exhausted(&self, start: Instant, tries: usize) -> bool {
        let interrupted = self.interrupted.is_some_and(|flag| flag.load(Ordering::Relaxed));
        interrupted || tries >= self.tries || start.elapsed() >= self.time
    }
}

/// Sequences of more keys than this are made smaller by large steps first.
const MANY_KEYS: usize = 64;

/// Of more channels than this not every choice is tried.
const MANY_CHANNELS: usize = 24;

/// What is dropped in runs, and the ways to drop it.
type Parts = (fn(&Sequence) -> usize, &'static [Without<'static, Sequence>]);

/// What a large question is large by.
const PARTS: [Parts; 6] = [
    (|sequence| sequence.calls.len(), &[&without_calls]),
    (batch, &[&without_batch]),
    (most_queries, &[&without_queries_of_all]),
    (kv_heads, &[&without_kv_heads]),
    (group_size, &[&without_group_members]),
    (most_keys, &[&without_keys, &without_keys_and_heavy]),
];

fn most_queries(sequence: &Sequence) -> usize {
    sequence.calls.iter().map(|call| call.inputs.dims().queries).max().unwrap_or(0)
}

fn batch(sequence: &Sequence) -> usize {
    sequence.calls.iter().map(|call| call.inputs.dims().batch).max().unwrap_or(0)
}

fn kv_heads(sequence: &Sequence) -> usize {
    sequence.calls[0].inputs.dims().kv_heads
}

fn group_size(sequence: &Sequence) -> usize {
    sequence.calls[0].inputs.dims().group_size()
}

fn value_dim(sequence: &Sequence) -> usize {
    sequence.calls[0].inputs.dims().value_dim
}

/// H as a count.
fn heavy_size(sequence: &Sequence) -> usize {
    sequence.instance.selection.heavy_size.resolve(usize::MAX)
}

/// With H lowered by the number of parts from `start` to `end`, whichever these are.
fn with_smaller_heavy_size(sequence: &Sequence, start: usize, end: usize) -> Option<Sequence> {
    let size = HeavySize::count(heavy_size(sequence).checked_sub(end - start)?).ok()?;
    let mut changed = sequence.clone();
    changed.instance.selection.heavy_size = size;
    Some(changed)
}

fn most_keys(sequence: &Sequence) -> usize {
    sequence.calls.iter().map(|call| call.inputs.dims().keys).max().unwrap_or(0)
}

/// The smallest sequence found.
#[derive(Debug, Clone)]
pub struct Shrunk {
    /// It still fails.
    pub sequence: Sequence,
    /// How often the failure was tried.
    pub tries: usize,
    /// False where the limits ended the search.
    pub finished: bool,
    /// Wall-clock time.
    pub seconds: f64,
}

/// Shrinks a sequence for which `fails` is true, within what a subject of these capabilities may be asked.
pub fn shrink(
    sequence: Sequence,
    limits: Limits,
    capabilities: &Capabilities,
    fails: &mut dyn FnMut(&Sequence) -> bool,
) -> Shrunk {
    let mut search = Search::new(sequence, limits, capabilities, Capabilities::offers_all, fails);
    while search.round() && !search.exhausted() {}
    Shrunk {
        tries: search.tries,
        finished: !search.exhausted(),
        seconds: search.elapsed().as_secs_f64(),
        sequence: search.current,
    }
}

impl Search<'_, Sequence> {
    /// All reductions once; whether any of them worked.
    fn round(&mut self) -> bool {
        let mut changed = self.far_smaller();
        changed |= self.drop_each(|s| s.calls.len(), without_calls);
        changed |= self.plainer_settings();
        changed |= self.drop_each(batch, without_batch);
        changed |= self.plainer_lengths();
        changed |= self.drop_each(kv_heads, without_kv_heads);
        changed |= self.drop_each(group_size, without_group_members);
        for call in 0..self.current.calls.len() {
            let queries = |s: &Sequence| s.calls[call].inputs.dims().queries;
            changed |= self.drop_each(queries, |s, start, end| without_queries(s, call, start, end));
        }
        if most_keys(&self.current) <= MANY_KEYS {
            changed |= self.drop_keys();
        }
        changed |= self.fewer_channels();
        changed |= self.drop_each(value_dim, without_value_dims);
        changed |= self.plainer_values();
        // Of many keys only the first, the middle and the last were taken so far. Others are tried once nothing else helps, as that
        // takes many questions.
        if !changed && most_keys(&self.current) > MANY_KEYS {
            changed = self.drop_keys();
        }
        changed
    }

    fn drop_keys(&mut self) -> bool {
        if !self.capabilities.allows_fewer_keys(most_keys(&self.current)) {
            return false;
        }
        let mut changed = self.drop_each(most_keys, without_keys);
        changed |= self.drop_each(most_keys, without_keys_and_heavy);
        // With one query, that is the same as without keys.
        if most_keys(&self.current) <= MANY_KEYS || most_queries(&self.current) > 1 {
            changed |= self.drop_each(most_keys, without_positions);
        }
        changed
    }

    /// Large sequences are slow to try, and of sizes in a domain others may be left than halves. First whatever can be halved,
    /// what there is least of before keys, as it takes the fewest questions; then the rest, keys at last down to single ones.
    /// Everything finer is tried at a size near the smallest that fails.
    fn far_smaller(&mut self) -> bool {
        if most_keys(&self.current) <= MANY_KEYS && self.capabilities.domains.is_empty() {
            return false;
        }
        let mut changed = false;
        // Later rounds have little left to halve.
        let passes: &[usize] = if self.tries == 0 { &[2, 8, usize::MAX] } else { &[usize::MAX] };
        for &finest in passes {
            for (count, ways) in PARTS {
                changed |= self.bisect(count, finest, ways);
            }
            changed |= self.fewer_channels();
            changed |= self.bisect(value_dim, finest, &[&without_value_dims]);
        }
        changed
    }

    /// Entries of unequal lengths: all keys where that still fails, otherwise fewer. Rounds repeat it.
    fn plainer_lengths(&mut self) -> bool {
        let mut changed = false;
        for call in 0..self.current.calls.len() {
            let inputs = &self.current.calls[call].inputs;
            let keys = inputs.dims().keys;
            let lengths = inputs.lengths().map(|lengths| lengths.keys().to_vec()).unwrap_or_default();
            for (entry, length) in lengths.into_iter().enumerate().filter(|(_, length)| *length < keys) {
                let fewer = [0, 1, length / 2, length.saturating_sub(1)];
                for plainer in [keys].into_iter().chain(fewer.into_iter().filter(|&fewer| fewer < length)) {
                    let candidate = with_length(&self.current, call, entry, plainer);
                    if self.accept(candidate) {
                        changed = true;
                        break;
                    }
                }
            }
        }
        changed
    }

    fn plainer_settings(&mut self) -> bool {
        let mut changed = false;
        for plainer in PLAINER {
            if self.exhausted() {
                return changed;
            }
            let candidate = plainer(&self.current);
            changed |= self.accept(candidate);
        }
        for index in (0..self.current.instance.earlier_maskers.len()).rev() {
            let mut candidate = self.current.clone();
            candidate.instance.earlier_maskers.remove(index);
            changed |= self.accept(Some(candidate));
        }
        for bits in [16, 1, 2, 3, 4, 8] {
            // 16 bits mean unquantised; below that, fewer are plainer.
            let current = u64::from(self.current.instance.selection.label_bits);
            if current == 16 || bits >= current && bits != 16 {
                break;
            }
            let mut candidate = self.current.clone();
            candidate.instance.selection.label_bits = LabelBits::new(bits).unwrap_or(LabelBits::UNQUANTISED);
            changed |= self.accept(Some(candidate));
        }
        changed | self.smaller_heavy_size()
    }

    fn smaller_heavy_size(&mut self) -> bool {
        let keys = self.current.calls.iter().map(|call| call.inputs.dims().keys).max().unwrap_or(1);
        let current = self.current.instance.selection.heavy_size;
        let resolved = match current {
            HeavySize::Count(count) => count.get(),
            HeavySize::Fraction(_) => current.resolve(keys),
        };
        if resolved > MANY_KEYS && matches!(current, HeavySize::Count(_)) {
            return self.bisect(heavy_size, usize::MAX, &[&with_smaller_heavy_size]);
        }
        let is_fraction = matches!(current, HeavySize::Fraction(_));
        let counts = [1, 2, resolved / 2, resolved - 1];
        let counts = counts.into_iter().filter(|&count| count > 0 && (count < resolved || is_fraction));
        for count in counts.chain(is_fraction.then_some(resolved)) {
            let mut candidate = self.current.clone();
            let Ok(size) = HeavySize::count(count) else { continue };
            candidate.instance.selection.heavy_size = size;
            if self.accept(Some(candidate)) {
                return true;
            }
        }
        false
    }

    /// Smaller head dimensions: the leading channels of the first row, two channels of which one is a label, or all but one.
    fn fewer_channels(&mut self) -> bool {
        let d = self.current.calls[0].inputs.dims().head_dim;
        let factor = self.current.instance.selection.group_factor.get();
        let leading = self.leading_row(d);
        let mut candidates = Vec::new();
        if d > MANY_CHANNELS {
            let sizes = std::iter::successors(Some(1), |size| Some(2 * size)).take_while(|&size| size < d);
            for size in sizes.chain([d - d.div_ceil(8), d - 1]) {
                candidates.extend([1, factor].map(|group_factor| (leading[..size].to_vec(), group_factor)));
            }
            candidates.push(((0..d).collect(), 1));
            return self.take_channels(candidates);
        }
        for size in 1..d {
            for group_factor in 1..=factor {
                candidates.push((leading[..size].to_vec(), group_factor));
            }
        }
        if d > 2 && factor > 1 {
            let pairs = (0..d).flat_map(|a| (a + 1..d).map(move |b| (vec![a, b], 2)));
            candidates.extend(pairs);
        }
        for dropped in 0..d {
            let kept: Vec<usize> = (0..d).filter(|&c| c != dropped).collect();
            candidates.extend([factor, 1, 2].map(|group_factor| (kept.clone(), group_factor)));
        }
        candidates.extend((1..factor).map(|group_factor| ((0..d).collect(), group_factor)));
        self.take_channels(candidates)
    }

    /// Takes the first choice of channels and group factor that fails.
    fn take_channels(&mut self, candidates: Vec<(Vec<usize>, usize)>) -> bool {
        for (mut kept, group_factor) in candidates {
            if self.exhausted() {
                return false;
            }
            if kept.is_empty() || !self.capabilities.allows_channels(kept.len(), group_factor) {
                continue;
            }
            kept.sort_unstable();
            let candidate = with_channels(&self.current, &kept, group_factor);
            if self.accept(candidate) {
                return true;
            }
        }
        false
    }

    /// All channels, those of the first row first.
    fn leading_row(&self, d: usize) -> Vec<usize> {
        let first = self.current.instance.channels(self.current.calls[0].layer);
        let mut row: Vec<usize> = first.map(|order| order.rows()[0].clone()).unwrap_or_default();
        row.retain(|&c| c < d);
        row.extend((0..d).filter(|c| !row.contains(c)).collect::<Vec<_>>());
        row
    }
}

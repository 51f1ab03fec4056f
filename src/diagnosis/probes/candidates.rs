//! Which positions can be selected at all, by the number of keys: each key is among the best of some row.

use std::collections::{BTreeMap, BTreeSet};

use super::draft::Draft;
use super::question::{Asking, Shown};
use super::tell::{Measured, first_differences, keys};

/// Numbers of keys: small ones, and those about the sizes of tiles and pages.
const SIZES: [usize; 26] = [
    1, 2, 3, 5, 8, 9, 15, 16, 17, 31, 33, 40, 63, 64, 65, 70, 100, 128, 129, 200, 257, 300, 513, 1025, 2049,
    4097,
];

/// Up to this many keys every position is asked for.
const ALL_POSITIONS: usize = 300;

/// The most rows of one question.
const LANES: usize = 16;

pub(super) fn ask(asking: &mut Asking) {
    for n in SIZES {
        if n > 1 && n <= ALL_POSITIONS {
            halves(asking, n);
        }
        winners(asking, n);
        if n >= 40 {
            crowd(asking, n);
        }
    }
}

/// As many rows as the subject offers, up to a number, in which keys may differ.
pub(super) fn with_lanes(asking: &mut Asking, draft: Draft, lanes: usize) -> Option<Draft> {
    let heads = asking.fit(Draft { kv_heads: lanes, ..draft.clone() });
    match heads.filter(|draft| draft.lanes() >= lanes) {
        Some(heads) => Some(heads),
        None => asking.fit(Draft { batch: lanes, ..draft }),
    }
}

/// Half of the keys score high: those with a bit of their position set, or not set, in one row for each bit.
fn halves(asking: &mut Asking, n: usize) {
    let bits = usize::BITS - (n - 1).leading_zeros();
    let half = n.div_ceil(2);
    let chosen = |lane: usize, key: usize| (key >> (lane / 2) & 1 == 1) == (lane % 2 == 1);
    let draft = Draft { heavy: half, ..asking.draft(n) };
    let wanted = 2 * bits as usize;
    let Some(draft) = with_lanes(asking, draft, wanted.min(LANES)) else { return };
    for start in (0..wanted).step_by(draft.lanes().min(LANES)) {
        // The keys of a half that is too large score in two steps, so that its first keys are certain.
        let score = |entry: usize, kv_head: usize, key: usize| {
            let lane = (start + draft.lane(entry, kv_head)) % wanted;
            let before = (0..key).filter(|&other| chosen(lane, other)).count();
            let others = (0..n).filter(|&other| chosen(lane, other)).count();
            match chosen(lane, key) {
                true if before < half => 2.0,
                true => 0.5,
                // As many of the others as the half lacks.
                false if others < half && key - before < half - others => 1.5,
                false => 0.5,
            }
        };
        asking.scored(("half of the keys high", &[("n", n), ("H", half)]), &draft, &score, None);
    }
}

/// One key far above the others, in each row another one; the others fall or rise.
fn winners(asking: &mut Asking, n: usize) {
    let edges = [15, 16, 31, 32, 63, 64, 127, 128, 255, 256, 1023, 1024];
    let tiles = [8, 16, 32, 64, 128].map(|tile| (n - 1) / tile * tile);
    let near = [0, 1, n / 2, n.saturating_sub(2), n - 1];
    let positions: BTreeSet<usize> =
        near.into_iter().chain(edges).chain(tiles).filter(|&key| key < n).collect();
    let positions: Vec<usize> = positions.into_iter().collect();
    for heavy in [1, 3] {
        let draft = Draft { heavy, ..asking.draft(n) };
        let Some(draft) = with_lanes(asking, draft, positions.len().min(LANES)) else { return };
        let lanes = draft.lanes().min(LANES);
        for chunk in positions.chunks(lanes) {
            let score = |entry: usize, kv_head: usize, key: usize| {
                let rank = if heavy == 1 { n - key } else { key };
                let winner = chunk[draft.lane(entry, kv_head) % chunk.len()];
                if key == winner { 2.0 } else { rank as f32 / n as f32 / 2.0 }
            };
            asking.scored(("one key high", &[("n", n), ("H", heavy)]), &draft, &score, None);
        }
    }
}

/// Many of the best keys side by side: at the start, in the middle, at the end.
fn crowd(asking: &mut Asking, n: usize) {
    let heavy = (n / 2).min(24);
    let starts = [0, n / 2 - heavy / 2, n - heavy];
    let Some(draft) = with_lanes(asking, Draft { heavy, ..asking.draft(n) }, starts.len()) else { return };
    for chunk in starts.chunks(draft.lanes().min(starts.len())) {
        let score = |entry: usize, kv_head: usize, key: usize| {
            let start = chunk[draft.lane(entry, kv_head) % chunk.len()];
            if (start..start + heavy).contains(&key) { 2.0 } else { key as f32 / n as f32 / 2.0 }
        };
        asking.scored(("the best side by side", &[("n", n), ("H", heavy)]), &draft, &score, None);
    }
}

pub(super) fn tell(measured: &[Measured]) -> String {
    let mut lost: BTreeMap<(usize, usize), BTreeSet<usize>> = BTreeMap::new();
    let mut got: BTreeMap<(usize, usize), BTreeSet<usize>> = BTreeMap::new();
    let mut sizes = BTreeSet::new();
    let mut unanswered = 0;
    for one in measured {
        let n = one.question.numbers.iter().find(|(name, _)| *name == "n").map_or(0, |(_, n)| *n);
        sizes.insert(n);
        for (found, expected) in one.pairs() {
            let at = (n, found.row.1);
            match (&found.shows, expected.map(|expected| &expected.shows)) {
                (Shown::Keys(found), Some(Shown::Keys(expected))) => {
                    got.entry(at).or_default().extend(found);
                    lost.entry(at).or_default().extend(expected.iter().filter(|key| !found.contains(key)));
                }
                _ => unanswered += 1,
            }
        }
    }
    let never = |at: &(usize, usize), keys: &BTreeSet<usize>| -> Vec<usize> {
        keys.iter().copied().filter(|key| got.get(at).is_none_or(|got| !got.contains(key))).collect()
    };
    // For each n the heads that lose the same keys.
    let mut told: Vec<String> = Vec::new();
    for &n in &sizes {
        let mut groups: Vec<(Vec<usize>, Vec<usize>)> = Vec::new();
        for (at, keys) in lost.iter().filter(|(at, _)| at.0 == n) {
            let keys = never(at, keys);
            match groups.iter_mut().find(|group| group.0 == keys) {
                Some(group) => group.1.push(at.1),
                None if !keys.is_empty() => groups.push((keys, vec![at.1])),
                None => {}
            }
        }
        let heads = got.keys().filter(|at| at.0 == n).count();
        for (lost, of) in groups {
            let of = match of.len() {
                all if all == heads => String::new(),
                1 => format!(" of head {}", of[0]),
                _ => format!(" of heads {}", crate::algorithm::channels::ranges(of)),
            };
            told.push(format!("{}{of} never selected at n = {n}", keys(lost)));
        }
    }
    let last = sizes.last().copied().unwrap_or(0);
    let all = || format!("every key, n = {} to {last}", sizes.first().copied().unwrap_or(0));
    if unanswered > 0 {
        told.push(format!("{unanswered} answers cannot be used"));
    }
    if told.is_empty() {
        return first_differences(measured, 2).unwrap_or_else(all);
    }
    let more = told.len().saturating_sub(2);
    told.truncate(2);
    told.join("; ") + &if more > 0 { format!("; {more} more") } else { String::new() }
}

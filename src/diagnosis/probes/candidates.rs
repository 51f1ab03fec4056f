//! Which positions can be selected at all, by the number of keys: each key is among the best of some row.

use std::collections::{BTreeMap, BTreeSet};

use super::draft::Draft;
use super::question::{Asking, Shown};
use super::tell::{Measured, Told, keys};
use crate::algorithm::channels::ranges;

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

/// What was seen of the keys of one head at one number of keys.
#[derive(Default)]
struct Seen {
    /// Keys that had to be selected somewhere.
    asked: BTreeSet<usize>,
    /// Keys that were.
    got: BTreeSet<usize>,
}

impl Seen {
    fn lost(&self) -> BTreeSet<usize> {
        self.asked.difference(&self.got).copied().collect()
    }
}

type SeenBy = BTreeMap<(usize, usize), Seen>;

/// A name, and whether a key of n is lost, as a function of key, n and the size of a tile.
type Lost = (&'static str, fn(usize, usize, usize) -> bool);

const LOST: [Lost; 4] = [
    ("the last key is never selected", |key, n, _| key + 1 == n),
    ("keys from tile · ⌊n / tile⌋ on are never selected", |key, n, tile| key >= n / tile * tile),
    ("keys from tile on are never selected", |key, _, tile| key >= tile),
    ("the last key of each tile is never selected", |key, _, tile| key % tile == tile - 1),
];

const TILES: [usize; 11] = [2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048];

pub(super) fn tell(measured: &[Measured]) -> Told {
    let n =
        |one: &Measured| one.question.numbers.iter().find(|(name, _)| *name == "n").map_or(0, |(_, n)| *n);
    let mut seen = SeenBy::new();
    let mut unanswered = 0;
    for one in measured {
        for (found, expected) in one.pairs() {
            match (&found.shows, expected.map(|expected| &expected.shows)) {
                (Shown::Keys(found_keys), Some(Shown::Keys(expected))) => {
                    let seen = seen.entry((n(one), found.row.1)).or_default();
                    seen.got.extend(found_keys);
                    seen.asked.extend(expected);
                }
                _ => unanswered += 1,
            }
        }
    }
    if unanswered > 0 {
        return Told::Examples(format!("{unanswered} answers cannot be used"));
    }
    let sizes: BTreeSet<usize> = seen.keys().map(|at| at.0).collect();
    if seen.values().all(|seen| seen.lost().is_empty()) {
        let all =
            || format!("every key, n = {} to {}", sizes.first().unwrap_or(&0), sizes.last().unwrap_or(&0));
        return always(measured).map_or_else(|| Told::or_examples(measured, all), Told::Rule);
    }
    by_rule(&seen).map_or_else(|| Told::Examples(by_size(&seen, &sizes)), Told::Rule)
}

/// The rule by which keys are lost, from the least number of keys at which any is.
fn by_rule(seen: &SeenBy) -> Option<String> {
    let from = seen.iter().filter(|(_, seen)| !seen.lost().is_empty()).map(|(at, _)| at.0).min()?;
    let fits = |(_, lost): &Lost, tile: usize| {
        seen.iter().filter(|(at, _)| at.0 >= from).all(|((n, _), seen)| {
            let expected = seen.asked.iter().copied().filter(|&key| lost(key, *n, tile));
            seen.lost().into_iter().eq(expected)
        })
    };
    let rules = LOST.iter().flat_map(|rule| TILES.map(|tile| (rule, tile)));
    let (rule, tile) = rules.into_iter().find(|(rule, tile)| fits(rule, *tile))?;
    let name = rule.0.replace("tile · ", &format!("{tile} · ")).replace("/ tile", &format!("/ {tile}"));
    let name = name
        .replace("from tile", &format!("from {tile}"))
        .replace("each tile", &format!("each tile of {tile}"));
    Some(if from > 1 { format!("{name}, n ≥ {from}") } else { name })
}

/// For each n the heads that lose the same keys.
fn by_size(seen: &SeenBy, sizes: &BTreeSet<usize>) -> String {
    let mut told: Vec<String> = Vec::new();
    for &n in sizes {
        let of_size: Vec<_> =
            seen.iter().filter(|(at, _)| at.0 == n).map(|(at, seen)| (at.1, seen.lost())).collect();
        let mut groups: Vec<(&BTreeSet<usize>, Vec<usize>)> = Vec::new();
        for (head, lost) in of_size.iter().filter(|(_, lost)| !lost.is_empty()) {
            match groups.iter_mut().find(|group| group.0 == lost) {
                Some(group) => group.1.push(*head),
                None => groups.push((lost, vec![*head])),
            }
        }
        for (lost, heads) in groups {
            let of = match heads.len() {
                all if all == of_size.len() => String::new(),
                1 => format!(" of head {}", heads[0]),
                _ => format!(" of heads {}", ranges(heads)),
            };
            let verb = if lost.len() == 1 { "is" } else { "are" };
            told.push(format!("{}{of} {verb} never selected at n = {n}", keys(lost.iter().copied())));
        }
    }
    // The largest part first.
    told.sort_by_key(|line| std::cmp::Reverse(line.contains(" of heads ")));
    let more = told.len().saturating_sub(2);
    told.truncate(2);
    told.join("; ") + &if more > 0 { format!("; {more} more") } else { String::new() }
}

/// So many wrong rows make a rule.
const FEWEST_ROWS: usize = 4;

/// A key that every wrong row holds and should not.
fn always(measured: &[Measured]) -> Option<String> {
    let mut common: Option<BTreeSet<usize>> = None;
    let (mut least, mut wrong) = (usize::MAX, 0);
    for one in measured {
        for (found, expected) in one.pairs() {
            let (Shown::Keys(found), Some(Shown::Keys(expected))) =
                (&found.shows, expected.map(|e| &e.shows))
            else {
                return None;
            };
            if found != expected {
                wrong += 1;
                least = least.min(one.question.dims().map_or(usize::MAX, |dims| dims.keys));
                let more: BTreeSet<usize> =
                    found.iter().filter(|key| !expected.contains(key)).copied().collect();
                common = Some(match common {
                    Some(old) => old.intersection(&more).copied().collect(),
                    None => more,
                });
            }
        }
    }
    let common = common.filter(|common| !common.is_empty() && wrong >= FEWEST_ROWS)?;
    Some(format!("{} selected whatever the score is, from n = {least} on", keys(common)))
}

//! How finely and in which direction scores are ranked, crowds of scores that agree in their high bits, and ties.

use super::candidates::with_lanes;
use super::draft::Draft;
use super::question::{Asking, Read, Shown};
use super::tell::{Measured, Told, first_differences};
use super::tensors::Parts;
use crate::algorithm::{ScoreRule, Storage};

/// Bits after the first that a score is told apart by.
const BITS: usize = 22;

const DISTANCE: &str = "two keys 2^−bits apart";

pub(super) fn ask(asking: &mut Asking) {
    for batch in [1, 2] {
        bits(asking, batch);
    }
    lists(asking);
    crowds(asking);
    sums(asking);
}

/// Key 1 scores 1 + 2^−bits, key 0 scores 1.
fn bits(asking: &mut Asking, batch: usize) {
    let per_head = asking.draft(2);
    let wanted = Draft { kv_heads: BITS, batch, ..per_head };
    let Some(draft) = asking.fit(wanted).filter(|draft| draft.kv_heads >= BITS) else {
        return singly(asking);
    };
    let score = |_: usize, kv_head: usize, key: usize| {
        if key == 1 { 1.0 + f32::powi(2.0, -(kv_head as i32 + 1)) } else { 1.0 }
    };
    asking.scored((DISTANCE, &[("b", draft.batch)]), &draft, &score, None);
}

fn singly(asking: &mut Asking) {
    for bit in 1..=BITS {
        let Some(draft) = asking.fit(asking.draft(2)) else { return };
        let score = |_: usize, _: usize, key: usize| {
            if key == 1 { 1.0 + f32::powi(2.0, -(bit as i32)) } else { 1.0 }
        };
        asking.scored((DISTANCE, &[("bits", bit)]), &draft, &score, None);
    }
}

/// Short lists of scores.
fn lists(asking: &mut Asking) {
    let lists: [(&str, &[f32], usize); 6] = [
        ("negative scores", &[-3.0, -1.0, -2.0, -1.5, -4.0], 2),
        ("negative scores, one missing", &[-3.0, -1.0, -2.0, -1.5, -4.0], 4),
        ("negative and positive scores", &[-3.0, 1.0, -2.0, 0.5, -1.0], 3),
        ("a zero among negative scores", &[-1.0, -2.0, 0.0, -3.0, -0.5, -4.0, -5.0], 2),
        ("large scores", &[3000.0, -3000.0, 2900.0, 2500.0, 0.0], 2),
        ("small scores", &[3e-4, -2e-4, 1e-4, 2e-4, 0.0], 2),
    ];
    for (about, list, heavy) in lists {
        let Some(draft) = asking.fit(Draft { heavy, ..asking.draft(list.len()) }) else { continue };
        if draft.rules.score != ScoreRule::Cosine {
            asking.scored((about, &[("H", heavy)]), &draft, &|_, _, key| list[key], None);
        }
    }
}

/// Many scores that agree in their highest bits, at the H-th place; some with equal ones.
fn crowds(asking: &mut Asking) {
    for (n, heavy, step) in
        [(12, 5, -15), (24, 9, -12), (40, 20, -16), (300, 200, -18), (700, 300, -20), (3000, 2500, -21)]
    {
        for rising in [false, true] {
            let Some(draft) = asking.fit(Draft { heavy, ..asking.draft(n) }) else { continue };
            if draft.storage != Storage::F32 || draft.rules.score == ScoreRule::Cosine {
                asking.need(draft.storage == Storage::F32, "f32");
                continue;
            }
            let score = |_: usize, _: usize, key: usize| {
                let place = if rising { key } else { n - 1 - key };
                if key < 2 { 3.0 } else { 1.0 + place as f32 * f32::powi(2.0, step) }
            };
            let about = if rising { "a crowd, rising" } else { "a crowd, falling" };
            asking.scored((about, &[("n", n), ("H", heavy)]), &draft, &score, None);
        }
    }
}

/// Scores that are sums over several channels, one part small; and products beyond the range of f16.
fn sums(asking: &mut Asking) {
    let wanted = Draft { label_channels: 8, ..asking.draft(3) };
    let Some(draft) = asking.fit(wanted) else { return };
    if draft.rules.score == ScoreRule::Cosine {
        return;
    }
    let shape = (draft.batch, draft.heads(), draft.queries, draft.head_dim());
    let read = Read::Keys { offset: draft.offset(), keys: 3 };
    for (about, large, small) in [("a small part", 1.0, 0.001), ("products of 90,000", 300.0, 1.0)] {
        let q = ndarray::Array4::from_elem(shape, large);
        let k = draft.keys_of(|_, _, key, channel| match channel {
            0 => large,
            1 if key == 1 => small,
            _ => 0.0,
        });
        asking.call((about, &[]), &draft, Parts { q: Some(q), k: Some(k), ..Parts::default() }, read);
    }
}

pub(super) fn tell(measured: &[Measured]) -> Told {
    let mut told = Vec::new();
    for one in measured.iter().filter(|one| one.question.about == DISTANCE) {
        let numbers = &one.question.numbers;
        let Some(("b", batch)) = numbers.first().copied() else { continue };
        let apart = |found: &&super::question::Reading| found.shows == Shown::Keys(vec![1]);
        let of_entry = one.found.iter().filter(|found| found.row.0 == 0 && found.row.2 == 0);
        let bits = of_entry.take_while(apart).count();
        told.push((batch, bits));
    }
    told.dedup_by_key(|told| told.1);
    let bits = |(batch, bits): &(usize, usize)| match told.len() {
        1 => format!("{bits} bits after the first"),
        _ => format!("{bits} bits after the first where b = {batch}"),
    };
    let bits: Vec<_> = told.iter().map(bits).collect();
    let bits = bits.join(", ");
    match first_differences(measured) {
        Some(which) if bits.is_empty() => Told::Examples(which),
        Some(which) => Told::Examples(format!("{bits}: {which}")),
        None if bits.is_empty() => Told::Rule("as finely as told apart".into()),
        None => Told::Rule(bits),
    }
}

/// Equal keys, all or in plateaus.
pub(super) fn ask_ties(asking: &mut Asking) {
    for (about, n, heavy, plateau) in [
        ("all equal", 6, 2, 6),
        ("all equal", 40, 7, 40),
        ("two plateaus", 12, 6, 4),
        ("two plateaus", 70, 40, 30),
    ] {
        let Some(draft) = with_lanes(asking, Draft { heavy, ..asking.draft(n) }, 1) else { continue };
        let score = |_: usize, _: usize, key: usize| if key * 5 % n < plateau { 2.0 } else { 1.0 };
        asking.scored((about, &[("n", n), ("H", heavy)]), &draft, &score, None);
    }
}

const WRONG_NUMBER: &str = "the wrong number of keys";

/// Which of equal keys are selected: told, as every order is right.
pub(super) fn tell_ties(measured: &[Measured]) -> Told {
    let equal = measured.iter().filter(|one| one.question.about == "all equal").flat_map(|one| {
        let number = |name| one.question.numbers.iter().find(|(own, _)| *own == name).map_or(0, |(_, n)| *n);
        let (n, heavy) = (number("n"), number("H"));
        one.found.iter().map(move |found| match &found.shows {
            Shown::Keys(keys) if keys.iter().copied().eq(0..heavy) => "lowest first",
            Shown::Keys(keys) if keys.iter().copied().eq(n.saturating_sub(heavy)..n) => "highest first",
            Shown::Keys(keys) if keys.len() == heavy => "another order",
            _ => WRONG_NUMBER,
        })
    });
    let mut orders: Vec<_> = equal.collect();
    orders.sort_unstable();
    orders.dedup();
    let wrong = orders.contains(&WRONG_NUMBER);
    let told = if orders.is_empty() { "not seen".into() } else { orders.join(", ") };
    if wrong { Told::Examples(told) } else { Told::Rule(told) }
}

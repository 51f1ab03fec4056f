//! The attention over the selected keys: the factor of q·k, which values it reads, and outputs of random tensors, each judged by
//! its bound.

use ndarray::Array4;

use super::draft::Draft;
use super::question::{Asking, Read, Shown};
use super::tell::{Measured, Told, first_differences};
use super::tensors::Parts;
use crate::cases::Feature;

/// Two keys with logits that differ by the factor; the value of key 0 is 1, that of the others 0.
pub(super) fn ask_scale(asking: &mut Asking) {
    if !asking.need(asking.capabilities.offers(Feature::Output), "output") {
        return;
    }
    asking.need(asking.capabilities.offers(Feature::Scaling), "scaling");
    for scaling in [None, Some(1.0), Some(0.3), Some(2.0)] {
        for group_factor in [1, 3] {
            if scaling.is_some() && !asking.capabilities.offers(Feature::Scaling) {
                continue;
            }
            let wanted = Draft { heavy: 2, scaling, group_factor, ..asking.draft(2) };
            let Some(draft) = asking.fit(wanted) else { continue };
            let k = draft.scored_keys(|_, _, key| if key == 0 { 1.0 } else { 0.0 });
            let first = draft.offset();
            let v = values(&draft, |position| f32::from(u8::from(position == first)));
            let about = scaling.map_or("the default scaling".into(), |scaling| format!("scaling {scaling}"));
            let parts = Parts { k: Some(k), v: Some(v), ..Parts::default() };
            asking.call((&about, &[("d", draft.head_dim())]), &draft, parts, Read::Output);
        }
    }
}

fn values(draft: &Draft, of: impl Fn(usize) -> f32) -> Array4<f32> {
    let shape = (draft.batch, draft.kv_heads, draft.all_keys(), draft.value_dim());
    Array4::from_shape_fn(shape, |(_, _, position, _)| of(position))
}

/// The factor is the logarithm of the odds, where nothing but two keys is attended to. What is not above 0 is no factor.
pub(super) fn tell_scale(measured: &[Measured]) -> Told {
    let mut told = Vec::new();
    for one in measured {
        let factors = one.found.iter().map(|found| match &found.shows {
            Shown::Numbers(all) if all.first().is_some_and(|x| *x > 0.50001 && *x < 1.0) => {
                let x = all.first().map_or(0.5, |x| f64::from(*x));
                format!("{:.4}", (x / (1.0 - x)).ln())
            }
            other => format!("none ({other})"),
        });
        let mut factors: Vec<_> = factors.collect();
        factors.dedup();
        told.push(format!("{}: {}", one.question.words(), factors.join(", ")));
    }
    let wrong: Vec<_> =
        measured.iter().zip(&told).filter(|(one, _)| one.differs()).map(|(_, t)| t.clone()).collect();
    if told.iter().any(|told| told.contains("none (")) {
        return Told::Examples(wrong.into_iter().take(2).collect::<Vec<_>>().join("; "));
    }
    Told::Rule(if wrong.is_empty() { told.join("; ") } else { wrong.join("; ") })
}

/// All logits are equal: the output is the mean of the values of the selected keys, each of which is a power of two.
pub(super) fn ask_values(asking: &mut Asking) {
    if !asking.need(asking.capabilities.offers(Feature::Output), "output") {
        return;
    }
    asking.need(asking.capabilities.offers(Feature::ValueDim), "value_dim");
    for value_dim in [None, Some(1), Some(5), Some(8)] {
        for (n, heavy) in [(1, 1), (3, 1), (7, 2), (9, 4), (17, 16), (70, 3), (130, 64)] {
            if value_dim.is_some() && !asking.capabilities.offers(Feature::ValueDim) {
                continue;
            }
            // Keys are ranked by a channel that the queries of the attention share with no other key.
            let wanted = Draft { value_dim, heavy, ..asking.draft(n) };
            let Some(draft) = asking.fit(wanted) else { continue };
            for start in [0, n - heavy.min(n)] {
                let k = draft.scored_keys(|_, _, key| {
                    if (start..start + heavy).contains(&key) { 2f32.powi(-12) } else { 0.0 }
                });
                let first = draft.offset();
                let shape = (draft.batch, draft.kv_heads, draft.all_keys(), draft.value_dim());
                let v = Array4::from_shape_fn(shape, |(_, _, position, channel)| {
                    position.checked_sub(first).map_or(0.0, |key| (key % 8 + channel * 8) as f32)
                });
                let parts = Parts { k: Some(k), v: Some(v), ..Parts::default() };
                let numbers = [("n", n), ("H", heavy), ("dv", draft.value_dim())];
                asking.call(("", &numbers), &draft, parts, Read::Output);
            }
        }
    }
}

/// Random tensors: what they are about, keys, H, entries, KV heads, heads of each, queries, factor of q.
type Random = (&'static str, usize, usize, usize, usize, usize, usize, f32);

const RANDOM: [Random; 13] = [
    ("one head", 8, 3, 1, 1, 1, 1, 1.0),
    ("one head, every key", 8, 8, 1, 1, 1, 1, 1.0),
    ("several queries", 9, 4, 1, 1, 1, 3, 1.0),
    ("several heads", 13, 5, 1, 3, 1, 2, 1.0),
    ("grouped heads", 13, 5, 1, 2, 2, 2, 1.0),
    ("more heads in a group", 21, 6, 1, 2, 3, 1, 1.0),
    ("a batch", 12, 4, 3, 2, 1, 2, 1.0),
    ("a batch of grouped heads", 19, 7, 2, 2, 2, 3, 1.0),
    ("large logits", 16, 6, 1, 2, 1, 1, 8.0),
    ("small logits", 16, 6, 1, 2, 1, 1, 0.01),
    ("70 keys", 70, 30, 1, 2, 1, 1, 1.0),
    ("130 keys", 130, 100, 1, 1, 2, 1, 1.0),
    ("600 keys", 600, 200, 1, 1, 1, 2, 1.0),
];

/// Random tensors of each type and rule, with and without quantised labels.
pub(super) fn ask_random(asking: &mut Asking) {
    let capabilities = asking.capabilities;
    for (index, random) in RANDOM.into_iter().enumerate() {
        for (turn, &storage) in capabilities.dtypes.iter().enumerate() {
            for bits in [16, 4] {
                for causal in [false, true] {
                    let seed = (index * 8 + turn * 2) as u64 + u64::from(causal);
                    let wanted = Draft { bits, causal, storage, ..shaped(asking, random) };
                    one_random(asking, (random.0, random.7), wanted, seed);
                }
            }
        }
    }
    large_products(asking);
}

fn shaped(asking: &Asking, (_, n, heavy, batch, kv_heads, group, queries, _): Random) -> Draft {
    let (label_channels, group_factor) = (4, 2);
    Draft { heavy, batch, kv_heads, group, queries, label_channels, group_factor, ..asking.draft(n) }
}

fn one_random(asking: &mut Asking, (about, factor): (&str, f32), wanted: Draft, seed: u64) {
    let Some(draft) = asking.fit(wanted) else { return };
    let mut parts = draft.random_parts(seed);
    parts.q = parts.q.map(|q| q * factor);
    let causal = if draft.causal { ", causal" } else { "" };
    let about = format!("{about}, {}{causal}", draft.storage);
    let numbers = [("B", draft.bits), ("n", draft.all_keys())];
    asking.call((&about, &numbers), &draft, parts, Read::Output);
}

/// q·k of 8·100·100, beyond the range of f16 before it is scaled.
fn large_products(asking: &mut Asking) {
    for &storage in &asking.capabilities.dtypes.clone() {
        let wanted = Draft { heavy: 3, storage, label_channels: 4, group_factor: 2, ..asking.draft(8) };
        let Some(draft) = asking.fit(wanted) else { continue };
        let dims = draft.dims();
        let parts = Parts {
            q: Some(Array4::from_elem((dims.batch, dims.heads, dims.queries, dims.head_dim), 100.0)),
            k: Some(draft.keys_of(|_, _, key, _| 100.0 - key as f32)),
            ..Parts::default()
        };
        asking.call((&format!("large products, {storage}"), &[]), &draft, parts, Read::Output);
    }
}

/// Rows that attend to few keys, or to none, or to none of the first ones.
pub(super) fn ask_few(asking: &mut Asking) {
    if !asking.need(asking.capabilities.offers(Feature::AttentionMask), "attention_mask") {
        return;
    }
    asking.need(asking.capabilities.offers(Feature::EmptyRows), "empty_rows");
    for (n, heavy, lost) in [
        (8, 3, 0..4),
        (9, 3, 0..8),
        (40, 3, 0..16),
        (70, 5, 0..64),
        (200, 7, 0..128),
        (8, 3, 0..7),
        (8, 5, 1..8),
        (6, 5, 2..5),
        (6, 5, 0..3),
        (4, 2, 0..4),
    ] {
        let Some(draft) = asking.fit(Draft { heavy, queries: 2, ..asking.draft(n) }) else { continue };
        let excluded = |key: usize| if lost.contains(&key) { f32::NEG_INFINITY } else { 0.0 };
        let all = draft.additive((1, 1, 1), |_, _, _, key| excluded(key));
        let one = draft
            .additive((1, 1, draft.queries), |_, _, query, key| if query == 0 { excluded(key) } else { 0.0 });
        for (rows, additive) in [("every row", all), ("query 0", one)] {
            let parts = Parts { additive: Some(additive), ..draft.random_parts(n as u64) };
            let about = format!("keys {} to {} excluded, {rows}", lost.start, lost.end - 1);
            asking.call((&about, &[("n", n), ("H", heavy)]), &draft, parts, Read::Output);
        }
    }
}

/// Random tensors with everything at once: A, P with weights, a scaling, a value dimension.
pub(super) fn ask_mixed(asking: &mut Asking) {
    let offers = |feature| asking.capabilities.offers(feature);
    let (masks, previous) = (offers(Feature::AttentionMask), offers(Feature::Previous));
    let weights = offers(Feature::Weights);
    for seed in 0..8 {
        let wanted = Draft {
            heavy: 3 + seed as usize % 3,
            batch: 1 + seed as usize % 2,
            kv_heads: 2,
            group: 1 + seed as usize % 2,
            queries: 2,
            value_dim: (seed % 3 == 0).then_some(5),
            scaling: (seed % 4 == 1).then_some(0.7),
            bits: if seed % 2 == 0 { 16 } else { 4 },
            label_channels: 4,
            group_factor: 2,
            ..asking.draft(11)
        };
        let Some(draft) = asking.fit(wanted) else { continue };
        let mut parts = draft.random_parts(100 + seed);
        let (_, heads, _) = draft.additive_shape();
        let word = |entry: usize, head: usize, query: usize, key: usize| {
            (entry * 13 + head * 7 + query * 5 + key * 3 + seed as usize) % 7
        };
        if masks {
            let shape = (draft.batch, heads, draft.queries);
            parts.additive = Some(draft.additive(shape, |entry, head, query, key| {
                if word(entry, head, query, key) == 0 {
                    f32::NEG_INFINITY
                } else {
                    word(entry, head, query, key) as f32 / 2.0 - 1.0
                }
            }));
        }
        if previous && seed % 2 == 0 {
            let weight = if weights { 0.5 } else { 1.0 };
            parts.previous =
                Some(draft.previous(
                    |entry, head, query, key| {
                        if word(entry, head, query, key) == 3 { weight } else { 0.0 }
                    },
                ));
        }
        asking.call(("everything at once", &[("case", seed as usize)]), &draft, parts, Read::Output);
    }
}

/// Whether all of them are within their bounds; otherwise which are not.
pub(super) fn tell_random(measured: &[Measured]) -> Told {
    let wrong: Vec<String> =
        measured.iter().filter(|one| one.differs()).map(|one| one.question.words()).collect();
    if wrong.is_empty() {
        return Told::Rule("within bounds".into());
    }
    let shown = first_differences(measured).unwrap_or_default();
    Told::Examples(format!("out of bounds in {} of {} questions: {shown}", wrong.len(), measured.len()))
}

pub(super) fn tell_values(measured: &[Measured]) -> Told {
    Told::or_examples(measured, || "those of the selected keys".into())
}

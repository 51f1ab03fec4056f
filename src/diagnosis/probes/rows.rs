//! What each row reads: the keys of its own entry, its own query, the keys up to its position.

use ndarray::Array4;

use super::draft::Draft;
use super::question::{Asking, Read};
use super::tell::{Formula, Measured, SELF, Told, formula};
use super::tensors::Parts;
use crate::algorithm::{Lengths, Padding};
use crate::cases::Feature;
use crate::cases::capabilities::RAGGED;

/// Entries, queries and keys.
const BATCHES: [(usize, usize, usize); 6] =
    [(2, 1, 5), (3, 1, 4), (2, 2, 5), (3, 2, 9), (4, 1, 17), (2, 3, 13)];

/// In entry x key x scores highest.
pub(super) fn ask_entries(asking: &mut Asking) {
    if !asking.need(asking.capabilities.offers(Feature::Batch), "batch") {
        return;
    }
    for (batch, queries, n) in BATCHES {
        for kv_heads in [1, 2] {
            let Some(draft) = asking.fit(Draft { batch, queries, kv_heads, ..asking.draft(n) }) else {
                continue;
            };
            let score = |entry: usize, _: usize, key: usize| {
                if key == entry % n { 2.0 } else { key as f32 / n as f32 }
            };
            let numbers = [("b", draft.batch), ("m", draft.queries), ("n", n)];
            asking.scored(("", &numbers), &draft, &score, None);
        }
    }
}

/// Queries of an entry, a head and a position differ: each has one channel, and key x has channel x.
pub(super) fn ask_queries(asking: &mut Asking) {
    for (batch, kv_heads, queries) in [(1, 1, 3), (1, 2, 2), (2, 1, 3), (2, 2, 4), (3, 2, 2)] {
        let wanted = Draft { batch, kv_heads, queries, label_channels: 6, ..asking.draft(6) };
        let Some(draft) = asking.fit(wanted) else { continue };
        if !asking.need(draft.queries > 1, "many_queries")
            || !asking.need(draft.label_channels > 1, "two label channels")
        {
            continue;
        }
        let channels = draft.label_channels.min(6);
        let shape = (draft.batch, draft.heads(), draft.queries, draft.head_dim());
        let q = Array4::from_shape_fn(shape, |(entry, head, query, channel)| {
            f32::from(u8::from(channel == (entry * 2 + head + query) % channels))
        });
        let k = draft.keys_of(|_, _, key, channel| f32::from(u8::from(channel == key)));
        let numbers = [("b", draft.batch), ("h", draft.heads()), ("m", draft.queries)];
        let read = Read::Keys { offset: draft.offset(), keys: channels };
        asking.call(("", &numbers), &draft, Parts { q: Some(q), k: Some(k), ..Parts::default() }, read);
    }
}

/// Scores rise with the position, so that a row selects the last keys it sees; or fall.
pub(super) fn ask_causality(asking: &mut Asking) {
    for (queries, n) in [(1, 4), (2, 4), (3, 6), (5, 5), (4, 19), (2, 33)] {
        for (about, rising) in [("rising", true), ("falling", false)] {
            for heavy in [1, 3] {
                let Some(draft) = asking.fit(Draft { queries, heavy, causal: true, ..asking.draft(n) })
                else {
                    continue;
                };
                asking.need(draft.queries > 1, "many_queries");
                let score = |_: usize, _: usize, key: usize| {
                    let place = if rising { key } else { n - key };
                    1.0 + place as f32 / n as f32
                };
                let numbers = [("m", draft.queries), ("n", n), ("H", heavy)];
                asking.scored((about, &numbers), &draft, &score, None);
            }
        }
    }
    if !asking.need(asking.capabilities.offers(Feature::NotCausal), "not_causal") {
        return;
    }
    let Some(draft) = asking.fit(Draft { queries: 3, ..asking.draft(6) }) else { return };
    let score = |_: usize, _: usize, key: usize| 1.0 + key as f32 / 6.0;
    asking.scored(("not causal", &[("m", draft.queries), ("n", 6)]), &draft, &score, None);
}

/// Entries of unequal lengths, with the last key of each, or its first, scoring highest.
pub(super) fn ask_lengths(asking: &mut Asking) {
    if !asking.need(asking.capabilities.ragged, RAGGED) {
        return;
    }
    for (queries, n) in [(1, 9), (2, 17), (1, 70)] {
        for padding in [Padding::Nan, Padding::Large] {
            for heavy in [1, 3] {
                let wanted = Draft { batch: 4, queries, heavy, causal: true, ..asking.draft(n) };
                let Some(draft) = asking.fit(wanted) else { continue };
                asking.need(draft.batch > 1, "batch");
                let n = draft.all_keys();
                let lengths =
                    (0..draft.batch).map(|entry| [n, n - 1, n / 2, 1, 0][entry % 5].min(n)).collect();
                let k = draft.scored_keys(|entry, _, key| {
                    let place = if entry % 2 == 0 { key } else { n - key };
                    1.0 + place as f32 / n as f32
                });
                let call = draft.call(Parts { k: Some(k), ..Parts::default() });
                let lengths = Lengths::new(lengths, padding);
                let call = call.and_then(|call| call.with_lengths(lengths).ok());
                let read = Read::Keys { offset: 0, keys: n };
                let numbers = [("m", draft.queries), ("n", n), ("H", heavy)];
                asking.sequence(("", &numbers), draft.instance(), call.map(|call| vec![call]), read);
            }
        }
    }
}

/// The last key that a row sees.
const LAST: &[Formula] = &[
    ("n − m + i", |i, at| at.dims.position(i)),
    ("n − m + i + 1", |i, at| (at.dims.position(i) + 1).min(at.dims.keys - 1)),
    ("n − m + i − 1", |i, at| at.dims.position(i).wrapping_sub(1)),
    ("i", |i, _| i),
    ("n − m", |_, at| at.dims.keys - at.dims.queries),
    ("n − 1", |_, at| at.dims.keys - 1),
];

pub(super) fn tell_causality(measured: &[Measured]) -> Told {
    let number = |one: &&Measured, name: &str| {
        one.question.numbers.iter().find(|(own, _)| *own == name).map_or(0, |(_, number)| *number)
    };
    let last: Vec<&Measured> = measured
        .iter()
        .filter(|one| one.question.about == "rising" && number(one, "H") == 1)
        .filter(|one| one.question.dims().is_some_and(|dims| dims.keys == number(one, "n")))
        .collect();
    let told = |last: &str| format!("query i sees keys up to {last}");
    match formula(&last, |reading| reading.row.2, LAST) {
        Some(last) if last != LAST[0].0 => Told::Rule(told(last)),
        _ => Told::or_examples(measured, || told(LAST[0].0)),
    }
}

/// Entry x selects key x.
pub(super) fn tell_entries(measured: &[Measured]) -> Told {
    let all: Vec<&Measured> = measured.iter().collect();
    match formula(&all, |reading| reading.row.0, SELF) {
        Some(told) if told != SELF[0].0 => Told::Rule(format!("entry i reads entry {told}")),
        _ => Told::or_examples(measured, || "entry i reads entry i".into()),
    }
}

pub(super) fn tell_queries(measured: &[Measured]) -> Told {
    Told::or_examples(measured, || "its own".into())
}

pub(super) fn tell_lengths(measured: &[Measured]) -> Told {
    Told::or_examples(measured, || "keys before the entry's length".into())
}

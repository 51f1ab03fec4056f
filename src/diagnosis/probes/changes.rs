//! What implementations do otherwise, as changes that may explain readings: how labels are made, which call they come from, how A and P
//! are read.

use super::simulate::{Change, Labels, Named, Source, SourceOf, own_additive, weight};
use crate::algorithm::Row;
use crate::cases::Call;

fn ends(row: &[f32]) -> (f32, f32) {
    row.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), &x| (low.min(x), high.max(x)))
}

/// A grid: code of a number from its row's lowest value, the step, and a rounding; then a label from code, step and lowest value.
fn on_grid(
    rows: &[Vec<f32>],
    bits: usize,
    round: fn(f32) -> f32,
    label: fn(f32, f32, f32) -> f32,
) -> Vec<Vec<f32>> {
    if bits >= 16 {
        return rows.to_vec();
    }
    let top = ((1u32 << bits) - 1) as f32;
    let of = |row: &Vec<f32>| {
        let (low, high) = ends(row);
        let step = if high > low { (high - low) / top } else { 1.0 };
        row.iter().map(|x| label(round((x - low) / step).clamp(0.0, top), step, low)).collect()
    };
    rows.iter().map(of).collect()
}

const SPEC: fn(f32, f32, f32) -> f32 = |code, step, low| low + code * step;

/// Labels as they should be (SPEC §2.5).
pub(super) fn as_specified(rows: &[Vec<f32>], bits: usize, _: bool) -> Vec<Vec<f32>> {
    on_grid(rows, bits, f32::round_ties_even, SPEC)
}

const fn labels(labels: Labels) -> Change {
    Change { labels: Some(labels), ..NOTHING }
}

const NOTHING: Change = Change {
    labels: None,
    source: None,
    additive: None,
    earlier: None,
    earlier_compete: false,
    earlier_count: false,
};

/// Ways to make labels.
pub(super) const LABELS: &[Named] = &[
    ("not quantised", labels(|rows, _, _| rows.to_vec())),
    ("rounded down", labels(|rows, bits, _| on_grid(rows, bits, f32::floor, SPEC))),
    ("half steps are rounded away from zero", labels(|rows, bits, _| on_grid(rows, bits, f32::round, SPEC))),
    (
        "codes are scored in place of labels",
        labels(|rows, bits, _| on_grid(rows, bits, f32::round_ties_even, |code, _, _| code)),
    ),
    (
        "code + lowest value, without the scale",
        labels(|rows, bits, _| on_grid(rows, bits, f32::round_ties_even, |code, _, low| code + low)),
    ),
    (
        "code times step, without the zero point",
        labels(|rows, bits, _| on_grid(rows, bits, f32::round_ties_even, |code, step, _| code * step)),
    ),
    (
        "codes of channels 2j and 2j + 1 are swapped",
        labels(|rows, bits, query| {
            let swap = |row: Vec<f32>| {
                let r = row.len();
                (0..r).map(|c| row[if c ^ 1 < r { c ^ 1 } else { c }]).collect()
            };
            let made = as_specified(rows, bits, query);
            if bits >= 16 { made } else { made.into_iter().map(swap).collect() }
        }),
    ),
    ("one range serves all positions of a head", labels(of_head)),
    (
        "each position has the scale of the one before it",
        labels(|rows, bits, query| {
            if query || bits >= 16 {
                return as_specified(rows, bits, query);
            }
            let top = ((1u32 << bits) - 1) as f32;
            let step = |row: &Vec<f32>| {
                let (low, high) = ends(row);
                if high > low { (high - low) / top } else { 1.0 }
            };
            (0..rows.len())
                .map(|index| {
                    let (own, other) = (step(&rows[index]), step(&rows[index.saturating_sub(1)]));
                    let (low, _) = ends(&rows[index]);
                    rows[index].iter().map(|x| low + ((x - low) / own).round_ties_even() * other).collect()
                })
                .collect()
        }),
    ),
    (
        "symmetric, with a step of max|x| / (2^(B−1) − 1)",
        labels(|rows, bits, _| symmetric(rows, bits, f32::round_ties_even)),
    ),
    (
        "symmetric int8: a step is max|x| / 127, codes are truncated",
        labels(|rows, bits, _| if bits >= 16 { rows.to_vec() } else { symmetric(rows, 8, f32::trunc) }),
    ),
    (
        "equal channels become 0",
        labels(|rows, bits, query| {
            let of = |row: Vec<f32>| {
                let (low, high) = ends(&row);
                if low == high { vec![0.0; row.len()] } else { row }
            };
            let made = as_specified(rows, bits, query);
            if bits >= 16 { made } else { made.into_iter().map(of).collect() }
        }),
    ),
];

fn of_head(rows: &[Vec<f32>], bits: usize, _: bool) -> Vec<Vec<f32>> {
    if bits >= 16 {
        return rows.to_vec();
    }
    let (low, high) = ends(&rows.concat());
    let step = if high > low { (high - low) / ((1u32 << bits) - 1) as f32 } else { 1.0 };
    rows.iter()
        .map(|row| row.iter().map(|x| low + ((x - low) / step).round_ties_even() * step).collect())
        .collect()
}

fn symmetric(rows: &[Vec<f32>], bits: usize, round: fn(f32) -> f32) -> Vec<Vec<f32>> {
    if bits >= 16 {
        return rows.to_vec();
    }
    let top = ((1u32 << (bits - 1)) - 1).max(1) as f32;
    let of = |row: &Vec<f32>| {
        let largest = row.iter().fold(0f32, |most, x| most.max(x.abs()));
        let step = if largest > 0.0 { largest / top } else { 1.0 };
        row.iter().map(|x| round(x / step) * step).collect()
    };
    rows.iter().map(of).collect()
}

const fn source(source: SourceOf) -> Change {
    Change { source: Some(source), ..NOTHING }
}

fn keys(call: &Call) -> usize {
    call.inputs.dims().keys
}

fn batch(call: &Call) -> usize {
    call.inputs.dims().batch
}

/// The last call, and the earlier calls of its layer with their places.
fn of_layer(calls: &[Call]) -> Option<(&Call, Vec<(usize, &Call)>)> {
    let (last, before) = calls.split_last()?;
    let same = before.iter().enumerate().filter(|(_, call)| call.layer == last.layer);
    Some((last, same.collect()))
}

/// Which call a position's label comes from where labels are kept from call to call of a layer, as long as `kept` holds for a
/// call and the one before it.
fn kept_while(calls: &[Call], key: usize, kept: fn(&Call, &Call) -> bool) -> Source {
    let Some((last, before)) = of_layer(calls) else { return Source::Own };
    let (mut newer, mut found) = (last, Source::Own);
    for (other, call) in before.into_iter().rev() {
        if !kept(call, newer) {
            break;
        }
        if key < keys(call) {
            found = Source::Call(other);
        }
        newer = call;
    }
    found
}

/// Ways to carry labels from call to call.
pub(super) const SOURCES: &[Named] = &[
    (
        "the label of a position is written once and never renewed",
        source(|calls, _, key| kept_while(calls, key, |_, _| true)),
    ),
    (
        "labels of positions that a layer's call before had are not renewed, unless a call is shorter",
        source(|calls, _, key| kept_while(calls, key, |old, new| keys(new) >= keys(old))),
    ),
    (
        "labels of positions that a layer's call before had are not renewed, unless a call is not longer",
        source(|calls, _, key| kept_while(calls, key, |old, new| keys(new) > keys(old))),
    ),
    (
        "the label of a position is written once and never renewed, as long as the batch has one size",
        source(|calls, _, key| kept_while(calls, key, |old, new| batch(old) == batch(new))),
    ),
    (
        "labels of positions that a layer's call before had are not renewed, unless a call is shorter or of another batch",
        source(|calls, _, key| {
            kept_while(calls, key, |old, new| keys(new) >= keys(old) && batch(old) == batch(new))
        }),
    ),
    (
        "one set of labels serves all layers, and is written once",
        source(|calls, _, key| {
            let held = calls[..calls.len() - 1].iter().position(|call| key < keys(call));
            held.map_or(Source::Own, Source::Call)
        }),
    ),
    (
        "a call after one of another layer reads that layer's labels",
        source(|calls, _, key| {
            let Some(index) = calls.len().checked_sub(2) else { return Source::Own };
            let (before, last) = (&calls[index], &calls[index + 1]);
            if before.layer != last.layer && key < keys(before) { Source::Call(index) } else { Source::Own }
        }),
    ),
    (
        "after a layer's first call only the last m positions are labelled anew",
        source(|calls, _, key| {
            let Some((last, before)) = of_layer(calls) else { return Source::Own };
            let dims = last.inputs.dims();
            if before.is_empty() || key >= dims.keys - dims.queries {
                return Source::Own;
            }
            let wrote = |call: &Call| key < keys(call) && key >= keys(call) - call.inputs.dims().queries;
            let held = before.iter().skip(1).rev().find(|(_, call)| wrote(call)).or(before.first());
            held.map_or(
                Source::Own,
                |(index, call)| if key < keys(call) { Source::Call(*index) } else { Source::Zeros },
            )
        }),
    ),
    (
        "of the keys that are new in a later call with several queries only the first gets a label",
        source(|calls, _, key| chunk_tail(calls, key, true)),
    ),
    (
        "of the keys that are new in a later call only the first gets a label",
        source(|calls, _, key| chunk_tail(calls, key, false)),
    ),
    (
        "keys beyond the length of a layer's first call are never selected",
        source(|calls, _, key| {
            let first = of_layer(calls).and_then(|(_, before)| before.first().map(|(_, call)| keys(call)));
            if first.is_some_and(|first| key >= first) { Source::Nowhere } else { Source::Own }
        }),
    ),
    (
        "the newest key is never selected",
        source(|calls, _, key| {
            if calls.last().is_some_and(|call| key + 1 == keys(call)) { Source::Nowhere } else { Source::Own }
        }),
    ),
    (
        "the newest key is scored as zeros",
        source(|calls, _, key| {
            if calls.last().is_some_and(|call| key + 1 == keys(call)) { Source::Zeros } else { Source::Own }
        }),
    ),
    (
        "a call of a layer and of sizes that were there before ranks by the keys of then",
        source(|calls, _, _| {
            let Some((last, before)) = of_layer(calls) else { return Source::Own };
            let same = before.into_iter().find(|(_, call)| call.inputs.dims() == last.inputs.dims());
            same.map_or(Source::Own, |(index, _)| Source::Call(index))
        }),
    ),
    (
        "a batch of another size than in the call before finds that call's labels",
        source(|calls, entry, key| {
            let Some((last, before)) = of_layer(calls) else { return Source::Own };
            let Some((index, call)) = before.last() else { return Source::Own };
            let (old, new) = (call.inputs.dims(), last.inputs.dims());
            let there = old.batch != new.batch && entry < old.batch && key < old.keys;
            if there { Source::Call(*index) } else { Source::Own }
        }),
    ),
];

fn chunk_tail(calls: &[Call], key: usize, of_chunks: bool) -> Source {
    let Some((last, before)) = of_layer(calls) else { return Source::Own };
    let Some((_, call)) = before.last() else { return Source::Own };
    let (old, new) = (keys(call), last.inputs.dims());
    let missing = new.keys > old && key > old && (new.queries > 1 || !of_chunks);
    if missing { Source::Zeros } else { Source::Own }
}

const fn additive(additive: fn(&Call, Row, usize) -> f32) -> Change {
    Change { additive: Some(additive), ..NOTHING }
}

/// Ways to rank with A.
pub(super) const ADDITIVE: &[Named] = &[
    ("keys are ranked without A", additive(|_, _, _| 0.0)),
    (
        "A of entry 0 is used for every entry",
        additive(|call, (_, head, query), key| own_additive(call, (0, head, query), key)),
    ),
    (
        "A of head 0 is used for every head",
        additive(|call, (entry, _, query), key| own_additive(call, (entry, 0, query), key)),
    ),
    (
        "A of query 0 is used for every query",
        additive(|call, (entry, head, _), key| own_additive(call, (entry, head, 0), key)),
    ),
    (
        "finite values of A do not count",
        additive(|call, row, key| {
            let own = own_additive(call, row, key);
            if own == f32::NEG_INFINITY { own } else { 0.0 }
        }),
    ),
    (
        "large negative values of A exclude a key",
        additive(|call, row, key| {
            let own = own_additive(call, row, key);
            if own < -10_000.0 { f32::NEG_INFINITY } else { own }
        }),
    ),
    (
        "excluded keys are selected where candidates are too few",
        additive(|call, row, key| own_additive(call, row, key).max(-10_000.0)),
    ),
];

/// Ways to treat P.
pub(super) const EARLIER: &[Named] = &[
    ("keys of P stay candidates and take places in H", Change { earlier_compete: true, ..NOTHING }),
    ("keys of P count within H", Change { earlier_count: true, ..NOTHING }),
    (
        "P of entry 0 decides in every entry which keys are candidates",
        Change {
            earlier: Some(|mask, (_, head, query), key| weight(mask, (0, head, query), key)),
            ..NOTHING
        },
    ),
    (
        "P of head 0 decides in every head which keys are candidates",
        Change {
            earlier: Some(|mask, (entry, _, query), key| weight(mask, (entry, 0, query), key)),
            ..NOTHING
        },
    ),
    (
        "a key in P of any head is excluded for every head",
        Change {
            earlier: Some(|mask, (entry, _, query), key| {
                (0..mask.weights().dim().1)
                    .map(|head| weight(mask, (entry, head, query), key))
                    .fold(0.0, f32::max)
            }),
            ..NOTHING
        },
    ),
];

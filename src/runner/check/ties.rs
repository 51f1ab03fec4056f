//! Keys that tie for certain: whatever the arithmetic, as long as it is the same for each key. Their label rows are equal (−0
//! and +0 are), or their sums of products are exact in f32 and equal; and so is what A adds. A cosine depends on more than a sum of
//! products, channel weights round it, and keys that are forced tie with none.

use std::collections::HashMap;

use ndarray::ArrayView1;

use crate::algorithm::labels::{Labels, labels_of};
use crate::algorithm::{HeadMode, Mask, Row, Rules, ScoreRule};
use crate::cases::{Answer, Call, Entry, Instance, LabelRounding, RoundingModel};

/// Whole numbers up to this are exact in f32.
const EXACT: f32 = 16_777_216.0;

/// Keys of one row that tie, of which some are selected and some are not.
pub(super) struct Ties {
    pub(super) row: Row,
    pub(super) selected: Vec<usize>,
    pub(super) left_out: Vec<usize>,
}

/// Where an answer had to choose between keys that tie. None where labels are not exact, or nothing is ranked.
pub(super) fn ties(instance: &Instance, call: &Call, answer: &Answer, model: RoundingModel) -> Vec<Ties> {
    let Some(entries) = call.entries() else {
        return found(instance, call, answer, model).unwrap_or_default();
    };
    let of_entry = |entry: &Entry| {
        let alone = entry.call.as_ref().and_then(|call| found(instance, call, &entry.answer(answer), model));
        let moved = |ties: Ties| Ties { row: entry.row_of_call(ties.row), ..ties };
        alone.unwrap_or_default().into_iter().map(moved).collect::<Vec<_>>()
    };
    entries.iter().flat_map(of_entry).collect()
}

fn found(instance: &Instance, call: &Call, answer: &Answer, model: RoundingModel) -> Option<Vec<Ties>> {
    let (inputs, dims, selection) = (&call.inputs, call.inputs.dims(), instance.selection);
    let exact = model.labels == LabelRounding::Exact || !selection.label_bits.quantises();
    let heavy_size = selection.heavy_size.resolve(dims.keys);
    let short = selection.dense_fallback && dims.keys - dims.queries <= heavy_size;
    if !exact || short || heavy_size >= dims.keys || instance.dense_layers.contains(&call.layer) {
        return None;
    }
    let before = instance.before(call).ok().filter(|before| !before.is_full())?;
    let channels = instance.channels(call.layer).ok()?;
    let label_channels = selection.group_factor.label_channels(dims.head_dim).ok()?;
    let bits = selection.bits();
    let of_batch = |b| labels_of(inputs, channels, label_channels, bits, (b, 0..dims.heads)).ok();
    let labels = (0..dims.batch).map(of_batch).collect::<Option<Vec<_>>>()?;
    let of_row = |row: Row| {
        let heads = if selection.heads == HeadMode::PerHead { row.1..row.1 + 1 } else { 0..dims.heads };
        in_row(call, selection.rules, &labels[row.0], heads, (&before, answer), row)
    };
    Some(dims.rows().flat_map(of_row).collect())
}

fn in_row(
    call: &Call,
    rules: Rules,
    labels: &Labels,
    heads: std::ops::Range<usize>,
    (before, answer): (&Mask, &Answer),
    row @ (b, _, i): Row,
) -> Vec<Ties> {
    let mut groups: HashMap<Vec<u32>, Vec<usize>> = HashMap::new();
    let additive: Vec<_> = heads.clone().map(|head| call.inputs.additive(b, head, i)).collect();
    let position = call.inputs.dims().position(i);
    let by_sums = rules.score != ScoreRule::Cosine && !rules.channel_weights;
    for key in 0..call.inputs.dims().keys {
        let excluded = rules.forced.holds(key, position)
            || additive.iter().any(|additive| additive.at(key) == f32::NEG_INFINITY)
            || heads.clone().any(|head| before.attends(b, head, i, key));
        if excluded {
            continue;
        }
        let mut sign = Vec::new();
        for (head, additive) in heads.clone().zip(&additive) {
            let (q, k) = (labels.queries(head), labels.keys(head));
            sign.extend(signature(q.column(i), k.column(key), by_sums));
            sign.push(bits(additive.at(key)));
        }
        groups.entry(sign).or_default().push(key);
    }
    let chosen = |key: &usize| answer.mask.attends(row.0, row.1, row.2, *key);
    let tied = groups.into_values().filter_map(|keys| {
        let (selected, left_out): (Vec<_>, Vec<_>) = keys.into_iter().partition(chosen);
        (!selected.is_empty() && !left_out.is_empty()).then_some(Ties { row, selected, left_out })
    });
    tied.collect()
}

/// What two keys have in common where their scores are the same for certain: the sum of products where it is exact, all
/// labels otherwise, and everywhere if not `by_sums`.
fn signature(q: ArrayView1<f32>, k: ArrayView1<f32>, by_sums: bool) -> Vec<u32> {
    let whole = by_sums && q.iter().chain(&k).all(|x| x.fract() == 0.0);
    let most: f32 = q.iter().zip(&k).map(|(q, k)| (q * k).abs()).sum();
    if whole && most < EXACT {
        return vec![bits(q.iter().zip(&k).map(|(q, k)| q * k).sum())];
    }
    // Longer than a sum, so that no sum is taken for labels.
    k.iter().map(|&x| bits(x)).chain([0]).collect()
}

/// The bits of a number, the same for −0 and +0.
fn bits(x: f32) -> u32 {
    if x == 0.0 { 0 } else { x.to_bits() }
}

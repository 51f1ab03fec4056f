//! Attention that is another one (SPEC §2.11): over another mask, other inputs, or rows taken for others.

use std::sync::Arc;

use ndarray::{Array4, Axis as Dimension, concatenate};

use super::labels::LabelChange;
use super::places::{Axis, Map};
use crate::algorithm::{Dims, InputParts, Inputs, Mask, Row, Storage};
use crate::behaviours::Prediction;
use crate::behaviours::attending::AttentionView;

/// Attention over more numbers than this is not computed anew for rows that stand in for others.
const MOST_NUMBERS: usize = 1 << 24;

/// Logits that are lower than others by more than this have weights that f32 hardly holds.
const FAR: f64 = 60.0;

/// What the attention does otherwise.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum OutputChange {
    /// An output row is that of another place.
    Of(Axis, Map),
    /// Entry 0 gets the output of the last entry, the others get zeros.
    Folded,
    /// Queries are those of another place.
    Queries(LabelChange),
    /// Each of H places that is not filled attends to the last key.
    PadsReadLast(Pads),
    /// The softmax runs over all keys; those attended to are divided by their weights, the others dropped.
    SoftmaxOverAll,
    /// Keys of zeros after the last key, up to a multiple, take part.
    ZerosUpTo(usize),
    /// Only attended keys of the last tile count, where there is more than one.
    LastTileOnly(usize),
    /// Only attended keys of the first tile count, where there is more than one.
    FirstTileOnly(usize),
    /// Only the first so many attended keys of a row count.
    FirstAttendedOnly(usize),
    /// Attended keys of both halves count the same.
    HalvesAveraged(Split),
    /// The log-sum-exp is one to base 2.
    LseBaseTwo,
    /// Of each output row only the first numbers are written; the others may be anything.
    Unwritten(Written),
    /// NaN where the mask holds no key of the first tile; with `additive` none that A leaves, either.
    NanWithoutFirstTile {
        /// How many keys.
        tile: usize,
        /// Whether keys that A excludes do not count.
        additive: bool,
    },
    /// In f16, NaN where q · k of an attended key is rounded to ∞ before it is scaled.
    NanBeyondF16,
    /// Values are addressed with rows of d numbers.
    ValuesByKeyStride,
    /// The same, where the rows of all KV heads of a token lie together, and what is beyond the end is 0.
    ValuesByKeyStrideOfTokens,
    /// Logits before A are capped: c · tanh(w / c).
    Capped(f64),
}

/// What is split in two halves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// All keys: the first ⌊n / 2⌋ and the others.
    Keys,
    /// The attended keys of a row: the first ⌈count / 2⌉ and the others.
    Attended,
}

/// Which numbers of an output row are written, those that hold more first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Written {
    /// The first ⌈dv / 2⌉.
    HalfRoundedUp,
    /// The first ⌊dv / 2⌋.
    Half,
    /// The first d.
    HeadDim,
    /// The first so many.
    Numbers(usize),
}

impl Written {
    /// How many.
    pub fn of(self, dims: &Dims) -> usize {
        match self {
            Self::HalfRoundedUp => dims.value_dim.div_ceil(2),
            Self::Half => dims.value_dim / 2,
            Self::HeadDim => dims.head_dim,
            Self::Numbers(count) => count,
        }
        .min(dims.value_dim)
    }

    fn words(self) -> String {
        match self {
            Self::HalfRoundedUp => "⌈dv / 2⌉".into(),
            Self::Half => "⌊dv / 2⌋".into(),
            Self::HeadDim => "d".into(),
            Self::Numbers(count) => count.to_string(),
        }
    }
}

/// How places that no key fills read the last key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pads {
    /// Together as the last key itself, once.
    Once,
    /// With its A, each with weight 1.
    Kept,
    /// As the last key itself where the mask holds it, otherwise without A.
    Gathered,
    /// Without A, each with weight 1, beside the last key itself.
    Raw,
}

impl OutputChange {
    /// In words: a clause.
    pub fn words(self) -> String {
        match self {
            Self::Of(axis, map) => format!("{} gets the output of {}", axis.each(), map.words(axis)),
            Self::Folded => "entry 0 gets the output of the last entry, and the others are zeros".into(),
            Self::Queries(change) => format!("in the attention {}", change.words()),
            Self::FirstAttendedOnly(count) => {
                format!("of the attended keys of a row the output holds the first {count} alone")
            }
            Self::LseBaseTwo => "the log-sum-exp is to base 2; expected a natural logarithm".into(),
            Self::Unwritten(written) => format!(
                "of each output row only the first {} numbers are those of the attention; the others hold something else",
                written.words()
            ),
            Self::PadsReadLast(Pads::Once) => {
                "a row with places of H that no key fills attends to the last key as well".into()
            }
            Self::PadsReadLast(pads) => {
                let additive = if pads == Pads::Kept { "" } else { ", without the additive mask" };
                format!("each place of H that no key fills attends to the last key in the output{additive}")
            }
            Self::SoftmaxOverAll => {
                "the softmax runs over all keys, and those not attended to are dropped without renormalising"
                    .into()
            }
            Self::ZerosUpTo(tile) => format!(
                "zeros beyond the last key, up to a multiple of {tile}, take part in the softmax with a logit of 0"
            ),
            Self::LastTileOnly(tile) => {
                format!("where n > {tile}, the output attends to keys of the last tile of {tile} alone")
            }
            Self::FirstTileOnly(tile) => {
                format!("where n > {tile}, the output attends to keys of the first {tile} alone")
            }
            Self::HalvesAveraged(split) => {
                let of = if split == Split::Keys { "the keys" } else { "the attended keys of a row" };
                format!("outputs of the first and the second half of {of} are averaged without their weights")
            }
            Self::NanWithoutFirstTile { tile, .. } => {
                format!("the output is NaN where none of the first {tile} keys is attended to")
            }
            Self::NanBeyondF16 => {
                "in f16 the output is NaN where q · k of an attended key is beyond the type before it is scaled".into()
            }
            Self::ValuesByKeyStride | Self::ValuesByKeyStrideOfTokens => {
                "values are read with rows of d numbers, where they have dv".into()
            }
            Self::Capped(cap) => format!("logits are capped at {cap}, by {cap} · tanh(w / {cap})"),
        }
    }

    /// A view of the attention with this change as well; `None` where that cannot be computed.
    pub fn apply(self, mut view: AttentionView, prediction: &Prediction) -> Option<AttentionView> {
        let (dims, own) = (view.inputs.dims(), prediction.attending.dims());
        // A softmax over all keys has each row in an entry of its own, and slots that are attended to unwritten are more keys.
        let same_rows = (dims.batch, dims.heads, dims.queries) == (own.batch, own.heads, own.queries);
        if !same_rows || (matches!(self, Self::PadsReadLast(_)) && dims.keys != own.keys) {
            return None;
        }
        match self {
            Self::Of(axis, map) => {
                let order = (0..axis.count(&dims)).map(|at| map.of(at, axis.count(&dims), &dims)).collect();
                select(&mut view, axis, order)?;
            }
            Self::Folded => {
                select(&mut view, Axis::Entry, vec![dims.batch - 1; dims.batch])?;
                reweigh(&mut view, |_, (b, ..), _, weight| if b == 0 { weight } else { 0.0 })?;
            }
            Self::Queries(change) => {
                let old = view.inputs.parts().q.clone();
                let q = Array4::from_shape_fn(old.dim(), |(b, head, i, channel)| {
                    let (b, head, i) = change.query((b, head, i), &dims);
                    old[[b, head, i, channel]]
                });
                with_parts(&mut view, |parts| parts.q = q)?;
            }
            Self::PadsReadLast(pads) => pads_read_last(&mut view, prediction, pads)?,
            Self::ZerosUpTo(tile) => add_zeros(&mut view, dims.keys.next_multiple_of(tile) - dims.keys)?,
            Self::LastTileOnly(tile) => {
                let first = (dims.keys - 1) / tile * tile;
                reweigh(&mut view, |_, _, key, weight| if key >= first { weight } else { 0.0 })?;
            }
            Self::FirstTileOnly(tile) => {
                reweigh(&mut view, |_, _, key, weight| if key < tile { weight } else { 0.0 })?;
            }
            Self::FirstAttendedOnly(count) => {
                let mut weights = view.mask.weights().clone();
                for row @ (b, head, i) in dims.rows() {
                    for (key, _) in view.mask.row(row).skip(count) {
                        weights[[b, head, i, key]] = 0.0;
                    }
                }
                view.mask = Mask::from_weights(weights, &dims).ok()?;
            }
            Self::LseBaseTwo => view.lse_factor = std::f64::consts::LOG2_E,
            Self::Unwritten(written) => view.written = Some(written.of(&dims)),
            Self::HalvesAveraged(split) => halves_averaged(&mut view, split)?,
            Self::SoftmaxOverAll => view = view.over_all(false).ok()?,
            Self::NanWithoutFirstTile { tile, additive } => {
                let attends = |view: &AttentionView, (b, head, i): Row| {
                    let left = view.inputs.additive(b, head, i);
                    let counts = |key: usize| !additive || left.at(key) > f32::NEG_INFINITY;
                    (0..tile.min(dims.keys)).any(|key| view.mask.attends(b, head, i, key) && counts(key))
                };
                view.nan = dims.rows().filter(|row| !attends(&view, *row)).collect();
            }
            Self::NanBeyondF16 => {
                if view.inputs.storage() == Storage::F16 {
                    view.nan = dims.rows().filter(|row| overflows(&view, *row)).collect();
                }
            }
            Self::ValuesByKeyStride => {
                let v = &view.inputs.parts().v;
                let (b, heads, n, dv) = v.dim();
                let flat: Vec<f32> = v.iter().copied().collect();
                let v = Array4::from_shape_fn((b, heads, n, dv), |(b, head, key, at)| {
                    let start = (b * heads + head) * n * dv;
                    let own = key * dims.head_dim + at;
                    flat[start + own % (n * dv)]
                });
                with_parts(&mut view, |parts| parts.v = v)?;
            }
            Self::ValuesByKeyStrideOfTokens => {
                let v = &view.inputs.parts().v;
                let (batch, heads, n, dv) = v.dim();
                let v = Array4::from_shape_fn((batch, heads, n, dv), |(b, head, key, at)| {
                    let place = (key * heads + head) * dims.head_dim + at;
                    let (token, rest) = (place / (heads * dv), place % (heads * dv));
                    if token < n { v[[b, rest / dv, token, rest % dv]] } else { 0.0 }
                });
                with_parts(&mut view, |parts| parts.v = v)?;
            }
            Self::Capped(cap) => capped(&mut view, cap)?,
        }
        Some(view)
    }
}

fn with_parts(view: &mut AttentionView, change: impl FnOnce(&mut InputParts)) -> Option<()> {
    let mut parts = view.inputs.parts().clone();
    change(&mut parts);
    view.inputs = Arc::new(Inputs::new(parts).ok()?);
    Some(())
}

fn reweigh(view: &mut AttentionView, weight: impl Fn(&AttentionView, Row, usize, f32) -> f32) -> Option<()> {
    let weights = Array4::from_shape_fn(view.mask.weights().dim(), |(b, head, i, key)| {
        weight(view, (b, head, i), key, view.mask.weight(b, head, i, key))
    });
    view.mask = Mask::from_weights(weights, &view.inputs.dims()).ok()?;
    Some(())
}

/// A of every row, with causality.
fn explicit(inputs: &Inputs, dims: &Dims) -> Array4<f32> {
    Array4::from_shape_fn(dims.mask_shape(), |(b, head, i, key)| inputs.additive(b, head, i).at(key))
}

/// Rows of other places, one for each place.
fn select(view: &mut AttentionView, axis: Axis, order: Vec<usize>) -> Option<()> {
    let dims = view.inputs.dims();
    if dims.batch * dims.heads * dims.queries * dims.keys > MOST_NUMBERS {
        return None;
    }
    let mask = explicit(&view.inputs, &dims);
    let parts = view.inputs.parts().clone();
    let at = match axis {
        Axis::Entry => 0,
        Axis::Head => 1,
        Axis::Query => 2,
    };
    let selected = |tensor: &Array4<f32>| tensor.select(Dimension(at), &order);
    let of_keys = |tensor: &Array4<f32>| match axis {
        Axis::Entry => tensor.select(Dimension(0), &order),
        Axis::Head => {
            let heads: Vec<usize> = order.iter().map(|&head| dims.kv_head(head)).collect();
            tensor.select(Dimension(1), &heads)
        }
        Axis::Query => tensor.clone(),
    };
    let inputs = Inputs::new(InputParts {
        q: selected(&parts.q),
        k: of_keys(&parts.k),
        v: of_keys(&parts.v),
        attention_mask: Some(selected(&mask)),
        causal: false,
        ..parts
    });
    view.mask = Mask::from_weights(selected(view.mask.weights()), &dims).ok()?;
    view.inputs = Arc::new(inputs.ok()?);
    Some(())
}

/// Places that no key fills attend to the last key.
fn pads_read_last(view: &mut AttentionView, prediction: &Prediction, pads: Pads) -> Option<()> {
    let dims = view.inputs.dims();
    // What gathers does not know that the mask was full before.
    let full = pads == Pads::Gathered && prediction.before.is_full() && !prediction.dense;
    if prediction.ranked.is_none() && !full {
        return Some(());
    }
    let (wanted, last) = (prediction.wanted_keys.min(dims.keys), dims.keys - 1);
    let mut mask = explicit(&view.inputs, &dims);
    let mut weights = view.mask.weights().clone();
    for (b, head, i) in dims.rows() {
        let selected =
            |key: &usize| view.mask.attends(b, head, i, *key) && !prediction.before.attends(b, head, i, *key);
        let missing = wanted.saturating_sub((0..dims.keys).filter(selected).count());
        if missing == 0 {
            continue;
        }
        let missing = missing as f32;
        let (own, additive) = (weights[[b, head, i, last]], mask[[b, head, i, last]]);
        let (weight, additive) = match pads {
            Pads::Once if own != 0.0 => (own, additive),
            Pads::Once => (1.0, additive),
            Pads::Kept if own == 0.0 => (1.0 / missing, additive),
            Pads::Kept => (1.0 / (1.0 / own + missing), additive),
            Pads::Gathered if own != 0.0 => (own / (1.0 + missing), additive),
            // Below that the last key itself counts for nothing beside the places, whose weight would leave f32.
            Pads::Raw if own != 0.0 && additive > -80.0 => {
                (1.0 / (1.0 / own + missing * (-additive).exp()), additive)
            }
            Pads::Gathered | Pads::Raw => (1.0 / missing, 0.0),
        };
        weights[[b, head, i, last]] = weight;
        mask[[b, head, i, last]] = additive;
    }
    view.mask = Mask::from_weights(weights, &dims).ok()?;
    with_parts(view, |parts| {
        parts.attention_mask = Some(mask);
        parts.causal = false;
    })
}

/// Keys of zeros, attended to, after the others.
fn add_zeros(view: &mut AttentionView, more: usize) -> Option<()> {
    if more == 0 {
        return Some(());
    }
    let dims = view.inputs.dims();
    let parts = view.inputs.parts().clone();
    let zeros = |tensor: &Array4<f32>| {
        let (b, heads, _, size) = tensor.dim();
        let added = Array4::zeros((b, heads, more, size));
        concatenate(Dimension(2), &[tensor.view(), added.view()]).ok()
    };
    let joined = |rows: Array4<f32>, fill: f32| {
        let (b, h, m, _) = dims.mask_shape();
        let added = Array4::from_elem((b, h, m, more), fill);
        concatenate(Dimension(3), &[rows.view(), added.view()]).ok()
    };
    let attention_mask = joined(explicit(&view.inputs, &dims), 0.0)?;
    // A row that attends to nothing is left alone.
    let mut weights = joined(view.mask.weights().clone(), 1.0)?;
    for row @ (b, head, i) in dims.rows() {
        let additive = view.inputs.additive(b, head, i);
        if !view.mask.row(row).any(|(key, _)| additive.at(key) > f32::NEG_INFINITY) {
            weights.slice_mut(ndarray::s![b, head, i, dims.keys..]).fill(0.0);
        }
    }
    let inputs = Inputs::new(InputParts {
        k: zeros(&parts.k)?,
        v: zeros(&parts.v)?,
        attention_mask: Some(attention_mask),
        causal: false,
        ..parts
    });
    view.inputs = Arc::new(inputs.ok()?);
    view.mask = Mask::from_weights(weights, &view.inputs.dims()).ok()?;
    Some(())
}

/// Whether q · k of a key that a row attends to is rounded to ∞.
fn overflows(view: &AttentionView, row @ (b, head, i): Row) -> bool {
    let (queries, keys, additive) =
        (view.inputs.queries(b, head), view.inputs.keys(b, head), view.inputs.additive(b, head, i));
    let q = queries.row(i);
    view.mask.row(row).any(|(key, _)| {
        let dot: f64 = q.iter().zip(keys.row(key)).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum();
        additive.at(key) > f32::NEG_INFINITY && Storage::F16.round(dot as f32) == f32::INFINITY
    })
}

/// q · k · scaling of a row.
fn products(inputs: &Inputs, (b, head, i): Row) -> Vec<f64> {
    let (queries, scaling) = (inputs.queries(b, head), inputs.scaling());
    let q = queries.row(i);
    let dot = |k: ndarray::ArrayView1<f32>| -> f64 {
        q.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum()
    };
    inputs.keys(b, head).outer_iter().map(|k| dot(k) * scaling).collect()
}

/// Weights with which the sums over the two halves of the keys are the same.
fn halves_averaged(view: &mut AttentionView, split: Split) -> Option<()> {
    let dims = view.inputs.dims();
    let whole = (view.inputs.clone(), view.mask.clone());
    let mut weights = view.mask.weights().clone();
    let mut halved = Vec::new();
    let (mut mask, mut raises) = (explicit(&view.inputs, &dims), false);
    for row @ (b, head, i) in dims.rows() {
        let (products, additive) = (products(&view.inputs, row), view.inputs.additive(b, head, i));
        let logit = |key: usize| products[key] + f64::from(additive.at(key));
        // The first key of the second half.
        let half = match split {
            Split::Keys => dims.keys / 2,
            Split::Attended => {
                let first = view.mask.row(row).count().div_ceil(2);
                view.mask.row(row).nth(first).map_or(dims.keys, |(key, _)| key)
            }
        };
        let mut peaks = [f64::NEG_INFINITY; 2];
        for (key, _) in view.mask.row(row) {
            let peak = &mut peaks[usize::from(key >= half)];
            *peak = peak.max(logit(key));
        }
        let largest = peaks[0].max(peaks[1]);
        if largest == f64::NEG_INFINITY {
            continue;
        }
        // A half that is far below the other is raised to it: its weights would be too small for their type.
        let raised = peaks.map(|peak| peak.is_finite() && largest - peak > FAR);
        let top = |half: usize| if raised[half] { peaks[half] } else { largest };
        let mut sums = [0.0f64; 2];
        let share =
            |key: usize, weight: f32| (logit(key) - top(usize::from(key >= half))).exp() / f64::from(weight);
        let (mut held, mut left) = ([false; 2], [false; 2]);
        for (key, weight) in view.mask.row(row) {
            held[usize::from(key >= half)] = true;
            left[usize::from(key >= half)] |= logit(key) > f64::NEG_INFINITY;
            sums[usize::from(key >= half)] += share(key, weight);
        }
        // The half of a row that attends to nothing that A leaves is zeros, which count.
        if held == [true; 2] && left[0] != left[1] {
            halved.push(row);
        }
        for (key, weight) in view.mask.row(row) {
            let sum = sums[usize::from(key >= half)];
            weights[[b, head, i, key]] = (f64::from(weight) * sum) as f32;
            let part = usize::from(key >= half);
            if raised[part] {
                raises = true;
                mask[[b, head, i, key]] = (logit(key) - peaks[part] + largest - products[key]) as f32;
            }
        }
    }
    if raises {
        with_parts(view, |parts| {
            parts.attention_mask = Some(mask);
            parts.causal = false;
        })?;
    }
    // The sums of both halves are known to the log-sum-exp.
    view.lse_of = Some(whole);
    view.mask = Mask::from_weights(weights, &dims).ok()?;
    view.halved = halved;
    Some(())
}

/// A that turns every logit into its capped one.
fn capped(view: &mut AttentionView, cap: f64) -> Option<()> {
    let dims = view.inputs.dims();
    if dims.batch * dims.heads * dims.queries * dims.keys > MOST_NUMBERS {
        return None;
    }
    let mut mask = explicit(&view.inputs, &dims);
    for row @ (b, head, i) in dims.rows() {
        for (key, product) in products(&view.inputs, row).into_iter().enumerate() {
            let own = &mut mask[[b, head, i, key]];
            *own = (f64::from(*own) + cap * (product / cap).tanh() - product) as f32;
        }
    }
    with_parts(view, |parts| {
        parts.attention_mask = Some(mask);
        parts.causal = false;
    })
}

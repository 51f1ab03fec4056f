//! What rows would select if one thing were otherwise: labels, the calls that labels come from, A or P. A change that gives every
//! reading of a wire says how the wire differs. It covers the published score and heads that rank alone; elsewhere nothing is said.

use super::changes::as_specified;
use super::question::{Asked, Read, Shown};
use super::tell::Measured;
use crate::algorithm::{HeadMode, Mask, Row, ScoreRule};
use crate::cases::{Call, Sequence};

/// Where the label of a key comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// The call's own keys.
    Own,
    /// The keys of an earlier call.
    Call(usize),
    /// Nowhere: it is zeros.
    Zeros,
    /// The key cannot be selected.
    Nowhere,
}

/// Labels of all positions of a head, from their channels: bits, and whether they are of queries.
pub(super) type Labels = fn(&[Vec<f32>], usize, bool) -> Vec<Vec<f32>>;

/// The source of a label, by the calls so far, entry and position.
pub(super) type SourceOf = fn(&[Call], usize, usize) -> Source;

/// One thing that is otherwise; what is `None` is as it should be.
#[derive(Clone, Copy, Default)]
pub(super) struct Change {
    pub labels: Option<Labels>,
    pub source: Option<SourceOf>,
    /// A without causality, by row and key.
    pub additive: Option<fn(&Call, Row, usize) -> f32>,
    /// P and what earlier maskers add, by row and key.
    pub earlier: Option<fn(&Mask, Row, usize) -> f32>,
    /// Keys of P are candidates, too.
    pub earlier_compete: bool,
    /// Keys of P count within H.
    pub earlier_count: bool,
}

/// A change, in words.
pub(super) type Named = (&'static str, Change);

/// Scores closer than this share of the larger one are left open.
const CLOSE: f64 = 1e-3;

/// The first change that gives every reading.
pub(super) fn explained(measured: &[Measured], changes: &[Named]) -> Option<&'static str> {
    let wrong = measured.iter().any(|one| one.found != one.expected);
    let fits = |change: &Change| measured.iter().all(|one| gives(one, change).unwrap_or(false));
    changes.iter().find(|(_, change)| wrong && fits(change)).map(|(name, _)| *name)
}

/// Whether a change gives the readings of a question. `None` where this cannot be told.
fn gives(one: &Measured, change: &Change) -> Option<bool> {
    let (Asked::Sequence(sequence), Read::Keys { offset, keys }) = (&one.question.asked, one.question.read)
    else {
        return None;
    };
    let selection = &sequence.instance.selection;
    if selection.heads != HeadMode::PerHead || selection.rules.score != ScoreRule::Dot {
        return None;
    }
    for reading in &one.found {
        let Shown::Keys(found) = &reading.shows else { return None };
        match selected(sequence, reading.call, reading.row, change)? {
            Some(rows) => {
                let rows: Vec<usize> = rows
                    .into_iter()
                    .filter_map(|key| key.checked_sub(offset))
                    .filter(|key| *key < keys)
                    .collect();
                if rows != *found {
                    return Some(false);
                }
            }
            None => continue,
        }
    }
    Some(true)
}

/// The keys that a row attends to. The inner `None` where scores are too close; the outer one where channels are missing.
fn selected(sequence: &Sequence, index: usize, row: Row, change: &Change) -> Option<Option<Vec<usize>>> {
    let (entry, head, query) = row;
    let instance = &sequence.instance;
    let selection = &instance.selection;
    let call = sequence.calls.get(index)?;
    let dims = call.inputs.dims();
    let r = selection.group_factor.label_channels(dims.head_dim).ok()?;
    let channels = instance.channels(call.layer).ok()?.row(head, &dims).get(..r)?.to_vec();
    let bits = selection.bits().map(|bits| usize::from(bits.get()));
    let of = |tensor: ndarray::ArrayView2<f32>, row: usize| -> Vec<f32> {
        channels.iter().map(|&channel| tensor[(row, channel)]).collect()
    };
    let own = |call: &Call, entry: usize| {
        let dims = call.inputs.dims();
        let keys = call.inputs.keys(entry.min(dims.batch - 1), dims.kv_head(head));
        (0..dims.keys).map(|key| of(keys, key)).collect::<Vec<_>>()
    };
    let queries = call.inputs.queries(entry, head);
    let queries: Vec<Vec<f32>> = (0..dims.queries).map(|query| of(queries, query)).collect();
    let label = change.labels.unwrap_or(as_specified);
    let q = label(&queries, bits[0], true).get(query)?.clone();
    let sources: Vec<Source> = (0..dims.keys)
        .map(|key| change.source.map_or(Source::Own, |source| source(&sequence.calls[..=index], entry, key)))
        .collect();
    let mut labels = label(&own(call, entry), bits[1], false);
    for (key, source) in sources.iter().enumerate() {
        match source {
            Source::Own | Source::Nowhere => {}
            Source::Zeros => labels[key].fill(0.0),
            Source::Call(other) => {
                let other = label(&own(sequence.calls.get(*other)?, entry), bits[1], false);
                labels[key] = other.get(key).cloned().unwrap_or_else(|| vec![0.0; r]);
            }
        }
    }
    let factor = selection.rules.factor.get(r, dims.head_dim);
    let before = instance.before(call).ok()?;
    let earlier = |key| change.earlier.unwrap_or(weight)(&before, row, key);
    let additive = change.additive.unwrap_or(own_additive);
    let mut scores: Vec<(f64, usize)> = Vec::new();
    for key in 0..dims.keys {
        let seen = !call.inputs.parts().causal || key <= dims.position(query);
        let added = f64::from(additive(call, row, key));
        let free = earlier(key) == 0.0 || change.earlier_compete;
        if seen && added > f64::NEG_INFINITY && free && sources[key] != Source::Nowhere {
            let dot: f64 = q.iter().zip(&labels[key]).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            scores.push((dot * factor + added, key));
        }
    }
    scores.sort_by(|a, b| b.0.total_cmp(&a.0));
    let held = (0..dims.keys).filter(|&key| earlier(key) != 0.0).count();
    let mut heavy = selection.heavy_size.resolve(dims.keys);
    if change.earlier_count {
        heavy = heavy.saturating_sub(held);
    }
    if let (Some(last), Some(next)) =
        (heavy.checked_sub(1).and_then(|last| scores.get(last)), scores.get(heavy))
    {
        let largest = scores.first().map_or(0.0, |first| first.0.abs()).max(last.0.abs());
        if last.0 - next.0 <= CLOSE * largest {
            return Some(None);
        }
    }
    let mut kept: Vec<usize> = scores.into_iter().take(heavy).map(|(_, key)| key).collect();
    let attended = |key: &usize| before.attends(entry, head, query, *key);
    kept.extend((0..dims.keys).filter(attended));
    kept.sort_unstable();
    kept.dedup();
    Some(Some(kept))
}

/// A without causality.
pub(super) fn own_additive(call: &Call, (entry, head, query): Row, key: usize) -> f32 {
    call.inputs.parts().attention_mask.as_ref().map_or(0.0, |mask| {
        let (b, h, m, n) = mask.dim();
        mask[(entry.min(b - 1), head.min(h - 1), query.min(m - 1), key.min(n - 1))]
    })
}

/// What a row has at a key in P.
pub(super) fn weight(mask: &Mask, (entry, head, query): Row, key: usize) -> f32 {
    mask.weight(entry, head, query, key)
}

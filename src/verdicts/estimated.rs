//! Certificates of rows with many more keys than H (SPEC §5). What becomes of a key depends on the ends of its score and on two
//! order statistics, so most keys need no score: one that cannot come near the H-th largest is out. To find the others every dot product
//! of labels is estimated in f32, a few keys at a time, while their labels are in the cache; only where an estimate is close to the
//! (H+1)-th largest or above it are the ends derived. The certificate is the same to the last bit.
//!
//! With M = Σ|q_c| · max_j|k_jc| over the channels c, which is at least Σ|q_c k_jc| for each key j, and for any order of summation, q rounded
//! to f32 included,
//!
//! > |estimate − q·k| ≤ E = γ_{r+8}·M + r·η
//!
//! (see `bounds`; what is left of γ_{r+8} covers what f64 rounds here). A score lies within s·q·k ± R, where R is between 0 and its value
//! R_M at q·k = Σ|q_c k_c| = M: each step of its derivation grows with both. Let t be the (H+1)-th largest estimate of a candidate. Then H + 1
//! of them have s·q·k ≥ s(t − E): the (H+1)-th largest high end is no less than that, and the H-th largest low end no less than that
//! less R_M. So with s > 0 a key whose estimate is less than t − 2E − 2R_M / s has a high end below both: it is out, and neither
//! threshold is its own. If no score may overflow at M, none may anywhere; where one may, nothing is said here, and every score
//! is derived.

use std::ops::Range;

use ndarray::{Array2, ArrayView2, s};

use super::bounds::{U32, gamma, underflow};
use super::certificate::{Class, RowCertificate, ScoreBounds, nth_largest_by};
use super::labels::AllowedLabels;
use super::peaks::{at_least, largest_of};
use crate::algorithm::labels::labels_at;
use crate::algorithm::{Dims, HeadMode, LabelBits, Row, Storage};
use crate::cases::{Call, Instance, LabelRounding, RoundingModel};
use crate::compute;
use crate::compute::vectorised;

/// From how many label products of a row on estimates are worth their while.
const WORTH_ESTIMATING: usize = 1 << 13;

/// How many times more keys there must be than H.
const KEYS_PER_SELECTED: usize = 3;

/// Keys whose labels are made together: their rows of d numbers should fit the second level of cache.
const KEYS: usize = 128;

/// Keys that one core estimates before it takes others.
const PART: usize = 64 * KEYS;

/// The certificates of the rows whose heads read one KV head, counted over all batch entries, under several models that allow the same
/// labels: for each model one for each head and query. `None` where estimates say nothing, or would cost more than they spare.
pub fn certificates(
    instance: &Instance,
    call: &Call,
    models: &[RoundingModel],
    scores: &[ScoreBounds],
    group: usize,
) -> Option<Vec<Vec<RowCertificate>>> {
    let heads = Heads::new(instance, call, group)?;
    let is_exact = |model: &RoundingModel| heads.exact || model.labels == LabelRounding::Exact;
    if !(models.iter().all(is_exact) && scores.iter().all(ScoreBounds::is_plain)) {
        return None;
    }
    let of_model = |scores: &ScoreBounds| heads.queries(scores);
    let queries: Vec<Vec<Query>> = scores.iter().map(of_model).collect::<Option<_>>()?;
    // Most models have the same queries, and so the same estimates.
    let mut different: Vec<Vec<&[f32]>> = Vec::new();
    let mut estimated_as = Vec::new();
    for queries in &queries {
        let rounded: Vec<&[f32]> = queries.iter().map(|query| &query.rounded[..]).collect();
        let known = different.iter().position(|known| *known == rounded);
        estimated_as.push(known.unwrap_or(different.len()));
        if known.is_none() {
            different.push(rounded);
        }
    }
    let starts: Vec<usize> = (0..heads.dims.keys).step_by(PART).collect();
    let operations = heads.dims.keys * heads.channels[0].len() * heads.channels.len();
    let parts = compute::map(starts, operations, |start| heads.estimate(start, &different));
    let parts: Vec<Part> = parts.into_iter().collect::<Option<_>>()?;
    let mut largest = vec![0.0; heads.channels.len() * heads.channels[0].len()];
    for part in &parts {
        largest.iter_mut().zip(&part.largest).for_each(|(all, &of_part)| *all = f32::max(*all, of_part));
    }
    let certify = |(scores, (queries, set)): (&ScoreBounds, (&Vec<Query>, usize))| {
        let rows: Vec<usize> = (0..queries.len()).collect();
        let certify = |row: usize| heads.certify(call, scores, row, (&queries[row], set), (&parts, &largest));
        compute::map(rows, heads.dims.operations(), certify).into_iter().collect::<Option<_>>()
    };
    scores.iter().zip(queries.iter().zip(estimated_as)).map(certify).collect()
}

/// The heads that read one KV head.
struct Heads<'a> {
    instance: &'a Instance,
    call: &'a Call,
    dims: Dims,
    batch: usize,
    heads: Range<usize>,
    /// The label channels of each.
    channels: Vec<&'a [usize]>,
    bits: [LabelBits; 2],
    /// Whether no label is quantised.
    exact: bool,
    heavy_size: usize,
}

/// The labels of one query.
struct Query {
    /// With their radii, multiplied by the factor where that comes before the sum.
    exact: Vec<(f64, f64)>,
    rounded: Vec<f32>,
}

/// What is known of some keys.
struct Part {
    keys: usize,
    /// For each different set of queries: [head, query, key].
    estimates: Vec<Vec<f32>>,
    /// The largest magnitude of a label in each channel: [head, r].
    largest: Vec<f32>,
    /// [head, r, key], where they are kept.
    labels: Vec<Vec<f32>>,
}

impl<'a> Heads<'a> {
    fn new(instance: &'a Instance, call: &'a Call, group: usize) -> Option<Self> {
        let dims = call.inputs.dims();
        let order = instance.channels(call.layer).ok()?;
        let label_channels = instance.selection.group_factor.label_channels(dims.head_dim).ok()?;
        let heavy_size = instance.selection.heavy_size.resolve(dims.keys);
        let bits = instance.selection.bits();
        let masked = call.inputs.parts().attention_mask.is_some();
        let worth = dims.keys * label_channels >= WORTH_ESTIMATING
            && heavy_size >= 1
            && heavy_size.checked_mul(KEYS_PER_SELECTED)? < dims.keys;
        if masked || !worth || instance.selection.heads != HeadMode::PerHead {
            return None;
        }
        let size = dims.group_size();
        let first = group % dims.kv_heads * size;
        let heads = first..first + size;
        Some(Self {
            instance,
            call,
            dims,
            batch: group / dims.kv_heads,
            channels: heads.clone().map(|head| &order.row(head, &dims)[..label_channels]).collect(),
            heads,
            bits,
            exact: bits.iter().all(|bits| !bits.quantises()),
            heavy_size,
        })
    }

    /// Each query of each head. `None` where one has no labels, or one that f32 holds less exactly than its unit roundoff says.
    fn queries(&self, scores: &ScoreBounds) -> Option<Vec<Query>> {
        let order = self.instance.channels(self.call.layer).ok()?;
        let inputs = &self.call.inputs;
        let mut all = Vec::new();
        for (head, channels) in self.heads.clone().zip(&self.channels) {
            let source = inputs.queries(self.batch, head);
            let labels = labels_at(source, channels, self.bits[0], inputs.storage()).ok()?;
            let labels = Array2::from_shape_vec((channels.len(), self.dims.queries), labels).ok()?;
            let labels = scores.weighted_queries(order, head, AllowedLabels::Exact(labels.into_shared()));
            for query in 0..self.dims.queries {
                let exact = scores.query(&labels, query);
                let rounded: Vec<f32> = exact.iter().map(|&(x, _)| x as f32).collect();
                let is_close = |(&(x, _), &rounded): (&(f64, f64), &f32)| {
                    f64::from(rounded) == x || rounded.abs() >= f32::MIN_POSITIVE
                };
                if !exact.iter().zip(&rounded).all(is_close) {
                    return None;
                }
                all.push(Query { exact, rounded });
            }
        }
        Some(all)
    }

    /// Estimates for the keys of one part. `None` where one of them has no labels.
    fn estimate(&self, start: usize, different: &[Vec<&[f32]>]) -> Option<Part> {
        let keys = PART.min(self.dims.keys - start);
        let (heads, queries) = (self.heads.len(), self.dims.queries);
        // Several queries look the labels of many keys up.
        let keep = queries > 1;
        let of_head = |channels: &&[usize]| vec![0.0; if keep { channels.len() * keys } else { 0 }];
        let mut part = Part {
            keys,
            estimates: vec![vec![0.0; heads * queries * keys]; different.len()],
            largest: vec![0.0; heads * self.channels[0].len()],
            labels: self.channels.iter().map(of_head).collect(),
        };
        for block in (0..keys).step_by(KEYS).map(|first| first..keys.min(first + KEYS)) {
            for (index, channels) in self.channels.iter().enumerate() {
                let source = self.call.inputs.keys(self.batch, self.heads.start + index);
                let source = source.slice_move(s![start + block.start..start + block.end, ..]);
                let labels = labels_at(source, channels, self.bits[1], self.call.inputs.storage()).ok()?;
                let of_channels = labels.chunks_exact(block.len());
                let largest = &mut part.largest[index * channels.len()..][..channels.len()];
                vectorised(
                    #[inline(always)]
                    || {
                        for (largest, k) in largest.iter_mut().zip(of_channels.clone()) {
                            *largest = f32::max(*largest, largest_of(k));
                        }
                        for (set, estimates) in different.iter().zip(&mut part.estimates) {
                            for query in index * queries..(index + 1) * queries {
                                let estimates = &mut estimates[query * keys..][block.clone()];
                                for (&q, k) in set[query].iter().zip(of_channels.clone()) {
                                    for (estimate, &k) in estimates.iter_mut().zip(k) {
                                        *estimate += q * k;
                                    }
                                }
                            }
                        }
                    },
                );
                if keep {
                    for (kept, k) in part.labels[index].chunks_exact_mut(keys).zip(of_channels) {
                        kept[block.clone()].copy_from_slice(k);
                    }
                }
            }
        }
        Some(part)
    }

    /// The certificate of a row, by its number among those of these heads.
    fn certify(
        &self,
        call: &Call,
        scores: &ScoreBounds,
        row: usize,
        (query, set): (&Query, usize),
        (parts, largest): (&[Part], &[f32]),
    ) -> Option<RowCertificate> {
        let (index, i) = (row / self.dims.queries, row % self.dims.queries);
        let at: Row = (self.batch, self.heads.start + index, i);
        let window = self.window(scores, query, &largest[index * query.exact.len()..])?;
        let visible = call.inputs.additive(at.0, at.1, at.2).visible(self.dims.keys);
        let estimates = parts.iter().map(|part| &part.estimates[set][row * part.keys..][..part.keys]);
        let mut estimates = estimates.collect::<Vec<_>>().concat();
        estimates.truncate(visible);
        let mut classes = vec![Class::Out; self.dims.keys];
        classes[visible..].fill(Class::Excluded);
        for (key, _) in scores.before_row(at) {
            classes[key] = Class::Before;
            if let Some(estimate) = estimates.get_mut(key) {
                *estimate = f32::NEG_INFINITY;
            }
        }
        // Where there are no more candidates than H all of them are in, which is found out elsewhere.
        let above = nth_largest_by(&estimates, self.heavy_size, f32::total_cmp)?;
        if above == f32::NEG_INFINITY {
            return None;
        }
        let near = at_least(&estimates, f64::from(above) - window);
        let labels = self.labels(index, &near, parts)?;
        let ends = scores.dot_ends(&query.exact, &labels, |score, _| score);
        for (&key, class) in near.iter().zip(ends.classes(self.heavy_size)) {
            classes[key] = class;
        }
        Some(RowCertificate { classes, fewest: self.heavy_size, most: self.heavy_size })
    }

    /// 2E + 2R_M / s. `None` where a score or an estimate may overflow.
    fn window(&self, scores: &ScoreBounds, query: &Query, largest: &[f32]) -> Option<f64> {
        // Rounds up what f64 may round down.
        let above = 1.0 + U32;
        let sum = |of: fn(&(f64, f64)) -> f64| -> f64 {
            query.exact.iter().zip(largest).map(|(q, &k)| of(q) * f64::from(k)).sum::<f64>() * above
        };
        let (size, carried) = (sum(|(q, _)| q.abs()), sum(|(_, radius)| *radius));
        let at_most = scores.of_dots()(size, size, carried);
        let (r, scale) = (query.exact.len(), scores.scale());
        let error = gamma(r + 8, U32) * size + r as f64 * underflow(Storage::F32);
        let window = 2.0 * (error + at_most.radius / scale) * above;
        let overflows = at_most.may_be_plus_infinity
            || at_most.may_be_minus_infinity
            || size + error >= Storage::F32.largest();
        (!overflows && scale > 0.0 && window.is_finite()).then_some(window)
    }

    /// The labels of some keys that one of the heads reads.
    fn labels(&self, index: usize, keys: &[usize], parts: &[Part]) -> Option<AllowedLabels> {
        let channels = self.channels[index];
        let kept = |channel: usize| {
            let label = move |&key: &usize| {
                let part = &parts[key / PART];
                part.labels[index][channel * part.keys + key % PART]
            };
            keys.iter().map(label)
        };
        let labels = if self.dims.queries > 1 {
            (0..channels.len()).flat_map(kept).collect()
        } else {
            let all = self.call.inputs.keys(self.batch, self.heads.start + index);
            let (all, d) = (all.to_slice()?, self.dims.head_dim);
            let mut rows = Vec::with_capacity(keys.len() * d);
            keys.iter().for_each(|key| rows.extend_from_slice(&all[key * d..][..d]));
            let rows = ArrayView2::from_shape((keys.len(), d), &rows).ok()?;
            labels_at(rows, channels, self.bits[1], self.call.inputs.storage()).ok()?
        };
        Some(AllowedLabels::Exact(
            Array2::from_shape_vec((channels.len(), keys.len()), labels).ok()?.into_shared(),
        ))
    }
}

//! At which keys the largest logit of a row may lie (SPEC §5). An implementation may take the maximum of its softmax over all
//! keys, so the bound of its output needs the largest high end of all logits, though keys that nobody attends to weigh nothing.
//! To find it every q·k is estimated in f32, for a few rows at once, so that keys are read once; only where an estimate is close
//! to the largest one is the logit recomputed in f64. What is derived from it is the same to the last bit.
//!
//! With M = Σ|q_i| · max|k|, which is at least Σ|q_i k_i| for each key, and for any order of summation, q rounded to f32 included,
//!
//! > |estimate − q·k| ≤ E = γ_{d+8}·M + d·η
//!
//! (see `bounds`; what is left of γ_{d+8} covers what f64 rounds here). The high end of a logit is s·q·k + R, where R lies between 0 and
//! its value R_M at q·k = Σ|q_i k_i| = M: each step of its derivation grows with both. So with s > 0 the largest high end is
//! not at a key whose estimate is less than the largest estimate − 2E − R_M / s. If no logit may overflow at M, none may anywhere, so
//! excluded keys have no say either; where one may, or the estimate itself, all logits are recomputed.

use super::bounds::{U32, gamma, underflow};
use super::output::Logits;
use crate::algorithm::{Inputs, Mask, Row, Storage};
use crate::cases::RoundingModel;
use crate::compute;
use crate::compute::vectorised;

/// Where the largest logit of a row may lie.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Peaks {
    /// At any key, and an excluded one may overflow.
    Anywhere,
    /// At one of these.
    At(Vec<usize>),
}

/// Rows that are estimated together.
const ROWS: usize = 4;

/// Keys of which each row is estimated before the next row: they stay in the first level of cache.
const KEYS: usize = 32;

/// Numbers in a vector register.
const LANES: usize = 8;

/// From how many multiplications of a row on estimates are worth their while.
const WORTH_ESTIMATING: usize = 1 << 14;

/// Where the largest logit of each row may lie under each model, in the order of [`crate::algorithm::Dims::rows`].
pub(super) fn peaks<const N: usize>(
    inputs: &Inputs,
    mask: &Mask,
    models: [RoundingModel; N],
) -> Vec<[Peaks; N]> {
    let dims = inputs.dims();
    let rows: Vec<Row> = dims.rows().collect();
    if inputs.parts().attention_mask.is_some() || dims.keys * dims.head_dim < WORTH_ESTIMATING {
        return rows.iter().map(|_| models.map(|_| Peaks::Anywhere)).collect();
    }
    let of_one_kv_head = rows.chunks(dims.group_size() * dims.queries);
    let parts: Vec<&[Row]> = of_one_kv_head.flat_map(|rows| rows.chunks(ROWS)).collect();
    let of_parts = compute::map(parts, dims.operations(), |rows| peaks_of(inputs, mask, models, rows));
    of_parts.into_iter().flatten().collect()
}

/// Of rows that read the same keys, [`ROWS`] at most.
fn peaks_of<const N: usize>(
    inputs: &Inputs,
    mask: &Mask,
    models: [RoundingModel; N],
    rows: &[Row],
) -> Vec<[Peaks; N]> {
    let keys = inputs.dims().keys;
    // Attended logits are recomputed anyway.
    let most_are_attended = |&row: &Row| 2 * mask.row(row).count() > keys;
    if rows.iter().any(most_are_attended) {
        return rows.iter().map(|_| models.map(|_| Peaks::Anywhere)).collect();
    }
    let (b, head, _) = rows[0];
    let k = inputs.keys(b, head).to_slice().expect("inputs have the standard layout");
    let mut estimates = vec![vec![0.0; keys]; rows.len()];
    let (mut estimated, mut largest): (Vec<Vec<f32>>, f32) = (Vec::new(), 0.0);
    let mut of_models = models.map(|model| {
        let logits: Vec<Logits> = rows.iter().map(|&row| Logits::new(inputs, model, row)).collect();
        let q: Vec<Vec<f32>> = logits.iter().map(|row| row.q.iter().map(|&x| x as f32).collect()).collect();
        // Most models have the same queries, and so the same estimates.
        if q != estimated {
            largest = vectorised(
                #[inline(always)]
                || estimate(&q, k, &mut estimates),
            );
            estimated = q;
        }
        let peaks =
            |((logits, estimates), &row)| near_largest(inputs, logits, row, estimates, f64::from(largest));
        logits
            .iter()
            .zip(estimates.iter().map(Vec::as_slice))
            .zip(rows)
            .map(peaks)
            .collect::<Vec<_>>()
            .into_iter()
    });
    // Every model has a peak for each row.
    let of_row = |_| of_models.each_mut().map(|peaks| peaks.next().unwrap_or(Peaks::Anywhere));
    rows.iter().map(of_row).collect()
}

/// The keys whose estimate is close enough to the largest one. `largest` is max |k|.
fn near_largest(inputs: &Inputs, logits: &Logits, row: Row, estimates: &[f32], largest: f64) -> Peaks {
    let (b, head, query) = row;
    // Rounds up what f64 may round down.
    let above = 1.0 + U32;
    let of_query = logits.q.iter().map(|x| x.abs()).sum::<f64>();
    let size = of_query * largest * above;
    let carried = logits.radii.iter().flatten().sum::<f64>() * largest * above;
    let at_most = logits.of_dot(size, size, carried, 0.0);
    let (d, scale) = (logits.q.len(), logits.scale());
    let error = gamma(d + 8, U32) * size + d as f64 * underflow(Storage::F32);
    let window = (2.0 * error + at_most.radius / scale) * above;
    let overflows = at_most.may_be_plus_infinity
        || at_most.may_be_minus_infinity
        || of_query.max(size) + error >= Storage::F32.largest();
    if overflows || scale <= 0.0 || !window.is_finite() {
        return Peaks::Anywhere;
    }
    // There is no other additive mask than the causal one.
    let visible = inputs.additive(b, head, query).visible(estimates.len());
    Peaks::At(at_least(&estimates[..visible], f64::from(highest_of(&estimates[..visible])) - window))
}

/// Estimates q·k for some rows and all keys [n, d]; returns max |k|. Partial sums of several keys are kept before they are added
/// up: where both is done at once the compiler gives up vector registers.
#[inline(always)]
fn estimate(q: &[Vec<f32>], keys: &[f32], estimates: &mut [Vec<f32>]) -> f32 {
    let d = q[0].len();
    let mut largest = 0.0;
    let mut partial = [[0.0; LANES]; KEYS];
    for (block, k) in keys.chunks(KEYS * d).enumerate() {
        largest = f32::max(largest, largest_of(k));
        for (q, estimates) in q.iter().zip(&mut *estimates) {
            let (q, last_q) = q.as_chunks::<LANES>();
            for (partial, k) in partial.iter_mut().zip(k.chunks_exact(d)) {
                *partial = partial_sums(q, k.as_chunks::<LANES>().0);
            }
            let places = estimates[block * KEYS..].iter_mut().zip(&partial);
            for ((estimate, p), k) in places.zip(k.chunks_exact(d)) {
                let mut sum = ((p[0] + p[4]) + (p[2] + p[6])) + ((p[1] + p[5]) + (p[3] + p[7]));
                for (q, k) in last_q.iter().zip(k.as_chunks::<LANES>().1) {
                    sum += q * k;
                }
                *estimate = sum;
            }
        }
    }
    largest
}

/// Σ q·k in as many sums as there are lanes, of two accumulators: one addition need not wait for the one before it.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "loops over lanes become one instruction")]
fn partial_sums(q: &[[f32; LANES]], k: &[[f32; LANES]]) -> [f32; LANES] {
    let (mut even, mut odd) = ([0.0; LANES], [0.0; LANES]);
    let ((q, last_q), (k, last_k)) = (q.as_chunks::<2>(), k.as_chunks::<2>());
    for (q, k) in q.iter().zip(k) {
        for lane in 0..LANES {
            even[lane] += q[0][lane] * k[0][lane];
        }
        for lane in 0..LANES {
            odd[lane] += q[1][lane] * k[1][lane];
        }
    }
    for (q, k) in last_q.iter().zip(last_k) {
        for lane in 0..LANES {
            even[lane] += q[lane] * k[lane];
        }
    }
    for lane in 0..LANES {
        even[lane] += odd[lane];
    }
    even
}

/// The indices of the estimates that are no less than a number, ascending.
pub(super) fn at_least(estimates: &[f32], least: f64) -> Vec<usize> {
    /// Estimates that are passed over at once where all are less.
    const TOGETHER: usize = 64;
    let parts = estimates.chunks(TOGETHER).enumerate();
    let parts = parts.filter(|(_, part)| f64::from(highest_of(part)) >= least);
    let of_part = |(index, part): (usize, &[f32])| {
        let near = part.iter().enumerate().filter(|&(_, &estimate)| f64::from(estimate) >= least);
        near.map(|(key, _)| index * TOGETHER + key).collect::<Vec<_>>()
    };
    parts.flat_map(of_part).collect()
}

/// The largest number; −∞ where there is none.
#[allow(clippy::needless_range_loop, reason = "loops over lanes become one instruction")]
fn highest_of(numbers: &[f32]) -> f32 {
    let (chunks, rest) = numbers.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for numbers in chunks {
        for lane in 0..LANES {
            lanes[lane] = if numbers[lane] > lanes[lane] { numbers[lane] } else { lanes[lane] };
        }
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max)
}

/// The largest magnitude.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "loops over lanes become one instruction")]
pub(super) fn largest_of(numbers: &[f32]) -> f32 {
    let (chunks, rest) = numbers.as_chunks::<LANES>();
    let mut lanes = [0.0f32; LANES];
    for numbers in chunks {
        for lane in 0..LANES {
            let size = numbers[lane].abs();
            lanes[lane] = if size > lanes[lane] { size } else { lanes[lane] };
        }
    }
    lanes.iter().chain(rest).fold(0.0, |largest, x| f32::max(largest, x.abs()))
}

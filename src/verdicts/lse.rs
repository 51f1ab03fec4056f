//! The bound of a log-sum-exp, L = log Σ exp(w_j)/weight_j over attended keys (SPEC §2.11, §5). It is recomputed in f64 with
//! the implementation's own mask.
//!
//! With the names of `output`: an implementation has a maximum M, exponentials e_j(1 + ε_j) + a_j relative to it, and answers
//! M + log S, S their sum. Q = Σ q_j bounds what logits, exponents, exponentials and underflow move of S as a share of it, as
//! derived there: |S̃ / S − 1| ≤ Q, and M itself cancels. What follows adds
//!
//! * the sum: γ_n. A running maximum multiplies the partial sum anew at each of at most n steps: an exponential within 4 units (twice
//!   what is declared in units in the last place), and a product, 5 units, γ_5n; the exponents of these factors add up to the spread that Q counts. In the storage model the
//!   sum is rounded twice more. Together σ, and log((1 ± Q)(1 ± σ)) moves L by −log((1 − Q)(1 − σ)) at most;
//! * the logarithm: 3 units in the last place, 6u·|log S|, and 2^-21 where S is near 1, the worst of the documented versions
//!   (CUDA's `__logf` is within 2^-21.41 from 1/2 to 2 and within 3 units elsewhere); where it is one to base 2, the constant
//!   and the product, 2u·|log S|; |log S| ≤ |L| + |M| + what S moved. In the storage model one rounding more;
//! * M: exponents may be taken relative to another rounding of it (a product with the scaling, with log2 e, and back): 4u·|M|;
//! * the last addition: u·|L|, in the storage model of that type. Nothing else is rounded: the answer is f32.
//!
//! A kernel that splits keys over blocks does this twice: it takes the logarithm of each block, and the log-sum-exp of those.
//! There are at most n blocks; their exponentials carry ρ and exponents of x = L_max − L_s, each off by 3u·x, which moves the
//! sum by Σ exp(−x)·3u·x ≤ n·3u/e, less than γ_2n. So the second level adds −log(1 − γ_8n − ρ) and the roundings once more.
//!
//! Nothing can be said where a logit may be +∞ or where Q or σ reach 1, and a row that attends to nothing has exactly −∞.

use ndarray::Array3;

use super::bounds::{Approximate, U32, gamma, recomputed_mean, underflow};
use super::output::{Dots, Exponentials, Known, exponentials, of_weights, rounding};
use super::peaks::{Peaks, peaks};
use crate::algorithm::{Inputs, Mask, Row};
use crate::cases::RoundingModel;
use crate::compute;

/// How far a fast logarithm may be off near 1.
const NEAR_ONE: f64 = 1.0 / (1u64 << 21) as f64;

/// How far a log-sum-exp is from the recomputed one.
#[derive(Debug, Clone, Default)]
pub struct LseVerdict {
    /// The largest error as a share of its bound; at most 1 where it conforms.
    pub worst_share: f64,
    /// Numbers that fall outside.
    pub divergences: Vec<LseDivergence>,
}

/// One number that falls outside its bound.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LseDivergence {
    /// Batch, head, query.
    pub row: Row,
    /// What the implementation answered.
    pub found: f64,
    /// Recomputed with the implementation's own mask.
    pub expected: f64,
    /// How far apart they may be.
    pub bound: f64,
}

impl std::fmt::Display for LseDivergence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ((b, head, query), found) = (self.row, self.found);
        write!(f, "lse[batch {b}, head {head}, query {query}]: found {found:.9}, expected ")?;
        match self.expected {
            f64::NEG_INFINITY => f.write_str("-inf, as the row attends to nothing"),
            expected => write!(f, "{expected:.9} ± {:.2e}", self.bound),
        }
    }
}

/// Judges a log-sum-exp [b, h, m] against the f64 recomputation with `mask`.
pub fn judge_lse(inputs: &Inputs, mask: &Mask, lse: &Array3<f32>, model: RoundingModel) -> LseVerdict {
    let mut verdict = LseVerdict::default();
    let dims = inputs.dims();
    let rows = dims.rows().zip(peaks(inputs, mask, [model])).collect();
    let expected = compute::map(rows, dims.operations(), |(row, [peaks]): (Row, [Peaks; 1])| {
        expected_with(inputs, mask, model, row, &peaks)
    });
    for (row @ (b, head, i), expected) in dims.rows().zip(expected) {
        let found = f64::from(lse[[b, head, i]]);
        let error = (found - expected.value).abs();
        let share = if found == expected.value {
            0.0
        } else if found.is_finite() && expected.value.is_finite() {
            error / expected.radius
        } else if expected.radius == f64::INFINITY || (found.is_nan() && expected.may_be_plus_infinity) {
            // Where a logit may overflow, so may everything that follows.
            0.0
        } else {
            f64::INFINITY
        };
        verdict.worst_share = verdict.worst_share.max(share);
        if share > 1.0 {
            let (expected, bound) = (expected.value, expected.radius);
            verdict.divergences.push(LseDivergence { row, found, expected, bound });
        }
    }
    verdict
}

/// The log-sum-exp of one row with the radius in which a conforming implementation must be. It may be NaN where
/// `may_be_plus_infinity` says that a maximum over all keys may be.
pub fn expected_lse(inputs: &Inputs, mask: &Mask, model: RoundingModel, row: Row) -> Approximate {
    expected_with(inputs, mask, model, row, &Peaks::Anywhere)
}

fn expected_with(inputs: &Inputs, mask: &Mask, model: RoundingModel, row: Row, peaks: &Peaks) -> Approximate {
    let (exponentials, nan) = exponentials(inputs, mask, model, row, (peaks, &mut Dots::default()));
    let or_nan = |x: Approximate| Approximate { may_be_plus_infinity: nan, ..x };
    let Known { attended, moved, total, scale, rho, max, over_all, widest, .. } = match exponentials {
        Exponentials::None => return or_nan(Approximate::EXCLUDED),
        Exponentials::Unbounded => return Approximate::new(0.0, f64::INFINITY),
        Exponentials::Known(known) => known,
    };
    let n = attended.len();
    let (u, eta) = of_weights(model, inputs.storage());
    // The logarithm may be kept as scores are, or as weights are.
    let u = u.max(rounding(model.scores_kept, inputs.storage()));
    let eta = eta.max(underflow(model.scores_kept.of(inputs.storage())));
    let value = max + total.ln();
    // And the sum's own underflow.
    let moved = moved.iter().sum::<f64>() + scale;
    let exponential = 2 * usize::from(model.exp_ulps);
    let sums = gamma((2 + exponential) * n, U32) + gamma(2, u) + recomputed_mean(n);
    let blocks = gamma((4 + exponential) * n, U32) + gamma(2, u) + rho;
    if moved >= 1.0 || sums >= 1.0 || blocks >= 1.0 {
        return Approximate::new(value, f64::INFINITY);
    }
    let sum = -((1.0 - moved).ln() + (1.0 - sums).ln());
    let largest = max.abs().max(over_all.abs()) + widest;
    let logarithm = value.abs() + largest + sum;
    let roundings = (8.0 * U32 + u) * logarithm + NEAR_ONE + 4.0 * U32 * largest;
    let last = |x: f64| (U32 + u) * x + eta;
    let of_block = sum + roundings;
    let of_block = of_block + last(value.abs() + of_block);
    let merged = -(1.0 - blocks).ln() + roundings;
    let radius = of_block + merged + last(value.abs() + of_block + merged);
    or_nan(Approximate::new(value, radius))
}

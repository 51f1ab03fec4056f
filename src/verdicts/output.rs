//! The bound of an attention output (SPEC §5). The output is recomputed in f64 with the implementation's *own* mask;
//! what remains is rounding, bounded from the model.
//!
//! Let w_j be the exact logits of the attended keys, e_j = exp(w_j − max)/weight_j, p_j = e_j / Σe and o = Σ p_j v_j.
//! An implementation has
//!
//! * logits off by δ_j: the bounds of `bounds` for d products, the scaling and A;
//! * differences w − max rounded, which moves the exponent by at most u·|w − max| for each of two roundings (the second
//!   covers exp computed as exp2 of a product); its max may be taken over all keys or over the attended ones;
//! * exp within 4 units of f32 (2 ulp, the worst of the documented vector and CUDA versions), the division by the weight,
//!   and in the storage model three roundings to the storage type: together a relative error ρ;
//! * underflow: an absolute error η in e_j, where exp is taken relative to the largest logit of all keys.
//!
//! So its e_j is e_j(1 + ε_j) + a_j with |ε_j| ≤ r_j = e^δ_j(1 + ρ) − 1 and |a_j| ≤ a = η·exp(max over all − max) / Σe
//! relative to the sum. With q_j = p_j·r_j + a and Q = Σ q_j < 1, and because Σ p_j (v_j − o) = 0,
//!
//! > |Σ p̃_j v_j − o| ≤ Σ q_j |v_j − o| / (1 − Q),
//!
//! and never more than max |v_j − o|, as any weights ≥ 0 give a mean of the v_j. (That is the e^2δ of SPEC §5, sharpened
//! by taking differences from o.) With S = Σ p̃_j|v_j| ≤ Σ p_j|v_j| + Σ (q_j + Q·p_j)|v_j| / (1 − Q), the roundings that
//! follow add: the sum of N terms e_j, γ_N·S; the sum of N products, γ_N·S; two divisions, 2u·S; in the storage model
//! five roundings to the storage type (weights, numerator, denominator, quotient, output), 5u·S, and η·(Σ|v_j| + 1) for
//! weights that underflow. Where a logit may overflow the kept type, nothing can be said about the row.

use ndarray::Array4;
use rayon::prelude::*;

use super::bounds::{Approximate, Arithmetic, U32, U64, gamma};
use crate::algorithm::{Mask, Row, Storage};
use crate::cases::{Case, Kept, RoundingModel};

/// How far an output is from the recomputed one.
#[derive(Debug, Clone, Default)]
pub struct OutputVerdict {
    /// The largest error as a share of its bound; at most 1 where the output conforms.
    pub worst_share: f64,
    /// The largest bound as a share of its row's largest output.
    pub widest_bound: f64,
    /// Numbers that fall outside, at most one for each row.
    pub divergences: Vec<OutputDivergence>,
}

/// One number of an output that falls outside its bound.
#[derive(Debug, Clone, PartialEq)]
pub struct OutputDivergence {
    /// Batch, head, query, dimension of v.
    pub index: [usize; 4],
    /// What the implementation answered.
    pub found: f64,
    /// Recomputed with the implementation's own mask.
    pub expected: f64,
    /// How far apart they may be.
    pub bound: f64,
}

impl std::fmt::Display for OutputDivergence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [b, head, query, dim] = self.index;
        let (found, expected, bound) = (self.found, self.expected, self.bound);
        write!(
            f,
            "output[batch {b}, head {head}, query {query}, {dim}]: found {found:.9}, expected {expected:.9} ± {bound:.2e}"
        )
    }
}

/// Judges an output [b, h, m, dv] against the f64 recomputation with `mask`.
pub fn judge_output(case: &Case, mask: &Mask, output: &Array4<f32>, model: RoundingModel) -> OutputVerdict {
    let rows: Vec<_> = case.inputs.dims().rows().collect();
    let rows = rows.into_par_iter().map(|row| judge_row(case, mask, output, model, row));
    rows.reduce(OutputVerdict::default, |mut a, b| {
        a.worst_share = a.worst_share.max(b.worst_share);
        a.widest_bound = a.widest_bound.max(b.widest_bound);
        a.divergences.extend(b.divergences);
        a
    })
}

fn judge_row(
    case: &Case,
    mask: &Mask,
    output: &Array4<f32>,
    model: RoundingModel,
    row @ (b, head, query): Row,
) -> OutputVerdict {
    let expected = expected_row(case, mask, model, row);
    let mut verdict = OutputVerdict::default();
    let found = output.slice(ndarray::s![b, head, query, ..]);
    let largest = expected.iter().map(|x| x.value.abs()).fold(0.0, f64::max);
    let mut worst_excess = 0.0;
    for (dim, (&found, expected)) in found.iter().zip(&expected).enumerate() {
        let found = f64::from(found);
        let error = (found - expected.value).abs();
        let share = if error == 0.0 { 0.0 } else { error / expected.radius };
        if expected.radius > 0.0 {
            verdict.widest_bound = verdict.widest_bound.max(expected.radius / largest);
        }
        // An infinity or NaN is right only where the model lets a logit overflow: the output is a mean of finite numbers.
        let share = match (found.is_finite(), expected.radius.is_finite()) {
            (true, _) => share,
            (false, true) => f64::INFINITY,
            (false, false) => 0.0,
        };
        verdict.worst_share = verdict.worst_share.max(share);
        if share > 1.0 && share > worst_excess {
            worst_excess = share;
            verdict.divergences = vec![OutputDivergence {
                index: [b, head, query, dim],
                found,
                expected: expected.value,
                bound: expected.radius,
            }];
        }
    }
    verdict
}

/// The output of one row with the radius in which a conforming implementation must be.
fn expected_row(
    case: &Case,
    mask: &Mask,
    model: RoundingModel,
    row @ (b, head, query): Row,
) -> Vec<Approximate> {
    let inputs = &case.inputs;
    let values = inputs.values(b, head);
    let additive = inputs.additive(b, head, query);
    let attended: Vec<(usize, f32)> =
        mask.row(row).filter(|&(key, _)| additive.at(key) > f32::NEG_INFINITY).collect();
    if attended.is_empty() {
        return vec![Approximate::exact(0.0); values.ncols()];
    }
    let arithmetic = Arithmetic::new(model, inputs.storage());
    let q: Vec<f64> = inputs.queries(b, head).row(query).iter().map(|&x| f64::from(x)).collect();
    let keys = inputs.keys(b, head);
    let logit = |key: usize| logit(&arithmetic, &q, keys.row(key), inputs.scaling(), additive.at(key));
    let logits: Vec<Approximate> = attended.iter().map(|&(key, _)| logit(key)).collect();
    let max = logits.iter().map(|w| w.value).fold(f64::NEG_INFINITY, f64::max);
    let over_all = (0..inputs.dims().keys)
        .filter(|&key| additive.at(key) > f32::NEG_INFINITY)
        .map(|key| exact_logit(&q, keys.row(key), inputs.scaling(), additive.at(key)))
        .fold(max, f64::max);
    let widest = logits.iter().map(|w| w.radius).fold(0.0, f64::max);
    if widest == f64::INFINITY {
        let unbounded = Approximate { value: 0.0, radius: f64::INFINITY };
        return vec![unbounded; values.ncols()];
    }

    let (u, underflow) = match model.kept {
        Kept::F32 => (0.0, Storage::F32.smallest_normal()),
        Kept::Storage => (arithmetic.u(), arithmetic.underflow()),
    };
    let rho = gamma(6, U32) + gamma(3, u);
    let e: Vec<f64> = logits
        .iter()
        .zip(&attended)
        .map(|(w, &(_, weight))| (w.value - max).exp() / f64::from(weight))
        .collect();
    let total: f64 = e.iter().sum();
    let absolute = underflow * (over_all - max + widest).exp() / total;
    let relative: Vec<f64> = logits
        .iter()
        .map(|w| {
            let spread = over_all - w.value + w.radius + widest;
            let exponent = w.radius + spread * (2.0 * U32 + u);
            exponent.exp_m1() + exponent.exp() * rho
        })
        .collect();
    let p: Vec<f64> = e.iter().map(|e| e / total).collect();
    let moved: Vec<f64> = p.iter().zip(&relative).map(|(p, r)| p * r + absolute).collect();
    let moved_sum: f64 = moved.iter().sum();

    let n = attended.len();
    let own = gamma(n + q.len() + 16, U64) * (1.0 + over_all.abs() + max.abs());
    let sums = gamma(n, U32) + gamma(n, arithmetic.accumulation) + gamma(2, U32) + gamma(5, u) + own;
    (0..values.ncols())
        .map(|dim| {
            let v = |index: usize| f64::from(values[[attended[index].0, dim]]);
            let value: f64 = (0..n).map(|j| p[j] * v(j)).sum();
            let (mut shift, mut farthest, mut size, mut moved_size, mut plain) = (0.0, 0.0f64, 0.0, 0.0, 0.0);
            for j in 0..n {
                let v = v(j);
                shift += moved[j] * (v - value).abs();
                farthest = farthest.max((v - value).abs());
                size += p[j] * v.abs();
                moved_size += (moved[j] + moved_sum * p[j]) * v.abs();
                plain += v.abs();
            }
            let largest = farthest + value.abs();
            let (shift, size) = if moved_sum < 1.0 {
                let rest = 1.0 - moved_sum;
                ((shift / rest).min(farthest), (size + moved_size / rest).min(largest))
            } else {
                (farthest, largest)
            };
            Approximate { value, radius: shift + sums * size + underflow * (plain + 1.0) }
        })
        .collect()
}

fn exact_logit(q: &[f64], k: ndarray::ArrayView1<f32>, scaling: f64, additive: f32) -> f64 {
    let dot = match k.as_slice() {
        Some(k) => dot(q, k),
        None => q.iter().zip(k).map(|(q, &k)| q * f64::from(k)).sum(),
    };
    dot * scaling + f64::from(additive)
}

/// Eight partial sums, so that the compiler can use vector registers: this runs over every key of a row.
fn dot(q: &[f64], k: &[f32]) -> f64 {
    const LANES: usize = 8;
    let (q_chunks, q_rest) = q.as_chunks::<LANES>();
    let (k_chunks, k_rest) = k.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for (q, k) in q_chunks.iter().zip(k_chunks) {
        for lane in 0..LANES {
            sums[lane] += q[lane] * f64::from(k[lane]);
        }
    }
    let rest: f64 = q_rest.iter().zip(k_rest).map(|(q, &k)| q * f64::from(k)).sum();
    sums.iter().sum::<f64>() + rest
}

fn logit(
    arithmetic: &Arithmetic,
    q: &[f64],
    k: ndarray::ArrayView1<f32>,
    scaling: f64,
    additive: f32,
) -> Approximate {
    let (mut value, mut magnitude) = (0.0, 0.0);
    for (q, &k) in q.iter().zip(k) {
        let product = q * f64::from(k);
        value += product;
        magnitude += product.abs();
    }
    let dot = arithmetic.sum_of_products(q.len(), value, magnitude, 0.0);
    arithmetic.add_mask(arithmetic.scale(dot, scaling), additive)
}

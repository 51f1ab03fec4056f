//! The bound of an attention output (SPEC §5). The output is recomputed in f64 with the implementation's *own* mask;
//! what remains is rounding, bounded from the model.
//!
//! Let w_j be the exact logits of the attended keys, e_j = exp(w_j − max)/weight_j, p_j = e_j / Σe and o = Σ p_j v_j.
//! An implementation has
//!
//! * logits off by δ_j: the bounds of `bounds` for d products, the scaling and A;
//! * differences w − max rounded to the type of scores, which moves the exponent by at most u·|w − max| for each of three roundings (the others
//!   cover exp computed as exp2 of a product with a rounded constant); its max may be taken over all keys or over the attended
//!   ones;
//! * exp within 4 units of f32 (2 ulp, the worst of the documented vector and CUDA versions; another number where declared), the division by the weight or
//!   the product with its reciprocal, 2 units, and where weights are kept in storage three roundings to that type: together a relative error ρ;
//! * where logits are prescaled, they are multiplied by log2 e with the scaling, two roundings more, and rounded to the type of scores so;
//!   A is multiplied by a rounded log2 e, γ_3, and rounded. They overflow by log2 e sooner;
//! * a fast exp is off by 2 + 1.173·|x| ulp (CUDA's `__expf`): 2.35u·|x| beside the rounding of x itself, together below 4u·|x|;
//! * with products in tf32, e and v are cut to 11 bits before they are multiplied: 2·2^-10 + 2^-20 more, relative to S;
//! * underflow: an absolute error η/weight_j in e_j, where exp is taken relative to the largest logit of all keys.
//!
//! So its e_j is e_j(1 + ε_j) + a_j with |ε_j| ≤ r_j = e^δ_j(1 + ρ) − 1 and |a_j| ≤ η·s/weight_j, s = exp(max over all −
//! max)/Σe, relative to the sum. A logit that may be −∞ may lose its weight: r_j is at least 1. With q_j = p_j·r_j + a_j and
//! Q = Σ q_j < 1, and because Σ p_j (v_j − o) = 0,
//!
//! > |Σ p̃_j v_j − o| ≤ Σ q_j |v_j − o| / (1 − Q),
//!
//! and never more than max |v_j − o|, as any weights ≥ 0 give a mean of the v_j. (That is the e^2δ of SPEC §5, sharpened
//! by taking differences from o.) With S = Σ p̃_j|v_j| ≤ Σ p_j|v_j| + Σ (q_j + Q·p_j)|v_j| / (1 − Q), the roundings that
//! follow add: the sum of N terms e_j, γ_N·S; the sum of N products, γ_N·S; two divisions, 2u·S; where weights are kept in storage
//! five roundings to the storage type (weights, numerator, denominator, quotient, output), 5u·S, with underflow of weights,
//! η·Σ|v_j|, of numerator and denominator, η·s·(1 + |õ|)/L, |õ| ≤ |o| + the bound above, and of the output, η. L is the least share of Σe
//! that its denominator may be: Σ p_j·e^-δ_j·(1 − ρ) − Σ η·s/weight_j − η·s, without the keys whose logit may be −∞. Where they are kept in f32 the output is
//! still a tensor that may have the storage type: one rounding.
//!
//! Nothing can be said of a row where a logit may be +∞, where every logit may be −∞, where L is not positive, as every e_j may
//! underflow, or where Σe or Σe|v| may exceed the
//! largest number of the type of weights. Its exponentials are Σe·(1 + Q)·e^D in all at most, where D is how far its max may be off,
//! and none is above 1/weight_j, as no logit of its own is above its max: Σe ≤ min(Σe·(1 + Q)·e^D, Σ 1/weight_j)·(1 + ρ)·(1 + σ),
//! with σ the roundings of a sum from above; and so for Σe|v|, with S in the first and |v_j| in the second.

use ndarray::Array4;

use super::bounds::{Approximate, Arithmetic, U32, U64, gamma, product_error, recomputed_mean, underflow};
use super::certificate::scaled_number;
use super::peaks::{Peaks, peaks};
use crate::algorithm::{Inputs, Mask, Row, Storage};
use crate::cases::{Exponent, Precision, Products, RoundingModel};
use crate::compute;
use crate::compute::vectorised;

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

impl OutputVerdict {
    fn add(&mut self, other: Self) {
        self.worst_share = self.worst_share.max(other.worst_share);
        self.widest_bound = self.widest_bound.max(other.widest_bound);
        self.divergences.extend(other.divergences);
    }
}

/// Judges an output [b, h, m, dv] against the f64 recomputation with `mask`.
pub fn judge_output(
    inputs: &Inputs,
    mask: &Mask,
    output: &Array4<f32>,
    model: RoundingModel,
) -> OutputVerdict {
    let [verdict] = judge_outputs(inputs, mask, [(output, model)]);
    verdict
}

/// As [`judge_output`], of several outputs with the same mask under their models: what all of them need is read once.
pub fn judge_outputs<const N: usize>(
    inputs: &Inputs,
    mask: &Mask,
    outputs: [(&Array4<f32>, RoundingModel); N],
) -> [OutputVerdict; N] {
    let dims = inputs.dims();
    let models = outputs.map(|(_, model)| model);
    let rows = dims.rows().zip(peaks(inputs, mask, models)).collect();
    let rows = compute::map(rows, dims.operations(), |(row, peaks): (Row, [Peaks; N])| {
        let (mut peaks, mut dots) = (peaks.iter(), Dots::default());
        outputs.map(|(output, model)| {
            let peaks = peaks.next().unwrap_or(&Peaks::Anywhere);
            judge_row(&expected_with(inputs, mask, model, row, (peaks, &mut dots)), output, row)
        })
    });
    let mut verdicts = [(); N].map(|()| OutputVerdict::default());
    for row in rows {
        verdicts.iter_mut().zip(row).for_each(|(verdict, of_row)| verdict.add(of_row));
    }
    verdicts
}

fn judge_row(expected: &[Approximate], output: &Array4<f32>, (b, head, query): Row) -> OutputVerdict {
    let mut verdict = OutputVerdict::default();
    let found = output.slice(ndarray::s![b, head, query, ..]);
    let largest = expected.iter().map(|x| x.value.abs()).fold(0.0, f64::max);
    let mut worst_excess = 0.0;
    for (dim, (&found, expected)) in found.iter().zip(expected).enumerate() {
        let found = f64::from(found);
        let error = (found - expected.value).abs();
        let share = if error == 0.0 { 0.0 } else { error / expected.radius };
        // A row of zeros has no size to compare its bound with.
        if largest > 0.0 || expected.radius == f64::INFINITY {
            verdict.widest_bound = verdict.widest_bound.max(expected.radius / largest);
        }
        // An infinity or NaN is right only where the model lets a logit overflow: the output is a mean of finite numbers.
        let share = match (found.is_finite(), expected.radius.is_finite() && !expected.may_be_plus_infinity) {
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

/// The exponentials of one row, recomputed in f64.
pub(super) enum Exponentials {
    /// The row attends to nothing.
    None,
    /// A logit may be +∞, or every exponential may underflow.
    Unbounded,
    /// How far those of an implementation may be from these.
    Known(Known),
}

/// Exponentials with the names of the derivation above.
pub(super) struct Known {
    /// Attended keys and their weights.
    pub(super) attended: Vec<(usize, f32)>,
    /// p_j
    pub(super) p: Vec<f64>,
    /// q_j
    pub(super) moved: Vec<f64>,
    /// Σe
    pub(super) total: f64,
    /// η·s
    pub(super) scale: f64,
    /// L
    pub(super) least: f64,
    /// ρ
    pub(super) rho: f64,
    /// The largest logit of the attended keys.
    pub(super) max: f64,
    /// The largest logit of all keys that an implementation may have.
    pub(super) over_all: f64,
    /// D
    pub(super) widest: f64,
}

/// The exponentials of one row, and whether a maximum over all keys may be NaN. Nothing depends on which of the two `peaks` are.
pub(super) fn exponentials(
    inputs: &Inputs,
    mask: &Mask,
    model: RoundingModel,
    row @ (b, head, query): Row,
    (peaks, dots): (&Peaks, &mut Dots),
) -> (Exponentials, bool) {
    let additive = inputs.additive(b, head, query);
    let attended: Vec<(usize, f32)> =
        mask.row(row).filter(|&(key, _)| additive.at(key) > f32::NEG_INFINITY).collect();
    let logits_of = Logits::new(inputs, model, row);
    let keys: Vec<usize> = attended.iter().map(|&(key, _)| key).collect();
    let logits = logits_of.at(&keys, dots);
    let others = match peaks {
        Peaks::At(keys) => keys.clone(),
        Peaks::Anywhere => {
            let weights = mask.row_weights(row);
            let other = |&key: &usize| weights[key] == 0.0 || additive.at(key) == f32::NEG_INFINITY;
            (0..weights.len()).filter(other).collect()
        }
    };
    // A masked logit that overflows first is NaN, and so is a maximum over all keys.
    let mut over_all = logits.iter().map(|w| w.high()).fold(f64::NEG_INFINITY, f64::max);
    let mut nan = false;
    for (&key, w) in others.iter().zip(logits_of.at(&others, &mut Dots::default())) {
        if additive.at(key) == f32::NEG_INFINITY {
            nan |= w.may_be_plus_infinity;
        } else {
            over_all = over_all.max(w.high());
        }
    }
    let max = logits.iter().map(|w| w.value).fold(f64::NEG_INFINITY, f64::max);
    let over_all = over_all.max(max);
    if attended.is_empty() {
        return (Exponentials::None, nan);
    }
    // Where all of them are −∞ their differences are NaN, or no weight is left.
    let none_left = logits.iter().all(|w| w.may_be_minus_infinity);
    if over_all == f64::INFINITY || none_left {
        return (Exponentials::Unbounded, nan);
    }
    // Of keys that weigh anything; one that may be −∞ has no say in the maximum.
    let widest = logits.iter().filter(|w| !w.may_be_minus_infinity).map(|w| w.radius).fold(0.0, f64::max);

    let (u, eta) = of_weights(model, inputs.storage());
    let of_argument = match model.exp {
        Exponent::Natural | Exponent::Prescaled => 3.0,
        Exponent::Fast => 4.0,
    };
    let difference = of_argument * U32 + rounding(model.scores_kept, inputs.storage());
    let rho = gamma(2 + 2 * usize::from(model.exp_ulps), U32) + gamma(3, u);
    let weight = |j: usize| f64::from(attended[j].1);
    let mut p: Vec<f64> = logits.iter().enumerate().map(|(j, w)| (w.value - max).exp() / weight(j)).collect();
    let total: f64 = p.iter().sum();
    let scale = eta * (over_all - max + widest).exp() / total;
    p.iter_mut().for_each(|e| *e /= total);
    let mut least = -scale;
    let mut moved = |j: usize| {
        let w = logits[j];
        let radius = if w.may_be_minus_infinity { 0.0 } else { w.radius };
        let spread = over_all - w.value + radius + widest;
        let exponent = radius + spread * difference;
        let grown = exponent.exp_m1();
        let relative = grown + (1.0 + grown) * rho;
        let relative = if w.may_be_minus_infinity { relative.max(1.0) } else { relative };
        // 0 · ∞: a key without weight stays without.
        let relative = if p[j] == 0.0 { 0.0 } else { p[j] * relative };
        let vanishing = scale / weight(j);
        let kept = if w.may_be_minus_infinity { 0.0 } else { p[j] * (1.0 - rho) / (1.0 + grown) };
        least += kept - vanishing;
        relative + vanishing
    };
    let moved: Vec<f64> = (0..attended.len()).map(&mut moved).collect();
    if least.is_nan() || least <= 0.0 {
        return (Exponentials::Unbounded, nan);
    }
    let known = Known { p, moved, total, scale, least, rho, max, over_all, widest, attended };
    (Exponentials::Known(known), nan)
}

/// Dot products of one query with some keys, which most models share.
#[derive(Default)]
pub(super) struct Dots {
    q: Vec<f64>,
    keys: Vec<usize>,
    /// Σ q·k and Σ |q·k|
    sums: Vec<(f64, f64)>,
}

/// The logits of one row, recomputed in f64.
pub(super) struct Logits<'a> {
    inputs: &'a Inputs,
    row: Row,
    model: RoundingModel,
    arithmetic: Arithmetic,
    /// The query, and the radii of its numbers where they are multiplied by the scaling first.
    pub(super) q: Vec<f64>,
    pub(super) radii: Option<Vec<f64>>,
    /// Prescaled logits are those to base 2 until they are compared with others.
    unit: f64,
}

impl<'a> Logits<'a> {
    pub(super) fn new(inputs: &'a Inputs, model: RoundingModel, row @ (b, head, query): Row) -> Self {
        let arithmetic = Arithmetic::of_attention(model, inputs.storage());
        let unit = if model.exp == Exponent::Prescaled { std::f64::consts::LOG2_E } else { 1.0 };
        let q = inputs.queries(b, head).row(query).iter().map(|&x| f64::from(x)).collect();
        let mut logits = Self { inputs, row, model, arithmetic, q, radii: None, unit };
        if arithmetic.factor_first {
            let scaled =
                logits.q.iter().map(|&x| scaled_number(arithmetic, (x, 0.0), inputs.scaling() * unit));
            let (q, radii) = scaled.unzip();
            (logits.q, logits.radii) = (q, Some(radii));
        }
        logits
    }

    /// How much of a logit one unit of q·k makes.
    pub(super) fn scale(&self) -> f64 {
        if self.radii.is_some() { 1.0 / self.unit } else { self.inputs.scaling() }
    }

    /// Those at some keys, with A, from the same dot products as before where these are of the same query and keys.
    fn at(&self, keys: &[usize], dots: &mut Dots) -> Vec<Approximate> {
        let ((b, head, query), d) = (self.row, self.q.len());
        let rows = self.inputs.keys(b, head).to_slice().expect("inputs have the standard layout");
        let k = |key: usize| &rows[key * d..][..d];
        let carried = |key: usize| {
            let Some(radii) = &self.radii else { return 0.0 };
            let carried: f64 = radii.iter().zip(k(key)).map(|(radius, &k)| radius * f64::from(k.abs())).sum();
            if carried.is_nan() { f64::INFINITY } else { carried }
        };
        let additive = self.inputs.additive(b, head, query);
        if dots.q != self.q || dots.keys != keys {
            *dots = Dots { q: self.q.clone(), keys: keys.to_vec(), sums: vec![(0.0, 0.0); keys.len()] };
            vectorised(
                #[inline(always)]
                || {
                    for (dot, &key) in dots.sums.iter_mut().zip(keys) {
                        *dot = sums(&self.q, k(key));
                    }
                },
            );
        }
        let logit =
            |(&key, (value, magnitude))| self.of_dot(value, magnitude, carried(key), additive.at(key));
        keys.iter().zip(dots.sums.iter().copied()).map(logit).collect()
    }

    /// One of them from q·k, the sum of its products' magnitudes and the error that they carry.
    pub(super) fn of_dot(&self, value: f64, magnitude: f64, carried: f64, mask: f32) -> Approximate {
        let (arithmetic, unit) = (self.arithmetic, self.unit);
        let dot = arithmetic.sum_of_products(self.q.len(), value, magnitude, carried);
        let scaled = match (self.model.exp, &self.radii) {
            (_, Some(_)) => dot,
            (Exponent::Prescaled, None) => arithmetic.scale_by(dot, self.inputs.scaling() * unit, 5),
            (_, None) => arithmetic.scale(dot, self.inputs.scaling()),
        };
        match self.model.exp {
            Exponent::Prescaled => in_units(arithmetic.add_scaled_mask(scaled, mask, unit), unit),
            Exponent::Natural | Exponent::Fast => arithmetic.add_mask(scaled, mask),
        }
    }
}

/// A logit in natural units.
fn in_units(logit: Approximate, unit: f64) -> Approximate {
    let value = logit.value / unit;
    Approximate { value, radius: logit.radius / unit + gamma(2, U64) * (value.abs() + logit.radius), ..logit }
}

/// u and η of the type that weights are rounded to; no rounding where they are kept in f32, whose roundings are counted apart.
pub(super) fn of_weights(model: RoundingModel, storage: Storage) -> (f64, f64) {
    (rounding(model.weights_kept, storage), underflow(model.weights_kept.of(storage)))
}

/// u of what is kept in the storage type.
pub(super) fn rounding(kept: Precision, storage: Storage) -> f64 {
    match kept {
        Precision::F32 => 0.0,
        Precision::F16 | Precision::Storage => kept.of(storage).unit_roundoff(),
    }
}

/// The output of one row with the radius in which a conforming implementation must be.
pub fn expected_row(inputs: &Inputs, mask: &Mask, model: RoundingModel, row: Row) -> Vec<Approximate> {
    expected_with(inputs, mask, model, row, (&Peaks::Anywhere, &mut Dots::default()))
}

fn expected_with(
    inputs: &Inputs,
    mask: &Mask,
    model: RoundingModel,
    row @ (b, head, _): Row,
    (peaks, dots): (&Peaks, &mut Dots),
) -> Vec<Approximate> {
    let values = inputs.values(b, head);
    let unbounded = || vec![Approximate::new(0.0, f64::INFINITY); values.ncols()];
    let (exponentials, nan) = exponentials(inputs, mask, model, row, (peaks, dots));
    // A row that takes its maximum over all keys may be NaN then; any other is bounded as ever.
    let or_nan = |x: Approximate| Approximate { may_be_plus_infinity: nan, ..x };
    let Known { p, moved, total, scale, least, rho, widest, attended, .. } = match exponentials {
        Exponentials::None => return vec![or_nan(Approximate::new(0.0, 0.0)); values.ncols()],
        Exponentials::Unbounded => return unbounded(),
        Exponentials::Known(known) => known,
    };
    let arithmetic = Arithmetic::of_attention(model, inputs.storage());
    let (u, eta) = of_weights(model, inputs.storage());
    let weights = model.weights_kept.of(inputs.storage());
    let weight = |j: usize| f64::from(attended[j].1);
    let n = attended.len();
    let moved_sum: f64 = moved.iter().sum();
    let own = recomputed_mean(n);
    let operands = product_error(model.attention_products, true, inputs.storage());
    // Products with values that are rounded themselves may underflow, and overflow, in that type.
    let rounded_products = model.attention_products == Products::Storage;
    let vanished = if rounded_products { n as f64 * underflow(inputs.storage()) } else { 0.0 };
    // Multiplied, not added: a product that is rounded to storage carries that into what f32 rounds later.
    let shares =
        [gamma(n, U32), gamma(n, arithmetic.accumulation), gamma(2, U32), gamma(5, u), own, operands];
    let sums = shares.iter().map(|share| 1.0 + share).product::<f64>() - 1.0;
    // Σe as the implementation may have it, and Σe|v| with `size` for S and `most` for Σ|v|/weight.
    let shifted = total * (1.0 + moved_sum) * widest.exp();
    let largest =
        if rounded_products { weights.largest().min(inputs.storage().largest()) } else { weights.largest() };
    let largest_sum = largest / ((1.0 + rho) * (1.0 + sums));
    let overflows = |size: f64, most: &dyn Fn() -> f64| shifted * size > largest_sum && most() > largest_sum;
    if overflows(1.0, &|| (0..n).map(|j| 1.0 / weight(j)).sum()) {
        return unbounded();
    }
    let output_type = inputs.storage();
    let columns = values.ncols();
    let rows = values.to_slice().expect("inputs have the standard layout");
    let v = |j: usize| &rows[attended[j].0 * columns..][..columns];
    let mut value = vec![0.0; columns];
    let [mut shift, mut farthest, mut size, mut moved_size, mut plain] = [(); 5].map(|()| vec![0.0; columns]);
    vectorised(
        #[inline(always)]
        || {
            for (j, p) in p.iter().enumerate() {
                for (value, &v) in value.iter_mut().zip(v(j)) {
                    *value += p * f64::from(v);
                }
            }
            for j in 0..n {
                let kept = moved[j] + moved_sum * p[j];
                let (p, moved) = (p[j], moved[j]);
                let sums = shift.iter_mut().zip(&mut farthest).zip(&mut size).zip(&mut moved_size);
                let sums = sums.zip(&mut plain).zip(value.iter().zip(v(j)));
                for (((((shift, farthest), of_size), moved_size), plain), (&value, &v)) in sums {
                    let v = f64::from(v);
                    let (away, size) = ((v - value).abs(), v.abs());
                    *shift += moved * away;
                    *farthest = if away > *farthest { away } else { *farthest };
                    *of_size += p * size;
                    *moved_size += kept * size;
                    *plain += size;
                }
            }
        },
    );
    let radius = |dim: usize, value: f64, of: &Sums| {
        let largest = of.farthest + value.abs();
        let (shift, size) = if moved_sum < 1.0 {
            let rest = 1.0 - moved_sum;
            ((of.shift / rest).min(of.farthest), (of.size + of.moved_size / rest).min(largest))
        } else {
            (of.farthest, largest)
        };
        if overflows(size, &|| (0..n).map(|j| f64::from(v(j)[dim].abs()) / weight(j)).sum()) {
            return None;
        }
        let rounded = sums * size
            + eta * of.plain
            + scale * (1.0 + value.abs() + shift) / least
            + 2.0 * vanished * (1.0 + 1.0 / total);
        let last = output_type.unit_roundoff() * (value.abs() + shift + rounded) + underflow(output_type);
        Some(shift + rounded + last)
    };
    let number = |dim: usize| {
        let of = Sums {
            shift: shift[dim],
            farthest: farthest[dim],
            size: size[dim],
            moved_size: moved_size[dim],
            plain: plain[dim],
        };
        match radius(dim, value[dim], &of) {
            Some(radius) => or_nan(Approximate::new(value[dim], radius)),
            None => Approximate::new(value[dim], f64::INFINITY),
        }
    };
    (0..columns).map(number).collect()
}

/// Sums over the attended keys for one number of an output, with the names of the derivation above.
struct Sums {
    /// Σ q_j |v_j − o|
    shift: f64,
    /// max |v_j − o|
    farthest: f64,
    /// Σ p_j |v_j|
    size: f64,
    /// Σ (q_j + Q·p_j)|v_j|
    moved_size: f64,
    /// Σ |v_j|
    plain: f64,
}

/// Σ q·k and Σ |q·k|, each in eight partial sums, one for each lane of a vector register.
#[inline(always)]
fn sums(q: &[f64], k: &[f32]) -> (f64, f64) {
    const LANES: usize = 8;
    let ((q, last_q), (k, last_k)) = (q.as_chunks::<LANES>(), k.as_chunks::<LANES>());
    let (mut products, mut magnitudes) = ([0.0; LANES], [0.0; LANES]);
    let mut add = |lane: usize, product: f64| {
        products[lane] += product;
        magnitudes[lane] += product.abs();
    };
    for (q, k) in q.iter().zip(k) {
        for lane in 0..LANES {
            add(lane, q[lane] * f64::from(k[lane]));
        }
    }
    for (lane, (q, &k)) in last_q.iter().zip(last_k).enumerate() {
        add(lane, q * f64::from(k));
    }
    (products.iter().sum(), magnitudes.iter().sum())
}

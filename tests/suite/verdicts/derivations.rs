//! The bounds of an output and of a log-sum-exp, evaluated in full as SPEC §5 and the modules derive them: terms of higher order,
//! underflow and overflow included, which a comparison to first order leaves out (`widths`). Logits come with the radii that
//! `widths` compares one operation at a time; everything after them is derived here again.

use doublecheck::algorithm::{InputParts, Inputs, Mask, Storage};
use doublecheck::cases::{Accumulation, Exponent, LabelRounding, Precision, Products, RoundingModel};
use doublecheck::verdicts::bounds::{Approximate, Arithmetic, U32, U64};
use doublecheck::verdicts::lse::expected_lse;
use doublecheck::verdicts::output::expected_row;
use ndarray::Array4;
use rstest::rstest;

/// One row of one head, d = 1, with an additive mask.
#[derive(Debug, Clone)]
struct Row {
    /// q·k of each key, as q is 1.
    dots: Vec<f32>,
    additive: Vec<f32>,
    /// 0 for keys that are not attended.
    weights: Vec<f32>,
    values: Vec<f32>,
    scaling: f64,
}

impl Row {
    fn inputs(&self, storage: Storage) -> (Inputs, Mask) {
        let n = self.dots.len();
        let of = |numbers: &[f32]| Array4::from_shape_vec((1, 1, n, 1), numbers.to_vec()).unwrap();
        let row = |numbers: &[f32]| Array4::from_shape_vec((1, 1, 1, n), numbers.to_vec()).unwrap();
        let inputs = Inputs::new(InputParts {
            q: Array4::ones((1, 1, 1, 1)),
            k: of(&self.dots),
            v: of(&self.values),
            attention_mask: Some(row(&self.additive)),
            causal: false,
            storage,
            scaling: Some(self.scaling),
        })
        .unwrap();
        let mask = Mask::from_weights(row(&self.weights), &inputs.dims()).unwrap();
        (inputs, mask)
    }

    fn found(&self, storage: Storage, model: RoundingModel) -> (Approximate, Approximate) {
        let (inputs, mask) = self.inputs(storage);
        (expected_row(&inputs, &mask, model, (0, 0, 0))[0], expected_lse(&inputs, &mask, model, (0, 0, 0)))
    }
}

/// k·u / (1 − k·u)
fn gamma(k: usize, u: f64) -> f64 {
    k as f64 * u / (1.0 - k as f64 * u)
}

fn unit(storage: Storage) -> f64 {
    2f64.powi(match storage {
        Storage::F32 => -24,
        Storage::F16 => -11,
        Storage::Bf16 => -8,
    })
}

fn underflow(storage: Storage) -> f64 {
    2f64.powi(if storage == Storage::F16 { -25 } else { -126 })
}

/// What is known of the exponentials of a row, with the names of `verdicts::output`.
struct Derived {
    model: RoundingModel,
    storage: Storage,
    /// Logits of the attended keys, their weights in the mask and their values.
    keys: Vec<(Approximate, f64, f64)>,
    p: Vec<f64>,
    /// q_j
    moved: Vec<f64>,
    /// Σe
    total: f64,
    /// η·s
    scale: f64,
    rho: f64,
    /// L
    least: f64,
    max: f64,
    over_all: f64,
    /// D
    widest: f64,
}

impl Derived {
    fn new(row: &Row, storage: Storage, model: RoundingModel) -> Self {
        let (inputs, _) = row.inputs(storage);
        let arithmetic = Arithmetic::of_attention(model, storage);
        let logit = |key: usize| {
            let dot = f64::from(inputs.keys(0, 0)[[key, 0]]);
            let dot = arithmetic.sum_of_products(1, dot, dot.abs(), 0.0);
            let a = row.additive[key];
            if model.exp != Exponent::Prescaled {
                return arithmetic.add_mask(arithmetic.scale(dot, row.scaling), a);
            }
            let unit = std::f64::consts::LOG2_E;
            let scaled = arithmetic.scale_by(dot, row.scaling * unit, 5);
            let logit = arithmetic.add_scaled_mask(scaled, a, unit);
            let (value, radius) = (logit.value / unit, logit.radius / unit);
            // What f64 rounds of the value and of the constant.
            Approximate { value, radius: radius + 2.0 * U64 * (value.abs() + radius), ..logit }
        };
        let logits: Vec<Approximate> = (0..row.dots.len()).map(logit).collect();
        let values = inputs.values(0, 0);
        let keys: Vec<_> = (0..logits.len())
            .filter(|&key| row.weights[key] > 0.0)
            .map(|key| (logits[key], f64::from(row.weights[key]), f64::from(values[[key, 0]])))
            .collect();
        let over_all = logits.iter().map(|w| w.high()).fold(f64::NEG_INFINITY, f64::max);
        let max = keys.iter().map(|key| key.0.value).fold(f64::NEG_INFINITY, f64::max);
        // A logit that may be −∞ has no radius: its key may be lost.
        let radius = |w: Approximate| if w.may_be_minus_infinity { 0.0 } else { w.radius };
        let widest = keys.iter().map(|key| radius(key.0)).fold(0.0, f64::max);
        let (u, eta) = Self::of_weights(model, storage);
        let u_of_scores = if model.scores_kept == Precision::F32 { 0.0 } else { unit(arithmetic.kept) };
        let of_argument = if model.exp == Exponent::Fast { 4.0 } else { 3.0 };
        let rho = gamma(2 + 2 * usize::from(model.exp_ulps), U32) + gamma(3, u);
        let e: Vec<f64> = keys.iter().map(|(w, weight, _)| (w.value - max).exp() / weight).collect();
        let total: f64 = e.iter().sum();
        let p: Vec<f64> = e.iter().map(|e| e / total).collect();
        let scale = eta * (over_all - max + widest).exp() / total;
        let (mut moved, mut least) = (Vec::new(), -scale);
        for (&(w, weight, _), p) in keys.iter().zip(&p) {
            let spread = over_all - w.value + radius(w) + widest;
            let exponent = radius(w) + spread * (of_argument * U32 + u_of_scores);
            // e^x(1 + ρ) − 1
            let (factor, grown) = (exponent.exp(), exponent.exp_m1());
            let relative = grown + rho + grown * rho;
            let lost = w.may_be_minus_infinity;
            moved.push(p * if lost { relative.max(1.0) } else { relative } + scale / weight);
            least += if lost { 0.0 } else { p * (1.0 - rho) / factor } - scale / weight;
        }
        Self { model, storage, keys, p, moved, total, scale, rho, least, max, over_all, widest }
    }

    fn of_weights(model: RoundingModel, storage: Storage) -> (f64, f64) {
        let kept = model.weights_kept.of(storage);
        (if model.weights_kept == Precision::F32 { 0.0 } else { unit(kept) }, underflow(kept))
    }

    /// The error of a mean in f64: 749 roundings of each exponential and one for each term, above and below.
    fn of_f64(&self) -> f64 {
        gamma(2 * (749 + self.keys.len()), U64)
    }

    /// The radius of the output; `None` where nothing is known.
    fn output(&self) -> Option<f64> {
        let (n, (u, eta)) = (self.keys.len(), Self::of_weights(self.model, self.storage));
        let q: f64 = self.moved.iter().sum();
        let kept = self.model.weights_kept.of(self.storage);
        let accumulated = if self.model.accumulation == Accumulation::F32 { U32 } else { U64 };
        let rounded = self.model.attention_products == Products::Storage;
        let operands = match self.model.attention_products {
            Products::Exact => 0.0,
            Products::Tf32 => (1.0 + 2f64.powi(-10)).powi(2) - 1.0,
            Products::Storage => unit(self.storage),
        };
        let factors =
            [gamma(n, U32), gamma(n, accumulated), gamma(2, U32), gamma(5, u), self.of_f64(), operands];
        let sigma = factors.into_iter().map(f64::ln_1p).sum::<f64>().exp_m1();
        let largest = if rounded { kept.largest().min(self.storage.largest()) } else { kept.largest() };
        // No exponential is above 1, as none of its own logits is above its maximum.
        let overflows = |of_e: f64, of_ones: f64| {
            (self.total * (1.0 + q) * self.widest.exp() * of_e).min(of_ones)
                * (1.0 + self.rho)
                * (1.0 + sigma)
                > largest
        };
        let sum = |of: &dyn Fn(usize) -> f64| (0..n).map(of).sum::<f64>();
        if self.least <= 0.0 || overflows(1.0, sum(&|j| 1.0 / self.keys[j].1)) {
            return None;
        }
        let v = |j: usize| self.keys[j].2;
        let o = sum(&|j| self.p[j] * v(j));
        let farthest = (0..n).map(|j| (v(j) - o).abs()).fold(0.0, f64::max);
        let mean = |of: f64, otherwise: f64| if q < 1.0 { f64::min(of, otherwise) } else { otherwise };
        let shift = mean(sum(&|j| self.moved[j] * (v(j) - o).abs()) / (1.0 - q), farthest);
        let of_moved = sum(&|j| (self.moved[j] + q * self.p[j]) * v(j).abs());
        let size = mean(sum(&|j| self.p[j] * v(j).abs()) + of_moved / (1.0 - q), farthest + o.abs());
        if overflows(size, sum(&|j| v(j).abs() / self.keys[j].1)) {
            return None;
        }
        let vanished = if rounded { n as f64 * underflow(self.storage) } else { 0.0 };
        let sums = sigma * size
            + eta * sum(&|j| v(j).abs())
            + self.scale * (1.0 + o.abs() + shift) / self.least
            + 2.0 * vanished * (1.0 + 1.0 / self.total);
        let last = unit(self.storage) * (o.abs() + shift + sums) + underflow(self.storage);
        Some(shift + sums + last)
    }

    /// The radius of the log-sum-exp of blocks that are merged; `None` where nothing is known.
    fn log_sum_exp(&self) -> Option<f64> {
        let (n, (u, eta)) = (self.keys.len(), Self::of_weights(self.model, self.storage));
        let scores = self.model.scores_kept;
        let u = if scores == Precision::F32 { u } else { u.max(unit(scores.of(self.storage))) };
        let eta = eta.max(underflow(scores.of(self.storage)));
        // The sum underflows once more.
        let q = self.moved.iter().sum::<f64>() + self.scale;
        let ulps = 2 * usize::from(self.model.exp_ulps);
        let sigma = gamma((2 + ulps) * n, U32) + gamma(2, u) + self.of_f64();
        let of_merging = gamma((4 + ulps) * n, U32) + gamma(2, u) + self.rho;
        if self.least <= 0.0 || [q, sigma, of_merging].into_iter().any(|share| !(0.0..1.0).contains(&share)) {
            return None;
        }
        let l = (self.max + self.total.ln()).abs();
        let m = self.max.abs().max(self.over_all.abs()) + self.widest;
        let of_sum = -(-q).ln_1p() - (-sigma).ln_1p();
        let logarithm = (8.0 * U32 + u) * (l + m + of_sum) + 2f64.powi(-21) + 4.0 * U32 * m;
        let added = |error: f64| error + (U32 + u) * (l + error) + eta;
        let of_block = added(of_sum + logarithm);
        Some(added(of_block - (-of_merging).ln_1p() + logarithm))
    }
}

fn model(scores: Precision, weights: Precision) -> RoundingModel {
    let model = RoundingModel::new(LabelRounding::Exact, scores, Accumulation::F32);
    RoundingModel { weights_kept: weights, ..model }
}

fn models() -> Vec<RoundingModel> {
    use Precision::{F16, F32, Storage};
    let plain = [(F32, F32), (Storage, Storage), (F32, Storage), (Storage, F32), (F16, F16)];
    let plain = plain.map(|(scores, weights)| model(scores, weights));
    let stored = model(F32, F32);
    let others = [
        RoundingModel { exp: Exponent::Prescaled, ..stored },
        RoundingModel { exp: Exponent::Prescaled, ..plain[1] },
        RoundingModel { exp: Exponent::Fast, ..stored },
        RoundingModel { exp_ulps: 0, ..stored },
        RoundingModel { exp_ulps: 4096, ..stored },
        RoundingModel { exp_ulps: 4096, ..plain[2] },
        RoundingModel { accumulation: Accumulation::F64, ..stored },
        RoundingModel { attention_products: Products::Tf32, ..stored },
        RoundingModel { attention_products: Products::Storage, ..stored },
        RoundingModel { attention_products: Products::Storage, ..plain[1] },
    ];
    [&plain[..], &others[..]].concat()
}

fn compare(what: &str, found: f64, expected: Option<f64>) -> bool {
    let Some(expected) = expected else {
        assert_eq!(found, f64::INFINITY, "{what}: nothing is known");
        return false;
    };
    // The verdict takes factors near 1 and their logarithms in f64.
    let of_f64 = 8.0 * U64 + 1e-11 * expected;
    let off = found - expected;
    assert!(off.abs() <= of_f64, "{what}: found {found:e}, derived {expected:e}, off by {off:.1e}");
    true
}

/// Keys that are not attended may lie far above those that are, weights differ from 1, exponentials underflow, a logit may be −∞, and
/// errors reach the size of what they move.
#[rstest]
#[case::one_key(&[0.0], &[0.0], &[1.0], &[0.75], 1.0)]
#[case::equal_keys(&[0.5, 0.5, 0.5], &[0.0; 3], &[1.0; 3], &[1.0, -2.0, 0.5], 0.5)]
#[case::weights(&[0.5, -1.0, 2.0, 0.0], &[0.0; 4], &[0.25, 1.0, 0.5, 0.0], &[1.0, -2.0, 0.5, 9.0], 0.5)]
#[case::far_below_the_largest(&[0.0, -1.0, 9.0], &[0.0; 3], &[0.5, 0.25, 0.0], &[1.0, -0.5, 0.0], 1.0)]
#[case::alone_far_below(&[0.0, 13.0], &[0.0; 2], &[0.5, 0.0], &[0.4375, 0.0], 1.0)]
#[case::large_masks(&[0.0; 3], &[-60.3, -61.7, -50.1], &[1.0, 0.5, 0.0], &[1.0, -1.0, 0.0], 1.0)]
#[case::larger_masks(&[0.0; 3], &[-1000.3, -1000.7, -995.1], &[1.0, 0.5, 0.0], &[1.0, -1.0, 0.0], 1.0)]
#[case::what_cancels(&[300.0, 20.0], &[-300.5, -20.0], &[1.0, 0.5], &[2.0, -1.0], 1.0)]
#[case::perhaps_lost(&[0.0, 0.0, 1.0], &[0.0, -1e6, 0.5], &[1.0; 3], &[1.0, 5.0, -0.5], 1.0)]
#[case::tiny_values(&[0.0, -9.0], &[0.0; 2], &[1.0; 2], &[0.0, 1e-6], 1.0)]
#[case::a_logarithm_of_0(&[-0.5], &[0.5], &[1.0], &[1.0], 1.0)]
#[case::below_zero(&[-3.0, 5.0], &[-2.0, 0.0], &[1.0, 0.0], &[-1.0, 0.0], 1.0)]
fn radii_are_those_of_their_derivation(
    #[case] dots: &[f32],
    #[case] additive: &[f32],
    #[case] weights: &[f32],
    #[case] values: &[f32],
    #[case] scaling: f64,
) {
    let [dots, additive, weights, values] = [dots, additive, weights, values].map(<[f32]>::to_vec);
    let row = Row { dots, additive, weights, values, scaling };
    let mut bounded = 0;
    for model in models() {
        for storage in Storage::ALL {
            let (output, lse) = row.found(storage, model);
            let derived = Derived::new(&row, storage, model);
            let what = format!("{model} {storage}");
            bounded += usize::from(compare(&format!("{what}: output"), output.radius, derived.output()));
            compare(&format!("{what}: log-sum-exp"), lse.radius, derived.log_sum_exp());
        }
    }
    assert!(bounded >= 10, "{bounded}");
}

/// Many keys of little weight each: what their exponentials lose adds up.
#[test]
fn many_exponentials_that_underflow_add_up() {
    let n = 300;
    let mut row = Row {
        dots: vec![-9.0; n],
        additive: vec![0.0; n],
        weights: vec![1.0; n],
        values: (0..n).map(|j| if j % 2 == 0 { 1.5 } else { -1.0 }).collect(),
        scaling: 1.0,
    };
    row.dots[0] = 0.0;
    for model in models() {
        for storage in Storage::ALL {
            let (output, lse) = row.found(storage, model);
            let derived = Derived::new(&row, storage, model);
            compare(&format!("{model} {storage}: output"), output.radius, derived.output());
            compare(&format!("{model} {storage}: log-sum-exp"), lse.radius, derived.log_sum_exp());
        }
    }
}

/// In f16 a denominator or a numerator may be an infinity: where Σe or Σe·|v| is too large with all that moves it, and never where even
/// exponentials of 1 would fit. Weights, by which exponentials are divided, carry them there.
#[rstest]
#[case::of_the_largest_key(&[0.0, 0.0], 1.0, 0)]
#[case::far_below_the_largest(&[0.0, -3.0], 1.0, 1)]
#[case::logits_of_little_accuracy(&[-1000.0, -1003.0], 1.0, 1)]
#[case::values(&[-400.0, -402.0], 20.0, 1)]
#[case::values_of_the_largest_key(&[0.0, -1.0], 37.5, 0)]
fn a_sum_may_overflow_where_its_derivation_says(
    #[case] additive: &[f32],
    #[case] value: f32,
    #[case] light: usize,
) {
    let (model, storage) = (model(Precision::Storage, Precision::Storage), Storage::F16);
    let row = |weight: f32| {
        let mut weights = vec![1.0; 2];
        weights[light] = weight;
        Row {
            dots: vec![0.0; 2],
            additive: additive.to_vec(),
            weights,
            values: vec![value, -value],
            scaling: 1.0,
        }
    };
    let is_open = |weight: f32| row(weight).found(storage, model).0.radius == f64::INFINITY;
    // From where on it overflows.
    let (mut bounded, mut open) = (1.0f32, 1e-7f32);
    assert!(!is_open(bounded) && is_open(open));
    while bounded / open > 1.0 + 1e-6 {
        let middle = (bounded * open).sqrt();
        *if is_open(middle) { &mut open } else { &mut bounded } = middle;
    }
    let derived = |weight: f32| Derived::new(&row(weight), storage, model).output().is_none();
    assert!(!derived(bounded * (1.0 + 1e-5)) && derived(open * (1.0 - 1e-5)), "{bounded}");
}

/// e^D and Q make a sum larger, but no exponential is larger than 1: 50,000 keys fit in f16 however inaccurate their logits are. A key
/// that would fill f16 alone, if its exponential were 1, does not where its exponential is small.
#[test]
fn neither_inaccurate_logits_nor_small_weights_make_a_sum_overflow_alone() {
    let (model, storage) = (model(Precision::Storage, Precision::Storage), Storage::F16);
    let many = Row {
        dots: vec![0.0; 2],
        additive: vec![-1000.0; 2],
        weights: vec![1.0 / 25_000.0; 2],
        values: vec![1.0, 1.0],
        scaling: 1.0,
    };
    let derived = Derived::new(&many, storage, model);
    assert!(derived.total * derived.widest.exp() > storage.largest());
    assert!(many.found(storage, model).0.radius < f64::INFINITY);
    let small = Row { additive: vec![0.0, -15.0], weights: vec![1.0, 1e-5], ..many };
    assert!(small.found(storage, model).0.radius < f64::INFINITY);
}

/// Where the exponentials may be off by all of their sum, or a sum or its blocks by all that they hold, a log-sum-exp may be anything.
#[rstest]
#[case::exponentials(&[-1000.3, -1000.7], 2, 2)]
#[case::sums_of_inaccurate_exponentials(&[0.0], 65_000, 66)]
#[case::blocks_alone(&[0.0], 65_000, 64)]
fn a_log_sum_exp_whose_sum_may_vanish_may_be_anything(
    #[case] additive: &[f32],
    #[case] exp_ulps: u16,
    #[case] keys: usize,
) {
    let model = RoundingModel { exp_ulps, ..model(Precision::Storage, Precision::Storage) };
    let row = Row {
        dots: vec![0.0; keys],
        additive: additive.iter().copied().cycle().take(keys).collect(),
        weights: vec![1.0; keys],
        values: vec![1.0; keys],
        scaling: 1.0,
    };
    let (_, lse) = row.found(Storage::Bf16, model);
    assert_eq!((lse.radius, Derived::new(&row, Storage::Bf16, model).log_sum_exp()), (f64::INFINITY, None));
}

//! How wide the bounds are. A bound that is wider than its derivation, or that forgets a term, lets faults through without any
//! other test noticing: right answers conform all the same. Each rule is compared here with the roundings that SPEC §5 counts,
//! to first order and summed up again by hand, in inputs in which one term at a time is most of the bound.

use doublecheck::algorithm::{InputParts, Inputs, Mask, Storage};
use doublecheck::cases::{Accumulation, AnsweredLabels, LabelRounding, Precision, RoundingModel};
use doublecheck::verdicts::bounds::{Approximate, Arithmetic, U32, U64};
use doublecheck::verdicts::certificate::{Candidacy, ScoreBounds};
use doublecheck::verdicts::output::expected_row;
use ndarray::Array4;

use crate::support::small_case;

/// Kept in the storage type, sums in f32 or f64.
fn models() -> [RoundingModel; 4] {
    let model = |kept, sums| RoundingModel::new(LabelRounding::Exact, kept, sums);
    [
        model(Precision::Storage, Accumulation::F32),
        model(Precision::Storage, Accumulation::F64),
        model(Precision::F32, Accumulation::F32),
        model(Precision::F16, Accumulation::F32),
    ]
}

fn each(mut check: impl FnMut(RoundingModel, Storage, Arithmetic)) {
    for model in models() {
        for storage in Storage::ALL {
            check(model, storage, Arithmetic::new(model, storage));
        }
    }
}

/// u and η of what is kept.
fn units(arithmetic: &Arithmetic) -> (f64, f64) {
    match arithmetic.kept {
        Storage::F32 => (2f64.powi(-24), 2f64.powi(-126)),
        Storage::F16 => (2f64.powi(-11), 2f64.powi(-25)),
        Storage::Bf16 => (2f64.powi(-8), 2f64.powi(-126)),
    }
}

/// Equal but for what f64 rounds, and for terms of higher order of shares as large as `share`.
fn assert_width(found: f64, expected: f64, share: f64, what: &str) {
    let slack = 8.0 * share + 1e-12;
    assert!(
        found >= expected * (1.0 - 1e-12) && found <= expected * (1.0 + slack),
        "{what}: found {found:e}, expected {expected:e} and at most {slack:.1e} more"
    );
}

const NUMBERS: [(f64, f64); 7] =
    [(1.0, 0.0), (-3.25, 0.0), (0.1, 1e-3), (-700.5, 0.25), (2e-3, 1e-6), (0.0, 0.5), (4096.0, 3.0)];

#[test]
fn a_rounding_is_half_a_unit_and_an_underflow() {
    each(|model, storage, arithmetic| {
        let (u, eta) = units(&arithmetic);
        for (value, radius) in NUMBERS {
            let rounded = arithmetic.round(Approximate::new(value, radius));
            assert_eq!(rounded.value, value);
            assert_width(
                rounded.radius,
                radius + u * (value.abs() + radius) + eta,
                0.0,
                &format!("{model} {storage} {value}"),
            );
            assert_eq!((rounded.low(), rounded.high()), (value - rounded.radius, value + rounded.radius));
        }
    });
}

/// Beyond the largest number it may be an infinity of that sign, and of no other; a few units below it may not.
#[test]
fn only_what_lies_beyond_the_largest_number_overflows() {
    each(|model, storage, arithmetic| {
        let (largest, (u, _)) = (arithmetic.kept.largest(), units(&arithmetic));
        for (share, radius, opens) in [
            (1.0 - 3.0 * u, 0.0, false),
            (1.0 - 0.5 * u, 0.0, true),
            (0.5, 0.49, false),
            (0.5, 0.51, true),
            (-0.5, 0.49, false),
        ] {
            let (value, radius) = (largest * share, largest * radius);
            for sign in [1.0, -1.0] {
                let found = arithmetic.round(Approximate::new(sign * value, radius));
                let expected = if sign > 0.0 { (false, opens) } else { (opens, false) };
                let found = (found.may_be_minus_infinity, found.may_be_plus_infinity);
                assert_eq!(found, expected, "{model} {storage} {share} ± {radius:e}");
            }
        }
        // Infinities of both signs, where the radius reaches both.
        let both = arithmetic.round(Approximate::new(0.0, 1.5 * largest));
        assert!(both.may_be_minus_infinity && both.may_be_plus_infinity);
        assert_eq!((both.low(), both.high()), (f64::NEG_INFINITY, f64::INFINITY));
    });
}

/// Of A only what the cast rounds is added, which is known exactly, and the sum is rounded once.
#[test]
fn an_additive_mask_widens_by_its_cast_and_one_rounding() {
    let mut casts = 0;
    each(|model, storage, arithmetic| {
        let (u, eta) = units(&arithmetic);
        for (value, radius) in NUMBERS {
            for mask in [-3.3f32, 0.1, 1000.7, -1e-3, 2.0, -64.0] {
                let added = arithmetic.add_mask(Approximate::new(value, radius), mask);
                let a = f64::from(mask);
                let cast = (f64::from(arithmetic.kept.round(mask)) - a).abs();
                casts += usize::from(cast > 0.0);
                let expected = radius + cast;
                let expected = expected + u * ((value + a).abs() + expected) + eta;
                assert_eq!(added.value, value + a);
                assert_width(added.radius, expected, 0.0, &format!("{model} {storage} {value} + {mask}"));
                assert!(!added.may_be_minus_infinity && !added.may_be_plus_infinity);
            }
            let unchanged = Approximate::new(value, radius);
            assert_eq!(arithmetic.add_mask(unchanged, 0.0), unchanged, "where A is 0 nothing is added");
            assert_eq!(arithmetic.add_mask(unchanged, f32::NEG_INFINITY), Approximate::EXCLUDED);
            if arithmetic.kept == Storage::F16 {
                // Cast to −∞ or +∞: that side opens, and the cast carries no error beside it.
                for (mask, opens) in [(-1e6f32, (true, false)), (1e6, (false, true))] {
                    let added = arithmetic.add_mask(unchanged, mask);
                    assert_eq!((added.may_be_minus_infinity, added.may_be_plus_infinity), opens);
                    let beyond = (value + f64::from(mask)).abs();
                    assert_width(
                        added.radius,
                        radius + u * (beyond + radius) + eta,
                        0.0,
                        "a mask beyond f16",
                    );
                }
            }
        }
    });
    assert!(casts > 100, "{casts}");
}

#[test]
fn a_sum_of_products_widens_by_as_many_roundings_as_it_has_terms() {
    each(|model, storage, arithmetic| {
        let (u, eta) = units(&arithmetic);
        let accumulated = if model.accumulation == Accumulation::F32 { U32 } else { U64 };
        for (terms, value, magnitude, carried) in
            [(1, 2.0, 2.0, 0.0), (64, 0.5, 90.0, 0.0), (128, -3.0, 3.0, 0.25), (16, 0.0, 8.0, 1e-6)]
        {
            let found = arithmetic.sum_of_products(terms, value, magnitude, carried);
            let n = terms as f64;
            let sum =
                carried + (n * accumulated + (n + 1.0) * U64) * (magnitude + carried) + n * 2f64.powi(-126);
            let expected = sum + u * (f64::abs(value) + sum) + eta;
            assert_eq!(found.value, value);
            assert_width(found.radius, expected, 1e-5, &format!("{model} {storage} {terms} terms"));
        }
    });
}

#[test]
fn a_factor_widens_by_three_roundings_of_f32_and_one_of_what_is_kept() {
    each(|model, storage, arithmetic| {
        let (u, eta) = units(&arithmetic);
        for (value, radius) in NUMBERS {
            for factor in [0.125f64, -0.37, 3.0] {
                let found = arithmetic.scale(Approximate::new(value, radius), factor);
                let (x, r) = (value * factor, radius * factor.abs());
                let r = r + 3.0 * U32 * (x.abs() + r);
                assert_eq!(found.value, x);
                assert_width(
                    found.radius,
                    r + u * (x.abs() + r) + eta,
                    1e-6,
                    &format!("{model} {storage} {value} · {factor}"),
                );
            }
        }
    });
}

/// h additions in f32, two more for a mean, of the magnitudes with their radii; the radii are carried.
#[test]
fn a_sum_over_heads_widens_by_its_additions() {
    each(|model, storage, arithmetic| {
        let (u, eta) = units(&arithmetic);
        for heads in [1usize, 2, 5] {
            let parts: Vec<Approximate> = NUMBERS
                .iter()
                .cycle()
                .take(heads)
                .map(|&(value, radius)| Approximate::new(value, radius))
                .collect();
            let found = arithmetic.sum_over_heads(&parts);
            let value: f64 = parts.iter().map(|part| part.value).sum();
            let carried: f64 = parts.iter().map(|part| part.radius).sum();
            let magnitude: f64 = parts.iter().map(|part| part.value.abs() + part.radius).sum();
            let sum = carried + (heads + 2) as f64 * U32 * magnitude;
            assert_eq!(found.value, value);
            assert_width(
                found.radius,
                sum + u * (value.abs() + sum) + eta,
                1e-6,
                &format!("{model} {storage} {heads} heads"),
            );
        }
        // In f32 a sum may overflow where its magnitudes do, and not before. What is left of it may overflow f16.
        if arithmetic.kept == Storage::F16 {
            return;
        }
        let largest = Storage::F32.largest();
        for (share, opens) in [(0.49, false), (0.51, true)] {
            let parts = [Approximate::new(share * largest, 0.0), Approximate::new(-share * largest, 0.0)];
            let found = arithmetic.sum_over_heads(&parts);
            assert_eq!(found.may_be_plus_infinity, opens, "{model} {storage}");
            assert_eq!(found.may_be_minus_infinity, opens, "{model} {storage}");
        }
    });
}

/// Labels that are given in f16 are known up to half a unit; each of the two carries its radius into the product with the other.
#[test]
fn a_score_widens_by_what_its_labels_carry() {
    let mut compared = 0;
    for kept in [Precision::F32, Precision::Storage] {
        let model = RoundingModel::new(LabelRounding::Rounded, kept, Accumulation::F32);
        let mut case = small_case();
        let mut parts = case.call.inputs.parts().clone();
        parts.storage = Storage::F16;
        case = case.with_inputs(Inputs::new(parts).unwrap());
        let (dims, channels) = (case.dims(), 2);
        let number = |seed: usize| ((seed as f32 * 0.73).sin() * 8.0 * 256.0).round() / 256.0;
        let labels = AnsweredLabels {
            q: Array4::from_shape_fn((1, dims.heads, dims.queries, channels), |(_, h, i, c)| {
                number(1 + h + 5 * i + 17 * c)
            }),
            k: Array4::from_shape_fn((1, dims.heads, dims.keys, channels), |(_, h, j, c)| {
                number(3 + 7 * h + 2 * j + 11 * c)
            }),
        };
        let before = case.before().unwrap();
        let bounds =
            ScoreBounds::from_labels(&case.instance, &case.call, model, &before, &labels).unwrap().unwrap();
        let u = 2f64.powi(-11);
        let (of_kept, eta) =
            if kept == Precision::F32 { (U32, 2f64.powi(-126)) } else { (u, 2f64.powi(-25)) };
        for row @ (_, head, query) in dims.rows() {
            for (key, candidacy) in bounds.row(row).into_iter().enumerate() {
                let Candidacy::Scored(found) = candidacy else { continue };
                let (mut value, mut magnitude, mut carried) = (0.0, 0.0, 0.0);
                for c in 0..channels {
                    let (q, k) =
                        (f64::from(labels.q[[0, head, query, c]]), f64::from(labels.k[[0, head, key, c]]));
                    value += q * k;
                    magnitude += (q * k).abs();
                    // Each of the two is off by half a unit.
                    carried += 2.0 * u * (q * k).abs();
                }
                let factor = 1.0 / (channels as f64).sqrt();
                let sum = carried + channels as f64 * U32 * magnitude;
                let sum = sum + of_kept * f64::abs(value) + eta;
                let expected = sum * factor + (3.0 * U32 + of_kept) * f64::abs(value) * factor + eta;
                assert_width(found.radius, expected, 4.0 * u, &format!("{model} {row:?} {key}"));
                compared += 1;
            }
        }
    }
    assert!(compared >= 20, "{compared}");
}

/// One row of one head.
struct Attention {
    name: &'static str,
    q: Vec<f32>,
    keys: Vec<Vec<f32>>,
    values: Vec<f32>,
    /// Weights of the keys in the mask, 0 for those that are not attended.
    weights: Vec<f32>,
    scaling: f64,
}

impl Attention {
    fn inputs(&self, storage: Storage) -> (Inputs, Mask) {
        let (n, d) = (self.keys.len(), self.q.len());
        let inputs = Inputs::new(InputParts {
            q: Array4::from_shape_vec((1, 1, 1, d), self.q.clone()).unwrap(),
            k: Array4::from_shape_vec((1, 1, n, d), self.keys.concat()).unwrap(),
            v: Array4::from_shape_vec((1, 1, n, 1), self.values.clone()).unwrap(),
            attention_mask: None,
            causal: false,
            storage,
            scaling: Some(self.scaling),
        })
        .unwrap();
        let mask = Mask::from_weights(
            Array4::from_shape_vec((1, 1, 1, n), self.weights.clone()).unwrap(),
            &inputs.dims(),
        );
        (inputs, mask.unwrap())
    }

    /// The output's radius to first order: errors of exponents and exponentials as they move a mean, roundings of its sums, and the
    /// last rounding.
    fn first_order(&self, inputs: &Inputs, model: RoundingModel) -> (f64, f64) {
        let storage = inputs.storage();
        let kept = |precision: Precision| match precision.of(storage) {
            Storage::F32 => U32,
            Storage::F16 => 2f64.powi(-11),
            Storage::Bf16 => 2f64.powi(-8),
        };
        let rounding = |precision: Precision| if precision == Precision::F32 { 0.0 } else { kept(precision) };
        let accumulated = if model.accumulation == Accumulation::F32 { U32 } else { U64 };
        let d = self.q.len() as f64;
        let (q, k, v) = (&inputs.parts().q, &inputs.parts().k, &inputs.parts().v);
        let products = |key: usize| {
            (0..self.q.len()).map(move |c| f64::from(q[[0, 0, 0, c]]) * f64::from(k[[0, 0, key, c]]))
        };
        let logit = |key: usize| {
            let (sum, size): (f64, f64) = (products(key).sum(), products(key).map(f64::abs).sum());
            let dot = d * accumulated * size + kept(model.scores_kept) * sum.abs();
            let scaled = self.scaling * sum;
            (scaled, self.scaling * dot + (3.0 * U32 + kept(model.scores_kept)) * scaled.abs())
        };
        let logits: Vec<(f64, f64)> = (0..self.keys.len()).map(logit).collect();
        let attended: Vec<usize> = (0..self.keys.len()).filter(|&key| self.weights[key] > 0.0).collect();
        let over_all = logits.iter().map(|(w, r)| w + r).fold(f64::NEG_INFINITY, f64::max);
        let max = attended.iter().map(|&key| logits[key].0).fold(f64::NEG_INFINITY, f64::max);
        let widest = attended.iter().map(|&key| logits[key].1).fold(0.0, f64::max);
        let e: Vec<f64> =
            attended.iter().map(|&key| (logits[key].0 - max).exp() / f64::from(self.weights[key])).collect();
        let total: f64 = e.iter().sum();
        let p: Vec<f64> = e.iter().map(|e| e / total).collect();
        let value: Vec<f64> = attended.iter().map(|&key| f64::from(v[[0, 0, key, 0]])).collect();
        let output: f64 = p.iter().zip(&value).map(|(p, v)| p * v).sum();
        let of_weights = rounding(model.weights_kept);
        let rho = (2 + 2 * model.exp_ulps) as f64 * U32 + 3.0 * of_weights;
        let moved = attended.iter().zip(&p).map(|(&key, p)| {
            let (w, r) = logits[key];
            let spread = over_all - w + r + widest;
            p * (r + spread * (3.0 * U32 + rounding(model.scores_kept)) + rho)
        });
        let moved: Vec<f64> = moved.collect();
        let shift: f64 = moved.iter().zip(&value).map(|(moved, v)| moved * (v - output).abs()).sum();
        let size: f64 = p.iter().zip(&value).map(|(p, v)| p * v.abs()).sum();
        let n = attended.len() as f64;
        let sums = n * U32 + n * accumulated + 2.0 * U32 + 5.0 * of_weights;
        let eta = match model.weights_kept.of(storage) {
            Storage::F16 => 2f64.powi(-25),
            Storage::F32 | Storage::Bf16 => 2f64.powi(-126),
        };
        // A weight that underflows is off by η of its sum, which the largest logit of all keys may make smaller.
        let scale = eta * (over_all - max + widest).exp() / total;
        let vanishing: f64 = attended
            .iter()
            .zip(&value)
            .map(|(&key, v)| scale / f64::from(self.weights[key]) * (v - output).abs())
            .sum();
        let plain: f64 = value.iter().map(|v| v.abs()).sum();
        let rounded = sums * size + eta * plain + scale * (1.0 + output.abs());
        let before = shift + vanishing + rounded;
        let last = match storage {
            Storage::F32 => U32,
            Storage::F16 => 2f64.powi(-11),
            Storage::Bf16 => 2f64.powi(-8),
        };
        let share = moved.iter().sum::<f64>() + sums + last + widest;
        (before + last * (output.abs() + before), share)
    }
}

fn attentions() -> Vec<Attention> {
    let spread = |n: usize| (0..n).map(|j| (j as f32 * 0.37).sin()).collect::<Vec<_>>();
    let keys = |n: usize, d: usize, size: f32| {
        (0..n)
            .map(|j| (0..d).map(|c| size * ((3 * j + 7 * c) as f32 * 0.61).cos()).collect())
            .collect::<Vec<Vec<f32>>>()
    };
    let ones = |n: usize| vec![1.0; n];
    let mut far = keys(6, 8, 0.25);
    // Not attended, and far above the others.
    far[5] = vec![1.0; 8];
    let mut far_weights = ones(6);
    far_weights[5] = 0.0;
    vec![
        // q is 0: no logit has an error, and what is left are exponentials and sums.
        Attention {
            name: "exponentials",
            q: vec![0.0; 4],
            keys: keys(5, 4, 1.0),
            values: spread(5),
            weights: ones(5),
            scaling: 1.0,
        },
        // All values are nearly alike: only sums and the last rounding.
        Attention {
            name: "sums",
            q: vec![0.0; 4],
            keys: keys(40, 4, 1.0),
            values: vec![3.0; 40],
            weights: ones(40),
            scaling: 1.0,
        },
        // Large products that cancel.
        Attention {
            name: "logits",
            q: vec![2.0; 16],
            keys: keys(6, 16, 2.0),
            values: spread(6),
            weights: ones(6),
            scaling: 0.25,
        },
        // The maximum over all keys lies far above those that are attended.
        Attention {
            name: "spread",
            q: vec![1.0; 8],
            keys: far,
            values: spread(6),
            weights: far_weights,
            scaling: 1.0,
        },
        Attention {
            name: "weights",
            q: vec![0.5; 8],
            keys: keys(5, 8, 0.5),
            values: spread(5),
            weights: vec![1.0, 0.25, 0.5, 0.0, 0.125],
            scaling: 0.5,
        },
        // One key alone moves nothing.
        Attention {
            name: "alone",
            q: vec![1.0; 8],
            keys: keys(3, 8, 0.5),
            values: spread(3),
            weights: vec![0.0, 1.0, 0.0],
            scaling: 0.5,
        },
    ]
}

/// Neither narrower than the first order, which right implementations reach, nor wider than terms of higher order make it.
#[test]
fn an_output_is_bounded_to_first_order_and_no_wider() {
    let mut compared = 0;
    for model in models() {
        for storage in Storage::ALL {
            for attention in attentions() {
                let (inputs, mask) = attention.inputs(storage);
                let found = expected_row(&inputs, &mask, model, (0, 0, 0))[0];
                let (first_order, share) = attention.first_order(&inputs, model);
                if share > 0.2 {
                    continue;
                }
                assert_width(
                    found.radius,
                    first_order,
                    share,
                    &format!("{model} {storage} {}", attention.name),
                );
                compared += 1;
            }
        }
    }
    assert!(compared >= 50, "{compared}");
}

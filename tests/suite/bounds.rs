//! Single bounds from both sides: what is right stays inside, and an error of a few times the true rounding does not.

use doublecheck::algorithm::config::Combined;
use doublecheck::algorithm::quantize::quantize_in_place;
use doublecheck::algorithm::{InputParts, Inputs, LabelBits, Mask, Ranks, Storage};
use doublecheck::cases::recipe::Words;
use doublecheck::cases::{Accumulation, LabelCase, LabelRounding, Precision, RoundingModel};
use doublecheck::verdicts::bounds::{Approximate, Arithmetic, U32, U64, recomputed_mean};
use doublecheck::verdicts::labels::{judge_labels, rounded_rows};
use doublecheck::verdicts::output::judge_output;
use half::{bf16, f16};
use ndarray::{Array2, Array4};

/// The whole interval is inside, and it is wider by no more than a few units of f64.
#[test]
fn a_hull_holds_its_ends_and_little_more() {
    let words = Words::new(1, 0);
    for i in 0..100_000 {
        let exponent = |word: u64| 2.0f64.powi((word % 80) as i32 - 40);
        let low = f64::from(words.value(4 * i)) * exponent(words.word(4 * i + 1));
        let high = low + f64::from(words.value(4 * i + 2)).abs() * exponent(words.word(4 * i + 3));
        let hull = Approximate::hull(low, high);
        assert!(hull.low() <= low && hull.high() >= high, "{low:e} {high:e}");
        let slack = 8.0 * U64 * low.abs().max(high.abs());
        assert!(hull.low() >= low - slack && hull.high() <= high + slack, "{low:e} {high:e}");
    }
}

/// A range so large that its reciprocal may vanish: the smallest number has code 0 all the same, the others have any.
#[test]
fn an_infinite_hull_is_any_number() {
    for hull in [Approximate::hull(f64::NEG_INFINITY, f64::INFINITY), Approximate::hull(0.0, f64::INFINITY)] {
        assert_eq!((hull.low(), hull.high()), (f64::NEG_INFINITY, f64::INFINITY));
    }
    let row = Array2::from_shape_vec((1, 3), vec![-1e38f32, 0.5e38, 1e38]).unwrap();
    let allowed = rounded_rows(row.view(), LabelBits::new(4).unwrap(), Storage::F32);
    assert!(allowed.at(0, 0).1 < 1e32);
    for channel in 1..3 {
        let (value, radius) = allowed.at(channel, 0);
        assert!(value.is_finite() && radius == f64::INFINITY, "{value} ± {radius}");
    }
}

/// Labels as SPEC §2.5 has them are inside; moved by a few roundings more than the bound's ten, they are outside.
#[test]
fn rounded_labels_hold_the_right_ones_and_no_others() {
    let words = Words::new(2, 0);
    let mut checked = 0;
    for i in 0..2000 {
        let storage = Storage::ALL[i as usize % Storage::ALL.len()];
        let bits = LabelBits::new(1 + words.word(100_000 + i) % 4).unwrap();
        let row: Vec<f32> = (0..8).map(|c| storage.round(words.value(8 * i + c))).collect();
        let source = Array2::from_shape_vec((1, 8), row.clone()).unwrap();
        let mut right = row.clone();
        quantize_in_place(&mut right, bits, storage).unwrap();
        let allowed = rounded_rows(source.view(), bits, storage);
        let (low, high) = row.iter().fold((f32::MAX, f32::MIN), |(low, high), &x| (low.min(x), high.max(x)));
        let step = f64::from(high - low) / f64::from(bits.largest_code());
        for (channel, &label) in right.iter().enumerate() {
            let (value, radius) = allowed.at(channel, 0);
            assert!((f64::from(label) - value).abs() <= radius, "{label} outside {value} ± {radius}");
            // Half way between two codes either is right.
            if radius < step / 4.0 {
                let size = f64::from(high - low) + f64::from(low.abs()).max(f64::from(high.abs()));
                let error = 30.0 * storage.unit_roundoff().max(U32) * size;
                assert!((f64::from(label) + error - value).abs() > radius, "{label} + {error} is let pass");
                checked += 1;
            }
        }
    }
    assert!(checked > 8000, "{checked}");
}

/// n keys that all weigh 1, with values x, kept in f16: Σe·|v| = n·x.
fn equal_keys(keys: usize, value: f32) -> (Inputs, Mask) {
    let inputs = Inputs::new(InputParts {
        q: Array4::zeros((1, 1, 1, 1)),
        k: Array4::zeros((1, 1, keys, 1)),
        v: Array4::from_elem((1, 1, keys, 1), value),
        attention_mask: None,
        causal: false,
        storage: Storage::F16,
        scaling: None,
    })
    .unwrap();
    let mask = Mask::full(&inputs.dims());
    (inputs, mask)
}

fn conforms(inputs: &Inputs, mask: &Mask, output: f32) -> bool {
    let model = RoundingModel::new(LabelRounding::Exact, Precision::Storage, Accumulation::F32);
    let output = Array4::from_elem(inputs.dims().output_shape(), output);
    judge_output(inputs, mask, &output, model).divergences.is_empty()
}

/// A numerator that cannot overflow in f16 must not be an infinity; one that may, may. The roundings that may carry it there are
/// five of f16 and three of an exponential, 2^-11 each, and less than 2^-13 of the sum.
#[test]
fn a_sum_may_overflow_within_its_roundings_of_the_largest_number() {
    let largest = Storage::F16.largest();
    let keys = 1000;
    let mut overflowed = 0;
    for step in 0..200 {
        let value = Storage::F16.round(62.0 + 0.03125 * step as f32);
        let (inputs, mask) = equal_keys(keys, value);
        let sum = keys as f64 * f64::from(value);
        assert!(conforms(&inputs, &mask, value), "{value}");
        let may_overflow = conforms(&inputs, &mask, f32::INFINITY);
        // As an f16 kernel has it: the sum is rounded once.
        if f64::from(Storage::F16.round(sum as f32)) > largest {
            overflowed += 1;
            assert!(may_overflow, "{value}");
        }
        if sum * (1.0 + 10.0 / 2048.0) < largest {
            assert!(!may_overflow, "{value}");
            assert!(!conforms(&inputs, &mask, value * (1.0 + 20.0 / 2048.0)), "{value}");
        }
    }
    assert!(overflowed > 50, "{overflowed}");
    // Σe alone overflows, whatever the values.
    let (inputs, mask) = equal_keys(66_000, 0.0);
    assert!(conforms(&inputs, &mask, f32::NAN));
    let (inputs, mask) = equal_keys(64_000, 0.0);
    assert!(!conforms(&inputs, &mask, f32::NAN));
}

/// One key that scores x below the largest logit of all, which is not attended to: as an f16 kernel has it, its exponential and
/// numerator are rounded to f16, down to nothing. That conforms, and six times the largest error that it may make does not.
#[test]
fn a_numerator_may_underflow_as_a_share_of_its_own_sum() {
    let (mut vanished, mut refused) = (0, 0);
    for step in 1..=1100 {
        let x = Storage::F16.round(step as f32 / 64.0);
        for (value, weight) in
            [(0.25f32, 1.0f32), (0.4375, 1.0), (1.0, 1.0), (3.0, 1.0), (0.4375, 0.7), (1.0, 0.7)]
        {
            let inputs = Inputs::new(InputParts {
                q: Array4::ones((1, 1, 1, 1)),
                k: Array4::from_shape_vec((1, 1, 2, 1), vec![0.0, -x]).unwrap(),
                v: Array4::from_elem((1, 1, 2, 1), value),
                attention_mask: None,
                causal: false,
                storage: Storage::F16,
                scaling: Some(1.0),
            })
            .unwrap();
            let weights = Array4::from_shape_vec((1, 1, 1, 2), vec![0.0, weight]).unwrap();
            let mask = Mask::from_weights(weights, &inputs.dims()).unwrap();
            let e = Storage::F16.round(Storage::F16.round((-x).exp()) / weight);
            let output = Storage::F16.round(Storage::F16.round(e * value) / e);
            vanished += usize::from(output == 0.0);
            assert!(conforms(&inputs, &mask, output), "x = {x}, v = {value}: {output}");
            // Half the spacing of subnormal numbers as a share of the sum, and three roundings.
            let share = 2f32.powi(-25) * x.exp() * weight;
            let largest = share + 3.0 * value * 2f32.powi(-11);
            if share < 1.0 / 16.0 {
                refused += 1;
                for wrong in
                    [value + 6.0 * largest.max(share * value), value - 6.0 * largest.max(share * value)]
                {
                    assert!(!conforms(&inputs, &mask, wrong), "x = {x}, v = {value}: {wrong}");
                }
            }
        }
    }
    assert!(vanished > 20 && refused > 4000, "{vanished} vanished, {refused} refused");
}

/// Weights below 1 make larger exponentials.
#[test]
fn a_denominator_of_small_weights_may_overflow() {
    let (inputs, _) = equal_keys(1000, 0.0);
    for (weight, may_overflow) in [(1.0f32 / 64.0, false), (1.0 / 70.0, true)] {
        let mask = Mask::from_weights(Array4::from_elem((1, 1, 1, 1000), weight), &inputs.dims()).unwrap();
        assert_eq!(conforms(&inputs, &mask, f32::NAN), may_overflow, "{weight}");
    }
}

/// A key that A excludes has no say in the largest logit, however large its product is: it may make that NaN where it overflows first,
/// and a finite output is as wrong as without it. A key that is not attended to, but not excluded either, may make the largest logit
/// an infinity, after which nothing is known.
#[test]
fn an_excluded_key_that_overflows_may_make_nan_and_hides_nothing_else() {
    let inputs = |excluded: f32| {
        Inputs::new(InputParts {
            q: Array4::from_elem((1, 1, 1, 1), 200.0),
            k: Array4::from_shape_vec((1, 1, 3, 1), vec![0.01, 0.0, 400.0]).unwrap(),
            v: Array4::from_shape_vec((1, 1, 3, 1), vec![1.0, 1.0, 5.0]).unwrap(),
            attention_mask: Some(Array4::from_shape_vec((1, 1, 1, 3), vec![0.0, 0.0, excluded]).unwrap()),
            causal: false,
            storage: Storage::F16,
            scaling: Some(1.0),
        })
        .unwrap()
    };
    let mask = |inputs: &Inputs| {
        Mask::from_weights(Array4::from_shape_vec((1, 1, 1, 3), vec![1.0, 1.0, 0.0]).unwrap(), &inputs.dims())
            .unwrap()
    };
    let excluded = inputs(f32::NEG_INFINITY);
    let attended = mask(&excluded);
    assert!(conforms(&excluded, &attended, 1.0));
    assert!(conforms(&excluded, &attended, f32::NAN));
    for wrong in [0.9, 1.1, 5.0, 0.0] {
        assert!(!conforms(&excluded, &attended, wrong), "{wrong}");
    }
    let counted = inputs(0.0);
    assert!(conforms(&counted, &mask(&counted), 5.0));
}

/// A number in two parts, exact to about 2^-104.
#[derive(Clone, Copy)]
struct Double(f64, f64);

impl Double {
    fn sum(a: f64, b: f64) -> Self {
        let sum = a + b;
        let part = sum - a;
        Self(sum, (a - (sum - part)) + (b - part))
    }

    fn plus(self, other: Self) -> Self {
        let Self(high, low) = Self::sum(self.0, other.0);
        Self::sum(high, low + self.1 + other.1)
    }

    fn times(self, other: Self) -> Self {
        let product = self.0 * other.0;
        let rest = self.0.mul_add(other.0, -product) + self.0 * other.1 + self.1 * other.0;
        Self::sum(product, rest)
    }

    fn over(self, other: Self) -> Self {
        let first = self.0 / other.0;
        let rest = self.plus(other.times(Self(-first, 0.0)));
        Self::sum(first, rest.0 / other.0)
    }

    /// By its series at x / 2^12, squared twelve times.
    fn exp(self) -> Self {
        let small = Self(self.0 / 4096.0, self.1 / 4096.0);
        let mut sum = Self(1.0, 0.0);
        for n in (1..=20).rev() {
            sum = Self(1.0, 0.0).plus(small.times(sum).over(Self(f64::from(n), 0.0)));
        }
        for _ in 0..12 {
            sum = sum.times(sum);
        }
        sum
    }
}

/// Means in f64 as the verdict computes them, against the same in twice the precision.
#[test]
fn a_recomputed_mean_is_within_its_bound_and_the_bound_is_small() {
    let words = Words::new(3, 0);
    for terms in [1usize, 2, 7, 100, 1000] {
        for round in 0..20u64 {
            let at = |stream: u64, j: usize| f64::from(words.value(((round * 2 + stream) << 20) + j as u64));
            let factor = [1.0, 30.0, 170.0][round as usize % 3];
            let logits: Vec<f64> = (0..terms).map(|j| at(0, j) * factor).collect();
            let values: Vec<f64> = (0..terms).map(|j| at(1, j)).collect();
            let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let e: Vec<f64> = logits.iter().map(|w| (w - max).exp()).collect();
            let total: f64 = e.iter().sum();
            let found: f64 = e.iter().zip(&values).map(|(e, v)| e / total * v).sum();
            let (mut numerator, mut denominator, mut size) = (Double(0.0, 0.0), Double(0.0, 0.0), 0.0);
            for (w, &v) in logits.iter().zip(&values) {
                let e = Double::sum(*w, -max).exp();
                numerator = numerator.plus(e.times(Double(v, 0.0)));
                denominator = denominator.plus(e);
                size += e.0 * v.abs();
            }
            let exact = numerator.over(denominator);
            let error = ((found - exact.0) - exact.1).abs();
            let bound = recomputed_mean(terms) * size / denominator.0;
            assert!(error <= bound, "{terms} terms: {error:e}, bound {bound:e}");
        }
        // Far below one rounding of f32, which any output carries.
        assert!(recomputed_mean(terms) < 1e-4 * U32 * terms.max(100) as f64);
    }
}

/// A label multiplied by a channel weight: either product is inside, one a few roundings away is not.
#[test]
fn weighted_labels_hold_their_products_and_little_more() {
    let words = Words::new(5, 0);
    for i in 0..3000u64 {
        let kept = Storage::ALL[i as usize % 3];
        let arithmetic = Arithmetic::new(RoundingModel::PYTORCH, kept);
        let (x, weight) = (kept.round(words.value(2 * i)), words.value(2 * i + 1));
        let allowed = arithmetic.weighted(Approximate::new(f64::from(x), 0.0), weight);
        for weight in [weight, kept.round(weight)] {
            let product = f64::from(kept.round(x * weight));
            assert!(allowed.low() <= product && product <= allowed.high(), "{product} outside {allowed:?}");
        }
        let exact = f64::from(x) * f64::from(weight);
        let error = 4.0 * kept.unit_roundoff() * exact.abs() + 4.0 * kept.smallest_normal();
        assert!(exact + error > allowed.high() && exact - error < allowed.low(), "{error} is let pass");
    }
}

/// Scores of ranks whose parts are exchanged in bf16: what rounds them right is inside, and off by a few of the bound's roundings
/// more is outside.
#[test]
fn ranks_hold_rounded_parts_and_no_more() {
    let words = Words::new(4, 0);
    let arithmetic = Arithmetic::new(RoundingModel::F32, Storage::F32);
    for i in 0..3000u64 {
        let (count, together) = (2 + i % 3, 1 + i % 4);
        let exchanged = [Storage::Bf16, Storage::F16][i as usize % 2];
        let heads = count * together;
        let scores: Vec<f32> = (0..heads).map(|head| words.value(16 * i + head)).collect();
        let parts: Vec<f32> = scores.chunks(together as usize).map(|part| part.iter().sum()).collect();
        let sum = |step: Storage| {
            let rounded = parts.iter().map(|&part| exchanged.round(part));
            f64::from(rounded.reduce(|a, b| step.round(a + b)).unwrap())
        };
        let known: Vec<_> = scores.iter().map(|&score| Approximate::new(f64::from(score), 0.0)).collect();
        let ranks = Ranks::new(count, exchanged).unwrap();
        let allowed = arithmetic.combine(Combined::Sum, ranks, &known);
        for sum in [sum(Storage::F32), sum(exchanged), f64::from(exchanged.round(sum(Storage::F32) as f32))] {
            assert!(allowed.low() <= sum && sum <= allowed.high(), "{sum} outside {allowed:?}");
        }
        // A part is rounded once and t times in sums.
        let magnitude: f64 = parts.iter().map(|part| f64::from(part.abs())).sum();
        let exact: f64 = scores.iter().map(|&score| f64::from(score)).sum();
        let error = (count as f64 + 2.0) * exchanged.unit_roundoff() * magnitude;
        assert!(exact + error > allowed.high(), "{exact} + {error} is let pass");
        // Without the exchange the bound is that of f32.
        let plain = arithmetic.combine(Combined::Sum, Ranks::new(count, Storage::F32).unwrap(), &known);
        let size: f64 = known.iter().map(|score| score.value.abs()).sum();
        let error = 3.0 * (heads as f64 + 4.0) * U32 * size;
        assert!(exact + error > plain.high() && plain.radius < error, "{exact} + {error} is let pass");
    }
}

/// Labels of a query and of a key, with values of a type.
fn pair(words: Words, i: u64, r: u64, storage: Storage) -> (Vec<f32>, Vec<f32>) {
    let label = |first: u64| (0..r).map(|c| storage.round(words.value(64 * i + first + c))).collect();
    (label(0), label(r))
}

/// Σ xy and Σ |xy| in f64, and the sum as f32 has it.
fn sums(a: &[f32], b: &[f32]) -> (f64, f64, f32) {
    let products = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b));
    (products.clone().sum(), products.map(f64::abs).sum(), a.iter().zip(b).map(|(a, b)| a * b).sum())
}

fn holds(allowed: Approximate, x: f64) -> bool {
    allowed.low() <= x && x <= allowed.high()
}

/// A cosine rounded after each operation is inside. A dot product, two norms of two roundings, of which that of the sum counts half,
/// their product, the sum with ε and the quotient are seven roundings: twice as many are outside, of what products may cancel.
#[test]
fn a_cosine_holds_its_roundings_and_no_more() {
    let (words, mut judged) = (Words::new(6, 0), 0);
    for i in 0..3000u64 {
        let kept = Storage::ALL[i as usize % 3];
        let arithmetic = Arithmetic::new(RoundingModel::PYTORCH, kept);
        let r = 1 + i % 8;
        let (q, k) = pair(words, i, r, kept);
        let ((dot, magnitude, dot_f32), epsilon) = (sums(&q, &k), 1e-6f32);
        let norm = |x: &[f32]| kept.round(kept.round(sums(x, x).2).sqrt());
        let divisor = kept.round(kept.round(norm(&q) * norm(&k)) + kept.round(epsilon));
        let found = f64::from(kept.round(kept.round(dot_f32) / divisor));
        let known = |x: &[f32]| {
            arithmetic.norm(x.iter().map(|&x| (f64::from(x), 0.0)).collect::<Vec<_>>().into_iter())
        };
        let product = arithmetic.sum_of_products(r as usize, dot, magnitude, 0.0);
        let allowed = arithmetic.cosine(product, known(&q), known(&k), f64::from(epsilon));
        assert!(holds(allowed, found), "{found} outside {allowed:?}");
        let norms = sums(&q, &q).0.sqrt() * sums(&k, &k).0.sqrt() + f64::from(epsilon);
        // Squares of small numbers are subnormal in f16.
        if sums(&q, &q).0.min(sums(&k, &k).0) < 0.1 {
            continue;
        }
        judged += 1;
        let error = (14.0 * kept.unit_roundoff() + (6 * r + 40) as f64 * U32) * magnitude / norms;
        let (low, high) = (dot / norms - error, dot / norms + error);
        let tiny = 16.0 * kept.smallest_normal() / norms;
        assert!(
            !holds(allowed, low - tiny) && !holds(allowed, high + tiny),
            "{error:e} of {allowed:?} is let pass"
        );
    }
    assert!(judged > 1000, "{judged}");
}

/// w · max(q·k / √r, 0): a dot product, its factor, the weight and the product are four roundings, and eight are outside. What is
/// below 0 by more than its rounding is 0 exactly.
#[test]
fn a_relu_holds_its_roundings_and_no_more() {
    let words = Words::new(7, 0);
    let (mut positive, mut zero) = (0, 0);
    for i in 0..3000u64 {
        let kept = Storage::ALL[i as usize % 3];
        let arithmetic = Arithmetic::new(RoundingModel::PYTORCH, kept);
        let r = 1 + i % 8;
        let (q, k) = pair(words, i, r, kept);
        let (dot, magnitude, dot_f32) = sums(&q, &k);
        let (factor, weight) = (1.0 / (r as f64).sqrt(), words.value(64 * i + 40));
        let scaled = kept.round(kept.round(dot_f32) / (r as f32).sqrt()).max(0.0);
        let found = f64::from(kept.round(kept.round(weight) * scaled));
        let product = arithmetic.sum_of_products(r as usize, dot, magnitude, 0.0);
        let allowed = arithmetic.relu(arithmetic.scale(product, factor), weight, factor);
        assert!(holds(allowed, found), "{found} outside {allowed:?}");
        let size = magnitude * factor * f64::from(weight.abs());
        let error = (8.0 * kept.unit_roundoff() + (3 * r + 30) as f64 * U32) * size;
        let error = error + 16.0 * kept.smallest_normal() * (1.0 + magnitude);
        let exact = f64::from(weight) * (dot * factor).max(0.0);
        assert!(!holds(allowed, exact - error) && !holds(allowed, exact + error), "{error:e} is let pass");
        if dot > 0.0 { positive += 1 } else { zero += 1 }
    }
    assert!(positive > 1000 && zero > 1000);
}

/// Sums, means and maxima of heads, all of them or those of a group: what is rounded right is inside, a few roundings more are not. A
/// maximum rounds nothing: it is known as well as the scores are.
#[test]
fn heads_hold_their_sums_means_and_maxima_and_no_more() {
    let words = Words::new(8, 0);
    for i in 0..3000u64 {
        let kept = Storage::ALL[i as usize % 3];
        let arithmetic = Arithmetic::new(RoundingModel::PYTORCH, kept);
        let heads = 2 + i % 7;
        let scores: Vec<f32> = (0..heads).map(|head| kept.round(words.value(16 * i + head))).collect();
        let radius = 1e-3 * f64::from(words.value(16 * i + 9)).abs();
        let sum = kept.round(scores.iter().sum());
        let mean = kept.round(sum / heads as f32);
        let exact: f64 = scores.iter().map(|&score| f64::from(score)).sum();
        let size: f64 = scores.iter().map(|&score| f64::from(score.abs())).sum();
        let largest = scores.iter().copied().fold(f32::MIN, f32::max);
        let count = heads as f64;
        let known: Vec<_> = scores.iter().map(|&score| Approximate::new(f64::from(score), radius)).collect();
        let rounding = (4.0 * kept.unit_roundoff() + 2.0 * (count + 4.0) * U32) * size;
        for (combined, found, exact, error) in [
            (Combined::Sum, sum, exact, rounding + 1.5 * count * radius),
            (Combined::Mean, mean, exact / count, rounding / count + 1.5 * radius),
            (Combined::Max, largest, f64::from(largest), 1.01 * radius + 8.0 * U64 * size),
        ] {
            let allowed = arithmetic.combine(combined, Ranks::default(), &known);
            assert!(holds(allowed, f64::from(found)), "{combined:?}: {found} outside {allowed:?}");
            let error = error + 16.0 * kept.smallest_normal();
            let outside = !holds(allowed, exact + error) && !holds(allowed, exact - error);
            assert!(outside, "{combined:?}: {error:e} of {allowed:?} is let pass");
        }
    }
}

/// The nearest number of a type, rounded once: f64 has enough bits for an operation of f32.
fn nearest(storage: Storage, x: f64) -> f64 {
    match storage {
        Storage::F32 => f64::from(x as f32),
        Storage::F16 => f16::from_f64(x).to_f64(),
        Storage::Bf16 => bf16::from_f64(x).to_f64(),
    }
}

/// Labels by the three fixed orders, as the SPEC words them: each is judged right under its own name alone, and within what is allowed
/// where any order is. They must differ somewhere.
#[test]
fn labels_of_a_declared_order_are_compared_bit_for_bit() {
    let words = Words::new(9, 0);
    let orders = [LabelRounding::Exact, LabelRounding::Quotient, LabelRounding::Step];
    let (mut differing, mut judged) = ([0; 3], 0);
    for i in 0..9000u64 {
        let storage = Storage::ALL[i as usize % 3];
        let bits = LabelBits::new(1 + words.word(i) % 15).unwrap();
        let row: Vec<f32> = (0..6).map(|c| storage.round(words.value(1_000_000 + 8 * i + c))).collect();
        let (lo, hi) = row.iter().fold((f32::MAX, f32::MIN), |(lo, hi), &x| (lo.min(x), hi.max(x)));
        let (lo, codes) = (f64::from(lo), f64::from(bits.largest_code()));
        // As PyTorch has it: in f32, then in the type.
        let to = |x: f64| nearest(storage, f64::from(x as f32));
        let range = to(f64::from(hi) - lo);
        let labels = |order: LabelRounding| -> Vec<f32> {
            let scale = match order {
                LabelRounding::Exact => to(to(1.0 / range) * codes),
                LabelRounding::Quotient => to(codes / range),
                _ => to(range / codes),
            };
            let label = |&x: &f32| {
                let moved = to(f64::from(x) - lo);
                let steps = to(if order == LabelRounding::Step { moved / scale } else { moved * scale });
                let code = steps.round_ties_even().clamp(0.0, to(codes));
                to(to(if order == LabelRounding::Step { code * scale } else { code / scale }) + lo) as f32
            };
            row.iter().map(label).collect()
        };
        let stored = labels(LabelRounding::Exact);
        // Scales that overflow are refused, or give no labels.
        let finite = |order| labels(order).iter().all(|label| label.is_finite());
        if !to(to(1.0 / range) * codes).is_finite() || !orders.into_iter().all(finite) {
            continue;
        }
        judged += 1;
        let shape = |labels: &[f32]| Array2::from_shape_vec((1, 6), labels.to_vec()).unwrap();
        let case = LabelCase {
            name: "a row".into(),
            storage,
            bits,
            rows: shape(&row),
            labels: Some(shape(&stored)),
            source: "this test".into(),
        };
        for (order, differing) in orders.into_iter().zip(&mut differing) {
            let found = labels(order);
            let wrong = |rounding| !judge_labels(&case, &[Some(found.clone())], rounding).is_empty();
            assert!(!wrong(order) && !wrong(LabelRounding::Rounded), "{order:?} of {row:?}, {bits:?}");
            for other in orders {
                assert_eq!(wrong(other), labels(other) != found, "{order:?} as {other:?} of {row:?}");
            }
            *differing += usize::from(found != stored);
        }
    }
    assert!(
        judged > 6000 && differing[0] == 0 && differing[1] > 300 && differing[2] > 300,
        "{differing:?} of {judged}"
    );
}

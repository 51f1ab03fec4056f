//! How wide the bounds are. A bound that is wider than its derivation, or that forgets a term, lets faults through without any
//! other test noticing: right answers conform all the same. Each rule is compared here with the roundings that SPEC §5 counts,
//! to first order and summed up again by hand, in inputs in which one term at a time is most of the bound.

use doublecheck::algorithm::config::Combined;
use doublecheck::algorithm::{InputParts, Inputs, Mask, Ranks, Storage};
use doublecheck::cases::{
    Accumulation, AnsweredLabels, Exponent, FactorOrder, LabelRounding, Precision, Products, RoundingModel,
};
use doublecheck::verdicts::bounds::{Approximate, Arithmetic, U32, U64, recomputed_mean};
use doublecheck::verdicts::certificate::{Candidacy, ScoreBounds};
use doublecheck::verdicts::lse::expected_lse;
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

/// What one rounding makes of a radius.
fn rounded(arithmetic: &Arithmetic, value: f64, radius: f64) -> f64 {
    let (u, eta) = units(arithmetic);
    radius + u * (value.abs() + radius) + eta
}

fn with_plus_infinity(value: f64, radius: f64) -> Approximate {
    Approximate { may_be_plus_infinity: true, ..Approximate::new(value, radius) }
}

fn with_minus_infinity(value: f64, radius: f64) -> Approximate {
    with_plus_infinity(-value, radius).negated()
}

/// A is multiplied by a rounded constant and rounded before it is added.
#[test]
fn a_scaled_mask_widens_by_its_own_roundings() {
    let unit = std::f64::consts::LOG2_E;
    each(|model, storage, arithmetic| {
        for (value, radius) in NUMBERS {
            for mask in [-3.3f32, 0.1, 1000.7, -64.0] {
                let found = arithmetic.add_scaled_mask(Approximate::new(value, radius), mask, unit);
                let a = f64::from(mask) * unit;
                let of_mask = rounded(&arithmetic, a, 3.0 * U32 * a.abs());
                let expected = rounded(&arithmetic, value + a, radius + of_mask);
                assert_eq!(found.value, value + a);
                assert_width(found.radius, expected, 1e-6, &format!("{model} {storage} {value} + {mask}"));
            }
        }
        let x = Approximate::new(2.0, 0.5);
        assert_eq!(arithmetic.add_scaled_mask(x, 0.0, unit), x);
        assert_eq!(arithmetic.add_scaled_mask(x, f32::NEG_INFINITY, unit), Approximate::EXCLUDED);
    });
}

/// Infinities of opposite signs add to NaN, which may rank anywhere; of one sign they stay.
#[test]
fn infinities_that_meet_are_undetermined() {
    let arithmetic = Arithmetic::new(models()[3], Storage::F16);
    for mask in [-1e6f32, 1e6] {
        let [same, other] = if mask > 0.0 {
            [with_plus_infinity(1.0, 0.5), with_minus_infinity(1.0, 0.5)]
        } else {
            [with_minus_infinity(1.0, 0.5), with_plus_infinity(1.0, 0.5)]
        };
        for added in [arithmetic.add_mask(other, mask), arithmetic.add_scaled_mask(other, mask, 1.5)] {
            assert_eq!(added, Approximate::UNDETERMINED, "{mask}");
        }
        for added in [arithmetic.add_mask(same, mask), arithmetic.add_scaled_mask(same, mask, 1.5)] {
            assert_eq!((added.may_be_minus_infinity, added.may_be_plus_infinity), (mask < 0.0, mask > 0.0));
        }
    }
    let x = with_plus_infinity(3.0, 0.25).negated();
    assert_eq!(
        (x.value, x.radius, x.may_be_minus_infinity, x.may_be_plus_infinity),
        (-3.0, 0.25, true, false)
    );
    for (factor, minus) in [(2.0, false), (-2.0, true)] {
        let scaled = arithmetic.scale(with_plus_infinity(3.0, 0.25), factor);
        assert_eq!((scaled.may_be_minus_infinity, scaled.may_be_plus_infinity), (minus, !minus), "{factor}");
    }
}

/// Operands that are cut to 11 bits carry that error into the sum. Of numbers of f16 and bf16 nothing is cut, unless they are multiplied by a
/// factor or summed before.
#[test]
fn products_in_tf32_widen_by_two_cuts_where_there_is_something_to_cut() {
    let [model, ..] = models();
    let cut = (1.0 + 2f64.powi(-10)).powi(2) - 1.0;
    let tf32 = RoundingModel { score_products: Products::Tf32, attention_products: Products::Tf32, ..model };
    let before = RoundingModel { factor: FactorOrder::Before, ..tf32 };
    for storage in Storage::ALL {
        let of_both = |model, wide: bool| {
            for arithmetic in [Arithmetic::new(model, storage), Arithmetic::of_attention(model, storage)] {
                let expected = if wide { cut } else { 0.0 };
                assert_eq!(arithmetic.product, expected, "{model} {storage}");
            }
        };
        of_both(tf32, storage == Storage::F32);
        of_both(before, true);
        of_both(model, false);
        let stored = RoundingModel {
            score_products: Products::Storage,
            attention_products: Products::Storage,
            ..model
        };
        assert_eq!(Arithmetic::new(stored, storage).product, storage.unit_roundoff());
        assert_eq!(Arithmetic::new(tf32, storage).with_wide_labels(tf32, storage).product, cut);
        assert_eq!(Arithmetic::new(model, storage).with_wide_labels(model, storage).product, 0.0);
    }
    let arithmetic = Arithmetic::new(tf32, Storage::F32);
    for (value, magnitude, carried) in [(2.0, 5.0, 0.0), (0.5, 3.0, 0.5)] {
        let found = arithmetic.sum_of_products(4, value, magnitude, carried);
        let carried = carried + cut * (magnitude + carried);
        let sum = carried + (4.0 * U32 + 5.0 * U64) * (magnitude + carried) + 4.0 * 2f64.powi(-126);
        assert_width(found.radius, rounded(&arithmetic, value, sum), 1e-6, "products in tf32");
    }
}

/// A partial sum may overflow where the magnitudes of its products do, with what they and their roundings are off by.
#[test]
fn a_sum_of_products_may_overflow_where_its_magnitudes_do() {
    let arithmetic = Arithmetic::new(models()[2], Storage::F32);
    let largest = Storage::F32.largest();
    for (terms, share, carried, opens) in [
        (4, 1.0 - 1e-3, 0.0, false),
        (4, 1.0 + 1e-9, 0.0, true),
        // 64 roundings.
        (64, 1.0 - 1e-6, 0.0, true),
        (4, 0.5, 0.4999, false),
        (4, 0.5, 0.5001, true),
    ] {
        let found = arithmetic.sum_of_products(terms, 1.0, share * largest, carried * largest);
        let found = (found.may_be_minus_infinity, found.may_be_plus_infinity);
        assert_eq!(found, (opens, opens), "{terms} {share} {carried}");
    }
}

#[test]
fn a_norm_widens_by_half_of_its_squares_share() {
    each(|model, storage, arithmetic| {
        let (u, eta) = units(&arithmetic);
        let accumulated = if model.accumulation == Accumulation::F32 { U32 } else { U64 };
        for label in
            [vec![(3.0, 0.0), (-4.0, 0.0)], vec![(1.5, 1e-4), (-2.5, 1e-5), (0.5, 0.0)], vec![(-20.0, 1e-3)]]
        {
            let found = arithmetic.norm(label.iter().copied());
            let squares: f64 = label.iter().map(|(x, _)| x * x).sum();
            let carried: f64 =
                label.iter().map(|(x, radius)| 2.0 * f64::abs(*x) * radius + radius * radius).sum();
            let n = label.len() as f64;
            let sum = carried + (n * accumulated + (n + 1.0) * U64) * (squares + carried);
            let sum = rounded(&arithmetic, squares, sum);
            let root = squares.sqrt();
            let expected = sum / (2.0 * root) + (4.0 * U32 + 2.0 * U64 + u) * root + eta;
            assert_eq!(found.value, root);
            assert_width(
                found.radius,
                expected,
                sum / squares + 3.0 * u,
                &format!("{model} {storage} {label:?}"),
            );
            assert!(!found.may_be_minus_infinity && !found.may_be_plus_infinity);
        }
    });
    // Near 0 the radius reaches the root, and a square that overflows is +∞.
    let arithmetic = Arithmetic::new(models()[3], Storage::F32);
    let small = arithmetic.norm([(1e-9, 1e-2)].into_iter());
    assert!(small.low() <= 0.0 && small.high() >= 1e-2 && small.high() < 1.2e-2, "{small:?}");
    let large = arithmetic.norm([(300.0, 0.0)].into_iter());
    assert_eq!((large.may_be_minus_infinity, large.may_be_plus_infinity), (false, true));
    assert_eq!(arithmetic.norm([(1.0, f64::INFINITY)].into_iter()), Approximate::UNDETERMINED);
}

/// The dot product's share, that of the divisor, four roundings of f32 and one of what is kept.
#[test]
fn a_cosine_widens_by_its_numerator_and_its_divisor() {
    each(|model, storage, arithmetic| {
        let (u, eta) = units(&arithmetic);
        for (dot, q, k, epsilon) in [
            ((0.5, 1e-4), (1.5, 0.0), (2.0, 0.0), 0.0),
            ((-3.0, 0.0), (2.0, 1e-3), (3.0, 0.0), 0.0),
            ((3.0, 0.0), (2.0, 0.0), (3.0, 1e-3), 0.0),
            ((1.0, 0.0), (1.0, 0.0), (1.0, 0.0), 4.0),
            ((0.0, 1e-3), (0.5, 0.0), (0.5, 0.0), 1e-6),
        ] {
            let number = |(value, radius)| Approximate::new(value, radius);
            let found = arithmetic.cosine(number(dot), number(q), number(k), epsilon);
            let ((v, r), (a, of_a), (b, of_b)) = (dot, q, k);
            let divisor = a * b + epsilon;
            let of_divisor = a * of_b + b * of_a + u * a * b + u * epsilon + u * divisor + 3.0 * eta;
            let share = of_divisor / divisor;
            let quotient = v / divisor;
            let expected = r / divisor
                + f64::abs(quotient) * (share + 4.0 * U32 + u + 4.0 * U64)
                + u * r / divisor
                + eta;
            assert!((found.value - quotient).abs() < 1e-15, "{}", found.value);
            assert_width(
                found.radius,
                expected,
                2.0 * share + 4.0 * u,
                &format!("{model} {storage} {dot:?} {q:?} {k:?}"),
            );
            assert!(!found.may_be_minus_infinity && !found.may_be_plus_infinity);
        }
    });
    let arithmetic = Arithmetic::new(models()[2], Storage::F32);
    let one = Approximate::new(1.0, 0.0);
    // Divided by what may be ∞ it may be 0.
    for (q, k) in [(with_plus_infinity(2.0, 0.0), one), (one, with_plus_infinity(2.0, 0.0))] {
        for dot in [3.0, -3.0] {
            let found = arithmetic.cosine(Approximate::new(dot, 0.0), q, k, 1e-6);
            assert!((found.value - dot / 2.0).abs() < 1e-5, "{found:?}");
            assert!(
                (found.radius - 1.5).abs() < 1e-5 && found.low() <= 0.0 && found.high() >= 0.0,
                "{found:?}"
            );
        }
    }
    let zero = Approximate::new(0.0, 0.0);
    for (dot, q, k) in [
        (one, with_plus_infinity(2.0, 0.0), zero),
        (one, zero, with_plus_infinity(2.0, 0.0)),
        (with_plus_infinity(1.0, 0.0), one, one),
        (with_minus_infinity(1.0, 0.0), one, one),
        (Approximate::new(1.0, f64::INFINITY), one, one),
        (one, Approximate::new(1.0, f64::INFINITY), one),
        (one, one, Approximate::new(1.0, f64::INFINITY)),
        (one, Approximate::new(1.0, 1.0), one),
    ] {
        assert_eq!(arithmetic.cosine(dot, q, k, 0.0), Approximate::UNDETERMINED, "{dot:?} {q:?} {k:?}");
    }
    let bounded = arithmetic.cosine(one, with_plus_infinity(2.0, 0.0), Approximate::new(1.0, 0.5), 0.0);
    assert!(bounded.radius.is_finite());
}

#[test]
fn a_relu_widens_by_its_weight_and_two_roundings() {
    each(|model, storage, arithmetic| {
        let (u, eta) = units(&arithmetic);
        for (value, radius) in NUMBERS {
            for (weight, factor) in [(0.75f32, 0.125), (-3.0, 1.0), (0.1, 3.0)] {
                let found = arithmetic.relu(Approximate::new(value, radius), weight, factor);
                let (low, high) = (f64::max(value - radius, 0.0), f64::max(value + radius, 0.0));
                let x = f64::max(value, 0.0);
                let r = (high - x).max(x - low);
                let w = f64::from(weight);
                let size = x + r;
                let cast = (u + 3.0 * U32) * w.abs() * size + eta * (size + size / factor);
                let expected = rounded(&arithmetic, x * w, r * w.abs() + cast);
                assert_eq!(found.value, x * w);
                assert_width(found.radius, expected, 1e-6, &format!("{model} {storage} {value} · {weight}"));
                assert!(!found.may_be_minus_infinity && !found.may_be_plus_infinity);
            }
        }
        // A weight, or a weight with the factor, beyond the type.
        let largest = arithmetic.kept.largest();
        if arithmetic.kept == Storage::F16 {
            let x = Approximate::new(1.0, 0.0);
            for (share, factor, overflows) in [
                (0.99, 1.0, false),
                (0.9999, 1.0, true),
                (0.49, 2.0, false),
                (0.51, 2.0, true),
                (0.99, 0.5, false),
            ] {
                for sign in [1.0, -1.0] {
                    let found = arithmetic.relu(x, (sign * share * largest) as f32, factor);
                    assert_eq!(found == Approximate::UNDETERMINED, overflows, "{share} {factor}");
                }
            }
        }
    });
    let arithmetic = Arithmetic::new(models()[2], Storage::F32);
    for (x, weight, expected) in [
        (with_plus_infinity(1.0, 0.0), 2.0, (false, true)),
        (with_plus_infinity(1.0, 0.0), -2.0, (true, false)),
        // −∞ becomes 0.
        (with_minus_infinity(1.0, 0.0), 2.0, (false, false)),
    ] {
        let found = arithmetic.relu(x, weight, 1.0);
        assert_eq!((found.may_be_minus_infinity, found.may_be_plus_infinity), expected, "{x:?} {weight}");
    }
    assert_eq!(arithmetic.relu(with_plus_infinity(1.0, 0.0), 0.0, 1.0), Approximate::UNDETERMINED);
    assert_eq!(arithmetic.relu(Approximate::new(1.0, f64::INFINITY), 1.0, 1.0), Approximate::UNDETERMINED);
    assert_eq!(arithmetic.relu(Approximate::new(1.0, 0.0), 0.0, 1.0).value, 0.0);
}

#[test]
fn weights_widen_by_their_cast_and_by_what_they_multiply() {
    each(|model, storage, arithmetic| {
        for (value, radius) in NUMBERS {
            for weight in [0.1f32, -3.3, 1000.7] {
                let x = Approximate::new(value, radius);
                let (w, stored) = (f64::from(weight), f64::from(arithmetic.kept.round(weight)));
                let cast = (stored - w).abs() * value.abs();
                let expected = rounded(&arithmetic, value * w, radius * w.abs().max(stored.abs()) + cast);
                let found = arithmetic.weighted(x, weight);
                assert_eq!(found.value, value * w);
                assert_width(found.radius, expected, 0.0, &format!("{model} {storage} {value} · {weight}"));
                let found = arithmetic.head_weighted(x, weight);
                let scaled = radius * w.abs() + 3.0 * U32 * (value.abs() + radius) * w.abs();
                let once = rounded(&arithmetic, value * w, scaled);
                let expected = rounded(&arithmetic, value * w, once);
                assert_eq!(found.value, value * w);
                assert_width(found.radius, expected, 1e-6, &format!("{model} {storage} {value} · {weight}"));
            }
        }
    });
    let arithmetic = Arithmetic::new(models()[2], Storage::F32);
    for x in [with_plus_infinity(1.0, 0.0), with_minus_infinity(1.0, 0.0)] {
        assert_eq!(arithmetic.head_weighted(x, 0.0), Approximate::UNDETERMINED);
        let found = arithmetic.head_weighted(x, 2.0);
        assert_eq!((found.value.abs(), found.may_be_plus_infinity), (2.0, x.may_be_plus_infinity));
    }
    assert_eq!(
        arithmetic.head_weighted(Approximate::new(1.0, f64::INFINITY), 2.0),
        Approximate::UNDETERMINED
    );
    assert_eq!(arithmetic.head_weighted(Approximate::new(1.0, 0.0), 0.0).value, 0.0);
}

/// A mean is a sum with its factor; a maximum is known as well as the scores that may be it.
#[test]
fn means_and_maxima_of_heads_are_as_wide_as_their_scores_make_them() {
    let (one, of) = (Ranks::default(), Approximate::new);
    let no_rank = Approximate::EXCLUDED;
    each(|model, storage, arithmetic| {
        let parts = [of(1.5, 0.25), of(-0.5, 0.0), of(3.0, 0.125)];
        let sum = arithmetic.sum_over_heads(&parts);
        let mean = arithmetic.combine(Combined::Mean, one, &parts);
        let expected = sum.radius / 3.0 + 3.0 * U32 * (sum.value.abs() + sum.radius) / 3.0;
        assert!((mean.value - sum.value / 3.0).abs() < 1e-15);
        assert_width(
            mean.radius,
            rounded(&arithmetic, mean.value, expected),
            1e-6,
            &format!("{model} {storage}"),
        );
        assert_eq!(arithmetic.combine(Combined::Sum, one, &parts), sum);
        for combined in [Combined::Sum, Combined::Mean] {
            assert_eq!(arithmetic.combine(combined, one, &[parts[0], no_rank]), no_rank);
            let nan = [with_plus_infinity(1.0, 0.0), no_rank];
            assert_eq!(arithmetic.combine(combined, one, &nan), Approximate::UNDETERMINED);
        }
        let most = |parts: &[Approximate]| arithmetic.combine(Combined::Max, one, parts);
        for (parts, value, radius, infinities) in [
            (vec![of(1.0, 0.5), of(0.875, 0.0)], 1.0, 0.5, (false, false)),
            (vec![of(1.0, 0.5), of(1.25, 0.0625)], 1.25, 0.25, (false, false)),
            (vec![of(1.0, 0.5), of(0.25, 0.0)], 1.0, 0.5, (false, false)),
            (vec![of(2.0, 0.125), no_rank], 2.0, 0.125, (false, false)),
            (vec![with_minus_infinity(2.0, 0.125), of(1.0, 0.125)], 2.0, 1.125, (false, false)),
            (vec![with_minus_infinity(2.0, 0.125), with_minus_infinity(1.0, 0.0)], 2.0, 0.125, (true, false)),
            (vec![with_plus_infinity(1.0, 0.0), of(2.0, 0.5)], 2.0, 0.5, (false, true)),
        ] {
            let found = most(&parts);
            assert_eq!(found.value, value);
            assert_width(found.radius, radius, 1e-12, &format!("{parts:?}"));
            assert_eq!((found.may_be_minus_infinity, found.may_be_plus_infinity), infinities, "{parts:?}");
        }
        assert_eq!(most(&[no_rank, no_rank]), no_rank);
        assert_eq!(most(&[of(1.0, 0.0), of(0.0, f64::INFINITY)]), Approximate::UNDETERMINED);
    });
}

/// Each part is rounded to the type in which parts are exchanged, and so are the additions at most.
#[test]
fn parts_of_ranks_widen_by_their_exchange() {
    each(|model, storage, arithmetic| {
        for exchanged in [Storage::Bf16, Storage::F16] {
            let exchange = Arithmetic { kept: exchanged, ..arithmetic };
            let (u, _) = units(&exchange);
            let parts = [(1.5, 0.25), (-0.5, 0.0), (3.0, 0.125)];
            let found = arithmetic
                .sum_of_parts(exchanged, &parts.map(|(value, radius)| Approximate::new(value, radius)));
            let radii = parts.map(|(value, radius)| rounded(&exchange, value, radius));
            let carried: f64 = radii.iter().sum();
            let magnitude: f64 =
                parts.iter().zip(radii).map(|((value, _), radius)| f64::abs(*value) + radius).sum();
            let sum = carried + 3.0 * u * magnitude;
            assert_eq!(found.value, 4.0);
            assert_width(
                found.radius,
                rounded(&arithmetic, 4.0, sum),
                3.0 * u,
                &format!("{model} {storage} {exchanged}"),
            );
            let with = |part| arithmetic.sum_of_parts(exchanged, &[Approximate::new(1.0, 0.0), part]);
            assert_eq!(with(Approximate::EXCLUDED), Approximate::EXCLUDED);
            assert_eq!(with(Approximate::UNDETERMINED).radius, f64::INFINITY);
        }
        let parts = [Approximate::new(1.5, 0.25), Approximate::new(3.0, 0.125)];
        assert_eq!(arithmetic.sum_of_parts(Storage::F32, &parts), arithmetic.sum_over_heads(&parts));
    });
}

/// 749 roundings of each exponential and one for each term, above and below.
#[test]
fn a_recomputed_mean_is_off_by_as_many_roundings_as_are_counted() {
    for terms in [1, 10, 1000] {
        assert_width(recomputed_mean(terms), 2.0 * (749 + terms) as f64 * U64, 1e-9, "a mean");
    }
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

/// What is known of the exponentials of a row, with the names of `verdicts::output`.
struct FirstOrder {
    attended: Vec<usize>,
    p: Vec<f64>,
    value: Vec<f64>,
    /// q_j without underflow.
    moved: Vec<f64>,
    eta: f64,
    /// η·s
    scale: f64,
    of_weights: f64,
    accumulated: f64,
    rho: f64,
    max: f64,
    total: f64,
    over_all: f64,
    widest: f64,
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

    /// Errors of exponents and exponentials to first order, as they move a sum.
    fn exponentials(&self, inputs: &Inputs, model: RoundingModel) -> FirstOrder {
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
            // Two more where log2 e is multiplied in.
            let roundings = if model.exp == Exponent::Prescaled { 5.0 } else { 3.0 };
            (scaled, self.scaling * dot + (roundings * U32 + kept(model.scores_kept)) * scaled.abs())
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
        let of_weights = rounding(model.weights_kept);
        let rho = (2 + 2 * model.exp_ulps) as f64 * U32 + 3.0 * of_weights;
        let of_argument = if model.exp == Exponent::Fast { 4.0 } else { 3.0 };
        let moved = attended.iter().zip(&p).map(|(&key, p)| {
            let (w, r) = logits[key];
            let spread = over_all - w + r + widest;
            p * (r + spread * (of_argument * U32 + rounding(model.scores_kept)) + rho)
        });
        let moved: Vec<f64> = moved.collect();
        let eta = match model.weights_kept.of(storage) {
            Storage::F16 => 2f64.powi(-25),
            Storage::F32 | Storage::Bf16 => 2f64.powi(-126),
        };
        // A weight that underflows is off by η of its sum, which the largest logit of all keys may make smaller.
        let scale = eta * (over_all - max + widest).exp() / total;
        FirstOrder {
            attended,
            p,
            value,
            moved,
            eta,
            scale,
            of_weights,
            accumulated,
            rho,
            max,
            total,
            over_all,
            widest,
        }
    }

    /// The output's radius to first order: what exponentials are off by as it moves a mean, roundings of its sums, and the last rounding.
    fn first_order(&self, inputs: &Inputs, model: RoundingModel) -> (f64, f64) {
        let storage = inputs.storage();
        let FirstOrder { attended, p, value, moved, eta, scale, of_weights, accumulated, widest, .. } =
            self.exponentials(inputs, model);
        let output: f64 = p.iter().zip(&value).map(|(p, v)| p * v).sum();
        let shift: f64 = moved.iter().zip(&value).map(|(moved, v)| moved * (v - output).abs()).sum();
        let size: f64 = p.iter().zip(&value).map(|(p, v)| p * v.abs()).sum();
        let n = attended.len() as f64;
        let sums = n * U32 + n * accumulated + 2.0 * U32 + 5.0 * of_weights;
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

/// What is kept in which type, and what exp is given and how exact it is.
fn attention_models() -> Vec<RoundingModel> {
    let of_exp = |exp, exp_ulps| models().map(|model| RoundingModel { exp, exp_ulps, ..model });
    [of_exp(Exponent::Natural, 2), of_exp(Exponent::Prescaled, 1), of_exp(Exponent::Fast, 5)].concat()
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
    for model in attention_models() {
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

/// The same of a log-sum-exp. It has a logarithm for each of two levels, and with it 2^-21.
#[test]
fn a_log_sum_exp_is_bounded_to_first_order_and_no_wider() {
    let mut compared = 0;
    for model in attention_models() {
        for storage in Storage::ALL {
            for attention in attentions() {
                let (inputs, mask) = attention.inputs(storage);
                let found = expected_lse(&inputs, &mask, model, (0, 0, 0));
                let FirstOrder {
                    attended,
                    moved,
                    eta,
                    scale,
                    of_weights,
                    rho,
                    max,
                    total,
                    over_all,
                    widest,
                    ..
                } = attention.exponentials(&inputs, model);
                let value = max + total.ln();
                assert!(
                    (found.value - value).abs() <= 1e-12 * (1.0 + value.abs()),
                    "{} {value}",
                    found.value
                );
                let (of_scores, eta_of_scores) = match model.scores_kept.of(storage) {
                    _ if model.scores_kept == Precision::F32 => (0.0, 2f64.powi(-126)),
                    Storage::F16 => (2f64.powi(-11), 2f64.powi(-25)),
                    Storage::Bf16 => (2f64.powi(-8), 2f64.powi(-126)),
                    Storage::F32 => (U32, 2f64.powi(-126)),
                };
                let (u, eta) = (of_weights.max(of_scores), eta.max(eta_of_scores));
                let weights = attended.iter().map(|&key| 1.0 / f64::from(attention.weights[key]));
                let exponentials = moved.iter().sum::<f64>() + scale * weights.sum::<f64>() + scale;
                let n = attended.len() as f64;
                let ulps = f64::from(2 * model.exp_ulps);
                let sums = (2.0 + ulps) * n * U32 + 2.0 * u + 2.0 * (749.0 + n) * U64;
                let blocks = (4.0 + ulps) * n * U32 + 2.0 * u + rho;
                let largest = max.abs().max(over_all.abs()) + widest;
                let logarithm =
                    (8.0 * U32 + u) * (value.abs() + largest) + 2f64.powi(-21) + 4.0 * U32 * largest;
                let last = (U32 + u) * value.abs() + eta;
                let first_order = exponentials + sums + blocks + 2.0 * (logarithm + last);
                // All of it is rounded again, and a share of it moves the logarithms of shares.
                let share = exponentials + sums + blocks + 4.0 * u + first_order * u;
                if share > 0.1 {
                    continue;
                }
                let what = format!("{model} {storage} {}", attention.name);
                assert_width(found.radius, first_order, share, &what);
                compared += 1;
            }
        }
    }
    assert!(compared >= 100, "{compared}");
}

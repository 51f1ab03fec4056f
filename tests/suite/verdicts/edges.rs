//! Verdicts at their edges: a number at the very end of its radius, a sum that just reaches the largest number, NaN and infinities, rows
//! of zeros, keys that are in a mask though A excludes them. What lies at an edge is allowed; what lies beyond is not.

use doublecheck::algorithm::config::Combined;
use doublecheck::algorithm::{HeadMode, InputParts, Inputs, Mask, Ranks, Storage};
use doublecheck::cases::recipe::Words;
use doublecheck::cases::strategies::{Plan, Previous};
use doublecheck::cases::{Exponent, FactorOrder, Products, RoundingModel};
use doublecheck::verdicts::bounds::{Approximate, Arithmetic, U32, U64};
use doublecheck::verdicts::certificate::ScoreBounds;
use doublecheck::verdicts::lse::{expected_lse, judge_lse};
use doublecheck::verdicts::output::{expected_row, judge_output, judge_outputs};
use doublecheck::verdicts::scores::{allows, judge_scores};
use ndarray::{Array3, Array4};
use rstest::rstest;

use crate::support::small_plan;

const ROW: (usize, usize, usize) = (0, 0, 0);

/// Everything kept in the storage type, sums in f32.
const STORED: RoundingModel = RoundingModel::PYTORCH;

fn arithmetic(kept: Storage) -> Arithmetic {
    Arithmetic::new(STORED, kept)
}

fn opens(x: Approximate) -> (bool, bool) {
    (x.may_be_minus_infinity, x.may_be_plus_infinity)
}

fn infinite(x: Approximate, minus: bool, plus: bool) -> Approximate {
    Approximate { may_be_minus_infinity: minus, may_be_plus_infinity: plus, ..x }
}

/// One row of one head and one query.
struct Row {
    storage: Storage,
    q: Vec<f32>,
    k: Vec<f32>,
    /// A; none where there is no number.
    additive: Vec<f32>,
    /// Weights in the mask.
    weights: Vec<f32>,
    v: Vec<f32>,
    scaling: f64,
}

impl Row {
    fn inputs(&self) -> (Inputs, Mask) {
        let (n, d) = (self.weights.len(), self.q.len());
        let of =
            |shape: [usize; 4], numbers: &[f32]| Array4::from_shape_vec(shape, numbers.to_vec()).unwrap();
        let inputs = Inputs::new(InputParts {
            q: of([1, 1, 1, d], &self.q),
            k: of([1, 1, n, d], &self.k),
            v: of([1, 1, n, self.v.len() / n], &self.v),
            attention_mask: (!self.additive.is_empty()).then(|| of([1, 1, 1, n], &self.additive)),
            causal: false,
            storage: self.storage,
            scaling: Some(self.scaling),
        })
        .unwrap();
        let mask = Mask::from_weights(of([1, 1, 1, n], &self.weights), &inputs.dims()).unwrap();
        (inputs, mask)
    }
}

/// A rounding, a sum of products and a sum over heads that end at the largest number itself are no infinities; a little beyond they are.
#[test]
fn what_just_reaches_the_largest_number_is_no_infinity() {
    for kept in Storage::ALL {
        let (arithmetic, largest) = (arithmetic(kept), kept.largest());
        // 0 up to a radius that is r·(1 + u) + η after it is rounded.
        let mut r = (largest - arithmetic.underflow()) / (1.0 + arithmetic.u()) * (1.0 - 8.0 * U64);
        while arithmetic.round(Approximate::new(0.0, r)).radius < largest {
            r = r.next_up();
        }
        let reached = arithmetic.round(Approximate::new(0.0, r));
        assert_eq!((reached.radius, opens(reached)), (largest, (false, false)), "{kept}");
        let beyond = arithmetic.round(Approximate::new(0.0, r * (1.0 + 4.0 * U64)));
        assert_eq!(opens(beyond), (true, true), "{kept}");
    }
    // Two terms without rounding but that of f64, γ_2 = 2^-52: 1 ± 1 is carried, so that partial sums are 1 + 1 + 2·2^-52 at most.
    for (largest, overflows) in [(2.0 + 2f64.powi(-51), false), (2.0, true)] {
        let exact = Arithmetic { accumulation: 0.0, sum_range: (largest, 0.0), ..arithmetic(Storage::F32) };
        assert_eq!(opens(exact.sum_of_products(1, 1.0, 1.0, 1.0)), (overflows, overflows));
    }
    // γ_4 of f32 is 1 / (2^22 − 1), and the largest number (2^24 − 1)·2^104: magnitudes of (2^24 − 1)(2^22 − 1)·2^82 reach it.
    let magnitude = (2f64.powi(24) - 1.0) * (2f64.powi(22) - 1.0) * 2f64.powi(82);
    for (share, overflows) in [(1.0, false), (1.0 + 1e-9, true)] {
        let part = Approximate::new(magnitude * share / 2.0, 0.0);
        let sum = arithmetic(Storage::F32).sum_over_heads(&[part, part.negated()]);
        assert_eq!(opens(sum), (overflows, overflows), "{share}");
    }
}

/// 0 times an infinity is NaN: in f16 −80,000 is −∞, which a scaling of 0, or of what is 0 in f32, makes NaN.
#[rstest]
#[case(0.0, true)]
#[case(2f64.powi(-151), true)]
#[case(2f64.powi(-10), false)]
fn an_infinite_product_times_zero_is_not_a_number(#[case] scaling: f64, #[case] not_a_number: bool) {
    for last in [-400.0, 400.0] {
        let (k, additive, weights, v) = (vec![0.0, last], Vec::new(), vec![1.0; 2], vec![1.0; 2]);
        let row = Row { storage: Storage::F16, q: vec![200.0], k, additive, weights, v, scaling };
        let (inputs, mask) = row.inputs();
        let verdict =
            judge_output(&inputs, &mask, &Array4::from_elem((1, 1, 1, 1), f32::NAN), RoundingModel::PYTORCH);
        let conforms = verdict.divergences.is_empty();
        // +∞ − +∞ is NaN, too.
        assert_eq!(conforms, not_a_number || last > 0.0, "{scaling}, {last}");
    }
}

/// A head weight times the factor may reach the largest number within its four roundings.
#[test]
fn a_weighted_factor_that_just_reaches_the_largest_number_leaves_a_score() {
    let (arithmetic, share) = (arithmetic(Storage::F16), 1.0 + 4.0 * 2f64.powi(-11));
    let largest = Storage::F16.largest();
    let mut factor = largest / share * (1.0 - 4.0 * U64);
    while factor * share < largest {
        factor = factor.next_up();
    }
    assert_eq!(factor * share, largest);
    let score = |factor: f64| arithmetic.relu(Approximate::new(0.5, 0.0), 1.0, factor);
    assert!(score(factor).radius < 1.0);
    assert_eq!(score(factor * 1.0001), Approximate::UNDETERMINED);
}

/// Its square is the spacing of subnormal numbers of f16.
const SMALL: f64 = 1.0 / 4096.0;

/// Every operation may be off by half a unit and an underflow in the direction that moves the quotient furthest, and the operands may lie
/// at any of their ends.
#[rstest]
#[case::wide_norms_and_a_large_epsilon((1.0, 0.0), (1.0, 1.0), (1.0, 1.0), 32.0)]
#[case::wide_norms((1.0, 0.25), (2.0, 1.0), (1.5, 0.5), 1e-6)]
#[case::a_dot_product_of_either_sign((0.25, 0.5), (2.0, 1.0), (3.0, 1.0), 1e-6)]
#[case::as_small_as_the_spacing((1e-6, 0.0), (SMALL, SMALL), (SMALL, SMALL), 16.0 * SMALL * SMALL)]
#[case::exact_norms((-3.0, 0.0), (2.0, 0.0), (1.0, 0.0), 0.5)]
fn a_cosine_holds_the_quotients_of_all_ends_however_they_are_rounded(
    #[case] dot: (f64, f64),
    #[case] q: (f64, f64),
    #[case] k: (f64, f64),
    #[case] epsilon: f64,
) {
    for kept in Storage::ALL {
        let arithmetic = arithmetic(kept);
        let number = |(value, radius)| Approximate::new(value, radius);
        let found = arithmetic.cosine(number(dot), number(q), number(k), epsilon);
        let (u, eta) = (arithmetic.u(), arithmetic.underflow());
        let up = |x: f64| x * (1.0 + u) + eta;
        let down = |x: f64| (x * (1.0 - u) - eta).max(0.0);
        let most = up(up((q.0 + q.1) * (k.0 + k.1)) + up(epsilon));
        let least = down(down((q.0 - q.1) * (k.0 - k.1)) + down(epsilon));
        let mut ends = 0;
        for divisor in [most, least] {
            for dot in [dot.0 - dot.1, dot.0 + dot.1] {
                let quotient = dot / divisor;
                for error in [-1.0, 1.0] {
                    let rounded = quotient + error * (u * quotient.abs() + eta);
                    assert!(found.low() <= rounded && rounded <= found.high(), "{rounded}: {found:?} {kept}");
                    ends += 1;
                }
            }
        }
        assert_eq!(ends, 8);
        assert!(found.radius < 1e3, "{found:?}");
    }
}

/// Numbers far below 1 have radii far below them.
#[test]
fn small_numbers_have_small_radii() {
    let arithmetic = arithmetic(Storage::F32);
    let small = Approximate::new(1e-5, 0.0);
    let cosine = arithmetic.cosine(Approximate::new(1e-10, 0.0), small, small, 0.0);
    assert!((cosine.value - 1.0).abs() < 1e-9 && cosine.radius < 20.0 * U32, "{cosine:?}");
    let norm = arithmetic.norm([(1e-6, 0.0), (1e-6, 0.0)].into_iter());
    assert!(norm.radius < 20.0 * U32 * norm.value, "{norm:?}");
    let largest = arithmetic.combine(Combined::Max, Ranks::default(), &[small, small.negated()]);
    assert!(largest.radius < 8.0 * U64 * 1e-5, "{largest:?}");
}

/// A norm that may be an infinity, times one that may be 0, is NaN, whatever ε is added.
#[test]
fn an_infinite_norm_times_one_of_0_leaves_nothing_to_say() {
    let (one, zero) = (Approximate::new(1.0, 0.0), Approximate::new(0.0, 0.0));
    let large = infinite(Approximate::new(2.0, 0.0), false, true);
    let cosine = |q, k| arithmetic(Storage::F32).cosine(one, q, k, 1.0);
    for (q, k) in [(large, zero), (zero, large), (large, Approximate::new(1.0, 1.5))] {
        assert_eq!(cosine(q, k), Approximate::UNDETERMINED, "{q:?} {k:?}");
    }
    assert!(cosine(large, one).radius < 1.0 && cosine(one, zero).radius < 1e-5);
}

/// The ends of the interval of a largest score are held to the last bit: nothing that follows rounds more.
#[test]
fn a_largest_score_holds_the_ends_of_its_scores() {
    let words = Words::new(11, 0);
    for i in 0..2000u64 {
        let part = |j: u64| {
            Approximate::new(
                f64::from(words.value(8 * i + j)) / 3.0,
                f64::from(words.value(8 * i + j + 4)).abs() / 7.0,
            )
        };
        let parts = [part(0), part(1), part(2)];
        let most = arithmetic(Storage::F32).combine(Combined::Max, Ranks::default(), &parts);
        let end = |of: fn(Approximate) -> f64| parts.into_iter().map(of).fold(f64::NEG_INFINITY, f64::max);
        assert!(most.low() <= end(Approximate::low), "{most:?} of {parts:?}");
        assert!(most.high() >= end(Approximate::high), "{most:?} of {parts:?}");
    }
}

/// A number in two parts, exact to about 2^-100.
#[derive(Debug, Clone, Copy)]
struct Twice(f64, f64);

impl Twice {
    fn of(x: f64) -> Self {
        Self(x, 0.0)
    }

    fn plus(self, other: Self) -> Self {
        let sum = self.0 + other.0;
        let part = sum - self.0;
        let rest = (self.0 - (sum - part)) + (other.0 - part) + self.1 + other.1;
        Self(sum + rest, rest - ((sum + rest) - sum))
    }

    fn times(self, other: Self) -> Self {
        let product = self.0 * other.0;
        let rest = self.0.mul_add(other.0, -product) + self.0 * other.1 + self.1 * other.0;
        Self(product + rest, rest - ((product + rest) - product))
    }

    fn over(self, other: Self) -> Self {
        let first = self.0 / other.0;
        let rest = self.plus(other.times(Self::of(-first)));
        Self::of(first).plus(Self::of(rest.0 / other.0))
    }

    fn sqrt(self) -> Self {
        let first = self.0.sqrt();
        let rest = self.plus(Self::of(first).times(Self::of(-first)));
        Self::of(first).plus(Self::of(rest.0 / (2.0 * first)))
    }

    /// Times (1 + γ_4 of f32)(1 + u), plus η: four roundings of f32 and one of what is kept.
    fn rounded_up(self, arithmetic: Arithmetic) -> Self {
        let one = Self::of(1.0);
        let gamma = Self::of(4.0 * U32).over(Self::of(1.0 - 4.0 * U32));
        let factor = one.plus(gamma).times(one.plus(Self::of(arithmetic.u())));
        self.times(factor).plus(Self::of(arithmetic.underflow()))
    }

    fn is_above(self, other: Self) -> bool {
        self.plus(Self(-other.0, -other.1)).0 > 0.0
    }
}

/// The largest norm and the largest cosine that are derived, computed in twice the precision: what f64 rounds on the way to a radius
/// makes it no narrower.
#[test]
fn norms_and_cosines_hold_the_largest_that_are_derived_to_the_last_bit() {
    let words = Words::new(12, 0);
    for i in 0..3000u64 {
        let arithmetic = arithmetic(Storage::ALL[i as usize % 3]);
        // A few bits each, so that sums of them are exact.
        let at = |j: u64| f64::from(words.value(8 * i + j));
        let end = |x: Approximate| Twice::of(x.value).plus(Twice::of(x.radius));
        let (x, radius) = (at(0), at(1).abs() / 8.0);
        let (square, carried) = (x * x, 2.0 * x.abs() * radius + radius * radius);
        let sum = end(arithmetic.sum_of_products(1, square, square, carried));
        let norm = arithmetic.norm([(x, radius)].into_iter());
        assert!(!sum.sqrt().rounded_up(arithmetic).is_above(end(norm)), "{x} ± {radius}: {norm:?}");

        let positive = |j: u64| Approximate::new(1.0 + at(j).abs(), at(j + 1).abs() / 8.0);
        let (dot, q, k) = (positive(2), positive(4), positive(6));
        let epsilon = 1.0 + at(1).abs();
        let (u, eta) = (arithmetic.u(), arithmetic.underflow());
        let down = |x: Twice| x.times(Twice::of(1.0 - u)).plus(Twice::of(-eta));
        let low = |x: Approximate| Twice::of(x.value).plus(Twice::of(-x.radius));
        let least = down(down(low(q).times(low(k))).plus(down(Twice::of(epsilon))));
        let cosine = arithmetic.cosine(dot, q, k, epsilon);
        let largest = end(dot).over(least).rounded_up(arithmetic);
        assert!(!largest.is_above(end(cosine)), "{dot:?} {q:?} {k:?} {epsilon}: {cosine:?}");
    }
}

/// 1 ± 0.5
const ONE: Approximate = Approximate::new(1.0, 0.5);

/// NaN is allowed where infinities of both signs may meet, an infinity where it may be reached, and nothing else where A is −∞.
#[rstest]
#[case::excluded(Approximate::EXCLUDED, &[f32::NEG_INFINITY], &[0.0, f32::NAN, f32::INFINITY, f32::MIN])]
#[case::anything(Approximate::UNDETERMINED, &[0.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY], &[])]
#[case::finite(ONE, &[0.5, 1.5], &[0.4, 1.6, f32::NAN, f32::INFINITY, f32::NEG_INFINITY])]
#[case::plus(infinite(ONE, false, true), &[0.5, 9.0, f32::INFINITY], &[0.4, f32::NAN])]
#[case::minus(infinite(ONE, true, false), &[-9.0, f32::NEG_INFINITY], &[1.6, f32::NAN])]
#[case::both(infinite(ONE, true, true), &[-9.0, 9.0, f32::NAN], &[])]
fn a_score_may_be_what_its_interval_and_its_infinities_allow(
    #[case] expected: Approximate,
    #[case] right: &[f32],
    #[case] wrong: &[f32],
) {
    assert!(right.iter().all(|&found| allows(expected, found)), "{expected:?}");
    assert!(!wrong.iter().any(|&found| allows(expected, found)), "{expected:?}");
}

/// Scores of keys that were attended before may be anything: in the modes that share a selection those that any head attended to, in
/// others only those of the head itself.
#[rstest]
#[case::per_head(HeadMode::PerHead)]
#[case::summed_scores(HeadMode::SummedScores)]
fn scores_are_asked_of_all_keys_but_those_attended_before(#[case] heads: HeadMode) {
    let mut plan = Plan { previous: Previous::Some, keys: 12, causal: false, ..small_plan() };
    plan.selection.heads = heads;
    let case = plan.case().unwrap();
    let (dims, before, model) = (case.dims(), case.before().unwrap(), RoundingModel::F32);
    let bounds = ScoreBounds::new(&case.instance, &case.call, model, &before).unwrap().unwrap();
    let mut right = Array4::zeros((1, dims.heads, dims.queries, dims.keys));
    for row @ (b, head, i) in dims.rows() {
        for (key, score) in bounds.ranked_by(row).into_iter().enumerate() {
            right[[b, head, i, key]] = score.value as f32;
        }
    }
    let judge = |scores: &Array4<f32>| judge_scores(&case.instance, &case.call, scores, model, &before, None);
    assert_eq!(judge(&right), None);
    let (mut asked, mut of_others) = (0, 0);
    for (b, head, i) in dims.rows() {
        for key in 0..dims.keys {
            let mut wrong = right.clone();
            wrong[[b, head, i, key]] += 1e6;
            let (own, any) = (
                before.attends(b, head, i, key),
                (0..dims.heads).any(|head| before.attends(b, head, i, key)),
            );
            let is_free = if heads == HeadMode::PerHead { own } else { any };
            let found = judge(&wrong).map(|fault| fault.index);
            assert_eq!(found, (!is_free).then_some([b, head, i, key]));
            asked += usize::from(!is_free);
            of_others += usize::from(any && !own);
        }
    }
    assert!(asked > 10 && of_others > 0, "{asked} {of_others}");
}

/// Keys of which the last times 200 overflows f16.
const LARGE: [f32; 3] = [0.0, 0.5, 400.0];
const EXCLUDED: f32 = f32::NEG_INFINITY;

/// What a log-sum-exp may be, of an implementation that answers the number itself, one beyond its radius, NaN, +∞ or −∞.
#[rstest]
#[case::of_a_row(&[0.0, 0.5, 0.0], &[1.0, 1.0, 0.0], 0.0, [true, false, false, false, false])]
// The product of the excluded key overflows: a maximum over all keys may be NaN, and what follows from it.
#[case::of_a_maximum_of_nan(&LARGE, &[1.0, 1.0, 0.0], EXCLUDED, [true, false, true, false, false])]
#[case::of_nothing_by_a_maximum_of_nan(&LARGE, &[0.0; 3], EXCLUDED, [false, false, true, false, true])]
#[case::of_a_logit_that_overflows(&LARGE, &[1.0, 1.0, 0.0], 0.0, [true, true, true, true, true])]
#[case::of_nothing(&[0.0, 0.5, 0.0], &[0.0; 3], 0.0, [false, false, false, false, true])]
fn a_log_sum_exp_may_be_nan_or_infinite_only_where_its_row_may(
    #[case] k: &[f32],
    #[case] weights: &[f32],
    #[case] last: f32,
    #[case] conforms: [bool; 5],
) {
    let row = Row {
        storage: Storage::F16,
        q: vec![200.0],
        k: k.to_vec(),
        additive: vec![0.0, 0.0, last],
        weights: weights.to_vec(),
        v: vec![1.0; 3],
        scaling: 0.01,
    };
    let (inputs, mask) = row.inputs();
    let expected = expected_lse(&inputs, &mask, STORED, ROW);
    let own = if expected.value.is_finite() { expected.value } else { 0.0 };
    let beyond = if expected.radius.is_finite() { own + 1.1 * expected.radius + 1e-3 } else { own + 1e9 };
    for (found, conforms) in
        [own as f32, beyond as f32, f32::NAN, f32::INFINITY, f32::NEG_INFINITY].into_iter().zip(conforms)
    {
        let verdict = judge_lse(&inputs, &mask, &Array3::from_elem((1, 1, 1), found), STORED);
        assert_eq!(verdict.divergences.is_empty(), conforms, "{found}");
        assert_eq!(verdict.worst_share <= 1.0, conforms, "{found}");
    }
}

/// Two keys in bf16, whose radii are large: with the scaling, which any number may be, the end of a radius is moved until it is exactly a
/// number of f32.
fn at_the_end(radius: impl Fn(f64) -> Approximate, is_right: impl Fn(f64, f32) -> (bool, f64)) {
    let mut reached = 0;
    for step in 0..160 {
        let found = 1.0 + step as f32 / 256.0;
        let end = |scaling: f64| {
            let expected = radius(scaling);
            expected.value + expected.radius
        };
        let (mut low, mut high) = (0.0, 4.0);
        assert!(end(low) < f64::from(found) && end(high) > f64::from(found), "{} {}", end(low), end(high));
        while high - low > 4.0 * U64 {
            let middle = (low + high) / 2.0;
            *if end(middle) < f64::from(found) { &mut low } else { &mut high } = middle;
        }
        let mut scaling = low * (1.0 - 8.0 * U64);
        for _ in 0..16 {
            scaling = scaling.next_up();
            let expected = radius(scaling);
            if f64::from(found) - expected.value == expected.radius {
                reached += 1;
                assert_eq!(is_right(scaling, found), (true, 1.0), "{found} at the end of {expected:?}");
                assert!(!is_right(scaling, found.next_up()).0, "{found} beyond the end of {expected:?}");
            }
        }
    }
    assert!(reached > 0);
}

#[test]
fn a_log_sum_exp_at_the_end_of_its_radius_conforms() {
    let row = |scaling: f64| {
        let (q, k) = (vec![1.0], vec![1.0]);
        Row { storage: Storage::Bf16, q, k, additive: vec![], weights: vec![1.0], v: vec![1.0], scaling }
            .inputs()
    };
    at_the_end(
        |scaling| {
            let (inputs, mask) = row(scaling);
            expected_lse(&inputs, &mask, STORED, ROW)
        },
        |scaling, found| {
            let (inputs, mask) = row(scaling);
            let verdict = judge_lse(&inputs, &mask, &Array3::from_elem((1, 1, 1), found), STORED);
            (verdict.divergences.is_empty(), verdict.worst_share)
        },
    );
}

#[test]
fn an_output_at_the_end_of_its_radius_conforms() {
    let row = |scaling: f64| {
        let (q, k, v) = (vec![1.0], vec![0.0, 1.0], vec![0.25, 2.5]);
        Row {
            storage: Storage::Bf16,
            q,
            k,
            additive: vec![],
            weights: vec![1.0; 2],
            v,
            scaling: scaling - 1.5,
        }
        .inputs()
    };
    at_the_end(
        |scaling| {
            let (inputs, mask) = row(scaling);
            expected_row(&inputs, &mask, STORED, ROW)[0]
        },
        |scaling, found| {
            let (inputs, mask) = row(scaling);
            let verdict = judge_output(&inputs, &mask, &Array4::from_elem((1, 1, 1, 1), found), STORED);
            (verdict.divergences.is_empty(), verdict.worst_share)
        },
    );
}

/// Of several numbers of a row that are as wrong as each other the first is told.
#[test]
fn the_first_of_equally_wrong_numbers_is_told() {
    let (q, k, v) = (vec![0.0], vec![0.0; 2], vec![1.0; 6]);
    let row = Row { storage: Storage::F32, q, k, additive: vec![], weights: vec![1.0; 2], v, scaling: 1.0 };
    let (inputs, mask) = row.inputs();
    let told = |output: [f32; 3]| {
        let output = Array4::from_shape_vec((1, 1, 1, 3), output.to_vec()).unwrap();
        judge_output(&inputs, &mask, &output, STORED)
            .divergences
            .iter()
            .map(|x| x.index[3])
            .collect::<Vec<_>>()
    };
    assert_eq!(told([f32::NAN, f32::INFINITY, f32::NAN]), [0]);
    assert_eq!(told([1.0, 3.0, 3.0]), [1]);
    assert_eq!(told([1.0, 3.0, 4.0]), [2]);
    assert!(told([1.0; 3]).is_empty());
}

/// The widest bound is a share of the row's largest output. A row of zeros has none; one of which nothing is known is wide without end.
#[test]
fn the_widest_bound_is_a_share_of_the_largest_output() {
    let widest = |v: &[f32], k: &[f32]| {
        let row = Row {
            storage: Storage::F16,
            q: vec![200.0],
            k: k.to_vec(),
            additive: vec![],
            weights: vec![1.0, 0.0],
            v: v.to_vec(),
            scaling: 1.0,
        };
        let (inputs, mask) = row.inputs();
        let output = Array4::from_shape_vec((1, 1, 1, 2), v[..2].to_vec()).unwrap();
        let verdict = judge_output(&inputs, &mask, &output, STORED);
        assert!(verdict.divergences.is_empty());
        let radii: Vec<f64> =
            expected_row(&inputs, &mask, STORED, ROW).iter().map(|expected| expected.radius).collect();
        (verdict.widest_bound, f64::max(radii[0], radii[1]))
    };
    // −8 is the largest, and has the largest radius.
    let (found, radius) = widest(&[0.5, -8.0, 0.0, 0.0], &[0.0, 0.0]);
    assert!(radius > 1e-3 && (found - radius / 8.0).abs() < 1e-12, "{found} {radius}");
    let (found, radius) = widest(&[0.0; 4], &[0.0, 0.0]);
    assert!(found == 0.0 && radius < 1e-6, "{found} {radius}");
    // The logit of the other key overflows.
    for v in [[0.0; 4], [1.0; 4]] {
        assert_eq!(widest(&v, &[0.0, 400.0]), (f64::INFINITY, f64::INFINITY));
    }
}

/// A key that A excludes takes no part in a row, whether it is in the mask or not: neither the output nor its bound knows of it. Only a
/// product that overflows before A is added shows, where a maximum is taken over all keys.
#[rstest]
#[case::in_f32(Storage::F32)]
#[case::in_f16(Storage::F16)]
fn a_key_that_is_excluded_counts_as_little_in_the_mask_as_outside(#[case] storage: Storage) {
    for overflows in [false, true] {
        let row = |weights: [f32; 3]| {
            let row = Row {
                storage,
                q: vec![200.0],
                k: vec![0.0, 0.01, if overflows { 400.0 } else { 2.0 }],
                additive: vec![0.0, 0.0, f32::NEG_INFINITY],
                weights: weights.to_vec(),
                v: vec![1.0, -0.5, 100.0],
                scaling: 1.0,
            };
            let (inputs, mask) = row.inputs();
            (expected_row(&inputs, &mask, STORED, ROW)[0], expected_lse(&inputs, &mask, STORED, ROW))
        };
        assert_eq!(row([1.0, 0.5, 1.0]), row([1.0, 0.5, 0.0]));
        assert_eq!(row([0.0, 0.0, 0.5]), row([0.0, 0.0, 0.0]));
        let (output, lse) = row([1.0, 0.5, 1.0]);
        let may_be_nan = overflows && storage == Storage::F16;
        assert_eq!((output.may_be_plus_infinity, lse.may_be_plus_infinity), (may_be_nan, may_be_nan));
        assert!(output.radius < 0.1);
        let (output, lse) = row([0.0, 0.0, 1.0]);
        assert_eq!((output.value, output.radius, lse.value), (0.0, 0.0, f64::NEG_INFINITY));
    }
}

/// 0 · ∞ is NaN: a product that overflows before it is scaled by 0 leaves nothing to say.
#[test]
fn a_product_that_overflows_and_is_scaled_by_0_may_be_nan() {
    let row = Row {
        storage: Storage::F16,
        q: vec![200.0],
        k: vec![0.0, 400.0],
        additive: vec![],
        weights: vec![1.0; 2],
        v: vec![1.0, 1.0],
        scaling: 0.0,
    };
    let (inputs, mask) = row.inputs();
    let verdict = judge_output(&inputs, &mask, &Array4::from_elem((1, 1, 1, 1), f32::NAN), STORED);
    assert!(verdict.divergences.is_empty());
}

/// The verdicts on several outputs with the same mask are those on each alone, whatever their models.
#[test]
fn outputs_judged_together_are_judged_as_each_alone() {
    let before = RoundingModel { factor: FactorOrder::Before, ..STORED };
    let prescaled = RoundingModel { exp: Exponent::Prescaled, ..before };
    let row = Row {
        storage: Storage::F32,
        q: vec![1.0, -2.0, 0.5],
        k: vec![0.5, 1.0, -1.0, 2.0, 0.25, 1.0, -1.0, 0.5, 3.0],
        additive: vec![],
        weights: vec![1.0, 0.0, 1.0],
        v: vec![1.0, -1.0, 3.0],
        scaling: 0.37,
    };
    let (inputs, mask) = row.inputs();
    let output = Array4::from_elem((1, 1, 1, 1), 7.0f32);
    for models in [[STORED, before], [before, STORED], [prescaled, before], [STORED, STORED]] {
        let together = judge_outputs(&inputs, &mask, models.map(|model| (&output, model)));
        for (found, model) in together.into_iter().zip(models) {
            let alone = judge_output(&inputs, &mask, &output, model);
            assert_eq!(found.divergences, alone.divergences, "{models:?}");
            let expected = expected_row(&inputs, &mask, model, ROW)[0];
            assert_eq!(
                (alone.divergences[0].expected, alone.divergences[0].bound),
                (expected.value, expected.radius)
            );
        }
    }
}

/// The largest logit of all keys, which estimates look for, is that of the largest high end and not that of the largest value: one key's
/// products are 0.0625·q and nothing else, those of another cancel, and what tf32 cuts of them is more than the first is.
#[rstest]
#[case::scaled_afterwards(FactorOrder::After, Exponent::Natural, 0.0625)]
#[case::scaled_before(FactorOrder::Before, Exponent::Natural, 0.0625)]
#[case::scaled_and_prescaled_before(FactorOrder::Before, Exponent::Prescaled, 0.104)]
fn a_key_whose_products_cancel_may_have_the_largest_logit(
    #[case] factor: FactorOrder,
    #[case] exp: Exponent,
    #[case] largest: f32,
) {
    let (n, d) = (256, 64);
    let model = RoundingModel { attention_products: Products::Tf32, factor, exp, ..STORED };
    let mut k = vec![0.0; n * d];
    k[d] = largest;
    for (channel, x) in k[2 * d..3 * d].iter_mut().enumerate() {
        *x = if channel % 2 == 0 { 1.0 } else { -1.0 };
    }
    let mut weights = vec![0.0; n];
    weights[100..103].fill(1.0);
    let row = Row {
        storage: Storage::F32,
        q: vec![16.0; d],
        k,
        additive: vec![],
        weights,
        v: (0..n).map(|key| if key == 101 { 1.0 } else { -1.0 }).collect(),
        scaling: 0.25,
    };
    let (inputs, mask) = row.inputs();
    let verdict = judge_output(&inputs, &mask, &Array4::from_elem((1, 1, 1, 1), 9.0), model);
    // Without estimates.
    let expected = expected_row(&inputs, &mask, model, ROW)[0];
    assert_eq!(verdict.divergences[0].bound, expected.radius);
    let alone = |key: usize| {
        let mut mask = Mask::empty(&inputs.dims());
        mask.add(ROW, [key]);
        expected_lse(&inputs, &mask, model, ROW)
    };
    assert!(alone(1).value > alone(2).value && alone(1).high() < alone(2).high());
}

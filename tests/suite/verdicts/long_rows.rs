//! Long rows, of which most scores and logits are only estimated: certificates and bounds are those of every key derived, to the last
//! bit. The rows are such that what is left out would be missed if a little more were left out: keys lie close together where
//! rounding, underflow, rounded products or an overflow decide, and estimates are as wrong as they may be.

use doublecheck::algorithm::attention::attention;
use doublecheck::algorithm::{
    ChannelOrder, Forced, GroupFactor, HeavySize, InputParts, Inputs, LabelBits, Mask, ScoreFactor,
    ScoreRule, Selection, Storage,
};
use doublecheck::cases::recipe::Words;
use doublecheck::cases::{
    Accumulation, Case, FactorOrder, LabelRounding, Precision, Products, RoundingModel,
};
use doublecheck::verdicts::certificate::{Candidacy, Class, ScoreBounds, certify_row};
use doublecheck::verdicts::lse::{expected_lse, judge_lse};
use doublecheck::verdicts::output::{expected_row, judge_output};
use doublecheck::verdicts::{Certificate, estimated};
use ndarray::{Array3, Array4, s};
use rstest::rstest;

use crate::support::small_case;

/// What is asked: a number of q for each head, query and channel, and one of k for each key and channel.
struct Long {
    /// Heads over one KV head.
    heads: usize,
    queries: usize,
    keys: usize,
    head_dim: usize,
    q: fn(usize, usize, usize) -> f32,
    k: fn(usize, usize) -> f32,
    storage: Storage,
    scaling: Option<f64>,
    causal: bool,
}

impl Default for Long {
    /// One row of ordinary numbers.
    fn default() -> Self {
        Self {
            heads: 1,
            queries: 1,
            keys: 2100,
            head_dim: 8,
            q: |head, query, channel| normal(1, (head * 64 + query) * 64 + channel),
            k: |key, channel| normal(2, key * 64 + channel),
            storage: Storage::F32,
            scaling: None,
            causal: false,
        }
    }
}

impl Long {
    fn case(&self) -> Case {
        let (heads, queries, keys, d) = (self.heads, self.queries, self.keys, self.head_dim);
        let inputs = Inputs::new(InputParts {
            q: Array4::from_shape_fn((1, heads, queries, d), |(_, head, i, c)| (self.q)(head, i, c)),
            k: Array4::from_shape_fn((1, 1, keys, d), |(_, _, key, c)| (self.k)(key, c)),
            v: Array4::from_shape_fn((1, 1, keys, 1), |(_, _, key, _)| normal(3, key)),
            attention_mask: None,
            causal: self.causal,
            storage: self.storage,
            scaling: self.scaling,
        });
        let mut case = small_case().with_inputs(inputs.unwrap());
        case.call.previous = None;
        case = case.with_channels(ChannelOrder::new(vec![(0..d).collect()]).unwrap());
        case.instance.selection = Selection::new(HeavySize::count(40).unwrap(), 1, 16).unwrap();
        case
    }
}

/// About 1 in size, and seldom above 3.
fn normal(stream: u64, index: usize) -> f32 {
    Words::new(7, stream).value(index as u64)
}

/// 1 and up to 255 units in the last place.
fn about_one(stream: u64, index: usize) -> f32 {
    1.0 + (Words::new(7, stream).word(index as u64) % 256) as f32 * f32::EPSILON
}

fn kept(kept: Precision, accumulation: Accumulation) -> RoundingModel {
    RoundingModel {
        scores_kept: kept,
        weights_kept: Precision::F32,
        accumulation,
        ..RoundingModel::default()
    }
}

/// The largest radius beside which an estimate is exact: scores are rounded to f16.
fn coarse() -> RoundingModel {
    kept(Precision::F16, Accumulation::F32)
}

/// The smallest radius: sums in f64, scores in f32.
fn fine() -> RoundingModel {
    kept(Precision::F32, Accumulation::F64)
}

// --- certificates -----------------------------------------------------------------------------------------------------

/// The scores of a call under each model.
fn scores_of<'a>(
    case: &'a Case,
    models: &[RoundingModel],
    certificates: &'a [Certificate],
) -> Vec<ScoreBounds<'a>> {
    let scores = |(model, certificate): (&RoundingModel, &'a Certificate)| {
        ScoreBounds::new(&case.instance, &case.call, *model, &certificate.before).unwrap().unwrap()
    };
    models.iter().zip(certificates).map(scores).collect()
}

/// Every certificate is that of all scores. Returns how many keys are open.
fn assert_certified(case: &Case, models: &[RoundingModel]) -> usize {
    let certificates = Certificate::derive_each(&case.instance, &case.call, models).unwrap();
    let heavy_size = case.instance.selection.heavy_size.resolve(case.dims().keys);
    for (scores, certificate) in scores_of(case, models, &certificates).iter().zip(&certificates) {
        for (row, found) in case.dims().rows().zip(certificate.rows.as_ref().unwrap()) {
            assert!(found == &certify_row(&scores.row(row), heavy_size), "{row:?}");
        }
    }
    certificates.iter().map(Certificate::open).sum()
}

/// Whether certificates are made from estimates.
fn estimates(case: &Case, models: &[RoundingModel]) -> bool {
    let certificates = Certificate::derive_each(&case.instance, &case.call, models).unwrap();
    let scores = scores_of(case, models, &certificates);
    estimated::certificates(&case.instance, &case.call, models, &scores, 0).is_some()
}

/// Two numbers of each key for each head, by which it ranks: all about as large, and those of later heads much larger.
const OF_HEADS: Long = Long {
    heads: 4,
    queries: 3,
    keys: 4200,
    head_dim: 8,
    q: |head, query, channel| 1.0 + normal(1, (head * 64 + query) * 64 + channel) / 16.0,
    k: |key, channel| (1.0 + normal(2, key * 64 + channel) / 64.0) * 2f32.powi(4 * (channel / 2) as i32 - 12),
    storage: Storage::F32,
    scaling: None,
    causal: false,
};

#[rstest]
// Sums of eight numbers near 1, which f32 rounds by as much as scores are apart.
#[case::estimates_are_off(Long {
    queries: 8, keys: 3000,
    q: |_, query, channel| about_one(1, query * 64 + channel),
    k: |key, channel| about_one(2, key * 64 + channel), ..Long::default()
}, vec![fine()])]
#[case::large_and_off(Long {
    queries: 8, keys: 3000,
    q: |_, query, channel| about_one(1, query * 64 + channel),
    k: |key, channel| about_one(2, key * 64 + channel) * 2f32.powi(40), ..Long::default()
}, vec![fine()])]
// Of η/16 steps: underflow is all that radii consist of.
#[case::as_small_as_an_underflow(Long {
    head_dim: 4,
    q: |_, _, _| 1.0,
    k: |key, channel| if channel == 0 { (4000 - key) as f32 * 2f32.powi(-130) } else { 0.0 },
    ..Long::default()
}, vec![kept(Precision::F32, Accumulation::F32)])]
// Half of what f16 holds.
#[case::large_and_coarse(Long {
    head_dim: 4,
    q: |_, _, _| 1.0,
    k: |key, channel| if channel == 0 { 60_000.0 - key as f32 } else { 0.0 }, ..Long::default()
}, vec![coarse()])]
#[case::several_queries(Long { queries: 3, ..Long::default() }, vec![coarse()])]
// More keys than one part has.
#[case::several_parts(Long {
    keys: 8300, head_dim: 2,
    k: |key, channel| 1.0 + normal(2, key * 64 + channel) / 64.0, ..Long::default()
}, vec![coarse()])]
#[case::several_parts_and_queries(Long {
    keys: 8300, head_dim: 2, queries: 2,
    k: |key, channel| 1.0 + normal(2, key * 64 + channel) / 64.0, ..Long::default()
}, vec![coarse()])]
// q is multiplied by the factor in one of them, so that its estimates are others.
#[case::several_models(Long {
    q: |_, _, _| 1.0,
    k: |key, channel| 1.0 + normal(2, key * 64 + channel) / 64.0, ..Long::default()
}, vec![coarse(), RoundingModel { factor: FactorOrder::Before, ..coarse() }, coarse()])]
fn keys_are_certified_by_estimates_as_by_all_scores(#[case] long: Long, #[case] models: Vec<RoundingModel>) {
    assert!(estimates(&long.case(), &models) && assert_certified(&long.case(), &models) > 0);
}

/// Heads over one KV head read other channels of it, here of other sizes; each is certified by its own.
#[rstest]
#[case::rising(false)]
#[case::falling(true)]
fn each_head_is_certified_by_its_own_channels(#[case] falling: bool) {
    let mut rows: Vec<Vec<usize>> = (0..4).map(|head| vec![2 * head, 2 * head + 1]).collect();
    if falling {
        rows.reverse();
    }
    let mut case = OF_HEADS.case().with_channels(ChannelOrder::new(rows).unwrap());
    case.instance.selection.group_factor = GroupFactor::new(4).unwrap();
    assert!(estimates(&case, &[coarse()]) && assert_certified(&case, &[coarse()]) > 0);
}

const EXACT: LabelRounding = LabelRounding::Exact;

/// Nothing is estimated where labels are not exact, where keys are forced or where a score is not a dot product: an estimate would say
/// nothing there.
#[rstest]
#[case::forced(|selection: &mut Selection| selection.rules.forced = Forced { first: 4, last: 4 }, EXACT)]
#[case::cosine(|selection: &mut Selection| selection.rules.score = ScoreRule::Cosine, EXACT)]
#[case::relu(|selection: &mut Selection| selection.rules.score = ScoreRule::Relu, EXACT)]
#[case::rounded(
    |selection: &mut Selection| selection.label_bits = LabelBits::new(4).unwrap(),
    LabelRounding::Rounded
)]
fn what_estimates_do_not_say_is_derived(#[case] change: fn(&mut Selection), #[case] labels: LabelRounding) {
    let mut case = Long { queries: 2, ..Long::default() }.case();
    change(&mut case.instance.selection);
    let models = [RoundingModel { labels, ..coarse() }];
    assert_certified(&case, &models);
    assert!(!estimates(&case, &models));
}

/// A score above the largest number of f16 may be an infinity, so that each of these keys may be selected, however far it is from the
/// largest.
#[test]
fn scores_beyond_f16_are_open_however_far_apart() {
    let k = |key, channel| if channel == 0 { 70_000.0 + 60.0 * key as f32 } else { 0.0 };
    let case = Long { head_dim: 4, q: |_, _, _| 1.0, k, ..Long::default() }.case();
    assert_eq!(assert_certified(&case, &[coarse()]), 2100);
    assert!(!estimates(&case, &[coarse()]));
}

/// Keys 0 and 1 have sums of 7 units below the largest number of f32 and eight times 0.55 units: exactly less than it, but an
/// infinity where each addition rounds up. Key 2, of eight times 0.45 units, is as near to them as their radius.
#[test]
fn sums_near_the_largest_number_are_not_estimated() {
    let k = |key: usize, channel: usize| match (key, channel) {
        (0..=2, 0) => f32::MAX - 7.0 * 2f32.powi(104),
        (0..=1, _) => 0.55 * 2f32.powi(104),
        (2, _) => 0.45 * 2f32.powi(104),
        _ => 0.0,
    };
    let mut case = Long { keys: 1000, head_dim: 9, q: |_, _, _| 1.0, k, ..Long::default() }.case();
    case.instance.selection.heavy_size = HeavySize::count(1).unwrap();
    assert_eq!(assert_certified(&case, &[fine()]), 3);
    assert!(!estimates(&case, &[fine()]));
    let certificate = Certificate::derive(&case.instance, &case.call, fine()).unwrap();
    assert_eq!(
        certificate.rows.unwrap()[0].classes[..4],
        [Class::Open, Class::Open, Class::Open, Class::Out]
    );
}

/// All of q is 1, and k is 0 but for the last key, which only the second query sees.
fn with_last_key(keys: usize, last: f32, scaling: Option<f64>) -> Case {
    let long = Long { queries: 2, keys, q: |_, _, _| 1.0, k: |_, _| 0.0, ..Long::default() };
    let mut case = Long { causal: true, scaling, ..long }.case();
    let mut parts = case.call.inputs.parts().clone();
    parts.k.slice_mut(s![.., .., keys - 1, ..]).fill(last);
    case = case.with_inputs(Inputs::new(parts).unwrap());
    case
}

/// The smallest positive number of which something holds that holds of all larger ones.
fn smallest(holds: impl Fn(f32) -> bool) -> f32 {
    let (mut below, mut above) = (0, f32::MAX.to_bits());
    while above - below > 1 {
        let middle = below.midpoint(above);
        if holds(f32::from_bits(middle)) { above = middle } else { below = middle }
    }
    f32::from_bits(above)
}

/// An excluded key that may overflow f16 may be NaN, and is open. The smallest number that may is no smaller for an estimate.
#[test]
fn the_smallest_score_that_may_overflow_is_seen_where_it_is_excluded() {
    for numbers in 0..4 {
        let case = |keys, last| {
            let mut case = with_last_key(keys, last, None);
            let factor = ScoreFactor::number(1.0 + f64::from(numbers) / 17.0).unwrap();
            case.instance.selection.rules.factor = factor;
            case
        };
        let is_open = |last| {
            let case = case(4, last);
            let before = case.before().unwrap();
            let scores = ScoreBounds::new(&case.instance, &case.call, coarse(), &before).unwrap().unwrap();
            matches!(scores.row((0, 0, 0))[3], Candidacy::Scored(_))
        };
        let edge = smallest(is_open);
        for last in [edge.next_down(), edge, edge.next_up()] {
            assert_certified(&case(2100, last), &[coarse()]);
        }
    }
}

// --- outputs and log-sum-exps -----------------------------------------------------------------------------------------

/// Attends to three keys and holds the bounds of output and log-sum-exp of each row against those of all logits. Returns how many of
/// the outputs' are finite.
fn assert_bounded(case: &Case, model: RoundingModel, attended: [usize; 3]) -> usize {
    let (inputs, dims) = (&case.call.inputs, case.dims());
    let mut mask = Mask::empty(&dims);
    dims.rows().for_each(|row| mask.add(row, attended));
    // Wrong everywhere, so that each row shows its bound.
    let output = Array4::from_elem(dims.output_shape(), f32::MAX);
    let found = judge_output(inputs, &mask, &output, model);
    let mut found = found.divergences.iter().map(|it| (it.index, it.expected, it.bound));
    let lse = Array3::from_elem((dims.batch, dims.heads, dims.queries), f32::MAX);
    let found_lse = judge_lse(inputs, &mask, &lse, model);
    let mut found_lse = found_lse.divergences.iter().map(|it| (it.row, it.expected, it.bound));
    let nan = output.mapv(|_| f32::NAN);
    let of_nan = judge_output(inputs, &mask, &nan, model).divergences;
    let mut finite = 0;
    for row @ (b, head, query) in dims.rows() {
        let expected = expected_row(inputs, &mask, model, row)[0];
        let index = [b, head, query, 0];
        if expected.radius.is_finite() {
            finite += 1;
            assert_eq!(found.next(), Some((index, expected.value, expected.radius)), "{model}");
        }
        let allows_nan = !expected.radius.is_finite() || expected.may_be_plus_infinity;
        assert_eq!(of_nan.iter().any(|wrong| wrong.index == index), !allows_nan, "{model}, {row:?}");
        let expected = expected_lse(inputs, &mask, model, row);
        if expected.radius.is_finite() {
            assert_eq!(found_lse.next(), Some((row, expected.value, expected.radius)), "{model}");
        }
    }
    assert_eq!((found.next(), found_lse.next()), (None, None), "{model}");
    finite
}

fn tf32() -> RoundingModel {
    RoundingModel { attention_products: Products::Tf32, ..kept(Precision::F32, Accumulation::F32) }
}

#[rstest]
#[case::ordinary(Long { queries: 4, ..Long::default() }, coarse())]
// Eight numbers at a time, and four that are left.
#[case::some_are_left(Long { queries: 4, head_dim: 12, ..Long::default() }, coarse())]
// Largest where the dot product is smallest.
#[case::negative(Long { queries: 4, scaling: Some(-0.5), ..Long::default() }, coarse())]
#[case::factor_first(
    Long { queries: 4, ..Long::default() },
    RoundingModel { factor: FactorOrder::Before, ..coarse() }
)]
// Sums of eight numbers near 1, which f32 rounds by as much as logits are apart.
#[case::estimates_are_off(Long {
    queries: 16,
    q: |_, query, channel| about_one(1, query * 64 + channel),
    k: |key, channel| about_one(2, key * 64 + channel), ..Long::default()
}, fine())]
#[case::large_and_off(Long {
    queries: 16, scaling: Some(2f64.powi(-42)),
    q: |_, query, channel| about_one(1, query * 64 + channel),
    k: |key, channel| about_one(2, key * 64 + channel) * 2f32.powi(40), ..Long::default()
}, fine())]
// Logits of about 1, made of products that are hardly normal numbers.
#[case::as_small_as_an_underflow(Long {
    keys: 300, head_dim: 64, scaling: Some(2f64.powi(118)),
    k: |key, channel| normal(2, key * 64 + channel) * 2f32.powi(-123), ..Long::default()
}, kept(Precision::F32, Accumulation::F32))]
fn a_bound_has_the_largest_logit_of_all_keys(#[case] long: Long, #[case] model: RoundingModel) {
    assert_eq!(assert_bounded(&long.case(), model, [0, 1, 2]), long.heads * long.queries);
}

/// Products of 16 and −16 that cancel out but for −`below`: in tf32 each may be off by 2^-9 of its size, 2.0 in all, so that the logit
/// may be above the 0 of all other keys, of which the products are exactly 0.
#[rstest]
#[case(0.1)]
#[case(1.0)]
#[case(1.9)]
fn products_that_cancel_out_may_make_the_largest_logit(#[case] below: f32) {
    let mut case =
        Long { keys: 300, head_dim: 64, q: |_, _, _| 1.0, k: |_, _| 0.0, ..Long::default() }.case();
    let mut parts = case.call.inputs.parts().clone();
    for channel in 0..64 {
        parts.k[[0, 0, 100, channel]] = if channel % 2 == 0 { 16.0 } else { -16.0 };
    }
    parts.k[[0, 0, 100, 0]] -= below;
    case = case.with_inputs(Inputs::new(parts).unwrap());
    assert_eq!(assert_bounded(&case, tf32(), [0, 1, 2]), 1);
}

/// Each of the 16 sums of eight products that f32 keeps apart begins with 1. The others of key 100 are 0.48 units of its last place
/// each, which f32 rounds away, and those of key 200 are 0.51, which it rounds up to a unit: it seems to be larger by a hundred units.
/// But it is smaller by one, as one of its sums begins four units lower.
#[rstest]
#[case(0)]
#[case(40)]
fn a_logit_that_seems_smaller_may_be_the_largest(#[case] exponent: i32) {
    let q = |_, _, channel| if channel < 16 { 1.0 } else { 0.51 * f32::EPSILON };
    let mut case = Long {
        keys: 300,
        head_dim: 128,
        q,
        k: |_, _| 0.0,
        scaling: Some(0.25 * 2f64.powi(-exponent)),
        ..Long::default()
    }
    .case();
    let mut parts = case.call.inputs.parts().clone();
    for channel in 0..128 {
        parts.k[[0, 0, 100, channel]] = if channel < 16 { 1.0 } else { 0.95 };
        parts.k[[0, 0, 200, channel]] = 1.0;
    }
    parts.k[[0, 0, 200, 0]] -= 4.0 * f32::EPSILON;
    parts.k.mapv_inplace(|x| x * 2f32.powi(exponent));
    case = case.with_inputs(Inputs::new(parts).unwrap());
    assert_eq!(assert_bounded(&case, fine(), [0, 1, 2]), 1);
}

/// The same of eight numbers, whose products are added up in three steps. In units of the last place of 1: the first products are 1.375
/// and 0.75 above 1, both of which f32 rounds to 1, and each step adds 0.49 to that of key 100 and 0.51 to that of key 200.
#[test]
fn a_logit_of_few_products_that_seems_smaller_may_be_the_largest() {
    let q = |_, _, channel| match channel {
        0 => 0.625,
        1 | 2 | 4 => 0.51 * f32::EPSILON,
        _ => 0.0,
    };
    let k = |key: usize, channel: usize| match (key, channel) {
        (100, 0) => 13_421_775.0 * f32::EPSILON,
        (200, 0) => 13_421_774.0 * f32::EPSILON,
        (100, _) => 0.96,
        (200, _) => 1.0,
        _ => 0.0,
    };
    let case = Long { q, k, ..Long::default() }.case();
    assert_eq!(assert_bounded(&case, fine(), [0, 1, 2]), 1);
}

/// In bf16, q is multiplied by the factor and rounded first, so that each product may be off by 2^-8 of its size: 31 of one sign, each
/// 2^-7 smaller than as many of the other. Their sum is −0.2432 of a product, and may be off by 0.2434: by 61.76 · 2^-8 from q, and
/// by 2^-8 of the sum. It may be above the 0 of all other keys, and by so much that nothing is known.
#[test]
fn numbers_rounded_before_they_cancel_out_may_make_the_largest_logit() {
    let q = |_, _, channel| if channel < 2 { 2f32.powi(16) } else { 2f32.powi(24) };
    let k = |key: usize, channel: usize| match (key, channel) {
        (100, 0) => -0.25 * 2f32.powi(30),
        (100, 1) => 0.0,
        (100, _) if channel.is_multiple_of(2) => (1.0 - 2f32.powi(-7)) * 2f32.powi(30),
        (100, _) => -(2f32.powi(30)),
        _ => 0.0,
    };
    let long = Long { keys: 300, head_dim: 64, q, k, scaling: Some(1.0), ..Long::default() };
    let case = Long { storage: Storage::Bf16, ..long }.case();
    let model = RoundingModel { factor: FactorOrder::Before, ..kept(Precision::Storage, Accumulation::F32) };
    assert_eq!(assert_bounded(&case, model, [0, 1, 2]), 0);
}

/// The largest logit is that of a key that A raises, and its product is the smallest.
#[test]
fn an_additive_mask_may_make_the_largest_logit() {
    let mut case = Long { queries: 2, ..Long::default() }.case();
    let mut parts = case.call.inputs.parts().clone();
    let mut additive = Array4::zeros((1, 1, 2, 2100));
    additive[[0, 0, 0, 1000]] = 12.0;
    additive[[0, 0, 1, 2000]] = 12.0;
    for key in [1000, 2000] {
        parts.k.slice_mut(s![.., .., key, ..]).fill(0.0);
    }
    parts.attention_mask = Some(additive);
    case = case.with_inputs(Inputs::new(parts).unwrap());
    assert_eq!(assert_bounded(&case, coarse(), [0, 1, 2]), 2);
}

/// The last key overflows f16. The first query does not see it, but may take its maximum over all keys before they are excluded: that
/// may be NaN, and any other number is bounded as ever. The second sees it, and nothing is known.
#[test]
fn an_excluded_key_that_overflows_is_seen_in_long_rows() {
    let k = |key, channel| if key == 1099 { 60.0 } else { normal(2, key * 128 + channel) / 64.0 };
    let long = Long { queries: 2, keys: 1100, head_dim: 72, q: |_, _, _| 60.0, k, ..Long::default() };
    let case = Long { storage: Storage::F16, scaling: Some(1.0), causal: true, ..long }.case();
    let model = RoundingModel { weights_kept: Precision::F32, ..coarse() };
    assert_eq!(assert_bounded(&case, model, [0, 1, 2]), 1);
    let mut mask = Mask::empty(&case.dims());
    case.dims().rows().for_each(|row| mask.add(row, [0, 1, 2]));
    let mut output = attention(&case.call.inputs, &mask).unwrap();
    output[[0, 0, 0, 0]] = f32::NAN;
    assert!(judge_output(&case.call.inputs, &mask, &output, model).divergences.is_empty());
}

/// The same at the smallest number that may overflow: where it is one by its own size, and where q is multiplied by the scaling first
/// and is so small then that its underflow may be larger than itself.
#[rstest]
#[case::large(1.0, FactorOrder::After)]
#[case::underflows(1e-9, FactorOrder::Before)]
fn the_smallest_logit_that_may_overflow_is_seen_where_it_is_excluded(
    #[case] scaling: f64,
    #[case] factor: FactorOrder,
) {
    let model = RoundingModel { factor, ..coarse() };
    for numbers in 0..4 {
        let case = |keys, last| with_last_key(keys, last, Some(scaling * (1.0 + f64::from(numbers) / 17.0)));
        let may_be_nan = |last| {
            let case = case(4, last);
            let mut mask = Mask::empty(&case.dims());
            mask.add((0, 0, 0), [0]);
            expected_row(&case.call.inputs, &mask, model, (0, 0, 0))[0].may_be_plus_infinity
        };
        let edge = smallest(may_be_nan);
        for last in [edge.next_down(), edge, edge.next_up()] {
            // Of the query that sees it nothing is known.
            assert_eq!(assert_bounded(&case(2100, last), model, [0, 1, 2]), 1, "{last:e}");
        }
    }
}

/// In units of the last place of the largest number of f32: keys 0 to 2 have a product of 8 below it and nine times 0.51, an infinity
/// where each addition rounds up. Key 3 has 7 of these and 1.1 for the other two, which is more, but less is rounded up.
#[test]
fn dot_products_near_the_largest_number_are_not_estimated() {
    // In lanes of eight numbers the sums of every second eight are one, and what is left of 47 is added last.
    fn place(channel: usize) -> Option<usize> {
        [16, 32, 40, 41, 42, 43, 44, 45, 46].iter().position(|&at| at == channel)
    }
    let q = |_, _, channel| match channel {
        0 => 1.0,
        1 => 1.1 * 2f32.powi(-24),
        _ if place(channel).is_some() => 0.51 * 2f32.powi(-24),
        _ => 0.0,
    };
    let k = |key: usize, channel: usize| {
        let is_there = match (key, channel) {
            (0..=3, 0) | (3, 1) => true,
            (0..=2, _) => place(channel).is_some(),
            (3, _) => place(channel).is_some_and(|place| place < 7),
            _ => false,
        };
        if is_there { f32::MAX - 8.0 * 2f32.powi(104) } else { 0.0 }
    };
    let case =
        Long { keys: 360, head_dim: 47, q, k, scaling: Some(2f64.powi(-120)), ..Long::default() }.case();
    assert_eq!(assert_bounded(&case, fine(), [0, 1, 2]), 1);
}

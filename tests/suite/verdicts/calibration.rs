//! Calibration (SPEC §4): importance worked out by hand, what a block must be, and the verdict on an order, which may swap two
//! channels only where f32 arithmetic may.

use doublecheck::algorithm::calibrate::{BlockActivations, Importance};
use doublecheck::algorithm::{ChannelKind, ChannelOrder, Error};
use doublecheck::cases::CalibrationCase;
use doublecheck::verdicts::calibration::judge_order;
use ndarray::{Array4, arr2};
use rstest::rstest;

fn tensor(shape: (usize, usize, usize, usize), values: &[f32]) -> Array4<f32> {
    Array4::from_shape_vec(shape, values.to_vec()).unwrap()
}

fn zeros(shape: [usize; 4]) -> Array4<f32> {
    Array4::zeros(shape)
}

fn pair(q: Array4<f32>, k: Array4<f32>) -> BlockActivations {
    BlockActivations::Pair { q, k }
}

/// Two heads, two channels. Block 1 holds two entries of two tokens, block 2 one entry of one token.
#[test]
fn importance_is_the_mean_magnitude_over_tokens_and_entries_summed_over_blocks() {
    let first = [
        [[1.0, -2.0], [-3.0, 4.0]],
        [[0.0, 8.0], [2.0, -8.0]],
        [[-5.0, 6.0], [7.0, 8.0]],
        [[1.0, 1.0], [1.0, 1.0]],
    ];
    let first = tensor((2, 2, 2, 2), first.as_flattened().as_flattened());
    let second = tensor((1, 2, 1, 2), &[1.0, -3.0, 10.0, 0.0]);
    for kind in [ChannelKind::QProj, ChannelKind::KProj] {
        let mut importance = Importance::new(kind);
        importance.add(&BlockActivations::One(first.clone())).unwrap();
        // Head 0: (1 + 3 + 5 + 7) / 4 and (2 + 4 + 6 + 8) / 4. Head 1: (0 + 2 + 1 + 1) / 4 and (8 + 8 + 1 + 1) / 4.
        assert_eq!(importance.sum(), Some(&arr2(&[[4.0, 5.0], [1.0, 4.5]])));
        importance.add(&BlockActivations::One(second.clone())).unwrap();
        assert_eq!(importance.sum(), Some(&arr2(&[[5.0, 8.0], [11.0, 4.5]])));
        assert_eq!(importance.order().unwrap().rows(), [[1, 0], [0, 1]]);
        // Summed over heads: 16 and 12.5.
        assert_eq!(importance.shared_order().unwrap().rows(), [[0, 1]]);
    }
}

/// Four query heads over two KV heads. Two queries are the last two of five tokens; the first three keys take no part.
#[test]
fn products_are_those_of_the_same_token_and_of_the_own_kv_head() {
    let k = tensor((1, 2, 5, 1), &[100.0, 100.0, 100.0, 1.0, -2.0, 100.0, 100.0, 100.0, 3.0, 5.0]);
    let q = tensor((1, 4, 2, 1), &[2.0, 3.0, -4.0, 0.0, 1.0, 1.0, 2.0, -2.0]);
    let mut importance = Importance::new(ChannelKind::QkProj);
    importance.add(&pair(q, k)).unwrap();
    // (2·1 + 3·2) / 2, (4·1 + 0·2) / 2, (1·3 + 1·5) / 2, (2·3 + 2·5) / 2
    assert_eq!(importance.sum(), Some(&arr2(&[[4.0], [2.0], [4.0], [8.0]])));
}

#[test]
fn channels_of_equal_importance_are_in_the_order_of_their_indices() {
    let mut importance = Importance::new(ChannelKind::KProj);
    importance.add(&BlockActivations::One(tensor((1, 1, 1, 5), &[0.0, 2.0, -2.0, 0.0, 3.0]))).unwrap();
    assert_eq!(importance.order().unwrap().rows(), [[4, 1, 2, 0, 3]]);
}

#[rstest]
#[case::other_batch(pair(zeros([1, 2, 2, 2]), zeros([2, 2, 2, 2])))]
#[case::other_head_dimension(pair(zeros([1, 2, 2, 2]), zeros([1, 2, 2, 3])))]
#[case::no_kv_heads(pair(zeros([1, 2, 2, 2]), zeros([1, 0, 2, 2])))]
#[case::no_heads_at_all(pair(zeros([1, 0, 2, 2]), zeros([1, 0, 2, 2])))]
#[case::kv_heads_that_do_not_divide(pair(zeros([1, 3, 2, 2]), zeros([1, 2, 2, 2])))]
#[case::more_queries_than_keys(pair(zeros([1, 2, 3, 2]), zeros([1, 2, 2, 2])))]
#[case::no_tokens_in_q(pair(zeros([1, 2, 0, 2]), zeros([1, 2, 2, 2])))]
fn pairs_that_do_not_fit_are_refused(#[case] block: BlockActivations) {
    let mut importance = Importance::new(ChannelKind::QkProj);
    assert!(matches!(importance.add(&block), Err(Error::Shape(_))));
    assert_eq!(importance.sum(), None);
}

#[rstest]
#[case::batch([0, 2, 2, 2])]
#[case::heads([1, 0, 2, 2])]
#[case::tokens([1, 2, 0, 2])]
#[case::channels([1, 2, 2, 0])]
fn empty_blocks_are_refused(#[case] shape: [usize; 4]) {
    let added = Importance::new(ChannelKind::QProj).add(&BlockActivations::One(zeros(shape)));
    assert!(matches!(added, Err(Error::Shape(_))), "{added:?}");
}

/// A block that is refused leaves the sum as it was.
#[rstest]
#[case::other_heads(BlockActivations::One(zeros([1, 1, 2, 2])), "shape")]
#[case::other_channels(BlockActivations::One(zeros([1, 2, 2, 1])), "shape")]
#[case::not_a_number(BlockActivations::One(tensor((1, 2, 1, 2), &[0.0, 1.0, f32::NAN, 1.0])), "value")]
#[case::infinite(BlockActivations::One(tensor((1, 2, 1, 2), &[0.0, 1.0, 1.0, f32::INFINITY])), "value")]
#[case::a_pair(pair(zeros([1, 2, 2, 2]), zeros([1, 2, 2, 2])), "channel_kind")]
fn blocks_unlike_the_first_are_refused(#[case] block: BlockActivations, #[case] kind: &str) {
    let mut importance = Importance::new(ChannelKind::QProj);
    importance.add(&BlockActivations::One(tensor((1, 2, 1, 2), &[1.0, 2.0, 3.0, 4.0]))).unwrap();
    assert_eq!(importance.add(&block).unwrap_err().kind(), kind);
    assert_eq!(importance.sum(), Some(&arr2(&[[1.0, 2.0], [3.0, 4.0]])));
}

fn case(kind: ChannelKind, blocks: Vec<BlockActivations>) -> CalibrationCase {
    let channels = ChannelOrder::new(vec![vec![0]]).unwrap();
    let (name, source) = ("by hand".into(), "by hand".into());
    CalibrationCase { name, kind, blocks, channels, source, known_divergence: None }
}

/// One head and one token: importance is the magnitude.
fn of_one_token(importance: &[f32]) -> CalibrationCase {
    case(ChannelKind::QProj, vec![BlockActivations::One(tensor((1, 1, 1, importance.len()), importance))])
}

/// `steps` spacings of f32 above 1.
fn above_one(steps: i32) -> f32 {
    1.0 + steps as f32 * f32::EPSILON
}

/// With one token in one block an importance may be off by γ₄ = 4u / (1 − 4u), u = 2⁻²⁴. So x may come before y as long as
/// x · (1 + γ₄) ≥ y · (1 − γ₄), which for x = 1 is y ≤ 1 / (1 − 8u), just above 1 + 8u = 1 + 4 · 2⁻²³.
#[rstest]
#[case::right_order(&[2.0, 1.0], None)]
#[case::wrong_order(&[1.0, 2.0], Some((0, 1)))]
#[case::just_within_the_bound(&[1.0, above_one(4)], None)]
#[case::just_beyond_the_bound(&[1.0, above_one(5)], Some((0, 1)))]
#[case::never_active(&[0.0, 0.0], None)]
#[case::each_within_the_bound_of_the_one_before(&[above_one(4), above_one(1), above_one(5)], None)]
#[case::against_the_least_before_it(&[above_one(3), 1.0, above_one(6)], Some((1, 2)))]
#[case::a_fall_and_a_rise(&[3.0, 1.0, 2.0], Some((1, 2)))]
#[case::the_first_of_equal_channels_is_named(&[2.0, 1.0, 1.0, 2.0], Some((1, 3)))]
fn channels_may_be_swapped_where_f32_arithmetic_may_swap_them(
    #[case] importance: &[f32],
    #[case] expected: Option<(usize, usize)>,
) {
    let order = ChannelOrder::new(vec![(0..importance.len()).collect()]).unwrap();
    let found = judge_order(&of_one_token(importance), &order).unwrap();
    let of = |channel: usize| (channel, f64::from(importance[channel]));
    let pair = found.as_ref().map(|found| (found.row, found.earlier, found.later));
    assert_eq!(pair, expected.map(|(earlier, later)| (0, of(earlier), of(later))));
}

/// A number passes through a product, t − 1 sums and a division in a mean over t tokens, which is less than t + 2 roundings, and
/// through less than one sum for each block. The longest block counts; entries of a batch are tokens, too.
#[rstest]
#[case::one_block(case(ChannelKind::KProj, vec![BlockActivations::One(rising([2, 3, 5, 4]))]), 10 + 2 + 1)]
#[case::the_longest_of_two(
    case(
        ChannelKind::KProj,
        [[2, 3, 5, 4], [1, 3, 7, 4]].map(|shape| BlockActivations::One(rising(shape))).into(),
    ),
    10 + 2 + 2
)]
#[case::tokens_of_q_count(
    case(ChannelKind::QkProj, vec![pair(rising([2, 3, 5, 4]), rising([2, 3, 8, 4]))]),
    10 + 2 + 1
)]
fn the_bound_grows_with_tokens_and_blocks(#[case] case: CalibrationCase, #[case] roundings: u32) {
    // Channels rise in importance, and the order of the last head is wrong.
    let order = ChannelOrder::new(vec![vec![3, 2, 1, 0], vec![3, 2, 1, 0], vec![2, 3, 1, 0]]).unwrap();
    let found = judge_order(&case, &order).unwrap().unwrap();
    assert_eq!((found.row, found.earlier.0, found.later.0), (2, 2, 3));
    let ku = f64::from(roundings) * f64::powi(2.0, -24);
    assert_eq!(found.bound, ku / (1.0 - ku));
}

/// Channel c holds c + 1 everywhere.
fn rising([b, heads, tokens, channels]: [usize; 4]) -> Array4<f32> {
    Array4::from_shape_fn((b, heads, tokens, channels), |(.., channel)| channel as f32 + 1.0)
}

#[rstest]
#[case::too_few_rows(vec![vec![1, 0]], "channel_rows")]
#[case::too_many_rows(vec![vec![1, 0]; 3], "channel_rows")]
#[case::too_few_channels(vec![vec![1]; 2], "channel_rows")]
#[case::too_many_channels(vec![vec![1, 0, 2]; 2], "channel_rows")]
#[case::too_few_rows_with_too_many_channels(vec![vec![1, 0, 2]], "channel_rows")]
#[case::a_channel_that_does_not_exist(vec![vec![1, 0], vec![1, 2]], "channel_range")]
fn orders_that_do_not_fit_are_refused(#[case] rows: Vec<Vec<usize>>, #[case] kind: &str) {
    let case = case(ChannelKind::QProj, vec![BlockActivations::One(rising([1, 2, 1, 2]))]);
    let error = judge_order(&case, &ChannelOrder::new(rows).unwrap()).unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
}

/// Products of f32 that underflow are 0 or a subnormal, those that overflow are +∞, and equal ones are ordered by index: with products of 10⁻⁵⁰,
/// 10⁻⁴⁴ or 10⁶⁰ nothing tells channels apart, with those of 10⁻²⁰ a channel twice as important as another comes before it.
#[rstest]
#[case(1e-25, false)]
#[case(1e-22, false)]
#[case(1e-10, true)]
#[case(1.0, true)]
#[case(1e15, true)]
#[case(1e30, false)]
fn underflow_and_overflow_leave_channels_in_any_order(#[case] size: f32, #[case] told_apart: bool) {
    let of = |numbers: [f32; 2]| Array4::from_shape_vec((1, 1, 1, 2), numbers.to_vec()).unwrap();
    let x = of([size, 2.0 * size]);
    let case = case(ChannelKind::QkProj, vec![pair(x.clone(), x)]);
    let found = [vec![0, 1], vec![1, 0]]
        .map(|order| judge_order(&case, &ChannelOrder::new(vec![order]).unwrap()).unwrap().is_some());
    assert_eq!(found, [told_apart, false]);
}

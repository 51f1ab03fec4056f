//! Small inputs worked out by hand: scores by every rule (SPEC §2.6, §2.7, §2.12), the log-sum-exp of a row, and what is refused.

use crate::support::small_plan;
use doublecheck::algorithm::attention::{attention, log_sum_exp};
use doublecheck::algorithm::channels::half_split_to_interleaved;
use doublecheck::algorithm::labels::labels;
use doublecheck::algorithm::maskers::double_sparsity;
use doublecheck::algorithm::rules::Epsilon;
use doublecheck::algorithm::scores::Scores;
use doublecheck::algorithm::{
    ChannelOrder, Detail, Dims, Error, Forced, HeadMode, HeavySize, InputParts, Inputs, LabelBits, Lengths,
    Mask, Padding, Ranks, Rules, ScoreFactor, ScoreRule, Selection, Storage,
};
use doublecheck::subjects::{Reference, Subject};
use ndarray::{Array3, Array4, ShapeBuilder, arr2};
use rstest::rstest;

/// Two heads, one query, three keys, d = 4. With the first two channels as labels, q·k is 50, 40, 24 in head 0 and 0, −3, 1 in
/// head 1.
fn inputs() -> Inputs {
    let q = [[3.0, 4.0, 7.0, 7.0], [1.0, -2.0, 7.0, 7.0]];
    let k = [
        [[6.0, 8.0, 9.0, 9.0], [0.0, 10.0, 9.0, 9.0], [0.0, 6.0, 9.0, 9.0]],
        [[2.0, 1.0, 9.0, 9.0], [-1.0, 1.0, 9.0, 9.0], [5.0, 2.0, 9.0, 9.0]],
    ];
    let parts = InputParts {
        q: Array4::from_shape_vec((1, 2, 1, 4), q.as_flattened().to_vec()).unwrap(),
        k: Array4::from_shape_vec((1, 2, 3, 4), k.as_flattened().as_flattened().to_vec()).unwrap(),
        v: Array4::ones((1, 2, 3, 1)),
        attention_mask: None,
        causal: false,
        storage: Storage::F32,
        scaling: None,
    };
    let weights = Array3::from_shape_vec((1, 2, 1), vec![2.0, -3.0]).unwrap();
    Inputs::new(parts).unwrap().with_head_weights(Some(weights)).unwrap()
}

/// The first two channels for each head, with weights of their own.
fn channels() -> ChannelOrder {
    let rows = ChannelOrder::new(vec![vec![0, 1], vec![0, 1]]).unwrap();
    rows.with_weights(vec![vec![2.0, 0.5], vec![1.0, -1.0]]).unwrap()
}

/// One key, G = 2, labels as they are, a factor of 1.
fn selection(heads: HeadMode, rules: Rules) -> Selection {
    Selection { heads, rules, ..Selection::new(HeavySize::count(1).unwrap(), 2, 16).unwrap() }
}

fn of_score(score: ScoreRule) -> Rules {
    Rules { score, factor: ScoreFactor::ONE, ..Rules::default() }
}

fn factor(factor: f64) -> Rules {
    Rules { factor: ScoreFactor::number(factor).unwrap(), ..Rules::default() }
}

fn ranks(count: u64, parts: Storage, rules: Rules) -> Rules {
    Rules { ranks: Ranks::new(count, parts).unwrap(), ..rules }
}

fn scores(head: usize, heads: HeadMode, rules: Rules, inputs: &Inputs) -> Vec<f64> {
    let (channels, selection) = (channels(), selection(heads, rules));
    let labels = labels(inputs, &channels, 2, selection.label_bits, (0, 0..2)).unwrap();
    Scores::new(inputs, 0, &labels, &channels, &selection).row(head, 0)
}

/// Norms in head 0: 5 for the query, 10, 10 and 6 for the keys. In bf16 numbers from 512 to 1024 are 4 apart, so that 550 becomes 552.
#[rstest]
#[case::dot(1, HeadMode::PerHead, of_score(ScoreRule::Dot), [0.0, -3.0, 1.0])]
#[case::by_the_head_dimension(
    0, HeadMode::PerHead, Rules { factor: ScoreFactor::HeadDim, ..Rules::default() }, [25.0, 20.0, 12.0]
)]
#[case::by_a_number(0, HeadMode::PerHead, factor(3.0), [150.0, 120.0, 72.0])]
#[case::channel_weights(
    0, HeadMode::PerHead, Rules { channel_weights: true, ..factor(1.0) },
    [6.0 * 6.0 + 2.0 * 8.0, 2.0 * 10.0, 2.0 * 6.0]
)]
#[case::channel_weights_of_the_other_head(
    1, HeadMode::PerHead, Rules { channel_weights: true, ..factor(1.0) },
    [2.0 + 2.0, -1.0 + 2.0, 5.0 + 2.0 * 2.0]
)]
#[case::cosine(
    0, HeadMode::PerHead, Rules { epsilon: Epsilon::new(50.0).unwrap(), ..of_score(ScoreRule::Cosine) },
    [50.0 / (50.0 + 50.0), 40.0 / (50.0 + 50.0), 24.0 / (30.0 + 50.0)]
)]
#[case::relu(0, HeadMode::PerHead, of_score(ScoreRule::Relu), [2.0 * 50.0, 2.0 * 40.0, 2.0 * 24.0])]
#[case::relu_of_the_other_head(1, HeadMode::PerHead, of_score(ScoreRule::Relu), [0.0, 0.0, -3.0])]
#[case::sum(0, HeadMode::SummedScores, factor(1.0), [50.0, 37.0, 25.0])]
#[case::mean(0, HeadMode::Mean, factor(1.0), [25.0, 18.5, 12.5])]
#[case::max(0, HeadMode::Max, factor(1.0), [50.0, 40.0, 24.0])]
#[case::sum_of_labels(
    0, HeadMode::SummedLabels, factor(1.0),
    [4.0 * 8.0 + 2.0 * 9.0, -4.0 + 2.0 * 11.0, 4.0 * 5.0 + 2.0 * 8.0]
)]
#[case::parts_in_bf16(
    0, HeadMode::SummedScores, ranks(2, Storage::Bf16, factor(11.0)), [552.0, 440.0 - 33.0, 264.0 + 11.0]
)]
#[case::parts_in_f32_are_not_rounded(
    0, HeadMode::SummedScores, ranks(2, Storage::F32, factor(1.0 + f64::powi(2.0, -30))),
    [50.0, 37.0, 25.0].map(|score| score * (1.0 + f64::powi(2.0, -30)))
)]
fn scores_are_those_of_the_rule(
    #[case] head: usize,
    #[case] heads: HeadMode,
    #[case] rules: Rules,
    #[case] expected: [f64; 3],
) {
    assert_eq!(scores(head, heads, rules, &inputs()), expected);
}

/// ε keeps the cosine of a label of zeros from being NaN: it is 0.
#[test]
fn the_cosine_of_a_label_of_zeros_is_zero() {
    let mut parts = inputs().parts().clone();
    parts.q.fill(0.0);
    let found = scores(0, HeadMode::PerHead, of_score(ScoreRule::Cosine), &Inputs::new(parts).unwrap());
    assert_eq!(found, [0.0; 3]);
}

#[test]
fn labels_are_summed_over_the_heads_of_each_part() {
    let (inputs, channels) = (inputs(), channels());
    let labels = labels(&inputs, &channels, 2, LabelBits::UNQUANTISED, (0, 0..2)).unwrap();
    let both = (arr2(&[[4.0], [2.0]]), arr2(&[[8.0, -1.0, 5.0], [9.0, 11.0, 8.0]]));
    assert_eq!(labels.summed_over_heads(2), [both]);
    let first = (arr2(&[[3.0], [4.0]]), arr2(&[[6.0, 0.0, 0.0], [8.0, 10.0, 6.0]]));
    let second = (arr2(&[[1.0], [-2.0]]), arr2(&[[2.0, -1.0, 5.0], [1.0, 1.0, 2.0]]));
    assert_eq!(labels.summed_over_heads(1), [first, second]);
}

#[rstest]
#[case(ScoreFactor::LabelChannels, 0.5)]
#[case(ScoreFactor::HeadDim, 0.25)]
#[case(ScoreFactor::Number(3.0), 3.0)]
fn a_factor_is_a_number_and_what_scores_are_multiplied_by(
    #[case] factor: ScoreFactor,
    #[case] expected: f64,
) {
    assert_eq!(factor.get(4, 16), expected);
    assert_eq!(factor.apply(8.0, 4, 16), 8.0 * expected);
}

#[rstest]
#[case(r#""1/sqrt(r)""#, ScoreFactor::LabelChannels)]
#[case(r#""1/sqrt(d)""#, ScoreFactor::HeadDim)]
#[case("0.5", ScoreFactor::Number(0.5))]
fn every_factor_can_be_written_in_json(#[case] json: &str, #[case] factor: ScoreFactor) {
    assert_eq!(serde_json::from_str::<ScoreFactor>(json).unwrap(), factor);
    assert_eq!(serde_json::to_string(&factor).unwrap(), json);
}

fn refusal(inputs: &Inputs, channels: &ChannelOrder, selection: &Selection) -> Option<Error> {
    double_sparsity(inputs, channels, selection, &Mask::empty(&inputs.dims())).err()
}

fn head_weights(weights: [f32; 2]) -> Array3<f32> {
    Array3::from_shape_vec((1, 2, 1), weights.to_vec()).unwrap()
}

/// `summed-labels` scores once for all heads, so whatever it scores with must be the same for all of them.
#[rstest]
#[case::all_the_same([1.0, 1.0], [2.0, 2.0], true, true)]
#[case::other_channel_weights([1.0, 5.0], [2.0, 2.0], true, false)]
#[case::other_channel_weights_that_are_not_used([1.0, 5.0], [2.0, 2.0], false, true)]
#[case::other_head_weights([1.0, 1.0], [2.0, 3.0], true, false)]
fn summed_labels_need_the_same_weights_for_all_heads(
    #[case] of_channels: [f32; 2],
    #[case] of_heads: [f32; 2],
    #[case] channel_weights: bool,
    #[case] is_allowed: bool,
) {
    let inputs = inputs().with_head_weights(Some(head_weights(of_heads))).unwrap();
    assert_eq!(inputs.head_weights(), Some(&head_weights(of_heads)));
    let weights = of_channels.map(|weight| vec![weight, 4.0]).to_vec();
    let channels = ChannelOrder::new(vec![vec![0, 1]; 2]).unwrap().with_weights(weights).unwrap();
    let rules = Rules { channel_weights, ..of_score(ScoreRule::Relu) };
    let refused = refusal(&inputs, &channels, &selection(HeadMode::SummedLabels, rules));
    assert_eq!(refused.as_ref().map(Error::kind), (!is_allowed).then_some("head_mode"), "{refused:?}");
    // Each head with its own scores may have its own weights.
    assert_eq!(refusal(&inputs, &channels, &selection(HeadMode::SummedScores, rules)), None);
}

/// H below min(s + w, n) of three keys.
#[rstest]
#[case::room_for_all(2, 1, 1, true)]
#[case::one_too_few(1, 1, 1, false)]
#[case::no_more_than_there_are_keys(3, 2, 9, true)]
#[case::fewer_than_all_keys(2, 2, 9, false)]
fn forced_keys_need_room_in_the_heavy_size(
    #[case] heavy_size: usize,
    #[case] first: usize,
    #[case] last: usize,
    #[case] is_allowed: bool,
) {
    let rules = Rules { forced: Forced { first, last }, ..Rules::default() };
    let heavy_size = HeavySize::count(heavy_size).unwrap();
    let selection = Selection { heavy_size, ..selection(HeadMode::PerHead, rules) };
    let kind = refusal(&inputs(), &channels(), &selection).map(|error| error.kind());
    assert_eq!(kind, (!is_allowed).then_some("heavy_size"));
}

/// One query of zeros, so that every logit is A, over keys with values 1, 2 and 4. A weight is the probability with which a key was
/// chosen, so it divides.
#[rstest]
#[case::all([0.0, 0.0, 0.0], [1.0, 1.0, 1.0], f64::ln(3.0), 7.0 / 3.0)]
#[case::chosen_by_chance([0.0, 0.0, 0.0], [0.5, 0.0, 1.0], f64::ln(1.0 / 0.5 + 1.0), (2.0 * 1.0 + 4.0) / 3.0)]
#[case::nothing([0.0, 0.0, 0.0], [0.0, 0.0, 0.0], f64::NEG_INFINITY, 0.0)]
#[case::only_what_is_masked([0.0, f32::NEG_INFINITY, 0.0], [0.0, 1.0, 0.0], f64::NEG_INFINITY, 0.0)]
fn rows_with_few_keys(
    #[case] additive: [f32; 3],
    #[case] weights: [f32; 3],
    #[case] lse: f64,
    #[case] output: f64,
) {
    let row = |values: &[f32; 3]| Array4::from_shape_vec((1, 1, 1, 3), values.to_vec()).unwrap();
    let parts = InputParts {
        q: Array4::zeros((1, 1, 1, 2)),
        k: Array4::ones((1, 1, 3, 2)),
        v: Array4::from_shape_vec((1, 1, 3, 1), vec![1.0, 2.0, 4.0]).unwrap(),
        attention_mask: Some(row(&additive)),
        causal: false,
        storage: Storage::F32,
        scaling: None,
    };
    let inputs = Inputs::new(parts).unwrap();
    let mask = Mask::from_weights(row(&weights), &inputs.dims()).unwrap();
    assert_eq!(log_sum_exp(&inputs, &mask).unwrap()[[0, 0, 0]], lse as f32);
    assert_eq!(attention(&inputs, &mask).unwrap()[[0, 0, 0, 0]], output as f32);
}

#[test]
fn weights_of_a_mask_may_lie_in_memory_in_any_order() {
    let dims = Dims { batch: 1, heads: 2, kv_heads: 1, queries: 2, keys: 3, head_dim: 1, value_dim: 1 };
    let weight =
        |(_, head, query, key): (usize, usize, usize, usize)| f32::from(u8::from(head + query == key));
    let in_columns = Array4::from_shape_fn((1, 2, 2, 3).f(), weight);
    let mask = Mask::from_weights(in_columns, &dims).unwrap();
    for row @ (_, head, query) in dims.rows() {
        assert_eq!(mask.row(row).collect::<Vec<_>>(), [(head + query, 1.0)]);
    }
}

/// An entry with one key and two queries: the second query is that key's, and the first has no position.
#[test]
fn entries_of_unequal_lengths_attend_to_their_own_keys() {
    let mut plan = small_plan();
    (plan.batch, plan.selection.heavy_size) = (2, HeavySize::count(6).unwrap());
    let mut case = plan.case().unwrap();
    case.call = case.call.with_lengths(Lengths::new(vec![1, 6], Padding::Nan)).unwrap();
    let mask = Reference::default().answer(&case).unwrap().mask;
    for row @ (entry, _, query) in case.dims().rows() {
        let visible = [[0, 1], [5, 6]][entry][query];
        assert_eq!(
            mask.row(row).map(|(key, _)| key).collect::<Vec<_>>(),
            Vec::from_iter(0..visible),
            "{row:?}"
        );
    }
}

/// 2^15 queries of as many keys make a mask of 2^30 numbers, which is the most that is allowed.
#[rstest]
#[case::the_largest(1 << 15, 1 << 15, true)]
#[case::one_key_more(1 << 15, (1 << 15) + 1, false)]
#[case::one_query_and_one_key_more((1 << 15) + 1, (1 << 15) + 1, false)]
fn masks_hold_at_most_two_to_the_thirtieth_numbers(
    #[case] queries: usize,
    #[case] keys: usize,
    #[case] is_allowed: bool,
) {
    let parts = InputParts {
        q: Array4::zeros((1, 1, queries, 1)),
        k: Array4::zeros((1, 1, keys, 1)),
        v: Array4::zeros((1, 1, keys, 1)),
        attention_mask: None,
        causal: true,
        storage: Storage::F32,
        scaling: None,
    };
    let kind = Inputs::new(parts).err().map(|error| error.kind());
    assert_eq!(kind, (!is_allowed).then_some("shape"));
}

/// The product of the sizes that scoring or attending runs over, however large they are said to be.
#[test]
fn the_work_of_a_call_is_the_product_of_its_sizes() {
    let dims = Dims { batch: 2, heads: 3, kv_heads: 1, queries: 5, keys: 7, head_dim: 11, value_dim: 4 };
    assert_eq!(dims.operations(), 2 * 3 * 5 * 7 * 11);
    assert_eq!(Dims { value_dim: 13, ..dims }.operations(), 2 * 3 * 5 * 7 * 13);
    assert_eq!(Dims { keys: usize::MAX, ..dims }.operations(), usize::MAX);
}

#[test]
fn a_share_of_the_keys_can_be_read_back() {
    let Ok(HeavySize::Fraction(share)) = HeavySize::fraction(0.29) else { panic!("0.29 is a fraction") };
    assert_eq!(share.get(), 0.29);
}

/// RoPE pairs channels, so their number is even.
#[rstest]
#[case::odd(0, 3, "shape")]
#[case::none(0, 0, "shape")]
#[case::beyond(4, 4, "channel_range")]
fn channels_of_another_layout_that_do_not_exist(
    #[case] channel: usize,
    #[case] head_dim: usize,
    #[case] kind: &str,
) {
    assert_eq!(half_split_to_interleaved(channel, head_dim).unwrap_err().kind(), kind);
}

/// The names of `docs/PROTOCOL.md`: a refusal that names one is the error of that kind.
#[rstest]
fn every_kind_of_error_can_be_named(
    #[values(
        "shape",
        "value",
        "weight",
        "heavy_size",
        "group_factor",
        "label_bits",
        "head_mode",
        "channel_range",
        "channel_repeated",
        "channel_rows",
        "missing_layer",
        "channel_kind",
        "label_range",
        "request",
        "capacity",
        "length",
        "format"
    )]
    name: &str,
) {
    let error = Error::of_kind(name, Detail::new("a field", 16, "8")).unwrap();
    assert_eq!(error.kind(), name);
    assert!(error.to_string().ends_with("a field: found 16, expected 8"), "{error}");
    assert_eq!(Error::of_kind(&name.to_uppercase(), Detail::new("a field", 16, "8")), None);
}

//! What a report shows beside a verdict: the keys that are wrong, the row at fault with its scores, the output of the answered
//! mask, labels, where lost keys lie and what scores next to the threshold, how much room verdicts left.

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::sync::Arc;

use doublecheck::algorithm::attention::attention;
use doublecheck::algorithm::{
    ChannelOrder, Dims, HeadMode, HeavySize, InputParts, Inputs, Mask, Row, Selection, Storage,
};
use doublecheck::cases::{Answer, AnsweredLabels, Call, Instance, NoAnswer, RoundingModel, ScoresCall};
use doublecheck::verdicts::certificate::Candidacy;
use doublecheck::verdicts::rows::{ComparedRow, Tile, compared_rows, compared_selection};
use doublecheck::verdicts::{Evidence, Sharpness};
use ndarray::Array4;
use rstest::rstest;

/// Two heads and two queries, head 1 and query 1 with a q of 2, the others with 1, and keys that score so many times that.
fn asked(heads: HeadMode, keys: [f32; 4]) -> (Instance, Call) {
    let parts = InputParts {
        q: Array4::from_shape_vec((1, 2, 2, 1), vec![1.0, 1.0, 1.0, 2.0]).unwrap(),
        k: Array4::from_shape_vec((1, 1, 4, 1), keys.to_vec()).unwrap(),
        v: Array4::from_shape_fn((1, 1, 4, 1), |(.., key, _)| key as f32),
        attention_mask: None,
        causal: false,
        storage: Storage::F32,
        scaling: None,
    };
    of_parts(heads, parts)
}

/// Two keys are selected, by all channels as they are.
fn of_parts(heads: HeadMode, parts: InputParts) -> (Instance, Call) {
    let inputs = Inputs::new(parts).unwrap();
    let dims = inputs.dims();
    let selection = Selection::new(HeavySize::count(2).unwrap(), 1, 16).unwrap();
    let channels = ChannelOrder::new(vec![(0..dims.head_dim).collect()]).unwrap();
    let instance = Instance::of_layer(Selection { heads, ..selection }, channels, &dims);
    (instance, Call { layer: 0, inputs: Arc::new(inputs), previous: None })
}

/// A mask that attends to the same keys in all rows, or to those of one row.
fn mask(dims: &Dims, keys: &[usize], but: Option<(Row, &[usize])>) -> Mask {
    let mut mask = Mask::empty(dims);
    for row in dims.rows() {
        let own = but.filter(|(other, _)| *other == row).map_or(keys, |(_, own)| own);
        mask.add(row, own.iter().copied());
    }
    mask
}

/// Key 3 with weight 1/2 in the first row, attended before.
fn with_half(mask: &Mask, dims: &Dims) -> Mask {
    let mut weights = mask.weights().clone();
    weights[[0, 0, 0, 3]] = 0.5;
    Mask::from_weights(weights, dims).unwrap()
}

fn evidence(instance: &Instance, call: &Call, answer: &Answer) -> Evidence {
    Evidence::of(instance, call, &Ok(answer.clone()), RoundingModel::REFERENCE)
}

fn of_mask(instance: &Instance, call: &Call, mask: &Mask) -> Evidence {
    evidence(instance, call, &Answer::new(mask.clone(), None))
}

/// Of keys that score 4, 3, 2 and 1 times q, the first two.
#[rstest]
#[case::right((0, 0, 0), &[0, 1], &[])]
#[case::of_the_first_row((0, 0, 0), &[0, 2], &[1, 2])]
#[case::of_the_last_row((0, 1, 1), &[1, 3], &[0, 3])]
#[case::lost((0, 1, 0), &[0], &[1])]
fn keys_are_wrong_that_no_conforming_answer_has(
    #[case] row: Row,
    #[case] selected: &[usize],
    #[case] wrong: &[usize],
) {
    let (b, head, query) = row;
    let (instance, call) = asked(HeadMode::PerHead, [4.0, 3.0, 2.0, 1.0]);
    let shown = of_mask(&instance, &call, &mask(&call.inputs.dims(), &[0, 1], Some((row, selected))));
    assert_eq!(shown.wrong, wrong.iter().map(|&key| [b, head, query, key]).collect());
    assert_eq!((shown.row, shown.verdict.conforms()), (row, wrong.is_empty()));
}

/// Keys 1 and 2 tie across the second place: either is right, but not each in one of two heads that share a selection.
#[rstest]
#[case::alone(HeadMode::PerHead, &[])]
#[case::shared(HeadMode::SummedScores, &[[0, 1, 0, 1], [0, 1, 0, 2]])]
fn ties_are_wrong_where_heads_share_and_differ(#[case] heads: HeadMode, #[case] wrong: &[[usize; 4]]) {
    let (instance, call) = asked(heads, [4.0, 2.0, 2.0, 1.0]);
    let shown = of_mask(&instance, &call, &mask(&call.inputs.dims(), &[0, 1], Some(((0, 1, 0), &[0, 2]))));
    assert_eq!(shown.wrong, HashSet::from_iter(wrong.iter().copied()));
    assert_eq!(shown.row, if wrong.is_empty() { (0, 0, 0) } else { (0, 1, 0) });
}

#[test]
fn a_weight_from_before_is_wrong_where_it_is_changed() {
    let (instance, mut call) = asked(HeadMode::PerHead, [4.0, 3.0, 2.0, 1.0]);
    let dims = call.inputs.dims();
    call.previous = Some(with_half(&Mask::empty(&dims), &dims));
    let changed = mask(&dims, &[0, 1], Some(((0, 0, 0), &[0, 1, 3])));
    assert!(of_mask(&instance, &call, &with_half(&changed, &dims)).wrong.is_empty());
    assert_eq!(of_mask(&instance, &call, &changed).wrong, HashSet::from([[0, 0, 0, 3]]));
}

/// In a dense layer every key is expected, with the weight it had. What was attended before is not part of the selection.
#[test]
fn all_keys_are_expected_in_a_dense_layer() {
    let (mut instance, mut call) = asked(HeadMode::PerHead, [4.0, 3.0, 2.0, 1.0]);
    let dims = call.inputs.dims();
    instance.dense_layers = vec![0];
    call.previous = Some(with_half(&Mask::empty(&dims), &dims));
    let right = Answer::new(with_half(&Mask::full(&dims), &dims), None);
    let shown = evidence(&instance, &call, &right);
    assert!(shown.verdict.conforms() && shown.wrong.is_empty() && shown.scores.is_none());
    let [row] = &compared_rows(&shown, &right, &dims)[..] else { panic!("{shown:?}") };
    assert_eq!((row.row, row.keys, row.counts), ((0, 0, 0), 4, (3, 3)));
    assert_eq!((&row.expected[..], &row.found[..]), (&[0, 1, 2][..], &[0, 1, 2][..]));
    assert!(row.conforms() && row.near.is_empty());

    let mut lost = right;
    lost.mask.remove((0, 0, 1), 2);
    let shown = evidence(&instance, &call, &lost);
    assert_eq!((shown.wrong.clone(), shown.row), (HashSet::from([[0, 0, 1, 2]]), (0, 0, 1)));
    let [row] = &compared_rows(&shown, &lost, &dims)[..] else { panic!("{shown:?}") };
    assert_eq!((&row.missing[..], &row.extra[..], row.counts), (&[2][..], &[][..], (4, 4)));
}

/// Labels of queries and outputs lie in a row, labels of keys in none.
#[rstest]
#[case::nothing(None, None, None, (0, 0, 0))]
#[case::label_of_a_query(Some([0, 1, 1, 0]), None, None, (0, 1, 1))]
#[case::label_of_a_key(None, Some([0, 1, 1, 0]), None, (0, 0, 0))]
#[case::output(None, None, Some([0, 1, 0, 0]), (0, 1, 0))]
#[case::label_of_a_key_and_output(None, Some([0, 1, 1, 0]), Some([0, 1, 0, 0]), (0, 1, 0))]
#[case::label_of_a_query_and_output(Some([0, 0, 1, 0]), None, Some([0, 1, 0, 0]), (0, 0, 1))]
fn the_row_at_fault_is_that_of_the_first_fault(
    #[case] q: Option<[usize; 4]>,
    #[case] k: Option<[usize; 4]>,
    #[case] output: Option<[usize; 4]>,
    #[case] row: Row,
) {
    let (instance, call) = asked(HeadMode::PerHead, [4.0, 3.0, 2.0, 1.0]);
    let parts = call.inputs.parts();
    let mask = mask(&call.inputs.dims(), &[0, 1], None);
    let mut answer = Answer::new(mask.clone(), Some(attention(&call.inputs, &mask).unwrap()));
    // Both heads have the same keys.
    let of_keys = ndarray::concatenate![ndarray::Axis(1), parts.k, parts.k];
    let mut labels = AnsweredLabels { q: parts.q.clone(), k: of_keys };
    q.into_iter().for_each(|index| labels.q[index] += 1.0);
    k.into_iter().for_each(|index| labels.k[index] += 1.0);
    output.into_iter().for_each(|index| answer.output.as_mut().unwrap()[index] += 1.0);
    answer.labels = Some(labels);
    let shown = evidence(&instance, &call, &answer);
    assert_eq!(shown.verdict.conforms(), q.or(k).or(output).is_none());
    assert_eq!(shown.row, row);
}

/// Scores of the row at fault, 8, 6, 4 and 2: a key is in above what the third may be at most, out below what the second is at least.
#[test]
fn the_scores_shown_are_those_of_the_row_at_fault() {
    let (instance, call) = asked(HeadMode::PerHead, [4.0, 3.0, 2.0, 1.0]);
    let dims = call.inputs.dims();
    let mask = mask(&dims, &[0, 1], Some(((0, 1, 1), &[0, 2])));
    let scores = of_mask(&instance, &call, &mask).scores.unwrap();
    let score = |key: &Candidacy| match key {
        Candidacy::Scored(score) => *score,
        _ => panic!("{key:?}"),
    };
    let of_keys: Vec<_> = scores.keys.iter().map(score).collect();
    assert_eq!(of_keys.iter().map(|score| score.value).collect::<Vec<_>>(), [8.0, 6.0, 4.0, 2.0]);
    assert_eq!(scores.heavy_size, 2);
    assert_eq!((scores.limits.in_above, scores.limits.out_below), (of_keys[2].high(), of_keys[1].low()));
    let nothing = Evidence::of(
        &instance,
        &call,
        &Err(NoAnswer::Failed("out of memory".into())),
        RoundingModel::REFERENCE,
    );
    assert!(nothing.wrong.is_empty() && nothing.output.is_none());
}

/// Keys 0 and 2 in place of 0 and 1: the output is judged, and shown, for what was attended, not for what should be.
#[test]
fn the_output_shown_is_that_of_the_answered_mask() {
    let (instance, call) = asked(HeadMode::PerHead, [4.0, 3.0, 2.0, 1.0]);
    let [answered, right] = [[0, 2], [0, 1]].map(|keys| mask(&call.inputs.dims(), &keys, None));
    let [output, other] = [&answered, &right].map(|mask| attention(&call.inputs, mask).unwrap());
    let shown = evidence(&instance, &call, &Answer::new(answered.clone(), Some(output.clone())));
    let expected = shown.output.unwrap();
    assert_eq!(expected.dim(), output.dim());
    for (expected, (found, other)) in expected.iter().zip(output.iter().zip(&other)) {
        let allows = |x: f32| (expected.value - f64::from(x)).abs() <= expected.radius;
        assert!(allows(*found) && !allows(*other), "{expected:?} {found} {other}");
    }
    assert!(of_mask(&instance, &call, &answered).output.is_none());
}

/// Of more numbers than 4096 neither outputs nor labels are shown.
#[rstest]
#[case::few(1, 2, 4, 2, true)]
#[case::as_many_as_are_shown(2, 2, 64, 16, true)]
#[case::of_one_key_more(2, 2, 65, 16, false)]
#[case::of_one_head_more(1, 5, 64, 16, false)]
#[case::of_one_entry_more(3, 2, 48, 16, false)]
#[case::in_one_long_row(1, 1, 4096, 1, true)]
#[case::in_one_longer_row(1, 1, 4097, 1, false)]
fn labels_are_shown_where_they_are_few(
    #[case] batch: usize,
    #[case] heads: usize,
    #[case] keys: usize,
    #[case] channels: usize,
    #[case] few: bool,
) {
    let parts = InputParts {
        q: Array4::from_shape_fn((batch, heads, 1, channels), |(b, head, _, c)| (b + 2 * head + c) as f32),
        k: Array4::from_shape_fn((batch, 1, keys, channels), |(b, _, key, c)| (b + key) as f32 - c as f32),
        v: Array4::zeros((batch, 1, keys, 1)),
        attention_mask: None,
        causal: false,
        storage: Storage::F32,
        scaling: None,
    };
    let (q, k) = (parts.q.clone(), parts.k.clone());
    let (instance, call) = of_parts(HeadMode::PerHead, parts);
    let shown = of_mask(&instance, &call, &Mask::empty(&call.inputs.dims())).labels;
    assert_eq!(shown.is_some(), few);
    // All channels as they are: the numbers themselves.
    if let Some(shown) = shown {
        assert_eq!(shown.q, q);
        assert_eq!(shown.k, k.broadcast(shown.k.dim()).unwrap());
    }
}

#[rstest]
#[case(1024, true)]
#[case(1025, false)]
fn outputs_are_shown_where_they_are_few(#[case] value_dim: usize, #[case] few: bool) {
    let (_, call) = asked(HeadMode::PerHead, [4.0, 3.0, 2.0, 1.0]);
    let v = Array4::ones((1, 1, 4, value_dim));
    let (instance, call) = of_parts(HeadMode::PerHead, InputParts { v, ..call.inputs.parts().clone() });
    let output = Array4::ones((1, 2, 2, value_dim));
    let shown =
        evidence(&instance, &call, &Answer::new(mask(&call.inputs.dims(), &[0, 1], None), Some(output)));
    assert_eq!(shown.output.is_some(), few);
}

/// Rows that are wrong are compared; the first of them, which the verdict is about, with the scores next to the threshold.
#[test]
fn wrong_rows_are_compared_and_the_first_of_them_by_its_scores() {
    let (instance, call) = asked(HeadMode::PerHead, [4.0, 3.0, 2.0, 1.0]);
    let dims = call.inputs.dims();
    let mut wrong = mask(&dims, &[0, 1], Some(((0, 0, 1), &[0, 2])));
    wrong.remove((0, 1, 1), 0);
    let answer = Answer::new(wrong, None);
    let shown = evidence(&instance, &call, &answer);
    let rows = compared_rows(&shown, &answer, &dims);
    let told: Vec<_> = rows.iter().map(|row| (row.row, &row.missing[..], &row.extra[..])).collect();
    assert_eq!(told, [((0, 0, 1), &[1][..], &[2][..]), ((0, 1, 1), &[0], &[])]);
    assert_eq!((rows[0].near.len(), rows[1].near.len()), (4, 0));

    let right = Answer::new(mask(&dims, &[0, 1], None), None);
    let rows = compared_rows(&evidence(&instance, &call, &right), &right, &dims);
    assert_eq!(rows.iter().map(|row| row.row).collect::<Vec<_>>(), [(0, 0, 0)]);
    // Nothing can be compared with a mask of other sizes.
    assert!(compared_rows(&shown, &answer, &Dims { keys: 5, ..dims }).is_empty());
}

/// One row of falling scores, of which the first are to be selected, and what was selected instead.
fn compared(scores: Vec<f32>, heavy_size: usize, lost: &[usize], added: &[usize]) -> ComparedRow {
    let scores = Array4::from_shape_vec((1, 1, 1, scores.len()), scores).unwrap();
    let call = ScoresCall::new(scores, Storage::F32, NonZeroUsize::new(heavy_size).unwrap()).unwrap();
    let selected = (0..heavy_size).filter(|key| !lost.contains(key)).chain(added.iter().copied());
    let mut mask = Mask::empty(&call.dims());
    mask.add((0, 0, 0), selected);
    compared_selection(&call, &mask).remove(0)
}

/// 100 of 300 keys; those of a tile count in that tile alone, its first and its last too.
#[rstest]
#[case::right(&[], &[], vec![])]
#[case::last_of_the_first(&[63], &[], vec![(0, 64, 1, 0)])]
#[case::first_of_the_second(&[64], &[], vec![(64, 36, 1, 0)])]
#[case::in_all(
    &[0, 5, 63, 64, 99],
    &[100, 128, 299],
    vec![(0, 64, 3, 0), (64, 36, 2, 1), (128, 0, 0, 1), (256, 0, 0, 1)]
)]
fn lost_keys_are_counted_in_tiles_of_64(
    #[case] lost: &[usize],
    #[case] added: &[usize],
    #[case] tiles: Vec<(usize, usize, usize, usize)>,
) {
    let row = compared((0..300).map(|key| -(key as f32)).collect(), 100, lost, added);
    let tiles: Vec<Tile> = tiles
        .into_iter()
        .map(|(first, expected, missing, extra)| Tile { first, expected, missing, extra })
        .collect();
    assert_eq!((&row.missing[..], &row.extra[..]), (lost, added));
    assert_eq!(row.tiles, tiles);
}

/// Ten of the scores from 20 to 1, or of those from −1 to −20: first what is wrong, then what lies next to the tenth and the eleventh.
#[rstest]
#[case::right(20.0, &[], &[], &[6, 7, 8, 9, 10, 11, 12, 13])]
#[case::right_below_zero(-1.0, &[], &[], &[6, 7, 8, 9, 10, 11, 12, 13])]
#[case::the_highest_lost(20.0, &[0, 1], &[], &[0, 1, 7, 8, 9, 10, 11, 12])]
#[case::the_lowest_too_many(20.0, &[], &[18, 19], &[7, 8, 9, 10, 11, 12, 18, 19])]
#[case::both(20.0, &[0], &[19], &[0, 7, 8, 9, 10, 11, 12, 19])]
fn eight_scores_are_named_first_the_wrong_then_those_next_to_the_threshold(
    #[case] highest: f32,
    #[case] lost: &[usize],
    #[case] added: &[usize],
    #[case] near: &[usize],
) {
    let row = compared((0..20).map(|key| highest - key as f32).collect(), 10, lost, added);
    let named: Vec<usize> = row.near.iter().flat_map(|near| near.keys.iter().copied()).collect();
    assert_eq!(named, near);
    for group in &row.near {
        assert_eq!((group.score, group.radius), (f64::from(highest) - group.keys[0] as f64, 0.0));
        assert_eq!(group.found, row.found.contains(&group.keys[0]));
    }
}

/// 0 and −0 are one score, and so are equal ones.
#[test]
fn keys_of_one_score_that_fare_alike_are_named_together() {
    let row = compared(vec![1.0, 1.0, 0.0, -0.0, -1.0], 2, &[], &[]);
    let named: Vec<&[usize]> = row.near.iter().map(|near| &near.keys[..]).collect();
    assert_eq!(named, [&[0, 1][..], &[2, 3], &[4]]);
}

/// Four rows have six open keys; nothing can be said of none.
#[test]
fn sharpness_adds_counts_and_keeps_the_larger_figures() {
    let mut sharpness = Sharpness::default();
    assert_eq!(sharpness.open_per_row(), None);
    let one = Sharpness { rows: 3, open: 4, worst_output_error: Some(0.5), widest_output_bound: None };
    let other =
        Sharpness { rows: 1, open: 2, worst_output_error: Some(0.25), widest_output_bound: Some(0.1) };
    sharpness.add(&one);
    sharpness.add(&other);
    let both = Sharpness { rows: 4, open: 6, worst_output_error: Some(0.5), widest_output_bound: Some(0.1) };
    assert_eq!((sharpness, sharpness.open_per_row()), (both, Some(1.5)));
}

//! What a verdict says of one answer: each weight of a mask, each refusal, each label and each stage is held against what the SPEC
//! asks of it, and entries of unequal lengths are judged as each alone, at the places that they have in the batch.

use std::collections::BTreeMap;
use std::sync::Arc;

use doublecheck::algorithm::attention::{attention, log_sum_exp};
use doublecheck::algorithm::labels::labels;
use doublecheck::algorithm::quantize::{labels_by_quotient, quantize_in_place};
use doublecheck::algorithm::scores::Scores;
use doublecheck::algorithm::{
    ChannelOrder, Dims, Error, GroupFactor, HeadMode, HeavySize, InputParts, Inputs, LabelBits, Lengths,
    Mask, Padding, Selection, Storage,
};
use doublecheck::cases::ragged::by_entry;
use doublecheck::cases::strategies::Plan;
use doublecheck::cases::{
    Answer, AnsweredLabels, Call, Case, Instance, LabelCase, LabelRounding, NoAnswer, Observation,
    RoundingModel, Sequence,
};
use doublecheck::subjects::{Reference, Subject};
use doublecheck::verdicts::bounds::U32;
use doublecheck::verdicts::certificate::{Class, RowCertificate};
use doublecheck::verdicts::judge::{
    Judgement, MaskDivergence, MaskFault, judge_both, judge_call, judge_mask, judge_observation, key_fault,
    row_fault,
};
use doublecheck::verdicts::labels::{judge_answered, judge_labels, rounded_rows, same_bits};
use doublecheck::verdicts::ragged::beyond_is_empty;
use doublecheck::verdicts::{Certificate, Verdict};
use ndarray::{Array2, Array4, s};
use rstest::rstest;

use crate::support::{small_case, small_plan};

// --- masks ------------------------------------------------------------------------------------------------------------

const CLASSES: [Class; 5] = [Class::Excluded, Class::Out, Class::In, Class::Open, Class::Before];

/// One key of each class, of which one is selected, and what is wrong with its weights; the same far behind in a long row.
#[rstest]
#[case::right([0.0, 0.0, 1.0, 0.0, 0.5], |_| None)]
#[case::no_candidate([1.0, 0.0, 1.0, 0.0, 0.5], |at| Some(MaskFault::HoldsExcluded { key: at }))]
#[case::too_low([0.0, 1.0, 1.0, 0.0, 0.5], |at| Some(MaskFault::HoldsOut { key: at + 1 }))]
#[case::missed([0.0, 0.0, 0.0, 1.0, 0.5], |at| Some(MaskFault::MissesIn { key: at + 2 }))]
#[case::weight_of_in([0.0, 0.0, 0.25, 0.0, 0.5], |at| Some(MaskFault::Weight { key: at + 2, found: 0.25 }))]
#[case::weight_of_open([0.0, 0.0, 1.0, 0.25, 0.5], |at| Some(MaskFault::Weight { key: at + 3, found: 0.25 }))]
#[case::lost([0.0, 0.0, 1.0, 0.0, 0.0],
    |at| Some(MaskFault::ChangesEarlier { key: at + 4, found: 0.0, expected: 0.5 }))]
#[case::reset([0.0, 0.0, 1.0, 0.0, 1.0],
    |at| Some(MaskFault::ChangesEarlier { key: at + 4, found: 1.0, expected: 0.5 }))]
#[case::too_many([0.0, 0.0, 1.0, 1.0, 0.5], |_| Some(MaskFault::Count { found: 2, fewest: 1, most: 1 }))]
fn each_weight_is_held_against_the_class_of_its_key(
    #[case] weights: [f32; 5],
    #[case] expected: fn(usize) -> Option<MaskFault>,
) {
    for at in [0, 3, 126, 300] {
        let keys = at + 8;
        let dims = small_case().dims();
        let dims = Dims { batch: 1, heads: 1, kv_heads: 1, queries: 1, keys, ..dims };
        let mask = |of_five: [f32; 5]| {
            let mut all = Array4::zeros(dims.mask_shape());
            of_five.iter().enumerate().for_each(|(key, &weight)| all[[0, 0, 0, at + key]] = weight);
            Mask::from_weights(all, &dims).unwrap()
        };
        let mut classes = vec![Class::Out; keys];
        classes[at..at + 5].copy_from_slice(&CLASSES);
        let certificate = RowCertificate { classes, fewest: 1, most: 1 };
        let (before, mask) = (mask([0.0, 0.0, 0.0, 0.0, 0.5]), mask(weights));
        let found = row_fault(&certificate, &before, &mask, (0, 0, 0));
        assert_eq!(found, expected(at), "from key {at}");
        // Key by key, and only there, the same but for the number of keys.
        let before = [0.0, 0.0, 0.0, 0.0, 0.5];
        let of_keys: Vec<_> =
            (0..5).filter_map(|key| key_fault(CLASSES[key], at + key, before[key], weights[key])).collect();
        let counted = matches!(found, Some(MaskFault::Count { .. }));
        assert_eq!(of_keys, found.into_iter().filter(|_| !counted).collect::<Vec<_>>());
    }
}

/// One head and one query of 1, so that the score of a key is its number: labels are not quantised and r = 1.
fn line(scores: &[f32], heavy_size: usize) -> Case {
    let keys = scores.len();
    let inputs = Inputs::new(InputParts {
        q: Array4::ones((1, 1, 1, 1)),
        k: Array4::from_shape_vec((1, 1, keys, 1), scores.to_vec()).unwrap(),
        v: Array4::from_shape_fn((1, 1, keys, 1), |(.., key, _)| key as f32),
        attention_mask: None,
        causal: false,
        storage: Storage::F32,
        scaling: Some(1.0),
    });
    let mut case = small_case().with_inputs(inputs.unwrap());
    case = case.with_channels(ChannelOrder::new(vec![vec![0]]).unwrap());
    case.instance.selection = Selection::new(HeavySize::count(heavy_size).unwrap(), 1, 16).unwrap();
    case
}

fn selecting(case: &Case, keys: &[usize]) -> Mask {
    let mut mask = Mask::empty(&case.dims());
    mask.add((0, 0, 0), keys.iter().copied());
    mask
}

/// Of scores 1 to 4, two to be selected: a key that should not be is shown with its score and the second-largest, one that should
/// be with the third.
#[rstest]
#[case::too_low(&[0, 2, 3], MaskFault::HoldsOut { key: 0 }, 1.0, 3.0)]
#[case::missed(&[3], MaskFault::MissesIn { key: 2 }, 3.0, 2.0)]
fn a_wrong_key_is_shown_with_its_score_and_the_threshold(
    #[case] keys: &[usize],
    #[case] fault: MaskFault,
    #[case] score: f64,
    #[case] threshold: f64,
) {
    let (case, model) = (line(&[1.0, 2.0, 3.0, 4.0], 2), RoundingModel::REFERENCE);
    let certificate = Certificate::derive(&case.instance, &case.call, model).unwrap();
    let found = judge_mask(&case.instance, &case.call, &certificate, &selecting(&case, keys), model);
    let [divergence] = &found.divergences[..] else { panic!("{found:?}") };
    assert_eq!(divergence.fault, fault);
    let evidence = divergence.evidence.expect("scores are compared");
    assert_eq!(evidence.score, score);
    // Thresholds are ends of scores, which are off by their radius.
    assert!((evidence.threshold - threshold).abs() < 1e-5 && evidence.threshold != threshold, "{evidence:?}");
    assert!(divergence.to_string().contains(&format!("(score {score:.9} ± ")), "{divergence}");
}

// --- refusals ---------------------------------------------------------------------------------------------------------

/// A layer that is missing, and a G that does not divide d.
fn with_two_faults() -> Case {
    let mut case = small_case();
    case.call.layer = 9;
    case.instance.selection.group_factor = GroupFactor::new(3).unwrap();
    case
}

fn error_of(change: fn(&mut Case)) -> Error {
    let mut case = small_case();
    change(&mut case);
    Certificate::derive(&case.instance, &case.call, RoundingModel::REFERENCE).unwrap_err()
}

const NO_LAYER: fn(&mut Case) = |case| case.call.layer = 9;
const NO_DIVISOR: fn(&mut Case) = |case| case.instance.selection.group_factor = GroupFactor::new(3).unwrap();
const NO_SHARED_ROW: fn(&mut Case) = |case| case.instance.selection.heads = HeadMode::SummedLabels;

#[rstest]
#[case::the_first(NO_LAYER, true)]
#[case::the_second(NO_DIVISOR, true)]
#[case::another(NO_SHARED_ROW, false)]
fn a_call_with_two_faults_may_be_refused_for_either(#[case] said: fn(&mut Case), #[case] right: bool) {
    let (case, model) = (with_two_faults(), RoundingModel::REFERENCE);
    let refused = Err(NoAnswer::Refused(error_of(said)));
    let verdict = judge_call(&case.instance, &case.call, &refused, model);
    assert_eq!(verdict.conforms(), right, "{verdict:?}");
    if !right {
        let Verdict::RefusedWrongly { found, expected } = &verdict else { panic!("{verdict:?}") };
        assert_eq!(Err(found.clone()), refused);
        assert!(matches!(expected, Some(Error::MissingLayer(_))), "{verdict:?}");
        assert_eq!(verdict.kind(), Some("refused what must be answered"));
    }
}

/// Two calls, of which the first has a fault or none, both refused: only a refusal of the whole instance, for a fault that one of
/// its calls has, is right for the other call.
#[rstest]
#[case::each_call_by_itself(9, false, [true, false])]
#[case::the_instance_for_a_fault(9, true, [true, true])]
#[case::the_instance_without_a_fault(0, true, [false, false])]
fn a_refusal_of_the_instance_holds_for_its_other_calls(
    #[case] layer: usize,
    #[case] instance_refused: bool,
    #[case] right: [bool; 2],
) {
    let case = small_case();
    let calls = vec![Call { layer, ..case.call.clone() }, case.call.clone()];
    let refused = Err(NoAnswer::Refused(error_of(NO_LAYER)));
    let sequence = Sequence { name: "two calls".into(), instance: case.instance, calls };
    let observation = Observation { sequence, answers: vec![refused.clone(), refused], instance_refused };
    let verdicts = judge_observation(&observation, RoundingModel::REFERENCE);
    let found: Vec<bool> = verdicts.iter().map(Verdict::conforms).collect();
    assert_eq!(found, right, "{verdicts:?}");
}

// --- two answers, and stages ------------------------------------------------------------------------------------------

/// Two keys that tie: each of two implementations selects another one, and each output is that of its own mask.
#[test]
fn each_of_two_outputs_is_judged_with_its_own_mask() {
    let (case, model) = (line(&[1.0, 1.0, 0.0], 1), RoundingModel::REFERENCE);
    let answer = |key| {
        let mask = selecting(&case, &[key]);
        let output = attention(&case.call.inputs, &mask).unwrap();
        Ok(Answer::new(mask, Some(output)))
    };
    let certificate = Certificate::derive(&case.instance, &case.call, model);
    for keys in [[0, 1], [1, 0], [1, 1]] {
        let [first, second] = keys.map(answer);
        let verdicts = judge_both(
            &case.instance,
            &case.call,
            [(&first, model, &certificate), (&second, model, &certificate)],
        );
        assert!(verdicts.iter().all(Verdict::conforms), "{keys:?}: {verdicts:?}");
    }
}

/// Two keys that tie within the radius of their scores: either may be selected, but not the one whose own score is lower.
#[rstest]
#[case::its_highest(1, None, None)]
#[case::another(0, Some("wrong keys"), Some("selection"))]
fn a_selection_that_only_its_own_scores_forbid_is_the_stage_at_fault(
    #[case] key: usize,
    #[case] kind: Option<&str>,
    #[case] stage: Option<&str>,
) {
    let case = line(&[1.0, 1.0, 0.0], 1);
    let mut answer = Answer::new(selecting(&case, &[key]), None);
    let scores = vec![1.0, 1.0f32.next_up(), 0.0];
    answer.scores = Some(Array4::from_shape_vec((1, 1, 1, 3), scores).unwrap());
    let verdict = judge_call(&case.instance, &case.call, &Ok(answer), RoundingModel::REFERENCE);
    let judgement = verdict.judgement().unwrap();
    assert_eq!(judgement.mask.wrong_rows, 0, "{verdict:?}");
    assert_eq!((verdict.kind(), judgement.stage()), (kind, stage), "{verdict:?}");
}

/// Codes of two bits: in [0, 1.5, 3] the middle is half way between codes 1 and 2, so that its label may be 1 or 2 where labels are
/// rounded, and its score √3 or 2·√3. It must be the one that follows from the label that was given.
#[rstest]
#[case::both_of_code_1(1.0, 1.0, true)]
#[case::both_of_code_2(2.0, 2.0, true)]
#[case::the_score_of_code_2(1.0, 2.0, false)]
#[case::the_score_of_code_1(2.0, 1.0, false)]
fn a_score_must_be_that_of_the_label_that_was_given(
    #[case] label: f32,
    #[case] code: f32,
    #[case] right: bool,
) {
    let parts = InputParts {
        q: Array4::from_shape_vec((1, 1, 1, 3), vec![0.0, 3.0, 0.0]).unwrap(),
        k: Array4::from_shape_vec((1, 1, 2, 3), vec![0.0, 1.5, 3.0, 0.0, 0.0, 3.0]).unwrap(),
        v: Array4::ones((1, 1, 2, 1)),
        attention_mask: None,
        causal: false,
        storage: Storage::F32,
        scaling: None,
    };
    let mut case = small_case().with_inputs(Inputs::new(parts).unwrap());
    case = case.with_channels(ChannelOrder::new(vec![vec![0, 1, 2]]).unwrap());
    case.instance.selection = Selection::new(HeavySize::count(1).unwrap(), 1, 2).unwrap();
    let mut answer = Answer::new(selecting(&case, &[0]), None);
    answer.labels = Some(AnsweredLabels {
        q: case.call.inputs.parts().q.clone(),
        k: Array4::from_shape_vec((1, 1, 2, 3), vec![0.0, label, 3.0, 0.0, 0.0, 3.0]).unwrap(),
    });
    let scores = vec![3.0 * code / 3f32.sqrt(), 0.0];
    answer.scores = Some(Array4::from_shape_vec((1, 1, 1, 2), scores).unwrap());
    let model = RoundingModel { labels: LabelRounding::Rounded, ..RoundingModel::REFERENCE };
    let verdict = judge_call(&case.instance, &case.call, &Ok(answer), model);
    let judgement = verdict.judgement().unwrap();
    // Without the labels nothing is wrong.
    assert!(judgement.labels.is_none() && judgement.scores == Some(None), "{verdict:?}");
    let at_fault = judgement.scores_by_labels.as_ref().map(|score| score.index);
    assert_eq!(at_fault, (!right).then_some([0, 0, 0, 0]), "{verdict:?}");
    assert_eq!(judgement.stage(), (!right).then_some("scores"));
}

// --- labels -----------------------------------------------------------------------------------------------------------

/// In codes of two bits the step of [−1, 0, 2] is 1, and the label of 0 is 1 − 1 = +0.
const ROW: [f32; 3] = [-1.0, 0.0, 2.0];

fn two_bits() -> LabelBits {
    LabelBits::new(2).unwrap()
}

/// Labels beside an answer are compared bit for bit where they are exact, and the first that differs is named.
#[rstest]
#[case::right(0.0, true)]
#[case::minus_zero(-0.0, false)]
#[case::another(1e-20, false)]
fn a_label_beside_an_answer_has_the_bits_of_the_spec(#[case] label: f32, #[case] right: bool) {
    let row = |row: [f32; 3]| Array4::from_shape_vec((1, 1, 1, 3), row.to_vec()).unwrap();
    let parts = InputParts {
        q: row(ROW),
        k: row(ROW),
        v: Array4::ones((1, 1, 1, 1)),
        attention_mask: None,
        causal: false,
        storage: Storage::F32,
        scaling: None,
    };
    let mut case = small_case().with_inputs(Inputs::new(parts).unwrap());
    case = case.with_channels(ChannelOrder::new(vec![vec![0, 1, 2]]).unwrap());
    case.instance.selection = Selection::new(HeavySize::count(1).unwrap(), 1, 2).unwrap();
    for tensor in ["q", "k"] {
        let given = |of: &str| row([-1.0, if of == tensor { label } else { 0.0 }, 2.0]);
        let shown = AnsweredLabels { q: given("q"), k: given("k") };
        let found = judge_answered(&case.instance, &case.call, &shown, LabelRounding::Exact);
        let told = found.as_ref().map(|found| (found.tensor, found.index, found.allowed));
        assert_eq!(told, (!right).then_some((tensor, [0, 0, 0, 1], (0.0, 0.0))), "{found:?}");
    }
}

fn label_case(rows: Array2<f32>, bits: LabelBits, storage: Storage, exist: bool) -> LabelCase {
    let mut labels = rows.clone();
    for mut row in labels.outer_iter_mut().filter(|_| exist) {
        quantize_in_place(row.as_slice_mut().unwrap(), bits, storage).unwrap();
    }
    let labels = exist.then_some(labels);
    LabelCase { name: "a test".into(), storage, bits, rows, labels, source: "a test".into() }
}

/// A row that has labels must be answered, with as many labels as it has numbers; one that has none must be refused.
#[rstest]
#[case::right(true, Some(vec![-1.0, 0.0, 2.0]), None)]
#[case::refused(true, None, Some(0))]
#[case::one_too_many(true, Some(vec![-1.0, 0.0, 2.0, 2.0]), Some(0))]
#[case::one_too_few(true, Some(vec![-1.0, 0.0]), Some(0))]
#[case::wrong(true, Some(vec![-1.0, 0.0, 1.0]), Some(2))]
#[case::refused_rightly(false, None, None)]
#[case::answered(false, Some(vec![-1.0, 0.0, 2.0]), Some(0))]
fn a_row_is_answered_where_it_has_labels_and_refused_where_it_has_none(
    #[case] exist: bool,
    #[case] answer: Option<Vec<f32>>,
    #[case] wrong: Option<usize>,
) {
    let rows = Array2::from_shape_vec((1, 3), ROW.to_vec()).unwrap();
    let case = label_case(rows, two_bits(), Storage::F32, exist);
    let of_any_order = [LabelRounding::Rounded, LabelRounding::Quotient, LabelRounding::Step];
    for rounding in of_any_order.into_iter().chain([LabelRounding::Exact]) {
        let found = judge_labels(&case, std::slice::from_ref(&answer), rounding);
        let columns: Vec<_> = found.iter().map(|found| found.index).collect();
        assert_eq!(columns, wrong.map(|column| (0, column)).into_iter().collect::<Vec<_>>(), "{rounding:?}");
        assert!(found.iter().all(|found| found.allowed.is_some() == exist));
    }
}

/// Labels of a fixed order of operations are compared bit for bit, zeros included; others as numbers.
#[rstest]
#[case::exact(LabelRounding::Exact, false)]
#[case::quotient(LabelRounding::Quotient, false)]
#[case::step(LabelRounding::Step, false)]
#[case::rounded(LabelRounding::Rounded, true)]
fn a_label_of_a_fixed_order_has_one_zero(#[case] rounding: LabelRounding, #[case] may_be_minus_zero: bool) {
    let rows = Array2::from_shape_vec((1, 3), ROW.to_vec()).unwrap();
    let case = label_case(rows, two_bits(), Storage::F32, true);
    for (zero, right) in [(0.0, true), (-0.0, may_be_minus_zero)] {
        let found = judge_labels(&case, &[Some(vec![-1.0, zero, 2.0])], rounding);
        assert_eq!(found.is_empty(), right, "{zero:?}: {found:?}");
    }
}

/// SPEC D9: a row that has labels in the order of the SPEC must be answered by other orders too, where these lead beyond the
/// largest number; any labels within rounding are right then.
#[test]
fn a_row_whose_other_labels_overflow_is_judged_within_rounding() {
    let storage = Storage::F16;
    let mut found = 0;
    for (bits, lo) in (1..=8).flat_map(|bits| (1..1000).map(move |lo| (bits, 64.0 * lo as f32))) {
        let bits = LabelBits::new(bits).unwrap();
        let row = [lo, storage.round(lo.midpoint(65504.0)), 65504.0];
        let mut right = row;
        if quantize_in_place(&mut right, bits, storage).is_err() {
            continue;
        }
        let rows = Array2::from_shape_vec((1, 3), row.to_vec()).unwrap();
        let case = label_case(rows, bits, storage, true);
        for (rounding, step) in [(LabelRounding::Quotient, false), (LabelRounding::Step, true)] {
            if labels_by_quotient(&row, bits, storage, step).iter().all(|label| label.is_finite()) {
                continue;
            }
            found += 1;
            assert!(judge_labels(&case, &[Some(right.to_vec())], rounding).is_empty(), "{row:?}");
            let wrong = vec![right[0], right[1], right[0]];
            assert_eq!(judge_labels(&case, &[Some(wrong)], rounding)[0].index, (0, 2), "{row:?}");
        }
    }
    assert!(found > 100, "{found} rows");
}

#[rstest]
#[case::equal((1, 2), (1, 2), &[1.0, 2.0], &[1.0, 2.0], true)]
#[case::nan((1, 1), (1, 1), &[f32::NAN], &[f32::NAN], true)]
#[case::zeros((1, 1), (1, 1), &[0.0], &[-0.0], false)]
#[case::one_unit((1, 2), (1, 2), &[1.0, 2.0], &[1.0, 2.000_000_2], false)]
#[case::another_shape((1, 2), (2, 1), &[1.0, 2.0], &[1.0, 2.0], false)]
#[case::a_part((2, 1), (1, 1), &[1.0, 2.0], &[1.0], false)]
fn labels_are_the_same_where_shape_and_bits_are(
    #[case] shape: (usize, usize),
    #[case] other_shape: (usize, usize),
    #[case] numbers: &[f32],
    #[case] other: &[f32],
    #[case] same: bool,
) {
    let labels = |shape, numbers: &[f32]| Array2::from_shape_vec(shape, numbers.to_vec()).unwrap();
    let (one, other) = (labels(shape, numbers), labels(other_shape, other));
    assert_eq!(same_bits(one.view(), other.view()), same);
}

/// The label 1 − 1 of [−1, 0, 2]: its product carries four roundings and what the reciprocal of 3 may underflow by, twice; the sum
/// rounds once, by u of what it may then be; and η.
#[test]
fn a_rounded_label_widens_by_its_product_and_one_rounding_of_the_sum() {
    for (storage, u, eta, least) in [
        (Storage::F32, U32, 2f64.powi(-126), 2f64.powi(-126)),
        (Storage::F16, 2f64.powi(-11), 2f64.powi(-25), 2f64.powi(-14)),
        (Storage::Bf16, 2f64.powi(-8), 2f64.powi(-126), 2f64.powi(-126)),
    ] {
        let row = Array2::from_shape_vec((1, 3), ROW.to_vec()).unwrap();
        let (value, radius) = rounded_rows(row.view(), two_bits(), storage).at(1, 0);
        let product = 4.0 * u / (1.0 - 4.0 * u) + 2.0 * 3.0 * eta;
        let expected = product + u * product + least;
        assert_eq!(value, 0.0);
        assert!(
            radius >= expected * (1.0 - 1e-12) && radius <= expected * (1.0 + 1e-9),
            "{storage}: {radius:e}"
        );
    }
}

// --- entries of unequal lengths ---------------------------------------------------------------------------------------

/// Three entries of 2, 4 and no keys in a buffer of 6, each with 3 queries: the first query of entry 0 has no position, and none of
/// entry 2 has one. Two heads over one KV head, r = 2.
fn ragged(change: fn(&mut Case)) -> Case {
    let plan = Plan { batch: 3, queries: 3, value_dim: 4, ..small_plan() };
    let mut case = plan.case().unwrap();
    change(&mut case);
    case.call = case.call.with_lengths(Lengths::new(vec![2, 4, 0], Padding::Nan)).unwrap();
    case
}

/// The whole of an answer: that of the reference, with labels, scores and log-sum-exp of each entry alone.
fn whole(case: &Case) -> Answer {
    let (instance, mut reference) = (&case.instance, Reference::default());
    reference.configure(instance).unwrap();
    let answer = by_entry(&case.call, |call| {
        let mut answer = reference.call(call)?;
        let (dims, channels) = (call.inputs.dims(), instance.channels(call.layer)?);
        let found = labels(&call.inputs, channels, 2, instance.selection.label_bits, (0, 0..dims.heads))?;
        let mut shown = AnsweredLabels {
            q: Array4::zeros((1, dims.heads, dims.queries, 2)),
            k: Array4::zeros((1, dims.heads, dims.keys, 2)),
        };
        let scores = Scores::new(&call.inputs, 0, &found, channels, &instance.selection);
        let scores = Array4::from_shape_fn(dims.mask_shape(), |(_, head, query, key)| {
            scores.row(head, query)[key] as f32
        });
        for head in 0..dims.heads {
            shown.q.slice_mut(s![0, head, .., ..]).assign(&found.queries(head).t());
            shown.k.slice_mut(s![0, head, .., ..]).assign(&found.keys(head).t());
        }
        answer.lse = Some(log_sum_exp(&call.inputs, &answer.mask)?);
        (answer.labels, answer.scores) = (Some(shown), Some(scores));
        Ok(answer)
    });
    answer.unwrap()
}

fn judged(case: &Case, answer: Answer) -> Judgement {
    let verdict = judge_call(&case.instance, &case.call, &Ok(answer), RoundingModel::REFERENCE);
    verdict.judgement().expect("the answer fits").clone()
}

/// A key of the mask of the right answer that its entry selects by its score.
fn selected(answer: &Answer, row: (usize, usize, usize)) -> usize {
    answer.mask.row(row).next().unwrap().0
}

type Change = fn(&mut Answer);
type Told = (usize, usize, usize, MaskFault);

/// What is wrong with a mask, and where it is in the batch. A row is counted once, whether it is wrong in the padding or within its
/// entry or in both, and three are told.
#[rstest]
#[case::right(|_: &mut Answer| {}, 0, vec![], true)]
#[case::padding(|answer: &mut Answer| answer.mask.add((0, 0, 2), [3]), 1,
    vec![(0, 0, 2, MaskFault::HoldsPadding { key: 3 })], false)]
#[case::no_position(|answer: &mut Answer| answer.mask.add((0, 1, 0), [1]), 1,
    vec![(0, 1, 0, MaskFault::HoldsExcluded { key: 1 })], false)]
#[case::no_position_and_padding(|answer: &mut Answer| answer.mask.add((0, 1, 0), [1, 5]), 1,
    vec![(0, 1, 0, MaskFault::HoldsPadding { key: 5 })], false)]
#[case::no_keys(|answer: &mut Answer| answer.mask.add((2, 0, 2), [0]), 1,
    vec![(2, 0, 2, MaskFault::HoldsPadding { key: 0 })], false)]
#[case::own_key(|answer: &mut Answer| answer.mask.remove((0, 1, 2), selected(answer, (0, 1, 2))), 1,
    vec![(0, 1, 2, MaskFault::MissesIn { key: 0 })], true)]
#[case::both_in_one_row(|answer: &mut Answer| {
    answer.mask.remove((0, 1, 2), selected(answer, (0, 1, 2)));
    answer.mask.add((0, 1, 2), [4]);
}, 1, vec![(0, 1, 2, MaskFault::HoldsPadding { key: 4 })], false)]
#[case::both_in_two_rows(|answer: &mut Answer| {
    answer.mask.remove((0, 1, 2), selected(answer, (0, 1, 2)));
    answer.mask.add((1, 1, 2), [4]);
}, 2, vec![(1, 1, 2, MaskFault::HoldsPadding { key: 4 }), (0, 1, 2, MaskFault::MissesIn { key: 0 })], false)]
#[case::more_than_are_told(|answer: &mut Answer| {
    (0..3).for_each(|query| answer.mask.add((2, 1, query), [query]));
    answer.mask.add((1, 0, 0), [5]);
    answer.mask.remove((0, 1, 2), selected(answer, (0, 1, 2)));
}, 5, vec![
    (1, 0, 0, MaskFault::HoldsPadding { key: 5 }),
    (2, 1, 0, MaskFault::HoldsPadding { key: 0 }),
    (2, 1, 1, MaskFault::HoldsPadding { key: 1 }),
], false)]
fn a_mask_of_unequal_entries_is_judged_where_it_is_wrong(
    #[case] change: Change,
    #[case] wrong_rows: usize,
    #[case] told: Vec<Told>,
    #[case] nothing_beyond: bool,
) {
    // Every key of an entry is selected.
    let case = ragged(|case| case.instance.selection.heavy_size = HeavySize::count(6).unwrap());
    let mut answer = whole(&case);
    (answer.output, answer.lse, answer.scores, answer.labels) = (None, None, None, None);
    change(&mut answer);
    let entries = case.call.entries().unwrap();
    assert_eq!(beyond_is_empty(&case.call, &entries, &answer), nothing_beyond);
    let found = judged(&case, answer);
    let told_of = |wrong: &MaskDivergence| {
        let (b, head, query) = wrong.row;
        (b, head, query, wrong.fault)
    };
    let faults: Vec<Told> = found.mask.divergences.iter().map(told_of).collect();
    assert_eq!((faults, found.mask.wrong_rows), (told, wrong_rows));
    assert_eq!((found.mask.rows, found.conforms()), (18, wrong_rows == 0));
}

/// One number at a time, in a row without a position or in the last query of entry 0, which is its second: what is told is its place in
/// the batch, and only that is wrong.
#[rstest]
#[case::output("output", [0, 1, 2, 3], 1e4)]
#[case::output_of_no_position("output", [0, 1, 0, 2], 1.0)]
#[case::output_of_no_keys("output", [2, 0, 1, 0], f32::NAN)]
#[case::lse("lse", [0, 1, 2, 0], 1e4)]
#[case::lse_of_no_position("lse", [0, 1, 0, 0], 0.0)]
#[case::lse_of_no_keys("lse", [2, 0, 1, 0], f32::NAN)]
#[case::label_of_a_query("q", [0, 1, 2, 1], 1e4)]
#[case::label_of_a_key("k", [0, 1, 1, 1], 1e4)]
#[case::score("score", [0, 1, 2, 1], 1e4)]
fn a_number_of_unequal_entries_is_judged_where_it_is_wrong(
    #[case] tensor: &str,
    #[case] index: [usize; 4],
    #[case] wrong: f32,
) {
    let case = ragged(|_| {});
    assert!(judged(&case, whole(&case)).conforms());
    let mut answer = whole(&case);
    let ([b, head, query, _], labels) = (index, answer.labels.as_mut().unwrap());
    *match tensor {
        "output" => &mut answer.output.as_mut().unwrap()[index],
        "lse" => &mut answer.lse.as_mut().unwrap()[[b, head, query]],
        "q" => &mut labels.q[index],
        "k" => &mut labels.k[index],
        _ => &mut answer.scores.as_mut().unwrap()[index],
    } = wrong;
    let found = judged(&case, answer);
    let mut places = BTreeMap::new();
    places.extend(found.output.iter().flat_map(|output| &output.divergences).map(|it| ("output", it.index)));
    let row = |(b, head, query): (usize, usize, usize)| [b, head, query, 0];
    places.extend(found.lse.iter().flat_map(|lse| &lse.divergences).map(|it| ("lse", row(it.row))));
    places.extend(found.labels.iter().map(|it| (it.tensor, it.index)));
    places.extend(found.scores.iter().flatten().map(|it| ("score", it.index)));
    assert_eq!(places, BTreeMap::from([(tensor, index)]), "{found:?}");
    assert!(!found.conforms());
}

/// Where labels are given and right, what is wrong with scores comes after them.
#[rstest]
#[case::labels_given(true, "scores")]
#[case::none_given(false, "labels or scores")]
fn the_stage_at_fault_is_told_of_unequal_entries(#[case] with_labels: bool, #[case] stage: &str) {
    let case = ragged(|_| {});
    let mut answer = whole(&case);
    answer.labels = answer.labels.filter(|_| with_labels);
    answer.scores.as_mut().unwrap()[[0, 1, 2, 1]] += 1.0;
    assert_eq!(judged(&case, answer).stage(), Some(stage));
}

/// Where all scores tie and one key is to be selected, each of the 2 keys of 4 rows of entry 0 is open, and each of the 4 of 6 rows
/// of entry 1; by its own scores, too.
#[test]
fn rows_and_open_keys_of_unequal_entries_are_those_of_each() {
    let case = ragged(|case| {
        let mut parts = case.call.inputs.parts().clone();
        (parts.causal, parts.attention_mask) = (false, None);
        parts.q.fill(0.0);
        case.call.inputs = Arc::new(Inputs::new(parts).unwrap());
        case.instance.selection.heavy_size = HeavySize::count(1).unwrap();
    });
    let found = judged(&case, whole(&case));
    assert!(found.conforms(), "{found:?}");
    assert_eq!((found.mask.rows, found.mask.selecting, found.mask.open), (18, 10, 32));
    let selection = found.selection.unwrap();
    assert_eq!((selection.rows, selection.selecting, selection.open), (10, 10, 32));
}

/// What must become of each key of a batch is what must become of it in its entry alone, and padding is never a candidate; where an
/// early out gives an entry a full mask, all of its keys are in, or keep the weight that they had.
#[rstest]
#[case::ranked(|_: &mut Case| {}, false)]
#[case::short_context(|case: &mut Case| case.instance.selection.dense_fallback = true, true)]
#[case::dense_layer(|case: &mut Case| case.instance.dense_layers = vec![0].into_iter().collect(), true)]
fn certificates_of_unequal_entries_are_those_of_each(#[case] change: fn(&mut Case), #[case] full: bool) {
    let mut case = ragged(|case| {
        let mut weights = Array4::zeros(case.dims().mask_shape());
        weights[[1, 1, 2, 3]] = 0.5;
        case.call.previous = Some(Mask::from_weights(weights, &case.dims()).unwrap());
    });
    change(&mut case);
    let of = |instance: &Instance, call: &Call| {
        Certificate::derive(instance, call, RoundingModel::REFERENCE).unwrap()
    };
    let (batch, dims) = (of(&case.instance, &case.call), case.dims());
    let rows = batch.rows.as_ref().unwrap();
    for (index, (b, head, query)) in dims.rows().enumerate() {
        let entry = &case.call.entries().unwrap()[b];
        let own = query.checked_sub(entry.first_query).filter(|_| entry.keys > 0);
        let expected = match (own, &entry.call) {
            (Some(query), Some(alone)) => match of(&case.instance, alone).rows {
                Some(rows) if !full => rows[head * alone.inputs.dims().queries + query].clone(),
                None if full => {
                    let before = usize::from((b, head, query) == (1, 1, 2));
                    let mut classes = vec![Class::In; entry.keys];
                    classes[entry.keys - before..].fill(Class::Before);
                    RowCertificate { classes, fewest: entry.keys - before, most: entry.keys - before }
                }
                _ => panic!("entry {b}"),
            },
            _ => RowCertificate { classes: Vec::new(), fewest: 0, most: 0 },
        };
        let found = &rows[index];
        let (own, padding) = found.classes.split_at(expected.classes.len());
        assert_eq!(own, expected.classes, "{b} {head} {query}");
        assert_eq!((found.fewest, found.most), (expected.fewest, expected.most), "{b} {head} {query}");
        assert_eq!(padding, vec![Class::Excluded; dims.keys - own.len()]);
    }
}

//! What verdicts say beside right and wrong: which keys of a row are lost or too many, the kind and the words of a failure, how many rows, keys
//! and steps were judged. Reports print these figures, and a finding names the kind.

use std::num::NonZeroUsize;
use std::sync::Arc;

use doublecheck::algorithm::{Detail, Error, InputParts, Inputs, Lengths, Mask, Padding, Storage};
use doublecheck::cases::{
    Attended, NoAnswer, Opening, RoundingModel, ScoresCall, SelectionCall, Session, SessionObservation,
    StageAnswer, StageCall, Step,
};
use doublecheck::subjects::{Reference, Subject, ask_session};
use doublecheck::verdicts::certificate::Class;
use doublecheck::verdicts::judge::MaskFault;
use doublecheck::verdicts::output::judge_output;
use doublecheck::verdicts::rows::{ComparedRow, compared_selection};
use doublecheck::verdicts::topk::{certify, judge_top_k};
use doublecheck::verdicts::{SessionVerdict, StageVerdict, Verdict, judge_session, judge_stage};
use ndarray::{Array3, Array4};
use rstest::rstest;

use crate::support::small_case;

/// Rows of one head.
fn scores_call(rows: &[&[f32]], heavy_size: usize) -> ScoresCall {
    let shape = (1, 1, rows.len(), rows[0].len());
    let scores = Array4::from_shape_vec(shape, rows.concat()).unwrap();
    ScoresCall::new(scores, Storage::F32, NonZeroUsize::new(heavy_size).unwrap()).unwrap()
}

fn selection(call: &ScoresCall, rows: &[&[usize]]) -> Mask {
    let mut mask = Mask::empty(&call.dims());
    for (query, keys) in rows.iter().enumerate() {
        mask.add((0, 0, query), keys.iter().copied());
    }
    mask
}

/// Two of 3, 2, 2, 1: the first key, and the second or the third.
#[rstest]
#[case(&[0, 1], &[], &[])]
#[case(&[0, 2], &[], &[])]
#[case(&[1, 2], &[0], &[])]
#[case(&[0, 3], &[], &[3])]
#[case(&[1, 3], &[0], &[3])]
#[case(&[0], &[], &[])]
#[case(&[0, 1, 2], &[], &[])]
fn a_row_conforms_with_no_key_lost_none_too_many_and_as_many_as_asked(
    #[case] selected: &[usize],
    #[case] missing: &[usize],
    #[case] extra: &[usize],
) {
    let call = scores_call(&[&[3.0, 2.0, 2.0, 1.0]], 2);
    let compared = compared_selection(&call, &selection(&call, &[selected]));
    assert_eq!(compared.len(), 1);
    assert_eq!((&compared[0].missing[..], &compared[0].extra[..]), (missing, extra));
    let right = selected == [0, 1] || selected == [0, 2];
    assert_eq!(compared[0].conforms(), right);
}

#[test]
fn the_rows_that_are_compared_are_those_that_are_wrong() {
    let call = scores_call(&[[1.0, 0.0].as_slice(); 6], 1);
    let mask = selection(&call, &[&[0], &[1], &[0], &[], &[1], &[1]]);
    let queries: Vec<usize> = compared_selection(&call, &mask).iter().map(|row| row.row.2).collect();
    assert_eq!(queries, [1, 3, 4], "the first three");
}

/// A reader looks for keys that are lost or too many in the tensors; where none is, for those that are selected and should be. Of each kind the
/// first few, and each key once.
#[rstest]
#[case(&[9, 12], &[3], &[1], &[1, 3], &[3, 9, 12])]
#[case(&[], &[4], &[1], &[1, 4], &[4])]
#[case(&[], &[], &[1, 5], &[1, 5, 7], &[1, 5, 7])]
#[case(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], &[20], &[], &[20], &[0, 1, 2, 3, 4, 5, 6, 7, 20])]
fn keys_that_matter_are_those_that_are_wrong(
    #[case] missing: &[usize],
    #[case] extra: &[usize],
    #[case] expected: &[usize],
    #[case] found: &[usize],
    #[case] matter: &[usize],
) {
    let compared = ComparedRow {
        missing: missing.to_vec(),
        extra: extra.to_vec(),
        expected: expected.to_vec(),
        found: found.to_vec(),
        ..ComparedRow::default()
    };
    assert_eq!(compared.keys_that_matter(), matter);
}

/// Wherever a NaN ranks, 1 comes before 0; whether 1 is the first of all depends on it.
#[test]
fn a_score_of_nan_ranks_anywhere_and_the_others_as_they_are() {
    for nan in [f32::NAN, -f32::NAN] {
        let found = certify(&[nan, 1.0, 0.0], |_| None, |_| false, 1);
        assert_eq!(found.classes, [Class::Open, Class::Open, Class::Out], "{nan:?}");
    }
}

/// A row that selects padding is told once, for that, and first; other rows for what is wrong with them.
#[test]
fn padding_is_told_first_and_hides_no_other_row() {
    let call = scores_call(&[[1.0, 0.0, 9.0].as_slice(); 4], 1);
    let call = call.with_lengths(Some(Lengths::new(vec![2], Padding::Large))).unwrap();
    let verdict = judge_top_k(&call, &selection(&call, &[&[0], &[1], &[2], &[0]]));
    let told: Vec<_> = verdict.divergences.iter().map(|told| (told.row.2, told.fault)).collect();
    let expected = [(2, MaskFault::HoldsPadding { key: 2 }), (1, MaskFault::MissesIn { key: 0 })];
    assert_eq!((told.as_slice(), verdict.wrong_rows), (&expected[..], 2));
}

fn judged(call: &StageCall, answer: StageAnswer) -> StageVerdict {
    judge_stage(call, &Ok(answer), RoundingModel::REFERENCE)
}

#[test]
fn a_top_k_is_judged_by_rows_that_select_and_keys_that_tie() {
    // Two of three keys tie across the place of the first; then there is one candidate.
    let scores = scores_call(&[&[2.0, 2.0, 1.0], &[f32::NEG_INFINITY, 1.0, f32::NEG_INFINITY]], 1);
    let call = StageCall::Scores(scores.clone());
    for keys in [[0, 1], [1, 1]] {
        let mask = selection(&scores, &[&keys[..1], &keys[1..]]);
        let verdict = judged(&call, StageAnswer::Selected(mask));
        assert!(verdict.conforms() && verdict.kind.is_none() && verdict.explanations.is_empty());
        assert_eq!((verdict.rows, verdict.selecting), (2, 1));
        assert_eq!((verdict.sharpness.rows, verdict.sharpness.open), (2, 2));
    }
    let verdict = judged(&call, StageAnswer::Selected(selection(&scores, &[&[2], &[1]])));
    assert!(!verdict.conforms());
    assert_eq!((verdict.kind, verdict.stage), (Some("wrong keys"), Some("selection")));
    assert_eq!(verdict.explanations.len(), 1);
}

/// Everything that one stage is asked must be answered: with what was asked for, in its shape. A failure has a kind and says what was found.
#[test]
fn no_answer_of_a_stage_conforms_and_each_says_why() {
    let scores = scores_call(&[&[2.0, 1.0]], 1);
    let larger = scores_call(&[&[2.0, 1.0], &[2.0, 1.0]], 1);
    let capacity = Error::Capacity(Detail::new("scores", 9, "at most 4"));
    let (unusable, refused) = ("gave no usable answer", "refused what must be answered");
    for (answer, kind, said) in [
        (Err(NoAnswer::Failed("out of memory".into())), unusable, "out of memory"),
        (Err(NoAnswer::Declined("not today".into())), refused, "not today"),
        (Err(NoAnswer::Refused(capacity)), refused, "at most 4"),
        (Ok(StageAnswer::Selected(Mask::empty(&larger.dims()))), unusable, "another shape"),
        (Ok(StageAnswer::Attended(Attended { output: None, lse: None })), unusable, "another question"),
    ] {
        let verdict = judge_stage(&StageCall::Scores(scores.clone()), &answer, RoundingModel::REFERENCE);
        assert!(!verdict.conforms(), "{answer:?}");
        assert_eq!((verdict.kind, verdict.stage), (Some(kind), None), "{answer:?}");
        assert_eq!(verdict.explanations.len(), 1, "{answer:?}");
        assert!(verdict.explanations[0].contains(said), "{:?}", verdict.explanations);
    }
}

/// One head of three queries and three keys, of values 1, 3 and 5, which all score alike: the queries attend to two, three and one of them.
fn attention_call() -> SelectionCall {
    let v = Array4::from_shape_vec((1, 1, 3, 1), vec![1.0, 3.0, 5.0]).unwrap();
    let (q, k) = (Array4::ones((1, 1, 3, 1)), Array4::ones((1, 1, 3, 1)));
    let (storage, causal) = (Storage::F32, false);
    let parts = InputParts { q, k, v, attention_mask: None, causal, storage, scaling: None };
    let inputs = Inputs::new(parts).unwrap();
    let mut mask = Mask::empty(&inputs.dims());
    for (query, keys) in [&[0, 1][..], &[0, 1, 2], &[2]].into_iter().enumerate() {
        mask.add((0, 0, query), keys.iter().copied());
    }
    SelectionCall { inputs: Arc::new(inputs), mask }
}

fn column(numbers: [f32; 3]) -> Option<Array4<f32>> {
    Array4::from_shape_vec((1, 1, 3, 1), numbers.to_vec()).ok()
}

/// Means of values 1, 3 and 5, and sums of exponentials of logits 1; two of three rows leave a key out.
#[test]
fn an_attention_is_judged_by_rows_that_leave_keys_out_and_by_its_bounds() {
    let call = attention_call();
    let output = column([2.0, 3f32.next_up(), 5.0]);
    let lse = Array3::from_shape_vec((1, 1, 3), vec![1.0 + 2f32.ln(), 1.0 + 3f32.ln(), 1.0]).ok();
    let bound = judge_output(&call.inputs, &call.mask, output.as_ref().unwrap(), RoundingModel::REFERENCE);
    let asked = StageCall::Selection(call);
    for (output, lse) in [(output.clone(), lse.clone()), (output.clone(), None), (None, lse)] {
        let has_output = output.is_some();
        let verdict = judged(&asked, StageAnswer::Attended(Attended { output, lse }));
        assert!(verdict.conforms(), "{:?}", verdict.explanations);
        assert_eq!((verdict.rows, verdict.selecting), (3, 2));
        let sharpness = verdict.sharpness;
        assert_eq!(sharpness.worst_output_error, has_output.then_some(bound.worst_share));
        assert_eq!(sharpness.widest_output_bound, has_output.then_some(bound.widest_bound));
    }
    assert!(bound.worst_share > 0.0 && bound.worst_share < 1.0, "{bound:?}");
    assert!(bound.widest_bound > 0.0 && bound.widest_bound < 1e-5, "{bound:?}");
    let verdict = judged(&asked, StageAnswer::Attended(Attended { output: column([2.0; 3]), lse: None }));
    assert_eq!((verdict.kind, verdict.stage), (Some("output out of bounds"), Some("attention")));
}

/// An output or sums of another shape are no answer, whatever the other is.
#[test]
fn an_attention_of_another_shape_is_no_usable_answer() {
    let asked = StageCall::Selection(attention_call());
    let right = (column([2.0, 3.0, 5.0]), Array3::from_shape_vec((1, 1, 3), vec![1.7, 2.1, 1.0]).ok());
    let wrong = (Some(Array4::zeros((1, 1, 3, 2))), Some(Array3::zeros((1, 2, 3))));
    for (output, lse) in
        [(wrong.0.clone(), None), (wrong.0.clone(), right.1), (None, wrong.1.clone()), (right.0, wrong.1)]
    {
        let verdict = judged(&asked, StageAnswer::Attended(Attended { output, lse }));
        assert_eq!(verdict.kind, Some("gave no usable answer"));
        assert!(verdict.explanations[0].contains("another shape"), "{:?}", verdict.explanations);
    }
}

/// Requests 1 and 2 get three keys each and attend with 2 and 1 queries, then with 1; request 9 is not known.
fn observed() -> SessionObservation {
    let case = small_case();
    let opening = Opening {
        layers: vec![0],
        capacity: 16,
        page_size: 4,
        heads: 2,
        kv_heads: 1,
        head_dim: 4,
        value_dim: 3,
        dtype: Storage::F32,
        scaling: None,
    };
    let keys =
        |t: usize, width: usize| Array3::from_shape_fn((t, 1, width), |(i, _, c)| (i * c) as f32 - 1.0);
    let queries = |t: usize| Array3::from_shape_fn((t, 2, 4), |(i, h, c)| (i + h) as f32 - c as f32);
    let attend = |parts: Vec<(usize, usize)>| {
        let rows = parts.iter().map(|(_, count)| count).sum();
        Step::Attend { layer: 0, parts, q: queries(rows) }
    };
    let steps = vec![
        Step::Append { layer: 0, parts: vec![(1, 3), (2, 3)], k: keys(6, 4), v: keys(6, 3) },
        attend(vec![(1, 2), (2, 1)]),
        Step::Free { request: 9 },
        attend(vec![(2, 1)]),
        Step::Truncate { request: 9, length: 1 },
    ];
    let session = Session { name: "by hand".into(), instance: case.instance, opening, steps };
    ask_session(&mut Reference::serving(), &session)
}

fn session_verdict(observation: &SessionObservation) -> SessionVerdict {
    judge_session(observation, Reference::serving().rounding_model())
}

#[test]
fn a_session_counts_steps_rows_outputs_and_refusals() {
    let mut observation = observed();
    let figures = |verdict: SessionVerdict| {
        assert!(verdict.conforms(), "{:?}", verdict.failure);
        (verdict.steps, verdict.rows, verdict.outputs, verdict.refused)
    };
    assert_eq!(figures(session_verdict(&observation)), (5, 4, 3, 2));
    // Who gives no output for one request has one less.
    observation.answers[1].as_mut().unwrap()[0].output = None;
    assert_eq!(figures(session_verdict(&observation)), (5, 4, 2, 2));
}

/// Requests and steps without an answer are not passed over.
#[test]
fn a_session_with_answers_missing_is_not_usable() {
    let whole = observed();
    let mut no_requests = whole.clone();
    no_requests.answers[1] = Ok(Vec::new());
    let mut one_request = whole.clone();
    one_request.answers[1].as_mut().unwrap().pop();
    let mut no_step = whole.clone();
    no_step.answers.pop();
    let mut no_answers = whole;
    no_answers.answers.clear();
    let second = Some(1);
    for (observation, step) in
        [(no_requests, second), (one_request, second), (no_step, None), (no_answers, None)]
    {
        let verdict = session_verdict(&observation);
        assert_eq!(verdict.kind(), Some("gave no usable answer"));
        assert_eq!(verdict.failure.unwrap().step, step);
    }
}

/// SPEC §2.14: a step must be refused for a reason that it has; who names none, declines it.
#[test]
fn a_step_is_refused_rightly_for_its_own_reason_alone() {
    let mut observation = observed();
    let detail = || Detail::new("request", 9, "a request");
    let reasons = [
        (Error::Request(detail()), true),
        (Error::Capacity(detail()), false),
        (Error::Length(detail()), false),
    ];
    for (error, right) in reasons {
        observation.answers[2] = Err(NoAnswer::Refused(error));
        let verdict = session_verdict(&observation);
        assert_eq!(verdict.conforms(), right, "{:?}", verdict.failure);
        if !right {
            let failure = verdict.failure.unwrap();
            assert_eq!((failure.step, failure.place), (Some(2), None));
            assert!(matches!(
                failure.verdict,
                Verdict::RefusedWrongly { expected: Some(Error::Request(_)), .. }
            ));
            assert_eq!((verdict.steps, verdict.refused), (3, 0));
        }
    }
    observation.answers[2] = Err(NoAnswer::Declined("no such request".into()));
    assert!(session_verdict(&observation).conforms());
    observation.answers[2] = Ok(Vec::new());
    assert_eq!(session_verdict(&observation).kind(), Some("answered what must be refused"));
}

//! The certificate's own tests: scores perturbed within their radii never turn a conforming mask into a divergence, and
//! moving one certain key always does. Both are checked with every rounding model.

use crate::support::{proptest_config, small_plan};
use doublecheck::algorithm::select::select as select_keys;
use doublecheck::algorithm::{Dims, HeadMode, HeavySize, InputParts, Inputs, Mask, Selection, Storage};
use doublecheck::cases::recipe::{Generated, RecipeRows, SPLITMIX_1, Words};
use doublecheck::cases::strategies::{ChannelRows, Plan, plans};
use doublecheck::cases::{
    Accumulation, Answer, AnsweredLabels, Case, Exponent, FactorOrder, LabelRounding, Precision, Products,
    Recipe, RoundingModel,
};
use doublecheck::subjects::{Reference, Subject};
use doublecheck::verdicts::certificate::Class;
use doublecheck::verdicts::certificate::{Candidacy, ScoreBounds, certify_row};
use doublecheck::verdicts::estimated;
use doublecheck::verdicts::judge::{MaskFault, judge, judge_both, judge_mask};
use doublecheck::verdicts::output::{expected_row, judge_output};
use doublecheck::verdicts::{Certificate, Verdict};
use ndarray::{Array3, Array4};
use proptest::prelude::*;
use proptest::sample::select;

const REGRESSIONS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/proptest-regressions/certification.txt");

fn models() -> impl Strategy<Value = RoundingModel> {
    (
        select(vec![LabelRounding::Exact, LabelRounding::Rounded]),
        select(vec![Precision::F32, Precision::Storage]),
        select(vec![Precision::F32, Precision::Storage]),
        select(vec![Accumulation::F32, Accumulation::F64]),
    )
        .prop_map(|(labels, scores_kept, weights_kept, accumulation)| RoundingModel {
            labels,
            scores_kept,
            weights_kept,
            accumulation,
            ..RoundingModel::default()
        })
}

/// Selects by scores moved anywhere within their radii.
fn perturbed_mask(case: &Case, scores: &ScoreBounds, before: &Mask, words: Words) -> Mask {
    let dims = case.call.inputs.dims();
    let heavy_size = case.instance.selection.heavy_size.resolve(dims.keys);
    let summed = case.instance.selection.heads != HeadMode::PerHead;
    let mut mask = before.clone();
    for (index, row @ (b, head, i)) in dims.rows().enumerate() {
        // In the summed modes there is one ranking, that of head 0, for all heads.
        let ranked = if summed { (b, 0, i) } else { row };
        let ranked_index = if summed { (b * dims.heads * dims.queries + i) as u64 } else { index as u64 };
        let moved: Vec<f64> = scores
            .row(ranked)
            .iter()
            .enumerate()
            .map(|(key, candidacy)| match candidacy {
                Candidacy::Scored(score) if score.radius.is_finite() => {
                    let word = words.word(ranked_index * dims.keys as u64 + key as u64);
                    let share = match word % 3 {
                        0 => -1.0,
                        1 => 1.0,
                        _ => (word >> 11) as f64 / (1u64 << 52) as f64 - 1.0,
                    };
                    score.value + share * score.radius
                }
                Candidacy::Scored(score) => score.value,
                _ => f64::NEG_INFINITY,
            })
            .collect();
        // Which keys are candidates follows from all heads.
        let excluded = |key: usize| {
            if summed {
                (0..dims.heads).any(|head| before.attends(b, head, i, key))
            } else {
                before.attends(b, head, i, key)
            }
        };
        mask.add(row, select_keys(&moved, excluded, heavy_size));
    }
    mask
}

/// A case and its certificate; `None` where it must be refused, as there is no mask to certify.
fn certify(plan: &Plan, model: RoundingModel) -> Option<(Case, Certificate)> {
    let case = plan.case().expect("plans make valid inputs");
    let certificate = Certificate::derive(&case.instance, &case.call, model).ok()?;
    Some((case, certificate))
}

fn certified(
    what: &'static str,
    fits: fn(&Certificate) -> bool,
) -> impl Strategy<Value = (Plan, RoundingModel)> {
    (plans(), models()).prop_filter(what, move |(plan, model)| {
        certify(plan, *model).is_some_and(|(_, certificate)| fits(&certificate))
    })
}

/// Of 4,000 plans, 87 are refused.
fn answered() -> impl Strategy<Value = (Plan, RoundingModel)> {
    certified("a case that is answered", |_| true)
}

/// Of 4,000 plans, 2,639.
fn scored() -> impl Strategy<Value = (Plan, RoundingModel)> {
    certified("a case whose keys are scored", |certificate| certificate.rows.is_some())
}

/// Of 4,000 plans, 1,274.
fn full() -> impl Strategy<Value = (Plan, RoundingModel)> {
    certified("a case whose mask is full", |certificate| certificate.rows.is_none())
}

proptest! {
    #![proptest_config(proptest_config(1500, REGRESSIONS))]

    #[test]
    fn scores_within_their_radii_never_diverge((plan, model) in scored(), seed: u64) {
        let (case, certificate) = certify(&plan, model).unwrap();
        let scores = ScoreBounds::new(&case.instance, &case.call, model, &certificate.before).unwrap().expect("keys are scored");
        let mask = perturbed_mask(&case, &scores, &certificate.before, Words::new(seed, 0));
        let verdict = judge_mask(&case.instance, &case.call, &certificate, &mask, model);
        prop_assert_eq!(verdict.wrong_rows, 0, "{}", verdict.divergences[0]);
    }

    /// Rows are certified in loops over keys where a head ranks alone by dot products, as they are key by key.
    #[test]
    fn certificates_are_those_of_scores_with_radii((plan, model) in scored()) {
        let (case, certificate) = certify(&plan, model).unwrap();
        let scores = ScoreBounds::new(&case.instance, &case.call, model, &certificate.before).unwrap().expect("keys are scored");
        let heavy_size = case.instance.selection.heavy_size.resolve(case.dims().keys);
        for (row, found) in case.dims().rows().zip(certificate.rows.iter().flatten()) {
            prop_assert_eq!(found, &certify_row(&scores.row(row), heavy_size), "{:?}", row);
        }
    }

    #[test]
    fn moving_one_certain_key_always_diverges((plan, model) in scored(), pick: prop::sample::Index) {
        let (case, certificate) = certify(&plan, model).unwrap();
        let Answer { mask, .. } = Reference::default().answer(&case).unwrap();
        let rows = certificate.rows.as_ref().expect("keys are scored");
        let certain: Vec<_> = case
            .dims()
            .rows()
            .zip(rows)
            .flat_map(|(row, certificate)| {
                certificate.classes.iter().enumerate().map(move |(key, &class)| (row, key, class))
            })
            .filter(|(_, _, class)| *class != Class::Open)
            .collect();
        prop_assume!(!certain.is_empty());
        let (row, key, class) = certain[pick.index(certain.len())];
        let mut moved = mask;
        match class {
            Class::Before | Class::In => moved.remove(row, key),
            Class::Excluded | Class::Out => moved.add(row, [key]),
            Class::Open => unreachable!("open keys were filtered out"),
        }
        let verdict = judge_mask(&case.instance, &case.call, &certificate, &moved, model);
        prop_assert!(verdict.wrong_rows >= 1, "{row:?} key {key} {class:?}");
    }

    /// A full mask has no key that may be missing.
    #[test]
    fn a_key_missing_from_a_full_mask_diverges((plan, model) in full(), pick: prop::sample::Index) {
        let (case, certificate) = certify(&plan, model).unwrap();
        let Answer { mut mask, .. } = Reference::default().answer(&case).unwrap();
        let dims = case.call.inputs.dims();
        let rows: Vec<_> = dims.rows().collect();
        mask.remove(rows[pick.index(rows.len())], pick.index(dims.keys));
        prop_assert_eq!(judge_mask(&case.instance, &case.call, &certificate, &mask, model).wrong_rows, 1);
    }

    /// A number moved by twice its bound is found wherever the bound says anything: what is right is off by at most once the
    /// bound, so that more than once is left.
    #[test]
    fn an_output_beyond_its_bound_diverges((plan, model) in answered(), pick: prop::sample::Index) {
        let case = plan.case().unwrap();
        let Answer { mask, output, .. } = Reference::default().answer(&case).unwrap();
        let mut output = output.expect("the reference gives outputs");
        let right = judge_output(&case.call.inputs, &mask, &output, model);
        prop_assert!(right.divergences.is_empty(), "{}", right.divergences[0]);
        let indices: Vec<_> = output.indexed_iter().map(|(index, _)| index).collect();
        let index @ (b, head, query, dim) = indices[pick.index(indices.len())];
        let radius = expected_row(&case.call.inputs, &mask, model, (b, head, query))[dim].radius;
        // The next number up, since the conversion to f32 may round down.
        let wrong = ((f64::from(output[index]) + 2.0 * radius) as f32).next_up();
        prop_assume!(wrong.is_finite());
        output[index] = wrong;
        prop_assert_eq!(judge_output(&case.call.inputs, &mask, &output, model).divergences.len(), 1);
    }
}

/// 3 heads over each of 2 KV heads, 1,100 keys, d = 72: no multiple of anything that is computed together.
fn long_case(storage: Storage, queries: usize, seed: u64) -> Case {
    let recipe = Recipe {
        generator: SPLITMIX_1.into(),
        seed,
        batch: 1,
        heads: 6,
        kv_heads: 2,
        queries,
        keys: 1100,
        head_dim: 72,
        rows: RecipeRows::PerHead,
    };
    let Generated { q, k, v, channels } = recipe.generate().unwrap();
    let parts = InputParts { q, k, v, attention_mask: None, causal: true, storage, scaling: Some(0.25) };
    let inputs = Inputs::new(parts).unwrap();
    let mut case = crate::support::small_case();
    // H is small beside n, as in the cases that are sampled before they are sorted.
    case.instance.selection = Selection::new(HeavySize::count(40).unwrap(), 8, 4).unwrap();
    let mut previous = Mask::empty(&inputs.dims());
    previous.add((0, 1, queries - 1), [3, 700]);
    case.call.previous = Some(previous);
    case.with_inputs(inputs).with_channels(channels)
}

/// Models with each of the ways in which a logit is derived.
fn attention_models() -> Vec<RoundingModel> {
    let (model, reference) = (RoundingModel::default(), RoundingModel::REFERENCE);
    let exp = [Exponent::Natural, Exponent::Prescaled, Exponent::Fast];
    let by_exp = exp.into_iter().flat_map(|exp| {
        let factors = [FactorOrder::After, FactorOrder::Before];
        factors.map(|factor| RoundingModel { exp, factor, ..model })
    });
    let tf32 = RoundingModel { attention_products: Products::Tf32, ..model };
    let f16 = RoundingModel { scores_kept: Precision::F16, ..model };
    by_exp.chain([reference, tf32, f16]).collect()
}

/// Long rows are certified and their outputs bounded from fewer numbers than short ones, to the same last bit: logits of keys
/// that nobody attends to are only estimated, and so are scores that cannot come near the H-th largest.
#[test]
fn long_rows_are_judged_as_short_ones() {
    let (mut compared, mut open, mut estimated) = (0, 0, 0);
    for (index, model) in attention_models().into_iter().enumerate() {
        for storage in Storage::ALL {
            let case = long_case(storage, 1 + index % 2, index as u64);
            let certificate = Certificate::derive(&case.instance, &case.call, model).unwrap();
            let bounds = ScoreBounds::new(&case.instance, &case.call, model, &certificate.before);
            let bounds = bounds.unwrap().unwrap();
            for (row, found) in case.dims().rows().zip(certificate.rows.iter().flatten()) {
                assert_eq!(found, &certify_row(&bounds.row(row), 40));
                open += found.open();
            }
            let scores = [bounds];
            for group in 0..2 {
                // Of one KV head; that of the whole call is made of these.
                let found = estimated::certificates(&case.instance, &case.call, &[model], &scores, group);
                let rows = case.dims().queries * 3;
                let expected = &certificate.rows.as_ref().unwrap()[group * rows..][..rows];
                assert_eq!(found.unwrap(), [expected], "{model} {storage}");
                estimated += rows;
            }
            let Answer { mask, output, .. } = Reference::default().answer(&case).unwrap();
            // Every number is wrong, so that each row shows one bound.
            let output = output.unwrap().mapv(|x| x + 1e4);
            let verdict = judge_output(&case.call.inputs, &mask, &output, model);
            for found in &verdict.divergences {
                let [b, head, query, dim] = found.index;
                let expected = expected_row(&case.call.inputs, &mask, model, (b, head, query))[dim];
                assert_eq!(
                    (found.expected, found.bound),
                    (expected.value, expected.radius),
                    "{model} {storage}"
                );
            }
            compared += verdict.divergences.len();
        }
    }
    // 6 or 12 rows of each case; in f16 and bf16 some bounds are wider than 1e4.
    assert!(compared >= 150 && open > 0, "{compared} rows, {open} open keys");
    assert_eq!(estimated, 234, "rows");
}

/// Nothing is estimated where a score may be infinite: every score is derived then.
#[test]
fn scores_that_may_overflow_are_not_estimated() {
    let mut case = long_case(Storage::F32, 2, 3);
    let mut parts = case.call.inputs.parts().clone();
    parts.q.fill(1e19);
    parts.k.slice_mut(ndarray::s![.., .., 500, ..]).fill(1e19);
    case = case.with_inputs(Inputs::new(parts).unwrap());
    let model = RoundingModel::default();
    let certificate = Certificate::derive(&case.instance, &case.call, model).unwrap();
    let bounds = ScoreBounds::new(&case.instance, &case.call, model, &certificate.before);
    let scores = [bounds.unwrap().unwrap()];
    assert_eq!(estimated::certificates(&case.instance, &case.call, &[model], &scores, 0), None);
    for (row, found) in case.dims().rows().zip(certificate.rows.unwrap()) {
        assert_eq!(found, certify_row(&scores[0].row(row), 40));
        assert_eq!(found.classes[500], Class::Open, "9 · 10³⁸ is beyond f32");
    }
}

/// A logit that may overflow, of a key that is not attended, leaves the maximum over all keys open, however long the row is.
#[test]
fn an_overflow_far_away_is_seen_in_long_rows() {
    let mut case = long_case(Storage::F16, 2, 3);
    let mut parts = case.call.inputs.parts().clone();
    parts.q.fill(60.0);
    parts.k.slice_mut(ndarray::s![.., .., 500, ..]).fill(60.0);
    parts.scaling = Some(1.0);
    case = case.with_inputs(Inputs::new(parts).unwrap());
    let mut mask = Mask::empty(&case.dims());
    case.dims().rows().for_each(|row| mask.add(row, [1, 2, 3]));
    let model = RoundingModel::default();
    let output = ndarray::Array4::from_elem(case.dims().output_shape(), 1e4);
    let verdict = judge_output(&case.call.inputs, &mask, &output, model);
    assert!(verdict.divergences.is_empty(), "72 · 60² is beyond f16");
    assert_eq!(expected_row(&case.call.inputs, &mask, model, (0, 0, 0))[0].radius, f64::INFINITY);
}

#[test]
fn a_divergence_shows_score_threshold_and_bound() {
    let case = crate::support::small_case();
    let certificate = Certificate::derive(&case.instance, &case.call, RoundingModel::REFERENCE).unwrap();
    let Answer { mask, .. } = Reference::default().answer(&case).unwrap();
    let (key, _) = mask.row((0, 1, 1)).next().unwrap();
    let mut moved = mask;
    moved.remove((0, 1, 1), key);
    let verdict = judge_mask(&case.instance, &case.call, &certificate, &moved, RoundingModel::REFERENCE);
    insta::assert_snapshot!(verdict.divergences[0].to_string());
}

/// SPEC §5: where a code lies within rounding of a half step, rounded labels allow both codes and exact labels one. Two keys
/// whose order depends on which code a half-way value takes are open in one model and decided in the other.
#[test]
fn both_codes_are_allowed_near_half_steps() {
    use doublecheck::algorithm::{ChannelOrder, GroupFactor, LabelBits};
    let mut case = crate::support::small_case();
    // Codes of two bits: in [0, 1.5, 3] the middle is half way between 1 and 2. The second key is 1.75 in that channel, which
    // no rounding moves from code 2.
    let k = vec![0.0, 1.5, 3.0, 0.0, 1.75, 3.0];
    let parts = InputParts {
        q: ndarray::Array4::from_shape_vec((1, 1, 1, 3), vec![0.0, 3.0, 0.0]).unwrap(),
        k: ndarray::Array4::from_shape_vec((1, 1, 2, 3), k).unwrap(),
        v: ndarray::Array4::ones((1, 1, 2, 1)),
        attention_mask: None,
        causal: false,
        storage: Storage::F32,
        scaling: None,
    };
    case.call.inputs = Inputs::new(parts).unwrap().into();
    case = case.with_channels(ChannelOrder::new(vec![vec![0, 1, 2]]).unwrap());
    case.instance.selection.group_factor = GroupFactor::new(1).unwrap();
    case.instance.selection.label_bits = LabelBits::new(2).unwrap();
    case.instance.selection.heavy_size = HeavySize::count(1).unwrap();
    let score = |labels| {
        let model = RoundingModel { labels, ..RoundingModel::REFERENCE };
        let before = case.before().unwrap();
        let scores = ScoreBounds::new(&case.instance, &case.call, model, &before).unwrap().unwrap();
        let Candidacy::Scored(score) = scores.row((0, 0, 0))[0] else { panic!("key 0 is a candidate") };
        score
    };
    // Half to even gives code 2: label 2, score 3 · 2 / √3.
    let exact = score(LabelRounding::Exact);
    assert!((exact.value - 6.0 / 3.0f64.sqrt()).abs() <= exact.radius && exact.radius < 1e-5);
    // Code 1 is allowed as well: label 1.
    let rounded = score(LabelRounding::Rounded);
    assert!(rounded.low() < 3.0 / 3.0f64.sqrt() + 1e-5 && rounded.high() > 6.0 / 3.0f64.sqrt() - 1e-5);
}

/// Each tensor of an answer with one more of each size in turn: it is refused as it is, alone and beside another answer, and nothing of
/// it is read. The right answer conforms.
#[test]
fn an_answer_of_another_shape_is_refused_whatever_it_holds() {
    let case = crate::support::small_case();
    let (instance, call) = (&case.instance, &case.call);
    let dims = call.inputs.dims();
    let mut right = Reference::default().answer(&case).unwrap();
    right.labels = Some(AnsweredLabels {
        q: Array4::zeros((dims.batch, dims.heads, dims.queries, 2)),
        k: Array4::zeros((dims.batch, dims.heads, dims.keys, 2)),
    });
    right.scores = Some(Array4::zeros(dims.mask_shape()));
    right.lse = Some(Array3::zeros((dims.batch, dims.heads, dims.queries)));
    let larger = |of: &Array4<f32>, axis: usize| {
        let mut shape = of.raw_dim();
        shape[axis] += 1;
        Array4::zeros(shape)
    };
    let mut wrong = Vec::new();
    for axis in 0..4 {
        let mut sizes = [dims.batch, dims.heads, dims.queries, dims.keys];
        sizes[axis] += 1;
        let [batch, heads, queries, keys] = sizes;
        // Heads over one KV head, and no fewer keys than queries.
        let other = Dims { batch, heads, kv_heads: 1, queries, keys: keys.max(queries), ..dims };
        wrong.push(("mask", axis, Answer { mask: Mask::empty(&other), ..right.clone() }));
        let output = right.output.as_ref().map(|output| larger(output, axis));
        wrong.push(("output", axis, Answer { output, ..right.clone() }));
        let scores = right.scores.as_ref().map(|scores| larger(scores, axis));
        wrong.push(("scores", axis, Answer { scores, ..right.clone() }));
        if axis < 3 {
            let mut shape = [dims.batch, dims.heads, dims.queries];
            shape[axis] += 1;
            wrong.push(("lse", axis, Answer { lse: Some(Array3::zeros(shape)), ..right.clone() }));
            let labels = right.labels.as_ref().unwrap();
            let q = AnsweredLabels { q: larger(&labels.q, axis), ..labels.clone() };
            wrong.push(("labels of q", axis, Answer { labels: Some(q), ..right.clone() }));
            let k = AnsweredLabels { k: larger(&labels.k, axis), ..labels.clone() };
            wrong.push(("labels of k", axis, Answer { labels: Some(k), ..right.clone() }));
        }
    }
    let model = RoundingModel::REFERENCE;
    let certificate = Certificate::derive(instance, call, model);
    let is_refused =
        |verdict: &Verdict| matches!(verdict, Verdict::Failed(said) if said.contains("another shape"));
    for (tensor, axis, answer) in wrong {
        let answer = Ok(answer);
        let verdict = judge(instance, call, &answer, model, &certificate);
        assert!(is_refused(&verdict), "{tensor}, axis {axis}: {verdict:?}");
        let both =
            judge_both(instance, call, [(&answer, model, &certificate), (&answer, model, &certificate)]);
        assert!(both.iter().all(is_refused), "{tensor}, axis {axis}: {both:?}");
    }
    let conforms = judge(instance, call, &Reference::default().answer(&case), model, &certificate);
    assert_eq!(conforms.kind(), None, "{conforms:?}");
}

/// Four heads over two KV heads, scores that all tie: each head alone may select any keys, but heads that share a selection must have
/// the same.
#[test]
fn heads_that_share_a_selection_must_have_the_same_keys() {
    let model = RoundingModel::default();
    for heads in HeadMode::EVERY {
        let plan = Plan { kv_heads: 2, group: 2, rows: ChannelRows::Shared, ..small_plan() };
        let mut case = plan.case().unwrap();
        case.instance.selection.heads = heads;
        let mut parts = case.call.inputs.parts().clone();
        parts.q.fill(0.0);
        let case = case.with_inputs(Inputs::new(parts).unwrap());
        let dims = case.dims();
        let certificate = Certificate::derive(&case.instance, &case.call, model).unwrap();
        let judged = |other: Option<usize>| {
            let mut mask = Mask::empty(&dims);
            for row @ (_, head, query) in dims.rows() {
                let keys = if other == Some(head) && query == 1 { [0, 2] } else { [0, 1] };
                mask.add(row, keys.to_vec());
            }
            judge_mask(&case.instance, &case.call, &certificate, &mask, model)
        };
        let sharing = heads.sharing(&dims);
        assert_eq!(judged(None).divergences, [], "{heads:?}");
        for other in 0..dims.heads {
            let first = other / sharing * sharing;
            // Where the first differs, all that share with it differ from it.
            let wrong = match sharing {
                1 => Vec::new(),
                _ if other == first => (first + 1..first + sharing).collect(),
                _ => vec![other],
            };
            let found = judged(Some(other));
            let fault = MaskFault::HeadsDiffer { key: 1, head: first };
            let told: Vec<_> = found.divergences.iter().map(|wrong| (wrong.row, wrong.fault)).collect();
            let expected: Vec<_> = wrong.into_iter().map(|head| ((0, head, 1), fault)).collect();
            assert_eq!((told, found.wrong_rows), (expected.clone(), expected.len()), "{heads:?} {other}");
        }
    }
}

/// Where every key must be attended: one that is missing, one that has another weight than before, and one that has another than 1.
#[test]
fn a_full_mask_is_full_and_keeps_the_weights_before() {
    let model = RoundingModel::default();
    let mut case = small_plan().case().unwrap();
    case.instance.dense_layers = vec![0].into_iter().collect();
    let dims = case.dims();
    let mut before = Array4::zeros(dims.mask_shape());
    before[[0, 1, 0, 3]] = 0.25;
    case.call.previous = Some(Mask::from_weights(before, &dims).unwrap());
    let certificate = Certificate::derive(&case.instance, &case.call, model).unwrap();
    assert!(certificate.rows.is_none());
    let mut full = Array4::ones(dims.mask_shape());
    full[[0, 1, 0, 3]] = 0.25;
    for (weight, expected) in [(0.25, None), (0.0, Some(0.25)), (1.0, Some(0.25))] {
        let mut weights = full.clone();
        weights[[0, 1, 0, 3]] = weight;
        let mask = Mask::from_weights(weights, &dims).unwrap();
        let found = judge_mask(&case.instance, &case.call, &certificate, &mask, model);
        let told = found.divergences.first().map(|wrong| (wrong.row, wrong.fault));
        let fault = |expected| MaskFault::NotFull { key: 3, found: weight, expected };
        assert_eq!(told, expected.map(|expected| ((0, 1, 0), fault(expected))), "{weight}");
        assert_eq!(found.wrong_rows, usize::from(expected.is_some()));
    }
    for weight in [0.0, 0.5] {
        let mut weights = full.clone();
        weights[[0, 0, 1, 5]] = weight;
        let mask = Mask::from_weights(weights, &dims).unwrap();
        let found = judge_mask(&case.instance, &case.call, &certificate, &mask, model);
        let fault = MaskFault::NotFull { key: 5, found: weight, expected: 1.0 };
        assert_eq!((found.divergences[0].row, found.divergences[0].fault), ((0, 0, 1), fault));
    }
}

//! Which scores a row may have, in cases small enough to work out by hand: what may be an infinity, what given labels carry, where products are
//! wider than the type, and which head a number belongs to. Then what follows from such scores: classes, thresholds and counts.

use doublecheck::algorithm::{
    ChannelOrder, Forced, HeadMode, HeavySize, InputParts, Inputs, Mask, QuantisedLabels, Ranks, ScoreFactor,
    ScoreRule, Selection, Storage,
};
use doublecheck::behaviours::{Behaviour, Earlier, ForcedKeys, Outcome, Prediction, predict};
use doublecheck::cases::recipe::{Generated, RecipeRows, SPLITMIX_1};
use doublecheck::cases::{AnsweredLabels, Case, FactorOrder, LabelRounding, Products, Recipe, RoundingModel};
use doublecheck::verdicts::Certificate;
use doublecheck::verdicts::bounds::Approximate;
use doublecheck::verdicts::certificate::{
    Candidacy, Class, RowCertificate, ScoreBounds, certify_row, thresholds,
};
use doublecheck::verdicts::scores::judge_scores;
use ndarray::{Array3, Array4};
use rstest::rstest;

use crate::support::small_case;

/// Labels are q and k themselves, a score is their product, and one key is selected.
fn case_of(q: Array4<f32>, k: Array4<f32>, storage: Storage) -> Case {
    let (batch, kv_heads, keys, head_dim) = k.dim();
    let v = Array4::ones((batch, kv_heads, keys, 1));
    let parts = InputParts { q, k, v, attention_mask: None, causal: false, storage, scaling: None };
    let channels = ChannelOrder::new(vec![(0..head_dim).collect()]).unwrap();
    let mut case = small_case().with_inputs(Inputs::new(parts).unwrap()).with_channels(channels);
    case.instance.selection = Selection::new(HeavySize::count(1).unwrap(), 1, 16).unwrap();
    case.instance.selection.rules.factor = ScoreFactor::ONE;
    case
}

/// One query of each head, one KV head, and one number for each of them and for each key.
fn row_of(q: &[f32], k: &[f32], storage: Storage) -> Case {
    let of = |numbers: &[f32], shape| Array4::from_shape_vec(shape, numbers.to_vec()).unwrap();
    case_of(of(q, (1, q.len(), 1, 1)), of(k, (1, 1, k.len(), 1)), storage)
}

fn certificate(case: &Case, model: RoundingModel) -> Vec<RowCertificate> {
    let certificate = Certificate::derive(&case.instance, &case.call, model).unwrap();
    certificate.rows.expect("keys are ranked")
}

fn scores(case: &Case, model: RoundingModel, head: usize) -> Vec<Approximate> {
    let before = case.before().unwrap();
    let bounds = ScoreBounds::new(&case.instance, &case.call, model, &before).unwrap().unwrap();
    bounds.ranked_by((0, head, 0))
}

fn prediction_of(case: &Case, behaviour: Behaviour) -> Box<Prediction> {
    match predict(behaviour, &case.sequence(), 0) {
        Outcome::Answered(prediction) => prediction,
        outcome => panic!("not answered: {outcome:?}"),
    }
}

/// In f16, where 65,504 is the largest number, a number of q that becomes +∞ may make any score: ±∞ times a key, or NaN times 0.
#[test]
fn a_query_that_may_overflow_decides_nothing() {
    let keys = [1.0 / 1024.0, 0.0, -1.0 / 1024.0];
    let mut with_factor = row_of(&[60000.0], &keys, Storage::F16);
    with_factor.instance.selection.rules.factor = ScoreFactor::number(2.0).unwrap();
    let mut weighted = row_of(&[60000.0], &keys, Storage::F16);
    let weights = weighted.channels().unwrap().clone().with_weights(vec![vec![2.0]]).unwrap();
    weighted = weighted.with_channels(weights);
    weighted.instance.selection.rules.channel_weights = true;
    let mut summed = row_of(&[60000.0; 2], &keys, Storage::F16);
    summed.instance.selection.heads = HeadMode::SummedLabels;
    let after = RoundingModel::PYTORCH;
    let before = RoundingModel { factor: FactorOrder::Before, ..after };
    for (what, mut case, model) in
        [("factor", with_factor, before), ("weight", weighted, after), ("sum", summed, after)]
    {
        let classes = &certificate(&case, model)[0].classes;
        assert_eq!(classes, &[Class::Open; 3], "{what}");
        // 30,000 does not.
        let parts = InputParts { q: &case.call.inputs.parts().q / 2.0, ..case.call.inputs.parts().clone() };
        case = case.with_inputs(Inputs::new(parts).unwrap());
        let classes = &certificate(&case, model)[0].classes;
        assert_eq!(classes, &[Class::In, Class::Out, Class::Out], "{what}");
    }
}

/// SPEC D12, §5: in f16 300 · 300 is +∞, which is NaN where A = −∞ is added, and may rank anywhere.
#[test]
fn a_later_key_that_may_be_nan_is_open() {
    for (last, class) in [(300.0, Class::Open), (200.0, Class::Excluded)] {
        let (q, k) = (Array4::from_elem((1, 1, 2, 1), 300.0), vec![1.0, 2.0, last]);
        let mut case = case_of(q, Array4::from_shape_vec((1, 1, 3, 1), k).unwrap(), Storage::F16);
        let parts = InputParts { causal: true, ..case.call.inputs.parts().clone() };
        case = case.with_inputs(Inputs::new(parts).unwrap());
        let found = &certificate(&case, RoundingModel::PYTORCH)[0];
        assert_eq!(found.classes[2], class, "the first of two queries ends at key 1");
        assert_eq!(found.classes[0], Class::Out);
    }
}

/// SPEC §2.8: in f16 −300 · 300 may be −∞, so that its key may be no candidate, though there is room for both.
#[test]
fn a_key_that_may_score_minus_infinity_may_be_left_out() {
    let mut case = row_of(&[-300.0], &[300.0, 1.0], Storage::F16);
    case.instance.selection.heavy_size = HeavySize::count(2).unwrap();
    let found = &certificate(&case, RoundingModel::PYTORCH)[0];
    assert_eq!(found.classes, [Class::Open, Class::In]);
    assert_eq!((found.fewest, found.most), (1, 2));
}

/// Ties are open: a key whose largest score is the smallest of another one may be selected in its place. To find such keys the second of
/// two channels is worth 2⁻²⁴ of the first, so that scores come in steps smaller than those of f64 at their ends.
#[test]
fn keys_whose_ends_touch_are_both_open() {
    let of = |labels: &[[f32; 2]]| {
        let q = Array4::from_shape_vec((1, 1, 1, 2), vec![1.0, 2f32.powi(-24)]).unwrap();
        let k = Array4::from_shape_vec((1, 1, labels.len(), 2), labels.concat()).unwrap();
        case_of(q, k, Storage::F32)
    };
    let larger: Vec<[f32; 2]> = (0..500u16).map(|step| [1.0 + f32::from(step) / 512.0, 0.0]).collect();
    let smaller = scores(&of(&larger), RoundingModel::F32, 0).into_iter().map(|score| {
        // The radius is a share of the score but for a subnormal.
        let meets = score.low() / (1.0 + score.radius / score.value);
        let rounded = meets as f32;
        let first = if f64::from(rounded) > meets { rounded.next_down() } else { rounded };
        [first, ((meets - f64::from(first)) * f64::from(1u32 << 24)) as f32]
    });
    let mut touching = 0;
    for (larger, smaller) in larger.iter().zip(smaller) {
        let case = of(&[*larger, smaller]);
        let ends = scores(&case, RoundingModel::F32, 0);
        let classes = &certificate(&case, RoundingModel::F32)[0].classes;
        let expected =
            if ends[0].low() > ends[1].high() { [Class::In, Class::Out] } else { [Class::Open; 2] };
        assert_eq!(*classes, expected, "{ends:?}");
        touching += usize::from(ends[0].low() == ends[1].high());
    }
    assert!(touching > 10, "{touching}");
}

fn given(q: &[f32], k: &[f32]) -> AnsweredLabels {
    let of = |numbers: &[f32]| Array4::from_shape_vec((1, 1, numbers.len(), 1), numbers.to_vec()).unwrap();
    AnsweredLabels { q: of(q), k: of(k) }
}

fn by_labels(case: &Case, model: RoundingModel, labels: &AnsweredLabels) -> Option<Vec<Approximate>> {
    let before = case.before().unwrap();
    let bounds = ScoreBounds::from_labels(&case.instance, &case.call, model, &before, labels).unwrap();
    bounds.map(|bounds| bounds.ranked_by((0, 0, 0)))
}

#[test]
fn labels_that_are_not_finite_or_too_many_say_nothing_of_scores() {
    let case = row_of(&[3.0], &[5.0, 7.0], Storage::F32);
    let says = |labels: &AnsweredLabels| by_labels(&case, RoundingModel::REFERENCE, labels).is_some();
    assert!(says(&given(&[3.0], &[5.0, 7.0])));
    for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        assert!(!says(&given(&[wrong], &[5.0, 7.0])), "{wrong}");
        assert!(!says(&given(&[3.0], &[5.0, wrong])), "{wrong}");
    }
    let two = AnsweredLabels { q: Array4::ones((1, 1, 1, 2)), k: Array4::ones((1, 1, 2, 2)) };
    assert!(!says(&two));
}

/// SPEC §5: in f16 and bf16 `rounded` labels may have been rounded to the type of q when they were given, any others are as they are. Of
/// 3 · 5 six roundings of f32 are left: of the sum, to the kept type, three of the factor, and to the kept type.
#[rstest]
#[case(LabelRounding::Exact, Storage::F32, 0.0)]
#[case(LabelRounding::Rounded, Storage::F32, 0.0)]
#[case(LabelRounding::Exact, Storage::F16, 0.0)]
#[case(LabelRounding::Exact, Storage::Bf16, 0.0)]
#[case(LabelRounding::Rounded, Storage::F16, 2f64.powi(-11))]
#[case(LabelRounding::Rounded, Storage::Bf16, 2f64.powi(-8))]
fn given_labels_are_off_by_one_rounding_at_most(
    #[case] labels: LabelRounding,
    #[case] storage: Storage,
    #[case] of_label: f64,
) {
    let case = row_of(&[1.0], &[1.0], storage);
    let model = RoundingModel { labels, ..RoundingModel::F32 };
    let found = by_labels(&case, model, &given(&[3.0], &[5.0])).unwrap()[0];
    let expected = 15.0 * ((1.0 + of_label).powi(2) - 1.0 + 6.0 * 2f64.powi(-24));
    assert_eq!(found.value, 15.0);
    assert!(found.radius >= 0.9999 * expected && found.radius <= 1.0001 * expected + 1e-10, "{found:?}");
}

/// 2⁻²⁵ is given in f16 as 0, to which it rounds; times 2¹⁵ it is 2⁻¹⁰.
#[test]
fn a_given_label_of_0_may_have_been_half_the_smallest_number() {
    let case = row_of(&[1.0], &[1.0], Storage::F16);
    let model = RoundingModel { labels: LabelRounding::Rounded, ..RoundingModel::F32 };
    for (q, k) in [(32768.0, 0.0), (0.0, 32768.0)] {
        let found = by_labels(&case, model, &given(&[q], &[k])).unwrap()[0];
        assert_eq!(found.value, 0.0);
        assert!((2f64.powi(-10)..2f64.powi(-10) * 1.001).contains(&found.radius), "{found:?}");
    }
}

/// SPEC §5: labels of f16 have no more bits than tf32, unless they were summed or multiplied by weights; then a product of two that are cut to
/// 11 bits is off by 2⁻⁹.
#[rstest]
#[case(HeadMode::PerHead, false, Storage::F16, false)]
#[case(HeadMode::SummedScores, false, Storage::F16, false)]
#[case(HeadMode::PerHead, true, Storage::F16, true)]
#[case(HeadMode::SummedLabels, false, Storage::F16, true)]
#[case(HeadMode::SummedLabels, true, Storage::F16, true)]
#[case(HeadMode::PerHead, false, Storage::F32, true)]
fn products_are_cut_where_labels_are_wider_than_tf32(
    #[case] heads: HeadMode,
    #[case] channel_weights: bool,
    #[case] storage: Storage,
    #[case] cut: bool,
) {
    let mut case = row_of(&[3.0], &[5.0], storage);
    case.instance.selection.heads = heads;
    case.instance.selection.rules.channel_weights = channel_weights;
    let model = RoundingModel { score_products: Products::Tf32, ..RoundingModel::F32 };
    let found = scores(&case, model, 0)[0].radius;
    let expected = if cut { 15.0 / 512.0 } else { 0.0 };
    assert!(found >= expected && found <= expected * 1.001 + 1e-4, "{found:e}");
}

/// q̂ · k̂ · weight, of 2 batch entries and 2 heads over one KV head.
#[test]
fn each_head_has_its_own_channel_weights_in_each_batch_entry() {
    let q = Array4::from_shape_vec((2, 2, 1, 1), vec![2.0, 3.0, 5.0, 7.0]).unwrap();
    let mut case = case_of(q, Array4::ones((2, 1, 1, 1)), Storage::F32);
    let rows = ChannelOrder::new(vec![vec![0], vec![0]]).unwrap();
    case = case.with_channels(rows.with_weights(vec![vec![11.0], vec![13.0]]).unwrap());
    case.instance.selection.rules.channel_weights = true;
    let before = case.before().unwrap();
    let model = RoundingModel::REFERENCE;
    let bounds = ScoreBounds::new(&case.instance, &case.call, model, &before).unwrap().unwrap();
    for (row, expected) in [((0, 0, 0), 22.0), ((0, 1, 0), 39.0), ((1, 0, 0), 55.0), ((1, 1, 0), 91.0)] {
        assert_eq!(bounds.ranked_by(row)[0].value, expected, "{row:?}");
    }
}

/// SPEC §2.12: under `summed-labels` the labels of each part of two are summed and scored once, with w and A, which all heads have: of q 1 to
/// 4 over one k, (1 + 2) · 2k and (3 + 4) · 2k, each times w = 1/2, then A = 8 for each part.
#[test]
fn labels_are_summed_within_ranks_and_scored_once_in_each() {
    let keys = [1.0, 3.0];
    let mut case = row_of(&[1.0, 2.0, 3.0, 4.0], &keys, Storage::F32);
    case.instance.selection.heads = HeadMode::SummedLabels;
    case.instance.selection.rules.score = ScoreRule::Relu;
    case.instance.selection.rules.ranks = Ranks::new(2, Storage::F32).unwrap();
    let parts = case.call.inputs.parts().clone();
    let parts = InputParts { attention_mask: Some(Array4::from_elem((1, 4, 1, 2), 8.0)), ..parts };
    let weights = Some(Array3::from_elem((1, 4, 1), 0.5));
    case = case.with_inputs(Inputs::new(parts).unwrap().with_head_weights(weights).unwrap());
    for head in 0..4 {
        let found = scores(&case, RoundingModel::REFERENCE, head);
        let expected = keys.map(|k| f64::from(k) * (3.0 + 7.0) * 2.0 / 2.0 + 2.0 * 8.0);
        assert_eq!([found[0].value, found[1].value], expected, "{head}");
    }
}

/// What is predicted of an implementation without a fault is what is asked of it: the same scores with the same radii, whatever is quantised,
/// weighted or summed.
#[rstest]
fn the_contract_predicts_the_scores_that_it_allows(
    #[values(LabelRounding::Exact, LabelRounding::Rounded)] labels: LabelRounding,
    #[values(Storage::F32, Storage::F16)] storage: Storage,
    #[values(Products::Exact, Products::Tf32)] score_products: Products,
) {
    let model = RoundingModel { labels, score_products, ..RoundingModel::default() };
    let mut settings = Vec::new();
    for heads in [HeadMode::PerHead, HeadMode::SummedLabels, HeadMode::GroupMax] {
        for quantised in [QuantisedLabels::Both, QuantisedLabels::Keys, QuantisedLabels::Queries] {
            settings.extend([2, 16].map(|bits| (heads, quantised, bits, None)));
            settings.push((heads, quantised, 4, Some(0.3)));
        }
    }
    for (heads, quantised, bits, weight) in settings {
        let mut case = small_case();
        let parts = InputParts { storage, ..case.call.inputs.parts().clone() };
        case = case.with_inputs(Inputs::new(parts).unwrap());
        let shared = ChannelOrder::new(vec![vec![2, 0]]).unwrap();
        let channels = match weight {
            Some(weight) => shared.with_weights(vec![vec![weight, 1.0]]).unwrap(),
            None => shared,
        };
        case = case.with_channels(channels);
        case.instance.selection = Selection::new(HeavySize::count(2).unwrap(), 2, bits).unwrap();
        case.instance.selection.heads = heads;
        case.instance.selection.rules.quantised = quantised;
        case.instance.selection.rules.channel_weights = weight.is_some();
        let prediction = prediction_of(&case, Behaviour::default());
        let predicted = ScoreBounds::predicted(&prediction, prediction.ranked.as_ref().unwrap(), model);
        let before = case.before().unwrap();
        let bounds = ScoreBounds::new(&case.instance, &case.call, model, &before).unwrap().unwrap();
        for row in case.dims().rows() {
            let what = format!("{heads:?}, {quantised:?}, {bits} bits, weight {weight:?}, {row:?}");
            assert_eq!(predicted.row(row), bounds.row(row), "{what}");
        }
    }
}

/// SPEC §2.12: forced keys must be candidates. Who selects them though A excludes them selects a key without a score, and the others by
/// theirs.
#[test]
fn a_forced_key_is_in_if_it_is_a_candidate() {
    // Keys 0 and 1 are forced; of A = −∞ at one of them.
    for excluded in [0, 1, 2] {
        let mut case = row_of(&[1.0], &[1.0, 2.0, 3.0, 4.0], Storage::F32);
        case.instance.selection.heavy_size = HeavySize::count(3).unwrap();
        case.instance.selection.rules.forced = Forced { first: 2, last: 0 };
        let mut mask = Array4::zeros((1, 1, 1, 4));
        mask[[0, 0, 0, excluded]] = f32::NEG_INFINITY;
        let parts = InputParts { attention_mask: Some(mask), ..case.call.inputs.parts().clone() };
        case = case.with_inputs(Inputs::new(parts).unwrap());
        let mut expected = [Class::In; 4];
        expected[excluded] = Class::Excluded;
        assert_eq!(certificate(&case, RoundingModel::REFERENCE)[0].classes, expected);
        let behaviour = Behaviour { forced: ForcedKeys::ThoughExcluded, ..Behaviour::default() };
        let prediction = prediction_of(&case, behaviour);
        let ranked = prediction.ranked.as_ref().unwrap();
        let found = ScoreBounds::predicted(&prediction, ranked, RoundingModel::REFERENCE).row((0, 0, 0));
        for (key, candidacy) in found.into_iter().enumerate() {
            let (is_forced, is_excluded) = (key < 2, key == excluded);
            let fits = match candidacy {
                Candidacy::Forced(score) if is_excluded => is_forced && score == Approximate::new(0.0, 0.0),
                Candidacy::Forced(score) => is_forced && score.value == key as f64 + 1.0,
                Candidacy::Scored(score) => !is_forced && !is_excluded && score.value == key as f64 + 1.0,
                Candidacy::Excluded => !is_forced && is_excluded,
                Candidacy::Before => false,
            };
            assert!(fits, "key {key} where {excluded} is excluded: {candidacy:?}");
        }
    }
}

/// SPEC §2.12: heads that share a selection share what is excluded by P, too; the head that attended before keeps it. Who ranks keys
/// attended before ranks them in all heads.
#[rstest]
#[case(HeadMode::PerHead, [Class::Before, Class::In])]
#[case(HeadMode::SummedScores, [Class::Before, Class::Excluded])]
fn a_key_attended_before_by_one_head_is_a_candidate_of_no_head_that_shares(
    #[case] heads: HeadMode,
    #[case] expected: [Class; 2],
) {
    let mut case = row_of(&[1.0, 1.0], &[3.0, 2.0, 1.0], Storage::F32);
    case.instance.selection.heads = heads;
    let mut previous = Mask::empty(&case.dims());
    previous.add((0, 0, 0), [0]);
    case.call.previous = Some(previous);
    let rows = certificate(&case, RoundingModel::REFERENCE);
    assert_eq!([rows[0].classes[0], rows[1].classes[0]], expected);
    let behaviour = Behaviour { earlier: Earlier::Candidates, ..Behaviour::default() };
    let prediction = prediction_of(&case, behaviour);
    let ranked = prediction.ranked.as_ref().unwrap();
    let found = ScoreBounds::predicted(&prediction, ranked, RoundingModel::REFERENCE);
    for head in 0..2 {
        let row = found.row((0, head, 0));
        assert!(row.iter().all(|key| matches!(key, Candidacy::Scored(_))), "head {head}: {row:?}");
    }
}

/// Scores that cannot come near the H-th largest are not derived. How near is near depends on the factor: what one rounding of a score is
/// worth in products is divided by it.
#[test]
fn long_rows_are_certified_as_short_ones_whatever_the_factor() {
    let recipe = Recipe {
        generator: SPLITMIX_1.into(),
        seed: 5,
        batch: 1,
        heads: 1,
        kv_heads: 1,
        queries: 2,
        keys: 1100,
        head_dim: 64,
        rows: RecipeRows::PerHead,
    };
    let Generated { q, k, v, channels } = recipe.generate().unwrap();
    let storage = Storage::Bf16;
    let parts = InputParts { q, k, v, attention_mask: None, causal: true, storage, scaling: None };
    let mut case = small_case().with_inputs(Inputs::new(parts).unwrap()).with_channels(channels);
    let mut open = 0;
    for factor in [1.0, 1.0 / 1024.0, 1024.0] {
        case.instance.selection = Selection::new(HeavySize::count(40).unwrap(), 8, 16).unwrap();
        case.instance.selection.rules.factor = ScoreFactor::number(factor).unwrap();
        let before = case.before().unwrap();
        let model = RoundingModel::PYTORCH;
        let bounds = ScoreBounds::new(&case.instance, &case.call, model, &before).unwrap().unwrap();
        for (row, found) in case.dims().rows().zip(certificate(&case, model)) {
            assert_eq!(found, certify_row(&bounds.row(row), 40), "factor {factor}");
            open += found.open();
        }
    }
    assert!(open > 10, "{open}");
}

/// Most of a long row is put aside by a sample of every 64th score. Here the sample holds the largest ones, and says too much.
#[test]
fn thresholds_are_those_of_sorted_scores_however_the_largest_lie() {
    let keys = 64 * 40;
    let score =
        |key: usize| if key.is_multiple_of(64) { (keys + key) as f64 } else { (key * 7 % keys) as f64 };
    let scores: Vec<f64> = (0..keys).map(score).collect();
    let row: Vec<Candidacy> =
        scores.iter().map(|&score| Candidacy::Scored(Approximate::new(score, 0.0))).collect();
    let mut falling = scores;
    falling.sort_by(|a, b| b.total_cmp(a));
    for heavy_size in (1..100).chain((100..=keys).step_by(47)) {
        let found = thresholds(&row, heavy_size);
        let above = falling.get(heavy_size).copied().unwrap_or(f64::NEG_INFINITY);
        assert_eq!((found.in_above, found.out_below), (above, falling[heavy_size - 1]), "H = {heavy_size}");
    }
}

/// 3 is in; of two keys that score 2 one is; 1 is out.
#[test]
fn keys_are_counted_by_what_becomes_of_them() {
    let scored = |score: f64| Candidacy::Scored(Approximate::new(score, 0.0));
    let keys = [
        Candidacy::Before,
        Candidacy::Before,
        Candidacy::Excluded,
        scored(3.0),
        scored(2.0),
        scored(2.0),
        scored(1.0),
    ];
    let [left_out, tied, room] = [2, 3, 4].map(|heavy_size| certify_row(&keys, heavy_size));
    let counts = |row: &RowCertificate| (row.open(), row.selects());
    assert_eq!(counts(&left_out), (2, true));
    assert_eq!(counts(&tied), (0, true));
    assert_eq!(counts(&room), (0, false));
    assert_eq!(counts(&certify_row(&[scored(2.0), scored(2.0), scored(2.0)], 1)), (3, true));
    let rows = vec![left_out.clone(), tied, room, left_out];
    let certificate =
        Certificate { before: Mask::empty(&small_case().dims()), rows: Some(rows), entries: vec![] };
    assert_eq!((certificate.open(), certificate.selecting()), (4, 3));
}

/// SPEC §2.12: where heads share a score, a key that one of them attends to already has none. Other groups rank it as ever, and a wrong score of
/// theirs is wrong.
#[rstest]
#[case(HeadMode::PerHead, [true, false])]
#[case(HeadMode::GroupSum, [true, false])]
#[case(HeadMode::GroupMean, [true, false])]
#[case(HeadMode::GroupMax, [true, false])]
#[case(HeadMode::SummedScores, [true, true])]
#[case(HeadMode::Max, [true, true])]
fn a_key_has_no_score_where_a_head_that_shares_it_attends_to_it(
    #[case] heads: HeadMode,
    #[case] without_score: [bool; 2],
) {
    let of =
        |keys: usize| Array4::from_shape_fn((1, 2, keys, 1), |(_, head, key, _)| (head + key + 1) as f32);
    let mut case = case_of(of(1), of(3), Storage::F32);
    case.instance.selection.heads = heads;
    let mut before = Mask::empty(&case.dims());
    before.add((0, 0, 0), [0]);
    case.call.previous = Some(before.clone());
    let model = RoundingModel::REFERENCE;
    let bounds = ScoreBounds::new(&case.instance, &case.call, model, &before).unwrap().unwrap();
    let right = Array4::from_shape_fn((1, 2, 1, 3), |(_, head, _, key)| {
        bounds.ranked_by((0, head, 0))[key].value as f32
    });
    assert_eq!(judge_scores(&case.instance, &case.call, &right, model, &before, None), None);
    for head in [0, 1] {
        let mut wrong = right.clone();
        wrong[[0, head, 0, 0]] = -55.0;
        let found = judge_scores(&case.instance, &case.call, &wrong, model, &before, None);
        let expected = (!without_score[head]).then_some([0, head, 0, 0]);
        assert_eq!(found.map(|divergence| divergence.index), expected, "head {head}");
    }
}

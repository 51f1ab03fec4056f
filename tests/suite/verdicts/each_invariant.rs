//! Each invariant sees what no other does: an implementation that goes wrong only where one of them asks is refused by that one
//! alone. What invariants have nothing to say about, and where they ask: within the range of the storage type, for other inputs
//! without the recipe of the first.

use std::sync::Arc;

use doublecheck::algorithm::attention::log_sum_exp;
use doublecheck::algorithm::labels::labels;
use doublecheck::algorithm::scores::Scores;
use doublecheck::algorithm::{
    ChannelOrder, Dims, GroupFactor, HeadMode, HeavySize, InputParts, Inputs, LabelBits, Mask, Storage,
};
use doublecheck::cases::recipe::{Recipe, RecipeRows, SPLITMIX_1};
use doublecheck::cases::strategies::{ChannelRows, Plan};
use doublecheck::cases::{Answer, AnsweredLabels, Case, NoAnswer, RoundingModel, rule_names};
use doublecheck::subjects::{Reference, Subject};
use doublecheck::verdicts::invariants::{Held, INVARIANTS, Implementation, Invariant};
use ndarray::{Array4, Axis, s};
use rstest::rstest;

use crate::support::small_plan;

const CONFORMS: &str = "answer conforms to its certificate and bound";
const TWICE: &str = "selecting H twice selects 2H";
const EQUAL_HEADS: &str = "summed modes: equal heads select as one";
const CAUSAL: &str = "causal equals A = −∞ after the query";
const LABELS: &str = "label order does not matter";
const BATCH: &str = "batch entries permute the result";
const KV_HEADS: &str = "KV-head groups permute the result";
const LARGER: &str = "raising H only adds keys";
const ORACLE: &str = "oracle equals r = d, B = 16";
const LOWER: &str = "lower-scored keys change nothing";
const DENSE: &str = "H = n equals dense attention";
const DOUBLED: &str = "doubling k keeps the selection";
const LENGTHS: &str = "entries of unequal lengths answer alone";

fn named(name: &str) -> &'static Invariant {
    INVARIANTS.iter().find(|invariant| invariant.name == name).unwrap()
}

fn check(
    invariant: &Invariant,
    case: &Case,
    answer: &mut dyn FnMut(&Case) -> Option<Result<Answer, NoAnswer>>,
) -> Result<Held, String> {
    invariant.check(case, &mut Implementation { model: RoundingModel::REFERENCE, answer })
}

/// 3 of 12 keys by 3 of 6 channels in codes of 4 bits, for 3 queries of 2 heads.
fn plan() -> Plan {
    let mut plan =
        Plan { queries: 3, keys: 12, label_channels: 3, rows: ChannelRows::Shared, ..small_plan() };
    plan.causal = false;
    plan.selection.heavy_size = HeavySize::count(3).unwrap();
    plan
}

fn case(change: impl FnOnce(&mut Plan)) -> Case {
    let mut plan = plan();
    change(&mut plan);
    plan.case().unwrap()
}

fn with_parts(case: &Case, change: impl FnOnce(&mut InputParts)) -> Case {
    let mut parts = case.call.inputs.parts().clone();
    change(&mut parts);
    case.with_inputs(Inputs::new(parts).unwrap())
}

/// The reference's answer with labels, scores and log-sum-exp where all entries have all keys.
fn right(case: &Case) -> Answer {
    let mut answer = Reference::default().answer(case).unwrap();
    let (inputs, dims, selection) = (&case.call.inputs, case.dims(), &case.instance.selection);
    if inputs.lengths().is_some() {
        return answer;
    }
    let channels = case.channels().unwrap();
    let r = selection.group_factor.label_channels(dims.head_dim).unwrap();
    let mut all = AnsweredLabels {
        q: Array4::zeros((dims.batch, dims.heads, dims.queries, r)),
        k: Array4::zeros((dims.batch, dims.heads, dims.keys, r)),
    };
    let mut scores = Array4::zeros(dims.mask_shape());
    for b in 0..dims.batch {
        let labels = labels(inputs, channels, r, selection.label_bits, (b, 0..dims.heads)).unwrap();
        let of_batch = Scores::new(inputs, b, &labels, channels, selection);
        for head in 0..dims.heads {
            all.q.slice_mut(s![b, head, .., ..]).assign(&labels.queries(head).t());
            all.k.slice_mut(s![b, head, .., ..]).assign(&labels.keys(head).t());
            for (i, key) in (0..dims.queries).flat_map(|i| (0..dims.keys).map(move |key| (i, key))) {
                scores[[b, head, i, key]] = of_batch.row(head, i)[key] as f32;
            }
        }
    }
    answer.lse = Some(log_sum_exp(inputs, &answer.mask).unwrap());
    (answer.labels, answer.scores) = (Some(all), Some(scores));
    answer
}

fn rightly(case: &Case) -> Option<Result<Answer, NoAnswer>> {
    Some(Ok(right(case)))
}

/// The keys that score lowest: the highest for −q.
fn lowest(case: &Case) -> Mask {
    let parts = InputParts { q: -&case.call.inputs.parts().q, ..case.call.inputs.parts().clone() };
    let mut changed = case.clone();
    let inputs = Inputs::new(parts).unwrap().with_lengths(case.call.inputs.lengths().cloned()).unwrap();
    changed.call.inputs = Arc::new(inputs);
    Reference::default().answer(&changed).unwrap().mask
}

/// How an implementation goes wrong.
#[derive(Clone, Copy)]
enum Fault {
    /// It selects the keys that score lowest.
    Lowest,
    /// So it does in the very first row.
    LowestFirst,
    /// Its output is twice as large.
    Output,
    /// Its log-sum-exp is one too large.
    Lse,
}

fn spoiled(case: &Case, fault: Fault) -> Answer {
    let mut answer = right(case);
    match fault {
        Fault::Lowest => answer.mask = lowest(case),
        Fault::LowestFirst => {
            let (row, wrong) = ((0, 0, 0), lowest(case));
            (0..case.dims().keys).for_each(|key| answer.mask.remove(row, key));
            answer.mask.add(row, wrong.row(row).map(|(key, _)| key));
        }
        Fault::Output => answer.output.as_mut().unwrap().mapv_inplace(|x| 2.0 * x),
        Fault::Lse => answer.lse.as_mut().unwrap().mapv_inplace(|x| x + 1.0),
    }
    answer
}

fn heavy_size(case: &Case) -> usize {
    case.instance.selection.heavy_size.resolve(case.dims().keys)
}

/// An implementation that goes wrong where one invariant asks.
struct One {
    invariant: &'static str,
    plan: fn(&mut Plan),
    /// Whether it goes wrong, by the case and what is asked about it.
    goes_wrong: fn(&Case, &Case) -> bool,
    fault: Fault,
}

fn one(
    invariant: &'static str,
    plan: fn(&mut Plan),
    goes_wrong: fn(&Case, &Case) -> bool,
    fault: Fault,
) -> One {
    One { invariant, plan, goes_wrong, fault }
}

/// The answers hold labels, scores and log-sum-exp too, those of the case asked: no invariant takes them for those of another, and who
/// is right is refused by none.
#[rstest]
#[case::the_case_itself(one(
    CONFORMS, |_| (), |case, asked| asked.call.inputs == case.call.inputs, Fault::Lse
))]
#[case::keys_before(one(TWICE, |_| (), |_, asked| asked.call.previous.is_some(), Fault::Lowest))]
#[case::equal_heads(one(
    EQUAL_HEADS,
    |plan| plan.selection.heads = HeadMode::SummedScores,
    |_, asked| {
        let q = &asked.call.inputs.parts().q;
        q.index_axis(Axis(1), 0) == q.index_axis(Axis(1), 1)
    },
    Fault::Lowest
))]
#[case::a_mask_in_the_place_of_causal(one(
    CAUSAL,
    |plan| plan.causal = true,
    |_, asked| {
        let parts = asked.call.inputs.parts();
        let mut mask = parts.attention_mask.iter().flatten();
        !parts.causal && mask.any(|&a| a == f32::NEG_INFINITY)
    },
    Fault::Lowest
))]
#[case::other_channels_of_the_same_kind(one(
    LABELS,
    |_| (),
    |case, asked| {
        let quantised = asked.instance.selection.label_bits.quantises();
        quantised && asked.channels().unwrap() != case.channels().unwrap()
    },
    Fault::Lowest
))]
#[case::the_last_entry_first(one(
    BATCH,
    |plan| plan.batch = 2,
    |case, asked| first_and_last(asked, Axis(0)).0 == first_and_last(case, Axis(0)).1,
    Fault::Lowest
))]
#[case::the_last_heads_first(one(
    KV_HEADS,
    |plan| (plan.kv_heads, plan.group) = (2, 1),
    |case, asked| first_and_last(asked, Axis(1)).0 == first_and_last(case, Axis(1)).1,
    Fault::Lowest
))]
#[case::one_key_more(one(
    LARGER, |_| (), |case, asked| heavy_size(asked) == heavy_size(case) + 1, Fault::Lowest
))]
#[case::all_channels(one(
    ORACLE, |_| (), |_, asked| !asked.instance.selection.label_bits.quantises(), Fault::Lowest
))]
#[case::longer_rows(one(
    LOWER,
    |plan| (plan.causal, plan.selection.heads) = (true, HeadMode::SummedScores),
    |case, asked| asked.dims().keys > case.dims().keys,
    Fault::LowestFirst
))]
#[case::every_key(one(DENSE, |_| (), |_, asked| heavy_size(asked) == asked.dims().keys, Fault::Output))]
#[case::every_key_of_summed_heads(one(
    DENSE,
    |plan| plan.selection.heads = HeadMode::SummedLabels,
    |_, asked| heavy_size(asked) == asked.dims().keys,
    Fault::Output
))]
#[case::keys_twice_as_large(one(
    DOUBLED,
    |_| (),
    |case, asked| asked.call.inputs.parts().k == 2.0 * &case.call.inputs.parts().k,
    Fault::Lowest
))]
#[case::an_entry_with_all_keys_but_one(one(
    LENGTHS, |plan| plan.batch = 3, |case, asked| holds_length(asked, case.dims().keys - 1), Fault::Lowest
))]
#[case::an_entry_with_half_of_the_keys(one(
    LENGTHS, |plan| plan.batch = 3, |case, asked| holds_length(asked, case.dims().keys / 2), Fault::Lowest
))]
fn who_goes_wrong_where_one_invariant_asks_is_refused_by_that_one_alone(#[case] one: One) {
    let case = case(one.plan);
    let answer = |asked: &Case| {
        if (one.goes_wrong)(&case, asked) { spoiled(asked, one.fault) } else { right(asked) }
    };
    for invariant in INVARIANTS {
        let outcome = check(invariant, &case, &mut |asked: &Case| Some(Ok(answer(asked))));
        assert_eq!(outcome.is_err(), invariant.name == one.invariant, "{}: {outcome:?}", invariant.name);
        let outcome = check(invariant, &case, &mut rightly);
        assert!(outcome.is_ok(), "{}: {outcome:?}", invariant.name);
    }
}

/// The queries of the first and of the last entry of an axis.
fn first_and_last(case: &Case, axis: Axis) -> (ndarray::ArrayView3<'_, f32>, ndarray::ArrayView3<'_, f32>) {
    let q = &case.call.inputs.parts().q;
    (q.index_axis(axis, 0), q.index_axis(axis, q.shape()[axis.0] - 1))
}

fn holds_length(case: &Case, length: usize) -> bool {
    case.call.inputs.lengths().is_some_and(|lengths| lengths.keys().contains(&length))
}

/// Half of the keys, none, all but one, by turns: the next entry, and the same entry of a case with one key more, gets the next of these.
#[rstest]
#[case(6, [3, 0, 5])]
#[case(7, [0, 6, 4])]
#[case(8, [7, 4, 0])]
fn entries_get_three_lengths_by_turns(#[case] keys: usize, #[case] lengths: [usize; 3]) {
    let case = case(|plan| (plan.batch, plan.keys) = (3, keys));
    let mut asked = Vec::new();
    let mut answer = |case: &Case| {
        asked = case.call.inputs.lengths().unwrap().keys().to_vec();
        Some(Ok(right(case)))
    };
    assert_eq!(check(named(LENGTHS), &case, &mut answer), Ok(Held::Yes));
    assert_eq!(asked, lengths);
}

/// Who takes no notice of what is asked and answers as before.
#[test]
fn an_answer_of_another_shape_is_refused_as_that() {
    let case = case(|_| ());
    let before = right(&case);
    let outcome = check(named(LOWER), &case, &mut |_: &Case| Some(Ok(before.clone())));
    assert!(outcome.as_ref().is_err_and(|said| said.contains("another shape")), "{outcome:?}");
}

/// A recipe makes the inputs of the case that holds it; who reads it must not be asked about other inputs beside it.
#[test]
fn no_other_inputs_are_asked_about_beside_a_recipe() {
    let Dims { batch, heads, kv_heads, queries, keys, head_dim, .. } = case(|_| ()).dims();
    let (generator, seed, rows) = (SPLITMIX_1.into(), 1, RecipeRows::Shared);
    let recipe = Recipe { generator, seed, batch, heads, kv_heads, queries, keys, head_dim, rows };
    let case = Case { recipe: Some(recipe), ..case(|_| ()) };
    for invariant in INVARIANTS {
        let mut answer = |asked: &Case| {
            let same = asked.call.inputs == case.call.inputs;
            assert!(same || asked.recipe.is_none(), "{}", invariant.name);
            Some(Ok(right(asked)))
        };
        check(invariant, &case, &mut answer).unwrap();
    }
}

/// By other rules than the published ones the relations need not hold; a certificate knows every rule.
#[test]
fn other_rules_are_judged_by_their_certificate_alone() {
    let mut case = case(|_| ());
    case.instance.selection.rules = rule_names::find("sglang-v1").unwrap();
    for invariant in INVARIANTS {
        let first = invariant.name == CONFORMS;
        let expected = if first { Held::Yes } else { Held::NotApplicable };
        assert_eq!(check(invariant, &case, &mut rightly), Ok(expected));
        let outcome = check(invariant, &case, &mut |asked: &Case| Some(Ok(spoiled(asked, Fault::Lowest))));
        assert_eq!(outcome.is_err(), first, "{}: {outcome:?}", invariant.name);
    }
}

/// The case with a finite A for all heads, or with one of −∞ in the second of them.
fn masked(per_head: bool, case: &Case) -> Case {
    let (_, h, _, n) = case.dims().mask_shape();
    let excluded = |head: usize, key: usize| head == 1 && key == 0;
    with_parts(case, |parts| {
        let heads = if per_head { h } else { 1 };
        parts.attention_mask = Some(Array4::from_shape_fn((1, heads, 1, n), |(_, head, _, key)| {
            if excluded(head, key) { f32::NEG_INFINITY } else { 0.5 }
        }));
    })
}

/// What an invariant does not apply to, beside what differs from it in one thing and to which it applies.
#[rstest]
#[case::heads_alone(EQUAL_HEADS, case(|_| ()), Held::NotApplicable)]
#[case::summed_scores(
    EQUAL_HEADS, case(|plan| plan.selection.heads = HeadMode::SummedScores), Held::Yes
)]
#[case::summed_labels(
    EQUAL_HEADS, case(|plan| plan.selection.heads = HeadMode::SummedLabels), Held::Yes
)]
#[case::summed_labels_and_a_mask(
    EQUAL_HEADS,
    masked(false, &case(|plan| plan.selection.heads = HeadMode::SummedLabels)),
    Held::NotApplicable
)]
#[case::not_causal(CAUSAL, case(|_| ()), Held::NotApplicable)]
#[case::causal_of_one_query(
    CAUSAL, case(|plan| (plan.causal, plan.queries) = (true, 1)), Held::NotApplicable
)]
#[case::causal_of_two_queries(CAUSAL, case(|plan| (plan.causal, plan.queries) = (true, 2)), Held::Yes)]
#[case::one_entry(BATCH, case(|plan| (plan.batch, plan.kv_heads) = (1, 2)), Held::NotApplicable)]
#[case::two_entries(BATCH, case(|plan| (plan.batch, plan.kv_heads) = (2, 1)), Held::Yes)]
#[case::one_kv_head(KV_HEADS, case(|plan| (plan.batch, plan.kv_heads) = (2, 1)), Held::NotApplicable)]
#[case::two_kv_heads(KV_HEADS, case(|plan| (plan.batch, plan.kv_heads) = (1, 2)), Held::Yes)]
#[case::as_many_keys_as_are_selected(LOWER, case(|plan| plan.keys = 3), Held::Yes)]
#[case::fewer_candidates_than_are_selected(
    LOWER,
    with_parts(&case(|plan| plan.keys = 3), |parts| {
        parts.attention_mask = Array4::from_shape_vec((1, 1, 1, 3), vec![f32::NEG_INFINITY, 0.0, 0.0]).ok();
    }),
    Held::NotApplicable
)]
#[case::masks_per_head(DENSE, masked(true, &case(|_| ())), Held::Yes)]
#[case::masks_per_head_of_summed_heads(
    DENSE,
    masked(true, &case(|plan| plan.selection.heads = HeadMode::SummedScores)),
    Held::NotApplicable
)]
#[case::one_mask_of_summed_heads(
    DENSE,
    masked(false, &case(|plan| plan.selection.heads = HeadMode::SummedScores)),
    Held::Yes
)]
#[case::keys_that_are_doubled_beside_a_mask(DOUBLED, masked(false, &case(|_| ())), Held::NotApplicable)]
fn an_invariant_says_nothing_about_cases_of_another_kind(
    #[case] name: &str,
    #[case] case: Case,
    #[case] held: Held,
) {
    assert_eq!(check(named(name), &case, &mut rightly), Ok(held));
}

/// In f16, whose largest number is 65504, with q and k the same in all places: no score of a head exceeds d · q · k, and the sum over the
/// heads h times that. Twice as large, and each label up to √2 further by rounding, it may be 4 · h · d · q · k.
#[rstest]
#[case::of_eight_heads(8, 16, 16.0, 12.0, Held::NotApplicable)]
#[case::of_large_queries(1, 8, 4096.0, 1.0, Held::NotApplicable)]
#[case::of_large_keys(1, 8, 1.0, 4096.0, Held::NotApplicable)]
#[case::the_largest_number_itself(1, 8, 2047.0, 1.0, Held::Yes)]
#[case::far_below(8, 16, 4.0, 4.0, Held::Yes)]
fn keys_are_doubled_where_no_score_can_leave_the_range(
    #[case] heads: usize,
    #[case] head_dim: usize,
    #[case] q: f32,
    #[case] k: f32,
    #[case] held: Held,
) {
    let case = case(|plan| {
        (plan.group, plan.label_channels, plan.storage) = (heads, head_dim / 2, Storage::F16);
    });
    let case = with_parts(&case, |parts| {
        parts.q.fill(q);
        parts.k.fill(k);
    });
    assert_eq!(case.dims().head_dim, head_dim);
    assert_eq!(check(named(DOUBLED), &case, &mut rightly), Ok(held));
}

/// In f16, whose largest number is 65504: copies of a key that scores 20000 are put below one that scores −5000, and there is room below
/// them. −5000 is the last of the four that are selected.
#[test]
fn keys_are_appended_below_all_others_by_half_of_the_range() {
    let mut case = case(|plan| {
        (plan.group, plan.queries, plan.keys, plan.label_channels) = (1, 1, 4, 1);
        plan.selection.group_factor = GroupFactor::new(1).unwrap();
        plan.selection.label_bits = LabelBits::UNQUANTISED;
        plan.selection.heavy_size = HeavySize::count(4).unwrap();
        plan.storage = Storage::F16;
    });
    case = with_parts(&case, |parts| {
        parts.q.fill(1.0);
        parts.k = Array4::from_shape_vec((1, 1, 4, 1), vec![20000.0, 30000.0, 10000.0, -5000.0]).unwrap();
    });
    case = case.with_channels(ChannelOrder::new(vec![vec![0]]).unwrap());
    assert_eq!(check(named(LOWER), &case, &mut rightly), Ok(Held::Yes));
}

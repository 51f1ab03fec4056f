//! Subjects that do one stage, and subjects that give scores and a log-sum-exp: right ones conform, wrong ones are caught with
//! the stage at fault, and the bound of a log-sum-exp holds for arithmetic that its model allows and for little more.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::time::Duration;

use doublecheck::algorithm::attention::{attention, log_sum_exp, logits};
use doublecheck::algorithm::labels::labels;
use doublecheck::algorithm::scores::Scores;
use doublecheck::algorithm::select::select;
use doublecheck::algorithm::{Dims, HeadMode, Mask, Row, Storage};
use doublecheck::cases::bundled;
use doublecheck::cases::stage_plan::{
    Attended as AttendedKeys, LargeStage, ScoreShape, scores_plan, selection_plan, stage_call, stage_call_of,
};
use doublecheck::cases::stages::ranks;
use doublecheck::cases::strategies::plans;
use doublecheck::cases::{
    Answer, AnsweredLabels, Attended, Call, Capabilities, Case, CaseFile, Domain, Feature, Given, Instance,
    LabelRounding, NoAnswer, Precision, Promise, Reader, RoundingModel, ScoresCall, SelectionCall, StageCall,
    Stages, Takes, stage_file,
};
use doublecheck::runner::verify::{VerifyOptions, verify};
use doublecheck::subjects::{Reference, Subject};
use doublecheck::verdicts::invariants::INVARIANTS;
use doublecheck::verdicts::judge::{MaskDivergence, MaskFault, judge_call};
use doublecheck::verdicts::lse::{expected_lse, judge_lse};
use doublecheck::verdicts::topk::{explain, judge_selection, judge_top_k};
use doublecheck::{Options, Report, check};
use half::f16;
use ndarray::{Array3, Array4};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::support::small_case;

fn of_stages(takes: Takes, gives: &[Given]) -> Capabilities {
    Capabilities { stages: Stages::new(takes, Some(gives)).unwrap(), ..Capabilities::default() }
}

/// No cause is looked for.
fn options(cases: usize) -> Options {
    Options { cases, naming: Duration::ZERO, ..Options::default() }
}

/// A top-k that selects by a function of one row and H.
struct TopK(fn(&[f32], usize) -> Vec<usize>);

impl Subject for TopK {
    fn name(&self) -> String {
        "a top-k".into()
    }

    fn capabilities(&self) -> Capabilities {
        of_stages(Takes::Scores, &[Given::Selected])
    }

    fn select(&mut self, call: &ScoresCall) -> Result<Mask, NoAnswer> {
        let dims = call.dims();
        let mut mask = Mask::empty(&dims);
        for row @ (b, head, i) in dims.rows() {
            let scores = call.scores().slice(ndarray::s![b, head, i, ..]).to_vec();
            mask.add(row, (self.0)(&scores, call.heavy_size().get()));
        }
        Ok(mask)
    }
}

/// The H first candidates in falling order of a key.
fn by<K: PartialOrd>(scores: &[f32], heavy_size: usize, key: impl Fn(f32) -> K) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).filter(|&at| scores[at] > f32::NEG_INFINITY).collect();
    order.sort_by(|&a, &b| key(scores[b]).partial_cmp(&key(scores[a])).unwrap());
    order.truncate(heavy_size);
    order
}

fn right(scores: &[f32], heavy_size: usize) -> Vec<usize> {
    by(scores, heavy_size, |score| score)
}

#[test]
fn a_right_top_k_conforms_whichever_tie_it_breaks() {
    // 0 and −0 are a tie, so that one may be preferred to the other.
    let positive_zero_first = |scores: &[f32], heavy_size: usize| {
        by(scores, heavy_size, |score| (score, !score.is_sign_negative()))
    };
    for subject in [right as fn(&[f32], usize) -> Vec<usize>, highest_of_ties, positive_zero_first] {
        let report = check(&mut TopK(subject), &options(2000));
        assert!(report.conforms(), "{report}");
        assert_eq!((report.sequences, report.answered, report.conforming), (2000, 2000, 2000));
        assert!(report.left_out.contains_key("inputs") && report.sharpness.rows > 4000);
    }
}

fn finding_of(report: &Report, kinds: &[&str], stage: &str) {
    let finding = report.findings.first().unwrap_or_else(|| panic!("nothing found: {report}"));
    assert!(kinds.contains(&finding.kind) && finding.stage == Some(stage), "{report}");
    assert!(finding.shrunk, "{report}");
    assert!(report.to_string().contains(&format!("stage: {stage}")), "{report}");
    let json = serde_json::to_value(report).unwrap();
    assert_eq!(json["findings"][0]["stage"], stage);
}

#[test]
fn wrong_top_ks_are_caught_with_the_stage() {
    // Keys that tie with the H-th are forgotten.
    let loses_ties = |scores: &[f32], heavy_size: usize| {
        let chosen = right(scores, heavy_size);
        let lowest = chosen.iter().map(|&at| scores[at]).fold(f32::INFINITY, f32::min);
        let ties = scores.iter().filter(|&&score| score == lowest).count();
        let held = chosen.iter().filter(|&&at| scores[at] == lowest).count();
        chosen.into_iter().filter(|&at| scores[at] != lowest || ties == held).collect()
    };
    // The bits as a signed number: −0 is the least of all.
    let by_bits = |scores: &[f32], heavy_size: usize| {
        by(scores, heavy_size, |score| {
            let bits = score.to_bits().cast_signed();
            if bits < 0 && score != 0.0 { bits ^ i32::MAX } else { bits }
        })
    };
    let coarse =
        |scores: &[f32], heavy_size: usize| by(scores, heavy_size, |score| f16::from_f32(score).to_f32());
    let excluded_too = |scores: &[f32], heavy_size: usize| {
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|&a, &b| scores[b].partial_cmp(&scores[a]).unwrap());
        order.truncate(heavy_size);
        order
    };
    let flushes = |scores: &[f32], heavy_size: usize| {
        by(scores, heavy_size, |score| if score.is_normal() { score } else { 0.0 })
    };
    let (keys, count) = ("wrong keys", "wrong number of keys");
    for (subject, kind, most_keys) in [
        (loses_ties as fn(&[f32], usize) -> Vec<usize>, count, 2),
        (by_bits, keys, 2),
        (coarse, keys, 2),
        (excluded_too, "selected a key that is no candidate", 1),
        (flushes, keys, 2),
    ] {
        let report = check(&mut TopK(subject), &options(1000));
        finding_of(&report, &[kind], "selection");
        let size = report.findings[0].size;
        assert_eq!((size.batch, size.heads, size.queries), (1, 1, 1), "{report}");
        assert!(size.keys <= most_keys, "{report}");
    }
}

/// Sparse attention in f64, with a fault or none.
/// A right top-k that promises something: of tied keys it takes the highest where `highest` says so of a question and of how many
/// were asked before, and it lists keys from the last to the first where `descending`.
struct Promising {
    promises: BTreeSet<Promise>,
    highest: fn(&ScoresCall, usize) -> bool,
    descending: bool,
    asked: usize,
    listed: Option<Array4<i32>>,
}

impl Subject for Promising {
    fn name(&self) -> String {
        "a top-k that promises".into()
    }

    fn capabilities(&self) -> Capabilities {
        let stages = of_stages(Takes::Scores, &[Given::Selected]);
        Capabilities { promises: Some(self.promises.clone()), ..stages }
    }

    fn select(&mut self, call: &ScoresCall) -> Result<Mask, NoAnswer> {
        let highest = (self.highest)(call, self.asked);
        self.asked += 1;
        let select: fn(&[f32], usize) -> Vec<usize> = if highest { highest_of_ties } else { right };
        let mask = TopK(select).select(call)?;
        let (b, h, m, n) = call.dims().mask_shape();
        self.listed = Some(Array4::from_shape_fn((b, h, m, n), |(b, head, i, place)| {
            let mut keys: Vec<usize> = mask.row((b, head, i)).map(|(key, _)| key).collect();
            if self.descending {
                keys.reverse();
            }
            keys.get(place).map_or(-1, |&key| key as i32)
        }));
        Ok(mask)
    }

    fn selected(&self) -> Option<&Array4<i32>> {
        self.listed.as_ref()
    }
}

#[test]
fn what_a_top_k_promises_is_held_against_its_answers() {
    let promising = |promises: &[Promise], highest, descending| Promising {
        promises: promises.iter().copied().collect(),
        highest,
        descending,
        asked: 0,
        listed: None,
    };
    let all = [
        Promise::TiesLowest,
        Promise::Repeatable,
        Promise::BatchInvariant,
        Promise::SliceInvariant,
        Promise::Ascending,
        Promise::Padded,
    ];
    let report = check(&mut promising(&all, |_, _| false, false), &options(400));
    assert!(report.conforms(), "{report}");
    for promise in all {
        let kept = report.promises[promise.name()];
        assert!(kept.promised && kept.of > 50 && kept.held == kept.of, "{promise:?}: {kept:?}");
    }
    let highest = report.promises[Promise::TiesHighest.name()];
    assert!(!highest.promised && highest.of > 10 && highest.held < highest.of, "{highest:?}");

    type Highest = fn(&ScoresCall, usize) -> bool;
    let broken: [(Promise, Highest, bool); 6] = [
        (Promise::TiesLowest, |_, _| true, false),
        (Promise::TiesHighest, |_, _| false, false),
        (Promise::Repeatable, |_, asked| asked % 2 == 1, false),
        (Promise::BatchInvariant, |call, _| call.dims().batch > 1, false),
        (Promise::SliceInvariant, |call, _| call.dims().queries > 1, false),
        (Promise::Ascending, |_, _| false, true),
    ];
    for (promise, highest, descending) in broken {
        let report = check(&mut promising(&[promise], highest, descending), &options(400));
        let [finding] = &report.findings[..] else { panic!("{promise:?}: {report}") };
        let sentence =
            format!("Broken promise: {} is promised, and these answers do not keep it.", promise.name());
        assert_eq!((finding.sentence.clone(), finding.kind), (sentence, "broken promise"), "{report}");
        assert_eq!(finding.size.keys, 2, "{report}");
        // Nothing is wrong with it where it promises nothing.
        let report = check(&mut promising(&[], highest, descending), &options(400));
        assert!(report.conforms(), "{promise:?}: {report}");
    }
}

/// Of equal scores the highest positions.
fn highest_of_ties(scores: &[f32], heavy_size: usize) -> Vec<usize> {
    let reversed: Vec<f32> = scores.iter().rev().copied().collect();
    right(&reversed, heavy_size).into_iter().map(|at| scores.len() - 1 - at).collect()
}

struct Attention(Fault);

#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    IgnoresScaling,
    PaddingIsLastKey,
    LseToBaseTwo,
    LseWithoutMaximum,
    NanInEmptyRows,
    HalfRowUnwritten,
    HalvesAveraged,
}

impl Subject for Attention {
    fn name(&self) -> String {
        "a sparse attention".into()
    }

    fn rounding_model(&self) -> RoundingModel {
        RoundingModel::REFERENCE
    }

    fn capabilities(&self) -> Capabilities {
        of_stages(Takes::Selection, &[Given::Output, Given::Lse])
    }

    fn attend(&mut self, call: &SelectionCall) -> Result<Attended, NoAnswer> {
        let (mut inputs, mut mask) = (call.inputs.as_ref().clone(), call.mask.clone());
        match self.0 {
            Fault::IgnoresScaling => {
                let mut parts = inputs.parts().clone();
                parts.scaling = Some(1.0);
                inputs = doublecheck::algorithm::Inputs::new(parts)?;
            }
            Fault::PaddingIsLastKey => {
                for ((b, head, i, _), _) in call.selected().indexed_iter().filter(|(_, key)| **key < 0) {
                    mask.add((b, head, i), [inputs.dims().keys - 1]);
                }
            }
            _ => {}
        }
        let mut output = attention(&inputs, &mask)?;
        let mut lse = log_sum_exp(&inputs, &mask)?;
        match self.0 {
            Fault::LseToBaseTwo => lse.mapv_inplace(|x| x * std::f32::consts::LOG2_E),
            Fault::LseWithoutMaximum => {
                for row @ (b, head, i) in inputs.dims().rows() {
                    let keys = mask.row(row).map(|(key, _)| key);
                    lse[[b, head, i]] -= logits(&inputs, row, keys).into_iter().fold(0.0, f64::max) as f32;
                }
            }
            Fault::HalfRowUnwritten => {
                let written = inputs.dims().value_dim.div_ceil(2);
                output.slice_mut(ndarray::s![.., .., .., written..]).fill(7.25);
            }
            Fault::HalvesAveraged => {
                let mut halves = [Mask::empty(&inputs.dims()), Mask::empty(&inputs.dims())];
                for row in inputs.dims().rows() {
                    let keys: Vec<usize> = mask.row(row).map(|(key, _)| key).collect();
                    let (first, second) = keys.split_at(keys.len().div_ceil(2));
                    let second = if second.is_empty() { first } else { second };
                    halves[0].add(row, first.iter().copied());
                    halves[1].add(row, second.iter().copied());
                }
                output = (attention(&inputs, &halves[0])? + attention(&inputs, &halves[1])?) / 2.0;
            }
            Fault::NanInEmptyRows => {
                for row @ (b, head, i) in inputs.dims().rows().filter(|row| mask.row(*row).next().is_none()) {
                    assert_eq!(row, (b, head, i));
                    output.slice_mut(ndarray::s![b, head, i, ..]).fill(f32::NAN);
                }
            }
            _ => {}
        }
        Ok(Attended { output: Some(output), lse: Some(lse) })
    }
}

#[test]
fn a_right_attention_conforms_and_wrong_ones_are_caught_with_the_stage() {
    let report = check(&mut Attention(Fault::None), &options(1000));
    assert!(report.conforms(), "{report}");
    assert_eq!((report.outputs, report.stages.as_ref().unwrap().lse), (1000, 1000));
    for (fault, kind) in [
        (Fault::IgnoresScaling, &["output out of bounds", "lse out of bounds"][..]),
        (Fault::PaddingIsLastKey, &["output out of bounds", "lse out of bounds"]),
        (Fault::LseToBaseTwo, &["lse out of bounds"]),
        (Fault::LseWithoutMaximum, &["lse out of bounds"]),
        (Fault::NanInEmptyRows, &["output out of bounds"]),
    ] {
        let report = check(&mut Attention(fault), &options(500));
        finding_of(&report, kind, "attention");
        let size = report.findings[0].size;
        assert!(size.keys <= 2 && size.head_dim <= 2 && size.heads <= 2, "{report}");
    }
}

/// Checks a stage, and looks for the cause.
fn told_of(subject: &mut dyn Subject) -> Report {
    let shrinking = doublecheck::Limits { tries: 200, ..Default::default() };
    check(subject, &Options { cases: 150, shrinking, ..Options::default() })
}

fn tells(report: &Report, words: &str) {
    let sentences: Vec<_> = report.findings.iter().map(|finding| &finding.sentence).collect();
    assert!(sentences.len() == 1 && report.explained, "{words}: {sentences:?}");
    let relation = report.findings[0].relation.as_ref().and_then(|told| told.relation.as_ref());
    assert!(relation.is_some_and(|relation| relation.contains(words)), "{words}: {sentences:?}");
}

/// What is wrong with a top-k is told as it is of whole layers, by a relation that gives every answer.
#[test]
fn a_relation_is_told_of_a_top_k() {
    let tile = |scores: &[f32], heavy_size: usize| {
        let whole = if scores.len() < 8 { scores.len() } else { scores.len() / 8 * 8 };
        right(&scores[..whole], heavy_size)
    };
    let wrapped = |scores: &[f32], heavy_size: usize| {
        right(scores, heavy_size).into_iter().map(|key| key % 64).collect()
    };
    let pads = |scores: &[f32], heavy_size: usize| {
        let mut chosen = right(scores, heavy_size);
        if chosen.len() < heavy_size.min(scores.len()) {
            chosen.push(scores.len() - 1);
        }
        chosen
    };
    let unsigned =
        |scores: &[f32], heavy_size: usize| by(scores, heavy_size, |score| (score + 0.0).to_bits());
    let signed = |scores: &[f32], heavy_size: usize| {
        by(scores, heavy_size, |score| (score + 0.0).to_bits().cast_signed())
    };
    type Select = fn(&[f32], usize) -> Vec<usize>;
    let cases: [(Select, &str); 5] = [
        (tile, "keys from position 8 · ⌊n / 8⌋ on are never selected"),
        (wrapped, "selected positions are taken modulo 64"),
        (pads, "selects the last key as well"),
        (unsigned, "negative ones rank above all others"),
        (signed, "of negative scores the lowest ranks first"),
    ];
    for (subject, words) in cases {
        tells(&told_of(&mut TopK(subject)), words);
    }
    // One row in three loses its last key, by a hash of its scores.
    let at_random = |scores: &[f32], heavy_size: usize| {
        let mut chosen = right(scores, heavy_size);
        let hash = scores.iter().fold(0u32, |hash, score| hash.rotate_left(5) ^ score.to_bits());
        if hash.wrapping_mul(0x9E37_79B9) >> 16 & 3 == 0 {
            chosen.pop();
        }
        chosen
    };
    let report = told_of(&mut TopK(at_random));
    for finding in &report.findings {
        assert!(finding.sentence.starts_with("The selection itself is wrong"), "{report}");
        assert!(finding.sentence.contains("Unknown: none of "), "{report}");
        assert!(finding.relation.as_ref().is_some_and(|told| told.relation.is_none() && told.tried > 100));
    }
    assert!(!report.findings.is_empty() && !report.explained, "{report}");
}

#[test]
fn a_relation_is_told_of_an_attention() {
    for (fault, words) in [
        (Fault::IgnoresScaling, "the attention is not scaled"),
        (Fault::PaddingIsLastKey, "a row that −1 fills up attends to the last key as well"),
        (Fault::LseToBaseTwo, "the log-sum-exp is to base 2"),
        (Fault::NanInEmptyRows, "attend to nothing"),
        (
            Fault::HalfRowUnwritten,
            "of each output row only the first ⌈dv / 2⌉ numbers are those of the attention",
        ),
        (Fault::HalvesAveraged, "the second half of the attended keys of a row are averaged"),
    ] {
        let report = told_of(&mut Attention(fault));
        tells(&report, words);
        assert_eq!(report.findings[0].stage, Some("attention"));
    }
    let report = told_of(&mut Attention(Fault::LseWithoutMaximum));
    assert!(report.findings.iter().all(|finding| finding.sentence.contains("Unknown: none of ")), "{report}");
    assert!(!report.findings.is_empty());
}

/// What was asked must have been asked often enough to mean something.
#[test]
fn random_questions_hold_what_they_should() {
    let everything = of_stages(Takes::Scores, &[Given::Selected]);
    let (mut shapes, mut ties, mut largest, mut types) = (BTreeMap::new(), 0, 0, BTreeSet::new());
    for seed in 0..4000 {
        let plan = scores_plan(&everything, seed);
        let Some(StageCall::Scores(call)) = stage_call(&everything, seed) else { panic!("seed {seed}") };
        *shapes.entry(plan.scores).or_insert(0) += 1;
        types.insert(plan.storage);
        largest = largest.max(plan.shape[3]);
        let mask = Reference::default().select(&call).unwrap();
        ties += usize::from(judge_top_k(&call, &mask).open > 0);
    }
    assert_eq!(shapes.len(), ScoreShape::ALL.len());
    assert!(shapes.values().all(|&count| count > 200), "{shapes:?}");
    assert!(ties > 1000 && types.len() == 3 && (200..=301).contains(&largest), "{ties} {largest}");

    let everything = of_stages(Takes::Selection, &[Given::Output]);
    let (mut kinds, mut padded, mut empty, mut grouped) = (BTreeMap::new(), 0, 0, 0);
    for seed in 0..2000 {
        *kinds.entry(selection_plan(&everything, seed).attended).or_insert(0) += 1;
        let Some(StageCall::Selection(call)) = stage_call(&everything, seed) else { panic!("seed {seed}") };
        padded += usize::from(call.selected().iter().any(|&key| key < 0));
        empty += usize::from(StageCall::Selection(call.clone()).has_empty_row());
        grouped += usize::from(call.inputs.dims().group_size() > 1);
    }
    assert_eq!(kinds.len(), AttendedKeys::ALL.len());
    assert!(padded > 400 && empty > 100 && grouped > 400, "{padded} {empty} {grouped}");
}

/// The sizes of large questions: those of the stages of a check.
const LARGE: [(usize, usize); 7] = [
    (41, 256),
    (257, 1024),
    (1025, 4096),
    (4097, 16_384),
    (16_385, 65_536),
    (65_537, 131_072),
    (131_073, 1_048_576),
];

/// The bits of a score in its type, and how many there are.
fn bits(score: f32, storage: Storage) -> (u32, u32) {
    match storage {
        Storage::F32 => (score.to_bits(), 32),
        Storage::Bf16 => (score.to_bits() >> 16, 16),
        Storage::F16 => (u32::from(f16::from_f32(score).to_bits()), 16),
    }
}

/// How many high bits all scores of a row share.
fn shared_bits(row: &[f32], storage: Storage) -> u32 {
    let (first, width) = bits(row[0], storage);
    let differ = row.iter().fold(0, |differ, &score| differ | (first ^ bits(score, storage).0));
    width - (32 - differ.leading_zeros())
}

/// At every size each kind of scores has its turn and is what it is called; edges of tiles and of H occur.
#[test]
fn large_scores_are_what_they_are_called() {
    let capabilities = of_stages(Takes::Scores, &[Given::Selected]);
    let mut edges = BTreeMap::new();
    for (least, most) in LARGE {
        let mut kinds: BTreeSet<&str> = BTreeSet::new();
        for turn in 0..2 * ScoreShape::LARGE.len() {
            let seed = (least + 1000 * turn) as u64;
            let large = LargeStage { least, most, turn };
            let Some(StageCall::Scores(call)) = stage_call_of(&capabilities, seed, seed, Some(large)) else {
                continue;
            };
            let (n, heavy) = (call.dims().keys, call.heavy_size().get());
            assert!((least..=most).contains(&n));
            for (edge, is_there) in [
                ("n = 64 t", n % 64 == 0),
                ("n = 64 t + 1", n % 64 == 1),
                ("n = 64 t - 1", n % 64 == 63),
                ("H = 1", heavy == 1),
                ("H a power of two", heavy.is_power_of_two()),
                ("H about n", heavy + 1 >= n),
                ("H between", heavy > 1 && heavy + 1 < n),
            ] {
                *edges.entry(edge).or_insert(0) += usize::from(is_there);
            }
            let kind = large.scores(&capabilities);
            let row: Vec<f32> = call.scores().iter().copied().take(n).collect();
            let finite: Vec<f32> = row.iter().copied().filter(|score| score.is_finite()).collect();
            let distinct: BTreeSet<u32> = finite.iter().map(|score| (score + 0.0).to_bits()).collect();
            let largest = finite.iter().copied().fold(f32::MIN, f32::max);
            let above_one: Vec<usize> = (0..n).filter(|&key| row[key] >= 1.0).collect();
            // Others may have been rounded to 1.
            let winners = row.iter().filter(|&&score| score > 1.0).count();
            use doublecheck::cases::large_plan::Scores as Placed;
            let holds = match kind {
                ScoreShape::Crowded => shared_bits(&row, call.storage()) >= 8 && distinct.len() > 1,
                ScoreShape::BinEdge => row.iter().any(|&x| x < 2.0) && row.iter().any(|&x| x >= 2.0),
                ScoreShape::ExcludedTiles => [16, 32, 64, 128, 256, 1024, 4096].iter().any(|&tile| {
                    let excluded = |tile: &[f32]| tile.iter().filter(|score| !score.is_finite()).count();
                    row[..tile.min(n)].iter().all(|score| !score.is_finite())
                        && row.chunks(tile).all(|tile| [0, tile.len()].contains(&excluded(tile)))
                }),
                ScoreShape::Plateaus => distinct.len() <= 2,
                ScoreShape::Equal => distinct.len() == 1,
                ScoreShape::Few => distinct.len() == 3,
                ScoreShape::Rising => row.windows(2).all(|pair| pair[0] <= pair[1]) && distinct.len() > 16,
                ScoreShape::Falling => row.windows(2).all(|pair| pair[0] >= pair[1]) && distinct.len() > 16,
                ScoreShape::SignedZeros => {
                    row.iter().any(|x| x.to_bits() == 0) && row.iter().any(|x| x.to_bits() == 1 << 31)
                }
                ScoreShape::Subnormals => {
                    let least = call.storage().smallest_subnormal();
                    row.iter().all(|&x| f64::from(x).abs() <= 8.0 * least) && distinct.len() > 8
                }
                ScoreShape::Collisions => distinct.len() <= 12 && largest < 2.0,
                ScoreShape::Outlier => finite.iter().filter(|&&x| 2.0 * x >= largest).count() == 1,
                ScoreShape::Excluded => finite.len() < n && finite.len() * 2 > n,
                ScoreShape::EmptyRows => finite.is_empty() || finite.len() == n,
                ScoreShape::Normal => distinct.len() > 16 && finite.len() == n,
                ScoreShape::Placed(Placed::FirstTile) => row[0] >= 1.0 && winners * 2 <= n,
                ScoreShape::Placed(Placed::LastTile) => row[n - 1] >= 1.0 && winners * 2 <= n,
                ScoreShape::Placed(Placed::EachTile) => {
                    above_one.len() > 1 && above_one.windows(2).all(|pair| pair[1] - pair[0] < 2 * 4096)
                }
                ScoreShape::Placed(Placed::OrganPipe) => {
                    row[n / 2] == largest && row[0] == 0.0 && row[n - 1] == 0.0
                }
                ScoreShape::Placed(_) => false,
            };
            assert!(holds, "{}, n = {n}, {}", kind.name(), call.storage());
            kinds.insert(kind.name());
        }
        assert_eq!(kinds.len(), ScoreShape::LARGE.len(), "{least}: {kinds:?}");
    }
    assert!(edges.values().all(|&count| count >= 5), "{edges:?}");
}

/// Bins are of each width that kernels have.
#[test]
fn bins_are_of_every_width() {
    let capabilities = of_stages(Takes::Scores, &[Given::Selected]);
    let turn = ScoreShape::LARGE.iter().position(|&scores| scores == ScoreShape::Crowded).unwrap();
    let large = LargeStage { least: 1025, most: 4096, turn };
    let calls = (0..200).filter_map(|seed| stage_call_of(&capabilities, seed, seed, Some(large)));
    let mut widths: BTreeMap<(Storage, u32), usize> = BTreeMap::new();
    for call in calls {
        let StageCall::Scores(call) = call else { panic!("another stage") };
        let row: Vec<f32> = call.scores().iter().copied().take(call.dims().keys).collect();
        *widths.entry((call.storage(), shared_bits(&row, call.storage()))).or_default() += 1;
    }
    let expected = [
        (Storage::F32, vec![8, 11, 12, 16]),
        (Storage::F16, vec![8, 11, 12]),
        (Storage::Bf16, vec![8, 11, 12]),
    ];
    for (storage, bits) in expected {
        let found: Vec<u32> = widths.keys().filter(|(of, _)| *of == storage).map(|(_, bits)| *bits).collect();
        assert_eq!(found, bits, "{storage}: {widths:?}");
    }
}

#[test]
fn questions_and_counterexamples_stay_inside_the_domain() {
    let domain = serde_json::json!({
        "keys": {"from": 64, "to": 256, "multiple_of": 64}, "heavy_size": {"multiple_of": 16}, "queries": [1],
        "heads": [4, 8], "batch": [1], "dtype": ["f32"],
    });
    let domains = vec![Domain::from_json(&domain).unwrap()];
    let capabilities = Capabilities { domains, ..of_stages(Takes::Scores, &[Given::Mask]) };
    let usable = (0..1000).filter(|&seed| stage_call(&capabilities, seed).is_some()).count();
    assert!(usable >= 950, "{usable} of 1000 draws are usable");

    struct Compiled(Capabilities);
    impl Subject for Compiled {
        fn name(&self) -> String {
            "compiled for few sizes".into()
        }
        fn capabilities(&self) -> Capabilities {
            self.0.clone()
        }
        fn select(&mut self, call: &ScoresCall) -> Result<Mask, NoAnswer> {
            let dims = call.dims();
            assert!(dims.keys.is_multiple_of(64) && call.heavy_size().get().is_multiple_of(16));
            assert!([4, 8].contains(&dims.heads) && call.storage() == Storage::F32);
            TopK(|scores, heavy_size| by(scores, heavy_size, |score| -score)).select(call)
        }
    }
    let report = check(&mut Compiled(capabilities), &options(100));
    finding_of(&report, &["wrong keys"], "selection");
    assert_eq!((report.findings[0].size.keys, report.findings[0].size.heads), (64, 4), "{report}");
}

#[test]
fn what_a_stage_lacks_is_not_asked() {
    let lacks =
        [Feature::Batch, Feature::GroupedHeads, Feature::EmptyRows, Feature::Scaling, Feature::ManyQueries];
    let capabilities = Capabilities { lacks: lacks.into(), ..of_stages(Takes::Selection, &[Given::Output]) };
    let asked = (0..500).filter_map(|seed| stage_call(&capabilities, seed)).count();
    assert_eq!(asked, 500);
}

#[test]
fn verify_counts_what_a_stage_cannot_be_asked() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/small");
    let files = bundled::find(&folder).unwrap();
    let options = VerifyOptions::new(20, 0);
    let report = verify(&files, &mut TopK(right), options, &mut |_| {});
    let cases = report.total().cases;
    assert!(cases > 40 && report.total().not_offered == cases, "{cases}");
    assert!(report.left_out["inputs"] > 40 && report.left_out["invariants"] == INVARIANTS.len());
    assert!(report.invariants.is_empty() && report.findings.is_empty());
    // Nothing was asked, which must not look like success.
    assert_eq!(report.exit_code(), 2);
    assert!(report.bad_inputs[0].contains("`check`"), "{:?}", report.bad_inputs);
}

#[test]
fn questions_survive_their_files() {
    for takes in [Takes::Scores, Takes::Selection] {
        let capabilities =
            Capabilities { stages: Stages::new(takes, None).unwrap(), ..Capabilities::default() };
        for seed in 0..100 {
            let call = stage_call(&capabilities, seed).unwrap();
            let bytes = stage_file::to_bytes(&call, "a test");
            let Ok(CaseFile::Stage(stored)) = Reader::default().parse(&bytes, "file") else {
                panic!("{seed}")
            };
            assert_eq!((stored.call, stored.source.as_str()), (call, "a test"));
        }
    }
}

/// The reference with the scores it ranks by and the log-sum-exp, and a fault or none.
struct Whole(&'static str, Option<(Instance, Reference)>);

fn scores_of(instance: &Instance, call: &Call) -> Option<Array4<f32>> {
    let (inputs, dims) = (&call.inputs, call.inputs.dims());
    if !ranks(instance, call) {
        return None;
    }
    let channels = instance.channels(call.layer).ok()?;
    let label_channels = instance.selection.group_factor.label_channels(dims.head_dim).ok()?;
    let bits = instance.selection.label_bits;
    let mut scores = Array4::zeros(dims.mask_shape());
    for b in 0..dims.batch {
        let labels = labels(inputs, channels, label_channels, bits, (b, 0..dims.heads)).ok()?;
        let of_batch = Scores::new(inputs, b, &labels, channels, &instance.selection);
        for (head, i) in (0..dims.heads).flat_map(|head| (0..dims.queries).map(move |i| (head, i))) {
            for (key, score) in of_batch.row(head, i).into_iter().enumerate() {
                scores[[b, head, i, key]] = score as f32;
            }
        }
    }
    Some(scores)
}

/// The labels of every head; those of keys moved as the fault has it.
fn labels_of_all(instance: &Instance, call: &Call, fault: &str) -> Option<AnsweredLabels> {
    if !ranks(instance, call) {
        return None;
    }
    let (dims, channels) = (call.inputs.dims(), instance.channels(call.layer).ok()?);
    let r = instance.selection.group_factor.label_channels(dims.head_dim).ok()?;
    let mut all = AnsweredLabels {
        q: Array4::zeros((dims.batch, dims.heads, dims.queries, r)),
        k: Array4::zeros((dims.batch, dims.heads, dims.keys, r)),
    };
    for b in 0..dims.batch {
        let bits = instance.selection.label_bits;
        let labels = labels(&call.inputs, channels, r, bits, (b, 0..dims.heads)).ok()?;
        for head in 0..dims.heads {
            all.q.slice_mut(ndarray::s![b, head, .., ..]).assign(&labels.queries(head).t());
            all.k.slice_mut(ndarray::s![b, head, .., ..]).assign(&labels.keys(head).t());
        }
    }
    if fault == "labels twice as large" {
        all.k.mapv_inplace(|x| 2.0 * x);
    }
    Some(all)
}

impl Subject for Whole {
    fn name(&self) -> String {
        format!("the reference with scores, {}", self.0)
    }

    fn rounding_model(&self) -> RoundingModel {
        let rounded = self.0.starts_with("labels");
        let labels = if rounded { LabelRounding::Rounded } else { LabelRounding::Exact };
        RoundingModel { labels, ..RoundingModel::REFERENCE }
    }

    fn capabilities(&self) -> Capabilities {
        let mut gives = vec![Given::Selected, Given::Output, Given::Lse];
        gives.extend((self.0 != "labels, no scores").then_some(Given::Scores));
        gives.extend(self.0.starts_with("labels").then_some(Given::Labels));
        of_stages(Takes::Inputs, &gives)
    }

    fn configure(&mut self, instance: &Instance) -> Result<(), NoAnswer> {
        let mut reference = Reference::default();
        reference.configure(instance)?;
        self.1 = Some((instance.clone(), reference));
        Ok(())
    }

    fn call(&mut self, call: &Call) -> Result<Answer, NoAnswer> {
        let (instance, reference) = self.1.as_mut().unwrap();
        let mut answer = reference.call(call)?;
        let mut scores = scores_of(instance, call);
        let before = instance.before(call)?;
        if let Some(scores) = &scores {
            // What it gives is what it ranks by: f32, in which a score may overflow.
            let summed = instance.selection.heads != HeadMode::PerHead;
            let heavy_size = instance.selection.heavy_size.resolve(call.inputs.dims().keys);
            answer.mask = before.clone();
            for row @ (b, head, i) in call.inputs.dims().rows() {
                let heads = if summed { 0..call.inputs.dims().heads } else { head..head + 1 };
                let excluded = |key| heads.clone().any(|head| before.attends(b, head, i, key));
                let of_row = scores.slice(ndarray::s![b, head, i, ..]).mapv(f64::from).to_vec();
                answer.mask.add(row, select(&of_row, excluded, heavy_size));
            }
            answer.output = Some(attention(&call.inputs, &answer.mask)?);
        }
        match self.0 {
            "scores twice as large" => scores.iter_mut().for_each(|scores| *scores *= 2.0),
            "labels, scores slightly off" => {
                scores.iter_mut().for_each(|scores| scores.mapv_inplace(|x| x * (1.0 + 3e-5)));
            }
            "one key fewer" | "labels, no scores" if !answer.mask.is_full() => {
                for row in call.inputs.dims().rows() {
                    let added = answer.mask.row(row).map(|(key, _)| key);
                    let first = added.into_iter().find(|&key| !before.attends(row.0, row.1, row.2, key));
                    if let Some(key) = first {
                        answer.mask.remove(row, key);
                    }
                }
                answer.output = Some(attention(&call.inputs, &answer.mask)?);
            }
            _ => {}
        }
        let mut lse = log_sum_exp(&call.inputs, &answer.mask)?;
        if self.0 == "lse to base 2" {
            lse.mapv_inplace(|x| x * std::f32::consts::LOG2_E);
        }
        if self.0.starts_with("labels") {
            answer.labels = labels_of_all(instance, call, self.0);
        }
        if self.0 != "no scores" && self.0 != "labels, no scores" {
            answer.scores = scores;
        }
        answer.lse = Some(lse);
        Ok(answer)
    }
}

#[test]
fn scores_and_lse_of_a_whole_layer_are_judged() {
    let report = check(&mut Whole("right", None), &options(400));
    assert!(report.conforms(), "{report}");
    let stages = report.stages.as_ref().unwrap();
    assert!(stages.scores > 300 && stages.lse > 300, "{report}");
    for (fault, kind, stage) in [
        ("scores twice as large", "scores out of bounds", "labels or scores"),
        ("one key fewer", "wrong number of keys", "selection"),
        ("lse to base 2", "lse out of bounds", "attention"),
        ("labels, scores slightly off", "scores out of bounds", "scores"),
        ("labels twice as large", "labels differ", "labels"),
        ("labels, no scores", "wrong number of keys", "scores or selection"),
    ] {
        let report = check(&mut Whole(fault, None), &options(200));
        // Kinds of one cause are one finding.
        let kinds: Vec<_> = report
            .findings
            .iter()
            .flat_map(|finding| {
                let kinds = finding.more.iter().map(|like| like.kind).chain([finding.kind]);
                kinds.map(|kind| (kind, finding.stage))
            })
            .collect();
        assert!(kinds.contains(&(kind, Some(stage))), "{fault}: {kinds:?}\n{report}");
    }
    let report = check(&mut Whole("labels, right", None), &options(400));
    assert!(report.conforms() && report.stages.as_ref().unwrap().scores > 300, "{report}");
    let report = check(&mut Whole("no scores", None), &options(50));
    assert_eq!(report.findings[0].kind, "gave no usable answer");
    assert!(report.to_string().contains("the answer holds no scores"), "{report}");
}

/// Two pairs of heads that share a selection: a key that one of a pair attended before is no candidate of the other.
#[test]
fn a_selection_by_given_scores_is_that_of_the_heads_that_share_it() {
    let dims = Dims { batch: 1, heads: 4, kv_heads: 2, queries: 1, keys: 4, head_dim: 1, value_dim: 1 };
    let scores = Array4::from_shape_fn((1, 4, 1, 4), |(.., key)| 4.0 - key as f32);
    let mut before = Mask::empty(&dims);
    before.add((0, 2, 0), [0]);
    let judged = |scores: &Array4<f32>, sharing: usize, selected: [usize; 4]| {
        let mut mask = before.clone();
        for (head, key) in selected.into_iter().enumerate() {
            mask.add((0, head, 0), [key]);
        }
        let verdict = judge_selection(scores, 1, &before, sharing, |_, _| false, &mask);
        assert_eq!(verdict.rows, 4);
        let told: Vec<_> = verdict.divergences.iter().map(|wrong| (wrong.row.1, wrong.fault)).collect();
        (told, [verdict.wrong_rows, verdict.selecting, verdict.open])
    };
    assert_eq!(judged(&scores, 2, [0, 0, 1, 1]), (vec![], [0, 4, 0]));
    assert_eq!(judged(&scores, 1, [0, 0, 1, 0]), (vec![], [0, 4, 0]));
    let excluded = (3, MaskFault::HoldsExcluded { key: 0 });
    assert_eq!(judged(&scores, 2, [0, 0, 1, 0]), (vec![excluded], [1, 4, 0]));
    let of_all = [0, 1, 3].map(|head| (head, MaskFault::HoldsExcluded { key: 0 }));
    assert_eq!(judged(&scores, 4, [0, 0, 1, 0]).0, of_all);
    // As many are told as are explained, and all are counted.
    let (told, counts) = judged(&scores, 2, [3, 3, 3, 3]);
    assert_eq!((told.len(), counts), (3, [4, 4, 0]));
    let ties = scores.mapv(|score| if score > 2.0 { 1.0 } else { 0.0 });
    assert_eq!(judged(&ties, 1, [0, 1, 1, 0]), (vec![], [0, 4, 6]));

    let call = ScoresCall::new(scores, Storage::F32, NonZeroUsize::MIN).unwrap();
    for (fault, sentence) in [
        (MaskFault::HoldsOut { key: 3 }, "(score 1e0, number 1 of its row is 4e0)"),
        (MaskFault::MissesIn { key: 0 }, "(score 4e0, number 2 of its row is 3e0)"),
    ] {
        let told = explain(&call, &MaskDivergence { row: (0, 1, 0), fault, evidence: None });
        assert!(told.contains(sentence) && told.contains("key"), "{told}");
    }
}

/// One thing wrong at a time, and the kind and the stage that the verdict names; with two wrong things those of the earlier one.
#[test]
fn the_first_wrong_stage_gives_the_kind_and_the_stage() {
    type Change = fn(&mut Answer);
    // Whether labels and scores are given, what is wrong, and the kind and the stage that are named.
    type Row<'a> = (bool, bool, &'a [Change], Option<&'a str>, Option<&'a str>);
    let labels: Change = |answer| answer.labels.as_mut().unwrap().k[[0, 0, 0, 0]] += 1.0;
    let scores: Change = |answer| {
        answer
            .scores
            .as_mut()
            .unwrap()
            .mapv_inplace(|score| if score.is_finite() { 2.0 * score + 1.0 } else { score });
    };
    let mask: Change = |answer| {
        let row = (0, 1, 1);
        let key = answer.mask.row(row).next().map(|(key, _)| key).unwrap();
        answer.mask.remove(row, key);
    };
    let output: Change = |answer| answer.output.as_mut().unwrap().mapv_inplace(|x| 1.5 * x + 1.0);
    let lse: Change = |answer| answer.lse.as_mut().unwrap().mapv_inplace(|x| x + 1.0);
    let case = small_case();
    let right = |with_labels: bool, with_scores: bool| {
        let mut whole = Whole("labels, right", None);
        let mut answer = whole.answer(&case).unwrap();
        assert!(answer.labels.is_some() && answer.scores.is_some() && answer.lse.is_some());
        answer.labels = answer.labels.filter(|_| with_labels);
        answer.scores = answer.scores.filter(|_| with_scores);
        answer
    };
    let lost = "wrong keys";
    let out = ["output out of bounds", "lse out of bounds", "scores out of bounds", "labels differ"];
    let expected: [Row; 17] = [
        (true, true, &[], None, None),
        (false, true, &[], None, None),
        (true, true, &[labels], Some(out[3]), Some("labels")),
        (true, true, &[labels, scores], Some(out[3]), Some("labels")),
        (true, true, &[labels, mask], Some(lost), Some("labels")),
        (true, true, &[scores], Some(out[2]), Some("scores")),
        (true, true, &[scores, output], Some(out[2]), Some("scores")),
        (true, true, &[scores, mask], Some(lost), Some("scores")),
        (false, true, &[scores], Some(out[2]), Some("labels or scores")),
        (true, true, &[mask], Some(lost), Some("selection")),
        (false, true, &[mask, lse], Some(lost), Some("selection")),
        (true, false, &[mask], Some(lost), Some("scores or selection")),
        (false, false, &[mask], Some(lost), None),
        (false, false, &[output], Some(out[0]), Some("attention")),
        (true, true, &[output], Some(out[0]), Some("attention")),
        (true, true, &[lse], Some(out[1]), Some("attention")),
        (true, true, &[output, lse], Some(out[0]), Some("attention")),
    ];
    for (with_labels, with_scores, changes, kind, stage) in expected {
        let mut answer = right(with_labels, with_scores);
        changes.iter().for_each(|change| change(&mut answer));
        let model = Whole("labels, right", None).rounding_model();
        let verdict = judge_call(&case.instance, &case.call, &Ok(answer), model);
        let judgement = verdict.judgement().unwrap();
        let what =
            format!("labels {with_labels}, scores {with_scores}, {} changes: {verdict:?}", changes.len());
        assert_eq!((verdict.kind(), judgement.stage()), (kind, stage), "{what}");
        assert_eq!(verdict.conforms(), kind.is_none(), "{what}");
        assert_eq!(verdict.explanations().is_empty(), kind.is_none(), "{what}");
        let of_scores = changes.contains(&scores);
        let told = verdict.explanations().iter().any(|line| line.contains("score"));
        assert!(told || !of_scores, "{what}");
    }
}

/// How a log-sum-exp may be computed.
#[derive(Debug, Clone, Copy)]
struct Simulated {
    kept: Precision,
    max_over_all: bool,
    /// Keys of a block that takes a logarithm of its own; all of them where 0.
    block: usize,
    /// A running maximum, the sum multiplied anew at each key.
    running: bool,
    base_two: bool,
}

impl Simulated {
    fn model(self) -> RoundingModel {
        RoundingModel { scores_kept: self.kept, weights_kept: self.kept, ..RoundingModel::default() }
    }

    fn lse(self, case: &Case, mask: &Mask) -> Array3<f32> {
        let dims = case.call.inputs.dims();
        let mut lse = Array3::zeros((dims.batch, dims.heads, dims.queries));
        for row @ (b, head, i) in dims.rows() {
            lse[[b, head, i]] = self.row(case, mask, row);
        }
        lse
    }

    fn row(self, case: &Case, mask: &Mask, row @ (b, head, i): Row) -> f32 {
        let inputs = &case.call.inputs;
        let kept = match self.kept {
            Precision::F32 => Storage::F32,
            Precision::F16 => Storage::F16,
            Precision::Storage => inputs.storage(),
        };
        let (q, k, additive) = (inputs.queries(b, head), inputs.keys(b, head), inputs.additive(b, head, i));
        let logit = |key: usize| {
            let dot: f32 = q.row(i).iter().zip(k.row(key)).map(|(q, k)| q * k).sum();
            let scaled = kept.round(kept.round(dot) * inputs.scaling() as f32);
            if additive.at(key) == 0.0 { scaled } else { kept.round(scaled + kept.round(additive.at(key))) }
        };
        let attended: Vec<(f32, f32)> = mask
            .row(row)
            .filter(|&(key, _)| additive.at(key) > f32::NEG_INFINITY)
            .map(|(key, weight)| (logit(key), weight))
            .collect();
        if attended.is_empty() {
            return f32::NEG_INFINITY;
        }
        let over_all = (0..inputs.dims().keys).map(logit).fold(f32::NEG_INFINITY, f32::max);
        let block = if self.block == 0 { attended.len() } else { self.block };
        let blocks: Vec<(f32, f32)> = attended
            .chunks(block)
            .map(|block| (self.of(block, self.max_over_all.then_some(over_all), kept), 1.0))
            .collect();
        if blocks.len() == 1 { blocks[0].0 } else { self.of(&blocks, None, kept) }
    }

    fn exp(self, x: f32, kept: Storage) -> f32 {
        let x = kept.round(x);
        kept.round(if self.base_two { (x * std::f32::consts::LOG2_E).exp2() } else { x.exp() })
    }

    fn of(self, terms: &[(f32, f32)], max: Option<f32>, kept: Storage) -> f32 {
        let (mut sum, mut running) = (0.0f32, f32::NEG_INFINITY);
        let largest = terms.iter().map(|term| term.0).fold(f32::NEG_INFINITY, f32::max);
        let max = max.unwrap_or(largest);
        if largest == f32::NEG_INFINITY {
            return largest;
        }
        if self.running {
            for &(w, weight) in terms.iter().filter(|term| term.0 > f32::NEG_INFINITY) {
                let next = running.max(w);
                let again = if running == next { 1.0 } else { self.exp(running - next, Storage::F32) };
                sum = sum * again + kept.round(self.exp(w - next, kept) / weight);
                running = next;
            }
        } else {
            running = max;
            sum = terms.iter().map(|&(w, weight)| kept.round(self.exp(w - max, kept) / weight)).sum();
        }
        let sum = kept.round(sum);
        let log = if self.base_two { sum.log2() * std::f32::consts::LN_2 } else { sum.ln() };
        kept.round(running + kept.round(log))
    }
}

fn simulated() -> impl Strategy<Value = Simulated> {
    let kept = prop::sample::select(vec![Precision::F32, Precision::Storage]);
    (kept, any::<bool>(), prop::sample::select(vec![0usize, 1, 4, 16]), any::<bool>(), any::<bool>())
        .prop_map(|(kept, max_over_all, block, running, base_two)| Simulated {
            kept,
            max_over_all,
            block,
            running,
            base_two,
        })
}

#[test]
fn a_log_sum_exp_of_arithmetic_that_a_model_allows_conforms() {
    let judged = std::cell::Cell::new(0);
    let mut runner = TestRunner::new(Config { cases: 4000, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&(plans(), simulated()), |(plan, simulated)| {
        let case = plan.case().expect("plans make valid inputs");
        let Ok(answer) = Reference::default().answer(&case) else { return Ok(()) };
        let lse = simulated.lse(&case, &answer.mask);
        let verdict = judge_lse(&case.call.inputs, &answer.mask, &lse, simulated.model());
        prop_assert!(verdict.divergences.is_empty(), "{simulated:?}: {}", verdict.divergences[0]);
        judged.set(judged.get() + lse.len());
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
    assert!(judged.get() > 10_000, "{} rows", judged.get());
}

/// The bound leaves no room for a wrong key or another base.
#[test]
fn a_log_sum_exp_is_bounded_sharply() {
    let capabilities = of_stages(Takes::Selection, &[Given::Lse]);
    let model = RoundingModel {
        scores_kept: Precision::F32,
        weights_kept: Precision::F32,
        ..RoundingModel::default()
    };
    let (mut rows, mut widest, mut seen, mut missed) = (0, 0.0f64, 0, 0);
    for seed in 0..1000 {
        let Some(StageCall::Selection(call)) = stage_call(&capabilities, seed) else { panic!("seed {seed}") };
        let exact = log_sum_exp(&call.inputs, &call.mask).unwrap();
        for row @ (b, head, i) in call.inputs.dims().rows() {
            let expected = expected_lse(&call.inputs, &call.mask, model, row);
            if call.mask.row(row).next().is_none() {
                assert_eq!(expected.value, f64::NEG_INFINITY);
                continue;
            }
            assert!((f64::from(exact[[b, head, i]]) - expected.value).abs() <= expected.radius);
            rows += 1;
            // Larger logits are less certain, and so is what follows from them.
            if selection_plan(&capabilities, seed).magnitude > 1.0 {
                continue;
            }
            widest = widest.max(expected.radius / expected.value.abs().max(1.0));
            let last = call.mask.row(row).last().unwrap().0;
            let mut without = call.mask.clone();
            without.remove(row, last);
            let other = log_sum_exp(&call.inputs, &without).unwrap()[[b, head, i]];
            let verdict = |value: f32| {
                let mut lse = exact.clone();
                lse[[b, head, i]] = value;
                judge_lse(&call.inputs, &call.mask, &lse, model).divergences.len()
            };
            // A key of at least a thousandth of the weight.
            if f64::from(other) < expected.value - 1e-3 {
                seen += 1;
                missed += usize::from(verdict(other) == 0);
            }
            assert_eq!(verdict((expected.value + 1.2 * expected.radius) as f32), 1);
            assert_eq!(verdict(f32::NAN), 1);
            assert_eq!(verdict(f32::NEG_INFINITY), 1);
        }
    }
    eprintln!("{rows} rows, widest bound {widest:.1e}, {seen} without a key, {missed} missed");
    assert!(rows > 3000 && widest < 5e-4 && seen > 1000 && missed == 0, "{rows} {widest} {seen} {missed}");
}

//! Batches of entries of unequal lengths (SPEC §2.13): who answers them answers each entry as it would alone, what lies beyond
//! has no part in it, and each way of getting that wrong is caught and shrunk to a few numbers.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use doublecheck::algorithm::attention::attention;
use doublecheck::algorithm::{HeadMode, HeavySize, InputParts, Inputs, Lengths, Mask, Padding, Storage};
use doublecheck::behaviours::Fault;
use doublecheck::cases::ragged::by_entry;
use doublecheck::cases::sequence_plan::{SequencePlan, sequence_plans};
use doublecheck::cases::stage_plan::stage_call;
use doublecheck::cases::{
    Answer, Attended, Call, Capabilities, Case, CaseFile, Feature, Instance, NoAnswer, Promise, Reader,
    RoundingModel, ScoresCall, SelectionCall, Sequence, Stages, Takes, file, stage_file,
};
use doublecheck::subjects::{Engine, Faulty, LengthFault, RaggedKernel, Reference, Subject, ask};
use doublecheck::verdicts::judge::judge_observation;
use doublecheck::{Limits, Options, Report, check};
use ndarray::{Array4, s};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;

fn ragged() -> Capabilities {
    Capabilities { ragged: true, ..Capabilities::default() }
}

fn drawn(capabilities: &Capabilities, count: usize) -> Vec<SequencePlan> {
    let mut runner = TestRunner::deterministic();
    let plans = sequence_plans(capabilities);
    (0..count).map(|_| plans.new_tree(&mut runner).unwrap().current()).collect()
}

fn sequences(capabilities: &Capabilities, count: usize) -> Vec<Sequence> {
    let sequences = drawn(capabilities, count).into_iter().map(|plan| plan.sequence().unwrap());
    sequences.filter(|sequence| capabilities.missing(sequence).is_empty()).collect()
}

fn lengths_of(call: &Call) -> Option<&[usize]> {
    call.inputs.lengths().map(Lengths::keys)
}

// --- what is asked ----------------------------------------------------------------------------------------------------

#[test]
fn lengths_are_of_every_kind() {
    let sequences = sequences(&ragged(), 2000);
    let calls: Vec<&Call> = sequences.iter().flat_map(|sequence| &sequence.calls).collect();
    let count = |has: &dyn Fn(&Call, &[usize]) -> bool| {
        calls.iter().filter(|call| lengths_of(call).is_some_and(|lengths| has(call, lengths))).count()
    };
    let any = |has: fn(usize, usize, usize) -> bool| {
        count(&|call, lengths| {
            let dims = call.inputs.dims();
            lengths.iter().any(|&length| has(length, dims.queries, dims.keys))
        })
    };
    let all = count(&|_, _| true);
    assert!(all > calls.len() / 8 && all < calls.len() / 2, "{all} of {}", calls.len());
    assert!(any(|length, _, n| length == n) > all / 4);
    assert!(any(|length, m, n| m < length && length < n) > all / 4);
    assert!(any(|length, m, _| 0 < length && length < m) > all / 20);
    assert!(any(|length, _, n| length == 1 && n > 1) > all / 20);
    assert!(any(|length, _, _| length == 0) > all / 10);
    assert!(any(|length, _, n| length + 1 == n) > all / 20);
    assert!(count(&|_, lengths| lengths.len() == 1) > all / 10);
    assert!(count(&|_, lengths| lengths.iter().collect::<BTreeSet<_>>().len() > 1) > all / 4);
    assert!(count(&|_, lengths| lengths.iter().all(|&length| length == 0)) > 0);
    for padding in [Padding::Nan, Padding::Large] {
        let holds = |call: &Call, _: &[usize]| call.inputs.lengths().unwrap().padding() == padding;
        assert!(count(&holds) > all / 3, "{padding:?}");
    }
    // A text that grows keeps how many keys an entry lacks.
    let grows = |sequence: &&Sequence| {
        let lengths: Vec<_> = sequence.calls.iter().filter_map(lengths_of).collect();
        lengths.windows(2).any(|pair| {
            pair[0].len() == pair[1].len() && pair[0].iter().zip(pair[1]).all(|(a, b)| a + 1 == *b)
        })
    };
    assert!(sequences.iter().filter(grows).count() > 5);
}

/// Everything but the lengths is what a subject that offers none is asked.
#[test]
fn who_does_not_offer_them_is_asked_the_same_without() {
    let (mut with, mut without) = (0, 0);
    for (ragged, plain) in drawn(&ragged(), 600).into_iter().zip(drawn(&Capabilities::default(), 600)) {
        assert_eq!((ragged.plan.clone(), ragged.pattern), (plain.plan.clone(), plain.pattern));
        let (ragged, plain) = (ragged.sequence().unwrap(), plain.sequence().unwrap());
        assert_eq!(ragged.instance, plain.instance);
        for (ragged, plain) in ragged.calls.iter().zip(&plain.calls) {
            assert!(plain.inputs.lengths().is_none());
            let Some(lengths) = lengths_of(ragged) else {
                assert_eq!(ragged, plain);
                without += 1;
                continue;
            };
            with += 1;
            assert_eq!(ragged.inputs.parts().q, plain.inputs.parts().q);
            assert_eq!(ragged.inputs.parts().attention_mask, plain.inputs.parts().attention_mask);
            for (b, &length) in lengths.iter().enumerate() {
                for (one, other) in [
                    (&ragged.inputs.parts().k, &plain.inputs.parts().k),
                    (&ragged.inputs.parts().v, &plain.inputs.parts().v),
                ] {
                    assert_eq!(one.slice(s![b, .., ..length, ..]), other.slice(s![b, .., ..length, ..]));
                    assert!(one.slice(s![b, .., length.., ..]).iter().all(|&x| x == 0.0));
                }
            }
        }
    }
    assert!(with > 100 && without > 500, "{with} with lengths, {without} without");
}

#[test]
fn lengths_that_may_not_be_asked_are_not() {
    let narrow = Capabilities { lacks: [Feature::EmptyRows].into(), ..ragged() };
    let mut some = 0;
    for call in sequences(&narrow, 1000).iter().flat_map(|sequence| &sequence.calls) {
        let Some(lengths) = lengths_of(call) else { continue };
        some += 1;
        assert!(lengths.iter().all(|&length| length >= call.inputs.dims().queries), "{lengths:?}");
    }
    assert!(some > 100, "{some}");
    let sequences = sequences(&ragged(), 300);
    let with = |sequence: &&Sequence| sequence.calls.iter().any(|call| call.inputs.lengths().is_some());
    let sequence = sequences.iter().find(with).unwrap();
    assert!(ragged().missing(sequence).is_empty() && ragged().offers_all(sequence));
    assert_eq!(Capabilities::default().missing(sequence), ["ragged"]);
    assert!(!Capabilities::default().offers_all(sequence));
}

/// b = 2, m = 2, n = 3, everything else 1.
fn inputs() -> Inputs {
    Inputs::new(InputParts {
        q: Array4::ones((2, 1, 2, 1)),
        k: Array4::from_shape_fn((2, 1, 3, 1), |(b, _, key, _)| (1 + 3 * b + key) as f32),
        v: Array4::ones((2, 1, 3, 1)),
        attention_mask: None,
        causal: false,
        storage: Storage::F16,
        scaling: None,
    })
    .unwrap()
}

#[test]
fn lengths_that_do_not_fit_are_refused() {
    for (lengths, expected) in [
        (vec![1], "shape does not fit: lengths: found [1], expected [2]"),
        (vec![1, 2, 3], "shape does not fit: lengths: found [3], expected [2]"),
        (vec![3, 4], "shape does not fit: lengths[1]: found 4, expected at most the 3 keys"),
    ] {
        let error = inputs().with_lengths(Some(Lengths::new(lengths, Padding::Nan))).unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn padding_is_nan_or_large_and_nothing_else_changes() {
    for (padding, fits) in [
        (Padding::Nan, (|x: f32| x.is_nan()) as fn(f32) -> bool),
        (Padding::Large, |x: f32| x.is_finite() && x.abs() > 1e4),
    ] {
        let inputs = inputs().with_lengths(Some(Lengths::new(vec![1, 3], padding))).unwrap();
        assert_eq!(inputs.parts().k.as_slice().unwrap(), [1.0, 0.0, 0.0, 4.0, 5.0, 6.0]);
        let k = inputs.padded_keys();
        let k = k.as_slice().unwrap();
        assert!(k[0] == 1.0 && fits(k[1]) && fits(k[2]) && k[3..] == [4.0, 5.0, 6.0], "{k:?}");
        // Large numbers of either sign.
        assert!(padding == Padding::Nan || k[1] == -k[2]);
        assert!(inputs.padded_values().slice(s![0, .., 1.., ..]).iter().all(|&x| fits(x)));
    }
}

#[test]
fn case_files_keep_lengths() {
    let (mut kept, mut single) = (0, 0);
    for sequence in sequences(&ragged(), 400) {
        let bytes = file::sequence_to_bytes(&sequence, "a test");
        let CaseFile::Sequence(read) = Reader::default().parse(&bytes, &sequence.name).unwrap() else {
            panic!("not a sequence")
        };
        assert_eq!(read.sequence, sequence);
        kept += sequence.calls.iter().filter(|call| call.inputs.lengths().is_some()).count();
        let call = sequence.calls[0].clone();
        if call.inputs.lengths().is_none() || call.layer != 0 || !sequence.instance.dense_layers.is_empty() {
            continue;
        }
        let (instance, name) = (sequence.instance, sequence.name);
        let case =
            Case { name, instance, call, recipe: None, expectation: None, unknown: Default::default() };
        let bytes = file::to_bytes(&case);
        assert!(file::peek(&bytes).unwrap().is_none());
        let CaseFile::Attention(read) = Reader::default().parse(&bytes, &case.name).unwrap() else {
            panic!("not a case")
        };
        assert_eq!(read.call, case.call);
        assert!(read.unknown.is_empty());
        single += 1;
    }
    assert!(kept > 100 && single > 10, "{kept} calls, {single} cases");
}

// --- entries alone ----------------------------------------------------------------------------------------------------

/// One entry of a call as a call of its own, cut out here and not by the suite; `None` where it has no keys.
fn alone(call: &Call, b: usize, length: usize) -> Option<Call> {
    let (dims, parts) = (call.inputs.dims(), call.inputs.parts());
    let queries = dims.queries.min(length);
    if queries == 0 {
        return None;
    }
    let first = dims.queries - queries;
    let mask = parts.attention_mask.as_ref().map(|mask| {
        let whole = mask.broadcast(dims.mask_shape()).unwrap();
        whole.slice(s![b..b + 1, .., first.., ..length]).to_owned()
    });
    let inputs = Inputs::new(InputParts {
        q: parts.q.slice(s![b..b + 1, .., first.., ..]).to_owned(),
        k: parts.k.slice(s![b..b + 1, .., ..length, ..]).to_owned(),
        v: parts.v.slice(s![b..b + 1, .., ..length, ..]).to_owned(),
        attention_mask: mask,
        ..parts.clone()
    });
    let weights =
        call.inputs.head_weights().map(|weights| weights.slice(s![b..b + 1, .., first..]).to_owned());
    let inputs = inputs.unwrap().with_head_weights(weights).unwrap();
    let previous = call.previous.as_ref().map(|mask| {
        let weights = mask.weights().slice(s![b..b + 1, .., first.., ..length]).to_owned();
        Mask::from_weights(weights, &inputs.dims()).unwrap()
    });
    Some(Call { layer: call.layer, inputs: Arc::new(inputs), previous })
}

fn bits<'a>(numbers: impl IntoIterator<Item = &'a f32>) -> Vec<u32> {
    numbers.into_iter().map(|x| x.to_bits()).collect()
}

fn every_rule() -> Capabilities {
    let rules = ["double-sparsity", "sglang-v1", "sglang-v2", "twilight", "dsa-indexer"];
    let rules = rules.map(|name| doublecheck::cases::rule_names::find(name).unwrap()).to_vec();
    Capabilities { rules, ..ragged() }
}

#[test]
fn an_entry_answers_as_it_does_alone_bit_for_bit() {
    for subject in [&mut Reference::default() as &mut dyn Subject, &mut Engine::default()] {
        let is_engine = subject.name() == "engine";
        let capabilities = if is_engine { ragged() } else { every_rule() };
        let (mut entries, mut empty, mut rows_without) = (0, 0, 0);
        for sequence in sequences(&capabilities, 700) {
            subject.configure(&sequence.instance).unwrap();
            for call in sequence.calls.iter().filter(|call| call.inputs.lengths().is_some()) {
                let answer = subject.call(call).unwrap();
                let output = answer.output.as_ref().unwrap();
                let dims = call.inputs.dims();
                for (b, &length) in lengths_of(call).unwrap().iter().enumerate() {
                    let first = dims.queries - dims.queries.min(length);
                    rows_without += first;
                    assert!(answer.mask.weights().slice(s![b, .., ..first, ..]).iter().all(|&x| x == 0.0));
                    assert!(answer.mask.weights().slice(s![b, .., .., length..]).iter().all(|&x| x == 0.0));
                    assert!(bits(output.slice(s![b, .., ..first, ..])).iter().all(|&x| x == 0));
                    let Some(single) = alone(call, b, length) else {
                        empty += 1;
                        continue;
                    };
                    entries += 1;
                    let part = subject.call(&single).unwrap();
                    let mask = answer.mask.weights().slice(s![b..b + 1, .., first.., ..length]);
                    assert_eq!(mask, part.mask.weights(), "{}", sequence.name);
                    let own = output.slice(s![b..b + 1, .., first.., ..]);
                    assert_eq!(bits(own), bits(&part.output.unwrap()), "{}", sequence.name);
                }
            }
        }
        assert!(entries > 200 && empty > 20 && rows_without > 100, "{entries}, {empty}, {rows_without}");
    }
}

#[test]
fn the_reference_and_the_engine_conform() {
    let reference = check(&mut Reference::default(), &Options { cases: 500, ..Options::default() });
    assert!(reference.conforms(), "{reference}");
    assert!(reference.coverage.parts["ragged"] > 100, "{reference}");
    let kept = reference.promises["capacity-invariant"];
    assert!(!kept.promised && kept.of > 0 && kept.held == kept.of, "{kept:?}");
    let engine = check(&mut Engine::default(), &Options { cases: 300, ..Options::default() });
    assert!(engine.conforms() && engine.coverage.parts["ragged"] > 50, "{engine}");
}

// --- kernels with lengths of their own --------------------------------------------------------------------------------

fn checked(wrong: Option<LengthFault>, cases: usize) -> Report {
    let options = Options {
        cases,
        naming: Duration::ZERO,
        conditions: false,
        probes: false,
        stop_after: std::num::NonZeroUsize::new(1),
        ..Options::default()
    };
    check(&mut RaggedKernel::new(wrong), &options)
}

/// Two ways to the same answer: the reference, entry by entry, and a kernel in f64.
#[test]
fn an_independent_kernel_selects_what_the_reference_does() {
    let mut kernel = RaggedKernel::new(None);
    let capabilities = kernel.capabilities();
    let (mut equal, mut rows) = (0, 0);
    for sequence in sequences(&capabilities, 800) {
        let calls = sequence.calls.iter();
        let mut calls: Vec<_> = calls.filter(|call| call.inputs.lengths().is_some()).cloned().collect();
        if calls.is_empty() {
            continue;
        }
        let found = ask(&mut kernel, &Sequence { calls: calls.clone(), ..sequence.clone() });
        let verdicts = judge_observation(&found, RoundingModel::REFERENCE);
        assert!(verdicts.iter().all(|verdict| verdict.conforms()), "{verdicts:?}");
        let expected = ask(&mut Reference::default(), &found.sequence);
        for (found, expected) in found.answers.iter().zip(&expected.answers) {
            let (found, expected) = (found.as_ref().unwrap(), expected.as_ref().unwrap());
            let dims = expected.mask.weights().dim();
            for row in ndarray::indices((dims.0, dims.1, dims.2)) {
                rows += 1;
                equal += usize::from(found.mask.row_weights(row) == expected.mask.row_weights(row));
            }
        }
        // What padding holds never matters.
        for call in &mut calls {
            let lengths = call.inputs.lengths().unwrap();
            let other = if lengths.padding() == Padding::Nan { Padding::Large } else { Padding::Nan };
            *call = call.with_lengths(Lengths::new(lengths.keys().to_vec(), other)).unwrap();
        }
        let other = ask(&mut kernel, &Sequence { calls, ..sequence });
        for (found, other) in found.answers.iter().zip(&other.answers) {
            let (found, other) = (found.as_ref().unwrap(), other.as_ref().unwrap());
            assert_eq!(found.mask, other.mask);
            assert_eq!(bits(found.output.as_ref().unwrap()), bits(other.output.as_ref().unwrap()));
        }
    }
    // They sum in another order, so that a near-tie may fall otherwise.
    assert!(rows > 500 && equal * 100 >= rows * 99, "{equal} of {rows}");
}

#[test]
fn a_right_kernel_conforms() {
    let report = checked(None, 1000);
    assert!(report.conforms(), "{report}");
    assert!(report.coverage.parts["ragged"] > 150, "{report}");
}

/// `doublecheck faults` plants each of them, too; here it must also shrink to lengths, and be right without.
#[test]
fn each_way_of_getting_it_wrong_is_caught_and_shrunk() {
    for wrong in [
        LengthFault::Ignored,
        LengthFault::RanksPadding,
        LengthFault::AlignsAtTheEnd,
        LengthFault::AlignsAtTheStart,
        LengthFault::OfFirstEntry,
        LengthFault::OfLastEntry,
        LengthFault::DividesByZero,
        LengthFault::AtLeastOneKey,
        LengthFault::WeighsPadding,
    ] {
        let report = checked(Some(wrong), 500);
        let finding = report.findings.first().unwrap_or_else(|| panic!("nothing found: {wrong:?} {report}"));
        let sequence = &finding.observation.sequence;
        let lengths = lengths_of(&sequence.calls[finding.call]);
        assert!(lengths.is_some_and(|lengths| lengths.len() <= 2), "{wrong:?}: {report}");
        assert!(finding.size.keys <= 4 && finding.size.heads == 1, "{wrong:?}: {report}");
        let ragged = serde_json::to_value(finding).unwrap()["ragged"].clone();
        assert_eq!(ragged["lengths"].as_array().map(Vec::len), lengths.map(<[usize]>::len));
        assert!(report.to_string().contains("keys, padding"), "{report}");
        // Without lengths it is right.
        for finding in &report.findings {
            let mut full = finding.observation.sequence.clone();
            for call in &mut full.calls {
                call.inputs = Arc::new(Inputs::clone(&call.inputs).with_lengths(None).unwrap());
            }
            let observation = ask(&mut RaggedKernel::new(Some(wrong)), &full);
            let verdicts = judge_observation(&observation, RoundingModel::REFERENCE);
            assert!(verdicts.iter().all(|verdict| verdict.conforms()), "{wrong:?}: {report}");
        }
    }
}

#[test]
fn what_a_buffer_changes_breaks_a_promise() {
    for (wrong, broken) in [(None, false), (Some(LengthFault::DependsOnTheBuffer), true)] {
        let promises = [Promise::CapacityInvariant, Promise::BatchInvariant];
        let mut kernel = RaggedKernel::new(wrong).promising(promises);
        let report =
            check(&mut kernel, &Options { cases: 400, naming: Duration::ZERO, ..Options::default() });
        let kept = report.promises["capacity-invariant"];
        assert!(kept.promised && kept.of > 20, "{report}");
        assert_eq!(kept.held < kept.of, broken, "{report}");
        assert_eq!(report.conforms(), !broken, "{report}");
        let alone = report.promises["batch-invariant"];
        assert!(alone.of > 20 && alone.held == alone.of, "{report}");
        for finding in &report.findings {
            assert_eq!(finding.kind, "broken promise");
            assert!(finding.explanations[0].starts_with("capacity-invariant is promised"), "{report}");
            assert!(finding.ragged.is_some(), "{report}");
        }
    }
}

// --- one stage --------------------------------------------------------------------------------------------------------

/// A top-k over scores, or an attention over a selection, that reads what it is asked; a wrong one has no regard to lengths.
struct Stage {
    takes: Takes,
    wrong: bool,
}

impl Subject for Stage {
    fn name(&self) -> String {
        format!("a stage that takes {}", self.takes.name())
    }

    fn rounding_model(&self) -> RoundingModel {
        RoundingModel::REFERENCE
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { stages: Stages::new(self.takes, None).unwrap(), ..ragged() }
    }

    fn select(&mut self, call: &ScoresCall) -> Result<Mask, NoAnswer> {
        let dims = call.dims();
        let scores = call.padded_scores();
        let mut mask = Mask::empty(&dims);
        for row @ (b, head, i) in dims.rows() {
            let row_scores = scores.slice(s![b, head, i, ..]);
            let length = call.lengths().map_or(dims.keys, |lengths| lengths.keys()[b]);
            let end = if self.wrong { dims.keys } else { length };
            let mut order: Vec<usize> =
                (0..end).filter(|&key| row_scores[key] != f32::NEG_INFINITY).collect();
            order.sort_by(|&a, &b| row_scores[b].total_cmp(&row_scores[a]));
            mask.add(row, order.into_iter().take(call.heavy_size().get()));
        }
        Ok(mask)
    }

    fn attend(&mut self, call: &SelectionCall) -> Result<Attended, NoAnswer> {
        let attended = Reference::default().attend(call)?;
        let (dims, v) = (call.inputs.dims(), call.inputs.padded_values());
        let output = attended.output.map(|mut output| {
            for (b, head, i) in dims.rows().filter(|_| self.wrong) {
                for c in 0..dims.value_dim {
                    let values = v.slice(s![b, head / (dims.heads / dims.kv_heads), .., c]);
                    output[[b, head, i, c]] += values.iter().map(|x| 0.0 * x).sum::<f32>();
                }
            }
            output
        });
        Ok(Attended { output, ..attended })
    }
}

#[test]
fn a_stage_may_offer_lengths_too() {
    for (takes, kind) in [(Takes::Scores, "selected padding"), (Takes::Selection, "output out of bounds")] {
        let options = Options { cases: 1000, naming: Duration::ZERO, ..Options::default() };
        let report = check(&mut Stage { takes, wrong: false }, &options);
        assert!(report.conforms() && report.coverage.parts["ragged"] > 150, "{report}");
        let report = check(&mut Stage { takes, wrong: true }, &options);
        let finding = report.findings.first().unwrap_or_else(|| panic!("nothing found: {report}"));
        assert_eq!(finding.kind, kind, "{report}");
        assert!(finding.shrunk && finding.size.keys == 1, "{report}");
        assert_eq!(finding.ragged, Some(Lengths::new(vec![0], Padding::Nan)), "{report}");
        assert!(report.to_string().contains("lengths [0] of 1 keys, padding NaN"), "{report}");
        // The file asks the same.
        let call = finding.example.as_ref().unwrap().call.clone();
        let bytes = stage_file::to_bytes(&call, "a test");
        let CaseFile::Stage(read) = Reader::default().parse(&bytes, "a test").unwrap() else {
            panic!("not a stage")
        };
        assert_eq!(read.call, call);
    }
}

/// Who does not offer lengths is asked what it always was.
#[test]
fn a_stage_without_lengths_is_asked_the_same() {
    for takes in [Takes::Scores, Takes::Selection] {
        let with = Stage { takes, wrong: false }.capabilities();
        let without = Capabilities { ragged: false, ..with.clone() };
        let (mut equal, mut other) = (0, 0);
        for seed in 0..500 {
            let (with, without) = (stage_call(&with, seed).unwrap(), stage_call(&without, seed).unwrap());
            assert!(without.lengths().is_none());
            assert_eq!(with.dims(), without.dims());
            match with.lengths() {
                None => {
                    assert_eq!(with, without);
                    equal += 1;
                }
                Some(_) => other += 1,
            }
        }
        assert!(equal > 200 && other > 80, "{equal}, {other}");
    }
}

/// A named bug, and lengths handled rightly.
struct Named(Faulty);

impl Subject for Named {
    fn name(&self) -> String {
        self.0.name()
    }

    fn rounding_model(&self) -> RoundingModel {
        self.0.rounding_model()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { ragged: true, ..self.0.capabilities() }
    }

    fn configure(&mut self, instance: &Instance) -> Result<(), NoAnswer> {
        self.0.configure(instance)
    }

    fn call(&mut self, call: &Call) -> Result<Answer, NoAnswer> {
        by_entry(call, |call| self.0.call(call))
    }
}

#[test]
fn a_named_bug_is_named_in_ragged_batches_too() {
    for name in ["kv-heads-tiled", "one-key-fewer", "nan-in-empty-rows"] {
        let faults = Fault::find_all(name);
        assert_eq!(faults.len(), 1);
        let report = check(&mut Named(Faulty::new(&faults)), &Options { cases: 300, ..Options::default() });
        assert!(report.coverage.parts["ragged"] > 50);
        let finding = report.findings.first().unwrap_or_else(|| panic!("nothing found: {name}"));
        assert!(finding.diagnosis.contains(&name), "{name}: {report}");
        assert!(report.explained, "{name}: {report}");
    }
}

/// The mask of an entry, from the lengths of its batch, its place there and H as it is configured.
type Masked = fn(&mut Reference, &Call, (&[usize], usize, usize)) -> Result<Mask, NoAnswer>;

/// The reference, entry by entry, with another mask; the output is that of the mask. It is told the lengths of the batch, the entry and
/// H as it is configured, 0 for a share.
struct Changed {
    reference: Reference,
    heavy_size: usize,
    mask: Masked,
}

impl Subject for Changed {
    fn name(&self) -> String {
        "changed".into()
    }

    fn rounding_model(&self) -> RoundingModel {
        RoundingModel::REFERENCE
    }

    fn capabilities(&self) -> Capabilities {
        let lacks = [
            Feature::Refusals,
            Feature::EarlierMaskers,
            Feature::Previous,
            Feature::DenseFallback,
            Feature::DenseLayers,
        ];
        Capabilities { lacks: lacks.into(), heads: vec![HeadMode::PerHead], ..ragged() }
    }

    fn configure(&mut self, instance: &Instance) -> Result<(), NoAnswer> {
        self.heavy_size = match instance.selection.heavy_size {
            HeavySize::Count(count) => count.get(),
            HeavySize::Fraction(_) => 0,
        };
        self.reference.configure(instance)
    }

    fn call(&mut self, call: &Call) -> Result<Answer, NoAnswer> {
        let dims = call.inputs.dims();
        let lengths = lengths_of(call).map_or(vec![dims.keys; dims.batch], <[usize]>::to_vec);
        let own: Vec<usize> = match lengths_of(call) {
            None => vec![0],
            Some(_) => (0..dims.batch).filter(|&entry| lengths[entry] > 0).collect(),
        };
        let mut entries = own.into_iter();
        by_entry(call, |alone| {
            let entry = entries.next().unwrap_or(0);
            let mask = (self.mask)(&mut self.reference, alone, (&lengths, entry, self.heavy_size))?;
            let output = attention(&alone.inputs, &mask)?;
            Ok(Answer::new(mask, Some(output)))
        })
    }
}

/// What the catalogue lacks is told of entries as of whole calls, and what an entry takes from its batch: each is held against it
/// alone.
#[test]
fn a_relation_is_told_of_ragged_batches() {
    let first_on_top: Masked = |reference, call, _| {
        let (mut mask, dims) = (reference.call(call)?.mask, call.inputs.dims());
        dims.rows().for_each(|row| mask.add(row, [0]));
        Ok(mask)
    };
    // Keys from the length of the entry before on are lost.
    let of_previous: Masked = |reference, call, (lengths, entry, _)| {
        let dims = call.inputs.dims();
        let length = lengths[entry.saturating_sub(1)];
        let mut parts = call.inputs.parts().clone();
        parts.causal = false;
        let additive = Array4::from_shape_fn(dims.mask_shape(), |(b, head, i, key)| match key < length {
            true => call.inputs.additive(b, head, i).at(key),
            false => f32::NEG_INFINITY,
        });
        parts.attention_mask = Some(additive);
        let inputs = Arc::new(Inputs::new(parts)?);
        reference.call(&Call { inputs, ..call.clone() }).map(|answer| answer.mask)
    };
    for (mask, words) in [
        (first_on_top, "the key at position 0 is always selected, on top of H"),
        (of_previous, "keys of entry e from the length of entry e − 1 on are never selected"),
    ] {
        let mut subject = Changed { reference: Reference::default(), heavy_size: 0, mask };
        let shrinking = Limits { tries: 200, ..Limits::default() };
        // However long that takes.
        let naming = Duration::from_secs(600);
        let options = Options {
            cases: 250,
            largest_keys: 40,
            shrinking,
            naming,
            probes: false,
            conditions: false,
            ..Options::default()
        };
        let report = check(&mut subject, &options);
        assert!(report.coverage.parts["ragged"] > 30, "{words}: {report}");
        let told = report.findings.first().and_then(|finding| finding.relation.as_ref());
        // In batches of two the entry before is entry 0.
        let all = told.into_iter().flat_map(|told| told.relation.iter().chain(&told.others));
        assert!(all.into_iter().any(|relation| relation.contains(words)), "{words}: {report}");
    }
}

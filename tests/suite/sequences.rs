//! Sequences of calls: what random ones are like, that the prediction of the SPEC is the SPEC, that each call is judged as
//! the case it would be alone, and that sequences survive a round trip through a file.

use std::collections::BTreeSet;

use doublecheck::Subject;
use doublecheck::algorithm::HeavySize;
use doublecheck::behaviours::{Behaviour, CATALOGUE, Fault};
use doublecheck::cases::domain::domains_from_json;
use doublecheck::cases::sequence_plan::sequence_plans;
use doublecheck::cases::{Capabilities, CaseFile, Feature, NoAnswer, Reader, Sequence, file, profiles};
use doublecheck::diagnosis::reproduction::reproduces;
use doublecheck::subjects::ask;
use doublecheck::subjects::{Faulty, Reference};
use doublecheck::verdicts::judge::judge_observation;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;

fn sequences(capabilities: &Capabilities, count: usize) -> Vec<Sequence> {
    let mut runner = TestRunner::deterministic();
    let plans = sequence_plans(capabilities);
    let sequences = (0..).map(|_| plans.new_tree(&mut runner).unwrap().current().sequence().unwrap());
    sequences.filter(|sequence| capabilities.missing(sequence).is_empty()).take(count).collect()
}

#[test]
fn the_prediction_of_the_spec_is_the_reference() {
    let (mut answered, mut refused) = (0, 0);
    for sequence in sequences(&Capabilities::default(), 600) {
        let expected = ask(&mut Reference::default(), &sequence);
        let found = ask(&mut Faulty::new(&[]), &sequence);
        for (call, (found, expected)) in found.answers.iter().zip(&expected.answers).enumerate() {
            match (found, expected) {
                (Ok(found), Ok(expected)) => {
                    assert_eq!(found.mask, expected.mask, "{}", sequence.name);
                    assert_eq!(found.output, expected.output, "{}", sequence.name);
                    answered += 1;
                }
                (Err(NoAnswer::Refused(found)), Err(NoAnswer::Refused(expected))) => {
                    let faults = sequence.instance.faults(&sequence.calls[call]);
                    for error in [found, expected] {
                        assert!(
                            faults.iter().any(|fault| fault.kind() == error.kind()),
                            "{error}: {faults:?}"
                        );
                    }
                    refused += 1;
                }
                _ => panic!("{}: found {found:?}, expected {expected:?}", sequence.name),
            }
        }
    }
    assert!(answered > refused && refused > 0, "{answered} answered, {refused} refused");
}

/// Two ways to the same verdict: the judge of the SPEC, and reproduction by the SPEC's own behaviour.
#[test]
fn an_answer_conforms_exactly_where_the_spec_reproduces_it() {
    let mut wrong = 0;
    // Each fault is asked what shows it.
    let asked = |fault: &'static Fault| sequences(&Fault::capabilities(&[fault]), 12);
    let asked = CATALOGUE.iter().flat_map(|fault| asked(fault).into_iter().map(move |asked| (fault, asked)));
    for (fault, sequence) in asked {
        let mut subject = Faulty::new(&[fault]);
        let model = subject.rounding_model();
        let observation = ask(&mut subject, &sequence);
        let conforms = judge_observation(&observation, model).iter().all(|verdict| verdict.conforms());
        let reproduced = reproduces(Behaviour::default(), &observation, model);
        assert_eq!(conforms, reproduced, "{} on {}", fault.name, sequence.name);
        assert!(reproduces(fault.behaviour(), &observation, model), "{} on {}", fault.name, sequence.name);
        wrong += usize::from(!conforms);
    }
    assert!(wrong > CATALOGUE.len(), "only {wrong} answers were wrong");
}

#[test]
fn random_sequences_visit_layers_grow_and_start_anew() {
    let sequences = sequences(&Capabilities::default(), 1000);
    let count = |has: &dyn Fn(&Sequence) -> bool| sequences.iter().filter(|sequence| has(sequence)).count();
    let layers =
        |sequence: &Sequence| sequence.calls.iter().map(|call| call.layer).collect::<BTreeSet<_>>().len();
    let keys =
        |sequence: &Sequence| sequence.calls.iter().map(|call| call.inputs.dims().keys).collect::<Vec<_>>();
    assert!(count(&|sequence| layers(sequence) > 1) > 150);
    assert!(count(&|sequence| keys(sequence).windows(2).any(|pair| pair[1] == pair[0] + 1)) > 80);
    assert!(count(&|sequence| keys(sequence).windows(2).any(|pair| pair[1] < pair[0])) > 50);
    assert!(count(&|sequence| !sequence.instance.dense_layers.is_empty()) > 50);
    let refused =
        |sequence: &Sequence| sequence.calls.iter().any(|call| !sequence.instance.faults(call).is_empty());
    assert!(count(&refused) > 30);
    let mut kinds = BTreeSet::new();
    for sequence in &sequences {
        for call in &sequence.calls {
            kinds.extend(sequence.instance.faults(call).iter().map(|fault| fault.kind()));
        }
    }
    let expected = [
        "channel_kind",
        "channel_range",
        "channel_rows",
        "group_factor",
        "head_mode",
        "label_range",
        "missing_layer",
    ];
    assert_eq!(kinds.into_iter().collect::<Vec<_>>(), expected);
}

#[test]
fn decode_steps_keep_the_keys_they_had() {
    let (mut steps, mut others) = (0, 0);
    for sequence in sequences(&Capabilities::default(), 600) {
        for pair in sequence.calls.windows(2).filter(|pair| pair[0].layer == pair[1].layer) {
            let (before, after) = (pair[0].inputs.parts(), pair[1].inputs.parts());
            let (n, longer) = (before.k.dim().2, after.k.dim().2);
            // Other keys are no step.
            let first = ndarray::s![.., .., 0, ..];
            if longer != n + 1 || before.k.slice(first) != after.k.slice(first) {
                others += 1;
                continue;
            }
            steps += 1;
            let kept = ndarray::s![.., .., ..n, ..];
            assert_eq!(before.k, after.k.slice(kept), "{}", sequence.name);
            assert_eq!(before.v, after.v.slice(kept), "{}", sequence.name);
        }
    }
    assert!(steps > 40 && others > 0, "{steps} steps, {others} other pairs");
}

#[test]
fn nothing_is_asked_that_is_not_offered() {
    let all = [
        Feature::AttentionMask,
        Feature::MasksPerHead,
        Feature::NotCausal,
        Feature::Previous,
        Feature::Weights,
        Feature::EarlierMaskers,
        Feature::Fractions,
        Feature::DenseFallback,
        Feature::DenseLayers,
        Feature::Scaling,
        Feature::ValueDim,
        Feature::Batch,
        Feature::GroupedHeads,
        Feature::ManyQueries,
        Feature::Quantised,
        Feature::NotQuantised,
        Feature::ChannelsPerHead,
        Feature::ChannelsPerKvHead,
        Feature::ChannelsShared,
        Feature::Sequences,
        Feature::Refusals,
        Feature::EmptyRows,
    ];
    let everything = sequences(&Capabilities::default(), 400);
    for feature in all {
        let mut capabilities = Capabilities::default();
        capabilities.lacks.insert(feature);
        // Without it some are left out, and enough of the others can be made.
        let left_out =
            everything.iter().filter(|sequence| !capabilities.missing(sequence).is_empty()).count();
        assert!(left_out > 0, "{feature:?}");
        assert_eq!(sequences(&capabilities, 100).len(), 100);
    }
    for name in profiles::NAMES {
        assert_eq!(sequences(&profiles::find(name).unwrap(), 100).len(), 100);
    }
}

#[test]
fn a_sequence_survives_a_round_trip() {
    for sequence in sequences(&Capabilities::default(), 200) {
        let bytes = file::sequence_to_bytes(&sequence, "who diverged");
        let CaseFile::Sequence(stored) = Reader::default().parse(&bytes, &sequence.name).unwrap() else {
            panic!("not read as a sequence");
        };
        assert_eq!(stored.sequence, sequence);
        assert_eq!(stored.source, "who diverged");
        assert_eq!(file::sequence_to_bytes(&stored.sequence, "who diverged"), bytes);
    }
}

#[test]
fn a_damaged_sequence_file_never_panics() {
    let sequence =
        sequences(&Capabilities::default(), 20).into_iter().min_by_key(|s| s.calls[0].bytes()).unwrap();
    let bytes = file::sequence_to_bytes(&sequence, "");
    for index in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[index] ^= 0x15;
        let _ = Reader::default().parse(&damaged, "damaged");
        let _ = Reader::default().parse(&bytes[..index], "cut");
    }
}

#[test]
fn a_file_whose_calls_do_not_fit_together_is_refused() {
    let all = sequences(&Capabilities::default(), 200);
    let of = |heads: usize| {
        let fits = |sequence: &&Sequence| sequence.calls[0].inputs.dims().heads == heads;
        all.iter().find(fits).unwrap().clone()
    };
    let (mut sequence, other) = (of(2), of(1));
    sequence.calls.push(other.calls[0].clone());
    let bytes = file::sequence_to_bytes(&sequence, "");
    let error = Reader::default().parse(&bytes, "uneven").unwrap_err().to_string();
    assert!(error.contains("as in call_0"), "{error}");
}

/// A kernel with fixed head dimensions and one query: nearly every draw can be asked, and all patterns that fit occur.
#[test]
fn draws_stay_inside_a_narrow_domain() {
    let domain = serde_json::json!({
        "head_dim": [128], "label_channels": [16], "queries": [1], "heavy_size": {"multiple_of": 64},
        "keys": {"from": 64, "to": 131072}, "value_dim": "d",
    });
    let capabilities =
        Capabilities { domains: domains_from_json(&domain).unwrap(), ..Capabilities::default() };
    const DRAWS: usize = 400;
    let mut runner = TestRunner::deterministic();
    let plans = sequence_plans(&capabilities);
    let drawn: Vec<Sequence> =
        (0..DRAWS).map(|_| plans.new_tree(&mut runner).unwrap().current().sequence().unwrap()).collect();
    let usable: Vec<&Sequence> = drawn.iter().filter(|sequence| capabilities.offers_all(sequence)).collect();
    assert!(usable.len() * 100 >= 95 * DRAWS, "{} of {DRAWS}", usable.len());
    for sequence in &usable {
        assert!(capabilities.missing(sequence).is_empty());
        let HeavySize::Count(heavy) = sequence.instance.selection.heavy_size else { panic!("a fraction") };
        assert!(heavy.get().is_multiple_of(64));
        for call in &sequence.calls {
            let dims = call.inputs.dims();
            assert_eq!((dims.head_dim, dims.value_dim, dims.queries), (128, 128, 1));
        }
    }
    let several = usable.iter().filter(|sequence| sequence.calls.len() > 1).count();
    let growing = |sequence: &&&Sequence| {
        sequence.calls.windows(2).any(|pair| pair[0].inputs.dims().keys != pair[1].inputs.dims().keys)
    };
    let growing = usable.iter().filter(growing).count();
    assert!(
        several > DRAWS / 10 && growing > DRAWS / 40,
        "{several} with several calls, {growing} of other lengths"
    );
}

/// Alternatives: each of them is drawn, and a sequence fits one of them as a whole.
#[test]
fn alternatives_of_a_domain_are_all_drawn() {
    let domain = serde_json::json!([{"head_dim": [64], "kv_heads": [1]}, {"head_dim": [8], "group": [1]}]);
    let capabilities =
        Capabilities { domains: domains_from_json(&domain).unwrap(), ..Capabilities::default() };
    let drawn = sequences(&capabilities, 200);
    let wide = drawn.iter().filter(|sequence| sequence.calls[0].inputs.dims().head_dim == 64).count();
    assert!((40..=160).contains(&wide), "{wide} of 200");
}

/// How one call of a sequence relates to the last one of its layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Relation {
    RestartShorter,
    RestartEqual,
    RestartLonger,
    DecodeStep,
    Chunk,
    OtherBatch,
    OtherQueries,
    RolledBack,
    AfterOthers,
}

fn relations(sequence: &Sequence) -> BTreeSet<Relation> {
    let mut found = BTreeSet::new();
    for (index, call) in sequence.calls.iter().enumerate() {
        let Some(last) = sequence.calls[..index].iter().rposition(|other| other.layer == call.layer) else {
            continue;
        };
        let (before, now) = (sequence.calls[last].inputs.parts(), call.inputs.parts());
        let (old, new) = (sequence.calls[last].inputs.dims(), call.inputs.dims());
        if old.batch != new.batch {
            found.insert(Relation::OtherBatch);
            continue;
        }
        let key = |k: &ndarray::Array4<f32>, key: usize| k.slice(ndarray::s![.., .., key, ..]).to_owned();
        let both = old.keys.min(new.keys);
        let common = (0..both).take_while(|&at| key(&before.k, at) == key(&now.k, at)).count();
        found.extend(match (common, new.keys.cmp(&old.keys)) {
            (0, std::cmp::Ordering::Less) => Some(Relation::RestartShorter),
            (0, std::cmp::Ordering::Equal) => Some(Relation::RestartEqual),
            (0, std::cmp::Ordering::Greater) => Some(Relation::RestartLonger),
            (kept, std::cmp::Ordering::Greater) if kept == old.keys && new.queries == 1 => {
                Some(Relation::DecodeStep)
            }
            (kept, std::cmp::Ordering::Greater) if kept == old.keys => Some(Relation::Chunk),
            (kept, std::cmp::Ordering::Equal) if kept == old.keys && before.q != now.q => {
                Some(Relation::OtherQueries)
            }
            (kept, _) if kept < new.keys => Some(Relation::RolledBack),
            _ => None,
        });
        if last + 1 < index {
            found.insert(Relation::AfterOthers);
        }
    }
    found
}

fn related(drawn: &[Sequence]) -> std::collections::BTreeMap<Relation, usize> {
    let mut counts = std::collections::BTreeMap::new();
    for relation in drawn.iter().flat_map(relations) {
        *counts.entry(relation).or_default() += 1;
    }
    counts
}

#[test]
fn every_call_pattern_is_drawn() {
    const DRAWS: usize = 1000;
    let drawn = sequences(&Capabilities::default(), DRAWS);
    let counts = related(&drawn);
    let all = [
        (Relation::RestartShorter, 30),
        (Relation::RestartEqual, 30),
        (Relation::RestartLonger, 15),
        (Relation::DecodeStep, 120),
        (Relation::Chunk, 25),
        (Relation::OtherBatch, 15),
        (Relation::OtherQueries, 15),
        (Relation::RolledBack, 15),
        (Relation::AfterOthers, 60),
    ];
    for (relation, least) in all {
        let count = counts.get(&relation).copied().unwrap_or(0);
        assert!(count >= least, "{relation:?}: {count} of {DRAWS}, expected {least}: {counts:?}");
    }
    let single = drawn.iter().filter(|sequence| sequence.calls.len() == 1).count();
    assert!((DRAWS / 4..DRAWS / 2).contains(&single), "{single} single calls");
}

/// A chunk has the queries of the keys that are new; a tail that was taken back leaves the keys before it.
#[test]
fn chunks_ask_for_their_own_keys() {
    let (mut chunks, mut other) = (0, 0);
    for sequence in sequences(&Capabilities::default(), 1000) {
        for pair in sequence.calls.windows(2).filter(|pair| pair[0].layer == pair[1].layer) {
            let (old, new) = (pair[0].inputs.dims(), pair[1].inputs.dims());
            let kept = ndarray::s![.., .., ..old.keys.min(new.keys), ..];
            let grows = new.keys > old.keys + 1
                && old.batch == new.batch
                && pair[0].inputs.parts().k == pair[1].inputs.parts().k.slice(kept);
            if grows {
                chunks += usize::from(new.queries == new.keys - old.keys);
                other += usize::from(new.queries != new.keys - old.keys);
            }
        }
    }
    assert!(chunks > 20 && other == 0, "{chunks} chunks, {other} others that grow by several keys");
}

#[test]
fn call_patterns_keep_to_what_is_offered() {
    let lacking = |features: &[Feature]| Capabilities {
        lacks: features.iter().copied().collect(),
        ..Capabilities::default()
    };
    let counts = related(&sequences(&lacking(&[Feature::ManyQueries]), 400));
    assert!(!counts.contains_key(&Relation::Chunk) && counts[&Relation::OtherBatch] > 0, "{counts:?}");
    let counts = related(&sequences(&lacking(&[Feature::Batch]), 400));
    assert!(!counts.contains_key(&Relation::OtherBatch) && counts[&Relation::Chunk] > 0, "{counts:?}");
    let domain = serde_json::json!({"batch": [1, 2], "queries": [1], "keys": {"multiple_of": 8}});
    let narrow = Capabilities { domains: domains_from_json(&domain).unwrap(), ..Capabilities::default() };
    let counts = related(&sequences(&narrow, 400));
    assert!(counts[&Relation::OtherBatch] > 0 && counts[&Relation::RestartEqual] > 0, "{counts:?}");
    assert!(!counts.contains_key(&Relation::DecodeStep), "{counts:?}");
}

#[test]
fn a_file_may_hold_batches_of_several_sizes() {
    let all = sequences(&Capabilities::default(), 300);
    let differs = |sequence: &&Sequence| relations(sequence).contains(&Relation::OtherBatch);
    let sequence = all.iter().find(differs).unwrap();
    let bytes = file::sequence_to_bytes(sequence, "");
    let CaseFile::Sequence(stored) = Reader::default().parse(&bytes, &sequence.name).unwrap() else {
        panic!("not read as a sequence");
    };
    assert_eq!(stored.sequence, *sequence);
}

//! What is asked around a question: other sizes of a counterexample, which tell where its edges lie; the parts and paddings of what is
//! promised; and what is asked to learn of what a failure depends on.

use std::collections::BTreeSet;
use std::sync::Arc;

use doublecheck::algorithm::{
    ChannelFile, ChannelKind, ChannelOrder, HeavySize, InputParts, Inputs, Lengths, Mask, Padding, Selection,
    Storage,
};
use doublecheck::cases::domain::domains_from_json;
use doublecheck::cases::recipe::Words;
use doublecheck::cases::{
    Call, Capabilities, Instance, Promise, ScoresCall, Sequence, StageCall, Stages, Takes,
};
use doublecheck::runner::check::{check_sequence, check_stage_call};
use ndarray::Array4;
use rstest::rstest;
use serde_json::{Value, json};

use super::subjects::{Asked, Wrong, asked_to_learn, edges, options, parts};

fn sequence([b, m, n]: [usize; 3], heavy_size: usize, causal: bool, with_additive: bool) -> Sequence {
    let words = Words::new(5, 0);
    let numbers = |shape: [usize; 4], from: usize| {
        let size = shape.iter().product::<usize>();
        let values = (0..size).map(|i| words.value((from + i) as u64)).collect();
        Array4::from_shape_vec(shape, values).unwrap()
    };
    let inputs = Inputs::new(InputParts {
        q: numbers([b, 1, m, 2], 0),
        k: numbers([b, 1, n, 2], 100_000),
        v: numbers([b, 1, n, 2], 200_000),
        attention_mask: with_additive.then(|| numbers([b, 1, m, n], 300_000)),
        causal,
        storage: Storage::F32,
        scaling: None,
    });
    let mut file = ChannelFile::default();
    file.insert(ChannelKind::QkProj, 0, ChannelOrder::new(vec![vec![0, 1]]).unwrap());
    let instance = Instance {
        selection: Selection::new(HeavySize::count(heavy_size).unwrap(), 1, 16).unwrap(),
        earlier_maskers: Vec::new(),
        dense_layers: Vec::new(),
        channel_selection: ChannelKind::QkProj,
        channel_file: Arc::new(file),
    };
    let call = Call { layer: 0, inputs: Arc::new(inputs.unwrap()), previous: None };
    Sequence { name: "a question".into(), instance, calls: vec![call] }
}

fn keys(call: &Call) -> usize {
    call.inputs.dims().keys
}

/// Beside the edge itself, one more, twice and three times the size that conforms, and one more than these are asked; never more keys
/// than 2^20, and no H above n.
#[test]
fn edges_of_a_counterexample_are_told() {
    type Expected = (fn(&Call, usize) -> bool, usize, &'static [&'static str]);
    let cases: [Expected; 7] = [
        (
            |call, _| keys(call) > 64,
            2000,
            &["n = 64 conforms, n = 65 fails; fails at 66, 128, 129, 192, 193"],
        ),
        (
            |call, _| keys(call) > 64 && !keys(call).is_multiple_of(64),
            2000,
            &["n = 64 conforms, n = 65 fails; fails at 66, 129, 193, conforms at 128, 192"],
        ),
        // No edge is told of 16 or less.
        (|call, _| keys(call) > 16, 2000, &["n = 16 conforms, n = 17 fails; fails at 18, 32, 33, 48, 49"]),
        (|call, _| keys(call) > 15, 2000, &[]),
        // One key is left then, so that no larger H is asked.
        (|_, h| h > 20, 2000, &["H = 20 conforms, H = 21 fails"]),
        (
            |call, h| h > 20 && keys(call) > 45,
            2000,
            &[
                "n = 45 conforms, n = 46 fails; fails at 47, 90, 91, 135, 136",
                "H = 20 conforms, H = 21 fails; fails at 22, 40, 41",
            ],
        ),
        // Shrinking ended early, with the batch.
        (
            |call, _| call.inputs.dims().batch > 39 && keys(call) > 36,
            40,
            &["n = 36 conforms, n = 37 fails; fails at 38, 72, 73, 108, 109"],
        ),
    ];
    let mut wrong = Vec::new();
    for (fails, tries, expected) in cases {
        let mut subject = Wrong { fails, ..Wrong::new(Capabilities::default()) };
        let [batch, n] = if tries == 40 { [40, 60] } else { [1, 120] };
        let asked = sequence([batch, 1, n], 50, false, false);
        let found = edges(&check_sequence(&mut subject, &asked, &options(tries), &mut |_| {}));
        if found != expected {
            wrong.push((found, expected));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Of a domain only what is in it is asked: the next smaller size may lie far below.
#[test]
fn edges_lie_between_sizes_of_the_domain() {
    let domains = domains_from_json(&json!([{"keys": {"multiple_of": 16}}])).unwrap();
    let capabilities = Capabilities { domains, ..Capabilities::default() };
    let mut subject = Wrong { fails: |call, _| keys(call) > 70, ..Wrong::new(capabilities) };
    let asked = sequence([1, 1, 160], 1, false, false);
    let found = edges(&check_sequence(&mut subject, &asked, &options(2000), &mut |_| {}));
    assert_eq!(found, ["n = 64 conforms, n = 80 fails; fails at 128, 192"]);
}

fn stage_subject(promises: &[Promise]) -> Wrong {
    let stages = Stages::new(Takes::Scores, None).unwrap();
    let promises = Some(promises.iter().copied().collect());
    Wrong::new(Capabilities { stages, promises, ragged: true, ..Capabilities::default() })
}

fn scores(m: usize, n: usize, heavy_size: usize) -> StageCall {
    let scores = Array4::from_shape_fn((1, 1, m, n), |(_, _, i, key)| ((7 * key + i) % 101) as f32);
    StageCall::Scores(ScoresCall::new(scores, Storage::F32, heavy_size.try_into().unwrap()).unwrap())
}

/// A top-k has an edge in H only where H decides, and lengths of entries stay what they are where padding is added.
#[test]
fn edges_of_a_top_k_are_told() {
    let mut subject = Wrong {
        fails_at: |call| call.heavy_size().get() > 20 && call.dims().keys > 45,
        ..stage_subject(&[])
    };
    let report = check_stage_call(&mut subject, ("scores", &scores(1, 100, 50)), &options(2000), &mut |_| {});
    let expected = [
        "n = 45 conforms, n = 46 fails; fails at 47, 90, 91, 135, 136",
        "H = 20 conforms, H = 21 fails; fails at 22, 40, 41",
    ];
    assert_eq!(edges(&report), expected);
    fn fails(call: &ScoresCall) -> bool {
        call.dims().keys > 30 && call.lengths().is_some_and(|lengths| lengths.keys() == [10])
    }
    let mut subject = Wrong { fails_at: fails, ..stage_subject(&[]) };
    let asked = scores(1, 100, 50).with_lengths(Lengths::new(vec![10], Padding::Nan)).unwrap();
    let report = check_stage_call(&mut subject, ("scores", &asked), &options(2000), &mut |_| {});
    assert_eq!(edges(&report), ["n = 30 conforms, n = 31 fails; fails at 32, 60, 61, 90, 91"]);
}

/// Several queries and the last of them alone get the same: a top-k that does otherwise breaks its promise, one that does not keeps it.
#[test]
fn the_last_query_of_scores_is_asked_alone() {
    let promises = [Promise::SliceInvariant];
    type Case = (fn(&ScoresCall) -> bool, usize);
    let cases: [Case; 2] = [(|_| false, 0), (|call| call.dims().queries == 1, 1)];
    for (fails_at, findings) in cases {
        let mut subject = Wrong { fails_at, ..stage_subject(&promises) };
        let report = check_stage_call(&mut subject, ("scores", &scores(3, 9, 2)), &options(200), &mut |_| {});
        assert_eq!(report.findings.len(), findings, "{report}");
        let promised = report.promises["slice-invariant"];
        assert_eq!((promised.promised, promised.held, promised.of), (true, 1 - findings, 1), "{report}");
    }
}

/// Queries of a call one by one have the keys up to their positions where the call is causal, and all keys otherwise. The reference
/// answers them alike.
#[test]
fn queries_are_asked_one_by_one() {
    for causal in [false, true] {
        let promises = Some([Promise::SliceInvariant].into());
        let mut subject = Wrong::new(Capabilities { promises, ..Capabilities::default() });
        let asked = sequence([2, 4, 9], 2, causal, true);
        let report = check_sequence(&mut subject, &asked, &options(200), &mut |_| {});
        assert!(report.conforms(), "{report}");
        let promised = report.promises["slice-invariant"];
        assert_eq!((promised.held, promised.of), (1, 1), "{report}");
    }
}

/// More padding changes nothing, also of a call with A.
#[test]
fn calls_with_lengths_are_asked_with_more_padding() {
    for with_additive in [false, true] {
        type Case = (fn(&Call, usize) -> bool, usize);
        let cases: [Case; 2] = [(|_, _| false, 1), (|call, _| keys(call) > 9, 0)];
        for (fails, held) in cases {
            let promises = Some([Promise::CapacityInvariant].into());
            let capabilities = Capabilities { promises, ragged: true, ..Capabilities::default() };
            let mut subject = Wrong { fails, ..Wrong::new(capabilities) };
            let mut asked = sequence([2, 1, 9], 2, false, with_additive);
            asked.calls[0] = asked.calls[0].with_lengths(Lengths::new(vec![9, 5], Padding::Nan)).unwrap();
            let report = check_sequence(&mut subject, &asked, &options(200), &mut |_| {});
            let promised = report.promises["capacity-invariant"];
            assert_eq!((promised.held, promised.of), (held, 1), "{report}");
        }
    }
}

/// In what a question differs from another, where it is the same but for one thing.
fn change((instance, calls): &Asked, original: &Sequence) -> Option<String> {
    let (call, old) = (calls.last()?, original.calls.last()?);
    let (tensors, old_tensors) = (call.inputs.parts(), old.inputs.parts());
    let mut changes = Vec::new();
    let mut tensor = |name: &str, of: &Array4<f32>, old: &Array4<f32>, axes: &[(usize, &str)]| {
        let differing = |&&(axis, _): &&(usize, &str)| of.shape()[axis] != old.shape()[axis];
        let (axis, what) = axes.iter().find(differing).copied().unwrap_or(axes[0]);
        let kept = parts(of, old, axis)?;
        if kept.iter().copied().ne(0..old.shape()[axis]) {
            changes.push(format!("{what} of {name} {kept:?}"));
        }
        Some(())
    };
    let axes = [(0, "entries"), (1, "heads"), (2, "rows"), (3, "channels")];
    tensor("q", &tensors.q, &old_tensors.q, &axes)?;
    tensor("k", &tensors.k, &old_tensors.k, &axes)?;
    tensor("v", &tensors.v, &old_tensors.v, &axes)?;
    let mut tell = |is_same: bool, told: String| {
        if !is_same {
            changes.push(told);
        }
    };
    let (new, old_selection) = (&instance.selection, &original.instance.selection);
    tell(new.heavy_size == old_selection.heavy_size, format!("H {}", new.heavy_size));
    tell(new.group_factor == old_selection.group_factor, format!("G {}", new.group_factor.get()));
    tell(new.label_bits == old_selection.label_bits, format!("B {}", new.label_bits.get()));
    tell(new.heads == old_selection.heads, new.heads.name().into());
    tell(new.dense_fallback == old_selection.dense_fallback, "another fallback".into());
    tell(new.rules == old_selection.rules, "other rules".into());
    tell(
        instance.dense_layers == original.instance.dense_layers,
        format!("dense {:?}", instance.dense_layers),
    );
    tell(instance.earlier_maskers.is_empty(), "earlier maskers".into());
    tell(call.layer == old.layer, format!("layer {}", call.layer));
    let layers: Vec<usize> = calls.iter().map(|call| call.layer).collect();
    tell(calls.len() == original.calls.len(), format!("calls of layers {layers:?}"));
    let given = |given: bool| if given { "given" } else { "left out" };
    let additive = tensors.attention_mask.is_some();
    tell(additive == old_tensors.attention_mask.is_some(), format!("A {}", given(additive)));
    let previous = call.previous.is_some();
    tell(previous == old.previous.is_some(), format!("P {}", given(previous)));
    tell(tensors.causal == old_tensors.causal, format!("causal {}", tensors.causal));
    tell(tensors.scaling == old_tensors.scaling, format!("scaling {:?}", tensors.scaling));
    tell(tensors.storage == old_tensors.storage, tensors.storage.to_string());
    Some(changes.join(", "))
}

fn rich() -> Sequence {
    let words = Words::new(9, 0);
    let numbers = |shape: [usize; 4], from: usize| {
        let size = shape.iter().product::<usize>();
        let values = (0..size).map(|i| words.value((from + i) as u64)).collect();
        Array4::from_shape_vec(shape, values).unwrap()
    };
    let inputs = Inputs::new(InputParts {
        q: numbers([2, 9, 3, 10], 0),
        k: numbers([2, 3, 9, 10], 100_000),
        v: numbers([2, 3, 9, 3], 200_000),
        attention_mask: None,
        causal: true,
        storage: Storage::F32,
        scaling: None,
    });
    let mut file = ChannelFile::default();
    for layer in 0..2 {
        let rows = (0..9).map(|head| (0..10).map(|c| (3 * c + head + 4) % 10).collect()).collect();
        file.insert(ChannelKind::QkProj, layer, ChannelOrder::new(rows).unwrap());
    }
    let instance = Instance {
        selection: Selection::new(HeavySize::count(2).unwrap(), 5, 4).unwrap(),
        earlier_maskers: Vec::new(),
        dense_layers: Vec::new(),
        channel_selection: ChannelKind::QkProj,
        channel_file: Arc::new(file),
    };
    let call = Call { layer: 0, inputs: Arc::new(inputs.unwrap()), previous: None };
    Sequence { name: "rich".into(), instance, calls: vec![call] }
}

fn with_options(mut sequence: Sequence) -> Sequence {
    let call = &sequence.calls[0];
    let mut inputs = call.inputs.parts().clone();
    inputs.attention_mask = Some(Array4::from_elem((1, 1, 1, 9), 0.5));
    inputs.scaling = Some(0.25);
    let previous = Some(Mask::empty(&call.inputs.dims()));
    sequence.calls[0] = Call { layer: 0, inputs: Arc::new(Inputs::new(inputs).unwrap()), previous };
    sequence
}

/// After two calls in which nothing is left to select.
fn after_others(mut sequence: Sequence) -> Sequence {
    let call = with_parts(&sequence.calls[0], |parts| parts.causal = false);
    let full = Call { previous: Some(Mask::full(&call.inputs.dims())), ..call.clone() };
    sequence.calls = vec![Call { layer: 1, ..full.clone() }, full, call];
    sequence
}

fn with_parts(call: &Call, change: impl FnOnce(&mut InputParts)) -> Call {
    let mut parts = call.inputs.parts().clone();
    change(&mut parts);
    Call { inputs: Arc::new(Inputs::new(parts).unwrap()), ..call.clone() }
}

/// A domain with all sizes of a rich question but for some, which may be a little larger.
fn fixed(free: &[&str]) -> Value {
    let mut sizes = json!({
        "batch": [2], "kv_heads": [3], "group": [3], "queries": [3], "keys": [9], "head_dim": [10],
        "value_dim": [3], "group_factor": [5], "heavy_size": [2], "label_bits": [4], "label_channels": [2],
        "heads": [9]
    });
    for name in free {
        sizes[name] = match *name {
            // Of very few heads causes are hard to tell apart.
            "heads" => json!({"from": 6}),
            "batch" | "kv_heads" | "group" | "value_dim" => json!({"to": 4}),
            "keys" => json!({"to": 10}),
            _ => json!({"from": 1}),
        };
    }
    json!([sizes])
}

/// What is changed in every question without options.
const OPTIONS: [&str; 8] = [
    "A given",
    "P given",
    "another fallback",
    "causal false",
    "dense [0]",
    // 1 / √10
    "scaling Some(0.31622776601683794)",
    "summed-labels",
    "summed-scores",
];

/// Where answers leave a cause open, the failing question is asked again with one thing changed, as far as the domain allows.
#[rstest]
#[case::bits(&["label_bits"], rich(), &["B 16", "B 2", "B 3", "B 5", "B 8"])]
#[case::factors(&["group_factor", "label_channels"], rich(), &["G 10", "G 2", "G 4", "G 6"])]
#[case::batches(
    &["batch"], rich(),
    &[
        "entries of q [0, 1, 0, 1], entries of k [0, 1, 0, 1], entries of v [0, 1, 0, 1]",
        "entries of q [0, 1, 0], entries of k [0, 1, 0], entries of v [0, 1, 0]",
        "entries of q [0], entries of k [0], entries of v [0]",
        "entries of q [1], entries of k [1], entries of v [1]",
    ],
)]
#[case::kv_heads(
    &["kv_heads", "heads"], rich(),
    &[
        "heads of q [0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 1, 2], heads of k [0, 1, 2, 0], heads of v [0, 1, 2, 0]",
        "heads of q [0, 1, 2, 3, 4, 5], heads of k [0, 1], heads of v [0, 1]",
        "heads of q [3, 4, 5, 6, 7, 8], heads of k [1, 2], heads of v [1, 2]",
    ],
)]
#[case::groups(
    &["group", "heads"], rich(),
    &[
        "heads of q [0, 1, 2, 0, 3, 4, 5, 3, 6, 7, 8, 6]", "heads of q [0, 1, 3, 4, 6, 7]",
        "heads of q [1, 2, 4, 5, 7, 8]",
    ],
)]
#[case::head_dims(
    &["head_dim", "label_channels", "group_factor"], rich(),
    &[
        "G 10", "G 2", "G 4", "G 6",
        "channels of q [0, 2, 3, 4, 5, 6, 7, 8, 9], channels of k [0, 2, 3, 4, 5, 6, 7, 8, 9], G 1",
        "channels of q [0, 3, 4, 6, 7], channels of k [0, 3, 4, 6, 7]",
        "channels of q [0, 3, 4, 6, 7], channels of k [0, 3, 4, 6, 7], G 1",
    ],
)]
#[case::value_dims(
    &["value_dim"], rich(),
    &[
        "channels of v [0, 1, 2, 0]", "channels of v [0, 1]", "channels of v [0]",
    ],
)]
#[case::keys(
    &["keys"], rich(),
    &[
        "rows of k [0, 0, 1, 2, 3, 4, 5, 6, 7, 8], rows of v [0, 0, 1, 2, 3, 4, 5, 6, 7, 8]",
        "rows of k [0, 1, 2, 3, 4, 4, 5, 6, 7, 8], rows of v [0, 1, 2, 3, 4, 4, 5, 6, 7, 8]",
        "rows of k [0, 1, 2, 3, 4, 5, 6, 7, 8, 8], rows of v [0, 1, 2, 3, 4, 5, 6, 7, 8, 8]",
        "rows of k [0, 1, 2, 3, 4, 5, 6, 7], rows of v [0, 1, 2, 3, 4, 5, 6, 7]",
        "rows of k [0, 1, 2, 3, 4, 5], rows of v [0, 1, 2, 3, 4, 5]",
        "rows of k [0, 1, 2, 3, 5, 6, 7, 8], rows of v [0, 1, 2, 3, 5, 6, 7, 8]",
        "rows of k [0, 1, 2, 3], rows of v [0, 1, 2, 3]",
        "rows of k [0, 1, 2, 6, 7, 8], rows of v [0, 1, 2, 6, 7, 8]",
        "rows of k [0, 1, 7, 8], rows of v [0, 1, 7, 8]",
        "rows of k [1, 2, 3, 4, 5, 6, 7, 8], rows of v [1, 2, 3, 4, 5, 6, 7, 8]",
        "rows of k [3, 4, 5, 6, 7, 8], rows of v [3, 4, 5, 6, 7, 8]",
        "rows of k [5, 6, 7, 8], rows of v [5, 6, 7, 8]",
    ],
)]
#[case::options(&[], rich(), &OPTIONS)]
#[case::without_options(
    &[], with_options(rich()),
    &[
        "A left out", "P left out", "another fallback", "causal false", "dense [0]", "scaling None",
        "summed-labels", "summed-scores",
    ],
)]
#[case::calls(
    &[], after_others(rich()),
    &[
        "A given", "P given", "another fallback", "calls of layers [0, 0]", "calls of layers [1, 0]",
        "causal true", "dense [0]", "scaling Some(0.31622776601683794)", "summed-labels", "summed-scores",
    ],
)]
fn one_thing_is_changed_at_a_time(#[case] free: &[&str], #[case] start: Sequence, #[case] expected: &[&str]) {
    let domains = domains_from_json(&fixed(free)).unwrap();
    let capabilities = Capabilities { domains, ..Capabilities::default() };
    let (asked, enough) = asked_to_learn(&start, capabilities);
    assert!(enough, "all was asked");
    let mut changes: BTreeSet<String> = asked.iter().filter_map(|asked| change(asked, &start)).collect();
    if !free.is_empty() {
        changes.retain(|change| !OPTIONS.contains(&change.as_str()));
    }
    let expected: BTreeSet<String> = expected.iter().map(|change| (*change).to_owned()).collect();
    assert_eq!(changes, expected);
}

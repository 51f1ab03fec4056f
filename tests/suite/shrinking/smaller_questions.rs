//! Smaller and changed questions once more, where it is easy to stop too early or to ask the wrong one: searches in which one step
//! makes another possible, sizes at which a search changes its ways, channel files with rows for other heads, sessions in which only
//! one request or layer may go, and what is asked to learn of a cause.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use doublecheck::algorithm::config::WindowConfig;
use doublecheck::algorithm::rules::ScoreRule;
use doublecheck::algorithm::{
    ChannelFile, ChannelKind, ChannelOrder, HeavySize, InputParts, Inputs, LabelBits, Lengths, Mask, Padding,
    Rules, Selection, Storage,
};
use doublecheck::cases::domain::domains_from_json;
use doublecheck::cases::recipe::Words;
use doublecheck::cases::sequence::EarlierMasker;
use doublecheck::cases::session::Part;
use doublecheck::cases::{
    Call, Capabilities, Held, Instance, Opening, Outcome, Promise, ScoresCall, SelectionCall, Sequence,
    Session, StageCall, Stages, Step, Takes,
};
use doublecheck::runner::check::{check_sequence, check_stage_call};
use doublecheck::runner::shrink::sessions::shrink_session;
use doublecheck::runner::shrink::shrink;
use doublecheck::runner::shrink::stages::shrink_stage;
use doublecheck::{Limits, Options};
use ndarray::{Array3, Array4};
use rstest::rstest;
use serde_json::{Value, json};

use super::subjects::{Asked, LIMITS, Wrong, asked_to_learn, edges, options, parts};

fn instance(heavy_size: usize, [group_factor, bits]: [u64; 2], file: ChannelFile) -> Instance {
    Instance {
        selection: Selection::new(HeavySize::count(heavy_size).unwrap(), group_factor, bits).unwrap(),
        earlier_maskers: Vec::new(),
        dense_layers: Vec::new(),
        channel_selection: ChannelKind::QkProj,
        channel_file: Arc::new(file),
    }
}

fn with_inputs(call: &Call, change: impl FnOnce(&mut InputParts)) -> Call {
    let mut parts = call.inputs.parts().clone();
    change(&mut parts);
    Call { inputs: Arc::new(Inputs::new(parts).unwrap()), ..call.clone() }
}

/// The sizes of a call.
#[derive(Clone, Copy)]
struct Sizes {
    heads: [usize; 2],
    n: usize,
    d: usize,
    dv: usize,
}

const LEAST: Sizes = Sizes { heads: [1, 1], n: 1, d: 1, dv: 1 };

/// Calls of one query in which every number is 0, as plain as they can be but for these sizes.
fn plain(calls: usize, sizes: Sizes, heavy_size: usize) -> Sequence {
    let Sizes { heads: [h, hk], n, d, dv } = sizes;
    let inputs = Inputs::new(InputParts {
        q: Array4::zeros([1, h, 1, d]),
        k: Array4::zeros([1, hk, n, d]),
        v: Array4::zeros([1, hk, n, dv]),
        attention_mask: None,
        causal: false,
        storage: Storage::F32,
        scaling: None,
    });
    let mut file = ChannelFile::default();
    file.insert(ChannelKind::QkProj, 0, ChannelOrder::new(vec![(0..d).collect()]).unwrap());
    let call = Call { layer: 0, inputs: Arc::new(inputs.unwrap()), previous: None };
    let instance = instance(heavy_size, [1, 16], file);
    Sequence { name: "plain".into(), instance, calls: vec![call; calls] }
}

fn heavy_size(sequence: &Sequence) -> usize {
    sequence.instance.selection.heavy_size.resolve(usize::MAX)
}

/// In what a sequence differs from the plainest.
fn told(sequence: &Sequence) -> String {
    let dims = sequence.calls[0].inputs.dims();
    let rows = sequence.instance.channels(0).unwrap().rows().len();
    let selection = &sequence.instance.selection;
    let sizes = [
        ("calls", sequence.calls.len()),
        ("hk", dims.kv_heads),
        ("g", dims.group_size()),
        ("n", dims.keys),
        ("d", dims.head_dim),
        ("dv", dims.value_dim),
        ("rows", rows),
        ("H", heavy_size(sequence)),
        ("G", selection.group_factor.get()),
        ("earlier", 1 + sequence.instance.earlier_maskers.len()),
    ];
    let sizes = sizes.into_iter().filter(|(_, size)| *size > 1);
    let mut told: Vec<String> = sizes.map(|(name, size)| format!("{name} {size}")).collect();
    let bits = selection.label_bits;
    told.extend(bits.quantises().then(|| format!("B {}", bits.get())));
    let parts = sequence.calls[0].inputs.parts();
    told.extend(parts.scaling.map(|_| "scaled".into()));
    for (name, tensor) in [("k", &parts.k), ("v", &parts.v)] {
        let values: Vec<f32> = tensor.iter().copied().filter(|x| *x != 0.0).collect();
        told.extend((!values.is_empty()).then(|| format!("{name} {values:?}")));
    }
    told.join(", ")
}

/// What is left of a sequence that fails, and how many questions that took.
fn shrunk(start: &Sequence, fails: impl Fn(&Sequence) -> bool) -> (String, usize) {
    assert!(fails(start));
    let found = shrink(start.clone(), LIMITS, &Capabilities::default(), &mut |candidate| fails(candidate));
    assert!(found.finished && fails(&found.sequence));
    (told(&found.sequence), found.tries)
}

/// One of two calls may go once another setting is plainer, be it an option, an earlier masker, B or, with an option, H.
#[test]
fn a_search_goes_on_once_settings_are_plainer() {
    fn several(s: &Sequence) -> bool {
        s.calls.len() > 1
    }
    fn is_scaled(s: &Sequence) -> bool {
        s.calls.iter().any(|call| call.inputs.parts().scaling.is_some())
    }
    fn bits(s: &Sequence) -> u8 {
        s.instance.selection.label_bits.get()
    }
    fn earlier(s: &Sequence) -> usize {
        s.instance.earlier_maskers.len()
    }
    let mut scaled = plain(2, LEAST, 3);
    scaled.calls.iter_mut().for_each(|call| *call = with_inputs(call, |parts| parts.scaling = Some(0.3)));
    let mut masked = plain(2, LEAST, 1);
    let window = WindowConfig { size: HeavySize::count(1).unwrap() };
    masked.instance.earlier_maskers = vec![EarlierMasker::Sink(window), EarlierMasker::Local(window)];
    let mut quantised = plain(2, LEAST, 1);
    quantised.instance.selection.label_bits = LabelBits::new(8).unwrap();
    let found = [
        shrunk(&scaled, |s| heavy_size(s) == 3 && (several(s) || !is_scaled(s))).0,
        shrunk(&scaled, |s| several(s) || (!is_scaled(s) && heavy_size(s) == 1)).0,
        shrunk(&masked, |s| earlier(s) == 1 || (earlier(s) == 2 && several(s))).0,
        shrunk(&quantised, |s| bits(s) == 4 || (bits(s) == 8 && several(s))).0,
    ];
    assert_eq!(found, ["H 3", "", "earlier 2", "B 4"]);
}

fn numbered(mut sequence: Sequence) -> Sequence {
    sequence.calls[0] = with_inputs(&sequence.calls[0], |parts| {
        parts.k.iter_mut().zip(1..).for_each(|(x, number)| *x = number as f32);
    });
    sequence
}

fn marked(sequence: &Sequence, marks: &[usize]) -> bool {
    let k = &sequence.calls[0].inputs.parts().k;
    marks.iter().all(|mark| k.iter().any(|x| *x == *mark as f32))
}

fn head_dim(sequence: &Sequence) -> usize {
    sequence.calls[0].inputs.dims().head_dim
}

/// Up to 24 channels each of them may go, and two of six may stay with one label, whichever they are.
#[test]
fn any_channels_may_be_left() {
    let of = |d: usize| numbered(plain(1, Sizes { d, ..LEAST }, 1));
    assert_eq!(shrunk(&of(24), |s| marked(s, &[24])).0, "k [24.0]");
    let mut start = of(6);
    start.instance.selection = Selection::new(HeavySize::count(1).unwrap(), 2, 16).unwrap();
    let factor = |s: &Sequence| s.instance.selection.group_factor.get();
    let found =
        shrunk(&start, |s| head_dim(s) == 6 || (head_dim(s) == 2 && factor(s) == 2 && marked(s, &[1, 5])));
    // 5 numbers of leading channels, with G of 1 and 2, then channels 0 and 1 to 4. Of the two that are left the leading one, with both,
    // either one, with three, and both with G of 1. Twice 6 times plainer numbers in place of 1 and 5.
    assert_eq!(found, ("d 2, G 2, k [1.0, 5.0]".into(), 10 + 4 + 9 + 2 * 6));
}

/// Up to 64 an H is lowered by few steps: to 1, 2, half of it, or by 1. 4 questions for each number from 64 to 41.
#[test]
fn an_h_of_64_is_lowered_step_by_step() {
    assert_eq!(shrunk(&plain(1, LEAST, 64), |s| heavy_size(s) > 40), ("H 41".into(), 4 * 24));
}

/// Rows of a channel file go with their KV heads; what it says of a layer that is not called stays, also for other heads.
#[test]
fn channel_rows_go_with_their_kv_heads() {
    let mut start = plain(1, Sizes { heads: [9, 3], ..LEAST }, 1);
    let file = Arc::make_mut(&mut start.instance.channel_file);
    file.insert(ChannelKind::QkProj, 0, ChannelOrder::new(vec![vec![0]; 3]).unwrap());
    file.insert(ChannelKind::QkProj, 7, ChannelOrder::new(vec![vec![0]; 2]).unwrap());
    let kv_heads = |s: &Sequence| s.calls[0].inputs.dims().kv_heads;
    assert_eq!(shrunk(&start, |s| kv_heads(s) > 1).0, "hk 2, rows 2");
    let other = |s: &Sequence| s.instance.channel_file.order(ChannelKind::QkProj, 7).is_ok();
    assert_eq!(shrunk(&start, |s| kv_heads(s) > 1 && other(s)).0, "hk 2, rows 2");
}

/// 64 is plainer than 64.3, and of up to 512 numbers each one is made plainer.
#[test]
fn each_number_is_made_plainer() {
    let with_values = |values: &[f32]| {
        let mut sequence = plain(1, Sizes { dv: values.len(), ..LEAST }, 1);
        sequence.calls[0] = with_inputs(&sequence.calls[0], |parts| {
            parts.v.iter_mut().zip(values).for_each(|(place, x)| *place = *x);
        });
        sequence
    };
    let values = |s: &Sequence| s.calls[0].inputs.parts().v.iter().copied().collect::<Vec<f32>>();
    let found = shrunk(&with_values(&[64.3]), |s| (63.9..64.4).contains(&values(s)[0]));
    assert_eq!(found.0, "v [64.0]");
    let sevens = [7.0; 511];
    let start = with_values(&[&[5.0], &sevens[..]].concat());
    let found = shrunk(&start, |s| values(s).len() == 512 && values(s)[1..] == sevens);
    assert_eq!(found.0, format!("dv 512, v {sevens:?}"));
}

/// Questions that take 5 ms each take at least so long together.
#[test]
fn the_time_of_a_search_is_told() {
    let mut slow = |_: &Sequence| {
        std::thread::sleep(Duration::from_millis(5));
        true
    };
    let found = shrink(plain(1, LEAST, 2), LIMITS, &Capabilities::default(), &mut slow);
    assert_eq!(found.tries, 1);
    assert!(found.seconds >= 0.005, "{}", found.seconds);
}

/// What is left of a question to a stage.
fn shrunk_stage(
    start: StageCall,
    domain: Option<Value>,
    fails: impl Fn(&StageCall) -> bool,
) -> (StageCall, usize) {
    let stages = Stages::new(start.takes(), None).unwrap();
    let domains = domain.map_or_else(Vec::new, |domain| domains_from_json(&domain).unwrap());
    let capabilities = Capabilities { stages, domains, ..Capabilities::default() };
    assert!(fails(&start) && capabilities.offers_stage(&start));
    let found = shrink_stage(start, LIMITS, &capabilities, &mut |candidate| fails(candidate));
    assert!(found.finished && fails(&found.call));
    (found.call, found.tries)
}

fn scores(shape: [usize; 4], numbers: Vec<f32>) -> StageCall {
    let scores = Array4::from_shape_vec(shape, numbers).unwrap();
    StageCall::Scores(ScoresCall::new(scores, Storage::F32, 1.try_into().unwrap()).unwrap())
}

fn scores_of(call: &StageCall) -> Vec<f32> {
    match call {
        StageCall::Scores(call) => call.scores().iter().copied().collect(),
        StageCall::Selection(_) => Vec::new(),
    }
}

/// Where the number of keys is given, everything else becomes smaller.
#[test]
fn questions_of_a_given_number_of_keys_become_smaller() {
    let start = scores([5, 3, 4, 13], vec![0.0; 5 * 3 * 4 * 13]);
    let found = shrunk_stage(start, Some(json!([{"keys": [13]}])), |_| true).0;
    let dims = found.dims();
    assert_eq!([dims.batch, dims.heads, dims.queries, dims.keys], [1, 1, 1, 13]);
}

/// Whole numbers below 1000 are plainer than fractions, also where they are large.
#[rstest]
#[case(1.7, 2.0)]
#[case(500.3, 500.0)]
fn numbers_of_a_selection_are_rounded(#[case] x: f32, #[case] expected: f32) {
    let inputs = with_inputs(&plain(1, LEAST, 1).calls[0], |parts| parts.v.fill(x)).inputs;
    let mask = Mask::empty(&inputs.dims());
    let start = StageCall::Selection(SelectionCall { inputs, mask });
    let value = |call: &StageCall| match call {
        StageCall::Selection(call) => call.inputs.parts().v[[0, 0, 0, 0]],
        StageCall::Scores(_) => f32::NAN,
    };
    let found = shrunk_stage(start, None, |call| (value(call) - expected).abs() <= 0.5).0;
    assert_eq!(value(&found), expected);
}

/// In place of scores there are their ranks, but −∞ stays.
#[test]
fn minus_infinity_stays_where_scores_become_ranks() {
    let finite = (1..70).map(|i| 1.5 * i as f32 - 30.25);
    let start = scores([1, 1, 1, 70], [f32::NEG_INFINITY].into_iter().chain(finite).collect());
    let fails = |call: &StageCall| {
        let scores = scores_of(call);
        scores.len() == 70
            && scores[0] == f32::NEG_INFINITY
            && scores.windows(2).all(|pair| pair[0] < pair[1])
    };
    let found = scores_of(&shrunk_stage(start, None, fails).0);
    // 20 are below 0.
    let ranks = (0..69).map(|rank| rank as f32 - 20.0);
    assert_eq!(found, [f32::NEG_INFINITY].into_iter().chain(ranks).collect::<Vec<f32>>());
}

/// Up to 64 keys are taken away in runs from every place at once, without a search for their number before.
#[test]
fn few_keys_are_taken_away_from_every_place() {
    let start = scores([1, 1, 1, 64], vec![0.0; 64]);
    let (found, tries) = shrunk_stage(start, None, |call| call.dims().keys > 20);
    // Runs of 32, 16, 8, 4, 2 and 1, of which 32, 8, 2 and 1 work once; then of 10, 5, 2 and 1.
    assert_eq!((found.dims().keys, tries), (21, 1 + 2 + 4 + 6 + 12 + 22 + 3 + 5 + 11 + 21));
}

fn append(layer: usize, parts: &[Part], numbers: &[f32]) -> Step {
    let rows = parts.iter().map(|(_, count)| count).sum();
    let number = |(row, _, _): (usize, usize, usize)| numbers.get(row).copied().unwrap_or(0.0);
    let k = Array3::from_shape_fn((rows, 1, 1), number);
    Step::Append { layer, parts: parts.to_vec(), k, v: Array3::zeros((rows, 1, 1)) }
}

/// As plain as a session can be but for its layers, pages and steps.
fn session(layers: &[usize], [page_size, pages]: [usize; 2], steps: Vec<Step>) -> Session {
    let mut file = ChannelFile::default();
    file.insert(ChannelKind::QkProj, 5, ChannelOrder::new(vec![vec![0]]).unwrap());
    let opening = Opening {
        layers: layers.to_vec(),
        capacity: page_size * pages,
        page_size,
        heads: 1,
        kv_heads: 1,
        head_dim: 1,
        value_dim: 1,
        dtype: Storage::F32,
        scaling: None,
    };
    Session { name: "session".into(), instance: instance(1, [1, 16], file), opening, steps }
}

fn told_of_session(session: &Session) -> String {
    let of_parts = |parts: &[Part]| -> String {
        parts.iter().map(|(request, count)| format!(" {request}:{count}")).collect()
    };
    let step = |step: &Step| match step {
        Step::Append { layer, parts, .. } => format!("append {layer}{}", of_parts(parts)),
        Step::Attend { layer, parts, .. } => format!("attend {layer}{}", of_parts(parts)),
        Step::Truncate { request, length } => format!("truncate {request} {length}"),
        other => format!("{} {:?}", other.name(), other.requests()),
    };
    session.steps.iter().map(step).collect::<Vec<_>>().join(", ")
}

fn shrunk_session(start: &Session, fails: impl Fn(&Session) -> bool) -> Session {
    let capabilities = Capabilities { sessions: true, ..Capabilities::default() };
    assert!(capabilities.offers_session(start) && fails(start));
    let found = shrink_session(start.clone(), LIMITS, &capabilities, &mut |candidate| fails(candidate));
    assert!(found.finished && fails(&found.session));
    found.session
}

/// Where only a certain request may go, that one goes; and what may go after it goes as well. Keys of one request cannot be taken away
/// alone here, as both layers must hold the same.
#[rstest]
#[case::the_middle_one(&[&[1, 2, 3][..], &[1, 3]], "append 2 1:1 3:1, append 5 1:1 3:1")]
#[case::the_last_and_then_the_first(&[&[1, 2, 3][..], &[1, 2], &[2]], "append 2 2:1, append 5 2:1")]
fn requests_go_one_after_the_other(#[case] failing: &[&[usize]], #[case] expected: &str) {
    let parts = [(1, 1), (2, 1), (3, 1)];
    let start = session(&[2, 5], [1, 3], vec![append(2, &parts, &[]), append(5, &parts, &[])]);
    let fails = |s: &Session| {
        let is_alike = s.steps.iter().all(|step| step.requests() == s.steps[0].requests());
        let requests = s.steps[0].requests();
        let layers: Vec<Option<usize>> = s.steps.iter().map(Step::layer).collect();
        layers == [Some(2), Some(5)]
            && s.opening.capacity == 3
            && is_alike
            && failing.iter().any(|failing| requests == *failing)
    };
    assert_eq!(told_of_session(&shrunk_session(&start, fails)), expected);
}

/// The last layer may go and then the first: also where a step must still be refused, and where a length must become shorter.
#[test]
fn layers_go_one_after_the_other() {
    let fails = |s: &Session| {
        let layers = s.opening.layers.as_slice();
        let appended: Vec<usize> =
            s.steps.iter().filter(|step| step.name() == "append").filter_map(Step::layer).collect();
        [&[2, 5, 7][..], &[2, 5], &[5]].contains(&layers) && appended == layers
    };
    let one = [(1, 1)];
    let appends = |last| vec![append(2, &one, &[]), append(5, &one, &[]), append(7, &[(1, last)], &[])];
    let start = session(&[2, 5, 7], [1, 1], [appends(1), vec![Step::Free { request: 2 }]].concat());
    let refused = |s: &Session| {
        let outcomes = s.outcomes().unwrap();
        outcomes.iter().filter(|outcome| **outcome != Outcome::Done).count() == 1
    };
    let found = shrunk_session(&start, |s| fails(s) && refused(s));
    assert_eq!(told_of_session(&found), "append 5 1:1, free [2]");
    let start =
        session(&[2, 5, 7], [1, 2], [appends(2), vec![Step::Truncate { request: 1, length: 2 }]].concat());
    let is_kept = |s: &Session| {
        let done = s.outcomes().unwrap().iter().all(|outcome| *outcome == Outcome::Done);
        let kept = matches!(s.steps.last(), Some(Step::Truncate { length, .. }) if *length == s.longest());
        let keys = if s.opening.layers.len() == 3 { 2 } else { 1 };
        done && kept && s.opening.capacity == 2 && s.longest() == keys
    };
    let found = shrunk_session(&start, |s| fails(s) && is_kept(s));
    assert_eq!(told_of_session(&found), "append 5 1:1, truncate 1 1");
}

/// Pages of one token fewer are tried, and half as many pages, also where none between fails.
#[test]
fn pages_become_smaller_and_fewer() {
    let of = |pages| session(&[5], pages, vec![append(5, &[(1, 1)], &[])]);
    let found = shrunk_session(&of([12, 1]), |s| [11, 12].contains(&s.opening.page_size));
    assert_eq!(found.opening.page_size, 11);
    let found = shrunk_session(&of([1, 40]), |s| [20, 40].contains(&s.opening.capacity));
    assert_eq!(found.opening.capacity, 20);
}

/// Two appends become one in which each request has its own keys in their order.
#[test]
fn joined_appends_keep_the_keys_of_each_request() {
    let first = append(5, &[(1, 2), (2, 1)], &[10.0, 11.0, 12.0]);
    let second = append(5, &[(1, 1), (2, 2)], &[20.0, 21.0, 22.0]);
    let start = session(&[5], [1, 6], vec![first, second]);
    let keys = |s: &Session| {
        let mut held = Held::new(&s.opening);
        for step in &s.steps {
            if held.outcome(step) == Outcome::Done {
                held.apply(step);
            }
        }
        [1, 2].map(|request| held.tokens(request, 5).iter().map(|key| key.k[[0, 0]]).collect::<Vec<_>>())
    };
    let found = shrunk_session(&start, |s| keys(s) == [vec![10.0, 11.0, 20.0], vec![12.0, 21.0, 22.0]]);
    assert_eq!(told_of_session(&found), "append 5 1:3 2:3");
}

/// Whatever the search was at when it reached its limit, it says that it was not finished.
#[test]
fn a_search_for_a_session_that_its_limit_ends_says_so() {
    let mut start = session(&[2, 5], [2, 3], vec![append(5, &[(1, 2)], &[0.3]), append(2, &[(1, 1)], &[])]);
    start.opening.scaling = Some(0.3);
    start.instance.selection = Selection::new(HeavySize::count(3).unwrap(), 1, 4).unwrap();
    let capabilities = Capabilities { sessions: true, ..Capabilities::default() };
    let shrunk = |tries| {
        let limits = Limits { tries, ..LIMITS };
        let found = shrink_session(start.clone(), limits, &capabilities, &mut |_| true);
        (found.tries, found.finished)
    };
    let (questions, finished) = shrunk(LIMITS.tries);
    assert!(finished);
    for tries in 0..=questions {
        assert_eq!(shrunk(tries), (tries, false));
    }
}

/// A call with random numbers, h = [heads, KV heads], and a file whose rows of channels are given.
fn random(
    seed: u64,
    [b, m, n]: [usize; 3],
    [h, hk]: [usize; 2],
    d: usize,
    rows: Vec<Vec<usize>>,
) -> Sequence {
    let words = Words::new(seed, 0);
    let numbers = |shape: [usize; 4], from: usize| {
        let size = shape.iter().product::<usize>();
        let values = (0..size).map(|i| words.value((from + i) as u64)).collect();
        Array4::from_shape_vec(shape, values).unwrap()
    };
    let inputs = Inputs::new(InputParts {
        q: numbers([b, h, m, d], 0),
        k: numbers([b, hk, n, d], 100_000),
        v: numbers([b, hk, n, 3], 200_000),
        attention_mask: None,
        causal: true,
        storage: Storage::F32,
        scaling: None,
    });
    let mut file = ChannelFile::default();
    file.insert(ChannelKind::QkProj, 0, ChannelOrder::new(rows).unwrap());
    let call = Call { layer: 0, inputs: Arc::new(inputs.unwrap()), previous: None };
    Sequence { name: "random".into(), instance: instance(2, [1, 16], file), calls: vec![call] }
}

/// Sizes beside an edge are asked once each, and with H as it is or moved along: here a call fails where n − H is 70 or a multiple.
#[test]
fn edges_are_told_of_other_sizes_only() {
    let domains = domains_from_json(&json!([{"keys": {"multiple_of": 16}}])).unwrap();
    let capabilities = Capabilities { domains, ..Capabilities::default() };
    let fails = |call: &Call, _| call.inputs.dims().keys > 20;
    let mut subject = Wrong { fails, ..Wrong::new(capabilities) };
    let asked = random(9, [1, 1, 160], [1, 1], 2, vec![vec![0, 1]]);
    let report = check_sequence(&mut subject, &asked, &options(2000), &mut |_| {});
    assert_eq!(edges(&report), ["n = 16 conforms, n = 32 fails; fails at 48"]);
    let fails = |call: &Call, heavy_size| call.inputs.dims().keys == heavy_size + 70;
    let mut subject = Wrong { fails, ..Wrong::new(Capabilities::default()) };
    let mut asked = random(9, [1, 1, 120], [1, 1], 2, vec![vec![0, 1]]);
    asked.instance.selection.heavy_size = HeavySize::count(50).unwrap();
    let report = check_sequence(&mut subject, &asked, &options(2000), &mut |_| {});
    assert_eq!(edges(&report), ["n = 70 conforms, n = 71 fails; fails at 72, 140, 141, 210, 211"]);
}

/// The last entry that every call has is asked alone: a subject that answers it otherwise breaks its promise.
#[test]
fn one_entry_is_asked_alone() {
    let promises = Some([Promise::BatchInvariant].into());
    let capabilities = Capabilities { promises, ..Capabilities::default() };
    let mut asked = random(9, [3, 2, 9], [1, 1], 2, vec![vec![0, 1]]);
    asked.calls.extend(random(9, [2, 2, 9], [1, 1], 2, vec![vec![0, 1]]).calls);
    type OfCall = (fn(&Call, usize) -> bool, usize);
    let cases: [OfCall; 2] = [(|_, _| false, 2), (|call, _| call.inputs.dims().batch == 1, 0)];
    for (fails, held) in cases {
        let mut subject = Wrong { fails, ..Wrong::new(capabilities.clone()) };
        let report = check_sequence(&mut subject, &asked, &options(200), &mut |_| {});
        let promised = report.promises["batch-invariant"];
        assert_eq!((promised.held, promised.of), (held, 2), "{report}");
    }
    type OfScores = (fn(&ScoresCall) -> bool, usize);
    let cases: [OfScores; 2] = [(|_| false, 1), (|call| call.dims().batch == 1, 0)];
    let stages = Stages::new(Takes::Scores, None).unwrap();
    for (fails_at, held) in cases {
        let mut subject =
            Wrong { fails_at, ..Wrong::new(Capabilities { stages: stages.clone(), ..capabilities.clone() }) };
        let call = scores([2, 1, 1, 9], (0..18).map(|i| (7 * i % 19) as f32).collect());
        let report = check_stage_call(&mut subject, ("scores", &call), &options(200), &mut |_| {});
        let promised = report.promises["batch-invariant"];
        assert_eq!((promised.held, promised.of), (held, 1), "{report}");
    }
}

/// Answers to smaller questions are waited for until a second after the search must end.
#[test]
fn no_smaller_question_is_waited_for_long_after_the_limit() {
    let fails = |call: &Call, _| call.inputs.dims().keys > 5;
    let mut subject = Wrong { fails, ..Wrong::new(Capabilities::default()) };
    let shrinking = Limits { time: Duration::from_secs(60), ..LIMITS };
    let options = Options { shrinking, ..options(200) };
    let asked = random(9, [1, 1, 9], [1, 1], 2, vec![vec![0, 1]]);
    let report = check_sequence(&mut subject, &asked, &options, &mut |_| {});
    assert_eq!(report.findings.len(), 1, "{report}");
    assert!(!subject.patience.is_empty());
    assert!(subject.patience.iter().all(|patience| *patience <= Duration::from_secs(61)));
}

/// An A of one number for all keys stays one where padding is added.
#[test]
fn calls_with_one_number_for_all_keys_are_asked_with_more_padding() {
    let promises = Some([Promise::CapacityInvariant].into());
    let capabilities = Capabilities { promises, ragged: true, ..Capabilities::default() };
    let mut asked = random(9, [2, 1, 9], [1, 1], 2, vec![vec![0, 1]]);
    let additive = Some(Array4::from_elem((1, 1, 1, 1), 0.5));
    asked.calls[0] = with_inputs(&asked.calls[0], |parts| parts.attention_mask = additive);
    asked.calls[0] = asked.calls[0].with_lengths(Lengths::new(vec![9, 5], Padding::Nan)).unwrap();
    let mut subject = Wrong::new(capabilities);
    let report = check_sequence(&mut subject, &asked, &options(200), &mut |_| {});
    let promised = report.promises["capacity-invariant"];
    assert_eq!((promised.held, promised.of), (1, 1), "{report}");
}

/// In what a question differs from another that it was made from.
fn change((instance, calls): &Asked, original: &Sequence) -> Option<String> {
    let (call, old) = (calls.last()?, original.calls.last()?);
    let (tensors, old_tensors) = (call.inputs.parts(), old.inputs.parts());
    let mut changes = Vec::new();
    let axes = [(0, "entries"), (1, "heads"), (2, "rows"), (3, "channels")];
    for (name, of, old) in [("q", &tensors.q, &old_tensors.q), ("k", &tensors.k, &old_tensors.k)] {
        let differing = |&&(axis, _): &&(usize, &str)| of.shape()[axis] != old.shape()[axis];
        let (axis, what) = axes.iter().find(differing).copied().unwrap_or(axes[0]);
        let kept = parts(of, old, axis)?;
        if kept.iter().copied().ne(0..old.shape()[axis]) {
            changes.push(format!("{what} of {name} {kept:?}"));
        }
    }
    let mut tell = |is_same: bool, told: String| {
        if !is_same {
            changes.push(told);
        }
    };
    let (new, old_selection) = (&instance.selection, &original.instance.selection);
    tell(new.heavy_size == old_selection.heavy_size, format!("H {}", new.heavy_size));
    tell(new.group_factor == old_selection.group_factor, format!("G {}", new.group_factor.get()));
    tell(new.label_bits == old_selection.label_bits, format!("B {}", new.label_bits.get()));
    tell(new.rules == old_selection.rules, "other rules".into());
    let earlier = instance.earlier_maskers.len();
    tell(earlier == original.instance.earlier_maskers.len(), format!("{earlier} earlier maskers"));
    tell(calls.len() == original.calls.len(), format!("{} calls", calls.len()));
    let is_ragged = call.inputs.lengths().is_some();
    tell(is_ragged == old.inputs.lengths().is_some(), format!("lengths {is_ragged}"));
    let rows = |instance: &Instance| instance.channels(0).map(|order| order.rows().len()).ok();
    tell(rows(instance) == rows(&original.instance), "other rows of channels".into());
    // Options that every question has, given or not.
    let option = tensors.causal != old_tensors.causal
        || tensors.scaling != old_tensors.scaling
        || tensors.storage != old_tensors.storage
        || tensors.attention_mask.is_some() != old_tensors.attention_mask.is_some()
        || call.previous.is_some() != old.previous.is_some()
        || new.heads != old_selection.heads
        || new.dense_fallback != old_selection.dense_fallback
        || instance.dense_layers != original.instance.dense_layers;
    tell(!option, "an option".into());
    Some(changes.join(", "))
}

/// A domain with the sizes of a question but for some, which may be others.
fn fixed(sequence: &Sequence, free: &[&str]) -> Value {
    let dims = sequence.calls.last().unwrap().inputs.dims();
    let factor = sequence.instance.selection.group_factor.get();
    let mut sizes = json!({
        "batch": [dims.batch], "kv_heads": [dims.kv_heads], "group": [dims.group_size()],
        "queries": [dims.queries], "keys": [dims.keys], "head_dim": [dims.head_dim],
        "value_dim": [dims.value_dim], "group_factor": [factor], "heavy_size": [2],
        "label_bits": [sequence.instance.selection.label_bits.get()],
        "label_channels": [dims.head_dim / factor], "heads": [dims.heads]
    });
    for name in free {
        let limit = if ["batch", "kv_heads", "group"].contains(name) { "to" } else { "from" };
        sizes[name] = json!({ limit: if limit == "to" { 4 } else { 1 } });
    }
    json!([sizes])
}

/// Three queries of nine keys; B = 4.
fn quantised(seed: u64, [b, h, hk]: [usize; 3], d: usize, factor: u64, rows: Vec<Vec<usize>>) -> Sequence {
    let mut sequence = random(seed, [b, 3, 9], [h, hk], d, rows);
    sequence.instance.selection = Selection::new(HeavySize::count(2).unwrap(), factor, 4).unwrap();
    sequence
}

fn shuffled(d: usize, step: usize) -> Vec<Vec<usize>> {
    (0..9).map(|head| (0..d).map(|c| (step * c + head + 4) % d).collect()).collect()
}

/// Two entries, three heads for each of three KV heads.
fn rich(seed: u64) -> Sequence {
    quantised(seed, [2, 9, 3], 10, 5, shuffled(10, 3))
}

/// After a call of three entries in which nothing is left to select.
fn after_a_larger_batch(seed: u64) -> Sequence {
    let mut sequence = rich(seed);
    let call = random(seed, [3, 3, 9], [9, 3], 10, shuffled(10, 3)).calls.remove(0);
    let call = with_inputs(&call, |parts| parts.causal = false);
    let full = Call { previous: Some(Mask::full(&call.inputs.dims())), ..call };
    sequence.calls.insert(0, full);
    sequence
}

/// Twelve channels, of which two are labels.
fn of_twelve_channels(seed: u64) -> Sequence {
    quantised(seed, [2, 9, 3], 12, 6, shuffled(12, 5))
}

/// A row of few channels.
fn of_few_channels(seed: u64) -> Sequence {
    quantised(seed, [1, 1, 1], 10, 5, vec![vec![4, 7, 0]])
}

/// One head, of which there is a row of channels for all heads.
fn of_one_head(seed: u64) -> Sequence {
    quantised(seed, [2, 1, 1], 10, 5, shuffled(10, 3)[..1].to_vec())
}

/// H as a fraction, an earlier masker and unequal lengths.
fn with_options(seed: u64) -> Sequence {
    let mut sequence = of_one_head(seed);
    let instance = &mut sequence.instance;
    instance.selection.heavy_size = HeavySize::fraction(0.25).unwrap();
    let window = WindowConfig { size: HeavySize::count(1).unwrap() };
    instance.earlier_maskers = vec![EarlierMasker::Sink(window)];
    let lengths = Lengths::new(vec![9, 8], Padding::Nan);
    sequence.calls[0] = sequence.calls[0].with_lengths(lengths).unwrap();
    sequence
}

fn with_other_rules(seed: u64) -> Sequence {
    let mut sequence = of_one_head(seed);
    sequence.instance.selection.rules = Rules { score: ScoreRule::Relu, ..Rules::default() };
    sequence
}

/// Where answers leave a cause open, the failing question is asked again with one thing changed, as far as the domain allows.
#[rstest]
#[case::heavy_sizes(9, rich, &["heavy_size"], &["H 1", "H 3", "H 4", "H 8"])]
#[case::queries(
    9, rich, &["queries"],
    &[
        "rows of q [0, 1, 2, 0, 1, 2]", "rows of q [0, 1, 2, 0]", "rows of q [0, 1]", "rows of q [0]",
        "rows of q [1, 2]", "rows of q [2]",
    ],
)]
// r = 2: with 1, 3 and 4 labels; G = 6: with a G of 3, 5, 7 and 12.
#[case::label_channels(
    9, of_twelve_channels, &["label_channels", "group_factor"],
    &["G 12", "G 3", "G 4", "G 5", "G 7"],
)]
// Half of the channels are those that the row lists and the first others.
#[case::head_dims(
    0, of_few_channels, &["head_dim", "label_channels"],
    &["channels of q [0, 1, 2, 4, 7], channels of k [0, 1, 2, 4, 7]"],
)]
// Entries of calls of unequal batches are not left out.
#[case::batches(9, after_a_larger_batch, &["batch"], &["1 calls"])]
#[case::options(1, with_options, &[], &["H 2", "0 earlier maskers", "lengths false"])]
#[case::rules(0, with_other_rules, &[], &["other rules"])]
#[case::one_head(
    9, of_one_head, &["heads", "group", "kv_heads"],
    &[
        "heads of q [0, 0, 0, 0]", "heads of q [0, 0, 0, 0], heads of k [0, 0, 0, 0]", "heads of q [0, 0]",
        "heads of q [0, 0], heads of k [0, 0]",
    ],
)]
fn one_thing_more_is_changed_at_a_time(
    #[case] seed: u64,
    #[case] start: fn(u64) -> Sequence,
    #[case] free: &[&str],
    #[case] expected: &[&str],
) {
    // The first question of which the answers leave the cause open.
    let changes = (seed..seed + 20).map(|seed| changes(&start(seed), free)).find(|all| !all.is_empty());
    let mut changes = changes.expect("no cause was left open");
    changes.retain(|change| !change.contains("an option"));
    let expected: BTreeSet<String> = expected.iter().map(|change| (*change).to_owned()).collect();
    assert_eq!(changes, expected);
}

/// In what the questions that are asked to learn of the cause differ from the failing one.
fn changes(start: &Sequence, free: &[&str]) -> BTreeSet<String> {
    let domains = domains_from_json(&fixed(start, free)).unwrap();
    let rules = vec![Rules::default(), Rules { score: ScoreRule::Relu, ..Rules::default() }];
    let capabilities = Capabilities { domains, rules, ragged: true, ..Capabilities::default() };
    let (asked, _) = asked_to_learn(start, capabilities);
    asked.iter().filter_map(|asked| change(asked, start)).collect()
}

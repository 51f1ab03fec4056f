//! What shrinking promises: what is left still fails, is as small and plain as the failure lets it be in every respect, and was within
//! what the subject may be asked all along; and how many questions that takes.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::sync::Arc;

use doublecheck::algorithm::config::WindowConfig;
use doublecheck::algorithm::rules::ScoreRule;
use doublecheck::algorithm::{
    ChannelFile, ChannelKind, ChannelOrder, Dims, HeadMode, HeavySize, InputParts, Inputs, Lengths, Mask,
    Padding, Rules, Selection, Storage,
};
use doublecheck::cases::domain::domains_from_json;
use doublecheck::cases::recipe::Words;
use doublecheck::cases::sequence::EarlierMasker;
use doublecheck::cases::{
    Call, Capabilities, Instance, ScoresCall, SelectionCall, Sequence, StageCall, Stages, Takes,
};
use doublecheck::runner::shrink::stages::shrink_stage;
use doublecheck::runner::shrink::{Limits, shrink};
use ndarray::{Array3, Array4};
use rstest::rstest;
use serde_json::json;

use super::subjects::LIMITS;

fn numbers(shape: [usize; 4], words: &Words, from: usize) -> Array4<f32> {
    let size = shape.iter().product::<usize>();
    let values = (0..size).map(|i| words.value((from + i) as u64)).collect();
    Array4::from_shape_vec(shape, values).unwrap()
}

/// The sizes of a call, and the layer.
#[derive(Clone, Copy)]
struct Size {
    layer: usize,
    batch: usize,
    queries: usize,
    keys: usize,
}

/// Calls with three heads for each of three KV heads.
fn calls(sizes: &[Size], d: usize, dv: usize) -> Vec<Call> {
    let call = |(index, size): (usize, &Size)| {
        let Size { layer, batch: b, queries: m, keys: n } = *size;
        let words = Words::new(11, index as u64);
        let inputs = Inputs::new(InputParts {
            q: numbers([b, 9, m, d], &words, 0),
            k: numbers([b, 3, n, d], &words, 100_000),
            v: numbers([b, 3, n, dv], &words, 200_000),
            attention_mask: None,
            causal: false,
            storage: Storage::F32,
            scaling: None,
        });
        Call { layer, inputs: Arc::new(inputs.unwrap()), previous: None }
    };
    sizes.iter().enumerate().map(call).collect()
}

fn instance(heavy_size: HeavySize, d: usize) -> Instance {
    let mut file = ChannelFile::default();
    for layer in 0..3 {
        let rows = (0..9).map(|head| (0..d).map(|c| (5 * c + head + layer + 3) % d).collect()).collect();
        file.insert(ChannelKind::QkProj, layer, ChannelOrder::new(rows).unwrap());
    }
    Instance {
        selection: Selection::new(heavy_size, 2, 4).unwrap(),
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

/// Three calls of sizes that are no powers of two.
fn several() -> Sequence {
    let sizes = [(0, 5, 5, 13), (1, 3, 3, 11), (0, 5, 5, 13)];
    let sizes = sizes.map(|(layer, batch, queries, keys)| Size { layer, batch, queries, keys });
    let instance = instance(HeavySize::count(5).unwrap(), 8);
    Sequence { name: "several".into(), instance, calls: calls(&sizes, 8, 5) }
}

/// One call with everything that can be given or set.
fn with_everything() -> Sequence {
    let size = Size { layer: 1, batch: 3, queries: 3, keys: 7 };
    let mut instance = instance(HeavySize::fraction(0.5).unwrap(), 8);
    let file = Arc::make_mut(&mut instance.channel_file);
    file.insert(ChannelKind::KProj, 1, ChannelOrder::new(vec![(0..8).collect()]).unwrap());
    let window = WindowConfig { size: HeavySize::count(1).unwrap() };
    instance.earlier_maskers = vec![EarlierMasker::Sink(window), EarlierMasker::Local(window)];
    instance.dense_layers = vec![0];
    instance.selection.dense_fallback = true;
    instance.selection.heads = HeadMode::SummedScores;
    instance.selection.rules = Rules { score: ScoreRule::Relu, ..Rules::default() };
    let call = with_inputs(&calls(&[size], 8, 5)[0], |parts| {
        parts.attention_mask = Some(numbers([3, 9, 3, 7], &Words::new(5, 5), 0));
        parts.causal = true;
        parts.storage = Storage::F16;
        parts.scaling = Some(0.3);
    });
    let weights = Array3::from_shape_fn((3, 9, 3), |(b, h, m)| (b + h + m) as f32 / 3.0);
    let inputs = Inputs::clone(&call.inputs).with_head_weights(Some(weights)).unwrap();
    let mut previous = Mask::empty(&call.inputs.dims());
    call.inputs.dims().rows().for_each(|row| previous.add(row, [1, 2]));
    let call = Call { inputs: Arc::new(inputs), previous: Some(previous), ..call };
    let call = call.with_lengths(Lengths::new(vec![5, 7, 0], Padding::Large)).unwrap();
    Sequence { name: "everything".into(), instance, calls: vec![call] }
}

fn heavy_size(sequence: &Sequence) -> usize {
    sequence.instance.selection.heavy_size.resolve(usize::MAX)
}

/// The numbers other than 0.
fn values(name: &str, tensor: impl IntoIterator<Item = f32>) -> Option<String> {
    let values: Vec<f32> = tensor.into_iter().filter(|x| x.to_bits() != 0).collect();
    (!values.is_empty()).then(|| format!("{name} {values:?}"))
}

/// Everything in which a sequence differs from the plainest of all: one call of layer 0 with one batch entry, head, query, key and
/// channel, H = 1, unquantised labels, no options, and all numbers 0.
fn told(sequence: &Sequence) -> String {
    let Instance { selection, earlier_maskers, dense_layers, channel_file, .. } = &sequence.instance;
    let mut told: Vec<String> = Vec::new();
    let mut tell = |plain: bool, what: String| {
        if !plain {
            told.push(what);
        }
    };
    let count = sequence.calls.len();
    tell(count == 1, format!("{count} calls"));
    for call in &sequence.calls {
        let dims = call.inputs.dims();
        let Dims { batch, kv_heads, queries, keys, head_dim, value_dim, .. } = dims;
        let sizes = [("b", batch), ("hk", kv_heads), ("g", dims.group_size()), ("m", queries), ("n", keys)];
        let widths = [("d", head_dim), ("dv", value_dim)];
        sizes.into_iter().chain(widths).for_each(|(name, size)| tell(size == 1, format!("{name} {size}")));
        let parts = call.inputs.parts();
        tell(!parts.causal, "causal".into());
        tell(parts.storage == Storage::F32, parts.storage.to_string());
        tell(parts.scaling.is_none(), "scaled".into());
        for (name, tensor) in [("q", &parts.q), ("k", &parts.k), ("v", &parts.v)] {
            values(name, tensor.iter().copied()).into_iter().for_each(|values| tell(false, values));
        }
        if let Some(mask) = &parts.attention_mask {
            tell(false, values("A", mask.iter().copied()).unwrap_or("A".into()));
        }
        if let Some(mask) = &call.previous {
            tell(false, values("P", mask.weights().iter().copied()).unwrap_or("P".into()));
        }
        if let Some(weights) = call.inputs.head_weights() {
            tell(false, values("w", weights.iter().copied()).unwrap_or("w".into()));
        }
        if let Some(lengths) = call.inputs.lengths() {
            tell(false, lengths.in_words(&dims));
        }
    }
    tell(selection.heavy_size == HeavySize::count(1).unwrap(), format!("H {}", selection.heavy_size));
    tell(selection.group_factor.get() == 1, format!("G {}", selection.group_factor.get()));
    tell(!selection.label_bits.quantises(), format!("B {}", selection.label_bits.get()));
    tell(selection.heads == HeadMode::PerHead, selection.heads.name().into());
    tell(!selection.dense_fallback, "fallback".into());
    tell(selection.rules == Rules::default(), "rules".into());
    tell(earlier_maskers.is_empty(), format!("{} earlier", earlier_maskers.len()));
    tell(dense_layers.is_empty(), format!("dense {dense_layers:?}"));
    let orders: usize = channel_file.kinds().map(|kind| channel_file.layers(kind).count()).sum();
    tell(orders == 1, format!("{orders} channel orders"));
    told.join(", ")
}

/// What is left of a sequence that fails, in words, and how many questions that took. All of them are offered.
fn shrunk(
    sequence: Sequence,
    capabilities: &Capabilities,
    fails: impl Fn(&Sequence) -> bool,
) -> (String, usize) {
    assert!(fails(&sequence) && capabilities.offers_all(&sequence));
    let mut asked = 0;
    let found = shrink(sequence, LIMITS, capabilities, &mut |candidate| {
        asked += 1;
        assert!(capabilities.offers_all(candidate), "{:?}", capabilities.missing(candidate));
        fails(candidate)
    });
    assert!(found.finished && fails(&found.sequence));
    assert_eq!(found.tries, asked);
    (told(&found.sequence), found.tries)
}

fn everything() -> Capabilities {
    let rules = vec![Rules::default(), Rules { score: ScoreRule::Relu, ..Rules::default() }];
    Capabilities { ragged: true, heads: HeadMode::EVERY.to_vec(), rules, ..Capabilities::default() }
}

fn most(sequence: &Sequence, of: impl Fn(&Dims) -> usize) -> usize {
    sequence.calls.iter().map(|call| of(&call.inputs.dims())).max().unwrap()
}

fn some_call(sequence: &Sequence, fails: impl Fn(&Call) -> bool) -> bool {
    sequence.calls.iter().any(fails)
}

/// What fails, what is left of it, and how many questions it takes to find that.
type Expected = (fn(&Sequence) -> bool, &'static str, usize);

fn assert_shrinks_to(start: &Sequence, cases: &[Expected]) {
    let mut wrong = Vec::new();
    for &(fails, told, questions) in cases {
        let found = shrunk(start.clone(), &everything(), fails);
        if found != (told.to_owned(), questions) {
            wrong.push((found, (told, questions)));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Three calls, of which two are of one layer and the third is of other sizes.
#[test]
fn as_few_of_everything_are_left_as_fail() {
    let cases: &[Expected] = &[
        (|_| true, "", 21),
        (|s| s.calls.len() > 1, "2 calls, 2 channel orders", 33),
        (|s| s.calls.iter().any(|c| c.layer != s.calls[0].layer), "2 calls, 2 channel orders", 33),
        (|s| most(s, |dims| dims.batch) > 3, "b 4", 32),
        (|s| most(s, |dims| dims.kv_heads) > 1, "hk 2", 24),
        (|s| most(s, Dims::group_size) > 1, "g 2", 24),
        (|s| most(s, |dims| dims.queries) > 3, "m 4, n 4", 46),
        (|s| most(s, |dims| dims.keys) > 6, "n 7", 58),
        (|s| most(s, |dims| dims.keys) > heavy_size(s), "n 2", 30),
        (|s| heavy_size(s) > 2, "H 3", 32),
        (|s| (3..=most(s, |dims| dims.keys)).contains(&heavy_size(s)), "n 3, H 3", 53),
        (|s| most(s, |dims| dims.head_dim) > 4, "d 5", 48),
        (|s| most(s, |dims| dims.value_dim) > 2, "dv 3", 28),
        (|s| most(s, |dims| dims.head_dim) > most(s, |dims| dims.value_dim), "d 2", 40),
        (|s| s.instance.selection.group_factor.get() > 1, "G 2", 23),
        (|s| s.instance.selection.label_bits.quantises(), "B 1", 23),
        (|s| (3..16).contains(&s.instance.selection.label_bits.get()), "B 3", 27),
    ];
    assert_shrinks_to(&several(), cases);
}

/// One call with all options.
#[test]
fn an_option_is_left_where_it_is_needed() {
    let cases: &[Expected] = &[
        (|_| true, "", 30),
        (|s| !s.instance.dense_layers.is_empty(), "dense [0]", 31),
        (|s| !s.instance.earlier_maskers.is_empty(), "1 earlier", 34),
        (|s| s.instance.selection.dense_fallback, "fallback", 31),
        (|s| s.instance.selection.heads != HeadMode::PerHead, "summed-scores", 31),
        (|s| s.instance.selection.rules != Rules::default(), "rules", 31),
        (|s| matches!(s.instance.selection.heavy_size, HeavySize::Fraction(_)), "H 0.5", 37),
        (|s| some_call(s, |c| c.inputs.head_weights().is_some()), "w", 32),
        (|s| some_call(s, |c| c.inputs.parts().attention_mask.is_some()), "A", 32),
        (|s| some_call(s, |c| c.previous.is_some()), "P", 31),
        (|s| some_call(s, |c| c.inputs.parts().causal), "causal", 31),
        (|s| some_call(s, |c| c.inputs.parts().scaling.is_some()), "scaled", 31),
        (|s| some_call(s, |c| c.inputs.storage() == Storage::F16), "f16", 31),
        (|s| some_call(s, |c| c.inputs.lengths().is_some()), "lengths [1] of 1 keys, padding NaN", 33),
        (
            |s| {
                some_call(s, |c| {
                    c.inputs.lengths().is_some_and(|lengths| lengths.padding() == Padding::Large)
                })
            },
            "lengths [1] of 1 keys, padding large numbers",
            34,
        ),
    ];
    assert_shrinks_to(&with_everything(), cases);
}

/// Calls of one head, of which every number is 0, as plain as they can be in everything but these sizes.
fn plain(sizes: &[[usize; 5]], heavy_size: usize) -> Sequence {
    let call = |&[b, m, n, d, dv]: &[usize; 5]| {
        let inputs = Inputs::new(InputParts {
            q: Array4::zeros([b, 1, m, d]),
            k: Array4::zeros([b, 1, n, d]),
            v: Array4::zeros([b, 1, n, dv]),
            attention_mask: None,
            causal: false,
            storage: Storage::F32,
            scaling: None,
        });
        Call { layer: 0, inputs: Arc::new(inputs.unwrap()), previous: None }
    };
    let mut file = ChannelFile::default();
    let d = sizes[0][3];
    file.insert(ChannelKind::QkProj, 0, ChannelOrder::new(vec![(0..d).collect()]).unwrap());
    let selection = Selection::new(HeavySize::count(heavy_size).unwrap(), 1, 16).unwrap();
    let instance = Instance {
        selection,
        earlier_maskers: Vec::new(),
        dense_layers: Vec::new(),
        channel_selection: ChannelKind::QkProj,
        channel_file: Arc::new(file),
    };
    Sequence { name: "plain".into(), instance, calls: sizes.iter().map(call).collect() }
}

/// A sequence with other numbers in a tensor of its first call.
fn with_numbers(mut sequence: Sequence, of: fn(&mut InputParts) -> &mut Array4<f32>, x: &[f32]) -> Sequence {
    sequence.calls[0] = with_inputs(&sequence.calls[0], |parts| {
        of(parts).iter_mut().zip(x).for_each(|(place, x)| *place = *x);
    });
    sequence
}

/// Where a number must stay, and what is left of it. Plain are 0, 1 and −1, then whole numbers, halves, quarters and eighths; a number
/// above 64 stays as it is, as no other is plainer.
#[rstest]
#[case(0.3, -1.0..=1.0, 0.0)]
#[case(-0.0, -1.0..=1.0, 0.0)]
#[case(0.25, -1.0..=1.0, 0.0)]
#[case(0.3, 0.1..=1.5, 1.0)]
#[case(-0.3, -1.5..=-0.1, -1.0)]
#[case(-3.4, -3.4..=-2.2, -3.0)]
#[case(5.3, 4.5..=5.7, 5.0)]
#[case(0.3, 0.2..=0.6, 0.5)]
#[case(-63.25, -63.5..=-63.2, -63.5)]
#[case(0.3, 0.2..=0.4, 0.25)]
#[case(-63.625, -63.8..=-63.6, -63.75)]
#[case(0.13, 0.1..=0.2, 0.125)]
#[case(-63.90625, -63.95..=-63.86, -63.875)]
#[case(63.97, 63.96..=63.98, 63.97)]
#[case(69.6, 69.0..=71.0, 69.6)]
fn a_number_is_as_plain_as_it_may_be(
    #[case] x: f32,
    #[case] range: RangeInclusive<f32>,
    #[case] expected: f32,
) {
    let tensors: [fn(&mut InputParts) -> &mut Array4<f32>; 3] =
        [|parts| &mut parts.q, |parts| &mut parts.k, |parts| &mut parts.v];
    for of in tensors {
        // Alone, and beside a number that must stay.
        for beside in [None, Some(7.1)] {
            let width = 1 + beside.iter().count();
            let start = plain(&[[1, 1, 1, width, width]], 1);
            let both: Vec<f32> = [x].into_iter().chain(beside).collect();
            let fails = |sequence: &Sequence| {
                let mut parts = sequence.calls[0].inputs.parts().clone();
                let found: Vec<f32> = of(&mut parts).iter().copied().collect();
                found.len() == width && range.contains(&found[0]) && found.get(1).copied() == beside
            };
            let start = with_numbers(start, of, &both);
            let mut found = shrink(start, LIMITS, &everything(), &mut |s| fails(s)).sequence;
            found.calls[0] = with_inputs(&found.calls[0], |parts| {
                assert_eq!(of(parts).first().map(|x| x.to_bits()), Some(expected.to_bits()));
            });
            assert!(fails(&found));
        }
    }
}

/// Also where others in the tensor can be made plainer.
#[test]
fn numbers_above_64_stay_as_they_are() {
    let start = with_numbers(plain(&[[1, 1, 1, 2, 1]], 1), |parts| &mut parts.q, &[70.3, 0.7]);
    let fails = |s: &Sequence| {
        let q: Vec<f32> = s.calls[0].inputs.parts().q.iter().copied().collect();
        q.len() == 2 && (69.0..71.0).contains(&q[0]) && (0.6..1.6).contains(&q[1])
    };
    assert_eq!(shrunk(start, &everything(), fails).0, "d 2, q [70.3, 1.0]");
}

/// Of more than 512 numbers only all together are made plainer.
#[rstest]
#[case::whole_numbers(1.0)]
#[case::halves(2.0)]
#[case::quarters(4.0)]
fn many_numbers_are_rounded_together(#[case] parts: f32) {
    // No number lies between two that are as plain.
    let numbers: Vec<f32> = (0..600).map(|i| 0.3 + (i % 40) as f32 * 1.0625).collect();
    let start = with_numbers(plain(&[[1, 1, 1, 1, 600]], 1), |parts| &mut parts.v, &numbers);
    let values = |s: &Sequence| s.calls[0].inputs.parts().v.iter().copied().collect::<Vec<f32>>();
    let fails = |s: &Sequence| {
        let found = values(s);
        found.len() == 600 && found.iter().zip(&numbers).all(|(x, y)| parts * (x - y).abs() <= 0.5)
    };
    let found = shrink(start, LIMITS, &everything(), &mut |s| fails(s)).sequence;
    let expected: Vec<f32> = numbers.iter().map(|x| (parts * x).round() / parts).collect();
    assert_eq!(values(&found), expected);
}

/// What becomes possible by the last thing that could be done is done as well, whatever that was.
#[test]
fn a_search_goes_on_as_long_as_anything_helps() {
    let keys = |s: &Sequence| most(s, |dims| dims.keys);
    let queries = |s: &Sequence| -> Vec<usize> { s.calls.iter().map(|c| c.inputs.dims().queries).collect() };
    // H may be smaller once there are fewer keys.
    let found = shrunk(plain(&[[1, 1, 13, 1, 1]], 7), &everything(), |s| 2 * heavy_size(s) >= keys(s));
    assert_eq!(found.0, "");
    // There may be fewer keys once the values are 0.
    let start = with_numbers(plain(&[[1, 1, 5, 1, 1]], 1), |parts| &mut parts.v, &[0.3; 5]);
    let fails = |s: &Sequence| keys(s) >= 5 || s.calls[0].inputs.parts().v.iter().all(|x| *x == 0.0);
    assert_eq!(shrunk(start, &everything(), fails).0, "");
    // Two calls may have fewer queries together, once there are fewer of many keys.
    let start = plain(&[[1, 8, 75, 1, 1], [1, 8, 75, 1, 1]], 1);
    let fails = |s: &Sequence| {
        let queries = queries(s);
        queries.len() == 2 && queries[0] == queries[1] && keys(s) >= 70 && (queries[0] >= 8 || keys(s) <= 70)
    };
    assert_eq!(shrunk(start, &everything(), fails).0, "2 calls, n 70, n 70");
}

fn marked(sequence: &Sequence, marks: &[usize]) -> bool {
    let k = &sequence.calls[0].inputs.parts().k;
    marks.iter().all(|mark| k.iter().any(|x| *x == *mark as f32))
}

/// Many of something, of which keys hold their numbers, counted from 1.
#[test]
fn large_sequences_take_few_questions() {
    let many_keys = |[m, n]: [usize; 2], h: usize| {
        let numbers: Vec<f32> = (0..n).map(|key| 1.0 + key as f32).collect();
        with_numbers(plain(&[[1, m, n, 1, 1]], h), |parts| &mut parts.k, &numbers)
    };
    type Case<'a> = (Sequence, fn(&Sequence) -> bool, &'a str, usize);
    let cases: &[Case] = &[
        (plain(&[[1, 1, 70, 1, 1]], 1), |s| most(s, |dims| dims.keys) > 63, "n 64", 518),
        (plain(&[[1, 1, 1000, 1, 1]], 1), |s| most(s, |dims| dims.keys) > 600, "n 601", 125),
        (plain(&[[1, 1, 1000, 1, 1]], 300), |s| heavy_size(s) > 100, "H 101", 55),
        (plain(&[[1, 1, 1, 1, 1]], 300), |s| heavy_size(s) > 100, "H 101", 41),
        (plain(&[[1, 40, 100, 1, 1]], 1), |s| most(s, |dims| dims.queries) > 20, "m 21, n 21", 187),
        (
            plain(&[[1, 40, 100, 1, 1]], 1),
            |s| most(s, |dims| dims.keys) > 70 && most(s, |dims| dims.keys - dims.queries) == 60,
            "m 11, n 71",
            736,
        ),
        (plain(&[[70, 1, 100, 1, 1]], 1), |s| most(s, |dims| dims.batch) > 40, "b 41", 194),
        (plain(&[[1, 1, 1, 100, 1]], 1), |s| most(s, |dims| dims.head_dim) > 40, "d 41", 83),
        (plain(&[[1, 1, 1, 1, 600]], 1), |s| most(s, |dims| dims.value_dim) > 500, "dv 501", 1780),
        (plain(&[[1, 1, 1, 1, 1024]], 1), |s| most(s, |dims| dims.value_dim) > 1000, "dv 1001", 119),
        (plain(&[[1, 1, 1, 1, 512]], 1), |s| most(s, |dims| dims.value_dim) > 511, "dv 512", 1022),
        (many_keys([1, 600], 1), |s| marked(s, &[1, 300, 600]), "n 3, k [1.0, 300.0, 600.0]", 97),
        (many_keys([3, 600], 1), |s| marked(s, &[599]), "k [599.0]", 25),
        (
            many_keys([1, 100], 1),
            |s| marked(s, &[2, 40, 99]) && most(s, |dims| dims.keys) > 70,
            "n 71, k [2.0, 40.0, 99.0]",
            467,
        ),
    ];
    let mut wrong = Vec::new();
    for (start, fails, told, questions) in cases {
        let found = shrunk(start.clone(), &everything(), fails);
        if found != ((*told).to_owned(), *questions) {
            wrong.push((found, (told, questions)));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Calls with lengths keep as few keys in each entry as fail, and no padding where that is not needed.
#[test]
fn lengths_are_as_plain_as_fail() {
    let lengths =
        |s: &Sequence| s.calls[0].inputs.lengths().map(|lengths| lengths.keys().to_vec()).unwrap_or_default();
    let start = || {
        let mut sequence = plain(&[[3, 1, 40, 1, 1]], 1);
        let lengths = Lengths::new(vec![33, 40, 3], Padding::Nan);
        sequence.calls[0] = sequence.calls[0].with_lengths(lengths).unwrap();
        sequence
    };
    let keys = |s: &Sequence| most(s, |dims| dims.keys);
    let found = [
        shrunk(start(), &everything(), |s| lengths(s).iter().any(|length| *length >= 3)),
        shrunk(start(), &everything(), |s| lengths(s).iter().any(|&length| length >= 5 && length < keys(s))),
        shrunk(start(), &everything(), |s| lengths(s).iter().any(|&length| length >= 5) && keys(s) >= 40),
        shrunk(start(), &everything(), |s| lengths(s).iter().any(|&n| (5..40).contains(&n)) && keys(s) >= 40),
    ];
    let expected = [
        ("n 3, lengths [3] of 3 keys, padding NaN", 21),
        ("n 6, lengths [5] of 6 keys, padding NaN", 52),
        ("n 40, lengths [40] of 40 keys, padding NaN", 291),
        ("n 40, lengths [5] of 40 keys, padding NaN", 895),
    ];
    assert_eq!(found, expected.map(|(told, questions)| (told.to_owned(), questions)));
}

/// Channels that the first row lists first are tried first, also where a row lists few of them; a channel beyond d stays as far beyond.
#[test]
fn channels_are_left_as_rows_list_them() {
    let start = |row: &[usize]| {
        let numbers: Vec<f32> = (0..8).map(|channel| 1.0 + channel as f32).collect();
        let mut sequence = with_numbers(plain(&[[1, 1, 1, 8, 1]], 1), |parts| &mut parts.k, &numbers);
        let file = Arc::make_mut(&mut sequence.instance.channel_file);
        file.insert(ChannelKind::QkProj, 0, ChannelOrder::new(vec![row.to_vec()]).unwrap());
        sequence
    };
    let distinct = |s: &Sequence| {
        let k: BTreeSet<u32> = s.calls[0].inputs.parts().k.iter().map(|x| x.to_bits()).collect();
        k.len() == s.calls[0].inputs.dims().head_dim
    };
    let beyond = |s: &Sequence| {
        let d = s.calls[0].inputs.dims().head_dim;
        s.instance.channels(0).unwrap().rows()[0].iter().filter_map(|c| c.checked_sub(d)).max()
    };
    let found = [
        shrunk(start(&[6, 2, 5, 4, 3, 0, 1, 7]), &everything(), |s| marked(s, &[7])),
        shrunk(start(&[6, 2, 5, 4]), &everything(), |s| distinct(s) && most(s, |dims| dims.head_dim) > 4),
        shrunk(start(&[8, 2, 5, 4]), &everything(), |s| beyond(s) == Some(0)),
        shrunk(start(&[6, 10, 5, 4]), &everything(), |s| beyond(s) == Some(2)),
    ];
    let expected = [("k [7.0]", 11), ("d 5, k [1.0, -1.0, 6.0, 7.0]", 49), ("", 2), ("", 2)];
    assert_eq!(found, expected.map(|(told, questions)| (told.to_owned(), questions)));
}

/// Where a subject takes some sizes only, what is left has the smallest of them.
#[test]
fn sizes_stay_in_the_domain() {
    let domains = json!([{"keys": {"from": 32, "multiple_of": 32}, "head_dim": [8, 16], "batch": [1, 2, 4]}]);
    let domains = domains_from_json(&domains).unwrap();
    let capabilities = Capabilities { domains, ..everything() };
    let start = || plain(&[[4, 7, 192, 16, 9]], 100);
    let found = [
        shrunk(start(), &capabilities, |_| true),
        shrunk(start(), &capabilities, |s| most(s, |dims| dims.keys) > 90),
        shrunk(start(), &capabilities, |s| most(s, |dims| dims.batch) > 1),
        shrunk(start(), &capabilities, |s| most(s, |dims| dims.head_dim) > 8),
    ];
    let expected = [("n 32, d 8", 22), ("n 96, d 8", 42), ("b 2, n 32, d 8", 37), ("n 32, d 16", 27)];
    assert_eq!(found, expected.map(|(told, questions)| (told.to_owned(), questions)));
}

/// Everything in which a question to one stage differs from the plainest.
fn told_of_stage(call: &StageCall) -> String {
    let mut told = Vec::new();
    let dims = call.dims();
    let Dims { batch, kv_heads, queries, keys, head_dim, value_dim, .. } = dims;
    let sizes = [("b", batch), ("hk", kv_heads), ("g", dims.group_size()), ("m", queries), ("n", keys)];
    let sizes = sizes.into_iter().chain([("d", head_dim), ("dv", value_dim)]).filter(|(_, size)| *size > 1);
    told.extend(sizes.map(|(name, size)| format!("{name} {size}")));
    match call {
        StageCall::Scores(call) => {
            let heavy_size = call.heavy_size().get();
            told.extend((heavy_size > 1).then(|| format!("H {heavy_size}")));
            told.extend(values("scores", call.scores().iter().copied()));
        }
        StageCall::Selection(call) => {
            let parts = call.inputs.parts();
            told.extend(parts.scaling.map(|_| "scaled".into()));
            for (name, tensor) in [("q", &parts.q), ("k", &parts.k), ("v", &parts.v)] {
                told.extend(values(name, tensor.iter().copied()));
            }
            let rows = dims.rows().map(|row| call.mask.row(row).map(|(key, _)| key).collect());
            let rows: Vec<Vec<usize>> = rows.collect();
            told.push(format!("selected {rows:?}"));
        }
    }
    told.extend((call.storage() != Storage::F32).then(|| call.storage().to_string()));
    told.extend(call.lengths().map(|lengths| lengths.in_words(&dims)));
    told.join(", ")
}

/// What is left of a question to one stage that fails, in words, and how often it was asked.
fn shrunk_stage(call: StageCall, fails: impl Fn(&StageCall) -> bool) -> (String, usize) {
    let stages = Stages::new(call.takes(), None).unwrap();
    let capabilities = Capabilities { stages, ragged: true, ..Capabilities::default() };
    assert!(fails(&call) && capabilities.offers_stage(&call));
    let mut asked = 0;
    let found = shrink_stage(call, LIMITS, &capabilities, &mut |candidate| {
        asked += 1;
        assert!(capabilities.offers_stage(candidate));
        fails(candidate)
    });
    assert!(found.finished && fails(&found.call));
    assert_eq!(found.tries, asked);
    (told_of_stage(&found.call), found.tries)
}

fn scores(shape: [usize; 4], numbers: &[f32], storage: Storage, heavy_size: usize) -> StageCall {
    let scores = Array4::from_shape_vec(shape, numbers.to_vec()).unwrap();
    StageCall::Scores(ScoresCall::new(scores, storage, heavy_size.try_into().unwrap()).unwrap())
}

/// What a selection is asked over: three heads for each of three KV heads, everything given.
fn selection() -> StageCall {
    let call = &calls(&[Size { layer: 0, batch: 5, queries: 3, keys: 13 }], 5, 7)[0];
    let call = with_inputs(call, |parts| (parts.storage, parts.scaling) = (Storage::F16, Some(0.3)));
    let mut mask = Mask::empty(&call.inputs.dims());
    call.inputs.dims().rows().for_each(|row| mask.add(row, [row.1, 10]));
    let call = StageCall::Selection(SelectionCall { inputs: call.inputs, mask });
    call.with_lengths(Lengths::new(vec![13, 9, 2, 5, 12], Padding::Large)).unwrap()
}

fn scores_of(call: &StageCall) -> Vec<f32> {
    match call {
        StageCall::Scores(call) => call.scores().iter().copied().collect(),
        StageCall::Selection(_) => Vec::new(),
    }
}

fn h(call: &StageCall) -> usize {
    match call {
        StageCall::Scores(call) => call.heavy_size().get(),
        StageCall::Selection(_) => 0,
    }
}

fn padding(call: &StageCall) -> Option<Padding> {
    call.lengths().map(Lengths::padding)
}

fn is_padded(call: &StageCall) -> bool {
    call.lengths().is_some_and(|lengths| lengths.keys().iter().any(|&length| length < call.dims().keys))
}

/// What fails, what is left of it, and how many questions it takes to find that.
type ExpectedOfStage = (fn(&StageCall) -> bool, &'static str, usize);

fn assert_stage_shrinks_to(start: &StageCall, cases: &[ExpectedOfStage]) {
    let mut wrong = Vec::new();
    for &(fails, told, questions) in cases {
        let found = shrunk_stage(start.clone(), fails);
        if found != (told.to_owned(), questions) {
            wrong.push((found, (told, questions)));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn as_little_of_scores_is_left_as_fails() {
    let numbers: Vec<f32> = (0..5 * 3 * 3 * 13).map(|i| (i * 37 % 101) as f32 / 7.0 - 6.0).collect();
    let start = scores([5, 3, 3, 13], &numbers, Storage::F16, 6);
    let start = start.with_lengths(Lengths::new(vec![13, 9, 2, 5, 12], Padding::Large)).unwrap();
    let cases: &[ExpectedOfStage] = &[
        (|_| true, "", 14),
        (|call| call.dims().batch > 3, "b 4", 25),
        (|call| call.dims().heads > 1, "hk 2", 17),
        (|call| call.dims().queries > 1, "m 2", 17),
        (|call| call.dims().keys > 6, "n 7", 35),
        (|call| h(call) > 2, "H 3", 22),
        (|call| (3..call.dims().keys).contains(&h(call)), "n 4, H 3", 49),
        (|call| call.storage() == Storage::F16, "f16", 15),
        (|call| call.lengths().is_some(), "scores [-inf], lengths [0] of 1 keys, padding NaN", 15),
        (
            |call| padding(call) == Some(Padding::Large),
            "scores [-inf], lengths [0] of 1 keys, padding large numbers",
            16,
        ),
        (is_padded, "scores [-inf], lengths [0] of 1 keys, padding NaN", 15),
        (|call| scores_of(call).iter().any(|x| *x > 0.5), "scores [1.0]", 24),
    ];
    assert_stage_shrinks_to(&start, cases);
}

#[test]
fn as_little_of_a_selection_is_left_as_fails() {
    let cases: &[ExpectedOfStage] = &[
        (|_| true, "selected [[]]", 18),
        (|call| call.dims().batch > 3, "b 4, selected [[], [], [], []]", 31),
        (|call| call.dims().kv_heads > 1, "hk 2, selected [[], []]", 21),
        (|call| call.dims().group_size() > 1, "g 2, selected [[], []]", 21),
        (|call| call.dims().queries > 1, "m 2, n 2, selected [[0], [0]]", 25),
        (|call| call.dims().keys > 6, "n 7, selected [[2, 4]]", 41),
        (|call| call.dims().head_dim > 2, "d 3, selected [[]]", 25),
        (|call| call.dims().value_dim > 2, "dv 3, selected [[]]", 25),
        (|call| call.storage() == Storage::F16, "selected [[]], f16", 19),
        (|call| call.scaling().is_some(), "scaled, selected [[]]", 19),
        (|call| call.lengths().is_some(), "selected [[]], lengths [0] of 1 keys, padding NaN", 20),
        (
            |call| padding(call) == Some(Padding::Large),
            "selected [[]], lengths [0] of 1 keys, padding large numbers",
            21,
        ),
        (is_padded, "selected [[]], lengths [0] of 1 keys, padding NaN", 20),
        (
            |call| matches!(call, StageCall::Selection(call) if call.mask.weights().iter().any(|w| *w > 0.0)),
            "selected [[0]]",
            25,
        ),
    ];
    assert_stage_shrinks_to(&selection(), cases);
}

/// Scores in the range, and what is left of them. Plain are 0, 1, −1, −∞, then whole numbers below 1000.
#[rstest]
#[case(0.3, -1.0..=1.0, 0.0)]
#[case(5.0, 0.5..=6.0, 1.0)]
#[case(-7.0, -9.0..=-0.5, -1.0)]
#[case(f32::NEG_INFINITY, f32::NEG_INFINITY..=-0.5, -1.0)]
#[case(7.0, 1.5..=8.0, 2.0)]
#[case(700.0, 1.5..=800.0, 2.0)]
fn a_score_is_as_plain_as_it_may_be(
    #[case] x: f32,
    #[case] range: RangeInclusive<f32>,
    #[case] expected: f32,
) {
    // Alone, and beside one that must stay.
    for beside in [vec![], vec![7.0]] {
        let numbers = [vec![x], beside.clone()].concat();
        let start = scores([1, 1, 1, numbers.len()], &numbers, Storage::F32, 1);
        let fails = |call: &StageCall| {
            let found = scores_of(call);
            range.contains(&found[0]) && found[1..] == beside
        };
        let stages = Stages::new(Takes::Scores, None).unwrap();
        let capabilities = Capabilities { stages, ..Capabilities::default() };
        let found = shrink_stage(start, LIMITS, &capabilities, &mut |call| fails(call)).call;
        assert!(fails(&found));
        assert_eq!(scores_of(&found)[0].to_bits(), expected.to_bits());
    }
}

/// −∞ is plainer than 2, and 1000 no plainer than 999.7.
#[test]
fn numbers_that_are_no_plainer_are_not_taken() {
    let start = scores([1, 1, 1, 1], &[f32::NEG_INFINITY], Storage::F32, 1);
    let found = shrunk_stage(start, |call| [2.0, f32::NEG_INFINITY].contains(&scores_of(call)[0]));
    assert_eq!(found.0, "scores [-inf]");
    // 0 and −∞ are as plain as 1 and 1.
    let start = scores([1, 1, 1, 3], &[0.0, f32::NEG_INFINITY, 0.0], Storage::F32, 1);
    let start = start.with_lengths(Lengths::new(vec![2], Padding::Nan)).unwrap();
    let found = shrunk_stage(start, |call| {
        let scores = scores_of(call);
        let either = [[0.0, f32::NEG_INFINITY], [1.0, 1.0]];
        is_padded(call) && scores.len() == 3 && either.contains(&[scores[0], scores[1]])
    });
    assert_eq!(found.0, "n 3, scores [-inf, -inf], lengths [2] of 3 keys, padding NaN");
    let inputs = with_inputs(&plain(&[[1, 1, 1, 1, 1]], 1).calls[0], |parts| parts.v.fill(999.7)).inputs;
    let mask = Mask::empty(&inputs.dims());
    let start = StageCall::Selection(SelectionCall { inputs, mask });
    let found = shrunk_stage(start, |call| match call {
        StageCall::Selection(call) => call.inputs.parts().v.iter().all(|x| (999.5..1000.5).contains(x)),
        StageCall::Scores(_) => false,
    });
    assert_eq!(found.0, "v [999.7], selected [[]]");
}

#[test]
fn many_scores_become_their_ranks_or_one_number() {
    let numbers: Vec<f32> = (0..70).map(|i| 1.5 * i as f32 - 30.25).collect();
    let start = || scores([1, 1, 1, 70], &numbers, Storage::F32, 1);
    let ascending = |call: &StageCall| {
        let scores = scores_of(call);
        scores.len() == 70 && scores.windows(2).all(|pair| pair[0] < pair[1])
    };
    // −30.25 and 19 more are below 0; where none is 0 itself, the first one above becomes 0.
    let lowest = -21.0;
    let expected: Vec<f32> = (0..70).map(|i| lowest + i as f32).filter(|x| *x != 0.0).collect();
    assert_eq!(shrunk_stage(start(), ascending).0, format!("n 70, scores {expected:?}"));
    assert_eq!(shrunk_stage(start(), |call| call.dims().keys == 70).0, "n 70");
    let ones = format!("n 70, scores {:?}", [1.0; 70]);
    assert_eq!(shrunk_stage(start(), |call| call.dims().keys == 70 && scores_of(call)[69] > 0.0).0, ones);
}

#[test]
fn large_questions_to_stages_take_few_questions() {
    let of_keys = |n: usize, heavy_size| scores([1, 1, 1, n], &vec![0.0; n], Storage::F32, heavy_size);
    type Case<'a> = (StageCall, fn(&StageCall) -> bool, &'a str, usize);
    let cases: &[Case] = &[
        (of_keys(1000, 1), |call| call.dims().keys > 300, "n 301", 1260),
        (of_keys(1000, 300), |call| h(call) > 70, "H 71", 55),
        (
            scores([1, 1, 300, 1], &[0.0; 300], Storage::F32, 1),
            |call| call.dims().queries > 100,
            "m 101",
            379,
        ),
        // Fewer keys are possible once H is small.
        (of_keys(13, 6), |call| call.dims().keys == 13 || h(call) == 1, "", 26),
    ];
    let mut wrong = Vec::new();
    for (start, fails, told, questions) in cases {
        let found = shrunk_stage(start.clone(), fails);
        if found != ((*told).to_owned(), *questions) {
            wrong.push((found, (told, questions)));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A search that its limits end says so, and what it found still fails.
#[test]
fn a_search_ends_within_its_tries() {
    for tries in [0, 1, 7, 20] {
        let limits = Limits { tries, ..LIMITS };
        let keys = |s: &Sequence| most(s, |dims| dims.keys);
        let found = shrink(several(), limits, &everything(), &mut |s| keys(s) > 5);
        assert_eq!((found.tries, found.finished), (tries, false));
        assert!(keys(&found.sequence) > 5);
        let found = shrink_stage(
            selection(),
            limits,
            &Capabilities {
                stages: Stages::new(Takes::Selection, None).unwrap(),
                ragged: true,
                ..Capabilities::default()
            },
            &mut |call| call.dims().keys > 5,
        );
        assert_eq!((found.tries, found.finished), (tries, false));
        assert!(found.call.dims().keys > 5);
    }
}

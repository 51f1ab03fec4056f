//! The decode engine equals the reference: the same masks, ties included, and the same codes, however the keys arrive; its
//! attention is judged by the bound. Random machines of appends, steps and resets on the random cases' own tensors, lists
//! of maskers, lengths over the engine's blocks, the 81 cases of the grid, and what it refuses.

mod support;

use std::sync::Arc;

use doublecheck::algorithm::config::WindowConfig;
use doublecheck::algorithm::maskers::{ChannelSource, DoubleSparsity, Local, Oracle, Sink};
use doublecheck::algorithm::quantize::quantize;
use doublecheck::algorithm::{
    ChannelOrder, Error, GroupFactor, HeadMode, HeavySize, InputParts, Inputs, LabelBits, Mask, Selection,
    SparseAttention, Storage,
};
use doublecheck::cases::bundled;
use doublecheck::cases::strategies::{Additive, Plan, Rows, Values, plans};
use doublecheck::cases::{Case, CaseFile, EarlierMasker, NoAnswer, Reader};
use doublecheck::engine::{Attended, Bytes, Engine, Layout, Masker, Query, Step};
use doublecheck::subjects::{self, Reference, Subject};
use doublecheck::verdicts::Certificate;
use doublecheck::verdicts::judge::{judge_mask, same_kind};
use doublecheck::verdicts::output::judge_output;
use ndarray::{Array4, s};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};
use rstest::rstest;

fn layout(inputs: &Inputs) -> Layout {
    let dims = inputs.dims();
    Layout {
        batch: dims.batch,
        heads: dims.heads,
        kv_heads: dims.kv_heads,
        head_dim: dims.head_dim,
        value_dim: dims.value_dim,
        storage: inputs.storage(),
    }
}

fn maskers(case: &Case) -> Vec<Masker> {
    let earlier = case.settings.earlier_maskers.iter().map(|masker| match *masker {
        EarlierMasker::Sink(WindowConfig { size }) => Masker::Sink(Sink { size }),
        EarlierMasker::Local(WindowConfig { size }) => Masker::Local(Local { size }),
    });
    let (selection, channels) = (case.settings.selection(), case.channels.clone());
    earlier.chain([Masker::DoubleSparsity { selection, channels }]).collect()
}

fn append(engine: &mut Engine, inputs: &Inputs, keys: usize) {
    let (parts, new) = (inputs.parts(), s![.., .., engine.keys()..engine.keys() + keys, ..]);
    engine.append(parts.k.slice(new), parts.v.slice(new)).unwrap();
}

fn step(engine: &Engine, inputs: &Inputs, previous: Option<&Mask>) -> Result<Step, Error> {
    let parts = inputs.parts();
    engine.step(&Query {
        q: parts.q.view(),
        attention_mask: parts.attention_mask.as_ref().map(|mask| mask.view()),
        causal: parts.causal,
        scaling: parts.scaling,
        previous,
    })
}

/// The first keys of a case, with the first queries.
fn prefix(case: &Case, queries: usize, keys: usize) -> Case {
    let parts = case.inputs.parts();
    let cut = |mask: &Array4<f32>| {
        let (.., m, n) = mask.dim();
        mask.slice(s![.., .., ..m.min(queries), ..n.min(keys)]).to_owned()
    };
    let inputs = Inputs::new(InputParts {
        q: parts.q.slice(s![.., .., ..queries, ..]).to_owned(),
        k: parts.k.slice(s![.., .., ..keys, ..]).to_owned(),
        v: parts.v.slice(s![.., .., ..keys, ..]).to_owned(),
        attention_mask: parts.attention_mask.as_ref().map(cut),
        ..parts.clone()
    })
    .unwrap();
    let weights = case.previous.as_ref().map(|previous| cut(previous.weights()));
    let previous = weights.map(|weights| Mask::from_weights(weights, &inputs.dims()).unwrap());
    Case { inputs: Arc::new(inputs), previous, ..case.clone() }
}

/// The engine's step against the reference's answer: the same mask or the same refusal, certified once more by the verdicts.
fn must_equal_reference(case: &Case, found: Result<Step, Error>) {
    match (found, Reference::default().answer(case)) {
        (Ok(step), Ok(expected)) => {
            let (mask, model) = (step.mask().unwrap(), subjects::Engine::default().rounding_model());
            assert_eq!(mask, expected.mask);
            let certificate = Certificate::derive(case, model).unwrap();
            assert_eq!(judge_mask(case, &certificate, &mask, model).divergences, []);
            assert_eq!(judge_output(&case.inputs, &mask, &step.output, model).divergences, []);
        }
        (Err(found), Err(NoAnswer::Refused(expected))) => {
            assert!(same_kind(&found, &expected), "{found}, {expected}")
        }
        (found, expected) => panic!("found {found:?}, expected {expected:?}"),
    }
}

/// Codes of at most 8 bits are those of SPEC §2.5.
fn codes_must_equal_reference(case: &Case, engine: &Engine) {
    let (dims, settings) = (case.inputs.dims(), &case.settings);
    if settings.label_bits.get() > 8 {
        return;
    }
    let label_channels = settings.group_factor.label_channels(dims.head_dim).unwrap();
    for (batch, head, key) in ndarray::indices((dims.batch, dims.heads, engine.keys())) {
        let source = case.inputs.keys(batch, head);
        let row: Vec<f32> = case.channels.row(head, &dims)[..label_channels]
            .iter()
            .map(|&channel| source[[key, channel]])
            .collect();
        let expected = quantize(&row, settings.label_bits, settings.dtype).map(|quantised| quantised.codes);
        let found: Vec<f32> = engine.codes(batch, head, key).unwrap().into_iter().map(f32::from).collect();
        assert_eq!(
            found,
            expected.unwrap_or(vec![0.0; label_channels]),
            "batch {batch}, head {head}, key {key}"
        );
    }
}

/// A layer that grows through the keys of one random case.
#[derive(Debug, Clone)]
struct Layer {
    plan: Plan,
    keys: usize,
}

#[derive(Debug, Clone)]
enum Transition {
    /// That many keys.
    Append(usize),
    /// With that many queries.
    Step(usize),
    /// Another layer: other batch, heads, type, settings and numbers.
    Reset(Box<Plan>),
}

fn valid_plans() -> impl Strategy<Value = Plan> {
    plans().prop_filter("valid inputs", |plan| plan.case().is_ok())
}

struct Machine {
    case: Case,
    engine: Engine,
}

impl Machine {
    fn new(plan: &Plan) -> Self {
        let case = plan.case().unwrap();
        let engine = Engine::new(layout(&case.inputs), maskers(&case)).unwrap();
        Self { case, engine }
    }
}

impl ReferenceStateMachine for Machine {
    type State = Layer;
    type Transition = Transition;

    fn init_state() -> BoxedStrategy<Layer> {
        valid_plans().prop_map(|plan| Layer { plan, keys: 0 }).boxed()
    }

    fn transitions(layer: &Layer) -> BoxedStrategy<Transition> {
        let (left, keys) = (layer.plan.keys - layer.keys, layer.keys);
        let reset = valid_plans().prop_map(|plan| Transition::Reset(Box::new(plan)));
        let append = (1..=left.max(1)).prop_map(Transition::Append);
        let step = (1..=keys.min(layer.plan.queries).max(1)).prop_map(Transition::Step);
        prop_oneof![4 => append, 4 => step, 1 => reset].boxed()
    }

    fn preconditions(layer: &Layer, transition: &Transition) -> bool {
        match transition {
            Transition::Append(keys) => layer.keys + keys <= layer.plan.keys,
            Transition::Step(queries) => *queries <= layer.keys.min(layer.plan.queries),
            Transition::Reset(_) => true,
        }
    }

    fn apply(mut layer: Layer, transition: &Transition) -> Layer {
        match transition {
            Transition::Append(keys) => layer.keys += keys,
            Transition::Step(_) => {}
            Transition::Reset(plan) => layer = Layer { plan: plan.as_ref().clone(), keys: 0 },
        }
        layer
    }
}

impl StateMachineTest for Machine {
    type SystemUnderTest = Self;
    type Reference = Self;

    fn init_test(layer: &Layer) -> Self {
        Self::new(&layer.plan)
    }

    fn apply(mut machine: Self, layer: &Layer, transition: Transition) -> Self {
        match transition {
            Transition::Append(keys) => append(&mut machine.engine, &machine.case.inputs, keys),
            Transition::Step(queries) => {
                let case = prefix(&machine.case, queries, layer.keys);
                must_equal_reference(&case, step(&machine.engine, &case.inputs, case.previous.as_ref()));
            }
            Transition::Reset(plan) => machine = Self::new(&plan),
        }
        machine
    }

    fn check_invariants(machine: &Self, layer: &Layer) {
        assert_eq!(machine.engine.keys(), layer.keys);
        codes_must_equal_reference(&machine.case, &machine.engine);
    }
}

prop_state_machine! {
    #![proptest_config(support::proptest_config(400, "proptest-regressions/engine.txt"))]

    #[test]
    fn any_sequence_of_appends_steps_and_resets_equals_the_reference(sequential 1..20 => Machine);
}

proptest! {
    #![proptest_config(support::proptest_config(60, "proptest-regressions/engine.txt"))]

    /// Longer than the engine's blocks and chunks, with several heavy sizes below and above them.
    #[test]
    fn long_caches_equal_the_reference(
        plan in plans(),
        keys in prop_oneof![200..600usize, 3900..4300usize, 8000..9000usize],
        share in prop::sample::select(vec![0.001, 0.02, 0.3, 0.9]),
    ) {
        let plan = Plan {
            batch: 1,
            kv_heads: plan.kv_heads.min(2),
            group: plan.group.min(2),
            queries: plan.queries.min(3),
            keys,
            heavy_size: HeavySize::fraction(share).unwrap(),
            ..plan
        };
        let Ok(case) = plan.case() else { return Ok(()) };
        let mut engine = Engine::new(layout(&case.inputs), maskers(&case)).unwrap();
        for portion in [1, keys / 3, keys - keys / 3 - 1] {
            append(&mut engine, &case.inputs, portion);
        }
        codes_must_equal_reference(&case, &engine);
        let found = step(&engine, &case.inputs, case.previous.as_ref());
        match (&found, Reference::default().answer(&case)) {
            (Ok(found), Ok(expected)) => prop_assert_eq!(found.mask().unwrap(), expected.mask),
            _ => must_equal_reference(&case, found),
        }
    }
}

/// Any list of maskers: each starts from what those before it attend to.
#[test]
fn lists_of_maskers_equal_the_reference() {
    let mut runner = TestRunner::deterministic();
    for index in 0..300 {
        let plan = valid_plans().new_tree(&mut runner).unwrap().current();
        let case = plan.case().unwrap();
        let (sink, local) =
            (Sink { size: HeavySize::count(2).unwrap() }, Local { size: HeavySize::count(3).unwrap() });
        let oracle = Oracle { heavy_size: HeavySize::fraction(0.2).unwrap() };
        let selection = case.settings.selection();
        let mut channels = case.channels.rows().to_vec();
        channels.iter_mut().for_each(|row| row.reverse());
        let other = ChannelOrder::new(channels).unwrap();
        let double = |channels: &ChannelOrder| {
            let channels = channels.clone();
            let source = ChannelSource::Order(channels.clone());
            let reference = DoubleSparsity { selection, channels: source };
            (Masker::DoubleSparsity { selection, channels }, reference)
        };
        let ((first, first_reference), (second, second_reference)) = (double(&case.channels), double(&other));
        let engine = vec![Masker::Sink(sink), Masker::Oracle(oracle), first, Masker::Local(local), second];
        let reference = SparseAttention::new(
            vec![
                Box::new(sink),
                Box::new(oracle),
                Box::new(first_reference),
                Box::new(local),
                Box::new(second_reference),
            ],
            vec![1],
        );
        let mut engine = Engine::new(layout(&case.inputs), engine).unwrap();
        append(&mut engine, &case.inputs, case.inputs.dims().keys);
        let previous = case.previous.clone().unwrap_or(Mask::empty(&case.inputs.dims()));
        match (
            step(&engine, &case.inputs, case.previous.as_ref()),
            reference.extend_mask(&case.inputs, 0, previous),
        ) {
            (Ok(step), Ok(mask)) => assert_eq!(step.mask().unwrap(), mask, "{index}: {plan:?}"),
            (Err(found), Err(expected)) => assert!(same_kind(&found, &expected), "{found}, {expected}"),
            (found, expected) => panic!("{plan:?}: found {found:?}, expected {expected:?}"),
        }
        let mut dense = Engine::new(layout(&case.inputs), vec![Masker::Dense]).unwrap();
        append(&mut dense, &case.inputs, case.inputs.dims().keys);
        let previous = case.previous.clone().unwrap_or(Mask::empty(&case.inputs.dims()));
        let step = step(&dense, &case.inputs, case.previous.as_ref()).unwrap();
        assert_eq!(step.mask().unwrap(), reference.extend_mask(&case.inputs, 1, previous).unwrap());
    }
}

/// The grid of 81 cases by appending: the stored masks, bit for bit.
#[rstest]
fn grid(
    #[values(8193, 16385, 32769)] keys: usize,
    #[values(8, 16, 32)] group_factor: usize,
    #[values(4, 8, 16)] label_bits: usize,
) {
    let mut reader = Reader::default();
    for heavy_size in [128, 512, 1024] {
        let name = format!("n{keys}-g{group_factor}-b{label_bits}-h{heavy_size}.safetensors");
        let bytes = bundled::read(&format!("grid/{name}")).unwrap();
        let CaseFile::Attention(case) = reader.parse(&bytes, &name).unwrap() else {
            panic!("{name} is no case of an attention layer");
        };
        let mut engine = Engine::new(layout(&case.inputs), maskers(&case)).unwrap();
        for portion in [4097, keys - 4097 - 3, 1, 2] {
            append(&mut engine, &case.inputs, portion);
        }
        let found = step(&engine, &case.inputs, None).unwrap();
        let before = Mask::empty(&case.inputs.dims());
        let expected = case.expectation.as_ref().unwrap().answer(&before).unwrap().unwrap();
        assert!(found.mask().unwrap() == expected.mask, "{name}");
        let model = subjects::Engine::default().rounding_model();
        let judgement = judge_output(&case.inputs, &expected.mask, &found.output, model);
        assert_eq!(judgement.divergences, [], "{name}");
    }
}

/// All bundled cases but the grid, judged as any subject is.
#[test]
fn bundled_cases_conform() {
    use doublecheck::runner::verify::{VerifyOptions, verify};
    let mut files = bundled::cases().unwrap();
    files.retain(|file| file.group() != "grid");
    let options = VerifyOptions { random_cases: 50, seed: 3 };
    let report = verify(&files, &mut subjects::Engine::default(), options, &mut |_| {});
    assert_eq!(report.exit_code(), 0, "{}", doublecheck::reports::verify::render(&report, false));
}

/// Scores that all tie, so that every key is open, and scores beyond f32.
#[rstest]
fn degenerate_scores(
    #[values(Values::Zeros, Values::ConstantRows, Values::Whole)] k: Values,
    #[values(1.0, 1e-38, 1e20, 3e37)] factor: f32,
    #[values(1, 4, 8, 12, 16)] label_bits: u64,
) {
    let plan = Plan {
        keys: 700,
        k,
        q: Values::Whole,
        label_bits,
        heavy_size: HeavySize::count(100).unwrap(),
        additive: Additive::Absent,
        rows: Rows::PerHead,
        ..support::small_plan()
    };
    let case = plan.case().unwrap();
    let parts = case.inputs.parts();
    let inputs =
        Inputs::new(InputParts { k: &parts.k * factor, q: &parts.q * factor, ..parts.clone() }).unwrap();
    let case = Case { inputs: inputs.into(), ..case };
    let mut engine = Engine::new(layout(&case.inputs), maskers(&case)).unwrap();
    append(&mut engine, &case.inputs, 700);
    match (step(&engine, &case.inputs, None), Reference::default().answer(&case)) {
        (Ok(found), Ok(expected)) => assert!(found.mask().unwrap() == expected.mask),
        (Err(found), Err(NoAnswer::Refused(expected))) => assert!(same_kind(&found, &expected)),
        (found, expected) => panic!("found {found:?}, expected {expected:?}"),
    }
}

#[test]
fn bad_input_is_refused_and_changes_nothing() {
    let case = support::small_case();
    let small = layout(&case.inputs);
    for wrong in [Layout { heads: 3, kv_heads: 2, ..small }, Layout { head_dim: 0, ..small }] {
        assert!(matches!(Engine::new(wrong, Vec::new()), Err(Error::Shape(_))));
    }
    let masker = |group_factor: u64, rows: Vec<Vec<usize>>, heads| {
        let mut selection = case.settings.selection();
        selection.group_factor = GroupFactor::new(group_factor).unwrap();
        selection.heads = heads;
        vec![Masker::DoubleSparsity { selection, channels: ChannelOrder::new(rows).unwrap() }]
    };
    let refused = |maskers| Engine::new(small, maskers).unwrap_err();
    assert!(matches!(refused(masker(3, vec![vec![0, 1]], HeadMode::PerHead)), Error::GroupFactor(_)));
    assert!(matches!(refused(masker(2, vec![vec![0, 4]], HeadMode::PerHead)), Error::ChannelRange(_)));
    assert!(matches!(refused(masker(1, vec![vec![0, 1]], HeadMode::PerHead)), Error::ChannelRows(_)));
    let differ = vec![vec![0, 1], vec![1, 2]];
    assert!(matches!(refused(masker(2, differ, HeadMode::SummedLabels)), Error::HeadMode(_)));

    let mut engine = Engine::new(small, masker(2, vec![vec![0, 1]], HeadMode::SummedLabels)).unwrap();
    let parts = case.inputs.parts().clone();
    let q = Query::causal(parts.q.view());
    assert!(matches!(engine.step(&q), Err(Error::Shape(_))), "no keys yet");
    let mut nan = parts.v.clone();
    nan[[0, 0, 5, 2]] = f32::NAN;
    let message = engine.append(parts.k.view(), nan.view()).unwrap_err().to_string();
    assert_eq!(message, "value not allowed: v[0, 0, 5, 2]: found NaN, expected finite numbers in f32");
    let message = engine.append(parts.k.view(), parts.k.view()).unwrap_err().to_string();
    assert_eq!(message, "shape does not fit: v: found [1, 1, 6, 4], expected [1, 1, 6, 3], none of them 0");
    assert_eq!(engine.keys(), 0);
    engine.append(parts.k.view(), parts.v.view()).unwrap();
    let step = engine.step(&q).unwrap();

    let refused = |query: &Query| engine.step(query).unwrap_err();
    let (wrong, mut mask) = (Array4::zeros((1, 2, 2, 5)), Array4::zeros((1, 2, 1, 6)));
    assert!(matches!(refused(&Query { attention_mask: Some(wrong.view()), ..q.clone() }), Error::Shape(_)));
    mask[[0, 1, 0, 3]] = 1.0;
    assert!(matches!(refused(&Query { attention_mask: Some(mask.view()), ..q.clone() }), Error::HeadMode(_)));
    let infinite = mask.mapv(|x: f32| if x == 0.0 { x } else { f32::INFINITY });
    assert!(matches!(
        refused(&Query { attention_mask: Some(infinite.view()), ..q.clone() }),
        Error::NotFinite(_)
    ));
    assert!(matches!(refused(&Query { scaling: Some(f64::NAN), ..q.clone() }), Error::NotFinite(_)));
    assert!(matches!(refused(&Query { q: parts.k.view(), ..q.clone() }), Error::Shape(_)));
    let other = Mask::empty(&prefix(&case, 1, 6).inputs.dims());
    assert!(matches!(refused(&Query { previous: Some(&other), ..q.clone() }), Error::Shape(_)));

    assert_eq!(engine.select(&q).unwrap(), step.attended);
    assert_eq!(engine.attend(&q, &step.attended).unwrap(), step.output);
    let wrong = |keys: Vec<usize>| vec![Attended { weights: vec![1.0; keys.len()], keys }; 4];
    for wrong in [wrong(vec![6]), wrong(vec![2, 1]), wrong(vec![0])[1..].to_vec()] {
        assert!(matches!(engine.attend(&q, &wrong), Err(Error::Shape(_))));
    }
    assert_eq!(engine.codes(0, 1, 6), None);
    assert_eq!(engine.step(&q).unwrap(), step);
}

/// Half-precision keys and values are kept as they are.
#[test]
fn steps_follow_the_storage_type() {
    for storage in Storage::ALL {
        let plan = Plan { storage, keys: 50, label_bits: 16, ..support::small_plan() };
        let case = plan.case().unwrap();
        assert_eq!(case.settings.label_bits, LabelBits::UNQUANTISED);
        let mut engine = Engine::new(layout(&case.inputs), maskers(&case)).unwrap();
        append(&mut engine, &case.inputs, 50);
        must_equal_reference(&case, step(&engine, &case.inputs, None));
    }
}

/// B = 4: half a byte for each of r = 16 channels of each head's cache, an offset and a step, and a bound for each 256 keys.
#[test]
fn memory_of_a_cached_key() {
    let keys = 4096;
    let layout =
        Layout { batch: 1, heads: 4, kv_heads: 2, head_dim: 128, value_dim: 64, storage: Storage::Bf16 };
    let rows = (0..4).map(|head| (0..128).map(|channel| (channel + head) % 128).collect()).collect();
    let selection = Selection {
        heavy_size: HeavySize::count(8).unwrap(),
        group_factor: GroupFactor::new(8).unwrap(),
        label_bits: LabelBits::new(4).unwrap(),
        heads: HeadMode::PerHead,
        dense_fallback: false,
    };
    let channels = ChannelOrder::new(rows).unwrap();
    let mut engine = Engine::new(layout, vec![Masker::DoubleSparsity { selection, channels }]).unwrap();
    assert_eq!(engine.bytes(), Bytes { labels: 0, rows: 0 });
    let (k, v) = (Array4::ones([1, 2, keys, 128]), Array4::ones([1, 2, keys, 64]));
    engine.append(k.view(), v.view()).unwrap();
    let labels = 4 * (keys * (16 / 2 + 2 * 4) + keys / 256 * 3 * 8);
    assert_eq!(engine.bytes(), Bytes { labels, rows: 2 * keys * (128 + 64) * 2 });
}

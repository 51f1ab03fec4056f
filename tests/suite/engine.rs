//! The decode engine equals the reference: the same masks, ties included, and the same codes, however the keys arrive; its
//! attention is judged by the bound. Random machines of appends, steps and resets on the random cases' own tensors, lists
//! of maskers, lengths over the engine's blocks, the 81 cases of the grid, and what it refuses.

use std::sync::atomic::{AtomicUsize, Ordering};

use doublecheck::algorithm::config::WindowConfig;
use doublecheck::algorithm::maskers::{ChannelSource, DoubleSparsity, Local, Oracle, Sink};
use doublecheck::algorithm::quantize::quantize;
use doublecheck::algorithm::{
    ChannelOrder, Error, GroupFactor, HeadMode, HeavySize, InputParts, Inputs, LabelBits, Mask, Selection,
    SparseAttention, Storage,
};
use doublecheck::cases::bundled;
use doublecheck::cases::strategies::{AdditiveMask, ChannelRows, Plan, Values, plans};
use doublecheck::cases::{Case, CaseFile, EarlierMasker, NoAnswer, Reader};
use doublecheck::engine::{Attended, Bytes, Engine, EngineMasker, Layout, Query, Step};
use doublecheck::subjects::{self, Reference, Subject};
use doublecheck::verdicts::Certificate;
use doublecheck::verdicts::judge::{judge_mask, same_kind};
use doublecheck::verdicts::output::judge_output;
use ndarray::{Array4, s};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest};
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

fn maskers(case: &Case) -> Vec<EngineMasker> {
    let earlier = case.instance.earlier_maskers.iter().map(|masker| match *masker {
        EarlierMasker::Sink(WindowConfig { size }) => EngineMasker::Sink(Sink { size }),
        EarlierMasker::Local(WindowConfig { size }) => EngineMasker::Local(Local { size }),
    });
    let (selection, channels) = (case.instance.selection, case.channels().unwrap().clone());
    earlier.chain([EngineMasker::DoubleSparsity { selection, channels }]).collect()
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
    let parts = case.call.inputs.parts();
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
    let weights = case.call.previous.as_ref().map(|previous| cut(previous.weights()));
    let previous = weights.map(|weights| Mask::from_weights(weights, &inputs.dims()).unwrap());
    let mut case = case.with_inputs(inputs);
    case.call.previous = previous;
    case
}

/// The engine's step against the reference's answer: the same mask or the same refusal, certified once more by the verdicts.
/// Whether both answered.
fn must_equal_reference(case: &Case, found: Result<Step, Error>) -> bool {
    match (found, Reference::default().answer(case)) {
        (Ok(step), Ok(expected)) => {
            let (mask, model) = (step.mask().unwrap(), subjects::Engine::default().rounding_model());
            assert_eq!(mask, expected.mask);
            let certificate = Certificate::derive(&case.instance, &case.call, model).unwrap();
            assert_eq!(judge_mask(&case.instance, &case.call, &certificate, &mask, model).divergences, []);
            assert_eq!(judge_output(&case.call.inputs, &mask, &step.output, model).divergences, []);
            true
        }
        (Err(found), Err(NoAnswer::Refused(expected))) => {
            assert!(same_kind(&found, &expected), "{found}, {expected}");
            false
        }
        (found, expected) => panic!("found {found:?}, expected {expected:?}"),
    }
}

/// Codes of at most 8 bits, those that the engine keeps, are those of SPEC §2.5. How many were compared.
fn codes_must_equal_reference(case: &Case, engine: &Engine) -> usize {
    let (dims, settings) = (case.call.inputs.dims(), case.instance.selection);
    if settings.label_bits.get() > 8 {
        return 0;
    }
    let label_channels = settings.group_factor.label_channels(dims.head_dim).unwrap();
    for (batch, head, key) in ndarray::indices((dims.batch, dims.heads, engine.keys())) {
        let source = case.call.inputs.keys(batch, head);
        let row: Vec<f32> = case.channels().unwrap().row(head, &dims)[..label_channels]
            .iter()
            .map(|&channel| source[[key, channel]])
            .collect();
        let expected =
            quantize(&row, settings.label_bits, case.call.inputs.storage()).map(|quantised| quantised.codes);
        let found: Vec<f32> = engine.codes(batch, head, key).unwrap().into_iter().map(f32::from).collect();
        assert_eq!(
            found,
            expected.unwrap_or(vec![0.0; label_channels]),
            "batch {batch}, head {head}, key {key}"
        );
    }
    dims.batch * dims.heads * engine.keys()
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

struct Machine {
    case: Case,
    engine: Engine,
}

impl Machine {
    fn new(plan: &Plan) -> Self {
        let case = plan.case().unwrap();
        let engine = Engine::new(layout(&case.call.inputs), maskers(&case)).unwrap();
        Self { case, engine }
    }
}

impl ReferenceStateMachine for Machine {
    type State = Layer;
    type Transition = Transition;

    fn init_state() -> BoxedStrategy<Layer> {
        plans().prop_map(|plan| Layer { plan, keys: 0 }).boxed()
    }

    fn transitions(layer: &Layer) -> BoxedStrategy<Transition> {
        let (left, keys) = (layer.plan.keys - layer.keys, layer.keys);
        let reset = plans().prop_map(|plan| Transition::Reset(Box::new(plan)));
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
            Transition::Append(keys) => append(&mut machine.engine, &machine.case.call.inputs, keys),
            Transition::Step(queries) => {
                let case = prefix(&machine.case, queries, layer.keys);
                let found = step(&machine.engine, &case.call.inputs, case.call.previous.as_ref());
                let answered = must_equal_reference(&case, found);
                if answered { &ANSWERED } else { &REFUSED }.fetch_add(1, Ordering::Relaxed);
            }
            Transition::Reset(plan) => machine = Self::new(&plan),
        }
        machine
    }

    fn check_invariants(machine: &Self, layer: &Layer) {
        assert_eq!(machine.engine.keys(), layer.keys);
        let codes = codes_must_equal_reference(&machine.case, &machine.engine);
        CODES.fetch_add(codes, Ordering::Relaxed);
    }
}

/// What machines did: steps that both answered or both refused, and codes compared.
static ANSWERED: AtomicUsize = AtomicUsize::new(0);
static REFUSED: AtomicUsize = AtomicUsize::new(0);
static CODES: AtomicUsize = AtomicUsize::new(0);

#[test]
fn any_sequence_of_appends_steps_and_resets_equals_the_reference() {
    const MACHINES: u32 = 400;
    let config = crate::support::proptest_config(MACHINES, "proptest-regressions/engine.txt");
    let machines = Machine::sequential_strategy(1..20);
    let outcome = TestRunner::new(config.clone()).run(&machines, |(layer, transitions, seen)| {
        Machine::test_sequential(config.clone(), layer, transitions, seen);
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
    let [answered, refused, codes] = [&ANSWERED, &REFUSED, &CODES].map(|count| count.load(Ordering::Relaxed));
    let counts = format!("{answered} steps answered, {refused} refused, {codes} codes compared");
    println!("{counts}");
    assert!(answered > refused && refused > 0 && codes > 0, "{counts}");
}

proptest! {
    #![proptest_config(crate::support::proptest_config(60, "proptest-regressions/engine.txt"))]

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
            selection: Selection { heavy_size: HeavySize::fraction(share).unwrap(), ..plan.selection },
            ..plan
        };
        let case = plan.case().unwrap();
        prop_assume!(Reference::default().answer(&case).is_ok());
        let mut engine = Engine::new(layout(&case.call.inputs), maskers(&case)).unwrap();
        for portion in [1, keys / 3, keys - keys / 3 - 1] {
            append(&mut engine, &case.call.inputs, portion);
        }
        codes_must_equal_reference(&case, &engine);
        let found = step(&engine, &case.call.inputs, case.call.previous.as_ref());
        prop_assert!(must_equal_reference(&case, found));
    }
}

/// Any list of maskers: each starts from what those before it attend to.
#[test]
fn lists_of_maskers_equal_the_reference() {
    let mut runner = TestRunner::deterministic();
    let (mut answered, mut refused) = (0, 0);
    for index in 0..300 {
        let plan = plans().new_tree(&mut runner).unwrap().current();
        let case = plan.case().unwrap();
        let (sink, local) =
            (Sink { size: HeavySize::count(2).unwrap() }, Local { size: HeavySize::count(3).unwrap() });
        let oracle = Oracle { heavy_size: HeavySize::fraction(0.2).unwrap() };
        let selection = case.instance.selection;
        let mut channels = case.channels().unwrap().rows().to_vec();
        channels.iter_mut().for_each(|row| row.reverse());
        let other = ChannelOrder::new(channels).unwrap();
        let double = |channels: &ChannelOrder| {
            let channels = channels.clone();
            let source = ChannelSource::Order(channels.clone());
            let reference = DoubleSparsity { selection, channels: source };
            (EngineMasker::DoubleSparsity { selection, channels }, reference)
        };
        let ((first, first_reference), (second, second_reference)) =
            (double(case.channels().unwrap()), double(&other));
        let engine = vec![
            EngineMasker::Sink(sink),
            EngineMasker::Oracle(oracle),
            first,
            EngineMasker::Local(local),
            second,
        ];
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
        let mut engine = Engine::new(layout(&case.call.inputs), engine).unwrap();
        append(&mut engine, &case.call.inputs, case.call.inputs.dims().keys);
        let previous = case.call.previous.clone().unwrap_or(Mask::empty(&case.call.inputs.dims()));
        match (
            step(&engine, &case.call.inputs, case.call.previous.as_ref()),
            reference.extend_mask(&case.call.inputs, 0, previous),
        ) {
            (Ok(step), Ok(mask)) => {
                assert_eq!(step.mask().unwrap(), mask, "{index}: {plan:?}");
                answered += 1;
            }
            (Err(found), Err(expected)) => {
                assert!(same_kind(&found, &expected), "{found}, {expected}");
                refused += 1;
            }
            (found, expected) => panic!("{plan:?}: found {found:?}, expected {expected:?}"),
        }
        let mut dense = Engine::new(layout(&case.call.inputs), vec![EngineMasker::Dense]).unwrap();
        append(&mut dense, &case.call.inputs, case.call.inputs.dims().keys);
        let previous = case.call.previous.clone().unwrap_or(Mask::empty(&case.call.inputs.dims()));
        let step = step(&dense, &case.call.inputs, case.call.previous.as_ref()).unwrap();
        assert_eq!(step.mask().unwrap(), reference.extend_mask(&case.call.inputs, 1, previous).unwrap());
    }
    assert!(answered > refused && refused > 0, "{answered} answered, {refused} refused");
}

/// A third of the grid of 81 cases by appending: the stored masks, bit for bit.
#[rstest]
fn grid(#[values(8, 16, 32)] group_factor: usize, #[values(4, 8, 16)] label_bits: usize) {
    gives_the_grid(8193, group_factor, label_bits);
}

/// The rest of it, which `ci/long` runs.
#[rstest]
#[ignore = "takes long: ci/long runs it"]
fn grid_of_more_keys(
    #[values(16385, 32769)] keys: usize,
    #[values(8, 16, 32)] group_factor: usize,
    #[values(4, 8, 16)] label_bits: usize,
) {
    gives_the_grid(keys, group_factor, label_bits);
}

fn gives_the_grid(keys: usize, group_factor: usize, label_bits: usize) {
    let mut reader = Reader::default();
    for heavy_size in [128, 512, 1024] {
        let name = format!("n{keys}-g{group_factor}-b{label_bits}-h{heavy_size}.safetensors");
        let bytes = bundled::read(&format!("grid/{name}")).unwrap();
        let CaseFile::Attention(case) = reader.parse(&bytes, &name).unwrap() else {
            panic!("{name} is no case of an attention layer");
        };
        let dims = case.call.inputs.dims();
        assert_eq!(
            (dims.heads, dims.kv_heads, dims.queries, dims.keys, dims.head_dim),
            (32, 8, 1, keys, 128)
        );
        let mut engine = Engine::new(layout(&case.call.inputs), maskers(&case)).unwrap();
        for portion in [4097, keys - 4097 - 3, 1, 2] {
            append(&mut engine, &case.call.inputs, portion);
        }
        let found = step(&engine, &case.call.inputs, None).unwrap();
        let before = Mask::empty(&case.call.inputs.dims());
        let expected = case.expectation.as_ref().unwrap().answer(&before).unwrap().unwrap();
        assert!(found.mask().unwrap() == expected.mask, "{name}");
        let model = subjects::Engine::default().rounding_model();
        let judgement = judge_output(&case.call.inputs, &expected.mask, &found.output, model);
        assert_eq!(judgement.divergences, [], "{name}");
    }
}

/// All bundled cases but the grid, judged as any subject is.
#[test]
fn bundled_cases_conform() {
    use doublecheck::runner::verify::{VerifyOptions, verify};
    let mut files = bundled::cases().unwrap();
    files.retain(|file| file.group() != "grid");
    let options = VerifyOptions::new(50, 3);
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
        selection: Selection::new(HeavySize::count(100).unwrap(), 2, label_bits).unwrap(),
        additive: AdditiveMask::Absent,
        rows: ChannelRows::PerHead,
        ..crate::support::small_plan()
    };
    let case = plan.case().unwrap();
    let parts = case.call.inputs.parts();
    let inputs =
        Inputs::new(InputParts { k: &parts.k * factor, q: &parts.q * factor, ..parts.clone() }).unwrap();
    let case = case.with_inputs(inputs);
    let mut engine = Engine::new(layout(&case.call.inputs), maskers(&case)).unwrap();
    append(&mut engine, &case.call.inputs, 700);
    match (step(&engine, &case.call.inputs, None), Reference::default().answer(&case)) {
        (Ok(found), Ok(expected)) => assert!(found.mask().unwrap() == expected.mask),
        (Err(found), Err(NoAnswer::Refused(expected))) => assert!(same_kind(&found, &expected)),
        (found, expected) => panic!("found {found:?}, expected {expected:?}"),
    }
}

#[test]
fn bad_input_is_refused_and_changes_nothing() {
    let case = crate::support::small_case();
    let small = layout(&case.call.inputs);
    for wrong in [Layout { heads: 3, kv_heads: 2, ..small }, Layout { head_dim: 0, ..small }] {
        assert!(matches!(Engine::new(wrong, Vec::new()), Err(Error::Shape(_))));
    }
    let masker = |group_factor: u64, rows: Vec<Vec<usize>>, heads| {
        let mut selection = case.instance.selection;
        selection.group_factor = GroupFactor::new(group_factor).unwrap();
        selection.heads = heads;
        vec![EngineMasker::DoubleSparsity { selection, channels: ChannelOrder::new(rows).unwrap() }]
    };
    let refused = |maskers| Engine::new(small, maskers).unwrap_err();
    assert!(matches!(refused(masker(3, vec![vec![0, 1]], HeadMode::PerHead)), Error::GroupFactor(_)));
    assert!(matches!(refused(masker(2, vec![vec![0, 4]], HeadMode::PerHead)), Error::ChannelRange(_)));
    assert!(matches!(refused(masker(1, vec![vec![0, 1]], HeadMode::PerHead)), Error::ChannelRows(_)));
    let differ = vec![vec![0, 1], vec![1, 2]];
    assert!(matches!(refused(masker(2, differ, HeadMode::SummedLabels)), Error::HeadMode(_)));

    let mut engine = Engine::new(small, masker(2, vec![vec![0, 1]], HeadMode::SummedLabels)).unwrap();
    let parts = case.call.inputs.parts().clone();
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
    let other = Mask::empty(&prefix(&case, 1, 6).call.inputs.dims());
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
        let selection = Selection::new(HeavySize::count(2).unwrap(), 2, 16).unwrap();
        let plan = Plan { storage, keys: 50, selection, ..crate::support::small_plan() };
        let case = plan.case().unwrap();
        assert_eq!(case.instance.selection.label_bits, LabelBits::UNQUANTISED);
        let mut engine = Engine::new(layout(&case.call.inputs), maskers(&case)).unwrap();
        append(&mut engine, &case.call.inputs, 50);
        must_equal_reference(&case, step(&engine, &case.call.inputs, None));
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
        rules: doublecheck::algorithm::Rules::default(),
    };
    let channels = ChannelOrder::new(rows).unwrap();
    let mut engine = Engine::new(layout, vec![EngineMasker::DoubleSparsity { selection, channels }]).unwrap();
    assert_eq!(engine.bytes(), Bytes { labels: 0, rows: 0 });
    let (k, v) = (Array4::ones([1, 2, keys, 128]), Array4::ones([1, 2, keys, 64]));
    engine.append(k.view(), v.view()).unwrap();
    let labels = 4 * (keys * (16 / 2 + 2 * 4) + keys / 256 * 3 * 8);
    assert_eq!(engine.bytes(), Bytes { labels, rows: 2 * keys * (128 + 64) * 2 });
}

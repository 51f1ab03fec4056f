//! Differential tests of libtorch (feature `torch`): the same tests run on CPU and, where there is a device, on CUDA. Where
//! there is none they are counted as ignored, never as passed, and a line says why.
//!
//! `DOUBLECHECK_TORCH_CASES` sets the number of random cases on each device (default 2,000). `DOUBLECHECK_SOAK_SEQUENCES` and
//! `DOUBLECHECK_SOAK_SEED` set how many random sequences reference, engine and libtorch are asked, and which (default 200 of seed 0).

mod support;

use std::collections::BTreeMap;

use doublecheck::algorithm::config::LabelBits;
use doublecheck::algorithm::maskers::{Oracle, Sink};
use doublecheck::algorithm::{
    ChannelOrder, Dims, Error, Forced, GroupFactor, HeadMode, HeavySize, InputParts, Inputs, Mask, Masker,
    QuantisedLabels, Ranks, Rules, ScoreFactor, ScoreRule, Selection, Storage,
};
use doublecheck::cases::bundled;
use doublecheck::cases::sequence_plan::sequence_plans;
use doublecheck::cases::session_plan::{Stream, session};
use doublecheck::cases::strategies::plans;
use doublecheck::cases::{Capabilities, Case, Instance, Precision, RoundingModel};
use doublecheck::reports::verify as text;
use doublecheck::runner::judged_cases::random_cases;
use doublecheck::runner::random::VerifyOptions;
use doublecheck::runner::verify::verify;
use doublecheck::subjects::{Engine, Reference, Subject, Torch, TorchCache, ask, ask_session};
use doublecheck::torch::{self, DeviceChoice, LabelledKvCache, Layer, device, masker, to_device, to_host};
use doublecheck::verdicts::judge::{Verdict, judge_call, judge_mask, judge_observation};
use doublecheck::verdicts::output::judge_outputs;
use doublecheck::verdicts::{Certificate, SessionJudge, judge_session};
use libtest_mimic::{Arguments, Failed, Trial};
use ndarray::s;
use proptest::prelude::any;
use proptest::sample::select;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use tch::{Device, Kind, Tensor};

type Outcome = Result<(), Failed>;
type Check = fn(&mut Torch) -> Outcome;
type CacheCheck = fn(&mut TorchCache) -> Outcome;

fn main() {
    let arguments = Arguments::from_args();
    // Cases are small, and the threads of libtorch wait by spinning: tests that run at once would take cores from each other.
    tch::set_num_threads(1);
    let mut trials = Vec::new();
    for (name, choice) in [("cpu", DeviceChoice::Cpu), ("cuda", DeviceChoice::Cuda(0))] {
        let missing = Torch::new(choice).err();
        if let Some(error) = &missing {
            eprintln!("ignored: every test on {name}: {error}");
        }
        let tests: [(&str, Check); 9] = [
            ("every_bundled_case_conforms", |torch| bundled_cases(torch)),
            ("random_cases_conform_with_bit_equal_labels", |torch| random(torch)),
            ("random_cases_of_other_rules_conform", |torch| other_rules(torch)),
            ("batches_of_unequal_lengths_conform", |torch| unequal_lengths(torch)),
            ("sequences_of_reference_engine_and_libtorch_conform", |torch| three_ways(torch)),
            ("labels_of_wide_rows_are_bit_equal", wide_rows),
            ("oracle_and_its_composition_are_certified", oracle),
            ("the_same_case_twice_gives_the_same_mask", |torch| repeats(torch)),
            ("arithmetic_is_f32", arithmetic),
        ];
        for (test, check) in tests {
            let run = move || check(&mut Torch::new(choice)?);
            trials.push(Trial::test(format!("{name}::{test}"), run).with_ignored_flag(missing.is_some()));
        }
        let tests: [(&str, CacheCheck); 9] = [
            ("bundled_cases_conform", |cache| bundled_cases_but_the_grid(cache)),
            ("random_cases_conform_with_bit_equal_labels", |cache| random(cache)),
            ("random_cases_of_other_rules_conform", |cache| other_rules(cache)),
            ("batches_of_unequal_lengths_conform", |cache| unequal_lengths(cache)),
            ("the_same_case_twice_gives_the_same_mask", |cache| repeats(cache)),
            ("steps_of_a_growing_cache_are_those_of_a_new_one", growing_cache),
            ("what_does_not_fit_is_refused", refusals_of_the_cache),
            ("sessions_conform", sessions),
            ("nothing_is_held_of_what_is_over", long_sessions),
        ];
        for (test, check) in tests {
            for (kept, scores) in [(Precision::F32, "f32"), (Precision::Storage, "storage")] {
                let run = move || check(&mut TorchCache::new(choice, kept)?);
                let name = format!("{name}::cache_in_{scores}::{test}");
                trials.push(Trial::test(name, run).with_ignored_flag(missing.is_some()));
            }
        }
    }
    libtest_mimic::run(&arguments, trials).exit();
}

fn cases(default: u32) -> u32 {
    let number = std::env::var("DOUBLECHECK_TORCH_CASES").ok();
    number.map_or(default, |number| number.parse().expect("DOUBLECHECK_TORCH_CASES is a number"))
}

fn bundled_cases(torch: &mut dyn Subject) -> Outcome {
    judge_bundled(torch, &bundled::cases()?)
}

/// The grid takes most of the time of all of them: `DOUBLECHECK_LONG` asks it, too.
fn bundled_cases_but_the_grid(cache: &mut dyn Subject) -> Outcome {
    let mut files = bundled::cases()?;
    files.retain(|file| file.group() != "grid" || std::env::var_os("DOUBLECHECK_LONG").is_some());
    judge_bundled(cache, &files)
}

fn judge_bundled(torch: &mut dyn Subject, files: &[bundled::Found]) -> Outcome {
    let report = verify(files, torch, VerifyOptions::new(20, 0), &mut |_| {});
    if report.exit_code() == 0 { Ok(()) } else { Err(text::render(&report, false).into()) }
}

fn random(torch: &mut dyn Subject) -> Outcome {
    let report = random_cases(torch, VerifyOptions::new(cases(2000), 1));
    match report.finding {
        None => Ok(()),
        Some(finding) => Err(finding.join("\n").into()),
    }
}

/// Session = calls (SPEC §2.14): what lives in pages answers as a call with the request's own keys.
fn sessions(cache: &mut TorchCache) -> Outcome {
    let (capabilities, model) = (cache.capabilities(), cache.rounding_model());
    let (mut asked, mut rows, mut refused) = (0, 0, 0);
    for session in (0..u64::from(cases(2000)) / 20).filter_map(|seed| session(&capabilities, seed)) {
        let verdict = judge_session(&ask_session(cache, &session), model);
        if let Some(failure) = verdict.failure {
            let why = failure.verdict.explanations().join("\n");
            return Err(format!("{}, step {:?}: {why}", session.name, failure.step).into());
        }
        asked += 1;
        rows += verdict.rows;
        refused += verdict.refused;
    }
    assert!(rows > 20 * asked && refused > asked / 2, "{asked} sessions, {rows} rows, {refused} refused");
    Ok(())
}

/// Ten sessions of many steps, each step judged; `ci/soak` asks a million. When all requests are over, no page is held.
fn long_sessions(cache: &mut TorchCache) -> Outcome {
    let steps = std::env::var("DOUBLECHECK_SOAK").ok().map_or(400, |steps| steps.parse().expect("a number"));
    let (capabilities, model) = (cache.capabilities(), cache.rounding_model());
    let start = std::time::Instant::now();
    let (mut asked, mut rows) = (0, 0);
    for seed in 0.. {
        if asked >= steps {
            break;
        }
        let Some(mut stream) = Stream::new(&capabilities, seed) else { continue };
        let instance = stream.instance().clone();
        let refused = |error| Failed::from(format!("stream {seed}: {error:?}"));
        cache.configure(&instance).and_then(|()| cache.open(stream.opening())).map_err(refused)?;
        let mut judge = SessionJudge::new(stream.opening(), &instance, model);
        while judge.verdict.steps < steps / 10 {
            for step in stream.round() {
                let answer = cache.step(&step);
                assert!(judge.step(&step, &answer), "stream {seed}: {:?}", judge.verdict.failure);
            }
        }
        for step in stream.end() {
            assert!(judge.step(&step, &cache.step(&step)), "stream {seed}: {:?}", judge.verdict.failure);
        }
        assert_eq!(cache.pages_held(), 0, "stream {seed}");
        asked += judge.verdict.steps;
        rows += judge.verdict.rows;
        let rate = asked as f64 / start.elapsed().as_secs_f64();
        println!(
            "{asked} steps, {rows} rows, {rate:.0} steps a second, {:?} MiB now",
            support::memory("VmRSS")
        );
    }
    assert!(rows > steps / 2, "{rows} rows");
    Ok(())
}

fn rules() -> impl Strategy<Value = (Rules, HeadMode)> {
    let rules = (
        select(vec![QuantisedLabels::Both, QuantisedLabels::Keys, QuantisedLabels::Queries]),
        select(vec![ScoreRule::Dot, ScoreRule::Cosine, ScoreRule::Relu]),
        select(vec![ScoreFactor::LabelChannels, ScoreFactor::HeadDim, ScoreFactor::Number(0.3)]),
        select(vec![(0, 0), (0, 1), (2, 3)]),
        any::<bool>(),
        select(vec![(1, Storage::F32), (2, Storage::F32), (2, Storage::Bf16), (3, Storage::F16)]),
    );
    let rules =
        rules.prop_map(|(quantised, score, factor, (first, last), channel_weights, (count, parts))| Rules {
            quantised,
            channel_weights,
            score,
            factor,
            ranks: Ranks::new(count, parts).expect("more than one part where parts are rounded"),
            forced: Forced { first, last },
            ..Rules::default()
        });
    (rules, select(HeadMode::EVERY.to_vec()))
}

/// SPEC §2.12: every score rule with every head mode, factor, choice of labels, forced keys, ranks and channel weights. Only answers
/// that leave a key out are counted: a full mask says nothing of a score. Answers of one that ignores channel weights or ranks must
/// fall outside in some of the cases.
fn other_rules(torch: &mut dyn Subject) -> Outcome {
    let mut runner = TestRunner::deterministic();
    // Fewer do not hold every pair of rule and head mode.
    let asked = cases(3000).max(1000);
    let (mut refused, mut conforming) = (0, BTreeMap::<_, u32>::new());
    let (mut weighted, mut in_ranks) = (0, BTreeMap::<_, u32>::new());
    let mut ignored = [0, 0];
    for asked_before in 0..asked {
        let (plan, (rules, heads)) = (plans(), rules()).new_tree(&mut runner)?.current();
        let capabilities = Capabilities { rules: vec![rules], heads: vec![heads], ..Capabilities::default() };
        let plan = plan.restricted(&capabilities);
        let case = plan.case()?;
        let answer = torch.answer(&case);
        let verdict = judge_call(&case.instance, &case.call, &answer, torch.rounding_model());
        if let Some(wrong) = verdict.explanations().first() {
            return Err(format!("{wrong}\n{plan:?}").into());
        }
        for (count, rules) in ignored
            .iter_mut()
            .zip([Rules { channel_weights: false, ..rules }, Rules { ranks: Ranks::default(), ..rules }])
        {
            // One case in four is enough.
            if asked_before % 4 == 0 && rules != case.instance.selection.rules {
                let mut other = case.clone();
                other.instance.selection.rules = rules;
                let answer = torch.answer(&other);
                let verdict = judge_call(&case.instance, &case.call, &answer, torch.rounding_model());
                *count += u32::from(answer.is_ok() && !verdict.conforms());
            }
        }
        match answer {
            Err(_) => refused += 1,
            Ok(answer) if answer.mask.weights().iter().any(|&weight| weight == 0.0) => {
                *conforming.entry((heads.name(), format!("{:?}", rules.score))).or_default() += 1;
                weighted += u32::from(rules.channel_weights && has_weights(&case.instance));
                if heads != HeadMode::PerHead && rules.ranks.count() > 1 {
                    *in_ranks.entry((heads.name(), rules.ranks.parts().to_string())).or_default() += 1;
                }
            }
            Ok(_) => {}
        }
    }
    let fewest = conforming.values().min().copied().unwrap_or(0);
    let fewest_in_ranks = in_ranks.values().min().copied().unwrap_or(0);
    println!("{weighted} weighted, {in_ranks:?} in ranks; outside without them: {ignored:?}");
    if conforming.len() == 3 * HeadMode::EVERY.len()
        && fewest >= asked / 200
        && in_ranks.len() == 3 * (HeadMode::EVERY.len() - 1)
        && fewest_in_ranks >= asked / 200
        && weighted >= asked / 8
        && ignored.iter().all(|&cases| cases > 0)
        && refused > 0
    {
        return Ok(());
    }
    Err(format!(
        "too few cases: {refused} refused; {weighted} weighted; {conforming:?}; {in_ranks:?}; {ignored:?}"
    )
    .into())
}

fn has_weights(instance: &Instance) -> bool {
    instance.channels(0).is_ok_and(|channels| channels.weights().is_some())
}

/// SPEC §2.13, by the published rules and others. Only answers that leave a key of an entry out are counted.
fn unequal_lengths(torch: &mut dyn Subject) -> Outcome {
    let mut runner = TestRunner::deterministic();
    let mut others = Vec::new();
    for _ in 0..40 {
        others.push(rules().new_tree(&mut runner)?.current().0);
    }
    // Random plans have the published head modes wherever these are offered.
    let other_heads = HeadMode::EVERY.into_iter().filter(|heads| !HeadMode::ALL.contains(heads)).collect();
    for (rules, heads) in [(vec![Rules::default()], HeadMode::ALL.to_vec()), (others, other_heads)] {
        let capabilities = Capabilities { rules, heads, ..torch.capabilities() };
        assert!(capabilities.ragged);
        let plans = sequence_plans(&capabilities);
        let mut conforming = BTreeMap::<_, u32>::new();
        for _ in 0..cases(400) {
            let plan = plans.new_tree(&mut runner)?.current();
            let sequence = plan.sequence()?;
            if !sequence.calls.iter().any(|call| call.inputs.lengths().is_some()) {
                continue;
            }
            let observation = ask(torch, &sequence);
            let verdicts = judge_observation(&observation, torch.rounding_model());
            if let Some(wrong) = verdicts.iter().flat_map(Verdict::explanations).next() {
                return Err(format!("{wrong}\n{plan:?}").into());
            }
            for (call, answer) in sequence.calls.iter().zip(&observation.answers) {
                let (Some(lengths), Ok(answer)) = (call.inputs.lengths(), answer) else { continue };
                let weights = answer.mask.weights();
                let leaves_out = weights.outer_iter().zip(lengths.keys()).any(|(entry, &keys)| {
                    entry.slice(s![.., -1.., ..keys]).iter().any(|&weight| weight == 0.0)
                });
                *conforming.entry(sequence.instance.selection.heads.name()).or_default() +=
                    u32::from(leaves_out);
            }
        }
        let total: u32 = conforming.values().sum();
        if conforming.len() < capabilities.heads.len() || total < cases(400) / 20 {
            return Err(format!("too few calls: {conforming:?}").into());
        }
    }
    Ok(())
}

/// The same random sequences for reference, engine and libtorch. Engine and reference have the same masks. Where libtorch has them, too,
/// the bound of outputs is what there is to judge; where it has others, or one refuses, or lengths are unequal, whole answers are judged,
/// and what differs has to be explained by ties and rounding. `ci/soak` asks ten million, by shards, each with its own seed.
fn three_ways(torch: &mut dyn Subject) -> Outcome {
    let number = |name| std::env::var(name).ok().map(|number| number.parse::<u32>().expect("a number"));
    let sequences = number("DOUBLECHECK_SOAK_SEQUENCES").unwrap_or(200);
    let seed = number("DOUBLECHECK_SOAK_SEED").unwrap_or(0);
    let mut rng = [0; 32];
    rng[..4].copy_from_slice(&seed.to_le_bytes());
    let mut runner =
        TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &rng));
    let (mut reference, mut engine) = (Reference::default(), Engine::default());
    let models = [engine.rounding_model(), torch.rounding_model()];
    let plans = sequence_plans(&Capabilities { ragged: true, ..Capabilities::default() });
    let start = std::time::Instant::now();
    let (mut same, mut explained, mut refused, mut rows) = (0, 0, 0, 0);
    for asked in 1..=sequences {
        let plan = plans.new_tree(&mut runner)?.current();
        let sequence = plan.sequence()?;
        let wrong = |what: &str| Err(format!("seed {seed}, sequence {asked}: {what}\n{plan:?}").into());
        let of_reference = ask(&mut reference, &sequence);
        let others = [ask(&mut engine, &sequence), ask(torch, &sequence)];
        let mut whole = false;
        for (index, call) in sequence.calls.iter().enumerate() {
            let [expected, first, second] =
                [&of_reference, &others[0], &others[1]].map(|observation| &observation.answers[index]);
            let (Ok(expected), Ok(first), Ok(second)) = (expected, first, second) else {
                whole = true;
                refused += 1;
                continue;
            };
            if first.mask != expected.mask {
                return wrong("the engine has another mask than the reference");
            }
            rows += call.inputs.dims().rows().count();
            if second.mask != expected.mask || call.inputs.lengths().is_some() {
                whole = true;
                explained += u32::from(second.mask != expected.mask);
                continue;
            }
            same += 1;
            let (Some(of_engine), Some(of_torch)) = (&first.output, &second.output) else {
                return wrong("an answer without output");
            };
            let outputs = [(of_engine, models[0]), (of_torch, models[1])];
            for verdict in judge_outputs(&call.inputs, &first.mask, outputs) {
                if let Some(divergence) = verdict.divergences.first() {
                    return wrong(&divergence.to_string());
                }
            }
        }
        for (observation, model) in others.iter().zip(models).filter(|_| whole) {
            let verdicts = judge_observation(observation, model);
            if let Some(explanation) = verdicts.iter().flat_map(Verdict::explanations).next() {
                return wrong(&explanation);
            }
        }
        if asked % sequences.div_ceil(4) == 0 || asked == sequences {
            let rate = f64::from(asked) / start.elapsed().as_secs_f64();
            println!(
                "seed {seed}: {asked} sequences, {rows} rows, {same} calls with the same masks, {explained} with others that \
                 are explained, {refused} refused; {rate:.0} sequences a second, {:?} MiB now",
                support::memory("VmRSS")
            );
        }
    }
    if same > sequences && explained > 0 && refused > 0 {
        return Ok(());
    }
    Err(format!("too few calls: {same} with the same masks, {explained} with others, {refused} refused")
        .into())
}

/// Rows with magnitudes over most of each type's range, wider than random cases have them.
fn wide_rows(torch: &mut Torch) -> Outcome {
    let words = doublecheck::cases::recipe::Words::new(11, 0);
    for index in 0..600u64 {
        let storage = Storage::ALL[(index % 3) as usize];
        let bits = LabelBits::new(index / 3 % 15 + 1)?;
        let factor = 2.0f32.powi((words.word(index) % 24) as i32 - 12);
        let row: Vec<f32> = (0..33).map(|i| storage.round(words.value(index * 33 + i) * factor)).collect();
        let found = torch.labels(&row, bits, storage).ok_or("torch offers labels")?;
        let expected =
            Reference::default().labels(&row, bits, storage).ok_or("the reference offers labels")?;
        let equal = match (&found, &expected) {
            (Ok(found), Ok(expected)) => {
                found.iter().map(|x| x.to_bits()).eq(expected.iter().map(|x| x.to_bits()))
            }
            (found, expected) => found.is_err() == expected.is_err(),
        };
        if !equal {
            return Err(
                format!("{storage} {} bits {row:?}: {found:?}, expected {expected:?}", bits.get()).into()
            );
        }
    }
    Ok(())
}

/// Exact top-k is Double Sparsity with all channels and no quantisation (SPEC §2.6), so that the same certificate judges it;
/// after a sink, and before a second masker that must leave its keys alone.
fn oracle(torch: &mut Torch) -> Outcome {
    let mut runner = TestRunner::deterministic();
    for _ in 0..200 {
        let plan = plans().new_tree(&mut runner)?.current();
        let case = plan.case()?;
        let mut exact = without_scaling(&case)?;
        exact.instance.earlier_maskers.clear();
        let sink = Sink { size: HeavySize::count(2)? };
        let before = sink.add_mask(&exact.call.inputs, 0, &case.before()?)?;
        exact.call.previous = Some(before.clone());
        let heavy_size = exact.instance.selection.heavy_size;
        let mask = exact_top_k(torch, &exact.call.inputs, heavy_size, &before)?;
        must_conform(&exact, &mask, torch.rounding_model())?;
        must_conform(
            &exact,
            &Oracle { heavy_size }.add_mask(&exact.call.inputs, 0, &before)?,
            RoundingModel::REFERENCE,
        )?;
        // The oracle's mask is what Double Sparsity then starts from.
        let mut call = exact.call.clone();
        call.previous = Some(mask);
        let composed = Case { instance: case.instance.clone(), call, ..exact };
        let answer = torch.answer(&composed);
        let verdict = judge_call(&composed.instance, &composed.call, &answer, torch.rounding_model());
        if let Some(wrong) = verdict.explanations().first() {
            return Err(format!("{wrong}\n{plan:?}").into());
        }
    }
    Ok(())
}

fn exact_top_k(torch: &Torch, inputs: &Inputs, heavy_size: HeavySize, before: &Mask) -> Result<Mask, Failed> {
    let layer = Layer::of_inputs(inputs, torch.device())?;
    let before = to_device(before.weights(), torch.device())?;
    let mask = masker::oracle(&layer, heavy_size, Some(&before))?.mask(&layer, Some(&before))?;
    Ok(Mask::from_weights(to_host(&mask)?, &inputs.dims())?)
}

fn without_scaling(case: &Case) -> Result<Case, Failed> {
    let inputs = Inputs::new(InputParts { scaling: None, ..case.call.inputs.parts().clone() })?;
    let order = ChannelOrder::new(vec![(0..case.dims().head_dim).collect()])?;
    let mut exact = case.with_inputs(inputs).with_channels(order);
    exact.instance.selection.heads = HeadMode::PerHead;
    exact.instance.selection.dense_fallback = false;
    exact.instance.selection.label_bits = LabelBits::UNQUANTISED;
    exact.instance.selection.group_factor = GroupFactor::new(1)?;
    Ok(exact)
}

fn must_conform(case: &Case, mask: &Mask, model: RoundingModel) -> Outcome {
    let certificate = Certificate::derive(&case.instance, &case.call, model)?;
    match judge_mask(&case.instance, &case.call, &certificate, mask, model).divergences.first() {
        None => Ok(()),
        Some(divergence) => Err(divergence.to_string().into()),
    }
}

/// Ties included: random cases hold many.
fn repeats(torch: &mut dyn Subject) -> Outcome {
    let mut runner = TestRunner::deterministic();
    for _ in 0..100 {
        let case = plans().new_tree(&mut runner)?.current().case()?;
        let mut answer = || torch.answer(&case).map(|answer| answer.mask);
        let first = answer();
        for _ in 0..3 {
            if answer() != first {
                return Err(format!("{}: another mask when asked again", case.name).into());
            }
        }
    }
    Ok(())
}

fn arithmetic(torch: &mut Torch) -> Outcome {
    // Opening a CUDA device refuses one whose arithmetic is less exact; this shows it, and checks the CPU too.
    let line = device::arithmetic(torch.device());
    println!("{line}");
    let expected = line.contains("is 1.000244140625") && line.contains("give 4096.5");
    if expected { Ok(()) } else { Err(line.into()) }
}

/// An empty cache of small sizes: 2 batch entries, 4 heads over 2 KV heads, d = 16, dv = 12, r = 4, H = 40, 4 bits, bf16.
fn small_cache(kept: Precision, heads: HeadMode, device: Device) -> torch::Result<LabelledKvCache> {
    let dims = Dims { batch: 2, heads: 4, kv_heads: 2, queries: 1, keys: 0, head_dim: 16, value_dim: 12 };
    let channels = ChannelOrder::new(vec![(0..16).rev().collect()])?;
    let selection = Selection {
        heavy_size: HeavySize::count(40)?,
        group_factor: GroupFactor::new(4)?,
        label_bits: LabelBits::new(4)?,
        heads,
        dense_fallback: false,
        rules: Rules::default(),
    };
    LabelledKvCache::new(&dims, &channels, &selection, Storage::Bf16, kept, 0.25, device)
}

/// Storage grows several times, one step follows each piece, and each answers as a cache that was filled at once.
fn growing_cache(subject: &mut TorchCache) -> Outcome {
    let (kept, device) = (subject.rounding_model().scores_kept, subject.device());
    let normal = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, device)).to_kind(Kind::BFloat16);
    tch::manual_seed(5);
    for heads in HeadMode::EVERY {
        let (k, v) = (normal(&[2, 2, 777, 16]), normal(&[2, 2, 777, 12]));
        let mut grown = small_cache(kept, heads, device)?;
        let mut held = 0;
        for count in [1, 39, 2, 86, 1, 300, 0, 7, 341] {
            grown.append(&k.narrow(2, held, count), &v.narrow(2, held, count))?;
            held += count;
            let q = normal(&[2, 4, 1, 16]);
            let mut filled = small_cache(kept, heads, device)?;
            filled.append(&k.narrow(2, 0, held), &v.narrow(2, 0, held))?;
            let (step, expected) = (grown.step(&q, None)?, filled.step(&q, None)?);
            grown.check(&step.query_labels)?;
            let ascending = |keys: &Tensor| keys.sort(-1, false).0;
            // Top-k may give the same keys in another order, which moves sums: both attend to one list.
            let attended = |cache: &LabelledKvCache| cache.attend(&q, &step.selected, None);
            let equal = ascending(&step.selected.keys) == ascending(&expected.selected.keys)
                && attended(&grown)? == attended(&filled)?
                && grown.labels()? == filled.labels()?
                && step.output.size() == [2, 4, 1, 12]
                && grown.keys() as i64 == held;
            if !equal {
                return Err(format!("{heads:?}, {held} keys: {}", step.output).into());
            }
        }
        assert_eq!(held, 777);
    }
    Ok(())
}

/// Shapes, types, no keys yet, and numbers that are not finite.
fn refusals_of_the_cache(subject: &mut TorchCache) -> Outcome {
    let device = subject.device();
    let mut cache = small_cache(subject.rounding_model().scores_kept, HeadMode::PerHead, device)?;
    let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::BFloat16, device));
    let (k, v, q) = (zeros(&[2, 2, 3, 16]), zeros(&[2, 2, 3, 12]), zeros(&[2, 4, 1, 16]));
    let shape = |outcome: torch::Result<()>, field: &str| match outcome {
        Err(torch::Error::Refused(Error::Shape(detail))) if detail.field == field => Ok(()),
        other => Err(Failed::from(format!("expected {field} to be refused, found {other:?}"))),
    };
    shape(cache.step(&q, None).map(drop), "q and cache")?;
    shape(cache.append(&zeros(&[2, 2, 16]), &v), "k")?;
    shape(cache.append(&zeros(&[2, 4, 3, 16]), &v), "k")?;
    shape(cache.append(&k.to_kind(Kind::Half), &v), "k")?;
    shape(cache.append(&k, &v.narrow(2, 0, 2)), "v")?;
    shape(cache.append(&k, &zeros(&[2, 2, 3, 16])), "v")?;
    cache.append(&k, &v)?;
    shape(cache.step(&zeros(&[2, 2, 1, 16]), None).map(drop), "q")?;
    let labels = cache.score(&q, None, None)?.query_labels;
    cache.check(&labels)?;
    cache.append(&k, &v.full_like(f64::NAN))?;
    match cache.check(&labels) {
        Err(torch::Error::Refused(Error::NotFinite(_))) => Ok(()),
        other => Err(format!("expected a NaN to be refused, found {other:?}").into()),
    }
}

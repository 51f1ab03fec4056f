//! How fast the suite itself is: small random cases a second for each subject, sequences a second of `check`, `verify` in total,
//! the time to shrink a counterexample of each fault, and what judging an answer costs beside making it.

mod support;

use std::time::Instant;

use criterion::{BenchmarkId, Criterion};
use doublecheck::behaviours::CATALOGUE;
use doublecheck::cases::bundled;
use doublecheck::cases::strategies::small_plans;
use doublecheck::cases::{Answer, Call, Case, Instance, NoAnswer, Sequence};
use doublecheck::runner::check::{self, check};
use doublecheck::runner::faults::Planted;
use doublecheck::runner::judged_cases::small_cases;
use doublecheck::runner::random::VerifyOptions;
use doublecheck::runner::verify::verify;
use doublecheck::subjects::{Engine, Reference, Subject};
use doublecheck::verdicts::judge::judge_call;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use support::{Failure, figure, testing};

/// Generated, asked and judged, on all cores.
fn random<S: Subject>(
    name: &str,
    cases: u32,
    new_subject: impl Fn() -> Result<S, Failure> + Sync,
) -> Result<(), Failure> {
    let random_cases = if testing() { 50 } else { cases };
    let report = small_cases(new_subject, VerifyOptions::new(random_cases, 0))?;
    if let Some(finding) = report.finding {
        return Err(format!("{name} diverges: {}", finding.join("; ")).into());
    }
    figure(&format!("small random cases, {name}"), report.cases as f64 / report.seconds, "cases/s");
    Ok(())
}

fn sequences() {
    let cases = if testing() { 10 } else { 2000 };
    let report = check(&mut Reference::default(), &check::Options { cases, ..Default::default() });
    figure("check, reference", report.sequences_per_second, "sequences/s");
}

/// As the command does it.
fn bundled_cases() -> Result<(), Failure> {
    let mut files = bundled::cases()?;
    let mut options = VerifyOptions::new(200, 0);
    if testing() {
        files.retain(|file| file.group() == "counterexamples");
        options.random_cases = 1;
    }
    let start = Instant::now();
    let report = verify(&files, &mut Reference::default(), options, &mut |_| {});
    figure("verify", start.elapsed().as_secs_f64(), "s");
    for group in &report.groups {
        figure(&format!("verify, {}", group.name), group.seconds, "s");
    }
    let of_groups: f64 = report.groups.iter().map(|group| group.seconds).sum();
    figure("verify, invariants on random cases", report.seconds - of_groups, "s");
    if report.exit_code() != 0 {
        return Err("verify finds the reference at fault".into());
    }
    Ok(())
}

fn shrinking() {
    // Enough to catch each fault once.
    let options =
        check::Options { cases: if testing() { 5 } else { 200 }, most_findings: 1, ..Default::default() };
    for fault in CATALOGUE {
        let (result, _) = Planted::Fault(fault).check(&options);
        if result.caught_by.is_some() {
            figure(&format!("shrinking, {}", result.name), result.shrinking_seconds, "s");
        }
    }
}

fn middle_case() -> Result<Case, Failure> {
    let (inputs, channels) = support::inputs(1, if testing() { 1024 } else { 8192 })?;
    let instance = Instance::of_layer(support::selection(4)?, channels, &inputs.dims());
    let call = Call { layer: 0, inputs: inputs.into(), previous: None };
    let (recipe, expectation, unknown) = (None, None, serde_json::Map::new());
    Ok(Case { name: "bench".into(), instance, call, recipe, expectation, unknown })
}

fn small_case(runner: &mut TestRunner) -> Result<Case, Failure> {
    let plan = small_plans().new_tree(runner).map_err(|reason| reason.to_string())?.current();
    Ok(plan.case()?)
}

/// The reference's answers, and the verdicts on them: each the time of all cases.
fn certification(criterion: &mut Criterion, name: &str, cases: &[Case]) {
    let sequences: Vec<_> = cases.iter().map(Case::sequence).collect();
    let mut reference = Reference::default();
    let mut answer = |sequence: &Sequence| -> Result<Answer, NoAnswer> {
        reference.configure(&sequence.instance)?;
        reference.call(&sequence.calls[0])
    };
    let answers: Vec<_> = sequences.iter().map(&mut answer).collect();
    let mut group = criterion.benchmark_group("certification");
    group.bench_function(BenchmarkId::new("answer", name), |bencher| {
        bencher.iter(|| sequences.iter().map(&mut answer).filter(Result::is_ok).count());
    });
    let model = Reference::default().rounding_model();
    group.bench_function(BenchmarkId::new("verdict", name), |bencher| {
        bencher.iter(|| {
            let judged = sequences.iter().zip(&answers).map(|(sequence, answer)| {
                judge_call(&sequence.instance, &sequence.calls[0], answer, model).conforms()
            });
            assert!(judged.fold(true, |all, conforms| all & conforms));
        });
    });
}

fn main() -> Result<(), Failure> {
    random("reference", 100_000, || Ok(Reference::default()))?;
    random("engine", 100_000, || Ok(Engine::default()))?;
    #[cfg(feature = "torch")]
    random("torch", 5000, || {
        use doublecheck::subjects::Torch;
        use doublecheck::torch::DeviceChoice;
        Ok(Torch::new(DeviceChoice::Cpu)?)
    })?;
    sequences();
    bundled_cases()?;
    shrinking();
    let mut criterion = support::criterion();
    certification(&mut criterion, "middle", &[middle_case()?]);
    let mut runner = TestRunner::deterministic();
    let small = (0..1000).map(|_| small_case(&mut runner)).collect::<Result<Vec<_>, _>>()?;
    certification(&mut criterion, "small", &small);
    criterion.final_summary();
    Ok(())
}

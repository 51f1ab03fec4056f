//! Random cases, each asked and judged on its own: for `verify`'s invariants, for tests and benches. The same seed makes the
//! same cases.

use std::cell::RefCell;
use std::time::Instant;

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{TestCaseError, TestError};
use rayon::prelude::*;

use crate::cases::recipe::mix;
use crate::cases::seed::test_runner;
use crate::cases::strategies::{Plan, plans, small_plans};
use crate::cases::{Answer, Capabilities, Case, NoAnswer};
use crate::subjects::{Reference, Subject, ask};
use crate::verdicts::judge::same_kind;
use crate::verdicts::{Certificate, Sharpness, judge};

/// How many random cases, and which.
#[derive(Debug, Clone, Copy)]
pub struct VerifyOptions {
    /// How many random cases each invariant gets; 0 leaves the invariants out.
    pub random_cases: u32,
    /// Seed of the random cases.
    pub seed: u64,
}

/// How a subject fared on random cases.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct RandomReport {
    /// How many cases were judged.
    pub cases: usize,
    /// How many of them had to be refused, and were.
    pub refused: usize,
    /// Cases in which the mask equals the reference's.
    pub masks_equal: usize,
    /// How many rows of labels were compared bit for bit with the reference's.
    pub label_rows: usize,
    /// How sharp the verdicts were.
    pub sharpness: Sharpness,
    /// What is wrong with the first case that falls outside, and its plan, shrunk.
    pub finding: Option<Vec<String>>,
    /// Wall-clock time.
    pub seconds: f64,
}

impl RandomReport {
    /// Adds counts; the first finding stays.
    fn add(&mut self, other: Self) {
        self.cases += other.cases;
        self.refused += other.refused;
        self.masks_equal += other.masks_equal;
        self.label_rows += other.label_rows;
        self.sharpness.add(&other.sharpness);
        self.finding = self.finding.take().or(other.finding);
    }
}

/// Judges a subject on random cases: its mask and output under its rounding model, what it refuses, and some labels of each
/// case bit for bit. Stops at the first divergence and shrinks it.
pub fn random_cases(subject: &mut dyn Subject, options: VerifyOptions) -> RandomReport {
    random_cases_of(plans(), subject, options, random_case)
}

/// Judges a subject on small random cases, on all cores: each has a subject of its own. Only mask and output are judged, as
/// in `check`; nothing is compared with the reference beyond that. Each core stops at its first divergence and shrinks it. The
/// same seed makes the same cases on the same number of cores.
///
/// Errors: those of `new_subject`.
pub fn small_cases<S: Subject, E: Send>(
    new_subject: impl Fn() -> Result<S, E> + Sync,
    options: VerifyOptions,
) -> Result<RandomReport, E> {
    let start = Instant::now();
    let cores = u32::try_from(rayon::current_num_threads()).unwrap_or(u32::MAX);
    let share = |core: u32| -> Result<RandomReport, E> {
        let random_cases = options.random_cases / cores + u32::from(core < options.random_cases % cores);
        let options = VerifyOptions { random_cases, seed: mix(options.seed.wrapping_add(u64::from(core))) };
        Ok(random_cases_of(small_plans(), &mut new_subject()?, options, |case, subject| {
            judged(case, subject).map(|(_, report)| report)
        }))
    };
    let reports = (0..cores).into_par_iter().map(share).collect::<Result<Vec<_>, E>>()?;
    let mut whole = RandomReport::default();
    reports.into_iter().for_each(|report| whole.add(report));
    whole.seconds = start.elapsed().as_secs_f64();
    Ok(whole)
}

/// The subject's answer to one case; `None` where it does not offer what the case asks for.
pub(super) fn answer(
    subject: &mut dyn Subject,
    capabilities: &Capabilities,
    case: &Case,
) -> Option<Result<Answer, NoAnswer>> {
    let sequence = case.sequence().on_layers_from(capabilities.first_layer);
    if !capabilities.missing(&sequence).is_empty() {
        return None;
    }
    ask(subject, &sequence).answers.pop()
}

/// How far [`for_each_case`] came.
pub(super) struct Asked {
    /// How many cases were judged.
    pub cases: u32,
    /// What is wrong with the first that failed, and its plan, shrunk.
    pub failure: Option<Vec<String>>,
}

/// Judges as many random cases as `options` ask for, of those that `capabilities` offer. `count` is called once for each case
/// with its plan and what `judge` said of it, `None` where it failed; shrinking is not counted.
pub(super) fn for_each_case<T>(
    plans: impl Strategy<Value = Plan>,
    capabilities: &Capabilities,
    options: VerifyOptions,
    judge: impl Fn(&Case) -> Result<T, String>,
    mut count: impl FnMut(&Plan, Option<T>),
) -> Asked {
    let plans = plans.prop_map(|plan| plan.restricted(capabilities));
    let mut runner = test_runner(options.seed);
    let mut cases = 0;
    // What a plan asks for shows only in its case.
    let most_rejected = 100 * options.random_cases.max(10);
    let mut rejected = 0;
    while cases < options.random_cases && rejected < most_rejected {
        let tree = match plans.new_tree(&mut runner) {
            Ok(tree) => tree,
            Err(reason) => {
                return Asked {
                    cases,
                    failure: Some(vec![format!("no random cases could be made: {reason}")]),
                };
            }
        };
        let plan = tree.current();
        let outcome = RefCell::new(None);
        let result = runner.run_one(tree, |plan| {
            let case = plan.case().map_err(|error| TestCaseError::reject(error.to_string()))?;
            if !capabilities.offers_all(&case.sequence()) {
                return Err(TestCaseError::reject("not offered"));
            }
            *outcome.borrow_mut() = Some(judge(&case).map_err(TestCaseError::fail)?);
            Ok(())
        });
        match result {
            Ok(true) => count(&plan, outcome.into_inner()),
            Ok(false) => {
                rejected += 1;
                continue;
            }
            Err(error) => {
                count(&plan, None);
                return Asked { cases: cases + 1, failure: Some(failure(error)) };
            }
        }
        cases += 1;
    }
    Asked { cases, failure: None }
}

/// What failed, and the smallest plan that shows it.
fn failure(error: TestError<Plan>) -> Vec<String> {
    match error {
        TestError::Fail(reason, plan) => vec![reason.to_string(), format!("smallest plan: {plan:?}")],
        TestError::Abort(reason) => vec![format!("no random cases could be made: {reason}")],
    }
}

fn random_cases_of(
    plans: impl Strategy<Value = Plan>,
    subject: &mut dyn Subject,
    options: VerifyOptions,
    judge_case: impl Fn(&Case, &mut dyn Subject) -> Result<RandomReport, String>,
) -> RandomReport {
    let start = Instant::now();
    let capabilities = subject.capabilities();
    let subject = RefCell::new(subject);
    let mut report = RandomReport::default();
    let judge = |case: &Case| judge_case(case, *subject.borrow_mut());
    let count = |_: &Plan, one: Option<RandomReport>| one.into_iter().for_each(|one| report.add(one));
    let asked = for_each_case(plans, &capabilities, options, judge, count);
    report.finding = asked.failure;
    report.seconds = start.elapsed().as_secs_f64();
    report
}

/// The answer to one case, where it conforms.
fn judged(
    case: &Case,
    subject: &mut dyn Subject,
) -> Result<(Result<Answer, NoAnswer>, RandomReport), String> {
    let model = subject.rounding_model();
    let certificate = Certificate::derive(&case.instance, &case.call, model);
    let answer = subject.answer(case);
    let verdict = judge(&case.instance, &case.call, &answer, model, &certificate);
    if let Some(wrong) = verdict.explanations().into_iter().next() {
        return Err(wrong);
    }
    let report = RandomReport {
        cases: 1,
        refused: usize::from(answer.is_err()),
        sharpness: Sharpness::of(&verdict),
        ..RandomReport::default()
    };
    Ok((answer, report))
}

fn random_case(case: &Case, subject: &mut dyn Subject) -> Result<RandomReport, String> {
    let (answer, mut report) = judged(case, subject)?;
    if let (Ok(answer), Ok(reference)) = (&answer, Reference::default().answer(case)) {
        report.masks_equal += usize::from(answer.mask == reference.mask);
    }
    let dims = case.call.inputs.dims();
    let Ok(label_channels) = case.instance.selection.group_factor.label_channels(dims.head_dim) else {
        return Ok(report);
    };
    let Ok(channels) = case.channels() else { return Ok(report) };
    let channels = &channels.row(0, &dims)[..label_channels];
    let (queries, keys) = (case.call.inputs.queries(0, 0), case.call.inputs.keys(0, 0));
    for x in [queries.row(0), keys.row(0), keys.row(dims.keys - 1)] {
        let row: Vec<f32> = channels.iter().map(|&channel| x[channel]).collect();
        let (bits, storage) = (case.instance.selection.label_bits, case.call.inputs.storage());
        if !bits.quantises() {
            continue;
        }
        let (Some(found), Some(expected)) =
            (subject.labels(&row, bits, storage), Reference::default().labels(&row, bits, storage))
        else {
            return Ok(report);
        };
        report.label_rows += 1;
        let of_bits = |labels: &[f32]| labels.iter().map(|label| label.to_bits()).collect::<Vec<_>>();
        let equal = match (&found, &expected) {
            (Ok(found), Ok(expected)) => of_bits(found) == of_bits(expected),
            (Err(NoAnswer::Refused(found)), Err(NoAnswer::Refused(expected))) => same_kind(found, expected),
            _ => false,
        };
        if !equal {
            return Err(format!("labels of {row:?}: found {found:?}, expected {expected:?}"));
        }
    }
    Ok(report)
}

//! A subject judged on random cases by its mask and output, and by its labels bit for bit: for this project's tests and benches.

use std::cell::RefCell;
use std::time::Instant;

use proptest::strategy::Strategy;
use rayon::prelude::*;

use super::random::{VerifyOptions, for_each_case};
use crate::cases::recipe::mix;
use crate::cases::strategies::{Plan, plans, small_plans};
use crate::cases::{Answer, Case, NoAnswer};
use crate::subjects::{Reference, Subject};
use crate::verdicts::judge::same_kind;
use crate::verdicts::{Certificate, Sharpness, judge};

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
        let seed = mix(options.seed.wrapping_add(u64::from(core)));
        let options = VerifyOptions { random_cases, seed, ..options };
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

//! The main job: every case is judged twice, once for the expectation stored in its file and once for the subject's own
//! answer, so that a divergence says which of the two is wrong; then the invariants run on random cases.

mod report;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Instant;

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use rayon::prelude::*;

pub use self::report::{Group, InvariantResult, VerifyFinding, VerifyReport};
use crate::algorithm::ChannelOrder;
use crate::algorithm::quantize::quantize_in_place;
use crate::cases::bundled::{Checksums, Found, sha256};
use crate::cases::recipe::mix;
use crate::cases::strategies::{Plan, plans, small_plans};
use crate::cases::{
    Answer, CalibrationCase, Case, CaseFile, Error, Expectation, LabelCase, LabelRounding, NoAnswer, Reader,
    RoundingModel, Sequence,
};
use crate::subjects::ask;
use crate::subjects::{Reference, Subject};
use crate::verdicts::calibration::judge_order;
use crate::verdicts::invariants::{INVARIANTS, Implementation, Invariant, Outcome};
use crate::verdicts::judge::judge_observation;
use crate::verdicts::judge::same_kind;
use crate::verdicts::labels::judge_labels;
use crate::verdicts::{Certificate, Sharpness, Verdict, judge};

/// What to verify besides the files.
#[derive(Debug, Clone, Copy)]
pub struct VerifyOptions {
    /// How many random cases each invariant gets; 0 leaves the invariants out.
    pub random_cases: u32,
    /// Of the random cases.
    pub seed: u64,
}

/// Judges the files and the invariants. `progress` is called with the name of each step, of which there are as many as
/// files, and one for each invariant.
pub fn verify(
    files: &[Found],
    subject: &mut dyn Subject,
    options: VerifyOptions,
    progress: &mut dyn FnMut(&str),
) -> VerifyReport {
    let start = Instant::now();
    let mut run = Run::new(subject);
    let mut reader = Reader::default();
    for found in files {
        progress(&found.name);
        run.file(found, &mut reader);
    }
    drop(reader);
    let mut invariants = Vec::new();
    if options.random_cases > 0 {
        for invariant in INVARIANTS {
            progress(invariant.name);
            invariants.push(run.invariant(invariant, options));
        }
    }
    VerifyReport {
        version: env!("CARGO_PKG_VERSION"),
        subject: run.subject.name(),
        rounding_model: run.subject.rounding_model().to_string(),
        groups: run.groups.into_values().collect(),
        invariants,
        findings: run.findings,
        bad_inputs: run.bad_inputs,
        notes: run.notes,
        seconds: start.elapsed().as_secs_f64(),
    }
}

/// How a subject fared on random cases.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct RandomReport {
    /// How many cases were judged.
    pub cases: usize,
    /// How many of them had to be refused, and were.
    pub refused: usize,
    /// In how many the mask equals the reference's.
    pub masks_equal: usize,
    /// How many rows of labels were compared bit for bit with the reference's.
    pub label_rows: usize,
    /// How sharp the verdicts were.
    pub sharpness: Sharpness,
    /// The first case that falls outside, shrunk.
    pub finding: Option<VerifyFinding>,
    /// Wall-clock time.
    pub seconds: f64,
}

/// Judges a subject on random cases: its mask and output under its rounding model, what it refuses, and some labels of each
/// case bit for bit. Stops at the first divergence and shrinks it.
pub fn random_cases(subject: &mut dyn Subject, options: VerifyOptions) -> RandomReport {
    random_cases_of(&plans(), subject, options, random_case)
}

/// Judges a subject on small random cases, on all cores: each has a subject of its own. Only mask and output are judged, as
/// in `check`; nothing is compared with the reference beyond that. Each core stops at its first divergence and shrinks it. The
/// same seed makes the same cases on as many cores.
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
        Ok(random_cases_of(&small_plans(), &mut new_subject()?, options, |case, subject, report| {
            judged(case, subject, report).map(drop)
        }))
    };
    let reports = (0..cores).into_par_iter().map(share).collect::<Result<Vec<_>, E>>()?;
    let mut whole = RandomReport { seconds: start.elapsed().as_secs_f64(), ..RandomReport::default() };
    for report in reports {
        whole.cases += report.cases;
        whole.refused += report.refused;
        whole.sharpness.add(&report.sharpness);
        whole.finding = whole.finding.or(report.finding);
    }
    Ok(whole)
}

fn random_cases_of(
    plans: &impl Strategy<Value = Plan>,
    subject: &mut dyn Subject,
    options: VerifyOptions,
    judge_case: impl Fn(&Case, &mut dyn Subject, &mut RandomReport) -> Result<(), String>,
) -> RandomReport {
    let start = Instant::now();
    let name = subject.name();
    let report = RefCell::new(RandomReport::default());
    let subject = RefCell::new(subject);
    let outcome = test_runner(options).run(plans, |plan| {
        let case = plan.case().map_err(|error| TestCaseError::reject(error.to_string()))?;
        judge_case(&case, *subject.borrow_mut(), &mut report.borrow_mut()).map_err(TestCaseError::fail)
    });
    let mut report = report.into_inner();
    report.finding = failure(outcome).map(|explanations| VerifyFinding {
        case: "random case".into(),
        who: format!("the answer of {name}"),
        explanations,
    });
    report.seconds = start.elapsed().as_secs_f64();
    report
}

/// The answer to one case, where it conforms.
fn judged(
    case: &Case,
    subject: &mut dyn Subject,
    report: &mut RandomReport,
) -> Result<Result<Answer, NoAnswer>, String> {
    let model = subject.rounding_model();
    let certificate = Certificate::derive(case, model);
    let answer = subject.answer(case);
    let verdict = judge(case, &answer, model, &certificate);
    if let Some(wrong) = verdict.explanations().into_iter().next() {
        return Err(wrong);
    }
    report.cases += 1;
    report.refused += usize::from(answer.is_err());
    report.sharpness.add(&Sharpness::of(&verdict));
    Ok(answer)
}

fn random_case(case: &Case, subject: &mut dyn Subject, report: &mut RandomReport) -> Result<(), String> {
    let answer = judged(case, subject, report)?;
    if let (Ok(answer), Ok(reference)) = (&answer, Reference::default().answer(case)) {
        report.masks_equal += usize::from(answer.mask == reference.mask);
    }
    let dims = case.inputs.dims();
    let Ok(label_channels) = case.settings.group_factor.label_channels(dims.head_dim) else {
        return Ok(());
    };
    let channels = &case.channels.row(0, &dims)[..label_channels];
    let (queries, keys) = (case.inputs.queries(0, 0), case.inputs.keys(0, 0));
    for x in [queries.row(0), keys.row(0), keys.row(dims.keys - 1)] {
        let row: Vec<f32> = channels.iter().map(|&channel| x[channel]).collect();
        let (bits, storage) = (case.settings.label_bits, case.settings.dtype);
        if !bits.quantises() {
            continue;
        }
        let (Some(found), Some(expected)) =
            (subject.labels(&row, bits, storage), Reference::default().labels(&row, bits, storage))
        else {
            return Ok(());
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
    Ok(())
}

fn test_runner(options: VerifyOptions) -> TestRunner {
    let mut seed = [0; 32];
    seed[..8].copy_from_slice(&options.seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
    let config = Config { cases: options.random_cases, failure_persistence: None, ..Config::default() };
    TestRunner::new_with_rng(config, rng)
}

/// What failed, and the smallest plan that shows it.
fn failure(outcome: Result<(), TestError<Plan>>) -> Option<Vec<String>> {
    match outcome {
        Ok(()) => None,
        Err(TestError::Fail(reason, plan)) => {
            Some(vec![reason.to_string(), format!("smallest plan: {plan:?}")])
        }
        Err(TestError::Abort(reason)) => Some(vec![format!("no random cases could be made: {reason}")]),
    }
}

struct Run<'a> {
    subject: &'a mut dyn Subject,
    groups: BTreeMap<String, Group>,
    findings: Vec<VerifyFinding>,
    bad_inputs: Vec<String>,
    notes: Vec<String>,
    checksums: Checksums,
}

/// How one case went.
#[derive(Default)]
struct Tally {
    expectation: Vec<String>,
    recorded: bool,
    subject: Vec<String>,
    bit_exact: bool,
    not_offered: bool,
    stored_sharpness: Sharpness,
    subject_sharpness: Sharpness,
}

impl<'a> Run<'a> {
    fn new(subject: &'a mut dyn Subject) -> Self {
        Self {
            subject,
            groups: BTreeMap::new(),
            findings: Vec::new(),
            bad_inputs: Vec::new(),
            notes: Vec::new(),
            checksums: Checksums::default(),
        }
    }

    fn file(&mut self, found: &Found, reader: &mut Reader) {
        let start = Instant::now();
        let content = self.read(found, reader);
        let (content, changed) = match content {
            Ok(content) => content,
            Err(error) => return self.bad_inputs.push(error.to_string()),
        };
        let mut tallies = match content {
            CaseFile::Attention(case) => vec![(case.name.clone(), self.attention(&case))],
            CaseFile::Sequence(stored) => {
                vec![(stored.sequence.name.clone(), self.stored_sequence(&stored.sequence))]
            }
            CaseFile::Calibration(case) => vec![(case.name.clone(), self.calibration(&case))],
            CaseFile::Quantisation(cases) => {
                cases.iter().map(|case| (case.name.clone(), self.labels(case))).collect()
            }
        };
        if let (Some(changed), Some((_, first))) = (changed, tallies.first_mut()) {
            first.expectation.insert(0, changed);
        }
        for (name, tally) in tallies {
            self.count(&found.group(), &name, tally);
        }
        self.group(&found.group()).seconds += start.elapsed().as_secs_f64();
    }

    /// The content of a file, and a sentence where its checksum is not the one recorded beside it.
    fn read(&mut self, found: &Found, reader: &mut Reader) -> Result<(CaseFile, Option<String>), Error> {
        let bytes = found.read()?;
        let recorded = self.checksums.recorded(found)?;
        let sum = sha256(&bytes);
        let changed = recorded.filter(|recorded| *recorded != sum).map(|recorded| {
            format!(
                "the file was changed since it was exported: SHA-256 {sum}, recorded {recorded} in SHA256SUMS"
            )
        });
        match reader.parse(&bytes, &found.name) {
            Ok(content) => Ok((content, changed)),
            Err(error) => Err(error.in_file(&found.path())),
        }
    }

    fn group(&mut self, name: &str) -> &mut Group {
        let new = || Group { name: name.to_owned(), ..Group::default() };
        self.groups.entry(name.to_owned()).or_insert_with(new)
    }

    fn count(&mut self, group: &str, case: &str, tally: Tally) {
        let conforms = tally.expectation.is_empty() && tally.subject.is_empty();
        let group = self.group(group);
        group.cases += 1;
        group.bit_exact += usize::from(tally.bit_exact);
        group.conforming += usize::from(conforms);
        group.diverged += usize::from(!conforms);
        group.recorded += usize::from(tally.recorded);
        group.not_offered += usize::from(tally.not_offered);
        group.stored.add(&tally.stored_sharpness);
        group.subject.add(&tally.subject_sharpness);
        let subject = format!("the answer of {}", self.subject.name());
        let findings = [("the stored expectation".to_owned(), tally.expectation), (subject, tally.subject)];
        for (who, explanations) in findings {
            if !explanations.is_empty() {
                self.findings.push(VerifyFinding { case: case.to_owned(), who, explanations });
            }
        }
    }

    fn attention(&mut self, case: &Case) -> Tally {
        if !case.settings.unknown.is_empty() {
            let names: Vec<_> = case.settings.unknown.keys().map(String::as_str).collect();
            self.notes.push(format!(
                "{}: unknown fields of case are not used: {}",
                case.name,
                names.join(", ")
            ));
        }
        let mut tally = Tally::default();
        let model = self.subject.rounding_model();
        let certificate = Certificate::derive(case, model);
        let stored = case.expectation.as_ref().map(|expectation| {
            let model = case.settings.model.unwrap_or_default();
            judge_expectation(case, expectation, model, &mut tally)
        });
        let answer = self.subject.answer(case);
        if let (Some(Ok(stored)), Ok(answer)) = (&stored, &answer) {
            tally.bit_exact = !tally.recorded && stored.mask == answer.mask;
        }
        let verdict = judge(case, &answer, model, &certificate);
        tally.subject_sharpness = Sharpness::of(&verdict);
        tally.subject = verdict.explanations();
        tally
    }

    fn stored_sequence(&mut self, sequence: &Sequence) -> Tally {
        let observation = ask(self.subject, sequence);
        let verdicts = judge_observation(&observation, self.subject.rounding_model());
        let mut tally = Tally::default();
        for (call, verdict) in verdicts.iter().enumerate() {
            tally.subject_sharpness.add(&Sharpness::of(verdict));
            tally.subject.extend(verdict.explanations().iter().map(|line| format!("call {call}: {line}")));
        }
        tally
    }

    fn labels(&mut self, case: &LabelCase) -> Tally {
        let mut tally = Tally::default();
        let reference = case.rows.outer_iter().map(|row| {
            let mut labels = row.to_vec();
            quantize_in_place(&mut labels, case.bits, case.storage).is_ok().then_some(labels)
        });
        let lines = |case, answers: Vec<Option<Vec<f32>>>, rounding| -> Vec<String> {
            judge_labels(case, &answers, rounding).iter().take(3).map(ToString::to_string).collect()
        };
        tally.expectation = lines(case, reference.collect(), LabelRounding::Exact);
        let mut answers = Vec::new();
        for row in case.rows.outer_iter() {
            match self.subject.labels(&row.to_vec(), case.bits, case.storage) {
                None => {
                    tally.not_offered = true;
                    return tally;
                }
                Some(labels) => answers.push(labels.ok()),
            }
        }
        tally.bit_exact = judge_labels(case, &answers, LabelRounding::Exact).is_empty();
        tally.subject = lines(case, answers, self.subject.rounding_model().labels);
        tally
    }

    fn calibration(&mut self, case: &CalibrationCase) -> Tally {
        let mut tally = Tally::default();
        let lines = |order: &Result<ChannelOrder, NoAnswer>| match order {
            Err(error) => vec![format!("refused ({error}), expected an order")],
            Ok(order) => match judge_order(case, order) {
                Err(error) => vec![error.to_string()],
                Ok(divergence) => divergence.iter().map(ToString::to_string).collect(),
            },
        };
        let stored = lines(&Ok(case.channels.clone()));
        (tally.expectation, tally.recorded) = recorded(stored, case.known_divergence.as_deref());
        match self.subject.calibrate(case) {
            None => tally.not_offered = true,
            Some(order) => {
                tally.bit_exact = !tally.recorded && order.as_ref() == Ok(&case.channels);
                tally.subject = lines(&order);
            }
        }
        tally
    }

    fn invariant(&mut self, invariant: &Invariant, options: VerifyOptions) -> InvariantResult {
        let (held, not_applicable) = (RefCell::new(0), RefCell::new(0));
        let model = self.subject.rounding_model();
        let subject = RefCell::new(&mut *self.subject);
        let outcome = test_runner(options).run(&plans(), |plan| {
            let case = plan.case().map_err(|error| TestCaseError::reject(error.to_string()))?;
            let mut subject = subject.borrow_mut();
            let mut answer = |case: &Case| subject.answer(case);
            match (invariant.check)(&case, &mut Implementation { model, answer: &mut answer }) {
                Ok(Outcome::Held) => *held.borrow_mut() += 1,
                Ok(Outcome::NotApplicable) => *not_applicable.borrow_mut() += 1,
                Err(wrong) => return Err(TestCaseError::fail(wrong)),
            }
            Ok(())
        });
        let failure = failure(outcome);
        let failed = failure.is_some();
        if let Some(explanations) = failure {
            let who = format!("an answer of {}", self.subject.name());
            let case = format!("invariant \"{}\" ({})", invariant.name, invariant.source);
            self.findings.push(VerifyFinding { case, who, explanations });
        }
        InvariantResult {
            name: invariant.name.into(),
            source: invariant.source.into(),
            held: held.into_inner(),
            not_applicable: not_applicable.into_inner(),
            failed,
        }
    }
}

/// Judges a stored expectation under its source's model, fills the tally, and returns it as an answer.
fn judge_expectation(
    case: &Case,
    expectation: &Expectation,
    model: RoundingModel,
    tally: &mut Tally,
) -> Result<Answer, ()> {
    let certificate = Certificate::derive(case, model);
    let before = match &certificate {
        Ok(certificate) => &certificate.before,
        Err(expected) => {
            let lines = Verdict::Accepted { expected: expected.clone() }.explanations();
            (tally.expectation, tally.recorded) = recorded(lines, expectation.known_divergence.as_deref());
            return Err(());
        }
    };
    let (stored, lines) = match expectation.answer(before) {
        // Reading refuses files with an output but no mask.
        None => return Err(()),
        // A value that is no possible answer is a damaged file, never the recorded fault.
        Some(Err(wrong)) => {
            tally.expectation = vec![wrong];
            return Err(());
        }
        Some(Ok(answer)) => {
            let answer = Ok(answer);
            let verdict = judge(case, &answer, model, &certificate);
            // A recorded fault says nothing about how sharp verdicts on right answers are.
            if expectation.known_divergence.is_none() {
                tally.stored_sharpness = Sharpness::of(&verdict);
            }
            (answer.map_err(|_| ()), verdict.explanations())
        }
    };
    (tally.expectation, tally.recorded) = recorded(lines, expectation.known_divergence.as_deref());
    stored
}

/// An expectation that records a fault must fall outside; that is then no finding.
fn recorded(lines: Vec<String>, known_divergence: Option<&str>) -> (Vec<String>, bool) {
    match known_divergence {
        None => (lines, false),
        Some(_) if !lines.is_empty() => (Vec::new(), true),
        Some(row) => (vec![format!("conforms, but is recorded to diverge by {row}")], false),
    }
}

//! The main job: every case is judged twice, once for the expectation stored in its file and once for the subject's own
//! answer, so that a divergence says which of the two is wrong; then the invariants run on random cases.

mod report;

use std::cell::RefCell;
use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, HashSet};
use std::hash::{Hash, Hasher};
use std::time::Instant;

pub use self::report::{Group, InvariantResult, VerifyFinding, VerifyReport};
pub use super::random::VerifyOptions;
use super::random::{answer, for_each_case};
use crate::algorithm::ChannelOrder;
use crate::algorithm::quantize::quantize_in_place;
use crate::cases::bundled::{Checksums, Found, sha256};
use crate::cases::capabilities::SESSIONS;
use crate::cases::recipe::mix;
use crate::cases::strategies::{Plan, plans};
use crate::cases::{
    Answer, CalibrationCase, Capabilities, Case, CaseFile, Error, Expectation, LabelCase, LabelRounding,
    Memory, NoAnswer, Reader, RoundingModel, Sequence, Session, StageCall, Takes,
};
use crate::subjects::{Subject, ask, ask_session, ask_stage};
use crate::verdicts::calibration::judge_order;
use crate::verdicts::invariants::{Held, INVARIANTS, Implementation, Invariant};
use crate::verdicts::judge::{ToJudge, judge_both, judge_observation};
use crate::verdicts::labels::judge_labels;
use crate::verdicts::{Certificate, Sharpness, Verdict, judge, judge_session, judge_stage};

/// Judges the files and the invariants. `progress` is called with the name of each step, of which there are as many as
/// files, and one for each invariant.
pub fn verify(
    files: &[Found],
    subject: &mut dyn Subject,
    options: VerifyOptions,
    progress: &mut dyn FnMut(&str),
) -> VerifyReport {
    let start = Instant::now();
    let mut run = Run::new(subject, options.memory);
    let mut reader = Reader::within(options.memory);
    for found in files {
        if options.is_over() {
            break;
        }
        progress(&found.name);
        run.file(found, &mut reader);
    }
    drop(reader);
    let mut invariants = Vec::new();
    let whole = run.capabilities.stages.takes == Takes::Inputs;
    if !whole && options.random_cases > 0 {
        // Each invariant is one of whole calls.
        *run.left_out.entry("invariants".into()).or_default() += INVARIANTS.len();
    }
    if whole && options.random_cases > 0 {
        for (index, invariant) in (1..).zip(INVARIANTS) {
            if options.is_over() {
                break;
            }
            progress(invariant.name);
            // Each has cases of its own.
            let seed = mix(options.seed.wrapping_add(index));
            invariants.push(run.invariant(invariant, VerifyOptions { seed, ..options }));
        }
    }
    let checks: usize = invariants.iter().map(InvariantResult::checks).sum();
    if run.asked == 0 && checks == 0 && run.bad_inputs.is_empty() && !options.is_over() {
        let hint = if whole { "" } else { "; `check` asks a subject of one stage random questions" };
        run.bad_inputs
            .push(format!("cases: found none that the subject offers, expected at least one{hint}"));
    }
    VerifyReport {
        version: env!("CARGO_PKG_VERSION"),
        subject: run.subject.name(),
        rounding_model: run.subject.rounding_model().to_string(),
        groups: run.groups.into_values().collect(),
        invariants,
        random_cases: run.random_cases.len(),
        left_out: run.left_out,
        findings: run.findings,
        bad_inputs: run.bad_inputs,
        notes: run.notes,
        seed: options.seed,
        interrupted: options.is_over(),
        seconds: start.elapsed().as_secs_f64(),
    }
}

struct Run<'a> {
    subject: &'a mut dyn Subject,
    capabilities: Capabilities,
    /// Cases from files that the subject was asked.
    asked: usize,
    /// What kept the others from being asked, and how many.
    left_out: BTreeMap<String, usize>,
    /// Hashes of the plans that some invariant was checked on.
    random_cases: HashSet<u64>,
    groups: BTreeMap<String, Group>,
    findings: Vec<VerifyFinding>,
    bad_inputs: Vec<String>,
    notes: Vec<String>,
    checksums: Checksums,
    memory: Memory,
}

/// How one case went.
#[derive(Default)]
struct Tally {
    expectation: Vec<String>,
    recorded: bool,
    subject: Vec<String>,
    bit_exact: bool,
    /// What the case asks for and the subject does not offer; it was not asked then.
    not_offered: Vec<String>,
    stored_sharpness: Sharpness,
    subject_sharpness: Sharpness,
}

impl<'a> Run<'a> {
    fn new(subject: &'a mut dyn Subject, memory: Memory) -> Self {
        Self {
            capabilities: subject.capabilities(),
            subject,
            asked: 0,
            left_out: BTreeMap::new(),
            random_cases: HashSet::new(),
            groups: BTreeMap::new(),
            findings: Vec::new(),
            bad_inputs: Vec::new(),
            notes: Vec::new(),
            checksums: Checksums::default(),
            memory,
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
            CaseFile::Session(stored) => {
                vec![(stored.session.name.clone(), self.session(&stored.session))]
            }
            CaseFile::Stage(stored) => vec![(stored.name.clone(), self.stage(&stored.call))],
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
        let bytes = found.read_within(self.memory)?;
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
        let asked = tally.not_offered.is_empty();
        self.asked += usize::from(asked);
        for missing in tally.not_offered {
            *self.left_out.entry(missing).or_default() += 1;
        }
        let group = self.group(group);
        group.cases += 1;
        group.bit_exact += usize::from(tally.bit_exact);
        group.conforming += usize::from(conforms && asked);
        group.diverged += usize::from(!conforms);
        group.recorded += usize::from(tally.recorded);
        group.not_offered += usize::from(!asked);
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
        if !case.unknown.is_empty() {
            let names: Vec<_> = case.unknown.keys().map(String::as_str).collect();
            self.notes.push(format!(
                "{}: unknown fields of case are not used: {}",
                case.name,
                names.join(", ")
            ));
        }
        let sequence = case.sequence().on_layers_from(self.capabilities.first_layer);
        let mut tally = Tally { not_offered: self.capabilities.missing(&sequence), ..Tally::default() };
        let model = self.subject.rounding_model();
        let stored_model = case.expectation.as_ref().map(|expectation| expectation.model.unwrap_or_default());
        // Once for each model.
        let asked_model =
            Some(model).filter(|model| tally.not_offered.is_empty() && stored_model != Some(*model));
        let models: Vec<RoundingModel> = stored_model.into_iter().chain(asked_model).collect();
        let certificates = match Certificate::derive_each(&case.instance, &case.call, &models) {
            Ok(certificates) => certificates.into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error)],
        };
        let observation = tally.not_offered.is_empty().then(|| ask(self.subject, &sequence));
        let answer = observation.as_ref().and_then(|observation| observation.answers.first());
        let stored = case.expectation.as_ref().zip(certificates.first());
        let stored = stored.and_then(|(expectation, certificate)| {
            stored_answer(expectation, certificate, &mut tally).map(|answer| (expectation, answer))
        });
        let of_stored =
            stored.as_ref().zip(stored_model).map(|((_, stored), model)| (stored, model, &certificates[0]));
        let of_answer =
            answer.zip(certificates.last()).map(|(answer, certificate)| (answer, model, certificate));
        let judged = |(answer, model, certificate): ToJudge| {
            judge(&case.instance, &case.call, answer, model, certificate)
        };
        let (stored_verdict, verdict) = match (of_stored, of_answer) {
            (Some(stored), Some(answer)) => {
                let [stored, answer] = judge_both(&case.instance, &case.call, [stored, answer]);
                (Some(stored), Some(answer))
            }
            _ => (of_stored.map(judged), of_answer.map(judged)),
        };
        if let Some(((expectation, _), verdict)) = stored.as_ref().zip(stored_verdict) {
            // A recorded fault says nothing about how sharp verdicts on right answers are.
            if expectation.known_divergence.is_none() {
                tally.stored_sharpness = Sharpness::of(&verdict);
            }
            let known_divergence = expectation.known_divergence.as_deref();
            (tally.expectation, tally.recorded) = recorded(verdict.explanations(), known_divergence);
        }
        if let (Some((_, Ok(stored))), Some(Ok(answer))) = (&stored, answer) {
            tally.bit_exact = !tally.recorded && stored.mask == answer.mask;
        }
        if let Some(verdict) = verdict {
            tally.subject_sharpness = Sharpness::of(&verdict);
            tally.subject = verdict.explanations();
        }
        tally
    }

    fn stored_sequence(&mut self, sequence: &Sequence) -> Tally {
        let sequence = sequence.clone().on_layers_from(self.capabilities.first_layer);
        let mut tally = Tally { not_offered: self.capabilities.missing(&sequence), ..Tally::default() };
        if !tally.not_offered.is_empty() {
            return tally;
        }
        let observation = ask(self.subject, &sequence);
        let verdicts = judge_observation(&observation, self.subject.rounding_model());
        for (call, verdict) in verdicts.iter().enumerate() {
            tally.subject_sharpness.add(&Sharpness::of(verdict));
            tally.subject.extend(verdict.explanations().iter().map(|line| format!("call {call}: {line}")));
        }
        tally
    }

    fn session(&mut self, session: &Session) -> Tally {
        let mut tally = Tally::default();
        if !self.capabilities.offers_session(session) {
            tally.not_offered.push(SESSIONS.to_owned());
            return tally;
        }
        let observation = ask_session(self.subject, session);
        let verdict = judge_session(&observation, self.subject.rounding_model());
        tally.subject_sharpness = verdict.sharpness;
        if let Some(failure) = verdict.failure {
            let step = failure.step.map_or("open".to_owned(), |step| format!("step {step}"));
            tally.subject =
                failure.verdict.explanations().iter().map(|line| format!("{step}: {line}")).collect();
        }
        tally
    }

    fn stage(&mut self, call: &StageCall) -> Tally {
        let mut tally = Tally::default();
        if !self.capabilities.offers_stage(call) {
            tally.not_offered.push(call.takes().name().to_owned());
            return tally;
        }
        let answer = ask_stage(self.subject, call);
        let verdict = judge_stage(call, &answer, self.subject.rounding_model());
        tally.subject_sharpness = verdict.sharpness;
        tally.subject = verdict.explanations;
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
                    tally.not_offered.push("labels".into());
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
            None => tally.not_offered.push("calibration".into()),
            Some(order) => {
                tally.bit_exact = !tally.recorded && order.as_ref() == Ok(&case.channels);
                tally.subject = lines(&order);
            }
        }
        tally
    }

    fn invariant(&mut self, invariant: &Invariant, options: VerifyOptions) -> InvariantResult {
        let mut result = InvariantResult::new(invariant.name, invariant.source);
        let (model, capabilities) = (self.subject.rounding_model(), &self.capabilities);
        let subject = RefCell::new(&mut *self.subject);
        let check = |case: &Case| {
            let mut subject = subject.borrow_mut();
            let mut answer = |case: &Case| answer(*subject, capabilities, case);
            invariant.check(case, &mut Implementation { model, answer: &mut answer })
        };
        let count = |plan: &Plan, held: Option<Held>| {
            match held {
                Some(Held::NotApplicable) => return result.not_applicable += 1,
                Some(Held::Yes) => result.held += 1,
                None => result.failed = true,
            }
            let mut hasher = DefaultHasher::new();
            format!("{plan:?}").hash(&mut hasher);
            self.random_cases.insert(hasher.finish());
        };
        let asked = for_each_case(plans(), capabilities, options, check, count);
        if let Some(explanations) = asked.failure {
            result.failed = true;
            let who = format!("an answer of {}", self.subject.name());
            let case = format!("invariant \"{}\" ({})", invariant.name, invariant.source);
            self.findings.push(VerifyFinding { case, who, explanations });
        } else if asked.cases < options.random_cases && !options.is_over() {
            self.bad_inputs.push(format!(
                "random cases for \"{}\": found {} that the subject offers, expected {}",
                invariant.name, asked.cases, options.random_cases
            ));
        }
        result
    }
}

/// A stored expectation as an answer; where it is none, the tally says why.
fn stored_answer(
    expectation: &Expectation,
    certificate: &Result<Certificate, crate::algorithm::Error>,
    tally: &mut Tally,
) -> Option<Result<Answer, NoAnswer>> {
    let before = match certificate {
        Ok(certificate) => &certificate.before,
        Err(expected) => {
            let lines = Verdict::Accepted { expected: expected.clone() }.explanations();
            (tally.expectation, tally.recorded) = recorded(lines, expectation.known_divergence.as_deref());
            return None;
        }
    };
    // Reading refuses files with an output but no mask.
    match expectation.answer(before)? {
        Ok(answer) => Some(Ok(answer)),
        // A value that is no possible answer is a damaged file, never the recorded fault.
        Err(wrong) => {
            tally.expectation = vec![wrong];
            None
        }
    }
}

/// An expectation that records a fault must fall outside; that is then no finding.
fn recorded(lines: Vec<String>, known_divergence: Option<&str>) -> (Vec<String>, bool) {
    match known_divergence {
        None => (lines, false),
        Some(_) if !lines.is_empty() => (Vec::new(), true),
        Some(row) => (vec![format!("conforms, but is recorded to diverge by {row}")], false),
    }
}

//! Probes: a subject is there to be asked, so it is measured, one wire at a time. A wire is one thing that answers depend on:
//! which keys can be selected, which KV head a head reads, how fine the grid of labels is. A probe asks a few crafted questions
//! within what the subject offers, reads the answers, and reads the reference's answers to the same questions in the same way.
//!
//! A wire deviates only where the verdict (SPEC §5) says that an answer does not conform: each question is an ordinary sequence, or
//! a question to one stage. What is read then says how. Readings of answers that conform are never held against a subject.

mod attention;
mod calls;
mod candidates;
mod changes;
mod channels;
mod codes;
mod count;
mod draft;
mod heads;
mod masks;
mod question;
mod ranking;
mod rows;
mod rules;
mod scale;
mod selection;
mod simulate;
mod tell;
mod tensors;
mod wires;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde::Serialize;

use self::question::{Asked, Asking, Question, Reading};
use self::tell::{Measured, Told};
use self::wires::{WIRES, Wire};
use super::relations;
use super::reproduction::reproduces;
use super::{Faults, Patience, Seen, declared_in, explains, extend, independent_sets};
use crate::algorithm::Row;
use crate::behaviours::{Behaviour, Fault};
use crate::cases::{
    Answer, Call, Capabilities, NoAnswer, Observation, RoundingModel, StageAnswer, StageCall,
};
use crate::subjects::{Reference, Subject, ask, ask_stage};
use crate::verdicts::judge::{first_failure, judge_observation};
use crate::verdicts::{Verdict, judge_stage};

/// A wire is left once this many of its questions brought no usable answer.
const MOST_UNUSABLE: usize = 3;

/// No further question is asked once questions without a usable answer took this long.
const MOST_UNUSABLE_TIME: Duration = Duration::from_secs(15);

/// How long a subject may take for all questions, where nothing else is said: no further one is asked then.
pub const MOST_TIME: Duration = Duration::from_secs(60);

/// Answers to calls of more than this are not kept for the catalogue.
const MOST_BYTES: usize = 1 << 18;

/// How long a cause is looked for.
const MOST_NAMING: Duration = Duration::from_secs(15);

/// What probes found.
#[derive(Debug, Clone, Serialize)]
pub struct Probed {
    /// Each wire, in the order in which they were measured.
    pub wires: Vec<Measurement>,
    /// Questions that were asked.
    pub questions: usize,
    /// Faults of the catalogue, or a relation, that reproduce every answer, right or wrong, in words; see
    /// [`Self::find_cause`].
    pub cause: Option<String>,
    /// How long the subject took to answer them.
    pub subject_seconds: f64,
    /// How long everything took.
    pub seconds: f64,
    /// The first answer that diverges of each wire that deviates, for the findings.
    #[serde(skip)]
    pub deviations: Vec<Deviation>,
    #[serde(skip)]
    seen: Vec<Seen>,
    /// Names of declared faults that some answer shows.
    #[serde(skip)]
    declared: BTreeSet<&'static str>,
}

/// One wire.
#[derive(Debug, Clone, Serialize)]
pub struct Measurement {
    /// Its name.
    pub wire: &'static str,
    /// How it fared.
    pub state: State,
    /// What was measured, in words; empty where nothing was.
    pub measured: String,
    /// Whether that is a rule which fits every answer, not examples of answers that are not as expected.
    pub by_rule: bool,
    /// What the same questions show of the reference.
    pub expected: String,
    /// Questions that were asked.
    pub questions: usize,
    /// How many of them were answered wrongly.
    pub diverged: usize,
    /// What the verdict says of the first wrong answer.
    pub verdict: Option<String>,
    /// What would have to be offered to measure it, or to measure all of it.
    pub needs: Vec<String>,
}

/// How a wire fared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Every answer conforms, or shows of this wire what is expected.
    AsExpected,
    /// Some answer does not conform, and shows something else of this wire than is expected.
    Deviates,
    /// Some answers do not conform, as declared.
    Declared,
    /// Nothing could be asked.
    NotMeasured,
}

/// An answer that does not conform.
#[derive(Debug, Clone)]
pub enum Deviation {
    /// To calls of an instance.
    Sequence(Box<Observation>),
    /// To a question to one stage, with its name.
    Stage(String, Box<StageCall>),
}

impl Measurement {
    /// The wire in one sentence, where it deviates.
    pub fn sentence(&self) -> String {
        match self.state {
            State::NotMeasured => format!("{}: not measured, needs {}", self.wire, self.needs.join(", ")),
            State::AsExpected => format!("{}: {}", self.wire, self.measured),
            State::Deviates | State::Declared => {
                if self.measured == self.expected {
                    return format!("{}: {}", self.wire, self.verdict.as_deref().unwrap_or_default());
                }
                if !self.by_rule {
                    return format!("{}: {}", self.wire, self.measured);
                }
                format!("{}: {}; expected {}", self.wire, self.measured, self.expected)
            }
        }
    }
}

impl Probed {
    /// Sets all times to 0, so that the same run gives the same bytes.
    pub fn leave_out_times(&mut self) {
        (self.seconds, self.subject_seconds) = (0.0, 0.0);
    }

    /// Wires that deviate, those first of which a rule is told.
    pub fn deviating(&self) -> Vec<&Measurement> {
        let (by_rule, others): (Vec<_>, Vec<_>) =
            self.in_state(State::Deviates).partition(|wire| wire.by_rule && wire.measured != wire.expected);
        by_rule.into_iter().chain(others).collect()
    }

    /// Wires in a state.
    pub fn in_state(&self, state: State) -> impl Iterator<Item = &Measurement> {
        self.wires.iter().filter(move |wire| wire.state == state)
    }

    /// Names of the declared faults that some answer shows.
    pub(crate) fn declared(&self) -> impl Iterator<Item = &'static str> {
        self.declared.iter().copied()
    }

    /// Every answer to a sequence that is small enough to keep.
    pub(crate) fn seen(&self) -> &[Seen] {
        &self.seen
    }

    /// Looks for one fault of the catalogue, or a pair, that reproduces every answer; where there is none, for a relation. `at_most` makes
    /// the time that a search may take of the time that it takes at most where it ends by the clock.
    pub fn find_cause(&mut self, model: RoundingModel, at_most: impl Fn(Duration) -> Duration) {
        let wrong = self.seen.iter().filter(|seen| !seen.conforms).map(|seen| &seen.observation);
        // The one with the fewest numbers is the quickest to try.
        let bytes =
            |observation: &&Observation| observation.sequence.calls.iter().map(Call::bytes).sum::<usize>();
        let faults = wrong.min_by_key(bytes).and_then(|smallest| {
            extend(&[], smallest, &self.seen, model, Patience::new(at_most(MOST_NAMING), None))
        });
        let faults = faults.filter(|faults| explains(faults, &self.seen, model));
        let words = |fault: &&Fault| format!("{} ({}, {})", fault.sentence, fault.name, fault.row);
        self.cause = faults.map(|faults| faults.iter().map(words).collect::<Vec<_>>().join(" And: "));
        if self.cause.is_none() {
            let seen: Vec<&Seen> = self.seen.iter().collect();
            let told =
                relations::explain(&seen, Behaviour::default(), model, (at_most(relations::MOST_TIME), true));
            self.cause = told.filter(|told| told.relation.is_some()).map(|told| told.sentence());
        }
    }

    /// Whether no wire deviates other than declared.
    pub fn conforms(&self) -> bool {
        self.in_state(State::Deviates).next().is_none()
    }
}

/// Measures every wire of a subject, as far as it offers it and takes no longer than `time` to answer. Answers that `known` faults
/// reproduce count as declared.
pub fn probe(
    subject: &mut dyn Subject,
    capabilities: &Capabilities,
    known: &Faults,
    time: Duration,
) -> Probed {
    let start = Instant::now();
    let mut probing = Probing {
        model: subject.rounding_model(),
        subject,
        known: if known.is_empty() { Vec::new() } else { independent_sets(known) },
        questions: 0,
        most_time: time,
        time: Duration::ZERO,
        unusable: Duration::ZERO,
        gone: false,
        seen: Vec::new(),
        declared: BTreeSet::new(),
    };
    let takes = capabilities.stages.takes;
    let wires = WIRES.iter().filter(|wire| wire.takes.contains(&takes));
    let (mut wires, mut first): (Vec<Measurement>, Vec<Option<Deviation>>) =
        wires.map(|wire| probing.measure(wire, capabilities)).unzip();
    // Something diverges, though of no wire something else was read than is expected.
    if wires.iter().all(|wire| wire.state != State::Deviates) {
        for wire in wires.iter_mut().filter(|wire| wire.diverged > 0) {
            wire.state = State::Deviates;
        }
    }
    let deviating: Vec<&str> =
        wires.iter().filter(|wire| wire.state == State::Deviates).map(|wire| wire.wire).collect();
    for wire in &mut wires {
        let rests_on = WIRES.iter().find(|own| own.name == wire.wire).and_then(|own| own.rests_on);
        wire.by_rule &= rests_on.is_none_or(|other| !deviating.contains(&other));
    }
    for (wire, first) in wires.iter().zip(&mut first) {
        first.take_if(|_| wire.state != State::Deviates);
    }
    Probed {
        cause: None,
        seen: probing.seen,
        declared: probing.declared,
        wires,
        questions: probing.questions,
        subject_seconds: probing.time.as_secs_f64(),
        seconds: start.elapsed().as_secs_f64(),
        deviations: first.into_iter().flatten().collect(),
    }
}

struct Probing<'a> {
    subject: &'a mut dyn Subject,
    model: RoundingModel,
    known: Vec<Faults>,
    questions: usize,
    most_time: Duration,
    time: Duration,
    /// Of that, for questions without a usable answer.
    unusable: Duration,
    /// Whether a wire had no usable answer at all: nothing further is asked.
    gone: bool,
    /// Every answer to a sequence that is small enough to keep.
    seen: Vec<Seen>,
    /// Names of declared faults that some answer shows.
    declared: BTreeSet<&'static str>,
}

/// How one question was answered.
struct Outcome {
    answers: Vec<Result<Answer, NoAnswer>>,
    /// What is wrong, where something is.
    wrong: Option<Wrong>,
}

/// An answer that does not conform.
struct Wrong {
    why: String,
    deviation: Deviation,
    /// The call and row in which the verdict found it.
    at: Option<(usize, Row)>,
    declared: bool,
}

impl Probing<'_> {
    fn measure(&mut self, wire: &Wire, capabilities: &Capabilities) -> (Measurement, Option<Deviation>) {
        let mut asking = Asking::new(capabilities);
        (wire.ask)(&mut asking);
        let Asking { questions, mut needs, .. } = asking;
        let (mut measured, mut verdict, mut first) = (Vec::new(), None, None);
        let (mut diverged, mut declared, mut unusable) = (0, 0, 0);
        for question in &questions {
            let broken = self.gone || unusable >= MOST_UNUSABLE || self.unusable > MOST_UNUSABLE_TIME;
            if broken || self.time > self.most_time {
                needs.insert(if broken { "usable answers" } else { "more time" }.into());
                break;
            }
            let before = self.time;
            let mut one = self.ask(question);
            if one.answers.iter().any(|answer| matches!(answer, Err(NoAnswer::Failed(_)))) {
                unusable += 1;
                self.unusable += self.time - before;
            }
            let expected = expected(question);
            // An answer that conforms may differ where rounding or ties decide.
            let read = one.wrong.is_some() || wire.tells_ties;
            let found = if read { question.readings(&one.answers) } else { expected.clone() };
            let at = one.wrong.as_ref().and_then(|wrong| wrong.at);
            let differs = found != expected;
            measured.push(Measured { question, at, found, expected });
            match one.wrong.take() {
                Some(wrong) if wrong.declared => declared += 1,
                Some(wrong) => {
                    diverged += 1;
                    // One that shows something else of this wire is the better example.
                    if first.is_none() || differs && !matches!(first, Some((_, true))) {
                        (verdict, first) = (Some(wrong.why), Some((wrong.deviation, differs)));
                    }
                }
                None => {}
            }
        }
        self.gone |= unusable >= MOST_UNUSABLE && unusable == measured.len();
        let told_apart = matches!(first, Some((_, true)));
        let state = match (measured.is_empty(), diverged, declared) {
            (true, ..) => State::NotMeasured,
            (false, 1.., _) if told_apart => State::Deviates,
            (false, 0, 1..) => State::Declared,
            (false, ..) => State::AsExpected,
        };
        let mut of_reference = measured.clone();
        of_reference.iter_mut().for_each(|one| one.found.clone_from(&one.expected));
        let tell = |measured: &[Measured]| match measured {
            [] => Told::Rule(String::new()),
            some => (wire.tell)(some),
        };
        let told = tell(&measured);
        let measurement = Measurement {
            wire: wire.name,
            state,
            by_rule: matches!(told, Told::Rule(_)),
            measured: told.into_text(),
            expected: tell(&of_reference).into_text(),
            questions: measured.len(),
            diverged,
            verdict,
            needs: needs.into_iter().collect(),
        };
        (measurement, first.map(|(deviation, _)| deviation))
    }

    /// Asks a question as often as it wants; the first answer that does not conform, or the last.
    fn ask(&mut self, question: &Question) -> Outcome {
        let mut outcome = self.once(question);
        for _ in 1..question.times {
            if outcome.wrong.is_some() {
                break;
            }
            outcome = self.once(question);
        }
        outcome
    }

    /// Asks a question and judges the answers.
    fn once(&mut self, question: &Question) -> Outcome {
        self.questions += 1;
        let asking = Instant::now();
        match &question.asked {
            Asked::Sequence(sequence) => {
                let observation = ask(self.subject, sequence);
                self.time += asking.elapsed();
                let verdicts = judge_observation(&observation, self.model);
                let failure = first_failure(&verdicts);
                let bytes: usize = sequence.calls.iter().map(Call::bytes).sum();
                if bytes <= MOST_BYTES {
                    let (observation, conforms) = (observation.clone(), failure.is_none());
                    self.seen.push(Seen { observation, conforms, after: self.questions, asked: true });
                }
                let answers = observation.answers.clone();
                let wrong = failure
                    .map(|(call, kind)| self.wrong(question, observation, &verdicts[call], (call, kind)));
                Outcome { answers, wrong }
            }
            Asked::Stage(call) => {
                let answer = ask_stage(self.subject, call);
                self.time += asking.elapsed();
                let verdict = judge_stage(call, &answer, self.model);
                let wrong = verdict.kind.map(|kind| {
                    let why = verdict.explanations.first().cloned().unwrap_or_else(|| kind.into());
                    let deviation =
                        Deviation::Stage(format!("probe: {}", question.words()), Box::new(call.clone()));
                    Wrong { why: in_question(question, &why), deviation, at: None, declared: false }
                });
                let answers = vec![answer.map(|answer: StageAnswer| question::as_answer(call, answer))];
                Outcome { answers, wrong }
            }
        }
    }

    fn wrong(
        &mut self,
        question: &Question,
        observation: Observation,
        verdict: &Verdict,
        (call, kind): (usize, &str),
    ) -> Wrong {
        let reproduced = |faults: &Faults| {
            let behaviour = Behaviour::with(faults.iter().copied());
            reproduces(behaviour, &observation, self.model)
        };
        let declared = self.known.iter().any(reproduced);
        if declared {
            let all: Faults = self.known.concat();
            let shown = declared_in(&all, &self.known, &observation, self.model);
            self.declared.extend(shown.iter().map(|fault| fault.name));
        }
        let why = verdict.explanations().into_iter().next().unwrap_or_else(|| kind.into());
        let mask = verdict.judgement().and_then(|judgement| judgement.mask.divergences.first());
        let at = mask.map(|divergence| (call, divergence.row));
        let deviation = Deviation::Sequence(Box::new(observation));
        Wrong { why: in_question(question, &why), deviation, at, declared }
    }
}

fn in_question(question: &Question, why: &str) -> String {
    let words = question.words();
    if words.is_empty() { why.to_owned() } else { format!("{words}: {why}") }
}

/// What the reference's answers show.
fn expected(question: &Question) -> Vec<Reading> {
    question.readings(&question.put_to(&mut Reference::default()))
}

//! Probes: a subject is there to be asked, so it is measured, one wire at a time. A wire is one thing that answers depend on:
//! which keys can be selected, which KV head a head reads, how fine the grid of labels is. A probe asks a few crafted questions
//! within what the subject offers, reads the answers, and reads the reference's answers to the same questions in the same way.
//!
//! A wire deviates only where the verdict (SPEC §5) says that an answer does not conform: each question is an ordinary sequence, or
//! a question to one stage. What is read then says how. Readings of answers that conform are never held against a subject.

mod attention;
mod calls;
mod candidates;
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
mod tell;
mod wires;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde::Serialize;

use self::question::{Asked, Asking, Question, Reading};
use self::tell::Measured;
use self::wires::{WIRES, Wire};
use super::reproduction::reproduces;
use super::{Faults, independent_sets};
use crate::behaviours::Behaviour;
use crate::cases::{Answer, Capabilities, NoAnswer, Observation, RoundingModel, StageAnswer, StageCall};
use crate::subjects::{Reference, Subject, ask, ask_stage};
use crate::verdicts::judge::{first_failure, judge_observation};
use crate::verdicts::judge_stage;

/// A wire is left once this many of its questions brought no usable answer.
const MOST_UNUSABLE: usize = 3;

/// No further question is asked once the subject took this long for those before.
const MOST_TIME: Duration = Duration::from_secs(60);

/// What probes found.
#[derive(Debug, Clone, Serialize)]
pub struct Probed {
    /// Each wire, in the order in which they were measured.
    pub wires: Vec<Measurement>,
    /// Questions that were asked.
    pub questions: usize,
    /// How long the subject took to answer them.
    pub subject_seconds: f64,
    /// How long everything took.
    pub seconds: f64,
    /// The first answer that diverges of each wire that deviates, for the findings.
    #[serde(skip)]
    pub deviations: Vec<Deviation>,
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
    /// Every answer conforms.
    AsExpected,
    /// Some answer does not conform.
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
                let verdict = self.verdict.as_deref().unwrap_or_default();
                if self.measured.is_empty() || self.measured == self.expected {
                    return format!("{}: {verdict}", self.wire);
                }
                if self.measured.contains("expected") {
                    return format!("{}: {}", self.wire, self.measured);
                }
                format!("{}: {}; expected {}", self.wire, self.measured, self.expected)
            }
        }
    }
}

impl Probed {
    /// Wires in a state.
    pub fn in_state(&self, state: State) -> impl Iterator<Item = &Measurement> {
        self.wires.iter().filter(move |wire| wire.state == state)
    }

    /// Whether no wire deviates other than declared.
    pub fn conforms(&self) -> bool {
        self.in_state(State::Deviates).next().is_none()
    }
}

/// Measures every wire of a subject, as far as it offers it. Answers that `known` faults reproduce count as declared.
pub fn probe(subject: &mut dyn Subject, capabilities: &Capabilities, known: &Faults) -> Probed {
    let start = Instant::now();
    let mut probing = Probing {
        model: subject.rounding_model(),
        subject,
        known: if known.is_empty() { Vec::new() } else { independent_sets(known) },
        questions: 0,
        time: Duration::ZERO,
        deviations: Vec::new(),
    };
    let takes = capabilities.stages.takes;
    let wires = WIRES.iter().filter(|wire| wire.takes.contains(&takes));
    let wires = wires.map(|wire| probing.measure(wire, capabilities)).collect();
    Probed {
        wires,
        questions: probing.questions,
        subject_seconds: probing.time.as_secs_f64(),
        seconds: start.elapsed().as_secs_f64(),
        deviations: probing.deviations,
    }
}

struct Probing<'a> {
    subject: &'a mut dyn Subject,
    model: RoundingModel,
    known: Vec<Faults>,
    questions: usize,
    time: Duration,
    deviations: Vec<Deviation>,
}

/// How one question was answered.
struct Outcome {
    answers: Vec<Result<Answer, NoAnswer>>,
    /// What is wrong, where something is.
    wrong: Option<(String, Deviation)>,
    declared: bool,
}

impl Probing<'_> {
    fn measure(&mut self, wire: &Wire, capabilities: &Capabilities) -> Measurement {
        let mut asking = Asking::new(capabilities);
        (wire.ask)(&mut asking);
        let Asking { questions, mut needs, .. } = asking;
        let (mut measured, mut verdict, mut first) = (Vec::new(), None, None);
        let (mut diverged, mut declared, mut unusable) = (0, 0, 0);
        for question in &questions {
            if unusable >= MOST_UNUSABLE || self.time > MOST_TIME {
                needs.insert(if unusable >= MOST_UNUSABLE { "usable answers" } else { "more time" }.into());
                break;
            }
            self.questions += question.times;
            let expected = expected(question);
            let outcome = (0..question.times).map(|_| self.once(question)).reduce(|worst, next| {
                if worst.wrong.is_some() { worst } else { next }
            });
            let Some(outcome) = outcome else { continue };
            unusable += usize::from(outcome.answers.iter().any(|a| matches!(a, Err(NoAnswer::Failed(_)))));
            declared += usize::from(outcome.declared);
            let wrong = outcome.wrong.is_some();
            diverged += usize::from(wrong && !outcome.declared);
            if let Some((why, deviation)) = outcome.wrong {
                verdict.get_or_insert(why);
                if !outcome.declared {
                    first.get_or_insert(deviation);
                }
            }
            // An answer that conforms may differ where rounding or ties decide.
            let found = if wrong || wire.tells_ties { question.readings(&outcome.answers) } else { expected.clone() };
            measured.push(Measured { question, found, expected });
        }
        self.deviations.extend(first);
        let state = match (measured.is_empty(), diverged, declared) {
            (true, ..) => State::NotMeasured,
            (false, 0, 0) => State::AsExpected,
            (false, 0, _) => State::Declared,
            (false, ..) => State::Deviates,
        };
        let of_reference: Vec<Measured> = measured
            .iter()
            .map(|one| Measured { found: one.expected.clone(), expected: one.expected.clone(), ..*one })
            .collect();
        let tell = |measured: &[Measured]| if measured.is_empty() { String::new() } else { (wire.tell)(measured) };
        Measurement {
            wire: wire.name,
            state,
            measured: tell(&measured),
            expected: tell(&of_reference),
            questions: measured.len(),
            diverged,
            verdict,
            needs: needs.into_iter().collect::<BTreeSet<String>>().into_iter().collect(),
        }
    }

    /// Asks a question and judges the answers.
    fn once(&mut self, question: &Question) -> Outcome {
        let asking = Instant::now();
        match &question.asked {
            Asked::Sequence(sequence) => {
                let observation = ask(self.subject, sequence);
                self.time += asking.elapsed();
                let verdicts = judge_observation(&observation, self.model);
                let Some((call, kind)) = first_failure(&verdicts) else {
                    return Outcome { answers: observation.answers, wrong: None, declared: false };
                };
                let reproduced = |faults: &Faults| {
                    let behaviour = Behaviour::with(faults.iter().copied());
                    reproduces(behaviour, &observation, self.model)
                };
                let declared = self.known.iter().any(reproduced);
                let why = verdicts[call].explanations().into_iter().next().unwrap_or_else(|| kind.into());
                let answers = observation.answers.clone();
                let words = question.words();
                let why = if words.is_empty() { why } else { format!("{words}: {why}") };
                let wrong = Some((why, Deviation::Sequence(Box::new(observation))));
                Outcome { answers, wrong, declared }
            }
            Asked::Stage(call) => {
                let answer = ask_stage(self.subject, call);
                self.time += asking.elapsed();
                let verdict = judge_stage(call, &answer, self.model);
                let wrong = verdict.kind.map(|kind| {
                    let why = verdict.explanations.first().cloned().unwrap_or_else(|| kind.into());
                    let name = format!("probe: {}", question.words());
                    (format!("{}: {why}", question.words()), Deviation::Stage(name, Box::new(call.clone())))
                });
                let answers = vec![answer.map(|answer: StageAnswer| question::as_answer(call, answer))];
                Outcome { answers, wrong, declared: false }
            }
        }
    }
}

/// What the reference's answers show.
fn expected(question: &Question) -> Vec<Reading> {
    question.readings(&question.put_to(&mut Reference::default()))
}

//! The questions of a probe: ordinary sequences, or questions to one stage, each with how its answers are read.

use std::collections::BTreeSet;

use ndarray::{Array4, s};

use super::draft::Draft;
use super::tensors::Parts;
use crate::algorithm::{Dims, Row};
use crate::cases::{Answer, Call, Capabilities, Instance, NoAnswer, Sequence, StageAnswer, StageCall, Takes};
use crate::subjects::{Subject, ask, ask_stage};

/// What is asked.
#[derive(Debug, Clone)]
pub(super) enum Asked {
    Sequence(Sequence),
    Stage(StageCall),
}

/// A question.
#[derive(Debug, Clone)]
pub(super) struct Question {
    /// What is particular about it, in words; may be empty.
    pub about: String,
    /// The numbers that it was made for, by name.
    pub numbers: Vec<(&'static str, usize)>,
    pub asked: Asked,
    pub read: Read,
    /// How often it is asked.
    pub times: usize,
}

/// How an answer is read, row by row.
#[derive(Debug, Clone, Copy)]
pub(super) enum Read {
    /// Which keys of the probe are attended to: so many from an offset on.
    Keys { offset: usize, keys: usize },
    /// The output.
    Output,
    /// The first number of the output as a whole number, less 1.
    Whole,
    /// Whether it was answered.
    Answered,
}

/// What one row of an answer shows.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Reading {
    pub call: usize,
    pub row: Row,
    pub shows: Shown,
}

/// What is read.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Shown {
    Keys(Vec<usize>),
    Number(f32),
    Numbers(Vec<f32>),
    Answered,
    Refused,
    /// No usable answer.
    Nothing,
}

/// How many numbers of a row are shown.
const MOST_NUMBERS: usize = 4;

impl std::fmt::Display for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Keys(keys) if keys.is_empty() => f.write_str("no key"),
            Self::Keys(keys) => f.write_str(&super::tell::keys(keys.iter().copied())),
            Self::Number(number) => write!(f, "{number}"),
            Self::Numbers(numbers) => {
                let shown: Vec<_> = numbers.iter().take(MOST_NUMBERS).map(|x| format!("{x:.6}")).collect();
                let more = if numbers.len() > MOST_NUMBERS { ", …" } else { "" };
                write!(f, "[{}{more}]", shown.join(", "))
            }
            Self::Answered => f.write_str("an answer"),
            Self::Refused => f.write_str("a refusal"),
            Self::Nothing => f.write_str("no usable answer"),
        }
    }
}

impl Question {
    /// What it is about and its numbers: `two layers, n = 33, H = 1`.
    pub fn words(&self) -> String {
        words(&self.about, &self.numbers)
    }

    /// The sizes of its last call.
    pub fn dims(&self) -> Option<Dims> {
        match &self.asked {
            Asked::Sequence(sequence) => sequence.calls.last().map(|call| call.inputs.dims()),
            Asked::Stage(call) => Some(call.dims()),
        }
    }

    /// How many channel rows its last call has.
    pub fn rows(&self) -> usize {
        let Asked::Sequence(sequence) = &self.asked else { return 0 };
        let layer = sequence.calls.last().map_or(0, |call| call.layer);
        sequence.instance.channels(layer).map_or(0, |order| order.rows().len())
    }

    /// The answers of a subject.
    pub fn put_to(&self, subject: &mut dyn Subject) -> Vec<Result<Answer, NoAnswer>> {
        match &self.asked {
            Asked::Sequence(sequence) => ask(subject, sequence).answers,
            Asked::Stage(call) => vec![ask_stage(subject, call).map(|answer| as_answer(call, answer))],
        }
    }

    /// What answers show.
    pub fn readings(&self, answers: &[Result<Answer, NoAnswer>]) -> Vec<Reading> {
        let readings = answers.iter().enumerate().flat_map(|(call, answer)| self.reading(call, answer));
        readings.collect()
    }

    fn reading(&self, call: usize, answer: &Result<Answer, NoAnswer>) -> Vec<Reading> {
        let at = |row, shows| Reading { call, row, shows };
        let answer = match (answer, self.read) {
            (Ok(_), Read::Answered) => return vec![at((0, 0, 0), Shown::Answered)],
            (Ok(answer), _) => answer,
            (Err(NoAnswer::Failed(_)), _) => return vec![at((0, 0, 0), Shown::Nothing)],
            (Err(_), _) => return vec![at((0, 0, 0), Shown::Refused)],
        };
        let (b, h, m, n) = answer.mask.weights().dim();
        ndarray::indices((b, h, m))
            .into_iter()
            .map(|row| match self.read {
                Read::Keys { offset, keys } => {
                    let last = (offset + keys).min(n);
                    let attends = |key: &usize| answer.mask.attends(row.0, row.1, row.2, offset + key);
                    at(row, Shown::Keys((0..last.saturating_sub(offset)).filter(attends).collect()))
                }
                read => {
                    let own = |output: &Array4<f32>| output.slice(s![row.0, row.1, row.2, ..]).to_vec();
                    let numbers = answer.output.as_ref().map(own).unwrap_or_default();
                    let shows = match (read, numbers.first()) {
                        (_, None) => Shown::Nothing,
                        (Read::Whole, Some(first)) => Shown::Number(first.round() - 1.0),
                        (_, Some(_)) => Shown::Numbers(numbers),
                    };
                    at(row, shows)
                }
            })
            .collect()
    }
}

fn words(about: &str, numbers: &[(&'static str, usize)]) -> String {
    let numbers = numbers.iter().map(|(name, number)| format!("{name} = {number}"));
    let about = Some(about.to_owned()).filter(|about| !about.is_empty());
    about.into_iter().chain(numbers).collect::<Vec<_>>().join(", ")
}

/// The answer of a stage as one of a layer.
pub(super) fn as_answer(call: &StageCall, answer: StageAnswer) -> Answer {
    match (call, answer) {
        (_, StageAnswer::Selected(mask)) => Answer::new(mask, None),
        (StageCall::Selection(call), StageAnswer::Attended(attended)) => {
            Answer { lse: attended.lse, ..Answer::new(call.mask.clone(), attended.output) }
        }
        (StageCall::Scores(call), StageAnswer::Attended(attended)) => {
            let mask = crate::algorithm::Mask::empty(&call.dims());
            Answer { lse: attended.lse, ..Answer::new(mask, attended.output) }
        }
    }
}

/// The questions of one probe, as far as a subject may be asked them.
pub(super) struct Asking<'a> {
    pub capabilities: &'a Capabilities,
    pub questions: Vec<Question>,
    /// What would be needed for those that were left out.
    pub needs: BTreeSet<String>,
}

impl<'a> Asking<'a> {
    pub fn new(capabilities: &'a Capabilities) -> Self {
        Self { capabilities, questions: Vec::new(), needs: BTreeSet::new() }
    }

    /// A new draft with so many keys.
    pub fn draft(&self, keys: usize) -> Draft {
        Draft::new(self.capabilities, keys)
    }

    /// A draft moved inside what is offered.
    pub fn fit(&mut self, draft: Draft) -> Option<Draft> {
        let fitted = draft.fit(self.capabilities);
        if fitted.is_none() {
            self.needs.insert("a wider domain".into());
        }
        fitted
    }

    /// Notes what is missing unless a condition holds, and says whether it does.
    pub fn need(&mut self, holds: bool, what: &str) -> bool {
        if !holds {
            self.needs.insert(what.into());
        }
        holds
    }

    /// Adds calls of one instance, where the subject offers all that they ask for.
    pub fn sequence(
        &mut self,
        (about, numbers): (&str, &[(&'static str, usize)]),
        instance: Option<Instance>,
        calls: Option<Vec<Call>>,
        read: Read,
    ) {
        let (Some(instance), Some(calls)) = (instance, calls) else { return };
        let name = format!("probe: {}", words(about, numbers));
        let sequence = Sequence { name, instance, calls }.on_layers_from(self.capabilities.first_layer);
        let missing = self.capabilities.missing(&sequence);
        if missing.is_empty() {
            let (about, numbers) = (about.into(), numbers.to_vec());
            self.questions.push(Question {
                about,
                numbers,
                asked: Asked::Sequence(sequence),
                read,
                times: 1,
            });
        } else {
            self.needs.extend(missing);
        }
    }

    /// One call of a draft's own instance; of a subject that takes scores, its scores.
    pub fn call(&mut self, about: (&str, &[(&'static str, usize)]), draft: &Draft, parts: Parts, read: Read) {
        self.sequence(about, draft.instance(), draft.call(parts).map(|call| vec![call]), read);
    }

    /// One question about which keys score highest, `score` by entry, KV head and key of the probe; A may exclude some.
    pub fn scored(
        &mut self,
        about: (&str, &[(&'static str, usize)]),
        draft: &Draft,
        score: &dyn Fn(usize, usize, usize) -> f32,
        additive: Option<Array4<f32>>,
    ) {
        let read = Read::Keys { offset: draft.offset(), keys: draft.keys };
        if self.capabilities.stages.takes == Takes::Scores {
            let scores = draft.scores(score, additive.as_ref());
            self.stage(about, draft.scores_call(scores), read);
        } else {
            let parts = Parts { k: Some(draft.scored_keys(score)), additive, ..Parts::default() };
            self.call(about, draft, parts, read);
        }
    }

    /// One question to a stage, where the subject offers it.
    pub fn stage(
        &mut self,
        (about, numbers): (&str, &[(&'static str, usize)]),
        call: Option<StageCall>,
        read: Read,
    ) {
        let Some(call) = call else { return };
        if !self.capabilities.offers_stage(&call) {
            self.needs.insert("a wider domain".into());
            return;
        }
        let (about, numbers) = (about.into(), numbers.to_vec());
        self.questions.push(Question { about, numbers, asked: Asked::Stage(call), read, times: 1 });
    }
}

//! The verdict on a session (SPEC §2.14): a step that must be refused was, and an attend is judged as the calls that it stands for,
//! with all keys of each request. After the first failure nothing is known of what the subject holds, so that it ends there.

use super::judge::{Verdict, judge_call, same_kind};
use super::sharpness::Sharpness;
use crate::algorithm::Error;
use crate::cases::{
    Answer, Call, Held, Instance, NoAnswer, Opening, Outcome, RoundingModel, SessionObservation, Step,
    StepAnswer,
};

/// How a session compares.
#[derive(Debug, Clone, Default)]
pub struct SessionVerdict {
    /// Steps that were judged.
    pub steps: usize,
    /// Rows that attended, and were judged.
    pub rows: usize,
    /// Rows of masks, per head, and how sharp the verdicts on them were.
    pub sharpness: Sharpness,
    /// Steps that had to be refused, and were.
    pub refused: usize,
    /// Answers with an output.
    pub outputs: usize,
    /// The first failure.
    pub failure: Option<StepFailure>,
}

/// What is wrong with a step.
#[derive(Debug, Clone)]
pub struct StepFailure {
    /// Which step; `None` where the session was not opened.
    pub step: Option<usize>,
    /// Which of the requests of an attend, by place.
    pub place: Option<usize>,
    /// The call that it stands for.
    pub call: Option<Call>,
    /// The verdict on it.
    pub verdict: Verdict,
}

impl StepFailure {
    fn of_step(step: usize, verdict: Verdict) -> Self {
        Self { step: Some(step), place: None, call: None, verdict }
    }
}

impl SessionVerdict {
    /// Whether all of it conforms.
    pub fn conforms(&self) -> bool {
        self.failure.is_none()
    }

    /// The kind of the failure; `None` where everything conforms.
    pub fn kind(&self) -> Option<&'static str> {
        self.failure.as_ref().and_then(|failure| failure.verdict.kind())
    }
}

/// Judges a session under the subject's rounding model.
pub fn judge_session(observation: &SessionObservation, model: RoundingModel) -> SessionVerdict {
    let session = &observation.session;
    let mut judge = SessionJudge::new(&session.opening, &session.instance, model);
    if let Some(no_answer) = &observation.not_opened {
        let verdict = unanswered(no_answer);
        judge.verdict.failure = Some(StepFailure { step: None, place: None, call: None, verdict });
        return judge.verdict;
    }
    for (step, answer) in session.steps.iter().zip(&observation.answers) {
        if !judge.step(step, answer) {
            return judge.verdict;
        }
    }
    let (found, expected) = (observation.answers.len(), session.steps.len());
    if found != expected {
        let verdict =
            Verdict::Failed(format!("found {found} answers, expected {expected}, one for each step"));
        judge.verdict.failure = Some(StepFailure { step: None, place: None, call: None, verdict });
    }
    judge.verdict
}

/// Judges a session step by step.
#[derive(Debug)]
pub struct SessionJudge<'a> {
    instance: &'a Instance,
    model: RoundingModel,
    held: Held,
    /// The verdict so far.
    pub verdict: SessionVerdict,
}

impl<'a> SessionJudge<'a> {
    /// Nothing was asked yet.
    pub fn new(opening: &Opening, instance: &'a Instance, model: RoundingModel) -> Self {
        Self { instance, model, held: Held::new(opening), verdict: SessionVerdict::default() }
    }

    /// Judges the answer to the next step; false where it does not conform: then nothing more can be judged.
    pub fn step(&mut self, step: &Step, answer: &StepAnswer) -> bool {
        let index = self.verdict.steps;
        self.verdict.steps += 1;
        self.verdict.failure = match (self.held.outcome(step), answer) {
            (Outcome::Refused(faults), answer) => {
                let verdict = refusal(&faults, answer.as_ref().err());
                self.verdict.refused += usize::from(verdict.conforms());
                (!verdict.conforms()).then(|| StepFailure::of_step(index, verdict))
            }
            (_, Err(no_answer)) => Some(StepFailure::of_step(index, unanswered(no_answer))),
            (_, Ok(answers)) => self.attend(index, step, answers),
        };
        self.verdict.failure.is_none()
    }

    /// A step that was done: the answers of an attend are judged, and what is held changes.
    fn attend(&mut self, index: usize, step: &Step, answers: &[Answer]) -> Option<StepFailure> {
        let calls = match self.held.calls(step) {
            Ok(calls) => calls,
            Err(expected) => return Some(StepFailure::of_step(index, Verdict::Accepted { expected })),
        };
        if answers.len() != calls.len() {
            let failed = format!("the answer holds {} requests, expected {}", answers.len(), calls.len());
            return Some(StepFailure::of_step(index, Verdict::Failed(failed)));
        }
        for (place, (call, answer)) in calls.into_iter().zip(answers).enumerate() {
            self.verdict.rows += call.inputs.dims().queries;
            self.verdict.outputs += usize::from(answer.output.is_some());
            let verdict = judge_call(self.instance, &call, &Ok(answer.clone()), self.model);
            self.verdict.sharpness.add(&Sharpness::of(&verdict));
            if !verdict.conforms() {
                let (step, place, call) = (Some(index), Some(place), Some(call));
                return Some(StepFailure { step, place, call, verdict });
            }
        }
        self.held.apply(step);
        None
    }
}

/// A step that must be answered, and was not.
fn unanswered(no_answer: &NoAnswer) -> Verdict {
    match no_answer {
        NoAnswer::Failed(problem) => Verdict::Failed(problem.clone()),
        found => Verdict::RefusedWrongly { found: found.clone(), expected: None },
    }
}

/// A step that must be refused, for any of these reasons.
fn refusal(faults: &[Error], no_answer: Option<&NoAnswer>) -> Verdict {
    let expected = faults.first().cloned();
    match no_answer {
        Some(NoAnswer::Failed(problem)) => Verdict::Failed(problem.clone()),
        Some(NoAnswer::Declined(_)) => Verdict::RefusedRightly,
        Some(NoAnswer::Refused(found)) if faults.iter().any(|fault| same_kind(fault, found)) => {
            Verdict::RefusedRightly
        }
        Some(found) => Verdict::RefusedWrongly { found: found.clone(), expected },
        None => match expected {
            Some(expected) => Verdict::Accepted { expected },
            None => Verdict::RefusedRightly,
        },
    }
}

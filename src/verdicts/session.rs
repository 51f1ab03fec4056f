//! The verdict on a session (SPEC §2.14): a step that must be refused was, and an attend is judged as the calls that it stands for,
//! with all keys of each request. After the first failure nothing is known of what the subject holds, so that it ends there.

use super::judge::{Verdict, judge_call, same_kind};
use super::sharpness::Sharpness;
use crate::algorithm::Error;
use crate::cases::{Call, Held, NoAnswer, Outcome, RoundingModel, SessionObservation};

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
    let mut verdict = SessionVerdict::default();
    if let Some(no_answer) = &observation.not_opened {
        let verdict_on_it = unanswered(no_answer);
        verdict.failure = Some(StepFailure { step: None, place: None, call: None, verdict: verdict_on_it });
        return verdict;
    }
    let mut held = Held::new(&session.opening);
    for (index, (step, answer)) in session.steps.iter().zip(&observation.answers).enumerate() {
        verdict.steps += 1;
        let outcome = held.outcome(step);
        let answers = match (outcome, answer) {
            (Outcome::Refused(faults), answer) => {
                let judged = refusal(&faults, answer.as_ref().err());
                verdict.refused += usize::from(judged.conforms());
                if judged.conforms() {
                    continue;
                }
                verdict.failure = Some(StepFailure::of_step(index, judged));
                return verdict;
            }
            (_, Err(no_answer)) => {
                verdict.failure = Some(StepFailure::of_step(index, unanswered(no_answer)));
                return verdict;
            }
            (_, Ok(answers)) => answers,
        };
        let calls = match held.calls(step) {
            Ok(calls) => calls,
            Err(error) => {
                let expected = Verdict::Accepted { expected: error };
                verdict.failure = Some(StepFailure::of_step(index, expected));
                return verdict;
            }
        };
        for (place, (call, answer)) in calls.into_iter().zip(answers).enumerate() {
            verdict.rows += call.inputs.dims().queries;
            verdict.outputs += usize::from(answer.output.is_some());
            let judged = judge_call(&session.instance, &call, &Ok(answer.clone()), model);
            verdict.sharpness.add(&Sharpness::of(&judged));
            if !judged.conforms() {
                let (step, place, call) = (Some(index), Some(place), Some(call));
                verdict.failure = Some(StepFailure { step, place, call, verdict: judged });
                return verdict;
            }
        }
        held.apply(step);
    }
    verdict
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

//! Promises in sessions: the same session asked again, and each request of an attend asked alone, the last first. What lived in a
//! request's slots before is part of every session.

use std::time::Instant;

use super::differences::same;
use super::events::Event;
use super::promises::BROKEN_PROMISE;
use super::run::Run;
use crate::cases::{Answer, NoAnswer, Promise, Session, SessionObservation, Step};

use crate::runner::shrink::Limits;
use crate::runner::shrink::sessions::shrink_session;
use crate::subjects::{Subject, ask_session};

/// Those that sessions can break.
const OF_SESSIONS: [Promise; 2] = [Promise::Repeatable, Promise::BatchInvariant];

/// The most tries of shrinking.
const MOST_TRIES: usize = 2000;

impl Run<'_> {
    /// Holds a conforming session against promises, where it is their turn.
    pub(super) fn check_session_promises(&mut self, observation: &SessionObservation) {
        for promise in OF_SESSIONS {
            let changed = changed(promise, &observation.session);
            if !self.is_turn(promise) || !self.capabilities.offers_session(&changed) {
                continue;
            }
            let (of, broken) = compare(promise, self.subject, observation);
            self.observe(promise, of - usize::from(broken.is_some()), of);
            if let Some(line) = broken.filter(|_| self.capabilities.promises(promise)) {
                let thinking = Instant::now();
                self.broken_in_session(promise, observation, line);
                self.thinking += thinking.elapsed();
            }
        }
    }

    fn broken_in_session(&mut self, promise: Promise, observation: &SessionObservation, line: String) {
        let prefix = format!("Broken promise: {}", promise.name());
        if let Some(finding) = self.apart.iter_mut().find(|finding| finding.sentence.starts_with(&prefix)) {
            finding.sequences += 1;
            return;
        }
        let (number, limits) = (self.findings() + 1, self.limits());
        let limits = Limits { tries: MOST_TRIES.min(limits.tries), ..limits };
        let name = observation.session.name.clone();
        let (subject, capabilities) = (&mut *self.subject, &self.capabilities);
        let mut breaks = |candidate: &Session| {
            let observation = ask_session(subject, candidate);
            capabilities.offers_session(&changed(promise, candidate))
                && compare(promise, subject, &observation).1.is_some()
        };
        let shrunk = shrink_session(observation.session.clone(), limits, capabilities, &mut breaks);
        self.has_shrunk(shrunk.seconds);
        let smaller = ask_session(self.subject, &shrunk.session);
        let (observation, line) = match compare(promise, self.subject, &smaller).1 {
            Some(line) => (smaller, line),
            None => (observation.clone(), line),
        };
        let mut finding = self.session_finding(&name, observation);
        finding.kind = BROKEN_PROMISE;
        finding.explanations = vec![format!("{} is promised: {line}", promise.name())];
        finding.sentence = format!("{prefix} is promised, and these answers do not keep it.");
        (finding.tries, finding.shrinking_seconds, finding.shrunk) =
            (shrunk.tries, shrunk.seconds, shrunk.finished);
        (self.watch)(Event::Found(number, &finding));
        (self.watch)(Event::Shrunk(number, &finding));
        self.apart.push(finding);
    }
}

/// The session that must get the same answers.
fn changed(promise: Promise, session: &Session) -> Session {
    if promise == Promise::BatchInvariant { each_alone(session) } else { session.clone() }
}

/// The session with each request of an attend asked alone, the last first.
pub(super) fn each_alone(session: &Session) -> Session {
    let mut changed = session.clone();
    let alone = |step: Step| match step {
        Step::Attend { layer, parts, q } => {
            let mut row = 0;
            let each = parts.into_iter().map(|(request, count)| {
                let rows: Vec<usize> = (row..row + count).filter(|&row| row < q.dim().0).collect();
                row += count;
                let q = q.select(ndarray::Axis(0), &rows);
                Step::Attend { layer, parts: vec![(request, count)], q }
            });
            each.collect::<Vec<_>>().into_iter().rev().collect()
        }
        step => vec![step],
    };
    changed.steps = changed.steps.into_iter().flat_map(alone).collect();
    changed
}

/// How many requests of attends were compared, and the first of which the answer differs.
fn compare(
    promise: Promise,
    subject: &mut dyn Subject,
    observation: &SessionObservation,
) -> (usize, Option<String>) {
    let changed = changed(promise, &observation.session);
    let again = ask_session(subject, &changed);
    let mut others = again.answers.iter();
    let mut compared = 0;
    for (index, (step, answer)) in observation.session.steps.iter().zip(&observation.answers).enumerate() {
        let alone = promise == Promise::BatchInvariant && matches!(step, Step::Attend { .. });
        let requests = step.requests();
        // Each alone, the last first.
        let other: Vec<Answers> = match alone {
            true => (0..requests.len()).filter_map(|_| others.next().map(answers)).collect(),
            false => others.next().map(answers).into_iter().collect(),
        };
        let other: Answers = if alone { other.into_iter().rev().flatten().collect() } else { other.concat() };
        let own = answers(answer);
        if matches!(step, Step::Attend { .. }) && answer.is_ok() {
            compared += own.len();
        }
        let differs = (0..own.len().max(other.len())).find(|&place| {
            !(place < own.len() && place < other.len() && same(&own[place..=place], &other[place..=place]))
        });
        if let Some(place) = differs.filter(|_| answer.is_ok()) {
            let how =
                if promise == Promise::BatchInvariant { "alone" } else { "when the session is asked again" };
            let request = requests.get(place).map_or(String::new(), |request| format!(", request {request}"));
            return (compared, Some(format!("step {index}{request} gets another answer {how}")));
        }
    }
    (compared, None)
}

type Answers = Vec<Result<Answer, NoAnswer>>;

/// The answers to each request; one refusal where there are none.
fn answers(answer: &crate::cases::StepAnswer) -> Answers {
    match answer {
        Ok(answers) => answers.iter().cloned().map(Ok).collect(),
        Err(no_answer) => vec![Err(no_answer.clone())],
    }
}

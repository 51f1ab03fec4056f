//! What a subject of one stage promises beyond the contract, held against answers that conform; `promises` does so for whole
//! layers.

use std::time::Instant;

use ndarray::{Array4, Axis, s};

use super::differences::{keys, same_bits};
use super::promises::{BROKEN_PROMISE, Outcome, is_turn, wrongly_listed};
use super::stages::Run;
use crate::algorithm::Mask;
use crate::cases::{Capabilities, Promise, ScoresCall, StageAnswer, StageCall, Takes};
use crate::runner::shrink::stages::{shrink_stage, with_one_entry, with_one_query};
use crate::subjects::{Subject, ask_stage};

/// Those that a stage can keep or break.
pub(super) fn of_stages(capabilities: &Capabilities) -> Vec<Promise> {
    let of_selections = [Promise::TiesLowest, Promise::TiesHighest, Promise::Ascending, Promise::Padded];
    let takes_scores = capabilities.stages.takes == Takes::Scores;
    let of_all = [Promise::Repeatable, Promise::BatchInvariant, Promise::SliceInvariant];
    of_selections.into_iter().filter(|_| takes_scores).chain(of_all).collect()
}

impl Run<'_> {
    /// Holds a conforming answer against promises, where it is their turn.
    pub(super) fn check_promises(&mut self, name: &str, call: &StageCall, answer: &StageAnswer) {
        let selected = self.subject.selected().cloned();
        for promise in of_stages(&self.capabilities) {
            let listed = matches!(promise, Promise::Ascending | Promise::Padded);
            if listed && selected.is_none() && !self.capabilities.promises(promise) {
                continue;
            }
            if !listed && !is_turn(promise, self.report.calls, &self.capabilities) {
                continue;
            }
            let outcome = outcome(promise, self.subject, &self.capabilities, call, answer, selected.as_ref());
            if let Some(kept) = self.report.promises.get_mut(promise.name()) {
                kept.held += outcome.held;
                kept.of += outcome.of;
            }
            if let Some(broken) = outcome.broken.filter(|_| self.capabilities.promises(promise)) {
                let thinking = Instant::now();
                self.broken(promise, name, (call, answer), broken.line);
                self.thinking += thinking.elapsed();
            }
        }
    }

    /// Adds a finding, or counts another question that shows it.
    fn broken(
        &mut self,
        promise: Promise,
        name: &str,
        (call, answer): (&StageCall, &StageAnswer),
        line: String,
    ) {
        let prefix = format!("Broken promise: {}", promise.name());
        if let Some(finding) =
            self.report.findings.iter_mut().find(|finding| finding.sentence.starts_with(&prefix))
        {
            finding.sequences += 1;
            return;
        }
        let number = self.report.findings.len() + 1;
        let limits = self.limits();
        let (subject, capabilities) = (&mut *self.subject, &self.capabilities);
        let mut again = |candidate: &StageCall| {
            let answer = ask_stage(subject, candidate);
            let selected = subject.selected().cloned();
            let broken = answer.as_ref().ok().and_then(|answer| {
                outcome(promise, subject, capabilities, candidate, answer, selected.as_ref()).broken
            });
            (answer, broken.map(|broken| broken.line))
        };
        let shrunk =
            shrink_stage(call.clone(), limits, capabilities, &mut |candidate| again(candidate).1.is_some());
        let (call, answer, line) = match again(&shrunk.call) {
            (answer, Some(line)) => (shrunk.call, answer, line),
            (_, None) => (call.clone(), Ok(answer.clone()), line),
        };
        let mut finding = self.finding(name, call, answer, BROKEN_PROMISE);
        finding.kind = BROKEN_PROMISE;
        finding.explanations = vec![format!("{} is promised: {line}", promise.name())];
        finding.sentence = format!("{prefix} is promised, and these answers do not keep it.");
        (finding.tries, finding.shrinking_seconds, finding.shrunk) =
            (shrunk.tries, shrunk.seconds, shrunk.finished);
        self.has_shrunk(number, finding);
    }
}

/// How often a promise held in one answer, and where it was broken first.
fn outcome(
    promise: Promise,
    subject: &mut dyn Subject,
    capabilities: &Capabilities,
    call: &StageCall,
    answer: &StageAnswer,
    selected: Option<&Array4<i32>>,
) -> Outcome {
    let mut outcome = Outcome::default();
    match (promise, call, answer) {
        (
            Promise::TiesLowest | Promise::TiesHighest,
            StageCall::Scores(call),
            StageAnswer::Selected(mask),
        ) => {
            ties(promise, call, mask, &mut outcome);
        }
        (Promise::Ascending | Promise::Padded, _, StageAnswer::Selected(mask)) => {
            outcome.add(0, wrongly_listed(promise, selected, mask, None));
        }
        (Promise::Repeatable, ..) => {
            outcome.add(0, compared(subject, call, answer, None));
        }
        (Promise::BatchInvariant, ..) if call.dims().batch > 1 => {
            let place = call.dims().batch - 1;
            if let Some(part) = with_one_entry(call, place).filter(|part| capabilities.offers_stage(part)) {
                outcome.add(0, compared(subject, &part, answer, Some((Axis(0), place))));
            }
        }
        (Promise::SliceInvariant, ..) if call.dims().queries > 1 => {
            let place = call.dims().queries - 1;
            if let Some(part) = with_one_query(call, place).filter(|part| capabilities.offers_stage(part)) {
                outcome.add(0, compared(subject, &part, answer, Some((Axis(2), place))));
            }
        }
        _ => {}
    }
    outcome
}

/// Rows of which some keys with the H-th largest score are selected and some are not; 0 and −0 are the same score.
fn ties(promise: Promise, call: &ScoresCall, mask: &Mask, outcome: &mut Outcome) {
    for row @ (b, head, i) in call.dims().rows() {
        let scores = call.scores().slice(s![b, head, i, ..]);
        let chosen = |key: usize| mask.attends(b, head, i, key);
        let lowest = (0..scores.len()).filter(|&key| chosen(key)).map(|key| scores[key]).reduce(f32::min);
        let Some(lowest) = lowest else { continue };
        let (selected, left_out): (Vec<_>, Vec<_>) =
            (0..scores.len()).filter(|&key| scores[key] == lowest).partition(|&key| chosen(key));
        let (Some(&first), Some(&last)) = (selected.first(), selected.last()) else { continue };
        let (Some(&first_out), Some(&last_out)) = (left_out.first(), left_out.last()) else { continue };
        let keeps = match promise {
            Promise::TiesHighest => last_out < first,
            _ => first_out > last,
        };
        let line = || {
            let (selected, left_out) = (few(&selected), few(&left_out));
            let (batch, head, query) = row;
            format!(
                "batch {batch}, head {head}, query {query}: of keys that tie {selected} are selected and {left_out} are not"
            )
        };
        outcome.add(0, (!keeps).then(line));
    }
}

/// The first few keys.
fn few(keys: &[usize]) -> String {
    const MOST: usize = 16;
    match keys.get(..MOST) {
        Some(first) if keys.len() > MOST => format!("{first:?} and {} more", keys.len() - MOST),
        _ => format!("{keys:?}"),
    }
}

/// How the answer to `part` differs from what was answered before: to all of it, or at one place along an axis.
fn compared(
    subject: &mut dyn Subject,
    part: &StageCall,
    answer: &StageAnswer,
    place: Option<(Axis, usize)>,
) -> Option<String> {
    let how = if place.is_some() { "alone" } else { "asked again" };
    let again = match ask_stage(subject, part) {
        Ok(again) => again,
        Err(no_answer) => return Some(format!("{how}: {no_answer}")),
    };
    let at = |tensor: &Array4<f32>| match place {
        Some((axis, place)) => {
            let mut one = tensor.clone();
            one.collapse_axis(axis, place);
            one
        }
        None => tensor.clone(),
    };
    match (answer, &again) {
        (StageAnswer::Selected(mask), StageAnswer::Selected(again)) => {
            let (one, other) = (at(mask.weights()), again.weights());
            let row = part.dims().rows().find(|&(b, head, i)| {
                !same_bits(one.slice(s![b, head, i, ..]), other.slice(s![b, head, i, ..]))
            })?;
            let whole = Mask::from_weights(one, &part.dims()).ok()?;
            let (b, head, i) = row;
            let (selected, other) = (few(&keys(&whole, row)), few(&keys(again, row)));
            Some(format!("batch {b}, head {head}, query {i} of it: selects {selected}, {how} {other}"))
        }
        (StageAnswer::Attended(one), StageAnswer::Attended(again)) => {
            let lse = |lse: &ndarray::Array3<f32>| lse.clone().insert_axis(Axis(3));
            let pairs = [
                ("output", one.output.clone(), again.output.clone()),
                ("lse", one.lse.as_ref().map(lse), again.lse.as_ref().map(lse)),
            ];
            pairs.into_iter().find_map(|(name, one, again)| {
                let (one, again) = (at(&one?), again?);
                let (index, x) =
                    one.indexed_iter().find(|(index, x)| x.to_bits() != again[*index].to_bits())?;
                Some(format!(
                    "{name}{:?} of it is {x:?}, {how} {:?}",
                    <[usize; 4]>::from(index),
                    again[index]
                ))
            })
        }
        _ => None,
    }
}

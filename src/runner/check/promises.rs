//! What a subject promises beyond the contract is checked, and counted for those who do not promise it: on fewer sequences,
//! and never as a finding.

use std::collections::BTreeMap;

use ndarray::{Array4, ArrayView1};
use serde::{Deserialize, Serialize};

use super::differences::{keys, same, same_bits};
use super::events::Event;
use super::report::Finding;
use super::run::Run;
use super::ties::{Ties, ties};
use crate::algorithm::{Dims, HeavySize, Mask};
use crate::cases::{Answer, Call, Capabilities, Feature, Observation, Promise, RoundingModel, Sequence};
use crate::runner::shrink::reductions::{with_more_padding, with_one_entry, with_one_query};
use crate::runner::shrink::{Limits, shrink};
use crate::subjects::{Subject, ask};

/// The kind of finding for a promise that was not kept.
pub(super) const BROKEN_PROMISE: &str = "broken promise";

/// One sequence in this many is held against a promise.
const PROMISED: usize = 2;

/// One in this many is observed where nothing is promised and observing takes no further questions.
const OBSERVED: usize = 16;
/// The same where observing takes further questions.
const OBSERVED_BY_ASKING: usize = 64;

/// The most tries of shrinking.
const MOST_TRIES: usize = 400;

/// How often a property that may be promised held.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Whether it is promised.
    pub promised: bool,
    /// How often it held.
    pub held: usize,
    /// How often it could be seen whether it held.
    pub of: usize,
}

/// Where a promise does not hold.
#[derive(Debug, Clone)]
pub(super) struct Broken {
    call: usize,
    pub(super) line: String,
}

/// How often a promise held in one sequence, out of how many times, and where it was first broken.
#[derive(Debug, Clone, Default)]
pub(super) struct Outcome {
    pub(super) held: usize,
    pub(super) of: usize,
    pub(super) broken: Option<Broken>,
}

impl Outcome {
    pub(super) fn add(&mut self, call: usize, broken: Option<String>) {
        self.of += 1;
        self.held += usize::from(broken.is_none());
        self.broken = self.broken.take().or(broken.map(|line| Broken { call, line }));
    }
}

/// What is promised of these, with nothing counted yet.
pub(super) fn nothing_counted(
    promises: impl IntoIterator<Item = Promise>,
    capabilities: &Capabilities,
) -> BTreeMap<&'static str, Kept> {
    let counted = |promise: Promise| {
        (promise.name(), Kept { promised: capabilities.promises(promise), ..Kept::default() })
    };
    let shown = |promise: &Promise| *promise != Promise::CapacityInvariant || capabilities.ragged;
    promises.into_iter().filter(shown).map(counted).collect()
}

/// Those that are looked at in turn; what is said of `selected` and of repeats shows without.
const LOOKED_AT: [Promise; 5] = [
    Promise::TiesLowest,
    Promise::TiesHighest,
    Promise::BatchInvariant,
    Promise::SliceInvariant,
    Promise::CapacityInvariant,
];

/// Whether a promise is looked at after so many questions: more often where it is made.
pub(super) fn is_turn(promise: Promise, asked: usize, capabilities: &Capabilities) -> bool {
    let by_asking = !matches!(promise, Promise::TiesLowest | Promise::TiesHighest);
    let every = match (capabilities.promises(promise), by_asking) {
        (true, _) => PROMISED,
        // It would take calls of other shapes.
        (false, true) if capabilities.shapes.is_some() => return false,
        (false, true) => OBSERVED_BY_ASKING,
        (false, false) => OBSERVED,
    };
    asked % every == every / 2
}

impl Run<'_> {
    /// Counts how often a property that may be promised held.
    pub(super) fn observe(&mut self, promise: Promise, held: usize, of: usize) {
        if let Some(kept) = self.report.promises.get_mut(promise.name()) {
            kept.held += held;
            kept.of += of;
        }
    }

    /// Whether a promise is looked at now.
    pub(super) fn is_turn(&self, promise: Promise) -> bool {
        is_turn(promise, self.asked, &self.capabilities)
    }

    /// Whether any promise is looked at now, apart from those about `selected`.
    pub(super) fn is_promise_checked(&self) -> bool {
        LOOKED_AT.into_iter().any(|promise| self.is_turn(promise))
    }

    /// Holds the tensor `selected` of the last answer against what is promised of it.
    pub(super) fn check_selected(&mut self, observation: &Observation, selected: Option<Array4<i32>>) {
        let index = observation.sequence.calls.len() - 1;
        let Some(Ok(answer)) = observation.answers.last() else { return };
        for promise in [Promise::Ascending, Promise::Padded] {
            let promised = self.capabilities.promises(promise);
            if selected.is_none() && !promised {
                continue;
            }
            let before = observation.sequence.instance.before(&observation.sequence.calls[index]).ok();
            let mut outcome = Outcome::default();
            outcome.add(index, wrongly_listed(promise, selected.as_ref(), &answer.mask, before.as_ref()));
            self.count(promise, observation, outcome);
        }
    }

    /// Holds a conforming observation against promises, where it is their turn.
    pub(super) fn check_promises(&mut self, observation: &Observation) {
        let model = self.report.model;
        for promise in LOOKED_AT {
            if self.is_turn(promise) {
                let outcome = outcome(promise, self.subject, &self.capabilities, observation, model);
                self.count(promise, observation, outcome);
            }
        }
    }

    fn count(&mut self, promise: Promise, observation: &Observation, outcome: Outcome) {
        self.observe(promise, outcome.held, outcome.of);
        if let Some(broken) = outcome.broken.filter(|_| self.capabilities.promises(promise)) {
            self.think(|run| run.broken(promise, observation, broken));
        }
    }

    /// Adds a finding, or counts another sequence that shows it.
    fn broken(&mut self, promise: Promise, observation: &Observation, broken: Broken) {
        let prefix = format!("Broken promise: {}", promise.name());
        if let Some(finding) = self.apart.iter_mut().find(|finding| finding.sentence.starts_with(&prefix)) {
            finding.sequences += 1;
            return;
        }
        let number = self.announce(observation, BROKEN_PROMISE);
        let limits = self.limits();
        let (model, capabilities) = (self.report.model, &self.capabilities);
        let limits = Limits { tries: MOST_TRIES.min(limits.tries), ..limits };
        let subject = &mut *self.subject;
        let mut again = |candidate: &Sequence| {
            let observation = ask(subject, candidate);
            let selected = subject.selected().cloned();
            let broken = asked_again(promise, subject, capabilities, &observation, selected, model);
            (observation, broken)
        };
        let sequence = observation.sequence.clone();
        let shrunk = shrink(sequence, limits, capabilities, &mut |candidate| again(candidate).1.is_some());
        let (observation, broken) = match again(&shrunk.sequence) {
            (smaller, Some(broken)) => (smaller, broken),
            (_, None) => (observation.clone(), broken),
        };
        let mut finding = Finding::new(observation, self.asked, Vec::new(), model);
        finding.kind = BROKEN_PROMISE;
        finding.call = broken.call;
        finding.explanations = vec![format!("{} is promised: {}", promise.name(), broken.line)];
        let once_more = ask(self.subject, &finding.observation.sequence);
        if !same(&finding.observation.answers, &once_more.answers) {
            finding.explanations.push("the same sequence, asked again, is answered differently, too".into());
        }
        finding.sentence = format!("{prefix} is promised, and these answers do not keep it.");
        (finding.tries, finding.shrinking_seconds, finding.shrunk) =
            (shrunk.tries, shrunk.seconds, shrunk.finished);
        self.has_shrunk(shrunk.seconds);
        (self.watch)(Event::Shrunk(number, &finding));
        self.apart.push(finding);
    }
}

/// Where a promise is broken in an observation that was just made.
fn asked_again(
    promise: Promise,
    subject: &mut dyn Subject,
    capabilities: &Capabilities,
    observation: &Observation,
    selected: Option<Array4<i32>>,
    model: RoundingModel,
) -> Option<Broken> {
    if !matches!(promise, Promise::Ascending | Promise::Padded) {
        return outcome(promise, subject, capabilities, observation, model).broken;
    }
    let call = observation.sequence.calls.len() - 1;
    let Some(Ok(answer)) = observation.answers.last() else { return None };
    let before = observation.sequence.instance.before(&observation.sequence.calls[call]).ok();
    let line = wrongly_listed(promise, selected.as_ref(), &answer.mask, before.as_ref())?;
    Some(Broken { call, line })
}

fn outcome(
    promise: Promise,
    subject: &mut dyn Subject,
    capabilities: &Capabilities,
    observation: &Observation,
    model: RoundingModel,
) -> Outcome {
    match promise {
        Promise::TiesLowest | Promise::TiesHighest => tied(promise, observation, model),
        Promise::BatchInvariant => alone(subject, capabilities, observation),
        Promise::SliceInvariant => sliced(subject, capabilities, observation),
        Promise::CapacityInvariant => roomier(subject, capabilities, observation),
        Promise::Repeatable | Promise::Ascending | Promise::Padded => Outcome::default(),
    }
}

fn answered(observation: &Observation) -> impl Iterator<Item = (usize, &Call, &Answer)> {
    let calls = observation.sequence.calls.iter().zip(&observation.answers).enumerate();
    calls.filter_map(|(index, (call, answer))| Some((index, call, answer.as_ref().ok()?)))
}

fn tied(promise: Promise, observation: &Observation, model: RoundingModel) -> Outcome {
    let mut outcome = Outcome::default();
    for (index, call, answer) in answered(observation) {
        for Ties { row, selected, left_out } in ties(&observation.sequence.instance, call, answer, model) {
            let keeps = selected.iter().all(|&selected| match promise {
                Promise::TiesHighest => left_out.iter().all(|&other| other < selected),
                _ => left_out.iter().all(|&other| other > selected),
            });
            let (batch, head, query) = row;
            let line = || {
                format!(
                    "batch {batch}, head {head}, query {query}: of keys that tie {selected:?} are selected and \
                     {left_out:?} are not"
                )
            };
            outcome.add(index, (!keeps).then(line));
        }
    }
    outcome
}

/// What is wrong with `selected` as it was sent.
pub(super) fn wrongly_listed(
    promise: Promise,
    selected: Option<&Array4<i32>>,
    mask: &Mask,
    before: Option<&Mask>,
) -> Option<String> {
    let Some(selected) = selected else { return Some("the answer holds no selected".into()) };
    let (b, h, m, _) = selected.dim();
    ndarray::indices((b, h, m)).into_iter().find_map(|row @ (batch, head, i)| {
        let listed = selected.slice(ndarray::s![batch, head, i, ..]);
        let place = format!("batch {batch}, head {head}, query {i}: selected is {:?}", listed.to_vec());
        let keys: Vec<i32> = listed.iter().copied().filter(|&key| key >= 0).collect();
        let attended = keys_attended(mask, row);
        let added = attended - before.map_or(0, |before| keys_attended(before, row));
        match promise {
            Promise::Ascending => (!keys.is_sorted()).then(|| format!("{place}, not ascending")),
            _ if !listed.iter().skip(keys.len()).all(|&key| key < 0) => {
                Some(format!("{place}, with -1 before a key"))
            }
            _ => (keys.len() != added && keys.len() != attended)
                .then(|| format!("{place}, {} keys, expected the {added} selected", keys.len())),
        }
    })
}

fn keys_attended(mask: &Mask, row: crate::algorithm::Row) -> usize {
    mask.row(row).count()
}

/// A row of an answer: weights and output.
struct AnsweredRow<'a> {
    weights: ArrayView1<'a, f32>,
    output: Option<ArrayView1<'a, f32>>,
}

fn row_of(answer: &Answer, row @ (b, head, i): crate::algorithm::Row) -> AnsweredRow<'_> {
    let output = answer.output.as_ref().map(|output| output.slice(ndarray::s![b, head, i, ..]));
    AnsweredRow { weights: answer.mask.row_weights(row), output }
}

/// How a row of one answer differs from a row of another; keys that only the first has must not be attended to.
fn difference(
    (whole, row): (&Answer, crate::algorithm::Row),
    (part, part_row): (&Answer, crate::algorithm::Row),
    how: &str,
) -> Option<String> {
    let (one, other) = (row_of(whole, row), row_of(part, part_row));
    let (batch, head, query) = row;
    let place = format!("batch {batch}, head {head}, query {query}");
    let n = other.weights.len();
    let more = one.weights.iter().skip(n).any(|&weight| weight != 0.0);
    if more || !same_bits(one.weights.iter().take(n), other.weights) {
        let (one, other) = (keys(&whole.mask, row), keys(&part.mask, part_row));
        return Some(format!("{place}: attends to keys {one:?}, {how} to {other:?}"));
    }
    let (one, other) = (one.output?, other.output?);
    let c = (0..one.len()).find(|&c| one[c].to_bits() != other[c].to_bits())?;
    Some(format!("{place}: output {c} is {:?}, {how} {:?}", one[c], other[c]))
}

/// One batch entry asked without the others.
fn alone(subject: &mut dyn Subject, capabilities: &Capabilities, observation: &Observation) -> Outcome {
    let mut outcome = Outcome::default();
    let sequence = &observation.sequence;
    let batch = |pick: fn(usize, usize) -> usize, from| {
        sequence.calls.iter().map(|call| call.inputs.dims().batch).fold(from, pick)
    };
    let (fewest, most) = (batch(usize::min, usize::MAX), batch(usize::max, 0));
    if most < 2 {
        return outcome;
    }
    let entry = fewest - 1;
    let Some(single) = with_one_entry(sequence, entry).filter(|single| capabilities.offers_all(single))
    else {
        return outcome;
    };
    let alone = ask(subject, &single);
    for ((index, call, answer), part) in answered(observation).zip(matching(observation, &alone)) {
        let Some(part) = part else { continue };
        let rows = call.inputs.dims().rows().filter(|row| row.0 == entry);
        let broken = rows.map(|row| difference((answer, row), (part, (0, row.1, row.2)), "alone"));
        outcome.add(index, broken.flatten().next());
    }
    outcome
}

/// The answers to the calls that were answered in the first observation.
fn matching<'a>(first: &'a Observation, second: &'a Observation) -> impl Iterator<Item = Option<&'a Answer>> {
    let pairs = first.answers.iter().zip(&second.answers);
    pairs.filter(|(first, _)| first.is_ok()).map(|(_, second)| second.as_ref().ok())
}

/// Calls of entries of unequal lengths asked with more padding, the others as they were.
fn roomier(subject: &mut dyn Subject, capabilities: &Capabilities, observation: &Observation) -> Outcome {
    let mut outcome = Outcome::default();
    let sequence = &observation.sequence;
    let has_lengths = |call: &Call| call.inputs.lengths().is_some();
    let Some(longest) = sequence.calls.iter().filter(|call| has_lengths(call)).map(keys_of).max() else {
        return outcome;
    };
    // A domain may allow only multiples of a tile.
    let more = [1, 16, 64, 128, longest].into_iter();
    let candidates = more.filter_map(|more| with_more_padding(sequence, more));
    let Some(padded) = candidates.into_iter().find(|padded| capabilities.offers_all(padded)) else {
        return outcome;
    };
    let again = ask(subject, &padded);
    for ((index, call, answer), other) in answered(observation).zip(matching(observation, &again)) {
        let Some(other) = other.filter(|_| has_lengths(call)) else { continue };
        let rows = call.inputs.dims().rows();
        let broken = rows.map(|row| difference((other, row), (answer, row), "with less padding"));
        outcome.add(index, broken.flatten().next());
    }
    outcome
}

fn keys_of(call: &Call) -> usize {
    call.inputs.dims().keys
}

/// Whether m queries in one call must get what m calls get: nothing may depend on how many keys or queries a call has.
fn may_be_sliced(sequence: &Sequence, call: &Call) -> bool {
    let instance = &sequence.instance;
    matches!(instance.selection.heavy_size, HeavySize::Count(_))
        && !instance.selection.dense_fallback
        && instance.earlier_maskers.is_empty()
        && !instance.dense_layers.contains(&call.layer)
        && call.previous.is_none()
        && call.inputs.lengths().is_none()
        && call.inputs.dims().queries > 1
}

/// The last call of several queries asked one query at a time, after the calls before it.
fn sliced(subject: &mut dyn Subject, capabilities: &Capabilities, observation: &Observation) -> Outcome {
    let mut outcome = Outcome::default();
    let sequence = &observation.sequence;
    let several = answered(observation).filter(|(_, call, _)| may_be_sliced(sequence, call)).last();
    let Some((index, call, answer)) = several else { return outcome };
    let dims: Dims = call.inputs.dims();
    let Some(queries) = (0..dims.queries).map(|i| with_one_query(call, i)).collect::<Option<Vec<_>>>() else {
        return outcome;
    };
    let earlier = &sequence.calls[..index];
    let questions: Vec<Sequence> = if capabilities.offers(Feature::Sequences) {
        let calls = [earlier, queries.as_slice()].concat();
        vec![Sequence { calls, ..sequence.clone() }]
    } else if index == 0 {
        let single = |query: Call| Sequence { calls: vec![query], ..sequence.clone() };
        queries.into_iter().map(single).collect()
    } else {
        return outcome;
    };
    if !questions.iter().all(|question| capabilities.offers_all(question)) {
        return outcome;
    }
    let skipped = if capabilities.offers(Feature::Sequences) { index } else { 0 };
    let parts: Vec<_> =
        questions.iter().flat_map(|question| ask(subject, question).answers).skip(skipped).collect();
    let compared = dims.rows().filter_map(|row @ (b, head, i)| {
        let part = parts.get(i)?.as_ref().ok()?;
        difference((answer, row), (part, (b, head, 0)), "query by query")
    });
    let broken = compared.take(1).next();
    if broken.is_some() || parts.iter().all(Result::is_ok) {
        outcome.add(index, broken);
    }
    outcome
}

//! The answers that a relation must give, call by call: which conform, and whether the selection or the attention is wrong in
//! those that do not. That is the stage, told without a subject's help.

use std::borrow::Cow;

use super::fits::is_refused;
use crate::cases::{Call, Observation, RoundingModel};
use crate::diagnosis::Seen;
use crate::verdicts::Verdict;
use crate::verdicts::judge::judge_observation;
use crate::verdicts::ragged::beyond_is_empty;

/// One call and its answer. An entry of a batch of unequal lengths is a call alone, with the other calls as they were.
pub(super) struct Item<'a> {
    pub observation: Cow<'a, Observation>,
    pub index: usize,
    /// Whether labels, scores and mask conform.
    pub selection: bool,
    /// Whether output and log-sum-exp conform, by the mask that was answered.
    pub attention: bool,
    pub bytes: usize,
    /// Score and key of candidates that are missing, as the verdict tells them.
    pub missing: Vec<f64>,
    /// Where the entry stood in its batch.
    pub place: Option<Place>,
    /// Scores were given as the additive mask, and are compared as they are: nothing is rounded.
    pub exact: bool,
}

/// One entry of a batch of unequal lengths.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub lengths: Vec<usize>,
    pub entry: usize,
    /// Keys of the buffer: n of the whole call.
    pub keys: usize,
}

impl Place {
    /// The number of keys of the shortest entry.
    pub fn shortest(&self) -> usize {
        self.lengths.iter().copied().min().unwrap_or(0)
    }
}

/// Every call that was answered, the smallest first; `None` where an answer is of no use, or a refusal is wrong.
pub(super) fn items<'a>(seen: &[&'a Seen], model: RoundingModel) -> Option<Vec<Item<'a>>> {
    let mut items = Vec::new();
    for Seen { observation, conforms, .. } in seen {
        let verdicts = if *conforms { Vec::new() } else { judge_observation(observation, model) };
        for (index, call) in observation.sequence.calls.iter().enumerate() {
            if *conforms && is_refused(&observation.answers[index]) {
                continue;
            }
            if call.entries().is_some() {
                match verdicts.get(index) {
                    Some(Verdict::RefusedRightly) => {}
                    verdict => {
                        let conforms = verdict.is_none_or(Verdict::conforms);
                        items.extend(entries(observation, index, conforms, model)?);
                    }
                }
                continue;
            }
            items.extend(item(Cow::Borrowed(observation), index, verdicts.get(index))?);
        }
    }
    items.sort_by_key(|item| item.bytes);
    Some(items)
}

/// A call with the verdict on it, or without one where it conforms. The outer `None` says that the answer is of no use, the inner one
/// that it tells nothing.
fn item<'a>(
    observation: Cow<'a, Observation>,
    index: usize,
    verdict: Option<&Verdict>,
) -> Option<Option<Item<'a>>> {
    let bytes = Call::bytes(&observation.sequence.calls[index]);
    let mut item = Item {
        observation,
        index,
        selection: true,
        attention: true,
        bytes,
        missing: Vec::new(),
        place: None,
        exact: false,
    };
    match verdict {
        None => {}
        Some(Verdict::RefusedRightly) => return Some(None),
        Some(Verdict::Judged(judgement)) => {
            let output = judgement.output.iter().all(|output| output.divergences.is_empty());
            let lse = judgement.lse.iter().all(|lse| lse.divergences.is_empty());
            item.attention = output && lse;
            item.selection = judgement.selection_conforms();
            let divergences = judgement.mask.divergences.iter();
            item.missing = divergences.filter_map(|divergence| Some(divergence.evidence?.score)).collect();
        }
        Some(verdict) if verdict.conforms() => return Some(None),
        Some(_) => return None,
    }
    Some(Some(item))
}

/// The entries of a call, each alone; `None` where padding has a part in the answer, which no entry alone shows.
fn entries<'a>(
    observation: &Observation,
    index: usize,
    conforms: bool,
    model: RoundingModel,
) -> Option<Vec<Item<'a>>> {
    let call = &observation.sequence.calls[index];
    let (Ok(answer), Some(entries)) = (&observation.answers[index], call.entries()) else { return None };
    let dims = call.inputs.dims();
    let is_whole = answer.fits(&dims) && beyond_is_empty(call, &entries, answer);
    if !(conforms || is_whole) {
        return None;
    }
    let lengths: Vec<usize> = entries.iter().map(|entry| entry.keys).collect();
    let mut items = Vec::new();
    for entry in entries {
        let Some(call) = &entry.call else { continue };
        let mut alone = observation.clone();
        alone.sequence.calls[index] = call.clone();
        alone.answers[index] = Ok(entry.answer(answer));
        let verdicts = if conforms { Vec::new() } else { judge_observation(&alone, model) };
        let place = Place { lengths: lengths.clone(), entry: entry.batch, keys: dims.keys };
        let found = item(Cow::Owned(alone), index, verdicts.get(index))?;
        items.extend(found.map(|item| Item { place: Some(place), ..item }));
    }
    Some(items)
}

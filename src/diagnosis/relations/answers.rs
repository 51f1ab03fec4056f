//! The answers that a relation must give, call by call: which conform, and whether the selection or the attention is wrong in
//! those that do not. That is the stage, told without a subject's help.

use super::fits::is_refused;
use crate::cases::{Call, Observation, RoundingModel};
use crate::diagnosis::Seen;
use crate::verdicts::Verdict;
use crate::verdicts::judge::judge_observation;

/// One call and its answer.
pub(super) struct Item<'a> {
    pub observation: &'a Observation,
    pub index: usize,
    /// Whether labels, scores and mask conform.
    pub selection: bool,
    /// Whether output and log-sum-exp conform, by the mask that was answered.
    pub attention: bool,
    pub bytes: usize,
    /// Score and key of candidates that are missing, as the verdict tells them.
    pub missing: Vec<f64>,
}

/// Every call that was answered, the smallest first; `None` where an answer is of no use, or a refusal is wrong.
pub(super) fn items<'a>(seen: &[&'a Seen], model: RoundingModel) -> Option<Vec<Item<'a>>> {
    let mut items = Vec::new();
    for Seen { observation, conforms, .. } in seen {
        let calls = observation.sequence.calls.iter().zip(&observation.answers);
        let verdicts = if *conforms { Vec::new() } else { judge_observation(observation, model) };
        for (index, (call, answer)) in calls.enumerate() {
            // Calls of entries of unequal lengths are judged entry by entry; relations are not sought there.
            if *conforms && (call.entries().is_some() || is_refused(answer)) {
                continue;
            }
            let mut item = Item {
                observation,
                index,
                selection: true,
                attention: true,
                bytes: Call::bytes(call),
                missing: Vec::new(),
            };
            match verdicts.get(index) {
                None => {}
                Some(Verdict::RefusedRightly) => continue,
                Some(Verdict::Judged(judgement)) if call.entries().is_none() => {
                    let output = judgement.output.iter().all(|output| output.divergences.is_empty());
                    let lse = judgement.lse.iter().all(|lse| lse.divergences.is_empty());
                    item.attention = output && lse;
                    item.selection = judgement.selection_conforms();
                    let divergences = judgement.mask.divergences.iter();
                    item.missing =
                        divergences.filter_map(|divergence| Some(divergence.evidence?.score)).collect();
                }
                Some(verdict) if verdict.conforms() => continue,
                Some(_) => return None,
            }
            items.push(item);
        }
    }
    items.sort_by_key(|item| item.bytes);
    Some(items)
}

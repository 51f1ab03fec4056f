//! The same search for implementations of one stage. A question to a top-k becomes a call whose additive mask holds the scores, of
//! queries and keys that are zeros; one to a sparse attention a call whose mask was answered as it was given. Nothing but the stage
//! that was asked can be at fault, so only changes of that stage are tried.

use std::borrow::Cow;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use ndarray::{Array4, s};

use super::answers::{Item, Place};
use super::members::{self, acts_of, push};
use super::search::{Told, explain_items};
use super::{Acts, How, Member, Switch};
use crate::algorithm::{
    ChannelOrder, GroupFactor, HeadMode, HeavySize, InputParts, Inputs, LabelBits, Mask, Rules, Selection,
    Storage,
};
use crate::behaviours::Behaviour;
use crate::behaviours::changes::{OutputChange, Pads, RowChange};
use crate::cases::{
    Answer, Call, Instance, NoAnswer, Observation, RoundingModel, ScoresCall, SelectionCall, Sequence,
    StageAnswer, StageCall, Takes,
};
use crate::diagnosis::condition::features::Features;
use crate::verdicts::judge::MaskFault;
use crate::verdicts::lse::judge_lse;
use crate::verdicts::output::judge_output;
use crate::verdicts::topk::judge_top_k;

/// A question to one stage, with its answer.
#[derive(Debug, Clone)]
pub struct SeenStage {
    /// What was asked.
    pub call: StageCall,
    /// What was answered.
    pub answer: Result<StageAnswer, NoAnswer>,
    /// Whether that conforms.
    pub conforms: bool,
}

/// Looks for one relation that reproduces everything seen, within a time. `None` where nothing fails, or some answer is of no use.
pub fn explain_stages(seen: &[SeenStage], model: RoundingModel, time: Duration) -> Option<Told> {
    let takes = seen.first()?.call.takes();
    let mut items = Vec::new();
    for seen in seen {
        items.extend(items_of(seen, model)?);
    }
    items.sort_by_key(|item: &Item<'_>| item.bytes);
    let mut told =
        explain_items(&items, members_of(takes, &items), Behaviour::default(), model, (time, true))?;
    told.stage = if takes == Takes::Scores { "selection" } else { "attention" };
    Some(told)
}

/// The features of a question, by which a rule says which ones fail: H is n for an attention, which knows none.
pub fn features(name: &str, call: &StageCall) -> Option<Features> {
    let (inputs, heavy_size) = match call {
        StageCall::Scores(call) => {
            let (.., queries, keys) = call.scores().dim();
            let first = call.scores().slice(s![.., .., ..keys.min(queries), ..]).to_owned();
            (of_scores(first)?, call.heavy_size().get())
        }
        StageCall::Selection(call) => (Inputs::clone(&call.inputs), call.inputs.dims().keys),
    };
    let lengths = call.lengths().cloned();
    let inputs = inputs.with_lengths(lengths).ok()?;
    let mut sequence = sequence_of(Arc::new(inputs), heavy_size)?;
    sequence.name = name.into();
    Some(Features::of(&sequence, 0))
}

/// What is tried for a stage.
fn members_of(takes: Takes, items: &[Item<'_>]) -> Vec<Member> {
    let acts = if takes == Takes::Scores { Acts::Selection } else { Acts::Attention };
    let mut fitting: Vec<Member> = Vec::new();
    for member in members::all(items) {
        if takes == Takes::Selection && member.acts == Acts::Both {
            let queries = member.how.iter().find_map(|how| match how {
                How::Labels(change) => change.as_output(),
                _ => None,
            });
            if let Some(change) = queries {
                push(&mut fitting, acts, change.words(), How::Output(change));
                continue;
            }
        }
        if !member.how.iter().all(|how| suits(how, takes)) {
            continue;
        }
        let words = match member.how.as_slice() {
            [How::Output(OutputChange::PadsReadLast(pads))] => in_words(*pads),
            // The catalogue says it of places of H, which an attention does not know.
            [How::Switch(switch)] if reads_pads(switch) => continue,
            _ => member.words,
        };
        fitting.push(Member { words, acts, how: member.how });
    }
    fitting
}

fn reads_pads(switch: &Switch) -> bool {
    let mut behaviour = Behaviour::default();
    switch(&mut behaviour);
    matches!(behaviour.attention, Some(OutputChange::PadsReadLast(_)))
}

fn in_words(pads: Pads) -> String {
    match pads {
        Pads::Once => "a row that −1 fills up attends to the last key as well".into(),
        _ => "each −1 that fills up a row is read as the last key".into(),
    }
}

/// Whether a change is one of a stage alone.
fn suits(how: &How, takes: Takes) -> bool {
    match (how, takes) {
        (How::Row(change), Takes::Scores) => is_of_scores(*change),
        (How::Output(_), Takes::Selection) => true,
        (How::Switch(switch), _) => {
            let mut behaviour = Behaviour::default();
            switch(&mut behaviour);
            match takes {
                Takes::Scores => {
                    let Behaviour { rows, count, smallest, highest_of_ties, .. } = behaviour;
                    let only = Behaviour { rows, count, smallest, highest_of_ties, ..Behaviour::default() };
                    only == behaviour && rows.is_none_or(is_of_scores)
                }
                _ => {
                    let heads = Behaviour { kv_heads: behaviour.kv_heads, ..Behaviour::default() };
                    acts_of(&behaviour) == Acts::Attention || behaviour == heads
                }
            }
        }
        _ => false,
    }
}

/// Whether a change is one of a top-k, which knows no earlier mask, no head rule and no earlier call.
fn is_of_scores(change: RowChange) -> bool {
    let other = matches!(
        change,
        RowChange::EarlierOf(..)
            | RowChange::EarlierOfAnyHead
            | RowChange::EarlierOfAllParts
            | RowChange::AdditiveOnce { .. }
    );
    !other && !change.remembers()
}

/// A question whose entries, where they have lengths, are questions alone; `None` where the answer is of no use. A call has at most as
/// many queries as keys: of a question to a top-k with more the first are looked at.
fn items_of(seen: &SeenStage, model: RoundingModel) -> Option<Vec<Item<'static>>> {
    let SeenStage { call, answer, .. } = seen;
    let answer = answer.as_ref().ok()?;
    let (dims, lengths) = (call.dims(), call.lengths().map(|lengths| lengths.keys().to_vec()));
    let entries: Vec<(usize, usize)> = match &lengths {
        None => vec![(0, dims.keys)],
        Some(lengths) => lengths.iter().copied().enumerate().filter(|(_, keys)| *keys > 0).collect(),
    };
    let mut items = Vec::new();
    for (entry, keys) in entries {
        let place =
            lengths.as_ref().map(|lengths| Place { lengths: lengths.clone(), entry, keys: dims.keys });
        let own = match place {
            None => 0..dims.batch,
            Some(_) => entry..entry + 1,
        };
        let of_keys = |weights: &Array4<f32>| weights.slice(s![own.clone(), .., .., ..keys]).to_owned();
        let item = match (call, answer) {
            (StageCall::Scores(call), StageAnswer::Selected(mask)) => {
                let whole = own.start == 0 && own.end == dims.batch && keys == dims.keys;
                if !whole && is_beyond(mask, own.clone(), keys) {
                    return None;
                }
                let rows = |tensor: &Array4<f32>| {
                    of_keys(tensor).slice(s![.., .., ..keys.min(dims.queries), ..]).to_owned()
                };
                item_of_scores(call, rows(call.scores()), rows(mask.weights()))?
            }
            (StageCall::Selection(call), StageAnswer::Attended(answer)) => {
                let inputs = match place {
                    None => Inputs::clone(&call.inputs),
                    Some(_) => call.inputs.entry(entry, 0, keys),
                };
                let mask = Mask::from_weights(of_keys(call.mask.weights()), &inputs.dims()).ok()?;
                let mut own_answer = Answer::new(mask, None);
                own_answer.output =
                    answer.output.as_ref().map(|x| x.slice(s![own.clone(), .., .., ..]).to_owned());
                own_answer.lse = answer.lse.as_ref().map(|x| x.slice(s![own.clone(), .., ..]).to_owned());
                item_of_selection(call, inputs, own_answer, model)?
            }
            _ => return None,
        };
        items.push(Item { place, ..item });
    }
    Some(items)
}

/// Whether padding was selected.
fn is_beyond(mask: &Mask, own: std::ops::Range<usize>, keys: usize) -> bool {
    mask.weights().slice(s![own, .., .., keys..]).iter().any(|&weight| weight != 0.0)
}

fn item_of_scores(call: &ScoresCall, scores: Array4<f32>, weights: Array4<f32>) -> Option<Item<'static>> {
    let alone = ScoresCall::new(scores.clone(), call.storage(), call.heavy_size()).ok()?;
    let inputs = of_scores(scores)?;
    let mask = Mask::from_weights(weights, &inputs.dims()).ok()?;
    let verdict = judge_top_k(&alone, &mask);
    let missing = verdict.divergences.iter().filter_map(|divergence| match divergence.fault {
        MaskFault::MissesIn { key } => {
            let (b, head, i) = divergence.row;
            Some(f64::from(alone.scores()[[b, head, i, key]]))
        }
        _ => None,
    });
    let missing = missing.collect();
    let sequence = sequence_of(Arc::new(inputs), call.heavy_size().get())?;
    Some(item(sequence, Answer::new(mask, None), (verdict.wrong_rows == 0, true), missing))
}

fn item_of_selection(
    call: &SelectionCall,
    inputs: Inputs,
    answer: Answer,
    model: RoundingModel,
) -> Option<Item<'static>> {
    let output = answer.output.as_ref();
    let output = output.is_none_or(|x| judge_output(&inputs, &answer.mask, x, model).divergences.is_empty());
    let lse = answer.lse.as_ref();
    let lse = lse.is_none_or(|x| judge_lse(&inputs, &answer.mask, x, model).divergences.is_empty());
    // The places of a row are as many as the longest row of the question needs.
    let places = call.selected().dim().3;
    let sequence = sequence_of(Arc::new(inputs), places)?;
    Some(item(sequence, answer, (true, output && lse), Vec::new()))
}

fn item(
    sequence: Sequence,
    answer: Answer,
    (selection, attention): (bool, bool),
    missing: Vec<f64>,
) -> Item<'static> {
    let bytes = Call::bytes(&sequence.calls[0]);
    let observation = Observation { sequence, answers: vec![Ok(answer)], instance_refused: false };
    Item {
        observation: Cow::Owned(observation),
        index: 0,
        selection,
        attention,
        bytes,
        missing,
        place: None,
        exact: true,
    }
}

/// Zeros whose additive mask holds the scores. No mask holds +∞, for which the largest number stands; `None` where that is a score, too.
fn of_scores(mut scores: Array4<f32>) -> Option<Inputs> {
    let (b, h, m, n) = scores.dim();
    if scores.iter().any(|&score| score == f32::INFINITY) {
        if scores.iter().any(|&score| score == f32::MAX) {
            return None;
        }
        scores.mapv_inplace(|score| score.min(f32::MAX));
    }
    let zeros = |length: usize| Array4::zeros((b, h, length, 1));
    Inputs::new(InputParts {
        q: zeros(m),
        k: zeros(n),
        v: zeros(n),
        attention_mask: Some(scores),
        causal: false,
        storage: Storage::F32,
        scaling: None,
    })
    .ok()
}

/// One call without labels of fewer bits or channels: as far as it is ranked, by all channels.
fn sequence_of(inputs: Arc<Inputs>, heavy_size: usize) -> Option<Sequence> {
    let dims = inputs.dims();
    let selection = Selection {
        heavy_size: HeavySize::Count(NonZeroUsize::new(heavy_size)?),
        group_factor: GroupFactor::new(1).ok()?,
        label_bits: LabelBits::new(16).ok()?,
        heads: HeadMode::PerHead,
        dense_fallback: false,
        rules: Rules::default(),
    };
    let channels = ChannelOrder::new(vec![(0..dims.head_dim).collect()]).ok()?;
    let instance = Instance::of_layer(selection, channels, &dims);
    let call = Call { layer: 0, inputs, previous: None };
    Some(Sequence { name: "a question to one stage".into(), instance, calls: vec![call] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stage_has_changes_of_its_own() {
        for takes in [Takes::Scores, Takes::Selection] {
            let members = members_of(takes, &[]);
            assert!(members.len() > 40, "{takes:?}: {}", members.len());
        }
    }
}

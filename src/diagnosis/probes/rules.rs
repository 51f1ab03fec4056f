//! Every rule and head mode that is offered, on random tensors with head weights, channel weights and A; inputs that must be
//! refused; and the same question many times.

use std::sync::Arc;

use ndarray::Array3;

use super::draft::Draft;
use super::question::{Asking, Read, Shown};
use super::tell::{Measured, Told};
use super::tensors::Parts;
use crate::algorithm::{ChannelFile, ChannelOrder, GroupFactor, ScoreRule};
use crate::cases::{Feature, Instance};

const SEEDS: u64 = 8;

pub(super) fn ask(asking: &mut Asking) {
    let capabilities = asking.capabilities;
    for &rules in &capabilities.rules {
        for &mode in &capabilities.heads {
            for seed in 0..SEEDS {
                let odd = |bit: u32| seed >> bit & 1 == 1;
                let wanted = Draft {
                    rules,
                    mode,
                    batch: 1 + usize::from(odd(2)),
                    kv_heads: 2,
                    group: if odd(0) { 2 } else { 4 },
                    queries: if odd(1) { 3 } else { 1 },
                    causal: odd(1),
                    heavy: 2 + seed as usize % 3,
                    label_channels: 4,
                    group_factor: 2,
                    bits: if odd(0) { 4 } else { 16 },
                    ..asking.draft(12)
                };
                let Some(draft) = asking.fit(wanted) else { continue };
                let dims = draft.dims();
                let mut parts = draft.random_parts(1000 + seed);
                let (_, heads, _) = draft.additive_shape();
                if capabilities.offers(Feature::AttentionMask) && odd(2) {
                    let at = |entry, head, query, key| match (entry + 2 * head + 3 * query + key) % 5 {
                        0 => f32::NEG_INFINITY,
                        other => other as f32 / 4.0 - 0.5,
                    };
                    parts.additive = Some(draft.additive((1, heads, 1), at));
                }
                if rules.score == ScoreRule::Relu {
                    let words = draft.random(seed, 7, (dims.batch, dims.heads, dims.queries, 1));
                    let weights =
                        Array3::from_shape_fn((dims.batch, dims.heads, dims.queries), |(b, h, m)| {
                            words[(b, if heads == 1 { 0 } else { h }, m, 0)]
                        });
                    parts.head_weights = Some(weights);
                }
                let instance = draft.instance().and_then(|instance| weighted(instance, &draft, seed));
                let calls = draft.call(parts).map(|call| vec![call]);
                let read = Read::Keys { offset: 0, keys: draft.all_keys() };
                let rule = serde_json::json!(rules).to_string();
                let about = if rule == "{}" {
                    mode.name().to_owned()
                } else {
                    format!("{} with rules {rule}", mode.name())
                };
                asking.sequence((&about, &[("case", seed as usize)]), instance, calls, read);
            }
        }
    }
}

/// With channel weights, where the rules have them.
fn weighted(mut instance: Instance, draft: &Draft, seed: u64) -> Option<Instance> {
    if !draft.rules.channel_weights {
        return Some(instance);
    }
    let (rows, r) = (draft.row_count(), draft.label_channels);
    let numbers = draft.random(seed, 8, (1, 1, rows, r));
    let weights =
        (0..rows).map(|row| (0..r).map(|channel| numbers[(0, 0, row, channel)]).collect()).collect();
    let order = instance.channels(0).ok()?.clone().with_weights(weights).ok()?;
    let mut file = ChannelFile::default();
    file.insert(instance.channel_selection, 0, order);
    instance.channel_file = Arc::new(file);
    Some(instance)
}

pub(super) fn tell(measured: &[Measured]) -> Told {
    Told::or_examples(measured, || {
        let mut names: Vec<_> = measured.iter().map(|one| one.question.about.clone()).collect();
        names.dedup();
        names.join("; ")
    })
}

/// What must be refused, and as much an early out later.
pub(super) fn ask_refusals(asking: &mut Asking) {
    if !asking.need(asking.capabilities.offers(Feature::Refusals), "refusals") {
        return;
    }
    for full in [false, true] {
        if full && !asking.need(asking.capabilities.offers(Feature::Previous), "previous") {
            continue;
        }
        let Some(draft) =
            asking.fit(Draft { label_channels: 2, group_factor: 2, heavy: 2, ..asking.draft(5) })
        else {
            return;
        };
        let Some(instance) = draft.instance() else { return };
        let plain = |k: ndarray::Array4<f32>| {
            let previous = full.then(|| ndarray::Array4::ones(draft.dims().mask_shape()));
            draft.call(Parts { k: Some(k), previous, ..Parts::default() }).map(|call| vec![call])
        };
        let keys = || draft.scored_keys(|_, _, key| key as f32);
        let about = |what: &str| if full { format!("{what}, with P full") } else { what.to_owned() };
        let mut other = instance.clone();
        if let Ok(factor) = GroupFactor::new(draft.head_dim() as u64 - 1) {
            other.selection.group_factor = factor;
        }
        asking.sequence(
            (&about("G that does not divide d"), &[]),
            Some(other),
            plain(keys()),
            Read::Answered,
        );
        let short = vec![vec![0]; draft.row_count()];
        let other = ChannelOrder::new(short).ok().map(|order| with_order(&instance, order));
        asking.sequence((&about("channel rows shorter than r"), &[]), other, plain(keys()), Read::Answered);
        let beyond = vec![(draft.head_dim()..2 * draft.head_dim()).collect(); draft.row_count()];
        let other = ChannelOrder::new(beyond).ok().map(|order| with_order(&instance, order));
        asking.sequence((&about("channels beyond d"), &[]), other, plain(keys()), Read::Answered);
        if let Some(draft) = asking.fit(Draft { bits: 4, ..draft.clone() }) {
            let tiny = draft.keys_of(|_, _, _, channel| if channel == 0 { 1e-45 } else { 0.0 });
            asking.sequence(
                (&about("labels that leave the type"), &[]),
                draft.instance(),
                plain(tiny),
                Read::Answered,
            );
        }
        let forced =
            asking.capabilities.rules.iter().find(|rules| rules.forced.first + rules.forced.last > 1);
        if let Some(&rules) = forced {
            let mut other = instance.clone();
            other.selection.rules = rules;
            if let Ok(one) = crate::algorithm::HeavySize::count(1) {
                other.selection.heavy_size = one;
            }
            asking.sequence(
                (&about("more forced keys than H"), &[]),
                Some(other),
                plain(keys()),
                Read::Answered,
            );
        }
    }
}

fn with_order(instance: &Instance, order: ChannelOrder) -> Instance {
    let mut file = ChannelFile::default();
    file.insert(instance.channel_selection, 0, order);
    Instance { channel_file: Arc::new(file), ..instance.clone() }
}

pub(super) fn tell_refusals(measured: &[Measured]) -> Told {
    let answered = measured.iter().filter(|one| one.found.iter().any(|found| found.shows == Shown::Answered));
    let answered: Vec<_> = answered.map(|one| one.question.about.clone()).collect();
    let broken = measured.iter().any(|one| one.found.iter().any(|found| found.shows == Shown::Nothing));
    Told::Rule(match (answered.is_empty(), broken) {
        (false, _) => format!("answered: {}", answered.join("; ")),
        (true, true) => "no usable answer".into(),
        (true, false) => "all refused".into(),
    })
}

/// How often one question is asked.
const TIMES: usize = 60;

/// The same question many times.
pub(super) fn ask_again(asking: &mut Asking) {
    let wanted = Draft { batch: 2, kv_heads: 2, queries: 2, heavy: 4, label_channels: 4, ..asking.draft(13) };
    let Some(draft) = asking.fit(wanted) else { return };
    asking.call(("the same question", &[("n", 13)]), &draft, draft.random_parts(7), Read::Output);
    if let Some(question) = asking.questions.last_mut() {
        question.times = TIMES;
    }
}

pub(super) fn tell_again(measured: &[Measured]) -> Told {
    let asked: usize = measured.iter().map(|one| one.question.times).sum();
    Told::or_examples(measured, || format!("the same {asked} times"))
}

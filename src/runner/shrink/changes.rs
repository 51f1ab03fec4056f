//! The same sequence with one thing changed, so that a clause of a condition no longer holds: what is asked to test it. Sizes
//! shrink by leaving parts out and grow by repeating them. What cannot be changed alone is left to random sequences.

use ndarray::Array4;

use super::edge::{Place, indices};
use super::reductions::{
    selected, with_calls, with_channels, with_heads, with_inputs_of, with_instance, with_keys, with_parts,
    with_selected, without_lengths,
};
use crate::algorithm::{GroupFactor, HeadMode, HeavySize, LabelBits, Mask, Rules, Storage};
use crate::cases::{Call, Sequence};
use crate::diagnosis::condition::clause::{Clause, Comparison};
use crate::diagnosis::condition::features::{Choice, Features, Number, Trait};

/// Sequences that differ from this one in what a clause is about, so that it does not hold for the call of this index.
pub(in crate::runner) fn against(sequence: &Sequence, index: usize, clause: Clause) -> Vec<Sequence> {
    let features = Features::of(sequence, index);
    let number = |of: Number| features.number(of).map_or(0, i64::from);
    let with = |of: Number, values: Vec<i64>| -> Vec<Sequence> {
        let mut values: Vec<i64> = values.into_iter().filter(|&value| value != number(of)).collect();
        values.dedup();
        values.into_iter().flat_map(|value| with_number(sequence, index, of, number(of), value)).collect()
    };
    match clause {
        Clause::AtLeast(of, least) => {
            let least = i64::from(least);
            with(of, vec![least - 1, least / 2, 1])
        }
        Clause::AtMost(of, most) => {
            let most = i64::from(most);
            with(of, vec![most + 1, 2 * most, 4 * most])
        }
        Clause::Equal(of, value) => {
            let value = i64::from(value);
            with(of, vec![value - 1, value / 2, value + 1, 2 * value, 4 * value])
        }
        Clause::NotMultiple(of, tile) => {
            let (tile, now) = (i64::from(tile), number(of));
            with(of, vec![now / tile * tile, (now / tile + 1) * tile, 3 * tile])
        }
        Clause::Multiple(of, tile) => {
            let (tile, now) = (i64::from(tile), number(of));
            with(of, vec![now + 1, now - 1, now + tile / 2, now + tile + 1])
        }
        Clause::Compare(one, relation, other) => {
            let around = |value: i64| match relation {
                Comparison::Equal => vec![value - 1, value + 1],
                Comparison::Different => vec![value],
                _ => vec![value - 1, value, value + 1],
            };
            let mut changed = with(one, around(number(other)));
            changed.extend(with(other, around(number(one))));
            changed
        }
        Clause::Has(of, has) => with_trait(sequence, index, of, !has),
        Clause::Is(of, value) => (0..16)
            .filter(|other| *other != value)
            .flat_map(|other| with_choice(sequence, of, other))
            .collect(),
        Clause::IsNot(of, value) => with_choice(sequence, of, value).into_iter().collect(),
    }
}

/// With another number, in one or several ways.
fn with_number(sequence: &Sequence, index: usize, of: Number, now: i64, value: i64) -> Vec<Sequence> {
    let Ok(count) = usize::try_from(value) else { return Vec::new() };
    let call = &sequence.calls[index];
    let dims = call.inputs.dims();
    let repeated = |size: usize| -> Vec<usize> { (0..count).map(|i| i % size).collect() };
    let one = |changed: Option<Sequence>| changed.into_iter().collect();
    match of {
        Number::Keys | Number::Candidates | Number::Past => with_more_keys(sequence, value - now),
        Number::HeavySize => one(HeavySize::count(count)
            .ok()
            .map(|size| with_instance(sequence, |instance| instance.selection.heavy_size = size))),
        Number::LabelBits => one(LabelBits::new(count as u64)
            .ok()
            .map(|bits| with_instance(sequence, |instance| instance.selection.label_bits = bits))),
        Number::Batch => {
            let kept: Vec<Vec<usize>> = if count > 0 && count < dims.batch {
                vec![(0..count).collect(), (dims.batch - count..dims.batch).collect()]
            } else {
                vec![repeated(dims.batch)]
            };
            let of_entries = |kept: &Vec<usize>| {
                with_calls(sequence, |call| {
                    let fits = call.inputs.dims().batch == dims.batch && !kept.is_empty();
                    let axis = Some((0, fits.then_some(kept.as_slice())?));
                    with_selected(call, axis, axis, axis)
                })
            };
            kept.iter().filter_map(of_entries).collect()
        }
        Number::Queries => {
            let kept: Vec<Vec<usize>> = if count > 0 && count < dims.queries {
                vec![(0..count).collect(), (dims.queries - count..dims.queries).collect()]
            } else {
                vec![repeated(dims.queries)]
            };
            let of_queries = |kept: &Vec<usize>| {
                let fits = !kept.is_empty() && kept.len() <= dims.keys;
                let axis = Some((2, fits.then_some(kept.as_slice())?));
                let mut changed = sequence.clone();
                changed.calls[index] = with_selected(call, axis, None, axis)?;
                Some(changed)
            };
            kept.iter().filter_map(of_queries).collect()
        }
        Number::GroupSize => {
            let group = dims.group_size();
            let members = |first: usize| -> Vec<usize> {
                let member = |i: usize| (first + i) % group;
                (0..dims.kv_heads)
                    .flat_map(|head| (0..count).map(move |i| head * group + member(i)))
                    .collect()
            };
            let firsts = if count < group { vec![0, group - count] } else { vec![0] };
            firsts.into_iter().filter_map(|first| with_heads(sequence, &members(first), None)).collect()
        }
        Number::KvHeads => {
            let group = dims.group_size();
            let kept =
                |first: usize| -> Vec<usize> { (0..count).map(|i| (first + i) % dims.kv_heads).collect() };
            let firsts = if count < dims.kv_heads { vec![0, dims.kv_heads - count] } else { vec![0] };
            let of_heads = |first: usize| {
                let kept = kept(first);
                let heads: Vec<usize> =
                    kept.iter().flat_map(|head| (0..group).map(move |i| head * group + i)).collect();
                with_heads(sequence, &heads, Some(&kept))
            };
            firsts.into_iter().filter_map(of_heads).collect()
        }
        Number::HeadDim if count < dims.head_dim => {
            let factor = sequence.instance.selection.group_factor.get();
            let Ok(order) = sequence.instance.channels(call.layer) else { return Vec::new() };
            let mut row: Vec<usize> =
                order.rows()[0].iter().copied().filter(|&c| c < dims.head_dim).collect();
            row.extend((0..dims.head_dim).filter(|c| !row.contains(c)).collect::<Vec<_>>());
            row.truncate(count);
            row.sort_unstable();
            let factors = [factor, 1].into_iter().filter(|factor| count.is_multiple_of(*factor));
            factors.filter_map(|factor| with_channels(sequence, &row, factor)).collect()
        }
        Number::LabelChannels if count > 0 && dims.head_dim.is_multiple_of(count) => {
            one(with_group_factor(sequence, dims.head_dim / count))
        }
        Number::GroupFactor => one(with_group_factor(sequence, count)),
        Number::ValueDim if count > 0 => {
            one(with_parts(sequence, |parts| parts.v = selected(&parts.v, 3, &repeated(dims.value_dim))))
        }
        Number::Earlier if count == 0 => {
            one(Some(Sequence { calls: vec![call.clone()], ..sequence.clone() }))
        }
        _ => Vec::new(),
    }
}

fn with_group_factor(sequence: &Sequence, factor: usize) -> Option<Sequence> {
    let factor = GroupFactor::new(factor as u64).ok()?;
    Some(with_instance(sequence, |instance| instance.selection.group_factor = factor))
}

/// With so many keys more or fewer in every call, at each place, with H as it is and moved along.
fn with_more_keys(sequence: &Sequence, by: i64) -> Vec<Sequence> {
    let by = by as isize;
    let places = [Place::Front, Place::Middle, Place::End];
    let resized = places.into_iter().filter_map(|place| with_keys(sequence, |keys| indices(keys, place, by)));
    let mut all: Vec<Sequence> = resized.collect();
    if let HeavySize::Count(count) = sequence.instance.selection.heavy_size
        && let Some(moved) = count.get().checked_add_signed(by).and_then(|count| HeavySize::count(count).ok())
    {
        let moved = all
            .iter()
            .map(|changed| with_instance(changed, |instance| instance.selection.heavy_size = moved));
        all.extend(moved.collect::<Vec<_>>());
    }
    all
}

/// With something that it lacks, or without it.
fn with_trait(sequence: &Sequence, index: usize, of: Trait, has: bool) -> Vec<Sequence> {
    let call = &sequence.calls[index];
    let instance = |change: &dyn Fn(&mut crate::cases::Instance)| Some(with_instance(sequence, change));
    let earlier = |kept: &dyn Fn(&Call) -> bool| {
        let before = sequence.calls[..index].iter().filter(|earlier| kept(earlier));
        let calls = before.chain([call]).cloned().collect();
        Some(Sequence { calls, ..sequence.clone() })
    };
    let changed = match (of, has) {
        (Trait::AttentionMask, true) => with_calls(sequence, |call| {
            let keys = call.inputs.dims().keys;
            with_inputs_of(call, |parts| parts.attention_mask = Some(Array4::zeros((1, 1, 1, keys))))
        }),
        (Trait::AttentionMask, false) => with_parts(sequence, |parts| parts.attention_mask = None),
        (Trait::Previous, has) => with_calls(sequence, |call| {
            let previous = has.then(|| Mask::empty(&call.inputs.dims()));
            Some(Call { previous, ..call.clone() })
        }),
        (Trait::Causal, causal) => with_parts(sequence, |parts| parts.causal = causal),
        (Trait::Scaling, has) => {
            let scaling = has.then(|| 1.0 / (call.inputs.dims().head_dim as f64).sqrt());
            with_parts(sequence, |parts| parts.scaling = scaling)
        }
        (Trait::Fraction, false) => {
            let keys = call.inputs.dims().keys;
            let count = HeavySize::count(sequence.instance.selection.heavy_size.resolve(keys)).ok();
            count.and_then(|count| instance(&|instance| instance.selection.heavy_size = count))
        }
        (Trait::DenseFallback, has) => instance(&|instance| instance.selection.dense_fallback = has),
        (Trait::DenseLayer, false) => instance(&|instance| instance.dense_layers.clear()),
        (Trait::DenseLayer, true) => instance(&|instance| instance.dense_layers.push(call.layer)),
        (Trait::EarlierMaskers, false) => instance(&|instance| instance.earlier_maskers.clear()),
        (Trait::Ragged, false) => with_calls(sequence, without_lengths),
        (Trait::OtherRules, false) => instance(&|instance| instance.selection.rules = Rules::default()),
        (Trait::AfterOtherLayer, false) => earlier(&|earlier| earlier.layer == call.layer),
        (Trait::AfterSameLayer, false) => earlier(&|earlier| earlier.layer != call.layer),
        _ => None,
    };
    changed.into_iter().collect()
}

/// With another of several.
fn with_choice(sequence: &Sequence, of: Choice, value: u8) -> Option<Sequence> {
    let index = usize::from(value);
    match of {
        Choice::Dtype => {
            let storage = *Storage::ALL.get(index)?;
            with_parts(sequence, |parts| parts.storage = storage)
        }
        Choice::Heads => {
            let heads = *HeadMode::EVERY.get(index)?;
            Some(with_instance(sequence, |instance| instance.selection.heads = heads))
        }
        Choice::Rows | Choice::Scores => None,
    }
}

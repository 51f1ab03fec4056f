//! What a reduction is: the sequence without some calls, batch entries, heads, queries, keys or channels, or with plainer
//! settings. `None` where nothing valid is left.

use std::sync::Arc;

use ndarray::{Array3, Array4, Axis, Slice, concatenate};

use crate::algorithm::{
    ChannelFile, ChannelKind, ChannelOrder, GroupFactor, HeadMode, HeavySize, InputParts, Inputs, Lengths,
    Mask, Padding, Rules, Storage,
};
use crate::cases::{Call, Sequence};

/// Settings a person need not read: each of these is tried once a round.
pub(super) const PLAINER: &[fn(&Sequence) -> Option<Sequence>] = &[
    |s| Some(with_instance(s, |instance| instance.dense_layers.clear())),
    |s| Some(with_instance(s, |instance| instance.earlier_maskers.clear())),
    |s| Some(with_instance(s, |instance| instance.selection.dense_fallback = false)),
    |s| Some(with_instance(s, |instance| instance.selection.heads = HeadMode::PerHead)),
    |s| Some(with_instance(s, |instance| instance.selection.rules = Rules::default())),
    |s| with_calls(s, |call| with_head_weights(call, None)),
    |s| with_calls(s, without_lengths),
    |s| with_calls(s, with_nan_in_padding),
    with_selected_kind_only,
    with_called_layers_only,
    |s| with_calls(s, |call| Some(Call { previous: None, ..call.clone() })),
    |s| with_parts(s, |parts| parts.attention_mask = None),
    |s| with_parts(s, |parts| parts.causal = false),
    |s| with_parts(s, |parts| parts.scaling = None),
    |s| with_parts(s, |parts| parts.storage = Storage::F32),
];

pub(super) fn with_instance(sequence: &Sequence, change: impl Fn(&mut crate::cases::Instance)) -> Sequence {
    let mut changed = sequence.clone();
    change(&mut changed.instance);
    changed
}

pub(super) fn with_calls(sequence: &Sequence, change: impl Fn(&Call) -> Option<Call>) -> Option<Sequence> {
    let calls = sequence.calls.iter().map(change).collect::<Option<Vec<_>>>()?;
    Some(Sequence { calls, ..sequence.clone() })
}

pub(in crate::runner) fn with_parts(
    sequence: &Sequence,
    change: impl Fn(&mut InputParts),
) -> Option<Sequence> {
    with_calls(sequence, |call| with_inputs_of(call, &change))
}

pub(super) fn with_inputs_of(call: &Call, change: impl Fn(&mut InputParts)) -> Option<Call> {
    let mut parts = call.inputs.parts().clone();
    change(&mut parts);
    with_inputs(call, parts)
}

pub(super) fn without_lengths(call: &Call) -> Option<Call> {
    with_lengths(call, None)
}

/// Head weights and lengths stay.
fn with_inputs(call: &Call, parts: InputParts) -> Option<Call> {
    let weights = call.inputs.head_weights().cloned();
    let inputs = Inputs::new(parts).ok()?.with_head_weights(weights).ok()?;
    let inputs = inputs.with_lengths(call.inputs.lengths().cloned()).ok()?;
    Some(Call { inputs: Arc::new(inputs), ..call.clone() })
}

fn with_lengths(call: &Call, lengths: Option<Lengths>) -> Option<Call> {
    let inputs = Inputs::clone(&call.inputs).with_lengths(lengths).ok()?;
    Some(Call { inputs: Arc::new(inputs), ..call.clone() })
}

fn with_nan_in_padding(call: &Call) -> Option<Call> {
    let nan = |lengths: &Lengths| Lengths::new(lengths.keys().to_vec(), Padding::Nan);
    with_lengths(call, call.inputs.lengths().map(nan))
}

/// One call with another length of one entry: all keys, or fewer of them.
pub(super) fn with_length(
    sequence: &Sequence,
    index: usize,
    entry: usize,
    length: usize,
) -> Option<Sequence> {
    let call = &sequence.calls[index];
    let lengths = call.inputs.lengths()?;
    let mut keys = lengths.keys().to_vec();
    *keys.get_mut(entry)? = length;
    let mut changed = sequence.clone();
    // P stays 0 in what is padding.
    changed.calls[index] = call.with_lengths(Lengths::new(keys, lengths.padding())).ok()?;
    Some(changed)
}

/// The lengths that are left where a call keeps some indices of an axis of k and v.
fn kept_lengths(lengths: &Lengths, axis: usize, kept: &[usize]) -> Lengths {
    let keys = match axis {
        0 => kept.iter().map(|&entry| lengths.keys()[entry]).collect(),
        2 => lengths.keys().iter().map(|length| kept.iter().filter(|key| *key < length).count()).collect(),
        _ => lengths.keys().to_vec(),
    };
    Lengths::new(keys, lengths.padding())
}

fn with_head_weights(call: &Call, weights: Option<Array3<f32>>) -> Option<Call> {
    let inputs = Inputs::clone(&call.inputs).with_head_weights(weights).ok()?;
    Some(Call { inputs: Arc::new(inputs), ..call.clone() })
}

/// A channel file with some of the entries, each changed.
pub(in crate::runner) fn with_file(
    sequence: &Sequence,
    change: impl Fn(ChannelKind, usize, &ChannelOrder) -> Option<ChannelOrder>,
) -> Option<Sequence> {
    let old = &sequence.instance.channel_file;
    let mut file = ChannelFile::default();
    for kind in old.kinds() {
        for (layer, order) in old.layers(kind) {
            if let Some(order) = change(kind, layer, order) {
                file.insert(kind, layer, order);
            }
        }
    }
    file.kinds().next()?;
    Some(with_instance(sequence, |instance| instance.channel_file = Arc::new(file.clone())))
}

fn with_selected_kind_only(sequence: &Sequence) -> Option<Sequence> {
    let selected = sequence.instance.channel_selection;
    with_file(sequence, |kind, _, order| (kind == selected).then(|| order.clone()))
}

fn with_called_layers_only(sequence: &Sequence) -> Option<Sequence> {
    let called = |layer| sequence.calls.iter().any(|call| call.layer == layer);
    with_file(sequence, |_, layer, order| called(layer).then(|| order.clone()))
}

pub(super) fn without_calls(sequence: &Sequence, start: usize, end: usize) -> Option<Sequence> {
    let mut calls = sequence.calls.clone();
    calls.drain(start..end);
    (!calls.is_empty()).then(|| Sequence { calls, ..sequence.clone() })
}

/// Some indices of one axis; a dimension of 1 that is broadcast stays.
fn select(tensor: &Array4<f32>, axis: usize, kept: &[usize], full: usize) -> Array4<f32> {
    if tensor.shape()[axis] == full { selected(tensor, axis, kept) } else { tensor.clone() }
}

/// Some indices of one axis, which may be repeated: copied by runs, as there are mostly few and long ones.
pub(super) fn selected(tensor: &Array4<f32>, axis: usize, kept: &[usize]) -> Array4<f32> {
    let mut shape = tensor.raw_dim();
    shape[axis] = kept.len();
    let mut chosen = Array4::zeros(shape);
    let mut at = 0;
    while let Some(&first) = kept.get(at) {
        let run = |step: usize| (at..kept.len()).take_while(|&i| kept[i] == first + step * (i - at)).count();
        let (length, repeated) = (run(1), run(0));
        let source = if repeated > length { first..first + 1 } else { first..first + length };
        let length = length.max(repeated);
        let mut place = chosen.slice_axis_mut(Axis(axis), Slice::from(at..at + length));
        place.assign(&tensor.slice_axis(Axis(axis), Slice::from(source)));
        at += length;
    }
    chosen
}

fn all_but(size: usize, start: usize, end: usize) -> Option<Vec<usize>> {
    let kept: Vec<usize> = (0..size).filter(|index| !(start..end).contains(index)).collect();
    (!kept.is_empty()).then_some(kept)
}

/// A call with some indices of an axis of its tensors: of q, of k and v, of A and P.
pub(super) fn with_selected(
    call: &Call,
    q: Option<(usize, &[usize])>,
    kv: Option<(usize, &[usize])>,
    masks: Option<(usize, &[usize])>,
) -> Option<Call> {
    let (b, h, m, n) = call.inputs.dims().mask_shape();
    let mut parts = call.inputs.parts().clone();
    if let Some((axis, kept)) = q {
        parts.q = selected(&parts.q, axis, kept);
    }
    if let Some((axis, kept)) = kv {
        parts.k = selected(&parts.k, axis, kept);
        parts.v = selected(&parts.v, axis, kept);
    }
    let mut previous = call.previous.clone();
    if let Some((axis, kept)) = masks {
        let full = [b, h, m, n][axis];
        parts.attention_mask = parts.attention_mask.map(|mask| select(&mask, axis, kept, full));
        let inputs = Inputs::new(parts.clone()).ok()?;
        if let Some(mask) = previous {
            let weights = selected(mask.weights(), axis, kept);
            previous = Some(Mask::from_weights(weights, &inputs.dims()).ok()?);
        }
    }
    // Head weights have the first three axes of q.
    let weights = call.inputs.head_weights().map(|weights| match q {
        Some((axis, kept)) => weights.select(Axis(axis), kept),
        None => weights.clone(),
    });
    let lengths = call.inputs.lengths().map(|lengths| match kv {
        Some((axis, kept)) => kept_lengths(lengths, axis, kept),
        None => lengths.clone(),
    });
    let inputs = Inputs::new(parts).ok()?.with_head_weights(weights).ok()?.with_lengths(lengths).ok()?;
    Some(Call { layer: call.layer, inputs: Arc::new(inputs), previous })
}

pub(super) fn without_batch(sequence: &Sequence, start: usize, end: usize) -> Option<Sequence> {
    with_calls(sequence, |call| {
        // Batches may differ in size: each call keeps some of its entries.
        let kept = all_but(call.inputs.dims().batch, start, end)?;
        let axis = Some((0, kept.as_slice()));
        with_selected(call, axis, axis, axis)
    })
}

/// One batch entry of each call.
pub(in crate::runner) fn with_one_entry(sequence: &Sequence, entry: usize) -> Option<Sequence> {
    with_calls(sequence, |call| {
        let kept = [entry].into_iter().filter(|&entry| entry < call.inputs.dims().batch);
        let kept: Vec<usize> = kept.collect();
        let axis = Some((0, (!kept.is_empty()).then_some(kept.as_slice())?));
        with_selected(call, axis, axis, axis)
    })
}

/// Calls of entries of unequal lengths with more padding; A adds nothing there.
pub(in crate::runner) fn with_more_padding(sequence: &Sequence, more: usize) -> Option<Sequence> {
    with_calls(sequence, |call| {
        let Some(lengths) = call.inputs.lengths() else { return Some(call.clone()) };
        let n = call.inputs.dims().keys;
        let padded = |tensor: &Array4<f32>, axis: usize| {
            let mut shape = tensor.raw_dim();
            shape[axis] = more;
            concatenate(Axis(axis), &[tensor.view(), Array4::zeros(shape).view()]).ok()
        };
        let mut parts = call.inputs.parts().clone();
        (parts.k, parts.v) = (padded(&parts.k, 2)?, padded(&parts.v, 2)?);
        if let Some(mask) = parts.attention_mask.take() {
            // Of one number for all keys there is nothing to add.
            let is_whole = mask.shape()[3] == n && n > 1;
            parts.attention_mask = Some(if is_whole { padded(&mask, 3)? } else { mask });
        }
        let weights = call.inputs.head_weights().cloned();
        let inputs = Inputs::new(parts).ok()?.with_head_weights(weights).ok()?;
        let inputs = inputs.with_lengths(Some(lengths.clone())).ok()?;
        let previous = match &call.previous {
            None => None,
            Some(mask) => Some(Mask::from_weights(padded(mask.weights(), 3)?, &inputs.dims()).ok()?),
        };
        Some(Call { layer: call.layer, inputs: Arc::new(inputs), previous })
    })
}

/// One query of a call, and where it is causal the keys up to its position.
pub(in crate::runner) fn with_one_query(call: &Call, i: usize) -> Option<Call> {
    let dims = call.inputs.dims();
    let query = Some((2, [i]));
    let query = query.as_ref().map(|(axis, kept)| (*axis, kept.as_slice()));
    let single = with_selected(call, query, None, query)?;
    if !call.inputs.parts().causal {
        return Some(single);
    }
    let keys: Vec<usize> = (0..=dims.position(i)).collect();
    with_selected(&single, None, Some((2, keys.as_slice())), Some((3, keys.as_slice())))
}

pub(super) fn without_kv_heads(sequence: &Sequence, start: usize, end: usize) -> Option<Sequence> {
    let dims = sequence.calls[0].inputs.dims();
    let kv_heads = all_but(dims.kv_heads, start, end)?;
    let heads: Vec<usize> = (0..dims.heads).filter(|&head| kv_heads.contains(&dims.kv_head(head))).collect();
    with_heads(sequence, &heads, Some(&kv_heads))
}

pub(super) fn without_group_members(sequence: &Sequence, start: usize, end: usize) -> Option<Sequence> {
    let dims = sequence.calls[0].inputs.dims();
    let members = all_but(dims.group_size(), start, end)?;
    let heads: Vec<usize> =
        (0..dims.heads).filter(|head| members.contains(&(head % dims.group_size()))).collect();
    with_heads(sequence, &heads, None)
}

/// Some heads, which may be repeated, and the KV heads that they read.
pub(super) fn with_heads(
    sequence: &Sequence,
    heads: &[usize],
    kv_heads: Option<&[usize]>,
) -> Option<Sequence> {
    let dims = sequence.calls[0].inputs.dims();
    let changed = with_calls(sequence, |call| {
        let heads = Some((1, heads));
        with_selected(call, heads, kv_heads.map(|kept| (1, kept)), heads)
    })?;
    with_file(&changed, |_, _, order| {
        Some(match (order.rows().len(), kv_heads) {
            (1, _) => order.clone(),
            (count, _) if count == dims.heads => order.of_rows(heads),
            (count, Some(kv_heads)) if count == dims.kv_heads => order.of_rows(kv_heads),
            _ => order.clone(),
        })
    })
}

pub(super) fn without_queries(
    sequence: &Sequence,
    index: usize,
    start: usize,
    end: usize,
) -> Option<Sequence> {
    let mut changed = sequence.clone();
    let call = &sequence.calls[index];
    let kept = all_but(call.inputs.dims().queries, start, end)?;
    changed.calls[index] = with_selected(call, Some((2, kept.as_slice())), None, Some((2, kept.as_slice())))?;
    Some(changed)
}

pub(super) fn without_keys(sequence: &Sequence, start: usize, end: usize) -> Option<Sequence> {
    with_keys(sequence, |keys| all_but(keys, start, end))
}

/// Without some queries of every call; a call keeps its queries where all of them would go.
pub(super) fn without_queries_of_all(sequence: &Sequence, start: usize, end: usize) -> Option<Sequence> {
    with_calls(sequence, |call| match all_but(call.inputs.dims().queries, start, end) {
        None => Some(call.clone()),
        Some(kept) => {
            let kept = Some((2, kept.as_slice()));
            with_selected(call, kept, None, kept)
        }
    })
}

/// The keys of each call at these places, which depend on how many it has; some may be repeated.
pub(super) fn with_keys(
    sequence: &Sequence,
    indices: impl Fn(usize) -> Option<Vec<usize>>,
) -> Option<Sequence> {
    with_calls(sequence, |call| {
        let dims = call.inputs.dims();
        let kept = indices(dims.keys)?;
        if kept.len() < dims.queries {
            return None;
        }
        with_selected(call, None, Some((2, kept.as_slice())), Some((3, kept.as_slice())))
    })
}

/// Without some keys, and with H lowered by as many.
pub(super) fn without_keys_and_heavy(sequence: &Sequence, start: usize, end: usize) -> Option<Sequence> {
    let HeavySize::Count(count) = sequence.instance.selection.heavy_size else {
        return None;
    };
    let size = HeavySize::count(count.get().checked_sub(end - start)?).ok()?;
    let mut changed = without_keys(sequence, start, end)?;
    changed.instance.selection.heavy_size = size;
    Some(changed)
}

/// Without some positions, keys and the queries at them.
pub(super) fn without_positions(sequence: &Sequence, start: usize, end: usize) -> Option<Sequence> {
    with_calls(sequence, |call| {
        let dims = call.inputs.dims();
        let keys = all_but(dims.keys, start, end)?;
        let queries: Vec<usize> =
            (0..dims.queries).filter(|&i| !(start..end).contains(&dims.position(i))).collect();
        if queries.is_empty() {
            return None;
        }
        let queries = queries.as_slice();
        let call = with_selected(call, Some((2, queries)), None, Some((2, queries)))?;
        with_selected(&call, None, Some((2, keys.as_slice())), Some((3, keys.as_slice())))
    })
}

pub(super) fn without_value_dims(sequence: &Sequence, start: usize, end: usize) -> Option<Sequence> {
    let kept = all_but(sequence.calls[0].inputs.dims().value_dim, start, end)?;
    with_parts(sequence, |parts| parts.v = selected(&parts.v, 3, &kept))
}

/// The sequence with some channels and another group factor. Where v has as many dimensions as q, it keeps as many.
pub(super) fn with_channels(sequence: &Sequence, kept: &[usize], group_factor: usize) -> Option<Sequence> {
    let dims = sequence.calls[0].inputs.dims();
    let new_index = |channel: usize| match kept.binary_search(&channel) {
        Ok(index) => Some(index),
        // A channel beyond d stays beyond d.
        Err(_) if channel >= dims.head_dim => Some(kept.len() + channel - dims.head_dim),
        Err(_) => None,
    };
    let changed = with_parts(sequence, |parts| {
        parts.q = selected(&parts.q, 3, kept);
        parts.k = selected(&parts.k, 3, kept);
        if dims.value_dim == dims.head_dim {
            parts.v = selected(&parts.v, 3, kept);
        }
    })?;
    let mut changed = with_file(&changed, |_, _, order| order.of_channels(new_index).ok())?;
    changed.instance.selection.group_factor = GroupFactor::new(group_factor as u64).ok()?;
    Some(changed)
}

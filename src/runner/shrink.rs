//! Makes a failing sequence small enough for a person: fewest calls, batch entries, heads, queries, keys, channels and
//! bits, the plainest settings, then values of 0, ±1 and small fractions. Works on the tensors themselves, so that it can
//! start from anything that fails. Every step keeps what failed failing, and none makes a sequence larger.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ndarray::{Array4, Axis};

use crate::algorithm::{
    ChannelFile, ChannelKind, ChannelOrder, GroupFactor, HeadMode, HeavySize, InputParts, Inputs, LabelBits,
    Mask, Storage,
};
use crate::cases::{Call, Sequence};

/// When to stop.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Wall-clock time.
    pub time: Duration,
    /// How often the failure may be tried.
    pub tries: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { time: Duration::from_secs(8), tries: 20_000 }
    }
}

/// The smallest sequence found.
#[derive(Debug, Clone)]
pub struct Shrunk {
    /// It still fails.
    pub sequence: Sequence,
    /// How often the failure was tried.
    pub tries: usize,
    /// False where the limits ended the search.
    pub finished: bool,
    /// Wall-clock time.
    pub seconds: f64,
}

/// Shrinks a sequence for which `fails` is true.
pub fn shrink(sequence: Sequence, limits: Limits, fails: &mut dyn FnMut(&Sequence) -> bool) -> Shrunk {
    let mut search = Search { current: sequence, limits, start: Instant::now(), tries: 0, fails };
    while search.round() && !search.exhausted() {}
    let finished = !search.exhausted();
    Shrunk {
        sequence: search.current,
        tries: search.tries,
        finished,
        seconds: search.start.elapsed().as_secs_f64(),
    }
}

struct Search<'a> {
    current: Sequence,
    limits: Limits,
    start: Instant,
    tries: usize,
    fails: &'a mut dyn FnMut(&Sequence) -> bool,
}

impl Search<'_> {
    /// All reductions once; whether any of them worked.
    fn round(&mut self) -> bool {
        let mut changed = self.drop_each(|s| s.calls.len(), without_calls);
        changed |= self.plainer_settings();
        changed |= self.drop_each(|s| s.calls[0].inputs.dims().batch, without_batch);
        changed |= self.drop_each(|s| s.calls[0].inputs.dims().kv_heads, without_kv_heads);
        changed |= self.drop_each(|s| s.calls[0].inputs.dims().group_size(), without_group_members);
        for call in 0..self.current.calls.len() {
            let queries = |s: &Sequence| s.calls[call].inputs.dims().queries;
            changed |= self.drop_each(queries, |s, start, end| without_queries(s, call, start, end));
        }
        let keys = |s: &Sequence| s.calls.iter().map(|call| call.inputs.dims().keys).max().unwrap_or(0);
        changed |= self.drop_each(keys, without_keys);
        changed |= self.drop_each(keys, without_keys_and_heavy);
        changed |= self.drop_each(keys, without_positions);
        changed |= self.fewer_channels();
        changed |= self.drop_each(|s| s.calls[0].inputs.dims().value_dim, without_value_dims);
        changed | self.plainer_values()
    }

    fn exhausted(&self) -> bool {
        self.tries >= self.limits.tries || self.start.elapsed() >= self.limits.time
    }

    /// Takes a candidate that fails and differs.
    fn accept(&mut self, candidate: Option<Sequence>) -> bool {
        self.take(candidate.filter(|candidate| *candidate != self.current))
    }

    /// Takes a candidate that fails. The caller knows that it is plainer, if only by the sign of a zero.
    fn take(&mut self, candidate: Option<Sequence>) -> bool {
        let Some(candidate) = candidate else {
            return false;
        };
        if self.exhausted() {
            return false;
        }
        self.tries += 1;
        let taken = (self.fails)(&candidate);
        if taken {
            self.current = candidate;
        }
        taken
    }

    /// Drops runs of `count` things, long runs first, then single ones.
    fn drop_each(
        &mut self,
        count: impl Fn(&Sequence) -> usize,
        without: impl Fn(&Sequence, usize, usize) -> Option<Sequence>,
    ) -> bool {
        let mut changed = false;
        let mut run = count(&self.current) / 2;
        while run > 0 {
            let mut start = 0;
            while start < count(&self.current) && count(&self.current) > 1 && !self.exhausted() {
                let end = (start + run).min(count(&self.current));
                let candidate = without(&self.current, start, end);
                if self.accept(candidate) {
                    changed = true;
                } else {
                    start += run;
                }
            }
            run /= 2;
        }
        changed
    }

    fn plainer_settings(&mut self) -> bool {
        let mut changed = false;
        for plainer in PLAINER {
            if self.exhausted() {
                return changed;
            }
            let candidate = plainer(&self.current);
            changed |= self.accept(candidate);
        }
        for index in (0..self.current.instance.earlier_maskers.len()).rev() {
            let mut candidate = self.current.clone();
            candidate.instance.earlier_maskers.remove(index);
            changed |= self.accept(Some(candidate));
        }
        for bits in [16, 1, 2, 3, 4, 8] {
            // 16 bits are none; below that fewer are plainer.
            let current = u64::from(self.current.instance.selection.label_bits);
            if current == 16 || bits >= current && bits != 16 {
                break;
            }
            let mut candidate = self.current.clone();
            candidate.instance.selection.label_bits = LabelBits::new(bits).unwrap_or(LabelBits::UNQUANTISED);
            changed |= self.accept(Some(candidate));
        }
        changed | self.smaller_heavy_size()
    }

    fn smaller_heavy_size(&mut self) -> bool {
        let keys = self.current.calls.iter().map(|call| call.inputs.dims().keys).max().unwrap_or(1);
        let current = self.current.instance.selection.heavy_size;
        let resolved = match current {
            HeavySize::Count(count) => count.get(),
            HeavySize::Fraction(_) => current.resolve(keys),
        };
        let is_fraction = matches!(current, HeavySize::Fraction(_));
        let counts = [1, 2, resolved / 2, resolved - 1];
        let counts = counts.into_iter().filter(|&count| count > 0 && (count < resolved || is_fraction));
        for count in counts.chain(is_fraction.then_some(resolved)) {
            let mut candidate = self.current.clone();
            let Ok(size) = HeavySize::count(count) else { continue };
            candidate.instance.selection.heavy_size = size;
            if self.accept(Some(candidate)) {
                return true;
            }
        }
        false
    }

    /// Smaller head dimensions: the leading channels of the first row, two channels of which one is a label, or all but one.
    fn fewer_channels(&mut self) -> bool {
        let d = self.current.calls[0].inputs.dims().head_dim;
        let factor = self.current.instance.selection.group_factor.get();
        let leading = self.leading_row(d);
        let mut candidates = Vec::new();
        for size in 1..d {
            for group_factor in 1..=factor {
                candidates.push((leading[..size].to_vec(), group_factor));
            }
        }
        if d > 2 && factor > 1 {
            let pairs = (0..d).flat_map(|a| (a + 1..d).map(move |b| (vec![a, b], 2)));
            candidates.extend(pairs);
        }
        for dropped in 0..d {
            let kept: Vec<usize> = (0..d).filter(|&c| c != dropped).collect();
            candidates.extend([factor, 1, 2].map(|group_factor| (kept.clone(), group_factor)));
        }
        candidates.extend((1..factor).map(|group_factor| ((0..d).collect(), group_factor)));
        for (mut kept, group_factor) in candidates {
            if self.exhausted() {
                return false;
            }
            if kept.is_empty() {
                continue;
            }
            kept.sort_unstable();
            let candidate = with_channels(&self.current, &kept, group_factor);
            if self.accept(candidate) {
                return true;
            }
        }
        false
    }

    /// All channels, those of the first row first.
    fn leading_row(&self, d: usize) -> Vec<usize> {
        let first = self.current.instance.channels(self.current.calls[0].layer);
        let mut row: Vec<usize> = first.map(|order| order.rows()[0].clone()).unwrap_or_default();
        row.retain(|&c| c < d);
        row.extend((0..d).filter(|c| !row.contains(c)).collect::<Vec<_>>());
        row
    }

    fn plainer_values(&mut self) -> bool {
        let mut changed = false;
        for call in 0..self.current.calls.len() {
            for tensor in [Tensor::Q, Tensor::K, Tensor::V, Tensor::Additive, Tensor::Previous] {
                changed |= self.plainer_tensor(call, tensor);
            }
        }
        changed
    }

    fn plainer_tensor(&mut self, call: usize, tensor: Tensor) -> bool {
        let mut changed = false;
        let whole: [fn(f32) -> f32; 5] =
            [|_| 0.0, |_| 1.0, |x| x.round(), |x| (2.0 * x).round() / 2.0, |x| (4.0 * x).round() / 4.0];
        for plainer in whole {
            if self.exhausted() {
                return changed;
            }
            let Some(values) = tensor.of(&self.current.calls[call]) else { return changed };
            let plain = values.mapv(|x| if rank(plainer(x)) < rank(x) { plainer(x) } else { x });
            if total(&plain) < total(&values) {
                let candidate = tensor.with(&self.current, call, plain);
                changed |= self.take(candidate);
            }
        }
        let Some(values) = tensor.of(&self.current.calls[call]) else { return changed };
        const LARGEST: usize = 512;
        if values.len() > LARGEST {
            return changed;
        }
        for (index, x) in values.indexed_iter() {
            let fractions = [2.0, 4.0, 8.0].map(|parts| (parts * x).round() / parts);
            let plainer = [0.0, 1.0, -1.0, x.round()].into_iter().chain(fractions);
            for plain in plainer.filter(|&plain| rank(plain) < rank(*x)) {
                let Some(mut values) = tensor.of(&self.current.calls[call]) else { break };
                values[index] = plain;
                let candidate = tensor.with(&self.current, call, values);
                if self.take(candidate) {
                    changed = true;
                    break;
                }
            }
        }
        changed
    }
}

/// How plain a number is: 0, 1, −1, whole numbers, fractions, the rest.
fn rank(x: f32) -> u32 {
    let size = x.abs();
    let whole = |x: f32| x.fract() == 0.0;
    let negative = u32::from(x.is_sign_negative());
    if size > 64.0 || !x.is_finite() {
        return 5000;
    }
    match size {
        0.0 => negative,
        _ if whole(size) => 2 + 2 * size as u32 + negative,
        _ if whole(2.0 * size) => 200 + (4.0 * size) as u32 + negative,
        _ if whole(4.0 * size) => 600 + (8.0 * size) as u32 + negative,
        _ if whole(8.0 * size) => 1500 + (16.0 * size) as u32 + negative,
        _ => 4000,
    }
}

fn total(values: &Array4<f32>) -> u64 {
    values.iter().map(|&x| u64::from(rank(x))).sum()
}

/// Settings a person need not read: each of these is tried once a round.
const PLAINER: &[fn(&Sequence) -> Option<Sequence>] = &[
    |s| Some(with_instance(s, |instance| instance.dense_layers.clear())),
    |s| Some(with_instance(s, |instance| instance.earlier_maskers.clear())),
    |s| Some(with_instance(s, |instance| instance.selection.dense_fallback = false)),
    |s| Some(with_instance(s, |instance| instance.selection.heads = HeadMode::PerHead)),
    with_selected_kind_only,
    with_called_layers_only,
    |s| with_calls(s, |call| Some(Call { previous: None, ..call.clone() })),
    |s| with_parts(s, |parts| parts.attention_mask = None),
    |s| with_parts(s, |parts| parts.causal = false),
    |s| with_parts(s, |parts| parts.scaling = None),
    |s| with_parts(s, |parts| parts.storage = Storage::F32),
];

fn with_instance(sequence: &Sequence, change: impl Fn(&mut crate::cases::Instance)) -> Sequence {
    let mut changed = sequence.clone();
    change(&mut changed.instance);
    changed
}

fn with_calls(sequence: &Sequence, change: impl Fn(&Call) -> Option<Call>) -> Option<Sequence> {
    let calls = sequence.calls.iter().map(change).collect::<Option<Vec<_>>>()?;
    Some(Sequence { calls, ..sequence.clone() })
}

fn with_parts(sequence: &Sequence, change: impl Fn(&mut InputParts)) -> Option<Sequence> {
    with_calls(sequence, |call| {
        let mut parts = call.inputs.parts().clone();
        change(&mut parts);
        with_inputs(call, parts)
    })
}

fn with_inputs(call: &Call, parts: InputParts) -> Option<Call> {
    Some(Call { inputs: Arc::new(Inputs::new(parts).ok()?), ..call.clone() })
}

/// A channel file with some of the entries, each changed.
fn with_file(
    sequence: &Sequence,
    change: impl Fn(ChannelKind, usize, &ChannelOrder) -> Option<Vec<Vec<usize>>>,
) -> Option<Sequence> {
    let old = &sequence.instance.channel_file;
    let mut file = ChannelFile::default();
    for kind in old.kinds() {
        for (layer, order) in old.layers(kind) {
            if let Some(rows) = change(kind, layer, order) {
                file.insert(kind, layer, ChannelOrder::new(rows).ok()?);
            }
        }
    }
    file.kinds().next()?;
    Some(with_instance(sequence, |instance| instance.channel_file = Arc::new(file.clone())))
}

fn with_selected_kind_only(sequence: &Sequence) -> Option<Sequence> {
    let selected = sequence.instance.channel_selection;
    with_file(sequence, |kind, _, order| (kind == selected).then(|| order.rows().to_vec()))
}

fn with_called_layers_only(sequence: &Sequence) -> Option<Sequence> {
    let called = |layer| sequence.calls.iter().any(|call| call.layer == layer);
    with_file(sequence, |_, layer, order| called(layer).then(|| order.rows().to_vec()))
}

fn without_calls(sequence: &Sequence, start: usize, end: usize) -> Option<Sequence> {
    let mut calls = sequence.calls.clone();
    calls.drain(start..end);
    (!calls.is_empty()).then(|| Sequence { calls, ..sequence.clone() })
}

/// Some indices of one axis; a dimension of 1 that is broadcast stays.
fn select(tensor: &Array4<f32>, axis: usize, kept: &[usize], full: usize) -> Array4<f32> {
    if tensor.shape()[axis] == full { tensor.select(Axis(axis), kept) } else { tensor.clone() }
}

fn all_but(size: usize, start: usize, end: usize) -> Option<Vec<usize>> {
    let kept: Vec<usize> = (0..size).filter(|index| !(start..end).contains(index)).collect();
    (!kept.is_empty()).then_some(kept)
}

/// A call with some indices of an axis of its tensors: of q, of k and v, of A and P.
fn with_selected(
    call: &Call,
    q: Option<(usize, &[usize])>,
    kv: Option<(usize, &[usize])>,
    masks: Option<(usize, &[usize])>,
) -> Option<Call> {
    let (b, h, m, n) = call.inputs.dims().mask_shape();
    let mut parts = call.inputs.parts().clone();
    if let Some((axis, kept)) = q {
        parts.q = parts.q.select(Axis(axis), kept);
    }
    if let Some((axis, kept)) = kv {
        parts.k = parts.k.select(Axis(axis), kept);
        parts.v = parts.v.select(Axis(axis), kept);
    }
    let mut previous = call.previous.clone();
    if let Some((axis, kept)) = masks {
        let full = [b, h, m, n][axis];
        parts.attention_mask = parts.attention_mask.map(|mask| select(&mask, axis, kept, full));
        let inputs = Inputs::new(parts.clone()).ok()?;
        if let Some(mask) = previous {
            let weights = mask.weights().select(Axis(axis), kept);
            previous = Some(Mask::from_weights(weights, &inputs.dims()).ok()?);
        }
    }
    Some(Call { layer: call.layer, inputs: Arc::new(Inputs::new(parts).ok()?), previous })
}

fn without_batch(sequence: &Sequence, start: usize, end: usize) -> Option<Sequence> {
    let kept = all_but(sequence.calls[0].inputs.dims().batch, start, end)?;
    let axis = Some((0, kept.as_slice()));
    with_calls(sequence, |call| with_selected(call, axis, axis, axis))
}

fn without_kv_heads(sequence: &Sequence, start: usize, end: usize) -> Option<Sequence> {
    let dims = sequence.calls[0].inputs.dims();
    let kv_heads = all_but(dims.kv_heads, start, end)?;
    let heads: Vec<usize> = (0..dims.heads).filter(|&head| kv_heads.contains(&dims.kv_head(head))).collect();
    without_heads(sequence, &heads, Some(&kv_heads))
}

fn without_group_members(sequence: &Sequence, start: usize, end: usize) -> Option<Sequence> {
    let dims = sequence.calls[0].inputs.dims();
    let members = all_but(dims.group_size(), start, end)?;
    let heads: Vec<usize> =
        (0..dims.heads).filter(|head| members.contains(&(head % dims.group_size()))).collect();
    without_heads(sequence, &heads, None)
}

fn without_heads(sequence: &Sequence, heads: &[usize], kv_heads: Option<&[usize]>) -> Option<Sequence> {
    let dims = sequence.calls[0].inputs.dims();
    let changed = with_calls(sequence, |call| {
        let heads = Some((1, heads));
        with_selected(call, heads, kv_heads.map(|kept| (1, kept)), heads)
    })?;
    with_file(&changed, |_, _, order| {
        let rows = order.rows();
        let of = |kept: &[usize]| kept.iter().map(|&row| rows[row].clone()).collect();
        Some(match (rows.len(), kv_heads) {
            (1, _) => rows.to_vec(),
            (count, _) if count == dims.heads => of(heads),
            (count, Some(kv_heads)) if count == dims.kv_heads => of(kv_heads),
            _ => rows.to_vec(),
        })
    })
}

fn without_queries(sequence: &Sequence, index: usize, start: usize, end: usize) -> Option<Sequence> {
    let mut changed = sequence.clone();
    let call = &sequence.calls[index];
    let kept = all_but(call.inputs.dims().queries, start, end)?;
    changed.calls[index] = with_selected(call, Some((2, kept.as_slice())), None, Some((2, kept.as_slice())))?;
    Some(changed)
}

fn without_keys(sequence: &Sequence, start: usize, end: usize) -> Option<Sequence> {
    with_calls(sequence, |call| {
        let dims = call.inputs.dims();
        let kept = all_but(dims.keys, start, end)?;
        if kept.len() < dims.queries {
            return None;
        }
        with_selected(call, None, Some((2, kept.as_slice())), Some((3, kept.as_slice())))
    })
}

/// As many fewer keys to select as there are fewer keys.
fn without_keys_and_heavy(sequence: &Sequence, start: usize, end: usize) -> Option<Sequence> {
    let HeavySize::Count(count) = sequence.instance.selection.heavy_size else {
        return None;
    };
    let size = HeavySize::count(count.get().checked_sub(end - start)?).ok()?;
    let mut changed = without_keys(sequence, start, end)?;
    changed.instance.selection.heavy_size = size;
    Some(changed)
}

/// Without some positions, keys and the queries at them.
fn without_positions(sequence: &Sequence, start: usize, end: usize) -> Option<Sequence> {
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

fn without_value_dims(sequence: &Sequence, start: usize, end: usize) -> Option<Sequence> {
    let kept = all_but(sequence.calls[0].inputs.dims().value_dim, start, end)?;
    with_parts(sequence, |parts| parts.v = parts.v.select(Axis(3), &kept))
}

/// The sequence with some channels and another group factor. Where v has as many dimensions as q, it keeps as many.
fn with_channels(sequence: &Sequence, kept: &[usize], group_factor: usize) -> Option<Sequence> {
    let dims = sequence.calls[0].inputs.dims();
    let new_index = |channel: usize| match kept.binary_search(&channel) {
        Ok(index) => Some(index),
        // A channel beyond d stays beyond d.
        Err(_) if channel >= dims.head_dim => Some(kept.len() + channel - dims.head_dim),
        Err(_) => None,
    };
    let changed = with_parts(sequence, |parts| {
        parts.q = parts.q.select(Axis(3), kept);
        parts.k = parts.k.select(Axis(3), kept);
        if dims.value_dim == dims.head_dim {
            parts.v = parts.v.select(Axis(3), kept);
        }
    })?;
    let mut changed = with_file(&changed, |_, _, order| {
        let row = |row: &Vec<usize>| row.iter().filter_map(|&channel| new_index(channel)).collect();
        Some(order.rows().iter().map(row).collect())
    })?;
    changed.instance.selection.group_factor = GroupFactor::new(group_factor as u64).ok()?;
    Some(changed)
}

/// A tensor whose values may be made plainer.
#[derive(Debug, Clone, Copy)]
enum Tensor {
    Q,
    K,
    V,
    Additive,
    Previous,
}

impl Tensor {
    fn of(self, call: &Call) -> Option<Array4<f32>> {
        let parts = call.inputs.parts();
        match self {
            Self::Q => Some(parts.q.clone()),
            Self::K => Some(parts.k.clone()),
            Self::V => Some(parts.v.clone()),
            Self::Additive => parts.attention_mask.clone(),
            Self::Previous => call.previous.as_ref().map(|mask| mask.weights().clone()),
        }
    }

    fn with(self, sequence: &Sequence, index: usize, values: Array4<f32>) -> Option<Sequence> {
        let call = &sequence.calls[index];
        let mut parts = call.inputs.parts().clone();
        let mut previous = call.previous.clone();
        match self {
            Self::Q => parts.q = values,
            Self::K => parts.k = values,
            Self::V => parts.v = values,
            Self::Additive => parts.attention_mask = Some(values),
            Self::Previous => previous = Some(Mask::from_weights(values, &call.inputs.dims()).ok()?),
        }
        let mut changed = sequence.clone();
        changed.calls[index] =
            Call { layer: call.layer, inputs: Arc::new(Inputs::new(parts).ok()?), previous };
        Some(changed)
    }
}

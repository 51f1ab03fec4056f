//! What a behaviour makes of one call of a sequence: a refusal, a full mask, or labels to be ranked, with everything that
//! decides the answer but rounding. The steps are those of SPEC §2, each with the switches of [`Behaviour`]. Earlier calls
//! matter to the behaviours that carry state over, and to no other.

use std::sync::Arc;

use ndarray::{Array2, Array4, ArrayView2, Axis};

use super::{
    Behaviour, Causality, Channels, Checks, Count, Earlier, Heads, KeyLabels, Order, Quantised, Quantiser,
    ShortContext,
};
use crate::algorithm::channels::half_split_to_interleaved;
use crate::algorithm::quantize::quantize_in_place;
use crate::algorithm::scores::check_head_mode;
use crate::algorithm::{
    ChannelKind, ChannelOrder, Detail, Dims, Error, HeadMode, HeavySize, InputParts, Inputs, LabelBits, Mask,
    Selection, Storage,
};
use crate::cases::{Call, Instance, Sequence};

/// What becomes of one call.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// It is refused, for any of these.
    Refused(Vec<Error>),
    /// It breaks: an error, or worse.
    Broken,
    /// It breaks or is answered, as it checks before or after an early out.
    BrokenOr(Box<Prediction>),
    /// Nothing can be said of the answer.
    Anything,
    /// It is answered.
    Answered(Box<Prediction>),
}

/// An answer up to rounding.
#[derive(Debug, Clone)]
pub struct Prediction {
    /// The behaviour.
    pub behaviour: Behaviour,
    /// A as keys are ranked with it.
    pub ranking: Arc<Inputs>,
    /// What the attention reads.
    pub attending: Arc<Inputs>,
    /// The mask that the selection is added to.
    pub before: Mask,
    /// H as configured, which may be more keys than there are (D11).
    pub wanted_keys: usize,
    /// `None` for a full mask.
    pub ranked: Option<Ranked>,
}

/// Labels to be ranked.
#[derive(Debug, Clone)]
pub struct Ranked {
    /// Per (batch, query head), row-major.
    pub labels: Vec<HeadLabels>,
    /// How heads are taken together.
    pub heads: HeadMode,
    /// How many keys are selected in each row.
    pub count: usize,
    /// What the dot product is divided by.
    pub divisor: f64,
    /// B where labels are those of SPEC §2.5, so that rounding may move their codes.
    pub bits: Option<LabelBits>,
}

/// Labels of one query head and what they were made from.
#[derive(Debug, Clone)]
pub struct HeadLabels {
    /// Chosen channels of the queries [m, r], before quantisation.
    pub q_source: Array2<f32>,
    /// Chosen channels of the keys [n, r], before quantisation.
    pub k_source: Array2<f32>,
    /// [m, r]
    pub q: Array2<f32>,
    /// [n, r]
    pub k: Array2<f32>,
}

/// What a behaviour makes of call `index` of a sequence, given the calls before it.
pub fn predict(behaviour: Behaviour, sequence: &Sequence, index: usize) -> Outcome {
    let outcome =
        try_predict(behaviour, sequence, index).unwrap_or_else(|error| Outcome::Refused(vec![error]));
    if !(behaviour.only_rows_per_head && breaks_on_rows(behaviour, sequence, index)) {
        return outcome;
    }
    // It may check its rows before or after an early out; any other check comes too late or is an error as well.
    match outcome {
        Outcome::Answered(prediction) if prediction.ranked.is_none() => Outcome::BrokenOr(prediction),
        _ => Outcome::Broken,
    }
}

/// Whether a call that is not dense has rows that are not one per query head (D6).
fn breaks_on_rows(behaviour: Behaviour, sequence: &Sequence, index: usize) -> bool {
    let (instance, call) = (&sequence.instance, &sequence.calls[index]);
    let dense = instance.dense_layers.contains(&call.layer) && !behaviour.ignores_dense_layers;
    let rows = channels_of(behaviour, sequence, index).map(|order| order.rows().len());
    !dense && rows.is_ok_and(|rows| rows != call.inputs.dims().heads)
}

fn try_predict(behaviour: Behaviour, sequence: &Sequence, index: usize) -> Result<Outcome, Error> {
    let (instance, call) = (&sequence.instance, &sequence.calls[index]);
    let dims = call.inputs.dims();
    let wanted_keys = match instance.selection.heavy_size {
        HeavySize::Count(count) => count.get(),
        size @ HeavySize::Fraction(_) => size.resolve(dims.keys),
    };
    let (before, full) = early_out(behaviour, instance, call)?;
    let attending = attending(behaviour, &call.inputs)?;
    let mut prediction =
        Prediction { behaviour, ranking: call.inputs.clone(), attending, before, wanted_keys, ranked: None };
    let dense = instance.dense_layers.contains(&call.layer) && !behaviour.ignores_dense_layers;
    if dense || (full && behaviour.checks == Checks::AfterEarlyOuts) {
        return Ok(Outcome::Answered(prediction.into()));
    }
    let channels = channels_of(behaviour, sequence, index)?;
    let divided = instance.selection.group_factor.label_channels(dims.head_dim);
    let label_channels = if behaviour.floors_label_channels {
        dims.head_dim / instance.selection.group_factor.get()
    } else {
        match (divided, channels.check(&dims, 1)) {
            (Err(divided), Err(channels)) => return Ok(Outcome::Refused(vec![divided, channels])),
            (divided, _) => divided?,
        }
    };
    let label_channels =
        if behaviour.accepts_short_rows { label_channels.min(channels.width()) } else { label_channels };
    if label_channels == 0 {
        return Ok(if full { Outcome::Answered(prediction.into()) } else { Outcome::Anything });
    }
    let heads = heads(behaviour, instance.selection.heads);
    let fits = channels.check(&dims, label_channels);
    let selection = Selection { heads, ..instance.selection };
    match (fits, check_head_mode(&call.inputs, &channels, label_channels, &selection)) {
        (Err(fits), Err(heads)) => return Ok(Outcome::Refused(vec![fits, heads])),
        (fits, heads) => fits.and(heads)?,
    }
    if full {
        return Ok(Outcome::Answered(prediction.into()));
    }
    let labels = match cached_labels(behaviour, sequence, index, &channels, label_channels) {
        Err(Error::LabelRange(_)) if behaviour.accepts_label_range => return Ok(Outcome::Anything),
        labels => labels?,
    };
    let spec_labels = behaviour.quantiser == Quantiser::Spec
        && behaviour.quantised == Quantised::Both
        && behaviour.label_cache == KeyLabels::Fresh;
    prediction.ranking = ranking(behaviour, &call.inputs)?;
    prediction.ranked = Some(Ranked {
        labels,
        heads,
        count: count(behaviour, instance.selection.heavy_size, dims.keys),
        divisor: if behaviour.unscaled { 1.0 } else { (label_channels as f64).sqrt() },
        bits: spec_labels.then_some(instance.selection.label_bits),
    });
    Ok(Outcome::Answered(prediction.into()))
}

/// SPEC §2.2: the mask that Double Sparsity starts from, and whether it becomes full without being ranked.
fn early_out(behaviour: Behaviour, instance: &Instance, call: &Call) -> Result<(Mask, bool), Error> {
    let dims = call.inputs.dims();
    let start = match behaviour.earlier {
        Earlier::Ignored => Mask::empty(&dims),
        _ => instance.start(call),
    };
    if instance.dense_layers.contains(&call.layer) && !behaviour.ignores_dense_layers {
        return Ok((start, true));
    }
    let before = instance.earlier_attention().extend_mask(&call.inputs, call.layer, start)?;
    let heavy_size = match behaviour.count {
        Count::Unclamped => count(behaviour, instance.selection.heavy_size, dims.keys),
        _ => instance.selection.heavy_size.resolve(dims.keys),
    };
    let fallback = instance.selection.dense_fallback || behaviour.short_context == ShortContext::Dense;
    let short = fallback && dims.keys - dims.queries <= heavy_size;
    let full = (before.is_full() && !behaviour.misses_full_previous) || short;
    Ok((before, full))
}

fn heads(behaviour: Behaviour, configured: HeadMode) -> HeadMode {
    match behaviour.heads {
        Heads::Configured | Heads::Mean => configured,
        Heads::Alone => HeadMode::PerHead,
        Heads::Summed => HeadMode::SummedScores,
    }
}

fn count(behaviour: Behaviour, heavy_size: HeavySize, keys: usize) -> usize {
    let resolved = heavy_size.resolve(keys);
    match (behaviour.count, heavy_size) {
        (Count::OneMore, _) => (resolved + 1).min(keys),
        (Count::OneFewer, _) => resolved - 1,
        (Count::Unclamped, HeavySize::Fraction(share)) => (share.get() * keys as f64).floor() as usize,
        (Count::Unclamped | Count::H, _) => resolved,
    }
}

/// Whether keys are ranked in a call, so that a masker that keeps the first channels it meets keeps those of its layer.
fn is_scored(behaviour: Behaviour, instance: &Instance, call: &Call) -> bool {
    let dense = instance.dense_layers.contains(&call.layer) && !behaviour.ignores_dense_layers;
    let full = early_out(behaviour, instance, call).is_ok_and(|(_, full)| full);
    !dense && !full && instance.channels(call.layer).is_ok()
}

/// Whether a call that is over matters to later ones, given that `kept` do.
pub fn is_remembered(behaviour: Behaviour, instance: &Instance, kept: &[Call], call: &Call) -> bool {
    let first = behaviour.channels == Channels::FirstLayer && kept.is_empty();
    behaviour.label_cache == KeyLabels::SharedByLayers || (first && is_scored(behaviour, instance, call))
}

/// The rows of a call.
fn channels_of(behaviour: Behaviour, sequence: &Sequence, index: usize) -> Result<ChannelOrder, Error> {
    let (instance, call) = (&sequence.instance, &sequence.calls[index]);
    let file = &instance.channel_file;
    let kind = instance.channel_selection;
    let order = match behaviour.channels {
        Channels::OwnLayer => instance.channels(call.layer)?,
        Channels::FirstLayer => {
            let scored = |call: &&Call| is_scored(behaviour, instance, call);
            let first = sequence.calls[..=index].iter().find(scored).unwrap_or(call);
            instance.channels(first.layer)?
        }
        Channels::NextLayer => {
            instance.channels(call.layer)?;
            let layers: Vec<usize> = file.layers(kind).map(|(layer, _)| layer).collect();
            let next = layers.iter().find(|&&layer| layer > call.layer).or(layers.first());
            instance.channels(*next.unwrap_or(&call.layer))?
        }
        Channels::OtherKind => {
            let own = instance.channels(call.layer)?;
            let present = |other: &ChannelKind| *other != kind && file.order(*other, call.layer).is_ok();
            let other = file.kinds().find(present);
            other.map_or(Ok(own), |other| file.order(other, call.layer))?
        }
    };
    reordered(behaviour.order, order, call.inputs.dims().head_dim)
}

fn reordered(order: Order, rows: &ChannelOrder, head_dim: usize) -> Result<ChannelOrder, Error> {
    let row = |row: &Vec<usize>| -> Vec<usize> {
        match order {
            Order::Falling => row.clone(),
            Order::Rising => row.iter().rev().copied().collect(),
            Order::Interleaved => {
                // Nothing to map where RoPE has no pairs, or where the index does not exist.
                row.iter().map(|&c| half_split_to_interleaved(c, head_dim).unwrap_or(c)).collect()
            }
        }
    };
    ChannelOrder::new(rows.rows().iter().map(row).collect())
}

/// The KV head that a query head reads.
fn kv_head(behaviour: Behaviour, head: usize, dims: &Dims) -> usize {
    if behaviour.tiles_kv_heads { head % dims.kv_heads } else { dims.kv_head(head) }
}

/// Labels of a call. Errors: [`Error::LabelRange`].
fn cached_labels(
    behaviour: Behaviour,
    sequence: &Sequence,
    index: usize,
    channels: &ChannelOrder,
    label_channels: usize,
) -> Result<Vec<HeadLabels>, Error> {
    let (instance, call) = (&sequence.instance, &sequence.calls[index]);
    let mut labels = labels(behaviour, instance.selection.label_bits, call, channels, label_channels)?;
    match behaviour.label_cache {
        KeyLabels::Fresh => {}
        KeyLabels::NewestMissing => labels.iter_mut().for_each(|head| {
            if let Some(mut newest) = head.k.outer_iter_mut().next_back() {
                newest.fill(0.0);
            }
        }),
        KeyLabels::SharedByLayers => {
            for earlier in (0..index).rev() {
                let other = &sequence.calls[earlier];
                let dims = other.inputs.dims();
                if (dims.batch, dims.heads) != (call.inputs.dims().batch, call.inputs.dims().heads) {
                    continue;
                }
                let Ok(channels) = channels_of(behaviour, sequence, earlier) else { continue };
                let bits = instance.selection.label_bits;
                let Ok(cached) = self::labels(behaviour, bits, other, &channels, label_channels) else {
                    continue;
                };
                for (head, cached) in labels.iter_mut().zip(&cached) {
                    let kept = head.k.nrows().min(cached.k.nrows());
                    head.k
                        .slice_mut(ndarray::s![..kept, ..])
                        .assign(&cached.k.slice(ndarray::s![..kept, ..]));
                }
            }
        }
    }
    Ok(labels)
}

fn labels(
    behaviour: Behaviour,
    bits: LabelBits,
    call: &Call,
    channels: &ChannelOrder,
    label_channels: usize,
) -> Result<Vec<HeadLabels>, Error> {
    let (inputs, dims) = (&call.inputs, call.inputs.dims());
    channels.check(&dims, label_channels)?;
    let parts = inputs.parts();
    let heads = (0..dims.batch).flat_map(|b| (0..dims.heads).map(move |head| (b, head)));
    let quantise = |source: ArrayView2<f32>, row: &[usize], tensor: &Array4<f32>, used: bool| {
        let quantiser = if used { behaviour.quantiser } else { Quantiser::Off };
        Quantisation { quantiser, bits, storage: inputs.storage(), tensor }.labels(source, row)
    };
    heads
        .map(|(b, head)| {
            let row = &channels.row(head, &dims)[..label_channels];
            let q = inputs.queries(b, head);
            let kv_head = kv_head(behaviour, head, &dims);
            let k = parts.k.slice(ndarray::s![b, kv_head, .., ..]);
            Ok(HeadLabels {
                q: quantise(q, row, &parts.q, behaviour.quantised != Quantised::Keys)?,
                k: quantise(k, row, &parts.k, behaviour.quantised != Quantised::Queries)?,
                q_source: q.select(Axis(1), row),
                k_source: k.select(Axis(1), row),
            })
        })
        .collect()
}

/// How one tensor is quantised.
struct Quantisation<'a> {
    quantiser: Quantiser,
    bits: LabelBits,
    storage: Storage,
    tensor: &'a Array4<f32>,
}

impl Quantisation<'_> {
    fn labels(&self, source: ArrayView2<f32>, row: &[usize]) -> Result<Array2<f32>, Error> {
        let mut chosen = source.select(Axis(1), row);
        if !self.bits.quantises() {
            return Ok(chosen);
        }
        // What the SPEC refuses is refused whatever the quantiser does instead.
        for position in chosen.outer_iter() {
            quantize_in_place(&mut position.to_vec(), self.bits, self.storage)?;
        }
        let range_of_head = range(chosen.iter());
        for (x, mut label) in source.outer_iter().zip(chosen.outer_iter_mut()) {
            let range = match self.quantiser {
                Quantiser::Off => continue,
                Quantiser::Symmetric => {
                    self.symmetric(&mut label);
                    continue;
                }
                Quantiser::PerHead => range_of_head,
                Quantiser::PerTensor => range(self.tensor.iter()),
                Quantiser::BeforeChoosing => range(x.iter()),
                Quantiser::Spec | Quantiser::HalfAway | Quantiser::Wrapping => range(label.iter()),
            };
            self.affine(range, &mut label)?;
        }
        Ok(chosen)
    }

    /// The steps of SPEC §2.5 with a given range.
    fn affine(&self, (lo, hi): (f32, f32), label: &mut ndarray::ArrayViewMut1<f32>) -> Result<(), Error> {
        let round = |x| self.storage.round(x);
        let range = match round(hi - lo) {
            0.0 => 1.0,
            range => range,
        };
        let scale = round(round(1.0 / range) * self.bits.largest_code());
        if !(range.is_finite() && scale.is_finite() && scale > 0.0) {
            let found = format!("range {range:e}");
            return Err(Error::LabelRange(Detail::new("label row", found, "a finite scale")));
        }
        let largest = round(self.bits.largest_code());
        for x in label.iter_mut() {
            let steps = round(round(*x - lo) * scale);
            let code = match self.quantiser {
                Quantiser::HalfAway => steps.round(),
                _ => steps.round_ties_even(),
            };
            let code = match self.quantiser {
                Quantiser::Wrapping => f32::from(code.clamp(0.0, largest) as i64 as u8 as i8),
                _ => code.clamp(0.0, largest),
            };
            *x = round(round(code / scale) + lo);
        }
        Ok(())
    }

    fn symmetric(&self, label: &mut ndarray::ArrayViewMut1<f32>) {
        let largest = label.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
        let scale = self.storage.round(largest / 127.0);
        if scale > 0.0 {
            label.mapv_inplace(|x| self.storage.round(self.storage.round(x / scale).trunc() * scale));
        }
    }
}

fn range<'a>(values: impl Iterator<Item = &'a f32>) -> (f32, f32) {
    values.fold((f32::INFINITY, f32::NEG_INFINITY), |(lo, hi), &x| (lo.min(x), hi.max(x)))
}

/// What the attention reads: KV heads as the behaviour assigns them.
fn attending(behaviour: Behaviour, inputs: &Arc<Inputs>) -> Result<Arc<Inputs>, Error> {
    let dims = inputs.dims();
    if !behaviour.tiles_kv_heads || dims.kv_heads == dims.heads {
        return Ok(inputs.clone());
    }
    let parts = inputs.parts();
    let order: Vec<usize> = (0..dims.heads).map(|head| kv_head(behaviour, head, &dims)).collect();
    let tiled = |tensor: &Array4<f32>| tensor.select(Axis(1), &order);
    let parts = InputParts { k: tiled(&parts.k), v: tiled(&parts.v), ..parts.clone() };
    Ok(Arc::new(Inputs::new(parts)?))
}

/// A as keys are ranked with it.
fn ranking(behaviour: Behaviour, inputs: &Arc<Inputs>) -> Result<Arc<Inputs>, Error> {
    let parts = inputs.parts();
    let causality = if parts.causal { behaviour.causality } else { Causality::Own };
    let ignored = behaviour.ignores_attention_mask && parts.attention_mask.is_some();
    if causality == Causality::Own && !ignored {
        return Ok(inputs.clone());
    }
    let mask = if ignored { None } else { parts.attention_mask.clone() };
    if causality == Causality::Own {
        return Ok(Arc::new(Inputs::new(InputParts { attention_mask: mask, ..parts.clone() })?));
    }
    let dims = inputs.dims();
    let plain = Inputs::new(InputParts { attention_mask: mask, causal: false, ..parts.clone() })?;
    let explicit = Array4::from_shape_fn(dims.mask_shape(), |(b, head, i, key)| {
        let last = match causality {
            Causality::SeesNext => dims.position(i) + 1,
            _ => dims.position(i).wrapping_sub(1),
        };
        // Position 0 without its own key sees nothing.
        let seen = last != usize::MAX && key <= last;
        if seen { plain.additive(b, head, i).at(key) } else { f32::NEG_INFINITY }
    });
    let heads = if plain.attention_mask_differs_between_heads() { dims.heads } else { 1 };
    let explicit = explicit.slice(ndarray::s![.., ..heads, .., ..]).to_owned();
    let parts = InputParts { attention_mask: Some(explicit), causal: false, ..parts.clone() };
    Ok(Arc::new(Inputs::new(parts)?))
}

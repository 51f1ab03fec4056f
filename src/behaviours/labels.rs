//! Labels as a behaviour makes and keeps them (SPEC §2.3 to §2.5): which KV head and which channels they come from, how they
//! are quantised, and what is left of earlier calls.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use ndarray::{Array2, Array4, ArrayView1, ArrayView2, Axis};

use super::prediction::channels_of;
use super::{Behaviour, ChannelWeights, KeyLabels, KvHeads, Quantised, Quantiser, Side};
use crate::algorithm::quantize::quantize_in_place;
use crate::algorithm::{
    ChannelOrder, Detail, Dims, Error, Inputs, LabelBits, QuantisedLabels, Rules, Selection, Storage,
};
use crate::cases::{Call, Sequence};

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
    /// What q is multiplied by when it is scored, \[r\], where there is something.
    pub channel_weights: Option<Vec<f32>>,
}

/// The bits of the labels of queries and of keys.
pub(super) fn bits(behaviour: Behaviour, selection: &Selection) -> [LabelBits; 2] {
    use QuantisedLabels::{Both, Keys, Queries};
    let quantised = match (behaviour.quantised, selection.rules.quantised) {
        (Quantised::Configured, configured) => configured,
        (Quantised::Both, _) | (Quantised::Swapped, Both) => Both,
        (Quantised::Queries, _) | (Quantised::Swapped, Keys) => Queries,
        (Quantised::Keys, _) | (Quantised::Swapped, Queries) => Keys,
    };
    Rules { quantised, ..selection.rules }.bits(selection.label_bits)
}

impl KvHeads {
    /// The KV head that a query head reads.
    pub fn of(self, head: usize, dims: &Dims) -> usize {
        match self {
            Self::Repeated => dims.kv_head(head),
            Self::Tiled => head % dims.kv_heads,
            Self::DividedByCount => (head / dims.kv_heads).min(dims.kv_heads - 1),
            Self::First => 0,
            Self::OwnNumber => head.min(dims.kv_heads - 1),
        }
    }

    /// These, where they are not the SPEC's, otherwise `others`.
    pub(super) fn or(self, others: Self) -> Self {
        if self == Self::Repeated { others } else { self }
    }
}

/// Labels of a call. Errors: [`Error::LabelRange`].
pub(super) fn cached_labels(
    behaviour: Behaviour,
    sequence: &Sequence,
    index: usize,
    channels: &ChannelOrder,
    label_channels: usize,
) -> Result<Vec<HeadLabels>, Error> {
    let (instance, call) = (&sequence.instance, &sequence.calls[index]);
    let labels_of = |call: &Call, channels: &ChannelOrder| {
        labels(behaviour, &instance.selection, call, channels, label_channels)
    };
    let mut labels = labels_of(call, channels)?;
    let dims = call.inputs.dims();
    let newest_before = |layer: usize| sequence.calls[..index].iter().rfind(|call| call.layer == layer);
    match behaviour.label_cache {
        KeyLabels::Fresh => {}
        KeyLabels::NewestMissing => labels.iter_mut().for_each(|head| {
            if let Some(mut newest) = head.k.outer_iter_mut().next_back() {
                newest.fill(0.0);
            }
        }),
        KeyLabels::SharedByLayers | KeyLabels::WrittenOnce => {
            for earlier in (0..index).rev() {
                let other = &sequence.calls[earlier];
                let others = other.inputs.dims();
                let same_layer =
                    behaviour.label_cache == KeyLabels::SharedByLayers || other.layer == call.layer;
                if !same_layer || (others.batch, others.heads) != (dims.batch, dims.heads) {
                    continue;
                }
                let Ok(channels) = channels_of(behaviour, sequence, earlier) else { continue };
                let Ok(cached) = labels_of(other, &channels) else { continue };
                keep_first(&mut labels, &cached);
            }
        }
        KeyLabels::KeptOnRestart => {
            let mut cached: Option<(Dims, Vec<HeadLabels>)> = None;
            for other in sequence.calls[..index].iter().filter(|other| other.layer == call.layer) {
                let Ok(fresh) = labels_of(other, channels) else { continue };
                cached = Some((other.inputs.dims(), continued(cached, other.inputs.dims(), fresh)));
            }
            labels = continued(cached, dims, labels);
        }
        KeyLabels::FirstOfChunk => {
            let before = newest_before(call.layer).map(|call| call.inputs.dims().keys);
            if let Some(before) = before.filter(|&before| before < dims.keys && dims.queries > 1) {
                let missing = ndarray::s![before + 1.., ..];
                labels.iter_mut().for_each(|head| head.k.slice_mut(missing).fill(0.0));
            }
        }
        KeyLabels::BatchSlots => {
            let other_size = |other: &&Call| {
                let others = other.inputs.dims();
                others.batch != dims.batch && others.keys == dims.keys && others.heads == dims.heads
            };
            if let Some(other) = newest_before(call.layer).filter(other_size)
                && let Ok(cached) = labels_of(other, channels)
            {
                keep_first(&mut labels, &cached);
            }
        }
    }
    Ok(labels)
}

/// Labels of keys that are in the cache in place of those of a call, batch entry by batch entry.
fn keep_first(labels: &mut [HeadLabels], cached: &[HeadLabels]) {
    for (head, cached) in labels.iter_mut().zip(cached) {
        let kept = head.k.nrows().min(cached.k.nrows());
        let kept = ndarray::s![..kept, ..];
        head.k.slice_mut(kept).assign(&cached.k.slice(kept));
    }
}

/// Fresh labels of a call after those of the call before, which stay unless they were more.
fn continued(
    cached: Option<(Dims, Vec<HeadLabels>)>,
    dims: Dims,
    mut fresh: Vec<HeadLabels>,
) -> Vec<HeadLabels> {
    if let Some((before, cached)) = cached
        && (before.batch, before.heads) == (dims.batch, dims.heads)
        && before.keys <= dims.keys
    {
        keep_first(&mut fresh, &cached);
    }
    fresh
}

/// What the labels of a call depend on, apart from its inputs.
#[derive(PartialEq)]
struct Settings {
    bits: [LabelBits; 2],
    quantiser: Quantiser,
    quantiser_of: Side,
    kv_heads: KvHeads,
    channels: ChannelOrder,
    label_channels: usize,
    weights: ChannelWeights,
    weighted: bool,
}

/// Labels made last on this thread. Diagnosis holds many behaviours against the same few hundred small answers, and most of them do not
/// change labels.
#[derive(Default)]
struct Recent {
    made: HashMap<*const Inputs, Vec<Made>>,
    bytes: usize,
}

/// The inputs are kept so that no others get their address.
struct Made {
    _inputs: Arc<Inputs>,
    settings: Settings,
    labels: Vec<HeadLabels>,
}

/// Inputs of more bytes are rarely asked about again.
const LARGEST_RECENT: usize = 256 << 10;

/// All is forgotten beyond these bytes of inputs and labels, on each thread.
const MOST_RECENT: usize = 16 << 20;

thread_local! {
    static RECENT: RefCell<Recent> = RefCell::default();
}

impl Recent {
    fn get(&self, inputs: &Arc<Inputs>, settings: &Settings) -> Option<Vec<HeadLabels>> {
        let made = self.made.get(&Arc::as_ptr(inputs))?;
        made.iter().find(|made| made.settings == *settings).map(|made| made.labels.clone())
    }

    fn keep(&mut self, inputs: &Arc<Inputs>, bytes: usize, settings: Settings, labels: &[HeadLabels]) {
        let of_head = |head: &HeadLabels| 4 * 2 * (head.q.len() + head.k.len());
        self.bytes += bytes + labels.iter().map(of_head).sum::<usize>();
        if self.bytes > MOST_RECENT {
            *self = Self::default();
            return;
        }
        let made = Made { _inputs: inputs.clone(), settings, labels: labels.to_vec() };
        self.made.entry(Arc::as_ptr(inputs)).or_default().push(made);
    }
}

/// Labels of a call as its own keys make them.
fn labels(
    behaviour: Behaviour,
    selection: &Selection,
    call: &Call,
    channels: &ChannelOrder,
    label_channels: usize,
) -> Result<Vec<HeadLabels>, Error> {
    let settings = Settings {
        bits: bits(behaviour, selection),
        quantiser: behaviour.quantiser,
        quantiser_of: behaviour.quantiser_of,
        kv_heads: behaviour.ranked_heads.or(behaviour.kv_heads),
        channels: channels.clone(),
        label_channels,
        weights: behaviour.channel_weights,
        weighted: selection.rules.channel_weights,
    };
    let bytes = call.bytes();
    if bytes > LARGEST_RECENT {
        return fresh_labels(&settings, selection, call);
    }
    if let Some(labels) = RECENT.with_borrow(|recent| recent.get(&call.inputs, &settings)) {
        return Ok(labels);
    }
    let labels = fresh_labels(&settings, selection, call)?;
    RECENT.with_borrow_mut(|recent| recent.keep(&call.inputs, bytes, settings, &labels));
    Ok(labels)
}

fn fresh_labels(settings: &Settings, selection: &Selection, call: &Call) -> Result<Vec<HeadLabels>, Error> {
    let (inputs, dims) = (&call.inputs, call.inputs.dims());
    let Settings { bits: [query_bits, key_bits], channels, label_channels, .. } = settings;
    channels.check(&dims, *label_channels)?;
    let parts = inputs.parts();
    let heads = (0..dims.batch).flat_map(|b| (0..dims.heads).map(move |head| (b, head)));
    let quantise = |source: ArrayView2<f32>, row: &[usize], tensor: &Array4<f32>, bits, own: Side| {
        let made = settings.quantiser_of == Side::Both || settings.quantiser_of == own;
        let quantiser = if made { settings.quantiser } else { Quantiser::Spec };
        Quantisation { quantiser, bits, storage: inputs.storage(), tensor }.labels(source, row)
    };
    heads
        .map(|(b, head)| {
            let row = &channels.row(head, &dims)[..*label_channels];
            let q = inputs.queries(b, head);
            let kv_head = settings.kv_heads.of(head, &dims);
            let k = parts.k.slice(ndarray::s![b, kv_head, .., ..]);
            Ok(HeadLabels {
                q: quantise(q, row, &parts.q, *query_bits, Side::Queries)?,
                k: quantise(k, row, &parts.k, *key_bits, Side::Keys)?,
                q_source: q.select(Axis(1), row),
                k_source: k.select(Axis(1), row),
                channel_weights: settings.weights.of(selection, channels, head, &dims),
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
        if self.quantiser == Quantiser::Spec {
            for mut position in chosen.outer_iter_mut() {
                let mut label = position.to_vec();
                quantize_in_place(&mut label, self.bits, self.storage)?;
                position.assign(&ArrayView1::from(&label));
            }
            return Ok(chosen);
        }
        // What the SPEC refuses is refused whatever the quantiser does instead.
        for position in chosen.outer_iter() {
            quantize_in_place(&mut position.to_vec(), self.bits, self.storage)?;
        }
        let range_of_head = range(chosen.iter());
        let mut scale_before = None;
        for (x, mut label) in source.outer_iter().zip(chosen.outer_iter_mut()) {
            let range = match self.quantiser {
                Quantiser::Off => continue,
                Quantiser::Symmetric => {
                    self.symmetric(&mut label);
                    continue;
                }
                Quantiser::SymmetricNearest => {
                    self.symmetric_nearest(&mut label);
                    continue;
                }
                Quantiser::PerHead => range_of_head,
                Quantiser::PerTensor => range(self.tensor.iter()),
                Quantiser::BeforeChoosing => range(x.iter()),
                Quantiser::RangeWithZero => range(label.iter().chain([&0.0])),
                _ => range(label.iter()),
            };
            let scale = self.affine(range, scale_before, &mut label)?;
            if self.quantiser == Quantiser::ScaleOfPrevious {
                scale_before = Some(scale);
            }
        }
        Ok(chosen)
    }

    /// The steps of SPEC §2.5 with a given range; returns the scale. Codes are decoded with another scale where one is given.
    fn affine(
        &self,
        (lo, hi): (f32, f32),
        decoding: Option<f32>,
        label: &mut ndarray::ArrayViewMut1<f32>,
    ) -> Result<f32, Error> {
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
        let code = |x: f32| {
            let steps = round(round(x - lo) * scale);
            let code = match self.quantiser {
                Quantiser::HalfAway => steps.round(),
                Quantiser::RoundedDown => steps.floor(),
                _ => steps.round_ties_even(),
            };
            let code = code.clamp(0.0, largest);
            match self.quantiser {
                Quantiser::Wrapping => f32::from(code as i64 as u8 as i8),
                Quantiser::Modulo256 => code % 256.0,
                _ => code,
            }
        };
        let mut codes: Vec<f32> = label.iter().map(|&x| code(x)).collect();
        if self.quantiser == Quantiser::PairsSwapped {
            codes.chunks_exact_mut(2).for_each(<[f32]>::reverse);
        }
        let decoding = decoding.unwrap_or(scale);
        for (x, code) in label.iter_mut().zip(codes) {
            *x = match self.quantiser {
                Quantiser::Codes => code,
                Quantiser::WithoutScale => round(code + lo),
                Quantiser::WithoutLow => round(code / decoding),
                Quantiser::EqualIsZero if lo == hi => 0.0,
                _ => round(round(code / decoding) + lo),
            };
        }
        Ok(scale)
    }

    fn symmetric_nearest(&self, label: &mut ndarray::ArrayViewMut1<f32>) {
        let largest = label.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
        let levels = ((self.bits.largest_code() + 1.0) / 2.0 - 1.0).max(1.0);
        let step = self.storage.round(largest / levels);
        if step > 0.0 {
            label.mapv_inplace(|x| self.storage.round(self.storage.round(x / step).round_ties_even() * step));
        }
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

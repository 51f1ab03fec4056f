//! The mask of SPEC §2.2 to §2.10 from raw keys, and exact top-k and windows beside it. Everything is batched: there is no loop
//! over heads or rows.
//!
//! Gathering label channels is a product with a 0/1 matrix: it is exact in every type, because each sum has one term that is
//! not zero, and it reads keys at the speed of a matrix product. Where labels are not quantised, k̂ is not needed at all: with
//! the channels that are no label set to 0, q·k is the label score.

use tch::{Device, Kind, Tensor};

use super::attention::logits;
use super::error::Result;
use super::layer::{Layer, kind, product};
use super::rules::{self, ScoreParts, for_every_head, shared};
use crate::algorithm::{
    ChannelOrder, Detail, Dims, Error, Forced, HeadMode, HeavySize, LabelBits, ScoreRule, Selection, Storage,
};

/// Key and query positions, to compare: [n] and [m, 1].
pub(super) fn positions(queries: i64, keys: i64, device: Device) -> Result<(Tensor, Tensor)> {
    let queries = Tensor::f_arange_start(keys - queries, keys, (Kind::Int64, device))?;
    let keys = Tensor::f_arange(keys, (Kind::Int64, device))?;
    Ok((keys, queries.f_unsqueeze(1)?))
}

/// [.., a, b] with leading dimensions folded into one.
fn folded(x: &Tensor) -> Result<Tensor> {
    let shape = x.size();
    let (a, b) = (shape[shape.len() - 2], shape[shape.len() - 1]);
    Ok(x.f_reshape([-1, a, b])?)
}

/// What reveals labels that are not finite, at little or no cost.
enum Probe {
    /// Labels are not quantised.
    None,
    /// The selected scores: top-k counts NaN as largest, so that they hold one if there is one.
    Scores(Tensor),
    /// The sum of all scores, which is finite only if labels are.
    Sum(Tensor),
}

/// What Double Sparsity adds to a mask, before it is written.
pub struct Selected {
    /// [b, selections, m, H]: key indices, in no particular order; one selection for each head, for each KV head or for all.
    pub keys: Tensor,
    /// [b, selections, m, H]: whether each of them is a candidate; `None` where all keys are.
    pub valid: Option<Tensor>,
    /// What reveals labels that are not finite; read it when the answer is read, not before.
    probe: Probe,
}

impl Selected {
    /// The mask before with weight 1 at the selected keys: [b, h, m, n] in f32.
    pub fn mask(&self, layer: &Layer, before: Option<&Tensor>) -> Result<Tensor> {
        let shape = layer.mask_shape();
        let index = for_every_head(&self.keys, shape[1])?;
        let mut added = Tensor::f_zeros(shape, (Kind::Float, layer.device()))?;
        match &self.valid {
            None => drop(added.f_scatter_value_(-1, &index, 1.0)?),
            Some(valid) => {
                let valid = for_every_head(&valid.f_to_kind(Kind::Float)?, shape[1])?;
                drop(added.f_scatter_(-1, &index, &valid)?);
            }
        }
        match before {
            None => Ok(added),
            Some(before) => Ok(before.f_where_self(&added.f_eq(0.0)?, &added)?),
        }
    }

    /// Weights of the selected keys, [b, selections, m, H] in f32: 1, or 0 where there were fewer candidates.
    pub fn weights(&self) -> Result<Tensor> {
        Ok(match &self.valid {
            None => self.keys.f_ones_like()?.f_to_kind(Kind::Float)?,
            Some(valid) => valid.f_to_kind(Kind::Float)?,
        })
    }
}

/// The full mask of SPEC §2.2, where every key is attended before or the settings keep short contexts dense; `None` where keys are
/// selected. Waits for the device.
pub fn early_out(layer: &Layer, selection: &Selection, before: Option<&Tensor>) -> Result<Option<Tensor>> {
    let dims = &layer.dims;
    let full = match before {
        Some(before) => before.f_ne(0.0)?.f_all()?.f_int64_value(&[])? != 0,
        None => false,
    };
    let short = dims.keys - dims.queries <= selection.heavy_size.resolve(dims.keys);
    if full || (selection.dense_fallback && short) {
        return Ok(Some(filled(layer, before)?));
    }
    Ok(None)
}

/// Every key attended: those attended before keep their weight, the others get weight 1.
pub fn filled(layer: &Layer, before: Option<&Tensor>) -> Result<Tensor> {
    Ok(match before {
        Some(before) => before.f_masked_fill(&before.f_eq(0.0)?, 1.0)?,
        None => Tensor::f_ones(layer.mask_shape(), (Kind::Float, layer.device()))?,
    })
}

/// Checks settings and channels of a layer, and returns r. Errors: G not dividing d, channels that do not fit, those of
/// [`rules::check`], `summed-labels` without shared channels.
pub fn check(dims: &Dims, channels: &ChannelOrder, selection: &Selection) -> std::result::Result<i64, Error> {
    let (factor, d) = (selection.group_factor.get(), dims.head_dim);
    if d % factor != 0 {
        let expected = format!("a divisor of {d}");
        return Err(Error::GroupFactor(Detail::new("group_factor", factor, expected)));
    }
    let label_channels = d / factor;
    let rows = channels.rows();
    if ![1, dims.heads, dims.kv_heads].contains(&rows.len()) || channels.width() < label_channels {
        let found = format!("[{}, {}]", rows.len(), channels.width());
        let expected = format!("{}, {} or 1 rows of at least {label_channels}", dims.heads, dims.kv_heads);
        return Err(Error::ChannelRows(Detail::new("channels", found, expected)));
    }
    if let Some(&channel) = rows.iter().flatten().find(|&&channel| channel >= d) {
        return Err(Error::ChannelRange(Detail::new("channels", channel, format!("below {d}"))));
    }
    rules::check(dims, channels, label_channels, selection)?;
    let first = &rows[0][..label_channels];
    let shared = rows.iter().all(|row| row[..label_channels] == *first);
    if selection.heads == HeadMode::SummedLabels && !shared {
        let expected = "channels shared by all heads";
        return Err(Error::HeadMode(Detail::new("heads", "summed-labels", expected)));
    }
    Ok(label_channels as i64)
}

/// Labels of one row of numbers (SPEC §2.5). Errors: [`Error::LabelRange`]; those of libtorch.
pub fn labels_of_row(row: &[f32], bits: LabelBits, storage: Storage, device: Device) -> Result<Vec<f32>> {
    let row = Tensor::f_from_slice(row)?.f_to_device(device)?;
    let mut labels = row.f_to_kind(kind(storage))?.f_unsqueeze(1)?.f_contiguous()?;
    quantize_(&mut labels, bits, storage)?;
    if !is_finite(&labels)? {
        return Err(label_range().into());
    }
    let labels = labels.f_to_kind(Kind::Float)?.f_to_device(Device::Cpu)?;
    let mut values = vec![0.0f32; labels.numel()];
    labels.f_contiguous()?.f_copy_data(&mut values, row.numel())?;
    Ok(values)
}

/// SPEC §2.5 over the channels in dimension −2, in place; each operation rounds to the type of `x`.
pub fn quantize_(x: &mut Tensor, bits: LabelBits, storage: Storage) -> Result<()> {
    let largest = f64::from(bits.largest_code());
    let (lo, hi) = x.f_aminmax(-2, true)?;
    // The large operation first: the small ones that make the scale are launched while it runs.
    let _ = x.f_sub_(&lo)?;
    let mut scale = hi.f_sub(&lo)?;
    // A range of 0 counts as 1; no range is below 0.
    let _ = scale.f_threshold_(0.0, 1.0)?.f_reciprocal_()?.f_mul_scalar_(largest)?;
    let _ = x.f_mul_(&scale)?.f_round_()?;
    // Steps carry five roundings. Where those cannot reach the next half step the clamp has nothing to do.
    let reach = largest * 5.0 * storage.unit_roundoff();
    if reach / (1.0 - reach / largest) >= 0.5 {
        let _ = x.f_clamp_(0.0, largest)?;
    }
    let _ = x.f_div_(&scale)?.f_add_(&lo)?;
    Ok(())
}

/// The Double Sparsity masker of one layer's channels, configured once and used for every step.
pub struct TorchMasker {
    selection: Selection,
    storage: Storage,
    /// r
    label_channels: i64,
    /// The label channels of each head: [1, hk, g, r, 1].
    channels: Tensor,
    /// 0/1 matrices that pick the label channels of keys: [hk, g·r, d].
    pick_keys: Tensor,
    /// What q is multiplied by where labels of keys are not gathered: 1 or its weight for each label channel, 0 for others:
    /// [1, hk, g, 1, d].
    of_channels: Tensor,
    /// Channel weights in f32, [1, h, r, 1]; `None` where they are 1.
    channel_weights: Option<Tensor>,
}

impl TorchMasker {
    /// A masker for these channels. Errors: those of [`check`]; those of libtorch.
    pub fn new(
        dims: &Dims,
        channel_rows: &ChannelOrder,
        selection: &Selection,
        storage: Storage,
        device: Device,
    ) -> Result<Self> {
        let r = check(dims, channel_rows, selection)?;
        let (hk, group, d) = (dims.kv_heads as i64, dims.group_size() as i64, dims.head_dim as i64);
        let channels = label_channels(dims, channel_rows, r, device)?;
        let mut pick = Tensor::f_zeros([hk, group, r, d], (kind(storage), device))?;
        let _ = pick.f_scatter_value_(3, &channels.f_unsqueeze(-1)?, 1.0)?;
        let weights = rules::channel_weights(dims, channel_rows, r, &selection.rules, device)?;
        let of_channels = match &weights {
            None => pick.f_sum_dim_intlist(-2, false, pick.kind())?,
            Some(weights) => {
                Tensor::f_zeros([hk, group, d], (Kind::Float, device))?.f_scatter(2, &channels, weights)?
            }
        };
        let channel_weights = match weights {
            None => None,
            Some(weights) => Some(weights.f_reshape([1, hk * group, r, 1])?),
        };
        Ok(Self {
            selection: *selection,
            storage,
            label_channels: r,
            channels: channels.f_reshape([1, hk, group, r, 1])?,
            pick_keys: pick.f_reshape([hk, group * r, d])?,
            of_channels: of_channels.f_reshape([1, hk, group, 1, d])?,
            channel_weights,
        })
    }

    /// SPEC §2.3 to §2.9, for a layer that fits ([`Layer::check`]). Labels that leave the storage type (D9) show in
    /// [`TorchMasker::check_labels`], for which the caller waits when it reads the answer.
    ///
    /// Errors: [`Error::HeavySize`] for an H that cannot hold the forced keys; those of libtorch.
    pub fn select(&self, layer: &Layer, before: Option<&Tensor>) -> Result<Selected> {
        let heavy_size = self.heavy_size(&layer.dims)?;
        // Keys attended before are masked out, so that top-k would not show a NaN in their labels.
        let sum = layer.labels_may_overflow || before.is_some();
        let (scores, sum) = self.scores(layer, sum)?;
        let all_candidates = layer.additive.is_none();
        let ranking = Ranking { heavy_size, forced: self.selection.rules.forced, all_candidates };
        let selected = largest(&scores, before, ranking)?;
        let quantises = self.quantises();
        Ok(match sum {
            Some(sum) => Selected { probe: Probe::Sum(sum), ..selected },
            None if quantises => selected,
            None => Selected { probe: Probe::None, ..selected },
        })
    }

    /// H as a number of keys that holds the forced ones.
    fn heavy_size(&self, dims: &Dims) -> Result<usize> {
        let heavy_size = self.selection.heavy_size.resolve(dims.keys);
        self.selection.rules.forced.check(dims, heavy_size)?;
        Ok(heavy_size)
    }

    /// Whether labels of keys or queries are quantised.
    fn quantises(&self) -> bool {
        self.selection.bits().iter().any(|bits| bits.quantises())
    }

    /// The mask before with what Double Sparsity adds: [b, h, m, n] in f32 (SPEC §2.2 to §2.10). Waits for the device.
    ///
    /// Errors: those of [`Self::select`] and [`Self::check_labels`].
    pub fn add_mask(&self, layer: &Layer, before: Option<&Tensor>) -> Result<Tensor> {
        self.heavy_size(&layer.dims)?;
        if let Some(full) = early_out(layer, &self.selection, before)? {
            return Ok(full);
        }
        let selected = self.select(layer, before)?;
        self.check_labels(layer, &selected)?;
        selected.mask(layer, before)
    }

    /// Refuses labels that leave the storage type (SPEC D9); waits for the device.
    pub fn check_labels(&self, layer: &Layer, selected: &Selected) -> Result<()> {
        let suspicious = match &selected.probe {
            Probe::None => false,
            Probe::Scores(scores) => scores.f_isnan()?.f_any()?.f_int64_value(&[])? != 0,
            Probe::Sum(sum) => !is_finite(sum)?,
        };
        // Scores may overflow although labels are finite.
        let positions = (layer.dims.keys + layer.dims.queries) as i64;
        if suspicious && !is_finite(&self.labels(layer)?.f_narrow(3, 0, positions)?)? {
            return Err(label_range().into());
        }
        Ok(())
    }

    /// Labels [b, h, r, w] in the storage type: first those of the n keys, then those of the m queries, so that both are quantised at
    /// once where both are. The rest is padding of any content: w is a multiple of 8, which suits matrix products.
    fn labels(&self, layer: &Layer) -> Result<Tensor> {
        let Dims { batch, heads, kv_heads, queries, keys, .. } = layer.dims;
        let group = layer.dims.group_size() as i64;
        let (b, h, hk, m, n) = (batch as i64, heads as i64, kv_heads as i64, queries as i64, keys as i64);
        let r = self.label_channels;
        let width = ((n + m) as u64).next_multiple_of(8) as i64;
        let labels = Tensor::f_empty([b * hk, group * r, width], (layer.k.kind(), layer.device()))?;
        let keys = layer.k.f_transpose(1, 2)?;
        let _ = if b == 1 {
            self.pick_keys.f_bmm_out(&labels.f_narrow(2, 0, n)?, &keys)?
        } else {
            let pick_keys = self.pick_keys.f_repeat([b, 1, 1])?;
            pick_keys.f_bmm_out(&labels.f_narrow(2, 0, n)?, &keys)?
        };
        let place = labels.f_view([b, hk, group, r, width])?.f_narrow(4, n, m)?;
        let channels = self.channels.f_expand([b, hk, group, r, m], false)?;
        let _ = layer.q.f_transpose(3, 4)?.f_gather_out(&place, 3, &channels, false)?;
        let mut labels = labels.f_view([b, h, r, width])?;
        let [query_bits, key_bits] = self.selection.bits();
        if query_bits == key_bits {
            if key_bits.quantises() {
                quantize_(&mut labels, key_bits, self.storage)?;
            }
            return Ok(labels);
        }
        for (bits, first, count) in [(key_bits, 0, n), (query_bits, n, m)] {
            if bits.quantises() {
                quantize_(&mut labels.f_narrow(3, first, count)?, bits, self.storage)?;
            }
        }
        Ok(labels)
    }

    /// Scores with A of the selections that heads share: [b, selections, m, n] in f32; and where it is asked for and labels are
    /// quantised, the sum of the products.
    fn scores(&self, layer: &Layer, with_sum: bool) -> Result<(Tensor, Option<Tensor>)> {
        let [b, h, m, n] = layer.mask_shape();
        let (hk, group) = (layer.dims.kv_heads as i64, layer.dims.group_size() as i64);
        let d = layer.dims.head_dim as i64;
        let (heads, rules) = (self.selection.heads, &self.selection.rules);
        let summed = heads == HeadMode::SummedLabels;
        let cosine = rules.score == ScoreRule::Cosine;
        let (mut sum, mut norms) = (None, None);
        let dots = if !self.quantises() && !summed && !cosine {
            // Channels that are no label become 0 in q; then k needs no gathering.
            let q = layer.q.f_mul(&self.of_channels)?.f_reshape([b * hk, group * m, d])?;
            product(&q, &layer.k.f_transpose(1, 2)?)?.f_reshape([b, h, m, n])?
        } else {
            let labels = self.labels(layer)?;
            let (mut keys, mut queries) = (labels.f_narrow(3, 0, n)?, labels.f_narrow(3, n, m)?);
            if let Some(weights) = &self.channel_weights {
                queries = queries.f_to_kind(Kind::Float)?.f_mul(weights)?;
            }
            if summed {
                keys = rules::summed_in_ranks(&keys, rules.ranks)?;
                queries = rules::summed_in_ranks(&queries, rules.ranks)?;
            }
            if cosine {
                norms = Some((rules::norms(&queries, 2)?, rules::norms(&keys, 2)?));
            }
            let dots = product(&folded(&queries.f_transpose(-1, -2)?)?, &folded(&keys)?)?;
            if with_sum && self.quantises() {
                sum = Some(dots.f_sum(Kind::Float)?);
            }
            dots.f_reshape([b, -1, m, n])?
        };
        // In summed-labels all heads have the same A and the same weights.
        let of_one = |x: &Tensor| if summed { x.f_narrow(1, 0, 1) } else { Ok(x.shallow_clone()) };
        let additive = layer.additive.as_ref().map(of_one).transpose()?;
        let parts = ScoreParts {
            norms,
            head_weights: layer.head_weights.as_ref().map(of_one).transpose()?,
            additive: additive.as_ref(),
            label_channels: self.label_channels,
            head_dim: d,
        };
        let scores = rules::scores(rules, dots, &parts)?;
        Ok((rules::combined(heads, rules.ranks, &scores, &layer.dims)?, sum))
    }
}

/// Labels that leave the storage type (SPEC D9).
pub(super) fn label_range() -> Error {
    let expected = "labels that are finite in the storage type";
    Error::LabelRange(Detail::new("labels", "a NaN or infinity", expected))
}

/// The label channels of each head: [hk, g, r].
pub(super) fn label_channels(dims: &Dims, channels: &ChannelOrder, r: i64, device: Device) -> Result<Tensor> {
    let rows = channels.rows();
    let leading = |row: &Vec<usize>| row[..r as usize].iter().map(|&c| c as i64).collect::<Vec<_>>();
    let flat: Vec<i64> = rows.iter().flat_map(leading).collect();
    rules::of_every_head(&Tensor::f_from_slice(&flat)?.f_to_device(device)?, rows.len(), dims, r)
}

pub(super) fn is_finite(x: &Tensor) -> Result<bool> {
    Ok(x.f_isfinite()?.f_all()?.f_int64_value(&[])? != 0)
}

/// What is selected of scores.
pub(super) struct Ranking {
    /// H
    pub heavy_size: usize,
    /// Keys that come first.
    pub forced: Forced,
    /// Whether A excludes none.
    pub all_candidates: bool,
}

impl Ranking {
    /// Nothing is forced.
    fn plain(layer: &Layer, heavy_size: HeavySize) -> Self {
        let (heavy_size, all_candidates) = (heavy_size.resolve(layer.dims.keys), layer.additive.is_none());
        Self { heavy_size, forced: Forced::default(), all_candidates }
    }
}

/// The H largest scores [b, selections, m, n] of each row that are candidates (SPEC §2.8, §2.9, §2.12).
pub(super) fn largest(scores: &Tensor, before: Option<&Tensor>, ranking: Ranking) -> Result<Selected> {
    let (_, selections, m, n) = scores.size4()?;
    let scores = match before {
        None => scores.shallow_clone(),
        Some(before) => {
            let before = if selections == before.size()[1] {
                before.shallow_clone()
            } else {
                shared(before, selections)?.f_amax(2, false)?
            };
            scores.f_masked_fill(&before.f_ne(0.0)?, f64::NEG_INFINITY)?
        }
    };
    let scores = rules::force(ranking.forced, &scores, m, n)?;
    let (values, keys) = scores.f_topk(ranking.heavy_size as i64, -1, true, false)?;
    let valid = match (before, ranking.all_candidates) {
        (None, true) => None,
        _ => Some(values.f_gt(f64::NEG_INFINITY)?),
    };
    Ok(Selected { keys, valid, probe: Probe::Scores(values) })
}

/// Exact top-k: the H largest q·k·scaling + A, each head alone.
pub fn oracle(layer: &Layer, heavy_size: HeavySize, before: Option<&Tensor>) -> Result<Selected> {
    largest(&logits(layer)?, before, Ranking::plain(layer, heavy_size))
}

/// Keys drawn at random among those that A leaves, each head and query alone, by libtorch's generator.
pub fn random(layer: &Layer, heavy_size: HeavySize, before: Option<&Tensor>) -> Result<Selected> {
    let numbers = Tensor::f_rand(layer.mask_shape(), (Kind::Float, layer.device()))?;
    let scores = match &layer.additive {
        None => numbers,
        Some(additive) => numbers.f_add(additive)?,
    };
    largest(&scores, before, Ranking::plain(layer, heavy_size))
}

/// The first keys, added where they are not attended yet.
pub fn sink(layer: &Layer, size: HeavySize, before: &Tensor) -> Result<Tensor> {
    let (keys, _) = positions(layer.dims.queries as i64, layer.dims.keys as i64, layer.device())?;
    let window = keys.f_lt(size.resolve(layer.dims.keys) as i64)?;
    add_window(&window, before)
}

/// The last keys up to and including each query's own position, added where they are not attended yet.
pub fn local(layer: &Layer, size: HeavySize, before: &Tensor) -> Result<Tensor> {
    let (keys, queries) = positions(layer.dims.queries as i64, layer.dims.keys as i64, layer.device())?;
    let distance = queries.f_sub(&keys)?;
    let size = size.resolve(layer.dims.keys) as i64;
    let window = distance.f_ge(0)?.f_logical_and(&distance.f_lt(size)?)?;
    add_window(&window, before)
}

fn add_window(window: &Tensor, before: &Tensor) -> Result<Tensor> {
    let new = before.f_eq(0.0)?.f_logical_and(window)?;
    Ok(before.f_masked_fill(&new, 1.0)?)
}

//! A label cache kept across decode steps (SPEC §2.3 to §2.11): keys and values are appended once, with their labels, and a
//! step then touches all labels but only the selected keys and values. Labels are those of [`super::masker`] bit for bit.
//!
//! What a step costs is bytes and launches, so keys and values of a position lie side by side and are gathered by one
//! operation, in numbers of 8 bytes. Labels are kept in the storage type, at B ≤ 8 too: libtorch has no product of bytes with
//! f16, and turning codes into f16 first moves five bytes for each label where reading f16 moves two. A product of one query with
//! labels of eight channels reads memory at a fifth of its speed; taking several positions as one longer row, against a
//! block-diagonal query, trebles that. `benches/decode_cuda.rs` times each of these choices against the others.
//!
//! tch 0.24 wraps neither CUDA graphs nor streams, so that a step cannot be captured: its operations are launched one by one,
//! and on a slow processor their launches take longer than the device does.

use tch::{Device, Kind, Tensor};

use super::attention::{divided, exponentials};
use super::error::Result;
use super::layer::{kind, product};
use super::masker::{Ranking, Selected, check, is_finite, label_channels, label_range, largest, quantize_};
use super::rules::{self, ScoreParts, for_every_head};
use crate::algorithm::{
    ChannelOrder, Detail, Dims, Error, HeadMode, LabelBits, Precision, Rules, ScoreRule, Selection, Storage,
};

/// Storage is made for a multiple of this many keys, so that every packing divides it.
const KEYS_MULTIPLE: i64 = 128;

/// Keys, values and labels of one layer, and what selects from them.
#[derive(Debug)]
pub struct LabelledKvCache {
    /// Sizes; `keys` is how many are held, `queries` is not used.
    dims: Dims,
    selection: Selection,
    storage: Storage,
    kept: Precision,
    scaling: f64,
    /// The label channels of each head: [1, hk, g, 1, r].
    channels: Tensor,
    /// Channel weights in f32, [1, h, 1, r]; `None` where they are 1.
    channel_weights: Option<Tensor>,
    /// How many keys there is room for.
    capacity: i64,
    /// [b·hk, capacity, d + dv] in the storage type: each key beside its value.
    keys_values: Tensor,
    /// [rows, capacity, width], see [`LabelledKvCache::rows_and_width`]; 0 where no key is held yet. In the storage type, or in f32 where
    /// what they are multiplied by is.
    labels: Tensor,
    /// Block-diagonal query labels [rows, pack · width, pack], 0 outside the blocks.
    packed_query: Tensor,
    /// 0, or NaN once a key or value was not finite.
    inputs_probe: Tensor,
    /// 0, or NaN once a label was not finite.
    labels_probe: Tensor,
}

/// Label scores of one step.
pub struct LabelScores {
    /// Labels of the queries, [b, h, m, r] in the storage type.
    pub query_labels: Tensor,
    /// [b, selections, m, n], of each head, each KV head or all; larger is better.
    pub scores: Tensor,
}

/// What a step answers.
pub struct DecodeStep {
    /// Labels of the queries, [b, h, m, r] in the storage type.
    pub query_labels: Tensor,
    /// The selected keys.
    pub selected: Selected,
    /// [b, h, m, dv]: in f32, or in the storage type where that is what is kept.
    pub output: Tensor,
}

impl LabelledKvCache {
    /// An empty cache. `dims` gives b, h, hk, d and dv; its n and m are not used. `kept` says what scores and attention weights
    /// are kept in: f32, or, as in the author's code, the storage type, in which top-k takes half the passes and attention
    /// is libtorch's own; scores that are summed over heads are f32 in any case. `scaling` is the factor of q·k.
    ///
    /// Errors: those of [`check`]; those of libtorch.
    pub fn new(
        dims: &Dims,
        channels: &ChannelOrder,
        selection: &Selection,
        storage: Storage,
        kept: Precision,
        scaling: f64,
        device: Device,
    ) -> Result<Self> {
        let r = check(dims, channels, selection)?;
        let channel_weights = match rules::channel_weights(dims, channels, r, &selection.rules, device)? {
            None => None,
            Some(weights) => Some(weights.f_reshape([1, dims.heads as i64, 1, r])?),
        };
        let channels = label_channels(dims, channels, r, device)?.f_unsqueeze(0)?.f_unsqueeze(3)?;
        let nothing = Tensor::f_zeros([1], (Kind::Float, device))?;
        let mut cache = Self {
            dims: Dims { keys: 0, ..*dims },
            selection: *selection,
            storage,
            kept,
            scaling,
            channels,
            channel_weights,
            capacity: 0,
            keys_values: nothing.shallow_clone(),
            labels: nothing.shallow_clone(),
            packed_query: nothing.shallow_clone(),
            inputs_probe: nothing.f_zeros_like()?,
            labels_probe: nothing.f_zeros_like()?,
        };
        let (rows, width) = cache.rows_and_width();
        let pack = cache.pack();
        let options = (cache.labels_kind(), device);
        cache.packed_query = Tensor::f_zeros([rows, pack * width, pack], options)?;
        cache.reserve(KEYS_MULTIPLE)?;
        Ok(cache)
    }

    /// A new cache of the same kind that holds nothing. Errors: those of libtorch.
    pub fn emptied(&self) -> Result<Self> {
        let nothing = self.inputs_probe.f_zeros_like()?;
        let mut cache = Self {
            dims: Dims { keys: 0, ..self.dims },
            channels: self.channels.shallow_clone(),
            channel_weights: self.channel_weights.as_ref().map(Tensor::shallow_clone),
            capacity: 0,
            keys_values: nothing.shallow_clone(),
            labels: nothing.shallow_clone(),
            packed_query: self.packed_query.f_zeros_like()?,
            inputs_probe: nothing.f_zeros_like()?,
            labels_probe: nothing.f_zeros_like()?,
            ..*self
        };
        cache.reserve(KEYS_MULTIPLE)?;
        Ok(cache)
    }

    /// How many keys are held.
    pub fn keys(&self) -> usize {
        self.dims.keys
    }

    /// Bytes that hold one key's labels, over all batch entries and heads.
    pub fn label_bytes_of_a_key(&self) -> usize {
        let (rows, width) = self.rows_and_width();
        rows as usize * width as usize * self.labels_kind().elt_size_in_bytes()
    }

    /// Rows of labels and numbers in each: b·h and r where each head has scores; b and h·r where [`Self::is_one_product`]; b for
    /// each rank and r in `summed-labels`, where only the sum over heads is kept.
    fn rows_and_width(&self) -> (i64, i64) {
        let (b, h) = (self.dims.batch as i64, self.dims.heads as i64);
        let r = *self.channels.size().last().unwrap_or(&1);
        match self.selection.heads {
            HeadMode::SummedLabels => (b * self.selection.rules.ranks.count() as i64, r),
            _ if self.is_one_product() => (b, h * r),
            _ => (b * h, r),
        }
    }

    /// Whether the sum over heads is one longer product, as no part of it is rounded.
    fn is_one_product(&self) -> bool {
        let Rules { score, ranks, .. } = self.selection.rules;
        let plain = score == ScoreRule::Dot && ranks.parts() == Storage::F32;
        self.selection.heads == HeadMode::SummedScores && plain
    }

    /// How many positions a product takes as one row: the power of two that fills 128 numbers. Wider labels gain nothing.
    fn pack(&self) -> i64 {
        match self.rows_and_width().1 {
            width @ 1..=16 => 1 << (KEYS_MULTIPLE / width).ilog2(),
            _ => 1,
        }
    }

    fn labels_kind(&self) -> Kind {
        match self.selection.heads {
            HeadMode::SummedLabels => Kind::Float,
            _ if self.channel_weights.is_some() => Kind::Float,
            _ => kind(self.storage),
        }
    }

    fn device(&self) -> Device {
        self.channels.device()
    }

    /// How many selections there are for each batch entry and query, by the KV head they read, and query heads that share one.
    fn selections(&self) -> (i64, i64) {
        match self.selection.heads {
            HeadMode::PerHead => (self.dims.heads as i64, 1),
            _ => (self.dims.kv_heads as i64, self.dims.group_size() as i64),
        }
    }

    /// Makes room for `keys` keys; storage at least doubles where it grows.
    fn reserve(&mut self, keys: i64) -> Result<()> {
        if keys <= self.capacity {
            return Ok(());
        }
        let Dims { batch, kv_heads, keys: held, head_dim, value_dim, .. } = self.dims;
        let (b, hk, held) = (batch as i64, kv_heads as i64, held as i64);
        let capacity = (keys.max(2 * self.capacity) as u64).next_multiple_of(KEYS_MULTIPLE as u64) as i64;
        let (rows, width) = self.rows_and_width();
        let row = (head_dim + value_dim) as i64;
        let grown = Tensor::f_empty([b * hk, capacity, row], (kind(self.storage), self.device()))?;
        // Packed products read labels past the last key; 0 times 0 adds nothing.
        let labels = Tensor::f_zeros([rows, capacity, width], (self.labels_kind(), self.device()))?;
        if held > 0 {
            grown.f_narrow(1, 0, held)?.f_copy_(&self.keys_values.f_narrow(1, 0, held)?)?;
            labels.f_narrow(1, 0, held)?.f_copy_(&self.labels.f_narrow(1, 0, held)?)?;
        }
        (self.keys_values, self.labels, self.capacity) = (grown, labels, capacity);
        Ok(())
    }

    /// Adds c keys and values, [b, hk, c, d] and [b, hk, c, dv] in the storage type on the cache's device.
    ///
    /// Numbers that are not finite, here or in the labels made of them, show in [`LabelledKvCache::check`]: to refuse them here would
    /// wait for the device. Errors: [`Error::Shape`] for other shapes, types or devices; those of libtorch.
    pub fn append(&mut self, k: &Tensor, v: &Tensor) -> Result<()> {
        if k.size().get(2) == Some(&0) && v.size().get(2) == Some(&0) {
            return Ok(());
        }
        let labels = self.labels_of_keys(k)?;
        let probe = self.probe(&labels)?;
        self.place(k, v, &self.arranged(&labels)?, probe.as_ref())
    }

    /// The labels of keys [b, hk, c, d] in the storage type on the cache's device, as a pool keeps them: [c, ·], those of all heads side
    /// by side, and behind them 0, or NaN where one is not finite.
    ///
    /// Errors: [`Error::Shape`] for another shape, type or device; those of libtorch.
    pub fn label_rows(&self, k: &Tensor) -> Result<Tensor> {
        let labels = self.labels_of_keys(k)?;
        let probe =
            labels.f_mul_scalar(0.0)?.f_sum_dim_intlist([0i64, 1, 3].as_slice(), false, Kind::Float)?;
        let rows = self.arranged(&labels)?.f_transpose(0, 1)?.f_reshape([probe.size()[0], -1])?;
        let probe = probe.f_unsqueeze(1)?.f_to_kind(rows.kind())?;
        Ok(Tensor::f_cat(&[rows, probe], 1)?)
    }

    /// Adds keys and values as [`LabelledKvCache::append`] does, with the labels that [`LabelledKvCache::label_rows`] made of them.
    /// Errors: as there.
    pub fn append_labelled(&mut self, k: &Tensor, v: &Tensor, rows: &Tensor) -> Result<()> {
        let ((heads, width), count) = (self.rows_and_width(), rows.size()[0]);
        let labels = rows.f_narrow(1, 0, heads * width)?.f_reshape([count, heads, width])?;
        let probe = rows.f_narrow(1, heads * width, 1)?.f_sum(Kind::Float)?.f_reshape([1])?;
        self.place(k, v, &labels.f_transpose(0, 1)?, Some(&probe))
    }

    fn labels_of_keys(&self, k: &Tensor) -> Result<Tensor> {
        let Dims { batch, kv_heads, head_dim, .. } = self.dims;
        let (b, hk, d) = (batch as i64, kv_heads as i64, head_dim as i64);
        let count = k.size().get(2).copied().unwrap_or_default();
        self.check_tensor("k", k, [b, hk, count, d])?;
        let (group, [_, bits]) = (self.dims.group_size() as i64, self.selection.bits());
        self.labels_of(&k.f_unsqueeze(2)?.f_expand([b, hk, group, count, d], false)?, bits)
    }

    /// 0, or NaN where a label is not finite; `None` where labels are the keys' own numbers.
    fn probe(&self, labels: &Tensor) -> Result<Option<Tensor>> {
        let [_, bits] = self.selection.bits();
        bits.quantises().then(|| zero_if_finite(labels)).transpose()
    }

    /// Writes keys, values and labels [rows, c, width] behind those that are held.
    fn place(&mut self, k: &Tensor, v: &Tensor, labels: &Tensor, probe: Option<&Tensor>) -> Result<()> {
        let Dims { batch, kv_heads, keys, head_dim, value_dim, .. } = self.dims;
        let added = k.size().get(2).copied().unwrap_or_default();
        self.check_tensor("k", k, [batch as i64, kv_heads as i64, added, head_dim as i64])?;
        self.check_tensor("v", v, [batch as i64, kv_heads as i64, added, value_dim as i64])?;
        if added == 0 {
            return Ok(());
        }
        let (b, hk, held) = (batch as i64, kv_heads as i64, keys as i64);
        let (d, dv) = (head_dim as i64, value_dim as i64);
        self.reserve(held + added)?;
        let place = self.keys_values.f_narrow(1, held, added)?;
        place.f_narrow(2, 0, d)?.f_copy_(&k.f_reshape([b * hk, added, d])?)?;
        place.f_narrow(2, d, dv)?.f_copy_(&v.f_reshape([b * hk, added, dv])?)?;
        let _ = self.inputs_probe.f_add_(&zero_if_finite(&place)?)?;
        if let Some(probe) = probe {
            let _ = self.labels_probe.f_add_(probe)?;
        }
        self.labels.f_narrow(1, held, added)?.f_copy_(labels)?;
        self.dims.keys += added as usize;
        Ok(())
    }

    fn check_tensor(&self, name: &str, found: &Tensor, shape: [i64; 4]) -> Result<()> {
        let (size, kind, device) = (found.size(), kind(self.storage), self.device());
        if size == shape && found.kind() == kind && found.device() == device {
            return Ok(());
        }
        let found = format!("{size:?} {:?} on {:?}", found.kind(), found.device());
        Err(Error::Shape(Detail::new(name, found, format!("{shape:?} {kind:?} on {device:?}"))).into())
    }

    /// SPEC §2.4 and §2.5: labels [b, h, c, r] of positions [b, hk, g, c, d].
    fn labels_of(&self, positions: &Tensor, bits: LabelBits) -> Result<Tensor> {
        let size = positions.size();
        let (b, hk, group, count) = (size[0], size[1], size[2], size[3]);
        let channels = self.channels.f_expand([b, hk, group, count, -1], false)?;
        let labels = positions.f_gather(4, &channels, false)?.f_view([b, hk * group, count, -1])?;
        if bits.quantises() {
            quantize_(&mut labels.f_transpose(2, 3)?, bits, self.storage)?;
        }
        Ok(labels)
    }

    /// Labels [b, h, c, r] as rows that are multiplied: [rows, c, width] (SPEC §2.7).
    fn arranged(&self, labels: &Tensor) -> Result<Tensor> {
        let (rows, width) = self.rows_and_width();
        Ok(match self.selection.heads {
            HeadMode::SummedLabels => {
                rules::summed_in_ranks(labels, self.selection.rules.ranks)?.f_reshape([rows, -1, width])?
            }
            _ if self.is_one_product() => labels.f_transpose(1, 2)?.f_reshape([rows, -1, width])?,
            _ => labels.f_reshape([rows, -1, width])?,
        })
    }

    /// The labels of all keys, [b, h, n, r] in the storage type, or in f32 where there are channel weights; `None` in `summed-labels`,
    /// where only their sum is kept.
    ///
    /// Errors: those of libtorch.
    pub fn labels(&self) -> Result<Option<Tensor>> {
        let (b, h, n) = (self.dims.batch as i64, self.dims.heads as i64, self.dims.keys as i64);
        let held = self.labels.f_narrow(1, 0, n)?;
        Ok(match self.selection.heads {
            HeadMode::SummedLabels => None,
            _ if self.is_one_product() => Some(held.f_reshape([b, n, h, -1])?.f_transpose(1, 2)?),
            _ => Some(held.f_reshape([b, h, n, -1])?),
        })
    }

    /// One decode step: label scores, the H best keys, and attention over them. q is [b, h, m, d] in the storage type; `additive`
    /// is A in f32, broadcastable to [b, h, m, n], `None` where it is 0 everywhere, as for one query that sees all keys held. Head
    /// weights are 1.
    ///
    /// Errors: those of [`LabelledKvCache::score`] and [`LabelledKvCache::select`].
    pub fn step(&mut self, q: &Tensor, additive: Option<&Tensor>) -> Result<DecodeStep> {
        let LabelScores { query_labels, scores } = self.score(q, additive, None)?;
        let selected = self.select(&scores, additive, None)?;
        let output = self.attend(q, &selected, additive)?;
        Ok(DecodeStep { query_labels, selected, output })
    }

    /// SPEC §2.6, §2.7 and §2.12: label scores of all keys held. Without A they are not multiplied by the factor, which changes no
    /// ranking. `head_weights` are w in f32, [b, h, m, 1], for the rule `relu`; `None` where they are 1.
    ///
    /// Errors: [`Error::Shape`] for a q that does not fit and for a cache without keys; those of libtorch.
    pub fn score(
        &mut self,
        q: &Tensor,
        additive: Option<&Tensor>,
        head_weights: Option<&Tensor>,
    ) -> Result<LabelScores> {
        let Dims { batch, heads, kv_heads, keys, head_dim, .. } = self.dims;
        let queries = q.size().get(2).copied().unwrap_or_default();
        self.check_tensor("q", q, [batch as i64, heads as i64, queries, head_dim as i64])?;
        if keys == 0 || queries == 0 {
            let found = format!("{queries} queries and {keys} keys");
            return Err(Error::Shape(Detail::new("q and cache", found, "at least one of each")).into());
        }
        let (b, hk, m, n, d) = (batch as i64, kv_heads as i64, queries, keys as i64, head_dim as i64);
        let [bits, _] = self.selection.bits();
        let query_labels = self.labels_of(&q.f_reshape([b, hk, -1, m, d])?, bits)?;
        let rows = match &self.channel_weights {
            None => self.arranged(&query_labels)?,
            Some(weights) => self.arranged(&query_labels.f_to_kind(Kind::Float)?.f_mul(weights)?)?,
        };
        let dots = self.dots(&rows)?.f_view([b, -1, m, n])?;
        let norms = match self.selection.rules.score {
            ScoreRule::Cosine => {
                let of = |labels: &Tensor| -> Result<Tensor> {
                    Ok(rules::norms(labels, -1)?.f_view([b, -1, labels.size()[1]])?)
                };
                Some((of(&rows)?, of(&self.labels.f_narrow(1, 0, n)?)?))
            }
            _ => None,
        };
        // In summed-labels all heads have the same A and the same weights.
        let summed = self.selection.heads == HeadMode::SummedLabels;
        let of_one = |x: &Tensor| if summed { x.f_narrow(1, 0, 1) } else { Ok(x.shallow_clone()) };
        let additive = match additive {
            Some(additive) if self.is_one_product() && additive.size()[1] == 1 => {
                Some(additive.f_mul_scalar(heads as f64)?)
            }
            Some(additive) if self.is_one_product() => {
                Some(additive.f_sum_dim_intlist(1, true, Kind::Float)?)
            }
            additive => additive.map(of_one).transpose()?,
        };
        let dots = if additive.is_some() { dots.f_to_kind(Kind::Float)? } else { dots };
        let parts = ScoreParts {
            norms,
            head_weights: head_weights.map(of_one).transpose()?,
            additive: additive.as_ref(),
            label_channels: query_labels.size()[3],
            head_dim: d,
        };
        let mut scores = rules::scores(&self.selection.rules, dots, &parts)?;
        if let Some(additive) = &additive {
            // A dot product that overflows to +∞ makes NaN of −∞, and NaN would come first.
            scores = scores.f_masked_fill(&additive.f_eq(f64::NEG_INFINITY)?, f64::NEG_INFINITY)?;
        }
        let scores = rules::combined(self.selection.heads, self.selection.rules.ranks, &scores, &self.dims)?;
        Ok(LabelScores { query_labels, scores })
    }

    /// Products of query labels [rows, m, width] with the labels of all keys held: [rows, m, n].
    fn dots(&self, query: &Tensor) -> Result<Tensor> {
        let (rows, width) = self.rows_and_width();
        let (n, pack) = (self.dims.keys as i64, self.pack());
        if query.size()[1] > 1 || pack == 1 {
            return self.kept_product(query, &self.labels.f_narrow(1, 0, n)?.f_transpose(1, 2)?);
        }
        let blocks = self.packed_query.f_view([rows, pack, width, pack])?.f_diagonal(0, 1, 3)?;
        { blocks }.f_copy_(&query.f_transpose(1, 2)?)?;
        let count = (n as u64).div_ceil(pack as u64) as i64;
        let positions =
            self.labels.f_view([rows, self.capacity / pack, pack * width])?.f_narrow(1, 0, count)?;
        let dots = self.kept_product(&positions, &self.packed_query)?;
        Ok(dots.f_view([rows, 1, count * pack])?.f_narrow(2, 0, n)?.f_contiguous()?)
    }

    /// A product that is summed in f32, in the type that scores are kept in.
    fn kept_product(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let Selection { heads, rules, .. } = &self.selection;
        let plain = *heads == HeadMode::PerHead && rules.score == ScoreRule::Dot;
        let in_storage = self.kept == Precision::Storage && plain && self.channel_weights.is_none();
        if in_storage && self.device().is_cuda() {
            Ok(a.f_bmm(b)?)
        } else if in_storage {
            Ok(product(a, b)?.f_to_kind(kind(self.storage))?)
        } else {
            product(a, b)
        }
    }

    /// SPEC §2.8 and §2.9: the H best keys, from [`LabelledKvCache::score`] with the same A. Keys attended `before`, a mask of weights
    /// [b, h, m, n] in f32, are no candidates.
    ///
    /// Errors: [`Error::HeavySize`] for an H that cannot hold the forced keys; those of libtorch.
    pub fn select(
        &self,
        scores: &Tensor,
        additive: Option<&Tensor>,
        before: Option<&Tensor>,
    ) -> Result<Selected> {
        let heavy_size = self.selection.heavy_size.resolve(self.dims.keys);
        let forced = self.selection.rules.forced;
        forced.check(&self.dims, heavy_size)?;
        largest(scores, before, Ranking { heavy_size, forced, all_candidates: additive.is_none() })
    }

    /// SPEC §2.11 over the selected keys alone: [b, h, m, dv], in f32 or in the storage type. Errors: those of libtorch.
    pub fn attend(&self, q: &Tensor, selected: &Selected, additive: Option<&Tensor>) -> Result<Tensor> {
        let Dims { batch, heads, head_dim, value_dim, .. } = self.dims;
        let (b, h, d, dv) = (batch as i64, heads as i64, head_dim as i64, value_dim as i64);
        let (selections, sharing) = self.selections();
        let m = q.size()[2];
        let width = selected.keys.size()[3];
        // Query heads that share a selection become queries of one product: [b, h, m, ·] and [b, selections · m, sharing, ·].
        let rows = |x: &Tensor| -> Result<Tensor> {
            let grouped = x.f_reshape([b, selections, sharing, m, -1])?;
            Ok(grouped.f_transpose(2, 3)?.f_reshape([b, selections * m, sharing, -1])?)
        };
        let heads = |x: &Tensor| -> Result<Tensor> {
            let grouped = x.f_reshape([b, selections, m, sharing, -1])?;
            Ok(grouped.f_transpose(2, 3)?.f_reshape([b, h, m, -1])?)
        };
        let read = self.read(&selected.keys)?.f_view([b, selections * m, width, d + dv])?;
        let (k, v) = (read.f_narrow(3, 0, d)?, read.f_narrow(3, d, dv)?);
        let q = rows(q)?;
        let everything = additive.is_none() && selected.valid.is_none();
        if everything && self.kept == Precision::Storage {
            // Query heads that share keys read them once.
            let q = q.f_reshape([b, selections * m * sharing, 1, d])?;
            let (none, grouped): (Option<&Tensor>, bool) = (None, sharing > 1);
            let output =
                Tensor::f_scaled_dot_product_attention(&q, &k, &v, none, 0.0, false, self.scaling, grouped)?;
            return heads(&output);
        }
        let batched = |x: &Tensor| x.f_flatten(0, 1);
        let dots = product(&batched(&q)?, &batched(&k)?.f_transpose(1, 2)?)?;
        let logits = dots.f_mul_scalar(self.scaling)?;
        let v = batched(&v)?.f_to_kind(Kind::Float)?;
        if everything {
            return heads(&logits.f_softmax(-1, Kind::Float)?.f_bmm(&v)?);
        }
        let mut logits = heads(&logits)?;
        let keys = for_every_head(&selected.keys, h)?;
        if let Some(additive) = additive {
            let all = additive.f_expand([b, h, m, self.dims.keys as i64], false)?;
            logits = logits.f_add(&all.f_gather(-1, &keys, false)?)?;
        }
        let weights = for_every_head(&selected.weights()?, h)?;
        let e = exponentials(&logits, &weights)?;
        let total = e.f_sum_dim_intlist(-1, true, Kind::Float)?;
        divided(&heads(&batched(&rows(&e)?)?.f_bmm(&v)?)?, &total)
    }

    /// Keys [b, selections, m, H] beside their values: [b, hk, ·, d + dv], in the order of the selections that each KV head serves.
    fn read(&self, keys: &Tensor) -> Result<Tensor> {
        let (b, hk) = (self.dims.batch as i64, self.dims.kv_heads as i64);
        let width = self.keys_values.size()[2];
        // Gathering moves whole numbers of 8 bytes where a row has them: four times fewer than numbers of 2 bytes.
        let bytes = width as usize * self.keys_values.kind().elt_size_in_bytes();
        let wide = if bytes.is_multiple_of(8) { Kind::Int64 } else { self.keys_values.kind() };
        let rows = self.keys_values.f_view_dtype(wide)?.f_view([b, hk, self.capacity, -1])?;
        let keys = match keys.size()[1] {
            1 => keys.f_view([b, 1, -1, 1])?,
            _ => keys.f_view([b, hk, -1, 1])?,
        };
        let index = keys.f_expand([b, hk, -1, rows.size()[3]], false)?;
        Ok(rows.f_gather(2, &index, false)?.f_view_dtype(self.keys_values.kind())?)
    }

    /// Refuses numbers that are not finite in anything appended, and labels that leave the storage type (SPEC D9), of queries too;
    /// waits for the device. Errors: [`Error::NotFinite`], [`Error::LabelRange`].
    pub fn check(&self, query_labels: &Tensor) -> Result<()> {
        if !is_finite(&self.inputs_probe)? {
            let detail = Detail::new("k or v", "a NaN or infinity", "finite numbers");
            return Err(Error::NotFinite(detail).into());
        }
        if is_finite(&self.labels_probe)? && is_finite(query_labels)? {
            return Ok(());
        }
        Err(label_range().into())
    }
}

/// [1]: 0, or NaN where a number is not finite; waits for nothing.
fn zero_if_finite(x: &Tensor) -> Result<Tensor> {
    Ok(x.f_mul_scalar(0.0)?.f_sum(Kind::Float)?.f_reshape([1])?)
}

//! The sizes and settings of a question, moved inside what a subject offers, and the tensors that make scores what a probe
//! wants: with q = e₀ and kⱼ = sⱼ·e₀ the score of key j is sⱼ times the factor, with codes as without.
//!
//! The keys of a call, in order: those that rules force first, fillers, low keys, the keys that the probe is about, and those
//! that rules force last. Fillers score highest and take the places of a heavy size that is larger than the probe needs; low
//! keys score least and make up a number of keys that the domain wants.

use std::num::NonZeroUsize;
use std::sync::Arc;

use ndarray::{Array3, Array4};

use crate::algorithm::{
    ChannelOrder, Dims, GroupFactor, HeadMode, HeavySize, InputParts, Inputs, LabelBits, Mask, Rules,
    ScoreRule, Selection, Storage,
};
use crate::cases::domain::{Domain, Sizes};
use crate::cases::recipe::Words;
use crate::cases::strategies::ChannelRows;
use crate::cases::{Call, Capabilities, Feature, Instance, ScoresCall, StageCall};

/// How many places of a domain are looked at for the one closest to what is wanted.
const SEEDS: u64 = 24;

/// How far beyond the keys needed a number that the domain allows is searched for.
const FURTHER: usize = 4096;

/// The score of fillers; probes use lower ones.
const FILLER: f32 = 6.0;

/// Sizes and settings of a question.
#[derive(Debug, Clone)]
pub(super) struct Draft {
    pub batch: usize,
    pub kv_heads: usize,
    pub group: usize,
    pub queries: usize,
    /// The keys that the probe is about.
    pub keys: usize,
    pub label_channels: usize,
    pub group_factor: usize,
    /// dv; `None` is d.
    pub value_dim: Option<usize>,
    pub bits: usize,
    /// H without fillers and forced keys.
    pub heavy: usize,
    /// H as a share of the keys, in place of `heavy`.
    pub fraction: Option<f64>,
    pub mode: HeadMode,
    pub rules: Rules,
    pub rows: ChannelRows,
    pub storage: Storage,
    pub causal: bool,
    pub dense_fallback: bool,
    pub scaling: Option<f64>,
    /// Keys that take places of H; set by [`Self::fit`].
    pub fillers: usize,
    /// Keys that score least; set by [`Self::fit`].
    pub low: usize,
}

/// The tensors of a call; what is left out has a default.
#[derive(Default)]
pub(super) struct Parts {
    pub q: Option<Array4<f32>>,
    pub k: Option<Array4<f32>>,
    pub v: Option<Array4<f32>>,
    pub additive: Option<Array4<f32>>,
    pub previous: Option<Array4<f32>>,
    pub head_weights: Option<Array3<f32>>,
    pub layer: usize,
}

impl Draft {
    /// One entry, one query, `keys` keys over two label channels, unquantised, H = 1, with the first types, modes and rules
    /// that are offered.
    pub fn new(capabilities: &Capabilities, keys: usize) -> Self {
        let per_head = capabilities.heads.contains(&HeadMode::PerHead);
        let first = capabilities.heads.first().copied().unwrap_or_default();
        let plain = capabilities.rules.contains(&Rules::default());
        let rules = capabilities.rules.first().copied().unwrap_or_default();
        Self {
            batch: 1,
            kv_heads: 1,
            group: 1,
            queries: 1,
            keys,
            label_channels: 2,
            group_factor: 1,
            value_dim: None,
            bits: 16,
            heavy: 1,
            fraction: None,
            mode: if per_head { HeadMode::PerHead } else { first },
            rules: if plain { Rules::default() } else { rules },
            rows: ChannelRows::PerHead,
            storage: Storage::F32,
            causal: false,
            dense_fallback: false,
            scaling: None,
            fillers: 0,
            low: 0,
        }
    }

    /// The same draft inside what is offered, as close to it as there is; `None` where nothing fits.
    pub fn fit(mut self, capabilities: &Capabilities) -> Option<Self> {
        (self.fillers, self.low) = (0, 0);
        let lacks = |feature| !capabilities.offers(feature);
        self.storage = match capabilities.dtypes.contains(&self.storage) {
            true => self.storage,
            false => *capabilities.dtypes.first()?,
        };
        if lacks(Feature::Batch) {
            self.batch = 1;
        }
        if lacks(Feature::ManyQueries) {
            self.queries = 1;
        }
        if lacks(Feature::GroupedHeads) {
            (self.kv_heads, self.group) = (self.kv_heads * self.group, 1);
        }
        if lacks(Feature::ValueDim) {
            self.value_dim = None;
        }
        if lacks(Feature::NotQuantised) && self.bits == 16 {
            self.bits = 4;
        }
        if lacks(Feature::Quantised) {
            self.bits = 16;
        }
        self.causal |= lacks(Feature::NotCausal);
        if lacks(Feature::Scaling) {
            self.scaling = None;
        }
        if self.mode != HeadMode::PerHead && self.rules.ranks.count() > 1 {
            self.group = self.group.next_multiple_of(self.rules.ranks.count());
            if lacks(Feature::GroupedHeads) {
                (self.kv_heads, self.group) = (self.kv_heads * self.group, 1);
            }
        }
        self.rows = self.rows_offered(capabilities);
        if self.rules.score == ScoreRule::Cosine {
            self.label_channels = self.label_channels.max(2);
        }
        let most = capabilities.largest_keys.unwrap_or(usize::MAX);
        let fitted = if capabilities.domains.is_empty() {
            Some(self)
        } else {
            let places = (0..SEEDS).flat_map(|seed| capabilities.domains.iter().map(move |d| (d, seed)));
            let inside = places.filter_map(|(domain, seed)| self.inside(domain, seed));
            inside.min_by(|a, b| self.distance(a).total_cmp(&self.distance(b)))
        };
        fitted.filter(|draft| draft.all_keys() <= most && draft.queries <= draft.all_keys())
    }

    fn rows_offered(&self, capabilities: &Capabilities) -> ChannelRows {
        if self.mode == HeadMode::SummedLabels {
            return ChannelRows::Shared;
        }
        let all = [
            (ChannelRows::PerHead, Feature::ChannelsPerHead),
            (ChannelRows::PerKvHead, Feature::ChannelsPerKvHead),
            (ChannelRows::Shared, Feature::ChannelsShared),
        ];
        let offered = |rows: ChannelRows| all.iter().any(|(own, f)| *own == rows && capabilities.offers(*f));
        if offered(self.rows) {
            return self.rows;
        }
        all.into_iter().map(|(rows, _)| rows).find(|rows| offered(*rows)).unwrap_or(self.rows)
    }

    /// The draft in one place of a domain.
    fn inside(&self, domain: &Domain, seed: u64) -> Option<Self> {
        let sizes = Sizes {
            batch: self.batch,
            kv_heads: self.kv_heads,
            group: self.group,
            queries: self.queries,
            keys: self.all_keys(),
            label_channels: self.label_channels,
            group_factor: self.group_factor,
            value_dim: self.value_dim(),
            label_bits: self.bits,
        };
        let sizes = domain.fit(sizes, seed);
        let mut draft = Self {
            batch: sizes.batch,
            kv_heads: sizes.kv_heads,
            group: sizes.group,
            queries: sizes.queries,
            label_channels: sizes.label_channels,
            group_factor: sizes.group_factor,
            value_dim: Some(sizes.value_dim),
            bits: sizes.label_bits,
            storage: domain.fit_dtype(self.storage, seed),
            ..self.clone()
        };
        if self.fraction.is_none() {
            let wanted = HeavySize::count(self.heavy_count()).ok()?;
            let found = domain.fit_heavy_size(wanted, self.all_keys(), seed).resolve(usize::MAX);
            draft.fillers = found.checked_sub(self.heavy_count())?;
        }
        let needed = draft.all_keys();
        let keys = (needed..=needed + FURTHER).find(|&n| domain.allows_lengths(draft.queries, n))?;
        draft.low = keys - needed;
        Some(draft)
    }

    fn distance(&self, other: &Self) -> f64 {
        let far = |a: usize, b: usize| (a as f64 / b as f64).ln().abs();
        far(self.batch, other.batch)
            + far(self.kv_heads, other.kv_heads)
            + far(self.group, other.group)
            + far(self.queries, other.queries)
            + far(self.all_keys(), other.all_keys())
            + far(self.label_channels, other.label_channels)
            + far(self.group_factor, other.group_factor)
            + far(self.bits, other.bits)
    }

    pub fn heads(&self) -> usize {
        self.kv_heads * self.group
    }

    pub fn head_dim(&self) -> usize {
        self.label_channels * self.group_factor
    }

    pub fn value_dim(&self) -> usize {
        self.value_dim.unwrap_or(self.head_dim())
    }

    /// H as a count.
    fn heavy_count(&self) -> usize {
        self.heavy + self.fillers + self.rules.forced.first + self.rules.forced.last
    }

    /// n
    pub fn all_keys(&self) -> usize {
        self.offset() + self.keys + self.rules.forced.last
    }

    /// Where the keys that the probe is about start.
    pub fn offset(&self) -> usize {
        self.rules.forced.first + self.fillers + self.low
    }

    /// How many rows there are in which keys may differ: entries and KV heads, or entries alone where heads share a selection.
    pub fn lanes(&self) -> usize {
        if self.mode == HeadMode::PerHead { self.batch * self.kv_heads } else { self.batch }
    }

    /// The lane of an entry and a KV head.
    pub fn lane(&self, entry: usize, kv_head: usize) -> usize {
        if self.mode == HeadMode::PerHead { entry * self.kv_heads + kv_head } else { entry }
    }

    pub fn dims(&self) -> Dims {
        Dims {
            batch: self.batch,
            heads: self.heads(),
            kv_heads: self.kv_heads,
            queries: self.queries,
            keys: self.all_keys(),
            head_dim: self.head_dim(),
            value_dim: self.value_dim(),
        }
    }

    /// How many channel rows there are.
    pub fn row_count(&self) -> usize {
        match self.rows {
            ChannelRows::Shared => 1,
            ChannelRows::PerKvHead => self.kv_heads,
            ChannelRows::PerHead => self.heads(),
        }
    }

    /// The instance whose channel rows all begin with channel 0.
    pub fn instance(&self) -> Option<Instance> {
        self.instance_with(vec![(0..self.head_dim()).collect(); self.row_count()])
    }

    pub fn selection(&self) -> Option<Selection> {
        let heavy_size = match self.fraction {
            Some(share) => HeavySize::fraction(share),
            None => HeavySize::count(self.heavy_count()),
        };
        Some(Selection {
            heavy_size: heavy_size.ok()?,
            group_factor: GroupFactor::new(self.group_factor as u64).ok()?,
            label_bits: LabelBits::new(self.bits as u64).ok()?,
            heads: self.mode,
            dense_fallback: self.dense_fallback,
            rules: self.rules,
        })
    }

    pub fn instance_with(&self, rows: Vec<Vec<usize>>) -> Option<Instance> {
        let order = ChannelOrder::new(rows).ok()?;
        Some(Instance::of_layer(self.selection()?, order, &self.dims()))
    }

    /// The label of a key that scores `score` under [`Self::unit_queries`].
    fn unit(&self, score: f32) -> [f32; 2] {
        match self.rules.score {
            ScoreRule::Cosine => {
                let cosine = score / 8.0;
                [cosine, (1.0 - cosine * cosine).max(0.0).sqrt()]
            }
            ScoreRule::Dot | ScoreRule::Relu => [score, 0.0],
        }
    }

    /// q = e₀
    pub fn unit_queries(&self) -> Array4<f32> {
        let shape = (self.batch, self.heads(), self.queries, self.head_dim());
        Array4::from_shape_fn(shape, |(.., channel)| f32::from(u8::from(channel == 0)))
    }

    /// Keys that score as told for an entry, a KV head and a key of the probe; the others as their part says.
    pub fn scored_keys(&self, score: impl Fn(usize, usize, usize) -> f32) -> Array4<f32> {
        self.keys_of(|entry, kv_head, key, channel| {
            self.unit(score(entry, kv_head, key)).get(channel).copied().unwrap_or(0.0)
        })
    }

    /// Keys of the probe as told, by entry, KV head, key and channel.
    pub fn keys_of(&self, at: impl Fn(usize, usize, usize, usize) -> f32) -> Array4<f32> {
        let (forced, offset) = (self.rules.forced.first, self.offset());
        let shape = (self.batch, self.kv_heads, self.all_keys(), self.head_dim());
        Array4::from_shape_fn(shape, |(entry, kv_head, position, channel)| {
            let unit = |score| self.unit(score).get(channel).copied().unwrap_or(0.0);
            if (forced..forced + self.fillers).contains(&position) {
                return unit(FILLER);
            }
            match position.checked_sub(offset) {
                Some(key) if key < self.keys => at(entry, kv_head, key, channel),
                _ => unit(0.0),
            }
        })
    }

    /// Values that tell keys apart a little.
    fn some_values(&self) -> Array4<f32> {
        let shape = (self.batch, self.kv_heads, self.all_keys(), self.value_dim());
        Array4::from_shape_fn(shape, |(entry, kv_head, key, channel)| {
            ((entry * 5 + kv_head * 3 + key * 7 + channel * 11) % 17) as f32 - 8.0
        })
    }

    /// A number about normally distributed for each place of a tensor.
    pub fn random(&self, seed: u64, t: u64, shape: (usize, usize, usize, usize)) -> Array4<f32> {
        let words = Words::new(seed, t);
        let mut index = 0;
        Array4::from_shape_simple_fn(shape, || {
            index += 1;
            words.value(index)
        })
    }

    /// q, k and v, all random.
    pub fn random_parts(&self, seed: u64) -> Parts {
        let dims = self.dims();
        let Dims { batch, heads, kv_heads, queries, keys, head_dim, value_dim } = dims;
        Parts {
            q: Some(self.random(seed, 0, (batch, heads, queries, head_dim))),
            k: Some(self.random(seed, 1, (batch, kv_heads, keys, head_dim))),
            v: Some(self.random(seed, 2, (batch, kv_heads, keys, value_dim))),
            ..Parts::default()
        }
    }

    /// A of the full shape, or of one of its dimensions where a size is 1; `at` gets entry, head, query and a key of the probe.
    pub fn additive(
        &self,
        (batch, heads, queries): (usize, usize, usize),
        at: impl Fn(usize, usize, usize, usize) -> f32,
    ) -> Array4<f32> {
        Array4::from_shape_fn((batch, heads, queries, self.all_keys()), |(entry, head, query, position)| {
            match position.checked_sub(self.offset()) {
                Some(key) if key < self.keys => at(entry, head, query, key),
                _ => 0.0,
            }
        })
    }

    /// How A may be shaped: heads that share labels share A.
    pub fn additive_shape(&self) -> (usize, usize, usize) {
        let heads = if self.mode == HeadMode::SummedLabels { 1 } else { self.heads() };
        (self.batch, heads, self.queries)
    }

    /// P, by entry, head, query and key of the probe.
    pub fn previous(&self, at: impl Fn(usize, usize, usize, usize) -> f32) -> Array4<f32> {
        self.additive((self.batch, self.heads(), self.queries), at)
    }

    /// The scores [b, h, m, n] of a question to a top-k, A added.
    pub fn scores(
        &self,
        score: impl Fn(usize, usize, usize) -> f32,
        additive: Option<&Array4<f32>>,
    ) -> Array4<f32> {
        let (batch, heads, queries, keys) = self.dims().mask_shape();
        Array4::from_shape_fn((batch, heads, queries, keys), |(entry, head, query, position)| {
            let own = match position.checked_sub(self.offset()) {
                Some(key) if key < self.keys => score(entry, head / self.group, key),
                Some(_) => 0.0,
                None if position < self.fillers => FILLER,
                None => 0.0,
            };
            let added = additive.map_or(0.0, |additive| {
                let (b, h, m, _) = additive.dim();
                additive[(entry.min(b - 1), head.min(h - 1), query.min(m - 1), position)]
            });
            own + added
        })
    }

    /// A question to a top-k.
    pub fn scores_call(&self, scores: Array4<f32>) -> Option<StageCall> {
        let heavy_size = NonZeroUsize::new(self.heavy_count())?;
        ScoresCall::new(scores, self.storage, heavy_size).ok().map(StageCall::Scores)
    }

    /// A call. `None` where the tensors are no call.
    pub fn call(&self, parts: Parts) -> Option<Call> {
        let inputs = Inputs::new(InputParts {
            q: parts.q.unwrap_or_else(|| self.unit_queries()),
            k: parts.k?,
            v: parts.v.unwrap_or_else(|| self.some_values()),
            attention_mask: parts.additive,
            causal: self.causal,
            storage: self.storage,
            scaling: self.scaling,
        });
        let inputs = inputs.ok()?.with_head_weights(parts.head_weights).ok()?;
        let previous = match parts.previous {
            Some(weights) => Some(Mask::from_weights(weights, &self.dims()).ok()?),
            None => None,
        };
        Some(Call { layer: parts.layer, inputs: Arc::new(inputs), previous })
    }
}

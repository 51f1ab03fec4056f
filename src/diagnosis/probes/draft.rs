//! The sizes and settings of a question, moved inside what a subject offers.
//!
//! The keys of a call, in order: those that rules force first, fillers, low keys, the keys that the probe is about, and those
//! that rules force last. Fillers score highest and take the places of a heavy size that is larger than the probe needs; low
//! keys score least and make up a number of keys that the domain wants.

use crate::algorithm::{
    ChannelOrder, Dims, GroupFactor, HeadMode, HeavySize, LabelBits, Rules, ScoreRule, Selection, Storage,
};
use crate::cases::domain::{Domain, Sizes};
use crate::cases::strategies::ChannelRows;
use crate::cases::{Capabilities, Feature, Instance};

/// How many places of a domain are looked at for the one closest to what is wanted.
const SEEDS: u64 = 24;

/// How far beyond the keys needed a number that the domain allows is searched for.
const FURTHER: usize = 4096;

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
        if let Some(share) = self.fraction {
            let wanted = HeavySize::fraction(share).ok()?;
            // Where H is constrained it must be a count.
            if domain.fit_heavy_size(wanted, self.all_keys(), seed) != wanted {
                return None;
            }
        } else {
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
    pub fn heavy_count(&self) -> usize {
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
}

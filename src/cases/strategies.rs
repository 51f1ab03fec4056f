//! Random cases. A [`Plan`] says in a few words and numbers what a case looks like; the tensors follow from its seed, so
//! that a counterexample is short to print and cheap to make. Plans favour what breaks implementations: ties, constant
//! rows, half-way codes, signed zeros, huge and tiny magnitudes, grouped heads, rows without candidates.

use std::sync::Arc;

use ndarray::{Array3, Array4};
use proptest::prelude::*;
use proptest::sample::select;

use super::capabilities::{Capabilities, Feature};
use super::case::Case;
use super::domain::{Domain, Sizes};
use super::recipe::{Words, mix};
use super::sequence::{Call, EarlierMasker, Instance};
use crate::algorithm::config::WindowConfig;
use crate::algorithm::{
    ChannelOrder, Dims, Error, GroupFactor, HeadMode, HeavySize, InputParts, Inputs, LabelBits, Mask, Rules,
    ScoreRule, Selection, Storage,
};

/// How the numbers of a tensor are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Values {
    /// About normal, |x| < 4.
    Normal,
    /// −2, −1, 0, 1 or 2, so that scores tie.
    Whole,
    /// The same number in all channels of a position.
    ConstantRows,
    /// 0, the largest code, and half-way points between codes.
    HalfWay,
    /// 0 and −0, and a 1 here and there.
    Zeros,
    /// Normal times 2^9; in f16 2^13, so that products with others leave its range.
    Huge,
    /// Normal times 2^-9.
    Tiny,
}

impl Values {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Normal, Self::Whole, Self::ConstantRows, Self::HalfWay, Self::Zeros, Self::Huge, Self::Tiny];
}

/// How many channel rows there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChannelRows {
    /// One for all heads.
    Shared,
    /// One per KV head.
    PerKvHead,
    /// One per query head.
    PerHead,
}

/// The additive mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AdditiveMask {
    /// None.
    Absent,
    /// Finite numbers.
    Finite,
    /// −∞ at about a third of the keys.
    Excluding,
    /// −∞ everywhere for about a third of the queries.
    ExcludingRows,
    /// The most negative finite number of the storage type at about a third of the keys, as some libraries mask.
    Lowest,
}

/// The earlier mask P.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Previous {
    /// None.
    Absent,
    /// About a fifth of the keys, with weight 1.
    Some,
    /// About a fifth of the keys, with weights below 1.
    Weighted,
    /// All but about a fifth of the keys.
    Most,
    /// All keys, with weight 1.
    Full,
    /// All keys, with weights below 1.
    FullWeighted,
}

/// What a case looks like.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Seed of all numbers.
    pub seed: u64,
    /// b
    pub batch: usize,
    /// hk
    pub kv_heads: usize,
    /// g
    pub group: usize,
    /// m; at most n
    pub queries: usize,
    /// n
    pub keys: usize,
    /// r
    pub label_channels: usize,
    /// dv
    pub value_dim: usize,
    /// H, G, B and the switches; d is r · G
    pub selection: Selection,
    /// The type of q, k and v.
    pub storage: Storage,
    /// Whether A is −∞ after the query's position.
    pub causal: bool,
    /// The rest of A.
    pub additive: AdditiveMask,
    /// Whether the rest of A may have a head dimension above 1.
    pub masks_per_head: bool,
    /// P.
    pub previous: Previous,
    /// Maskers before Double Sparsity.
    pub earlier_maskers: Vec<EarlierMasker>,
    /// Rows of C.
    pub rows: ChannelRows,
    /// Numbers of q.
    pub q: Values,
    /// Numbers of k.
    pub k: Values,
    /// Factor of q·k in the attention.
    pub scaling: Option<f64>,
}

/// Domains may ask for more keys than this, but then rarely get more candidates than are selected.
const MOST_HEAVY: usize = 1024;

/// b, hk, g, m, n, r, G and dv.
type DrawnSizes = (usize, usize, usize, usize, usize, usize, GroupFactor, usize);

/// Plans of every kind.
pub fn plans() -> impl Strategy<Value = Plan> {
    plans_of((
        1..=2usize,
        1..=3usize,
        select(vec![1usize, 1, 2, 3, 4]),
        prop_oneof![Just(1usize), 1..=6usize, Just(usize::MAX)],
        1..=40usize,
        1..=6usize,
        group_factors(),
        1..=9usize,
    ))
}

/// Plans of every kind but size, quick to answer: batch 1, at most 2 heads, 4 queries, 16 keys and 16 channels.
pub fn small_plans() -> impl Strategy<Value = Plan> {
    let sizes = (
        select(vec![(1usize, 1usize), (1, 2), (2, 1)]),
        prop_oneof![Just(1usize), 1..=4usize],
        1..=16usize,
        1..=4usize,
        group_factors(),
        1..=9usize,
    );
    plans_of(sizes.prop_map(|((kv_heads, group), queries, keys, label_channels, group_factor, value_dim)| {
        (1, kv_heads, group, queries, keys, label_channels, group_factor, value_dim)
    }))
}

fn plans_of(sizes: impl Strategy<Value = DrawnSizes>) -> impl Strategy<Value = Plan> {
    let selection = (
        prop_oneof![1..=16u64, select(vec![1u64, 2, 3, 4, 8, 15, 16, 16])]
            .prop_filter_map("1 to 16", |bits| LabelBits::new(bits).ok()),
        heavy_sizes(),
        select(vec![HeadMode::PerHead, HeadMode::PerHead, HeadMode::SummedScores, HeadMode::SummedLabels]),
        prop::bool::weighted(0.15),
        select(Storage::ALL.to_vec()),
    );
    let masks = (
        any::<bool>(),
        prop_oneof![
            4 => Just(AdditiveMask::Absent),
            1 => Just(AdditiveMask::Finite),
            1 => Just(AdditiveMask::Excluding),
            1 => Just(AdditiveMask::ExcludingRows),
            1 => Just(AdditiveMask::Lowest),
        ],
        prop_oneof![
            5 => Just(Previous::Absent),
            1 => Just(Previous::Some),
            1 => Just(Previous::Weighted),
            1 => Just(Previous::Most),
            1 => Just(Previous::Full),
            1 => Just(Previous::FullWeighted),
        ],
        prop::collection::vec(earlier_maskers(), 0..=2),
    );
    let numbers = (
        any::<u64>(),
        select(vec![ChannelRows::Shared, ChannelRows::PerKvHead, ChannelRows::PerHead]),
        values(),
        values(),
        prop::option::weighted(0.2, select(vec![0.5, 1.0, 0.088_388_347_648_318_45])),
    );
    (sizes, selection, masks, numbers).prop_map(|(sizes, selection, masks, numbers)| {
        let (batch, kv_heads, group, queries, keys, label_channels, group_factor, value_dim) = sizes;
        let (label_bits, heavy_size, heads, dense_fallback, storage) = selection;
        let (causal, additive, previous, earlier_maskers) = masks;
        let (seed, rows, q, k, scaling) = numbers;
        Plan {
            seed,
            batch,
            kv_heads,
            group,
            queries: queries.min(keys),
            keys,
            label_channels,
            value_dim,
            selection: Selection {
                heavy_size,
                group_factor,
                label_bits,
                heads,
                dense_fallback,
                rules: Rules::default(),
            },
            storage,
            causal,
            additive,
            masks_per_head: true,
            previous,
            earlier_maskers,
            rows,
            q,
            k,
            scaling,
        }
    })
}

fn group_factors() -> impl Strategy<Value = GroupFactor> {
    select(vec![1u64, 1, 2, 3, 4]).prop_filter_map("not zero", |factor| GroupFactor::new(factor).ok())
}

fn values() -> impl Strategy<Value = Values> {
    prop_oneof![3 => Just(Values::Normal), 4 => select(Values::ALL.to_vec())]
}

fn heavy_sizes() -> impl Strategy<Value = HeavySize> {
    let count = (1..=45usize).prop_filter_map("not zero", |count| HeavySize::count(count).ok());
    let fraction = select(vec![0.01, 0.1, 0.25, 0.29, 0.5, 0.9, 1.0])
        .prop_filter_map("in (0, 1]", |share| HeavySize::fraction(share).ok());
    prop_oneof![2 => count, 1 => fraction]
}

fn earlier_maskers() -> impl Strategy<Value = EarlierMasker> {
    (any::<bool>(), 1..=4usize).prop_filter_map("not zero", |(sink, size)| {
        let config = WindowConfig { size: HeavySize::count(size).ok()? };
        Some(if sink { EarlierMasker::Sink(config) } else { EarlierMasker::Local(config) })
    })
}

/// Random cases of every kind.
pub fn cases() -> impl Strategy<Value = Case> {
    plans().prop_filter_map("plans make valid inputs", |plan| plan.case().ok())
}

impl Plan {
    /// The plan without what is not offered; [`Capabilities::missing`] finds what only the finished case shows.
    pub fn restricted(self, capabilities: &Capabilities) -> Self {
        let lacks = |feature| !capabilities.offers(feature);
        let seed = self.seed;
        let mut plan = self;
        let pick = |count: usize| seed as usize % count.max(1);
        if !capabilities.dtypes.contains(&plan.storage) && !capabilities.dtypes.is_empty() {
            plan.storage = capabilities.dtypes[pick(capabilities.dtypes.len())];
        }
        if !capabilities.heads.contains(&plan.selection.heads) && !capabilities.heads.is_empty() {
            plan.selection.heads = capabilities.heads[pick(capabilities.heads.len())];
        }
        if !capabilities.rules.contains(&plan.selection.rules) && !capabilities.rules.is_empty() {
            // Independent of what is picked above.
            plan.selection.rules = capabilities.rules[(seed >> 8) as usize % capabilities.rules.len()];
        }
        plan.keys = plan.keys.min(capabilities.largest_keys.unwrap_or(plan.keys));
        plan.queries = if lacks(Feature::ManyQueries) { 1 } else { plan.queries.min(plan.keys) };
        plan.batch = if lacks(Feature::Batch) { 1 } else { plan.batch };
        plan.causal = plan.causal || lacks(Feature::NotCausal);
        plan.selection.dense_fallback = plan.selection.dense_fallback && !lacks(Feature::DenseFallback);
        if lacks(Feature::GroupedHeads) {
            (plan.kv_heads, plan.group) = (plan.kv_heads * plan.group, 1);
        }
        if lacks(Feature::AttentionMask) {
            plan.additive = AdditiveMask::Absent;
        }
        plan.masks_per_head = plan.masks_per_head && !lacks(Feature::MasksPerHead);
        if lacks(Feature::EmptyRows) && plan.additive == AdditiveMask::ExcludingRows {
            plan.additive = AdditiveMask::Finite;
        }
        plan.previous = match plan.previous {
            _ if lacks(Feature::Previous) => Previous::Absent,
            Previous::Weighted if lacks(Feature::Weights) => Previous::Some,
            Previous::FullWeighted if lacks(Feature::Weights) => Previous::Full,
            previous => previous,
        };
        if lacks(Feature::EarlierMaskers) {
            plan.earlier_maskers.clear();
        }
        if let (HeavySize::Fraction(_), true) = (plan.selection.heavy_size, lacks(Feature::Fractions)) {
            plan.selection.heavy_size = HeavySize::count(plan.selection.heavy_size.resolve(plan.keys))
                .unwrap_or(plan.selection.heavy_size);
        }
        if lacks(Feature::Scaling) {
            plan.scaling = None;
        }
        if lacks(Feature::ValueDim) {
            plan.value_dim = plan.head_dim();
        }
        if lacks(Feature::NotQuantised) && !plan.selection.label_bits.quantises() {
            plan.selection.label_bits = LabelBits::default();
        }
        if lacks(Feature::Quantised) {
            plan.selection.label_bits = LabelBits::UNQUANTISED;
        }
        let rows = [
            (ChannelRows::PerHead, Feature::ChannelsPerHead),
            (ChannelRows::PerKvHead, Feature::ChannelsPerKvHead),
            (ChannelRows::Shared, Feature::ChannelsShared),
        ];
        let offered: Vec<ChannelRows> =
            rows.into_iter().filter(|(_, f)| !lacks(*f)).map(|(rows, _)| rows).collect();
        if !offered.contains(&plan.rows) && !offered.is_empty() {
            plan.rows = offered[pick(offered.len())];
        }
        plan.make_heads_for_ranks(lacks(Feature::GroupedHeads));
        if let Some(domain) = plan.domain_of(capabilities) {
            let domain = domain.clone();
            plan.fit(&domain);
        }
        plan.make_room_for_forced_keys();
        plan
    }

    /// As many heads as can be split into equal parts, mostly: otherwise a call must be refused.
    fn make_heads_for_ranks(&mut self, only_kv_heads: bool) {
        let (ranks, mode) = (self.selection.rules.ranks, self.selection.heads);
        let refused = self.seed.is_multiple_of(32);
        if refused || ranks.check(mode, &self.dims()).is_ok() {
            return;
        }
        if only_kv_heads {
            self.kv_heads = self.kv_heads.next_multiple_of(ranks.count());
        } else {
            self.group = self.group.next_multiple_of(ranks.count());
        }
    }

    /// Usually raises H to the number of forced keys: a call with more of them than H must be refused.
    fn make_room_for_forced_keys(&mut self) {
        let forced = self.selection.rules.forced;
        let most = forced.first + forced.last;
        let refused = self.seed.is_multiple_of(32);
        if most == 0 || refused {
            return;
        }
        // A count, as a fraction of a shorter call's keys may be fewer than the forced ones.
        let wanted = match self.selection.heavy_size {
            HeavySize::Count(count) => count.get().max(most),
            size @ HeavySize::Fraction(_) => size.resolve(self.keys).max(most),
        };
        self.selection.heavy_size = HeavySize::count(wanted).unwrap_or(self.selection.heavy_size);
    }

    /// The alternative of the domain that this plan has to fit.
    pub(crate) fn domain_of<'a>(&self, capabilities: &'a Capabilities) -> Option<&'a Domain> {
        let domains = &capabilities.domains;
        domains.get(self.seed as usize % domains.len().max(1))
    }

    /// The case. Errors: none for plans made by [`plans`]; those of [`Inputs::new`] otherwise.
    pub fn case(&self) -> Result<Case, Error> {
        let dims = self.dims();
        let (k, v) = self.keys_and_values();
        let call = self.call(0, k, v)?;
        let mut instance =
            Instance::of_layer(self.selection, self.channels_of(self.seed, self.rows_used())?, &dims);
        instance.earlier_maskers = self.earlier_maskers.clone();
        Ok(Case {
            name: format!("random case of seed {}", self.seed),
            instance,
            call,
            recipe: None,
            expectation: None,
            unknown: serde_json::Map::new(),
        })
    }

    /// w of the rule `relu`: some 0, some negative; `None` in one of four plans, and the same for all heads where these are
    /// scored once.
    fn head_weights(&self, dims: &Dims) -> Option<Array3<f32>> {
        if self.selection.rules.score != ScoreRule::Relu || self.seed % 4 == 1 {
            return None;
        }
        let words = Words::new(self.seed, 7);
        let (b, h, m, _) = dims.mask_shape();
        let shared = self.selection.heads == HeadMode::SummedLabels;
        Some(Array3::from_shape_fn((b, h, m), |(b, head, i)| {
            let head = if shared { 0 } else { head };
            let index = ((b * h + head) * m + i) as u64;
            if words.word(index).is_multiple_of(7) { 0.0 } else { words.value(index) }
        }))
    }

    fn dims(&self) -> Dims {
        Dims {
            batch: self.batch,
            heads: self.kv_heads * self.group,
            kv_heads: self.kv_heads,
            queries: self.queries,
            keys: self.keys,
            head_dim: self.head_dim(),
            value_dim: self.value_dim,
        }
    }

    fn tensor(&self, t: u64, values: Values, shape: [usize; 4]) -> Array4<f32> {
        let numbers = tensor(Words::new(self.seed, t), values, self.selection.label_bits, shape);
        match (values, self.storage) {
            (Values::Huge, Storage::F16) => numbers * 16.0,
            _ => numbers,
        }
    }

    /// k [b, hk, n, d] and v [b, hk, n, dv], not rounded to the storage type yet.
    pub(super) fn keys_and_values(&self) -> (Array4<f32>, Array4<f32>) {
        let Dims { batch, kv_heads, keys, head_dim, value_dim, .. } = self.dims();
        let k = self.tensor(1, self.k, [batch, kv_heads, keys, head_dim]);
        (k, self.tensor(2, Values::Normal, [batch, kv_heads, keys, value_dim]))
    }

    /// A call of a layer with these keys and values, of the plan's shapes. Errors: those of [`Inputs::new`].
    pub(super) fn call(&self, layer: usize, k: Array4<f32>, v: Array4<f32>) -> Result<Call, Error> {
        let dims = self.dims();
        let inputs = Inputs::new(InputParts {
            q: self.tensor(0, self.q, [dims.batch, dims.heads, dims.queries, dims.head_dim]),
            k,
            v,
            attention_mask: self.attention_mask(&dims),
            causal: self.causal,
            storage: self.storage,
            scaling: self.scaling,
        })?
        .with_head_weights(self.head_weights(&dims))?;
        Ok(Call { layer, inputs: Arc::new(inputs), previous: self.previous_mask(&dims)? })
    }

    /// Each dimension of the finite and the excluding masks but that of keys is 1 or full; heads are full only where they may be and
    /// are not scored as one.
    fn attention_mask(&self, dims: &Dims) -> Option<Array4<f32>> {
        let words = Words::new(self.seed, 5);
        let (b, h, m, n) = dims.mask_shape();
        let chosen = mix(self.seed.wrapping_add(5));
        let full = |bit: u32, size: usize| if chosen >> bit & 1 == 1 { size } else { 1 };
        let as_one = self.selection.heads == HeadMode::SummedLabels || !self.masks_per_head;
        let heads = if as_one { 1 } else { full(1, h) };
        let drawn = (full(0, b), heads, full(2, m), n);
        let at = |(b, head, i, key): (usize, usize, usize, usize)| {
            (((b * drawn.1 + head) * drawn.2 + i) * n + key) as u64
        };
        match self.additive {
            AdditiveMask::Absent => None,
            AdditiveMask::Finite => Some(Array4::from_shape_fn(drawn, |index| words.value(at(index)))),
            AdditiveMask::Excluding => Some(Array4::from_shape_fn(drawn, |index| {
                if words.word(at(index)).is_multiple_of(3) { f32::NEG_INFINITY } else { 0.0 }
            })),
            AdditiveMask::Lowest => Some(Array4::from_shape_fn(drawn, |index| {
                if words.word(at(index)).is_multiple_of(3) { -self.storage.largest() as f32 } else { 0.0 }
            })),
            AdditiveMask::ExcludingRows => Some(Array4::from_shape_fn((1, 1, m, 1), |(_, _, i, _)| {
                if words.word(i as u64).is_multiple_of(3) { f32::NEG_INFINITY } else { 0.0 }
            })),
        }
    }

    fn previous_mask(&self, dims: &Dims) -> Result<Option<Mask>, Error> {
        let words = Words::new(self.seed, 6);
        let (_, h, m, n) = dims.mask_shape();
        let weight = |(b, head, i, key): (usize, usize, usize, usize)| {
            let word = words.word((((b * h + head) * m + i) * n + key) as u64);
            let chosen = word.is_multiple_of(5);
            match self.previous {
                Previous::Absent => 0.0,
                Previous::Some => f32::from(u8::from(chosen)),
                Previous::Weighted if chosen => ((word >> 32) % 3 + 1) as f32 / 4.0,
                Previous::Weighted => 0.0,
                Previous::Most => f32::from(u8::from(!chosen)),
                Previous::Full => 1.0,
                Previous::FullWeighted => ((word >> 32) % 3 + 1) as f32 / 4.0,
            }
        };
        if self.previous == Previous::Absent {
            return Ok(None);
        }
        Mask::from_weights(Array4::from_shape_fn(dims.mask_shape(), weight), dims).map(Some)
    }

    /// Moves sizes and type inside a domain.
    pub(crate) fn fit(&mut self, domain: &Domain) {
        let Sizes {
            batch,
            kv_heads,
            group,
            queries,
            keys,
            label_channels,
            group_factor,
            value_dim,
            label_bits,
        } = domain.fit(
            Sizes {
                batch: self.batch,
                kv_heads: self.kv_heads,
                group: self.group,
                queries: self.queries,
                keys: self.keys,
                label_channels: self.label_channels,
                group_factor: self.selection.group_factor.get(),
                value_dim: self.value_dim,
                label_bits: usize::from(self.selection.label_bits.get()),
            },
            self.seed,
        );
        (self.batch, self.kv_heads, self.group, self.queries, self.keys) =
            (batch, kv_heads, group, queries, keys);
        (self.label_channels, self.value_dim) = (label_channels, value_dim);
        let Selection { group_factor: factor, label_bits: bits, .. } = self.selection;
        self.selection.group_factor = GroupFactor::new(group_factor as u64).unwrap_or(factor);
        self.selection.label_bits = LabelBits::new(label_bits as u64).unwrap_or(bits);
        self.selection.heavy_size = domain.fit_heavy_size(self.selection.heavy_size, keys, self.seed);
        // A domain with large heavy sizes only would rarely have more candidates than are selected.
        if let HeavySize::Count(heavy) = self.selection.heavy_size
            && heavy.get() >= self.keys
            && !self.seed.is_multiple_of(4)
            && heavy.get() <= MOST_HEAVY
            && let Some(more) = domain.keys_above(heavy.get(), self.seed)
        {
            self.keys = more;
        }
        self.storage = domain.fit_dtype(self.storage, self.seed);
    }

    /// d = r · G.
    pub(crate) fn head_dim(&self) -> usize {
        self.label_channels * self.selection.group_factor.get()
    }

    /// How many channel rows there are: `summed-labels` needs one.
    pub(crate) fn rows_used(&self) -> ChannelRows {
        if self.selection.heads == HeadMode::SummedLabels { ChannelRows::Shared } else { self.rows }
    }

    /// Rows of all d channels in random orders.
    pub(crate) fn channels_of(&self, seed: u64, rows: ChannelRows) -> Result<ChannelOrder, Error> {
        let words = Words::new(seed, 7);
        let rows = match rows {
            ChannelRows::Shared => 1,
            ChannelRows::PerKvHead => self.kv_heads,
            ChannelRows::PerHead => self.kv_heads * self.group,
        };
        let head_dim = self.head_dim();
        let row = |row: usize| {
            let mut channels: Vec<usize> = (0..head_dim).collect();
            channels.sort_by_key(|&c| words.word((row * head_dim + c) as u64));
            channels
        };
        let order = ChannelOrder::new((0..rows).map(row).collect())?;
        if !self.selection.rules.channel_weights || seed % 4 == 1 {
            return Ok(order);
        }
        order.with_weights(self.channel_weights(seed, rows))
    }

    /// Weights of each row and label channel: some 0, some negative, some large.
    fn channel_weights(&self, seed: u64, rows: usize) -> Vec<Vec<f32>> {
        let words = Words::new(seed, 8);
        let weight = |index: usize| match words.word(index as u64) % 7 {
            0 => 0.0,
            1 => 30.0 * words.value(index as u64),
            _ => words.value(index as u64),
        };
        let r = self.label_channels;
        (0..rows).map(|row| (0..r).map(|channel| weight(row * r + channel)).collect()).collect()
    }
}

pub(super) fn tensor(words: Words, values: Values, bits: LabelBits, shape: [usize; 4]) -> Array4<f32> {
    let [_, heads, positions, channels] = shape;
    let largest_code = (bits.largest_code() as u64).min(15);
    Array4::from_shape_fn(shape, |(b, head, position, channel)| {
        let row = ((b * heads + head) * positions + position) as u64;
        let i = row * channels as u64 + channel as u64;
        let word = words.word(i);
        match values {
            Values::Normal => words.value(i),
            Values::Whole => (word % 5) as f32 - 2.0,
            Values::ConstantRows => words.value(row),
            Values::HalfWay => match word % 4 {
                0 => 0.0,
                1 => largest_code as f32,
                _ => ((word >> 8) % largest_code) as f32 + 0.5,
            },
            Values::Zeros => match word % 8 {
                0 => 1.0,
                1..=3 => -0.0,
                _ => 0.0,
            },
            Values::Huge => words.value(i) * 512.0,
            Values::Tiny => words.value(i) / 512.0,
        }
    })
}

//! Random questions to implementations of one stage. A plan says in a few words and numbers what a question looks like; its
//! tensors follow from its seed. Scores favour what breaks a top-k: ties across the H-th place, signed zeros, subnormals,
//! numbers that differ in f32 only, rows without candidates. Selections favour uneven rows, which are padded.

use std::num::NonZeroUsize;
use std::sync::Arc;

use ndarray::Array4;

use super::capabilities::{Capabilities, Feature};
use super::domain::{Domain, Sizes};
use super::large_plan::{Scores, TILES, at_an_edge, heavy_size};
use super::ragged_plan::stage_with_lengths;
use super::recipe::{Words, mix};
use super::stages::{ScoresCall, SelectionCall, StageCall, Takes};
use crate::algorithm::{Dims, Error, HeavySize, InputParts, Inputs, Mask, Storage};

/// b · h · m · n of a large question: larger ones take longer than they tell.
const MOST_SCORES: usize = 1 << 18;

/// What the scores of a row look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ScoreShape {
    /// About normal.
    Normal,
    /// One number everywhere.
    Equal,
    /// Two plateaus, the H-th place inside the lower one.
    Plateaus,
    /// Three distinct values.
    Few,
    /// Rising with the key.
    Rising,
    /// Falling with the key.
    Falling,
    /// Normal, a third of them −∞.
    Excluded,
    /// Normal in some rows, −∞ throughout in the others.
    EmptyRows,
    /// 0 and −0, and a larger or smaller number here and there.
    SignedZeros,
    /// Subnormal numbers of the type.
    Subnormals,
    /// Distinct in the type and equal in the next narrower one, and the other way round for f16 and bf16.
    Collisions,
    /// Normal, and one number far above.
    Outlier,
    /// Equal in the high 8, 11, 12 or 16 bits of the type, as far as it has them: one bin of a radix or histogram top-k.
    Crowded,
    /// Just below and just above the edge of such bins.
    BinEdge,
    /// Normal; −∞ in whole tiles, the first one among them.
    ExcludedTiles,
    /// As scores of whole layers are.
    Placed(Scores),
}

impl ScoreShape {
    /// Those of small questions.
    pub const ALL: [Self; 12] = [
        Self::Normal,
        Self::Equal,
        Self::Plateaus,
        Self::Few,
        Self::Rising,
        Self::Falling,
        Self::Excluded,
        Self::EmptyRows,
        Self::SignedZeros,
        Self::Subnormals,
        Self::Collisions,
        Self::Outlier,
    ];

    /// Those of large questions, in the order in which they have their turn.
    pub const LARGE: [Self; 19] = [
        Self::Placed(Scores::LastTile),
        Self::Crowded,
        Self::Plateaus,
        Self::ExcludedTiles,
        Self::BinEdge,
        Self::Normal,
        Self::Placed(Scores::EachTile),
        Self::Collisions,
        Self::Rising,
        Self::Placed(Scores::FirstTile),
        Self::SignedZeros,
        Self::Falling,
        Self::Subnormals,
        Self::Placed(Scores::OrganPipe),
        Self::Excluded,
        Self::Equal,
        Self::Outlier,
        Self::Few,
        Self::EmptyRows,
    ];

    /// The name in the name of a question.
    pub fn name(self) -> &'static str {
        match self {
            Self::Normal => "random scores",
            Self::Equal => "equal scores",
            Self::Plateaus => "two plateaus",
            Self::Few => "three scores",
            Self::Rising => "rising scores",
            Self::Falling => "falling scores",
            Self::Excluded => "some keys excluded",
            Self::EmptyRows => "rows without candidates",
            Self::SignedZeros => "zeros of both signs",
            Self::Subnormals => "subnormal scores",
            Self::Collisions => "scores that collide in a narrower type",
            Self::Outlier => "one outlier",
            Self::Crowded => "scores in one bin",
            Self::BinEdge => "scores at the edge of a bin",
            Self::ExcludedTiles => "whole tiles excluded",
            Self::Placed(scores) => scores.name(),
        }
    }
}

/// A large question: its number of keys is in a range, and its turn chooses how its scores are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LargeStage {
    /// The fewest keys.
    pub least: usize,
    /// The most keys.
    pub most: usize,
    /// Questions of successive turns have all kinds of scores, one after the other.
    pub turn: usize,
}

impl LargeStage {
    /// What its scores look like.
    pub fn scores(&self, capabilities: &Capabilities) -> ScoreShape {
        match ScoreShape::LARGE[self.turn % ScoreShape::LARGE.len()] {
            ScoreShape::EmptyRows if !capabilities.offers(Feature::EmptyRows) => ScoreShape::Excluded,
            scores => scores,
        }
    }
}

/// A random question to a top-k.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScoresPlan {
    /// Seed of the numbers.
    pub seed: u64,
    /// b, h, m and n
    pub shape: [usize; 4],
    /// H
    pub heavy_size: NonZeroUsize,
    /// The type of the scores.
    pub storage: Storage,
    /// What they look like.
    pub scores: ScoreShape,
}

/// Which keys each row attends to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Attended {
    /// A random share, another one in each row.
    Some,
    /// One key.
    One,
    /// Every key.
    All,
    /// The last keys.
    Last,
    /// All but the last key.
    NotLast,
    /// None in some rows, a random share in the others.
    NoneInSome,
}

impl Attended {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Some, Self::One, Self::All, Self::Last, Self::NotLast, Self::NoneInSome];
}

/// A random question to a sparse attention.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SelectionPlan {
    /// Seed of the numbers.
    pub seed: u64,
    /// The sizes.
    pub dims: Dims,
    /// The type of q, k and v.
    pub storage: Storage,
    /// Factor of q·k; `None` means 1 / √d.
    pub scaling: Option<f64>,
    /// Which keys are attended.
    pub attended: Attended,
    /// What q is multiplied by: 0 makes all weights equal, 16 makes one key outweigh the others.
    pub magnitude: f32,
}

/// A random question that a subject of these capabilities may be asked; the same seed makes the same one. `None` where the
/// domain leaves none for this seed, or the subject takes inputs.
pub fn stage_call(capabilities: &Capabilities, seed: u64) -> Option<StageCall> {
    stage_call_of(capabilities, seed, seed, None)
}

/// The same with the numbers of one seed and the sizes of another, or a large one.
pub fn stage_call_of(
    capabilities: &Capabilities,
    seed: u64,
    shape: u64,
    large: Option<LargeStage>,
) -> Option<StageCall> {
    let keys = large.map(|large| (large.least, large.most));
    let call = match capabilities.stages.takes {
        Takes::Inputs => return None,
        Takes::Scores => {
            let mut plan = scores_plan(capabilities, shape);
            if let Some(keys) = keys {
                plan.enlarge(capabilities, keys)?;
            }
            let scores = match large {
                Some(large) => large.scores(capabilities),
                None if shape == seed => plan.scores,
                None => scores_plan(capabilities, seed).scores,
            };
            StageCall::Scores(ScoresPlan { seed, scores, ..plan }.call().ok()?)
        }
        Takes::Selection => {
            let mut plan = selection_plan(capabilities, shape);
            if let Some(keys) = keys {
                plan.dims.keys = large_keys(capabilities, shape, keys)?;
                plan.make_few_rows(capabilities);
            }
            StageCall::Selection(SelectionPlan { seed, ..plan }.call().ok()?)
        }
    };
    let ragged = capabilities.ragged.then(|| stage_with_lengths(&call, seed)).flatten();
    let offered = |call: &StageCall| capabilities.offers_stage(call);
    ragged.filter(offered).or_else(|| offered(&call).then_some(call))
}

/// A number of keys of this range that the domain has, every other one at the edge of a tile.
fn large_keys(capabilities: &Capabilities, seed: u64, (least, most): (usize, usize)) -> Option<usize> {
    let domain = capabilities.domains.get(seed as usize % capabilities.domains.len().max(1));
    let allowed = |keys: usize| domain.map_or(Some(keys), |domain| domain.keys_at_most(keys));
    let most = allowed(capabilities.largest_keys.map_or(most, |largest| largest.min(most)))?;
    let share = (mix(seed ^ 3) >> 40) as f64 / (1u64 << 24) as f64;
    let drawn = least as f64 * (most as f64 / least as f64).max(1.0).powf(share);
    let keys = allowed(at_an_edge(drawn as usize, mix(seed ^ 4) as usize).min(most))?;
    (keys >= least).then_some(keys)
}

/// What is drawn before a domain restricts it.
struct Draw {
    words: Words,
    drawn: u64,
}

impl Draw {
    fn new(seed: u64) -> Self {
        Self { words: Words::new(seed, 11), drawn: 0 }
    }

    /// One of 0, 1, …, `count` − 1.
    fn below(&mut self, count: usize) -> usize {
        self.drawn += 1;
        (self.words.word(self.drawn) >> 16) as usize % count.max(1)
    }

    fn of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }

    /// A number of keys from 1 to `most`: a third each are small, arbitrary, or next to a power of two.
    fn keys(&mut self, most: usize) -> usize {
        match self.below(3) {
            0 => 1 + self.below(8),
            1 => 1 + self.below(most),
            _ => (1usize << self.below(9)) + self.below(3),
        }
        .saturating_sub(usize::from(self.drawn.is_multiple_of(5)))
        .clamp(1, most)
    }
}

/// Types that may be asked for, and the alternative of the domain that a question of this seed has to fit.
fn offered(capabilities: &Capabilities, seed: u64, draw: &mut Draw) -> (Storage, Option<Domain>) {
    let storage = draw.of(&capabilities.dtypes);
    let domains = &capabilities.domains;
    let domain = domains.get(seed as usize % domains.len().max(1)).cloned();
    let storage = domain.as_ref().map_or(storage, |domain| domain.fit_dtype(storage, seed));
    (storage, domain)
}

/// The plan of a question to a top-k.
pub fn scores_plan(capabilities: &Capabilities, seed: u64) -> ScoresPlan {
    let mut draw = Draw::new(mix(seed));
    let one_if = |lacking: Feature, size: usize| if capabilities.offers(lacking) { size } else { 1 };
    let (storage, domain) = offered(capabilities, seed, &mut draw);
    let mut shape = [
        one_if(Feature::Batch, draw.of(&[1, 1, 2])),
        draw.of(&[1, 1, 2, 3, 4]),
        one_if(Feature::ManyQueries, draw.of(&[1, 1, 2, 3])),
        draw.keys(300).min(capabilities.largest_keys.unwrap_or(usize::MAX)),
    ];
    if let Some(domain) = &domain {
        let [batch, heads, queries, keys] = shape;
        let fitted = domain.fit(Sizes::of_heads(batch, heads, queries.min(keys), keys), seed);
        shape = [fitted.batch, fitted.kv_heads * fitted.group, fitted.queries, fitted.keys];
    }
    let keys = shape[3];
    let heavy = match draw.below(6) {
        0 => 1,
        1 => keys,
        2 => keys.saturating_sub(1),
        3 => 1 << draw.below(6),
        _ => 1 + draw.below(keys),
    }
    .clamp(1, keys);
    let mut heavy_size = NonZeroUsize::new(heavy).unwrap_or(NonZeroUsize::MIN);
    if let Some(domain) = &domain {
        if let HeavySize::Count(fitted) = domain.fit_heavy_size(HeavySize::Count(heavy_size), keys, seed) {
            heavy_size = fitted;
        }
        // A domain with large heavy sizes only would rarely have more candidates than are selected.
        if heavy_size.get() >= keys
            && !seed.is_multiple_of(4)
            && let Some(more) = domain.keys_above(heavy_size.get(), seed)
        {
            shape[3] = more;
        }
    }
    let mut scores = draw.of(&ScoreShape::ALL);
    if scores == ScoreShape::EmptyRows && !capabilities.offers(Feature::EmptyRows) {
        scores = ScoreShape::Excluded;
    }
    ScoresPlan { seed, shape, heavy_size, storage, scores }
}

impl ScoresPlan {
    /// A number of keys of this range, and H and rows that fit; `None` where the domain has none.
    fn enlarge(&mut self, capabilities: &Capabilities, keys: (usize, usize)) -> Option<()> {
        let n = large_keys(capabilities, self.seed, keys)?;
        let heavy = heavy_size(n, mix(self.seed ^ 5) as usize).ok()?.resolve(n).clamp(1, n);
        let size = HeavySize::count(heavy).ok()?;
        let domain = capabilities.domains.get(self.seed as usize % capabilities.domains.len().max(1));
        self.shape[3] = n;
        self.heavy_size = match domain.map_or(size, |domain| domain.fit_heavy_size(size, n, self.seed)) {
            HeavySize::Count(fitted) => fitted,
            size @ HeavySize::Fraction(_) => NonZeroUsize::new(size.resolve(n))?,
        };
        for part in 0..3 {
            let scores: usize = self.shape.iter().product();
            if scores > MOST_SCORES && domain.is_none() {
                self.shape[part] = 1;
            }
        }
        Some(())
    }

    /// The question. Errors: none for plans made by [`scores_plan`].
    pub fn call(&self) -> Result<ScoresCall, Error> {
        let [_, heads, queries, keys] = self.shape;
        let words = Words::new(self.seed, 12);
        let scores = Array4::from_shape_fn(self.shape, |(b, head, i, key)| {
            let row = ((b * heads + head) * queries + i) as u64;
            let at = row * keys as u64 + key as u64;
            let (value, word) = (words.value(at), words.word(at));
            self.score(key, value, word, words.word(!row))
        });
        ScoresCall::new(scores, self.storage, self.heavy_size)
    }

    /// The score of one key from a normal number, a random word, and a word of its row.
    fn score(&self, key: usize, value: f32, word: u64, row: u64) -> f32 {
        let keys = self.shape[3];
        match self.scores {
            ScoreShape::Normal => value,
            ScoreShape::Equal => (row % 5) as f32 - 2.0,
            ScoreShape::Plateaus => {
                // Fewer than H keys stand on the upper one, spread over the row.
                let heavy = self.heavy_size.get().min(keys);
                let upper = row as usize % heavy.max(1);
                let place = (key * 7 + row as usize % 11) % keys;
                if keys.is_multiple_of(7) || place >= upper { 0.5 } else { 1.5 }
            }
            ScoreShape::Few => [-1.0, 0.25, 3.0][word as usize % 3],
            ScoreShape::Rising => self.slope(key),
            ScoreShape::Falling => -self.slope(key),
            ScoreShape::Excluded if word.is_multiple_of(3) => f32::NEG_INFINITY,
            ScoreShape::EmptyRows if row.is_multiple_of(2) => f32::NEG_INFINITY,
            ScoreShape::Excluded | ScoreShape::EmptyRows => value,
            ScoreShape::SignedZeros => match word % 8 {
                0 => 1.0,
                1 => -1.0,
                2..=4 => -0.0,
                _ => 0.0,
            },
            ScoreShape::Subnormals => {
                let steps = (word % 16) as f32 - 8.0;
                (f64::from(steps) * self.storage.smallest_subnormal()) as f32
            }
            ScoreShape::Collisions => self.collision(word),
            ScoreShape::Outlier if row as usize % keys == key => self.storage.largest() as f32 / 2.0,
            ScoreShape::Outlier => value,
            ScoreShape::Crowded => self.in_a_bin(word, row, 0.0),
            ScoreShape::BinEdge => self.in_a_bin(word, row, 0.5),
            ScoreShape::ExcludedTiles => {
                let tile = key / self.tile();
                if mix(row ^ tile as u64).is_multiple_of(3) || tile == 0 { f32::NEG_INFINITY } else { value }
            }
            ScoreShape::Placed(scores) => {
                scores.of_key(key, keys, self.heavy_size.get().min(keys), self.tile(), row)
            }
        }
    }

    /// A tile of a kernel, of which there are at least two.
    fn tile(&self) -> usize {
        let fitting = TILES.iter().filter(|&tile| 2 * tile <= self.shape[3]).count();
        TILES[mix(self.seed ^ 7) as usize % fitting.max(1)]
    }

    /// In steps of 1/8, where the largest of them is a number of every type.
    fn slope(&self, key: usize) -> f32 {
        let keys = self.shape[3];
        if keys <= 4096 { key as f32 / 8.0 } else { key as f32 / keys as f32 }
    }

    /// How many high bits the scores of a row share, of the bits of the type: as many as leave it some numbers that differ.
    fn bin_bits(&self, row: u64) -> u32 {
        let most = if self.storage == Storage::F32 { 4 } else { 3 };
        [8, 11, 12, 16][(row >> 8) as usize % most]
    }

    /// One of the numbers that share so many high bits, all of them equally likely; beginning with a number of two, or with
    /// `below` 1/2 with as many below it.
    fn in_a_bin(&self, word: u64, row: u64, below: f64) -> f32 {
        let (exponent_bits, mantissa_bits) = match self.storage {
            Storage::F32 => (8, 23),
            Storage::F16 => (5, 10),
            Storage::Bf16 => (8, 7),
        };
        // Bits of the mantissa that are the same in a bin; the sign is 0.
        let shared = self.bin_bits(row) as i32 - 1 - exponent_bits;
        let numbers = 1i64 << (mantissa_bits - shared);
        let step = ((word >> 8) % numbers as u64) as i64 - (below * numbers as f64) as i64;
        // Counted in the bits of the type, from 2, at which bins of any width begin.
        let bits = (1i64 << mantissa_bits) * (1i64 << (exponent_bits - 1)) + step;
        match self.storage {
            Storage::F32 => f32::from_bits(bits as u32),
            Storage::Bf16 => f32::from_bits((bits as u32) << 16),
            // The exponent of f32 is biased by 112 more.
            Storage::F16 => f32::from_bits((bits as u32 + (112 << 10)) << 13),
        }
    }

    /// Neighbours of one number in the type: in a narrower type most of them are the same number.
    fn collision(&self, word: u64) -> f32 {
        let spacing = 2.0 * self.storage.unit_roundoff();
        // f16 and bf16 each hold numbers that the other does not: eight exponents further, or three bits finer.
        let base = if word.is_multiple_of(16) { 1.5 } else { 1.0 };
        (base * (1.0 + (word >> 8) as f64 % 6.0 * spacing)) as f32
    }
}

/// The plan of a question to a sparse attention.
pub fn selection_plan(capabilities: &Capabilities, seed: u64) -> SelectionPlan {
    let mut draw = Draw::new(mix(seed));
    let offers = |feature| capabilities.offers(feature);
    let (storage, domain) = offered(capabilities, seed, &mut draw);
    let head_dim = draw.of(&[1, 2, 3, 4, 8, 16, 32, 64]);
    let keys = draw.keys(160).min(capabilities.largest_keys.unwrap_or(usize::MAX));
    let mut sizes = Sizes {
        batch: if offers(Feature::Batch) { draw.of(&[1, 1, 2]) } else { 1 },
        kv_heads: draw.of(&[1, 1, 2, 3]),
        group: if offers(Feature::GroupedHeads) { draw.of(&[1, 1, 2, 3]) } else { 1 },
        queries: if offers(Feature::ManyQueries) { draw.of(&[1, 1, 2, 3]).min(keys) } else { 1 },
        keys,
        label_channels: head_dim,
        group_factor: 1,
        value_dim: if offers(Feature::ValueDim) { draw.of(&[head_dim, head_dim, 1, 5]) } else { head_dim },
        label_bits: 16,
    };
    if let Some(domain) = &domain {
        sizes = domain.fit(sizes, seed);
    }
    let head_dim = sizes.label_channels * sizes.group_factor;
    let value_dim = if offers(Feature::ValueDim) { sizes.value_dim } else { head_dim };
    let dims = Dims {
        batch: sizes.batch,
        heads: sizes.kv_heads * sizes.group,
        kv_heads: sizes.kv_heads,
        queries: sizes.queries,
        keys: sizes.keys,
        head_dim,
        value_dim,
    };
    let scaling =
        (offers(Feature::Scaling) && draw.below(5) == 0).then(|| draw.of(&[0.5, 1.0, 0.088_388_347]));
    let mut attended = draw.of(&Attended::ALL);
    if !offers(Feature::EmptyRows) && (attended == Attended::NoneInSome || dims.keys == 1) {
        attended = Attended::All;
    }
    let magnitude = draw.of(&[1.0, 1.0, 1.0, 0.0, 4.0, 16.0]);
    SelectionPlan { seed, dims, storage, scaling, attended, magnitude }
}

impl SelectionPlan {
    /// Fewer rows, where there is no domain to say how many there must be.
    fn make_few_rows(&mut self, capabilities: &Capabilities) {
        let many = |dims: &Dims| dims.batch * dims.heads * dims.queries * dims.keys > MOST_SCORES;
        if capabilities.domains.is_empty() && many(&self.dims) {
            self.dims.batch = 1;
            self.dims.queries = 1;
        }
        if capabilities.domains.is_empty() && many(&self.dims) {
            (self.dims.heads, self.dims.kv_heads) = (1, 1);
        }
    }

    /// The question. Errors: those of [`Inputs::new`], for plans not made by [`selection_plan`].
    pub fn call(&self) -> Result<SelectionCall, Error> {
        let Dims { batch, heads, kv_heads, queries, keys, head_dim, value_dim } = self.dims;
        let tensor = |t: u64, shape: [usize; 4], factor: f32| {
            let words = Words::new(self.seed, t);
            let mut i = 0;
            Array4::from_shape_simple_fn(shape, || {
                i += 1;
                words.value(i) * factor
            })
        };
        let inputs = Inputs::new(InputParts {
            q: tensor(0, [batch, heads, queries, head_dim], self.magnitude),
            k: tensor(1, [batch, kv_heads, keys, head_dim], 1.0),
            v: tensor(2, [batch, kv_heads, keys, value_dim], 1.0),
            attention_mask: None,
            causal: false,
            storage: self.storage,
            scaling: self.scaling,
        })?;
        let words = Words::new(self.seed, 13);
        let weights = Array4::from_shape_fn(self.dims.mask_shape(), |(b, head, i, key)| {
            let row = ((b * heads + head) * queries + i) as u64;
            let (word, row) = (words.word(row * keys as u64 + key as u64), words.word(!row));
            f32::from(u8::from(self.attends(key, word, row)))
        });
        let mask = Mask::from_weights(weights, &self.dims)?;
        Ok(SelectionCall { inputs: Arc::new(inputs), mask })
    }

    fn attends(&self, key: usize, word: u64, row: u64) -> bool {
        let keys = self.dims.keys;
        // One key of every row, so that none is empty by chance.
        let always = row as usize % keys == key;
        match self.attended {
            Attended::Some => always || word % 8 < row % 8,
            Attended::One => always,
            Attended::All => true,
            Attended::Last => key >= keys - 1 - row as usize % keys,
            Attended::NotLast => key + 1 < keys.max(2),
            Attended::NoneInSome if row.is_multiple_of(2) => false,
            Attended::NoneInSome => always || word.is_multiple_of(3),
        }
    }
}

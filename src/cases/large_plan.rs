//! Sequences of real sizes: mostly single calls of many keys, at the edges of tiles and pages, with scores made on purpose; one in
//! four is a small sequence after a history ([`super::history`]). Drawn by their number from the seed, so that each size and
//! each pattern of scores has its turn, and small sequences stay as they are.
//!
//! Scores are made through one label channel: q̂ is 1 there and 0 in the other label channels, and all label channels of key j
//! hold the wanted score s_j. A row of equal labels is quantised exactly, so that this holds for any B.

use std::sync::Arc;

use super::capabilities::Capabilities;
use super::domain::Domain;
use super::history::deep_sequence;
use super::recipe::mix;
use super::sequence::{Call, Instance, Sequence};
use super::strategies::{AdditiveMask, ChannelRows, Plan, Previous, Values};
use crate::algorithm::{
    ChannelOrder, Error, GroupFactor, HeadMode, HeavySize, Inputs, LabelBits, Rules, ScoreRule, Selection,
    Storage,
};

/// Random sequences have at most this many keys: large ones start above.
const SMALL: usize = 40;

/// One in this many is a small sequence of any kind after a history of many keys.
const DEEP: usize = 4;

/// Head dimensions of models, and label channels of each.
const CHANNELS: [(usize, usize); 7] =
    [(64, 8), (64, 16), (80, 10), (96, 12), (128, 16), (128, 32), (256, 16)];

/// Tiles and pages that kernels have.
pub(super) const TILES: [usize; 7] = [16, 32, 64, 128, 256, 1024, 4096];

/// b · h · n of a call: larger ones take longer than they tell.
const MOST_SCORES: usize = 1 << 17;

/// How the scores of a call are distributed over its keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scores {
    /// As the numbers of q and k make them.
    Random,
    /// All the same.
    Equal,
    /// Two values; the H-th key is one of several that tie.
    Plateaus,
    /// 0 and −0, and a few above.
    Zeros,
    /// Between 1 and 1 + 2^−6: one bin of a radix or histogram top-k over high bits.
    Crowded,
    /// Just below and just above 1, the edge of such bins.
    BinEdge,
    /// The last keys win.
    Rising,
    /// The first keys win.
    Falling,
    /// The middle wins.
    OrganPipe,
    /// Winners all in the first tile.
    FirstTile,
    /// Winners all in the last, usually partial tile.
    LastTile,
    /// One winner in each tile.
    EachTile,
    /// One key far above all others.
    Outlier,
}

impl Scores {
    /// All of them, in the order in which they have their turn.
    pub const ALL: [Self; 13] = [
        Self::Random,
        Self::LastTile,
        Self::Crowded,
        Self::Plateaus,
        Self::Falling,
        Self::EachTile,
        Self::Rising,
        Self::BinEdge,
        Self::Zeros,
        Self::FirstTile,
        Self::OrganPipe,
        Self::Equal,
        Self::Outlier,
    ];

    /// The name in the name of a sequence.
    pub fn name(self) -> &'static str {
        match self {
            Self::Random => "random scores",
            Self::Equal => "equal scores",
            Self::Plateaus => "two plateaus",
            Self::Zeros => "zeros of both signs",
            Self::Crowded => "scores in one bin",
            Self::BinEdge => "scores at the edge of a bin",
            Self::Rising => "rising scores",
            Self::Falling => "falling scores",
            Self::OrganPipe => "organ-pipe scores",
            Self::FirstTile => "winners in the first tile",
            Self::LastTile => "winners in the last tile",
            Self::EachTile => "a winner in each tile",
            Self::Outlier => "one outlier",
        }
    }

    /// s_j of every key; `None` for random ones. `heavy` keys are selected.
    fn of_keys(self, keys: usize, heavy: usize, tile: usize, seed: u64) -> Option<Vec<f32>> {
        (self != Self::Random)
            .then(|| (0..keys).map(|key| self.of_key(key, keys, heavy, tile, seed)).collect())
    }

    /// The score of one key.
    pub(super) fn of_key(self, key: usize, keys: usize, heavy: usize, tile: usize, seed: u64) -> f32 {
        let word = |key: usize| mix(seed ^ mix(key as u64 + 1));
        let share = |key: usize| (word(key) >> 40) as f32 / (1u64 << 24) as f32;
        let last_tile = (keys - 1) / tile * tile;
        match self {
            Self::Random | Self::Equal => 0.75,
            Self::Plateaus => {
                if word(key) % (2 * keys as u64) < 3 * heavy as u64 {
                    1.0
                } else {
                    0.5
                }
            }
            Self::Zeros => match word(key) % 64 {
                0 => 0.5,
                word if word % 2 == 0 => 0.0,
                _ => -0.0,
            },
            Self::Crowded => 1.0 + share(key) / 64.0,
            Self::BinEdge => 1.0 + (share(key) - 0.5) / 512.0,
            Self::Rising => key as f32 / keys as f32,
            Self::Falling => -(key as f32) / keys as f32,
            Self::OrganPipe => key.min(keys - 1 - key) as f32 / keys as f32,
            Self::FirstTile => share(key) + f32::from(u8::from(key < tile)),
            Self::LastTile => share(key) + f32::from(u8::from(key >= last_tile)),
            Self::EachTile => {
                share(key) + f32::from(u8::from(key % tile == word(key / tile) as usize % tile))
            }
            Self::Outlier => {
                if key == word(0) as usize % keys {
                    100.0
                } else {
                    share(key)
                }
            }
        }
    }
}

/// Which large sequence: everything about it follows from this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Large {
    /// The seed of all of them.
    pub seed: u64,
    /// Its number among those of at least so many keys, from 0.
    pub number: usize,
    /// It has at least so many keys, and never as few as random sequences.
    pub least: usize,
    /// It has at most so many keys.
    pub most: usize,
    /// The number of the sequence whose sizes and settings it has; its own, unless shapes are bounded.
    pub shape: usize,
}

impl Large {
    /// The sequence of a number, of at most `most` keys.
    pub fn new(seed: u64, number: usize, most: usize) -> Self {
        Self { seed, number, least: SMALL + 1, most, shape: number }
    }

    /// Its size by the capabilities, whatever the domain.
    fn most(&self, capabilities: &Capabilities) -> usize {
        capabilities.largest_keys.map_or(self.most, |most| most.min(self.most))
    }

    /// Whether some domain has a number of keys in this range.
    pub fn has_room(&self, capabilities: &Capabilities) -> bool {
        let most = self.most(capabilities);
        let fits = |domain: &Domain| domain.keys_at_most(most).is_some_and(|keys| keys >= self.least);
        let domains = &capabilities.domains;
        most >= self.least && (domains.is_empty() || domains.iter().any(fits))
    }

    fn seed_of(&self, number: usize) -> u64 {
        let series = (self.least.saturating_sub(SMALL + 1) as u64) << 32;
        mix(mix(self.seed ^ 0x006c_6172_6765 ^ series) ^ mix(number as u64))
    }
}

/// A large sequence: `None` where the capabilities have no room for it, or it would have no more keys than random sequences.
pub fn large_sequence(capabilities: &Capabilities, large: Large) -> Option<(Sequence, Scores)> {
    let (seed, shape_seed) = (large.seed_of(large.number), large.seed_of(large.shape));
    let least = large.least.max(SMALL + 1);
    let domain = capabilities.domains.get(shape_seed as usize % capabilities.domains.len().max(1));
    let allowed = |keys: usize| domain.map_or(Some(keys), |domain| domain.keys_at_most(keys));
    let largest = allowed(large.most(capabilities)).filter(|&largest| largest >= least)?;
    let scores = Scores::ALL[(large.number + least - SMALL - 1) % Scores::ALL.len()];
    let mut plan = plan(capabilities, shape_seed, large.shape, (least, largest)).ok()?;
    // The shapes of its calls are many.
    if large.number % DEEP == DEEP - 1 && capabilities.shapes.is_none() {
        let deep = deep_sequence(capabilities, seed, plan.keys.saturating_sub(2 * SMALL).max(1));
        let fits = |sequence: &Sequence| {
            let keys = |call: &Call| call.inputs.dims().keys;
            sequence.calls.iter().all(|call| (least..=largest).contains(&keys(call)))
        };
        if let Some(mut sequence) = deep.filter(fits) {
            sequence.name = format!("large sequence {}, {}", large.number + 1, sequence.name);
            return Some((sequence, Scores::Random));
        }
    }
    plan.keys = allowed(plan.keys)?;
    plan.queries = plan.queries.min(plan.keys);
    let plan = Plan { seed, ..plan.restricted(capabilities) };
    let mut sequence = plan.case().ok()?.sequence();
    let tile = TILES[mix(seed ^ 7) as usize % TILES.len()];
    let made = with_scores(&mut sequence, scores, tile, seed).ok()?;
    let scores = if made { scores } else { Scores::Random };
    let keys = sequence.calls[0].inputs.dims().keys;
    let above = if least > SMALL + 1 { format!(" above {} keys,", least - 1) } else { String::new() };
    sequence.name = format!("large sequence {}{above} of {keys} keys, {}", large.number + 1, scores.name());
    (keys >= least && capabilities.offers_all(&sequence)).then_some((sequence, scores))
}

/// Sizes by number: their logarithms fill the range evenly, every other one at an edge.
fn plan(
    capabilities: &Capabilities,
    seed: u64,
    number: usize,
    (least, largest): (usize, usize),
) -> Result<Plan, Error> {
    let word = |place: u64| mix(seed ^ mix(place + 1)) as usize;
    let pick = |place: u64, count: usize| word(place) % count;
    // Multiples of the golden ratio, modulo 1, leave no large gaps.
    let place = (number as f64 * 0.618_033_988_749_894_9).fract();
    let drawn = least as f64 * (largest as f64 / least as f64).powf(place);
    let keys = at_an_edge(drawn as usize, word(1)).clamp(least, largest);
    let offered = |&(d, r): &(usize, usize)| capabilities.allows_channels(d, d / r);
    let mut channels: Vec<_> = CHANNELS.into_iter().filter(offered).collect();
    if channels.is_empty() {
        // The domain chooses others.
        channels = CHANNELS.to_vec();
    }
    let (head_dim, label_channels) = channels[pick(2, channels.len())];
    let heads = [(1, 1), (1, 2), (2, 1), (1, 4), (2, 2), (4, 1)];
    let fitting = heads.iter().filter(|(kv_heads, group)| kv_heads * group * keys <= MOST_SCORES).count();
    let (kv_heads, group) = heads[pick(3, fitting.max(1))];
    let room = MOST_SCORES / (kv_heads * group * keys).max(1);
    let queries = if pick(4, 4) == 0 { 1 + pick(5, 8.min(room.max(1))) } else { 1 };
    let batch = if pick(6, 4) == 0 && room >= 2 * queries { 2 } else { 1 };
    let bits = [16, 4, 16, 8, 16, 2][pick(7, 6)];
    Ok(Plan {
        seed,
        batch,
        kv_heads,
        group,
        queries: queries.min(keys),
        keys,
        label_channels,
        value_dim: head_dim,
        selection: Selection {
            heavy_size: heavy_size(keys, word(8))?,
            group_factor: GroupFactor::new((head_dim / label_channels) as u64)?,
            label_bits: LabelBits::new(bits)?,
            heads: HeadMode::ALL[[0, 0, 1, 2][pick(9, 4)] % HeadMode::ALL.len()],
            dense_fallback: false,
            rules: Rules::default(),
        },
        storage: Storage::ALL[pick(10, Storage::ALL.len())],
        causal: true,
        additive: if pick(11, 6) == 0 { AdditiveMask::Excluding } else { AdditiveMask::Absent },
        masks_per_head: true,
        previous: Previous::Absent,
        earlier_maskers: Vec::new(),
        rows: [ChannelRows::PerHead, ChannelRows::PerKvHead, ChannelRows::Shared][pick(12, 3)],
        q: Values::Normal,
        k: Values::Normal,
        scaling: None,
    })
}

/// A power of two or a multiple of a tile nearby, or one more or less; every other size stays as it is.
pub(super) fn at_an_edge(keys: usize, word: usize) -> usize {
    let tile = match word >> 4 & 7 {
        7 => keys.next_power_of_two(),
        tile => TILES[tile],
    };
    let edge = keys.next_multiple_of(tile);
    match word % 6 {
        0 => edge,
        1 => edge + 1,
        2 => edge - 1,
        _ => keys,
    }
}

/// 1, a power of two, a share of n, about n, or any count.
pub(super) fn heavy_size(keys: usize, word: usize) -> Result<HeavySize, Error> {
    let any = 1 + (word >> 8) % keys;
    let power = 1 << ((word >> 8) % keys.ilog2() as usize);
    match word % 8 {
        0 => HeavySize::count(1),
        1 | 2 => HeavySize::count(power),
        3 => HeavySize::fraction([0.0625, 0.1, 0.25, 0.5][(word >> 8) % 4]),
        4 => HeavySize::count([keys - 1, keys, keys + 1][(word >> 8) % 3]),
        5 => HeavySize::count((keys / 16).max(1)),
        _ => HeavySize::count(any),
    }
}

/// Scores in place of those that random numbers make; false where rules other than a dot product would not rank by them.
fn with_scores(sequence: &mut Sequence, scores: Scores, tile: usize, seed: u64) -> Result<bool, Error> {
    let Instance { selection, .. } = &sequence.instance;
    let call = &sequence.calls[0];
    let dims = call.inputs.dims();
    let heavy = selection.heavy_size.resolve(dims.keys);
    let plain = selection.rules.score == ScoreRule::Dot && !selection.rules.channel_weights;
    let Some(of_keys) = scores.of_keys(dims.keys, heavy, tile, seed).filter(|_| plain) else {
        return Ok(false);
    };
    let label_channels = selection.group_factor.label_channels(dims.head_dim)?;
    let channels: &ChannelOrder = sequence.instance.channels(call.layer)?;
    let mut parts = call.inputs.parts().clone();
    for head in 0..dims.heads {
        let row = &channels.row(head, &dims)[..label_channels];
        for (place, &channel) in row.iter().enumerate() {
            let one = if place == 0 { 1.0 } else { 0.0 };
            parts.q.slice_mut(ndarray::s![.., head, .., channel]).fill(one);
            let mut k = parts.k.slice_mut(ndarray::s![.., dims.kv_head(head), .., channel]);
            for mut entry in k.outer_iter_mut() {
                entry.iter_mut().zip(&of_keys).for_each(|(x, &score)| *x = score);
            }
        }
    }
    let inputs = Inputs::new(parts)?.with_head_weights(call.inputs.head_weights().cloned())?;
    sequence.calls[0].inputs = Arc::new(inputs);
    Ok(true)
}

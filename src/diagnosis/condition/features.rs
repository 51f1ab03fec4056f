//! Features of a call: what may decide whether it is answered wrongly. Sizes, the settings of the instance, what comes with
//! the call, and the calls before it; none of the numbers in its tensors (but for what A and P exclude). They are small, so that
//! those of every call asked can be kept.

use crate::algorithm::{HeavySize, Lengths, Storage};
use crate::cases::Sequence;
use crate::cases::large_plan::Scores;

/// A number of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Number {
    /// n
    Keys,
    /// H, as a number of keys.
    HeavySize,
    /// B
    LabelBits,
    /// b
    Batch,
    /// m
    Queries,
    /// g
    GroupSize,
    /// hk
    KvHeads,
    /// d
    HeadDim,
    /// r
    LabelChannels,
    /// G
    GroupFactor,
    /// dv
    ValueDim,
    /// The most candidates of a row.
    Candidates,
    /// n − m: the keys before those of the queries.
    Past,
    /// The calls before it.
    Earlier,
    /// n of the call before it of the same layer.
    KeysBefore,
    /// b of the call before it of the same layer.
    BatchBefore,
    /// The parts of heads under tensor parallelism.
    Ranks,
    /// The layer.
    Layer,
}

impl Number {
    /// All of them; of two that separate alike the first is told.
    pub const ALL: [Self; 18] = [
        Self::Keys,
        Self::HeavySize,
        Self::LabelBits,
        Self::Batch,
        Self::Queries,
        Self::GroupSize,
        Self::KvHeads,
        Self::HeadDim,
        Self::LabelChannels,
        Self::GroupFactor,
        Self::ValueDim,
        Self::Candidates,
        Self::Past,
        Self::Earlier,
        Self::KeysBefore,
        Self::BatchBefore,
        Self::Ranks,
        Self::Layer,
    ];

    /// In formulas.
    pub fn symbol(self) -> &'static str {
        match self {
            Self::Keys => "n",
            Self::HeavySize => "H",
            Self::LabelBits => "B",
            Self::Batch => "b",
            Self::Queries => "m",
            Self::GroupSize => "g",
            Self::KvHeads => "hk",
            Self::HeadDim => "d",
            Self::LabelChannels => "r",
            Self::GroupFactor => "G",
            Self::ValueDim => "dv",
            Self::Candidates => "candidates",
            Self::Past => "n − m",
            Self::Earlier => "earlier calls",
            Self::KeysBefore => "n of the call before",
            Self::BatchBefore => "b of the call before",
            Self::Ranks => "ranks",
            Self::Layer => "layer",
        }
    }
}

/// What a call has or has not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trait {
    /// A
    AttentionMask,
    /// P
    Previous,
    /// An order of time among keys and queries.
    Causal,
    /// A scaling of the attention.
    Scaling,
    /// H as a share of n.
    Fraction,
    /// A full mask where few keys came before.
    DenseFallback,
    /// A full mask in this layer.
    DenseLayer,
    /// Maskers before Double Sparsity.
    EarlierMaskers,
    /// Entries of unequal lengths.
    Ragged,
    /// Rules other than the published ones.
    OtherRules,
    /// A call of another layer before it.
    AfterOtherLayer,
    /// A call of the same layer before it.
    AfterSameLayer,
    /// A row with as many candidates as H.
    ExactlyHeavy,
    /// A row with fewer candidates than H.
    FewerThanHeavy,
}

impl Trait {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::AttentionMask,
        Self::Previous,
        Self::Causal,
        Self::Scaling,
        Self::Fraction,
        Self::DenseFallback,
        Self::DenseLayer,
        Self::EarlierMaskers,
        Self::Ragged,
        Self::OtherRules,
        Self::AfterOtherLayer,
        Self::AfterSameLayer,
        Self::ExactlyHeavy,
        Self::FewerThanHeavy,
    ];

    /// In words: with it, and without it.
    pub fn words(self) -> [&'static str; 2] {
        match self {
            Self::AttentionMask => ["A given", "no A given"],
            Self::Previous => ["P given", "no P given"],
            Self::Causal => ["causal order", "no causal order"],
            Self::Scaling => ["a scaling given", "no scaling given"],
            Self::Fraction => ["H as a fraction", "H as a count"],
            Self::DenseFallback => ["dense fallback", "no dense fallback"],
            Self::DenseLayer => ["a dense layer", "a layer that is not dense"],
            Self::EarlierMaskers => ["earlier maskers", "no earlier masker"],
            Self::Ragged => ["entries of unequal lengths", "entries of equal lengths"],
            Self::OtherRules => ["other rules than the published ones", "the published rules"],
            Self::AfterOtherLayer => ["an earlier call of another layer", "no earlier call of another layer"],
            Self::AfterSameLayer => {
                ["an earlier call of the same layer", "no earlier call of the same layer"]
            }
            Self::ExactlyHeavy => ["a row of exactly H candidates", "no row of exactly H candidates"],
            Self::FewerThanHeavy => ["a row of fewer candidates than H", "no row of fewer candidates than H"],
        }
    }
}

/// One of several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Choice {
    /// The type of q, k and v.
    Dtype,
    /// How heads share a selection.
    Heads,
    /// For what there is a row of channels each.
    Rows,
    /// What scores were made for.
    Scores,
}

impl Choice {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Dtype, Self::Heads, Self::Rows, Self::Scores];

    /// A value in words.
    pub fn words(self, value: u8) -> String {
        let index = usize::from(value);
        match self {
            Self::Dtype => Storage::ALL.get(index).map(ToString::to_string),
            Self::Heads => crate::algorithm::HeadMode::EVERY.get(index).map(|mode| mode.name().to_owned()),
            Self::Rows => ["a channel row per head", "a channel row per KV head", "one channel row"]
                .get(index)
                .map(ToString::to_string),
            Self::Scores => Scores::ALL.get(index).map(|scores| scores.name().to_owned()),
        }
        .unwrap_or_default()
    }
}

/// The features of one call. What a call does not have has no number: there is no n of a call before the first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Features {
    numbers: [Option<u32>; Number::ALL.len()],
    traits: u32,
    choices: [u8; Choice::ALL.len()],
}

impl Features {
    /// Those of one call of a sequence.
    pub fn of(sequence: &Sequence, index: usize) -> Self {
        let instance = &sequence.instance;
        let selection = &instance.selection;
        let call = &sequence.calls[index];
        let (dims, parts) = (call.inputs.dims(), call.inputs.parts());
        let heavy = selection.heavy_size.resolve(dims.keys);
        let same_layer = sequence.calls[..index].iter().rev().find(|earlier| earlier.layer == call.layer);
        let candidates = Candidates::of(sequence, index);
        let rows = instance.channels(call.layer).ok().map(|order| order.rows().len());
        let factor = selection.group_factor.get();
        let number = |number: Number| match number {
            Number::Keys => Some(dims.keys),
            Number::HeavySize => Some(heavy),
            Number::LabelBits => Some(usize::from(selection.label_bits.get())),
            Number::Batch => Some(dims.batch),
            Number::Queries => Some(dims.queries),
            Number::GroupSize => Some(dims.group_size()),
            Number::KvHeads => Some(dims.kv_heads),
            Number::HeadDim => Some(dims.head_dim),
            Number::LabelChannels => Some(dims.head_dim / factor),
            Number::GroupFactor => Some(factor),
            Number::ValueDim => Some(dims.value_dim),
            Number::Candidates => candidates.as_ref().map(|candidates| candidates.most),
            Number::Past => dims.keys.checked_sub(dims.queries),
            Number::Earlier => Some(index),
            Number::KeysBefore => same_layer.map(|earlier| earlier.inputs.dims().keys),
            Number::BatchBefore => same_layer.map(|earlier| earlier.inputs.dims().batch),
            Number::Ranks => Some(selection.rules.ranks.count()),
            Number::Layer => Some(call.layer),
        };
        let has = |of: Trait| match of {
            Trait::AttentionMask => parts.attention_mask.is_some(),
            Trait::Previous => call.previous.is_some(),
            Trait::Causal => parts.causal,
            Trait::Scaling => parts.scaling.is_some(),
            Trait::Fraction => matches!(selection.heavy_size, HeavySize::Fraction(_)),
            Trait::DenseFallback => selection.dense_fallback,
            Trait::DenseLayer => instance.dense_layers.contains(&call.layer),
            Trait::EarlierMaskers => !instance.earlier_maskers.is_empty(),
            Trait::Ragged => call.inputs.lengths().is_some(),
            Trait::OtherRules => selection.rules != Default::default(),
            Trait::AfterOtherLayer => {
                sequence.calls[..index].iter().any(|earlier| earlier.layer != call.layer)
            }
            Trait::AfterSameLayer => same_layer.is_some(),
            Trait::ExactlyHeavy => candidates.as_ref().is_some_and(|candidates| candidates.exactly),
            Trait::FewerThanHeavy => candidates.as_ref().is_some_and(|candidates| candidates.fewer),
        };
        let place = |found: Option<usize>| found.unwrap_or(usize::from(u8::MAX)) as u8;
        let choice = |of: Choice| {
            place(match of {
                Choice::Dtype => Storage::ALL.iter().position(|dtype| *dtype == parts.storage),
                Choice::Heads => {
                    crate::algorithm::HeadMode::EVERY.iter().position(|mode| *mode == selection.heads)
                }
                Choice::Rows if rows == Some(1) => Some(2),
                Choice::Rows if rows == Some(dims.kv_heads) && dims.kv_heads < dims.heads => Some(1),
                Choice::Rows => Some(0),
                Choice::Scores => {
                    let named = |scores: &Scores| sequence.name.contains(scores.name());
                    Some(Scores::ALL.iter().position(named).unwrap_or(0))
                }
            })
        };
        Self {
            numbers: Number::ALL.map(|of| number(of).map(|number| u32::try_from(number).unwrap_or(u32::MAX))),
            traits: Trait::ALL.into_iter().filter(|of| has(*of)).map(|of| 1 << of as u32).sum(),
            choices: Choice::ALL.map(choice),
        }
    }

    /// A number; `None` where the call has none.
    pub fn number(&self, number: Number) -> Option<u32> {
        self.numbers[number as usize]
    }

    /// Whether the call has it.
    pub fn has(&self, of: Trait) -> bool {
        self.traits & (1 << of as u32) != 0
    }

    /// Which one it has.
    pub fn choice(&self, choice: Choice) -> u8 {
        self.choices[choice as usize]
    }
}

/// How many candidates the rows of a call have.
struct Candidates {
    most: usize,
    exactly: bool,
    fewer: bool,
}

impl Candidates {
    /// `None` where the maskers before Double Sparsity refuse the call.
    fn of(sequence: &Sequence, index: usize) -> Option<Self> {
        let call = &sequence.calls[index];
        let dims = call.inputs.dims();
        let selection = &sequence.instance.selection;
        let past = dims.keys.saturating_sub(dims.queries);
        let falls_back = selection.dense_fallback && past <= selection.heavy_size.resolve(dims.keys);
        // Nothing is selected where the mask is full.
        if sequence.instance.dense_layers.contains(&call.layer) || falls_back {
            return Some(Self { most: 0, exactly: false, fewer: false });
        }
        let masked = call.previous.is_some() || !sequence.instance.earlier_maskers.is_empty();
        let before = if masked { Some(sequence.instance.before(call).ok()?) } else { None };
        let heavy = |keys: usize| sequence.instance.selection.heavy_size.resolve(keys);
        let mut found = Self { most: 0, exactly: false, fewer: false };
        let plain = before.is_none() && call.inputs.parts().attention_mask.is_none();
        for (b, head, i) in dims.rows() {
            let keys = call.inputs.lengths().map_or(dims.keys, |lengths: &Lengths| lengths.keys()[b]);
            let position = (keys + i + 1).saturating_sub(dims.queries);
            let seen = if call.inputs.parts().causal { position.min(keys) } else { keys };
            let count = if plain {
                seen
            } else {
                let additive = call.inputs.additive(b, head, i);
                let is_candidate = |key: &usize| {
                    additive.at(*key) > f32::NEG_INFINITY
                        && before.as_ref().is_none_or(|mask| !mask.attends(b, head, i, *key))
                };
                (0..seen).filter(is_candidate).count()
            };
            let heavy = if keys == 0 { 1 } else { heavy(keys) };
            found.most = found.most.max(count);
            found.exactly |= count == heavy;
            found.fewer |= count < heavy;
        }
        Some(found)
    }
}

//! What an implementation offers, so that the suite asks for nothing else (`docs/PROTOCOL.md`, hello). What was left out is
//! counted and reported: a check that was not made must not look like one that passed.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;

use serde::{Deserialize, Serialize};

use super::domain::Domain;
use super::promise::Promise;
use super::sequence::{Call, Instance, Sequence};
use super::session::{Outcome, Session};
use super::stages::{Given, StageCall, Stages, Takes};
use crate::algorithm::{Dims, HeadMode, HeavySize, LabelBits, Rules, Selection, Storage};

/// What [`Capabilities::missing`] calls a sequence that lies outside the domain.
const OUTSIDE: &str = "outside the domain";

/// The name of batches of entries of unequal lengths among what a command offers, and in reports.
pub const RAGGED: &str = "ragged";

/// The name of sessions in the protocol.
pub const SESSIONS: &str = "sessions";

/// A part of the contract that an implementation may lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Feature {
    /// An additive mask other than the causal one.
    AttentionMask,
    /// An additive mask with a head dimension above 1.
    MasksPerHead,
    /// `causal: false`.
    NotCausal,
    /// An earlier mask P.
    Previous,
    /// Weights other than 0 and 1 in P.
    Weights,
    /// Sink and local maskers before Double Sparsity.
    EarlierMaskers,
    /// H as a fraction of the keys.
    Fractions,
    /// `dense_fallback: true`.
    DenseFallback,
    /// Layers that stay dense.
    DenseLayers,
    /// An attention scaling other than 1 / √d.
    Scaling,
    /// dv other than d.
    ValueDim,
    /// b above 1.
    Batch,
    /// Fewer KV heads than heads.
    GroupedHeads,
    /// m above 1.
    ManyQueries,
    /// B below 16.
    Quantised,
    /// B = 16.
    NotQuantised,
    /// Rows in which the additive mask excludes every key, by −∞ or the most negative number of the type, and rows without a
    /// position in an entry that is shorter than its queries.
    EmptyRows,
    /// One channel row per query head.
    ChannelsPerHead,
    /// One channel row per KV head, where these are fewer than the heads.
    ChannelsPerKvHead,
    /// One channel row for all of several heads.
    ChannelsShared,
    /// More than one call of an instance.
    Sequences,
    /// Inputs that must be refused.
    Refusals,
    /// The output of the attention: an implementation without it answers with masks only.
    Output,
}

impl Feature {
    /// All of them.
    pub const ALL: [Self; 23] = [
        Self::AttentionMask,
        Self::MasksPerHead,
        Self::NotCausal,
        Self::Previous,
        Self::Weights,
        Self::EarlierMaskers,
        Self::Fractions,
        Self::DenseFallback,
        Self::DenseLayers,
        Self::Scaling,
        Self::ValueDim,
        Self::Batch,
        Self::GroupedHeads,
        Self::ManyQueries,
        Self::Quantised,
        Self::NotQuantised,
        Self::EmptyRows,
        Self::ChannelsPerHead,
        Self::ChannelsPerKvHead,
        Self::ChannelsShared,
        Self::Sequences,
        Self::Refusals,
        Self::Output,
    ];

    /// The name used in the protocol.
    pub fn name(self) -> String {
        serde_json::to_value(self).ok().and_then(|name| name.as_str().map(str::to_owned)).unwrap_or_default()
    }
}

/// What the metadata of a case file says of its only call, without the numbers (see [`super::file::peek`]).
#[derive(Debug, Clone, PartialEq)]
pub struct Outline {
    /// H, G, B, the head mode and the dense fallback.
    pub selection: Selection,
    /// Whether maskers come before Double Sparsity.
    pub earlier_maskers: bool,
    /// The sizes.
    pub dims: Dims,
    /// The type of q, k and v.
    pub storage: Storage,
    /// Whether later keys are excluded.
    pub causal: bool,
    /// The factor of q·k, where it is given.
    pub scaling: Option<f64>,
    /// How many channel rows there are.
    pub channel_rows: usize,
}

/// What an implementation offers.
#[derive(Debug, Clone, PartialEq)]
pub struct Capabilities {
    /// Types of q, k and v, at least one.
    pub dtypes: Vec<Storage>,
    /// Head modes, at least one.
    pub heads: Vec<HeadMode>,
    /// The rules that may be asked for, at least one.
    pub rules: Vec<Rules>,
    /// The most keys of one call.
    pub largest_keys: Option<usize>,
    /// The first layer that may be asked for.
    pub first_layer: usize,
    /// What is left out.
    pub lacks: BTreeSet<Feature>,
    /// Sizes and types that may be asked for: a call must fit one of these. Empty where everything may be.
    pub domains: Vec<Domain>,
    /// What it promises beyond the contract; `None` where it says nothing of promises.
    pub promises: Option<BTreeSet<Promise>>,
    /// Which stages it does: where it starts, and what it gives.
    pub stages: Stages,
    /// Whether it takes batches of entries of unequal lengths.
    pub ragged: bool,
    /// Whether it holds the keys of requests itself, in sessions.
    pub sessions: bool,
    /// The most distinct shapes of calls that are worth asking: each new one costs it time, for example to compile.
    pub shapes: Option<NonZeroUsize>,
}

impl Default for Capabilities {
    fn default() -> Self {
        Self {
            dtypes: Storage::ALL.to_vec(),
            heads: HeadMode::ALL.to_vec(),
            rules: vec![Rules::default()],
            largest_keys: None,
            first_layer: 0,
            lacks: BTreeSet::new(),
            domains: Vec::new(),
            promises: None,
            stages: Stages::default(),
            ragged: false,
            sessions: false,
            shapes: None,
        }
    }
}

impl Capabilities {
    /// Whether a feature is offered.
    pub fn offers(&self, feature: Feature) -> bool {
        let gives_other_things = || !self.stages.gives.is_empty() && !self.stages.gives(Given::Output);
        !(self.lacks.contains(&feature) || feature == Feature::Output && gives_other_things())
    }

    /// Whether something is promised.
    pub fn promises(&self, promise: Promise) -> bool {
        self.promises.as_ref().is_some_and(|promises| promises.contains(&promise))
    }

    /// What both offer. Where that leaves no type or no head mode, nothing can be asked.
    pub fn and(&self, other: &Self) -> Self {
        Self {
            dtypes: self.dtypes.iter().copied().filter(|dtype| other.dtypes.contains(dtype)).collect(),
            // The three of the published algorithm restrict nothing.
            heads: if other.heads == HeadMode::ALL {
                self.heads.clone()
            } else {
                self.heads.iter().copied().filter(|heads| other.heads.contains(heads)).collect()
            },
            // Those of the published algorithm restrict nothing: any other rules are chosen on purpose.
            rules: if other.rules == [Rules::default()] { self.rules.clone() } else { other.rules.clone() },
            largest_keys: smaller(self.largest_keys, other.largest_keys),
            first_layer: self.first_layer.max(other.first_layer),
            lacks: self.lacks.union(&other.lacks).copied().collect(),
            // Profiles restrict by what they lack; a domain is the subject's own.
            domains: if self.domains.is_empty() { other.domains.clone() } else { self.domains.clone() },
            promises: self.promises.clone().or_else(|| other.promises.clone()),
            // So are its stages.
            stages: if self.stages.is_declared() { self.stages.clone() } else { other.stages.clone() },
            ragged: self.ragged,
            sessions: self.sessions,
            shapes: smaller(self.shapes, other.shapes),
        }
    }

    /// Whether everything that a sequence asks for is offered.
    pub fn offers_all(&self, sequence: &Sequence) -> bool {
        self.offers_calls(&sequence.instance, &sequence.calls)
    }

    /// Whether everything that calls of an instance ask for is offered.
    pub fn offers_calls(&self, instance: &Instance, calls: &[Call]) -> bool {
        self.stages.takes == Takes::Inputs
            && self.heads.contains(&instance.selection.heads)
            && self.rules.contains(&instance.selection.rules)
            && calls.iter().all(|call| {
                let keys = call.inputs.dims().keys;
                self.dtypes.contains(&call.inputs.storage())
                    && self.largest_keys.is_none_or(|largest| keys <= largest)
                    && (self.ragged || call.inputs.lengths().is_none())
                    && !self.is_outside(instance, call)
            })
            && self.lacking(instance, calls).is_empty()
    }

    /// Whether a head dimension may come with a group factor, as far as the domain says.
    pub fn allows_channels(&self, head_dim: usize, group_factor: usize) -> bool {
        self.domains.is_empty()
            || self.domains.iter().any(|domain| domain.allows_channels(head_dim, group_factor))
    }

    /// Whether fewer keys than these may be asked, as far as the domain says.
    pub fn allows_fewer_keys(&self, keys: usize) -> bool {
        let fewer =
            |domain: &Domain| domain.keys_at_most(keys.saturating_sub(1)).is_some_and(|fewer| fewer > 0);
        self.domains.is_empty() || self.domains.iter().any(fewer)
    }

    /// What a sequence asks for that is not offered, in words; empty where it may be asked.
    pub fn missing(&self, sequence: &Sequence) -> Vec<String> {
        let instance = &sequence.instance;
        let mut missing: BTreeSet<String> =
            self.lacking(instance, &sequence.calls).iter().map(|feature| feature.name()).collect();
        if self.stages.takes != Takes::Inputs {
            missing.insert(Takes::Inputs.name().to_owned());
        }
        if !self.heads.contains(&instance.selection.heads) {
            missing.insert(instance.selection.heads.name().to_owned());
        }
        if !self.rules.contains(&instance.selection.rules) {
            missing.insert("rules".into());
        }
        for call in &sequence.calls {
            if !self.dtypes.contains(&call.inputs.storage()) {
                missing.insert(call.inputs.storage().to_string());
            }
            if self.largest_keys.is_some_and(|largest| call.inputs.dims().keys > largest) {
                missing.insert("largest_keys".into());
            }
            if !self.ragged && call.inputs.lengths().is_some() {
                missing.insert(RAGGED.into());
            }
            if self.is_outside(instance, call) {
                missing.insert(OUTSIDE.into());
            }
        }
        missing.into_iter().collect()
    }

    /// Whether everything that a session asks for is offered, and what must come of each step is determined.
    pub fn offers_session(&self, session: &Session) -> bool {
        let Session { instance, opening, steps, .. } = session;
        let (Some(outcomes), Ok(calls)) = (session.outcomes(), session.calls()) else { return false };
        let refused = outcomes.iter().any(|outcome| *outcome != Outcome::Done);
        let calls: Vec<(usize, Call)> = calls;
        let batch = |step: usize| steps[step].requests().len();
        let fits = |domain: &Domain, (step, call): &(usize, Call)| {
            let dims = Dims { batch: batch(*step), ..call.inputs.dims() };
            domain.allows_page(opening.page_size)
                && domain.sizes_outside(&instance.selection, &dims, opening.dtype).is_empty()
        };
        let inside = |call: &(usize, Call)| {
            self.domains.is_empty() || self.domains.iter().any(|domain| fits(domain, call))
        };
        let lacking = |(_, call): &(usize, Call)| {
            !features(instance, std::slice::from_ref(call)).is_disjoint(&self.lacks)
        };
        let has_batch = steps.iter().any(|step| step.layer().is_some() && step.requests().len() > 1);
        let longest = session.longest();
        let holds = |domain: &Domain| domain.allows_at_least(longest);
        self.sessions
            && self.stages.takes == Takes::Inputs
            && self.dtypes.contains(&opening.dtype)
            && self.heads.contains(&instance.selection.heads)
            && self.rules.contains(&instance.selection.rules)
            && (!refused || self.offers(Feature::Refusals))
            && (!has_batch || self.offers(Feature::Batch))
            && self.largest_keys.is_none_or(|largest| longest <= largest)
            && (self.domains.is_empty() || self.domains.iter().any(holds))
            && calls.iter().all(|call| inside(call) && !lacking(call) && instance.faults(&call.1).is_empty())
    }

    /// Whether everything that a question to a stage asks for is offered.
    pub fn offers_stage(&self, call: &StageCall) -> bool {
        let dims = call.dims();
        let parts = [
            (Feature::Batch, dims.batch > 1),
            (Feature::ManyQueries, dims.queries > 1),
            (Feature::GroupedHeads, dims.kv_heads < dims.heads),
            (Feature::EmptyRows, call.has_empty_row()),
            (Feature::Scaling, call.scaling().is_some()),
            (Feature::ValueDim, dims.value_dim != dims.head_dim),
        ];
        let sizes = call.sizes();
        self.stages.takes == call.takes()
            && self.dtypes.contains(&call.storage())
            && self.largest_keys.is_none_or(|largest| dims.keys <= largest)
            && (self.ragged || call.lengths().is_none())
            && parts.into_iter().all(|(feature, asked)| !asked || self.offers(feature))
            && (self.domains.is_empty()
                || self.domains.iter().any(|domain| domain.holds(&sizes, call.storage())))
    }

    /// What an outline asks for that is not offered, in words. Even where this is empty, the whole case may ask for more.
    pub fn missing_of(&self, outline: &Outline) -> Vec<String> {
        let Outline { selection, dims, storage, .. } = outline;
        let mut found = selection_features(selection, outline.earlier_maskers);
        found.extend(call_features(dims, outline.causal, outline.scaling));
        found.extend(row_features(dims, outline.channel_rows));
        let mut missing: BTreeSet<String> = found
            .into_iter()
            .filter(|(feature, used)| *used && !self.offers(*feature))
            .map(|(feature, _)| feature.name())
            .collect();
        if !self.heads.contains(&selection.heads) {
            missing.insert(selection.heads.name().to_owned());
        }
        if !self.dtypes.contains(storage) {
            missing.insert(storage.to_string());
        }
        if self.largest_keys.is_some_and(|largest| dims.keys > largest) {
            missing.insert("largest_keys".into());
        }
        let fits = |domain: &Domain| domain.sizes_outside(selection, dims, *storage).is_empty();
        if !self.domains.is_empty() && !self.domains.iter().any(fits) {
            missing.insert(OUTSIDE.into());
        }
        missing.into_iter().collect()
    }

    /// Whether a call fits none of the domains. Where G does not divide d there is no number of label channels, and the other
    /// quantities decide.
    fn is_outside(&self, instance: &Instance, call: &Call) -> bool {
        !self.domains.is_empty()
            && !self.domains.iter().any(|domain| domain.outside(instance, call).is_empty())
    }

    fn lacking(&self, instance: &Instance, calls: &[Call]) -> BTreeSet<Feature> {
        if self.lacks.is_empty() {
            return BTreeSet::new();
        }
        let mut lacking: BTreeSet<_> = features(instance, calls).intersection(&self.lacks).copied().collect();
        let refused = |call: &Call| !instance.faults(call).is_empty();
        if !self.offers(Feature::Refusals) && calls.iter().any(refused) {
            lacking.insert(Feature::Refusals);
        }
        lacking
    }
}

fn smaller<T: Ord>(a: Option<T>, b: Option<T>) -> Option<T> {
    [a, b].into_iter().flatten().min()
}

/// Whether A excludes every key of some row. A score plus the most negative number may be −∞ too.
pub(super) fn has_empty_row(call: &Call) -> bool {
    if let Some(entries) = call.entries() {
        return entries
            .iter()
            .any(|entry| entry.first_query > 0 || entry.call.as_ref().is_none_or(has_empty_row));
    }
    let dims = call.inputs.dims();
    call.inputs.parts().attention_mask.is_some()
        && dims.rows().any(|(b, head, i)| {
            let additive = call.inputs.additive(b, head, i);
            (0..dims.keys).all(|key| f64::from(additive.at(key)) <= -call.inputs.storage().largest())
        })
}

/// What calls of an instance ask for, apart from [`Feature::Refusals`] and [`Feature::Output`].
pub(crate) fn features(instance: &Instance, calls: &[Call]) -> BTreeSet<Feature> {
    let mut found = selection_features(&instance.selection, !instance.earlier_maskers.is_empty());
    found.extend([
        (Feature::DenseLayers, !instance.dense_layers.is_empty()),
        (Feature::Sequences, calls.len() > 1),
    ]);
    for call in calls {
        let (dims, parts) = (call.inputs.dims(), call.inputs.parts());
        let weight = |&weight: &f32| weight != 0.0 && weight != 1.0;
        found.extend(call_features(&dims, parts.causal, Some(call.inputs.scaling())));
        found.extend([
            (Feature::AttentionMask, parts.attention_mask.is_some()),
            (Feature::MasksPerHead, parts.attention_mask.as_ref().is_some_and(|mask| mask.dim().1 > 1)),
            (Feature::Previous, call.previous.is_some()),
            (Feature::Weights, call.previous.iter().any(|mask| mask.weights().iter().any(weight))),
            (Feature::EmptyRows, has_empty_row(call)),
        ]);
        if let Ok(channels) = instance.channels(call.layer) {
            found.extend(row_features(&dims, channels.rows().len()));
        }
    }
    found.into_iter().filter(|(_, used)| *used).map(|(feature, _)| feature).collect()
}

fn selection_features(selection: &Selection, earlier_maskers: bool) -> Vec<(Feature, bool)> {
    vec![
        (Feature::EarlierMaskers, earlier_maskers),
        (Feature::Fractions, matches!(selection.heavy_size, HeavySize::Fraction(_))),
        (Feature::DenseFallback, selection.dense_fallback),
        (Feature::Quantised, selection.label_bits != LabelBits::UNQUANTISED),
        (Feature::NotQuantised, selection.label_bits == LabelBits::UNQUANTISED),
    ]
}

fn call_features(dims: &Dims, causal: bool, scaling: Option<f64>) -> [(Feature, bool); 6] {
    let default_scaling = 1.0 / (dims.head_dim as f64).sqrt();
    [
        (Feature::NotCausal, !causal),
        (Feature::Scaling, scaling.is_some_and(|scaling| scaling != default_scaling)),
        (Feature::ValueDim, dims.value_dim != dims.head_dim),
        (Feature::Batch, dims.batch > 1),
        (Feature::GroupedHeads, dims.kv_heads < dims.heads),
        (Feature::ManyQueries, dims.queries > 1),
    ]
}

fn row_features(dims: &Dims, rows: usize) -> [(Feature, bool); 3] {
    let grouped = dims.kv_heads < dims.heads;
    [
        (Feature::ChannelsPerHead, rows == dims.heads && dims.heads > 1),
        (Feature::ChannelsPerKvHead, rows == dims.kv_heads && grouped && rows > 1),
        (Feature::ChannelsShared, rows == 1 && dims.heads > 1),
    ]
}

//! Random sequences: a [`Plan`] for the inputs, and which layers are called with which lengths. About a third are single
//! calls; the others do to one instance what requests do to a model that serves them: visit several layers, grow by decode
//! steps or chunks, start anew, take back a tail, come in batches of another size. A few must be refused.

use std::sync::Arc;

use ndarray::{Array4, s};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::capabilities::{Capabilities, Feature};
use super::ragged_plan::with_lengths;
use super::recipe::mix;
use super::sequence::{Call, Instance, Sequence};
use super::strategies::{ChannelRows, Plan, Previous, plans};
use crate::algorithm::{ChannelFile, ChannelKind, ChannelOrder, Error, GroupFactor, HeadMode};

/// Which calls are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pattern {
    /// One call.
    Once,
    /// Each layer once, with the same number of keys.
    Layers,
    /// One layer, one more key each time, one query at a time.
    Decode,
    /// Two layers, two decode steps each.
    LayersDecode,
    /// One layer, then the same layer with other and fewer keys.
    Restart,
    /// One layer, then the same layer with other keys, equally many.
    RestartEqual,
    /// One layer, then the same layer with other and more keys.
    RestartLonger,
    /// One layer in chunks: later calls have several queries, those of the keys that are new.
    Chunks,
    /// One layer, then other keys in a batch of another size, then the first ones again.
    OtherBatch,
    /// One layer three times with equal shapes: other queries for the same keys, then other keys.
    SameShapes,
    /// One layer; then the last keys are taken back and others put in their place, one at a time.
    Rollback,
    /// Each layer once, then the first one again with other keys.
    Return,
}

/// One call: which layer, on which text (the source of its keys), where that text turns into another, and how long it is.
struct Visit {
    layer: usize,
    text: u64,
    /// From this position on the keys are those of the next text.
    branch: Option<usize>,
    batch: usize,
    length: (usize, usize),
}

/// Why calls must be refused: all of them, or the one that asks for a missing layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Flaw {
    /// G does not divide d.
    GroupFactor,
    /// The channel file does not hold the layer.
    MissingLayer,
    /// The channel file does not hold the kind.
    MissingKind,
    /// A row names a channel at or beyond d.
    ChannelRange,
    /// Rows are shorter than r.
    TooFewChannels,
    /// `summed-labels` with rows that differ.
    Unshared,
}

/// What a sequence looks like.
#[derive(Debug, Clone, PartialEq)]
pub struct SequencePlan {
    /// Inputs and settings; its numbers of queries and keys are those of the longest call.
    pub plan: Plan,
    /// Which calls are made.
    pub pattern: Pattern,
    /// Layers of the channel file, at least two; calls visit them in this order.
    pub layers: Vec<usize>,
    /// Kinds of rows that the file holds in addition to the selected one.
    pub other_kinds: Vec<ChannelKind>,
    /// q_proj in place of qk_proj where rows are not per KV head.
    pub prefers_q_proj: bool,
    /// Which of the layers stays dense.
    pub dense_layer: Option<usize>,
    /// What is wrong with it.
    pub flaw: Option<Flaw>,
    /// Whether entries of a batch may have unequal lengths.
    pub ragged: bool,
    /// Whether rows may attend to nothing.
    pub empty_rows: bool,
}

/// Plans of sequences that a subject of these capabilities may be asked.
pub fn sequence_plans(capabilities: &Capabilities) -> impl Strategy<Value = SequencePlan> + use<> {
    let capabilities = capabilities.clone();
    let patterns = prop_oneof![
        12 => Just(Pattern::Once),
        6 => Just(Pattern::Layers),
        2 => Just(Pattern::Decode),
        4 => Just(Pattern::LayersDecode),
        2 => Just(Pattern::Restart),
        1 => Just(Pattern::RestartEqual),
        1 => Just(Pattern::RestartLonger),
        2 => Just(Pattern::Chunks),
        1 => Just(Pattern::OtherBatch),
        1 => Just(Pattern::SameShapes),
        1 => Just(Pattern::Rollback),
        1 => Just(Pattern::Return),
    ];
    let flaws = vec![
        Flaw::GroupFactor,
        Flaw::GroupFactor,
        Flaw::MissingLayer,
        Flaw::MissingKind,
        Flaw::ChannelRange,
        Flaw::TooFewChannels,
        Flaw::Unshared,
    ];
    let first = capabilities.first_layer;
    let layers = subsequence(vec![0usize, 1, 2, 4, 5, 9], 2..=3).prop_shuffle();
    (
        plans(),
        patterns,
        layers,
        subsequence(ChannelKind::ALL.to_vec(), 0..=2),
        any::<bool>(),
        prop::option::weighted(0.12, 0..3usize),
        prop::option::weighted(0.06, select(flaws)),
    )
        .prop_map(move |(mut plan, pattern, layers, other_kinds, prefers_q_proj, dense_layer, flaw)| {
            // Layers differ in which channels they choose, where they do not choose all.
            if pattern.needs_channels() {
                let two = GroupFactor::new(2).unwrap_or_default();
                plan.selection.group_factor = plan.selection.group_factor.max(two);
            }
            // Whether a faulty input is refused may depend on an early out.
            if flaw.is_some() && plan.seed % 3 == 1 {
                plan.previous = Previous::FullWeighted;
            }
            let layers = layers.into_iter().map(|layer| layer + first).collect();
            let (ragged, empty_rows) = (capabilities.ragged, capabilities.offers(Feature::EmptyRows));
            let plan = SequencePlan {
                plan,
                pattern,
                layers,
                other_kinds,
                prefers_q_proj,
                dense_layer,
                flaw,
                ragged,
                empty_rows,
            };
            plan.restricted(&capabilities)
        })
}

impl Pattern {
    /// Queries and keys of each call, where the longest has `m` and `n`.
    fn lengths(self, m: usize, n: usize) -> Vec<(usize, usize)> {
        match self {
            Self::Once => vec![(m, n)],
            Self::Decode if n > 2 => vec![(m.min(n - 2), n - 2), (1, n - 1), (1, n)],
            Self::LayersDecode if n > 1 => vec![(m.min(n - 1), n - 1), (1, n)],
            Self::Restart => vec![(m, n), (m.min(n.div_ceil(2)), n.div_ceil(2))],
            Self::RestartLonger => vec![(m.min(n.div_ceil(2)), n.div_ceil(2)), (m, n)],
            Self::Chunks if n > 2 => {
                let chunk = if (2..=n / 2).contains(&m) { m } else { 2 };
                let whole = |n: usize| (chunk.min(n), n);
                let lengths = [n.saturating_sub(2 * chunk), n - chunk, n];
                lengths.into_iter().filter(|&n| n > 0).map(whole).collect()
            }
            Self::Rollback if n > 3 => vec![(m, n), (1, n - 1), (1, n)],
            Self::Rollback if n > 1 => vec![(m, n), (1, n)],
            Self::RestartEqual | Self::Layers | Self::OtherBatch | Self::SameShapes | Self::Return => {
                vec![(m, n)]
            }
            Self::Decode | Self::LayersDecode | Self::Chunks | Self::Rollback => vec![(m, n)],
        }
    }

    /// Whether it looks for bugs that show only where layers choose different channels.
    fn needs_channels(self) -> bool {
        matches!(self, Self::Layers | Self::LayersDecode)
    }
}

/// The size of the batch that comes between two of `batch` entries: one entry less, or a second one.
fn other_batch(batch: usize) -> usize {
    if batch > 1 { batch - 1 } else { 2 }
}

impl SequencePlan {
    /// Plans of about the shapes of this one with the numbers of another, the one that takes over more of it first.
    pub(crate) fn with_numbers_of(&self, other: &Self) -> [Self; 2] {
        let numbers = Plan { seed: other.plan.seed, q: other.plan.q, k: other.plan.k, ..self.plan.clone() };
        let own_calls = Self { plan: numbers, ..self.clone() };
        let Self { pattern, flaw, .. } = *other;
        let (layers, other_kinds) = (other.layers.clone(), other.other_kinds.clone());
        [Self { pattern, flaw, layers, other_kinds, ..own_calls.clone() }, own_calls]
    }

    /// The plan without what is not offered; [`Capabilities::missing`] finds what only the finished sequence shows.
    fn restricted(mut self, capabilities: &Capabilities) -> Self {
        self.plan = self.plan.restricted(capabilities);
        let lacks = |feature| !capabilities.offers(feature);
        if let Some(domain) = self.plan.domain_of(capabilities) {
            let lengths = self.pattern.lengths(self.plan.queries, self.plan.keys);
            let batch = other_batch(self.plan.batch);
            let fits = self.pattern != Pattern::OtherBatch || domain.allows_batch(batch);
            if !fits {
                self.pattern = Pattern::SameShapes;
            }
            if !lengths.iter().all(|&(m, n)| domain.allows_lengths(m, n)) {
                self.pattern = if self.plan.seed.is_multiple_of(2) { Pattern::Layers } else { Pattern::Once };
            }
            // A group factor that does not divide d has no number of label channels that a domain could allow.
            if self.flaw == Some(Flaw::GroupFactor) {
                self.flaw = Some(Flaw::MissingLayer);
            }
        }
        match self.pattern {
            Pattern::OtherBatch if lacks(Feature::Batch) => self.pattern = Pattern::SameShapes,
            Pattern::Chunks if lacks(Feature::ManyQueries) => self.pattern = Pattern::Decode,
            _ => {}
        }
        if lacks(Feature::Sequences) {
            self.pattern = Pattern::Once;
        }
        if lacks(Feature::DenseLayers) {
            self.dense_layer = None;
        }
        if lacks(Feature::Refusals) {
            self.flaw = None;
        }
        self
    }

    /// The sequence. Errors: none for plans made by [`sequence_plans`].
    pub fn sequence(&self) -> Result<Sequence, Error> {
        let instance = self.instance()?;
        let mut calls = self.calls()?;
        // The first or the last call: a refusal concerns one call, and those after it must be answered.
        let flawed = if self.plan.seed.is_multiple_of(3) { calls.last_mut() } else { calls.first_mut() };
        if self.flaw == Some(Flaw::MissingLayer)
            && let Some(call) = flawed
        {
            call.layer = self.layers.iter().max().map_or(1, |layer| layer + 1);
        }
        let name = format!("random sequence of seed {}", self.plan.seed);
        let sequence = Sequence { name, instance, calls };
        if !self.ragged {
            return Ok(sequence);
        }
        Ok(with_lengths(sequence, self.plan.seed, self.empty_rows))
    }

    fn calls(&self) -> Result<Vec<Call>, Error> {
        let (m, n) = (self.plan.queries, self.plan.keys);
        let first = self.layers[0];
        let second = self.layers[1 % self.layers.len()];
        let lengths = self.pattern.lengths(m, n);
        let at = |layer, text, length| Visit { layer, text, branch: None, batch: self.plan.batch, length };
        let visits: Vec<Visit> = match (self.pattern, lengths.len()) {
            (Pattern::Layers, _) => self.layers.iter().map(|&layer| at(layer, 0, lengths[0])).collect(),
            (Pattern::Decode | Pattern::LayersDecode | Pattern::Chunks | Pattern::Rollback, 1) => {
                vec![at(first, 0, lengths[0]), at(second, 0, lengths[0])]
            }
            (Pattern::LayersDecode, _) => {
                lengths.into_iter().flat_map(|length| [at(first, 0, length), at(second, 0, length)]).collect()
            }
            (Pattern::Restart | Pattern::RestartLonger, _) => {
                vec![at(first, 0, lengths[0]), at(first, 1, lengths[1])]
            }
            (Pattern::RestartEqual, _) => vec![at(first, 0, lengths[0]), at(first, 1, lengths[0])],
            (Pattern::SameShapes, _) => [0, 0, 1].map(|text| at(first, text, lengths[0])).into(),
            (Pattern::OtherBatch, _) => {
                let other = Visit { batch: other_batch(self.plan.batch), ..at(first, 1, lengths[0]) };
                vec![at(first, 0, lengths[0]), other, at(first, 0, lengths[0])]
            }
            (Pattern::Rollback, _) => {
                let kept = lengths[1].1 - 1;
                let again = lengths[1..].iter().map(|&length| at(first, 0, length));
                let again = again.map(|visit| Visit { branch: Some(kept), ..visit });
                [at(first, 0, lengths[0])].into_iter().chain(again).collect()
            }
            (Pattern::Return, _) => {
                let each = self.layers.iter().map(|&layer| at(layer, 0, lengths[0]));
                each.chain([at(first, 1, lengths[0])]).collect()
            }
            (Pattern::Once | Pattern::Decode | Pattern::Chunks, _) => {
                lengths.into_iter().map(|length| at(first, 0, length)).collect()
            }
        };
        visits.iter().enumerate().map(|(step, visit)| self.call(step, visit)).collect()
    }

    /// Keys and values of a layer and a text are the same however long the call; the rest is new each time.
    fn call(&self, step: usize, visit: &Visit) -> Result<Call, Error> {
        let &Visit { layer, text, branch, batch, length: (m, n) } = visit;
        let seed = |text: u64| mix(self.plan.seed ^ mix(layer as u64 + 64 * text));
        let whole = |text| Plan { seed: seed(text), batch, ..self.plan.clone() }.keys_and_values();
        let (mut k, mut v) = whole(text);
        if let Some(kept) = branch {
            let tail = s![.., .., kept.., ..];
            let (other_k, other_v) = whole(text + 1);
            k.slice_mut(tail).assign(&other_k.slice(tail));
            v.slice_mut(tail).assign(&other_v.slice(tail));
        }
        let first_keys =
            |tensor: Array4<f32>| tensor.slice_move(s![.., .., ..n, ..]).as_standard_layout().into_owned();
        let seed = seed(text).wrapping_add(step as u64);
        let own = Plan { seed, batch, queries: m, keys: n, ..self.plan.clone() };
        own.call(layer, first_keys(k), first_keys(v))
    }

    pub(super) fn instance(&self) -> Result<Instance, Error> {
        let plan = &self.plan;
        let selected = match plan.rows_used() {
            ChannelRows::PerKvHead => ChannelKind::KProj,
            ChannelRows::PerHead | ChannelRows::Shared if self.prefers_q_proj => ChannelKind::QProj,
            ChannelRows::PerHead | ChannelRows::Shared => ChannelKind::QkProj,
        };
        let mut file = ChannelFile::default();
        for &layer in &self.layers {
            for kind in self.other_kinds.iter().copied().chain([selected]) {
                let rows = match kind {
                    _ if kind == selected => plan.rows_used(),
                    _ if plan.rows_used() == ChannelRows::Shared => ChannelRows::Shared,
                    ChannelKind::KProj => ChannelRows::PerKvHead,
                    ChannelKind::QProj | ChannelKind::QkProj => ChannelRows::PerHead,
                };
                let seed = mix(plan.seed ^ mix(1000 + 8 * layer as u64 + kind as u64));
                file.insert(kind, layer, self.flawed(plan.channels_of(seed, rows)?)?);
            }
        }
        let mut selection = plan.selection;
        if self.flaw == Some(Flaw::GroupFactor) {
            let d = plan.head_dim() as u64;
            let factor = (2..).find(|factor| !d.is_multiple_of(*factor)).unwrap_or(2);
            selection.group_factor = GroupFactor::new(factor)?;
        }
        if self.flaw == Some(Flaw::Unshared) {
            selection.heads = HeadMode::SummedLabels;
        }
        let absent = ChannelKind::ALL.into_iter().find(|&kind| file.order(kind, self.layers[0]).is_err());
        let missing = absent.filter(|_| self.flaw == Some(Flaw::MissingKind));
        Ok(Instance {
            selection,
            earlier_maskers: plan.earlier_maskers.clone(),
            dense_layers: self
                .dense_layer
                .map(|index| self.layers[index % self.layers.len()])
                .into_iter()
                .collect(),
            channel_selection: missing.unwrap_or(selected),
            channel_file: Arc::new(file),
        })
    }

    fn flawed(&self, order: ChannelOrder) -> Result<ChannelOrder, Error> {
        let d = self.plan.head_dim();
        let mut rows = order.rows().to_vec();
        if !matches!(self.flaw, Some(Flaw::ChannelRange | Flaw::TooFewChannels)) {
            return Ok(order);
        }
        match self.flaw {
            // One channel more than there are, in front.
            Some(Flaw::ChannelRange) => rows.iter_mut().for_each(|row| row.insert(0, d)),
            Some(Flaw::TooFewChannels) if self.plan.label_channels > 1 => {
                let few = self.plan.label_channels - 1;
                rows.iter_mut().for_each(|row| {
                    row.retain(|&channel| channel < few);
                });
            }
            _ => {}
        }
        ChannelOrder::new(rows)
    }
}

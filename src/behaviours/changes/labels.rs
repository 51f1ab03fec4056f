//! Labels that come from elsewhere: another entry, head or query, an earlier call, or nowhere (SPEC §2.3 to §2.5).

use ndarray::Array2;

use super::outputs::OutputChange;
use super::places::{Axis, Map};
use crate::algorithm::{Dims, Row};
use crate::behaviours::{Behaviour, HeadLabels, Outcome, predict};
use crate::cases::{Call, Sequence};

/// What labels are otherwise.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum LabelChange {
    /// Labels of queries are those of another place.
    Queries(Axis, Map),
    /// Queries of a batch lie one query apart, not m: entry e reads query t at place e + t.
    QueriesOneApart,
    /// Labels of keys are those of another entry.
    KeysOfEntry(Map),
    /// Labels of keys are kept over calls.
    Kept(Kept),
    /// Of every so many keys, the labels of this one are zeros.
    ZeroKeys {
        /// How many.
        every: usize,
        /// Which of them, counted from 0.
        at: usize,
    },
    /// Labels of queries are zeros in heads from hk on.
    FirstHeadsOnly,
    /// The last channel is not scored where r is odd and above 1.
    OddChannelLost,
    /// The last channel is not scored where r is above 1.
    LastChannelLost,
}

/// Which labels are kept over the calls of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// Whether each layer has its own labels.
    pub by_layer: bool,
    /// Which positions get new labels where there are old ones.
    pub renewed: Renewed,
    /// When old labels are forgotten.
    pub forgotten: Forgotten,
    /// Whether a call forgets those beyond its own keys.
    pub truncated: bool,
    /// Whether calls whose mask is full without being ranked write labels as well.
    pub dense_too: bool,
}

/// Which positions get new labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewed {
    /// Those never labelled before.
    Unseen,
    /// Those beyond the call before.
    BeyondCallBefore,
    /// The last m.
    LastQueries,
    /// All but those beyond every shorter call in between.
    BelowCallBefore,
    /// The first beyond the call before; the others beyond it get zeros.
    FirstBeyondCallBefore,
}

/// When old labels are forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forgotten {
    /// Never.
    Never,
    /// By a call that is shorter than the one before.
    Shorter,
    /// By a call of another batch size than the one before.
    OtherBatch,
    /// By a call of the same batch size as the one before.
    SameBatch,
    /// By a call of the layer of the one before.
    SameLayer,
}

/// Where the label of a position comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// From the key that this call has there.
    Call(usize),
    /// It is zeros.
    Zeros,
}

impl Kept {
    /// The source of each position of call `index`.
    pub fn sources(self, sequence: &Sequence, index: usize) -> Vec<Source> {
        let calls = &sequence.calls;
        let mut slots: Vec<Source> = Vec::new();
        let mut before: Option<&Call> = None;
        for (at, call) in calls[..=index].iter().enumerate() {
            if self.by_layer && call.layer != calls[index].layer {
                continue;
            }
            if !self.dense_too && at < index && !is_ranked(sequence, call) {
                continue;
            }
            let dims = call.inputs.dims();
            let (keys, batch) = (dims.keys, dims.batch);
            if let Some(before) = before {
                let other = before.inputs.dims();
                let forget = match self.forgotten {
                    Forgotten::Never => false,
                    Forgotten::Shorter => keys < other.keys,
                    Forgotten::OtherBatch => batch != other.batch,
                    Forgotten::SameBatch => batch == other.batch,
                    Forgotten::SameLayer => call.layer == before.layer,
                };
                if forget || (other.heads, other.kv_heads) != (dims.heads, dims.kv_heads) {
                    slots.clear();
                }
            }
            let keys_before = before.map_or(0, |before| before.inputs.dims().keys);
            let fresh = slots.is_empty();
            let old = slots.len();
            slots.resize(old.max(keys), Source::Call(at));
            for (position, slot) in slots[..keys].iter_mut().enumerate() {
                let renewed = match self.renewed {
                    _ if fresh || position >= old => true,
                    Renewed::Unseen => false,
                    Renewed::BeyondCallBefore => position >= keys_before,
                    Renewed::BelowCallBefore => position < keys_before,
                    Renewed::LastQueries => position >= keys - dims.queries,
                    Renewed::FirstBeyondCallBefore => true,
                };
                if renewed {
                    *slot = Source::Call(at);
                }
                let is_chunk = self.renewed == Renewed::FirstBeyondCallBefore && before.is_some();
                if is_chunk && keys_before < keys && position > keys_before {
                    *slot = Source::Zeros;
                }
            }
            if self.truncated {
                slots.truncate(keys);
            }
            before = Some(call);
        }
        slots.truncate(calls[index].inputs.dims().keys);
        slots
    }

    /// In words: a clause.
    pub fn words(self) -> String {
        let of = if self.by_layer { "" } else { ", whichever layer they are of" };
        let kept = match self.renewed {
            Renewed::Unseen => "labels of positions that an earlier call had are never renewed",
            Renewed::BeyondCallBefore => "labels of positions that the call before had are not renewed",
            Renewed::LastQueries => "after the first call only labels of the last m positions are renewed",
            Renewed::BelowCallBefore => {
                "positions beyond the call before keep the labels that a longer call before it left there"
            }
            Renewed::FirstBeyondCallBefore => {
                "of the positions beyond the call before only the first gets a label, the others are zeros"
            }
        };
        let until = match self.forgotten {
            Forgotten::Never => "",
            Forgotten::Shorter => ", until a call is shorter than the one before",
            Forgotten::OtherBatch => ", until the batch size changes",
            Forgotten::SameBatch => ", where the batch size differs from the call before",
            Forgotten::SameLayer => ", where the call before was of another layer",
        };
        format!("{kept}{of}{until}")
    }
}

impl LabelChange {
    /// In words: a clause.
    pub fn words(self) -> String {
        match self {
            Self::Queries(axis, map) => {
                format!("{} reads the queries of {}", axis.each(), map.words(axis))
            }
            Self::QueriesOneApart => {
                "entry e reads query t at place e + t: queries of a batch lie one apart, not m".into()
            }
            Self::KeysOfEntry(map) => {
                format!("entry e ranks by the key labels of {}", map.words(Axis::Entry))
            }
            Self::Kept(kept) => kept.words(),
            Self::ZeroKeys { every, at } => {
                format!("labels of keys at positions {every} · j + {at} are zeros")
            }
            Self::FirstHeadsOnly => "only heads below hk are scored, the others rank zeros".into(),
            Self::OddChannelLost => "where r is odd and above 1 the last channel is not scored".into(),
            Self::LastChannelLost => "the last channel of a label is not scored".into(),
        }
    }

    /// Changes the labels of call `index`, `None` where they cannot be told.
    pub fn apply(
        self,
        labels: &mut [HeadLabels],
        behaviour: Behaviour,
        sequence: &Sequence,
        index: usize,
    ) -> Option<()> {
        let dims = sequence.calls[index].inputs.dims();
        let at = |b: usize, head: usize| b * dims.heads + head;
        match self {
            Self::Queries(..) | Self::QueriesOneApart => {
                let old: Vec<Array2<f32>> = labels.iter().map(|labels| labels.q.clone()).collect();
                for row @ (b, head, i) in dims.rows() {
                    let (from, other, query) = self.query(row, &dims);
                    labels[at(b, head)].q.row_mut(i).assign(&old[at(from, other)].row(query));
                }
            }
            Self::KeysOfEntry(map) => {
                let old: Vec<Array2<f32>> = labels.iter().map(|labels| labels.k.clone()).collect();
                for (place, labels) in labels.iter_mut().enumerate() {
                    let from = map.of(place / dims.heads, dims.batch, &dims);
                    labels.k.assign(&old[at(from, place % dims.heads)]);
                }
            }
            Self::Kept(kept) => {
                let sources = kept.sources(sequence, index);
                let mut of_calls: Vec<Option<Vec<HeadLabels>>> = vec![None; index];
                for (position, source) in sources.into_iter().enumerate() {
                    let call = match source {
                        Source::Call(call) if call == index => continue,
                        Source::Call(call) => call,
                        Source::Zeros => {
                            labels.iter_mut().for_each(|labels| labels.k.row_mut(position).fill(0.0));
                            continue;
                        }
                    };
                    if of_calls[call].is_none() {
                        of_calls[call] = Some(labels_of(behaviour, sequence, call)?);
                    }
                    let others = of_calls[call].as_ref()?;
                    for (labels, other) in labels.iter_mut().zip(others) {
                        if other.k.ncols() == labels.k.ncols() && position < other.k.nrows() {
                            labels.k.row_mut(position).assign(&other.k.row(position));
                        }
                    }
                }
            }
            Self::ZeroKeys { every, at } => {
                for labels in labels {
                    let rows = labels.k.outer_iter_mut().skip(at).step_by(every);
                    rows.for_each(|mut label| label.fill(0.0));
                }
            }
            Self::FirstHeadsOnly => {
                for (place, labels) in labels.iter_mut().enumerate() {
                    if place % dims.heads >= dims.kv_heads {
                        labels.q.fill(0.0);
                    }
                }
            }
            Self::OddChannelLost | Self::LastChannelLost => {
                for labels in labels {
                    let r = labels.q.ncols();
                    if r > 1 && (r % 2 == 1 || self == Self::LastChannelLost) {
                        labels.q.column_mut(r - 1).fill(0.0);
                    }
                }
            }
        }
        Some(())
    }

    /// Whether labels of earlier calls matter.
    pub fn keeps(self) -> bool {
        matches!(self, Self::Kept(_))
    }

    /// The same change in the attention, where it concerns queries.
    pub fn as_output(self) -> Option<OutputChange> {
        matches!(self, Self::Queries(..) | Self::QueriesOneApart).then_some(OutputChange::Queries(self))
    }

    /// The row whose query stands in for that of another, where queries are changed.
    pub fn query(self, row @ (b, head, i): Row, dims: &Dims) -> Row {
        match self {
            Self::Queries(axis, map) => axis.moved(map, row, dims),
            Self::QueriesOneApart => ((b + i) / dims.queries, head, (b + i) % dims.queries),
            _ => row,
        }
    }
}

/// Whether the mask of a call is made by ranking: it is not where it is full before.
fn is_ranked(sequence: &Sequence, call: &Call) -> bool {
    let (instance, dims) = (&sequence.instance, call.inputs.dims());
    let short = instance.selection.dense_fallback
        && dims.keys - dims.queries <= instance.selection.heavy_size.resolve(dims.keys);
    !short
        && !instance.dense_layers.contains(&call.layer)
        && instance.before(call).is_ok_and(|before| !before.is_full())
}

/// The labels of a call, as if it were ranked.
fn labels_of(behaviour: Behaviour, sequence: &Sequence, index: usize) -> Option<Vec<HeadLabels>> {
    let mut changed;
    let sequence = match is_ranked(sequence, &sequence.calls[index]) {
        true => sequence,
        false => {
            changed = sequence.clone();
            changed.instance.selection.dense_fallback = false;
            changed.instance.dense_layers.clear();
            changed.instance.earlier_maskers.clear();
            changed.calls[index].previous = None;
            &changed
        }
    };
    // What that call kept is told by where its labels come from.
    match predict(Behaviour { labels: None, ..behaviour }, sequence, index) {
        Outcome::Answered(prediction) => Some(prediction.ranked?.labels),
        _ => None,
    }
}

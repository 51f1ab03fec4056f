//! Relations between entries of unequal lengths: an entry is taken to be as long as another one, or as the buffer. Nothing of the
//! padding is read here: what a kernel finds there no entry alone shows.

use std::sync::Arc;

use ndarray::{Array4, s};

use super::answers::Place;
use super::members::push;
use super::{Acts, How, Member};
use crate::algorithm::{HeavySize, InputParts, Inputs};
use crate::cases::{Call, Sequence};

/// Whose length is taken for an entry's own.
#[derive(Debug, Clone, Copy)]
enum Length {
    OfBuffer,
    Longest,
    Shortest,
    ShortestWithKeys,
    OfFirst,
    OfLast,
    OfPrevious,
    OfNext,
}

impl Length {
    const ALL: [Self; 8] = [
        Self::OfBuffer,
        Self::Longest,
        Self::Shortest,
        Self::ShortestWithKeys,
        Self::OfFirst,
        Self::OfLast,
        Self::OfPrevious,
        Self::OfNext,
    ];

    fn of(self, place: &Place) -> Option<usize> {
        let Place { lengths, entry, keys } = place;
        match self {
            Self::OfBuffer => Some(*keys),
            Self::Longest => lengths.iter().max().copied(),
            Self::Shortest => lengths.iter().min().copied(),
            Self::ShortestWithKeys => lengths.iter().filter(|length| **length > 0).min().copied(),
            Self::OfFirst => lengths.first().copied(),
            Self::OfLast => lengths.last().copied(),
            Self::OfPrevious => lengths.get(entry.saturating_sub(1)).copied(),
            Self::OfNext => lengths.get(entry + 1).or(lengths.last()).copied(),
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::OfBuffer => "the buffer's length n",
            Self::Longest => "the longest length of the batch",
            Self::Shortest => "the shortest length of the batch",
            Self::ShortestWithKeys => "the shortest length of the batch, those of 0 left out",
            Self::OfFirst => "the length of entry 0",
            Self::OfLast => "the length of the last entry",
            Self::OfPrevious => "the length of entry e − 1",
            Self::OfNext => "the length of entry e + 1",
        }
    }
}

/// What a length is taken for.
#[derive(Debug, Clone, Copy)]
enum Use {
    /// The position of each query.
    Positions,
    /// Where the keys end.
    Keys,
    /// Both.
    Everything,
    /// What H as a share is a share of.
    Share,
}

pub(super) fn all(members: &mut Vec<Member>) {
    for used in [Use::Positions, Use::Keys, Use::Everything, Use::Share] {
        for length in Length::ALL {
            let of = length.words();
            let words = match used {
                Use::Positions => format!("query i of entry e sits at L − m + i, L being {of}"),
                Use::Keys => format!("keys of entry e from {of} on are never selected"),
                Use::Everything => format!("entry e is taken to be as long as {of}"),
                Use::Share => format!("H as a share of the keys is one of {of}"),
            };
            let change = move |sequence: &mut Sequence, index: usize, place: Option<&Place>| {
                place.and_then(|place| changed(sequence, index, length.of(place)?, used)).is_some()
            };
            let how = How::Question(Arc::new(change));
            push(members, Acts::Selection, words.clone(), how.clone());
            if !matches!(used, Use::Share) {
                push(members, Acts::Both, words, how);
            }
        }
    }
}

/// Takes a length for that of the entry that call `index` is.
fn changed(sequence: &mut Sequence, index: usize, length: usize, used: Use) -> Option<()> {
    let call = &sequence.calls[index];
    let (own, heavy_size) = (call.inputs.dims().keys, &mut sequence.instance.selection.heavy_size);
    if matches!(used, Use::Share) {
        if let HeavySize::Fraction(_) = heavy_size {
            let count = heavy_size.resolve(length.max(1));
            *heavy_size = HeavySize::Count(std::num::NonZeroUsize::new(count)?);
        }
        return Some(());
    }
    let (moves, cuts) = match used {
        Use::Positions => (true, false),
        Use::Keys => (false, true),
        _ => (true, true),
    };
    sequence.calls[index] = otherwise(call, (own, length), moves, cuts)?;
    Some(())
}

/// The call with queries that sit as many positions later as the length is more keys than the entry's own, and without keys from
/// the length on.
fn otherwise(call: &Call, (own, length): (usize, usize), moves: bool, cuts: bool) -> Option<Call> {
    let inputs = &call.inputs;
    let (dims, parts) = (inputs.dims(), inputs.parts());
    let plain = InputParts { causal: false, ..parts.clone() };
    let plain = Inputs::new(plain).ok()?.with_head_weights(inputs.head_weights().cloned()).ok()?;
    let additive = Array4::from_shape_fn(dims.mask_shape(), |(b, head, i, key)| {
        let seen = match (parts.causal, moves) {
            (false, _) => true,
            (true, false) => key <= dims.position(i),
            (true, true) => key + own <= dims.position(i) + length,
        };
        let exists = !cuts || key < length;
        if seen && exists { plain.additive(b, head, i).at(key) } else { f32::NEG_INFINITY }
    });
    let heads = if plain.attention_mask_differs_between_heads() { dims.heads } else { 1 };
    let attention_mask = Some(additive.slice(s![.., ..heads, .., ..]).to_owned());
    let parts = InputParts { attention_mask, causal: false, ..parts.clone() };
    let inputs = Inputs::new(parts).ok()?.with_head_weights(inputs.head_weights().cloned()).ok()?;
    Some(Call { inputs: Arc::new(inputs), ..call.clone() })
}

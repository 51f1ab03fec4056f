//! Which calls of a random sequence get entries of unequal lengths, and which lengths: all of the keys, nearly all, fewer, no
//! more than there are queries, one, none. Drawn from the sequence's seed alone, so that subjects that do not offer such
//! batches are asked the same as ever.

use super::capabilities::has_empty_row;
use super::recipe::mix;
use super::sequence::Sequence;
use super::stages::StageCall;
use crate::algorithm::{Dims, Lengths, Padding};

/// Of 100 sequences of several entries, and of one entry, how many get lengths.
const OF_SEVERAL: u64 = 45;
const OF_ONE: u64 = 20;

/// The sequence with lengths, where it is its turn. A call that must be refused gets none; without `empty_rows` neither does
/// one in which a row then attends to nothing.
pub(super) fn with_lengths(mut sequence: Sequence, seed: u64, empty_rows: bool) -> Sequence {
    let draw = drawing(seed);
    let several = sequence.calls.iter().any(|call| call.inputs.dims().batch > 1);
    if draw(0) % 100 >= if several { OF_SEVERAL } else { OF_ONE } {
        return sequence;
    }
    // Either lengths grow with the keys, as in a model that serves requests, or each call has its own.
    let grow = draw(1).is_multiple_of(2);
    for index in 0..sequence.calls.len() {
        let call = &sequence.calls[index];
        let step = if grow { 0 } else { index as u64 };
        let lengths = lengths(&call.inputs.dims(), |place| draw(2 + 1000 * step + place));
        let Ok(ragged) = call.with_lengths(lengths) else { continue };
        let refused = [call, &ragged].into_iter().any(|call| !sequence.instance.faults(call).is_empty());
        if !refused && (empty_rows || !has_empty_row(&ragged)) {
            sequence.calls[index] = ragged;
        }
    }
    sequence
}

/// A question to one stage with lengths, where it is its turn.
pub(super) fn stage_with_lengths(call: &StageCall, seed: u64) -> Option<StageCall> {
    let (draw, dims) = (drawing(seed), call.dims());
    let share = if dims.batch > 1 { OF_SEVERAL } else { OF_ONE };
    let lengths = lengths(&dims, |place| draw(1 + place));
    (draw(0) % 100 < share).then(|| call.clone().with_lengths(lengths).ok()).flatten()
}

fn drawing(seed: u64) -> impl Fn(u64) -> u64 {
    move |place| mix(seed ^ mix(0x7261_6767_6564 + place))
}

fn lengths(dims: &Dims, draw: impl Fn(u64) -> u64) -> Lengths {
    let (m, n) = (dims.queries, dims.keys);
    let padding = if draw(0).is_multiple_of(2) { Padding::Nan } else { Padding::Large };
    let of_entry = |entry: u64| {
        let number = draw(2 * entry + 2) as usize;
        match draw(2 * entry + 1) % 100 {
            0..30 => n,
            30..40 => n - 1,
            // Counted from the end: the same in each call of a text that grows.
            40..70 => n - number % n,
            70..82 => (number % (m + 1)).min(n),
            82..90 => 1,
            _ => 0,
        }
    };
    Lengths::new((0..dims.batch as u64).map(of_entry).collect(), padding)
}

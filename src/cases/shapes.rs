//! The shapes of calls, for implementations that compile code for each of them: sizes, types and settings that such code is made
//! for. Numbers, masks and channels vary within a shape.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::sequence::{Call, Instance, Sequence};
use super::stages::StageCall;
use crate::algorithm::{Error, Inputs};

/// The sequence with additive masks of all dimensions, that of heads where `per_head` says so, where entries have no lengths: which
/// of them are 1 follows from numbers, and would make other shapes. Nothing else changes.
pub fn with_full_masks(mut sequence: Sequence, per_head: bool) -> Sequence {
    for call in sequence.calls.iter_mut().filter(|call| call.inputs.lengths().is_none()) {
        if let Ok(Some(inputs)) = full_mask(&call.inputs, per_head) {
            call.inputs = Arc::new(inputs);
        }
    }
    sequence
}

fn full_mask(inputs: &Inputs, per_head: bool) -> Result<Option<Inputs>, Error> {
    let mut parts = inputs.parts().clone();
    let (b, h, m, n) = inputs.dims().mask_shape();
    let shape = (b, if per_head { h } else { 1 }, m, n);
    let full = parts.attention_mask.as_ref().and_then(|mask| Some(mask.broadcast(shape)?.to_owned()));
    if full.is_none() {
        return Ok(None);
    }
    parts.attention_mask = full;
    Inputs::new(parts)?.with_head_weights(inputs.head_weights().cloned()).map(Some)
}

/// What code that is compiled for one call is compiled for: its sizes, types and settings, and which tensors there are.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shape(String);

impl Shape {
    /// The shape of a call of an instance.
    pub fn of(instance: &Instance, call: &Call) -> Self {
        let (inputs, parts) = (&call.inputs, call.inputs.parts());
        let mask = parts.attention_mask.as_ref().map(|mask| mask.dim());
        let tensors =
            (mask, call.previous.is_some(), inputs.head_weights().is_some(), inputs.lengths().is_some());
        let rows = instance.channels(call.layer).map(|channels| channels.rows().len()).unwrap_or_default();
        let settings = (instance.selection, &instance.earlier_maskers, rows);
        let kind = (parts.causal, inputs.scaling(), instance.dense_layers.contains(&call.layer));
        Self(format!("{:?} {} {tensors:?} {settings:?} {kind:?}", inputs.dims(), inputs.storage()))
    }

    /// The shapes of all calls of a sequence.
    pub fn of_sequence(sequence: &Sequence) -> BTreeSet<Self> {
        sequence.calls.iter().map(|call| Self::of(&sequence.instance, call)).collect()
    }

    /// The shape of a question to one stage.
    pub fn of_stage(call: &StageCall) -> Self {
        let (dims, storage, ragged) = (call.dims(), call.storage(), call.lengths().is_some());
        let width = match call {
            StageCall::Scores(call) => call.heavy_size().get(),
            // The most keys of a row: the last dimension of `selected`.
            StageCall::Selection(call) => {
                call.inputs.dims().rows().map(|row| call.mask.row(row).count()).max().unwrap_or(0)
            }
        };
        Self(format!("{dims:?} {storage} {ragged} {width} {:?}", call.scaling()))
    }
}

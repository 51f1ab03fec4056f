//! Plainer values: 0, ±1, whole numbers and small fractions in place of what a tensor holds.

use std::sync::Arc;

use ndarray::{Array4, Axis};

use super::search::Search;
use crate::algorithm::{Inputs, Mask};
use crate::cases::{Call, Sequence};

impl Search<'_, Sequence> {
    /// Every tensor of every call with plainer values, as far as the failure stays; whether any changed.
    pub(super) fn plainer_values(&mut self) -> bool {
        let mut changed = false;
        for call in 0..self.current.calls.len() {
            for tensor in
                [Tensor::Q, Tensor::K, Tensor::V, Tensor::Additive, Tensor::Previous, Tensor::HeadWeights]
            {
                changed |= self.plainer_tensor(call, tensor);
            }
        }
        changed
    }

    fn plainer_tensor(&mut self, call: usize, tensor: Tensor) -> bool {
        let mut changed = false;
        let whole: [fn(f32) -> f32; 5] =
            [|_| 0.0, |_| 1.0, |x| x.round(), |x| (2.0 * x).round() / 2.0, |x| (4.0 * x).round() / 4.0];
        for plainer in whole {
            if self.exhausted() {
                return changed;
            }
            let Some(values) = tensor.of(&self.current.calls[call]) else { return changed };
            let plain = values.mapv(|x| if rank(plainer(x)) < rank(x) { plainer(x) } else { x });
            if total(&plain) < total(&values) {
                let candidate = tensor.with(&self.current, call, plain);
                changed |= self.take(candidate);
            }
        }
        let Some(values) = tensor.of(&self.current.calls[call]) else { return changed };
        const LARGEST: usize = 512;
        if values.len() > LARGEST {
            return changed;
        }
        for (index, x) in values.indexed_iter() {
            let fractions = [2.0, 4.0, 8.0].map(|parts| (parts * x).round() / parts);
            let plainer = [0.0, 1.0, -1.0, x.round()].into_iter().chain(fractions);
            for plain in plainer.filter(|&plain| rank(plain) < rank(*x)) {
                let Some(mut values) = tensor.of(&self.current.calls[call]) else { break };
                values[index] = plain;
                let candidate = tensor.with(&self.current, call, values);
                if self.take(candidate) {
                    changed = true;
                    break;
                }
            }
        }
        changed
    }
}

/// How plain a number is: 0, 1, −1, whole numbers, fractions, the rest.
fn rank(x: f32) -> u32 {
    let size = x.abs();
    let whole = |x: f32| x.fract() == 0.0;
    let negative = u32::from(x.is_sign_negative());
    if size > 64.0 || !x.is_finite() {
        return 5000;
    }
    match size {
        0.0 => negative,
        _ if whole(size) => 2 + 2 * size as u32 + negative,
        _ if whole(2.0 * size) => 200 + (4.0 * size) as u32 + negative,
        _ if whole(4.0 * size) => 600 + (8.0 * size) as u32 + negative,
        _ if whole(8.0 * size) => 1500 + (16.0 * size) as u32 + negative,
        _ => 4000,
    }
}

fn total(values: &Array4<f32>) -> u64 {
    values.iter().map(|&x| u64::from(rank(x))).sum()
}

/// A tensor whose values may be made plainer.
#[derive(Debug, Clone, Copy)]
enum Tensor {
    Q,
    K,
    V,
    Additive,
    Previous,
    HeadWeights,
}

impl Tensor {
    fn of(self, call: &Call) -> Option<Array4<f32>> {
        let parts = call.inputs.parts();
        match self {
            Self::Q => Some(parts.q.clone()),
            Self::K => Some(parts.k.clone()),
            Self::V => Some(parts.v.clone()),
            Self::Additive => parts.attention_mask.clone(),
            Self::HeadWeights => {
                call.inputs.head_weights().map(|weights| weights.clone().insert_axis(Axis(3)))
            }
            Self::Previous => call.previous.as_ref().map(|mask| mask.weights().clone()),
        }
    }

    fn with(self, sequence: &Sequence, index: usize, values: Array4<f32>) -> Option<Sequence> {
        let call = &sequence.calls[index];
        let mut parts = call.inputs.parts().clone();
        let mut previous = call.previous.clone();
        let mut weights = call.inputs.head_weights().cloned();
        match self {
            Self::Q => parts.q = values,
            Self::K => parts.k = values,
            Self::V => parts.v = values,
            Self::Additive => parts.attention_mask = Some(values),
            Self::HeadWeights => weights = Some(values.index_axis_move(Axis(3), 0)),
            Self::Previous => previous = Some(Mask::from_weights(values, &call.inputs.dims()).ok()?),
        }
        let mut changed = sequence.clone();
        let lengths = call.inputs.lengths().cloned();
        let inputs = Inputs::new(parts).ok()?.with_head_weights(weights).ok()?.with_lengths(lengths).ok()?;
        changed.calls[index] = Call { layer: call.layer, inputs: Arc::new(inputs), previous };
        Some(changed)
    }
}

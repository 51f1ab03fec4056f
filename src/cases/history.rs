//! Sequences after a history: every call has many more keys before its own, the same ones in all calls of a layer. What a small
//! sequence shows, such as state carried over, rules, refusals, rows without candidates, it shows among many keys as well.

use std::sync::Arc;

use ndarray::{Array4, Axis, concatenate};
use proptest::strategy::{Strategy, ValueTree};

use super::capabilities::{Capabilities, Feature};
use super::recipe::{Words, mix};
use super::seed::test_runner;
use super::sequence::{Call, Sequence};
use super::sequence_plan::sequence_plans;
use crate::algorithm::{HeavySize, Inputs, Lengths, Mask};

/// b · h · m · n of all calls: longer sequences take longer than they tell.
const MOST_SCORES: usize = 1 << 19;

/// How often a sequence is drawn before the search for one is given up.
const MOST_DRAWN: usize = 100;

/// What becomes of the keys of the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum History {
    /// A excludes them.
    Excluded,
    /// They were attended before.
    Attended,
    /// They score lower than other keys mostly do.
    Low,
    /// They score like other keys, and H is larger by as many.
    Counted,
}

impl History {
    const ALL: [Self; 4] = [Self::Excluded, Self::Low, Self::Attended, Self::Counted];

    /// The one for a seed, where the capabilities allow it.
    fn of(seed: u64, sequence: &Sequence, capabilities: &Capabilities) -> Self {
        let counts = matches!(sequence.instance.selection.heavy_size, HeavySize::Count(_));
        match Self::ALL[seed as usize % Self::ALL.len()] {
            Self::Excluded if !capabilities.offers(Feature::AttentionMask) => Self::Low,
            Self::Attended if !capabilities.offers(Feature::Previous) => Self::Low,
            Self::Counted if !counts => Self::Low,
            history => history,
        }
    }
}

/// A random small sequence that follows from the seed, after a history of `keys` keys. `None` where the capabilities have no
/// room for it.
pub fn deep_sequence(capabilities: &Capabilities, seed: u64, keys: usize) -> Option<Sequence> {
    // Sizes of a domain would hardly be met.
    if !capabilities.domains.is_empty() {
        return None;
    }
    let plans = sequence_plans(capabilities);
    let mut runner = test_runner(seed);
    (0..MOST_DRAWN).find_map(|_| {
        let sequence = plans.new_tree(&mut runner).ok()?.current().sequence().ok()?;
        after_history(&sequence, capabilities, seed, keys)
    })
}

/// A sequence after a history of this many keys, which follows from the seed. `None` where the capabilities have no room for
/// it, or it would be too long.
pub fn after_history(
    sequence: &Sequence,
    capabilities: &Capabilities,
    seed: u64,
    keys: usize,
) -> Option<Sequence> {
    let scores = |call: &Call| {
        let dims = call.inputs.dims();
        dims.batch * dims.heads * dims.queries * (dims.keys + keys)
    };
    if sequence.calls.iter().map(scores).sum::<usize>() > MOST_SCORES {
        return None;
    }
    let seed = mix(seed ^ 0x68_6973_746f_7279);
    let history = History::of(seed >> 8, sequence, capabilities);
    let mut changed = sequence.clone();
    if let (History::Counted, HeavySize::Count(count)) = (history, sequence.instance.selection.heavy_size) {
        changed.instance.selection.heavy_size = HeavySize::count(count.get() + keys).ok()?;
    }
    // A share that rounds down to 0 keys of the first call does so after the history.
    if let (HeavySize::Fraction(share), Some(first)) =
        (sequence.instance.selection.heavy_size, sequence.calls.first())
    {
        let own = first.inputs.dims().keys as f64;
        if share.get() * own < 1.0 {
            // Few digits are easier to read.
            let share = (1e6 * share.get() * own / (own + keys as f64)).floor() / 1e6;
            changed.instance.selection.heavy_size = HeavySize::fraction(share.max(1e-6)).ok()?;
        }
    }
    for call in &mut changed.calls {
        *call = with_history(call, history, seed, keys)?;
    }
    changed.name = format!("{} after {keys} keys", sequence.name);
    capabilities.offers_all(&changed).then_some(changed)
}

fn with_history(call: &Call, history: History, seed: u64, keys: usize) -> Option<Call> {
    let dims = call.inputs.dims();
    let mut parts = call.inputs.parts().clone();
    let factor = if history == History::Low { 1.0 / 64.0 } else { 1.0 };
    for (tensor, number) in [(&mut parts.k, 0), (&mut parts.v, 1)] {
        let (batch, heads, _, width) = tensor.dim();
        let words = Words::new(seed, 2 * call.layer as u64 + number);
        // The same for every call of the layer, however large its batch.
        let value = |(b, head, key, c): (usize, usize, usize, usize)| {
            factor * words.value((((b * heads + head) * keys + key) * width + c) as u64)
        };
        *tensor = before(tensor, &Array4::from_shape_fn((batch, heads, keys, width), value), 2)?;
    }
    if history == History::Excluded && parts.attention_mask.is_none() {
        parts.attention_mask = Some(Array4::zeros((1, 1, 1, dims.keys)));
    }
    if let Some(mask) = parts.attention_mask.take() {
        // One number for all keys stays one, unless the history differs from them.
        let is_one = mask.shape()[3] == 1 && dims.keys > 1;
        parts.attention_mask = Some(if is_one && history != History::Excluded {
            mask
        } else {
            let (b, h, m, _) = mask.dim();
            let whole = mask.broadcast((b, h, m, dims.keys))?.to_owned();
            let number = if history == History::Excluded { f32::NEG_INFINITY } else { 0.0 };
            before(&whole, &Array4::from_elem((b, h, m, keys), number), 3)?
        });
    }
    let weights = call.inputs.head_weights().cloned();
    let lengths = call.inputs.lengths().map(|lengths| {
        // An entry without keys has no history either.
        let longer = |&length: &usize| if length == 0 { 0 } else { length + keys };
        Lengths::new(lengths.keys().iter().map(longer).collect(), lengths.padding())
    });
    let inputs = Inputs::new(parts).ok()?.with_head_weights(weights).ok()?;
    let previous = match (&call.previous, history) {
        (None, History::Excluded | History::Low | History::Counted) => None,
        (mask, _) => {
            let (b, h, m, n) = dims.mask_shape();
            let own =
                mask.as_ref().map_or_else(|| Array4::zeros((b, h, m, n)), |mask| mask.weights().clone());
            let number = f32::from(u8::from(history == History::Attended));
            let weights = before(&own, &Array4::from_elem((b, h, m, keys), number), 3)?;
            Some(Mask::from_weights(weights, &inputs.dims()).ok()?)
        }
    };
    let call = Call { layer: call.layer, inputs: Arc::new(inputs), previous };
    match lengths {
        None => Some(call),
        Some(lengths) => call.with_lengths(lengths).ok(),
    }
}

/// A tensor with more keys before its own, along an axis.
fn before(tensor: &Array4<f32>, history: &Array4<f32>, axis: usize) -> Option<Array4<f32>> {
    concatenate(Axis(axis), &[history.view(), tensor.view()]).ok()
}

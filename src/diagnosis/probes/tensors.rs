//! The tensors of a draft. With q = e₀ and kⱼ = sⱼ·e₀ the score of key j is sⱼ times the factor, with codes as without.

use std::num::NonZeroUsize;
use std::sync::Arc;

use ndarray::{Array3, Array4};

use super::draft::Draft;
use crate::algorithm::{Dims, HeadMode, InputParts, Inputs, Mask, ScoreRule};
use crate::cases::recipe::Words;
use crate::cases::{Call, ScoresCall, StageCall};

/// The score of fillers; probes use lower ones.
const FILLER: f32 = 6.0;

/// The tensors of a call; what is left out has a default.
#[derive(Default)]
pub(super) struct Parts {
    pub q: Option<Array4<f32>>,
    pub k: Option<Array4<f32>>,
    pub v: Option<Array4<f32>>,
    pub additive: Option<Array4<f32>>,
    pub previous: Option<Array4<f32>>,
    pub head_weights: Option<Array3<f32>>,
    pub layer: usize,
}

impl Draft {
    /// The label of a key that scores `score` under [`Self::unit_queries`].
    fn unit(&self, score: f32) -> [f32; 2] {
        match self.rules.score {
            ScoreRule::Cosine => {
                let cosine = score / 8.0;
                [cosine, (1.0 - cosine * cosine).max(0.0).sqrt()]
            }
            ScoreRule::Dot | ScoreRule::Relu => [score, 0.0],
        }
    }

    /// q = e₀
    pub fn unit_queries(&self) -> Array4<f32> {
        let shape = (self.batch, self.heads(), self.queries, self.head_dim());
        Array4::from_shape_fn(shape, |(.., channel)| f32::from(u8::from(channel == 0)))
    }

    /// Keys that score as told for an entry, a KV head and a key of the probe; the others as their part says.
    pub fn scored_keys(&self, score: impl Fn(usize, usize, usize) -> f32) -> Array4<f32> {
        self.keys_of(|entry, kv_head, key, channel| {
            self.unit(score(entry, kv_head, key)).get(channel).copied().unwrap_or(0.0)
        })
    }

    /// Keys of the probe as told, by entry, KV head, key and channel.
    pub fn keys_of(&self, at: impl Fn(usize, usize, usize, usize) -> f32) -> Array4<f32> {
        let (forced, offset) = (self.rules.forced.first, self.offset());
        let shape = (self.batch, self.kv_heads, self.all_keys(), self.head_dim());
        Array4::from_shape_fn(shape, |(entry, kv_head, position, channel)| {
            let unit = |score| self.unit(score).get(channel).copied().unwrap_or(0.0);
            if (forced..forced + self.fillers).contains(&position) {
                return unit(FILLER);
            }
            match position.checked_sub(offset) {
                Some(key) if key < self.keys => at(entry, kv_head, key, channel),
                _ => unit(0.0),
            }
        })
    }

    /// Values that tell keys apart a little.
    fn some_values(&self) -> Array4<f32> {
        let shape = (self.batch, self.kv_heads, self.all_keys(), self.value_dim());
        Array4::from_shape_fn(shape, |(entry, kv_head, key, channel)| {
            ((entry * 5 + kv_head * 3 + key * 7 + channel * 11) % 17) as f32 - 8.0
        })
    }

    /// A number about normally distributed for each place of a tensor.
    pub fn random(&self, seed: u64, t: u64, shape: (usize, usize, usize, usize)) -> Array4<f32> {
        let words = Words::new(seed, t);
        let mut index = 0;
        Array4::from_shape_simple_fn(shape, || {
            index += 1;
            words.value(index)
        })
    }

    /// q, k and v, all random.
    pub fn random_parts(&self, seed: u64) -> Parts {
        let dims = self.dims();
        let Dims { batch, heads, kv_heads, queries, keys, head_dim, value_dim } = dims;
        Parts {
            q: Some(self.random(seed, 0, (batch, heads, queries, head_dim))),
            k: Some(self.random(seed, 1, (batch, kv_heads, keys, head_dim))),
            v: Some(self.random(seed, 2, (batch, kv_heads, keys, value_dim))),
            ..Parts::default()
        }
    }

    /// A of the full shape, or of one of its dimensions where a size is 1; `at` gets entry, head, query and a key of the probe.
    pub fn additive(
        &self,
        (batch, heads, queries): (usize, usize, usize),
        at: impl Fn(usize, usize, usize, usize) -> f32,
    ) -> Array4<f32> {
        Array4::from_shape_fn((batch, heads, queries, self.all_keys()), |(entry, head, query, position)| {
            match position.checked_sub(self.offset()) {
                Some(key) if key < self.keys => at(entry, head, query, key),
                _ => 0.0,
            }
        })
    }

    /// How A may be shaped: heads that share labels share A.
    pub fn additive_shape(&self) -> (usize, usize, usize) {
        let heads = if self.mode == HeadMode::SummedLabels { 1 } else { self.heads() };
        (self.batch, heads, self.queries)
    }

    /// P, by entry, head, query and key of the probe.
    pub fn previous(&self, at: impl Fn(usize, usize, usize, usize) -> f32) -> Array4<f32> {
        self.additive((self.batch, self.heads(), self.queries), at)
    }

    /// The scores [b, h, m, n] of a question to a top-k, A added.
    pub fn scores(
        &self,
        score: impl Fn(usize, usize, usize) -> f32,
        additive: Option<&Array4<f32>>,
    ) -> Array4<f32> {
        let (batch, heads, queries, keys) = self.dims().mask_shape();
        Array4::from_shape_fn((batch, heads, queries, keys), |(entry, head, query, position)| {
            let own = match position.checked_sub(self.offset()) {
                Some(key) if key < self.keys => score(entry, head / self.group, key),
                Some(_) => 0.0,
                None if position < self.fillers => FILLER,
                None => 0.0,
            };
            let added = additive.map_or(0.0, |additive| {
                let (b, h, m, _) = additive.dim();
                additive[(entry.min(b - 1), head.min(h - 1), query.min(m - 1), position)]
            });
            own + added
        })
    }

    /// A question to a top-k.
    pub fn scores_call(&self, scores: Array4<f32>) -> Option<StageCall> {
        let heavy_size = NonZeroUsize::new(self.heavy_count())?;
        ScoresCall::new(scores, self.storage, heavy_size).ok().map(StageCall::Scores)
    }

    /// A call. `None` where the tensors are no call.
    pub fn call(&self, parts: Parts) -> Option<Call> {
        let inputs = Inputs::new(InputParts {
            q: parts.q.unwrap_or_else(|| self.unit_queries()),
            k: parts.k?,
            v: parts.v.unwrap_or_else(|| self.some_values()),
            attention_mask: parts.additive,
            causal: self.causal,
            storage: self.storage,
            scaling: self.scaling,
        });
        let inputs = inputs.ok()?.with_head_weights(parts.head_weights).ok()?;
        let previous = match parts.previous {
            Some(weights) => Some(Mask::from_weights(weights, &self.dims()).ok()?),
            None => None,
        };
        Some(Call { layer: parts.layer, inputs: Arc::new(inputs), previous })
    }
}

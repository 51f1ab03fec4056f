//! The Llama forward pass: RMS norm, rotary embedding, grouped-query attention, gated feed-forward. Keys and values are kept in a
//! [`Cache`]; the attention itself is whatever [`Attention`] is given.
//!
//! GGUF files of this architecture hold the rows of q and k in the order of interleaved RoPE, pair beside pair; they are put back
//! into the half-split order here, in which published channel files count (SPEC D13).

use tch::{Device, Kind, Tensor};

use super::gguf::Gguf;
use super::{Error, Result};
use crate::algorithm::{Detail, Dims};
use crate::torch::layer::causal;

/// Sizes and constants of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Layers.
    pub layers: usize,
    /// Numbers of a hidden state.
    pub hidden: usize,
    /// Numbers inside a feed-forward layer.
    pub feed_forward: usize,
    /// h
    pub heads: usize,
    /// hk
    pub kv_heads: usize,
    /// d
    pub head_dim: usize,
    /// Tokens.
    pub vocabulary: usize,
    /// Longest context that the model was made for.
    pub context: usize,
    /// ε of the norms.
    pub epsilon: f64,
    /// Base of the rotary frequencies.
    pub rope_base: f64,
}

impl Config {
    fn new(file: &Gguf) -> Result<Self> {
        let wrong = |field: &str, found: String, expected: &str| {
            Err(Error::Model(Detail::new(field, found, expected)))
        };
        let architecture = file.text("general.architecture")?;
        if architecture != "llama" {
            return wrong("general.architecture", format!("{architecture:?}"), "\"llama\"");
        }
        let (hidden, heads) =
            (file.number("llama.embedding_length")?, file.number("llama.attention.head_count")?);
        let kv_heads = file.number("llama.attention.head_count_kv").unwrap_or(heads);
        let even =
            heads > 0 && kv_heads > 0 && heads.is_multiple_of(kv_heads) && hidden.is_multiple_of(heads);
        if !even {
            let found = format!("{heads} heads, {kv_heads} KV heads, {hidden} numbers");
            return wrong("llama.attention.head_count", found, "heads that divide, none of them 0");
        }
        let head_dim = file.number("llama.attention.key_length").unwrap_or(hidden / heads);
        let rotated = file.number("llama.rope.dimension_count").unwrap_or(head_dim);
        if rotated != head_dim || !head_dim.is_multiple_of(2) {
            let expected = format!("{head_dim}, the whole head, and even");
            return wrong("llama.rope.dimension_count", rotated.to_string(), &expected);
        }
        if let Ok(scaling) = file.text("llama.rope.scaling.type")
            && scaling != "none"
        {
            return wrong(
                "llama.rope.scaling.type",
                format!("{scaling:?}"),
                "none, or the tensor rope_freqs.weight",
            );
        }
        Ok(Self {
            layers: file.number("llama.block_count")?,
            hidden,
            feed_forward: file.number("llama.feed_forward_length")?,
            heads,
            kv_heads,
            head_dim,
            vocabulary: file.texts("tokenizer.ggml.tokens")?.len(),
            context: file.number("llama.context_length")?,
            epsilon: file.real("llama.attention.layer_norm_rms_epsilon")?,
            rope_base: file.real("llama.rope.freq_base").unwrap_or(10_000.0),
        })
    }

    /// Sizes of one attention layer of m queries and n keys.
    pub fn dims(&self, queries: usize, keys: usize) -> Dims {
        let Self { heads, kv_heads, head_dim, .. } = *self;
        Dims { batch: 1, heads, kv_heads, queries, keys, head_dim, value_dim: head_dim }
    }
}

/// What happens in the attention of each layer. Queries are the last m of n positions.
pub trait Attention {
    /// q [1, h, m, d] and k [1, hk, m, d] of the new positions, before the rotary embedding.
    ///
    /// Errors: whatever it fails at.
    fn projected(&mut self, _layer: usize, _q: &Tensor, _k: &Tensor) -> Result<()> {
        Ok(())
    }

    /// Causal attention: q [1, h, m, d], k and v [1, hk, n, d], after the rotary embedding (half-split). Gives [1, h, m, d].
    ///
    /// Errors: whatever it refuses or fails at.
    fn attend(&mut self, layer: usize, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor>;
}

/// Every key is attended to.
#[derive(Debug, Clone, Copy, Default)]
pub struct Dense;

impl Attention for Dense {
    fn attend(&mut self, _layer: usize, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let (m, n) = (q.size()[2], k.size()[2]);
        // One query sees all keys.
        let mask = match m {
            1 => None,
            _ => Some(causal(m, n, q.kind(), q.device())?),
        };
        Ok(Tensor::f_scaled_dot_product_attention(q, k, v, mask.as_ref(), 0.0, false, None, true)?)
    }
}

/// Keys and values of all layers, for up to a given number of tokens.
#[derive(Debug)]
pub struct Cache {
    /// [1, hk, capacity, d] for each layer.
    keys: Vec<Tensor>,
    values: Vec<Tensor>,
    capacity: usize,
    held: usize,
}

impl Cache {
    /// Tokens held.
    pub fn len(&self) -> usize {
        self.held
    }

    /// Whether none is held.
    pub fn is_empty(&self) -> bool {
        self.held == 0
    }

    /// Tokens there is room for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Forgets all tokens but the first `tokens`.
    pub fn truncate(&mut self, tokens: usize) {
        self.held = self.held.min(tokens);
    }
}

/// The weights of one layer.
#[derive(Debug)]
struct LayerWeights {
    attention_norm: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    output: Tensor,
    feed_forward_norm: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
}

/// The weights.
#[derive(Debug)]
pub struct Llama {
    config: Config,
    device: Device,
    kind: Kind,
    /// [vocabulary, hidden]
    embedding: Tensor,
    layers: Vec<LayerWeights>,
    norm: Tensor,
    /// [vocabulary, hidden]; the embedding where the file has none of its own.
    output: Tensor,
    /// Rotary frequencies in f64: [d / 2].
    frequencies: Tensor,
}

/// Rows of q or k [heads · d, hidden] from interleaved to half-split RoPE.
fn half_split(rows: &Tensor, heads: usize) -> Result<Tensor> {
    let (size, heads) = (rows.size(), heads as i64);
    let pairs = rows.f_view([heads, size[0] / heads / 2, 2, size[1]])?;
    Ok(pairs.f_transpose(1, 2)?.f_reshape(&size)?)
}

impl Llama {
    /// Errors: [`Error::Model`] for another architecture, missing tensors or tensors that are not known.
    pub fn new(file: &mut Gguf, device: Device, kind: Kind) -> Result<Self> {
        let config = Config::new(file)?;
        let Config { hidden, feed_forward, heads, kv_heads, head_dim, vocabulary, .. } = config;
        let (queries, keys) = (heads * head_dim, kv_heads * head_dim);
        let place = |tensor: Tensor| -> Result<Tensor> { Ok(tensor.f_to_device(device)?.f_to_kind(kind)?) };
        let mut layers = Vec::new();
        for layer in 0..config.layers {
            let mut read =
                |name: &str, shape: &[usize]| file.tensor(&format!("blk.{layer}.{name}.weight"), shape);
            layers.push(LayerWeights {
                attention_norm: place(read("attn_norm", &[hidden])?)?,
                q: place(half_split(&read("attn_q", &[queries, hidden])?, heads)?)?,
                k: place(half_split(&read("attn_k", &[keys, hidden])?, kv_heads)?)?,
                v: place(read("attn_v", &[keys, hidden])?)?,
                output: place(read("attn_output", &[hidden, queries])?)?,
                feed_forward_norm: place(read("ffn_norm", &[hidden])?)?,
                gate: place(read("ffn_gate", &[feed_forward, hidden])?)?,
                up: place(read("ffn_up", &[feed_forward, hidden])?)?,
                down: place(read("ffn_down", &[hidden, feed_forward])?)?,
            });
        }
        let embedding = place(file.tensor("token_embd.weight", &[vocabulary, hidden])?)?;
        let norm = place(file.tensor("output_norm.weight", &[hidden])?)?;
        let output = match file.has_tensor("output.weight") {
            true => place(file.tensor("output.weight", &[vocabulary, hidden])?)?,
            false => embedding.shallow_clone(),
        };
        let frequencies = frequencies(file, &config)?.f_to_device(device)?;
        file.all_used()?;
        Ok(Self { config, device, kind, embedding, layers, norm, output, frequencies })
    }

    /// Sizes and constants.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The device that it computes on.
    pub fn device(&self) -> Device {
        self.device
    }

    /// An empty cache. Errors: [`Error::Tokens`] for none, or more than the model was made for; those of libtorch.
    pub fn cache(&self, capacity: usize) -> Result<Cache> {
        let Config { kv_heads, head_dim, layers, context, .. } = self.config;
        if capacity == 0 || capacity > context {
            let expected = format!("1 to {context}, for which the model was made");
            return Err(Error::Tokens(Detail::new("tokens", capacity, expected)));
        }
        let shape = [1, kv_heads as i64, capacity as i64, head_dim as i64];
        let room = || -> Result<Vec<Tensor>> {
            (0..layers).map(|_| Ok(Tensor::f_zeros(shape, (self.kind, self.device))?)).collect()
        };
        Ok(Cache { keys: room()?, values: room()?, capacity, held: 0 })
    }

    /// Appends tokens to a cache: their hidden states after the last norm, [m, hidden].
    ///
    /// Errors: [`Error::Tokens`] for no tokens, unknown ones, or more than the cache has room for; those of the attention. Where
    /// an error is returned, nothing is appended.
    pub fn forward(
        &self,
        tokens: &[u32],
        cache: &mut Cache,
        attention: &mut dyn Attention,
    ) -> Result<Tensor> {
        self.check(tokens, cache)?;
        let (start, m) = (cache.held as i64, tokens.len() as i64);
        let ids: Vec<i64> = tokens.iter().map(|&token| i64::from(token)).collect();
        let ids = Tensor::f_from_slice(&ids)?.f_to_device(self.device)?;
        let mut hidden = self.embedding.f_index_select(0, &ids)?;
        let (cosines, sines) = self.rotation(start, m)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let x = self.normed(&hidden, &layer.attention_norm)?;
            let heads = |weight: &Tensor| -> Result<Tensor> {
                let rows = x.f_matmul(&weight.f_tr()?)?;
                Ok(rows.f_view([1, m, -1, self.config.head_dim as i64])?.f_transpose(1, 2)?)
            };
            let (q, k, v) = (heads(&layer.q)?, heads(&layer.k)?, heads(&layer.v)?);
            attention.projected(index, &q, &k)?;
            let (q, k) = (rotated(&q, &cosines, &sines)?, rotated(&k, &cosines, &sines)?);
            cache.keys[index].f_narrow(2, start, m)?.f_copy_(&k)?;
            cache.values[index].f_narrow(2, start, m)?.f_copy_(&v)?;
            let (keys, values) = (
                cache.keys[index].f_narrow(2, 0, start + m)?,
                cache.values[index].f_narrow(2, 0, start + m)?,
            );
            let attended = attention.attend(index, &q, &keys, &values)?;
            let attended = attended.f_transpose(1, 2)?.f_reshape([m, -1])?;
            hidden = hidden.f_add(&attended.f_matmul(&layer.output.f_tr()?)?)?;
            let x = self.normed(&hidden, &layer.feed_forward_norm)?;
            let gated = x.f_matmul(&layer.gate.f_tr()?)?.f_silu()?.f_mul(&x.f_matmul(&layer.up.f_tr()?)?)?;
            hidden = hidden.f_add(&gated.f_matmul(&layer.down.f_tr()?)?)?;
        }
        cache.held += tokens.len();
        self.normed(&hidden, &self.norm)
    }

    /// Logits [m, vocabulary] of hidden states [m, hidden]. Errors: those of libtorch.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(hidden.f_matmul(&self.output.f_tr()?)?)
    }

    fn check(&self, tokens: &[u32], cache: &Cache) -> Result<()> {
        let room = cache.capacity - cache.held;
        if tokens.is_empty() || tokens.len() > room {
            let expected = format!("1 to {room}, for which there is room in the cache");
            return Err(Error::Tokens(Detail::new("tokens", tokens.len(), expected)));
        }
        match tokens.iter().find(|&&token| token as usize >= self.config.vocabulary) {
            None => Ok(()),
            Some(token) => {
                let expected = format!("below {}, the vocabulary", self.config.vocabulary);
                Err(Error::Tokens(Detail::new("token", token, expected)))
            }
        }
    }

    /// RMS norm over the last dimension.
    fn normed(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let mean = x.f_square()?.f_mean_dim([-1i64].as_slice(), true, self.kind)?;
        Ok(x.f_mul(&mean.f_add_scalar(self.config.epsilon)?.f_rsqrt()?)?.f_mul(weight)?)
    }

    /// Cosines and sines of the new positions, [m, d]; angles are computed in f64.
    fn rotation(&self, start: i64, count: i64) -> Result<(Tensor, Tensor)> {
        let positions = Tensor::f_arange_start(start, start + count, (Kind::Double, self.device))?;
        let angles = positions.f_unsqueeze(1)?.f_mul(&self.frequencies)?;
        let angles = Tensor::f_cat(&[&angles, &angles], 1)?;
        Ok((angles.f_cos()?.f_to_kind(self.kind)?, angles.f_sin()?.f_to_kind(self.kind)?))
    }
}

/// Channel c is paired with c + d/2.
fn rotated(x: &Tensor, cosines: &Tensor, sines: &Tensor) -> Result<Tensor> {
    let halves = x.f_chunk(2, -1)?;
    let turned = Tensor::f_cat(&[&halves[1].f_neg()?, &halves[0]], -1)?;
    Ok(x.f_mul(cosines)?.f_add(&turned.f_mul(sines)?)?)
}

/// base^(−2i/d), divided by `rope_freqs.weight` where the file holds it (Llama 3.1): [d / 2] in f64.
fn frequencies(file: &mut Gguf, config: &Config) -> Result<Tensor> {
    let half = config.head_dim / 2;
    let frequency = |pair: usize| config.rope_base.powf(-2.0 * pair as f64 / config.head_dim as f64);
    let frequencies: Vec<f64> = (0..half).map(frequency).collect();
    let frequencies = Tensor::f_from_slice(&frequencies)?;
    if !file.has_tensor("rope_freqs.weight") {
        return Ok(frequencies);
    }
    Ok(frequencies.f_div(&file.tensor("rope_freqs.weight", &[half])?.f_to_kind(Kind::Double)?)?)
}

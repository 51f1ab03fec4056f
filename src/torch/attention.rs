//! Masked attention in libtorch operations (SPEC §2.11), in f32. Where every row attends to few keys, only those are read.

use tch::{Kind, Tensor};

use super::error::Result;
use super::layer::{Layer, product};
use crate::algorithm::Dims;

/// q·k·scaling + A for every key: [b, h, m, n] in f32.
pub fn logits(layer: &Layer) -> Result<Tensor> {
    let shape = layer.mask_shape();
    let d = layer.dims.head_dim as i64;
    let q = layer.q.f_reshape([layer.k.size()[0], -1, d])?;
    let dots = product(&q, &layer.k.f_transpose(1, 2)?)?.f_reshape(shape)?.f_mul_scalar(layer.scaling)?;
    match &layer.additive {
        None => Ok(dots),
        Some(additive) => Ok(dots.f_add(additive)?),
    }
}

/// Attention with a mask of weights [b, h, m, n]: [b, h, m, dv] in f32.
pub fn attention(layer: &Layer, weights: &Tensor) -> Result<Tensor> {
    let n = layer.dims.keys as i64;
    let attended = weights.f_ne(0.0)?;
    let widest = attended.f_sum_dim_intlist(-1, false, Kind::Int64)?.f_max()?.f_int64_value(&[])?;
    if 2 * widest > n {
        return dense(layer, weights);
    }
    if widest == 0 {
        let (b, h, m, dv) = layer.dims.output_shape();
        let shape = [b as i64, h as i64, m as i64, dv as i64];
        return Ok(Tensor::f_zeros(shape, (Kind::Float, weights.device()))?);
    }
    // Attended keys come first; rows with fewer of them are filled up with weight 0.
    let (_, keys) = attended.f_to_kind(Kind::Float)?.f_topk(widest, -1, true, false)?;
    let weights = weights.f_gather(-1, &keys, false)?;
    sparse(layer, &keys, &weights)
}

/// Attention that reads only some keys: `keys` and their `weights` are [b, h, m, w]; a weight of 0 is not attended.
pub fn sparse(layer: &Layer, keys: &Tensor, weights: &Tensor) -> Result<Tensor> {
    let Dims { batch, heads, kv_heads, queries, head_dim, value_dim, .. } = layer.dims;
    let (b, h, hk, m) = (batch as i64, heads as i64, kv_heads as i64, queries as i64);
    let width = keys.size()[3];
    let read = |x: &Tensor, size: usize| -> Result<Tensor> {
        let size = size as i64;
        let index = keys.f_reshape([b * hk, -1, 1])?.f_expand([b * hk, -1, size], false)?;
        Ok(x.f_gather(1, &index, false)?.f_reshape([b * h * m, width, size])?)
    };
    let q = layer.q.f_reshape([b * h * m, 1, head_dim as i64])?;
    let k = read(&layer.k, head_dim)?;
    let dots = product(&q, &k.f_transpose(1, 2)?)?.f_reshape([b, h, m, width])?;
    let mut logits = dots.f_mul_scalar(layer.scaling)?;
    if let Some(additive) = &layer.additive {
        let all = additive.f_expand(layer.mask_shape(), false)?;
        logits = logits.f_add(&all.f_gather(-1, keys, false)?)?;
    }
    let e = exponentials(&logits, weights)?;
    let total = e.f_sum_dim_intlist(-1, true, Kind::Float)?;
    let v = read(&layer.v, value_dim)?.f_to_kind(Kind::Float)?;
    let sum = e.f_reshape([b * h * m, 1, width])?.f_bmm(&v)?.f_reshape([b, h, m, value_dim as i64])?;
    divided(&sum, &total)
}

/// Attention that reads all keys, with a mask of weights [b, h, m, n]: [b, h, m, dv] in f32.
pub fn dense(layer: &Layer, weights: &Tensor) -> Result<Tensor> {
    let Dims { batch, heads, kv_heads, queries, keys, value_dim, .. } = layer.dims;
    let e = exponentials(&logits(layer)?, weights)?;
    let total = e.f_sum_dim_intlist(-1, true, Kind::Float)?;
    let v = layer.v.f_to_kind(Kind::Float)?;
    let rows = e.f_reshape([(batch * kv_heads) as i64, -1, keys as i64])?;
    let sum = rows.f_bmm(&v)?.f_reshape([batch as i64, heads as i64, queries as i64, value_dim as i64])?;
    divided(&sum, &total)
}

/// exp(w − max) / weight at attended keys, 0 elsewhere; the maximum is taken over attended keys.
pub(super) fn exponentials(logits: &Tensor, weights: &Tensor) -> Result<Tensor> {
    let not_attended = weights.f_eq(0.0)?;
    let logits = logits.f_masked_fill(&not_attended, f64::NEG_INFINITY)?;
    let max = logits.f_amax(-1, true)?;
    let max = max.f_masked_fill(&max.f_eq(f64::NEG_INFINITY)?, 0.0)?;
    Ok(logits.f_sub(&max)?.f_exp()?.f_div(&weights.f_masked_fill(&not_attended, 1.0)?)?)
}

/// Rows that attend to nothing have no total, and yield zeros.
pub(super) fn divided(sum: &Tensor, total: &Tensor) -> Result<Tensor> {
    Ok(sum.f_div(&total.f_masked_fill(&total.f_eq(0.0)?, 1.0)?)?)
}

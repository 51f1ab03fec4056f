//! SPEC §2.11: attention over the attended keys. w = q·k·scaling + A; e = exp(w − max) / weight; the output is
//! Σ e·v / Σ e, all in f64. A row that attends to nothing yields zeros.

use ndarray::{Array3, Array4, Axis};

use super::error::{Detail, Error, Result};
use super::inputs::{Inputs, Row};
use super::mask::Mask;
use crate::compute;

/// The exact attention logits q·k·scaling + A of one row at the given keys.
pub fn logits(inputs: &Inputs, (batch, head, query): Row, keys: impl Iterator<Item = usize>) -> Vec<f64> {
    let q = inputs.queries(batch, head);
    let q: Vec<f64> = q.row(query).iter().map(|&x| f64::from(x)).collect();
    let k = inputs.keys(batch, head);
    let additive = inputs.additive(batch, head, query);
    let scaling = inputs.scaling();
    keys.map(|key| {
        let dot: f64 = q.iter().zip(k.row(key)).map(|(&q, &k)| q * f64::from(k)).sum();
        dot * scaling + f64::from(additive.at(key))
    })
    .collect()
}

/// Masked attention: [b, h, m, dv]. Errors: [`Error::Shape`] where the mask does not fit the inputs.
pub fn attention(inputs: &Inputs, mask: &Mask) -> Result<Array4<f32>> {
    let dims = inputs.dims();
    if mask.weights().dim() != dims.mask_shape() {
        let found = format!("{:?}", mask.weights().dim());
        let expected = format!("{:?}", dims.mask_shape());
        return Err(Error::Shape(Detail::new("mask", found, expected)));
    }
    let mut output = Array4::zeros(dims.output_shape());
    let rows: Vec<_> = dims.rows().zip(output.lanes_mut(Axis(3))).collect();
    compute::map(rows, dims.operations(), |(row, mut out)| {
        for (out, x) in out.iter_mut().zip(attend_row(inputs, mask, row)) {
            *out = x as f32;
        }
    });
    Ok(output)
}

fn attend_row(inputs: &Inputs, mask: &Mask, row: Row) -> Vec<f64> {
    let (keys, weights): (Vec<usize>, Vec<f32>) = mask.row(row).unzip();
    let logits = logits(inputs, row, keys.iter().copied());
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let values = inputs.values(row.0, row.1);
    let mut sum = vec![0.0; values.ncols()];
    let mut total = 0.0;
    if max == f64::NEG_INFINITY {
        return sum;
    }
    for ((&key, &weight), &logit) in keys.iter().zip(&weights).zip(&logits) {
        let e = (logit - max).exp() / f64::from(weight);
        total += e;
        for (sum, &v) in sum.iter_mut().zip(values.row(key)) {
            *sum += e * f64::from(v);
        }
    }
    sum.iter_mut().for_each(|sum| *sum /= total);
    sum
}

/// The log-sum-exp of each row, log Σ exp(w) / weight over attended keys: [b, h, m], natural logarithms; −∞ for a row that
/// attends to nothing. Errors: [`Error::Shape`] where the mask does not fit the inputs.
pub fn log_sum_exp(inputs: &Inputs, mask: &Mask) -> Result<Array3<f32>> {
    let dims = inputs.dims();
    if mask.weights().dim() != dims.mask_shape() {
        let found = format!("{:?}", mask.weights().dim());
        let expected = format!("{:?}", dims.mask_shape());
        return Err(Error::Shape(Detail::new("mask", found, expected)));
    }
    let mut sums = Array3::from_elem((dims.batch, dims.heads, dims.queries), f32::NEG_INFINITY);
    for row @ (b, head, i) in dims.rows() {
        let (keys, weights): (Vec<usize>, Vec<f32>) = mask.row(row).unzip();
        let logits = logits(inputs, row, keys.into_iter());
        let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if max > f64::NEG_INFINITY {
            let terms = logits.iter().zip(&weights).map(|(w, &weight)| (w - max).exp() / f64::from(weight));
            sums[[b, head, i]] = (max + terms.sum::<f64>().ln()) as f32;
        }
    }
    Ok(sums)
}

/// The output [b, h, m, dv] with every key attended, as a baseline.
pub fn dense_attention(inputs: &Inputs) -> Array4<f32> {
    attention(inputs, &Mask::full(&inputs.dims())).expect("a full mask has the inputs' shape")
}

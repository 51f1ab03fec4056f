//! SPEC §2.11: attention over the attended keys. w = q·k·scaling + A; e = exp(w − max) / weight; the output is
//! Σ e·v / Σ e, all in f64. A row that attends to nothing yields zeros.

use ndarray::{Array3, Array4, Axis};

use super::error::{Detail, Error, Result};
use super::inputs::{Inputs, Row};
use super::mask::Mask;
use crate::compute;
use crate::compute::vectorised;

/// Keys of which logits are summed side by side: one sum need not wait for another.
const TOGETHER: usize = 4;

/// The exact attention logits q·k·scaling + A of one row at the given keys.
pub fn logits(inputs: &Inputs, (batch, head, query): Row, keys: impl Iterator<Item = usize>) -> Vec<f64> {
    let q = inputs.queries(batch, head);
    let q: Vec<f64> = q.row(query).iter().map(|&x| f64::from(x)).collect();
    let k = inputs.keys(batch, head).to_slice().expect("inputs have the standard layout");
    let k = |key: usize| &k[key * q.len()..][..q.len()];
    let additive = inputs.additive(batch, head, query);
    let scaling = inputs.scaling();
    let keys: Vec<usize> = keys.collect();
    // Each sum has the order of the channels. It starts from −0, which keeps the sign of a sum of zeros.
    let mut dots = vec![-0.0; keys.len()];
    for (dots, keys) in dots.chunks_mut(TOGETHER).zip(keys.chunks(TOGETHER)) {
        match *keys {
            [a, b, c, e] => dots.copy_from_slice(&dots_of(&q, [k(a), k(b), k(c), k(e)])),
            _ => dots.iter_mut().zip(keys).for_each(|(dot, &key)| [*dot] = dots_of(&q, [k(key)])),
        }
    }
    let logit = |(dot, &key): (f64, &usize)| dot * scaling + f64::from(additive.at(key));
    dots.into_iter().zip(&keys).map(logit).collect()
}

/// q·k of some keys.
fn dots_of<const N: usize>(q: &[f64], k: [&[f32]; N]) -> [f64; N] {
    let mut dots = [-0.0; N];
    let k = k.map(|k| &k[..q.len()]);
    for (channel, q) in q.iter().enumerate() {
        for (dot, k) in dots.iter_mut().zip(k) {
            *dot += q * f64::from(k[channel]);
        }
    }
    dots
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
    let e = |(&logit, &weight): (&f64, &f32)| (logit - max).exp() / f64::from(weight);
    let exponentials: Vec<f64> = logits.iter().zip(&weights).map(e).collect();
    exponentials.iter().for_each(|e| total += e);
    let (columns, values) = (values.ncols(), values.to_slice().expect("inputs have the standard layout"));
    vectorised(
        #[inline(always)]
        || {
            for (&key, e) in keys.iter().zip(&exponentials) {
                for (sum, &v) in sum.iter_mut().zip(&values[key * columns..][..columns]) {
                    *sum += e * f64::from(v);
                }
            }
        },
    );
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

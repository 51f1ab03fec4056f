//! SPEC §2.10, §2.11 for rows that attend to few of many keys: the attended keys of a row as a list, and attention over
//! them in f32.

use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::rows::Rows;

/// The attended keys of one row, ascending, each with its weight.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Attended {
    /// Key indices, ascending.
    pub keys: Vec<usize>,
    /// Weights, above 0.
    pub weights: Vec<f32>,
}

impl Attended {
    /// Adds keys, given in ascending order, with weight 1; keys attended before keep their weight.
    pub fn add(&mut self, keys: impl IntoIterator<Item = usize>) {
        let before = std::mem::take(self);
        let mut before = before.keys.into_iter().zip(before.weights).peekable();
        for key in keys {
            while let Some(earlier) = before.next_if(|earlier| earlier.0 < key) {
                self.push(earlier);
            }
            let same = before.next_if(|earlier| earlier.0 == key);
            self.push(same.unwrap_or((key, 1.0)));
        }
        before.for_each(|earlier| self.push(earlier));
    }

    /// Adds a key above all others.
    pub fn push(&mut self, (key, weight): (usize, f32)) {
        self.keys.push(key);
        self.weights.push(weight);
    }
}

/// Keys whose values are added together.
const TOGETHER: usize = 4;

/// Attention of one row over its attended keys.
pub struct Attend<'a, A> {
    /// Keys and values, [n, d + dv].
    pub rows: &'a Rows,
    /// [d]
    pub query: &'a [f32],
    /// Factor of q·k.
    pub scaling: f32,
    /// The keys.
    pub attended: &'a Attended,
    /// A at a key.
    pub additive: A,
    /// [dv]; zeros where the row attends to nothing.
    pub output: &'a mut [f32],
}

impl<A: Fn(usize) -> f32> WithSimd for Attend<'_, A> {
    type Output = ();

    /// With the vector instructions available: everything it calls is inlined.
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { rows, query, scaling, attended, additive, output } = self;
        let (key, value) = (0..query.len(), query.len()..query.len() + output.len());
        let mut scratch = vec![0.0; query.len()];
        let mut weights = Vec::with_capacity(attended.keys.len());
        let mut largest = f32::NEG_INFINITY;
        for &position in &attended.keys {
            let product = dot(simd, query, rows.part(position, key.clone(), &mut scratch));
            let logit = product * scaling + additive(position);
            largest = largest.max(logit);
            weights.push(logit);
        }
        output.fill(0.0);
        if largest == f32::NEG_INFINITY {
            return;
        }
        let mut total = 0.0;
        for (weight, &probability) in weights.iter_mut().zip(&attended.weights) {
            *weight = (*weight - largest).exp() / probability;
            total += *weight;
        }
        add_values(rows, &attended.keys, &weights, value, output);
        output.iter_mut().for_each(|x| *x /= total);
    }
}

#[inline(always)]
fn add_values(rows: &Rows, keys: &[usize], weights: &[f32], value: Range<usize>, output: &mut [f32]) {
    let mut scratch = vec![0.0; TOGETHER * output.len()];
    let (keys, last_keys) = keys.as_chunks::<TOGETHER>();
    let (weights, last_weights) = weights.as_chunks::<TOGETHER>();
    for (&[a, b, c, d], weights) in keys.iter().zip(weights) {
        let mut scratch = scratch.chunks_exact_mut(output.len());
        let mut part = |position| rows.part(position, value.clone(), scratch.next().unwrap_or_default());
        let (a, b, c, d) = (part(a), part(b), part(c), part(d));
        for ((((out, &a), &b), &c), &d) in output.iter_mut().zip(a).zip(b).zip(c).zip(d) {
            *out += (a * weights[0] + b * weights[1]) + (c * weights[2] + d * weights[3]);
        }
    }
    for (&position, &weight) in last_keys.iter().zip(last_weights) {
        let length = output.len();
        let part = rows.part(position, value.clone(), &mut scratch[..length]);
        output.iter_mut().zip(part).for_each(|(out, &x)| *out += x * weight);
    }
}

/// A dot product in two vectors of partial sums, then the rest.
#[inline(always)]
fn dot<S: Simd>(simd: S, a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (S::as_simd_f32s(a), S::as_simd_f32s(b));
    let (mut even, mut odd) = (simd.splat_f32s(0.0), simd.splat_f32s(0.0));
    let ((a_pairs, a_last), (b_pairs, b_last)) = (a.as_chunks::<2>(), b.as_chunks::<2>());
    for (a, b) in a_pairs.iter().zip(b_pairs) {
        even = simd.mul_add_e_f32s(a[0], b[0], even);
        odd = simd.mul_add_e_f32s(a[1], b[1], odd);
    }
    for (&a, &b) in a_last.iter().zip(b_last) {
        even = simd.mul_add_e_f32s(a, b, even);
    }
    let mut sum = simd.reduce_sum_f32s(simd.add_f32s(even, odd));
    for (&a, &b) in a_rest.iter().zip(b_rest) {
        sum += a * b;
    }
    sum
}

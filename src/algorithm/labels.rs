//! SPEC §2.3 to §2.5: the labels of queries and keys. Query head i reads KV head i / g; its labels are the first r
//! channels of row i of C, taken from q and k, in C's order, quantised where B < 16. They are held one channel after the
//! other, so that every loop over positions runs along memory.

use std::ops::Range;

use ndarray::{ArcArray, ArcArray2, Array2, Array3, ArrayView2, ArrayView3, ArrayViewMut2, Axis, Ix3, s};

use super::channels::ChannelOrder;
use super::config::LabelBits;
use super::error::{Error, Result};
use super::inputs::Inputs;
use super::quantize::{quantize_columns, quantize_in_place};
use super::storage::Storage;
use crate::compute;

/// Labels of some query heads of one batch entry, r per position.
#[derive(Debug, Clone, PartialEq)]
pub struct Labels {
    heads: Range<usize>,
    /// [heads, r, m]
    q: Array3<f32>,
    /// [heads, r, n]
    k: Array3<f32>,
}

/// Positions gathered and quantised together: their rows of d numbers should fit the second level of cache.
const TOGETHER: usize = 128;

/// Positions of which one channel is gathered at once: they are written side by side.
const SIDE_BY_SIDE: usize = 8;

impl Labels {
    /// The query heads.
    pub fn heads(&self) -> Range<usize> {
        self.heads.clone()
    }

    /// Labels of the queries of one head: [r, m].
    pub fn queries(&self, head: usize) -> ArrayView2<'_, f32> {
        self.q.index_axis(Axis(0), head - self.heads.start)
    }

    /// Labels of the keys that one query head reads: [r, n].
    pub fn keys(&self, head: usize) -> ArrayView2<'_, f32> {
        self.k.index_axis(Axis(0), head - self.heads.start)
    }

    /// Labels of queries [r, m] and of keys [r, n] of each head, without a copy.
    pub fn into_heads(self) -> impl Iterator<Item = (ArcArray2<f32>, ArcArray2<f32>)> {
        let (q, k) = (self.q.into_shared(), self.k.into_shared());
        let of_head = |labels: &ArcArray<f32, Ix3>, head| labels.clone().index_axis_move(Axis(0), head);
        (0..self.heads.len()).map(move |head| (of_head(&q, head), of_head(&k, head)))
    }

    /// Labels of queries and keys summed over the heads of each of some equal parts (SPEC §2.7, §2.12): [r, m] and [r, n].
    pub fn summed_over_heads(&self, together: usize) -> Vec<(Array2<f64>, Array2<f64>)> {
        let sum = |labels: ArrayView3<f32>| {
            let (_, r, positions) = labels.dim();
            let mut sum = Array2::zeros((r, positions));
            labels.outer_iter().for_each(|head| sum += &head.mapv(f64::from));
            sum
        };
        let parts =
            |labels: &Array3<f32>| labels.axis_chunks_iter(Axis(0), together).map(sum).collect::<Vec<_>>();
        parts(&self.q).into_iter().zip(parts(&self.k)).collect()
    }
}

/// Labels of some heads of one batch entry. The channels must fit ([`ChannelOrder::check`]).
///
/// Errors: [`Error::LabelRange`] naming the first tensor, head and position whose labels leave the storage type.
pub fn labels(
    inputs: &Inputs,
    channels: &ChannelOrder,
    label_channels: usize,
    bits: LabelBits,
    heads: (usize, Range<usize>),
) -> Result<Labels> {
    labels_of(inputs, channels, label_channels, [bits; 2], heads)
}

/// As [`labels`], with the bits of queries and of keys.
pub fn labels_of(
    inputs: &Inputs,
    channels: &ChannelOrder,
    label_channels: usize,
    [query_bits, key_bits]: [LabelBits; 2],
    (batch, heads): (usize, Range<usize>),
) -> Result<Labels> {
    let (dims, storage) = (inputs.dims(), inputs.storage());
    let of_tensor = |name: &str, positions: usize, is_query: bool| {
        let bits = if is_query { query_bits } else { key_bits };
        let mut labels = Array3::zeros((heads.len(), label_channels, positions));
        let parts: Vec<_> = labels.axis_chunks_iter_mut(Axis(2), TOGETHER).enumerate().collect();
        // All heads of some positions at once: those that read one KV head then find its keys in the cache.
        let errors = compute::map(parts, heads.len() * label_channels * positions, |(part, mut labels)| {
            let first = part * TOGETHER;
            let taken = first..first + labels.dim().2;
            let mut errors = Vec::new();
            for (head, labels) in heads.clone().zip(labels.outer_iter_mut()) {
                let source = if is_query { inputs.queries(batch, head) } else { inputs.keys(batch, head) };
                let row = &channels.row(head, &dims)[..label_channels];
                match labels_at(source.slice(s![taken.clone(), ..]), row, bits, storage) {
                    Ok(made) => assign(labels, &made),
                    Err((position, error)) => errors.push((head, first + position, error)),
                }
            }
            errors
        });
        match errors.into_iter().flatten().min_by_key(|&(head, position, _)| (head, position)) {
            None => Ok(labels),
            Some((head, position, error)) => Err(error.at_label(name, [batch, head, position])),
        }
    };
    Ok(Labels { q: of_tensor("q", dims.queries, true)?, k: of_tensor("k", dims.keys, false)?, heads })
}

/// Writes labels [r, positions].
fn assign(mut labels: ArrayViewMut2<f32>, made: &[f32]) {
    let positions = labels.ncols();
    for (mut label, made) in labels.outer_iter_mut().zip(made.chunks_exact(positions)) {
        label.as_slice_mut().expect("positions are contiguous").copy_from_slice(made);
    }
}

/// Labels [r, positions] of some positions [positions, d] of one head, which lie one after the other in memory.
///
/// Errors: the first position whose labels leave the storage type.
pub fn labels_at(
    source: ArrayView2<f32>,
    channels: &[usize],
    bits: LabelBits,
    storage: Storage,
) -> std::result::Result<Vec<f32>, (usize, Error)> {
    let (positions, d) = source.dim();
    let mut columns = vec![0.0; channels.len() * positions];
    // In the order of memory, so that the processor sees what is read next.
    let mut places: Vec<(usize, usize)> = channels.iter().copied().zip((0..).step_by(positions)).collect();
    places.sort_unstable();
    let rows = source.to_slice().expect("positions are contiguous");
    let side_by_side = rows.chunks_exact(SIDE_BY_SIDE * d);
    let rest = side_by_side.remainder();
    for (first, rows) in (0..).step_by(SIDE_BY_SIDE).zip(side_by_side) {
        let x: [&[f32]; SIDE_BY_SIDE] = std::array::from_fn(|index| &rows[index * d..][..d]);
        for &(channel, start) in &places {
            if let Some(column) = columns[start + first..].first_chunk_mut() {
                *column = x.map(|x| x[channel]);
            }
        }
    }
    for (position, x) in (positions - rest.len() / d..).zip(rest.chunks_exact(d)) {
        for &(channel, start) in &places {
            columns[start + position] = x[channel];
        }
    }
    if bits.quantises() && !quantize_columns(&mut columns, positions, bits, storage) {
        for (position, x) in source.outer_iter().enumerate() {
            let mut row: Vec<f32> = channels.iter().map(|&channel| x[channel]).collect();
            quantize_in_place(&mut row, bits, storage).map_err(|error| (position, error))?;
        }
    }
    Ok(columns)
}

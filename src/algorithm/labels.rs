//! SPEC §2.3 to §2.5: the labels of every query and key. Query head i reads KV head i / g; its labels are the
//! first r channels of row i of C, taken from q and k, in C's order, quantised where B < 16.

use ndarray::{Array2, ArrayView2};

use super::channels::ChannelOrder;
use super::config::LabelBits;
use super::error::{Error, Result};
use super::inputs::{Dims, Inputs};
use super::parallel;
use super::quantize::quantize_in_place;
use super::storage::Storage;

/// Labels of queries and keys for each (batch, query head), r per position.
#[derive(Debug, Clone, PartialEq)]
pub struct Labels {
    dims: Dims,
    /// [m, r] for each (batch, query head), row-major.
    q: Vec<Array2<f32>>,
    /// [n, r] for each (batch, query head), row-major.
    k: Vec<Array2<f32>>,
}

impl Labels {
    /// Labels of the queries of one head: [m, r].
    pub fn queries(&self, batch: usize, head: usize) -> &Array2<f32> {
        &self.q[batch * self.dims.heads + head]
    }

    /// Labels of the keys that one query head reads: [n, r].
    pub fn keys(&self, batch: usize, head: usize) -> &Array2<f32> {
        &self.k[batch * self.dims.heads + head]
    }

    /// Labels of queries and keys summed over all heads of one batch entry (SPEC §2.7): [m, r] and [n, r].
    pub fn summed_over_heads(&self, batch: usize) -> (Array2<f64>, Array2<f64>) {
        let sum = |labels: &[Array2<f32>]| {
            let heads = labels.chunks(self.dims.heads).nth(batch).unwrap_or_default();
            let mut sum = Array2::zeros(labels[0].dim());
            heads.iter().for_each(|head| sum += &head.mapv(f64::from));
            sum
        };
        (sum(&self.q), sum(&self.k))
    }
}

/// Labels of all heads. The channels must fit ([`ChannelOrder::check`]).
///
/// Errors: [`Error::LabelRange`] naming the first tensor, batch, head and position whose labels leave the storage
/// type.
pub fn labels(
    inputs: &Inputs,
    channels: &ChannelOrder,
    label_channels: usize,
    bits: LabelBits,
) -> Result<Labels> {
    let dims = inputs.dims();
    let per_head = |name: &str, is_query: bool| {
        let heads: Vec<usize> = (0..dims.batch * dims.heads).collect();
        let positions = if is_query { dims.queries } else { dims.keys };
        let labels = parallel::map(heads, dims.batch * dims.heads * positions * label_channels, |index| {
            let (b, head) = (index / dims.heads, index % dims.heads);
            let source = if is_query { inputs.queries(b, head) } else { inputs.keys(b, head) };
            let row = &channels.row(head, &dims)[..label_channels];
            gather_and_quantize(source, row, bits, inputs.storage())
                .map_err(|(position, error)| located(error, name, [b, head, position]))
        });
        // In order, so that the error is that of the first position.
        labels.into_iter().collect::<Result<Vec<_>>>()
    };
    Ok(Labels { dims, q: per_head("q", true)?, k: per_head("k", false)? })
}

/// Labels of every position of one head, [positions, r]; the error says which position.
fn gather_and_quantize(
    source: ArrayView2<f32>,
    channels: &[usize],
    bits: LabelBits,
    storage: Storage,
) -> std::result::Result<Array2<f32>, (usize, Error)> {
    let mut labels = Array2::zeros((source.nrows(), channels.len()));
    let rows = source.outer_iter().zip(labels.outer_iter_mut());
    for (position, (x, label)) in rows.enumerate() {
        let label = label.into_slice().expect("rows of a new array are contiguous");
        label.iter_mut().zip(channels).for_each(|(label, &channel)| *label = x[channel]);
        quantize_in_place(label, bits, storage).map_err(|error| (position, error))?;
    }
    Ok(labels)
}

fn located(mut error: Error, name: &str, index: [usize; 3]) -> Error {
    if let Error::LabelRange(detail) = &mut error {
        detail.field = format!("label of {name}{index:?}");
    }
    error
}

//! SPEC §2.6 and §2.7: scores s = q̂·k̂ / √r + A, and how heads are taken together. Scores are sums in f64 of the
//! labels, which hold values of the storage type.

use ndarray::{Array2, ArrayView1, ArrayView2, Axis};

use super::channels::ChannelOrder;
use super::config::HeadMode;
use super::error::{Detail, Error, Result};
use super::inputs::Inputs;
use super::labels::Labels;
use crate::compute::vectorised;

/// Scores of every key for one query, ready to be ranked.
pub struct Scores<'a> {
    inputs: &'a Inputs,
    batch: usize,
    labels: &'a Labels,
    mode: HeadMode,
    /// Labels of q [r, m] and k [r, n] summed over heads, in `summed-labels`.
    summed: Option<(Array2<f64>, Array2<f64>)>,
}

/// Keys scored together: their scores stay in the first level of cache.
const TOGETHER: usize = 512;

impl<'a> Scores<'a> {
    /// Of one batch entry. In the two summed modes the labels must be those of all heads, and the head mode must fit
    /// ([`check_head_mode`]).
    pub fn new(inputs: &'a Inputs, batch: usize, labels: &'a Labels, mode: HeadMode) -> Self {
        let summed = (mode == HeadMode::SummedLabels).then(|| labels.summed_over_heads());
        Self { inputs, batch, labels, mode, summed }
    }

    /// Scores of one row; in the two summed modes they are the same for every head. −∞ marks keys that A excludes.
    pub fn row(&self, head: usize, query: usize) -> Vec<f64> {
        match &self.summed {
            Some((q, k)) => self.scored(q.column(query), k.view(), 0, query),
            None if self.mode == HeadMode::PerHead => self.head_row(head, query),
            None => {
                let rows = self.labels.heads().map(|head| self.head_row(head, query));
                rows.reduce(|mut sum, row| {
                    sum.iter_mut().zip(row).for_each(|(sum, score)| *sum += score);
                    sum
                })
                .unwrap_or_default()
            }
        }
    }

    fn head_row(&self, head: usize, query: usize) -> Vec<f64> {
        self.scored(self.labels.queries(head).column(query), self.labels.keys(head), head, query)
    }

    /// `q` is [r], `k` [r, n].
    fn scored<T: Copy + Into<f64>>(
        &self,
        q: ArrayView1<T>,
        k: ArrayView2<T>,
        head: usize,
        query: usize,
    ) -> Vec<f64> {
        // What a sum starts from, for the sign of a sum of zeros.
        let mut scores = vec![-0.0; k.ncols()];
        let root = (q.len() as f64).sqrt();
        vectorised(
            #[inline(always)]
            || {
                for (scores, k) in scores.chunks_mut(TOGETHER).zip(k.axis_chunks_iter(Axis(1), TOGETHER)) {
                    for (&q, k) in q.iter().zip(k.outer_iter()) {
                        add_products(scores, q.into(), k.to_slice().expect("channels are contiguous"));
                    }
                    scores.iter_mut().for_each(|score| *score /= root);
                }
            },
        );
        self.inputs.additive(self.batch, head, query).add_to(&mut scores);
        scores
    }
}

#[inline(always)]
fn add_products<T: Copy + Into<f64>>(scores: &mut [f64], q: f64, k: &[T]) {
    for (score, &k) in scores.iter_mut().zip(k) {
        *score += q * k.into();
    }
}

/// Errors: [`Error::HeadMode`] where `summed-labels` meets channels that differ between heads, or an additive mask that does.
pub fn check_head_mode(
    inputs: &Inputs,
    channels: &ChannelOrder,
    label_channels: usize,
    mode: HeadMode,
) -> Result<()> {
    if mode != HeadMode::SummedLabels {
        return Ok(());
    }
    if !channels.is_shared(label_channels) {
        return Err(Error::HeadMode(Detail::new(
            "heads",
            "summed-labels with channel rows that differ between heads",
            "one channel row shared by all heads",
        )));
    }
    if inputs.attention_mask_differs_between_heads() {
        return Err(Error::HeadMode(Detail::new(
            "heads",
            "summed-labels with an attention_mask that differs between heads",
            "one attention_mask for all heads, as labels are scored once",
        )));
    }
    Ok(())
}

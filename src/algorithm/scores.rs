//! SPEC §2.6 and §2.7: scores s = q̂·k̂ / √r + A, and how heads are taken together. Scores are sums in f64 of the
//! labels, which hold values of the storage type.

use ndarray::{Array2, ArrayView1, ArrayView2};

use super::channels::ChannelOrder;
use super::config::HeadMode;
use super::error::{Detail, Error, Result};
use super::inputs::Inputs;
use super::labels::Labels;

/// Scores of every key for one query, ready to be ranked.
pub struct Scores<'a> {
    inputs: &'a Inputs,
    labels: &'a Labels,
    mode: HeadMode,
    /// Labels of q [m, r] and k [n, r] summed over heads, per batch entry, in `summed-labels`.
    summed: Vec<(Array2<f64>, Array2<f64>)>,
}

impl<'a> Scores<'a> {
    /// The head mode must fit ([`check_head_mode`]).
    pub fn new(inputs: &'a Inputs, labels: &'a Labels, mode: HeadMode) -> Self {
        let mut summed = Vec::new();
        if mode == HeadMode::SummedLabels {
            summed = (0..inputs.dims().batch).map(|b| labels.summed_over_heads(b)).collect();
        }
        Self { inputs, labels, mode, summed }
    }

    /// Scores of one row; in the two summed modes they are the same for every head. −∞ marks keys that A excludes.
    pub fn row(&self, batch: usize, head: usize, query: usize) -> Vec<f64> {
        match self.mode {
            HeadMode::PerHead => self.head_row(batch, head, query),
            HeadMode::SummedScores => {
                let heads = self.inputs.dims().heads;
                let rows = (0..heads).map(|head| self.head_row(batch, head, query));
                rows.reduce(|mut sum, row| {
                    sum.iter_mut().zip(row).for_each(|(sum, score)| *sum += score);
                    sum
                })
                .unwrap_or_default()
            }
            HeadMode::SummedLabels => {
                let (q, k) = &self.summed[batch];
                self.scored(q.row(query), k.view(), [batch, 0, query])
            }
        }
    }

    fn head_row(&self, batch: usize, head: usize, query: usize) -> Vec<f64> {
        let (q, k) = (self.labels.queries(batch, head), self.labels.keys(batch, head));
        self.scored(q.row(query), k.view(), [batch, head, query])
    }

    fn scored<T: Copy + Into<f64>>(
        &self,
        q: ArrayView1<T>,
        k: ArrayView2<T>,
        [batch, head, query]: [usize; 3],
    ) -> Vec<f64> {
        let root = (q.len() as f64).sqrt();
        let additive = self.inputs.additive(batch, head, query);
        let score = |(key, k): (usize, ArrayView1<T>)| {
            let dot: f64 = q.iter().zip(k).map(|(&q, &k)| q.into() * k.into()).sum();
            dot / root + f64::from(additive.at(key))
        };
        k.outer_iter().enumerate().map(score).collect()
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

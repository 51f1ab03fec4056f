//! SPEC §2.6 and §2.7: scores s = q̂·k̂ / √r + A, or by another rule, and how the scores of heads are combined. Scores are sums in f64 of the
//! labels, which hold values of the storage type.

use ndarray::{Array2, ArrayView1, ArrayView2, Axis};

use super::channels::ChannelOrder;
use super::config::{Combined, HeadMode, Selection};
use super::error::{Detail, Error, Result};
use super::inputs::{Inputs, Row};
use super::labels::Labels;
use super::rules::{Rules, ScoreRule};
use super::storage::Storage;
use crate::compute::vectorised;

/// Scores of every key for one query, ready to be ranked.
pub struct Scores<'a> {
    inputs: &'a Inputs,
    batch: usize,
    labels: &'a Labels,
    channels: &'a ChannelOrder,
    mode: HeadMode,
    rules: Rules,
    /// In `summed-labels`: labels of q [r, m] and k [r, n] summed over the heads of each rank.
    summed: Vec<(Array2<f64>, Array2<f64>)>,
    /// How many heads in a row are taken together before the parts of ranks are summed.
    together: usize,
}

/// Keys scored together: their scores stay in the first level of cache.
const TOGETHER: usize = 512;

impl<'a> Scores<'a> {
    /// The scores of one batch entry. The labels must be those of all heads that share a selection, and the head mode must fit
    /// ([`check_head_mode`]).
    pub fn new(
        inputs: &'a Inputs,
        batch: usize,
        labels: &'a Labels,
        channels: &'a ChannelOrder,
        selection: &Selection,
    ) -> Self {
        let (mode, rules) = (selection.heads, selection.rules);
        let together = rules.ranks.together(mode, &inputs.dims());
        let summed = match mode {
            HeadMode::SummedLabels => labels.summed_over_heads(together),
            _ => Vec::new(),
        };
        Self { inputs, batch, labels, channels, mode, rules, summed, together }
    }

    /// Scores of one row; they are the same for every head that shares its selection. −∞ marks keys that A excludes.
    pub fn row(&self, head: usize, query: usize) -> Vec<f64> {
        if self.mode == HeadMode::PerHead {
            return self.head_row(head, query);
        }
        let starts: Vec<usize> = self.labels.heads().step_by(self.together).collect();
        let parts = starts.iter().enumerate().map(|(rank, &first)| self.part(rank, first, query));
        if starts.len() == 1 {
            return parts.flatten().collect();
        }
        let kept = self.rules.ranks.parts();
        // Beyond f32 nothing is rounded.
        let rounded =
            |score: f64| if kept == Storage::F32 { score } else { f64::from(kept.round(score as f32)) };
        let parts = parts.map(|part| part.into_iter().map(rounded).collect());
        parts.reduce(|all: Vec<f64>, part| combined(all, part, |a, b| a + b)).unwrap_or_default()
    }

    /// What the heads of one rank make of a row, the head rule within them.
    fn part(&self, rank: usize, first: usize, query: usize) -> Vec<f64> {
        if let Some((q, k)) = self.summed.get(rank) {
            return self.scored(q.column(query), k.view(), first, query);
        }
        let rows = (first..first + self.together).map(|head| self.head_row(head, query));
        let combine = |a: f64, b: f64| match self.mode.combined() {
            Combined::Sum | Combined::Mean => a + b,
            Combined::Max => a.max(b),
        };
        let mut part = rows.reduce(|all, row| combined(all, row, combine)).unwrap_or_default();
        if self.mode.combined() == Combined::Mean {
            part.iter_mut().for_each(|score| *score /= self.together as f64);
        }
        part
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
        let q = self.weighted(q, head);
        // Sums start from −0, which keeps the sign of a sum of zeros.
        let mut scores = vec![-0.0; k.ncols()];
        let (label_channels, head_dim) = (q.len(), self.inputs.dims().head_dim);
        vectorised(
            #[inline(always)]
            || {
                for (scores, k) in scores.chunks_mut(TOGETHER).zip(k.axis_chunks_iter(Axis(1), TOGETHER)) {
                    for (&q, k) in q.iter().zip(k.outer_iter()) {
                        add_products(scores, q, k.to_slice().expect("channels are contiguous"));
                    }
                }
            },
        );
        self.apply_rule(&mut scores, &q, k, (self.batch, head, query));
        let factor = self.rules.factor;
        scores.iter_mut().for_each(|score| *score = factor.apply(*score, label_channels, head_dim));
        self.inputs.additive(self.batch, head, query).add_to(&mut scores);
        scores
    }
}

impl Scores<'_> {
    /// q̂ of one query, multiplied by the channel weights of its head where they are used and there are any.
    fn weighted<T: Copy + Into<f64>>(&self, q: ArrayView1<T>, head: usize) -> Vec<f64> {
        let q = q.iter().map(|&x| x.into());
        let weights = self.channels.weights_of(head, &self.inputs.dims());
        match weights.filter(|_| self.rules.channel_weights) {
            None => q.collect(),
            Some(weights) => q.zip(weights).map(|(x, &weight): (f64, _)| x * f64::from(weight)).collect(),
        }
    }

    /// Turns dot products into scores by the rule, without the factor.
    fn apply_rule<T: Copy + Into<f64>>(&self, scores: &mut [f64], q: &[f64], k: ArrayView2<T>, row: Row) {
        match self.rules.score {
            ScoreRule::Dot => {}
            ScoreRule::Cosine => {
                let epsilon = self.rules.epsilon.get();
                let q_norm = norm(ArrayView1::from(q));
                for (score, k) in scores.iter_mut().zip(k.columns()) {
                    *score /= q_norm * norm(k) + epsilon;
                }
            }
            ScoreRule::Relu => {
                let weight = f64::from(self.inputs.head_weight(row));
                scores.iter_mut().for_each(|score| *score = weight * score.max(0.0));
            }
        }
    }
}

fn combined(mut all: Vec<f64>, row: Vec<f64>, combine: impl Fn(f64, f64) -> f64) -> Vec<f64> {
    all.iter_mut().zip(row).for_each(|(all, score)| *all = combine(*all, score));
    all
}

fn norm<T: Copy + Into<f64>>(label: ArrayView1<T>) -> f64 {
    let square = |&x: &T| {
        let x: f64 = x.into();
        x * x
    };
    label.iter().map(square).sum::<f64>().sqrt()
}

#[inline(always)]
fn add_products<T: Copy + Into<f64>>(scores: &mut [f64], q: f64, k: &[T]) {
    for (score, &k) in scores.iter_mut().zip(k) {
        *score += q * k.into();
    }
}

/// Errors: [`Error::HeadMode`] where ranks do not divide the heads, or `summed-labels` meets channels or channel weights that
/// differ between heads, or an additive mask or head weights that do.
pub fn check_head_mode(
    inputs: &Inputs,
    channels: &ChannelOrder,
    label_channels: usize,
    selection: &Selection,
) -> Result<()> {
    selection.rules.ranks.check(selection.heads, &inputs.dims())?;
    if selection.heads != HeadMode::SummedLabels {
        return Ok(());
    }
    let weights = inputs.head_weights_differ_between_heads();
    let differ = [
        (
            !channels.is_shared(label_channels),
            "channel rows that differ between heads",
            "one channel row shared by all heads",
        ),
        (
            selection.rules.channel_weights && !channels.weights_are_shared(label_channels),
            "channel weights that differ between heads",
            "the same channel weights for all heads, as labels are scored once",
        ),
        (
            inputs.attention_mask_differs_between_heads(),
            "an attention_mask that differs between heads",
            "one attention_mask for all heads, as labels are scored once",
        ),
        (
            weights,
            "head_weights that differ between heads",
            "the same head_weights for all heads, as labels are scored once",
        ),
    ];
    match differ.into_iter().find(|(differs, ..)| *differs) {
        None => Ok(()),
        Some((_, what, expected)) => {
            Err(Error::HeadMode(Detail::new("heads", format!("summed-labels with {what}"), expected)))
        }
    }
}

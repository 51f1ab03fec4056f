//! What a selection keeps of exact top-k, layer by layer and head by head.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::results::Recall;
use crate::model::Result;
use crate::torch::Layer;
use crate::torch::attention::logits;

/// Queries of a call that are looked at, evenly spaced.
const QUERIES: i64 = 64;

/// Shares of one call summed over queries, for each head.
#[derive(Debug, Clone, PartialEq)]
pub struct HeadSums {
    keys: Vec<f64>,
    mass: Vec<f64>,
    queries: f64,
}

/// Sums over calls, for each layer and head.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RecallSums {
    keys: Vec<Vec<f64>>,
    mass: Vec<Vec<f64>>,
    /// How many queries were summed, by layer.
    queries: Vec<f64>,
}

/// Shares of exact top-k's keys and of its attention mass that are attended to: `attended` is [1, h, m, n]. Top-k has as many
/// keys as the call's largest row attends to. Errors: those of libtorch.
pub fn recall(layer: &Layer, attended: &Tensor) -> Result<HeadSums> {
    let m = layer.dims.queries as i64;
    let count = m.min(QUERIES);
    // The last query is always one of them.
    let rows = Tensor::f_arange_start(1, count + 1, (Kind::Int64, layer.device()))?;
    let rows = rows.f_mul_scalar(m)?.f_floor_divide_scalar(count)?.f_sub_scalar(1)?;
    let attended = attended.f_index_select(2, &rows)?;
    let logits = logits(&layer.with_queries(&rows)?)?;
    let probabilities = logits.f_softmax(-1, Kind::Float)?;
    let widest = attended.f_sum_dim_intlist(-1, false, Kind::Int64)?.f_max()?.f_int64_value(&[])?;
    let per_head = |share: Tensor| -> Result<Vec<f64>> {
        let sums =
            share.f_to_kind(Kind::Double)?.f_sum_dim_intlist([0i64, 2].as_slice(), false, Kind::Double)?;
        Ok(Vec::try_from(&sums)?)
    };
    let over_keys = |x: &Tensor| x.f_sum_dim_intlist(-1, false, Kind::Float);
    // By logits: where probabilities are equal in f32, logits may still differ.
    let (_, best) = logits.f_topk(widest.max(1), -1, true, false)?;
    let mass = probabilities.f_gather(-1, &best, false)?;
    let kept = attended.f_gather(-1, &best, false)?.f_to_kind(Kind::Float)?;
    // Keys that the query does not see are not top-k's.
    let wanted = logits.f_gather(-1, &best, false)?.f_gt(f64::NEG_INFINITY)?.f_to_kind(Kind::Float)?;
    let keys = over_keys(&kept.f_mul(&wanted)?)?.f_div(&over_keys(&wanted)?)?;
    let selected = over_keys(&probabilities.f_mul(&attended.f_to_kind(Kind::Float)?)?)?;
    let mass = selected.f_div(&over_keys(&mass)?)?;
    Ok(HeadSums { keys: per_head(keys)?, mass: per_head(mass)?, queries: count as f64 })
}

impl RecallSums {
    /// Adds one call of a layer.
    pub fn add(&mut self, layer: usize, call: &HeadSums) {
        let layers = self.queries.len().max(layer + 1);
        self.queries.resize(layers, 0.0);
        self.queries[layer] += call.queries;
        for (sums, call) in [(&mut self.keys, &call.keys), (&mut self.mass, &call.mass)] {
            sums.resize(layers, Vec::new());
            add(&mut sums[layer], call);
        }
    }

    /// Adds the sums of another run.
    pub fn merge(&mut self, other: &Self) {
        for (layer, &queries) in other.queries.iter().enumerate().filter(|(_, queries)| **queries > 0.0) {
            let call = HeadSums { keys: other.keys[layer].clone(), mass: other.mass[layer].clone(), queries };
            self.add(layer, &call);
        }
    }

    /// Means over queries, for `layers` layers; none where nothing was sparse.
    pub fn means(&self, layers: usize) -> Option<Recall> {
        let mean = |sums: &[Vec<f64>]| {
            let layer = |layer: usize| {
                let queries = self.queries.get(layer).copied().unwrap_or(0.0);
                sums.get(layer).into_iter().flatten().map(|sum| sum / queries).collect()
            };
            (0..layers).map(layer).collect()
        };
        let any = self.queries.iter().any(|&queries| queries > 0.0);
        any.then(|| Recall { keys: mean(&self.keys), mass: mean(&self.mass) })
    }
}

fn add(sums: &mut Vec<f64>, call: &[f64]) {
    sums.resize(call.len(), 0.0);
    sums.iter_mut().zip(call).for_each(|(sum, share)| *sum += share);
}

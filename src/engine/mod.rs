//! The decode engine: Double Sparsity as a cache that grows (SPEC §2, and the paper's own data structure). Each key is
//! gathered and quantised once, when it is appended; a step then reads r small codes of every key instead of d numbers,
//! and keys and values of the selected ones only. It gives the masks of the reference in `algorithm` exactly, ties
//! included, and its attention in f32.
//!
//! | what | file |
//! |---|---|
//! | keys and values as they arrive | `rows` |
//! | label codes, and scores from them with an error bound | `codes` |
//! | the H largest of scores known up to an error | `top` |
//! | head modes, exclusions, selection | `labels` |
//! | attention over attended keys | `attended` |
//! | what a step is asked | `query` |
//! | many requests, with pages that they share | `sessions` |

mod attended;
mod codes;
mod labels;
mod query;
mod rows;
mod sessions;
mod top;

use ndarray::{Array4, ArrayView4};
use pulp::Arch;

use attended::Attend;
pub use attended::Attended;
pub use query::Query;
pub use sessions::Sessions;

use crate::algorithm::error::Result;
use crate::algorithm::maskers::{Local, Oracle, Sink};
use crate::algorithm::select::select;
use crate::algorithm::{ChannelOrder, Detail, Dims, Error, Mask, Row, Selection, Storage};
use crate::compute;
use labels::{LabelCache, index};
use query::{Checked, check_shape, stored};
use rows::Rows;

/// The sizes of a layer that do not change while it grows (SPEC §1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// b
    pub batch: usize,
    /// h
    pub heads: usize,
    /// hk
    pub kv_heads: usize,
    /// d
    pub head_dim: usize,
    /// dv
    pub value_dim: usize,
    /// The type that q, k and v are rounded to; keys and values are kept in it.
    pub storage: Storage,
}

/// One masker of a list: each adds keys to a row, in the order of the list (SPEC §2.10).
#[derive(Debug, Clone, PartialEq)]
pub enum EngineMasker {
    /// The first keys.
    Sink(Sink),
    /// The last keys up to and including the query's own position.
    Local(Local),
    /// The keys with the largest exact scores; reads every key in full, as the reference does.
    Oracle(Oracle),
    /// The keys with the largest label scores; keeps a label cache.
    DoubleSparsity {
        /// H, G, B, the head mode and the dense fallback.
        selection: Selection,
        /// C of this layer.
        channels: ChannelOrder,
    },
    /// Every key: a layer that stays dense.
    Dense,
}

/// How much memory the cache takes, all heads and batch entries together, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bytes {
    /// Codes, offsets, steps and error bounds of all label caches.
    pub labels: usize,
    /// Keys and values.
    pub rows: usize,
}

/// A masker with its cache.
#[derive(Debug, Clone)]
enum Stage {
    Plain(EngineMasker),
    Labels(LabelCache),
}

/// The cache of one attention layer: keys, values and labels.
#[derive(Debug, Clone)]
pub struct Engine {
    /// The sizes, with the keys so far.
    dims: Dims,
    storage: Storage,
    stages: Vec<Stage>,
    /// [b, hk]
    rows: Vec<Rows>,
}

/// The result of a step.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// The attended keys of each row (batch, head, query), in row-major order.
    pub attended: Vec<Attended>,
    /// [b, h, m, dv]
    pub output: Array4<f32>,
    dims: Dims,
}

impl Step {
    /// The attended keys as a mask [b, h, m, n].
    ///
    /// Errors: none for a step of an engine.
    pub fn mask(&self) -> Result<Mask> {
        let mut weights = Array4::zeros(self.dims.mask_shape());
        for (row, attended) in weights.lanes_mut(ndarray::Axis(3)).into_iter().zip(&self.attended) {
            let mut row = row;
            attended.keys.iter().zip(&attended.weights).for_each(|(&key, &weight)| row[key] = weight);
        }
        Mask::from_weights(weights, &self.dims)
    }
}

impl Engine {
    /// An empty cache.
    ///
    /// Errors: [`Error::Shape`] for a size of 0 or heads that the KV heads do not divide; G not dividing d, channels that
    /// do not fit, anything but the published algorithm, `summed-labels` without shared channels.
    pub fn new(layout: Layout, maskers: Vec<EngineMasker>) -> Result<Self> {
        let Layout { batch, heads, kv_heads, head_dim, value_dim, storage } = layout;
        let sizes = [batch, heads, kv_heads, head_dim, value_dim];
        if sizes.contains(&0) || !heads.is_multiple_of(kv_heads) {
            let expected = "sizes above 0, kv_heads dividing heads";
            return Err(Error::Shape(Detail::new("layout", format!("{layout:?}"), expected)));
        }
        let dims = Dims { batch, heads, kv_heads, queries: 1, keys: 0, head_dim, value_dim };
        let stage = |masker: EngineMasker| match masker {
            EngineMasker::DoubleSparsity { selection, channels } => {
                LabelCache::new(&dims, &channels, selection, storage).map(Stage::Labels)
            }
            masker => Ok(Stage::Plain(masker)),
        };
        let stages = maskers.into_iter().map(stage).collect::<Result<_>>()?;
        let rows = vec![Rows::new(storage, head_dim + value_dim); batch * kv_heads];
        Ok(Self { dims, storage, stages, rows })
    }

    /// n, the keys so far.
    pub fn keys(&self) -> usize {
        self.dims.keys
    }

    /// The memory that the keys so far take.
    pub fn bytes(&self) -> Bytes {
        let labels = self.stages.iter().map(|stage| match stage {
            Stage::Labels(cache) => cache.bytes(),
            Stage::Plain(_) => 0,
        });
        Bytes { labels: labels.sum(), rows: self.rows.iter().map(Rows::bytes).sum() }
    }

    /// Appends t keys [b, hk, t, d], after RoPE, and values [b, hk, t, dv]. Where an error is returned, nothing is
    /// appended.
    ///
    /// Errors: [`Error::Shape`]; [`Error::NotFinite`] for NaN or ±∞, also after rounding to the storage type.
    pub fn append(&mut self, k: ArrayView4<f32>, v: ArrayView4<f32>) -> Result<()> {
        let Dims { batch, kv_heads, head_dim, value_dim, .. } = self.dims;
        check_shape("k", k.shape(), [Some(batch), Some(kv_heads), None, Some(head_dim)])?;
        let new = k.dim().2;
        check_shape("v", v.shape(), [Some(batch), Some(kv_heads), Some(new), Some(value_dim)])?;
        let (k, v) = (stored("k", k, self.storage)?, stored("v", v, self.storage)?);
        for (index, rows) in self.rows.iter_mut().enumerate() {
            let head = ndarray::s![index / kv_heads, index % kv_heads, .., ..];
            for (key, value) in k.slice(head).outer_iter().zip(v.slice(head).outer_iter()) {
                rows.push(key.to_slice().unwrap_or_default(), value.to_slice().unwrap_or_default());
            }
        }
        for stage in &mut self.stages {
            if let Stage::Labels(cache) = stage {
                cache.append(&k, self.dims.keys);
            }
        }
        self.dims.keys += new;
        Ok(())
    }

    /// Takes back all keys but the first `keys`; fewer than that stay.
    pub fn truncate(&mut self, keys: usize) {
        self.rows.iter_mut().for_each(|rows| rows.truncate(keys));
        for stage in &mut self.stages {
            if let Stage::Labels(cache) = stage {
                cache.truncate(keys);
            }
        }
        self.dims.keys = self.dims.keys.min(keys);
    }

    /// Selects and attends with the queries of the last m positions.
    ///
    /// Errors: those of the end of SPEC §2: shapes, numbers that are not finite, labels that leave the storage type,
    /// `summed-labels` with an A that differs between heads.
    pub fn step(&self, query: &Query) -> Result<Step> {
        let query = Checked::new(query, self.dims, self.storage)?;
        let attended = self.attended(&query)?;
        Ok(Step { output: self.attend_rows(&query, &attended), attended, dims: query.dims })
    }

    /// The first half of [`Engine::step`]: the attended keys of each row. Same errors.
    pub fn select(&self, query: &Query) -> Result<Vec<Attended>> {
        self.attended(&Checked::new(query, self.dims, self.storage)?)
    }

    /// The second half: the output [b, h, m, dv] for the attended keys of each row.
    ///
    /// Errors: those of [`Engine::step`]; [`Error::Shape`] unless there is one list of ascending keys below n, with as
    /// many weights, for each row.
    pub fn attend(&self, query: &Query, attended: &[Attended]) -> Result<Array4<f32>> {
        let query = Checked::new(query, self.dims, self.storage)?;
        let fits = |row: &Attended| {
            let ascending = row.keys.is_sorted_by(|a, b| a < b);
            ascending
                && row.keys.len() == row.weights.len()
                && row.keys.last().is_none_or(|&key| key < self.dims.keys)
        };
        let rows = query.dims.rows().count();
        if attended.len() != rows || !attended.iter().all(fits) {
            let expected =
                format!("{rows} lists of ascending keys below {}, with a weight each", self.dims.keys);
            let found = format!("{} lists", attended.len());
            return Err(Error::Shape(Detail::new("attended", found, expected)));
        }
        Ok(self.attend_rows(&query, attended))
    }

    fn attended(&self, query: &Checked) -> Result<Vec<Attended>> {
        let dims = query.dims;
        let mut attended = query.before();
        for stage in &self.stages {
            let masker = match stage {
                Stage::Labels(cache) => {
                    let selected = cache.select(query, &self.rows, &attended)?;
                    attended.iter_mut().zip(selected).for_each(|(row, keys)| row.add(keys));
                    continue;
                }
                Stage::Plain(masker) => masker,
            };
            let rows: Vec<_> = dims.rows().zip(&mut attended).collect();
            let work = if matches!(masker, EngineMasker::Oracle(_)) { dims.operations() } else { 0 };
            compute::map(rows, work, |(row, attended)| match masker {
                EngineMasker::Sink(sink) => attended.add(0..sink.size.resolve(dims.keys)),
                EngineMasker::Local(local) => {
                    let end = dims.position(row.2) + 1;
                    attended.add(end.saturating_sub(local.size.resolve(dims.keys))..end);
                }
                EngineMasker::Oracle(oracle) => attended.add(self.best(query, row, *oracle, attended)),
                EngineMasker::Dense | EngineMasker::DoubleSparsity { .. } => attended.add(0..dims.keys),
            });
        }
        Ok(attended)
    }

    /// The keys with the largest exact scores, in the reference's arithmetic.
    fn best(
        &self,
        query: &Checked,
        row @ (batch, head, _): Row,
        oracle: Oracle,
        attended: &Attended,
    ) -> Vec<usize> {
        let dims = query.dims;
        let rows = &self.rows[batch * dims.kv_heads + dims.kv_head(head)];
        let mut scratch = vec![0.0; dims.head_dim];
        let score = |key| {
            let k = rows.part(key, 0..dims.head_dim, &mut scratch);
            let dot: f64 = query.q(row).iter().zip(k).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum();
            dot * query.scaling + f64::from(query.additive(row, key))
        };
        let scores: Vec<f64> = (0..dims.keys).map(score).collect();
        let excluded = |key| attended.keys.binary_search(&key).is_ok();
        select(&scores, excluded, oracle.heavy_size.resolve(dims.keys))
    }

    fn attend_rows(&self, query: &Checked, attended: &[Attended]) -> Array4<f32> {
        let dims = query.dims;
        let mut output = Array4::zeros(dims.output_shape());
        let lanes = output.as_slice_mut().unwrap_or_default().chunks_exact_mut(dims.value_dim);
        let rows: Vec<_> = dims.rows().zip(lanes).collect();
        let work =
            attended.iter().map(|row| row.keys.len()).sum::<usize>() * (dims.head_dim + dims.value_dim);
        let arch = Arch::new();
        compute::map(rows, work, |(row @ (batch, head, _), output)| {
            let rows = &self.rows[batch * dims.kv_heads + dims.kv_head(head)];
            // The scaling is rounded once more, within the three roundings that SPEC §5 allows it.
            arch.dispatch(Attend {
                rows,
                query: query.q(row),
                scaling: query.scaling as f32,
                attended: &attended[index(&dims, row)],
                additive: |key| query.additive(row, key),
                output,
            });
        });
        output
    }

    /// The label codes of a key that a query head reads, r of them, as the first label cache keeps them: those of SPEC §2.5
    /// where B is at most 8, a coarse view of the labels otherwise. `None` without a label cache, or beyond its keys.
    pub fn codes(&self, batch: usize, head: usize, key: usize) -> Option<Vec<u8>> {
        let known = batch < self.dims.batch && head < self.dims.heads && key < self.dims.keys;
        let cache = self.stages.iter().find_map(|stage| match stage {
            Stage::Labels(cache) => Some(cache),
            Stage::Plain(_) => None,
        })?;
        known.then(|| cache.codes(batch, head).codes(key))
    }
}

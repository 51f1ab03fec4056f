//! What an evaluation found: quality against what is read of the cache, for each masker.

use serde::{Deserialize, Serialize};

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Measure {
    /// exp of the mean negative log likelihood of a token; lower is better.
    Perplexity,
    /// Token-level F1 of answers, in percent; higher is better.
    F1,
    /// Answers that hold the value asked for, in percent; higher is better.
    Accuracy,
}

/// Which part of a prompt is attended to sparsely (SPEC D15).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Setup {
    /// A, as the author's evaluation: the whole prompt is dense, sparse from the first generated token on.
    Prompt,
    /// B, as the port's: the context is dense, question and answer are sparse.
    Context,
}

/// The whole result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Version of this crate.
    pub version: String,
    /// The model's name, from its file.
    pub model: String,
    /// SHA-256 of the model's file.
    pub model_sha256: String,
    /// Layers.
    pub layers: usize,
    /// h
    pub heads: usize,
    /// hk
    pub kv_heads: usize,
    /// d
    pub head_dim: usize,
    /// Where it was computed.
    pub device: String,
    /// Where the channels come from.
    pub channels: String,
    /// One line: which text or items, how long.
    pub task: String,
    /// The tasks that were joined, where there are several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub texts: Vec<String>,
    /// What is measured.
    pub measure: Measure,
    /// Which part is sparse.
    pub setup: Setup,
    /// Layers that stay dense.
    pub dense_layers: Vec<usize>,
    /// One for each masker and heavy size; the first is dense attention.
    pub rows: Vec<ContenderResult>,
    /// What a reader should know.
    pub notes: Vec<String>,
    /// The command line.
    pub command: String,
    /// Wall-clock time of all rows, that of earlier runs with the same progress too; prefilling is not counted.
    pub seconds: f64,
}

/// What one masker did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContenderResult {
    /// `dense`, `oracle`, `per-head`, `summed-scores`, `summed-labels`, `random keys`, or a fault: `first-layers-channels (D4)`.
    /// Rows of one name differ in H, G and B; those of one G and B make one curve.
    pub masker: String,
    /// Who selected: `torch`, `reference`, `engine`, a command.
    pub subject: String,
    /// H; none for dense.
    pub heavy_size: Option<usize>,
    /// G, where labels are used.
    pub group_factor: Option<usize>,
    /// B, where labels are used.
    pub label_bits: Option<u8>,
    /// Keys attended to, mean over sparse layers, heads and queries.
    pub keys_read: f64,
    /// Keys there were to attend to, mean over the same.
    pub keys_held: f64,
    /// Bytes of labels, keys and values that a decode step reads in one sparse layer, at two bytes a number.
    pub bytes: f64,
    /// What the measure is averaged over, in the same order for every row.
    pub units: Vec<Unit>,
    /// The measure with its 95 % interval.
    pub quality: Interval,
    /// Perplexity divided by dense attention's on the same tokens; for F1 and accuracy the difference to dense attention's.
    /// None for dense.
    pub against_dense: Option<Interval>,
    /// The same in each of [`Evaluation::texts`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub by_text: Vec<Interval>,
    /// What the selection keeps of exact top-k's. None for dense.
    pub recall: Option<Recall>,
    /// Wall-clock time.
    pub seconds: f64,
}

/// A block of scored tokens, or one item.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Unit {
    /// Negative log likelihood summed over the block's tokens, or the item's score in percent.
    pub sum: f64,
    /// Tokens; 1 for an item.
    pub count: f64,
}

/// A figure and its 95 % bootstrap interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The figure.
    pub value: f64,
    /// 2.5 % of resamples lie below.
    pub low: f64,
    /// 2.5 % of resamples lie above.
    pub high: f64,
}

/// Shares of what exact top-k of the same H selects that a selection keeps, mean over queries: [layer][query head]. A dense
/// layer has an empty list.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Recall {
    /// Share of exact top-k's keys.
    pub keys: Vec<Vec<f64>>,
    /// Share of exact top-k's attention mass (softmax over all keys); at most 1, but for ties.
    pub mass: Vec<Vec<f64>>,
}

impl Recall {
    /// The mean over all layers and heads that were sparse; None where there are none.
    pub fn mean(cells: &[Vec<f64>]) -> Option<f64> {
        let all: Vec<f64> = cells.iter().flatten().copied().collect();
        (!all.is_empty()).then(|| all.iter().sum::<f64>() / all.len() as f64)
    }
}

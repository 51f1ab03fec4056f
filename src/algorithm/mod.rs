//! The reference: Double Sparsity in plain Rust, one file per step of SPEC §2, written to be obviously right. Of
//! the rest of the crate it imports only `compute`.
//!
//! | step | file |
//! |---|---|
//! | 1 heavy size | `heavy_size` |
//! | 2 early outs | `maskers` |
//! | 3, 4 KV heads, labels | `labels` (rows of channels: `channels`) |
//! | 5 quantisation | `quantize` |
//! | 6, 7 scores, heads | `scores` |
//! | other rules of 5, 6, 9 | `rules` |
//! | 8, 9 exclusions, selection | `select` |
//! | 10 mask | `mask` |
//! | 11 attention | `attention` |
//! | §4 calibration | `calibrate` |

pub mod attention;
pub mod calibrate;
pub mod channels;
pub mod config;
pub mod error;
pub mod heavy_size;
pub mod inputs;
pub mod labels;
pub mod lengths;
pub mod mask;
pub mod maskers;
pub mod quantize;
pub mod rules;
pub mod scores;
pub mod select;
pub mod storage;

pub use channels::{ChannelFile, ChannelOrder};
pub use config::{AttentionConfig, ChannelKind, GroupFactor, HeadMode, LabelBits, MaskerConfig, Selection};
pub use error::{Detail, Error};
pub use heavy_size::HeavySize;
pub use inputs::{Dims, InputParts, Inputs, Row};
pub use lengths::{Lengths, Padding};
pub use mask::Mask;
pub use maskers::{Masker, SparseAttention};
pub use rules::{Forced, QuantisedLabels, Ranks, Rules, ScoreFactor, ScoreRule};
pub use storage::{Precision, Storage};

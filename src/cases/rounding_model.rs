//! How an implementation says it rounds (SPEC §5). Verdicts are derived from this and from nothing else.

use serde::{Deserialize, Serialize};

pub use crate::algorithm::Precision;

/// What an implementation declares about its arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoundingModel {
    /// How labels are quantised.
    pub labels: LabelRounding,
    /// What scores and attention weights are kept in after each operation.
    pub kept: Precision,
    /// What sums of products are accumulated in.
    pub accumulation: Accumulation,
}

/// How labels are quantised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LabelRounding {
    /// The operations of SPEC §2.5 in that order: codes are fixed, labels are compared bit for bit.
    Exact,
    /// Within rounding of a half step both codes are allowed.
    Rounded,
}

/// The type of a sum of products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accumulation {
    /// f32 or wider.
    F32,
    /// f64.
    F64,
}

impl RoundingModel {
    /// The author's code and sparse-attention-hub: labels exact, scores kept in storage, f32 sums.
    pub const PYTORCH: Self =
        Self { labels: LabelRounding::Exact, kept: Precision::Storage, accumulation: Accumulation::F32 };

    /// Kernels that keep everything in f32: labels exact, scores kept in f32, f32 sums.
    pub const F32: Self =
        Self { labels: LabelRounding::Exact, kept: Precision::F32, accumulation: Accumulation::F32 };

    /// The reference of this crate: labels exact, scores kept in f32 or wider, f64 sums.
    pub const REFERENCE: Self =
        Self { labels: LabelRounding::Exact, kept: Precision::F32, accumulation: Accumulation::F64 };
}

impl Default for RoundingModel {
    fn default() -> Self {
        Self::PYTORCH
    }
}

impl std::fmt::Display for RoundingModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let labels = match self.labels {
            LabelRounding::Exact => "exact",
            LabelRounding::Rounded => "rounded",
        };
        let kept = match self.kept {
            Precision::F32 => "f32",
            Precision::Storage => "storage",
        };
        let accumulation = match self.accumulation {
            Accumulation::F32 => "f32",
            Accumulation::F64 => "f64",
        };
        write!(f, "{labels}, {kept}, {accumulation}")
    }
}

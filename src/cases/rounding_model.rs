//! How an implementation says it rounds (SPEC §5). Verdicts are derived from this and from nothing else.

use serde::{Deserialize, Serialize};

pub use crate::algorithm::Precision;

/// What an implementation declares about its arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "RoundingModelFields", into = "RoundingModelFields")]
pub struct RoundingModel {
    /// How labels are quantised.
    pub labels: LabelRounding,
    /// What label scores and the logits of the attention are kept in after each operation.
    pub scores_kept: Precision,
    /// What exp and everything that follows it are kept in after each operation.
    pub weights_kept: Precision,
    /// What sums of products are accumulated in.
    pub accumulation: Accumulation,
}

/// The JSON form of a [`RoundingModel`]: `kept` sets both `scores_kept` and `weights_kept`, each of which goes before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RoundingModelFields {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    labels: Option<LabelRounding>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kept: Option<Precision>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scores_kept: Option<Precision>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    weights_kept: Option<Precision>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    accumulation: Option<Accumulation>,
}

#[cfg(feature = "process")]
impl RoundingModelFields {
    /// The model, with what is left out as in `default`.
    pub(crate) fn or(self, default: RoundingModel) -> RoundingModel {
        RoundingModel {
            labels: self.labels.unwrap_or(default.labels),
            scores_kept: self.scores_kept.or(self.kept).unwrap_or(default.scores_kept),
            weights_kept: self.weights_kept.or(self.kept).unwrap_or(default.weights_kept),
            accumulation: self.accumulation.unwrap_or(default.accumulation),
        }
    }
}

impl TryFrom<RoundingModelFields> for RoundingModel {
    type Error = String;

    /// Errors: a field that is left out.
    fn try_from(fields: RoundingModelFields) -> Result<Self, String> {
        let missing = |field: &str| format!("missing field `{field}`");
        Ok(Self {
            labels: fields.labels.ok_or_else(|| missing("labels"))?,
            scores_kept: fields.scores_kept.or(fields.kept).ok_or_else(|| missing("kept"))?,
            weights_kept: fields.weights_kept.or(fields.kept).ok_or_else(|| missing("kept"))?,
            accumulation: fields.accumulation.ok_or_else(|| missing("accumulation"))?,
        })
    }
}

impl From<RoundingModel> for RoundingModelFields {
    fn from(model: RoundingModel) -> Self {
        let apart = model.scores_kept != model.weights_kept;
        Self {
            labels: Some(model.labels),
            kept: (!apart).then_some(model.scores_kept),
            scores_kept: apart.then_some(model.scores_kept),
            weights_kept: apart.then_some(model.weights_kept),
            accumulation: Some(model.accumulation),
        }
    }
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

/// What makes a model allow more.
type Change = fn(&mut RoundingModel);

impl RoundingModel {
    /// The author's code and sparse-attention-hub: labels exact, scores kept in storage, f32 sums.
    pub const PYTORCH: Self = Self::new(LabelRounding::Exact, Precision::Storage, Accumulation::F32);

    /// Kernels that keep everything in f32: labels exact, scores kept in f32, f32 sums.
    pub const F32: Self = Self::new(LabelRounding::Exact, Precision::F32, Accumulation::F32);

    /// The reference of this crate: labels exact, scores kept in f32 or wider, f64 sums.
    pub const REFERENCE: Self = Self::new(LabelRounding::Exact, Precision::F32, Accumulation::F64);

    /// Scores and weights are kept in the same type.
    pub const fn new(labels: LabelRounding, kept: Precision, accumulation: Accumulation) -> Self {
        Self { labels, scores_kept: kept, weights_kept: kept, accumulation }
    }

    /// The models that allow more than this one, each with what it allows, in words: those of one change first.
    pub fn wider(self) -> Vec<(Self, String)> {
        let changes: [(&str, Change); 4] = [
            ("sums accumulated in f32", |model| model.accumulation = Accumulation::F32),
            ("weights kept in storage", |model| model.weights_kept = Precision::Storage),
            ("labels rounded", |model| model.labels = LabelRounding::Rounded),
            ("scores kept in storage", |model| model.scores_kept = Precision::Storage),
        ];
        let changed = |change: Change| {
            let mut model = self;
            change(&mut model);
            model != self
        };
        let possible: Vec<_> = changes.into_iter().filter(|&(_, change)| changed(change)).collect();
        let mut sets: Vec<u32> = (1..1 << possible.len()).collect();
        sets.sort_by_key(|set| set.count_ones());
        let model = |set: u32| {
            let mut model = self;
            let chosen = possible.iter().enumerate().filter(|(index, _)| set >> index & 1 == 1);
            let words: Vec<_> = chosen
                .map(|(_, (words, change))| {
                    change(&mut model);
                    *words
                })
                .collect();
            (model, words.join(" and "))
        };
        sets.into_iter().map(model).collect()
    }
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
        let name = |kept: Precision| match kept {
            Precision::F32 => "f32",
            Precision::Storage => "storage",
        };
        let kept = if self.scores_kept == self.weights_kept {
            name(self.scores_kept).to_owned()
        } else {
            format!("scores {} weights {}", name(self.scores_kept), name(self.weights_kept))
        };
        let accumulation = match self.accumulation {
            Accumulation::F32 => "f32",
            Accumulation::F64 => "f64",
        };
        write!(f, "{labels}, {kept}, {accumulation}")
    }
}

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
    /// What is multiplied in the scores of labels.
    pub score_products: Products,
    /// What is multiplied in the attention.
    pub attention_products: Products,
    /// Where q is multiplied by the factor of scores and by the scaling of the attention.
    pub factor: FactorOrder,
    /// What exp is given.
    pub exp: Exponent,
    /// How exact exp is, in units in the last place of f32.
    pub exp_ulps: u16,
}

/// The JSON form of a [`RoundingModel`]: `kept` sets both `scores_kept` and `weights_kept`, each of which goes before it, and so does
/// `products` for `score_products` and `attention_products`.
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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    products: Option<Products>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    score_products: Option<Products>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    attention_products: Option<Products>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    factor: Option<FactorOrder>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    exp: Option<Exponent>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    exp_ulps: Option<u16>,
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
            ..self.with_later(default)
        }
    }
}

impl RoundingModelFields {
    /// What came after the first four fields, with what is left out as in `default`.
    fn with_later(self, default: RoundingModel) -> RoundingModel {
        RoundingModel {
            score_products: self.score_products.or(self.products).unwrap_or(default.score_products),
            attention_products: self
                .attention_products
                .or(self.products)
                .unwrap_or(default.attention_products),
            factor: self.factor.unwrap_or(default.factor),
            exp: self.exp.unwrap_or(default.exp),
            exp_ulps: self.exp_ulps.unwrap_or(default.exp_ulps),
            ..default
        }
    }
}

impl TryFrom<RoundingModelFields> for RoundingModel {
    type Error = String;

    /// Errors: one of the first four fields that is left out.
    fn try_from(fields: RoundingModelFields) -> Result<Self, String> {
        let missing = |field: &str| format!("missing field `{field}`");
        Ok(Self {
            labels: fields.labels.ok_or_else(|| missing("labels"))?,
            scores_kept: fields.scores_kept.or(fields.kept).ok_or_else(|| missing("kept"))?,
            weights_kept: fields.weights_kept.or(fields.kept).ok_or_else(|| missing("kept"))?,
            accumulation: fields.accumulation.ok_or_else(|| missing("accumulation"))?,
            ..fields.with_later(Self::PYTORCH)
        })
    }
}

impl From<RoundingModel> for RoundingModelFields {
    fn from(model: RoundingModel) -> Self {
        let apart = model.scores_kept != model.weights_kept;
        let default = RoundingModel::PYTORCH;
        let products_apart = model.score_products != model.attention_products;
        let products = (model.score_products != default.score_products).then_some(model.score_products);
        Self {
            labels: Some(model.labels),
            kept: (!apart).then_some(model.scores_kept),
            scores_kept: apart.then_some(model.scores_kept),
            weights_kept: apart.then_some(model.weights_kept),
            accumulation: Some(model.accumulation),
            products: products.filter(|_| !products_apart),
            score_products: products_apart.then_some(model.score_products),
            attention_products: products_apart.then_some(model.attention_products),
            factor: (model.factor != default.factor).then_some(model.factor),
            exp: (model.exp != default.exp).then_some(model.exp),
            exp_ulps: (model.exp_ulps != default.exp_ulps).then_some(model.exp_ulps),
        }
    }
}

/// How labels are quantised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LabelRounding {
    /// The operations of SPEC §2.5 in that order: codes are fixed, labels are compared bit for bit.
    Exact,
    /// As `exact`, with the scale (2^B − 1) / range in one operation.
    Quotient,
    /// As `exact`, with the step range / (2^B − 1): code = (x − lo) / step, label = code · step + lo.
    Step,
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

/// What is multiplied in sums of products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Products {
    /// The numbers as they are.
    Exact,
    /// Each rounded or cut to the 11 significant bits of tf32.
    Tf32,
    /// The numbers as they are, each product rounded to the type of q, k and v.
    Storage,
}

/// Where a factor is multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FactorOrder {
    /// Into the sum of products.
    After,
    /// Into q, which is then rounded to the type of scores.
    Before,
}

/// What exp is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Exponent {
    /// The difference of a logit from the maximum.
    Natural,
    /// exp2 of differences of logits that were multiplied by log2 e, with the scaling, and rounded so.
    Prescaled,
    /// As `natural`, by an intrinsic whose error grows with its argument, as CUDA's `__expf`.
    Fast,
}

/// A change that makes a model allow more.
type Change = fn(&mut RoundingModel);

/// Changes, narrow ones first. Of one line one at most is made: a field of the model cannot have two values.
const CHANGES: [&[(&str, Change)]; 10] = [
    &[("sums accumulated in f32", |model| model.accumulation = Accumulation::F32)],
    &[("weights kept in storage", |model| model.weights_kept = Precision::Storage)],
    &[
        ("labels by a quotient", |model| model.labels = LabelRounding::Quotient),
        ("labels by a step", |model| model.labels = LabelRounding::Step),
        ("labels rounded", |model| model.labels = LabelRounding::Rounded),
    ],
    &[("scores kept in storage", |model| model.scores_kept = Precision::Storage)],
    &[
        ("exp of prescaled logits", |model| model.exp = Exponent::Prescaled),
        ("fast exp", |model| model.exp = Exponent::Fast),
    ],
    &[
        ("exp within 16 units in the last place", |model| model.exp_ulps = 16),
        ("exp within 256 units in the last place", |model| model.exp_ulps = 256),
        ("exp within 4096 units in the last place", |model| model.exp_ulps = 4096),
    ],
    &[("weights kept in f16", |model| model.weights_kept = Precision::F16)],
    &[
        ("products of scores in tf32", |model| model.score_products = Products::Tf32),
        ("products of the attention in tf32", |model| model.attention_products = Products::Tf32),
        ("products in tf32", |model| {
            (model.score_products, model.attention_products) = (Products::Tf32, Products::Tf32);
        }),
        ("products of scores rounded to storage", |model| model.score_products = Products::Storage),
        ("products of the attention rounded to storage", |model| {
            model.attention_products = Products::Storage;
        }),
        ("products rounded to storage", |model| {
            (model.score_products, model.attention_products) = (Products::Storage, Products::Storage);
        }),
    ],
    &[("the factor before the sum", |model| model.factor = FactorOrder::Before)],
    &[("scores kept in f16", |model| model.scores_kept = Precision::F16)],
];

/// How many changes are made together at most.
const MOST_CHANGES: usize = 4;

impl RoundingModel {
    /// The author's code and sparse-attention-hub: labels exact, scores kept in storage, f32 sums.
    pub const PYTORCH: Self = Self::new(LabelRounding::Exact, Precision::Storage, Accumulation::F32);

    /// Kernels that keep everything in f32: labels exact, scores kept in f32, f32 sums.
    pub const F32: Self = Self::new(LabelRounding::Exact, Precision::F32, Accumulation::F32);

    /// The reference of this crate: labels exact, scores kept in f32 or wider, f64 sums.
    pub const REFERENCE: Self = Self::new(LabelRounding::Exact, Precision::F32, Accumulation::F64);

    /// Scores and weights are kept in the same type.
    pub const fn new(labels: LabelRounding, kept: Precision, accumulation: Accumulation) -> Self {
        Self {
            labels,
            scores_kept: kept,
            weights_kept: kept,
            accumulation,
            score_products: Products::Exact,
            attention_products: Products::Exact,
            factor: FactorOrder::After,
            exp: Exponent::Natural,
            exp_ulps: 2,
        }
    }

    /// The models that allow more than this one, or other things, each with what it allows, in words: those of one change first.
    /// The four changes that came first are made in any number, others alone or in pairs.
    pub fn wider(self) -> Vec<(Self, String)> {
        let mut sets: Vec<(Self, Vec<&str>)> = vec![(self, Vec::new())];
        for (field, changes) in CHANGES.iter().enumerate() {
            let most = if field < 4 { MOST_CHANGES } else { 2 };
            for (model, words) in sets.clone().into_iter().filter(|(_, words)| words.len() < most) {
                for (word, change) in *changes {
                    let mut changed = model;
                    change(&mut changed);
                    let again = |kept: fn(&Self) -> Precision| {
                        kept(&model) != kept(&self) && kept(&changed) != kept(&model)
                    };
                    let narrower = self.labels == LabelRounding::Rounded && changed.labels != self.labels;
                    let undone =
                        narrower || again(|model| model.weights_kept) || again(|model| model.scores_kept);
                    if changed != model && !undone && changed.exp_ulps >= self.exp_ulps {
                        sets.push((changed, [words.as_slice(), &[*word]].concat()));
                    }
                }
            }
        }
        sets.remove(0);
        // Those with as many changes stay in their order.
        sets.sort_by_key(|(_, words)| words.len());
        sets.into_iter().map(|(model, words)| (model, words.join(" and "))).collect()
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
            LabelRounding::Quotient => "quotient",
            LabelRounding::Step => "step",
            LabelRounding::Rounded => "rounded",
        };
        let name = |kept: Precision| match kept {
            Precision::F32 => "f32",
            Precision::F16 => "f16",
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
        write!(f, "{labels}, {kept}, {accumulation}")?;
        let of = |products: Products| match products {
            Products::Exact => None,
            Products::Tf32 => Some("in tf32"),
            Products::Storage => Some("rounded to storage"),
        };
        match (of(self.score_products), of(self.attention_products)) {
            (Some(scores), Some(attention)) if scores == attention => write!(f, ", products {scores}")?,
            (scores, attention) => {
                scores.map_or(Ok(()), |scores| write!(f, ", products of scores {scores}"))?;
                attention.map_or(Ok(()), |attention| write!(f, ", products of the attention {attention}"))?;
            }
        }
        match self.factor {
            FactorOrder::After => {}
            FactorOrder::Before => f.write_str(", factor before the sum")?,
        }
        match self.exp {
            Exponent::Natural => {}
            Exponent::Prescaled => f.write_str(", exp of prescaled logits")?,
            Exponent::Fast => f.write_str(", fast exp")?,
        }
        match self.exp_ulps {
            2 => Ok(()),
            ulps => write!(f, ", exp within {ulps} units in the last place"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_that_are_left_out_have_their_defaults_and_are_not_written() {
        let text = r#"{"labels":"exact","kept":"storage","accumulation":"f32"}"#;
        let model: RoundingModel = serde_json::from_str(text).unwrap();
        assert_eq!((model, serde_json::to_string(&model).unwrap().as_str()), (RoundingModel::PYTORCH, text));
        let text = concat!(
            r#"{"labels":"exact","kept":"f16","accumulation":"f32","score_products":"exact","#,
            r#""attention_products":"tf32","factor":"before","exp":"fast","exp_ulps":9}"#
        );
        let model: RoundingModel = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&model).unwrap(), text);
        for wrong in [
            r#"{"labels":"exact","kept":"f16"}"#,
            r#"{"labels":"exact","kept":"f8","accumulation":"f32"}"#,
            r#"{"labels":"exact","kept":"f32","accumulation":"f32","products":"bf16"}"#,
            r#"{"labels":"exact","kept":"f32","accumulation":"f32","exp_ulps":-1}"#,
        ] {
            assert!(serde_json::from_str::<RoundingModel>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn wider_models_come_by_how_much_they_change() {
        let wider = RoundingModel::F32.wider();
        let words: Vec<_> = wider.iter().map(|(_, words)| words.as_str()).collect();
        assert_eq!(words[0], "weights kept in storage");
        let changes = |words: &str| words.matches(" and ").count();
        assert!(words.is_sorted_by_key(|words| changes(words)) && wider.len() > 50);
        let mut models: Vec<_> = wider.iter().map(|(model, _)| *model).collect();
        models.dedup();
        assert!(models.len() == wider.len() && !models.contains(&RoundingModel::F32));
        assert!(words.contains(&"exp within 256 units in the last place and products in tf32"));
        assert!(words.contains(&"weights kept in storage and labels rounded and scores kept in storage"));
    }
}

//! What else than the published algorithm libtorch computes (SPEC §2.12): the score of one head and key from a product of labels,
//! heads taken together, and forced keys. Scores are f32.

use tch::{Kind, Tensor};

use super::error::Result;
use super::masker::positions;
use crate::algorithm::config::Combined;
use crate::algorithm::{
    Detail, Dims, Error, Forced, HeadMode, QuantisedLabels, Rules, ScoreFactor, ScoreRule, Selection,
};

/// Errors: [`Error::HeadMode`] for rules that are not computed here.
pub fn check(selection: &Selection) -> std::result::Result<(), Error> {
    let others = Rules {
        quantised: QuantisedLabels::default(),
        score: ScoreRule::default(),
        factor: ScoreFactor::default(),
        forced: Forced::default(),
        ..selection.rules
    };
    // ε matters to the cosine alone.
    if others == (Rules { epsilon: others.epsilon, ..Rules::default() }) {
        return Ok(());
    }
    let found = serde_json::json!(selection.rules).to_string();
    let expected = "quantised, score, epsilon, factor and forced only";
    Err(Error::HeadMode(Detail::new("rules", found, expected)))
}

/// What the score of a row depends on besides its product of labels.
pub struct ScoreParts<'a> {
    /// Norms of the labels of queries [.., m] and of keys [.., n], for `cosine`.
    pub norms: Option<(Tensor, Tensor)>,
    /// w [b, h or 1, m, 1], for `relu`; `None` where it is 1.
    pub head_weights: Option<Tensor>,
    /// A in f32, broadcastable to the scores; `None` where it is 0 everywhere.
    pub additive: Option<&'a Tensor>,
    /// r
    pub label_channels: i64,
    /// d
    pub head_dim: i64,
}

/// Products of labels [b, h or 1, m, n] become scores. Without A the factor is left out, as it changes no ranking.
///
/// Errors: those of libtorch.
pub fn scores(rules: &Rules, dots: Tensor, parts: &ScoreParts) -> Result<Tensor> {
    let scores = match (rules.score, &parts.norms) {
        (ScoreRule::Cosine, Some((q, k))) => {
            let product = q.f_unsqueeze(-1)?.f_mul(&k.f_unsqueeze(-2)?)?;
            dots.f_div(&product.f_add_scalar(rules.epsilon.get())?)?
        }
        (ScoreRule::Relu, _) => {
            let scores = dots.f_clamp_min(0.0)?;
            match &parts.head_weights {
                Some(weights) => scores.f_mul(weights)?,
                None => scores,
            }
        }
        _ => dots,
    };
    let Some(additive) = parts.additive else { return Ok(scores) };
    let scores = match rules.factor {
        ScoreFactor::LabelChannels => scores.f_div_scalar((parts.label_channels as f64).sqrt())?,
        ScoreFactor::HeadDim => scores.f_div_scalar((parts.head_dim as f64).sqrt())?,
        ScoreFactor::Number(factor) => scores.f_mul_scalar(factor)?,
    };
    Ok(scores.f_add(additive)?)
}

/// Norms of labels over the channels in one dimension, in f32. Errors: those of libtorch.
pub fn norms(labels: &Tensor, channels: i64) -> Result<Tensor> {
    let squares = labels.f_to_kind(Kind::Float)?.f_square()?;
    Ok(squares.f_sum_dim_intlist(channels, false, Kind::Float)?.f_sqrt()?)
}

/// Scores of heads [b, h, m, n] as those of the selections that they share, [b, selections, m, n] (SPEC §2.7, §2.12).
///
/// Errors: those of libtorch.
pub fn combined(heads: HeadMode, scores: &Tensor, dims: &Dims) -> Result<Tensor> {
    let sharing = heads.sharing(dims) as i64;
    if sharing == 1 || scores.size()[1] == 1 {
        return Ok(scores.shallow_clone());
    }
    let shared = shared(scores, scores.size()[1] / sharing)?;
    Ok(match heads.combined() {
        Combined::Sum => shared.f_sum_dim_intlist(2, false, Kind::Float)?,
        Combined::Mean => shared.f_mean_dim(2, false, Kind::Float)?,
        Combined::Max => shared.f_amax(2, false)?,
    })
}

/// [b, h, m, ·] as [b, selections, h / selections, m, ·]. Errors: those of libtorch.
pub fn shared(x: &Tensor, selections: i64) -> Result<Tensor> {
    let (b, h, m, n) = x.size4()?;
    Ok(x.f_reshape([b, selections, h / selections, m, n])?)
}

/// What selections [b, selections, m, ·] say, for each of h heads: [b, h, m, ·]. Errors: those of libtorch.
pub fn for_every_head(x: &Tensor, heads: i64) -> Result<Tensor> {
    let (b, selections, m, n) = x.size4()?;
    let each = x.f_unsqueeze(2)?.f_expand([b, selections, heads / selections, m, n], false)?;
    Ok(each.f_reshape([b, heads, m, n])?)
}

/// Scores [.., m, n] of forced candidates become +∞ and all others at most the largest number, so that the forced come first.
///
/// Errors: those of libtorch.
pub fn force(forced: Forced, scores: &Tensor, queries: i64, keys: i64) -> Result<Tensor> {
    if forced == Forced::default() {
        return Ok(scores.shallow_clone());
    }
    let most = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    let (keys, queries) = positions(queries, keys, scores.device())?;
    let distance = queries.f_sub(&keys)?;
    let last = distance.f_ge(0)?.f_logical_and(&distance.f_lt(most(forced.last))?)?;
    let forced = keys.f_lt(most(forced.first))?.f_logical_or(&last)?;
    let candidates = scores.f_gt(f64::NEG_INFINITY)?;
    // In f16 the largest number of f32 is none.
    let finite = scores.f_to_kind(Kind::Float)?.f_clamp_max(f64::from(f32::MAX))?;
    Ok(finite.f_masked_fill(&forced.f_logical_and(&candidates)?, f64::INFINITY)?)
}

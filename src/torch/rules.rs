//! What else than the published algorithm libtorch computes (SPEC §2.12): channel weights, the score of one head and key from a product
//! of labels, heads taken together in ranks, and forced keys. Scores are f32.

use tch::{Device, Kind, Tensor};

use super::error::Result;
use super::layer::kind;
use super::masker::positions;
use crate::algorithm::config::Combined;
use crate::algorithm::{
    ChannelOrder, Detail, Dims, Error, Forced, HeadMode, Ranks, Rules, ScoreFactor, ScoreRule, Selection,
    Storage,
};

/// Checks ranks and channel weights for r label channels. Errors: [`Error::HeadMode`] for ranks that do not divide the heads that share
/// a selection, and for `summed-labels` with weights that differ between heads; [`Error::ChannelRows`] for fewer than r weights.
pub fn check(
    dims: &Dims,
    channels: &ChannelOrder,
    label_channels: usize,
    selection: &Selection,
) -> std::result::Result<(), Error> {
    // Named one by one, so that a rule that is not computed here does not compile.
    let Rules { quantised: _, channel_weights, score: _, epsilon: _, factor: _, ranks, forced: _ } =
        selection.rules;
    ranks.check(selection.heads, dims)?;
    let Some(weights) = channels.weights() else { return Ok(()) };
    if let Some(row) = weights.iter().find(|row| row.len() < label_channels) {
        let expected = format!("at least {label_channels} in each row");
        return Err(Error::ChannelRows(Detail::new("channel_weights", row.len(), expected)));
    }
    let shared = weights.iter().all(|row| row[..label_channels] == weights[0][..label_channels]);
    if channel_weights && selection.heads == HeadMode::SummedLabels && !shared {
        let expected = "channel weights shared by all heads";
        return Err(Error::HeadMode(Detail::new("heads", "summed-labels", expected)));
    }
    Ok(())
}

/// The channel weights of each head in f32, [hk, g, r]; `None` where they are 1. Errors: those of libtorch.
pub fn channel_weights(
    dims: &Dims,
    channels: &ChannelOrder,
    label_channels: i64,
    rules: &Rules,
    device: Device,
) -> Result<Option<Tensor>> {
    let Some(rows) = channels.weights().filter(|_| rules.channel_weights) else { return Ok(None) };
    let flat: Vec<f32> = rows.iter().flat_map(|row| &row[..label_channels as usize]).copied().collect();
    let weights = Tensor::f_from_slice(&flat)?.f_to_device(device)?;
    Ok(Some(of_every_head(&weights, rows.len(), dims, label_channels)?))
}

/// Numbers of channel rows, one after another, as those of each head, [hk, g, r]: there is a row for each head, for each KV head or for
/// all. Errors: those of libtorch.
pub fn of_every_head(flat: &Tensor, rows: usize, dims: &Dims, label_channels: i64) -> Result<Tensor> {
    let (hk, group) = (dims.kv_heads as i64, dims.group_size() as i64);
    let (outer, inner) = match rows {
        1 => (1, 1),
        rows if rows == dims.heads => (hk, group),
        _ => (hk, 1),
    };
    let of_rows = flat.f_reshape([outer, inner, label_channels])?;
    Ok(of_rows.f_expand([hk, group, label_channels], false)?.f_contiguous()?)
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

/// Products of labels [b, h or fewer, m, n] become scores. Without A the factor is left out where it changes no ranking.
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
    // Parts that are rounded may leave their type.
    if parts.additive.is_none() && rules.ranks.parts() == Storage::F32 {
        return Ok(scores);
    }
    let scores = match rules.factor {
        ScoreFactor::LabelChannels => scores.f_div_scalar((parts.label_channels as f64).sqrt())?,
        ScoreFactor::HeadDim => scores.f_div_scalar((parts.head_dim as f64).sqrt())?,
        ScoreFactor::Number(factor) => scores.f_mul_scalar(factor)?,
    };
    match parts.additive {
        Some(additive) => Ok(scores.f_add(additive)?),
        None => Ok(scores),
    }
}

/// Norms of labels over the channels in one dimension, in f32. Errors: those of libtorch.
pub fn norms(labels: &Tensor, channels: i64) -> Result<Tensor> {
    let squares = labels.f_to_kind(Kind::Float)?.f_square()?;
    Ok(squares.f_sum_dim_intlist(channels, false, Kind::Float)?.f_sqrt()?)
}

/// Scores of heads [b, h, m, n], or in `summed-labels` of ranks, as those of the selections that heads share, [b, selections, m, n] (SPEC
/// §2.7, §2.12).
///
/// Errors: those of libtorch.
pub fn combined(heads: HeadMode, ranks: Ranks, scores: &Tensor, dims: &Dims) -> Result<Tensor> {
    let (b, rows, m, n) = scores.size4()?;
    let (sharing, count) = (heads.sharing(dims) as i64, ranks.count() as i64);
    if sharing == 1 || rows == 1 {
        return Ok(scores.shallow_clone());
    }
    if heads == HeadMode::SummedLabels {
        return sum_of_parts(&shared(scores, 1)?, ranks.parts());
    }
    let together = scores.f_reshape([b, rows / sharing * count, sharing / count, m, n])?;
    let parts = match heads.combined() {
        Combined::Sum => together.f_sum_dim_intlist(2, false, Kind::Float)?,
        Combined::Mean => together.f_mean_dim(2, false, Kind::Float)?,
        Combined::Max => together.f_amax(2, false)?,
    };
    if count == 1 {
        return Ok(parts);
    }
    sum_of_parts(&shared(&parts, rows / sharing)?, ranks.parts())
}

/// Parts [b, selections, ranks, m, n], each rounded to the type in which ranks exchange them, and summed in f32. Infinities of both
/// signs, of parts that overflow that type, exclude a key: their sum, NaN, would take the place of another one.
fn sum_of_parts(parts: &Tensor, exchanged: Storage) -> Result<Tensor> {
    let parts = parts.f_to_kind(kind(exchanged))?.f_to_kind(Kind::Float)?;
    let sum = parts.f_sum_dim_intlist(2, false, Kind::Float)?;
    if exchanged == Storage::F32 {
        return Ok(sum);
    }
    let no_part = parts.f_isnan()?.f_any_dim(2, false)?.f_logical_not()?;
    Ok(sum.f_masked_fill(&sum.f_isnan()?.f_logical_and(&no_part)?, f64::NEG_INFINITY)?)
}

/// Labels of heads [b, h, ·, ·] summed over the heads of each rank, [b, ranks, ·, ·] in f32 (SPEC §2.12). Errors: those of libtorch.
pub fn summed_in_ranks(labels: &Tensor, ranks: Ranks) -> Result<Tensor> {
    Ok(shared(labels, ranks.count() as i64)?.f_sum_dim_intlist(2, false, Kind::Float)?)
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

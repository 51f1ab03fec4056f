//! The answer of a behaviour, in the reference's arithmetic: scores and attention in f64.

use ndarray::ArrayView1;

use super::attending::AttentionView;
use super::{Earlier, ForcedKeys, Prediction, Ranked, Together};
use crate::algorithm::attention::attention;
use crate::algorithm::config::Combined;
use crate::algorithm::{Error, HeadMode, Mask, Ranks, Row, Storage};
use crate::cases::Answer;
use crate::compute;

/// Mask and output.
///
/// Errors: those of the attention, which a prediction that was made from checked inputs does not have.
pub fn answer(prediction: &Prediction) -> Result<Answer, Error> {
    answer_with(prediction, mask(prediction))
}

/// A mask that was selected otherwise, and the output over it. Errors: as of [`answer`].
pub fn answer_with(prediction: &Prediction, mask: Mask) -> Result<Answer, Error> {
    let view = AttentionView::new(prediction, &mask)?;
    let output = view.output(attention(&view.inputs, &view.mask)?);
    Ok(Answer::new(mask, Some(output)))
}

/// A full mask as the behaviour writes it.
pub fn full_mask(prediction: &Prediction) -> Mask {
    if prediction.behaviour.full_mask_resets_weights {
        Mask::full(&prediction.attending.dims())
    } else {
        prediction.before.filled()
    }
}

fn mask(prediction: &Prediction) -> Mask {
    let Some(ranked) = &prediction.ranked else {
        return full_mask(prediction);
    };
    let dims = prediction.ranking.dims();
    let rows: Vec<Row> = dims.rows().collect();
    let selected = compute::map(rows, dims.operations(), |row| (row, selected(prediction, ranked, row)));
    let mut mask = prediction.before.clone();
    selected.into_iter().for_each(|(row, keys)| mask.add(row, keys));
    mask
}

/// Whether a key may be selected because of what was attended before.
fn excluded_before(prediction: &Prediction, heads: &[usize], (b, _, i): Row, key: usize) -> bool {
    prediction.behaviour.earlier != Earlier::Candidates
        && heads.iter().any(|&head| prediction.before.attends(b, head, i, key))
}

fn selected(prediction: &Prediction, ranked: &Ranked, row @ (_, head, i): Row) -> Vec<usize> {
    let dims = prediction.ranking.dims();
    let scores = scores(prediction, ranked, row);
    let heads = ranked.sharing.heads(head, &dims);
    let forced = |key: usize| ranked.forced.holds(key, i, &dims);
    let candidate = |&key: &usize| {
        (scores[key] > f64::NEG_INFINITY || ranked.forced.holds_excluded(key, i, &dims))
            && !excluded_before(prediction, &heads, row, key)
    };
    let (mut keys, others): (Vec<usize>, Vec<usize>) = (0..scores.len()).partition(candidate);
    let behaviour = &prediction.behaviour;
    if behaviour.highest_of_ties {
        keys.reverse();
    }
    keys.sort_by(|&a, &b| {
        let (first, second) = if behaviour.smallest { (b, a) } else { (a, b) };
        let by_score = scores[second].partial_cmp(&scores[first]).unwrap_or(std::cmp::Ordering::Equal);
        forced(b).cmp(&forced(a)).then(by_score)
    });
    let on_top = match ranked.forced.how {
        ForcedKeys::OnTop => keys.iter().filter(|&&key| forced(key)).count(),
        _ => 0,
    };
    if behaviour.earlier == Earlier::FillsUp {
        keys.extend(others);
    }
    keys.truncate(ranked.count + on_top);
    keys
}

/// The score of every key of one row; −∞ marks keys that A excludes.
pub fn scores(prediction: &Prediction, ranked: &Ranked, (b, head, i): Row) -> Vec<f64> {
    let dims = prediction.ranking.dims();
    let half = prediction.behaviour.half_sums;
    let heads = ranked.sharing.heads(head, &dims);
    let labels = |head: usize| &ranked.labels[b * dims.heads + head];
    let of_head = |head: usize| -> Vec<f64> {
        let row = (b, head, i);
        let additive = prediction.ranking.additive(b, head, i);
        let weight = ranked.scoring.head_weight(&prediction.ranking, row, &heads);
        let wide = |labels: ArrayView1<f32>| labels.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        let weighted = |head: usize| {
            let q = wide(labels(head).q.row(i));
            let Some(weights) = &labels(head).channel_weights else { return q };
            q.iter().zip(weights).map(|(x, &weight)| x * f64::from(weight)).collect()
        };
        let (q, k): (Vec<f64>, Vec<Vec<f64>>) = if ranked.sharing.mode() == Some(HeadMode::SummedLabels) {
            let sum = |parts: Vec<Vec<f64>>| {
                parts.into_iter().reduce(|a, b| a.iter().zip(&b).map(|(a, b)| a + b).collect())
            };
            // Of a rank, whose number stands in the place of a head's.
            let together = heads.len() / ranked.ranks.count();
            let heads = &heads[head * together..(head + 1) * together];
            let of_key = |key: usize| sum(heads.iter().map(|&head| wide(labels(head).k.row(key))).collect());
            let q = sum(heads.iter().map(|&head| weighted(head)).collect());
            (q.unwrap_or_default(), (0..dims.keys).filter_map(of_key).collect())
        } else {
            (weighted(head), labels(head).k.outer_iter().map(wide).collect())
        };
        let score = |(key, k): (usize, &Vec<f64>)| {
            let dot = dot(&q, k, half);
            let score = ranked.scoring.score(dot, q.iter().copied(), k.iter().copied(), weight);
            score + f64::from(additive.at(key))
        };
        k.iter().enumerate().map(score).collect()
    };
    ranked.sharing.scores(head, &dims, ranked.ranks, of_head, |how, parts: &[Vec<f64>]| {
        let of_key = |key: usize| parts.iter().map(|scores| scores[key]).collect::<Vec<f64>>();
        let combine = |key: usize| match how {
            Together::Heads(how, ranks) => {
                let scores = of_key(key);
                let parts = scores.chunks(scores.len() / ranks.count()).map(|part| combined(how, part));
                sum_of_parts(ranks, parts.collect())
            }
            Together::Parts(ranks) => sum_of_parts(ranks, of_key(key)),
        };
        (0..dims.keys).map(combine).collect()
    })
}

fn combined(how: Combined, scores: &[f64]) -> f64 {
    match how {
        Combined::Sum => scores.iter().sum(),
        Combined::Mean => scores.iter().sum::<f64>() / scores.len() as f64,
        Combined::Max => scores.iter().copied().fold(f64::NEG_INFINITY, f64::max),
    }
}

/// Each part rounded to the type in which it is exchanged, where that is not f32.
fn sum_of_parts(ranks: Ranks, parts: Vec<f64>) -> f64 {
    match (parts.as_slice(), ranks.parts()) {
        (&[one], _) => one,
        (parts, Storage::F32) => parts.iter().sum(),
        (parts, kept) => parts.iter().map(|&part| f64::from(kept.round(part as f32))).sum(),
    }
}

fn dot(q: &[f64], k: &[f64], half: bool) -> f64 {
    let products = q.iter().zip(k).map(|(q, k)| q * k);
    if !half {
        return products.sum();
    }
    let round = |x: f64| f64::from(Storage::F16.round(x as f32));
    products.fold(0.0, |sum, product| round(sum + round(product)))
}

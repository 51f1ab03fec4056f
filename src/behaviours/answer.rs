//! The answer of a behaviour, in the reference's arithmetic: scores and attention in f64.

use ndarray::ArrayView1;

use super::attending::AttentionView;
use super::{Earlier, ForcedKeys, HeadLabels, Prediction, Ranked};
use crate::algorithm::attention::attention;
use crate::algorithm::config::Combined;
use crate::algorithm::{Error, HeadMode, Mask, Row, Storage};
use crate::cases::Answer;
use crate::compute;

/// Mask and output.
///
/// Errors: those of the attention, which a prediction that was made from checked inputs does not have.
pub fn answer(prediction: &Prediction) -> Result<Answer, Error> {
    let mask = mask(prediction);
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
        let (q, k): (Vec<f64>, Vec<Vec<f64>>) = if ranked.sharing.mode() == Some(HeadMode::SummedLabels) {
            let sum = |parts: Vec<Vec<f64>>| {
                parts.into_iter().reduce(|a, b| a.iter().zip(&b).map(|(a, b)| a + b).collect())
            };
            let of_key = |key: usize| sum(heads.iter().map(|&head| wide(labels(head).k.row(key))).collect());
            let q = sum(heads.iter().map(|&head| wide(labels(head).q.row(i))).collect());
            (q.unwrap_or_default(), (0..dims.keys).filter_map(of_key).collect())
        } else {
            let HeadLabels { q, k, .. } = labels(head);
            (wide(q.row(i)), k.outer_iter().map(wide).collect())
        };
        let score = |(key, k): (usize, &Vec<f64>)| {
            let dot = dot(&q, k, half);
            let score = ranked.scoring.score(dot, q.iter().copied(), k.iter().copied(), weight);
            score + f64::from(additive.at(key))
        };
        k.iter().enumerate().map(score).collect()
    };
    ranked.sharing.scores(head, &dims, of_head, |how, parts: &[Vec<f64>]| {
        let combine = |key: usize| {
            let of_key = parts.iter().map(|scores| scores[key]);
            match how {
                Combined::Sum => of_key.sum(),
                Combined::Mean => of_key.sum::<f64>() / parts.len() as f64,
                Combined::Max => of_key.fold(f64::NEG_INFINITY, f64::max),
            }
        };
        (0..dims.keys).map(combine).collect()
    })
}

fn dot(q: &[f64], k: &[f64], half: bool) -> f64 {
    let products = q.iter().zip(k).map(|(q, k)| q * k);
    if !half {
        return products.sum();
    }
    let round = |x: f64| f64::from(Storage::F16.round(x as f32));
    products.fold(0.0, |sum, product| round(sum + round(product)))
}

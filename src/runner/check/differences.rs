//! How two answers to one question differ: bit for bit, and in words.

use crate::algorithm::Mask;
use crate::cases::{Answer, NoAnswer};

/// How many differences are put in words.
const MOST: usize = 3;

type Answers = [Result<Answer, NoAnswer>];

/// Whether answers are the same bit for bit. Two refusals count as the same, whatever they say.
pub(super) fn same(first: &Answers, second: &Answers) -> bool {
    first.iter().zip(second).all(|pair| match pair {
        (Ok(first), Ok(second)) => same_answer(first, second),
        (Err(first), Err(second)) => std::mem::discriminant(first) == std::mem::discriminant(second),
        _ => false,
    })
}

pub(super) fn same_bits<'a>(
    first: impl IntoIterator<Item = &'a f32>,
    second: impl IntoIterator<Item = &'a f32>,
) -> bool {
    first.into_iter().map(|x| x.to_bits()).eq(second.into_iter().map(|x| x.to_bits()))
}

fn same_answer(first: &Answer, second: &Answer) -> bool {
    let outputs = match (&first.output, &second.output) {
        (Some(first), Some(second)) => same_bits(first, second),
        (first, second) => first.is_none() == second.is_none(),
    };
    let labels = match (&first.labels, &second.labels) {
        (Some(first), Some(second)) => same_bits(&first.q, &second.q) && same_bits(&first.k, &second.k),
        (first, second) => first.is_none() == second.is_none(),
    };
    outputs && labels && same_bits(first.mask.weights(), second.mask.weights())
}

/// The first call in which answers differ, and in what.
pub(super) fn differences(first: &Answers, second: &Answers) -> Option<(usize, Vec<String>)> {
    let call = (0..first.len()).find(|&call| !same(&first[call..=call], &second[call..=call]))?;
    let lines = match (&first[call], &second[call]) {
        (Ok(first), Ok(second)) => in_words(first, second),
        (first, second) => vec![format!("one answer {}, the other {}", said(first), said(second))],
    };
    Some((call, lines))
}

fn said(answer: &Result<Answer, NoAnswer>) -> String {
    match answer {
        Ok(_) => "holds a mask".into(),
        Err(NoAnswer::Failed(problem)) => format!("failed ({problem})"),
        Err(refusal) => format!("is a refusal ({refusal})"),
    }
}

fn in_words(first: &Answer, second: &Answer) -> Vec<String> {
    let (b, h, m, _) = first.mask.weights().dim();
    if first.mask.weights().dim() != second.mask.weights().dim() {
        return vec!["masks of different shapes".into()];
    }
    let mut lines = Vec::new();
    for row @ (batch, head, i) in ndarray::indices((b, h, m)) {
        if lines.len() == MOST {
            break;
        }
        let place = format!("batch {batch}, head {head}, query {i}");
        if !same_bits(first.mask.row_weights(row), second.mask.row_weights(row)) {
            let (one, other) = (keys(&first.mask, row), keys(&second.mask, row));
            lines.push(match one == other {
                true => format!("{place}: the weights of keys {one:?} differ"),
                false => format!("{place}: one answer attends to keys {one:?}, the other to {other:?}"),
            });
            continue;
        }
        if let (Some(one), Some(other)) = (&first.output, &second.output)
            && one.dim() == other.dim()
        {
            let at = |c: &usize| (one[[batch, head, i, *c]], other[[batch, head, i, *c]]);
            let differs = |c: &usize| at(c).0.to_bits() != at(c).1.to_bits();
            if let Some(c) = (0..one.dim().3).find(differs) {
                let (one, other) = at(&c);
                lines.push(format!("{place}: output {c} is {one:?} in one answer, {other:?} in the other"));
            }
        }
    }
    if lines.is_empty() {
        lines.push("the labels differ".into());
    }
    lines
}

/// Keys that a row attends to.
pub(super) fn keys(mask: &Mask, row: crate::algorithm::Row) -> Vec<usize> {
    mask.row(row).map(|(key, _)| key).collect()
}

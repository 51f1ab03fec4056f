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

/// What is true of every row in which a diverging answer differs from a conforming one, in words.
pub(super) fn of_all_rows(conforming: &Answers, diverging: &Answers) -> Option<String> {
    let call =
        (0..conforming.len()).find(|&call| !same(&conforming[call..=call], &diverging[call..=call]))?;
    let (Ok(right), Ok(wrong)) = (&conforming[call], &diverging[call]) else { return None };
    if right.mask.weights().dim() != wrong.mask.weights().dim() {
        return None;
    }
    let (b, h, m, _) = right.mask.weights().dim();
    let rows: Vec<_> = ndarray::indices((b, h, m)).into_iter().collect();
    let is_other = |row: &usize| keys(&right.mask, rows[*row]) != keys(&wrong.mask, rows[*row]);
    let masks: Vec<usize> = (0..rows.len()).filter(is_other).collect();
    let place = |count: usize| match count == rows.len() {
        true => format!("all {count} rows of the call"),
        false => format!("{count} of {} rows of the call", rows.len()),
    };
    if masks.is_empty() {
        let (Some(right), Some(wrong)) = (&right.output, &wrong.output) else { return None };
        let of = |(b, head, i): (usize, usize, usize)| {
            let numbers = |output: &ndarray::Array4<f32>| output.slice(ndarray::s![b, head, i, ..]).to_vec();
            let (right, wrong) = (numbers(right), numbers(wrong));
            right.into_iter().zip(wrong).filter(|(right, wrong)| right != wrong).collect::<Vec<_>>()
        };
        let outputs: Vec<_> = rows.iter().map(|row| of(*row)).filter(|pairs| !pairs.is_empty()).collect();
        let zeros = outputs.iter().flatten().all(|(_, wrong)| *wrong == 0.0);
        let what = format!("part of the output is 0 in {}", place(outputs.len()));
        return (zeros && !outputs.is_empty()).then_some(what);
    }
    let missing = |row: &usize| {
        let (right, wrong) = (keys(&right.mask, rows[*row]), keys(&wrong.mask, rows[*row]));
        let fewer = right.len().checked_sub(wrong.len())?;
        wrong.iter().all(|key| right.contains(key)).then_some(fewer)
    };
    let fewer: Option<Vec<usize>> = masks.iter().map(missing).collect();
    if let Some(fewer) = fewer.filter(|fewer| fewer.iter().all(|count| *count == 1)) {
        return Some(format!("one key is missing in {}", place(fewer.len())));
    }
    let of_row_before =
        |row: &usize| *row > 0 && keys(&wrong.mask, rows[*row]) == keys(&right.mask, rows[*row - 1]);
    let all = masks.iter().all(of_row_before);
    all.then(|| format!("the selection is that of the row before in {}", place(masks.len())))
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

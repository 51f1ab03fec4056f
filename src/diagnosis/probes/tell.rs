//! Readings in words: which rule fits them, or where they first differ from those of the reference.

use super::question::{Question, Reading, Shown};
use super::simulate::{Named, explained};
use crate::algorithm::channels::ranges;
use crate::algorithm::{Dims, Row};

/// A question with what was read and what the reference's answers show.
#[derive(Clone)]
pub(super) struct Measured<'a> {
    pub question: &'a Question,
    /// Where the verdict found the first divergence.
    pub at: Option<(usize, Row)>,
    pub found: Vec<Reading>,
    pub expected: Vec<Reading>,
}

/// What was read of a wire, in words.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Told {
    /// A rule that fits every reading.
    Rule(String),
    /// Some readings that are not as expected.
    Examples(String),
}

impl Told {
    /// The rule, or where readings differ from what it says.
    pub fn or_examples(measured: &[Measured], right: impl FnOnce() -> String) -> Self {
        first_differences(measured).map_or_else(|| Self::Rule(right()), Self::Examples)
    }

    /// A change that explains every reading; otherwise where they differ from the rule.
    pub fn changed(measured: &[Measured], changes: &[Named], right: impl FnOnce() -> String) -> Self {
        match explained(measured, changes) {
            Some(change) => Self::Rule(change.into()),
            None => Self::or_examples(measured, right),
        }
    }

    pub fn into_text(self) -> String {
        match self {
            Self::Rule(text) | Self::Examples(text) => text,
        }
    }
}

/// How many questions are shown.
const MOST_SHOWN: usize = 2;

/// The sizes that a formula may use.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub dims: Dims,
    /// Channel rows.
    pub rows: usize,
}

/// What a formula gives where nothing is read.
pub(super) const NONE: usize = usize::MAX;

/// A name, and what it makes of an index.
pub(super) type Formula = (&'static str, fn(usize, Sizes) -> usize);

/// What a head may read, of as many things as there are KV heads.
pub(super) const KV_HEADS: &[Formula] = &[
    ("i / g", |i, at| i / at.dims.group_size()),
    ("i mod hk", |i, at| i % at.dims.kv_heads),
    ("i / hk, at most hk − 1", |i, at| (i / at.dims.kv_heads).min(at.dims.kv_heads - 1)),
    ("0", |_, _| 0),
    ("hk − 1", |_, at| at.dims.kv_heads - 1),
    ("hk − 1 − i / g", |i, at| at.dims.kv_heads - 1 - i / at.dims.group_size()),
    ("i / g, summed over all heads", |_, at| if at.dims.kv_heads > 1 { at.dims.kv_heads } else { 0 }),
];

/// What a head may read, of as many things as there are channel rows.
pub(super) const ROWS: &[Formula] = &[
    ("i · rows / h", |i, at| i * at.rows / at.dims.heads),
    ("i mod rows", |i, at| i % at.rows),
    ("i / g", |i, at| (i / at.dims.group_size()).min(at.rows - 1)),
    ("i mod hk", |i, at| (i % at.dims.kv_heads).min(at.rows - 1)),
    ("0", |_, _| 0),
    ("rows − 1", |_, at| at.rows - 1),
];

/// Which of several an index reads.
pub(super) const SELF: &[Formula] = &[("i", |i, _| i), ("0", |_, _| 0), ("i + 1", |i, _| i + 1)];

impl Measured<'_> {
    fn sizes(&self) -> Option<Sizes> {
        Some(Sizes { dims: self.question.dims()?, rows: self.question.rows().max(1) })
    }

    /// Whether something else was read than expected.
    pub fn differs(&self) -> bool {
        self.found != self.expected
    }

    /// What differs: where the verdict says, or, of numbers, most.
    fn difference(&self) -> Option<(&Reading, Option<&Reading>)> {
        let differing =
            self.pairs().filter(|(found, expected)| expected.is_none_or(|e| e.shows != found.shows));
        let far = |(found, expected): &(&Reading, Option<&Reading>)| {
            let named = self.at == Some((found.call, found.row));
            (named, distance(&found.shows, expected.map(|expected| &expected.shows)))
        };
        // The first of equals.
        differing.reduce(|best, next| if far(&next) > far(&best) { next } else { best })
    }

    /// Pairs of what was read and what was expected.
    pub fn pairs(&self) -> impl Iterator<Item = (&Reading, Option<&Reading>)> {
        let same = |reading: &Reading| (reading.call, reading.row);
        self.found
            .iter()
            .map(move |found| (found, self.expected.iter().find(|expected| same(expected) == same(found))))
    }
}

/// The largest distance of numbers; NaN is as far as can be.
fn distance(found: &Shown, expected: Option<&Shown>) -> f32 {
    let (Shown::Numbers(found), Some(Shown::Numbers(expected))) = (found, expected) else { return 0.0 };
    let far = |(a, b): (&f32, &f32)| if a.is_nan() || b.is_nan() { f32::INFINITY } else { (a - b).abs() };
    found.iter().zip(expected).map(far).fold(0.0, f32::max)
}

/// The first formula that fits every reading: an index is made of a reading's row, and what is read is one key.
pub(super) fn formula(
    measured: &[&Measured],
    index: fn(&Reading) -> usize,
    formulas: &[Formula],
) -> Option<&'static str> {
    let fits = |formula: &Formula| {
        measured.iter().all(|one| {
            one.sizes().is_some_and(|sizes| {
                one.found.iter().all(|reading| match &reading.shows {
                    Shown::Keys(keys) => match formula.1(index(reading), sizes) {
                        NONE => keys.is_empty(),
                        one => keys[..] == [one],
                    },
                    Shown::Number(number) => *number == formula.1(index(reading), sizes) as f32,
                    _ => false,
                })
            })
        })
    };
    formulas.iter().find(|formula| !measured.is_empty() && fits(formula)).map(|formula| formula.0)
}

/// `key 3`, `keys 0–30, 33`.
pub(super) fn keys(keys: impl IntoIterator<Item = usize>) -> String {
    let keys: Vec<usize> = keys.into_iter().collect();
    let name = if keys.len() == 1 { "key" } else { "keys" };
    format!("{name} {}", ranges(keys))
}

/// Where in an answer, as far as there is more than one place.
pub(super) fn place(reading: &Reading, question: &Question) -> String {
    let (entry, head, query) = reading.row;
    let dims = question.dims();
    let many = |size: fn(&Dims) -> usize| dims.is_some_and(|dims| size(&dims) > 1);
    let calls = match &question.asked {
        super::question::Asked::Sequence(sequence) => sequence.calls.len(),
        super::question::Asked::Stage(_) => 1,
    };
    let parts = [
        (calls > 1, "call", reading.call),
        (many(|dims| dims.batch), "entry", entry),
        (many(|dims| dims.heads), "head", head),
        (many(|dims| dims.queries), "query", query),
    ];
    let shown = parts.into_iter().filter(|part| part.0).map(|(_, name, number)| format!("{name} {number}"));
    shown.collect::<Vec<_>>().join(", ")
}

/// The first few readings that differ from what is expected: `n = 3, head 1: key 0, expected key 2`. `None` where none does.
pub(super) fn first_differences(measured: &[Measured]) -> Option<String> {
    let mut lines = Vec::new();
    for one in measured {
        if let Some((found, expected)) = one.difference() {
            let at = [one.question.words(), place(found, one.question)];
            let at: Vec<_> = at.into_iter().filter(|part| !part.is_empty()).collect();
            let expected = expected.map_or("nothing".into(), |expected| expected.shows.to_string());
            lines.push(format!("{}: {}, expected {expected}", at.join(", "), found.shows));
        }
    }
    let more = lines.len().saturating_sub(MOST_SHOWN);
    lines.truncate(MOST_SHOWN);
    if more > 0 {
        lines.push(if more == 1 { "1 more question".into() } else { format!("{more} more questions") });
    }
    Some(lines.join("; ")).filter(|text| !text.is_empty())
}

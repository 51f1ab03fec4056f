//! What a row of a mask selects, and what it should: the keys that are lost and those that are too many, where they lie, and the
//! scores next to the threshold. It says in indices what the verdict says in a sentence, however many keys there are.

use std::collections::BTreeMap;

use super::certificate::{Candidacy, Class, RowCertificate, Thresholds, thresholds};
use super::evidence::{Evidence, RowScores};
use super::topk::certify;
use crate::algorithm::{Dims, Mask, Row};
use crate::cases::{Answer, ScoresCall};

/// How many rows of a call are compared: the first that are wrong.
const MOST_ROWS: usize = 3;

/// Keys are counted by tiles of so many, which kernels often have.
pub const TILE: usize = 64;

/// How many scores next to the threshold are named, and keys of each kind that matter.
const MOST_NEAR: usize = 8;

/// A row of an answer beside what it should be.
#[derive(Debug, Clone, Default)]
pub struct ComparedRow {
    /// Batch, head, query.
    pub row: Row,
    /// n
    pub keys: usize,
    /// Keys that must be selected, ascending; open ones apart.
    pub expected: Vec<usize>,
    /// Keys that may be selected or not, ascending.
    pub open: Vec<usize>,
    /// The fewest and the most keys that may be selected.
    pub counts: (usize, usize),
    /// Keys that were selected, ascending.
    pub found: Vec<usize>,
    /// Keys that must be selected and were not, ascending.
    pub missing: Vec<usize>,
    /// Keys that were selected and must not be, ascending.
    pub extra: Vec<usize>,
    /// Where keys are lost or too many: tiles of [`TILE`] keys with some.
    pub tiles: Vec<Tile>,
    /// Keys by score, those that are wrong and those next to the threshold: a few scores, falling.
    pub near: Vec<ScoredKeys>,
}

/// A tile in which something is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tile {
    /// Its first key.
    pub first: usize,
    /// How many keys of it must be selected.
    pub expected: usize,
    /// How many of these were not.
    pub missing: usize,
    /// How many were selected that must not be.
    pub extra: usize,
}

/// Keys of one score that fare alike.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoredKeys {
    /// Which, ascending.
    pub keys: Vec<usize>,
    /// What must become of them.
    pub class: Class,
    /// Whether they were selected.
    pub found: bool,
    /// Their score.
    pub score: f64,
    /// How far conforming scores may be from it.
    pub radius: f64,
}

impl ComparedRow {
    fn new(
        row: Row,
        certificate: &RowCertificate,
        before: &Mask,
        mask: &Mask,
        scores: Option<&RowScores>,
    ) -> Self {
        let classes = &certificate.classes;
        let (b, head, i) = row;
        let of_class = |class: Class| (0..classes.len()).filter(move |&key| classes[key] == class);
        let found = |key: usize| mask.attends(b, head, i, key) && !before.attends(b, head, i, key);
        let may_not = |&key: &usize| matches!(classes[key], Class::Out | Class::Excluded);
        let selected: Vec<usize> = (0..classes.len()).filter(|&key| found(key)).collect();
        let mut compared = Self {
            row,
            keys: classes.len(),
            expected: of_class(Class::In).collect(),
            open: of_class(Class::Open).collect(),
            counts: (certificate.fewest, certificate.most),
            missing: of_class(Class::In).filter(|&key| !found(key)).collect(),
            extra: selected.iter().copied().filter(may_not).collect(),
            found: selected,
            ..Self::default()
        };
        compared.tiles = compared.tiles();
        compared.near = scores.map(|scores| compared.near(classes, scores)).unwrap_or_default();
        compared
    }

    /// Whether it is as it should be.
    pub fn conforms(&self) -> bool {
        let (fewest, most) = self.counts;
        self.missing.is_empty() && self.extra.is_empty() && (fewest..=most).contains(&self.found.len())
    }

    /// The keys that a reader looks for in the tensors.
    pub fn keys_that_matter(&self) -> Vec<usize> {
        let first = |keys: &[usize]| keys.iter().take(MOST_NEAR).copied().collect::<Vec<_>>();
        let near = self.near.iter().flat_map(|near| near.keys.iter().take(2).copied());
        let mut keys: Vec<usize> =
            first(&self.missing).into_iter().chain(first(&self.extra)).chain(near).collect();
        if keys.is_empty() {
            keys = [first(&self.expected), first(&self.found)].concat();
        }
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    fn tiles(&self) -> Vec<Tile> {
        let mut tiles: Vec<Tile> = Vec::new();
        let mut wrong: Vec<usize> =
            self.missing.iter().chain(&self.extra).map(|key| key / TILE * TILE).collect();
        wrong.sort_unstable();
        wrong.dedup();
        for first in wrong {
            // All are ascending.
            let count = |keys: &[usize]| {
                keys.partition_point(|&key| key < first + TILE) - keys.partition_point(|&key| key < first)
            };
            let [expected, missing, extra] =
                [&self.expected, &self.missing, &self.extra].map(|keys| count(keys));
            tiles.push(Tile { first, expected, missing, extra });
        }
        tiles
    }

    fn near(&self, classes: &[Class], scores: &RowScores) -> Vec<ScoredKeys> {
        let mut groups: BTreeMap<(u64, Class, bool), ScoredKeys> = BTreeMap::new();
        for (key, &class) in classes.iter().enumerate() {
            let (Candidacy::Scored(score) | Candidacy::Forced(score)) = scores.keys[key] else { continue };
            let found = self.found.binary_search(&key).is_ok();
            // 0 and −0 are one score.
            let group = groups.entry(((score.value + 0.0).to_bits(), class, found)).or_insert_with(|| {
                ScoredKeys { keys: Vec::new(), class, found, score: score.value, radius: score.radius }
            });
            group.keys.push(key);
        }
        let Thresholds { in_above, out_below } = scores.limits;
        let wrong = |group: &ScoredKeys| match group.class {
            Class::In => !group.found,
            Class::Out | Class::Excluded => group.found,
            _ => false,
        };
        let distance = |group: &ScoredKeys| {
            let from = |limit: f64| if limit.is_finite() { (group.score - limit).abs() } else { f64::MAX };
            from(in_above).min(from(out_below))
        };
        let mut groups: Vec<ScoredKeys> = groups.into_values().collect();
        groups.sort_by(|a, b| wrong(b).cmp(&wrong(a)).then(distance(a).total_cmp(&distance(b))));
        groups.truncate(MOST_NEAR);
        groups.sort_by(|a, b| b.score.total_cmp(&a.score));
        groups
    }
}

/// The first rows of an answer that are wrong, or the row that a verdict is about; none where nothing is ranked or answered.
pub fn compared_rows(evidence: &Evidence, answer: &Answer, dims: &Dims) -> Vec<ComparedRow> {
    let Ok(certificate) = &evidence.certificate else { return Vec::new() };
    if !answer.fits(dims) {
        return Vec::new();
    }
    let full = |row: Row| {
        let before = certificate.before.row_weights(row);
        let class = |&weight: &f32| if weight == 0.0 { Class::In } else { Class::Before };
        let classes: Vec<Class> = before.iter().map(class).collect();
        let all = classes.iter().filter(|&&class| class == Class::In).count();
        RowCertificate { classes, fewest: all, most: all }
    };
    let rows: Vec<Row> = dims.rows().collect();
    let compare = |index: usize| {
        let row = rows[index];
        let scores = evidence.scores.as_ref().filter(|_| row == evidence.row);
        let (before, mask) = (&certificate.before, &answer.mask);
        match &certificate.rows {
            Some(of_rows) => ComparedRow::new(row, &of_rows[index], before, mask, scores),
            None => ComparedRow::new(row, &full(row), before, mask, scores),
        }
    };
    wrong_or_at(compare, &rows, evidence.row)
}

/// The same for what a top-k answered.
pub fn compared_selection(call: &ScoresCall, mask: &Mask) -> Vec<ComparedRow> {
    let dims = call.dims();
    if mask.weights().dim() != call.scores().dim() {
        return Vec::new();
    }
    let (rows, before): (Vec<Row>, Mask) = (dims.rows().collect(), Mask::empty(&dims));
    let heavy_size = call.heavy_size().get();
    let compare = |index: usize| {
        let (b, head, i) = rows[index];
        let scores = call.scores().slice(ndarray::s![b, head, i, ..]).to_vec();
        let certificate = certify(&scores, |_| None, |_| false, heavy_size);
        let keys: Vec<Candidacy> = scores
            .iter()
            .map(|&score| match score {
                f32::NEG_INFINITY => Candidacy::Excluded,
                score => Candidacy::Scored(super::bounds::Approximate::new(f64::from(score), 0.0)),
            })
            .collect();
        let scores = RowScores { limits: thresholds(&keys, heavy_size), keys, heavy_size };
        ComparedRow::new(rows[index], &certificate, &before, mask, Some(&scores))
    };
    wrong_or_at(compare, &rows, (0, 0, 0))
}

fn wrong_or_at(compare: impl Fn(usize) -> ComparedRow, rows: &[Row], at: Row) -> Vec<ComparedRow> {
    let wrong = (0..rows.len()).map(&compare).filter(|row| !row.conforms()).take(MOST_ROWS);
    let wrong: Vec<ComparedRow> = wrong.collect();
    match rows.iter().position(|&row| row == at) {
        Some(index) if wrong.is_empty() => vec![compare(index)],
        _ => wrong,
    }
}

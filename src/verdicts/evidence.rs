//! What a verdict on one call rests on: the certificate, the scores of the row at fault, the output within its bounds, and
//! the labels of SPEC §2.5. It is large and slow to derive, so only calls that a report prints get it.

use std::collections::HashSet;

use ndarray::Array4;

use super::bounds::Approximate;
use super::certificate::{Candidacy, Certificate, Class, ScoreBounds, Thresholds, thresholds};
use super::judge::{Judgement, Verdict, differs_from_first_head, judge, key_fault};
use super::output::expected_row;
use crate::algorithm::labels::labels_of;
use crate::algorithm::{Error, Mask, Row};
use crate::cases::{Answer, AnsweredLabels, Call, Instance, NoAnswer, RoundingModel};

/// Outputs and labels of more numbers than this are left out.
pub const LARGEST: usize = 4096;

/// A verdict and what it rests on.
#[derive(Debug)]
pub struct Evidence {
    /// The verdict.
    pub verdict: Verdict,
    /// What any conforming mask must satisfy, or the error with which the call must be refused.
    pub certificate: Result<Certificate, Error>,
    /// The row at fault: batch, head, query. The first row where none is at fault.
    pub row: Row,
    /// Keys whose weight no conforming answer has: batch, head, query, key.
    pub wrong: HashSet<[usize; 4]>,
    /// Scores of the row at fault; `None` where nothing is ranked.
    pub scores: Option<RowScores>,
    /// The output that the answered mask gives, with the radii of conforming outputs, [b, h, m, dv]; `None` where the answer
    /// holds no output of the right shape, or a large one.
    pub output: Option<Array4<Approximate>>,
    /// The labels of every query head; `None` where nothing is ranked, or they are many.
    pub labels: Option<AnsweredLabels>,
}

/// Scores of one row and what they are compared with.
#[derive(Debug)]
pub struct RowScores {
    /// One entry for each key.
    pub keys: Vec<Candidacy>,
    /// The two thresholds of SPEC §5.
    pub limits: Thresholds,
    /// H, resolved.
    pub heavy_size: usize,
}

impl Evidence {
    /// Judges an answer to a call of an instance and keeps everything the verdict rests on.
    pub fn of(
        instance: &Instance,
        call: &Call,
        answer: &Result<Answer, NoAnswer>,
        model: RoundingModel,
    ) -> Self {
        let certificate = Certificate::derive(instance, call, model);
        let verdict = judge(instance, call, answer, model, &certificate);
        let row = verdict.judgement().map_or((0, 0, 0), row_at_fault);
        let fitting = answer.as_ref().ok().filter(|answer| answer.fits(&call.inputs.dims()));
        let ranked = certificate.as_ref().ok().filter(|certificate| certificate.rows.is_some());
        Self {
            row,
            wrong: match (&certificate, fitting) {
                (Ok(certificate), Some(answer)) => wrong_keys(instance, call, certificate, &answer.mask),
                _ => HashSet::new(),
            },
            scores: ranked.and_then(|ranked| row_scores(instance, call, model, &ranked.before, row)),
            output: fitting.filter(|_| certificate.is_ok()).and_then(|answer| output(call, answer, model)),
            labels: ranked.and_then(|_| expected_labels(instance, call)),
            verdict,
            certificate,
        }
    }
}

fn row_at_fault(judgement: &Judgement) -> Row {
    let mask = judgement.mask.divergences.first().map(|divergence| divergence.row);
    let outputs = || judgement.output.iter().flat_map(|output| &output.divergences);
    let label = || judgement.labels.as_ref().filter(|label| label.tensor == "q").map(|label| label.index);
    let index = || label().or_else(|| outputs().next().map(|output| output.index));
    mask.or_else(|| index().map(|[b, head, query, _]| (b, head, query))).unwrap_or((0, 0, 0))
}

fn wrong_keys(
    instance: &Instance,
    call: &Call,
    certificate: &Certificate,
    mask: &Mask,
) -> HashSet<[usize; 4]> {
    let (dims, before) = (call.inputs.dims(), &certificate.before);
    let sharing = instance.selection.heads.sharing(&dims);
    let mut wrong = HashSet::new();
    for (index, row @ (b, head, query)) in dims.rows().enumerate() {
        let classes = certificate.rows.as_ref().map(|rows| &rows[index].classes);
        for key in 0..dims.keys {
            let (was, found) = (before.weight(b, head, query, key), mask.weight(b, head, query, key));
            // Without rows every key must be attended.
            let full = if was == 0.0 { Class::In } else { Class::Before };
            let class = classes.map_or(full, |classes| classes[key]);
            if key_fault(class, key, was, found).is_some()
                || (certificate.rows.is_some() && differs_from_first_head(before, mask, row, key, sharing))
            {
                wrong.insert([b, head, query, key]);
            }
        }
    }
    wrong
}

fn row_scores(
    instance: &Instance,
    call: &Call,
    model: RoundingModel,
    before: &Mask,
    row: Row,
) -> Option<RowScores> {
    if let Some(entries) = call.entries() {
        let entry = &entries[row.0];
        let (alone, row) = (entry.call.as_ref()?, entry.row_alone(row)?);
        let mut scores = row_scores(instance, alone, model, &entry.of(before), row)?;
        scores.keys.resize(call.inputs.dims().keys, Candidacy::Excluded);
        return Some(scores);
    }
    let keys = ScoreBounds::new(instance, call, model, before).ok()??.row(row);
    let heavy_size = instance.selection.heavy_size.resolve(call.inputs.dims().keys);
    Some(RowScores { limits: thresholds(&keys, heavy_size), keys, heavy_size })
}

fn output(call: &Call, answer: &Answer, model: RoundingModel) -> Option<Array4<Approximate>> {
    let found = answer.output.as_ref().filter(|found| found.len() <= LARGEST)?;
    let Some(entries) = call.entries() else {
        let rows = call.inputs.dims().rows();
        let values = rows.flat_map(|row| expected_row(&call.inputs, &answer.mask, model, row)).collect();
        return Array4::from_shape_vec(found.dim(), values).ok();
    };
    let mut whole = Array4::from_elem(found.dim(), Approximate::new(0.0, 0.0));
    for entry in &entries {
        if let Some(alone) = &entry.call {
            let part = output(alone, &entry.answer(answer), model)?;
            let own = ndarray::s![entry.batch..entry.batch + 1, .., entry.first_query.., ..];
            whole.slice_mut(own).assign(&part);
        }
    }
    Some(whole)
}

fn expected_labels(instance: &Instance, call: &Call) -> Option<AnsweredLabels> {
    // Entries of unequal lengths have no labels in the padding.
    if call.inputs.lengths().is_some() {
        return None;
    }
    let dims = call.inputs.dims();
    let channels = instance.channels(call.layer).ok()?;
    let label_channels = instance.selection.group_factor.label_channels(dims.head_dim).ok()?;
    let (b, h, m, n) = dims.mask_shape();
    if b * h * n.max(m) * label_channels > LARGEST {
        return None;
    }
    let bits = instance.selection.bits();
    let of_batch = |b| labels_of(&call.inputs, channels, label_channels, bits, (b, 0..h)).ok();
    let batches = (0..b).map(of_batch).collect::<Option<Vec<_>>>()?;
    Some(AnsweredLabels {
        q: Array4::from_shape_fn((b, h, m, label_channels), |(b, head, i, c)| {
            batches[b].queries(head)[[c, i]]
        }),
        k: Array4::from_shape_fn((b, h, n, label_channels), |(b, head, i, c)| batches[b].keys(head)[[c, i]]),
    })
}

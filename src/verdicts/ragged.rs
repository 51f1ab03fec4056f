//! Verdicts on calls whose entries have unequal lengths (SPEC §2.13): each entry is judged as the call of that entry alone, and
//! what lies beyond is judged here: padding is never attended to, and a row without a position attends to nothing and yields
//! zeros. Labels and scores of padding may be anything.

use super::certificate::{Certificate, Class, RowCertificate};
use super::judge::{Judgement, MOST_EXPLAINED, MaskDivergence, MaskFault, MaskVerdict, judgement as of_one};
use super::lse::{LseDivergence, LseVerdict};
use super::output::{OutputDivergence, OutputVerdict};
use crate::algorithm::{Dims, Error, Mask, Row};
use crate::cases::{Answer, Call, Entry, Instance, RoundingModel};

/// The certificate of the whole call, with those of its entries.
pub(super) fn certificate(
    instance: &Instance,
    call: &Call,
    entries: &[Entry],
    model: RoundingModel,
) -> Result<Certificate, Error> {
    let dims = call.inputs.dims();
    let mut before = Mask::empty(&dims);
    let mut certificates = Vec::new();
    for entry in entries {
        let alone = entry.call.as_ref().map(|call| Certificate::derive(instance, call, model)).transpose()?;
        alone.iter().for_each(|alone| entry.write(&mut before, &alone.before));
        certificates.push(alone);
    }
    let rows = dims.rows().map(|row| row_certificate(&entries[row.0], &certificates[row.0], &dims, row));
    Ok(Certificate { before, rows: Some(rows.collect()), entries: certificates })
}

/// One row of the whole call: that of the entry alone, and nothing of the padding.
fn row_certificate(
    entry: &Entry,
    certificate: &Option<Certificate>,
    dims: &Dims,
    row: Row,
) -> RowCertificate {
    let mut whole = match (certificate, entry.row_alone(row)) {
        (Some(certificate), Some(alone @ (_, head, query))) => match &certificate.rows {
            Some(rows) => rows[head * (dims.queries - entry.first_query) + query].clone(),
            None => full(&certificate.before, alone),
        },
        _ => RowCertificate { classes: Vec::new(), fewest: 0, most: 0 },
    };
    whole.classes.resize(dims.keys, Class::Excluded);
    whole
}

/// What a full mask means for one row.
fn full(before: &Mask, row: Row) -> RowCertificate {
    let class = |&weight: &f32| if weight == 0.0 { Class::In } else { Class::Before };
    let classes: Vec<Class> = before.row_weights(row).iter().map(class).collect();
    let added = classes.iter().filter(|&&class| class == Class::In).count();
    RowCertificate { classes, fewest: added, most: added }
}

/// Judges an answer that has the shape of the whole call.
pub(super) fn judgement(
    instance: &Instance,
    call: &Call,
    entries: &[Entry],
    answer: &Answer,
    model: RoundingModel,
    certificate: &Certificate,
) -> Judgement {
    let mut whole = beyond(call, entries, answer);
    for (entry, alone) in entries.iter().zip(&certificate.entries) {
        if let (Some(call), Some(alone)) = (&entry.call, alone) {
            add(&mut whole, entry, of_one(instance, call, &entry.answer(answer), model, alone));
        }
    }
    whole.mask.rows = call.inputs.dims().rows().count();
    whole
}

/// Whether nothing of the padding is attended to, and rows without a position yield what they must.
pub fn beyond_is_empty(call: &Call, entries: &[Entry], answer: &Answer) -> bool {
    beyond(call, entries, answer).conforms()
}

/// The verdict on what no entry alone has.
fn beyond(call: &Call, entries: &[Entry], answer: &Answer) -> Judgement {
    let mut mask = MaskVerdict::default();
    let mut output = answer.output.as_ref().map(|_| OutputVerdict::default());
    let mut lse = answer.lse.as_ref().map(|_| LseVerdict::default());
    for row @ (b, head, query) in call.inputs.dims().rows() {
        let entry = &entries[b];
        let has_position = entry.row_alone(row).is_some();
        let beyond = if has_position { entry.keys } else { 0 };
        let mut attended = answer.mask.row(row).map(|(key, _)| key).filter(|&key| key >= beyond);
        if let Some(key) = attended.next() {
            let padding = Some(key).into_iter().chain(attended).find(|&key| key >= entry.keys);
            let excluded = MaskFault::HoldsExcluded { key };
            let fault = padding.map_or(excluded, |key| MaskFault::HoldsPadding { key });
            add_divergence(&mut mask, MaskDivergence { row, fault, evidence: None });
        }
        if has_position {
            continue;
        }
        if let (Some(verdict), Some(output)) = (&mut output, &answer.output) {
            let found = output.slice(ndarray::s![b, head, query, ..]);
            if let Some(dim) = found.iter().position(|&x| x != 0.0) {
                let (index, found) = ([b, head, query, dim], f64::from(found[dim]));
                verdict.worst_share = f64::INFINITY;
                verdict.divergences.push(OutputDivergence { index, found, expected: 0.0, bound: 0.0 });
            }
        }
        if let (Some(verdict), Some(lse)) = (&mut lse, &answer.lse)
            && lse[[b, head, query]] != f32::NEG_INFINITY
        {
            let (found, expected) = (f64::from(lse[[b, head, query]]), f64::NEG_INFINITY);
            verdict.worst_share = f64::INFINITY;
            verdict.divergences.push(LseDivergence { row, found, expected, bound: 0.0 });
        }
    }
    Judgement {
        mask,
        output,
        labels: None,
        judged_labels: false,
        scores: None,
        scores_by_labels: None,
        selection: None,
        lse,
    }
}

fn add_divergence(verdict: &mut MaskVerdict, divergence: MaskDivergence) {
    verdict.wrong_rows += 1;
    if verdict.divergences.len() < MOST_EXPLAINED {
        verdict.divergences.push(divergence);
    }
}

/// Adds the verdict on one entry alone.
fn add(whole: &mut Judgement, entry: &Entry, alone: Judgement) {
    let moved = |[_, head, query, last]: [usize; 4]| [entry.batch, head, entry.first_query + query, last];
    add_mask(&mut whole.mask, entry, alone.mask);
    if let (Some(whole), Some(alone)) = (&mut whole.output, alone.output) {
        whole.worst_share = whole.worst_share.max(alone.worst_share);
        whole.widest_bound = whole.widest_bound.max(alone.widest_bound);
        let divergences = alone.divergences.into_iter();
        whole.divergences.extend(
            divergences.map(|divergence| OutputDivergence { index: moved(divergence.index), ..divergence }),
        );
    }
    if let (Some(whole), Some(alone)) = (&mut whole.lse, alone.lse) {
        whole.worst_share = whole.worst_share.max(alone.worst_share);
        let divergences = alone.divergences.into_iter();
        whole.divergences.extend(
            divergences
                .map(|divergence| LseDivergence { row: entry.row_of_call(divergence.row), ..divergence }),
        );
    }
    if let Some(mut label) = alone.labels {
        let [_, head, position, channel] = label.index;
        label.index = match label.tensor {
            "q" => moved(label.index),
            _ => [entry.batch, head, position, channel],
        };
        whole.labels.get_or_insert(label);
    }
    whole.judged_labels |= alone.judged_labels;
    if let Some(scores) = alone.scores {
        let moved = scores.map(|mut divergence| {
            divergence.index = moved(divergence.index);
            divergence
        });
        whole.scores = Some(whole.scores.flatten().or(moved));
    }
    if let Some(mut divergence) = alone.scores_by_labels {
        divergence.index = moved(divergence.index);
        whole.scores_by_labels.get_or_insert(divergence);
    }
    if let Some(selection) = alone.selection {
        add_mask(whole.selection.get_or_insert_default(), entry, selection);
    }
}

/// A row with a fault of its own in the padding is counted once.
fn add_mask(whole: &mut MaskVerdict, entry: &Entry, alone: MaskVerdict) {
    whole.rows += alone.rows;
    whole.selecting += alone.selecting;
    whole.open += alone.open;
    let known: Vec<Row> = whole.divergences.iter().map(|divergence| divergence.row).collect();
    let (mut wrong, room) = (alone.wrong_rows, MOST_EXPLAINED.saturating_sub(whole.divergences.len()));
    let moved = alone.divergences.into_iter().filter_map(|mut divergence| {
        divergence.row = entry.row_of_call(divergence.row);
        let new = !known.contains(&divergence.row);
        wrong -= usize::from(!new);
        new.then_some(divergence)
    });
    let moved: Vec<_> = moved.collect();
    whole.divergences.extend(moved.into_iter().take(room));
    whole.wrong_rows += wrong;
}

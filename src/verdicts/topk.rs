//! The verdict on a selection from given scores (SPEC §2.8, §2.9). Nothing is recomputed, so that nothing is rounded: scores
//! are compared as they are, 0 and −0 as equal, and only true ties across the H-th place are open.

use ndarray::Array4;

use super::bounds::Approximate;
use super::certificate::{Candidacy, RowCertificate, certify_row};
use super::judge::{MOST_EXPLAINED, MaskDivergence, MaskFault, MaskVerdict, row_fault};
use crate::algorithm::{Mask, Row};
use crate::cases::ScoresCall;

/// What a selection from these scores must satisfy: keys of −∞ are no candidates; a NaN may rank anywhere.
///
/// The thresholds of a certificate with radii of 0 are the (H + 1)-th and the H-th largest score: above the first a key is in,
/// below the second it is out, and what lies between equals both, a tie across the H-th place.
pub fn certify(
    scores: &[f32],
    attended_before: impl Fn(usize) -> Option<Candidacy>,
    forced: impl Fn(usize) -> bool,
    heavy_size: usize,
) -> RowCertificate {
    let candidacy = |(key, &score): (usize, &f32)| match attended_before(key) {
        Some(candidacy) => candidacy,
        None if score == f32::NEG_INFINITY => Candidacy::Excluded,
        None if score.is_nan() => Candidacy::Scored(Approximate::UNDETERMINED),
        None if forced(key) => Candidacy::Forced(Approximate::new(f64::from(score), 0.0)),
        None => Candidacy::Scored(Approximate::new(f64::from(score), 0.0)),
    };
    let row: Vec<Candidacy> = scores.iter().enumerate().map(candidacy).collect();
    certify_row(&row, heavy_size)
}

/// Judges the mask [b, h, m, n] that was selected from scores [b, h, m, n]. `before` is the mask it was added to; in the
/// modes that share a selection between `sharing` heads, a key attended before by one of them is no candidate of any.
/// `forced` says of a query and a key whether it is selected whatever its score.
pub fn judge_selection(
    scores: &Array4<f32>,
    heavy_size: usize,
    before: &Mask,
    sharing: usize,
    forced: impl Fn(usize, usize) -> bool,
    mask: &Mask,
) -> MaskVerdict {
    let (batch, heads, queries, _) = scores.dim();
    let mut verdict = MaskVerdict::default();
    for row @ (b, head, i) in ndarray::indices((batch, heads, queries)) {
        let first = head / sharing * sharing;
        let together = first..first + sharing;
        let attended_before = |key: usize| match before.attends(b, head, i, key) {
            true => Some(Candidacy::Before),
            false if sharing > 1 && together.clone().any(|other| before.attends(b, other, i, key)) => {
                Some(Candidacy::Excluded)
            }
            false => None,
        };
        let of_row = scores.slice(ndarray::s![b, head, i, ..]).to_vec();
        let certificate = certify(&of_row, attended_before, |key| forced(i, key), heavy_size);
        verdict.rows += 1;
        verdict.selecting += usize::from(certificate.selects());
        verdict.open += certificate.open();
        if let Some(fault) = row_fault(&certificate, before, mask, row) {
            verdict.wrong_rows += 1;
            if verdict.divergences.len() < MOST_EXPLAINED {
                verdict.divergences.push(MaskDivergence { row, fault, evidence: None });
            }
        }
    }
    verdict
}

/// Judges what a top-k answered, [b, h, m, n].
pub fn judge_top_k(call: &ScoresCall, mask: &Mask) -> MaskVerdict {
    let before = Mask::empty(&call.dims());
    let mut verdict = judge_selection(call.scores(), call.heavy_size().get(), &before, 1, |_, _| false, mask);
    if let Some(lengths) = call.lengths() {
        // Rows that select padding are wrong already: their scores are −∞. This says why, and comes first.
        let padding = |row: Row| {
            let key = mask.row(row).map(|(key, _)| key).find(|&key| key >= lengths.keys()[row.0])?;
            Some(MaskDivergence { row, fault: MaskFault::HoldsPadding { key }, evidence: None })
        };
        let mut told: Vec<_> = call.dims().rows().filter_map(padding).collect();
        let others = std::mem::take(&mut verdict.divergences).into_iter();
        let rows: Vec<Row> = told.iter().map(|divergence| divergence.row).collect();
        told.extend(others.filter(|divergence| !rows.contains(&divergence.row)));
        told.truncate(MOST_EXPLAINED);
        verdict.divergences = told;
    }
    verdict
}

/// The score of a key at fault, and the scores on both sides of the H-th place of its row.
pub fn explain(call: &ScoresCall, divergence: &MaskDivergence) -> String {
    use MaskFault::{HoldsOut, MissesIn};
    let (HoldsOut { key } | MissesIn { key }) = divergence.fault else {
        return divergence.to_string();
    };
    let (b, head, i): Row = divergence.row;
    let row = call.scores().slice(ndarray::s![b, head, i, ..]);
    let mut sorted = row.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let heavy_size = call.heavy_size().get();
    let place = match divergence.fault {
        HoldsOut { .. } => heavy_size - 1,
        _ => heavy_size,
    };
    let threshold = sorted.get(place).map_or("−∞".into(), |score| format!("{score:e}"));
    format!("{divergence} (score {:e}, number {} of its row is {threshold})", row[key], place + 1)
}

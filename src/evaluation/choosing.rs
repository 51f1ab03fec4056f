//! Which H, G and B to choose, out of what an evaluation measured: the settings that nothing cheaper beats, and the cheapest that
//! loses little against dense attention. Exact top-k, random keys and deliberate faults are no settings to choose.

use std::collections::BTreeSet;

use super::results::{ContenderResult, Evaluation, Interval, Measure};
use super::steps::StepFault;
use crate::behaviours::Fault;

/// Losses against dense attention that are asked about.
pub const LOSSES: [f64; 3] = [0.01, 0.03, 0.10];

/// The cheapest settings that lose at most so much.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cheapest {
    /// The share of dense attention's quality that may be lost.
    pub loss: f64,
    /// The row, by the figure that was measured.
    pub measured: Option<usize>,
    /// The row, where all of the 95 % interval must be within the loss.
    pub certain: Option<usize>,
}

/// Whether G or B differ between settings, so that there is something to choose.
pub fn is_sweep(evaluation: &Evaluation) -> bool {
    let rows = settings(evaluation).into_iter().map(|index| &evaluation.rows[index]);
    rows.map(|row| (row.group_factor, row.label_bits)).collect::<BTreeSet<_>>().len() > 1
}

/// The rows that are settings of labels, without deliberate faults.
pub fn settings(evaluation: &Evaluation) -> Vec<usize> {
    let is_setting = |row: &ContenderResult| {
        let name = row.masker.split(' ').next().unwrap_or_default();
        row.group_factor.is_some() && Fault::find_all(name).is_empty() && StepFault::find(name).is_none()
    };
    (0..evaluation.rows.len()).filter(|&index| is_setting(&evaluation.rows[index])).collect()
}

/// The Pareto front, cheapest first: settings that lose less than every setting that reads as few bytes.
pub fn front(evaluation: &Evaluation) -> Vec<usize> {
    let mut front = Vec::new();
    let mut least = f64::INFINITY;
    for (index, loss) in by_bytes(evaluation) {
        if loss.value < least {
            least = loss.value;
            front.push(index);
        }
    }
    front
}

/// The cheapest setting for each of [`LOSSES`].
pub fn cheapest(evaluation: &Evaluation) -> Vec<Cheapest> {
    let settings = by_bytes(evaluation);
    let first = |within: &dyn Fn(&Interval) -> bool| {
        settings.iter().find(|(_, loss)| within(loss)).map(|(index, _)| *index)
    };
    let cheapest = |loss: f64| Cheapest {
        loss,
        measured: first(&|lost| lost.value <= loss),
        certain: first(&|lost| lost.high <= loss),
    };
    LOSSES.map(cheapest).into()
}

/// Settings with what they lose, by bytes, then by loss; those without figures are left out.
fn by_bytes(evaluation: &Evaluation) -> Vec<(usize, Interval)> {
    let lost = |index: usize| Some((index, lost(evaluation, &evaluation.rows[index])?));
    let mut all: Vec<_> = settings(evaluation).into_iter().filter_map(lost).collect();
    let bytes = |index: usize| evaluation.rows[index].bytes;
    all.sort_by(|a, b| bytes(a.0).total_cmp(&bytes(b.0)).then(a.1.value.total_cmp(&b.1.value)));
    all
}

/// The share of dense attention's quality that a row loses, with its interval; below 0 where it is better.
fn lost(evaluation: &Evaluation, row: &ContenderResult) -> Option<Interval> {
    let against = row.against_dense?;
    let dense = evaluation.rows.first()?.quality.value;
    let Interval { value, low, high } = match evaluation.measure {
        Measure::Perplexity => {
            let lost = |ratio: f64| ratio - 1.0;
            Interval { value: lost(against.value), low: lost(against.low), high: lost(against.high) }
        }
        Measure::F1 | Measure::Accuracy => {
            let lost = |points: f64| -points / dense;
            Interval { value: lost(against.value), low: lost(against.high), high: lost(against.low) }
        }
    };
    (!value.is_nan() && row.bytes.is_finite()).then_some(Interval { value, low, high })
}

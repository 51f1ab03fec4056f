//! How sharp verdicts were: a verdict that leaves many keys open is weak, and says so.

use serde::Serialize;

use super::judge::Verdict;

/// How much room verdicts left, and how much of it was used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Sharpness {
    /// Rows of masks that were judged.
    pub rows: usize,
    /// Keys in those rows that rounding alone could move in or out of the selection.
    pub open: usize,
    /// Largest error of an output as a share of its bound.
    pub worst_output_error: Option<f64>,
    /// Largest bound of an output as a share of its row's largest output.
    pub widest_output_bound: Option<f64>,
}

impl Sharpness {
    /// The sharpness of one verdict; empty where the answer was refused.
    pub fn of(verdict: &Verdict) -> Self {
        let Some(judgement) = verdict.judgement() else {
            return Self::default();
        };
        Self {
            rows: judgement.mask.rows,
            open: judgement.mask.open,
            worst_output_error: judgement.output.as_ref().map(|output| output.worst_share),
            widest_output_bound: judgement.output.as_ref().map(|output| output.widest_bound),
        }
    }

    /// Adds counts and keeps the larger figures.
    pub fn add(&mut self, other: &Self) {
        let larger = |a: Option<f64>, b: Option<f64>| match (a, b) {
            (Some(a), Some(b)) => Some(a.max(b)),
            (a, b) => a.or(b),
        };
        self.rows += other.rows;
        self.open += other.open;
        self.worst_output_error = larger(self.worst_output_error, other.worst_output_error);
        self.widest_output_bound = larger(self.widest_output_bound, other.widest_output_bound);
    }

    /// Open keys per row of a mask, where there are rows.
    pub fn open_per_row(&self) -> Option<f64> {
        (self.rows > 0).then(|| self.open as f64 / self.rows as f64)
    }
}

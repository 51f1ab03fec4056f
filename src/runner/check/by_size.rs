//! What was asked and judged at which numbers of keys. A row of which every candidate is selected says nothing about a
//! ranking, so rows that left out a candidate are counted apart.

use serde::Serialize;

use crate::cases::{Sequence, StageCall};
use crate::verdicts::{StageVerdict, Verdict};

/// The sizes at which a table of a report ends its rows, and stages of a plan for the time end: random sequences have at most
/// 40 keys.
pub const SIZES: [usize; 8] = [40, 256, 1024, 4096, 16_384, 65_536, 131_072, 1_048_576];

/// What was asked of calls with up to some number of keys, and more than the size before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct OfSize {
    /// The most keys; calls of more than the last size count there, too.
    pub keys: usize,
    /// Calls asked.
    pub calls: usize,
    /// Rows (batch, head, query) that were judged.
    pub rows: usize,
    /// Rows among them in which candidates were left out: there were more than H.
    pub selecting: usize,
}

/// What was asked of each size, ascending; sizes that were never asked are left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct BySize(Vec<OfSize>);

impl BySize {
    /// One entry for each size that was asked.
    pub fn sizes(&self) -> &[OfSize] {
        &self.0
    }

    pub(super) fn add(&mut self, sequence: &Sequence, verdicts: &[Verdict]) {
        for (call, verdict) in sequence.calls.iter().zip(verdicts) {
            let mask = verdict.judgement().map(|judgement| &judgement.mask);
            let (rows, selecting) = mask.map_or((0, 0), |mask| (mask.rows, mask.selecting));
            self.count(call.inputs.dims().keys, rows, selecting);
        }
    }

    pub(super) fn add_stage(&mut self, call: &StageCall, verdict: &StageVerdict) {
        self.count(call.dims().keys, verdict.rows, verdict.selecting);
    }

    fn count(&mut self, keys: usize, rows: usize, selecting: usize) {
        let size = SIZES.into_iter().find(|&size| keys <= size).unwrap_or(SIZES[SIZES.len() - 1]);
        let place = match self.0.binary_search_by_key(&size, |entry| entry.keys) {
            Ok(place) => place,
            Err(place) => {
                self.0.insert(place, OfSize { keys: size, calls: 0, rows: 0, selecting: 0 });
                place
            }
        };
        let entry = &mut self.0[place];
        entry.calls += 1;
        entry.rows += rows;
        entry.selecting += selecting;
    }
}

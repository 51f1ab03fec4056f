//! Faults that depend on how many keys there are. An evaluation gives many queries in one call, and each of them stands for a decode
//! step of its own, in which the keys end at its position; a fault that counts keys must count those of the step. What is lost there
//! is what `behaviours` says it is.

use crate::algorithm::Dims;
use crate::behaviours::changes::{Lost, Place};

/// A fault of decode steps.
#[derive(Debug, PartialEq)]
pub struct StepFault {
    /// What options and results call it.
    pub name: &'static str,
    /// Keys that lose their score.
    pub lost: Lost,
    /// The score that they have instead: −∞ excludes them, a finite one ranks them behind all others.
    pub score: f64,
}

/// Those that can be measured. The first is SGLang's, whose kernel stores the scores of a row in whole tiles of 32.
pub const STEP_FAULTS: [StepFault; 2] = [
    StepFault { name: "next-row-overwritten", lost: Lost::TailOfAnyRowBefore(32), score: -1e30 },
    StepFault { name: "newest-key-held-out", lost: Lost::Newest, score: f64::NEG_INFINITY },
];

impl StepFault {
    /// The one of a name.
    pub fn find(name: &str) -> Option<&'static Self> {
        STEP_FAULTS.iter().find(|fault| fault.name.eq_ignore_ascii_case(name))
    }

    /// Whether each key is lost to each head and query, [h, m, n] in one list: what a step with this query alone would lose.
    pub fn lost(&self, dims: &Dims) -> Vec<bool> {
        let mut lost = Vec::with_capacity(dims.heads * dims.queries * dims.keys);
        for head in 0..dims.heads {
            for query in 0..dims.queries {
                let position = dims.position(query);
                let step = Dims { batch: 1, queries: 1, keys: position + 1, ..*dims };
                let place = Place { row: (0, head, 0), dims: &step, earlier: 0, lengths: [None; 3] };
                lost.extend((0..dims.keys).map(|key| key <= position && self.lost.holds(key, &place)));
            }
        }
        lost
    }
}

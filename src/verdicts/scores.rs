//! The verdict on scores that an implementation gives beside its selection (SPEC §2.6, §2.7): each must lie within the radius
//! that the certificate derives for it (SPEC §5), and be −∞ where A is. Where labels are given, too, it must also lie within the
//! radius that follows from these, so that a wrong label is no wrong score. Keys attended before are not ranked, so
//! their scores may be anything.

use ndarray::Array4;

use super::bounds::Approximate;
use super::certificate::ScoreBounds;
use crate::algorithm::Mask;
use crate::cases::{AnsweredLabels, Call, Instance, RoundingModel};

/// A score that no conforming implementation has.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScoreDivergence {
    /// Batch, head, query, key.
    pub index: [usize; 4],
    /// What the implementation gave.
    pub found: f32,
    /// Recomputed in f64, with its radius.
    pub expected: Approximate,
}

impl std::fmt::Display for ScoreDivergence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ([b, head, query, key], found) = (self.index, self.found);
        write!(f, "score[batch {b}, head {head}, query {query}, key {key}]: found {found:e}, expected ")?;
        match self.expected {
            Approximate::EXCLUDED => f.write_str("-inf"),
            Approximate { value, radius, .. } => write!(f, "{value:e} ± {radius:.1e}"),
        }
    }
}

/// Whether a score may be what was found.
pub fn allows(expected: Approximate, found: f32) -> bool {
    let (minus, plus) = (expected.may_be_minus_infinity, expected.may_be_plus_infinity);
    match f64::from(found) {
        _ if expected == Approximate::EXCLUDED => found == f32::NEG_INFINITY,
        // Infinities of both signs, or +∞ with −∞ added, are NaN.
        found if found.is_nan() => minus && plus,
        found => (expected.low()..=expected.high()).contains(&found),
    }
}

/// The first score at fault of scores [b, h, m, n] of a call in which keys are ranked: by what is allowed from the inputs, or from
/// labels that were given.
pub fn judge_scores(
    instance: &Instance,
    call: &Call,
    scores: &Array4<f32>,
    model: RoundingModel,
    before: &Mask,
    labels: Option<&AnsweredLabels>,
) -> Option<ScoreDivergence> {
    let bounds = match labels {
        None => ScoreBounds::new(instance, call, model, before),
        Some(labels) => ScoreBounds::from_labels(instance, call, model, before, labels),
    };
    let bounds = bounds.ok()??;
    let dims = call.inputs.dims();
    for row @ (b, head, i) in dims.rows() {
        let attended_before = bounds.attended_before(row);
        for (key, expected) in bounds.ranked_by(row).into_iter().enumerate() {
            let found = scores[[b, head, i, key]];
            if !attended_before(key) && !allows(expected, found) {
                return Some(ScoreDivergence { index: [b, head, i, key], found, expected });
            }
        }
    }
    None
}

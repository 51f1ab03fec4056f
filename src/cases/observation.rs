//! What was observed: a sequence of calls and what an implementation answered to it.

use super::case::{Answer, NoAnswer};
use super::sequence::Sequence;

/// What was asked and what came back: one entry for each call.
#[derive(Debug, Clone)]
pub struct Observation {
    /// The question.
    pub sequence: Sequence,
    /// The answers, in order.
    pub answers: Vec<Result<Answer, NoAnswer>>,
    /// Whether the instance itself was refused, so that its calls were never asked.
    pub instance_refused: bool,
}

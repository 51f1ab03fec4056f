//! What was observed: a sequence of calls and what an implementation answered to it.

use std::num::NonZeroUsize;
use std::sync::Arc;

use super::case::{Answer, NoAnswer};
use super::sequence::{Instance, Sequence};
use crate::algorithm::{
    ChannelFile, ChannelKind, GroupFactor, HeadMode, HeavySize, LabelBits, Rules, Selection,
};

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

impl Observation {
    /// For a question to one stage, which is no sequence of calls: only its name is kept here.
    pub fn without_calls(name: String) -> Self {
        let selection = Selection {
            heavy_size: HeavySize::Count(NonZeroUsize::MIN),
            group_factor: GroupFactor::default(),
            label_bits: LabelBits::UNQUANTISED,
            heads: HeadMode::default(),
            dense_fallback: false,
            rules: Rules::default(),
        };
        let instance = Instance {
            selection,
            earlier_maskers: Vec::new(),
            dense_layers: Vec::new(),
            channel_selection: ChannelKind::QkProj,
            channel_file: Arc::new(ChannelFile::default()),
        };
        let sequence = Sequence { name, instance, calls: Vec::new() };
        Self { sequence, answers: Vec::new(), instance_refused: false }
    }
}

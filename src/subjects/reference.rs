//! The reference of `algorithm` as a subject.

use super::{Subject, not_configured, not_opened};
use crate::algorithm::attention::{attention, log_sum_exp};
use crate::algorithm::calibrate::Importance;
use crate::algorithm::quantize::quantize_in_place;
use crate::algorithm::select::select;
use crate::algorithm::{ChannelOrder, LabelBits, Mask, SparseAttention, Storage};
use crate::cases::ragged::by_entry;
use crate::cases::{
    Answer, Attended, CalibrationCase, Call, Capabilities, Held, Instance, NoAnswer, Opening, RoundingModel,
    ScoresCall, SelectionCall, Step, StepAnswer,
};

/// The pure-Rust reference.
#[derive(Debug, Default)]
pub struct Reference {
    instance: Option<(Instance, SparseAttention)>,
    serving: bool,
    held: Option<Held>,
}

impl Reference {
    /// The reference that offers sessions, too: it keeps dense keys. Whoever wraps it passes on [`Subject::open`] and
    /// [`Subject::step`].
    pub fn serving() -> Self {
        Self { serving: true, ..Self::default() }
    }
}

impl Subject for Reference {
    fn name(&self) -> String {
        "reference".into()
    }

    fn rounding_model(&self) -> RoundingModel {
        RoundingModel::REFERENCE
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { ragged: true, sessions: self.serving, ..Capabilities::default() }
    }

    fn configure(&mut self, instance: &Instance) -> Result<(), NoAnswer> {
        self.instance = Some((instance.clone(), instance.attention()));
        Ok(())
    }

    fn call(&mut self, call: &Call) -> Result<Answer, NoAnswer> {
        let (instance, maskers) = self.instance.as_ref().ok_or_else(not_configured)?;
        by_entry(call, |call| {
            let mask = maskers.extend_mask(&call.inputs, call.layer, instance.start(call))?;
            let output = attention(&call.inputs, &mask)?;
            Ok(Answer::new(mask, Some(output)))
        })
    }

    fn open(&mut self, opening: &Opening) -> Result<(), NoAnswer> {
        self.held = Some(Held::new(opening));
        Ok(())
    }

    fn step(&mut self, step: &Step) -> StepAnswer {
        let mut held = self.held.take().ok_or_else(not_opened)?;
        let answer = held.step(step, |call| self.call(call));
        self.held = Some(held);
        answer
    }

    fn select(&mut self, call: &ScoresCall) -> Result<Mask, NoAnswer> {
        let dims = call.dims();
        let mut mask = Mask::empty(&dims);
        for row @ (b, head, i) in dims.rows() {
            let scores = call.scores().slice(ndarray::s![b, head, i, ..]);
            let scores: Vec<f64> = scores.iter().map(|&score| f64::from(score)).collect();
            mask.add(row, select(&scores, |_| false, call.heavy_size().get()));
        }
        Ok(mask)
    }

    fn attend(&mut self, call: &SelectionCall) -> Result<Attended, NoAnswer> {
        Ok(Attended {
            output: Some(attention(&call.inputs, &call.mask)?),
            lse: Some(log_sum_exp(&call.inputs, &call.mask)?),
        })
    }

    fn labels(
        &mut self,
        row: &[f32],
        bits: LabelBits,
        storage: Storage,
    ) -> Option<Result<Vec<f32>, NoAnswer>> {
        let mut labels = row.to_vec();
        Some(quantize_in_place(&mut labels, bits, storage).map(|()| labels).map_err(NoAnswer::from))
    }

    fn calibrate(&mut self, case: &CalibrationCase) -> Option<Result<ChannelOrder, NoAnswer>> {
        let mut importance = Importance::new(case.kind);
        let added = case.blocks.iter().try_for_each(|block| importance.add(block));
        Some(added.and_then(|()| importance.order()).map_err(NoAnswer::from))
    }
}

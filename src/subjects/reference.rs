//! The reference of `algorithm` as a subject.

use super::Subject;
use crate::algorithm::attention::attention;
use crate::algorithm::calibrate::Importance;
use crate::algorithm::quantize::quantize_in_place;
use crate::algorithm::{ChannelOrder, LabelBits, Masker, Storage};
use crate::cases::{Answer, CalibrationCase, Case, NoAnswer, RoundingModel};

/// The pure-Rust reference.
#[derive(Debug, Clone, Copy, Default)]
pub struct Reference;

impl Subject for Reference {
    fn name(&self) -> String {
        "reference".into()
    }

    fn rounding_model(&self) -> RoundingModel {
        RoundingModel::REFERENCE
    }

    fn answer(&mut self, case: &Case) -> Result<Answer, NoAnswer> {
        let mask = case.masker().add_mask(&case.inputs, 0, &case.mask_before()?)?;
        let output = attention(&case.inputs, &mask)?;
        Ok(Answer { mask, output: Some(output) })
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

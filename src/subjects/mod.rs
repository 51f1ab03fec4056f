//! Who is checked. A subject is an implementation of Double Sparsity behind one short adapter; the runner is the same for
//! all of them.

pub mod reference;
#[cfg(feature = "torch")]
pub mod torch;

use crate::algorithm::{ChannelOrder, LabelBits, Storage};
use crate::cases::{Answer, CalibrationCase, Case, NoAnswer, RoundingModel};

pub use reference::Reference;
#[cfg(feature = "torch")]
pub use torch::Torch;

/// An implementation of Double Sparsity.
pub trait Subject {
    /// What reports call it.
    fn name(&self) -> String;

    /// How it says it rounds (SPEC §5).
    fn rounding_model(&self) -> RoundingModel;

    /// Mask and, where it computes attention, output of one case.
    fn answer(&mut self, case: &Case) -> Result<Answer, NoAnswer>;

    /// Labels of one row (SPEC §2.5); `None` where it offers no such thing.
    fn labels(
        &mut self,
        row: &[f32],
        bits: LabelBits,
        storage: Storage,
    ) -> Option<Result<Vec<f32>, NoAnswer>>;

    /// A channel order (SPEC §4); `None` where it offers no such thing.
    fn calibrate(&mut self, case: &CalibrationCase) -> Option<Result<ChannelOrder, NoAnswer>>;
}

//! Who is checked. A subject is an implementation of Double Sparsity behind one short adapter; the runner is the same for
//! all of them.

#[cfg(feature = "engine")]
pub mod engine;
pub mod faulty;
pub mod process;
pub mod reference;
#[cfg(feature = "torch")]
pub mod torch;
#[cfg(feature = "torch")]
pub mod torch_cache;

use ndarray::Array4;

use crate::algorithm::{ChannelOrder, LabelBits, Storage};
use crate::cases::{
    Answer, CalibrationCase, Call, Capabilities, Case, Feature, Instance, NoAnswer, Observation,
    RoundingModel, Sequence,
};

#[cfg(feature = "engine")]
pub use engine::Engine;
pub use faulty::Faulty;
pub use process::Process;
pub use reference::Reference;
#[cfg(feature = "torch")]
pub use torch::Torch;
#[cfg(feature = "torch")]
pub use torch_cache::TorchCache;

/// An implementation of Double Sparsity. It is configured once for each instance and then called, for several layers and
/// lengths; nothing of an earlier call may show in a later one.
pub trait Subject {
    /// What reports call it.
    fn name(&self) -> String;

    /// How it says it rounds (SPEC §5); the default is how PyTorch does it.
    fn rounding_model(&self) -> RoundingModel {
        RoundingModel::default()
    }

    /// What it may be asked for; the default is everything.
    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }

    /// A new instance; the one before is over. A refusal refuses every call of the instance.
    fn configure(&mut self, instance: &Instance) -> Result<(), NoAnswer>;

    /// Mask and, where it computes attention, output of one call of the instance.
    fn call(&mut self, call: &Call) -> Result<Answer, NoAnswer>;

    /// The tensor `selected` [b, h, m, ·] of the last answer, as it was sent; `None` where it held none.
    fn selected(&self) -> Option<&Array4<i32>> {
        None
    }

    /// One case, as the only call of an instance.
    fn answer(&mut self, case: &Case) -> Result<Answer, NoAnswer> {
        self.configure(&case.instance)?;
        self.call(&case.call)
    }

    /// Labels of one row (SPEC §2.5); `None` where it offers no such thing.
    fn labels(
        &mut self,
        _row: &[f32],
        _bits: LabelBits,
        _storage: Storage,
    ) -> Option<Result<Vec<f32>, NoAnswer>> {
        None
    }

    /// A channel order (SPEC §4); `None` where it offers no such thing.
    fn calibrate(&mut self, _case: &CalibrationCase) -> Option<Result<ChannelOrder, NoAnswer>> {
        None
    }
}

/// Asks every call of a sequence of one fresh instance.
pub fn ask(subject: &mut dyn Subject, sequence: &Sequence) -> Observation {
    let wants_output = subject.capabilities().offers(Feature::Output);
    let whole = |answer: Answer| match answer.output.is_none() && wants_output {
        true => Err(NoAnswer::Failed(
            "the answer holds no output, expected one, or \"output\" among what the subject lacks".into(),
        )),
        false => Ok(answer),
    };
    let configured = subject.configure(&sequence.instance);
    let instance_refused = configured.is_err();
    let answers = match configured {
        Ok(()) => sequence.calls.iter().map(|call| subject.call(call).and_then(whole)).collect(),
        // An instance that is refused refuses each of its calls.
        Err(no_answer) => vec![Err(no_answer); sequence.calls.len()],
    };
    Observation { sequence: sequence.clone(), answers, instance_refused }
}

/// What a call without an instance gets.
pub(crate) fn not_configured() -> NoAnswer {
    NoAnswer::Failed("called before it was configured".into())
}

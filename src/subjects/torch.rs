//! libtorch as a subject (feature `torch`). Tensors go to the device at the start of a call and come back at its end.

use tch::{Device, Kind, Tensor};

use super::{Subject, not_configured};
use crate::algorithm::config::WindowConfig;
use crate::algorithm::{HeadMode, LabelBits, Mask, Storage};
use crate::cases::ragged::by_entry;
use crate::cases::{Answer, Call, Capabilities, EarlierMasker, Instance, NoAnswer, RoundingModel};
use crate::torch::attention::attention;
use crate::torch::{self, DeviceChoice, DeviceError, Layer, TorchMasker, device, masker, to_device, to_host};

/// Double Sparsity in libtorch operations.
#[derive(Debug)]
pub struct Torch {
    device: Device,
    instance: Option<Instance>,
}

impl From<torch::Error> for NoAnswer {
    fn from(error: torch::Error) -> Self {
        match error {
            torch::Error::Refused(error) => Self::Refused(error),
            torch::Error::Failed(problem) => Self::Failed(problem),
        }
    }
}

impl Torch {
    /// On a device. Errors: [`DeviceError::NoCuda`], [`DeviceError::Arithmetic`].
    pub fn new(choice: DeviceChoice) -> Result<Self, DeviceError> {
        device::open(choice).map(|device| Self { device, instance: None })
    }

    /// The device.
    pub fn device(&self) -> Device {
        self.device
    }

    pub(super) fn instance(&self) -> Result<&Instance, NoAnswer> {
        self.instance.as_ref().ok_or_else(not_configured)
    }

    fn previous(&self, call: &Call) -> torch::Result<Option<Tensor>> {
        call.previous.as_ref().map(|previous| to_device(previous.weights(), self.device)).transpose()
    }

    /// The mask that Double Sparsity starts from; `None` where it is empty.
    pub(super) fn mask_before(
        &self,
        instance: &Instance,
        call: &Call,
        layer: &Layer,
    ) -> torch::Result<Option<Tensor>> {
        self.windows(instance, layer, self.previous(call)?)
    }

    /// The same, on top of a mask.
    pub(super) fn windows(
        &self,
        instance: &Instance,
        layer: &Layer,
        mut before: Option<Tensor>,
    ) -> torch::Result<Option<Tensor>> {
        for earlier in &instance.earlier_maskers {
            let start = match before {
                Some(mask) => mask,
                None => Tensor::f_zeros(layer.mask_shape(), (Kind::Float, self.device))?,
            };
            before = Some(match *earlier {
                EarlierMasker::Sink(WindowConfig { size }) => masker::sink(layer, size, &start)?,
                EarlierMasker::Local(WindowConfig { size }) => masker::local(layer, size, &start)?,
            });
        }
        Ok(before)
    }

    /// A layer that stays dense: earlier weights stay, everything else is attended with weight 1.
    pub(super) fn dense(&self, call: &Call) -> Result<Answer, NoAnswer> {
        let layer = Layer::of_inputs(&call.inputs, self.device)?;
        attend(&layer, &masker::filled(&layer, self.previous(call)?.as_ref())?)
    }

    fn sparse(&self, instance: &Instance, call: &Call) -> Result<Answer, NoAnswer> {
        let (inputs, selection) = (&call.inputs, &instance.selection);
        let channels = instance.channels(call.layer)?;
        let masker = TorchMasker::new(&inputs.dims(), channels, selection, inputs.storage(), self.device)?;
        let layer = Layer::of_inputs(inputs, self.device)?;
        layer.check(selection.heads)?;
        let before = self.mask_before(instance, call, &layer)?;
        attend(&layer, &masker.add_mask(&layer, before.as_ref())?)
    }
}

/// A mask and the attention over it.
pub(super) fn attend(layer: &Layer, mask: &Tensor) -> Result<Answer, NoAnswer> {
    let output = to_host(&attention(layer, mask)?)?;
    let mask = Mask::from_weights(to_host(mask)?, &layer.dims)?;
    Ok(Answer::new(mask, Some(output)))
}

impl Subject for Torch {
    fn name(&self) -> String {
        format!("torch on {}", device::describe(self.device))
    }

    fn rounding_model(&self) -> RoundingModel {
        RoundingModel::F32
    }

    /// All head modes; rules other than the published ones are asked for by name, as of the reference.
    fn capabilities(&self) -> Capabilities {
        Capabilities { heads: HeadMode::EVERY.to_vec(), ragged: true, ..Capabilities::default() }
    }

    fn configure(&mut self, instance: &Instance) -> Result<(), NoAnswer> {
        self.instance = Some(instance.clone());
        Ok(())
    }

    fn call(&mut self, call: &Call) -> Result<Answer, NoAnswer> {
        let instance = self.instance()?;
        by_entry(call, |call| {
            if instance.dense_layers.contains(&call.layer) {
                return self.dense(call);
            }
            self.sparse(instance, call)
        })
    }

    fn labels(
        &mut self,
        row: &[f32],
        bits: LabelBits,
        storage: Storage,
    ) -> Option<Result<Vec<f32>, NoAnswer>> {
        Some(masker::labels_of_row(row, bits, storage, self.device).map_err(NoAnswer::from))
    }
}

//! libtorch as a subject: an independent Double Sparsity on CPU and CUDA (feature `torch`). Labels are those of SPEC §2.5 bit
//! for bit, scores and attention are computed in f32. Tensors go to the device at the start and come back at the end.

pub mod attention;
pub mod cache;
pub mod cached;
pub mod device;
pub mod masker;

use ndarray::Array4;
use tch::{Device, Kind, TchError, Tensor};

pub use cached::TorchCache;
pub use device::{DeviceChoice, DeviceError};

use super::{Subject, not_configured};
use crate::algorithm::config::WindowConfig;
use crate::algorithm::{HeavySize, Inputs, LabelBits, Mask, Storage};
use crate::cases::{Answer, Call, Case, EarlierMasker, Instance, NoAnswer, RoundingModel};
use masker::{Layer, Masker, failed};

/// Double Sparsity in libtorch operations.
#[derive(Debug)]
pub struct Torch {
    device: Device,
    instance: Option<Instance>,
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

    /// The mask that Double Sparsity starts from; `None` where it is empty.
    fn mask_before(&self, case: &Case, layer: &Layer) -> Result<Option<Tensor>, TchError> {
        let mut before = match &case.call.previous {
            Some(previous) => Some(masker::to_device(previous.weights(), self.device)?),
            None => None,
        };
        for earlier in &case.instance.earlier_maskers {
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
    fn dense(&self, call: &Call) -> Result<Answer, NoAnswer> {
        let layer = Layer::new(&call.inputs, self.device).map_err(failed)?;
        let before = match &call.previous {
            Some(previous) => Some(masker::to_device(previous.weights(), self.device).map_err(failed)?),
            None => None,
        };
        self.attend(&layer, &call.inputs, &masker::filled(&layer, before.as_ref()).map_err(failed)?)
    }

    fn sparse(&self, case: &Case) -> Result<Answer, NoAnswer> {
        let dims = case.call.inputs.dims();
        let selection = case.instance.selection;
        let masker = Masker::new(&dims, &case.channels, &selection, case.call.inputs.storage(), self.device)?;
        let layer = Layer::new(&case.call.inputs, self.device).map_err(failed)?;
        layer.check(selection.heads)?;
        let before = self.mask_before(case, &layer).map_err(failed)?;
        let mask = masker.add_mask(&layer, before.as_ref())?;
        self.attend(&layer, &case.call.inputs, &mask)
    }

    fn attend(&self, layer: &Layer, inputs: &Inputs, mask: &Tensor) -> Result<Answer, NoAnswer> {
        let output = attention::attention(layer, mask).and_then(|output| to_host(&output)).map_err(failed)?;
        let mask = Mask::from_weights(to_host(mask).map_err(failed)?, &inputs.dims())?;
        Ok(Answer { mask, output: Some(output), labels: None })
    }

    /// Exact top-k added to a mask. Errors: those of libtorch.
    pub fn oracle(&self, inputs: &Inputs, heavy_size: HeavySize, before: &Mask) -> Result<Mask, NoAnswer> {
        let mask = || -> Result<Array4<f32>, TchError> {
            let layer = Layer::new(inputs, self.device)?;
            let before = masker::to_device(before.weights(), self.device)?;
            to_host(&masker::oracle(&layer, heavy_size, Some(&before))?.mask(&layer, Some(&before))?)
        };
        Ok(Mask::from_weights(mask().map_err(failed)?, &inputs.dims())?)
    }
}

/// The numbers of a tensor with four dimensions. Errors: those of libtorch; another number of dimensions.
pub fn to_host(tensor: &Tensor) -> Result<Array4<f32>, TchError> {
    let shape = tensor.size();
    if shape.len() != 4 {
        return Err(TchError::Shape(format!("found {shape:?}, expected four dimensions")));
    }
    let tensor = tensor.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_contiguous()?;
    let mut values = vec![0.0f32; tensor.numel()];
    tensor.f_copy_data(&mut values, tensor.numel())?;
    let shape = [0, 1, 2, 3].map(|axis| shape[axis] as usize);
    Array4::from_shape_vec(shape, values).map_err(|error| TchError::Shape(error.to_string()))
}

impl Subject for Torch {
    fn name(&self) -> String {
        format!("torch on {}", device::describe(self.device))
    }

    fn rounding_model(&self) -> RoundingModel {
        RoundingModel::F32
    }

    fn configure(&mut self, instance: &Instance) -> Result<(), NoAnswer> {
        self.instance = Some(instance.clone());
        Ok(())
    }

    fn call(&mut self, call: &Call) -> Result<Answer, NoAnswer> {
        let instance = self.instance.as_ref().ok_or_else(not_configured)?;
        if instance.dense_layers.contains(&call.layer) {
            return self.dense(call);
        }
        self.sparse(&instance.case(call)?)
    }

    fn labels(
        &mut self,
        row: &[f32],
        bits: LabelBits,
        storage: Storage,
    ) -> Option<Result<Vec<f32>, NoAnswer>> {
        let labels = || -> Result<Vec<f32>, TchError> {
            let row = Tensor::f_from_slice(row)?.f_to_device(self.device)?;
            let column = row.f_to_kind(masker::kind(storage))?.f_unsqueeze(1)?;
            let mut labels = column.f_contiguous()?;
            masker::quantize_(&mut labels, bits, storage)?;
            let labels = labels.f_to_kind(Kind::Float)?.f_to_device(Device::Cpu)?;
            let mut values = vec![0.0f32; labels.numel()];
            labels.f_contiguous()?.f_copy_data(&mut values, row.numel())?;
            Ok(values)
        };
        Some(labels().map_err(failed).and_then(|labels| {
            if labels.iter().all(|label| label.is_finite()) {
                return Ok(labels);
            }
            Err(masker::label_range())
        }))
    }
}

//! The label cache as a subject: every call fills a new cache in uneven pieces, as prompts and decode steps do, and asks it for
//! labels, mask and output (SPEC §2.3 to §2.11). What a cache does not do is done as [`Torch`] does it: layers that are dense, the
//! early outs of §2.2, and the attention over an earlier mask together with what was selected.

use tch::{Device, TchError, Tensor};

use super::cache::{LabelCache, Scores};
use super::masker::{self, Layer, failed};
use super::{DeviceChoice, DeviceError, Torch, to_host};
use crate::algorithm::{LabelBits, Mask, Storage};
use crate::cases::{Answer, AnsweredLabels, Call, Case, Instance, Precision, NoAnswer, RoundingModel};
use crate::subjects::{Subject, not_configured};

/// Double Sparsity through a [`LabelCache`].
#[derive(Debug)]
pub struct TorchCache {
    torch: Torch,
    kept: Precision,
}

impl TorchCache {
    /// On a device; `kept` is what scores and weights are kept in. Errors: those of [`Torch::new`].
    pub fn new(choice: DeviceChoice, kept: Precision) -> Result<Self, DeviceError> {
        Ok(Self { torch: Torch::new(choice)?, kept })
    }

    /// The device.
    pub fn device(&self) -> Device {
        self.torch.device
    }

    fn sparse(&self, case: &Case) -> Result<Answer, NoAnswer> {
        let (dims, device) = (case.inputs.dims(), self.torch.device);
        let (selection, storage) = (case.settings.selection(), case.inputs.storage());
        let scaling = case.inputs.scaling();
        let mut cache =
            LabelCache::new(&dims, &case.channels, &selection, storage, self.kept, scaling, device)?;
        let layer = Layer::new(&case.inputs, device).map_err(failed)?;
        layer.check(selection.heads)?;
        let before = self.torch.mask_before(case, &layer).map_err(failed)?;
        let full = match &before {
            Some(before) => masker::is_full(before).map_err(failed)?,
            None => false,
        };
        let short = dims.keys - dims.queries <= selection.heavy_size.resolve(dims.keys);
        if full || (selection.dense_fallback && short) {
            let mask = masker::filled(&layer, before.as_ref()).map_err(failed)?;
            return self.torch.attend(&layer, &case.inputs, &mask);
        }
        fill(&mut cache, &layer)?;
        let (q, additive) = (queries(&layer).map_err(failed)?, layer.additive.as_ref());
        let Scores { query_labels, scores } = cache.score(&q, additive)?;
        let selected = cache.select(&scores, additive, before.as_ref())?;
        cache.check(&query_labels)?;
        let mask = selected.mask(&layer, before.as_ref()).map_err(failed)?;
        let mut answer = match before {
            Some(_) => self.torch.attend(&layer, &case.inputs, &mask)?,
            None => Answer {
                mask: Mask::from_weights(to_host(&mask).map_err(failed)?, &dims)?,
                output: Some(to_host(&cache.attend(&q, &selected, additive)?).map_err(failed)?),
                labels: None,
            },
        };
        if let Some(key_labels) = cache.labels()? {
            let labels = |labels: &Tensor| to_host(labels).map_err(failed);
            answer.labels = Some(AnsweredLabels { q: labels(&query_labels)?, k: labels(&key_labels)? });
        }
        Ok(answer)
    }
}

/// q as [b, h, m, d].
fn queries(layer: &Layer) -> Result<Tensor, TchError> {
    let [b, h, m, _] = layer.mask_shape();
    layer.q.f_reshape([b, h, m, -1])
}

/// Appends all keys and values: one at first, then pieces that grow and are seldom even.
fn fill(cache: &mut LabelCache, layer: &Layer) -> Result<(), NoAnswer> {
    let (b, hk, n) = (layer.dims.batch as i64, layer.dims.kv_heads as i64, layer.dims.keys as i64);
    let mut held = 0;
    while held < n {
        let count = (1 + held / 2 + held % 3).min(n - held);
        let piece = |x: &Tensor| x.f_narrow(1, held, count)?.f_reshape([b, hk, count, -1]);
        cache.append(&piece(&layer.k).map_err(failed)?, &piece(&layer.v).map_err(failed)?)?;
        held += count;
    }
    Ok(())
}

impl Subject for TorchCache {
    fn name(&self) -> String {
        let kept = match self.kept {
            Precision::F32 => "f32",
            Precision::Storage => "the storage type",
        };
        format!(
            "label cache, scores in {kept}, of {} (dense layers, early outs and attention over earlier masks without it)",
            self.torch.name()
        )
    }

    fn rounding_model(&self) -> RoundingModel {
        RoundingModel { kept: self.kept, ..self.torch.rounding_model() }
    }

    fn configure(&mut self, instance: &Instance) -> Result<(), NoAnswer> {
        self.torch.configure(instance)
    }

    fn call(&mut self, call: &Call) -> Result<Answer, NoAnswer> {
        let instance = self.torch.instance.as_ref().ok_or_else(not_configured)?;
        if instance.dense_layers.contains(&call.layer) {
            return self.torch.dense(call);
        }
        self.sparse(&instance.case(call)?)
    }

    fn labels(
        &mut self,
        row: &[f32],
        bits: LabelBits,
        storage: Storage,
    ) -> Option<Result<Vec<f32>, NoAnswer>> {
        self.torch.labels(row, bits, storage)
    }
}

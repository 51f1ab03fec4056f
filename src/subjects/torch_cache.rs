//! The label cache as a subject: every call fills a new cache in uneven pieces, as prompts and decode steps do, and asks it for
//! labels, mask and output (SPEC §2.3 to §2.11). What a cache does not do is done as [`Torch`] does it: layers that are dense, the
//! early outs of §2.2, and the attention over an earlier mask together with what was selected.

use tch::{Device, Tensor};

use super::Subject;
use super::torch::{Torch, attend};
use crate::algorithm::{LabelBits, Mask, Storage};
use crate::cases::ragged::by_entry;
use crate::cases::{
    Answer, AnsweredLabels, Call, Capabilities, Instance, NoAnswer, Precision, RoundingModel,
};
use crate::torch::cache::{LabelScores, LabelledKvCache};
use crate::torch::masker::early_out;
use crate::torch::{self, DeviceChoice, DeviceError, Layer, to_host};

/// Double Sparsity through a [`LabelledKvCache`].
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
        self.torch.device()
    }

    fn sparse(&self, instance: &Instance, call: &Call) -> Result<Answer, NoAnswer> {
        let (inputs, selection) = (&call.inputs, &instance.selection);
        let (dims, device) = (inputs.dims(), self.device());
        let channels = instance.channels(call.layer)?;
        let (storage, scaling) = (inputs.storage(), inputs.scaling());
        let mut cache =
            LabelledKvCache::new(&dims, channels, selection, storage, self.kept, scaling, device)?;
        let layer = Layer::of_inputs(inputs, device)?;
        layer.check(selection.heads)?;
        selection.rules.forced.check(&dims, selection.heavy_size.resolve(dims.keys))?;
        let before = self.torch.mask_before(instance, call, &layer)?;
        if let Some(full) = early_out(&layer, selection, before.as_ref())? {
            return attend(&layer, &full);
        }
        fill(&mut cache, &layer)?;
        let (q, additive) = (queries(&layer)?, layer.additive.as_ref());
        let LabelScores { query_labels, scores } = cache.score(&q, additive, layer.head_weights.as_ref())?;
        let selected = cache.select(&scores, additive, before.as_ref())?;
        cache.check(&query_labels)?;
        let mask = selected.mask(&layer, before.as_ref())?;
        let mut answer = match before {
            Some(_) => attend(&layer, &mask)?,
            None => Answer::new(
                Mask::from_weights(to_host(&mask)?, &dims)?,
                Some(to_host(&cache.attend(&q, &selected, additive)?)?),
            ),
        };
        if let Some(key_labels) = cache.labels()? {
            answer.labels = Some(AnsweredLabels { q: to_host(&query_labels)?, k: to_host(&key_labels)? });
        }
        Ok(answer)
    }
}

/// q as [b, h, m, d].
fn queries(layer: &Layer) -> torch::Result<Tensor> {
    let [b, h, m, _] = layer.mask_shape();
    Ok(layer.q.f_reshape([b, h, m, -1])?)
}

/// Appends all keys and values: one at first, then pieces that grow and are seldom even.
fn fill(cache: &mut LabelledKvCache, layer: &Layer) -> torch::Result<()> {
    let (b, hk, n) = (layer.dims.batch as i64, layer.dims.kv_heads as i64, layer.dims.keys as i64);
    let mut held = 0;
    while held < n {
        let count = (1 + held / 2 + held % 3).min(n - held);
        let piece = |x: &Tensor| x.f_narrow(1, held, count)?.f_reshape([b, hk, count, -1]);
        cache.append(&piece(&layer.k)?, &piece(&layer.v)?)?;
        held += count;
    }
    Ok(())
}

impl Subject for TorchCache {
    fn name(&self) -> String {
        let kept = match self.kept {
            Precision::F32 => "f32",
            Precision::F16 => "f16",
            Precision::Storage => "the storage type",
        };
        format!(
            "label cache, scores in {kept}, of {} (dense layers, early outs and attention over earlier masks without it)",
            self.torch.name()
        )
    }

    fn rounding_model(&self) -> RoundingModel {
        RoundingModel { scores_kept: self.kept, weights_kept: self.kept, ..self.torch.rounding_model() }
    }

    fn capabilities(&self) -> Capabilities {
        self.torch.capabilities()
    }

    fn configure(&mut self, instance: &Instance) -> Result<(), NoAnswer> {
        self.torch.configure(instance)
    }

    fn call(&mut self, call: &Call) -> Result<Answer, NoAnswer> {
        let instance = self.torch.instance()?;
        by_entry(call, |call| {
            if instance.dense_layers.contains(&call.layer) {
                return self.torch.dense(call);
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
        self.torch.labels(row, bits, storage)
    }
}

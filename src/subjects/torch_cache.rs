//! The label cache as a subject: every call fills a new cache in uneven pieces, as prompts and decode steps do, and asks it for
//! labels, mask and output (SPEC §2.3 to §2.11). What a cache does not do is done as [`Torch`] does it: layers that are dense, the
//! early outs of §2.2, and the attention over an earlier mask together with what was selected. In a session (§2.14) keys, values and
//! labels of all requests live in [`Pages`], and those of a request are gathered from them for each answer.

use std::collections::BTreeMap;

use ndarray::{Array3, Axis};
use tch::{Device, Kind, Tensor};

use super::torch::{Torch, attend};
use super::{Subject, not_opened};
use crate::algorithm::{Detail, Dims, Error, LabelBits, Mask, Storage};
use crate::cases::ragged::by_entry;
use crate::cases::{
    Answer, AnsweredLabels, Call, Capabilities, Instance, NoAnswer, Opening, Precision, RoundingModel, Step,
    StepAnswer,
};
use crate::torch::cache::{LabelScores, LabelledKvCache};
use crate::torch::layer::{causal, kind};
use crate::torch::masker::{early_out, filled};
use crate::torch::pages::parts;
use crate::torch::{self, DeviceChoice, DeviceError, Layer, Pages, to_device, to_host};

/// Double Sparsity through a [`LabelledKvCache`].
#[derive(Debug)]
pub struct TorchCache {
    torch: Torch,
    kept: Precision,
    session: Option<Session>,
}

/// A session: its pages, and what it was opened with.
#[derive(Debug)]
struct Session {
    opening: Opening,
    scaling: f64,
    pages: Pages,
    /// An empty cache for each layer that is not dense.
    caches: BTreeMap<usize, LabelledKvCache>,
}

impl TorchCache {
    /// On a device; `kept` is what scores and weights are kept in. Errors: those of [`Torch::new`].
    pub fn new(choice: DeviceChoice, kept: Precision) -> Result<Self, DeviceError> {
        Ok(Self { torch: Torch::new(choice)?, kept, session: None })
    }

    /// Pages that a session's requests hold, over all layers.
    pub fn pages_held(&self) -> usize {
        self.session.as_ref().map_or(0, |session| session.pages.pages_held())
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
        answer(&mut cache, &layer, before.as_ref())
    }

    /// Opens a session. Errors: those of [`LabelledKvCache::new`].
    fn opened(&self, opening: &Opening) -> Result<Session, NoAnswer> {
        let instance = self.torch.instance()?;
        let &Opening { heads, kv_heads, head_dim, value_dim, dtype, capacity, page_size, .. } = opening;
        let dims = Dims { batch: 1, heads, kv_heads, queries: 1, keys: 0, head_dim, value_dim };
        let scaling = opening.scaling.unwrap_or(1.0 / (head_dim as f64).sqrt());
        let mut caches = BTreeMap::new();
        for &layer in opening.layers.iter().filter(|layer| !instance.dense_layers.contains(layer)) {
            let (channels, selection) = (instance.channels(layer)?, &instance.selection);
            let cache =
                LabelledKvCache::new(&dims, channels, selection, dtype, self.kept, scaling, self.device())?;
            caches.insert(layer, cache);
        }
        let pages = Pages::new(&opening.layers, capacity, page_size, self.device());
        Ok(Session { opening: opening.clone(), scaling, pages, caches })
    }

    /// One request's answer to its queries [m, h, d] in one layer.
    fn attend_in(
        &self,
        session: &Session,
        layer: usize,
        request: usize,
        q: Array3<f32>,
    ) -> Result<Answer, NoAnswer> {
        let (instance, device) = (self.torch.instance()?, self.device());
        let &Opening { kv_heads, head_dim, value_dim, dtype, .. } = &session.opening;
        let (hk, d, dv) = (kv_heads as i64, head_dim as i64, value_dim as i64);
        let rows = session.pages.rows(layer, request)?;
        let keys = rows.first().map_or(0, |rows| rows.size()[0]);
        let queries = q.dim().0 as i64;
        if queries > keys {
            return Err(Error::Length(Detail::new("queries", queries, format!("at most {keys}"))).into());
        }
        let of_keys = rows[0].f_view([keys, hk, d + dv]).map_err(torch::Error::from)?;
        let of_keys = of_keys.f_transpose(0, 1).map_err(torch::Error::from)?;
        let of = |from: i64, width: i64| -> torch::Result<Tensor> {
            Ok(of_keys.f_narrow(2, from, width)?.f_unsqueeze(0)?.f_contiguous()?)
        };
        let (k, v) = (of(0, d)?, of(d, dv)?);
        let additive = match queries {
            1 => None,
            _ => Some(causal(queries, keys, Kind::Float, device)?),
        };
        let q = heads_first(&q, dtype, device)?;
        let of_request = Layer::new(&q, &k, &v, additive, session.scaling)?;
        let Some(empty) = session.caches.get(&layer) else {
            return attend(&of_request, &filled(&of_request, None)?);
        };
        let selection = &instance.selection;
        selection.rules.forced.check(&of_request.dims, selection.heavy_size.resolve(keys as usize))?;
        let before = self.torch.windows(instance, &of_request, None)?;
        if let Some(full) = early_out(&of_request, selection, before.as_ref())? {
            return attend(&of_request, &full);
        }
        let mut cache = empty.emptied()?;
        cache.append_labelled(&k, &v, &rows[1])?;
        answer(&mut cache, &of_request, before.as_ref())
    }
}

/// A packed tensor [t, heads, d] as [1, heads, t, d] in the storage type.
fn heads_first(rows: &Array3<f32>, storage: Storage, device: Device) -> torch::Result<Tensor> {
    let heads_first = rows.view().permuted_axes([1, 0, 2]).insert_axis(Axis(0)).to_owned();
    Ok(to_device(&heads_first, device)?.f_to_kind(kind(storage))?)
}

impl Session {
    /// Rows that are kept of packed keys [t, hk, d] and values [t, hk, dv]: keys beside their values, and labels.
    fn rows(
        &self,
        layer: usize,
        k: &Array3<f32>,
        v: &Array3<f32>,
        device: Device,
    ) -> Result<Vec<Tensor>, NoAnswer> {
        let &Opening { kv_heads, head_dim, value_dim, dtype, .. } = &self.opening;
        check_rows("k", k, k.dim().0, kv_heads, head_dim)?;
        check_rows("v", v, k.dim().0, kv_heads, value_dim)?;
        if k.iter().chain(v).any(|x| !x.is_finite()) {
            return Err(Error::NotFinite(Detail::new("k or v", "a NaN or infinity", "finite numbers")).into());
        }
        let keys = heads_first(k, dtype, device)?;
        let rows = || -> torch::Result<Vec<Tensor>> {
            let both = Tensor::f_cat(&[&keys, &heads_first(v, dtype, device)?], 3)?;
            let both = both.f_squeeze_dim(0)?.f_transpose(0, 1)?.f_reshape([k.dim().0 as i64, -1])?;
            let labels = self.caches.get(&layer).map(|cache| cache.label_rows(&keys)).transpose()?;
            Ok([both].into_iter().chain(labels).collect())
        };
        Ok(rows()?)
    }
}

/// Errors: [`Error::Shape`] for other rows than [t, heads, width].
fn check_rows(name: &str, rows: &Array3<f32>, count: usize, heads: usize, width: usize) -> Result<(), Error> {
    let expected = (count, heads, width);
    if rows.dim() == expected && count > 0 {
        return Ok(());
    }
    Err(Error::Shape(Detail::new(name, format!("{:?}", rows.dim()), format!("{expected:?}, with rows"))))
}

/// The answer of a cache that holds all keys of a layer.
fn answer(cache: &mut LabelledKvCache, layer: &Layer, before: Option<&Tensor>) -> Result<Answer, NoAnswer> {
    let (q, additive) = (queries(layer)?, layer.additive.as_ref());
    let LabelScores { query_labels, scores } = cache.score(&q, additive, layer.head_weights.as_ref())?;
    let selected = cache.select(&scores, additive, before)?;
    cache.check(&query_labels)?;
    let mask = selected.mask(layer, before)?;
    let mut answer = match before {
        Some(_) => attend(layer, &mask)?,
        None => Answer::new(
            Mask::from_weights(to_host(&mask)?, &layer.dims)?,
            Some(to_host(&cache.attend(&q, &selected, additive)?)?),
        ),
    };
    if let Some(key_labels) = cache.labels()? {
        answer.labels = Some(AnsweredLabels { q: to_host(&query_labels)?, k: to_host(&key_labels)? });
    }
    Ok(answer)
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
        Capabilities { sessions: true, ..self.torch.capabilities() }
    }

    fn configure(&mut self, instance: &Instance) -> Result<(), NoAnswer> {
        self.session = None;
        self.torch.configure(instance)
    }

    fn open(&mut self, opening: &Opening) -> Result<(), NoAnswer> {
        self.session = Some(self.opened(opening)?);
        Ok(())
    }

    fn step(&mut self, step: &Step) -> StepAnswer {
        let device = self.device();
        let session = self.session.as_mut().ok_or_else(not_opened)?;
        match step {
            Step::Append { layer, parts, k, v } => {
                session.pages.check_layer(*layer)?;
                let rows = session.rows(*layer, k, v, device)?;
                session.pages.append(*layer, parts, &rows)?;
            }
            Step::Attend { layer, parts: requests, q } => {
                session.pages.check_layer(*layer)?;
                let rows = parts(requests, q.dim().0)?;
                check_rows("q", q, q.dim().0, session.opening.heads, session.opening.head_dim)?;
                let session = self.session.as_ref().ok_or_else(not_opened)?;
                let answer = |(&(request, _), rows): (&(usize, usize), std::ops::Range<usize>)| {
                    let q = q.slice(ndarray::s![rows, .., ..]).to_owned();
                    self.attend_in(session, *layer, request, q)
                };
                return requests.iter().zip(rows).map(answer).collect();
            }
            &Step::Fork { from, to, length } => session.pages.fork(from, to, length)?,
            &Step::Truncate { request, length } => session.pages.truncate(request, length)?,
            &Step::Free { request } => session.pages.free(request)?,
        }
        Ok(Vec::new())
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

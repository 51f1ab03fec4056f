//! The decode engine as a subject: the keys of a call are appended in uneven portions to a cache of its own, and the cache
//! is stepped once with the queries. In a session it is asked as it is meant to be, with caches of many requests.

use ndarray::s;

use super::{Subject, not_configured, not_opened};
use crate::algorithm::Error;
use crate::algorithm::config::WindowConfig;
use crate::algorithm::maskers::{Local, Sink};
use crate::cases::ragged::by_entry;
use crate::cases::{
    Answer, Call, Capabilities, EarlierMasker, Instance, NoAnswer, Opening, RoundingModel, Step, StepAnswer,
};
use crate::engine::{Engine as Cache, EngineMasker, Layout, Query, Sessions, Step as EngineStep};

/// Double Sparsity over a label cache.
#[derive(Debug, Default)]
pub struct Engine {
    instance: Option<Instance>,
    session: Option<(Sessions, Option<f64>)>,
}

impl Engine {
    /// The memory that a session holds, in bytes.
    pub fn held_bytes(&self) -> usize {
        self.session.as_ref().map_or(0, |(session, _)| session.bytes())
    }
}

/// The maskers of one layer. Errors: a layer missing from the channel file.
fn maskers(instance: &Instance, layer: usize) -> Result<Vec<EngineMasker>, Error> {
    if instance.dense_layers.contains(&layer) {
        return Ok(vec![EngineMasker::Dense]);
    }
    let earlier = instance.earlier_maskers.iter().map(|masker| match *masker {
        EarlierMasker::Sink(WindowConfig { size }) => EngineMasker::Sink(Sink { size }),
        EarlierMasker::Local(WindowConfig { size }) => EngineMasker::Local(Local { size }),
    });
    let channels = instance.channels(layer)?.clone();
    let double_sparsity = EngineMasker::DoubleSparsity { selection: instance.selection, channels };
    Ok(earlier.chain([double_sparsity]).collect())
}

/// A cache that holds the keys of a call, appended in portions of 1, 3, 9, 27, … keys. Errors: those of the engine.
pub fn filled(instance: &Instance, call: &Call) -> Result<Cache, Error> {
    let (dims, parts) = (call.inputs.dims(), call.inputs.parts());
    let layout = Layout {
        batch: dims.batch,
        heads: dims.heads,
        kv_heads: dims.kv_heads,
        head_dim: dims.head_dim,
        value_dim: dims.value_dim,
        storage: parts.storage,
    };
    let mut cache = Cache::new(layout, maskers(instance, call.layer)?)?;
    let mut portion = 1;
    while cache.keys() < dims.keys {
        let end = dims.keys.min(cache.keys() + portion);
        let new = s![.., .., cache.keys()..end, ..];
        cache.append(parts.k.slice(new), parts.v.slice(new))?;
        portion *= 3;
    }
    Ok(cache)
}

impl Subject for Engine {
    fn name(&self) -> String {
        "engine".into()
    }

    fn rounding_model(&self) -> RoundingModel {
        RoundingModel::F32
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { ragged: true, sessions: true, ..Capabilities::default() }
    }

    fn configure(&mut self, instance: &Instance) -> Result<(), NoAnswer> {
        (self.instance, self.session) = (Some(instance.clone()), None);
        Ok(())
    }

    fn open(&mut self, opening: &Opening) -> Result<(), NoAnswer> {
        let instance = self.instance.as_ref().ok_or_else(not_configured)?;
        let &Opening { capacity, heads, kv_heads, head_dim, value_dim, dtype, scaling, .. } = opening;
        let layout = Layout { batch: 1, heads, kv_heads, head_dim, value_dim, storage: dtype };
        let of_layer = |&layer: &usize| Ok((layer, maskers(instance, layer)?));
        let layers = opening.layers.iter().map(of_layer).collect::<Result<_, Error>>()?;
        self.session = Some((Sessions::new(layout, layers, capacity)?, scaling));
        Ok(())
    }

    fn step(&mut self, step: &Step) -> StepAnswer {
        let (session, scaling) = self.session.as_mut().ok_or_else(not_opened)?;
        match step {
            Step::Append { layer, parts, k, v } => session.append(*layer, parts, k.view(), v.view())?,
            Step::Attend { layer, parts, q } => {
                let steps = session.attend(*layer, parts, q.view(), *scaling)?;
                let answer = |step: EngineStep| Ok(Answer::new(step.mask()?, Some(step.output)));
                return steps.into_iter().map(answer).collect();
            }
            &Step::Fork { from, to, length } => session.fork(from, to, length)?,
            &Step::Truncate { request, length } => session.truncate(request, length)?,
            &Step::Free { request } => session.free(request)?,
        }
        Ok(Vec::new())
    }

    fn call(&mut self, call: &Call) -> Result<Answer, NoAnswer> {
        let instance = self.instance.as_ref().ok_or_else(not_configured)?;
        by_entry(call, |call| {
            let parts = call.inputs.parts();
            let step = filled(instance, call)?.step(&Query {
                q: parts.q.view(),
                attention_mask: parts.attention_mask.as_ref().map(|mask| mask.view()),
                causal: parts.causal,
                scaling: parts.scaling,
                previous: call.previous.as_ref(),
            })?;
            Ok(Answer::new(step.mask()?, Some(step.output)))
        })
    }
}

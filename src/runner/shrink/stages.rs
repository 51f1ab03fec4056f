//! Makes a failing question to one stage small enough for a person: fewest rows, keys and channels, the smallest H, then
//! values of 0, ±1 and small whole numbers. Every step keeps what failed failing, and none makes a question larger.

use std::num::NonZeroUsize;
use std::sync::Arc;

use ndarray::{Array4, Axis};

use super::reductions::selected;
use super::search::Search;
use super::{Limits, MANY_KEYS};
use crate::algorithm::{Dims, InputParts, Inputs, Lengths, Mask, Padding, Storage};
use crate::cases::{Capabilities, ScoresCall, SelectionCall, StageCall};

/// Tensors of more numbers than this are only made plainer as a whole.
const FEW: usize = 64;

/// The smallest question found.
#[derive(Debug, Clone)]
pub struct ShrunkStage {
    /// It still fails.
    pub call: StageCall,
    /// How often the failure was tried.
    pub tries: usize,
    /// False where the limits ended the search.
    pub finished: bool,
    /// Wall-clock time.
    pub seconds: f64,
}

/// Shrinks a question for which `fails` is true, within what a subject of these capabilities may be asked.
pub fn shrink_stage(
    call: StageCall,
    limits: Limits,
    capabilities: &Capabilities,
    fails: &mut dyn FnMut(&StageCall) -> bool,
) -> ShrunkStage {
    let mut search = Search::new(call, limits, capabilities, Capabilities::offers_stage, fails);
    while search.round() && !search.exhausted() {}
    ShrunkStage {
        tries: search.tries,
        finished: !search.exhausted(),
        seconds: search.elapsed().as_secs_f64(),
        call: search.current,
    }
}

impl Search<'_, StageCall> {
    /// All steps once; whether any of them worked.
    fn round(&mut self) -> bool {
        let mut changed = false;
        let fewer_keys = self.capabilities.allows_fewer_keys(call_keys(&self.current));
        if call_keys(&self.current) > MANY_KEYS && fewer_keys {
            changed |= self.bisect(call_keys, 8, &[&without_keys]);
        }
        for part in Part::ALL.into_iter().filter(|part| fewer_keys || !matches!(part, Part::Keys)) {
            let without = |call: &StageCall, start, end| Step::Without(part, start, end).of(call);
            // Domains often hold multiples of powers of two only.
            if part.count(&self.current) > MANY_KEYS || !self.capabilities.domains.is_empty() {
                changed |= self.bisect(|call| part.count(call), usize::MAX, &[&without]);
            }
            changed |= self.drop_each(|call| part.count(call), without);
        }
        changed |= self.bisect(heavy_size, usize::MAX, &[&with_smaller_heavy_size]);
        // Values change no sizes, so that the steps stay what they are.
        for step in plainer(&self.current) {
            if self.exhausted() {
                break;
            }
            let candidate = step.of(&self.current);
            changed |= self.accept(candidate);
        }
        changed
    }
}

fn call_keys(call: &StageCall) -> usize {
    call.dims().keys
}

fn without_keys(call: &StageCall, start: usize, end: usize) -> Option<StageCall> {
    Step::Without(Part::Keys, start, end).of(call)
}

/// The keys at these places; some may be repeated.
pub(super) fn with_keys(call: &StageCall, kept: &[usize]) -> Option<StageCall> {
    let lengths = call.lengths().map(|lengths| {
        let keys = |&length: &usize| kept.iter().filter(|&&key| key < length).count();
        Lengths::new(lengths.keys().iter().map(keys).collect(), lengths.padding())
    });
    Some(match call {
        StageCall::Scores(call) => {
            let scores = selected(call.scores(), 3, kept);
            let call = ScoresCall::new(scores, call.storage(), call.heavy_size()).ok()?;
            StageCall::Scores(call.with_lengths(lengths).ok()?)
        }
        StageCall::Selection(call) => {
            let mut parts = call.inputs.parts().clone();
            (parts.k, parts.v) = (selected(&parts.k, 2, kept), selected(&parts.v, 2, kept));
            let inputs = Inputs::new(parts).ok()?.with_lengths(lengths).ok()?;
            let weights = selected(call.mask.weights(), 3, kept);
            let mask = Mask::from_weights(weights, &inputs.dims()).ok()?;
            StageCall::Selection(SelectionCall { inputs: Arc::new(inputs), mask })
        }
    })
}

/// One batch entry alone.
pub(in crate::runner) fn with_one_entry(call: &StageCall, entry: usize) -> Option<StageCall> {
    with_one(call, Part::Batch, entry)
}

/// One query alone.
pub(in crate::runner) fn with_one_query(call: &StageCall, query: usize) -> Option<StageCall> {
    with_one(call, Part::Queries, query)
}

fn with_one(call: &StageCall, part: Part, place: usize) -> Option<StageCall> {
    let first = Step::Without(part, place + 1, part.count(call)).of(call)?;
    Step::Without(part, 0, place).of(&first)
}

/// A question to a top-k with another H.
pub(super) fn with_heavy_size(call: &StageCall, heavy_size: usize) -> Option<StageCall> {
    Step::HeavySize(heavy_size).of(call)
}

/// H, where it is asked for.
fn heavy_size(call: &StageCall) -> usize {
    match call {
        StageCall::Scores(call) => call.heavy_size().get(),
        StageCall::Selection(_) => 1,
    }
}

/// With H lowered by the number of parts from `start` to `end`, whichever these are.
fn with_smaller_heavy_size(call: &StageCall, start: usize, end: usize) -> Option<StageCall> {
    with_heavy_size(call, heavy_size(call) - (end - start))
}

/// What a step makes smaller.
#[derive(Debug, Clone, Copy)]
enum Part {
    Batch,
    /// Heads of scores, KV heads of a selection.
    Heads,
    /// Query heads of each KV head.
    Group,
    Queries,
    Keys,
    HeadDim,
    ValueDim,
}

impl Part {
    const ALL: [Self; 7] =
        [Self::Batch, Self::Heads, Self::Group, Self::Queries, Self::HeadDim, Self::ValueDim, Self::Keys];

    /// How many of them there are to take away.
    fn count(self, call: &StageCall) -> usize {
        let dims = call.dims();
        let attends = matches!(call, StageCall::Selection(_));
        match self {
            Self::Batch => dims.batch,
            Self::Heads => dims.kv_heads,
            Self::Queries => dims.queries,
            Self::Keys => dims.keys,
            Self::Group if attends => dims.group_size(),
            Self::HeadDim if attends => dims.head_dim,
            Self::ValueDim if attends => dims.value_dim,
            Self::Group | Self::HeadDim | Self::ValueDim => 1,
        }
    }
}

/// A tensor of numbers.
#[derive(Debug, Clone, Copy)]
enum Tensor {
    Scores,
    Q,
    K,
    V,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    /// Keeps all but a run.
    Without(Part, usize, usize),
    HeavySize(usize),
    DefaultScaling,
    InF32,
    AllKeys,
    NanInPadding,
    /// Scores by their ranks, other numbers rounded.
    Whole(Tensor),
    /// All numbers the same.
    All(Tensor, f32),
    /// One number.
    Set(Tensor, usize, f32),
}

/// All steps that may make settings and values plainer.
fn plainer(call: &StageCall) -> Vec<Step> {
    let mut steps = Vec::new();
    let tensors: &[(Tensor, usize)] = match call {
        StageCall::Scores(call) => {
            steps.extend([Step::InF32, Step::AllKeys, Step::NanInPadding]);
            &[(Tensor::Scores, call.scores().len())]
        }
        StageCall::Selection(call) => {
            steps.extend([Step::DefaultScaling, Step::InF32, Step::AllKeys, Step::NanInPadding]);
            let parts = call.inputs.parts();
            &[(Tensor::Q, parts.q.len()), (Tensor::K, parts.k.len()), (Tensor::V, parts.v.len())]
        }
    };
    for &(tensor, _) in tensors {
        steps.extend([Step::All(tensor, 0.0), Step::All(tensor, 1.0), Step::Whole(tensor)]);
    }
    for &(tensor, length) in tensors.iter().filter(|(_, length)| *length <= FEW) {
        let all = (0..length).flat_map(|at| [0.0, 1.0, -1.0, 2.0].map(|value| Step::Set(tensor, at, value)));
        steps.extend(all);
    }
    steps
}

/// How much there is to read of a number: 0 least, then 1, −1, small whole numbers, everything else.
fn plainness(x: f32) -> u32 {
    match x {
        x if x == 0.0 => u32::from(x.is_sign_negative()),
        1.0 => 2,
        -1.0 => 3,
        f32::NEG_INFINITY => 4,
        x if x == x.round() && x.abs() < 1e3 => 5 + x.abs() as u32,
        _ => 2000,
    }
}

impl Step {
    fn of(self, call: &StageCall) -> Option<StageCall> {
        match call {
            StageCall::Scores(call) => self.of_scores(call).map(StageCall::Scores),
            StageCall::Selection(call) => self.of_selection(call).map(StageCall::Selection),
        }
    }

    fn of_scores(self, call: &ScoresCall) -> Option<ScoresCall> {
        let (scores, mut storage, mut heavy_size) =
            (call.scores().clone(), call.storage(), call.heavy_size());
        let scores = match self {
            Self::Without(part, start, end) => {
                let axis = match part {
                    Part::Batch => 0,
                    Part::Heads => 1,
                    Part::Queries => 2,
                    Part::Keys => 3,
                    Part::Group | Part::HeadDim | Part::ValueDim => return None,
                };
                without(&scores, axis, start, end)?
            }
            Self::HeavySize(smaller) => {
                heavy_size = NonZeroUsize::new(smaller)?;
                scores
            }
            Self::InF32 => {
                storage = Storage::F32;
                scores
            }
            Self::Whole(_) => ranks(&scores),
            Self::AllKeys | Self::NanInPadding => scores,
            _ => self.values(&scores)?,
        };
        let lengths = self.lengths(call.lengths());
        let changed = ScoresCall::new(scores, storage, heavy_size).ok()?.with_lengths(lengths).ok()?;
        // Padding does not become plainer.
        let is_value = matches!(self, Self::All(..) | Self::Set(..));
        (!is_value || weight(changed.scores()) < weight(call.scores())).then_some(changed)
    }

    fn of_selection(self, call: &SelectionCall) -> Option<SelectionCall> {
        let mut parts = call.inputs.parts().clone();
        let mut weights = call.mask.weights().clone();
        let Dims { kv_heads, .. } = call.inputs.dims();
        let group = call.inputs.dims().group_size();
        match self {
            Self::Without(part, start, end) => {
                let InputParts { q, k, v, .. } = &mut parts;
                let cut = |tensor: &mut Array4<f32>, axis, start, end| {
                    *tensor = without(tensor, axis, start, end)?;
                    Some(())
                };
                match part {
                    Part::Batch => {
                        [q, k, v, &mut weights].into_iter().try_for_each(|x| cut(x, 0, start, end))?;
                    }
                    Part::Heads => {
                        [k, v].into_iter().try_for_each(|x| cut(x, 1, start, end))?;
                        [q, &mut weights]
                            .into_iter()
                            .try_for_each(|x| cut(x, 1, start * group, end * group))?;
                    }
                    Part::Group => {
                        for x in [q, &mut weights] {
                            let kept: Vec<usize> = (0..kv_heads * group)
                                .filter(|head| !(start..end).contains(&(head % group)))
                                .collect();
                            if kept.is_empty() {
                                return None;
                            }
                            *x = x.select(Axis(1), &kept);
                        }
                    }
                    Part::Queries => [q, &mut weights].into_iter().try_for_each(|x| cut(x, 2, start, end))?,
                    Part::Keys => {
                        [k, v].into_iter().try_for_each(|x| cut(x, 2, start, end))?;
                        cut(&mut weights, 3, start, end)?;
                    }
                    Part::HeadDim => [q, k].into_iter().try_for_each(|x| cut(x, 3, start, end))?,
                    Part::ValueDim => cut(v, 3, start, end)?,
                }
            }
            Self::HeavySize(_) => return None,
            Self::AllKeys | Self::NanInPadding => {}
            Self::DefaultScaling => parts.scaling = None,
            Self::InF32 => parts.storage = Storage::F32,
            Self::Whole(tensor) | Self::All(tensor, _) | Self::Set(tensor, ..) => {
                let place = match tensor {
                    Tensor::Q => &mut parts.q,
                    Tensor::K => &mut parts.k,
                    Tensor::V => &mut parts.v,
                    Tensor::Scores => return None,
                };
                *place = self.values(place)?;
            }
        }
        let lengths = self.lengths(call.inputs.lengths());
        let inputs = Inputs::new(parts).ok()?.with_lengths(lengths).ok()?;
        let mask = Mask::from_weights(weights, &inputs.dims()).ok()?;
        Some(SelectionCall { inputs: Arc::new(inputs), mask })
    }

    /// How many keys each entry has after the step.
    fn lengths(self, lengths: Option<&Lengths>) -> Option<Lengths> {
        let lengths = lengths?;
        let keys = match self {
            Self::AllKeys => return None,
            Self::Without(Part::Batch, start, end) => {
                let kept = lengths.keys().iter().enumerate().filter(|(b, _)| !(start..end).contains(b));
                kept.map(|(_, &length)| length).collect()
            }
            Self::Without(Part::Keys, start, end) => {
                let dropped = |length: usize| length.clamp(start, end) - start;
                lengths.keys().iter().map(|&length| length - dropped(length)).collect()
            }
            _ => lengths.keys().to_vec(),
        };
        let padding = if matches!(self, Self::NanInPadding) { Padding::Nan } else { lengths.padding() };
        Some(Lengths::new(keys, padding))
    }

    /// The tensor with plainer numbers; `None` where they are no plainer.
    fn values(self, tensor: &Array4<f32>) -> Option<Array4<f32>> {
        let plainer = match self {
            Self::All(_, value) => tensor.mapv(|_| value),
            Self::Whole(_) => tensor.mapv(f32::round),
            Self::Set(_, at, value) => {
                let mut changed = tensor.clone();
                *changed.iter_mut().nth(at)? = value;
                changed
            }
            _ => return None,
        };
        (weight(&plainer) < weight(tensor)).then_some(plainer)
    }
}

fn weight(tensor: &Array4<f32>) -> u64 {
    tensor.iter().map(|&x| u64::from(plainness(x))).sum()
}

fn without(tensor: &Array4<f32>, axis: usize, start: usize, end: usize) -> Option<Array4<f32>> {
    let kept: Vec<usize> = (0..tensor.shape()[axis]).filter(|at| !(start..end).contains(at)).collect();
    (!kept.is_empty()).then(|| selected(tensor, axis, &kept))
}

/// Whole numbers in the same order, equal ones still equal; −∞ stays.
fn ranks(scores: &Array4<f32>) -> Array4<f32> {
    let mut sorted: Vec<f32> = scores.iter().copied().filter(|score| score.is_finite()).collect();
    sorted.sort_by(f32::total_cmp);
    sorted.dedup();
    let zero = sorted.partition_point(|&score| score < 0.0);
    scores.mapv(|score| match score.is_finite() && score != 0.0 {
        true => sorted.partition_point(|&other| other < score) as f32 - zero as f32,
        false => score,
    })
}

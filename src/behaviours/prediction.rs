//! What a behaviour makes of one call of a sequence: a refusal, a full mask, or labels to be ranked, with everything that
//! decides the answer but rounding. The steps are those of SPEC §2, each with the switches of [`Behaviour`]. Earlier calls
//! matter to the behaviours that carry state over, and to no other.

use std::sync::Arc;

use ndarray::{Array4, Axis};

use super::changes::{LabelChange, RowChange};
use super::labels::{bits, cached_labels};
use super::{
    Behaviour, Causality, ChannelRows, Channels, Checks, Count, Earlier, ForcedKeys, ForcedRule, HeadLabels,
    KeyLabels, KvHeads, Order, Quantiser, RankingMask, Scaling, Scoring, Sharing, ShortContext,
};
use crate::algorithm::channels::half_split_to_interleaved;
use crate::algorithm::scores::check_head_mode;
use crate::algorithm::{
    ChannelKind, ChannelOrder, Dims, Error, HeavySize, InputParts, Inputs, LabelBits, Mask, Ranks, Rules,
    Selection,
};
use crate::cases::{Call, Instance, Sequence};

/// The outcome of one call.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// It is refused, for any of these.
    Refused(Vec<Error>),
    /// It breaks: an error, or worse.
    Broken,
    /// It breaks or is answered, depending on whether it checks before or after an early out.
    BrokenOr(Box<Prediction>),
    /// Nothing can be said of the answer.
    Anything,
    /// It is answered.
    Answered(Box<Prediction>),
}

/// An answer up to rounding.
#[derive(Debug, Clone)]
pub struct Prediction {
    /// The behaviour.
    pub behaviour: Behaviour,
    /// The inputs with A as the ranking uses it.
    pub ranking: Arc<Inputs>,
    /// What the attention reads.
    pub attending: Arc<Inputs>,
    /// The mask that the selection is added to.
    pub before: Mask,
    /// Whether the call is dense, whatever the mask was before: of a dense layer, or of a short context.
    pub dense: bool,
    /// H as configured, which may be more keys than there are (D11).
    pub wanted_keys: usize,
    /// `None` for a full mask.
    pub ranked: Option<Ranked>,
    /// Inputs whose A is added once, after the head rule, where `ranking` is without it.
    pub added_after: Option<Arc<Inputs>>,
    /// The numbers of keys of earlier calls of the layer: of the first with the same batch size and number of queries, of the
    /// first, and of the last.
    pub lengths: [Option<usize>; 3],
}

impl Prediction {
    /// Adds A after the head rule; `None` where the inputs cannot be without it.
    pub fn add_mask_after(&mut self) -> Option<()> {
        let given = self.ranking.clone();
        let parts = InputParts { attention_mask: None, causal: false, ..given.parts().clone() };
        let plain = Inputs::new(parts).ok()?.with_head_weights(given.head_weights().cloned()).ok()?;
        (self.ranking, self.added_after) = (Arc::new(plain), Some(given));
        Some(())
    }
}

/// Labels to be ranked.
#[derive(Debug, Clone)]
pub struct Ranked {
    /// Per (batch, query head), row-major.
    pub labels: Vec<HeadLabels>,
    /// How heads share a selection.
    pub sharing: Sharing,
    /// Into how many parts the heads that share a selection are split.
    pub ranks: Ranks,
    /// How many keys are selected in each row, those forced on top apart.
    pub count: usize,
    /// What is made of a dot product.
    pub scoring: Scoring,
    /// What is selected whatever it scores.
    pub forced: ForcedRule,
    /// The bits of queries and of keys where labels are those of SPEC §2.5, so that rounding may move their codes.
    pub bits: Option<[LabelBits; 2]>,
}

/// What a behaviour makes of call `index` of a sequence, given the calls before it.
pub fn predict(behaviour: Behaviour, sequence: &Sequence, index: usize) -> Outcome {
    if behaviour.answers_by_shape {
        let call = &sequence.calls[index];
        let same = |other: &Call| other.layer == call.layer && other.inputs.dims() == call.inputs.dims();
        let first = sequence.calls.iter().position(same).unwrap_or(index);
        return predict(Behaviour { answers_by_shape: false, ..behaviour }, sequence, first);
    }
    let outcome =
        try_predict(behaviour, sequence, index).unwrap_or_else(|error| Outcome::Refused(vec![error]));
    if !(behaviour.only_rows_per_head && breaks_on_rows(behaviour, sequence, index)) {
        return outcome;
    }
    // It may check its rows before or after an early out; any other check comes too late or is an error as well.
    match outcome {
        Outcome::Answered(prediction) if prediction.ranked.is_none() => Outcome::BrokenOr(prediction),
        _ => Outcome::Broken,
    }
}

/// Whether a call that is not dense has rows that are not one per query head (D6).
fn breaks_on_rows(behaviour: Behaviour, sequence: &Sequence, index: usize) -> bool {
    let (instance, call) = (&sequence.instance, &sequence.calls[index]);
    let dense = instance.dense_layers.contains(&call.layer) && !behaviour.ignores_dense_layers;
    let rows = channels_of(behaviour, sequence, index).map(|order| order.rows().len());
    !dense && rows.is_ok_and(|rows| rows != call.inputs.dims().heads)
}

fn try_predict(behaviour: Behaviour, sequence: &Sequence, index: usize) -> Result<Outcome, Error> {
    let (instance, call) = (&sequence.instance, &sequence.calls[index]);
    let dims = call.inputs.dims();
    let wanted_keys = match instance.selection.heavy_size {
        HeavySize::Count(count) => count.get(),
        size @ HeavySize::Fraction(_) => size.resolve(dims.keys),
    };
    let (before, out) = early_out(behaviour, instance, call)?;
    let full = out != EarlyOut::None;
    let attending = attending(behaviour, &call.inputs)?;
    let mut prediction = Prediction {
        behaviour,
        ranking: call.inputs.clone(),
        attending,
        before,
        dense: out == EarlyOut::Dense,
        wanted_keys,
        ranked: None,
        added_after: None,
        lengths: lengths(sequence, index),
    };
    let dense = instance.dense_layers.contains(&call.layer) && !behaviour.ignores_dense_layers;
    if dense || (full && behaviour.checks == Checks::AfterEarlyOuts) {
        return Ok(Outcome::Answered(prediction.into()));
    }
    let channels = channels_of(behaviour, sequence, index)?;
    let divided = instance.selection.group_factor.label_channels(dims.head_dim);
    let label_channels = if behaviour.floors_label_channels {
        dims.head_dim / instance.selection.group_factor.get()
    } else {
        match (divided, channels.check(&dims, 1)) {
            (Err(divided), Err(channels)) => return Ok(Outcome::Refused(vec![divided, channels])),
            (divided, _) => divided?,
        }
    };
    // Whoever accepts short rows divides by √(d / G) all the same, as both systems of D21 do.
    let divided = label_channels;
    let label_channels =
        if behaviour.accepts_short_rows { label_channels.min(channels.width()) } else { label_channels };
    if label_channels == 0 {
        return Ok(if full { Outcome::Answered(prediction.into()) } else { Outcome::Anything });
    }
    let sharing = behaviour.heads.sharing(instance.selection.heads);
    let fits = channels.check(&dims, label_channels);
    let mode = sharing.like(instance.selection.heads);
    let ranks = behaviour.ranks.of(instance.selection.rules.ranks, mode, &dims);
    let selection =
        Selection { heads: mode, rules: Rules { ranks, ..instance.selection.rules }, ..instance.selection };
    let heads = check_head_mode(&call.inputs, &channels, label_channels, &selection);
    let forced = check_forced(behaviour, instance, call);
    let errors: Vec<Error> = [fits, heads, forced].into_iter().filter_map(Result::err).collect();
    if !errors.is_empty() {
        return Ok(Outcome::Refused(errors));
    }
    if full {
        return Ok(Outcome::Answered(prediction.into()));
    }
    if instance.selection.rules.forced.check(&dims, instance.selection.heavy_size.resolve(dims.keys)).is_err()
    {
        return Ok(Outcome::Anything);
    }
    let labels = match cached_labels(behaviour, sequence, index, &channels, label_channels) {
        Err(Error::LabelRange(_)) if behaviour.accepts_label_range => return Ok(Outcome::Anything),
        labels => labels?,
    };
    let mut labels = labels;
    if let Some(change) = behaviour.labels
        && change.apply(&mut labels, behaviour, sequence, index).is_none()
    {
        return Ok(Outcome::Anything);
    }
    let spec_labels = behaviour.quantiser == Quantiser::Spec
        && behaviour.label_cache == KeyLabels::Fresh
        && behaviour.labels.is_none();
    prediction.ranking = ranking(behaviour, &call.inputs)?;
    if let Some(RowChange::AdditiveOnce { .. }) = behaviour.rows
        && prediction.add_mask_after().is_none()
    {
        return Ok(Outcome::Anything);
    }
    prediction.ranked = Some(Ranked {
        labels,
        sharing,
        ranks,
        count: count(behaviour, instance.selection.heavy_size, dims.keys),
        scoring: Scoring::of(behaviour, &instance.selection.rules, divided, dims.head_dim),
        forced: ForcedRule { configured: instance.selection.rules.forced, how: behaviour.forced },
        bits: spec_labels.then_some(bits(behaviour, &instance.selection)),
    });
    Ok(Outcome::Answered(prediction.into()))
}

/// Why a mask is full without being ranked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum EarlyOut {
    /// It is ranked.
    None,
    /// It was full before.
    Full,
    /// The layer is dense, or the context short.
    Dense,
}

/// SPEC §2.2: the mask that Double Sparsity starts from, and why it becomes full without being ranked, if it does.
fn early_out(behaviour: Behaviour, instance: &Instance, call: &Call) -> Result<(Mask, EarlyOut), Error> {
    let dims = call.inputs.dims();
    let start = match behaviour.earlier {
        Earlier::Ignored => Mask::empty(&dims),
        _ => instance.start(call),
    };
    if instance.dense_layers.contains(&call.layer) && !behaviour.ignores_dense_layers {
        return Ok((start, EarlyOut::Dense));
    }
    let before = instance.earlier_attention().extend_mask(&call.inputs, call.layer, start)?;
    let heavy_size = match behaviour.count {
        Count::Unclamped => count(behaviour, instance.selection.heavy_size, dims.keys),
        _ => instance.selection.heavy_size.resolve(dims.keys),
    };
    let fallback = instance.selection.dense_fallback || behaviour.short_context == ShortContext::Dense;
    let dense =
        matches!(behaviour.short_context, ShortContext::DenseUpTo(times) if dims.keys <= times * heavy_size);
    let short = dense || (fallback && dims.keys - dims.queries <= heavy_size);
    let full = before.is_full() && !behaviour.misses_full_previous;
    let out = match (short, full) {
        (true, _) => EarlyOut::Dense,
        (false, true) => EarlyOut::Full,
        (false, false) => EarlyOut::None,
    };
    Ok((before, out))
}

/// Errors: more forced keys than H.
fn check_forced(behaviour: Behaviour, instance: &Instance, call: &Call) -> Result<(), Error> {
    if behaviour.forced == ForcedKeys::Unchecked {
        return Ok(());
    }
    let dims = call.inputs.dims();
    instance.selection.rules.forced.check(&dims, instance.selection.heavy_size.resolve(dims.keys))
}

fn count(behaviour: Behaviour, heavy_size: HeavySize, keys: usize) -> usize {
    let resolved = heavy_size.resolve(keys);
    match (behaviour.count, heavy_size) {
        (Count::OneMore, _) => (resolved + 1).min(keys),
        (Count::OneFewer, _) => resolved - 1,
        (Count::Unclamped, HeavySize::Fraction(share)) => (share.get() * keys as f64).floor() as usize,
        (Count::RoundedUp, HeavySize::Fraction(share)) => {
            ((share.get() * keys as f64).ceil() as usize).max(1)
        }
        (Count::AtMost(most), _) => resolved.min(most),
        (Count::Unclamped | Count::RoundedUp | Count::H, _) => resolved,
    }
}

/// Whether keys are ranked in a call, so that a masker that keeps the first channels it meets keeps those of its layer.
fn is_scored(behaviour: Behaviour, instance: &Instance, call: &Call) -> bool {
    let dense = instance.dense_layers.contains(&call.layer) && !behaviour.ignores_dense_layers;
    let full = early_out(behaviour, instance, call).is_ok_and(|(_, out)| out != EarlyOut::None);
    !dense && !full && instance.channels(call.layer).is_ok()
}

/// Whether a call that was answered matters to later ones, given that the calls `kept` do.
pub fn is_remembered(behaviour: Behaviour, instance: &Instance, kept: &[Call], call: &Call) -> bool {
    let first = behaviour.channels == Channels::FirstLayer && kept.is_empty();
    let stateless = matches!(behaviour.label_cache, KeyLabels::Fresh | KeyLabels::NewestMissing)
        && !behaviour.labels.is_some_and(LabelChange::keeps)
        && !behaviour.rows.is_some_and(RowChange::remembers);
    !stateless || behaviour.answers_by_shape || (first && is_scored(behaviour, instance, call))
}

/// The rows of a call.
pub(super) fn channels_of(
    behaviour: Behaviour,
    sequence: &Sequence,
    index: usize,
) -> Result<ChannelOrder, Error> {
    let (instance, call) = (&sequence.instance, &sequence.calls[index]);
    let file = &instance.channel_file;
    let kind = instance.channel_selection;
    let order = match behaviour.channels {
        Channels::OwnLayer => instance.channels(call.layer)?,
        Channels::FirstLayer => {
            let scored = |call: &&Call| is_scored(behaviour, instance, call);
            let first = sequence.calls[..=index].iter().find(scored).unwrap_or(call);
            instance.channels(first.layer)?
        }
        Channels::NextLayer => {
            instance.channels(call.layer)?;
            let layers: Vec<usize> = file.layers(kind).map(|(layer, _)| layer).collect();
            let next = layers.iter().find(|&&layer| layer > call.layer).or(layers.first());
            instance.channels(*next.unwrap_or(&call.layer))?
        }
        Channels::OtherKind => {
            let own = instance.channels(call.layer)?;
            let present = |other: &ChannelKind| *other != kind && file.order(*other, call.layer).is_ok();
            let other = file.kinds().find(present);
            other.map_or(Ok(own), |other| file.order(other, call.layer))?
        }
    };
    let order = reordered(behaviour.order, order, call.inputs.dims().head_dim)?;
    of_other_rows(behaviour.channel_rows, order, &call.inputs.dims())
}

/// One row for each head, where heads use others than their own.
fn of_other_rows(which: ChannelRows, order: ChannelOrder, dims: &Dims) -> Result<ChannelOrder, Error> {
    let (given, count) = (order.rows(), order.rows().len());
    let rows: Option<Vec<usize>> =
        (0..dims.heads).map(|head| which.of(head, count, dims.group_size())).collect();
    let Some(rows) = rows.filter(|_| count > 1) else { return Ok(order) };
    let changed = ChannelOrder::new(rows.iter().map(|&row| given[row].clone()).collect())?;
    match order.weights() {
        None => Ok(changed),
        Some(weights) => changed.with_weights(rows.iter().map(|&row| weights[row].clone()).collect()),
    }
}

/// Of earlier calls of the layer: the first of the same batch size and number of queries, the first, and the last.
fn lengths(sequence: &Sequence, index: usize) -> [Option<usize>; 3] {
    let call = &sequence.calls[index];
    let dims = call.inputs.dims();
    let earlier = sequence.calls[..index].iter().filter(|other| other.layer == call.layer);
    let others: Vec<Dims> = earlier.map(|call| call.inputs.dims()).collect();
    let same = others.iter().find(|other| (other.batch, other.queries) == (dims.batch, dims.queries));
    [same, others.first(), others.last()].map(|other| other.map(|dims| dims.keys))
}

fn reordered(order: Order, rows: &ChannelOrder, head_dim: usize) -> Result<ChannelOrder, Error> {
    let row = |row: &Vec<usize>| -> Vec<usize> {
        match order {
            Order::Falling => row.clone(),
            Order::Rising => row.iter().rev().copied().collect(),
            Order::Interleaved => {
                // Nothing to map where RoPE has no pairs, or where the index does not exist.
                row.iter().map(|&c| half_split_to_interleaved(c, head_dim).unwrap_or(c)).collect()
            }
        }
    };
    let reordered = ChannelOrder::new(rows.rows().iter().map(row).collect())?;
    // Channel weights belong to places in a row.
    match rows.weights() {
        None => Ok(reordered),
        Some(weights) => reordered.with_weights(weights.to_vec()),
    }
}

/// What the attention reads: KV heads as the behaviour assigns them, A and the scaling as it uses them.
fn attending(behaviour: Behaviour, inputs: &Arc<Inputs>) -> Result<Arc<Inputs>, Error> {
    let dims = inputs.dims();
    let inputs = masked(inputs, behaviour.attention_mask, behaviour.attended_causality)?;
    let of_keys = behaviour.kv_heads;
    let of_values = behaviour.value_heads.or(behaviour.kv_heads);
    let as_specified =
        |heads: KvHeads| (0..dims.heads).all(|head| heads.of(head, &dims) == dims.kv_head(head));
    if as_specified(of_keys) && as_specified(of_values) && behaviour.scaling == Scaling::Asked {
        return Ok(inputs);
    }
    let parts = inputs.parts();
    let of_heads = |tensor: &Array4<f32>, heads: KvHeads| {
        let order: Vec<usize> = (0..dims.heads).map(|head| heads.of(head, &dims)).collect();
        tensor.select(Axis(1), &order)
    };
    let scaling = match behaviour.scaling {
        Scaling::Asked => parts.scaling,
        Scaling::HeadDim => None,
        Scaling::One => Some(1.0),
    };
    let (k, v) = (of_heads(&parts.k, of_keys), of_heads(&parts.v, of_values));
    Ok(Arc::new(Inputs::new(InputParts { k, v, scaling, ..parts.clone() })?))
}

/// The inputs with A as the ranking uses it.
fn ranking(behaviour: Behaviour, inputs: &Arc<Inputs>) -> Result<Arc<Inputs>, Error> {
    masked(inputs, behaviour.ranking_mask, behaviour.causality)
}

/// The inputs with another A and another causality.
fn masked(inputs: &Arc<Inputs>, mask: RankingMask, causality: Causality) -> Result<Arc<Inputs>, Error> {
    let parts = inputs.parts();
    let causality = if parts.causal { causality } else { Causality::Own };
    let mask = if parts.attention_mask.is_some() { mask } else { RankingMask::Own };
    if causality == Causality::Own && mask == RankingMask::Own {
        return Ok(inputs.clone());
    }
    let of_first = |axis, given: &Array4<f32>| Some(given.select(Axis(axis), &[0]));
    let attention_mask = parts.attention_mask.as_ref().and_then(|given| match mask {
        RankingMask::Own => Some(given.clone()),
        RankingMask::Ignored => None,
        RankingMask::OfFirstEntry => of_first(0, given),
        RankingMask::OfFirstHead => of_first(1, given),
        RankingMask::OfFirstQuery => of_first(2, given),
        RankingMask::OnlyExcludes => Some(given.mapv(|x| if x > f32::NEG_INFINITY { 0.0 } else { x })),
    });
    let with = |attention_mask, causal| {
        let parts = InputParts { attention_mask, causal, ..parts.clone() };
        Inputs::new(parts)?.with_head_weights(inputs.head_weights().cloned())
    };
    if matches!(causality, Causality::Own | Causality::Ignored) {
        return with(attention_mask, causality == Causality::Own && parts.causal).map(Arc::new);
    }
    let dims = inputs.dims();
    let plain = with(attention_mask, false)?;
    let explicit = Array4::from_shape_fn(dims.mask_shape(), |(b, head, i, key)| {
        let last = match causality {
            Causality::SeesNext => dims.position(i) + 1,
            Causality::OfFirstQuery => dims.position(0),
            Causality::TopLeft => i,
            _ => dims.position(i).wrapping_sub(1),
        };
        // Position 0 without its own key sees nothing.
        let seen = last != usize::MAX && key <= last;
        if seen { plain.additive(b, head, i).at(key) } else { f32::NEG_INFINITY }
    });
    let heads = if plain.attention_mask_differs_between_heads() { dims.heads } else { 1 };
    with(Some(explicit.slice(ndarray::s![.., ..heads, .., ..]).to_owned()), false).map(Arc::new)
}

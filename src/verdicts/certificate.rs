//! Certified selection (SPEC §5). Every score is recomputed in f64 with a radius that covers all the rounding that the
//! model allows; a key is then certainly in, certainly out, or open. Nothing is compared with a constant tolerance.
//!
//! With candidates' scores in [low, high] and H keys to select: a key is certainly in if fewer than H others could score
//! at least as high, that is if its low exceeds the (H+1)-th largest high; it is certainly out if at least H others must
//! score higher, that is if its high is below the H-th largest low. Ties are open: the SPEC's tie rule binds the
//! reference; other implementations may break ties differently.
//!
//! Forced keys are in wherever they are candidates for certain. With f of them H − f keys are left to the others, where f is as
//! large as it may be for what is certainly in, and as small as it may be for what is certainly out.

use std::ops::Range;

use ndarray::{Array2, Array4, ArrayView1, ArrayView2, s};

use super::bounds::{Approximate, Arithmetic, underflow};
use super::estimated;
use super::labels::{AllowedLabels, head_labels, rounded_rows};
use super::ragged;
use crate::algorithm::scores::check_head_mode;
use crate::algorithm::{
    ChannelOrder, Error, Forced, HeadMode, Inputs, LabelBits, Mask, Ranks, Row, ScoreRule, Storage,
};
use crate::behaviours::{
    Cosine, Earlier, ForcedRule, HeadLabels, Prediction, Ranked, Relu, Scoring, Sharing, Together,
};
use crate::cases::{AnsweredLabels, Call, Instance, LabelRounding, RoundingModel};
use crate::compute;
use crate::compute::vectorised;

/// What must become of a key in one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Class {
    /// Attended before; not a candidate, stays attended.
    Before,
    /// Not a candidate: excluded by A, or attended before by another head in a summed mode.
    Excluded,
    /// A candidate that may not be selected.
    Out,
    /// A candidate that may or may not be selected.
    Open,
    /// A candidate that must be selected.
    In,
}

/// What any conforming mask of one row must satisfy.
#[derive(Debug, Clone, PartialEq)]
pub struct RowCertificate {
    /// One class per key.
    pub classes: Vec<Class>,
    /// The fewest keys that may be selected: min(H, keys that are candidates for certain).
    pub fewest: usize,
    /// The most keys that may be selected: min(H, keys that may be candidates).
    pub most: usize,
}

impl RowCertificate {
    /// How many keys are open.
    pub fn open(&self) -> usize {
        self.classes.iter().filter(|&&class| class == Class::Open).count()
    }

    /// Whether there are more candidates than H, so that the row leaves some out.
    pub fn selects(&self) -> bool {
        self.classes.iter().any(|class| matches!(class, Class::Out | Class::Open))
    }
}

/// What any conforming mask of a call must satisfy.
#[derive(Debug)]
pub struct Certificate {
    /// The mask that Double Sparsity starts from.
    pub before: Mask,
    /// `None` where every key must be attended (SPEC §2.2). Never where entries have lengths: each has an early out of its own.
    pub rows: Option<Vec<RowCertificate>>,
    /// Those of the entries alone, where these have lengths; `None` for one without keys.
    pub entries: Vec<Option<Certificate>>,
}

impl Certificate {
    /// Derives the certificate of a call under a rounding model.
    ///
    /// Errors: those with which the call must be refused (end of SPEC §2).
    pub fn derive(instance: &Instance, call: &Call, model: RoundingModel) -> Result<Self, Error> {
        let mut certificates = Self::derive_each(instance, call, &[model])?;
        Ok(certificates.remove(0))
    }

    /// The certificates of a call under several rounding models. Labels, which take most of the time, are derived once where all
    /// models have the same.
    ///
    /// Errors: as of [`Certificate::derive`]; they do not depend on the model.
    pub fn derive_each(
        instance: &Instance,
        call: &Call,
        models: &[RoundingModel],
    ) -> Result<Vec<Self>, Error> {
        if let Some(entries) = call.entries() {
            return models
                .iter()
                .map(|&model| ragged::certificate(instance, call, &entries, model))
                .collect();
        }
        let same_labels = models.iter().all(|model| model.labels == models[0].labels);
        if !same_labels {
            return models.iter().map(|&model| Self::derive(instance, call, model)).collect();
        }
        if instance.selection.heads != HeadMode::PerHead {
            return models.iter().map(|&model| Self::derive_one(instance, call, model)).collect();
        }
        let before = instance.before(call)?;
        let scores = |&model: &RoundingModel| ScoreBounds::without_labels(instance, call, model, &before);
        let scores: Option<Vec<_>> = models.iter().map(scores).collect::<Result<_, _>>()?;
        let Some(scores) = scores.filter(|scores| !scores.is_empty()) else {
            return Ok(models.iter().map(|_| Self::of_rows(before.clone(), None)).collect());
        };
        let dims = call.inputs.dims();
        let heavy_size = instance.selection.heavy_size.resolve(dims.keys);
        // A KV head at a time: labels of all heads of a long call take much memory.
        let groups = (0..dims.batch * dims.kv_heads).collect();
        let groups = compute::map(groups, dims.operations(), |group: usize| {
            if let Some(rows) = estimated::certificates(instance, call, models, &scores, group) {
                return Ok(rows);
            }
            let labels = scores[0].labels_of(instance, call, models[0].labels, group..group + 1)?;
            let (batch, kv_head) = (group / dims.kv_heads, group % dims.kv_heads);
            let heads = kv_head * dims.group_size()..(kv_head + 1) * dims.group_size();
            let rows = heads.flat_map(|head| (0..dims.queries).map(move |query| (batch, head, query)));
            let rows: Vec<Row> = rows.collect();
            let certify = |scores: &ScoreBounds| -> Result<Vec<RowCertificate>, Error> {
                let scores = scores.labelled(instance.channels(call.layer)?, labels.clone(), group);
                Ok(compute::map(rows.clone(), dims.operations(), |row| scores.certify(row, heavy_size)))
            };
            scores.iter().map(certify).collect::<Result<Vec<_>, _>>()
        });
        let mut rows = vec![Vec::new(); models.len()];
        for group in groups {
            rows.iter_mut().zip(group?).for_each(|(rows, of_group)| rows.extend(of_group));
        }
        Ok(rows.into_iter().map(|rows| Self::of_rows(before.clone(), Some(rows))).collect())
    }

    /// Of a call without lengths, in any head mode.
    fn derive_one(instance: &Instance, call: &Call, model: RoundingModel) -> Result<Self, Error> {
        let before = instance.before(call)?;
        let Some(scores) = ScoreBounds::new(instance, call, model, &before)? else {
            return Ok(Self::of_rows(before, None));
        };
        let dims = call.inputs.dims();
        let heavy_size = instance.selection.heavy_size.resolve(dims.keys);
        let certify = |row| scores.certify(row, heavy_size);
        let rows = compute::map(dims.rows().collect(), dims.operations(), certify);
        Ok(Self::of_rows(before, Some(rows)))
    }

    fn of_rows(before: Mask, rows: Option<Vec<RowCertificate>>) -> Self {
        Self { before, rows, entries: Vec::new() }
    }

    /// How many keys are open in all rows together.
    pub fn open(&self) -> usize {
        self.rows.iter().flatten().map(RowCertificate::open).sum()
    }

    /// How many rows have more candidates than H.
    pub fn selecting(&self) -> usize {
        self.rows.iter().flatten().filter(|row| row.selects()).count()
    }
}

/// A key of one row: attended before, excluded, or a candidate with its score.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Candidacy {
    /// Attended before.
    Before,
    /// Not a candidate.
    Excluded,
    /// Ranked by this score.
    Scored(Approximate),
    /// Selected whatever its score, unless that is −∞.
    Forced(Approximate),
}

/// Labels of the queries and of the keys of one head.
type HeadAllowed = (AllowedLabels, AllowedLabels);

/// Scores of a call with their radii.
pub struct ScoreBounds<'a> {
    inputs: &'a Inputs,
    before: &'a Mask,
    sharing: Sharing,
    scoring: Scoring,
    forced: ForcedRule,
    ranks: Ranks,
    /// Whether q̂ is multiplied by the channel weights that the rows may have.
    channel_weights: bool,
    /// Whether keys attended before are ranked too, which the SPEC does not allow.
    before_ranked: bool,
    arithmetic: Arithmetic,
    label_channels: usize,
    /// Queries and keys per (batch, head); in `summed-labels` per (batch, rank), summed over the heads of the rank.
    labels: Vec<HeadAllowed>,
    /// The index of the first of them among all (batch, head).
    first: usize,
}

impl<'a> ScoreBounds<'a> {
    /// `None` where the mask is full: in a dense layer and by the early outs of SPEC §2.2. Errors: those with which the
    /// call must be refused.
    pub fn new(
        instance: &Instance,
        call: &'a Call,
        model: RoundingModel,
        before: &'a Mask,
    ) -> Result<Option<Self>, Error> {
        let scores = Self::without_labels(instance, call, model, before)?;
        scores.map(|scores| scores.with_all_labels(instance, call, model)).transpose()
    }

    /// Scores from labels that an implementation gives, whether these are right or not. Labels that may be any of several are given
    /// in the storage type or as they are ranked with; in f16 and bf16 the former rounds each once more. `None` also where there
    /// are another number of label channels, or labels that are not finite. Errors: as of [`ScoreBounds::new`].
    pub fn from_labels(
        instance: &Instance,
        call: &'a Call,
        model: RoundingModel,
        before: &'a Mask,
        labels: &AnsweredLabels,
    ) -> Result<Option<Self>, Error> {
        let Some(mut bounds) = Self::without_labels(instance, call, model, before)? else {
            return Ok(None);
        };
        let finite = labels.q.iter().chain(&labels.k).all(|x| x.is_finite());
        if !finite || labels.q.dim().3 != bounds.label_channels {
            return Ok(None);
        }
        let storage = call.inputs.storage();
        let rounded = model.labels == LabelRounding::Rounded && storage != Storage::F32;
        let allowed = |of_head: ArrayView2<f32>| {
            let values = of_head.t().as_standard_layout().into_owned();
            if !rounded {
                return AllowedLabels::Exact(values.into_shared());
            }
            let radius = |&x: &f32| storage.unit_roundoff() * f64::from(x.abs()) + underflow(storage);
            AllowedLabels::Within { radii: values.map(radius), values: values.mapv(f64::from) }
        };
        let channels = instance.channels(call.layer)?;
        let dims = call.inputs.dims();
        let heads = (0..dims.batch).flat_map(|b| (0..dims.heads).map(move |head| (b, head)));
        bounds.labels = heads
            .map(|(b, head)| {
                let of = |labels: &Array4<f32>| allowed(labels.slice(s![b, head, .., ..]));
                bounds.weighted(channels, head, (of(&labels.q), of(&labels.k)))
            })
            .collect();
        Ok(Some(bounds.summed()))
    }

    /// With labels summed over heads, where they are scored so.
    fn summed(mut self) -> Self {
        if self.sharing == Sharing::Mode(HeadMode::SummedLabels) {
            let together = self.inputs.dims().heads / self.ranks.count();
            self.labels = sum_over_heads(&self.labels, together, self.arithmetic);
        }
        self
    }

    /// [`ScoreBounds::new`] before the labels are derived, with all of its other checks.
    fn without_labels(
        instance: &Instance,
        call: &'a Call,
        model: RoundingModel,
        before: &'a Mask,
    ) -> Result<Option<Self>, Error> {
        if instance.dense_layers.contains(&call.layer) {
            return Ok(None);
        }
        let (settings, inputs, dims) = (instance.selection, &call.inputs, call.inputs.dims());
        let channels = instance.channels(call.layer)?;
        let label_channels = settings.group_factor.label_channels(dims.head_dim)?;
        channels.check(&dims, label_channels)?;
        check_head_mode(inputs, channels, label_channels, &settings)?;
        let heavy_size = settings.heavy_size.resolve(dims.keys);
        settings.rules.forced.check(&dims, heavy_size)?;
        let arithmetic = Arithmetic::new(model, inputs.storage());
        let wide = settings.heads == HeadMode::SummedLabels || settings.rules.channel_weights;
        let short = settings.dense_fallback && dims.keys - dims.queries <= heavy_size;
        if before.is_full() || short {
            return Ok(None);
        }
        Ok(Some(Self {
            inputs,
            before,
            sharing: Sharing::Mode(settings.heads),
            scoring: Scoring::spec(&settings.rules, label_channels, dims.head_dim),
            forced: ForcedRule::spec(settings.rules.forced),
            ranks: settings.rules.ranks,
            channel_weights: settings.rules.channel_weights,
            before_ranked: false,
            arithmetic: if wide { arithmetic.with_wide_labels(model, inputs.storage()) } else { arithmetic },
            label_channels,
            labels: Vec::new(),
            first: 0,
        }))
    }

    /// With the labels of all heads. Errors: labels out of range.
    fn with_all_labels(&self, instance: &Instance, call: &Call, model: RoundingModel) -> Result<Self, Error> {
        let dims = self.inputs.dims();
        let all = 0..dims.batch * dims.kv_heads;
        let labels = self.labels_of(instance, call, model.labels, all)?;
        Ok(self.labelled(instance.channels(call.layer)?, labels, 0).summed())
    }

    /// Labels of the heads of some KV heads, counted over all batch entries, without channel weights. Errors: labels out of range.
    fn labels_of(
        &self,
        instance: &Instance,
        call: &Call,
        rounding: LabelRounding,
        groups: Range<usize>,
    ) -> Result<Vec<HeadAllowed>, Error> {
        let dims = self.inputs.dims();
        let channels = instance.channels(call.layer)?;
        let (size, bits) = (dims.group_size(), instance.selection.bits());
        let operations = groups.len() * size * dims.keys * self.label_channels;
        let labels = compute::map(groups.collect(), operations, |index: usize| {
            let (batch, head) = (index / dims.kv_heads, index % dims.kv_heads * size);
            head_labels(
                self.inputs,
                channels,
                self.label_channels,
                bits,
                rounding,
                (batch, head..head + size),
            )
        });
        Ok(labels.into_iter().collect::<Result<Vec<_>, Error>>()?.into_iter().flatten().collect())
    }

    /// With the labels of the heads of some KV heads, this one the first.
    fn labelled(&self, channels: &ChannelOrder, labels: Vec<HeadAllowed>, kv_head: usize) -> Self {
        let dims = self.inputs.dims();
        let first = kv_head * dims.group_size();
        let labels = labels.into_iter().zip(first..);
        let labels = labels.map(|(labels, head)| self.weighted(channels, head % dims.heads, labels));
        Self { labels: labels.collect(), first, ..*self }
    }

    /// The labels of a head, those of queries multiplied by channel weights where these are used.
    fn weighted(&self, channels: &ChannelOrder, head: usize, (queries, keys): HeadAllowed) -> HeadAllowed {
        (self.weighted_queries(channels, head, queries), keys)
    }

    /// The labels of the queries of a head, multiplied by channel weights where these are used.
    pub(super) fn weighted_queries(
        &self,
        channels: &ChannelOrder,
        head: usize,
        queries: AllowedLabels,
    ) -> AllowedLabels {
        let weights = channels.weights_of(head, &self.inputs.dims());
        match weights.filter(|_| self.channel_weights) {
            None => queries,
            Some(weights) => weighted_labels(&queries, weights, self.arithmetic),
        }
    }

    /// The scores by which a behaviour ranks.
    pub fn predicted(prediction: &'a Prediction, ranked: &Ranked, model: RoundingModel) -> Self {
        let inputs = &prediction.ranking;
        let mut arithmetic = Arithmetic::new(model, inputs.storage());
        if prediction.behaviour.half_sums {
            arithmetic.accumulation = arithmetic.accumulation.max(Storage::F16.unit_roundoff());
            arithmetic.sum_range = (Storage::F16.largest(), Storage::F16.smallest_subnormal());
        }
        let allowed = |source: &Array2<f32>, label: &Array2<f32>, bits: Option<LabelBits>| match bits {
            Some(bits) if model.labels == LabelRounding::Rounded && bits.quantises() => {
                rounded_rows(source.view(), bits, inputs.storage())
            }
            _ => AllowedLabels::Exact(label.t().as_standard_layout().into_owned().into_shared()),
        };
        let is_weighted = ranked.labels.iter().any(|head| head.channel_weights.is_some());
        if is_weighted || ranked.sharing == Sharing::Mode(HeadMode::SummedLabels) {
            arithmetic = arithmetic.with_wide_labels(model, inputs.storage());
        }
        let head = |head: &HeadLabels| {
            let [of_queries, of_keys] = ranked.bits.map_or([None; 2], |bits| bits.map(Some));
            let queries = allowed(&head.q_source, &head.q, of_queries);
            let queries = match &head.channel_weights {
                Some(weights) => weighted_labels(&queries, weights, arithmetic),
                None => queries,
            };
            (queries, allowed(&head.k_source, &head.k, of_keys))
        };
        let predicted = Self {
            inputs,
            before: &prediction.before,
            sharing: ranked.sharing,
            scoring: ranked.scoring,
            forced: ranked.forced,
            ranks: ranked.ranks,
            // The labels hold theirs already.
            channel_weights: false,
            before_ranked: prediction.behaviour.earlier == Earlier::Candidates,
            arithmetic,
            label_channels: ranked.labels[0].q.ncols(),
            labels: ranked.labels.iter().map(head).collect(),
            first: 0,
        };
        predicted.summed()
    }

    /// The score of every key of one row, after the head rule and A, candidate or not.
    pub fn ranked_by(&self, (batch, head, query): Row) -> Vec<Approximate> {
        let dims = self.inputs.dims();
        let ranks = self.ranks;
        // Labels summed over the heads of a rank are one for each rank, whose number stands in the place of a head's.
        let (of_batch, heads_of_rank) = match self.sharing {
            Sharing::Mode(HeadMode::SummedLabels) => (ranks.count(), dims.heads / ranks.count()),
            _ => (dims.heads, 1),
        };
        let of_head =
            |head: usize| self.scores(batch * of_batch + head, (batch, head * heads_of_rank, query));
        self.sharing.scores(head, &dims, ranks, of_head, |how, parts: &[Vec<Approximate>]| {
            by_key(parts, |parts| match how {
                Together::Heads(how, ranks) => self.arithmetic.combine(how, ranks, parts),
                Together::Parts(ranks) => self.arithmetic.sum_of_parts(ranks.parts(), parts),
            })
        })
    }

    /// Whether a head that shares the selection of a row attends to a key already.
    pub(super) fn attended_before(&self, (batch, head, query): Row) -> impl Fn(usize) -> bool {
        let heads = self.sharing.heads(head, &self.inputs.dims());
        move |key| heads.iter().any(|&head| self.before.attends(batch, head, query, key))
    }

    /// Every key of one row.
    pub fn row(&self, row @ (_, _, query): Row) -> Vec<Candidacy> {
        let dims = self.inputs.dims();
        let scores = self.ranked_by(row);
        let (before, earlier) = (self.before.row_weights(row), self.attended_before(row));
        let candidacy = |(key, score): (usize, Approximate)| match score {
            _ if !self.before_ranked && before[key] != 0.0 => Candidacy::Before,
            _ if !self.before_ranked && earlier(key) => Candidacy::Excluded,
            _ if score == Approximate::EXCLUDED && self.forced.holds_excluded(key, query, &dims) => {
                Candidacy::Forced(Approximate::new(0.0, 0.0))
            }
            _ if score == Approximate::EXCLUDED => Candidacy::Excluded,
            _ if self.forced.holds(key, query, &dims) => Candidacy::Forced(score),
            _ => Candidacy::Scored(score),
        };
        scores.into_iter().enumerate().map(candidacy).collect()
    }

    /// The labels of one query with their radii, multiplied by the factor where that comes before the sum.
    pub(super) fn query(&self, queries: &AllowedLabels, query: usize) -> Vec<(f64, f64)> {
        let q = (0..self.label_channels).map(|channel| queries.at(channel, query));
        if self.factor_first() {
            q.map(|x| scaled_number(self.arithmetic, x, self.scoring.factor)).collect()
        } else {
            q.collect()
        }
    }

    /// A cosine is multiplied by its factor in the end.
    fn factor_first(&self) -> bool {
        self.arithmetic.factor_first && self.scoring.rule != ScoreRule::Cosine
    }

    /// Classes and counts of one row: those of [`certify_row`] for [`ScoreBounds::row`].
    pub fn certify(&self, row: Row, heavy_size: usize) -> RowCertificate {
        match self.ends(row) {
            Some(ends) => ends.certify(self.before.row_weights(row), heavy_size),
            None => certify_row(&self.row(row), heavy_size),
        }
    }

    /// The keys of a row that were attended before, with their weights.
    pub(super) fn before_row(&self, row: Row) -> impl Iterator<Item = (usize, f32)> {
        self.before.row(row)
    }

    /// Whether a head ranks alone by dot products, and no key is forced.
    pub(super) fn is_plain(&self) -> bool {
        let alone = self.sharing == Sharing::Mode(HeadMode::PerHead);
        let is_forced = self.forced.configured != Forced::default();
        alone && !is_forced && !self.before_ranked && self.scoring.rule == ScoreRule::Dot
    }

    /// What a score has of a dot product of labels.
    pub(super) fn scale(&self) -> f64 {
        if self.factor_first() { 1.0 } else { self.scoring.factor }
    }

    /// Makes a score of a dot product of labels, the sum of its products' magnitudes and the error that they carry, before A.
    pub(super) fn of_dots(&self) -> impl Fn(f64, f64, f64) -> Approximate {
        // Copies, which the compiler keeps in registers where a loop calls this.
        let (arithmetic, channels) = (self.arithmetic, self.label_channels);
        let (first, factor) = (self.factor_first(), self.scoring.factor);
        #[inline(always)]
        move |value, magnitude, carried| {
            let dot = arithmetic.sum_of_products(channels, value, magnitude, or_infinity(carried));
            if first { dot } else { arithmetic.scale(dot, factor) }
        }
    }

    /// The ends of all scores of a row, where it is [plain](Self::is_plain): the same numbers as those of [`ScoreBounds::row`], in
    /// loops over keys.
    fn ends(&self, (batch, head, query): Row) -> Option<Ends> {
        if !self.is_plain() {
            return None;
        }
        let dims = self.inputs.dims();
        let (queries, keys) = &self.labels[batch * dims.heads + head - self.first];
        let additive = self.inputs.additive(batch, head, query);
        let has_mask = self.inputs.parts().attention_mask.is_some();
        let (q, arithmetic) = (self.query(queries, query), self.arithmetic);
        let mut ends = if has_mask {
            self.dot_ends(&q, keys, |score, key| arithmetic.add_mask(score, additive.at(key)))
        } else {
            self.dot_ends(&q, keys, |score, _| score)
        };
        // Without an additive mask only later keys are excluded.
        let visible = if has_mask { dims.keys } else { additive.visible(dims.keys) };
        (visible..dims.keys).for_each(|key| ends.exclude(key));
        Some(ends)
    }

    /// The ends of the scores of some keys, of which `keys` holds the labels; `add` adds A, and is told the place among these keys.
    pub(super) fn dot_ends(
        &self,
        q: &[(f64, f64)],
        keys: &AllowedLabels,
        add: impl Fn(Approximate, usize) -> Approximate,
    ) -> Ends {
        let count = keys.dim().1;
        let mut ends = Ends { low: vec![0.0; count], high: vec![0.0; count] };
        let score = self.of_dots();
        vectorised(
            #[inline(always)]
            || {
                let mut products = Products::zeros(TOGETHER.min(count));
                for start in (0..count).step_by(TOGETHER) {
                    let block = start..count.min(start + TOGETHER);
                    products.set(q, keys, block.clone());
                    let (low, high) = (&mut ends.low[block.clone()], &mut ends.high[block.clone()]);
                    let sums = products.value.iter().zip(&products.magnitude).zip(&products.carried);
                    for ((((&value, &magnitude), &carried), (low, high)), key) in
                        sums.zip(low.iter_mut().zip(high)).zip(block)
                    {
                        let score = add(score(value, magnitude, carried), key);
                        (*low, *high) = (score.low(), score.high());
                    }
                }
            },
        );
        ends
    }

    fn scores(&self, labels: usize, (batch, head, query): Row) -> Vec<Approximate> {
        let (queries, keys) = &self.labels[labels - self.first];
        let additive = self.inputs.additive(batch, head, query);
        let (factor, first) = (self.scoring.factor, self.factor_first());
        let q: Vec<_> = (0..self.label_channels).map(|channel| queries.at(channel, query)).collect();
        let Products { value, magnitude, carried } = products(&self.query(queries, query), keys);
        let with_factor = |dot| if first { dot } else { self.arithmetic.scale(dot, factor) };
        let q_norm = self.arithmetic.norm(q.iter().copied());
        let sharing = self.sharing.heads(head, &self.inputs.dims());
        let weight = self.scoring.head_weight(self.inputs, (batch, head, query), &sharing);
        let one = Approximate::new(1.0, 0.0);
        let score = |key: usize| {
            let carried = or_infinity(carried[key]);
            let dot =
                self.arithmetic.sum_of_products(self.label_channels, value[key], magnitude[key], carried);
            let score = match self.scoring.rule {
                ScoreRule::Dot => with_factor(dot),
                ScoreRule::Cosine => {
                    let k = (0..self.label_channels).map(|channel| keys.at(channel, key));
                    let (q, k) = match self.scoring.cosine {
                        Cosine::WithoutQueryNorm => (one, self.arithmetic.norm(k)),
                        Cosine::WithoutKeyNorm => (q_norm, one),
                        _ => (q_norm, self.arithmetic.norm(k)),
                    };
                    scaled(self.arithmetic, self.arithmetic.cosine(dot, q, k, self.scoring.epsilon), factor)
                }
                ScoreRule::Relu => {
                    let scaled = with_factor(dot);
                    match self.scoring.relu {
                        Relu::Spec => self.arithmetic.relu(scaled, weight, factor),
                        Relu::LeftOut => self.arithmetic.head_weighted(scaled, weight),
                        Relu::AfterWeight => {
                            self.arithmetic.relu(self.arithmetic.head_weighted(scaled, weight), 1.0, factor)
                        }
                    }
                }
            };
            self.arithmetic.add_mask(score, additive.at(key))
        };
        (0..value.len()).map(score).collect()
    }
}

/// What the scores of each key make together, from rows of scores.
fn by_key(rows: &[Vec<Approximate>], combine: impl Fn(&[Approximate]) -> Approximate) -> Vec<Approximate> {
    let of_key = |key: usize| combine(&rows.iter().map(|row| row[key]).collect::<Vec<_>>());
    (0..rows[0].len()).map(of_key).collect()
}

/// What may rank anywhere may do so whatever it is multiplied by.
fn scaled(arithmetic: Arithmetic, score: Approximate, factor: f64) -> Approximate {
    if score == Approximate::UNDETERMINED { score } else { arithmetic.scale(score, factor) }
}

/// A number of q and its radius, multiplied by a factor; the radius is infinite where that may overflow.
pub(super) fn scaled_number(arithmetic: Arithmetic, (x, radius): (f64, f64), factor: f64) -> (f64, f64) {
    let scaled = arithmetic.scale(Approximate::new(x, radius), factor);
    let overflows = scaled.may_be_minus_infinity || scaled.may_be_plus_infinity;
    (scaled.value, if overflows { f64::INFINITY } else { scaled.radius })
}

/// A label that may be an infinity may make any score, NaN included.
#[inline(always)]
fn or_infinity(carried: f64) -> f64 {
    if carried.is_nan() { f64::INFINITY } else { carried }
}

/// The labels of one channel, which are contiguous.
#[inline(always)]
fn channel<T>(labels: ArrayView1<'_, T>) -> &[T] {
    labels.to_slice().expect("labels have the standard layout")
}

/// Keys whose products are summed together: their sums stay in the first level of cache.
const TOGETHER: usize = 512;

/// Sums of the products of one query's labels with those of each of some keys.
struct Products {
    value: Vec<f64>,
    /// Sums of their magnitudes.
    magnitude: Vec<f64>,
    /// Sums of the errors that the labels' radii carry into them.
    carried: Vec<f64>,
}

/// `q` is a label and a radius for each channel.
fn products(q: &[(f64, f64)], keys: &AllowedLabels) -> Products {
    let mut products = Products::zeros(keys.dim().1);
    vectorised(
        #[inline(always)]
        || products.set(q, keys, 0..keys.dim().1),
    );
    products
}

impl Products {
    fn zeros(keys: usize) -> Self {
        Self { value: vec![0.0; keys], magnitude: vec![0.0; keys], carried: vec![0.0; keys] }
    }

    /// Those of some of the keys, no more than there were before.
    #[inline(always)]
    fn set(&mut self, q: &[(f64, f64)], keys: &AllowedLabels, block: Range<usize>) {
        for sums in [&mut self.value, &mut self.magnitude, &mut self.carried] {
            sums.truncate(block.len());
            sums.fill(0.0);
        }
        let (value, magnitude, carried) =
            (&mut self.value[..], &mut self.magnitude[..], &mut self.carried[..]);
        match keys {
            AllowedLabels::Exact(values) => {
                for (&(q, rq), k) in q.iter().zip(values.outer_iter()) {
                    let k = &channel(k)[block.clone()];
                    for ((&k, value), magnitude) in k.iter().zip(&mut *value).zip(&mut *magnitude) {
                        let product = q * f64::from(k);
                        *value += product;
                        *magnitude += product.abs();
                    }
                    if rq > 0.0 {
                        for (&k, carried) in k.iter().zip(&mut *carried) {
                            *carried += rq * f64::from(k.abs());
                        }
                    }
                }
            }
            AllowedLabels::Within { values, radii } => {
                for ((&(q, rq), k), rk) in q.iter().zip(values.outer_iter()).zip(radii.outer_iter()) {
                    let (k, rk) = (&channel(k)[block.clone()], &channel(rk)[block.clone()]);
                    let sums = value.iter_mut().zip(&mut *magnitude).zip(&mut *carried);
                    for (((value, magnitude), carried), (&k, &rk)) in sums.zip(k.iter().zip(rk)) {
                        *value += q * k;
                        *magnitude += (q * k).abs();
                        *carried += q.abs() * rk + rq * k.abs() + rq * rk;
                    }
                }
            }
        }
    }
}

/// The smallest and the largest score that each key of a row may have; both −∞ for one that is excluded.
pub(super) struct Ends {
    low: Vec<f64>,
    high: Vec<f64>,
}

impl Ends {
    /// Adds A = −∞, after which what may be +∞ may be NaN ([`Arithmetic::add_mask`]).
    fn exclude(&mut self, key: usize) {
        self.low[key] = f64::NEG_INFINITY;
        if self.high[key] < f64::INFINITY {
            self.high[key] = f64::NEG_INFINITY;
        }
    }

    /// [`certify_row`]; `before` holds the weights of keys attended before.
    fn certify(mut self, before: ArrayView1<f32>, heavy_size: usize) -> RowCertificate {
        for ((low, high), &before) in self.low.iter_mut().zip(&mut self.high).zip(before) {
            if before != 0.0 {
                (*low, *high) = (f64::NEG_INFINITY, f64::NEG_INFINITY);
            }
        }
        let of_ends = self.classes(heavy_size);
        let class = |(of_ends, &before): (Class, &f32)| if before != 0.0 { Class::Before } else { of_ends };
        let classes = of_ends.zip(before).map(class).collect();
        let count =
            |ends: &[f64]| ends.iter().filter(|&&end| end > f64::NEG_INFINITY).count().min(heavy_size);
        RowCertificate { classes, fewest: count(&self.low), most: count(&self.high) }
    }

    /// One for each key, none of which was attended before.
    pub(super) fn classes(&self, heavy_size: usize) -> impl Iterator<Item = Class> {
        let in_above = nth_largest(&self.high, heavy_size);
        let out_below = match heavy_size.checked_sub(1) {
            Some(before) => nth_largest(&self.low, before),
            None => f64::INFINITY,
        };
        let class = move |(&low, &high): (&f64, &f64)| {
            if high == f64::NEG_INFINITY {
                Class::Excluded
            } else if low > in_above {
                Class::In
            } else if high < out_below {
                Class::Out
            } else {
                Class::Open
            }
        };
        self.low.iter().zip(&self.high).map(class)
    }
}

/// Labels multiplied by channel weights, with radii.
fn weighted_labels(labels: &AllowedLabels, weights: &[f32], arithmetic: Arithmetic) -> AllowedLabels {
    let shape = labels.dim();
    let (mut values, mut radii) = (Array2::zeros(shape), Array2::zeros(shape));
    for (channel, position) in ndarray::indices(shape) {
        let (value, radius) = labels.at(channel, position);
        let product = arithmetic.weighted(Approximate::new(value, radius), weights[channel]);
        let overflows = product.may_be_minus_infinity || product.may_be_plus_infinity;
        values[[channel, position]] = product.value;
        radii[[channel, position]] = if overflows { f64::INFINITY } else { product.radius };
    }
    AllowedLabels::Within { values, radii }
}

/// Labels summed over as many heads in a row as are taken `together`.
fn sum_over_heads(labels: &[HeadAllowed], together: usize, arithmetic: Arithmetic) -> Vec<HeadAllowed> {
    let sum = |part: &[HeadAllowed]| {
        let queries: Vec<_> = part.iter().map(|(queries, _)| queries).collect();
        let keys: Vec<_> = part.iter().map(|(_, keys)| keys).collect();
        (summed_labels(&queries, arithmetic), summed_labels(&keys, arithmetic))
    };
    labels.chunks(together).map(sum).collect()
}

/// Labels summed over heads, in f32 at least, with radii.
fn summed_labels(heads: &[&AllowedLabels], arithmetic: Arithmetic) -> AllowedLabels {
    let shape = heads[0].dim();
    let mut values = Array2::zeros(shape);
    let mut radii = Array2::zeros(shape);
    for (channel, position) in ndarray::indices(shape) {
        let part = |head: &&AllowedLabels| {
            let (value, radius) = head.at(channel, position);
            Approximate::new(value, radius)
        };
        let parts: Vec<_> = heads.iter().map(part).collect();
        let sum = arithmetic.sum_over_heads(&parts);
        let overflows = sum.may_be_minus_infinity || sum.may_be_plus_infinity;
        values[[channel, position]] = sum.value;
        radii[[channel, position]] = if overflows { f64::INFINITY } else { sum.radius };
    }
    AllowedLabels::Within { values, radii }
}

/// The two thresholds of a row: a candidate above the first is in, one below the second is out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Thresholds {
    /// The (H+1)-th largest score that is possible; −∞ where there are no more than H candidates. Forced keys are left out, and
    /// H is less by how many may be candidates.
    pub in_above: f64,
    /// The H-th largest score that is certain; −∞ where there are fewer. Forced keys are left out, and H is less by how many
    /// are candidates for certain; +∞ where that leaves 0.
    pub out_below: f64,
}

/// Thresholds of one row.
pub fn thresholds(row: &[Candidacy], heavy_size: usize) -> Thresholds {
    let scores = || {
        row.iter().filter_map(|candidacy| match candidacy {
            Candidacy::Scored(score) => Some(*score),
            _ => None,
        })
    };
    let forced = |candidacy: &&Candidacy| matches!(candidacy, Candidacy::Forced(_));
    let certain = |candidacy: &&Candidacy| matches!(candidacy, Candidacy::Forced(score) if score.low() > f64::NEG_INFINITY);
    let fewest_left = heavy_size.saturating_sub(row.iter().filter(forced).count());
    let most_left = heavy_size.saturating_sub(row.iter().filter(certain).count());
    Thresholds {
        in_above: nth_largest(&scores().map(Approximate::high).collect::<Vec<_>>(), fewest_left),
        out_below: match most_left.checked_sub(1) {
            Some(before) => nth_largest(&scores().map(Approximate::low).collect::<Vec<_>>(), before),
            None => f64::INFINITY,
        },
    }
}

/// The value with `n` others before it in falling order; −∞ where there is none.
fn nth_largest(values: &[f64], n: usize) -> f64 {
    nth_largest_by(values, n, f64::total_cmp).unwrap_or(f64::NEG_INFINITY)
}

/// The same in any order of any values; `None` where there is none.
pub(super) fn nth_largest_by<T: Copy + PartialOrd>(
    values: &[T],
    n: usize,
    order: fn(&T, &T) -> std::cmp::Ordering,
) -> Option<T> {
    /// One of so many values is looked at first.
    const STEP: usize = 64;
    if n >= values.len() {
        return None;
    }
    let nth = |mut values: Vec<T>| Some(*values.select_nth_unstable_by(n, |a, b| order(b, a)).1);
    // Where few are larger, most of the others are put aside by a value of which the sample says that it is probably smaller.
    let sample: Vec<T> = values.iter().copied().step_by(STEP).collect();
    let rank = 2 * (n / STEP + 4);
    if rank < sample.len() / 2 {
        let probably_smaller = nth_largest_by(&sample, rank, order)?;
        let larger: Vec<T> = values.iter().copied().filter(|&value| value >= probably_smaller).collect();
        if n < larger.len() {
            return nth(larger);
        }
    }
    nth(values.to_vec())
}

/// Classes and counts of one row.
pub fn certify_row(row: &[Candidacy], heavy_size: usize) -> RowCertificate {
    let Thresholds { in_above, out_below } = thresholds(row, heavy_size);
    let (mut certain, mut possible) = (0, 0);
    // What may be +∞ is not below a threshold of +∞, and out all the same where forced keys leave no room.
    let forced =
        |key: &&Candidacy| matches!(key, Candidacy::Forced(score) if score.low() > f64::NEG_INFINITY);
    let no_room = row.iter().filter(forced).count() >= heavy_size;
    let class = |candidacy: &Candidacy| match candidacy {
        Candidacy::Before => Class::Before,
        Candidacy::Excluded => Class::Excluded,
        Candidacy::Forced(score) => {
            let sure = score.low() > f64::NEG_INFINITY;
            possible += 1;
            certain += usize::from(sure);
            if sure { Class::In } else { Class::Open }
        }
        Candidacy::Scored(score) => {
            possible += 1;
            certain += usize::from(score.low() > f64::NEG_INFINITY);
            if score.low() > in_above {
                Class::In
            } else if no_room || score.high() < out_below {
                Class::Out
            } else {
                Class::Open
            }
        }
    };
    let classes = row.iter().map(class).collect();
    RowCertificate { classes, fewest: certain.min(heavy_size), most: possible.min(heavy_size) }
}

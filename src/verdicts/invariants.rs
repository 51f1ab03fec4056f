//! Properties that every implementation must have, however it computes. Each takes a random case, asks the
//! implementation one or two questions, and says what is wrong with the answers. Where rounding may decide between
//! near-ties, the certificate of the case decides what counts as different.

use ndarray::{Array4, Axis, concatenate};

use super::certificate::{Certificate, Class};
use super::judge::judge;
use super::output::judge_output;
use crate::algorithm::maskers::Oracle;
use crate::algorithm::{
    ChannelOrder, Error, GroupFactor, HeadMode, HeavySize, InputParts, Inputs, LabelBits, Lengths, Mask,
    Masker, Padding,
};
use crate::cases::{Answer, Case, NoAnswer, RoundingModel};

/// An implementation: how it rounds, and what it answers.
pub struct Implementation<'a> {
    /// SPEC §5.
    pub model: RoundingModel,
    /// Mask and output of one case; `None` where it does not offer what the case asks for.
    pub answer: &'a mut dyn FnMut(&Case) -> Option<Result<Answer, NoAnswer>>,
}

impl Implementation<'_> {
    fn certificate(&self, case: &Case) -> Result<Certificate, Unmet> {
        Certificate::derive(&case.instance, &case.call, self.model).map_err(|_| Unmet::NotApplicable)
    }

    /// The answer to a case that must be answered.
    fn ask(&mut self, case: &Case) -> Result<Answer, Unmet> {
        match (self.answer)(case) {
            None => Err(Unmet::NotApplicable),
            Some(Ok(answer)) if answer.fits(&case.call.inputs.dims()) => Ok(answer),
            Some(Ok(_)) => Err(Unmet::Wrong("mask or output of another shape than the case asks for".into())),
            Some(Err(error)) => Err(Unmet::Wrong(format!("refused ({error}), expected an answer"))),
        }
    }
}

/// How one case went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// The property held.
    Yes,
    /// The case does not say anything about this property: it must be refused, or the implementation does not offer what
    /// the property asks for.
    NotApplicable,
}

/// Why a property cannot be said to hold.
enum Unmet {
    NotApplicable,
    Wrong(String),
}

impl From<Error> for Unmet {
    fn from(error: Error) -> Self {
        Self::Wrong(error.to_string())
    }
}

type Check = fn(&Case, &mut Implementation) -> Result<(), Unmet>;

/// A property of SPEC §2.
#[derive(Clone, Copy)]
pub struct Invariant {
    /// The property in a few words.
    pub name: &'static str,
    /// The sections of the SPEC that it follows from.
    pub source: &'static str,
    check: Check,
}

impl Invariant {
    /// Checks the property on one case. Errors: what is wrong, in a sentence.
    pub fn check(&self, case: &Case, implementation: &mut Implementation) -> Result<Held, String> {
        // The relations are those of the published algorithm; a certificate knows every rule.
        if !case.instance.selection.is_plain() && self.source != CONFORMS {
            return Ok(Held::NotApplicable);
        }
        match (self.check)(case, implementation) {
            Ok(()) => Ok(Held::Yes),
            Err(Unmet::NotApplicable) => Ok(Held::NotApplicable),
            Err(Unmet::Wrong(wrong)) => Err(wrong),
        }
    }
}

const CONFORMS: &str = "SPEC §5";

/// All of them. Only the first judges the answer to the case itself; the others relate answers to changed cases, which
/// certificates judge one at a time.
pub const INVARIANTS: &[Invariant] = &[
    Invariant { name: "answer conforms to its certificate and bound", source: CONFORMS, check: conforms },
    Invariant { name: "selecting H twice selects 2H", source: "SPEC §2.9, §2.10", check: selecting_twice },
    Invariant { name: "summed modes: equal heads select as one", source: "SPEC §2.7", check: equal_heads },
    Invariant { name: "causal equals A = −∞ after the query", source: "SPEC §2.8", check: causal },
    Invariant { name: "label order does not matter", source: "SPEC §2.6", check: label_order },
    Invariant { name: "batch entries permute the result", source: "SPEC §2", check: batch_order },
    Invariant { name: "KV-head groups permute the result", source: "SPEC §2.3", check: kv_head_order },
    Invariant { name: "raising H only adds keys", source: "SPEC §2.9", check: larger_heavy_size },
    Invariant { name: "oracle equals r = d, B = 16", source: "SPEC §2.6", check: equals_oracle },
    Invariant { name: "lower-scored keys change nothing", source: "SPEC §2.9", check: appended_keys },
    Invariant { name: "H = n equals dense attention", source: "SPEC §2.9, §2.11", check: equals_dense },
    Invariant { name: "doubling k keeps the selection", source: "SPEC §2.5, §2.6", check: scale_of_keys },
    Invariant {
        name: "entries of unequal lengths answer alone",
        source: "SPEC §2.13",
        check: unequal_lengths,
    },
];

fn all(wrong: Option<String>) -> Result<(), Unmet> {
    wrong.map_or(Ok(()), |wrong| Err(Unmet::Wrong(wrong)))
}

/// Judges the answer to a changed case, changed back, under the certificate of the original. Labels, scores and
/// log-sum-exp are those of the changed case.
fn must_conform(
    case: &Case,
    certificate: Certificate,
    answer: Answer,
    model: RoundingModel,
) -> Result<(), Unmet> {
    let answer = Ok(Answer { labels: None, scores: None, lse: None, ..answer });
    all(judge(&case.instance, &case.call, &answer, model, &Ok(certificate)).explanations().into_iter().next())
}

fn conforms(case: &Case, implementation: &mut Implementation) -> Result<(), Unmet> {
    let answer = (implementation.answer)(case).ok_or(Unmet::NotApplicable)?;
    let certificate = Certificate::derive(&case.instance, &case.call, implementation.model);
    let verdict = judge(&case.instance, &case.call, &answer, implementation.model, &certificate);
    all(verdict.explanations().into_iter().next())
}

/// With its own answer as P, an implementation selects the next H keys. This holds for open keys too: whichever were
/// selected first, the others are left.
fn selecting_twice(case: &Case, implementation: &mut Implementation) -> Result<(), Unmet> {
    let heavy_size = case.instance.selection.heavy_size.resolve(case.call.inputs.dims().keys);
    let mut once = case.clone();
    once.instance.selection.dense_fallback = false;
    once.instance.selection.heavy_size = HeavySize::count(heavy_size)?;
    let mut double = once.clone();
    double.instance.selection.heavy_size = HeavySize::count(2 * heavy_size)?;
    let certificate = implementation.certificate(&double)?;
    let first = implementation.ask(&once)?;
    let mut again = once;
    again.call.previous = Some(first.mask);
    let second = implementation.ask(&again)?;
    must_conform(&double, certificate, second, implementation.model)
}

/// Where all heads are equal, their sum ranks keys as each of them does. `summed-labels` multiplies q·k by h² and adds A once:
/// with A present it ranks differently.
fn equal_heads(case: &Case, implementation: &mut Implementation) -> Result<(), Unmet> {
    let additive = case.call.inputs.parts().attention_mask.is_some();
    match case.instance.selection.heads {
        HeadMode::SummedLabels if additive => return Err(Unmet::NotApplicable),
        HeadMode::SummedScores | HeadMode::SummedLabels => {}
        _ => return Err(Unmet::NotApplicable),
    }
    let dims = case.call.inputs.dims();
    let first = |tensor: &Array4<f32>| tensor.select(Axis(1), &vec![0; tensor.shape()[1]]);
    let mut equal = with_inputs(case, |parts| InputParts {
        q: first(&parts.q),
        k: first(&parts.k),
        attention_mask: parts.attention_mask.as_ref().map(first),
        ..parts.clone()
    })?;
    let rows = case.channels()?.rows();
    equal = equal.with_channels(ChannelOrder::new(vec![rows[0].clone(); rows.len()])?);
    if let Some(previous) = &case.call.previous {
        equal.call.previous = Some(Mask::from_weights(first(previous.weights()), &dims)?);
    }
    let mut alone = equal.clone();
    alone.instance.selection.heads = HeadMode::PerHead;
    let (alone, summed) = (implementation.certificate(&alone)?, implementation.certificate(&equal)?);
    let (Some(alone), Some(summed)) = (alone.rows, summed.rows) else {
        return Err(Unmet::NotApplicable);
    };
    let answer = implementation.ask(&equal)?;
    let wrong = dims.rows().enumerate().find_map(|(index, row @ (b, head, i))| {
        let differs = |&key: &usize| {
            let expected = match alone[index].classes[key] {
                Class::Before | Class::In => true,
                Class::Excluded | Class::Out => false,
                Class::Open => return false,
            };
            summed[index].classes[key] != Class::Open && answer.mask.attends(b, head, i, key) != expected
        };
        let key = (0..dims.keys).find(differs)?;
        Some(format!("row {row:?}: key {key} is selected differently than by one of the equal heads alone"))
    });
    all(wrong)
}

fn causal(case: &Case, implementation: &mut Implementation) -> Result<(), Unmet> {
    let dims = case.call.inputs.dims();
    if !case.call.inputs.parts().causal || dims.queries == 1 {
        return Err(Unmet::NotApplicable);
    }
    let certificate = implementation.certificate(case)?;
    let heads = if case.call.inputs.attention_mask_differs_between_heads() { dims.heads } else { 1 };
    let shape = (dims.batch, heads, dims.queries, dims.keys);
    let additive = |(b, head, i, key)| case.call.inputs.additive(b, head, i).at(key);
    let changed = with_inputs(case, |parts| InputParts {
        causal: false,
        attention_mask: Some(Array4::from_shape_fn(shape, additive)),
        ..parts.clone()
    })?;
    let answer = implementation.ask(&changed)?;
    must_conform(case, certificate, answer, implementation.model)
}

fn label_order(case: &Case, implementation: &mut Implementation) -> Result<(), Unmet> {
    let certificate = implementation.certificate(case)?;
    let label_channels =
        case.instance.selection.group_factor.label_channels(case.call.inputs.dims().head_dim)?;
    let reversed = case.channels()?.rows().iter().map(|row| {
        let mut row = row.clone();
        row[..label_channels].reverse();
        row
    });
    let changed = case.with_channels(ChannelOrder::new(reversed.collect())?);
    let answer = implementation.ask(&changed)?;
    must_conform(case, certificate, answer, implementation.model)
}

fn with_inputs(case: &Case, change: impl FnOnce(&InputParts) -> InputParts) -> Result<Case, Error> {
    let inputs = Inputs::new(change(case.call.inputs.parts()))?;
    Ok(case.with_inputs(inputs))
}

/// The entries of one axis in reverse order, in groups.
fn reversed(tensor: &Array4<f32>, axis: usize, group: usize) -> Array4<f32> {
    let size = tensor.shape()[axis];
    if size < group {
        return tensor.clone();
    }
    let order: Vec<usize> = (0..size).map(|i| (size / group - 1 - i / group) * group + i % group).collect();
    tensor.select(Axis(axis), &order)
}

fn batch_order(case: &Case, implementation: &mut Implementation) -> Result<(), Unmet> {
    permuted(case, implementation, 0, 1)
}

fn kv_head_order(case: &Case, implementation: &mut Implementation) -> Result<(), Unmet> {
    permuted(case, implementation, 1, case.call.inputs.dims().group_size())
}

/// Reverses batch entries (axis 0) or KV-head groups (axis 1) of everything, asks, and reverses the answer.
fn permuted(
    case: &Case,
    implementation: &mut Implementation,
    axis: usize,
    group: usize,
) -> Result<(), Unmet> {
    let dims = case.call.inputs.dims();
    let groups = if axis == 0 { dims.batch } else { dims.kv_heads };
    if groups == 1 {
        return Err(Unmet::NotApplicable);
    }
    let certificate = implementation.certificate(case)?;
    let mut changed = with_inputs(case, |parts| InputParts {
        q: reversed(&parts.q, axis, group),
        k: reversed(&parts.k, axis, 1),
        v: reversed(&parts.v, axis, 1),
        attention_mask: parts.attention_mask.as_ref().map(|mask| reversed(mask, axis, group)),
        ..parts.clone()
    })?;
    if axis == 1 {
        let rows = case.channels()?.rows();
        let rows: Vec<Vec<usize>> = match rows.len() {
            len if len == dims.heads => rows.chunks(group).rev().flat_map(<[Vec<usize>]>::to_vec).collect(),
            _ => rows.iter().rev().cloned().collect(),
        };
        changed = changed.with_channels(ChannelOrder::new(rows)?);
    }
    let reversed_mask = |mask: &Mask| Mask::from_weights(reversed(mask.weights(), axis, group), &dims);
    changed.call.previous = case.call.previous.as_ref().map(reversed_mask).transpose()?;
    let answer = implementation.ask(&changed)?;
    let mask = reversed_mask(&answer.mask)?;
    let output = answer.output.map(|output| reversed(&output, axis, group));
    must_conform(case, certificate, Answer::new(mask, output), implementation.model)
}

fn larger_heavy_size(case: &Case, implementation: &mut Implementation) -> Result<(), Unmet> {
    let certificate = implementation.certificate(case)?;
    let answer = implementation.ask(case)?;
    let dims = case.call.inputs.dims();
    let mut changed = case.clone();
    changed.instance.selection.heavy_size =
        HeavySize::count(case.instance.selection.heavy_size.resolve(dims.keys) + 1)?;
    let larger = implementation.ask(&changed)?;
    // A key that is open may give way to another of equal rank.
    let open = |row: usize, key: usize| {
        certificate.rows.as_ref().is_some_and(|rows| rows[row].classes[key] == Class::Open)
    };
    let wrong = dims.rows().enumerate().find_map(|(index, row @ (b, head, i))| {
        let lost = |&key: &usize| !larger.mask.attends(b, head, i, key) && !open(index, key);
        let key = answer.mask.row(row).map(|(key, _)| key).find(lost)?;
        Some(format!("row {row:?}: key {key} is attended with H, not with H + 1"))
    });
    all(wrong)
}

/// The oracle ranks by q·k and knows nothing of labels. The certificate says only which keys are open.
fn equals_oracle(case: &Case, implementation: &mut Implementation) -> Result<(), Unmet> {
    let dims = case.call.inputs.dims();
    let mut changed = with_inputs(case, |parts| InputParts { scaling: None, ..parts.clone() })?;
    changed.instance.selection.heads = HeadMode::PerHead;
    changed.instance.selection.dense_fallback = false;
    changed.instance.selection.label_bits = LabelBits::UNQUANTISED;
    changed.instance.selection.group_factor = GroupFactor::new(1)?;
    changed = changed
        .with_channels(ChannelOrder::new(vec![(0..dims.head_dim).collect(); case.channels()?.rows().len()])?);
    let certificate = implementation.certificate(&changed)?;
    let answer = implementation.ask(&changed)?;
    let oracle = Oracle { heavy_size: case.instance.selection.heavy_size };
    let mask = oracle.add_mask(&changed.call.inputs, 0, &certificate.before)?;
    let open = |row: usize, key: usize| {
        certificate.rows.as_ref().is_some_and(|rows| rows[row].classes[key] == Class::Open)
    };
    let wrong = dims.rows().enumerate().find_map(|(index, row @ (b, head, i))| {
        let differs = |&key: &usize| {
            answer.mask.attends(b, head, i, key) != mask.attends(b, head, i, key) && !open(index, key)
        };
        let key = (0..dims.keys).find(differs)?;
        Some(format!("row {row:?}: key {key} is selected differently than by the oracle"))
    });
    all(wrong)
}

/// Appends keys whose additive mask is so low that they score below all others. Rows with fewer candidates than H take
/// them all the same, and huge scores may reach below them: such rows say nothing.
fn appended_keys(case: &Case, implementation: &mut Implementation) -> Result<(), Unmet> {
    const APPENDED: usize = 3;
    let dims = case.call.inputs.dims();
    let (b, h, m, n) = dims.mask_shape();
    // Added to a score of less than half the type's range it stays in that range, summed over the heads too. Whether it is
    // low enough the certificate decides.
    let low = (-case.call.inputs.storage().largest() / (2 * h) as f64) as f32;
    // What depends on the number of keys by itself would change too.
    let mut base = with_inputs(case, |parts| InputParts { causal: false, ..parts.clone() })?;
    base.instance.selection.dense_fallback = false;
    base.instance.earlier_maskers.clear();
    base.instance.selection.heavy_size = HeavySize::count(case.instance.selection.heavy_size.resolve(n))?;
    base.call.previous = None;
    let certificate = implementation.certificate(&base)?;
    let more = |tensor: &Array4<f32>| {
        let tail = tensor.slice(ndarray::s![.., .., ..1, ..]);
        concatenate(Axis(2), &[tensor.view(), tail, tail, tail])
            .map_err(|error| Unmet::Wrong(error.to_string()))
    };
    let (k, v) = (more(&base.call.inputs.parts().k)?, more(&base.call.inputs.parts().v)?);
    let heads = if base.call.inputs.attention_mask_differs_between_heads() { h } else { 1 };
    let changed = with_inputs(&base, |parts| InputParts {
        k,
        v,
        attention_mask: Some(Array4::from_shape_fn((b, heads, m, n + APPENDED), |(b, head, i, key)| {
            if key < n { base.call.inputs.additive(b, head, i).at(key) } else { low }
        })),
        ..parts.clone()
    })?;
    let changed_certificate = implementation.certificate(&changed)?;
    let (Some(rows), Some(changed_rows)) = (&certificate.rows, &changed_certificate.rows) else {
        return Err(Unmet::NotApplicable);
    };
    let answer = implementation.ask(&base)?;
    let larger = implementation.ask(&changed)?;
    let mut compared = 0;
    for ((row @ (b, head, i), before), after) in dims.rows().zip(rows).zip(changed_rows) {
        if after.classes[n..].iter().any(|&class| class != Class::Out) {
            continue;
        }
        compared += 1;
        let differs = |&key: &usize| {
            let moved = answer.mask.attends(b, head, i, key) != larger.mask.attends(b, head, i, key);
            moved && before.classes[key] != Class::Open
        };
        if let Some(key) = (0..n).find(differs) {
            return all(Some(format!(
                "row {row:?}: key {key} is selected differently once lower-scored keys follow"
            )));
        }
    }
    if compared > 0 { Ok(()) } else { Err(Unmet::NotApplicable) }
}

/// What A excludes weighs nothing in dense attention, so that a mask without it gives the same output: the output is judged
/// with a full mask, not with the implementation's own. What A excludes in one of the heads that share a selection is no
/// candidate in the others either, where it weighs something.
fn equals_dense(case: &Case, implementation: &mut Implementation) -> Result<(), Unmet> {
    let dims = case.call.inputs.dims();
    let shared = case.instance.selection.heads.sharing(&dims) > 1;
    if shared && case.call.inputs.attention_mask_differs_between_heads() {
        return Err(Unmet::NotApplicable);
    }
    let mut changed = case.clone();
    changed.instance.selection.heavy_size = HeavySize::count(dims.keys)?;
    changed.call.previous = None;
    let certificate = implementation.certificate(&changed)?;
    // A score that may overflow leaves open whether its key is a candidate.
    let uncertain = |class: &Class| matches!(class, Class::Open | Class::Out);
    if certificate.rows.iter().flatten().any(|row| row.classes.iter().any(uncertain)) {
        return Err(Unmet::NotApplicable);
    }
    let output = implementation.ask(&changed)?.output.ok_or(Unmet::NotApplicable)?;
    let verdict = judge_output(&changed.call.inputs, &Mask::full(&dims), &output, implementation.model);
    all(verdict.divergences.first().map(ToString::to_string))
}

/// A power of two scales ranges, codes' steps and scores exactly, so that the selection is the same; with A present the
/// scores shift against it and nothing can be said.
fn scale_of_keys(case: &Case, implementation: &mut Implementation) -> Result<(), Unmet> {
    // |q·k| is at most d · max |q| · max |k|, and doubles. Labels may leave the range of their row by rounding, by a factor
    // below √2 each.
    const DOUBLED: f64 = 2.0;
    const ROUNDED: f64 = 2.0;
    let largest =
        |tensor: &Array4<f32>| tensor.iter().fold(0.0f64, |largest, x| largest.max(f64::from(x.abs())));
    let (parts, dims) = (case.call.inputs.parts(), case.call.inputs.dims());
    let scores = dims.head_dim as f64 * largest(&parts.q) * largest(&parts.k) * dims.heads as f64;
    if parts.attention_mask.is_some() || DOUBLED * ROUNDED * scores > parts.storage.largest() {
        return Err(Unmet::NotApplicable);
    }
    let certificate = implementation.certificate(case)?;
    // Doubling may leave the storage type, and so may the labels.
    let doubled = with_inputs(case, |parts| InputParts { k: &parts.k * 2.0, ..parts.clone() })
        .map_err(|_| Unmet::NotApplicable)?;
    implementation.certificate(&doubled)?;
    let answer = implementation.ask(&doubled)?;
    must_conform(case, certificate, Answer { output: None, ..answer }, implementation.model)
}

/// Entries with half of the keys, none, or all but one, by turns: each is judged as it would be alone.
fn unequal_lengths(case: &Case, implementation: &mut Implementation) -> Result<(), Unmet> {
    let dims = case.call.inputs.dims();
    let length = |b: usize| [dims.keys.div_ceil(2), 0, dims.keys - 1][(b + dims.keys) % 3];
    let padding = if dims.keys.is_multiple_of(2) { Padding::Nan } else { Padding::Large };
    let mut ragged = Case { recipe: None, ..case.clone() };
    ragged.call = case.call.with_lengths(Lengths::new((0..dims.batch).map(length).collect(), padding))?;
    let certificate = implementation.certificate(&ragged)?;
    let answer = Ok(implementation.ask(&ragged)?);
    let verdict = judge(&ragged.instance, &ragged.call, &answer, implementation.model, &Ok(certificate));
    all(verdict.explanations().into_iter().next())
}

//! Properties that every implementation must have, whatever it computes them with. Each takes a random case, asks the
//! implementation one or two questions, and says what is wrong with the answers. Where rounding may decide between
//! near-ties, the certificate of the case decides what counts as different.

use ndarray::{Array4, Axis, concatenate};

use super::certificate::{Certificate, Class};
use super::judge::{judge, judge_mask};
use super::output::judge_output;
use crate::algorithm::attention::dense_attention;
use crate::algorithm::maskers::Oracle;
use crate::algorithm::{
    ChannelOrder, Error, GroupFactor, HeadMode, HeavySize, InputParts, Inputs, LabelBits, Mask, Masker,
};
use crate::cases::{Answer, Case, NoAnswer, RoundingModel};

/// An implementation: how it rounds, and what it answers.
pub struct Implementation<'a> {
    /// SPEC §5.
    pub model: RoundingModel,
    /// Mask and output of one case.
    pub answer: &'a mut dyn FnMut(&Case) -> Result<Answer, NoAnswer>,
}

/// How one case went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The property held.
    Held,
    /// The case does not say anything about this property, for instance because it must be refused.
    NotApplicable,
}

/// Checks one property on one case; `Err` says what is wrong.
pub type Check = fn(&Case, &mut Implementation) -> Result<Outcome, String>;

/// A property of SPEC §2.
#[derive(Clone, Copy)]
pub struct Invariant {
    /// In a few words.
    pub name: &'static str,
    /// Where the SPEC says so.
    pub source: &'static str,
    /// The check.
    pub check: Check,
}

/// All of them.
pub const INVARIANTS: &[Invariant] = &[
    Invariant { name: "answer conforms to its certificate and bound", source: "SPEC §5", check: conforms },
    Invariant { name: "row size is min(H, candidates)", source: "SPEC §2.1, §2.9", check: row_size },
    Invariant { name: "summed modes: every head selects alike", source: "SPEC §2.7", check: shared_rows },
    Invariant { name: "maskers only add", source: "SPEC §2.10", check: only_adds },
    Invariant { name: "no key after a causal query", source: "SPEC §2.8", check: causal },
    Invariant { name: "label order does not matter", source: "SPEC §2.6", check: label_order },
    Invariant { name: "batch entries permute the result", source: "SPEC §2", check: batch_order },
    Invariant { name: "KV-head groups permute the result", source: "SPEC §2.3", check: kv_head_order },
    Invariant { name: "raising H only adds keys", source: "SPEC §2.9", check: larger_heavy_size },
    Invariant { name: "oracle equals r = d, B = 16", source: "SPEC §2.6", check: equals_oracle },
    Invariant { name: "lower-scored keys change nothing", source: "SPEC §2.9", check: appended_keys },
    Invariant { name: "full mask equals dense attention", source: "SPEC §2.11", check: equals_dense },
    Invariant { name: "doubling k keeps the selection", source: "SPEC §2.5, §2.6", check: scale_of_keys },
];

/// Answer and certificate of a case, or `None` where the case must be refused.
fn answered(
    case: &Case,
    implementation: &mut Implementation,
) -> Result<Option<(Answer, Certificate)>, String> {
    match Certificate::derive(&case.instance, &case.call, implementation.model) {
        Err(_) => Ok(None),
        Ok(certificate) => match (implementation.answer)(case) {
            Ok(answer) => Ok(Some((answer, certificate))),
            Err(error) => Err(format!("refused ({error}), expected an answer")),
        },
    }
}

fn all(wrong: Option<String>) -> Result<Outcome, String> {
    wrong.map_or(Ok(Outcome::Held), Err)
}

/// Judges a mask that was obtained from a changed case under the certificate of the original.
fn must_conform(
    case: &Case,
    certificate: &Certificate,
    mask: &Mask,
    model: RoundingModel,
) -> Result<Outcome, String> {
    let verdict = judge_mask(&case.instance, &case.call, certificate, mask, model);
    all(verdict.divergences.first().map(ToString::to_string))
}

fn conforms(case: &Case, implementation: &mut Implementation) -> Result<Outcome, String> {
    let certificate = Certificate::derive(&case.instance, &case.call, implementation.model);
    let answer = (implementation.answer)(case);
    let verdict = judge(&case.instance, &case.call, &answer, implementation.model, &certificate);
    all(if verdict.conforms() { None } else { verdict.explanations().into_iter().next() })
}

fn row_size(case: &Case, implementation: &mut Implementation) -> Result<Outcome, String> {
    let Some((answer, certificate)) = answered(case, implementation)? else {
        return Ok(Outcome::NotApplicable);
    };
    let Some(rows) = &certificate.rows else {
        return all((!answer.mask.is_full()).then(|| "the mask is not full".into()));
    };
    let heavy_size = case.instance.selection.heavy_size.resolve(case.call.inputs.dims().keys);
    let wrong = case.call.inputs.dims().rows().zip(rows).find_map(|(row, certificate)| {
        let candidates = certificate
            .classes
            .iter()
            .filter(|class| !matches!(class, Class::Before | Class::Excluded))
            .count();
        let (attended, before) = (answer.mask.row(row).count(), certificate.before());
        let expected = before + candidates.min(heavy_size);
        // Scores that may overflow to −∞ make candidates uncertain.
        let least = before + certificate.fewest;
        (!(least..=expected).contains(&attended))
            .then(|| format!("row {row:?}: {attended} keys attended, expected {expected}"))
    });
    all(wrong)
}

fn shared_rows(case: &Case, implementation: &mut Implementation) -> Result<Outcome, String> {
    if case.instance.selection.heads == HeadMode::PerHead {
        return Ok(Outcome::NotApplicable);
    }
    let Some((answer, certificate)) = answered(case, implementation)? else {
        return Ok(Outcome::NotApplicable);
    };
    if certificate.rows.is_none() {
        return Ok(Outcome::NotApplicable);
    }
    let added = |(b, head, i), key| {
        answer.mask.attends(b, head, i, key) && !certificate.before.attends(b, head, i, key)
    };
    let dims = case.call.inputs.dims();
    let wrong = dims.rows().find_map(|row @ (b, _, i)| {
        let key = (0..dims.keys).find(|&key| added(row, key) != added((b, 0, i), key))?;
        Some(format!("row {row:?}: key {key} is selected differently than in head 0"))
    });
    all(wrong)
}

fn only_adds(case: &Case, implementation: &mut Implementation) -> Result<Outcome, String> {
    let Some((answer, certificate)) = answered(case, implementation)? else {
        return Ok(Outcome::NotApplicable);
    };
    let lost = case.call.inputs.dims().rows().find_map(|row @ (b, head, i)| {
        let (key, weight) =
            certificate.before.row(row).find(|&(key, _)| !answer.mask.attends(b, head, i, key))?;
        Some(format!("row {row:?}: key {key} was attended with weight {weight} and is no longer"))
    });
    all(lost)
}

fn causal(case: &Case, implementation: &mut Implementation) -> Result<Outcome, String> {
    if !case.call.inputs.parts().causal {
        return Ok(Outcome::NotApplicable);
    }
    let Some((answer, certificate)) = answered(case, implementation)? else {
        return Ok(Outcome::NotApplicable);
    };
    if certificate.rows.is_none() {
        return Ok(Outcome::NotApplicable);
    }
    let dims = case.call.inputs.dims();
    let wrong = dims.rows().find_map(|(b, head, i)| {
        let added = |&key: &usize| {
            answer.mask.attends(b, head, i, key) && !certificate.before.attends(b, head, i, key)
        };
        let key = (dims.position(i) + 1..dims.keys).find(added)?;
        Some(format!("row {:?}: key {key} comes after position {}", (b, head, i), dims.position(i)))
    });
    all(wrong)
}

fn label_order(case: &Case, implementation: &mut Implementation) -> Result<Outcome, String> {
    let dims = case.call.inputs.dims();
    let Ok(label_channels) = case.instance.selection.group_factor.label_channels(dims.head_dim) else {
        return Ok(Outcome::NotApplicable);
    };
    let Ok(channels) = case.channels() else { return Ok(Outcome::NotApplicable) };
    let reversed = channels.rows().iter().map(|row| {
        let mut row = row.clone();
        row[..label_channels].reverse();
        row
    });
    let order = ChannelOrder::new(reversed.collect()).map_err(|error| error.to_string())?;
    let changed = case.with_channels(order);
    let Ok(certificate) = Certificate::derive(&case.instance, &case.call, implementation.model) else {
        return Ok(Outcome::NotApplicable);
    };
    let answer = (implementation.answer)(&changed).map_err(|error| error.to_string())?;
    must_conform(case, &certificate, &answer.mask, implementation.model)
}

/// The case with the entries of one axis of its tensors reversed, in groups.
fn with_inputs(case: &Case, change: impl Fn(&InputParts) -> InputParts) -> Result<Case, String> {
    let inputs = Inputs::new(change(case.call.inputs.parts())).map_err(|error| error.to_string())?;
    Ok(case.with_inputs(inputs))
}

fn reversed(tensor: &Array4<f32>, axis: usize, group: usize) -> Array4<f32> {
    let size = tensor.shape()[axis];
    if size < group {
        return tensor.clone();
    }
    let order: Vec<usize> = (0..size).map(|i| (size / group - 1 - i / group) * group + i % group).collect();
    tensor.select(Axis(axis), &order)
}

fn reversed_mask(mask: &Mask, axis: usize, group: usize, case: &Case) -> Result<Mask, String> {
    Mask::from_weights(reversed(mask.weights(), axis, group), &case.call.inputs.dims())
        .map_err(|error| error.to_string())
}

fn batch_order(case: &Case, implementation: &mut Implementation) -> Result<Outcome, String> {
    permuted(case, implementation, 0, 1)
}

fn kv_head_order(case: &Case, implementation: &mut Implementation) -> Result<Outcome, String> {
    permuted(case, implementation, 1, case.call.inputs.dims().group_size())
}

/// Reverses batch entries (axis 0) or KV-head groups (axis 1) of everything, asks, and reverses the answer.
fn permuted(
    case: &Case,
    implementation: &mut Implementation,
    axis: usize,
    group: usize,
) -> Result<Outcome, String> {
    let dims = case.call.inputs.dims();
    let groups = if axis == 0 { dims.batch } else { dims.kv_heads };
    let Ok(certificate) = Certificate::derive(&case.instance, &case.call, implementation.model) else {
        return Ok(Outcome::NotApplicable);
    };
    if groups == 1 {
        return Ok(Outcome::NotApplicable);
    }
    let mut changed = with_inputs(case, |parts| InputParts {
        q: reversed(&parts.q, axis, group),
        k: reversed(&parts.k, axis, 1),
        v: reversed(&parts.v, axis, 1),
        attention_mask: parts.attention_mask.as_ref().map(|mask| reversed(mask, axis, group)),
        ..parts.clone()
    })?;
    if axis == 1 {
        let rows = case.channels().map_err(|error| error.to_string())?.rows();
        let rows: Vec<Vec<usize>> = match rows.len() {
            1 => rows.to_vec(),
            len if len == dims.heads => rows.chunks(group).rev().flat_map(<[Vec<usize>]>::to_vec).collect(),
            _ => rows.iter().rev().cloned().collect(),
        };
        changed = changed.with_channels(ChannelOrder::new(rows).map_err(|error| error.to_string())?);
    }
    if let Some(previous) = &case.call.previous {
        changed.call.previous = Some(reversed_mask(previous, axis, group, case)?);
    }
    let answer = (implementation.answer)(&changed).map_err(|error| error.to_string())?;
    let mask = reversed_mask(&answer.mask, axis, group, case)?;
    must_conform(case, &certificate, &mask, implementation.model)
}

fn larger_heavy_size(case: &Case, implementation: &mut Implementation) -> Result<Outcome, String> {
    let Some((answer, certificate)) = answered(case, implementation)? else {
        return Ok(Outcome::NotApplicable);
    };
    let keys = case.call.inputs.dims().keys;
    let mut changed = case.clone();
    changed.instance.selection.heavy_size =
        HeavySize::count(case.instance.selection.heavy_size.resolve(keys) + 1)
            .map_err(|error| error.to_string())?;
    let larger = (implementation.answer)(&changed).map_err(|error| error.to_string())?;
    // A key that is open may give way to another of equal rank.
    let open = |row: usize, key: usize| {
        certificate.rows.as_ref().is_some_and(|rows| rows[row].classes[key] == Class::Open)
    };
    let wrong = case.call.inputs.dims().rows().enumerate().find_map(|(index, row @ (b, head, i))| {
        let lost = |&key: &usize| !larger.mask.attends(b, head, i, key) && !open(index, key);
        let key = answer.mask.row(row).map(|(key, _)| key).find(lost)?;
        Some(format!("row {row:?}: key {key} is attended with H, not with H + 1"))
    });
    all(wrong)
}

fn equals_oracle(case: &Case, implementation: &mut Implementation) -> Result<Outcome, String> {
    let dims = case.call.inputs.dims();
    let wrong = |error: Error| error.to_string();
    let mut changed = with_inputs(case, |parts| InputParts { scaling: None, ..parts.clone() })?;
    changed.instance.selection.heads = HeadMode::PerHead;
    changed.instance.selection.dense_fallback = false;
    changed.instance.selection.label_bits = LabelBits::UNQUANTISED;
    changed.instance.selection.group_factor = GroupFactor::new(1).map_err(wrong)?;
    let order = ChannelOrder::new(vec![(0..dims.head_dim).collect()]).map_err(wrong)?;
    let changed = changed.with_channels(order);
    let Some((_, certificate)) = answered(&changed, implementation)? else {
        return Ok(Outcome::NotApplicable);
    };
    let oracle = Oracle { heavy_size: case.instance.selection.heavy_size };
    let mask = oracle.add_mask(&changed.call.inputs, 0, &certificate.before).map_err(wrong)?;
    must_conform(&changed, &certificate, &mask, implementation.model)?;
    conforms(&changed, implementation)
}

/// Appends keys whose additive mask is so low that they score below all others. Rows with fewer candidates than H take
/// them all the same, and huge scores may reach below them: such rows say nothing.
fn appended_keys(case: &Case, implementation: &mut Implementation) -> Result<Outcome, String> {
    const APPENDED: usize = 3;
    let dims = case.call.inputs.dims();
    let (b, h, m, n) = dims.mask_shape();
    // What depends on the number of keys by itself would change too.
    let mut base = with_inputs(case, |parts| InputParts { causal: false, ..parts.clone() })?;
    base.instance.selection.dense_fallback = false;
    base.instance.earlier_maskers.clear();
    base.instance.selection.heavy_size =
        HeavySize::count(case.instance.selection.heavy_size.resolve(n)).map_err(|error| error.to_string())?;
    base.call.previous = None;
    let Some((answer, certificate)) = answered(&base, implementation)? else {
        return Ok(Outcome::NotApplicable);
    };
    let more = |tensor: &Array4<f32>| {
        let tail = tensor.slice(ndarray::s![.., .., ..1, ..]);
        let parts = [tensor.view(), tail, tail, tail];
        concatenate(Axis(2), &parts).map_err(|error| error.to_string())
    };
    let (k, v) = (more(&base.call.inputs.parts().k)?, more(&base.call.inputs.parts().v)?);
    let heads = if base.call.inputs.attention_mask_differs_between_heads() { h } else { 1 };
    let changed = with_inputs(&base, |parts| InputParts {
        k: k.clone(),
        v: v.clone(),
        attention_mask: Some(Array4::from_shape_fn((b, heads, m, n + APPENDED), |(b, head, i, key)| {
            if key < n { base.call.inputs.additive(b, head, i).at(key) } else { -6e4 }
        })),
        ..parts.clone()
    })?;
    let Some((larger, changed_certificate)) = answered(&changed, implementation)? else {
        return Ok(Outcome::NotApplicable);
    };
    let (Some(rows), Some(changed_rows)) = (&certificate.rows, &changed_certificate.rows) else {
        return Ok(Outcome::NotApplicable);
    };
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
            return Err(format!(
                "row {row:?}: key {key} is selected differently once lower-scored keys follow"
            ));
        }
    }
    Ok(if compared > 0 { Outcome::Held } else { Outcome::NotApplicable })
}

fn equals_dense(case: &Case, implementation: &mut Implementation) -> Result<Outcome, String> {
    let mut changed = case.clone();
    let full = Mask::full(&case.call.inputs.dims());
    changed.call.previous = Some(full.clone());
    let Some((answer, _)) = answered(&changed, implementation)? else {
        return Ok(Outcome::NotApplicable);
    };
    let Some(output) = &answer.output else {
        return Ok(Outcome::NotApplicable);
    };
    if answer.mask != full {
        return Err("a full mask did not stay full".into());
    }
    let dense = dense_attention(&case.call.inputs);
    let reference = judge_output(&changed.call.inputs, &full, &dense, RoundingModel::REFERENCE);
    let found = judge_output(&changed.call.inputs, &full, output, implementation.model);
    all(reference.divergences.iter().chain(&found.divergences).next().map(ToString::to_string))
}

/// A power of two scales ranges, codes' steps and scores exactly, so that the selection is the same; with A present the
/// scores shift against it and nothing can be said.
fn scale_of_keys(case: &Case, implementation: &mut Implementation) -> Result<Outcome, String> {
    // Scores near the end of a type's range may overflow when they double.
    let largest =
        |tensor: &Array4<f32>| tensor.iter().fold(0.0f64, |largest, x| largest.max(f64::from(x.abs())));
    let parts = case.call.inputs.parts();
    let scores = case.call.inputs.dims().head_dim as f64 * largest(&parts.q) * largest(&parts.k);
    if parts.attention_mask.is_some()
        || 2.0 * scores * case.call.inputs.dims().heads as f64 > parts.storage.largest()
    {
        return Ok(Outcome::NotApplicable);
    }
    let Ok(certificate) = Certificate::derive(&case.instance, &case.call, implementation.model) else {
        return Ok(Outcome::NotApplicable);
    };
    let doubled = with_inputs(case, |parts| InputParts { k: &parts.k * 2.0, ..parts.clone() });
    // Doubling may leave the storage type, and so may the labels.
    let Ok(doubled) = doubled else {
        return Ok(Outcome::NotApplicable);
    };
    if Certificate::derive(&doubled.instance, &doubled.call, implementation.model).is_err() {
        return Ok(Outcome::NotApplicable);
    }
    let answer = (implementation.answer)(&doubled).map_err(|error| error.to_string())?;
    must_conform(case, &certificate, &answer.mask, implementation.model)
}

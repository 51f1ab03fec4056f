//! Whether a behaviour reproduces an answer: the question of diagnosis. It is asked as strictly as the SPEC's own verdict
//! (SPEC §5): the same bounds, from the behaviour's scores; only keys that rounding decides are left open. Labels that a
//! subject returns are compared if the model says that they are exact.

use ndarray::Array4;

use crate::algorithm::attention::attention;
use crate::algorithm::{Mask, Row};
use crate::behaviours::answer::full_mask;
use crate::behaviours::attending::AttentionView;
use crate::behaviours::{Behaviour, Earlier, Outcome, Prediction, Ranked, predict};
use crate::cases::{Answer, Entry, LabelRounding, NoAnswer, Observation, RoundingModel};
use crate::verdicts::certificate::{Candidacy, Class, RowCertificate, ScoreBounds};
use crate::verdicts::changed::ChangedRows;
use crate::verdicts::labels::same_bits;
use crate::verdicts::lse::judge_lse;
use crate::verdicts::output::judge_output;
use crate::verdicts::ragged::beyond_is_empty;
use crate::verdicts::scores::allows;

/// Whether a behaviour reproduces every answer of an observation.
pub fn reproduces(behaviour: Behaviour, observation: &Observation, model: RoundingModel) -> bool {
    (0..observation.answers.len()).all(|index| reproduces_call(behaviour, observation, index, model))
}

/// Whether a behaviour reproduces one answer.
pub fn reproduces_call(
    behaviour: Behaviour,
    observation: &Observation,
    index: usize,
    model: RoundingModel,
) -> bool {
    let answer = &observation.answers[index];
    if let Some(entries) = observation.sequence.calls[index].entries() {
        return reproduces_entries(behaviour, observation, index, &entries, model);
    }
    match (predict(behaviour, &observation.sequence, index), answer) {
        // Any answer, or a loud refusal; a crash or silence is something else.
        (Outcome::Anything, answer) => !matches!(answer, Err(NoAnswer::Failed(_))),
        (Outcome::Broken, answer) => answer.is_err(),
        (Outcome::BrokenOr(_), Err(_)) => true,
        (Outcome::BrokenOr(prediction), Ok(answer)) => answered(&prediction, answer, model),
        (Outcome::Refused(_), Err(NoAnswer::Declined(_))) => true,
        (Outcome::Refused(errors), Err(NoAnswer::Refused(found))) => {
            errors.iter().any(|error| error.kind() == found.kind())
        }
        (Outcome::Answered(prediction), Ok(answer)) => answered(&prediction, answer, model),
        (Outcome::Refused(_) | Outcome::Answered(_), _) => false,
    }
}

/// A call of entries of unequal lengths is reproduced where each entry alone is, with the other calls as they were.
fn reproduces_entries(
    behaviour: Behaviour,
    observation: &Observation,
    index: usize,
    entries: &[Entry],
    model: RoundingModel,
) -> bool {
    let mut alone = observation.clone();
    let answer = &observation.answers[index];
    let fits = answer.as_ref().ok().is_none_or(|answer| {
        let call = &observation.sequence.calls[index];
        answer.fits(&call.inputs.dims()) && beyond_is_empty(call, entries, answer)
    });
    fits && entries.iter().all(|entry| {
        let Some(call) = &entry.call else { return true };
        alone.sequence.calls[index] = call.clone();
        alone.answers[index] = answer.as_ref().map(|answer| entry.answer(answer)).map_err(Clone::clone);
        reproduces_call(behaviour, &alone, index, model)
    })
}

fn answered(prediction: &Prediction, answer: &Answer, model: RoundingModel) -> bool {
    if !answer.fits(&call_dims(prediction)) {
        return false;
    }
    let mask = match &prediction.ranked {
        None => answer.mask == full_mask(prediction),
        Some(ranked) => {
            let rows = ChangedRows::within(prediction, ranked, model, []);
            rows_fit(prediction, ranked, &rows, &answer.mask)
        }
    };
    mask && labels_fit(prediction, answer, model)
        && scores_fit(prediction, answer, model)
        && attention_fits(prediction, answer, model)
}

/// Scores that are shown must be those that the behaviour ranks by; those of keys that are no candidates may be anything.
pub(super) fn scores_fit(prediction: &Prediction, answer: &Answer, model: RoundingModel) -> bool {
    let (Some(shown), Some(ranked)) = (&answer.scores, &prediction.ranked) else {
        return true;
    };
    let bounds = ScoreBounds::predicted(prediction, ranked, model);
    call_dims(prediction).rows().all(|row @ (b, head, i)| {
        bounds.row(row).iter().enumerate().all(|(key, candidacy)| match candidacy {
            Candidacy::Scored(expected) | Candidacy::Forced(expected) => {
                allows(*expected, shown[[b, head, i, key]])
            }
            Candidacy::Before | Candidacy::Excluded => true,
        })
    })
}

/// Sizes as the call has them, whatever the attention reads.
pub(super) fn call_dims(prediction: &Prediction) -> crate::algorithm::Dims {
    prediction.ranking.dims()
}

/// Whether a mask is one that a behaviour may select.
pub(super) fn rows_fit(
    prediction: &Prediction,
    ranked: &Ranked,
    rows: &ChangedRows<'_>,
    mask: &Mask,
) -> bool {
    let fits = |row| certificate_fits(prediction, &rows.certificate(row), mask, row);
    call_dims(prediction).rows().all(fits) && (rows.separate_heads() || heads_agree(prediction, ranked, mask))
}

/// Whether a row of a mask is as its certificate says: a selected key has weight 1, any other the weight that it had before.
fn certificate_fits(
    prediction: &Prediction,
    certificate: &RowCertificate,
    mask: &Mask,
    (b, head, i): Row,
) -> bool {
    let RowCertificate { classes, fewest, most } = certificate;
    let fills = prediction.behaviour.earlier == Earlier::FillsUp;
    // Keys that must have been selected, and keys that may have been.
    let (mut certain, mut possible) = (0, 0);
    for (key, class) in classes.iter().enumerate() {
        let found = mask.weight(b, head, i, key);
        let before = prediction.before.weight(b, head, i, key);
        let selected = match class {
            Class::In => (found == 1.0).then_some((true, true)),
            Class::Out => (found == before).then_some((false, false)),
            // A weight of 1 before says nothing of whether the key was selected again.
            Class::Open if found == before && before == 1.0 => Some((false, true)),
            Class::Open => (found == before || found == 1.0).then_some((found == 1.0, found == 1.0)),
            Class::Before | Class::Excluded if !fills => (found == before).then_some((false, false)),
            Class::Before | Class::Excluded => {
                (found == before || found == 1.0).then_some((found != before, true))
            }
        };
        let Some((must, may)) = selected else { return false };
        certain += usize::from(must);
        possible += usize::from(may);
    }
    if fills {
        let count = prediction.ranked.as_ref().map_or(0, |ranked| ranked.count);
        return certain <= count && possible >= count.min(classes.len());
    }
    certain <= *most && possible >= *fewest
}

/// Heads that share a selection must have selected the same keys.
fn heads_agree(prediction: &Prediction, ranked: &Ranked, mask: &Mask) -> bool {
    let dims = call_dims(prediction);
    dims.rows().all(|(b, head, i)| {
        let heads = ranked.sharing.heads(head, &dims);
        let fresh = |key: &usize| heads.iter().all(|&head| !prediction.before.attends(b, head, i, *key));
        heads[0] == head
            || (0..dims.keys)
                .filter(fresh)
                .all(|key| mask.attends(b, head, i, key) == mask.attends(b, heads[0], i, key))
    })
}

pub(super) fn labels_fit(prediction: &Prediction, answer: &Answer, model: RoundingModel) -> bool {
    let (Some(shown), Some(ranked)) = (&answer.labels, &prediction.ranked) else {
        return true;
    };
    if model.labels != LabelRounding::Exact {
        return true;
    }
    let heads = call_dims(prediction).heads;
    ranked.labels.iter().enumerate().all(|(index, labels)| {
        let at = ndarray::s![index / heads, index % heads, .., ..];
        same_bits(shown.q.slice(at), labels.q.view()) && same_bits(shown.k.slice(at), labels.k.view())
    })
}

/// Whether output and log-sum-exp are those of a behaviour's attention over the mask that was answered.
pub(super) fn attention_fits(prediction: &Prediction, answer: &Answer, model: RoundingModel) -> bool {
    if answer.output.is_none() && answer.lse.is_none() {
        return true;
    }
    AttentionView::new(prediction, &answer.mask).is_ok_and(|view| view_fits(&view, answer, model))
}

/// Whether output and log-sum-exp are those of some attention.
pub(super) fn view_fits(view: &AttentionView, answer: &Answer, model: RoundingModel) -> bool {
    let (inputs, mask) = (&view.inputs, &view.mask);
    let conforms = |output: &Array4<f32>| judge_output(inputs, mask, output, model).divergences.is_empty();
    let output_fits = |output| {
        let shown = shown(view, output);
        match view.written.filter(|written| *written < inputs.dims().value_dim) {
            None => shown.is_some_and(|output| conforms(&output)),
            Some(written) => {
                let computed = attention(inputs, mask).ok();
                shown.zip(computed).is_some_and(|(mut output, computed)| {
                    let rest = ndarray::s![.., .., .., written..];
                    // What conforms was written; zeros may have been there.
                    let is_written = computed.slice(rest).iter().any(|&x| x != 0.0) && conforms(&output);
                    output.slice_mut(rest).assign(&computed.slice(rest));
                    !is_written && conforms(&output)
                })
            }
        }
    };
    let lse_fits = |lse: &ndarray::Array3<f32>| {
        let dims = inputs.dims();
        let (inputs, mask) = view.lse_of.as_ref().map_or((inputs, mask), |(inputs, mask)| (inputs, mask));
        let natural = |lse: &f32| (f64::from(*lse) / view.lse_factor) as f32;
        lse.dim() == (dims.batch, dims.heads, dims.queries)
            && judge_lse(inputs, mask, &lse.map(natural), model).divergences.is_empty()
    };
    answer.output.as_ref().is_none_or(output_fits) && answer.lse.as_ref().is_none_or(lse_fits)
}

/// An output in the shape of the view's inputs; `None` where a row that must be NaN is not.
fn shown(view: &AttentionView, output: &Array4<f32>) -> Option<Array4<f32>> {
    if view.changes_rows() {
        let computed = attention(&view.inputs, &view.mask).ok()?;
        return view.shown(output, &computed);
    }
    let shape = view.inputs.dims().output_shape();
    output.to_shape(shape).ok().map(|output| output.to_owned())
}

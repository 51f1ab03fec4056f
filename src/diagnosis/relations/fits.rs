//! Whether a relation gives an answer: the selection as it should be for the changed question, and the attention, by the mask
//! that was answered, as it should be for its own. The bounds are those of the verdicts (SPEC §5).

use std::borrow::Cow;

use super::answers::Item;
use super::{Acts, How, Relation};
use crate::algorithm::Mask;
use crate::behaviours::answer::full_mask;
use crate::behaviours::attending::AttentionView;
use crate::behaviours::changes::{OutputChange, RowChange};
use crate::behaviours::{Behaviour, Outcome, Prediction, Ranked, predict};
use crate::cases::{Answer, NoAnswer, RoundingModel, Sequence};
use crate::diagnosis::reproduction::{attention_fits, labels_fit, rows_fit, scores_fit, view_fits};
use crate::verdicts::certificate::Class;
use crate::verdicts::changed::ChangedRows;

/// Whether the selection that was answered is that of a relation.
pub(super) fn selection_fits(relation: &Relation, item: &Item<'_>, model: RoundingModel) -> bool {
    selects(relation, item, model).unwrap_or(false)
}

/// The sequence as a relation asks it, by those of its changes that act there.
fn asked<'a>(relation: &Relation, item: &'a Item<'_>, acts: Acts) -> Cow<'a, Sequence> {
    let mut asked = Cow::Borrowed(&item.observation.sequence);
    for member in relation.members.iter().filter(|member| member.acts == acts || member.acts == Acts::Both) {
        for how in &member.how {
            if let How::Question(change) = how {
                change(asked.to_mut(), item.index, item.place.as_ref());
            }
        }
    }
    asked
}

fn selects(relation: &Relation, item: &Item<'_>, model: RoundingModel) -> Option<bool> {
    let Ok(answer) = &item.observation.answers[item.index] else { return Some(false) };
    let mut fits = None;
    let full = with_rows(relation, item, model, |prediction, ranked, rows| {
        fits = Some(
            labels_fit(prediction, answer, model)
                && scores_fit(prediction, answer, model)
                && rows_fit(prediction, ranked, rows, &answer.mask),
        );
    })?;
    fits.or_else(|| full.map(|full| answer.mask == full))
}

/// Hands over the rows of an item as a relation ranks them; where nothing is ranked there are none, and the mask is full, as
/// returned. `None` where it gives no answer.
fn with_rows(
    relation: &Relation,
    item: &Item<'_>,
    model: RoundingModel,
    take: impl FnOnce(&Prediction, &Ranked, &ChangedRows<'_>),
) -> Option<Option<Mask>> {
    let index = item.index;
    let asked = asked(relation, item, Acts::Selection);
    let sequence = asked.as_ref();
    let behaviour = relation.behaviour();
    let mut prediction = predicted(behaviour, sequence, index)?;
    let Some(mut ranked) = prediction.ranked.take() else {
        return Some(Some(full_mask(&prediction)));
    };
    for how in relation.hows() {
        if let How::Labels(change) = how {
            change.apply(&mut ranked.labels, behaviour, sequence, index)?;
            // Its labels are what they are: no rounding of codes is left to be allowed.
            ranked.bits = None;
        }
    }
    prediction.ranked = Some(ranked);
    let changes: Vec<RowChange> = relation.hows().filter_map(row_change).collect();
    if changes.iter().any(|change| matches!(change, RowChange::AdditiveOnce { .. })) {
        prediction.add_mask_after()?;
    }
    let ranked = prediction.ranked.as_ref()?;
    let rows = match item.exact {
        true => ChangedRows::exactly(&prediction, ranked, changes),
        false => ChangedRows::within(&prediction, ranked, model, changes),
    };
    take(&prediction, ranked, &rows);
    Some(None)
}

/// What an answer says for a relation that gives it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Support {
    /// Whether the relation says of some key whether it is selected.
    pub decided: bool,
    /// Whether of the keys that it leaves open the lowest are selected in each row.
    pub lowest: bool,
    /// The same, the highest.
    pub highest: bool,
}

/// How an answer that a relation gives supports it.
pub(super) fn support(relation: &Relation, item: &Item<'_>, model: RoundingModel) -> Support {
    let mut found = Support { decided: false, lowest: true, highest: true };
    let Ok(answer) = &item.observation.answers[item.index] else { return found };
    let given = with_rows(relation, item, model, |prediction, ranked, rows| {
        for row @ (b, head, i) in prediction.ranking.dims().rows() {
            let classes = rows.certificate(row).classes;
            // That a row with at most H candidates selects them all is right anyway.
            let candidates = |class: &&Class| matches!(class, Class::In | Class::Out | Class::Open);
            let chooses = classes.iter().filter(candidates).count() > ranked.count;
            found.decided |= classes.contains(&Class::Out) || (chooses && classes.contains(&Class::In));
            let open = classes.iter().enumerate().filter(|(_, class)| **class == Class::Open);
            let selected: Vec<bool> = open.map(|(key, _)| answer.mask.attends(b, head, i, key)).collect();
            found.lowest &= selected.is_sorted_by(|a, b| a >= b);
            found.highest &= selected.is_sorted();
        }
    });
    // A full mask is decided.
    found.decided |= matches!(given, Some(Some(_)));
    found
}

/// Whether the attention that was answered is that of a relation.
pub(super) fn attention_of_relation_fits(relation: &Relation, item: &Item<'_>, model: RoundingModel) -> bool {
    let Ok(answer) = &item.observation.answers[item.index] else { return false };
    let asked = asked(relation, item, Acts::Attention);
    let Some(prediction) = predicted(relation.behaviour(), &asked, item.index) else {
        return false;
    };
    let changes: Vec<OutputChange> = relation
        .members
        .iter()
        .filter(|member| member.acts != Acts::Selection)
        .flat_map(|member| &member.how)
        .filter_map(|how| match how {
            How::Output(change) => Some(*change),
            How::Labels(change) => change.as_output(),
            _ => None,
        })
        .collect();
    if changes.is_empty() {
        return attention_fits(&prediction, answer, model);
    }
    let view = AttentionView::new(&prediction, &answer.mask).ok();
    let changed = |view| changes.into_iter().try_fold(view, |view, change| change.apply(view, &prediction));
    view.and_then(changed).is_some_and(|view| view_fits(&view, answer, model))
}

/// What a behaviour answers, where it answers.
pub(super) fn predicted(behaviour: Behaviour, sequence: &Sequence, index: usize) -> Option<Prediction> {
    match predict(behaviour, sequence, index) {
        Outcome::Answered(prediction) | Outcome::BrokenOr(prediction) => Some(*prediction),
        _ => None,
    }
}

/// Whether a call that was not answered may have been refused.
pub(super) fn is_refused(answer: &Result<Answer, NoAnswer>) -> bool {
    matches!(answer, Err(NoAnswer::Refused(_) | NoAnswer::Declined(_)))
}

fn row_change(how: &How) -> Option<RowChange> {
    match how {
        How::Row(change) => Some(*change),
        _ => None,
    }
}

//! Whether a relation gives an answer: the selection as it should be for the changed question, and the attention, by the mask
//! that was answered, as it should be for its own. The bounds are those of the verdicts (SPEC §5).

use std::sync::Arc;

use super::rows::{Place, RowChange};
use super::{Acts, How, Relation};
use crate::algorithm::{InputParts, Inputs, Mask, Row};
use crate::behaviours::answer::full_mask;
use crate::behaviours::heads::Sharing;
use crate::behaviours::{Behaviour, Earlier, Outcome, Prediction, Ranked, predict};
use crate::cases::{Answer, NoAnswer, Observation, RoundingModel, Sequence};
use crate::diagnosis::reproduction::{
    attention_fits, certificate_fits, certificate_of, heads_agree, labels_fit, scores_fit, view_fits,
};
use crate::verdicts::bounds::{Approximate, Arithmetic};
use crate::verdicts::certificate::{Candidacy, ScoreBounds, thresholds};

/// Whether the selection that was answered to call `index` is that of a relation.
pub(super) fn selection_fits(
    relation: &Relation,
    observation: &Observation,
    index: usize,
    model: RoundingModel,
) -> bool {
    selects(relation, observation, index, model).unwrap_or(false)
}

fn selects(
    relation: &Relation,
    observation: &Observation,
    index: usize,
    model: RoundingModel,
) -> Option<bool> {
    let Ok(answer) = &observation.answers[index] else { return Some(false) };
    let mut asked = None;
    for how in relation.hows() {
        if let How::Question(change) = how {
            change(asked.get_or_insert_with(|| observation.sequence.clone()), index);
        }
    }
    let sequence = asked.as_ref().unwrap_or(&observation.sequence);
    let behaviour = relation.behaviour();
    let mut prediction = predicted(behaviour, sequence, index)?;
    let Some(mut ranked) = prediction.ranked.take() else {
        return Some(answer.mask == full_mask(&prediction));
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
    let once = changes.iter().any(|change| matches!(change, RowChange::AdditiveOnce { .. }));
    let given = prediction.ranking.clone();
    if once {
        prediction.ranking = without_additive(&given)?;
    }
    let ranked = prediction.ranked.as_ref()?;
    let scene = Scene {
        bounds: ScoreBounds::predicted(&prediction, ranked, model),
        once: once.then(|| (&*given, Arithmetic::new(model, given.storage()))),
        lengths: lengths(sequence, index),
        prediction: &prediction,
        ranked,
        changes: &changes,
    };
    let rows = prediction.ranking.dims().rows();
    let together = changes.iter().any(|change| change.separates_heads())
        || heads_agree(&prediction, ranked, &answer.mask);
    Some(
        together
            && labels_fit(&prediction, answer, model)
            && scores_fit(&prediction, answer, model)
            && rows.into_iter().all(|row| scene.fits(row, &answer.mask)),
    )
}

/// Whether the attention that was answered to call `index` is that of a relation.
pub(super) fn attention_of_relation_fits(
    relation: &Relation,
    observation: &Observation,
    index: usize,
    model: RoundingModel,
) -> bool {
    let Ok(answer) = &observation.answers[index] else { return false };
    let Some(mut prediction) = predicted(relation.behaviour(), &observation.sequence, index) else {
        return false;
    };
    let changes: Vec<_> = relation
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
    changes
        .into_iter()
        .try_fold(None, |view, change| change.apply(view, &mut prediction, answer).map(Some))
        .flatten()
        .is_some_and(|view| view_fits(&view, answer, model))
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

/// Of earlier calls of the layer: the first of the same batch size and number of queries, the first, and the last.
fn lengths(sequence: &Sequence, index: usize) -> [Option<usize>; 3] {
    let call = &sequence.calls[index];
    let dims = call.inputs.dims();
    let mut earlier = sequence.calls[..index].iter().filter(|other| other.layer == call.layer);
    let others: Vec<_> = earlier.by_ref().map(|call| call.inputs.dims()).collect();
    let same = others.iter().find(|other| (other.batch, other.queries) == (dims.batch, dims.queries));
    let keys = |dims: &crate::algorithm::Dims| dims.keys;
    [same.map(keys), others.first().map(keys), others.last().map(keys)]
}

fn row_change(how: &How) -> Option<RowChange> {
    match how {
        How::Row(change) => Some(*change),
        _ => None,
    }
}

/// The inputs without A and causality.
fn without_additive(inputs: &Inputs) -> Option<Arc<Inputs>> {
    let parts = InputParts { attention_mask: None, causal: false, ..inputs.parts().clone() };
    let inputs = Inputs::new(parts).ok()?.with_head_weights(inputs.head_weights().cloned());
    inputs.ok().map(Arc::new)
}

/// A call as a relation ranks it.
struct Scene<'a> {
    prediction: &'a Prediction,
    ranked: &'a Ranked,
    bounds: ScoreBounds<'a>,
    changes: &'a [RowChange],
    /// Where A is added once, after the head rule: the inputs with A, and how it is added.
    once: Option<(&'a Inputs, Arithmetic)>,
    lengths: [Option<usize>; 3],
}

impl Scene<'_> {
    fn fits(&self, row: Row, mask: &Mask) -> bool {
        let dims = self.prediction.ranking.dims();
        let (b, head, i) = row;
        let before = &self.prediction.before;
        let earlier = (0..dims.keys).filter(|&key| before.attends(b, head, i, key)).count();
        let place = Place { row, dims: &dims, earlier, lengths: self.lengths };
        let mut candidates = self.candidates(row);
        for change in self.changes {
            change.edit(&mut candidates, self.ranked.count, &place);
            if *change == RowChange::StaleThreshold {
                self.cut_stale(&mut candidates, row);
            }
        }
        let decides = |change: &RowChange| change.certify(&candidates, self.ranked.count, &place);
        let certificate =
            self.changes.iter().find_map(decides).unwrap_or_else(|| {
                certificate_of(self.prediction, self.ranked, &candidates, self.ranked.count)
            });
        certificate_fits(self.prediction, &certificate, mask, row)
    }

    /// The candidates of a row, by the scores and the earlier mask of the rows that stand in for it.
    fn candidates(&self, row: Row) -> Vec<Candidacy> {
        let dims = self.prediction.ranking.dims();
        let (mut scored, mut asked, mut any_head, mut own_earlier) = (row, row, false, false);
        let mut sharing = self.ranked.sharing;
        for change in self.changes {
            match *change {
                RowChange::RowOf(axis, map) => {
                    (scored, asked) = (axis.moved(map, scored, &dims), axis.moved(map, asked, &dims));
                }
                RowChange::ScoresOf(axis, map) => scored = axis.moved(map, scored, &dims),
                RowChange::RunnersUp => (scored, asked) = ((scored.0, scored.1, 0), (asked.0, asked.1, 0)),
                RowChange::EarlierOf(axis, map) => asked = axis.moved(map, asked, &dims),
                RowChange::EarlierOfAnyHead => any_head = true,
                RowChange::EarlierOfAllParts => {
                    if let Sharing::InParts(mode, _) = sharing {
                        sharing = Sharing::Mode(mode);
                    }
                }
                RowChange::AdditiveOnce { own_earlier: own } => own_earlier = own,
                _ => {}
            }
        }
        let before = &self.prediction.before;
        let competes = self.prediction.behaviour.earlier == Earlier::Candidates;
        let heads: Vec<usize> = match any_head {
            true => (0..dims.heads).collect(),
            false if own_earlier => vec![asked.1],
            false => sharing.heads(asked.1, &dims),
        };
        let excluded =
            |key: usize| !competes && heads.iter().any(|&head| before.attends(asked.0, head, asked.2, key));
        let own = |key: usize| before.attends(row.0, row.1, row.2, key);
        let mut scores = self.bounds.ranked_by(scored);
        if let Some((inputs, arithmetic)) = &self.once {
            let additive = inputs.additive(scored.0, scored.1, scored.2);
            for (key, score) in scores.iter_mut().enumerate() {
                *score = arithmetic.add_mask(*score, additive.at(key));
            }
        }
        let candidacy = |(key, score): (usize, Approximate)| match score {
            _ if excluded(key) && own(key) => Candidacy::Before,
            _ if excluded(key) => Candidacy::Excluded,
            _ if score == Approximate::EXCLUDED && self.ranked.forced.holds_excluded(key, row.2, &dims) => {
                Candidacy::Forced(Approximate::new(0.0, 0.0))
            }
            _ if score == Approximate::EXCLUDED => Candidacy::Excluded,
            _ if self.ranked.forced.holds(key, row.2, &dims) => Candidacy::Forced(score),
            _ => Candidacy::Scored(score),
        };
        scores.into_iter().enumerate().map(candidacy).collect()
    }

    /// Cuts a row without more candidates than H at the threshold of the last row before it that had more.
    fn cut_stale(&self, row: &mut [Candidacy], (b, head, i): Row) {
        let dims = self.prediction.ranking.dims();
        let count = self.ranked.count;
        let more =
            |row: &[Candidacy]| row.iter().filter(|key| super::rows::is_candidate(key)).count() > count;
        if more(row) {
            return;
        }
        let rows: Vec<Row> = dims.rows().take_while(|other| *other != (b, head, i)).collect();
        let Some(before) =
            rows.into_iter().rev().map(|other| self.candidates(other)).find(|other| more(other))
        else {
            return;
        };
        // The H-th score is between the H-th lowest and the H-th highest that it may be.
        let high = |candidacy: &Candidacy| match candidacy {
            Candidacy::Scored(score) => Candidacy::Scored(Approximate::new(score.high(), 0.0)),
            other => *other,
        };
        let highest: Vec<Candidacy> = before.iter().map(high).collect();
        let (lowest, highest) = (thresholds(&before, count).out_below, thresholds(&highest, count).out_below);
        for candidacy in row {
            if let Candidacy::Scored(score) = candidacy {
                if score.high() < lowest {
                    *candidacy = Candidacy::Excluded;
                } else if score.low() < highest {
                    score.may_be_minus_infinity = true;
                }
            }
        }
    }
}

//! The verdict on one answer to one case: its mask against the certificate, its output against the bound, a refusal
//! against the case's own faults.

use super::certificate::{Candidacy, Certificate, Class, RowCertificate, ScoreBounds, thresholds};
use super::labels::{AnsweredLabel, judge_answered};
use super::lse::{LseVerdict, judge_lse};
use super::output::{OutputVerdict, judge_output, judge_outputs};
use super::ragged;
use super::scores::{ScoreDivergence, judge_scores};
use super::topk::judge_selection;
use crate::algorithm::{Error, Mask, Row};
use crate::cases::{Answer, Call, Instance, LabelRounding, NoAnswer, Observation, RoundingModel};
use crate::compute;
use crate::compute::vectorised;

/// The verdict on one answer.
#[derive(Debug, Clone)]
pub enum Verdict {
    /// The answer was compared.
    Judged(Judgement),
    /// The case has a fault, and was refused for it.
    RefusedRightly,
    /// The case was refused without a fault, or for another one than it has.
    RefusedWrongly {
        /// What the implementation said.
        found: NoAnswer,
        /// What it should have said.
        expected: Option<Error>,
    },
    /// The implementation broke.
    Failed(String),
    /// The case has a fault, but was answered.
    Accepted {
        /// What the implementation should have said.
        expected: Error,
    },
}

impl Verdict {
    /// Whether the answer conforms to the SPEC.
    pub fn conforms(&self) -> bool {
        match self {
            Self::Judged(judgement) => judgement.conforms(),
            Self::RefusedRightly => true,
            Self::RefusedWrongly { .. } | Self::Failed(_) | Self::Accepted { .. } => false,
        }
    }

    /// The kind of a failure, in a few words; `None` where the answer conforms.
    pub fn kind(&self) -> Option<&'static str> {
        match self {
            verdict if verdict.conforms() => None,
            Verdict::RefusedRightly => None,
            Verdict::RefusedWrongly { .. } => Some("refused what must be answered"),
            Verdict::Accepted { .. } => Some("answered what must be refused"),
            Verdict::Failed(_) => Some("gave no usable answer"),
            Verdict::Judged(judgement) => {
                Some(match judgement.mask.divergences.first().map(|first| first.fault) {
                    None if judgement.labels.is_some() => "labels differ",
                    None => judgement.later_kind(),
                    Some(fault) => fault.kind(),
                })
            }
        }
    }

    /// The comparison, where there was one.
    pub fn judgement(&self) -> Option<&Judgement> {
        match self {
            Self::Judged(judgement) => Some(judgement),
            _ => None,
        }
    }

    /// What is wrong, one line each; empty where the answer conforms.
    pub fn explanations(&self) -> Vec<String> {
        match self {
            Self::RefusedRightly => Vec::new(),
            Self::RefusedWrongly { found, expected: None } => {
                vec![format!("refused ({found}), expected an answer")]
            }
            Self::RefusedWrongly { found, expected: Some(expected) } => {
                vec![format!("refused ({found}), expected the refusal: {expected}")]
            }
            Self::Failed(problem) => vec![format!("failed: {problem}")],
            Self::Accepted { expected } => vec![format!("answered, expected the refusal: {expected}")],
            Self::Judged(judgement) => {
                let masks = judgement.mask.divergences.iter().map(ToString::to_string);
                let outputs = judgement.output.iter().flat_map(|output| &output.divergences);
                let labels = judgement.labels.iter().map(ToString::to_string);
                let outputs = outputs.take(MOST_EXPLAINED).map(ToString::to_string);
                masks.chain(labels).chain(judgement.of_stages()).chain(outputs).collect()
            }
        }
    }
}

/// How a mask and an output compare.
#[derive(Debug, Clone)]
pub struct Judgement {
    /// The mask.
    pub mask: MaskVerdict,
    /// The output, where there is one.
    pub output: Option<OutputVerdict>,
    /// The first label at fault, where labels were shown and one is.
    pub labels: Option<AnsweredLabel>,
    /// Whether labels were given, so that they could be judged before scores.
    pub judged_labels: bool,
    /// Where scores were given and keys are ranked: the first score at fault.
    pub scores: Option<Option<ScoreDivergence>>,
    /// The first score at fault by the implementation's own labels, where these were given and one is.
    pub scores_by_labels: Option<Box<ScoreDivergence>>,
    /// The selection judged from the implementation's own scores, where these were given.
    pub selection: Option<MaskVerdict>,
    /// The log-sum-exp, where it was given.
    pub lse: Option<LseVerdict>,
}

impl Judgement {
    /// Whether everything conforms.
    pub fn conforms(&self) -> bool {
        let output = self.output.iter().all(|output| output.divergences.is_empty());
        let lse = self.lse.iter().all(|lse| lse.divergences.is_empty());
        self.selection_conforms() && output && lse
    }

    /// Whether labels, scores and mask conform.
    pub fn selection_conforms(&self) -> bool {
        let scores = !self.has_wrong_scores();
        let selection = self.selection.iter().all(|selection| selection.wrong_rows == 0);
        self.mask.wrong_rows == 0 && self.labels.is_none() && scores && selection
    }

    fn has_wrong_scores(&self) -> bool {
        matches!(self.scores, Some(Some(_))) || self.scores_by_labels.is_some()
    }

    /// The first stage that is wrong although what it starts from is right: `None` where everything conforms, or where no
    /// answer of an earlier stage says which one it is.
    pub fn stage(&self) -> Option<&'static str> {
        let mask = self.mask.divergences.first().map(|divergence| divergence.fault);
        let from_scores = self.selection.iter().any(|selection| selection.wrong_rows > 0);
        match (&self.scores, mask) {
            _ if self.conforms() => None,
            _ if self.labels.is_some() => Some("labels"),
            _ if self.has_wrong_scores() && self.judged_labels => Some("scores"),
            _ if self.has_wrong_scores() => Some("labels or scores"),
            _ if from_scores => Some("selection"),
            // Scores are right, and so is what was selected by them: the mask breaks a rule that does not depend on scores.
            (Some(_), Some(_)) => Some("selection"),
            (None, Some(_)) if self.judged_labels => Some("scores or selection"),
            (None, Some(_)) => None,
            (_, None) => Some("attention"),
        }
    }

    /// The kind of a failure where mask and labels conform.
    fn later_kind(&self) -> &'static str {
        let selection = self.selection.iter().flat_map(|selection| &selection.divergences).next();
        match selection {
            _ if self.has_wrong_scores() => "scores out of bounds",
            Some(divergence) => divergence.fault.kind(),
            None if self.output.iter().any(|output| !output.divergences.is_empty()) => "output out of bounds",
            None => "lse out of bounds",
        }
    }

    /// What is wrong with scores, with the selection by them, and with the log-sum-exp.
    fn of_stages(&self) -> Vec<String> {
        let scores = self.scores.iter().flatten().map(ToString::to_string);
        let by_labels = self.scores_by_labels.iter().map(|score| format!("by its own labels, {score}"));
        let selections = self.selection.iter().flat_map(|selection| &selection.divergences);
        let selections = selections.map(|divergence| format!("by its own scores, {divergence}"));
        let lse = self.lse.iter().flat_map(|lse| &lse.divergences).take(MOST_EXPLAINED);
        scores.chain(by_labels).chain(selections).chain(lse.map(ToString::to_string)).collect()
    }
}

/// How a mask compares with its certificate.
#[derive(Debug, Clone, Default)]
pub struct MaskVerdict {
    /// How many rows were compared.
    pub rows: usize,
    /// In how many of them a key had to be left out: rows with more candidates than H.
    pub selecting: usize,
    /// How many keys were open in all of them.
    pub open: usize,
    /// How many rows diverge.
    pub wrong_rows: usize,
    /// The first few divergences.
    pub divergences: Vec<MaskDivergence>,
}

/// How many divergences are explained.
pub const MOST_EXPLAINED: usize = 3;

/// A row of a mask that no conforming implementation can give.
#[derive(Debug, Clone, PartialEq)]
pub struct MaskDivergence {
    /// Batch, head, query.
    pub row: Row,
    /// What is wrong.
    pub fault: MaskFault,
    /// Score, radius and thresholds of the key at fault, where it has a score.
    pub evidence: Option<ScoreEvidence>,
}

/// What is wrong with a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MaskFault {
    /// A key attended before is no longer attended, or its weight changed.
    ChangesEarlier {
        /// Key.
        key: usize,
        /// Its weight.
        found: f32,
        /// Its weight before.
        expected: f32,
    },
    /// A key that is no candidate was selected.
    HoldsExcluded {
        /// Key.
        key: usize,
    },
    /// A key of the padding, beyond the length of its batch entry, was selected.
    HoldsPadding {
        /// Key.
        key: usize,
    },
    /// A key that must not be selected was.
    HoldsOut {
        /// Key.
        key: usize,
    },
    /// A key that must be selected was not.
    MissesIn {
        /// Key.
        key: usize,
    },
    /// A key that is selected whatever its score was not.
    MissesForced {
        /// Key.
        key: usize,
    },
    /// A selected key has a weight other than 1.
    Weight {
        /// Key.
        key: usize,
        /// Its weight.
        found: f32,
    },
    /// The wrong number of keys.
    Count {
        /// How many were selected.
        found: usize,
        /// The fewest allowed.
        fewest: usize,
        /// The most allowed.
        most: usize,
    },
    /// The mask must be full (SPEC §2.2), with weight 1 where no earlier masker gave another.
    NotFull {
        /// The first key at fault.
        key: usize,
        /// Its weight.
        found: f32,
        /// The weight it should have.
        expected: f32,
    },
    /// The selection is not that of the first of the heads that share it.
    HeadsDiffer {
        /// The first key that differs.
        key: usize,
        /// The first of the heads.
        head: usize,
    },
}

impl MaskFault {
    /// The kind of the failure, in a few words.
    pub fn kind(self) -> &'static str {
        match self {
            Self::HoldsOut { .. } | Self::MissesIn { .. } | Self::MissesForced { .. } => "wrong keys",
            Self::HoldsExcluded { .. } => "selected a key that is no candidate",
            Self::HoldsPadding { .. } => "selected padding",
            Self::ChangesEarlier { .. } => "changed an earlier mask",
            Self::Weight { .. } => "wrong weight",
            Self::Count { .. } => "wrong number of keys",
            Self::NotFull { .. } => "mask not full",
            Self::HeadsDiffer { .. } => "heads differ",
        }
    }
}

/// Why a key must be in or out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScoreEvidence {
    /// Recomputed in f64.
    pub score: f64,
    /// How far a conforming score may be from it.
    pub radius: f64,
    /// What it is compared with.
    pub threshold: f64,
}

impl std::fmt::Display for MaskDivergence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (batch, head, query) = self.row;
        write!(f, "batch {batch}, head {head}, query {query}: ")?;
        match self.fault {
            MaskFault::ChangesEarlier { key, found, expected } => {
                write!(f, "key {key} was attended before with weight {expected}, found weight {found}")
            }
            MaskFault::HoldsExcluded { key } => write!(f, "key {key} is selected but is no candidate"),
            MaskFault::HoldsPadding { key } => {
                write!(f, "key {key} is selected but lies beyond the length of its entry")
            }
            MaskFault::HoldsOut { key } => write!(f, "key {key} is selected but scores too low"),
            MaskFault::MissesIn { key } => write!(f, "key {key} is not selected but scores high enough"),
            MaskFault::MissesForced { key } => write!(f, "key {key} is not selected but is forced"),
            MaskFault::Weight { key, found } => {
                write!(f, "key {key} is selected with weight {found}, expected 1")
            }
            MaskFault::Count { found, fewest, most } if fewest == most => {
                write!(f, "{found} keys selected, expected {fewest}")
            }
            MaskFault::Count { found, fewest, most } => {
                write!(f, "{found} keys selected, expected {fewest} to {most}")
            }
            MaskFault::NotFull { key, found, expected } => {
                write!(f, "key {key} has weight {found}, expected a full mask and weight {expected}")
            }
            MaskFault::HeadsDiffer { key, head } => {
                write!(f, "key {key} is selected differently than in head {head}")
            }
        }?;
        match self.evidence {
            Some(ScoreEvidence { score, radius, threshold }) => {
                write!(f, " (score {score:.9} ± {radius:.1e}, threshold {threshold:.9})")
            }
            None => Ok(()),
        }
    }
}

/// Judges what an implementation answered to one call of an instance under its rounding model. `certificate` is that of the
/// call under the same model, or the error with which the call must be refused. A call with several faults may be refused
/// for any of them.
pub fn judge(
    instance: &Instance,
    call: &Call,
    answer: &Result<Answer, NoAnswer>,
    model: RoundingModel,
    certificate: &Result<Certificate, Error>,
) -> Verdict {
    match (answer, certificate) {
        (Err(NoAnswer::Failed(problem)), _) => Verdict::Failed(problem.clone()),
        (Err(NoAnswer::Refused(found)), Err(expected))
            if same_kind(found, expected)
                || instance.faults(call).iter().any(|fault| same_kind(fault, found)) =>
        {
            Verdict::RefusedRightly
        }
        (Err(NoAnswer::Declined(_)), Err(_)) => Verdict::RefusedRightly,
        (Err(found), expected) => {
            Verdict::RefusedWrongly { found: found.clone(), expected: expected.as_ref().err().cloned() }
        }
        (Ok(_), Err(expected)) => Verdict::Accepted { expected: expected.clone() },
        (Ok(answer), Ok(_)) if !answer.fits(&call.inputs.dims()) => {
            Verdict::Failed(
                "a tensor of another shape than [b, h, m, n] for a mask and scores, [b, h, m, dv] for an output, \
                 [b, h, m] for lse, or labels that do not fit"
                    .into(),
            )
        }
        (Ok(answer), Ok(certificate)) => Verdict::Judged(match call.entries() {
            None => judgement(instance, call, answer, model, certificate),
            Some(entries) => ragged::judgement(instance, call, &entries, answer, model, certificate),
        }),
    }
}

/// An answer, the model that it is judged under, and the certificate of the call under that model.
pub type ToJudge<'a> = (&'a Result<Answer, NoAnswer>, RoundingModel, &'a Result<Certificate, Error>);

/// The verdicts of [`judge`] on two answers to one call. Where both have the same mask, both outputs are judged at once.
pub fn judge_both(instance: &Instance, call: &Call, answers: [ToJudge; 2]) -> [Verdict; 2] {
    if let [(Ok(first), model, Ok(certificate)), (Ok(second), other_model, Ok(other_certificate))] = answers
        && let (Some(output), Some(other_output)) = (&first.output, &second.output)
        && [first, second].into_iter().all(|answer| answer.fits(&call.inputs.dims()))
        && call.entries().is_none()
        && first.mask == second.mask
    {
        let outputs = [(output, model), (other_output, other_model)];
        let [output, other_output] = judge_outputs(&call.inputs, &first.mask, outputs);
        let rest = |answer: &Answer, model, certificate, output| {
            let mask = judge_mask(instance, call, certificate, &answer.mask, model);
            Verdict::Judged(judgement_with(instance, call, answer, model, certificate, (mask, Some(output))))
        };
        return [
            rest(first, model, certificate, output),
            rest(second, other_model, other_certificate, other_output),
        ];
    }
    answers.map(|(answer, model, certificate)| judge(instance, call, answer, model, certificate))
}

/// Judges an answer of the right shape to a call without lengths.
pub(super) fn judgement(
    instance: &Instance,
    call: &Call,
    answer: &Answer,
    model: RoundingModel,
    certificate: &Certificate,
) -> Judgement {
    let mask = judge_mask(instance, call, certificate, &answer.mask, model);
    let output = answer.output.as_ref().map(|output| judge_output(&call.inputs, &answer.mask, output, model));
    judgement_with(instance, call, answer, model, certificate, (mask, output))
}

/// Judges the rest of an answer of which mask and output are judged.
fn judgement_with(
    instance: &Instance,
    call: &Call,
    answer: &Answer,
    model: RoundingModel,
    certificate: &Certificate,
    (mask, output): (MaskVerdict, Option<OutputVerdict>),
) -> Judgement {
    // Where an early out gives a full mask nothing is ranked.
    let ranked = answer.labels.as_ref().filter(|_| certificate.rows.is_some());
    let labels = ranked.and_then(|labels| judge_answered(instance, call, labels, model.labels));
    let (scores, selection) = match answer.scores.as_ref().filter(|_| certificate.rows.is_some()) {
        None => (None, None),
        Some(scores) => (
            Some(judge_scores(instance, call, scores, model, &certificate.before, None)),
            Some(judge_selection(
                scores,
                instance.selection.heavy_size.resolve(call.inputs.dims().keys),
                &certificate.before,
                instance.selection.heads.sharing(&call.inputs.dims()),
                |query, key| {
                    let position = call.inputs.dims().position(query);
                    instance.selection.rules.forced.holds(key, position)
                },
                &answer.mask,
            )),
        ),
    };
    let lse = answer.lse.as_ref().map(|lse| judge_lse(&call.inputs, &answer.mask, lse, model));
    // Where there is one label and it is given, the inputs say the same.
    let other_labels = labels.is_some() || model.labels == LabelRounding::Rounded;
    let given = answer.scores.as_ref().zip(ranked).filter(|_| other_labels);
    let scores_by_labels = given.and_then(|(scores, labels)| {
        judge_scores(instance, call, scores, model, &certificate.before, Some(labels)).map(Box::new)
    });
    let judged_labels = ranked.is_some();
    Judgement { mask, output, labels, judged_labels, scores, scores_by_labels, selection, lse }
}

/// Derives the certificate of a call and judges an answer by it.
pub fn judge_call(
    instance: &Instance,
    call: &Call,
    answer: &Result<Answer, NoAnswer>,
    model: RoundingModel,
) -> Verdict {
    judge(instance, call, answer, model, &Certificate::derive(instance, call, model))
}

/// The verdict on each answer. A refusal of the instance is right for all calls if it is right for one.
pub fn judge_observation(observation: &Observation, model: RoundingModel) -> Vec<Verdict> {
    let instance = &observation.sequence.instance;
    let calls = observation.sequence.calls.iter().zip(&observation.answers);
    let verdicts: Vec<_> = calls.map(|(call, answer)| judge_call(instance, call, answer, model)).collect();
    let one_rightly = verdicts.iter().any(|verdict| matches!(verdict, Verdict::RefusedRightly));
    if observation.instance_refused && one_rightly {
        return vec![Verdict::RefusedRightly; verdicts.len()];
    }
    verdicts
}

/// The first failing call and its kind.
pub fn first_failure(verdicts: &[Verdict]) -> Option<(usize, &'static str)> {
    verdicts.iter().enumerate().find_map(|(index, verdict)| Some((index, verdict.kind()?)))
}

/// Whether two refusals name the same kind of mistake.
pub fn same_kind(a: &Error, b: &Error) -> bool {
    std::mem::discriminant(a) == std::mem::discriminant(b)
}

/// Judges a mask. It must have the shape [b, h, m, n] of the call.
pub fn judge_mask(
    instance: &Instance,
    call: &Call,
    certificate: &Certificate,
    mask: &Mask,
    model: RoundingModel,
) -> MaskVerdict {
    let dims = call.inputs.dims();
    let rows: Vec<(usize, Row)> = dims.rows().enumerate().collect();
    let count = rows.len();
    let fault = |(index, row): (usize, Row)| {
        let fault = match &certificate.rows {
            None => not_full(&certificate.before, mask, row),
            Some(rows) => row_fault(&rows[index], &certificate.before, mask, row).or_else(|| {
                heads_differ(&certificate.before, mask, row, instance.selection.heads.sharing(&dims))
            }),
        };
        fault.map(|fault| MaskDivergence { row, fault, evidence: None })
    };
    let faults = compute::map(rows, dims.operations() / dims.head_dim, fault);
    let mut divergences: Vec<_> = faults.into_iter().flatten().collect();
    let wrong_rows = divergences.len();
    divergences.truncate(MOST_EXPLAINED);
    if !divergences.is_empty()
        && let Ok(Some(scores)) = ScoreBounds::new(instance, call, model, &certificate.before)
    {
        let heavy_size = instance.selection.heavy_size.resolve(dims.keys);
        for divergence in &mut divergences {
            if let MaskFault::MissesIn { key } = divergence.fault
                && matches!(scores.row(divergence.row)[key], Candidacy::Forced(_))
            {
                divergence.fault = MaskFault::MissesForced { key };
            }
            divergence.evidence = evidence(&scores, heavy_size, divergence);
        }
    }
    let (selecting, open) = (certificate.selecting(), certificate.open());
    MaskVerdict { rows: count, selecting, open, wrong_rows, divergences }
}

fn not_full(before: &Mask, mask: &Mask, (b, head, query): Row) -> Option<MaskFault> {
    let keys = mask.weights().dim().3;
    (0..keys).find_map(|key| {
        let found = mask.weight(b, head, query, key);
        let expected = match before.weight(b, head, query, key) {
            0.0 => 1.0,
            weight => weight,
        };
        (found != expected).then_some(MaskFault::NotFull { key, found, expected })
    })
}

/// What is wrong with one row of a mask, by the certificate of the row.
pub fn row_fault<'a>(
    certificate: &RowCertificate,
    before: &'a Mask,
    mask: &'a Mask,
    row: Row,
) -> Option<MaskFault> {
    /// Keys that are passed over at once where none of them is at fault.
    const TOGETHER: usize = 128;
    let slice = |mask: &'a Mask| mask.row_weights(row).to_slice().expect("masks have the standard layout");
    let (before, found) = (slice(before), slice(mask));
    let mut selected = 0;
    let parts = before.chunks(TOGETHER).zip(found.chunks(TOGETHER)).zip(certificate.classes.chunks(TOGETHER));
    for (part, ((before, found), classes)) in parts.enumerate() {
        let (conforms, of_part) = vectorised(
            #[inline(always)]
            || part_conforms(classes, before, found),
        );
        selected += of_part;
        if !conforms {
            let mut keys = classes.iter().zip(before.iter().zip(found)).zip(part * TOGETHER..);
            let fault =
                keys.find_map(|((class, (&before, &found)), key)| key_fault(*class, key, before, found));
            if fault.is_some() {
                return fault;
            }
        }
    }
    let RowCertificate { fewest, most, .. } = *certificate;
    let fits = (fewest..=most).contains(&selected);
    (!fits).then_some(MaskFault::Count { found: selected, fewest, most })
}

/// Whether [`key_fault`] finds nothing in some keys, and how many of them are selected.
#[inline(always)]
fn part_conforms(classes: &[Class], before: &[f32], found: &[f32]) -> (bool, usize) {
    let (mut conforms, mut selected) = (true, 0u32);
    for ((&class, &before), &found) in classes.iter().zip(before).zip(found) {
        let (left_out, whole) = (found == 0.0, found == 1.0);
        let earlier = class == Class::Before;
        let right = (earlier & (found == before))
            | ((class == Class::In) & whole)
            | ((class == Class::Open) & (left_out | whole))
            | (((class == Class::Out) | (class == Class::Excluded)) & left_out);
        conforms &= right;
        selected += u32::from(!left_out & !earlier);
    }
    (conforms, selected as usize)
}

/// What is wrong with one key of a row, by its class and its weights before and in the answer.
pub fn key_fault(class: Class, key: usize, before: f32, found: f32) -> Option<MaskFault> {
    let attended = found != 0.0;
    match class {
        Class::Before => {
            (found != before).then_some(MaskFault::ChangesEarlier { key, found, expected: before })
        }
        Class::Excluded if attended => Some(MaskFault::HoldsExcluded { key }),
        Class::Out if attended => Some(MaskFault::HoldsOut { key }),
        Class::In if !attended => Some(MaskFault::MissesIn { key }),
        Class::In | Class::Open if attended && found != 1.0 => Some(MaskFault::Weight { key, found }),
        _ => None,
    }
}

fn heads_differ(before: &Mask, mask: &Mask, row: Row, sharing: usize) -> Option<MaskFault> {
    if sharing == 1 {
        return None;
    }
    let keys = mask.weights().dim().3;
    (0..keys)
        .find(|&key| differs_from_first_head(before, mask, row, key, sharing))
        .map(|key| MaskFault::HeadsDiffer { key, head: row.1 / sharing * sharing })
}

/// Whether a key was selected here but not in the first of the `sharing` heads that share a selection, or there but not here.
pub fn differs_from_first_head(
    before: &Mask,
    mask: &Mask,
    (b, head, query): Row,
    key: usize,
    sharing: usize,
) -> bool {
    let added = |head| mask.attends(b, head, query, key) && !before.attends(b, head, query, key);
    added(head) != added(head / sharing * sharing)
}

fn evidence(scores: &ScoreBounds, heavy_size: usize, divergence: &MaskDivergence) -> Option<ScoreEvidence> {
    let row = scores.row(divergence.row);
    let limits = thresholds(&row, heavy_size);
    let (key, threshold) = match divergence.fault {
        MaskFault::HoldsOut { key } => (key, limits.out_below),
        MaskFault::MissesIn { key } => (key, limits.in_above),
        _ => return None,
    };
    match row[key] {
        Candidacy::Scored(score) => {
            Some(ScoreEvidence { score: score.value, radius: score.radius, threshold })
        }
        _ => None,
    }
}

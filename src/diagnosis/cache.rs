//! Why a session diverges: a fault of what is held ([`CACHE_FAULTS`]) is named only if a plain cache with it reproduces every answer
//! that was kept, those that conform too, up to the first that does not in each session. What none of them reproduces may be one of
//! [`CACHE_RELATIONS`], which is proved in the same way.

use std::collections::BTreeSet;

use rayon::prelude::*;

use crate::algorithm::{Dims, Mask};
use crate::behaviours::paging::Read;
use crate::behaviours::{CACHE_FAULTS, CACHE_RELATIONS, CacheFault, CacheFaultKind, Paged};
use crate::cases::{Answer, Instance, NoAnswer, RoundingModel, SessionObservation};
use crate::verdicts::Certificate;
use crate::verdicts::judge::judge_mask;
use crate::verdicts::output::judge_output;

/// The faults of which each alone reproduces all of these observations, those with a name where there are some.
pub fn explaining(observations: &[SessionObservation], model: RoundingModel) -> Vec<&'static CacheFault> {
    let reproduces_all = |fault: &&'static CacheFault| {
        // Those that fail come last, and rule out most.
        observations.iter().rev().all(|observation| reproduces_session(Some(fault.kind), observation, model))
    };
    let of = |faults: &'static [CacheFault]| faults.par_iter().filter(reproduces_all).collect::<Vec<_>>();
    let named = of(CACHE_FAULTS);
    if named.is_empty() { of(CACHE_RELATIONS) } else { named }
}

/// Whether a cache with a fault, or without one, gives the answers of an observation.
pub fn reproduces_session(
    fault: Option<CacheFaultKind>,
    observation: &SessionObservation,
    model: RoundingModel,
) -> bool {
    let session = &observation.session;
    if observation.not_opened.is_some() {
        return false;
    }
    let mut cache = Paged::new(&session.opening, fault);
    session.steps.iter().zip(&observation.answers).all(|(step, answer)| match (cache.step(step), answer) {
        (_, Err(NoAnswer::Failed(_))) => false,
        (Err(_), Err(_)) => true,
        (Ok(reads), Ok(answers)) => {
            reads.len() == answers.len()
                && reads
                    .iter()
                    .zip(answers)
                    .all(|(read, answer)| is_read(&session.instance, read, answer, model))
        }
        (Ok(_), Err(_)) | (Err(_), Ok(_)) => false,
    })
}

/// Whether an answer is right for what was read, as strictly as the SPEC's own verdict.
fn is_read(instance: &Instance, read: &Read, answer: &Answer, model: RoundingModel) -> bool {
    let dims = read.ranking.inputs.dims();
    if !answer.fits(&Dims { keys: read.keys, ..dims }) {
        return false;
    }
    let (own, beyond) = answer.mask.weights().view().split_at(ndarray::Axis(3), dims.keys);
    let Ok(mask) = Mask::from_weights(own.to_owned(), &dims) else { return false };
    let Ok((inputs, attended)) = read.attended(instance, &mask) else { return false };
    let output = |output| judge_output(&inputs, &attended, output, model).divergences.is_empty();
    beyond.iter().all(|&weight| weight == 0.0)
        && answer.output.as_ref().is_none_or(output)
        && (is_selected(instance, read, &mask, model) || is_selected_last(instance, read, &mask, model))
}

/// Whether the mask is that of the keys that are ranked.
fn is_selected(instance: &Instance, read: &Read, mask: &Mask, model: RoundingModel) -> bool {
    let instance = &*read.instance(instance);
    let certificate = Certificate::derive(instance, &read.ranking, model);
    certificate.is_ok_and(|certificate| {
        judge_mask(instance, &read.ranking, &certificate, mask, model).wrong_rows == 0
    })
}

/// The same where the first of some keys are ranked last: they get the places that others leave, whichever of them.
fn is_selected_last(instance: &Instance, read: &Read, mask: &Mask, model: RoundingModel) -> bool {
    let (last, row_size) = (read.last(instance), read.row_size(instance));
    // A row that is written meanwhile keeps its own scores from some key on.
    let ends: BTreeSet<usize> = last.iter().map(|(_, key)| key + 1).collect();
    ends.into_iter().rev().any(|end| {
        let last: Vec<(usize, usize)> = last.iter().copied().filter(|(_, key)| *key < end).collect();
        let Ok(ranked) = read.ranked(&last) else { return false };
        let Ok(certificate) = Certificate::derive(instance, &ranked, model) else { return false };
        let mut first = mask.clone();
        last.iter().for_each(|&(head, key)| first.remove((0, head, 0), key));
        judge_mask(instance, &ranked, &certificate, &first, model).wrong_rows == 0
            && last.iter().all(|&(head, _)| mask.row((0, head, 0)).count() == row_size(head))
    })
}

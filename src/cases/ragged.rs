//! Calls whose batch entries have unequal lengths (SPEC §2.13), taken apart and put together: an entry is the call of that
//! entry alone. This is the only place that does so, for those who answer and for those who judge.

use std::sync::Arc;

use ndarray::{Array3, Array4, s};

use super::case::{Answer, AnsweredLabels, NoAnswer};
use super::sequence::Call;
use crate::algorithm::{Dims, Error, Inputs, Lengths, Mask, Row};

/// One entry of a batch.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Which.
    pub batch: usize,
    /// Queries before this one have no position, and attend to nothing.
    pub first_query: usize,
    /// How many keys it has.
    pub keys: usize,
    /// The entry alone; `None` where it has no keys.
    pub call: Option<Call>,
}

impl Call {
    /// The call with entries of these lengths. P has no weights in the padding, nor in rows without a position.
    ///
    /// Errors: [`Error::Shape`], as of [`Inputs::with_lengths`].
    pub fn with_lengths(&self, lengths: Lengths) -> Result<Self, Error> {
        let inputs = Arc::new(Inputs::clone(&self.inputs).with_lengths(Some(lengths))?);
        let mut call = Self { inputs, ..self.clone() };
        if let (Some(previous), Some(entries)) = (&self.previous, call.entries()) {
            let mut kept = Mask::empty(&self.inputs.dims());
            for entry in &entries {
                entry.write(&mut kept, &entry.of(previous));
            }
            call.previous = Some(kept);
        }
        Ok(call)
    }

    /// Each entry alone; `None` where all have all keys, as no lengths were given.
    pub fn entries(&self) -> Option<Vec<Entry>> {
        let lengths = self.inputs.lengths()?;
        let entry = |(batch, &keys): (usize, &usize)| {
            let first_query = self.inputs.dims().queries.saturating_sub(keys);
            let alone = || Self {
                inputs: Arc::new(self.inputs.entry(batch, first_query, keys)),
                previous: self.previous.as_ref().map(|mask| mask.entry(batch, first_query, keys)),
                ..self.clone()
            };
            Entry { batch, first_query, keys, call: (keys > 0).then(alone) }
        };
        Some(lengths.keys().iter().enumerate().map(entry).collect())
    }
}

impl Entry {
    /// Its part of a mask of the whole call. A row without keys has none.
    pub fn of(&self, mask: &Mask) -> Mask {
        mask.entry(self.batch, self.first_query, self.keys)
    }

    /// Writes its part of a mask of the whole call.
    pub fn write(&self, mask: &mut Mask, part: &Mask) {
        mask.assign_entry(self.batch, self.first_query, part);
    }

    /// Where a row of the entry alone is in the whole call.
    pub fn row_of_call(&self, (_, head, query): Row) -> Row {
        (self.batch, head, self.first_query + query)
    }

    /// Where a row of the whole call is in the entry alone; `None` where it has no position.
    pub fn row_alone(&self, (_, head, query): Row) -> Option<Row> {
        Some((0, head, query.checked_sub(self.first_query)?)).filter(|_| self.keys > 0)
    }

    /// Its part of an answer that has the shape of the whole call.
    pub fn answer(&self, answer: &Answer) -> Answer {
        let (own, first, keys) = (self.batch..self.batch + 1, self.first_query, self.keys);
        let own = || own.clone();
        Answer {
            mask: self.of(&answer.mask),
            output: answer.output.as_ref().map(|output| output.slice(s![own(), .., first.., ..]).to_owned()),
            labels: answer.labels.as_ref().map(|labels| AnsweredLabels {
                q: labels.q.slice(s![own(), .., first.., ..]).to_owned(),
                k: labels.k.slice(s![own(), .., ..keys, ..]).to_owned(),
            }),
            scores: answer
                .scores
                .as_ref()
                .map(|scores| scores.slice(s![own(), .., first.., ..keys]).to_owned()),
            lse: answer.lse.as_ref().map(|lse| lse.slice(s![own(), .., first..]).to_owned()),
        }
    }
}

/// Answers a call of entries of unequal lengths by answering each entry alone; any other call as it is. Rows that attend to
/// nothing yield zeros. What not every entry's answer holds is left out.
pub fn by_entry(
    call: &Call,
    mut answer: impl FnMut(&Call) -> Result<Answer, NoAnswer>,
) -> Result<Answer, NoAnswer> {
    let Some(entries) = call.entries() else { return answer(call) };
    let mut parts = Vec::new();
    for entry in &entries {
        if let Some(alone) = &entry.call {
            parts.push((entry, answer(alone)?));
        }
    }
    Ok(joined(&call.inputs.dims(), &parts))
}

fn joined(dims: &Dims, parts: &[(&Entry, Answer)]) -> Answer {
    let mut mask = Mask::empty(dims);
    let output = parts.iter().all(|(_, part)| part.output.is_some());
    let mut output = output.then(|| Array4::zeros(dims.output_shape()));
    let every = |has: fn(&Answer) -> bool| !parts.is_empty() && parts.iter().all(|(_, part)| has(part));
    let (b, h, m, n) = dims.mask_shape();
    let mut scores =
        every(|part| part.scores.is_some()).then(|| Array4::from_elem(dims.mask_shape(), f32::NEG_INFINITY));
    let mut lse = every(|part| part.lse.is_some()).then(|| Array3::from_elem((b, h, m), f32::NEG_INFINITY));
    let channels =
        parts.first().and_then(|(_, part)| part.labels.as_ref()).map_or(0, |labels| labels.q.dim().3);
    let mut labels = every(|part| part.labels.is_some()).then(|| AnsweredLabels {
        q: Array4::zeros((b, h, m, channels)),
        k: Array4::zeros((b, h, n, channels)),
    });
    for (entry, part) in parts {
        let (own, first, keys) = (entry.batch..entry.batch + 1, entry.first_query, entry.keys);
        let own = || own.clone();
        entry.write(&mut mask, &part.mask);
        if let (Some(whole), Some(part)) = (&mut output, &part.output) {
            whole.slice_mut(s![own(), .., first.., ..]).assign(part);
        }
        if let (Some(whole), Some(part)) = (&mut scores, &part.scores) {
            whole.slice_mut(s![own(), .., first.., ..keys]).assign(part);
        }
        if let (Some(whole), Some(part)) = (&mut lse, &part.lse) {
            whole.slice_mut(s![own(), .., first..]).assign(part);
        }
        if let (Some(whole), Some(part)) = (&mut labels, &part.labels) {
            whole.q.slice_mut(s![own(), .., first.., ..]).assign(&part.q);
            whole.k.slice_mut(s![own(), .., ..keys, ..]).assign(&part.k);
        }
    }
    Answer { mask, output, labels, scores, lse }
}

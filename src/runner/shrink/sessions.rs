//! Makes a failing session small enough for a person: fewest steps, requests, layers, keys and queries, the fewest and smallest
//! pages; then, by the reductions of sequences, heads, channels, settings and values. Every step keeps what failed failing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use ndarray::{Array3, Array4, Axis, Slice};

use super::reductions::{without_group_members, without_kv_heads, without_value_dims};
use super::search::Search;
use super::{Limits, group_size, kv_heads, value_dim};
use crate::algorithm::{InputParts, Inputs};
use crate::cases::{Call, Capabilities, Held, Opening, Outcome, Sequence, Session, Step};

/// The smallest session found.
#[derive(Debug, Clone)]
pub struct ShrunkSession {
    /// It still fails.
    pub session: Session,
    /// How often the failure was tried.
    pub tries: usize,
    /// False where the limits ended the search.
    pub finished: bool,
    /// Wall-clock time.
    pub seconds: f64,
}

/// Shrinks a session for which `fails` is true, within what a subject of these capabilities may be asked.
pub fn shrink_session(
    session: Session,
    limits: Limits,
    capabilities: &Capabilities,
    fails: &mut dyn FnMut(&Session) -> bool,
) -> ShrunkSession {
    let start = Instant::now();
    let (mut session, mut tries) = (session, 0);
    loop {
        let left = |tries: usize| Limits {
            time: limits.time.saturating_sub(start.elapsed()),
            tries: limits.tries.saturating_sub(tries),
            ..limits
        };
        let mut search = Search::new(session, left(tries), capabilities, Capabilities::offers_session, fails);
        while search.round() && !search.exhausted() {}
        let finished = !search.exhausted();
        tries += search.tries;
        session = search.current;
        let (plainer, asked) = plainer(&session, left(tries), capabilities, fails);
        tries += asked;
        let changed = plainer.is_some();
        session = plainer.unwrap_or(session);
        if !changed || limits.exhausted(start, tries) {
            return ShrunkSession {
                session,
                tries,
                finished: finished && !limits.exhausted(start, tries),
                seconds: start.elapsed().as_secs_f64(),
            };
        }
    }
}

/// A session with fewer heads and channels, plainer settings and values, and how often the failure was tried.
fn plainer(
    session: &Session,
    limits: Limits,
    capabilities: &Capabilities,
    fails: &mut dyn FnMut(&Session) -> bool,
) -> (Option<Session>, usize) {
    let Some(sequence) = as_sequence(session) else { return (None, 0) };
    let mut fails = |sequence: &Sequence| {
        let candidate = with_numbers_of(session, sequence);
        capabilities.offers_session(&candidate) && fails(&candidate)
    };
    let mut search = Search::new(sequence, limits, capabilities, |_, _| true, &mut fails);
    search.plainer_settings();
    search.drop_each(kv_heads, without_kv_heads);
    search.drop_each(group_size, without_group_members);
    search.fewer_channels();
    search.drop_each(value_dim, without_value_dims);
    search.plainer_values();
    let plainer = with_numbers_of(session, &search.current);
    ((plainer != *session).then_some(plainer), search.tries)
}

/// The tensors of a session as calls that nobody asks, one for each step that has some, so that what makes the numbers of a sequence
/// plainer applies to them. `None` where there are none.
fn as_sequence(session: &Session) -> Option<Sequence> {
    let Opening { heads, kv_heads, head_dim, value_dim, dtype, scaling, .. } = session.opening;
    let call = |step: &Step| -> Option<Call> {
        let (layer, q, k, v) = match step {
            Step::Append { layer, k, v, .. } => {
                (*layer, Array3::zeros((k.dim().0, heads, head_dim)), k.clone(), v.clone())
            }
            Step::Attend { layer, q, .. } => {
                let rows = q.dim().0;
                let zeros = |width: usize| Array3::zeros((rows, kv_heads, width));
                (*layer, q.clone(), zeros(head_dim), zeros(value_dim))
            }
            Step::Fork { .. } | Step::Truncate { .. } | Step::Free { .. } => return None,
        };
        let [q, k, v] = [q, k, v]
            .map(|rows| rows.permuted_axes([1, 0, 2]).as_standard_layout().into_owned().insert_axis(Axis(0)));
        let (attention_mask, causal) = (None, true);
        let parts = InputParts { q, k, v, attention_mask, causal, storage: dtype, scaling };
        Some(Call { layer, inputs: Arc::new(Inputs::new(parts).ok()?), previous: None })
    };
    let calls: Vec<Call> = session.steps.iter().filter_map(call).collect();
    let (name, instance) = (session.name.clone(), session.instance.clone());
    (!calls.is_empty()).then_some(Sequence { name, instance, calls })
}

/// The session with the settings and numbers of such calls.
fn with_numbers_of(session: &Session, sequence: &Sequence) -> Session {
    let mut changed = session.clone();
    changed.instance = sequence.instance.clone();
    let mut calls = sequence.calls.iter();
    let packed = |tensor: &Array4<f32>| {
        let rows = tensor.index_axis(Axis(0), 0).permuted_axes([1, 0, 2]);
        rows.as_standard_layout().into_owned()
    };
    for step in &mut changed.steps {
        match step {
            Step::Append { k, v, .. } => {
                let Some(call) = calls.next() else { break };
                (*k, *v) = (packed(&call.inputs.parts().k), packed(&call.inputs.parts().v));
            }
            Step::Attend { q, .. } => {
                let Some(call) = calls.next() else { break };
                *q = packed(&call.inputs.parts().q);
            }
            Step::Fork { .. } | Step::Truncate { .. } | Step::Free { .. } => {}
        }
    }
    if let Some(call) = sequence.calls.first() {
        let (dims, parts) = (call.inputs.dims(), call.inputs.parts());
        let open = &mut changed.opening;
        (open.heads, open.kv_heads) = (dims.heads, dims.kv_heads);
        (open.head_dim, open.value_dim) = (dims.head_dim, dims.value_dim);
        (open.dtype, open.scaling) = (parts.storage, parts.scaling);
    }
    changed
}

impl Search<'_, Session> {
    /// All reductions once; whether any of them worked.
    fn round(&mut self) -> bool {
        let steps = |session: &Session| session.steps.len();
        let mut changed = self.bisect(steps, 4, &[&without_steps, &repaired_without_steps]);
        changed |= self.drop_each(|session| session.requests().len(), without_requests);
        changed |= self.drop_each(|session| session.opening.layers.len(), without_layers);
        changed |= self.drop_each(
            |session| session.opening.layers.len(),
            |session, start, end| without_layers(session, start, end).map(repaired),
        );
        changed |= self.fewer_requests();
        changed |= self.drop_each(Session::longest, without_positions);
        changed |= self.drop_each(steps, without_steps);
        changed |= self.drop_each(steps, repaired_without_steps);
        for rows in [Rows::Keys, Rows::Queries] {
            changed |=
                self.drop_each(|session| rows.count(session), |session, a, b| rows.without(session, a, b));
            changed |= self.drop_each(
                |session| rows.count(session),
                |session, a, b| rows.without(session, a, b).map(repaired),
            );
        }
        changed |= self.shorter_lengths();
        changed |= self.joined_appends();
        changed |= self.smaller_pages();
        let renumbered = renumbered(&self.current);
        changed | self.accept(Some(renumbered))
    }

    /// One request in place of two.
    fn fewer_requests(&mut self) -> bool {
        let mut changed = false;
        for old in self.current.requests() {
            for new in self.current.requests() {
                if new < old && self.accept(Some(renamed(&self.current, old, new))) {
                    changed = true;
                    break;
                }
            }
        }
        changed
    }

    /// Shorter forks and truncates.
    fn shorter_lengths(&mut self) -> bool {
        let mut changed = false;
        for index in 0..self.current.steps.len() {
            let Some(length) = self.current.steps.get(index).and_then(length_of) else { continue };
            let shorter = [0, 1, length / 2, length.saturating_sub(1)];
            for shorter in shorter.into_iter().filter(|&shorter| shorter < length) {
                let mut candidate = self.current.clone();
                if let Some(Step::Fork { length, .. } | Step::Truncate { length, .. }) =
                    candidate.steps.get_mut(index)
                {
                    *length = shorter;
                }
                if self.accept(Some(repaired(candidate))) {
                    changed = true;
                    break;
                }
            }
        }
        changed
    }

    /// Two appends to one layer, one after the other, as one.
    fn joined_appends(&mut self) -> bool {
        let mut changed = false;
        let mut index = 0;
        while index + 1 < self.current.steps.len() {
            let candidate = joined(&self.current, index);
            if self.accept(candidate) {
                changed = true;
            } else {
                index += 1;
            }
        }
        changed
    }

    /// Pages of fewer tokens, and fewer pages.
    fn smaller_pages(&mut self) -> bool {
        let mut changed = false;
        let Opening { page_size, capacity, .. } = self.current.opening;
        let pages = capacity / page_size;
        for smaller in
            (1..page_size).filter(|size| size.is_power_of_two() || *size + 1 == page_size || *size < 8)
        {
            let mut candidate = self.current.clone();
            (candidate.opening.page_size, candidate.opening.capacity) = (smaller, smaller * pages);
            if self.accept(Some(candidate)) {
                changed = true;
                break;
            }
        }
        let page_size = self.current.opening.page_size;
        for fewer in (1..pages).filter(|&fewer| fewer <= 8 || fewer == pages / 2 || fewer + 1 == pages) {
            let mut candidate = self.current.clone();
            candidate.opening.capacity = fewer * page_size;
            if self.accept(Some(candidate)) {
                return true;
            }
        }
        changed
    }
}

fn length_of(step: &Step) -> Option<usize> {
    match step {
        Step::Fork { length, .. } | Step::Truncate { length, .. } => Some(*length),
        _ => None,
    }
}

fn without_steps(session: &Session, start: usize, end: usize) -> Option<Session> {
    let mut changed = session.clone();
    changed.steps.drain(start..end);
    (!changed.steps.is_empty()).then_some(changed)
}

fn repaired_without_steps(session: &Session, start: usize, end: usize) -> Option<Session> {
    without_steps(session, start, end).map(repaired)
}

/// Without some of the requests, in the order of their numbers.
fn without_requests(session: &Session, start: usize, end: usize) -> Option<Session> {
    let dropped: BTreeSet<usize> = session.requests().into_iter().skip(start).take(end - start).collect();
    let mut changed = session.clone();
    changed.steps.retain(|step| {
        matches!(step, Step::Append { .. } | Step::Attend { .. })
            || step.requests().iter().all(|request| !dropped.contains(request))
    });
    for rows in [Rows::Keys, Rows::Queries] {
        let kept = |request: usize, _: usize| !dropped.contains(&request);
        changed = rows.with(&changed, kept);
    }
    Some(repaired(changed))
}

fn without_layers(session: &Session, start: usize, end: usize) -> Option<Session> {
    let mut changed = session.clone();
    let dropped: Vec<usize> = changed.opening.layers.drain(start..end).collect();
    changed.steps.retain(|step| step.layer().is_none_or(|layer| !dropped.contains(&layer)));
    (!changed.opening.layers.is_empty() && !changed.steps.is_empty()).then_some(changed)
}

/// Without the keys at some positions of every request, so that lengths keep their order.
fn without_positions(session: &Session, start: usize, end: usize) -> Option<Session> {
    let mut held = Held::new(&session.opening);
    let mut positions = Vec::new();
    let mut changed = session.clone();
    for (step, changed) in session.steps.iter().zip(&mut changed.steps) {
        match (step, changed) {
            (Step::Append { layer, parts, .. }, _) => {
                for &(request, count) in parts {
                    let first = held.tokens(request, *layer).len();
                    positions.extend(first..first + count);
                }
            }
            (_, Step::Fork { length, .. } | Step::Truncate { length, .. }) => {
                *length -= end.min(*length).saturating_sub(start);
            }
            _ => {}
        }
        if held.outcome(step) == Outcome::Done {
            held.apply(step);
        }
    }
    if positions.len() != Rows::Keys.count(session) {
        return None;
    }
    let changed = Rows::Keys.with(&changed, |_, row| !(start..end).contains(&positions[row]));
    (!changed.steps.is_empty()).then(|| repaired(changed))
}

/// With one request's number for another's.
fn renamed(session: &Session, old: usize, new: usize) -> Session {
    with_numbers(session, |request| if request == old { new } else { request })
}

/// The packed rows of one kind, counted through all steps.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Rows {
    Keys,
    Queries,
}

impl Rows {
    fn is_of(self, step: &Step) -> bool {
        match step {
            Step::Append { .. } => self == Self::Keys,
            Step::Attend { .. } => self == Self::Queries,
            _ => false,
        }
    }

    fn count(self, session: &Session) -> usize {
        let steps = session.steps.iter().filter(|step| self.is_of(step));
        steps.map(tensor_rows).sum()
    }

    fn without(self, session: &Session, start: usize, end: usize) -> Option<Session> {
        let changed = self.with(session, |_, row| !(start..end).contains(&row));
        (!changed.steps.is_empty()).then_some(changed)
    }

    /// The rows for which `keeps` is true of the request and their number; parts and steps without rows go.
    fn with(self, session: &Session, keeps: impl Fn(usize, usize) -> bool) -> Session {
        let mut changed = session.clone();
        let mut number = 0;
        changed.steps.retain_mut(|step| {
            if !self.is_of(step) {
                return true;
            }
            let rows = tensor_rows(step);
            let (Step::Append { parts, .. } | Step::Attend { parts, .. }) = step else { return true };
            // What does not fit its tensors must be refused, and stays as it is.
            if parts.iter().map(|(_, count)| count).sum::<usize>() != rows {
                number += rows;
                return true;
            }
            let mut kept = Vec::new();
            let mut row = 0;
            for (request, count) in parts.iter_mut() {
                let of_part: Vec<usize> =
                    (row..row + *count).filter(|row| keeps(*request, number + row)).collect();
                (row, *count) = (row + *count, of_part.len());
                kept.extend(of_part);
            }
            number += rows;
            if kept.len() < rows {
                parts.retain(|(_, count)| *count > 0);
                select_rows(step, &kept);
            }
            !kept.is_empty()
        });
        changed
    }
}

fn tensor_rows(step: &Step) -> usize {
    match step {
        Step::Append { k: tensor, .. } | Step::Attend { q: tensor, .. } => tensor.dim().0,
        _ => 0,
    }
}

fn select_rows(step: &mut Step, kept: &[usize]) {
    match step {
        Step::Append { k, v, .. } => (*k, *v) = (k.select(Axis(0), kept), v.select(Axis(0), kept)),
        Step::Attend { q, .. } => *q = q.select(Axis(0), kept),
        _ => {}
    }
}

/// A step and the next as one append; `None` where they are no appends to one layer.
fn joined(session: &Session, index: usize) -> Option<Session> {
    let (first, second) = (session.steps.get(index)?, session.steps.get(index + 1)?);
    let (
        Step::Append { layer, parts, k, v },
        Step::Append { layer: other_layer, parts: other_parts, k: other_k, v: other_v },
    ) = (first, second)
    else {
        return None;
    };
    if layer != other_layer {
        return None;
    }
    // Those of one request come together.
    let mut order: Vec<usize> = parts.iter().map(|(request, _)| *request).collect();
    order.extend(
        other_parts.iter().map(|(request, _)| request).filter(|r| !parts.iter().any(|(p, _)| p == *r)),
    );
    let rows_of = |parts: &[(usize, usize)], tensor: &Array3<f32>, request: usize| {
        let before: usize = parts.iter().take_while(|(r, _)| *r != request).map(|(_, count)| count).sum();
        let count = parts.iter().find(|(r, _)| *r == request).map_or(0, |(_, count)| *count);
        let end = (before + count).min(tensor.dim().0);
        tensor.slice_axis(Axis(0), Slice::from(before.min(end)..end)).to_owned()
    };
    let tensor = |first: &Array3<f32>, second: &Array3<f32>| {
        let rows: Vec<Array3<f32>> = order
            .iter()
            .flat_map(|&request| [rows_of(parts, first, request), rows_of(other_parts, second, request)])
            .collect();
        let views: Vec<_> = rows.iter().map(|rows| rows.view()).collect();
        ndarray::concatenate(Axis(0), &views).ok()
    };
    let (k, v) = (tensor(k, other_k)?, tensor(v, other_v)?);
    let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
    for (request, count) in parts.iter().chain(other_parts) {
        *counts.entry(*request).or_default() += count;
    }
    let parts = order.iter().map(|request| (*request, counts[request])).collect();
    let mut changed = session.clone();
    changed.steps[index] = Step::Append { layer: *layer, parts, k, v };
    changed.steps.remove(index + 1);
    Some(changed)
}

/// Requests by the numbers 1, 2 and so on, in the order in which they appear.
fn renumbered(session: &Session) -> Session {
    let mut numbers: BTreeMap<usize, usize> = BTreeMap::new();
    for request in session.steps.iter().flat_map(Step::requests) {
        let next = numbers.len() + 1;
        numbers.entry(request).or_insert(next);
    }
    with_numbers(session, |request| numbers.get(&request).copied().unwrap_or(request))
}

fn with_numbers(session: &Session, of: impl Fn(usize) -> usize) -> Session {
    let mut changed = session.clone();
    let new = |request: &mut usize| *request = of(*request);
    for step in &mut changed.steps {
        match step {
            Step::Append { parts, .. } | Step::Attend { parts, .. } => {
                parts.iter_mut().for_each(|(request, _)| new(request));
            }
            Step::Fork { from, to, .. } => [from, to].into_iter().for_each(new),
            Step::Truncate { request, .. } | Step::Free { request } => new(request),
        }
    }
    changed
}

/// A session whose lengths are no longer than what is held, without steps that must be refused, or may be.
fn repaired(mut session: Session) -> Session {
    let mut held = Held::new(&session.opening);
    session.steps.retain_mut(|step| {
        match step {
            Step::Fork { from: request, length, .. } | Step::Truncate { request, length } => {
                *length = (*length).min(held.length(*request));
            }
            Step::Attend { layer, parts, q } => {
                let mut kept = Vec::new();
                let mut row = 0;
                for (request, count) in parts.iter_mut() {
                    let (first, end) = (row, row + *count);
                    row = end;
                    *count = (*count).min(held.tokens(*request, *layer).len());
                    kept.extend(first.max(end - *count)..end);
                }
                parts.retain(|(_, count)| *count > 0);
                if kept.len() < q.dim().0 && kept.iter().all(|&row| row < q.dim().0) {
                    *q = q.select(Axis(0), &kept);
                }
            }
            Step::Append { .. } | Step::Free { .. } => {}
        }
        let done = held.outcome(step) == Outcome::Done;
        if done {
            held.apply(step);
        }
        done
    });
    session
}

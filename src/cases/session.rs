//! Sessions of a serving engine (SPEC §2.14). Requests come and go, keys are given once, and what an `attend` must answer follows
//! from what is held: the keys of each request and layer, as lists. [`Held`] is that model. It knows nothing of pages.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ndarray::{Array2, Array3, Array4, Axis};
use serde::{Deserialize, Serialize};

use super::case::{Answer, NoAnswer};
use super::sequence::{Call, Instance};
use crate::algorithm::{Detail, Error, InputParts, Inputs, Storage};

/// What a session is opened with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Opening {
    /// The layers that may be asked for, ascending.
    pub layers: Vec<usize>,
    /// The tokens that each layer has room for; a multiple of the page size.
    pub capacity: usize,
    /// Tokens of a page. Lengths are chosen around it; nothing else depends on it.
    pub page_size: usize,
    /// h
    pub heads: usize,
    /// hk
    pub kv_heads: usize,
    /// d
    pub head_dim: usize,
    /// dv
    pub value_dim: usize,
    /// The type of q, k and v.
    pub dtype: Storage,
    /// Factor of q·k in the attention; `None` means 1 / √d.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scaling: Option<f64>,
}

/// A request and how many of the packed rows are its own.
pub type Part = (usize, usize);

/// One step. Rows are packed: those of the first request first.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// New keys and values at the end of some requests in a layer. A request that is not known begins with it.
    Append {
        /// Which layer.
        layer: usize,
        /// Requests and how many keys each gets.
        parts: Vec<Part>,
        /// [t, hk, d]
        k: Array3<f32>,
        /// [t, hk, dv]
        v: Array3<f32>,
    },
    /// Queries of some requests in a layer: the last positions that each has there.
    Attend {
        /// Which layer.
        layer: usize,
        /// Requests and how many queries each has.
        parts: Vec<Part>,
        /// [t, h, d]
        q: Array3<f32>,
    },
    /// A new request that begins with the first keys of another one, in every layer.
    Fork {
        /// Whose keys.
        from: usize,
        /// The new request.
        to: usize,
        /// How many; a layer that holds fewer gives all.
        length: usize,
    },
    /// Takes back all keys but the first ones, in every layer.
    Truncate {
        /// Whose keys.
        request: usize,
        /// How many stay.
        length: usize,
    },
    /// The end of a request.
    Free {
        /// Which one.
        request: usize,
    },
}

/// An instance, and what is asked of it in one session.
#[derive(Debug, Clone, PartialEq)]
pub struct Session {
    /// Display name.
    pub name: String,
    /// What is configured.
    pub instance: Instance,
    /// How it is opened.
    pub opening: Opening,
    /// In order.
    pub steps: Vec<Step>,
}

/// What came back for a step: for an attend the answer to each request, otherwise nothing.
pub type StepAnswer = Result<Vec<Answer>, NoAnswer>;

/// What was asked and what came back, up to the first step that broke.
#[derive(Debug, Clone)]
pub struct SessionObservation {
    /// The question.
    pub session: Session,
    /// Why it could not be opened, where it could not.
    pub not_opened: Option<NoAnswer>,
    /// The answers, in order.
    pub answers: Vec<StepAnswer>,
}

/// What must come of a step.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// It is done.
    Done,
    /// It is refused, for any of these reasons, and changes nothing.
    Refused(Vec<Error>),
    /// It depends on how the implementation lays out its pages. Such steps are not asked.
    Either,
}

/// A key and its value, as one layer holds it.
#[derive(Debug, PartialEq)]
pub struct Token {
    /// [hk, d]
    pub k: Array2<f32>,
    /// [hk, dv]
    pub v: Array2<f32>,
}

/// What is held: for each request and each opened layer a list of tokens.
#[derive(Debug, Clone)]
pub struct Held {
    opening: Opening,
    requests: BTreeMap<usize, Vec<Vec<Arc<Token>>>>,
}

impl Step {
    /// Its name in the protocol.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Append { .. } => "append",
            Self::Attend { .. } => "attend",
            Self::Fork { .. } => "fork",
            Self::Truncate { .. } => "truncate",
            Self::Free { .. } => "free",
        }
    }

    /// The requests that it names.
    pub fn requests(&self) -> Vec<usize> {
        match self {
            Self::Append { parts, .. } | Self::Attend { parts, .. } => {
                parts.iter().map(|(request, _)| *request).collect()
            }
            Self::Fork { from, to, .. } => vec![*from, *to],
            Self::Truncate { request, .. } | Self::Free { request } => vec![*request],
        }
    }

    /// The layer, where it concerns one.
    pub fn layer(&self) -> Option<usize> {
        match self {
            Self::Append { layer, .. } | Self::Attend { layer, .. } => Some(*layer),
            _ => None,
        }
    }
}

impl Session {
    /// What must come of each step; `None` where that of one is not determined.
    pub fn outcomes(&self) -> Option<Vec<Outcome>> {
        let mut held = Held::new(&self.opening);
        let each = self.steps.iter().map(|step| {
            let outcome = held.outcome(step);
            if outcome == Outcome::Done {
                held.apply(step);
            }
            (outcome != Outcome::Either).then_some(outcome)
        });
        each.collect()
    }

    /// Every call that an attend which must be answered stands for, with the number of its step. Errors: those of [`Inputs::new`].
    pub fn calls(&self) -> Result<Vec<(usize, Call)>, Error> {
        let mut held = Held::new(&self.opening);
        let mut calls = Vec::new();
        for (index, step) in self.steps.iter().enumerate() {
            if held.outcome(step) == Outcome::Done {
                calls.extend(held.calls(step)?.into_iter().map(|call| (index, call)));
                held.apply(step);
            }
        }
        Ok(calls)
    }

    /// The most keys that a request ever holds in a layer.
    pub fn longest(&self) -> usize {
        let mut held = Held::new(&self.opening);
        let lengths = self.steps.iter().map(|step| {
            if held.outcome(step) == Outcome::Done {
                held.apply(step);
            }
            step.requests().iter().map(|&request| held.length(request)).max().unwrap_or(0)
        });
        lengths.max().unwrap_or(0)
    }

    /// How many rows attend.
    pub fn queries(&self) -> usize {
        let rows = |step: &Step| match step {
            Step::Attend { q, .. } => q.dim().0,
            _ => 0,
        };
        self.steps.iter().map(rows).sum()
    }

    /// Every request that is named.
    pub fn requests(&self) -> BTreeSet<usize> {
        self.steps.iter().flat_map(Step::requests).collect()
    }
}

impl Held {
    /// Nothing yet.
    pub fn new(opening: &Opening) -> Self {
        Self { opening: opening.clone(), requests: BTreeMap::new() }
    }

    /// How the session was opened.
    pub fn opening(&self) -> &Opening {
        &self.opening
    }

    /// The requests that are known, ascending.
    pub fn requests(&self) -> impl Iterator<Item = usize> + '_ {
        self.requests.keys().copied()
    }

    /// What a request holds in a layer; nothing where either is not known.
    pub fn tokens(&self, request: usize, layer: usize) -> &[Arc<Token>] {
        let layer = self.opening.layers.iter().position(|&opened| opened == layer);
        let held = layer.and_then(|layer| self.requests.get(&request)?.get(layer));
        held.map_or(&[], |tokens| &tokens[..])
    }

    /// The most keys that a request holds in any layer.
    pub fn length(&self, request: usize) -> usize {
        self.requests.get(&request).into_iter().flatten().map(Vec::len).max().unwrap_or(0)
    }

    /// What must come of a step.
    pub fn outcome(&self, step: &Step) -> Outcome {
        let faults = self.faults(step);
        if !faults.is_empty() {
            return Outcome::Refused(faults);
        }
        if self.pages_after(step).saturating_mul(self.opening.page_size) > self.opening.capacity {
            return Outcome::Either;
        }
        Outcome::Done
    }

    /// Every reason for which a step must be refused.
    fn faults(&self, step: &Step) -> Vec<Error> {
        let mut faults = Vec::new();
        let unknown = |request: &usize| !self.requests.contains_key(request);
        let no_request = |request: &usize| {
            Error::Request(Detail::new("request", request, "a request that was begun and not freed"))
        };
        let too_long = |field: &str, found: usize, most: usize| {
            (found > most).then(|| Error::Length(Detail::new(field, found, format!("at most {most}"))))
        };
        match step {
            Step::Append { layer, parts, k, v } => {
                let Opening { kv_heads, head_dim, value_dim, .. } = self.opening;
                faults.extend(self.packed_faults(*layer, parts));
                faults.extend(shape_fault("k", k, parts, [kv_heads, head_dim]));
                faults.extend(shape_fault("v", v, parts, [kv_heads, value_dim]));
                let (new, held) = (total(parts), self.distinct(*layer));
                if held.saturating_add(new) > self.opening.capacity {
                    let left = self.opening.capacity.saturating_sub(held);
                    faults.push(Error::Capacity(Detail::new("append", new, format!("at most {left} keys"))));
                }
            }
            Step::Attend { layer, parts, q } => {
                faults.extend(self.packed_faults(*layer, parts));
                faults.extend(shape_fault("q", q, parts, [self.opening.heads, self.opening.head_dim]));
                faults
                    .extend(parts.iter().map(|(request, _)| request).filter(|&r| unknown(r)).map(no_request));
                let known = parts.iter().filter(|(request, _)| !unknown(request));
                faults
                    .extend(known.filter_map(|&(r, m)| too_long("queries", m, self.tokens(r, *layer).len())));
            }
            Step::Fork { from, to, length } => {
                if unknown(from) {
                    faults.push(no_request(from));
                } else {
                    faults.extend(too_long("length", *length, self.length(*from)));
                }
                if !unknown(to) || to == from {
                    faults.push(Error::Request(Detail::new("to", to, "a request that is not in use")));
                }
            }
            Step::Truncate { request, length } => {
                if unknown(request) {
                    faults.push(no_request(request));
                } else {
                    faults.extend(too_long("length", *length, self.length(*request)));
                }
            }
            Step::Free { request } => faults.extend(unknown(request).then(|| no_request(request))),
        }
        faults
    }

    fn packed_faults(&self, layer: usize, parts: &[Part]) -> Vec<Error> {
        let mut faults = Vec::new();
        if !self.opening.layers.contains(&layer) {
            let expected = format!("one of {:?}", self.opening.layers);
            faults.push(Error::MissingLayer(Detail::new("layer", layer, expected)));
        }
        if parts.is_empty() || parts.iter().any(|(_, count)| *count == 0) {
            faults.push(Error::Shape(Detail::new(
                "requests",
                format!("{parts:?}"),
                "at least one row of each",
            )));
        }
        let mut named = BTreeSet::new();
        if let Some((twice, _)) = parts.iter().find(|(request, _)| !named.insert(*request)) {
            faults.push(Error::Request(Detail::new(
                "request",
                format!("{twice} twice"),
                "each request once",
            )));
        }
        faults
    }

    /// How many tokens a layer holds, those that requests share counted once.
    fn distinct(&self, layer: usize) -> usize {
        let tokens = self.requests.keys().flat_map(|&request| self.tokens(request, layer));
        tokens.map(Arc::as_ptr).collect::<BTreeSet<_>>().len()
    }

    /// Pages of all requests after a step, if none is shared and each request has as many in every layer.
    fn pages_after(&self, step: &Step) -> usize {
        let mut lengths: BTreeMap<usize, usize> =
            self.requests.keys().map(|&request| (request, self.length(request))).collect();
        match step {
            Step::Append { layer, parts, .. } => {
                for &(request, count) in parts {
                    let length = lengths.entry(request).or_default();
                    *length = (*length).max(self.tokens(request, *layer).len() + count);
                }
            }
            Step::Fork { to, length, .. } => {
                lengths.insert(*to, *length);
            }
            // These take no room.
            Step::Attend { .. } | Step::Truncate { .. } | Step::Free { .. } => return 0,
        }
        lengths.values().map(|length| length.div_ceil(self.opening.page_size)).sum()
    }

    /// Does a step that must be done.
    pub fn apply(&mut self, step: &Step) {
        let Opening { layers, .. } = &self.opening;
        match step {
            Step::Append { layer, parts, k, v } => {
                let Some(place) = layers.iter().position(|opened| opened == layer) else { return };
                let count = layers.len();
                let mut row = 0;
                for &(request, new) in parts {
                    let held = self.requests.entry(request).or_insert_with(|| vec![Vec::new(); count]);
                    held[place].extend((row..row + new).map(|row| {
                        let of = |tensor: &Array3<f32>| tensor.index_axis(Axis(0), row).to_owned();
                        Arc::new(Token { k: of(k), v: of(v) })
                    }));
                    row += new;
                }
            }
            Step::Attend { .. } => {}
            Step::Fork { from, to, length } => {
                let Some(mut copy) = self.requests.get(from).cloned() else { return };
                copy.iter_mut().for_each(|tokens| tokens.truncate(*length));
                self.requests.insert(*to, copy);
            }
            Step::Truncate { request, length } => {
                for tokens in self.requests.get_mut(request).into_iter().flatten() {
                    tokens.truncate(*length);
                }
            }
            Step::Free { request } => {
                self.requests.remove(request);
            }
        }
    }

    /// What an attend that must be answered asks of each request: a call with all of its keys. Other steps ask nothing.
    ///
    /// Errors: those of [`Inputs::new`].
    pub fn calls(&self, step: &Step) -> Result<Vec<Call>, Error> {
        let Step::Attend { layer, parts, q } = step else { return Ok(Vec::new()) };
        let mut row = 0;
        let of_part = |&(request, queries): &Part| {
            let rows = row..row + queries;
            row += queries;
            let q = Array4::from_shape_fn(
                (1, self.opening.heads, queries, self.opening.head_dim),
                |(_, h, i, c)| q[[rows.start + i, h, c]],
            );
            self.call(*layer, self.tokens(request, *layer), q)
        };
        parts.iter().map(of_part).collect()
    }

    fn call(&self, layer: usize, tokens: &[Arc<Token>], q: Array4<f32>) -> Result<Call, Error> {
        let Opening { kv_heads, head_dim, value_dim, dtype, scaling, .. } = self.opening;
        let n = tokens.len();
        let gathered = |width: usize, of: fn(&Token) -> &Array2<f32>| {
            Array4::from_shape_fn((1, kv_heads, n, width), |(_, head, key, c)| of(&tokens[key])[[head, c]])
        };
        let inputs = Inputs::new(InputParts {
            q,
            k: gathered(head_dim, |token| &token.k),
            v: gathered(value_dim, |token| &token.v),
            attention_mask: None,
            causal: true,
            storage: dtype,
            scaling,
        })?;
        Ok(Call { layer, inputs: Arc::new(inputs), previous: None })
    }

    /// Does a step as one must who has an implementation of calls: checks it, keeps dense keys, and asks a call for each request of
    /// an attend.
    ///
    /// Errors: the first reason for a refusal, and those of the calls.
    pub fn step(
        &mut self,
        step: &Step,
        mut call: impl FnMut(&Call) -> Result<Answer, NoAnswer>,
    ) -> StepAnswer {
        if let Some(fault) = self.faults(step).into_iter().next() {
            return Err(fault.into());
        }
        let answers = self.calls(step)?.iter().map(&mut call).collect::<Result<_, _>>()?;
        self.apply(step);
        Ok(answers)
    }
}

fn total(parts: &[Part]) -> usize {
    parts.iter().map(|(_, count)| *count).fold(0, usize::saturating_add)
}

fn shape_fault(
    name: &str,
    tensor: &Array3<f32>,
    parts: &[Part],
    [heads, width]: [usize; 2],
) -> Option<Error> {
    let expected = [total(parts), heads, width];
    let detail = || Detail::new(name, format!("shape {:?}", tensor.shape()), format!("{expected:?}"));
    (tensor.shape() != expected).then(|| Error::Shape(detail()))
}

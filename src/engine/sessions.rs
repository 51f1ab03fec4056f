//! Sessions (SPEC §2.14): one [`Engine`] for each request and layer. Pages are its chunks of keys, values and labels: requests that
//! were forked share them by reference, and one that is shared is copied when it is written. Room is counted in tokens, those that
//! are shared once; the free pages are the allocator's.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use ndarray::{ArrayView3, ArrayView4, Axis, Slice};

use super::query::{Query, stored};
use super::{Engine, EngineMasker, Layout, Step};
use crate::algorithm::error::Result;
use crate::algorithm::{Detail, Error, Storage};

/// What one layer holds of a request.
#[derive(Debug, Clone)]
struct Held {
    engine: Engine,
    /// The numbers of its tokens; requests share those that they have in common.
    tokens: Vec<Range<u64>>,
}

/// The caches of many requests.
#[derive(Debug, Clone)]
pub struct Sessions {
    /// An empty cache for each layer.
    layers: BTreeMap<usize, Engine>,
    storage: Storage,
    capacity: usize,
    requests: BTreeMap<usize, BTreeMap<usize, Held>>,
    /// Tokens so far.
    tokens: u64,
}

impl Sessions {
    /// No requests yet. `layout` has a batch of 1; `capacity` is the tokens that each layer has room for.
    ///
    /// Errors: those of [`Engine::new`].
    pub fn new(layout: Layout, layers: Vec<(usize, Vec<EngineMasker>)>, capacity: usize) -> Result<Self> {
        let engine = |(layer, maskers)| Ok((layer, Engine::new(layout, maskers)?));
        let layers = layers.into_iter().map(engine).collect::<Result<_>>()?;
        Ok(Self { layers, storage: layout.storage, capacity, requests: BTreeMap::new(), tokens: 0 })
    }

    /// The memory that all requests take, in bytes, what they share counted for each.
    pub fn bytes(&self) -> usize {
        let held = self.requests.values().flat_map(BTreeMap::values);
        held.map(|held| held.engine.bytes().labels + held.engine.bytes().rows).sum()
    }

    /// Appends packed keys [t, hk, d] and values [t, hk, dv], so many for each request. Where an error is returned, nothing is
    /// appended.
    ///
    /// Errors: [`Error::MissingLayer`], [`Error::Request`] for one named twice, [`Error::Shape`], [`Error::Capacity`], and
    /// [`Error::NotFinite`] as of [`Engine::append`].
    pub fn append(
        &mut self,
        layer: usize,
        requests: &[(usize, usize)],
        k: ArrayView3<f32>,
        v: ArrayView3<f32>,
    ) -> Result<()> {
        let empty = self.layer(layer)?.clone();
        let parts = parts(requests, &[k.dim().0, v.dim().0])?;
        let (held, new) = (self.distinct(layer), k.dim().0);
        if held + new > self.capacity {
            let left = self.capacity.saturating_sub(held);
            return Err(Error::Capacity(Detail::new("append", new, format!("at most {left} keys"))));
        }
        let (k, v) = (heads_first(&k), heads_first(&v));
        let (k, v) = (stored("k", k, self.storage)?, stored("v", v, self.storage)?);
        // The shapes, before anything is written.
        empty.clone().append(k.view(), v.view())?;
        for ((request, count), rows) in requests.iter().zip(parts) {
            let of_part =
                |tensor: ArrayView4<f32>| tensor.slice_axis(Axis(2), Slice::from(rows.clone())).to_owned();
            let new = || Held { engine: empty.clone(), tokens: Vec::new() };
            let held = self.requests.entry(*request).or_default().entry(layer).or_insert_with(new);
            held.engine.append(of_part(k.view()).view(), of_part(v.view()).view())?;
            held.tokens.push(self.tokens..self.tokens + *count as u64);
            self.tokens += *count as u64;
        }
        Ok(())
    }

    /// Selects and attends with packed queries [t, h, d], the last positions of each request: a step for each of them.
    ///
    /// Errors: [`Error::MissingLayer`], [`Error::Request`], [`Error::Shape`], [`Error::Length`] for more queries than keys, and
    /// those of [`Engine::step`].
    pub fn attend(
        &self,
        layer: usize,
        requests: &[(usize, usize)],
        q: ArrayView3<f32>,
        scaling: Option<f64>,
    ) -> Result<Vec<Step>> {
        let empty = self.layer(layer)?;
        let parts = parts(requests, &[q.dim().0])?;
        let q = heads_first(&q);
        let step = |(&(request, count), rows): (&(usize, usize), Range<usize>)| {
            let engine = self.known(request)?.get(&layer).map_or(empty, |held| &held.engine);
            if count > engine.keys() {
                let most = format!("at most {}", engine.keys());
                return Err(Error::Length(Detail::new("queries", count, most)));
            }
            let q = q.slice_axis(Axis(2), Slice::from(rows));
            engine.step(&Query { scaling, ..Query::causal(q) })
        };
        requests.iter().zip(parts).map(step).collect()
    }

    /// A new request with the first keys of another one, in every layer.
    ///
    /// Errors: [`Error::Request`], [`Error::Length`].
    pub fn fork(&mut self, from: usize, to: usize, length: usize) -> Result<()> {
        let mut copy = self.known(from)?.clone();
        if self.requests.contains_key(&to) {
            return Err(Error::Request(Detail::new("to", to, "a request that is not in use")));
        }
        shorten(&mut copy, length)?;
        self.requests.insert(to, copy);
        Ok(())
    }

    /// Takes back all keys but the first ones, in every layer.
    ///
    /// Errors: [`Error::Request`], [`Error::Length`].
    pub fn truncate(&mut self, request: usize, length: usize) -> Result<()> {
        self.known(request)?;
        self.requests.get_mut(&request).map_or(Ok(()), |held| shorten(held, length))
    }

    /// The end of a request. Errors: [`Error::Request`].
    pub fn free(&mut self, request: usize) -> Result<()> {
        self.known(request)?;
        self.requests.remove(&request);
        Ok(())
    }

    fn layer(&self, layer: usize) -> Result<&Engine> {
        let expected = || format!("one of {:?}", self.layers.keys().collect::<Vec<_>>());
        self.layers.get(&layer).ok_or_else(|| Error::MissingLayer(Detail::new("layer", layer, expected())))
    }

    fn known(&self, request: usize) -> Result<&BTreeMap<usize, Held>> {
        let expected = "a request that was begun and not freed";
        self.requests.get(&request).ok_or_else(|| Error::Request(Detail::new("request", request, expected)))
    }

    /// Tokens that a layer holds, those that requests share counted once.
    fn distinct(&self, layer: usize) -> usize {
        let held = self.requests.values().filter_map(|layers| layers.get(&layer));
        let mut runs: Vec<&Range<u64>> = held.flat_map(|held| &held.tokens).collect();
        runs.sort_by_key(|run| (run.start, run.end));
        let (mut count, mut end) = (0, 0);
        for run in runs {
            count += run.end.saturating_sub(run.start.max(end));
            end = end.max(run.end);
        }
        count as usize
    }
}

/// The rows of each request. Errors: [`Error::Request`] for one named twice, [`Error::Shape`] for none, or tensors of other rows.
fn parts(requests: &[(usize, usize)], rows: &[usize]) -> Result<Vec<Range<usize>>> {
    let mut named = BTreeSet::new();
    if let Some((twice, _)) = requests.iter().find(|(request, _)| !named.insert(*request)) {
        return Err(Error::Request(Detail::new("request", format!("{twice} twice"), "each request once")));
    }
    let mut end = 0usize;
    let ends = requests.iter().map(|(_, count)| {
        let start = end;
        end = end.saturating_add(*count);
        start..end
    });
    let parts: Vec<Range<usize>> = ends.collect();
    let empty = parts.is_empty() || parts.iter().any(Range::is_empty);
    if empty || rows.iter().any(|&rows| rows != end) {
        let found = format!("{rows:?} rows for {requests:?}");
        return Err(Error::Shape(Detail::new(
            "requests",
            found,
            "at least one row of each, as many as are packed",
        )));
    }
    Ok(parts)
}

/// [t, h, d] as [1, h, t, d].
fn heads_first<'a>(rows: &'a ArrayView3<f32>) -> ArrayView4<'a, f32> {
    rows.view().permuted_axes([1, 0, 2]).insert_axis(Axis(0))
}

fn shorten(layers: &mut BTreeMap<usize, Held>, length: usize) -> Result<()> {
    let most = layers.values().map(|held| held.engine.keys()).max().unwrap_or(0);
    if length > most {
        return Err(Error::Length(Detail::new("length", length, format!("at most {most}"))));
    }
    for held in layers.values_mut() {
        held.engine.truncate(length);
        let mut left = length as u64;
        for run in &mut held.tokens {
            run.end = run.end.min(run.start + left);
            left -= run.end - run.start;
        }
        held.tokens.retain(|run| !run.is_empty());
    }
    Ok(())
}

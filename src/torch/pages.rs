//! Keys, values and labels of many requests in pages (SPEC §2.14): each layer has one pool of as many pages as its capacity asks for,
//! and each request a table of the pages that hold its keys, in order. A fork shares pages; one that is shared is copied before it is
//! written. What is read for a request is gathered from its pages into the order of its keys.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use tch::{Device, Tensor};

use super::error::Result;
use crate::algorithm::{Detail, Error};

/// Which pages hold the keys of a request in one layer.
#[derive(Debug, Clone, Default)]
struct Table {
    pages: Vec<usize>,
    length: usize,
}

/// A page to copy, and where to.
type Copied = Option<(usize, usize)>;

/// Who holds which pages of one layer.
#[derive(Debug, Clone)]
struct Holders {
    page_size: usize,
    /// How many tables name each page.
    counts: Vec<usize>,
    /// Pages that none names; the last is given out first.
    free: Vec<usize>,
    requests: BTreeMap<usize, Table>,
}

/// The pages of one layer: what they hold, and who holds them.
#[derive(Debug)]
struct Pool {
    holders: Holders,
    /// [pages · page size, ·] for each kind of row, made with the first rows.
    rows: Vec<Tensor>,
}

/// Rows of many requests and layers.
#[derive(Debug)]
pub struct Pages {
    pools: BTreeMap<usize, Pool>,
    /// Requests that have begun.
    known: BTreeSet<usize>,
    device: Device,
}

impl Pages {
    /// No requests yet; room for `capacity` tokens in each layer, a multiple of the page size.
    pub fn new(layers: &[usize], capacity: usize, page_size: usize, device: Device) -> Self {
        let pages = capacity / page_size;
        let holders = Holders {
            page_size,
            counts: vec![0; pages],
            free: (0..pages).rev().collect(),
            requests: BTreeMap::new(),
        };
        let pool = |&layer: &usize| (layer, Pool { holders: holders.clone(), rows: Vec::new() });
        Self { pools: layers.iter().map(pool).collect(), known: BTreeSet::new(), device }
    }

    /// Appends rows [t, ·] of each kind, so many for each request. Where an error is returned, nothing is appended.
    ///
    /// Errors: [`Error::MissingLayer`], those of [`parts`], [`Error::Capacity`]; those of libtorch.
    pub fn append(&mut self, layer: usize, requests: &[(usize, usize)], rows: &[Tensor]) -> Result<()> {
        let count = rows.first().map_or(0, |rows| rows.size()[0] as usize);
        let parts = parts(requests, count)?;
        let device = self.device;
        let pool = self.pool_mut(layer)?;
        let mut holders = pool.holders.clone();
        let (mut slots, mut copies) = (Vec::new(), Vec::new());
        for ((request, _), part) in requests.iter().zip(parts) {
            let (of_request, copied) = holders.extend(*request, part.len())?;
            slots.extend(of_request);
            copies.extend(copied);
        }
        if pool.rows.is_empty() {
            let places = (holders.counts.len() * holders.page_size) as i64;
            let pool_of = |rows: &Tensor| rows.f_new_zeros([places, rows.size()[1]], (rows.kind(), device));
            pool.rows = rows.iter().map(pool_of).collect::<std::result::Result<_, _>>()?;
        }
        let index = |slots: &[usize]| index(slots, device);
        // One after the other: a page that was copied may be written in the same step.
        for (from, to) in copies {
            let page =
                |page: usize| (page * holders.page_size..(page + 1) * holders.page_size).collect::<Vec<_>>();
            for rows in &mut pool.rows {
                let copied = rows.f_index_select(0, &index(&page(from))?)?;
                let _ = rows.f_index_copy_(0, &index(&page(to))?, &copied)?;
            }
        }
        for (pool, rows) in pool.rows.iter_mut().zip(rows) {
            let _ = pool.f_index_copy_(0, &index(&slots)?, rows)?;
        }
        pool.holders = holders;
        self.known.extend(requests.iter().map(|(request, _)| request));
        Ok(())
    }

    /// The rows of each kind that a layer holds of a request, in the order of its keys: [n, ·]. Nothing where it holds none.
    ///
    /// Errors: [`Error::MissingLayer`], [`Error::Request`]; those of libtorch.
    pub fn rows(&self, layer: usize, request: usize) -> Result<Vec<Tensor>> {
        let pool = self.pool(layer)?;
        self.check_known(request)?;
        let Some(table) = pool.holders.requests.get(&request).filter(|table| table.length > 0) else {
            return Ok(Vec::new());
        };
        let slots: Vec<usize> = (0..table.length).map(|key| pool.holders.slot(table, key)).collect();
        let index = index(&slots, self.device)?;
        Ok(pool
            .rows
            .iter()
            .map(|rows| rows.f_index_select(0, &index))
            .collect::<std::result::Result<_, _>>()?)
    }

    /// Refuses a layer that was not opened.
    pub fn check_layer(&self, layer: usize) -> std::result::Result<(), Error> {
        self.pool(layer).map(|_| ())
    }

    /// A new request with the first keys of another one, in every layer. Errors: [`Error::Request`], [`Error::Length`].
    pub fn fork(&mut self, from: usize, to: usize, length: usize) -> std::result::Result<(), Error> {
        self.check_length(from, length)?;
        if self.known.contains(&to) {
            return Err(Error::Request(Detail::new("to", to, "a request that is not in use")));
        }
        for pool in self.pools.values_mut() {
            let holders = &mut pool.holders;
            let Some(mut table) = holders.requests.get(&from).cloned() else { continue };
            table.length = table.length.min(length);
            table.pages.truncate(table.length.div_ceil(holders.page_size));
            table.pages.iter().for_each(|&page| holders.counts[page] += 1);
            holders.requests.insert(to, table);
        }
        self.known.insert(to);
        Ok(())
    }

    /// Takes back all keys but the first ones, in every layer. Errors: [`Error::Request`], [`Error::Length`].
    pub fn truncate(&mut self, request: usize, length: usize) -> std::result::Result<(), Error> {
        self.check_length(request, length)?;
        self.pools.values_mut().for_each(|pool| pool.holders.shorten(request, length));
        Ok(())
    }

    /// The end of a request. Errors: [`Error::Request`].
    pub fn free(&mut self, request: usize) -> std::result::Result<(), Error> {
        self.check_known(request)?;
        for pool in self.pools.values_mut() {
            pool.holders.shorten(request, 0);
            pool.holders.requests.remove(&request);
        }
        self.known.remove(&request);
        Ok(())
    }

    /// Pages that requests hold, over all layers.
    pub fn pages_held(&self) -> usize {
        self.pools.values().map(|pool| pool.holders.counts.len() - pool.holders.free.len()).sum()
    }

    fn pool(&self, layer: usize) -> std::result::Result<&Pool, Error> {
        self.pools.get(&layer).ok_or_else(|| self.missing(layer))
    }

    fn pool_mut(&mut self, layer: usize) -> std::result::Result<&mut Pool, Error> {
        let missing = self.missing(layer);
        self.pools.get_mut(&layer).ok_or(missing)
    }

    fn missing(&self, layer: usize) -> Error {
        let expected = format!("one of {:?}", self.pools.keys().collect::<Vec<_>>());
        Error::MissingLayer(Detail::new("layer", layer, expected))
    }

    fn check_known(&self, request: usize) -> std::result::Result<(), Error> {
        let expected = "a request that was begun and not freed";
        let known = self.known.contains(&request);
        known.then_some(()).ok_or_else(|| Error::Request(Detail::new("request", request, expected)))
    }

    fn check_length(&self, request: usize, length: usize) -> std::result::Result<(), Error> {
        self.check_known(request)?;
        let tables = self.pools.values().filter_map(|pool| pool.holders.requests.get(&request));
        let most = tables.map(|table| table.length).max().unwrap_or(0);
        let fits = length <= most;
        fits.then_some(())
            .ok_or_else(|| Error::Length(Detail::new("length", length, format!("at most {most}"))))
    }
}

impl Holders {
    /// Where a key lies.
    fn slot(&self, table: &Table, key: usize) -> usize {
        table.pages[key / self.page_size] * self.page_size + key % self.page_size
    }

    /// Room for so many more keys of a request: their slots, and pages to copy, from and to. Errors: [`Error::Capacity`].
    fn extend(&mut self, request: usize, count: usize) -> std::result::Result<(Vec<usize>, Copied), Error> {
        let mut table = self.requests.remove(&request).unwrap_or_default();
        let start = table.length;
        let mut copied = None;
        if let Some(last) = table.pages.last_mut().filter(|_| !start.is_multiple_of(self.page_size))
            && self.counts[*last] > 1
        {
            self.counts[*last] -= 1;
            let own = self.take(count)?;
            copied = Some((std::mem::replace(last, own), own));
        }
        table.length += count;
        while table.pages.len() * self.page_size < table.length {
            table.pages.push(self.take(count)?);
        }
        let slots = (start..table.length).map(|key| self.slot(&table, key)).collect();
        self.requests.insert(request, table);
        Ok((slots, copied))
    }

    /// A free page, for one holder.
    fn take(&mut self, keys: usize) -> std::result::Result<usize, Error> {
        let page = self.free.pop();
        let page =
            page.ok_or_else(|| Error::Capacity(Detail::new("append", keys, "fewer keys: no page is free")))?;
        self.counts[page] = 1;
        Ok(page)
    }

    fn shorten(&mut self, request: usize, length: usize) {
        let Some(table) = self.requests.get_mut(&request) else { return };
        table.length = table.length.min(length);
        for page in table.pages.split_off(table.length.div_ceil(self.page_size)) {
            self.counts[page] -= 1;
            if self.counts[page] == 0 {
                self.free.push(page);
            }
        }
    }
}

fn index(slots: &[usize], device: Device) -> Result<Tensor> {
    let slots: Vec<i64> = slots.iter().map(|&slot| slot as i64).collect();
    Ok(Tensor::f_from_slice(&slots)?.f_to_device(device)?)
}

/// Which of the packed rows belong to each request.
///
/// Errors: [`Error::Request`] for one that is named twice; [`Error::Shape`] for none, or for another number of rows.
pub fn parts(requests: &[(usize, usize)], rows: usize) -> std::result::Result<Vec<Range<usize>>, Error> {
    let mut seen = BTreeSet::new();
    for (request, _) in requests {
        if !seen.insert(request) {
            return Err(Error::Request(Detail::new(
                "request",
                format!("{request} twice"),
                "each request once",
            )));
        }
    }
    let mut parts = Vec::new();
    let mut next = 0usize;
    for &(_, count) in requests {
        let end = next.saturating_add(count);
        parts.push(next..end);
        next = end;
    }
    if next != rows || parts.is_empty() || parts.iter().any(|part| part.is_empty()) {
        let found = format!("{rows} rows for {requests:?}");
        return Err(Error::Shape(Detail::new(
            "requests",
            found,
            "as many rows as all requests have, at least one each",
        )));
    }
    Ok(parts)
}

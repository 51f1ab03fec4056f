//! SPEC §2.3 to §2.9 over a label cache: one [`Codes`] for each KV head and each row of channels that reads it, and the
//! selection. The published head modes score a key by a sum of terms, each a query's factors times the labels of one cache:
//! one term in `per-head`, one for each head in `summed-scores`, one for each KV head in `summed-labels`.
//!
//! Two passes give exactly the reference's selection, ties included: the first scores all keys in f32 from the codes,
//! with a proven error bound, which leaves a few keys around the threshold open; the second scores those as the
//! reference does, in f64 and from the labels of SPEC §2.5.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use super::attended::Attended;
use super::codes::{BLOCK, CHUNK, Codes, Term};
use super::query::Checked;
use super::rows::Rows;
use super::top::{Sorted, Top};
use crate::algorithm::error::Result;
use crate::algorithm::select::select;
use crate::algorithm::{ChannelOrder, Detail, Dims, Error, HeadMode, Row, Selection, Storage};
use crate::compute;

/// Keys that are compared with the threshold together.
const LANES: usize = 16;

/// The label cache of one Double Sparsity masker.
#[derive(Debug, Clone)]
pub struct LabelCache {
    selection: Selection,
    /// For each cache of one batch entry, the KV head that it belongs to.
    kv_heads: Vec<usize>,
    /// For each query head, which of these caches it reads.
    of_head: Vec<usize>,
    /// [b, caches of one batch entry]
    codes: Vec<Codes>,
    /// The first key whose labels leave the storage type, and its position; an error only for a step that needs labels.
    refused: Option<(usize, Error)>,
}

/// One row to be ranked; in the summed modes one for all heads.
struct Line {
    row: Row,
    terms: Vec<Term>,
    /// How many keys causality leaves.
    visible: usize,
    /// Keys below `visible` that are no candidates, ascending.
    excluded: Vec<usize>,
    /// Whether all keys must be scored exactly.
    open: bool,
}

impl LabelCache {
    /// An empty cache. Errors: G not dividing d, channels that do not fit, anything but the published algorithm,
    /// `summed-labels` without shared channels.
    pub fn new(dims: &Dims, channels: &ChannelOrder, selection: Selection, storage: Storage) -> Result<Self> {
        let label_channels = selection.group_factor.label_channels(dims.head_dim)?;
        channels.check(dims, label_channels)?;
        selection.check_plain()?;
        if selection.heads == HeadMode::SummedLabels && !channels.is_shared(label_channels) {
            let found = "summed-labels with channel rows that differ between heads";
            let expected = "one channel row shared by all heads";
            return Err(Error::HeadMode(Detail::new("heads", found, expected)));
        }
        let mut caches: Vec<(usize, &[usize])> = Vec::new();
        let mut of_head = Vec::new();
        for head in 0..dims.heads {
            let wanted = (dims.kv_head(head), &channels.row(head, dims)[..label_channels]);
            let found = caches.iter().position(|cache| *cache == wanted);
            of_head.push(found.unwrap_or(caches.len()));
            if found.is_none() {
                caches.push(wanted);
            }
        }
        let empty =
            |(_, channels): &(usize, &[usize])| Codes::new(channels.to_vec(), selection.label_bits, storage);
        let codes = (0..dims.batch).flat_map(|_| caches.iter().map(empty)).collect();
        let kv_heads = caches.iter().map(|cache| cache.0).collect();
        Ok(Self { selection, kv_heads, of_head, codes, refused: None })
    }

    /// Adds keys, [b, hk, t, d] of values of the storage type, at positions `first` and above.
    pub fn append(&mut self, keys: &ndarray::Array4<f32>, first: usize) {
        let caches = self.kv_heads.len();
        let jobs: Vec<_> = self.codes.iter_mut().enumerate().collect();
        let errors = compute::map(jobs, keys.len() * caches, |(index, codes)| {
            let (batch, cache) = (index / caches, index % caches);
            let mut refused = None;
            let keys = keys.slice(ndarray::s![batch, self.kv_heads[cache], .., ..]);
            for (position, key) in keys.outer_iter().enumerate() {
                if let Err(error) = codes.push(key.to_slice().unwrap_or_default())
                    && refused.is_none()
                {
                    refused = Some((first + position, error.at_label("k", [batch, cache, first + position])));
                }
            }
            refused
        });
        if self.refused.is_none() {
            self.refused = errors.into_iter().flatten().next();
        }
    }

    /// Takes back all keys but the first `len`.
    pub fn truncate(&mut self, len: usize) {
        self.codes.iter_mut().for_each(|codes| codes.truncate(len));
        self.refused = self.refused.take().filter(|(position, _)| *position < len);
    }

    /// The memory that it takes, in bytes.
    pub fn bytes(&self) -> usize {
        self.codes.iter().map(Codes::bytes).sum()
    }

    /// The cache that a query head reads.
    pub fn codes(&self, batch: usize, head: usize) -> &Codes {
        &self.codes[batch * self.kv_heads.len() + self.of_head[head]]
    }

    /// The keys that each row (batch, head, query) selects, ascending; empty lists where an early out of SPEC §2.2 leaves
    /// nothing to select. `rows` are those of each (batch, KV head), `attended` those of each row so far.
    ///
    /// Errors: [`Error::LabelRange`]; [`Error::HeadMode`] for `summed-labels` with an A that differs between heads.
    pub fn select(&self, query: &Checked, rows: &[Rows], attended: &[Attended]) -> Result<Vec<Vec<usize>>> {
        let dims = query.dims;
        if self.selection.heads == HeadMode::SummedLabels && query.mask_differs_between_heads() {
            let found = "summed-labels with an attention_mask that differs between heads";
            let expected = "one attention_mask for all heads, as labels are scored once";
            return Err(Error::HeadMode(Detail::new("heads", found, expected)));
        }
        if attended.iter().all(|row| row.keys.len() == dims.keys) {
            return Ok(vec![Vec::new(); attended.len()]);
        }
        let heavy_size = self.selection.heavy_size.resolve(dims.keys);
        if self.selection.dense_fallback && dims.keys - dims.queries <= heavy_size {
            return Ok(vec![(0..dims.keys).collect(); attended.len()]);
        }
        let labels = dims.rows().map(|row @ (batch, head, i)| {
            self.codes(batch, head)
                .labels(query.q(row))
                .map_err(|error| error.at_label("q", [batch, head, i]))
        });
        let labels = labels.collect::<Result<Vec<_>>>()?;
        if let Some((_, error)) = &self.refused {
            return Err(error.clone());
        }
        let ranking = Ranking { cache: self, query, rows, attended, labels, heavy_size };
        let mut keys = vec![Vec::new(); attended.len()];
        for (row, selected) in ranking.rank(ranking.jobs())? {
            for head in ranking.heads_of(row) {
                keys[index(&dims, (row.0, head, row.2))] = selected.clone();
            }
        }
        Ok(keys)
    }
}

/// The index of a row among all rows, in row-major order.
pub fn index(dims: &Dims, (batch, head, query): Row) -> usize {
    (batch * dims.heads + head) * dims.queries + query
}

/// The selection of one step.
struct Ranking<'a, 'q> {
    cache: &'a LabelCache,
    query: &'a Checked<'q>,
    rows: &'a [Rows],
    attended: &'a [Attended],
    /// q̂ of each row.
    labels: Vec<Vec<f32>>,
    heavy_size: usize,
}

impl Ranking<'_, '_> {
    fn mode(&self) -> HeadMode {
        self.cache.selection.heads
    }

    /// The heads that a line selects for.
    fn heads_of(&self, row: Row) -> Range<usize> {
        match self.mode() {
            HeadMode::PerHead => row.1..row.1 + 1,
            _ => 0..self.query.dims.heads,
        }
    }

    fn q_label(&self, row: Row) -> &[f32] {
        &self.labels[index(&self.query.dims, row)]
    }

    /// Lines that read the same codes share a job, so that these are read once.
    fn jobs(&self) -> Vec<Vec<Line>> {
        let dims = self.query.dims;
        let lines = dims.rows().filter(|row| self.mode() == HeadMode::PerHead || row.1 == 0);
        let mut jobs: Vec<Vec<Line>> = Vec::new();
        let mut job_of_codes = vec![None; self.cache.codes.len()];
        for line in lines.map(|row| self.line(row)) {
            let [term] = line.terms.as_slice() else {
                jobs.push(vec![line]);
                continue;
            };
            match job_of_codes[term.codes] {
                Some(job) => {
                    let lines: &mut Vec<Line> = &mut jobs[job];
                    lines.push(line);
                }
                None => {
                    job_of_codes[term.codes] = Some(jobs.len());
                    jobs.push(vec![line]);
                }
            }
        }
        jobs
    }

    fn line(&self, row @ (batch, _, i): Row) -> Line {
        let terms = self.terms(row);
        let visible = self.query.visible(i);
        let mut excluded = Vec::new();
        let mut open = terms.iter().any(|term| !term.fits(&self.cache.codes[term.codes]));
        for head in self.heads_of(row) {
            let row = (batch, head, i);
            let before = &self.attended[index(&self.query.dims, row)].keys;
            excluded.extend(before.iter().copied().take_while(|&key| key < visible));
            if self.query.has_mask() {
                for key in 0..visible {
                    let additive = self.query.additive(row, key);
                    if additive == f32::NEG_INFINITY {
                        excluded.push(key);
                    } else {
                        open |= additive != 0.0;
                    }
                }
            }
        }
        excluded.sort_unstable();
        excluded.dedup();
        Line { row, terms, visible, excluded, open }
    }

    fn terms(&self, row @ (batch, _, i): Row) -> Vec<Term> {
        let (cache, group) = (self.cache, self.query.dims.group_size());
        let caches = cache.kv_heads.len();
        let root = |labels: &[f32]| (labels.len() as f64).sqrt();
        if self.mode() == HeadMode::SummedLabels {
            let summed = self.summed_q(row);
            let root = (summed.len() as f64).sqrt();
            let factors: Vec<f64> = summed.iter().map(|q| q * group as f64 / root).collect();
            return (0..caches).map(|codes| Term::new(batch * caches + codes, &factors, caches)).collect();
        }
        let heads = self.heads_of(row);
        let count = heads.len();
        let term = |head: usize| {
            let labels = self.q_label((batch, head, i));
            let factors: Vec<f64> = labels.iter().map(|&q| f64::from(q) / root(labels)).collect();
            Term::new(batch * caches + cache.of_head[head], &factors, count)
        };
        heads.map(term).collect()
    }

    /// q̂ summed over heads, as the reference sums it.
    fn summed_q(&self, (batch, _, i): Row) -> Vec<f64> {
        let mut sum = vec![0.0; self.q_label((batch, 0, i)).len()];
        for head in 0..self.query.dims.heads {
            let labels = self.q_label((batch, head, i));
            sum.iter_mut().zip(labels).for_each(|(sum, &q)| *sum += f64::from(q));
        }
        sum
    }

    /// The keys that each line selects, ascending. Where there are fewer jobs than threads, each is split by chunks.
    fn rank(&self, jobs: Vec<Vec<Line>>) -> Result<Vec<(Row, Vec<usize>)>> {
        let (chunks, work) = (self.query.dims.keys.div_ceil(CHUNK), self.query.dims.operations());
        let pieces = rayon::current_num_threads().div_ceil(jobs.len().max(1)).min(chunks);
        let length = chunks.div_ceil(pieces.max(1));
        let piece = |piece: usize| piece * length..chunks.min((piece + 1) * length);
        let parts = (0..jobs.len()).flat_map(|job| (0..pieces).map(move |part| (job, part))).collect();
        let mut tops = compute::map(parts, work, |(job, part): (usize, usize)| {
            Arch::new().dispatch(Sort { ranking: self, lines: &jobs[job], chunks: piece(part) })
        })
        .into_iter();
        let mut lines = Vec::new();
        for job in jobs {
            let merge = |a: Vec<Top>, b: Vec<Top>| a.into_iter().zip(b).map(|(a, b)| a.merge(b)).collect();
            let tops = tops.by_ref().take(pieces).reduce(merge).unwrap_or_default();
            lines.extend(job.into_iter().zip(tops));
        }
        compute::map(lines, work, |(line, top)| self.finish(&line, top)).into_iter().collect()
    }

    /// The first pass over some chunks, for lines whose scores have error bounds.
    #[inline(always)]
    fn sort(&self, lines: &[Line], chunks: Range<usize>) -> Vec<Top> {
        let mut tops: Vec<_> = lines.iter().map(|_| Top::new(self.heavy_size)).collect();
        let mut scores = [[0.0; BLOCK]; CHUNK / BLOCK];
        for chunk in chunks {
            for (line, top) in lines.iter().zip(&mut tops) {
                if line.open || line.visible <= chunk * CHUNK {
                    continue;
                }
                let mut errors = [0.0; CHUNK / BLOCK];
                scores.as_flattened_mut().fill(0.0);
                for term in &line.terms {
                    self.cache.codes[term.codes].add_scores(term, chunk, &mut scores, &mut errors);
                }
                offer(line, chunk * CHUNK, scores.as_flattened_mut(), &errors, top);
            }
        }
        tops
    }

    /// The second pass: the keys of one line, ascending.
    fn finish(&self, line: &Line, top: Top) -> Result<(Row, Vec<usize>)> {
        let Sorted { mut certain, mut open } = top.finish();
        if line.open {
            let mut excluded = line.excluded.iter().copied().peekable();
            open = (0..line.visible).filter(|&key| excluded.next_if_eq(&key).is_none()).collect();
        }
        open.sort_unstable();
        let scores = self.exact(line.row, &open)?;
        let rest = self.heavy_size - certain.len();
        certain.extend(select(&scores, |_| false, rest).into_iter().map(|index| open[index]));
        certain.sort_unstable();
        Ok((line.row, certain))
    }

    /// Scores of SPEC §2.6 and §2.7, operation for operation those of the reference.
    fn exact(&self, row @ (batch, _, i): Row, keys: &[usize]) -> Result<Vec<f64>> {
        let dims = self.query.dims;
        let mut label = vec![0.0; self.q_label(row).len()];
        let root = (label.len() as f64).sqrt();
        let k_label = |head: usize, key: usize, label: &mut [f32]| {
            let rows = &self.rows[batch * dims.kv_heads + dims.kv_head(head)];
            self.cache.codes(batch, head).write_labels(rows, key, label)
        };
        if self.mode() == HeadMode::SummedLabels {
            let (q, mut k) = (self.summed_q(row), vec![0.0; label.len()]);
            let score = |&key: &usize| {
                k.fill(0.0);
                for head in 0..dims.heads {
                    k_label(head, key, &mut label)?;
                    k.iter_mut().zip(&label).for_each(|(sum, &k)| *sum += f64::from(k));
                }
                let dot: f64 = q.iter().zip(&k).map(|(q, k)| q * k).sum();
                Ok(dot / root + f64::from(self.query.additive((batch, 0, i), key)))
            };
            return keys.iter().map(score).collect();
        }
        // −0 + x is x, bit for bit.
        let mut scores = vec![-0.0; keys.len()];
        for head in self.heads_of(row) {
            let row = (batch, head, i);
            let q: Vec<f64> = self.q_label(row).iter().copied().map(f64::from).collect();
            for (score, &key) in scores.iter_mut().zip(keys) {
                k_label(head, key, &mut label)?;
                let dot: f64 = q.iter().zip(&label).map(|(&q, &k)| q * f64::from(k)).sum();
                *score += dot / root + f64::from(self.query.additive(row, key));
            }
        }
        Ok(scores)
    }
}

/// The first pass, with the vector instructions available: everything it calls is inlined.
struct Sort<'a, 'q> {
    ranking: &'a Ranking<'a, 'q>,
    lines: &'a [Line],
    chunks: Range<usize>,
}

impl WithSimd for Sort<'_, '_> {
    type Output = Vec<Top>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) -> Self::Output {
        self.ranking.sort(self.lines, self.chunks)
    }
}

/// Offers the keys of one chunk, from `first` on.
#[inline(always)]
fn offer(line: &Line, first: usize, scores: &mut [f32], errors: &[f64], top: &mut Top) {
    let start = line.excluded.partition_point(|&key| key < first);
    for &key in &line.excluded[start..] {
        let Some(score) = scores.get_mut(key - first) else { break };
        *score = f32::NEG_INFINITY;
    }
    let visible = scores.len().min(line.visible - first);
    for (block, (scores, &error)) in scores.chunks_exact(BLOCK).zip(errors).enumerate() {
        let radius = (error * (1.0 + 1e-6)) as f32;
        for (part, scores) in scores.as_chunks::<LANES>().0.iter().enumerate() {
            let mut any = false;
            for &score in scores {
                any |= score + radius >= top.threshold();
            }
            if any {
                let start = block * BLOCK + part * LANES;
                offer_part(scores, radius, visible.saturating_sub(start), first + start, top);
            }
        }
    }
}

/// Offers those of some keys that can reach the threshold, usually few, without a branch for each of the others.
#[inline(always)]
fn offer_part(scores: &[f32; LANES], radius: f32, visible: usize, first: usize, top: &mut Top) {
    let mut worth = [0; LANES];
    let mut count = 0;
    for (lane, &score) in scores.iter().enumerate() {
        worth[count] = lane;
        count += usize::from(score + radius >= top.threshold());
    }
    for &lane in &worth[..count] {
        let score = scores[lane];
        if score > f32::NEG_INFINITY && lane < visible {
            top.offer(score - radius, score + radius, first + lane);
        }
    }
}

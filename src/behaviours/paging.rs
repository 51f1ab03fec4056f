//! What a serving engine may do wrong with what it holds (SPEC §2.14). [`Paged`] is a plain cache of pages for many requests, right
//! or with one fault. It does not select keys: for each request of an attend it says from which keys labels were made, and which
//! keys and values are attended to, as two calls. So it serves twice, like a [`Behaviour`](super::Behaviour): as a wrong subject,
//! and as an explanation that must reproduce a subject's answers.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ndarray::{Array2, Array4, Axis, s};

use crate::algorithm::attention::attention;
use crate::algorithm::{Detail, Error, HeadMode, HeavySize, InputParts, Inputs, Mask};
use crate::cases::session::{Part, Token};
use crate::cases::{Answer, Call, Held, Instance, Opening, Outcome, Step};

/// A named fault of what is held.
#[derive(Debug, Clone, Copy)]
pub struct CacheFault {
    /// What commands and records call it.
    pub name: &'static str,
    /// One sentence that says what such an engine does.
    pub sentence: &'static str,
    /// Which one.
    pub kind: CacheFaultKind,
}

/// What is done wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheFaultKind {
    /// Labels of a slot that another request filled before are not written again.
    StaleAfterFree,
    /// Labels of positions that were taken back are not written again.
    StaleAfterTruncate,
    /// Labels are kept by the first page and the number of keys.
    LabelsByLength,
    /// A page that is shared is written, not copied.
    WritesSharedPage,
    /// A page that is copied before it is written has no labels.
    CopiesWithoutLabels,
    /// A fork shares whole pages only: what it holds of the last one is not there.
    ForksWholePages,
    /// A fork gets all keys, whatever its length.
    ForksEverything,
    /// Labels of the last key of a page are looked up in the next one.
    TableOffByOne,
    /// Keys of a page that is not full have no labels.
    PartialPageUnlabelled,
    /// Of a chunk the first key alone has labels.
    FirstOfChunkOnly,
    /// Of a chunk the last key alone has labels.
    LastOfChunkOnly,
    /// The key that was appended last has no labels yet.
    LabelOneStepLate,
    /// The place in a batch is taken for the number of the request.
    PlaceForRequest,
    /// Answers are in the order of the requests' numbers.
    AnswersSorted,
    /// Labels of all layers are in one pool.
    LayersShareLabels,
    /// The number of keys is that of the attend before.
    LengthOfLastAttend,
    /// The number of keys is that of the last layer.
    LengthOfLastLayer,
    /// Every request has as many keys as the shortest of the batch.
    ShortestOfBatch,
    /// One request with fewer keys than H makes the whole batch dense.
    DenseWithShort,
    /// The requests of a batch are those of the batch before, if that was as large.
    BatchOfSameSize,
    /// A batch that grows has old requests in its new places.
    GrownBatch,
    /// A request that ends gives shared pages back, too.
    FreesSharedPages,
    /// The first page of a request that ends is given back twice.
    FreesTwice,
    /// Another request loses its pages.
    FreesAnother,
    /// A page that is not full is not given back.
    LeaksPartialPage,
    /// What there is no room for is dropped.
    DropsOverrun,
    /// Where there is no room the oldest request loses its pages.
    EvictsOldest,
    /// Of a refused append the first request's keys stay.
    KeepsPartOfRefused,
    /// A truncate keeps whole pages.
    TruncatesToPages,
    /// A truncate acts on the first layer alone.
    TruncatesFirstLayer,
    /// A truncate clears labels on shared pages, too.
    TruncateClearsShared,
    /// The number of a request that is over brings its keys back.
    NumberRemembers,
    /// The queries of a chunk see all of its keys.
    ChunkNotCausal,
    /// Each request has a slot, the lowest that is free; one that begins in a slot keeps the labels that lie there.
    SlotKept {
        /// Whether a first chunk that is shorter than what lies there clears it.
        unless_shorter: bool,
    },
    /// Of the chunks of a request after its first one the first key alone has labels.
    FirstOfLaterChunk,
    /// A batch of another size than the one before finds the labels of that batch's slots in the places of both.
    BatchOfAnotherSize,
    /// Labels of a batch end where its shortest request does.
    LabelsOfShortest,
    /// A request with fewer keys than H attends to the places behind its own in its slot, whatever lies there.
    BeyondLength,
    /// Scores of all heads and requests of a batch lie one row behind the other; a row is written up to the end of its last tile,
    /// with −∞, and so are the first keys of rows behind, unless these are written later. Keys with −∞ are ranked last.
    TailOverNext {
        /// Keys of a tile.
        tile: usize,
        /// Whether one request with fewer keys than H makes the whole batch dense as well.
        dense_with_short: bool,
    },
}

use CacheFaultKind as Kind;

const fn fault(name: &'static str, kind: Kind, sentence: &'static str) -> CacheFault {
    CacheFault { name, sentence, kind }
}

/// All of them.
pub const CACHE_FAULTS: &[CacheFault] = &[
    fault(
        "stale-after-free",
        Kind::StaleAfterFree,
        "Slots that a request gave back keep its labels when another one fills them.",
    ),
    fault(
        "stale-after-truncate",
        Kind::StaleAfterTruncate,
        "Positions that were taken back keep their old labels when they are filled again.",
    ),
    fault(
        "labels-by-length",
        Kind::LabelsByLength,
        "Labels are kept by the first page and the number of keys: a request as long as an earlier one in its place gets that one's.",
    ),
    fault(
        "writes-shared-page",
        Kind::WritesSharedPage,
        "A page that a fork shares is written without being copied: both requests see the new keys.",
    ),
    fault(
        "copies-without-labels",
        Kind::CopiesWithoutLabels,
        "A shared page is copied before it is written, but its labels are not.",
    ),
    fault(
        "forks-whole-pages",
        Kind::ForksWholePages,
        "A fork shares whole pages only: the keys of its last, partial page are missing.",
    ),
    fault(
        "forks-everything",
        Kind::ForksEverything,
        "A fork gets all keys of its parent, whatever the length asked for.",
    ),
    fault(
        "table-off-by-one",
        Kind::TableOffByOne,
        "The labels of the last key of each page are looked up in the next page.",
    ),
    fault(
        "partial-page-unlabelled",
        Kind::PartialPageUnlabelled,
        "Keys have labels only once their page is full.",
    ),
    fault(
        "first-of-chunk-only",
        Kind::FirstOfChunkOnly,
        "Of the keys of a chunk only the first gets labels.",
    ),
    fault("last-of-chunk-only", Kind::LastOfChunkOnly, "Of the keys of a chunk only the last gets labels."),
    fault(
        "label-one-step-late",
        Kind::LabelOneStepLate,
        "The labels of the last key are written with the next append.",
    ),
    fault(
        "place-for-request",
        Kind::PlaceForRequest,
        "The place of a request in a batch is taken for the request.",
    ),
    fault(
        "answers-sorted",
        Kind::AnswersSorted,
        "A batch is taken to be in the order of the requests' numbers.",
    ),
    fault(
        "layers-share-labels",
        Kind::LayersShareLabels,
        "Labels of all layers are in one pool: the layer written last wins.",
    ),
    fault(
        "length-of-last-attend",
        Kind::LengthOfLastAttend,
        "The number of keys is that of the request's attend before.",
    ),
    fault(
        "length-of-last-layer",
        Kind::LengthOfLastLayer,
        "The number of keys is that of the last layer, which may not have its new keys yet.",
    ),
    fault(
        "shortest-of-batch",
        Kind::ShortestOfBatch,
        "Every request of a batch has as many keys as the shortest.",
    ),
    fault(
        "dense-with-short",
        Kind::DenseWithShort,
        "A batch is attended to densely where its shortest request has fewer keys than H.",
    ),
    fault(
        "batch-of-same-size",
        Kind::BatchOfSameSize,
        "A batch as large as the one before is taken to hold the same requests.",
    ),
    fault(
        "grown-batch",
        Kind::GrownBatch,
        "A batch that grows has the requests of an earlier, larger one in its new places.",
    ),
    fault(
        "frees-shared-pages",
        Kind::FreesSharedPages,
        "A request that ends gives back pages that another one shares.",
    ),
    fault(
        "frees-twice",
        Kind::FreesTwice,
        "The first page of a request that ends is given back twice, and handed to two requests.",
    ),
    fault(
        "frees-another",
        Kind::FreesAnother,
        "A request that ends takes the pages of the request begun last with it.",
    ),
    fault("leaks-partial-page", Kind::LeaksPartialPage, "A page that is not full is never given back."),
    fault("drops-overrun", Kind::DropsOverrun, "Keys for which there is no room are dropped without a word."),
    fault(
        "evicts-oldest",
        Kind::EvictsOldest,
        "Where there is no room, the pages of the oldest request are taken.",
    ),
    fault(
        "keeps-part-of-refused",
        Kind::KeepsPartOfRefused,
        "Of an append that is refused, the keys of the first request stay.",
    ),
    fault(
        "truncates-to-pages",
        Kind::TruncatesToPages,
        "A truncate takes whole pages back: it keeps the keys up to the next edge.",
    ),
    fault(
        "truncates-first-layer",
        Kind::TruncatesFirstLayer,
        "A truncate takes keys back in the first layer alone.",
    ),
    fault(
        "truncate-clears-shared",
        Kind::TruncateClearsShared,
        "A truncate clears the labels that it takes back on shared pages, too.",
    ),
    fault(
        "number-remembers",
        Kind::NumberRemembers,
        "A request with the number of one that is over begins with that one's labels.",
    ),
    fault("chunk-not-causal", Kind::ChunkNotCausal, "The queries of a chunk see the keys after them."),
];

/// Others, which no engine is known for by a name: they explain only what no named one does.
pub const CACHE_RELATIONS: &[CacheFault] = &[
    fault(
        "",
        Kind::SlotKept { unless_shorter: true },
        "A request that begins in a slot of an earlier one keeps that one's labels, unless its first chunk is shorter.",
    ),
    fault(
        "",
        Kind::SlotKept { unless_shorter: false },
        "A request that begins in a slot of an earlier one keeps that one's labels.",
    ),
    fault(
        "",
        Kind::FirstOfLaterChunk,
        "Of the chunks that a request appends after its first one only the first key gets labels; those of the others are zeros.",
    ),
    fault(
        "",
        Kind::BatchOfAnotherSize,
        "A batch of another size than the one before ranks by that batch's labels in the places that both have.",
    ),
    fault(
        "",
        Kind::LabelsOfShortest,
        "Every request of a batch is ranked by labels up to the length of the shortest; those of later keys are zeros.",
    ),
    fault(
        "",
        Kind::BeyondLength,
        "A request with fewer than H keys attends to the places behind them in its slot as well: zeros, or what an earlier request, a truncate or the request it was forked from left there.",
    ),
    tail(
        16,
        false,
        "The last tile of 16 scores of a row is written whole: the first keys of the rows behind score −∞, or their own score, whichever comes last.",
    ),
    tail(
        32,
        false,
        "The last tile of 32 scores of a row is written whole: the first keys of the rows behind score −∞, or their own score, whichever comes last.",
    ),
    tail(
        64,
        false,
        "The last tile of 64 scores of a row is written whole: the first keys of the rows behind score −∞, or their own score, whichever comes last.",
    ),
    tail(
        16,
        true,
        "The last tile of 16 scores of a row is written whole: the first keys of the rows behind score −∞, or their own score, whichever comes last. A batch is attended to densely where its shortest request has fewer keys than H.",
    ),
    tail(
        32,
        true,
        "The last tile of 32 scores of a row is written whole: the first keys of the rows behind score −∞, or their own score, whichever comes last. A batch is attended to densely where its shortest request has fewer keys than H.",
    ),
    tail(
        64,
        true,
        "The last tile of 64 scores of a row is written whole: the first keys of the rows behind score −∞, or their own score, whichever comes last. A batch is attended to densely where its shortest request has fewer keys than H.",
    ),
];

const fn tail(tile: usize, dense_with_short: bool, sentence: &'static str) -> CacheFault {
    fault("", Kind::TailOverNext { tile, dense_with_short }, sentence)
}

impl CacheFault {
    /// The fault of a name.
    pub fn find(name: &str) -> Option<&'static Self> {
        CACHE_FAULTS.iter().find(|fault| fault.name == name)
    }
}

/// What an attend reads for one request.
#[derive(Debug, Clone)]
pub struct Read {
    /// The call whose keys are those from which labels were made: it decides what is selected.
    pub ranking: Call,
    /// The call whose keys and values are attended to.
    pub attending: Call,
    /// How many keys the request has: at least as many as those calls.
    pub keys: usize,
    /// The keys of the batch's shortest request, where nothing is ranked if they are fewer than H.
    shortest: Option<usize>,
    /// Tails of tiles that overwrite scores.
    tails: Option<Tails>,
    /// What lies behind the keys in the request's slot, where that is attended to.
    behind: Option<Vec<Arc<Token>>>,
}

/// Rows of scores that are written up to the end of their last tile.
#[derive(Debug, Clone)]
struct Tails {
    /// Keys of each request of the batch.
    lengths: Vec<usize>,
    /// Which of them.
    place: usize,
    /// Keys of a tile.
    tile: usize,
}

impl Read {
    /// Whether nothing is ranked.
    fn is_dense(&self, instance: &Instance) -> bool {
        match instance.selection.heavy_size {
            HeavySize::Count(count) => self.shortest.is_some_and(|keys| keys < count.get()),
            HeavySize::Fraction(_) => false,
        }
    }

    /// The instance of what is read: one that selects all keys where nothing is ranked.
    pub fn instance<'a>(&self, instance: &'a Instance) -> Cow<'a, Instance> {
        match HeavySize::count(self.keys) {
            Ok(all) if self.is_dense(instance) => {
                let mut dense = instance.clone();
                dense.selection.heavy_size = all;
                Cow::Owned(dense)
            }
            _ => Cow::Borrowed(instance),
        }
    }

    /// Keys that score −∞, by head: they are ranked last, and selected only where others are too few.
    pub fn last(&self, instance: &Instance) -> Vec<(usize, usize)> {
        let dims = self.ranking.inputs.dims();
        let selection = &instance.selection;
        let short = dims.keys - dims.queries <= selection.heavy_size.resolve(dims.keys);
        let dense = self.is_dense(instance)
            || instance.dense_layers.contains(&self.ranking.layer)
            || (selection.dense_fallback && short);
        // With several queries the rows of an engine are others.
        let Some(tails) = self.tails.as_ref().filter(|_| dims.queries == 1 && !dense) else {
            return Vec::new();
        };
        let of = |heads: usize| lost_to_tails(&tails.lengths, heads, tails.tile).swap_remove(tails.place);
        let lost: Vec<(usize, usize)> = match selection.heads {
            HeadMode::PerHead => of(dims.heads),
            // Heads that share a selection have one row of scores.
            _ => of(1).iter().flat_map(|&(_, key)| (0..dims.heads).map(move |head| (head, key))).collect(),
        };
        // What an earlier masker selects is not ranked.
        let Ok(before) = instance.before(&self.ranking) else { return Vec::new() };
        lost.into_iter().filter(|&(head, key)| !before.attends(0, head, 0, key)).collect()
    }

    /// The call that decides what is selected, without keys that are ranked last. Errors: those of its inputs.
    pub fn ranked(&self, last: &[(usize, usize)]) -> Result<Cow<'_, Call>, Error> {
        if last.is_empty() {
            return Ok(Cow::Borrowed(&self.ranking));
        }
        let inputs = &self.ranking.inputs;
        let attention_mask = Array4::from_shape_fn(inputs.dims().mask_shape(), |(b, head, i, key)| {
            let own = inputs.additive(b, head, i).at(key);
            if last.contains(&(head, key)) { f32::NEG_INFINITY } else { own }
        });
        let parts = InputParts { attention_mask: Some(attention_mask), ..inputs.parts().clone() };
        Ok(Cow::Owned(Call { inputs: Arc::new(Inputs::new(parts)?), ..self.ranking.clone() }))
    }

    /// How many keys the row of a head attends to, with one query: those of an earlier masker, and H others where there are so many.
    pub fn row_size(&self, instance: &Instance) -> impl Fn(usize) -> usize {
        let (before, keys) = (instance.before(&self.ranking).ok(), self.ranking.inputs.dims().keys);
        let heavy = self.instance(instance).selection.heavy_size.resolve(keys);
        move |head| {
            let held = before.as_ref().map_or(0, |before| before.row((0, head, 0)).count());
            held + heavy.min(keys - held)
        }
    }

    /// What the output attends to by a mask: the inputs and the mask, with the places behind the keys where these take part. Errors: those
    /// of the inputs.
    pub fn attended<'a>(
        &'a self,
        instance: &Instance,
        mask: &'a Mask,
    ) -> Result<(Cow<'a, Inputs>, Cow<'a, Mask>), Error> {
        let (inputs, dims) = (&self.attending.inputs, self.attending.inputs.dims());
        let missing = match instance.selection.heavy_size {
            HeavySize::Count(count) => count.get().saturating_sub(dims.keys),
            HeavySize::Fraction(_) => 0,
        };
        let dense = instance.dense_layers.contains(&self.attending.layer);
        let Some(behind) = self.behind.as_ref().filter(|_| missing > 0 && !dense) else {
            return Ok((Cow::Borrowed(inputs), Cow::Borrowed(mask)));
        };
        let n = dims.keys;
        let joined = |own: &Array4<f32>, of: fn(&Token) -> &Array2<f32>| {
            let (b, heads, _, width) = own.dim();
            Array4::from_shape_fn((b, heads, n + missing, width), |(b, head, key, c)| {
                match key.checked_sub(n) {
                    None => own[[b, head, key, c]],
                    Some(place) => behind.get(place).map_or(0.0, |token| of(token)[[head, c]]),
                }
            })
        };
        let parts = inputs.parts();
        let (b, h, m, _) = dims.mask_shape();
        let additive = Array4::from_shape_fn((b, h, m, n + missing), |(b, head, i, key)| {
            if key < n { inputs.additive(b, head, i).at(key) } else { 0.0 }
        });
        let weights = Array4::from_shape_fn((b, h, m, n + missing), |(b, head, i, key)| {
            if key < n { mask.weight(b, head, i, key) } else { 1.0 }
        });
        let inputs = Inputs::new(InputParts {
            k: joined(&parts.k, |token| &token.k),
            v: joined(&parts.v, |token| &token.v),
            attention_mask: Some(additive),
            causal: false,
            ..parts.clone()
        })?;
        let mask = Mask::from_weights(weights, &inputs.dims())?;
        Ok((Cow::Owned(inputs), Cow::Owned(mask)))
    }

    /// What is answered. Errors: those of the algorithm.
    pub fn answer(&self, instance: &Instance) -> Result<Answer, Error> {
        let (last, size) = (self.last(instance), self.row_size(instance));
        let ranked = self.ranked(&last)?;
        let instance = self.instance(instance);
        let mut mask = instance.attention().mask(&ranked.inputs, ranked.layer)?;
        for head in last.iter().map(|(head, _)| *head).collect::<BTreeSet<_>>() {
            let lost = last.iter().filter(|(of, _)| *of == head).map(|(_, key)| *key);
            let missing = size(head).saturating_sub(mask.row((0, head, 0)).count());
            mask.add((0, head, 0), lost.take(missing));
        }
        let (inputs, attended) = self.attended(&instance, &mask)?;
        let output = attention(&inputs, &attended)?;
        let (b, h, m, n) = mask.weights().dim();
        let mut weights = Array4::zeros((b, h, m, self.keys));
        weights.slice_mut(s![.., .., .., ..n]).assign(mask.weights());
        let dims = crate::algorithm::Dims { keys: self.keys, ..self.ranking.inputs.dims() };
        Ok(Answer::new(Mask::from_weights(weights, &dims)?, Some(output)))
    }
}

/// Where a key of one layer lies.
#[derive(Debug, Clone)]
struct Slot {
    token: Arc<Token>,
    /// The key from which the labels were made; zeros where there are none.
    label: Array2<f32>,
}

/// A page: slots of every layer.
type Page = Vec<Vec<Option<Slot>>>;

#[derive(Debug, Clone)]
struct Request {
    /// Pages in the order of positions, the same in every layer.
    pages: Vec<usize>,
    /// Keys in each layer.
    lengths: Vec<usize>,
    /// When it began.
    begun: usize,
}

/// A cache of pages.
#[derive(Debug, Clone)]
pub struct Paged {
    fault: Option<Kind>,
    opening: Opening,
    held: Held,
    pages: Vec<Page>,
    /// How many requests hold each page.
    shared: Vec<usize>,
    free: Vec<usize>,
    requests: BTreeMap<usize, Request>,
    begun: usize,
    /// Of faults that remember: slots whose labels count as written, batches, lengths, labels.
    written: BTreeSet<(usize, usize, usize)>,
    places: Vec<usize>,
    last_batch: usize,
    attended: BTreeMap<(usize, usize), usize>,
    by_length: BTreeMap<(usize, usize, usize), Array4<f32>>,
    by_number: BTreeMap<(usize, usize, usize), Array2<f32>>,
    /// Of faults of slots: the slot of each request, what lies in each slot of a layer (labels are made from the keys), the slots of the
    /// last batch.
    slots: BTreeMap<usize, usize>,
    by_slot: BTreeMap<(usize, usize), Vec<Arc<Token>>>,
    last_slots: Vec<usize>,
}

impl Paged {
    /// An empty cache.
    pub fn new(opening: &Opening, fault: Option<Kind>) -> Self {
        let count = opening.capacity / opening.page_size;
        let page = vec![vec![None; opening.page_size]; opening.layers.len()];
        Self {
            fault,
            opening: opening.clone(),
            held: Held::new(opening),
            pages: vec![page; count],
            shared: vec![0; count],
            free: (0..count).rev().collect(),
            requests: BTreeMap::new(),
            begun: 0,
            written: BTreeSet::new(),
            places: Vec::new(),
            last_batch: 0,
            attended: BTreeMap::new(),
            by_length: BTreeMap::new(),
            by_number: BTreeMap::new(),
            slots: BTreeMap::new(),
            by_slot: BTreeMap::new(),
            last_slots: Vec::new(),
        }
    }

    fn is(&self, kind: Kind) -> bool {
        self.fault == Some(kind)
    }

    /// Does a step: for an attend what it reads for each request. Errors: why it is refused.
    pub fn step(&mut self, step: &Step) -> Result<Vec<Read>, Error> {
        if let Outcome::Refused(faults) = self.held.outcome(step) {
            return self.refused(step, faults);
        }
        let before = self.clone();
        let done = match step {
            Step::Append { layer, parts, .. } => self.append(step, *layer, parts),
            Step::Attend { layer, parts, .. } => return self.attend(step, *layer, parts),
            &Step::Fork { from, to, length } => {
                self.fork(from, to, length);
                Ok(())
            }
            &Step::Truncate { request, length } => {
                self.truncate(request, length);
                Ok(())
            }
            Step::Free { request } => {
                self.give_back(*request);
                Ok(())
            }
        };
        match done {
            Ok(()) => self.held.apply(step),
            Err(_) => *self = before,
        }
        done.map(|()| Vec::new())
    }

    /// A step that must be refused, for whatever reasons.
    fn refused(&mut self, step: &Step, faults: Vec<Error>) -> Result<Vec<Read>, Error> {
        let only_room = faults.iter().all(|fault| matches!(fault, Error::Capacity(_)));
        if let (Step::Append { layer, parts, .. }, true) = (step, only_room) {
            match self.fault {
                Some(Kind::DropsOverrun) => {
                    let _ = self.append(step, *layer, parts);
                    self.held.apply(step);
                    return Ok(Vec::new());
                }
                Some(Kind::EvictsOldest) => {
                    let named: BTreeSet<usize> = parts.iter().map(|(request, _)| *request).collect();
                    let others = self.requests.iter().filter(|(request, _)| !named.contains(request));
                    let oldest = others.min_by_key(|(_, request)| request.begun).map(|(request, _)| *request);
                    if let Some(oldest) = oldest {
                        let pages = self.requests.get(&oldest).map(|request| request.pages.clone());
                        self.free.extend(pages.into_iter().flatten());
                    }
                    let _ = self.append(step, *layer, parts);
                    self.held.apply(step);
                    return Ok(Vec::new());
                }
                Some(Kind::KeepsPartOfRefused) if parts.len() > 1 => {
                    let _ = self.append(step, *layer, &parts[..1]);
                }
                _ => {}
            }
        }
        match faults.into_iter().next() {
            Some(fault) => Err(fault),
            None => Ok(Vec::new()),
        }
    }

    fn place(&self, layer: usize) -> usize {
        self.opening.layers.iter().position(|&opened| opened == layer).unwrap_or(0)
    }

    /// Appends all parts, or those that fit.
    fn append(&mut self, step: &Step, layer: usize, parts: &[Part]) -> Result<(), Error> {
        let Step::Append { k, v, .. } = step else { return Ok(()) };
        let layer = self.place(layer);
        let (count, begun) = (self.opening.layers.len(), self.begun);
        let mut row = 0;
        for &(request, new) in parts {
            self.take_slot(request);
            let start = self.requests.get(&request).map_or(0, |request| request.lengths[layer]);
            let of = |tensor: &ndarray::Array3<f32>, row: usize| tensor.index_axis(Axis(0), row).to_owned();
            let token = |row: usize| Arc::new(Token { k: of(k, row), v: of(v, row) });
            let chunk: Vec<Arc<Token>> = (row..row + new).map(token).collect();
            self.write_slot(request, layer, start, chunk.clone());
            self.begun += usize::from(!self.requests.contains_key(&request));
            self.requests.entry(request).or_insert_with(|| Request {
                pages: Vec::new(),
                lengths: vec![0; count],
                begun,
            });
            for (index, token) in chunk.into_iter().enumerate() {
                self.push(request, layer, token, (index, new))?;
            }
            row += new;
        }
        Ok(())
    }

    /// Writes one key; `index` of `new` in its chunk.
    fn push(
        &mut self,
        request: usize,
        layer: usize,
        token: Arc<Token>,
        (index, new): (usize, usize),
    ) -> Result<(), Error> {
        let size = self.opening.page_size;
        let position = self.requests[&request].lengths[layer];
        let page = self.page_for(request, position / size)?;
        let place = (page, layer, position % size);
        let own = token.k.clone();
        let zeros = || Array2::zeros(own.raw_dim());
        let old = self.pages[page][layer][position % size].as_ref().map(|slot| slot.label.clone());
        let remembered = self.by_number.get(&(request, layer, position)).cloned();
        let label = match self.fault {
            Some(Kind::StaleAfterFree | Kind::StaleAfterTruncate) if self.written.contains(&place) => {
                old.unwrap_or(own)
            }
            Some(Kind::NumberRemembers) => remembered.unwrap_or(own),
            Some(Kind::FirstOfChunkOnly) if index > 0 => zeros(),
            Some(Kind::FirstOfLaterChunk) if index > 0 && position > index => zeros(),
            Some(Kind::LastOfChunkOnly) if index + 1 < new => zeros(),
            _ => own,
        };
        if matches!(self.fault, Some(Kind::StaleAfterFree | Kind::StaleAfterTruncate)) {
            self.written.insert(place);
        }
        if self.is(Kind::LayersShareLabels) {
            for layer in 0..self.opening.layers.len() {
                if let Some(slot) = &mut self.pages[page][layer][position % size] {
                    slot.label.clone_from(&label);
                }
            }
        }
        self.pages[page][layer][position % size] = Some(Slot { token, label });
        if let Some(request) = self.requests.get_mut(&request) {
            request.lengths[layer] += 1;
        }
        Ok(())
    }

    /// The page of a request that is about to be written: a new one, or a copy of one that is shared.
    fn page_for(&mut self, request: usize, index: usize) -> Result<usize, Error> {
        let pages = self.requests[&request].pages.clone();
        if let Some(&page) = pages.get(index) {
            if self.shared[page] < 2 || self.is(Kind::WritesSharedPage) {
                return Ok(page);
            }
            let copy = self.take_page()?;
            self.pages[copy] = self.pages[page].clone();
            if self.is(Kind::CopiesWithoutLabels) {
                self.pages[copy].iter_mut().flatten().flatten().for_each(|slot| slot.label.fill(0.0));
            }
            self.shared[page] -= 1;
            if let Some(request) = self.requests.get_mut(&request) {
                request.pages[index] = copy;
            }
            return Ok(copy);
        }
        let page = self.take_page()?;
        if let Some(request) = self.requests.get_mut(&request) {
            request.pages.push(page);
        }
        Ok(page)
    }

    /// Gives a request that begins the lowest slot that is free.
    fn take_slot(&mut self, request: usize) {
        let taken: BTreeSet<usize> = self.slots.values().copied().collect();
        let free = (0..=taken.len()).find(|slot| !taken.contains(slot)).unwrap_or(0);
        self.slots.entry(request).or_insert(free);
    }

    /// Writes a chunk that begins at a position of a request's slot; what lies behind stays.
    fn write_slot(&mut self, request: usize, layer: usize, start: usize, chunk: Vec<Arc<Token>>) {
        let held = self.by_slot.entry((self.slots[&request], layer)).or_default();
        if let Some(Kind::SlotKept { unless_shorter }) = self.fault {
            if unless_shorter && start == 0 && chunk.len() < held.len() {
                held.clear();
            }
            let kept = held.len().saturating_sub(start);
            held.extend(chunk.into_iter().skip(kept));
            return;
        }
        self.put(self.slots[&request], layer, start, chunk);
    }

    /// Writes to places of a slot from one on.
    fn put(&mut self, slot: usize, layer: usize, start: usize, tokens: Vec<Arc<Token>>) {
        let held = self.by_slot.entry((slot, layer)).or_default();
        for (index, token) in tokens.into_iter().enumerate() {
            match held.get_mut(start + index) {
                Some(place) => *place = token,
                None => held.push(token),
            }
        }
    }

    fn take_page(&mut self) -> Result<usize, Error> {
        let none = || Error::Capacity(Detail::new("append", "no page that is free", "one"));
        let page = self.free.pop().ok_or_else(none)?;
        self.shared[page] = 1;
        Ok(page)
    }

    fn release(&mut self, page: usize) {
        self.shared[page] = self.shared[page].saturating_sub(1);
        if self.shared[page] == 0 {
            self.free.push(page);
        }
    }

    fn fork(&mut self, from: usize, to: usize, length: usize) {
        let (size, begun) = (self.opening.page_size, self.begun);
        let Some(parent) = self.requests.get(&from).cloned() else { return };
        let most = parent.lengths.iter().copied().max().unwrap_or(0);
        let length = if self.is(Kind::ForksEverything) { most } else { length };
        let shared = if self.is(Kind::ForksWholePages) { length / size } else { length.div_ceil(size) };
        let pages: Vec<usize> = parent.pages.iter().copied().take(shared).collect();
        pages.iter().for_each(|&page| self.shared[page] += 1);
        let lengths = parent.lengths.iter().map(|&held| held.min(length)).collect();
        let mut child = Request { pages, lengths, begun };
        // The page that is missing is a new one, with nothing in it.
        while child.pages.len() < length.div_ceil(size) {
            let Ok(page) = self.take_page() else { break };
            child.pages.push(page);
        }
        self.begun += 1;
        self.take_slot(to);
        for layer in 0..self.opening.layers.len() {
            let tokens = self.slots.get(&from).and_then(|slot| self.by_slot.get(&(*slot, layer)));
            let tokens = tokens.cloned().unwrap_or_default();
            if self.is(Kind::BeyondLength) {
                self.by_slot.insert((self.slots[&to], layer), tokens);
            } else {
                let shared = tokens.into_iter().take(child.lengths[layer]).collect();
                self.put(self.slots[&to], layer, 0, shared);
            }
        }
        self.requests.insert(to, child);
    }

    fn truncate(&mut self, request: usize, length: usize) {
        let size = self.opening.page_size;
        let Some(mut own) = self.requests.get(&request).cloned() else { return };
        let kept = if self.is(Kind::TruncatesToPages) { length.next_multiple_of(size) } else { length };
        for (layer, held) in own.lengths.iter_mut().enumerate() {
            if self.is(Kind::TruncatesFirstLayer) && layer > 0 {
                continue;
            }
            let first = kept.min(*held);
            for position in first..*held {
                let Some(&page) = own.pages.get(position / size) else { continue };
                let place = (page, layer, position % size);
                if self.is(Kind::StaleAfterFree) {
                    self.written.remove(&place);
                }
                if self.is(Kind::TruncateClearsShared)
                    && let Some(slot) = &mut self.pages[page][layer][position % size]
                {
                    slot.label.fill(0.0);
                }
            }
            *held = first;
        }
        if let Some(Kind::SlotKept { .. }) = self.fault
            && let Some(&slot) = self.slots.get(&request)
        {
            let layers = 0..self.opening.layers.len();
            layers.for_each(|layer| self.by_slot.entry((slot, layer)).or_default().truncate(length));
        }
        let most = own.lengths.iter().copied().max().unwrap_or(0);
        for page in own.pages.drain(most.div_ceil(size).min(own.pages.len())..) {
            self.release(page);
        }
        self.requests.insert(request, own);
    }

    fn give_back(&mut self, request: usize) {
        let size = self.opening.page_size;
        let Some(own) = self.requests.remove(&request) else { return };
        self.slots.remove(&request);
        if self.is(Kind::NumberRemembers) {
            for (layer, &held) in own.lengths.iter().enumerate() {
                for position in 0..held {
                    let slot =
                        own.pages.get(position / size).map(|&page| &self.pages[page][layer][position % size]);
                    if let Some(Some(slot)) = slot {
                        self.by_number.insert((request, layer, position), slot.label.clone());
                    }
                }
            }
        }
        let most = own.lengths.iter().copied().max().unwrap_or(0);
        for (index, &page) in own.pages.iter().enumerate() {
            let partial = (index + 1) * size > most;
            if self.is(Kind::StaleAfterTruncate) {
                self.written.retain(|(written, _, _)| *written != page);
            }
            if self.is(Kind::LeaksPartialPage) && partial {
                continue;
            }
            if self.is(Kind::FreesSharedPages) && self.shared[page] > 1 {
                self.shared[page] = 1;
            }
            self.release(page);
        }
        if self.is(Kind::FreesTwice)
            && let Some(&page) = own.pages.first()
            && self.shared[page] == 0
        {
            self.free.push(page);
        }
        if self.is(Kind::FreesAnother) {
            let last = self.requests.values().max_by_key(|request| request.begun);
            let pages = last.map(|request| request.pages.clone()).unwrap_or_default();
            let unfree: Vec<usize> = pages.into_iter().filter(|page| !self.free.contains(page)).collect();
            self.free.extend(unfree);
        }
    }

    fn attend(&mut self, step: &Step, layer: usize, parts: &[Part]) -> Result<Vec<Read>, Error> {
        let calls = self.held.calls(step)?;
        let own: Vec<usize> = parts.iter().map(|(request, _)| *request).collect();
        let asked = self.asked(&own);
        let shortest = own.iter().map(|&request| self.held.tokens(request, layer).len()).min().unwrap_or(0);
        let place = self.place(layer);
        let of_batch: Vec<usize> = own.iter().map(|request| self.slots[request]).collect();
        let before = std::mem::replace(&mut self.last_slots, of_batch.clone());
        let other_size = self.is(Kind::BatchOfAnotherSize) && before.len() != own.len();
        let slots = of_batch.iter().enumerate().map(|(place, &slot)| match before.get(place) {
            Some(&before) if other_size => before,
            _ => slot,
        });
        let slots: Vec<usize> = slots.collect();
        let mut reads = Vec::new();
        for (((call, &request), &own), slot) in calls.iter().zip(&asked).zip(&own).zip(slots) {
            let mut read = self.read(call, request, own, place, shortest)?;
            if matches!(self.fault, Some(Kind::SlotKept { .. } | Kind::BatchOfAnotherSize)) {
                read.ranking = self.ranked_by_slot(&read.attending, (slot, place))?;
            }
            if self.is(Kind::BeyondLength) {
                let held = self.by_slot.get(&(slot, place)).into_iter().flatten();
                read.behind = Some(held.skip(read.attending.inputs.dims().keys).cloned().collect());
            }
            reads.push(read);
        }
        if let Some(Kind::TailOverNext { tile, dense_with_short }) = self.fault {
            let lengths: Vec<usize> = reads.iter().map(|read| read.keys).collect();
            for (place, read) in reads.iter_mut().enumerate() {
                read.tails = Some(Tails { lengths: lengths.clone(), place, tile });
                read.shortest = dense_with_short.then_some(shortest);
            }
        }
        if self.is(Kind::AnswersSorted) {
            let mut sorted: Vec<usize> = (0..own.len()).collect();
            sorted.sort_by_key(|&index| own[index]);
            // The keys of the request that would stand there.
            for (index, &stands) in sorted.iter().enumerate() {
                reads[index] = self.read(&calls[index], own[stands], own[index], place, shortest)?;
            }
        }
        Ok(reads)
    }

    /// The call with the labels that lie in a slot of a layer; zeros where there are none.
    fn ranked_by_slot(&self, call: &Call, place: (usize, usize)) -> Result<Call, Error> {
        let parts = call.inputs.parts();
        let labels = self.by_slot.get(&place);
        let k = Array4::from_shape_fn(parts.k.dim(), |(_, head, position, c)| {
            labels.and_then(|labels| labels.get(position)).map_or(0.0, |token| token.k[[head, c]])
        });
        let inputs = Inputs::new(InputParts { k, ..parts.clone() })?;
        Ok(Call { inputs: Arc::new(inputs), ..call.clone() })
    }

    /// The requests that are read for those that are asked.
    fn asked(&mut self, own: &[usize]) -> Vec<usize> {
        let live: Vec<usize> = self.requests.keys().copied().collect();
        let asked = match self.fault {
            Some(Kind::PlaceForRequest) => {
                (0..own.len()).map(|place| live.get(place).copied().unwrap_or(own[place])).collect()
            }
            Some(Kind::BatchOfSameSize) if self.places.len() == own.len() => self.places.clone(),
            Some(Kind::GrownBatch) => {
                let kept = self.last_batch.min(own.len());
                let grown = own.len() > self.last_batch && self.last_batch > 0;
                let new = |place: usize| {
                    let old = self.places.get(place).copied().filter(|_| grown && place >= kept);
                    old.unwrap_or(own[place])
                };
                (0..own.len()).map(new).collect()
            }
            _ => own.to_vec(),
        };
        match self.fault {
            Some(Kind::GrownBatch) => {
                self.places.resize(self.places.len().max(own.len()), 0);
                self.places[..own.len()].copy_from_slice(own);
            }
            _ => self.places = own.to_vec(),
        }
        self.last_batch = own.len();
        let known = |(request, own): (usize, &usize)| {
            if self.requests.contains_key(&request) { request } else { *own }
        };
        asked.into_iter().zip(own).map(known).collect()
    }

    /// What is read of a request in a layer, for queries of one that holds as many keys as the call.
    fn read(
        &mut self,
        call: &Call,
        request: usize,
        own: usize,
        layer: usize,
        shortest: usize,
    ) -> Result<Read, Error> {
        let (keys, queries) = (call.inputs.dims().keys, call.inputs.dims().queries);
        let held = &self.requests[&request];
        let lengths = held.lengths.clone();
        let mut count = lengths[layer];
        match self.fault {
            Some(Kind::LengthOfLastAttend) => {
                let before = self.attended.insert((own, layer), count);
                count = before.map_or(count, |before| before.min(count));
            }
            Some(Kind::LengthOfLastLayer) => count = lengths.last().copied().unwrap_or(count).min(count),
            Some(Kind::ShortestOfBatch) => count = shortest,
            _ => {}
        }
        // The answer has a place for each key that the request should have, and no fewer than queries.
        let count = count.min(keys).max(queries);
        let size = self.opening.page_size;
        let pages = held.pages.clone();
        let (kv_heads, d, dv) = (self.opening.kv_heads, self.opening.head_dim, self.opening.value_dim);
        let slot = |position: usize| -> Option<&Slot> {
            self.pages[*pages.get(position / size)?][layer][position % size].as_ref()
        };
        let label = |position: usize| -> Option<&Array2<f32>> {
            let own = slot(position)?;
            match self.fault {
                Some(Kind::TableOffByOne) if position % size == size - 1 => {
                    let next = pages.get(position / size + 1);
                    let next = next.and_then(|&page| self.pages[page][layer][position % size].as_ref());
                    Some(next.map_or(&own.label, |next| &next.label))
                }
                Some(Kind::PartialPageUnlabelled) if (position / size + 1) * size > lengths[layer] => None,
                Some(Kind::LabelsOfShortest) if position >= shortest => None,
                Some(Kind::LabelOneStepLate) if position + 1 == lengths[layer] => None,
                _ => Some(&own.label),
            }
        };
        let gathered = |width: usize, of: &dyn Fn(usize, usize, usize) -> Option<f32>| {
            Array4::from_shape_fn((1, kv_heads, count, width), |(_, head, position, c)| {
                of(position, head, c).unwrap_or(0.0)
            })
        };
        let k = gathered(d, &|position, head, c| slot(position).map(|slot| slot.token.k[[head, c]]));
        let v = gathered(dv, &|position, head, c| slot(position).map(|slot| slot.token.v[[head, c]]));
        let mut labels = gathered(d, &|position, head, c| label(position).map(|label| label[[head, c]]));
        if self.is(Kind::LabelsByLength)
            && let Some(&first) = pages.first()
        {
            labels = self.by_length.entry((layer, first, count)).or_insert(labels).clone();
        }
        let parts = call.inputs.parts();
        let causal = !self.is(Kind::ChunkNotCausal);
        let of = |k: Array4<f32>, v: Array4<f32>| -> Result<Call, Error> {
            let inputs = Inputs::new(InputParts { k, v, causal, ..parts.clone() })?;
            Ok(Call { inputs: Arc::new(inputs), ..call.clone() })
        };
        let shortest = self.is(Kind::DenseWithShort).then_some(shortest);
        Ok(Read {
            ranking: of(labels, v.clone())?,
            attending: of(k, v)?,
            keys,
            shortest,
            tails: None,
            behind: None,
        })
    }
}

/// Where rows of scores, those of a head together, lie one behind the other and are written up to the end of their last tile: the
/// head and the position of each key that a row before it overwrites, for each request of these lengths.
fn lost_to_tails(lengths: &[usize], heads: usize, tile: usize) -> Vec<Vec<(usize, usize)>> {
    let (batch, width) = (lengths.len(), lengths.iter().copied().max().unwrap_or(0).max(1));
    let mut lost = vec![BTreeSet::new(); batch];
    for row in 0..heads * batch {
        let length = lengths[row % batch];
        for place in row * width + length..row * width + length.next_multiple_of(tile) {
            let (hit, key) = (place / width, place % width);
            if hit > row && hit < heads * batch && key < lengths[hit % batch] {
                lost[hit % batch].insert((hit / batch, key));
            }
        }
    }
    lost.into_iter().map(|lost| lost.into_iter().collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::lost_to_tails;

    /// By hand: rows of 5 scores; `*` is written with −∞ by a row before, `-` behind the end of a request.
    #[test]
    fn tails_reach_the_rows_behind() {
        // Lengths 5 and 3, one head, tiles of 4: row 0 writes places 5 to 7, which are the row of the second request.
        assert_eq!(lost_to_tails(&[5, 3], 1, 4), [vec![], vec![(0, 0), (0, 1), (0, 2)]]);
        // Tiles of 2: place 5 alone.
        assert_eq!(lost_to_tails(&[5, 3], 1, 2), [vec![], vec![(0, 0)]]);
        // The tail of the shorter one ends within its own row; with a second head row 1 reaches nothing either.
        assert_eq!(lost_to_tails(&[3, 5], 2, 4), [vec![(1, 0), (1, 1), (1, 2)], vec![]]);
        // A tail that spans several rows.
        assert_eq!(lost_to_tails(&[1, 2, 2], 1, 8), [vec![], vec![(0, 0), (0, 1)], vec![(0, 0), (0, 1)]]);
        assert_eq!(lost_to_tails(&[4, 4], 2, 4), [vec![], vec![]]);
        assert_eq!(lost_to_tails(&[], 2, 4), Vec::<Vec<_>>::new());
    }
}

//! Random sessions: a state machine does to a subject what a serving engine does to its cache. Prompts come whole or in chunks,
//! batches change in size and order, requests end and others take their room, prefixes are shared and diverge, drafts are taken
//! back, lengths lie around the edges of pages and tiles, room is used to the last token. What would be refused or not depending on
//! how pages are laid out is never asked.

use ndarray::{Array3, Axis};
use proptest::strategy::{Strategy, ValueTree};

use super::capabilities::{Capabilities, Feature};
use super::domain::Domain;
use super::recipe::{Words, mix};
use super::seed::test_runner;
use super::sequence_plan::{Pattern, SequencePlan};
use super::session::{Held, Opening, Outcome, Part, Session, Step};
use super::strategies::{AdditiveMask, Plan, Previous, Values, plans, tensor};
use crate::algorithm::{HeavySize, LabelBits, Storage};

/// The most requests at a time.
const MOST_REQUESTS: usize = 8;

/// The most layers.
const MOST_LAYERS: usize = 4;

/// Lengths lie around pages, and around a tile of one of these.
const TILES: [usize; 3] = [16, 32, 64];

/// The most room, in tokens, where the domain allows that little.
const MOST_ROOM: usize = 160;

/// A random session that a subject of these capabilities may be asked; `None` where this seed has none.
pub fn session(capabilities: &Capabilities, seed: u64) -> Option<Session> {
    let mut making = Making::new(capabilities, seed)?;
    let rounds = 4 + making.draw.below(10);
    making.begin();
    for _ in 0..rounds {
        making.round();
    }
    making.attend_all();
    let Making { instance, opening, steps, .. } = making;
    let session = Session { name: format!("random session of seed {seed}"), instance, opening, steps };
    capabilities.offers_session(&session).then_some(session)
}

/// A session that never ends: the same steps as of a random one, as they are wanted.
pub struct Stream<'a>(Making<'a>);

impl<'a> Stream<'a> {
    /// The stream of a seed; `None` where it has none.
    pub fn new(capabilities: &'a Capabilities, seed: u64) -> Option<Self> {
        session(capabilities, seed)?;
        Making::new(capabilities, seed).map(Self)
    }

    /// What is configured.
    pub fn instance(&self) -> &super::sequence::Instance {
        &self.0.instance
    }

    /// How it is opened.
    pub fn opening(&self) -> &Opening {
        &self.0.opening
    }

    /// The next steps.
    pub fn round(&mut self) -> Vec<Step> {
        self.0.round();
        std::mem::take(&mut self.0.steps)
    }

    /// The end of every request.
    pub fn end(&mut self) -> Vec<Step> {
        for request in self.0.live() {
            self.0.step(Step::Free { request });
        }
        std::mem::take(&mut self.0.steps)
    }
}

/// Numbers in the order in which they are drawn.
struct Draw {
    words: Words,
    drawn: u64,
}

impl Draw {
    fn word(&mut self) -> u64 {
        self.drawn += 1;
        self.words.word(self.drawn)
    }

    /// Less than `count`, which is at least 1.
    fn below(&mut self, count: usize) -> usize {
        (self.word() % count.max(1) as u64) as usize
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    fn pick<T: Copy>(&mut self, choices: &[T]) -> Option<T> {
        if choices.is_empty() { None } else { Some(choices[self.below(choices.len())]) }
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

struct Making<'a> {
    capabilities: &'a Capabilities,
    domain: Option<Domain>,
    plan: Plan,
    instance: super::sequence::Instance,
    opening: Opening,
    draw: Draw,
    held: Held,
    steps: Vec<Step>,
    tile: usize,
    most_requests: usize,
    next_request: usize,
    /// Tensors made so far.
    tensors: u64,
}

impl<'a> Making<'a> {
    fn new(capabilities: &'a Capabilities, seed: u64) -> Option<Self> {
        // Multiples of 32 are for calls that must be refused.
        let own = mix(seed) | 1;
        let mut draw = Draw { words: Words::new(own, 20), drawn: 0 };
        let mut plan = plans().new_tree(&mut test_runner(own)).ok()?.current();
        (plan.seed, plan.batch, plan.queries, plan.causal) = (own, 1, 1, true);
        (plan.previous, plan.additive) = (Previous::Absent, AdditiveMask::Absent);
        (plan.kv_heads, plan.group) = (plan.kv_heads.min(2), plan.group.min(2));
        if draw.below(4) > 0 {
            plan.selection.heavy_size = HeavySize::count(1 + draw.below(6)).ok()?;
        }
        // These leave the range of labels, in f16 also with many bits.
        if matches!(plan.q, Values::Huge | Values::Tiny) {
            plan.q = Values::Normal;
        }
        if matches!(plan.k, Values::Huge | Values::Tiny) || draw.below(3) > 0 {
            plan.k = Values::Normal;
        }
        let mut plan = plan.restricted(capabilities);
        let bits = plan.selection.label_bits;
        if plan.storage == Storage::F16 && bits.quantises() && bits.get() > 8 {
            plan.selection.label_bits = LabelBits::new(8).ok()?;
        }
        let domain = plan.domain_of(capabilities).cloned();
        let page_size = draw.pick(&[1, 2, 3, 4, 4, 8, 8, 16, 16])?;
        let page_size = domain.as_ref().map_or(page_size, |domain| domain.fit_page(page_size, own));
        let count = 1 + draw.below(MOST_LAYERS);
        let mut layers = vec![0, 1, 2, 4, 5, 9];
        draw.shuffle(&mut layers);
        layers.truncate(count);
        layers.sort_unstable();
        layers.iter_mut().for_each(|layer| *layer += capabilities.first_layer);
        let dense = draw.one_in(8) && capabilities.offers(Feature::DenseLayers);
        let dense_layer = dense.then(|| draw.below(count));
        let instance = SequencePlan {
            plan: plan.clone(),
            pattern: Pattern::Once,
            layers: layers.clone(),
            other_kinds: Vec::new(),
            prefers_q_proj: false,
            dense_layer,
            flaw: None,
            ragged: false,
            empty_rows: false,
        }
        .instance()
        .ok()?;
        let longest = domain.as_ref().map_or(1, |domain| domain.fit_keys(1, own));
        let least_pages = longest.div_ceil(page_size).max(1);
        let most_pages = (MOST_ROOM / page_size).clamp(3, 24).max(3 * least_pages);
        let capacity = page_size * (2 * least_pages + draw.below(most_pages - 2 * least_pages + 1));
        let opening = Opening {
            layers,
            capacity,
            page_size,
            heads: plan.kv_heads * plan.group,
            kv_heads: plan.kv_heads,
            head_dim: plan.head_dim(),
            value_dim: plan.value_dim,
            dtype: plan.storage,
            scaling: plan.scaling,
        };
        let tile = draw.pick(&TILES)?;
        let most_requests = 1 + draw.below(MOST_REQUESTS);
        Some(Self {
            capabilities,
            domain,
            plan,
            instance,
            held: Held::new(&opening),
            opening,
            draw,
            steps: Vec::new(),
            tile,
            most_requests,
            next_request: 0,
            tensors: 0,
        })
    }

    /// Packed rows [rows, heads, width].
    fn rows(&mut self, values: Values, [rows, heads, width]: [usize; 3]) -> Array3<f32> {
        self.tensors += 1;
        let words = Words::new(self.plan.seed, 100 + self.tensors);
        let bits = self.plan.selection.label_bits;
        let mut numbers = tensor(words, values, bits, [1, rows, heads, width]).index_axis_move(Axis(0), 0);
        // The codes of smaller ranges leave f16.
        let storage = self.plan.storage;
        let coarse = storage == Storage::F16 && bits.quantises();
        numbers.mapv_inplace(|x| storage.round(if coarse { (x * 64.0).round() / 64.0 } else { x }));
        numbers
    }

    fn append_of(&mut self, layer: usize, parts: &[Part]) -> Step {
        let rows = parts.iter().map(|(_, count)| count).sum();
        let Opening { kv_heads, head_dim, value_dim, .. } = self.opening;
        let k = self.rows(self.plan.k, [rows, kv_heads, head_dim]);
        let v = self.rows(Values::Normal, [rows, kv_heads, value_dim]);
        Step::Append { layer, parts: parts.to_vec(), k, v }
    }

    fn attend_of(&mut self, layer: usize, parts: &[Part]) -> Step {
        let rows = parts.iter().map(|(_, count)| count).sum();
        let q = self.rows(self.plan.q, [rows, self.opening.heads, self.opening.head_dim]);
        Step::Attend { layer, parts: parts.to_vec(), q }
    }

    /// Adds a step that must be done; false where it need not be.
    fn step(&mut self, step: Step) -> bool {
        let done = self.held.outcome(&step) == Outcome::Done;
        if done {
            self.held.apply(&step);
            self.steps.push(step);
        }
        done
    }

    /// What the model of a network does with new tokens: keys appended and queries asked, layer after layer. False where there is no
    /// room.
    fn forward(&mut self, parts: &[Part], queries: usize) -> bool {
        if parts.iter().any(|&(request, count)| count > self.room(request)) {
            return false;
        }
        let together = !self.capabilities.lacks.contains(&Feature::Batch);
        let batches: Vec<Vec<Part>> =
            if together { vec![parts.to_vec()] } else { parts.iter().map(|&part| vec![part]).collect() };
        // All layers first, or each with its queries.
        let all_first = self.draw.one_in(4);
        for parts in batches {
            for layer in self.opening.layers.clone() {
                let append = self.append_of(layer, &parts);
                if !self.step(append) {
                    return false;
                }
                if !all_first {
                    self.attend(layer, &parts, queries);
                }
            }
            if all_first {
                self.opening.layers.clone().into_iter().for_each(|layer| self.attend(layer, &parts, queries));
            }
        }
        true
    }

    /// The last queries of each part, as far as they may be asked.
    fn attend(&mut self, layer: usize, parts: &[Part], queries: usize) {
        let held = |request: usize| self.held.tokens(request, layer).len();
        let allowed: Vec<Part> = parts
            .iter()
            .filter_map(|&(request, count)| {
                let keys = held(request);
                let queries = queries.min(count).min(keys);
                [queries, 1]
                    .into_iter()
                    .find(|&m| m > 0 && m <= keys && self.allows(m, keys))
                    .map(|m| (request, m))
            })
            .collect();
        let Some(mut batch) = self.batch(allowed.len()) else { return };
        batch = batch.min(allowed.len());
        for parts in allowed.chunks(batch) {
            if self.batch(parts.len()) == Some(parts.len()) {
                let attend = self.attend_of(layer, parts);
                self.step(attend);
            }
        }
    }

    /// The largest batch that may be asked, up to a size; `None` where there is none.
    fn batch(&self, most: usize) -> Option<usize> {
        let allowed = |batch: &usize| {
            (*batch == 1 || self.capabilities.offers(Feature::Batch))
                && self.domain.as_ref().is_none_or(|domain| domain.allows_batch(*batch))
        };
        (1..=most).rev().find(allowed)
    }

    fn allows(&self, queries: usize, keys: usize) -> bool {
        (queries == 1 || self.capabilities.offers(Feature::ManyQueries))
            && self.capabilities.largest_keys.is_none_or(|largest| keys <= largest)
            && self.domain.as_ref().is_none_or(|domain| domain.allows_lengths(queries, keys))
    }

    /// A length around an edge of pages or tiles, or any, up to the most.
    fn length(&mut self, most: usize) -> usize {
        let (page, tile) = (self.opening.page_size, self.tile);
        let any = 1 + self.draw.below(most.min(3 * page + 8));
        let pages = page * (1 + self.draw.below(3));
        let choices = [
            1,
            page - 1,
            page,
            page + 1,
            pages,
            pages - 1,
            pages + 1,
            tile - 1,
            tile,
            tile + 1,
            any,
            any,
            any,
        ];
        let chosen = self.draw.pick(&choices).unwrap_or(1).clamp(1, most);
        let word = self.draw.word();
        self.domain.as_ref().map_or(chosen, |domain| domain.fit_keys(chosen, word))
    }

    /// The requests, in any order.
    fn live(&mut self) -> Vec<usize> {
        let mut live: Vec<usize> = self.held.requests().collect();
        self.draw.shuffle(&mut live);
        live
    }

    /// The most new keys of a request for which there is room.
    fn room(&self, request: usize) -> usize {
        let page = self.opening.page_size;
        let pages = |request: usize| self.held.length(request).div_ceil(page);
        let others: usize = self.held.requests().filter(|&other| other != request).map(pages).sum();
        let most = (self.opening.capacity / page).saturating_sub(others) * page;
        let largest = self.capabilities.largest_keys.unwrap_or(most).min(most);
        let most =
            self.domain.as_ref().map_or(largest, |domain| domain.keys_at_most(largest).unwrap_or(largest));
        most.saturating_sub(self.held.length(request))
    }

    fn new_request(&mut self) -> usize {
        // Numbers that are over come back now and then.
        let over = (0..self.next_request).find(|request| !self.held.requests().any(|held| held == *request));
        if let Some(over) = over.filter(|_| self.draw.one_in(3)) {
            return over;
        }
        // Numbers are not those of a batch's places.
        self.next_request += 1 + self.draw.below(3);
        self.next_request
    }

    fn begin(&mut self) {
        // As many as there may be, or fewer and longer ones.
        let crowded = self.draw.one_in(3);
        let count = if crowded { self.most_requests } else { 1 + self.draw.below(self.most_requests) };
        let most = self.opening.capacity.div_ceil(if crowded { 2 * count } else { 2 });
        for _ in 0..count {
            let length = self.length(most);
            self.prompt(length);
        }
    }

    /// A new request of a length, its keys appended whole or in chunks.
    fn prompt(&mut self, length: usize) -> Option<usize> {
        if self.held.requests().count() >= self.most_requests {
            return None;
        }
        let request = self.new_request();
        let mut left = length.min(self.room(request));
        if left == 0 {
            return None;
        }
        let in_chunks = self.draw.one_in(2);
        while left > 0 {
            let chunk = if in_chunks { self.length(left).min(left) } else { left };
            let queries = match self.draw.below(3) {
                0 => 1,
                1 => chunk,
                _ => 1 + self.draw.below(chunk),
            };
            self.forward(&[(request, chunk)], queries);
            left -= chunk;
        }
        Some(request)
    }

    fn round(&mut self) {
        let live = self.live();
        let Some(&one) = live.first() else { return self.begin() };
        match self.draw.below(18) {
            0..=3 => self.decode(),
            4 => {
                let length = self.length(self.opening.capacity);
                self.prompt(length);
            }
            5 => {
                self.step(Step::Free { request: one });
            }
            6 | 7 => self.take_room(one),
            8 | 9 => self.fork(one),
            10 => self.draft(one),
            11 | 12 => self.truncate(one),
            13 => self.exhaust(one),
            14 => self.refused(one),
            _ => self.chunks(),
        }
    }

    /// One more token of some requests, in any order.
    fn decode(&mut self) {
        let steps = 1 + self.draw.below(3);
        for _ in 0..steps {
            let mut live = self.live();
            let count = 1 + self.draw.below(live.len());
            live.truncate(count);
            let parts: Vec<Part> = live.into_iter().map(|request| (request, 1)).collect();
            if !parts.is_empty() {
                self.forward(&parts, 1);
            }
        }
    }

    /// Chunks of several requests together.
    fn chunks(&mut self) {
        let mut live = self.live();
        let count = 1 + self.draw.below(live.len());
        live.truncate(count);
        let most = (self.opening.capacity / 8).max(1);
        let parts: Vec<Part> = live.into_iter().map(|request| (request, self.length(most))).collect();
        if !parts.is_empty() {
            let queries = self.opening.capacity;
            self.forward(&parts, queries);
        }
    }

    /// A request ends, and another takes its room: shorter, equal or longer.
    fn take_room(&mut self, request: usize) {
        let length = self.held.length(request);
        self.step(Step::Free { request });
        let length = match self.draw.below(3) {
            0 => length,
            1 => 1 + self.draw.below(length.max(1)),
            _ => length + 1 + self.draw.below(self.opening.page_size),
        };
        self.prompt(length);
    }

    /// A length at an edge of a page, beside it, or any, up to the most.
    fn cut(&mut self, most: usize) -> usize {
        let page = self.opening.page_size;
        let edge = most / page * page;
        let any = self.draw.below(most + 1);
        let choices = [edge, edge, edge + 1, edge.saturating_sub(1), edge.saturating_sub(page), most, any];
        self.draw.pick(&choices).unwrap_or(most).clamp(usize::from(most > 0), most)
    }

    /// A shared prefix; the two diverge at once or later, either first.
    fn fork(&mut self, from: usize) {
        if self.held.requests().count() >= MOST_REQUESTS {
            return;
        }
        let (to, most) = (self.new_request(), self.held.length(from));
        let length = self.cut(most);
        if !self.step(Step::Fork { from, to, length }) {
            return;
        }
        if self.draw.one_in(4) {
            return;
        }
        let mut both = [from, to];
        self.draw.shuffle(&mut both);
        let count = 1 + self.draw.below(2);
        let one_by_one = self.draw.one_in(2);
        let parts: Vec<Part> = both[..count].iter().map(|&request| (request, self.length(4))).collect();
        if one_by_one {
            parts.iter().for_each(|&part| {
                self.forward(&[part], 1);
            });
        } else {
            self.forward(&parts, 1);
        }
        self.attend_all();
    }

    /// Draft tokens are asked together, and some of them taken back; others come in their place.
    fn draft(&mut self, request: usize) {
        let count = 2 + self.draw.below(4);
        if !self.forward(&[(request, count)], count) {
            return;
        }
        let rejected = 1 + self.draw.below(count);
        let length = self.held.length(request) - rejected;
        self.step(Step::Truncate { request, length });
        let tail = 1 + self.draw.below(rejected + 1);
        self.forward(&[(request, tail)], tail);
    }

    /// The end of a request is taken back, and it mostly grows again with another tail.
    fn truncate(&mut self, request: usize) {
        let most = self.held.length(request);
        let length = self.cut(most);
        self.step(Step::Truncate { request, length });
        if self.draw.below(4) > 0 {
            let tail = match self.draw.below(3) {
                0 => 1,
                1 => (most - length).max(1),
                _ => self.length(most - length + 2),
            };
            self.forward(&[(request, tail)], tail);
        } else {
            self.attend_all();
        }
    }

    /// Room is used to the last token; more is refused; a request ends, and there is room again.
    fn exhaust(&mut self, request: usize) {
        let room = self.room(request);
        if room > 0 && !self.forward(&[(request, room)], 1) {
            return;
        }
        self.too_much(request);
        self.attend_all();
        let live = self.live();
        if let Some(&over) = live.first() {
            self.take_room(over);
        }
    }

    /// More keys than there is room for, of one request or of several together.
    fn too_much(&mut self, request: usize) {
        if !self.capabilities.offers(Feature::Refusals) {
            return;
        }
        let layer = self.opening.layers[self.draw.below(self.opening.layers.len())];
        let held: usize = self.distinct(layer);
        let new = self.opening.capacity - held + 1;
        let mut parts = vec![(request, new)];
        let other = self.held.requests().find(|&other| other != request);
        if let (Some(other), true, true) = (other, new > 1, self.capabilities.offers(Feature::Batch)) {
            let first = 1 + self.draw.below(new - 1);
            parts = vec![(other, first), (request, new - first)];
        }
        let append = self.append_of(layer, &parts);
        self.refusal(append);
    }

    fn distinct(&self, layer: usize) -> usize {
        let requests = self.held.requests();
        let tokens =
            requests.flat_map(|request| self.held.tokens(request, layer)).map(std::sync::Arc::as_ptr);
        tokens.collect::<std::collections::BTreeSet<_>>().len()
    }

    /// Adds a step that must be refused.
    fn refusal(&mut self, step: Step) {
        if matches!(self.held.outcome(&step), Outcome::Refused(_)) {
            self.steps.push(step);
        }
    }

    /// A step that must be refused, and everyone asked after it: nothing has changed.
    fn refused(&mut self, one: usize) {
        if !self.capabilities.offers(Feature::Refusals) {
            return;
        }
        let unknown = self.next_request + 4;
        let layer = self.opening.layers[self.draw.below(self.opening.layers.len())];
        let keys = self.held.tokens(one, layer).len();
        let length = self.held.length(one);
        let step = match self.draw.below(11) {
            0 => self.attend_of(layer, &[(unknown, 1)]),
            1 => Step::Truncate { request: unknown, length: 1 },
            2 => Step::Free { request: unknown },
            3 => Step::Fork { from: unknown, to: unknown + 1, length: 1 },
            4 => Step::Fork { from: one, to: one, length: 1 },
            5 => Step::Fork { from: one, to: unknown, length: length + 1 },
            6 => Step::Truncate { request: one, length: length + 1 },
            7 => self.attend_of(layer, &[(one, keys + 1)]),
            8 => self.append_of(layer + 100, &[(one, 1)]),
            9 => match self.append_of(layer, &[(one, 2)]) {
                Step::Append { layer, k, v, .. } => Step::Append { layer, parts: vec![(one, 1)], k, v },
                step => step,
            },
            _ => return self.too_much(one),
        };
        self.refusal(step);
        self.attend_all();
    }

    /// Everyone is asked in one layer, in any order.
    fn attend_all(&mut self) {
        let layer = self.opening.layers[self.draw.below(self.opening.layers.len())];
        let parts: Vec<Part> = self.live().into_iter().map(|request| (request, 1)).collect();
        if !parts.is_empty() {
            self.attend(layer, &parts, 1);
        }
    }
}

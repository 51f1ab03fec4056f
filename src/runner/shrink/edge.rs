//! What holds on the other side of a counterexample: the same question with other numbers of keys, and with another H, asked
//! until one that conforms and one that fails lie side by side, and then at a few larger sizes, which tell a threshold from a
//! period. Nothing is said of small counterexamples: with one key fewer there is often nothing left to choose from.

use serde::Serialize;

use super::Limits;
use super::reductions::with_keys;
use super::search::Search;
use crate::algorithm::HeavySize;
use crate::cases::{Capabilities, Sequence, StageCall};

/// Counterexamples of no more keys say little about sizes.
const LEAST: usize = 16;

/// The most questions for one counterexample.
const MOST_TRIES: usize = 96;

/// The most keys that are asked.
const MOST_KEYS: usize = 1 << 20;

/// Neighbouring sizes of which one conforms and the other fails.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Edge {
    /// `n` or `H`.
    pub quantity: &'static str,
    /// The size that conforms: nothing asked of this size fails.
    pub conforms: usize,
    /// The next one that may be asked, which fails.
    pub fails: usize,
    /// Larger sizes that conform.
    pub also_conforms: Vec<usize>,
    /// Larger sizes that fail.
    pub also_fails: Vec<usize>,
}

impl std::fmt::Display for Edge {
    /// "n = 64 conforms, n = 65 fails; fails at 66, 129, 193, conforms at 128, 192"
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { quantity, conforms, fails, also_conforms, also_fails } = self;
        write!(f, "{quantity} = {conforms} conforms, {quantity} = {fails} fails")?;
        let list = |sizes: &[usize]| sizes.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
        let parts = [("fails", also_fails), ("conforms", also_conforms)]
            .map(|(what, sizes)| (!sizes.is_empty()).then(|| format!("{what} at {}", list(sizes))));
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        if parts.is_empty() { Ok(()) } else { write!(f, "; {}", parts.join(", ")) }
    }
}

/// Where keys are left out or repeated.
#[derive(Debug, Clone, Copy)]
pub(in crate::runner) enum Place {
    Front,
    Middle,
    End,
}

/// A question that can be asked of other sizes.
pub(in crate::runner) trait Resized: PartialEq + Sized {
    /// n of the largest call.
    fn keys(&self) -> usize;
    /// H, where it is a count.
    fn heavy_size(&self) -> Option<usize>;
    /// With as many keys more or fewer: those of a place left out, or the first, middle or last one repeated.
    fn resized(&self, place: Place, by: isize) -> Option<Self>;
    fn with_heavy_size(&self, heavy_size: usize) -> Option<Self>;
}

/// The indices of keys that are left, or that are repeated.
pub(super) fn indices(keys: usize, place: Place, by: isize) -> Option<Vec<usize>> {
    let at = match place {
        Place::Front => 0,
        Place::Middle => keys / 2,
        Place::End => keys - 1,
    };
    let count = by.unsigned_abs();
    if by >= 0 {
        return Some((0..at).chain(std::iter::repeat_n(at, count)).chain(at..keys).collect());
    }
    let left = keys.checked_sub(count).filter(|&left| left > 0)?;
    let start = match place {
        Place::Front => 0,
        Place::Middle => left / 2,
        Place::End => left,
    };
    Some((0..start).chain(start + count..keys).collect())
}

impl Resized for Sequence {
    fn keys(&self) -> usize {
        super::most_keys(self)
    }

    fn heavy_size(&self) -> Option<usize> {
        match self.instance.selection.heavy_size {
            HeavySize::Count(count) => Some(count.get()),
            HeavySize::Fraction(_) => None,
        }
    }

    fn resized(&self, place: Place, by: isize) -> Option<Self> {
        with_keys(self, |keys| indices(keys, place, by))
    }

    fn with_heavy_size(&self, heavy_size: usize) -> Option<Self> {
        let mut changed = self.clone();
        changed.instance.selection.heavy_size = HeavySize::count(heavy_size).ok()?;
        Some(changed)
    }
}

impl Resized for StageCall {
    fn keys(&self) -> usize {
        self.dims().keys
    }

    fn heavy_size(&self) -> Option<usize> {
        match self {
            Self::Scores(call) => Some(call.heavy_size().get()),
            Self::Selection(_) => None,
        }
    }

    fn resized(&self, place: Place, by: isize) -> Option<Self> {
        super::stages::with_keys(self, &indices(self.dims().keys, place, by)?)
    }

    fn with_heavy_size(&self, heavy_size: usize) -> Option<Self> {
        super::stages::with_heavy_size(self, heavy_size)
    }
}

/// The edges of a counterexample, in n and then in H, of which `fails` says whether a question fails.
pub(in crate::runner) fn edges<T: Resized>(
    counterexample: T,
    limits: Limits,
    capabilities: &Capabilities,
    offers: fn(&Capabilities, &T) -> bool,
    fails: &mut dyn FnMut(&T) -> bool,
) -> Vec<Edge> {
    let limits = Limits { time: limits.time / 4, tries: limits.tries.min(MOST_TRIES), ..limits };
    let (keys, heavy_size) = (counterexample.keys(), counterexample.heavy_size());
    let mut search = Search::new(counterexample, limits, capabilities, offers, fails);
    let of_keys = search.edge("n", keys, MOST_KEYS.max(keys), &mut Search::fails_with_keys);
    let of_heavy_size =
        heavy_size.and_then(|size| search.edge("H", size, keys, &mut Search::fails_with_heavy_size));
    of_keys.into_iter().chain(of_heavy_size).collect()
}

impl<T: Resized> Search<'_, T> {
    /// The edge at or below a size that fails.
    fn edge(
        &mut self,
        quantity: &'static str,
        size: usize,
        most: usize,
        fails: &mut dyn FnMut(&mut Self, usize) -> Option<bool>,
    ) -> Option<Edge> {
        if size <= LEAST {
            return None;
        }
        let (conforms, failing) = self.neighbours(size, fails)?;
        if failing <= LEAST {
            return None;
        }
        let mut edge =
            Edge { quantity, conforms, fails: failing, also_conforms: Vec::new(), also_fails: Vec::new() };
        let larger = [failing + 1, 2 * conforms, 2 * conforms + 1, 3 * conforms, 3 * conforms + 1];
        for size in larger.into_iter().filter(|&size| size > failing && size <= most) {
            match fails(self, size) {
                Some(true) => edge.also_fails.push(size),
                Some(false) => edge.also_conforms.push(size),
                None => {}
            }
        }
        edge.also_fails.dedup();
        Some(edge)
    }

    /// A size that conforms and the next one that may be asked, which fails, at or below one that fails.
    fn neighbours(
        &mut self,
        size: usize,
        fails: &mut dyn FnMut(&mut Self, usize) -> Option<bool>,
    ) -> Option<(usize, usize)> {
        // A domain may leave out what lies next to it.
        let steps = std::iter::successors(Some(1), |step| Some(2 * step));
        let mut below = steps.take_while(|&step| step < size).map(|step| size - step);
        let (next, next_fails) = below.find_map(|next| Some((next, fails(self, next)?)))?;
        if !next_fails {
            return Some((next, size));
        }
        // Shrinking ended early: halve what lies between.
        let (mut conforming, mut failing) = (0, next);
        while failing - conforming > 1 {
            let middle = conforming + (failing - conforming) / 2;
            match fails(self, middle)? {
                true => failing = middle,
                false => conforming = middle,
            }
        }
        (conforming > 0).then_some((conforming, failing))
    }

    /// Whether something of this many keys fails; `None` where nothing may be asked, or the limits are reached.
    fn fails_with_keys(&mut self, keys: usize) -> Option<bool> {
        let by = keys as isize - self.current.keys() as isize;
        let heavy_size = self.current.heavy_size();
        // Within H as it is, and within as many more or fewer.
        let moved = heavy_size.and_then(|size| size.checked_add_signed(by)).filter(|&size| size > 0);
        let variants: Vec<_> = std::iter::once(None)
            .chain(moved.map(Some))
            .flat_map(|size| [Place::Front, Place::Middle, Place::End].map(|place| (place, size)))
            .collect();
        let of = |search: &Self, (place, size): (Place, Option<usize>)| {
            let resized = search.current.resized(place, by)?;
            match size {
                None => Some(resized),
                Some(size) => resized.with_heavy_size(size),
            }
        };
        let mut asked = None;
        for variant in variants {
            if self.exhausted() {
                return None;
            }
            let candidate = of(self, variant);
            match self.question(candidate.as_ref()) {
                Some(true) => return Some(true),
                Some(false) => asked = Some(false),
                None => {}
            }
        }
        asked.filter(|_| !self.exhausted())
    }

    fn fails_with_heavy_size(&mut self, heavy_size: usize) -> Option<bool> {
        let candidate = self.current.with_heavy_size(heavy_size);
        self.question(candidate.as_ref())
    }
}

//! The search for the smallest thing that still fails, whatever it is: candidates are tried one after the other within the
//! limits, and one that fails takes the place of what it was made from. Runs of parts are taken away, long ones first.

use std::time::{Duration, Instant};

use super::Limits;
use crate::cases::Capabilities;

/// Where there are more parts than this, short runs are taken away only from some positions.
const MANY: usize = 512;

/// How many positions these are, and how many where runs are at least this share of all.
const POSITIONS: usize = 4;
const SHARE: usize = 16;

pub(super) struct Search<'a, T> {
    pub(super) current: T,
    pub(super) capabilities: &'a Capabilities,
    limits: Limits,
    start: Instant,
    pub(super) tries: usize,
    offers: fn(&Capabilities, &T) -> bool,
    fails: &'a mut dyn FnMut(&T) -> bool,
}

/// A thing without the parts from a first to before a last one; `None` where nothing valid is left.
pub(super) type Without<'w, T> = &'w dyn Fn(&T, usize, usize) -> Option<T>;

impl<'a, T: PartialEq> Search<'a, T> {
    pub(super) fn new(
        start: T,
        limits: Limits,
        capabilities: &'a Capabilities,
        offers: fn(&Capabilities, &T) -> bool,
        fails: &'a mut dyn FnMut(&T) -> bool,
    ) -> Self {
        Self { current: start, capabilities, limits, start: Instant::now(), tries: 0, offers, fails }
    }

    pub(super) fn exhausted(&self) -> bool {
        self.limits.exhausted(self.start, self.tries)
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Takes a candidate that fails and differs.
    pub(super) fn accept(&mut self, candidate: Option<T>) -> bool {
        self.take(candidate.filter(|candidate| *candidate != self.current))
    }

    /// Takes a candidate that fails. The caller knows that it is plainer, if only by the sign of a zero.
    pub(super) fn take(&mut self, candidate: Option<T>) -> bool {
        let taken = self.question(candidate.as_ref()) == Some(true);
        if let (true, Some(candidate)) = (taken, candidate) {
            self.current = candidate;
        }
        taken
    }

    /// Whether a candidate fails; `None` where it may not be asked, or the limits are reached, also by the answer.
    pub(super) fn question(&mut self, candidate: Option<&T>) -> Option<bool> {
        let candidate = candidate?;
        if self.exhausted() || !(self.offers)(self.capabilities, candidate) {
            return None;
        }
        self.tries += 1;
        let fails = (self.fails)(candidate);
        // A question that was cut short, as the time is over, says nothing.
        (self.start.elapsed() < self.limits.time).then_some(fails)
    }

    /// Takes away runs from the front, the end and the middle, each in several ways. Their lengths are powers of two, of which
    /// domains often hold multiples only, and halve where nothing fails any more, down to a `finest`-th of what is left: a few
    /// questions for each halving, so that large things are asked seldom.
    pub(super) fn bisect(
        &mut self,
        count: impl Fn(&T) -> usize,
        finest: usize,
        ways: &[Without<'_, T>],
    ) -> bool {
        let mut changed = false;
        let longest = |count: usize| if count < 2 { 0 } else { 1usize << (count / 2).ilog2() };
        let mut run = longest(count(&self.current));
        // What worked last is likely to work again.
        let mut order: Vec<(usize, Without<'_, T>)> =
            (0..3).flat_map(|place| ways.iter().map(move |&way| (place, way))).collect();
        while run > 0 && run.saturating_mul(finest) >= count(&self.current) && !self.exhausted() {
            let total = count(&self.current);
            let taken = order.iter().position(|&(place, way)| {
                let start = [0, total - run, (total - run) / 2][place];
                let candidate = (!self.exhausted()).then(|| way(&self.current, start, start + run));
                self.accept(candidate.flatten())
            });
            match taken {
                Some(index) => {
                    changed = true;
                    order[..=index].rotate_right(1);
                    run = run.min(longest(count(&self.current)));
                }
                None => run /= 2,
            }
        }
        changed
    }

    /// Takes away runs from every position, long runs first, then single parts. Where there are many parts, short runs are
    /// taken from evenly spread positions only.
    pub(super) fn drop_each(
        &mut self,
        count: impl Fn(&T) -> usize,
        without: impl Fn(&T, usize, usize) -> Option<T>,
    ) -> bool {
        let mut changed = false;
        let mut run = count(&self.current) / 2;
        while run > 0 {
            let mut start = 0;
            while start < count(&self.current) && count(&self.current) > 1 && !self.exhausted() {
                let total = count(&self.current);
                let candidate = without(&self.current, start, (start + run).min(total));
                if self.accept(candidate) {
                    changed = true;
                } else {
                    let spread = if total > MANY && run < total / SHARE { total / POSITIONS } else { 1 };
                    start += run.max(spread);
                }
            }
            run /= 2;
        }
        changed
    }
}

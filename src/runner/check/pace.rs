//! How the time of a check is spent: in stages of growing size, each with a share of the time that is left. How long the next
//! sequence will take is told from those before it. A slow subject thus gets a few sequences of each size that it can pay for,
//! and none that would overrun the time by much.

use std::time::Duration;

/// This many sequences of a stage are asked even if they take more than its share, where the rest of the time allows them.
const FEW: usize = 3;

/// Verdicts alone take about this long for each operation of a call, in seconds.
const LEAST_PER_OPERATION: f64 = 1e-9;

/// Seconds that sequences took and the operations of their calls: sums, and sums of products.
#[derive(Debug, Clone, Copy, Default)]
struct Measured {
    sequences: f64,
    seconds: f64,
    operations: f64,
    squares: f64,
    products: f64,
}

impl Measured {
    fn add(&mut self, operations: f64, seconds: f64) {
        self.sequences += 1.0;
        self.seconds += seconds;
        self.operations += operations;
        self.squares += operations * operations;
        self.products += operations * seconds;
    }

    /// How long so many operations take, in seconds, by the line that fits best: so long for any sequence, and so long for each
    /// operation, neither of them negative.
    fn expected(&self, operations: f64) -> f64 {
        if self.sequences == 0.0 {
            return 0.0;
        }
        let spread = self.sequences * self.squares - self.operations * self.operations;
        let slope = (self.sequences * self.products - self.operations * self.seconds) / spread;
        let slope = if spread > 0.0 { slope.max(LEAST_PER_OPERATION) } else { LEAST_PER_OPERATION };
        let start = (self.seconds - slope * self.operations) / self.sequences;
        if start >= 0.0 {
            return start + slope * operations;
        }
        (self.products / self.squares).max(LEAST_PER_OPERATION) * operations
    }
}

/// The time of a check, and the stage under way. All times count from the start of the check, in seconds.
#[derive(Debug, Clone)]
pub(super) struct Pace {
    total: f64,
    began: f64,
    end: f64,
    /// How many sequences of the stage were asked, and their operations.
    asked: usize,
    operations: usize,
    usual: Measured,
    /// All sequences, those whose time says little of others among them.
    all: Measured,
}

impl Pace {
    pub(super) fn new(total: Duration) -> Self {
        let (usual, all) = Default::default();
        Self { total: total.as_secs_f64(), began: 0.0, end: 0.0, asked: 0, operations: 0, usual, all }
    }

    /// Begins a stage that gets `share` of the time that is left, from 0 to 1.
    pub(super) fn begin(&mut self, elapsed: f64, share: f64) {
        (self.began, self.end) = (elapsed, elapsed + share * self.left(elapsed));
        (self.asked, self.operations) = (0, 0);
    }

    /// Which part of the time has passed, from 0 to 1.
    pub(super) fn done(&self, elapsed: f64) -> f64 {
        (elapsed / self.total).clamp(0.0, 1.0)
    }

    /// The time that is left.
    pub(super) fn left(&self, elapsed: f64) -> f64 {
        (self.total - elapsed).max(0.0)
    }

    /// Whether a sequence of so many operations is asked now.
    pub(super) fn may_ask(&self, elapsed: f64, operations: usize) -> bool {
        let end = elapsed + self.expected(operations);
        elapsed < self.total && end <= self.total && (self.asked < FEW || end <= self.end)
    }

    /// The same for one that is like those before it.
    pub(super) fn may_ask_usual(&self, elapsed: f64) -> bool {
        self.may_ask(elapsed, self.operations / self.asked.max(1))
    }

    /// The same for one that may take the first half of the stage.
    pub(super) fn may_ask_in_half(&self, elapsed: f64, operations: usize) -> bool {
        elapsed + self.expected(operations) <= (self.began + self.end) / 2.0
    }

    /// Counts a sequence of the stage and the seconds it took; `is_usual` is false where these say little of others.
    pub(super) fn count(&mut self, operations: usize, seconds: f64, is_usual: bool) {
        self.asked += 1;
        self.operations += operations;
        self.all.add(operations as f64, seconds);
        if is_usual {
            self.usual.add(operations as f64, seconds);
        }
    }

    /// How long so many operations take, in seconds, as far as those before tell.
    fn expected(&self, operations: usize) -> f64 {
        let known = if self.usual.sequences > 0.0 { self.usual } else { self.all };
        known.expected(operations as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A subject and a plan of equal stages, each of sequences of so many operations; how many of each are asked, and when the
    /// last one ends.
    fn asked(seconds: f64, stages: &[usize], takes: impl Fn(usize) -> f64) -> (Vec<usize>, f64) {
        let mut pace = Pace::new(Duration::from_secs_f64(seconds));
        let mut elapsed = 0.0;
        let count = |(index, &operations): (usize, &usize)| {
            pace.begin(elapsed, 1.0 / (stages.len() - index) as f64);
            while pace.may_ask(elapsed, operations) {
                elapsed += takes(operations);
                pace.count(operations, takes(operations), true);
            }
            pace.asked
        };
        (stages.iter().enumerate().map(count).collect(), elapsed)
    }

    #[test]
    fn stages_share_the_time() {
        let (counts, end) = asked(60.0, &[1, 4, 16, 64], |_| 0.1);
        assert!(counts.iter().all(|count| (140..=155).contains(count)), "{counts:?}");
        assert!((59.0..=60.2).contains(&end), "{end}");
    }

    #[test]
    fn a_few_are_asked_of_each_size_that_can_be_paid_for_and_no_more() {
        // 1 s, 4 s, 16 s, and 64 s, which would overrun the time.
        let (counts, end) = asked(60.0, &[1, 4, 16, 64], |operations| operations as f64);
        assert_eq!(counts[3], 0, "{counts:?}");
        assert!(counts[1] >= FEW && counts[2] >= 1, "{counts:?}");
        assert!(end <= 60.0, "{end}");
    }

    #[test]
    fn the_time_of_a_sequence_follows_from_its_operations() {
        let measured = |takes: fn(f64) -> f64| {
            let mut measured = Measured::default();
            [1e3, 2e3, 1e5].iter().for_each(|&operations| measured.add(operations, takes(operations)));
            measured.expected(1e6)
        };
        let close = |found: f64, expected: f64| (found - expected).abs() < 1e-3 * expected + 1e-9;
        assert!(close(measured(|_| 0.1), 0.101));
        assert!(close(measured(|operations| 0.1 + 1e-5 * operations), 10.1));
        assert!(close(measured(|operations| 1e-5 * operations), 10.0));
        assert!(measured(|operations| 1e-10 * operations) > 9e-4);
        assert_eq!(Measured::default().expected(1e9), 0.0);
    }

    #[test]
    fn one_half_is_for_goldens() {
        let mut pace = Pace::new(Duration::from_secs(20));
        pace.count(1, 1.0, true);
        pace.begin(0.0, 0.5);
        assert!(pace.may_ask_in_half(3.9, 1) && !pace.may_ask_in_half(4.5, 1));
        assert!(!pace.may_ask(19.5, 1) && pace.may_ask(18.9, 1));
    }
}

//! How the time of a check is spent: in stages of growing size, each with a share of the time that is left. How long the next
//! sequence will take is told from those before it. A slow subject thus gets a few sequences of each size that it can pay for,
//! and none that would overrun the time by much.

use std::time::Duration;

/// This many sequences of a stage are asked even if they take more than its share, where the rest of the time allows them.
const FEW: usize = 3;

/// Seconds that sequences took, and the operations of their calls.
#[derive(Debug, Clone, Copy, Default)]
struct Measured {
    sequences: usize,
    seconds: f64,
    operations: f64,
}

impl Measured {
    fn add(&mut self, operations: usize, seconds: f64) {
        self.sequences += 1;
        self.seconds += seconds;
        self.operations += operations as f64;
    }
}

/// The time of a check, and the stage under way. All times count from the start of the check, in seconds.
#[derive(Debug, Clone)]
pub(super) struct Pace {
    total: f64,
    began: f64,
    end: f64,
    asked: usize,
    now: Measured,
    before: Measured,
    /// All sequences of all stages, those whose time says little of others among them.
    all: Measured,
}

impl Pace {
    pub(super) fn new(total: Duration) -> Self {
        let (now, before, all) = Default::default();
        Self { total: total.as_secs_f64(), began: 0.0, end: 0.0, asked: 0, now, before, all }
    }

    /// Begins a stage that gets `share` of the time that is left, from 0 to 1.
    pub(super) fn begin(&mut self, elapsed: f64, share: f64) {
        (self.began, self.end, self.asked) = (elapsed, elapsed + share * self.left(elapsed), 0);
        if self.now.sequences > 0 {
            self.before = std::mem::take(&mut self.now);
        }
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
        self.may_ask(elapsed, self.now.operations as usize / self.now.sequences.max(1))
    }

    /// The same for one that may take the first half of the stage.
    pub(super) fn may_ask_in_half(&self, elapsed: f64, operations: usize) -> bool {
        elapsed + self.expected(operations) <= (self.began + self.end) / 2.0
    }

    /// Counts a sequence of the stage and the seconds it took; `is_usual` is false where these say little of others.
    pub(super) fn count(&mut self, operations: usize, seconds: f64, is_usual: bool) {
        self.asked += 1;
        self.all.add(operations, seconds);
        if is_usual {
            self.now.add(operations, seconds);
        }
    }

    /// How long so many operations take, in seconds, as far as the stage has shown, or the one before it.
    fn expected(&self, operations: usize) -> f64 {
        let known = [self.now, self.before, self.all].into_iter().find(|known| known.operations > 0.0);
        known.map_or(0.0, |known| known.seconds / known.operations * operations as f64)
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
    fn one_half_is_for_goldens() {
        let mut pace = Pace::new(Duration::from_secs(20));
        pace.count(1, 1.0, true);
        pace.begin(0.0, 0.5);
        assert!(pace.may_ask_in_half(3.9, 1) && !pace.may_ask_in_half(4.5, 1));
        assert!(!pace.may_ask(19.5, 1) && pace.may_ask(18.9, 1));
    }
}

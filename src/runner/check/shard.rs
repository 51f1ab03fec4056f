//! A check split over several machines or processes: each asks every n-th question of the same seed.

use std::fmt;
use std::num::NonZeroUsize;
use std::str::FromStr;

use serde::Serialize;

/// One of several shares of what a check asks, numbered from 1. All of them together ask what one check alone would, each question
/// once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Shard {
    number: NonZeroUsize,
    of: NonZeroUsize,
}

impl Shard {
    /// All of it.
    pub const WHOLE: Self = Self { number: NonZeroUsize::MIN, of: NonZeroUsize::MIN };

    /// One of so many; `None` where the number is above it.
    pub fn new(number: NonZeroUsize, of: NonZeroUsize) -> Option<Self> {
        (number <= of).then_some(Self { number, of })
    }

    /// Whether it is all there is.
    pub fn is_whole(&self) -> bool {
        self.of == NonZeroUsize::MIN
    }

    /// Whether it holds the question with an index, from 0 on.
    pub fn holds(self, index: usize) -> bool {
        index % self.of == self.number.get() - 1
    }

    /// The index of its own question with a number, from 0 on.
    pub(super) fn index(self, own: usize) -> usize {
        own * self.of.get() + self.number.get() - 1
    }

    /// How many of so many questions it holds.
    pub(super) fn share(self, count: usize) -> usize {
        count.saturating_add(self.of.get() - self.number.get()) / self.of
    }
}

impl Default for Shard {
    fn default() -> Self {
        Self::WHOLE
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.of)
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse::<NonZeroUsize>().ok();
        let shard = text.split_once('/').and_then(|(own, of)| Self::new(number(own)?, number(of)?));
        shard.ok_or_else(|| {
            format!("found {text:?}, expected a number and how many there are, 3/16 for the third of 16")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Shard;

    #[test]
    fn shares_hold_each_question_once() {
        for of in 1..6 {
            let shards: Vec<Shard> =
                (1..=of).map(|number| format!("{number}/{of}").parse().unwrap()).collect();
            for count in 0..20 {
                let mut held: Vec<usize> = Vec::new();
                for shard in &shards {
                    let own: Vec<usize> = (0..shard.share(count)).map(|own| shard.index(own)).collect();
                    assert_eq!(own, (0..count).filter(|&index| shard.holds(index)).collect::<Vec<_>>());
                    held.extend(own);
                }
                held.sort_unstable();
                assert_eq!(held, (0..count).collect::<Vec<_>>());
            }
        }
        assert_eq!(Shard::WHOLE.share(usize::MAX), usize::MAX);
    }

    #[test]
    fn what_is_no_shard_is_refused() {
        for text in ["", "3", "0/4", "5/4", "1/0", "-1/2", "1/2/3", "a/b"] {
            let found = text.parse::<Shard>().unwrap_err();
            assert!(found.contains(&format!("found {text:?}, expected")), "{found}");
        }
    }
}

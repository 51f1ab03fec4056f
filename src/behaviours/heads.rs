//! SPEC §2.7 and what an implementation may do instead: whose scores are taken together, how, and which heads share the
//! selection that follows.

use crate::algorithm::config::Combined;
use crate::algorithm::{Dims, HeadMode, Ranks, Storage};

/// How heads share a selection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Heads {
    /// As configured.
    #[default]
    Configured,
    /// Each head alone, whatever is configured.
    Alone,
    /// Scores summed over heads, whatever is configured.
    Summed,
    /// The mean of scores in place of their sum.
    Mean,
    /// The largest score in place of the sum or the mean.
    LargestForSum,
    /// The sum in place of the largest score.
    SumForLargest,
    /// All heads where those of one KV head are configured.
    AllForGroup,
    /// Those of one KV head where all heads are configured.
    GroupForAll,
    /// Of a group's heads every hk-th in place of g in a row.
    Strided,
    /// The largest score of each KV head's heads, summed over KV heads, where a largest score is configured.
    SumOfMaxima,
    /// The scores of the first of the heads that share a selection.
    First,
    /// Where all heads share a selection, each of so many parts of them has its own.
    InParts(usize),
    /// This head has no part in the scores that heads share.
    Without(usize),
}

impl Heads {
    /// What becomes of a configured mode.
    pub fn sharing(self, configured: HeadMode) -> Sharing {
        use HeadMode::{GroupMax, GroupMean, GroupSum, Max, Mean, PerHead, SummedLabels, SummedScores};
        let mode = match (self, configured) {
            (Self::Alone, _) => PerHead,
            (Self::Summed, _) => SummedScores,
            (Self::Mean, SummedScores) => Mean,
            (Self::Mean, GroupSum) => GroupMean,
            (Self::LargestForSum, SummedScores | Mean) => Max,
            (Self::LargestForSum, GroupSum | GroupMean) => GroupMax,
            (Self::SumForLargest, Max) => SummedScores,
            (Self::SumForLargest, GroupMax) => GroupSum,
            (Self::AllForGroup, GroupSum) => SummedScores,
            (Self::AllForGroup, GroupMean) => Mean,
            (Self::AllForGroup, GroupMax) => Max,
            (Self::GroupForAll, SummedScores) => GroupSum,
            (Self::GroupForAll, Mean) => GroupMean,
            (Self::GroupForAll, Max) => GroupMax,
            (Self::Strided, GroupSum | GroupMean | GroupMax) => return Sharing::Strided(configured),
            (Self::SumOfMaxima, Max | GroupMax) => return Sharing::SumOfMaxima,
            (Self::First, mode) if !matches!(mode, PerHead | SummedLabels) => return Sharing::FirstOf(mode),
            (Self::Without(head), mode) if !matches!(mode, PerHead | SummedLabels) => {
                return Sharing::Without(mode, head);
            }
            (Self::InParts(parts), SummedScores | Mean | Max) => return Sharing::InParts(configured, parts),
            (_, mode) => mode,
        };
        Sharing::Mode(mode)
    }
}

/// What becomes of ranks (SPEC §2.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum RankSplit {
    /// As configured.
    #[default]
    Configured,
    /// All heads are one part, however many ranks there are.
    Ignored,
    /// Parts are summed as they are.
    NotRounded,
    /// Heads are taken together in so many parts, exchanged in a type, where no ranks are configured and the heads can be split so.
    Undeclared(u64, Storage),
}

impl RankSplit {
    /// What becomes of configured ranks.
    pub fn of(self, configured: Ranks, mode: HeadMode, dims: &Dims) -> Ranks {
        match self {
            Self::Undeclared(count, parts) if configured.count() == 1 => Ranks::new(count, parts)
                .ok()
                .filter(|ranks| ranks.check(mode, dims).is_ok())
                .unwrap_or(configured),
            Self::Configured | Self::Undeclared(..) => configured,
            Self::Ignored => Ranks::default(),
            Self::NotRounded => Ranks::new(configured.count() as u64, Storage::F32).unwrap_or_default(),
        }
    }
}

/// What is taken together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Together {
    /// Scores of heads, within ranks.
    Heads(Combined, Ranks),
    /// The parts of ranks.
    Parts(Ranks),
}

/// Which heads share a selection, and whose scores make theirs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// As the SPEC says.
    Mode(HeadMode),
    /// Heads i, i + hk, i + 2·hk and so on, taken together as a mode of groups says.
    Strided(HeadMode),
    /// The heads of a mode share the scores of the first of them.
    FirstOf(HeadMode),
    /// All heads share the sum over KV heads of the largest score of the heads that read one.
    SumOfMaxima,
    /// The heads of each of so many parts, in order, are taken together as a mode of all heads says.
    InParts(HeadMode, usize),
    /// The heads of a mode, one left out of their scores.
    Without(HeadMode, usize),
}

impl Sharing {
    /// The mode, where it is one.
    pub fn mode(self) -> Option<HeadMode> {
        match self {
            Self::Mode(mode) => Some(mode),
            _ => None,
        }
    }

    /// The heads that share a selection with this one, itself included, in rising order.
    pub fn heads(self, head: usize, dims: &Dims) -> Vec<usize> {
        let in_a_row = |sharing: usize| {
            let first = head / sharing * sharing;
            (first..first + sharing).collect()
        };
        match self {
            Self::Mode(mode) | Self::FirstOf(mode) | Self::Without(mode, _) => in_a_row(mode.sharing(dims)),
            Self::Strided(_) => (head % dims.kv_heads..dims.heads).step_by(dims.kv_heads).collect(),
            Self::SumOfMaxima => in_a_row(dims.heads),
            Self::InParts(_, parts) => {
                let size = dims.heads.div_ceil(parts);
                let first = head / size * size;
                (first..(first + size).min(dims.heads)).collect()
            }
        }
    }

    /// The mode, or the configured one that heads are taken together like.
    pub fn like(self, configured: HeadMode) -> HeadMode {
        match self {
            Self::Mode(mode)
            | Self::Strided(mode)
            | Self::FirstOf(mode)
            | Self::InParts(mode, _)
            | Self::Without(mode, _) => mode,
            Self::SumOfMaxima => configured,
        }
    }

    /// The scores of every key for a head: `of_head` gives those of one head, `combine` takes those of several together.
    /// `summed-labels` has one score for each rank to begin with, which `of_head` gives for the rank's number.
    pub fn scores<T>(
        self,
        head: usize,
        dims: &Dims,
        ranks: Ranks,
        of_head: impl Fn(usize) -> Vec<T>,
        combine: impl Fn(Together, &[Vec<T>]) -> Vec<T>,
    ) -> Vec<T> {
        let heads = self.heads(head, dims);
        let together = |how, ranks, heads: &[usize]| {
            let scores: Vec<Vec<T>> = heads.iter().map(|&head| of_head(head)).collect();
            combine(Together::Heads(how, ranks), &scores)
        };
        match self {
            Self::Mode(HeadMode::PerHead) => of_head(head),
            Self::Mode(HeadMode::SummedLabels) if ranks.count() == 1 => of_head(0),
            Self::Mode(HeadMode::SummedLabels) => {
                let parts: Vec<Vec<T>> = (0..ranks.count()).map(of_head).collect();
                combine(Together::Parts(ranks), &parts)
            }
            Self::Mode(mode) | Self::Strided(mode) => together(mode.combined(), ranks, &heads),
            // Each part keeps what it sums: nothing is exchanged between ranks.
            Self::InParts(mode, _) => together(mode.combined(), Ranks::default(), &heads),
            Self::FirstOf(_) => of_head(heads[0]),
            Self::Without(mode, left_out) => {
                let others: Vec<usize> = heads.iter().copied().filter(|&head| head != left_out).collect();
                let ranks = if others.len() == heads.len() { ranks } else { Ranks::default() };
                if others.is_empty() { of_head(head) } else { together(mode.combined(), ranks, &others) }
            }
            Self::SumOfMaxima => {
                let whole = Ranks::default();
                let maxima =
                    heads.chunks(dims.group_size()).map(|group| together(Combined::Max, whole, group));
                combine(Together::Heads(Combined::Sum, whole), &maxima.collect::<Vec<_>>())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_fewer_heads_than_ranks_are_summed_whole() {
        let dims = Dims { batch: 1, heads: 2, kv_heads: 1, queries: 1, keys: 1, head_dim: 1, value_dim: 1 };
        let ranks = Ranks::new(2, Storage::F32).unwrap();
        let sharing = Heads::InParts(2).sharing(HeadMode::SummedScores);
        let scores = sharing.scores(
            1,
            &dims,
            ranks,
            |head| vec![head],
            |together, parts| {
                assert_eq!(together, Together::Heads(Combined::Sum, Ranks::default()));
                parts.concat()
            },
        );
        assert_eq!(scores, [1]);
    }
}

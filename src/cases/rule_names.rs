//! Rules by name: those of implementations in use, as far as this contract covers them. A name stands for rules alone: head
//! modes, label bits and sizes are declared beside it.

use crate::algorithm::{Forced, QuantisedLabels, Rules, ScoreFactor, ScoreRule};

/// Names of rules. Ranks depend on the machine: those are declared in an object.
pub const NAMES: [&str; 6] =
    ["double-sparsity", "sglang-v1", "sglang-v2", "sglang-v2-cosine", "twilight", "dsa-indexer"];

/// The rules of this name; `None` where there are none.
pub fn find(name: &str) -> Option<Rules> {
    let plain = Rules::default();
    match name {
        "double-sparsity" => Some(plain),
        // Scores are scaled as the attention is.
        "sglang-v1" => Some(Rules { factor: ScoreFactor::HeadDim, ..plain }),
        // The newest key is always kept.
        "sglang-v2" => Some(newest_kept(ScoreRule::Dot)),
        "sglang-v2-cosine" => Some(newest_kept(ScoreRule::Cosine)),
        // Only keys are kept in few bits.
        "twilight" => {
            let (quantised, factor) = (QuantisedLabels::Keys, ScoreFactor::HeadDim);
            Some(Rules { quantised, factor, ..plain })
        }
        "dsa-indexer" => Some(Rules { score: ScoreRule::Relu, factor: ScoreFactor::ONE, ..plain }),
        _ => None,
    }
}

fn newest_kept(score: ScoreRule) -> Rules {
    let (factor, forced) = (ScoreFactor::ONE, Forced { first: 0, last: 1 });
    Rules { score, factor, forced, ..Rules::default() }
}

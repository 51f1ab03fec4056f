//! SPEC §2.12 of forced keys, and what an implementation may do instead.

use crate::algorithm::{Dims, Forced};

/// Which keys are selected whatever they score.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ForcedKeys {
    /// As configured.
    #[default]
    Configured,
    /// None.
    Ignored,
    /// As configured, but on top of H.
    OnTop,
    /// As many first keys as last ones are configured, and the reverse.
    Swapped,
    /// The last keys are those of the call, not those before the query.
    LastOfCall,
    /// The last keys end before the query's own.
    WithoutOwn,
    /// Also those that the additive mask excludes.
    ThoughExcluded,
    /// As configured, but more than H of them are no error.
    Unchecked,
}

/// Forced keys as a behaviour has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForcedRule {
    /// What is configured.
    pub configured: Forced,
    /// What is made of it.
    pub how: ForcedKeys,
}

impl ForcedRule {
    /// As the SPEC says.
    pub fn spec(configured: Forced) -> Self {
        Self { configured, how: ForcedKeys::Configured }
    }

    /// Whether a key is forced for a query.
    pub fn holds(self, key: usize, query: usize, dims: &Dims) -> bool {
        let position = dims.position(query);
        let Forced { first, last } = self.configured;
        match self.how {
            ForcedKeys::Ignored => false,
            ForcedKeys::Swapped => Forced { first: last, last: first }.holds(key, position),
            ForcedKeys::LastOfCall => self.configured.holds(key, dims.keys - 1),
            ForcedKeys::WithoutOwn => key < first || (key < position && position - key <= last),
            _ => self.configured.holds(key, position),
        }
    }

    /// Whether a key is forced although the additive mask excludes it.
    pub fn holds_excluded(self, key: usize, query: usize, dims: &Dims) -> bool {
        self.how == ForcedKeys::ThoughExcluded && self.holds(key, query, dims)
    }
}

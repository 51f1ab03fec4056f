//! What an implementation may promise beyond the contract (`docs/PROTOCOL.md`, hello). Promises are
//! optional, but an implementation is held to those it makes.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::algorithm::Detail;

/// A property of the answers that the contract leaves open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Promise {
    /// Of keys that tie, the lowest are selected; −0 and +0 tie.
    TiesLowest,
    /// Of keys that tie, the highest are selected; −0 and +0 tie.
    TiesHighest,
    /// The same question gets the same answer, bit for bit, at once and after others.
    Repeatable,
    /// The answer to a batch entry depends neither on the other entries nor on its place.
    BatchInvariant,
    /// m queries in one call get what m calls of one query get.
    SliceInvariant,
    /// More padding behind the same lengths changes nothing.
    CapacityInvariant,
    /// `selected` lists keys in ascending order.
    Ascending,
    /// `selected` has −1 at the end of a row only, and before it exactly the keys selected.
    Padded,
}

impl Promise {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::TiesLowest,
        Self::TiesHighest,
        Self::Repeatable,
        Self::BatchInvariant,
        Self::SliceInvariant,
        Self::CapacityInvariant,
        Self::Ascending,
        Self::Padded,
    ];

    /// The name used in the protocol.
    pub fn name(self) -> &'static str {
        match self {
            Self::TiesLowest => "ties-lowest",
            Self::TiesHighest => "ties-highest",
            Self::Repeatable => "repeatable",
            Self::BatchInvariant => "batch-invariant",
            Self::SliceInvariant => "slice-invariant",
            Self::CapacityInvariant => "capacity-invariant",
            Self::Ascending => "ascending",
            Self::Padded => "padded",
        }
    }

    /// The unit in which it is counted.
    pub fn unit(self) -> &'static str {
        match self {
            Self::TiesLowest | Self::TiesHighest => "rows with ties",
            Self::Repeatable => "repeats",
            Self::BatchInvariant => "entries asked alone",
            Self::SliceInvariant => "calls asked query by query",
            Self::CapacityInvariant => "calls asked with more padding",
            Self::Ascending | Self::Padded => "answers with selected",
        }
    }
}

/// Promises by their names. Errors: an unknown name, or two promises that exclude each other.
pub fn promises_from_names(names: &[String]) -> Result<BTreeSet<Promise>, Detail> {
    let mut promises = BTreeSet::new();
    for (index, name) in names.iter().enumerate() {
        let expected = || format!("one of {}", Promise::ALL.map(Promise::name).join(", "));
        let promise = Promise::ALL.into_iter().find(|promise| promise.name() == name);
        promises.insert(
            promise
                .ok_or_else(|| Detail::new(format!("promises[{index}]"), format!("{name:?}"), expected()))?,
        );
    }
    if promises.contains(&Promise::TiesLowest) && promises.contains(&Promise::TiesHighest) {
        return Err(Detail::new("promises", "ties-lowest and ties-highest", "one of the two"));
    }
    Ok(promises)
}

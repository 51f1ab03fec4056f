//! How much of the contract a check asked: the declared domain, the sizes of all calls, and how many sequences used each
//! part. A check that conforms says nothing of what it never asked.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value;

use crate::algorithm::{HeadMode, Storage};
use crate::cases::capabilities::{RAGGED, features};
use crate::cases::domain::sizes;
use crate::cases::{Capabilities, Feature, Quantity, Sequence, StageCall};
use crate::verdicts::Verdict;

/// More different values of a size than this are described by the least and the most.
const MOST_VALUES: usize = 6;

/// What was asked.
#[derive(Debug, Clone, Serialize)]
pub struct Coverage {
    /// The declared domains, alternatives of each other; empty where everything may be asked.
    pub domain: Vec<Value>,
    /// Case files that could have been asked.
    pub goldens: usize,
    /// The values of each size.
    pub sizes: BTreeMap<&'static str, Asked>,
    /// How many sequences asked for each part of the contract: the names in `lacks`, types and head modes.
    pub parts: BTreeMap<String, usize>,
}

/// The values of a size.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Asked {
    /// The least.
    pub least: usize,
    /// The most.
    pub most: usize,
    /// All of them, ascending, where they are few; otherwise empty.
    pub values: Vec<usize>,
}

impl Asked {
    fn add(&mut self, value: usize) {
        if self.most == 0 {
            *self = Self { least: value, most: value, values: vec![value] };
            return;
        }
        // Few values that became many stay many.
        let few = !self.values.is_empty();
        self.least = self.least.min(value);
        self.most = self.most.max(value);
        if let (true, Err(place)) = (few, self.values.binary_search(&value)) {
            self.values.insert(place, value);
        }
        if self.values.len() > MOST_VALUES {
            self.values.clear();
        }
    }
}

impl std::fmt::Display for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let every = self.most - self.least + 1 == self.values.len();
        match &self.values[..] {
            [one] => write!(f, "{one}"),
            [all @ .., last] if !every || all.len() == 1 => {
                let all: Vec<_> = all.iter().map(ToString::to_string).collect();
                write!(f, "{} and {last}", all.join(", "))
            }
            _ => write!(f, "{} to {}", self.least, self.most),
        }
    }
}

impl Coverage {
    /// Nothing asked yet.
    pub(super) fn new(capabilities: &Capabilities) -> Self {
        let names = Feature::ALL.iter().map(|feature| feature.name());
        let types = Storage::ALL.iter().map(ToString::to_string);
        let modes = HeadMode::ALL.iter().map(|mode| mode.name().to_owned());
        let ragged = capabilities.ragged.then(|| RAGGED.to_owned());
        Self {
            domain: capabilities.domains.iter().map(Value::from).collect(),
            goldens: 0,
            sizes: BTreeMap::new(),
            parts: names.chain(types).chain(modes).chain(ragged).map(|name| (name, 0)).collect(),
        }
    }

    /// Nothing asked yet of a subject that does one stage: of the parts only types apply.
    pub(super) fn of_stage(capabilities: &Capabilities) -> Self {
        let ragged = capabilities.ragged.then(|| RAGGED.to_owned());
        let types = Storage::ALL.iter().map(ToString::to_string);
        Self { parts: types.chain(ragged).map(|name| (name, 0)).collect(), ..Self::new(capabilities) }
    }

    /// Counts a question to one stage.
    pub(super) fn add_stage(&mut self, call: &StageCall) {
        for (quantity, value) in call.sizes() {
            self.sizes.entry(quantity.name()).or_default().add(value);
        }
        *self.parts.entry(call.storage().to_string()).or_default() += 1;
        if call.lengths().is_some() {
            *self.parts.entry(RAGGED.into()).or_default() += 1;
        }
    }

    /// Counts a sequence and what its answers were judged to be.
    pub(super) fn add(&mut self, sequence: &Sequence, verdicts: &[Verdict], output: bool) {
        let mut parts: BTreeSet<String> =
            features(&sequence.instance, &sequence.calls).iter().map(|feature| feature.name()).collect();
        parts.insert(sequence.instance.selection.heads.name().to_owned());
        for call in &sequence.calls {
            parts.insert(call.inputs.storage().to_string());
            if call.inputs.lengths().is_some() {
                parts.insert(RAGGED.into());
            }
            for (quantity, value) in sizes(&sequence.instance.selection, &call.inputs.dims()) {
                // A call that must be refused may have no label channels.
                if value > 0 && quantity != Quantity::PageSize {
                    self.sizes.entry(quantity.name()).or_default().add(value);
                }
            }
        }
        let refused = |verdict: &Verdict| match verdict {
            Verdict::RefusedRightly => true,
            other => other.kind() == Some("answered what must be refused"),
        };
        if verdicts.iter().any(refused) {
            parts.insert(Feature::Refusals.name());
        }
        if output {
            parts.insert(Feature::Output.name());
        }
        for part in parts {
            *self.parts.entry(part).or_default() += 1;
        }
    }

    /// Parts of the contract that no sequence asked for.
    pub fn never(&self) -> Vec<&str> {
        self.parts.iter().filter(|(_, count)| **count == 0).map(|(name, _)| name.as_str()).collect()
    }

    /// The sizes in words: "keys 1 to 40, head_dim 64 and 128".
    pub fn sizes_in_words(&self) -> String {
        let sizes: Vec<_> = self.sizes.iter().map(|(name, asked)| format!("{name} {asked}")).collect();
        sizes.join(", ")
    }

    /// The domains in words; `None` where there is none.
    pub fn domain_in_words(&self) -> Option<String> {
        let domains: Vec<_> = self.domain.iter().map(ToString::to_string).collect();
        (!domains.is_empty()).then(|| domains.join(" or "))
    }

    /// Which share of the parts was asked: "24 of 28 parts of the contract; never: bf16, f16".
    pub fn parts_in_words(&self) -> String {
        let never = self.never();
        let asked =
            format!("{} of {} parts of the contract", self.parts.len() - never.len(), self.parts.len());
        if never.is_empty() { asked } else { format!("{asked}; never {}", never.join(", ")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_listed_while_they_are_few() {
        for (values, expected) in [
            (&[3, 3][..], "3"),
            (&[128, 64, 128], "64 and 128"),
            (&[16, 4, 1], "1, 4 and 16"),
            (&[3, 1, 2, 4], "1 to 4"),
            (&[1, 2], "1 and 2"),
            (&[1, 3, 5, 7, 9, 11, 40, 1], "1 to 40"),
        ] {
            let mut asked = Asked::default();
            values.iter().for_each(|&value| asked.add(value));
            assert_eq!(asked.to_string(), expected, "{values:?}");
        }
    }
}

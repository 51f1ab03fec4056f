//! Divergences that are declared as known, one by one, each with a reason: which of them occur, and which findings they excuse. A
//! fault of the catalogue excuses the answers that it reproduces, a sentence the finding that says it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::report::{Finding, Report};
use crate::behaviours::Fault;

/// What the proof of a relation ends with; the counts before it differ from run to run.
const PROOF: &str = " conforming answers are reproduced)";

/// What of a sentence depends on chance: what else would fit, and how often repeats differed.
const BY_CHANCE: [&str; 2] =
    [" These answers do not tell it from:", ": asked again, the same sequence diverged in "];

/// How sentences begin or end that name no cause.
const NO_CAUSE: ([&str; 2], &str) =
    (["Unknown", "Not known yet"], "itself is wrong: what it starts from was given to it");

/// A divergence that is declared as known.
#[derive(Debug, Clone, Serialize)]
pub struct Declaration {
    /// What is known.
    #[serde(flatten)]
    pub what: Declared,
    /// Why it is accepted.
    #[serde(flatten)]
    pub why: Excuse,
    /// Whether it occurred in what was asked.
    pub occurs: bool,
}

/// What is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Declared {
    /// A fault by its name, or those of a row of SPEC §3.
    Fault(String),
    /// The sentence of a finding.
    Finding(String),
}

/// Why a divergence is accepted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Excuse {
    /// In words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Where to read more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
}

impl Declaration {
    /// What is declared, not seen yet. Errors: what was found and what was expected, of a name that no fault has, and of a sentence
    /// that names no cause, which would excuse whatever has none.
    pub fn new(what: Declared, why: Excuse) -> Result<Self, String> {
        match &what {
            Declared::Fault(name) if Fault::find_all(name).is_empty() => {
                return Err(format!(
                    "found {name:?}, expected a name or a row that `doublecheck faults --list` knows"
                ));
            }
            Declared::Finding(sentence) if names_no_cause(sentence) => {
                return Err(format!(
                    "found {sentence:?}, which names no cause and would excuse every failure without one, expected the sentence of a finding that names one"
                ));
            }
            _ => {}
        }
        Ok(Self { what, why, occurs: false })
    }

    /// The faults that it stands for; none where it is a sentence.
    pub fn faults(&self) -> Vec<&'static Fault> {
        match &self.what {
            Declared::Fault(name) => Fault::find_all(name),
            Declared::Finding(_) => Vec::new(),
        }
    }

    fn excuses(&self, finding: &Finding) -> bool {
        matches!(&self.what, Declared::Finding(sentence) if without_counts(sentence) == without_counts(&finding.sentence))
    }
}

impl std::fmt::Display for Declaration {
    /// What is known, and why.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.what {
            Declared::Fault(name) => f.write_str(name)?,
            Declared::Finding(sentence) => write!(f, "“{sentence}”")?,
        }
        let why = self.why.to_string();
        if why.is_empty() { Ok(()) } else { write!(f, ": {why}") }
    }
}

impl std::fmt::Display for Excuse {
    /// The reason, and the link in parentheses.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.reason, &self.link) {
            (Some(reason), Some(link)) => write!(f, "{reason} ({link})"),
            (Some(one), None) | (None, Some(one)) => f.write_str(one),
            (None, None) => Ok(()),
        }
    }
}

impl Report {
    /// Marks which declarations occur, given the names of the declared faults that were seen, and which findings are known by their
    /// sentence. Where all are, what diverged did so as declared.
    pub(super) fn settle(&mut self, seen: &BTreeSet<&'static str>) {
        for declaration in &mut self.declarations {
            let by_fault = declaration.faults().iter().any(|fault| seen.contains(fault.name));
            let excused = self.findings.iter_mut().filter(|finding| declaration.excuses(finding));
            let by_sentence = excused.map(|finding| finding.known = Some(declaration.why.clone())).count();
            declaration.occurs = by_fault || by_sentence > 0;
        }
        if self.all_known() {
            self.known += std::mem::take(&mut self.diverged);
        }
    }

    /// Whether there are findings, and each is known.
    pub(super) fn all_known(&self) -> bool {
        let known = self.findings.iter().all(|finding| finding.known.is_some());
        known && !self.findings.is_empty() && self.not_looked_into == 0
    }

    /// Declared divergences that did not occur.
    pub fn stale(&self) -> impl Iterator<Item = &Declaration> {
        self.declarations.iter().filter(|declaration| !declaration.occurs)
    }

    /// Whether it fails because a declared divergence did not occur. An interrupted check did not ask all.
    pub fn is_stale(&self) -> bool {
        self.strict_known && !self.interrupted && self.stale().next().is_some()
    }
}

fn names_no_cause(sentence: &str) -> bool {
    let sentence = sentence.trim().trim_end_matches('.');
    let (starts, end) = NO_CAUSE;
    sentence.is_empty() || starts.iter().any(|start| sentence.starts_with(start)) || sentence.ends_with(end)
}

/// A sentence without what differs from run to run, in single spaces.
fn without_counts(sentence: &str) -> String {
    let mut sentence = sentence.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some(end) = sentence.find(PROOF)
        && let Some(start) = sentence[..end].rfind(" (")
    {
        sentence.replace_range(start..end + PROOF.len(), "");
    }
    for phrase in BY_CHANCE {
        sentence.truncate(sentence.find(phrase).unwrap_or(sentence.len()));
    }
    sentence.trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_one_run_are_left_out() {
        let told = "The first −n mod 32 keys are ranked last (275 failing and 747 conforming answers are reproduced).";
        assert_eq!(without_counts(told), "The first −n mod 32 keys are ranked last");
        let others = "One (A) is read (1 failing and 2 conforming answers are reproduced). These answers do not tell it from: two.";
        assert_eq!(without_counts(others), "One (A) is read");
        let flaky =
            "Not repeatable: asked again, the same sequence diverged in 3 of 9 repeats, and differed in 4.";
        assert_eq!(without_counts(flaky), "Not repeatable");
        assert_eq!(without_counts("Fails for n mod 64 (D4)."), "Fails for n mod 64 (D4)");
    }

    #[test]
    fn what_names_no_cause_excuses_nothing() {
        for sentence in [
            "",
            "Unknown: none of 12 relations reproduces every answer.",
            " Not known yet: causes are named at the end of the check.",
            "The attention itself is wrong: what it starts from was given to it.",
        ] {
            let error = Declaration::new(Declared::Finding(sentence.into()), Excuse::default()).unwrap_err();
            assert!(error.contains("names no cause"), "{error}");
        }
        let error = Declaration::new(Declared::Fault("D99".into()), Excuse::default()).unwrap_err();
        assert!(error.contains("found \"D99\""), "{error}");
        assert!(Declaration::new(Declared::Fault("D4".into()), Excuse::default()).is_ok());
    }
}

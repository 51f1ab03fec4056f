//! One cause, one finding: failures whose cause is unknown are put together where they are of one stage and the condition of each
//! allows the others. Shown is the smallest counterexample; the others are counted.

use super::report::{Finding, Like};
use super::run::Run;
use crate::diagnosis::condition::Rule;
use crate::diagnosis::condition::clause::Clause;
use crate::diagnosis::condition::features::{Features, Number, Trait};

/// A fault of the catalogue that explains fewer failures than this, while others stay unexplained, explains them by chance.
const FEWEST_EXPLAINED: usize = 3;

/// Named faults are guesses where more than one in so many failing answers stays unexplained.
const MOST_UNEXPLAINED: usize = 100;

impl Run<'_> {
    /// Takes back causes that explain hardly anything while other failures have none.
    pub(super) fn doubt_rare_causes(&mut self) {
        if !self.report.findings.iter().any(|finding| finding.faults.is_empty()) {
            return;
        }
        for finding in &mut self.report.findings {
            let explained = self.suspects.failures_needing(&finding.faults);
            if !finding.faults.is_empty() && explained < FEWEST_EXPLAINED {
                finding.faults.clear();
            }
        }
    }

    /// Findings that turned out to show one fault, each under a condition, are one: the smallest. So are those of unknown cause that
    /// are of one stage and have the same condition.
    pub(super) fn group_again(&mut self) {
        let findings = std::mem::take(&mut self.report.findings);
        for finding in findings {
            let same = |other: &&mut Finding| {
                let unknown_before = other.faults.is_empty() && finding.faults.is_empty();
                let named = !finding.diagnosis.is_empty() && other.diagnosis == finding.diagnosis;
                (unknown_before && named) || fails_alike(other, &finding)
            };
            match self.report.findings.iter_mut().find(same) {
                Some(other) => join(other, finding),
                None => self.report.findings.push(finding),
            }
        }
    }

    /// Puts findings of unknown cause together. Named faults that leave more than a hundredth of the failing answers unexplained are
    /// guesses, and keep nothing apart.
    pub(super) fn group(&mut self) {
        let mut findings = std::mem::take(&mut self.report.findings);
        let unexplained = self.suspects.kept().saturating_sub(self.report.reproduced);
        if MOST_UNEXPLAINED * unexplained > self.suspects.failing().count() {
            let unproved = |finding: &&mut Finding| {
                let told = finding.relation.as_ref().is_some_and(|told| told.relation.is_some());
                finding.diagnosis.is_empty() && !told
            };
            findings.iter_mut().filter(unproved).for_each(|finding| finding.faults.clear());
        }
        let rules: Vec<Rule> = findings.iter().map(|finding| self.suggested(finding)).collect();
        let mut groups: Vec<(Finding, Vec<Rule>)> = Vec::new();
        for (finding, rule) in findings.into_iter().zip(rules) {
            let one = |(group, rules): &&mut (Finding, Vec<Rule>)| {
                is_like(group, &finding)
                    && rules.iter().all(|of_group| allows(of_group, &finding))
                    && allows(&rule, group)
            };
            match groups.iter_mut().find(one) {
                Some((group, rules)) => {
                    rules.push(rule);
                    join(group, finding);
                    // What was counted for several faults that were dropped is one failure now.
                    group.sequences = group.sequences.min(self.report.diverged);
                }
                None => groups.push((finding, vec![rule])),
            }
        }
        self.report.findings = groups.into_iter().map(|(finding, _)| finding).collect();
    }
}

/// Whether two findings may have one cause, by what is said of them: the same wider model, or nothing and the same stage.
fn is_like(one: &Finding, other: &Finding) -> bool {
    let unknown = |finding: &Finding| finding.faults.is_empty();
    unknown(one) && unknown(other) && one.wider_model == other.wider_model && stage(one) == stage(other)
}

/// Whether two findings without a proved cause are of one stage and have the same condition.
fn fails_alike(one: &Finding, other: &Finding) -> bool {
    let unknown = one.diagnosis.is_empty() && other.diagnosis.is_empty();
    let clauses = |finding: &Finding| finding.condition.as_ref().map(|condition| condition.clauses.clone());
    unknown
        && one.wider_model == other.wider_model
        && stage(one) == stage(other)
        && clauses(one).is_some_and(|found| clauses(other) == Some(found))
}

/// Where a failure lies: the stage that the answers name, otherwise what is wrong with them.
fn stage(finding: &Finding) -> &'static str {
    match (finding.stage, finding.kind) {
        (Some(stage), _) => stage,
        (None, "gave no usable answer") => "no answer",
        (None, "refused what must be answered") => "refusal",
        (None, "answered what must be refused") => "no refusal",
        (None, _) => "mask",
    }
}

/// Whether a rule holds for the counterexample of a finding. How H and candidates compare decides of which kind a failure is.
fn allows(rule: &Rule, finding: &Finding) -> bool {
    let sequence = &finding.observation.sequence;
    if finding.call >= sequence.calls.len() {
        return false;
    }
    let features = Features::of(sequence, finding.call);
    let of_kind = |clause: &Clause| {
        matches!(
            clause,
            Clause::Compare(Number::HeavySize, _, _)
                | Clause::Compare(_, _, Number::HeavySize)
                | Clause::Has(Trait::ExactlyHeavy | Trait::FewerThanHeavy, _)
        )
    };
    rule.clauses.iter().all(|clause| of_kind(clause) || clause.holds(&features))
}

/// Adds a finding to another one; the smaller is shown.
fn join(group: &mut Finding, mut other: Finding) {
    if other.size.numbers() < group.size.numbers() {
        std::mem::swap(group, &mut other);
    }
    count_with(group, other);
}

/// Counts a finding with another one, which is shown.
pub(super) fn count_with(group: &mut Finding, other: Finding) {
    group.after = group.after.min(other.after);
    let explanation = other.explanations.first().cloned().unwrap_or_default();
    let like = Like { kind: other.kind, sequences: other.sequences, explanation };
    let known = std::mem::take(&mut group.more);
    for like in known.into_iter().chain([like]).chain(other.more) {
        match group.more.iter_mut().find(|known| known.kind == like.kind) {
            _ if like.kind == group.kind => group.sequences += like.sequences,
            Some(known) => known.sequences += like.sequences,
            None => group.more.push(like),
        }
    }
}

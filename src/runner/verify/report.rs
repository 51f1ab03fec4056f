//! What a verification found: cases by folder, random cases by invariant, and everything that falls outside.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::verdicts::Sharpness;

/// What a verification found.
#[derive(Debug, Clone, Serialize)]
pub struct VerifyReport {
    /// Version of this crate.
    pub version: &'static str,
    /// Who was checked.
    pub subject: String,
    /// How it says it rounds: labels, kept type, accumulation.
    pub rounding_model: String,
    /// Cases by folder.
    pub groups: Vec<Group>,
    /// Random cases by invariant.
    pub invariants: Vec<InvariantResult>,
    /// How many distinct random cases the invariants were checked on.
    pub random_cases: usize,
    /// Parts of the contract that the subject does not offer, and how many cases from files ask for each.
    pub left_out: BTreeMap<String, usize>,
    /// Everything that falls outside.
    pub findings: Vec<VerifyFinding>,
    /// Files that could not be used.
    pub bad_inputs: Vec<String>,
    /// Remarks that a reader should know.
    pub notes: Vec<String>,
    /// Seed of the random cases.
    pub seed: u64,
    /// Whether it was interrupted: the report holds what was judged until then.
    pub interrupted: bool,
    /// Wall-clock time of all of it; 0 where times are left out.
    pub seconds: f64,
}

impl VerifyReport {
    /// Sets all times to 0, so that the same run gives the same bytes.
    pub fn leave_out_times(&mut self) {
        self.seconds = 0.0;
        self.groups.iter_mut().for_each(|group| group.seconds = 0.0);
    }

    /// 0 where everything conforms, 1 where something diverged, 2 where some input could not be used.
    pub fn exit_code(&self) -> u8 {
        match (self.bad_inputs.is_empty(), self.findings.is_empty()) {
            (false, _) => 2,
            (true, false) => 1,
            (true, true) => 0,
        }
    }

    /// How often an invariant was checked on a random case that says something about it.
    pub fn checks(&self) -> usize {
        self.invariants.iter().map(InvariantResult::checks).sum()
    }

    /// The groups added up.
    pub fn total(&self) -> Group {
        let mut total = Group { name: "total".into(), ..Group::default() };
        for group in &self.groups {
            total.cases += group.cases;
            total.bit_exact += group.bit_exact;
            total.conforming += group.conforming;
            total.diverged += group.diverged;
            total.recorded += group.recorded;
            total.not_offered += group.not_offered;
            total.seconds += group.seconds;
            total.stored.add(&group.stored);
            total.subject.add(&group.subject);
        }
        total
    }
}

/// The cases of one folder.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Group {
    /// The folder.
    pub name: String,
    /// How many cases were judged.
    pub cases: usize,
    /// Cases in which the subject's mask, labels or order equal the stored ones.
    pub bit_exact: usize,
    /// Cases in which the subject was asked, and both it and the stored expectation conform.
    pub conforming: usize,
    /// Cases in which one of the two does not conform.
    pub diverged: usize,
    /// How many stored expectations are recorded bugs that diverge by their row of SPEC §3, as expected.
    pub recorded: usize,
    /// How many cases the subject was not asked, as it does not offer what they ask for; their stored expectations are judged
    /// all the same.
    pub not_offered: usize,
    /// How sharp the verdicts on stored expectations were.
    pub stored: Sharpness,
    /// How sharp the verdicts on the subject's answers were.
    pub subject: Sharpness,
    /// Wall-clock time.
    pub seconds: f64,
}

/// How an invariant fared on random cases.
#[derive(Debug, Clone, Serialize)]
pub struct InvariantResult {
    /// The invariant.
    pub name: String,
    /// Where the SPEC says so.
    pub source: String,
    /// Cases on which it held.
    pub held: usize,
    /// Cases that say nothing about it.
    pub not_applicable: usize,
    /// Whether it failed on some case.
    pub failed: bool,
}

impl InvariantResult {
    pub(super) fn new(name: &str, source: &str) -> Self {
        Self { name: name.into(), source: source.into(), held: 0, not_applicable: 0, failed: false }
    }

    /// On how many cases it was checked; the one on which it failed is the last.
    pub fn checks(&self) -> usize {
        self.held + usize::from(self.failed)
    }
}

/// Something that falls outside.
#[derive(Debug, Clone, Serialize)]
pub struct VerifyFinding {
    /// The case.
    pub case: String,
    /// Which of the two answers: the stored expectation or the subject.
    pub who: String,
    /// What is wrong, one line each.
    pub explanations: Vec<String>,
}

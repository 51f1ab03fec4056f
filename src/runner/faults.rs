//! The meta test: every fault of the catalogue, and every breach of a declaration, is checked as if it were somebody's
//! implementation. It must be caught, be named rightly or called unknown, and shrink to something small; those that conform
//! must conform.

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::check::{Finding, Options, Report, Size, check, check_sessions};
use super::shrink::Limits;
use crate::algorithm::HeavySize;
use crate::behaviours::{CACHE_FAULTS, CATALOGUE, CacheFault, Fault};
use crate::subjects::{Above, BREACHES, Breach, Faulty, PagedEngine, Reference, Subject};

/// How long shrinking may take there.
const SHRINKING: Duration = Duration::from_secs(300);

/// What is planted in the reference.
#[derive(Debug, Clone, Copy)]
pub enum Planted {
    /// A fault of the catalogue, which the diagnosis names.
    Fault(&'static Fault),
    /// A breach of what is declared, which the kind of the finding names.
    Breach(&'static Breach),
    /// A fault of what a session holds, which the diagnosis names; asked in sessions alone.
    Cache(&'static CacheFault),
}

/// How one fault fared.
#[derive(Debug, Clone, Serialize)]
pub struct FaultResult {
    /// The fault.
    pub name: &'static str,
    /// The row of SPEC §3 or the section of the SPEC it goes against.
    pub row: &'static str,
    /// Whether it must conform.
    pub must_conform: bool,
    /// Which check caught it first; `None` where nothing did.
    pub caught_by: Option<&'static str>,
    /// After how many sequences.
    pub after: usize,
    /// How many of the sequences show it.
    pub sequences: usize,
    /// It is right in calls of no more keys than this, where it was planted so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub above: Option<usize>,
    /// What the first counterexample was shrunk to.
    pub size: Option<Size>,
    /// Its H.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heavy_size: Option<HeavySize>,
    /// How long that took.
    pub shrinking_seconds: f64,
    /// What all findings together were named; empty where one is unknown.
    pub diagnosis: Vec<&'static str>,
    /// Wall-clock time of everything.
    pub seconds: f64,
}

impl FaultResult {
    /// Whether the suite did what it must: caught it and named nothing else, or accepted it. What is planted above some number
    /// of keys has no name; it must be shrunk to one more, give or take one.
    pub fn right(&self) -> bool {
        if self.must_conform {
            return self.caught_by.is_none();
        }
        if let Some(above) = self.above {
            return self.size.is_some_and(|size| size.keys.abs_diff(above + 1) <= 1);
        }
        self.caught_by.is_some() && (self.diagnosis.is_empty() || self.diagnosis == [self.name])
    }
}

/// Whether a finding is that of a breach.
pub fn shows(finding: &Finding, breach: &Breach) -> bool {
    let after_another = finding.state.as_ref().is_some_and(|state| state.earlier_instances > 0);
    breach.is_shown_by(finding.kind, &finding.sentence, finding.ragged.is_some(), after_another)
}

impl Planted {
    /// All of them.
    pub fn all() -> Vec<Self> {
        CATALOGUE.iter().map(Self::Fault).chain(BREACHES.iter().map(Self::Breach)).collect()
    }

    /// Those that sessions show.
    pub fn of_sessions() -> Vec<Self> {
        CACHE_FAULTS.iter().map(Self::Cache).collect()
    }

    /// All of a name, a row of SPEC §3 or a section.
    pub fn find_all(name: &str) -> Vec<Self> {
        let same = |text: &str| text.eq_ignore_ascii_case(name);
        Self::all()
            .into_iter()
            .chain(Self::of_sessions())
            .filter(|planted| same(planted.name()) || same(planted.row()))
            .collect()
    }

    /// What commands and records call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fault(fault) => fault.name,
            Self::Breach(breach) => breach.name,
            Self::Cache(fault) => fault.name,
        }
    }

    /// The row of SPEC §3 or the section of the SPEC it goes against.
    pub fn row(self) -> &'static str {
        match self {
            Self::Fault(fault) => fault.row,
            Self::Breach(breach) => breach.row,
            Self::Cache(_) => "§2.14",
        }
    }

    /// One sentence that says what such an implementation does.
    pub fn sentence(self) -> &'static str {
        match self {
            Self::Fault(fault) => fault.sentence,
            Self::Breach(breach) => breach.sentence,
            Self::Cache(fault) => fault.sentence,
        }
    }

    /// Public reports of it, or of the like; empty where none is kept.
    pub fn seen(self) -> &'static str {
        match self {
            Self::Fault(fault) => fault.seen,
            Self::Breach(_) | Self::Cache(_) => "",
        }
    }

    /// Whether it conforms all the same.
    pub fn conforms(self) -> bool {
        matches!(self, Self::Fault(fault) if fault.conforms)
    }

    /// The subject that has it, the reference mostly.
    pub fn subject(self) -> Box<dyn Subject> {
        match self {
            Self::Fault(fault) => Box::new(Faulty::new(&[fault])),
            Self::Breach(breach) => breach.subject(),
            Self::Cache(fault) => Box::new(PagedEngine::new(Some(fault))),
        }
    }

    /// The subject that has it in calls of more than `keys` keys, and is right in others.
    pub fn subject_above(self, keys: usize) -> Box<dyn Subject> {
        match self {
            Self::Fault(_) | Self::Cache(_) => {
                Box::new(Above::new(self.subject(), Box::new(Reference::default()), keys))
            }
            Self::Breach(breach) => breach.subject_above(keys),
        }
    }

    /// Checks the subject that has it, and says how that went.
    pub fn check(self, options: &Options) -> (FaultResult, Report) {
        self.check_subject(self.subject().as_mut(), options)
    }

    /// Checks the subject that has it in calls of more than `keys` keys with random sequences after as many, until it is caught
    /// or all are asked.
    pub fn check_above(self, options: &Options, keys: usize) -> (FaultResult, Report) {
        let start = Instant::now();
        // No fault of the catalogue is right up to some number of keys: a cause is not looked for.
        let (history, naming, stop_after) = (keys, Duration::ZERO, Some(NonZeroUsize::MIN));
        let shrinking = Limits { time: SHRINKING, ..options.shrinking };
        let options = Options { history, naming, stop_after, shrinking, ..options.clone() };
        let (mut result, report) = self.check_subject(self.subject_above(keys).as_mut(), &options);
        (result.above, result.seconds) = (Some(keys), start.elapsed().as_secs_f64());
        let shown = report.findings.first().filter(|finding| finding.example.is_none());
        result.heavy_size = shown.map(|finding| finding.observation.sequence.instance.selection.heavy_size);
        (result, report)
    }

    fn check_subject(self, subject: &mut dyn Subject, options: &Options) -> (FaultResult, Report) {
        let start = Instant::now();
        // Probes would show most of them before the first random sequence. What a failure needs of earlier instances is looked for
        // with its conditions.
        let conditions = matches!(self, Self::Breach(breach) if breach.carries_over());
        let options = Options { probes: false, conditions, ..options.clone() };
        let report = match self {
            Self::Fault(_) | Self::Breach(_) => check(subject, &options),
            Self::Cache(_) => check_sessions(subject, &options, &mut |_| {}),
        };
        let first = report.findings.first();
        let result = FaultResult {
            name: self.name(),
            row: self.row(),
            must_conform: self.conforms(),
            caught_by: first.map(|finding| finding.kind),
            after: first.map_or(report.sequences, |finding| finding.after),
            sequences: match self {
                Self::Fault(_) | Self::Cache(_) => report.diverged,
                // A broken promise conforms otherwise.
                Self::Breach(_) => report.findings.iter().map(|finding| finding.sequences).sum(),
            },
            above: None,
            heavy_size: None,
            size: first.map(|finding| finding.size),
            shrinking_seconds: first.map_or(0.0, |finding| finding.shrinking_seconds),
            diagnosis: self.named(&report.findings),
            seconds: start.elapsed().as_secs_f64(),
        };
        (result, report)
    }

    /// The names in all findings, each once; none where a finding has none.
    fn named(self, findings: &[Finding]) -> Vec<&'static str> {
        let names = |finding: &Finding| match self {
            Self::Fault(_) | Self::Cache(_) => finding.diagnosis.clone(),
            Self::Breach(breach) if shows(finding, breach) => vec![breach.name],
            Self::Breach(_) if finding.diagnosis.is_empty() => vec![finding.kind],
            Self::Breach(_) => finding.diagnosis.clone(),
        };
        let of_findings: Vec<_> = findings.iter().map(names).collect();
        if of_findings.iter().any(Vec::is_empty) {
            return Vec::new();
        }
        let mut names = of_findings.concat();
        names.sort_unstable();
        names.dedup();
        names
    }
}

//! Checks anyone's implementation: random sequences and the bundled goldens that apply are asked, every answer is judged
//! (SPEC §5), the first failure of each distinct kind is shrunk and explained. A failure is of a new kind if neither the
//! faults named so far nor the declared ones reproduce the answer.

mod coverage;
mod differences;
mod findings;
#[cfg(feature = "files")]
mod goldens;
mod probing;
mod promises;
mod repeats;
mod report;
mod run;
mod stages;
mod suspects;
mod ties;

use proptest::strategy::{Strategy, ValueTree};

pub use self::coverage::{Asked, Coverage};
pub use self::probing::probe_only;
pub use self::promises::Kept;
pub use self::repeats::Repeats;
pub use self::report::{Finding, Report, ReportedStages, Size, StageExample};
use self::run::Run;
use super::seed::test_runner;
use super::shrink::Limits;
#[cfg(feature = "files")]
use crate::cases::bundled::Found;
use crate::cases::large_plan::large_sequence;
use crate::cases::sequence_plan::sequence_plans;
use crate::cases::{Capabilities, Takes};
use crate::diagnosis::Faults;
use crate::subjects::Subject;

/// One large sequence for so many small ones.
const SMALL_PER_LARGE: usize = 16;

/// What to ask, and what is known of the subject.
#[derive(Debug, Clone)]
pub struct Options {
    /// How many random sequences are asked; default 1000.
    pub cases: usize,
    /// Seed of the random sequences; default 0.
    pub seed: u64,
    /// For every 16 random sequences, which are small, one call of up to this many keys is asked; 40 or less ask none. Default
    /// 1024.
    pub largest_keys: usize,
    /// Restricts what is asked further than the subject's own capabilities do.
    pub profile: Capabilities,
    /// Divergences that the subject declares: answers that these reproduce are counted apart.
    pub known: Faults,
    /// Case files that are asked as well, where they apply.
    #[cfg(feature = "files")]
    pub goldens: Vec<Found>,
    /// When to stop shrinking one finding.
    pub shrinking: Limits,
    /// How many findings are shrunk; further kinds are only counted. Default 24.
    pub most_findings: usize,
    /// How often each sequence is asked; default 1, which still asks a small share again.
    pub repeat: usize,
    /// Whether the wires of the subject are measured first (`diagnosis::probes`); default true.
    pub probes: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cases: 1000,
            seed: 0,
            largest_keys: 1024,
            profile: Capabilities::default(),
            known: Vec::new(),
            #[cfg(feature = "files")]
            goldens: Vec::new(),
            shrinking: Limits::default(),
            most_findings: 24,
            repeat: 1,
            probes: true,
        }
    }
}

/// Checks a subject. `progress` is called with the number of sequences asked so far, of all, and of findings.
pub fn check_with_progress(
    subject: &mut dyn Subject,
    options: &Options,
    progress: &mut dyn FnMut(usize, usize, usize),
) -> Report {
    if subject.capabilities().stages.takes != Takes::Inputs {
        return stages::check_stages(subject, options, progress);
    }
    let mut run = Run::new(subject, options);
    if options.probes {
        run.probe(options);
    }
    #[cfg(feature = "files")]
    let goldens = run.goldens(options);
    #[cfg(not(feature = "files"))]
    let goldens = Vec::<crate::cases::Sequence>::new();
    let large = options.cases / SMALL_PER_LARGE;
    let total = goldens.len() + large;
    let capabilities = run.capabilities.clone();
    let plans = sequence_plans(&capabilities);
    let mut runner = test_runner(options.seed);
    let (mut asked, mut rejected) = (0, 0);
    while asked < options.cases && rejected < 100 * options.cases.max(10) && run.report.stopped.is_none() {
        let Ok(tree) = plans.new_tree(&mut runner) else { break };
        let sequence = tree.current().sequence();
        let Some(sequence) = sequence.ok().filter(|sequence| capabilities.missing(sequence).is_empty())
        else {
            rejected += 1;
            continue;
        };
        progress(asked, total + options.cases, run.report.findings.len());
        run.sequence(&sequence);
        asked += 1;
    }
    run.report.sequences = asked;
    if asked < options.cases && run.report.stopped.is_none() {
        run.report.bad_inputs.push(format!(
            "random sequences: found {asked} that both the subject and the profile offer, expected {}",
            options.cases
        ));
    }
    // Random sequences are small and quick to understand: they go first.
    for number in 0..large {
        let drawn = large_sequence(&capabilities, options.seed, number, options.largest_keys);
        let Some((sequence, _)) = drawn.filter(|_| run.report.stopped.is_none()) else { continue };
        progress(asked + number, total + options.cases, run.report.findings.len());
        run.sequence(&sequence);
        run.report.large += 1;
    }
    for (index, golden) in goldens.iter().enumerate() {
        if run.report.stopped.is_some() {
            break;
        }
        progress(asked + large + index, total + options.cases, run.report.findings.len());
        run.sequence(golden);
        run.report.goldens += 1;
    }
    if options.cases == 0 && goldens.is_empty() {
        run.report
            .bad_inputs
            .push("cases: found 0, and no golden that applies, expected something to ask".into());
    }
    if run.report.stopped.is_none() {
        run.look_into_probes();
    }
    run.finish()
}

/// Checks a subject, for use in tests.
///
/// ```
/// use doublecheck::subjects::Reference;
/// use doublecheck::{Options, check};
///
/// let report = check(&mut Reference::default(), &Options { cases: 50, ..Options::default() });
/// assert!(report.conforms(), "{report:#?}");
/// ```
pub fn check(subject: &mut dyn Subject, options: &Options) -> Report {
    check_with_progress(subject, options, &mut |_, _, _| {})
}

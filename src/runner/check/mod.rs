//! Checks anyone's implementation: random sequences and the bundled goldens that apply are asked, every answer is judged
//! (SPEC §5), the first failure of each distinct kind is shrunk and explained. A failure is of a new kind if neither the
//! faults named so far nor the declared ones reproduce the answer.

mod by_size;
mod conditions;
mod coverage;
mod differences;
mod draws;
mod events;
mod findings;
#[cfg_attr(not(feature = "files"), path = "no_goldens.rs")]
mod goldens;
mod grouping;
mod implementation;
mod known;
mod machine;
mod pace;
mod plan;
#[cfg(feature = "probes")]
mod probing;
mod promises;
mod repeats;
mod report;
mod run;
mod session_promises;
mod sessions;
mod shard;
mod sharpening;
mod stage_promises;
mod stages;
mod state;
mod suspects;
mod ties;

use std::num::NonZeroUsize;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

pub use self::by_size::{BySize, OfSize};
pub use self::coverage::{Asked, Coverage};
pub use self::events::{Event, Progress};
pub use self::implementation::Implementation;
pub use self::known::{Declaration, Declared, Excuse};
#[cfg(feature = "probes")]
pub use self::probing::probe_only;
pub use self::promises::Kept;
pub use self::repeats::Repeats;
pub use self::report::{Finding, Like, Report, ReportedStages, SessionExample, Size, StageExample};
use self::run::Run;
pub use self::sessions::Sessions;
#[cfg(feature = "cli")]
pub use self::sessions::check_sessions;
pub use self::shard::Shard;
pub use self::state::Needs;
use super::shrink::Limits;
use crate::cases::{Capabilities, Sequence, Session, StageCall, Takes};
#[cfg(feature = "files")]
use crate::cases::{Memory, bundled::Found};
use crate::diagnosis::Faults;
use crate::subjects::Subject;

/// What to ask, and what is known of the subject.
#[derive(Debug, Clone)]
pub struct Options {
    /// How many random sequences are asked; with `seconds`, at most. Default 1000.
    pub cases: usize,
    /// For how long the subject is asked, the time for shrinking and diagnosis not included: small sequences first, then larger
    /// ones and goldens in stages of growing size. Default: as long as it takes to ask so many cases and all goldens, the
    /// same for each run.
    pub seconds: Option<Duration>,
    /// Seed of the random sequences; default 0.
    pub seed: u64,
    /// Which share of the questions is asked: `cases` and `goldens` are those of all shares. Default: all.
    pub shard: Shard,
    /// The most keys of random calls. Without `seconds` one large call is asked for every 16 random sequences, which are small. 40
    /// or less ask no large one. Default 1024.
    pub largest_keys: usize,
    /// Keys before those of each random sequence, and up to half as many more; default 0.
    pub history: usize,
    /// Restricts what is asked further than the subject's own capabilities do.
    pub profile: Capabilities,
    /// Divergences that the subject declares: answers that these reproduce are counted apart.
    pub known: Faults,
    /// The same one by one, each with a reason; and findings that are known by their sentence. Those that occur are reported, and so
    /// are those that do not.
    pub declarations: Vec<Declaration>,
    /// Whether a declaration that does not occur fails the check; default false.
    pub strict_known: bool,
    /// Case files that are asked as well, where they apply; with `seconds`, as many as fit, the smallest first.
    #[cfg(feature = "files")]
    pub goldens: Vec<Found>,
    /// The most memory that one of them may take.
    #[cfg(feature = "files")]
    pub memory: Memory,
    /// When to stop shrinking one finding.
    pub shrinking: Limits,
    /// How long all findings together are shrunk, in place of the time of one in `shrinking`; each gets at most half of what is
    /// left, unless the check stops after one. Default: no such limit.
    pub shrinking_in_all: Option<Duration>,
    /// How long causes in the catalogue are looked for, in all; each search gets at most a quarter of what is left, which is
    /// enough for a counterexample that was shrunk. Default 60 seconds.
    pub naming: Duration,
    /// Whether searches for smaller examples and for causes end by the clock, too; default true. Where not, counts alone end them, and equal
    /// answers make equal reports on every machine, however long that takes.
    pub by_clock: bool,
    /// How many findings are shrunk; further kinds are only counted. Default 24.
    pub most_findings: usize,
    /// After how many findings nothing more is asked. Default: no such limit.
    pub stop_after: Option<NonZeroUsize>,
    /// How often each sequence is asked; default 1, which still asks a small share again.
    pub repeat: usize,
    /// Ends the check once this is true: what was found so far is reported.
    pub interrupted: Option<&'static AtomicBool>,
    /// Whether the wires of the subject are measured first (feature `probes`), by the first share, unless it wants few shapes; default
    /// true.
    pub probes: bool,
    /// Whether the condition of each finding is looked for, and what it needs of what was asked before; default true.
    pub conditions: bool,
}

/// Longer than any check takes.
const FOREVER: Duration = Duration::from_secs(1 << 32);

impl Options {
    /// How long a search may take that is given so long where it ends by the clock.
    fn at_most(&self, time: Duration) -> Duration {
        if self.by_clock { time } else { FOREVER }
    }

    /// When to stop shrinking one finding, where there is no time for all together.
    fn shrinking(&self) -> Limits {
        Limits { time: self.at_most(self.shrinking.time), interrupted: self.interrupted, ..self.shrinking }
    }

    /// How long causes in the catalogue are looked for; zero where they are not.
    fn naming(&self) -> Duration {
        if self.naming.is_zero() { Duration::ZERO } else { self.at_most(self.naming) }
    }

    /// The case files of the shard.
    #[cfg(feature = "files")]
    fn goldens_of_shard(&self) -> impl Iterator<Item = &Found> {
        let indexed = self.goldens.iter().enumerate();
        indexed.filter(|(index, _)| self.shard.holds(*index)).map(|(_, found)| found)
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cases: 1000,
            seconds: None,
            seed: 0,
            shard: Shard::WHOLE,
            largest_keys: 1024,
            history: 0,
            profile: Capabilities::default(),
            known: Vec::new(),
            declarations: Vec::new(),
            strict_known: false,
            #[cfg(feature = "files")]
            goldens: Vec::new(),
            #[cfg(feature = "files")]
            memory: Memory::DEFAULT,
            shrinking: Limits::default(),
            shrinking_in_all: None,
            naming: Duration::from_secs(60),
            by_clock: true,
            most_findings: 24,
            stop_after: None,
            repeat: 1,
            interrupted: None,
            probes: true,
            conditions: true,
        }
    }
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
    check_with(subject, options, &mut |_| {})
}

/// Checks a subject and tells `watch` how far it is and what it finds.
pub fn check_with(subject: &mut dyn Subject, options: &Options, watch: &mut dyn FnMut(Event<'_>)) -> Report {
    if subject.capabilities().stages.takes != Takes::Inputs {
        return stages::check_stages(subject, options, watch);
    }
    let mut run = Run::new(subject, options, watch);
    #[cfg(feature = "probes")]
    let deviating = run.probe(options);
    run.ask_all(options);
    #[cfg(feature = "probes")]
    run.look_into_probes(deviating);
    run.finish()
}

/// Asks one sequence; a failure is shrunk and explained as by [`check`]. Of `options`, which cases are asked does not matter.
pub fn check_sequence(
    subject: &mut dyn Subject,
    sequence: &Sequence,
    options: &Options,
    watch: &mut dyn FnMut(Event<'_>),
) -> Report {
    let mut run = Run::new(subject, options, watch);
    run.report.goldens += 1;
    run.report.coverage.goldens += 1;
    run.sequence(sequence, 0.0);
    run.finish()
}

/// The same for a session.
pub fn check_session(
    subject: &mut dyn Subject,
    session: &Session,
    options: &Options,
    watch: &mut dyn FnMut(Event<'_>),
) -> Report {
    let mut run = Run::new(subject, options, watch);
    run.report.goldens += 1;
    run.report.coverage.goldens += 1;
    run.report.sessions.get_or_insert_default().goldens += 1;
    run.session(session, 0.0);
    run.finish()
}

/// The same for a question to one stage.
pub fn check_stage_call(
    subject: &mut dyn Subject,
    (name, call): (&str, &StageCall),
    options: &Options,
    watch: &mut dyn FnMut(Event<'_>),
) -> Report {
    stages::check_call(subject, (name, call), options, watch)
}

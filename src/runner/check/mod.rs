//! Checks anyone's implementation: random sequences and the bundled goldens that apply are asked, every answer is judged
//! (SPEC §5), the first failure of each distinct kind is shrunk and explained. A failure is of a new kind if neither the
//! faults named so far nor the declared ones reproduce the answer.

mod report;
mod run;

use std::path::Path;

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

pub use self::report::{CheckFinding, Report, Size};
use self::run::Run;
use super::shrink::Limits;
use crate::cases::bundled::Found;
use crate::cases::capabilities::Feature;
use crate::cases::sequence_plan::sequence_plans;
use crate::cases::{Answer, Capabilities, NoAnswer, RoundingModel, Sequence};
use crate::subjects::Subject;
use crate::verdicts::Verdict;
use crate::verdicts::diagnosis::Faults;
use crate::verdicts::judge::{MaskFault, judge_call};
use crate::verdicts::reproduction::Observation;

/// What to ask, and what is known of the subject.
#[derive(Debug, Clone)]
pub struct Options {
    /// How many random sequences are asked.
    pub cases: usize,
    /// Of the random sequences.
    pub seed: u64,
    /// Restricts what is asked besides the subject's own capabilities.
    pub profile: Capabilities,
    /// Divergences that the subject declares: answers that these reproduce are counted apart.
    pub known: Faults,
    /// Case files that are asked as well, where they apply.
    pub goldens: Vec<Found>,
    /// When to stop shrinking one finding.
    pub shrinking: Limits,
    /// How many findings are shrunk; further kinds are only counted.
    pub most_findings: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cases: 1000,
            seed: 0,
            profile: Capabilities::default(),
            known: Vec::new(),
            goldens: Vec::new(),
            shrinking: Limits::default(),
            most_findings: 24,
        }
    }
}

/// Asks every call of a sequence of one fresh instance.
pub fn ask(subject: &mut dyn Subject, sequence: &Sequence) -> Observation {
    let wants_output = subject.capabilities().offers(Feature::Output);
    let whole = |answer: Answer| match answer.output.is_none() && wants_output {
        true => Err(NoAnswer::Failed(
            "the answer holds no output, expected one, or \"output\" among what the subject lacks".into(),
        )),
        false => Ok(answer),
    };
    let configured = subject.configure(&sequence.instance);
    let instance_refused = configured.is_err();
    let answers = match configured {
        Ok(()) => sequence.calls.iter().map(|call| subject.call(call).and_then(whole)).collect(),
        // An instance that is refused refuses each of its calls.
        Err(no_answer) => vec![Err(no_answer); sequence.calls.len()],
    };
    Observation { sequence: sequence.clone(), answers, instance_refused }
}

/// The verdict on each answer. A refusal of the instance is right for all calls if it is right for one.
pub fn judge_observation(observation: &Observation, model: RoundingModel) -> Vec<Verdict> {
    let instance = &observation.sequence.instance;
    let calls = observation.sequence.calls.iter().zip(&observation.answers);
    let verdicts: Vec<_> = calls.map(|(call, answer)| judge_call(instance, call, answer, model)).collect();
    let one_rightly = verdicts.iter().any(|verdict| matches!(verdict, Verdict::RefusedRightly));
    if observation.instance_refused && one_rightly {
        return vec![Verdict::RefusedRightly; verdicts.len()];
    }
    verdicts
}

/// The kind of a failure, in a few words; `None` where the answer conforms.
fn kind(verdict: &Verdict) -> Option<&'static str> {
    match verdict {
        verdict if verdict.conforms() => None,
        Verdict::RefusedRightly => None,
        Verdict::RefusedWrongly { .. } => Some("refused what must be answered"),
        Verdict::Accepted { .. } => Some("answered what must be refused"),
        Verdict::Failed(_) => Some("gave no usable answer"),
        Verdict::Judged(judgement) => {
            Some(match judgement.mask.divergences.first().map(|first| first.fault) {
                None if judgement.labels.is_some() => "labels differ",
                None => "output out of bounds",
                Some(MaskFault::HoldsOut { .. } | MaskFault::MissesIn { .. }) => "wrong keys",
                Some(MaskFault::HoldsExcluded { .. }) => "selected a key that is no candidate",
                Some(MaskFault::ChangesEarlier { .. }) => "changed an earlier mask",
                Some(MaskFault::Weight { .. }) => "wrong weight",
                Some(MaskFault::Count { .. }) => "wrong number of keys",
                Some(MaskFault::NotFull { .. }) => "mask not full",
                Some(MaskFault::HeadsDiffer { .. }) => "heads differ",
            })
        }
    }
}

/// The first failing call and its kind.
fn failure(verdicts: &[Verdict]) -> Option<(usize, &'static str)> {
    verdicts.iter().enumerate().find_map(|(index, verdict)| Some((index, kind(verdict)?)))
}

/// Checks a subject. `progress` is called with the number of sequences asked so far, of all, and of findings.
pub fn check_with_progress(
    subject: &mut dyn Subject,
    options: &Options,
    progress: &mut dyn FnMut(usize, usize, usize),
) -> Report {
    let mut run = Run::new(subject, options);
    let goldens = run.goldens(options);
    let total = goldens.len();
    let capabilities = run.capabilities.clone();
    let plans = sequence_plans(&capabilities);
    let mut runner = test_runner(options.seed);
    let (mut asked, mut rejected) = (0, 0);
    while asked < options.cases && rejected < 100 * options.cases.max(10) && run.stopped.is_none() {
        let Ok(tree) = plans.new_tree(&mut runner) else { break };
        let sequence = tree.current().sequence();
        let Some(sequence) = sequence.ok().filter(|sequence| capabilities.missing(sequence).is_empty())
        else {
            rejected += 1;
            continue;
        };
        progress(asked, total + options.cases, run.findings.len());
        run.sequence(&sequence);
        asked += 1;
    }
    run.asked_random = asked;
    if asked < options.cases && run.stopped.is_none() {
        run.bad_inputs.push(format!(
            "random sequences: found {asked} that both the subject and the profile offer, expected {}",
            options.cases
        ));
    }
    // Random sequences are small and quick to understand: they go first.
    for (index, golden) in goldens.iter().enumerate() {
        if run.stopped.is_some() {
            break;
        }
        progress(asked + index, total + options.cases, run.findings.len());
        run.sequence(golden);
        run.asked_goldens += 1;
    }
    if options.cases == 0 && total == 0 {
        run.bad_inputs.push("cases: found 0, and no golden that applies, expected something to ask".into());
    }
    run.finish(options)
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

/// Writes each counterexample as a case file and as text, in place of those of an earlier run, and notes the files in the
/// report. Errors: those of writing.
pub fn write_counterexamples(report: &mut Report, folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let stem =
            path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.strip_prefix("finding-"));
        let ours = stem.is_some_and(|number| number.parse::<usize>().is_ok());
        if ours && path.extension().is_some_and(|kind| kind == "safetensors" || kind == "txt") {
            std::fs::remove_file(path)?;
        }
    }
    let (subject, version) = (report.subject.clone(), report.version);
    for (index, finding) in report.findings.iter_mut().enumerate() {
        let path = folder.join(format!("finding-{}.safetensors", index + 1));
        let source =
            format!("doublecheck {version}: {subject} diverges: {}", finding.explanations.join("; "));
        let bytes = crate::cases::file::sequence_to_bytes(&finding.observation.sequence, &source);
        std::fs::write(&path, bytes)?;
        std::fs::write(path.with_extension("txt"), crate::reports::check::finding(index, finding))?;
        finding.file = Some(path);
    }
    Ok(())
}

fn test_runner(seed: u64) -> TestRunner {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    TestRunner::new_with_rng(Config { failure_persistence: None, ..Config::default() }, rng)
}

//! Checks anyone's implementation: random sequences and the bundled goldens that apply are asked, every answer is judged
//! (SPEC §5), the first failure of each distinct kind is shrunk and explained. A failure is of a new kind if neither the
//! faults named so far nor the declared ones reproduce the answer.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use serde::Serialize;

use super::shrink::{Limits, Shrunk, shrink};
use crate::behaviours::{Behaviour, Fault};
use crate::cases::bundled::Found;
use crate::cases::sequence_plan::sequence_plans;
use crate::cases::{Capabilities, CaseFile, Reader, RoundingModel, Sequence};
use crate::reports::Sharpness;
use crate::subjects::Subject;
use crate::verdicts::Verdict;
use crate::verdicts::diagnosis::{self, Faults, Seen};
use crate::verdicts::judge::{MaskFault, judge_call};
use crate::verdicts::reproduction::{Observation, reproduces};

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

/// What a check found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Version of this crate.
    pub version: &'static str,
    /// Who was checked.
    pub subject: String,
    /// How it says it rounds: labels, kept type, accumulation.
    pub rounding_model: String,
    /// The same, to judge by.
    #[serde(skip)]
    pub model: RoundingModel,
    /// Seed of the random sequences.
    pub seed: u64,
    /// Random sequences that were asked.
    pub sequences: usize,
    /// Goldens that were asked.
    pub goldens: usize,
    /// Calls in all of them.
    pub calls: usize,
    /// Calls that were answered with a mask.
    pub answered: usize,
    /// Answers that hold an output, which was judged.
    pub outputs: usize,
    /// Answers that hold labels, which were judged where keys are ranked.
    pub labels: usize,
    /// Parts of the contract that were left out, and goldens not asked for it.
    pub left_out: BTreeMap<String, usize>,
    /// Sequences in which every answer conforms.
    pub conforming: usize,
    /// Calls that had to be refused, and were.
    pub refused: usize,
    /// Sequences that diverge as declared.
    pub known: usize,
    /// Declared divergences.
    pub declared: Vec<&'static str>,
    /// Sequences that diverge otherwise.
    pub diverged: usize,
    /// How sharp the verdicts on conforming answers were.
    pub sharpness: Sharpness,
    /// The first failure of each kind.
    pub findings: Vec<CheckFinding>,
    /// Whether the named faults reproduce every answer.
    pub explained: bool,
    /// Of all answers, how many the named faults reproduce.
    pub reproduced: usize,
    /// Answers that were too many to keep for the diagnosis.
    pub not_kept: usize,
    /// Why the check ended early, where it did.
    pub stopped: Option<String>,
    /// Files that could not be used.
    pub bad_inputs: Vec<String>,
    /// Wall-clock time of all of it.
    pub seconds: f64,
    /// Random sequences per second, shrinking and diagnosis left out.
    pub sequences_per_second: f64,
}

/// The first failure of a kind.
#[derive(Debug, Clone, Serialize)]
pub struct CheckFinding {
    /// The kind of failure, in a few words.
    pub kind: &'static str,
    /// The sequence in which it was first seen, and how many had been asked by then.
    pub first_seen: String,
    /// How many sequences had been asked by then.
    pub after: usize,
    /// How many sequences show it.
    pub sequences: usize,
    /// What is wrong with the shrunk sequence, one line each.
    pub explanations: Vec<String>,
    /// Names of the faults that explain it; empty where unknown.
    pub diagnosis: Vec<&'static str>,
    /// Rows of SPEC §3 or sections of §2.
    pub rows: Vec<&'static str>,
    /// The diagnosis in plain words.
    pub sentence: String,
    /// Sizes of the shrunk sequence.
    pub size: Size,
    /// How often the subject was asked while shrinking.
    pub tries: usize,
    /// How long shrinking took.
    pub shrinking_seconds: f64,
    /// False where a limit ended the shrinking.
    pub shrunk: bool,
    /// Where the counterexample was written.
    pub file: Option<PathBuf>,
    /// The counterexample and what the subject answered to it.
    #[serde(skip)]
    pub observation: Observation,
    /// The call that fails.
    pub call: usize,
    #[serde(skip)]
    faults: Faults,
}

impl CheckFinding {
    /// Shows another observation that fails.
    fn show(&mut self, observation: Observation, model: RoundingModel) {
        let verdicts = judge_observation(&observation, model);
        if let Some((call, kind)) = failure(&verdicts) {
            self.call = call;
            self.kind = kind;
            self.explanations = verdicts[call].explanations();
        }
        self.size = Size::of(&observation.sequence);
        self.observation = observation;
    }
}

/// Sizes of a sequence: the largest of its calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Size {
    /// How many calls.
    pub calls: usize,
    /// b
    pub batch: usize,
    /// h
    pub heads: usize,
    /// hk
    pub kv_heads: usize,
    /// m
    pub queries: usize,
    /// n
    pub keys: usize,
    /// d
    pub head_dim: usize,
}

impl Size {
    /// Of a sequence.
    pub fn of(sequence: &Sequence) -> Self {
        let most = |size: fn(&crate::algorithm::Dims) -> usize| {
            sequence.calls.iter().map(|call| size(&call.inputs.dims())).max().unwrap_or(0)
        };
        Self {
            calls: sequence.calls.len(),
            batch: most(|dims| dims.batch),
            heads: most(|dims| dims.heads),
            kv_heads: most(|dims| dims.kv_heads),
            queries: most(|dims| dims.queries),
            keys: most(|dims| dims.keys),
            head_dim: most(|dims| dims.head_dim),
        }
    }
}

impl Size {
    /// About how many numbers a person has to read.
    fn numbers(&self) -> usize {
        self.calls * self.batch * self.heads * (self.queries + self.keys) * self.head_dim
    }
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let plural = |count: usize, name: &str| {
            if count == 1 { format!("1 {name}") } else { format!("{count} {name}s") }
        };
        let mut parts = vec![plural(self.calls, "call")];
        if self.batch > 1 {
            parts.push(format!("batch {}", self.batch));
        }
        let heads = plural(self.heads, "head");
        parts.push(if self.kv_heads < self.heads {
            format!("{heads} over {}", self.kv_heads)
        } else {
            heads
        });
        if self.queries > 1 {
            parts.push(plural(self.queries, "query").replace("querys", "queries"));
        }
        parts.push(plural(self.keys, "key"));
        parts.push(format!("d = {}", self.head_dim));
        f.write_str(&parts.join(", "))
    }
}

impl Report {
    /// 0 where everything conforms or diverges as declared, 1 where something else diverged or the check ended early, 2 where some input could not be
    /// used.
    pub fn exit_code(&self) -> u8 {
        match (self.bad_inputs.is_empty(), self.findings.is_empty() && self.stopped.is_none()) {
            (false, _) => 2,
            (true, false) => 1,
            (true, true) => 0,
        }
    }

    /// Whether nothing diverged but as declared.
    pub fn conforms(&self) -> bool {
        self.exit_code() == 0
    }
}

/// Asks every call of a sequence of one fresh instance.
pub fn ask(subject: &mut dyn Subject, sequence: &Sequence) -> Observation {
    let configured = subject.configure(&sequence.instance);
    let instance_refused = configured.is_err();
    let answers = match configured {
        Ok(()) => sequence.calls.iter().map(|call| subject.call(call)).collect(),
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

/// Observations kept for diagnosis, at most.
const MOST_KEPT: usize = 512 << 20;

struct Run<'a> {
    subject: &'a mut dyn Subject,
    model: RoundingModel,
    capabilities: Capabilities,
    known: Faults,
    /// Declared divergences that no conforming answer contradicts.
    shown: Faults,
    /// Faults named so far: they reproduce everything seen that they can.
    named: Faults,
    seen: Vec<Seen>,
    seen_bytes: usize,
    dropped: usize,
    findings: Vec<CheckFinding>,
    most_findings: usize,
    shrinking: Limits,
    left_out: BTreeMap<String, usize>,
    bad_inputs: Vec<String>,
    asked: usize,
    asked_goldens: usize,
    asked_random: usize,
    calls: usize,
    /// Answers with a mask, with an output, with labels.
    answered: [usize; 3],
    conforming: usize,
    refused: usize,
    known_sequences: usize,
    diverged: usize,
    sharpness: Sharpness,
    start: Instant,
    thinking: Duration,
    resolved: usize,
    /// Time spent on sequences without a usable answer, and how many they were.
    unusable: (Duration, usize),
    stopped: Option<String>,
}

impl<'a> Run<'a> {
    fn new(subject: &'a mut dyn Subject, options: &Options) -> Self {
        let capabilities = subject.capabilities().and(&options.profile);
        let mut left_out: BTreeMap<String, usize> =
            capabilities.lacks.iter().map(|feature| (feature.name(), 0)).collect();
        let all = Capabilities::default();
        let types = all.dtypes.iter().filter(|dtype| !capabilities.dtypes.contains(dtype));
        left_out.extend(types.map(|dtype| (dtype.to_string(), 0)));
        let modes = all.heads.iter().filter(|heads| !capabilities.heads.contains(heads));
        left_out.extend(modes.map(|heads| (heads.name().to_owned(), 0)));
        Self {
            model: subject.rounding_model(),
            subject,
            capabilities,
            known: options.known.clone(),
            shown: options.known.clone(),
            named: Vec::new(),
            seen: Vec::new(),
            seen_bytes: 0,
            dropped: 0,
            findings: Vec::new(),
            most_findings: options.most_findings,
            shrinking: options.shrinking,
            left_out,
            bad_inputs: Vec::new(),
            asked: 0,
            asked_goldens: 0,
            asked_random: 0,
            calls: 0,
            answered: [0; 3],
            conforming: 0,
            refused: 0,
            known_sequences: 0,
            diverged: 0,
            sharpness: Sharpness::default(),
            start: Instant::now(),
            thinking: Duration::ZERO,
            resolved: 0,
            unusable: (Duration::ZERO, 0),
            stopped: None,
        }
    }

    /// Goldens that apply, as sequences.
    fn goldens(&mut self, options: &Options) -> Vec<Sequence> {
        let mut reader = Reader::default();
        let mut sequences = Vec::new();
        for found in &options.goldens {
            let sequence = match reader.read(&found.path(), &found.name) {
                Ok(CaseFile::Attention(case)) => Sequence::from(case.as_ref()),
                Ok(CaseFile::Sequence(stored)) => stored.sequence,
                Ok(CaseFile::Quantisation(_) | CaseFile::Calibration(_)) => continue,
                Err(error) => {
                    self.bad_inputs.push(error.to_string());
                    continue;
                }
            };
            let sequence = sequence.on_layers_from(self.capabilities.first_layer);
            let missing = self.capabilities.missing(&sequence);
            if missing.is_empty() {
                sequences.push(sequence);
            }
            for feature in missing {
                *self.left_out.entry(feature).or_default() += 1;
            }
        }
        sequences
    }

    fn sequence(&mut self, sequence: &Sequence) {
        self.asked += 1;
        self.calls += sequence.calls.len();
        let asking = Instant::now();
        let observation = ask(self.subject, sequence);
        let verdicts = judge_observation(&observation, self.model);
        for answer in observation.answers.iter().flatten() {
            self.answered[0] += 1;
            self.answered[1] += usize::from(answer.output.is_some());
            self.answered[2] += usize::from(answer.labels.is_some());
        }
        if verdicts.iter().any(|verdict| matches!(verdict, Verdict::Failed(_))) {
            self.unusable(asking.elapsed());
        }
        let Some((_, kind)) = failure(&verdicts) else {
            self.conforming += 1;
            for verdict in &verdicts {
                self.refused += usize::from(matches!(verdict, Verdict::RefusedRightly));
                self.sharpness.add(&Sharpness::of(verdict));
            }
            self.doubt_declared(&observation);
            self.keep(observation, true);
            return;
        };
        if self.declared(&observation) {
            self.known_sequences += 1;
            return;
        }
        self.diverged += 1;
        let named = self.reproduced(&observation);
        self.keep(observation.clone(), false);
        if named {
            return;
        }
        let thinking = Instant::now();
        // Shrinking may end at one of several causes: the others are looked for as long as new ones are named.
        const MOST_CAUSES: usize = 4;
        for _ in 0..MOST_CAUSES {
            // What nothing explained before is not looked into again.
            let unknown = |finding: &CheckFinding| finding.kind == kind && finding.faults.is_empty();
            if let Some(index) = self.findings.iter().position(unknown) {
                self.findings[index].sequences += 1;
                break;
            }
            if self.findings.len() >= self.most_findings {
                break;
            }
            self.finding(observation.clone(), kind);
            if self.reproduced(&observation)
                || self.findings.last().is_some_and(|last| last.faults.is_empty())
            {
                break;
            }
        }
        self.thinking += thinking.elapsed();
    }

    /// A subject that hangs again and again is not waited for until the end.
    fn unusable(&mut self, time: Duration) {
        const MOST_TIME: Duration = Duration::from_secs(120);
        const FEWEST: usize = 4;
        self.unusable.0 += time;
        self.unusable.1 += 1;
        if self.unusable.0 > MOST_TIME && self.unusable.1 >= FEWEST {
            let (time, count) = self.unusable;
            self.stopped =
                Some(format!("{count} sequences without a usable answer took {:.0} s", time.as_secs_f64()));
        }
    }

    /// Whether declared divergences reproduce the answers: all of them together, or one alone.
    fn declared(&self, observation: &Observation) -> bool {
        let together = diagnosis::independent_sets(&self.known).into_iter().map(Behaviour::with);
        let alone = self.known.iter().map(|fault| fault.behaviour());
        !self.known.is_empty()
            && together.chain(alone).any(|behaviour| reproduces(behaviour, observation, self.model))
    }

    /// Declared divergences that an answer contradicts explain nothing.
    fn doubt_declared(&mut self, observation: &Observation) {
        let model = self.model;
        self.shown.retain(|fault| reproduces(fault.behaviour(), observation, model));
    }

    /// Declared and named faults together.
    fn suspected(&self) -> Faults {
        self.shown.iter().chain(&self.named).copied().collect()
    }

    fn reproduced(&self, observation: &Observation) -> bool {
        !self.named.is_empty() && reproduces(Behaviour::with(self.suspected()), observation, self.model)
    }

    /// Keeps an answer for diagnosis, and gives up named faults that it contradicts.
    fn keep(&mut self, observation: Observation, conforms: bool) {
        let bytes: usize = observation.sequence.calls.iter().map(|call| call.bytes()).sum();
        if self.seen_bytes + bytes > MOST_KEPT {
            self.dropped += 1;
            return;
        }
        let contradicted = !self.named.is_empty() && !self.reproduced(&observation);
        self.seen_bytes += bytes;
        self.seen.push(Seen { observation, conforms });
        const MOST_RESOLVED: usize = 12;
        if contradicted && self.resolved < MOST_RESOLVED {
            let thinking = Instant::now();
            self.resolved += 1;
            self.resolve();
            self.thinking += thinking.elapsed();
        }
    }

    /// Names faults anew, from all findings in order and everything seen.
    fn resolve(&mut self) {
        self.named.clear();
        for index in 0..self.findings.len() {
            let target = self.findings[index].observation.clone();
            if !self.reproduced(&target) {
                self.extend(&target);
            }
            let faults = self.faults_of(&target);
            self.findings[index].faults = faults;
        }
    }

    /// Adds faults that explain an answer to the named ones.
    fn extend(&mut self, target: &Observation) {
        if let Some(faults) = diagnosis::extend(&self.suspected(), target, &self.seen, self.model) {
            self.named = faults.into_iter().filter(|fault| !self.shown.contains(fault)).collect();
        }
    }

    fn faults_of(&self, target: &Observation) -> Faults {
        if self.reproduced(target) {
            diagnosis::shown_by(&self.suspected(), target, self.model)
        } else {
            Vec::new()
        }
    }

    fn finding(&mut self, observation: Observation, kind: &'static str) {
        let first_seen = observation.sequence.name.clone();
        let shrunk = self.shrink(observation.sequence, kind);
        let observation = ask(self.subject, &shrunk.sequence);
        let verdicts = judge_observation(&observation, self.model);
        let failed = failure(&verdicts);
        let (call, kind) = failed.unwrap_or((0, kind));
        let explanations = match failed {
            Some(_) => verdicts[call].explanations(),
            None => vec!["asked again, the subject answers otherwise, and conforms".into()],
        };
        // What conforms when asked again needs no explanation by a fault.
        if failed.is_some() && !self.reproduced(&observation) {
            self.extend(&observation);
        }
        let faults = if failed.is_some() { self.faults_of(&observation) } else { Vec::new() };
        self.findings.push(CheckFinding {
            kind,
            first_seen,
            after: self.asked,
            sequences: 1,
            explanations,
            diagnosis: Vec::new(),
            rows: Vec::new(),
            sentence: String::new(),
            size: Size::of(&shrunk.sequence),
            tries: shrunk.tries,
            shrinking_seconds: shrunk.seconds,
            shrunk: shrunk.finished,
            file: None,
            observation: observation.clone(),
            call,
            faults,
        });
        self.seen.push(Seen { observation, conforms: failed.is_none() });
    }

    fn shrink(&mut self, sequence: Sequence, kind: &'static str) -> Shrunk {
        let (model, capabilities) = (self.model, self.capabilities.clone());
        let declared = diagnosis::independent_sets(&self.known);
        let named = self.suspected();
        let has_named = !self.named.is_empty();
        let subject = &mut *self.subject;
        let mut fails = |candidate: &Sequence| {
            if !capabilities.missing(candidate).is_empty() {
                return false;
            }
            let observation = ask(subject, candidate);
            let verdicts = judge_observation(&observation, model);
            let explained = |faults: &[&'static Fault]| {
                !faults.is_empty() && reproduces(Behaviour::with(faults.iter().copied()), &observation, model)
            };
            verdicts.iter().any(|verdict| self::kind(verdict) == Some(kind))
                && !declared.iter().any(|faults| explained(faults))
                && !(has_named && explained(&named))
        };
        shrink(sequence, self.shrinking, &mut fails)
    }

    fn finish(mut self, options: &Options) -> Report {
        let thinking = Instant::now();
        self.resolve();
        let suspected = self.suspected();
        let behaviour = Behaviour::with(suspected.iter().copied());
        let reproduced =
            self.seen.iter().filter(|seen| reproduces(behaviour, &seen.observation, self.model)).count();
        let explained = reproduced == self.seen.len();
        if explained {
            self.isolate();
        }
        for index in 0..self.findings.len() {
            let faults = self.findings[index].faults.clone();
            let ambiguous = self.ambiguous(&faults, explained);
            let finding = &mut self.findings[index];
            finding.sentence = sentence(&faults, explained, ambiguous.as_ref(), reproduced, self.seen.len());
            if explained && ambiguous.is_none() {
                finding.diagnosis = faults.iter().map(|fault| fault.name).collect();
                finding.rows = faults.iter().map(|fault| fault.row).collect();
            }
        }
        self.merge_findings();
        self.shrink_further();
        self.count_findings();
        self.thinking += thinking.elapsed();
        let seconds = self.start.elapsed().as_secs_f64();
        let asking = seconds - self.thinking.as_secs_f64();
        Report {
            version: env!("CARGO_PKG_VERSION"),
            subject: self.subject.name(),
            rounding_model: self.model.to_string(),
            model: self.model,
            seed: options.seed,
            sequences: self.asked_random,
            goldens: self.asked_goldens,
            calls: self.calls,
            answered: self.answered[0],
            outputs: self.answered[1],
            labels: self.answered[2],
            left_out: self.left_out,
            conforming: self.conforming,
            refused: self.refused,
            known: self.known_sequences,
            declared: self.known.iter().map(|fault| fault.name).collect(),
            diverged: self.diverged,
            sharpness: self.sharpness,
            findings: self.findings,
            explained,
            reproduced,
            not_kept: self.dropped,
            stopped: self.stopped,
            bad_inputs: self.bad_inputs,
            seconds,
            sequences_per_second: self.asked as f64 / asking.max(1e-9),
        }
    }

    /// Another fault that would explain everything as well as the one named.
    fn ambiguous(
        &self,
        faults: &[&'static Fault],
        explained: bool,
    ) -> Option<(&'static Fault, &'static Fault)> {
        if !explained {
            return None;
        }
        let suspected = self.suspected();
        faults.iter().filter(|fault| self.named.contains(fault)).find_map(|fault| {
            let others = diagnosis::alternatives(&suspected, fault, &self.seen, self.model);
            others.first().map(|other| (*fault, *other))
        })
    }

    /// Where a finding shows a fault only together with others, another answer may show it alone.
    fn isolate(&mut self) {
        let alone =
            |findings: &[CheckFinding], fault| findings.iter().any(|finding| finding.faults == [fault]);
        for index in 0..self.findings.len() {
            let faults = self.findings[index].faults.clone();
            for fault in faults.iter().copied().filter(|_| faults.len() > 1) {
                let shows = |seen: &&Seen| {
                    !seen.conforms && reproduces(fault.behaviour(), &seen.observation, self.model)
                };
                if alone(&self.findings, fault) {
                    continue;
                }
                if let Some(seen) = self.seen.iter().find(shows) {
                    let finding = &mut self.findings[index];
                    finding.faults = vec![fault];
                    finding.show(seen.observation.clone(), self.model);
                    finding.shrunk = false;
                    break;
                }
            }
        }
    }

    /// Findings that turned out to have the same cause are one: the smallest of them.
    fn merge_findings(&mut self) {
        let mut kept: Vec<CheckFinding> = Vec::new();
        for mut finding in self.findings.drain(..) {
            let same =
                |other: &&mut CheckFinding| !finding.faults.is_empty() && other.faults == finding.faults;
            match kept.iter_mut().find(same) {
                Some(other) if finding.size.numbers() < other.size.numbers() => {
                    finding.after = other.after;
                    *other = finding;
                }
                Some(_) => {}
                None => kept.push(finding),
            }
        }
        self.findings = kept;
    }

    /// With the cause known, a counterexample may be shrunk to what still shows that cause and no other.
    fn shrink_further(&mut self) {
        const LARGE: usize = 32;
        let model = self.model;
        for index in 0..self.findings.len() {
            let finding = &self.findings[index];
            if finding.diagnosis.is_empty() || (finding.shrunk && finding.size.numbers() <= LARGE) {
                continue;
            }
            let behaviour = Behaviour::with(finding.faults.iter().copied());
            let (capabilities, subject) = (&self.capabilities, &mut *self.subject);
            let mut fails = |candidate: &Sequence| {
                if !capabilities.missing(candidate).is_empty() {
                    return false;
                }
                let observation = ask(subject, candidate);
                judge_observation(&observation, model).iter().any(|verdict| !verdict.conforms())
                    && reproduces(behaviour, &observation, model)
            };
            let start = finding.observation.sequence.clone();
            let shrunk = shrink(start, self.shrinking, &mut fails);
            let observation = ask(self.subject, &shrunk.sequence);
            let verdicts = judge_observation(&observation, model);
            if failure(&verdicts).is_none() {
                continue;
            }
            let finding = &mut self.findings[index];
            finding.show(observation, model);
            finding.tries += shrunk.tries;
            finding.shrinking_seconds += shrunk.seconds;
            finding.shrunk = shrunk.finished;
        }
    }

    /// How many sequences show each finding: those that its faults are needed for.
    fn count_findings(&mut self) {
        let suspected = self.suspected();
        for finding in self.findings.iter_mut().filter(|finding| !finding.faults.is_empty()) {
            let others = suspected.iter().copied().filter(|fault| !finding.faults.contains(fault));
            let without = Behaviour::with(others);
            let shows = |seen: &&Seen| !seen.conforms && !reproduces(without, &seen.observation, self.model);
            finding.sequences = self.seen.iter().filter(shows).count().saturating_sub(1).max(1);
        }
    }
}

fn sentence(
    faults: &[&'static Fault],
    explained: bool,
    ambiguous: Option<&(&'static Fault, &'static Fault)>,
    reproduced: usize,
    seen: usize,
) -> String {
    let words = |faults: &[&'static Fault]| {
        let words: Vec<_> = faults
            .iter()
            .map(|fault| format!("{} ({}, {})", fault.sentence, fault.name, fault.row))
            .collect();
        words.join(" And: ")
    };
    match (faults.is_empty(), explained, ambiguous) {
        (true, ..) => "Unknown: nothing in the catalogue reproduces these answers.".into(),
        (false, true, None) => words(faults),
        (false, true, Some((one, other))) => format!(
            "Unknown: {} and {} reproduce all answers alike; more cases would have to decide.",
            one.name, other.name
        ),
        (false, false, _) => format!(
            "Unknown; the nearest explanation reproduces this, but only {reproduced} of {seen} answers: {}",
            words(faults)
        ),
    }
}

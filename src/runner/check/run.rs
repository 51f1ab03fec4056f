//! A check under way: asking, counting, and telling failures of a new kind from those already explained.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::num::NonZeroUsize;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::conditions::AskedCalls;
use super::coverage::Coverage;
use super::events::{Event, Progress};
use super::promises::nothing_counted;
use super::report::{Finding, Report, ReportedStages};
use super::suspects::Suspects;
use super::{FOREVER, Options};
use crate::cases::capabilities::SESSIONS;
use crate::cases::{Capabilities, Feature, Observation, Promise, Sequence, SessionObservation, Shape};
use crate::diagnosis::probes::Probed;
use crate::runner::shrink::Limits;
use crate::subjects::{Subject, ask};
use crate::verdicts::judge::{first_failure, judge_observation};
use crate::verdicts::{Sharpness, Verdict};

/// A failure may have several causes, of which shrinking shows one. At most this many are looked for, while new ones turn up.
const MOST_CAUSES: usize = 4;

/// How many of the sequences asked last are looked at where a failure does not show again.
const RECENT: usize = 2;

/// A check ends early once this much time, and at least this many sequences, brought no usable answer: the subject may hang
/// again and again.
pub(super) const MOST_UNUSABLE: (Duration, usize) = (Duration::from_secs(120), 4);

pub(super) struct Run<'a> {
    pub(super) subject: &'a mut dyn Subject,
    pub(super) watch: &'a mut dyn FnMut(Event<'_>),
    pub(super) capabilities: Capabilities,
    pub(super) suspects: Suspects,
    pub(super) report: Report,
    pub(super) shrinking: Limits,
    /// Whether searches end by the clock, too.
    by_clock: bool,
    /// How long findings may still be shrunk, where that is limited for all together.
    shrinking_left: Option<Duration>,
    most_findings: usize,
    stop_after: Option<NonZeroUsize>,
    /// The shapes asked, where they are few.
    pub(super) shapes: Option<BTreeSet<Shape>>,
    /// Time spent on sequences of a shape that was new, where shapes are few, and how many they were.
    pub(super) compiling: (Duration, usize),
    /// Sequences asked so far, random ones and goldens.
    pub(super) asked: usize,
    /// How often each sequence is asked.
    pub(super) repeat: usize,
    /// A conforming sequence to be asked again once this many were asked.
    pub(super) waiting: Option<(usize, Observation)>,
    /// Whether conditions and states are looked for.
    pub(super) conditions: bool,
    /// What was asked and what came of it, call by call.
    pub(super) asked_calls: AskedCalls,
    /// The sequences asked last.
    pub(super) recent: VecDeque<Sequence>,
    /// Findings that no fault of the catalogue could explain: what is not repeatable, and broken promises.
    pub(super) apart: Vec<Finding>,
    /// Sessions kept for diagnosis, each up to the first step that fails.
    pub(super) kept_sessions: Vec<SessionObservation>,
    start: Instant,
    /// Time spent on shrinking and diagnosis.
    pub(super) thinking: Duration,
    /// Time spent on sequences without a usable answer, and how many they were.
    unusable: (Duration, usize),
}

impl<'a> Run<'a> {
    pub(super) fn new(
        subject: &'a mut dyn Subject,
        options: &Options,
        watch: &'a mut dyn FnMut(Event<'_>),
    ) -> Self {
        let capabilities = subject.capabilities().and(&options.profile);
        let model = subject.rounding_model();
        let mut report = Report::new(subject.name(), model, options.seed, Coverage::new(&capabilities));
        report.shard = (!options.shard.is_whole()).then_some(options.shard);
        report.planned_seconds = options.seconds.map(|seconds| seconds.as_secs_f64());
        report.left_out = left_out(&capabilities);
        if capabilities.sessions && capabilities.shapes.is_some() {
            report.left_out.insert(SESSIONS.into(), 0);
        }
        report.promises = nothing_counted(Promise::ALL, &capabilities);
        report.stages = ReportedStages::of(&capabilities.stages);
        report.declare(options);
        Self {
            shapes: capabilities.shapes.map(|_| BTreeSet::new()),
            subject,
            watch,
            capabilities,
            suspects: Suspects::new(options, model),
            report,
            shrinking: options.shrinking(),
            by_clock: options.by_clock,
            shrinking_left: options.shrinking_in_all,
            most_findings: options.most_findings,
            stop_after: options.stop_after,
            compiling: (Duration::ZERO, 0),
            asked: 0,
            repeat: options.repeat,
            waiting: None,
            conditions: options.conditions,
            asked_calls: AskedCalls::default(),
            recent: VecDeque::new(),
            apart: Vec::new(),
            kept_sessions: Vec::new(),
            start: Instant::now(),
            thinking: Duration::ZERO,
            unusable: (Duration::ZERO, 0),
        }
    }

    /// Does what is not asking or judging, and counts its time, that of work inside other work once.
    pub(super) fn think(&mut self, work: impl FnOnce(&mut Self)) {
        let (before, start) = (self.thinking, Instant::now());
        work(self);
        self.thinking = before + start.elapsed();
    }

    /// The time spent on asking and judging, in seconds.
    pub(super) fn asking(&self) -> f64 {
        (self.start.elapsed() - self.thinking).as_secs_f64()
    }

    /// Sequences asked in a second, those that were compiled for not counted.
    pub(super) fn per_second(&self) -> f64 {
        let (time, count) = self.compiling;
        (self.asked - count) as f64 / (self.asking() - time.as_secs_f64()).max(1e-9)
    }

    /// Whether nothing more is to be asked.
    pub(super) fn is_over(&mut self) -> bool {
        let interrupted = self.shrinking.interrupted.is_some_and(|flag| flag.load(Ordering::Relaxed));
        self.report.interrupted |= interrupted;
        self.report.is_over(self.findings(), self.stop_after)
    }

    /// How many findings there are.
    pub(super) fn findings(&self) -> usize {
        self.report.findings.len() + self.apart.len()
    }

    /// How long a search may take that is given so long where it ends by the clock.
    pub(super) fn at_most(&self, time: Duration) -> Duration {
        if self.by_clock { time } else { FOREVER }
    }

    /// When to stop shrinking the next finding.
    pub(super) fn limits(&self) -> Limits {
        limits(self.shrinking, self.shrinking_left, self.stop_after)
    }

    /// Counts the time that shrinking took.
    pub(super) fn has_shrunk(&mut self, seconds: f64) {
        if let Some(left) = &mut self.shrinking_left {
            *left = left.saturating_sub(Duration::try_from_secs_f64(seconds).unwrap_or_default());
        }
    }

    /// Asks a sequence, judges and counts the answers, and looks into failures of a new kind. `done` is which part of the check is
    /// done.
    pub(super) fn sequence(&mut self, sequence: &Sequence, done: f64) {
        let keys = sequence.calls.iter().map(|call| call.inputs.dims().keys).max().unwrap_or(0);
        let (asked, per_second, findings) = (self.asked, self.per_second(), self.findings());
        (self.watch)(Event::Asking(Progress { done, asked, per_second, keys, findings }));
        let before = self.asking();
        self.ask_and_judge(sequence);
        self.remember(sequence);
        if let Some(shapes) = &mut self.shapes {
            let known = shapes.len();
            shapes.extend(Shape::of_sequence(sequence));
            self.report.shapes = Some(shapes.len());
            if shapes.len() > known {
                let time = Duration::try_from_secs_f64(self.asking() - before).unwrap_or_default();
                self.compiling = (self.compiling.0 + time, self.compiling.1 + 1);
            }
        }
    }

    fn ask_and_judge(&mut self, sequence: &Sequence) {
        self.asked += 1;
        self.report.calls += sequence.calls.len();
        let asking = Instant::now();
        let observation = ask(self.subject, sequence);
        let selected = self.subject.selected().cloned();
        let verdicts = judge_observation(&observation, self.report.model);
        self.asked_calls.add(sequence, &verdicts);
        self.count_answers(&observation);
        self.report.by_size.add(sequence, &verdicts);
        self.report.coverage.add(sequence, &verdicts, self.capabilities.offers(Feature::Output));
        if verdicts.iter().any(|verdict| matches!(verdict, Verdict::Failed(_))) {
            self.count_unusable(asking.elapsed());
        }
        let Some((_, kind)) = first_failure(&verdicts) else {
            self.check_selected(&observation, selected);
            let again = self.is_asked_again().then(|| observation.clone());
            let promises = self.is_promise_checked().then(|| observation.clone());
            self.conforms(observation, &verdicts);
            again.iter().for_each(|observation| self.ask_again(observation));
            promises.iter().for_each(|observation| self.check_promises(observation));
            self.ask_waiting(false);
            return;
        };
        self.diverges(observation, kind);
    }

    /// Counts an answer that does not conform, and looks into a failure of a new kind.
    pub(super) fn diverges(&mut self, observation: Observation, kind: &'static str) {
        if self.suspects.declare(&observation) {
            self.report.known += 1;
            self.suspects.note_declared(&observation);
            return;
        }
        self.report.diverged += 1;
        let explained = self.suspects.reproduce(&observation);
        if !explained && self.diverges_sometimes(&observation, kind) {
            return;
        }
        self.keep(observation.clone(), false);
        if !explained {
            self.think(|run| run.look_into(&observation, kind));
        }
    }

    fn count_answers(&mut self, observation: &Observation) {
        for answer in observation.answers.iter().flatten() {
            self.report.answered += 1;
            self.report.outputs += usize::from(answer.output.is_some());
            self.report.labels += usize::from(answer.labels.is_some());
            if let Some(stages) = &mut self.report.stages {
                stages.scores += usize::from(answer.scores.is_some());
                stages.lse += usize::from(answer.lse.is_some());
            }
        }
    }

    fn conforms(&mut self, observation: Observation, verdicts: &[Verdict]) {
        self.report.conforming += 1;
        for verdict in verdicts {
            self.report.refused += usize::from(matches!(verdict, Verdict::RefusedRightly));
            self.report.sharpness.add(&Sharpness::of(verdict));
        }
        self.suspects.doubt_declared(&observation);
        self.keep(observation, true);
    }

    /// Finds the causes of a failure that nothing explains so far.
    fn look_into(&mut self, observation: &Observation, kind: &'static str) {
        for _ in 0..MOST_CAUSES {
            // A kind of failure that nothing explained before is not looked into again.
            let unknown = |finding: &&mut Finding| finding.kind == kind && finding.faults.is_empty();
            if let Some(finding) = self.report.findings.iter_mut().find(unknown) {
                finding.sequences += 1;
                break;
            }
            if self.report.findings.len() >= self.most_findings {
                self.report.not_looked_into += 1;
                break;
            }
            self.find(observation.clone(), kind);
            if self.suspects.reproduce(observation)
                || self.report.findings.last().is_some_and(|last| last.faults.is_empty())
            {
                break;
            }
        }
    }

    pub(super) fn count_unusable(&mut self, time: Duration) {
        self.unusable.0 += time;
        self.unusable.1 += 1;
        let (most_time, fewest) = MOST_UNUSABLE;
        if self.unusable.0 > most_time && self.unusable.1 >= fewest {
            let (time, count) = self.unusable;
            self.report.stopped =
                Some(format!("{count} sequences without a usable answer took {:.0} s", time.as_secs_f64()));
        }
    }

    fn remember(&mut self, sequence: &Sequence) {
        self.recent.push_back(sequence.clone());
        if self.recent.len() > RECENT {
            self.recent.pop_front();
        }
    }

    /// Keeps an observation for diagnosis, and gives up named faults that it contradicts.
    fn keep(&mut self, observation: Observation, conforms: bool) {
        let kept = self.suspects.keep(observation, conforms, self.asked);
        if kept.is_some() {
            self.asked_calls.note_kept(self.suspects.kept() - 1);
        }
        match kept {
            None => self.report.not_kept += 1,
            Some(false) => {}
            Some(true) => {
                self.think(|run| run.suspects.resolve(&mut run.report.findings));
            }
        }
    }

    pub(super) fn finish(mut self) -> Report {
        self.ask_waiting(true);
        self.think(Self::conclude);
        self.is_over();
        let mut seen = self.suspects.occurred().clone();
        seen.extend(self.report.probes.iter().flat_map(Probed::declared));
        self.report.settle(&seen);
        let (seconds, sequences_per_second) = (self.start.elapsed().as_secs_f64(), self.per_second());
        Report { seconds, sequences_per_second, ..self.report }
    }
}

/// When to stop shrinking a finding: where there is a time for all together, half of what is left of it is for others, if there
/// may be others.
pub(super) fn limits(shrinking: Limits, left: Option<Duration>, stop_after: Option<NonZeroUsize>) -> Limits {
    let for_this = if stop_after == Some(NonZeroUsize::MIN) { 1 } else { 2 };
    left.map_or(shrinking, |left| Limits { time: left / for_this, ..shrinking })
}

/// What is not asked; the goldens that need each of them are yet to be counted.
pub(super) fn left_out(capabilities: &Capabilities) -> BTreeMap<String, usize> {
    let all = Capabilities::default();
    let features = capabilities.lacks.iter().map(|feature| feature.name());
    let types = all.dtypes.iter().filter(|dtype| !capabilities.dtypes.contains(dtype));
    let modes = all.heads.iter().filter(|heads| !capabilities.heads.contains(heads));
    let names =
        features.chain(types.map(ToString::to_string)).chain(modes.map(|heads| heads.name().to_owned()));
    names.map(|name| (name, 0)).collect()
}

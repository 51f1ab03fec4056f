//! Checks an implementation of one stage: random questions to it, each answer judged, the first failure of each kind shrunk.
//! Bundled cases are of whole layers and are not asked. What the stage started from was given, so that it is at fault; how is told by a
//! relation that reproduces every answer kept, or by the rounding model or the condition of what fails.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Options;
use super::by_size::SIZES;
use super::conditions::supported;
use super::coverage::Coverage;
use super::events::{Event, Progress};
use super::goldens::of_stage;
use super::grouping::count_with;
use super::pace::Pace;
use super::promises::{BROKEN_PROMISE, nothing_counted};
use super::report::{Finding, Report, ReportedStages, StageExample};
use super::run::{self, MOST_UNUSABLE, left_out};
use super::stage_promises::of_stages;
use crate::cases::large_plan::Large;
use crate::cases::recipe::mix;
use crate::cases::stage_plan::{LargeStage, ScoreShape, stage_call_of};
use crate::cases::{Capabilities, NoAnswer, Shape, StageAnswer, StageCall, Takes};
use crate::diagnosis::condition::features::Features;
use crate::diagnosis::condition::{Condition, Example, Origin};
use crate::diagnosis::relations::{MOST_TIME, SeenStage, explain_stages, features_of_stage};
use crate::runner::shrink::Limits;
use crate::runner::shrink::edge::edges;
use crate::runner::shrink::stages::shrink_stage;
use crate::subjects::{Reference, Subject, ask_stage, ask_stage_until};
use crate::verdicts::judge_stage;

/// Questions that the domain leaves out, for each one that it leaves in, before the search for more is given up.
const MOST_REJECTED: usize = 100;

/// The largest question that is kept for the search for causes, in numbers, how many are kept of those that fail and of those that
/// conform, and of how many questions the features are.
const LARGEST_KEPT: usize = 1 << 17;
const MOST_KEPT: usize = 1 << 24;
const MOST_EXAMPLES: usize = 1 << 15;

/// The share of the time that small questions get, where each stage of large ones gets 1.
const SMALL_SHARE: f64 = 2.0;

/// Random questions of one size, or small ones, by their numbers.
struct Questions {
    /// What the seed is mixed with.
    series: u64,
    keys: Option<(usize, usize)>,
    tried: usize,
    /// How many of those tried the subject offers, and how many were asked.
    offered: usize,
    asked: usize,
    shapes: Option<usize>,
    /// The shape of the first question of each.
    known: Vec<Option<Shape>>,
}

/// A check of one stage under way.
pub(super) struct Run<'a> {
    pub(super) subject: &'a mut dyn Subject,
    watch: &'a mut dyn FnMut(Event<'_>),
    pub(super) options: &'a Options,
    pub(super) capabilities: Capabilities,
    pub(super) report: Report,
    start: Instant,
    /// Time spent on shrinking.
    pub(super) thinking: Duration,
    shrinking_left: Option<Duration>,
    /// Time spent on questions without a usable answer, and how many they were.
    unusable: (Duration, usize),
    shapes: BTreeSet<Shape>,
    /// Time spent on questions of a new shape, where shapes are few, and how many they were.
    compiling: (Duration, usize),
    /// What was answered, and how many numbers are kept of what conforms.
    seen: Vec<SeenStage>,
    seen_numbers: [usize; 2],
    /// Whether a finding stayed too large for that.
    too_large: bool,
    /// The features of each question, with the kind of its failure.
    examples: Vec<(Features, Option<&'static str>)>,
}

/// Checks a subject that takes scores or a selection.
pub(super) fn check_stages(
    subject: &mut dyn Subject,
    options: &Options,
    watch: &mut dyn FnMut(Event<'_>),
) -> Report {
    let mut run = Run::new(subject, options, watch);
    #[cfg(feature = "probes")]
    let deviating = run.probe();
    #[cfg(not(feature = "probes"))]
    let deviating = Vec::new();
    let goldens = of_stage(&run.capabilities, options, &mut run.report);
    match options.seconds {
        None => run.ask_so_many(goldens),
        Some(seconds) => run.ask_for(seconds, goldens),
    }
    for (name, call) in deviating {
        if run.is_over() {
            break;
        }
        run.report.probed += 1;
        run.question(name, call, 1.0);
    }
    if run.report.calls == 0 && options.cases == 0 {
        let takes = run.capabilities.stages.takes.name();
        run.report.bad_inputs.push(format!(
            "cases: found 0, and no golden for a subject that takes {takes}, expected something to ask"
        ));
    }
    run.finish()
}

/// Asks one question.
pub(super) fn check_call(
    subject: &mut dyn Subject,
    (name, call): (&str, &StageCall),
    options: &Options,
    watch: &mut dyn FnMut(Event<'_>),
) -> Report {
    let mut run = Run::new(subject, options, watch);
    run.report.goldens += 1;
    run.question(name.to_owned(), call.clone(), 0.0);
    run.finish()
}

impl<'a> Run<'a> {
    fn new(subject: &'a mut dyn Subject, options: &'a Options, watch: &'a mut dyn FnMut(Event<'_>)) -> Self {
        let capabilities = subject.capabilities().and(&options.profile);
        let coverage = Coverage::of_stage(&capabilities);
        let mut report = Report::new(subject.name(), subject.rounding_model(), options.seed, coverage);
        report.shard = (!options.shard.is_whole()).then_some(options.shard);
        report.planned_seconds = options.seconds.map(|seconds| seconds.as_secs_f64());
        report.left_out = left_out(&capabilities);
        report.left_out.insert(Takes::Inputs.name().into(), 0);
        report.declare(options);
        report.stages = ReportedStages::of(&capabilities.stages);
        report.promises = nothing_counted(of_stages(&capabilities), &capabilities);
        Self {
            subject,
            watch,
            options,
            capabilities,
            report,
            start: Instant::now(),
            thinking: Duration::ZERO,
            shrinking_left: options.shrinking_in_all,
            unusable: (Duration::ZERO, 0),
            shapes: BTreeSet::new(),
            compiling: (Duration::ZERO, 0),
            seen: Vec::new(),
            seen_numbers: [0; 2],
            too_large: false,
            examples: Vec::new(),
        }
    }

    fn ask_so_many(&mut self, goldens: Vec<(String, StageCall)>) {
        let cases = self.options.shard.share(self.options.cases);
        let total = (cases + goldens.len()).max(1);
        let mut small = self.questions(0, None, self.capabilities.shapes.map(usize::from));
        while self.report.sequences < cases && !self.is_over() {
            let Some((name, call)) = self.next(&mut small) else { break };
            self.report.sequences += 1;
            self.question(name, call, self.report.calls as f64 / total as f64);
        }
        if self.report.sequences < cases && !self.is_over() {
            self.few_found(&cases.to_string());
        }
        for (name, call) in goldens {
            if self.is_over() {
                break;
            }
            self.report.goldens += 1;
            self.question(name, call, self.report.calls as f64 / total as f64);
        }
    }

    /// As for whole layers: small questions, then larger ones in stages, each with a share of the time that is left.
    fn ask_for(&mut self, seconds: Duration, goldens: Vec<(String, StageCall)>) {
        let mut pace = Pace::new(seconds);
        let mut goldens = goldens.into_iter();
        let of_sizes = SIZES.windows(2).map(|pair| (pair[0] + 1, pair[1].min(self.options.largest_keys)));
        let has_room = |&(least, most): &(usize, usize)| {
            Large { least, most, ..Large::new(0, 0, most) }.has_room(&self.capabilities)
        };
        let sizes: Vec<_> = of_sizes.filter(has_room).collect();
        let shapes = self.capabilities.shapes.map(usize::from);
        let count = sizes.len() + 1;
        let few = |index: usize| shapes.map(|shapes| (index + 1) * shapes / count - index * shapes / count);
        let mut stages = vec![self.questions(0, None, few(count - 1))];
        for (index, &keys) in sizes.iter().enumerate() {
            stages.push(self.questions(1 + index as u64, Some(keys), few(index)));
        }
        stages.retain(|stage| stage.shapes != Some(0));
        loop {
            let (before, mut left) = (self.report.calls, SMALL_SHARE + (stages.len() - 1) as f64);
            for (index, stage) in stages.iter_mut().enumerate() {
                let share = if index == 0 { SMALL_SHARE } else { 1.0 };
                pace.begin(self.asking(), share / left);
                left -= share;
                self.ask_stage(stage, &mut pace);
                while index == 0
                    && pace.may_ask(self.asking(), 0)
                    && let Some((name, call)) = goldens.next()
                {
                    self.report.goldens += 1;
                    self.question(name, call, pace.done(self.asking()));
                }
            }
            if self.is_over() || self.report.calls == before || pace.left(self.asking()) == 0.0 {
                break;
            }
        }
        if self.report.sequences == 0 && self.options.cases > 0 && !self.is_over() {
            self.few_found("at least 1");
        }
    }

    fn ask_stage(&mut self, stage: &mut Questions, pace: &mut Pace) {
        let most = match stage.keys {
            None => self.options.cases,
            Some(_) => self.options.cases.div_ceil(16),
        };
        let most = self.options.shard.share(most);
        let least = stage.keys.map_or(0, |(least, _)| least);
        while stage.asked < most && !self.is_over() && pace.may_ask(self.asking(), least) {
            let Some((name, call)) = self.next(stage) else { break };
            if !pace.may_ask(self.asking(), call.dims().operations()) {
                break;
            }
            stage.asked += 1;
            *(if stage.keys.is_none() { &mut self.report.sequences } else { &mut self.report.large }) += 1;
            let (before, compiled) = (self.asking(), self.compiling.1);
            let operations = call.dims().operations();
            self.question(name, call, pace.done(before));
            let seconds = self.asking() - before;
            pace.count(operations, seconds, self.compiling.1 == compiled);
        }
    }

    fn questions(&self, series: u64, keys: Option<(usize, usize)>, shapes: Option<usize>) -> Questions {
        Questions { series, keys, tried: 0, offered: 0, asked: 0, shapes, known: Vec::new() }
    }

    /// The next question that the subject offers; `None` where there are none, or hardly any.
    fn next(&self, questions: &mut Questions) -> Option<(String, StageCall)> {
        let seed = self.options.seed;
        let first = mix(seed).wrapping_add(questions.series << 40);
        let of_number = |number: usize| mix(first.wrapping_add(number as u64));
        while questions.tried <= MOST_REJECTED * (questions.offered + 10) {
            let number = questions.tried;
            questions.tried += 1;
            let place = questions.shapes.map_or(number, |shapes| number % shapes.max(1));
            // Where places come round, too, each of them has every turn.
            let turn = number + number / ScoreShape::LARGE.len() + questions.series as usize;
            let large = questions.keys.map(|(least, most)| LargeStage { least, most, turn });
            let call = stage_call_of(&self.capabilities, of_number(number), of_number(place), large);
            if questions.shapes.is_some() {
                let shape = call.as_ref().map(Shape::of_stage);
                if place == questions.known.len() {
                    questions.known.push(shape.clone());
                }
                if shape != questions.known[place] {
                    continue;
                }
            }
            let Some(call) = call else { continue };
            questions.offered += 1;
            if !self.options.shard.holds(questions.offered - 1) {
                continue;
            }
            let name = match large {
                None => format!("random question {} of seed {seed}", number + 1),
                Some(large) => {
                    let (number, keys, above) = (number + 1, call.dims().keys, large.least - 1);
                    let scores = match &call {
                        StageCall::Scores(_) => format!(", {}", large.scores(&self.capabilities).name()),
                        StageCall::Selection(_) => String::new(),
                    };
                    format!("large question {number} above {above} keys, of seed {seed}: {keys} keys{scores}")
                }
            };
            return Some((name, call));
        }
        None
    }

    fn few_found(&mut self, expected: &str) {
        self.report.bad_inputs.push(format!(
            "random questions: found {} that both the subject and the profile offer, expected {expected}",
            self.report.sequences
        ));
    }

    fn asking(&self) -> f64 {
        (self.start.elapsed() - self.thinking).as_secs_f64()
    }

    fn per_second(&self) -> f64 {
        let (time, count) = self.compiling;
        (self.report.calls - count) as f64 / (self.asking() - time.as_secs_f64()).max(1e-9)
    }

    fn is_over(&mut self) -> bool {
        self.report.interrupted |= self.options.interrupted.is_some_and(|flag| flag.load(Ordering::Relaxed));
        self.report.is_over(self.report.findings.len(), self.options.stop_after)
    }

    /// Asks a question, judges and counts the answer, and shrinks a failure of a new kind.
    fn question(&mut self, name: String, call: StageCall, done: f64) {
        let (asked, per_second, findings) =
            (self.report.calls, self.per_second(), self.report.findings.len());
        let keys = call.dims().keys;
        (self.watch)(Event::Asking(Progress { done, asked, per_second, keys, findings }));
        self.report.calls += 1;
        self.report.coverage.add_stage(&call);
        let asking = Instant::now();
        let answer = ask_stage(self.subject, &call);
        let verdict = judge_stage(&call, &answer, self.report.model);
        self.count(&call, asking.elapsed());
        self.report.by_size.add_stage(&call, &verdict);
        count(&mut self.report, &answer);
        self.keep(&name, &call, &answer, verdict.kind);
        let Some(kind) = verdict.kind else {
            self.report.conforming += 1;
            self.report.sharpness.add(&verdict.sharpness);
            if let Ok(answer) = &answer {
                self.check_promises(&name, &call, answer);
            }
            return;
        };
        self.report.diverged += 1;
        if answer.is_err() {
            self.count_unusable(asking.elapsed());
        }
        if let Some(known) = self.report.findings.iter_mut().find(|finding| finding.kind == kind) {
            known.sequences += 1;
        } else if self.report.findings.len() >= self.options.most_findings {
            self.report.not_looked_into += 1;
        } else {
            let shrinking = Instant::now();
            self.find(name, call, answer, kind);
            self.thinking += shrinking.elapsed();
        }
    }

    /// Keeps what was asked and answered, as far as there is room.
    fn keep(
        &mut self,
        name: &str,
        call: &StageCall,
        answer: &Result<StageAnswer, NoAnswer>,
        kind: Option<&'static str>,
    ) {
        let numbers = numbers(call);
        if !self.options.naming.is_zero() && self.examples.len() < MOST_EXAMPLES && numbers <= LARGEST_KEPT {
            self.examples.extend(features_of_stage(name, call).map(|features| (features, kind)));
        }
        let kept = &mut self.seen_numbers[usize::from(kind.is_none())];
        if self.options.naming.is_zero() || *kept + numbers > MOST_KEPT || numbers > LARGEST_KEPT {
            return;
        }
        *kept += numbers;
        self.seen.push(SeenStage { call: call.clone(), answer: answer.clone(), conforms: kind.is_none() });
    }

    /// Counts a shape and how long its first question took, where shapes are few.
    fn count(&mut self, call: &StageCall, time: Duration) {
        if self.capabilities.shapes.is_some() && self.shapes.insert(Shape::of_stage(call)) {
            self.compiling = (self.compiling.0 + time, self.compiling.1 + 1);
            self.report.shapes = Some(self.shapes.len());
        }
    }

    fn count_unusable(&mut self, time: Duration) {
        self.unusable = (self.unusable.0 + time, self.unusable.1 + 1);
        let (time, count) = self.unusable;
        if time > MOST_UNUSABLE.0 && count >= MOST_UNUSABLE.1 {
            let seconds = time.as_secs_f64();
            self.report.stopped =
                Some(format!("{count} questions without a usable answer took {seconds:.0} s"));
        }
    }

    /// Shrinks a failure of a kind and adds it to the findings.
    fn find(
        &mut self,
        first_seen: String,
        call: StageCall,
        answer: Result<StageAnswer, NoAnswer>,
        kind: &'static str,
    ) {
        let (model, number) = (self.report.model, self.report.findings.len() + 1);
        let found = self.finding(&first_seen, call.clone(), answer, kind);
        (self.watch)(Event::Found(number, &found));
        let limits = self.limits();
        let deadline = limits.deadline();
        let (subject, watch, mut tries) = (&mut *self.subject, &mut *self.watch, 0);
        let mut fails = |candidate: &StageCall| {
            tries += 1;
            watch(Event::Shrinking(number, tries));
            let answer = ask_stage_until(subject, candidate, deadline);
            judge_stage(candidate, &answer, model).kind == Some(kind)
        };
        let shrunk = shrink_stage(call, limits, &self.capabilities, &mut fails);
        let offers = Capabilities::offers_stage;
        let edges = edges(shrunk.call.clone(), limits, &self.capabilities, offers, &mut |call| {
            !judge_stage(call, &ask_stage(self.subject, call), model).conforms()
        });
        let answer = ask_stage(self.subject, &shrunk.call);
        let conforms = judge_stage(&shrunk.call, &answer, model).conforms();
        if numbers(&shrunk.call) <= LARGEST_KEPT {
            self.seen.push(SeenStage { call: shrunk.call.clone(), answer: answer.clone(), conforms });
        } else {
            self.too_large |= !conforms;
        }
        let mut finding = self.finding(&first_seen, shrunk.call, answer, kind);
        finding.edges = edges;
        (finding.tries, finding.shrinking_seconds, finding.shrunk) =
            (shrunk.tries, shrunk.seconds, shrunk.finished);
        self.has_shrunk(number, finding);
    }

    /// What an answer shows. A failure of this kind that is gone conforms when asked again.
    pub(super) fn finding(
        &self,
        first_seen: &str,
        call: StageCall,
        answer: Result<StageAnswer, NoAnswer>,
        kind: &'static str,
    ) -> Finding {
        let verdict = judge_stage(&call, &answer, self.report.model);
        let reference = ask_stage(&mut Reference::default(), &call);
        let example = StageExample { call, answer, reference };
        let mut finding = Finding::of_stage(first_seen.to_owned(), self.report.calls, &verdict, example);
        finding.kind = if verdict.conforms() { "conforms when asked again" } else { kind };
        finding
    }

    pub(super) fn limits(&self) -> Limits {
        run::limits(self.options.shrinking(), self.shrinking_left, self.options.stop_after)
    }

    /// Adds a finding that was shrunk.
    pub(super) fn has_shrunk(&mut self, number: usize, finding: Finding) {
        let spent = Duration::try_from_secs_f64(finding.shrinking_seconds).unwrap_or_default();
        self.shrinking_left = self.shrinking_left.map(|left| left.saturating_sub(spent));
        (self.watch)(Event::Shrunk(number, &finding));
        self.report.findings.push(finding);
    }

    fn finish(mut self) -> Report {
        self.is_over();
        self.explain();
        // Faults of the catalogue are no explanation of one stage alone.
        self.report.settle(&BTreeSet::new());
        self.report.seconds = self.start.elapsed().as_secs_f64();
        self.report.sequences_per_second = self.per_second();
        self.report
    }
}

impl Run<'_> {
    /// Says of what was found why: one relation for all of it, or else for each kind the rounding model that explains it, and which
    /// questions fail.
    fn explain(&mut self) {
        self.report.explained = self.report.findings.is_empty();
        self.report.reproduced = self.seen.iter().filter(|seen| seen.conforms).count();
        let is_answer = |finding: &Finding| finding.stage.is_some() && finding.kind != BROKEN_PROMISE;
        // What is told of all findings is proved on each.
        let nothing_to_tell = !self.report.findings.iter().any(is_answer) || self.too_large;
        if self.options.naming.is_zero() || nothing_to_tell {
            return;
        }
        (self.watch)(Event::Naming(self.report.findings.len()));
        let told = explain_stages(
            &self.seen,
            self.report.model,
            self.options.at_most(MOST_TIME.min(self.options.naming)),
        );
        let Some(told) = told else { return };
        let (mut found, others): (Vec<Finding>, Vec<Finding>) =
            std::mem::take(&mut self.report.findings).into_iter().partition(is_answer);
        if told.relation.is_some() {
            self.report.reproduced = self.seen.len();
            self.report.explained = others.is_empty();
            let size = |finding: &Finding| (finding.size.numbers(), finding.size.batch * finding.size.keys);
            found.sort_by_key(size);
            let mut one = found.remove(0);
            found.into_iter().for_each(|other| count_with(&mut one, other));
            (one.sentence, one.relation) = (told.sentence(), Some(told));
            found = vec![one];
        } else {
            for finding in &mut found {
                finding.wider_model = self.wider_model(finding.kind);
                finding.condition = self.condition(finding.kind);
                finding.sentence = match &finding.wider_model {
                    Some(wider) => format!("Rounding: every failure of this kind conforms with {wider}."),
                    None => format!("{} {}", finding.sentence, told.sentence()),
                };
                finding.relation = Some(told.clone());
            }
        }
        found.extend(others);
        self.report.findings = found;
    }

    /// The narrowest wider model under which every failure of a kind conforms, in words.
    fn wider_model(&self, kind: &str) -> Option<String> {
        let model = self.report.model;
        let is_of = |seen: &&SeenStage| judge_stage(&seen.call, &seen.answer, model).kind == Some(kind);
        let failing: Vec<&SeenStage> = self.seen.iter().filter(|seen| !seen.conforms).filter(is_of).collect();
        let conforms = |seen: &&SeenStage, model| judge_stage(&seen.call, &seen.answer, model).conforms();
        let explains = |model| !failing.is_empty() && failing.iter().all(|seen| conforms(seen, model));
        let wider = if self.model_matters() { model.wider() } else { Vec::new() };
        wider.into_iter().find(|&(model, _)| explains(model)).map(|(_, words)| words)
    }

    /// Nothing is rounded in a top-k.
    fn model_matters(&self) -> bool {
        self.capabilities.stages.takes == Takes::Selection
    }

    /// Which questions fail in this way, as far as those that were asked say so.
    fn condition(&self, kind: &str) -> Option<Condition> {
        let known = self.examples.iter().filter(|(_, found)| found.is_none_or(|found| found == kind));
        let example = |(features, found): &(Features, Option<&str>)| Example {
            features: features.clone(),
            fails: found.is_some(),
            origin: Origin::Run,
        };
        let examples: Vec<Example> = known.map(example).collect();
        Condition::of(&supported(&examples), &examples)
    }
}

/// How many numbers a question holds.
fn numbers(call: &StageCall) -> usize {
    let dims = call.dims();
    let rows = dims.batch * dims.heads * dims.queries * dims.keys;
    match call {
        StageCall::Scores(_) => rows,
        StageCall::Selection(_) => {
            rows + dims.batch * dims.kv_heads * dims.keys * (dims.head_dim + dims.value_dim)
        }
    }
}

fn count(report: &mut Report, answer: &Result<StageAnswer, NoAnswer>) {
    match answer {
        Err(_) => {}
        Ok(StageAnswer::Selected(_)) => report.answered += 1,
        Ok(StageAnswer::Attended(attended)) => {
            report.outputs += usize::from(attended.output.is_some());
            if let Some(stages) = &mut report.stages {
                stages.lse += usize::from(attended.lse.is_some());
            }
        }
    }
}

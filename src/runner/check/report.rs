//! What a check found: counts, and the first failure of each kind.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Options;
use super::by_size::BySize;
use super::coverage::Coverage;
use super::implementation::Implementation;
use super::known::{Declaration, Excuse};
use super::machine;
use super::promises::Kept;
use super::repeats::{NOT_REPEATABLE, Repeats};
use super::sessions::Sessions;
use super::shard::Shard;
use super::state::Needs;
use crate::algorithm::Lengths;
use crate::cases::{
    Answer, Given, NoAnswer, Observation, RoundingModel, Sequence, Session, SessionObservation, StageAnswer,
    StageCall, Stages, Takes,
};
use crate::diagnosis::Faults;
use crate::diagnosis::condition::Condition;
use crate::diagnosis::probes::Probed;
use crate::diagnosis::relations::Told;
use crate::runner::shrink::edge::Edge;
use crate::verdicts::judge::{Judgement, first_failure, judge_observation};
use crate::verdicts::rows::{ComparedRow, compared_selection};
use crate::verdicts::{Evidence, Sharpness, StageVerdict, StepFailure};

/// What a check found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Version of this crate.
    pub version: &'static str,
    /// The commit it was built from, with a `+` where its files differ from that; `None` where that is not known.
    pub commit: Option<&'static str>,
    /// The machine that asked: processor, cores that may be used, system.
    pub machine: &'static str,
    /// Who was checked.
    pub subject: String,
    /// The same in parts.
    pub implementation: Implementation,
    /// When it was asked, in UTC, to the second; `None` where nobody says, and where times are left out.
    pub date: Option<String>,
    /// The command line that asked it, where there was one.
    pub command: Option<String>,
    /// How it says it rounds: labels, kept type, accumulation.
    pub rounding_model: String,
    /// The same, to judge by.
    #[serde(skip)]
    pub model: RoundingModel,
    /// Seed of the random sequences.
    pub seed: u64,
    /// Which share of the questions it was asked, where not all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shard: Option<Shard>,
    /// For how long it was to be asked, in seconds, where that bounds it.
    pub planned_seconds: Option<f64>,
    /// Random sequences that were asked.
    pub sequences: usize,
    /// Large sequences that were asked.
    pub large: usize,
    /// Goldens that were asked.
    pub goldens: usize,
    /// What probes measured, where they were asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probes: Option<Probed>,
    /// Answers to probes that diverge and were looked into as sequences are; at most one for each wire.
    pub probed: usize,
    /// What was asked in sessions, of those who offer them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sessions: Option<Sessions>,
    /// Calls in all of them.
    pub calls: usize,
    /// Calls that were answered with a mask.
    pub answered: usize,
    /// Answers that hold an output, which was judged.
    pub outputs: usize,
    /// Answers that hold labels, which were judged where keys are ranked.
    pub labels: usize,
    /// What the subject takes and gives, where it says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stages: Option<ReportedStages>,
    /// How much of the contract was asked.
    pub coverage: Coverage,
    /// How many distinct shapes of calls were asked, where they are bounded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shapes: Option<usize>,
    /// What was asked and judged at which numbers of keys.
    pub by_size: BySize,
    /// Parts of the contract that were left out, with the number of goldens that need them.
    pub left_out: BTreeMap<String, usize>,
    /// Sequences in which every answer conforms.
    pub conforming: usize,
    /// Calls that had to be refused, and were.
    pub refused: usize,
    /// Sequences that diverge as declared.
    pub known: usize,
    /// Declared divergences.
    pub declared: Vec<&'static str>,
    /// What is declared as known, one by one, and whether it occurs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub declarations: Vec<Declaration>,
    /// Whether one of them that does not occur fails the check.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub strict_known: bool,
    /// Sequences that diverge otherwise.
    pub diverged: usize,
    /// How sharp the verdicts on conforming answers were.
    pub sharpness: Sharpness,
    /// The first failure of each kind.
    pub findings: Vec<Finding>,
    /// Whether the named faults, or a relation, reproduce every answer.
    pub explained: bool,
    /// How many of the answers kept the named faults reproduce.
    pub reproduced: usize,
    /// Answers that were too many to keep for the diagnosis.
    pub not_kept: usize,
    /// Diverging sequences that were not looked into, as there were too many findings already.
    pub not_looked_into: usize,
    /// Whether it was interrupted: the report holds what was found until then.
    pub interrupted: bool,
    /// Why the check ended early, where it did.
    pub stopped: Option<String>,
    /// Files that could not be used.
    pub bad_inputs: Vec<String>,
    /// Sequences asked again.
    pub repeats: Repeats,
    /// How often each property that may be promised held, by its name in `docs/PROTOCOL.md`.
    pub promises: BTreeMap<&'static str, Kept>,
    /// Wall-clock time of all of it; 0 where times are left out.
    pub seconds: f64,
    /// Sequences per second, goldens included, without the time for shrinking and diagnosis.
    pub sequences_per_second: f64,
}

/// The first failure of a kind.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// The kind of failure, in a few words.
    pub kind: &'static str,
    /// The name of the sequence in which it was first seen.
    pub first_seen: String,
    /// How many sequences had been asked by then.
    pub after: usize,
    /// How many sequences show it.
    pub sequences: usize,
    /// The first stage that is wrong on right input, where the answers say which one it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stage: Option<&'static str>,
    /// What is wrong with the shrunk sequence, one line each.
    pub explanations: Vec<String>,
    /// Names of the faults that explain it; empty where unknown.
    pub diagnosis: Vec<&'static str>,
    /// Rows of SPEC §3 or sections of §2.
    pub rows: Vec<&'static str>,
    /// One relation that reproduces every answer, or how many were ruled out; `None` where none was sought.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relation: Option<Told>,
    /// The diagnosis in plain words.
    pub sentence: String,
    /// Where faults do not explain everything: the narrowest rounding model that allows more than the declared one and under
    /// which every failure of this kind conforms; what it allows, in words.
    pub wider_model: Option<String>,
    /// Sizes of the shrunk sequence.
    pub size: Size,
    /// Where the batch entries of the failing call have unequal lengths: these, and what the padding held.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ragged: Option<Lengths>,
    /// How often the subject was asked while shrinking.
    pub tries: usize,
    /// How long shrinking took.
    pub shrinking_seconds: f64,
    /// False where a limit ended the shrinking.
    pub shrunk: bool,
    /// Sizes around it: where the failure begins, and at which larger sizes it shows. Empty where none were found or asked.
    pub edges: Vec<Edge>,
    /// Which calls fail, where a rule says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub condition: Option<Condition>,
    /// What it needs of what was asked before, as far as that was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<Needs>,
    /// Failures of other kinds that have the same cause, as far as can be seen.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub more: Vec<Like>,
    /// Why it is accepted, where it is declared as known by its sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub known: Option<Excuse>,
    /// Whether it stayed inside a domain that the subject declares.
    pub inside_domain: bool,
    /// Where the counterexample was written.
    pub file: Option<PathBuf>,
    /// The counterexample of a subject that does one stage; the observation holds no call then.
    #[serde(skip)]
    pub example: Option<StageExample>,
    /// The counterexample where it is a session; the observation holds no call then.
    #[serde(skip)]
    pub session: Option<SessionExample>,
    /// The counterexample and what the subject answered to it.
    #[serde(skip)]
    pub observation: Observation,
    /// The call that fails.
    pub call: usize,
    /// How often the sequence was asked again, and with what result, where that is what is wrong.
    pub repeats: Option<Repeats>,
    /// The other answers to the same sequence, where they differ from time to time.
    #[serde(skip)]
    pub other: Option<Observation>,
    /// Rows of the failing answer beside what they should be: those that are wrong first.
    #[serde(skip)]
    pub compared: Vec<ComparedRow>,
    /// What the verdict on each call rests on.
    #[serde(skip)]
    pub evidence: Arc<[Evidence]>,
    /// What the reference answers to each call.
    #[serde(skip)]
    pub reference: Arc<[Result<Answer, NoAnswer>]>,
    #[serde(skip)]
    pub(super) faults: Faults,
}

impl Finding {
    /// A finding that is not shrunk yet: an observation made after `after` sequences, and the faults it shows.
    pub(super) fn new(observation: Observation, after: usize, faults: Faults, model: RoundingModel) -> Self {
        let mut finding = Self {
            kind: NOT_REPEATABLE,
            first_seen: observation.sequence.name.clone(),
            after,
            sequences: 1,
            stage: None,
            explanations: Vec::new(),
            diagnosis: Vec::new(),
            rows: Vec::new(),
            relation: None,
            sentence: String::new(),
            wider_model: None,
            size: Size::of(&observation.sequence),
            ragged: None,
            tries: 0,
            shrinking_seconds: 0.0,
            shrunk: false,
            edges: Vec::new(),
            condition: None,
            state: None,
            more: Vec::new(),
            known: None,
            inside_domain: false,
            file: None,
            example: None,
            session: None,
            observation: observation.clone(),
            call: 0,
            repeats: None,
            other: None,
            compared: Vec::new(),
            evidence: Arc::new([]),
            reference: Arc::new([]),
            faults,
        };
        finding.show(observation, model);
        finding
    }

    /// The same for a question to one stage, whose answer failed after `after` questions.
    pub(super) fn of_stage(
        first_seen: String,
        after: usize,
        verdict: &StageVerdict,
        example: StageExample,
    ) -> Self {
        let sentence = match verdict.stage {
            Some(stage) => format!("The {stage} itself is wrong: what it starts from was given to it."),
            None => "Unknown: no answer came that could tell the cause.".into(),
        };
        let observation = Observation::without_calls(first_seen);
        let mut finding = Self::new(observation, after, Vec::new(), RoundingModel::default());
        finding.sentence = sentence;
        finding.size = Size::of_stage(&example.call);
        finding.ragged = example.call.lengths().cloned();
        if !verdict.conforms() {
            finding.stage = verdict.stage;
            finding.explanations.clone_from(&verdict.explanations);
        }
        if let (StageCall::Scores(call), Ok(StageAnswer::Selected(mask))) = (&example.call, &example.answer) {
            finding.compared = compared_selection(call, mask);
        }
        finding.example = Some(example);
        finding
    }

    /// Whether it shows only after another instance was asked.
    pub fn needs_earlier(&self) -> bool {
        self.state.as_ref().is_some_and(|state| !state.earlier.is_empty())
    }

    /// Shows another observation that fails.
    pub(super) fn show(&mut self, observation: Observation, model: RoundingModel) {
        let verdicts = judge_observation(&observation, model);
        if let Some((call, kind)) = first_failure(&verdicts) {
            self.call = call;
            self.kind = kind;
            self.explanations = verdicts[call].explanations();
            self.stage = verdicts[call].judgement().and_then(Judgement::stage);
        }
        self.size = Size::of(&observation.sequence);
        self.observation = observation;
    }
}

/// A failure that counts as one with a finding.
#[derive(Debug, Clone, Serialize)]
pub struct Like {
    /// Its kind.
    pub kind: &'static str,
    /// How many sequences show it.
    pub sequences: usize,
    /// What is wrong with the smallest of them: the first line.
    pub explanation: String,
}

/// What a subject takes and gives.
#[derive(Debug, Clone, Serialize)]
pub struct ReportedStages {
    /// Where it starts.
    pub takes: Takes,
    /// What it declares that every answer holds.
    pub gives: Vec<Given>,
    /// Answers that hold scores, which were judged where keys are ranked.
    pub scores: usize,
    /// Answers that hold a log-sum-exp, which was judged.
    pub lse: usize,
}

impl ReportedStages {
    /// Nothing counted yet; `None` where the subject declares nothing.
    pub(super) fn of(stages: &Stages) -> Option<Self> {
        let gives = stages.gives.iter().copied().collect();
        stages.is_declared().then_some(Self { takes: stages.takes, gives, scores: 0, lse: 0 })
    }
}

/// A question to one stage, what the subject answered, and what the reference answers.
#[derive(Debug, Clone)]
pub struct StageExample {
    /// The question.
    pub call: StageCall,
    /// The subject's answer.
    pub answer: Result<StageAnswer, NoAnswer>,
    /// The reference's.
    pub reference: Result<StageAnswer, NoAnswer>,
}

/// A session, what the subject answered, the first failure, and what the reference answers to the call that it stands for.
#[derive(Debug, Clone)]
pub struct SessionExample {
    /// The session and the answers.
    pub observation: SessionObservation,
    /// What is wrong.
    pub failure: Option<StepFailure>,
    /// The reference's answer, where an attend is wrong.
    pub reference: Option<Result<Answer, NoAnswer>>,
}

/// Sizes of a sequence: the largest of its calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// How many calls, or steps of a session.
    pub calls: usize,
    /// How many requests, where it is a session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<usize>,
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
    /// The sizes of a sequence.
    pub fn of(sequence: &Sequence) -> Self {
        let most = |size: fn(&crate::algorithm::Dims) -> usize| {
            sequence.calls.iter().map(|call| size(&call.inputs.dims())).max().unwrap_or(0)
        };
        Self {
            calls: sequence.calls.len(),
            requests: None,
            batch: most(|dims| dims.batch),
            heads: most(|dims| dims.heads),
            kv_heads: most(|dims| dims.kv_heads),
            queries: most(|dims| dims.queries),
            keys: most(|dims| dims.keys),
            head_dim: most(|dims| dims.head_dim),
        }
    }

    /// The sizes of a session: steps, requests, and the queries and keys of its longest attend.
    pub fn of_session(session: &Session) -> Self {
        let open = &session.opening;
        let calls = session.calls().unwrap_or_default();
        let most = |size: fn(&crate::algorithm::Dims) -> usize| {
            calls.iter().map(|(_, call)| size(&call.inputs.dims())).max().unwrap_or(0)
        };
        Self {
            calls: session.steps.len(),
            requests: Some(session.requests().len()),
            batch: 1,
            heads: open.heads,
            kv_heads: open.kv_heads,
            queries: most(|dims| dims.queries),
            keys: most(|dims| dims.keys),
            head_dim: open.head_dim,
        }
    }

    /// The sizes of a question to one stage; scores have no d, which is 0 then.
    pub fn of_stage(call: &StageCall) -> Self {
        let dims = call.dims();
        let head_dim = if call.takes() == Takes::Scores { 0 } else { dims.head_dim };
        Self {
            calls: 1,
            requests: None,
            batch: dims.batch,
            heads: dims.heads,
            kv_heads: dims.kv_heads,
            queries: dims.queries,
            keys: dims.keys,
            head_dim,
        }
    }

    /// About how many numbers a person has to read.
    pub(super) fn numbers(&self) -> usize {
        self.calls * self.batch * self.heads * (self.queries + self.keys) * self.head_dim
    }
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let plural = |count: usize, name: &str| {
            if count == 1 { format!("1 {name}") } else { format!("{count} {name}s") }
        };
        let mut parts = match self.requests {
            None => vec![plural(self.calls, "call")],
            Some(requests) => vec![plural(self.calls, "step"), plural(requests, "request")],
        };
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
        if self.head_dim > 0 {
            parts.push(format!("d = {}", self.head_dim));
        }
        f.write_str(&parts.join(", "))
    }
}

impl Report {
    /// Sets all times to 0, so that the same run gives the same bytes.
    pub fn leave_out_times(&mut self) {
        (self.seconds, self.sequences_per_second) = (0.0, 0.0);
        self.date = None;
        self.findings.iter_mut().for_each(|finding| finding.shrinking_seconds = 0.0);
        if let Some(probed) = &mut self.probes {
            probed.leave_out_times();
        }
    }

    /// Takes over what the options declare as known.
    pub(super) fn declare(&mut self, options: &Options) {
        self.declared = options.known.iter().map(|fault| fault.name).collect();
        self.declarations.clone_from(&options.declarations);
        self.strict_known = options.strict_known;
    }

    /// Nothing asked yet.
    pub(super) fn new(subject: String, model: RoundingModel, seed: u64, coverage: Coverage) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION"),
            commit: machine::commit(),
            machine: machine::machine(),
            implementation: Implementation::of(&subject),
            subject,
            date: None,
            command: None,
            rounding_model: model.to_string(),
            model,
            seed,
            shard: None,
            planned_seconds: None,
            sequences: 0,
            large: 0,
            goldens: 0,
            probes: None,
            probed: 0,
            sessions: None,
            calls: 0,
            answered: 0,
            outputs: 0,
            labels: 0,
            stages: None,
            coverage,
            shapes: None,
            by_size: BySize::default(),
            left_out: BTreeMap::new(),
            conforming: 0,
            refused: 0,
            known: 0,
            declared: Vec::new(),
            declarations: Vec::new(),
            strict_known: false,
            diverged: 0,
            sharpness: Sharpness::default(),
            findings: Vec::new(),
            explained: false,
            reproduced: 0,
            not_kept: 0,
            not_looked_into: 0,
            interrupted: false,
            stopped: None,
            bad_inputs: Vec::new(),
            repeats: Repeats::default(),
            promises: BTreeMap::new(),
            seconds: 0.0,
            sequences_per_second: 0.0,
        }
    }

    /// Whether nothing more is to be asked: it was interrupted or ended early, or there are as many findings as wanted.
    pub(super) fn is_over(&mut self, findings: usize, stop_after: Option<NonZeroUsize>) -> bool {
        if let Some(most) = stop_after.filter(|most| findings >= most.get()) {
            let plural = if most.get() == 1 { "finding" } else { "findings" };
            self.stopped.get_or_insert_with(|| format!("after {most} {plural}, as asked"));
        }
        self.interrupted || self.stopped.is_some()
    }

    /// 0 where everything conforms or diverges as declared, 1 where something else diverged, the check ended early, or a declared
    /// divergence did not occur that has to, 2 where some input could not be used. An interrupted check counts as what it holds.
    pub fn exit_code(&self) -> u8 {
        // What a wire shows is a finding as well, unless a cause reproduces it that another one shows.
        let probes = self.all_known() || self.probes.as_ref().is_none_or(Probed::conforms);
        let findings = self.all_known() || self.findings.is_empty();
        match (self.bad_inputs.is_empty(), findings && self.stopped.is_none() && probes && !self.is_stale()) {
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

//! Who is checked. A subject is an implementation of Double Sparsity behind one short adapter; the runner is the same for
//! all of them.

pub mod above;
pub mod breach;
#[cfg(feature = "engine")]
pub mod engine;
pub mod faulty;
pub mod paged;
#[cfg(feature = "process")]
pub mod process;
pub mod ragged;
pub mod reference;
#[cfg(feature = "torch")]
pub mod torch;
#[cfg(feature = "torch")]
pub mod torch_cache;

use std::time::{Duration, Instant};

use ndarray::Array4;

use crate::algorithm::{ChannelOrder, LabelBits, Mask, Storage};
use crate::cases::stages::ranks;
use crate::cases::{
    Answer, Attended, CalibrationCase, Call, Capabilities, Case, Feature, Given, Instance, NoAnswer,
    Observation, Opening, RoundingModel, ScoresCall, SelectionCall, Sequence, Session, SessionObservation,
    StageAnswer, StageCall, Step, StepAnswer,
};

pub use above::Above;
pub use breach::{BREACHES, Breach, Breaching};
#[cfg(feature = "engine")]
pub use engine::Engine;
pub use faulty::Faulty;
pub use paged::PagedEngine;
#[cfg(feature = "process")]
pub use process::Process;
pub use ragged::{LengthFault, RaggedKernel};
pub use reference::Reference;
#[cfg(feature = "torch")]
pub use torch::Torch;
#[cfg(feature = "torch")]
pub use torch_cache::TorchCache;

/// An implementation of Double Sparsity. It is configured once for each instance and then called, for several layers and
/// lengths; an earlier call must not change the answer to a later one. One that does a single stage says so in its capabilities and
/// answers [`Subject::select`] or [`Subject::attend`] instead.
///
/// Errors of all its methods: [`NoAnswer::Refused`] or [`NoAnswer::Declined`] for inputs that must be refused (end of SPEC
/// §2), [`NoAnswer::Failed`] for anything else.
pub trait Subject {
    /// What reports call it.
    fn name(&self) -> String;

    /// How it says it rounds (SPEC §5); the default is how PyTorch does it.
    fn rounding_model(&self) -> RoundingModel {
        RoundingModel::default()
    }

    /// What it may be asked for; the default is everything.
    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }

    /// A new instance; the one before is over. A refusal refuses every call of the instance.
    fn configure(&mut self, _instance: &Instance) -> Result<(), NoAnswer> {
        Err(not_offered("configure"))
    }

    /// The mask [b, h, m, n] of one call of the instance and, where it computes attention, the output [b, h, m, dv].
    fn call(&mut self, _call: &Call) -> Result<Answer, NoAnswer> {
        Err(not_offered("call"))
    }

    /// The keys with the largest scores (SPEC §2.9), as a mask [b, h, m, n] of weights 0 and 1; asked where it takes scores.
    fn select(&mut self, _call: &ScoresCall) -> Result<Mask, NoAnswer> {
        Err(not_offered("select"))
    }

    /// The attention over given keys (SPEC §2.11); asked where it takes a selection.
    fn attend(&mut self, _call: &SelectionCall) -> Result<Attended, NoAnswer> {
        Err(not_offered("attend"))
    }

    /// Opens a session of the instance that was configured; the one before is over. Asked of those who offer sessions.
    fn open(&mut self, _opening: &Opening) -> Result<(), NoAnswer> {
        Err(not_offered("open"))
    }

    /// One step of the session (SPEC §2.14): for an attend the answer to each request, as to a call, otherwise nothing. A step that is
    /// refused changes nothing.
    fn step(&mut self, _step: &Step) -> StepAnswer {
        Err(not_offered("step"))
    }

    /// The tensor `selected` [b, h, m, ·] of the last answer, as it was sent; `None` where it held none.
    fn selected(&self) -> Option<&Array4<i32>> {
        None
    }

    /// How long later answers are waited for, where that is less than usual; `None` for as long as usual. Subjects that cannot
    /// give up ignore it.
    fn set_patience(&mut self, _most: Option<Duration>) {}

    /// One case, as the only call of an instance.
    fn answer(&mut self, case: &Case) -> Result<Answer, NoAnswer> {
        self.configure(&case.instance)?;
        self.call(&case.call)
    }

    /// Forgets everything that it was asked, as a new process does; false where it cannot. Then nothing is known of what it keeps
    /// from one instance to the next.
    fn restart(&mut self) -> bool {
        false
    }

    /// The labels of one row (SPEC §2.5), one for each of its numbers; `None` where it does not offer them.
    fn labels(
        &mut self,
        _row: &[f32],
        _bits: LabelBits,
        _storage: Storage,
    ) -> Option<Result<Vec<f32>, NoAnswer>> {
        None
    }

    /// The channel order of the activations (SPEC §4); `None` where it does not offer calibration.
    fn calibrate(&mut self, _case: &CalibrationCase) -> Option<Result<ChannelOrder, NoAnswer>> {
        None
    }
}

/// Configures a fresh instance and asks it every call of a sequence.
pub fn ask(subject: &mut dyn Subject, sequence: &Sequence) -> Observation {
    let capabilities = subject.capabilities();
    let instance = &sequence.instance;
    let whole = |(call, answer)| whole(&capabilities, instance, call, answer);
    let configured = subject.configure(&sequence.instance);
    let instance_refused = configured.is_err();
    let answers = match configured {
        Ok(()) => sequence
            .calls
            .iter()
            .map(|call| subject.call(call).and_then(|answer| whole((call, answer))))
            .collect(),
        // An instance that is refused refuses each of its calls.
        Err(no_answer) => vec![Err(no_answer); sequence.calls.len()],
    };
    Observation { sequence: sequence.clone(), answers, instance_refused }
}

/// Configures a fresh instance, opens a session and asks every step, up to the first that breaks.
pub fn ask_session(subject: &mut dyn Subject, session: &Session) -> SessionObservation {
    let capabilities = subject.capabilities();
    let opened = subject.configure(&session.instance).and_then(|()| subject.open(&session.opening));
    let mut observation =
        SessionObservation { session: session.clone(), not_opened: opened.err(), answers: Vec::new() };
    if observation.not_opened.is_some() {
        return observation;
    }
    for step in &session.steps {
        let answer = subject.step(step).and_then(|answers| whole_step(&capabilities, step, answers));
        let broken = matches!(answer, Err(NoAnswer::Failed(_)));
        observation.answers.push(answer);
        if broken {
            break;
        }
    }
    observation
}

/// The same, where nothing is worth much after a deadline.
pub fn ask_session_until(
    subject: &mut dyn Subject,
    session: &Session,
    deadline: Option<Instant>,
) -> SessionObservation {
    until(subject, deadline, |subject| ask_session(subject, session))
}

/// The answers to a step, if there is one for each request of an attend, with everything that the subject declares.
fn whole_step(capabilities: &Capabilities, step: &Step, answers: Vec<Answer>) -> StepAnswer {
    let Step::Attend { parts, .. } = step else { return Ok(Vec::new()) };
    if answers.len() != parts.len() {
        let (found, expected) = (answers.len(), parts.len());
        return Err(NoAnswer::Failed(format!("the answer holds {found} requests, expected {expected}")));
    }
    // Labels and scores may be left out in sessions.
    answers.into_iter().map(|answer| with_all(capabilities, || false, answer)).collect()
}

/// How long an answer is waited for after a deadline: a command that is given up has to be started again.
const GRACE: Duration = Duration::from_secs(1);

/// The same, where nothing is worth much after a deadline: an answer is not waited for until long after it.
pub fn ask_until(subject: &mut dyn Subject, sequence: &Sequence, deadline: Option<Instant>) -> Observation {
    until(subject, deadline, |subject| ask(subject, sequence))
}

/// The same for a question to one stage.
pub fn ask_stage_until(
    subject: &mut dyn Subject,
    call: &StageCall,
    deadline: Option<Instant>,
) -> Result<StageAnswer, NoAnswer> {
    until(subject, deadline, |subject| ask_stage(subject, call))
}

fn until<T>(
    subject: &mut dyn Subject,
    deadline: Option<Instant>,
    ask: impl FnOnce(&mut dyn Subject) -> T,
) -> T {
    let left = |deadline: Instant| deadline.saturating_duration_since(Instant::now()) + GRACE;
    subject.set_patience(deadline.map(left));
    let answer = ask(subject);
    subject.set_patience(None);
    answer
}

/// The answer, if it holds everything that the subject declares; otherwise which part is missing.
fn whole(
    capabilities: &Capabilities,
    instance: &Instance,
    call: &Call,
    answer: Answer,
) -> Result<Answer, NoAnswer> {
    with_all(capabilities, || ranks(instance, call), answer)
}

/// The same; `ranked` says whether keys are ranked: otherwise there are no labels and scores.
fn with_all(
    capabilities: &Capabilities,
    ranked: impl Fn() -> bool,
    answer: Answer,
) -> Result<Answer, NoAnswer> {
    if answer.output.is_none() && capabilities.offers(Feature::Output) {
        return Err(NoAnswer::Failed(
            "the answer holds no output, expected one, or \"output\" among what the subject lacks".into(),
        ));
    }
    let stages = &capabilities.stages;
    let ranked = |given| stages.gives(given) && ranked();
    let missing = [
        (Given::Labels, answer.labels.is_none() && ranked(Given::Labels)),
        (Given::Scores, answer.scores.is_none() && ranked(Given::Scores)),
        (Given::Lse, answer.lse.is_none() && stages.gives(Given::Lse)),
    ];
    match missing.into_iter().find(|(_, missing)| *missing) {
        Some((given, _)) => Err(not_given(given)),
        None => Ok(answer),
    }
}

fn not_given(given: Given) -> NoAnswer {
    let name = given.name();
    NoAnswer::Failed(format!("the answer holds no {name}, expected it, as the subject gives {name}"))
}

/// Asks a question to one stage.
pub fn ask_stage(subject: &mut dyn Subject, call: &StageCall) -> Result<StageAnswer, NoAnswer> {
    let stages = subject.capabilities().stages;
    match call {
        StageCall::Scores(call) => subject.select(call).map(StageAnswer::Selected),
        StageCall::Selection(call) => {
            let answer = subject.attend(call)?;
            let missing = [
                (Given::Output, answer.output.is_none() && stages.gives(Given::Output)),
                (Given::Lse, answer.lse.is_none() && stages.gives(Given::Lse)),
            ];
            match missing.into_iter().find(|(_, missing)| *missing) {
                Some((given, _)) => Err(not_given(given)),
                None => Ok(StageAnswer::Attended(answer)),
            }
        }
    }
}

fn not_offered(method: &str) -> NoAnswer {
    NoAnswer::Failed(format!("{method} is not offered"))
}

/// The answer to a call without an instance.
pub(crate) fn not_configured() -> NoAnswer {
    NoAnswer::Failed("called before it was configured".into())
}

/// The answer to a step without a session.
pub(crate) fn not_opened() -> NoAnswer {
    NoAnswer::Failed("a step before a session was opened".into())
}

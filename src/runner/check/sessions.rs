//! Sessions of subjects that offer them: random ones are asked, each is judged, and the first failure of each kind is shrunk. An
//! attend that would diverge as a call, too, is looked into as one: then what is wrong has nothing to do with what was held.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::events::{Event, Progress};
use super::pace::Pace;
use super::promises::BROKEN_PROMISE;
use super::report::{Finding, Like, Report, SessionExample};
use super::run::Run;
use super::session_promises::each_alone;
use super::{Options, Shard};
use crate::behaviours::CacheFault;
use crate::cases::recipe::mix;
use crate::cases::session_plan::session;
use crate::cases::{Capabilities, Observation, RoundingModel, Sequence, Session, SessionObservation};
use crate::diagnosis::cache::explaining;
use crate::runner::shrink::sessions::shrink_session;
use crate::subjects::{Reference, Subject, ask, ask_session, ask_session_until};
use crate::verdicts::judge::{first_failure, judge_observation};
use crate::verdicts::{StepFailure, judge_session};

/// One session for so many random sequences, where their number is given.
pub(super) const SEQUENCES_PER_SESSION: usize = 8;

/// Seeds without a session, for each one with one, before the search for more is given up.
const MOST_REJECTED: usize = 30;

/// The most sessions kept for diagnosis.
const MOST_KEPT: usize = 128;

/// The section that a fault of what is held goes against.
const ROW: &str = "§2.14";

/// What is told where no fault is named: nothing but earlier steps is left.
const STEPS: &str = "Unknown: asked as a call it conforms, so earlier steps decide, but no named fault reproduces every answer.";

/// Nothing but the requests of the same step is left.
const COMPANIONS: &str = "Unknown: with each request asked alone it conforms, so companions of a step decide, but no named fault reproduces every answer.";

/// What was asked in sessions.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Sessions {
    /// How many sessions.
    pub asked: usize,
    /// How many of them are case files.
    pub goldens: usize,
    /// Sessions that conform.
    pub conforming: usize,
    /// Steps that were judged.
    pub steps: usize,
    /// Steps that had to be refused, and were.
    pub refused: usize,
    /// Rows that attended and were judged: queries of all requests.
    pub rows: usize,
}

/// Random sessions in the order of a seed.
pub(super) struct SessionDraws {
    seed: u64,
    shard: Shard,
    tried: usize,
    drawn: usize,
}

impl SessionDraws {
    pub(super) fn new(options: &Options) -> Self {
        Self { seed: options.seed, shard: options.shard, tried: 0, drawn: 0 }
    }

    /// The next one that may be asked; `None` where there are hardly any.
    fn next(&mut self, capabilities: &Capabilities) -> Option<Session> {
        while self.tried <= MOST_REJECTED * (self.drawn + 10) {
            let seed = mix(mix(self.seed ^ 0x5e55_1015).wrapping_add(self.tried as u64));
            self.tried += 1;
            if let Some(session) = session(capabilities, seed) {
                self.drawn += 1;
                if !self.shard.holds(self.drawn - 1) {
                    continue;
                }
                let name = format!("random session {} of seed {}", self.tried, self.seed);
                return Some(Session { name, ..session });
            }
        }
        None
    }
}

/// Checks a subject in random sessions alone, as many as `options` say cases.
pub fn check_sessions(
    subject: &mut dyn Subject,
    options: &Options,
    watch: &mut dyn FnMut(Event<'_>),
) -> Report {
    let mut run = Run::new(subject, options, watch);
    run.report.sessions = Some(Sessions::default());
    let count = options.shard.share(options.cases);
    run.ask_sessions(count, &mut SessionDraws::new(options), count);
    run.finish()
}

impl Run<'_> {
    /// Whether sessions are asked. Each attend has shapes of its own, so that they are not where shapes are few.
    pub(super) fn has_sessions(&self) -> bool {
        self.capabilities.sessions && self.shapes.is_none()
    }

    /// So many sessions, of so many questions in all.
    pub(super) fn ask_sessions(&mut self, count: usize, draws: &mut SessionDraws, total: usize) {
        for _ in 0..count {
            if self.is_over() {
                return;
            }
            let Some(session) = draws.next(&self.capabilities) else { return self.no_sessions() };
            self.session(&session, self.asked as f64 / total.max(1) as f64);
        }
    }

    /// As many as fit into the stage that has begun, at most a number.
    pub(super) fn ask_sessions_for(&mut self, most: usize, draws: &mut SessionDraws, pace: &mut Pace) {
        let asked = |run: &Self| run.report.sessions.map_or(0, |sessions| sessions.asked);
        while asked(self) < most && !self.is_over() && pace.may_ask_usual(self.asking()) {
            let Some(session) = draws.next(&self.capabilities) else { return self.no_sessions() };
            let before = self.asking();
            self.session(&session, pace.done(before));
            pace.count(operations(&session), self.asking() - before, true);
        }
    }

    fn no_sessions(&mut self) {
        if self.report.sessions.is_some_and(|sessions| sessions.asked == 0) {
            let found = "random sessions: found none that both the subject and the profile offer, expected at least 1";
            self.report.bad_inputs.push(found.into());
        }
    }

    /// A session of a case file, where it may be asked.
    pub(super) fn golden_session(&mut self, session: &Session) {
        self.report.coverage.goldens += 1;
        if self.has_sessions() && self.capabilities.offers_session(session) {
            self.report.goldens += 1;
            self.report.sessions.get_or_insert_default().goldens += 1;
            self.session(session, 1.0);
        } else {
            *self.report.left_out.entry(crate::cases::capabilities::SESSIONS.into()).or_default() += 1;
        }
    }

    /// Asks a session, judges and counts it, and looks into a failure of a new kind.
    pub(super) fn session(&mut self, session: &Session, done: f64) {
        let (asked, findings) = (self.asked, self.findings());
        let keys = session.opening.capacity;
        let per_second = self.per_second();
        (self.watch)(Event::Asking(Progress { done, asked, per_second, keys, findings }));
        self.asked += 1;
        let asking = Instant::now();
        let observation = ask_session(self.subject, session);
        let verdict = judge_session(&observation, self.report.model);
        let counts = self.report.sessions.get_or_insert_default();
        counts.asked += 1;
        counts.steps += verdict.steps;
        counts.refused += verdict.refused;
        counts.rows += verdict.rows;
        self.report.sharpness.add(&verdict.sharpness);
        let Some(failure) = verdict.failure else {
            counts.conforming += 1;
            self.check_session_promises(&observation);
            self.keep_session(observation);
            return;
        };
        if matches!(failure.verdict, crate::verdicts::Verdict::Failed(_)) {
            self.count_unusable(asking.elapsed());
        }
        let (subject, capabilities, model) = (&mut *self.subject, &self.capabilities, self.report.model);
        if let Some(alone) = failing_call(subject, capabilities, session, &failure, model) {
            return self.sequence(&alone, done);
        }
        self.report.diverged += 1;
        let thinking = Instant::now();
        self.keep_session(up_to(&observation, failure.step));
        self.find_session(observation, &failure);
        self.thinking += thinking.elapsed();
    }

    /// Keeps a session for diagnosis, while there are few.
    fn keep_session(&mut self, observation: SessionObservation) {
        if self.kept_sessions.len() < MOST_KEPT {
            self.kept_sessions.push(observation);
        }
    }

    /// Names the fault of what is held that reproduces every session kept; then all that was found in sessions is one finding.
    pub(super) fn explain_sessions(&mut self) {
        let (mut found, others): (Vec<Finding>, Vec<Finding>) = std::mem::take(&mut self.apart)
            .into_iter()
            .partition(|finding| finding.session.is_some() && finding.kind != BROKEN_PROMISE);
        self.apart = others;
        let examples = found.iter().filter_map(|finding| finding.session.as_ref());
        let shown = examples.map(|example| {
            up_to(&example.observation, example.failure.as_ref().and_then(|failure| failure.step))
        });
        let seen: Vec<SessionObservation> = self.kept_sessions.iter().cloned().chain(shown).collect();
        if found.is_empty() {
            return;
        }
        let explaining = explaining(&seen, self.report.model);
        let words = |fault: &CacheFault| match fault.name {
            "" => format!("{} ({ROW})", fault.sentence),
            name => format!("{} ({name}, {ROW})", fault.sentence),
        };
        let Some((&first, rest)) = explaining.split_first() else {
            self.apart.append(&mut found);
            return;
        };
        let size = |finding: &Finding| {
            let requests = finding.size.requests.unwrap_or(0);
            (finding.size.calls + requests, requests, finding.size.keys)
        };
        found.sort_by_key(size);
        let mut found = found.into_iter();
        let Some(mut smallest) = found.next() else { return };
        smallest.sentence = words(first);
        match rest {
            [] => {
                smallest.diagnosis = Some(first.name).filter(|name| !name.is_empty()).into_iter().collect();
                smallest.rows = vec![ROW];
            }
            rest => {
                let others: Vec<String> = rest.iter().map(|fault| words(fault)).collect();
                smallest.sentence = format!(
                    "One of {} that these answers do not tell apart: {} Or: {}",
                    explaining.len(),
                    words(first),
                    others.join(" Or: ")
                );
            }
        }
        for finding in found {
            smallest.sequences += finding.sequences;
            smallest.after = smallest.after.min(finding.after);
            let explanation = finding.explanations.first().cloned().unwrap_or_default();
            smallest.more.push(Like { kind: finding.kind, sequences: finding.sequences, explanation });
        }
        self.apart.push(smallest);
    }

    fn find_session(&mut self, observation: SessionObservation, failure: &StepFailure) {
        let Some(kind) = failure.verdict.kind() else { return };
        let known = |finding: &&mut Finding| finding.session.is_some() && finding.kind == kind;
        if let Some(finding) = self.apart.iter_mut().find(known) {
            finding.sequences += 1;
            return;
        }
        let (name, model) = (observation.session.name.clone(), self.report.model);
        let number = self.findings() + 1;
        let found = self.session_finding(&name, observation.clone());
        (self.watch)(Event::Found(number, &found));
        let limits = self.limits();
        let deadline = limits.deadline();
        let (subject, watch, mut tries) = (&mut *self.subject, &mut *self.watch, 0);
        let capabilities = &self.capabilities;
        let mut fails = |candidate: &Session| {
            tries += 1;
            watch(Event::Shrinking(number, tries));
            let observation = ask_session_until(subject, candidate, deadline);
            let failure = judge_session(&observation, model).failure;
            failure.is_some_and(|failure| {
                failure.verdict.kind() == Some(kind)
                    && failing_call(subject, capabilities, candidate, &failure, model).is_none()
            })
        };
        let shrunk = shrink_session(observation.session.clone(), limits, capabilities, &mut fails);
        self.has_shrunk(shrunk.seconds);
        let mut observation_of_it = ask_session(self.subject, &shrunk.session);
        if judge_session(&observation_of_it, model).conforms() {
            observation_of_it = observation;
        }
        let mut finding = self.session_finding(&name, observation_of_it);
        let alone = each_alone(&shrunk.session);
        if alone != shrunk.session && judge_session(&ask_session(self.subject, &alone), model).conforms() {
            finding.sentence = COMPANIONS.into();
        }
        (finding.tries, finding.shrinking_seconds, finding.shrunk) =
            (shrunk.tries, shrunk.seconds, shrunk.finished);
        (self.watch)(Event::Shrunk(number, &finding));
        self.apart.push(finding);
    }

    pub(super) fn session_finding(&self, first_seen: &str, observation: SessionObservation) -> Finding {
        let verdict = judge_session(&observation, self.report.model);
        let call = verdict.failure.as_ref().and_then(|failure| failure.call.as_ref());
        let reference = call.map(|call| {
            let mut reference = Reference::default();
            reference.configure(&observation.session.instance).and_then(|()| reference.call(call))
        });
        let without_calls = Observation::without_calls(first_seen.to_owned());
        let mut finding = Finding::new(without_calls, self.asked, Vec::new(), self.report.model);
        finding.kind = verdict.kind().unwrap_or("conforms when asked again");
        finding.explanations =
            verdict.failure.iter().flat_map(|failure| failure.verdict.explanations()).collect();
        finding.sentence = STEPS.into();
        let session = &observation.session;
        finding.size = super::Size::of_session(session);
        finding.session = Some(SessionExample { observation, failure: verdict.failure, reference });
        finding
    }
}

/// An observation up to the step that fails: after it nothing is known of what is held.
fn up_to(observation: &SessionObservation, step: Option<usize>) -> SessionObservation {
    let mut observation = observation.clone();
    let count = step.map_or(0, |step| step + 1);
    observation.session.steps.truncate(count);
    observation.answers.truncate(count);
    observation
}

/// The failing attend as a call of its own, if that may be asked and diverges, too.
fn failing_call(
    subject: &mut dyn Subject,
    capabilities: &Capabilities,
    session: &Session,
    failure: &StepFailure,
    model: RoundingModel,
) -> Option<Sequence> {
    let (name, instance) = (format!("a call of {}", session.name), session.instance.clone());
    let sequence = Sequence { name, instance, calls: vec![failure.call.clone()?] };
    if !capabilities.offers_all(&sequence) {
        return None;
    }
    first_failure(&judge_observation(&ask(subject, &sequence), model)).map(|_| sequence)
}

fn operations(session: &Session) -> usize {
    let open = &session.opening;
    session.queries() * open.heads * open.capacity * open.head_dim.max(open.value_dim)
}

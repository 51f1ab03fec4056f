//! Random cases, each asked and judged on its own. The same seed makes the same cases.

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, TestCaseError, TestError};

use crate::cases::seed::test_runner_with;
use crate::cases::strategies::Plan;
use crate::cases::{Answer, Capabilities, Case, Memory, NoAnswer};
use crate::subjects::{Subject, ask};

/// How many random cases, and which; what files may take.
#[derive(Debug, Clone, Copy)]
pub struct VerifyOptions {
    /// How many random cases each invariant gets; 0 leaves the invariants out.
    pub random_cases: u32,
    /// Seed of the random cases.
    pub seed: u64,
    /// The most memory that a file may take.
    pub memory: Memory,
    /// Ends the run once this is true: what was judged so far is reported.
    pub interrupted: Option<&'static AtomicBool>,
}

impl VerifyOptions {
    /// So many random cases with this seed, and files within [`Memory::DEFAULT`].
    pub const fn new(random_cases: u32, seed: u64) -> Self {
        Self { random_cases, seed, memory: Memory::DEFAULT, interrupted: None }
    }

    /// Whether the run was ended.
    pub(super) fn is_over(&self) -> bool {
        self.interrupted.is_some_and(|flag| flag.load(Ordering::Relaxed))
    }
}

/// The subject's answer to one case; `None` where it does not offer what the case asks for.
pub(super) fn answer(
    subject: &mut dyn Subject,
    capabilities: &Capabilities,
    case: &Case,
) -> Option<Result<Answer, NoAnswer>> {
    let sequence = case.sequence().on_layers_from(capabilities.first_layer);
    if !capabilities.missing(&sequence).is_empty() {
        return None;
    }
    ask(subject, &sequence).answers.pop()
}

/// How far [`for_each_case`] came.
pub(super) struct Asked {
    /// How many cases were judged.
    pub cases: u32,
    /// What is wrong with the first that failed, and its plan, shrunk.
    pub failure: Option<Vec<String>>,
}

/// Judges as many random cases as `options` ask for, of those that `capabilities` offer. `count` is called once for each case
/// with its plan and what `judge` said of it, `None` where it failed; shrinking is not counted.
pub(super) fn for_each_case<T>(
    plans: impl Strategy<Value = Plan>,
    capabilities: &Capabilities,
    options: VerifyOptions,
    judge: impl Fn(&Case) -> Result<T, String>,
    mut count: impl FnMut(&Plan, Option<T>),
) -> Asked {
    let (cases, most_rejected) = (options.random_cases, 100 * options.random_cases.max(10));
    let config = Config { cases, max_global_rejects: most_rejected, ..Config::default() };
    let mut runner = test_runner_with(options.seed, config);
    let rejected = Cell::new(0);
    let reject = |reason: String| {
        rejected.set(rejected.get() + 1);
        TestCaseError::reject(reason)
    };
    let (asked, count) = (RefCell::new(Asked { cases: 0, failure: None }), RefCell::new(&mut count));
    let outcome = runner.run(&plans, |plan| {
        // What is left then passes, uncounted.
        if options.is_over() {
            return Ok(());
        }
        let plan = plan.restricted(capabilities);
        let case = plan.case().map_err(|error| reject(error.to_string()))?;
        // What a plan asks for shows only in its case.
        if !capabilities.offers_calls(&case.instance, std::slice::from_ref(&case.call)) {
            return Err(reject("not offered".into()));
        }
        let (judged, failed) = match judge(&case) {
            Ok(judged) => (Some(judged), None),
            Err(failed) => (None, Some(failed)),
        };
        let mut asked = asked.borrow_mut();
        // What follows a failure shrinks it.
        if asked.failure.is_none() {
            asked.cases += 1;
            asked.failure = failed.clone().map(|failed| vec![failed]);
            (*count.borrow_mut())(&plan, judged);
        }
        failed.map_or(Ok(()), |failed| Err(TestCaseError::fail(failed)))
    });
    let mut asked = asked.into_inner();
    asked.failure = match outcome {
        Ok(()) => None,
        Err(TestError::Fail(reason, plan)) => {
            Some(vec![reason.to_string(), format!("smallest plan: {:?}", plan.restricted(capabilities))])
        }
        // Little of what was drawn is offered.
        Err(TestError::Abort(_)) if rejected.get() > most_rejected => None,
        Err(TestError::Abort(reason)) => Some(vec![format!("no random cases could be made: {reason}")]),
    };
    asked
}

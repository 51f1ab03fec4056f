//! Answers asked again, and promises: what diverges only sometimes is named with its rate, what is promised is checked, and
//! what is not promised is counted and never a finding.

use std::collections::BTreeSet;
use std::time::Duration;

use doublecheck::behaviours::Fault;
use doublecheck::cases::{Answer, Call, Capabilities, Instance, NoAnswer, Promise, RoundingModel};
use doublecheck::runner::shrink::Limits;
use doublecheck::subjects::{Faulty, Reference};
use doublecheck::{Finding, Options, Report, Subject, check};
use ndarray::Array4;

fn options(cases: usize) -> Options {
    let shrinking = Limits { time: Duration::MAX, ..Limits::default() };
    Options { cases, shrinking, naming: Duration::ZERO, ..Options::default() }
}

/// Chooses between the reference and the reference with ties to the highest key, and may change the answer.
struct Choosing<F, G> {
    reference: Reference,
    highest: Faulty,
    promises: Option<BTreeSet<Promise>>,
    /// Whether ties go to the highest key, by how often it was configured before.
    to_highest: F,
    /// Changes an answer, by how often it was called before; says what was sent as `selected`.
    change: G,
    configured: usize,
    called: usize,
    selected: Option<Array4<i32>>,
}

impl<F, G> Subject for Choosing<F, G>
where
    F: Fn(usize, &Call) -> bool,
    G: Fn(usize, &mut Answer) -> Option<Array4<i32>>,
{
    fn name(&self) -> String {
        "choosing".into()
    }

    fn rounding_model(&self) -> RoundingModel {
        RoundingModel::REFERENCE
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { promises: self.promises.clone(), ..Capabilities::default() }
    }

    fn configure(&mut self, instance: &Instance) -> Result<(), NoAnswer> {
        self.configured += 1;
        self.reference.configure(instance)?;
        self.highest.configure(instance)
    }

    fn call(&mut self, call: &Call) -> Result<Answer, NoAnswer> {
        self.called += 1;
        self.selected = None;
        let highest = (self.to_highest)(self.configured, call);
        let mut answer = if highest { self.highest.call(call)? } else { self.reference.call(call)? };
        self.selected = (self.change)(self.called, &mut answer);
        Ok(answer)
    }

    fn selected(&self) -> Option<&Array4<i32>> {
        self.selected.as_ref()
    }
}

fn choosing<F, G>(promises: &[Promise], to_highest: F, change: G) -> Choosing<F, G>
where
    F: Fn(usize, &Call) -> bool,
    G: Fn(usize, &mut Answer) -> Option<Array4<i32>>,
{
    Choosing {
        reference: Reference::default(),
        highest: Faulty::new(&Fault::find_all("ties-to-highest")),
        promises: Some(promises.iter().copied().collect()),
        to_highest,
        change,
        configured: 0,
        called: 0,
        selected: None,
    }
}

fn unchanged(_: usize, _: &mut Answer) -> Option<Array4<i32>> {
    None
}

fn kept(report: &Report, promise: Promise) -> (usize, usize) {
    let kept = report.promises[promise.name()];
    (kept.held, kept.of)
}

/// About one call in twenty loses a key that it attends to: a race.
fn flaky(called: usize, answer: &mut Answer) -> Option<Array4<i32>> {
    let mixed = (called as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    if mixed.is_multiple_of(20) {
        let attended = answer.mask.weights().indexed_iter().find(|(_, weight)| **weight != 0.0);
        if let Some(((b, head, i, key), _)) = attended {
            answer.mask.remove((b, head, i), key);
        }
    }
    None
}

#[test]
fn a_race_is_named_with_its_rate() {
    let report = check(&mut choosing(&[], |_, _| false, flaky), &options(500));
    let [finding] = report.findings.as_slice() else { panic!("{report}") };
    assert_eq!(finding.kind, "not repeatable", "{report}");
    assert!(finding.after <= 1000 && finding.sequences > 20, "{report}");
    let rate = finding.repeats.unwrap();
    assert_eq!(rate.asked, 240);
    // One call in twenty: 12 of 240 for one call, with four standard deviations for as many as three.
    assert!((1..=36 + 24).contains(&rate.diverged), "{rate:?}");
    assert!(finding.sentence.contains(&format!("{} of 240 repeats", rate.diverged)), "{}", finding.sentence);
    assert!(finding.tries <= 80, "{}", finding.tries);
    // Both answers are there, and the text says in what they differ.
    assert!(finding.other.is_some());
    let text = report.to_string();
    assert!(text.contains("found at another time") && text.contains("asked again: batch"), "{text}");
    assert!(!report.explained);
}

#[test]
fn a_race_shows_in_the_repeats_of_what_conforms() {
    // Only the second answer to a sequence is ever wrong.
    let subject = &mut choosing(
        &[],
        |_, _| false,
        |called, answer: &mut Answer| flaky(if called < 200 { 1 } else { called }, answer),
    );
    let report = check(subject, &Options { repeat: 3, ..options(60) });
    assert!(report.repeats.asked >= 60, "{report}");
    assert!(report.findings.iter().all(|finding| finding.kind == "not repeatable"), "{report}");
    assert!(!report.findings.is_empty());
}

#[test]
fn a_share_is_asked_again_and_repeat_asks_all() {
    // One in 16 of 320 small and 20 large sequences at once, and one in 32 after others.
    let report = check(&mut Reference::default(), &options(320));
    assert!(report.conforms(), "{report}");
    assert_eq!((report.repeats.asked, report.repeats.differed), (21 + 10, 0));
    let report = check(&mut Reference::default(), &Options { repeat: 4, ..options(50) });
    assert!(report.repeats.asked >= 150, "{:?}", report.repeats);
    assert_eq!(kept(&report, Promise::Repeatable), (report.repeats.asked, report.repeats.asked));
}

#[test]
fn promises_that_are_kept_are_counted() {
    let promises =
        [Promise::TiesLowest, Promise::Repeatable, Promise::BatchInvariant, Promise::SliceInvariant];
    let report = check(&mut choosing(&promises, |_, _| false, unchanged), &options(1000));
    assert!(report.conforms(), "{report}");
    for promise in promises {
        let (held, of) = kept(&report, promise);
        assert!(held == of && of > 10, "{promise:?}: {held} of {of}");
    }
    let text = report.to_string();
    assert!(text.contains("promised: ties-lowest in ") && text.contains("observed: ties-highest in 0 of"));
}

fn broken<F, G>(promise: Promise, to_highest: F, change: G) -> Finding
where
    F: Fn(usize, &Call) -> bool + Copy,
    G: Fn(usize, &mut Answer) -> Option<Array4<i32>> + Copy,
{
    // Without the promise the same answers conform.
    let report = check(&mut choosing(&[], to_highest, change), &options(500));
    assert!(report.conforms(), "{promise:?}: {report}");
    let report = check(&mut choosing(&[promise], to_highest, change), &options(500));
    let [finding] = report.findings.as_slice() else { panic!("{promise:?}: {report}") };
    assert_eq!(report.exit_code(), 1);
    assert!(finding.after <= 500);
    finding.clone()
}

#[test]
fn broken_promises_are_findings() {
    let always = |_: usize, _: &Call| true;
    let never = |_: usize, _: &Call| false;
    let several = |_: usize, call: &Call| call.inputs.dims().batch > 1;
    let queries = |_: usize, call: &Call| call.inputs.dims().queries > 1;
    for finding in [
        (Promise::TiesLowest, broken(Promise::TiesLowest, always, unchanged)),
        (Promise::TiesHighest, broken(Promise::TiesHighest, never, unchanged)),
        (Promise::BatchInvariant, broken(Promise::BatchInvariant, several, unchanged)),
        (Promise::SliceInvariant, broken(Promise::SliceInvariant, queries, unchanged)),
        (Promise::Ascending, broken(Promise::Ascending, never, descending)),
        (Promise::Padded, broken(Promise::Padded, never, padded_first)),
    ] {
        let (promise, finding) = finding;
        assert_eq!(finding.kind, "broken promise", "{promise:?}");
        let line = &finding.explanations[0];
        assert!(line.starts_with(promise.name()) && line.contains(", head "), "{promise:?}: {line}");
        assert!(finding.sentence.contains(promise.name()), "{}", finding.sentence);
    }
}

#[test]
fn ties_that_change_break_the_promise_to_be_repeatable() {
    let finding = broken(Promise::Repeatable, |configured, _| configured % 2 == 0, unchanged);
    assert_eq!(finding.kind, "not repeatable");
    let rate = finding.repeats.unwrap();
    assert!(rate.diverged == 0 && rate.differed > 60, "{rate:?}");
    assert!(finding.sentence.contains("promises"), "{}", finding.sentence);
}

/// What an answer attends to, from the highest key to the lowest.
fn descending(_: usize, answer: &mut Answer) -> Option<Array4<i32>> {
    Some(listed(answer, |keys| keys.reverse(), false))
}

fn padded_first(_: usize, answer: &mut Answer) -> Option<Array4<i32>> {
    Some(listed(answer, |_| {}, true))
}

fn listed(answer: &Answer, change: fn(&mut Vec<i32>), padded_first: bool) -> Array4<i32> {
    let (b, h, m, n) = answer.mask.weights().dim();
    let mut selected = Array4::from_elem((b, h, m, n + 1), -1);
    for row @ (batch, head, i) in ndarray::indices((b, h, m)) {
        let mut keys: Vec<i32> = answer.mask.row(row).map(|(key, _)| key as i32).collect();
        change(&mut keys);
        for (position, key) in keys.into_iter().enumerate() {
            selected[[batch, head, i, position + usize::from(padded_first)]] = key;
        }
    }
    selected
}

#[test]
fn a_promise_about_selected_needs_selected() {
    let report = check(&mut choosing(&[Promise::Ascending], |_, _| false, unchanged), &options(50));
    assert!(report.findings[0].explanations[0].contains("holds no selected"), "{report}");
    // Who keeps it conforms.
    let sorted = |_: usize, answer: &mut Answer| Some(listed(answer, |_| {}, false));
    let both = [Promise::Ascending, Promise::Padded];
    let report = check(&mut choosing(&both, |_, _| false, sorted), &options(200));
    assert!(report.conforms(), "{report}");
    assert!(kept(&report, Promise::Padded).1 > 100, "{report}");
}

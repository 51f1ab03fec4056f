//! What `verify` asks, what it counts, and that a part of the contract which a subject does not offer is no divergence.

use doublecheck::algorithm::{HeadMode, Storage};
use doublecheck::behaviours::Fault;
use doublecheck::cases::{
    Answer, Call, Capabilities, Feature, Instance, NoAnswer, RoundingModel, Sequence, bundled,
};
use doublecheck::runner::verify::{VerifyOptions, VerifyReport, verify};
use doublecheck::subjects::{Faulty, Reference, Subject};

/// Another subject of which less is offered: what is asked all the same fails.
struct Partial<S> {
    whole: S,
    instance: Option<Instance>,
}

impl<S: Subject> Partial<S> {
    fn of(whole: S) -> Self {
        Self { whole, instance: None }
    }
}

impl<S: Subject> Subject for Partial<S> {
    fn name(&self) -> String {
        "partial".into()
    }

    fn rounding_model(&self) -> RoundingModel {
        self.whole.rounding_model()
    }

    /// As `examples/python/masker.py` has it, and no layer below 2.
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            dtypes: vec![Storage::F32],
            heads: vec![HeadMode::PerHead],
            first_layer: 2,
            lacks: [
                Feature::EarlierMaskers,
                Feature::DenseFallback,
                Feature::DenseLayers,
                Feature::Refusals,
                Feature::Output,
            ]
            .into(),
            ..Capabilities::default()
        }
    }

    fn configure(&mut self, instance: &Instance) -> Result<(), NoAnswer> {
        self.instance = Some(instance.clone());
        self.whole.configure(instance)
    }

    fn call(&mut self, call: &Call) -> Result<Answer, NoAnswer> {
        let instance = self.instance.clone().expect("configured before");
        let asked = Sequence { name: String::new(), instance, calls: vec![call.clone()] };
        let missing = self.capabilities().missing(&asked);
        if !missing.is_empty() || call.layer < 2 {
            return Err(NoAnswer::Failed(format!("layer {} asked for {missing:?}", call.layer)));
        }
        Ok(Answer { output: None, ..self.whole.call(call)? })
    }
}

fn verified(folder: &str, subject: &mut dyn Subject, random_cases: u32) -> VerifyReport {
    let mut files = bundled::cases().unwrap();
    files.retain(|file| file.group() == folder);
    assert!(!files.is_empty(), "{folder}");
    verify(&files, subject, VerifyOptions::new(random_cases, 0), &mut |_| {})
}

#[test]
fn what_a_subject_does_not_offer_is_no_divergence() {
    for folder in ["small", "counterexamples", "hub"] {
        let report = verified(folder, &mut Partial::of(Reference::default()), 60);
        assert_eq!(report.exit_code(), 0, "{report}");
        let total = report.total();
        assert_eq!(total.cases, total.conforming + total.not_offered, "{report}");
        assert!(total.not_offered > 0 && !report.left_out.is_empty(), "{report}");
        assert!(report.checks() > 300, "{report}");
    }
    let report = verified("small", &mut Partial::of(Reference::default()), 0);
    assert_eq!((report.left_out["bf16"], report.left_out["f16"]), (5, 6), "{report}");
    assert!(report.to_string().contains("33 of 44 cases conform; 11 not offered by the subject"), "{report}");
}

#[test]
fn what_a_subject_offers_is_still_judged() {
    let faults = Fault::find_all("smallest-scores");
    let report = verified("small", &mut Partial::of(Faulty::new(&faults)), 60);
    assert_eq!(report.exit_code(), 1, "{report}");
    assert!(report.total().diverged > 20, "{report}");
    assert!(report.invariants.iter().any(|result| result.failed), "{report}");
}

/// Nothing was verified then, which must not look like success.
#[test]
fn a_subject_that_could_be_asked_nothing_is_a_bad_input() {
    let report = verified("quantisation", &mut Partial::of(Reference::default()), 0);
    assert_eq!(report.exit_code(), 2, "{report}");
    assert_eq!(report.total().conforming, 0, "{report}");
}

/// Each invariant has cases of its own, and what shrinking asks is not counted.
#[test]
fn random_cases_are_distinct_and_counted_once() {
    let report = verified("small", &mut Reference::default(), 30);
    let held: usize = report.invariants.iter().map(|result| result.held).sum();
    for result in &report.invariants {
        assert_eq!(result.held + result.not_applicable, 30, "{}", result.name);
    }
    assert_eq!((report.checks(), report.random_cases), (held, held), "{report}");
    let again = verified("small", &mut Reference::default(), 30);
    assert_eq!(report.to_string(), again.to_string());

    let faults = Fault::find_all("smallest-scores");
    let report = verified("small", &mut Faulty::new(&faults), 30);
    for result in &report.invariants {
        assert!(result.checks() + result.not_applicable <= 30, "{}", result.name);
    }
    assert!(report.random_cases <= report.checks(), "{report}");
}

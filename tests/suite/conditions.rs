//! Under which condition a subject fails, what it needs of what was asked before, and what counts as one finding: small faulty
//! subjects whose condition is known, right ones, and ones for which a rule that fits by chance must not be told.

use std::time::Duration;

use doublecheck::algorithm::{HeadMode, HeavySize, Mask, Storage};
use doublecheck::behaviours::Fault;
use doublecheck::cases::{
    Answer, Call, Capabilities, CaseFile, Instance, NoAnswer, Reader, RoundingModel, Sequence, file,
};
use doublecheck::subjects::{Faulty, Reference, ask};
use doublecheck::verdicts::judge::{first_failure, judge_observation};
use doublecheck::{Finding, Limits, Options, Report, Subject, check};

use crate::support::is_long;

/// What is known where a call is asked.
struct Asked<'a> {
    instance: &'a Instance,
    call: &'a Call,
    earlier: &'a [Call],
}

impl Asked<'_> {
    fn keys(&self) -> usize {
        self.call.inputs.dims().keys
    }

    fn heavy_size(&self) -> usize {
        self.instance.selection.heavy_size.resolve(self.keys())
    }
}

/// Whether a call is answered wrongly.
type Fails = fn(&Asked) -> bool;

/// A mask of another answer.
type Change = fn(&Instance, &Call, Mask) -> Mask;

/// Clauses that are expected, how many sequences are asked, and which calls fail.
type Expected = (&'static [&'static str], usize, Fails);

/// The reference, but for calls of some kind, of which the answer is changed.
struct Where {
    reference: Reference,
    instance: Option<Instance>,
    earlier: Vec<Call>,
    faults: Vec<(Fails, Change)>,
}

impl Where {
    fn new(fails: fn(&Asked) -> bool) -> Self {
        Self::with(vec![(fails, swapped)])
    }

    fn with(faults: Vec<(Fails, Change)>) -> Self {
        Self { reference: Reference::default(), instance: None, earlier: Vec::new(), faults }
    }
}

impl Subject for Where {
    fn name(&self) -> String {
        "wrong somewhere".into()
    }

    fn rounding_model(&self) -> RoundingModel {
        self.reference.rounding_model()
    }

    fn capabilities(&self) -> Capabilities {
        // Heads that share a selection would have to be changed together.
        Capabilities { heads: [HeadMode::PerHead].into(), ..Capabilities::default() }
    }

    fn configure(&mut self, instance: &Instance) -> Result<(), NoAnswer> {
        (self.instance, self.earlier) = (Some(instance.clone()), Vec::new());
        self.reference.configure(instance)
    }

    fn call(&mut self, call: &Call) -> Result<Answer, NoAnswer> {
        let answer = self.reference.call(call);
        let instance = self.instance.as_ref().unwrap();
        let asked = Asked { instance, call, earlier: &self.earlier };
        let wrong: Vec<_> =
            self.faults.iter().filter(|(fails, _)| fails(&asked)).map(|(_, change)| change).collect();
        self.earlier.push(call.clone());
        let answer = answer?;
        if wrong.is_empty() {
            return Ok(answer);
        }
        let mask = wrong.into_iter().fold(answer.mask, |mask, change| change(instance, call, mask));
        let output = doublecheck::algorithm::attention::attention(&call.inputs, &mask).ok();
        Ok(Answer::new(mask, output))
    }
}

/// Each row without its last new key, in place of which the first candidate that was left out is selected, if `refill` says so.
fn changed(instance: &Instance, call: &Call, mask: Mask, refill: bool) -> Mask {
    let dims = call.inputs.dims();
    let Ok(before) = instance.before(call) else { return mask };
    let mut weights = mask.weights().clone();
    for (b, head, i) in dims.rows() {
        let additive = call.inputs.additive(b, head, i);
        let candidate =
            |key: &usize| additive.at(*key) > f32::NEG_INFINITY && !before.attends(b, head, i, *key);
        let selected = (0..dims.keys).rev().filter(candidate).find(|key| mask.attends(b, head, i, *key));
        let left_out = (0..dims.keys).filter(candidate).find(|key| !mask.attends(b, head, i, *key));
        if let (Some(selected), Some(left_out)) = (selected, left_out) {
            weights[[b, head, i, selected]] = 0.0;
            weights[[b, head, i, left_out]] = if refill { 1.0 } else { 0.0 };
        }
    }
    Mask::from_weights(weights, &dims).unwrap()
}

fn swapped(instance: &Instance, call: &Call, mask: Mask) -> Mask {
    changed(instance, call, mask, true)
}

fn one_too_few(instance: &Instance, call: &Call, mask: Mask) -> Mask {
    changed(instance, call, mask, false)
}

fn fault(name: &str) -> &'static Fault {
    Fault::find_all(name)[0]
}

fn options(cases: usize) -> Options {
    let shrinking = Limits { time: Duration::MAX, tries: 2000, ..Limits::default() };
    Options { cases, shrinking, probes: false, ..Options::default() }
}

/// Without a search for a cause: what changes answers here has none that could be named.
fn unnamed(cases: usize) -> Options {
    Options { naming: Duration::ZERO, ..options(cases) }
}

/// The clauses that are told of the only finding, but for the one that there is something to select.
fn clauses(report: &Report) -> Vec<String> {
    assert_eq!(report.findings.len(), 1, "{report}");
    let condition = report.findings[0].condition.as_ref();
    let clauses = condition.map(|condition| condition.clauses.clone()).unwrap_or_default();
    clauses.into_iter().filter(|clause| clause != "H < candidates").collect()
}

#[test]
fn the_condition_of_each_kind_is_found() {
    let cases: [Expected; 12] = [
        (&["g > 1"], 300, |asked| asked.call.inputs.dims().group_size() > 1),
        (&["b > 1"], 300, |asked| asked.call.inputs.dims().batch > 1),
        (&["m > 1"], 300, |asked| asked.call.inputs.dims().queries > 1),
        (&["B < 16"], 300, |asked| asked.instance.selection.label_bits.quantises()),
        (&["H ≤ 1"], 300, |asked| asked.heavy_size() == 1),
        (&["n > 64", "n mod 64 ≠ 0"], 640, |asked| asked.keys() > 64 && asked.keys() % 64 != 0),
        (&["n even"], 300, |asked| asked.keys() % 2 == 0),
        (&["n < n of the call before"], 600, |asked| {
            let before = asked.earlier.iter().rev().find(|earlier| earlier.layer == asked.call.layer);
            before.is_some_and(|before| asked.keys() < before.inputs.dims().keys)
        }),
        (&["A given"], 300, |asked| asked.call.inputs.parts().attention_mask.is_some()),
        (&["an earlier call of another layer"], 300, |asked| {
            asked.earlier.iter().any(|earlier| earlier.layer != asked.call.layer)
        }),
        (&["f16"], 300, |asked| asked.call.inputs.parts().storage == Storage::F16),
        (&["b > 1", "B < 16"], 600, |asked| {
            asked.instance.selection.label_bits.quantises() && asked.call.inputs.dims().batch > 1
        }),
    ];
    let mut wrong = Vec::new();
    for (expected, cases, fails) in cases {
        let report = check(&mut Where::new(fails), &unnamed(cases));
        let found = clauses(&report);
        println!("{expected:?}: {:?}", report.findings[0].condition);
        if found != expected {
            wrong.push((expected, report.findings[0].condition.clone()));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_failure_in_every_call_is_told_as_such() {
    let report = check(&mut Where::new(|_| true), &unnamed(200));
    assert_eq!(clauses(&report), [""; 0], "{report}");
}

/// A number that depends on every number of q.
fn hash(asked: &Asked) -> u64 {
    let bits = asked.call.inputs.parts().q.iter().map(|x| u64::from(x.to_bits()));
    bits.fold(17, |hash, bits| doublecheck::cases::recipe::mix(hash ^ bits))
}

#[test]
fn what_fails_at_random_has_no_condition() {
    // Of few failures something is always in common.
    for seed in 0..if is_long() { 8 } else { 1 } {
        for cases in [40, 150] {
            let mut subject = Where::new(|asked| hash(asked).is_multiple_of(3));
            let report = check(&mut subject, &Options { seed, ..unnamed(cases) });
            assert_eq!(clauses(&report), [""; 0], "{:?}", report.findings[0].condition);
        }
    }
}

#[test]
fn a_condition_in_which_some_calls_conform_is_told_as_necessary() {
    let mut subject = Where::new(|asked| asked.call.inputs.dims().batch > 1 && hash(asked).is_multiple_of(2));
    let report = check(&mut subject, &unnamed(400));
    let condition = report.findings[0].condition.as_ref().unwrap_or_else(|| panic!("{report}"));
    assert!(!condition.exact && condition.sentence.starts_with("Fails only with"), "{condition:?}");
    assert!(
        condition.failing < condition.inside && condition.clauses.contains(&"b > 1".into()),
        "{condition:?}"
    );
}

#[test]
fn right_subjects_have_no_findings() {
    let report = check(&mut Where::new(|_| false), &options(200));
    assert!(report.findings.is_empty() && report.conforms(), "{report}");
}

#[test]
fn a_named_fault_has_its_condition() {
    let fault = fault("first-layers-channels");
    let report = check(&mut Faulty::new(&[fault]), &options(200));
    assert_eq!(report.findings[0].diagnosis, ["first-layers-channels"]);
    let condition = report.findings[0].condition.as_ref().unwrap();
    assert!(condition.clauses.contains(&"an earlier call of another layer".into()), "{condition:?}");
    let state = report.findings[0].state.as_ref().unwrap();
    assert!(state.earlier_calls && !state.repetition && state.earlier_instances == 0, "{state:?}");
    assert!(report.to_string().contains("state: Needs an earlier call"), "{report}");
}

/// A fault of the catalogue in calls of some kind, the reference in all others.
struct FaultyWhere {
    faulty: Faulty,
    reference: Reference,
    fails: fn(&Call) -> bool,
}

impl Subject for FaultyWhere {
    fn name(&self) -> String {
        "faulty somewhere".into()
    }

    fn rounding_model(&self) -> RoundingModel {
        self.reference.rounding_model()
    }

    fn configure(&mut self, instance: &Instance) -> Result<(), NoAnswer> {
        self.faulty.configure(instance)?;
        self.reference.configure(instance)
    }

    fn call(&mut self, call: &Call) -> Result<Answer, NoAnswer> {
        let faulty = self.faulty.call(call);
        if (self.fails)(call) { faulty } else { self.reference.call(call) }
    }
}

#[test]
fn a_fault_that_acts_under_a_condition_is_named_with_it() {
    let reference = Reference::default();
    let faulty = Faulty::new(&[fault("kv-heads-tiled")]);
    let mut subject = FaultyWhere { faulty, reference, fails: |call| call.inputs.dims().batch > 1 };
    let report = check(&mut subject, &options(600));
    assert_eq!(report.findings.len(), 1, "{report}");
    let finding = &report.findings[0];
    assert!(finding.sentence.contains("kv-heads-tiled") && finding.sentence.contains("b > 1"), "{report}");
}

#[test]
fn kinds_of_one_cause_are_one_finding_and_two_causes_are_two() {
    // One cause that shows in two kinds.
    let mixed = |instance: &Instance, call: &Call, mask: Mask| {
        changed(instance, call, mask, call.inputs.dims().keys.is_multiple_of(2))
    };
    let report = check(&mut Where::with(vec![(|_| true, mixed)]), &unnamed(300));
    assert_eq!(report.findings.len(), 1, "{report}");
    assert_eq!(report.findings[0].more.len(), 1, "{report}");
    assert!(report.to_string().contains("1 more like it: "), "{report}");
    // Two causes, of which the conditions differ.
    let in_batches: fn(&Asked) -> bool = |asked| asked.call.inputs.dims().batch > 1;
    let alone_and_coarse: fn(&Asked) -> bool =
        |asked| asked.call.inputs.dims().batch == 1 && asked.instance.selection.label_bits.quantises();
    let report =
        check(&mut Where::with(vec![(in_batches, swapped), (alone_and_coarse, one_too_few)]), &unnamed(600));
    assert_eq!(report.findings.len(), 2, "{report}");
    // Two faults of the catalogue.
    for names in [["kv-heads-tiled", "not-quantised"], ["first-layers-channels", "dense-when-short"]] {
        let faults: Vec<_> = names.iter().map(|name| fault(name)).collect();
        let report = check(&mut Faulty::new(&faults), &options(400));
        assert_eq!(report.findings.len(), faults.len(), "{report}");
    }
}

/// Keeps something from one instance to the next: what it is configured with, and how often the same call was asked.
struct Keeps {
    reference: Reference,
    can_restart: bool,
    first: Option<HeavySize>,
    last: Option<HeavySize>,
    asked: Vec<Call>,
    heavy_size: fn(&mut Keeps, &Instance) -> HeavySize,
    repeats: bool,
}

impl Keeps {
    fn new(can_restart: bool, heavy_size: fn(&mut Keeps, &Instance) -> HeavySize) -> Self {
        let reference = Reference::default();
        Self {
            reference,
            can_restart,
            first: None,
            last: None,
            asked: Vec::new(),
            heavy_size,
            repeats: false,
        }
    }
}

impl Subject for Keeps {
    fn name(&self) -> String {
        "keeps something".into()
    }

    fn rounding_model(&self) -> RoundingModel {
        self.reference.rounding_model()
    }

    fn configure(&mut self, instance: &Instance) -> Result<(), NoAnswer> {
        let mut changed = instance.clone();
        changed.selection.heavy_size = (self.heavy_size)(self, instance);
        self.reference.configure(&changed)
    }

    fn call(&mut self, call: &Call) -> Result<Answer, NoAnswer> {
        let again = self.repeats && self.asked.contains(call);
        if self.repeats && self.asked.len() < 2000 {
            self.asked.push(call.clone());
        }
        let mut answer = self.reference.call(call)?;
        if again {
            answer.mask = Mask::empty(&call.inputs.dims());
        }
        Ok(answer)
    }

    fn restart(&mut self) -> bool {
        if self.can_restart {
            (self.first, self.last) = (None, None);
            self.asked.clear();
        }
        self.can_restart
    }
}

/// That a finding shows after what it needs, in a new process, and not alone.
fn shows_after_only(finding: &Finding, mut fresh: Keeps) {
    let state = finding.state.as_ref().unwrap();
    assert_eq!((state.earlier_instances, state.earlier.len()), (1, 1), "{state:?}");
    let mut fails = |sequence: &Sequence| {
        let observation = ask(&mut fresh, sequence);
        first_failure(&judge_observation(&observation, RoundingModel::REFERENCE)).is_some()
    };
    let sequence = &finding.observation.sequence;
    assert!(!fails(sequence));
    fails(&state.earlier[0]);
    assert!(fails(sequence), "{state:?}");
}

#[test]
fn what_needs_an_earlier_instance_is_kept_with_it() {
    let first: fn(&mut Keeps, &Instance) -> HeavySize =
        |kept, instance| *kept.first.get_or_insert(instance.selection.heavy_size);
    let report = check(&mut Keeps::new(true, first), &options(100));
    let finding = &report.findings[0];
    let state = finding.state.as_ref().unwrap();
    assert!(state.new_process && !state.repetition, "{state:?}");
    assert!(report.to_string().contains("asked before (1):"), "{report}");
    // Alone, in a new process, it conforms; after what the finding holds it fails.
    let mut again = Keeps::new(true, first);
    assert!(!fails(&mut again, &finding.observation.sequence));
    again.restart();
    fails(&mut again, &state.earlier[0]);
    assert!(fails(&mut again, &finding.observation.sequence));
    // The file holds both.
    let bytes = file::sequence_after_to_bytes(&finding.observation.sequence, &state.earlier, "test");
    let Ok(CaseFile::Sequence(stored)) = Reader::default().parse(&bytes, "again") else {
        panic!("no sequence")
    };
    assert_eq!(stored.before.len(), 1);
    assert_eq!(stored.before[0].calls, state.earlier[0].calls);
    assert_eq!(stored.before[0].instance, state.earlier[0].instance);
    assert_eq!(stored.sequence.calls, finding.observation.sequence.calls);
}

fn fails(subject: &mut dyn Subject, sequence: &Sequence) -> bool {
    let observation = ask(subject, sequence);
    first_failure(&judge_observation(&observation, RoundingModel::REFERENCE)).is_some()
}

#[test]
fn what_shows_only_after_the_instance_before_is_not_called_random() {
    // H of the instance before, where that was smaller: asked again, the same sequence conforms.
    let before: fn(&mut Keeps, &Instance) -> HeavySize = |kept, instance| {
        let own = instance.selection.heavy_size;
        let last = kept.last.replace(own).unwrap_or(own);
        match (last, own) {
            (HeavySize::Count(last), HeavySize::Count(own)) if last < own => HeavySize::Count(last),
            _ => own,
        }
    };
    for can_restart in [true, false] {
        let report = check(&mut Keeps::new(can_restart, before), &options(200));
        assert_eq!(report.findings.len(), 1, "{report}");
        assert_ne!(report.findings[0].kind, "not repeatable", "{report}");
        shows_after_only(&report.findings[0], Keeps::new(can_restart, before));
    }
}

#[test]
fn what_fails_when_asked_again_is_told_as_repetition() {
    let own: fn(&mut Keeps, &Instance) -> HeavySize = |_, instance| instance.selection.heavy_size;
    let mut subject = Keeps { repeats: true, ..Keeps::new(true, own) };
    let report = check(&mut subject, &options(200));
    let finding = report.findings.iter().find(|finding| finding.needs_earlier());
    let finding = finding.unwrap_or_else(|| panic!("{report}"));
    assert!(finding.state.as_ref().unwrap().repetition, "{report}");
    shows_after_only(finding, Keeps { repeats: true, ..Keeps::new(true, own) });
}

//! The suite's own test: deliberate faults must be caught, be named rightly or called unknown, and shrink to a few numbers; what
//! conforms must conform. Here each is asked [`FEW`] sequences, which show most of them. The others are left to the command
//! `doublecheck faults`, which asks each 1,000 and fails where one is not caught or misnamed; its record must hold them all.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use doublecheck::behaviours::{Behaviour, CATALOGUE, Fault};
use doublecheck::cases::{Answer, Call, Capabilities, Feature, Instance, NoAnswer, Promise};
use doublecheck::diagnosis::reproduction::reproduces;
use doublecheck::runner::check::Size;
use doublecheck::runner::faults::{FaultResult, Planted, shows};
use doublecheck::runner::shrink::Limits;
use doublecheck::subjects::{BREACHES, Faulty, Reference};
use doublecheck::verdicts::judge::judge_observation;
use doublecheck::{Options, Report, Subject, check};
use rayon::prelude::*;

use crate::support::is_long;

/// Shrinking ends by itself or after a number of tries, however long they take.
fn options_of(cases: usize) -> Options {
    let shrinking = Limits { time: Duration::MAX, ..Limits::default() };
    // Small sequences show every planted fault.
    Options { cases, shrinking, largest_keys: 0, ..Options::default() }
}

/// Fewer than the 1,000 that the catalogue's faults are allowed: most are caught well before.
fn options() -> Options {
    options_of(500)
}

/// How many sequences each planted fault is asked here.
const FEW: usize = 60;

/// Checks planted faults with few sequences each; those that the record says are shown by so few must be caught. Whatever was
/// found must not be misnamed. The others are left out; a tenth of the rest is checked, all where tests run in full.
fn caught(planted: Vec<Planted>) -> Vec<(Planted, FaultResult, Report)> {
    let record = record();
    let after = |planted: Planted| record[planted.name()]["after"].as_u64().unwrap() as usize;
    let (few, left): (Vec<Planted>, Vec<Planted>) =
        planted.into_iter().partition(|&planted| after(planted) <= FEW);
    assert!(few.len() > 3 * left.len(), "{left:?}");
    // Every tenth of them, unless tests run in full.
    let few: Vec<Planted> = few.into_iter().step_by(if is_long() { 1 } else { 10 }).collect();
    assert!(few.len() > 1, "{few:?}");
    let check = |planted: Planted| {
        let (result, report) = planted.check(&options_of(FEW));
        assert!(result.right() && !report.conforms(), "{}: {report}", planted.name());
        (planted, result, report)
    };
    few.into_par_iter().with_max_len(1).map(check).collect()
}

/// What `doublecheck faults` last said of each fault.
fn record() -> BTreeMap<String, serde_json::Value> {
    let faults = rows("faults.json").into_iter();
    faults.map(|fault| (fault["name"].as_str().unwrap().to_owned(), fault)).collect()
}

/// The rows of a record.
fn rows(name: &str) -> Vec<serde_json::Value> {
    let path = format!("{}/golden/records/{name}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// Every fault was planted above 64 keys and above more, and each was shrunk to one key more, give or take one. What fails only
/// sometimes is shrunk as far as its repeats allow.
#[test]
fn the_record_of_large_faults_holds_every_fault() {
    let rows = rows("large.json");
    let at_64: BTreeSet<&str> =
        rows.iter().filter(|row| row["above"] == 64).map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(at_64, Planted::all().into_iter().map(Planted::name).collect());
    for row in &rows {
        let conforms = row["must_conform"].as_bool().unwrap();
        assert_eq!(row["caught_by"].is_null(), conforms, "{row}");
        let (above, keys) = (row["above"].as_u64().unwrap(), row["size"]["keys"].as_u64());
        let sometimes = row["name"] == "promised-repeatable";
        assert!(conforms || sometimes || keys.unwrap().abs_diff(above + 1) <= 1, "{row}");
    }
}

/// The command asked every fault, caught it within 1,000 sequences and did not misname it.
#[test]
fn the_record_holds_every_fault() {
    let record = record();
    let names: BTreeSet<&str> = Planted::all().into_iter().map(Planted::name).collect();
    assert_eq!(record.keys().map(String::as_str).collect::<BTreeSet<_>>(), names);
    for (name, fault) in &record {
        let planted = Planted::find_all(name)[0];
        assert_eq!(fault["must_conform"], planted.conforms(), "{name}");
        assert_eq!(fault["caught_by"].is_null(), planted.conforms(), "{name}");
        let named = fault["diagnosis"].as_array().unwrap();
        assert!(
            fault["after"].as_u64().unwrap() <= 1000 && named.iter().all(|other| other == name),
            "{name}"
        );
    }
}

/// The most heads, batch entries and calls of a counterexample: mostly two, one and one.
fn needed(name: &str) -> (usize, usize, usize) {
    match name {
        // Fewer show nothing.
        "kv-heads-tiled" | "channel-rows-tiled" | "groups-strided" | "sum-of-maxima" => (4, 1, 1),
        // The first that shows it is a sum over heads that leaves the range of f16.
        "half-accumulation" => (4, 1, 1),
        "first-layers-channels"
        | "label-cache-shared"
        | "labels-written-once"
        | "labels-kept-on-restart"
        | "first-key-of-a-chunk"
        | "later-keys-never-selected"
        | "answers-by-shape" => (2, 1, 2),
        "batch-slots" => (2, 2, 2),
        "attention-mask-of-first-entry"
        | "promised-batch-invariant"
        | "length-of-first-entry"
        | "length-of-last-entry" => (2, 2, 1),
        _ => (2, 1, 1),
    }
}

fn is_small(name: &str, size: Size) {
    let (heads, batch, calls) = needed(name);
    // Sums in f16 show where several products are rounded one after the other, and the factor where r is no power of four.
    let head_dim = if ["half-accumulation", "unscaled-scores"].contains(&name) { 5 } else { 4 };
    assert!(size.keys <= 8 && size.heads <= heads && size.head_dim <= head_dim, "{name}: {size}");
    assert!(size.batch == batch && size.queries <= 2 && size.calls == calls, "{name}: {size}");
}

/// Also that the diagnosis is proved: with the fault the SPEC reproduces the counterexample, without it does not.
#[test]
fn every_fault_is_caught_named_and_shrunk() {
    let faults = CATALOGUE.iter().filter(|fault| !fault.conforms).map(Planted::Fault).collect();
    let mut named = 0;
    let reports = caught(faults);
    for (planted, result, report) in &reports {
        let (name, Planted::Fault(fault)) = (planted.name(), planted) else { panic!("a breach") };
        named += usize::from(!result.diagnosis.is_empty());
        for finding in &report.findings {
            assert!(finding.shrunk, "{name}: {} tries", finding.tries);
            let observation = &finding.observation;
            assert!(reproduces(fault.behaviour(), observation, report.model), "{name}");
            assert!(!reproduces(Behaviour::default(), observation, report.model), "{name}");
            let verdicts = judge_observation(observation, report.model);
            assert!(verdicts.iter().any(|verdict| !verdict.conforms()), "{name}");
        }
        is_small(name, report.findings[0].size);
    }
    // Few sequences may leave the choice between several faults open.
    assert!(named * 10 > reports.len() * 9, "{named} of {} are named", reports.len());
}

#[test]
fn what_conforms_is_let_pass() {
    let conforming = CATALOGUE.iter().filter(|fault| fault.conforms);
    let names: Vec<_> = conforming
        .map(|fault| {
            let (result, report) = Planted::Fault(fault).check(&options());
            assert!(result.right() && report.conforms(), "{report:#?}");
            fault.name
        })
        .collect();
    assert_eq!(names, ["head-mean", "ranks-not-rounded", "ties-to-highest"]);
}

/// What is declared and not so shows by the kind of its finding, and by nothing else.
#[test]
fn every_breach_is_caught_and_named_by_its_kind() {
    assert!(Promise::ALL.into_iter().all(|promise| BREACHES.iter().any(|b| b.promise == Some(promise))));
    for (planted, result, report) in caught(BREACHES.iter().map(Planted::Breach).collect()) {
        let (name, Planted::Breach(breach)) = (planted.name(), planted) else { panic!("a fault") };
        assert_eq!(result.diagnosis, [name], "{report}");
        for finding in &report.findings {
            assert!(finding.diagnosis.is_empty(), "{name}: {report}");
            assert!(shows(finding, breach), "{name}: {report}");
        }
        // What fails from time to time is shrunk by few tries.
        if !breach.kinds.contains(&"not repeatable") {
            is_small(name, report.findings[0].size);
        }
    }
}

#[test]
fn names_are_unique_and_rows_of_the_spec_can_be_found() {
    let mut names: Vec<_> = Planted::all().into_iter().map(Planted::name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), CATALOGUE.len() + BREACHES.len());
    for row in [
        "D1", "D3", "D4", "D5", "D6", "D7", "D8", "D9", "D11", "D12", "D13", "D14", "D17", "D18", "D19",
        "D20", "D21", "D22", "D23",
    ] {
        assert!(!Fault::find_all(row).is_empty(), "{row}");
    }
    for fault in CATALOGUE {
        assert_ne!(fault.behaviour(), Behaviour::default(), "{}", fault.name);
    }
}

/// Reports are issues or pull requests of public repositories, and the command lists them.
#[test]
fn public_reports_are_listed() {
    let is_number = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
    let mut reports = 0;
    for fault in CATALOGUE.iter().filter(|fault| !fault.seen.is_empty()) {
        for report in fault.seen.split(", ") {
            let (repository, number) = report.split_once('#').unwrap_or_default();
            let is_repository = repository
                .split_once('/')
                .is_some_and(|(owner, name)| !owner.is_empty() && !name.is_empty() && !name.contains('/'));
            assert!(is_repository && is_number(number), "{}: {report}", fault.name);
            reports += 1;
        }
    }
    assert!(reports > 20, "{reports} reports");
    let output =
        std::process::Command::new(env!("CARGO_BIN_EXE_doublecheck")).args(["faults", "--list"]).output();
    let listed = String::from_utf8(output.unwrap().stdout).unwrap();
    for planted in Planted::all() {
        let entry = format!("{} ({})\n  {}\n", planted.name(), planted.row(), planted.sentence());
        assert!(listed.contains(&entry), "{entry}");
    }
    let crowded = fault("crowded-bin-cut").seen;
    assert!(listed.contains(&format!("  reported: {crowded}\n")), "{listed}");
}

fn fault(name: &str) -> &'static Fault {
    CATALOGUE.iter().find(|fault| fault.name == name).unwrap()
}

/// What makes the command fail.
#[test]
fn a_fault_that_is_missed_or_misnamed_is_not_right() {
    let (result, _) = Planted::Fault(fault("one-key-more")).check(&options_of(30));
    assert!(result.right() && result.diagnosis == ["one-key-more"], "{result:?}");
    assert!(FaultResult { diagnosis: Vec::new(), ..result.clone() }.right());
    for diagnosis in [vec!["one-key-fewer"], vec!["one-key-fewer", "one-key-more"]] {
        assert!(!FaultResult { diagnosis, ..result.clone() }.right());
    }
    assert!(!FaultResult { caught_by: None, ..result }.right());
}

#[test]
fn two_faults_at_once_are_both_named() {
    let pairs = [
        ["first-layers-channels", "dense-when-short"],
        ["kv-heads-tiled", "attention-mask-ignored"],
        ["fills-up", "nan-in-empty-rows"],
        ["half-away-from-zero", "one-key-more"],
    ];
    // One of them, unless tests run in full.
    for names in pairs.into_iter().take(if is_long() { 4 } else { 1 }) {
        let mut subject = Faulty::new(&names.map(fault));
        let report = check(&mut subject, &options());
        let mut named: Vec<_> =
            report.findings.iter().flat_map(|finding| finding.diagnosis.clone()).collect();
        named.sort_unstable();
        named.dedup();
        let mut expected = names.to_vec();
        expected.sort_unstable();
        assert_eq!(named, expected, "{names:?}: {report:#?}");
        assert!(report.explained);
    }
}

#[test]
fn declared_divergences_are_no_findings_and_others_still_are() {
    let known = vec![fault("dense-when-short")];
    let options = Options { known, ..options() };
    let report = check(&mut Faulty::new(&[fault("dense-when-short")]), &options);
    assert!(report.conforms() && report.known > 0, "{report:#?}");
    let mut both = Faulty::new(&[fault("dense-when-short"), fault("kv-heads-tiled")]);
    let report = check(&mut both, &options);
    assert!(!report.findings.is_empty());
    assert!(report.findings.iter().all(|finding| finding.diagnosis != ["dense-when-short"]), "{report:#?}");
}

/// A subject that differs from the SPEC in a way that no entry of the catalogue has.
struct SelectsLastKey(Reference);

impl Subject for SelectsLastKey {
    fn name(&self) -> String {
        "selects the last key".into()
    }

    fn rounding_model(&self) -> doublecheck::cases::RoundingModel {
        self.0.rounding_model()
    }

    fn configure(
        &mut self,
        instance: &doublecheck::cases::Instance,
    ) -> Result<(), doublecheck::cases::NoAnswer> {
        self.0.configure(instance)
    }

    fn call(
        &mut self,
        call: &doublecheck::cases::Call,
    ) -> Result<doublecheck::cases::Answer, doublecheck::cases::NoAnswer> {
        let mut answer = self.0.call(call)?;
        answer.output = None;
        let dims = call.inputs.dims();
        for row in dims.rows() {
            if !answer.mask.attends(row.0, row.1, row.2, dims.keys - 1) {
                answer.mask.add(row, [dims.keys - 1]);
            }
        }
        Ok(answer)
    }
}

#[test]
fn what_no_entry_explains_is_called_unknown() {
    let report = check(&mut SelectsLastKey(Reference::default()), &options());
    assert!(!report.findings.is_empty());
    assert!(report.findings.iter().all(|finding| finding.diagnosis.is_empty()), "{report:#?}");
    assert!(report.findings.iter().all(|finding| finding.sentence.starts_with("Unknown")), "{report:#?}");
}

/// The reference, but for one thing.
struct Twisted<F> {
    reference: Reference,
    refused: Option<NoAnswer>,
    lacks: BTreeSet<Feature>,
    twist: F,
}

impl<F: FnMut(&mut Option<NoAnswer>, Result<Answer, NoAnswer>) -> Result<Answer, NoAnswer>> Subject
    for Twisted<F>
{
    fn name(&self) -> String {
        "twisted".into()
    }

    fn rounding_model(&self) -> doublecheck::cases::RoundingModel {
        self.reference.rounding_model()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { lacks: self.lacks.clone(), ..Capabilities::default() }
    }

    fn configure(&mut self, instance: &Instance) -> Result<(), NoAnswer> {
        self.refused = None;
        self.reference.configure(instance)
    }

    fn call(&mut self, call: &Call) -> Result<Answer, NoAnswer> {
        let answer = self.reference.call(call);
        (self.twist)(&mut self.refused, answer)
    }
}

fn twisted<F>(twist: F) -> Twisted<F> {
    Twisted { reference: Reference::default(), refused: None, lacks: BTreeSet::new(), twist }
}

#[test]
fn an_instance_that_stays_refused_is_found() {
    // A refusal of one call must not refuse the calls after it.
    let mut subject = twisted(|refused: &mut Option<NoAnswer>, answer: Result<Answer, NoAnswer>| {
        match (&*refused, answer) {
            (Some(refused), _) => Err(refused.clone()),
            (None, Err(error)) => {
                *refused = Some(error.clone());
                Err(error)
            }
            (None, answer) => answer,
        }
    });
    let report = check(&mut subject, &Options { cases: 1000, ..Options::default() });
    assert!(!report.conforms(), "{report:#?}");
}

#[test]
fn a_crash_is_not_named_as_an_answer() {
    let mut subject = twisted(|_: &mut Option<NoAnswer>, answer: Result<Answer, NoAnswer>| match answer {
        Err(NoAnswer::Refused(doublecheck::algorithm::Error::LabelRange(_))) => {
            Err(NoAnswer::Failed("SIGFPE".into()))
        }
        answer => answer,
    });
    let report = check(&mut subject, &options());
    assert!(!report.findings.is_empty());
    assert!(report.findings.iter().all(|finding| finding.diagnosis.is_empty()), "{report:#?}");
    let known = vec![fault("label-range-accepted")];
    assert!(!check(&mut subject, &Options { known, ..options() }).conforms());
}

#[test]
fn breaking_on_rows_before_an_early_out_is_d6_alone() {
    struct Breaks(Reference, Option<Instance>);
    impl Subject for Breaks {
        fn name(&self) -> String {
            "breaks".into()
        }
        fn rounding_model(&self) -> doublecheck::cases::RoundingModel {
            self.0.rounding_model()
        }
        fn configure(&mut self, instance: &Instance) -> Result<(), NoAnswer> {
            self.1 = Some(instance.clone());
            self.0.configure(instance)
        }
        fn call(&mut self, call: &Call) -> Result<Answer, NoAnswer> {
            let instance = self.1.as_ref().unwrap();
            let dense = instance.dense_layers.contains(&call.layer);
            let rows = instance.channels(call.layer).map(|order| order.rows().len());
            if !dense && rows.is_ok_and(|rows| rows != call.inputs.dims().heads) {
                return Err(NoAnswer::Failed("broke".into()));
            }
            self.0.call(call)
        }
    }
    let report = check(&mut Breaks(Reference::default(), None), &options());
    let named: Vec<_> = report.findings.iter().flat_map(|finding| finding.diagnosis.clone()).collect();
    assert_eq!(named, ["rows-per-head-only"], "{report:#?}");
}

#[test]
fn a_declared_fault_that_is_not_there_does_not_hide_the_cause() {
    let known = vec![fault("dense-when-short")];
    let report = check(&mut Faulty::new(&[fault("first-layers-channels")]), &Options { known, ..options() });
    let named: Vec<_> = report.findings.iter().flat_map(|finding| finding.diagnosis.clone()).collect();
    assert_eq!(named, ["first-layers-channels"], "{report:#?}");
}

#[test]
fn both_sides_of_a_row_may_be_declared() {
    for side in ["heads-summed", "heads-alone"] {
        let known = [Fault::find_all("D1"), Fault::find_all("D3")].concat();
        let mut subject = Faulty::new(&[fault(side), fault("dense-when-short")]);
        let report = check(&mut subject, &Options { known, ..options() });
        assert!(report.conforms(), "{side}: {report:#?}");
    }
}

#[test]
fn an_empty_check_does_not_conform() {
    let report = check(&mut Reference::default(), &Options { cases: 0, ..Options::default() });
    assert_eq!(report.exit_code(), 2);
}

#[test]
fn an_output_is_left_out_only_by_those_that_say_so() {
    let twist = |_: &mut Option<NoAnswer>, answer: Result<Answer, NoAnswer>| {
        answer.map(|answer| Answer { output: None, ..answer })
    };
    let report = check(&mut twisted(twist), &options());
    assert!(report.findings[0].explanations[0].contains("holds no output"), "{report:#?}");
    let mut subject = Twisted { lacks: [Feature::Output].into(), ..twisted(twist) };
    let report = check(&mut subject, &options());
    assert!(report.conforms() && report.answered > 300 && report.outputs == 0, "{report:#?}");
    assert!(report.left_out.contains_key("output"));
}

/// The reference with a fault that depends on the calls before; it selects only.
struct Stateful<F> {
    reference: Reference,
    seen: Vec<Call>,
    fault: F,
}

impl<F: Fn(&[Call], &Call) -> Call> Subject for Stateful<F> {
    fn name(&self) -> String {
        "stateful".into()
    }

    fn rounding_model(&self) -> doublecheck::cases::RoundingModel {
        self.reference.rounding_model()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { lacks: [Feature::Output].into(), ..Capabilities::default() }
    }

    fn configure(&mut self, instance: &Instance) -> Result<(), NoAnswer> {
        self.seen.clear();
        self.reference.configure(instance)
    }

    fn call(&mut self, call: &Call) -> Result<Answer, NoAnswer> {
        let asked = (self.fault)(&self.seen, call);
        self.seen.push(call.clone());
        self.reference.call(&asked).map(|answer| Answer { output: None, ..answer })
    }
}

/// The call with other keys in its label cache.
fn with_keys(call: &Call, k: ndarray::Array4<f32>) -> Call {
    let parts = doublecheck::algorithm::InputParts { k, ..call.inputs.parts().clone() };
    Call { inputs: doublecheck::algorithm::Inputs::new(parts).unwrap().into(), ..call.clone() }
}

fn of_layer<'a>(seen: &'a [Call], call: &'a Call) -> impl DoubleEndedIterator<Item = &'a Call> {
    seen.iter().filter(|other| other.layer == call.layer)
}

/// The second call of a layer and shape gets the first one's answer.
fn memo_by_shape(seen: &[Call], call: &Call) -> Call {
    let same = |other: &&Call| other.inputs.dims() == call.inputs.dims();
    of_layer(seen, call).find(same).unwrap_or(call).clone()
}

/// Labels of a position are kept until a call is shorter than the one before.
fn kept_on_restart(seen: &[Call], call: &Call) -> Call {
    let mut cached: Option<ndarray::Array4<f32>> = None;
    for call in of_layer(seen, call).chain([call]) {
        let mut k = call.inputs.parts().k.clone();
        if let Some(old) = cached.filter(|old| old.dim().0 == k.dim().0 && old.dim().2 <= k.dim().2) {
            k.slice_mut(ndarray::s![.., .., ..old.dim().2, ..]).assign(&old);
        }
        cached = Some(k);
    }
    with_keys(call, cached.unwrap())
}

/// Of a later chunk only the first key is labelled.
fn first_key_of_a_chunk(seen: &[Call], call: &Call) -> Call {
    let dims = call.inputs.dims();
    let Some(old) = of_layer(seen, call).next_back().map(|old| old.inputs.dims().keys) else {
        return call.clone();
    };
    let mut k = call.inputs.parts().k.clone();
    if old < dims.keys && dims.queries > 1 {
        k.slice_mut(ndarray::s![.., .., old + 1.., ..]).fill(0.0);
    }
    with_keys(call, k)
}

/// A request's slot is its index in the batch: a batch of another size finds the old keys there.
fn batch_slots(seen: &[Call], call: &Call) -> Call {
    let mut k = call.inputs.parts().k.clone();
    if let Some(old) = of_layer(seen, call).next_back() {
        let old = &old.inputs.parts().k;
        if old.dim().0 != k.dim().0 && old.dim().2 == k.dim().2 {
            let slots = ndarray::s![..old.dim().0.min(k.dim().0), .., .., ..];
            k.slice_mut(slots).assign(&old.slice(slots));
        }
    }
    with_keys(call, k)
}

/// These are written without the catalogue, which names them all the same.
#[test]
fn faults_that_need_later_calls_are_caught() {
    type Fault = fn(&[Call], &Call) -> Call;
    let faults: [(&str, Fault); 4] = [
        ("answers-by-shape", memo_by_shape),
        ("labels-kept-on-restart", kept_on_restart),
        ("first-key-of-a-chunk", first_key_of_a_chunk),
        ("batch-slots", batch_slots),
    ];
    for (name, fault) in faults {
        let mut subject = Stateful { reference: Reference::default(), seen: Vec::new(), fault };
        let report = check(&mut subject, &options_of(1000));
        let finding = report.findings.first().unwrap_or_else(|| panic!("{name}: {report}"));
        assert!(report.findings.iter().all(|finding| finding.diagnosis == [name]), "{name}: {report}");
        assert!(finding.after <= 1000 && finding.size.calls == 2, "{name}: {report}");
        // It always shows: nothing of it depends on when it is asked.
        assert!(report.findings.iter().all(|finding| finding.kind != "not repeatable"), "{name}: {report}");
        assert_eq!(report.repeats.diverged, 0, "{name}");
    }
}

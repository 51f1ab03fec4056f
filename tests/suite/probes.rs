//! Probes (`diagnosis::probes`): every behaviour of the catalogue that does not conform deviates in some wire, nothing that
//! conforms does, whatever its types, domain, rules and stages, and what cannot be measured is said.

use crate::support::is_long;
use doublecheck::algorithm::{HeadMode, Mask, Rules, Storage};
use doublecheck::behaviours::{Asked, CATALOGUE, Fault};
use doublecheck::cases::domain::domains_from_json;
use doublecheck::cases::{
    Answer, Attended, Call, Capabilities, Feature, Given, Instance, NoAnswer, RoundingModel, ScoresCall,
    SelectionCall, Stages, Takes, profiles, rule_names,
};
use doublecheck::diagnosis::probes::{MOST_TIME, Probed, State, probe};
use doublecheck::reports::probes::brief;
use doublecheck::runner::check::probe_only;
use doublecheck::subjects::{Engine, Faulty, Reference};
use doublecheck::{Options, Subject, check};
use rayon::prelude::*;
use serde_json::json;

/// A subject that says of itself what it is told to.
struct Declared<S> {
    inner: S,
    capabilities: Capabilities,
}

impl<S: Subject> Subject for Declared<S> {
    fn name(&self) -> String {
        self.inner.name()
    }

    fn rounding_model(&self) -> RoundingModel {
        self.inner.rounding_model()
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }

    fn configure(&mut self, instance: &Instance) -> Result<(), NoAnswer> {
        self.inner.configure(instance)
    }

    fn call(&mut self, call: &Call) -> Result<Answer, NoAnswer> {
        self.inner.call(call)
    }

    fn select(&mut self, call: &ScoresCall) -> Result<Mask, NoAnswer> {
        self.inner.select(call)
    }

    fn attend(&mut self, call: &SelectionCall) -> Result<Attended, NoAnswer> {
        self.inner.attend(call)
    }
}

fn probed(subject: &mut dyn Subject) -> Probed {
    let capabilities = subject.capabilities();
    probe(subject, &capabilities, &Vec::new(), MOST_TIME)
}

/// Probes a subject under some capabilities, and expects nothing. The wires that were not measured, with what they need.
fn silent(inner: impl Subject, capabilities: Capabilities) -> Vec<(&'static str, Vec<String>)> {
    let mut subject = Declared { inner, capabilities };
    let probed = probed(&mut subject);
    assert!(probed.conforms(), "{:?}: {}", subject.capabilities(), brief(&probed));
    assert!(probed.questions > 0 && probed.wires.iter().any(|wire| wire.state == State::AsExpected));
    let left = probed.in_state(State::NotMeasured);
    left.map(|wire| (wire.wire, wire.needs.clone())).collect()
}

fn domain(json: serde_json::Value) -> Capabilities {
    Capabilities { domains: domains_from_json(&json).unwrap(), ..Capabilities::default() }
}

#[test]
fn every_fault_of_the_catalogue_deviates_in_some_wire() {
    let lines = CATALOGUE.par_iter().map(|fault| {
        let probed = probed(&mut Faulty::new(&[fault]));
        assert_eq!(probed.conforms(), fault.conforms, "{}: {}", fault.name, brief(&probed));
        let wires: Vec<_> = probed.deviating().iter().map(|wire| wire.wire).collect();
        let first = probed.deviating().first().map_or("conforms".into(), |wire| wire.sentence());
        let (first, others) = (first.chars().take(150).collect::<String>(), wires.len().saturating_sub(1));
        format!(
            "{}: {first}{}",
            fault.name,
            if others > 0 { format!(" [and {others} more]") } else { String::new() }
        )
    });
    let lines: Vec<String> = lines.collect();
    assert_eq!(lines.iter().filter(|line| line.ends_with(": conforms")).count(), 3);
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn what_conforms_is_silent_in_every_type_rule_and_domain() {
    let all = Capabilities::default;
    assert_eq!(silent(Reference::default(), Capabilities { ragged: true, ..all() }), []);
    silent(Engine::default(), Engine::default().capabilities());
    for dtype in Storage::ALL {
        silent(Reference::default(), Capabilities { dtypes: vec![dtype], ..all() });
        let engine = Engine::default();
        silent(Engine::default(), Capabilities { dtypes: vec![dtype], ..engine.capabilities() });
        for fault in CATALOGUE.iter().filter(|fault| fault.conforms) {
            let inner = Faulty::new(&[fault]);
            silent(Faulty::new(&[fault]), Capabilities { dtypes: vec![dtype], ..inner.capabilities() });
        }
    }
    let names = rule_names::NAMES.par_iter().map(|name| Capabilities {
        rules: vec![rule_names::find(name).unwrap()],
        heads: HeadMode::EVERY.to_vec(),
        ..all()
    });
    let modes = HeadMode::EVERY.par_iter().map(|&mode| Capabilities { heads: vec![mode], ..all() });
    let mut asked: Vec<Asked> = CATALOGUE.iter().map(|fault| fault.asked).collect();
    asked.dedup();
    let asked = asked.into_par_iter().map(|asked| Capabilities {
        rules: asked.rules(),
        heads: asked.heads().to_vec(),
        ..all()
    });
    let profiles = profiles::NAMES.par_iter().map(|name| profiles::find(name).unwrap());
    let every = names.chain(modes).chain(asked).chain(profiles);
    every.for_each(|capabilities| {
        silent(Reference::default(), capabilities);
    });
}

#[test]
fn what_a_domain_does_not_let_one_measure_is_said() {
    let fixed =
        json!({"head_dim": [128], "label_channels": [16], "queries": [1], "heavy_size": {"multiple_of": 16}});
    let left = silent(Reference::default(), domain(fixed));
    assert!(!left.is_empty() && left.iter().all(|(_, needs)| !needs.is_empty()), "{left:?}");
    let one_head = silent(Reference::default(), domain(json!({"heads": [1], "batch": [1], "queries": [1]})));
    let needs = |wire: &str| one_head.iter().find(|left| left.0 == wire).map(|left| left.1.join(", "));
    assert_eq!(needs("KV head of the ranking").as_deref(), Some("two heads"));
    let domains = [
        json!({"kv_heads": [1]}),
        json!({"kv_heads": [1], "group": [8], "label_channels": [32], "label_bits": [16], "batch": [1]}),
        json!({"keys": {"from": 1024, "multiple_of": 64}, "heavy_size": [64, 128], "queries": [1]}),
        json!({"head_dim": [64, 80, 96], "value_dim": "d", "dtype": ["bf16"], "batch": {"from": 2, "to": 8}}),
        json!({"heads": [32], "kv_heads": [8], "head_dim": [64], "group_factor": [4], "label_bits": [4]}),
        json!([{"heads": [4], "kv_heads": [4]}, {"heads": [8], "kv_heads": [2], "queries": [1]}]),
    ];
    let engine = Engine::default().capabilities().lacks;
    // A third of the domains and a sixth of the features, unless tests run in full.
    let part = |of: usize| if is_long() { 1 } else { of };
    domains.into_par_iter().step_by(part(3)).for_each(|json| {
        silent(Reference::default(), domain(json.clone()));
        silent(Engine::default(), Capabilities { lacks: engine.clone(), ..domain(json) });
    });
    Feature::ALL.into_par_iter().step_by(part(6)).for_each(|feature| {
        let lacks = [feature].into();
        silent(Reference::default(), Capabilities { lacks, ..Capabilities::default() });
    });
    let lacks = Feature::ALL.into_iter().filter(|feature| *feature != Feature::NotQuantised).collect();
    let left = silent(Reference::default(), Capabilities { lacks, ..Capabilities::default() });
    assert!(left.len() > 10, "{left:?}");
}

#[test]
fn one_stage_alone_is_measured() {
    let of = |takes, gives: &[Given]| Capabilities {
        stages: Stages::new(takes, Some(gives)).unwrap(),
        ..Capabilities::default()
    };
    let scores = of(Takes::Scores, &[Given::Selected]);
    assert_eq!(silent(Reference::default(), scores.clone()), []);
    let selection = of(Takes::Selection, &[Given::Output, Given::Lse]);
    assert_eq!(silent(Reference::default(), selection), []);

    /// A top-k that leaves out the last key of every row.
    #[derive(Default)]
    struct LosesLast(Reference);
    impl Subject for LosesLast {
        fn name(&self) -> String {
            "loses the last key".into()
        }

        fn select(&mut self, call: &ScoresCall) -> Result<Mask, NoAnswer> {
            let mut mask = self.0.select(call)?;
            let dims = call.dims();
            dims.rows().for_each(|row| mask.remove(row, dims.keys - 1));
            Ok(mask)
        }
    }
    let mut subject = Declared { inner: LosesLast::default(), capabilities: scores };
    let probed = probed(&mut subject);
    assert_eq!(
        probed.deviating()[0].sentence(),
        "candidates: the last key is never selected; expected every key, n = 1 to 4097"
    );
    let report = check(&mut subject, &Options { cases: 0, ..Options::default() });
    assert!(report.exit_code() > 0 && report.probed > 0 && !report.findings.is_empty(), "{report}");
}

#[test]
fn a_deviating_wire_is_a_finding_unless_it_is_declared() {
    let fault = Fault::find_all("kv-heads-tiled");
    let options = Options { cases: 1, largest_keys: 0, ..Options::default() };
    let report = check(&mut Faulty::new(&fault), &options);
    assert_eq!(report.exit_code(), 1, "{report}");
    assert!(report.findings.iter().any(|finding| finding.diagnosis == ["kv-heads-tiled"]), "{report}");
    let text = report.to_string();
    assert!(text.contains("head i reads KV head i mod hk; expected head i reads KV head i / g"), "{text}");

    let declared = Options { known: fault.clone(), ..options.clone() };
    let report = check(&mut Faulty::new(&fault), &declared);
    assert_eq!(report.exit_code(), 0, "{report}");
    let probes = report.probes.unwrap();
    assert!(probes.in_state(State::Declared).count() > 0 && probes.conforms());

    let without = check(&mut Faulty::new(&fault), &Options { probes: false, cases: 0, ..options.clone() });
    assert!(without.probes.is_none() && without.findings.is_empty());

    let alone = probe_only(&mut Faulty::new(&fault), &options);
    let cause = alone.probes.as_ref().and_then(|probed| probed.cause.clone());
    assert!(cause.is_some_and(|cause| cause.contains("kv-heads-tiled")) && alone.exit_code() == 1);
    assert_eq!(probe_only(&mut Reference::default(), &options).exit_code(), 0);
}

/// What wires say, by the fault that they should name.
#[test]
fn wires_are_told_with_the_subjects_numbers() {
    for (fault, expected) in [
        ("kv-heads-divided", "head i reads KV head i / hk, at most hk − 1"),
        ("one-key-more", "min(H + 1, candidates)"),
        ("one-key-fewer", "count: min(H − 1, candidates)"),
        ("symmetric-int8", "symmetric int8"),
        ("fills-up", "excluded keys are selected where candidates are too few"),
        ("heads-summed", "i / g, summed over all heads"),
        ("least-important-channels", "the last r of a row"),
        ("not-quantised", "not quantised"),
        ("half-away-from-zero", "half steps are rounded away from zero"),
        ("codes-scored", "codes are scored in place of labels"),
        ("quantised-per-head", "one range serves all positions of a head"),
        ("unscaled-scores", "(1), r = 4, d = 16"),
        ("head-dim-factor", "(1/√d), r = 4, d = 16"),
        ("attention-mask-ignored", "keys are ranked without A"),
        ("attention-mask-of-first-entry", "A of entry 0 is used for every entry"),
        ("previous-selected-again", "keys of P stay candidates and take places in H"),
        ("window-of-first-query", "query i sees keys up to n − m;"),
        ("sees-next-key", "query i sees keys up to n − m + i + 1"),
        ("misses-own-key", "query i sees keys up to n − m + i − 1"),
        ("labels-written-once", "the label of a position is written once and never renewed"),
        ("first-key-of-a-chunk", "only the first gets a label"),
        ("batch-slots", "a batch of another size than in the call before finds that call's labels"),
        ("ties-to-highest", "highest first"),
    ] {
        let probed = probed(&mut Faulty::new(&Fault::find_all(fault)));
        let all: Vec<String> = probed.wires.iter().map(|wire| wire.sentence()).collect();
        assert!(all.iter().any(|told| told.contains(expected)), "{fault}: {}", all.join("\n"));
    }
}

#[test]
fn rules_of_a_subject_are_named() {
    let rules = rule_names::find("sglang-v2").unwrap();
    let capabilities = Capabilities { rules: vec![Rules::default(), rules], ..Capabilities::default() };
    let mut subject = Declared { inner: Reference::default(), capabilities };
    let probed = probed(&mut subject);
    let wire = probed.wires.iter().find(|wire| wire.wire == "rules").unwrap();
    assert!(wire.measured.contains("per-head") && wire.measured.contains("forced"), "{}", wire.measured);
}

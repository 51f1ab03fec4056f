//! Checks that are split: all shares together ask what one check asks, each question once, and their reports are put together again.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};

use doublecheck::cases::{Answer, Call, Capabilities, Instance, NoAnswer, RoundingModel};
use doublecheck::report::merge;
use doublecheck::subjects::Reference;
use doublecheck::{Options, Shard, Subject, check};
use serde_json::Value;

/// The reference, and which calls of several entries of one length it was asked: others are asked as well to see whether
/// companions and room change an answer.
#[derive(Default)]
struct Counting {
    reference: Reference,
    asked: BTreeSet<String>,
}

impl Subject for Counting {
    fn name(&self) -> String {
        "counting".into()
    }

    fn rounding_model(&self) -> RoundingModel {
        self.reference.rounding_model()
    }

    fn capabilities(&self) -> Capabilities {
        self.reference.capabilities()
    }

    fn configure(&mut self, instance: &Instance) -> Result<(), NoAnswer> {
        self.reference.configure(instance)
    }

    fn call(&mut self, call: &Call) -> Result<Answer, NoAnswer> {
        let parts = call.inputs.parts();
        if call.inputs.dims().batch > 1 && call.inputs.lengths().is_none() {
            self.asked.insert(format!("{} {:?}", call.layer, (&parts.q, &parts.k, &parts.v)));
        }
        self.reference.call(call)
    }
}

#[test]
fn shares_ask_each_question_once() {
    let asked = |shard: Shard| {
        let mut subject = Counting::default();
        let options = Options { cases: 200, probes: false, shard, ..Options::default() };
        let report = check(&mut subject, &options);
        assert!(report.conforms(), "{report}");
        (subject.asked, [report.sequences, report.large, report.calls])
    };
    let (whole, counts) = asked(Shard::WHOLE);
    let (mut all, mut in_shares, mut sum) = (BTreeSet::new(), 0, [0; 3]);
    for number in ["1/3", "2/3", "3/3"] {
        let (own, counts) = asked(number.parse().unwrap());
        in_shares += own.len();
        all.extend(own);
        sum.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
    }
    assert_eq!((sum[0], sum[1], sum), (200, 12, counts));
    assert!(whole.len() > 100 && in_shares == all.len(), "{} {in_shares}", whole.len());
    assert!(whole == all, "{} {}", whole.difference(&all).count(), all.difference(&whole).count());
}

fn run(arguments: &[&str], folder: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_doublecheck"));
    command.args(arguments).current_dir(folder).output().unwrap()
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// What is counted must be the same as in one check; a finding keeps its name.
#[test]
fn reports_of_shares_are_put_together() {
    let folder = tempfile::tempdir().unwrap();
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/golden/small");
    let mut counted = 0;
    for what in [
        &["--subject", "engine", "--cases", "90"][..],
        &["--subject", "engine", "--sessions", "40"],
        &["--fault", "kv-heads-tiled", "--cases", "90"],
    ] {
        let common = ["--goldens", golden, "--no-times", "--json"];
        let of = |extra: &[&str]| {
            let found = run(&[&["check"], what, &common, extra].concat(), folder.path());
            assert!(matches!(found.status.code(), Some(0 | 1)), "{}", String::from_utf8_lossy(&found.stderr));
            found.status.code()
        };
        let code = of(&["whole.json"]);
        for (file, shard) in [("1.json", "1/3"), ("2.json", "2/3"), ("3.json", "3/3")] {
            of(&[file, "--shard", shard]);
            assert_eq!(read(&folder.path().join(file))["shard"]["number"], file[..1].parse::<u64>().unwrap());
        }
        let merged = run(&["merge", "2.json", "3.json", "1.json", "--json", "merged.json"], folder.path());
        let text = String::from_utf8(merged.stdout).unwrap();
        assert_eq!(merged.status.code(), code, "{text}");
        assert!(text.contains("merged: 3 of 3 shares of seed 0"), "{text}");
        let [whole, merged] = ["whole.json", "merged.json"].map(|file| read(&folder.path().join(file)));
        let fields = [
            "sequences",
            "large",
            "goldens",
            "calls",
            "answered",
            "outputs",
            "conforming",
            "refused",
            "diverged",
        ];
        for field in fields {
            assert_eq!(merged[field], whole[field], "{what:?} {field}");
            counted += whole[field].as_u64().unwrap();
        }
        assert_eq!(merged["sessions"], whole["sessions"], "{what:?}");
        assert_eq!(merged["coverage"], whole["coverage"], "{what:?}");
        let mut rows = whole["by_size"].as_array().unwrap().clone();
        rows.sort_by_key(|row| row["keys"].as_u64());
        assert_eq!(merged["by_size"].as_array().unwrap(), &rows, "{what:?}");
        assert_eq!(merged["sharpness"]["rows"], whole["sharpness"]["rows"], "{what:?}");
        let names = |report: &Value| {
            let findings = report["findings"].as_array().unwrap().iter();
            findings
                .map(|finding| (finding["diagnosis"].clone(), finding["sequences"].clone()))
                .collect::<Vec<_>>()
        };
        assert_eq!(names(&merged), names(&whole), "{what:?}");
    }
    assert!(counted > 500, "{counted}");
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let check = |file: &str, extra: &[&str]| {
        let found =
            run(&[&["check", "--no-goldens", "--cases", "6", "--json", file], extra].concat(), folder.path());
        assert!(found.status.success(), "{}", String::from_utf8_lossy(&found.stderr));
    };
    check("1.json", &["--shard", "1/3"]);
    check("2.json", &["--shard", "2/3"]);
    check("of2.json", &["--shard", "2/2"]);
    check("seed.json", &["--shard", "3/3", "--seed", "1"]);
    check("whole.json", &[]);
    check("other.json", &["--shard", "2/3", "--subject", "engine"]);
    std::fs::write(folder.path().join("no.json"), "{}").unwrap();
    let merge = |files: &[&str]| {
        let found = run(&[&["merge"], files].concat(), folder.path());
        let said = [found.stdout, found.stderr].concat();
        (found.status.code().unwrap(), String::from_utf8(said).unwrap())
    };
    for (files, problem) in [
        (&["1.json", "1.json"][..], "1.json: share 1/3: found for the second time, expected once"),
        (&["1.json", "of2.json"], "of2.json: found another seed or another number of shares"),
        (&["1.json", "seed.json"], "seed.json: found another seed or another number of shares"),
        (&["1.json", "whole.json"], "whole.json: found another seed or another number of shares"),
        (&["whole.json", "whole.json"], "whole.json: seed: found 0 for the second time"),
        (&["1.json", "other.json"], "other.json: subject: found \"engine\", expected \"reference\""),
        (&["no.json"], "no.json: seed: found none, expected a report of `check --json`"),
        (&["1.json", "absent.json"], "absent.json"),
        (&["1.json", "2.json"], "shares: found 2 of 3, expected 3/3 as well"),
    ] {
        let (code, said) = merge(files);
        assert!(code == 2 && said.contains(problem), "{files:?}: {code} {said}");
    }
    // What there is is told all the same.
    assert!(merge(&["1.json", "2.json"]).1.contains("4 of 4 sequences conform"));
    for shard in ["0/3", "4/3", "x"] {
        let found = run(&["check", "--shard", shard], folder.path());
        let said = String::from_utf8(found.stderr).unwrap();
        assert!(found.status.code() == Some(2) && said.contains("3/16 for the third of 16"), "{said}");
    }
}

/// A report says what asked and on which machine; a merged one names each machine. Shares of several builds are not one check, and a
/// report whose lists hold anything else than objects is refused.
#[test]
fn reports_name_build_and_machine_and_are_put_together_by_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = |file: &str| folder.path().join(file);
    for (file, shard) in [("1.json", "1/2"), ("2.json", "2/2")] {
        let arguments = ["check", "--no-goldens", "--cases", "6", "--shard", shard, "--json", file];
        let found = run(&arguments, folder.path());
        assert!(found.status.success(), "{}", String::from_utf8_lossy(&found.stderr));
        let text = String::from_utf8(found.stdout).unwrap();
        let report = read(&path(file));
        let machine = report["machine"].as_str().unwrap();
        assert!(machine.contains(" core") && machine.contains(std::env::consts::ARCH), "{machine}");
        assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
        let said = format!("asked by: doublecheck {} on {machine}\n", env!("CARGO_PKG_VERSION"));
        assert!(report["commit"].is_null() && text.contains(&said), "{text}");
    }
    let own = read(&path("1.json"))["machine"].as_str().unwrap().to_owned();
    let whole = read(&path("2.json"));
    let merge = |field: &str, value: Value| {
        let mut other = whole.clone();
        other[field] = value;
        std::fs::write(path("other.json"), other.to_string()).unwrap();
        let found = run(&["merge", "1.json", "other.json", "--json", "merged.json"], folder.path());
        let said = [found.stdout, found.stderr].concat();
        (found.status.code().unwrap(), String::from_utf8(said).unwrap())
    };
    for machine in [own.as_str(), "another, 2 cores, plan9 mips"] {
        assert_eq!(merge("machine", machine.into()).0, 0);
        let expected = if machine == own { own.clone() } else { format!("{own}; {machine}") };
        assert_eq!(read(&path("merged.json"))["machine"], expected);
    }
    for (field, value, problem) in [
        (
            "commit",
            Value::from("0b57ac1e"),
            "other.json: commit: found \"0b57ac1e\", expected null as in 1.json",
        ),
        ("findings", serde_json::json!([5]), "other.json: findings: found 5, expected objects"),
        (
            "declarations",
            serde_json::json!([{}, "x"]),
            "other.json: declarations: found \"x\", expected objects",
        ),
    ] {
        let (code, said) = merge(field, value);
        assert!(code == 2 && said.contains(problem), "{code} {said}");
    }
}

/// What counts as one with a finding is told once for each kind, as `check` tells it.
#[test]
fn what_is_like_a_finding_is_told_of_all_shares() {
    let report = |seed: u64, keys: u64, more: Value| {
        let finding = serde_json::json!({
            "kind": "wrong keys", "sentence": "Unknown.", "diagnosis": [], "stage": "selection", "sequences": 2,
            "size": {"keys": keys}, "more": more,
        });
        let report = serde_json::json!({"seed": seed, "subject": "s", "findings": [finding]});
        (format!("{seed}.json"), report.as_object().unwrap().clone())
    };
    let like = |kind: &str, sequences: u64, explanation: &str| serde_json::json!({"kind": kind, "sequences": sequences, "explanation": explanation});
    let first = serde_json::json!([like("mask not full", 1, "one key")]);
    let second =
        serde_json::json!([like("output out of bounds", 3, "NaN"), like("mask not full", 4, "two keys")]);
    let merged = merge(vec![report(0, 5, first), report(1, 3, second), report(2, 9, Value::Null)]).unwrap();
    let told =
        "  2 more like it: output out of bounds (in 3 of all: NaN); mask not full (in 5 of all: two keys)\n";
    assert!(merged.render().contains(told), "{}", merged.render());
    assert_eq!(merged.report["findings"][0]["sequences"], 6);
}

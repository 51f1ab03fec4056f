//! What CI systems read: JUnit XML that a parser takes, Markdown in which nothing of others is markup, and badges; each says what the
//! JSON of the check says.

use std::process::Command;
use std::sync::OnceLock;

use doublecheck::behaviours::Fault;
use doublecheck::cases::{Answer, Call, Instance, NoAnswer, RoundingModel};
use doublecheck::report::{Declaration, Declared, Excuse};
use doublecheck::reports::badge::Badge;
use doublecheck::reports::record::Record;
use doublecheck::reports::{junit, markdown};
use doublecheck::subjects::{Faulty, Reference};
use doublecheck::{Options, Report, Subject, check};
use serde_json::{Value, json};

use crate::running::{run, stderr};
use crate::support::markup::assert_holds;

/// Breaks, and has in what it says whatever XML, Markdown and terminals may take for their own.
struct Hostile;

const SAID: &str = "<script>&\"']]>\u{1b}[31m\u{0}\u{fffe}\u{ffff}\u{202e}`|*_[x](y)\r\nend";

impl Subject for Hostile {
    fn name(&self) -> String {
        SAID.into()
    }

    fn rounding_model(&self) -> RoundingModel {
        RoundingModel::REFERENCE
    }

    fn configure(&mut self, _instance: &Instance) -> Result<(), NoAnswer> {
        Ok(())
    }

    fn call(&mut self, _call: &Call) -> Result<Answer, NoAnswer> {
        Err(NoAnswer::Failed(SAID.into()))
    }
}

fn faulty() -> Faulty {
    Faulty::new(&[Fault::find_all("first-layers-channels")[0]])
}

fn declared(name: &str) -> Declaration {
    let why = Excuse { reason: Some("soon <fixed>".into()), link: None };
    Declaration::new(Declared::Fault(name.into()), why).unwrap()
}

/// Records of reports, made once, with the exit codes of these.
fn records() -> &'static [(u8, Record)] {
    static RECORDS: OnceLock<Vec<(u8, Record)>> = OnceLock::new();
    RECORDS.get_or_init(|| {
        reports().iter().map(|report| (report.exit_code(), Record::of(report).unwrap())).collect()
    })
}

/// Of each outcome one: conforms, diverges, is not answered, diverges as known, a known fault is gone, ended early, could not be asked.
fn reports() -> Vec<Report> {
    let options = |cases| Options { cases, ..Options::default() };
    let known = |name: &str| Options {
        known: Fault::find_all(name),
        declarations: vec![declared(name)],
        strict_known: true,
        ..options(60)
    };
    let mut of_finding = check(&mut faulty(), &options(60));
    of_finding.findings[0].file = Some("out/finding-1.safetensors".into());
    let mut stopped = check(&mut Reference::default(), &options(5));
    (stopped.stopped, stopped.date) = (Some(SAID.into()), Some("2026-01-31T09:05:00Z".into()));
    let mut unusable = check(&mut Reference::default(), &options(5));
    unusable.bad_inputs.push(SAID.into());
    vec![
        check(&mut Reference::default(), &options(40)),
        of_finding,
        check(&mut Hostile, &options(5)),
        check(&mut faulty(), &known("D4")),
        check(&mut Reference::default(), &known("D3")),
        stopped,
        unusable,
    ]
}

/// Reads files with Python's parser: the counts of the suite, and each case with what became of it.
const PARSE: &str = r#"
import json, sys, xml.etree.ElementTree as tree
found = []
for path in sys.argv[1:]:
    root = tree.parse(path).getroot()
    assert root.tag == "testsuites" and [child.tag for child in root] == ["testsuite"]
    cases = [[case.get("classname"), case.get("name"), [(result.tag, result.get("message"), result.text) for result in case]] for case in root[0]]
    found.append({"counts": dict(root.attrib), "suite": dict(root[0].attrib), "cases": cases})
print(json.dumps(found))
"#;

fn parsed(texts: &[String]) -> Vec<Value> {
    let folder = tempfile::tempdir().unwrap();
    let paths: Vec<_> = (0..texts.len()).map(|index| folder.path().join(format!("{index}.xml"))).collect();
    paths.iter().zip(texts).for_each(|(path, text)| std::fs::write(path, text).unwrap());
    let output = Command::new("python3").args(["-c", PARSE]).args(&paths).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The cases of a file in which something is found.
fn cases_with(file: &Value, tag: &str) -> Vec<(String, String)> {
    let cases = file["cases"].as_array().unwrap().iter();
    let found = cases.filter_map(|case| {
        let result = case[2].as_array().unwrap().first()?;
        (result[0] == tag).then(|| {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            (format!("{}/{}", text(&case[0]), text(&case[1])), text(&result[1]) + "\n" + &text(&result[2]))
        })
    });
    found.collect()
}

#[test]
fn junit_is_xml_that_says_what_the_report_says() {
    let records = records();
    let files = parsed(&records.iter().map(|(_, record)| junit::render(record)).collect::<Vec<_>>());
    for (file, (code, _)) in files.iter().zip(records) {
        let (suite, counts) = (&file["suite"], &file["counts"]);
        assert_eq!(suite["tests"], file["cases"].as_array().unwrap().len().to_string());
        for (tag, name) in [("failure", "failures"), ("error", "errors"), ("skipped", "skipped")] {
            assert_eq!(suite[name], cases_with(file, tag).len().to_string());
            assert_eq!(suite[name], counts[name]);
        }
        // A file fails where the check does, and only there.
        let fails = !cases_with(file, "failure").is_empty() || !cases_with(file, "error").is_empty();
        assert_eq!(fails, *code != 0, "{file:#}");
    }
    let failures: Vec<_> = files.iter().map(|file| cases_with(file, "failure")).collect();
    let finding = &records[1].1.findings[0];
    assert_eq!(failures[1][0].0, "selection/finding 1: wrong keys");
    assert!(failures[1][0].1.starts_with(finding.sentence.as_str()));
    assert_holds(&failures[1][0].1, &["counterexample: out/finding-1.safetensors", &finding.explanations[0]]);
    assert_eq!(failures[2][0].0, "answers/finding 1: gave no usable answer");
    assert_holds(&failures[2][0].1, &[r#"<script>&"']]>\u{1b}[31m\u{0}\u{fffe}\u{ffff}\u{202e}`|*_[x](y)"#]);
    assert!(
        failures[3].is_empty()
            && cases_with(&files[3], "skipped")
                .iter()
                .any(|case| case.0 == "known/D4" && case.1.starts_with("known: soon <fixed>"))
    );
    assert_eq!(failures[4][0].0, "known/D3");
    assert_eq!(cases_with(&files[5], "error")[0].0, "check/stopped early");
    assert_eq!(files[5]["suite"]["timestamp"], "2026-01-31T09:05:00");
    assert_eq!(cases_with(&files[6], "error")[0].0, "check/bad input");
    // Lacks are skipped.
    let skipped = cases_with(&files[0], "skipped");
    assert!(!skipped.is_empty());
    for name in records[0].1.left_out.keys() {
        assert!(skipped.iter().any(|case| case.0 == format!("lacks/{name}")), "{name}");
    }
}

#[test]
fn a_record_comes_to_the_same_as_its_report() {
    for (code, record) in records() {
        assert_eq!(record.exit_code(), *code, "{record:?}");
    }
    let codes: Vec<u8> = records().iter().map(|(code, _)| *code).collect();
    assert_eq!(codes, [0, 1, 1, 0, 1, 1, 2]);
}

#[test]
fn the_summary_holds_each_finding_and_no_markup_of_others() {
    let texts: Vec<String> = records().iter().map(|(_, record)| markdown::render(record)).collect();
    assert_holds(&texts[0], &["## ✓ reference: conforms", " sequences conform.\n", "| ✓ conforms, "]);
    let named = "The channels of the first layer that the instance sees are used for every later layer. (first-layers-channels, D4)";
    let parts = [
        "✗ diverges: finding 1 |",
        "### Finding 1: wrong keys",
        "`out/finding-1.safetensors`",
        "* condition: ",
        named,
    ];
    assert_holds(&texts[1], &parts);
    assert!(
        !texts[2].contains('<') && !texts[2].contains(|c: char| c.is_control() && c != '\n'),
        "{}",
        texts[2]
    );
    assert_holds(&texts[2], &[r"&lt;script&gt;&amp;", r"\`\|\*\_\[x\](y)"]);
    assert_holds(&texts[3], &["diverges only as known", "diverge as declared"]);
    assert_holds(&texts[4], &["**fails:** known, but did not occur: D3"]);
    assert_holds(&texts[5], &["## ✗", "stopped early: "]);
    assert_holds(&texts[6], &["## ! reference: 1 input could not be used", "bad input: "]);
}

#[test]
fn a_badge_has_what_shields_io_reads() {
    let badges: Vec<Value> =
        records().iter().map(|(_, record)| serde_json::to_value(Badge::of(record)).unwrap()).collect();
    let badge = |message: &str, color: &str, is_error: bool| json!({"schemaVersion": 1, "label": "doublecheck", "message": message, "color": color, "isError": is_error});
    assert_eq!(
        badges,
        [
            badge("conforms", "brightgreen", false),
            badge("diverges: 1 finding", "red", false),
            badge("diverges: 1 finding", "red", false),
            badge("diverges only as known", "brightgreen", false),
            badge("1 known divergence did not occur", "red", false),
            badge("ended early", "red", false),
            badge("1 input could not be used", "lightgrey", true),
        ]
    );
}

#[test]
fn the_command_writes_them_and_checks_first_that_it_can() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (out, junit, markdown, badge) =
        (path("out"), path("junit.xml"), path("summary.md"), path("badge.json"));
    let arguments = ["check", "--fault", "D4", "--cases", "40", "--no-goldens", "--no-causes", "--out", &out];
    let output =
        run(&[&arguments[..], &["--junit", &junit, "--markdown", &markdown, "--badge", &badge]].concat());
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let read = |path: &str| std::fs::read_to_string(path).unwrap();
    let example = format!("{out}/finding-1.safetensors");
    assert_holds(&read(&junit), &["<failure ", &format!("counterexample: {example}")]);
    assert_holds(&read(&markdown), &["### Finding 1", &format!("`{example}`")]);
    assert_holds(&read(&badge), &["\"schemaVersion\": 1", "\"message\": \"diverges: "]);
    // Nothing is left beside them.
    let names = std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(names, 4);
    for option in ["--junit", "--markdown", "--badge"] {
        let output = run(&["check", "--cases", "1", option, "no/such/folder/file"]);
        assert_eq!(output.status.code(), Some(2));
        assert_holds(&stderr(&output), &["cannot write no/such/folder/file"]);
    }
}

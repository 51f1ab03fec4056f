//! `action.yml`: its steps are those of a composite action of GitHub, everything they name is there, actions of others are pinned, and
//! the shell code of the check does what the action promises, run with the environment that GitHub would set.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::markup::assert_holds;

/// What the file may hold: a text, fields, or a list.
#[derive(Debug, Clone, PartialEq)]
enum Yaml {
    Text(String),
    Fields(Vec<(String, Yaml)>),
    List(Vec<Yaml>),
}

impl Yaml {
    fn get(&self, name: &str) -> Option<&Yaml> {
        let Yaml::Fields(fields) = self else { panic!("{self:?} has no fields") };
        fields.iter().find(|(field, _)| field == name).map(|(_, value)| value)
    }

    fn at(&self, name: &str) -> &Yaml {
        self.get(name).unwrap_or_else(|| panic!("no {name} in {self:?}"))
    }

    fn text(&self) -> &str {
        let Yaml::Text(text) = self else { panic!("{self:?} is no text") };
        text
    }

    fn list(&self) -> &[Yaml] {
        let Yaml::List(list) = self else { panic!("{self:?} is no list") };
        list
    }

    fn fields(&self) -> &[(String, Yaml)] {
        let Yaml::Fields(fields) = self else { panic!("{self:?} has no fields") };
        fields
    }
}

/// A line that is not empty: how far it is indented, and what it says.
type Line<'a> = (usize, &'a str);

fn lines(text: &str) -> Vec<Line<'_>> {
    text.lines().map(|line| (line.len() - line.trim_start().len(), line.trim_end())).collect()
}

/// Reads the part of YAML that the file uses: fields, lists of fields, plain and double-quoted texts of one line, `|` blocks and
/// comments. Panics for anything else.
fn block(lines: &[Line], at: &mut usize, indent: usize) -> Yaml {
    let (mut fields, mut list) = (Vec::new(), Vec::new());
    while let Some(&(found, line)) = lines.get(*at) {
        let body = line.trim_start();
        if body.is_empty() || body.starts_with('#') {
            *at += 1;
            continue;
        }
        if found < indent {
            break;
        }
        assert_eq!(found, indent, "{line}");
        if body.starts_with("- ") {
            // The first field stands behind the hyphen, the others below it.
            let mut inner: Vec<Line> = vec![(indent + 2, &line[indent + 2..])];
            *at += 1;
            while let Some(&(found, line)) =
                lines.get(*at).filter(|(found, line)| *found > indent || line.is_empty())
            {
                inner.push((found, line));
                *at += 1;
            }
            inner[0].1 = inner[0].1.trim_start();
            list.push(block(&inner, &mut 0, indent + 2));
            continue;
        }
        let (name, value) = body.split_once(':').unwrap_or_else(|| panic!("{line}"));
        *at += 1;
        let value = match value.split(" #").next().unwrap().trim() {
            "|" => Yaml::Text(literal(lines, at, indent)),
            "" => {
                let inner =
                    lines[*at..].iter().find(|(_, line)| !line.is_empty()).map_or(0, |(inner, _)| *inner);
                assert!(inner > indent, "{line}: nothing in it");
                block(lines, at, inner)
            }
            text => Yaml::Text(plain(text)),
        };
        assert!(fields.iter().all(|(other, _)| other != name), "{name} twice");
        fields.push((name.to_owned(), value));
    }
    if list.is_empty() { Yaml::Fields(fields) } else { Yaml::List(list) }
}

fn literal(lines: &[Line], at: &mut usize, indent: usize) -> String {
    let inner = lines[*at].0;
    let mut text = String::new();
    while let Some((found, line)) = lines.get(*at).filter(|(found, line)| *found > indent || line.is_empty())
    {
        assert!(line.is_empty() || *found >= inner, "{line}");
        text += line.get(inner..).unwrap_or_default();
        text.push('\n');
        *at += 1;
    }
    text
}

fn plain(text: &str) -> String {
    match text.strip_prefix('"') {
        Some(rest) => rest.strip_suffix('"').unwrap().to_owned(),
        None => {
            // What YAML would read as something else.
            assert!(
                !text.contains(": ")
                    && !text.starts_with(['&', '*', '!', '%', '@', '`', '{', '[', '>', '\'']),
                "{text}"
            );
            text.to_owned()
        }
    }
}

fn action() -> (String, Yaml) {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("action.yml")).unwrap();
    let action = block(&lines(&text), &mut 0, 0);
    (text, action)
}

fn step<'a>(action: &'a Yaml, name: &str) -> &'a Yaml {
    let steps = action.at("runs").at("steps").list();
    steps.iter().find(|step| step.at("name").text() == name).unwrap_or_else(|| panic!("no step {name}"))
}

/// Names behind `prefix` in a text.
fn named<'a>(text: &'a str, prefix: &str) -> Vec<&'a str> {
    let name = |rest: &'a str| {
        rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '_').next().unwrap()
    };
    text.split(prefix).skip(1).map(name).collect()
}

#[test]
fn the_steps_are_those_of_a_composite_action() {
    let (text, action) = action();
    assert_eq!(action.at("runs").at("using").text(), "composite");
    let steps = action.at("runs").at("steps").list();
    let names: Vec<_> = steps.iter().map(|step| step.at("name").text()).collect();
    assert_eq!(names, ["Build", "Check", "Upload the report", "Verdict"]);
    for step in steps {
        match (step.get("run"), step.get("uses")) {
            (Some(run), None) => {
                assert_eq!(step.at("shell").text(), "bash");
                // Values come by the environment: what stands in one is never code.
                assert!(!run.text().contains("${{"), "{}", run.text());
            }
            (None, Some(uses)) => {
                let (_, commit) = uses.text().split_once('@').unwrap();
                assert!(commit.len() == 40 && commit.chars().all(|c| c.is_ascii_hexdigit()), "{commit}");
                let line = text.lines().find(|line| line.contains(commit)).unwrap();
                assert!(line.contains(" # v"), "{line} names no version");
            }
            other => panic!("{other:?}"),
        }
    }
    let inputs: Vec<&str> = action.at("inputs").fields().iter().map(|(name, _)| name.as_str()).collect();
    let used = named(&text, "inputs.");
    assert!(used.len() > 5 && used.iter().all(|name| inputs.contains(name)), "{used:?} of {inputs:?}");
    assert!(inputs.iter().all(|name| used.contains(name)), "{inputs:?}");
    let body = step(&action, "Check").at("run").text();
    let outputs = named(&text, "steps.check.outputs.");
    assert!(outputs.contains(&"exit-code") && outputs.contains(&"badge"));
    for output in outputs {
        assert!(body.contains(&format!("echo \"{output}=")), "{output}");
    }
}

struct Ran {
    folder: tempfile::TempDir,
    summary: String,
    outputs: BTreeMap<String, String>,
}

/// Runs the code of the check as GitHub does, with these inputs.
fn ran(inputs: &[(&str, &str)]) -> Ran {
    let (_, action) = action();
    let step = step(&action, "Check");
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let input = |name: &str| -> String {
        match inputs.iter().find(|(input, _)| *input == name) {
            Some((_, value)) => (*value).to_owned(),
            None => action.at("inputs").at(name).at("default").text().to_owned(),
        }
    };
    let mut command = Command::new("bash");
    command
        .args(["--noprofile", "--norc", "-eo", "pipefail", "-c", step.at("run").text()])
        .current_dir(folder.path());
    for (name, value) in step.at("env").fields() {
        let named = named(value.text(), "inputs.");
        command.env(name, input(named[0]));
    }
    let (summary, outputs) = (path("summary"), path("outputs"));
    command.env("GITHUB_STEP_SUMMARY", &summary).env("GITHUB_OUTPUT", &outputs);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let outputs = std::fs::read_to_string(outputs).unwrap();
    let outputs = outputs.lines().map(|line| line.split_once('=').unwrap());
    let outputs = outputs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let summary = std::fs::read_to_string(summary).unwrap_or_default();
    Ran { folder, summary, outputs }
}

/// Cargo builds examples beside the tests.
fn example() -> PathBuf {
    std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("examples/subject")
}

const PROGRAM: (&str, &str) = ("doublecheck", env!("CARGO_BIN_EXE_doublecheck"));

#[test]
fn the_check_of_the_action_reports_what_it_finds() {
    let example = example();
    let good = format!("'{}'", example.display());
    let few = ("arguments", "--cases 4  --no-goldens\n--largest-keys 0");
    let conforming = ran(&[PROGRAM, ("command", &good), few]);
    assert_eq!(conforming.outputs["exit-code"], "0");
    assert_holds(&conforming.summary, &["## ✓ the reference in a process", "conforms", "4 of 4 sequences"]);
    let report = conforming.folder.path().join("doublecheck-report");
    for name in ["report.json", "report.html", "junit.xml", "summary.md", "badge.json"] {
        assert!(report.join(name).is_file(), "{name}");
    }
    assert_eq!(conforming.outputs["badge"], "doublecheck-report/badge.json");
    let badge = std::fs::read_to_string(conforming.folder.path().join(&conforming.outputs["badge"])).unwrap();
    assert_holds(&badge, &["\"color\": \"brightgreen\""]);

    let bad = format!("'{}' wrong-shape", example.display());
    let known = conforming.folder.path().join("my known.toml");
    std::fs::write(&known, "[[known]]\nfault = \"D4\"\nreason = \"not there\"\n").unwrap();
    let inputs =
        [PROGRAM, ("command", &bad), few, ("known", known.to_str().unwrap()), ("report", "my report")];
    let diverging = ran(&inputs);
    assert_eq!(diverging.outputs["exit-code"], "1");
    assert_holds(
        &diverging.summary,
        &["## ✗ ", "### Finding 1: gave no usable answer", "known, but did not occur: D4"],
    );
    assert!(diverging.folder.path().join("my report/finding-1.safetensors").is_file());
    assert_eq!(diverging.outputs["badge"], "my report/badge.json");
}

#[test]
fn what_cannot_be_asked_leaves_no_summary_and_says_so() {
    // A shell that took the command for its own code would leave a file.
    let unusable =
        ran(&[PROGRAM, ("command", "$(touch here) exit 3"), ("arguments", "--cases 2 --no-goldens")]);
    assert_eq!(unusable.outputs["exit-code"], "2");
    assert!(unusable.summary.is_empty() && !unusable.outputs.contains_key("badge"));
    let (_, action) = action();
    let verdict = step(&action, "Verdict").at("run").text();
    for code in ["0", "1", "2"] {
        let ended = Command::new("bash").args(["-e", "-c", verdict]).env("CODE", code).status().unwrap();
        assert_eq!(ended.code().unwrap().to_string(), code);
    }
}

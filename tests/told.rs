//! What `check` tells of implementations that share no code with this crate (`tests/faults_independent/`): the cause of each
//! fault in a sentence, which a person has judged by `key.toml`. The record is `golden/records/independent.txt`, the judgements
//! `golden/records/independent-judged.txt`: a line for each fault, with the sentence that was judged. A sentence without a
//! judgement fails, and so does one that was judged wrong. Engines of `tests/faults_sessions/` are asked in sessions.
//!
//! Searches end by the clock, so the implementations are checked, and the record is written, with `DOUBLECHECK_LONG` alone. That needs
//! Python with numpy; where either is missing the test is counted as ignored, and a line says so.

mod support;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use doublecheck::runner::check::{Report, check_sessions};
use doublecheck::runner::shrink::Limits;
use doublecheck::subjects::Process;
use doublecheck::{Options, check};
use libtest_mimic::{Arguments, Failed, Trial};
use rayon::prelude::*;

/// Random sequences of each; probes come on top.
const CASES: usize = 40;

fn main() {
    let numpy = Command::new("python3").args(["-c", "import numpy"]).output();
    let numpy = numpy.is_ok_and(|output| output.status.success());
    let without_numpy = (!numpy).then_some("no numpy for python3");
    let missing = match (numpy, support::is_long()) {
        (true, true) => None,
        (false, _) => Some("no numpy for python3"),
        (true, false) => Some("only with DOUBLECHECK_LONG"),
    };
    let tests = [
        ("independent_faults_are_told", missing),
        ("faults_of_engines_are_caught_in_sessions", without_numpy),
    ];
    for (name, missing) in tests {
        if let Some(missing) = missing {
            eprintln!("ignored: {name}: {missing}");
        }
    }
    let trials = vec![
        Trial::test("the_record_is_judged", the_record_is_judged),
        Trial::test("independent_faults_are_told", independent_faults_are_told)
            .with_ignored_flag(missing.is_some()),
        Trial::test("faults_of_engines_are_caught_in_sessions", faults_of_engines_are_caught_in_sessions)
            .with_ignored_flag(without_numpy.is_some()),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// What one check told.
struct Told {
    fault: String,
    after: Option<usize>,
    findings: usize,
    shrunk: String,
    sentence: String,
}

/// Judgements by fault and sentence.
fn judged() -> Result<BTreeMap<(String, String), String>, Failed> {
    let text = std::fs::read_to_string(project("golden/records/independent-judged.txt"))?;
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let parts = lines.map(|line| {
        let mut parts = line.splitn(3, '\t').map(str::to_owned);
        match (parts.next(), parts.next(), parts.next()) {
            (Some(fault), Some(judgement), Some(sentence)) => Ok(((fault, sentence), judgement)),
            _ => Err(Failed::from(format!("not three columns: {line}"))),
        }
    });
    parts.collect()
}

/// What each line of the record is judged.
fn judgements(told: &[(String, String)]) -> Result<BTreeMap<String, usize>, Failed> {
    let judged = judged()?;
    let mut counts = BTreeMap::new();
    let mut problems = Vec::new();
    for (fault, sentence) in told {
        match judged.get(&(fault.clone(), sentence.clone())).map(String::as_str) {
            Some(known @ ("right" | "incomplete" | "unknown")) => {
                *counts.entry(known.to_owned()).or_insert(0) += 1;
            }
            Some(other) => problems.push(format!("{fault}\t{other}\t{sentence}")),
            None => problems.push(format!("{fault}\tnot judged\t{sentence}")),
        }
    }
    if problems.is_empty() { Ok(counts) } else { Err(problems.join("\n").into()) }
}

fn the_record_is_judged() -> Result<(), Failed> {
    let record = std::fs::read_to_string(project("golden/records/independent.txt"))?;
    let lines = record.lines().filter_map(|line| line.strip_prefix("| "));
    let rows: Vec<(String, String)> = lines
        .filter_map(|line| {
            let cells: Vec<&str> = line.trim_end_matches(" |").split(" | ").map(str::trim).collect();
            Some((cells.first()?.to_string(), cells.get(4)?.to_string()))
        })
        .filter(|(fault, _)| fault != "fault" && !fault.starts_with('-'))
        .collect();
    assert!(!rows.is_empty(), "no rows");
    let counts = judgements(&rows)?;
    eprintln!("{counts:?} of {} in the record", rows.len());
    Ok(())
}

fn independent_faults_are_told() -> Result<(), Failed> {
    let key = std::fs::read_to_string(project("tests/faults_independent/key.toml"))?;
    let kinds = ["[fault.", "[ragged.", "[stage."];
    let name = |line| kinds.iter().find_map(|kind| str::strip_prefix(line, kind)?.strip_suffix(']'));
    let faults: Vec<&str> = key.lines().filter_map(name).collect();
    assert!(faults.len() > 110, "{} faults", faults.len());
    let told: Vec<Told> = faults.par_iter().map(|fault| told(fault)).collect();
    let missed: Vec<_> = told.iter().filter(|told| told.after.is_none()).map(|told| &told.fault).collect();
    std::fs::write(project("golden/records/independent.txt"), table(&told))?;
    let sentences: Vec<_> = told.iter().map(|told| (told.fault.clone(), told.sentence.clone())).collect();
    let counts = judgements(&sentences)?;
    eprintln!("{counts:?} of {}, not caught: {missed:?}", told.len());
    Ok(())
}

fn process(script: &str, name: &str) -> Process {
    let (python, script) = (project("python"), project(script));
    let command = format!("DOUBLECHECK_PYTHON='{}' python3 '{}' {name}", python.display(), script.display());
    Process::start(&command, Duration::from_secs(60)).unwrap()
}

/// Faults of real engines that calls alone let pass, each with the most steps and requests that show it, and what is told of it: a fault
/// by its name, anything else by its words.
fn faults_of_engines_are_caught_in_sessions() -> Result<(), Failed> {
    let engines = [
        ("SlotLabels", None),
        ("SlotKeptUnlessShorter", Some((4, 1, "keeps that one's labels, unless its first chunk is shorter"))),
        ("FirstOfLaterChunk", Some((3, 1, "after its first one only the first key gets labels"))),
        ("BatchOfAnotherSize", Some((3, 2, "ranks by that batch's labels in the places that both have"))),
        ("DraftTailKept", Some((4, 1, "stale-after-truncate"))),
        ("ShortestOfBatch", Some((2, 2, "by labels up to the length of the shortest"))),
    ];
    let problems: Vec<String> = engines
        .par_iter()
        .with_max_len(1)
        .filter_map(|&(name, shown)| {
            let mut subject = process("tests/faults_sessions/engine.py", name);
            let shrinking = Limits { time: Duration::MAX, tries: 600, ..Limits::default() };
            let options = Options { cases: 12, shrinking, ..Options::default() };
            let report = check_sessions(&mut subject, &options, &mut |_| {});
            let steps = report.sessions.as_ref().map_or(0, |sessions| sessions.steps);
            let is_right = match (shown, report.findings.as_slice()) {
                (None, []) => report.conforms() && steps > 200,
                (Some((most, requests, cause)), [finding, ..]) => {
                    let size = finding.size;
                    let is_small = size.calls <= most && size.requests.is_some_and(|count| count <= requests);
                    let is_named = finding.diagnosis.iter().any(|name| cause.contains(name));
                    let is_one = !finding.sentence.starts_with("One of");
                    is_small
                        && is_one
                        && finding.sentence.contains(cause)
                        && (is_named || finding.diagnosis.is_empty())
                }
                _ => false,
            };
            (!is_right).then(|| format!("{name}: {report}"))
        })
        .collect();
    if problems.is_empty() { Ok(()) } else { Err(problems.join("\n").into()) }
}

/// Checks one implementation.
fn told(fault: &str) -> Told {
    let mut subject = process("tests/faults_independent/run.py", fault);
    let report = check(
        &mut subject,
        &Options {
            cases: CASES,
            shrinking: Limits { time: Duration::from_secs(2), ..Limits::default() },
            shrinking_in_all: Some(Duration::from_secs(4)),
            ..Options::default()
        },
    );
    let first = report.findings.first();
    Told {
        fault: fault.to_owned(),
        after: first.map(|finding| finding.after),
        findings: report.findings.len(),
        shrunk: first.map(|finding| finding.size.to_string()).unwrap_or_default(),
        sentence: sentence(&report),
    }
}

/// What a person reads as the cause: proved ones, or else what was measured by a rule, or else that it is unknown.
fn sentence(report: &Report) -> String {
    let mut causes: Vec<String> = Vec::new();
    for finding in &report.findings {
        let told = finding.relation.as_ref();
        let relation = told.and_then(|told| Some((told.relation.clone()?, &told.others)));
        let cause = match relation {
            Some((relation, others)) if others.is_empty() => relation,
            Some((relation, others)) => format!("{relation} (or: {})", others.join("; ")),
            // How often it failed differs from run to run.
            None if finding.repeats.is_some() => without_numbers(&finding.sentence),
            None if finding.sentence.starts_with("Unknown") => match &finding.state {
                Some(needs) if needs.earlier_instances > 0 => format!("unknown; {}", needs.sentence),
                _ => continue,
            },
            None => finding.sentence.clone(),
        };
        if !causes.contains(&cause) {
            causes.push(cause);
        }
    }
    if causes.is_empty()
        && let Some(probed) = &report.probes
    {
        let rules =
            probed.deviating().into_iter().filter(|wire| wire.by_rule && wire.measured != wire.expected);
        causes = rules.map(|wire| format!("measured: {}", wire.sentence())).take(3).collect();
    }
    if causes.is_empty() { "unknown".into() } else { causes.join(" // ").replace(['|', '\n', '\t'], " ") }
}

/// Each number as N.
fn without_numbers(text: &str) -> String {
    let mut result = String::new();
    for character in text.chars() {
        match character.is_ascii_digit() {
            true if result.ends_with('N') => {}
            true => result.push('N'),
            false => result.push(character),
        }
    }
    result
}

fn table(told: &[Told]) -> String {
    let mut text = format!(
        "What `check` tells of the faulty implementations of tests/faults_independent: {CASES} random sequences and probes\n\
         each. Made by `DOUBLECHECK_LONG=1 cargo test --release --test told`; judged in independent-judged.txt.\n\n\
         | fault | after | findings | shrunk to | told |\n|---|---|---|---|---|\n"
    );
    for Told { fault, after, findings, shrunk, sentence } in told {
        let after = after.map_or("not caught".into(), |after| after.to_string());
        let _ = writeln!(text, "| {fault} | {after} | {findings} | {shrunk} | {sentence} |");
    }
    text
}

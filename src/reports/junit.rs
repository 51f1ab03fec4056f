//! A check as JUnit XML, as CI systems read it: a finding fails, with its sentence and counterexample; a part of the contract that was
//! judged without one passes; what is not offered, not asked, or known is skipped.

use std::fmt::Write;

use super::parts::{PARTS, Verdict, first_of};
use super::record::{Finding, Record};
use crate::visible;

/// One test case.
struct Case {
    class: &'static str,
    name: String,
    result: Outcome,
}

enum Outcome {
    Passed,
    Skipped(String),
    /// What is wrong in a line, of what kind it is, and all of it.
    Failed(String, String, String),
    /// The same of what could not be asked.
    Error(String),
}

/// The whole file. Times are 0 where they are left out.
pub fn render(record: &Record) -> String {
    let cases = cases(record);
    let count = |of: fn(&Outcome) -> bool| cases.iter().filter(|case| of(&case.result)).count();
    let counts = format!(
        "tests=\"{}\" failures=\"{}\" errors=\"{}\" skipped=\"{}\" time=\"{:.3}\"",
        cases.len(),
        count(|result| matches!(result, Outcome::Failed(..))),
        count(|result| matches!(result, Outcome::Error(_))),
        count(|result| matches!(result, Outcome::Skipped(_))),
        record.seconds,
    );
    let timestamp =
        record.date.as_ref().map(|date| format!(" timestamp={}", quoted(date.trim_end_matches('Z'))));
    let mut xml = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let _ = writeln!(xml, "<testsuites name=\"doublecheck check\" {counts}>");
    let _ = writeln!(
        xml,
        "  <testsuite name={}{} {counts}>",
        quoted(&record.subject),
        timestamp.unwrap_or_default()
    );
    for case in &cases {
        xml += &render_case(case);
    }
    xml + "  </testsuite>\n</testsuites>\n"
}

fn cases(record: &Record) -> Vec<Case> {
    let mut cases: Vec<Case> =
        record.findings.iter().enumerate().map(|(index, finding)| of_finding(index, finding)).collect();
    for part in PARTS {
        let result = match part.verdict(record) {
            Verdict::Conforms(_) => Outcome::Passed,
            // Its findings are cases of their own.
            Verdict::Diverges(_) => continue,
            Verdict::NotOffered => Outcome::Skipped("not offered".into()),
            Verdict::NotAsked => Outcome::Skipped("not asked".into()),
            Verdict::NotRecorded => Outcome::Skipped("not known: not every failure was looked into".into()),
        };
        cases.push(Case { class: "contract", name: format!("{}: {}", part.name, part.about), result });
    }
    for (name, goldens) in &record.left_out {
        let why = if *goldens == 0 {
            "not offered".into()
        } else {
            format!("not offered, {goldens} goldens left out")
        };
        cases.push(Case { class: "lacks", name: name.clone(), result: Outcome::Skipped(why) });
    }
    for declaration in &record.declarations {
        let result = match (declaration.occurs, record.is_stale()) {
            (true, _) => Outcome::Skipped(format!("known: {}", declaration.why)),
            (false, false) => Outcome::Skipped("known, and did not occur".into()),
            (false, true) => {
                let what = "declared as known, and did not occur".to_owned();
                Outcome::Failed(
                    what.clone(),
                    "stale".into(),
                    format!("{what}: {declaration}\n{}", declaration.why),
                )
            }
        };
        cases.push(Case { class: "known", name: declaration.to_string(), result });
    }
    if record.findings.is_empty() {
        cases.extend(record.deviating().map(|wire| {
            let what = format!("measured: {}; expected {}", wire.measured, wire.expected);
            Case {
                class: "wires",
                name: wire.wire.clone(),
                result: Outcome::Failed(what.clone(), "deviates".into(), what),
            }
        }));
    }
    let not_asked = record
        .stopped
        .iter()
        .map(|why| ("stopped early", why))
        .chain(record.bad_inputs.iter().map(|error| ("bad input", error)));
    cases.extend(not_asked.map(|(name, why)| Case {
        class: "check",
        name: name.into(),
        result: Outcome::Error(why.clone()),
    }));
    cases
}

fn of_finding(index: usize, finding: &Finding) -> Case {
    let result = match &finding.known {
        Some(why) => Outcome::Skipped(format!("known: {why}")),
        None => Outcome::Failed(finding.sentence.clone(), finding.kind.clone(), in_full(finding)),
    };
    Case { class: first_of(finding), name: format!("finding {}: {}", index + 1, finding.kind), result }
}

/// What a person needs to see of it.
fn in_full(finding: &Finding) -> String {
    let mut text = format!(
        "{}\nseen in {} sequences, shrunk to {}\n",
        finding.sentence,
        finding.sequences,
        finding.shrinking()
    );
    let lines =
        [("stage", finding.stage.as_deref()), ("condition", finding.condition()), ("state", finding.state())];
    for (name, line) in lines {
        let _ = line.map(|line| writeln!(text, "{name}: {line}"));
    }
    for line in &finding.explanations {
        let _ = writeln!(text, "{line}");
    }
    let _ = match &finding.file {
        Some(file) => writeln!(text, "counterexample: {file}"),
        None => writeln!(text, "counterexample: not written; --out DIR keeps it"),
    };
    text
}

fn render_case(case: &Case) -> String {
    let head =
        format!("    <testcase classname={} name={} time=\"0\"", quoted(case.class), quoted(&case.name));
    match &case.result {
        Outcome::Passed => format!("{head}/>\n"),
        Outcome::Skipped(why) => format!("{head}><skipped message={}/></testcase>\n", quoted(why)),
        Outcome::Error(why) => format!("{head}><error message={}/></testcase>\n", quoted(why)),
        Outcome::Failed(message, kind, text) => {
            let (message, kind) = (quoted(message), quoted(kind));
            format!(
                "{head}><failure message={message} type={kind}>{}</failure></testcase>\n",
                escaped(&visible::lines(text))
            )
        }
    }
}

/// An attribute's value, on one line.
fn quoted(text: &str) -> String {
    format!("\"{}\"", escaped(&visible::one_line(text)))
}

/// Text in which no character is markup, or one that XML 1.0 has not: beside controls, which are shown as escapes already, the last
/// two of the first plane.
fn escaped(text: &str) -> String {
    let mut xml = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => xml += "&amp;",
            '<' => xml += "&lt;",
            '>' => xml += "&gt;",
            '"' => xml += "&quot;",
            '\u{fffe}' | '\u{ffff}' => xml.extend(c.escape_unicode()),
            c => xml.push(c),
        }
    }
    xml
}

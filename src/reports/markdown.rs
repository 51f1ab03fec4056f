//! A check as Markdown, for the page of a CI job: the outcome, each finding, and what was judged of the contract.

use std::fmt::Write;

use super::parts::{PARTS, Verdict};
use super::record::{Finding, Record};
use crate::visible;

/// The whole summary.
pub fn render(record: &Record) -> String {
    let glyph = match record.exit_code() {
        0 => "✓",
        1 => "✗",
        _ => "!",
    };
    let mut text = format!("## {glyph} {}: {}\n\n", plain(&record.subject), plain(&record.outcome()));
    let (conforming, asked, of) = record.conforming();
    let _ = write!(text, "{conforming} of {asked} {of} conform");
    if record.known > 0 {
        let _ = write!(text, ", {} diverge as declared", record.known);
    }
    if record.diverged > 0 {
        let _ = write!(text, ", {} diverge", record.diverged);
    }
    if let Some(sessions) = record.sessions.filter(|sessions| of == "sequences" && sessions.asked > 0) {
        let _ = write!(text, "; of {} sessions {} conform", sessions.asked, sessions.conforming);
    }
    text += ".\n";
    for (index, finding) in record.findings.iter().enumerate() {
        text += &self::finding(index, finding);
    }
    if record.findings.is_empty() {
        for wire in record.deviating() {
            let _ = writeln!(
                text,
                "\n* wire {}: {}; expected {}",
                plain(&wire.wire),
                plain(&wire.measured),
                plain(&wire.expected)
            );
        }
    }
    for declaration in record.stale() {
        let fails = if record.is_stale() { "**fails:** " } else { "" };
        let _ = writeln!(text, "\n{fails}known, but did not occur: {}", plain(&declaration.to_string()));
    }
    for error in &record.bad_inputs {
        let _ = writeln!(text, "\nbad input: {}", plain(error));
    }
    if let Some(why) = &record.stopped {
        let _ = writeln!(text, "\nstopped early: {}", plain(why));
    }
    if record.interrupted {
        text += "\ninterrupted: this is what was found until then\n";
    }
    text + &parts(record)
}

fn finding(index: usize, finding: &Finding) -> String {
    let known = if finding.known.is_some() { " (known)" } else { "" };
    let mut text = format!(
        "\n### Finding {}: {}{known}\n\n{}\n\n",
        index + 1,
        plain(&finding.kind),
        plain(&finding.sentence)
    );
    let _ = writeln!(
        text,
        "* seen in {} sequences, shrunk to {}",
        finding.sequences,
        plain(&finding.shrinking())
    );
    let lines =
        [("stage", finding.stage.as_deref()), ("condition", finding.condition()), ("state", finding.state())];
    for (name, line) in lines {
        let _ = line.map(|line| writeln!(text, "* {name}: {}", plain(line)));
    }
    for line in &finding.explanations {
        let _ = writeln!(text, "* {}", plain(line));
    }
    if let Some(file) = &finding.file {
        let _ = writeln!(text, "* counterexample: {}", code(file));
    }
    if let Some(why) = &finding.known {
        let _ = writeln!(text, "* known: {}", plain(&why.to_string()));
    }
    text
}

/// What was judged of the contract.
fn parts(record: &Record) -> String {
    let mut text = String::from("\n| part of the contract | |\n|---|---|\n");
    for part in PARTS {
        let verdict = match part.verdict(record) {
            Verdict::Conforms(count) => format!("✓ conforms, {count} judged"),
            Verdict::Diverges(findings) => {
                let findings: Vec<_> = findings.iter().map(|index| (index + 1).to_string()).collect();
                format!("✗ diverges: finding {}", findings.join(", "))
            }
            Verdict::NotOffered => "not offered".into(),
            Verdict::NotAsked => "not asked".into(),
            Verdict::NotRecorded => "not known".into(),
        };
        let _ = writeln!(text, "| {}: {} | {verdict} |", part.name, plain(part.about));
    }
    let left_out: Vec<_> = record.left_out.keys().map(|name| code(name)).collect();
    if !left_out.is_empty() {
        let _ = writeln!(text, "\nNot offered, skipped: {}", left_out.join(", "));
    }
    text
}

/// Text of others on one line, in which nothing is markup.
fn plain(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in visible::one_line(text).chars() {
        match c {
            '&' => shown += "&amp;",
            '<' => shown += "&lt;",
            '>' => shown += "&gt;",
            '\\' | '`' | '*' | '_' | '[' | ']' | '#' | '|' | '~' | '@' | '!' => shown.extend(['\\', c]),
            c => shown.push(c),
        }
    }
    shown
}

/// The same as code: a fence longer than what is in it.
fn code(text: &str) -> String {
    let text = visible::one_line(text);
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest + 1);
    let space = if text.starts_with('`') || text.ends_with('`') { " " } else { "" };
    format!("{fence}{space}{text}{space}{fence}")
}

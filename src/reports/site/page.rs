//! The page of one version of an implementation: each check with its date and command, and its findings with their counterexamples.

use std::collections::BTreeSet;

use maud::{Markup, html};

use super::matrix::share;
use super::{COUNTEREXAMPLES, Cell, INDEX, Place, Shown, Version, anchor, cell, parts_header};
use crate::reports::html::{Status, counted, facts, page as whole, scroll};
use crate::reports::parts::{PARTS, Part, Verdict};
use crate::reports::quoted;
use crate::reports::record::{Finding, Record};

/// What is said of what a report does not hold.
const NOT_RECORDED: &str = "not recorded";

impl Version<'_> {
    /// The days of its checks, the first and the last.
    pub fn dates(&self) -> Option<String> {
        let days: BTreeSet<&str> =
            self.checks.iter().filter_map(|shown| shown.check.record.date.as_deref()).map(day).collect();
        match (days.first(), days.last()) {
            (Some(first), Some(last)) if first == last => Some((*first).to_owned()),
            (Some(first), Some(last)) => Some(format!("{first} to {last}")),
            _ => None,
        }
    }

    /// The devices of its checks.
    fn devices(&self) -> String {
        let devices: BTreeSet<String> =
            self.checks.iter().filter_map(|shown| shown.check.record.implementation().device).collect();
        if devices.is_empty() { NOT_RECORDED.into() } else { Vec::from_iter(devices).join(", ") }
    }
}

/// The day of a date and time.
fn day(date: &str) -> &str {
    date.split('T').next().unwrap_or(date)
}

/// The whole page.
pub fn page(version: &Version, all: &[Version]) -> String {
    let findings = version.findings().count();
    let open = version.findings().filter(|(_, finding)| finding.known.is_none()).count();
    let fails = version.checks.iter().filter(|shown| shown.check.record.exit_code() != 0).count();
    let (class, glyph, text) = match (fails, open) {
        (0, _) if findings > 0 => ("good", "✓", "diverges only as known".into()),
        (0, _) => ("good", "✓", "conforms".into()),
        (_, 0) => {
            ("unusable", "!", format!("{} failed without a finding", counted(fails, "check", "checks")))
        }
        _ => (
            "bad",
            "✗",
            format!(
                "diverges: {} in {} of {}",
                counted(open, "finding", "findings"),
                fails,
                counted(version.checks.len(), "check", "checks")
            ),
        ),
    };
    let body = html! {
        (summary(version, all))
        @for (place, shown) in version.checks.iter().enumerate() { (check(version, place, shown)) }
    };
    whole("site", &version.title(), env!("CARGO_PKG_VERSION"), &Status { class, glyph, text }, &body)
}

fn summary(version: &Version, all: &[Version]) -> Markup {
    let others: Vec<&Version> =
        all.iter().filter(|other| other.name == version.name && other.file != version.file).collect();
    let others = html! {
        @if others.is_empty() { "none was checked" }
        @for (index, other) in others.iter().enumerate() {
            @if index > 0 { ", " }
            a href=(other.file) { (other.version.as_deref().unwrap_or("no version")) }
        }
    };
    let lines = [
        ("Version", html! { (version.version.as_deref().unwrap_or(NOT_RECORDED)) }),
        ("Other versions", others),
        ("Devices", html! { (version.devices()) }),
        ("Dates", html! { (version.dates().unwrap_or(NOT_RECORDED.into())) }),
    ];
    let rows = html! {
        table.matrix {
            (parts_header("Check"))
            tbody {
                @for (place, shown) in version.checks.iter().enumerate() {
                    tr {
                        th scope="row" { a href=(format!("#{}", anchor(shown.check))) { (shown.check.name) } }
                        (cells(version, place, shown))
                    }
                }
            }
        }
    };
    html! {
        section #summary {
            h2 { "Checks" }
            p { a href=(INDEX) { "All implementations" } }
            (facts(&lines))
            (scroll(&rows))
        }
    }
}

/// What one check says of each part.
fn cells(version: &Version, place: usize, shown: &Shown) -> Markup {
    let cell = |part: &Part| {
        let (said, findings) = match part.verdict(&shown.check.record) {
            Verdict::Conforms(_) => (Cell::Conforms, Vec::new()),
            Verdict::Diverges(findings) => (Cell::Diverges(Vec::new()), findings),
            Verdict::NotOffered => (Cell::NotOffered, Vec::new()),
            Verdict::NotAsked => (Cell::NotAsked, Vec::new()),
            Verdict::NotRecorded => (Cell::NotRecorded, Vec::new()),
        };
        let places: Vec<Place> = findings.into_iter().map(|finding| (place, finding)).collect();
        cell(part, &said, version, &places, |place| format!("#{}", version.anchor(place)))
    };
    html! { @for part in &PARTS { (cell(part)) } }
}

fn check(version: &Version, place: usize, shown: &Shown) -> Markup {
    let record = &shown.check.record;
    let (conforming, asked, of) = record.conforming();
    let outcome = html! {
        @if record.findings.is_empty() { span.glyph.right aria-hidden="true" { "✓" } } @else { span.glyph.wrong aria-hidden="true" { "✗" } }
    };
    html! {
        section.check id=(anchor(shown.check)) {
            h2 { (outcome) (shown.check.name) }
            p.aside { (record.outcome()) }
            div.share { (share(conforming, asked, &format!(" {of} conform"))) }
            h3 { "Command" }
            @match &shown.check.command {
                Some(command) => pre.replay { code { (command) } },
                None => p.aside { (NOT_RECORDED) },
            }
            (facts(&lines(record)))
            div.long { (facts(&long(record))) }
            @for (index, finding) in record.findings.iter().enumerate() {
                (self::finding(version, (place, index), finding, shown.files[index].as_deref()))
            }
        }
    }
}

fn lines(record: &Record) -> Vec<(&'static str, Markup)> {
    let implementation = record.implementation();
    let calls = html! {
        (counted(record.sequences, "random sequence", "random sequences")) " (seed " (record.seed) "), " (record.large) " large, "
        (counted(record.goldens, "golden", "goldens")) ", " (counted(record.calls, "call", "calls"))
    };
    let mut lines = vec![
        ("Date", html! { (record.date.as_deref().unwrap_or(NOT_RECORDED)) }),
        ("Device", html! { (implementation.device.as_deref().unwrap_or(NOT_RECORDED)) }),
        ("doublecheck", html! { (record.version) }),
        ("Rounding model", html! { (record.rounding_model) }),
        ("Asked", calls),
    ];
    if let Some(stages) = &record.stages {
        lines.push(("Stages", html! { "takes " (stages.takes) ", gives " (stages.gives.join(", ")) }));
    }
    if let Some(sessions) = record.sessions.filter(|sessions| sessions.asked > 0) {
        lines.push((
            "Sessions",
            html! { (sessions.conforming) " of " (sessions.asked) " conform, " (sessions.steps) " steps" },
        ));
    }
    if record.known > 0 {
        lines.push(("Known", html! { (record.known) " diverge as declared" }));
    }
    if record.interrupted {
        lines.push(("Interrupted", html! { "this is what was found until then" }));
    }
    if let Some(why) = &record.stopped {
        lines.push(("Stopped early", html! { (why) }));
    }
    if !record.bad_inputs.is_empty() {
        lines.push(("Bad inputs", html! { (record.bad_inputs.join("; ")) }));
    }
    lines
}

/// What was asked, and what was not, in long lists.
fn long(record: &Record) -> Vec<(&'static str, Markup)> {
    let words = |names: Vec<String>| if names.is_empty() { "nothing".to_owned() } else { names.join(", ") };
    let left_out = words(record.left_out.keys().cloned().collect());
    let mut lines = vec![("Not offered", html! { (left_out) })];
    match &record.coverage {
        None => lines.push(("Parts asked", html! { (NOT_RECORDED) })),
        Some(coverage) => {
            let (asked, never): (Vec<_>, Vec<_>) = coverage.parts.iter().partition(|(_, count)| **count > 0);
            let asked = asked.into_iter().map(|(name, count)| format!("{name} ({count})")).collect();
            let never =
                never.into_iter().map(|(name, _)| name).filter(|name| !record.left_out.contains_key(*name));
            lines.insert(0, ("Parts asked, in so many sequences", html! { (words(asked)) }));
            lines.insert(1, ("Offered and never asked", html! { (words(never.cloned().collect())) }));
            if !coverage.domain.is_empty() {
                let domains: Vec<_> = coverage.domain.iter().map(ToString::to_string).collect();
                lines.push(("Domain", html! { code { (domains.join(" or ")) } }));
            }
        }
    }
    if record.findings.is_empty() {
        let wires: Vec<_> = record.deviating().map(|wire| wire.wire.clone()).collect();
        if !wires.is_empty() {
            lines.push(("Wires that deviate", html! { (wires.join(", ")) }));
        }
    }
    lines
}

fn finding(version: &Version, place: Place, finding: &Finding, file: Option<&str>) -> Markup {
    let sentences =
        [("Stage", finding.stage.as_deref()), ("Condition", finding.condition()), ("State", finding.state())];
    let more: Vec<String> =
        finding.more.iter().map(|like| format!("{} (in {})", like.kind, like.sequences)).collect();
    let counterexample = html! {
        @match (file, &finding.file) {
            (Some(file), _) => {
                a href=(format!("{COUNTEREXAMPLES}/{file}")) download { (file) }
                ", asked again by " code { "doublecheck replay " (quoted(file)) " --command …" }
            }
            (None, Some(_)) => "not kept",
            (None, None) => "not written",
        }
    };
    let mut lines = vec![
        ("Seen in", html! { (counted(finding.sequences, "sequence", "sequences")) }),
        ("Shrunk to", html! { (finding.shrinking()) }),
        ("Counterexample", counterexample),
    ];
    if !more.is_empty() {
        lines.push(("More like it", html! { (more.join(", ")) }));
    }
    html! {
        article.finding id=(version.anchor(place)) {
            h3 { span.glyph.wrong aria-hidden="true" { "✗" } (finding.kind) }
            div.diagnosis {
                p { strong { (finding.causes().join(", ")) ". " } (finding.sentence) }
                @for (name, sentence) in sentences {
                    @if let Some(sentence) = sentence { p { strong { (name) ". " } (sentence) } }
                }
                @if let Some(why) = &finding.known {
                    p {
                        strong { "Known. " } (why.reason.as_deref().unwrap_or_default())
                        @if let Some(link) = why.link.as_deref().filter(|link| link.starts_with("https://") || link.starts_with("http://")) {
                            " " a href=(link) rel="noreferrer" { (link) }
                        }
                    }
                }
            }
            ul.explanations { @for line in &finding.explanations { li { (line) } } }
            (facts(&lines))
        }
    }
}

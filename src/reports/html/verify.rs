//! The page of a verification: groups of cases, invariants, findings.

use maud::{Markup, html};

use super::{bad_inputs, counted, facts, page, scroll, status};
use crate::runner::verify::{Group, VerifyFinding, VerifyReport};
use crate::verdicts::Sharpness;

/// Findings up to this many are open; the others are folded.
const MOST_OPEN: usize = 8;

/// A verification's report.
pub fn verify(report: &VerifyReport) -> String {
    let status = status(report.exit_code(), report.findings.len(), report.bad_inputs.len());
    let body = html! {
        (summary(report))
        @if !report.groups.is_empty() { (groups(report)) }
        @if !report.invariants.is_empty() { (invariants(report)) }
        @if !report.findings.is_empty() { (findings(&report.findings)) }
        (bad_inputs(&report.bad_inputs))
        @if !report.notes.is_empty() {
            section #notes { h2 { "Notes" } ul { @for note in &report.notes { li { (note) } } } }
        }
    };
    page("verify", &report.subject, report.version, &status, &body)
}

fn summary(report: &VerifyReport) -> Markup {
    let total = report.total();
    let mut lines = vec![
        ("Rounding model", html! { (report.rounding_model) " (labels, kept type, sums)" }),
        ("Cases", html! { strong { (total.conforming) } " of " (total.cases) " conform" }),
    ];
    if total.recorded > 0 {
        lines.push((
            "Recorded faults of others",
            html! { (total.recorded) " recorded third-party bugs diverge, as expected" },
        ));
    }
    if total.not_offered > 0 {
        let parts = report.left_out.iter().map(|(name, cases)| format!("{name} ({cases})"));
        let parts = parts.collect::<Vec<_>>().join(", ");
        lines.push((
            "Not offered by the subject",
            html! { (counted(total.not_offered, "case", "cases")) ": " (parts) },
        ));
    }
    let failed = report.invariants.iter().filter(|result| result.failed).count();
    if !report.invariants.is_empty() {
        let (cases, checks) = (report.random_cases, report.checks());
        lines.push((
            "Invariants",
            html! { (cases) " distinct random cases, " (checks) " checks, " (failed) " failed" },
        ));
    }
    if report.interrupted {
        lines.push(("Interrupted", html! { "this is what was judged until then" }));
    }
    if report.seconds > 0.0 {
        lines.push(("Time", html! { (format!("{:.1} s", report.seconds)) }));
    }
    html! { section #summary { h2 { "Summary" } (facts(&lines)) } }
}

fn findings(findings: &[VerifyFinding]) -> Markup {
    let (open, folded) = findings.split_at(MOST_OPEN.min(findings.len()));
    html! {
        section #findings {
            h2 { "Findings" }
            @for finding in open { (self::finding(finding)) }
            @if !folded.is_empty() {
                details {
                    summary { (counted(folded.len(), "more finding", "more findings")) }
                    @for finding in folded { (self::finding(finding)) }
                }
            }
        }
    }
}

fn finding(finding: &VerifyFinding) -> Markup {
    html! {
        article.finding {
            h3 { span.glyph aria-hidden="true" { "✗" } (finding.case) }
            p { (finding.who) " falls outside the SPEC" }
            ul.explanations { @for line in &finding.explanations { li { (line) } } }
        }
    }
}

/// `stored | subject`, or a dash where neither has such a figure.
fn both(group: &Group, figure: impl Fn(&Sharpness) -> Option<String>) -> String {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "–".into());
    match (figure(&group.stored), figure(&group.subject)) {
        (None, None) => "–".into(),
        (stored, subject) => format!("{} | {}", or_dash(stored), or_dash(subject)),
    }
}

fn groups(report: &VerifyReport) -> Markup {
    let times = report.seconds > 0.0;
    let header = [
        "cases",
        "bit-exact",
        "conforming",
        "diverged",
        "not offered",
        "open keys/row",
        "worst error/bound",
        "widest bound",
        "seconds",
    ];
    let total = report.total();
    html! {
        section #groups {
            h2 { "Groups" }
            p.aside { "Figures in pairs: stored expectation | subject." }
            (scroll(&html! {
                table.numbers.wide {
                    thead {
                        tr { th scope="col" { "group" } @for name in header.iter().filter(|name| times || **name != "seconds") { th scope="col" { (name) } } }
                    }
                    tbody { @for group in &report.groups { (group_row(group, times)) } }
                    tfoot { (group_row(&total, times)) }
                }
            }))
        }
    }
}

fn group_row(group: &Group, times: bool) -> Markup {
    let percent = |share: f64| format!("{:.2} %", 100.0 * share);
    html! {
        tr {
            th.text scope="row" { (group.name) }
            td { (group.cases) } td { (group.bit_exact) } td { (group.conforming) }
            @if group.diverged > 0 { td.wrong { "✗ " (group.diverged) } } @else { td { "0" } }
            td { (group.not_offered) }
            td { (both(group, |sharpness| sharpness.open_per_row().map(|open| format!("{open:.3}")))) }
            td { (both(group, |sharpness| sharpness.worst_output_error.map(percent))) }
            td { (both(group, |sharpness| sharpness.widest_output_bound.map(|bound| format!("{bound:.0e}")))) }
            @if times { td { (format!("{:.2}", group.seconds)) } }
        }
    }
}

fn invariants(report: &VerifyReport) -> Markup {
    html! {
        section #invariants {
            h2 { "Invariants on random cases" }
            (scroll(&html! {
                table.numbers.wide {
                    thead {
                        tr {
                            th.text scope="col" { "invariant" } th.text scope="col" { "source" } th scope="col" { "held" }
                            th scope="col" { "not applicable" } th scope="col" { "failed" }
                        }
                    }
                    tbody {
                        @for result in &report.invariants {
                            tr {
                                th.text scope="row" { (result.name) }
                                td.text { (result.source) }
                                td { (result.held) } td { (result.not_applicable) }
                                @if result.failed { td.wrong { "✗ yes" } } @else { td { "no" } }
                            }
                        }
                    }
                }
            }))
        }
    }
}

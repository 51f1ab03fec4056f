//! A report as text: the table of groups, the invariants, the first few findings explained.

use std::fmt::Write;

use super::table::{finished, table};
use crate::runner::verify::{Group, VerifyReport};
use crate::verdicts::Sharpness;
use crate::visible;

const FINDINGS_SHOWN: usize = 8;

impl std::fmt::Display for VerifyReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&render(self, false))
    }
}

/// The whole report. Times are left out where `with_times` is false, so that the text is the same for each run.
pub fn render(report: &VerifyReport, with_times: bool) -> String {
    let mut text = format!("subject: {} (rounding model: {})\n\n", report.subject, report.rounding_model);
    if !report.groups.is_empty() {
        text += &groups(report, with_times);
        text += "Figures in pairs: stored expectation | subject.\n";
        text += &left_out(report);
    }
    if !report.invariants.is_empty() {
        text += "\n";
        text += &invariants(report);
    }
    for note in &report.notes {
        let _ = write!(text, "\nnote: {}", visible::one_line(note));
    }
    if !report.notes.is_empty() {
        text += "\n";
    }
    text += &findings(report);
    for error in &report.bad_inputs {
        let _ = writeln!(text, "\nbad input: {}", visible::one_line(error));
    }
    if report.interrupted {
        text += "\ninterrupted: this is what was judged until then\n";
    }
    text += &summary(report, with_times);
    visible::lines(&text).into_owned()
}

fn left_out(report: &VerifyReport) -> String {
    if report.left_out.is_empty() {
        return String::new();
    }
    let part = |(name, cases): (&String, &usize)| format!("{name} ({cases})");
    let parts: Vec<_> = report.left_out.iter().map(part).collect();
    format!("Not offered by the subject, with the number of cases that need it: {}.\n", parts.join(", "))
}

fn groups(report: &VerifyReport, with_times: bool) -> String {
    let mut header = vec!["group", "cases", "bit-exact", "conforming", "diverged"];
    let not_offered = report.total().not_offered > 0;
    if not_offered {
        header.push("not offered");
    }
    header.extend(["open keys/row", "worst error/bound", "widest bound"]);
    if with_times {
        header.push("seconds");
    }
    let mut table = table(&header, 1);
    let total = report.total();
    for group in report.groups.iter().chain([&total]) {
        table.add_row(group_row(group, not_offered, with_times));
    }
    finished(&table)
}

/// `stored | subject`, or a dash where neither has such a figure.
fn both(group: &Group, figure: impl Fn(&Sharpness) -> Option<String>) -> String {
    match (figure(&group.stored), figure(&group.subject)) {
        (None, None) => "–".into(),
        (stored, subject) => {
            let or_dash = |text: Option<String>| text.unwrap_or_else(|| "–".into());
            format!("{} | {}", or_dash(stored), or_dash(subject))
        }
    }
}

fn group_row(group: &Group, not_offered: bool, with_times: bool) -> Vec<String> {
    let percent = |share: f64| format!("{:.2} %", 100.0 * share);
    let mut row = vec![
        visible::one_line(&group.name).into_owned(),
        group.cases.to_string(),
        group.bit_exact.to_string(),
        group.conforming.to_string(),
        group.diverged.to_string(),
    ];
    if not_offered {
        row.push(group.not_offered.to_string());
    }
    row.extend([
        both(group, |sharpness| sharpness.open_per_row().map(|open| format!("{open:.3}"))),
        both(group, |sharpness| sharpness.worst_output_error.map(percent)),
        both(group, |sharpness| sharpness.widest_output_bound.map(|bound| format!("{bound:.0e}"))),
    ]);
    if with_times {
        row.push(format!("{:.2}", group.seconds));
    }
    row
}

fn invariants(report: &VerifyReport) -> String {
    let mut table = table(&["invariant on random cases", "source", "held", "not applicable", "failed"], 2);
    for result in &report.invariants {
        table.add_row([
            result.name.clone(),
            result.source.clone(),
            result.held.to_string(),
            result.not_applicable.to_string(),
            if result.failed { "yes" } else { "no" }.to_owned(),
        ]);
    }
    finished(&table)
}

fn findings(report: &VerifyReport) -> String {
    let mut text = String::new();
    for finding in report.findings.iter().take(FINDINGS_SHOWN) {
        let _ = writeln!(
            text,
            "\nDIVERGED {}: {} falls outside the SPEC",
            visible::one_line(&finding.case),
            finding.who
        );
        for line in &finding.explanations {
            let _ = writeln!(text, "  {line}");
        }
    }
    if report.findings.len() > FINDINGS_SHOWN {
        let more = report.findings.len() - FINDINGS_SHOWN;
        let _ = writeln!(text, "\n… and {more} more (all of them with --json)");
    }
    text
}

fn summary(report: &VerifyReport, with_times: bool) -> String {
    let total = report.total();
    let mut text = format!("\n{} of {} cases conform", total.conforming, total.cases);
    if total.recorded > 0 {
        let _ = write!(text, "; {} recorded third-party bugs diverge, as expected", total.recorded);
    }
    if total.not_offered > 0 {
        let _ = write!(text, "; {} not offered by the subject", total.not_offered);
    }
    if !report.invariants.is_empty() {
        let failed = report.invariants.iter().filter(|result| result.failed).count();
        let (cases, checks) = (report.random_cases, report.checks());
        let _ = write!(text, "; invariants: {cases} distinct random cases, {checks} checks, {failed} failed");
    }
    if with_times {
        let _ = write!(text, "; {:.1} s", report.seconds);
    }
    text + "\n"
}

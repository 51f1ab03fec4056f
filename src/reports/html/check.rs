//! The page of a check: what was asked, how much of it conforms, and each finding.

use maud::{Markup, html};

use super::numbers::radius;
use super::{bad_inputs, counted, facts, finding, page, scroll, status};
use crate::cases::Takes;
use crate::diagnosis::probes::{Measurement, Probed, State};
use crate::reports::check::{
    answered, large, planned, promises, selecting, sessions_in_words, what_reproduces,
};
use crate::reports::probes::{asked, columns, state};
use crate::runner::check::{Excuse, Report};
use crate::verdicts::Sharpness;

/// A check's report. `replay` is how a command line names the same subject, for example `--fault D4`.
pub fn check(report: &Report, replay: &str) -> String {
    let open = report.findings.iter().filter(|finding| finding.known.is_none()).count();
    let status = status(report.exit_code(), open, report.bad_inputs.len());
    let body = html! {
        (summary(report))
        @if let Some(probed) = &report.probes { (probes(probed)) }
        @if report.findings.len() > 1 { (contents(report)) }
        @for (index, finding) in report.findings.iter().enumerate() {
            (finding::section(index, finding, replay))
        }
        (bad_inputs(&report.bad_inputs))
    };
    page("check", &report.subject, report.version, &status, &body)
}

fn summary(report: &Report) -> Markup {
    let asked = html! {
        (counted(report.sequences, "random sequence", "random sequences")) " (seed " (report.seed) @if let Some(shard) = report.shard { ", share " (shard) } ")" (large(report)) " and "
        (report.goldens) " of " (counted(report.coverage.goldens, "golden", "goldens")) ", " (counted(report.calls, "call", "calls")) (planned(report))
    };
    let counts = html! {
        @match &report.stages {
            Some(_) => (answered(report)),
            None => {
                (counted(report.answered, "mask", "masks")) ", " (report.outputs) " of them with output, "
                (report.labels) " with labels"
            }
        }
    };
    let mut lines = vec![
        ("Rounding model", html! { (report.rounding_model) " (labels, kept type, sums)" }),
        ("Asked", asked),
        ("Sizes asked", html! { (report.coverage.sizes_in_words()) }),
        ("Parts asked", html! { (report.coverage.parts_in_words()) }),
        ("Answered", counts),
        ("Not offered, skipped", left_out(report)),
    ];
    if let Some(sessions) = &report.sessions {
        lines.push(("Sessions", html! { (sessions_in_words(sessions)) }));
    }
    if report.repeats.asked > 0 {
        let repeats = report.repeats;
        let of = html! {
            (counted(repeats.asked, "repeat", "repeats")) ", of which " (repeats.diverged) " diverged and "
            (repeats.differed) " differed from the first answer"
        };
        lines.push(("Asked again", of));
    }
    for (title, promised) in [("Promised", true), ("Observed", false)] {
        let parts = promises(report, promised);
        if !parts.is_empty() {
            lines.push((title, html! { (parts.join(", ")) }));
        }
    }
    if let Some(stages) = &report.stages {
        let gives: Vec<_> = stages.gives.iter().map(|given| given.name()).collect();
        lines.push(("Stages", html! { "takes " (stages.takes.name()) ", gives " (gives.join(", ")) }));
    }
    if let Some(domain) = report.coverage.domain_in_words() {
        lines.insert(1, ("Domain", html! { (domain) }));
    }
    if let Some(shapes) = report.shapes {
        lines.push(("Shapes asked", html! { (shapes) " distinct ones, as they are bounded" }));
    }
    if report.interrupted {
        lines.push(("Interrupted", html! { "this is what was found until then" }));
    }
    if let Some(why) = &report.stopped {
        lines.push(("Stopped early", html! { (why) }));
    }
    if !report.declared.is_empty() {
        lines.push(("Declared divergences", html! { (report.declared.join(", ")) }));
    }
    let known = report
        .declarations
        .iter()
        .filter(|declaration| declaration.occurs && declaration.why != Excuse::default());
    let known: Vec<String> = known.map(ToString::to_string).collect();
    if !known.is_empty() {
        lines.push(("Known", html! { (known.join("; ")) }));
    }
    let stale: Vec<String> = report.stale().map(ToString::to_string).collect();
    if !stale.is_empty() {
        let fails = if report.is_stale() { ", which fails the check" } else { "" };
        lines.push(("Known, but did not occur", html! { (stale.join("; ")) (fails) }));
    }
    // Causes are named for subjects that take inputs only.
    let takes_inputs = report.stages.as_ref().is_none_or(|stages| stages.takes == Takes::Inputs);
    if report.diverged > 0 && takes_inputs {
        lines.push(("Explained", explained(report)));
    }
    lines.push(("Sharpness", sharpness(&report.sharpness)));
    if report.seconds > 0.0 {
        lines.push(("Time", time(report)));
    }
    html! {
        section #summary {
            h2 { "Summary" }
            (outcome(report))
            (facts(&lines))
            (by_size(report))
        }
    }
}

/// How many rows selected, by numbers of keys.
fn by_size(report: &Report) -> Markup {
    let sizes = html! {
            table.numbers {
                thead {
                    tr {
                        th scope="col" { "Keys up to" } th scope="col" { "Calls" } th scope="col" { "Rows judged" }
                        th scope="col" { (selecting(report)) }
                    }
                }
                tbody {
                    @for size in report.by_size.sizes() {
                        tr {
                            th scope="row" { (size.keys) } td { (size.calls) } td { (size.rows) } td { (size.selecting) }
                        }
                    }
                }
            }
    };
    html! { @if !report.by_size.sizes().is_empty() { (scroll(&sizes)) } }
}

/// Every wire that probes measured.
fn probes(probed: &Probed) -> Markup {
    let class = |wire: &Measurement| match wire.state {
        State::AsExpected => "conforming",
        State::Declared => "declared",
        State::Deviates => "diverged",
        State::NotMeasured => "unmeasured",
    };
    let wires = html! {
        table.wide.wires {
            thead { tr { th scope="col" { "Wire" } th scope="col" {} th scope="col" { "Measured" } th scope="col" { "Expected" } } }
            tbody {
                @for wire in &probed.wires {
                    @let (measured, expected) = columns(wire);
                    tr class=(class(wire)) {
                        th scope="row" { (wire.wire) } td { (state(wire)) } td { (measured) } td { (expected) }
                    }
                }
            }
        }
    };
    html! {
        section #probes {
            h2 { "What it does" }
            p { (asked(probed, probed.seconds > 0.0)) }
            @if let Some(cause) = &probed.cause { p { "Cause, which reproduces every answer: " (cause) } }
            (scroll(&wires))
        }
    }
}

/// Three counts, and a bar that shows their shares.
fn outcome(report: &Report) -> Markup {
    let counts = [
        ("conforming", "✓", "conform", report.conforming),
        ("declared", "≈", "diverge as declared", report.known),
        ("diverged", "✗", "diverge", report.diverged),
    ];
    let shown = |class: &str| class != "declared" || !report.declared.is_empty();
    let total: usize = counts.iter().map(|count| count.3).sum();
    let width = |count: usize| format!("width: {:.3}%", 100.0 * count as f64 / total.max(1) as f64);
    html! {
        div.outcome {
            div.shares aria-hidden="true" {
                @for (class, _, _, count) in counts {
                    @if count > 0 { span class=(class) style=(width(count)) {} }
                }
            }
            ul.counts {
                @for (class, glyph, name, count) in counts.into_iter().filter(|count| shown(count.0)) {
                    li class=(class) {
                        span.glyph aria-hidden="true" { (glyph) }
                        strong { (count) } " " (name)
                        @if class == "conforming" && report.refused > 0 {
                            span.aside {
                                "with " (counted(report.refused, "call", "calls")) " refused, as expected"
                            }
                        }
                    }
                }
            }
        }
    }
}

fn left_out(report: &Report) -> Markup {
    let part = |(name, goldens): (&String, &usize)| match goldens {
        0 => name.clone(),
        &goldens => format!("{name} ({})", counted(goldens, "golden", "goldens")),
    };
    let parts: Vec<_> = report.left_out.iter().map(part).collect();
    html! { @if parts.is_empty() { "nothing" } @else { (parts.join(", ")) } }
}

fn explained(report: &Report) -> Markup {
    html! {
        @if report.explained { "yes: " (what_reproduces(report)) " every answer kept" }
        @else { "not all: what could be named reproduces " (report.reproduced) " answers" }
        @if report.not_kept > 0 { "; " (report.not_kept) " more were too large to keep" }
        @if report.not_looked_into > 0 {
            "; " (counted(report.not_looked_into, "sequence", "sequences")) " diverged that "
            "were not looked into, as there were so many findings"
        }
    }
}

fn sharpness(sharpness: &Sharpness) -> Markup {
    let percent = |share: f64| format!("{:.2} %", 100.0 * share);
    html! {
        @match sharpness.open_per_row() {
            Some(open) => { (format!("{open:.3}")) " open keys a row" },
            None => "no row conforms",
        }
        @if let Some(error) = sharpness.worst_output_error {
            "; largest output error " (percent(error)) " of its bound"
        }
        @if let Some(bound) = sharpness.widest_output_bound {
            "; widest bound " (radius(bound)) " of a row’s largest output"
        }
    }
}

fn time(report: &Report) -> Markup {
    html! {
        (format!("{:.1} s", report.seconds)) ", " (format!("{:.0}", report.sequences_per_second))
        " sequences a second"
    }
}

fn contents(report: &Report) -> Markup {
    html! {
        nav aria-label="Findings" {
            h2 { "Findings" }
            ol {
                @for (index, finding) in report.findings.iter().enumerate() {
                    li {
                        a href=(format!("#finding-{}", index + 1)) { (finding.kind) }
                        " " span.aside { (finding.sentence) }
                    }
                }
            }
        }
    }
}

//! Reports as HTML: each is one file that loads nothing, runs nothing, and reads well in light and dark, on a phone and on
//! paper. What is wrong is marked by colour and by a glyph. Text is escaped by the templates.

mod call;
mod check;
#[cfg(any(feature = "torch", feature = "internals"))]
mod evaluation;
mod finding;
mod grid;
pub(super) mod numbers;
mod plot;
mod tensors;
mod verify;

use maud::{DOCTYPE, Markup, PreEscaped, html};

pub use check::check;
#[cfg(any(feature = "torch", feature = "internals"))]
pub use evaluation::evaluation;
pub use verify::verify;

use crate::visible;

const STYLE: &str = include_str!("style.css");

/// What a page says at its top.
pub(super) struct Status {
    /// `good`, `bad` or `unusable`: the colour; `neutral` where nothing is judged.
    pub class: &'static str,
    /// None where nothing is judged.
    pub glyph: &'static str,
    pub text: String,
}

/// Conforms, diverges, or could not be judged.
fn status(exit_code: u8, findings: usize, bad_inputs: usize) -> Status {
    let (class, glyph, text) = match exit_code {
        0 => ("good", "✓", "conforms".to_owned()),
        1 => ("bad", "✗", format!("diverges: {}", counted(findings, "finding", "findings"))),
        _ => ("unusable", "!", format!("{} could not be used", counted(bad_inputs, "input", "inputs"))),
    };
    Status { class, glyph, text }
}

/// The whole file.
pub(super) fn page(command: &str, subject: &str, version: &str, status: &Status, body: &Markup) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                @if command == "site" { meta name="generator" content="doublecheck site"; }
                title { (subject) ": " (status.text) " – doublecheck " (command) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header class=(status.class) {
                    div.inner {
                        p.command { "doublecheck " (command) }
                        h1 { (subject) }
                        p.status { @if !status.glyph.is_empty() { span.glyph aria-hidden="true" { (status.glyph) } } (status.text) }
                    }
                }
                main { (body) }
                footer {
                    div.inner {
                        "doublecheck " (version) ", verification of Double Sparsity attention. "
                        "§ and D are sections and rows of docs/SPEC.md."
                    }
                }
            }
        }
    };
    // The templates escape what HTML gives a meaning; a terminal may show the file, too.
    visible::lines(&page.into_string()).into_owned()
}

/// Names and what there is to say of each.
pub(super) fn facts(facts: &[(&str, Markup)]) -> Markup {
    html! {
        dl.facts {
            @for (name, value) in facts {
                div { dt { (name) } dd { (value) } }
            }
        }
    }
}

/// A table's box: it scrolls, the page does not.
pub(super) fn scroll(table: &Markup) -> Markup {
    html! { div.scroll tabindex="0" { (table) } }
}

/// Files that could not be used.
fn bad_inputs(errors: &[String]) -> Markup {
    html! {
        @if !errors.is_empty() {
            section #bad-inputs {
                h2 { "Bad inputs" }
                ul { @for error in errors { li { code { (error) } } } }
            }
        }
    }
}

pub(super) fn counted(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

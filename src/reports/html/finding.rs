//! One finding: what is wrong and why, the counterexample call by call, and how to ask it again.

use maud::{Markup, html};

use super::call::{CallView, Marks};
use super::{counted, facts, tensors};
use crate::cases::{Instance, Observation};
use crate::reports::check::{failing_place, keys_that_matter, more_like_it};
use crate::reports::{quoted, rows, sequence, sessions, stages};
use crate::runner::check::{Finding, StageExample};
use crate::verdicts::Evidence;

/// The whole finding.
pub fn section(index: usize, finding: &Finding, replay: &str) -> Markup {
    html! {
        section.finding id=(format!("finding-{}", index + 1)) {
            h2 { span.glyph aria-hidden="true" { "✗" } "Finding " (index + 1) ": " (finding.kind) }
            (diagnosis(finding))
            (seen(finding))
            h3 { "What is wrong" }
            ul.explanations {
                @for line in &finding.explanations { li { (failing_place(finding)) ": " (line) } }
            }
            @if let Some(example) = &finding.example {
                (self::example(finding, example))
            } @else if let Some(session) = &finding.session {
                h3 { "Counterexample" }
                pre.replay { code { (sessions::example(session)) } }
            } @else {
                (sequence_example(finding))
            }
            @if let Some(other) = &finding.other { (self::other(finding, other)) }
            h3 { "Ask it again" }
            (self::replay(finding, replay))
        }
    }
}

/// A sequence of calls: settings, channel rows, and each call with what its verdict rests on.
fn sequence_example(finding: &Finding) -> Markup {
    let instance = &finding.observation.sequence.instance;
    html! {
        h3 { "Counterexample" }
        (settings(instance, finding))
        (channels(instance, finding))
        @for (call, evidence) in finding.evidence.iter().enumerate() {
            (self::call(finding, call, evidence))
        }
    }
}

/// A question to one stage, as text: it is shrunk, and there is little to draw.
fn example(finding: &Finding, example: &StageExample) -> Markup {
    html! {
        h3 { "Counterexample" }
        pre.replay { code { (stages::render(&example.call, &keys_that_matter(finding))) } }
        h3 { "Found" }
        pre.replay { code { (stages::answer(&example.answer)) (rows::render(&finding.compared)) } }
        h3 { "The reference" }
        pre.replay { code { (stages::answer(&example.reference)) } }
    }
}

/// The answer that was given to the same call at another time.
fn other(finding: &Finding, other: &Observation) -> Markup {
    let answer = other.answers.get(finding.call);
    html! {
        h3 { "At another time" }
        p { "Call " (finding.call) " of the same sequence was also answered:" }
        @if let Some(answer) = answer { pre { (sequence::answer(answer)) } }
    }
}

fn diagnosis(finding: &Finding) -> Markup {
    html! {
        div.diagnosis {
            @if let Some(stage) = finding.stage { p { strong { "Stage. " } (stage) } }
            p { strong { "Diagnosis. " } (finding.sentence) }
            @if let Some(why) = &finding.known { p { strong { "Known. " } (why) } }
            @if let Some(condition) = &finding.condition { p { strong { "Condition. " } (condition.sentence) } }
            @if let Some(state) = finding.state.as_ref().filter(|state| !state.sentence.is_empty()) {
                p { strong { "State. " } (state.sentence) }
            }
            @if !finding.more.is_empty() { p { strong { "Like it. " } (more_like_it(finding)) } }
        }
    }
}

fn seen(finding: &Finding) -> Markup {
    let shrunk = html! {
        (finding.size) " (" (counted(finding.tries, "try", "tries"))
        @if finding.shrinking_seconds > 0.0 { ", " (format!("{:.1} s", finding.shrinking_seconds)) }
        @if finding.inside_domain { ", inside the subject’s domain" }
        @if !finding.shrunk { ", stopped at the shrinking limit" }
        ")"
    };
    let mut lines = vec![
        ("First seen in", html! { (finding.first_seen) }),
        ("After", html! { (counted(finding.after, "sequence", "sequences")) }),
        ("Seen in", html! { (counted(finding.sequences, "sequence", "sequences")) }),
        ("Shrunk to", shrunk),
    ];
    lines.extend(finding.edges.iter().map(|edge| ("Edge", html! { (edge.to_string()) })));
    facts(&lines)
}

fn settings(instance: &Instance, finding: &Finding) -> Markup {
    let selection = &instance.selection;
    let dims = finding.observation.sequence.calls[finding.call].inputs.dims();
    let heavy_size = selection.heavy_size.resolve(dims.keys);
    let label_channels = selection.group_factor.label_channels(dims.head_dim);
    let mut lines = vec![
        ("Heavy size", html! { (selection.heavy_size) " (H = " (heavy_size) " of " (dims.keys) " keys)" }),
        (
            "Group factor",
            html! {
                (selection.group_factor.get())
                @match &label_channels {
                    Ok(channels) => { " (r = " (channels) " of " (dims.head_dim) " channels)" },
                    Err(_) => { " (does not divide d = " (dims.head_dim) ")" },
                }
            },
        ),
        ("Label bits", html! { (selection.label_bits.get()) }),
        ("Heads", html! { (selection.heads.name()) }),
    ];
    if !selection.is_plain() {
        lines.push(("Rules", html! { code { (serde_json::json!(selection.rules)) } }));
    }
    if selection.dense_fallback {
        lines.push(("Dense fallback", html! { "on" }));
    }
    if !instance.dense_layers.is_empty() {
        let layers = crate::algorithm::channels::ranges(instance.dense_layers.iter().copied());
        lines.push(("Dense layers", html! { (layers) }));
    }
    let failing = &finding.observation.sequence.calls[finding.call].inputs;
    if let Some(lengths) = failing.lengths() {
        lines.push(("Ragged batch", html! { (lengths.in_words(&dims)) }));
    }
    for masker in &instance.earlier_maskers {
        lines.push(("Earlier masker", html! { code { (serde_json::json!(masker)) } }));
    }
    facts(&lines)
}

/// The rows of the channel file, with those channels marked that make up the labels.
fn channels(instance: &Instance, finding: &Finding) -> Markup {
    let calls = &finding.observation.sequence.calls;
    let failing = &calls[finding.call];
    let label_channels = instance.selection.group_factor.label_channels(failing.inputs.dims().head_dim);
    let marked = label_channels.unwrap_or(0);
    let selected = instance.channel_selection;
    let others: Vec<_> = instance.channel_file.kinds().filter(|&kind| kind != selected).collect();
    let used_by = |layer: usize| {
        let used = calls.iter().enumerate().filter(|(_, call)| call.layer == layer);
        used.map(|(index, _)| format!("call {index}")).collect::<Vec<_>>().join(", ")
    };
    html! {
        div.parts {
            (tensors::channels(&instance.channel_file, selected, marked, &used_by))
        }
        @if !others.is_empty() {
            details {
                summary { "Rows of other kinds, which are not to be used" }
                div.parts {
                    @for kind in others {
                        (tensors::channels(&instance.channel_file, kind, 0, &|_| String::new()))
                    }
                }
            }
        }
    }
}

/// One call: open where it fails.
fn call(finding: &Finding, index: usize, evidence: &Evidence) -> Markup {
    let observation = &finding.observation;
    let sequence = &observation.sequence;
    let fails = index == finding.call;
    let marks = if fails { Marks::Failure } else { Marks::None };
    let (call, answer) = (&sequence.calls[index], &observation.answers[index]);
    let rows = if fails { finding.compared.as_slice() } else { &[] };
    let view = CallView { instance: &sequence.instance, call, answer, evidence, marks, rows };
    let causal = if call.inputs.parts().causal { ", causal" } else { "" };
    let lengths = call.inputs.lengths().map(|lengths| format!(", lengths {:?}", lengths.keys()));
    let right = evidence.verdict.conforms();
    html! {
        details.call.failing[fails] open[fails] {
            summary {
                span.glyph.wrong[!right] aria-hidden="true" { @if right { "✓" } @else { "✗" } }
                "Call " (index) ": layer " (call.layer) ", " (call.inputs.storage()) (causal) (lengths.unwrap_or_default())
                @if fails { " – fails" } @else if right { " – conforms" }
            }
            (view.render())
        }
    }
}

fn replay(finding: &Finding, subject: &str) -> Markup {
    let file = finding.file.as_ref().map(|file| quoted(&file.display().to_string()));
    html! {
        pre.replay {
            code { "doublecheck replay " (file.as_deref().unwrap_or("FILE")) " " (subject) }
        }
        @if file.is_none() {
            p.aside { "FILE is written by " code { "--out DIR" } "; this check ran without it." }
        }
    }
}

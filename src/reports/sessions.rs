//! A session as a story: what it is opened with, each step with what is held after it, and the few numbers that matter.

use std::fmt::Write;

use ndarray::{Array3, Axis};

use super::sequence;
use super::tensors::numbers;
use crate::cases::{Held, Opening, Outcome, Session, SessionObservation, Step};
use crate::runner::check::SessionExample;
use crate::verdicts::SessionVerdict;
use crate::visible;

/// Steps of more packed rows than this are told without their numbers.
const MOST_ROWS: usize = 16;

/// Everything that is asked.
pub fn render(session: &Session, source: &str) -> String {
    let mut text = format!("session {}\n", visible::one_line(&session.name));
    if !source.is_empty() {
        let _ = writeln!(text, "  source           {}", visible::one_line(source));
    }
    text + &story(session, None)
}

/// The settings and the steps; of the failing one what is wrong is told elsewhere.
pub fn story(session: &Session, failing: Option<usize>) -> String {
    let Opening { layers, capacity, page_size, heads, kv_heads, head_dim, value_dim, dtype, scaling } =
        &session.opening;
    let mut text = sequence::settings(&session.instance);
    let layers: Vec<String> = layers.iter().map(ToString::to_string).collect();
    let _ = writeln!(text, "  {:<17}{}", "layers", layers.join(", "));
    let _ = writeln!(text, "  {:<17}{capacity} tokens in pages of {page_size}", "room");
    let _ = writeln!(
        text,
        "  {:<17}h = {heads}, hk = {kv_heads}, d = {head_dim}, dv = {value_dim}, {dtype}",
        "shapes"
    );
    if let Some(scaling) = scaling {
        let _ = writeln!(text, "  {:<17}{scaling}", "scaling");
    }
    let mut held = Held::new(&session.opening);
    for (index, step) in session.steps.iter().enumerate() {
        let outcome = held.outcome(step);
        let mark = if failing == Some(index) { "   <- diverges" } else { "" };
        let refused = if matches!(outcome, Outcome::Refused(_)) { ", must be refused" } else { "" };
        let _ = writeln!(text, "\nstep {index}: {}{refused}{mark}", in_words(step, &held));
        text += &tensors(step);
        if outcome == Outcome::Done {
            held.apply(step);
        }
    }
    text
}

/// A step in words, with the positions that it concerns.
fn in_words(step: &Step, held: &Held) -> String {
    let plural = |count: usize, one: &str, many: &str| {
        if count == 1 { format!("1 {one}") } else { format!("{count} {many}") }
    };
    match step {
        Step::Append { layer, parts, .. } => {
            let part = |&(request, count): &(usize, usize)| {
                let first = held.tokens(request, *layer).len();
                let last = first + count.saturating_sub(1);
                let places = if count == 1 { format!("{first}") } else { format!("{first} to {last}") };
                format!("request {request} gets {} ({places})", plural(count, "key", "keys"))
            };
            let parts: Vec<String> = parts.iter().map(part).collect();
            format!("append to layer {layer}: {}", parts.join(", "))
        }
        Step::Attend { layer, parts, .. } => {
            let part = |&(request, count): &(usize, usize)| {
                let keys = held.tokens(request, *layer).len();
                let (queries, keys) = (plural(count, "query", "queries"), plural(keys, "key", "keys"));
                format!("request {request}, {queries} over {keys}")
            };
            let parts: Vec<String> = parts.iter().map(part).collect();
            format!("attend in layer {layer}: {}", parts.join("; "))
        }
        Step::Fork { from, to, length } => {
            format!(
                "fork: request {to} begins with the first {} of request {from}",
                plural(*length, "key", "keys")
            )
        }
        Step::Truncate { request, length } => {
            format!("truncate: request {request} keeps its first {}", plural(*length, "key", "keys"))
        }
        Step::Free { request } => format!("free request {request}"),
    }
}

fn tensors(step: &Step) -> String {
    let of = |name: &str, rows: &Array3<f32>| {
        if rows.dim().0 > MOST_ROWS {
            return format!("  {name} {:?}\n", rows.shape());
        }
        // As in calls: [1, heads, rows, numbers].
        let by_head = rows.view().permuted_axes([1, 0, 2]).as_standard_layout().into_owned();
        numbers(name, &by_head.insert_axis(Axis(0)))
    };
    match step {
        Step::Append { k, v, .. } => of("k", k) + &of("v", v),
        Step::Attend { q, .. } => of("q", q),
        Step::Fork { .. } | Step::Truncate { .. } | Step::Free { .. } => String::new(),
    }
}

/// A counterexample: the story, what was found, and what the reference answers.
pub fn example(example: &SessionExample) -> String {
    let SessionExample { observation, failure, reference } = example;
    let step = failure.as_ref().and_then(|failure| failure.step);
    let mut text = story(&observation.session, step);
    let Some(failure) = failure else { return text };
    let place = failure.place.unwrap_or(0);
    let (Some(index), Some(reference)) = (step, reference) else { return text };
    let of_request = observation.session.steps.get(index).map(Step::requests).unwrap_or_default();
    let Some(request) = of_request.get(place) else { return text };
    if let Some(Ok(answers)) = observation.answers.get(index)
        && let Some(answer) = answers.get(place)
    {
        let _ = writeln!(text, "\nstep {index}, request {request}, found:");
        text += &sequence::answer(&Ok(answer.clone()));
    }
    let _ = writeln!(text, "step {index}, request {request}, the reference:");
    text + &sequence::answer(reference)
}

/// A session asked again: its story and what came of it.
pub fn replay(subject: &str, observation: &SessionObservation, verdict: &SessionVerdict) -> String {
    let step = verdict.failure.as_ref().and_then(|failure| failure.step);
    let mut text = format!("session {}\n", observation.session.name) + &story(&observation.session, step);
    match &verdict.failure {
        None => {
            let _ = writeln!(
                text,
                "\nthe answers of {subject} conform: {} steps, {} attended rows",
                verdict.steps, verdict.rows
            );
        }
        Some(failure) => {
            let place = failure.step.map_or("opening the session".to_owned(), |step| format!("step {step}"));
            let _ = writeln!(text, "\n{place}, the answer of {subject} DIVERGES:");
            for line in failure.verdict.explanations() {
                let _ = writeln!(text, "  {line}");
            }
        }
    }
    text
}

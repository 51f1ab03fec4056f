//! What probes measured, as text: the whole table, or only what deviates.

use std::fmt::Write;

#[cfg(feature = "cli")]
use crate::diagnosis::probes::Measurement;
use crate::diagnosis::probes::{Probed, State};

/// How a wire fared, in two words at most.
#[cfg(feature = "cli")]
pub(super) fn state(wire: &Measurement) -> &'static str {
    match wire.state {
        State::AsExpected => "as expected",
        State::Deviates => "DEVIATES",
        State::Declared => "as declared",
        State::NotMeasured => "not measured",
    }
}

/// Questions and times, in words.
pub(super) fn asked(probed: &Probed, with_times: bool) -> String {
    let wires = probed.wires.len() - probed.in_state(State::NotMeasured).count();
    let mut text =
        format!("{} questions, {wires} of {} wires measured", probed.questions, probed.wires.len());
    if with_times {
        let _ = write!(text, ", {:.1} s of the subject's own time", probed.subject_seconds);
    }
    text
}

/// One line if everything is as expected; otherwise the wires that deviate, each in one sentence.
pub fn brief(probed: &Probed) -> String {
    let mut text = format!("probes: {}", asked(probed, false));
    if probed.conforms() {
        return text + ", none deviates\n";
    }
    let deviating = probed.in_state(State::Deviates).count();
    let _ = writeln!(text, ", {deviating} {}", if deviating == 1 { "deviates" } else { "deviate" });
    text += &cause(probed);
    let deviating = probed.deviating();
    let (shown, rest) = deviating.split_at(deviating.len().min(MOST_WIRES));
    for wire in shown {
        let _ = writeln!(text, "  measured: {}", wire.sentence());
    }
    if !rest.is_empty() {
        let _ =
            writeln!(text, "  also: {}", rest.iter().map(|wire| wire.wire).collect::<Vec<_>>().join(", "));
    }
    text
}

/// What is proved, where something is.
fn cause(probed: &Probed) -> String {
    let line = |cause| format!("  cause, which reproduces every answer to a probe: {cause}\n");
    probed.cause.as_ref().map(line).unwrap_or_default()
}

/// How many deviating wires are told of in a check.
const MOST_WIRES: usize = 3;

/// Every wire: how it fared, what was measured, and what was expected where that differs.
#[cfg(feature = "cli")]
pub fn table(probed: &Probed, with_times: bool) -> String {
    use comfy_table::ContentArrangement;

    let mut table = super::table::table(&["wire", "", "measured", "expected"], 4);
    table.set_content_arrangement(ContentArrangement::Dynamic).set_width(WIDTH);
    for wire in &probed.wires {
        let (measured, expected) = columns(wire);
        table.add_row([wire.wire.to_owned(), state(wire).to_owned(), measured, expected]);
    }
    let table = super::table::finished(&table);
    let mut text = format!("probes: {}\n{}\n{table}", asked(probed, with_times), cause(probed));
    for wire in probed.deviating() {
        let (diverged, questions) = (wire.diverged, wire.questions);
        let _ =
            write!(text, "\n{}\n  {diverged} of {questions} questions diverge; the first: ", wire.sentence());
        let _ = writeln!(text, "{}", wire.verdict.as_deref().unwrap_or_default());
    }
    text
}

/// What is told as measured, with what was left out of it, and as expected.
#[cfg(feature = "cli")]
pub(super) fn columns(wire: &Measurement) -> (String, String) {
    let needs = wire.needs.join(", ");
    if wire.state == State::NotMeasured {
        return (format!("needs {needs}"), String::new());
    }
    let rest = if needs.is_empty() { String::new() } else { format!(" (the rest needs {needs})") };
    let beside = match wire.state {
        State::AsExpected if wire.diverged > 0 => {
            format!(" ({} of {} answers diverge otherwise)", wire.diverged, wire.questions)
        }
        _ => String::new(),
    };
    (format!("{}{beside}{rest}", wire.measured), wire.expected.clone())
}

/// Columns of a terminal.
#[cfg(feature = "cli")]
const WIDTH: u16 = 150;

//! A sequence as text: settings, channel rows, and the tensors where they are small enough to print.

use std::fmt::Write;

use ndarray::Axis;

use super::tensors::{Keys, mask, numbers, numbers_of};
use crate::algorithm::channels::ranges;
use crate::cases::{Answer, Call, Instance, NoAnswer, Sequence};
use crate::visible;

/// Channel rows and channels of each that are printed.
const MOST_ROWS: usize = 8;
const MOST_CHANNELS: usize = 32;

/// Everything that is asked.
pub fn render(sequence: &Sequence, source: &str) -> String {
    render_with(sequence, source, &[])
}

/// The same; of large tensors the rows of some keys are shown.
pub fn render_with(sequence: &Sequence, source: &str, matter: &[usize]) -> String {
    let mut text = format!("sequence {}\n", visible::one_line(&sequence.name));
    if !source.is_empty() {
        let _ = writeln!(text, "  source           {}", visible::one_line(source));
    }
    text += &settings(&sequence.instance);
    for (index, call) in sequence.calls.iter().enumerate() {
        text += &render_call(index, call, matter);
    }
    text
}

/// What an instance is configured with.
pub(super) fn settings(instance: &Instance) -> String {
    let selection = &instance.selection;
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "  {name:<17}{value}");
    };
    line("heavy size", selection.heavy_size.to_string());
    line("group factor", selection.group_factor.get().to_string());
    line("label bits", selection.label_bits.get().to_string());
    line("heads", selection.heads.name().to_owned());
    if !selection.is_plain() {
        line("rules", serde_json::json!(selection.rules).to_string());
    }
    if selection.dense_fallback {
        line("dense fallback", "on".into());
    }
    if !instance.dense_layers.is_empty() {
        line("dense layers", ranges(instance.dense_layers.iter().copied()));
    }
    for masker in &instance.earlier_maskers {
        line("earlier masker", serde_json::json!(masker).to_string());
    }
    line("channels", format!("{}, of", instance.channel_selection.name()));
    for kind in instance.channel_file.kinds() {
        for (layer, order) in instance.channel_file.layers(kind) {
            line(&format!("  layer {layer}"), format!("{} {}", kind.name(), channel_rows(order.rows())));
        }
    }
    text
}

/// The first channels of the first rows.
fn channel_rows(rows: &[Vec<usize>]) -> String {
    let mut shown = Vec::new();
    for row in rows.iter().take(MOST_ROWS) {
        let channels = row.iter().take(MOST_CHANNELS).map(usize::to_string).collect::<Vec<_>>().join(", ");
        let left = row.len().saturating_sub(MOST_CHANNELS);
        shown.push(if left > 0 {
            format!("[{channels}, … and {left} more]")
        } else {
            format!("[{channels}]")
        });
    }
    let left = rows.len().saturating_sub(MOST_ROWS);
    let more = if left > 0 { format!(", … and {left} more rows") } else { String::new() };
    format!("[{}{more}]", shown.join(", "))
}

/// One call's tensors; of large ones the rows of the keys that matter.
pub fn render_call(index: usize, call: &Call, matter: &[usize]) -> String {
    let parts = call.inputs.parts();
    let causal = if parts.causal { ", causal" } else { "" };
    let mut text = format!("\ncall {index}: layer {}, {}{causal}\n", call.layer, parts.storage);
    if let Some(scaling) = parts.scaling {
        let _ = writeln!(text, "  scaling {scaling}");
    }
    if let Some(lengths) = call.inputs.lengths() {
        let _ = writeln!(text, "  {}, shown as 0", lengths.in_words(&call.inputs.dims()));
    }
    if let Some(weights) = call.inputs.head_weights() {
        text += &numbers("head_weights", &weights.clone().insert_axis(Axis(3)));
    }
    for (name, tensor, keys) in
        [("q", &parts.q, Keys::Nowhere), ("k", &parts.k, Keys::Rows), ("v", &parts.v, Keys::Rows)]
    {
        text += &numbers_of(name, tensor, keys, matter);
    }
    if let Some(mask) = &parts.attention_mask {
        text += &numbers_of("attention_mask", mask, Keys::Columns, matter);
    }
    if let Some(previous) = &call.previous {
        text += &numbers_of("previous", previous.weights(), Keys::Columns, matter);
    }
    text
}

/// An answer.
pub fn answer(answer: &Result<Answer, NoAnswer>) -> String {
    match answer {
        Err(no_answer) => format!("  no answer: {no_answer}\n"),
        Ok(answer) => {
            let mut text = mask(&answer.mask);
            if let Some(output) = &answer.output {
                text += &numbers("output", output);
            }
            text
        }
    }
}

//! A sequence as text: settings, channel rows, and the tensors where they are small enough to print.

use std::fmt::Write;

use ndarray::Axis;

use super::tensors::{mask, numbers};
use crate::algorithm::channels::ranges;
use crate::cases::{Answer, Call, NoAnswer, Sequence};

/// Everything that is asked.
pub fn render(sequence: &Sequence, source: &str) -> String {
    let mut text = format!("sequence {}\n", sequence.name);
    if !source.is_empty() {
        let _ = writeln!(text, "  source           {source}");
    }
    text += &instance(sequence);
    for (index, call) in sequence.calls.iter().enumerate() {
        text += &render_call(index, call);
    }
    text
}

fn instance(sequence: &Sequence) -> String {
    let instance = &sequence.instance;
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
            line(&format!("  layer {layer}"), format!("{} {:?}", kind.name(), order.rows()));
        }
    }
    text
}

/// One call's tensors.
pub fn render_call(index: usize, call: &Call) -> String {
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
    for (name, tensor) in [("q", &parts.q), ("k", &parts.k), ("v", &parts.v)] {
        text += &numbers(name, tensor);
    }
    if let Some(mask) = &parts.attention_mask {
        text += &numbers("attention_mask", mask);
    }
    if let Some(previous) = &call.previous {
        text += &numbers("previous", previous.weights());
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

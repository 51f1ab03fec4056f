//! What a case file or a channel file holds, as text.

use std::fmt::Write;

use super::tensors::mask;
use crate::algorithm::channels::ranges;
use crate::algorithm::{ChannelFile, ChannelOrder};
use crate::cases::{CalibrationCase, Case, CaseFile, LabelCase, StoredStage};
use crate::visible;

/// Kinds, layers, heads, head dimension, and how far rows share their leading channels.
pub fn channel_file(file: &ChannelFile) -> String {
    let mut text = String::from("channel file\n");
    for kind in file.kinds() {
        let layers: Vec<_> = file.layers(kind).collect();
        let numbers = ranges(layers.iter().map(|(layer, _)| *layer));
        let _ = writeln!(text, "\n{}: {} layers ({numbers})", kind.name(), layers.len());
        let describe = |value: fn(&ChannelOrder) -> usize| {
            let mut values: Vec<_> = layers.iter().map(|(_, order)| value(order)).collect();
            values.sort_unstable();
            values.dedup();
            ranges(values)
        };
        let _ = writeln!(text, "  rows (heads) {}", describe(|order| order.rows().len()));
        let _ = writeln!(text, "  head_dim     {}", describe(ChannelOrder::width));
        let alike = layers.iter().filter(|(_, order)| order.is_shared(order.width())).count();
        let _ = writeln!(text, "  layers in which all rows are alike: {alike} of {}", layers.len());
        for group_factor in [4, 8, 16, 32] {
            let overlaps: Vec<f64> =
                layers.iter().filter_map(|(_, order)| overlap(order, group_factor)).collect();
            if !overlaps.is_empty() {
                let mean = overlaps.iter().sum::<f64>() / overlaps.len() as f64;
                let _ = writeln!(
                    text,
                    "  leading channels that two rows share at G = {group_factor:<2}: {:.1} %",
                    100.0 * mean
                );
            }
        }
    }
    text
}

/// The share of the leading d / G channels that two rows of a layer have in common, on average over pairs of rows.
fn overlap(order: &ChannelOrder, group_factor: usize) -> Option<f64> {
    let rows = order.rows();
    let leading = order.width() / group_factor;
    if leading == 0 || rows.len() < 2 {
        return None;
    }
    // The number of rows that lead with a channel gives the number of pairs that share it.
    let mut counts = vec![0usize; order.width()];
    rows.iter().flat_map(|row| &row[..leading]).for_each(|&channel| counts[channel] += 1);
    let shared: usize = counts.iter().map(|count| count * count.saturating_sub(1) / 2).sum();
    let pairs = rows.len() * (rows.len() - 1) / 2;
    Some(shared as f64 / (pairs * leading) as f64)
}

/// Sizes, settings, source and expectation of a case file.
pub fn case_file(file: &CaseFile) -> String {
    match file {
        CaseFile::Attention(case) => attention_case(case),
        CaseFile::Sequence(stored) => super::sequence::render(&stored.sequence, &stored.source),
        CaseFile::Quantisation(cases) => label_cases(cases),
        CaseFile::Calibration(case) => calibration_case(case),
        CaseFile::Stage(stored) => stage(stored),
        CaseFile::Session(stored) => super::sessions::render(&stored.session, &stored.source),
    }
}

fn stage(stored: &StoredStage) -> String {
    let source = if stored.source.is_empty() { "nothing" } else { &stored.source };
    let takes = stored.call.takes().name();
    format!(
        "case {}\n  for what takes {takes}; source: {}\n",
        visible::one_line(&stored.name),
        visible::one_line(source)
    ) + &super::stages::render(&stored.call, &[])
}

fn attention_case(case: &Case) -> String {
    let dims = case.call.inputs.dims();
    let settings = &case.instance.selection;
    let mut text = format!("case {}\n", visible::one_line(&case.name));
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "  {name:<15}{value}");
    };
    line("q", format!("[{}, {}, {}, {}]", dims.batch, dims.heads, dims.queries, dims.head_dim));
    line("k", format!("[{}, {}, {}, {}]", dims.batch, dims.kv_heads, dims.keys, dims.head_dim));
    line("v", format!("[{}, {}, {}, {}]", dims.batch, dims.kv_heads, dims.keys, dims.value_dim));
    if let Ok(channels) = case.channels() {
        line("channels", format!("[{}, {}]", channels.rows().len(), channels.width()));
    }
    if let Some(recipe) = &case.recipe {
        line("recipe", format!("{} with seed {}", recipe.generator, recipe.seed));
    }
    if let Some(lengths) = case.call.inputs.lengths() {
        line("ragged", lengths.in_words(&dims));
    }
    if let Some(mask) = &case.call.inputs.parts().attention_mask {
        line("attention_mask", format!("{:?}", mask.shape()));
    }
    if let Some(previous) = &case.call.previous {
        let attended = previous.weights().iter().filter(|&&weight| weight != 0.0).count();
        line("previous", format!("{attended} positions attended"));
    }
    for masker in &case.instance.earlier_maskers {
        line("earlier masker", serde_json::json!(masker).to_string());
    }
    let heavy_size = settings.heavy_size.resolve(dims.keys);
    line("heavy size", format!("{} ({heavy_size} of {} keys)", settings.heavy_size, dims.keys));
    line("group factor", format!("{}", settings.group_factor.get()));
    line("label bits", format!("{}", settings.label_bits.get()));
    line("heads", settings.heads.name().to_owned());
    if !settings.is_plain() {
        line("rules", serde_json::json!(settings.rules).to_string());
    }
    line("dense fallback", settings.dense_fallback.to_string());
    line("causal", case.call.inputs.parts().causal.to_string());
    line("dtype", case.call.inputs.storage().to_string());
    line("scaling", format!("{}", case.call.inputs.scaling()));
    let Some(expectation) = &case.expectation else {
        line("expectation", "none".into());
        return text;
    };
    line("source", visible::one_line(&expectation.source).into_owned());
    line("model", expectation.model.unwrap_or_default().to_string());
    if let Some(row) = &expectation.known_divergence {
        line("diverges by", visible::one_line(row).into_owned());
    }
    if let Some(output) = &expectation.output {
        line("output", format!("{:?}", output.shape()));
    }
    let answer = case.before().map(|before| expectation.answer(&before));
    match answer {
        Ok(Some(Ok(answer))) => text += &mask(&answer.mask),
        Ok(Some(Err(wrong))) => line("mask", wrong),
        Ok(None) => {}
        Err(error) => line("mask", error.to_string()),
    }
    text
}

fn label_cases(cases: &[LabelCase]) -> String {
    let mut text = String::from("quantisation rows\n");
    for case in cases {
        let kind = if case.labels.is_some() { "rows with labels" } else { "rows to be refused" };
        let (rows, channels) = case.rows.dim();
        let _ = writeln!(
            text,
            "  {} {:>2} bits: {rows} {kind} of {channels} channels",
            case.storage,
            case.bits.get()
        );
    }
    if let Some(case) = cases.first() {
        let _ = writeln!(text, "  source {}", visible::one_line(&case.source));
    }
    text
}

fn calibration_case(case: &CalibrationCase) -> String {
    let mut text = format!("calibration of {}\n", case.kind.name());
    let _ = writeln!(text, "  blocks         {}", case.blocks.len());
    let _ = writeln!(text, "  channels       [{}, {}]", case.channels.rows().len(), case.channels.width());
    let _ = writeln!(text, "  source         {}", visible::one_line(&case.source));
    if let Some(row) = &case.known_divergence {
        let _ = writeln!(text, "  diverges by    {}", visible::one_line(row));
    }
    text
}

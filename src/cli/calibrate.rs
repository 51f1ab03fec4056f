//! `doublecheck calibrate ACTIVATIONS… -o channels.json`, or `calibrate --model FILE --text FILE… -o channels.json`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use doublecheck::algorithm::ChannelFile;
use doublecheck::cases::activations;

use super::{Failure, print, write};

#[derive(Args)]
pub struct Arguments {
    /// One safetensors file per layer and block: metadata `layer`; tensors `q_proj` [b, h, t, d] and `k_proj`
    /// [b, hk, t, d] before RoPE, `q` [b, h, m, d] and `k` [b, hk, n, d] after RoPE; the kinds follow from which
    /// of them are there
    #[arg(required_unless_present = "model", conflicts_with = "model")]
    activations: Vec<PathBuf>,
    /// Where the channel file goes
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// One row for all heads, as summed-labels needs
    #[arg(long)]
    shared: bool,
    /// Take the activations of this model (GGUF, Llama architecture) on a text; feature torch
    #[arg(long, value_name = "FILE", requires = "text")]
    model: Option<PathBuf>,
    /// Plain text or HTML; blocks are spread evenly over it
    #[arg(long, value_name = "FILE", num_args = 1.., requires = "model")]
    text: Vec<PathBuf>,
    /// Blocks taken from the text
    #[arg(long, value_name = "N", default_value_t = 16)]
    blocks: usize,
    /// Tokens of a block
    #[arg(long, value_name = "N", default_value_t = 512)]
    block_tokens: usize,
    /// Report how the result agrees with this channel file
    #[arg(long, value_name = "FILE", requires = "model")]
    compare: Option<PathBuf>,
    /// G, which says how many leading channels are compared
    #[arg(long, default_value_t = 4)]
    group_factor: u64,
    /// Where the model computes: cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    device: String,
}

pub fn main(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let (file, summary) = match &arguments.model {
        None => {
            let calibration = activations::calibrate(&arguments.activations)?;
            (calibration.channel_file(arguments.shared)?, calibration.summary())
        }
        Some(model) => of_model(model, arguments)?,
    };
    write(&arguments.output, &(file.to_json() + "\n"))?;
    print(&format!("{summary}\n"))?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(not(feature = "torch"))]
fn of_model(_model: &std::path::Path, _arguments: &Arguments) -> Result<(ChannelFile, String), Failure> {
    Err(format!("--model: {}", super::WITHOUT_TORCH).into())
}

#[cfg(feature = "torch")]
fn of_model(path: &std::path::Path, arguments: &Arguments) -> Result<(ChannelFile, String), Failure> {
    use doublecheck::algorithm::GroupFactor;
    use doublecheck::model::{Model, calibrate::Calibration, text};
    use doublecheck::subjects::torch::device;

    let model = Model::read(path, device::open(arguments.device.parse()?)?, tch::Kind::Float)?;
    let mut tokens = Vec::new();
    for file in &arguments.text {
        tokens.extend(model.tokenizer.encode(&text::read(file)?)?);
    }
    let (blocks, length) = (arguments.blocks, arguments.block_tokens);
    let needed = blocks.saturating_mul(length);
    if needed == 0 || tokens.len() < needed {
        let found = tokens.len();
        return Err(format!(
            "--text: found {found} tokens, expected {blocks} blocks of {length}, at least one"
        )
        .into());
    }
    let channels = GroupFactor::new(arguments.group_factor)?.label_channels(model.llama.config().head_dim)?;
    let other = arguments.compare.as_deref().map(ChannelFile::read).transpose()?;
    let bar = indicatif::ProgressBar::new(blocks as u64);
    let mut calibration = Calibration::new(&model.llama);
    for block in 0..blocks {
        // Spread evenly from the text's beginning to its end.
        let start = block * (tokens.len() - length) / (blocks - 1).max(1);
        calibration.add(&model.llama, &tokens[start..start + length])?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    let summary = agreements(&calibration, other.as_ref(), channels)?;
    let layers = model.llama.config().layers;
    let head = format!(
        "{}: {layers} layers, {blocks} blocks of {length} tokens; the leading {channels} channels of each row:",
        model.name
    );
    Ok((calibration.channel_file(arguments.shared)?, [head, summary].join("\n")))
}

/// How the sums agree with the last block alone, and with another file.
#[cfg(feature = "torch")]
fn agreements(
    calibration: &doublecheck::model::calibrate::Calibration,
    other: Option<&ChannelFile>,
    channels: usize,
) -> Result<String, Failure> {
    use doublecheck::algorithm::ChannelKind;
    use doublecheck::model::calibrate::Agreement;

    let told = |found: &Agreement| {
        let (rows, same, order) = (found.rows, found.same_channels, found.same_order);
        let share = 100.0 * found.shared as f64 / found.channels.max(1) as f64;
        let gap = match same == rows {
            true => String::new(),
            false => {
                format!("; where they differ, importance does by up to {:.1} %", 100.0 * found.widest_gap)
            }
        };
        format!(
            "{same} of {rows} rows lead with the same channels ({order} in the same order), {share:.1} % of channels in common{gap}"
        )
    };
    let mut lines = Vec::new();
    let several = calibration.blocks() > 1;
    for kind in ChannelKind::ALL.into_iter().filter(|_| several) {
        let last = calibration.last_block_only(kind, channels)?;
        lines.push(format!("{}, last block only (D10): {}", kind.name(), told(&last)));
    }
    if let Some(file) = other {
        for kind in ChannelKind::ALL {
            let found = calibration.compare(file, kind, channels)?;
            let found = found.map_or("it holds no such rows".into(), |found| told(&found));
            lines.push(format!("{}, the other file: {found}", kind.name()));
        }
    }
    Ok(lines.join("\n"))
}

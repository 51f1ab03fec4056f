//! `doublecheck calibrate ACTIVATIONS… -o channels.json`, or `calibrate --model FILE --text FILE… -o channels.json`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::limit::Limit;
use super::{Failure, print, write};
use crate::algorithm::ChannelFile;
use crate::cases::activations;

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
    /// Take the activations of this model (GGUF, Llama architecture) on a text; needs the feature torch
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
    /// G, which decides how many leading channels are compared
    #[arg(long, default_value_t = 4)]
    group_factor: u64,
    /// Where the model computes: cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    device: String,
    #[command(flatten)]
    limit: Limit,
}

pub fn main(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let (file, summary) = match &arguments.model {
        None => {
            let calibration = activations::calibrate(&arguments.activations, arguments.limit.memory)?;
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
    use crate::algorithm::GroupFactor;
    use crate::model::{Model, calibrate::Calibrator};
    use crate::torch::device;

    let model = Model::read(path, device::open(arguments.device.parse()?)?, tch::Kind::Float)?;
    let config = model.llama.config();
    let channels = GroupFactor::new(arguments.group_factor)?.label_channels(config.head_dim)?;
    let other = arguments
        .compare
        .as_deref()
        .map(|path| super::channel_file(path, arguments.limit.memory))
        .transpose()?;
    let (blocks, length) = (arguments.blocks, arguments.block_tokens);
    let bar = indicatif::ProgressBar::new(blocks as u64);
    let calibrator = Calibrator::of_texts(&model, &arguments.text, [blocks, length], &mut || bar.inc(1))?;
    bar.finish_and_clear();
    let head = format!(
        "{}: {} layers, {blocks} blocks of {length} tokens; the leading {channels} channels of each row:",
        model.name, config.layers
    );
    let summary = calibrator.summary(other.as_ref(), channels)?;
    Ok((calibrator.channel_file(arguments.shared)?, [head, summary].join("\n")))
}

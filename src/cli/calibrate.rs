//! `doublecheck calibrate ACTIVATIONS… -o channels.json`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use doublecheck::cases::activations;

use super::{Failure, print};

#[derive(Args)]
pub struct Arguments {
    /// One safetensors file per layer and block: metadata `layer`; tensors `q_proj` [b, h, t, d] and `k_proj`
    /// [b, hk, t, d] before RoPE, `q` [b, h, m, d] and `k` [b, hk, n, d] after RoPE; the kinds follow from which
    /// of them are there
    #[arg(required = true)]
    activations: Vec<PathBuf>,
    /// Where the channel file goes
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// One row for all heads, as summed-labels needs
    #[arg(long)]
    shared: bool,
}

pub fn main(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let calibration = activations::calibrate(&arguments.activations)?;
    let file = calibration.channel_file(arguments.shared)?;
    std::fs::write(&arguments.output, file.to_json() + "\n")
        .map_err(|error| format!("cannot write {}: {error}", arguments.output.display()))?;
    print(&format!("{}\n", calibration.summary()))?;
    Ok(ExitCode::SUCCESS)
}

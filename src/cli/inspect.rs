//! `doublecheck inspect FILE`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::limit::Limit;
use super::{Failure, channel_file, print};
use crate::cases::Reader;
use crate::reports::inspect;

#[derive(Args)]
pub struct Arguments {
    /// Case file (safetensors) or channel file (JSON)
    file: PathBuf,
    #[command(flatten)]
    limit: Limit,
}

pub fn main(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let (path, memory) = (&arguments.file, arguments.limit.memory);
    let text = if path.extension().is_some_and(|extension| extension == "json") {
        inspect::channel_file(&channel_file(path, memory)?)
    } else {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        inspect::case_file(&Reader::within(memory).read(path, &name)?)
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

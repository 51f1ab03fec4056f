//! `doublecheck inspect FILE`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::{Failure, print};
use crate::algorithm::ChannelFile;
use crate::cases::Reader;
use crate::reports::inspect;

#[derive(Args)]
pub struct Arguments {
    /// Case file (safetensors) or channel file (JSON)
    file: PathBuf,
}

pub fn main(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let path = &arguments.file;
    let text = if path.extension().is_some_and(|extension| extension == "json") {
        inspect::channel_file(
            &ChannelFile::read(path).map_err(|error| format!("{}: {error}", path.display()))?,
        )
    } else {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        inspect::case_file(&Reader::default().read(path, &name)?)
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

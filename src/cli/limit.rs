//! `--memory`: what a file may take, for every command that reads files that others wrote.

use clap::Args;

use crate::cases::Memory;

#[derive(Args)]
pub struct Limit {
    /// Refuse files that would take more memory than this, in GiB, while they are read, answered and judged
    #[arg(long, value_name = "GIB", default_value = "4", value_parser = gib)]
    pub memory: Memory,
}

fn gib(text: &str) -> Result<Memory, String> {
    let gib = text.parse().ok().and_then(Memory::from_gib);
    gib.ok_or_else(|| format!("found {text:?}, expected GiB above 0"))
}

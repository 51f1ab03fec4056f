//! `doublecheck site DIR… --out DIR`

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::limit::Limit;
use super::{Failure, complain, print};
use crate::reports::files;
use crate::reports::site::{self, COUNTEREXAMPLES, INDEX, MARK};

#[derive(Args)]
pub struct Arguments {
    /// Reports of checks, as check --json writes them, or folders of them
    #[arg(required = true)]
    reports: Vec<PathBuf>,
    /// Where the site goes: a new folder, or an earlier site, which is replaced
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    limit: Limit,
}

pub fn main(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let out = &arguments.out;
    check_ours(out)?;
    let loaded = site::load(&arguments.reports, arguments.limit.memory)?;
    for file in &loaded.skipped {
        complain(&format!("doublecheck: {}: no report of a check, skipped", file.display()));
    }
    let built = site::build(&loaded.checks);
    let cannot_write =
        |path: &Path, error: std::io::Error| format!("cannot write {}: {error}", path.display());
    let examples = out.join(COUNTEREXAMPLES);
    std::fs::create_dir_all(&examples).map_err(|error| cannot_write(&examples, error))?;
    for (name, bytes) in &built {
        let path = out.join(name);
        files::write(&path, bytes).map_err(|error| cannot_write(&path, error))?;
    }
    for path in earlier(out, |name| !built.contains_key(name)) {
        std::fs::remove_file(&path).map_err(|error| cannot_write(&path, error))?;
    }
    let plural = |count: usize, one: &str| format!("{count} {one}{}", if count == 1 { "" } else { "s" });
    let pages = built.keys().filter(|name| name.ends_with(".html")).count();
    print(&format!(
        "{}: {} of {}, {}, {} not there\n",
        out.join(INDEX).display(),
        plural(pages, "page"),
        plural(loaded.checks.len(), "check"),
        plural(built.len() - pages, "counterexample"),
        loaded.missing,
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// Errors: the folder holds something else, which would be lost or mixed with the site.
fn check_ours(out: &Path) -> Result<(), Failure> {
    let Ok(mut entries) = std::fs::read_dir(out) else { return Ok(()) };
    if entries.next().is_none() || is_ours(&out.join(INDEX)) {
        return Ok(());
    }
    let found = out.display();
    Err(format!("--out: found {found} with other files, expected a new folder or an earlier site").into())
}

fn is_ours(page: &Path) -> bool {
    std::fs::read_to_string(page).is_ok_and(|text| text.contains(MARK))
}

/// Files of an earlier site of these names.
fn earlier(out: &Path, gone: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for (folder, prefix) in [(out.to_owned(), ""), (out.join(COUNTEREXAMPLES), "counterexamples/")] {
        for path in std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let page = prefix.is_empty() && name.ends_with(".html") && is_ours(&path);
            let example = !prefix.is_empty() && name.ends_with(".safetensors");
            if (page || example) && gone(&format!("{prefix}{name}")) {
                found.push(path);
            }
        }
    }
    found
}

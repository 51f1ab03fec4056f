//! What README, the pages of `docs/` and the files beside README say must be true: figures are those of the records, links lead somewhere,
//! the folders import only what the drawing allows, commands and options are those of `--help`, code and output are those of the files and runs they claim to be from.

mod commands;
mod figures;
mod layout;
mod links;
mod pages;
mod report;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A path of the repository.
fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// A text file of the repository.
fn read(name: &str) -> String {
    std::fs::read_to_string(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// A record of `golden/records`.
fn record(name: &str) -> serde_json::Value {
    serde_json::from_str(&read(&format!("golden/records/{name}"))).unwrap()
}

/// The command of this package, run in the repository.
fn doublecheck(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_doublecheck"))
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap()
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

/// The pages that people read, SPEC and protocol included.
fn pages() -> Vec<String> {
    let mut pages: Vec<String> =
        ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "golden/README.md"]
            .map(String::from)
            .into();
    for entry in std::fs::read_dir(path("docs")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".md") {
            pages.push(format!("docs/{name}"));
        }
    }
    pages.sort();
    pages
}

/// The fenced blocks of a page: language, text, and all that comes before the block.
fn blocks(page: &str) -> Vec<(String, String, String)> {
    let (mut blocks, mut before, mut open) = (Vec::new(), String::new(), None::<(String, String)>);
    for line in page.lines() {
        match (line.strip_prefix("```"), &mut open) {
            (Some(language), None) => open = Some((language.to_owned(), String::new())),
            (Some(_), Some(_)) => {
                let (language, text) = open.take().unwrap();
                blocks.push((language, text, before.clone()));
            }
            (None, Some((_, text))) => *text += &format!("{line}\n"),
            (None, None) => before += &format!("{line}\n"),
        }
    }
    blocks
}

/// A page without its fenced blocks.
fn prose(page: &str) -> String {
    let mut inside = false;
    let mut prose = String::new();
    for line in page.lines() {
        if line.starts_with("```") {
            inside = !inside;
        } else if !inside {
            prose += &format!("{line}\n");
        }
    }
    prose
}

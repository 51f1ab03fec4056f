//! Writing files so that a reader never sees half of one: beside the place, then renamed.

use std::ffi::OsString;
use std::fs::{File, metadata, remove_file, rename};
use std::io::{Result, Write};
use std::path::{Path, PathBuf};

/// Writes a file, in place of any that is there. What is no regular file, such as a pipe, is written as it is. Errors: those of
/// writing.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    if is_special(path) {
        return std::fs::write(path, bytes);
    }
    let beside = beside(path);
    let written = File::create(&beside).and_then(|mut file| file.write_all(bytes));
    written.and_then(|()| rename(&beside, path)).inspect_err(|_| {
        let _ = remove_file(&beside);
    })
}

/// Whether a file can be written, told by writing an empty one beside it. Errors: those of writing.
pub fn check_writable(path: &Path) -> Result<()> {
    let names_folder = path.as_os_str().as_encoded_bytes().ends_with(b"/") || path.file_name().is_none();
    if names_folder || metadata(path).is_ok_and(|found| found.is_dir()) {
        return Err(std::io::ErrorKind::IsADirectory.into());
    }
    if is_special(path) {
        return Ok(());
    }
    let beside = beside(path);
    File::create(&beside)?;
    remove_file(beside)
}

fn is_special(path: &Path) -> bool {
    metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir())
}

fn beside(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}", std::process::id()));
    path.with_file_name(name)
}

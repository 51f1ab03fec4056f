//! Finding case files: the ones bundled with the crate, and those in folders a person names. The bundled files carry
//! a list of checksums, so that a file that was changed by accident is noticed whatever byte it was.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::error::{Error, Result};
pub use crate::checksum::sha256;

/// The folder of bundled cases: `DOUBLECHECK_GOLDEN` where that is set, or `golden` beside the crate's manifest.
pub fn folder() -> PathBuf {
    std::env::var_os("DOUBLECHECK_GOLDEN")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("golden"), PathBuf::from)
}

/// A case file that was found.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Found {
    /// The folder below which it was found, or its own folder.
    pub root: PathBuf,
    /// The path below that folder, with `/`.
    pub name: String,
}

impl Found {
    /// Where the file is.
    pub fn path(&self) -> PathBuf {
        self.root.join(&self.name)
    }

    /// The folder that holds the file, below the root where it is below it; reports group files by it.
    pub fn group(&self) -> String {
        match self.name.rsplit_once('/') {
            Some((group, _)) => group.to_owned(),
            None => {
                self.root.file_name().map_or_else(|| ".".into(), |name| name.to_string_lossy().into_owned())
            }
        }
    }
}

/// The case files at `path`: itself, or every `*.safetensors` below it, sorted by name.
///
/// Errors: [`Error::Access`]; [`Error::Format`] where there is none, or where one that `SHA256SUMS` lists is missing.
pub fn find(path: &Path) -> Result<Vec<Found>> {
    let access = |source| Error::Access { path: path.to_owned(), source };
    if !std::fs::metadata(path).map_err(access)?.is_dir() {
        let root = path.parent().unwrap_or(Path::new("")).to_owned();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        return Ok(vec![Found { root, name }]);
    }
    let mut found = Vec::new();
    collect(path, path, &mut found)?;
    found.sort();
    let missing = |name: &&String| !found.iter().any(|found| found.name == **name);
    if let Some(name) = read_checksums(path)?.keys().find(missing) {
        let field = format!("{} of {}", name, path.join("SHA256SUMS").display());
        return Err(Error::Format(crate::algorithm::Detail::new(
            field,
            "no such file",
            "every file listed there",
        )));
    }
    if found.is_empty() {
        let detail = crate::algorithm::Detail::new(
            format!("folder {}", path.display()),
            "no case file",
            "at least one *.safetensors",
        );
        return Err(Error::Format(detail));
    }
    Ok(found)
}

fn collect(root: &Path, folder: &Path, found: &mut Vec<Found>) -> Result<()> {
    let access = |source| Error::Access { path: folder.to_owned(), source };
    for entry in std::fs::read_dir(folder).map_err(access)? {
        let entry = entry.map_err(access)?;
        let path = entry.path();
        // A link to a folder is not followed: it could lead back up.
        if entry.file_type().map_err(access)?.is_dir() {
            collect(root, &path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "safetensors") {
            found.push(Found { root: root.to_owned(), name: name_below(root, &path) });
        }
    }
    Ok(())
}

/// The path of a file below a folder, with `/`.
fn name_below(folder: &Path, path: &Path) -> String {
    let below = path.strip_prefix(folder).unwrap_or(path);
    let parts: Vec<_> = below.iter().map(|part| part.to_string_lossy()).collect();
    parts.join("/")
}

/// The checksums recorded in `SHA256SUMS` files, read once each.
#[derive(Debug, Default)]
pub struct Checksums {
    folders: BTreeMap<PathBuf, BTreeMap<String, String>>,
}

impl Checksums {
    /// The checksum recorded for a file in its own folder or one of the three above it, so that naming a single file or a
    /// group finds it too. Errors: [`Error::Access`].
    pub fn recorded(&mut self, path: &Path) -> Result<Option<String>> {
        let path =
            std::path::absolute(path).map_err(|source| Error::Access { path: path.to_owned(), source })?;
        for folder in path.ancestors().skip(1).take(4) {
            if !self.folders.contains_key(folder) {
                self.folders.insert(folder.to_owned(), read_checksums(folder)?);
            }
            if let Some(sum) = self.folders[folder].get(&name_below(folder, &path)) {
                return Ok(Some(sum.clone()));
            }
        }
        Ok(None)
    }
}

/// `SHA256SUMS` of a folder, by file name; empty where there is none.
fn read_checksums(folder: &Path) -> Result<BTreeMap<String, String>> {
    let path = folder.join("SHA256SUMS");
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(source) => return Err(Error::Access { path, source }),
    };
    let entry = |line: &str| {
        let (sum, name) = line.split_once("  ")?;
        Some((name.trim().to_owned(), sum.to_owned()))
    };
    Ok(text.lines().filter_map(entry).collect())
}

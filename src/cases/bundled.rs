//! Finding case files: those bundled with the crate, and those in folders that a person names. A list of checksums beside
//! them, where there is one, shows an accidental change of any byte.
//!
//! The bundled files are part of the compiled library (feature `bundled`), so that an installed command has them wherever it
//! runs: `golden/bundled.tar.zst`, which `ci/bundle` packs, holds what `golden/SHA256SUMS` lists. They are unpacked in memory
//! when they are first asked for.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::error::{Error, Result};
use super::memory::Memory;
use crate::algorithm::Detail;
pub use crate::checksum::sha256;

/// The name of the list of checksums in a folder.
const SUMS: &str = "SHA256SUMS";

/// A case file that was found.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Found {
    place: Place,
    /// The path below the folder in which it was found, with `/`.
    pub name: String,
}

/// Where a file is found.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    /// Below this folder, there.
    Folder(PathBuf, PathBuf),
    /// In the library itself.
    #[cfg(feature = "bundled")]
    Library,
}

impl Found {
    /// The name stands for paths that are no UTF-8, too.
    fn below(folder: &Path, below: &Path) -> Self {
        let name = name_below(Path::new(""), below);
        Self { place: Place::Folder(folder.to_owned(), below.to_owned()), name }
    }

    /// Where the file is, for messages: of a file in the library its name after `bundled`.
    pub fn path(&self) -> PathBuf {
        match &self.place {
            Place::Folder(folder, below) => folder.join(below),
            #[cfg(feature = "bundled")]
            Place::Library => Path::new("bundled").join(&self.name),
        }
    }

    /// The content. Errors: those of [`Found::read_within`] and [`Memory::DEFAULT`].
    pub fn read(&self) -> Result<Vec<u8>> {
        self.read_within(Memory::DEFAULT)
    }

    /// The content, where it is no longer than allowed. Errors: [`Error::Access`]; [`Error::Memory`]; [`Error::Format`] where the
    /// library lacks it.
    pub fn read_within(&self, memory: Memory) -> Result<Vec<u8>> {
        match &self.place {
            Place::Folder(..) => memory.read(&self.path()),
            #[cfg(feature = "bundled")]
            Place::Library => archive::read(&self.name).map(<[u8]>::to_vec),
        }
    }

    /// The folder that holds the file, below the folder in which it was found; reports group files by it.
    pub fn group(&self) -> String {
        match (self.name.rsplit_once('/'), &self.place) {
            (Some((group, _)), _) => group.to_owned(),
            (None, Place::Folder(folder, _)) => {
                folder.file_name().map_or_else(|| ".".into(), |name| name.to_string_lossy().into_owned())
            }
            #[cfg(feature = "bundled")]
            (None, Place::Library) => ".".into(),
        }
    }
}

/// The bundled case files, sorted by name: those of the folder `DOUBLECHECK_GOLDEN` where that is set, otherwise those in the
/// library. Errors: those of [`find`].
#[cfg(feature = "bundled")]
pub fn cases() -> Result<Vec<Found>> {
    if let Some(folder) = std::env::var_os("DOUBLECHECK_GOLDEN") {
        return find(Path::new(&folder));
    }
    let names = archive::names()?.filter(|name| name.ends_with(".safetensors"));
    let found = names.map(|name| Found { place: Place::Library, name: name.to_owned() }).collect();
    complete(found, &parse_checksums(&archive::checksums()?), Path::new("bundled"))
}

/// A file beside the bundled cases, `SHA256SUMS` or one of them, from where [`cases`] finds them. Errors: those of
/// [`Found::read`].
#[cfg(feature = "bundled")]
pub fn read(name: &str) -> Result<Vec<u8>> {
    let place = std::env::var_os("DOUBLECHECK_GOLDEN")
        .map_or(Place::Library, |folder| Place::Folder(folder.into(), name.into()));
    Found { place, name: name.to_owned() }.read()
}

/// The files that are part of the library.
#[cfg(feature = "bundled")]
mod archive {
    use std::collections::BTreeMap;
    use std::io::Read;
    use std::sync::OnceLock;

    use ruzstd::decoding::StreamingDecoder;

    use super::SUMS;
    use crate::algorithm::Detail;
    use crate::cases::error::{Error, Result};

    static PACKED: &[u8] = include_bytes!("../../golden/bundled.tar.zst");

    /// The content of each file by name, or what is wrong with the archive.
    static FILES: OnceLock<std::result::Result<BTreeMap<String, Vec<u8>>, String>> = OnceLock::new();

    fn files() -> Result<&'static BTreeMap<String, Vec<u8>>> {
        let files = FILES.get_or_init(|| unpack().map_err(|error| error.to_string()));
        files.as_ref().map_err(|wrong| {
            Error::Format(Detail::new("bundled cases", wrong, "the archive that ci/bundle packs"))
        })
    }

    fn unpack() -> std::result::Result<BTreeMap<String, Vec<u8>>, Box<dyn std::error::Error>> {
        let mut archive = tar::Archive::new(StreamingDecoder::new(PACKED)?);
        let mut files = BTreeMap::new();
        for entry in archive.entries()? {
            let mut entry = entry?;
            let name = entry.path()?.to_string_lossy().into_owned();
            let mut content = Vec::with_capacity(usize::try_from(entry.size())?);
            entry.read_to_end(&mut content)?;
            files.insert(name, content);
        }
        Ok(files)
    }

    pub fn names() -> Result<impl Iterator<Item = &'static str>> {
        Ok(files()?.keys().map(String::as_str))
    }

    pub fn read(name: &str) -> Result<&'static [u8]> {
        let content = files()?.get(name).map(Vec::as_slice);
        content.ok_or_else(|| {
            Error::Format(Detail::new("bundled cases", format!("no {name}"), "a file of that name"))
        })
    }

    /// The text of the list of checksums.
    pub fn checksums() -> Result<String> {
        read(SUMS).map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    }
}

/// What marks the first page of a site of reports. The counterexamples of a site are copies of what reports name.
pub(crate) const SITE: &str = "<meta name=\"generator\" content=\"doublecheck site\">";

/// The case files at `path`: itself, or every `*.safetensors` below it, sorted by name. The copies in sites of reports are left out.
///
/// Errors: [`Error::Access`]; [`Error::Format`] where there is none, or where one that `SHA256SUMS` lists is missing.
pub fn find(path: &Path) -> Result<Vec<Found>> {
    let access = |source| Error::Access { path: path.to_owned(), source };
    if !std::fs::metadata(path).map_err(access)?.is_dir() {
        let folder = path.parent().unwrap_or(Path::new(""));
        return Ok(vec![Found::below(folder, Path::new(path.file_name().unwrap_or_default()))]);
    }
    let mut found = Vec::new();
    collect(path, path, &mut found)?;
    complete(found, &read_checksums(path)?, path)
}

/// The files found in a place, sorted. Errors: [`Error::Format`] where there is none, or where one listed in the checksums is
/// missing.
fn complete(mut found: Vec<Found>, sums: &BTreeMap<String, String>, place: &Path) -> Result<Vec<Found>> {
    found.sort();
    let missing = |name: &&String| !found.iter().any(|found| found.name == **name);
    if let Some(name) = sums.keys().find(missing) {
        let field = format!("{} of {}", name, place.join(SUMS).display());
        return Err(Error::Format(Detail::new(field, "no such file", "every file listed there")));
    }
    if found.is_empty() {
        let field = format!("folder {}", place.display());
        return Err(Error::Format(Detail::new(field, "no case file", "at least one *.safetensors")));
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
            if !is_site(&path) {
                collect(root, &path, found)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "safetensors") {
            found.push(Found::below(root, path.strip_prefix(root).unwrap_or(&path)));
        }
    }
    Ok(())
}

/// Whether a folder is a site of reports, which says so at the beginning of its first page.
fn is_site(folder: &Path) -> bool {
    let mut start = Vec::new();
    let read = File::open(folder.join("index.html")).and_then(|page| page.take(4096).read_to_end(&mut start));
    read.is_ok() && String::from_utf8_lossy(&start).contains(SITE)
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
    #[cfg(feature = "bundled")]
    library: Option<BTreeMap<String, String>>,
}

impl Checksums {
    /// The checksum recorded for a file in its own folder or one of the three above it, so that naming a single file or a
    /// group finds it too; for a file in the library the one recorded there. Errors: [`Error::Access`].
    pub fn recorded(&mut self, found: &Found) -> Result<Option<String>> {
        match &found.place {
            Place::Folder(..) => self.recorded_near(&found.path()),
            #[cfg(feature = "bundled")]
            Place::Library => {
                if self.library.is_none() {
                    self.library = Some(parse_checksums(&archive::checksums()?));
                }
                Ok(self.library.as_ref().and_then(|sums| sums.get(&found.name)).cloned())
            }
        }
    }

    fn recorded_near(&mut self, path: &Path) -> Result<Option<String>> {
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
    let path = folder.join(SUMS);
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(parse_checksums(&text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(source) => Err(Error::Access { path, source }),
    }
}

fn parse_checksums(text: &str) -> BTreeMap<String, String> {
    let entry = |line: &str| {
        let (sum, name) = line.split_once("  ")?;
        Some((name.trim().to_owned(), sum.to_owned()))
    };
    text.lines().filter_map(entry).collect()
}

//! Texts for a model: plain files as they are, HTML (the Rust books on a development machine, say) without its markup.

use std::path::Path;

use super::{Error, Result};
use crate::algorithm::Detail;

/// Columns after which the converter would break lines.
const WIDTH: usize = 100_000;

/// The text of a file; `.html` and `.htm` are stripped of their markup.
///
/// Errors: [`Error::Access`], [`Error::Text`].
pub fn read(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(|source| Error::Access { path: path.to_owned(), source })?;
    let wrong =
        |found: String, expected: &str| Error::Text(Detail::new(path.display().to_string(), found, expected));
    let is_html = path.extension().is_some_and(|extension| extension == "html" || extension == "htm");
    if !is_html {
        return String::from_utf8(bytes).map_err(|error| wrong(error.to_string(), "text in UTF-8"));
    }
    let plain = html2text::config::plain_no_decorate().string_from_read(bytes.as_slice(), WIDTH);
    plain.map_err(|error| wrong(error.to_string(), "a page of HTML"))
}

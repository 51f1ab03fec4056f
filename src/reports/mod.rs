//! How results are presented: as text for a terminal, as JSON, as HTML, and as what CI systems read.

#[cfg(feature = "cli")]
pub mod badge;
pub mod check;
#[cfg(feature = "files")]
pub mod counterexamples;
#[cfg(any(feature = "torch", feature = "internals"))]
pub mod evaluation;
#[cfg(feature = "cli")]
pub mod faults;
#[cfg(feature = "files")]
pub mod files;
#[cfg(feature = "cli")]
pub mod html;
#[cfg(feature = "files")]
pub mod inspect;
#[cfg(feature = "cli")]
pub mod junit;
#[cfg(feature = "cli")]
pub mod markdown;
#[cfg(feature = "cli")]
pub mod merge;
#[cfg(feature = "cli")]
pub mod parts;
#[cfg(feature = "probes")]
pub mod probes;
#[cfg(feature = "cli")]
pub mod record;
mod rows;
pub mod sequence;
pub mod sessions;
#[cfg(feature = "cli")]
pub mod site;
pub mod stages;
#[cfg(feature = "cli")]
mod table;
mod tensors;
#[cfg(feature = "cli")]
pub mod verify;

/// A word for a shell, in quotes where it needs them.
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "/._-+=:,@".contains(c);
    let is_plain = !word.is_empty() && word.chars().all(plain);
    if is_plain { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

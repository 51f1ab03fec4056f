//! How much memory what is read may take. A file of a few hundred bytes can ask for tensors, masks and certificates of any size: what
//! it would take is estimated from its sizes, from above, and compared with a limit before anything of it is made.

use std::io::Read;
use std::path::Path;

use super::error::{Error, Result};
use crate::algorithm::{Detail, Dims, HeadMode, Selection};

/// A limit on the memory that one file may take while it is read, answered and judged, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory(u64);

/// Bytes of a GiB.
const GIB: f64 = (1u64 << 30) as f64;

/// JSON takes so many times the memory of its text where it is densest: a list of digits, each with a comma, becomes values of 32
/// bytes, and a second time what these mean.
const JSON: u64 = 40;

impl Memory {
    /// 4 GiB.
    pub const DEFAULT: Self = Self(4 << 30);

    /// A limit in GiB; `None` for anything but a number above 0.
    pub fn from_gib(gib: f64) -> Option<Self> {
        let bytes = gib * GIB;
        (bytes.is_finite() && bytes >= 1.0).then_some(Self(bytes as u64))
    }

    /// Errors: [`Error::Memory`] where more is needed. `found` says what needs it.
    pub(crate) fn check(self, field: &str, found: impl std::fmt::Display, bytes: u64) -> Result<()> {
        if bytes <= self.0 {
            return Ok(());
        }
        let found = format!("{found}, which takes about {}", in_gib(bytes));
        let expected = format!("at most {} (--memory allows more)", in_gib(self.0));
        Err(Error::Memory(Detail::new(field, found, expected)))
    }

    /// The content of a file, or of a pipe. Errors: [`Error::Access`]; [`Error::Memory`] where it is longer than the limit.
    pub(crate) fn read(self, path: &Path) -> Result<Vec<u8>> {
        let access = |source| Error::Access { path: path.to_owned(), source };
        let file = std::fs::File::open(path).map_err(access)?;
        let length = file.metadata().map_err(access)?.len();
        self.check("file", format!("{length} bytes"), length).map_err(|error| error.in_file(path))?;
        let mut bytes = Vec::new();
        // What is no regular file does not say how long it is.
        let read = file.take(self.0.saturating_add(1)).read_to_end(&mut bytes).map_err(access)? as u64;
        self.check("file", format!("at least {read} bytes"), read).map_err(|error| error.in_file(path))?;
        Ok(bytes)
    }

    /// The text of a JSON file. Errors: those of [`Memory::read`], for what it takes when it is parsed as well;
    /// [`Error::Format`] for anything but UTF-8.
    pub(crate) fn read_json(self, path: &Path) -> Result<String> {
        let bytes = self.read(path)?;
        self.check_json("file", bytes.len()).map_err(|error| error.in_file(path))?;
        String::from_utf8(bytes).map_err(|error| {
            Error::Format(Detail::new("file", error.utf8_error(), "JSON, in UTF-8")).in_file(path)
        })
    }

    /// Errors: [`Error::Memory`] where JSON of so many bytes takes more when it is parsed.
    pub(crate) fn check_json(self, field: &str, length: usize) -> Result<()> {
        self.check(field, format!("{length} bytes of JSON"), (length as u64).saturating_mul(JSON))
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::DEFAULT
    }
}

fn in_gib(bytes: u64) -> String {
    let gib = bytes as f64 / GIB;
    if gib < 0.1 { format!("{gib:.3} GiB") } else { format!("{gib:.1} GiB") }
}

/// A product that stays at its largest value.
fn product(factors: &[usize]) -> u64 {
    factors.iter().fold(1u64, |product, &factor| product.saturating_mul(factor as u64))
}

/// The sum of counts times the bytes of each.
fn total(parts: &[(u64, u64)]) -> u64 {
    parts.iter().fold(0u64, |sum, &(count, bytes)| sum.saturating_add(count.saturating_mul(bytes)))
}

/// What a call of these sizes takes, in bytes: its inputs, masks, outputs, labels and certificates.
pub(crate) fn of_call(dims: &Dims, selection: &Selection) -> u64 {
    let Dims { batch, heads, kv_heads, queries, keys, head_dim, .. } = *dims;
    let label_channels = selection.group_factor.label_channels(head_dim).unwrap_or(0);
    // Where heads select alone, labels of a KV head are held at a time, by each thread.
    let all = batch.saturating_mul(heads);
    let labelled = match selection.heads {
        HeadMode::PerHead => all.min((heads / kv_heads.max(1)).saturating_mul(THREADS)),
        _ => all,
    };
    let labels = product(&[labelled, keys.saturating_add(queries), label_channels]);
    of_attention(dims).saturating_add(total(&[(labels, LABEL)]))
}

/// What the attention of given keys takes.
pub(crate) fn of_attention(dims: &Dims) -> u64 {
    let Dims { batch, heads, kv_heads, queries, keys, head_dim, value_dim } = *dims;
    total(&[
        (product(&[batch, heads, queries, head_dim]), INPUT),
        (product(&[batch, kv_heads, keys, head_dim]), INPUT),
        (product(&[batch, kv_heads, keys, value_dim]), INPUT),
        (product(&[batch, heads, queries, keys]), KEY_OF_ROW),
        (product(&[batch, heads, queries]), ROW),
        (product(&[batch, heads, queries, value_dim]), OUTPUT),
    ])
}

/// What a question to a top-k takes, [b, h, m, n].
pub(crate) fn of_scores(shape: [usize; 4]) -> u64 {
    total(&[(product(&shape), INPUT + KEY_OF_ROW), (product(&shape[..3]), ROW)])
}

/// What a list of so many tokens in each layer takes, without the tokens.
pub(crate) fn of_room(tokens: usize, layers: usize) -> u64 {
    total(&[(product(&[tokens, layers]), SLOT)])
}

/// What new tokens of one layer take.
pub(crate) fn of_tokens(tokens: usize, kv_heads: usize, head_dim: usize, value_dim: usize) -> u64 {
    let width = head_dim.saturating_add(value_dim);
    total(&[(product(&[tokens, kv_heads, width]), INPUT), (tokens as u64, TOKEN)])
}

/// What rows of channels take.
pub(crate) fn of_channels(rows: usize, width: usize) -> u64 {
    total(&[(product(&[rows, width]), CHANNEL), (rows as u64, CHANNEL_ROW), (width as u64, CHANNEL)])
}

/// How many threads hold labels at once; the same on every machine, so that all refuse the same files.
const THREADS: usize = 16;

// Bytes: measured as the peak of `verify` over cases in which one of these is most of the memory, and rounded up; a test compares
// the sum with what the command takes.

/// A number of q, k or v: as it is read and as it is used.
const INPUT: u64 = 12;
/// A key of a row: masks before, answered and stored, its class, and its place in the scores.
const KEY_OF_ROW: u64 = 32;
/// A row: its lists.
const ROW: u64 = 1024;
/// A number of an output, with its bound.
const OUTPUT: u64 = 32;
/// A label with its radius, before and after it is summed or weighted.
const LABEL: u64 = 48;
/// A place for a token.
const SLOT: u64 = 32;
/// A token, without its numbers.
const TOKEN: u64 = 256;
/// An index of a channel.
const CHANNEL: u64 = 32;
/// A row of channels.
const CHANNEL_ROW: u64 = 128;

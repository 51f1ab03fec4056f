//! What can be wrong with an input of the algorithm (end of SPEC §2). Every message has the same form:
//! the field, the value found and the value expected. The variant says which kind of mistake it is, so that
//! two implementations can be compared in what they refuse.

use std::fmt;

/// The three things a person needs to fix an input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Detail {
    /// Which input or setting, with an index where one helps.
    pub field: String,
    /// What it holds.
    pub found: String,
    /// What it may hold.
    pub expected: String,
}

impl Detail {
    /// Collects the three parts.
    pub fn new(field: impl Into<String>, found: impl fmt::Display, expected: impl Into<String>) -> Self {
        Self { field: field.into(), found: found.to_string(), expected: expected.into() }
    }
}

impl fmt::Display for Detail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: found {}, expected {}", self.field, self.found, self.expected)
    }
}

/// A refused input.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A tensor whose shape does not fit the others.
    #[error("shape does not fit: {0}")]
    Shape(Detail),
    /// NaN or an infinity where SPEC §2 wants a finite number.
    #[error("value not allowed: {0}")]
    NotFinite(Detail),
    /// A weight of an earlier mask that is negative or not a number.
    #[error("mask weight not allowed: {0}")]
    Weight(Detail),
    /// H = 0, H not a number, a fraction outside (0, 1], or an H below the number of forced keys.
    #[error("heavy size not allowed: {0}")]
    HeavySize(Detail),
    /// G = 0 or G not dividing d.
    #[error("group factor not allowed: {0}")]
    GroupFactor(Detail),
    /// B outside 1..=16.
    #[error("label bits not allowed: {0}")]
    LabelBits(Detail),
    /// A head mode that does not exist, or that these channels or this mask cannot serve.
    #[error("head mode not allowed: {0}")]
    HeadMode(Detail),
    /// A channel index at or beyond d.
    #[error("channel out of range: {0}")]
    ChannelRange(Detail),
    /// A channel named twice in one row.
    #[error("channel repeated: {0}")]
    ChannelRepeated(Detail),
    /// Rows of channels that are ragged, too short, or too many or few for the heads.
    #[error("channel rows do not fit: {0}")]
    ChannelRows(Detail),
    /// A layer that a channel file does not hold.
    #[error("layer missing: {0}")]
    MissingLayer(Detail),
    /// A channel kind that does not exist, or that a channel file does not hold.
    #[error("channel kind not available: {0}")]
    ChannelKind(Detail),
    /// A label row whose range or scale leaves the storage type (SPEC D9).
    #[error("labels leave the storage type: {0}")]
    LabelRange(Detail),
    /// A request that is not known, is in use already, or is named twice in one step of a session.
    #[error("request not allowed: {0}")]
    Request(Detail),
    /// More keys than a session has room for.
    #[error("no room: {0}")]
    Capacity(Detail),
    /// More queries than a request has keys, or more of its keys than there are.
    #[error("length not allowed: {0}")]
    Length(Detail),
    /// A channel file that cannot be read or is not what it should be.
    #[error("not readable: {0}")]
    Format(Detail),
    /// JSON that cannot be parsed, or whose fields are not those expected.
    #[error("not readable: {field}: {problem}")]
    Json {
        /// The path of the field.
        field: String,
        /// What was found, what was expected, and where.
        problem: String,
    },
}

impl Error {
    /// Says which label a range error is about; any other error stays as it is.
    pub(crate) fn at_label(mut self, name: &str, index: [usize; 3]) -> Self {
        if let Self::LabelRange(detail) = &mut self {
            detail.field = format!("label of {name}{index:?}");
        }
        self
    }

    /// The name of the kind of mistake, as implementations in other languages name it (`docs/PROTOCOL.md`).
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Shape(_) => "shape",
            Self::NotFinite(_) => "value",
            Self::Weight(_) => "weight",
            Self::HeavySize(_) => "heavy_size",
            Self::GroupFactor(_) => "group_factor",
            Self::LabelBits(_) => "label_bits",
            Self::HeadMode(_) => "head_mode",
            Self::ChannelRange(_) => "channel_range",
            Self::ChannelRepeated(_) => "channel_repeated",
            Self::ChannelRows(_) => "channel_rows",
            Self::MissingLayer(_) => "missing_layer",
            Self::ChannelKind(_) => "channel_kind",
            Self::LabelRange(_) => "label_range",
            Self::Request(_) => "request",
            Self::Capacity(_) => "capacity",
            Self::Length(_) => "length",
            Self::Format(_) | Self::Json { .. } => "format",
        }
    }

    /// A mistake of a named kind; `None` for a name that does not exist.
    pub fn of_kind(kind: &str, detail: Detail) -> Option<Self> {
        let new = match kind {
            "shape" => Self::Shape,
            "value" => Self::NotFinite,
            "weight" => Self::Weight,
            "heavy_size" => Self::HeavySize,
            "group_factor" => Self::GroupFactor,
            "label_bits" => Self::LabelBits,
            "head_mode" => Self::HeadMode,
            "channel_range" => Self::ChannelRange,
            "channel_repeated" => Self::ChannelRepeated,
            "channel_rows" => Self::ChannelRows,
            "missing_layer" => Self::MissingLayer,
            "channel_kind" => Self::ChannelKind,
            "label_range" => Self::LabelRange,
            "request" => Self::Request,
            "capacity" => Self::Capacity,
            "length" => Self::Length,
            "format" => Self::Format,
            _ => return None,
        };
        Some(new(detail))
    }
}

/// Result of the algorithm's functions.
pub type Result<T> = std::result::Result<T, Error>;

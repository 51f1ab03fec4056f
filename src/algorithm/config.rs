//! The settings of the maskers as JSON: a list of maskers, each adding to the mask of the one before, and the
//! layers that stay dense (SPEC §2.2). Unknown fields are errors, and values that SPEC §2 forbids cannot be
//! built. Defaults: group factor 16, 4 label bits, `qk_proj`, per-head, no dense fallback.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, from_value, json};

use super::error::{Detail, Error, Result};
use super::heavy_size::HeavySize;
use super::inputs::Dims;
use super::rules::{Rules, is_default};

/// How heads share a selection (SPEC §2.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HeadMode {
    /// Each head ranks alone.
    #[default]
    PerHead,
    /// Scores are summed over all heads; every head gets the same selection.
    SummedScores,
    /// Labels are summed over all heads and scored once; needs one channel row shared by all heads.
    SummedLabels,
    /// As `summed-scores`, divided by the number of heads.
    Mean,
    /// The largest score of all heads; every head gets the same selection.
    Max,
    /// Scores are summed over the heads that read one KV head, which get the same selection.
    GroupSum,
    /// The largest score of the heads that read one KV head, which get the same selection.
    GroupMax,
    /// As `group-sum`, divided by the number of heads in the group.
    GroupMean,
}

/// How the scores of the heads that share a selection are combined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Combined {
    /// Their sum.
    Sum,
    /// Their sum, divided by the number of heads.
    Mean,
    /// The largest.
    Max,
}

impl HeadMode {
    /// Those of the published algorithm, which a subject has unless it declares others.
    pub const ALL: [Self; 3] = [Self::PerHead, Self::SummedScores, Self::SummedLabels];

    /// All of them.
    pub const EVERY: [Self; 8] = [
        Self::PerHead,
        Self::SummedScores,
        Self::SummedLabels,
        Self::Mean,
        Self::Max,
        Self::GroupSum,
        Self::GroupMax,
        Self::GroupMean,
    ];

    /// Those in which the heads that read one KV head share a selection.
    pub const GROUPS: [Self; 3] = [Self::GroupSum, Self::GroupMax, Self::GroupMean];

    /// How many consecutive heads share a selection.
    pub fn sharing(self, dims: &Dims) -> usize {
        match self {
            Self::PerHead => 1,
            Self::GroupSum | Self::GroupMax | Self::GroupMean => dims.group_size(),
            Self::SummedScores | Self::SummedLabels | Self::Mean | Self::Max => dims.heads,
        }
    }

    /// How the scores of heads are combined. `summed-labels` has one score to begin with.
    pub fn combined(self) -> Combined {
        match self {
            Self::PerHead | Self::SummedScores | Self::SummedLabels | Self::GroupSum => Combined::Sum,
            Self::Mean | Self::GroupMean => Combined::Mean,
            Self::Max | Self::GroupMax => Combined::Max,
        }
    }

    /// The name used in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::PerHead => "per-head",
            Self::SummedScores => "summed-scores",
            Self::SummedLabels => "summed-labels",
            Self::Mean => "mean",
            Self::Max => "max",
            Self::GroupSum => "group-sum",
            Self::GroupMax => "group-max",
            Self::GroupMean => "group-mean",
        }
    }
}

impl std::str::FromStr for HeadMode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let found = Self::EVERY.into_iter().find(|mode| mode.name() == text);
        found.ok_or_else(|| {
            let expected = Self::EVERY.map(Self::name).join(", ");
            Error::HeadMode(Detail::new("heads", format!("{text:?}"), expected))
        })
    }
}

/// Which calibration a channel order comes from (SPEC §4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChannelKind {
    /// Mean of |q| before RoPE; one row per query head.
    QProj,
    /// Mean of |k| before RoPE; one row per KV head.
    KProj,
    /// Mean of |q·k| of the same token after RoPE; one row per query head.
    #[default]
    QkProj,
}

impl ChannelKind {
    /// All three.
    pub const ALL: [Self; 3] = [Self::QProj, Self::KProj, Self::QkProj];

    /// The name used in channel files.
    pub fn name(self) -> &'static str {
        match self {
            Self::QProj => "q_proj",
            Self::KProj => "k_proj",
            Self::QkProj => "qk_proj",
        }
    }
}

impl std::str::FromStr for ChannelKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|kind| kind.name() == text);
        found.ok_or_else(|| {
            let expected = "q_proj, k_proj or qk_proj";
            Error::ChannelKind(Detail::new("kind", format!("{text:?}"), expected))
        })
    }
}

/// B: how many bits a label code has, 1..=16; 16 means that labels are not quantised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct LabelBits(u8);

impl LabelBits {
    /// Labels as they are.
    pub const UNQUANTISED: Self = Self(16);

    /// B from a number. Errors: [`Error::LabelBits`] outside 1..=16.
    pub fn new(bits: u64) -> Result<Self> {
        match u8::try_from(bits) {
            Ok(bits) if (1..=16).contains(&bits) => Ok(Self(bits)),
            _ => Err(Error::LabelBits(Detail::new("label_bits", bits, "1 to 16"))),
        }
    }

    /// The number of bits.
    pub fn get(self) -> u8 {
        self.0
    }

    /// Whether labels are quantised: false for 16 bits.
    pub fn quantises(self) -> bool {
        self != Self::UNQUANTISED
    }

    /// 2^B − 1, the largest code.
    pub fn largest_code(self) -> f32 {
        f32::from(u16::MAX >> (16 - self.0))
    }
}

impl Default for LabelBits {
    /// 4, as in the author's code.
    fn default() -> Self {
        Self(4)
    }
}

impl TryFrom<u64> for LabelBits {
    type Error = Error;

    fn try_from(bits: u64) -> Result<Self> {
        Self::new(bits)
    }
}

impl From<LabelBits> for u64 {
    fn from(bits: LabelBits) -> Self {
        u64::from(bits.0)
    }
}

/// G: the head dimension is divided by it to give the number of label channels r = d / G.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct GroupFactor(NonZeroUsize);

impl GroupFactor {
    /// G from a number. Errors: [`Error::GroupFactor`] for 0.
    pub fn new(factor: u64) -> Result<Self> {
        usize::try_from(factor).ok().and_then(NonZeroUsize::new).map(Self).ok_or_else(|| {
            Error::GroupFactor(Detail::new("group_factor", factor, "an integer of at least 1"))
        })
    }

    /// The factor.
    pub fn get(self) -> usize {
        self.0.get()
    }

    /// r = d / G. Errors: [`Error::GroupFactor`] where G does not divide d (SPEC D8).
    pub fn label_channels(self, head_dim: usize) -> Result<usize> {
        if head_dim.is_multiple_of(self.get()) {
            Ok(head_dim / self.get())
        } else {
            let expected = format!("a divisor of the head dimension {head_dim}");
            Err(Error::GroupFactor(Detail::new("group_factor", self.get(), expected)))
        }
    }
}

impl Default for GroupFactor {
    /// 16, as in the author's code.
    fn default() -> Self {
        Self(const { NonZeroUsize::new(16).unwrap() })
    }
}

impl TryFrom<u64> for GroupFactor {
    type Error = Error;

    fn try_from(factor: u64) -> Result<Self> {
        Self::new(factor)
    }
}

impl From<GroupFactor> for u64 {
    fn from(factor: GroupFactor) -> Self {
        factor.get() as u64
    }
}

/// The settings by which SPEC §2 selects keys, apart from the channel order.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Selection {
    /// H: how many keys are selected.
    pub heavy_size: HeavySize,
    /// G: d / G label channels.
    pub group_factor: GroupFactor,
    /// B: bits of a label code.
    pub label_bits: LabelBits,
    /// How heads share a selection.
    #[serde(default)]
    pub heads: HeadMode,
    /// Full mask when n − m ≤ H (SPEC D3).
    #[serde(default)]
    pub dense_fallback: bool,
    /// What differs from the published algorithm (SPEC §2.12).
    #[serde(default, skip_serializing_if = "is_default")]
    pub rules: Rules,
}

impl Selection {
    /// Whether this is the published algorithm, with one of the head modes of [`HeadMode::ALL`].
    pub fn is_plain(&self) -> bool {
        is_default(&self.rules) && HeadMode::ALL.contains(&self.heads)
    }

    /// For implementations of the published algorithm alone. Errors: [`Error::HeadMode`] unless [`Self::is_plain`].
    pub fn check_plain(&self) -> Result<()> {
        if self.is_plain() {
            return Ok(());
        }
        let found = format!("{} with rules {}", self.heads.name(), json!(self.rules));
        let expected = format!("{} with no other rules", HeadMode::ALL.map(HeadMode::name).join(", "));
        Err(Error::HeadMode(Detail::new("heads", found, expected)))
    }

    /// The bits of the labels of queries and of keys.
    pub fn bits(&self) -> [LabelBits; 2] {
        self.rules.bits(self.label_bits)
    }

    /// A per-head selection by the published algorithm, without dense fallback. Errors: [`Error::GroupFactor`] for 0,
    /// [`Error::LabelBits`] outside 1..=16.
    pub fn new(heavy_size: HeavySize, group_factor: u64, label_bits: u64) -> Result<Self> {
        Ok(Self {
            heavy_size,
            group_factor: GroupFactor::new(group_factor)?,
            label_bits: LabelBits::new(label_bits)?,
            heads: HeadMode::PerHead,
            dense_fallback: false,
            rules: Rules::default(),
        })
    }
}

/// Settings of the Double Sparsity masker. In JSON its fields and those of the selection stand side by side, and G and B may
/// be left out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DoubleSparsityConfig {
    /// The settings apart from the channel file.
    #[serde(flatten)]
    pub selection: Selection,
    /// Path of the channel file; a relative path starts at the folder of the configuration file.
    pub sorted_channel_file: PathBuf,
    /// Which rows of the channel file.
    pub channel_selection: ChannelKind,
}

impl<'de> Deserialize<'de> for DoubleSparsityConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Fields {
            sorted_channel_file: PathBuf,
            #[serde(default)]
            channel_selection: ChannelKind,
            #[serde(flatten)]
            selection: Map<String, Value>,
        }
        #[derive(Deserialize)]
        struct Known {
            #[serde(flatten)]
            selection: Selection,
            #[serde(flatten)]
            unknown: Map<String, Value>,
        }

        let Fields { sorted_channel_file, channel_selection, mut selection } =
            Fields::deserialize(deserializer)?;
        selection.entry("group_factor").or_insert_with(|| json!(GroupFactor::default()));
        selection.entry("label_bits").or_insert_with(|| json!(LabelBits::default()));
        let selection = Value::Object(selection);
        // Errors inside a flattened part lose the field's name: it is read on its own first.
        serde_path_to_error::deserialize::<_, Selection>(&selection)
            .map_err(|error| D::Error::custom(format!("{}: {}", error.path(), error.inner())))?;
        let Known { selection, unknown } = from_value(selection).map_err(D::Error::custom)?;
        match unknown.keys().next() {
            Some(field) => Err(D::Error::custom(format!("unknown field `{field}`"))),
            None => Ok(Self { selection, sorted_channel_file, channel_selection }),
        }
    }
}

/// Settings of the sink and local maskers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WindowConfig {
    /// How many keys.
    pub size: HeavySize,
}

/// Settings of the exact top-k masker.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OracleConfig {
    /// H.
    pub heavy_size: HeavySize,
}

/// One masker of a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MaskerConfig {
    /// The first keys.
    Sink(WindowConfig),
    /// The last keys up to and including the query's own position.
    Local(WindowConfig),
    /// The keys with the largest exact scores.
    Oracle(OracleConfig),
    /// The keys with the largest label scores.
    DoubleSparsity(DoubleSparsityConfig),
}

/// A list of maskers over an attention.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttentionConfig {
    /// Applied in order.
    pub maskers: Vec<MaskerConfig>,
    /// Layers that get a full mask.
    #[serde(default)]
    pub dense_layers: Vec<usize>,
}

#[cfg(feature = "files")]
impl AttentionConfig {
    /// Reads a configuration. Errors: [`Error::Json`].
    pub fn from_json(text: &str) -> Result<Self> {
        from_json("configuration", text)
    }
}

/// Reads JSON. Errors: [`Error::Json`] with the path of the field at fault below `what`.
pub fn from_json<T: serde::de::DeserializeOwned>(what: &str, text: &str) -> Result<T> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let whole = path == "." || path == "?";
        let field = if whole { what.to_owned() } else { format!("{what}.{path}") };
        Error::Json { field, problem: error.inner().to_string() }
    })?;
    let end = |error: serde_json::Error| Error::Json { field: what.to_owned(), problem: error.to_string() };
    deserializer.end().map_err(end)?;
    Ok(value)
}

//! What may be computed otherwise than in the published algorithm: the score of one head and key, what is quantised, over
//! which parts heads are taken together, and keys that are selected whatever they score (SPEC §2.5, §2.6, §2.7, §2.9, §2.12). The
//! defaults are the published algorithm.

use std::num::NonZeroUsize;

use serde::{Deserialize, Serialize};

use super::config::{HeadMode, LabelBits};
use super::error::{Detail, Error, Result};
use super::inputs::Dims;
use super::storage::Storage;

/// The rules of one instance.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rules {
    /// Which of q̂ and k̂ are quantised where B < 16.
    #[serde(skip_serializing_if = "is_default")]
    pub quantised: QuantisedLabels,
    /// Whether q̂ is multiplied by the channel weights of its row before it is scored; without weights by 1.
    #[serde(skip_serializing_if = "is_default")]
    pub channel_weights: bool,
    /// The score of one head and key.
    #[serde(skip_serializing_if = "is_default")]
    pub score: ScoreRule,
    /// ε of `cosine`.
    #[serde(skip_serializing_if = "is_default")]
    pub epsilon: Epsilon,
    /// What a score is multiplied by.
    #[serde(skip_serializing_if = "is_default")]
    pub factor: ScoreFactor,
    /// Into how many parts the heads that share a selection are split.
    #[serde(skip_serializing_if = "is_default")]
    pub ranks: Ranks,
    /// Keys that are selected whatever they score.
    #[serde(skip_serializing_if = "is_default")]
    pub forced: Forced,
}

pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Rules {
    /// The bits of the labels of queries and of keys.
    pub fn bits(&self, bits: LabelBits) -> [LabelBits; 2] {
        let unquantised = LabelBits::UNQUANTISED;
        match self.quantised {
            QuantisedLabels::Both => [bits, bits],
            QuantisedLabels::Keys => [unquantised, bits],
            QuantisedLabels::Queries => [bits, unquantised],
        }
    }
}

/// Which labels are quantised (SPEC §2.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QuantisedLabels {
    /// q̂ and k̂.
    #[default]
    Both,
    /// k̂ alone.
    Keys,
    /// q̂ alone.
    Queries,
}

/// The score of one head and key, from its labels (SPEC §2.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScoreRule {
    /// q̂ · k̂
    #[default]
    Dot,
    /// q̂ · k̂ / (‖q̂‖ · ‖k̂‖ + ε)
    Cosine,
    /// w · max(q̂ · k̂, 0), with the head weight w of the row.
    Relu,
}

/// ε of the cosine: positive and finite in f32.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Epsilon(f64);

impl Epsilon {
    /// ε from a number. Errors: [`Error::NotFinite`] unless it is positive and finite in f32.
    pub fn new(epsilon: f64) -> Result<Self> {
        if (epsilon as f32).is_finite() && epsilon as f32 > 0.0 {
            return Ok(Self(epsilon));
        }
        let expected = "a number that is positive and finite in f32";
        Err(Error::NotFinite(Detail::new("epsilon", format!("{epsilon:?}"), expected)))
    }

    /// The number.
    pub fn get(self) -> f64 {
        self.0
    }
}

impl Default for Epsilon {
    /// 10⁻⁶.
    fn default() -> Self {
        Self(1e-6)
    }
}

impl TryFrom<f64> for Epsilon {
    type Error = Error;

    fn try_from(epsilon: f64) -> Result<Self> {
        Self::new(epsilon)
    }
}

impl From<Epsilon> for f64 {
    fn from(epsilon: Epsilon) -> Self {
        epsilon.0
    }
}

/// What a score is multiplied by before A is added.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(try_from = "FactorFields", into = "FactorFields")]
pub enum ScoreFactor {
    /// 1 / √r
    #[default]
    LabelChannels,
    /// 1 / √d
    HeadDim,
    /// A positive number.
    Number(f64),
}

/// `"1/sqrt(r)"`, `"1/sqrt(d)"`, or a number.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum FactorFields {
    Number(f64),
    Name(String),
}

impl ScoreFactor {
    /// 1.
    pub const ONE: Self = Self::Number(1.0);

    /// A factor that is a number. Errors: [`Error::NotFinite`] unless it is positive and finite in f32.
    pub fn number(factor: f64) -> Result<Self> {
        if (factor as f32).is_finite() && factor as f32 > 0.0 {
            return Ok(Self::Number(factor));
        }
        let expected = "\"1/sqrt(r)\", \"1/sqrt(d)\", or a number that is positive and finite in f32";
        Err(Error::NotFinite(Detail::new("factor", format!("{factor:?}"), expected)))
    }

    /// A score times the factor, for r label channels and head dimension d.
    #[inline]
    pub fn apply(self, score: f64, label_channels: usize, head_dim: usize) -> f64 {
        match self {
            Self::LabelChannels => score / (label_channels as f64).sqrt(),
            Self::HeadDim => score / (head_dim as f64).sqrt(),
            Self::Number(factor) => score * factor,
        }
    }

    /// The factor as a number, for r label channels and head dimension d.
    pub fn get(self, label_channels: usize, head_dim: usize) -> f64 {
        match self {
            Self::LabelChannels => 1.0 / (label_channels as f64).sqrt(),
            Self::HeadDim => 1.0 / (head_dim as f64).sqrt(),
            Self::Number(factor) => factor,
        }
    }
}

impl TryFrom<FactorFields> for ScoreFactor {
    type Error = Error;

    fn try_from(fields: FactorFields) -> Result<Self> {
        match fields {
            FactorFields::Number(factor) => Self::number(factor),
            FactorFields::Name(name) => match name.as_str() {
                "1/sqrt(r)" => Ok(Self::LabelChannels),
                "1/sqrt(d)" => Ok(Self::HeadDim),
                _ => {
                    let expected = "\"1/sqrt(r)\", \"1/sqrt(d)\" or a number";
                    Err(Error::NotFinite(Detail::new("factor", format!("{name:?}"), expected)))
                }
            },
        }
    }
}

impl From<ScoreFactor> for FactorFields {
    fn from(factor: ScoreFactor) -> Self {
        match factor {
            ScoreFactor::LabelChannels => Self::Name("1/sqrt(r)".into()),
            ScoreFactor::HeadDim => Self::Name("1/sqrt(d)".into()),
            ScoreFactor::Number(factor) => Self::Number(factor),
        }
    }
}

/// Into how many parts the heads that share a selection are split, as under tensor parallelism: equal parts in order, the head
/// rule within each, and the sum of the parts. A head that ranks alone is not split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "RanksFields", into = "RanksFields")]
pub struct Ranks {
    count: NonZeroUsize,
    parts: Storage,
}

/// A number, or a number and the type of the parts.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum RanksFields {
    Count(u64),
    Exchanged(ExchangedFields),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExchangedFields {
    count: u64,
    parts: Storage,
}

impl Ranks {
    /// `count` parts, each rounded to the type `parts`; f32 leaves them as they are.
    ///
    /// Errors: [`Error::HeadMode`] for no parts, and for one part that is rounded, as it is exchanged with none.
    pub fn new(count: u64, parts: Storage) -> Result<Self> {
        let wrong = |field: &str, found: String, expected: &str| {
            Err(Error::HeadMode(Detail::new(field, found, expected)))
        };
        let Some(count) = usize::try_from(count).ok().and_then(NonZeroUsize::new) else {
            return wrong("ranks", count.to_string(), "an integer of at least 1");
        };
        if count.get() == 1 && parts != Storage::F32 {
            return wrong("ranks.parts", format!("{parts} with 1 rank"), "f32, as nothing is exchanged");
        }
        Ok(Self { count, parts })
    }

    /// How many parts.
    pub fn count(self) -> usize {
        self.count.get()
    }

    /// The type that each part is rounded to.
    pub fn parts(self) -> Storage {
        self.parts
    }

    /// How many heads in a row are taken together before parts are summed.
    pub fn together(self, mode: HeadMode, dims: &Dims) -> usize {
        match mode.sharing(dims) {
            1 => 1,
            sharing => sharing / self.count(),
        }
    }

    /// Errors: [`Error::HeadMode`] where the heads that share a selection cannot be split into equal parts.
    pub fn check(self, mode: HeadMode, dims: &Dims) -> Result<()> {
        let sharing = mode.sharing(dims);
        if mode == HeadMode::PerHead || sharing.is_multiple_of(self.count()) {
            return Ok(());
        }
        let expected = format!("a divisor of the {sharing} heads that {} takes together", mode.name());
        Err(Error::HeadMode(Detail::new("ranks", self.count(), expected)))
    }
}

impl Default for Ranks {
    /// One part.
    fn default() -> Self {
        Self { count: NonZeroUsize::MIN, parts: Storage::F32 }
    }
}

impl TryFrom<RanksFields> for Ranks {
    type Error = Error;

    fn try_from(fields: RanksFields) -> Result<Self> {
        match fields {
            RanksFields::Count(count) => Self::new(count, Storage::F32),
            RanksFields::Exchanged(ExchangedFields { count, parts }) => Self::new(count, parts),
        }
    }
}

impl From<Ranks> for RanksFields {
    fn from(ranks: Ranks) -> Self {
        let count = ranks.count() as u64;
        match ranks.parts {
            Storage::F32 => Self::Count(count),
            parts => Self::Exchanged(ExchangedFields { count, parts }),
        }
    }
}

/// Keys that are selected whatever they score, counted within H; they must be candidates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Forced {
    /// The first keys.
    #[serde(skip_serializing_if = "is_default")]
    pub first: usize,
    /// The last keys up to and including the query's own absolute position.
    #[serde(skip_serializing_if = "is_default")]
    pub last: usize,
}

impl Forced {
    /// Whether a key is forced for a query at an absolute position.
    pub fn holds(self, key: usize, position: usize) -> bool {
        key < self.first || (key <= position && position - key < self.last)
    }

    /// Checks that H holds the forced keys. Errors: [`Error::HeavySize`] where a row may have more of them than H.
    pub fn check(self, dims: &Dims, heavy_size: usize) -> Result<()> {
        let most = self.first.saturating_add(self.last).min(dims.keys);
        if most <= heavy_size {
            return Ok(());
        }
        let expected =
            format!("at least {most}, as {} first and {} last keys are forced", self.first, self.last);
        Err(Error::HeavySize(Detail::new("heavy_size", heavy_size, expected)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_left_out() {
        let json = |rules: Rules| serde_json::to_string(&rules).unwrap();
        assert_eq!(json(Rules::default()), "{}");
        let rules = Rules {
            quantised: QuantisedLabels::Keys,
            channel_weights: true,
            score: ScoreRule::Cosine,
            epsilon: Epsilon::new(0.5).unwrap(),
            factor: ScoreFactor::HeadDim,
            ranks: Ranks::new(2, Storage::Bf16).unwrap(),
            forced: Forced { first: 0, last: 1 },
        };
        let text = concat!(
            r#"{"quantised":"keys","channel_weights":true,"score":"cosine","epsilon":0.5,"factor":"1/sqrt(d)","#,
            r#""ranks":{"count":2,"parts":"bf16"},"forced":{"last":1}}"#
        );
        assert_eq!(json(rules), text);
        assert_eq!(serde_json::from_str::<Rules>(text).unwrap(), rules);
        assert_eq!(
            serde_json::from_str::<Rules>(r#"{"factor":2}"#).unwrap().factor,
            ScoreFactor::Number(2.0)
        );
    }

    #[test]
    fn unknown_names_and_numbers_that_are_not_positive_are_refused() {
        for text in [
            r#"{"factor":"1/sqrt(n)"}"#,
            r#"{"factor":0}"#,
            r#"{"factor":-1}"#,
            r#"{"factor":1e300}"#,
            r#"{"epsilon":0}"#,
            r#"{"channel_weights":1}"#,
            r#"{"ranks":0}"#,
            r#"{"ranks":1.5}"#,
            r#"{"ranks":{"count":2,"parts":"f64"}}"#,
            r#"{"ranks":{"count":1,"parts":"bf16"}}"#,
            r#"{"ranks":{"count":2,"parts":"bf16","other":1}}"#,
            r#"{"score":"euclid"}"#,
            r#"{"forced":{"middle":1}}"#,
            r#"{"score":"dot","other":1}"#,
        ] {
            assert!(serde_json::from_str::<Rules>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn forced_keys_are_relative_to_the_query() {
        let forced = Forced { first: 1, last: 2 };
        let held = |position: usize| (0..6).filter(|&key| forced.holds(key, position)).collect::<Vec<_>>();
        assert_eq!(held(4), [0, 3, 4]);
        assert_eq!(held(0), [0]);
    }
}

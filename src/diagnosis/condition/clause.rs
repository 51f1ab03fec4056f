//! One clause of a condition: a number at an edge, a multiple of a power of two, one number against another, what a call has or
//! has not, which of several it has.

use std::cmp::Ordering;
use std::fmt;

use super::features::{Choice, Features, Number, Trait};

/// Numbers that are compared with one another.
const COMPARED: [(Number, Number); 8] = [
    (Number::HeavySize, Number::Candidates),
    (Number::HeavySize, Number::Keys),
    (Number::Past, Number::HeavySize),
    (Number::Queries, Number::Keys),
    (Number::Keys, Number::KeysBefore),
    (Number::Batch, Number::BatchBefore),
    (Number::LabelChannels, Number::HeadDim),
    (Number::Queries, Number::HeavySize),
];

/// Numbers of which multiples are looked for: those that kernels cut into tiles.
const TILED: [Number; 4] = [Number::Keys, Number::HeavySize, Number::Queries, Number::HeadDim];

/// Tiles are at most so large.
const LARGEST_TILE: u32 = 4096;

/// How one number compares with another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Comparison {
    /// <
    Less,
    /// >
    Greater,
    /// =
    Equal,
    /// ≠
    Different,
    /// ≤
    AtMost,
    /// ≥
    AtLeast,
}

impl Comparison {
    const ALL: [Self; 6] =
        [Self::Less, Self::Greater, Self::Equal, Self::Different, Self::AtMost, Self::AtLeast];

    fn holds(self, ordering: Ordering) -> bool {
        match self {
            Self::Less => ordering.is_lt(),
            Self::Greater => ordering.is_gt(),
            Self::Equal => ordering.is_eq(),
            Self::Different => ordering.is_ne(),
            Self::AtMost => ordering.is_le(),
            Self::AtLeast => ordering.is_ge(),
        }
    }

    fn sign(self) -> &'static str {
        match self {
            Self::Less => "<",
            Self::Greater => ">",
            Self::Equal => "=",
            Self::Different => "≠",
            Self::AtMost => "≤",
            Self::AtLeast => "≥",
        }
    }
}

/// One clause. The order is that in which a reader expects them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Clause {
    /// A number is at least this.
    AtLeast(Number, u32),
    /// A number is at most this.
    AtMost(Number, u32),
    /// A number is this.
    Equal(Number, u32),
    /// A number is no multiple of this.
    NotMultiple(Number, u32),
    /// A number is a multiple of this.
    Multiple(Number, u32),
    /// One number against another.
    Compare(Number, Comparison, Number),
    /// It has this, or has it not.
    Has(Trait, bool),
    /// It has this of several.
    Is(Choice, u8),
    /// It has another than this.
    IsNot(Choice, u8),
}

impl Clause {
    /// There is something to choose: some row has more candidates than H.
    pub const SELECTS: Self = Self::Compare(Number::HeavySize, Comparison::Less, Number::Candidates);

    /// Whether a call fits; one without the number does not.
    pub fn holds(self, features: &Features) -> bool {
        let number = |number: Number| features.number(number);
        match self {
            Self::AtLeast(of, least) => number(of).is_some_and(|found| found >= least),
            Self::AtMost(of, most) => number(of).is_some_and(|found| found <= most),
            Self::Equal(of, value) => number(of) == Some(value),
            Self::NotMultiple(of, tile) => number(of).is_some_and(|found| found % tile != 0),
            Self::Multiple(of, tile) => number(of).is_some_and(|found| found % tile == 0),
            Self::Compare(one, relation, other) => {
                number(one).zip(number(other)).is_some_and(|(one, other)| relation.holds(one.cmp(&other)))
            }
            Self::Has(of, has) => features.has(of) == has,
            Self::Is(of, value) => features.choice(of) == value,
            Self::IsNot(of, value) => features.choice(of) != value,
        }
    }

    /// Every clause that holds for all of these.
    pub fn all_of(failing: &[&Features]) -> Vec<Self> {
        let mut clauses: Vec<Self> = Vec::new();
        for of in Number::ALL {
            let Some(found) = failing.iter().map(|features| features.number(of)).collect::<Option<Vec<_>>>()
            else {
                continue;
            };
            let (Some(&least), Some(&most)) = (found.iter().min(), found.iter().max()) else { continue };
            clauses.extend([Self::AtLeast(of, least), Self::AtMost(of, most)]);
            if least == most {
                clauses.push(Self::Equal(of, least));
            }
        }
        let tiles =
            std::iter::successors(Some(2), |tile| Some(2 * tile)).take_while(|&tile| tile <= LARGEST_TILE);
        let of_tiles = tiles.flat_map(|tile| TILED.map(|of| (of, tile)));
        clauses
            .extend(of_tiles.flat_map(|(of, tile)| [Self::NotMultiple(of, tile), Self::Multiple(of, tile)]));
        for (one, other) in COMPARED {
            clauses.extend(Comparison::ALL.map(|comparison| Self::Compare(one, comparison, other)));
        }
        clauses.extend(Trait::ALL.into_iter().flat_map(|of| [Self::Has(of, true), Self::Has(of, false)]));
        for of in Choice::ALL {
            let values: Vec<u8> = failing.iter().map(|features| features.choice(of)).collect();
            clauses.extend(values.first().map(|&value| Self::Is(of, value)));
            clauses
                .extend((0..16).filter(|value| !values.contains(value)).map(|value| Self::IsNot(of, value)));
        }
        clauses.retain(|clause| failing.iter().all(|features| clause.holds(features)));
        clauses
    }
}

impl fmt::Display for Clause {
    /// "n > 64", "n mod 64 ≠ 0", "H < candidates", "A given", "f16"
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::AtLeast(Number::Earlier, 1) => f.write_str("an earlier call"),
            Self::AtMost(Number::Earlier, 0) | Self::Equal(Number::Earlier, 0) => {
                f.write_str("no earlier call")
            }
            Self::AtLeast(Number::LabelBits, 16) | Self::Equal(Number::LabelBits, 16) => {
                f.write_str("B = 16 (labels not quantised)")
            }
            Self::AtMost(Number::LabelBits, 15) => f.write_str("B < 16"),
            Self::AtLeast(of, least) if least > 0 => write!(f, "{} > {}", of.symbol(), least - 1),
            Self::AtLeast(of, least) => write!(f, "{} ≥ {least}", of.symbol()),
            Self::AtMost(of, most) => write!(f, "{} ≤ {most}", of.symbol()),
            Self::Equal(of, value) => write!(f, "{} = {value}", of.symbol()),
            Self::NotMultiple(of, 2) => write!(f, "{} odd", of.symbol()),
            Self::Multiple(of, 2) => write!(f, "{} even", of.symbol()),
            Self::NotMultiple(of, tile) => write!(f, "{} mod {tile} ≠ 0", of.symbol()),
            Self::Multiple(of, tile) => write!(f, "{} mod {tile} = 0", of.symbol()),
            Self::Compare(one, relation, other) => {
                write!(f, "{} {} {}", one.symbol(), relation.sign(), other.symbol())
            }
            Self::Has(of, has) => f.write_str(of.words()[usize::from(!has)]),
            Self::Is(of, value) => f.write_str(&of.words(value)),
            Self::IsNot(of, value) => write!(f, "not {}", of.words(value)),
        }
    }
}

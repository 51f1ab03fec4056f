//! Rows that select otherwise (SPEC §2.8, §2.9): another row's scores, keys that are lost or forced, another count, another
//! order of ties. What a change makes of a row's candidates and their bounds is in `verdicts::changed`.

use super::places::{Axis, Map};
use crate::algorithm::{Dims, Row, Storage};

/// What rows do otherwise.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RowChange {
    /// A row selects what another one should.
    RowOf(Axis, Map),
    /// A row ranks by another row's scores.
    ScoresOf(Axis, Map),
    /// Another place's P decides which keys are candidates.
    EarlierOf(Axis, Map),
    /// P of any head excludes a key.
    EarlierOfAnyHead,
    /// P of any of the heads that should share a selection excludes a key, where parts of them share one.
    EarlierOfAllParts,
    /// A is added once, after the head rule, that of each head to its own row.
    AdditiveOnce {
        /// Whether P of the row's own head alone excludes keys.
        own_earlier: bool,
    },
    /// Keys that cannot be selected.
    Lost(Lost),
    /// The same keys are ranked, and left out where they are selected.
    LeftOut(Lost),
    /// The same keys score −∞ and stay candidates: they are selected where others are fewer than H.
    RankedLast(Lost),
    /// Keys that are selected whatever they score.
    Forced(Forced),
    /// Keys that are selected on top of H.
    Added(Forced),
    /// Scores are compared by so many of their highest bits.
    Coarse(u32),
    /// Scores are compared as numbers of this type.
    Rounded(Storage),
    /// Scores are compared by their bits as whole numbers, so that negative ones rank the other way round.
    ByBits {
        /// Whether the highest bit is a sign: without one, negative scores are above all others.
        signed: bool,
    },
    /// Of candidates with the same score only the first can be selected.
    EqualCollapse,
    /// Places up to a multiple, or a power of two where that is `None`, compete with a score of 0.
    Phantoms(Option<usize>),
    /// Scores below 0 count as 0.
    NegativeIsZero,
    /// Scores of this or less count as −∞.
    ExcludedBelow(f64),
    /// Each tile has at most so many of its keys selected.
    OfEachTile {
        /// Keys of a tile.
        tile: usize,
        /// How many are selected.
        most: usize,
    },
    /// Whole pages are selected, by their largest score.
    Pages(usize),
    /// Of the keys that share the highest bits of the H-th score only the first few compete; rows of exactly H candidates may be
    /// ranked as well.
    CrowdedBin {
        /// What shares a bin.
        bins: Bins,
        /// How many compete.
        room: usize,
        /// Whether rows of exactly H candidates are ranked, too.
        exact_too: bool,
    },
    /// Query t selects the keys that rank t · H and on in query 0's order.
    RunnersUp,
    /// A row without more candidates than H is cut at the last threshold of a row before it.
    StaleThreshold,
    /// How many keys.
    Count(Counted),
    /// Selected positions are taken modulo this.
    Modulo(usize),
}

/// Bins of scores: the highest bits of an f32, or of the f16 next to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bins {
    /// So many bits of an f32.
    F32(u32),
    /// So many bits of an f16.
    F16(u32),
}

impl Bins {
    fn words(self) -> String {
        match self {
            Self::F32(bits) => format!("the highest {bits} bits"),
            Self::F16(bits) => format!("the highest {bits} bits in float16"),
        }
    }
}

/// Keys that cannot be selected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// From the last whole tile's end on; where no tile is whole, none.
    PartialTile(usize),
    /// From the last whole tile's end on.
    PartialTileAlways(usize),
    /// The first −n mod T, in every row of a head but the first.
    TailOfRowBefore(usize),
    /// The first −n mod T, in every row but the first of all.
    TailOfAnyRowBefore(usize),
    /// The first n mod T.
    FirstPartial(usize),
    /// The first tile.
    FirstTile(usize),
    /// Position p and above.
    From(usize),
    /// Positions below p.
    Below(usize),
    /// Position m and above, where there are several queries.
    FromQueries,
    /// Position n − 1.
    Newest,
    /// The query's own position.
    Own,
    /// Position 0.
    First,
    /// Positions beyond the first call of this layer, batch size and number of queries.
    BeyondFirstOfShape,
    /// Positions beyond the first call of this layer.
    BeyondFirstOfLayer,
    /// Positions beyond the call before of this layer.
    BeyondCallBefore,
}

/// Keys that are selected whatever they score.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forced {
    /// The first s.
    First(usize),
    /// The last w up to the query's position.
    Last(usize),
    /// Position n − 1.
    Newest,
}

/// How many keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counted {
    /// H less the keys of P.
    LessEarlier,
    /// All candidates.
    All,
    /// With fewer candidates than H the last key as well, candidate or not.
    PadsSelectLast,
    /// None where candidates are exactly H.
    ExactFitEmpty,
    /// All candidates where they are at most H + 1.
    OneMoreFits,
    /// Those above the H-th alone, where there are more than H.
    AboveThreshold,
    /// All that are at least the H-th.
    AllTies,
    /// With at most H candidates, as many positions from 0 on.
    Identity,
    /// With H + 1 candidates, positions 0 to H − 1.
    IdentityAtOneMore,
    /// With fewer candidates than H, excluded keys from the lowest position on.
    FilledUp,
}

/// What a change knows of a row.
pub struct Place<'a> {
    /// The row.
    pub row: Row,
    /// The sizes of its call.
    pub dims: &'a Dims,
    /// How many keys P and earlier maskers hold in this row.
    pub earlier: usize,
    /// The numbers of keys of earlier calls of the layer: of the first with the same batch size and number of queries, of the
    /// first, and of the last.
    pub lengths: [Option<usize>; 3],
}

impl Lost {
    /// Whether a key is one of them.
    pub fn holds(self, key: usize, place: &Place<'_>) -> bool {
        let (n, m) = (place.dims.keys, place.dims.queries);
        let (_, _, query) = place.row;
        let [of_shape, of_layer, before] = place.lengths;
        match self {
            Self::PartialTile(tile) => n >= tile && key >= n / tile * tile,
            Self::PartialTileAlways(tile) => key >= n / tile * tile,
            Self::TailOfRowBefore(tile) => query > 0 && key < (tile - n % tile) % tile,
            Self::TailOfAnyRowBefore(tile) => place.row != (0, 0, 0) && key < (tile - n % tile) % tile,
            Self::FirstPartial(tile) => key < n % tile,
            Self::FirstTile(tile) => key < tile,
            Self::From(position) => key >= position,
            Self::Below(position) => key < position,
            Self::FromQueries => m > 1 && key >= m,
            Self::Newest => key + 1 == n,
            Self::Own => key == place.dims.position(query),
            Self::First => key == 0,
            Self::BeyondFirstOfShape => of_shape.is_some_and(|length| key >= length),
            Self::BeyondFirstOfLayer => of_layer.is_some_and(|length| key >= length),
            Self::BeyondCallBefore => before.is_some_and(|length| key >= length),
        }
    }

    fn words(self) -> String {
        match self {
            Self::PartialTile(tile) => {
                format!("from n = {tile} on, keys from position {tile} · ⌊n / {tile}⌋ on are never selected")
            }
            Self::PartialTileAlways(tile) => {
                format!("keys from position {tile} · ⌊n / {tile}⌋ on are never selected")
            }
            Self::TailOfRowBefore(tile) => {
                format!("the first −n mod {tile} keys of every query but the first are never selected")
            }
            Self::TailOfAnyRowBefore(tile) => {
                format!("the first −n mod {tile} keys of every row but the first are never selected")
            }
            Self::FirstPartial(tile) => format!("the first n mod {tile} keys are never selected"),
            Self::FirstTile(tile) => format!("the first {tile} keys are never selected"),
            Self::From(position) => format!("keys from position {position} on are never selected"),
            Self::Below(position) => format!("keys below position {position} are never selected"),
            Self::FromQueries => "with several queries, keys from position m on are never selected".into(),
            Self::Newest => "the newest key, at position n − 1, is never selected".into(),
            Self::Own => "the key at the query's own position is never selected".into(),
            Self::First => "the key at position 0 is never selected".into(),
            Self::BeyondFirstOfShape => {
                "keys beyond the length of the first call with the same layer, batch size \
                                         and number of queries are never selected"
                    .into()
            }
            Self::BeyondFirstOfLayer => {
                "keys beyond the length of the layer's first call are never selected".into()
            }
            Self::BeyondCallBefore => {
                "keys beyond the length of the layer's call before are never selected".into()
            }
        }
    }
}

impl Forced {
    /// Whether a key is one of them.
    pub fn holds(self, key: usize, place: &Place<'_>) -> bool {
        let position = place.dims.position(place.row.2);
        match self {
            Self::First(count) => key < count,
            Self::Last(count) => key <= position && key + count > position,
            Self::Newest => key + 1 == place.dims.keys,
        }
    }

    fn words(self) -> String {
        match self {
            Self::First(1) => "the key at position 0 is always selected, within H".into(),
            Self::First(count) => format!("the first {count} keys are always selected, within H"),
            Self::Last(1) => "the key at the query's own position is always selected, within H".into(),
            Self::Last(count) => {
                format!("the last {count} keys up to the query's position are always selected, within H")
            }
            Self::Newest => "the newest key is always selected, within H".into(),
        }
    }
}

impl RowChange {
    /// In words: a clause.
    pub fn words(self) -> String {
        match self {
            Self::RowOf(axis, map) => format!("{} gets the selection of {}", axis.each(), map.words(axis)),
            Self::ScoresOf(axis, map) => {
                format!("{} ranks its candidates by the scores of {}", axis.each(), map.words(axis))
            }
            Self::EarlierOf(axis, map) => {
                format!(
                    "the earlier mask of {} decides which keys are candidates of {}",
                    map.words(axis),
                    axis.each()
                )
            }
            Self::EarlierOfAnyHead => {
                "a key that the earlier mask of any head holds is no candidate in the others".into()
            }
            Self::EarlierOfAllParts => "the earlier masks of all of them exclude keys".into(),
            Self::AdditiveOnce { .. } => "the additive mask is added once, after the head rule".into(),
            Self::Lost(lost) => lost.words(),
            Self::LeftOut(lost) => {
                lost.words().replace("never selected", "left out of what is selected, and rows hold fewer")
            }
            Self::RankedLast(lost) => {
                lost.words().replace("never selected", "ranked behind all others, as if their scores were −∞")
            }
            Self::Forced(forced) => forced.words(),
            Self::Added(forced) => forced.words().replace("within H", "on top of H"),
            Self::Coarse(bits) => {
                format!(
                    "scores are compared by their highest {bits} bits, what agrees in these counts as a tie"
                )
            }
            Self::Rounded(storage) => {
                format!("scores are compared in {storage}, and what is equal there ties")
            }
            Self::ByBits { signed: true } => {
                "scores are compared by their bits, so that of negative scores the lowest ranks first".into()
            }
            Self::ByBits { signed: false } => {
                "scores are compared by their bits without a sign: negative ones rank above all others, the lowest first"
                    .into()
            }
            Self::EqualCollapse => {
                "keys with equal scores count as one: only the lowest position is selected".into()
            }
            Self::Phantoms(None) => {
                "places beyond the last key, up to a power of two, compete with a score of 0".into()
            }
            Self::Phantoms(Some(tile)) => {
                format!("places beyond the last key, up to a multiple of {tile}, compete with a score of 0")
            }
            Self::NegativeIsZero => "negative scores count as 0, and tie".into(),
            Self::ExcludedBelow(score) => format!("keys with scores of {score:.4} or less are no candidates"),
            Self::OfEachTile { tile, most } => {
                format!("of each tile of {tile} keys at most {most} are selected")
            }
            Self::Pages(page) => format!(
                "whole pages of {page} keys are selected, by their largest score, max(1, ⌊H / {page}⌋) of them"
            ),
            Self::CrowdedBin { bins, room, .. } => format!(
                "of the keys whose scores share {} with the H-th only the first {room} compete",
                bins.words()
            ),
            Self::RunnersUp => {
                "query t gets the runners-up of query 0: the keys that rank t · H and on there".into()
            }
            Self::StaleThreshold => {
                "a row with at most H candidates is cut at the threshold of an earlier row of the call".into()
            }
            Self::Count(counted) => match counted {
                Counted::LessEarlier => "the keys of the earlier mask count within H".into(),
                Counted::All => "all candidates are selected, whatever H is".into(),
                Counted::PadsSelectLast => {
                    "a row with fewer candidates than H selects the last key as well: −1 is taken for its position"
                        .into()
                }
                Counted::ExactFitEmpty => "a row with exactly H candidates selects nothing".into(),
                Counted::OneMoreFits => "with H + 1 candidates all are selected".into(),
                Counted::AboveThreshold => {
                    "only keys that score above the H-th are selected, where there are more than H candidates"
                        .into()
                }
                Counted::AllTies => "all keys that tie with the H-th are selected, beyond H".into(),
                Counted::Identity => {
                    "with at most H candidates, as many positions from 0 on are selected, candidates or not"
                        .into()
                }
                Counted::IdentityAtOneMore => {
                    "with H + 1 candidates, positions 0 to H − 1 are selected, candidates or not".into()
                }
                Counted::FilledUp => {
                    "with fewer candidates than H, excluded keys are selected from the lowest position on"
                        .into()
                }
            },
            Self::Modulo(modulus) => format!("selected positions are taken modulo {modulus}"),
        }
    }

    /// Whether the lengths of earlier calls matter.
    pub fn remembers(self) -> bool {
        use Lost::{BeyondCallBefore, BeyondFirstOfLayer, BeyondFirstOfShape};
        let beyond = |lost| matches!(lost, BeyondFirstOfShape | BeyondFirstOfLayer | BeyondCallBefore);
        matches!(self, Self::Lost(lost) | Self::LeftOut(lost) | Self::RankedLast(lost) if beyond(lost))
    }

    /// Whether rows of heads that share a selection may differ.
    pub fn separates_heads(self) -> bool {
        matches!(
            self,
            Self::RowOf(Axis::Head, _)
                | Self::ScoresOf(Axis::Head, _)
                | Self::EarlierOf(Axis::Head, _)
                | Self::StaleThreshold
                | Self::AdditiveOnce { .. }
                | Self::Count(Counted::FilledUp)
        )
    }
}

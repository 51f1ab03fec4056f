//! Rows that select otherwise (SPEC §2.8, §2.9): another row's scores, keys that are lost or forced, another count, another
//! order of ties. Each change works on the candidates of a row with their bounds, or on what the row must satisfy.

use super::places::{Axis, Map};
use crate::algorithm::{Dims, Row, Storage};
use crate::verdicts::bounds::Approximate;
use crate::verdicts::certificate::{Candidacy, Class, RowCertificate, certify_row};

/// What rows do otherwise.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum RowChange {
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
    /// Of candidates with the same score only the first can be selected.
    EqualCollapse,
    /// Places up to a multiple, or a power of two where that is `None`, compete with a score of 0.
    Phantoms(Option<usize>),
    /// Scores below 0 count as 0.
    NegativeIsZero,
    /// Scores of this or less count as −∞.
    ExcludedBelow(f64),
    /// Each tile has at most so many of its keys selected.
    OfEachTile { tile: usize, most: usize },
    /// Whole pages are selected, by their largest score.
    Pages(usize),
    /// Of the keys that share the highest bits of the H-th score only the first few compete; rows of exactly H candidates may be
    /// ranked as well.
    CrowdedBin { bins: Bins, room: usize, exact_too: bool },
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
pub(super) enum Bins {
    F32(u32),
    F16(u32),
}

impl Bins {
    /// The low end of a score's bin.
    fn of(self, score: f64) -> f64 {
        match self {
            Self::F32(bits) => cut(score, bits),
            // The exponent of an f32 has three bits more.
            Self::F16(bits) => cut(f64::from(Storage::F16.round(score as f32)), bits + 3),
        }
    }

    fn words(self) -> String {
        match self {
            Self::F32(bits) => format!("the highest {bits} bits"),
            Self::F16(bits) => format!("the highest {bits} bits in float16"),
        }
    }
}

/// Keys that cannot be selected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lost {
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
pub(super) enum Forced {
    /// The first s.
    First(usize),
    /// The last w up to the query's position.
    Last(usize),
    /// Position n − 1.
    Newest,
}

/// How many keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Counted {
    /// H less the keys of P.
    LessEarlier,
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
pub(super) struct Place<'a> {
    pub row: Row,
    pub dims: &'a Dims,
    /// How many keys P and earlier maskers hold in this row.
    pub earlier: usize,
    /// The numbers of keys of earlier calls of the layer: of the first with the same batch size and number of queries, of the
    /// first, and of the last.
    pub lengths: [Option<usize>; 3],
}

impl Lost {
    fn holds(self, key: usize, place: &Place<'_>) -> bool {
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
    fn holds(self, key: usize, place: &Place<'_>) -> bool {
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
    pub(super) fn words(self) -> String {
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

    /// Whether rows of heads that share a selection may differ.
    pub(super) fn separates_heads(self) -> bool {
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

    /// Changes the candidates of a row, of which `count` are selected.
    pub(super) fn edit(self, row: &mut [Candidacy], count: usize, place: &Place<'_>) {
        match self {
            Self::Lost(lost) => lose(row, |key| lost.holds(key, place)),
            Self::RankedLast(lost) => {
                for (key, candidacy) in row.iter_mut().enumerate() {
                    if matches!(candidacy, Candidacy::Scored(_)) && lost.holds(key, place) {
                        *candidacy = Candidacy::Scored(Approximate::new(f64::MIN, 0.0));
                    }
                }
            }
            Self::Forced(forced) => {
                for (key, candidacy) in row.iter_mut().enumerate() {
                    if let Candidacy::Scored(score) = *candidacy
                        && forced.holds(key, place)
                    {
                        *candidacy = Candidacy::Forced(score);
                    }
                }
            }
            Self::Coarse(bits) => each_score(row, |score| coarse(score, bits)),
            Self::Rounded(storage) => each_score(row, |score| {
                if !(score.low().is_finite() && score.high().is_finite()) {
                    return score;
                }
                let rounded = |x: f64| f64::from(storage.round(x as f32));
                let (low, high) = (rounded(score.low()), rounded(score.high()));
                if !(low.is_finite() && high.is_finite()) {
                    return Approximate { may_be_minus_infinity: true, may_be_plus_infinity: true, ..score };
                }
                if low == high { Approximate::new(low, 0.0) } else { Approximate::hull(low, high) }
            }),
            Self::EqualCollapse => collapse(row),
            Self::NegativeIsZero => each_score(row, |score| match score {
                Approximate::EXCLUDED => score,
                score if score.low() >= 0.0 => score,
                score => Approximate {
                    may_be_minus_infinity: score.may_be_minus_infinity,
                    may_be_plus_infinity: score.may_be_plus_infinity,
                    ..Approximate::hull(score.low().max(0.0), score.high().max(0.0))
                },
            }),
            Self::ExcludedBelow(limit) => each_score(row, |score| {
                if score.high() <= limit {
                    Approximate::EXCLUDED
                } else if score.low() <= limit {
                    Approximate { may_be_minus_infinity: true, ..score }
                } else {
                    score
                }
            }),
            Self::OfEachTile { tile, most } => {
                for tile in row.chunks_mut(tile) {
                    leave(tile, most);
                }
            }
            Self::CrowdedBin { bins, room, exact_too } => crowd(row, count, bins, (room, exact_too)),
            Self::RunnersUp => {
                let skipped = place.row.2 * count;
                if skipped > 0 {
                    let classes = certify_row(row, skipped).classes;
                    for (candidacy, class) in row.iter_mut().zip(classes) {
                        match class {
                            Class::In => *candidacy = Candidacy::Excluded,
                            Class::Open => may_be_excluded(candidacy),
                            _ => {}
                        }
                    }
                }
            }
            _ => {}
        }
        // What is −∞ is no candidate.
        for candidacy in row {
            if *candidacy == Candidacy::Scored(Approximate::EXCLUDED) {
                *candidacy = Candidacy::Excluded;
            }
        }
    }

    /// Another certificate for a row than its candidates and H make, where this change decides it.
    pub(super) fn certify(
        self,
        row: &[Candidacy],
        count: usize,
        place: &Place<'_>,
    ) -> Option<RowCertificate> {
        let candidates = row.iter().filter(|candidacy| is_candidate(candidacy)).count();
        match self {
            Self::Phantoms(to) => {
                let n = row.len();
                let width = to.map_or(n.next_power_of_two(), |tile| n.next_multiple_of(tile));
                let mut padded = row.to_vec();
                padded.resize(width, Candidacy::Scored(Approximate::new(0.0, 0.0)));
                let mut certificate = certify_row(&padded, count);
                let phantoms = certificate.classes.split_off(n);
                let certain = phantoms.iter().filter(|class| **class == Class::In).count();
                let possible = phantoms.iter().filter(|class| **class >= Class::Open).count();
                certificate.fewest = certificate.fewest.saturating_sub(possible);
                certificate.most = certificate.most.saturating_sub(certain);
                Some(certificate)
            }
            Self::Pages(page) => Some(pages(row, page, count)),
            Self::Count(Counted::LessEarlier) => Some(certified(row, count.saturating_sub(place.earlier))),
            Self::Count(Counted::ExactFitEmpty) => (candidates == count).then(|| certified(row, 0)),
            Self::Count(Counted::OneMoreFits) => (candidates == count + 1).then(|| certified(row, count + 1)),
            Self::Count(Counted::AllTies) => {
                let mut certificate = certify_row(row, count);
                let possible = |class: &&Class| matches!(class, Class::In | Class::Open);
                certificate.most = certificate.classes.iter().filter(possible).count();
                Some(certificate)
            }
            Self::Count(Counted::AboveThreshold) => (candidates > count).then(|| {
                // What certainly ties with the H-th is lost; whatever may tie may be.
                let mut certificate = certified(row, count.saturating_sub(1));
                certificate.fewest = certificate.classes.iter().filter(|class| **class == Class::In).count();
                let ties = certify_row(row, count).classes;
                for (class, with_ties) in certificate.classes.iter_mut().zip(ties) {
                    if with_ties == Class::Open && *class == Class::In {
                        *class = Class::Open;
                    }
                }
                certificate.fewest = certificate.classes.iter().filter(|class| **class == Class::In).count();
                certificate
            }),
            Self::Count(Counted::Identity) => identity(row, count),
            Self::Count(Counted::IdentityAtOneMore) => identity_at_one_more(row, count),
            Self::Count(Counted::FilledUp) => (candidates < count).then(|| {
                let mut left = count - candidates;
                let classes = row.iter().map(|candidacy| match candidacy {
                    Candidacy::Excluded if left > 0 => {
                        left -= 1;
                        Class::In
                    }
                    candidacy if is_candidate(candidacy) => Class::In,
                    _ => Class::Before,
                });
                let classes: Vec<Class> = classes.collect();
                let filled = classes.iter().filter(|class| **class == Class::In).count();
                RowCertificate { classes, fewest: filled, most: filled }
            }),
            Self::Added(forced) => {
                let mut certificate = certify_row(row, count);
                for (key, class) in certificate.classes.iter_mut().enumerate() {
                    if forced.holds(key, place) && *class != Class::In {
                        certificate.fewest += usize::from(*class != Class::Open);
                        certificate.most += 1;
                        *class = Class::In;
                    }
                }
                Some(certificate)
            }
            Self::LeftOut(lost) => {
                let mut certificate = certify_row(row, count);
                for (key, class) in certificate.classes.iter_mut().enumerate() {
                    if *class >= Class::Open && lost.holds(key, place) {
                        certificate.most = certificate.most.saturating_sub(usize::from(*class == Class::In));
                        *class = Class::Out;
                    }
                }
                let certain = certificate.classes.iter().filter(|class| **class == Class::In).count();
                certificate.fewest = certificate.fewest.min(certain);
                certificate.most = certificate.most.max(certificate.fewest);
                Some(certificate)
            }
            Self::Modulo(modulus) => {
                let own = certify_row(row, count);
                let mut classes = own.classes.clone();
                for (key, class) in classes.iter_mut().enumerate() {
                    if key >= modulus {
                        *class = Class::Out;
                        continue;
                    }
                    let wrapped = own.classes.iter().skip(key).step_by(modulus);
                    *class = wrapped.copied().max().unwrap_or(*class);
                }
                let certain = classes.iter().filter(|class| **class == Class::In).count();
                Some(RowCertificate { classes, fewest: certain, most: own.most })
            }
            _ => None,
        }
    }
}

/// As many positions from 0 on as there are candidates, where these are at most `count`. Scores that may be −∞ leave the number of
/// candidates open.
fn identity(row: &[Candidacy], count: usize) -> Option<RowCertificate> {
    let possible = row.iter().filter(|candidacy| is_candidate(candidacy)).count();
    let is_certain = |score: &Approximate| score.low() > f64::NEG_INFINITY;
    let certain = row.iter().filter_map(score_of).filter(is_certain).count();
    if certain > count {
        return None;
    }
    let otherwise = certify_row(row, count).classes;
    let class = |(key, otherwise): (usize, Class)| match key {
        _ if key < certain && possible <= count => Class::In,
        _ if key < possible => Class::Open,
        // With more candidates than `count` they may be ranked after all.
        _ if possible > count && otherwise > Class::Out => Class::Open,
        _ => Class::Out,
    };
    let classes = otherwise.into_iter().enumerate().map(class).collect();
    Some(RowCertificate { classes, fewest: certain, most: possible.min(count) })
}

/// Positions 0 to `count` − 1 where there are `count` + 1 candidates.
fn identity_at_one_more(row: &[Candidacy], count: usize) -> Option<RowCertificate> {
    let possible = row.iter().filter(|candidacy| is_candidate(candidacy)).count();
    let certain = row.iter().filter_map(score_of).filter(|score| score.low() > f64::NEG_INFINITY).count();
    if certain > count + 1 || possible < count + 1 {
        return None;
    }
    let is_open = certain != possible;
    let otherwise = certify_row(row, count);
    let class = |(key, otherwise): (usize, &Class)| match (key < count, is_open) {
        (true, false) => Class::In,
        (false, false) => Class::Out,
        (inside, true) if inside || *otherwise > Class::Out => Class::Open,
        _ => *otherwise,
    };
    let classes = otherwise.classes.iter().enumerate().map(class).collect();
    let fewest = if is_open { otherwise.fewest.min(count) } else { count.min(row.len()) };
    Some(RowCertificate { classes, fewest, most: count })
}

fn certified(row: &[Candidacy], count: usize) -> RowCertificate {
    if count > 0 {
        return certify_row(row, count);
    }
    let class = |candidacy: &Candidacy| if is_candidate(candidacy) { Class::Out } else { Class::Before };
    RowCertificate { classes: row.iter().map(class).collect(), fewest: 0, most: 0 }
}

pub(super) fn is_candidate(candidacy: &Candidacy) -> bool {
    matches!(candidacy, Candidacy::Scored(_) | Candidacy::Forced(_))
}

fn score_of(candidacy: &Candidacy) -> Option<Approximate> {
    match candidacy {
        Candidacy::Scored(score) | Candidacy::Forced(score) => Some(*score),
        _ => None,
    }
}

fn lose(row: &mut [Candidacy], lost: impl Fn(usize) -> bool) {
    for (key, candidacy) in row.iter_mut().enumerate() {
        if is_candidate(candidacy) && lost(key) {
            *candidacy = Candidacy::Excluded;
        }
    }
}

fn each_score(row: &mut [Candidacy], change: impl Fn(Approximate) -> Approximate) {
    for candidacy in row {
        if let Candidacy::Scored(score) = candidacy {
            *score = change(*score);
        }
    }
}

fn may_be_excluded(candidacy: &mut Candidacy) {
    if let Candidacy::Scored(score) = candidacy {
        score.may_be_minus_infinity = true;
    }
}

/// The highest bits of an f32, in its order; the others are 0.
fn cut(x: f64, bits: u32) -> f64 {
    // A sum with 0 makes −0 of no account.
    let own = (x as f32 + 0.0).to_bits();
    // Negative numbers fall as their bits rise: they are cut away from 0.
    let dropped = (1u32 << (32 - bits)) - 1;
    let kept = if own >> 31 == 1 { own | dropped } else { own & !dropped };
    let value = f64::from(f32::from_bits(kept));
    if value.is_nan() { f64::NEG_INFINITY } else { value }
}

fn coarse(score: Approximate, bits: u32) -> Approximate {
    if !(score.low().is_finite() && score.high().is_finite()) {
        return score;
    }
    let (low, high) = (cut(score.low(), bits), cut(score.high(), bits));
    if low == high { Approximate::new(low, 0.0) } else { Approximate::hull(low, high) }
}

/// Of equal scores only the first stays; of scores that may be equal the later one may not.
fn collapse(row: &mut [Candidacy]) {
    let scores: Vec<Option<Approximate>> = row.iter().map(score_of).collect();
    for (key, candidacy) in row.iter_mut().enumerate() {
        let Some(own) = scores[key] else { continue };
        for earlier in scores[..key].iter().flatten() {
            if earlier.value == own.value && earlier.radius == own.radius {
                *candidacy = Candidacy::Excluded;
                break;
            }
            if earlier.low() <= own.high() && own.low() <= earlier.high() {
                may_be_excluded(candidacy);
            }
        }
    }
}

/// Leaves the best `most` keys of a tile.
fn leave(tile: &mut [Candidacy], most: usize) {
    let classes = certify_row(tile, most).classes;
    for (candidacy, class) in tile.iter_mut().zip(classes) {
        match class {
            Class::Out => *candidacy = Candidacy::Excluded,
            Class::Open => may_be_excluded(candidacy),
            _ => {}
        }
    }
}

/// Leaves the first `room` of the keys in the bin of the H-th score. Where bounds reach over a bin's edge a key may be lost.
fn crowd(row: &mut [Candidacy], count: usize, bins: Bins, (room, exact_too): (usize, bool)) {
    let scores: Vec<Approximate> = row.iter().filter_map(score_of).collect();
    if scores.len() < count + usize::from(!exact_too) || count == 0 {
        return;
    }
    // The bin of the H-th score, between the bin of the H-th lowest and that of the H-th highest that it may be.
    let threshold = |of: fn(Approximate) -> f64| {
        let mut ends: Vec<f64> = scores.iter().copied().map(of).collect();
        ends.sort_by(|a, b| b.total_cmp(a));
        bins.of(ends[count - 1])
    };
    let (lowest, highest) = (threshold(Approximate::low), threshold(Approximate::high));
    let (mut certain, mut possible) = (0, 0);
    for candidacy in row {
        let Some(score) = score_of(candidacy) else { continue };
        let (low, high) = (bins.of(score.low()), bins.of(score.high()));
        if low > highest {
            continue;
        }
        // What is below the bin is never looked at: a row that loses keys holds fewer.
        if high < lowest {
            *candidacy = Candidacy::Excluded;
            continue;
        }
        if low < lowest {
            may_be_excluded(candidacy);
        }
        let is_certain = lowest == highest && low == lowest && high == lowest;
        if is_certain && certain >= room {
            *candidacy = Candidacy::Excluded;
        } else if possible >= room {
            may_be_excluded(candidacy);
        }
        certain += usize::from(is_certain);
        possible += 1;
    }
}

/// Whole pages by their largest score.
fn pages(row: &[Candidacy], page: usize, count: usize) -> RowCertificate {
    let best = |page: &[Candidacy]| {
        let scores: Vec<Approximate> = page.iter().filter_map(score_of).collect();
        let largest =
            |of: fn(Approximate) -> f64| scores.iter().copied().map(of).fold(f64::NEG_INFINITY, f64::max);
        match scores.is_empty() {
            true => Candidacy::Excluded,
            false => {
                Candidacy::Scored(Approximate::hull(largest(Approximate::low), largest(Approximate::high)))
            }
        }
    };
    let peaks: Vec<Candidacy> = row.chunks(page).map(best).collect();
    let of_pages = certify_row(&peaks, (count / page).max(1)).classes;
    let class = |(key, candidacy): (usize, &Candidacy)| match candidacy {
        Candidacy::Before => Class::Before,
        Candidacy::Excluded => Class::Excluded,
        _ => of_pages[key / page],
    };
    let classes: Vec<Class> = row.iter().enumerate().map(class).collect();
    let certain = classes.iter().filter(|class| **class == Class::In).count();
    let possible = classes.iter().filter(|class| **class >= Class::Open).count();
    RowCertificate { classes, fewest: certain, most: possible }
}

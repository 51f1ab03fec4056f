//! What rows of a behaviour may hold, where they select otherwise than the SPEC: the certificate of SPEC §5 for the candidates
//! as a [`RowChange`] leaves them. From scores with their bounds it says what an answer must satisfy, from the scores alone what
//! a subject with that fault answers.

use super::bounds::{Approximate, Arithmetic};
use super::certificate::{Candidacy, Class, RowCertificate, ScoreBounds, certify_row, thresholds};
use crate::algorithm::{Mask, Row, Storage};
use crate::behaviours::answer::scores;
use crate::behaviours::changes::{Bins, Counted, Place, RowChange};
use crate::behaviours::{Earlier, ForcedKeys, Prediction, Ranked, Sharing};
use crate::cases::RoundingModel;

/// The rows of a call as a behaviour ranks them, with changes on top of its own.
pub struct ChangedRows<'a> {
    prediction: &'a Prediction,
    ranked: &'a Ranked,
    /// `None` for the scores of the reference, without bounds.
    bounds: Option<(ScoreBounds<'a>, Arithmetic)>,
    changes: Vec<RowChange>,
}

impl<'a> ChangedRows<'a> {
    /// What answers must satisfy under a rounding model.
    pub fn within(
        prediction: &'a Prediction,
        ranked: &'a Ranked,
        model: RoundingModel,
        more: impl IntoIterator<Item = RowChange>,
    ) -> Self {
        let bounds = ScoreBounds::predicted(prediction, ranked, model);
        let arithmetic = Arithmetic::new(model, prediction.ranking.storage());
        let changes = prediction.behaviour.rows.into_iter().chain(more).collect();
        Self { prediction, ranked, bounds: Some((bounds, arithmetic)), changes }
    }

    /// The same where scores are given as the additive mask of zeros, so that nothing is rounded.
    pub fn exactly(
        prediction: &'a Prediction,
        ranked: &'a Ranked,
        more: impl IntoIterator<Item = RowChange>,
    ) -> Self {
        let changes = prediction.behaviour.rows.into_iter().chain(more).collect();
        Self { prediction, ranked, bounds: None, changes }
    }

    /// What the reference selects with these changes: of keys that tie at the H-th place the lowest ones.
    pub fn selected(prediction: &'a Prediction, ranked: &'a Ranked) -> Mask {
        let changes = prediction.behaviour.rows.into_iter().collect();
        let rows = Self { prediction, ranked, bounds: None, changes };
        let mut mask = prediction.before.clone();
        for row in prediction.ranking.dims().rows() {
            let RowCertificate { classes, most, .. } = rows.certificate(row);
            let of = |class: Class| classes.iter().enumerate().filter(move |(_, found)| **found == class);
            let certain: Vec<usize> = of(Class::In).map(|(key, _)| key).collect();
            let open = of(Class::Open).map(|(key, _)| key).take(most.saturating_sub(certain.len()));
            mask.add(row, certain.iter().copied().chain(open));
        }
        mask
    }

    /// Whether rows of heads that share a selection may differ.
    pub fn separate_heads(&self) -> bool {
        self.changes.iter().any(|change| change.separates_heads())
    }

    /// What a row must satisfy.
    pub fn certificate(&self, row @ (b, head, i): Row) -> RowCertificate {
        let (dims, count) = (self.prediction.ranking.dims(), self.ranked.count);
        let mut candidates = self.candidates(row);
        if self.changes.is_empty() {
            return certificate_of(self.prediction, self.ranked, &candidates, count);
        }
        let before = &self.prediction.before;
        let earlier = (0..dims.keys).filter(|&key| before.attends(b, head, i, key)).count();
        let place = Place { row, dims: &dims, earlier, lengths: self.prediction.lengths };
        for change in &self.changes {
            change.edit(&mut candidates, count, &place);
            if *change == RowChange::StaleThreshold {
                self.cut_stale(&mut candidates, row);
            }
        }
        let decides = |change: &RowChange| change.certify(&candidates, count, &place);
        let decided = self.changes.iter().find_map(decides);
        decided.unwrap_or_else(|| certificate_of(self.prediction, self.ranked, &candidates, count))
    }

    /// The score of every key of a row.
    fn ranked_by(&self, row @ (b, head, i): Row) -> Vec<Approximate> {
        let exact = |score: f64| {
            if score == f64::NEG_INFINITY { Approximate::EXCLUDED } else { Approximate::new(score, 0.0) }
        };
        let mut found: Vec<Approximate> = match &self.bounds {
            Some((bounds, _)) => bounds.ranked_by(row),
            None => scores(self.prediction, self.ranked, row).into_iter().map(exact).collect(),
        };
        if let Some(inputs) = &self.prediction.added_after {
            let additive = inputs.additive(b, head, i);
            for (key, score) in found.iter_mut().enumerate() {
                *score = match &self.bounds {
                    Some((_, arithmetic)) => arithmetic.add_mask(*score, additive.at(key)),
                    None => exact(score.value + f64::from(additive.at(key))),
                };
            }
        }
        found
    }

    /// The candidates of a row, by the scores and the earlier mask of the rows that stand in for it.
    fn candidates(&self, row: Row) -> Vec<Candidacy> {
        if let (Some((bounds, _)), true) = (&self.bounds, self.changes.is_empty()) {
            return bounds.row(row);
        }
        let dims = self.prediction.ranking.dims();
        let (mut scored, mut asked, mut any_head, mut own_earlier) = (row, row, false, false);
        let mut sharing = self.ranked.sharing;
        for change in &self.changes {
            match *change {
                RowChange::RowOf(axis, map) => {
                    (scored, asked) = (axis.moved(map, scored, &dims), axis.moved(map, asked, &dims));
                }
                RowChange::ScoresOf(axis, map) => scored = axis.moved(map, scored, &dims),
                RowChange::RunnersUp => (scored, asked) = ((scored.0, scored.1, 0), (asked.0, asked.1, 0)),
                RowChange::EarlierOf(axis, map) => asked = axis.moved(map, asked, &dims),
                RowChange::EarlierOfAnyHead => any_head = true,
                RowChange::EarlierOfAllParts => {
                    if let Sharing::InParts(mode, _) = sharing {
                        sharing = Sharing::Mode(mode);
                    }
                }
                RowChange::AdditiveOnce { own_earlier: own } => own_earlier = own,
                _ => {}
            }
        }
        let before = &self.prediction.before;
        let competes = self.prediction.behaviour.earlier == Earlier::Candidates;
        let heads: Vec<usize> = match any_head {
            true => (0..dims.heads).collect(),
            false if own_earlier => vec![asked.1],
            false => sharing.heads(asked.1, &dims),
        };
        let excluded =
            |key: usize| !competes && heads.iter().any(|&head| before.attends(asked.0, head, asked.2, key));
        let own = |key: usize| before.attends(row.0, row.1, row.2, key);
        let candidacy = |(key, score): (usize, Approximate)| match score {
            _ if excluded(key) && own(key) => Candidacy::Before,
            _ if excluded(key) => Candidacy::Excluded,
            _ if score == Approximate::EXCLUDED && self.ranked.forced.holds_excluded(key, row.2, &dims) => {
                Candidacy::Forced(Approximate::new(0.0, 0.0))
            }
            _ if score == Approximate::EXCLUDED => Candidacy::Excluded,
            _ if self.ranked.forced.holds(key, row.2, &dims) => Candidacy::Forced(score),
            _ => Candidacy::Scored(score),
        };
        self.ranked_by(scored).into_iter().enumerate().map(candidacy).collect()
    }

    /// Cuts a row without more candidates than H at the threshold of the last row before it that had more.
    fn cut_stale(&self, row: &mut [Candidacy], (b, head, i): Row) {
        let dims = self.prediction.ranking.dims();
        let count = self.ranked.count;
        let more = |row: &[Candidacy]| row.iter().filter(|key| is_candidate(key)).count() > count;
        if more(row) {
            return;
        }
        let rows: Vec<Row> = dims.rows().take_while(|other| *other != (b, head, i)).collect();
        let Some(before) =
            rows.into_iter().rev().map(|other| self.candidates(other)).find(|other| more(other))
        else {
            return;
        };
        // The H-th score is between the H-th lowest and the H-th highest that it may be.
        let high = |candidacy: &Candidacy| match candidacy {
            Candidacy::Scored(score) => Candidacy::Scored(Approximate::new(score.high(), 0.0)),
            other => *other,
        };
        let highest: Vec<Candidacy> = before.iter().map(high).collect();
        let (lowest, highest) = (thresholds(&before, count).out_below, thresholds(&highest, count).out_below);
        for candidacy in row {
            if let Candidacy::Scored(score) = candidacy {
                if score.high() < lowest {
                    *candidacy = Candidacy::Excluded;
                } else if score.low() < highest {
                    score.may_be_minus_infinity = true;
                }
            }
        }
    }
}

/// What a row must satisfy where a behaviour selects `count` keys of these, those forced on top apart.
fn certificate_of(
    prediction: &Prediction,
    ranked: &Ranked,
    row: &[Candidacy],
    count: usize,
) -> RowCertificate {
    let row: Vec<Candidacy> = row.iter().map(|&candidacy| reversed(prediction, candidacy)).collect();
    match count + forced_on_top(ranked, &row) {
        0 => certified(&row, 0),
        count => certify_row(&row, count),
    }
}

/// How many keys of a row are forced on top of H.
fn forced_on_top(ranked: &Ranked, row: &[Candidacy]) -> usize {
    let forced = |candidacy: &&Candidacy| matches!(candidacy, Candidacy::Forced(_));
    match ranked.forced.how {
        ForcedKeys::OnTop => row.iter().filter(forced).count(),
        _ => 0,
    }
}

/// The smallest score first, where the behaviour ranks so.
fn reversed(prediction: &Prediction, candidacy: Candidacy) -> Candidacy {
    match candidacy {
        Candidacy::Scored(score) if prediction.behaviour.smallest => Candidacy::Scored(score.negated()),
        candidacy => candidacy,
    }
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
}

impl RowChange {
    /// Changes the candidates of a row, of which `count` are selected.
    fn edit(self, row: &mut [Candidacy], count: usize, place: &Place<'_>) {
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
            Self::ByBits { signed } => each_score(row, |score| by_bits(score, signed)),
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
    fn certify(self, row: &[Candidacy], count: usize, place: &Place<'_>) -> Option<RowCertificate> {
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
            Self::Count(Counted::All) => Some(certified(row, row.len())),
            Self::Count(Counted::PadsSelectLast) => (candidates < count).then(|| {
                let mut certificate = certified(row, count);
                if let Some(last) = certificate.classes.last_mut()
                    && !matches!(last, Class::In | Class::Before)
                {
                    certificate.fewest += usize::from(*last != Class::Open);
                    certificate.most += usize::from(*last != Class::Open);
                    *last = Class::In;
                }
                certificate
            }),
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

fn is_candidate(candidacy: &Candidacy) -> bool {
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

/// A score as the number that its bits are, with a sign or without one.
fn by_bits(score: Approximate, signed: bool) -> Approximate {
    if !(score.low().is_finite() && score.high().is_finite()) {
        return score;
    }
    let number = |x: f64| {
        let bits = (x as f32 + 0.0).to_bits();
        if signed { f64::from(bits.cast_signed()) } else { f64::from(bits) }
    };
    let (low, high) = (number(score.low()), number(score.high()));
    match low == high {
        true => Approximate::new(low, 0.0),
        // Between two signs there is everything.
        false if score.low() < 0.0 && score.high() >= 0.0 => Approximate::UNDETERMINED,
        false => Approximate::hull(low.min(high), low.max(high)),
    }
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

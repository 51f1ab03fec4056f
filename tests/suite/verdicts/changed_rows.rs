//! What rows of a changed behaviour may hold, against definitions that know every score: a few keys over a small alphabet, as they are and
//! known up to a radius. A key must be selected where every possible row selects it, and may not be where none does.

use doublecheck::algorithm::{
    ChannelOrder, Forced as FirstAndLast, HeadMode, HeavySize, InputParts, Inputs, Mask, Row, ScoreFactor,
    Selection, Storage,
};
use doublecheck::behaviours::changes::{Axis, Bins, Counted, Forced, Lost, Map, RowChange};
use doublecheck::behaviours::{
    Behaviour, Earlier, ForcedKeys, ForcedRule, Outcome, Prediction, Ranked, Sharing, predict,
};
use doublecheck::cases::RoundingModel;
use doublecheck::verdicts::bounds::Approximate;
use doublecheck::verdicts::certificate::{Class, RowCertificate, ScoreBounds};
use doublecheck::verdicts::changed::ChangedRows;
use ndarray::Array4;
use rstest::rstest;

use crate::support::small_case;

const LOWEST: f64 = f64::NEG_INFINITY;

/// A row without anything unknown. Sets of keys are numbers, a bit for each key.
#[derive(Debug, Clone)]
struct Known {
    /// −∞ for keys that are no candidates.
    scores: Vec<f64>,
    before: usize,
    forced: usize,
    count: usize,
}

fn holds(set: usize, key: usize) -> bool {
    set >> key & 1 == 1
}

fn size(set: usize) -> usize {
    set.count_ones() as usize
}

impl Known {
    fn set(&self, mut fits: impl FnMut(usize) -> bool) -> usize {
        (0..self.scores.len()).filter(|&key| fits(key)).fold(0, |set, key| set | 1 << key)
    }

    fn candidates(&self) -> usize {
        self.set(|key| self.scores[key] > LOWEST)
    }

    /// The same row with other scores of its candidates, whatever these are.
    fn scored(&self, score: impl Fn(f64) -> f64) -> Self {
        let of = |&own: &f64| if own > LOWEST { score(own) } else { own };
        Self { scores: self.scores.iter().map(of).collect(), ..self.clone() }
    }

    fn without(&self, lost: usize) -> Self {
        let of = |(key, &score): (usize, &f64)| if holds(lost, key) { LOWEST } else { score };
        Self { scores: self.scores.iter().enumerate().map(of).collect(), ..self.clone() }
    }

    fn of_count(&self, count: usize) -> Self {
        Self { count, ..self.clone() }
    }

    /// The `nth` largest score, from 1 on.
    fn largest(&self, nth: usize) -> f64 {
        let mut scores = self.scores.clone();
        scores.sort_by(|a, b| b.total_cmp(a));
        scores[nth - 1]
    }

    /// Every selection that some order of ties makes (SPEC §2.8, §2.9): as many candidates as there are, at most H, forced ones first, and
    /// none that scores less than one that is left out.
    fn selections(&self) -> Vec<usize> {
        let candidates = self.candidates();
        let first = candidates & self.forced;
        let count = size(candidates).min(self.count.max(size(first)));
        let keys = 0..self.scores.len();
        let fits = |set: &usize| {
            let (inside, outside) = (*set & !first, candidates & !*set);
            let ordered = |better: usize, worse: usize| {
                !holds(inside, better) || !holds(outside, worse) || self.scores[worse] <= self.scores[better]
            };
            set & !candidates == 0
                && size(*set) == count
                && first & !*set == 0
                && keys.clone().all(|better| keys.clone().all(|worse| ordered(better, worse)))
        };
        (0..1usize << self.scores.len()).filter(fits).collect()
    }
}

/// What all selections have in common.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Common {
    always: usize,
    ever: usize,
    fewest: usize,
    most: usize,
}

impl Common {
    const NONE: Self = Self { always: usize::MAX, ever: 0, fewest: usize::MAX, most: 0 };

    fn of(sets: &[usize]) -> Self {
        assert!(!sets.is_empty());
        sets.iter().fold(Self::NONE, |common, &set| {
            common.and(Self { always: set, ever: set, fewest: size(set), most: size(set) })
        })
    }

    fn and(self, other: Self) -> Self {
        Self {
            always: self.always & other.always,
            ever: self.ever | other.ever,
            fewest: self.fewest.min(other.fewest),
            most: self.most.max(other.most),
        }
    }

    /// What a certificate says, where a key that may not be selected is one whatever it is else.
    fn said(certificate: &RowCertificate) -> Self {
        let set = |from: Class| {
            let classes = certificate.classes.iter().enumerate();
            classes.filter(|(_, class)| **class >= from).fold(0, |set, (key, _)| set | 1 << key)
        };
        Self {
            always: set(Class::In),
            ever: set(Class::Open),
            fewest: certificate.fewest,
            most: certificate.most,
        }
    }

    /// Whether a certificate says no more than is true.
    fn allows(self, other: Self) -> bool {
        self.always & !other.always == 0
            && other.ever & !self.ever == 0
            && self.fewest <= other.fewest
            && self.most >= other.most
    }
}

/// What a key of a row may be.
#[derive(Debug, Clone)]
enum Key {
    Before,
    /// A is −∞.
    Excluded,
    /// Any number from the one to the other.
    Between(f64, f64),
    /// The most negative number or −∞, which is no candidate.
    LowestOrNone,
    /// The largest number or +∞.
    Largest,
    /// What may overflow on the way.
    Anything,
}

const MOST: f64 = f32::MAX as f64;

impl Key {
    /// Each number that it may score, of these; `None` for one attended before.
    fn possible(&self, values: &[f64]) -> Vec<Option<f64>> {
        let some = |scores: &[f64]| scores.iter().copied().map(Some).collect();
        match *self {
            Self::Before => vec![None],
            Self::Excluded => some(&[LOWEST]),
            Self::Between(low, high) => {
                let inside = |score: &&f64| (low..=high).contains(*score);
                values.iter().filter(inside).copied().map(Some).collect()
            }
            Self::LowestOrNone => some(&[LOWEST, -MOST]),
            Self::Largest => some(&[MOST, f64::INFINITY]),
            Self::Anything => some(&[&[LOWEST, -MOST, MOST, f64::INFINITY], values].concat()),
        }
    }

    /// Labels whose products with 1 make such a score in f32, and A. Sums of three products are rounded by 3 · 2⁻²⁴ of their magnitudes,
    /// whatever these cancel to.
    ///
    /// No two keys of a row have the same radius: then they would have the same labels, and score the same.
    fn labels(&self, place: usize) -> ([f32; 3], f32) {
        match *self {
            Self::Before => ([0.0; 3], 0.0),
            Self::Excluded => ([0.0; 3], f32::NEG_INFINITY),
            Self::Between(low, _) if low.to_bits() == (-0.0f64).to_bits() => ([-0.0; 3], -0.0),
            Self::Between(low, high) => {
                let large = (high - low) / 2.0 / 6.0 * f64::from(1u32 << 24);
                let large = (large * (1.0 + place as f64 / 65536.0)) as f32;
                ([large, -large, ((low + high) / 2.0) as f32], 0.0)
            }
            Self::LowestOrNone => ([0.0, 0.0, place as f32 * 1e30], f32::MIN),
            Self::Largest => ([0.0, 0.0, place as f32 * -1e30], f32::MAX),
            Self::Anything => ([3e38 + place as f32 * 1e36, -3e38, place as f32 * -1e36], 0.0),
        }
    }
}

/// A call in which labels are keys themselves and queries are ones, with nothing attended before.
fn predicted(k: Array4<f32>, (heads, queries): (usize, usize), additive: Array4<f32>) -> Prediction {
    let (batch, kv_heads, keys, channels) = k.dim();
    let parts = InputParts {
        q: Array4::ones((batch, heads, queries, channels)),
        v: Array4::ones((batch, kv_heads, keys, 1)),
        k,
        attention_mask: Some(additive),
        causal: false,
        storage: Storage::F32,
        scaling: None,
    };
    let channels = ChannelOrder::new(vec![(0..channels).collect()]).unwrap();
    let mut case = small_case().with_inputs(Inputs::new(parts).unwrap()).with_channels(channels);
    case.instance.selection = Selection::new(HeavySize::count(1).unwrap(), 1, 16).unwrap();
    case.instance.selection.rules.factor = ScoreFactor::ONE;
    match predict(Behaviour::default(), &case.sequence(), 0) {
        Outcome::Answered(prediction) => *prediction,
        outcome => panic!("not answered: {outcome:?}"),
    }
}

/// One entry of a batch for each row of keys, with the labels to be ranked; so many queries are alike.
fn predicted_of_rows(rows: &[Vec<&Key>], queries: usize) -> (Prediction, Ranked) {
    let (count, keys) = (rows.len(), rows[0].len());
    let of_row = |row: &Vec<&Key>| row.iter().enumerate().map(|(at, key)| key.labels(at)).collect::<Vec<_>>();
    let (labels, additive): (Vec<[f32; 3]>, Vec<f32>) = rows.iter().flat_map(of_row).unzip();
    let weight = |(entry, _, _, key): (usize, usize, usize, usize)| {
        f32::from(u8::from(matches!(rows[entry][key], Key::Before)))
    };
    let k = Array4::from_shape_vec((count, 1, keys, 3), labels.concat()).unwrap();
    let additive = Array4::from_shape_vec((count, 1, 1, keys), additive).unwrap();
    let weights = Array4::from_shape_fn((count, 1, queries, keys), weight);
    let mut prediction = predicted(k, (1, queries), additive);
    prediction.before = Mask::from_weights(weights, &prediction.ranking.dims()).unwrap();
    let ranked = prediction.ranked.take().expect("keys are ranked");
    (prediction, ranked)
}

/// Every way to take `length` of so many letters, as indices.
fn words(letters: usize, length: usize) -> impl Iterator<Item = Vec<usize>> {
    (0..letters.pow(length as u32)).map(move |word| {
        let letter = |at: usize| word / letters.pow(at as u32) % letters;
        (0..length).map(letter).collect()
    })
}

type Selections = fn(&Known) -> Vec<usize>;

/// Every row of so many of the keys, for each H, with so many first keys forced. A certificate is to say nothing that does not hold for all
/// that the row may be.
struct Rows<'a> {
    keys: &'a [Key],
    length: usize,
    values: &'a [f64],
    counts: std::ops::RangeInclusive<usize>,
    forced: (usize, ForcedKeys),
    said: Said,
    /// Which query's rows these are.
    query: usize,
}

/// Of which rows a certificate says all that holds: which keys are selected and which are not, and how many.
#[derive(Clone, Copy)]
struct Said {
    keys: fn(&[&Key]) -> bool,
    numbers: fn(&[&Key]) -> bool,
}

const EVERYTHING: Said = Said { keys: |_| true, numbers: |_| true };
const EACH_KEY: Said = Said { keys: |_| true, numbers: |_| false };
const EACH_KEY_AND_NUMBERS_APART: Said = Said { keys: |_| true, numbers: are_apart };
const APART: Said = Said { keys: are_apart, numbers: are_apart };
const EACH_KEY_APART: Said = Said { keys: are_apart, numbers: |_| false };
const OF_ONE_SIGN: Said = Said { keys: are_of_one_sign, numbers: are_of_one_sign };
const NOTHING: Said = Said { keys: |_| false, numbers: |_| false };

/// Whether no two keys may score the same.
fn are_apart(row: &[&Key]) -> bool {
    let ends = row.iter().filter_map(|key| match key {
        Key::Before | Key::Excluded => None,
        Key::Between(low, high) => Some((*low, *high)),
        Key::LowestOrNone => Some((LOWEST, -MOST)),
        Key::Largest => Some((MOST, f64::INFINITY)),
        Key::Anything => Some((LOWEST, f64::INFINITY)),
    });
    let ends: Vec<(f64, f64)> = ends.collect();
    let apart = |a: &(f64, f64), b: &(f64, f64)| a.1 < b.0 || b.1 < a.0;
    (0..ends.len()).all(|later| ends[..later].iter().all(|earlier| apart(earlier, &ends[later])))
}

fn are_of_one_sign(row: &[&Key]) -> bool {
    row.iter().all(|key| !matches!(key, Key::Between(low, high) if *low < 0.0 && *high >= 0.0))
}

impl Rows<'_> {
    fn check(self, changes: &[RowChange], selections: Selections, exactly: bool) {
        let Self { keys, length, values, .. } = self;
        let rows: Vec<Vec<&Key>> = words(keys.len(), length)
            .map(|word| word.iter().map(|&letter| &keys[letter]).collect())
            .collect();
        let (prediction, mut ranked) = predicted_of_rows(&rows, self.query + 1);
        let (first, how) = self.forced;
        ranked.forced = ForcedRule { configured: FirstAndLast { first, last: 0 }, how };
        // Of all scores, then of a key attended before.
        let mut scores = vec![Some(LOWEST), Some(-MOST), Some(MOST), Some(f64::INFINITY), None];
        scores.extend(values.iter().copied().map(Some));
        let letter = |score: &Option<f64>| scores.iter().position(|other| other == score).unwrap();
        let possible: Vec<Vec<Vec<usize>>> = rows
            .iter()
            .map(|row| row.iter().map(|key| key.possible(values).iter().map(letter).collect()).collect())
            .collect();
        for count in self.counts.clone() {
            ranked.count = count;
            let more = || changes.iter().copied();
            let changed = match exactly {
                true => ChangedRows::exactly(&prediction, &ranked, more()),
                false => ChangedRows::within(&prediction, &ranked, RoundingModel::F32, more()),
            };
            let mut known = vec![None; scores.len().pow(length as u32)];
            for (entry, (row, possible)) in rows.iter().zip(&possible).enumerate() {
                let mut common = Common::NONE;
                let choices: usize = possible.iter().map(Vec::len).product();
                for choice in 0..choices {
                    let mut rest = choice;
                    let word: Vec<usize> = possible
                        .iter()
                        .map(|letters| {
                            let letter = letters[rest % letters.len()];
                            rest /= letters.len();
                            letter
                        })
                        .collect();
                    let index = word.iter().fold(0, |index, &letter| index * scores.len() + letter);
                    let of_word = known[index].get_or_insert_with(|| {
                        let mut row = Known { scores: Vec::new(), before: 0, forced: 0, count };
                        row.scores = word.iter().map(|&letter| scores[letter].unwrap_or(LOWEST)).collect();
                        row.before = row.set(|key| scores[word[key]].is_none());
                        row.forced = row.set(|key| key < first);
                        Common::of(&selections(&row))
                    });
                    common = common.and(*of_word);
                }
                let certificate = changed.certificate((entry, 0, self.query));
                let said = Common::said(&certificate);
                let what = || format!("{row:?}, H = {count}: {certificate:?}, {common:?}");
                assert!(said.allows(common), "too narrow: {}", what());
                let of_keys = (said.always, said.ever) == (common.always, common.ever);
                let of_numbers = (said.fewest, said.most) == (common.fewest, common.most);
                let is_all = (of_keys || !(self.said.keys)(row)) && (of_numbers || !(self.said.numbers)(row));
                assert!(is_all, "too wide: {}", what());
            }
        }
    }
}

/// A number with so many bits after the first of its mantissa, the others cut off.
fn cut(x: f64, bits: i32) -> f64 {
    let unit = f64::powi(2.0, x.abs().log2().floor() as i32 - bits);
    if x.is_normal() { (x.abs() / unit).floor() * unit * x.signum() } else { x }
}

/// A number rounded to so many bits after the first, ±∞ from `largest` on.
fn rounded(x: f64, bits: i32, largest: f64) -> f64 {
    let unit = f64::powi(2.0, x.abs().log2().floor() as i32 - bits);
    if x.abs() < largest { (x / unit).round() * unit } else { x.signum() * f64::INFINITY }
}

/// 65,504 is the largest number of f16; from halfway to the next that there would be, a number becomes an infinity.
fn to_f16(x: f64) -> f64 {
    rounded(x, 10, 65520.0)
}

/// Each candidate that scores what an earlier one does.
fn repeated(row: &Known) -> usize {
    let scores = &row.scores;
    row.set(|key| (0..key).any(|earlier| scores[earlier] == scores[key]))
}

/// The best of each pair of keys, in every way that ties allow.
fn of_pairs(row: &Known, most: usize) -> Vec<usize> {
    let mut sets = vec![0];
    for start in (0..row.scores.len()).step_by(2) {
        let own = row.without(row.set(|key| key / 2 * 2 != start)).of_count(most);
        sets = sets.iter().flat_map(|set| own.selections().into_iter().map(move |own| set | own)).collect();
    }
    sets.into_iter().flat_map(|kept| row.without(!kept).selections()).collect()
}

/// Pages of two keys as keys of their own, which score what the best of them does.
fn of_pages(row: &Known) -> Vec<usize> {
    let best = |page: &[f64]| page.iter().copied().fold(LOWEST, f64::max);
    let scores = row.scores.chunks(2).map(best).collect();
    let pages = Known { scores, before: 0, forced: 0, count: (row.count / 2).max(1) };
    let keys = |pages: usize| row.set(|key| holds(pages, key / 2)) & row.candidates();
    pages.selections().into_iter().map(keys).collect()
}

/// With keys that score 0 after the others, up to so many.
fn with_phantoms(row: &Known, width: usize) -> Vec<usize> {
    let mut padded = row.clone();
    padded.scores.resize(width, 0.0);
    let own = (1usize << row.scores.len()) - 1;
    padded.selections().into_iter().map(|set| set & own).collect()
}

/// What is above the bin of the H-th score, and the first `room` keys of that bin.
fn crowded(row: &Known, room: usize, exact_too: bool, bin: impl Fn(f64) -> f64) -> Vec<usize> {
    let ranked = size(row.candidates()) + usize::from(exact_too) > row.count;
    if row.count == 0 || !ranked {
        return row.selections();
    }
    let threshold = bin(row.largest(row.count));
    let mut left = room;
    let lost = row.set(|key| {
        let own = bin(row.scores[key]);
        let has_room = own > threshold || own == threshold && left > 0;
        left -= usize::from(own == threshold && has_room);
        !has_room
    });
    row.without(lost).selections()
}

fn lowest(keys: usize) -> usize {
    (1 << keys) - 1
}

/// The row as the SPEC has it, unless it has so many candidates that something else holds.
fn unless(row: &Known, changed: bool, otherwise: usize) -> Vec<usize> {
    if changed { vec![otherwise] } else { row.selections() }
}

/// As the words of a change say it.
fn definition(change: RowChange) -> Selections {
    use RowChange::{
        Added, ByBits, Coarse, Count, CrowdedBin, EqualCollapse, ExcludedBelow, LeftOut, Modulo,
        NegativeIsZero, OfEachTile, Pages, Phantoms, RankedLast, Rounded,
    };
    match change {
        RowChange::Lost(Lost::First) => |row| row.without(1).selections(),
        LeftOut(Lost::First) => |row| row.selections().iter().map(|set| set & !1).collect(),
        RankedLast(Lost::First) => |row| {
            let mut row = row.clone();
            row.scores[0] = if row.scores[0] > LOWEST { f64::MIN } else { LOWEST };
            row.selections()
        },
        RowChange::Forced(Forced::First(1)) => |row| Known { forced: 1, ..row.clone() }.selections(),
        Added(Forced::First(1)) => |row| row.selections().iter().map(|set| set | 1).collect(),
        // A sign and all bits of the exponent but the last.
        Coarse(8) => |row| {
            let of_exponent = |x: f64| f64::from((x.abs().log2().floor() as i32 + 127) / 2 + 1);
            row.scored(|score| of_exponent(score) * score.signum()).selections()
        },
        Coarse(10) => |row| row.scored(|score| cut(score, 1)).selections(),
        Rounded(Storage::Bf16) => |row| row.scored(|score| rounded(score, 7, f64::INFINITY)).selections(),
        Rounded(Storage::F16) => |row| row.scored(to_f16).selections(),
        // Of negative numbers those further from 0 have the larger bits.
        ByBits { signed: true } => {
            |row| row.scored(|score| if score < 0.0 { -10.0 - score } else { score }).selections()
        }
        ByBits { signed: false } => {
            |row| row.scored(|score| if score < 0.0 { 10.0 - score } else { score }).selections()
        }
        EqualCollapse => |row| row.without(repeated(row)).selections(),
        NegativeIsZero => |row| row.scored(|score| score.max(0.0)).selections(),
        ExcludedBelow(-0.5) => |row| row.without(row.set(|key| row.scores[key] <= -0.5)).selections(),
        OfEachTile { tile: 2, most: 1 } => |row| of_pairs(row, 1),
        Pages(2) => of_pages,
        Phantoms(None) => |row| with_phantoms(row, [1, 2, 4, 4][row.scores.len() - 1]),
        Phantoms(Some(2)) => |row| with_phantoms(row, [2, 2, 4, 4][row.scores.len() - 1]),
        Phantoms(Some(3)) => |row| with_phantoms(row, [3, 3, 3, 6][row.scores.len() - 1]),
        Modulo(2) => |row| {
            let wrapped = |set| row.set(|key| key < 2 && (holds(set, key) || holds(set, key + 2)));
            row.selections().into_iter().map(wrapped).collect()
        },
        CrowdedBin { bins: Bins::F32(11), room: 1, exact_too: false } => {
            |row| crowded(row, 1, false, |score| cut(score, 2))
        }
        CrowdedBin { bins: Bins::F32(11), room: 2, exact_too: true } => {
            |row| crowded(row, 2, true, |score| cut(score, 2))
        }
        CrowdedBin { bins: Bins::F16(8), room: 1, exact_too: false } => {
            |row| crowded(row, 1, false, |score| cut(to_f16(score), 2))
        }
        Count(counted) => of_count(counted),
        _ => panic!("no definition of {change:?}"),
    }
}

fn of_count(counted: Counted) -> Selections {
    fn candidates(row: &Known) -> usize {
        size(row.candidates())
    }
    match counted {
        Counted::LessEarlier => |row| row.of_count(row.count.saturating_sub(size(row.before))).selections(),
        Counted::All => |row| vec![row.candidates()],
        Counted::PadsSelectLast => |row| {
            let last = 1 << (row.scores.len() - 1) & !row.before;
            unless(row, candidates(row) < row.count, row.candidates() | last)
        },
        Counted::ExactFitEmpty => |row| unless(row, candidates(row) == row.count, 0),
        Counted::OneMoreFits => |row| unless(row, candidates(row) == row.count + 1, row.candidates()),
        Counted::AboveThreshold => |row| {
            let above =
                |key| (1..row.scores.len()).contains(&row.count) && row.scores[key] > row.largest(row.count);
            unless(row, candidates(row) > row.count, row.set(above))
        },
        Counted::AllTies => |row| {
            let reaches =
                |key| (1..row.scores.len()).contains(&row.count) && row.scores[key] >= row.largest(row.count);
            unless(row, candidates(row) > row.count, row.set(reaches))
        },
        Counted::Identity => |row| unless(row, candidates(row) <= row.count, lowest(candidates(row))),
        Counted::IdentityAtOneMore => |row| unless(row, candidates(row) == row.count + 1, lowest(row.count)),
        Counted::FilledUp => |row| {
            let mut left = row.count.saturating_sub(candidates(row));
            let excluded = row.set(|key| row.scores[key] == LOWEST && !holds(row.before, key));
            let filling = row.set(|key| {
                let fills = holds(excluded, key) && left > 0;
                left -= usize::from(fills);
                fills
            });
            unless(row, candidates(row) < row.count, row.candidates() | filling)
        },
    }
}

const PLAIN: &[f64] = &[-1.0, -0.5, 0.0, 1.0];

#[rstest]
#[case(RowChange::Lost(Lost::First), PLAIN, EVERYTHING)]
#[case(RowChange::LeftOut(Lost::First), PLAIN, EACH_KEY_AND_NUMBERS_APART)]
#[case(RowChange::RankedLast(Lost::First), PLAIN, EVERYTHING)]
#[case(RowChange::Forced(Forced::First(1)), PLAIN, EVERYTHING)]
#[case(RowChange::Added(Forced::First(1)), PLAIN, EVERYTHING)]
#[case(RowChange::Coarse(10), &[-1.75, -1.5, 1.0, 1.25, 1.5], EVERYTHING)]
#[case(RowChange::Coarse(8), &[-1.0, 0.75, 1.0, 3e38], EVERYTHING)]
#[case(RowChange::Rounded(Storage::Bf16), &[-1.001, -1.0, 1.0, 1.001, 1.01], EVERYTHING)]
#[case(RowChange::Rounded(Storage::F16), &[-1.0001, -1.0, 1.0, 1.0001, 1.001], EVERYTHING)]
#[case(RowChange::Rounded(Storage::F16), &[-70000.0, 1.0, 60000.0, 65519.0, 65521.0], NOTHING)]
#[case(RowChange::ByBits { signed: true }, &[-2.0, -1.0, 0.0, 1.0, 2.0], EVERYTHING)]
#[case(RowChange::ByBits { signed: false }, &[-2.0, -1.0, 0.0, 1.0, 2.0], EVERYTHING)]
// −0 is 0.
#[case(RowChange::Coarse(10), &[-1e-39, -0.0, 0.0, 1.0], EVERYTHING)]
#[case(RowChange::ByBits { signed: true }, &[-1.0, -0.0, 0.0, 1.0], EVERYTHING)]
#[case(RowChange::ByBits { signed: false }, &[-1.0, -0.0, 0.0, 1.0], EVERYTHING)]
#[case(RowChange::EqualCollapse, PLAIN, EVERYTHING)]
#[case(RowChange::NegativeIsZero, PLAIN, EVERYTHING)]
#[case(RowChange::ExcludedBelow(-0.5), PLAIN, EVERYTHING)]
#[case(RowChange::OfEachTile { tile: 2, most: 1 }, PLAIN, APART)]
#[case(RowChange::Pages(2), PLAIN, EACH_KEY_AND_NUMBERS_APART)]
#[case(RowChange::Phantoms(None), PLAIN, EVERYTHING)]
#[case(RowChange::Phantoms(Some(2)), PLAIN, EVERYTHING)]
#[case(RowChange::Phantoms(Some(3)), PLAIN, EACH_KEY)]
#[case(RowChange::Modulo(2), PLAIN, EACH_KEY_APART)]
#[case(
    RowChange::CrowdedBin { bins: Bins::F32(11), room: 1, exact_too: false },
    &[-1.1, -1.0, 1.0, 1.2, 1.3],
    EVERYTHING
)]
#[case(
    RowChange::CrowdedBin { bins: Bins::F32(11), room: 2, exact_too: true },
    &[1.0, 1.1, 1.2, 1.3],
    EVERYTHING
)]
#[case(
    RowChange::CrowdedBin { bins: Bins::F16(8), room: 1, exact_too: false },
    &[1.0, 1.2499, 1.25, 1.4],
    EVERYTHING
)]
#[case(RowChange::Count(Counted::LessEarlier), PLAIN, EVERYTHING)]
#[case(RowChange::Count(Counted::All), PLAIN, EVERYTHING)]
#[case(RowChange::Count(Counted::PadsSelectLast), PLAIN, EVERYTHING)]
#[case(RowChange::Count(Counted::ExactFitEmpty), PLAIN, EVERYTHING)]
#[case(RowChange::Count(Counted::OneMoreFits), PLAIN, EVERYTHING)]
#[case(RowChange::Count(Counted::AboveThreshold), PLAIN, APART)]
#[case(RowChange::Count(Counted::AllTies), PLAIN, APART)]
#[case(RowChange::Count(Counted::Identity), PLAIN, EVERYTHING)]
#[case(RowChange::Count(Counted::IdentityAtOneMore), PLAIN, EVERYTHING)]
#[case(RowChange::Count(Counted::FilledUp), PLAIN, EVERYTHING)]
fn of_scores_as_they_are_a_change_selects_what_its_words_say(
    #[case] change: RowChange,
    #[case] values: &[f64],
    #[case] said: Said,
) {
    let scored = values.iter().map(|&value| Key::Between(value, value));
    let keys: Vec<Key> = scored.chain([Key::Excluded, Key::Before]).collect();
    let fewest = usize::from(matches!(change, RowChange::Forced(_)));
    for length in 1..=4 {
        let rows = Rows {
            keys: &keys,
            length,
            values,
            counts: fewest..=length + 1,
            forced: NONE_FORCED,
            said,
            query: 0,
        };
        rows.check(&[change], definition(change), true);
    }
}

/// Ends are at every second of the values.
fn intervals(values: &[f64]) -> Vec<Key> {
    let ends: Vec<f64> = values.iter().copied().step_by(2).collect();
    let from = |(at, &low): (usize, &f64)| ends[at..].iter().map(|&high| Key::Between(low, high)).collect();
    ends.iter().enumerate().flat_map(|end| -> Vec<Key> { from(end) }).collect()
}

const ENDS: &[f64] = &[-1.0, -0.5, 0.0, 0.5, 1.0];
/// Two of a bin, and one of another.
const IN_BINS: &[f64] = &[-1.8, -1.7, 1.1, 1.15, 1.2, 1.4, 1.45];

#[rstest]
#[case(RowChange::Lost(Lost::First), ENDS, EVERYTHING)]
#[case(RowChange::LeftOut(Lost::First), ENDS, EACH_KEY_AND_NUMBERS_APART)]
#[case(RowChange::RankedLast(Lost::First), ENDS, EVERYTHING)]
#[case(RowChange::Forced(Forced::First(1)), ENDS, EVERYTHING)]
#[case(RowChange::Added(Forced::First(1)), ENDS, EVERYTHING)]
#[case(RowChange::Coarse(10), &[-1.8, -1.7, 1.1, 1.2, 1.3, 1.55, 1.6], EVERYTHING)]
#[case(RowChange::Rounded(Storage::Bf16), &[-1.001, -1.0, 1.0, 1.001, 1.01], EVERYTHING)]
#[case(RowChange::ByBits { signed: true }, &[-2.0, -1.5, -1.0, 0.0, 1.0, 1.5, 2.0], OF_ONE_SIGN)]
#[case(RowChange::ByBits { signed: false }, &[-2.0, -1.5, -1.0, 0.0, 1.0, 1.5, 2.0], OF_ONE_SIGN)]
#[case(RowChange::EqualCollapse, ENDS, APART)]
#[case(RowChange::NegativeIsZero, ENDS, EVERYTHING)]
#[case(RowChange::ExcludedBelow(-0.5), ENDS, EVERYTHING)]
#[case(RowChange::OfEachTile { tile: 2, most: 1 }, ENDS, APART)]
#[case(RowChange::Pages(2), ENDS, EACH_KEY_AND_NUMBERS_APART)]
#[case(RowChange::Phantoms(None), ENDS, EACH_KEY)]
#[case(RowChange::Modulo(2), ENDS, EACH_KEY_APART)]
#[case(RowChange::CrowdedBin { bins: Bins::F32(11), room: 1, exact_too: false }, IN_BINS, EACH_KEY_APART)]
#[case(RowChange::Count(Counted::LessEarlier), ENDS, EVERYTHING)]
#[case(RowChange::Count(Counted::All), ENDS, EVERYTHING)]
#[case(RowChange::Count(Counted::PadsSelectLast), ENDS, EVERYTHING)]
#[case(RowChange::Count(Counted::ExactFitEmpty), ENDS, EVERYTHING)]
#[case(RowChange::Count(Counted::OneMoreFits), ENDS, EVERYTHING)]
#[case(RowChange::Count(Counted::AboveThreshold), ENDS, APART)]
#[case(RowChange::Count(Counted::AllTies), ENDS, APART)]
#[case(RowChange::Count(Counted::Identity), ENDS, EVERYTHING)]
#[case(RowChange::Count(Counted::IdentityAtOneMore), ENDS, EVERYTHING)]
#[case(RowChange::Count(Counted::FilledUp), ENDS, EVERYTHING)]
fn of_scores_up_to_a_radius_a_change_may_select_what_its_words_say(
    #[case] change: RowChange,
    #[case] values: &[f64],
    #[case] said: Said,
) {
    let keys = [&intervals(values), &[Key::Excluded, Key::Before][..]].concat();
    let fewest = usize::from(matches!(change, RowChange::Forced(_)));
    for length in 1..=3 {
        let rows = Rows {
            keys: &keys,
            length,
            values,
            counts: fewest..=length + 1,
            forced: NONE_FORCED,
            said,
            query: 0,
        };
        rows.check(&[change], definition(change), false);
    }
}

/// A key that may score −∞ may be no candidate (SPEC §2.8).
#[rstest]
#[case(RowChange::Lost(Lost::First), ENDS, EVERYTHING)]
#[case(RowChange::LeftOut(Lost::First), ENDS, NOTHING)]
#[case(RowChange::Forced(Forced::First(1)), ENDS, EVERYTHING)]
#[case(RowChange::Added(Forced::First(1)), ENDS, EACH_KEY)]
#[case(RowChange::Coarse(10), &[-1.8, -1.7, 1.1, 1.2, 1.3], EACH_KEY_APART)]
#[case(RowChange::Rounded(Storage::Bf16), &[-1.001, -1.0, 1.0, 1.001, 1.01], EACH_KEY_APART)]
#[case(RowChange::Rounded(Storage::F16), &[1.0, 1.5, 60000.0, 65000.0, 70000.0], NOTHING)]
#[case(RowChange::EqualCollapse, ENDS, NOTHING)]
#[case(RowChange::NegativeIsZero, ENDS, EVERYTHING)]
#[case(RowChange::ExcludedBelow(-0.5), ENDS, EVERYTHING)]
#[case(RowChange::OfEachTile { tile: 2, most: 1 }, ENDS, NOTHING)]
#[case(RowChange::Phantoms(None), ENDS, NOTHING)]
#[case(RowChange::Modulo(2), ENDS, NOTHING)]
#[case(RowChange::CrowdedBin { bins: Bins::F32(11), room: 2, exact_too: true }, IN_BINS, NOTHING)]
#[case(RowChange::Count(Counted::LessEarlier), ENDS, EVERYTHING)]
#[case(RowChange::Count(Counted::All), ENDS, EVERYTHING)]
#[case(RowChange::Count(Counted::AllTies), ENDS, NOTHING)]
#[case(RowChange::Count(Counted::Identity), ENDS, NOTHING)]
#[case(RowChange::Count(Counted::IdentityAtOneMore), ENDS, NOTHING)]
fn of_scores_that_may_be_infinite_a_change_may_select_what_its_words_say(
    #[case] change: RowChange,
    #[case] values: &[f64],
    #[case] said: Said,
) {
    let own = [Key::LowestOrNone, Key::Largest, Key::Anything, Key::Excluded, Key::Before];
    let keys = [&intervals(values), &own[..]].concat();
    let fewest = usize::from(matches!(change, RowChange::Forced(_)));
    for length in 1..=3 {
        let rows = Rows {
            keys: &keys,
            length,
            values,
            counts: fewest..=length + 1,
            forced: NONE_FORCED,
            said,
            query: 0,
        };
        rows.check(&[change], definition(change), false);
    }
}

/// Of numbers that may be ±∞ in float16, and of which the same one counts once, all may be the largest.
#[test]
fn equal_scores_may_be_dropped_after_they_are_rounded() {
    let values = &[1.0, 1.5, 60000.0, 65000.0, 70000.0];
    let selections: Selections = |row| {
        let row = row.scored(to_f16);
        row.without(repeated(&row)).selections()
    };
    let changes = [RowChange::Rounded(Storage::F16), RowChange::EqualCollapse];
    let (counts, forced, said) = (0..=3, NONE_FORCED, NOTHING);
    let rows = Rows { keys: &intervals(values), length: 3, values, counts, forced, said, query: 0 };
    rows.check(&changes, selections, false);
}

/// Keys may score −∞ whatever their scores are compared by.
#[rstest]
fn a_key_that_may_score_minus_infinity_alone_may_be_left_out(
    #[values(
        RowChange::ByBits { signed: true },
        RowChange::ByBits { signed: false },
        RowChange::Coarse(10),
        RowChange::Rounded(Storage::Bf16)
    )]
    change: RowChange,
) {
    let (counts, forced, said) = (0..=2, NONE_FORCED, EVERYTHING);
    let keys = [Key::LowestOrNone, Key::Largest];
    let rows = Rows { keys: &keys, length: 1, values: &[], counts, forced, said, query: 0 };
    rows.check(&[change], definition(change), false);
}

/// A change that changes nothing in rows of less than nine keys.
const NO_CHANGE: RowChange = RowChange::Lost(Lost::From(9));
const NONE_FORCED: (usize, ForcedKeys) = (0, ForcedKeys::Configured);

/// SPEC §2.12: forced keys are selected first, within H. Otherwise: on top of H, or though A excludes them.
#[rstest]
fn forced_keys_come_first(
    #[values(ForcedKeys::Configured, ForcedKeys::OnTop, ForcedKeys::ThoughExcluded)] how: ForcedKeys,
    #[values(false, true)] exactly: bool,
) {
    let selections: Selections = match how {
        ForcedKeys::OnTop => |row| row.of_count(row.count + size(row.candidates() & row.forced)).selections(),
        ForcedKeys::ThoughExcluded => |row| {
            let excluded = row.set(|key| row.scores[key] == LOWEST) & row.forced & !row.before;
            let score = |(key, &score): (usize, &f64)| if holds(excluded, key) { 0.0 } else { score };
            let scores = row.scores.iter().enumerate().map(score).collect();
            Known { scores, ..row.clone() }.selections()
        },
        _ => Known::selections,
    };
    let scored = match exactly {
        true => PLAIN.iter().map(|&value| Key::Between(value, value)).collect(),
        false => intervals(ENDS),
    };
    let keys = [&scored, &[Key::Excluded, Key::Before][..]].concat();
    let values = if exactly { PLAIN } else { ENDS };
    for (first, length) in [(1, 2), (1, 3), (2, 3)] {
        let (forced, counts, said) = ((first, how), first..=length + 1, EVERYTHING);
        let rows = Rows { keys: &keys, length, values, counts, forced, said, query: 0 };
        rows.check(&[NO_CHANGE], selections, exactly);
    }
}

/// Query t gets the keys that rank t · H and on in query 0's order, in any order of ties.
#[rstest]
#[case(PLAIN, 0, true, EVERYTHING)]
#[case(PLAIN, 1, true, APART)]
#[case(PLAIN, 2, true, APART)]
#[case(ENDS, 1, false, NOTHING)]
fn a_later_query_may_get_the_runners_up(
    #[case] values: &[f64],
    #[case] query: usize,
    #[case] exactly: bool,
    #[case] said: Said,
    #[values(0, 1)] first: usize,
) {
    let scored = match exactly {
        true => values.iter().map(|&value| Key::Between(value, value)).collect(),
        false => intervals(values),
    };
    let keys = [&scored, &[Key::Excluded, Key::Before][..]].concat();
    let selections: Selections = match query {
        0 => Known::selections,
        1 => |row| runners_up(row, 1),
        _ => |row| runners_up(row, 2),
    };
    let forced = (first, ForcedKeys::Configured);
    let rows = Rows { keys: &keys, length: 3, values, counts: first..=2, forced, said, query };
    rows.check(&[RowChange::RunnersUp], selections, exactly);
}

fn runners_up(row: &Known, query: usize) -> Vec<usize> {
    let (before, after) = (row.of_count(query * row.count), row.of_count((query + 1) * row.count));
    let pairs = before.selections().into_iter().flat_map(|first| {
        after.selections().into_iter().filter(move |all| first & !all == 0).map(move |all| all & !first)
    });
    pairs.collect()
}

/// A row of at most H candidates after one of more: what scores less than the H-th of that row is no candidate.
#[rstest]
fn a_row_of_few_candidates_may_be_cut_at_an_earlier_threshold(
    #[values(1, 2)] count: usize,
    #[values(false, true)] exactly: bool,
) {
    let ends: &[(f64, f64)] = match exactly {
        true => &[(-1.0, -1.0), (0.0, 0.0), (1.0, 1.0)],
        false => &[(-1.0, -1.0), (-1.0, 0.0), (0.0, 0.0), (0.0, 1.0)],
    };
    let scored = ends.iter().map(|&(low, high)| Key::Between(low, high));
    let keys: Vec<Key> = scored.chain([Key::Excluded]).collect();
    let all = words(keys.len(), 3).map(|word| word.iter().map(|&letter| &keys[letter]).collect::<Vec<_>>());
    let candidates = |row: &[&Key]| row.iter().filter(|key| !matches!(key, Key::Excluded)).count();
    let (many, few): (Vec<Vec<&Key>>, Vec<Vec<&Key>>) = all.partition(|row| candidates(row) > count);
    // Each of the few after each of the many, or of every third.
    let pairs = few.iter().enumerate().flat_map(|(at, few)| {
        many.iter().skip(at % 3).step_by(3).flat_map(move |many| [many.clone(), few.clone()])
    });
    let rows: Vec<Vec<&Key>> = few.iter().cloned().chain(pairs).collect();
    let (prediction, mut ranked) = predicted_of_rows(&rows, 1);
    ranked.count = count;
    let changed = match exactly {
        true => ChangedRows::exactly(&prediction, &ranked, [RowChange::StaleThreshold]),
        false => ChangedRows::within(&prediction, &ranked, RoundingModel::F32, [RowChange::StaleThreshold]),
    };
    let known = |row: &[&Key]| -> Vec<Known> {
        let possible: Vec<Vec<Option<f64>>> = row.iter().map(|key| key.possible(ENDS)).collect();
        let choices: usize = possible.iter().map(Vec::len).product();
        let of_choice = |mut rest: usize| {
            let score = |of_key: &Vec<Option<f64>>| {
                let score = of_key[rest % of_key.len()];
                rest /= of_key.len();
                score.unwrap_or(LOWEST)
            };
            let scores: Vec<f64> = possible.iter().map(score).collect();
            Known { scores, before: 0, forced: 0, count }
        };
        (0..choices).map(of_choice).collect()
    };
    for (entry, row) in rows.iter().enumerate() {
        let earlier = rows[..entry].iter().rfind(|row| candidates(row) > count);
        let mut thresholds = vec![LOWEST];
        if let Some(earlier) = earlier.filter(|_| candidates(row) <= count) {
            thresholds = known(earlier).iter().map(|row| row.largest(count)).collect();
        }
        let common = known(row).iter().fold(Common::NONE, |common, row| {
            thresholds.iter().fold(common, |common, threshold| {
                let cut = row.without(row.set(|key| row.scores[key] < *threshold));
                common.and(Common::of(&cut.selections()))
            })
        });
        let certificate = changed.certificate((entry, 0, 0));
        let said = Common::said(&certificate);
        // A number that is known up to a radius may be below itself.
        let touches = row.iter().any(|key| match key {
            Key::Between(low, high) => thresholds.contains(low) || thresholds.contains(high),
            _ => false,
        });
        let what = || format!("{earlier:?}, then {row:?}: {certificate:?}, {common:?}");
        assert!(said.allows(common), "too narrow: {}", what());
        assert!(said == common || (touches && !exactly), "too wide: {}", what());
    }
}

/// The bits of a number from 0 up are above those of −1. So that it may be exactly 0 and no less, the last three labels add up to the radius
/// that the first two make.
#[test]
fn a_score_from_zero_up_is_above_negative_ones_by_its_bits() {
    let of = |labels: &[[f32; 5]]| {
        let other = [-1.0, 0.0, 0.0, 0.0, 0.0];
        let k: Vec<f32> = labels.iter().flat_map(|own| [*own, other].concat()).collect();
        let k = Array4::from_shape_vec((labels.len(), 1, 2, 5), k).unwrap();
        let mut prediction = predicted(k, (1, 1), Array4::zeros((1, 1, 1, 1)));
        let ranked = prediction.ranked.take().expect("keys are ranked");
        (prediction, ranked)
    };
    let scores = |labels: &[[f32; 5]]| -> Vec<Approximate> {
        let (prediction, ranked) = of(labels);
        let bounds = ScoreBounds::predicted(&prediction, &ranked, RoundingModel::F32);
        (0..labels.len()).map(|entry| bounds.ranked_by((entry, 0, 0))[0]).collect()
    };
    let mut labels: Vec<[f32; 5]> =
        (0..200u16).map(|step| 1e6 + f32::from(step) * 1e3).map(|x| [x, -x, 1.0, 0.0, 0.0]).collect();
    for _ in 0..6 {
        let found = scores(&labels);
        for (own, score) in labels.iter_mut().zip(found) {
            let first = score.radius as f32;
            let rest = score.radius - f64::from(first);
            let second = rest as f32;
            *own = [own[0], own[1], first, second, (rest - f64::from(second)) as f32];
        }
    }
    let (prediction, ranked) = of(&labels);
    let change = RowChange::ByBits { signed: true };
    let rows = ChangedRows::within(&prediction, &ranked, RoundingModel::F32, [change]);
    let mut from_zero = 0;
    for (entry, score) in scores(&labels).iter().enumerate().filter(|(_, score)| score.low() == 0.0) {
        assert_eq!(rows.certificate((entry, 0, 0)).classes, [Class::In, Class::Out], "{score:?}");
        from_zero += 1;
    }
    assert!(from_zero > 10, "{from_zero}");
}

const fn scored(score: f64) -> Key {
    Key::Between(score, score)
}

#[rstest]
#[case::ties_with_the_second_are_lost(
    Counted::AboveThreshold, 2, &[scored(3.0), scored(1.0), scored(1.0), scored(0.0)],
    &[Class::In, Class::Out, Class::Out, Class::Out]
)]
#[case::a_row_of_as_many_candidates_is_not_filled_up(
    Counted::FilledUp, 2, &[scored(0.0), Key::Excluded, scored(1.0)],
    &[Class::In, Class::Excluded, Class::In]
)]
fn a_row_has_these_classes(
    #[case] counted: Counted,
    #[case] count: usize,
    #[case] keys: &[Key],
    #[case] classes: &[Class],
) {
    let (prediction, mut ranked) = predicted_of_rows(&[keys.iter().collect()], 1);
    ranked.count = count;
    let rows = ChangedRows::exactly(&prediction, &ranked, [RowChange::Count(counted)]);
    let found = rows.certificate((0, 0, 0));
    let selected = classes.iter().filter(|class| **class == Class::In).count();
    assert_eq!(found, RowCertificate { classes: classes.to_vec(), fewest: selected, most: selected });
}

/// The lowest key is a candidate or none, so that positions from 0 on are selected, or the best keys. Some keys are neither.
#[rstest]
#[case(Counted::Identity, &[Key::Excluded, scored(1.0), Key::LowestOrNone], &[2])]
#[case(Counted::IdentityAtOneMore, &[scored(1.0), Key::LowestOrNone, Key::Excluded], &[1, 2])]
fn a_key_that_is_in_neither_of_two_selections_is_not_selected(
    #[case] counted: Counted,
    #[case] keys: &[Key],
    #[case] not_selected: &[usize],
) {
    let (prediction, ranked) = predicted_of_rows(&[keys.iter().collect()], 1);
    assert_eq!(ranked.count, 1);
    let change = RowChange::Count(counted);
    let rows = ChangedRows::within(&prediction, &ranked, RoundingModel::F32, [change]);
    let classes = rows.certificate((0, 0, 0)).classes;
    assert!(not_selected.iter().all(|&key| classes[key] < Class::Open), "{classes:?}");
}

#[test]
fn a_row_of_exactly_h_candidates_may_select_nothing_though_keys_are_forced() {
    let keys: Vec<Key> = PLAIN.iter().map(|&score| scored(score)).chain([Key::Excluded]).collect();
    let forced = (1, ForcedKeys::Configured);
    let (values, counts, said) = (PLAIN, 1..=4, EVERYTHING);
    let rows = Rows { keys: &keys, length: 3, values, counts, forced, said, query: 0 };
    let change = RowChange::Count(Counted::ExactFitEmpty);
    rows.check(&[change], definition(change), true);
}

/// Two entries, two heads of a KV head, two queries, five keys.
const SIZES: [usize; 4] = [2, 2, 2, 5];

/// A of every row is another order of the numbers from −2 to 2, but for one key that is excluded; P of every row holds another key, and
/// none of them that of the row's highest score.
fn call() -> (Prediction, Ranked) {
    let [batch, heads, queries, keys] = SIZES;
    let additive = Array4::from_shape_fn((batch, heads, queries, keys), |(b, head, i, key)| {
        score_of((b, head, i), key) as f32
    });
    let weights = Array4::from_shape_fn((batch, heads, queries, keys), |(b, head, i, key)| {
        f32::from(u8::from(was_attended((b, head, i), key)))
    });
    let mut prediction = predicted(Array4::zeros((batch, 1, keys, 1)), (heads, queries), additive);
    prediction.before = Mask::from_weights(weights, &prediction.ranking.dims()).unwrap();
    let mut ranked = prediction.ranked.take().expect("keys are ranked");
    ranked.count = 2;
    (prediction, ranked)
}

fn number((b, head, i): Row) -> usize {
    4 * b + 2 * head + i
}

fn score_of(row: Row, key: usize) -> f64 {
    let place = (key * [1, 2, 3, 4][number(row) / 2] + number(row)) % 5;
    if place == 1 { LOWEST } else { place as f64 - 2.0 }
}

fn was_attended(row: Row, key: usize) -> bool {
    (key + 3 * number(row) + number(row) / 5) % 5 == 2
}

/// Which row's scores, and the earlier masks of which rows, decide.
type Sources = fn(Row) -> (Row, Vec<Row>);

#[rstest]
#[case::of_itself(NO_CHANGE, |row| (row, vec![row]))]
#[case(RowChange::RowOf(Axis::Entry, Map::First), |(_, head, i)| ((0, head, i), vec![(0, head, i)]))]
#[case(RowChange::RowOf(Axis::Head, Map::Reversed), |(b, head, i)| ((b, 1 - head, i), vec![(b, 1 - head, i)]))]
#[case(RowChange::ScoresOf(Axis::Query, Map::Last), |row @ (b, head, _)| ((b, head, 1), vec![row]))]
#[case(RowChange::EarlierOf(Axis::Entry, Map::Last), |row @ (_, head, i)| (row, vec![(1, head, i)]))]
#[case(RowChange::EarlierOf(Axis::Query, Map::First), |row @ (b, head, _)| (row, vec![(b, head, 0)]))]
#[case(RowChange::EarlierOfAnyHead, |row @ (b, _, i)| (row, vec![(b, 0, i), (b, 1, i)]))]
fn another_row_may_stand_in_for_one(
    #[case] change: RowChange,
    #[case] sources: Sources,
    #[values(false, true)] exactly: bool,
) {
    let (prediction, ranked) = call();
    check_call(&prediction, &ranked, change, exactly, |row| {
        let (scored, asked) = sources(row);
        let excluded = |key| asked.iter().any(|&row| was_attended(row, key));
        (0..5).map(|key| if excluded(key) { LOWEST } else { score_of(scored, key) }).collect()
    });
}

#[rstest]
fn the_runners_up_are_those_of_the_first_query(#[values(false, true)] exactly: bool) {
    let (prediction, ranked) = call();
    check_call(&prediction, &ranked, RowChange::RunnersUp, exactly, |(b, head, i)| {
        let first = (b, head, 0);
        let score = |key| if was_attended(first, key) { LOWEST } else { score_of(first, key) };
        let known = Known { scores: (0..5).map(score).collect(), before: 0, forced: 0, count: 2 };
        let selected = known.selections()[0];
        known.without(if i == 0 { 0 } else { selected }).scores
    });
}

/// Compares every row of a call of two keys with scores, −∞ for no candidates, of which none tie.
#[track_caller]
fn check_call(
    prediction: &Prediction,
    ranked: &Ranked,
    change: RowChange,
    exactly: bool,
    scores: impl Fn(Row) -> Vec<f64>,
) {
    let rows = match exactly {
        true => ChangedRows::exactly(prediction, ranked, [change]),
        false => ChangedRows::within(prediction, ranked, RoundingModel::F32, [change]),
    };
    for row @ (b, head, i) in prediction.ranking.dims().rows() {
        let known = Known { scores: scores(row), before: 0, forced: 0, count: ranked.count };
        let selected = known.selections();
        assert_eq!(selected.len(), 1, "a tie in {row:?}");
        let attended = |key| prediction.before.attends(b, head, i, key);
        let class = |key: usize| match known.scores[key] > LOWEST {
            true if holds(selected[0], key) => Class::In,
            true => Class::Out,
            // A key of another row's earlier mask is not attended here.
            false if attended(key) => Class::Before,
            false => Class::Excluded,
        };
        let found = rows.certificate(row);
        let normal = |(key, class): (usize, &Class)| match class {
            // Attended before, but excluded for another reason: it keeps its weight all the same.
            Class::Excluded if attended(key) => Class::Before,
            class => *class,
        };
        let classes: Vec<Class> = found.classes.iter().enumerate().map(normal).collect();
        let expected: Vec<Class> = (0..known.scores.len()).map(class).collect();
        assert_eq!(classes, expected, "{row:?}: {known:?}");
        assert_eq!((found.fewest, found.most), (size(selected[0]), size(selected[0])), "{row:?}");
    }
}

/// SPEC §2.7, where heads share a selection, and what becomes of P then.
#[rstest]
#[case::of_all_heads(Sharing::Mode(HeadMode::SummedScores), NO_CHANGE, &[0, 1])]
#[case::in_parts(Sharing::InParts(HeadMode::SummedScores, 2), NO_CHANGE, &[])]
#[case::in_parts(Sharing::InParts(HeadMode::SummedScores, 2), RowChange::EarlierOfAllParts, &[0, 1])]
fn earlier_masks_of_heads_that_share_a_selection_exclude_keys(
    #[case] sharing: Sharing,
    #[case] change: RowChange,
    #[case] others: &[usize],
    #[values(false, true)] exactly: bool,
) {
    let (prediction, mut ranked) = call();
    ranked.sharing = sharing;
    check_call(&prediction, &ranked, change, exactly, |row @ (b, head, i)| {
        let excluded =
            |key| was_attended(row, key) || others.iter().any(|&head| was_attended((b, head, i), key));
        let summed = |key| match sharing {
            Sharing::Mode(_) => score_of((b, 0, i), key) + score_of((b, 1, i), key),
            _ => score_of((b, head, i), key),
        };
        (0..5).map(|key| if excluded(key) { LOWEST } else { summed(key) }).collect()
    });
}

/// A is added once, that of each head to its own row, after the labels' scores of both heads were summed.
#[rstest]
fn the_additive_mask_may_be_added_once(
    #[values(false, true)] own_earlier: bool,
    #[values(false, true)] exactly: bool,
) {
    let (mut prediction, mut ranked) = call();
    let label = |key: usize| [0.0, 2.125, -1.75, 0.5, 3.25][key];
    for labels in &mut ranked.labels {
        labels.k.column_mut(0).iter_mut().enumerate().for_each(|(key, k)| *k = label(key) as f32);
    }
    ranked.sharing = Sharing::Mode(HeadMode::SummedScores);
    prediction.add_mask_after().unwrap();
    let change = RowChange::AdditiveOnce { own_earlier };
    check_call(&prediction, &ranked, change, exactly, |row @ (b, head, i)| {
        let other = (b, 1 - head, i);
        let excluded = |key| was_attended(row, key) || (!own_earlier && was_attended(other, key));
        let score = |key| 2.0 * label(key) + score_of(row, key);
        (0..5).map(|key| if excluded(key) { LOWEST } else { score(key) }).collect()
    });
}

/// Where keys of P stay candidates.
#[rstest]
fn keys_attended_before_may_compete(#[values(false, true)] exactly: bool) {
    let (mut prediction, ranked) = call();
    prediction.behaviour.earlier = Earlier::Candidates;
    check_call(&prediction, &ranked, NO_CHANGE, exactly, |row| {
        (0..5).map(|key| score_of(row, key)).collect()
    });
}

#[rstest]
fn the_smallest_scores_may_come_first(#[values(false, true)] exactly: bool) {
    let (mut prediction, ranked) = call();
    prediction.behaviour.smallest = true;
    check_call(&prediction, &ranked, NO_CHANGE, exactly, |row| {
        let excluded = |key| was_attended(row, key) || score_of(row, key) == LOWEST;
        (0..5).map(|key| if excluded(key) { LOWEST } else { -score_of(row, key) }).collect()
    });
}

/// Where heads share a selection, a change must keep their rows the same, unless it depends on the head.
#[rstest]
#[case(&[], false)]
#[case(&[RowChange::Lost(Lost::First), RowChange::ScoresOf(Axis::Query, Map::First)], false)]
#[case(&[RowChange::RowOf(Axis::Head, Map::First)], true)]
#[case(&[RowChange::Lost(Lost::First), RowChange::EarlierOf(Axis::Head, Map::Next)], true)]
#[case(&[RowChange::AdditiveOnce { own_earlier: true }, RowChange::Lost(Lost::First)], true)]
fn heads_may_differ_where_a_change_depends_on_the_head(
    #[case] changes: &[RowChange],
    #[case] expected: bool,
) {
    let (prediction, ranked) = call();
    let rows = ChangedRows::exactly(&prediction, &ranked, changes.iter().copied());
    assert_eq!(rows.separate_heads(), expected);
}

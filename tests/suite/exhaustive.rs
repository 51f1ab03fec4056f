//! Selection and certificates by exhaustion: every row of a few keys over a small alphabet of scores, every H, every set of keys
//! attended before, against definitions that count and compare and do nothing else. Where it is affordable rows are longer by a key
//! with `DOUBLECHECK_LONG`.

use doublecheck::algorithm::select::{select, select_with};
use doublecheck::algorithm::{Dims, Mask};
use doublecheck::verdicts::bounds::Approximate;
use doublecheck::verdicts::certificate::{Candidacy, Class, certify_row};
use doublecheck::verdicts::judge::row_fault;
use doublecheck::verdicts::topk;
use ndarray::Array4;

use crate::support::is_long;

const LOWEST: f64 = f64::NEG_INFINITY;

/// 1 and what is one unit above it; both zeros; both infinities.
const SCORES: [f64; 8] = [LOWEST, -1.0, -0.0, 0.0, f64::MIN_POSITIVE, 1.0, 1.0 + f64::EPSILON, f64::INFINITY];

/// Every way to take `length` of so many letters, as indices.
fn words(letters: usize, length: usize) -> impl Iterator<Item = Vec<usize>> {
    (0..letters.pow(length as u32)).map(move |word| {
        let mut rest = word;
        let letter = |_| {
            let letter = rest % letters;
            rest /= letters;
            letter
        };
        (0..length).map(letter).collect()
    })
}

fn holds(set: usize, key: usize) -> bool {
    set >> key & 1 == 1
}

/// SPEC §2.8: of the candidates, those that fewer than H others come before: larger scores, then smaller indices.
fn selected(scores: &[f64], before: usize, heavy_size: usize) -> usize {
    let candidate = |key: usize| scores[key] > LOWEST && !holds(before, key);
    let rank = |key: usize| {
        let comes_first = |&other: &usize| {
            candidate(other) && (scores[other] > scores[key] || (scores[other] == scores[key] && other < key))
        };
        (0..scores.len()).filter(comes_first).count()
    };
    let keys = (0..scores.len()).filter(|&key| candidate(key) && rank(key) < heavy_size);
    keys.fold(0, |set, key| set | 1 << key)
}

fn set_of(keys: &[usize]) -> usize {
    assert!(keys.is_sorted_by(|a, b| a < b), "{keys:?}");
    keys.iter().fold(0, |set, &key| set | 1 << key)
}

#[test]
fn a_selection_is_what_its_definition_says() {
    let mut compared = 0u64;
    for length in 1..=if is_long() { 7 } else { 6 } {
        // Of the longest, some letters less.
        let letters: &[f64] = match length {
            6 if is_long() => &[LOWEST, -1.0, -0.0, 0.0, 1.0, 1.0 + f64::EPSILON],
            6 | 7 => &[LOWEST, -0.0, 0.0, 1.0],
            _ => &SCORES,
        };
        for word in words(letters.len(), length) {
            let scores: Vec<f64> = word.iter().map(|&letter| letters[letter]).collect();
            for before in 0..1usize << length {
                for heavy_size in 0..=length + 1 {
                    let found = select(&scores, |key| holds(before, key), heavy_size);
                    let expected = selected(&scores, before, heavy_size);
                    assert_eq!(set_of(&found), expected, "{scores:?}, before {before:b}, H = {heavy_size}");
                    compared += 1;
                }
            }
        }
    }
    assert!(compared > 9_000_000, "{compared}");
}

/// SPEC §2.12: forced keys that are candidates come first, and the rest of H is selected from the others.
#[test]
fn a_selection_with_forced_keys_is_what_its_definition_says() {
    let letters = [LOWEST, -0.0, 0.0, 1.0];
    let mut compared = 0u64;
    for length in 1..=4 {
        for word in words(letters.len(), length) {
            let scores: Vec<f64> = word.iter().map(|&letter| letters[letter]).collect();
            for (before, forced) in
                (0..1usize << (2 * length)).map(|sets| (sets >> length, sets % (1 << length)))
            {
                for heavy_size in forced.count_ones() as usize..=length {
                    let found =
                        select_with(&scores, |key| holds(before, key), |key| holds(forced, key), heavy_size);
                    let candidate =
                        |key: &usize| scores[*key] > LOWEST && !holds(before, *key) && holds(forced, *key);
                    let first = (0..length).filter(candidate).fold(0usize, |set, key| set | 1 << key);
                    let left = heavy_size - first.count_ones() as usize;
                    let expected = first | selected(&scores, before | forced, left);
                    assert_eq!(
                        set_of(&found),
                        expected,
                        "{scores:?}, before {before:b}, forced {forced:b}, H = {heavy_size}"
                    );
                    compared += 1;
                }
            }
        }
    }
    assert!(compared > 100_000, "{compared}");
}

/// Every set that some order of ties selects: as many candidates as there are, at most H, forced ones first, and no key scores
/// above one that is in while it is out itself.
fn legal(scores: &[f64], candidates: usize, forced: usize, heavy_size: usize) -> Vec<usize> {
    let count = (candidates.count_ones() as usize).min(heavy_size);
    let first = candidates & forced;
    let fits = |set: &usize| {
        let ordered = |inside: usize, outside: usize| {
            !holds(*set & !first, inside)
                || !holds(candidates & !first & !*set, outside)
                || scores[outside] <= scores[inside]
        };
        set & !candidates == 0
            && set.count_ones() as usize == count
            && first & !*set == 0
            && (0..scores.len()).all(|inside| (0..scores.len()).all(|outside| ordered(inside, outside)))
    };
    (0..1usize << scores.len()).filter(fits).collect()
}

fn dims(keys: usize) -> Dims {
    Dims { batch: 1, heads: 1, kv_heads: 1, queries: 1, keys, head_dim: 1, value_dim: 1 }
}

fn mask_of(set: usize, keys: usize) -> Mask {
    let weights =
        Array4::from_shape_fn((1, 1, 1, keys), |(_, _, _, key)| f32::from(u8::from(holds(set, key))));
    Mask::from_weights(weights, &dims(keys)).unwrap()
}

/// Of given scores a certificate says what is in every selection that ties allow, what is in none, and how many keys there are; the
/// judge accepts these selections and no other set.
#[test]
fn a_certificate_of_scores_allows_what_ties_allow_and_nothing_else() {
    let letters = [f32::NEG_INFINITY, -1.0, -0.0, 0.0, 1.0, 1.0 + f32::EPSILON, f32::INFINITY];
    let (mut rows, mut masks) = (0u64, 0u64);
    for length in 1..=if is_long() { 6 } else { 5 } {
        // The letters, then a key attended before, then one that the others of its heads attended to.
        let states = letters.len() + 2;
        let subsets: Vec<Mask> = (0..1usize << length).map(|set| mask_of(set, length)).collect();
        for word in words(states, length) {
            let state = |key: usize| letters.get(word[key]).copied();
            let scores: Vec<f32> = (0..length).map(|key| state(key).unwrap_or(0.5)).collect();
            let wide: Vec<f64> = scores.iter().map(|&score| f64::from(score)).collect();
            let set = |fits: &dyn Fn(usize) -> bool| {
                (0..length).filter(|&key| fits(key)).fold(0, |set, key| set | 1 << key)
            };
            let candidates = set(&|key| state(key).is_some_and(|score| score > f32::NEG_INFINITY));
            let before = set(&|key| word[key] == letters.len());
            for forced in if length > 3 { 0..1 } else { 0..1usize << length } {
                for heavy_size in (forced.count_ones() as usize).max(1)..=length + 1 {
                    let attended = |key: usize| match word[key].checked_sub(letters.len()) {
                        None => None,
                        Some(0) => Some(Candidacy::Before),
                        Some(_) => Some(Candidacy::Excluded),
                    };
                    let found = topk::certify(&scores, attended, |key| holds(forced, key), heavy_size);
                    let legal = legal(&wide, candidates, forced, heavy_size);
                    let what = || {
                        format!("{scores:?}, states {word:?}, forced {forced:b}, H = {heavy_size}: {found:?}")
                    };
                    for (key, class) in found.classes.iter().enumerate() {
                        let expected = match word[key].checked_sub(letters.len()) {
                            Some(0) => Class::Before,
                            Some(_) => Class::Excluded,
                            None if !holds(candidates, key) => Class::Excluded,
                            None if legal.iter().all(|&set| holds(set, key)) => Class::In,
                            None if !legal.iter().any(|&set| holds(set, key)) => Class::Out,
                            None => Class::Open,
                        };
                        assert_eq!(*class, expected, "key {key} of {}", what());
                    }
                    let count = (candidates.count_ones() as usize).min(heavy_size);
                    assert_eq!((found.fewest, found.most), (count, count), "{}", what());
                    rows += 1;
                    if length > 3 && rows % 16 != 0 && !is_long() {
                        continue;
                    }
                    for (set, mask) in subsets.iter().enumerate() {
                        let fault = row_fault(&found, &subsets[before], mask, (0, 0, 0));
                        let right = set & before == before && legal.contains(&(set & !before));
                        assert_eq!(fault.is_none(), right, "{set:b}: {fault:?}, {}", what());
                        masks += 1;
                    }
                }
            }
        }
    }
    assert!(rows > 300_000 && masks > 500_000, "{rows} rows, {masks} masks");
}

/// A selected key has weight 1, one attended before the weight that it had, and one that is not attended none.
#[test]
fn a_key_of_another_weight_is_refused() {
    let scores = [3.0, 2.0, 2.0, 1.0, 0.0];
    let found = topk::certify(&scores, |key| (key == 4).then_some(Candidacy::Before), |_| false, 2);
    assert_eq!(found.classes, [Class::In, Class::Open, Class::Open, Class::Out, Class::Before]);
    let mask = |weights: [f32; 5]| {
        Mask::from_weights(Array4::from_shape_vec((1, 1, 1, 5), weights.to_vec()).unwrap(), &dims(5)).unwrap()
    };
    let before = mask([0.0, 0.0, 0.0, 0.0, 0.25]);
    let right = [1.0, 0.0, 1.0, 0.0, 0.25];
    let fault = |weights: [f32; 5]| row_fault(&found, &before, &mask(weights), (0, 0, 0));
    assert_eq!(fault(right), None);
    for (key, weight) in
        [(0, 0.5), (0, 1.0f32.next_down()), (2, 0.5), (2, 1.0f32.next_up()), (4, 1.0), (4, 0.0), (4, 0.5)]
    {
        let mut wrong = right;
        wrong[key] = weight;
        assert!(fault(wrong).is_some(), "key {key} of weight {weight}");
    }
}

/// What a key of an interval may score. Between the ends of all intervals lie halves; below all is no candidate.
const POSSIBLE: [f64; 7] = [LOWEST, -1.0, -0.5, 0.0, 0.5, 1.0, f64::INFINITY];

/// Intervals over −1, 0 and 1, each of which may reach to −∞ or +∞ as well.
fn intervals() -> Vec<Approximate> {
    let ends = [(-1.0, -1.0), (-1.0, 0.0), (-1.0, 1.0), (0.0, 0.0), (0.0, 1.0), (1.0, 1.0)];
    let kinds = ends.iter().flat_map(|&(low, high): &(f64, f64)| {
        [(false, false), (true, false), (false, true), (true, true)].map(|(minus, plus)| Approximate {
            may_be_minus_infinity: minus,
            may_be_plus_infinity: plus,
            ..Approximate::new((low + high) / 2.0, (high - low) / 2.0)
        })
    });
    kinds.collect()
}

/// Scores known up to a radius: a key is in where every possible row and order of ties selects it, out where none does, and as
/// many are selected as some row has.
#[test]
fn a_certificate_of_intervals_says_what_every_possible_row_says() {
    let scored = intervals();
    // Then two that are forced, of which one may be no candidate.
    let forced_from = scored.len();
    let uncertain = Approximate { may_be_minus_infinity: true, ..Approximate::new(0.0, 0.0) };
    let all = [&scored[..], &[Approximate::new(0.0, 0.0), uncertain]].concat();
    let possible: Vec<Vec<f64>> = all
        .iter()
        .map(|interval| {
            let inside = |score: &f64| match *score {
                LOWEST => interval.may_be_minus_infinity,
                f64::INFINITY => interval.may_be_plus_infinity,
                score => {
                    interval.may_be_minus_infinity && score <= interval.value + interval.radius
                        || interval.may_be_plus_infinity && score >= interval.value - interval.radius
                        || (score - interval.value).abs() <= interval.radius
                }
            };
            POSSIBLE.into_iter().filter(inside).collect()
        })
        .collect();
    let mut rows = 0u64;
    for length in 1..=if is_long() { 4 } else { 3 } {
        for word in words(all.len(), length) {
            // Keys in another order are certified alike; ties are open.
            if !word.is_sorted() {
                continue;
            }
            let forced =
                (0..length).filter(|&key| word[key] >= forced_from).fold(0usize, |set, key| set | 1 << key);
            let row: Vec<Candidacy> = word
                .iter()
                .map(|&kind| {
                    if kind >= forced_from {
                        Candidacy::Forced(all[kind])
                    } else {
                        Candidacy::Scored(all[kind])
                    }
                })
                .collect();
            for heavy_size in (forced.count_ones() as usize).max(1)..=length + 1 {
                let found = certify_row(&row, heavy_size);
                let (mut always, mut ever, mut fewest, mut most) = ((1usize << length) - 1, 0, usize::MAX, 0);
                let choices: Vec<&Vec<f64>> = word.iter().map(|&kind| &possible[kind]).collect();
                let mut at = vec![0; length];
                'rows: loop {
                    let scores: Vec<f64> =
                        at.iter().zip(&choices).map(|(&at, choices)| choices[at]).collect();
                    let candidates = (0..length)
                        .filter(|&key| scores[key] > LOWEST)
                        .fold(0usize, |set, key| set | 1 << key);
                    for set in legal(&scores, candidates, forced, heavy_size) {
                        (always, ever) = (always & set, ever | set);
                        let count = set.count_ones() as usize;
                        (fewest, most) = (fewest.min(count), most.max(count));
                    }
                    for key in 0..length {
                        at[key] += 1;
                        if at[key] < choices[key].len() {
                            continue 'rows;
                        }
                        at[key] = 0;
                    }
                    break;
                }
                let expected: Vec<Class> = (0..length)
                    .map(|key| match (holds(always, key), holds(ever, key)) {
                        (true, _) => Class::In,
                        (_, false) => Class::Out,
                        _ => Class::Open,
                    })
                    .collect();
                assert_eq!(found.classes, expected, "{row:?}, H = {heavy_size}");
                assert_eq!((found.fewest, found.most), (fewest, most), "{row:?}, H = {heavy_size}");
                rows += 1;
            }
        }
    }
    assert!(rows > 10_000, "{rows}");
}

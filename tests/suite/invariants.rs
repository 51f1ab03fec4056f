//! Property tests: every invariant of the library on random cases, answered by the reference; what masks must satisfy, counted
//! without any certificate; and what the algorithm promises beside them (quantisation bounds, round trips, the channel
//! layout map).

use crate::support::proptest_config;
use doublecheck::algorithm::attention::dense_attention;
use doublecheck::algorithm::channels::half_split_to_interleaved;
use doublecheck::algorithm::quantize::quantize;
use doublecheck::algorithm::{
    AttentionConfig, ChannelFile, ChannelOrder, HeadMode, HeavySize, LabelBits, Mask, Row, Storage,
};
use doublecheck::cases::strategies::{cases, plans};
use doublecheck::cases::{Case, CaseFile, Expectation, Reader, RoundingModel, file};
use doublecheck::subjects::{Reference, Subject};
use doublecheck::verdicts::invariants::{Held, INVARIANTS, Implementation};
use doublecheck::verdicts::output::judge_output;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

const REGRESSIONS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/proptest-regressions/invariants.txt");

proptest! {
    #![proptest_config(proptest_config(1000, REGRESSIONS))]

    #[test]
    fn reference_satisfies_every_invariant(plan in plans()) {
        let case = plan.case().expect("plans make valid inputs");
        let mut answer = |case: &Case| Some(Reference::default().answer(case));
        for invariant in INVARIANTS {
            let mut reference = Implementation { model: RoundingModel::REFERENCE, answer: &mut answer };
            let outcome = invariant.check(&case, &mut reference);
            prop_assert!(outcome.is_ok(), "{}: {:?}", invariant.name, outcome);
        }
    }

    #[test]
    fn a_case_file_gives_the_case_back(case in cases()) {
        let mut case = case;
        if let Ok(answer) = Reference::default().answer(&case) {
            case.expectation = Some(Expectation::from_answer(&answer, "reference".into()));
        }
        let bytes = file::to_bytes(&case);
        let CaseFile::Attention(read) = Reader::default().parse(&bytes, &case.name).unwrap() else {
            panic!("an attention case was read as something else");
        };
        prop_assert_eq!(&read.instance, &case.instance);
        prop_assert_eq!(&read.call.inputs, &case.call.inputs);
        prop_assert_eq!(&read.call.previous, &case.call.previous);
        prop_assert_eq!(&read.expectation, &case.expectation);
        prop_assert_eq!(file::to_bytes(&read), bytes);
    }
}

/// A case that the reference answers, its mask, and the mask before. In f32 none of the random scores overflows, so that
/// A and the mask before alone say what a candidate is.
struct Answered {
    case: Case,
    before: Mask,
    mask: Mask,
}

impl Answered {
    /// Neither attended before nor excluded by A: in the summed modes, for no head.
    fn is_candidate(&self, (b, head, i): Row, key: usize) -> bool {
        let dims = self.case.call.inputs.dims();
        let heads = match self.case.instance.selection.heads {
            HeadMode::PerHead => head..head + 1,
            _ => 0..dims.heads,
        };
        heads.into_iter().all(|head| {
            !self.before.attends(b, head, i, key)
                && self.case.call.inputs.additive(b, head, i).at(key) > f32::NEG_INFINITY
        })
    }

    /// What the row selects besides what was attended before.
    fn selected(&self, row @ (b, head, i): Row) -> Vec<usize> {
        let keys = self.mask.row(row).map(|(key, _)| key);
        keys.filter(|&key| !self.before.attends(b, head, i, key)).collect()
    }

    /// Whether an early out of SPEC §2.2 gives a full mask.
    fn early_out(&self) -> bool {
        let (dims, settings) = (self.case.call.inputs.dims(), self.case.instance.selection);
        let short = dims.keys - dims.queries <= settings.heavy_size.resolve(dims.keys);
        self.before.is_full() || (settings.dense_fallback && short)
    }
}

/// Checks a property on 1000 random cases: `None` where a case says nothing about it, which four of five may.
fn on_answered_cases(property: impl Fn(&Answered) -> Option<Result<(), String>>) {
    let mut runner = TestRunner::new(proptest_config(1000, REGRESSIONS));
    let applied = std::cell::Cell::new(0);
    let outcome = runner.run(&cases(), |case| {
        let Ok(answer) = Reference::default().answer(&case) else { return Ok(()) };
        let before = case.before().expect("the case was answered");
        let Some(held) = property(&Answered { case, before, mask: answer.mask }) else { return Ok(()) };
        applied.set(applied.get() + 1);
        held.map_err(TestCaseError::fail)
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
    assert!(applied.get() >= 200, "{} of 1000 cases only", applied.get());
}

/// SPEC §2.1, §2.9.
#[test]
fn a_row_selects_heavy_size_keys_or_all_candidates() {
    on_answered_cases(|answered| {
        if answered.early_out() {
            return Some(if answered.mask.is_full() { Ok(()) } else { Err("the mask is not full".into()) });
        }
        let dims = answered.case.call.inputs.dims();
        let heavy_size = answered.case.instance.selection.heavy_size.resolve(dims.keys);
        let wrong = dims.rows().find_map(|row| {
            let candidates = (0..dims.keys).filter(|&key| answered.is_candidate(row, key)).count();
            let (found, expected) = (answered.selected(row).len(), candidates.min(heavy_size));
            (found != expected).then(|| format!("row {row:?}: {found} keys selected, expected {expected}"))
        });
        Some(wrong.map_or(Ok(()), Err))
    });
}

/// SPEC §2.7.
#[test]
fn heads_share_what_summed_modes_select() {
    on_answered_cases(|answered| {
        let dims = answered.case.call.inputs.dims();
        if answered.case.instance.selection.heads == HeadMode::PerHead
            || answered.early_out()
            || dims.heads == 1
        {
            return None;
        }
        let wrong = dims.rows().find_map(|row @ (b, _, i)| {
            let (found, expected) = (answered.selected(row), answered.selected((b, 0, i)));
            (found != expected).then(|| format!("row {row:?}: {found:?}, head 0 has {expected:?}"))
        });
        Some(wrong.map_or(Ok(()), Err))
    });
}

/// SPEC §2.8, §2.10: nothing but candidates is added, with weight 1, and no weight changes.
#[test]
fn maskers_only_add_candidates() {
    on_answered_cases(|answered| {
        if answered.early_out() {
            return None;
        }
        let dims = answered.case.call.inputs.dims();
        let wrong = dims.rows().find_map(|row @ (b, head, i)| {
            let key = (0..dims.keys).find(|&key| {
                let (before, now) =
                    (answered.before.weight(b, head, i, key), answered.mask.weight(b, head, i, key));
                now != before && !(now == 1.0 && answered.is_candidate(row, key))
            })?;
            Some(format!("row {row:?}: key {key} changed"))
        });
        Some(wrong.map_or(Ok(()), Err))
    });
}

/// Dense attention of the reference is what its own bound allows.
#[test]
fn dense_attention_stays_within_its_bound() {
    on_answered_cases(|answered| {
        let inputs = &answered.case.call.inputs;
        let full = Mask::full(&inputs.dims());
        let verdict = judge_output(inputs, &full, &dense_attention(inputs), RoundingModel::REFERENCE);
        Some(verdict.divergences.first().map_or(Ok(()), |wrong| Err(wrong.to_string())))
    });
}

/// Rows with ties, constants, half-way codes and magnitudes over most of each type's range.
fn rows() -> impl Strategy<Value = (Storage, Vec<f32>)> {
    let value = prop_oneof![
        4 => -4.0f32..4.0,
        1 => select(vec![0.0f32, -0.0, 1.0, -1.0, 0.5, 1.5, 2.5]),
        1 => (-14i32..14, -1.0f32..1.0).prop_map(|(exponent, x)| x * 2.0f32.powi(exponent)),
    ];
    (select(Storage::ALL.to_vec()), prop::collection::vec(value, 1..=16)).prop_map(|(storage, row)| {
        let row = row.into_iter().map(|x| storage.round(x)).collect();
        (storage, row)
    })
}

proptest! {
    #![proptest_config(proptest_config(4000, REGRESSIONS))]

    /// SPEC §2.5, wherever range and scale are finite and normal. With R = hi − lo and u one rounding of the storage type,
    /// the steps t = (x − lo)·(2^B − 1)/R carry five roundings (difference, range, reciprocal, product, product), so a code
    /// is within 1/2 + γ_5·t of t; code / scale carries four (three of the scale, one division) and the sum with lo one:
    /// |label − x| ≤ R/(2^B − 1)/2 + (γ_5 + γ_4)·R + γ_1·|label|, and γ_5 + γ_4 < 10·u in all three types.
    #[test]
    fn quantisation_stays_within_its_bounds((storage, row) in rows(), bits in 1..=15u64) {
        let bits = LabelBits::new(bits).unwrap();
        let Ok(quantised) = quantize(&row, bits, storage) else { return Ok(()) };
        let normal = |x: f32| f64::from(x) >= storage.smallest_normal();
        let (lo, hi) = row.iter().fold((f32::MAX, f32::MIN), |(lo, hi), &x| (lo.min(x), hi.max(x)));
        let range = if hi == lo { 1.0 } else { storage.round(hi - lo) };
        prop_assume!(normal(range) && normal(quantised.scale) && normal(storage.round(1.0 / range)));
        let u = storage.unit_roundoff();
        let (range, steps) = (f64::from(range), f64::from(bits.largest_code()));
        // A code above 2^(B) − 1 is possible only where the storage type cannot hold 2^B − 1 itself.
        let largest = storage.round(bits.largest_code());
        for ((x, code), label) in row.iter().zip(&quantised.codes).zip(quantised.labels(storage)) {
            prop_assert!(code.fract() == 0.0 && (0.0..=largest).contains(code), "code {code}");
            let (x, label) = (f64::from(*x), f64::from(label));
            let slack = 10.0 * u * range + u / (1.0 - u) * label.abs() + storage.smallest_normal();
            prop_assert!((label - x).abs() <= range / steps / 2.0 + slack, "{x} became {label}");
            prop_assert!(label >= f64::from(lo) - slack && label <= f64::from(hi) + slack, "{label} outside");
        }
    }

    /// SPEC §2.5: in f32, quantising a label again gives the same codes.
    #[test]
    fn quantising_labels_again_gives_the_same_codes((_, row) in rows(), bits in 1..=15u64) {
        let bits = LabelBits::new(bits).unwrap();
        let Ok(first) = quantize(&row, bits, Storage::F32) else { return Ok(()) };
        let again = quantize(&first.labels(Storage::F32), bits, Storage::F32).unwrap();
        prop_assert_eq!(first.codes, again.codes);
    }

    #[test]
    fn the_layout_map_is_a_bijection(half in 1..=128usize) {
        let d = 2 * half;
        let mut seen = vec![false; d];
        for channel in 0..d {
            let mapped = half_split_to_interleaved(channel, d).unwrap();
            prop_assert!(!std::mem::replace(&mut seen[mapped], true));
            // The inverse by its own formula: c → ⌊c/2⌋ + (c mod 2) · d/2.
            prop_assert_eq!(mapped / 2 + mapped % 2 * (d / 2), channel);
            // RoPE turns channel c with c + d/2 in one layout and 2i with 2i + 1 in the other.
            if channel < half {
                prop_assert_eq!(half_split_to_interleaved(channel + half, d).unwrap(), mapped + 1);
            }
        }
    }

    #[test]
    fn channel_files_survive_a_round_trip(seed: u64, layers in 1..5usize, rows in 1..4usize, d in 1..9usize) {
        let mut file = ChannelFile::default();
        let words = doublecheck::cases::recipe::Words::new(seed, 0);
        for layer in 0..layers {
            let row = |row: usize| {
                let mut channels: Vec<usize> = (0..d).collect();
                channels.sort_by_key(|&c| words.word(((layer * rows + row) * d + c) as u64));
                channels
            };
            let order = ChannelOrder::new((0..rows).map(row).collect()).unwrap();
            file.insert(Default::default(), layer, order);
        }
        prop_assert_eq!(ChannelFile::from_json(&file.to_json()).unwrap(), file);
    }

    #[test]
    fn heavy_sizes_survive_a_round_trip(count in 1..1_000_000usize, share in 0.000_001f64..=1.0) {
        for size in [HeavySize::count(count).unwrap(), HeavySize::fraction(share).unwrap()] {
            let json = serde_json::to_string(&size).unwrap();
            prop_assert_eq!(serde_json::from_str::<HeavySize>(&json).unwrap(), size);
        }
    }
}

#[test]
fn a_configuration_survives_a_round_trip() {
    let text = r#"{"maskers":[{"sink":{"size":4}},{"local":{"size":0.5}},{"oracle":{"heavy_size":7}},{"double_sparsity":{"heavy_size":0.1,"group_factor":8,"label_bits":8,"heads":"summed-scores","dense_fallback":true,"sorted_channel_file":"channels.json","channel_selection":"k_proj"}}],"dense_layers":[0,1]}"#;
    let config = AttentionConfig::from_json(text).unwrap();
    assert_eq!(serde_json::to_string(&config).unwrap(), text);
}

#[test]
fn defaults_are_those_of_the_documentation() {
    let text = r#"{"maskers":[{"double_sparsity":{"heavy_size":1,"sorted_channel_file":"c.json"}}]}"#;
    let config = AttentionConfig::from_json(text).unwrap();
    let full = r#"{"maskers":[{"double_sparsity":{"heavy_size":1,"group_factor":16,"label_bits":4,"heads":"per-head","dense_fallback":false,"sorted_channel_file":"c.json","channel_selection":"qk_proj"}}],"dense_layers":[]}"#;
    assert_eq!(serde_json::to_string(&config).unwrap(), full);
}

/// The invariants must have something to say about a good share of the random cases.
#[test]
fn every_invariant_applies_to_at_least_a_fifth_of_the_cases() {
    let mut runner = TestRunner::deterministic();
    let mut held = vec![0; INVARIANTS.len()];
    for _ in 0..200 {
        let case = cases().new_tree(&mut runner).unwrap().current();
        for (invariant, held) in INVARIANTS.iter().zip(&mut held) {
            let mut answer = |case: &Case| Some(Reference::default().answer(case));
            let mut reference = Implementation { model: RoundingModel::REFERENCE, answer: &mut answer };
            *held += usize::from(invariant.check(&case, &mut reference) == Ok(Held::Yes));
        }
    }
    for (invariant, held) in INVARIANTS.iter().zip(held) {
        assert!(held >= 40, "{} held on {held} of 200 cases only", invariant.name);
    }
}

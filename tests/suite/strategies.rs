//! The random cases themselves: they must contain what breaks implementations often enough to find it.

use std::convert::Infallible;

use doublecheck::algorithm::quantize::quantize;
use doublecheck::algorithm::{HeadMode, HeavySize, Storage};
use doublecheck::behaviours::Fault;
use doublecheck::cases::Case;
use doublecheck::cases::RoundingModel;
use doublecheck::cases::strategies::{cases, small_plans};
use doublecheck::runner::judged_cases::small_cases;
use doublecheck::runner::random::VerifyOptions;
use doublecheck::subjects::{Faulty, Reference};
use doublecheck::verdicts::Certificate;
use doublecheck::verdicts::certificate::{Candidacy, ScoreBounds};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;

const CASES: usize = 1000;

/// The features of one case.
fn features(case: &Case) -> Vec<&'static str> {
    let dims = case.call.inputs.dims();
    let settings = &case.instance.selection;
    let mut found = Vec::new();
    let mut note = |name, holds: bool| {
        if holds {
            found.push(name);
        }
    };
    note("several batch entries", dims.batch > 1);
    note("grouped heads", dims.group_size() > 1);
    note("one query", dims.queries == 1);
    note("several queries, fewer than keys", dims.queries > 1 && dims.queries < dims.keys);
    note("as many queries as keys", dims.queries == dims.keys);
    note("summed scores", settings.heads == HeadMode::SummedScores);
    note("summed labels", settings.heads == HeadMode::SummedLabels);
    note("dense fallback", settings.dense_fallback);
    note("fraction", matches!(settings.heavy_size, HeavySize::Fraction(_)));
    note("more heavy than keys", settings.heavy_size.resolve(usize::MAX) > dims.keys);
    note("f16", case.call.inputs.storage() == Storage::F16);
    note("bf16", case.call.inputs.storage() == Storage::Bf16);
    note("one bit", settings.label_bits.get() == 1);
    note("not quantised", !settings.label_bits.quantises());
    note("earlier maskers", !case.instance.earlier_maskers.is_empty());
    note("earlier mask", case.call.previous.is_some());
    note("additive mask", case.call.inputs.parts().attention_mask.is_some());
    note("shared channel row", case.channels().unwrap().rows().len() == 1);
    let largest = case.call.inputs.parts().k.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    note("huge keys", largest > 100.0);
    note("tiny keys", largest < 0.05);
    let negative_zero = |x: &f32| x.to_bits() == (-0.0f32).to_bits();
    note("negative zero", case.call.inputs.parts().k.iter().any(negative_zero));
    let Ok(certificate) = Certificate::derive(&case.instance, &case.call, RoundingModel::PYTORCH) else {
        note("must be refused", true);
        return found;
    };
    note("full mask", certificate.rows.is_none());
    let scores =
        ScoreBounds::new(&case.instance, &case.call, RoundingModel::PYTORCH, &certificate.before).unwrap();
    if let Some(scores) = scores {
        let rows: Vec<_> = dims.rows().map(|row| scores.row(row)).collect();
        let scored = |row: &Vec<Candidacy>| -> Vec<f64> {
            let score = |candidacy: &Candidacy| match candidacy {
                Candidacy::Scored(score) => Some(score.value),
                _ => None,
            };
            row.iter().filter_map(score).collect()
        };
        note("row without candidates", rows.iter().any(|row| scored(row).is_empty()));
        note(
            "fewer candidates than H",
            rows.iter().any(|row| scored(row).len() < settings.heavy_size.resolve(dims.keys)),
        );
        let ties = |row: &Vec<Candidacy>| {
            let mut scores = scored(row);
            scores.sort_by(f64::total_cmp);
            scores.windows(2).any(|pair| pair[0] == pair[1])
        };
        note("tied scores", rows.iter().any(ties));
        note("open keys", certificate.open() > 0);
    }
    let label_channels = settings.group_factor.label_channels(dims.head_dim).unwrap();
    let leading = &case.channels().unwrap().row(0, &dims)[..label_channels];
    let mut constant = false;
    let mut half_way = false;
    for key in case.call.inputs.keys(0, 0).outer_iter() {
        let row: Vec<f32> = leading.iter().map(|&channel| key[channel]).collect();
        constant |= row.len() > 1 && row.iter().all(|&x| x == row[0]);
        if settings.label_bits.quantises()
            && let Ok(quantised) = quantize(&row, settings.label_bits, case.call.inputs.storage())
        {
            half_way |= row.iter().any(|x| ((x - quantised.lo) * quantised.scale).fract() == 0.5);
        }
    }
    note("constant row", constant);
    note("half-way code", half_way);
    found
}

#[test]
fn random_cases_contain_what_breaks_implementations() {
    let mut runner = TestRunner::deterministic();
    let mut counts = std::collections::BTreeMap::<&str, usize>::new();
    for _ in 0..CASES {
        let case = cases().new_tree(&mut runner).unwrap().current();
        for feature in features(&case) {
            *counts.entry(feature).or_default() += 1;
        }
    }
    let least = |feature: &str| match feature {
        "must be refused" | "one bit" | "row without candidates" => 10,
        _ => 50,
    };
    let all = [
        "several batch entries",
        "grouped heads",
        "one query",
        "several queries, fewer than keys",
        "as many queries as keys",
        "summed scores",
        "summed labels",
        "dense fallback",
        "fraction",
        "more heavy than keys",
        "f16",
        "bf16",
        "one bit",
        "not quantised",
        "earlier maskers",
        "earlier mask",
        "additive mask",
        "shared channel row",
        "huge keys",
        "tiny keys",
        "negative zero",
        "must be refused",
        "full mask",
        "row without candidates",
        "fewer candidates than H",
        "tied scores",
        "open keys",
        "constant row",
        "half-way code",
    ];
    for feature in all {
        let count = counts.get(feature).copied().unwrap_or(0);
        assert!(count >= least(feature), "{feature}: {count} of {CASES} cases, expected {}", least(feature));
    }
    let refused = counts.get("must be refused").copied().unwrap_or(0);
    assert!(refused <= CASES / 5, "{refused} of {CASES} cases must be refused and say little");
}

#[test]
fn small_cases_are_small() {
    let mut runner = TestRunner::deterministic();
    for _ in 0..CASES {
        let case = small_plans().new_tree(&mut runner).unwrap().current().case().unwrap();
        let dims = case.call.inputs.dims();
        let sizes = [dims.batch, dims.heads, dims.queries, dims.keys, dims.head_dim];
        assert!(sizes.iter().zip([1, 2, 4, 16, 16]).all(|(&size, most)| size <= most), "{dims:?}");
    }
}

#[test]
fn small_cases_pass_the_reference_and_catch_a_fault() {
    let options = VerifyOptions::new(501, 1);
    let report = small_cases(|| Ok::<_, Infallible>(Reference::default()), options).unwrap();
    assert_eq!((report.cases, report.finding.is_none()), (501, true), "{report:#?}");
    assert!(report.refused > 0 && report.sharpness.rows > 501, "{report:#?}");
    let again = small_cases(|| Ok::<_, Infallible>(Reference::default()), options).unwrap();
    assert_eq!(report.sharpness.open, again.sharpness.open);

    let faults = Fault::find_all("fills-up");
    let report = small_cases(|| Ok::<_, Infallible>(Faulty::new(&faults)), options).unwrap();
    let smallest = report.finding.unwrap()[1].clone();
    assert!(smallest.contains("smallest plan"), "{smallest}");
}

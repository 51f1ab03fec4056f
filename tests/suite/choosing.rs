//! Which settings a sweep leaves to choose, evaluations that are put together, and faults of decode steps.

use doublecheck::algorithm::Dims;
use doublecheck::evaluation::choosing::{cheapest, front, is_sweep, settings};
use doublecheck::evaluation::joined::joined;
use doublecheck::evaluation::results::{ContenderResult, Evaluation, Interval, Measure, Setup, Unit};
use doublecheck::evaluation::steps::StepFault;
use doublecheck::reports::evaluation::{plot, render};
use doublecheck::reports::html;

use crate::support::markup::{assert_balanced, assert_holds, assert_page_is_balanced};

/// A masker with G and B, H, its bytes, and the ratio of its perplexity to dense attention's.
type Figures<'a> = (&'a str, Option<(usize, u8)>, usize, f64, f64);

fn row((masker, labels, heavy_size, bytes, ratio): Figures<'_>) -> ContenderResult {
    let around = |value: f64| Interval { value, low: 0.98 * value, high: 1.02 * value };
    ContenderResult {
        masker: masker.into(),
        subject: "torch".into(),
        heavy_size: (masker != "dense").then_some(heavy_size),
        group_factor: labels.map(|labels| labels.0),
        label_bits: labels.map(|labels| labels.1),
        keys_read: 64.0,
        keys_held: 1000.0,
        bytes,
        units: vec![Unit { sum: 32.0 * (10.0 * ratio).ln(), count: 32.0 }; 8],
        quality: around(10.0 * ratio),
        against_dense: (masker != "dense").then(|| around(ratio)),
        by_text: Vec::new(),
        recall: None,
        seconds: 1.0,
    }
}

fn evaluation(task: &str, rows: &[Figures<'_>]) -> Evaluation {
    Evaluation {
        version: "0.1.0".into(),
        model: "a model".into(),
        model_sha256: "00".into(),
        layers: 1,
        heads: 2,
        kv_heads: 1,
        head_dim: 16,
        device: "cpu".into(),
        channels: "channels.json".into(),
        task: task.into(),
        texts: Vec::new(),
        measure: Measure::Perplexity,
        setup: Setup::Context,
        dense_layers: Vec::new(),
        rows: rows.iter().copied().map(row).collect(),
        notes: Vec::new(),
        command: format!("doublecheck eval perplexity --text {task}"),
        seconds: rows.len() as f64,
    }
}

const DENSE: Figures<'static> = ("dense", None, 0, 1000.0, 1.0);
const ROWS: [Figures<'static>; 9] = [
    DENSE,
    ("oracle", None, 64, 50.0, 1.0),
    ("random keys", None, 64, 60.0, 1.0),
    ("per-head", Some((4, 4)), 32, 200.0, 1.2),
    ("per-head", Some((4, 4)), 64, 300.0, 1.025),
    ("per-head", Some((8, 2)), 32, 150.0, 1.3),
    ("per-head", Some((8, 2)), 64, 250.0, 1.05),
    ("per-head", Some((8, 4)), 64, 350.0, 1.03),
    ("first-layers-channels (D4)", Some((4, 4)), 64, 100.0, 1.0),
];

#[test]
fn what_nothing_cheaper_beats_is_on_the_front() {
    let sweep = evaluation("a", &ROWS);
    assert!(is_sweep(&sweep));
    assert_eq!(settings(&sweep), [3, 4, 5, 6, 7]);
    assert_eq!(front(&sweep), [5, 3, 6, 4]);
    let found: Vec<_> = cheapest(&sweep).iter().map(|found| (found.measured, found.certain)).collect();
    // The intervals reach 2 % above the figures: 1.025 may be 1.0455, 1.05 may be 1.071.
    assert_eq!(found, [(None, None), (Some(4), None), (Some(6), Some(6))]);
    assert!(!is_sweep(&evaluation("a", &ROWS[..5])));
}

#[test]
fn points_of_accuracy_are_lost_in_shares_of_dense_attention() {
    let mut sweep = evaluation("a", &ROWS);
    sweep.measure = Measure::Accuracy;
    sweep.rows[0].quality.value = 50.0;
    for row in &mut sweep.rows[1..] {
        row.against_dense = Some(Interval { value: -4.0, low: -6.0, high: -1.0 });
    }
    sweep.rows[4].against_dense = Some(Interval { value: -1.0, low: -2.0, high: 0.0 });
    let found: Vec<_> = cheapest(&sweep).iter().map(|found| (found.measured, found.certain)).collect();
    assert_eq!(found, [(None, None), (Some(4), None), (Some(5), Some(4))]);
}

#[test]
fn a_sweep_is_told_with_what_to_choose() {
    let mut sweep = evaluation("a", &ROWS);
    let text = render(&sweep, false);
    assert_holds(
        &text,
        &[
            "The cheapest setting within a loss of dense attention's quality:",
            "1 %     none measured",
            "3 %     per-head, H 64, G 4, B 4",
            "The Pareto front",
            "1      per-head, H 32, G 8, B 2",
        ],
    );
    let drawing = plot(&sweep).into_string();
    assert_balanced(&drawing);
    assert_holds(&drawing, &[">Pareto front</text>", ">per-head, G 8, B 2</text>"]);
    let page = html::evaluation(&sweep);
    assert_page_is_balanced(&page);
    assert_holds(&page, &["id=\"choice\"", "per-head, H 64, G 4, B 4"]);
    sweep.rows.truncate(5);
    assert!(!render(&sweep, false).contains("Pareto"));
    assert!(!html::evaluation(&sweep).contains("id=\"choice\""));
}

#[test]
fn shares_of_one_evaluation_make_it_whole() {
    let whole = evaluation("a", &ROWS);
    let share = |number: usize| {
        let mut share = whole.clone();
        let mut index = 0;
        share.rows.retain(|row| {
            index += usize::from(row.masker != "dense");
            row.masker == "dense" || (index - 1) % 2 == number
        });
        share
    };
    let again = joined(&[share(1), share(0)]).unwrap();
    let names = |evaluation: &Evaluation| {
        let name =
            |row: &ContenderResult| (row.masker.clone(), row.group_factor, row.label_bits, row.heavy_size);
        evaluation.rows.iter().map(name).collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(names(&again), names(&whole));
    assert_eq!((again.rows.len(), again.rows[0].masker.as_str()), (whole.rows.len(), "dense"));
    assert!(again.texts.is_empty());
    assert_eq!(joined(std::slice::from_ref(&whole)).unwrap(), whole);
}

#[test]
fn several_texts_are_compared_together_and_alone() {
    let worse = [DENSE, ("per-head", Some((4, 4)), 64, 300.0, 1.21)];
    let found = joined(&[evaluation("a", &ROWS[..5]), evaluation("b", &worse)]).unwrap();
    assert_eq!(found.texts, ["a", "b"]);
    let maskers: Vec<_> = found.rows.iter().map(|row| row.masker.as_str()).collect();
    assert_eq!(maskers, ["dense", "per-head"]);
    assert_eq!(found.notes.len(), 3, "{:?}", found.notes);
    let row = &found.rows[1];
    assert_eq!((row.units.len(), row.by_text.len()), (16, 2));
    // The mean of log likelihoods is the geometric mean of perplexities.
    let expected = (1.025_f64 * 1.21).sqrt();
    assert!((row.against_dense.unwrap().value - expected).abs() < 1e-9, "{row:?}");
    assert_eq!(row.by_text.iter().map(|text| text.value).collect::<Vec<_>>(), [1.025, 1.21]);
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let mut other = evaluation("b", &ROWS);
    other.model_sha256 = "ff".into();
    let refusal = |parts: &[Evaluation]| joined(parts).unwrap_err().to_string();
    assert_eq!(refusal(&[]), "evaluations: found none, expected at least one");
    assert_eq!(refusal(&[evaluation("a", &ROWS), other]), "model_sha256: found ff, expected 00");
    let mut twice = evaluation("a", &ROWS[..2]);
    twice.rows[1].quality.value = 11.0;
    assert_eq!(refusal(&[evaluation("a", &ROWS), twice]), "oracle of a: found 11, expected 10");
}

#[test]
fn each_query_loses_what_its_decode_step_would() {
    let dims = Dims { batch: 1, heads: 2, kv_heads: 1, queries: 2, keys: 33, head_dim: 4, value_dim: 4 };
    let lost = |name| -> Vec<Vec<usize>> {
        let lost = StepFault::find(name).expect("a name").lost(&dims);
        lost.chunks(33).map(|row| (0..33).filter(|&key| row[key]).collect()).collect()
    };
    // The first step has 32 keys, a whole tile; the second has 33, of which −33 mod 32 = 31 are lost in every head but the first.
    let first: Vec<usize> = (0..31).collect();
    assert_eq!(lost("next-row-overwritten"), [vec![], vec![], vec![], first]);
    assert_eq!(lost("newest-key-held-out"), [[31], [32], [31], [32]]);
    assert!(StepFault::find("D4").is_none());
}

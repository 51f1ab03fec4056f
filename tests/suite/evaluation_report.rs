//! How an evaluation is told: the text, the drawing and the page, of figures made up here.

use doublecheck::evaluation::results::{ContenderResult, Evaluation, Interval, Measure, Recall, Setup, Unit};
use doublecheck::reports::evaluation::{heat_map, plot, render};
use doublecheck::reports::html;
use rstest::rstest;

use crate::support::markup::{assert_balanced, assert_holds, assert_page_is_balanced, assert_self_contained};

const LAYERS: usize = 30;
const HEADS: usize = 9;
const HELD: f64 = 3328.0;
const DENSE: f64 = 12.21;
/// Share of dense attention's bytes, and perplexity, at H = 16, 64, 256 and 1024.
type Figures = [(f64, f64); 4];
/// G and B.
type Labels = Option<(usize, u8)>;
const MASKERS: [(&str, Labels, Figures); 8] = [
    ("oracle", None, [(0.502, 15.1), (0.51, 13.23), (0.54, 12.37), (0.65, 12.22)]),
    ("per-head", Some((4, 4)), [(0.042, 18.0), (0.051, 14.09), (0.094, 12.44), (0.28, 12.23)]),
    ("summed-scores", Some((4, 4)), [(0.042, 30.0), (0.051, 15.53), (0.094, 12.9), (0.28, 12.3)]),
    ("summed-labels", Some((4, 4)), [(0.037, 35.0), (0.046, 17.0), (0.089, 13.2), (0.275, 12.35)]),
    ("random keys", None, [(0.006, 3000.0), (0.02, 900.0), (0.063, 90.0), (0.25, 20.0)]),
    (
        "first-layers-channels (D4)",
        Some((4, 4)),
        [(0.042, 4000.0), (0.051, 1105.0), (0.094, 200.0), (0.28, 30.0)],
    ),
    ("next-layers-channels", Some((4, 4)), [(0.042, 3500.0), (0.051, 800.0), (0.094, 150.0), (0.28, 28.0)]),
    (
        "least-important-channels",
        Some((4, 4)),
        [(0.042, 3900.0), (0.051, 1000.0), (0.094, 180.0), (0.28, 29.0)],
    ),
];

fn around(value: f64, share: f64) -> Interval {
    Interval { value, low: value * (1.0 - share), high: value * (1.0 + 1.1 * share) }
}

/// The first two layers are dense; later ones keep less.
fn recall(whole: f64) -> Recall {
    let cell = |layer: usize, head: usize| {
        let missed = (1.0 - whole) * (1.0 + (layer as f64 - 15.0) / 30.0) * (0.6 + 0.1 * head as f64);
        (1.0 - missed).max(0.0)
    };
    let row = |layer: usize| match layer {
        0 | 1 => Vec::new(),
        layer => (0..HEADS).map(|head| cell(layer, head)).collect::<Vec<_>>(),
    };
    let keys: Vec<Vec<f64>> = (0..LAYERS).map(row).collect();
    let mass = keys.iter().map(|row| row.iter().map(|keys| keys.sqrt()).collect()).collect();
    Recall { keys, mass }
}

fn row(masker: &str, labels: Labels, heavy_size: usize, (share, perplexity): (f64, f64)) -> ContenderResult {
    let spread = 0.02 + 0.04 * (perplexity / DENSE).ln();
    ContenderResult {
        masker: masker.into(),
        subject: "torch".into(),
        heavy_size: Some(heavy_size),
        group_factor: labels.map(|(group_factor, _)| group_factor),
        label_bits: labels.map(|(_, label_bits)| label_bits),
        keys_read: heavy_size as f64,
        keys_held: HELD,
        bytes: share * 2.75e6,
        units: vec![Unit { sum: 64.0 * perplexity.ln(), count: 64.0 }; 8],
        quality: around(perplexity, 0.12),
        against_dense: Some(around(perplexity / DENSE, spread / 2.0)),
        by_text: Vec::new(),
        recall: Some(recall(if masker == "oracle" { 1.0 } else { (DENSE / perplexity).sqrt() })),
        seconds: 41.5,
    }
}

fn dense() -> ContenderResult {
    ContenderResult {
        masker: "dense".into(),
        heavy_size: None,
        keys_read: HELD,
        bytes: 2.75e6,
        against_dense: None,
        recall: None,
        ..row("dense", None, 0, (1.0, DENSE))
    }
}

fn example() -> Evaluation {
    let rows = MASKERS.iter().flat_map(|(masker, labels, figures)| {
        let sizes = [16, 64, 256, 1024].into_iter().zip(figures);
        sizes.map(|(heavy_size, &figures)| row(masker, *labels, heavy_size, figures))
    });
    Evaluation {
        version: "0.1.0".into(),
        model: "SmolLM2 135M".into(),
        model_sha256: "5a1395716f7913741cc51d98581b9b1228d80987a9f7d3664106742eb06bba83".into(),
        layers: LAYERS,
        heads: HEADS,
        kv_heads: 3,
        head_dim: 64,
        device: "made-up processor, f32".into(),
        channels: "config/smollm2.json, key channels".into(),
        task: "one book: 512 tokens after 3072 of context".into(),
        texts: Vec::new(),
        measure: Measure::Perplexity,
        setup: Setup::Context,
        dense_layers: vec![0, 1],
        rows: [dense()].into_iter().chain(rows).collect(),
        notes: vec!["Figures are made up.".into()],
        command: "doublecheck eval perplexity --model smollm2.gguf --text book.txt".into(),
        seconds: 1370.25,
    }
}

/// Answers in percent, of two maskers.
fn answers(measure: Measure) -> Evaluation {
    let mut evaluation = example();
    evaluation.measure = measure;
    evaluation.setup = Setup::Prompt;
    evaluation.rows.truncate(9);
    for (index, row) in evaluation.rows.iter_mut().enumerate() {
        let against = [0.0, -9.2, -2.4, 0.3, 0.0, -21.5, -6.1, 1.4, 3.2][index];
        row.quality = Interval { value: 41.3 + against, low: 36.0 + against, high: 46.7 + against };
        row.against_dense =
            (index > 0).then_some(Interval { value: against, low: against - 2.1, high: against + 1.9 });
    }
    evaluation.rows[4].against_dense = Some(Interval { value: 0.0, low: 0.0, high: 0.0 });
    evaluation.rows[8].subject = "engine".into();
    evaluation
}

#[test]
fn perplexities_as_text() {
    insta::assert_snapshot!(render(&example(), false));
}

#[test]
fn answers_as_text() {
    insta::assert_snapshot!(render(&answers(Measure::F1), false));
}

#[test]
fn times_are_told_where_they_are_wanted() {
    let text = render(&example(), true);
    assert_holds(&text, &["seconds", "41.5", "1370.2 s"]);
    assert!(!render(&example(), false).contains("41.5"));
}

#[test]
fn a_heat_map_has_a_line_for_each_layer() {
    let mut row = example().rows.swap_remove(6);
    let recall = row.recall.as_mut().expect("a recall");
    for cells in [&mut recall.keys, &mut recall.mass] {
        cells.truncate(6);
        cells[5][0] = f64::NAN;
        cells[5][1] = 0.999;
        cells[5][2] = 1.0;
    }
    insta::assert_snapshot!(heat_map(&row));
    assert_eq!(heat_map(&dense()), "dense: no recall, as no keys are selected\n");
}

const MARKUP: &str = "<script>alert(\"1\")</script>&amp;";

/// Markup in whatever is text.
fn hostile() -> Evaluation {
    let mut evaluation = example();
    for text in [
        &mut evaluation.version,
        &mut evaluation.model,
        &mut evaluation.model_sha256,
        &mut evaluation.device,
        &mut evaluation.channels,
        &mut evaluation.task,
        &mut evaluation.command,
        &mut evaluation.rows[1].masker,
        &mut evaluation.notes[0],
    ] {
        *text = MARKUP.into();
    }
    evaluation.rows[2].subject = MARKUP.into();
    evaluation
}

/// Perplexities without bound, no bytes, no figures, no recall.
fn extreme() -> Evaluation {
    let mut evaluation = example();
    let unbounded = Interval { value: f64::INFINITY, low: 1e300, high: f64::INFINITY };
    for row in &mut evaluation.rows[17..20] {
        row.quality = unbounded;
        row.against_dense = Some(unbounded);
    }
    let unknown = Interval { value: f64::NAN, low: f64::NAN, high: f64::NAN };
    evaluation.rows[5].quality = unknown;
    evaluation.rows[6].against_dense = Some(unknown);
    evaluation.rows[7].quality = around(0.0, 0.0);
    evaluation.rows[8].against_dense = None;
    evaluation.rows[9].bytes = 0.0;
    evaluation.rows[10].bytes = f64::INFINITY;
    evaluation.rows[11].recall = None;
    evaluation.rows[12].recall = Some(Recall::default());
    evaluation.rows[13].recall.as_mut().expect("a recall").keys[7][3] = f64::NAN;
    evaluation
}

fn dense_only() -> Evaluation {
    let mut evaluation = example();
    evaluation.rows.truncate(1);
    evaluation
}

fn no_rows() -> Evaluation {
    Evaluation { rows: Vec::new(), ..example() }
}

fn no_dense_bytes() -> Evaluation {
    let mut evaluation = example();
    evaluation.rows[0].bytes = 0.0;
    evaluation
}

fn infinite_dense() -> Evaluation {
    let mut evaluation = example();
    evaluation.rows[0].quality = Interval { value: f64::INFINITY, low: f64::INFINITY, high: f64::INFINITY };
    evaluation
}

fn one_of_each() -> Evaluation {
    let mut evaluation = example();
    evaluation.rows.retain(|row| row.heavy_size.is_none_or(|heavy_size| heavy_size == 64));
    evaluation
}

fn many_maskers() -> Evaluation {
    let mut evaluation = example();
    for index in 0..30 {
        evaluation.rows.push(row(
            &format!("fault {index} with a long name of its own"),
            None,
            64,
            (0.5, 13.0 + f64::from(index)),
        ));
    }
    evaluation
}

#[rstest]
#[case::example(example())]
#[case::f1(answers(Measure::F1))]
#[case::accuracy(answers(Measure::Accuracy))]
#[case::hostile(hostile())]
#[case::extreme(extreme())]
#[case::dense_only(dense_only())]
#[case::no_rows(no_rows())]
#[case::no_dense_bytes(no_dense_bytes())]
#[case::infinite_dense(infinite_dense())]
#[case::one_of_each(one_of_each())]
#[case::many_maskers(many_maskers())]
fn any_evaluation_can_be_told(#[case] evaluation: Evaluation) {
    let drawing = plot(&evaluation).into_string();
    assert_balanced(&drawing);
    assert_coordinates_are_numbers(&drawing);
    for row in &evaluation.rows {
        let name =
            row.masker.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;");
        assert_holds(&drawing, &[&format!(">{name}</text>")]);
        assert_heat_map_has_every_cell(row);
    }
    let drawing = drawing.replacen(" xmlns=\"http://www.w3.org/2000/svg\"", "", 1);
    let page = html::evaluation(&evaluation);
    assert_page_is_balanced(&page);
    assert_self_contained(&page);
    assert!(!page.contains("<script"));
    assert_holds(&page, &["id=\"summary\"", "id=\"plot\"", "id=\"table\"", "id=\"command\"", &drawing]);
    let text = render(&evaluation, true);
    let lines: Vec<&str> = text.lines().collect();
    let (head, _) = lines.iter().enumerate().find(|(_, line)| line.starts_with("masker")).expect("a table");
    for (line, row) in
        lines[head..].iter().skip_while(|line| !line.starts_with("dense")).zip(&evaluation.rows)
    {
        assert!(line.starts_with(&row.masker), "{line} is not of {}", row.masker);
        assert!(line.ends_with(" 41.5"), "{line} does not end with the seconds");
    }
}

/// Two blocks, with a line for each layer and a figure for each head of a sparse one.
fn assert_heat_map_has_every_cell(row: &ContenderResult) {
    let map = heat_map(row);
    let Some(recall) = &row.recall else {
        assert!(map.ends_with("no recall, as no keys are selected\n"), "{map}");
        return;
    };
    let mut blocks = map.split("\nrecall of ").skip(1);
    for cells in [&recall.keys, &recall.mass] {
        // The title and the numbers of the heads come first.
        let mut lines = blocks.next().expect("a block for keys and one for mass").trim_end().lines().skip(2);
        for (layer, cells) in cells.iter().enumerate() {
            let words: Vec<&str> = lines.next().expect("a line for each layer").split_whitespace().collect();
            assert_eq!(words[0], layer.to_string(), "{map}");
            assert_eq!(words.len(), 1 + cells.len().max(1), "{map}");
        }
        assert_eq!(lines.next(), None, "{map}");
    }
    assert_eq!(blocks.next(), None, "{map}");
}

/// Every attribute that places something holds finite numbers, and none is far outside the drawing.
fn assert_coordinates_are_numbers(drawing: &str) {
    for name in ["x", "y", "x1", "x2", "y1", "y2", "width", "height", "points", "d", "viewBox"] {
        for rest in drawing.split(&format!(" {name}=\"")).skip(1) {
            let (value, _) = rest.split_once('"').expect("the end of an attribute");
            // A marker's shape follows its place.
            let place = value.trim_start_matches('M').split('m').next().unwrap_or_default();
            for number in place.split([' ', ',']).filter(|number| !number.is_empty()) {
                let number: f64 = number.parse().unwrap_or_else(|_| panic!("{name}: {value}"));
                assert!(number.is_finite() && number.abs() < 1e5, "{name}: {value}");
            }
        }
    }
}

#[test]
fn a_page_holds_every_part() {
    let page = html::evaluation(&example());
    assert_holds(
        &page,
        &[
            "<html lang=\"en\">",
            "<header class=\"neutral\">",
            "perplexity 12.21 with dense attention; of 32 selections, 29 worse",
            "id=\"recall\"",
            "id=\"notes\"",
            "<details><summary>per-head, H 64, G 4, B 4",
            "class=\"dense\" colspan=\"9\"",
            "title=\"97.8 %\"",
            "doublecheck eval perplexity --model smollm2.gguf",
        ],
    );
    assert_eq!(page.matches("<details>").count(), 32);
    assert!(page.len() < 4 << 20, "{} bytes", page.len());
}

#[test]
fn text_is_escaped() {
    let page = html::evaluation(&hostile());
    assert_holds(&page, &["&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;&amp;amp;"]);
    assert_eq!(page.matches("alert(").count(), page.matches("&lt;script&gt;alert(").count());
}

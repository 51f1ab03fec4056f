//! The figures of an evaluation in words and digits: as the text and the HTML page both print them.

use std::collections::BTreeSet;

use crate::algorithm::channels::ranges;
use crate::evaluation::choosing::{self, Cheapest};
use crate::evaluation::results::{ContenderResult, Evaluation, Interval, Measure, Recall, Setup};

/// Stands where there is no figure.
const NONE: &str = "–";

/// What the columns mean.
pub const LEGEND: [&str; 4] = [
    "keys read: attended to, mean over sparse layers, heads and queries, and their share of those held.",
    "bytes a step: labels, keys and values that a decode step reads in one sparse layer, and their share of dense attention's.",
    "differs: worse or better where the 95 % interval against dense attention, on the same tokens or items, excludes equality; \
     equal to all digits shown; else, and below 6 blocks of tokens or items, open.",
    "kept: recall, the share of the keys and of the attention mass that exact top-k of the same H selects.",
];

/// Units below which no difference is reported: five that all fall on one side by chance do so once in 16 times, six once in 32.
const FEWEST_UNITS: usize = 6;

/// How a masker compares with dense attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Difference {
    /// The interval lies on the worse side.
    Worse,
    /// The interval lies on the better side.
    Better,
    /// The interval is equality, as far as it is shown.
    Equal,
    /// The interval contains equality, and more.
    Open,
}

impl Difference {
    fn of(against: &Interval, measure: Measure) -> Self {
        let (equality, shown) = match measure {
            Measure::Perplexity => (1.0, 0.5e-4),
            Measure::F1 | Measure::Accuracy => (0.0, 0.05),
        };
        let (low, high) = (against.low - equality, against.high - equality);
        match (low > 0.0, high < 0.0) {
            _ if low.abs().max(high.abs()) < shown => Self::Equal,
            (false, false) => Self::Open,
            (above, _) if above == (measure == Measure::Perplexity) => Self::Worse,
            _ => Self::Better,
        }
    }

    /// How a row compares; None for dense attention.
    pub fn of_row(row: &ContenderResult, measure: Measure) -> Option<Self> {
        let found = row.against_dense.as_ref().map(|against| Self::of(against, measure))?;
        Some(if row.units.len() < FEWEST_UNITS { Self::Open } else { found })
    }

    /// One word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Worse => "worse",
            Self::Better => "better",
            Self::Equal => "equal",
            Self::Open => "open",
        }
    }
}

/// What is measured.
pub fn measure_name(measure: Measure) -> &'static str {
    match measure {
        Measure::Perplexity => "perplexity",
        Measure::F1 => "F1 (%)",
        Measure::Accuracy => "accuracy (%)",
    }
}

/// Names and what there is to say of each: everything that holds for all rows.
pub fn facts(evaluation: &Evaluation) -> Vec<(&'static str, String)> {
    let Evaluation { layers, heads, kv_heads, head_dim, .. } = evaluation;
    let shape = format!("{layers} layers, {heads} heads over {kv_heads} KV heads, d = {head_dim}");
    let mut facts = vec![
        ("model", format!("{} ({shape})", evaluation.model)),
        ("SHA-256 of the model", evaluation.model_sha256.clone()),
        ("device", evaluation.device.clone()),
        ("channels", evaluation.channels.clone()),
        ("task", evaluation.task.clone()),
        ("set-up", setup(evaluation.setup).to_owned()),
        ("dense layers", dense_layers(evaluation)),
    ];
    let subjects = subjects(evaluation);
    if let (1, Some(subject)) = (subjects.len(), subjects.first()) {
        facts.push(("selected by", (*subject).to_owned()));
    }
    facts
}

fn setup(setup: Setup) -> &'static str {
    match setup {
        Setup::Prompt => {
            "A: the whole prompt is dense, sparse from the first generated token on (the author's; D15)"
        }
        Setup::Context => "B: the context is dense, question and answer are sparse (the port's; D15)",
    }
}

fn dense_layers(evaluation: &Evaluation) -> String {
    match evaluation.dense_layers.as_slice() {
        [] => "none".into(),
        layers => ranges(layers.iter().copied()),
    }
}

/// Who selected, without dense attention.
fn subjects(evaluation: &Evaluation) -> BTreeSet<&str> {
    evaluation.rows.iter().skip(1).map(|row| row.subject.as_str()).collect()
}

/// The table's head. Who selected has a column where it differs; times have one where they are wanted.
pub fn header(evaluation: &Evaluation, times: bool) -> Vec<&'static str> {
    let mut header = vec!["masker"];
    if subjects(evaluation).len() > 1 {
        header.push("selected by");
    }
    header.extend(["H", "G", "B", "keys read", "of held", "bytes a step", "of dense"]);
    let [quality, against] = match evaluation.measure {
        Measure::Perplexity => ["perplexity [95 %]", "× dense [95 %]"],
        Measure::F1 => ["F1, % [95 %]", "± dense, points [95 %]"],
        Measure::Accuracy => ["accuracy, % [95 %]", "± dense, points [95 %]"],
    };
    header.extend([quality, against, "differs", "keys kept", "mass kept"]);
    if times {
        header.push("seconds");
    }
    header
}

/// A row of the table, in the order of [`header`].
pub fn cells(evaluation: &Evaluation, row: &ContenderResult, times: bool) -> Vec<String> {
    let measure = evaluation.measure;
    let mut cells = vec![row.masker.clone()];
    if subjects(evaluation).len() > 1 {
        cells.push(row.subject.clone());
    }
    cells.extend([
        or_none(row.heavy_size),
        or_none(row.group_factor),
        or_none(row.label_bits),
        number(row.keys_read, if row.keys_read < 100.0 { 1 } else { 0 }),
        or_none(share(row.keys_read, row.keys_held).map(percent)),
        bytes(row.bytes),
        or_none(share_of_dense(evaluation, row).map(percent)),
        quality(&row.quality, measure),
        or_none(row.against_dense.as_ref().map(|interval| against(interval, measure))),
        Difference::of_row(row, measure).map_or(NONE, Difference::word).to_owned(),
    ]);
    cells.extend(recalls(row).map(|recall| or_none(recall.map(recall_percent))));
    if times {
        cells.push(number(row.seconds, 1));
    }
    cells
}

/// A heading, a table's head, and its rows.
pub type Part = (&'static str, Vec<&'static str>, Vec<Vec<String>>);

/// What a sweep leaves to choose: the cheapest settings, first by the figure alone, then by all of its interval, and the Pareto front.
pub fn choice(evaluation: &Evaluation) -> Vec<Part> {
    let against_head = header(evaluation, false)[header(evaluation, false).len() - 4];
    let of = |index: Option<usize>| -> Vec<String> {
        let Some(row) = index.map(|index| &evaluation.rows[index]) else {
            return vec!["none measured".into(), NONE.into(), NONE.into(), NONE.into()];
        };
        let mut cells = vec![
            settings(row),
            or_none(share_of_dense(evaluation, row).map(percent)),
            or_none(row.against_dense.as_ref().map(|interval| against(interval, evaluation.measure))),
        ];
        let texts = row.by_text.iter().map(|interval| against(interval, evaluation.measure));
        cells.push(if row.by_text.is_empty() { NONE.into() } else { texts.collect::<Vec<_>>().join(", ") });
        cells
    };
    let within = |Cheapest { loss, .. }: &Cheapest| format!("{} %", number(100.0 * loss, 0));
    let cheapest = choosing::cheapest(evaluation);
    let rows = |of_loss: fn(&Cheapest) -> Option<usize>| -> Vec<Vec<String>> {
        let row = |found: &Cheapest| [vec![within(found)], of(of_loss(found))].concat();
        cheapest.iter().map(row).collect()
    };
    let head = |first| vec![first, "setting", "bytes, of dense", against_head, "in each text"];
    let front = choosing::front(evaluation).into_iter().enumerate();
    let front = front.map(|(place, index)| [vec![(place + 1).to_string()], of(Some(index))].concat());
    vec![
        (
            "The cheapest setting within a loss of dense attention's quality:",
            head("within"),
            rows(|found| found.measured),
        ),
        (
            "The same where all of the 95 % interval must be within it:",
            head("within"),
            rows(|found| found.certain),
        ),
        (
            "The Pareto front: settings that lose less than every setting that reads as few bytes.",
            head("place"),
            front.collect(),
        ),
    ]
}

fn or_none(value: Option<impl ToString>) -> String {
    value.map_or(NONE.into(), |value| value.to_string())
}

/// A masker with its settings: `per-head, H 64, G 4, B 4`.
pub fn settings(row: &ContenderResult) -> String {
    let mut text = row.masker.clone();
    let label_bits = row.label_bits.map(usize::from);
    for (name, value) in [("H", row.heavy_size), ("G", row.group_factor), ("B", label_bits)] {
        if let Some(value) = value {
            text += &format!(", {name} {value}");
        }
    }
    text
}

/// Mean recall of keys and of mass.
pub fn recalls(row: &ContenderResult) -> [Option<f64>; 2] {
    let mean = |cells: fn(&Recall) -> &Vec<Vec<f64>>| {
        row.recall.as_ref().and_then(|recall| Recall::mean(cells(recall)))
    };
    [mean(|recall| &recall.keys), mean(|recall| &recall.mass)]
}

/// Bytes of a row over those of dense attention; None where dense attention reads none.
pub fn share_of_dense(evaluation: &Evaluation, row: &ContenderResult) -> Option<f64> {
    share(row.bytes, evaluation.rows.first()?.bytes)
}

fn share(part: f64, whole: f64) -> Option<f64> {
    Some(part / whole).filter(|share| whole > 0.0 && share.is_finite())
}

/// `14.09 [12.61, 15.72]`
pub fn quality(interval: &Interval, measure: Measure) -> String {
    let decimals = decimals(interval.value, measure);
    bracketed(interval, |x| number(x, decimals))
}

/// `14.09`
pub fn quality_value(value: f64, measure: Measure) -> String {
    number(value, decimals(value, measure))
}

fn decimals(value: f64, measure: Measure) -> usize {
    match (measure, value) {
        (Measure::F1 | Measure::Accuracy, _) => 1,
        (Measure::Perplexity, value) if value < 100.0 => 2,
        (Measure::Perplexity, value) if value < 1000.0 => 1,
        _ => 0,
    }
}

/// A ratio, with the fewer decimals the wider its interval is, or points with their sign.
pub fn against(interval: &Interval, measure: Measure) -> String {
    match measure {
        Measure::Perplexity => {
            let width = (interval.high - interval.low).log10();
            let sharp = if width.is_finite() { (1.0 - width.floor()).clamp(2.0, 4.0) } else { 4.0 };
            let decimals = match interval.value {
                value if value >= 100.0 => 0,
                value if value >= 10.0 => 1,
                _ => sharp as usize,
            };
            bracketed(interval, |x| number(x, decimals))
        }
        Measure::F1 | Measure::Accuracy => bracketed(interval, signed),
    }
}

fn bracketed(interval: &Interval, text: impl Fn(f64) -> String) -> String {
    format!("{} [{}, {}]", text(interval.value), text(interval.low), text(interval.high))
}

fn signed(points: f64) -> String {
    let text = number(points.abs(), 1);
    match points {
        _ if text == "0.0" || text == "NaN" => text,
        points if points < 0.0 => format!("-{text}"),
        _ => format!("+{text}"),
    }
}

/// A number with this many decimals, or with a power of ten from a million on.
pub fn number(x: f64, decimals: usize) -> String {
    match x {
        f64::INFINITY => "∞".into(),
        x if x.abs() >= 1e6 => format!("{x:.1e}"),
        x => format!("{x:.decimals$}"),
    }
}

/// KB or MB, three digits.
fn bytes(bytes: f64) -> String {
    let (size, unit) = if bytes >= 999_500.0 { (bytes / 1e6, "MB") } else { (bytes / 1e3, "KB") };
    let decimals = match size {
        size if size >= 99.95 => 0,
        size if size >= 9.995 => 1,
        _ => 2,
    };
    format!("{} {unit}", number(size, decimals))
}

/// Two digits.
pub fn percent(share: f64) -> String {
    let percent = 100.0 * share;
    let decimals = match percent {
        percent if percent >= 9.95 || percent == 0.0 => 0,
        percent if percent >= 0.995 => 1,
        _ => 2,
    };
    format!("{} %", number(percent, decimals))
}

/// One decimal.
pub fn recall_percent(recall: f64) -> String {
    if recall.is_nan() { NONE.into() } else { format!("{:.1} %", 100.0 * recall) }
}

/// Whole percent. Only what is complete is called 100.
pub fn whole_percent(recall: f64) -> String {
    match 100.0 * recall {
        percent if percent.is_nan() => NONE.into(),
        percent if percent < 99.95 => format!("{:.0}", percent.min(99.0)),
        percent => format!("{percent:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_has_a_direction() {
        let of = |low, high, measure| Difference::of(&Interval { value: low, low, high }, measure);
        assert_eq!(of(1.001, 1.2, Measure::Perplexity), Difference::Worse);
        assert_eq!(of(0.9, 0.999, Measure::Perplexity), Difference::Better);
        assert_eq!(of(0.999, 1.001, Measure::Perplexity), Difference::Open);
        assert_eq!(of(1.000_000_1, 1.000_000_2, Measure::Perplexity), Difference::Equal);
        assert_eq!(of(f64::INFINITY, f64::INFINITY, Measure::Perplexity), Difference::Worse);
        assert_eq!(of(f64::NAN, f64::NAN, Measure::Perplexity), Difference::Open);
        assert_eq!(of(1.0, 3.0, Measure::F1), Difference::Better);
        assert_eq!(of(-3.0, -1.0, Measure::Accuracy), Difference::Worse);
    }

    #[test]
    fn digits_follow_size_and_sharpness() {
        let interval = |value, low, high| Interval { value, low, high };
        assert_eq!(quality(&interval(12.214, 11.0, 13.5), Measure::Perplexity), "12.21 [11.00, 13.50]");
        assert_eq!(quality(&interval(1105.4, 900.0, f64::INFINITY), Measure::Perplexity), "1105 [900, ∞]");
        assert_eq!(
            against(&interval(1.000_83, 0.9991, 1.0025), Measure::Perplexity),
            "1.0008 [0.9991, 1.0025]"
        );
        assert_eq!(against(&interval(1.237, 1.19, 1.29), Measure::Perplexity), "1.24 [1.19, 1.29]");
        assert_eq!(against(&interval(90.5, 80.0, 99.0), Measure::Perplexity), "90.5 [80.0, 99.0]");
        assert_eq!(against(&interval(-1.25, -3.0, 0.04), Measure::F1), "-1.2 [-3.0, 0.0]");
        assert_eq!(bytes(2_750_000.0), "2.75 MB");
        assert_eq!(bytes(113_400.0), "113 KB");
        assert_eq!(bytes(0.0), "0.00 KB");
        assert_eq!(percent(0.0412), "4.1 %");
        assert_eq!(percent(1.0), "100 %");
    }
}

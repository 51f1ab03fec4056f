//! What is drawn: a line for each masker, distinguished by colour, dashes and marker.

use crate::evaluation::choosing;
use crate::evaluation::results::{ContenderResult, Evaluation, Interval, Measure};
use crate::reports::evaluation::figures;

/// A place on a line.
#[derive(Debug, Clone)]
pub struct Point {
    /// Bytes as a percentage of dense attention's.
    pub percent: f64,
    /// The measure, and where the 95 % interval of its comparison with dense attention begins and ends.
    pub quality: Interval,
    /// H.
    pub heavy_size: Option<usize>,
    /// What stands beside it, where there is room: H, or in a sweep all settings of what is on the Pareto front.
    pub label: Option<String>,
    /// Its tooltip.
    pub title: String,
}

/// A named line.
#[derive(Debug)]
pub struct Curve {
    pub name: String,
    pub colour: &'static str,
    pub dashes: &'static str,
    /// A path from the marker's middle.
    pub marker: &'static str,
    pub points: Vec<Point>,
}

/// Distinguishable with any common form of colour vision, and readable on light and dark backgrounds.
const COLOURS: [&str; 8] =
    ["#3f8fd0", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#8a6fd1", "#a0522d", "#d6336c"];
const DASHES: [&str; 5] = ["none", "8 4", "2 3", "10 3 2 3", "5 3"];
const MARKERS: [&str; 8] = [
    "m-3.8,0a3.8,3.8 0 1,0 7.6,0a3.8,3.8 0 1,0 -7.6,0",
    "m-3.5,-3.5h7v7h-7z",
    "m0,-5l4.6,8.2h-9.2z",
    "m0,-5l5,5l-5,5l-5,-5z",
    "m0,5l4.6,-8.2h-9.2z",
    "m-3.6,-3.6l7.2,7.2m0,-7.2l-7.2,7.2",
    "m-5,0h10m-5,-5v10",
    "m-5,-2h10v4h-10z",
];

/// One for each masker but dense attention, in a sweep for each G and B as well, in the order of the table.
pub fn curves(evaluation: &Evaluation) -> Vec<Curve> {
    let mut curves: Vec<Curve> = Vec::new();
    let sweep = choosing::is_sweep(evaluation);
    let front = choosing::front(evaluation);
    for (place, row) in evaluation.rows.iter().enumerate().skip(1) {
        let name = match (row.group_factor, row.label_bits) {
            (Some(factor), Some(bits)) if sweep => format!("{}, G {factor}, B {bits}", row.masker),
            _ => row.masker.clone(),
        };
        let label = match row.heavy_size {
            Some(_) if sweep && !front.contains(&place) => None,
            Some(_) if sweep => Some(figures::settings(row)),
            size => size.map(|size| format!("H {size}")),
        };
        let known = curves.iter().position(|curve| curve.name == name);
        let index = known.unwrap_or_else(|| {
            curves.push(styled(name, curves.len()));
            curves.len() - 1
        });
        curves[index].points.extend(point(evaluation, row, label));
    }
    for curve in &mut curves {
        curve.points.sort_by_key(|point| point.heavy_size);
    }
    curves
}

fn styled(name: String, index: usize) -> Curve {
    let (colour, dashes) = (COLOURS[index % COLOURS.len()], DASHES[index % DASHES.len()]);
    Curve { name, colour, dashes, marker: MARKERS[index % MARKERS.len()], points: Vec::new() }
}

/// The points of the Pareto front, cheapest first; none where it is no sweep.
pub fn front(evaluation: &Evaluation) -> Vec<Point> {
    let rows = match choosing::is_sweep(evaluation) {
        true => choosing::front(evaluation),
        false => Vec::new(),
    };
    rows.into_iter().filter_map(|index| point(evaluation, &evaluation.rows[index], None)).collect()
}

/// None where there is no figure to draw.
fn point(evaluation: &Evaluation, row: &ContenderResult, label: Option<String>) -> Option<Point> {
    let percent = 100.0 * figures::share_of_dense(evaluation, row)?;
    let quality = compared(evaluation, row);
    let title = format!(
        "{}: {}, {} of dense attention's bytes",
        figures::settings(row),
        figures::quality(&row.quality, evaluation.measure),
        figures::percent(percent / 100.0)
    );
    let point = Point { percent, quality, heavy_size: row.heavy_size, label, title };
    (!quality.value.is_nan()).then_some(point)
}

/// The comparison with dense attention on the same tokens or items, put on the scale of the measure: much sharper than the
/// measure's own interval, which is mostly about the tokens.
fn compared(evaluation: &Evaluation, row: &ContenderResult) -> Interval {
    let own = row.quality;
    let (Some(dense), Some(against)) = (evaluation.rows.first(), row.against_dense) else {
        return own;
    };
    let scaled = |against: f64| match evaluation.measure {
        Measure::Perplexity => dense.quality.value * against,
        Measure::F1 | Measure::Accuracy => dense.quality.value + against,
    };
    Interval { value: own.value, low: scaled(against.low), high: scaled(against.high) }
}

//! An evaluation as text: what holds for all of it, a table of quality against what is read of the cache, and what the
//! selections of one row keep, layer by layer and head by head. [`plot()`] draws the table.

pub(super) mod figures;
mod plot;

use std::fmt::Write;

use super::table::{finished, table};
use crate::evaluation::choosing;
use crate::evaluation::results::{ContenderResult, Evaluation, Recall};

pub(super) use plot::inline;
pub use plot::plot;

/// The whole evaluation. Times are left out where `times` is false, so that the text is the same for each run.
pub fn render(evaluation: &Evaluation, times: bool) -> String {
    let mut text = String::new();
    for (name, value) in figures::facts(evaluation) {
        let _ = writeln!(text, "{name}: {value}");
    }
    text += "\n";
    text += &rows(evaluation, times);
    text += "\n";
    text += &choice(evaluation);
    for line in figures::LEGEND {
        let _ = writeln!(text, "{line}");
    }
    for note in &evaluation.notes {
        let _ = writeln!(text, "\nnote: {note}");
    }
    if times {
        let _ = writeln!(text, "\n{:.1} s", evaluation.seconds);
    }
    text
}

/// In a sweep: the cheapest settings, and the Pareto front.
fn choice(evaluation: &Evaluation) -> String {
    if !choosing::is_sweep(evaluation) {
        return String::new();
    }
    let mut text = String::new();
    for (heading, header, rows) in figures::choice(evaluation) {
        let mut table = table(&header, 2);
        for row in rows {
            table.add_row(row);
        }
        text += &format!("{heading}\n\n{}\n", finished(&table));
    }
    text
}

fn rows(evaluation: &Evaluation, times: bool) -> String {
    let header = figures::header(evaluation, times);
    let left = header.iter().take_while(|name| ["masker", "selected by"].contains(name)).count();
    let mut table = table(&header, left);
    for row in &evaluation.rows {
        table.add_row(figures::cells(evaluation, row, times));
    }
    finished(&table)
}

/// What the selections of a row keep of exact top-k's, in percent: a line for each layer, a column for each query head.
pub fn heat_map(evaluation_row: &ContenderResult) -> String {
    let name = figures::settings(evaluation_row);
    let Some(recall) = &evaluation_row.recall else {
        return format!("{name}: no recall, as no keys are selected\n");
    };
    let blocks = [("keys", &recall.keys), ("mass", &recall.mass)];
    blocks.into_iter().fold(format!("{name}\n"), |text, (what, cells)| text + "\n" + &block(what, cells))
}

fn block(what: &str, cells: &[Vec<f64>]) -> String {
    let mean = Recall::mean(cells).map_or("–".into(), figures::recall_percent);
    let mut text = format!("recall of {what} in percent, layer by query head; mean {mean}\n");
    let heads = cells.iter().map(Vec::len).max().unwrap_or(0);
    let texts: Vec<Vec<String>> =
        cells.iter().map(|row| row.iter().copied().map(figures::whole_percent).collect()).collect();
    let names: Vec<String> = (0..heads).map(|head| head.to_string()).collect();
    let width = 1 + texts.iter().flatten().chain(&names).map(|text| text.chars().count()).max().unwrap_or(0);
    let line = |cells: &[String]| cells.iter().map(|cell| format!("{cell:>width$}")).collect::<String>();
    let _ = writeln!(text, "layer{}", line(&names));
    for (layer, row) in texts.iter().enumerate() {
        let row = if row.is_empty() { " dense".into() } else { line(row) };
        let _ = writeln!(text, "{layer:>5}{row}");
    }
    text
}

//! The page of an evaluation: what holds for all of it, quality against what is read, as a table and as a drawing, and for each
//! masker what its selections keep, layer by layer and head by head.

use maud::{Markup, html};

use super::{Status, counted, facts, page, scroll};
use crate::evaluation::choosing;
use crate::evaluation::results::{ContenderResult, Evaluation, Measure};
use crate::reports::evaluation::figures::{self, Difference, whole_percent};
use crate::reports::evaluation::inline;

/// An evaluation's page.
pub fn evaluation(evaluation: &Evaluation) -> String {
    let status = Status { class: "neutral", glyph: "", text: status_text(evaluation) };
    let body = html! {
        (summary(evaluation))
        (drawing(evaluation))
        (choice(evaluation))
        (table(evaluation))
        (recalls(evaluation))
        @if !evaluation.notes.is_empty() {
            section #notes { h2 { "Notes" } ul { @for note in &evaluation.notes { li { (note) } } } }
        }
        section #command { h2 { "Command" } pre.replay { (evaluation.command) } }
    };
    page("eval", &evaluation.model, &evaluation.version, &status, &body)
}

/// What dense attention reaches, and how many selections differ from it.
fn status_text(evaluation: &Evaluation) -> String {
    let measure = evaluation.measure;
    let Some((dense, others)) = evaluation.rows.split_first() else {
        return "nothing was evaluated".into();
    };
    let value = figures::quality_value(dense.quality.value, measure);
    let reached = format!("{} {value} with dense attention", figures::measure_name(measure));
    let count =
        |kind: Difference| others.iter().filter(|row| Difference::of_row(row, measure) == Some(kind)).count();
    let kinds = [Difference::Worse, Difference::Better].map(|kind| (count(kind), kind.word()));
    let differing: Vec<_> =
        kinds.iter().filter(|(count, _)| *count > 0).map(|(count, word)| format!("{count} {word}")).collect();
    let differing = if differing.is_empty() { "none differs from it".into() } else { differing.join(", ") };
    format!("{reached}; of {}, {differing}", counted(others.len(), "selection", "selections"))
}

fn summary(evaluation: &Evaluation) -> Markup {
    let mut lines: Vec<(&str, Markup)> =
        figures::facts(evaluation).into_iter().map(|(name, value)| (name, html! { (value) })).collect();
    lines.push(("time", html! { (format!("{:.1} s", evaluation.seconds)) }));
    html! { section #summary { h2 { "Summary" } (facts(&lines)) } }
}

fn drawing(evaluation: &Evaluation) -> Markup {
    let scale = match evaluation.measure {
        Measure::Perplexity => "Both axes are logarithmic.",
        Measure::F1 | Measure::Accuracy => "The axis of bytes is logarithmic.",
    };
    html! {
        section #plot {
            h2 { "Quality over bytes read" }
            figure.wide-figure {
                (scroll(&inline(evaluation)))
                figcaption {
                    "Masker and dense attention are compared on the same tokens or items. " (scale)
                }
            }
        }
    }
}

/// What a sweep leaves to choose.
fn choice(evaluation: &Evaluation) -> Markup {
    html! {
        @if choosing::is_sweep(evaluation) {
            section #choice {
                h2 { "Which settings" }
                @for (heading, head, rows) in figures::choice(evaluation) {
                    p { (heading) }
                    (scroll(&html! {
                        table.numbers.wide {
                            thead { tr { @for name in &head { th.text[*name == "setting"] scope="col" { (name) } } } }
                            tbody {
                                @for row in &rows {
                                    tr {
                                        @for (name, cell) in head.iter().zip(row) { td.text[*name == "setting"] { (cell) } }
                                    }
                                }
                            }
                        }
                    }))
                }
            }
        }
    }
}

fn table(evaluation: &Evaluation) -> Markup {
    let names = figures::header(evaluation, true);
    let ends = ends(&evaluation.rows);
    html! {
        section #table {
            h2 { "Maskers" }
            (scroll(&html! {
                table.numbers.wide.maskers {
                    thead { tr { @for name in &names { th.text[is_text(name)] scope="col" { (name) } } } }
                    tbody {
                        @for (row, ends) in evaluation.rows.iter().zip(ends) {
                            tr.ends[ends] { (table_row(&names, &figures::cells(evaluation, row, true))) }
                        }
                    }
                }
            }))
            @for line in figures::LEGEND { p.aside { (line) } }
        }
    }
}

/// Whether each row is the last of its masker.
fn ends(rows: &[ContenderResult]) -> Vec<bool> {
    let names = || rows.iter().map(|row| &row.masker);
    let next = names().skip(1).map(Some).chain([None]);
    names().zip(next).map(|(name, next)| next.is_some_and(|next| next != name)).collect()
}

fn is_text(column: &str) -> bool {
    ["masker", "selected by", "differs"].contains(&column)
}

fn table_row(names: &[&str], cells: &[String]) -> Markup {
    html! {
        @for (name, cell) in names.iter().zip(cells) {
            @if *name == "masker" {
                th.text scope="row" { (cell) }
            } @else {
                td.text[is_text(name)] { (cell) }
            }
        }
    }
}

fn recalls(evaluation: &Evaluation) -> Markup {
    let maps: Vec<Markup> = evaluation.rows.iter().filter_map(recall).collect();
    html! {
        @if !maps.is_empty() {
            section #recall {
                h2 { "What selections keep" }
                p.aside {
                    "Percent of the keys, and of the attention mass, that exact top-k of the same H selects, for each layer and "
                    "query head. The more is missed, the stronger the colour."
                }
                @for map in &maps { (map) }
            }
        }
    }
}

/// A row's maps, folded.
fn recall(row: &ContenderResult) -> Option<Markup> {
    let recall = row.recall.as_ref()?;
    let [keys, mass] = figures::recalls(row).map(|mean| mean.map_or("–".into(), figures::recall_percent));
    Some(html! {
        details {
            summary { (figures::settings(row)) span.aside { " keys " (keys) ", mass " (mass) } }
            div.parts {
                (heat_map("Recall of keys", &recall.keys))
                (heat_map("Recall of mass", &recall.mass))
            }
        }
    })
}

/// A line for each layer, a column for each query head.
fn heat_map(caption: &str, layers: &[Vec<f64>]) -> Markup {
    let heads = layers.iter().map(Vec::len).max().unwrap_or(0);
    scroll(&html! {
        table.heat {
            caption { (caption) }
            thead { tr { th scope="col" { "layer" } @for head in 0..heads { th scope="col" { (head) } } } }
            tbody {
                @for (layer, row) in layers.iter().enumerate() {
                    tr {
                        th scope="row" { (layer) }
                        @if row.is_empty() && heads > 0 { td.dense colspan=(heads) { "dense" } }
                        @for share in row { (cell(*share)) }
                    }
                }
            }
        }
    })
}

/// The more is missed, the stronger the colour; the square root makes small losses visible.
fn cell(share: f64) -> Markup {
    if !share.is_finite() {
        return html! { td { "–" } };
    }
    let missed = format!("--missed:{:.0}", 100.0 * (1.0 - share).clamp(0.0, 1.0).sqrt());
    html! { td style=(missed) title=(figures::recall_percent(share)) { (whole_percent(share)) } }
}

//! The matrix of deliberate faults as text.

use super::table::{finished, table};
use crate::runner::check::Size;
use crate::runner::faults::{FaultResult, Planted};

/// What each fault is, and public reports of it or of the like.
pub fn list(planted: &[Planted]) -> String {
    let entry = |planted: &Planted| {
        let (name, row, sentence) = (planted.name(), planted.row(), planted.sentence());
        let reports = match planted.seen() {
            "" => String::new(),
            seen => format!("  reported: {seen}\n"),
        };
        format!("{name} ({row})\n  {sentence}\n{reports}")
    };
    planted.iter().map(entry).collect()
}

/// One line for each fault, and a sentence at the end.
pub fn render(results: &[FaultResult]) -> String {
    let header = ["fault", "SPEC", "caught by", "after", "of all", "shrunk to", "seconds", "diagnosis"];
    let mut table = table(&header, 3);
    for result in results {
        let diagnosis = match (result.caught_by, result.diagnosis.is_empty()) {
            (None, _) if result.must_conform => "conforms, as it must".into(),
            (None, _) => "NOT CAUGHT".into(),
            (Some(_), true) => "unknown".into(),
            (Some(_), false) if result.right() => "right".into(),
            (Some(_), false) => format!("WRONG: {}", result.diagnosis.join(" + ")),
        };
        table.add_row([
            result.name.to_owned(),
            result.row.to_owned(),
            result.caught_by.unwrap_or("–").to_owned(),
            result.after.to_string(),
            result.sequences.to_string(),
            result.size.map_or("–".into(), |size| size.to_string()),
            format!("{:.2}", result.shrinking_seconds),
            diagnosis,
        ]);
    }
    let count = |right: fn(&FaultResult) -> bool| results.iter().filter(|result| right(result)).count();
    finished(&table)
        + &format!(
            "\n{} faults: {} caught, {} of them named; {} of {} conforming variants accepted; {:.0} s\n",
            count(|result| !result.must_conform),
            count(|result| !result.must_conform && result.caught_by.is_some()),
            count(|result| result.right() && !result.diagnosis.is_empty()),
            count(|result| result.must_conform && result.right()),
            count(|result| result.must_conform),
            results.iter().map(|result| result.seconds).sum::<f64>()
        )
}

/// The same for faults that are planted only above some number of keys: how small the calls are that show them.
pub fn render_above(results: &[FaultResult]) -> String {
    let header = ["fault", "SPEC", "above", "caught after", "n", "H", "d", "heads", "calls", "seconds", ""];
    let mut table = table(&header, 2);
    for result in results {
        let size =
            |of: fn(&Size) -> usize| result.size.as_ref().map_or("–".into(), |size| of(size).to_string());
        let outcome = match (result.caught_by, result.right()) {
            (None, true) => "conforms, as it must",
            (None, false) => "NOT CAUGHT",
            (Some(_), true) => "",
            (Some(_), false) => "NOT SMALLEST",
        };
        table.add_row([
            result.name.to_owned(),
            result.row.to_owned(),
            result.above.map_or("–".into(), |above| above.to_string()),
            result.after.to_string(),
            size(|size| size.keys),
            result.heavy_size.map_or("–".into(), |size| size.to_string()),
            size(|size| size.head_dim),
            size(|size| size.heads),
            size(|size| size.calls),
            format!("{:.1}", result.seconds),
            outcome.to_owned(),
        ]);
    }
    let count = |right: fn(&FaultResult) -> bool| results.iter().filter(|result| right(result)).count();
    finished(&table)
        + &format!(
            "\n{} planted: {} caught, {} of them shrunk to the smallest number of keys, give or take one; {} of {} \
             conforming variants accepted; {:.0} s\n",
            count(|result| !result.must_conform),
            count(|result| !result.must_conform && result.caught_by.is_some()),
            count(|result| !result.must_conform && result.right()),
            count(|result| result.must_conform && result.right()),
            count(|result| result.must_conform),
            results.iter().map(|result| result.seconds).sum::<f64>()
        )
}

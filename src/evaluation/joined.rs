//! Several evaluations as one: shares of one (`--shard`), the same maskers on several texts, or both.

use std::collections::BTreeMap;

use super::bootstrap;
use super::results::{ContenderResult, Evaluation, Interval, Measure, Recall};
use crate::algorithm::Detail;

/// Rows of one key are of the same masker with the same settings.
type Key = (String, String, Option<usize>, Option<u8>, Option<usize>);

fn key(row: &ContenderResult) -> Key {
    (row.masker.clone(), row.subject.clone(), row.group_factor, row.label_bits, row.heavy_size)
}

/// One evaluation out of several of the same model, measure and channels. Of one task, rows are put together; of several, what every
/// masker did in all of them is taken as one, and rows that some task lacks are left out with a note.
///
/// Errors: none given; another model, measure, set-up, channels or dense layers; one row twice with different figures.
pub fn joined(parts: &[Evaluation]) -> Result<Evaluation, Detail> {
    let [first, others @ ..] = parts else {
        return Err(Detail::new("evaluations", "none", "at least one"));
    };
    for other in others {
        same("model_sha256", &other.model_sha256, &first.model_sha256)?;
        same("measure", &format!("{:?}", other.measure), &format!("{:?}", first.measure))?;
        same("setup", &format!("{:?}", other.setup), &format!("{:?}", first.setup))?;
        same("channels", &other.channels, &first.channels)?;
        let layers = |part: &Evaluation| format!("{:?}", part.dense_layers);
        same("dense_layers", &layers(other), &layers(first))?;
    }
    if others.is_empty() {
        return Ok(first.clone());
    }
    let mut tasks: Vec<&str> = Vec::new();
    let mut of_tasks: Vec<BTreeMap<Key, &ContenderResult>> = Vec::new();
    let mut places: BTreeMap<&str, usize> = BTreeMap::new();
    for part in parts {
        let known = tasks.iter().position(|task| *task == part.task);
        let task = known.unwrap_or_else(|| {
            tasks.push(&part.task);
            of_tasks.push(BTreeMap::new());
            tasks.len() - 1
        });
        for (place, row) in part.rows.iter().enumerate() {
            let first = places.entry(&row.masker).or_insert(place);
            *first = place.min(*first);
            if let Some(seen) = of_tasks[task].insert(key(row), row) {
                // What is prefilled may be rounded in another order by another number of threads.
                let close = (seen.quality.value / row.quality.value - 1.0).abs() < 1e-3;
                if !close && seen.quality.value != row.quality.value {
                    let field = format!("{} of {}", row.masker, part.task);
                    return Err(Detail::new(field, row.quality.value, seen.quality.value.to_string()));
                }
            }
        }
    }
    let mut keys: Vec<&Key> = of_tasks.iter().flat_map(BTreeMap::keys).collect();
    keys.sort_by_key(|key| (places[key.0.as_str()], *key));
    keys.dedup();
    let mut notes: Vec<String> = Vec::new();
    for note in parts.iter().flat_map(|part| &part.notes) {
        if !notes.contains(note) {
            notes.push(note.clone());
        }
    }
    let mut rows: Vec<ContenderResult> = Vec::new();
    for key in keys {
        let found: Vec<&ContenderResult> =
            of_tasks.iter().filter_map(|rows| rows.get(key).copied()).collect();
        if found.len() == of_tasks.len() {
            let row = row_of(first.measure, &found, rows.first());
            rows.push(row);
        } else {
            let (masker, _, group_factor, label_bits, heavy_size) = key;
            notes.push(format!(
                "left out: {masker}, H {heavy_size:?}, G {group_factor:?}, B {label_bits:?}: in {} of {} texts",
                found.len(),
                tasks.len()
            ));
        }
    }
    let mut commands: Vec<&str> = Vec::new();
    for part in parts {
        if !commands.contains(&part.command.as_str()) {
            commands.push(&part.command);
        }
    }
    let texts: Vec<String> =
        if tasks.len() > 1 { tasks.iter().map(|&task| task.into()).collect() } else { Vec::new() };
    Ok(Evaluation {
        task: tasks.join("; "),
        texts,
        seconds: rows.iter().map(|row| row.seconds).sum(),
        rows,
        notes,
        command: commands.join("\n"),
        ..first.clone()
    })
}

fn same(field: &str, found: &str, expected: &str) -> Result<(), Detail> {
    if found == expected { Ok(()) } else { Err(Detail::new(field, found, expected)) }
}

/// What one masker did in all tasks.
fn row_of(measure: Measure, found: &[&ContenderResult], dense: Option<&ContenderResult>) -> ContenderResult {
    let [first, others @ ..] = found else { unreachable!("a key comes from a row") };
    if others.is_empty() {
        return (*first).clone();
    }
    let mean =
        |of: fn(&ContenderResult) -> f64| found.iter().map(|row| of(row)).sum::<f64>() / found.len() as f64;
    let units: Vec<_> = found.iter().flat_map(|row| row.units.clone()).collect();
    let by_text: Vec<Interval> = found.iter().filter_map(|row| row.against_dense).collect();
    ContenderResult {
        keys_read: mean(|row| row.keys_read),
        keys_held: mean(|row| row.keys_held),
        bytes: mean(|row| row.bytes),
        quality: bootstrap::quality(measure, &units),
        against_dense: dense.and_then(|dense| bootstrap::against(measure, &units, &dense.units)),
        recall: recall(found),
        seconds: found.iter().map(|row| row.seconds).sum(),
        by_text,
        units,
        ..(*first).clone()
    }
}

/// The mean of all tasks, where every one has as many layers and heads.
fn recall(found: &[&ContenderResult]) -> Option<Recall> {
    let all: Vec<&Recall> = found.iter().map(|row| row.recall.as_ref()).collect::<Option<_>>()?;
    let shape = |cells: &[Vec<f64>]| cells.iter().map(Vec::len).collect::<Vec<_>>();
    let mean = |of: fn(&Recall) -> &Vec<Vec<f64>>| -> Option<Vec<Vec<f64>>> {
        let first = of(all.first()?);
        if all.iter().any(|recall| shape(of(recall)) != shape(first)) {
            return None;
        }
        let cell = |layer: usize, head: usize| {
            all.iter().map(|recall| of(recall)[layer][head]).sum::<f64>() / all.len() as f64
        };
        let layer = |(layer, row): (usize, &Vec<f64>)| (0..row.len()).map(|head| cell(layer, head)).collect();
        Some(first.iter().enumerate().map(layer).collect())
    };
    Some(Recall { keys: mean(|recall| &recall.keys)?, mass: mean(|recall| &recall.mass)? })
}

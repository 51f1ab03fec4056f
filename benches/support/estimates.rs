//! Reads what criterion measured, from the files it leaves: `new/benchmark.json` names a benchmark, `new/estimates.json` beside
//! it holds the times. Fits how they grow.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::Failure;

/// The time of one benchmark.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Estimate {
    pub group: String,
    pub function: String,
    /// Mostly n.
    pub parameter: String,
    pub median_ms: f64,
    /// Ends of the interval that holds the median with 95 % confidence.
    pub low_ms: f64,
    pub high_ms: f64,
}

/// Where criterion puts its files: `CRITERION_HOME`, or `criterion` in cargo's target folder.
pub fn folder() -> PathBuf {
    let target = || std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    std::env::var_os("CRITERION_HOME").map_or_else(|| target().join("criterion"), PathBuf::from)
}

/// All benchmarks below a folder, by group, function, and number.
pub fn read(folder: &Path) -> Result<Vec<Estimate>, Failure> {
    let mut estimates = Vec::new();
    collect(folder, &mut estimates)?;
    let number = |estimate: &Estimate| estimate.parameter.parse::<u64>().unwrap_or(0);
    estimates.sort_by_key(|estimate| (estimate.group.clone(), estimate.function.clone(), number(estimate)));
    Ok(estimates)
}

fn collect(folder: &Path, estimates: &mut Vec<Estimate>) -> Result<(), Failure> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.join("benchmark.json").exists() && path.ends_with("new") {
            estimates.push(estimate(&path)?);
        } else if path.is_dir() {
            collect(&path, estimates)?;
        }
    }
    Ok(())
}

fn estimate(folder: &Path) -> Result<Estimate, Failure> {
    let json = |name: &str| -> Result<Value, Failure> {
        Ok(serde_json::from_slice(&std::fs::read(folder.join(name))?)?)
    };
    let (benchmark, estimates) = (json("benchmark.json")?, json("estimates.json")?);
    let text = |field: &str| benchmark[field].as_str().unwrap_or_default().to_owned();
    let (median, interval) = (&estimates["median"], &estimates["median"]["confidence_interval"]);
    let ms = |nanoseconds: &Value| nanoseconds.as_f64().map(|x| x / 1e6).ok_or("a time is no number");
    Ok(Estimate {
        group: text("group_id"),
        function: text("function_id"),
        parameter: text("value_str"),
        median_ms: ms(&median["point_estimate"])?,
        low_ms: ms(&interval["lower_bound"])?,
        high_ms: ms(&interval["upper_bound"])?,
    })
}

/// (n, ms) of one function, by n.
pub fn points(estimates: &[Estimate], group: &str, function: &str) -> Vec<(f64, f64)> {
    let of_function = estimates.iter().filter(|it| it.group == group && it.function == function);
    of_function.filter_map(|it| Some((it.parameter.parse().ok()?, it.median_ms))).collect()
}

/// The exponent e of the power law c·nᵉ closest to the points: least squares on logarithms. `None` for fewer than two lengths.
pub fn exponent(points: &[(f64, f64)]) -> Option<f64> {
    let logs: Vec<_> = points.iter().map(|(n, ms)| (n.ln(), ms.ln())).collect();
    let count = logs.len() as f64;
    let (x, y) = logs.iter().fold((0.0, 0.0), |(x, y), log| (x + log.0 / count, y + log.1 / count));
    let (products, squares) = logs.iter().fold((0.0, 0.0), |(products, squares), log| {
        (products + (log.0 - x) * (log.1 - y), squares + (log.0 - x).powi(2))
    });
    (squares > 0.0).then(|| products / squares)
}

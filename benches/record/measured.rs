//! What the benches measured: criterion's estimates, the figures they printed, and the port's times.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Failure;
use super::estimates::{self, Estimate};

/// A figure that a bench printed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Figure {
    #[serde(rename = "figure")]
    pub name: String,
    pub value: f64,
    pub unit: String,
}

/// Times of the port's masker.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Port {
    /// In words.
    pub machine: String,
    /// By `n,Bbits`.
    pub masker_ms: BTreeMap<String, f64>,
}

/// Everything.
#[derive(Debug)]
pub struct Measured {
    pub estimates: Vec<Estimate>,
    pub figures: Vec<Figure>,
    pub port: Option<Port>,
}

impl Measured {
    pub fn read(criterion: &Path, figures: &Path, port: Option<&Path>) -> Result<Self, Failure> {
        let lines = std::fs::read_to_string(figures)?;
        let figures = lines.lines().filter(|line| line.starts_with("{\"figure\""));
        let port = match port {
            Some(path) => Some(serde_json::from_slice(&std::fs::read(path)?)?),
            None => None,
        };
        Ok(Self {
            estimates: estimates::read(criterion)?,
            figures: figures.map(serde_json::from_str).collect::<Result<_, _>>()?,
            port,
        })
    }

    /// The median time of a benchmark.
    pub fn ms(&self, group: &str, function: &str, parameter: &str) -> Option<f64> {
        let is_it =
            |it: &&Estimate| it.group == group && it.function == function && it.parameter == parameter;
        self.estimates.iter().find(is_it).map(|it| it.median_ms)
    }

    /// The value of a figure.
    pub fn figure(&self, name: &str) -> Option<f64> {
        self.figures.iter().find(|figure| figure.name == name).map(|figure| figure.value)
    }

    /// The fastest way of dense attention over n keys, and its time.
    pub fn dense(&self, group: &str, keys: usize) -> Option<(&str, f64)> {
        let keys = keys.to_string();
        let ways = self.estimates.iter().filter(|it| it.group == group && it.parameter == keys);
        ways.map(|it| (it.function.as_str(), it.median_ms)).min_by(|a, b| a.1.total_cmp(&b.1))
    }

    /// The port's time for a mask.
    pub fn port_ms(&self, keys: usize, label_bits: u64) -> Option<f64> {
        self.port.as_ref()?.masker_ms.get(&format!("{keys},B{label_bits}")).copied()
    }

    /// (n, ms) of the engine's step.
    pub fn growth(&self, label_bits: u64) -> Vec<(f64, f64)> {
        estimates::points(&self.estimates, "growth", &format!("step B={label_bits}"))
    }

    /// (n, ms) of dense attention, at each n the fastest way.
    pub fn dense_growth(&self) -> Vec<(f64, f64)> {
        let point = |(keys, _): (f64, f64)| Some((keys, self.dense("growth dense", keys as usize)?.1));
        self.growth(4).into_iter().filter_map(point).collect()
    }
}

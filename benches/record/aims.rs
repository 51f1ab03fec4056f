//! What the benches are measured against: the aims, and what memory allows.

use serde::Serialize;

use super::measured::Measured;

/// B: codes, and labels that are not quantised.
pub const LABEL_BITS: [u64; 2] = [4, 16];

/// Queries and keys of the calls of which verdicts are measured.
pub const VERDICTS: [(usize, usize); 2] = [(1, 131_072), (128, 4096)];

/// One aim and what was found.
#[derive(Debug, Clone, Serialize)]
pub struct Aim {
    pub aim: String,
    /// At least, or at most where `at_most`.
    pub wanted: f64,
    pub at_most: bool,
    pub unit: &'static str,
    /// `None` where it was not measured.
    pub found: Option<f64>,
    pub met: Option<bool>,
}

impl Aim {
    fn new(aim: String, at_most: bool, wanted: f64, unit: &'static str, found: Option<f64>) -> Self {
        let met = found.map(|found| if at_most { found <= wanted } else { found >= wanted });
        Self { aim, wanted, at_most, unit, found, met }
    }
}

fn ratio(of: Option<f64>, to: Option<f64>) -> Option<f64> {
    Some(of? / to?)
}

pub fn aims(measured: &Measured) -> Vec<Aim> {
    let mut aims = Vec::new();
    for bits in LABEL_BITS {
        let reference = measured.ms("masker m=1", &format!("reference B={bits}"), "32768");
        let found = ratio(measured.port_ms(32_768, bits), reference);
        let aim = format!("the reference's mask beside the port's, n = 32768, B = {bits}: faster");
        aims.push(Aim::new(aim, false, 20.0, "times", found));
    }
    for (keys, wanted) in [(32_768, 5.0), (131_072, 8.0)] {
        for bits in LABEL_BITS {
            let step = measured.ms("decode", &format!("step B={bits}"), &keys.to_string());
            let found = ratio(measured.dense("dense", keys).map(|dense| dense.1), step);
            let aim = format!("decode step beside dense attention, n = {keys}, B = {bits}: faster");
            aims.push(Aim::new(aim, false, wanted, "times", found));
            // How models ask libtorch for it; the line above is against the fastest way.
            let usual = ratio(measured.ms("dense", "enable_gqa", &keys.to_string()), step);
            let aim = format!("the same beside enable_gqa, n = {keys}, B = {bits}: faster");
            aims.push(Aim::new(aim, false, wanted, "times", usual));
        }
    }
    for subject in ["reference", "engine", "torch"] {
        let found = measured.figure(&format!("small random cases, {subject}"));
        aims.push(Aim::new(format!("small random cases, {subject}"), false, 20_000.0, "cases/s", found));
    }
    aims.push(Aim::new("verify in total".into(), true, 6.0, "s", measured.figure("verify")));
    for (queries, keys) in VERDICTS {
        let group = format!("verdict m={queries}");
        let reading = measured.ms(&group, "reading q, k and v", &keys.to_string());
        for bits in LABEL_BITS {
            let verdict = measured.ms(&group, &format!("verdict B={bits}"), &keys.to_string());
            let aim = format!("a verdict beside reading q, k and v, m = {queries}, n = {keys}, B = {bits}");
            aims.push(Aim::new(aim, true, 4.0, "times", ratio(verdict, reading)));
        }
    }
    let [pipe, shared] =
        ["pipe and verdict", "shared and verdict"].map(|way| measured.ms("asking", way, "32768"));
    let aim = "verdicts a second in shared memory beside a pipe, n = 32768".into();
    aims.push(Aim::new(aim, false, 5.0, "times", ratio(pipe, shared)));
    aims
}

/// What some work must move, and how long that takes at the measured bandwidth.
#[derive(Debug, Clone, Serialize)]
pub struct Bound {
    pub work: String,
    pub keys: usize,
    pub bytes: f64,
    pub bound_ms: f64,
    pub found_ms: f64,
    /// For a step: how many times the bytes of dense attention are its own.
    pub dense_bytes: Option<f64>,
}

pub fn bounds(measured: &Measured) -> Vec<Bound> {
    let mut bounds = Vec::new();
    let mut add = |work: String, keys: usize, bytes: Option<f64>, ms: Option<f64>, dense: Option<f64>| {
        if let (Some(bytes), Some(found_ms), Some(rate)) = (bytes, ms, measured.figure("memory bandwidth")) {
            let (bound_ms, dense_bytes) = (bytes / rate * 1e3, dense.map(|dense| dense / bytes));
            bounds.push(Bound { work, keys, bytes, bound_ms, found_ms, dense_bytes });
        }
    };
    let keys = 32_768;
    for bits in LABEL_BITS {
        let ms = measured.ms("masker m=1", &format!("reference B={bits}"), &keys.to_string());
        let bytes = measured.figure(&format!("bytes of a mask, n={keys}"));
        add(format!("the reference's mask, B = {bits}"), keys, bytes, ms, None);
    }
    for keys in [32_768, 131_072] {
        let dense = measured.figure(&format!("bytes of dense attention, n={keys}"));
        add("dense attention".into(), keys, dense, measured.dense("dense", keys).map(|dense| dense.1), None);
        for bits in LABEL_BITS {
            let step = format!("step B={bits}");
            let bytes = measured.figure(&format!("bytes of a {step}, n={keys}"));
            let ms = measured.ms("decode", &step, &keys.to_string());
            add(format!("decode step, B = {bits}"), keys, bytes, ms, dense);
        }
    }
    bounds
}

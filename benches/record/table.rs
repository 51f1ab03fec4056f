//! The record as text.

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};

use super::aims::{Aim, Bound, LABEL_BITS, VERDICTS};
use super::estimates::exponent;
use super::machine::Machine;
use super::measured::{Figure, Measured};

const NONE: &str = "–";

/// All tables, each under its name.
pub fn render(machine: &Machine, measured: &Measured, aims: &[Aim], bounds: &[Bound]) -> String {
    let mut text = format!("doublecheck {} on {}\n", env!("CARGO_PKG_VERSION"), machine.describe());
    if let Some(port) = &measured.port {
        text += &format!("the port's times: {}\n", port.machine);
    }
    text += "32 heads over 8 KV heads, d = dv = 128, f32, G = 8, H = 1024; times are medians in ms\n";
    text += &section("Aims", &["aim", "wanted", "found", ""], &aims.iter().map(aim).collect::<Vec<_>>());
    let header = ["work", "n", "MB", "bound", "found", "bound / found", "bytes of dense / its own"];
    let rate = measured.figure("memory bandwidth").map_or(NONE.into(), |rate| format!("{:.1}", rate / 1e9));
    let name =
        format!("Bytes that must be moved, and the bound at this machine's memory bandwidth, {rate} GB/s");
    text += &section(&name, &header, &bounds.iter().map(bound).collect::<Vec<_>>());
    text += &masks(measured);
    text += &steps(measured);
    text += &growth(measured);
    text += &threads(measured);
    text += &verdicts(measured);
    text += &asking(measured);
    text += &suite(measured);
    text
}

fn section(name: &str, header: &[&str], rows: &[Vec<String>]) -> String {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(header);
    table.add_rows(rows);
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if index > 0 {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let lines = table.to_string();
    let lines: Vec<_> = lines.lines().map(str::trim_end).collect();
    format!("\n{name}\n\n{}\n", lines.join("\n"))
}

/// Three digits or so, and all digits before the point.
fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.1 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

fn maybe(value: Option<f64>) -> String {
    value.map_or(NONE.into(), number)
}

fn ratio(of: Option<f64>, to: Option<f64>) -> String {
    of.zip(to).map_or(NONE.into(), |(of, to)| format!("{:.1}", of / to))
}

fn aim(aim: &Aim) -> Vec<String> {
    let sign = if aim.at_most { "≤" } else { "≥" };
    let met = match aim.met {
        Some(true) => "met",
        Some(false) => "missed",
        None => "not measured",
    };
    vec![aim.aim.clone(), format!("{sign} {} {}", aim.wanted, aim.unit), maybe(aim.found), met.into()]
}

fn bound(bound: &Bound) -> Vec<String> {
    vec![
        bound.work.clone(),
        bound.keys.to_string(),
        number(bound.bytes / 1e6),
        number(bound.bound_ms),
        number(bound.found_ms),
        format!("{:.0} %", 100.0 * bound.bound_ms / bound.found_ms),
        bound.dense_bytes.map_or(NONE.into(), |times| format!("{times:.1}")),
    ]
}

fn masks(measured: &Measured) -> String {
    let mut rows = Vec::new();
    for (queries, keys) in [(1, 8192), (1, 32_768), (1, 131_072), (128, 2048)] {
        for bits in LABEL_BITS {
            let ms = |subject: &str| {
                let function = format!("{subject} B={bits}");
                measured.ms(&format!("masker m={queries}"), &function, &keys.to_string())
            };
            let port = measured.port_ms(keys, bits);
            let mut row = vec![keys.to_string(), queries.to_string(), bits.to_string()];
            row.extend(["reference", "engine", "torch"].map(|subject| maybe(ms(subject))));
            row.extend([maybe(port), ratio(port, ms("reference"))]);
            rows.push(row);
        }
    }
    let header = ["n", "m", "B", "reference", "engine", "torch", "port", "port / reference"];
    section("A mask from raw keys", &header, &rows)
}

fn steps(measured: &Measured) -> String {
    let mut rows = Vec::new();
    for keys in [32_768, 131_072] {
        for bits in LABEL_BITS {
            let ms = |part: &str| measured.ms("decode", &format!("{part} B={bits}"), &keys.to_string());
            let dense = measured.dense("dense", keys);
            let mut row = vec![keys.to_string(), bits.to_string()];
            row.extend(["select", "attend", "step"].map(|part| maybe(ms(part))));
            row.extend([maybe(dense.map(|dense| dense.1)), dense.map_or(NONE, |dense| dense.0).into()]);
            row.push(ratio(dense.map(|dense| dense.1), ms("step")));
            // How models ask for it, which reads each key once for every query head.
            let usual = measured.ms("dense", "enable_gqa", &keys.to_string());
            row.extend([maybe(usual), ratio(usual, ms("step"))]);
            rows.push(row);
        }
    }
    let header = [
        "n",
        "B",
        "select",
        "attend",
        "step",
        "dense, torch",
        "asked by",
        "dense / step",
        "enable_gqa",
        "enable_gqa / step",
    ];
    section("A decode step over a filled label cache", &header, &rows)
}

fn growth(measured: &Measured) -> String {
    let curves = [measured.growth(4), measured.growth(16), measured.dense_growth()];
    let mut rows = Vec::new();
    for &(keys, _) in &curves[0] {
        let at = |curve: &Vec<(f64, f64)>| curve.iter().find(|point| point.0 == keys).map(|point| point.1);
        let mut row = vec![keys.to_string()];
        row.extend(curves.iter().map(|curve| maybe(at(curve))));
        rows.push(row);
    }
    for (name, least) in [("exponent", 0.0), ("exponent from 2^14", 16_384.0)] {
        let fit = |curve: &Vec<(f64, f64)>| {
            let points: Vec<_> = curve.iter().copied().filter(|point| point.0 >= least).collect();
            maybe(exponent(&points))
        };
        rows.push([name.into()].into_iter().chain(curves.iter().map(fit)).collect());
    }
    section("A decode step over n", &["n", "B = 4", "B = 16", "dense, torch"], &rows)
}

fn threads(measured: &Measured) -> String {
    let row = |bits: u64| {
        let ms = |threads: &str| measured.ms("threads", &format!("step B={bits}"), threads);
        let labels = measured.figure(&format!("bytes of a key's labels, B={bits}"));
        let rows = measured.figure(&format!("bytes of a key and its value, B={bits}"));
        vec![
            bits.to_string(),
            maybe(ms("1")),
            maybe(ms("2")),
            ratio(ms("1"), ms("2")),
            maybe(labels),
            maybe(rows),
        ]
    };
    let header = ["B", "1 thread", "2 threads", "ratio", "bytes of labels", "bytes of K and V"];
    let name = "A decode step by threads, at the largest n, and the memory of one cached key, all heads";
    section(name, &header, &LABEL_BITS.map(row))
}

fn verdicts(measured: &Measured) -> String {
    let mut rows = Vec::new();
    for (queries, keys) in VERDICTS {
        let ms = |function: &str| measured.ms(&format!("verdict m={queries}"), function, &keys.to_string());
        let reading = ms("reading q, k and v");
        for bits in LABEL_BITS {
            let [certificate, output, verdict] =
                ["certificate", "output", "verdict"].map(|part| ms(&format!("{part} B={bits}")));
            let mut row = vec![keys.to_string(), queries.to_string(), bits.to_string()];
            row.extend([reading, certificate, output, verdict].map(maybe));
            row.push(ratio(verdict, reading));
            rows.push(row);
        }
    }
    let header =
        ["n", "m", "B", "reading q, k and v", "certificate", "output", "verdict", "verdict / reading"];
    section("Certificate and output verdict of one call", &header, &rows)
}

fn asking(measured: &Measured) -> String {
    let mut rows = Vec::new();
    for (name, asked, judged) in [
        ("an answer at hand", None, "verdict"),
        ("the engine, in Rust", Some("engine"), "engine and verdict"),
        ("a command, through a pipe", Some("pipe"), "pipe and verdict"),
        ("a command, in shared memory", Some("shared"), "shared and verdict"),
    ] {
        for keys in ["4096", "32768"] {
            let ms = |function: &str| measured.ms("asking", function, keys);
            let all = ms(judged);
            let mut row = vec![name.to_owned(), keys.to_owned(), maybe(asked.and_then(ms)), maybe(all)];
            row.push(maybe(all.map(|ms| 1e3 / ms)));
            rows.push(row);
        }
    }
    let header = ["subject", "n", "asking", "asking and verdict", "verdicts a second"];
    section("Verdicts a second, m = 1, B = 4", &header, &rows)
}

fn suite(measured: &Measured) -> String {
    let line = |figure: &&Figure| !figure.unit.starts_with("bytes");
    let (shrinking, others): (Vec<_>, Vec<_>) =
        measured.figures.iter().filter(line).partition(|figure| figure.name.starts_with("shrinking"));
    let mut rows: Vec<_> = others
        .iter()
        .map(|figure| vec![figure.name.clone(), number(figure.value), figure.unit.clone()])
        .collect();
    for cases in ["middle", "small"] {
        let ms = |function: &str| measured.ms("certification", function, cases);
        let what = match cases {
            "middle" => "a verdict beside an answer of the reference, n = 8192",
            _ => "verdicts beside answers of the reference, 1000 small cases",
        };
        rows.push(vec![what.into(), ratio(ms("verdict"), ms("answer")), "times".into()]);
    }
    let seconds = || shrinking.iter().map(|figure| figure.value);
    let slowest = seconds().reduce(f64::max);
    rows.push(vec!["shrinking, the slowest fault".into(), maybe(slowest), "s".into()]);
    let all = format!("shrinking, all {} faults that are caught", shrinking.len());
    rows.push(vec![all, maybe(slowest.map(|_| seconds().sum())), "s".into()]);
    let mut text = section("The suite itself", &["", "found", ""], &rows);
    let row = |figure: &&Figure| {
        let name = figure.name.trim_start_matches("shrinking, ").to_owned();
        vec![name, format!("{:.4}", figure.value)]
    };
    let rows: Vec<_> = shrinking.iter().map(row).collect();
    text += &section("Seconds to shrink a counterexample of each fault", &["fault", "seconds"], &rows);
    text
}

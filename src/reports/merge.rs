//! Reports of a check that was split, put together again as one: from their JSON, so that machines that share nothing can take part.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde_json::{Map, Value};

use crate::visible;

/// What must be the same in all of them.
const SAME: [&str; 5] = ["version", "commit", "subject", "rounding_model", "strict_known"];

/// One report out of several.
#[derive(Debug, Clone)]
pub struct Merged {
    /// In the form of the reports; where shares of it are missing, `bad_inputs` says so.
    pub report: Map<String, Value>,
    /// Which shares of which seeds, in words.
    pub parts: String,
}

/// Puts reports together, each with the name of its file: counts are added, findings of one cause become one, of which the smallest
/// counterexample is kept. Errors: reports that do not belong together, or that hold a question twice; file, found, expected.
pub fn merge(reports: Vec<(String, Map<String, Value>)>) -> Result<Merged, String> {
    let mut reports = reports.into_iter();
    let (first_name, mut merged) = reports.next().ok_or("found no report, expected at least 1")?;
    let mut shares = Shares::default();
    check_lists(&first_name, &merged)?;
    shares.add(&first_name, &merged)?;
    for (name, mut report) in reports {
        for field in SAME {
            if report.get(field) != merged.get(field) {
                let [found, expected] = [&report, &merged].map(|of| of.get(field).unwrap_or(&Value::Null));
                return Err(format!(
                    "{name}: {field}: found {found}, expected {expected} as in {first_name}"
                ));
            }
        }
        check_lists(&name, &report)?;
        shares.add(&name, &report)?;
        let findings = report.remove("findings");
        add(&mut merged, report);
        add_findings(&mut merged, findings);
    }
    merged.remove("shard");
    if let Some(missing) = shares.missing() {
        let bad = merged.entry("bad_inputs").or_insert_with(|| Value::Array(Vec::new()));
        if let Some(bad) = bad.as_array_mut() {
            bad.push(Value::String(missing));
        }
    }
    Ok(Merged { report: merged, parts: shares.in_words() })
}

/// Errors: a list of a report that holds something else than objects.
fn check_lists(name: &str, report: &Map<String, Value>) -> Result<(), String> {
    for field in ["findings", "declarations"] {
        let values = report.get(field).and_then(Value::as_array).into_iter().flatten();
        if let Some(found) = values.into_iter().find(|value| !value.is_object()) {
            return Err(format!("{name}: {field}: found {found}, expected objects"));
        }
    }
    Ok(())
}

/// Which questions the reports hold.
#[derive(Default)]
struct Shares {
    seeds: BTreeSet<u64>,
    /// How many shares there are, and which are here; none where reports are whole.
    of: Option<u64>,
    numbers: BTreeSet<u64>,
}

impl Shares {
    fn add(&mut self, name: &str, report: &Map<String, Value>) -> Result<(), String> {
        let seed = report.get("seed").and_then(Value::as_u64);
        let seed =
            seed.ok_or_else(|| format!("{name}: seed: found none, expected a report of `check --json`"))?;
        let shard = report.get("shard").map(|shard| (shard["number"].as_u64(), shard["of"].as_u64()));
        let is_first = self.seeds.is_empty();
        let is_new = self.seeds.insert(seed);
        match shard {
            None if self.of.is_none() && is_new => Ok(()),
            None if self.of.is_none() => {
                Err(format!("{name}: seed: found {seed} for the second time, expected each seed once"))
            }
            Some((Some(number), Some(of))) if is_first || (self.of == Some(of) && !is_new) => {
                self.of = Some(of);
                if self.numbers.insert(number) {
                    Ok(())
                } else {
                    Err(format!("{name}: share {number}/{of}: found for the second time, expected once"))
                }
            }
            _ => Err(format!(
                "{name}: found another seed or another number of shares, expected shares of one check, or whole checks with a seed each"
            )),
        }
    }

    fn missing(&self) -> Option<String> {
        let of = self.of?;
        let missing: Vec<String> =
            (1..=of).filter(|number| !self.numbers.contains(number)).map(|n| format!("{n}/{of}")).collect();
        let found = self.numbers.len();
        (!missing.is_empty())
            .then(|| format!("shares: found {found} of {of}, expected {} as well", missing.join(", ")))
    }

    fn in_words(&self) -> String {
        let seeds: Vec<String> = self.seeds.iter().map(u64::to_string).collect();
        match self.of {
            Some(of) => format!("{} of {of} shares of seed {}", self.numbers.len(), seeds.join(", ")),
            None => format!("whole checks with seeds {}", seeds.join(", ")),
        }
    }
}

/// Adds what was counted. What is measured at all of them alike stays as the first has it.
fn add(merged: &mut Map<String, Value>, other: Map<String, Value>) {
    for (name, other) in other {
        let Some(own) = merged.get_mut(&name) else {
            merged.insert(name, other);
            continue;
        };
        match (name.as_str(), own, other) {
            // The clock on the wall, of shares that were asked side by side; extremes.
            ("seconds" | "worst_output_error" | "widest_output_bound" | "most" | "shapes", own, other) => {
                let largest = own.as_f64().zip(other.as_f64()).is_none_or(|(own, other)| other > own);
                if largest && !own.is_null() {
                    *own = other;
                }
            }
            ("least", own, other) => {
                if own.as_f64() > other.as_f64() {
                    *own = other;
                }
            }
            ("seed" | "planned_seconds" | "probes" | "domain" | "stages" | "shard", ..) => {}
            ("machine", Value::String(own), Value::String(other)) => {
                if !own.split("; ").any(|own| own == other) {
                    own.push_str("; ");
                    own.push_str(&other);
                }
            }
            ("declarations", Value::Array(own), Value::Array(other)) => {
                // What is declared is the same in all; it need not occur in each.
                for (own, other) in own.iter_mut().zip(other) {
                    let occurs = own["occurs"] == true || other["occurs"] == true;
                    own["occurs"] = occurs.into();
                }
            }
            ("by_size", Value::Array(own), Value::Array(other)) => add_sizes(own, other),
            (_, Value::Bool(own), Value::Bool(other)) => {
                *own = if name == "explained" { *own && other } else { *own || other }
            }
            (_, Value::Object(own), Value::Object(other)) => add(own, other),
            // Lists of what occurred.
            (_, Value::Array(own), Value::Array(other)) => {
                own.extend(other.into_iter().filter(|value| !own.contains(value)).collect::<Vec<_>>());
                if own.iter().all(Value::is_number) {
                    own.sort_by(|a, b| {
                        a.as_f64().partial_cmp(&b.as_f64()).unwrap_or(std::cmp::Ordering::Equal)
                    });
                }
            }
            (_, own @ Value::Null, other) => *own = other,
            (_, own, other) => {
                if let Some(sum) =
                    own.as_u64().zip(other.as_u64()).map(|(own, other)| own.saturating_add(other))
                {
                    *own = sum.into();
                } else if let Some(sum) = own.as_f64().zip(other.as_f64()).map(|(own, other)| own + other) {
                    *own = sum.into();
                }
            }
        }
    }
}

fn add_sizes(own: &mut Vec<Value>, other: Vec<Value>) {
    for row in other {
        let same = own.iter_mut().find(|own| own["keys"] == row["keys"]);
        match (same, row) {
            (Some(Value::Object(own)), Value::Object(mut row)) => {
                row.remove("keys");
                add(own, row);
            }
            (_, row) => own.push(row),
        }
    }
    own.sort_by_key(|row| row["keys"].as_u64());
}

/// Findings with the same names are one; of a cause without a name all that is told must be the same.
fn add_findings(merged: &mut Map<String, Value>, other: Option<Value>) {
    let findings = merged.entry("findings").or_insert_with(|| Value::Array(Vec::new()));
    let (Some(own), Some(Value::Array(other))) = (findings.as_array_mut(), other) else { return };
    for mut finding in other {
        let named = finding["diagnosis"].as_array().is_some_and(|names| !names.is_empty());
        let fields: &[&str] = if named { &["diagnosis"] } else { &["sentence", "stage", "kind"] };
        let alike = |own: &&mut Value| fields.iter().all(|&field| own.get(field) == finding.get(field));
        let Some(own) = own.iter_mut().find(alike) else {
            own.push(finding);
            continue;
        };
        let sequences = |finding: &Value| finding["sequences"].as_u64().unwrap_or(0);
        let sum = sequences(own).saturating_add(sequences(&finding));
        if size(&finding) < size(own) {
            std::mem::swap(own, &mut finding);
        }
        own["sequences"] = sum.into();
        add_more(own, &finding);
    }
}

/// Failures of other kinds that count as one with a finding: each kind once.
fn add_more(own: &mut Value, other: &Value) {
    let mut all = own["more"].as_array().cloned().unwrap_or_default();
    for like in other["more"].as_array().into_iter().flatten() {
        let sequences = |like: &Value| like["sequences"].as_u64().unwrap_or(0);
        match all.iter_mut().find(|own| own.is_object() && own["kind"] == like["kind"]) {
            Some(own) => own["sequences"] = sequences(own).saturating_add(sequences(like)).into(),
            None => all.push(like.clone()),
        }
    }
    if !all.is_empty() {
        own["more"] = Value::Array(all);
    }
}

fn size(finding: &Value) -> [u64; 7] {
    let names = ["calls", "requests", "batch", "heads", "queries", "keys", "head_dim"];
    names.map(|name| finding["size"][name].as_u64().unwrap_or(0))
}

impl Merged {
    /// As that of `check`: 2 where input could not be used or shares are missing, 1 where something diverges or ended early.
    pub fn exit_code(&self) -> u8 {
        let list = |name| self.report.get(name).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let is_set = |name| {
            self.report.get(name).is_some_and(|value| !matches!(value, Value::Null | Value::Bool(false)))
        };
        let findings = list("findings");
        let all_known = !findings.is_empty()
            && findings.iter().all(|finding| !finding["known"].is_null())
            && self.report.get("not_looked_into").and_then(Value::as_u64) == Some(0);
        let wires = self.report.get("probes").and_then(|probes| probes["wires"].as_array());
        let deviates = wires.is_some_and(|wires| wires.iter().any(|wire| wire["state"] == "deviates"));
        let stale = list("declarations").iter().any(|declaration| declaration["occurs"] == false);
        let conforms = (all_known || findings.is_empty() && !deviates)
            && !is_set("stopped")
            && !(stale && is_set("strict_known") && !is_set("interrupted"));
        match (list("bad_inputs").is_empty(), conforms) {
            (false, _) => 2,
            (true, false) => 1,
            (true, true) => 0,
        }
    }

    /// A summary: counts, findings, and where their counterexamples are.
    pub fn render(&self) -> String {
        let of = |value: &Value, name: &str| value.get(name).and_then(Value::as_u64).unwrap_or(0);
        let report = Value::Object(self.report.clone());
        let text_of = |value: &Value| visible::one_line(value.as_str().unwrap_or_default()).into_owned();
        let mut text = format!("subject: {}\nmerged: {}\n", text_of(&report["subject"]), self.parts);
        let _ = writeln!(
            text,
            "asked: {} random sequences, {} large ones and {} goldens, {} calls",
            of(&report, "sequences"),
            of(&report, "large"),
            of(&report, "goldens"),
            of(&report, "calls")
        );
        if let Some(sessions) = report.get("sessions") {
            let [conforming, asked, steps, refused, rows] =
                ["conforming", "asked", "steps", "refused", "rows"].map(|name| of(sessions, name));
            let _ = writeln!(
                text,
                "sessions: {conforming} of {asked} conform, {steps} steps ({refused} refused, as expected), {rows} attended rows"
            );
        }
        for (index, finding) in report["findings"].as_array().into_iter().flatten().enumerate() {
            let sequences = of(finding, "sequences");
            let _ = writeln!(
                text,
                "\nFINDING {}: {} (in {sequences} of all)",
                index + 1,
                text_of(&finding["kind"])
            );
            let _ = writeln!(text, "  diagnosis: {}", text_of(&finding["sentence"]));
            let more = finding["more"].as_array().map_or(&[][..], Vec::as_slice);
            if !more.is_empty() {
                let kind = |like: &Value| {
                    let (kind, sequences) = (text_of(&like["kind"]), of(like, "sequences"));
                    format!("{kind} (in {sequences} of all: {})", text_of(&like["explanation"]))
                };
                let kinds: Vec<String> = more.iter().map(kind).collect();
                let _ = writeln!(text, "  {} more like it: {}", kinds.len(), kinds.join("; "));
            }
            for line in finding["explanations"].as_array().into_iter().flatten() {
                let _ = writeln!(text, "  {}", text_of(line));
            }
            if finding["file"].is_string() {
                let _ = writeln!(text, "  counterexample: {}", text_of(&finding["file"]));
            }
        }
        for problem in report["bad_inputs"].as_array().into_iter().flatten() {
            let _ = writeln!(text, "\nbad input: {}", text_of(problem));
        }
        let sessions = report.get("sessions").filter(|sessions| of(sessions, "asked") > 0);
        let in_sessions = report.get("sessions").map_or(0, |sessions| of(sessions, "goldens"));
        let counts = ["sequences", "large", "goldens", "probed"].map(|name| of(&report, name));
        let asked = counts.into_iter().fold(0, u64::saturating_add).saturating_sub(in_sessions);
        let sequences = format!("{} of {asked} sequences", of(&report, "conforming"));
        let sequences = Some(sequences).filter(|_| asked > 0 || sessions.is_none());
        let sessions = sessions.map(|s| format!("{} of {} sessions", of(s, "conforming"), of(s, "asked")));
        let conforming: Vec<String> = sequences.into_iter().chain(sessions).collect();
        let (diverged, findings) =
            (of(&report, "diverged"), report["findings"].as_array().map_or(0, Vec::len));
        let plural = if findings == 1 { "finding" } else { "findings" };
        let _ =
            writeln!(text, "\n{} conform; {diverged} diverge, {findings} {plural}", conforming.join(" and "));
        text
    }
}

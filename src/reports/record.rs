//! What the JSON of a check says, read back: of this program, or of an earlier one that wrote less. Reports for other programs (JUnit,
//! Markdown, badges) and the site are made of it, so that they can say nothing that the JSON does not.

#![allow(
    missing_docs,
    reason = "fields are those of the report, and described there and in docs/check.schema.json"
)]

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::runner::check::{Excuse, Implementation, Kept, Repeats, Report, Sessions, Size};

/// The cause of a finding for which none could be told.
pub const UNKNOWN: &str = "unknown";

/// A check. What earlier programs did not write is empty or `None`.
#[derive(Debug, Clone, Deserialize)]
pub struct Record {
    pub version: String,
    pub subject: String,
    implementation: Option<Implementation>,
    pub date: Option<String>,
    pub command: Option<String>,
    pub rounding_model: String,
    pub seed: u64,
    pub sequences: usize,
    #[serde(default)]
    pub large: usize,
    pub goldens: usize,
    pub probes: Option<Probes>,
    pub sessions: Option<Sessions>,
    pub calls: usize,
    pub answered: usize,
    pub outputs: usize,
    pub labels: usize,
    pub stages: Option<Stages>,
    pub coverage: Option<Coverage>,
    pub left_out: BTreeMap<String, usize>,
    pub conforming: usize,
    pub refused: usize,
    pub known: usize,
    #[serde(default)]
    pub declarations: Vec<Declaration>,
    #[serde(default)]
    strict_known: bool,
    pub diverged: usize,
    pub findings: Vec<Finding>,
    pub not_looked_into: usize,
    #[serde(default)]
    pub interrupted: bool,
    pub stopped: Option<String>,
    pub bad_inputs: Vec<String>,
    pub repeats: Option<Repeats>,
    #[serde(default)]
    pub promises: BTreeMap<String, Kept>,
    pub seconds: f64,
}

/// A finding.
#[derive(Debug, Clone, Deserialize)]
pub struct Finding {
    pub kind: String,
    pub sequences: usize,
    pub stage: Option<String>,
    pub explanations: Vec<String>,
    pub diagnosis: Vec<String>,
    pub rows: Vec<String>,
    relation: Option<Relation>,
    pub sentence: String,
    pub wider_model: Option<String>,
    pub size: Size,
    pub tries: usize,
    pub shrunk: bool,
    condition: Option<Sentence>,
    state: Option<Sentence>,
    #[serde(default)]
    pub more: Vec<Like>,
    pub known: Option<Excuse>,
    pub file: Option<String>,
    ragged: Option<Value>,
}

/// A failure that counts as one with a finding.
#[derive(Debug, Clone, Deserialize)]
pub struct Like {
    pub kind: String,
    pub sequences: usize,
}

#[derive(Debug, Clone, Deserialize)]
struct Relation {
    relation: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
struct Sentence {
    sentence: String,
}

/// What a subject takes and gives.
#[derive(Debug, Clone, Deserialize)]
pub struct Stages {
    pub takes: String,
    pub gives: Vec<String>,
    pub scores: usize,
    pub lse: usize,
}

/// What was asked.
#[derive(Debug, Clone, Deserialize)]
pub struct Coverage {
    pub domain: Vec<Value>,
    pub parts: BTreeMap<String, usize>,
}

/// What is declared as known.
#[derive(Debug, Clone, Deserialize)]
pub struct Declaration {
    fault: Option<String>,
    finding: Option<String>,
    #[serde(flatten)]
    pub why: Excuse,
    pub occurs: bool,
}

/// What was measured.
#[derive(Debug, Clone, Deserialize)]
pub struct Probes {
    pub wires: Vec<Wire>,
}

/// One wire.
#[derive(Debug, Clone, Deserialize)]
pub struct Wire {
    pub wire: String,
    pub state: String,
    pub measured: String,
    pub expected: String,
}

impl Record {
    /// Reads a report. Errors: field, found and expected; `None` for JSON that is no report of a check, and what is no JSON.
    pub fn read(text: &str) -> Option<Result<Self, String>> {
        let value: Value = serde_json::from_str(text).ok()?;
        let is_check = ["rounding_model", "findings", "conforming", "left_out"]
            .iter()
            .all(|field| value.get(field).is_some());
        is_check.then(|| Self::of_value(value))
    }

    /// What the JSON of a report says. Errors: a report that JSON cannot hold, such as a path that is no UTF-8.
    pub fn of(report: &Report) -> Result<Self, String> {
        serde_json::to_value(report).map_err(|error| error.to_string()).and_then(Self::of_value)
    }

    fn of_value(value: Value) -> Result<Self, String> {
        serde_path_to_error::deserialize(value).map_err(|error| {
            let field = error.path().to_string();
            format!("{field}: found {}, expected the report of a check", error.into_inner())
        })
    }

    /// Who was checked, in parts; taken from the name where nothing else says it.
    pub fn implementation(&self) -> Implementation {
        self.implementation.clone().unwrap_or_else(|| Implementation::of(&self.subject))
    }

    /// As [`Report::exit_code`].
    pub fn exit_code(&self) -> u8 {
        let all_known =
            !self.findings.is_empty() && self.open().next().is_none() && self.not_looked_into == 0;
        let fails = !(all_known || self.findings.is_empty())
            || self.stopped.is_some()
            || !(all_known || self.deviating().next().is_none())
            || self.is_stale();
        match (self.bad_inputs.is_empty(), fails) {
            (false, _) => 2,
            (true, true) => 1,
            (true, false) => 0,
        }
    }

    /// Findings that are not known.
    pub fn open(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| finding.known.is_none())
    }

    /// Wires that deviate.
    pub fn deviating(&self) -> impl Iterator<Item = &Wire> {
        self.probes.iter().flat_map(|probes| &probes.wires).filter(|wire| wire.state == "deviates")
    }

    /// Declared divergences that did not occur.
    pub fn stale(&self) -> impl Iterator<Item = &Declaration> {
        self.declarations.iter().filter(|declaration| !declaration.occurs)
    }

    /// Whether it fails because one did not.
    pub fn is_stale(&self) -> bool {
        self.strict_known && !self.interrupted && self.stale().next().is_some()
    }

    /// The outcome in a few words.
    pub fn outcome(&self) -> String {
        let open = self.open().count();
        let plural =
            |count: usize, one: &str, many: &str| format!("{count} {}", if count == 1 { one } else { many });
        match self.exit_code() {
            2 => format!("{} could not be used", plural(self.bad_inputs.len(), "input", "inputs")),
            0 if !self.findings.is_empty() || self.known > 0 => "diverges only as known".into(),
            0 => "conforms".into(),
            _ if open > 0 => format!("diverges: {}", plural(open, "finding", "findings")),
            _ if self.stopped.is_some() => "ended early".into(),
            _ if self.is_stale() => {
                format!(
                    "{} did not occur",
                    plural(self.stale().count(), "known divergence", "known divergences")
                )
            }
            _ => format!("diverges: {}", plural(self.deviating().count(), "wire", "wires")),
        }
    }

    /// How many conform, of how many that were asked: sequences, and sessions where they are not among these.
    pub fn conforming(&self) -> (usize, usize, &'static str) {
        match &self.sessions {
            Some(sessions) if !self.asks_calls() => (sessions.conforming, sessions.asked, "sessions"),
            _ => {
                let asked = self.conforming.saturating_add(self.diverged).saturating_add(self.known);
                (self.conforming, asked, "sequences")
            }
        }
    }

    /// Whether any call was asked outside sessions.
    pub fn asks_calls(&self) -> bool {
        self.calls > 0 || self.sequences > 0 || self.large > 0
    }
}

impl Finding {
    /// Its causes in a word each: rows of SPEC §3, names of faults, or of which kind it is.
    pub fn causes(&self) -> Vec<&str> {
        let mut rows: Vec<&str> =
            self.rows.iter().map(String::as_str).filter(|row| row.starts_with('D')).collect();
        rows.dedup();
        if !rows.is_empty() {
            return rows;
        }
        if !self.diagnosis.is_empty() {
            return self.diagnosis.iter().map(String::as_str).collect();
        }
        let told = self.relation.as_ref().is_some_and(|told| told.relation.is_some());
        vec![match self.kind.as_str() {
            _ if self.wider_model.is_some() => "rounding",
            _ if told => "relation",
            "not repeatable" => "flaky",
            "broken promise" => "promise",
            _ => UNKNOWN,
        }]
    }

    /// Under which condition it fails.
    pub fn condition(&self) -> Option<&str> {
        self.condition.as_ref().map(|condition| condition.sentence.as_str())
    }

    /// What it needs of what was asked before.
    pub fn state(&self) -> Option<&str> {
        self.state.as_ref().map(|state| state.sentence.as_str()).filter(|sentence| !sentence.is_empty())
    }

    /// Whether its batch entries have unequal lengths.
    pub fn is_ragged(&self) -> bool {
        self.ragged.is_some()
    }

    /// Whether it is of a session.
    pub fn is_session(&self) -> bool {
        self.size.requests.is_some()
    }

    /// How far it was shrunk.
    pub fn shrinking(&self) -> String {
        match (self.tries, self.shrunk) {
            (0, false) => format!("{}, not shrunk", self.size),
            (_, true) => self.size.to_string(),
            (_, false) => format!("{} (stopped at the shrinking limit)", self.size),
        }
    }
}

impl std::fmt::Display for Declaration {
    /// What is known.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.fault.as_ref().or(self.finding.as_ref()).map_or("", String::as_str))
    }
}

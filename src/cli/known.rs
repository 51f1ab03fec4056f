//! `--known`: names of faults, and files of what is known, each entry with a reason:
//!
//! ```toml
//! [[known]]
//! fault = "D4"
//! reason = "fixed in the next release"
//! link = "https://example.org/issues/4"
//! ```

use std::path::Path;

use toml::{Table, Value};

use super::{Failure, subject};
use crate::behaviours::Fault;
use crate::cases::Memory;
use crate::runner::check::{Declaration, Declared, Excuse};

/// The keys of an entry.
const KEYS: [&str; 4] = ["fault", "finding", "reason", "link"];

/// What is declared as known, by names and by files, in their order. Errors: an unknown name; a file that cannot be read, or with
/// what it must not hold; the same declared twice.
pub fn read(values: &[String], memory: Memory) -> Result<Vec<Declaration>, Failure> {
    let mut declarations: Vec<Declaration> = Vec::new();
    for value in values {
        let found = match Path::new(value).extension() {
            Some(kind) if kind == "toml" => file(Path::new(value), memory)?,
            _ => {
                subject::faults(std::slice::from_ref(value), "--known")?;
                vec![Declaration::new(Declared::Fault(value.clone()), Excuse::default())?]
            }
        };
        declarations.extend(found);
    }
    for (index, one) in declarations.iter().enumerate() {
        if declarations[..index].iter().any(|other| other.what == one.what) {
            let (Declared::Fault(found) | Declared::Finding(found)) = &one.what;
            return Err(format!("--known: found {found:?} twice, expected each once").into());
        }
    }
    Ok(declarations)
}

/// The faults that declarations stand for, each once.
pub fn faults(declarations: &[Declaration]) -> Vec<&'static Fault> {
    let mut faults: Vec<&'static Fault> = Vec::new();
    for fault in declarations.iter().flat_map(Declaration::faults) {
        if !faults.iter().any(|other| other.name == fault.name) {
            faults.push(fault);
        }
    }
    faults
}

fn file(path: &Path, memory: Memory) -> Result<Vec<Declaration>, Failure> {
    let bytes = memory.read(path)?;
    entries(&bytes).map_err(|error| format!("{}: {error}", path.display()).into())
}

/// The entries of a file. Errors: field, what was found, what was expected.
fn entries(bytes: &[u8]) -> Result<Vec<Declaration>, String> {
    let text =
        str::from_utf8(bytes).map_err(|error| format!("file: found {error}, expected TOML, in UTF-8"))?;
    let table: Table = text.parse().map_err(|error| not_toml(text, &error))?;
    if let Some(key) = table.keys().find(|key| *key != "known") {
        return Err(format!("file: found {key:?}, expected [[known]] alone"));
    }
    let known = match table.get("known") {
        None => &[][..],
        Some(Value::Array(known)) => known,
        Some(other) => return Err(format!("known: found {}, expected [[known]]", kind(other))),
    };
    known.iter().enumerate().map(|(index, entry)| self::entry(&format!("known[{index}]"), entry)).collect()
}

fn not_toml(text: &str, error: &toml::de::Error) -> String {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    format!("line {line}: found {}, expected TOML", error.message().replace('\n', ", "))
}

fn entry(field: &str, entry: &Value) -> Result<Declaration, String> {
    let Value::Table(entry) = entry else {
        return Err(format!("{field}: found {}, expected a table", kind(entry)));
    };
    if let Some(key) = entry.keys().find(|key| !KEYS.contains(&key.as_str())) {
        return Err(format!("{field}: found {key:?}, expected {}", KEYS.join(", ")));
    }
    let text = |key: &str| match entry.get(key) {
        None => Ok(None),
        Some(Value::String(text)) if !text.trim().is_empty() => Ok(Some(text.trim().to_owned())),
        Some(Value::String(_)) => Err(format!("{field}.{key}: found no text, expected some")),
        Some(other) => Err(format!("{field}.{key}: found {}, expected text", kind(other))),
    };
    let (key, what) = match (text("fault")?, text("finding")?) {
        (Some(name), None) => ("fault", Declared::Fault(name)),
        (None, Some(sentence)) => ("finding", Declared::Finding(sentence)),
        (Some(_), Some(_)) => return Err(format!("{field}: found fault and finding, expected one of them")),
        (None, None) => {
            return Err(format!("{field}: found neither fault nor finding, expected one of them"));
        }
    };
    let reason = text("reason")?;
    if reason.is_none() {
        return Err(format!("{field}.reason: found none, expected why it is accepted"));
    }
    let link = text("link")?;
    if let Some(link) = link.as_ref().filter(|link| !is_address(link)) {
        return Err(format!(
            "{field}.link: found {link:?}, expected an address that begins with https:// or http://"
        ));
    }
    Declaration::new(what, Excuse { reason, link }).map_err(|error| format!("{field}.{key}: {error}"))
}

/// Whether a text can be a link: reports make it one.
fn is_address(text: &str) -> bool {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    rest.is_some_and(|rest| !rest.is_empty() && !text.contains(|c: char| c.is_whitespace() || c.is_control()))
}

fn kind(value: &Value) -> String {
    match value.type_str() {
        "array" => "an array".into(),
        "integer" => "an integer".into(),
        other => format!("a {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read() {
        let file = "[[known]]\nfault = \"D4\"\nreason = \" later \"\n\n[[known]]\nfinding = \"Heads are mixed.\"\nreason = \"r\"\nlink = \"https://example.org/1\"\n";
        let found = entries(file.as_bytes()).unwrap();
        assert_eq!(
            found.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["D4: later", "“Heads are mixed.”: r (https://example.org/1)"]
        );
        assert_eq!(faults(&found).len(), 1);
        assert!(entries(b"").unwrap().is_empty() && entries(b"known = []").unwrap().is_empty());
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said() {
        for (file, expected) in [
            ("[[known]]\nfault = ", "line 2: found "),
            ("[[fault]]", "file: found \"fault\", expected [[known]] alone"),
            ("known = 3", "known: found an integer, expected [[known]]"),
            ("known = [3]", "known[0]: found an integer, expected a table"),
            ("[[known]]\nreason = \"r\"", "known[0]: found neither fault nor finding"),
            (
                "[[known]]\nfault = \"D4\"\nfinding = \"D4\"\nreason = \"r\"",
                "known[0]: found fault and finding",
            ),
            ("[[known]]\nfault = \"D4\"", "known[0].reason: found none, expected why it is accepted"),
            ("[[known]]\nfault = \"D4\"\nreason = \" \"", "known[0].reason: found no text, expected some"),
            ("[[known]]\nfault = 4\nreason = \"r\"", "known[0].fault: found an integer, expected text"),
            (
                "[[known]]\nfault = \"D99\"\nreason = \"r\"",
                "known[0].fault: found \"D99\", expected a name or a row",
            ),
            (
                "[[known]]\nfinding = \"Unknown: x\"\nreason = \"r\"",
                "known[0].finding: found \"Unknown: x\", which names no cause",
            ),
            (
                "[[known]]\nfault = \"D4\"\nreason = \"r\"\nurl = \"x\"",
                "known[0]: found \"url\", expected fault, finding, reason, link",
            ),
            (
                "[[known]]\nfault = \"D4\"\nreason = \"r\"\nlink = \"javascript:x\"",
                "known[0].link: found \"javascript:x\", expected an address",
            ),
        ] {
            let error = entries(file.as_bytes()).unwrap_err();
            assert!(error.contains(expected), "{file}: {error}");
        }
        assert!(entries(b"\xff").unwrap_err().contains("expected TOML, in UTF-8"));
    }
}
